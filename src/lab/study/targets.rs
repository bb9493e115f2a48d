//! What is promised of our policy, put beside what was measured.

use super::{Chapter, Sheet, benchmark::OURS};
use crate::lab::{RIVALS, Standing, Stats, workloads::Rate};

/// The policy that looks inside the engines: nobody's rival.
const ORACLE: &str = "oracle";

/// One promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// On what.
    pub stage: String,
    /// What is promised.
    pub wanted: String,
    /// What was measured.
    pub measured: String,
    /// Whether that is enough.
    pub met: bool,
}

/// Where a number is found.
type Of = fn(&Stats) -> f64;

/// What a number has to be.
#[derive(Clone, Copy, Debug)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    /// A number that is not one is never enough.
    fn holds(self, number: f64) -> bool {
        match self {
            Self::AtLeast(bar) => number >= bar,
            Self::AtMost(bar) => number <= bar,
        }
    }
}

fn target(stage: &str, wanted: &str, bar: Bar, measured: f64) -> Target {
    let sign = match bar {
        Bar::AtLeast(bar) => format!(">= {bar}"),
        Bar::AtMost(bar) => format!("<= {bar}"),
    };
    Target {
        stage: stage.to_owned(),
        wanted: format!("{wanted} {sign}"),
        measured: format!("{measured:.3}"),
        met: bar.holds(measured),
    }
}

/// All promises that these chapters can tell of: first those of single stages, then those of all.
pub fn targets(chapters: &[Chapter]) -> Vec<Target> {
    let chapter = |name: &str| chapters.iter().find(|chapter| chapter.name == name);
    let mut targets = Vec::new();
    if let Some(w1) = chapter("w1") {
        targets.extend(capacity(w1));
    }
    let single: [(&str, f64, &str, Bar, Of); 3] = [
        ("w4", 15.0, "TTFT mean at 15 a second, s:", Bar::AtMost(0.25), |it| it.ttft_mean / 1e3),
        ("w11", 100.0, "attainment at 100 a second:", Bar::AtLeast(0.98), |it| it.attainment),
        ("w12", 120.0, "TTFT p99 at 120 a second, s:", Bar::AtMost(0.35), |it| it.ttft_p99 / 1e3),
    ];
    for (name, rate, wanted, bar, of) in single {
        let sheet = chapter(name).and_then(|it| it.sheets.iter().find(|sheet| sheet.rate == Rate::PerSecond(rate)));
        targets.extend(sheet.and_then(|it| it.of(OURS)).map(|ours| target(name, wanted, bar, ours.mean(of))));
    }
    targets.extend(chapter("w2").into_iter().flat_map(never_worse));
    if let Some(ours) = chapter("w10-200").and_then(|it| it.sheets.first()?.of(OURS)) {
        let most = ours.runs.iter().map(|stats| stats.uneven).fold(0.0, f64::max);
        targets.push(target("w10-200", "requests off an even share, worst seed:", Bar::AtMost(2.0), most));
    }
    let ttft = |name| Some(chapter(name)?.sheets.first()?.of(OURS)?.mean(|stats| stats.ttft_mean));
    if let Some((stale, fresh)) = ttft("w14-1s").zip(ttft("w14-50ms")) {
        targets.push(target("w14", "TTFT mean with 1 s pages over that with 50 ms:", Bar::AtMost(1.1), stale / fresh));
    }
    targets.extend(chapters.iter().flat_map(near_the_best));
    targets.extend(chapters.iter().filter_map(no_cliff));
    targets
}

/// Our capacity over others', at the first level.
fn capacity(chapter: &Chapter) -> Vec<Target> {
    let of = |policy: &str| -> Option<f64> {
        let found = chapter.capacities.iter().find(|it| it.policy == policy)?;
        Some(found.at.first()?.as_ref()?.per_second)
    };
    let rivals = RIVALS.iter().filter(|entry| entry.name != ORACLE);
    let best = rivals.filter_map(|entry| of(entry.name)).fold(0.0, f64::max);
    let all = [
        ("capacity at 90 % over the best rival's:", 1.05, Some(best).filter(|best| *best > 0.0)),
        ("capacity at 90 % over gie's:", 1.35, of("gie")),
        ("capacity at 90 % over round robin's:", 2.1, of("round-robin")),
    ];
    let ours = of(OURS);
    let row = |(wanted, bar, theirs): (&str, f64, Option<f64>)| {
        Some(target(&chapter.name, wanted, Bar::AtLeast(bar), ours.unwrap_or(0.0) / theirs?))
    };
    all.into_iter().filter_map(row).collect()
}

/// At no rate worse than counting requests by more than 2 %.
fn never_worse(chapter: &Chapter) -> Vec<Target> {
    let over = |of: Of| {
        let ratio = move |sheet: &Sheet| Some(sheet.of(OURS)?.mean(of) / sheet.of("least-request")?.mean(of));
        chapter.sheets.iter().filter_map(ratio).collect::<Vec<f64>>()
    };
    let (attained, p99) = (over(|it| it.attainment), over(|it| it.ttft_p99));
    if attained.is_empty() {
        return Vec::new();
    }
    let (worst, slowest) = (lowest(&attained), highest(&p99));
    vec![
        target(&chapter.name, "attainment over least-request's, worst rate:", Bar::AtLeast(0.98), worst),
        target(&chapter.name, "TTFT p99 over least-request's, worst rate:", Bar::AtMost(1.02), slowest),
    ]
}

