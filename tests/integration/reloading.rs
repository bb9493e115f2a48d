//! A new configuration while requests run: all of it or nothing, nobody notices but those who come after.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate::app::{Reloaded, Reloader};

use crate::binary::{Served, config};
use crate::harness::{
    Call, Client, Gateway, RawClient, RawPod, SimPod, chat, chat_stream, eventually, sse_head, whole_json, within,
};

/// A gateway from a file.
struct Reloading {
    gateway: Gateway,
    reloader: Arc<Reloader>,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

fn yaml(pools: &[(&str, &[&SimPod])], models: &str, rest: &str) -> String {
    let pool = |(name, pods): &(&str, &[&SimPod])| {
        let endpoints: Vec<String> = pods.iter().map(|pod| pod.endpoint()).collect();
        format!("  - {{ name: {name}, endpoints: [{}] }}\n", endpoints.join(", "))
    };
    let pools: String = pools.iter().map(pool).collect();
    format!(
        "listeners:\n  - {{ name: main, address: \"127.0.0.1:0\" }}\nadmin: {{ address: \"127.0.0.1:0\" }}\npools:\n{pools}models: \
         [{models}]\n{rest}"
    )
}

const M: &str = "{ modelName: m, poolRef: pods }";

impl Reloading {
    async fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.yaml");
        fs::write(&file, text).unwrap();
        let gateway = Gateway::from(text).await;
        let reloader = gateway.running.reloader(&file, text, None);
        Self { gateway, reloader, file, _folder: folder }
    }

    async fn reload(&self, text: &str) -> Reloaded {
        fs::write(&self.file, text).unwrap();
        self.reloader.reload().await
    }

    async fn apply(&self, text: &str) -> Vec<String> {
        match self.reload(text).await {
            Reloaded::Applied(changes) => changes,
            other => panic!("{other:?}"),
        }
    }

    async fn model(&self, model: &str) -> u16 {
        let body = format!("{{\"model\":\"{model}\",\"prompt\":\"hi\",\"max_tokens\":1}}");
        Call::post("/v1/completions", body).send(self.gateway.addr).await.status()
    }
}

#[tokio::test]
async fn a_good_change_is_in_force_at_once_and_told() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let old = yaml(&[("pods", &[&one])], M, "");
    let it = Reloading::start(&old).await;
    assert_eq!((it.model("m").await, it.model("n").await), (200, 404));
    let models = "{ modelName: m, poolRef: pods }, { modelName: n, poolRef: more, targetModels: [{ name: m }] }";
    let new = yaml(&[("pods", &[&one]), ("more", &[&two])], models, "retry: { attempts: 1 }\n");
    let changes = it.apply(&new).await;
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes[0].starts_with("models[n]: added") && changes[1].starts_with("pools[more]: added"), "{changes:?}");
    assert_eq!((it.model("m").await, it.model("n").await), (200, 200));
    assert_eq!(two.asked(), 1);
    it.gateway.sees_all_pods().await;
    let told = it.gateway.admin_json("/debug/config").await;
    assert_eq!((&told["generation"], &told["last_reload"]["outcome"]), (&2.into(), &"applied".into()));
    assert_eq!(told["last_reload"]["changes"].as_array().unwrap().len(), 3);
    let hash = format!("hash=\"{}\"", told["hash"].as_str().unwrap());
    assert_eq!(it.gateway.counted("tidegate_config_hash", &[&hash]).await, 1.0);
    assert_eq!(it.gateway.counted("tidegate_config_hash", &[]).await, 1.0, "the one before is gone");
    assert_eq!(it.gateway.counted("tidegate_config_generation", &[]).await, 2.0);
    assert_eq!(it.gateway.counted("tidegate_config_reloads_total", &["applied"]).await, 1.0);
    assert_eq!(it.apply(&new).await, [] as [&str; 0], "the same again is no change");
    assert_eq!(it.gateway.admin_json("/debug/config").await["generation"], 2);
}

