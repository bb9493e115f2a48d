//! GET, under a deadline and a cap, and in one word why not.

use std::{error::Error as _, io, time::Duration};

use reqwest::{
    StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderValue},
    redirect::Policy,
};

use super::report::Failure;
use crate::config::Bytes;

/// Connections kept idle: below the 5 s after which uvicorn closes them, above the 2.2 s between two reads of an idle
/// pod.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// A page, its models and its health may be asked at the same time, rarely: one connection is enough to keep.
const IDLE_CONNECTIONS: usize = 1;

/// One pool's client.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: reqwest::Client,
}

/// What to ask for.
pub(super) struct Ask<'a> {
    pub(super) url: &'a str,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) timeout: Duration,
    pub(super) max: Bytes,
}

impl Fetcher {
    pub(super) fn new(tls: rustls::ClientConfig, connect_timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .build()?;
        Ok(Self { client })
    }

    /// The body of a 200 answer.
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Vec<u8>, Failure> {
        let mut request = self.client.get(ask.url).timeout(ask.timeout).header(ACCEPT, "*/*");
        if let Some(authorization) = ask.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(|error| classify(&error))?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Http(response.status().as_u16()));
        }
        let max = usize::try_from(ask.max.0).unwrap_or(usize::MAX);
        let told = response.content_length().map_or(0, |it| usize::try_from(it).unwrap_or(usize::MAX));
        if told > max {
            return Err(Failure::TooLarge);
        }
        let mut body = Vec::with_capacity(told);
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
            if body.len().saturating_add(chunk.len()) > max {
                return Err(Failure::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn classify(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::Timeout
    } else if error.is_connect() {
        if nobody_listens(error) { Failure::Refused } else { Failure::Connect }
    } else {
        Failure::Body
    }
}

/// Whether the operating system said that there is nobody, or no way to them. A reset counts: a port that is being
/// closed answers so.
fn nobody_listens(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(it) = cause {
        if let Some(io) = it.downcast_ref::<io::Error>() {
            use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
            if matches!(io.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable) {
                return true;
            }
        }
        cause = it.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::tasks::Tasks;

    fn client_tls(roots: RootCertStore) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    async fn get_with(tls: rustls::ClientConfig, url: &str, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let fetcher = Fetcher::new(tls, timeout).unwrap();
        let ask = Ask { url, authorization: Some(HeaderValue::from_static("Bearer t")), timeout, max: Bytes(10) };
        fetcher.get(ask).await
    }

    /// Asks a server that sends `answer` and then hangs up, or stays silent for ever.
    async fn get(answer: &'static str, hang_up: bool) -> (Result<Vec<u8>, Failure>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let tasks = Tasks::new();
        let served = tasks.spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = socket.read(&mut request).await.unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
            if !hang_up {
                // The client goes away at its deadline.
                while let Ok(1..) = socket.read(&mut [0; 64]).await {}
            }
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let timeout = if hang_up { Duration::from_secs(10) } else { Duration::from_millis(200) };
        let answer = get_with(client_tls(RootCertStore::empty()), &url, timeout).await;
        (answer, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_body_comes_whole_and_the_token_went_out() {
        let (answer, request) = get("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", true).await;
        assert_eq!(answer.unwrap(), b"hello");
        assert!(request.contains("authorization: Bearer t\r\n"), "{request}");
    }

    #[tokio::test]
    async fn each_failure_has_its_word() {
        let failed = |answer, hang_up| async move { get(answer, hang_up).await.0.unwrap_err() };
        let found = "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(failed(found, true).await, Failure::Http(302));
        let told = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world";
        assert_eq!(failed(told, true).await, Failure::TooLarge);
        let untold = "HTTP/1.1 200 OK\r\n\r\nhello world, and no length told";
        assert_eq!(failed(untold, true).await, Failure::TooLarge);
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello";
        assert_eq!(failed(cut, true).await, Failure::Body);
        assert_eq!(failed("garbage\r\n\r\n", true).await, Failure::Body);
        assert_eq!(failed("", false).await, Failure::Timeout);
        let stuck = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello";
        assert_eq!(failed(stuck, false).await, Failure::Timeout);
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_a_name_that_nobody_knows() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let get = |url: String| async move {
            get_with(client_tls(RootCertStore::empty()), &url, Duration::from_secs(10)).await
        };
        assert_eq!(get(url).await, Err(Failure::Refused));
        let unknown = get("http://no-such-host.invalid/".into()).await.unwrap_err();
        assert!(matches!(unknown, Failure::Connect | Failure::Timeout), "{unknown}");
    }

    #[tokio::test]
    async fn https_is_spoken_with_the_pool_s_authority_and_with_no_other() {
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let certificate = signed.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let tasks = Tasks::new();
        tasks.spawn_until_stop(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    continue;
                };
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let patience = Duration::from_secs(10);
        assert_eq!(get_with(client_tls(roots), &url, patience).await.unwrap(), b"ok");
        let stranger = get_with(client_tls(RootCertStore::empty()), &url, patience).await;
        assert_eq!(stranger, Err(Failure::Connect));
        tasks.stop();
    }
}
