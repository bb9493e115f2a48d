//! The whole benchmark in one table: which traffic, on which pods, at which rates, for how long.
//!
//! It is meant to be gone through in half an hour on two cores. So there are twenty virtual minutes where the traffic
//! itself changes slowly (recorded conversations, sessions that grow), and where it does not, as many as give every
//! policy tens of thousands of requests over the seeds. Rates lie below, near and above what round robin can carry. To
//! examine one more kind of traffic, add a line.

use super::exam::{Chapter, Exam, Failed};
use crate::lab::{
    Policy, Setup, Slo,
    league::Watch,
    workloads::{self, Pods, Rate, Unmade},
};

/// The policy that this house stands for: the configuration's default.
pub const OURS: &str = "least-cost";

/// The attainment at which capacity is asked for here.
const LEVEL: f64 = 0.9;

/// Whose capacities are looked for beside ours and round robin's: the routers that carry most, and the one that most
/// gateways begin with. The others carried less than all of these where they were looked for.
const RIVALRY: [&str; 5] = ["gie", "sglang", "dynamo", "sticky", "lmetric"];

/// Virtual minutes of a search's runs: it takes dozens of them.
const SEARCH_MINUTES: f64 = 10.0;

/// Capacities are told to one in a hundred.
pub const RESOLUTION: f64 = 0.01;

/// One kind of traffic on one stage.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Its name: what the traffic is called, or that and what is special here.
    pub name: &'static str,
    /// The traffic.
    pub workload: &'static str,
    /// How many pods.
    pub pods: usize,
    /// What they are, in turn; nothing leaves it to the workload.
    pub profiles: &'static [&'static str],
    /// At which rates everybody is compared.
    pub rates: &'static [Rate],
    /// How many virtual minutes each.
    pub minutes: f64,
    /// From one page of metrics to the next, where that is not the default.
    pub scrape_ms: Option<f64>,
    /// Gateways that share the traffic and know nothing of each other.
    pub gateways: usize,
    /// Whose capacities are looked for, beginning where.
    pub capacity: Search,
}

/// Whose capacities are looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// Nobody's.
    Nobody,
    /// Ours alone, to see what happens a little beyond it.
    Ours(Rate),
    /// Ours, round robin's and every other router's.
    All(Rate),
}

/// How thoroughly it is gone through.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// On how many days of each traffic.
    pub seeds: u64,
    /// Of at most how many virtual minutes.
    pub minutes: f64,
    /// On how many threads.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub watch: &'a dyn Watch,
}

const CHAT: Stage = Stage {
    name: "w2",
    workload: "w2",
    pods: 8,
    profiles: &["h100-7b"],
    rates: &[PerSecond(60.0), PerSecond(100.0), PerSecond(150.0)],
    minutes: 1.5,
    scrape_ms: None,
    gateways: 1,
    capacity: Search::Nobody,
};

use Rate::{PerSecond, Times};

