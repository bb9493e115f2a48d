//! The report as people read it: one Markdown page, tables and pictures, no more words than needed.

use super::{
    BOUNDS, Chapter, METRICS, Metric, Plot, Sheet, Target,
    benchmark::OURS,
    exam::{Capacity, Overload},
};
use crate::lab::{RIVALS, Standing, workloads::Rate};

/// A page of one chapter alone.
pub fn chapter_page(chapter: &Chapter, plots: &[Plot]) -> String {
    format!("# {}: {}\n\n{}", chapter.name, chapter.title, told(chapter, plots))
}

/// A page of many, the promises first; `plots` are each chapter's, `closing` ends it.
pub fn page(chapters: &[Chapter], plots: &[Vec<Plot>], targets: &[Target], closing: &str) -> String {
    let mut text = "# The benchmark\n\n".to_owned();
    let met = targets.iter().filter(|target| target.met).count();
    text += &format!("{met} of {} targets are met by `{OURS}`.\n\n", targets.len());
    let row = |it: &Target| {
        let met = if it.met { "met" } else { "**missed**" };
        vec![it.stage.clone(), it.wanted.clone(), it.measured.clone(), met.to_owned()]
    };
    let rows: Vec<_> = targets.iter().map(row).collect();
    text += &table(&["stage", "target", "measured", ""].map(str::to_owned), &rows);
    for (chapter, plots) in chapters.iter().zip(plots) {
        text += &format!("\n## {}: {}\n\n{}", chapter.name, chapter.title, told(chapter, plots));
    }
    text + &format!("\n{closing}\n")
}

fn told(chapter: &Chapter, plots: &[Plot]) -> String {
    let mut text = format!("{}.\n", chapter.terms);
    for sheet in &chapter.sheets {
        text += &format!("\nAt {}:\n\n{}", named(sheet.rate), sheet_table(sheet));
        text += &sheet.unanswered().map(|line| format!("\n{line}\n")).unwrap_or_default();
    }
    if !chapter.capacities.is_empty() {
        let unit = chapter.sheets.first().map_or(Rate::PerSecond(1.0), |sheet| sheet.rate);
        text += &format!("\nThe highest rate that keeps the SLO often enough:\n\n{}", capacities(chapter, unit));
    }
    if let Some(Overload { rate, at, beyond }) = chapter.overload {
        text += &format!(
            "\n`{OURS}` at its capacity ({rate:.2}): goodput {at:.2} a second; at 1.1 times that: {beyond:.2}.\n"
        );
    }
    for plot in plots {
        text += &format!("\n![{}]({}.svg)\n", plot.title, plot.name);
    }
    text
}

/// A rate in words.
pub(super) fn named(rate: Rate) -> String {
    match rate {
        Rate::PerSecond(rate) => format!("rate {rate}"),
        Rate::Times(times) => format!("{times} times the recorded speed"),
    }
}

fn sheet_table(sheet: &Sheet) -> String {
    let mut head: Vec<String> = vec!["policy".to_owned()];
    for metric in &METRICS {
        head.push(metric.heading.to_owned());
        if has_spread(metric) {
            head.push("±".to_owned());
        }
    }
    head.push("gap closed".to_owned());
    let row = |standing: &Standing| {
        let mut row = vec![emphasised(standing.policy)];
        for metric in &METRICS {
            row.push(metric.unit.text(standing.mean(metric.of)));
            if has_spread(metric) {
                row.push(metric.unit.text_of(standing.spread(metric.of)));
            }
        }
        row.push(sheet.gap_closed(standing).map_or_else(|| "-".to_owned(), |gap| format!("{gap:.3}")));
        row
    };
    let rows: Vec<_> = sheet.standings.iter().chain(&sheet.bounds).map(row).collect();
    table(&head, &rows)
}

/// The two numbers by which policies are judged are shown with the seed farthest from the mean.
fn has_spread(metric: &Metric) -> bool {
    matches!(metric.key, "attainment" | "ttft_mean_ms")
}

/// Capacity by policy: rate, requests a second, and that over the best other router's.
fn capacities(chapter: &Chapter, unit: Rate) -> String {
    let mut head = vec!["policy".to_owned()];
    for level in &chapter.levels {
        let level = level * 100.0;
        head.extend([format!("rate at {level} %"), "requests/s".to_owned(), "over best rival".to_owned()]);
    }
    let row = |capacity: &Capacity| {
        let mut row = vec![emphasised(capacity.policy)];
        for level in 0..chapter.levels.len() {
            row.extend(capacity_cells(&chapter.capacities, capacity, level, unit));
        }
        row
    };
    let rows: Vec<_> = chapter.capacities.iter().map(row).collect();
    table(&head, &rows)
}

