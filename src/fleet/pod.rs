//! One pod: where it is, and every fact about it in one place.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{
    AdapterState, Admission, Condition, Glance, Health, Inflow, Ledger, Moment, Name, PodLoad, Speed, glance::Board,
};
use crate::{
    config::{Bytes, Engine, Target},
    openai::Dialect,
};

/// A pod's stable name: `pool/host:port`. The same address in two pools is two pods, because what is known of it
/// (engine, credentials, speed under that model) belongs to the pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId(Arc<str>);

impl PodId {
    /// The pod of `pool` at `authority`.
    pub fn new(pool: &str, authority: &str) -> Self {
        Self(format!("{pool}/{authority}").into())
    }

    /// The name as one string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model or adapter that a pod says it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedModel {
    /// The name to ask for.
    pub name: Arc<str>,
    /// For an adapter, its base model.
    pub parent: Option<Arc<str>>,
}

/// What a model name is to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It was never asked what it serves.
    Unknown,
    /// It does not serve it.
    No,
    /// It serves it as a model.
    Base,
    /// It serves it as an adapter on another model.
    Adapter,
}

/// How this pod is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The page of metrics.
    pub metrics_url: String,
    /// Which engine's names to expect.
    pub engine: Engine,
    /// Time between two reads while it is busy.
    pub interval: Duration,
    /// How long a read may take.
    pub timeout: Duration,
    /// The largest page accepted.
    pub max_page: Bytes,
}

/// One pod.
///
/// Its parts lie in memory as they are written: what every pick asks of every pod stands together, from the end of
/// `health` to the beginning of `speed`, on four cache lines; as the compiler would order them it is on nine.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Pod {
    /// Whether it may be used.
    pub health: Health,
    /// A small number for dense tables (the prefix index); never given twice in one process.
    pub slot: u32,
    /// The hash of the list of models: pods that report the same list have the same; 0 while nobody knows.
    menu: AtomicU64,
    /// What we have sent it.
    pub ledger: Ledger,
    board: Board,
    /// What it has shown it can do.
    pub speed: Speed,
    /// Prefill being sent to it.
    pub inflow: Inflow,
    load: ArcSwapOption<PodLoad>,
    models: ArcSwapOption<Vec<ReportedModel>>,
    /// A bit for each dialect in which a stream of its said its own end.
    says_ends: AtomicU8,
    /// Its stable name.
    pub id: PodId,
    /// The pool it belongs to.
    pub pool: Arc<str>,
    /// Its host and port.
    address: Arc<str>,
    /// Where it is and which credentials it wants.
    pub target: Target,
    /// How it is scraped.
    pub view: View,
}

impl Pod {
    /// A pod just discovered. A `newcomer` joins a gateway that already runs and is given load slowly.
    pub fn new(pool: Arc<str>, target: Target, view: View, slot: u32, health: Health) -> Self {
        let address: Arc<str> = target.origin.authority().into();
        Self {
            id: PodId::new(&pool, &address),
            slot,
            pool,
            address,
            target,
            board: Board::new(health.epoch(), view.interval),
            inflow: Inflow::new(health.epoch()),
            menu: AtomicU64::new(0),
            view,
            ledger: Ledger::default(),
            health,
            speed: Speed::default(),
            load: ArcSwapOption::empty(),
            models: ArcSwapOption::empty(),
            says_ends: AtomicU8::new(0),
        }
    }

    /// The last reading; `None` if none ever succeeded.
    pub fn load(&self) -> Option<Arc<PodLoad>> {
        self.load.load_full()
    }

    /// The last reading without touching its reference count.
    pub fn load_guard(&self) -> arc_swap::Guard<Option<Arc<PodLoad>>> {
        self.load.load()
    }

    /// What a pick wants to know of the last reading; `None` if there is none or it told no load.
    #[inline]
    pub fn glance(&self, moment: &Moment) -> Option<Glance> {
        self.board.read(moment)
    }

    /// How ready it is for an adapter, as its last reading says.
    #[inline]
    pub fn adapter(&self, name: Name<'_>) -> AdapterState {
        self.board.adapter(name).unwrap_or_else(|| {
            let load = self.load.load();
            let adapters = load.as_ref().and_then(|load| load.reading.adapters.as_ref());
            adapters.map_or(AdapterState::Untold, |adapters| adapters.state(name.text))
        })
    }

    /// A number that is the same for pods that report the same models, so that a walk over many pods asks
    /// [`Pod::serving`] once.
    #[inline]
    pub fn menu(&self) -> u64 {
        self.menu.load(Acquire)
    }

    /// A new reading. Only `scrape` calls this. A page that stands still stays as old as it is: else our own requests, once
    /// they have ended, would look like others' for as long as it does.
    pub fn store_load(&self, load: PodLoad) {
        let before = self.load.load();
        if before.as_deref().is_some_and(|before| load.repeats(before)) {
            return;
        }
        self.board.write(&load, before.as_deref());
        self.load.store(Some(Arc::new(load)));
    }

    /// The models it reports; `None` until it was asked.
    pub fn models(&self) -> Option<Arc<Vec<ReportedModel>>> {
        self.models.load_full()
    }

    /// What it reported. Only `scrape` calls this.
    pub fn store_models(&self, models: Vec<ReportedModel>) {
        let menu = menu_of(&models);
        self.models.store(Some(Arc::new(models)));
        self.menu.store(menu, Release);
    }

