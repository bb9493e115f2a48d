//! How many files may be open: as many as the system grants, because a request takes two.
//!
//! Services begin with a soft limit of 1,024 for the sake of programs that use `select`; whoever does not is expected to
//! raise it to the hard limit himself, as nginx and Go's runtime do. The hard limit is the operator's to raise, and is
//! left alone.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// A client's connection and its pod's.
const FILES_A_CONNECTION: u64 = 2;

/// What is open besides: 256 connections to each of the operator's two doors, and some hundred pods that are read.
const FILES_BESIDES: u64 = 1_024;

/// Files that may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// By the limit in force; `None`: any number.
    pub limit: Option<u64>,
    /// That `limits.connections` may need.
    pub needed: u64,
}

impl OpenFiles {
    /// Raises the soft limit to the hard one; one without a bound, to what `config` may need.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn raise(config: &Config) -> io::Result<Self> {
        let asked = wanted(getrlimit(Resource::Nofile), needed(config));
        if let Some(asked) = asked {
            setrlimit(Resource::Nofile, asked)?;
        }
        Ok(Self::now(config))
    }

    /// As things stand.
    pub fn now(config: &Config) -> Self {
        Self { limit: getrlimit(Resource::Nofile).current, needed: needed(config) }
    }

    /// What an operator can do about it.
    pub fn remedy(self) -> String {
        let raise = format!("raise the limit (LimitNOFILE=, ulimit -Hn) to {}", self.needed);
        match self.limit.map_or(0, |limit| limit.saturating_sub(FILES_BESIDES) / FILES_A_CONNECTION) {
            0 => raise,
            enough => format!("{raise}, or set limits.connections to {enough}"),
        }
    }

    /// Whether the limit is reached before `limits.connections` is.
    pub fn may_run_out(self) -> bool {
        self.limit.is_some_and(|limit| limit < self.needed)
    }
}

fn needed(config: &Config) -> u64 {
    config.limits.connections as u64 * FILES_A_CONNECTION + FILES_BESIDES
}

/// What to ask the system for; `None` if nothing is to be had.
fn wanted(now: Rlimit, needed: u64) -> Option<Rlimit> {
    let current = now.current?;
    // Some systems say that there is no bound, and then refuse what is beyond another.
    let most = now.maximum.unwrap_or(needed);
    (most > current).then_some(Rlimit { current: Some(most), ..now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_and_never_lowered() {
        let limits = |current, maximum| Rlimit { current, maximum };
        for (now, asked) in [
            (limits(Some(1_024), Some(20_000)), Some(20_000)),
            (limits(Some(20_000), Some(20_000)), None),
            (limits(Some(256), None), Some(3_000)),
            (limits(Some(4_000), None), None),
            (limits(None, None), None),
        ] {
            assert_eq!(wanted(now, 3_000).map(|it| (it.current, it.maximum)), asked.map(|it| (Some(it), now.maximum)));
        }
    }

    #[test]
    fn a_limit_below_two_files_a_connection_may_run_out() {
        let files = |limit| OpenFiles { limit, needed: 65_536 * 2 + 1_024 };
        assert!(files(Some(132_095)).may_run_out());
        assert!(!files(Some(132_096)).may_run_out() && !files(None).may_run_out());
        let raise = "raise the limit (LimitNOFILE=, ulimit -Hn) to 132096";
        assert_eq!(files(Some(20_001)).remedy(), format!("{raise}, or set limits.connections to 9488"));
        assert_eq!(files(Some(1_024)).remedy(), raise, "it is too low for a single one");
    }
}