#[tokio::test]
async fn a_bad_file_is_refused_with_every_problem_in_its_place_and_the_old_one_stays() {
    let one = SimPod::start().await;
    let old = yaml(&[("pods", &[&one])], M, "");
    let it = Reloading::start(&old).await;
    let bad = yaml(&[("pods", &[])], "{ modelName: m, poolRef: podz }", "timeouts: { connect: soon }\n");
    let Reloaded::Refused(report) = it.reload(&bad).await else { panic!("it must not be taken") };
    let told = report.to_string();
    for place in [":5:", ":6:", ":7:"] {
        assert!(told.contains(&format!("{}{place}", it.file.display())), "{place} in {told}");
    }
    assert!(told.contains("| timeouts: { connect: soon }"), "{told}");
    assert_eq!(it.model("m").await, 200);
    let state = it.gateway.admin_json("/debug/config").await;
    assert_eq!((&state["generation"], &state["last_reload"]["outcome"]), (&1.into(), &"invalid".into()));
    assert!(state["last_reload"]["problems"].to_string().contains("podz"), "{state}");
    assert_eq!(it.gateway.counted("tidegate_config_last_reload_successful", &[]).await, 0.0);
    assert_eq!(it.gateway.counted("tidegate_config_reloads_total", &["invalid"]).await, 1.0);
    fs::remove_file(&it.file).unwrap();
    assert!(matches!(it.reloader.reload().await, Reloaded::Refused(_)), "a missing file as well");
    let other_ca = old.replace("name: pods,", "name: pods, ca_file: /no/such/file,");
    let Reloaded::Refused(report) = it.reload(&other_ca).await else { panic!("it must not be taken") };
    assert!(report.to_string().contains("/no/such/file"), "{report}");
    it.apply(&old).await;
    assert_eq!(it.gateway.counted("tidegate_config_last_reload_successful", &[]).await, 1.0);
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_nothing_else_of_the_file_is_taken_over() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let old = yaml(&[("pods", &[&one])], M, "");
    let it = Reloading::start(&old).await;
    let models = format!("{M}, {{ modelName: n, poolRef: more }}");
    let new = yaml(&[("pods", &[&one]), ("more", &[&two])], &models, "limits: { connections: 7 }\n");
    let new = new.replacen("127.0.0.1:0", "127.0.0.1:1", 1);
    let Reloaded::Refused(report) = it.reload(&new).await else { panic!("it must not be taken") };
    let told = report.to_string();
    assert!(told.contains("listeners[main].address") && told.contains("limits.connections"), "{told}");
    assert!(told.contains("restart"), "{told}");
    assert_eq!((it.model("m").await, it.model("n").await), (200, 404));
    assert_eq!(it.gateway.pods().len(), 1);
    assert_eq!(it.gateway.counted("tidegate_config_reloads_total", &["needs_restart"]).await, 1.0);
}

#[tokio::test]
async fn a_stream_outlives_its_pool_and_nothing_of_the_pool_is_left_behind() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let it = Reloading::start(&yaml(&[("pods", &[&one])], M, "")).await;
    it.gateway.sees_all_pods().await;
    one.faults().change(|faults| faults.slow = 5.0);
    let mut stream = chat_stream(&"a long prompt ".repeat(100), 100).send(it.gateway.addr).await;
    stream.piece().await.unwrap().unwrap();
    let house = Arc::clone(&it.gateway.running.house);
    let slot = it.gateway.pods()[0].slot;
    assert!(house.prefix.held(slot) > 0);
    it.apply(&yaml(&[("others", &[&two])], "{ modelName: m, poolRef: others }", "")).await;
    assert_eq!(it.model("m").await, 200);
    assert_eq!(two.asked(), 1);
    let page = it.gateway.metrics().await;
    assert!(!page.contains("tidegate_pod_in_flight_requests{pool=\"pods\""), "{page}");
    assert!(stream.text().await.ends_with("data: [DONE]\n\n"));
    assert_eq!(one.state().aborts, 0);
    it.gateway.quiet().await;
    assert_eq!(house.prefix.held(slot), 0, "its answer is not remembered for a pod that has left");
    // The visits under way end, and nobody goes there again.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let scraped = it.gateway.counted("tidegate_scrapes_total", &["pool=\"pods\""]).await;
    assert!(scraped > 0.0);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(it.gateway.counted("tidegate_scrapes_total", &["pool=\"pods\""]).await, scraped);
    eventually("no connection kept", || house.upstream.idle_connections() <= 1).await;
}