/// Rate, requests a second and ratio to the best rival; dashes where nothing was found.
pub fn capacity_cells(all: &[Capacity], capacity: &Capacity, level: usize, unit: Rate) -> [String; 3] {
    let at = |capacity: &Capacity| capacity.at.get(level).copied().flatten();
    let Some(point) = at(capacity) else { return ["-", "-", "-"].map(str::to_owned) };
    let is_rival = |it: &&Capacity| it.policy != "oracle" && RIVALS.iter().any(|entry| entry.name == it.policy);
    let best = all.iter().filter(is_rival).filter_map(at).map(|point| point.per_second).fold(0.0, f64::max);
    let times = if matches!(unit, Rate::Times(_)) { "x" } else { "" };
    let ratio = if best > 0.0 { format!("{:.3}", point.per_second / best) } else { "-".to_owned() };
    [format!("{times}{:.3}", point.rate), format!("{:.2}", point.per_second), ratio]
}

fn emphasised(policy: &str) -> String {
    match policy {
        OURS => format!("**{policy}**"),
        _ if BOUNDS.contains(&policy) => format!("*{policy}*"),
        _ => policy.to_owned(),
    }
}

/// A Markdown table; numbers stand to the right.
pub fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let number = |at: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(at)).filter(|cell| *cell != "-").peekable();
        cells.peek().is_some()
            && cells.all(|cell| cell.trim_start_matches(['x', '-']).starts_with(|c: char| c.is_ascii_digit()))
    };
    let rule: Vec<String> = (0..head.len()).map(|at| if number(at) { "---:" } else { "---" }.to_owned()).collect();
    let mut text = line(head) + &line(&rule);
    for row in rows {
        text += &line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{
        Stats,
        study::{Point, plots},
    };

    fn standing(policy: &'static str, ttft_ms: f64) -> Standing {
        Standing { policy, runs: vec![Stats { ttft_mean: ttft_ms, attainment: 0.5, ..Stats::default() }] }
    }

    fn chapter() -> Chapter {
        let sheet = |rate: f64| Sheet {
            trace: None,
            rate: Rate::Times(rate),
            standings: vec![standing("least-cost", 500.0), standing("round-robin", 2_000.0)],
            bounds: vec![standing("bound-alone", 100.0), standing("bound-pooled", 400.0)],
        };
        let found = |policy, per_second| Capacity {
            policy,
            at: vec![Some(Point { rate: 4.5, per_second, attainment: 0.9 }), None],
        };
        Chapter {
            sheets: vec![sheet(1.0), sheet(2.0)],
            levels: vec![0.9, 0.99],
            capacities: vec![found("least-cost", 15.0), found("gie", 12.0), found("oracle", 20.0)],
            ..Chapter::new("w1", "conversations")
        }
    }

    #[test]
    fn a_chapter_has_a_row_for_everybody_and_the_gap_worked_by_hand() {
        let chapter = chapter();
        let pictures = plots(&chapter, OURS);
        let text = chapter_page(&chapter, &pictures);
        assert!(text.starts_with("# w1: conversations\n"), "{text}");
        let ours: Vec<&str> = text.lines().filter(|line| line.starts_with("| **least-cost**")).collect();
        assert_eq!(ours.len(), 3, "two rates and the capacities: {text}");
        assert!(ours[0].ends_with("| 0.938 |"), "(2 - 0.5) / (2 - 0.4): {}", ours[0]);
        assert!(ours[2].contains("| x4.500 | 15.00 | 1.250 | - | - | - |"), "{}", ours[2]);
        let columns = |line: &str| line.matches('|').count();
        let rule = text.lines().find(|line| line.starts_with("| ---")).unwrap();
        assert_eq!((columns(rule), METRICS.len() + 5), (columns(ours[0]), columns(ours[0])));
        for picture in &pictures {
            assert!(text.contains(&format!("]({}.svg)", picture.name)));
        }
        assert_eq!(pictures.len(), 4);
    }

    #[test]
    fn the_page_counts_what_is_met_and_says_what_is_missed() {
        let target = |met| Target { stage: "w1".into(), wanted: "TTFT <= 1".into(), measured: "2.0".into(), met };
        let text = page(&[chapter()], &[Vec::new()], &[target(true), target(false)], "The end.");
        assert!(text.contains("1 of 2 targets are met"), "{text}");
        assert!(text.contains("| w1 | TTFT <= 1 | 2.0 | **missed** |") && text.ends_with("\nThe end.\n"));
        assert!(text.contains("\n## w1: conversations\n"));
    }
}
