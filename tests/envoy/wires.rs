//! What else HTTP has, and how the wires between Envoy and its picker fare: trailers, IPv6, large bodies whole, many
//! streams on one connection, another certificate meanwhile, questions for health.

use std::{
    convert::Infallible,
    fs,
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use serde_json::json;
use tidegate::{
    sim::{Pod, PodConfig},
    tasks::Tasks,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{
    harness::{Client, RawPod, SimPod, chat, chat_stream, whole_json, within},
    process::{Envoy, deployed, only_among, program},
    scene::{Different, PLAIN, Scene, picker},
};

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// A body in these pieces, with a trailer behind it.
fn with_trailer(pieces: &[&str], trailer: &'static str) -> Frames {
    let mut frames: Vec<_> =
        pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece.as_bytes())))).collect();
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static(trailer), HeaderValue::from_static("yes"))]);
    frames.push(Ok(Frame::trailers(trailers)));
    StreamBody::new(stream::iter(frames))
}

/// A pod that speaks HTTP/2 and answers with the body and the trailer that it was sent.
async fn echo(tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, spawner) = (listener.local_addr().unwrap(), tasks.clone());
    tasks.spawn_until_stop(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = service_fn(async |request: Request<Incoming>| {
                let body = request.into_body().collect().await.unwrap();
                let trailed = body.trailers().is_some_and(|it| it.contains_key("x-asked"));
                let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
                let answer = Response::builder().header("content-type", "application/json");
                let text = json!({"asked": text, "trailed": trailed}).to_string();
                Ok::<_, Infallible>(answer.body(with_trailer(&[&text], "x-answered")).unwrap())
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let connection = http2.serve_connection(TokioIo::new(stream), serve);
            spawner.spawn_until_stop(async { _ = connection.await });
        }
    });
    addr
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let Some(program) = program() else { return };
    let tasks = Tasks::new();
    let pod = echo(&tasks).await;
    let witness = RawPod::answering(whole_json("{}")).await;
    let endpoint = format!("{{ url: \"http://{pod}\", metrics_url: \"http://{}/metrics\" }}", witness.addr);
    let gateway = picker(vec![endpoint], "secure: true", "models: [{ modelName: m, poolRef: pods }]").await;
    gateway.sees_all_pods().await;
    for mode in ["FULL_DUPLEX_STREAMED", "BUFFERED"] {
        let config = deployed("original-dst", gateway.addr, &[])
            .replace("request_body_mode: FULL_DUPLEX_STREAMED", &format!("request_body_mode: {mode}"))
            .replace("{ http_protocol_options: {} }", "{ http2_protocol_options: {} }");
        let envoy = Envoy::start(&program, &config).await;
        let stream = TcpStream::connect(envoy.addr).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tasks.spawn_until_stop(async { _ = connection.await });
        let body = with_trailer(&["{\"model\":\"m\",", "\"messages\":[]}"], "x-asked");
        let request = Request::post(format!("http://{}/v1/chat/completions", envoy.addr)).body(body).unwrap();
        let answer = within("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), 200, "{mode}");
        let body = within("its body", answer.into_body().collect()).await.unwrap();
        assert!(body.trailers().is_some_and(|it| it.contains_key("x-answered")), "{mode}");
        let told: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(told, json!({"asked": "{\"model\":\"m\",\"messages\":[]}", "trailed": true}), "{mode}");
        gateway.quiet().await;
    }
    tasks.stop();
}

#[tokio::test]
async fn pods_may_have_ipv6_addresses_and_subsets_name_them() {
    let Some(program) = program() else { return };
    let tasks = Tasks::new();
    let mut pods = Vec::new();
    for _ in 0..2 {
        pods.push(
            Pod::start(PodConfig::new("m").time_scale(0.1), (Ipv6Addr::LOCALHOST, 0).into(), &tasks).await.unwrap(),
        );
    }
    let endpoints = pods.iter().map(|pod| format!("{{ url: \"http://{}\" }}", pod.addr())).collect();
    let gateway = picker(endpoints, "secure: true", "").await;
    gateway.sees_all_pods().await;
    let config = deployed("original-dst", gateway.addr, &[]);
    let asked = || pods.iter().map(|pod| pod.state().last.len()).collect::<Vec<_>>();
    let envoy = Envoy::start(&program, &config).await;
    for _ in 0..4 {
        assert_eq!(chat("x", 1).send(envoy.addr).await.status(), 200);
    }
    assert_eq!(asked().iter().sum::<usize>(), 4);
    // Written as an address and a port, and as an address among others, without brackets.
    for (allowed, status) in
        [(format!("[{}]:{}", Ipv6Addr::LOCALHOST, pods[1].addr().port()), 200), ("::2".to_owned(), 503)]
    {
        let before = asked();
        let envoy = Envoy::start(&program, &only_among(&config, &allowed)).await;
        for _ in 0..4 {
            assert_eq!(chat("x", 1).send(envoy.addr).await.status(), status, "{allowed}");
        }
        let served = if status == 200 { 4 } else { 0 };
        assert_eq!(asked(), [before[0], before[1] + served], "{allowed}");
    }
    tasks.stop();
}

