//! One listener's table of models: what clients may ask for there, and what it means.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::Rng;

use super::split::{Split, StickyKey, key_of};
use crate::config::{Config, Criticality, Listener, Model, ModelTimeouts, Sticky};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name that the client used.
    pub client_model: Arc<str>,
    /// The pool that serves it.
    pub pool: Arc<str>,
    /// What it is called there.
    pub served_model: Arc<str>,
    /// Which arm of the model's split this is.
    pub arm: usize,
    /// Whether the answer carries the client's name instead of the served one.
    pub rewrite_response_model: bool,
    /// How much it matters when not all can be served.
    pub criticality: Criticality,
    /// What its requests may take.
    pub timeouts: ModelTimeouts,
}

/// Nobody here serves that model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model `{asked}` does not exist here")]
pub struct UnknownModel {
    /// What was asked for.
    pub asked: String,
    /// The configured names, in the configuration's order; what pods report besides is the caller's to add.
    pub served: Vec<String>,
}

/// What one listener serves.
#[derive(Clone, Debug)]
pub struct Table {
    entries: HashMap<Arc<str>, Entry>,
    names: Vec<Arc<str>>,
    /// What every other name becomes, one for a pool, the oldest rule first.
    others: Vec<Entry>,
    /// Whether names that only pods report may be asked for.
    serves_reported: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    pool: Arc<str>,
    split: Split,
    sticky: Sticky,
    rewrite_response_model: bool,
    criticality: Criticality,
    timeouts: ModelTimeouts,
}

impl Table {
    /// All models as the configuration has them, for a listener that says nothing of its own.
    pub fn new(config: &Config) -> Self {
        Self::build(config, None)
    }

    /// The table of `listener`: all that its pool has, if it belongs to one; only the models that it names, if it names
    /// any, each on the pool that it says.
    pub fn for_listener(config: &Config, listener: &Listener) -> Self {
        let Some(pool) = &listener.pool else { return Self::build(config, listener.models.as_ref()) };
        let theirs = |models: &[Model]| models.iter().filter(|model| model.pool == *pool).cloned().collect();
        let models: Vec<Model> = theirs(&[&config.models[..], &config.pool_models].concat());
        let other_models = theirs(&config.other_models);
        Self::build(&Config { models, other_models, ..config.clone() }, None)
    }

    fn build(config: &Config, only: Option<&BTreeMap<Arc<str>, Option<Arc<str>>>>) -> Self {
        let mut table = Self {
            entries: HashMap::new(),
            names: Vec::new(),
            others: Vec::new(),
            // A listener that names its models serves those and no others.
            serves_reported: config.api.serve_reported_models && only.is_none(),
        };
        for model in &config.models {
            let repointed = match only.map(|only| only.get(&model.name)) {
                Some(None) => continue,
                Some(Some(pool)) => pool.clone(),
                None => None,
            };
            table.names.push(Arc::clone(&model.name));
            table.entries.insert(Arc::clone(&model.name), Entry::new(model, repointed));
        }
        if only.is_none() {
            table.others = config.other_models.iter().map(|model| Entry::new(model, None)).collect();
        }
        table
    }

    /// The route of a request for `model`; empty for a path of the operator's own that names none: such a request
    /// goes to the first model's pool as it is. `reported` says which pool has pods that report a name which the
    /// configuration does not know.
    pub fn find(
        &self,
        model: &str,
        key: StickyKey<'_>,
        reported: impl Fn(&str) -> Option<Arc<str>>,
        rng: &mut impl Rng,
    ) -> Result<Route, UnknownModel> {
        let configured = match model {
            "" => self.nameless(),
            model => self.entries.get(model).and_then(|entry| entry.route(&entry.name, key, rng)),
        };
        configured.or_else(|| self.unlisted(model, key, reported, rng)).ok_or_else(|| UnknownModel {
            asked: model.to_owned(),
            served: self.names.iter().map(ToString::to_string).collect(),
        })
    }

