//! Line plots as SVG: plain text, no assets, readable on light and on dark, every line named at its end.
//!
//! Colours are a style sheet inside the file, so that the reader's own preference decides. Lines that end close together
//! have their names moved apart. One line may be strong; the others stay behind it.

use std::fmt::Write as _;

use super::{Chapter, Sheet, Unit};
use crate::lab::{Standing, Stats, workloads::Rate};

/// The picture, in its own units.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;

/// Around the lines: for the numbers to the left, the names to the right, the title above, the rates below.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;

/// From one name to the next at least: the height of the letters.
const NAME_HEIGHT: f64 = 14.0;

/// Colours of the lines that are not strong, in turn: eight hues of middling brightness, to be told apart on white and
/// on black; from the ninth on they come again, dashed.
const HUES: [&str; 8] = ["#4c8bd9", "#d98a2b", "#3fa66a", "#c45fb0", "#c9564f", "#7f7fd0", "#2ea3a3", "#97903a"];

/// From one rule to the next where values go up by even steps: shares, of which a fifth is a step one sees.
const RULE: f64 = 0.2;

/// No more rules than this: from -1 to 1 they are eleven.
const MOST_RULES: u32 = 20;

/// No more numbers below than this: they would cover each other.
const MOST_MARKS: usize = 12;

/// Below this a policy is so much worse than round robin that how much would only squeeze the others.
const LOWEST_GAP: f64 = -1.0;

/// It says that, too.
const GAP_TITLE: &str = "gap closed (0 is round robin, 1 the bound; what is below -1 is drawn at -1)";

/// Light and dark: letters, rules, the ground and the strong line.
const STYLE: &str = "svg{background:#fff;color:#1f2328}.rule{stroke:#d0d7de}.strong{stroke:#000}\
    .strong-name{fill:#000;font-weight:700}text{fill:currentColor}\
    @media(prefers-color-scheme:dark){svg{background:#0d1117;color:#e6edf3}.rule{stroke:#30363d}\
    .strong{stroke:#fff}.strong-name{fill:#fff}}";

/// One policy's line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Whose.
    pub name: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
    /// Whether it stands out.
    pub strong: bool,
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Its file's name, without the ending.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What goes to the right.
    pub along: String,
    /// Whether what goes up does so by factors.
    pub log: bool,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A chapter's pictures: TTFT's mean and p99, attainment, and the gap closed.
pub fn plots(chapter: &Chapter, strong: &str) -> Vec<Plot> {
    type Of<'a> = &'a dyn Fn(&Sheet, &Standing) -> Option<f64>;
    let along = match chapter.sheets.first().map(|sheet| sheet.rate) {
        Some(Rate::Times(_)) => "times as fast as recorded",
        _ => "rate",
    };
    let mean = |of: fn(&Stats) -> f64, scale: f64| move |_: &Sheet, it: &Standing| Some(it.mean(of) * scale);
    let plot = |what: &str, title: &str, log: bool, of: Of<'_>| {
        let names = chapter.sheets.first().into_iter().flat_map(|sheet| sheet.standings.iter().chain(&sheet.bounds));
        let line = |name: &'static str| Line {
            name: name.to_owned(),
            points: chapter
                .sheets
                .iter()
                .filter_map(|sheet| Some((rate(sheet), of(sheet, sheet.of(name)?)?)))
                .filter(|(_, value)| value.is_finite())
                .collect(),
            strong: name == strong,
        };
        let lines: Vec<Line> = names.map(|it| line(it.policy)).filter(|line| !line.points.is_empty()).collect();
        let title = format!("{}: {title}", chapter.name);
        Plot { name: format!("{}-{what}", chapter.name), title, along: along.to_owned(), log, lines }
    };
    let all = vec![
        plot("ttft-mean", "mean TTFT, s", true, &mean(|it| it.ttft_mean, 1e-3)),
        plot("ttft-p99", "p99 TTFT, s", true, &mean(|it| it.ttft_p99, 1e-3)),
        plot("attainment", "attainment", false, &mean(|it| it.attainment, 1.0)),
        plot("gap", GAP_TITLE, false, &|sheet, it| sheet.gap_closed(it).map(|gap| gap.max(LOWEST_GAP))),
    ];
    all.into_iter().filter(|plot| !plot.lines.is_empty()).collect()
}

fn rate(sheet: &Sheet) -> f64 {
    match sheet.rate {
        Rate::PerSecond(rate) | Rate::Times(rate) => rate,
    }
}

/// From numbers to places.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
}

