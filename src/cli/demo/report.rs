//! What is said at the end: both sides' figures, the verdict, and how to go on by hand.
//!
//! The verdict is read off the figures, whatever they are.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    line::{Line, Tone},
    panel::seconds,
    scene::MODEL,
};
use crate::bench::Figures;

/// The player's timers are late by so much: a step of a pod takes 10 to 50 ms, and a pod makes up for 20 of them, so that
/// pods this late are slower than the GPU that they imitate.
const TOO_LATE: Duration = Duration::from_millis(50);

/// How it ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Round robin's figures, then the inference-aware ones.
    pub(super) figures: [Figures; 2],
    /// When the first request was due.
    pub(super) start: Instant,
    /// Requests that the plan had for each side.
    pub(super) planned: usize,
    /// When, from then on, what was still open was given up.
    pub(super) limit: Duration,
}

impl Outcome {
    /// Whether inference-aware routing was better: a sooner p90, and not by answering less.
    pub(super) fn is_better(&self) -> bool {
        let [classic, aware] = &self.figures;
        let sooner = match (p90(aware), p90(classic)) {
            (Some(aware), Some(classic)) => aware < classic,
            _ => false,
        };
        sooner && aware.done >= classic.done
    }

    /// All of it as lines.
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line::new()];
        lines.extend(self.table());
        lines.push(Line::new());
        lines.push(self.verdict());
        lines.extend(self.slow_machine());
        for (name, figures) in ["round robin", "inference-aware"].iter().zip(&self.figures) {
            if let Some(error) = &figures.last_error {
                lines.push(Line::new().with(Tone::Bad, format!("{name}: the last error was: {error}")));
            }
        }
        lines
    }

    fn table(&self) -> Vec<Line> {
        /// As long as the longest name.
        const NAME: usize = 32;
        let [classic, aware] = &self.figures;
        let row = |name: &str, of: &dyn Fn(&Figures) -> String| {
            Line::new().with(Tone::Faint, format!("{name:<NAME$}")).plain(format!(
                "{:>14}{:>18}",
                of(classic),
                of(aware)
            ))
        };
        let at = |list: &[Option<f64>], nth: usize| seconds(list.get(nth).copied().flatten());
        let millis = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.0} ms", value * 1_000.0));
        let head = format!("{:<NAME$}{:>14}{:>18}", "", "round robin", "inference-aware");
        let mut rows = vec![
            Line::new().with(Tone::Strong, head),
            row("time to first token  p50", &|it| at(&it.first_token, 0)),
            row("                     p90", &|it| at(&it.first_token, 1)),
            row("                     p99", &|it| at(&it.first_token, 2)),
            row("between tokens       p50", &|it| millis(it.gap.first().copied().flatten())),
            row("                     p99", &|it| millis(it.gap.get(1).copied().flatten())),
            row("tokens/s", &|it| format!("{:.0}", self.tokens_per_second(it))),
            row("prompt found in cache", &|it| {
                it.cached_share().map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
            }),
            row("answered", &|it| format!("{} of {}", it.done, self.planned)),
        ];
        if self.unanswered() != [0; 2] {
            let limit = format!("no answer in {:.0} s, given up", self.limit.as_secs_f64());
            rows.push(row("errors", &|it| it.failed.to_string()));
            rows.push(row(&limit, &|it| it.given_up.to_string()));
            rows.push(row("not sent: awaited an answer", &|it| it.unsent(self.planned).to_string()));
        }
        rows
    }

    fn tokens_per_second(&self, figures: &Figures) -> f64 {
        let Some(last) = figures.last_token else { return 0.0 };
        figures.tokens as f64 / last.saturating_duration_since(self.start).as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn verdict(&self) -> Line {
        let [classic, aware] = &self.figures;
        let (Some(theirs), Some(ours)) = (p90(classic), p90(aware)) else {
            return Line::new().with(Tone::Bad, "No verdict: not both sides answered.");
        };
        let pair = |nth: usize, name: &str| {
            let [left, right] = [aware, classic].map(|it| seconds(it.first_token.get(nth).copied().flatten()));
            format!("{name} {} against {}", left.trim(), right.trim())
        };
        let against =
            format!("p90 TTFT {} against {} round robin", seconds(Some(ours)).trim(), seconds(Some(theirs)).trim());
        let rest = format!(" ({}; {}), {}", pair(0, "p50"), pair(2, "p99"), self.how_many());
        if self.is_better() {
            let factor = format!("{:.1}x sooner", theirs / ours);
            let line = Line::new().with(Tone::Strong, "inference-aware ").plain(format!("{against}: "));
            return line.with(Tone::Good, factor).plain(rest);
        }
        let why = if ours < theirs { "but it answered fewer" } else { "it was not better this time" };
        let line = Line::new().with(Tone::Strong, "inference-aware ").plain(format!("{against}: "));
        line.with(Tone::Bad, why).plain(rest)
    }

    fn how_many(&self) -> String {
        match self.unanswered() {
            [0, 0] => format!("{} requests each, all answered", self.planned),
            [theirs, ours] => {
                format!("{} requests each, not answered: {theirs} round robin, {ours} inference-aware", self.planned)
            }
        }
    }

    /// Of all that was planned, for whichever reason.
    fn unanswered(&self) -> [u64; 2] {
        self.figures.each_ref().map(|it| (self.planned as u64).saturating_sub(it.done))
    }

    /// The pods and those who ask run on this machine: when it does not keep up, the figures are not those of a GPU.
    fn slow_machine(&self) -> Option<Line> {
        let worst = self.figures.iter().filter_map(|it| it.lateness).fold(0.0, f64::max);
        (worst > TOO_LATE.as_secs_f64()).then(|| {
            let text = format!(
                "This machine was too slow (timers {:.0} ms late at p99): the figures are off",
                worst * 1_000.0
            );
            Line::new().with(Tone::Busy, text)
        })
    }
}

