//! W2: a trace in Azure's format, `TIMESTAMP,ContextTokens,GeneratedTokens`: lengths of prompts that share nothing.

use rand::{Rng, RngExt as _};

use super::{
    Rate, Unmade,
    origin::{Extent, Text, possible, wrong},
};
use crate::lab::{
    draws,
    script::{Ask, Client, Piece},
};

/// The first line, and what the others are.
pub(super) const HEAD: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// A trace is at least this long: a lone request would be repeated without end.
const SHORTEST_MS: f64 = 1_000.0;

/// Half a wave: so long at the low rate, then so long at the high one.
const HALF_WAVE_MS: f64 = 30_000.0;

/// How much higher the high one is.
const WAVE: f64 = 5.0;

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arrivals {
    /// Independent, with this coefficient of variation; 1 is Poisson.
    Gamma { cv: f64 },
    /// Poisson at a rate that jumps.
    Wave,
    /// As recorded.
    Recorded,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    at_ms: f64,
    prompt: u32,
    answer: u32,
}

/// A trace as it was recorded.
#[derive(Debug)]
pub(super) struct Trace {
    rows: Vec<Row>,
    length_ms: f64,
}

impl Trace {
    pub(super) fn parse(Text { path, text }: &Text) -> Result<Self, Unmade> {
        let mut rows: Vec<Row> = Vec::new();
        for (nth, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
            let why = || format!("`{line}` is not `{HEAD}`, such as `2023-11-16 18:15:46.68,374,44`");
            let row = row(line).ok_or_else(|| wrong(path, nth, why()))?;
            possible(row.at_ms, row.prompt, row.answer).map_err(|why| wrong(path, nth, why))?;
            rows.push(row);
        }
        let first = rows.iter().map(|row| row.at_ms).reduce(f64::min).ok_or_else(|| Unmade::Empty(path.clone()))?;
        for row in &mut rows {
            row.at_ms -= first;
        }
        let last = rows.iter().map(|row| row.at_ms).fold(0.0, f64::max);
        let length_ms = (last + last / rows.len() as f64).max(SHORTEST_MS);
        Ok(Self { rows, length_ms })
    }

    /// How much there is of it.
    pub(super) fn extent(&self) -> Extent {
        Extent { requests: self.rows.len(), length_ms: self.length_ms }
    }

    pub(super) fn script(&self, arrivals: Arrivals, rate: Rate, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let recorded = self.rows.len() as f64 / self.length_ms;
        let per_ms = match rate {
            Rate::PerSecond(rate) => rate / 1e3,
            Rate::Times(times) => recorded * times,
        };
        if arrivals == Arrivals::Recorded {
            return self.recorded(per_ms / recorded, length_ms, rng);
        }
        let mut asks = Vec::new();
        let mut at_ms = 0.0;
        loop {
            at_ms += match arrivals {
                Arrivals::Gamma { cv } => draws::gamma(1.0 / per_ms, cv, rng),
                _ => draws::exponential(1.0 / (per_ms * height(at_ms)), rng),
            };
            let Some(row) = self.rows.get(rng.random_range(0..self.rows.len())).filter(|_| at_ms < length_ms) else {
                return asks;
            };
            asks.push(row.ask(at_ms, rng.random()));
        }
    }

    fn recorded(&self, times: f64, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let loops = (0..).map(|nth| f64::from(nth) * self.length_ms / times).take_while(|begin| *begin < length_ms);
        let all = loops.flat_map(|begin| self.rows.iter().map(move |row| (begin + row.at_ms / times, row)));
        all.filter(|(at_ms, _)| *at_ms < length_ms).map(|(at_ms, row)| row.ask(at_ms, rng.random())).collect()
    }
}

/// How high the wave is: the mean over both halves is 1.
fn height(at_ms: f64) -> f64 {
    let high = (at_ms / HALF_WAVE_MS) % 2.0 >= 1.0;
    2.0 / (1.0 + WAVE) * if high { WAVE } else { 1.0 }
}

