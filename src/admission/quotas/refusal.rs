//! Whose limit, which, how large, and when there is room again: what a refusal knows, and what an answer tells of the room
//! that is left.

use std::{fmt, sync::Arc, time::Duration};

use crate::config::Money;

/// Whose requests count together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's.
    All,
    /// Those for a model, by the name that clients use.
    Model(Arc<str>),
    /// A tenant's.
    Tenant(Arc<str>),
    /// A key's, by its public id.
    Key(Arc<str>),
    /// Those of all who came when as many were counted as can be.
    Overflow,
}

impl Scope {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Model(_) => "model",
            Self::Tenant(_) => "tenant",
            Self::Key(_) => "key",
            Self::Overflow => "overflow",
        }
    }

    /// Its name; empty where the kind says all.
    pub fn name(&self) -> &str {
        match self {
            Self::Model(name) | Self::Tenant(name) | Self::Key(name) => name,
            Self::All | Self::Overflow => "",
        }
    }

    /// The scope that says so of itself.
    pub fn of(kind: &str, name: &str) -> Option<Self> {
        Some(match kind {
            "all" => Self::All,
            "model" => Self::Model(name.into()),
            "tenant" => Self::Tenant(name.into()),
            "key" => Self::Key(name.into()),
            "overflow" => Self::Overflow,
            _ => return None,
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => out.write_str("all callers together"),
            Self::Overflow => out.write_str("callers beyond those that can be counted"),
            named => write!(out, "{} '{}'", named.kind(), named.name()),
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Requests a minute.
    Requests,
    /// Tokens a minute, of prompts and answers.
    Tokens,
    /// Tokens of prompts a minute.
    InputTokens,
    /// Tokens of answers a minute.
    OutputTokens,
    /// Requests at once.
    Concurrent,
    /// Money in a day.
    Day,
    /// Money in a month.
    Month,
}

impl Limit {
    /// All, in the order in which they are asked.
    pub const EACH: [Self; 7] =
        [Self::Requests, Self::Tokens, Self::InputTokens, Self::OutputTokens, Self::Concurrent, Self::Day, Self::Month];

    /// Its key in the configuration, which is its word everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_minute",
            Self::Tokens => "tokens_per_minute",
            Self::InputTokens => "input_tokens_per_minute",
            Self::OutputTokens => "output_tokens_per_minute",
            Self::Concurrent => "concurrent_requests",
            Self::Day => "budget_per_day",
            Self::Month => "budget_per_month",
        }
    }

    /// Whether it is about money.
    pub fn is_budget(self) -> bool {
        matches!(self, Self::Day | Self::Month)
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Requests => "requests per minute",
            Self::Tokens => "tokens per minute",
            Self::InputTokens => "input tokens per minute",
            Self::OutputTokens => "output tokens per minute",
            Self::Concurrent => "requests at once",
            Self::Day => "per day",
            Self::Month => "per month",
        }
    }
}

/// Why a request was refused for a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Whose.
    pub scope: Scope,
    /// Which.
    pub limit: Limit,
    /// How large it is; money in billionths.
    pub size: u64,
    /// What can be done about it.
    pub relief: Relief,
    /// What else is left.
    pub standing: Standing,
}

/// When a request that was refused could be taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Relief {
    /// After so long, if nobody else comes.
    After(Duration),
    /// When one of those that are open ends.
    WhenOneEnds,
    /// When the next day or month begins: at this time since 1970, so long from now.
    Anew {
        /// When.
        at: Duration,
        /// How long from now.
        wait: Duration,
    },
    /// Never: it is larger than the limit, by so much in all.
    Never {
        /// What it needs.
        needs: u64,
    },
    /// When the counts that several gateways share can be read again.
    WhenKnown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, limit, size, relief, .. } = self;
        if let Relief::WhenKnown = relief {
            return write!(out, "the limits of {scope} cannot be checked at the moment; try again shortly");
        }
        let size = if limit.is_budget() { Money(*size).to_string() } else { size.to_string() };
        let unit = limit.unit();
        match relief {
            Relief::Never { needs } if limit.is_budget() => {
                write!(out, "the budget of {scope} is {size} {unit}, and this request alone may cost {}", Money(*needs))
            }
            Relief::Never { needs } => write!(
                out,
                "this request needs {needs} of the {size} {unit} that {scope} may use; it can never be taken as it is"
            ),
            Relief::After(wait) => {
                write!(out, "{scope} may use {size} {unit}, and they are used up; try again in {}", in_words(*wait))
            }
            Relief::WhenOneEnds => {
                write!(out, "{scope} may have {size} {unit}, and all are open; try again when one has ended")
            }
            Relief::Anew { at, wait } => write!(
                out,
                "the budget of {scope} ({size} {unit}) is used up; it begins anew at {}, in {}",
                super::rfc3339(*at),
                in_words(*wait)
            ),
            Relief::WhenKnown => Ok(()),
        }
    }
}

/// A pause as a person says it, never shorter than it is.
fn in_words(pause: Duration) -> String {
    let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// The room that is left under the rates that hold for a request: of each kind, the tightest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// Requests.
    pub requests: Option<Room>,
    /// Tokens of prompts and answers.
    pub tokens: Option<Room>,
    /// Tokens of prompts.
    pub input_tokens: Option<Room>,
    /// Tokens of answers.
    pub output_tokens: Option<Room>,
}

/// The room under one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// How large it is.
    pub limit: u64,
    /// What is left.
    pub remaining: u64,
    /// When all of it is there again, if nobody comes.
    pub reset: Duration,
}

impl Standing {
    /// Notes the room under `limit`, if it is the tightest of its kind so far.
    pub fn note(&mut self, limit: Limit, room: Room) {
        let kept = match limit {
            Limit::Requests => &mut self.requests,
            Limit::Tokens => &mut self.tokens,
            Limit::InputTokens => &mut self.input_tokens,
            Limit::OutputTokens => &mut self.output_tokens,
            Limit::Concurrent | Limit::Day | Limit::Month => return,
        };
        if kept.is_none_or(|kept| room.remaining < kept.remaining) {
            *kept = Some(room);
        }
    }
}

impl Room {
    /// Under `limit` with so much used.
    pub fn of(limit: u64, level: f64, reset: Duration) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let used = level.ceil() as u64;
        Self { limit, remaining: limit.saturating_sub(used), reset }
    }
}
