//! Counts that several gateways share, in Redis: one round trip for a reservation, and none that anybody waits for to settle
//! it.
//!
//! While Redis does not answer it is not asked: the first failure closes the way, and it opens again once a connection was
//! made and answered. What happens to requests meanwhile is not decided here. What is to be settled waits until then, and so
//! does what is to be undone: reservations of which nobody heard whether they were made, because whoever asked has left or
//! the answer took too long. Both may be sent twice and count once.

mod scripts;
mod settling;

use std::{fs, io, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, Script, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use self::settling::Settler;
use crate::{clock, config, tasks::Tasks};

/// Settlements that wait for Redis: a second of a busy gateway's, and of most others' as long as Redis is ever away. Those
/// beyond are lost, and what they had reserved stays counted.
const QUEUE: usize = 10_000;

/// The first pause before another connection is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a connection may take to be made, whatever a question may.
const CONNECT: Duration = Duration::from_secs(2);

/// What is counted of one scope.
#[derive(Clone, Debug, PartialEq)]
pub struct Meter {
    /// Whose: kind and name.
    pub scope: String,
    /// Which of its meters, in a letter.
    pub field: &'static str,
    /// How it counts.
    pub kind: MeterKind,
    /// What may be in it.
    pub limit: f64,
    /// What is wanted of it.
    pub amount: f64,
}

/// How a meter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterKind {
    /// It leaks its limit in a minute.
    Rate,
    /// It begins anew with each day or month, of which this is the number.
    Window(u64),
    /// It counts those that are open.
    Open,
}

/// How a meter stood after a reservation, or as one found it that did not fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stand {
    /// What is in it.
    pub level: f64,
    /// Whether what was wanted fits.
    pub fits: bool,
}

/// A reservation, to be settled.
#[derive(Debug)]
pub struct Ticket {
    id: String,
    meters: Vec<Meter>,
}

/// What came of a reservation.
#[derive(Debug)]
pub struct Reserved {
    /// Each meter, in the order asked.
    pub meters: Vec<(Meter, Stand)>,
    /// If all fitted.
    pub ticket: Option<Ticket>,
}

struct Settlement {
    ticket: Ticket,
    /// Of each meter; `None` if nothing of it is to have happened.
    used: Option<Vec<f64>>,
}

/// What is told of the connection.
#[derive(Clone, Debug, Default)]
pub struct SharedMetrics {
    /// 1 while it answers.
    pub up: Gauge,
    /// Settlements that were lost.
    pub lost: Counter,
    /// Reservations that were decided without it.
    pub unasked: Counter,
}

/// The shared counts.
pub struct Shared {
    prefix: String,
    outage: config::Outage,
    reserve: Script,
    line: Arc<Line>,
    settlements: mpsc::Sender<Settlement>,
}

/// The one connection over which all goes, when there is one.
struct Line {
    connection: ArcSwapOption<MultiplexedConnection>,
    broken: Notify,
    made: Notify,
    metrics: SharedMetrics,
    outage: config::Outage,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Begins to connect to `settings.url`; nobody waits for it.
    ///
    /// # Errors
    /// If the URL is none.
    pub fn start(settings: &config::Redis, metrics: SharedMetrics, tasks: &Tasks) -> io::Result<Self> {
        settings.url.as_str().into_connection_info().map_err(io::Error::other)?;
        let (connection, outage) = (ArcSwapOption::empty(), settings.outage);
        let line = Arc::new(Line { connection, broken: Notify::new(), made: Notify::new(), metrics, outage });
        let (settlements, queue) = mpsc::channel(QUEUE);
        tasks.spawn_until_stop(connect_forever(settings.clone(), Arc::clone(&line)));
        let settler = Settler::new(queue, Arc::clone(&line), settings.prefix.clone());
        tasks.spawn(settler.work(tasks.clone()));
        let reserve = Script::new(scripts::RESERVE);
        Ok(Self { prefix: settings.prefix.clone(), outage: settings.outage, reserve, line, settlements })
    }

    /// What happens while it does not answer.
    pub fn outage(&self) -> config::Outage {
        self.outage
    }

    /// Takes what `meters` want, in all or in none; `None` if nobody answers.
    pub async fn reserve(&self, meters: Vec<Meter>) -> Option<Reserved> {
        let connection = self.line.connection.load_full();
        let Some(connection) = connection else {
            self.line.metrics.unasked.inc();
            return None;
        };
        let id: u64 = rand::RngExt::random(&mut clock::rng());
        let id = format!("{id:016x}");
        let mut script = self.reserve.prepare_invoke();
        script.key(key_of(&self.prefix, &id)).arg(&id);
        for meter in &meters {
            let (kind, index) = meter.kind.word();
            script.key(meter.key(&self.prefix));
            script.arg(kind).arg(meter.field).arg(meter.limit).arg(meter.amount).arg(index);
        }
        let mut given_up = GivenUp { shared: self, id, meters: Some(meters) };
        let answer = script.invoke_async::<Vec<String>>(&mut (*connection).clone()).await;
        let stands = answer.map(|answer| stands(&answer));
        match stands {
            Ok(Some((fits, stands))) => {
                let meters = given_up.meters.take().unwrap_or_default();
                let ticket = fits.then(|| Ticket { id: given_up.id.clone(), meters: meters.clone() });
                Some(Reserved { meters: meters.into_iter().zip(stands).collect(), ticket })
            }
            Ok(None) => self.failed("its answer cannot be read"),
            Err(error) => self.failed(&error.to_string()),
        }
    }