    /// The route of a request for `model` of which somebody else has said what it is `served` as: to the model's pool, or,
    /// if the configuration has no such model, where pods lead, which `reported` says. No split is drawn, and the answer
    /// carries the client's name.
    pub fn forced(&self, model: &str, served: &str, reported: impl FnOnce() -> Option<Arc<str>>) -> Option<Route> {
        let known = self.entries.get(model);
        let told = if known.is_none() && self.serves_reported() { reported() } else { None };
        let entry = known.or_else(|| self.rule(told.as_ref()));
        Some(Route {
            client_model: model.into(),
            pool: entry.map(|entry| Arc::clone(&entry.pool)).or(told)?,
            served_model: served.into(),
            arm: 0,
            rewrite_response_model: model != served,
            criticality: entry.map(|entry| entry.criticality).unwrap_or_default(),
            timeouts: entry.map(|entry| entry.timeouts).unwrap_or_default(),
        })
    }

    /// The names that clients may ask for by configuration, in its order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    /// Whether a name that only pods report may be asked for here.
    pub fn serves_reported(&self) -> bool {
        self.serves_reported
    }

    /// The pools that this table can lead to by configuration; one may come several times.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<str>> {
        let named = self.names.iter().filter_map(|name| self.entries.get(name));
        named.chain(&self.others).map(|entry| &entry.pool)
    }

    fn nameless(&self) -> Option<Route> {
        let first = self.names.first().and_then(|name| self.entries.get(name))?;
        Some(Route {
            client_model: "".into(),
            pool: Arc::clone(&first.pool),
            served_model: "".into(),
            arm: 0,
            rewrite_response_model: false,
            criticality: first.criticality,
            timeouts: first.timeouts,
        })
    }

    /// What other names become that lead to the pool that reports them, or to any if none does.
    fn rule(&self, reported: Option<&Arc<str>>) -> Option<&Entry> {
        self.others.iter().find(|rule| reported.is_none_or(|pool| rule.pool == *pool))
    }

    /// The route of a name that the configuration does not have: to the pool whose pods report it, by that pool's rule
    /// for other names if there is one. A name that nobody reports goes by the first such rule.
    fn unlisted(
        &self,
        model: &str,
        key: StickyKey<'_>,
        reported: impl Fn(&str) -> Option<Arc<str>>,
        rng: &mut impl Rng,
    ) -> Option<Route> {
        let name: Arc<str> = model.into();
        let reported = if self.serves_reported() { reported(model) } else { None };
        if let Some(rule) = self.rule(reported.as_ref()).filter(|_| !model.is_empty()) {
            return rule.route(&name, key, rng);
        }
        let pool = reported?;
        Some(Route {
            client_model: Arc::clone(&name),
            pool,
            served_model: name,
            arm: 0,
            rewrite_response_model: false,
            criticality: Criticality::default(),
            timeouts: ModelTimeouts::default(),
        })
    }
}

impl Entry {
    fn new(model: &Model, repointed: Option<Arc<str>>) -> Self {
        Self {
            name: Arc::clone(&model.name),
            pool: repointed.unwrap_or_else(|| Arc::clone(&model.pool)),
            split: Split::new(&model.targets),
            sticky: model.sticky,
            rewrite_response_model: model.rewrite_response_model,
            criticality: model.criticality,
            timeouts: model.timeouts,
        }
    }

