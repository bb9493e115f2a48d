//! The stages of the benchmark: which pods a workload runs on, how they are seen, and what goes wrong when.

use super::{Unmade, lora};
use crate::{
    lab::{
        setup::{Fault, Mishap, Setup, Shift},
        tally::Slo,
    },
    sim::{EngineConfig, profiles, step::StepModel},
};

/// From one spell of trouble to the next, and from the start to the first in a run that is long enough.
const EVERY_MS: f64 = 300_000.0;
const FIRST_MS: f64 = 120_000.0;

/// How long a pod is slow (the workload's definition).
const SLOW_MS: f64 = 50_000.0;

/// How much slower.
const SLOW: f64 = 4.0;

/// How long a dead pod is away, and how long pages hang or stand still: a restart loads its weights in about a minute.
const AWAY_MS: f64 = 60_000.0;

/// Which pods there are.
#[derive(Clone, Debug)]
pub struct Pods {
    /// How many.
    pub count: usize,
    /// What they are, one after the other and again from the first.
    pub profiles: Vec<String>,
    /// Their KV cache in terms of the profile's.
    pub kv: f64,
    /// Their speed in terms of the profile's.
    pub speed: f64,
}

/// How many pods a workload is defined for.
pub fn usual_pods(workload: &str) -> usize {
    if workload == "w9" { 10 } else { 8 }
}

/// The stage that a workload asks for.
///
/// # Errors
/// If there is no profile of that name.
pub fn stage(workload: &str, pods: &Pods, minutes: f64) -> Result<Setup, Unmade> {
    // All of them, those too that would have their turn after the last pod.
    if let Some(unknown) = pods.profiles.iter().find(|name| profiles::find(name).is_none()) {
        return Err(Unmade::Profile(unknown.clone()));
    }
    let usual = usual_profiles(workload, pods.count);
    let profiles = if pods.profiles.is_empty() { &usual } else { &pods.profiles };
    let engines: Result<Vec<_>, _> = (0..pods.count).map(|nth| engine(profiles, nth, pods)).collect();
    let mut setup = Setup::new(engines?);
    let length_ms = minutes * 60_000.0;
    setup.faults = faults(workload, pods.count, length_ms);
    match workload {
        "w9" => with_adapters(&mut setup),
        "w12-weights" => {
            setup.adapters = 1;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time within the run")]
            let at_ms = (length_ms / 2.0) as u64;
            setup.shift = Some(Shift { at_ms, before: 10, after: 50 });
        }
        "w14-50ms" => setup.scrape.interval_ms = 50.0,
        "w14-200ms" => setup.scrape.interval_ms = 200.0,
        "w14-1s" => setup.scrape.interval_ms = 1_000.0,
        "w14-5s" => setup.scrape.interval_ms = 5_000.0,
        "w14-lossy" => setup.scrape.loss = 0.1,
        _ => {}
    }
    Ok(setup)
}

/// The promise that a workload is judged by: W11's is 1 s, all others' the headline.
pub fn promise(workload: &str) -> Slo {
    match workload {
        "w11" => Slo { ttft_ms: 1_000.0, ..Slo::HEADLINE },
        _ => Slo::HEADLINE,
    }
}

fn usual_profiles(workload: &str, pods: usize) -> Vec<String> {
    let names = match workload {
        "w11" => vec!["h100-8b", "a100-8b"],
        // One among so many, and the first.
        "w11-l40s" => [vec!["l40s-8b"], vec!["h100-8b"; pods.saturating_sub(1)]].concat(),
        _ => vec!["h100-7b"],
    };
    names.into_iter().map(str::to_owned).collect()
}

fn engine(profiles: &[String], nth: usize, pods: &Pods) -> Result<EngineConfig, Unmade> {
    let name = profiles.iter().cycle().nth(nth).map_or("h100-7b", String::as_str);
    let profile = profiles::find(name).ok_or_else(|| Unmade::Profile(name.to_owned()))?;
    let mut config = EngineConfig::new(StepModel::new(profile, pods.speed));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    let blocks = (f64::from(config.num_gpu_blocks) * pods.kv) as u32;
    config.num_gpu_blocks = blocks.max(2);
    Ok(config)
}

