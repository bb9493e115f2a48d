//! Pods behind TLS: trusted by the authority that the pool names, refused otherwise, their metrics read the same way.

use std::{fs, net::Ipv4Addr, path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tidegate::tasks::Tasks;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Gateway, SimPod, chat, chat_stream};

/// A simulated pod behind a TLS front on `localhost`, and the certificate that vouches for it.
struct Front {
    endpoint: String,
    authority: PathBuf,
    _folder: tempfile::TempDir,
    tasks: Tasks,
}

impl Front {
    async fn of(pod: &SimPod) -> Self {
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("ca.pem");
        fs::write(&authority, signed.cert.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("{{ url: \"https://localhost:{}\" }}", listener.local_addr().unwrap().port());
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
        Self { endpoint, authority, _folder: folder, tasks }
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