/// At no rate more than 3 % from the best policy there.
fn near_the_best(chapter: &Chapter) -> Vec<Target> {
    let (mut attained, mut p90) = (Vec::new(), Vec::new());
    for sheet in &chapter.sheets {
        let Some(ours) = sheet.of(OURS) else { continue };
        let others = || sheet.standings.iter().filter(|it| it.policy != ORACLE);
        let of = |of: Of| others().map(|it| it.mean(of)).collect::<Vec<_>>();
        let most = highest(&of(|it| it.attainment));
        attained.push(if most > 0.0 { attainment(ours) / most } else { 1.0 });
        p90.push(ours.mean(|it| it.ttft_p90) / lowest(&of(|it| it.ttft_p90)));
    }
    if attained.is_empty() {
        return Vec::new();
    }
    vec![
        target(&chapter.name, "attainment over the best policy's, worst rate:", Bar::AtLeast(0.97), lowest(&attained)),
        target(&chapter.name, "TTFT p90 over the best policy's, worst rate:", Bar::AtMost(1.03), highest(&p90)),
    ]
}

fn attainment(standing: &Standing) -> f64 {
    standing.mean(|stats| stats.attainment)
}

/// A little too much must cost a little: a tenth more traffic may not cost more than a tenth of the goodput.
fn no_cliff(chapter: &Chapter) -> Option<Target> {
    let overload = chapter.overload?;
    let wanted = "goodput at 1.1 x capacity over that at capacity:";
    Some(target(&chapter.name, wanted, Bar::AtLeast(0.9), overload.beyond / overload.at))
}

fn lowest(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

fn highest(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::study::{Capacity, Overload, Point};

    fn standing(policy: &'static str, attainment: f64, ttft_ms: f64) -> Standing {
        let stats = Stats { attainment, ttft_mean: ttft_ms, ttft_p90: ttft_ms, ttft_p99: ttft_ms, ..Stats::default() };
        Standing { policy, runs: vec![stats] }
    }

    fn chapter(name: &str, rate: f64, standings: Vec<Standing>) -> Chapter {
        let sheet = Sheet { rate: Rate::PerSecond(rate), standings, bounds: Vec::new(), trace: None };
        Chapter { sheets: vec![sheet], ..Chapter::new(name, "") }
    }

    fn told(targets: &[Target]) -> Vec<(&str, bool)> {
        targets.iter().map(|it| (it.measured.as_str(), it.met)).collect()
    }

    #[test]
    fn capacities_are_compared_with_the_best_rival_but_not_with_the_oracle() {
        let found = |(policy, per_second): (&'static str, f64)| Capacity {
            policy,
            at: vec![Some(Point { rate: 1.0, per_second, attainment: 0.9 })],
        };
        let list = [("least-cost", 14.7), ("lmetric", 14.0), ("gie", 10.7), ("round-robin", 6.8), ("oracle", 20.0)];
        let mut w1 = Chapter { capacities: list.map(found).to_vec(), ..Chapter::new("w1", "") };
        let rows = targets(std::slice::from_ref(&w1));
        assert_eq!(told(&rows), [("1.050", true), ("1.374", true), ("2.162", true)]);
        w1.capacities[1] = found(("lmetric", 14.1));
        assert_eq!(told(&targets(std::slice::from_ref(&w1)))[0], ("1.043", false));
        w1.capacities[0].at = vec![None];
        assert_eq!(told(&targets(&[w1]))[0], ("0.000", false), "no capacity at all meets nothing");
    }

    #[test]
    fn single_stages_have_their_own_promises() {
        let chapters = [
            chapter("w4", 15.0, vec![standing("least-cost", 1.0, 251.0)]),
            chapter("w11", 100.0, vec![standing("least-cost", 0.98, 1.0)]),
            chapter("w12", 120.0, vec![standing("least-cost", 1.0, 349.0)]),
        ];
        let rows = targets(&chapters);
        assert_eq!(told(&rows)[..3], [("0.251", false), ("0.980", true), ("0.349", true)]);
        let elsewhere = chapter("w4", 10.0, vec![standing("least-cost", 1.0, 251.0)]);
        assert!(targets(&[elsewhere]).iter().all(|row| row.wanted.contains("best policy")), "not at that rate");
    }

    #[test]
    fn chat_is_held_against_counting_requests_and_every_stage_against_the_best() {
        let standings = vec![
            standing("least-cost", 0.96, 103.0),
            standing("least-request", 0.97, 100.0),
            standing("oracle", 1.0, 1.0),
        ];
        let rows = targets(&[chapter("w2", 60.0, standings)]);
        assert_eq!(told(&rows), [("0.990", true), ("1.030", false), ("0.990", true), ("1.030", true)]);
    }

    #[test]
    fn bursts_are_even_on_the_worst_day_and_stale_pages_cost_little() {
        let mut volley = chapter("w10-200", 200.0, vec![standing("least-cost", 1.0, 1.0)]);
        let even = volley.sheets[0].standings[0].runs[0];
        volley.sheets[0].standings[0].runs = vec![Stats { uneven: 1.0, ..even }, Stats { uneven: 3.0, ..even }];
        assert_eq!(told(&targets(&[volley]))[0], ("3.000", false));
        let aged = ["w14-50ms", "w14-1s"].map(|name| {
            chapter(name, 150.0, vec![standing("least-cost", 1.0, if name == "w14-1s" { 55.0 } else { 50.0 })])
        });
        assert_eq!(told(&targets(&aged))[0], ("1.100", true));
    }

    #[test]
    fn a_cliff_is_a_tenth_of_the_goodput_lost() {
        let at = |beyond: f64| Chapter {
            overload: Some(Overload { rate: 1.0, at: 10.0, beyond }),
            ..Chapter::new("w5", "")
        };
        assert_eq!(told(&targets(&[at(9.5)])), [("0.950", true)]);
        assert_eq!(told(&targets(&[at(4.0)])), [("0.400", false)]);
    }
}
