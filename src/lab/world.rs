//! One run: pods, gateways and traffic on the virtual clock, until the last answer.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    clockwork::{Clockwork, Event, Sense},
    desk::{Desk, Marks, Sent, page},
    rivals::{Policy, Truth},
    script::{Ask, Script},
    setup::Setup,
    tally::{Told, WallTime},
    text,
};
use crate::{
    config,
    fleet::Reading,
    sim::{
        engine::Engine,
        terms::{PromptBlocks, SimRequest},
    },
};

/// What a run told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Every request, by its place in the script.
    pub told: Vec<Told>,
    /// Requests that engines threw out of their batch and computed again.
    pub preemptions: u64,
    /// When the last answer was complete.
    pub ended_ms: f64,
    /// What all decisions took on this machine.
    pub deciding: WallTime,
}

/// Plays `script` on `setup` under `policy`. The same seed gives the same run.
///
/// # Errors
/// If the pool cannot be configured.
pub fn run(setup: &Setup, script: &Script, policy: &Policy, seed: u64) -> Result<Run, config::Report> {
    let mut world = World::new(setup, script, policy, seed)?;
    while world.left > 0 {
        let Some((now_ms, event)) = world.clock.next() else { break };
        world.happen(now_ms, event);
    }
    Ok(world.sum_up())
}

