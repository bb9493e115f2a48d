//! A request's log line in words, where a person reads along.

use std::{fmt, time::Duration};

use super::receipt::{Outcome, Receipt};

/// The line for a person: what, where to, how it went. Written only where a person reads it.
pub(in crate::gateway) struct Summary<'a> {
    pub(in crate::gateway) receipt: &'a Receipt,
    pub(in crate::gateway) whole: Duration,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { receipt, whole } = self;
        f.write_str(receipt.endpoint)?;
        if let Some(model) = receipt.model() {
            write!(f, " {model}")?;
        }
        if let Some(asked) = &receipt.asked {
            write!(f, " {asked:?}")?;
        }
        // Where it was refused, no pod answered.
        if let Some(chosen) = receipt.chosen.as_ref().filter(|_| receipt.error_code.is_none()) {
            write!(f, " -> {}", chosen.pod)?;
        }
        write!(f, "  {}  {:.0} ms", receipt.code(), whole.as_secs_f64() * 1e3)?;
        if let Some(first) = receipt.first_token {
            let ttft = first.saturating_duration_since(receipt.received);
            write!(f, ", first token {:.0} ms, {} tokens", ttft.as_secs_f64() * 1e3, receipt.tokens)?;
        }
        if receipt.attempts > 1 {
            write!(f, ", {} attempts", receipt.attempts)?;
        }
        let (_, reason) = receipt.ending();
        let reason = reason.unwrap_or_default();
        match &receipt.outcome {
            Outcome::Complete => {}
            Outcome::Open => write!(f, ", the client left ({reason})")?,
            Outcome::Refused(_) => write!(f, ", refused: {reason}")?,
            Outcome::Cut(_) => write!(f, ", CUT: {reason}")?,
            Outcome::BrokeOff => f.write_str(", broke off: the client left or the pod died")?,
        }
        match receipt.chosen.as_ref().filter(|_| receipt.error_code.is_some()) {
            Some(chosen) => write!(f, ", last tried {}", chosen.pod),
            None => Ok(()),
        }
    }
}
