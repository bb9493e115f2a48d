//! A plan as meters that several gateways share, and what their answer means. Limits that are only counted stay at home.

use std::time::Duration;

use super::{
    Demand, Limit, Moment, Plan, Refusal, Relief, Room, Scope, Spent, Standing, outlasts,
    scope::{Meters, rates, wanted},
    window::Span,
};
use crate::{
    config::{Money, Quota},
    keys::{Meter, MeterKind, Stand},
};

/// A meter's letter where it is shared.
const LETTERS: [(Limit, &str); 7] = [
    (Limit::Requests, "q"),
    (Limit::Tokens, "t"),
    (Limit::InputTokens, "i"),
    (Limit::OutputTokens, "o"),
    (Limit::Concurrent, "c"),
    (Limit::Day, "d"),
    (Limit::Month, "m"),
];

fn letter(limit: Limit) -> &'static str {
    LETTERS.iter().find(|(it, _)| *it == limit).map_or("", |(_, letter)| letter)
}

impl Plan {
    /// Why `demand` can never be taken, whatever was used.
    ///
    /// # Errors
    /// The limit that is too small for it.
    pub fn can_ever(&self, demand: &Demand, now: &Moment) -> Result<(), Box<Refusal>> {
        for counted in self.scopes.iter().filter(|it| it.quota.enforce) {
            let short = Meters::default().short(&counted.quota, demand, now);
            if let Some(short) = short {
                let scope = counted.scope.clone();
                let standing = Standing::default();
                let (limit, size, relief) = (short.limit, short.size, short.relief);
                return Err(Box::new(Refusal { scope, limit, size, relief, standing }));
            }
        }
        Ok(())
    }

    /// What `demand` wants of each limit that is kept.
    pub fn shared(&self, demand: &Demand, now: &Moment) -> Vec<Meter> {
        self.shared_limits(demand, now).map(|(_, _, meter)| meter).collect()
    }

    fn shared_limits(&self, demand: &Demand, now: &Moment) -> impl Iterator<Item = (&Scope, Limit, Meter)> {
        let (demand, now) = (*demand, *now);
        self.scopes.iter().filter(|it| it.quota.enforce).flat_map(move |counted| {
            let name = format!("{}:{}", counted.scope.kind(), counted.scope.name());
            meters(&counted.quota, &demand, &now).into_iter().map(move |(limit, kind, size, amount)| {
                let (limit_of, amount) = (size as f64, amount as f64);
                (
                    &counted.scope,
                    limit,
                    Meter { scope: name.clone(), field: letter(limit), kind, limit: limit_of, amount },
                )
            })
        })
    }

    /// What the meters of [`Plan::shared`] say: the room that is left, or who refuses.
    ///
    /// # Errors
    /// The limit that lets it wait longest.
    pub fn judge(&self, demand: &Demand, stands: &[Stand], now: &Moment) -> Result<Standing, Box<Refusal>> {
        let (mut standing, mut worst) = (Standing::default(), None::<Refusal>);
        for ((scope, limit, meter), stand) in self.shared_limits(demand, now).zip(stands) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was a `u64` before")]
            let size = meter.limit as u64;
            let pause = |amount: f64| Duration::try_from_secs_f64(amount.max(0.0) * 60.0 / meter.limit.max(1.0));
            let pause = |amount: f64| pause(amount).unwrap_or(Duration::MAX);
            standing.note(limit, Room::of(size, stand.level, pause(stand.level)));
            if stand.fits {
                continue;
            }
            let relief = match meter.kind {
                MeterKind::Rate => Relief::After(pause(stand.level + meter.amount - meter.limit)),
                MeterKind::Open => Relief::WhenOneEnds,
                MeterKind::Window(_) => {
                    let at = if limit == Limit::Day { Span::Day } else { Span::Month }.ends(now.unix);
                    Relief::Anew { at, wait: at.saturating_sub(now.unix) }
                }
            };
            if worst.as_ref().is_none_or(|other| outlasts(relief, other.relief)) {
                worst = Some(Refusal { scope: scope.clone(), limit, size, relief, standing });
            }
        }
        match worst {
            Some(refusal) => Err(Box::new(Refusal { standing, ..refusal })),
            None => Ok(standing),
        }
    }

    /// Whose limits cannot be known, if any are kept.
    pub fn unknown(&self) -> Option<Box<Refusal>> {
        let counted = self.scopes.iter().find(|it| it.quota.enforce)?;
        let (scope, limit, relief) = (counted.scope.clone(), Limit::Requests, Relief::WhenKnown);
        Some(Box::new(Refusal { scope, limit, size: 0, relief, standing: Standing::default() }))
    }
}

impl Spent {
    /// What it is of a shared meter with this letter.
    pub fn of(&self, letter: &str) -> f64 {
        match letter {
            "q" => self.requests as f64,
            "t" => self.input.saturating_add(self.output) as f64,
            "i" => self.input as f64,
            "o" => self.output as f64,
            "d" | "m" => self.cost.0 as f64,
            _ => 0.0,
        }
    }
}

fn meters(quota: &Quota, demand: &Demand, now: &Moment) -> Vec<(Limit, MeterKind, u64, u64)> {
    let rates = rates(quota).into_iter().filter_map(|(limit, size)| {
        let size = size?;
        Some((limit, MeterKind::Rate, size, wanted(demand, limit, size).1))
    });
    let open = quota.concurrent_requests.map(|size| (Limit::Concurrent, MeterKind::Open, size, 1));
    let window = |limit, span: Span, budget: Option<Money>| {
        let (budget, cost) = (budget?, demand.cost?);
        Some((limit, MeterKind::Window(span.index(now.unix)), budget.0, cost.min(budget).0))
    };
    let day = window(Limit::Day, Span::Day, quota.budget_per_day);
    rates.chain(open).chain(day).chain(window(Limit::Month, Span::Month, quota.budget_per_month)).collect()
}
