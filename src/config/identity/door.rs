//! What is asked of who comes in at a listener, and the rule that nobody opens a door to strangers by accident.
//!
//! Open relays to GPUs are scanned for and found within hours, so that a listener that other machines can reach either
//! knows who comes or says in so many words that it does not want to.

use super::Identity;
use crate::config::{
    Listener,
    check::Sheet,
    file::File,
    listener::{ListenerFile, ProtocolFile},
};

/// What becomes of what clients show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody looks at keys, tokens and certificates.
    Ignored,
    /// What is shown is judged; nothing need be.
    Judged,
    /// Who shows none is not let in.
    Required,
}

/// What a listener asks.
pub(in crate::config) fn credentials(listener: &ListenerFile, identity: &Identity, sheet: &mut Sheet) -> Credentials {
    let ext_proc = listener.protocol.as_ref().is_some_and(|protocol| protocol.value == ProtocolFile::ExtProc);
    let given = listener.identity.as_ref().map(|at| at.place).or(listener.allow_anonymous.as_ref().map(|at| at.place));
    if let Some(place) = given.filter(|_| ext_proc) {
        let remedy = "take it out: Envoy is asked by nobody here, and lets its own clients in";
        sheet.error(place, "a listener with `protocol: ext-proc` does not ask who its peer is", remedy);
    }
    if let Some(at) = listener.identity.as_ref().filter(|at| at.value && !identity.knows_anybody() && !ext_proc) {
        let remedy = "add `identity: { keys: { file: keys.yaml } }`, and a key with `tidegate keys new`";
        sheet.error(at.place, "there is nothing by which anybody could be known", remedy);
    }
    let looks = listener.identity.as_ref().map_or(identity.knows_anybody(), |at| at.value);
    let anybody = listener.allow_anonymous.as_ref().is_some_and(|at| at.value);
    match (looks && !ext_proc, anybody) {
        (false, _) => Credentials::Ignored,
        (true, true) => Credentials::Judged,
        (true, false) => Credentials::Required,
    }
}

