//! From what happened to every request to the few numbers by which policies are compared.

use std::time::Duration;

use super::{script::Ask, world::Run};

/// The share of requests at the beginning that is not counted: caches are empty and queues short.
const WARM_UP: f64 = 0.1;

/// How often the pods are compared within a run: enough that the mean moves by less than its last digit shown.
const GLANCES: u32 = 1_000;

/// What happened to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// When it came.
    pub at_ms: f64,
    /// When it was let in, or let in again; infinite if it never was.
    pub let_in_ms: f64,
    /// When it was refused for good; infinite if it was not.
    pub refused_ms: f64,
    /// Whether its client went before anything came.
    pub left: bool,
    /// How often it came again.
    pub again: u32,
    /// When its first token came; infinite if none did.
    pub first_ms: f64,
    /// When the last came.
    pub last_ms: f64,
    /// The longest time between two.
    pub longest_gap_ms: f64,
    /// Tokens that came.
    pub tokens: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Of those, the ones found in the cache.
    pub cached_tokens: u32,
    /// Where it went.
    pub pod: usize,
    /// Which arm of the model's split it fell to.
    pub arm: usize,
    /// Whether its pod died on it.
    pub broken: bool,
    /// Pods that it was sent to and that did not take it.
    pub turned_away: u32,
}

impl Told {
    /// Nothing yet.
    pub(super) fn of(ask: &Ask) -> Self {
        Self {
            at_ms: ask.at_ms,
            let_in_ms: f64::INFINITY,
            refused_ms: f64::INFINITY,
            left: false,
            again: 0,
            first_ms: f64::INFINITY,
            last_ms: f64::INFINITY,
            longest_gap_ms: 0.0,
            tokens: 0,
            prompt_tokens: ask.prompt_tokens(),
            cached_tokens: 0,
            pod: usize::MAX,
            arm: 0,
            broken: false,
            turned_away: 0,
        }
    }

    pub(super) fn token(&mut self, now_ms: f64, cached: u32) {
        if self.tokens == 0 {
            self.first_ms = now_ms;
            self.cached_tokens = cached;
        } else {
            self.longest_gap_ms = self.longest_gap_ms.max(now_ms - self.last_ms);
        }
        self.last_ms = now_ms;
        self.tokens += 1;
    }

    /// Time to first token.
    pub fn ttft_ms(&self) -> f64 {
        self.first_ms - self.at_ms
    }

    /// Time to last token.
    pub fn e2e_ms(&self) -> f64 {
        self.last_ms - self.at_ms
    }

    /// Tokens that a pod had to compute for it: what of the prompt was not cached, and the answer.
    fn work(&self) -> f64 {
        f64::from(self.prompt_tokens.saturating_sub(self.cached_tokens)) + f64::from(self.tokens)
    }

    /// Mean time between tokens, if there were two.
    pub fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((self.last_ms - self.first_ms) / f64::from(gaps))
    }
}

/// Wall time. It is never twice the same, so it takes no part in comparisons: two equal runs are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallTime(pub Duration);

impl PartialEq for WallTime {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What users are promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// Time to first token at most.
    pub ttft_ms: f64,
    /// Mean time between tokens at most.
    pub tpot_ms: f64,
}

impl Slo {
    /// The headline: 2 s and 50 ms.
    pub const HEADLINE: Self = Self { ttft_ms: 2_000.0, tpot_ms: 50.0 };

    /// For those who wait at a prompt: 0.5 s and 30 ms.
    pub const STRICT: Self = Self { ttft_ms: 500.0, tpot_ms: 30.0 };

    /// For long contexts: 10 s and 100 ms.
    pub const LONG: Self = Self { ttft_ms: 10_000.0, tpot_ms: 100.0 };

    /// Whether `told` is what was promised.
    pub fn is_met(&self, told: &Told) -> bool {
        !told.broken && told.ttft_ms() <= self.ttft_ms && told.tpot_ms().is_none_or(|tpot| tpot <= self.tpot_ms)
    }
}

