//! A pod that is not there: vLLM's scheduler, cache, endpoints, metrics and failures, without a GPU.
//!
//! The engine is pure and runs on virtual time, so that the lab can run an hour in seconds; the server around it is a
//! thin rim that runs the same engine in real time. It imitates what a gateway can see of vLLM, not what vLLM says:
//! answers are made of nonsense words that a test can predict.

mod batch;
pub mod cache;
mod driver;
pub mod engine;
pub mod faults;
mod http;
mod metrics;
pub mod profiles;
pub mod proof;
pub mod step;
pub mod terms;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    driver::LiveEngine,
    http::{Journal, Shelf, Visits},
    profiles::PROFILES,
    step::StepModel,
};
pub use self::{
    faults::{FaultSwitch, Faults},
    http::{Visit, asked},
    terms::EngineConfig,
};
use crate::{clock, tasks::Tasks};

/// How many sets of adapters `lora_requests_info` remembers: more than any page recorded so far had.
const KEPT_ADAPTER_SETS: usize = 256;

/// What a pod is to be like.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The base model's name.
    pub model: String,
    /// Names of the adapters it serves.
    pub adapters: Vec<String>,
    /// The engine behind it.
    pub engine: EngineConfig,
    /// Real time per virtual time: 0.1 makes everything ten times as fast.
    pub time_scale: f64,
    /// Prompt and answer have at most this many tokens (`--max-model-len`).
    pub max_model_len: u32,
    /// More waiting requests than this get 503 (`--max-num-queued-reqs`).
    pub max_queued: Option<usize>,
    /// Idle connections are closed after this long.
    pub keep_alive: Duration,
    /// Whether every answer proves which request it answers: see [`proof`].
    pub checksum: bool,
    /// What is wrong from the start; `warm_up` with `for_ms` makes a pod that becomes ready.
    pub faults: Faults,
}

impl PodConfig {
    /// A healthy pod for `model` on the default profile (Llama-3.1-8B on an H100), with uvicorn's keep-alive of 5 s.
    pub fn new(model: impl Into<String>) -> Self {
        let [profile, ..] = &PROFILES;
        Self {
            model: model.into(),
            adapters: Vec::new(),
            engine: EngineConfig::new(StepModel::new(profile, 1.0)),
            time_scale: 1.0,
            max_model_len: 131_072, // Llama 3.1's context
            max_queued: None,
            keep_alive: Duration::from_secs(5),
            checksum: false,
            faults: Faults::default(),
        }
    }

    /// The same pod, `speed` times as fast.
    #[must_use]
    pub fn speed(mut self, speed: f64) -> Self {
        self.engine.step = StepModel::new(self.engine.step.profile(), speed);
        self
    }

    /// The same pod, serving these adapters.
    #[must_use]
    pub fn adapters(mut self, names: &[&str]) -> Self {
        self.adapters = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// The same pod, whose answers prove themselves.
    #[must_use]
    pub fn checksum(mut self) -> Self {
        self.checksum = true;
        self
    }

    /// The same pod, living `scale` seconds in each of its own seconds.
    #[must_use]
    pub fn time_scale(mut self, scale: f64) -> Self {
        self.time_scale = scale;
        self
    }
}

/// Where pods come from.
#[derive(Debug)]
pub struct Pod;

impl Pod {
    /// Starts a pod on `address` (port 0: any free port). It runs until [`RunningPod::stop`] or `tasks` stops.
    pub async fn start(config: PodConfig, address: SocketAddr, tasks: &Tasks) -> io::Result<RunningPod> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let faults = FaultSwitch::new(config.faults.clone());
        let engine = LiveEngine::new(config.engine.clone(), faults.clone(), config.time_scale, config.max_queued);
        let inside = Arc::new(Inside {
            engine: Arc::new(engine),
            faults,
            journal: Journal::default(),
            visits: Arc::default(),
            responses: Shelf::default(),
            loras: Mutex::default(),
            started: clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default(),
            started_at: clock::now(),
            config,
        });
        let stop = CancellationToken::new();
        let steps = Arc::clone(&inside.engine).run();
        tasks.spawn_until_stop(until(stop.clone(), steps));
        tasks.spawn_until_stop(until(stop.clone(), http::heal_in_time(Arc::clone(&inside))));
        let doors = http::listen(Arc::clone(&inside), listener, tasks.clone(), stop.clone());
        let doors = tasks.spawn_until_stop(until(stop.clone(), doors));
        Ok(RunningPod { address, inside, stop, doors })
    }
}

