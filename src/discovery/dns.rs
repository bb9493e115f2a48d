//! Pods behind a host name: every address it resolves to, A and AAAA, is a pod (a headless Service, a round-robin
//! record).
//!
//! With https the name stays one pod: its certificate is for the name, not for the addresses behind it, and a target
//! has no room for both.
//!
//! The system's resolver does not tell a name without addresses from a server that does not answer: both keep the last
//! addresses. A pod that is really gone is out of use all the same, because its scrapes are refused.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::RngExt as _;

use super::sources::Slot;
use crate::{
    clock,
    config::{Origin, Target},
};

/// How often the name is asked again: the TTL of Kubernetes' records.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Every wait is drawn this much shorter or longer.
const JITTER: f64 = 0.1;

/// How long a name that had addresses may have none before its pods go: a rollout passes through such moments.
const EMPTY_GRACE: Duration = Duration::from_secs(30);

/// Follows the name for ever.
pub(super) async fn watch(target: Target, slot: Slot) {
    if target.origin.https {
        slot.publish(vec![target]);
        return;
    }
    let mut answers = Answers::default();
    let mut failing = false;
    loop {
        let found = resolve(&target.origin).await;
        match &found {
            Err(error) if !failing => {
                tracing::warn!(host = target.origin.host, %error, "name not resolved, its last addresses stay");
            }
            _ => {}
        }
        failing = found.is_err();
        if let Some(addresses) = answers.note(found.ok(), clock::now()) {
            slot.publish(addresses.iter().map(|address| at(&target, *address)).collect());
        }
        let wait = ASK_EVERY.mul_f64(clock::rng().random_range(1.0 - JITTER..=1.0 + JITTER));
        tokio::time::sleep(wait).await;
    }
}

async fn resolve(origin: &Origin) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await?;
    let mut addresses: Vec<IpAddr> = found.map(|socket| socket.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn at(target: &Target, address: IpAddr) -> Target {
    let mut target = target.clone();
    target.origin.host = address.to_string();
    target
}

/// What the name last resolved to.
#[derive(Default)]
struct Answers {
    last: Option<Vec<IpAddr>>,
    empty_since: Option<Instant>,
}

impl Answers {
    /// Takes an answer (`None`: the question failed) and gives the new addresses if they are to be used.
    fn note(&mut self, answer: Option<Vec<IpAddr>>, now: Instant) -> Option<&[IpAddr]> {
        let answer = answer?;
        if answer.is_empty() {
            let since = *self.empty_since.get_or_insert(now);
            if now.saturating_duration_since(since) < EMPTY_GRACE {
                return None;
            }
        } else {
            self.empty_since = None;
        }
        if self.last.as_ref() == Some(&answer) {
            return None;
        }
        self.last = Some(answer);
        self.last.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
    }

    #[test]
    fn only_another_answer_is_news_and_a_failure_never() {
        let now = clock::now();
        let mut answers = Answers::default();
        assert_eq!(answers.note(None, now), None);
        assert_eq!(answers.note(Some(addresses(&[1, 2])), now), Some(&*addresses(&[1, 2])));
        assert_eq!(answers.note(Some(addresses(&[1, 2])), now), None);
        assert_eq!(answers.note(None, now), None);
        assert_eq!(answers.note(Some(addresses(&[2])), now), Some(&*addresses(&[2])));
    }

    #[test]
    fn a_name_without_addresses_keeps_its_pods_for_a_while() {
        let now = clock::now();
        let mut answers = Answers::default();
        answers.note(Some(addresses(&[1])), now);
        assert_eq!(answers.note(Some(vec![]), now), None);
        assert_eq!(answers.note(Some(vec![]), now + EMPTY_GRACE / 2), None);
        answers.note(Some(addresses(&[1])), now + EMPTY_GRACE / 2);
        assert_eq!(answers.note(Some(vec![]), now + EMPTY_GRACE), None, "it begins anew");
        assert_eq!(answers.note(Some(vec![]), now + EMPTY_GRACE * 2), Some(&[] as &[IpAddr]));
    }

    #[test]
    fn an_address_takes_the_place_of_the_name() {
        let target = Target {
            origin: Origin { https: false, host: "pods.example".into(), port: 8000 },
            base_path: "/app".into(),
            token_file: None,
            metrics_url: None,
        };
        let six = at(&target, "2001:db8::1".parse().unwrap());
        assert_eq!(six.origin.authority(), "[2001:db8::1]:8000");
        assert_eq!(six.base_path, "/app");
    }

    #[tokio::test]
    async fn localhost_resolves_to_itself() {
        let origin = Origin { https: false, host: "localhost".into(), port: 8000 };
        let found = resolve(&origin).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
