//! What goes wrong with pods, and what becomes of the requests that were there.

use rand::RngExt as _;

use super::{Pages, Temper, World};
use crate::{
    lab::{
        clockwork::{Event, Sense},
        desk::{Desk, Sent},
        setup::Mishap,
    },
    scheduler::Tried,
    sim::engine::Engine,
};

impl World<'_> {
    pub(super) fn mishap(&mut self, nth: usize, now_ms: f64) {
        let Some(fault) = self.setup.faults.get(nth) else { return };
        let Some(place) = self.pods.get_mut(fault.pod) else { return };
        match fault.what {
            Mishap::Slow(times) => place.engine.slow_down(times),
            Mishap::Dies => self.die(fault.pod, now_ms),
            Mishap::Returns => place.down = false,
            Mishap::SaysNo => place.temper = Temper::SaysNo,
            Mishap::Fails => place.temper = Temper::Fails,
            Mishap::PagesHang => place.pages = Pages::Hanging,
            Mishap::PagesFreeze => place.pages = Pages::Frozen(Box::new(place.shows())),
            Mishap::PagesHeal => place.pages = Pages::Well,
            Mishap::Joins => self.join(fault.pod, now_ms),
        }
    }

    /// The process is gone, and with it its cache and its queue. Its clients' answers break off; those that had none
    /// yet get an error, or another attempt where the setup says so.
    fn die(&mut self, pod: usize, now_ms: f64) {
        let Some(place) = self.pods.get_mut(pod) else { return };
        self.preemptions += place.engine.totals().preemptions;
        let config = place.engine.config().clone();
        place.engine = Engine::new(config);
        place.down = true;
        let is_there = |sent: &Option<(usize, Sent)>| sent.as_ref().is_some_and(|(_, sent)| sent.pod == pod);
        let all = self.sent.iter().enumerate();
        let there: Vec<usize> = all.filter(|(_, sent)| is_there(sent)).map(|(nth, _)| nth).collect();
        for nth in there {
            let Some((at, sent)) = self.sent.get_mut(nth).and_then(Option::take) else { continue };
            let nth = u32::try_from(nth).unwrap_or(u32::MAX);
            if let Some(desk) = self.desks.get(at) {
                desk.failed(&sent, now_ms);
            }
            let unanswered = self.told.get(nth as usize).is_some_and(|told| told.tokens == 0);
            if unanswered && self.setup.retries_died {
                let mut tried = Tried::none();
                Desk::give_up(&sent, &mut tried);
                drop(sent);
                self.send(nth, at, tried, now_ms);
            } else {
                self.tell(nth, |told| told.broken = true);
                self.finish(nth, now_ms);
            }
        }
    }

    /// Discovery lists it to every gateway, and its pages are asked for from now on.
    fn join(&mut self, pod: usize, now_ms: f64) {
        for (desk, gateway) in self.desks.iter_mut().enumerate() {
            gateway.discover(pod + 1, now_ms);
            let turn = self.rng.random::<f64>() * self.setup.scrape.interval_ms;
            self.clock.put(now_ms + turn, Event::Scrape(Sense { desk, pod }));
        }
    }
}
