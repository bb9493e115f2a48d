//! What is promised of a door when there is more work than the fleet can carry, and whether it is kept.

use super::{Crowd, Days, Sheet, groups::Group};
use crate::lab::study::Target;

/// The door that this house stands for.
pub(super) const OURS: &str = "line";

/// What ours is compared with: no door, and the Inference Extension's as it is by default.
const NONE: &str = "open";
const THEIRS: &str = "gie";

/// The load at which the critical ones are looked at.
const CRITICAL_AT: f64 = 1.5;

/// What may be lost: of attainment and of goodput, between equals, of a light tenant's time.
const KEPT: f64 = 0.95;
const EVEN: f64 = 0.05;
const LONGER: f64 = 1.1;

/// Less than this of the goodput is a collapse.
const COLLAPSE: f64 = 0.5;

/// Every promise about `door` that these sheets tell something of.
pub fn claims(sheets: &[Sheet], door: &str) -> Vec<Target> {
    let of = |crowd: Crowd, door: &str, load: f64| {
        let is = |it: &&Sheet| it.crowd == crowd && it.door == door && (it.load - load).abs() < 1e-9;
        sheets.iter().find(is)
    };
    let mut claims = Vec::new();
    if let Some(sheet) = of(Crowd::Classes, door, CRITICAL_AT) {
        claims.extend(critical(sheet));
    }
    claims.extend(sheets.iter().find(|it| it.crowd == Crowd::Tenants && it.door == door).map(even));
    claims.extend(sheets.iter().find(|it| it.crowd == Crowd::Light && it.door == door).into_iter().flat_map(light));
    for crowd in [Crowd::Classes, Crowd::Hurried] {
        for load in [1.3, 2.0] {
            let kept = |door: &str| {
                let at = |load: f64| of(crowd, door, load).map(|it| it.all.mean(|group| group.goodput));
                Some(at(load)? / at(1.0)?.max(f64::MIN_POSITIVE))
            };
            let wanted = |door: &str| format!("goodput at {load} x capacity over that at 1 x, `{door}`");
            let row = |door: &str, bound: String, met: fn(f64) -> bool| {
                kept(door)
                    .map(|kept| target(crowd, format!("{}: {bound}", wanted(door)), format!("{kept:.3}"), met(kept)))
            };
            claims.extend(row(door, format!(">= {KEPT}"), |kept| kept >= KEPT));
            claims.extend(row(NONE, format!("< {COLLAPSE}"), |kept| kept < COLLAPSE));
        }
    }
    for ours in sheets.iter().filter(|it| it.door == door) {
        claims.extend(of(ours.crowd, THEIRS, ours.load).and_then(|theirs| against(ours, theirs)));
    }
    claims
}

fn critical(sheet: &Sheet) -> [Target; 2] {
    let attained = |days: &Days| days.mean(|group| group.attainment);
    let kept = attained(&sheet.some) / attained(&sheet.alone).max(f64::MIN_POSITIVE);
    let wanted = format!("critical attainment at {CRITICAL_AT} x capacity over that alone: >= {KEPT}");
    let loss = |days: &Days| days.mean(|group| group.offered as f64 * (1.0 - group.attainment));
    let theirs = loss(&sheet.others) / (loss(&sheet.others) + loss(&sheet.some)).max(f64::MIN_POSITIVE);
    let absorbed = format!("of all that was lost there, what was sheddable: >= {KEPT}");
    [
        target(sheet.crowd, wanted, format!("{kept:.3}"), kept >= KEPT),
        target(sheet.crowd, absorbed, format!("{theirs:.3}"), theirs >= KEPT),
    ]
}

fn even(sheet: &Sheet) -> Target {
    let tokens = |days: &Days| days.mean(|group| group.tokens);
    let ratio = tokens(&sheet.some) / tokens(&sheet.others).max(f64::MIN_POSITIVE);
    let wanted = format!("tokens served, of the tenant that asks 1 over the one that asks 10: 1 within {EVEN}");
    target(sheet.crowd, wanted, format!("{ratio:.3}"), (ratio - 1.0).abs() <= EVEN)
}

fn light(sheet: &Sheet) -> [Target; 3] {
    let ttft = |days: &Days| days.mean(|group| group.ttft.mean);
    let beside = ttft(&sheet.some);
    let alone = beside / ttft(&sheet.alone).max(f64::MIN_POSITIVE);
    let modest = beside / ttft(&sheet.modest).max(f64::MIN_POSITIVE);
    // What the line adds to what a full fleet takes for a first token.
    let wait = sheet.some.mean(|group| group.wait.mean);
    let added = beside / (beside - wait).max(f64::MIN_POSITIVE);
    [
        target(
            sheet.crowd,
            format!("TTFT of the light tenant over that without its wait at the door: <= {LONGER}"),
            format!("{added:.3}"),
            added <= LONGER,
        ),
        target(
            sheet.crowd,
            format!("TTFT of the light tenant over that beside one that asks for what is left: <= {LONGER}"),
            format!("{modest:.3}"),
            modest <= LONGER,
        ),
        target(
            sheet.crowd,
            format!("TTFT of the light tenant over that on an idle fleet: <= {LONGER}"),
            format!("{alone:.3}"),
            alone <= LONGER,
        ),
    ]
}

/// Not worse than the other, by what each crowd is about.
fn against(ours: &Sheet, theirs: &Sheet) -> Option<Target> {
    type Of = fn(&Sheet) -> f64;
    let (what, of, more): (&str, Of, bool) = match ours.crowd {
        Crowd::Classes => ("critical attainment", |it| it.some.mean(|group| group.attainment), true),
        Crowd::Hurried | Crowd::Impatient => ("goodput", |it| it.all.mean(|group| group.goodput), true),
        Crowd::Tenants => return None,
        Crowd::Light => ("mean TTFT of the light tenant", |it| it.some.mean(|group| group.ttft.mean), false),
    };
    let ratio = of(ours) / of(theirs).max(f64::MIN_POSITIVE);
    let (sign, met) = if more { (">=", ratio >= 0.995) } else { ("<=", ratio <= 1.005) };
    let wanted = format!("{what} at {} x capacity over `{THEIRS}`'s: {sign} 1", ours.load);
    Some(target(ours.crowd, wanted, format!("{ratio:.3}"), met))
}

fn target(crowd: Crowd, wanted: String, measured: String, met: bool) -> Target {
    Target { stage: crowd.name().to_owned(), wanted, measured, met }
}

/// The mean and how far the day farthest from it is.
pub(super) fn told(days: &Days, of: impl Fn(&Group) -> f64 + Copy, digits: usize) -> String {
    if days.0.is_empty() {
        return "-".to_owned();
    }
    let (mean, spread) = (days.mean(of), days.spread(of));
    if days.0.len() > 1 { format!("{mean:.digits$} ± {spread:.digits$}") } else { format!("{mean:.digits$}") }
}
