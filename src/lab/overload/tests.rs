//! The promises at reduced size: two pods and a minute, seconds of work.

use std::path::Path;

use super::*;
use crate::lab::{
    doors::DOORS,
    study::{Target, benchmark},
    workloads::{self, Pods},
};

/// What two pods carry of W2 (`tidegate lab capacity w2 --pods 2 --rate 40`).
const CAPACITY: f64 = 45.0;

fn played(crowd: Crowd, loads: &[f64], doors: &[&str]) -> Vec<Sheet> {
    played_for(1.0, crowd, loads, doors)
}

fn played_for(minutes: f64, crowd: Crowd, loads: &[f64], doors: &[&str]) -> Vec<Sheet> {
    let pods = Pods { count: 2, profiles: Vec::new(), kv: 1.0, speed: 1.0 };
    let setup = workloads::stage("w2", &pods, minutes).unwrap();
    let policy = Policy::find(benchmark::OURS).unwrap();
    let doors: Vec<&'static Entry> = doors.iter().map(|name| Entry::find(name).unwrap()).collect();
    let study = Study {
        workload: "w2",
        // The beginning of it, wherever these tests run.
        trace: Some(Path::new("tests/fixtures/traces/azure_conversation.csv")),
        setup: &setup,
        policy: &policy,
        doors: &doors,
        slo: Slo::HEADLINE,
        capacity: CAPACITY,
        seeds: 1,
        minutes,
        threads: 2,
        watch: &(),
    };
    study.play(crowd, loads).unwrap()
}

fn told(sheets: &[Sheet], words: &str) -> Target {
    let claims = claims(sheets, "line");
    claims.iter().find(|it| it.wanted.contains(words)).unwrap_or_else(|| panic!("{words}: {claims:?}")).clone()
}

#[test]
fn beyond_capacity_the_critical_ones_are_served_and_what_is_sheddable_is_not() {
    let sheets = played(Crowd::Classes, &[1.5], &["line", "gie"]);
    for words in ["over that alone", "what was sheddable"] {
        let claim = told(&sheets, words);
        assert!(claim.met, "{claim:?}");
    }
    let [ours, theirs] = sheets.as_slice() else { panic!("{sheets:?}") };
    let goodput = |sheet: &Sheet| sheet.all.mean(|group| group.goodput);
    assert!(goodput(ours) > goodput(theirs), "{} {}", goodput(ours), goodput(theirs));
}

#[test]
fn goodput_stays_where_admitting_everything_collapses() {
    let sheets = played(Crowd::Classes, &[1.0, 2.0], &["line", "open"]);
    for words in ["at 2 x capacity over that at 1 x, `line`", "at 2 x capacity over that at 1 x, `open`"] {
        let claim = told(&sheets, words);
        assert!(claim.met, "{claim:?}");
    }
}

#[test]
fn two_tenants_get_the_same_though_one_asks_ten_times_as_much() {
    let sheets = played(Crowd::Tenants, &Crowd::Tenants.loads(), &["line", "gie"]);
    let claim = told(&sheets, "tokens served");
    assert!(claim.met, "{claim:?}");
    let theirs = &sheets[1];
    let ratio = theirs.some.mean(|group| group.tokens) / theirs.others.mean(|group| group.tokens);
    assert!(ratio < 0.2, "one line for all gives each what it asks for: {ratio}");
}

#[test]
fn a_light_tenant_does_not_wait_for_a_heavy_one() {
    let sheets = played(Crowd::Light, &Crowd::Light.loads(), &["line", "gie"]);
    let claim = told(&sheets, "at the door");
    assert!(claim.met, "{claim:?}");
    let [ours, theirs] = sheets.as_slice() else { panic!("{sheets:?}") };
    let wait = |days: &Days| days.mean(|group| group.wait.mean);
    assert!(wait(&ours.some) * 10.0 < wait(&ours.others), "{ours:?}");
    assert!(wait(&theirs.some) > 0.8 * wait(&theirs.others), "one line for all: {theirs:?}");
}

#[test]
fn the_page_has_every_crowd_and_its_pictures_and_says_the_same_twice() {
    let all = |()| -> Vec<Sheet> {
        let of = |(crowd, loads): (Crowd, &[f64])| played_for(0.2, crowd, loads, &["line", "shed"]);
        [(Crowd::Impatient, &[1.0, 1.5][..]), (Crowd::Light, &[1.55])].into_iter().flat_map(of).collect()
    };
    let sheets = all(());
    assert_eq!(sheets, all(()));
    let text = page(&sheets, "w2.", "pictures");
    assert!(text.contains("| 1.50 | **line** |") && text.contains("](pictures/impatient-goodput.svg)"), "{text}");
    let pictures = pictures(&sheets);
    assert_eq!(pictures.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["impatient-goodput", "light-ttft"]);
    assert!(pictures.iter().all(|it| it.lines.iter().all(|line| line.points.len() > 1)));
    assert!(DOORS.iter().any(|door| door.name == claims::OURS));
}
