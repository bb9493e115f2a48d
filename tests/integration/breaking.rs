//! Answers that break: every place where a pod can die, in every dialect, and never an end that looks clean; answers
//! that come through odd framing byte for byte; and requests in which this gateway itself fails.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Call, Client, Gateway, LoneDesk, RawPod, Reply, chat, chat_stream, events, sse_head, whole_json};

const UNFRAMED: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// How a dialect begins, how it ends cleanly, and its path and prompt.
struct Dialect {
    path: &'static str,
    prompt: &'static str,
    first: &'static str,
    end: &'static str,
}

const DIALECTS: [Dialect; 4] = [
    Dialect {
        path: "/v1/chat/completions",
        prompt: r#""messages":[{"role":"user","content":"hi"}]"#,
        first: "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
        end: "data: [DONE]\n\n",
    },
    Dialect {
        path: "/v1/completions",
        prompt: r#""prompt":"hi""#,
        first: "data: {\"choices\":[{\"text\":\"a\"}]}\n\n",
        end: "data: [DONE]\n\n",
    },
    Dialect {
        path: "/v1/messages",
        prompt: r#""messages":[{"role":"user","content":"hi"}],"max_tokens":9"#,
        first: "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n",
        end: "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    },
    Dialect {
        path: "/v1/responses",
        prompt: r#""input":"hi""#,
        first: concat!(
            "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":",
            "{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":7,\"status\":\"in_progress\",\"model\":\"m\",\"output\":[]}}\n\n",
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":1,\"delta\":\"a\"}\n\n",
        ),
        end: "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":2,\"response\":{\"id\":\"resp_1\",\"error\":null}}\n\n",
    },
];

/// Where the pod dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    BetweenEvents,
    InsideAnEvent,
    AfterTheEnd,
}

impl Dialect {
    /// The name and the data of what tells that the stream is broken.
    fn assert_is_its_error(&self, event: &str) {
        let name = event.lines().find_map(|line| line.strip_prefix("event: "));
        let data: Value = serde_json::from_str(events(event)[0]).unwrap();
        let message = json!("the model server stopped before the answer was complete");
        match self.path {
            "/v1/messages" => {
                let expected = json!({"type": "error", "error": {"type": "api_error", "message": message}});
                assert_eq!((name, data), (Some("error"), expected));
            }
            "/v1/responses" => {
                let expected = json!({
                    "type": "response.failed", "sequence_number": 2,
                    "response": {
                        "id": "resp_1", "object": "response", "created_at": 7, "status": "failed", "model": "m",
                        "output": [], "error": {"code": "server_error", "message": message},
                    },
                });
                assert_eq!((name, data), (Some("response.failed"), expected));
            }
            _ => {
                let error = json!({"message": message, "type": "server_error", "param": null, "code": "stream_cut"});
                assert_eq!((name, data), (None, json!({ "error": error })));
            }
        }
    }

    /// Plays a pod that dies there; gives what the client read.
    async fn cut(&self, at: At, framed: bool, by_reset: bool) -> String {
        let mut pod = RawPod::start().await;
        let gateway = Gateway::over([pod.endpoint()]).start().await;
        let body = format!(r#"{{"model":"m","stream":true,{}}}"#, self.prompt);
        let reply = Call::post(self.path, body).begin(gateway.addr);
        let mut asked = pod.asked().await;
        asked.say(if framed { sse_head() } else { UNFRAMED }).await;
        let mut reply = reply.await.unwrap();
        let said = match at {
            At::BetweenEvents => self.first.to_owned(),
            At::InsideAnEvent => format!("{}data: {{\"choi", self.first),
            At::AfterTheEnd => [self.first, self.end].concat(),
        };
        if framed {
            asked.chunk(&said).await;
        } else {
            asked.say(&said).await;
        }
        let mut read = String::new();
        while read.len() < said.len() {
            read += std::str::from_utf8(&reply.piece().await.unwrap().unwrap()).unwrap();
        }
        assert_eq!(read, said, "what the pod said passes");
        if by_reset {
            asked.reset();
        } else {
            drop(asked);
        }
        let rest = reply.text().await;
        gateway.quiet().await;
        let cuts = if at == At::AfterTheEnd { 0.0 } else { 1.0 };
        assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, cuts);
        assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0, "the client did not leave");
        rest
    }
}

