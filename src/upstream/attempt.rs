//! One attempt at one pod, timed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    Connector, Failure, FailureKind, Fault, PodBody, body::Home, connect::Live, credentials::Credentials,
    idle::IdleConnections,
};
use crate::{
    clock,
    config::Timeouts,
    fleet::{Pod, PodId},
};

/// A kept connection that dies within this time of the write lost the race against the pod's idle timer: the reset
/// takes one round trip, and 250 ms covers pods on another continent. Later it is the pod that died.
const RACE_WINDOW: Duration = Duration::from_millis(250);

/// A connection whose last answer just ended becomes ready within a turn of its task; this is for a starved runtime.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// What is carried to a pod. Cheap to clone: a retry carries the same again.
#[derive(Clone, Debug)]
pub struct Carry {
    /// Method.
    pub method: http::Method,
    /// Canonical path and query, without the pod's base path.
    pub path: Arc<str>,
    /// Headers as the pod shall see them, without `host`, `content-length` and its own credentials.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A pod's answer: its head, and its body as it comes.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: response::Parts,
    /// The body.
    pub body: PodBody,
    /// When the request was handed to the connection.
    pub sent: Instant,
}

/// Carries requests to pods.
#[derive(Debug)]
pub struct Upstream {
    connector: Connector,
    idle: Arc<IdleConnections>,
    credentials: Credentials,
}

impl Upstream {
    /// No connections yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, idle: Arc::default(), credentials: Credentials::default() }
    }

    /// One attempt: a kept connection or a new one, the request, and the head of the answer. Dropping the future
    /// closes the connection, so that the pod stops working for nobody.
    ///
    /// # Errors
    /// A [`Failure`] if no head of an answer came.
    pub async fn attempt(&self, pod: &Pod, carry: Carry, timeouts: &Timeouts) -> Result<Answer, Failure> {
        let request = self.request(pod, carry).await?;
        let (mut live, reused) = match self.idle.take(&pod.id, clock::now(), timeouts.pool_idle) {
            Some(live) => (live, true),
            None => (self.connector.connect(pod, timeouts.connect).await?, false),
        };
        let sent = clock::now();
        let answer = timeout(timeouts.first_byte, live.sender.try_send_request(request)).await;
        let response = match answer {
            Err(_) => return Err(Failure::timeout(FailureKind::FirstByteTimeout, timeouts.first_byte)),
            Ok(Err(mut error)) => {
                let unsent = error.take_message().is_some();
                let failure = blame(error.error(), unsent, reused, clock::now().saturating_duration_since(sent));
                if failure.fault() == Fault::Race {
                    // Those kept beside it are as old or belong to a pod that has restarted: the next try is over a new one.
                    self.idle.forget(&pod.id);
                }
                return Err(failure);
            }
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(Failure::new(FailureKind::NotHttp, "the pod switched protocols, which nobody asked for"));
            }
            Ok(Ok(response)) => response,
        };
        Ok(self.answer(pod, live, response, sent))
    }

    /// Forgets a pod that discovery dropped.
    pub fn forget(&self, pod: &PodId) {
        self.idle.forget(pod);
    }

    /// How many connections are kept idle.
    pub fn idle_connections(&self) -> usize {
        self.idle.len()
    }

    /// Closes connections that were idle too long; never ends.
    pub async fn prune_forever(&self, limit: impl Fn() -> Duration) {
        loop {
            tokio::time::sleep(PRUNE_EVERY).await;
            self.idle.prune(clock::now(), limit());
        }
    }

    async fn request(&self, pod: &Pod, carry: Carry) -> Result<Request<Full<Bytes>>, Failure> {
        let unbuildable = |what: &dyn std::fmt::Display| Failure::new(FailureKind::Unbuildable, what);
        let target = &pod.target;
        let uri = if target.base_path.is_empty() {
            Uri::try_from(carry.path.as_ref())
        } else {
            Uri::try_from(format!("{}{}", target.base_path, carry.path))
        };
        let mut request = Request::new(Full::new(carry.body));
        *request.method_mut() = carry.method;
        *request.uri_mut() = uri.map_err(|error| unbuildable(&error))?;
        let mut headers = carry.headers;
        let host = HeaderValue::try_from(target.origin.authority()).map_err(|error| unbuildable(&error))?;
        headers.insert(header::HOST, host);
        if let Some(file) = &target.token_file {
            let missing = || unbuildable(&format!("no token in {}", file.display()));
            let bearer = self.credentials.bearer(file, clock::now()).await.ok_or_else(missing)?;
            headers.insert(header::AUTHORIZATION, bearer);
        }
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn answer(&self, pod: &Pod, live: Live, response: Response<Incoming>, sent: Instant) -> Answer {
        let (head, incoming) = response.into_parts();
        let home = Home { live, pod: pod.id.clone(), idle: Arc::clone(&self.idle) };
        Answer { head, body: PodBody::new(incoming, home), sent }
    }
}

fn blame(error: &hyper::Error, unsent: bool, reused: bool, after: Duration) -> Failure {
    let kind = match () {
        () if unsent => FailureKind::Unsent,
        () if error.is_parse() || error.is_parse_too_large() => FailureKind::NotHttp,
        () if reused && after <= RACE_WINDOW => FailureKind::ReuseRace,
        () => FailureKind::Died,
    };
    Failure::new(kind, error)
}
