//! Pools, models and pods that a cluster brings: from a directory of manifests, and from an API server with all that
//! happens to one.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use tidegate::app::Reloader;

use crate::harness::{ALPHA_POOLS, Call, Cluster, Gateway, MODELS, PODS, POOLS, SLICES, SimPod, eventually, within};
use crate::{
    binary::Served,
    harness::envoy::{Choice, Envoy, body, chat_head},
};

/// A gateway that follows inference resources.
struct Following {
    gateway: Gateway,
    _reloader: Arc<Reloader>,
    _folder: tempfile::TempDir,
}

impl Following {
    async fn start(rest: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.yaml");
        let text = format!(
            "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\nwaiting: {{ timeout: 0s }}\n{rest}"
        );
        fs::write(&file, &text).unwrap();
        let gateway = Gateway::from(&text).await;
        let reloader = gateway.running.reloader(&file, &text, None);
        gateway.running.follow(&reloader);
        Self { gateway, _reloader: reloader, _folder: folder }
    }

    async fn of(cluster: &Cluster, rest: &str) -> Self {
        Self::start(&format!("kubernetes: {{ kubeconfig: {} }}\n{rest}", cluster.kubeconfig().display())).await
    }

    fn pools(&self) -> Vec<String> {
        self.gateway.running.house.fleet.pools().map(|pool| pool.name().to_string()).collect()
    }

    fn pods(&self) -> BTreeSet<String> {
        self.gateway.pods().iter().map(|pod| pod.id.to_string()).collect()
    }

    async fn until_pods(&self, pods: &[&str]) {
        let wanted: BTreeSet<String> = pods.iter().map(ToString::to_string).collect();
        eventually(&format!("the pods {pods:?}"), || self.pods() == wanted).await;
    }

    async fn asked(&self, model: &str) -> (u16, Value) {
        let body = format!("{{\"model\":\"{model}\",\"prompt\":\"hi\",\"max_tokens\":1}}");
        let answer = Call::post("/v1/completions", body).send(self.gateway.addr).await;
        (answer.status(), answer.json().await)
    }

