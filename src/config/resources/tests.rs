//! What objects mean, as tables: manifests in, pools, models, pods and notes out.

use std::fmt::Write as _;

use super::*;
use crate::config::{Config, Criticality, Given, Model, load_given};

const LISTENER: &str = "listeners: [{ name: a, address: 127.0.0.1:8081 }]\n";

fn config(rest: &str) -> Config {
    let given = Given { manifests: Some("manifests".into()) };
    load_given("t.yaml", (LISTENER.to_owned() + rest).as_bytes(), &given).unwrap_or_else(|it| panic!("{it}")).0
}

fn read(text: &str) -> Manifests {
    Manifests::read(vec![("m.yaml".to_owned(), text.to_owned())], "default").unwrap_or_else(|it| panic!("{it}"))
}

fn refused(text: &str) -> String {
    Manifests::read(vec![("m.yaml".to_owned(), text.to_owned())], "default").unwrap_err().to_string()
}

/// Pools and models in a line each, then the notes: place, message.
fn meant(rest: &str, manifests: &str) -> String {
    let manifests = read(manifests);
    let Furnished { config, notes } = furnish(config(rest), &manifests.world);
    let mut told = String::new();
    for pool in &config.pools {
        writeln!(told, "pool {}", pool.name).unwrap();
    }
    for model in &config.models {
        let arms: Vec<_> = model.targets.iter().map(|it| format!("{}:{}", it.name, it.weight)).collect();
        writeln!(told, "model {} {:?} {} {}", model.name, model.criticality, model.pool, arms.join(" ")).unwrap();
    }
    for model in &config.other_models {
        let arms: Vec<_> = model.targets.iter().map(|it| format!("{}:{}", it.name, it.weight)).collect();
        writeln!(told, "others {} {}", model.pool, arms.join(" ")).unwrap();
    }
    for objective in &config.objectives {
        writeln!(told, "objective {} {} {}", objective.name, objective.pool, objective.priority).unwrap();
    }
    for problem in manifests.problems(&notes) {
        writeln!(told, "{}:{} {}", problem.place.line, problem.place.column, problem.message).unwrap();
    }
    told
}

/// `host:port` of the pods that `members` stand for.
fn pods(members: &Members, manifests: &str) -> Vec<String> {
    targets(&read(manifests).world, members).iter().map(|target| target.origin.authority()).collect()
}

fn pool_ref(name: &str) -> Members {
    Members::InferencePool(Reference { namespace: None, name: name.to_owned() })
}

const POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: { name: llama }
spec:
  selector: { matchLabels: { app: vllm } }
  targetPorts: [{ number: 8000 }]
  endpointPickerRef: { name: epp, port: { number: 9002 } }
---";

fn alpha_pool(version: &str, name: &str) -> String {
    format!(
        "
apiVersion: inference.networking.x-k8s.io/{version}
kind: InferencePool
metadata: {{ name: {name} }}
spec:
  targetPortNumber: 8000
  selector: {{ app: vllm }}
  extensionRef: {{ name: epp }}
---"
    )
}

fn model(name: &str, created: &str, spec: &str) -> String {
    format!(
        "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {{ name: {name}, creationTimestamp: {created} }}
spec: {{ {spec} }}
---"
    )
}

