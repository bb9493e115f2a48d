//! One visit to one pod: what is asked, what is made of the answer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    engines,
    fetch::{Ask, Fetcher},
    health_watch::HealthWatch,
    models::{self, ModelsTurn},
    report::{Failure, PageRead, Report},
    rhythm::Rhythm,
    token::Token,
    unread::{self, Unread},
};
use crate::{
    clock,
    config::Bytes,
    fleet::{Condition, Evidence, Pod, PodLoad, Reading},
};

/// The largest list of models or word on health that is read: a list of 1,000 adapters has 300 KB.
const MAX_ANSWER: Bytes = Bytes(1 << 20);

/// One pod under watch.
pub(super) struct Watch {
    pub(super) pod: Arc<Pod>,
    fetcher: Arc<Fetcher>,
    report: Arc<dyn Report>,
    token: Option<Token>,
    models_url: String,
    health_url: String,
    turns: Mutex<Turns>,
}

/// When each of its three questions is due.
struct Turns {
    page: Rhythm,
    models: ModelsTurn,
    health: HealthWatch,
    unread: Unread,
}

/// What a visit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// The page of metrics.
    Page,
    /// The list of models.
    Models,
    /// How it is.
    Health,
}

impl Watch {
    pub(super) fn new(pod: &Arc<Pod>, fetcher: &Arc<Fetcher>, report: &Arc<dyn Report>) -> Self {
        let now = clock::now();
        let target = &pod.target;
        let url = |path: &str| {
            let (scheme, authority) = (target.origin.scheme(), target.origin.authority());
            format!("{scheme}://{authority}{}{path}", target.base_path)
        };
        Self {
            pod: Arc::clone(pod),
            fetcher: Arc::clone(fetcher),
            report: Arc::clone(report),
            token: target.token_file.as_deref().map(Token::new),
            models_url: url("/v1/models"),
            health_url: url("/health"),
            turns: Mutex::new(Turns {
                page: Rhythm::new(pod.view.interval, now),
                models: ModelsTurn::new(now),
                health: HealthWatch::default(),
                unread: Unread::default(),
            }),
        }
    }

    /// The desk has reason to doubt.
    pub(super) fn doubt(&self) {
        let mut turns = self.turns();
        turns.health.doubt();
        turns.models.doubt(clock::now());
    }

    /// What is due now, marked as under way: run each with [`Watch::run`].
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = Errand> + use<> {
        let sent = self.pod.ledger.sent();
        let condition = self.pod.condition(now);
        let mut turns = self.turns();
        let page = turns.page.is_due(now, sent);
        if page {
            turns.page.left(now, sent);
        }
        let models = condition != Condition::Ejected && turns.models.is_due(now);
        if models {
            turns.models.left(now, &mut clock::rng());
        }
        let health = turns.health.is_due(condition, now);
        if health {
            turns.health.left(now);
        }
        let errands = [(page, Errand::Page), (models, Errand::Models), (health, Errand::Health)];
        errands.into_iter().filter_map(|(due, errand)| due.then_some(errand))
    }

    /// Does what was due.
    pub(super) async fn run(self: Arc<Self>, errand: Errand) {
        match errand {
            Errand::Page => self.read_page().await,
            Errand::Models => self.ask_models().await,
            Errand::Health => self.ask_health().await,
        }
    }

