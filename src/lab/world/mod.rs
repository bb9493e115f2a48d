//! One run: pods, gateways and traffic on the virtual clock, until the last answer.

mod doorway;
mod mishaps;
mod senses;
#[cfg(test)]
mod tests;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

pub(super) use senses::Shown;

use super::{
    clockwork::{Clockwork, Event, Sense},
    desk::{Desk, Marks, Sent},
    rivals::{Policy, Truth},
    script::{Ask, Script},
    setup::Setup,
    tally::{Told, WallTime},
    text,
};
use crate::{
    config,
    scheduler::Tried,
    sim::{
        engine::Engine,
        terms::{PromptBlocks, SimRequest},
    },
};

/// What a run told.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Every request, by its place in the script.
    pub told: Vec<Told>,
    /// Requests that engines threw out of their batch and computed again.
    pub preemptions: u64,
    /// When the last answer was complete.
    pub ended_ms: f64,
    /// When the weights of the split changed; never is infinite.
    pub shifted_ms: f64,
    /// What all decisions took on this machine.
    pub deciding: WallTime,
}

impl Default for Run {
    fn default() -> Self {
        let deciding = WallTime::default();
        Self { told: Vec::new(), preemptions: 0, ended_ms: 0.0, shifted_ms: f64::INFINITY, deciding }
    }
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
    pods: Vec<Place>,
    desks: Vec<Desk>,
    /// The pages under way, by gateway and pod.
    pages: Vec<Vec<Option<(Marks, Shown)>>>,
    /// Requests that begin something, those that are still to come at the end.
    starters: Vec<u32>,
    sent: Vec<Option<(usize, Sent)>>,
    told: Vec<Told>,
    /// When each door is asked next, if only time passes.
    alarms: Vec<f64>,
    /// Requests whose last token came in the step just over.
    over: Vec<usize>,
    /// Gateways that saw a prompt begin or an answer end in it.
    news: Vec<usize>,
    preemptions: u64,
    left: usize,
    until_ms: f64,
    ended_ms: f64,
    rng: StdRng,
}

/// A pod and what is wrong with it.
struct Place {
    engine: Engine,
    /// Nobody listens there.
    down: bool,
    temper: Temper,
    pages: Pages,
}

/// How it takes what it is asked.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Temper {
    #[default]
    Well,
    SaysNo,
    Fails,
}

