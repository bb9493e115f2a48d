//! Durations, sizes and shares as people write them: `250ms`, `32MiB`, `20%`.
//!
//! A bare number is refused where a unit is due: `timeout: 5` has cost too many nights. No fractions either: `1500ms`
//! says what `1.5s` says and needs no rule for rounding.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

use super::{Bytes, Ratio, RetryOn, report::suggestion};

/// A duration as written in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// An address to listen on as written. A bare port is taken as text too: the check of addresses knows what to say to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AddressText(pub(super) String);

/// The weight of one arm of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight(pub(super) u32);

/// Longest duration accepted, a year: nothing here waits longer, and arithmetic with instants stays safe.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a duration may look like, for messages.
const DURATIONS: &str = "write a whole number with `ms`, `s`, `m` or `h`, such as `250ms`, `5s`, `2m` or `1h30m`";

/// What a size may look like, for messages.
const SIZES: &str =
    "write a whole number with `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`, such as `64KiB` or `500MB`";

/// What a share may look like, for messages.
const SHARES: &str = "write a percentage such as `20%`, or a number from 0 to 1 such as `0.2`";

/// What a weight may look like, for messages.
const WEIGHTS: &str = "write whole numbers, such as 90 and 10 for nine to one; only the proportions matter";

/// The words for what may be tried again, besides statuses.
const RETRY_WORDS: [&str; 3] = ["first_byte_timeout", "connection_died", "empty_answer"];

/// The duration that a text says, or why it says none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration\n{DURATIONS}");
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let (number, after) = number(rest).ok_or_else(bad)?;
        let letters = after.len() - after.trim_start_matches(|letter: char| !letter.is_ascii_digit()).len();
        let (unit, after) = after.split_at_checked(letters).ok_or_else(bad)?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        // `1h30m`, not `30m1h` or `1s1s`: what looks like a slip is one.
        if unit >= last_unit {
            return Err(bad());
        }
        last_unit = unit;
        let part = number.checked_mul(unit).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).filter(|sum| *sum <= LONGEST).ok_or_else(|| {
            format!("`{text}` is longer than a year\nwrite at most `8760h`; where a limit is optional, leave it out for none")
        })?;
        rest = after;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// The size that a text says, or why it says none.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    let bad = || format!("`{text}` is not a size\n{SIZES}");
    let (number, unit) = number(text).ok_or_else(bad)?;
    let unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).map(Bytes).ok_or_else(|| format!("`{text}` is more than can be counted\n{SIZES}"))
}

/// The share that a text says, or why it says none.
pub fn ratio(text: &str) -> Result<Ratio, String> {
    let bad = || format!("`{text}` is not a share\n{SHARES}");
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    // `f64` would also take `inf`, `nan` and `1e-3`.
    if !number.chars().all(|letter| letter.is_ascii_digit() || letter == '.') {
        return Err(bad());
    }
    let number: f64 = number.parse().map_err(|_| bad())?;
    share(number / scale).ok_or_else(|| format!("`{text}` is more than the whole\n{SHARES}"))
}

fn retry_on(text: &str) -> Result<RetryOn, String> {
    let status = || text.parse().ok().filter(|status| *status == 429 || (500..600).contains(status));
    let word = match text {
        "first_byte_timeout" => Some(RetryOn::FirstByteTimeout),
        "connection_died" => Some(RetryOn::ConnectionDied),
        "empty_answer" => Some(RetryOn::EmptyAnswer),
        _ => status().map(RetryOn::Status),
    };
    word.ok_or_else(|| {
        let remedy =
            suggestion(text, &RETRY_WORDS, "a pod's status from 500 to 599 or 429 may stand here, and the words");
        format!("`{text}` is nothing to try again on\n{remedy}")
    })
}

fn share(number: f64) -> Option<Ratio> {
    (0.0..=1.0).contains(&number).then_some(Ratio(number))
}

fn weight(number: f64) -> Result<Weight, String> {
    let whole = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and within u32 by the filter")]
    let weight = whole.then_some(Weight(number as u32));
    weight.ok_or_else(|| format!("the weight {number} is not a whole number, 0 or more\n{WEIGHTS}"))
}

/// The whole number that a text begins with, and the rest.
fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (digits, rest) = text.split_at_checked(digits)?;
    Some((digits.parse().ok()?, rest))
}

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(out, "{}{unit}", self.0 / size),
            None => write!(out, "{}B", self.0),
        }
    }
}

/// Reads a value that is text with a unit; `bare` says what to do with a bare number.
struct Written<T> {
    parse: fn(&str) -> Result<T, String>,
    bare: fn(f64) -> Result<T, String>,
    what: &'static str,
}

