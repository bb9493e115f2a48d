//! Who may be refused when not all can be served: what an objective says that a request names, else its model.

use std::{collections::HashMap, sync::Arc};

use super::Route;
use crate::config::{Config, Criticality};

/// How much a request matters: higher comes first, and below 0 it may be shed, as in the Inference Extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(pub i32);

impl Priority {
    /// Whether it is refused while its pool is full.
    pub fn is_sheddable(self) -> bool {
        self.0 < 0
    }
}

/// Only the sign is the Inference Extension's: it knows no numbers for the three words.
impl From<Criticality> for Priority {
    fn from(criticality: Criticality) -> Self {
        match criticality {
            Criticality::Critical => Self(1),
            Criticality::Standard => Self(0),
            Criticality::Sheddable => Self(-1),
        }
    }
}

/// What objectives say, by pool and name. A name is one of the pool's namespace, since an objective and its pool share
/// theirs.
#[derive(Clone, Debug, Default)]
pub struct Objectives(HashMap<Arc<str>, HashMap<Arc<str>, Priority>>);

impl Objectives {
    /// Those of `config`.
    pub fn new(config: &Config) -> Self {
        let mut all = Self::default();
        for objective in &config.objectives {
            let of_pool = all.0.entry(Arc::clone(&objective.pool)).or_default();
            // A pool of the file may stand for several of the cluster: then the first by namespace counts.
            of_pool.entry(Arc::clone(&objective.name.name)).or_insert(Priority(objective.priority));
        }
        all
    }

    /// How much a request matters that goes by `route`. What is said of it alone outranks what is said of many: a number
    /// of its own, then its objective (one that is not there says nothing), then its key or tenant, then its model.
    pub fn priority(&self, claims: Claims<'_>, route: &Route) -> Priority {
        let objective = || claims.objective.and_then(|name| self.0.get(&route.pool)?.get(name)).copied();
        let own = claims.own.map(Priority).or_else(objective);
        own.or(claims.caller.map(Priority)).unwrap_or_else(|| route.criticality.into())
    }
}

/// What is said of how much a request matters, besides by its model; by those who are believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims<'a> {
    /// Its own number.
    pub own: Option<i32>,
    /// The objective that it names.
    pub objective: Option<&'a str>,
    /// The number of who asks.
    pub caller: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelTimeouts;

    fn route(pool: &str, criticality: Criticality) -> Route {
        Route {
            client_model: "m".into(),
            pool: pool.into(),
            served_model: "m".into(),
            arm: 0,
            rewrite_response_model: false,
            criticality,
            timeouts: ModelTimeouts::default(),
        }
    }

    fn objectives(all: &[(&str, &str, i32)]) -> Objectives {
        let mut found = Objectives::default();
        for (pool, name, priority) in all {
            found.0.entry((*pool).into()).or_default().insert((*name).into(), Priority(*priority));
        }
        found
    }

    #[test]
    fn an_objective_outranks_the_model_and_an_unknown_one_says_nothing() {
        use Criticality::{Critical, Sheddable, Standard};
        let all = objectives(&[("one", "batch", -10), ("one", "vip", 4), ("two", "vip", -1)]);
        for (named, pool, criticality, priority) in [
            (None, "one", Standard, 0),
            (None, "one", Sheddable, -1),
            (None, "one", Critical, 1),
            (Some("batch"), "one", Critical, -10),
            (Some("vip"), "one", Sheddable, 4),
            (Some("vip"), "two", Standard, -1),
            (Some("batch"), "two", Standard, 0),
            (Some("nobody"), "one", Standard, 0),
            (Some("nobody"), "one", Sheddable, -1),
        ] {
            let claims = Claims { objective: named, ..Claims::default() };
            assert_eq!(all.priority(claims, &route(pool, criticality)), Priority(priority), "{named:?} {pool}");
        }
        let vip = route("one", Critical);
        let of_key = Claims { caller: Some(-2), ..Claims::default() };
        assert_eq!(all.priority(of_key, &vip), Priority(-2), "who asks outranks what is asked for");
        let named = Claims { objective: Some("vip"), ..of_key };
        assert_eq!(all.priority(named, &vip), Priority(4));
        assert_eq!(all.priority(Claims { own: Some(9), ..named }, &vip), Priority(9), "the most exact counts");
        assert!(Priority(-1).is_sheddable() && !Priority(0).is_sheddable() && !Priority(4).is_sheddable());
    }
}
