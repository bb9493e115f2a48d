//! How a moment looks: one panel for each listener, side by side where the terminal is wide enough, and a comparison.

use super::{
    line::{Line, Tone, bar},
    view::{Frame, PodRow, Side},
};
use crate::bench::Figures;

/// Two panels fit beside each other from here on.
const WIDE: usize = 100;

/// Columns between two panels.
const GAP: usize = 2;

/// No panel is wider: beyond, the eye loses the row.
const WIDEST: usize = 72;

/// Columns of a pod's name.
const NAME: usize = 15;

/// Seconds to the first token that a reader notices, and that make him go: usability's classic one second (a train of
/// thought is kept) and, well below its ten, three.
const NOTICED: f64 = 1.0;
const ANNOYING: f64 = 3.0;

/// Waiting requests at which a pod has a queue, and at which it has a bad one.
const QUEUE: f64 = 1.0;
const LONG_QUEUE: f64 = 5.0;

/// KV-cache usage at which admission begins to hold prompts back, and at which preemptions are near.
const FILLING: f64 = 0.7;
const FULL: f64 = 0.9;

/// All lines of a frame for a terminal of `width` columns.
pub(super) fn lines(frame: &Frame, width: usize) -> Vec<Line> {
    let mut lines = vec![headline(), progress(frame, width), Line::new()];
    let [left, right] = &frame.sides;
    if width >= WIDE {
        let each = ((width - GAP) / 2).min(WIDEST);
        let right = panel(right, each);
        let both = panel(left, each).into_iter().zip(right);
        lines.extend(both.map(|(left, right)| left.padded(each + GAP).joined(right)));
    } else {
        let each = width.min(WIDEST);
        lines.extend(panel(left, each));
        lines.push(Line::new());
        lines.extend(panel(right, each));
    }
    lines.push(Line::new());
    lines.extend(comparison(&frame.sides, width.min(WIDEST + NAME)));
    lines
}

fn headline() -> Line {
    Line::new()
        .with(Tone::Strong, "tidegate demo")
        .plain("  two equal sets of 4 simulated pods, one of each at half speed")
}

fn progress(frame: &Frame, width: usize) -> Line {
    const BAR: usize = 16;
    let (elapsed, length) = (frame.elapsed.as_secs_f64(), frame.length.as_secs_f64());
    let (full, rest) = bar(elapsed / length.max(f64::MIN_POSITIVE), BAR);
    let figures = || frame.sides.iter().map(|side| &side.figures);
    let unsent: u64 = figures().map(|it| it.unsent(frame.planned)).sum();
    let open: u64 = figures().map(Figures::open).sum();
    let done: Vec<String> = figures().map(|it| it.done.to_string()).collect();
    let now = if figures().all(|it| it.done == frame.planned as u64) {
        format!(" {} requests each, all answered", frame.planned)
    } else if open + unsent == 0 || figures().any(|it| it.given_up > 0) {
        format!(" over: {} of {} answered", done.join(" and "), frame.planned)
    } else if elapsed < length {
        format!(" {elapsed:>2.0} of {length:.0} s   {} requests for each", frame.planned)
    } else if unsent > 0 {
        format!(" {open} answers to come, {unsent} follow-ups wait for one")
    } else {
        format!(" all sent, {open} answers to come")
    };
    let seed = format!("   seed {}", frame.seed);
    let line = Line::new().plain(full).with(Tone::Faint, rest).plain(now);
    if line.width() + seed.len() <= width { line.with(Tone::Faint, seed) } else { line }
}