fn pod(name: &str, ip: &str, labels: &str, rest: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ {labels} }} {rest} }}
spec: {{ containers: [{{ name: c, ports: [{{ name: metrics, containerPort: 9000 }}, {{ name: http, containerPort: 8080 }}] }}] }}
status: {{ podIP: {ip}, conditions: [{{ type: Initialized, status: \"True\" }}, {{ type: Ready, status: \"True\" }}] }}
---"
    )
}

#[test]
fn a_pool_of_any_version_is_a_pool_and_its_model_a_split() {
    let split = "modelName: m, criticality: Critical, poolRef: { name: llama }, targetModels: [{ name: a, weight: 9 }, { name: b, weight: 1 }]";
    for pool in [POOL.to_owned(), alpha_pool("v1alpha1", "llama"), alpha_pool("v1alpha2", "llama")] {
        let told = meant("", &(pool + &model("m", "null", split)));
        assert_eq!(told, "pool default/llama\nmodel m Critical default/llama a:9 b:1\n");
    }
}

#[test]
fn a_model_without_targets_goes_by_its_own_name_and_one_without_weights_is_shared_equally() {
    let pool = "poolRef: { group: inference.networking.x-k8s.io, kind: InferencePool, name: llama }";
    let plain = model("plain", "null", &format!("modelName: /model/llama2, {pool}"));
    let equal = model("equal", "null", &format!("modelName: e, {pool}, targetModels: [{{ name: a }}, {{ name: b }}]"));
    let half = model(
        "half",
        "null",
        &format!("modelName: h, {pool}, targetModels: [{{ name: a, weight: 5 }}, {{ name: b }}]"),
    );
    let told = meant("", &(POOL.to_owned() + &plain + &equal + &half));
    assert_eq!(
        told,
        "pool default/llama
model e Standard default/llama a:1 b:1
model h Standard default/llama a:5 b:0
model /model/llama2 Standard default/llama /model/llama2:1
23:108 some target models have a weight and some have none: those get nothing
"
    );
}

#[test]
fn of_two_with_one_name_the_older_is_in_force_then_the_first_by_name() {
    let of = |target: &str| format!("modelName: m, poolRef: {{ name: llama }}, targetModels: [{{ name: {target} }}]");
    let young = model("a-young", "\"2025-06-02T00:00:00Z\"", &of("young"));
    let old = model("z-old", "\"2025-06-01T23:59:59Z\"", &of("old"));
    let told = meant("", &(POOL.to_owned() + &young + &old));
    assert!(told.contains("model m Standard default/llama old:1\n"), "{told}");
    assert!(told.contains("in use by InferenceModel default/z-old"), "{told}");
    let (b, a) = (model("b", "null", &of("b")), model("a", "null", &of("a")));
    let told = meant("", &(POOL.to_owned() + &b + &a));
    assert!(told.contains("model m Standard default/llama a:1\n") && told.contains("in use by"), "{told}");
}

#[test]
fn the_file_outranks_every_object() {
    let file = "pools: [{ name: mine, endpoints: [{ url: \"http://10.0.0.9:8000\" }] }]\nmodels: [{ modelName: m, poolRef: mine }]";
    let told = meant(file, &(POOL.to_owned() + &model("m", "null", "modelName: m, poolRef: { name: llama }")));
    assert_eq!(
        told,
        "pool mine
pool default/llama
model m Standard mine m:1
13:20 the model name `m` is already in use by the configuration
"
    );
}

#[test]
fn a_pool_of_the_file_may_stand_for_a_pool_of_the_cluster_and_gets_its_models() {
    let file =
        "pools: [{ name: mine, endpoints: [{ inferencePool: { name: llama } }, { url: \"http://127.0.0.1:8000\" }] }]";
    let told = meant(file, &(POOL.to_owned() + &model("m", "null", "modelName: m, poolRef: { name: llama }")));
    assert_eq!(told, "pool mine\nmodel m Standard mine m:1\n");
}

#[test]
fn a_pool_of_the_file_that_stands_for_nothing_is_told_of() {
    let file =
        "pools: [{ name: mine, endpoints: [{ inferencePool: { name: llana } }, { url: \"http://127.0.0.1:8000\" }] }]";
    let told = meant(file, POOL);
    assert!(told.contains("0:0 InferencePool default/llana: pool `mine` stands for it, and it is not there"), "{told}");
}

#[test]
fn a_model_whose_pool_is_not_there_waits_for_it_and_takes_nobodys_name() {
    let old = model("old", "\"2025-01-01T00:00:00Z\"", "modelName: m, poolRef: { name: gone }");
    let new = model("new", "\"2025-02-01T00:00:00Z\"", "modelName: m, poolRef: { name: llama }");
    let told = meant("", &(POOL.to_owned() + &old + &new));
    assert_eq!(
        told,
        "pool default/llama
model m Standard default/llama m:1
13:40 there is no InferencePool `gone` in namespace `default`
"
    );
    let elsewhere = POOL.replace("name: llama", "name: llama, namespace: other");
    let told = meant("", &(elsewhere + &new));
    assert!(told.starts_with("pool other/llama\n") && told.contains("there is no InferencePool `llama`"), "{told}");
}

#[test]
fn both_groups_may_have_a_pool_and_the_newer_counts() {
    let told = meant("", &(POOL.to_owned() + &alpha_pool("v1alpha2", "llama")));
    assert!(told.starts_with("pool default/llama\n10:13 `inference.networking.k8s.io` has one"), "{told}");
    let both = POOL.replace("8000", "9000") + &alpha_pool("v1alpha2", "llama") + &pod("p", "10.0.0.1", "app: vllm", "");
    assert_eq!(pods(&pool_ref("llama"), &both), ["10.0.0.1:9000"]);
}

#[test]
fn a_pool_that_is_being_deleted_is_gone_and_so_are_its_models() {
    let deleting = POOL.replace("{ name: llama }", "{ name: llama, deletionTimestamp: \"2025-01-01T00:00:00Z\" }");
    let told = meant("", &(deleting + &model("m", "null", "modelName: m, poolRef: { name: llama }")));
    assert!(!told.contains("pool default") && !told.contains("model m") && told.contains("no InferencePool"), "{told}");
}

#[test]
fn where_only_named_pools_count_the_others_are_somebody_elses() {
    let theirs = POOL.replace("name: llama", "name: theirs");
    let model = |name: &str, pool: &str| {
        format!(
            "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {{ name: {name} }}
spec: {{ modelName: same, poolRef: {{ name: {pool} }} }}
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {{ name: {name} }}
spec: {{ poolRef: {{ name: {pool} }} }}
---"
        )
    };
    let manifests = POOL.to_owned() + &theirs + &model("a", "theirs") + &model("b", "llama");
    let rest = "pools: [{ name: mine, endpoints: [{ inferencePool: { name: llama } }] }]\n";
    let only = format!("kubernetes: {{ named_pools_only: true }}\n{rest}");
    let mine = "pool mine\nmodel same Standard mine same:1\nobjective default/b mine 0\n";
    assert_eq!(meant(&only, &manifests), mine, "nor do they take a name away, or is anything said of them");
    assert!(meant(rest, &manifests).contains("pool default/theirs\nmodel same Standard default/theirs"));
    assert!(!config(&only).kubernetes.unwrap().write_status);
    assert!(config(rest).kubernetes.unwrap().write_status);
}

#[test]
fn two_rules_for_all_other_models_of_a_pool_are_one_too_many_and_one_needs_a_target() {
    let rewrite = |name: &str, created: &str, rule: &str| {
        format!(
            "
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {{ name: {name}, creationTimestamp: \"{created}\" }}
spec: {{ poolRef: {{ name: llama }}, rules: [{rule}] }}
---"
        )
    };
    let manifests = POOL.to_owned()
        + &rewrite("young", "2025-01-02T00:00:00Z", "{ targets: [{ modelRewrite: one }] }")
        + &rewrite("old", "2025-01-01T00:00:00Z", "{ matches: [{}], targets: [{ modelRewrite: two }] }")
        + &rewrite("empty", "2025-01-03T00:00:00Z", "{ targets: [] }");
    let told = meant("", &manifests);
    assert!(told.starts_with("pool default/llama\nothers default/llama two:1\n"), "{told}");
    assert!(
        told.contains(
            "all other names of pool `default/llama` are already in use by InferenceModelRewrite default/old"
        ),
        "{told}"
    );
    assert!(told.contains("it names no target"), "{told}");
}

#[test]
fn rewrites_are_splits_too_and_objectives_have_priorities() {
    let rewrite = "
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: { name: r }
spec:
  poolRef: { name: llama }
  rules:
    - matches: [{ model: { type: Exact, value: asked } }, { model: { value: also } }]
      targets: [{ modelRewrite: one, weight: 3 }, { modelRewrite: two, weight: 1 }]
    - targets: [{ modelRewrite: any }]
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: { name: batch }
spec: { priority: -1, poolRef: { name: llama } }
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: { name: chat }
spec: { poolRef: { name: llama } }
";
    let told = meant("", &(POOL.to_owned() + rewrite));
    assert_eq!(
        told,
        "pool default/llama
model asked Standard default/llama one:3 two:1
model also Standard default/llama one:3 two:1
others default/llama any:1
objective default/batch default/llama -1
objective default/chat default/llama 0
"
    );
    let Furnished { config, .. } = furnish(config(""), &read(&(POOL.to_owned() + rewrite)).world);
    assert!(config.models.iter().all(|model| model.rewrite_response_model), "as the reference hides the target");
    assert_eq!(config.models[0].criticality, Criticality::Standard);
}

#[test]
fn a_pod_counts_when_it_is_chosen_ready_and_not_leaving_and_each_port_is_an_endpoint() {
    let two = POOL.replace("[{ number: 8000 }]", "[{ number: 8000 }, { number: 8001 }]");
    let unready = pod("d", "10.0.0.4", "app: vllm", "")
        .replace("type: Ready, status: \"True\"", "type: Ready, status: \"False\"");
    let all = [
        two,
        pod("b", "10.0.0.2", "app: vllm, more: x", ""),
        pod("a", "10.0.0.1", "app: vllm", ""),
        pod("c", "10.0.0.3", "app: other", ""),
        unready,
        pod("e", "10.0.0.5", "app: vllm", ", deletionTimestamp: \"2025-01-01T00:00:00Z\""),
        pod("f", "10.0.0.6", "app: vllm", ", namespace: other"),
        pod("g", "\"\"", "app: vllm", ""),
        pod("i", "evil.example", "app: vllm", ""),
        pod("j", "127.0.0.1:80", "app: vllm", ""),
        pod("h", "\"fd00::1\"", "app: vllm", ""),
    ];
    let expected =
        ["10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000", "10.0.0.2:8001", "[fd00::1]:8000", "[fd00::1]:8001"];
    assert_eq!(pods(&pool_ref("llama"), &all.concat()), expected);
    let moved = all.concat().replace("matchLabels: { app: vllm }", "matchLabels: { app: other }");
    assert_eq!(pods(&pool_ref("llama"), &moved), ["10.0.0.3:8000", "10.0.0.3:8001"]);
    let nothing = all.concat().replace("matchLabels: { app: vllm }", "matchLabels: {}");
    assert_eq!(pods(&pool_ref("llama"), &nothing), [] as [&str; 0], "nothing is not everything");
    assert!(meant("", &nothing).contains("it selects no pods"));
}

#[test]
fn pods_can_be_chosen_without_a_pool_and_their_port_by_name() {
    let all = pod("a", "10.0.0.1", "app: vllm", "");
    let chosen = |port| Members::Pods { namespace: None, selector: [("app".into(), "vllm".into())].into(), port };
    assert_eq!(pods(&chosen(PortRef::Usual), &all), ["10.0.0.1:8080"]);
    assert_eq!(pods(&chosen(PortRef::Name("metrics".into())), &all), ["10.0.0.1:9000"]);
    assert_eq!(pods(&chosen(PortRef::Number(1)), &all), ["10.0.0.1:1"]);
    assert_eq!(pods(&chosen(PortRef::Name("none".into())), &all), [] as [&str; 0]);
}

#[test]
fn a_label_can_make_pools_of_workloads() {
    let rest = "kubernetes: { workload_label: alibabacloud.com/inference-workload }";
    let one = |name: &str, ip: &str, workload: &str| {
        pod(name, ip, &format!("alibabacloud.com/inference-workload: {workload}"), "")
    };
    let all = one("a", "10.0.0.1", "qwen") + &one("b", "10.0.0.2", "qwen") + &one("c", "10.0.0.3", "llama");
    assert_eq!(meant(rest, &all), "pool default/llama\npool default/qwen\n");
    let Furnished { config, .. } = furnish(config(rest), &read(&all).world);
    let crate::config::Endpoint::Cluster { members, .. } = &config.pools[1].endpoints[0] else { panic!() };
    assert_eq!(pods(members, &all), ["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn a_service_is_its_ready_addresses_of_one_family() {
    let slice = |name: &str, family: &str, addresses: &str| {
        format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: {name}, labels: {{ kubernetes.io/service-name: qwen, App: qwen-2-5-coder }} }}
addressType: {family}
endpoints: [{addresses}]
ports: [{{ name: http, port: 5000 }}, {{ name: \"\", port: 1 }}]
---"
        )
    };
    let four = slice(
        "four",
        "IPv4",
        "{ addresses: [10.0.0.1, 10.0.0.9], conditions: { ready: true } }, { addresses: [10.0.0.2], conditions: { ready: false } }, \
         { addresses: [10.0.0.3] }, { addresses: [10.0.0.4], conditions: { ready: true, terminating: true } }",
    );
    let six = slice("six", "IPv6", "{ addresses: [\"fd00::1\"] }");
    let named = |port| Members::Service { namespace: None, name: Some("qwen".into()), selector: Labels::new(), port };
    assert_eq!(pods(&named(PortRef::Usual), &(four.clone() + &six)), ["10.0.0.1:5000", "10.0.0.3:5000"]);
    assert_eq!(pods(&named(PortRef::Usual), &six), ["[fd00::1]:5000"]);
    assert_eq!(pods(&named(PortRef::Number(1)), &six), ["[fd00::1]:1"]);
    assert_eq!(pods(&named(PortRef::Number(2)), &six), [] as [&str; 0], "it leads nowhere");
    let selector: Labels = [("App".into(), "qwen-2-5-coder".into())].into();
    let by_label = Members::Service { namespace: None, name: None, selector, port: PortRef::Usual };
    assert_eq!(pods(&by_label, &four).len(), 2);
}

#[test]
fn triton_shows_its_metrics_on_a_port_of_its_own() {
    let all = POOL.to_owned() + &pod("a", "10.0.0.1", "app: vllm, llm-d.ai/engine-type: triton-tensorrt-llm", "");
    let found = targets(&read(&all).world, &pool_ref("llama"));
    assert_eq!(found[0].metrics_url.as_deref(), Some("http://10.0.0.1:8002/metrics"));
}

#[test]
fn a_list_and_json_and_kinds_of_others_are_read_and_passed_over() {
    let json = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"inference.networking.k8s.io/v1","kind":"InferencePool","metadata":{"name":"p","namespace":"n"},
         "spec":{"selector":{"matchLabels":{"a":"b"}},"targetPorts":[{"number":1}]}},
        {"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"}}]}"#;
    let manifests = read(json);
    assert_eq!((manifests.objects(), manifests.passed_over), (1, 1));
    assert!(manifests.world.pool(&ObjectName::new("n", "p")).is_some());
    let value =
        serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"targetPorts": [{"number": 7}]}});
    let (name, object) = Object::from_json(Kind::Pool, value).unwrap();
    assert_eq!(name.to_string(), "n/p");
    assert!(matches!(object.body, Body::Pool(PoolBody { ref ports, .. }) if ports == &[7]));
}

