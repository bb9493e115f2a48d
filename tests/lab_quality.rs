//! Whether the default policy is still worth being the default: on the beginnings of recorded traces it must beat what
//! knows nothing of prompts, and be no worse where there is nothing to know.
//!
//! Short runs with wide margins: a mistake in a price or a sign shows, a percent does not. The whole comparison, with
//! every workload and seed, is `tidegate lab`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and print the figures"
)]

use tidegate::lab::{
    Contest, Policy, Script, Standing, compete,
    workloads::{Order, Pods, Rate, Workload, promise, stage},
};

/// Every policy on one day of a workload, on as many pods as are told.
fn standings<const N: usize>(order: &Order, names: [&str; N]) -> [Standing; N] {
    let pods = Pods { count: order.pods, profiles: Vec::new(), kv: 1.0, speed: 1.0 };
    let setup = stage(&order.workload, &pods, order.minutes).unwrap();
    let scripts: Vec<Script> = vec![Workload::new(order).unwrap().script(1)];
    let policies = names.map(|name| Policy::find(name).unwrap());
    let slo = promise(&order.workload);
    let contest = Contest { setup: &setup, policies: &policies, scripts: &scripts, slo, threads: 2 };
    let standings = compete(&contest).unwrap();
    for standing in &standings {
        println!(
            "{:<12} {:<13} attained {:.3}, TTFT mean {:>6.0} ms, p90 {:>6.0} ms, hits {:.3}",
            order.workload,
            standing.policy,
            standing.mean(|it| it.attainment),
            standing.mean(|it| it.ttft_mean),
            standing.mean(|it| it.ttft_p90),
            standing.mean(|it| it.hit_ratio),
        );
    }
    standings.try_into().unwrap()
}

fn order(workload: &str, rate: Rate, minutes: f64, pods: usize) -> Order {
    // Always the beginnings that lie here, whether or not the whole traces are at hand.
    let trace = if workload == "w1" { "mooncake_conversation.jsonl" } else { "azure_conversation.csv" };
    let trace = Some(format!("{}/tests/fixtures/traces/{trace}", env!("CARGO_MANIFEST_DIR")).into());
    Order { workload: workload.to_owned(), rate, minutes, pods, trace }
}

fn attained(standing: &Standing) -> f64 {
    standing.mean(|it| it.attainment)
}

fn ttft(standing: &Standing) -> f64 {
    standing.mean(|it| it.ttft_mean)
}

#[test]
fn on_recorded_conversations_least_cost_beats_what_knows_no_prefixes() {
    let order = order("w1", Rate::Times(1.6), 2.0, 4);
    let names = ["least-cost", "least-request", "round-robin", "gie"];
    let [ours, least_request, round_robin, gie] = standings(&order, names);
    for other in [&least_request, &round_robin, &gie] {
        assert!(attained(&ours) > attained(other) + 0.02, "{}", other.policy);
        assert!(ttft(&ours) < 0.8 * ttft(other), "{}", other.policy);
    }
    assert!(ours.mean(|it| it.hit_ratio) > 1.5 * round_robin.mean(|it| it.hit_ratio));
}

#[test]
fn where_nothing_is_shared_least_cost_is_no_worse_than_least_request() {
    let order = order("w2", Rate::PerSecond(60.0), 0.5, 4);
    let [ours, least_request] = standings(&order, ["least-cost", "least-request"]);
    assert!(attained(&ours) >= attained(&least_request) - 0.01);
    assert!(ours.mean(|it| it.ttft_p90) <= 1.02 * least_request.mean(|it| it.ttft_p90));
}

#[test]
fn with_a_slow_pod_least_cost_keeps_its_promise_and_round_robin_does_not() {
    let order = order("w12", Rate::PerSecond(60.0), 2.0, 4);
    let [ours, round_robin] = standings(&order, ["least-cost", "round-robin"]);
    assert!(attained(&ours) > 0.97 && attained(&ours) > attained(&round_robin), "{}", attained(&ours));
    assert!(ours.mean(|it| it.ttft_p99) < round_robin.mean(|it| it.ttft_p99));
}

#[test]
fn adapters_are_kept_where_they_are() {
    let order = order("w9", Rate::PerSecond(40.0), 0.5, 10);
    let [ours, round_robin] = standings(&order, ["least-cost", "round-robin"]);
    assert!(attained(&ours) > attained(&round_robin), "{} {}", attained(&ours), attained(&round_robin));
    assert!(ttft(&ours) < 0.8 * ttft(&round_robin));
}