    /// Whether it can answer for `model`: `None` while nobody knows.
    pub fn serves(&self, model: &str) -> Option<bool> {
        match self.serving(model) {
            Serving::Unknown => None,
            Serving::No => Some(false),
            Serving::Base | Serving::Adapter => Some(true),
        }
    }

    /// What `model` is to it. No name is no question.
    pub fn serving(&self, model: &str) -> Serving {
        if model.is_empty() {
            return Serving::Unknown;
        }
        let models = self.models.load();
        let Some(models) = models.as_ref() else {
            return Serving::Unknown;
        };
        match models.iter().find(|it| &*it.name == model) {
            None => Serving::No,
            Some(it) if it.parent.is_some() => Serving::Adapter,
            Some(_) => Serving::Base,
        }
    }

    /// Whether its streams in `dialect` say their own end, as one of them has: then one that does not is no whole one.
    pub fn says_ends(&self, dialect: Dialect) -> bool {
        self.says_ends.load(Relaxed) & bit(dialect) != 0
    }

    /// A stream of its in `dialect` said its own end.
    pub fn said_its_end(&self, dialect: Dialect) {
        // Once is enough, and a word that all streams write is better only read.
        if !self.says_ends(dialect) {
            self.says_ends.fetch_or(bit(dialect), Relaxed);
        }
    }

    /// How many requests it has on its hands: our own in flight, or what it last said plus what we sent since minus
    /// what ended since, whichever is more. The second shows other gateways' traffic too. `None` if it was never
    /// read: its own traffic alone says nothing of others'.
    pub fn streams(&self) -> Option<u64> {
        let load = self.load.load();
        let load = load.as_ref()?;
        let said = u64::from(load.reading.streams()?);
        let sent_since = self.ledger.sent().saturating_sub(load.sent_mark);
        let ended_since = self.ledger.ended().saturating_sub(load.ended_mark);
        Some((said + sent_since).saturating_sub(ended_since).max(self.ledger.in_flight()))
    }

    /// Whether a request may go there now.
    #[inline]
    pub fn admits(&self, now: Instant) -> Admission {
        self.health.admits(now)
    }

    /// Its condition, for people.
    pub fn condition(&self, now: Instant) -> Condition {
        self.health.condition(now)
    }

    /// Its address, for people and headers.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }
}

fn bit(dialect: Dialect) -> u8 {
    match dialect {
        Dialect::OpenAi => 1,
        Dialect::Anthropic => 2,
        Dialect::Responses => 4,
    }
}

/// Never 0.
fn menu_of(models: &[ReportedModel]) -> u64 {
    let mut hash = Xxh3::new();
    for model in models {
        hash.update(model.name.as_bytes());
        // Bytes that UTF-8 never uses keep names and kinds apart.
        hash.update(if model.parent.is_some() { &[0xfe] } else { &[0xff] });
    }
    hash.digest().max(1)
}

#[cfg(test)]
impl Pod {
    /// A ready pod at `10.0.0.{n}:8000` for the tests of this room and those above.
    pub fn for_test(pool: &str, n: u8) -> Self {
        let origin = crate::config::Origin { https: false, host: format!("10.0.0.{n}"), port: 8000 };
        let target = Target { origin, base_path: String::new(), token_file: None, metrics_url: None };
        let view = View {
            metrics_url: format!("http://10.0.0.{n}:8000/metrics"),
            engine: Engine::Auto,
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            max_page: Bytes(4 << 20),
        };
        Self::new(pool.into(), target, view, u32::from(n), Health::present_from_the_start(crate::clock::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Reading, Reservation, Send};

    fn read(pod: &Pod, running: u32, waiting: u32) {
        let reading = Reading { running: Some(running), waiting: Some(waiting), ..Reading::default() };
        let (sent_mark, ended_mark) = (pod.ledger.sent(), pod.ledger.ended());
        pod.store_load(PodLoad { began: crate::clock::now(), sent_mark, ended_mark, reading });
    }

    #[test]
    fn a_pod_never_read_is_unknown_even_if_we_sent_it_nothing() {
        assert_eq!(Pod::for_test("pool", 1).streams(), None);
    }

    #[test]
    fn streams_are_what_it_said_corrected_by_what_we_did_since() {
        let pod = Arc::new(Pod::for_test("pool", 1));
        let early = Reservation::new(Arc::clone(&pod), Send::default());
        read(&pod, 4, 2);
        assert_eq!(pod.streams(), Some(6));
        let late = Reservation::new(Arc::clone(&pod), Send::default());
        assert_eq!(pod.streams(), Some(7));
        drop(early);
        assert_eq!(pod.streams(), Some(6));
        drop(late);
        assert_eq!(pod.streams(), Some(5));
    }

    #[test]
    fn gauges_frozen_by_a_long_step_do_not_hide_our_own_requests() {
        let pod = Arc::new(Pod::for_test("pool", 1));
        let held: Vec<_> = (0..16).map(|_| Reservation::new(Arc::clone(&pod), Send::default())).collect();
        read(&pod, 0, 0);
        assert_eq!(pod.streams(), Some(16));
        drop(held);
        assert_eq!(pod.streams(), Some(0));
    }
}
