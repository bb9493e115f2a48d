//! Other routers' rules, re-implemented to the letter, to be measured beside our own.
//!
//! Each sees what it could see in its own router: its counts of what it sent, the last page of metrics as it came, and
//! an index of prefixes. Where its own index is part of the rule it brings one; else it is lent ours, which is bounded
//! by each pod's real cache and so rather better than theirs. Only the oracle sees inside the engines.

mod cache_aware;
mod chwbl;
mod dynamo;
mod gie;
mod lmetric;
mod oracle;
mod scraped_only;
mod sticky;

use rand::{Rng, RngExt as _, rngs::StdRng};

use crate::{
    config::{self, Scheduler},
    prefix::Blocks,
};

/// One request and all pods, as a router sees them.
#[derive(Debug)]
pub struct View<'a> {
    /// The pods, in a fixed order.
    pub pods: &'a [Seen],
    /// The prompt as a chain of blocks.
    pub blocks: &'a Blocks,
    /// Its tokens, estimated.
    pub prompt_tokens: f64,
    /// A hash of its first 100 characters.
    pub opening: u64,
    /// Milliseconds since the start.
    pub now_ms: f64,
}

/// One pod as a router sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Requests sent there and not ended.
    pub in_flight: f64,
    /// Uncached prompt tokens of those without a first token.
    pub prefill_tokens: f64,
    /// Tokens of prompts and answers of those in flight.
    pub kv_tokens: f64,
    /// Prompt tokens of this request that it is believed to hold.
    pub cached_tokens: f64,
    /// Requests running, as the last page said.
    pub running: f64,
    /// Requests waiting, as the last page said.
    pub waiting: f64,
    /// KV-cache usage, as the last page said.
    pub kv_usage: f64,
    /// Blocks of its KV cache, as the last page said.
    pub kv_blocks: f64,
    /// Whether it may not be chosen: its router has found out that it does not answer, or this request was there.
    pub out: bool,
    /// What is really so.
    pub truth: Truth,
}

/// What only the oracle may look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Truth {
    /// Prompt tokens there that are still to be computed.
    pub backlog_tokens: f64,
    /// Prompt tokens of this request in the cache.
    pub cached_tokens: f64,
    /// Requests there.
    pub streams: f64,
    /// Milliseconds of prefill a token at this moment.
    pub ms_per_token: f64,
}

impl View<'_> {
    /// The pods that may be chosen.
    fn in_use(&self) -> impl Iterator<Item = &Seen> {
        self.pods.iter().filter(|pod| !pod.out)
    }
}

impl Seen {
    /// Prompt tokens that it would have to compute.
    fn uncached(&self, view: &View<'_>) -> f64 {
        (view.prompt_tokens - self.cached_tokens).max(1.0)
    }
}

/// What rules draw their ties with.
pub type Dice = StdRng;

/// A rule.
pub trait Rival: std::fmt::Debug + Send {
    /// The place of the pod to send the request to. There is at least one.
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize;

    /// Whether it looks at [`Truth`].
    fn sees_truth(&self) -> bool {
        false
    }
}

/// A policy that can be measured.
#[derive(Clone, Debug)]
pub enum Policy {
    /// One that `serve` has, by the words of the configuration.
    Ours(Scheduler),
    /// One that only the lab has.
    Rival(&'static Entry),
}

/// A rival's name and how to make one for so many pods.
#[derive(Debug)]
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    pub(super) make: fn(usize) -> Box<dyn Rival>,
}

/// The names of our own policies, as the configuration has them.
pub const OURS: [&str; 7] =
    ["least-cost", "weighted", "least-request", "power-of-two", "round-robin", "random", "session-hash"];

/// All rivals.
pub static RIVALS: [Entry; 8] = [
    Entry { name: "scraped-only", what: "fewest running and waiting by the last page", make: scraped_only::make },
    Entry { name: "gie", what: "Gateway API Inference Extension, 2/2/3", make: gie::make },
    Entry { name: "sglang", what: "SGLang router, cache_aware", make: cache_aware::make },
    Entry { name: "chwbl", what: "KubeAI, bounded-load hashing of the first 100 characters", make: chwbl::make },
    Entry { name: "dynamo", what: "NVIDIA Dynamo's KV router", make: dynamo::make },
    Entry { name: "sticky", what: "llm-d, sticky until saturated", make: sticky::make },
    Entry { name: "lmetric", what: "LMetric", make: lmetric::make },
    Entry { name: "oracle", what: "greedy on the engines' true state", make: oracle::make },
];

