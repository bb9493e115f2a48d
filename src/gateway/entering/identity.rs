//! Who asks, as the desk finds it out: by what the request shows, else by what a trusted gateway says.

use std::sync::Arc;

use http::HeaderMap;

use super::Peer;
use crate::{
    admission::{Caller, Credential, Stranger, credential, names, of_certificate},
    clock,
    config::Credentials,
    gateway::{House, ListenerPolicy, Policy, proxy::headers::FAIRNESS, rejection::shortened},
};

/// Who asks at `listener`, or why nobody is let in.
///
/// # Errors
/// Why they are not let in.
pub(in crate::gateway) async fn identify(
    house: &House,
    (policy, listener): (&Policy, &ListenerPolicy),
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Arc<Caller>, Stranger> {
    let known = &policy.config.identity;
    if listener.credentials == Credentials::Ignored {
        return Ok(told(house, listener, headers));
    }
    // A certificate that nobody asked the meaning of says nothing.
    let certificate = peer.certificate().filter(|_| known.certificates.is_some());
    match credential(headers, certificate.map(|it| &**it), known.reads_headers())? {
        Credential::Nothing if listener.credentials == Credentials::Required => Err(Stranger::Nothing),
        Credential::Nothing => Ok(told(house, listener, headers)),
        Credential::Secret(secret) => Ok(house.keyring.whose(secret.reveal(), clock::wall()).await?),
        Credential::Certificate(certificate) => {
            let rule = known.certificates.as_ref().ok_or(Stranger::UnknownName)?;
            let caller = of_certificate(certificate, rule)?;
            let tenant = house.keyring.tenant(&caller.tenant).ok_or(Stranger::TooManyTenants)?;
            Ok(Arc::new(Caller { tenant, ..caller }))
        }
    }
}

/// What may be told in the log of somebody who is not let in: whose key it is that is good no more, or which names a
/// certificate has that nobody here knows. Neither is secret.
pub(in crate::gateway) fn unmasked(
    house: &House,
    policy: &Policy,
    (headers, peer): (&HeaderMap, &Peer),
    stranger: Stranger,
) -> Option<Known> {
    let known = &policy.config.identity;
    match stranger {
        Stranger::DisabledKey | Stranger::Expired => match credential(headers, None, known.reads_headers()) {
            Ok(Credential::Secret(secret)) => house.keyring.once_of(secret.reveal()).map(Known::Caller),
            _ => None,
        },
        Stranger::UnknownName => {
            let names = names(peer.certificate()?, known.certificates.as_ref()?.from);
            let few = names.iter().take(NAMES).map(|name| shortened(name)).collect::<Vec<_>>().join(",");
            Some(Known::Names(if few.is_empty() { "none of that kind".to_owned() } else { few }))
        }
        _ => None,
    }
}

/// How many names of a certificate are shown: it has one, if somebody made it for this.
const NAMES: usize = 3;

/// What is known of somebody who is not let in.
pub(in crate::gateway) enum Known {
    /// Whose key it was.
    Caller(Arc<Caller>),
    /// What a certificate says.
    Names(String),
}

/// Who asks where nothing is shown: whom a gateway names that is believed, else nobody in particular.
pub(in crate::gateway) fn told(house: &House, listener: &ListenerPolicy, headers: &HeaderMap) -> Arc<Caller> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let named = FAIRNESS.into_iter().filter(|_| listener.trusts_headers).find_map(text);
    let tenant = named.filter(|it| is_name(it)).and_then(|name| house.keyring.tenant(name));
    tenant.map_or_else(|| Arc::clone(&listener.anonymous), |tenant| Arc::new(Caller::of(tenant)))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= crate::config::LONGEST_NAME
}