/// One run in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests that were offered and are counted.
    pub offered: usize,
    /// Of those, the ones that got no answer, or one that broke off.
    pub unanswered: usize,
    /// Of those, answered a second.
    pub per_second: f64,
    /// How many came a second.
    pub offered_per_second: f64,
    /// Requests that met both promises, a second of the time in which requests came.
    pub goodput: f64,
    /// Mean time to first token of those that had one, in milliseconds.
    pub ttft_mean: f64,
    /// Its median.
    pub ttft_p50: f64,
    /// One in ten takes longer.
    pub ttft_p90: f64,
    /// One in a hundred takes longer.
    pub ttft_p99: f64,
    /// Mean time to the last token.
    pub e2e_mean: f64,
    /// One in a hundred takes longer.
    pub e2e_p99: f64,
    /// Mean time between tokens: one stream in a hundred takes longer.
    pub tpot_p99: f64,
    /// Longest time between two tokens: one stream in a hundred has a longer one.
    pub gap_p99: f64,
    /// Requests that met both promises, of those offered.
    pub attainment: f64,
    /// Prompt tokens found in caches, of all.
    pub hit_ratio: f64,
    /// Requests computed again for want of KV cache.
    pub preemptions: f64,
    /// Requests of the pod that got the most, over the mean.
    pub imbalance: f64,
    /// The share of requests on the second arm of the split before its weights changed, and since then.
    pub second_arm: [f64; 2],
    /// Tokens to be computed at the pod that has the most, over the mean, averaged over time.
    pub outstanding: f64,
    /// By how many requests the pod that is farthest from an even share is off it; of all requests, from the first on.
    pub uneven: f64,
    /// What one decision took on this machine, in the mean.
    pub decision: WallTime,
}

impl Stats {
    /// Of a run on so many pods.
    pub fn of(run: &Run, pods: usize, slo: &Slo) -> Self {
        let mut told: Vec<Told> = run.told.iter().copied().filter(|it| it.at_ms.is_finite()).collect();
        told.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
        let skipped = (told.len() as f64 * WARM_UP) as usize;
        let even = told.len() as f64 / pods.max(1) as f64;
        let uneven = by_pod(&told, pods).iter().map(|count| (*count as f64 - even).abs()).fold(0.0, f64::max);
        let told = told.get(skipped..).unwrap_or_default();
        let offered = told.len();
        let share = |of: usize| of as f64 / offered.max(1) as f64;
        let sum = |of: fn(&Told) -> u32| told.iter().map(|it| f64::from(of(it))).sum::<f64>();
        let ttft = Sorted::new(told.iter().map(Told::ttft_ms));
        let tpot = Sorted::new(told.iter().filter_map(Told::tpot_ms));
        let gap = Sorted::new(told.iter().filter(|it| it.tokens > 1).map(|it| it.longest_gap_ms));
        let began = told.first().map_or(0.0, |it| it.at_ms);
        let ended = told.last().map_or(0.0, |it| it.at_ms);
        let coming_s = ((ended - began) / 1e3).max(f64::MIN_POSITIVE);
        let met = told.iter().filter(|it| slo.is_met(it)).count();
        let most = by_pod(told, pods).into_iter().max().unwrap_or(0);
        let e2e = Sorted::new(told.iter().map(Told::e2e_ms));
        Self {
            offered,
            unanswered: told.iter().filter(|it| it.broken || it.last_ms.is_infinite()).count(),
            offered_per_second: offered as f64 / coming_s,
            goodput: met as f64 / coming_s,
            e2e_mean: e2e.mean(),
            e2e_p99: e2e.at(0.99),
            outstanding: outstanding(told, pods),
            uneven,
            decision: WallTime(run.deciding.0 / u32::try_from(run.told.len().max(1)).unwrap_or(u32::MAX)),
            per_second: offered as f64 / ((run.ended_ms - began) / 1e3).max(f64::MIN_POSITIVE),
            ttft_mean: ttft.mean(),
            ttft_p50: ttft.at(0.5),
            ttft_p90: ttft.at(0.9),
            ttft_p99: ttft.at(0.99),
            tpot_p99: tpot.at(0.99),
            gap_p99: gap.at(0.99),
            attainment: share(met),
            hit_ratio: sum(|it| it.cached_tokens) / sum(|it| it.prompt_tokens).max(1.0),
            preemptions: run.preemptions as f64,
            imbalance: share(most) * pods as f64,
            second_arm: [false, true].map(|since| {
                let there = || told.iter().filter(|it| (it.at_ms >= run.shifted_ms) == since);
                there().filter(|it| it.arm == 1).count() as f64 / there().count().max(1) as f64
            }),
        }
    }
}

