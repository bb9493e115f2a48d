//! Runs small enough to be worked out by hand.

use super::*;
use crate::{
    lab::{
        Client, Fault, Mishap, Piece, RIVALS, Shift,
        script::Next,
        tally::{Slo, Stats, Told},
    },
    sim::{
        EngineConfig, profiles,
        step::{StepLoad, StepModel},
    },
};

fn h100() -> EngineConfig {
    EngineConfig::new(StepModel::new(profiles::find("h100-7b").unwrap(), 1.0))
}

fn ask(at_ms: f64, content: u64, tokens: u32, output: u32) -> Ask {
    let answer = Piece { content: !content, tokens: output };
    Ask {
        at_ms,
        prompt: [Piece { content, tokens }].into(),
        answer,
        adapter: None,
        session: Some(content),
        next: None,
        client: Client::default(),
    }
}

fn script(asks: Vec<Ask>) -> Script {
    Script { asks, until_ms: f64::INFINITY }
}

fn policy(name: &str) -> Policy {
    Policy::find(name).unwrap()
}

/// Three requests a 100 ms on shared and own prompts, answers of all lengths.
fn traffic(requests: u32) -> Script {
    let one = |nth: u32| {
        let shared = Piece { content: u64::from(nth % 7), tokens: 1_000 };
        let mut ask = ask(f64::from(nth) * 33.0, 1_000 + u64::from(nth), 200 + nth % 300, 1 + nth % 60);
        ask.prompt = [&[shared], &*ask.prompt].concat().into();
        ask
    };
    script((0..requests).map(one).collect())
}

#[test]
fn a_lone_request_takes_the_time_that_the_engine_says() {
    let model = StepModel::new(profiles::find("h100-7b").unwrap(), 1.0);
    let mut prefill = StepLoad::default();
    prefill.add_chunk(1_000, 0);
    let mut decode = StepLoad::default();
    decode.add_decode(1_000);
    let one = script(vec![ask(500.0, 1, 1_000, 2)]);
    let run = run(&Setup::new(vec![h100(); 3]), &one, &policy("least-cost"), 1).unwrap();
    let told = run.told[0];
    assert!((told.ttft_ms() - model.millis(&prefill)).abs() < 1e-6, "{told:?}");
    assert!((told.tpot_ms().unwrap() - model.millis(&decode)).abs() < 1e-6, "{told:?}");
    assert_eq!((told.tokens, told.cached_tokens), (2, 0));
}

#[test]
fn a_prompt_that_was_there_is_found_again_by_gateway_and_engine() {
    let asks = (0..6u32).map(|nth| ask(f64::from(nth) * 2_000.0, u64::from(nth % 2), 4_000, 3)).collect();
    let run = run(&Setup::new(vec![h100(); 4]), &script(asks), &policy("least-cost"), 3).unwrap();
    for (nth, told) in run.told.iter().enumerate().skip(2) {
        assert_eq!(told.pod, run.told[nth % 2].pod);
        assert_eq!(told.cached_tokens, 3_984, "all whole blocks before the last token");
    }
}

#[test]
fn who_follows_an_answer_waits_for_it_and_nobody_asks_after_the_end() {
    let mut first = ask(0.0, 1, 1_000, 100);
    first.next = Some(Next { ask: 1, pause_ms: 250.0 });
    let mut second = ask(f64::INFINITY, 1, 1_000, 100);
    second.next = Some(Next { ask: 2, pause_ms: 5_000.0 });
    let third = ask(f64::INFINITY, 1, 1_000, 1);
    let script = Script { asks: vec![first, second, third], until_ms: 5_000.0 };
    let run = run(&Setup::new(vec![h100()]), &script, &policy("round-robin"), 1).unwrap();
    assert!((run.told[1].at_ms - run.told[0].last_ms - 250.0).abs() < 1e-9);
    assert!(run.told[2].at_ms.is_infinite() && run.told[1].tokens == 100);
    assert_eq!(Stats::of(&run, 1, &Slo::HEADLINE).offered, 2);
}

#[test]
fn the_same_seed_gives_the_same_run_under_every_policy_and_all_are_answered() {
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.scrape.loss = 0.1;
    setup.gateways = 2;
    let traffic = traffic(200);
    for policy in Policy::all() {
        let (one, other) = (run(&setup, &traffic, &policy, 7).unwrap(), run(&setup, &traffic, &policy, 7).unwrap());
        assert_eq!(one, other, "{}", policy.name());
        assert!(one.told.iter().zip(&traffic.asks).all(|(told, ask)| told.tokens == ask.answer.tokens));
    }
    assert_eq!(RIVALS.len(), 8);
}

