//! Who is let in by a key, and what becomes of the key: nobody else gets to see it.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tidegate::keys::{hash_of, mint};
use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{
    Call, Client, Gateway, Plan, RawPod, SimPod, chat, chat_stream,
    envoy::{Envoy, body, head},
    eventually,
    lines::{Lines, told},
    whole_json,
};

/// Keys in a file that a gateway follows.
pub(crate) struct KeyFile {
    _folder: TempDir,
    pub(crate) path: PathBuf,
}

impl KeyFile {
    /// A file of these keys, each with more fields in YAML.
    pub(crate) fn of(keys: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("keys.yaml"), _folder: folder };
        file.write(keys);
        file
    }

    pub(crate) fn write(&self, keys: &[(&str, &str)]) {
        let line = |(key, more): &(&str, &str)| {
            format!("- {{ id: id-{}, hash: {}{more} }}\n", &key[..2], hash_of(key.as_bytes()))
        };
        let text: String = keys.iter().map(line).collect();
        fs::write(&self.path, if text.is_empty() { "[]\n" } else { &text }).unwrap();
    }

    pub(crate) fn section(&self) -> String {
        format!("identity: {{ keys: {{ file: {} }} }}", self.path.display())
    }
}

const ANN: &str = "ann-s-key-0123456789-0123456789-0123456789";
const BEA: &str = "bea-s-key-0123456789-0123456789-0123456789";

fn plan(pod: &SimPod, file: &KeyFile) -> Plan {
    Gateway::over([pod.endpoint()]).yaml(&file.section())
}

fn bearer(call: Call, key: &str) -> Call {
    call.header("authorization", &format!("Bearer {key}"))
}

#[tokio::test]
async fn a_key_lets_in_however_it_is_shown_and_nothing_else_does() {
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, "")]));
    let gateway = plan(&pod, &file).start().await;
    for (name, value) in [
        ("authorization", format!("Bearer {ANN}")),
        ("Authorization", format!("bearer   {ANN} ")),
        ("x-api-key", ANN.to_owned()),
        ("api-key", ANN.to_owned()),
    ] {
        assert_eq!(chat("hi", 1).header(name, &value).send(gateway.addr).await.status(), 200, "{name}: {value}");
    }
    for (name, value) in [
        ("authorization", format!("Basic {ANN}")),
        ("authorization", ANN.to_owned()),
        ("authorization", "Bearer".to_owned()),
        ("authorization", format!("Bearer {BEA}")),
        ("authorization", format!("Bearer {ANN}x")),
        ("authorization", format!("Bearer {}", &ANN[1..])),
        ("x-api-key", String::new()),
        ("x-goog-api-key", ANN.to_owned()),
        ("proxy-authorization", format!("Bearer {ANN}")),
        ("cookie", format!("key={ANN}")),
    ] {
        let reply = chat("hi", 1).header(name, &value).send(gateway.addr).await;
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{name}: {value}");
        assert_eq!(reply.header("x-tidegate-refused"), Some("unauthorized"), "{name}: {value}");
        let error = reply.error(401).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
        assert!(!error.to_string().contains(&ANN[..20]), "{error}");
    }
    for path in [format!("/v1/chat/completions?api_key={ANN}"), format!("/v1/chat/completions?key={ANN}")] {
        let call = Call::post(&path, r#"{"model":"m","messages":[]}"#);
        assert_eq!(call.send(gateway.addr).await.status(), 401, "{path}");
    }
    assert_eq!(Call::get("/v1/models").send(gateway.addr).await.status(), 401, "lists are no open book either");
    assert_eq!(pod.asked(), 4);
    gateway.quiet().await;
}

