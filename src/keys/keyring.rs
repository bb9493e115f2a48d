//! All that is known of who may come, now: one value that outlives configurations and follows files and issuers.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_util::sync::CancellationToken;

use super::{
    BadKey, BadToken, Caller, Issuers, Keys,
    file::{Followed, mark_of, read_now},
    issuers::{Source, client},
    jwt::looks_like_token,
    salt::{MAX_SECRET_FILE, Salt},
    table::Changes,
};
use crate::{
    config::{self, Identity, KeyRecord, MAX_KEY_FILE, parse_keys},
    tasks::Tasks,
    telemetry::Metrics,
};

/// Tenants that tokens, certificates and trusted gateways may name: what is kept for each is a few hundred bytes, and
/// more are not served by one fleet.
const MOST_TENANTS: usize = 100_000;

/// How key files are called in the metrics.
const KEY_FILE: &str = "keys";

/// What makes a key file, and a salt.
const MAKE_KEYS: &str = "tidegate keys new --file keys.yaml";
const MAKE_SALT: &str = "openssl rand -hex 32 > FILE";

/// Why it is not known who may come.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A file cannot be read. The system's own words are the error's source, and not said here as well.
    #[error("{what} {path} cannot be read{}", remedy(source, make), path = path.display())]
    Unreadable {
        /// What is in it.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What makes one.
        make: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A file says what nobody understands.
    #[error("{0}")]
    Wrong(String),
}

impl KeyringError {
    /// All of it in one line.
    pub fn whole(&self) -> String {
        match self {
            Self::Unreadable { source, .. } => format!("{self}: {source}"),
            Self::Wrong(_) => self.to_string(),
        }
    }
}

fn remedy(error: &io::Error, make: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!(" (make one with `{make}`)"),
        io::ErrorKind::PermissionDenied => " (it must be readable by the user that the gateway runs as)".to_owned(),
        _ => String::new(),
    }
}

/// Why somebody is not let in by what they showed.
#[derive(Clone, Debug)]
pub enum Bad {
    /// It is no good key.
    Key(BadKey),
    /// It is no good token.
    Token(BadToken),
    /// It is good, but there are too many tenants already.
    TooManyTenants,
}

/// Who may come.
pub struct Keyring {
    keys: ArcSwap<Keys>,
    issuers: ArcSwap<Issuers>,
    salt: ArcSwapOption<Salt>,
    tenants: RwLock<HashSet<Arc<str>>>,
    /// How issuers are reached; made where there are any.
    tls: ClientTls,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    following: Mutex<Following>,
    /// Where keys come from a cluster.
    held: Mutex<BTreeMap<String, Held>>,
}

/// Makes what TLS to issuers needs.
pub type ClientTls = Box<dyn Fn() -> io::Result<rustls::ClientConfig> + Send + Sync>;

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

/// Which sources are followed, and what ends that.
#[derive(Debug, Default)]
struct Following {
    identity: Identity,
    stop: CancellationToken,
}

/// All that had to be read for an identity section and could be.
#[derive(Debug)]
pub struct Read {
    identity: Identity,
    keys: (Keys, Option<u128>),
    salt: (Option<Salt>, Option<u128>),
    issuers: Vec<Arc<Source>>,
    client: Option<reqwest::Client>,
}