#[tokio::test]
async fn a_pod_that_dies_in_a_stream_is_told_of_in_each_dialect_wherever_it_dies() {
    for dialect in &DIALECTS {
        for (framed, reset) in [(true, false), (true, true), (false, false), (false, true)] {
            for at in [At::BetweenEvents, At::InsideAnEvent, At::AfterTheEnd] {
                let rest = dialect.cut(at, framed, reset).await;
                let what = format!("{} {at:?} framed: {framed}, reset: {reset}: {rest}", dialect.path);
                assert!(!rest.contains("[DONE]") && !rest.contains("_stop") && !rest.contains("completed"), "{what}");
                match at {
                    At::BetweenEvents => dialect.assert_is_its_error(&rest),
                    // The half event is ended, and the error is an event of its own.
                    At::InsideAnEvent => dialect.assert_is_its_error(rest.strip_prefix("\n\n").expect(&what)),
                    At::AfterTheEnd => assert_eq!(rest, "", "it is complete: {what}"),
                }
            }
        }
    }
}

/// What a client reads of a stream of these events that HTTP itself ends cleanly, and how many were cut so far.
async fn ended_by_http(gateway: &Gateway, pod: &mut RawPod, dialect: &Dialect, events: &[&str]) -> (String, f64) {
    let body = format!(r#"{{"model":"m","stream":true,{}}}"#, dialect.prompt);
    let reply = Call::post(dialect.path, body).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    if !events.is_empty() {
        asked.chunk(&events.concat()).await;
    }
    asked.say("0\r\n\r\n").await;
    let read = reply.await.unwrap().text().await;
    gateway.quiet().await;
    (read, gateway.counted("tidegate_cuts_total", &["no_end"]).await)
}

#[tokio::test]
async fn a_stream_that_http_ends_before_its_own_end_is_told_of_where_the_pod_is_known_to_say_it() {
    for dialect in &DIALECTS {
        let mut pod = RawPod::start().await;
        let gateway = Gateway::over([pod.endpoint()]).start().await;
        // An engine that leaves its end unsaid is not blamed for it.
        let told = ended_by_http(&gateway, &mut pod, dialect, &[dialect.first]).await;
        assert_eq!(told, (dialect.first.to_owned(), 0.0), "{}", dialect.path);
        let told = ended_by_http(&gateway, &mut pod, dialect, &[dialect.first, dialect.end]).await;
        assert_eq!(told, ([dialect.first, dialect.end].concat(), 0.0), "{}", dialect.path);
        // One that says it did not come to it.
        let (read, cuts) = ended_by_http(&gateway, &mut pod, dialect, &[dialect.first]).await;
        dialect.assert_is_its_error(read.strip_prefix(dialect.first).expect(&read));
        assert_eq!(cuts, 1.0, "{}", dialect.path);
        assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 1.0);
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_first_token_does_not_look_like_an_empty_answer() {
    let [chat, ..] = &DIALECTS;
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let whole = ended_by_http(&gateway, &mut pod, chat, &[chat.first, chat.end]).await;
    assert_eq!(whole, ([chat.first, chat.end].concat(), 0.0));
    for events in [vec![], vec![role]] {
        let (read, _) = ended_by_http(&gateway, &mut pod, chat, &events).await;
        chat.assert_is_its_error(read.strip_prefix(&events.concat()).expect(&read));
    }
    assert_eq!(gateway.counted("tidegate_cuts_total", &["empty_answer"]).await, 2.0);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 2.0);
}

#[tokio::test]
async fn a_stream_of_a_promised_length_that_breaks_off_never_looks_complete() {
    let [chat, ..] = &DIALECTS;
    for missing in [5, 99] {
        let mut pod = RawPod::start().await;
        let gateway = Gateway::over([pod.endpoint()]).start().await;
        let to = gateway.addr;
        let reply =
            tokio::spawn(async move { Client::h1(to).await.ask(chat_stream("hi", 9)).await?.collected().await });
        let mut asked = pod.asked().await;
        let length = chat.first.len() + missing;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n");
        asked.say(head + chat.first).await;
        drop(asked);
        let read = reply.await.unwrap();
        assert!(read.is_err(), "an error event that fills what is missing: {read:?}");
        gateway.quiet().await;
        assert_eq!(gateway.counted("tidegate_cuts_total", &["connection_died"]).await, 1.0);
    }
}

#[tokio::test]
async fn what_came_before_a_bad_chunk_in_the_same_read_reaches_the_client() {
    let [chat, ..] = &DIALECTS;
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for (events, ended) in [(vec![chat.first, chat.end], true), (vec![chat.first], false)] {
        let body = format!(r#"{{"model":"m","stream":true,{}}}"#, chat.prompt);
        let reply = Call::post(chat.path, body).begin(gateway.addr);
        let mut asked = pod.asked().await;
        let events = events.concat();
        asked.say(format!("{}{:x}\r\n{events}\r\nzz\r\n", sse_head(), events.len())).await;
        let read = reply.await.unwrap().text().await;
        let rest = read.strip_prefix(&events).expect(&read);
        if ended { assert_eq!(rest, "") } else { chat.assert_is_its_error(rest) }
    }
}

#[tokio::test]
async fn a_stream_with_a_reason_to_finish_is_whole_without_done() {
    let [chat, ..] = &DIALECTS;
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for events in [vec![chat.first, finish, chat.end], vec![chat.first, finish], vec![finish]] {
        let told = ended_by_http(&gateway, &mut pod, chat, &events).await;
        assert_eq!(told, (events.concat(), 0.0));
    }
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
}

/// What a client makes of a whole answer whose end only the closed connection tells.
async fn unframed(kind: &str, body: &str, h2: bool) -> (Result<String, hyper::Error>, f64) {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let to = gateway.addr;
    let reply = tokio::spawn(async move {
        let mut client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
        // Broken before its head was sent is broken as well.
        client.ask(chat("hi", 9)).await?.collected().await
    });
    let mut asked = pod.asked().await;
    asked.say(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}")).await;
    drop(asked);
    let read = reply.await.unwrap().map(|(bytes, _)| String::from_utf8(bytes.to_vec()).unwrap());
    gateway.quiet().await;
    (read, gateway.counted("tidegate_cuts_total", &["no_end"]).await)
}

#[tokio::test]
async fn half_a_json_answer_without_framing_never_looks_complete() {
    let whole = r#"{"choices":[{"message":{"content":"a }] \" "}}],"usage":{"prompt_tokens":1}}"#;
    for h2 in [false, true] {
        for cut in [0, 1, whole.len() / 2, 45, whole.len() - 1] {
            let (read, cuts) = unframed("application/json; charset=utf-8", &whole[..cut], h2).await;
            assert!(read.is_err(), "{:?} looks complete, h2: {h2}", &whole[..cut]);
            assert_eq!(cuts, 1.0);
        }
        let (read, cuts) = unframed("application/json", whole, h2).await;
        assert_eq!((read.unwrap().as_str(), cuts), (whole, 0.0));
        let (read, cuts) = unframed("text/plain", "{\"of text nobody can know", h2).await;
        assert_eq!((read.unwrap().as_str(), cuts), ("{\"of text nobody can know", 0.0));
    }
}

/// A stream with everything that readers of events have stumbled over.
fn odd_stream() -> String {
    let large = "x\\n\\ndata: [DONE]\\n\\n".repeat(150_000);
    let mut text = String::from(": keep-alive\r\n\r\n:\n\n");
    text += "data: {\"choices\":[{\"delta\":{\"content\":\"data: [DONE]\\n\\ndata: [DONE]\"}}]}\r\n\r\n";
    write!(text, "id: 7\nretry: 9\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"{large}\"}}}}]}}\n\n").unwrap();
    text += "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"é\u{1f30a}\"}}]}\n\n\n\n";
    text += "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n: after all\n\n";
    text
}

async fn read_whole(mut reply: Reply) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(piece) = reply.piece().await {
        read.extend_from_slice(&piece.unwrap());
    }
    read
}

#[tokio::test]
async fn odd_streams_come_through_byte_for_byte_however_they_are_cut_into_chunks() {
    let text = odd_stream();
    assert!(text.len() > 3_000_000, "a multi-MiB event on one line");
    for h2 in [false, true] {
        for length in [70_000, text.len()] {
            let mut pod = RawPod::start().await;
            let gateway = Gateway::over([pod.endpoint()]).start().await;
            let to = gateway.addr;
            let reply = tokio::spawn(async move {
                let client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
                read_whole(client.send(chat_stream("hi", 9)).await).await
            });
            let mut asked = pod.asked().await;
            asked.say(sse_head()).await;
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (chunk, behind) = rest.split_at(length.min(rest.len()));
                asked.say(format!("{:x}\r\n", chunk.len())).await;
                asked.say(chunk).await;
                asked.say("\r\n").await;
                rest = behind;
            }
            asked.say("0\r\n\r\n").await;
            assert!(reply.await.unwrap() == text.as_bytes(), "h2: {h2}, chunks of {length}");
            gateway.quiet().await;
            assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
        }
    }
}