impl Frame {
    fn of(plot: &Plot) -> Self {
        let all = || plot.lines.iter().flat_map(|line| &line.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), it| (low.min(it), high.max(it)))
        };
        let x = widened(range(&mut all().map(|point| point.0)));
        let y = range(&mut all().map(|point| height(point.1, plot.log)));
        let whole = |step: f64| widened(((y.0 / step).floor() * step, (y.1 / step).ceil() * step));
        let y = whole(if plot.log { 1.0 } else { RULE });
        Self { x, y, log: plot.log }
    }

    fn across(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn down(&self, y: f64) -> f64 {
        let share = (height(y, self.log) - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    /// Where rules go: powers of ten, or even steps.
    fn marks(&self) -> Vec<f64> {
        if self.log {
            #[expect(clippy::cast_possible_truncation, reason = "powers of ten of a time")]
            let (low, high) = (self.y.0 as i32, self.y.1 as i32);
            return (low..=high).map(|power| 10_f64.powi(power)).collect();
        }
        let at = |nth: u32| self.y.0 + f64::from(nth) * RULE;
        (0..=MOST_RULES).map(at).take_while(|it| *it <= self.y.1 + RULE / 2.0).collect()
    }
}

fn height(y: f64, log: bool) -> f64 {
    // No time is below a microsecond.
    if log { y.max(1e-6).log10() } else { y }
}

/// A range that is not a point.
fn widened((low, high): (f64, f64)) -> (f64, f64) {
    let (low, high) = if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
    let room = if high > low { 0.0 } else { 0.5 };
    (low - room, high + room)
}

impl Plot {
    /// The picture as text.
    pub fn svg(&self) -> String {
        let frame = Frame::of(self);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             font-family=\"system-ui,sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{title}\">\n\
             <style>{STYLE}</style>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{title}</text>\n",
            title = escaped(&self.title)
        );
        svg += &self.axes(&frame);
        let mut names = Vec::new();
        let (strong, others): (Vec<_>, Vec<_>) = self.lines.iter().enumerate().partition(|(_, line)| line.strong);
        // What stands out is drawn last, above the others.
        for (nth, line) in others.into_iter().chain(strong) {
            svg += &drawn(line, nth, &frame);
            if let Some((_, last)) = line.points.last() {
                names.push((frame.down(*last), nth, line));
            }
        }
        names.sort_by(|one, other| one.0.total_cmp(&other.0));
        let wanted: Vec<f64> = names.iter().map(|name| name.0).collect();
        for ((_, nth, line), y) in names.iter().zip(apart(&wanted)) {
            svg += &named(line, *nth, y);
        }
        svg + "</svg>\n"
    }

    fn axes(&self, frame: &Frame) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut svg = String::new();
        for mark in frame.marks() {
            let y = frame.down(mark);
            let text = if self.log { Unit::Seconds.text(mark * 1e3) } else { Unit::Factor.text(mark) };
            svg += &format!(
                "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>\n",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let mut rates: Vec<f64> = self.lines.iter().flat_map(|line| &line.points).map(|point| point.0).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let every = rates.len().div_ceil(MOST_MARKS).max(1);
        for rate in rates.into_iter().step_by(every) {
            let x = frame.across(rate);
            svg += &format!(
                "<line class=\"rule\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\n\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{rate}</text>\n",
                bottom + 18.0
            );
        }
        svg + &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            f64::midpoint(LEFT, right),
            bottom + 40.0,
            escaped(&self.along)
        )
    }
}

fn drawn(line: &Line, nth: usize, frame: &Frame) -> String {
    let mut path = String::new();
    let mut dots = String::new();
    let (class, width) = if line.strong { (" class=\"strong\"", 3.5) } else { ("", 1.6) };
    for (x, y) in &line.points {
        let (x, y) = (frame.across(*x), frame.down(*y));
        let pen = if path.is_empty() { 'M' } else { 'L' };
        // Writing into a string cannot fail.
        write!(path, "{pen}{x:.1} {y:.1}").ok();
        dots += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{width}\"{class} {}/>\n", fill(line, nth));
    }
    let dashes = if nth >= HUES.len() { " stroke-dasharray=\"5 3\"" } else { "" };
    let stroke = if line.strong { String::new() } else { format!(" stroke=\"{}\"", hue(nth)) };
    format!("<path{class} d=\"{path}\" fill=\"none\" stroke-width=\"{width}\"{stroke}{dashes}/>\n{dots}")
}

fn named(line: &Line, nth: usize, y: f64) -> String {
    let (x, y) = (WIDTH - RIGHT + 10.0, y + 4.0);
    let name = escaped(&line.name);
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {}>{name}</text>\n",
        if line.strong {
            "class=\"strong-name\"".to_owned()
        } else {
            // An attribute would lose against the style sheet.
            format!("style=\"fill:{}\"", hue(nth))
        }
    )
}

