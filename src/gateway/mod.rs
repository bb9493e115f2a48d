//! The desk: the story of one request, from its head to its last byte.
//!
//! It asks judgement where to go, makes the reservation, lets the hands carry, and tells how it ended. Two lifetimes,
//! never mixed: a [`Policy`] is built whole from one configuration and a request keeps the one it began with; the
//! [`House`] (fleet, prefix index, connections, budgets, metrics) survives every change of policy.

mod body;
mod decide;
mod entering;
mod explaining;
mod ext_proc;
mod health;
mod homes;
mod models;
mod proxy;
mod reading;
mod spending;
mod story;
mod telling;
mod turn;
mod waiting;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize},
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

pub use body::BodyBudget;
pub use decide::{Matter, Pick, Wishes};
pub use entering::Peer;
pub use explaining::{Explained, Waits, explain};
pub use ext_proc::{IsServing, Picker, Serving, serve_health, wire};
pub use health::{begin_counting, note_ready, tell_turn};
pub use homes::ResponseHomes;
pub use proxy::{Answer, Desk, refuse_clear_text, refuse_unparsed};
pub use spending::moment;
pub use telling::{
    busy::Busy,
    rejection::{Rejection, X_TIDEGATE_REFUSED},
};
pub use turn::Bell;
pub use waiting::{BandView, LineView, Waiting};

use telling::{receipt, rejection};

use crate::{
    admission::{Caller, Counts},
    config::{Config, Cors, Credentials, Listener, Network, Scheduler},
    fleet::{Fleet, Pod, PodId, PoolState, Pools},
    keys::{Keyring, Shared},
    openai::Lexicon,
    prefix,
    routing::{Objectives, Table},
    telemetry::{DecisionLog, Metrics, Name},
    upstream::{RetryBudget, Upstream},
};

/// What lives as long as the process.
pub struct House {
    /// The pods and all that is known of them.
    pub fleet: Arc<Fleet>,
    /// Which pod likely holds which prompt.
    pub prefix: Arc<prefix::Index>,
    /// The hands.
    pub upstream: Upstream,
    /// The words by which answers are read along.
    pub lexicon: Lexicon,
    /// What is told.
    pub metrics: Arc<Metrics>,
    /// Where decisions are logged, if the operator wants that.
    pub decisions: Option<DecisionLog>,
    /// What callers have used up.
    pub counts: Arc<Counts>,
    /// The same, where several gateways count together.
    pub shared: Option<Shared>,
    /// Which pod made which response.
    pub homes: ResponseHomes,
    /// The bound on buffered bodies.
    pub bodies: Arc<BodyBudget>,
    /// The bound on retries.
    pub retries: RetryBudget,
    /// Who may come.
    pub keyring: Arc<Keyring>,
    /// Who waits for a pod because none is ready.
    pub waiting: Arc<Waiting>,
    /// Requests being worked on.
    pub requests_open: AtomicUsize,
    /// Cancelled when a stop's grace is over: whoever is still served is told so and cut.
    pub cut: CancellationToken,
    /// Whether any pod was ever ready.
    pub ready_once: Arc<AtomicBool>,
    /// Called when a pod failed a request, so that it is asked how it is.
    pub doubt: Box<dyn Fn(&PodId) + Send + Sync>,
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}

impl House {
    /// The pod that made response `id` for `tenant`, if it is still there.
    fn pod_of_response(&self, tenant: &str, id: &str) -> Option<Arc<Pod>> {
        self.fleet.pod(&self.homes.find(tenant, id)?)
    }
}

/// What one configuration says, ready to be used.
#[derive(Debug)]
pub struct Policy {
    /// The configuration itself.
    pub config: Arc<Config>,
    /// Each listener's view, in the configuration's order.
    pub listeners: Vec<Arc<ListenerPolicy>>,
}

