//! What is likely not meant, though it can be: doors that ask for keys in clear, or ask and let in who shows none, and
//! rules about people whom nobody asks for.

use super::{Credentials, Identity};
use crate::config::{
    Listener, Place,
    check::Sheet,
    file::File,
    listener::ListenerFile,
    quotas::{QuotaFile, QuotasFile},
};

/// The tenant of who shows nothing.
const ANONYMOUS: &str = "anonymous";

/// Says of such doors and rules.
pub(in crate::config) fn strange(file: &File, listeners: &[Listener], known: &Identity, sheet: &mut Sheet) {
    for listener in listeners.iter().filter(|it| it.ext_proc.is_none() && !it.address.ip().is_loopback()) {
        if let Some(typed) = file.listeners.value.iter().find(|it| *it.name.value == *listener.name) {
            door(typed, listener, known, sheet);
        }
    }
    let shown = |listener: &Listener| {
        let asked = listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
        asked.is_some() && listener.credentials != Credentials::Ignored
    };
    let certificates = file.identity.as_ref().and_then(|it| it.certificates.as_ref());
    if let Some(at) = certificates.filter(|_| sheet.listeners_known && !listeners.iter().any(shown)) {
        let remedy = "add `client_certificates: { ca_file: ... }` to a listener's `tls`, or take this out";
        sheet.warning(at.place, "no listener asks its clients for a certificate", remedy);
    }
    if let Some(quotas) = file.quotas.as_ref().filter(|_| sheet.identity_known && !known.knows_anybody()) {
        // A gateway in front may say whose a request is.
        let named = !sheet.listeners_known || listeners.iter().any(|it| it.trust_headers || it.ext_proc.is_some());
        unknown(quotas, named, sheet);
    }
}

/// A door that other machines can reach.
fn door(typed: &ListenerFile, listener: &Listener, known: &Identity, sheet: &mut Sheet) {
    if let Some(at) = typed.allow_anonymous.as_ref().filter(|_| listener.credentials == Credentials::Judged) {
        let message = format!("strangers without a key come in at listener `{}`, as `{ANONYMOUS}`", listener.name);
        sheet.warning(at.place, message, "take `allow_anonymous` out, unless they shall");
    }
    let asks = listener.credentials != Credentials::Ignored && known.reads_headers();
    let behind_somebody = listener.tls.is_some() || typed.trusted_proxies.is_some();
    if asks && !behind_somebody {
        let remedy = "add `tls: { certificates: [ { folder: /etc/tidegate/tls } ] }`, or name who speaks TLS for it in \
                      `trusted_proxies`";
        let message = format!("keys travel in clear to listener `{}`", listener.name);
        sheet.warning(typed.address.place, message, remedy);
    }
}

/// Limits of tenants and keys, where nobody is asked who they are.
fn unknown(quotas: &QuotasFile, named: bool, sheet: &mut Sheet) {
    let message = "nobody is asked who they are, so this never counts";
    let remedy = "add `identity: { keys: { file: keys.yaml } }`: a key says whose it is";
    let tenant = quotas.tenants.iter().find(|it| it.name.value != ANONYMOUS).filter(|_| !named);
    if let Some(tenant) = tenant {
        sheet.warning(tenant.name.place, message, remedy);
    }
    if let Some(place) = quotas.each_key.as_ref().and_then(first_place) {
        sheet.warning(place, message, remedy);
    }
}

