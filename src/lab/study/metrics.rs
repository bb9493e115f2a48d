//! The numbers that tables show, in one list: what each is called, where it is found, how it is written.

use crate::lab::Stats;

/// One number of a run.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name for machines; it says the unit.
    pub key: &'static str,
    /// Its name above a column.
    pub heading: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// Where it is found.
    pub of: fn(&Stats) -> f64,
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds, written as seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// A part of one, to four digits.
    Share,
    /// A factor, to two digits.
    Factor,
    /// So many a second.
    PerSecond,
    /// A whole number.
    Count,
}

impl Unit {
    /// A number that may be missing.
    pub fn text_of(self, number: Option<f64>) -> String {
        self.text(number.unwrap_or(f64::NAN))
    }

    /// A number as people read it.
    pub fn text(self, number: f64) -> String {
        if !number.is_finite() {
            return "-".to_owned();
        }
        match self {
            Self::Seconds => format!("{:.3}", number / 1e3),
            Self::Millis | Self::Micros => format!("{number:.1}"),
            Self::Share => format!("{number:.4}"),
            Self::Factor | Self::PerSecond => format!("{number:.2}"),
            Self::Count => format!("{number:.0}"),
        }
    }
}

/// All of them, in the order of their columns.
pub static METRICS: [Metric; 16] = [
    Metric { key: "attainment", heading: "attained", unit: Unit::Share, of: |it| it.attainment },
    Metric { key: "goodput_per_second", heading: "goodput", unit: Unit::PerSecond, of: |it| it.goodput },
    Metric { key: "ttft_mean_ms", heading: "TTFT mean", unit: Unit::Seconds, of: |it| it.ttft_mean },
    Metric { key: "ttft_p50_ms", heading: "p50", unit: Unit::Seconds, of: |it| it.ttft_p50 },
    Metric { key: "ttft_p90_ms", heading: "p90", unit: Unit::Seconds, of: |it| it.ttft_p90 },
    Metric { key: "ttft_p99_ms", heading: "p99", unit: Unit::Seconds, of: |it| it.ttft_p99 },
    Metric { key: "tpot_p99_ms", heading: "TPOT p99", unit: Unit::Millis, of: |it| it.tpot_p99 },
    Metric { key: "gap_p99_ms", heading: "gap p99", unit: Unit::Millis, of: |it| it.gap_p99 },
    Metric { key: "e2e_mean_ms", heading: "E2E mean", unit: Unit::Seconds, of: |it| it.e2e_mean },
    Metric { key: "e2e_p99_ms", heading: "E2E p99", unit: Unit::Seconds, of: |it| it.e2e_p99 },
    Metric { key: "hit_ratio", heading: "hits", unit: Unit::Share, of: |it| it.hit_ratio },
    Metric { key: "preemptions", heading: "preempted", unit: Unit::Count, of: |it| it.preemptions },
    Metric { key: "requests_max_over_mean", heading: "requests max/mean", unit: Unit::Factor, of: |it| it.imbalance },
    Metric { key: "tokens_max_over_mean", heading: "tokens max/mean", unit: Unit::Factor, of: |it| it.outstanding },
    Metric { key: "offered_per_second", heading: "offered", unit: Unit::PerSecond, of: |it| it.offered_per_second },
    Metric {
        key: "decision_us",
        heading: "decision us",
        unit: Unit::Micros,
        of: |it| it.decision.0.as_secs_f64() * 1e6,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_has_a_name_of_its_own_and_none_is_written_as_infinite() {
        let keys: BTreeSet<_> = METRICS.iter().map(|metric| metric.key).collect();
        assert_eq!(keys.len(), METRICS.len());
        assert_eq!(Unit::Seconds.text(1_234.5), "1.234");
        assert_eq!(Unit::Share.text(0.5), "0.5000");
        assert_eq!(Unit::Seconds.text(f64::INFINITY), "-");
    }
}