impl Keyring {
    /// One that knows nobody. It reaches issuers by `tls`, and follows what it is told to in `tasks`.
    pub fn new(tls: ClientTls, metrics: &Arc<Metrics>, tasks: &Tasks) -> Self {
        Self {
            keys: ArcSwap::default(),
            issuers: ArcSwap::default(),
            salt: ArcSwapOption::empty(),
            tenants: RwLock::default(),
            tls,
            metrics: Arc::clone(metrics),
            tasks: tasks.clone(),
            following: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Reads what `identity` names; `None` if nothing of it has changed.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn read(&self, identity: &Identity) -> Result<Option<Read>, KeyringError> {
        if self.following().identity == *identity {
            return Ok(None);
        }
        let content = |path: &Option<PathBuf>, most, what, make| {
            let read = |path: &PathBuf| {
                let unreadable = |source| KeyringError::Unreadable { what, path: path.clone(), make, source };
                Ok((path.display().to_string(), read_now(path, most).map_err(unreadable)?))
            };
            path.as_ref().map(read).transpose()
        };
        let keys = match content(&identity.key_file, MAX_KEY_FILE, "the key file", MAKE_KEYS)? {
            Some((name, bytes)) => (read_keys(&name, &bytes).map_err(KeyringError::Wrong)?, Some(mark_of(&bytes))),
            None => Default::default(),
        };
        let salt = match content(&identity.cache_salt, MAX_SECRET_FILE, "the cache salt", MAKE_SALT)? {
            Some((name, bytes)) => {
                let wrong = |problem| KeyringError::Wrong(format!("{name}: {problem}"));
                (Some(Salt::new(&bytes).map_err(wrong)?), Some(mark_of(&bytes)))
            }
            None => Default::default(),
        };
        let before = self.issuers.load();
        let source = |issuer: &Arc<config::Issuer>| {
            // Whatever else is said of it now, its keys are those that it had.
            let same = |it: &&Arc<Source>| (&it.issuer.name, &it.issuer.keys) == (&issuer.name, &issuer.keys);
            let before = before.sources().iter().find(same);
            Source::open(issuer, before.map(|it| &**it)).map_err(KeyringError::Wrong)
        };
        let issuers = identity.issuers.iter().map(source).collect::<Result<_, _>>()?;
        let client = if identity.issuers.is_empty() {
            None
        } else {
            let made = (self.tls)().and_then(|tls| client(tls).map_err(io::Error::other));
            Some(made.map_err(|error| KeyringError::Wrong(format!("cannot prepare TLS to issuers: {error}")))?)
        };
        Ok(Some(Read { identity: identity.clone(), keys, salt, issuers, client }))
    }

    /// Brings what was read into force, and follows its sources from now on instead of others.
    pub fn follow(self: &Arc<Self>, read: Read) {
        let Read { identity, keys: (keys, key_mark), salt: (salt, salt_mark), issuers, client } = read;
        let stop = CancellationToken::new();
        let run = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            self.tasks.spawn_until_stop(async move {
                stop.run_until_cancelled(work).await;
            });
        };
        if identity.key_file.is_some() {
            // At the start all of them are new, which says nothing.
            let had_some = self.following().identity.key_file.is_some();
            self.take_keys(Ok(keys), had_some);
        } else if identity.key_secrets.is_none() {
            self.metrics.identity.keys.set(0);
            self.keys.store(Arc::default());
        }
        self.salt.store(salt.map(Arc::new));
        if let Some(path) = identity.key_file.clone() {
            let ring = Arc::clone(self);
            run(Box::pin(async move { ring.follow_keys(path, key_mark).await }));
        }
        if let Some(path) = identity.cache_salt.clone() {
            let ring = Arc::clone(self);
            run(Box::pin(async move { ring.follow_salt(path, salt_mark).await }));
        }
        if let Some(client) = client {
            for source in &issuers {
                run(Box::pin(Arc::clone(source).keep_fresh(client.clone(), Arc::clone(&self.metrics))));
            }
        }
        self.issuers.store(Arc::new(Issuers::new(issuers)));
        let before = std::mem::replace(&mut *self.following(), Following { identity, stop });
        before.stop.cancel();
    }

    /// Who it is that shows `secret`, a key or a token, at `now`.
    ///
    /// # Errors
    /// Why it is good for nothing.
    pub async fn whose(&self, secret: &str, now: SystemTime) -> Result<Arc<Caller>, Bad> {
        let issuers = self.issuers.load_full();
        let found = self.keys.load().find(secret.as_bytes(), now);
        // Looking a key up costs a millionth of a second, so that it comes first.
        if !matches!(found, Err(BadKey::Unknown)) || issuers.is_empty() || !looks_like_token(secret) {
            return found.map_err(Bad::Key);
        }
        let mut judged = issuers.judge(secret, now);
        if let Err(BadToken::UnknownKey(source)) = &judged
            && source.refreshed().await
        {
            judged = issuers.judge(secret, now);
        }
        let caller = judged.map_err(Bad::Token)?;
        let tenant = self.tenant(&caller.tenant).ok_or(Bad::TooManyTenants)?;
        Ok(Arc::new(Caller { tenant, ..caller }))
    }

    /// Who shows the key with this public id.
    pub fn named(&self, id: &str) -> Option<Arc<Caller>> {
        self.keys.load().named(id)
    }

    /// Whose key `secret` is, good or not any more: for the log. Tokens that are not good are nobody's.
    pub fn once_of(&self, secret: &str) -> Option<Arc<Caller>> {
        self.keys.load().once_of(secret.as_bytes())
    }

    /// The tenant of that name, as long as there are not too many. One that the operator did not write down is remembered
    /// for as long as the process lives, because its limits are.
    pub fn tenant(&self, name: &str) -> Option<Arc<str>> {
        if let Some(known) = self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(Arc::clone(known));
        }
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MOST_TENANTS {
            return None;
        }
        let name: Arc<str> = name.into();
        tenants.insert(Arc::clone(&name));
        Some(name)
    }

    /// What keeps prefix caches apart, if something shall.
    pub fn salt(&self) -> Option<Arc<Salt>> {
        self.salt.load_full()
    }

    async fn follow_keys(&self, path: PathBuf, mark: Option<u128>) {
        let name = path.display().to_string();
        let mut file = Followed::new(path, MAX_KEY_FILE, mark);
        loop {
            let found = file.changed().await;
            let name = name.clone();
            let keys = match found {
                Ok(bytes) => self.tasks.aside(move || read_keys(&name, &bytes)).await,
                Err(error) => Some(Err(format!("{name}: {error}"))),
            };
            self.take_keys(keys.unwrap_or_else(|| Err("reading it failed".to_owned())), true);
        }
    }

