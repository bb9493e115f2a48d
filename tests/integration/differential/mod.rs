//! The same request to a pod directly and through Tidegate: what the pod receives and what the client receives must be
//! equal byte by byte, but for the changes that docs/http.md lists.

mod cases;
mod changes;
mod wire;

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};

use self::{
    cases::{Answered, Asked, EXTRA, Json, legible},
    changes::{Row, arrived, expected, table},
    wire::{Field, Message, Script, ScriptedPod, exchange},
};
use crate::harness::Gateway;

/// Pairs of requests: as many as fit a quarter of a minute on two busy cores, unoptimised.
const CASES: u32 = 1_500;

/// What the pod calls the model `alias`: as odd as its own JSON string may be.
const SERVED: &str = r#""the \"served\" \\ näme""#;

struct Stage {
    pod: ScriptedPod,
    gateway: Gateway,
    request_rows: Vec<Row>,
    answer_rows: Vec<Row>,
}

impl Stage {
    async fn set() -> Self {
        let pod = ScriptedPod::start().await;
        let gateway = Gateway::over([format!("{{ url: \"http://{}\" }}", pod.addr)])
            .models(&[
                "{ modelName: m, poolRef: pods }",
                &format!("{{ modelName: alias, poolRef: pods, targetModels: [{{ name: {SERVED} }}] }}"),
            ])
            .yaml(&format!("api: {{ extra_paths: [{EXTRA}] }}"))
            .start()
            .await;
        gateway.sees_all_pods().await;
        Self { pod, gateway, request_rows: table("Request headers"), answer_rows: table("Answer headers") }
    }

    /// One request both ways: what the pod received and what came back.
    async fn both_ways(&self, asked: &Asked, answered: &Answered) -> [(Vec<Message>, Message); 2] {
        let script = Script { pieces: answered.pieces(asked.method), closes: answered.closes() };
        self.pod.will_say(script);
        let mut ways = Vec::new();
        for to in [self.pod.addr, self.gateway.addr] {
            let answer = exchange(to, asked.method, &asked.wire(&to.to_string())).await;
            ways.push((self.pod.asked(), answer));
        }
        // A pod that errs again and again is put aside, and these errors mean nothing.
        self.pod.will_say(Script {
            pieces: vec![b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()],
            closes: false,
        });
        let well = format!("POST {EXTRA} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        let healed = exchange(self.gateway.addr, "POST", well.as_bytes()).await;
        assert_eq!(healed.status(), 200, "{}", legible(&healed.body));
        self.pod.asked();
        ways.try_into().unwrap()
    }

    async fn compare(&self, asked: Asked, answered: Answered) -> Result<(), TestCaseError> {
        let [(direct_asked, direct), (via_asked, via)] = self.both_ways(&asked, &answered).await;
        let (Some(sent), [got]) = (direct_asked.first(), &via_asked[..]) else {
            let told = String::from_utf8_lossy(&via.body);
            return Err(TestCaseError::fail(format!("refused, or asked {} times: {told}", via_asked.len())));
        };
        self.compare_requests(&asked, sent, got)?;
        self.compare_answers(&asked, &direct, (got, &via))
    }

    fn compare_requests(&self, asked: &Asked, sent: &Message, got: &Message) -> Result<(), TestCaseError> {
        prop_assert_eq!(&got.start, &sent.start);
        let body = asked.body.as_ref().map(|body| body.served_as(SERVED)).unwrap_or_default();
        prop_assert_eq!(&sent.body, &asked.body.as_ref().map(Json::bytes).unwrap_or_default());
        prop_assert!(got.body == body, "the pod's body:\n{}\nfor\n{}", legible(&got.body), legible(&body));
        let host = self.pod.addr.to_string();
        prop_assert_eq!(got.values("host"), vec![host.as_bytes()]);
        let ids = got.values("x-request-id");
        prop_assert_eq!(ids.len(), 1);
        let given = sent.values("x-request-id");
        prop_assert!(given.is_empty() || given == ids, "the client's own id is kept");
        prop_assert_eq!(
            lines(&arrived(got, &self.request_rows, sent)),
            lines(&expected(sent, &self.request_rows, ids[0])),
            "fields of the request"
        );
        Ok(())
    }

    fn compare_answers(
        &self,
        asked: &Asked,
        direct: &Message,
        (got, via): (&Message, &Message),
    ) -> Result<(), TestCaseError> {
        prop_assert_eq!(via.status(), direct.status());
        let whole = via.body == direct.body || is_told_that_its_end_is_missing(&asked.path, direct, via);
        prop_assert!(whole, "the answer:\n{}\nfor\n{}", legible(&via.body), legible(&direct.body));
        let id = got.values("x-request-id")[0];
        prop_assert_eq!(
            lines(&arrived(via, &self.answer_rows, direct)),
            lines(&expected(direct, &self.answer_rows, id)),
            "fields of the answer"
        );
        let lengths = [direct, via].map(|answer| answer.values("content-length"));
        if asked.method == "HEAD" && !lengths[0].is_empty() {
            prop_assert_eq!(&lengths[1], &lengths[0], "the length of what is not there");
        }
        let wants_trailers = asked.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"te"));
        let trailers = if wants_trailers { direct.trailers.clone() } else { Vec::new() };
        prop_assert_eq!(&via.trailers, &trailers, "trailers");
        Ok(())
    }
}

/// Some of the streams say their end, so that one which does not broke off, and its client is told.
fn is_told_that_its_end_is_missing(path: &str, direct: &Message, via: &Message) -> bool {
    let stream = String::from_utf8_lossy(&direct.body).replace("\r\n", "\n");
    // Event by event: what a model writes about streams ends none, nor does what another line makes a part of a value.
    let ends = |event: &str| {
        let value: Vec<_> = event.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
        let value = value.join("\n");
        // An error of this shape means nothing to readers of other dialects.
        let others = path.contains("responses") || path.contains("messages");
        value == "[DONE]" || (!others && value.starts_with(r#"{"error":{"#))
    };
    let told = |rest: &[u8]| String::from_utf8_lossy(rest).contains("stopped before the answer was complete");
    !stream.split("\n\n").any(ends) && via.body.strip_prefix(&direct.body[..]).is_some_and(told)
}

/// Fields as a person can read them.
fn lines(fields: &[Field]) -> Vec<String> {
    fields.iter().map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii())).collect()
}

#[test]
fn a_pod_and_a_client_notice_nothing_of_us_but_what_is_written_down() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stage = runtime.block_on(Stage::set());
    let cases = cases::case(&stage.request_rows, &stage.answer_rows);
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let outcome =
        TestRunner::new(config).run(&cases, |(asked, answered)| runtime.block_on(stage.compare(asked, answered)));
    if let Err(problem) = outcome {
        panic!("{problem}");
    }
}

#[test]
fn the_tables_speak_of_what_matters_most() {
    let names = |heading| table(heading).into_iter().map(|row| row.name).collect::<Vec<_>>();
    let request = names("Request headers");
    for name in ["connection", "authorization", "x-request-id", "x-forwarded-*", "host"] {
        assert!(request.iter().any(|it| it == name), "{name}");
    }
    let answer = names("Answer headers");
    assert!(["server", "x-request-id", "content-length"].iter().all(|name| answer.iter().any(|it| it == name)));
}