fn fill(line: &Line, nth: usize) -> String {
    if line.strong { "fill=\"currentColor\"".to_owned() } else { format!("fill=\"{}\"", hue(nth)) }
}

fn hue(nth: usize) -> &'static str {
    HUES.iter().cycle().nth(nth).copied().unwrap_or("#888888")
}

/// The places of names, given in order from the top, moved so that none covers another and none falls off the picture.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut places: Vec<f64> = Vec::with_capacity(wanted.len());
    for y in wanted {
        let lowest = places.last().map_or(f64::NEG_INFINITY, |before| before + NAME_HEIGHT);
        places.push(y.max(lowest));
    }
    let mut below = HEIGHT;
    for place in places.iter_mut().rev() {
        *place = place.min(below - NAME_HEIGHT);
        below = *place;
    }
    places
}

/// Text as it may stand in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(log: bool) -> Plot {
        let line = |nth: u32| Line {
            name: format!("policy <{nth}> & co"),
            points: vec![(1.0, 0.1 * f64::from(nth + 1)), (2.0, 0.5), (4.0, 10.0)],
            strong: nth == 3,
        };
        Plot {
            name: "w".into(),
            title: "a \"b\"".into(),
            along: "rate".into(),
            log,
            lines: (0..12).map(line).collect(),
        }
    }

    /// Checks that every tag is closed in its order, that attributes are quoted, and counts the tags.
    fn tags(svg: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        for part in svg.split('<').skip(1) {
            let (tag, text) = part.split_once('>').unwrap();
            assert!(!text.contains('>'), "{text}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split([' ', '/']).next().unwrap().to_owned();
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed));
            } else {
                seen.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
        seen
    }

    #[test]
    fn a_picture_is_well_formed_and_has_a_line_and_a_name_for_everybody() {
        for log in [false, true] {
            let svg = plot(log).svg();
            let tags = tags(&svg);
            assert_eq!(tags.iter().filter(|tag| *tag == "path").count(), 12);
            assert_eq!(tags.iter().filter(|tag| *tag == "circle").count(), 36);
            assert_eq!(svg.matches("policy &lt;").count(), 12);
            assert_eq!(svg.matches("strong-name\"").count(), 1, "only one stands out");
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("href"));
            assert!(svg.contains("prefers-color-scheme:dark"));
        }
    }

    #[test]
    fn what_is_far_below_round_robin_is_drawn_at_the_edge_and_the_title_says_so() {
        let standing = |policy, ttft_mean| Standing { policy, runs: vec![Stats { ttft_mean, ..Stats::default() }] };
        let sheet = Sheet {
            rate: Rate::PerSecond(1.0),
            standings: vec![standing("round-robin", 200.0), standing("gie", 900.0)],
            bounds: vec![standing("bound-alone", 100.0)],
            trace: None,
        };
        let plots = plots(&Chapter { sheets: vec![sheet], ..Chapter::new("w", "traffic") }, "gie");
        let gap = plots.iter().find(|plot| plot.name == "w-gap").unwrap();
        assert_eq!(gap.lines[1].points, [(1.0, LOWEST_GAP)], "(200 - 900) / (200 - 100) is -7");
        assert!(gap.title.ends_with("what is below -1 is drawn at -1)"), "{}", gap.title);
    }

    #[test]
    fn a_lone_point_and_no_lines_at_all_are_pictures_too() {
        let line = Line { name: "a".into(), points: vec![(5.0, 0.0)], strong: false };
        for lines in [vec![line], Vec::new()] {
            let svg = Plot { lines, ..plot(true) }.svg();
            tags(&svg);
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn names_do_not_cover_each_other_and_stay_on_the_picture() {
        let places = apart(&[100.0, 101.0, 101.0, HEIGHT - 1.0]);
        assert_eq!(places, [100.0, 114.0, 128.0, HEIGHT - NAME_HEIGHT]);
        let crowded = apart(&[HEIGHT; 3]);
        assert!(crowded.windows(2).all(|pair| pair[1] - pair[0] >= NAME_HEIGHT), "{crowded:?}");
    }

    #[test]
    fn a_logarithm_puts_a_factor_of_ten_between_rules() {
        let frame = Frame::of(&plot(true));
        let gap = |from: f64| frame.down(from) - frame.down(from * 10.0);
        assert!((gap(0.1) - gap(1.0)).abs() < 1e-9);
        assert_eq!(frame.marks().len(), 3, "0.1, 1 and 10");
        assert!((frame.across(2.0) - (LEFT + (WIDTH - LEFT - RIGHT) / 3.0)).abs() < 1e-9);
    }
}
