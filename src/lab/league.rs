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

    /// How far the seeds are from it at most.
    pub fn spread(&self, of: impl Fn(&Stats) -> f64) -> f64 {
        let mean = self.mean(&of);
        self.runs.iter().map(|stats| (of(stats) - mean).abs()).fold(0.0, f64::max)
    }
}

/// Lets every policy play every script.
///
/// # Errors
/// If the pool cannot be configured.
pub fn compete(contest: &Contest<'_>) -> Result<Vec<Standing>, config::Report> {
    let jobs = contest.policies.len() * contest.scripts.len();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs));
    std::thread::scope(|scope| {
        for _ in 0..contest.threads.clamp(1, jobs.max(1)) {
            scope.spawn(|| {
                while let Some(stats) = play(contest, next.fetch_add(1, Relaxed)) {
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(stats);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(job, _)| *job);
    let mut standings: Vec<Standing> =
        contest.policies.iter().map(|policy| Standing { policy: policy.name(), runs: Vec::new() }).collect();
    for (job, stats) in done {
        if let Some(standing) = standings.get_mut(job / contest.scripts.len()) {
            standing.runs.push(stats?);
        }
    }
    Ok(standings)
}

type Played = (usize, Result<Stats, config::Report>);

fn play(contest: &Contest<'_>, job: usize) -> Option<Played> {
    let policy = contest.policies.get(job.checked_div(contest.scripts.len())?)?;
    let seed = job % contest.scripts.len();
    let script = contest.scripts.get(seed)?;
    let run = world::run(contest.setup, script, policy, seed as u64);
    Some((job, run.map(|run| Stats::of(&run, contest.setup.pods.len(), &contest.slo))))
}