#[tokio::test]
async fn the_same_key_twice_is_one_and_two_keys_are_none() {
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ""), (BEA, "")]));
    let gateway = plan(&pod, &file).start().await;
    let both = |one: &str, other: &str| bearer(chat("hi", 1), one).header("x-api-key", other);
    assert_eq!(both(ANN, ANN).send(gateway.addr).await.status(), 200);
    let twice = bearer(bearer(chat("hi", 1), ANN), ANN);
    assert_eq!(twice.send(gateway.addr).await.status(), 200);
    for call in [both(ANN, BEA), both(BEA, "x"), bearer(bearer(chat("hi", 1), ANN), BEA)] {
        let error = call.send(gateway.addr).await.error(400).await;
        assert_eq!(error["code"], "conflicting_credentials");
    }
}

#[tokio::test]
async fn an_anthropic_client_without_a_key_is_told_so_in_its_own_words() {
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, "")]));
    let gateway = plan(&pod, &file).start().await;
    let reply = Call::post("/v1/messages", r#"{"model":"m","max_tokens":1,"messages":[]}"#).send(gateway.addr).await;
    assert_eq!(reply.status(), 401);
    let body = reply.json().await;
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("authentication_error")));
}

#[tokio::test]
async fn a_key_that_is_taken_back_lets_nobody_in_any_more() {
    let (lines, _guard) = Lines::kept();
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ""), (BEA, "")]));
    let gateway = plan(&pod, &file).start().await;
    assert_eq!(gateway.counted("tidegate_api_keys", &[]).await, 2.0);
    file.write(&[(BEA, "")]);
    let began = std::time::Instant::now();
    let mut status = 0;
    while status != 401 {
        status = bearer(chat("hi", 1), ANN).send(gateway.addr).await.status();
        assert!(began.elapsed() < crate::harness::PATIENCE, "it still lets in");
    }
    assert_eq!(bearer(chat("hi", 1), BEA).send(gateway.addr).await.status(), 200);
    // A file with a slip in it changes nothing, and says so.
    let before = lines.warnings().len();
    fs::write(&file.path, "- { id: a, hash: tg-not-a-hash }\n").unwrap();
    let mut warned = Vec::new();
    eventually("a warning", || {
        warned.extend(lines.warnings());
        !warned.is_empty()
    })
    .await;
    assert_eq!((before, warned.len()), (0, 1));
    assert!(!format!("{warned:?}").contains("tg-not-a-hash"), "it may be a key: {warned:?}");
    assert_eq!(gateway.counted("tidegate_identity_source_usable", &["keys"]).await, 0.0);
    assert_eq!(bearer(chat("hi", 1), BEA).send(gateway.addr).await.status(), 200);
    file.write(&[]);
    eventually("no keys", || gateway.running.house.metrics.identity.keys.get() == 0).await;
    assert_eq!(bearer(chat("hi", 1), BEA).send(gateway.addr).await.status(), 401);
}

#[tokio::test]
async fn a_key_that_is_taken_back_is_of_no_use_a_second_later() {
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ""), (BEA, "")]));
    let gateway = plan(&pod, &file).start().await;
    let mut client = Client::h1(gateway.addr).await;
    let mut turn = async |keys: &[(&str, &str)], until: u16| {
        file.write(keys);
        let began = Instant::now();
        while client.ask(bearer(chat("hi", 1), ANN)).await.unwrap().status() != until {
            assert!(began.elapsed() < crate::harness::PATIENCE, "{until} does not come");
        }
        began.elapsed()
    };
    // The best of several: what else the machine does only makes it later.
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(turn(&[(BEA, "")], 401).await);
        turn(&[(ANN, ""), (BEA, "")], 200).await;
    }
    assert!(taken.iter().min().unwrap() < &Duration::from_secs(1), "{taken:?}");
}