    fn failed(&self, why: &str) -> Option<Reserved> {
        self.line.fails(why);
        self.line.metrics.unasked.inc();
        None
    }

    /// Of a reservation's meters so much was `used`, by their letters. Nobody waits for it.
    pub fn settle(&self, ticket: Ticket, used: impl Fn(&'static str) -> f64) {
        let used = ticket.meters.iter().map(|meter| used(meter.field)).collect();
        self.put(Settlement { ticket, used: Some(used) });
    }

    fn put(&self, settlement: Settlement) {
        if self.settlements.try_send(settlement).is_err() {
            self.line.metrics.lost.inc();
        }
    }
}

/// A reservation of which nobody heard whether it was made: whoever asked has left, or it took too long. It is undone.
struct GivenUp<'a> {
    shared: &'a Shared,
    id: String,
    meters: Option<Vec<Meter>>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let Some(meters) = self.meters.take() else { return };
        let ticket = Ticket { id: std::mem::take(&mut self.id), meters };
        self.shared.put(Settlement { ticket, used: None });
    }
}

impl Line {
    /// Nobody asks until a connection was made and answered.
    fn fails(&self, why: &str) {
        if self.connection.swap(None).is_some() {
            tracing::warn!(why, meanwhile = meanwhile(self.outage), "the shared counts of limits do not answer");
            self.metrics.up.set(0);
        }
        self.broken.notify_one();
    }
}

/// What is known of a reservation. In braces: a cluster keeps all keys on one node, where one script reaches them.
fn key_of(prefix: &str, id: &str) -> String {
    format!("{{{prefix}}}:of:{id}")
}

impl Meter {
    fn key(&self, prefix: &str) -> String {
        let kind = match self.kind {
            MeterKind::Rate => "rates",
            MeterKind::Window(_) => "spent",
            MeterKind::Open => "open",
        };
        format!("{{{prefix}}}:{kind}:{}", self.scope)
    }
}

impl MeterKind {
    fn word(self) -> (&'static str, u64) {
        match self {
            Self::Rate => ("r", 0),
            Self::Window(index) => ("w", index),
            Self::Open => ("o", 0),
        }
    }
}

/// What the script answered: whether all fit, and how each stands.
fn stands(answer: &[String]) -> Option<(bool, Vec<Stand>)> {
    let (fits, rest) = answer.split_first()?;
    let number = |text: &String| text.parse::<f64>().ok();
    let (each, []) = rest.as_chunks::<2>() else { return None };
    let stand = |[level, fits]: &[String; 2]| Some(Stand { level: number(level)?, fits: fits == "1" });
    Some((fits == "1", each.iter().map(stand).collect::<Option<_>>()?))
}

/// Keeps a connection, as long as the gateway runs.
async fn connect_forever(settings: config::Redis, line: Arc<Line>) {
    let mut pause = PAUSE;
    // Once for each outage: it is in a metric for as long as it lasts.
    let mut told = false;
    loop {
        match connect(&settings).await {
            Ok(connection) => {
                tracing::info!(url = settings.url, "limits are counted together with other gateways");
                line.connection.store(Some(Arc::new(connection)));
                line.metrics.up.set(1);
                line.made.notify_one();
                (pause, told) = (PAUSE, false);
                line.broken.notified().await;
            }
            Err(error) => {
                tell_unreachable(&settings, &error, std::mem::replace(&mut told, true));
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn tell_unreachable(settings: &config::Redis, error: &io::Error, again: bool) {
    let (url, meanwhile) = (&settings.url, meanwhile(settings.outage));
    if again {
        tracing::debug!(url, %error, "the shared counts of limits still cannot be reached");
    } else {
        tracing::warn!(url, %error, meanwhile, "the shared counts of limits cannot be reached");
    }
}

/// What happens to requests until they answer, with the word of the configuration that says so.
fn meanwhile(outage: config::Outage) -> &'static str {
    match outage {
        config::Outage::Local => "outage: local, this gateway counts for itself",
        config::Outage::Allow => "outage: allow, nobody is refused for a limit",
        config::Outage::Refuse => "outage: refuse, whoever has a limit is refused",
    }
}

/// Why Redis did not let us in, with what to do about it.
fn refused(error: redis::RedisError) -> io::Error {
    match error.code() {
        Some("NOAUTH") => {
            io::Error::other(format!("{error}; write the password into a file, and name that as `password_file`"))
        }
        Some("WRONGPASS") => io::Error::other(format!("{error}; look at what is in `password_file`")),
        _ => io::Error::other(error),
    }
}

/// A connection that has answered.
async fn connect(settings: &config::Redis) -> io::Result<MultiplexedConnection> {
    let mut info = settings.url.as_str().into_connection_info().map_err(io::Error::other)?;
    if let Some(file) = &settings.password_file {
        let password = fs::read_to_string(file)?;
        let redis = info.redis_settings().clone().set_password(password.trim());
        info = info.set_redis_settings(redis);
    }
    let client = Client::open(info).map_err(io::Error::other)?;
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(settings.timeout));
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut connection = connection.map_err(refused)?;
    redis::cmd("PING").query_async::<()>(&mut connection).await.map_err(refused)?;
    Ok(connection)
}
