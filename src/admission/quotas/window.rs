//! What may be spent in a day or a month: a sum that begins anew with each, by the calendar in UTC.

use std::time::Duration;

use crate::config::Money;

/// Seconds of a day; UTC as computers count it has no others.
const DAY: u64 = 86_400;

/// A stretch of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Day,
    Month,
}

/// What was spent in the stretch that `index` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) index: u64,
    pub(super) spent: Money,
}

/// Something that was taken, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slip {
    index: u64,
    amount: Money,
}

impl Span {
    /// Which one is now: days or months since 1970 began.
    pub(super) fn index(self, unix: Duration) -> u64 {
        let days = unix.as_secs() / DAY;
        match self {
            Self::Day => days,
            Self::Month => {
                let (year, month, _) = date(days);
                (year - 1970) * 12 + month - 1
            }
        }
    }

    /// When the next one begins, since 1970.
    pub(super) fn ends(self, unix: Duration) -> Duration {
        let days = match self {
            Self::Day => unix.as_secs() / DAY + 1,
            Self::Month => {
                let next = self.index(unix) + 1;
                first_day(1970 + next / 12, next % 12 + 1)
            }
        };
        Duration::from_secs(days * DAY)
    }
}

impl Window {
    /// Begins anew if another stretch has begun. A clock that was set back begins none.
    pub(super) fn turn(&mut self, index: u64) {
        if index > self.index {
            *self = Self { index, spent: Money(0) };
        }
    }

    /// Whether `amount` fits beside what was spent.
    pub(super) fn fits(&self, budget: Money, amount: Money) -> bool {
        self.spent < budget && self.spent.0.saturating_add(amount.0.min(budget.0)) <= budget.0
    }

    /// Takes.
    pub(super) fn take(&mut self, amount: Money) -> Slip {
        self.spent.0 = self.spent.0.saturating_add(amount.0);
        Slip { index: self.index, amount }
    }

    /// What was taken turned out to be `used`. What was taken in a stretch that is over is gone with it; what is paid now
    /// counts now.
    pub(super) fn settle(&mut self, slip: Slip, used: Money) {
        if slip.index == self.index {
            self.spent.0 = self.spent.0.saturating_sub(slip.amount.0);
        }
        self.spent.0 = self.spent.0.saturating_add(used.0);
    }
}

/// Year, month and day of a day since 1970. Years are counted from March, so that the odd day is the last: then 400 of
/// them are always as long, and months before a given one have together what a straight line says.
pub(super) fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The first day of a month, since 1970: the inverse.
fn first_day(year: u64, month: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A time as RFC 3339 has it, to the second.
pub fn rfc3339(unix: Duration) -> String {
    let (days, second) = (unix.as_secs() / DAY, unix.as_secs() % DAY);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        // By `date -u -d @N`.
        for (unix, told) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_305_599, "2026-11-21T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(unix)), told);
        }
        let november = Duration::from_secs(1_795_305_599);
        assert_eq!(rfc3339(Span::Day.ends(november)), "2026-11-22T00:00:00Z");
        assert_eq!(rfc3339(Span::Month.ends(november)), "2026-12-01T00:00:00Z");
        let december = Span::Month.ends(november);
        assert_eq!(rfc3339(Span::Month.ends(december)), "2027-01-01T00:00:00Z");
    }

    #[test]
    fn a_new_day_begins_with_nothing_spent_and_takes_no_old_refund() {
        let (mut window, budget) = (Window::default(), Money(100));
        window.turn(5);
        let slip = window.take(Money(80));
        assert!(!window.fits(budget, Money(21)) && window.fits(budget, Money(20)));
        window.turn(6);
        window.take(Money(30));
        window.settle(slip, Money(50));
        assert_eq!(window.spent, Money(80), "what was taken yesterday was paid today");
        window.turn(5);
        assert_eq!(window.index, 6, "a clock set back begins nothing anew");
    }

    #[test]
    fn what_costs_more_than_the_budget_may_come_once() {
        let (mut window, budget) = (Window::default(), Money(100));
        assert!(window.fits(budget, Money(1_000)));
        window.take(Money(1));
        assert!(!window.fits(budget, Money(1_000)));
        assert!(!Window::default().fits(Money(0), Money(0)), "a budget of nothing lets nothing in");
    }

    proptest! {
        #[test]
        fn every_month_begins_where_the_last_one_ends(days in 0_u64..200_000) {
            let noon = Duration::from_secs(days * DAY + DAY / 2);
            let ends = Span::Month.ends(noon);
            prop_assert!(ends > noon && ends <= noon + Duration::from_secs(31 * DAY));
            prop_assert_eq!(Span::Month.index(ends), Span::Month.index(noon) + 1);
            prop_assert_eq!(Span::Month.index(ends.saturating_sub(Duration::from_secs(1))), Span::Month.index(noon));
            let (_, _, day) = date(ends.as_secs() / DAY);
            prop_assert_eq!(day, 1);
        }
    }
}