/// All stages, in the order of the report.
pub static STAGES: [Stage; 26] = [
    Stage {
        name: "w1",
        workload: "w1",
        rates: &[Times(4.0)],
        minutes: 20.0,
        capacity: Search::All(Times(4.0)),
        ..CHAT
    },
    Stage { name: "w1-32b", workload: "w1", profiles: &["h100-32b-tp2"], rates: &[Times(1.5)], minutes: 20.0, ..CHAT },
    Stage { capacity: Search::Ours(PerSecond(150.0)), ..CHAT },
    Stage { name: "w2-cv2", workload: "w2-cv2", rates: &[PerSecond(120.0)], minutes: 1.0, ..CHAT },
    Stage { name: "w2-cv4", workload: "w2-cv4", rates: &[PerSecond(120.0)], minutes: 1.0, ..CHAT },
    Stage { name: "w2-recorded", workload: "w2-recorded", rates: &[Times(20.0)], minutes: 1.0, ..CHAT },
    Stage {
        name: "w4",
        workload: "w4",
        profiles: &["h100-32b-tp2"],
        rates: &[PerSecond(5.0), PerSecond(10.0), PerSecond(15.0)],
        minutes: 2.0,
        capacity: Search::Ours(PerSecond(10.0)),
        ..CHAT
    },
    Stage {
        name: "w4-inverse",
        workload: "w4-inverse",
        profiles: &["h100-32b-tp2"],
        rates: &[PerSecond(5.0)],
        minutes: 5.0,
        ..CHAT
    },
    Stage {
        name: "w5",
        workload: "w5",
        rates: &[PerSecond(40.0)],
        minutes: 20.0,
        capacity: Search::Ours(PerSecond(30.0)),
        ..CHAT
    },
    Stage { name: "w6", workload: "w6", rates: &[PerSecond(450.0)], minutes: 10.0, ..CHAT },
    Stage { name: "w7", workload: "w7", rates: &[PerSecond(50.0)], minutes: 20.0, ..CHAT },
    Stage { name: "w10-gamma", workload: "w10-gamma", rates: &[PerSecond(100.0)], minutes: 1.0, ..CHAT },
    Stage { name: "w10-wave", workload: "w10-wave", rates: &[PerSecond(40.0)], ..CHAT },
    // One volley: the next one would not find the pods as idle.
    Stage { name: "w10-200", workload: "w10-200", rates: &[PerSecond(200.0)], minutes: 0.1, ..CHAT },
    Stage {
        name: "w11",
        workload: "w11",
        profiles: &[],
        rates: &[PerSecond(100.0)],
        minutes: 1.5,
        capacity: Search::Ours(PerSecond(100.0)),
        ..CHAT
    },
    // One slow spell, from the end of the second minute on.
    Stage { name: "w12", workload: "w12", rates: &[PerSecond(120.0)], minutes: 4.0, ..CHAT },
    Stage { name: "w12-death", workload: "w12-death", rates: &[PerSecond(120.0)], minutes: 2.0, ..CHAT },
    Stage { name: "w12-hung", workload: "w12-hung", rates: &[PerSecond(120.0)], minutes: 2.0, ..CHAT },
    Stage { name: "w12-frozen", workload: "w12-frozen", rates: &[PerSecond(120.0)], minutes: 2.0, ..CHAT },
    Stage { name: "w12-join", workload: "w12-join", rates: &[PerSecond(120.0)], minutes: 2.0, ..CHAT },
    // Three slots on each of ten pods for fifteen adapters.
    Stage { name: "w9", workload: "w9", pods: 10, rates: &[PerSecond(40.0)], minutes: 2.0, ..CHAT },
    Stage { name: "w11-l40s", workload: "w11-l40s", profiles: &[], rates: &[PerSecond(100.0)], minutes: 1.0, ..CHAT },
    Stage { name: "w13-64", workload: "w13", pods: 64, rates: &[PerSecond(15.0)], minutes: 0.3, ..CHAT },
    Stage { name: "w13-4-gateways", workload: "w13", gateways: 4, rates: &[PerSecond(15.0)], minutes: 1.0, ..CHAT },
    Stage { name: "w14-50ms", rates: &[PerSecond(150.0)], scrape_ms: Some(50.0), minutes: 1.0, ..CHAT },
    Stage { name: "w14-1s", rates: &[PerSecond(150.0)], scrape_ms: Some(1_000.0), minutes: 1.0, ..CHAT },
];

