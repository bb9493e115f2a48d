//! Runs small enough to be worked out by hand.

use super::*;
use crate::{
    lab::{
        Fault, Mishap, Piece, RIVALS,
        script::Next,
        tally::{Slo, Stats},
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
    Ask { at_ms, prompt: [Piece { content, tokens }].into(), answer, adapter: None, session: Some(content), next: None }
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