#[tokio::test]
async fn five_megabytes_arrive_byte_for_byte_in_pieces_or_whole() {
    let Some(program) = program() else { return };
    let rest = "limits: { body: 8MiB }\nmodels: [{ modelName: m, poolRef: pods, targetModels: [{ name: other }] }]";
    let tasks = Tasks::new();
    let pod = echo(&tasks).await;
    let witness = RawPod::answering(whole_json("{}")).await;
    let endpoint = format!("{{ url: \"http://{pod}\", metrics_url: \"http://{}/metrics\" }}", witness.addr);
    for (name, keys) in [("original-dst", "fallbacks: 0"), ("override-host", "fallbacks: 1")] {
        let gateway = picker(vec![endpoint.clone()], keys, rest).await;
        gateway.sees_all_pods().await;
        let config = deployed(name, gateway.addr, &[pod]);
        let config = config.replace("{ http_protocol_options: {} }", "{ http2_protocol_options: {} }");
        let envoy = Envoy::start(&program, &config).await;
        let prompt = (0..700_000_u32).map(|n| format!("{n:07} ")).collect::<Vec<_>>().concat();
        let told = chat(&prompt, 1).send(envoy.addr).await.json().await;
        let asked: serde_json::Value = serde_json::from_str(told["asked"].as_str().unwrap()).unwrap();
        assert_eq!(asked["model"], "other", "{name}");
        assert!(asked["messages"][0]["content"] == *prompt, "{name}");
        gateway.quiet().await;
    }
    tasks.stop();
}

#[tokio::test]
async fn five_hundred_streams_share_one_connection_to_the_picker() {
    const MANY: usize = 500;
    let envoy = &[("max_concurrent_streams: 100", "max_concurrent_streams: 1000")];
    let Some(scene) = Scene::with(4, Different { envoy, ..PLAIN }).await else { return };
    scene.pods.iter().for_each(|pod| pod.faults().change(|faults| faults.slow = 50.0));
    let client = Client::h2(scene.envoy.addr).await;
    let begun: Vec<_> = (0..MANY).map(|n| client.begin_stream(chat_stream(&format!("{n}"), 20))).collect();
    let mut replies = Vec::new();
    for reply in begun {
        let mut reply = within("a head", reply).await.unwrap();
        assert_eq!(reply.status(), 200);
        reply.piece().await.unwrap().unwrap();
        replies.push(reply);
    }
    let open = || scene.gateway.pods().iter().map(|pod| pod.ledger.in_flight()).sum::<u64>();
    assert_eq!(open(), MANY as u64, "all of them are under way");
    let places: Vec<_> = scene.gateway.pods().iter().map(|pod| pod.ledger.in_flight()).collect();
    assert!(places.iter().all(|place| (100..=150).contains(place)), "and go by load: {places:?}");
    assert_eq!(scene.envoy.counted("cluster.picker.upstream_cx_active").await, 1);
    scene.pods.iter().for_each(|pod| pod.faults().change(|faults| faults.slow = 1.0));
    for reply in replies {
        assert!(reply.text().await.ends_with("data: [DONE]\n\n"));
    }
    scene.quiet().await;
    assert_eq!(scene.envoy.counted("ext_proc.streams_failed").await, 0);
    assert_eq!(scene.envoy.counted("cluster.picker.upstream_cx_total").await, 1);
}

/// Puts another certificate into `folder`, and says which.
fn new_certificate(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["picker".to_owned()]).unwrap();
    fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// Whether a door shows this certificate.
async fn shows(certificate: &CertificateDer<'static>, door: SocketAddr) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(door).await.unwrap();
    let handshake = TlsConnector::from(Arc::new(config)).connect("picker".try_into().unwrap(), stream);
    within("a handshake", handshake).await.is_ok()
}

#[tokio::test]
async fn another_certificate_is_for_those_who_come_and_disturbs_nobody_who_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let first = new_certificate(folder.path());
    let keys = format!("cert_path: {:?}", folder.path().display());
    let Some(scene) = Scene::with(1, Different { keys: &keys, ..PLAIN }).await else { return };
    scene.pods[0].faults().change(|faults| faults.slow = 50.0);
    let mut under_way = scene.send(chat_stream("x", 30)).await;
    under_way.piece().await.unwrap().unwrap();
    assert!(shows(&first, scene.gateway.addr).await);
    let second = new_certificate(folder.path());
    within("another certificate", async { while !shows(&second, scene.gateway.addr).await {} }).await;
    scene.pods[0].faults().change(|faults| faults.slow = 1.0);
    assert!(under_way.text().await.ends_with("data: [DONE]\n\n"));
    assert_eq!(scene.send(chat("x", 1)).await.status(), 200);
    assert_eq!(scene.envoy.counted("cluster.picker.upstream_cx_total").await, 1, "over the same connection");
}

#[tokio::test]
async fn envoy_asks_the_picker_for_its_health_before_it_asks_for_pods() {
    let Some(scene) = Scene::with(1, PLAIN).await else { return };
    let healthy = async {
        while scene.envoy.counted("cluster.picker.health_check.success").await == 0 {
            tokio::task::yield_now().await;
        }
    };
    within("a healthy picker", healthy).await;
    assert_eq!(scene.envoy.counted("cluster.picker.membership_healthy").await, 1);
    assert_eq!(scene.envoy.counted("cluster.picker.health_check.failure").await, 0);
}