/// A pod that answers.
#[derive(Debug)]
pub struct RunningPod {
    address: SocketAddr,
    inside: Arc<Inside>,
    stop: CancellationToken,
    doors: JoinHandle<()>,
}

impl RunningPod {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has happened in it: what `GET /sim/state` shows.
    pub fn state(&self) -> PodState {
        self.inside.state()
    }

    /// The requests for work that left, and when.
    pub fn visits(&self) -> Vec<Visit> {
        self.inside.visits.over()
    }

    /// The switch for its faults.
    pub fn faults(&self) -> &FaultSwitch {
        &self.inside.faults
    }

    /// Kills it: connections break, the port is free when this returns.
    pub async fn stop(self) {
        self.stop.cancel();
        // The task only ends early; it cannot fail in a way that matters here.
        drop(self.doors.await);
    }
}

/// One request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its headers, in order.
    pub headers: Vec<(String, String)>,
    /// The beginning of its body as text.
    pub body: String,
}

impl Received {
    /// The first header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// What has happened in a pod, as a test wants to know it.
#[derive(Clone, Debug, Serialize)]
pub struct PodState {
    /// Requests in the engine at this moment, running or waiting (the gauges lag a step behind).
    pub live: usize,
    /// The gauge `num_requests_running`.
    pub running: usize,
    /// The gauge `num_requests_waiting`.
    pub waiting: usize,
    /// The gauge `kv_cache_usage_perc`.
    pub kv_usage: f64,
    /// Requests that ran to their end.
    pub served: u64,
    /// Requests whose client left before that.
    pub aborts: u64,
    /// Requests for work that have no answer yet, not even a head; those that hang in a fault are here and not in
    /// `live`.
    pub unanswered: usize,
    /// Open connections, those of scrapes too.
    pub connections: usize,
    /// Tokens generated so far.
    pub generation_tokens: u64,
    /// Prompt tokens found in the cache so far.
    pub cached_tokens: u64,
    /// Preemptions so far.
    pub preemptions: u64,
    /// How many requests came to which path.
    pub received: BTreeMap<String, u64>,
    /// The last requests for inference, oldest first.
    pub last: Vec<Received>,
}

/// This pod has no such model.
#[derive(Clone, Copy, Debug)]
struct NotServed;

/// What the parts of a pod share.
#[derive(Debug)]
struct Inside {
    config: PodConfig,
    engine: Arc<LiveEngine>,
    faults: FaultSwitch,
    journal: Journal,
    visits: Arc<Visits>,
    responses: Shelf,
    /// Every set of adapters that was seen running, and when it last was (seconds since 1970).
    loras: Mutex<Vec<(String, f64)>>,
    started: Duration,
    started_at: Instant,
}

impl Inside {
    fn state(&self) -> PodState {
        let shown = self.engine.shown();
        let (received, last) = self.journal.read();
        PodState {
            live: self.engine.live(),
            running: shown.gauges.running,
            waiting: shown.gauges.waiting,
            kv_usage: shown.gauges.kv_usage,
            served: shown.totals.finished,
            aborts: self.engine.left_early(),
            unanswered: self.journal.unanswered(),
            connections: self.journal.connections(),
            generation_tokens: shown.totals.generation_tokens,
            cached_tokens: shown.totals.prefix_hits,
            preemptions: shown.totals.preemptions,
            received,
            last,
        }
    }

