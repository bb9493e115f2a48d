//! When an operator is told that a pod's page cannot be read, and that it can be again. Pure.
//!
//! A pod that is out was told of by the turn of its condition; this is for those that take requests unseen: a file
//! without a token, a wrong path, pages that never come in time. It tells once, not at each scrape.

use super::report::Failure;
use crate::fleet::{Condition, Pod};

/// Failures in a row before it is worth a line: one or two are a restart, or a page that came late.
const WORTH_TELLING: u32 = 3;

/// How often one pod's page was not read, and whether that was told.
#[derive(Debug, Default)]
pub(super) struct Unread {
    in_a_row: u32,
    told: bool,
}

impl Unread {
    /// Not read, by a pod in this condition; whether to tell now.
    pub(super) fn failed(&mut self, failure: Failure, condition: Condition) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let known = failure == Failure::Refused || condition == Condition::Ejected;
        let tell = self.in_a_row >= WORTH_TELLING && !self.told && !known;
        self.told |= tell;
        tell
    }

    /// Read; whether to tell that it can be again.
    pub(super) fn read(&mut self) -> bool {
        std::mem::take(self).told
    }
}

/// What is wrong with `pod`, and what to look at.
pub(super) fn described(pod: &Pod, failure: Failure) -> String {
    let url = &pod.view.metrics_url;
    match failure {
        Failure::Token => {
            let file = pod.target.token_file.as_deref().unwrap_or_else(|| std::path::Path::new("?"));
            format!("token file {} cannot be read, or holds no token", file.display())
        }
        Failure::Http(status @ (401 | 403)) => format!("{url} answers {status} (see `token_file`)"),
        Failure::Http(status) => {
            format!("{url} answers {status} (is this an engine? see `metrics.path`, `metrics_url`)")
        }
        Failure::Alien => format!("{url} holds no metric of its engine (see `engine`, `metrics.path`, `metrics_url`)"),
        Failure::Timeout => format!("{url} does not answer in time (see `metrics.timeout`)"),
        Failure::Connect => format!("no connection to {url}: its name does not resolve, or TLS does not agree"),
        Failure::TooLarge => format!("{url} is too large (see `metrics.max_page`)"),
        Failure::Refused | Failure::Body => format!("{url}: {failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_after_three_in_a_row_and_once_when_it_is_over() {
        let mut unread = Unread::default();
        let failed = |unread: &mut Unread| unread.failed(Failure::Http(404), Condition::Ready);
        assert!(!failed(&mut unread) && !failed(&mut unread));
        assert!(!unread.read(), "nobody was told");
        let told: Vec<_> = (0..6).map(|_| failed(&mut unread)).collect();
        assert_eq!(told, [false, false, true, false, false, false]);
        assert!(unread.read());
        assert!(!unread.read());
    }

    #[test]
    fn what_the_turn_of_its_condition_told_is_not_told_again() {
        let mut unread = Unread::default();
        assert!(!(0..6).any(|_| unread.failed(Failure::Refused, Condition::Ready)));
        assert!(!(0..6).any(|_| unread.failed(Failure::Timeout, Condition::Ejected)));
        assert!(unread.failed(Failure::Token, Condition::Warming), "it is back and still not seen");
    }

    #[test]
    fn what_to_look_at_is_said() {
        let pod = Pod::for_test("pool", 1);
        let told = "http://10.0.0.1:8000/metrics answers 404 (is this an engine? see `metrics.path`, `metrics_url`)";
        assert_eq!(described(&pod, Failure::Http(404)), told);
    }
}
