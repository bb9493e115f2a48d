//! More work than the fleet can carry: what each admission policy makes of it.
//!
//! What a fleet can carry is found by the lab's own search. Crowds of 1 to 2 times that, and of tenants with far more, are
//! then played once with each door. All doors choose pods by the same rule.

mod claims;
mod groups;
mod page;
#[cfg(test)]
mod tests;
mod traffic;

pub use claims::claims;
pub use groups::{Group, Times};
pub use page::{page, pictures};
pub use traffic::Crowd;

use std::path::Path;

use super::{
    doors::Entry,
    league::{Watch, spread},
    rivals::Policy,
    script::{Client, Script},
    setup::Setup,
    study::Failed,
    tally::Slo,
    workloads::{Order, Rate, Workload},
    world::{self, Run},
};
use traffic::{CRITICAL, LIGHT, TIMES, only};

/// How much comes, in times of what the fleet can carry: at its edge, a bad minute, a bad hour, and half of it gone.
pub const LOADS: [f64; 4] = [1.0, 1.3, 1.5, 2.0];

/// The door that differs from another only between tenants.
const GIE_TURNS: &str = "gie-rr";

/// What the heavy tenant asks beside the light one.
const HEAVY: f64 = 1.5;

/// Parts of the time in which shares are drawn.
const PARTS: u32 = 24;

/// What is to be played.
pub struct Study<'a> {
    /// The traffic's name; requests that follow no other.
    pub workload: &'a str,
    /// The trace to use instead of its usual one.
    pub trace: Option<&'a Path>,
    /// The stage; its door and the rhythm of its scrape are each door's.
    pub setup: &'a Setup,
    /// Who chooses pods.
    pub policy: &'a Policy,
    /// The doors.
    pub doors: &'a [&'static Entry],
    /// By which promise.
    pub slo: Slo,
    /// What the fleet can carry, in requests a second.
    pub capacity: f64,
    /// On how many days.
    pub seeds: u64,
    /// Of how many virtual minutes.
    pub minutes: f64,
    /// On how many threads.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub watch: &'a dyn Watch,
}

/// What a group got on each day.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Days(pub Vec<Group>);

impl Days {
    /// A number's mean over the days.
    pub fn mean(&self, of: impl Fn(&Group) -> f64) -> f64 {
        self.0.iter().map(of).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// How far the day farthest from it is.
    pub fn spread(&self, of: impl Fn(&Group) -> f64) -> f64 {
        let mean = self.mean(&of);
        self.0.iter().map(|group| (of(group) - mean).abs()).fold(0.0, f64::max)
    }
}

/// One door at one load.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// The crowd.
    pub crowd: Crowd,
    /// What came, in times of what the fleet can carry.
    pub load: f64,
    /// The door.
    pub door: &'static str,
    /// Everybody.
    pub all: Days,
    /// The critical ones, or tenant 1.
    pub some: Days,
    /// Those who are not.
    pub others: Days,
    /// The critical ones, or tenant 1, had nobody else come; where that is asked for.
    pub alone: Days,
    /// What the fleet can carry, in requests a second.
    pub capacity: f64,
    /// For how many virtual minutes.
    pub minutes: f64,
    /// Of each part of the time, the share of what was computed that tenant 1 had, on the first day.
    pub shares: Vec<f64>,
}

/// What one day gave.
struct Day {
    all: Group,
    some: Group,
    others: Group,
    alone: Option<Group>,
    shares: Vec<f64>,
}

