//! What must hold of all counts together: nobody slips past, all scopes or none, nothing is lost.

use std::{collections::BTreeMap, thread};

use super::*;
use crate::{admission::Caller, config::Quotas};

/// 2026-11-22 01:00 UTC.
const WALL: u64 = 1_795_309_200;

fn moment() -> Moment {
    Moment { at: crate::clock::now(), unix: Duration::from_secs(WALL) }
}

fn later(moment: &Moment, seconds: u64) -> Moment {
    let pause = Duration::from_secs(seconds);
    Moment { at: moment.at + pause, unix: moment.unix + pause }
}

fn caller(tenant: &str, key: Option<&str>) -> Caller {
    Caller { key: key.map(Into::into), ..Caller::of(tenant.into()) }
}

fn tokens(limit: u64) -> Arc<Quota> {
    Arc::new(Quota { tokens_per_minute: Some(limit), ..Quota::default() })
}

fn plan(quotas: &Quotas, tenant: &str) -> Plan {
    Plan::of(quotas, &caller(tenant, Some("k1")), Some(&"m".into()))
}

fn demand(input: u64, output: u64) -> Demand {
    Demand { input, spare: 0, output, cost: None }
}

fn level(counts: &Counts, scope: &Scope, of: Limit, now: &Moment) -> f64 {
    let mut found = f64::NAN;
    counts.each(now, |it, _, _, used| {
        if it == scope {
            found = used.iter().find(|(limit, ..)| *limit == of).unwrap().1;
        }
    });
    found
}

