//! Who says what may come in, and when: admission policies, to be measured beside our own.
//!
//! A door decides only about time: whether a request goes to the pods now, waits or is refused. Which pod it gets is decided
//! when it is let in, by the same rule for all doors, so that nothing but the waiting differs. A door sees what its router
//! could see: the ledger of what was sent, the last page of metrics as it came, and what a client says of itself.

mod gie;
mod line;
mod open;
mod shed;
mod slots;

use std::{fmt, sync::Arc, time::Instant};

use crate::{
    config::Waiting,
    fleet::{Pod, PoolState},
    lab::script::Client,
};

/// A request that stands at a door.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Its place in the script.
    pub(super) nth: u32,
    /// When it came.
    pub(super) at_ms: f64,
    /// Who asks.
    pub(super) client: Client,
    /// Tokens that it is expected to cost: its prompt, and an answer as long as they are in the mean.
    pub(super) tokens: u32,
    /// What it occupies while it waits.
    pub(super) bytes: usize,
}

/// What a door sees.
#[derive(Debug)]
pub(super) struct Sight<'a> {
    /// The pool.
    pub(super) pool: &'a Arc<PoolState>,
    /// Its pods.
    pub(super) pods: &'a [Arc<Pod>],
    /// How requests may wait, by our own configuration.
    pub(super) terms: &'a Waiting,
    /// The moment, as production code takes it.
    pub(super) now: Instant,
    /// And in milliseconds since the start.
    pub(super) now_ms: f64,
}

/// What a door says of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Word {
    /// It goes to the pods.
    Enter(u32),
    /// It is turned away, and told to come again after so many milliseconds.
    Refuse(u32, f64),
}

/// An admission policy.
pub(super) trait Door: fmt::Debug + Send {
    /// A request came.
    fn came(&mut self, arrival: Arrival, sight: &Sight<'_>);

    /// Its client has gone.
    fn gone(&mut self, nth: u32);

    /// What is to be done now. It is asked again until it has nothing to say, because whoever is let in changes what is
    /// seen.
    fn next(&mut self, sight: &Sight<'_>) -> Option<Word>;

    /// When it wants to be asked even if nothing happens until then; infinite if it does not.
    fn alarm_ms(&self) -> f64;
}

/// A policy's name and how to make one.
pub struct Entry {
    /// Its name on the command line and in tables.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// How often its router reads pages of metrics, where that is its own affair.
    pub scrape_ms: Option<f64>,
    /// Whether pods that are full are chosen only where all are.
    pub(super) spares_full: bool,
    make: fn() -> Box<dyn Door>,
}

impl Entry {
    pub(super) fn make(&self) -> Box<dyn Door> {
        (self.make)()
    }

    /// By its name.
    pub fn find(name: &str) -> Option<&'static Self> {
        DOORS.into_iter().find(|entry| entry.name == name)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entry").field(&self.name).finish()
    }
}

/// No door at all.
pub static OPEN: Entry = Entry {
    name: "open",
    what: "everything goes to the pods at once",
    scrape_ms: None,
    spares_full: false,
    make: open::make,
};

static SHED: Entry = Entry {
    name: "shed",
    what: "nobody waits: while the pool is full, what is sheddable is refused",
    scrape_ms: None,
    spares_full: false,
    make: shed::make,
};

static SLOTS: Entry = Entry {
    name: "slots",
    what: "100 requests a pod, the others wait first come, first served, for a minute",
    scrape_ms: None,
    spares_full: false,
    make: slots::make,
};

static GIE: Entry = Entry {
    name: "gie",
    what: "Gateway API Inference Extension's flow control, as it is by default",
    scrape_ms: Some(gie::SCRAPE_MS),
    spares_full: false,
    make: gie::make_strict,
};

static GIE_ROUND_ROBIN: Entry = Entry {
    name: "gie-rr",
    what: "the same with its round-robin fairness",
    scrape_ms: Some(gie::SCRAPE_MS),
    spares_full: false,
    make: gie::make_round_robin,
};

static LINE: Entry = Entry {
    name: "line",
    what: "our own: who comes to a full pool stands in the waiting line, as `serve` has it",
    scrape_ms: None,
    spares_full: true,
    make: line::make,
};

/// All of them.
pub static DOORS: [&Entry; 6] = [&LINE, &OPEN, &SHED, &SLOTS, &GIE, &GIE_ROUND_ROBIN];

/// The OpenAI SDKs' first pause before they come again when they are not told one.
const PAUSE_MS: f64 = 500.0;

#[cfg(test)]
mod bench {
    //! What the doors' tests stand on.