impl Stage {
    /// By its name.
    pub fn find(name: &str) -> Option<&'static Self> {
        STAGES.iter().find(|stage| stage.name == name)
    }

    /// How many runs its tables take; what a search takes shows as it goes.
    pub fn runs(&self, seeds: u64) -> usize {
        let everybody = Policy::all().len() + super::BOUNDS.len();
        self.rates.len() * everybody * usize::try_from(seeds).unwrap_or(usize::MAX)
    }

    /// Plays all of it.
    ///
    /// # Errors
    /// If the traffic or the pool cannot be made.
    pub fn play(&self, pass: &Pass<'_>) -> Result<Chapter, Failed> {
        let (policies, minutes) = (Policy::all(), self.minutes.min(pass.minutes));
        let setup = self.setup(minutes)?;
        let exam = Exam {
            workload: self.workload,
            setup: &setup,
            policies: &policies,
            slo: workloads::promise(self.workload),
            seeds: pass.seeds,
            minutes,
            trace: None,
            threads: pass.threads,
            watch: pass.watch,
        };
        let sheets: Result<Vec<_>, _> = self.rates.iter().map(|rate| exam.sheet(*rate, true)).collect();
        let mut chapter = self.chapter(&exam);
        chapter.sheets = sheets?;
        self.search(&exam, &mut chapter)?;
        Ok(chapter)
    }

    fn search(&self, exam: &Exam<'_>, chapter: &mut Chapter) -> Result<(), Failed> {
        let (start, searched) = match self.capacity {
            Search::Nobody => return Ok(()),
            Search::Ours(start) => (start, searched(|name| name == OURS)),
            Search::All(start) => {
                (start, searched(|name| [OURS, "round-robin"].contains(&name) || RIVALRY.contains(&name)))
            }
        };
        let minutes = exam.minutes.min(SEARCH_MINUTES);
        let all = Exam { policies: &searched, minutes, ..exam.clone() };
        chapter.capacities = all.capacities(start, &[LEVEL], RESOLUTION)?;
        chapter.levels = vec![LEVEL];
        let capacity = chapter.capacities.iter().find(|it| it.policy == OURS);
        if let Some(point) = capacity.and_then(|it| it.at.first().copied().flatten()) {
            let ours = self::searched(|name| name == OURS);
            chapter.overload = Exam { policies: &ours, ..exam.clone() }.overload(start, point)?;
        }
        Ok(())
    }

    fn chapter(&self, exam: &Exam<'_>) -> Chapter {
        let what = workloads::WORKLOADS.iter().find(|(name, _)| *name == self.workload).map_or("", |(_, what)| what);
        let profiles =
            if self.profiles.is_empty() { "as the workload has them".to_owned() } else { self.profiles.join(", ") };
        let terms = terms(self.pods, &profiles, exam);
        Chapter { terms, ..Chapter::new(self.name, what) }
    }

    fn setup(&self, minutes: f64) -> Result<Setup, Unmade> {
        let profiles = self.profiles.iter().map(|&name| name.to_owned()).collect();
        let pods = Pods { count: self.pods, profiles, kv: 1.0, speed: 1.0 };
        let mut setup = workloads::stage(self.workload, &pods, minutes)?;
        if let Some(interval_ms) = self.scrape_ms {
            setup.scrape.interval_ms = interval_ms;
        }
        setup.gateways = self.gateways;
        Ok(setup)
    }
}

/// The policies whose names are wanted.
fn searched(wanted: impl Fn(&str) -> bool) -> Vec<Policy> {
    Policy::all().into_iter().filter(|policy| wanted(policy.name())).collect()
}

fn plural(one: bool) -> &'static str {
    if one { "" } else { "s" }
}

/// The conditions of an examination, in a line.
pub fn terms(pods: usize, profiles: &str, exam: &Exam<'_>) -> String {
    let Slo { ttft_ms, tpot_ms } = exam.slo;
    format!(
        "{pods} pod{} ({profiles}), {} seed{} of {} virtual minute{}, pages every {:.0} ms, SLO {} s / {tpot_ms} ms",
        plural(pods == 1),
        exam.seeds,
        plural(exam.seeds == 1),
        exam.minutes,
        plural(exam.minutes.to_bits() == 1.0_f64.to_bits()),
        exam.setup.scrape.interval_ms,
        ttft_ms / 1e3
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_stage_has_a_name_of_its_own_and_can_be_set_up() {
        let names: BTreeSet<_> = STAGES.iter().map(|stage| stage.name).collect();
        assert_eq!(names.len(), STAGES.len());
        for stage in &STAGES {
            assert_eq!(stage.setup(stage.minutes).unwrap().pods.len(), stage.pods, "{}", stage.name);
            assert!(workloads::WORKLOADS.iter().any(|(name, _)| *name == stage.workload), "{}", stage.name);
            assert!(!stage.rates.is_empty() && stage.minutes > 0.0);
        }
    }

    #[test]
    fn the_volley_is_one_and_a_stage_is_played_with_everybody_on_it() {
        let pass = Pass { seeds: 1, minutes: 20.0, threads: 2, watch: &() };
        let chapter = Stage::find("w10-200").unwrap().play(&pass).unwrap();
        let [sheet] = chapter.sheets.as_slice() else { panic!("{chapter:?}") };
        assert_eq!(sheet.standings.len(), Policy::all().len());
        assert!((sheet.of(OURS).unwrap().mean(|stats| stats.offered as f64) - 180.0).abs() < 1e-9);
        assert!(chapter.terms.contains("8 pods (h100-7b)"), "{}", chapter.terms);
        assert_eq!((chapter.capacities.len(), chapter.overload), (0, None));
    }
}
