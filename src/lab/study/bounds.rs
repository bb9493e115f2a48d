//! What no policy can beat, whatever it knows: two fleets that do not exist.
//!
//! *Alone*: every request has a pod of the fastest kind to itself, and everything that was ever asked or answered is in
//! its cache. *Pooled*: all pods are one, so many times as fast and as large, so that no request is ever at the wrong
//! pod. Neither is exact to the last microsecond (a few of the measured step times fall with the batch, and one long
//! line can be worse than eight), but both are far below what a choice of pods can win.

use std::collections::HashSet;

use crate::{
    config,
    lab::{
        Ask, Policy, Run, Script, Setup, Stats, Told,
        clockwork::{Clockwork, Event},
        league::{Contest, Standing, Watch, spread},
        text, world,
    },
    sim::{EngineConfig, step::StepLoad},
};

/// The names of the bounds, as tables show them.
pub const BOUNDS: [&str; 2] = ["bound-alone", "bound-pooled"];

/// Where a line between fast and slow pods is drawn: a prompt of this many tokens, as chat has them.
const TYPICAL_PROMPT: u32 = 1_024;

/// Both bounds of a contest's traffic.
///
/// # Errors
/// If the pool cannot be configured.
pub fn bounds(contest: &Contest<'_>, watch: &dyn Watch) -> Result<Vec<Standing>, config::Report> {
    let seeds = contest.scripts.len();
    let pooled = pooled(contest.setup);
    let play = |job: usize| -> Option<Result<Stats, config::Report>> {
        let script = contest.scripts.get(job % seeds)?;
        let run = if job < seeds {
            Ok(alone(contest.setup, script))
        } else {
            let anybody = Policy::find("round-robin")?;
            world::run(&pooled, script, &anybody, 0)
        };
        let nobody_chose = |run: Run| Run { deciding: <_>::default(), ..run };
        Some(run.map(|run| Stats::of(&nobody_chose(run), 1, &contest.slo)))
    };
    let mut played = spread(BOUNDS.len() * seeds, contest.threads, watch, play).into_iter().flatten();
    let standing = |policy: &&'static str| {
        let runs: Result<_, _> = played.by_ref().take(seeds).collect();
        Ok(Standing { policy, runs: runs? })
    };
    BOUNDS.iter().map(standing).collect()
}

/// How much of what lies between round robin and a bound a policy has won: 0 is round robin, 1 is the bound. `None`
/// where round robin leaves nothing to win or was never answered.
pub fn gap_closed(round_robin: f64, policy: f64, bound: f64) -> Option<f64> {
    let gap = round_robin - bound;
    // Below a thousandth of the time itself there is no gap, only rounding.
    (gap.is_finite() && gap > round_robin.abs() * 1e-3).then(|| (round_robin - policy) / gap)
}

/// The mean TTFT that the nearer of the two bounds leaves, in milliseconds: the other is below it and says less.
pub fn nearest(bounds: &[Standing]) -> f64 {
    bounds.iter().map(|bound| bound.mean(|stats| stats.ttft_mean)).fold(0.0, f64::max)
}

/// All pods as one.
fn pooled(setup: &Setup) -> Setup {
    let Some(fastest) = fastest(&setup.pods) else { return setup.clone() };
    let blocks = setup.pods.iter().map(|pod| u64::from(pod.num_gpu_blocks)).sum::<u64>();
    let pod = EngineConfig {
        step: fastest.step.times(setup.pods.len() as f64),
        num_gpu_blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
        max_num_seqs: setup.pods.iter().map(|pod| pod.max_num_seqs).sum(),
        ..fastest.clone()
    };
    Setup { pods: vec![pod], faults: Vec::new(), gateways: 1, ..setup.clone() }
}

/// Every request alone, on the fastest kind of pod, with an infinite cache.
fn alone(setup: &Setup, script: &Script) -> Run {
    let Some(pod) = fastest(&setup.pods) else { return Run::default() };
    let mut told: Vec<Told> = script.asks.iter().map(Told::of).collect();
    let mut clock = Clockwork::default();
    let mut known = HashSet::new();
    let mut ended_ms = 0.0_f64;
    for nth in script.starters() {
        if let Some(ask) = script.asks.get(nth as usize) {
            clock.put(ask.at_ms, Event::Ask(nth));
        }
    }
    while let Some((now_ms, Event::Ask(nth))) = clock.next() {
        let (Some(ask), Some(told)) = (script.asks.get(nth as usize), told.get_mut(nth as usize)) else { continue };
        told.at_ms = now_ms;
        answer(pod, ask, cached(pod, ask, &mut known), told);
        ended_ms = ended_ms.max(told.last_ms);
        let next = ask.next.map(|next| (next.ask, told.last_ms + next.pause_ms));
        if let Some((nth, at_ms)) = next.filter(|(_, at_ms)| *at_ms < script.until_ms) {
            clock.put(at_ms, Event::Ask(nth));
        }
    }
    Run { told, ended_ms, ..Run::default() }
}

/// Tokens that were ever seen before, in whole blocks and never the last one; from now on all of this is known too.
fn cached(pod: &EngineConfig, ask: &Ask, known: &mut HashSet<u64>) -> u32 {
    let hashes = text::engine_hashes(ask, ask.adapter, pod.block_size);
    let most = ask.prompt_tokens().saturating_sub(1) / pod.block_size;
    let found = hashes.iter().take(most as usize).take_while(|hash| known.contains(hash)).count();
    known.extend(hashes.iter());
    u32::try_from(found).unwrap_or(0) * pod.block_size
}

