//! Requests that stand at a gateway's door: who is let in, who is refused, who goes and who comes again.

use super::World;
use crate::{
    lab::{clockwork::Event, doors::Word},
    scheduler::Tried,
};

/// The longest pause of the OpenAI SDKs before they come again of themselves, and the longest that they are told to make
/// and make.
const LONGEST_PAUSE_MS: f64 = 8_000.0;
const LONGEST_TOLD_MS: f64 = 60_000.0;

/// Their first pause; each further one is twice as long.
const FIRST_PAUSE_MS: f64 = 500.0;

impl World<'_> {
    /// A request comes to the door of gateway `at`.
    pub(super) fn arrive(&mut self, nth: u32, at: usize, now_ms: f64) {
        let Some((ask, desk)) = self.asks.get(nth as usize).zip(self.desks.get_mut(at)) else { return };
        if ask.client.patience_ms.is_finite() {
            let tries = self.told.get(nth as usize).map_or(0, |told| told.again);
            self.clock.put(now_ms + ask.client.patience_ms, Event::Leave(nth, tries));
        }
        desk.came(nth, ask, now_ms);
        self.turn(at, now_ms);
    }

    /// Something happened that the door of gateway `at` may have waited for.
    pub(super) fn turn(&mut self, at: usize, now_ms: f64) {
        while let Some(word) = self.desks.get_mut(at).and_then(|desk| desk.says(now_ms)) {
            match word {
                Word::Enter(nth) => {
                    self.tell(nth, |told| told.let_in_ms = now_ms);
                    self.send(nth, at, Tried::none(), now_ms);
                }
                Word::Refuse(nth, pause_ms) => self.refuse(nth, pause_ms, now_ms),
            }
        }
        let Some(desk) = self.desks.get(at) else { return };
        let (due, set) = (desk.door.alarm_ms(), self.alarms.get_mut(at));
        if let Some(set) = set.filter(|set| due < **set) {
            *set = due;
            self.clock.put(due.max(now_ms), Event::Alarm(at));
        }
    }

    pub(super) fn alarm(&mut self, at: usize, now_ms: f64) {
        if let Some(set) = self.alarms.get_mut(at) {
            *set = f64::INFINITY;
        }
        self.turn(at, now_ms);
    }

    fn refuse(&mut self, nth: u32, pause_ms: f64, now_ms: f64) {
        if !self.comes_again(nth, Some(pause_ms), now_ms) {
            self.tell(nth, |told| told.refused_ms = now_ms);
            self.finish(nth, now_ms);
        }
    }

    /// The client has waited as long as it would. If anything has come, it stays.
    pub(super) fn leave(&mut self, nth: u32, tries: u32, now_ms: f64) {
        let waits = |told: &&super::Told| {
            told.again == tries && told.tokens == 0 && told.refused_ms.is_infinite() && !told.broken && !told.left
        };
        if !self.told.get(nth as usize).as_ref().is_some_and(waits) {
            return;
        }
        for desk in &mut self.desks {
            desk.door.gone(nth);
        }
        if let Some((at, sent)) = self.sent.get_mut(nth as usize).and_then(Option::take) {
            if let Some(place) = self.pods.get_mut(sent.pod) {
                place.engine.abort(u64::from(nth));
            }
            drop(sent);
            self.turn(at, now_ms);
        }
        if !self.comes_again(nth, None, now_ms) {
            self.tell(nth, |told| told.left = true);
            self.finish(nth, now_ms);
        }
    }

    /// Whether its client tries again, after the pause that it was told or its own.
    fn comes_again(&mut self, nth: u32, told_ms: Option<f64>, now_ms: f64) -> bool {
        let retries = self.asks.get(nth as usize).map_or(0, |ask| ask.client.retries);
        let Some(told) = self.told.get_mut(nth as usize).filter(|told| told.again < retries) else { return false };
        let doublings = i32::try_from(told.again).unwrap_or(i32::MAX);
        told.again += 1;
        let own_ms = (FIRST_PAUSE_MS * 2_f64.powi(doublings)).min(LONGEST_PAUSE_MS);
        let pause_ms = told_ms.filter(|it| *it <= LONGEST_TOLD_MS).unwrap_or(own_ms);
        self.clock.put(now_ms + pause_ms, Event::Again(nth));
        true
    }
}