impl<T> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text.trim()).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.bare)(number as f64).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        (self.bare)(number as f64).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        (self.bare)(number).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: |text| duration(text).map(Span),
            bare: |number| Err(format!("the duration `{number}` has no unit\n{DURATIONS}")),
            what: "a duration such as `250ms`, `5s`, `2m` or `1h`",
        })
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: bytes,
            bare: |number| Err(format!("the size `{number}` has no unit\n{SIZES}")),
            what: "a size such as `64KiB`, `32MiB` or `500MB`",
        })
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: ratio,
            bare: |number| share(number).ok_or_else(|| format!("`{number}` is not between 0 and 1\n{SHARES}")),
            what: "a percentage such as `20%`, or a number from 0 to 1",
        })
    }
}

impl<'de> Deserialize<'de> for AddressText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: |text| Ok(AddressText(text.to_owned())),
            bare: |number| Ok(AddressText(number.to_string())),
            what: "an IP address and a port, such as `0.0.0.0:8081` or, in quotes, `\"[::]:8081\"`",
        })
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: |text| Err(format!("the text `{text}` does not fit here\n{WEIGHTS}")),
            bare: weight,
            what: "a whole number, such as 90",
        })
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written {
            parse: retry_on,
            bare: |number| retry_on(&number.to_string()),
            what: "one of `first_byte_timeout`, `connection_died`, `empty_answer`, or a status such as 500",
        })
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pattern = "^(?=.)([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
        json_schema!({ "type": "string", "pattern": pattern, "examples": ["250ms", "5s", "2m", "1h30m"] })
    }
}

impl JsonSchema for RetryOn {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "enum": RETRY_WORDS },
            { "type": ["integer", "string"], "minimum": 429, "maximum": 599, "pattern": "^(429|5[0-9]{2})$", "examples": [500] },
        ] })
    }
}

impl JsonSchema for Bytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB|kB|KB|MB|GB)$", "examples": ["64KiB", "32MiB", "1GiB", "500MB"] })
    }
}

impl JsonSchema for Ratio {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?%$" },
                { "type": "number", "minimum": 0, "maximum": 1 },
            ],
            "examples": ["20%", 0.2],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_in_every_unit_and_together() {
        for (text, millis) in
            [("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("24h", 86_400_000), ("1h30m", 5_400_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn durations_that_say_nothing_sure_are_refused_with_the_units() {
        for text in ["", "5", "s", "1.5s", "5 s", "-5s", "5sec", "1s1s", "30m1h", "99999999999999999999s", "５s", "5S"]
        {
            let why = duration(text).unwrap_err();
            assert!(why.contains("`ms`, `s`, `m` or `h`"), "{text}: {why}");
        }
        assert!(duration("8761h").unwrap_err().contains("longer than a year"));
        assert!(duration("18446744073709551615h").unwrap_err().contains("longer than a year"));
    }

    #[test]
    fn sizes_in_every_unit() {
        for (text, size) in [
            ("64KiB", 65_536),
            ("32MiB", 33_554_432),
            ("1GiB", 1 << 30),
            ("500MB", 500_000_000),
            ("7B", 7),
            ("1KB", 1_000),
        ] {
            assert_eq!(bytes(text), Ok(Bytes(size)), "{text}");
        }
        for text in ["", "32", "32M", "32mib", "1.5GiB", "-1B", "99999999999GiB"] {
            assert!(bytes(text).unwrap_err().contains("`KiB`"), "{text}");
        }
    }

    #[test]
    fn shares_as_percentage_and_as_number() {
        for (text, share) in [("20%", 0.2), ("0.2", 0.2), ("100%", 1.0), ("0%", 0.0), ("2.5%", 0.025)] {
            assert_eq!(ratio(text), Ok(Ratio(share)), "{text}");
        }
        for text in ["", "%", "120%", "2", "-1%", "nan", "inf", "1e-3", "20 %"] {
            assert!(ratio(text).unwrap_err().contains("`20%`"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back(hours in 0_u64..8_000, minutes in 0_u64..60, seconds in 0_u64..60, millis in 0_u64..1_000) {
            let text = format!("{hours}h{minutes}m{seconds}s{millis}ms");
            let expected = ((hours * 60 + minutes) * 60 + seconds) * 1_000 + millis;
            prop_assert_eq!(duration(&text), Ok(Duration::from_millis(expected)));
        }

        #[test]
        fn a_shown_size_reads_back(size: u64) {
            prop_assert_eq!(bytes(&Bytes(size).to_string()), Ok(Bytes(size)));
        }

        #[test]
        fn a_percentage_reads_back(percent in 0_u32..=100) {
            prop_assert_eq!(ratio(&format!("{percent}%")), Ok(Ratio(f64::from(percent) / 100.0)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}|[0-9]{0,25}[a-zA-Z%.]{0,4}") {
            for why in [duration(&text).err(), bytes(&text).err(), ratio(&text).err()].into_iter().flatten() {
                prop_assert_eq!(why.split('\n').count(), 2);
            }
        }
    }
}
