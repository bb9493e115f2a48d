//! The meters of one scope: what is counted against each of its limits.

use std::time::Duration;

use super::{
    Demand, Limit, Moment, Relief, Spent, Standing,
    bucket::{Bucket, Mark},
    refusal::Room,
    window::{Slip, Span, Window},
};
use crate::config::{Money, Quota};

/// What is counted of a scope. Only what its quota limits is.
#[derive(Clone, Debug, Default)]
pub(super) struct Meters {
    /// Requests, tokens, input tokens, output tokens.
    pub(super) rates: [Bucket; 4],
    pub(super) open: u64,
    pub(super) day: Window,
    pub(super) month: Window,
}

/// What a request took of a scope.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    rates: [Option<Mark>; 4],
    open: bool,
    day: Option<Slip>,
    month: Option<Slip>,
}

/// Why something does not fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short {
    pub(super) limit: Limit,
    pub(super) size: u64,
    pub(super) relief: Relief,
}

/// The rates of a quota, as [`Meters::rates`] has them.
pub(super) fn rates(quota: &Quota) -> [(Limit, Option<u64>); 4] {
    [
        (Limit::Requests, quota.requests_per_minute),
        (Limit::Tokens, quota.tokens_per_minute),
        (Limit::InputTokens, quota.input_tokens_per_minute),
        (Limit::OutputTokens, quota.output_tokens_per_minute),
    ]
}

/// Of what is demanded: what cannot be less, and what is taken of a limit of this size. An answer's length is a guess, so
/// that it takes no more than there is; what it has beyond is settled when it is known.
pub(super) fn wanted(demand: &Demand, limit: Limit, size: u64) -> (u64, u64) {
    match limit {
        Limit::Requests | Limit::Concurrent => (1, 1),
        Limit::Tokens => {
            let least = demand.input.saturating_add(u64::from(demand.output > 0));
            (least, demand.input.saturating_add(demand.spare).saturating_add(demand.output).min(size))
        }
        Limit::InputTokens => (demand.input, demand.input.saturating_add(demand.spare).min(size)),
        Limit::OutputTokens => (u64::from(demand.output > 0), demand.output.min(size)),
        Limit::Day | Limit::Month => (0, 0),
    }
}

impl Meters {
    /// Lets time do its work.
    pub(super) fn flow(&mut self, quota: &Quota, now: &Moment) {
        for (bucket, (_, size)) in self.rates.iter_mut().zip(rates(quota)) {
            match size {
                Some(size) => bucket.flow(size, now.at),
                // What is limited no more is not counted on.
                None => *bucket = Bucket::default(),
            }
        }
        self.day.turn(Span::Day.index(now.unix));
        self.month.turn(Span::Month.index(now.unix));
    }

    /// Why `demand` does not fit now: of several reasons the one that lasts longest.
    pub(super) fn short(&self, quota: &Quota, demand: &Demand, now: &Moment) -> Option<Short> {
        let mut worst: Option<(Duration, Short)> = None;
        let mut note = |limit, size, relief: Relief| {
            let lasts = match relief {
                Relief::Never { .. } => Duration::MAX,
                Relief::After(wait) | Relief::Anew { wait, .. } => wait,
                Relief::WhenOneEnds | Relief::WhenKnown => Duration::ZERO,
            };
            if worst.as_ref().is_none_or(|(other, _)| lasts > *other) {
                worst = Some((lasts, Short { limit, size, relief }));
            }
        };
        for (bucket, (limit, size)) in self.rates.iter().zip(rates(quota)) {
            let Some(size) = size else { continue };
            let (least, taken) = wanted(demand, limit, size);
            if least > size {
                note(limit, size, Relief::Never { needs: least });
            } else if taken > 0
                && let Some(wait) = bucket.wait(size, taken as f64)
            {
                note(limit, size, Relief::After(wait));
            }
        }
        if let Some(size) = quota.concurrent_requests.filter(|size| self.open >= *size) {
            let relief = if size == 0 { Relief::Never { needs: 1 } } else { Relief::WhenOneEnds };
            note(Limit::Concurrent, size, relief);
        }
        let budgets = [
            (Limit::Day, Span::Day, &self.day, quota.budget_per_day),
            (Limit::Month, Span::Month, &self.month, quota.budget_per_month),
        ];
        for (limit, span, window, budget) in budgets {
            let (Some(budget), Some(cost)) = (budget, demand.cost) else { continue };
            if budget == Money(0) {
                note(limit, 0, Relief::Never { needs: cost.0 });
            } else if !window.fits(budget, cost) {
                let at = span.ends(now.unix);
                note(limit, budget.0, Relief::Anew { at, wait: at.saturating_sub(now.unix) });
            }
        }
        worst.map(|(_, short)| short)
    }

