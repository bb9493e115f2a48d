//! The policies, one file each: what each says of a candidate. Which candidate follows from that is decided outside.

mod least_cost;
mod least_request;
mod power_of_two;
mod random;
mod round_robin;
mod session_hash;
mod weighted;

use rand::Rng;

pub(super) use round_robin::place_of;

use super::{Price, Sight, belief::Beliefs, filters::Field};
use crate::config::Scheduler;

/// A policy looking at one field. Every question about a candidate is asked by its place in the field.
pub(super) enum Judge<'a> {
    LeastCost(least_cost::LeastCost<'a>),
    Weighted(weighted::Weighted<'a>),
    LeastRequest(least_request::LeastRequest<'a>),
    PowerOfTwo(power_of_two::PowerOfTwo<'a>),
    RoundRobin(round_robin::RoundRobin),
    Random(random::Random),
    SessionHash(session_hash::SessionHash<'a>),
}

impl<'a> Judge<'a> {
    pub(super) fn new(policy: &'a Scheduler, field: &'a Field<'a>, turn: &dyn Fn() -> u64, rng: &mut impl Rng) -> Self {
        match policy {
            Scheduler::LeastCost => Self::LeastCost(least_cost::LeastCost::new(field)),
            Scheduler::Weighted(scorers) => Self::Weighted(weighted::Weighted::new(scorers, field)),
            Scheduler::LeastRequest => Self::LeastRequest(least_request::LeastRequest::new(field)),
            Scheduler::PowerOfTwo => Self::PowerOfTwo(power_of_two::PowerOfTwo::new(field, rng)),
            Scheduler::RoundRobin => Self::RoundRobin(round_robin::RoundRobin::new(field, turn, rng)),
            Scheduler::Random => Self::Random(random::Random::new(field, rng)),
            Scheduler::SessionHash => match field.question.session {
                Some(session) => Self::SessionHash(session_hash::SessionHash::new(field, session)),
                None => Self::LeastRequest(least_request::LeastRequest::new(field)),
            },
        }
    }

    /// What the candidate at `place` costs.
    #[inline]
    pub(super) fn price(&self, place: usize) -> Price {
        match self {
            Self::LeastCost(judge) => judge.price(place),
            Self::Weighted(judge) => judge.price(place),
            Self::LeastRequest(judge) => judge.price(place),
            Self::PowerOfTwo(judge) => judge.price(place),
            Self::RoundRobin(judge) => judge.price(place),
            Self::Random(_) => Price::Any,
            Self::SessionHash(judge) => judge.price(place),
        }
    }

    /// Every candidate's place and rank; only of those drawn, for policies that draw before they compare. It is the
    /// rank of what [`Judge::price`] says, asked in a loop of each policy's own: a thousand times through the `match`
    /// is most of a pick.
    pub(super) fn ranks(&self) -> Vec<(usize, f64)> {
        match self {
            Self::LeastCost(judge) => ranked(judge.prices()),
            Self::Weighted(judge) => ranked(judge.prices()),
            Self::LeastRequest(judge) => ranked(judge.prices()),
            Self::PowerOfTwo(judge) => judge.drawn().map(|place| (place, judge.price(place).rank())).collect(),
            Self::RoundRobin(judge) => ranked(judge.prices()),
            Self::Random(judge) => vec![(judge.drawn, Price::Any.rank())],
            Self::SessionHash(judge) => ranked(judge.prices()),
        }
    }

    /// By how much `best` may be exceeded and still not be told from it.
    pub(super) fn tolerance(&self, best: &Price) -> f64 {
        match (self, best) {
            (Self::LeastCost(_), Price::Cost(cost)) => least_cost::tolerance(cost),
            _ => 0.0,
        }
    }

    pub(super) fn sight(&self) -> Sight {
        match self {
            Self::LeastCost(judge) => judge.beliefs.sight(),
            Self::Weighted(judge) => judge.beliefs.sight(),
            Self::LeastRequest(judge) => judge.beliefs.sight(),
            Self::PowerOfTwo(judge) => judge.all.beliefs.sight(),
            Self::RoundRobin(_) | Self::Random(_) | Self::SessionHash(_) => Sight::Unneeded,
        }
    }

    /// What is believed of the candidates, where the policy asks for it.
    pub(super) fn beliefs(&self) -> Option<&Beliefs> {
        match self {
            Self::LeastCost(judge) => Some(&judge.beliefs),
            Self::Weighted(judge) => Some(&judge.beliefs),
            Self::LeastRequest(judge) => Some(&judge.beliefs),
            Self::PowerOfTwo(judge) => Some(&judge.all.beliefs),
            Self::RoundRobin(_) | Self::Random(_) | Self::SessionHash(_) => None,
        }
    }
}

#[inline]
fn ranked(prices: impl Iterator<Item = Price>) -> Vec<(usize, f64)> {
    prices.map(|price| price.rank()).enumerate().collect()
}

/// One draw that a warming candidate survives as often as its share says. After as many as there are candidates the
/// last one stands, so that a field of newcomers still has a winner.
fn thinned(field: &Field<'_>, rng: &mut impl Rng, mut draw: impl FnMut(&mut dyn Rng) -> usize) -> usize {
    let mut place = draw(rng);
    for _ in 0..field.candidates.len() {
        let share = field.candidates.get(place).map_or(1.0, |it| it.share);
        if share >= 1.0 || rand::RngExt::random::<f64>(rng) < share {
            break;
        }
        place = draw(rng);
    }
    place
}