#[test]
fn a_thousand_at_once_do_not_slip_past_a_budget_of_a_hundred() {
    let quotas = Quotas { each_tenant: Some(tokens(100)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let granted: Vec<_> = thread::scope(|scope| {
        let ask = || {
            let plan = plan(&quotas, "t");
            (0..125).filter_map(|_| counts.reserve(&plan, &demand(4, 3), Mode::Enforce, &now).ok()).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        all.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(granted.len(), 14, "14 times 7 are 98");
    for it in granted {
        it.hold.settle(&Spent { requests: 1, input: 4, output: 1, cost: Money(0) }, &now);
    }
    assert!((level(&counts, &Scope::Tenant("t".into()), Limit::Tokens, &now) - 70.0).abs() < 1e-6);
}

#[test]
fn what_one_scope_refuses_no_other_has_counted() {
    let quotas = Quotas {
        all: Some(tokens(1_000)),
        models: BTreeMap::from([("m".into(), tokens(1_000))]),
        each_tenant: Some(tokens(50)),
        each_key: Some(tokens(1_000)),
        ..Quotas::default()
    };
    let (counts, now) = (Counts::default(), moment());
    let first = counts.reserve(&plan(&quotas, "t"), &demand(40, 0), Mode::Enforce, &now).unwrap();
    let refused = counts.reserve(&plan(&quotas, "t"), &demand(40, 0), Mode::Enforce, &now).unwrap_err();
    assert_eq!((refused.scope.clone(), refused.limit, refused.size), (Scope::Tenant("t".into()), Limit::Tokens, 50));
    assert_eq!(refused.relief, Relief::After(Duration::from_secs(36)), "30 too many, at 50 a minute");
    assert_eq!(refused.to_string(), "tenant 't' may use 50 tokens per minute, and they are used up; try again in 36s");
    for scope in [Scope::All, Scope::Model("m".into()), Scope::Key("k1".into())] {
        assert!((level(&counts, &scope, Limit::Tokens, &now) - 40.0).abs() < 1e-6, "{scope}");
    }
    drop(first);
    assert!(level(&counts, &Scope::All, Limit::Tokens, &now).abs() < 1e-6, "what was dropped did not happen");
    assert!(counts.reserve(&plan(&quotas, "t"), &demand(40, 0), Mode::Enforce, &later(&now, 36)).is_ok());
}

#[test]
fn requests_at_once_are_counted_down_however_they_end() {
    let quota = Quota { concurrent_requests: Some(2), ..Quota::default() };
    let quotas = Quotas { all: Some(Arc::new(quota)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let ask = || counts.reserve(&plan(&quotas, "t"), &demand(1, 1), Mode::Enforce, &now);
    let (one, two) = (ask().unwrap(), ask().unwrap());
    let refused = ask().unwrap_err();
    assert_eq!(refused.relief, Relief::WhenOneEnds);
    assert_eq!(
        refused.to_string(),
        "all callers together may have 2 requests at once, and all are open; try again when one has ended"
    );
    one.hold.settle(&Spent::default(), &now);
    let three = ask().unwrap();
    drop((two, three));
    assert!((level(&counts, &Scope::All, Limit::Concurrent, &now)).abs() < 1e-6);
}

#[test]
fn a_budget_says_when_it_begins_anew_and_does() {
    let quota = Quota { budget_per_day: Money::of(1.0), ..Quota::default() };
    let quotas = Quotas { each_tenant: Some(Arc::new(quota)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let costs = |amount: f64| Demand { input: 1, spare: 0, output: 1, cost: Money::of(amount) };
    let granted = counts.reserve(&plan(&quotas, "t"), &costs(0.2), Mode::Enforce, &now).unwrap();
    granted.hold.settle(&Spent { requests: 1, input: 1, output: 1, cost: Money::of(0.9).unwrap() }, &now);
    let refused = counts.reserve(&plan(&quotas, "t"), &costs(0.2), Mode::Enforce, &now).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the budget of tenant 't' (1.00 per day) is used up; it begins anew at 2026-11-23T00:00:00Z, in 23h0m"
    );
    let free = Demand { input: 1, spare: 0, output: 1, cost: None };
    assert!(
        counts.reserve(&plan(&quotas, "t"), &free, Mode::Enforce, &now).is_ok(),
        "what costs nothing is not bound by it"
    );
    assert!(counts.reserve(&plan(&quotas, "t"), &costs(0.2), Mode::Enforce, &later(&now, 23 * 3_600)).is_ok());
}

#[test]
fn a_prompt_larger_than_its_limit_is_told_so_and_a_long_answer_is_not_held_against_it() {
    let quotas = Quotas { each_tenant: Some(tokens(100)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let refused = counts.reserve(&plan(&quotas, "t"), &demand(101, 1), Mode::Enforce, &now).unwrap_err();
    assert_eq!(refused.relief, Relief::Never { needs: 102 });
    let granted = counts.reserve(&plan(&quotas, "t"), &demand(10, 4_000), Mode::Enforce, &now).unwrap();
    assert_eq!(granted.standing.tokens.unwrap().remaining, 0, "it takes all there is");
    granted.hold.settle(&Spent { requests: 1, input: 10, output: 290, cost: Money(0) }, &now);
    let refused = counts.reserve(&plan(&quotas, "t"), &demand(1, 0), Mode::Enforce, &now).unwrap_err();
    assert_eq!(refused.relief, Relief::After(Duration::from_millis(120_600)), "what it had beyond is debt");
}

#[test]
fn what_is_only_counted_refuses_nobody_and_says_who_would_be() {
    let quota = Quota { requests_per_minute: Some(1), enforce: false, ..Quota::default() };
    let quotas = Quotas { all: Some(Arc::new(quota)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let ask = || counts.reserve(&plan(&quotas, "t"), &demand(1, 1), Mode::Enforce, &now).unwrap();
    let (one, two) = (ask(), ask());
    assert_eq!((one.would.len(), two.would.len()), (0, 1));
    assert_eq!((two.would[0].limit, one.standing), (Limit::Requests, Standing::default()));
    assert!((level(&counts, &Scope::All, Limit::Requests, &now) - 1.0).abs() < 1e-6, "as if it had been refused");
}

#[test]
fn the_tightest_room_of_each_kind_is_told() {
    let quota =
        |requests, tokens| Quota { requests_per_minute: Some(requests), tokens_per_minute: tokens, ..Quota::default() };
    let quotas = Quotas {
        all: Some(Arc::new(quota(1_000, None))),
        each_tenant: Some(Arc::new(quota(10, Some(600)))),
        ..Quotas::default()
    };
    let (counts, now) = (Counts::default(), moment());
    let granted = counts.reserve(&plan(&quotas, "t"), &demand(50, 50), Mode::Enforce, &now).unwrap();
    let room = |limit, remaining, seconds| Some(Room { limit, remaining, reset: Duration::from_secs(seconds) });
    assert_eq!((granted.standing.requests, granted.standing.tokens), (room(10, 9, 6), room(600, 500, 10)));
    assert_eq!(granted.standing.input_tokens, None);
}

#[test]
fn new_limits_hold_from_the_next_request_on_and_counts_stay() {
    let (counts, now) = (Counts::default(), moment());
    let before = Quotas { each_tenant: Some(tokens(100)), ..Quotas::default() };
    let granted = counts.reserve(&plan(&before, "t"), &demand(80, 0), Mode::Enforce, &now).unwrap();
    granted.hold.settle(&Spent { requests: 1, input: 80, output: 0, cost: Money(0) }, &now);
    let after = Quotas { each_tenant: Some(tokens(200)), ..Quotas::default() };
    let granted = counts.reserve(&plan(&after, "t"), &demand(20, 0), Mode::Enforce, &now).unwrap();
    assert_eq!(granted.standing.tokens.unwrap().remaining, 100);
}

#[test]
fn counts_outlive_the_process_but_for_who_was_open() {
    let quota = Quota {
        tokens_per_minute: Some(60),
        concurrent_requests: Some(1),
        budget_per_month: Money::of(10.0),
        ..Quota::default()
    };
    let quotas = Quotas { each_tenant: Some(Arc::new(quota)), ..Quotas::default() };
    let (counts, now) = (Counts::default(), moment());
    let costs = Demand { input: 30, spare: 0, output: 20, cost: Money::of(4.0) };
    let open = counts.reserve(&plan(&quotas, "t"), &costs, Mode::Enforce, &now).unwrap();
    let written = serde_json::to_string(&counts.saved(&now)).unwrap();
    drop(open);
    let then = later(&now, 30);
    let counts = Counts::restored(serde_json::from_str(&written).unwrap(), &then).unwrap();
    let granted = counts.reserve(&plan(&quotas, "t"), &Demand { input: 1, ..costs }, Mode::Enforce, &then).unwrap();
    assert_eq!(granted.standing.tokens.unwrap().remaining, 60 - 20 - 21, "half a minute has leaked");
    assert!((level(&counts, &Scope::Tenant("t".into()), Limit::Month, &then) - 8e9).abs() < 1.0);
    let other = written.replace("\"version\":1", "\"version\":2");
    assert!(Counts::restored(serde_json::from_str(&other).unwrap(), &then).is_err());
}

#[test]
fn idle_scopes_are_forgotten_and_their_number_is_bounded() {
    let quotas = Quotas { each_tenant: Some(tokens(60)), ..Quotas::default() };
    let (counts, now) = (Counts::at_most(100), moment());
    let ask = |tenant: usize, now: &Moment| {
        let granted = counts.reserve(&plan(&quotas, &format!("t{tenant}")), &demand(50, 0), Mode::Enforce, now);
        granted.map(|it| it.hold.settle(&Spent { requests: 1, input: 50, output: 0, cost: Money(0) }, now))
    };
    let let_in = (0..300).filter(|tenant| ask(*tenant, &now).is_ok()).count();
    assert_eq!((let_in, counts.len()), (101, 101), "a hundred, and one for all others together");
    let then = later(&now, 60);
    assert!(ask(1_000, &then).is_ok());
    assert!(counts.len() <= 2, "{}", counts.len());
}

#[test]
fn an_overflow_of_two_scopes_locks_no_request_out_of_itself() {
    let quotas = Quotas { each_tenant: Some(tokens(60)), each_key: Some(tokens(60)), ..Quotas::default() };
    let (counts, now) = (Counts::at_most(1), moment());
    let hold = counts.reserve(&plan(&quotas, "a"), &demand(5, 0), Mode::Enforce, &now);
    assert!(hold.is_ok() && counts.reserve(&plan(&quotas, "b"), &demand(5, 0), Mode::Enforce, &now).is_ok());
    assert_eq!(counts.len(), 2);
}
