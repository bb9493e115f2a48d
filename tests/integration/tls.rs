//! Pods behind TLS: trusted by the authority that the pool names, refused otherwise, their metrics read the same way.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tidegate::tasks::Tasks;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{
    Gateway, SimPod, chat, chat_stream,
    papers::{Authority, Paper, Secret},
    within,
};

/// So that every request makes a connection of its own.
const KEEP_NONE: &str = "timeouts: { pool_idle: 0s }";

/// Waits until a request is answered so.
async fn until_answered(gateway: &Gateway, status: u16) {
    let turns = async {
        while chat("hi", 1).send(gateway.addr).await.status() != status {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("another answer", turns).await;
}

/// A simulated pod behind a TLS front on `localhost`, and the certificate that vouches for it.
struct Front {
    endpoint: String,
    address: SocketAddr,
    authority: PathBuf,
    _folder: tempfile::TempDir,
    tasks: Tasks,
}

impl Front {
    async fn of(pod: &SimPod) -> Self {
        let authority = Authority::new("pods");
        Self::showing(pod, &authority, &authority.issue(&["localhost"]), None).await
    }

    /// One that shows `paper`, and asks for a certificate of `asked` if it is given.
    async fn showing(pod: &SimPod, authority: &Authority, paper: &Paper, asked: Option<&Authority>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority.written(folder.path());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.unwrap();
        let builder = match asked {
            None => builder.with_no_client_auth(),
            Some(asked) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(asked.pem.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(paper.key.as_bytes()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![paper.der()], key).unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = format!("{{ url: \"https://localhost:{}\" }}", address.port());
        let (tasks, behind) = (Tasks::new(), pod.addr());
        let spawner = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                spawner.spawn_until_stop(async move {
                    // A client that does not trust the certificate hangs up here.
                    let Ok(mut front) = acceptor.accept(stream).await else { return };
                    let mut back = TcpStream::connect(behind).await.unwrap();
                    _ = copy_bidirectional(&mut front, &mut back).await;
                });
            }
        });
        Self { endpoint, address, authority, _folder: folder, tasks }
    }

    /// The same by its address.
    fn by_address(&self) -> String {
        format!("{{ url: \"https://{}\" }}", self.address)
    }

    fn ca_file(&self) -> String {
        format!("ca_file: \"{}\"", self.authority.display())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

#[tokio::test]
async fn a_pod_behind_tls_is_read_and_used() {
    let pod = SimPod::start().await;
    let front = Front::of(&pod).await;
    let token = front.authority.with_file_name("token");
    fs::write(&token, "secret").unwrap();
    let gateway = Gateway::over([front.endpoint.clone()])
        .pool(&format!("ca_file: \"{}\"", front.authority.display()))
        .pool(&format!("token_file: \"{}\"", token.display()))
        .start()
        .await;
    gateway.sees_all_pods().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    assert!(chat_stream("hi", 5).send(gateway.addr).await.text().await.ends_with("data: [DONE]\n\n"));
    let seen = pod.state().last;
    assert_eq!(seen[0].header("authorization"), Some("Bearer secret"));
    assert_eq!(seen[0].header("host"), Some(front.endpoint[16..].trim_end_matches("\" }")));
    gateway.quiet().await;
}

#[tokio::test]
async fn a_pod_whose_certificate_nobody_vouches_for_is_not_spoken_to() {
    let pod = SimPod::start().await;
    let front = Front::of(&pod).await;
    let gateway = Gateway::over([front.endpoint.clone()]).start().await;
    let error = chat("hi", 1).send(gateway.addr).await.error(503).await;
    assert!(!error.to_string().contains("localhost"), "{error}");
    assert_eq!(pod.asked(), 0);
    assert_eq!(gateway.counted("tidegate_attempt_failures_total", &["tls_failed"]).await, 1.0);
}

#[tokio::test]
async fn a_pod_that_asks_who_calls_is_shown_the_pools_certificate_also_a_new_one() {
    let pod = SimPod::start().await;
    let (authority, callers) = (Authority::new("pods"), Authority::new("callers"));
    let front = Front::showing(&pod, &authority, &authority.issue(&["localhost"]), Some(&callers)).await;
    let nothing = Gateway::over([front.endpoint.clone()]).pool(&front.ca_file()).start().await;
    // In TLS 1.3 the pod says no after the client has begun, and has read nothing of what it asks.
    let refused = chat("hi", 1).send(nothing.addr).await;
    assert_eq!((refused.status(), refused.header("x-tidegate-refused")), (503, Some("upstream_unreachable")));
    assert_eq!(nothing.counted("tidegate_attempt_failures_total", &["tls_failed"]).await, 1.0);
    assert_eq!(pod.asked(), 0);

    let mut secret = Secret::of(&Authority::new("strangers").issue(&["gateway"]));
    let gateway = Gateway::over([front.endpoint.clone()])
        .pool(&front.ca_file())
        .pool(&format!("client_certificate: {{ folder: \"{}\" }}", secret.path().display()))
        .yaml(KEEP_NONE)
        .start()
        .await;
    assert!(chat("hi", 1).send(gateway.addr).await.status() > 500);
    secret.swap(&callers.issue(&["gateway"]));
    until_answered(&gateway, 200).await;
    gateway.sees_all_pods().await;
    assert!(gateway.counted("tidegate_certificate_not_after_seconds", &["listener=\"\"", "tls.crt"]).await > 1.7e9);
    gateway.quiet().await;
}

#[tokio::test]
async fn pods_known_by_address_are_judged_by_the_name_that_their_pool_gives() {
    let pod = SimPod::start().await;
    let authority = Authority::new("pods");
    let front = Front::showing(&pod, &authority, &authority.issue(&["vllm.inference.svc"]), None).await;
    let named = |name: &str| Gateway::over([front.by_address()]).pool(&front.ca_file()).pool(name).start();
    let gateway = named("server_name: vllm.inference.svc").await;
    gateway.sees_all_pods().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    let gateway = named("server_name: other.inference.svc").await;
    chat("hi", 1).send(gateway.addr).await.error(503).await;
    let gateway = named("forward_authorization: false").await;
    chat("hi", 1).send(gateway.addr).await.error(503).await;
}

#[tokio::test]
async fn an_authority_that_is_replaced_counts_no_more_and_remembered_sessions_do_not_help() {
    let pod = SimPod::start().await;
    let authority = Authority::new("pods");
    let front = Front::showing(&pod, &authority, &authority.issue(&["localhost"]), None).await;
    let gateway = Gateway::over([front.endpoint.clone()]).pool(&front.ca_file()).yaml(KEEP_NONE).start().await;
    for _ in 0..3 {
        assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    }
    fs::write(&front.authority, Authority::new("others").pem).unwrap();
    until_answered(&gateway, 503).await;
    fs::write(&front.authority, "no certificate").unwrap();
    fs::write(&front.authority, &authority.pem).unwrap();
    until_answered(&gateway, 200).await;
    gateway.quiet().await;
}