#[tokio::test]
async fn who_waits_for_a_pool_that_goes_is_told_at_once_and_the_count_of_those_who_wait_is_right() {
    let one = SimPod::start().await;
    // No pod at all, so that nobody is on its way to one just when the pool goes.
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), "[]").unwrap();
    let with_nobody = format!("pools:\n  - {{ name: pods, endpoints: [{{ file: {:?} }}] }}\n", list.path());
    let empty = yaml(&[("more", &[&one])], M, "waiting: { timeout: 1h }\n").replace("pools:\n", &with_nobody);
    let it = Reloading::start(&empty).await;
    let house = Arc::clone(&it.gateway.running.house);
    let waiting: Vec<_> = (0..6).map(|nth| chat(&format!("{nth}"), 1).begin(it.gateway.addr)).collect();
    eventually("six to wait", || house.waiting.len() == 6).await;
    let moved = yaml(&[("more", &[&one])], "{ modelName: m, poolRef: more }", "waiting: { timeout: 1h }\n");
    it.apply(&moved).await;
    for reply in waiting {
        assert_eq!(reply.await.unwrap().error(503).await["code"], "no_ready_pod");
    }
    assert_eq!(it.gateway.counted("tidegate_waiting_requests", &["pods"]).await, 0.0);
    assert_eq!(it.gateway.counted("tidegate_waited_seconds_count", &["turned_away"]).await, 6.0);
    it.apply(&empty).await;
    let again = chat("again", 1).begin(it.gateway.addr);
    eventually("one to wait", || house.waiting.len() == 1).await;
    assert_eq!(it.gateway.counted("tidegate_waiting_requests", &["pods"]).await, 1.0);
    it.apply(&yaml(&[("pods", &[&one]), ("more", &[&one])], M, "waiting: { timeout: 1h }\n")).await;
    assert_eq!(again.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_began_before_goes_where_it_would_have_gone() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let it = Reloading::start(&yaml(&[("pods", &[&one])], M, "")).await;
    let body = "{\"model\":\"m\",\"prompt\":\"hi\",\"max_tokens\":1}";
    let (half, rest) = body.split_at(10);
    let mut early = RawClient::connect(it.gateway.addr).await;
    let length = body.len();
    early.say(format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{half}")).await;
    let house = Arc::clone(&it.gateway.running.house);
    eventually("it began", || house.bodies.held() > 0).await;
    it.apply(&yaml(&[("others", &[&two])], "{ modelName: n, poolRef: others, targetModels: [{ name: m }] }", "")).await;
    assert_eq!(it.model("n").await, 200);
    early.say(rest).await;
    let head = early.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(one.asked(), 1);
}

#[tokio::test]
async fn a_pool_gets_other_pods_and_those_that_leave_finish_what_they_do() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let it = Reloading::start(&yaml(&[("pods", &[&one])], M, "")).await;
    one.faults().change(|faults| faults.slow = 5.0);
    let mut stream = chat_stream("hi", 100).send(it.gateway.addr).await;
    stream.piece().await.unwrap().unwrap();
    let leaving = Arc::clone(&it.gateway.pods()[0]);
    it.apply(&yaml(&[("pods", &[&two])], M, "")).await;
    assert_eq!(leaving.condition(tidegate::clock::now()).name(), "draining");
    for _ in 0..3 {
        assert_eq!(it.model("m").await, 200);
    }
    assert_eq!((one.asked(), two.asked()), (1, 3));
    assert!(stream.text().await.ends_with("data: [DONE]\n\n"));
    // Another way to read them makes other pods; what is known of the pool stays.
    let before = Arc::clone(&it.gateway.pods()[0]);
    let with_metrics =
        yaml(&[("pods", &[&two])], M, "").replace("name: pods,", "name: pods, metrics: { interval: 50ms },");
    it.apply(&with_metrics).await;
    let after = Arc::clone(&it.gateway.pods()[0]);
    assert!(!Arc::ptr_eq(&before, &after) && after.view.interval == Duration::from_millis(50));
    assert_eq!(it.model("m").await, 200);
}