/// One listener's view.
#[derive(Debug)]
pub struct ListenerPolicy {
    /// Its name.
    pub name: Name,
    /// The models it serves.
    pub table: Table,
    /// How it chooses pods.
    pub scheduler: Scheduler,
    /// What becomes of what clients show.
    pub credentials: Credentials,
    /// Who shows nothing, where nothing need be shown.
    pub anonymous: Arc<Caller>,
    /// What requests may name to say how much they matter.
    objectives: Arc<Objectives>,
    /// Who may come in by address, and who may say where another comes from.
    pub network: Arc<Network>,
    /// Which web pages may call.
    cors: Option<Arc<Cors>>,
    /// Whether headers are believed that say so, or what a model is called at its pod.
    pub trusts_headers: bool,
    /// The pools as they were when this policy was made: one that a later policy has no more is still here for those who
    /// came under this one.
    pools: Arc<Pools>,
    /// The one pool that serves everything here.
    pool_only: Option<Arc<str>>,
    /// Whether it picks for a gateway that has already chosen the pool: then a name that nobody knows is the pods' matter.
    takes_any_model: bool,
    /// Whether a model that is not known does not exist; else nobody has said yet what there is.
    knows_all: bool,
}

impl ListenerPolicy {
    /// The pools that may be asked here.
    fn pools_of<'a>(&'a self, house: &'a House) -> impl Iterator<Item = Arc<PoolState>> + 'a {
        house.fleet.pools().filter(|pool| self.pool_only.as_ref().is_none_or(|only| only == pool.name()))
    }

    /// The pool in which a pod reports `model`; the first of all if no model is named.
    fn pool_reporting(&self, house: &House, model: &str) -> Option<Arc<str>> {
        let reports = |pod: &Arc<Pod>| model.is_empty() || pod.serves(model) == Some(true);
        let pool = self.pools_of(house).find(|pool| pool.pods().iter().any(reports))?;
        Some(Arc::clone(pool.name()))
    }

    /// The pool for a model that neither the configuration nor any pod names, if there is one for such.
    fn pool_for_any(&self, house: &House, model: &str) -> Option<Arc<str>> {
        let may = |pods: &[Arc<Pod>]| pods.is_empty() || pods.iter().any(|pod| pod.serves(model) != Some(false));
        let mut pools = self.pools_of(house).filter(|_| self.takes_any_model);
        pools.find(|pool| may(&pool.pods())).map(|pool| Arc::clone(pool.name()))
    }

    /// The pool of that name. One that came later counts too: a pod's own word on its models may lead there.
    fn pool(&self, house: &House, name: &str) -> Option<Arc<PoolState>> {
        self.pools.get(name).cloned().or_else(|| house.fleet.pool(name))
    }
}

impl Policy {
    /// Everything that requests need of `config`, over the pools of `fleet`.
    pub fn new(config: Arc<Config>, fleet: &Fleet) -> Self {
        let pools = fleet.all();
        let objectives = Arc::new(Objectives::new(&config));
        let anonymous = Arc::new(Caller::anonymous());
        let view = |listener: &Listener| ListenerPolicy {
            name: Name::from(&listener.name),
            table: Table::for_listener(&config, listener),
            scheduler: listener.scheduler.clone().unwrap_or_else(|| config.scheduler.clone()),
            credentials: listener.credentials,
            anonymous: Arc::clone(&anonymous),
            objectives: Arc::clone(&objectives),
            network: Arc::clone(&listener.network),
            cors: listener.cors.clone(),
            trusts_headers: listener.trust_headers,
            pools: Arc::clone(&pools),
            pool_only: listener.pool.clone(),
            takes_any_model: listener.ext_proc.is_some() && config.whole,
            knows_all: config.whole,
        };
        let listeners = config.listeners.iter().map(view).map(Arc::new);
        Self { listeners: listeners.collect(), config }
    }
}

/// The policy in force; swapped whole.
pub type CurrentPolicy = Arc<ArcSwap<Policy>>;
