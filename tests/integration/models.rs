//! The list of models: what the configuration names and what pods report, with an adapter's base.

use serde_json::{Value, json};

use crate::harness::{Call, Gateway, SimPod, chat, within};

fn card<'a>(list: &'a Value, id: &str) -> Option<&'a Value> {
    list["data"].as_array().unwrap().iter().find(|card| card["id"] == id)
}

async fn listed(gateway: &Gateway, id: &str) -> Value {
    let found = async {
        loop {
            let list = Call::get("/v1/models").send(gateway.addr).await.json().await;
            if card(&list, id).is_some() {
                return list;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within("the model in the list", found).await
}

#[tokio::test]
async fn the_list_has_what_is_configured_and_what_pods_report() {
    let pods = [SimPod::start().await, SimPod::start().await];
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint))
        .models(&[
            "{ modelName: llama/chat, poolRef: pods, targetModels: [{ name: m }] }",
            "{ modelName: m, poolRef: pods }",
        ])
        .start()
        .await;
    let list = listed(&gateway, "a").await;
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"].as_array().unwrap().len(), 4, "{list}");
    assert_eq!(card(&list, "a").unwrap()["parent"], "m");
    for id in ["llama/chat", "m", "a", "b"] {
        assert_eq!(card(&list, id).unwrap()["object"], "model");
    }
    for path in ["/v1/models/llama/chat", "/v1/models/llama%2Fchat"] {
        let one = Call::get(path).send(gateway.addr).await.json().await;
        assert_eq!((&one["id"], &one["object"]), (&json!("llama/chat"), &json!("model")));
    }
    let error = Call::get("/v1/models/gpt-9").send(gateway.addr).await.error(404).await;
    assert_eq!(error["code"], "model_not_found");
}

#[tokio::test]
async fn a_model_that_only_pods_report_can_be_asked_for_unless_forbidden() {
    let pod = SimPod::start().await;
    let ask = Call::post("/v1/completions", r#"{"model":"b","prompt":"hi","max_tokens":2}"#);
    let open = Gateway::over([pod.endpoint()]).start().await;
    listed(&open, "b").await;
    let reply = ask.clone().send(open.addr).await;
    assert_eq!((reply.status(), &reply.json().await["model"]), (200, &json!("b")));
    let strict = Gateway::over([pod.endpoint()]).yaml("api: { serve_reported_models: false }").start().await;
    strict.sees_all_pods().await;
    ask.send(strict.addr).await.error(404).await;
    let list = Call::get("/v1/models").send(strict.addr).await.json().await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn a_listener_may_serve_fewer_models_and_from_another_pool() {
    let (old, new) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([new.endpoint()])
        .listener("{ name: classic, address: \"127.0.0.1:0\", models: [{ modelName: m, poolRef: old }] }")
        .models(&["{ modelName: m, poolRef: pods }", "{ modelName: a, poolRef: pods }"])
        .yaml("api: { serve_reported_models: false }")
        .other_pool("old", &old.endpoint())
        .start()
        .await;
    let classic = gateway.running.listeners[1].1;
    chat("hi", 1).send(classic).await.json().await;
    assert_eq!((old.asked(), new.asked()), (1, 0));
    chat("hi", 1).send(gateway.addr).await.json().await;
    assert_eq!((old.asked(), new.asked()), (1, 1));
    let a = Call::post("/v1/completions", r#"{"model":"a","prompt":"hi","max_tokens":1}"#);
    a.clone().send(classic).await.error(404).await;
    assert_eq!(a.send(gateway.addr).await.status(), 200);
}
