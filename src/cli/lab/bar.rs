//! How far the runs are: one line on standard error, redrawn in place, gone when the work is done. Where standard error
//! is no terminal there is none.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{clock, lab::Watch};

/// Ten times a second is smooth, and little to write.
const REDRAW: Duration = Duration::from_millis(100);

/// Cells of the bar itself.
const CELLS: usize = 24;

/// The line.
#[derive(Debug)]
pub(super) struct Bar {
    live: bool,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    done: usize,
    expected: usize,
    drawn: Option<Instant>,
    finished: bool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { live: io::stderr().is_terminal() && !dumb, began: clock::now(), state: Mutex::default() }
    }

    /// Takes the line away for good: runs that still go on are not shown any more.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.live && state.drawn.is_some() && !state.finished {
            write("\r\x1b[K");
        }
        state.finished = true;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let now = clock::now();
        let due = state.drawn.is_none_or(|drawn| now.saturating_duration_since(drawn) >= REDRAW);
        if self.live && due && !state.finished {
            state.drawn = Some(now);
            // Back to the first column at the end, so that whatever is written next covers it.
            write(&format!("\r{}\x1b[K", line(*state, now.saturating_duration_since(self.began))));
        }
    }
}

impl Watch for Bar {
    fn expect(&self, runs: usize) {
        self.change(|state| state.expected += runs);
    }

    fn done(&self) {
        self.change(|state| state.done += 1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `[=====>    ] 30/120 runs, about 45 s left`.
fn line(state: State, spent: Duration) -> String {
    let all = state.expected.max(state.done).max(1);
    let filled = CELLS * state.done / all;
    let bar = format!("{}{}", "=".repeat(filled), " ".repeat(CELLS - filled));
    let left = match state.done {
        0 => String::new(),
        done => {
            let seconds = spent.as_secs_f64() * (all - done) as f64 / done as f64;
            if seconds < 100.0 {
                format!(", about {seconds:.0} s left")
            } else {
                format!(", about {:.0} min left", seconds / 60.0)
            }
        }
    };
    format!("[{bar}] {}/{all} runs{left}", state.done)
}

/// A terminal that has gone needs no bar.
fn write(text: &str) {
    let mut err = io::stderr().lock();
    err.write_all(text.as_bytes()).and_then(|()| err.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_many_and_how_long() {
        let state = |done, expected| State { done, expected, ..State::default() };
        assert_eq!(line(state(0, 120), Duration::ZERO), format!("[{}] 0/120 runs", " ".repeat(24)));
        let some = line(state(30, 120), Duration::from_secs(15));
        assert_eq!(some, format!("[{}{}] 30/120 runs, about 45 s left", "=".repeat(6), " ".repeat(18)));
        assert!(line(state(1, 120), Duration::from_secs(60)).ends_with("1/120 runs, about 119 min left"));
        assert!(line(state(3, 2), Duration::ZERO).contains("3/3 runs"), "more than expected is not more than all");
    }
}