    /// Renews the time of the set of adapters that runs now; before the first adapter request there is none.
    fn note_adapters(&self, running: &[u32]) {
        let names = running.iter().filter_map(|&at| self.config.adapters.get(at as usize).map(String::as_str));
        let names = names.collect::<Vec<_>>().join(",");
        let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut seen = self.loras.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, at)) = seen.iter_mut().find(|(it, _)| *it == names) {
            *at = now;
            return;
        }
        if names.is_empty() && seen.is_empty() {
            return;
        }
        // Real vLLM forgets none; a bound keeps a long-running simulation small.
        if seen.len() == KEPT_ADAPTER_SETS {
            seen.remove(0);
        }
        seen.push((names, now));
    }

    /// Which adapter a model name means, if it is not the base model.
    fn adapter_of(&self, model: &str) -> Result<Option<u32>, NotServed> {
        // As in vLLM, a missing or empty name means the base model.
        if model.is_empty() || model == self.config.model {
            return Ok(None);
        }
        let at = self.config.adapters.iter().position(|name| name == model).ok_or(NotServed)?;
        u32::try_from(at).map(Some).map_err(|_| NotServed)
    }
}

/// Runs `work` until it ends or the pod is stopped.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::{Value, json};

    use super::{asked::answer_text, *};

    /// A pod that lives a hundred times as fast as a real one.
    async fn pod(config: PodConfig) -> (RunningPod, Tasks, reqwest::Client) {
        // reqwest is built without a TLS provider of its own and wants one even for plain HTTP.
        rustls::crypto::ring::default_provider().install_default().ok();
        let tasks = Tasks::new();
        let pod = Pod::start(config.time_scale(0.01), (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        (pod, tasks, reqwest::Client::builder().no_proxy().build().unwrap())
    }

    fn chat(max_tokens: u32, stream: bool) -> Value {
        json!({"model": "m", "max_tokens": max_tokens, "stream": stream, "stream_options": {"include_usage": true},
               "messages": [{"role": "user", "content": "What is a tide? ".repeat(20)}]})
    }

    async fn post(client: &reqwest::Client, pod: &RunningPod, path: &str, body: &Value) -> reqwest::Response {
        client.post(format!("{}{path}", pod.url())).body(body.to_string()).send().await.unwrap()
    }

    fn expected(body: &Value, tokens: u32) -> String {
        let asked = asked::Asked::parse(asked::Dialect::Chat, body.to_string().as_bytes()).unwrap();
        answer_text(asked.seed(), tokens)
    }

    fn events(text: &str) -> Vec<Value> {
        let frames = text.split("\n\n").filter_map(|frame| frame.split("data: ").nth(1));
        frames.filter_map(|data| serde_json::from_str(data).ok()).collect()
    }

    async fn eventually(what: &str, done: impl Fn() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what} did not happen"));
    }

    #[tokio::test]
    async fn a_whole_answer_says_the_expected_words_and_its_usage() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let body = chat(20, false);
        let first: Value = post(&client, &pod, "/v1/chat/completions", &body).await.json().await.unwrap();
        assert_eq!(first["choices"][0]["message"]["content"], expected(&body, 20));
        assert_eq!(first["choices"][0]["finish_reason"], "length");
        assert_eq!(first["usage"]["completion_tokens"], 20);
        assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
        let second: Value = post(&client, &pod, "/v1/chat/completions", &body).await.json().await.unwrap();
        assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 80);
        assert_eq!(pod.state().served, 2);
    }

    #[tokio::test]
    async fn a_stream_begins_with_a_role_and_ends_with_usage_and_done() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let body = chat(12, true);
        let response = post(&client, &pod, "/v1/chat/completions", &body).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let text = response.text().await.unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let events = events(&text);
        assert_eq!(events.len(), 1 + 12 + 1 + 1);
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        let said: String = events.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(said, expected(&body, 12));
        assert_eq!(events[13]["choices"][0]["finish_reason"], "length");
        assert_eq!(events[14]["choices"], json!([]));
        assert_eq!(events[14]["usage"]["completion_tokens"], 12);
    }

    #[tokio::test]
    async fn responses_and_messages_come_as_typed_events() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let body =
            json!({"model": "m", "max_tokens": 3, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
        let text = post(&client, &pod, "/v1/messages", &body).await.text().await.unwrap();
        let kinds: Vec<String> = events(&text).iter().map(|it| it["type"].as_str().unwrap().to_owned()).collect();
        let delta = "content_block_delta";
        let between = ["message_start", "content_block_start", delta, delta, delta, "content_block_stop"];
        assert_eq!(kinds, [between.as_slice(), &["message_delta", "message_stop"]].concat());
        let body = json!({"model": "m", "max_output_tokens": 3, "stream": true, "input": "hi"});
        let text = post(&client, &pod, "/v1/responses", &body).await.text().await.unwrap();
        let all = events(&text);
        assert_eq!(all.first().unwrap()["type"], "response.created");
        assert_eq!(all.last().unwrap()["type"], "response.incomplete");
        let numbers: Vec<u64> = all.iter().map(|it| it["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..11).collect::<Vec<_>>());
        let id = all.last().unwrap()["response"]["id"].as_str().unwrap();
        let url = format!("{}/v1/responses/{id}", pod.url());
        let again: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
        assert_eq!(again["output"], all.last().unwrap()["response"]["output"]);
        assert_eq!(client.get(url + "x").send().await.unwrap().status(), 404);
    }

    #[tokio::test]
    async fn unknown_paths_and_models_are_refused_in_vllms_words() {
        let (pod, _tasks, client) = pod(PodConfig::new("m").adapters(&["a"])).await;
        let unknown = post(&client, &pod, "/v1/chat/completions", &json!({"model": "x", "messages": []})).await;
        assert_eq!(unknown.status(), 404);
        let body: Value = unknown.json().await.unwrap();
        assert_eq!((&body["error"]["code"], &body["error"]["type"]), (&json!(404), &json!("NotFoundError")));
        let nowhere: Value = client.get(pod.url() + "/nope").send().await.unwrap().json().await.unwrap();
        assert_eq!(nowhere, json!({"detail": "Not Found"}));
        let models: Value = client.get(pod.url() + "/v1/models").send().await.unwrap().json().await.unwrap();
        assert_eq!((&models["data"][0]["id"], &models["data"][0]["parent"]), (&json!("m"), &Value::Null));
        assert_eq!((&models["data"][1]["id"], &models["data"][1]["parent"]), (&json!("a"), &json!("m")));
    }

    #[tokio::test]
    async fn clients_that_leave_are_aborted_streaming_or_not_and_nothing_is_left() {
        let (pod, tasks, client) = pod(PodConfig::new("m")).await;
        let mut streams = Vec::new();
        for _ in 0..5 {
            let mut response = post(&client, &pod, "/v1/chat/completions", &chat(20_000, true)).await;
            response.chunk().await.unwrap().unwrap();
            streams.push(response);
        }
        let (whole_body, url) = (chat(20_000, false), format!("{}/v1/chat/completions", pod.url()));
        let whole = tasks.spawn(client.post(url).body(whole_body.to_string()).send());
        eventually("six at once", || pod.state().live == 6).await;
        drop(streams);
        whole.abort();
        eventually("six aborts", || pod.state().aborts == 6).await;
        eventually("idle gauges", || (pod.state().running, pod.state().live) == (0, 0)).await;
        assert!(pod.state().kv_usage.abs() < 1e-9);
        assert_eq!(pod.state().served, 0);
    }

    #[tokio::test]
    async fn metrics_have_vllms_names_labels_and_size() {
        let (pod, _tasks, client) = pod(PodConfig::new("m").adapters(&["a", "b"])).await;
        let page = || async { client.get(pod.url() + "/metrics").send().await.unwrap().text().await.unwrap() };
        assert!(!page().await.contains("lora_requests_info"), "none before the first adapter request");
        let mut body = chat(20_000, true);
        body["model"] = json!("b");
        let mut response = post(&client, &pod, "/v1/chat/completions", &body).await;
        response.chunk().await.unwrap().unwrap();
        let text = page().await;
        assert!((30_000..80_000).contains(&text.len()), "{}", text.len());
        for line in [
            r#"vllm:num_requests_running{engine="0",model_name="m"} 1.0"#,
            r#"vllm:num_requests_waiting{engine="0",model_name="m"} 0.0"#,
            r#"vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0"#,
            r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 0.0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 1.0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains(r#"block_size="16""#) && text.contains(r#"num_gpu_blocks="26391""#));
        let running = r#"vllm:lora_requests_info{max_lora="4",running_lora_adapters="b",waiting_lora_adapters="b"} 1."#;
        assert!(text.contains(running), "{text}");
        drop(response);
        eventually("idle", || pod.state().running == 0).await;
        assert!(page().await.contains(r#"running_lora_adapters="",waiting"#), "the empty set is a series too");
    }

    /// Every family of a recorded page that a gateway could read is here, in the same order.
    #[tokio::test]
    async fn the_page_has_a_real_pages_families_in_its_order() {
        let recorded = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let recorded = recorded.join("../shared/fixtures/metrics/vllm-0.32.0-metrics-load1.txt");
        let Ok(recorded) = std::fs::read_to_string(recorded) else {
            return;
        };
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let ours = client.get(pod.url() + "/metrics").send().await.unwrap().text().await.unwrap();
        let families = |page: &str| -> Vec<String> {
            page.lines().filter(|line| line.starts_with("# TYPE vllm:")).map(str::to_owned).collect()
        };
        assert_eq!(families(&ours), families(&recorded));
    }

    #[tokio::test]
    async fn embeddings_rerank_score_and_audio_answer_in_shape() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let ask =
            async |path: &str, body: Value| -> Value { post(&client, &pod, path, &body).await.json().await.unwrap() };
        let plain = ask("/v1/embeddings", json!({"model": "m", "input": ["one", "two"]})).await;
        assert_eq!(plain["data"][1]["embedding"].as_array().unwrap().len(), 16);
        let packed = ask("/v1/embeddings", json!({"model": "m", "input": "one", "encoding_format": "base64"})).await;
        assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 88, "64 bytes in base64");
        let ranked =
            ask("/rerank", json!({"model": "m", "query": "q", "documents": ["a", "b", "c"], "top_n": 2})).await;
        let score = |at: usize| ranked["results"][at]["relevance_score"].as_f64().unwrap();
        assert!(score(0) >= score(1) && ranked["results"].as_array().unwrap().len() == 2);
        let scored = ask("/score", json!({"model": "m", "text_1": "q", "text_2": ["a", "b"]})).await;
        assert_eq!(scored["data"].as_array().unwrap().len(), 2);
        let counted = ask("/tokenize", json!({"model": "m", "prompt": "12345678"})).await;
        assert_eq!(counted["count"], 2);
        let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nother\r\n--x--\r\n";
        let audio = client.post(pod.url() + "/v1/audio/transcriptions").body(form).send().await.unwrap();
        assert_eq!(audio.status(), 404, "the model field is read");
        let form = form.replace("other", "m");
        let audio = client.post(pod.url() + "/v1/audio/transcriptions").body(form).send().await.unwrap();
        assert!(audio.json::<Value>().await.unwrap()["text"].is_string());
    }

    #[tokio::test]
    async fn a_forced_tool_is_called_with_arguments_that_parse() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let mut body = chat(6, true);
        body["tools"] = json!([{"type": "function", "function": {"name": "clock"}}]);
        body["tool_choice"] = json!("required");
        let text = post(&client, &pod, "/v1/chat/completions", &body).await.text().await.unwrap();
        let events = events(&text);
        let call = |event: &Value| event["choices"][0]["delta"]["tool_calls"][0]["function"].clone();
        let name: String = events.iter().filter_map(|it| call(it)["name"].as_str().map(str::to_owned)).collect();
        let arguments: String =
            events.iter().filter_map(|it| call(it)["arguments"].as_str().map(str::to_owned)).collect();
        assert_eq!(name, "clock");
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        body["stream"] = json!(false);
        let whole: Value = post(&client, &pod, "/v1/chat/completions", &body).await.json().await.unwrap();
        let call = &whole["choices"][0]["message"]["tool_calls"][0]["function"];
        assert_eq!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap(), arguments);
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    }

    #[tokio::test]
    async fn faults_strike_where_they_say() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let set = async |faults: Value| {
            assert_eq!(post(&client, &pod, "/sim/faults", &faults).await.status(), 200);
        };
        let ask = async |stream: bool| post(&client, &pod, "/v1/chat/completions", &chat(30, stream)).await;
        set(json!({"status": 503})).await;
        assert_eq!(ask(false).await.status(), 503);
        set(json!({"error_rate": 1.0})).await;
        assert_eq!(ask(false).await.status(), 500);
        set(json!({"cut_mid_stream": 5})).await;
        let cut = ask(true).await;
        assert_eq!(cut.status(), 200);
        let pieces: Vec<Result<_, _>> = futures_util::StreamExt::collect(cut.bytes_stream()).await;
        let (said, broken): (Vec<_>, Vec<_>) = pieces.into_iter().partition(Result::is_ok);
        let said: Vec<u8> = said.into_iter().flat_map(|it| it.unwrap().to_vec()).collect();
        assert_eq!(events(&String::from_utf8(said).unwrap()).len(), 1 + 5, "the tokens before the cut arrive");
        assert_eq!(broken.len(), 1, "and then the body breaks off");
        assert!(ask(false).await.text().await.is_err());
        set(json!({"error_event": 5})).await;
        let text = ask(true).await.text().await.unwrap();
        assert!(text.contains("\"error\"") && text.ends_with("[DONE]\n\n"));
        set(json!({"finish_abort": 5})).await;
        let text = ask(true).await.text().await.unwrap();
        assert!(text.contains("\"finish_reason\":\"abort\"") && text.ends_with("[DONE]\n\n"));
        set(json!({})).await;
        assert_eq!(ask(true).await.text().await.unwrap().matches("data: ").count(), 34);
        assert_eq!(post(&client, &pod, "/sim/faults", &json!({"typo": 1})).await.status(), 400);
    }

    #[tokio::test]
    async fn a_dead_engine_breaks_its_streams_and_shows_what_it_showed() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let mut response = post(&client, &pod, "/v1/chat/completions", &chat(20_000, true)).await;
        response.chunk().await.unwrap().unwrap();
        pod.faults().change(|faults| faults.engine_dead = true);
        let rest = response.text().await.unwrap();
        assert!(rest.contains("\"code\":500") && rest.ends_with("[DONE]\n\n"));
        let get = async |path: &str| client.get(pod.url() + path).send().await.unwrap();
        assert_eq!(get("/health").await.status(), 503);
        let page = get("/metrics").await;
        assert_eq!(page.status(), 200);
        let running = r#"vllm:num_requests_running{engine="0",model_name="m"} 1.0"#;
        assert!(page.text().await.unwrap().contains(running), "stale");
        assert_eq!(post(&client, &pod, "/v1/chat/completions", &chat(1, false)).await.status(), 500);
        pod.faults().heal();
        assert_eq!(post(&client, &pod, "/v1/chat/completions", &chat(1, false)).await.status(), 200);
        eventually("true gauges", || pod.state().running == 0).await;
    }

    #[tokio::test]
    async fn a_hanging_pod_lets_go_of_a_client_that_leaves_and_answers_when_healed() {
        let (pod, tasks, client) = pod(PodConfig::new("m")).await;
        pod.faults().change(|faults| faults.hang_before_headers = true);
        let url = format!("{}/v1/chat/completions", pod.url());
        let send = || tasks.spawn(client.post(&url).body(chat(3, false).to_string()).send());
        let (leaves, stays) = (send(), send());
        eventually("both hang", || pod.state().unanswered == 2).await;
        leaves.abort();
        eventually("one left", || pod.state().unanswered == 1).await;
        pod.faults().heal();
        assert_eq!(stays.await.unwrap().unwrap().status(), 200);
        assert_eq!((pod.state().unanswered, pod.state().served), (0, 1));
    }

    #[tokio::test]
    async fn an_asleep_pod_is_healthy_and_computes_nothing_until_it_wakes() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        pod.faults().change(|faults| faults.sleep = true);
        let get = async |path: &str| client.get(pod.url() + path).send().await.unwrap();
        assert_eq!(get("/health").await.status(), 200);
        assert!(get("/metrics").await.text().await.unwrap().contains(r#"sleep_state="awake"} 0.0"#));
        let body = chat(2, false);
        let answer = post(&client, &pod, "/v1/chat/completions", &body);
        tokio::pin!(answer);
        tokio::select! {
            _ = &mut answer => panic!("an asleep pod answered"),
            () = eventually("it waits", || pod.state().live == 1) => pod.faults().heal(),
        }
        assert_eq!(answer.await.status(), 200);
    }

    #[tokio::test]
    async fn a_pod_that_refuses_connections_comes_back_on_the_same_port() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        pod.faults().change(|faults| faults.refuse_connections = true);
        let address = pod.addr();
        eventually("refusal", || std::net::TcpStream::connect(address).is_err()).await;
        assert!(client.get(pod.url() + "/health").send().await.unwrap_err().is_connect());
        pod.faults().heal();
        eventually("return", || std::net::TcpStream::connect(address).is_ok()).await;
        assert_eq!(client.get(pod.url() + "/health").send().await.unwrap().status(), 200);
        pod.stop().await;
        assert!(std::net::TcpStream::connect(address).is_err(), "stopped means nobody listens");
    }

    #[tokio::test]
    async fn a_warming_pod_becomes_ready_by_itself() {
        let faults = Faults { warm_up: true, for_ms: Some(50), ..Faults::default() };
        let (pod, _tasks, client) = pod(PodConfig { faults, ..PodConfig::new("m") }).await;
        assert_eq!(client.get(pod.url() + "/health").send().await.unwrap().status(), 503);
        eventually("readiness", || !pod.faults().now().warm_up).await;
        assert_eq!(client.get(pod.url() + "/health").send().await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_after_the_keep_alive() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let keep_alive = Duration::from_millis(80);
        let (pod, _tasks, _) = pod(PodConfig { keep_alive, ..PodConfig::new("m") }).await;
        let mut stream = tokio::net::TcpStream::connect(pod.addr()).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        let asked = clock::now();
        stream.read_to_end(&mut all).await.unwrap();
        assert!(all.starts_with(b"HTTP/1.1 200") && !String::from_utf8_lossy(&all).contains("408"));
        assert!((keep_alive..Duration::from_secs(5)).contains(&clock::now().duration_since(asked)));
    }

    #[tokio::test]
    async fn a_full_line_answers_503_and_counts_it() {
        let engine = EngineConfig { max_num_seqs: 1, ..PodConfig::new("m").engine };
        let (pod, _tasks, client) = pod(PodConfig { engine, max_queued: Some(1), ..PodConfig::new("m") }).await;
        let mut running = post(&client, &pod, "/v1/chat/completions", &chat(20_000, true)).await;
        running.chunk().await.unwrap().unwrap();
        let waiting = post(&client, &pod, "/v1/chat/completions", &chat(20_000, true)).await;
        eventually("one waits", || pod.state().waiting == 1).await;
        assert_eq!(post(&client, &pod, "/v1/chat/completions", &chat(5, false)).await.status(), 503);
        let page = client.get(pod.url() + "/metrics").send().await.unwrap().text().await.unwrap();
        assert!(page.contains(r#"admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 1.0"#));
        drop((running, waiting));
    }

    #[tokio::test]
    async fn what_came_in_is_kept_for_tests_and_ids_are_echoed() {
        let (pod, _tasks, client) = pod(PodConfig::new("m")).await;
        let request = client.post(pod.url() + "/v1/chat/completions").header("x-request-id", "r-7");
        let response = request.body(chat(2, false).to_string()).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "r-7");
        assert_eq!(response.json::<Value>().await.unwrap()["id"], "chatcmpl-r-7");
        let state = client.get(pod.url() + "/sim/state").send().await.unwrap().json::<Value>().await.unwrap();
        assert_eq!(state["received"]["/v1/chat/completions"], 1);
        let last = pod.state().last.pop().unwrap();
        assert_eq!(last.header("x-request-id"), Some("r-7"));
        assert_eq!(last.body, chat(2, false).to_string());
    }
}