#[tokio::test]
async fn among_ten_thousand_keys_requests_are_answered_as_fast_as_among_ten() {
    let names: Vec<String> =
        (0..10_000).map(|nth| format!("{nth:05}-s-key-0123456789-0123456789-0123456789")).collect();
    let keys = |count: usize| {
        let record = |key: &String| format!("- {{ id: k{}, hash: {} }}\n", &key[..5], hash_of(key.as_bytes()));
        let file = KeyFile::of(&[]);
        fs::write(&file.path, names.iter().take(count).map(record).collect::<String>()).unwrap();
        file
    };
    let (pod, few, many) = (SimPod::start().await, keys(10), keys(10_000));
    let gateways = [plan(&pod, &few).start().await, plan(&pod, &many).start().await];
    assert_eq!(gateways[1].counted("tidegate_api_keys", &[]).await, 10_000.0);
    // Who asks for models is answered here, so that no pod is measured.
    let mut clients = [Client::h1(gateways[0].addr).await, Client::h1(gateways[1].addr).await];
    let mut took = [Vec::new(), Vec::new()];
    for nth in 0..400 {
        for (client, took) in clients.iter_mut().zip(&mut took) {
            let call = bearer(Call::get("/v1/models"), &names[nth % 10]);
            let began = Instant::now();
            assert_eq!(client.ask(call).await.unwrap().status(), 200);
            took.push(began.elapsed());
        }
    }
    let [few, many] = took.map(|mut took| {
        took.sort();
        took[took.len() / 4]
    });
    assert!(many < few * 3 / 2 + Duration::from_micros(50), "{many:?} against {few:?}");
}

#[tokio::test]
async fn ended_and_disabled_keys_are_told_apart_for_the_operator_and_a_stranger_learns_nothing() {
    let (lines, _guard) = Lines::kept();
    let file = KeyFile::of(&[(ANN, ", expires: 2020-01-01, tenant: shop"), (BEA, ", disabled: true")]);
    let pod = SimPod::start().await;
    let gateway = plan(&pod, &file).start().await;
    let unknown = "some-other-key-0123456789-0123456789";
    let mut said = Vec::new();
    for (key, exactly, tenant, id) in
        [(ANN, "expired", "shop", "id-an"), (BEA, "disabled_key", "id-be", "id-be"), (unknown, "unknown_key", "", "")]
    {
        let error = bearer(chat("hi", 1), key).send(gateway.addr).await.error(401).await;
        said.push(error["message"].as_str().unwrap().to_owned());
        let line = lines.one(&gateway).await;
        assert_eq!(told(&line, ["reason", "culprit", "tenant", "key"]), [exactly, "client", tenant, id]);
    }
    assert_eq!(said[0], "this API key or token has expired", "whoever has it may know");
    assert_eq!(said[1], said[2], "a key that was taken back looks like one that never was");
}

#[tokio::test]
async fn log_and_metrics_name_tenant_and_key_id() {
    let (lines, _guard) = Lines::kept();
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ", tenant: shop"), (BEA, "")]));
    let gateway = plan(&pod, &file).start().await;
    assert_eq!(bearer(chat("hi", 3), ANN).send(gateway.addr).await.status(), 200);
    assert_eq!(told(&lines.one(&gateway).await, ["tenant", "key"]), ["shop", "id-an"]);
    assert_eq!(bearer(chat("hi", 3), BEA).send(gateway.addr).await.status(), 200);
    assert_eq!(told(&lines.one(&gateway).await, ["tenant", "key"]), ["id-be", "id-be"]);
    let shop = ["tenant=\"shop\"", "code=\"200\""];
    assert_eq!(gateway.counted("tidegate_tenant_requests_total", &shop).await, 1.0);
    assert_eq!(gateway.counted("tidegate_tenant_tokens_total", &["tenant=\"shop\"", "output"]).await, 3.0);
}

