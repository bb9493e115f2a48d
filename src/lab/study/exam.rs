//! One stage and one kind of traffic, examined from rate to rate: tables, capacities, what happens beyond them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
};

use super::{
    bounds::{bounds, gap_closed, nearest},
    capacity::{Point, Search},
};
use crate::{
    config,
    lab::{
        Contest, Policy, Script, Setup, Slo, Standing, Stats, compete_watched,
        league::{Watch, spread},
        workloads::{Order, Rate, Unmade, Workload},
        world,
    },
};

/// The first search is for the neighbourhood only: no closer than this, on one seed of a few minutes.
const ROUGHLY: f64 = 0.04;
const ROUGH_MINUTES: f64 = 5.0;

/// How far beyond its capacity a policy is looked at.
const BEYOND: f64 = 1.1;

/// Why an examination cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The traffic or the stage cannot be made.
    #[error(transparent)]
    Unmade(#[from] Unmade),
    /// The pool cannot be configured.
    #[error("the pool cannot be configured: {0}")]
    Pool(config::Report),
    /// Nobody came on one of the days: its numbers would be about nothing.
    #[error("no requests fell in the time; raise --rate or --minutes")]
    Nobody,
}

/// What stays the same from rate to rate.
#[derive(Clone)]
pub struct Exam<'a> {
    /// The traffic's name.
    pub workload: &'a str,
    /// The stage.
    pub setup: &'a Setup,
    /// Who.
    pub policies: &'a [Policy],
    /// By which promise.
    pub slo: Slo,
    /// On how many days of the traffic.
    pub seeds: u64,
    /// Of how many virtual minutes each.
    pub minutes: f64,
    /// The trace to use instead of the usual one.
    pub trace: Option<PathBuf>,
    /// On how many threads.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub watch: &'a dyn Watch,
}

/// What all did at one rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// The rate.
    pub rate: Rate,
    /// The policies.
    pub standings: Vec<Standing>,
    /// The bounds, if they were asked for.
    pub bounds: Vec<Standing>,
    /// The trace that was played, if one was.
    pub trace: Option<String>,
}

/// What a policy can carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// Whose.
    pub policy: &'static str,
    /// For each attainment asked for, the highest rate that kept it; `None` if none did.
    pub at: Vec<Option<Point>>,
}

/// Our policy at its capacity and a little beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overload {
    /// The capacity, at the lowest attainment asked for.
    pub rate: f64,
    /// Goodput there.
    pub at: f64,
    /// Goodput at 1.1 times that.
    pub beyond: f64,
}

/// Everything about one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Chapter {
    /// Its short name, fit for a file.
    pub name: String,
    /// What it is, in a line.
    pub title: String,
    /// The conditions, in a line.
    pub terms: String,
    /// One table a rate.
    pub sheets: Vec<Sheet>,
    /// Which attainments the capacities are for.
    pub levels: Vec<f64>,
    /// Capacities, if they were looked for.
    pub capacities: Vec<Capacity>,
    /// How our policy takes a little too much, if that was looked at.
    pub overload: Option<Overload>,
}

impl Chapter {
    /// One without numbers yet.
    pub fn new(name: &str, title: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            terms: String::new(),
            sheets: Vec::new(),
            levels: Vec::new(),
            capacities: Vec::new(),
            overload: None,
        }
    }
}

impl Sheet {
    /// A policy's standing, or a bound's.
    pub fn of(&self, policy: &str) -> Option<&Standing> {
        self.standings.iter().chain(&self.bounds).find(|it| it.policy == policy)
    }

    /// Of the gap between round robin and the nearer bound, by mean TTFT, what this policy has closed; bounds have no gap.
    pub fn gap_closed(&self, standing: &Standing) -> Option<f64> {
        let ttft = |it: &Standing| it.mean(|stats| stats.ttft_mean);
        if self.bounds.is_empty() || self.bounds.iter().any(|bound| bound.policy == standing.policy) {
            return None;
        }
        gap_closed(ttft(self.of("round-robin")?), ttft(standing), nearest(&self.bounds))
    }

    /// Whose requests were not all answered to the end, in a line; they miss the promise and are in no mean.
    pub fn unanswered(&self) -> Option<String> {
        let count = |it: &Standing| (it.policy, it.runs.iter().map(|stats| stats.unanswered).sum::<usize>());
        let some: Vec<String> = (self.standings.iter().map(count).filter(|(_, count)| *count > 0))
            .map(|(policy, count)| format!("{policy} {count}"))
            .collect();
        (!some.is_empty()).then(|| format!("Requests not answered to the end, of all seeds: {}.", some.join(", ")))
    }
}