    /// Takes, whether it fits or not.
    pub(super) fn take(&mut self, quota: &Quota, demand: &Demand) -> Taken {
        let mut taken = Taken::default();
        for ((bucket, (limit, size)), mark) in self.rates.iter_mut().zip(rates(quota)).zip(&mut taken.rates) {
            if let Some(size) = size {
                *mark = Some(bucket.take(wanted(demand, limit, size).1 as f64));
            }
        }
        if quota.concurrent_requests.is_some() {
            self.open += 1;
            taken.open = true;
        }
        if let Some(cost) = demand.cost {
            taken.day = quota.budget_per_day.map(|budget| self.day.take(cost.min(budget)));
            taken.month = quota.budget_per_month.map(|budget| self.month.take(cost.min(budget)));
        }
        taken
    }

    /// What was taken turned out to be `spent`.
    pub(super) fn settle(&mut self, taken: &Taken, spent: &Spent) {
        let used = [spent.requests, spent.input.saturating_add(spent.output), spent.input, spent.output];
        for ((bucket, mark), used) in self.rates.iter_mut().zip(taken.rates).zip(used) {
            if let Some(mark) = mark {
                bucket.settle(mark, used as f64);
            }
        }
        self.open = self.open.saturating_sub(u64::from(taken.open));
        for (window, slip) in [(&mut self.day, taken.day), (&mut self.month, taken.month)] {
            if let Some(slip) = slip {
                window.settle(slip, spent.cost);
            }
        }
    }

    /// Notes the room that is left.
    pub(super) fn stand(&self, quota: &Quota, standing: &mut Standing) {
        for (bucket, (limit, size)) in self.rates.iter().zip(rates(quota)) {
            if let Some(size) = size {
                standing.note(limit, Room::of(size, bucket.level(), bucket.reset(size)));
            }
        }
    }

    /// What is used of each limit that `quota` has, and its size; money in billionths.
    pub(super) fn used(&self, quota: &Quota) -> impl Iterator<Item = (Limit, f64, u64)> {
        let rates = self
            .rates
            .iter()
            .zip(rates(quota))
            .filter_map(|(bucket, (limit, size))| Some((limit, bucket.level(), size?)));
        let rates: smallvec::SmallVec<[_; 7]> = rates.collect();
        let open = quota.concurrent_requests.map(|size| (Limit::Concurrent, self.open as f64, size));
        let budget = |limit, window: Window, budget: Option<Money>| Some((limit, window.spent.0 as f64, budget?.0));
        let day = budget(Limit::Day, self.day, quota.budget_per_day);
        rates.into_iter().chain(open).chain(day).chain(budget(Limit::Month, self.month, quota.budget_per_month))
    }

    /// Whether forgetting it changes nothing, once time has done its work.
    pub(super) fn is_idle(&self) -> bool {
        let nothing = |window: &Window| window.spent == Money(0);
        self.open == 0
            && self.rates.iter().all(|bucket| bucket.level() <= 0.0)
            && nothing(&self.day)
            && nothing(&self.month)
    }
}