#[test]
fn a_request_that_fits_no_pod_is_offered_and_missed() {
    let mut small = h100();
    small.num_gpu_blocks = 100;
    let run = run(&Setup::new(vec![small]), &script(vec![ask(0.0, 1, 4_000, 5)]), &policy("random"), 1).unwrap();
    assert_eq!(run.told[0].tokens, 0);
    assert!(Stats::of(&run, 1, &Slo::HEADLINE).attainment.abs() < 1e-9);
}

#[test]
fn least_cost_learns_that_a_pod_has_become_slow_and_round_robin_does_not() {
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.faults = vec![Fault { at_ms: 0.0, pod: 0, what: Mishap::Slow(8.0) }];
    let share = |name: &str| {
        let run = run(&setup, &traffic(600), &policy(name), 1).unwrap();
        run.told.iter().skip(200).filter(|told| told.pod == 0).count() as f64 / 400.0
    };
    assert!((share("round-robin") - 0.25).abs() < 0.01);
    assert!(share("least-cost") < 0.1, "{}", share("least-cost"));
}

fn fault(at_ms: f64, pod: usize, what: Mishap) -> Fault {
    Fault { at_ms, pod, what }
}

#[test]
fn a_pod_that_dies_breaks_its_answers_off_refuses_and_comes_back_cold() {
    let mut setup = Setup::new(vec![h100()]);
    setup.faults = vec![fault(500.0, 0, Mishap::Dies), fault(10_000.0, 0, Mishap::Returns)];
    let asks = vec![ask(0.0, 1, 1_000, 500), ask(600.0, 2, 1_000, 5), ask(20_000.0, 1, 1_000, 5)];
    let run = run(&setup, &script(asks), &policy("least-cost"), 1).unwrap();
    let [streamed, refused, later] = [run.told[0], run.told[1], run.told[2]];
    assert!(streamed.broken && streamed.tokens > 10 && streamed.tokens < 500, "{streamed:?}");
    assert!(!refused.broken && refused.tokens == 0, "{refused:?}");
    assert_eq!((later.tokens, later.cached_tokens), (5, 0), "{later:?}");
    assert!((Stats::of(&run, 1, &Slo::HEADLINE).attainment - 1.0 / 3.0).abs() < 1e-9);
}

#[test]
fn while_a_pod_is_dead_every_request_is_answered_elsewhere_under_every_policy() {
    let mut setup = Setup::new(vec![h100(); 3]);
    setup.faults = vec![fault(3_000.0, 0, Mishap::Dies), fault(9_000.0, 0, Mishap::Returns)];
    let traffic = traffic(400);
    for policy in Policy::all() {
        let run = run(&setup, &traffic, &policy, 1).unwrap();
        let was_there = |told: &Told| told.pod == 0 && told.at_ms < 3_000.0;
        for (ask, told) in traffic.asks.iter().zip(&run.told) {
            let whole = told.tokens == ask.answer.tokens;
            assert!(whole != told.broken, "{}: {told:?}", policy.name());
            assert!(told.pod != 0 || !(3_000.0..9_000.0).contains(&told.at_ms), "{}: {told:?}", policy.name());
        }
        let mut broken = run.told.iter().filter(|told| told.broken);
        assert!(broken.all(was_there), "{}", policy.name());
    }
}

#[test]
fn requests_without_an_answer_are_tried_elsewhere_only_where_the_setup_says_so() {
    let mut setup = Setup::new(vec![h100(); 2]);
    setup.faults = vec![fault(100.0, 0, Mishap::Dies)];
    let asks: Vec<Ask> = (0..8).map(|nth| ask(0.0, nth, 8_000, 3)).collect();
    let broken = |setup: &Setup| {
        let run = run(setup, &script(asks.clone()), &policy("round-robin"), 1).unwrap();
        run.told.iter().filter(|told| told.broken).count()
    };
    assert_eq!(broken(&setup), 4);
    setup.retries_died = true;
    assert_eq!(broken(&setup), 0);
}