struct World<'a> {
    setup: &'a Setup,
    asks: &'a [Ask],
    clock: Clockwork,
    engines: Vec<Engine>,
    desks: Vec<Desk>,
    /// The pages under way, by gateway and pod.
    pages: Vec<Vec<Option<(Marks, Reading)>>>,
    /// Requests that begin something, those that are still to come at the end.
    starters: Vec<u32>,
    sent: Vec<Option<(usize, Sent)>>,
    told: Vec<Told>,
    left: usize,
    until_ms: f64,
    ended_ms: f64,
    rng: StdRng,
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup, script: &'a Script, policy: &Policy, seed: u64) -> Result<Self, config::Report> {
        let mut rng = StdRng::seed_from_u64(seed);
        let gateways = 0..setup.gateways.max(1);
        let desks: Result<Vec<_>, _> = gateways.map(|_| Desk::new(setup, policy, rng.random())).collect();
        let desks = desks?;
        let asks = script.asks.as_slice();
        let mut starters = script.starters();
        starters.reverse();
        let pods = setup.pods.len();
        let told = asks.iter().map(Told::of).collect();
        let mut world = Self {
            setup,
            asks,
            clock: Clockwork::default(),
            engines: setup.pods.iter().cloned().map(Engine::new).collect(),
            pages: vec![vec![None; pods]; desks.len()],
            desks,
            starters,
            sent: asks.iter().map(|_| None).collect(),
            told,
            left: asks.len(),
            until_ms: script.until_ms,
            ended_ms: 0.0,
            rng,
        };
        world.wind_up();
        Ok(world)
    }

    fn wind_up(&mut self) {
        for desk in 0..self.desks.len() {
            for pod in 0..self.engines.len() {
                let turn = self.rng.random::<f64>() * self.setup.scrape.interval_ms;
                self.clock.put(turn, Event::Scrape(Sense { desk, pod }));
            }
        }
        for (nth, fault) in self.setup.faults.iter().enumerate() {
            self.clock.put(fault.at_ms, Event::Fault(nth));
        }
        self.next_starter();
    }

    fn next_starter(&mut self) {
        if let Some(starter) = self.starters.pop()
            && let Some(ask) = self.asks.get(starter as usize)
        {
            self.clock.put(ask.at_ms, Event::Ask(starter));
        }
    }

    fn happen(&mut self, now_ms: f64, event: Event) {
        match event {
            Event::Ask(nth) => self.ask(nth, now_ms),
            Event::Step(pod) => self.step(pod, now_ms),
            Event::Scrape(sense) => self.scrape(sense, now_ms),
            Event::Render(sense) => self.render(sense, now_ms),
            Event::Page(sense) => self.page(sense, now_ms),
            Event::Fault(nth) => {
                let fault = self.setup.faults.get(nth);
                if let Some((fault, engine)) = fault.and_then(|it| Some((it, self.engines.get_mut(it.pod)?))) {
                    engine.slow_down(fault.slow);
                }
            }
        }
    }

    fn ask(&mut self, nth: u32, now_ms: f64) {
        let Some(ask) = self.asks.get(nth as usize) else { return };
        if ask.at_ms.is_finite() {
            self.next_starter();
        }
        self.tell(nth, |told| told.at_ms = now_ms);
        let desk = if self.desks.len() > 1 { self.rng.random_range(0..self.desks.len()) } else { 0 };
        let engines = &self.engines;
        let truth = |pod: usize| engines.get(pod).map_or_else(Truth::default, |engine| truth(engine, ask));
        let Some(Ok(sent)) = self.desks.get_mut(desk).map(|desk| desk.decide(ask, now_ms, &truth)) else {
            return self.finish(nth, now_ms);
        };
        let pod = sent.pod;
        let taken = self.engines.get_mut(pod).is_some_and(|engine| {
            let request = SimRequest {
                id: u64::from(nth),
                prompt: prompt(engine, ask),
                output_tokens: ask.answer.tokens,
                adapter: None,
            };
            engine.add(request).is_ok()
        });
        if !taken {
            return self.finish(nth, now_ms);
        }
        self.tell(nth, |told| told.pod = pod);
        if let Some(place) = self.sent.get_mut(nth as usize) {
            *place = Some((desk, sent));
        }
        self.begin(pod, now_ms);
    }

    fn begin(&mut self, pod: usize, now_ms: f64) {
        let ends = self.engines.get_mut(pod).and_then(|engine| engine.begin_step(now_ms));
        if let Some(ends_ms) = ends {
            self.clock.put(ends_ms, Event::Step(pod));
        }
    }

    fn step(&mut self, pod: usize, now_ms: f64) {
        let Some(engine) = self.engines.get_mut(pod) else { return };
        let mut over = Vec::new();
        for token in &engine.end_step().emitted {
            let Ok(nth) = usize::try_from(token.id) else { continue };
            let (Some(told), Some(place)) = (self.told.get_mut(nth), self.sent.get_mut(nth)) else { continue };
            told.token(now_ms, token.cached);
            let Some((desk, sent)) = place.as_mut().and_then(|(at, sent)| Some((self.desks.get(*at)?, sent))) else {
                continue;
            };
            desk.token(sent, now_ms);
            if token.last {
                over.push(nth);
            }
        }
        for nth in over {
            let prompt_tokens = self.told.get(nth).map_or(0, |told| told.prompt_tokens);
            if let Some((at, sent)) = self.sent.get_mut(nth).and_then(Option::take)
                && let Some(desk) = self.desks.get(at)
            {
                desk.complete(&sent, prompt_tokens, now_ms);
            }
            self.finish(u32::try_from(nth).unwrap_or(u32::MAX), now_ms);
        }
        self.begin(pod, now_ms);
    }

    /// A request is over, however it ended; its client goes on, unless the time is over.
    fn finish(&mut self, nth: u32, now_ms: f64) {
        self.left = self.left.saturating_sub(1);
        self.ended_ms = now_ms;
        let mut next = self.asks.get(nth as usize).and_then(|ask| ask.next);
        if let Some(next) = next.filter(|next| now_ms + next.pause_ms < self.until_ms) {
            return self.clock.put(now_ms + next.pause_ms, Event::Ask(next.ask));
        }
        while let Some(never) = next {
            self.left = self.left.saturating_sub(1);
            next = self.asks.get(never.ask as usize).and_then(|ask| ask.next);
        }
    }

    fn scrape(&mut self, sense: Sense, now_ms: f64) {
        let scrape = self.setup.scrape;
        // As the scrape's rhythm: a tenth shorter or longer, so that turns do not fall together.
        let period = scrape.interval_ms * self.rng.random_range(0.9..=1.1);
        self.clock.put(now_ms + period.max(scrape.delay_ms), Event::Scrape(sense));
        if self.rng.random::<f64>() < scrape.loss {
            return;
        }
        let marks = self.desks.get(sense.desk).and_then(|desk| desk.marks(sense.pod, now_ms));
        if let (Some(marks), Some(page)) = (marks, self.page_of(sense)) {
            *page = Some((marks, Reading::default()));
            self.clock.put(now_ms + scrape.delay_ms / 2.0, Event::Render(sense));
        }
    }

    fn render(&mut self, sense: Sense, now_ms: f64) {
        let Some(reading) = self.engines.get(sense.pod).map(page) else { return };
        if let Some(Some(under_way)) = self.page_of(sense) {
            under_way.1 = reading;
            self.clock.put(now_ms + self.setup.scrape.delay_ms / 2.0, Event::Page(sense));
        }
    }

    fn page(&mut self, sense: Sense, now_ms: f64) {
        let Some((marks, reading)) = self.page_of(sense).and_then(Option::take) else { return };
        if let Some(desk) = self.desks.get(sense.desk) {
            desk.read(sense.pod, marks, reading, now_ms);
        }
    }

    fn page_of(&mut self, sense: Sense) -> Option<&mut Option<(Marks, Reading)>> {
        self.pages.get_mut(sense.desk)?.get_mut(sense.pod)
    }

    fn tell(&mut self, nth: u32, change: impl FnOnce(&mut Told)) {
        if let Some(told) = self.told.get_mut(nth as usize) {
            change(told);
        }
    }

    fn sum_up(self) -> Run {
        let preemptions = self.engines.iter().map(|engine| engine.totals().preemptions).sum();
        let deciding = WallTime(self.desks.iter().map(Desk::deciding).sum());
        Run { told: self.told, preemptions, ended_ms: self.ended_ms, deciding }
    }
}

fn prompt(engine: &Engine, ask: &Ask) -> PromptBlocks {
    let block_hashes = text::engine_hashes(ask, engine.config().block_size);
    PromptBlocks { tokens: ask.prompt_tokens(), block_hashes }
}

/// What is really so of a pod, for the oracle alone.
fn truth(engine: &Engine, ask: &Ask) -> Truth {
    let peek = engine.peek(&prompt(engine, ask));
    Truth {
        backlog_tokens: peek.backlog_tokens as f64,
        cached_tokens: f64::from(peek.cached_tokens),
        streams: engine.live() as f64,
        ms_per_token: peek.ms_per_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lab::{
            Fault, Piece, RIVALS,
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
        Ask { at_ms, prompt: [Piece { content, tokens }].into(), answer, session: Some(content), next: None }
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
        setup.faults = vec![Fault { at_ms: 0.0, pod: 0, slow: 8.0 }];
        let share = |name: &str| {
            let run = run(&setup, &traffic(600), &policy(name), 1).unwrap();
            run.told.iter().skip(200).filter(|told| told.pod == 0).count() as f64 / 400.0
        };
        assert!((share("round-robin") - 0.25).abs() < 0.01);
        assert!(share("least-cost") < 0.1, "{}", share("least-cost"));
    }
}