fn p90(figures: &Figures) -> Option<f64> {
    figures.first_token.get(1).copied().flatten()
}

/// What to paste, once the show is over and the gateway goes on serving.
pub(super) fn to_paste(classic: SocketAddr, openai: SocketAddr, admin: SocketAddr) -> Vec<Line> {
    // JSON ends without a newline, and the prompt would stand behind it.
    const NEWLINE: &str = "; echo";
    let ask = |address: SocketAddr, more: &str, fields: &str| {
        let after = if more.contains('N') { "" } else { NEWLINE };
        format!(
            "curl {more}http://{address}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"model\":\"{MODEL}\",{fields}\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'{after}"
        )
    };
    let items = [
        ("round robin", ask(classic, "-s ", "\"max_tokens\":20,")),
        ("inference-aware", ask(openai, "-s ", "\"max_tokens\":20,")),
        ("the same, streamed", ask(openai, "-sN ", "\"stream\":true,\"max_tokens\":20,")),
        ("what is served", format!("curl -s http://{openai}/v1/models{NEWLINE}")),
        ("every pod as the gateway sees it", format!("curl -s http://{admin}/debug/fleet{NEWLINE}")),
        ("metrics for Prometheus", format!("curl -s http://{admin}/metrics")),
    ];
    let mut lines = vec![Line::new(), Line::new().plain("It goes on serving; paste one of these. Ctrl-C ends it.")];
    for (what, command) in items {
        lines.push(Line::new().with(Tone::Faint, format!("# {what}")));
        lines.push(Line::new().plain(command));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(classic: f64, aware: f64, aware_done: u64) -> Outcome {
        let figures = |p90: f64, done| Figures {
            sent: 100,
            done,
            failed: 100 - done,
            first_token: [Some(p90 / 2.0), Some(p90), Some(p90 * 2.0)],
            ..Figures::default()
        };
        Outcome {
            figures: [figures(classic, 100), figures(aware, aware_done)],
            start: crate::clock::now(),
            planned: 100,
            limit: Duration::from_secs(37),
        }
    }

    #[test]
    fn the_verdict_says_by_how_much() {
        let better = outcome(1.92, 0.41, 100);
        assert!(better.is_better());
        assert_eq!(
            better.verdict().render(usize::MAX, false),
            "inference-aware p90 TTFT 0.41 s against 1.92 s round robin: 4.7x sooner (p50 0.20 s against 0.96 s; p99 \
             0.82 s against 3.84 s), 100 requests each, all answered"
        );
    }

    #[test]
    fn a_slower_one_is_not_called_better() {
        let worse = outcome(0.5, 0.6, 100);
        assert!(!worse.is_better());
        let text = worse.verdict().render(usize::MAX, false);
        assert!(text.contains("it was not better this time"), "{text}");
    }

    #[test]
    fn answering_less_is_no_way_to_be_faster() {
        let fewer = outcome(1.9, 0.4, 90);
        assert!(!fewer.is_better());
        let text = fewer.verdict().render(usize::MAX, false);
        assert!(text.contains("but it answered fewer") && text.contains("10 inference-aware"), "{text}");
    }

    #[test]
    fn every_planned_request_is_in_one_row_of_the_table() {
        let mut outcome = outcome(1.9, 0.4, 100);
        outcome.planned = 594;
        outcome.figures[0] = Figures { sent: 555, done: 454, failed: 1, given_up: 100, ..outcome.figures[0].clone() };
        outcome.figures[1] = Figures { sent: 594, done: 594, failed: 0, ..outcome.figures[1].clone() };
        let rows: Vec<String> = outcome.table().iter().map(|line| line.render(usize::MAX, false)).collect();
        for (row, theirs, ours) in [
            ("answered", "454 of 594", "594 of 594"),
            ("errors", "1", "0"),
            ("no answer in 37 s, given up", "100", "0"),
            ("not sent: awaited an answer", "39", "0"),
        ] {
            assert!(rows.contains(&format!("{row:<32}{theirs:>14}{ours:>18}")), "{rows:#?}");
        }
        assert!(outcome.verdict().render(usize::MAX, false).contains("not answered: 140 round robin, 0 inference"));
    }

    #[test]
    fn a_machine_that_did_not_keep_up_is_told_of() {
        let mut outcome = outcome(1.9, 0.4, 100);
        outcome.figures[1].lateness = Some(0.049);
        assert!(outcome.slow_machine().is_none());
        outcome.figures[0].lateness = Some(0.084);
        let text = outcome.slow_machine().unwrap().render(usize::MAX, false);
        assert!(text.contains("84 ms late") && text.len() <= 80, "{text}");
    }

    #[test]
    fn a_side_that_never_answered_gives_no_verdict() {
        let mut none = outcome(1.0, 1.0, 100);
        none.figures[0] = Figures::default();
        assert!(!none.is_better());
        assert!(none.verdict().render(usize::MAX, false).starts_with("No verdict"));
    }

    #[test]
    fn commands_to_paste_are_one_line_each_and_their_bodies_are_json() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        for line in to_paste(at(1), at(2), at(3)) {
            let text = line.render(usize::MAX, false);
            if let Some((_, body)) = text.split_once("-d '") {
                let (body, after) = body.rsplit_once('\'').unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(after.is_empty(), body["stream"] == true, "{text}");
                assert_eq!(body["model"], MODEL);
            }
        }
    }
}
