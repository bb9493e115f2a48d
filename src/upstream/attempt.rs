//! One attempt at one pod, timed.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::response;
use tokio::time::timeout;

use super::{
    Broken, Connector, Failure, FailureKind, Fault, PodBody,
    body::Home,
    credentials::Credentials,
    http1::{Lost, Outgoing, RequestHead},
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

/// How long a connection that its pod has closed, or that was idle too long, may stay: no longer than a person notices.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// What is carried to a pod. Cheap to clone: a retry carries the same again.
#[derive(Clone, Debug)]
pub struct Carry {
    /// Method.
    pub method: http::Method,
    /// Canonical path and query, without the pod's base path.
    pub path: Arc<str>,
    /// Headers as the pod shall see them, without `host`, `content-length` and its own credentials.
    pub headers: Arc<http::HeaderMap>,
    /// The whole body.
    pub body: Bytes,
}

/// Over which connection a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A kept one if there is one.
    Any,
    /// A new one: no idle timer of the pod's can strike.
    New,
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

    /// One attempt: a connection, the request, and the head of the answer. Dropping the future closes the connection,
    /// so that the pod stops working for nobody.
    ///
    /// # Errors
    /// A [`Failure`] if no head of an answer came.
    pub async fn attempt(&self, pod: &Pod, carry: Carry, timeouts: &Timeouts, over: Over) -> Result<Answer, Failure> {
        let request = self.request(pod, carry).await?;
        let kept = match over {
            Over::Any => self.idle.take(&pod.id, clock::now(), timeouts.pool_idle),
            Over::New => None,
        };
        let (mut live, kept_since) = match kept {
            Some((live, since)) => (live, Some(since)),
            None => (self.connector.connect(pod, timeouts.connect).await?, None),
        };
        let sent = clock::now();
        let head = match timeout(timeouts.first_byte, live.ask(request)).await {
            Err(_) => return Err(Failure::timeout(FailureKind::FirstByteTimeout, timeouts.first_byte)),
            Ok(Err(mut lost)) => {
                // TLS takes what it has not sent yet, and keeps to itself what it has.
                lost.sent |= pod.target.origin.https;
                let now = clock::now();
                let failure = blame(&lost, kept_since.is_some(), now.saturating_duration_since(sent));
                if let (Fault::Race, Some(since)) = (failure.fault(), kept_since)
                    && self.idle.raced(&pod.id, since, now)
                {
                    tracing::warn!(
                        pod = %pod.id,
                        "pod closes kept connections: requests take new ones; its keep-alive has to be longer than \
                         timeouts.pool_idle, or it has to say `connection: close`"
                    );
                }
                return Err(failure);
            }
            Ok(Ok(head)) => head,
        };
        let home = Home { live, pod: pod.id.clone(), idle: Arc::clone(&self.idle) };
        Ok(Answer { head, body: PodBody::new(home), sent })
    }

    /// Forgets a pod that discovery dropped.
    pub fn forget(&self, pod: &PodId) {
        self.idle.forget(pod);
    }

    /// How many connections are kept idle.
    pub fn idle_connections(&self) -> usize {
        self.idle.len()
    }

    /// Closes connections that were idle too long or that their pods have closed; never ends. Dropped, as at a stop, it
    /// closes all, and none is kept any more: a pod may keep its end open for ever.
    pub async fn prune_forever(&self, limit: impl Fn() -> Duration) {
        let _closing = Closing(&self.idle);
        loop {
            tokio::time::sleep(PRUNE_EVERY).await;
            self.idle.prune(clock::now(), limit());
        }
    }

    async fn request(&self, pod: &Pod, carry: Carry) -> Result<Outgoing, Failure> {
        let unbuildable = |what: String| Failure::new(FailureKind::Unbuildable, what);
        let target = &pod.target;
        let mut authorization = None;
        if let Some(file) = &target.token_file {
            let missing = || unbuildable(format!("no token in {}", file.display()));
            authorization = Some(self.credentials.bearer(file, clock::now()).await.ok_or_else(missing)?);
        }
        let host = pod.address();
        let head = RequestHead {
            method: &carry.method,
            base_path: &target.base_path,
            path: &carry.path,
            host,
            fields: &carry.headers,
            authorization,
        };
        head.with(carry.body).ok_or_else(|| unbuildable(format!("no target or host: {} {host}", carry.path)))
    }
}

/// Closes idle connections when it goes.
struct Closing<'a>(&'a IdleConnections);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Whether the pod said in the words of TLS that it does not want whom we show to be, or that we show nobody.
fn refuses_us(error: &io::Error) -> bool {
    use rustls::{AlertDescription as A, Error};
    let said = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    let Some(Error::AlertReceived(alert)) = said else { return false };
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    )
}

fn blame(lost: &Lost, reused: bool, after: Duration) -> Failure {
    let kind = match &lost.broken {
        Broken::NotHttp(_) => FailureKind::NotHttp,
        // In TLS 1.3 we are through before the pod has looked at what we show. Until it has, it reads no request.
        Broken::Failed(error) if !reused && !lost.heard && refuses_us(error) => FailureKind::Tls,
        _ if !lost.sent && reused => FailureKind::Unsent,
        // It was closed or reset before it could be used.
        _ if !lost.sent => FailureKind::Connect,
        // Who has begun to answer had not lost the race.
        _ if reused && !lost.heard && after <= RACE_WINDOW => FailureKind::ReuseRace,
        _ => FailureKind::Died,
    };
    Failure::new(kind, &lost.broken)
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription as A;

    use super::*;

    #[test]
    fn blame_follows_from_what_was_sent_and_what_was_heard() {
        use FailureKind as K;
        let blamed = |sent, heard, reused, millis| {
            let lost = Lost { sent, heard, broken: Broken::Closed };
            blame(&lost, reused, Duration::from_millis(millis)).kind
        };
        assert_eq!(blamed(false, false, true, 0), K::Unsent);
        assert_eq!(blamed(false, false, false, 0), K::Connect);
        assert_eq!(blamed(true, false, true, 250), K::ReuseRace);
        assert_eq!(blamed(true, false, true, 251), K::Died);
        assert_eq!(blamed(true, true, true, 0), K::Died, "half a head is no idle timer's doing");
        assert_eq!(blamed(true, false, false, 0), K::Died);
        let nonsense = Lost { sent: true, heard: true, broken: super::super::Nonsense::Said("x").into() };
        assert_eq!(blame(&nonsense, true, Duration::ZERO).kind, K::NotHttp);
        let alert = |said, heard, reused| {
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(said));
            let lost = Lost { sent: true, heard, broken: error.into() };
            blame(&lost, reused, Duration::from_secs(1)).kind
        };
        assert_eq!(alert(A::CertificateRequired, false, false), K::Tls);
        assert_eq!(alert(A::CertificateRequired, true, false), K::Died, "who answers has let us in");
        assert_eq!(alert(A::CertificateRequired, false, true), K::Died);
        assert_eq!(alert(A::InternalError, false, false), K::Died);
    }
}
