//! Issuers' keys, fetched and kept fresh: at the start, every now and then, and when a token names one that is not known.
//!
//! An issuer that cannot be reached changes nothing: the keys that it had published are still its keys. A token of an
//! unknown key asks for a fetch at most once in a while, so that strangers' inventions are no burden to the issuer.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    file::{Followed, mark_of, read_now},
    jwks::KeySet,
    jwt::PATIENCE,
};
use crate::{
    clock, config,
    telemetry::{Metrics, logs::causes},
};

/// The largest answer of an issuer: a hundred keys with their certificates.
pub(super) const MAX_ANSWER: u64 = 512 << 10;

/// How long an issuer may take: it is far away, and nobody waits so long for it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often tokens of unknown keys may ask for a fetch.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The first pause after a fetch that failed; each further one is twice as long, up to the usual one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// One issuer and its keys.
pub struct Source {
    pub(super) issuer: Arc<config::Issuer>,
    keys: ArcSwap<KeySet>,
    /// Somebody wants the keys fetched now.
    wanted: Notify,
    /// How many fetches have come to an end, well or not.
    fetched: watch::Sender<u64>,
    asked: Mutex<Option<Instant>>,
    /// What was wrong when that was last told, until it is well again.
    trouble: Mutex<Option<String>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("issuer", &self.issuer.name).finish_non_exhaustive()
    }
}

impl Source {
    /// An issuer whose keys are known as far as that can be at once: from a file, or from `before`.
    pub(super) fn open(issuer: &Arc<config::Issuer>, before: Option<&Self>) -> Result<Arc<Self>, String> {
        let keys = match (&issuer.keys, before) {
            (config::IssuerKeys::File(path), _) => {
                let found = read_now(path, MAX_ANSWER).map_err(|error| error.to_string());
                let keys = found.and_then(|json| KeySet::read(&json));
                Arc::new(keys.map_err(|problem| format!("{}: {problem}", path.display()))?)
            }
            (_, Some(before)) => before.keys.load_full(),
            (_, None) => Arc::default(),
        };
        let fetched = u64::from(keys.len() > 0);
        Ok(Arc::new(Self {
            issuer: Arc::clone(issuer),
            keys: ArcSwap::new(keys),
            wanted: Notify::new(),
            fetched: watch::Sender::new(fetched),
            asked: Mutex::default(),
            trouble: Mutex::default(),
        }))
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    /// Waits for the keys to be fetched, if that is still to come or it is time to ask again; says whether it was.
    pub(super) async fn refreshed(&self) -> bool {
        if matches!(self.issuer.keys, config::IssuerKeys::File(_)) {
            return false;
        }
        let mut fetched = self.fetched.subscribe();
        // The first fetch is on its way, and brings what there is.
        if *fetched.borrow_and_update() > 0 {
            if !self.may_ask(clock::now()) {
                return false;
            }
            self.wanted.notify_one();
        }
        timeout(PATIENCE, fetched.changed()).await.is_ok_and(|it| it.is_ok())
    }

    fn may_ask(&self, now: Instant) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let may = asked.is_none_or(|last| now.saturating_duration_since(last) >= ASK_AGAIN);
        if may {
            *asked = Some(now);
        }
        may
    }

    /// Keeps the keys fresh for ever.
    pub(super) async fn keep_fresh(self: Arc<Self>, client: reqwest::Client, metrics: Arc<Metrics>) {
        if let config::IssuerKeys::File(path) = &self.issuer.keys {
            return self.follow_file(path, &metrics).await;
        }
        let mut failures = 0;
        loop {
            let found = self.fetch(&client).await;
            failures = if found.is_ok() { 0 } else { failures + 1 };
            self.take(found, &metrics);
            self.fetched.send_modify(|count| *count += 1);
            let pause = match failures {
                0 => self.issuer.refresh,
                _ => (FIRST_PAUSE * 2_u32.saturating_pow(failures - 1)).min(self.issuer.refresh),
            };
            // Whoever wants them now need not wait for that.
            timeout(pause, self.wanted.notified()).await.ok();
        }
    }