/// Where the first limit of a quota stands.
fn first_place(quota: &QuotaFile) -> Option<Place> {
    let counts = [
        &quota.requests_per_minute,
        &quota.tokens_per_minute,
        &quota.input_tokens_per_minute,
        &quota.output_tokens_per_minute,
        &quota.concurrent_requests,
    ];
    let money = [&quota.budget_per_day, &quota.budget_per_month].into_iter().flatten().map(|at| at.place);
    counts.into_iter().flatten().map(|at| at.place).chain(money).min_by_key(|place| (place.line, place.column))
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    const KEYS: &str = "identity: { keys: { file: keys.yaml } }";
    const NOBODY: &str = "nobody is asked who they are, so this never counts";
    const CLEAR: &str = "keys travel in clear to listener `main`";

    fn told(listener: &str, rest: &str) -> Vec<String> {
        let text = format!(
            "listeners: [{{ name: main, {listener} }}]\n\
             pools: [{{ name: p, endpoints: [{{ url: \"http://10.0.0.1:8000\" }}] }}]\n{rest}\n"
        );
        let (_, warnings) = load("t", &text).unwrap_or_else(|report| panic!("{report}"));
        warnings.into_iter().map(|it| it.message).collect()
    }

    #[test]
    fn a_door_that_asks_and_lets_strangers_in_is_told_of() {
        let tls = "tls: { certificates: [{ folder: /t }] }";
        let strangers = "strangers without a key come in at listener `main`, as `anonymous`";
        assert_eq!(told(&format!("address: 0.0.0.0:1, {tls}, allow_anonymous: true"), KEYS), [strangers]);
        assert_eq!(told("address: 127.0.0.1:1, allow_anonymous: true", KEYS), [] as [&str; 0]);
        assert_eq!(told("address: 0.0.0.0:1, allow_anonymous: true", ""), [] as [&str; 0], "nobody is asked at all");
    }

    #[test]
    fn keys_that_travel_in_clear_are_told_of_unless_somebody_in_front_speaks_tls() {
        let jwt = "identity: { jwt: [{ issuer: \"https://a\", audiences: [t] }] }";
        for known in [KEYS, jwt] {
            assert_eq!(told("address: 0.0.0.0:1", known), [CLEAR], "{known}");
            assert_eq!(told("address: 127.0.0.1:1", known), [] as [&str; 0]);
            for fine in ["tls: { certificates: [{ folder: /t }] }", "trusted_proxies: [10.0.0.0/8]"] {
                assert_eq!(told(&format!("address: 0.0.0.0:1, {fine}"), known), [] as [&str; 0], "{fine}");
            }
        }
    }

    #[test]
    fn certificates_that_nobody_asks_for_are_told_of() {
        let certificates = "identity: { certificates: { from: uri } }";
        let asked = "tls: { certificates: [{ folder: /t }], client_certificates: { ca_file: /ca } }";
        let nobody = "no listener asks its clients for a certificate";
        assert_eq!(told("address: 0.0.0.0:1", certificates), [nobody]);
        assert_eq!(told(&format!("address: 0.0.0.0:1, {asked}"), certificates), [] as [&str; 0]);
        let off = format!("address: 127.0.0.1:1, identity: false, {asked}");
        assert_eq!(told(&off, certificates), [nobody]);
    }

    #[test]
    fn limits_of_tenants_and_keys_are_told_of_where_nobody_is_asked_who_they_are() {
        let here = "address: 127.0.0.1:1";
        let quota = "{ requests_per_minute: 9 }";
        let tenants = format!("quotas: {{ tenants: [{{ name: shop, limits: {quota} }}] }}");
        let each_key = format!("quotas: {{ each_key: {quota} }}");
        assert_eq!(told(here, &tenants), [NOBODY]);
        assert_eq!(told(here, &each_key), [NOBODY]);
        assert_eq!(told(here, &format!("{each_key}\n{KEYS}")), [] as [&str; 0]);
        assert_eq!(told(here, &format!("{tenants}\n{KEYS}")), [] as [&str; 0]);
        for elsewhere in ["trust_headers: true", "protocol: ext-proc"] {
            assert_eq!(told(&format!("{here}, {elsewhere}"), &tenants), [] as [&str; 0], "{elsewhere}");
        }
        let anonymous = tenants.replace("shop", "anonymous");
        assert_eq!(told(here, &anonymous), [] as [&str; 0], "they are all it");
    }
}
