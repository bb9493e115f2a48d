//! Requests whose answers nobody shows us: each keeps its place on its pod for as long as, by what the pod has shown, it
//! should take. Then the place is given up, and what the pod says of itself is all that counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    gateway::decide::{Matter, Pick},
    tasks::Tasks,
};

/// As many are followed at once as clients may be connected; each costs a timer and a few hundred bytes. Who comes when
/// that many are on their way is in the pods' own numbers soon.
const MOST: usize = 65_536;

/// The longest that one is: as long as the longest wait for a first byte.
const LONGEST: Duration = Duration::from_secs(600);

/// Where such requests are followed.
#[derive(Clone)]
pub(super) struct Following {
    tasks: Tasks,
    many: Arc<AtomicUsize>,
}

/// One that is followed.
struct Followed(Arc<AtomicUsize>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Following {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, many: Arc::default() }
    }

    /// One more, if not too many are followed.
    fn one_more(&self) -> Option<Followed> {
        let before = self.many.fetch_add(1, Relaxed);
        let followed = Followed(Arc::clone(&self.many));
        (before < MOST).then_some(followed)
    }

    /// Keeps the place of `pick` for as long as `matter` should take.
    pub(super) fn follow(&self, mut pick: Pick, matter: &Matter) {
        let Some(followed) = self.one_more() else { return };
        let first = pick.course.first_token_due().min(LONGEST);
        let rest = matter.generation_due(&pick.verdict.pod).min(LONGEST);
        self.tasks.spawn_until_stop(async move {
            sleep(first).await;
            pick.first_token();
            sleep(rest).await;
            drop((pick, followed));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_cut_short_by_a_stop_is_counted_down_as_well() {
        let tasks = Tasks::new();
        let following = Following::new(tasks.clone());
        let followed = following.one_more().unwrap();
        assert_eq!(following.many.load(Relaxed), 1);
        tasks.spawn_until_stop(async move {
            sleep(LONGEST).await;
            drop(followed);
        });
        tasks.stop();
        tasks.wait().await;
        assert_eq!(following.many.load(Relaxed), 0);
    }

    #[test]
    fn who_comes_when_many_are_followed_is_not_and_is_not_counted_either() {
        let following = Following::new(Tasks::new());
        following.many.store(MOST - 1, Relaxed);
        let last = following.one_more();
        assert!(last.is_some() && following.one_more().is_none());
        assert_eq!(following.many.load(Relaxed), MOST);
    }
}
