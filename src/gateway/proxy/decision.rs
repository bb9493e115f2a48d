//! The decision in one header of the answer: policy, sight, what it was chosen at and out of how many.

use std::fmt::Write as _;

use crate::scheduler::Verdict;

/// What the header says of `verdict`.
pub(super) fn header(verdict: &Verdict) -> String {
    /// The nine terms of a cost, with their names.
    const USUAL: usize = 192;
    let price = &verdict.price;
    let mut text = String::with_capacity(USUAL);
    // Writing to a String cannot fail.
    write!(text, "policy={}; sight={}; of={}", verdict.policy, verdict.sight.name(), verdict.considered).ok();
    let mut say = |name: &str, value: f64| {
        text.extend(["; ", name, "="]);
        tenths(&mut text, value);
    };
    say(price.unit(), price.total());
    for term in price.terms() {
        say(&term.name, term.value);
    }
    text
}

/// `value` with one digit behind the point. Ten of them are written for an answer, and most are small: the formatter
/// takes three hundred instructions for each.
fn tenths(text: &mut String, value: f64) {
    let tenths = value * 10.0;
    // In the middle between two, or close to it, the formatter knows better to which side it falls.
    let is_clear = (tenths.fract() - 0.5).abs() > 1e-6;
    if !is_clear || value.is_sign_negative() || !(0.0..999_999.0).contains(&tenths) {
        write!(text, "{value:.1}").ok();
        return;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within its bounds, as just seen")]
    let (mut rest, mut from) = (tenths.round() as u32, 0);
    let mut shown = *b"00000.0";
    for (at, place) in shown.iter_mut().enumerate().rev().filter(|(_, place)| **place != b'.') {
        *place += u8::try_from(rest % 10).unwrap_or_default();
        (rest, from) = (rest / 10, at);
        if rest == 0 && at < 5 {
            break;
        }
    }
    text.push_str(shown.get(from..).and_then(|shown| str::from_utf8(shown).ok()).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_are_written_as_the_formatter_writes_them() {
        let halves = (0..4_000).map(|eighths| f64::from(eighths) / 8.0);
        let fine = (0..40_000).map(|step| f64::from(step) * 0.035);
        for value in halves.chain(fine).chain([-0.0, -3.25, 99_999.94, 99_999.95, 1e5, 1e9, f64::NAN, f64::INFINITY]) {
            let mut text = String::new();
            tenths(&mut text, value);
            assert_eq!(text, format!("{value:.1}"));
        }
    }
}