/// Says which listeners let other machines' strangers in without a word that they shall, and which pools would be shown
/// clients' keys.
pub(in crate::config) fn unguarded(file: &File, listeners: &[Listener], identity: &Identity, sheet: &mut Sheet) {
    for listener in listeners {
        let Some(typed) = file.listeners.value.iter().find(|it| *it.name.value == *listener.name) else { continue };
        let said = typed.allow_anonymous.as_ref().is_some_and(|at| at.value);
        let exempt = listener.ext_proc.is_some() || listener.address.ip().is_loopback() || said;
        // Where `identity` has a slip in it, that is told, and likely all there is to mend.
        let asks = listener.credentials != Credentials::Ignored || !sheet.identity_known;
        if exempt || asks {
            continue;
        }
        let switched_off = typed.identity.as_ref().is_some_and(|at| !at.value) && identity.knows_anybody();
        let asked_for_certificates = listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some());
        let first = if switched_off {
            "take out `identity: false`"
        } else if asked_for_certificates {
            "add `identity: { certificates: { from: uri } }`, by which clients are who their certificates say"
        } else {
            "add `identity: { keys: { file: keys.yaml } }` (make a key with `tidegate keys new`)"
        };
        let remedy = format!(
            "{first}, listen on `127.0.0.1:{}`, or write `allow_anonymous: true` here if something else keeps strangers out",
            listener.address.port()
        );
        let message = format!("listener `{}` is open to other machines and asks nobody who they are", listener.name);
        sheet.error(typed.address.place, message, remedy);
    }
    let keeps = |listener: &Listener| listener.ext_proc.is_some() || listener.credentials != Credentials::Ignored;
    if !identity.reads_headers() || !listeners.iter().all(keeps) {
        return;
    }
    for at in file.pools.value.iter().filter_map(|pool| pool.forward_authorization.as_ref()).filter(|at| at.value) {
        let message = "clients show Tidegate's own keys, which no pod gets to see";
        sheet.error(at.place, message, "take it out, and give pods their own with `token_file`");
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    fn told(listener: &str, rest: &str) -> Vec<String> {
        let text = format!(
            "listeners: [{{ name: main, {listener} }}]\n\
             pools: [{{ name: p, endpoints: [{{ url: \"http://10.0.0.1:8000\" }}], forward_authorization: {} }}]\n{rest}\n",
            rest.contains("#forward"),
        );
        let problems = match load("t", &text) {
            Ok((_, warnings)) => warnings,
            Err(report) => report.problems,
        };
        problems.iter().map(|it| format!("{}:{}", it.place.line, it.message)).collect()
    }

    const KEYS: &str = "identity: { keys: { file: keys.yaml } }";
    const TLS: &str = "tls: { certificates: [{ folder: /t }] }";
    const MUTUAL: &str = "tls: { certificates: [{ folder: /t }], client_certificates: { ca_file: /ca } }";
    const OPEN: &str = "1:listener `main` is open to other machines and asks nobody who they are";

    #[test]
    fn a_listener_that_others_can_reach_knows_who_comes_or_says_that_it_does_not_want_to() {
        for address in ["0.0.0.0:1", "10.0.0.1:1", "\"[::]:1\"", "\"[fd00::1]:1\""] {
            let at = format!("address: {address}");
            assert_eq!(told(&at, ""), [OPEN], "{address}");
            assert_eq!(told(&format!("{at}, identity: false"), KEYS), [OPEN], "{address}");
            for fine in [
                told(&format!("{at}, {TLS}"), KEYS),
                told(&format!("{at}, {MUTUAL}"), "identity: { certificates: { from: uri } }"),
                told(&format!("{at}, allow_anonymous: true"), ""),
                told(&format!("{at}, identity: false, allow_anonymous: true"), KEYS),
                told(&format!("{at}, protocol: ext-proc"), ""),
            ] {
                assert_eq!(fine, [] as [&str; 0], "{address}");
            }
        }
        for address in ["127.0.0.1:1", "127.9.9.9:1", "\"[::1]:1\""] {
            assert_eq!(told(&format!("address: {address}"), ""), [] as [&str; 0], "{address}");
        }
    }

    #[test]
    fn the_remedy_for_an_open_listener_is_the_one_that_fits_what_is_there() {
        let remedy = |listener: &str, rest: &str| {
            let text = format!(
                "listeners: [{{ name: main, address: 0.0.0.0:1, {listener} }}]\n\
                 pools: [{{ name: p, endpoints: [{{ url: \"http://10.0.0.1:8000\" }}] }}]\n{rest}\n"
            );
            let problems = load("t", &text).unwrap_err().problems;
            let open = problems.into_iter().find(|it| it.message.contains("asks nobody"));
            open.map(|it| it.remedy.split(", listen on").next().unwrap().to_owned())
        };
        let keys = "add `identity: { keys: { file: keys.yaml } }` (make a key with `tidegate keys new`)";
        assert_eq!(remedy("", "").as_deref(), Some(keys));
        assert_eq!(remedy("identity: false", KEYS).as_deref(), Some("take out `identity: false`"));
        assert!(remedy(MUTUAL, "").unwrap().starts_with("add `identity: { certificates: { from: uri } }`"));
        for slip in [
            "identity: { keys: keys.yaml }",
            "identity: { jwt: [{ issuer: \"https://a\" }] }",
            "identity: { keyz: { file: keys.yaml } }",
            "identity: { something: 1 }",
            "identitty: { keys: { file: keys.yaml, x: 1 } }",
        ] {
            assert_eq!(remedy("", slip), None, "what is wrong there is told, and nothing that is not so: {slip}");
        }
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        let here = "address: 127.0.0.1:1";
        let nothing = "1:there is nothing by which anybody could be known";
        assert_eq!(told(&format!("{here}, identity: true"), ""), [nothing]);
        let envoy = "1:a listener with `protocol: ext-proc` does not ask who its peer is";
        assert_eq!(told(&format!("{here}, protocol: ext-proc, identity: true"), KEYS), [envoy]);
        assert_eq!(told(&format!("{here}, protocol: ext-proc, allow_anonymous: true"), ""), [envoy]);
        let shown = "2:clients show Tidegate's own keys, which no pod gets to see";
        assert_eq!(told(here, &format!("{KEYS} #forward")), [shown]);
        for fine in [told(&format!("{here}, identity: false"), &format!("{KEYS} #forward")), told(here, "#forward")] {
            assert_eq!(fine, [] as [&str; 0]);
        }
    }

    #[test]
    fn an_issuer_says_for_whom_it_signs_and_where_its_keys_are() {
        let issuer = |more: &str| {
            told("address: 127.0.0.1:1", &format!("identity: {{ jwt: [{{ issuer: \"https://a\", {more} }}] }}"))
        };
        assert_eq!(issuer("audiences: [t]"), [] as [&str; 0]);
        for (more, said) in [
            ("audiences: []", "there is no audience"),
            ("audiences: [t], algorithms: []", "there is no algorithm"),
            ("audiences: [t], leeway: 6m", "a clock so far off is broken"),
            ("audiences: [t], refresh: 1s", "keys would be fetched too often"),
            (
                "audiences: [t], jwks_url: \"https://a/k\", jwks_file: k",
                "`jwks_url` and `jwks_file` both say where the keys are",
            ),
            (
                "audiences: [t], jwks_url: \"http://a/k\"",
                "keys that come over plain HTTP can be changed on the way, and with them who is let in",
            ),
            ("audiences: [t], jwks_url: a", "`a` has no scheme"),
        ] {
            assert_eq!(issuer(more), [format!("3:{said}")], "{more}");
        }
        for algorithm in ["HS256", "none"] {
            assert!(
                issuer(&format!("audiences: [t], algorithms: [{algorithm}]")).concat().contains("is not known here")
            );
        }
        assert_eq!(issuer("audiences: [t], jwks_url: \"http://127.0.0.1:1/k\""), [] as [&str; 0]);
    }
}