fn panel(side: &Side, width: usize) -> Vec<Line> {
    let figures = &side.figures;
    let title = Line::new().with(Tone::Strong, side.policy);
    let place = format!("http://{}", side.address);
    let used = title.width() + place.len();
    let title = title.with(Tone::Faint, format!(" {} ", "─".repeat(width.saturating_sub(used + 2)))).plain(place);
    let mut ttft = Line::new().with(Tone::Faint, "TTFT ");
    for (name, value) in ["p50 ", "  p90 ", "  p99 "].iter().zip(figures.first_token) {
        let tone = value.map_or(Tone::Faint, |value| Tone::of(value, NOTICED, ANNOYING));
        ttft = ttft.with(Tone::Faint, *name).with(tone, seconds(value));
    }
    let head = format!("{:<NAME$}{:>4}{:>6}{:>11}  KV cache", "pod", "run", "wait", "in-flight");
    let mut lines = vec![title, ttft, counts(side, width), Line::new().with(Tone::Faint, head)];
    lines.extend(side.pods.iter().map(|pod| row(pod, width)));
    lines
}

/// What was sent, and in which way each of it ended or that it has not.
fn counts(side: &Side, width: usize) -> Line {
    let figures = &side.figures;
    let alarming = |count: u64| if count > 0 { Tone::Bad } else { Tone::Plain };
    let mut line = Line::new()
        .plain(figures.sent.to_string())
        .with(Tone::Faint, " sent  ")
        .plain(figures.done.to_string())
        .with(Tone::Faint, " done  ");
    // Giving up is the last that happens: then nothing is open any more.
    line = match figures.given_up {
        0 => line.plain(figures.open().to_string()).with(Tone::Faint, " open  "),
        given_up => line.with(Tone::Bad, given_up.to_string()).with(Tone::Faint, " given up  "),
    };
    line = line.with(alarming(figures.failed), figures.failed.to_string()).with(Tone::Faint, " errors");
    let rate = Line::new().plain(format!("  {:.0}", side.tokens_per_second)).with(Tone::Faint, " tok/s");
    if line.width() + rate.width() <= width { line.joined(rate) } else { line }
}

fn row(pod: &PodRow, width: usize) -> Line {
    let name = format!(":{}{}", pod.port, if pod.slow { " ½ speed" } else { "" });
    let count = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let waiting = pod.waiting.map_or(Tone::Faint, |value| Tone::of(f64::from(value), QUEUE, LONG_QUEUE));
    let line = Line::new()
        .plain(format!("{name:<NAME$}{:>4}", count(pod.running)))
        .with(waiting, format!("{:>6}", count(pod.waiting)))
        .plain(format!("{:>11}  ", pod.in_flight));
    let Some(usage) = pod.kv_usage else {
        return line.with(Tone::Faint, "not read");
    };
    // The number takes five columns.
    let (full, rest) = bar(usage, width.saturating_sub(line.width() + 5).min(24));
    line.with(Tone::of(usage, FILLING, FULL), full).with(Tone::Faint, rest).plain(format!("{:>4.0}%", usage * 100.0))
}

/// The number that the verdict will be about, as bars of one scale.
fn comparison(sides: &[Side; 2], width: usize) -> Vec<Line> {
    let p90 = |side: &Side| side.figures.first_token.get(1).copied().flatten();
    let longest = sides.iter().filter_map(p90).fold(0.0, f64::max);
    let line = |side: &Side| {
        let line = Line::new().with(Tone::Faint, "p90 TTFT ").plain(format!("{:<16}", side.policy));
        let Some(value) = p90(side) else { return line };
        // The number takes nine columns.
        let (full, _) = bar(value / longest, width.saturating_sub(line.width() + 9));
        let tone = Tone::of(value, NOTICED, ANNOYING);
        line.with(tone, full).plain(format!(" {}", seconds(Some(value)).trim()))
    };
    sides.iter().map(line).collect()
}

