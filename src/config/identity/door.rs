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
        if exempt || listener.credentials != Credentials::Ignored {
            continue;
        }
        let port = listener.address.port();
        let remedy = format!(
            "add `identity: {{ keys: {{ file: keys.yaml }} }}` (make a key with `tidegate keys new`), listen on \
             `127.0.0.1:{port}`, or write `allow_anonymous: true` here if something else keeps strangers out"
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