/// How its pages are.
#[derive(Default)]
enum Pages {
    #[default]
    Well,
    Hanging,
    Frozen(Box<Shown>),
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
        let place = |config: &_| Place {
            engine: Engine::new(Clone::clone(config)),
            down: false,
            temper: Temper::Well,
            pages: Pages::Well,
        };
        let mut world = Self {
            setup,
            asks,
            clock: Clockwork::default(),
            pods: setup.pods.iter().map(place).collect(),
            pages: vec![vec![None; setup.pods.len()]; desks.len()],
            alarms: vec![f64::INFINITY; desks.len()],
            desks,
            starters,
            sent: asks.iter().map(|_| None).collect(),
            told: asks.iter().map(Told::of).collect(),
            over: Vec::new(),
            news: Vec::new(),
            preemptions: 0,
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
            for pod in 0..self.setup.early_pods() {
                let turn = self.rng.random::<f64>() * self.setup.scrape.interval_ms;
                self.clock.put(turn, Event::Scrape(Sense { desk, pod }));
            }
        }
        for (nth, fault) in self.setup.faults.iter().enumerate() {
            self.clock.put(fault.at_ms, Event::Fault(nth));
        }
        if let Some(shift) = self.setup.shift {
            self.clock.put(shift.at_ms as f64, Event::Shift);
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
            Event::Again(nth) => self.knock(nth, now_ms),
            Event::Leave(nth, tries) => self.leave(nth, tries, now_ms),
            Event::Alarm(at) => self.alarm(at, now_ms),
            Event::Step(pod) => self.step(pod, now_ms),
            Event::Scrape(sense) => self.scrape(sense, now_ms),
            Event::Render(sense) => self.render(sense, now_ms),
            Event::Page(sense) => self.page(sense, now_ms),
            Event::Fault(nth) => self.mishap(nth, now_ms),
            Event::Shift => self.desks.iter_mut().for_each(Desk::shift),
        }
    }

    fn ask(&mut self, nth: u32, now_ms: f64) {
        let Some(ask) = self.asks.get(nth as usize) else { return };
        if ask.at_ms.is_finite() {
            self.next_starter();
        }
        self.tell(nth, |told| told.at_ms = now_ms);
        self.knock(nth, now_ms);
    }

    /// It comes to one of the gateways.
    fn knock(&mut self, nth: u32, now_ms: f64) {
        let desk = if self.desks.len() > 1 { self.rng.random_range(0..self.desks.len()) } else { 0 };
        self.arrive(nth, desk, now_ms);
    }

    /// Attempts until a pod takes the request or no further attempt is allowed. What the retry budget of a sick fleet
    /// would forbid is let through: `upstream`, which keeps it, is a room that the lab does not know.
    fn send(&mut self, nth: u32, at: usize, mut tried: Tried, now_ms: f64) {
        let asks = self.asks;
        let Self { pods, desks, told, .. } = self;
        let Some((ask, desk)) = asks.get(nth as usize).zip(desks.get_mut(at)) else { return };
        let Some(mut matter) = desk.matter(ask) else { return self.finish(nth, now_ms) };
        matter.waited = told.get(nth as usize).is_some_and(|told| told.let_in_ms > told.at_ms);
        let prompt = prompt(ask, matter.adapter, pods.first());
        if let Some(told) = told.get_mut(nth as usize) {
            told.arm = matter.arm();
        }
        let truth = |pod: usize| pods.get(pod).map_or_else(Truth::default, |place| truth(&place.engine, &prompt));
        let mut taken = None;
        while tried.len() <= desk.attempts {
            let Ok(sent) = desk.decide(&matter, &tried, now_ms, &truth) else { break };
            let place = pods.get(sent.pod);
            match place.map_or(Temper::Fails, |place| place.temper) {
                Temper::Well if place.is_some_and(|place| !place.down) => {
                    taken = Some(sent);
                    break;
                }
                Temper::SaysNo => desk.refused_by(&sent, now_ms),
                _ => desk.failed(&sent, now_ms),
            }
            if let Some(told) = told.get_mut(nth as usize) {
                told.turned_away += 1;
            }
            Desk::give_up(&sent, &mut tried);
            if place.is_some_and(|place| place.temper == Temper::Fails) {
                // It had the request, so it may have run.
                break;
            }
        }
        let Some(sent) = taken else { return self.finish(nth, now_ms) };
        let request =
            SimRequest { id: u64::from(nth), prompt, output_tokens: ask.answer.tokens, adapter: matter.adapter };
        self.put_down((nth, at), sent, request, now_ms);
    }

    fn put_down(&mut self, (nth, at): (u32, usize), sent: Sent, request: SimRequest, now_ms: f64) {
        let pod = sent.pod;
        let taken = self.pods.get_mut(pod).is_some_and(|place| place.engine.add(request).is_ok());
        if !taken {
            return self.finish(nth, now_ms);
        }
        self.tell(nth, |told| told.pod = pod);
        if let Some(place) = self.sent.get_mut(nth as usize) {
            *place = Some((at, sent));
        }
        self.begin(pod, now_ms);
    }

    fn begin(&mut self, pod: usize, now_ms: f64) {
        let ends = self.pods.get_mut(pod).and_then(|place| place.engine.begin_step(now_ms));
        if let Some(ends_ms) = ends {
            self.clock.put(ends_ms, Event::Step(pod));
        }
    }

    fn step(&mut self, pod: usize, now_ms: f64) {
        let Some(place) = self.pods.get_mut(pod) else { return };
        // The step of an engine that has died meanwhile.
        if place.engine.busy_until() != Some(now_ms) {
            return;
        }
        for token in &place.engine.end_step().emitted {
            let Ok(nth) = usize::try_from(token.id) else { continue };
            let (Some(told), Some(place)) = (self.told.get_mut(nth), self.sent.get_mut(nth)) else { continue };
            let Some((at, sent)) = place.as_mut() else { continue };
            let Some(desk) = self.desks.get(*at) else { continue };
            told.token(now_ms, token.cached);
            desk.token(sent, now_ms);
            if (told.tokens == 1 || token.last) && !self.news.contains(at) {
                self.news.push(*at);
            }
            if token.last {
                self.over.push(nth);
            }
        }
        let mut over = std::mem::take(&mut self.over);
        for nth in over.drain(..) {
            let prompt_tokens = self.told.get(nth).map_or(0, |told| told.prompt_tokens);
            if let Some((at, sent)) = self.sent.get_mut(nth).and_then(Option::take)
                && let (Some(desk), Some(ask)) = (self.desks.get(at), self.asks.get(nth))
            {
                desk.complete(sent, prompt_tokens, ask.answer, now_ms);
            }
            self.finish(u32::try_from(nth).unwrap_or(u32::MAX), now_ms);
        }
        self.over = over;
        let mut news = std::mem::take(&mut self.news);
        for at in news.drain(..) {
            self.turn(at, now_ms);
        }
        self.news = news;
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

    fn tell(&mut self, nth: u32, change: impl FnOnce(&mut Told)) {
        if let Some(told) = self.told.get_mut(nth as usize) {
            change(told);
        }
    }

    fn sum_up(self) -> Run {
        let preempted = self.pods.iter().map(|place| place.engine.totals().preemptions).sum::<u64>();
        Run {
            told: self.told,
            preemptions: self.preemptions + preempted,
            ended_ms: self.ended_ms,
            shifted_ms: self.setup.shift.map_or(f64::INFINITY, |shift| shift.at_ms as f64),
            deciding: WallTime(self.desks.iter().map(Desk::deciding).sum()),
        }
    }
}

/// All pods of a run cut blocks alike.
fn prompt(ask: &Ask, adapter: Option<u32>, pod: Option<&Place>) -> PromptBlocks {
    let block_size = pod.map_or(1, |pod| pod.engine.config().block_size);
    PromptBlocks { tokens: ask.prompt_tokens(), block_hashes: text::engine_hashes(ask, adapter, block_size) }
}

/// What is really so of a pod, for the oracle alone.
fn truth(engine: &Engine, prompt: &PromptBlocks) -> Truth {
    let peek = engine.peek(prompt);
    Truth {
        backlog_tokens: peek.backlog_tokens as f64,
        cached_tokens: f64::from(peek.cached_tokens),
        streams: engine.live() as f64,
        ms_per_token: peek.ms_per_token,
    }
}