    /// New keys into force, told by what changed if there were others before; without any, the last ones stay.
    fn take_keys(&self, found: Result<Keys, String>, had_some: bool) {
        self.metrics.identity.source(KEY_FILE, found.is_ok());
        match found {
            Ok(keys) => {
                self.metrics.identity.keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
                let Changes { added, removed, changed, disabled } =
                    if had_some { keys.changes_since(&self.keys.load()) } else { Changes::default() };
                tracing::info!(keys = keys.len(), added, removed, changed, disabled, "keys taken over");
                self.keys.store(Arc::new(keys));
            }
            Err(problem) => tracing::warn!(problem, "keys not taken over, the last ones stay"),
        }
    }

    /// From now on the keys are those of these `entries`, each a list as in a file, by name. One that nobody understands
    /// leaves the last one of its name as it was and the others alone; `problem`: why nothing newer is heard of.
    pub fn take_entries(&self, entries: &BTreeMap<String, Vec<u8>>, problem: Option<&str>) {
        if let Some(problem) = problem {
            tracing::warn!(problem, "nothing is heard of the Secrets with keys, what they said last stays");
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|name, _| entries.contains_key(name));
        // Each is looked at, also behind one that is wrong.
        let wrong = entries.iter().filter(|(name, bytes)| !held.entry((*name).clone()).or_default().take(name, bytes));
        let well = wrong.count() == 0 && problem.is_none();
        let all = each_once(held.values().flat_map(|it| it.records.iter().cloned()));
        drop(held);
        let had_some = !self.keys.load().is_empty();
        self.take_keys(Ok(Keys::new(all)), had_some);
        self.metrics.identity.source(KEY_FILE, well);
    }

    async fn follow_salt(&self, path: PathBuf, mark: Option<u128>) {
        let name = path.display().to_string();
        let mut file = Followed::new(path, MAX_SECRET_FILE, mark);
        loop {
            let found = file.changed().await.map_err(|error| error.to_string());
            match found.and_then(|bytes| Salt::new(&bytes)) {
                Ok(salt) => self.salt.store(Some(Arc::new(salt))),
                Err(problem) => {
                    tracing::warn!(file = name, problem, "cache salt not taken over, the last one stays");
                }
            }
        }
    }

    fn following(&self) -> std::sync::MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an entry last said that could be understood.
#[derive(Debug, Default)]
struct Held {
    /// Of what it says; `None`: of what it says now nothing is known.
    mark: Option<u128>,
    records: Vec<KeyRecord>,
}

impl Held {
    /// Takes over what the entry called `name` says now; `false`: nobody understands it, and what it said last stays.
    fn take(&mut self, name: &str, bytes: &[u8]) -> bool {
        let mark = Some(mark_of(bytes));
        if self.mark == mark {
            return true;
        }
        let read = read_records(name, bytes);
        self.mark = mark.filter(|_| read.is_ok());
        match read {
            Ok(records) => self.records = records,
            // Told again with each change, as long as it is wrong.
            Err(problem) => {
                tracing::warn!(problem, "keys of a Secret not taken over, its last ones stay");
                return false;
            }
        }
        true
    }
}

/// Of those with the same hash the first.
fn each_once(records: impl Iterator<Item = KeyRecord>) -> Vec<KeyRecord> {
    let mut seen = HashSet::new();
    let is_new = |record: &KeyRecord| {
        let is_new = seen.insert(record.hash.0);
        if !is_new {
            tracing::warn!(key = %record.id, "this key is in several Secrets, the first by name counts");
        }
        is_new
    };
    records.filter(is_new).collect()
}

fn read_keys(name: &str, bytes: &[u8]) -> Result<Keys, String> {
    read_records(name, bytes).map(Keys::new)
}

fn read_records(name: &str, bytes: &[u8]) -> Result<Vec<KeyRecord>, String> {
    let text = str::from_utf8(bytes).map_err(|_| format!("{name}: this file is not UTF-8 text"))?;
    parse_keys(name, text).map_err(|report| report.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(kind: io::ErrorKind) -> KeyringError {
        let (what, path) = ("the key file", PathBuf::from("keys.yaml"));
        KeyringError::Unreadable { what, path, make: MAKE_KEYS, source: kind.into() }
    }

    #[test]
    fn a_key_file_that_is_missing_or_may_not_be_read_is_told_once_with_what_to_do() {
        let missing = unreadable(io::ErrorKind::NotFound);
        let told = "the key file keys.yaml cannot be read (make one with `tidegate keys new --file keys.yaml`)";
        assert_eq!(missing.to_string(), told);
        assert_eq!(missing.whole(), format!("{told}: entity not found"), "the system's words come once, behind");
        let refused = unreadable(io::ErrorKind::PermissionDenied).to_string();
        assert!(
            refused.ends_with("cannot be read (it must be readable by the user that the gateway runs as)"),
            "{refused}"
        );
    }
}