impl Exam<'_> {
    /// How many runs a sheet takes.
    pub fn sheet_runs(&self) -> usize {
        (self.policies.len() + super::BOUNDS.len()) * usize::try_from(self.seeds).unwrap_or(usize::MAX)
    }

    /// Everybody at this rate, and the bounds if asked for.
    ///
    /// # Errors
    /// If the traffic or the pool cannot be made.
    pub fn sheet(&self, rate: Rate, with_bounds: bool) -> Result<Sheet, Failed> {
        let workload = self.workload(rate)?;
        let scripts: Vec<Script> = (0..self.seeds).map(|seed| workload.script(seed)).collect();
        if scripts.iter().any(Script::is_silent) {
            return Err(Failed::Nobody);
        }
        let (setup, policies, slo, threads) = (self.setup, self.policies, self.slo, self.threads);
        let contest = Contest { setup, policies, scripts: &scripts, slo, threads };
        let standings = compete_watched(&contest, self.watch).map_err(Failed::Pool)?;
        let bounds = if with_bounds { bounds(&contest, self.watch).map_err(Failed::Pool)? } else { Vec::new() };
        Ok(Sheet { rate, standings, bounds, trace: workload.trace() })
    }

    /// What everybody can carry, at each of these attainments; all policies' searches go on side by side. First roughly
    /// on a part of one seed, then closely on all, from where that ended.
    ///
    /// # Errors
    /// If the traffic or the pool cannot be made.
    pub fn capacities(&self, start: Rate, levels: &[f64], resolution: f64) -> Result<Vec<Capacity>, Failed> {
        // Where the search begins; that nobody comes at some far lower rate is an answer.
        if self.workload(start)?.script(0).is_silent() {
            return Err(Failed::Nobody);
        }
        let rough = Exam { seeds: 1, minutes: self.minutes.min(ROUGH_MINUTES), ..self.clone() };
        let whole = self.counts_users();
        let from = Search { level: 0.0, start: number(start), step: 2.0, resolution: ROUGHLY.max(resolution), whole };
        let roughly = rough.searched(start, &vec![vec![from; levels.len()]; self.policies.len()], levels)?;
        let close = |found: Option<Point>| Search {
            start: found.map_or(from.start, |point| point.rate),
            step: 1.0 + ROUGHLY,
            resolution,
            ..from
        };
        let searches: Vec<Vec<Search>> =
            roughly.iter().map(|capacity| capacity.at.iter().copied().map(close).collect()).collect();
        self.searched(start, &searches, levels)
    }

    /// Our policy at the capacity that was found for it, and at a little more.
    ///
    /// # Errors
    /// If the traffic or the pool cannot be made.
    pub fn overload(&self, unit: Rate, capacity: Point) -> Result<Option<Overload>, Failed> {
        let seeds = usize::try_from(self.seeds).unwrap_or(usize::MAX);
        self.watch.expect(2 * self.policies.len() * seeds);
        let goodput = |rate: f64| -> Result<Option<f64>, Failed> {
            let sheet = self.sheet(like(unit, rate), false)?;
            Ok(sheet.standings.first().map(|it| it.mean(|stats| stats.goodput)))
        };
        let (at, beyond) = (goodput(capacity.rate)?, goodput(capacity.rate * BEYOND)?);
        Ok(at.zip(beyond).map(|(at, beyond)| Overload { rate: capacity.rate, at, beyond }))
    }

    /// Round by round: each policy names the rate that it needs next, and all are measured together.
    fn searched(&self, unit: Rate, searches: &[Vec<Search>], levels: &[f64]) -> Result<Vec<Capacity>, Failed> {
        let mut points: Vec<Vec<Point>> = vec![Vec::new(); self.policies.len()];
        let leveled = |searches: &[Search]| -> Vec<Search> {
            searches.iter().zip(levels).map(|(search, level)| Search { level: *level, ..*search }).collect()
        };
        let searches: Vec<Vec<Search>> = searches.iter().map(|list| leveled(list)).collect();
        loop {
            let wanted = |(list, points): (&Vec<Search>, &Vec<Point>)| list.iter().find_map(|it| it.next(points));
            let rates: Vec<Option<f64>> = searches.iter().zip(&points).map(wanted).collect();
            if rates.iter().all(Option::is_none) {
                break;
            }
            for (place, point) in self.measured(unit, &rates)? {
                if let Some(points) = points.get_mut(place) {
                    points.push(point);
                }
            }
        }
        let capacity = |((policy, searches), points): ((&Policy, &Vec<Search>), &Vec<Point>)| Capacity {
            policy: policy.name(),
            at: searches.iter().map(|search| search.found(points)).collect(),
        };
        Ok(self.policies.iter().zip(&searches).zip(&points).map(capacity).collect())
    }

    /// The policies that want a rate, each at its own, on all seeds.
    fn measured(&self, unit: Rate, rates: &[Option<f64>]) -> Result<Vec<(usize, Point)>, Failed> {
        let mut workloads = BTreeMap::new();
        for rate in rates.iter().flatten() {
            // One trace is read once a rate, however many want it.
            if let Entry::Vacant(place) = workloads.entry(rate.to_bits()) {
                place.insert(self.workload(like(unit, *rate))?);
            }
        }
        let wanted = rates.iter().zip(self.policies).enumerate();
        let wanted: Vec<(usize, f64, &Policy)> =
            wanted.filter_map(|(place, (rate, policy))| Some((place, (*rate)?, policy))).collect();
        let seeds = usize::try_from(self.seeds).unwrap_or(usize::MAX).max(1);
        let play = |job: usize| -> Option<Result<Stats, config::Report>> {
            let (_, rate, policy) = wanted.get(job / seeds)?;
            let seed = (job % seeds) as u64;
            let script = workloads.get(&rate.to_bits())?.script(seed);
            let run = world::run(self.setup, &script, policy, seed);
            Some(run.map(|run| Stats::of(&run, self.setup.pods.len(), &self.slo)))
        };
        self.watch.expect(wanted.len() * seeds);
        let mut played = spread(wanted.len() * seeds, self.threads, self.watch, play).into_iter().flatten();
        let mut measured = Vec::with_capacity(wanted.len());
        for (place, rate, policy) in wanted {
            let runs: Result<Vec<Stats>, _> = played.by_ref().take(seeds).collect();
            let standing = Standing { policy: policy.name(), runs: runs.map_err(Failed::Pool)? };
            let per_second = standing.mean(|stats| stats.offered_per_second);
            let attainment = standing.mean(|stats| stats.attainment);
            measured.push((place, Point { rate, per_second, attainment }));
        }
        Ok(measured)
    }

    fn workload(&self, rate: Rate) -> Result<Workload, Failed> {
        let (workload, trace) = (self.workload.to_owned(), self.trace.clone());
        Ok(Workload::new(&Order { workload, rate, minutes: self.minutes, pods: self.setup.pods.len(), trace })?)
    }

    /// Whether the rate is a number of users.
    fn counts_users(&self) -> bool {
        matches!(self.workload, "w5" | "w6" | "w7")
    }
}