#[tokio::test]
async fn chunks_of_one_byte_come_through_and_are_understood() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    let text = ": c\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n\
                data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
    asked.say(sse_head()).await;
    for byte in text.chars() {
        asked.chunk(&byte.to_string()).await;
    }
    asked.say("0\r\n\r\n").await;
    assert_eq!(reply.await.unwrap().text().await, text);
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_tokens_total", &["kind=\"input\""]).await, 7.0);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
}

/// A desk whose house panics as soon as a pod is doubted, which is in the middle of a request.
async fn doomed(pod: &RawPod) -> LoneDesk {
    LoneDesk::before(pod, |house| house.doubt = Box::new(|_| panic!("doubt is fatal"))).await
}

fn counted(desk: &LoneDesk, reason: &str) -> usize {
    let page = desk.house.metrics.page();
    page.lines().filter(|line| line.contains(reason) && line.ends_with(" 1")).count()
}

#[tokio::test]
async fn a_panic_before_the_answer_is_a_500_in_the_clients_dialect_and_the_connection_lives() {
    let mut pod = RawPod::start().await;
    let desk = doomed(&pod).await;
    let mut client = Client::h1(desk.addr).await;
    let asking = async {
        let reply = client.ask(chat("hi", 1)).await.unwrap();
        (reply.error(500).await, client)
    };
    let ((error, mut client), ()) = tokio::join!(asking, async { drop(pod.asked().await) });
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("internal_error")));
    assert!(!error.to_string().contains("fatal"), "what a panic says is for the log: {error}");
    assert_eq!(counted(&desk, "reason=\"panic\""), 1);
    assert_eq!(desk.house.requests_open.load(std::sync::atomic::Ordering::Relaxed), 0);
    let again = async { client.ask(chat("hi", 1)).await.unwrap().status() };
    let (status, ()) =
        tokio::join!(again, async { pod.asked().await.say(whole_json("{\"usage\":{\"completion_tokens\":1}}")).await });
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_panic_in_the_middle_of_an_answer_cuts_it_and_nothing_else() {
    let mut pod = RawPod::start().await;
    let desk = doomed(&pod).await;
    let reply = chat_stream("hi", 9).begin(desk.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(DIALECTS[0].first).await;
    let mut reply = reply.await.unwrap();
    reply.piece().await.unwrap().unwrap();
    drop(asked);
    let text = reply.text().await;
    assert!(text.contains("stream_cut") && text.contains("the gateway failed"), "{text}");
    let reply = chat("hi", 9).begin(desk.addr);
    let mut asked = pod.asked().await;
    asked.say("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":").await;
    drop(asked);
    assert!(reply.await.unwrap().collected().await.is_err());
    let page = desk.house.metrics.page();
    assert!(page.contains("reason=\"panic\"} 2"), "{page}");
    assert_eq!(desk.house.requests_open.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_unframed_answer_as_it_is() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let body = r#"{"model":"m","prompt":"hi"}"#;
    let head = format!("POST /v1/completions HTTP/1.0\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all((head + body).as_bytes()).await.unwrap();
    let mut asked = pod.asked().await;
    asked.say("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"ok\":1}").await;
    drop(asked);
    let mut read = String::new();
    client.read_to_string(&mut read).await.unwrap();
    assert!(read.ends_with("\r\n\r\n{\"ok\":1}"), "{read}");
}