#[tokio::test]
async fn a_key_may_ask_for_its_models_and_learns_of_no_other() {
    let (lines, _guard) = Lines::kept();
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ", models: [shop-*]"), (BEA, "")]));
    let model = |name: &str| format!("{{ modelName: {name}, poolRef: pods, targetModels: [{{ name: m }}] }}");
    let (one, other) = (model("shop-1"), model("secret"));
    let gateway = plan(&pod, &file).models(&[&one, &other]).start().await;
    let ask = |key: &str, model: &str| {
        let call = Call::post("/v1/completions", json!({"model": model, "prompt": "hi", "max_tokens": 1}).to_string());
        bearer(call, key).send(gateway.addr)
    };
    assert_eq!((ask(ANN, "shop-1").await.status(), ask(BEA, "secret").await.status()), (200, 200));
    let mut said = Vec::new();
    for model in ["secret", "no-such", "m"] {
        let error = ask(ANN, model).await.error(403).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("permission_error"), &json!("model_not_allowed")));
        said.push(error["message"].to_string().replace(&format!("`{model}`"), "X"));
        gateway.quiet().await;
        assert_eq!(told(lines.requests().last().unwrap(), ["asked", "key"]), [model, "id-an"]);
    }
    assert!(said.iter().all(|it| *it == said[0]), "whether a model exists is not told: {said:?}");
    let unknown = ask(ANN, "shop-2").await.error(404).await.to_string();
    assert!(unknown.contains("shop-1") && !unknown.contains("secret"), "{unknown}");
    let listed = bearer(Call::get("/v1/models"), ANN).send(gateway.addr).await.json().await;
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["shop-1"]);
    let one = |key: &str| bearer(Call::get("/v1/models/secret"), key).send(gateway.addr);
    assert_eq!((one(ANN).await.status(), one(BEA).await.status()), (404, 200));
}

/// All that is logged while a test runs, of every crate, at every level.
#[derive(Clone, Default)]
struct All(Arc<Mutex<Vec<u8>>>);

