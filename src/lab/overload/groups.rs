//! What some of a run's clients got: how many kept their promise, how long they waited, how much of the fleet was theirs.

use crate::lab::{
    script::{Client, Script},
    tally::{Slo, Told},
    world::Run,
};

/// The share of the time at the beginning that is not counted: lines fill, and speeds are learned. More than elsewhere in
/// the lab, because a line of a minute takes a minute to fill.
const WARM_UP: f64 = 0.25;

/// What a group of clients got, of those who came while it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// Requests that came.
    pub offered: usize,
    /// Those that met both promises, of those that came.
    pub attainment: f64,
    /// Those that did, a second.
    pub goodput: f64,
    /// Those that were refused, of those that came.
    pub refused: f64,
    /// Those whose clients went, of those that came.
    pub left: f64,
    /// How long those who were let in stood at the door.
    pub wait: Times,
    /// How long it took to the first token, of those that had one.
    pub ttft: Times,
    /// Tokens of prompts and answers that the fleet computed for it, a second.
    pub tokens: f64,
}

/// Milliseconds of many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Their mean.
    pub mean: f64,
    /// What half of them took at most.
    pub p50: f64,
    /// And nine in ten.
    pub p90: f64,
    /// And ninety-nine in a hundred.
    pub p99: f64,
}

impl Times {
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = numbers.filter(|it| it.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
        let place = |share: f64| (all.len() as f64 * share) as usize;
        let at = |share: f64| all.get(place(share).min(all.len().saturating_sub(1))).copied().unwrap_or(0.0);
        let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
        Self { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

impl Group {
    /// The clients that are wanted, in a run of this script.
    pub fn of(run: &Run, script: &Script, slo: &Slo, wanted: impl Fn(&Client) -> bool) -> Self {
        let span = (script.until_ms * WARM_UP, script.until_ms);
        let all = || run.told.iter().zip(&script.asks).filter(|(_, ask)| wanted(&ask.client)).map(|(told, _)| told);
        let came: Vec<&Told> = all().filter(|told| (span.0..span.1).contains(&told.at_ms)).collect();
        let offered = came.len();
        let count = |is: &dyn Fn(&Told) -> bool| came.iter().filter(|told| is(told)).count() as f64;
        let share = |is: &dyn Fn(&Told) -> bool| count(is) / offered.max(1) as f64;
        let seconds = (span.1 - span.0) / 1e3;
        let met = |told: &Told| slo.is_met(told);
        Self {
            offered,
            attainment: share(&met),
            goodput: count(&met) / seconds,
            refused: share(&|told| told.refused_ms.is_finite()),
            left: share(&|told| told.left),
            wait: Times::of(came.iter().map(|told| told.let_in_ms - told.at_ms)),
            ttft: Times::of(came.iter().map(|told| told.ttft_ms())),
            tokens: all().map(|told| served(told, span)).sum::<f64>() / seconds,
        }
    }
}

/// Tokens a second that were computed for the wanted clients in each of so many equal parts of the time.
pub(super) fn over_time(run: &Run, script: &Script, parts: u32, wanted: impl Fn(&Client) -> bool) -> Vec<f64> {
    let part_ms = script.until_ms / f64::from(parts.max(1));
    let span = |nth: u32| (f64::from(nth) * part_ms, f64::from(nth + 1) * part_ms);
    let told: Vec<&Told> =
        run.told.iter().zip(&script.asks).filter(|(_, ask)| wanted(&ask.client)).map(|(told, _)| told).collect();
    (0..parts).map(|nth| told.iter().map(|told| served(told, span(nth))).sum::<f64>() / part_ms * 1e3).collect()
}

/// Tokens of one request that were computed within this time: its prompt when its first token came, its answer evenly from
/// then to the last.
fn served(told: &Told, (from, to): (f64, f64)) -> f64 {
    if told.tokens == 0 {
        return 0.0;
    }
    let prompt = if (from..to).contains(&told.first_ms) { f64::from(told.prompt_tokens) } else { 0.0 };
    let within = (told.last_ms.min(to) - told.first_ms.max(from)).max(0.0);
    let long = (told.last_ms - told.first_ms).max(f64::MIN_POSITIVE);
    prompt + f64::from(told.tokens) * (within / long).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Ask, Piece};

    fn ask(tenant: u32) -> Ask {
        let (prompt, answer) = ([Piece { content: 1, tokens: 100 }].into(), Piece { content: 2, tokens: 10 });
        let client = Client { tenant, ..Client::default() };
        Ask { at_ms: 0.0, prompt, answer, adapter: None, session: None, next: None, client }
    }

    /// Came at `at_ms`, let in after 10 ms, first token after 20, ten tokens in 100 ms.
    fn told(at_ms: f64) -> Told {
        let (first_ms, last_ms) = (at_ms + 20.0, at_ms + 120.0);
        Told { at_ms, let_in_ms: at_ms + 10.0, first_ms, last_ms, tokens: 10, ..Told::of(&ask(0)) }
    }

    #[test]
    fn a_group_is_counted_from_a_quarter_of_the_time_on() {
        let refused = Told { at_ms: 700.0, refused_ms: 700.0, ..Told::of(&ask(0)) };
        let list = [(0, told(100.0)), (0, told(300.0)), (0, refused), (1, told(400.0)), (0, told(950.0))];
        let script = Script { asks: list.iter().map(|(tenant, _)| ask(*tenant)).collect(), until_ms: 1_000.0 };
        let run = Run { told: list.iter().map(|(_, told)| *told).collect(), ..Run::default() };
        let group = Group::of(&run, &script, &Slo::HEADLINE, |client| client.tenant == 0);
        assert_eq!(group.offered, 3);
        assert!((group.attainment - 2.0 / 3.0).abs() < 1e-9 && (group.goodput - 2.0 / 0.75).abs() < 1e-9, "{group:?}");
        assert!((group.refused - 1.0 / 3.0).abs() < 1e-9 && group.left.abs() < 1e-9);
        assert!((group.wait.mean - 10.0).abs() < 1e-9 && (group.ttft.p99 - 20.0).abs() < 1e-9);
        // The second has all its 110 tokens within, the last one its prompt and 3 of its answer.
        assert!((group.tokens - 213.0 / 0.75).abs() < 1e-6, "{group:?}");
        let parts = over_time(&run, &script, 2, |client| client.tenant == 0);
        assert!((parts[0] - 440.0).abs() < 1e-6 && (parts[1] - 206.0).abs() < 1e-6, "{parts:?}");
    }
}
