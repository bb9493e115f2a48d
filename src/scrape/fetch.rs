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
        let told = response
            .content_length()
            .map_or(0, |it| usize::try_from(it).unwrap_or(usize::MAX));
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
        if nobody_listens(error) {
            Failure::Refused
        } else {
            Failure::Connect
        }
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
            if matches!(
                io.kind(),
                ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable
            ) {
                return true;
            }
        }
        cause = it.source();
    }
    false
}