    /// For who asks for `asked`: its name, unless it stands for all others.
    fn route(&self, asked: &Arc<str>, key: StickyKey<'_>, rng: &mut impl Rng) -> Option<Route> {
        let session = || key.session.map(|session| key_of(session.as_bytes()));
        let key = match self.sticky {
            Sticky::Session => session(),
            Sticky::Conversation => (key.opening)().or_else(session),
            Sticky::None => None,
        };
        let (arm, served_model) = self.split.arm(asked, key, rng)?;
        Some(Route {
            client_model: Arc::clone(asked),
            pool: Arc::clone(&self.pool),
            served_model,
            arm,
            rewrite_response_model: self.rewrite_response_model,
            criticality: self.criticality,
            timeouts: self.timeouts,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::SocketAddr, time::Duration};

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::config::{
        Admin, Api, Bytes, Limits, Log, LogFormat, Ratio, Retry, Saturation, Scheduler, Sessions, TargetModel,
        Timeouts, Waiting,
    };

    fn model(name: &str, sticky: Sticky, arms: &[(&str, u32)]) -> Model {
        let target = |(name, weight): &(&str, u32)| TargetModel { name: (*name).into(), weight: *weight };
        Model {
            name: name.into(),
            criticality: Criticality::Critical,
            pool: "main".into(),
            targets: arms.iter().map(target).collect(),
            sticky,
            rewrite_response_model: true,
            timeouts: ModelTimeouts::default(),
        }
    }

    fn listener(models: Option<&[(&str, Option<&str>)]>) -> Listener {
        let named = |models: &[(&str, Option<&str>)]| {
            let one = |(name, pool): &(&str, Option<&str>)| ((*name).into(), pool.map(Into::into));
            models.iter().map(one).collect()
        };
        Listener {
            name: "openai".into(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            scheduler: None,
            models: models.map(named),
            pool: None,
            ext_proc: None,
            credentials: crate::config::Credentials::Ignored,
            trust_headers: false,
            tls: None,
            network: Arc::default(),
            cors: None,
        }
    }

    fn config(models: Vec<Model>) -> Config {
        let second = Duration::from_secs(1);
        Config {
            listeners: vec![listener(None)],
            reuse_port: false,
            pools: Vec::new(),
            models,
            pool_models: Vec::new(),
            other_models: Vec::new(),
            objectives: Vec::new(),
            whole: true,
            kubernetes: None,
            scheduler: Scheduler::LeastCost,
            admin: Admin { address: SocketAddr::from(([127, 0, 0, 1], 0)), token_file: None, hosts: Vec::new() },
            probes: None,
            limits: Limits {
                body: Bytes(1),
                buffered_bodies: Bytes(1),
                connections: 1,
                header_fields: 1,
                header_bytes: Bytes(1),
                http2_streams: 1,
            },
            timeouts: Timeouts {
                header_read: second,
                client_idle: second,
                write_stall: second,
                body_read: second,
                connect: second,
                first_byte: second,
                first_token: second,
                idle: second,
                total: None,
                pool_idle: second,
                drain_delay: second,
                drain_grace: second,
            },
            retry: Retry { attempts: 0, budget: Ratio(0.0), budget_floor: 0, on: Vec::new() },
            waiting: Waiting {
                timeout: second,
                requests: 1,
                bytes: Bytes(1),
                tenant_requests: 1,
                tenant_bytes: Bytes(1),
                shares: [].into(),
                evict_sheddable: false,
            },
            saturation: Saturation { wait: second, batch: None },
            identity: crate::config::Identity::default(),
            quotas: crate::config::Quotas::default(),
            sessions: Sessions { header: String::new() },
            api: Api {
                extra_paths: Vec::new(),
                serve_reported_models: true,
                inject_usage: false,
                decision_headers: false,
                index_answers: true,
                heartbeat: None,
            },
            log: Log { level: String::new(), format: LogFormat::Auto },
        }
    }

    const SPLIT: [(&str, u32); 3] = [("stable", 70), ("next", 25), ("canary", 5)];

    fn split(sticky: Sticky) -> Table {
        Table::new(&config(vec![model("llama", sticky, &SPLIT)]))
    }

    fn arm(table: &Table, key: StickyKey<'_>, rng: &mut StdRng) -> usize {
        table.find("llama", key, |_| None, rng).unwrap().arm
    }

    fn shares(arms: impl Iterator<Item = usize>) -> [f64; 3] {
        let mut counts = [0u32; 3];
        arms.for_each(|arm| counts[arm] += 1);
        let all: u32 = counts.iter().sum();
        counts.map(|n| f64::from(n) / f64::from(all))
    }

    fn as_configured(shares: [f64; 3]) {
        for (share, (_, weight)) in shares.iter().zip(SPLIT) {
            assert!((share - f64::from(weight) / 100.0).abs() < 0.01, "{shares:?}");
        }
    }

    fn session(name: &str) -> StickyKey<'_> {
        StickyKey { session: Some(name), ..StickyKey::NONE }
    }

    #[test]
    fn a_forced_name_takes_the_models_pool_and_draws_no_split() {
        let mut config = config(vec![model("llama", Sticky::None, &SPLIT)]);
        let forced = |config: &Config, model: &str, served: &str, reported: Option<&str>| {
            let route = Table::new(config).forced(model, served, || reported.map(Arc::from))?;
            assert_eq!((&*route.client_model, &*route.served_model, route.arm), (model, served, 0));
            Some((route.pool.to_string(), route.criticality, route.rewrite_response_model))
        };
        let main = |rewrites| Some(("main".to_owned(), Criticality::Critical, rewrites));
        assert_eq!(forced(&config, "llama", "anything", Some("elsewhere")), main(true));
        assert_eq!(forced(&config, "llama", "llama", None), main(false), "there is nothing to hide");
        let other = Some(("elsewhere".to_owned(), Criticality::Standard, true));
        assert_eq!(forced(&config, "unheard-of", "anything", Some("elsewhere")), other);
        assert_eq!(forced(&config, "unheard-of", "anything", None), None);
        config.api.serve_reported_models = false;
        assert_eq!(forced(&config, "unheard-of", "anything", Some("elsewhere")), None);
        config.other_models = vec![model("", Sticky::None, &[("base", 1)])];
        assert_eq!(forced(&config, "unheard-of", "anything", None), main(true), "by the rule for other names");
    }

    #[test]
    fn draws_follow_the_weights() {
        let mut rng = StdRng::seed_from_u64(1);
        for sticky in [Sticky::Session, Sticky::Conversation, Sticky::None] {
            let table = split(sticky);
            as_configured(shares((0..100_000).map(|_| arm(&table, StickyKey::NONE, &mut rng))));
        }
    }

    #[test]
    fn sessions_follow_the_weights_and_each_keeps_its_arm() {
        let mut rng = StdRng::seed_from_u64(1);
        let table = split(Sticky::Session);
        let names: Vec<String> = (0..100_000).map(|n| format!("user-{n}")).collect();
        let arms: Vec<usize> = names.iter().map(|name| arm(&table, session(name), &mut rng)).collect();
        as_configured(shares(arms.iter().copied()));
        for (name, was) in names.iter().zip(&arms).step_by(97) {
            assert_eq!(arm(&table, session(name), &mut rng), *was);
        }
    }

    #[test]
    fn conversations_follow_the_weights_and_each_keeps_its_arm() {
        let mut rng = StdRng::seed_from_u64(1);
        let table = split(Sticky::Conversation);
        let mut place = |n: u32| {
            let opening = || Some(key_of(&n.to_le_bytes()));
            let key = StickyKey { session: Some("the same for all"), opening: &opening };
            arm(&table, key, &mut rng)
        };
        as_configured(shares((0..100_000).map(&mut place)));
        assert_eq!(place(5), place(5));
    }

    #[test]
    fn identical_requests_without_a_session_spread_and_without_stickiness_sessions_do_too() {
        let mut rng = StdRng::seed_from_u64(1);
        let draws = |sticky, key: StickyKey<'_>, rng: &mut StdRng| {
            let table = split(sticky);
            (0..200).map(|_| arm(&table, key, rng)).collect::<HashSet<_>>().len()
        };
        assert!(draws(Sticky::Session, StickyKey::NONE, &mut rng) > 1);
        assert!(draws(Sticky::None, session("a"), &mut rng) > 1);
        assert_eq!(draws(Sticky::Session, session("a"), &mut rng), 1);
    }

    #[test]
    fn a_changed_weight_moves_only_what_it_must() {
        let mut rng = StdRng::seed_from_u64(1);
        let before = split(Sticky::Session);
        let grown = [("stable", 70), ("next", 25), ("canary", 15)];
        let after = Table::new(&config(vec![model("llama", Sticky::Session, &grown)]));
        let mut moved = 0;
        for n in 0..20_000 {
            let name = format!("user-{n}");
            let (was, is) = (arm(&before, session(&name), &mut rng), arm(&after, session(&name), &mut rng));
            assert!(was == is || is == 2, "only the grown arm gains");
            moved += u32::from(was != is);
        }
        // From 5 of 100 to 15 of 110: 8.6 %.
        assert!((1_500..1_950).contains(&moved), "{moved}");
    }

    #[test]
    fn an_arm_of_weight_zero_gets_nothing_and_a_name_listed_twice_gets_both_shares() {
        let mut rng = StdRng::seed_from_u64(1);
        let arms = [("a", 30), ("b", 0), ("a", 70)];
        let table = Table::new(&config(vec![model("llama", Sticky::Session, &arms)]));
        let names: Vec<String> = (0..20_000).map(|n| format!("user-{n}")).collect();
        let got = shares(names.iter().map(|name| arm(&table, session(name), &mut rng)));
        assert!((got[0] - 0.3).abs() < 0.02 && got[1] == 0.0, "{got:?}");
        let got = shares((0..20_000).map(|_| arm(&table, StickyKey::NONE, &mut rng)));
        assert!((got[0] - 0.3).abs() < 0.02 && got[1] == 0.0, "{got:?}");
    }

    #[test]
    fn a_listener_serves_what_it_names_on_the_pool_it_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let models = ["a", "b", "c"].map(|name| model(name, Sticky::None, &[("served", 1)]));
        let config = config(models.to_vec());
        let table = Table::for_listener(&config, &listener(Some(&[("b", Some("old")), ("a", None)])));
        let mut pool = |name| table.find(name, StickyKey::NONE, |_| Some("any".into()), &mut rng).map(|it| it.pool);
        assert_eq!(pool("a").as_deref(), Ok("main"));
        assert_eq!(pool("b").as_deref(), Ok("old"));
        let unknown = pool("c").unwrap_err();
        assert_eq!((unknown.asked.as_str(), unknown.served), ("c", vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(table.pools().map(|it| &**it).collect::<Vec<_>>(), ["main", "old"]);
    }

    #[test]
    fn a_route_carries_what_the_model_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let table = Table::new(&config(vec![model("llama", Sticky::None, &[("served", 1)])]));
        let route = table.find("llama", StickyKey::NONE, |_| None, &mut rng).unwrap();
        let expected = Route {
            client_model: "llama".into(),
            pool: "main".into(),
            served_model: "served".into(),
            arm: 0,
            rewrite_response_model: true,
            criticality: Criticality::Critical,
            timeouts: ModelTimeouts::default(),
        };
        assert_eq!(route, expected);
    }

    #[test]
    fn other_names_go_by_the_rule_of_their_pool_and_else_by_the_oldest() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut config = config(vec![model("llama", Sticky::None, &[("served", 1)])]);
        config.other_models = vec![
            Model { pool: "old".into(), ..model("", Sticky::None, &[("any-old", 1)]) },
            Model { pool: "new".into(), ..model("", Sticky::None, &[("any-new", 1)]) },
        ];
        let reported = |name: &str| ["new", "plain"].iter().find(|it| name.ends_with(**it)).map(|it| (*it).into());
        let table = Table::new(&config);
        let mut way = |name: &str| {
            let route = table.find(name, StickyKey::NONE, reported, &mut rng).unwrap();
            format!("{} {} {}", route.client_model, route.pool, route.served_model)
        };
        assert_eq!(way("llama"), "llama main served");
        assert_eq!(way("of-new"), "of-new new any-new");
        assert_eq!(way("of-plain"), "of-plain plain of-plain", "no rule for it");
        assert_eq!(way("unheard"), "unheard old any-old");
        assert_eq!(way(""), " main ");
        let named = Table::for_listener(&config, &listener(Some(&[("llama", None)])));
        assert!(named.find("unheard", StickyKey::NONE, reported, &mut rng).is_err());
        assert_eq!(table.pools().map(|it| &**it).collect::<Vec<_>>(), ["main", "old", "new"]);
    }

    #[test]
    fn a_model_that_only_pods_report_is_served_if_that_is_allowed() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut config = config(vec![model("llama", Sticky::None, &SPLIT)]);
        let reported = |name: &str| (name == "lora").then(|| "main".into());
        let table = Table::new(&config);
        let route = table.find("lora", StickyKey::NONE, reported, &mut rng).unwrap();
        assert_eq!((&*route.served_model, &*route.pool, route.rewrite_response_model), ("lora", "main", false));
        assert!(table.find("other", StickyKey::NONE, reported, &mut rng).is_err());
        config.api.serve_reported_models = false;
        assert!(Table::new(&config).find("lora", StickyKey::NONE, reported, &mut rng).is_err());
    }
}