impl Row {
    fn ask(self, at_ms: f64, content: u64) -> Ask {
        let prompt = [Piece { content, tokens: self.prompt.max(1) }].into();
        Ask {
            at_ms,
            prompt,
            answer: Piece { content: !content, tokens: self.answer.max(1) },
            adapter: None,
            session: None,
            next: None,
            client: Client::default(),
        }
    }
}

fn row(line: &str) -> Option<Row> {
    let mut fields = line.trim().split(',');
    let (when, prompt, answer) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Row { at_ms: millis(when)?, prompt: prompt.parse().ok()?, answer: answer.parse().ok()? })
}

/// `2023-11-16 18:15:46.6805900` in milliseconds, counted within its month: a trace is shorter.
fn millis(when: &str) -> Option<f64> {
    let (date, time) = when.split_once(' ')?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    // The release of 2024 adds `+00:00`.
    let time = time.split_once('+').map_or(time, |(time, _)| time);
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some((((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds) * 1e3)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const TEXT: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5000000,374,44\n\
                        2023-11-17 00:00:00.5000000,396,109\n";

    fn parse(text: &'static str) -> Result<Trace, Unmade> {
        Trace::parse(&Text { path: "a.csv".into(), text: text.into() })
    }

    fn script(arrivals: Arrivals, rate: Rate, length_ms: f64) -> Vec<Ask> {
        let trace = parse(TEXT).unwrap();
        trace.script(arrivals, rate, length_ms, &mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn recorded_times_are_kept_and_repeated() {
        let asks = script(Arrivals::Recorded, Rate::Times(2.0), 1_500.0);
        let times: Vec<f64> = asks.iter().map(|ask| ask.at_ms).collect();
        assert_eq!(times, [0.0, 500.0, 750.0, 1_250.0]);
        assert_eq!((asks[1].prompt_tokens(), asks[1].answer.tokens), (396, 109));
        assert_ne!(asks[0].prompt, asks[2].prompt, "nothing is shared");
    }

    #[test]
    fn rates_are_kept_whatever_the_spacing() {
        for arrivals in [Arrivals::Gamma { cv: 1.0 }, Arrivals::Gamma { cv: 4.0 }, Arrivals::Wave] {
            let count = script(arrivals, Rate::PerSecond(100.0), 1_200_000.0).len();
            assert!((114_000..126_000).contains(&count), "{arrivals:?}: {count}");
        }
    }

    #[test]
    fn a_wave_has_five_times_as_many_in_its_high_half() {
        let asks = script(Arrivals::Wave, Rate::PerSecond(100.0), 600_000.0);
        let high = asks.iter().filter(|ask| (ask.at_ms / 30_000.0) % 2.0 >= 1.0).count();
        let ratio = high as f64 / (asks.len() - high) as f64;
        assert!((4.8..5.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_time_zone_does_no_harm_and_a_lone_request_is_repeated_every_second() {
        let trace = parse("head\n2024-05-10 00:00:00.009930+00:00,2162,5\n").unwrap();
        let asks = trace.script(Arrivals::Recorded, Rate::Times(1.0), 2_500.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.iter().map(|ask| ask.at_ms).collect::<Vec<_>>(), [0.0, 1_000.0, 2_000.0]);
    }

    #[test]
    fn the_built_in_beginning_is_whole() {
        let trace = Trace::parse(&crate::lab::workloads::origin::AZURE.built_in()).unwrap();
        assert_eq!(trace.rows.len(), 2_000);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("head\nx,1,2\n").unwrap_err().to_string();
        assert!(error.starts_with("a.csv:2: `x,1,2` is not `TIMESTAMP,ContextTokens,GeneratedTokens`"), "{error}");
        assert!(matches!(parse(HEAD), Err(Unmade::Empty(_))));
        let error = parse("head\n2023-11-16 00:00:NaN,1,2\n").unwrap_err().to_string();
        assert!(error.starts_with("a.csv:2: NaN is no time"), "{error}");
    }
}