#[test]
fn a_slip_in_a_kind_and_a_pool_that_no_pod_will_ever_have_are_told() {
    let slip =
        model("m", "null", "modelName: m, poolRef: { name: llama }").replace("InferenceModel", "InferenceModell");
    let told = |more: &str| {
        let manifests = read(&(POOL.to_owned() + &slip + more));
        let Furnished { config, notes } = furnish(config(""), &manifests.world);
        let notes = [notes, manifests.without_pods(&config)].concat();
        manifests.problems(&notes).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let alone = told("");
    assert!(alone.contains("has no `InferenceModell`") && alone.contains("did you mean `InferenceModel`?"), "{alone}");
    assert!(alone.contains("no pod here is one of pool `default/llama`"), "{alone}");
    let import = "\napiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: InferencePoolImport\n---";
    let with_pod = told(&(pod("a", "10.0.0.1", "app: vllm", "") + import));
    assert_eq!(with_pod.matches("warning").count(), 1, "{with_pod}");
}

#[test]
fn what_cannot_be_read_is_told_with_its_line_and_what_to_do() {
    for (text, told) in [
        (POOL.replace("number: 8000", "number: http"), "m.yaml:7:27: error: the text `http` does not fit here"),
        (POOL.replace("targetPorts", "targetPort"), "m.yaml:7:3: error: `targetPort` is not a field here"),
        (POOL.replace("/v1", "/v2"), "m.yaml:2:13: error: the version `v2` of InferencePool is not understood"),
        (
            POOL.replace(".k8s.io", ".example"),
            "m.yaml:2:13: error: there is no InferencePool in `inference.networking.example`",
        ),
        (POOL.replace("kind: InferencePool\n", ""), "m.yaml:2:1: error: this is no Kubernetes object"),
        (POOL.replace("name: llama", "nom: llama"), "`name` is missing"),
        (POOL.to_owned() + POOL, "m.yaml:12:19: error: there are two InferencePools default/llama"),
        (model("m", "null", "criticality: High, modelName: m"), "m.yaml:5:22: error: `High` is not known here"),
        ("a: [".to_owned(), "error: this is not valid YAML"),
    ] {
        let report = refused(&text);
        assert!(report.contains(told), "{told}\nin\n{report}");
    }
}

#[test]
fn a_world_that_was_not_heard_whole_brings_nothing_and_takes_nothing_away() {
    let mut world = read(POOL).world;
    world.complete = false;
    let Furnished { config, notes } = furnish(config("kubernetes: {}"), &world);
    assert!(config.pools.is_empty() && notes.is_empty());
}

#[test]
fn what_another_world_changes_is_told_by_name() {
    let split = |weight: u32| {
        let spec = format!("modelName: m, poolRef: {{ name: llama }}, targetModels: [{{ name: a, weight: {weight} }}]");
        furnish(config(""), &read(&(POOL.to_owned() + &model("m", "null", &spec))).world).config
    };
    let nothing = config("");
    assert_eq!(
        differences(&nothing, &split(1)),
        ["pool default/llama: added", "model m: added pool default/llama, Standard, a 1"]
    );
    assert_eq!(
        differences(&split(1), &split(2)),
        ["model m: pool default/llama, Standard, a 1 -> pool default/llama, Standard, a 2"]
    );
    assert_eq!(differences(&split(1), &split(1)), [] as [&str; 0]);
    assert_eq!(differences(&split(1), &nothing).len(), 2);
}

#[test]
fn a_name_is_a_pools_own_where_a_listener_belongs_to_the_pool() {
    let two = POOL.to_owned() + &POOL.replace("llama", "qwen");
    let old =
        model("old", "2025-01-01T00:00:00Z", "modelName: m, poolRef: { name: llama }, targetModels: [{ name: a }]");
    let new =
        model("new", "2025-01-02T00:00:00Z", "modelName: m, poolRef: { name: qwen }, targetModels: [{ name: b }]");
    let third = model("third", "2025-01-03T00:00:00Z", "modelName: m, poolRef: { name: qwen }");
    let manifests = read(&(two + &old + &new + &third));
    let listeners = |texts: &str| {
        let given = Given { manifests: Some("manifests".into()) };
        let text = format!("listeners: [{texts}]");
        load_given("t.yaml", text.as_bytes(), &given).unwrap_or_else(|it| panic!("{it}")).0
    };
    let door = |pool: &str, port: u16| format!("{{ name: {pool}, address: 127.0.0.1:{port}, pool: default/{pool} }}");
    let both = format!("{}, {}", door("llama", 1), door("qwen", 2));
    let meant = |listeners: Config| {
        let Furnished { config, notes } = furnish(listeners, &manifests.world);
        let names =
            |models: &[Model]| models.iter().map(|it| format!("{} of {}", it.name, it.pool)).collect::<Vec<_>>();
        let notes = notes.iter().map(|note| (note.name.name.to_string(), note.weight)).collect::<Vec<_>>();
        (names(&config.models), names(&config.pool_models), notes)
    };
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    // In one pool, a name has one owner all the same.
    let third = ("third".to_owned(), Weight::NameInUse);
    let (m, other) = (owned(&["m of default/llama"]), owned(&["m of default/qwen"]));
    assert_eq!(meant(listeners(&both)), (m.clone(), other.clone(), vec![third.clone()]));
    // Whoever asks at a listener of all pools gets the older one's, and the other's owner is told of it.
    let and_all = format!("{both}, {{ name: all, address: 127.0.0.1:3 }}");
    let doubt = ("new".to_owned(), Weight::Doubt);
    assert_eq!(meant(listeners(&and_all)), (m.clone(), other, vec![doubt, third.clone()]));
    let one = format!("{}, {{ name: all, address: 127.0.0.1:3 }}", door("llama", 1));
    let new = ("new".to_owned(), Weight::NameInUse);
    assert_eq!(meant(listeners(&one)), (m, Vec::new(), vec![new, third]));
}