/// How many requests each pod got.
fn by_pod(told: &[Told], pods: usize) -> Vec<usize> {
    let mut counts = vec![0; pods];
    for it in told {
        if let Some(count) = counts.get_mut(it.pod) {
            *count += 1;
        }
    }
    counts
}

/// The time average of most over mean of the tokens that pods have before them, while requests come. A request counts
/// in full from when it came until its last token; one that never got that is left out, for nobody knows its length.
fn outstanding(told: &[Told], pods: usize) -> f64 {
    let (Some(first), Some(last)) = (told.first(), told.last()) else { return 0.0 };
    let answered = told.iter().filter(|it| it.last_ms.is_finite());
    let mut changes: Vec<(f64, usize, f64)> =
        answered.flat_map(|it| [(it.at_ms, it.pod, it.work()), (it.last_ms, it.pod, -it.work())]).collect();
    changes.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut changes = changes.into_iter().peekable();
    let mut before = vec![0.0_f64; pods];
    let (mut sum, mut glances) = (0.0, 0.0);
    for glance in 0..GLANCES {
        let now_ms = first.at_ms + (last.at_ms - first.at_ms) * f64::from(glance) / f64::from(GLANCES);
        while let Some((_, pod, work)) = changes.next_if(|change| change.0 <= now_ms) {
            if let Some(tokens) = before.get_mut(pod) {
                *tokens += work;
            }
        }
        let all: f64 = before.iter().sum();
        // Less than a token is what sums of fractions leave behind: nobody has anything to do.
        if all >= 1.0 {
            sum += before.iter().copied().fold(0.0, f64::max) * pods as f64 / all;
            glances += 1.0;
        }
    }
    if glances > 0.0 { sum / glances } else { 0.0 }
}

/// Numbers in order.
struct Sorted(Vec<f64>);

impl Sorted {
    fn new(numbers: impl Iterator<Item = f64>) -> Self {
        let mut list: Vec<f64> = numbers.collect();
        list.sort_unstable_by(f64::total_cmp);
        Self(list)
    }

    /// The mean of those that are finite: one request without an answer would make it endless and hide the others. It
    /// counts in the shares and in the percentiles.
    fn mean(&self) -> f64 {
        let finite = || self.0.iter().filter(|number| number.is_finite());
        finite().sum::<f64>() / finite().count().max(1) as f64
    }

    /// The number that this share of them does not exceed (nearest rank).
    fn at(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the list")]
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at_ms: f64, ttft_ms: f64, tpot_ms: f64) -> Told {
        let first_ms = at_ms + ttft_ms;
        let last_ms = first_ms + 10.0 * tpot_ms;
        let counts = Told { prompt_tokens: 100, cached_tokens: 40, tokens: 11, pod: 0, ..never(at_ms) };
        Told { first_ms, last_ms, ..counts }
    }

    fn never(at_ms: f64) -> Told {
        let infinity = f64::INFINITY;
        Told {
            at_ms,
            let_in_ms: infinity,
            refused_ms: infinity,
            left: false,
            again: 0,
            first_ms: infinity,
            last_ms: infinity,
            longest_gap_ms: 0.0,
            tokens: 0,
            prompt_tokens: 100,
            cached_tokens: 0,
            pod: 1,
            arm: 0,
            broken: false,
            turned_away: 0,
        }
    }