impl Policy {
    /// By its name; `None` if there is none of that name.
    pub fn find(name: &str) -> Option<Self> {
        if let Some(entry) = RIVALS.iter().find(|entry| entry.name == name) {
            return Some(Self::Rival(entry));
        }
        OURS.contains(&name).then(|| ours(name)).flatten().map(Self::Ours)
    }

    /// All of them, ours first.
    pub fn all() -> Vec<Self> {
        let names = OURS.into_iter().chain(RIVALS.iter().map(|entry| entry.name));
        names.filter_map(Self::find).collect()
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ours(scheduler) => scheduler.name(),
            Self::Rival(entry) => entry.name,
        }
    }
}

/// The policy that the configuration makes of this word, with all its defaults.
fn ours(name: &str) -> Option<Scheduler> {
    let text = super::setup::config_text(1, 250.0, Some(name), None);
    config::load("lab", &text).ok().map(|(config, _)| config.scheduler)
}

/// The place with the lowest score among the pods in use; ties are drawn.
fn lowest(view: &View<'_>, scores: impl Iterator<Item = f64>, rng: &mut impl Rng) -> usize {
    let (mut best, mut lowest, mut equals) = (0, f64::INFINITY, 0u32);
    for ((place, score), pod) in scores.enumerate().zip(view.pods) {
        if pod.out || score > lowest {
            continue;
        }
        equals = if score < lowest { 1 } else { equals + 1 };
        lowest = score;
        if rng.random_range(0..equals) == 0 {
            best = place;
        }
    }
    best
}

#[cfg(test)]
mod bench {
    //! What the rivals' tests stand on.

    use rand::SeedableRng as _;

    use super::*;

    /// Asks `rival` once, about a prompt of `prompt_tokens` tokens that no index has seen.
    pub(super) fn asked(rival: &mut dyn Rival, pods: &[Seen], prompt_tokens: f64) -> usize {
        asked_about(rival, pods, prompt_tokens, &Blocks::default())
    }

    /// The same about a prompt of these blocks.
    pub(super) fn asked_about(rival: &mut dyn Rival, pods: &[Seen], prompt_tokens: f64, blocks: &Blocks) -> usize {
        let view = View { pods, blocks, prompt_tokens, opening: 7, now_ms: 0.0 };
        rival.choose(&view, &mut StdRng::seed_from_u64(1))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn every_policy_is_found_by_its_name() {
        assert_eq!(Policy::all().len(), OURS.len() + RIVALS.len());
        for policy in Policy::all() {
            assert_eq!(Policy::find(policy.name()).unwrap().name(), policy.name());
        }
        assert!(Policy::find("fastest").is_none());
    }

    #[test]
    fn ties_are_drawn_and_the_lowest_wins() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut won = [0; 4];
        let blocks = Blocks::default();
        let mut pods = [Seen::default(); 5];
        pods[4].out = true;
        let view = View { pods: &pods, blocks: &blocks, prompt_tokens: 1.0, opening: 0, now_ms: 0.0 };
        let mut draw = || lowest(&view, [2.0, 1.0, 1.0, 1.0, 0.0].into_iter(), &mut rng);
        (0..3_000).for_each(|_| won[draw()] += 1);
        assert_eq!(won[0], 0);
        assert!(won[1..].iter().all(|it| (900..1_100).contains(it)), "{won:?}");
    }

    #[test]
    fn no_rule_chooses_a_pod_that_is_out_of_use() {
        let pods = [Seen { out: true, ..Seen::default() }, Seen { in_flight: 9.0, waiting: 9.0, ..Seen::default() }];
        for entry in &RIVALS {
            assert_eq!(bench::asked(&mut *(entry.make)(2), &pods, 100.0), 1, "{}", entry.name);
        }
    }
}