/// The share of requests that the first of four pods gets from the hundredth on.
fn first_pods_share(name: &str, trouble: Fault) -> f64 {
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.faults = vec![trouble];
    let run = run(&setup, &traffic(400), &policy(name), 1).unwrap();
    run.told.iter().skip(100).filter(|told| told.pod == 0).count() as f64 / 300.0
}

#[test]
fn a_page_that_stands_still_misleads_who_steers_by_pages_alone() {
    // It goes on saying that the pod is idle, as it was at the start.
    let share = |name| first_pods_share(name, fault(0.0, 0, Mishap::PagesFreeze));
    assert!(share("scraped-only") > 0.4, "{}", share("scraped-only"));
    assert!((0.1..0.4).contains(&share("least-cost")), "{}", share("least-cost"));
}

#[test]
fn a_pod_whose_pages_no_longer_come_still_gets_its_share_by_our_own_account() {
    let share = first_pods_share("least-cost", fault(1_000.0, 0, Mishap::PagesHang));
    assert!((0.1..0.4).contains(&share), "{share}");
}

#[test]
fn a_pod_that_joins_gets_nothing_before_and_little_at_first() {
    let mut setup = Setup::new(vec![h100(); 3]);
    // Later than a pool is young: those that come then are warmed up for half a minute.
    setup.faults = vec![fault(15_000.0, 2, Mishap::Joins)];
    let share = |run: &Run, from: f64, to: f64| {
        let within = || run.told.iter().filter(|told| (from..to).contains(&told.at_ms));
        within().filter(|told| told.pod == 2).count() as f64 / within().count() as f64
    };
    for policy in Policy::all() {
        let run = run(&setup, &traffic(500), &policy, 1).unwrap();
        assert!(share(&run, 0.0, 15_000.0) < 1e-9, "{}", policy.name());
        assert!(run.told.iter().all(|told| told.tokens > 0), "{}", policy.name());
    }
    let run = run(&setup, &traffic(2_000), &policy("least-request"), 1).unwrap();
    let (early, late) = (share(&run, 15_000.0, 20_000.0), share(&run, 50_000.0, 66_000.0));
    assert!(early < 0.2 && (0.25..0.45).contains(&late), "{early} {late}");
}

#[test]
fn weights_split_the_traffic_and_their_change_is_in_force_at_once() {
    let mut setup = Setup::new(vec![h100(); 2]);
    setup.adapters = 1;
    setup.shift = Some(Shift { at_ms: 30_000, before: 10, after: 50 });
    let mut traffic = traffic(2_000);
    traffic.asks.iter_mut().for_each(|ask| ask.session = None);
    let run = run(&setup, &traffic, &policy("least-cost"), 1).unwrap();
    let [before, since] = Stats::of(&run, 2, &Slo::HEADLINE).second_arm;
    assert!((0.07..0.13).contains(&before) && (0.45..0.55).contains(&since), "{before} {since}");
    assert!(run.told.iter().all(|told| told.tokens > 0));
}

/// `adapter` is asked the same 4,000 tokens.
fn adapted(at_ms: f64, adapter: u32) -> Ask {
    Ask { adapter: Some(adapter), ..ask(at_ms, 1, 4_000, 3) }
}

fn with_adapters(pods: usize) -> Setup {
    let mut setup = Setup::new(vec![EngineConfig { max_loras: 1, ..h100() }; pods]);
    setup.adapters = 2;
    setup
}

#[test]
fn a_request_waits_for_its_adapter_and_finds_only_what_that_adapter_computed() {
    let mut prefill = StepLoad::default();
    prefill.add_chunk(4_000, 0);
    let alone = StepModel::new(profiles::find("h100-7b").unwrap(), 1.0).millis(&prefill);
    let asks = vec![adapted(0.0, 0), adapted(5_000.0, 1), adapted(10_000.0, 1)];
    let run = run(&with_adapters(1), &script(asks), &policy("least-cost"), 1).unwrap();
    assert!((run.told[0].ttft_ms() - alone - 200.0).abs() < 1e-6, "{:?}", run.told[0]);
    assert!((run.told[1].ttft_ms() - alone - 200.0).abs() < 1e-6, "{:?}", run.told[1]);
    assert_eq!([0, 1, 2].map(|nth| run.told[nth].cached_tokens), [0, 0, 3_984]);
    assert!(run.told[2].ttft_ms() < 20.0, "{:?}", run.told[2]);
}