impl Write for All {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for All {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_key_is_in_no_log_at_any_level_on_no_page_and_at_no_pod() {
    drop(Lines::kept());
    let all = All::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(all.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (mut pod, good) = (RawPod::start().await, mint());
    let file = KeyFile::of(&[(&good.key, ""), (BEA, "")]);
    let gateway = Gateway::over([pod.endpoint()])
        .listener("{ name: lax, address: 127.0.0.1:0, identity: false }")
        .pool("forward_authorization: true")
        .yaml(&file.section())
        .start()
        .await;
    let secrets = [&*good.key, BEA, "wrong-key-0123456789-0123456789"];
    for name in ["authorization", "x-api-key", "api-key"] {
        let value = if name == "authorization" { format!("Bearer {}", secrets[0]) } else { secrets[0].to_owned() };
        let reply = chat_stream("hi", 1).header(name, &value).begin(gateway.addr);
        let mut asked = pod.asked().await;
        assert!(!asked.head.contains(secrets[0]) && !asked.head.to_lowercase().contains(name), "{}", asked.head);
        asked.say(whole_json("{}")).await;
        assert_eq!(reply.await.unwrap().status(), 200);
    }
    assert_eq!(bearer(bearer(chat("hi", 1), secrets[1]), secrets[0]).send(gateway.addr).await.status(), 400);
    for call in [bearer(chat("hi", 1), secrets[2]), chat("hi", 1).header("authorization", &format!("Basic {BEA}"))] {
        assert_eq!(call.send(gateway.addr).await.status(), 401);
    }
    let mut h2 = Client::h2(gateway.addr).await;
    assert_eq!(h2.ask(bearer(chat("hi", 1), secrets[2])).await.unwrap().status(), 401);
    // Where nobody is asked who they are, the header is the pods' own matter.
    let lax = gateway.running.listeners[1].1;
    let reply = bearer(chat("hi", 1), "the-pods-own").begin(lax);
    let mut asked = pod.asked().await;
    assert!(asked.head.contains("Bearer the-pods-own"), "{}", asked.head);
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    gateway.quiet().await;
    let mut told = String::from_utf8_lossy(&all.0.lock().unwrap()).into_owned();
    assert!(told.contains(" INFO ") && told.contains(" TRACE "), "there is something to look through");
    for page in ["/metrics", "/debug/fleet", "/debug/config", "/debug/requests", "/"] {
        told.push_str(&Call::get(page).send(gateway.admin()).await.text().await);
    }
    for secret in secrets {
        let at = told.find(secret).or_else(|| told.find(&secret[4..24]));
        assert_eq!(at.map(|at| &told[at.saturating_sub(200)..at + 30]), None);
    }
}

#[tokio::test]
async fn tenants_have_their_own_salts_in_prefix_caches_and_clients_cannot_choose_anothers() {
    let (mut pod, file) = (RawPod::start().await, KeyFile::of(&[(ANN, ""), (BEA, "")]));
    let secret = file.path.with_file_name("salt");
    fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    let section = file
        .section()
        .replace("identity: {", &format!("identity: {{ cache_salt: {{ secret_file: {} }},", secret.display()));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&section).start().await;
    let mut salts = Vec::new();
    for (key, body) in [
        (ANN, r#"{"model":"m","prompt":"hi"}"#),
        (ANN, r#"{"model":"m","prompt":"ho"}"#),
        (BEA, r#"{"model":"m","prompt":"hi"}"#),
        (BEA, r#"{"model":"m","prompt":"hi","cache_salt":"SALT"}"#),
        (ANN, r#"{"model":"m","prompt":"hi","cache_salt":"mine"}"#),
        (ANN, r#"{"model":"m","prompt":"hi","cache_salt":null}"#),
    ] {
        // Bea writes what Ann has.
        let body = body.replace("SALT", salts.first().map_or("", |it: &String| it));
        let reply = bearer(Call::post("/v1/completions", body), key).begin(gateway.addr);
        let mut asked = pod.asked().await;
        let seen: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        salts.push(seen["cache_salt"].as_str().unwrap().to_owned());
        asked.say(whole_json("{}")).await;
        assert_eq!(reply.await.unwrap().status(), 200);
    }
    let [ann, again, bea, stolen, own, null] = &salts[..] else { panic!("{salts:?}") };
    assert_eq!((ann, ann), (again, null), "a tenant's prompts share what they have in common");
    for other in [bea, stolen, own] {
        assert_ne!(ann, other);
    }
    assert_ne!(bea, stolen, "what a tenant keeps apart itself stays apart");
    let embedding = bearer(Call::post("/v1/embeddings", r#"{"model":"m","input":"hi"}"#), ANN).begin(gateway.addr);
    let mut asked = pod.asked().await;
    assert_eq!(asked.body, br#"{"model":"m","input":"hi"}"#, "what generates nothing has no such cache");
    asked.say(whole_json("{}")).await;
    embedding.await.unwrap();
}

#[tokio::test]
async fn a_response_is_its_tenants_own() {
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ""), (BEA, "")]));
    let gateway = plan(&pod, &file).start().await;
    let respond = |key: &str, more: &str| {
        bearer(Call::post("/v1/responses", format!(r#"{{"model":"m","input":"hi","max_output_tokens":2{more}}}"#)), key)
            .send(gateway.addr)
    };
    let id = respond(ANN, "").await.json().await["id"].as_str().unwrap().to_owned();
    gateway.quiet().await;
    let revisit = |key: &str| bearer(Call::get(&format!("/v1/responses/{id}")), key).send(gateway.addr);
    assert_eq!((revisit(ANN).await.status(), revisit(BEA).await.status()), (200, 404));
    let cancel = Call::post(&format!("/v1/responses/{id}/cancel"), "");
    assert_eq!(bearer(cancel, BEA).send(gateway.addr).await.status(), 404);
    let continued = format!(r#","previous_response_id":"{id}""#);
    assert_eq!(respond(BEA, &continued).await.error(404).await["code"], "response_not_found");
    assert_eq!(respond(ANN, &continued).await.status(), 200);
}

#[tokio::test]
async fn who_shows_nothing_may_come_where_the_operator_says_so_and_who_shows_something_is_judged() {
    let (lines, _guard) = Lines::kept();
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, "")]));
    let plan = plan(&pod, &file)
        .listener("{ name: anybody, address: 127.0.0.1:0, allow_anonymous: true }")
        .listener("{ name: blind, address: 127.0.0.1:0, identity: false }");
    let gateway = plan.start().await;
    let [_, anybody, blind] = &gateway.running.listeners[..] else { panic!() };
    for (to, call, status, tenant) in [
        (anybody.1, chat("hi", 1), 200, "anonymous"),
        (anybody.1, bearer(chat("hi", 1), ANN), 200, "id-an"),
        (anybody.1, bearer(chat("hi", 1), BEA), 401, ""),
        (blind.1, bearer(chat("hi", 1), BEA), 200, ""),
        (blind.1, bearer(chat("hi", 1), ANN), 200, ""),
    ] {
        assert_eq!(call.send(to).await.status(), status);
        assert_eq!(told(&lines.one(&gateway).await, ["tenant"]), [tenant]);
    }
    let anonymous = ["tenant=\"anonymous\"", "code=\"200\""];
    assert_eq!(gateway.counted("tidegate_tenant_requests_total", &anonymous).await, 1.0);
}

/// What vLLM serves besides what clients need, much of it without asking for its own key.
const NOT_FOR_CLIENTS: [(&str, &str); 31] = [
    ("POST", "/invocations"),
    ("POST", "/pooling"),
    ("POST", "/classify"),
    ("POST", "/v2/embed"),
    ("GET", "/health"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("GET", "/version"),
    ("GET", "/load"),
    ("GET", "/metrics"),
    ("GET", "/metricsfoo"),
    ("GET", "/kv_event_sources"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/fault_tolerance/apply"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/collective_rpc"),
    ("GET", "/server_info"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/update_weights"),
    ("POST", "/abort_requests"),
    ("POST", "/inference/v1/generate"),
    ("GET", "/tokenizer_info"),
    ("GET", "/docs"),
];

#[tokio::test]
async fn what_pods_serve_besides_is_no_clients_business_whatever_key_it_has() {
    let (mut pod, file) = (RawPod::start().await, KeyFile::of(&[(ANN, "")]));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&file.section()).start().await;
    let mut asked = Vec::new();
    for (method, path) in NOT_FOR_CLIENTS {
        let slashed = path.replacen('/', "//", 1);
        let encoded = format!("/%{:02x}{}", path.as_bytes()[1], &path[2..]);
        let dotted = format!("/v1/..{path}");
        for path in [path.to_owned(), slashed, encoded, dotted, format!("{path}/")] {
            let call = Call::new(method.parse().unwrap(), &path, r#"{"model":"m","prompt":"hi"}"#);
            let status = bearer(call, ANN).send(gateway.addr).await.status();
            assert!([400, 404, 405].contains(&status), "{method} {path}: {status}");
            asked.push(path);
        }
    }
    for method in ["DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "GET"] {
        let call = Call::new(method.parse().unwrap(), "/v1/chat/completions", "");
        assert_eq!(bearer(call, ANN).send(gateway.addr).await.status(), 405, "{method}");
    }
    assert!(!pod.asked_again(), "none of {asked:?}");
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_is_told_at_the_start_and_refused_on_reload() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let yaml = |rest: &str| {
        format!(
            "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             pools: [{{ name: pods, endpoints: [{}] }}]\nmodels: [{{ modelName: m, poolRef: pods }}]\n{rest}",
            pod.endpoint()
        )
    };
    let missing = yaml("identity: { keys: { file: /no/such/keys.yaml } }\n");
    let (config, _) = tidegate::config::load("t.yaml", &missing).unwrap();
    let error = tidegate::app::start(config).await.unwrap_err();
    let told = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(told.contains("/no/such/keys.yaml"), "{told}");

    let (open, file) = (yaml(""), folder.path().join("tidegate.yaml"));
    fs::write(&file, &open).unwrap();
    let gateway = Gateway::from(&open).await;
    let reloader = gateway.running.reloader(&file, &open, None);
    let keys = KeyFile::of(&[(ANN, "")]);
    let reload = async |text: &str| {
        fs::write(&file, text).unwrap();
        reloader.reload().await
    };
    let status = async |call: Call| call.send(gateway.addr).await.status();
    assert_eq!(status(chat("hi", 1)).await, 200);
    let refused = reload(&missing).await;
    assert!(format!("{refused:?}").contains("/no/such/keys.yaml"), "{refused:?}");
    assert_eq!(status(chat("hi", 1)).await, 200, "the configuration before it stays");
    let applied = reload(&yaml(&(keys.section() + "\n"))).await;
    assert!(matches!(applied, tidegate::app::Reloaded::Applied(_)), "{applied:?}");
    assert_eq!((status(chat("hi", 1)).await, status(bearer(chat("hi", 1), ANN)).await), (401, 200));
    keys.write(&[(BEA, "")]);
    let mut late = 0;
    while late != 200 {
        late = status(bearer(chat("hi", 1), BEA)).await;
    }
    assert_eq!((status(bearer(chat("hi", 1), BEA)).await, status(bearer(chat("hi", 1), ANN)).await), (200, 401));
}

#[tokio::test]
async fn the_fairness_header_names_the_tenant_where_headers_are_trusted_and_nowhere_else() {
    let (lines, _guard) = Lines::kept();
    let (pod, file) = (SimPod::start().await, KeyFile::of(&[(ANN, ", tenant: shop")]));
    let gateway = plan(&pod, &file)
        .main("allow_anonymous: true")
        .listener("{ name: trusted, address: 127.0.0.1:0, allow_anonymous: true, trust_headers: true }")
        .listener("{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: { secure: false } }")
        .yaml("quotas: { tenants: [{ name: team-b, limits: { requests_per_minute: 1 } }] }")
        .start()
        .await;
    let [main, trusted, picker] = &gateway.running.listeners[..] else { panic!() };
    let named = |name: &str, tenant: &str| chat("hi", 1).header(name, tenant);
    let tenant = async || told(&lines.one(&gateway).await, ["tenant"])[0].clone();
    for header in ["x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id"] {
        assert_eq!(named(header, "team-a").send(trusted.1).await.status(), 200);
        assert_eq!(tenant().await, "team-a", "{header}");
        assert_eq!(named(header, "team-a").send(main.1).await.status(), 200);
        assert_eq!(tenant().await, "anonymous", "{header} of a client");
        // Who shows a key is who the key says.
        assert_eq!(bearer(named(header, "team-a"), ANN).send(trusted.1).await.status(), 200);
        assert_eq!(tenant().await, "shop");
    }
    for strange in ["", " ", &"x".repeat(129)] {
        assert_eq!(named("x-gateway-inference-fairness-id", strange).send(trusted.1).await.status(), 200);
        assert_eq!(tenant().await, "anonymous", "{strange:.3}");
    }
    // Its limits are its own, and pods hear nothing of it.
    let of_b = || named("x-gateway-inference-fairness-id", "team-b").send(trusted.1);
    assert_eq!((of_b().await.status(), of_b().await.status()), (200, 429));
    gateway.quiet().await;
    assert_eq!(lines.requests().pop().unwrap()["limit"], "tenant team-b requests_per_minute");
    let seen = pod.state().last;
    assert!(seen.iter().all(|it| it.header("x-gateway-inference-fairness-id").is_none()));
    // At Envoy's door its word is believed.
    let envoy = Envoy::connect(picker.1).await;
    let talk = envoy.talk().await;
    let path = ("x-gateway-inference-fairness-id", "team-b");
    let fields = [(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json"), path];
    talk.say(head(&fields, false));
    talk.say(body(r#"{"model":"m","messages":[],"max_tokens":3}"#, true));
    let mut talk = talk;
    let choice = talk.choice().await;
    assert_eq!((choice.status, choice.error()["code"].as_str()), (429, Some("rate_limit_exceeded")));
}