/// A rate's number.
fn number(rate: Rate) -> f64 {
    match rate {
        Rate::PerSecond(number) | Rate::Times(number) => number,
    }
}

/// A rate in another's unit.
fn like(unit: Rate, number: f64) -> Rate {
    match unit {
        Rate::PerSecond(_) => Rate::PerSecond(number),
        Rate::Times(_) => Rate::Times(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::study::benchmark;
    use crate::sim::{EngineConfig, profiles, step::StepModel};

    #[test]
    fn a_sheet_has_everybody_and_the_bounds_and_the_gap_is_between_them() {
        let setup = Setup::new(vec![EngineConfig::new(StepModel::new(profiles::find("h100-7b").unwrap(), 1.0)); 2]);
        let policies = ["least-cost", "round-robin"].map(|name| Policy::find(name).unwrap());
        let exam = Exam {
            workload: "w4",
            setup: &setup,
            policies: &policies,
            slo: Slo::HEADLINE,
            seeds: 2,
            minutes: 0.3,
            trace: None,
            threads: 2,
            watch: &(),
        };
        let sheet = exam.sheet(Rate::PerSecond(8.0), true).unwrap();
        assert_eq!((sheet.standings.len(), sheet.bounds.len(), exam.sheet_runs()), (2, 2, 8));
        assert_eq!(sheet, exam.sheet(Rate::PerSecond(8.0), true).unwrap(), "the same numbers twice");
        let gap = |policy: &str| sheet.gap_closed(sheet.of(policy).unwrap()).unwrap();
        assert!(gap("round-robin").abs() < 1e-9);
        assert!(gap("least-cost") > 0.0 && gap("least-cost") < 1.0, "{}", gap("least-cost"));
        assert_eq!(sheet.gap_closed(&sheet.bounds[0]), None);
        let bare = exam.sheet(Rate::PerSecond(8.0), false).unwrap();
        assert_eq!(bare.gap_closed(&bare.standings[0]), None);
        let nobody = Rate::PerSecond(1e-6);
        assert!(matches!(exam.sheet(nobody, true), Err(Failed::Nobody)));
        assert!(matches!(exam.capacities(nobody, &[0.9], 0.1), Err(Failed::Nobody)));
        assert!(
            benchmark::terms(1, "h100-7b", &Exam { seeds: 1, ..exam }).starts_with("1 pod (h100-7b), 1 seed of 0.3")
        );
    }

    #[test]
    fn capacities_are_found_side_by_side_and_keep_the_promise() {
        let setup = Setup::new(vec![EngineConfig::new(StepModel::new(profiles::find("h100-7b").unwrap(), 1.0)); 2]);
        let policies = ["least-cost", "round-robin"].map(|name| Policy::find(name).unwrap());
        let (slo, watch) = (Slo { ttft_ms: 500.0, tpot_ms: 20.0 }, &());
        let exam = Exam {
            workload: "w4",
            setup: &setup,
            policies: &policies,
            slo,
            seeds: 1,
            minutes: 0.3,
            trace: None,
            threads: 2,
            watch,
        };
        let found = exam.capacities(Rate::PerSecond(4.0), &[0.9], 0.1).unwrap();
        assert_eq!(found.iter().map(|it| it.policy).collect::<Vec<_>>(), ["least-cost", "round-robin"]);
        for capacity in &found {
            let point = capacity.at[0].unwrap();
            assert!(point.attainment >= 0.9 && point.rate > 0.5, "{capacity:?}");
        }
    }
}
