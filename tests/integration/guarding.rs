//! The operator's listener: who may look, and what a browser cannot be made to ask.

use std::fs;

use crate::harness::{Call, Gateway, SimPod};

async fn asked(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> u16 {
    let call = headers.iter().fold(Call::get(path), |call, (name, value)| call.header(name, value));
    call.send(gateway.admin()).await.status()
}

#[tokio::test]
async fn with_a_token_only_probes_are_open_and_a_rotated_one_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let [first, second] = ["first", "second"].map(|word| format!("{word}-0123456789abcdef0123456789abcdef"));
    let bearer = |token: &str| format!("Bearer {token}");
    fs::write(&file, format!("{first}\n")).unwrap();
    let pod = SimPod::start().await;
    let text = format!(
        "listeners: [{{ name: main, address: 127.0.0.1:0 }}]\n\
         pools: [{{ name: pods, endpoints: [{}] }}]\n\
         admin: {{ address: 0.0.0.0:0, token_file: {file:?} }}\n\
         probes: {{ address: 127.0.0.1:0 }}\n",
        pod.endpoint()
    );
    let gateway = Gateway::from(&text).await;
    for path in ["/healthz", "/readyz"] {
        assert_ne!(asked(&gateway, path, &[]).await, 401, "{path}");
    }
    for path in ["/", "/metrics", "/debug/fleet", "/debug/config", "/debug/nothing"] {
        let refused = Call::get(path).send(gateway.admin()).await;
        assert_eq!((refused.status(), refused.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        assert_eq!(asked(&gateway, path, &[("authorization", "Bearer wrong")]).await, 401, "{path}");
        assert_ne!(asked(&gateway, path, &[("authorization", &bearer(&first))]).await, 401, "{path}");
    }
    // Prometheus has a door of its own, without one.
    let probes = gateway.running.probes.unwrap();
    assert_eq!(Call::get("/metrics").send(probes).await.status(), 200);
    assert_eq!(Call::get("/debug/fleet").send(probes).await.status(), 404);
    fs::write(&file, format!("{second}\n")).unwrap();
    crate::harness::within("the second token to be taken over", async {
        while asked(&gateway, "/", &[("authorization", &bearer(&second))]).await != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(asked(&gateway, "/", &[("authorization", &bearer(&first))]).await, 401);
}

#[tokio::test]
async fn a_page_in_an_operators_browser_learns_nothing() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let own = format!("http://{}", gateway.admin());
    assert_eq!(asked(&gateway, "/debug/fleet", &[("origin", &own), ("sec-fetch-site", "same-origin")]).await, 200);
    assert_eq!(asked(&gateway, "/debug/fleet", &[("origin", "http://evil.example")]).await, 403);
    assert_eq!(asked(&gateway, "/metrics", &[("sec-fetch-site", "cross-site")]).await, 403);
    // Its owner has pointed the name of the page's own server at this address.
    let mut raw = crate::harness::RawClient::connect(gateway.admin()).await;
    raw.say("GET /debug/fleet HTTP/1.1\r\nhost: evil.example:9090\r\n\r\n").await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 421"), "{head}");
}