#[test]
fn least_cost_sends_a_request_where_its_adapter_is_in_use() {
    // Two long answers, one adapter each; what follows has another prompt, so that only the adapter tells pods apart.
    let mut asks: Vec<Ask> = (0..2).map(|nth| Ask { adapter: Some(nth), ..ask(0.0, nth.into(), 500, 800) }).collect();
    let late =
        |nth: u32| Ask { adapter: Some(nth % 2), ..ask(2_000.0 + f64::from(nth) * 300.0, 100 + u64::from(nth), 60, 2) };
    asks.extend((0..10).map(late));
    let run = run(&with_adapters(2), &script(asks), &policy("least-cost"), 1).unwrap();
    assert_ne!(run.told[0].pod, run.told[1].pod);
    for (nth, told) in run.told.iter().enumerate().skip(2) {
        assert_eq!(told.pod, run.told[nth % 2].pod, "{nth}");
    }
}

/// Requests of a fixed size, evenly spread, so that every second has as many.
fn steady(a_second: u32, seconds: u32, tokens: u32) -> Script {
    let gap_ms = 1_000.0 / f64::from(a_second);
    let one = |nth: u32| ask(f64::from(nth) * gap_ms, 1_000 + u64::from(nth), tokens, 60 + nth % 80);
    script((0..a_second * seconds).map(one).collect())
}

#[test]
fn a_cold_pod_gets_no_burst_however_full_the_others_are() {
    // Three pods that are full at 60 requests a second, and a fourth that joins them.
    const A_SECOND: u32 = 80;
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.faults = vec![fault(15_000.0, 3, Mishap::Joins)];
    let traffic = steady(A_SECOND, 50, 1_500);
    for policy in crate::lab::rivals::OURS.map(policy) {
        let run = run(&setup, &traffic, &policy, 1).unwrap();
        let share_in = |second: u32| {
            let second = f64::from(second) * 1e3..f64::from(second + 1) * 1e3;
            let there = run.told.iter().filter(|told| second.contains(&told.at_ms) && told.pod == 3).count();
            there as f64 / f64::from(A_SECOND) * 4.0
        };
        let shares: Vec<f64> = (15..49).map(share_in).collect();
        assert!(shares.iter().all(|share| *share <= 1.5), "{}: {shares:?}", policy.name());
        assert!(shares[20..].iter().all(|share| *share > 0.2), "{}: {shares:?}", policy.name());
    }
}

/// What the first of four pods gets from two seconds after `what` befell it, of all that pods were sent; and the share
/// of requests that came to nothing then.
fn share_of_the_bad_one(policy: &Policy, what: Mishap) -> (f64, f64) {
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.faults = vec![fault(5_000.0, 0, what)];
    let run = run(&setup, &steady(60, 20, 500), policy, 1).unwrap();
    let late: Vec<&Told> = run.told.iter().filter(|told| told.at_ms >= 7_000.0).collect();
    let turned_away: u32 = late.iter().map(|told| told.turned_away).sum();
    let lost = late.iter().filter(|told| told.tokens == 0).count();
    let sent = late.len() + turned_away as usize - lost;
    (f64::from(turned_away) / sent as f64, lost as f64 / late.len() as f64)
}

#[test]
fn a_pod_that_refuses_or_fails_at_once_does_not_attract_what_others_would_serve() {
    for policy in crate::lab::rivals::OURS.map(policy) {
        let (share, lost) = share_of_the_bad_one(&policy, Mishap::SaysNo);
        assert!(share <= 0.02 && lost == 0.0, "{}: {share} {lost}", policy.name());
        let (share, _) = share_of_the_bad_one(&policy, Mishap::Fails);
        assert!(share <= 0.02, "{}: {share}", policy.name());
    }
}

#[test]
fn where_every_pod_says_no_none_is_out_and_the_least_bad_is_asked() {
    let mut setup = Setup::new(vec![h100(); 4]);
    setup.faults = (0..4).map(|pod| fault(5_000.0, pod, Mishap::SaysNo)).collect();
    let traffic = steady(60, 10, 500);
    for policy in crate::lab::rivals::OURS.map(policy) {
        let run = run(&setup, &traffic, &policy, 1).unwrap();
        let late = run.told.iter().filter(|told| told.at_ms >= 6_000.0);
        // As many attempts as are allowed: each goes to another pod, and none of them is left out.
        assert!(late.into_iter().all(|told| told.turned_away == 3), "{}", policy.name());
    }
}