    use super::*;
    use crate::{
        clock,
        fleet::{Fleet, PodLoad, Reading, Reservation, Send},
        lab::setup::{self, POOL, Setup},
        sim::{EngineConfig, profiles, step::StepModel},
    };

    /// A pool of as many pods of which nothing is known.
    #[derive(Debug)]
    pub(super) struct Hall {
        pub(super) pool: Arc<PoolState>,
        pub(super) pods: Vec<Arc<Pod>>,
        pub(super) terms: Waiting,
        pub(super) began: Instant,
    }

    impl Hall {
        pub(super) fn new(pods: usize) -> Self {
            let engine = EngineConfig::new(StepModel::new(profiles::find("h100-7b").unwrap(), 1.0));
            let config = Setup::new(vec![engine; pods]).configured(None).unwrap();
            let began = clock::now();
            let fleet = Fleet::new(&config.pools, began);
            fleet.set(POOL, &setup::targets(&config), began);
            let pool = fleet.pool(POOL).unwrap();
            Self { pods: pool.pods().to_vec(), pool, terms: config.waiting, began }
        }

        pub(super) fn at(&self, now_ms: f64) -> Sight<'_> {
            let now = self.began + std::time::Duration::from_secs_f64(now_ms / 1e3);
            Sight { pool: &self.pool, pods: &self.pods, terms: &self.terms, now, now_ms }
        }

        /// A page of `pod` that was asked for then and says so much.
        pub(super) fn page(&self, pod: usize, at_ms: f64, waiting: u32, kv_usage: f64) {
            let reading =
                Reading { running: Some(1), waiting: Some(waiting), kv_usage: Some(kv_usage), ..Reading::default() };
            let began = self.at(at_ms).now;
            self.pods[pod].store_load(PodLoad { began, sent_mark: 0, ended_mark: 0, reading });
        }

        /// A request with so many uncached tokens is at `pod`.
        pub(super) fn sent(&self, pod: usize, uncached_tokens: u32) -> Reservation {
            Reservation::new(Arc::clone(&self.pods[pod]), Send { prompt_tokens: uncached_tokens, uncached_tokens })
        }
    }

    /// A request of a tenant with a priority.
    pub(super) fn arrival(nth: u32, (tenant, priority): (u32, i32), at_ms: f64) -> Arrival {
        let client = Client { tenant, priority, ..Client::default() };
        Arrival { nth, at_ms, client, tokens: 1_000, bytes: 4_000 }
    }

    /// All that the door has to say.
    pub(super) fn all(door: &mut dyn Door, sight: &Sight<'_>) -> Vec<Word> {
        std::iter::from_fn(|| door.next(sight)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{bench::*, *};

    #[test]
    fn every_door_is_found_by_its_name_and_lets_in_who_comes_to_an_idle_fleet() {
        for entry in DOORS {
            assert_eq!(Entry::find(entry.name).unwrap().name, entry.name);
            let hall = Hall::new(2);
            hall.page(0, 0.0, 0, 0.0);
            hall.page(1, 0.0, 0, 0.0);
            let mut door = entry.make();
            door.came(arrival(7, (0, -1), 10.0), &hall.at(10.0));
            assert_eq!(all(&mut *door, &hall.at(10.0)), [Word::Enter(7)], "{}", entry.name);
            assert_eq!(all(&mut *door, &hall.at(1e6)), [], "{}", entry.name);
        }
        assert!(Entry::find("revolving").is_none());
    }
}