    #[test]
    fn the_first_tenth_is_dropped_and_a_request_without_an_answer_misses() {
        let mut list = vec![never(0.0), told(1_000.0, 100.0, 20.0), told(2_000.0, 2_001.0, 20.0)];
        list.push(told(3_000.0, 100.0, 51.0));
        list.extend((4..9).map(|nth| told(f64::from(nth) * 1e3, 100.0, 20.0)));
        list.push(never(9_000.0));
        let run = Run { told: list, preemptions: 3, ended_ms: 10_000.0, shifted_ms: f64::INFINITY, ..Run::default() };
        let stats = Stats::of(&run, 2, &Slo::HEADLINE);
        assert_eq!((stats.offered, stats.unanswered), (9, 1), "the first that got no answer is not counted");
        assert!((stats.attainment - 6.0 / 9.0).abs() < 1e-9, "{stats:?}");
        assert!((stats.hit_ratio - 8.0 * 40.0 / 900.0).abs() < 1e-9);
        assert!((stats.ttft_p50 - 100.0).abs() < 1e-9 && stats.ttft_p90.is_infinite());
        assert!((stats.ttft_mean - (2_001.0 + 7.0 * 100.0) / 8.0).abs() < 1e-9, "{stats:?}");
        assert!((stats.imbalance - 8.0 / 4.5).abs() < 1e-9);
        assert!((stats.goodput - 6.0 / 8.0).abs() < 1e-9, "six in the 8 s in which they came: {stats:?}");
        assert!((stats.offered_per_second - 9.0 / 8.0).abs() < 1e-9);
        assert!((stats.uneven - 3.0).abs() < 1e-9, "eight of ten on one of two pods");
        assert!((stats.e2e_mean - (6.0 * 300.0 + 2_201.0 + 610.0) / 8.0).abs() < 1e-9, "{stats:?}");
    }

    #[test]
    fn the_pod_with_the_most_before_it_is_compared_all_the_time() {
        // Pod 0 has 71 tokens (60 uncached, 11 answered) for the first half; for the second, pod 1 has as many.
        let half = |at_ms: f64, pod: usize| Told {
            pod,
            at_ms,
            first_ms: at_ms,
            last_ms: at_ms + 500.0,
            ..told(0.0, 0.0, 0.0)
        };
        let alone = [half(0.0, 0), half(500.0, 1), half(1_000.0, 0)];
        assert!((outstanding(&alone, 2) - 2.0).abs() < 1e-9, "one of two has all: {}", outstanding(&alone, 2));
        let both = [half(0.0, 0), half(0.0, 1), half(500.0, 0), half(500.0, 1), half(1_000.0, 0)];
        assert!((outstanding(&both, 2) - 1.0).abs() < 1e-9);
        assert!(outstanding(&[], 2).abs() < 1e-9);
    }

    #[test]
    fn wall_time_makes_no_difference() {
        assert_eq!(WallTime(Duration::from_secs(1)), WallTime::default());
    }

    #[test]
    fn a_broken_answer_misses_however_fast_it_was_and_arms_are_counted_on_both_sides_of_the_change() {
        let on_arm = |at_ms: f64, arm: usize| Told { arm, ..told(at_ms, 100.0, 20.0) };
        let broken = Told { broken: true, ..on_arm(5_000.0, 1) };
        let list = vec![on_arm(0.0, 0), on_arm(1_000.0, 0), on_arm(2_000.0, 1), on_arm(4_000.0, 0), broken];
        let run = Run { told: list, preemptions: 0, ended_ms: 9_000.0, shifted_ms: 3_000.0, ..Run::default() };
        let stats = Stats::of(&run, 1, &Slo::HEADLINE);
        assert!((stats.attainment - 0.8).abs() < 1e-9, "{stats:?}");
        assert_eq!(stats.unanswered, 1, "broken off");
        assert!((stats.second_arm[0] - 1.0 / 3.0).abs() < 1e-9 && (stats.second_arm[1] - 0.5).abs() < 1e-9);
    }

    #[test]
    fn tokens_give_first_last_and_the_longest_gap() {
        let mut it = never(0.0);
        for at in [50.0, 60.0, 95.0, 100.0] {
            it.token(at, 7);
        }
        assert_eq!((it.ttft_ms(), it.longest_gap_ms, it.cached_tokens, it.tokens), (50.0, 35.0, 7, 4));
        assert!((it.tpot_ms().unwrap() - 50.0 / 3.0).abs() < 1e-9);
    }
}