fn with_adapters(setup: &mut Setup) {
    setup.adapters = lora::ADAPTERS;
    let (least, most) = lora::LOAD_MS;
    for config in &mut setup.pods {
        config.max_loras = lora::MAX_LORAS;
        config.adapter_load_ms = least..=most;
    }
}

fn faults(workload: &str, pods: usize, length_ms: f64) -> Vec<Fault> {
    let half = 0..pods / 2;
    match workload {
        "w12" => spells(length_ms, SLOW_MS, [Mishap::Slow(SLOW), Mishap::Slow(1.0)], &[0]),
        "w12-death" => spells(length_ms, AWAY_MS, [Mishap::Dies, Mishap::Returns], &[0]),
        "w12-hung" => spells(length_ms, AWAY_MS, [Mishap::PagesHang, Mishap::PagesHeal], &half.collect::<Vec<_>>()),
        "w12-frozen" => spells(length_ms, AWAY_MS, [Mishap::PagesFreeze, Mishap::PagesHeal], &half.collect::<Vec<_>>()),
        "w12-join" if pods > 1 => vec![Fault { at_ms: length_ms / 3.0, pod: pods - 1, what: Mishap::Joins }],
        _ => Vec::new(),
    }
}

/// The same trouble again and again, each time for so long. Short runs have it once, after a third of their time.
fn spells(length_ms: f64, long_ms: f64, [begin, end]: [Mishap; 2], pods: &[usize]) -> Vec<Fault> {
    let first = FIRST_MS.min(length_ms / 3.0);
    let starts = (0..).map(|nth| first + f64::from(nth) * EVERY_MS).take_while(|at_ms| *at_ms < length_ms);
    let turns = starts.flat_map(|at_ms| [(at_ms, begin), (at_ms + long_ms, end)]);
    turns.flat_map(|(at_ms, what)| pods.iter().map(move |pod| Fault { at_ms, pod: *pod, what })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(count: usize) -> Pods {
        Pods { count, profiles: Vec::new(), kv: 1.0, speed: 1.0 }
    }

    #[test]
    fn trouble_comes_after_two_minutes_and_every_five_and_in_short_runs_once() {
        let times = |minutes| -> Vec<f64> {
            stage("w12", &pods(8), minutes).unwrap().faults.iter().map(|fault| fault.at_ms / 1e3).collect()
        };
        assert_eq!(times(10.0), [120.0, 170.0, 420.0, 470.0]);
        assert_eq!(times(3.0), [60.0, 110.0]);
    }

    #[test]
    fn an_unknown_profile_is_told_even_if_it_has_no_turn() {
        let pods = Pods { profiles: ["h100-7b", "h100-70x"].map(str::to_owned).into(), ..pods(1) };
        assert!(matches!(stage("w2", &pods, 3.0), Err(Unmade::Profile(name)) if name == "h100-70x"));
    }

    #[test]
    fn half_the_pods_show_old_pages_and_the_last_pod_joins() {
        let frozen = stage("w12-frozen", &pods(8), 3.0).unwrap();
        assert_eq!(frozen.faults.len(), 8);
        assert_eq!(frozen.faults[3], Fault { at_ms: 60_000.0, pod: 3, what: Mishap::PagesFreeze });
        let join = stage("w12-join", &pods(8), 3.0).unwrap();
        assert_eq!((join.early_pods(), join.pods.len()), (7, 8));
        assert_eq!(stage("w12-join", &pods(1), 3.0).unwrap().early_pods(), 1);
    }

    #[test]
    fn stages_have_the_hardware_that_they_are_about() {
        let names = |workload| -> Vec<&str> {
            let setup = stage(workload, &pods(4), 3.0).unwrap();
            setup.pods.iter().map(|config| config.step.profile().name).collect()
        };
        assert_eq!(names("w11"), ["h100-8b", "a100-8b", "h100-8b", "a100-8b"]);
        assert_eq!(names("w11-l40s"), ["l40s-8b", "h100-8b", "h100-8b", "h100-8b"]);
        let lora = stage("w9", &pods(4), 3.0).unwrap();
        assert_eq!((lora.adapters, lora.pods[0].max_loras), (15, 3));
    }
}
