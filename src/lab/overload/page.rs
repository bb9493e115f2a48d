//! What was measured, as tables and pictures.

use super::{Crowd, Days, PARTS, Sheet, claims, claims::told, groups::Group};
use crate::lab::study::{Line, Plot, Target, markdown_table};

/// A wait is drawn as no shorter than this, in seconds: a picture of factors has no place for none at all.
const SHORTEST: f64 = 0.001;

/// Everything in Markdown, with the pictures in `folder` as seen from the page.
pub fn page(sheets: &[Sheet], terms: &str, folder: &str) -> String {
    let mut text = format!("{terms}\n\n");
    let rows = claims::claims(sheets, claims::OURS);
    let met = rows.iter().filter(|row| row.met).count();
    text += &format!("{met} of {} promises are kept by `{}`.\n\n", rows.len(), claims::OURS);
    let row = |it: &Target| {
        let met = if it.met { "kept" } else { "**missed**" };
        vec![it.stage.clone(), it.wanted.clone(), it.measured.clone(), met.to_owned()]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    text += &markdown_table(&["crowd", "promise", "measured", ""].map(str::to_owned), &rows);
    for crowd in Crowd::ALL {
        let sheets: Vec<&Sheet> = sheets.iter().filter(|it| it.crowd == crowd).collect();
        if !sheets.is_empty() {
            text += &format!("\n### {}\n{}\n\n{}", crowd.title(), crowd.what(), table(crowd, &sheets));
        }
        for plot in plots(&sheets) {
            text += &format!("\n![{}]({folder}/{}.svg)\n", plot.title, plot.name);
        }
    }
    text
}

/// Every picture that these sheets make.
pub fn pictures(sheets: &[Sheet]) -> Vec<Plot> {
    let of = |crowd: Crowd| sheets.iter().filter(|it| it.crowd == crowd).collect::<Vec<_>>();
    Crowd::ALL.into_iter().flat_map(|crowd| plots(&of(crowd))).collect()
}

type Of = fn(&Group) -> f64;

/// Its heading, whose it is, which number, and how many digits.
type Column = (&'static str, fn(&Sheet) -> &Days, Of, usize);

fn table(crowd: Crowd, sheets: &[&Sheet]) -> String {
    let columns: Vec<Column> = match crowd {
        Crowd::Classes => vec![
            ("goodput /s", |it| &it.all, |it| it.goodput, 1),
            ("critical attained", |it| &it.some, |it| it.attainment, 3),
            ("alone", |it| &it.alone, |it| it.attainment, 3),
            ("sheddable attained", |it| &it.others, |it| it.attainment, 3),
            ("critical refused", |it| &it.some, |it| it.refused, 3),
            ("sheddable refused", |it| &it.others, |it| it.refused, 3),
            ("critical TTFT p99, s", |it| &it.some, |it| it.ttft.p99 / 1e3, 2),
        ],
        Crowd::Hurried | Crowd::Impatient => vec![
            ("goodput /s", |it| &it.all, |it| it.goodput, 1),
            ("attained", |it| &it.all, |it| it.attainment, 3),
            ("refused", |it| &it.all, |it| it.refused, 3),
            ("gone", |it| &it.all, |it| it.left, 3),
            ("TTFT mean, s", |it| &it.all, |it| it.ttft.mean / 1e3, 2),
            ("p99, s", |it| &it.all, |it| it.ttft.p99 / 1e3, 2),
        ],
        Crowd::Tenants => vec![
            ("tokens/s of who asks 10", |it| &it.others, |it| it.tokens, 0),
            ("of who asks 1", |it| &it.some, |it| it.tokens, 0),
            ("wait of who asks 10, s", |it| &it.others, |it| it.wait.mean / 1e3, 2),
            ("of who asks 1, s", |it| &it.some, |it| it.wait.mean / 1e3, 2),
        ],
        Crowd::Light => vec![
            ("wait, s", |it| &it.some, |it| it.wait.mean / 1e3, 3),
            ("wait p99, s", |it| &it.some, |it| it.wait.p99 / 1e3, 3),
            ("TTFT, s", |it| &it.some, |it| it.ttft.mean / 1e3, 3),
            ("beside a modest one", |it| &it.modest, |it| it.ttft.mean / 1e3, 3),
            ("alone", |it| &it.alone, |it| it.ttft.mean / 1e3, 3),
            ("TTFT p99, s", |it| &it.some, |it| it.ttft.p99 / 1e3, 3),
            ("beside a modest one", |it| &it.modest, |it| it.ttft.p99 / 1e3, 3),
            ("alone", |it| &it.alone, |it| it.ttft.p99 / 1e3, 3),
            ("the heavy one's wait, s", |it| &it.others, |it| it.wait.mean / 1e3, 2),
        ],
    };
    let head = ["load", "door"].into_iter().chain(columns.iter().map(|it| it.0)).map(str::to_owned).collect::<Vec<_>>();
    let row = |sheet: &&Sheet| {
        let door = if sheet.door == claims::OURS { format!("**{}**", sheet.door) } else { sheet.door.to_owned() };
        let cells = columns.iter().map(|(_, days, of, digits)| told(days(sheet), *of, *digits));
        [format!("{:.2}", sheet.load), door].into_iter().chain(cells).collect::<Vec<_>>()
    };
    markdown_table(&head, &sheets.iter().map(row).collect::<Vec<_>>())
}

fn plots(sheets: &[&Sheet]) -> Vec<Plot> {
    let Some(first) = sheets.first() else { return Vec::new() };
    let name = first.crowd.name();
    match first.crowd {
        Crowd::Classes => vec![
            by_load(sheets, "goodput", "goodput over what the fleet can carry", &|it| {
                it.all.mean(|of| of.goodput) / it.capacity
            }),
            by_load(sheets, "critical", "critical requests: attainment", &|it| it.some.mean(|of| of.attainment)),
            by_load(sheets, "sheddable", "sheddable requests: attainment", &|it| it.others.mean(|of| of.attainment)),
        ],
        Crowd::Hurried | Crowd::Impatient => {
            vec![by_load(sheets, "goodput", "goodput over what the fleet can carry", &|it| {
                it.all.mean(|of| of.goodput) / it.capacity
            })]
        }
        Crowd::Tenants => {
            let points = |sheet: &Sheet| {
                let part = sheet.minutes * 60.0 / f64::from(PARTS);
                sheet.shares.iter().enumerate().map(|(nth, share)| ((nth as f64 + 0.5) * part, *share)).collect()
            };
            let lines = sheets.iter().map(|it| line(it.door, points(it))).collect();
            vec![plot(
                name,
                ("share", "share of the tokens computed of the tenant that asks 1, beside one that asks 10"),
                "seconds",
                false,
                lines,
            )]
        }
        Crowd::Light => {
            let points = |days: &Days| {
                let at: [(f64, Of); 3] = [(50.0, |it| it.ttft.p50), (90.0, |it| it.ttft.p90), (99.0, |it| it.ttft.p99)];
                at.into_iter().map(|(x, of)| (x, (days.mean(of) / 1e3).max(SHORTEST))).collect()
            };
            let mut lines: Vec<Line> = sheets.iter().map(|it| line(it.door, points(&it.some))).collect();
            let ours = sheets.iter().find(|it| it.door == claims::OURS).unwrap_or(first);
            lines.push(line("alone", points(&ours.alone)));
            vec![plot(
                name,
                ("ttft", "TTFT of the light tenant beside a heavy one, s"),
                "so many of a hundred at most",
                true,
                lines,
            )]
        }
    }
}

fn by_load(sheets: &[&Sheet], what: &str, title: &str, of: &dyn Fn(&Sheet) -> f64) -> Plot {
    let mut doors: Vec<&'static str> = Vec::new();
    for sheet in sheets.iter().filter(|it| it.load.is_finite()) {
        if !doors.contains(&sheet.door) {
            doors.push(sheet.door);
        }
    }
    let points = |door| sheets.iter().filter(|it| it.door == door).map(|it| (it.load, of(it))).collect();
    let lines = doors.into_iter().map(|door| line(door, points(door))).collect();
    let name = sheets.first().map_or("", |it| it.crowd.name());
    plot(name, (what, title), "requests that come, in times of what the fleet can carry", false, lines)
}

fn line(door: &str, points: Vec<(f64, f64)>) -> Line {
    Line { name: door.to_owned(), points, strong: door == claims::OURS }
}

fn plot(crowd: &str, (what, title): (&str, &str), along: &str, log: bool, lines: Vec<Line>) -> Plot {
    Plot { name: format!("{crowd}-{what}"), title: format!("{crowd}: {title}"), along: along.to_owned(), log, lines }
}
