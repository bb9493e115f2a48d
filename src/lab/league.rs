//! Many runs, spread over the cores: every policy on every seed's traffic.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{
    rivals::Policy,
    script::Script,
    setup::Setup,
    tally::{Slo, Stats},
    world,
};
use crate::config;

/// What is to be compared.
#[derive(Debug)]
pub struct Contest<'a> {
    /// On which stage.
    pub setup: &'a Setup,
    /// Who.
    pub policies: &'a [Policy],
    /// On which traffic: one script for each seed.
    pub scripts: &'a [Script],
    /// By which promise.
    pub slo: Slo,
    /// On how many threads.
    pub threads: usize,
}

/// One policy's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Its name.
    pub policy: &'static str,
    /// One for each script, in their order.
    pub runs: Vec<Stats>,
}

impl Standing {
    /// A number's mean over the seeds.
    pub fn mean(&self, of: impl Fn(&Stats) -> f64) -> f64 {
        self.runs.iter().map(of).sum::<f64>() / self.runs.len().max(1) as f64
    }

    /// How far the seeds are from it at most; one seed says nothing of that.
    pub fn spread(&self, of: impl Fn(&Stats) -> f64) -> Option<f64> {
        let mean = self.mean(&of);
        (self.runs.len() > 1).then(|| self.runs.iter().map(|stats| (of(stats) - mean).abs()).fold(0.0, f64::max))
    }
}

/// Who wants to know how far the runs are.
pub trait Watch: Sync {
    /// So many more runs are to come.
    fn expect(&self, runs: usize);
    /// One is over.
    fn done(&self);
}

/// Nobody does.
impl Watch for () {
    fn expect(&self, _: usize) {}
    fn done(&self) {}
}

/// Lets every policy play every script.
///
/// # Errors
/// If the pool cannot be configured.
pub fn compete(contest: &Contest<'_>) -> Result<Vec<Standing>, config::Report> {
    compete_watched(contest, &())
}

/// The same, and tells `watch` when a run is over.
///
/// # Errors
/// If the pool cannot be configured.
pub fn compete_watched(contest: &Contest<'_>, watch: &dyn Watch) -> Result<Vec<Standing>, config::Report> {
    let seeds = contest.scripts.len();
    let played = spread(contest.policies.len() * seeds, contest.threads, watch, |job| play(contest, job));
    let mut played = played.into_iter().flatten();
    let standing = |policy: &Policy| {
        let runs: Result<_, _> = played.by_ref().take(seeds).collect();
        Ok(Standing { policy: policy.name(), runs: runs? })
    };
    contest.policies.iter().map(standing).collect()
}

fn play(contest: &Contest<'_>, job: usize) -> Option<Result<Stats, config::Report>> {
    let policy = contest.policies.get(job.checked_div(contest.scripts.len())?)?;
    let seed = job % contest.scripts.len();
    let script = contest.scripts.get(seed)?;
    let run = world::run(contest.setup, script, policy, seed as u64);
    Some(run.map(|run| Stats::of(&run, contest.setup.pods.len(), &contest.slo)))
}

/// Plays jobs on so many threads; what they gave, in the order of their numbers.
pub(super) fn spread<T: Send>(
    jobs: usize,
    threads: usize,
    watch: &dyn Watch,
    play: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs));
    let work = || {
        loop {
            let job = next.fetch_add(1, Relaxed);
            if job >= jobs {
                return;
            }
            let given = play(job);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((job, given));
            watch.done();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.max(1)) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, given)| given).collect()
}