    async fn follow_file(&self, path: &Path, metrics: &Metrics) {
        let mark = read_now(path, MAX_ANSWER).ok().map(|json| mark_of(&json));
        let mut file = Followed::new(path.to_owned(), MAX_ANSWER, mark);
        loop {
            let found = file.changed().await.map_err(|error| error.to_string());
            self.take(found.and_then(|json| KeySet::read(&json)), metrics);
        }
    }

    /// New keys into force; without any, the last ones stay.
    fn take(&self, found: Result<KeySet, String>, metrics: &Metrics) {
        let issuer = &*self.issuer.name;
        metrics.identity.source(issuer, found.is_ok());
        match found {
            Ok(keys) => {
                let recovered = self.trouble(None);
                if recovered || keys.names() != self.keys.load().names() {
                    tracing::info!(issuer, keys = keys.len(), "keys of an issuer taken over");
                }
                self.keys.store(Arc::new(keys));
            }
            Err(problem) => self.tell_away(&problem),
        }
    }

    /// Once for each cause: it is in a metric for as long as it lasts.
    fn tell_away(&self, problem: &str) {
        let (issuer, keys) = (&*self.issuer.name, self.keys.load().len());
        if !self.trouble(Some(problem)) {
            tracing::debug!(issuer, problem, "an issuer is still away");
            return;
        }
        let told = match keys {
            0 => "no keys of an issuer yet: its tokens are refused",
            _ => "keys of an issuer not refreshed, the last ones stay",
        };
        tracing::warn!(issuer, problem, keys, "{told}");
    }

    /// Notes what is wrong now: whether that is news.
    fn trouble(&self, now: Option<&str>) -> bool {
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.as_deref() != now;
        *last = now.map(ToOwned::to_owned);
        news
    }

    async fn fetch(&self, client: &reqwest::Client) -> Result<KeySet, String> {
        let discovered;
        let url = if let config::IssuerKeys::Url(url) = &self.issuer.keys {
            url
        } else {
            discovered = self.discover(client).await?;
            &discovered
        };
        KeySet::read(&get(client, url).await?)
    }

    /// Where the issuer says that its keys are.
    async fn discover(&self, client: &reqwest::Client) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Found {
            issuer: String,
            jwks_uri: String,
        }
        let issuer = &*self.issuer.name;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let found: Found =
            serde_json::from_slice(&get(client, &url).await?).map_err(|error| format!("{url}: {error}"))?;
        if found.issuer != issuer {
            return Err(format!("{url} is of another issuer, `{}`", found.issuer));
        }
        if issuer.starts_with("https:") && !found.jwks_uri.starts_with("https:") {
            return Err(format!("{url} leads to keys that come without TLS"));
        }
        Ok(found.jwks_uri)
    }
}

/// What is at `url`.
async fn get(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| format!("{url}: {}", causes(&error.without_url()));
    let mut answer = client.get(url).timeout(TIMEOUT).send().await.map_err(failed)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("{url}: status {}", answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if (body.len() + chunk.len()) as u64 > MAX_ANSWER {
            return Err(format!("{url}: longer than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A client for issuers.
pub(super) fn client(tls: rustls::ClientConfig) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(TIMEOUT)
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error sending request")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn what_an_issuer_is_away_for_is_told_with_its_cause() {
        let error = Outer(std::io::Error::other("connection refused"));
        assert_eq!(causes(&error), "error sending request: connection refused");
    }

    #[test]
    fn an_issuer_that_is_away_is_told_of_once_for_each_cause_and_when_it_is_back() {
        let issuer = config::Issuer {
            name: "https://a".into(),
            audiences: vec!["t".to_owned()],
            keys: config::IssuerKeys::Discovery,
            algorithms: Vec::new(),
            leeway: Duration::ZERO,
            refresh: Duration::from_secs(600),
            claims: config::Claims { tenant: "sub".to_owned(), key: "sub".to_owned(), priority: None, models: None },
        };
        let source = Source::open(&Arc::new(issuer), None).unwrap();
        assert!(!source.trouble(None), "it was never away");
        let told = ["refused", "refused", "refused", "status 503", "refused"].map(|why| source.trouble(Some(why)));
        assert_eq!(told, [true, false, false, true, true]);
        assert!(source.trouble(None) && !source.trouble(None));
    }
}