/// A time as people say it, always six columns.
pub(super) fn seconds(value: Option<f64>) -> String {
    match value {
        None => format!("{:>6}", "-"),
        Some(value) => format!("{value:>4.2} s"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    pub(in crate::cli::demo) fn frame() -> Frame {
        let pod = |port, slow, waiting| PodRow {
            port,
            slow,
            running: Some(12),
            waiting,
            kv_usage: waiting.map(|_| 0.31),
            in_flight: 13,
        };
        let side = |policy, p90: f64| Side {
            policy,
            address: "127.0.0.1:8080".to_owned(),
            figures: Figures {
                sent: 40,
                done: 30,
                first_token: [Some(p90 / 2.0), Some(p90), Some(p90 * 2.0)],
                ..Figures::default()
            },
            tokens_per_second: 1_432.4,
            pods: vec![pod(40_001, false, Some(0)), pod(40_002, true, Some(7)), pod(40_003, false, None)],
        };
        Frame {
            elapsed: Duration::from_secs(5),
            length: Duration::from_secs(25),
            seed: 1,
            planned: 400,
            sides: [side("round-robin", 4.0), side("least-cost", 0.5)],
        }
    }

    #[test]
    fn panels_stand_side_by_side_from_100_columns_and_fit_the_width() {
        for width in [80, 99, 100, 120, 200] {
            let lines = lines(&frame(), width);
            assert_eq!(lines.len() < 15, width >= 100, "{width}: {} lines", lines.len());
            for line in &lines {
                assert!(line.width() <= width, "{width}: {}", line.render(1_000, false));
            }
        }
    }

    #[test]
    fn four_pods_each_fit_a_terminal_of_24_lines() {
        let mut frame = frame();
        for side in &mut frame.sides {
            side.pods.push(side.pods[0].clone());
        }
        // The cursor stands in the line below.
        assert!(lines(&frame, 80).len() <= 23);
    }

    #[test]
    fn pressure_has_a_colour_and_what_was_never_read_no_number() {
        let text: Vec<String> = panel(&frame().sides[0], 60).iter().map(|line| line.render(60, true)).collect();
        assert!(text[4].contains("\x1b[32m     0"), "{:?}", text[4]);
        assert!(text[5].contains("\x1b[31m     7") && text[5].contains(":40002 ½ speed"), "{:?}", text[5]);
        assert!(text[6].contains("not read"), "{:?}", text[6]);
    }

    #[test]
    fn all_answered_is_said_only_when_it_is_so() {
        let said = |left: [u64; 3], elapsed| {
            let mut frame = frame();
            frame.elapsed = Duration::from_secs(elapsed);
            for (side, [sent, done, given_up]) in frame.sides.iter_mut().zip([left, [400, 400, 0]]) {
                side.figures = Figures { sent, done, given_up, ..Figures::default() };
            }
            progress(&frame, 200).render(200, false)
        };
        for (left, elapsed, what) in [
            ([400, 400, 0], 20, "400 requests each, all answered"),
            ([390, 300, 0], 20, "20 of 25 s   400 requests for each"),
            ([390, 300, 0], 30, "90 answers to come, 10 follow-ups wait for one"),
            ([400, 300, 0], 30, "all sent, 100 answers to come"),
            ([390, 300, 90], 37, "over: 300 and 400 of 400 answered"),
        ] {
            let text = said(left, elapsed);
            assert!(text.contains(what), "{text}");
        }
    }

    #[test]
    fn a_panel_s_counts_add_up_to_what_was_sent_and_fit_the_narrowest() {
        let mut side = frame().sides[0].clone();
        side.figures = Figures { sent: 594, done: 454, given_up: 137, failed: 3, ..Figures::default() };
        assert_eq!(counts(&side, 49).render(200, false), "594 sent  454 done  137 given up  3 errors");
        side.figures = Figures { sent: 594, done: 495, failed: 4, ..Figures::default() };
        assert_eq!(counts(&side, 49).render(200, false), "594 sent  495 done  95 open  4 errors  1432 tok/s");
    }

    #[test]
    fn the_slower_side_has_the_longer_bar() {
        let text: Vec<String> = comparison(&frame().sides, 60).iter().map(|line| line.render(60, false)).collect();
        let filled = |text: &str| text.chars().filter(|&it| it == '█').count();
        assert_eq!(filled(&text[0]), 26, "{text:?}");
        assert!((3..=4).contains(&filled(&text[1])), "{text:?}");
    }
}