/// The steps of a lone request: its prompt in chunks, then a token each.
fn answer(pod: &EngineConfig, ask: &Ask, cached: u32, told: &mut Told) {
    let prompt = ask.prompt_tokens().max(1);
    let tokens = ask.answer.tokens.max(1);
    let (mut now_ms, mut computed) = (told.at_ms, cached);
    while computed < prompt {
        let chunk = (prompt - computed).min(pod.max_num_batched_tokens.max(1));
        let mut load = StepLoad::default();
        load.add_chunk(chunk, computed);
        now_ms += pod.step.millis(&load);
        computed += chunk;
    }
    let decode_ms = |context: u32| {
        let mut load = StepLoad::default();
        load.add_decode(context);
        pod.step.millis(&load)
    };
    told.first_ms = now_ms;
    told.cached_tokens = cached;
    told.tokens = tokens;
    told.pod = 0;
    told.last_ms = now_ms;
    if let Some(gaps) = tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
        // A step's time grows evenly with the context, so the mean step is the mean of the first and the last.
        let (first, last) = (decode_ms(prompt), decode_ms(prompt + gaps - 1));
        told.longest_gap_ms = last;
        told.last_ms += f64::from(gaps) * f64::midpoint(first, last);
    }
}

fn fastest(pods: &[EngineConfig]) -> Option<&EngineConfig> {
    let mut chunk = StepLoad::default();
    chunk.add_chunk(TYPICAL_PROMPT, 0);
    pods.iter().min_by(|one, other| one.step.millis(&chunk).total_cmp(&other.step.millis(&chunk)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lab::{Client, Piece, Slo, compete},
        sim::{profiles, step::StepModel},
    };

    fn pod(name: &str) -> EngineConfig {
        EngineConfig::new(StepModel::new(profiles::find(name).unwrap(), 1.0))
    }

    fn ask(at_ms: f64, content: u64, tokens: u32, output: u32) -> Ask {
        let answer = Piece { content: !content, tokens: output };
        Ask {
            at_ms,
            prompt: [Piece { content, tokens }].into(),
            answer,
            session: None,
            adapter: None,
            next: None,
            client: Client::default(),
        }
    }

    #[test]
    fn the_gap_by_hand() {
        assert_eq!(gap_closed(3.0, 1.0, 0.5), Some(0.8));
        assert_eq!(gap_closed(3.0, 3.0, 0.5), Some(0.0));
        assert!(gap_closed(3.0, 3.5, 0.5).unwrap() < 0.0, "worse than round robin");
        assert_eq!(gap_closed(0.5, 0.4, 0.5), None, "nothing to win");
        assert_eq!(gap_closed(f64::INFINITY, 0.4, 0.5), None);
    }

    #[test]
    fn alone_a_request_takes_what_a_lone_one_takes_in_the_world_and_finds_what_was_asked_before() {
        let setup = Setup::new(vec![pod("h100-7b")]);
        let asks = vec![ask(0.0, 1, 10_000, 5), ask(60_000.0, 1, 10_000, 5)];
        let script = Script { asks, until_ms: f64::INFINITY };
        let alone = alone(&setup, &script);
        let real = world::run(&setup, &script, &Policy::find("round-robin").unwrap(), 1).unwrap();
        assert_eq!(alone.told[1].cached_tokens, 9_984);
        for (bound, real) in alone.told.iter().zip(&real.told) {
            assert!((bound.first_ms - real.first_ms).abs() < 1e-6, "{bound:?} {real:?}");
            assert!((bound.last_ms - real.last_ms).abs() < 1e-6);
            assert!((bound.longest_gap_ms - real.longest_gap_ms).abs() < 1e-6);
        }
    }

    #[test]
    fn the_pool_of_all_has_their_speed_their_cache_and_their_seats() {
        let setup = Setup::new(vec![pod("a100-8b"), pod("h100-8b"), pod("a100-8b")]);
        let all = pooled(&setup);
        let [one] = all.pods.as_slice() else { panic!("{all:?}") };
        assert_eq!(one.num_gpu_blocks, 3 * (422_259 / 16));
        assert_eq!(one.max_num_seqs, 3 * 256);
        assert_eq!(one.step, pod("h100-8b").step.times(3.0));
    }

    #[test]
    fn no_policy_beats_a_bound() {
        let setup = Setup::new(vec![pod("h100-7b"); 4]);
        let asks =
            (0..300u32).map(|nth| ask(f64::from(nth) * 20.0, u64::from(nth % 40), 500 + nth % 3_000, 1 + nth % 60));
        let scripts = [Script { asks: asks.collect(), until_ms: f64::INFINITY }];
        let policies = Policy::all();
        let contest = Contest { setup: &setup, policies: &policies, scripts: &scripts, slo: Slo::HEADLINE, threads: 2 };
        let bounds = bounds(&contest, &()).unwrap();
        assert_eq!(bounds.len(), 2);
        for standing in compete(&contest).unwrap() {
            for bound in &bounds {
                for of in [|it: &Stats| it.ttft_mean, |it: &Stats| it.e2e_mean] {
                    let (bound_ms, ms) = (bound.mean(of), standing.mean(of));
                    assert!(bound_ms <= ms, "{}: {bound_ms} against {}: {ms}", bound.policy, standing.policy);
                }
            }
        }
    }
}