#[tokio::test]
async fn a_token_that_changes_reaches_the_pod_with_the_next_request() {
    let mut pod = RawPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = |name: &str| {
        let file = folder.path().join(name);
        fs::write(&file, name).unwrap();
        file.display().to_string()
    };
    let text = |token: &str| {
        format!(
            "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\npools:\n  - {{ name: pods, \
             endpoints: [{}], token_file: {token} }}\nmodels: [{M}]\n",
            pod.endpoint()
        )
    };
    let (old, new) = (text(&token("one")), text(&token("two")));
    let it = Reloading::start(&old).await;
    for (text, expected) in [(&old, "Bearer one"), (&new, "Bearer two")] {
        it.apply(text).await;
        let reply = chat("hi", 1).begin(it.gateway.addr);
        let mut asked = pod.asked().await;
        assert_eq!(asked.header("authorization"), Some(expected));
        asked.say(whole_json("{}")).await;
        assert_eq!(reply.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn nobody_fails_while_configurations_change_under_load() {
    let pods = [SimPod::start().await, SimPod::start().await, SimPod::start().await];
    let of = |turn: usize| {
        let (one, two) = (&pods[turn % 3], &pods[(turn + 1) % 3]);
        let models = format!(
            "{{ modelName: m, poolRef: p{}, targetModels: [{{ name: m, weight: {} }}, {{ name: a, weight: 10 }}] }}",
            turn % 2,
            10 + turn
        );
        yaml(&[(["p0", "p1"][turn % 2], &[one, two])], &models, "")
    };
    let it = Reloading::start(&of(0)).await;
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for nth in 0..8 {
        let (to, over, served) = (it.gateway.addr, Arc::clone(&over), Arc::clone(&served));
        clients.push(tokio::spawn(async move {
            let mut client = if nth % 2 == 0 { Client::h1(to).await } else { Client::h2(to).await };
            while !over.load(Relaxed) {
                let call = if nth % 4 < 2 { chat("hi", 3) } else { chat_stream("hi", 3) };
                let reply = client.ask(call).await.unwrap();
                let status = reply.status();
                let text = reply.text().await;
                assert_eq!(status, 200, "{text}");
                assert!(!text.contains("error"), "{text}");
                served.fetch_add(1, Relaxed);
            }
        }));
    }
    for turn in 1..20 {
        let already = served.load(Relaxed);
        it.apply(&of(turn)).await;
        eventually("requests under the new one", || served.load(Relaxed) > already + 16).await;
    }
    over.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    it.gateway.quiet().await;
    assert_eq!(it.gateway.admin_json("/debug/config").await["generation"], 20);
}

#[tokio::test]
async fn the_file_is_followed_through_swapped_links_renames_and_half_written_states() {
    let one = SimPod::start().await;
    let with = |model: &str| {
        yaml(
            &[("pods", &[&one])],
            &format!("{{ modelName: {model}, poolRef: pods, targetModels: [{{ name: m }}] }}"),
            "",
        )
    };
    let it = Reloading::start(&with("first")).await;
    // As kubelet mounts a ConfigMap: the file is a link into `..data`, which is a link to a folder, and is swapped.
    let folder = it.file.parent().unwrap().to_owned();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("tidegate.yaml"), text).unwrap();
        let link = folder.join("..data_tmp");
        symlink(name, &link).unwrap();
        fs::rename(link, folder.join("..data")).unwrap();
    };
    version("..1", &with("first"));
    fs::remove_file(&it.file).unwrap();
    symlink(Path::new("..data/tidegate.yaml"), &it.file).unwrap();
    it.gateway.running.follow(&it.reloader);
    version("..2", &with("second"));
    let serves = async |model: &str| while it.model(model).await != 200 {};
    within("the swapped link", serves("second")).await;
    // As an editor saves: another file takes its name.
    let other = folder.join("other");
    fs::write(&other, with("third")).unwrap();
    fs::rename(&other, &it.file).unwrap();
    within("the renamed file", serves("third")).await;
    // Half of it is a sound configuration too, and must not come into force.
    let text = with("fourth");
    let half = with("half");
    fs::write(&it.file, &half).unwrap();
    fs::write(&it.file, &text).unwrap();
    within("the whole file", serves("fourth")).await;
    assert_eq!(it.model("half").await, 404);
    assert_eq!(it.gateway.counted("tidegate_config_reloads_total", &[]).await, 3.0, "each once");
    // One that is broken for good is told once.
    fs::write(&it.file, "pools: [").unwrap();
    let refused = async { while it.gateway.counted("tidegate_config_reloads_total", &["invalid"]).await < 1.0 {} };
    within("the broken file", refused).await;
    assert_eq!(it.model("fourth").await, 200);
    assert_eq!(it.gateway.stop(Duration::from_secs(5)).await.cut, 0);
}

#[tokio::test]
async fn sighup_reloads_at_once_and_the_log_level_follows() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), &pod.endpoint(), "");
    let served = Served::start(&path);
    assert_eq!(chat("hi", 1).send(served.addr).await.status(), 200);
    let text = fs::read_to_string(&path).unwrap();
    let quiet = text
        .replace("format: json", "format: json, level: warn")
        .replace("modelName: m,", "modelName: n, targetModels: [{ name: m }],");
    fs::write(&path, &quiet).unwrap();
    served.signal("HUP");
    let body = "{\"model\":\"n\",\"prompt\":\"hi\",\"max_tokens\":1}";
    let taken = async { while Call::post("/v1/completions", body).send(served.addr).await.status() != 200 {} };
    within("the reload", taken).await;
    fs::write(&path, quiet.replace("poolRef: pods", "poolRef: nowhere")).unwrap();
    served.signal("HUP");
    let other = "{\"model\":\"n\",\"prompt\":\"hi\",\"max_tokens\":1}";
    assert_eq!(Call::post("/v1/completions", other).send(served.addr).await.status(), 200);
    // The two looks of the watch are behind us when the problem is told.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    served.signal("TERM");
    served.signal("INT");
    let (_, log) = served.ended().await;
    assert!(log.contains("modelName") && log.contains("configuration changed"), "{log}");
    assert!(log.contains("tidegate.yaml\",\"line\":7,") && log.contains("nowhere"), "{log}");
    assert_eq!(log.matches("configuration not reloaded").count(), 1, "once, not by the watch again: {log}");
    let last = log.rfind("\"status\":404").or(log.rfind("\"status\":200")).unwrap();
    assert!(last < log.find("nowhere").unwrap(), "no request is told at level warn: {log}");
}

#[tokio::test]
async fn a_gateway_that_stops_takes_no_new_configuration() {
    let mut pod = RawPod::start().await;
    let text = format!(
        "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\npools: [{{ name: pods, \
         endpoints: [{}] }}]\nmodels: [{M}]\n",
        pod.endpoint()
    );
    let Reloading { gateway, reloader, file, _folder } = Reloading::start(&text).await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let reply = reply.await.unwrap();
    let admin = gateway.admin();
    let stopped = tokio::spawn(gateway.stop(Duration::from_secs(15)));
    let not_ready = async { while Call::get("/readyz").send(admin).await.status() != 503 {} };
    within("the probe to fail", not_ready).await;
    fs::write(&file, text + "retry: { attempts: 1 }\n").unwrap();
    assert_eq!(reloader.reload().await, Reloaded::Stopping);
    asked.chunk("data: [DONE]\n\n").await;
    asked.say("0\r\n\r\n").await;
    reply.bytes().await;
    assert_eq!(stopped.await.unwrap().cut, 0);
}