    async fn read_page(&self) {
        let pod = &self.pod;
        let began = clock::now();
        let (ended_mark, sent_mark) = (pod.ledger.ended(), pod.ledger.sent());
        let answer = self.get(&pod.view.metrics_url, pod.view.max_page).await;
        let now = clock::now();
        let took = now.saturating_duration_since(began);
        let read = answer.map(|page| (page.len(), engines::read(&pod.view.engine, &page)));
        let failure = match read {
            Ok((bytes, Some(reading))) => {
                let unparsed_lines = reading.unparsed_lines;
                self.take(PodLoad { began, sent_mark, ended_mark, reading });
                self.report.page_read(pod, PageRead { bytes, took, unparsed_lines });
                None
            }
            Ok((_, None)) => {
                // Somebody is there, but says nothing of load.
                self.note(Evidence::ScrapeOk { asleep: false });
                Some(Failure::Alien)
            }
            Err(failure) => Some(failure),
        };
        if failure == Some(Failure::Refused) {
            self.note(Evidence::ScrapeRefused);
        }
        if failure == Some(Failure::Timeout) {
            self.turns().health.note_unread(pod.ledger.in_flight(), pod.ledger.heard(), now);
        }
        if let Some(failure) = failure {
            tracing::debug!(pod = %pod.id, %failure, "page of metrics not read");
            self.report.page_failed(pod, failure, took);
        }
        self.tell_an_operator(failure);
        let sent_since = pod.ledger.sent() != sent_mark;
        // A first refusal wants to be confirmed soon.
        let unconfirmed = failure == Some(Failure::Refused) && pod.condition(now) != Condition::Ejected;
        let streams = failure.is_none() && pod.streams().is_some_and(|streams| streams > 0);
        let busy = sent_since || unconfirmed || streams || pod.ledger.in_flight() > 0;
        self.turns().page.returned(busy, &mut clock::rng());
    }

    /// A pod whose page cannot be read is chosen blindly, which somebody should know.
    fn tell_an_operator(&self, failure: Option<Failure>) {
        let pod = &self.pod;
        if let Some(failure) = failure {
            let condition = pod.condition(clock::now());
            let tell = self.turns().unread.failed(failure, condition);
            if tell {
                tracing::warn!(pod = %pod.id, "pod cannot be read: {}", unread::described(pod, failure));
            }
        } else {
            let tell = self.turns().unread.read();
            if tell {
                tracing::info!(pod = %pod.id, "pod can be read again");
            }
        }
    }

    fn take(&self, load: PodLoad) {
        let reading: &Reading = &load.reading;
        let asleep = reading.asleep;
        self.turns().health.note(reading, self.pod.ledger.in_flight(), load.began);
        self.pod.store_load(load);
        self.note(Evidence::ScrapeOk { asleep });
    }

    async fn ask_models(&self) {
        let answer = self.get(&self.models_url, MAX_ANSWER).await;
        let models = answer.map(|body| models::parse(&body));
        // A status other than 200 is an answer too: this engine has no such list.
        let answered = matches!(models, Ok(_) | Err(Failure::Http(_)));
        if let Ok(Some(models)) = models {
            self.pod.store_models(models);
            self.report.models_read(&self.pod);
        }
        let now = clock::now();
        self.turns().models.returned(answered, now, &mut clock::rng());
    }

    async fn ask_health(&self) {
        match self.get(&self.health_url, MAX_ANSWER).await {
            Ok(_) => self.note(Evidence::HealthOk),
            Err(Failure::Http(503)) => self.note(Evidence::HealthBad),
            Err(Failure::Refused) => self.note(Evidence::ScrapeRefused),
            Err(Failure::Timeout) if self.is_silent() => self.note(Evidence::HealthBad),
            Err(_) => {}
        }
        self.turns().health.returned();
    }

    fn is_silent(&self) -> bool {
        self.turns().health.is_silent(clock::now())
    }

    async fn get(&self, url: &str, max: Bytes) -> Result<Vec<u8>, Failure> {
        let authorization = match &self.token {
            None => None,
            Some(token) => Some(token.header(clock::now()).await.ok_or(Failure::Token)?),
        };
        let timeout = self.pod.view.timeout;
        let ask = Ask { url, authorization, timeout, max };
        self.fetcher.get(ask).await
    }

    fn note(&self, evidence: Evidence) {
        let now = clock::now();
        let Some(condition) = self.pod.health.note(evidence, now) else {
            return;
        };
        if matches!(condition, Condition::Ready | Condition::Warming) {
            self.turns().models.hurry(now);
        }
        self.report.turned(&self.pod, condition);
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