impl Study<'_> {
    /// How many runs a crowd takes.
    pub fn runs(&self, loads: usize) -> usize {
        loads * self.doors.len() * usize::try_from(self.seeds).unwrap_or(usize::MAX)
    }

    /// Plays a crowd at all its loads with all doors; where all are one tenant's, turns make no difference.
    ///
    /// # Errors
    /// If the traffic or the pool cannot be made.
    pub fn play(&self, crowd: Crowd, loads: &[f64]) -> Result<Vec<Sheet>, Failed> {
        let seeds = usize::try_from(self.seeds).unwrap_or(usize::MAX).max(1);
        let workloads: Result<Vec<_>, _> = loads.iter().map(|load| self.workload(*load)).collect();
        let turns = |door: &&&'static Entry| matches!(crowd, Crowd::Tenants | Crowd::Light) || door.name != GIE_TURNS;
        let chosen: Vec<&'static Entry> = self.doors.iter().filter(turns).copied().collect();
        let (workloads, doors) = (workloads?, chosen.len().max(1));
        let job = |nth: usize| {
            let (load, door) = (nth / seeds / doors, nth / seeds % doors);
            let (workload, door) = (workloads.get(load)?, *chosen.get(door)?);
            let mut script = workload.script((nth % seeds) as u64);
            crowd.paint(&mut script, self.slo.ttft_ms, *loads.get(load)?, (nth % seeds) as u64);
            Some(self.day(crowd, door, &script, (nth % seeds) as u64))
        };
        let days = spread(loads.len() * doors * seeds, self.threads, self.watch, job);
        let mut days = days.into_iter().flatten();
        let mut sheets = Vec::new();
        for load in loads {
            for door in &chosen {
                let days: Result<Vec<Day>, _> = days.by_ref().take(seeds).collect();
                sheets.push(self.sheet((crowd, *load, door.name), &days?));
            }
        }
        Ok(sheets)
    }

    fn workload(&self, load: f64) -> Result<Workload, Failed> {
        let rate = Rate::PerSecond(self.capacity * load);
        let (workload, pods) = (self.workload.to_owned(), self.setup.pods.len());
        Ok(Workload::new(&Order {
            workload,
            rate,
            minutes: self.minutes,
            pods,
            trace: self.trace.map(Path::to_owned),
        })?)
    }

    fn day(&self, crowd: Crowd, door: &'static Entry, script: &Script, seed: u64) -> Result<Day, Failed> {
        let mut setup = Setup { door, ..self.setup.clone() };
        setup.scrape.interval_ms = door.scrape_ms.unwrap_or(setup.scrape.interval_ms);
        let played = |script: &Script| -> Result<Run, Failed> {
            world::run(&setup, script, self.policy, seed).map_err(Failed::Pool)
        };
        let wanted = |client: &Client| crowd.picks_out(client);
        let run = played(script)?;
        let mut alone = None;
        // Each door's own, where it is told of; it is half of the work.
        if matches!(crowd, Crowd::Classes | Crowd::Light) && door.name == claims::OURS {
            let script = only(script, wanted);
            alone = Some(Group::of(&played(&script)?, &script, &self.slo, |_| true));
        }
        let of_all = groups::over_time(&run, script, PARTS, |_| true);
        let of_some = groups::over_time(&run, script, PARTS, wanted);
        Ok(Day {
            all: Group::of(&run, script, &self.slo, |_| true),
            some: Group::of(&run, script, &self.slo, wanted),
            others: Group::of(&run, script, &self.slo, |client| !wanted(client)),
            alone,
            shares: of_some.iter().zip(of_all).map(|(some, all)| some / all.max(1.0)).collect(),
        })
    }

    fn sheet(&self, (crowd, load, door): (Crowd, f64, &'static str), days: &[Day]) -> Sheet {
        let shares = days.first().map(|day| day.shares.clone()).unwrap_or_default();
        Sheet {
            crowd,
            load,
            door,
            all: Days(days.iter().map(|day| day.all).collect()),
            some: Days(days.iter().map(|day| day.some).collect()),
            others: Days(days.iter().map(|day| day.others).collect()),
            alone: Days(days.iter().filter_map(|day| day.alone).collect()),
            capacity: self.capacity,
            minutes: self.minutes,
            shares,
        }
    }
}

impl Crowd {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 5] = [Self::Classes, Self::Hurried, Self::Impatient, Self::Tenants, Self::Light];

    /// Its short name, fit for a file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classes => "classes",
            Self::Hurried => "hurried",
            Self::Impatient => "impatient",
            Self::Tenants => "tenants",
            Self::Light => "light",
        }
    }

    /// What it is called on the page.
    pub fn title(self) -> &'static str {
        match self {
            Self::Classes => "Half critical, half sheddable",
            Self::Hurried => "All alike, and all say when they want their first token",
            Self::Impatient => "All alike, and nobody says so",
            Self::Tenants => "Two tenants, both with more than the fleet can do",
            Self::Light => "A light tenant beside a heavy one",
        }
    }

    /// What it is, in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::Classes => {
                "Every request has `x-slo-ttft-ms`, the promised time. `alone` is the same run without the sheddable ones."
            }
            Self::Hurried => "Every request has `x-slo-ttft-ms`, the promised time.",
            Self::Impatient => {
                "Who has had nothing for 10 s goes, and comes again up to twice, as SDKs do; whoever is refused comes again \
                 after the pause it is told."
            }
            Self::Tenants => "One asks for as much as the fleet can carry, the other for ten times that.",
            Self::Light => {
                "The heavy tenant asks for 1.5 times what the fleet can carry, the light one for a twentieth of it; `alone` \
                 is the same run without the heavy one."
            }
        }
    }

    /// At which loads it is played.
    pub fn loads(self) -> Vec<f64> {
        match self {
            Self::Classes | Self::Hurried | Self::Impatient => LOADS.to_vec(),
            // The smaller demand alone is what the fleet can carry.
            Self::Tenants => vec![1.0 + TIMES],
            Self::Light => vec![HEAVY + LIGHT],
        }
    }

    /// Who is looked at beside all.
    fn picks_out(self, client: &Client) -> bool {
        match self {
            Self::Classes => client.priority == CRITICAL,
            Self::Hurried | Self::Impatient => true,
            Self::Tenants | Self::Light => client.tenant == 1,
        }
    }
}