    async fn until_answered(&self, model: &str, status: u16) -> Value {
        let turns = async {
            loop {
                let (is, body) = self.asked(model).await;
                if is == status {
                    return body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(&format!("{status} for {model}"), turns).await
    }

    async fn until_pods_heard(&self, heard: bool) {
        let wanted = f64::from(u8::from(heard));
        let turns = async {
            while (self.gateway.counted("tidegate_kubernetes_watch_heard", &["kind=\"Pod\""]).await - wanted).abs()
                > 0.1
            {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within("the watch of pods to be told of", turns).await;
    }

    async fn until_unready_for(&self, why: &str) {
        let turns = async {
            loop {
                let answer = Call::get("/readyz").send(self.gateway.admin()).await;
                if answer.status() == 503 && answer.text().await.contains(why) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(why, turns).await;
    }
}

fn pool(name: &str, port: u16) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": port}]}})
}

fn model(name: &str, created: &str, target: &str) -> Value {
    json!({"metadata": {"name": name, "creationTimestamp": created},
        "spec": {"modelName": "asked", "criticality": "Critical", "poolRef": {"name": "llama"}, "targetModels": [{"name": target, "weight": 1}]}})
}

fn pod(name: &str, ip: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"metadata": {"name": name, "labels": {"app": "vllm"}},
        "spec": {"containers": [{"name": "vllm", "ports": [{"containerPort": 8000}]}]},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}})
}

fn port_of(pod: &SimPod) -> u16 {
    let endpoint = pod.endpoint();
    let digits: String = endpoint.rsplit(':').next().unwrap().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

const SEED: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: InferencePool
metadata: { name: llama }
spec: { targetPortNumber: 8000, selector: { app: vllm }, extensionRef: { name: epp } }
---
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: InferenceModel
metadata: { name: llama }
spec: { modelName: asked, criticality: Critical, poolRef: { name: llama }, targetModels: [{ name: m, weight: 100 }] }
";

#[tokio::test]
async fn seed_manifests_serve_on_a_laptop_and_an_edit_is_in_force_without_a_restart() {
    let (one, folder) = (SimPod::start().await, tempfile::tempdir().unwrap());
    let seed: PathBuf = folder.path().join("seed.yaml");
    fs::write(&seed, SEED).unwrap();
    fs::write(folder.path().join("README.md"), "not a manifest").unwrap();
    let rest = format!(
        "kubernetes: {{ manifests: {} }}\npools: [{{ name: mine, endpoints: [{{ inferencePool: {{ name: llama }} }}, {}] }}]",
        folder.path().display(),
        one.endpoint()
    );
    let it = Following::start(&rest).await;
    assert_eq!(it.until_answered("asked", 200).await["model"], "m");
    assert_eq!(it.asked("other").await.0, 404);
    fs::write(&seed, SEED.replace("modelName: asked", "modelName: other")).unwrap();
    it.until_answered("other", 200).await;
    assert_eq!(it.asked("asked").await.0, 404);
    fs::write(&seed, SEED.replace("targetPortNumber: 8000", "targetPortNumber: many")).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_600)).await;
    assert_eq!(it.asked("other").await.0, 200, "a broken file changes nothing");
    fs::write(&seed, SEED).unwrap();
    it.until_answered("asked", 200).await;
}

#[tokio::test]
async fn what_is_there_at_the_start_is_served_and_what_comes_and_goes_is_followed() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    let one = SimPod::start().await;
    cluster.put(POOLS, pool("llama", port_of(&one)));
    cluster.put(MODELS, model("m", "2025-01-01T00:00:00Z", "m"));
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    let it = Following::of(&cluster, "").await;
    assert_eq!(it.until_answered("asked", 200).await["model"], "m");
    let port = port_of(&one);
    let (a, b) = (format!("default/llama/127.0.0.1:{port}"), format!("default/llama/127.0.0.2:{port}"));
    cluster.put(PODS, pod("b", "127.0.0.2", false));
    cluster.put(PODS, pod("b", "127.0.0.2", true));
    it.until_pods(&[&a, &b]).await;
    let mut leaving = pod("a", "127.0.0.1", true);
    leaving["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    cluster.put(PODS, leaving);
    it.until_pods(&[&b]).await;
    cluster.put(PODS, pod("b", "127.0.0.2", false));
    it.until_pods(&[]).await;
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    it.until_pods(&[&a]).await;
    let mut moved = pool("llama", port);
    moved["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    cluster.put(POOLS, moved);
    it.until_pods(&[]).await;
    assert_eq!(it.pools(), ["default/llama"]);
    cluster.delete(POOLS, "llama");
    eventually("the pool to go", || it.pools().is_empty()).await;
    it.until_answered("asked", 404).await;
}

#[tokio::test]
async fn a_cluster_that_is_not_heard_keeps_its_last_world_and_what_was_missed_is_caught_up_with() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    cluster.put(POOLS, pool("llama", 8000));
    for (name, ip) in [("a", "127.0.0.1"), ("b", "127.0.0.2"), ("c", "127.0.0.3")] {
        cluster.put(PODS, pod(name, ip, true));
    }
    let it = Following::of(&cluster, "").await;
    let [a, b, c] = [1, 2, 3].map(|last| format!("default/llama/127.0.0.{last}:8000"));
    it.until_pods(&[&a, &b, &c]).await;
    cluster.down(true);
    cluster.delete(PODS, "a");
    cluster.compact();
    eventually("somebody to ask in vain", || cluster.asked(&["pods", "watch"]) > 1).await;
    it.until_pods(&[&a, &b, &c]).await;
    it.until_unready_for("not heard").await;
    it.until_pods_heard(false).await;
    let objects = it.gateway.counted("tidegate_kubernetes_objects", &["kind=\"Pod\""]).await;
    assert!((objects - 3.0).abs() < 0.1, "{objects}");
    cluster.down(false);
    it.until_pods(&[&b, &c]).await;
    it.until_pods_heard(true).await;
    // Somebody else's changes are forgotten, which a watch that was told of them need not mind.
    cluster.bookmark();
    cluster.told(PODS).await;
    let lists = || cluster.asked(&["pods", "limit"]);
    let before = lists();
    cluster.compact();
    cluster.cut();
    cluster.delete(PODS, "b");
    it.until_pods(&[&c]).await;
    assert_eq!(lists(), before, "a bookmark kept the watch from beginning anew");
    cluster.put(PODS, pod("d", "127.0.0.4", true));
    it.until_pods(&[&c, "default/llama/127.0.0.4:8000"]).await;
}

#[tokio::test]
async fn definitions_that_are_not_installed_are_waited_for_and_said_to_be() {
    let cluster = Cluster::start(&[]).await;
    let it = Following::of(&cluster, "").await;
    it.until_unready_for("its definition is not installed").await;
    cluster.install(ALPHA_POOLS);
    cluster.put(
        ALPHA_POOLS,
        json!({"metadata": {"name": "late"}, "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000}}),
    );
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    it.until_pods(&["default/late/127.0.0.1:8000"]).await;
}

#[tokio::test]
async fn the_older_of_two_models_keeps_the_name_until_it_goes() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    let one = SimPod::start().await;
    cluster.put(POOLS, pool("llama", port_of(&one)));
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    cluster.put(MODELS, model("old", "2025-01-01T00:00:00Z", "old"));
    let it = Following::of(&cluster, "").await;
    it.until_pods(&[&format!("default/llama/127.0.0.1:{}", port_of(&one))]).await;
    cluster.put(MODELS, model("new", "2025-01-02T00:00:00Z", "m"));
    let served = || {
        let policy = it.gateway.running.policy.load_full();
        policy.config.models.iter().map(|model| model.targets[0].name.to_string()).collect::<Vec<_>>()
    };
    eventually("the older one's target", || served() == ["old"]).await;
    let accepted = |name: &str| {
        let condition = cluster.get(MODELS, name)["status"]["conditions"][0].clone();
        [&condition["type"], &condition["status"], &condition["reason"]].map(|it| it.as_str().unwrap_or("").to_owned())
    };
    eventually("the word of both", || accepted("new")[1] == "False" && accepted("old")[1] == "True").await;
    assert_eq!(accepted("new"), ["Accepted", "False", "ModelNameInUse"]);
    assert_eq!(accepted("old"), ["Accepted", "True", "Accepted"]);
    let new = &cluster.get(MODELS, "new")["status"]["conditions"][0];
    assert!(new["message"].as_str().unwrap().contains("InferenceModel default/old"), "{new}");
    assert!(new["lastTransitionTime"].as_str().unwrap().ends_with('Z'), "{new}");
    cluster.delete(MODELS, "old");
    eventually("the younger one's target", || served() == ["m"]).await;
    eventually("the younger one's word", || accepted("new")[1] == "True").await;
    let written = cluster.asked(&["status"]);
    cluster.put(PODS, pod("b", "127.0.0.2", true));
    eventually("the other pod", || it.pods().len() == 2).await;
    assert_eq!((written, cluster.asked(&["status"])), (3, 3), "what is said is not said again");
    assert_eq!(it.until_answered("asked", 200).await["model"], "m");
}

#[tokio::test]
async fn services_are_followed_only_when_a_pool_asks_for_one_and_more_than_a_page_is_read() {
    let cluster = Cluster::start(&[POOLS]).await;
    for number in 0..501 {
        cluster.put(PODS, pod(&format!("p{number:03}"), &format!("127.0.{}.{}", number / 250, number % 250 + 1), true));
    }
    cluster.put(POOLS, pool("llama", 8000));
    let it = Following::of(&cluster, "").await;
    eventually("all pods", || it.pods().len() == 501).await;
    assert_eq!(cluster.asked(&["endpointslices"]), 0);
    drop(it);
    cluster.put(
        SLICES,
        json!({"metadata": {"name": "qwen-abc", "labels": {"kubernetes.io/service-name": "qwen"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.9"], "conditions": {"ready": true}}], "ports": [{"name": "http", "port": 5000}]}),
    );
    let it = Following::of(&cluster, "pools: [{ name: kaito, endpoints: [{ service: { name: qwen } }] }]").await;
    eventually("the service's pod", || it.pods().contains("kaito/127.0.0.9:5000")).await;
}

#[tokio::test]
async fn what_may_not_be_seen_or_cannot_be_understood_takes_nothing_else_with_it() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    cluster.forbid("inferencemodels", true);
    cluster.put(POOLS, pool("llama", 8000));
    let mut broken = pool("broken", 8000);
    broken["spec"]["targetPorts"] = json!("many");
    cluster.put(POOLS, broken);
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    let it = Following::of(&cluster, "").await;
    it.until_pods(&["default/llama/127.0.0.1:8000"]).await;
    assert_eq!(it.pools(), ["default/llama"]);
}

/// What the picker says of a chat with `model`.
async fn chosen(envoy: &Envoy, model: &str) -> (Choice, String) {
    let mut talk = envoy.talk().await;
    talk.say(chat_head());
    talk.say(body(format!("{{\"model\":\"{model}\",\"messages\":[]}}"), true));
    let choice = talk.choice().await;
    let sent = if choice.status == 0 { String::from_utf8(talk.body().await).unwrap() } else { String::new() };
    (choice, sent)
}

#[tokio::test]
async fn a_picker_started_with_the_references_flags_picks_from_its_pool_and_from_no_other() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    let (mine, theirs) = (SimPod::start().await, SimPod::start().await);
    cluster.put(POOLS, pool("llama", port_of(&mine)));
    cluster.put(POOLS, pool("theirs", port_of(&theirs)));
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    cluster.put(MODELS, model("m", "2025-01-01T00:00:00Z", "m"));
    let flags = "--pool-name llama --pool-namespace default --grpc-port 0 --grpc-health-port 0 --metrics-port 0 \
                 --secure-serving=false --zap-encoder json --tracing";
    let served = Served::picker(&flags.split_whitespace().collect::<Vec<_>>(), &cluster.kubeconfig());
    let envoy = Envoy::connect(served.addr).await;
    let turns = async {
        loop {
            let (choice, sent) = chosen(&envoy, "asked").await;
            if choice.status == 0 {
                return (choice, sent);
            }
            assert_eq!(choice.status, 503, "{choice:?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let (choice, sent) = within("a pod", turns).await;
    assert_eq!(choice.pod(), format!("127.0.0.1:{}", port_of(&mine)));
    assert!(sent.contains("\"model\":\"m\""), "the InferenceModel leads to it: {sent}");
    assert_eq!(cluster.asked(&["status"]), 0, "nor is anything said of models");
    // What changes is followed, though no file is.
    cluster.delete(MODELS, "m");
    let forgotten = async { while chosen(&envoy, "asked").await.1.contains("\"model\":\"m\"") {} };
    within("the model to go", forgotten).await;
    served.signal("HUP");
    served.signal("INT");
    drop(envoy);
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("note: nothing here needs --tracing"), "{log}");
}

#[tokio::test]
async fn a_picker_that_is_given_the_references_configuration_starts_and_is_healthy_once_its_pool_has_a_pod() {
    let cluster = Cluster::start(&[]).await;
    let mine = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("epp.yaml");
    let config = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{ type: queue-scorer }, \
                  { type: frobnicator }]\nschedulingProfiles: [{ name: default, plugins: [{ pluginRef: queue-scorer, weight: 2 }] }]\n";
    fs::write(&file, config).unwrap();
    let mut flags: Vec<&str> =
        "--pool-name=llama --pool-namespace=default --grpc-port=0 --grpc-health-port=0 --metrics-port=0 \
                                --secure-serving=false --ha-enable-leader-election --v=1 --config-file"
            .split_whitespace()
            .collect();
    flags.push(file.to_str().unwrap());
    let served = Served::picker(&flags, &cluster.kubeconfig());
    let envoy = Envoy::connect(served.addr).await;
    let (serving, not_serving) = (Ok(1), Ok(2));
    let names = ["readiness", "envoy.service.ext_proc.v3.ExternalProcessor", ""];
    // Not even the definitions are there.
    assert_eq!(envoy.health("liveness").await, serving);
    for name in names {
        assert_eq!(envoy.health(name).await, not_serving, "{name}");
    }
    assert_eq!(chosen(&envoy, "m").await.0.status, 503);
    cluster.install(POOLS);
    cluster.put(POOLS, pool("llama", port_of(&mine)));
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    let healthy = async {
        while envoy.health("readiness").await != serving {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within("the picker to be healthy", healthy).await;
    for name in names {
        assert_eq!(envoy.health(name).await, serving, "{name}");
    }
    assert_eq!(chosen(&envoy, "m").await.0.pod(), format!("127.0.0.1:{}", port_of(&mine)));
    // A pool that is scaled to zero is no reason to take the picker away: it has something to say.
    cluster.delete(PODS, "a");
    let emptied = async { while chosen(&envoy, "m").await.0.status != 503 {} };
    within("the pod to go", emptied).await;
    assert_eq!(envoy.health("readiness").await, serving);
    drop(envoy);
    served.signal("INT");
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    for told in [
        "without weights: queue-scorer (2)",
        "not known here and passed over: frobnicator",
        "nothing here needs --ha-enable-leader-election",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
}

#[tokio::test]
async fn one_process_picks_for_two_pools_that_both_have_a_model_of_one_name() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    cluster.put(POOLS, pool("llama", port_of(&one)));
    cluster.put(POOLS, pool("qwen", port_of(&two)));
    cluster.put(PODS, pod("a", "127.0.0.1", true));
    cluster.put(MODELS, model("of-llama", "2025-01-01T00:00:00Z", "m"));
    let mut other = model("of-qwen", "2025-01-02T00:00:00Z", "a");
    other["spec"]["poolRef"]["name"] = json!("qwen");
    cluster.put(MODELS, other);
    let door = |pool: &str| {
        let how = "protocol: ext-proc, ext_proc: { secure: false }";
        format!("{{ name: {pool}, address: \"127.0.0.1:0\", pool: default/{pool}, {how} }}")
    };
    let kubeconfig = cluster.kubeconfig();
    let text = format!(
        "listeners: [{}, {}]\nadmin: {{ address: \"127.0.0.1:0\" }}\nwaiting: {{ timeout: 0s }}\nkubernetes: {{ kubeconfig: {} }}",
        door("llama"),
        door("qwen"),
        kubeconfig.display()
    );
    let gateway = Gateway::from(&text).await;
    let reloader = gateway.running.reloader(&kubeconfig, &text, None);
    gateway.running.follow_resources(&reloader);
    for ((name, door), (pod, served)) in gateway.running.listeners.iter().zip([(&one, "m"), (&two, "a")]) {
        let envoy = Envoy::connect(*door).await;
        let turns = async {
            loop {
                let (choice, sent) = chosen(&envoy, "asked").await;
                if choice.status == 0 {
                    return (choice, sent);
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let (choice, sent) = within("a pod", turns).await;
        assert_eq!(choice.pod(), format!("127.0.0.1:{}", port_of(pod)), "{name}");
        assert!(sent.contains(&format!("\"model\":\"{served}\"")), "{name}: {sent}");
        // What nobody names is this pool's matter, too.
        assert_eq!(chosen(&envoy, "m").await.0.pod(), format!("127.0.0.1:{}", port_of(pod)), "{name}");
    }
    let accepted = || cluster.get(MODELS, "of-qwen")["status"]["conditions"][0]["status"] == "True";
    eventually("both to be in force", accepted).await;
}

#[tokio::test]
async fn a_workload_without_pods_is_still_a_pool_so_that_whoever_asks_waits_for_it() {
    let cluster = Cluster::start(&[POOLS, MODELS]).await;
    let one = SimPod::start().await;
    let mut labelled = pod("a", "127.0.0.1", true);
    labelled["metadata"]["labels"]["kaito.sh/workspace"] = json!("qwen");
    labelled["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(port_of(&one));
    cluster.put(PODS, labelled.clone());
    let kubeconfig = cluster.kubeconfig();
    let rest = format!("kubernetes: {{ kubeconfig: {}, workload_label: kaito.sh/workspace }}", kubeconfig.display());
    let it = Following::start(&rest).await;
    it.until_answered("m", 200).await;
    let id = format!("default/qwen/127.0.0.1:{}", port_of(&one));
    // A job that is over is no pod, whatever it said last.
    labelled["status"]["phase"] = json!("Failed");
    cluster.put(PODS, labelled.clone());
    it.until_pods(&[]).await;
    cluster.delete(PODS, "a");
    labelled["metadata"]["name"] = json!("b");
    labelled["status"]["phase"] = json!("Running");
    cluster.put(PODS, labelled);
    it.until_pods(&[&id]).await;
    cluster.delete(PODS, "b");
    it.until_pods(&[]).await;
    cluster.put(PODS, pod("unrelated", "127.0.0.9", true));
    cluster.told(PODS).await;
    assert_eq!(it.pools(), ["default/qwen"]);
}
