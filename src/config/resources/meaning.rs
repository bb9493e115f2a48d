//! What a world of objects means: the pools, models and objectives that it adds to what the file says.
//!
//! The file outranks every object. Among objects the oldest wins, then the first by name, as the Gateway API has it; so
//! nobody takes a model's name away from somebody who has it, and two gateways come to the same result. An object that
//! loses, or that leads nowhere, is left out and told of; it takes nothing else with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use super::{
    Kind, Members, ObjectName, Objective, PortRef, Reference, World, addresses,
    claims::{Claim, Claimed},
    objects::{Body, Object, PoolRef, RewriteBody},
};
use crate::config::{Config, Endpoint, Engine, Model, ModelTimeouts, Pool, Sticky, TargetModel, defaults};

/// A configuration with what a world adds to it.
#[derive(Debug)]
pub struct Furnished {
    /// The whole.
    pub config: Config,
    /// What is to be said about objects.
    pub notes: Vec<Note>,
}

/// Something about one object that its owner should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// The field that it is about, such as `spec.poolRef.name`.
    pub field: String,
    /// What it means for the object.
    pub weight: Weight,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What a note means for its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It is in force all the same.
    Doubt,
    /// It, or the part that the note is about, is not in force: somebody older has the name.
    NameInUse,
    /// It, or that part, is not in force for another reason.
    Unusable,
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}: {} ({})", self.kind.word(), self.name, self.field, self.message, self.remedy)
    }
}

/// `config`, as the file has it, with the pools, models and objectives of `world`.
pub fn furnish(config: Config, world: &World) -> Furnished {
    let Some(kubernetes) = config.kubernetes.clone() else {
        return Furnished { config, notes: Vec::new() };
    };
    let named_only = kubernetes.named_pools_only;
    let mut furnishing = Furnishing { world, config, named_only, led: BTreeMap::new(), notes: Vec::new() };
    furnishing.config.whole = world.complete;
    if world.complete {
        furnishing.claimed();
        furnishing.pools();
        if let Some(label) = &kubernetes.workload_label {
            furnishing.workloads(label);
        }
        furnishing.models();
        furnishing.objectives();
    }
    Furnished { config: furnishing.config, notes: furnishing.notes }
}

/// Where a model is served.
enum Served {
    Everywhere,
    /// Only where a listener belongs to its pool.
    AtItsPool,
    /// For all names of its pool that are no model's.
    ForOthers,
}

struct Furnishing<'a> {
    world: &'a World,
    config: Config,
    /// Whether only `InferencePool`s count that pools of the file stand for.
    named_only: bool,
    /// The pool that each `InferencePool` leads to.
    led: BTreeMap<ObjectName, Arc<str>>,
    notes: Vec<Note>,
}

impl<'a> Furnishing<'a> {
    fn note(&mut self, of: (Kind, &ObjectName), field: impl Into<String>, weight: Weight, told: (String, &str)) {
        let (kind, name) = of;
        let (message, remedy) = told;
        let remedy = remedy.to_owned();
        self.notes.push(Note { kind, name: name.clone(), field: field.into(), weight, message, remedy });
    }

    /// The `InferencePool`s that pools of the file stand for.
    fn claimed(&mut self) {
        for pool in self.config.pools.clone() {
            for endpoint in &pool.endpoints {
                let Endpoint::Cluster { members: Members::InferencePool(reference), .. } = endpoint else { continue };
                let name = self.world.resolve(reference);
                if self.world.pool(&name).is_none() {
                    let message = format!("pool `{}` stands for it, and it is not there", pool.name);
                    let remedy = "create it, or correct `inferencePool` in the configuration";
                    self.note((Kind::Pool, &name), "metadata.name", Weight::Doubt, (message, remedy));
                }
                self.led.entry(name).or_insert_with(|| Arc::clone(&pool.name));
            }
        }
    }

    /// The others become pools of their own.
    fn pools(&mut self) {
        let world = self.world;
        let names: BTreeSet<&ObjectName> =
            [Kind::Pool, Kind::AlphaPool].into_iter().flat_map(|kind| world.all(kind)).map(|(name, _)| name).collect();
        for name in names {
            let Some((kind, pool)) = world.pool(name).filter(|_| self.ours(name)) else { continue };
            if kind == Kind::Pool && world.all(Kind::AlphaPool).any(|(other, _)| other == name) {
                let message = format!("`{}` has one of this name too, and that one counts", Kind::Pool.group());
                self.note((Kind::AlphaPool, name), "apiVersion", Weight::Unusable, (message, "delete this one"));
            }
            let lacks = [
                (pool.selector.is_empty(), "spec.selector", "it selects no pods", "name the labels of the pods"),
                (pool.ports.is_empty(), "spec", "it names no port", "name the port on which the pods serve"),
            ];
            for (_, field, message, remedy) in lacks.into_iter().filter(|(lacks, ..)| *lacks) {
                self.note((kind, name), field, Weight::Unusable, (message.to_owned(), remedy));
            }
            if self.led.contains_key(name) {
                continue;
            }
            let reference = Reference { namespace: Some(name.namespace.to_string()), name: name.name.to_string() };
            if self.add_pool(name, Members::InferencePool(reference)) {
                self.led.insert(name.clone(), name.to_string().into());
            } else {
                let message = format!("the configuration has another pool called `{name}`");
                let remedy = "give that one another name, or the endpoint `inferencePool` for this one";
                self.note((kind, name), "metadata.name", Weight::NameInUse, (message, remedy));
            }
        }
    }

    /// Whether an `InferencePool` of that name is anything to us.
    fn ours(&self, name: &ObjectName) -> bool {
        !self.named_only || self.led.contains_key(name)
    }

    /// Every value of the label on pods is a pool, and so is every one that was there before.
    fn workloads(&mut self, label: &str) {
        let workloads: BTreeSet<ObjectName> =
            addresses::workloads(self.world, label).chain(self.world.workloads.iter().cloned()).collect();
        for name in workloads {
            let selector = [(label.to_owned(), name.name.to_string())].into();
            let namespace = Some(name.namespace.to_string());
            self.add_pool(&name, Members::Pods { namespace, selector, port: PortRef::Usual });
        }
    }

    /// Whether the name was free.
    fn add_pool(&mut self, name: &ObjectName, members: Members) -> bool {
        let name: Arc<str> = name.to_string().into();
        let free = self.config.pools.iter().all(|pool| pool.name != name);
        if free {
            self.config.pools.push(Arc::new(Pool {
                name,
                engine: Engine::Auto,
                endpoints: vec![Endpoint::Cluster { members, token_file: None }],
                metrics: defaults::metrics(),
                forward_authorization: false,
                ca_file: None,
                client_certificate: None,
                server_name: None,
                saturation: self.config.saturation,
                priority_scheduling: false,
            }));
        }
        free
    }

    fn models(&mut self) {
        let mut claims = self.claims();
        claims.sort_by_key(|claim| (claim.object.head.created.is_none(), &claim.object.head.created, claim.name));
        let mut taken: BTreeMap<Claimed, String> = BTreeMap::new();
        for Model { name, pool, .. } in &self.config.models {
            taken.insert(Claimed::Name(Arc::clone(name)), "the configuration".to_owned());
            taken.insert(Claimed::NameInPool(Arc::clone(pool), Arc::clone(name)), "the configuration".to_owned());
        }
        for claim in claims {
            let of = (claim.kind, claim.name);
            if let Some((message, remedy)) = claim.lacks() {
                self.note(of, claim.field, Weight::Unusable, (message.to_owned(), remedy));
                continue;
            }
            let Some(pool) = self.pool_of(of, claim.pool) else { continue };
            let Some(place) = self.place(&claim, &pool, &taken) else { continue };
            let owner = format!("{} {}", claim.kind.word(), claim.name);
            for claimed in Claimed::all(claim.model, &pool) {
                taken.entry(claimed).or_insert_with(|| owner.clone());
            }
            let targets = self.targets(&claim);
            let config = &mut self.config;
            let models = match place {
                Served::Everywhere => &mut config.models,
                Served::AtItsPool => &mut config.pool_models,
                Served::ForOthers => &mut config.other_models,
            };
            models.push(Model {
                name: claim.model.unwrap_or_default().into(),
                criticality: claim.criticality,
                pool,
                targets,
                sticky: Sticky::default(),
                rewrite_response_model: claim.hides,
                timeouts: ModelTimeouts::default(),
            });
        }
    }

    /// Where a claim is in force, if it is: a name is one pool's only, but where a listener belongs to a pool it is asked
    /// for that pool's.
    fn place(&mut self, claim: &Claim<'_>, pool: &Arc<str>, taken: &BTreeMap<Claimed, String>) -> Option<Served> {
        let of = (claim.kind, claim.name);
        let taken_by = Claimed::all(claim.model, pool).find_map(|claimed| Some((taken.get(&claimed)?, claimed)));
        let Some((owner, claimed)) = taken_by else {
            return Some(if claim.model.is_some() { Served::Everywhere } else { Served::ForOthers });
        };
        let listeners = &self.config.listeners;
        let has_door = listeners.iter().any(|listener| listener.pool.as_ref() == Some(pool));
        if matches!(claimed, Claimed::Name(_)) && has_door {
            if listeners.iter().any(|listener| listener.pool.is_none()) {
                let message =
                    format!("{claimed} already in use by {owner}: this one is served at the pool's own listener");
                self.note(of, claim.field.clone(), Weight::Doubt, (message, "give one of them another name"));
            }
            return Some(Served::AtItsPool);
        }
        let message = format!("{claimed} already in use by {owner}");
        let remedy = match claim.object.head.created {
            Some(_) => "the older one stays in force; delete one of them, or give it another name",
            None => {
                "what has no creationTimestamp comes last, by NAMESPACE/NAME; delete one of them, or give it another name"
            }
        };
        self.note(of, claim.field.clone(), Weight::NameInUse, (message, remedy));
        None
    }

    fn claims(&mut self) -> Vec<Claim<'a>> {
        let world = self.world;
        let mut claims = Vec::new();
        for kind in [Kind::Model, Kind::Rewrite, Kind::AlphaRewrite] {
            for (name, object) in world.all(kind).filter(|(_, object)| !object.head.deleting) {
                let ours = |pool: &PoolRef| self.ours(&pool.beside(name));
                match &object.body {
                    Body::Model(model) if ours(&model.pool) => {
                        claims.push(Claim::of_model((kind, name), object, model));
                    }
                    Body::Rewrite(rewrite) if ours(&rewrite.pool) => {
                        self.claims_of_rewrite((kind, name), object, rewrite, &mut claims);
                    }
                    _ => {}
                }
            }
        }
        claims
    }

    fn claims_of_rewrite(
        &mut self,
        of: (Kind, &'a ObjectName),
        object: &'a Object,
        rewrite: &'a RewriteBody,
        claims: &mut Vec<Claim<'a>>,
    ) {
        for (number, rule) in rewrite.rules.iter().enumerate() {
            let matches = rule.matches.as_deref().unwrap_or_default();
            if matches.is_empty() || matches.iter().any(|it| it.model.is_none()) {
                let every = (None, format!("spec.rules[{number}]"));
                claims.push(Claim::of_rule(of, object, (&rewrite.pool, rule, number), every));
            }
            let models = matches.iter().enumerate().filter_map(|(at, it)| Some((at, it.model.as_ref()?)));
            for (at, model) in models {
                let field = format!("spec.rules[{number}].matches[{at}].model");
                if let Some(how) = model.how.as_deref().filter(|how| *how != "Exact") {
                    let message = format!("models are not matched by `{how}`");
                    self.note(of, field + ".type", Weight::Unusable, (message, "write `Exact`"));
                    continue;
                }
                let one = (Some(model.value.as_str()), field + ".value");
                claims.push(Claim::of_rule(of, object, (&rewrite.pool, rule, number), one));
            }
        }
    }

    /// The pool that a reference leads to.
    fn pool_of(&mut self, of: (Kind, &ObjectName), reference: &PoolRef) -> Option<Arc<str>> {
        if let Some(kind) = reference.kind.as_deref().filter(|kind| !kind.is_empty() && *kind != Kind::Pool.word()) {
            let message = format!("a {kind} is no pool");
            self.note(of, "spec.poolRef.kind", Weight::Unusable, (message, "write `InferencePool`"));
            return None;
        }
        let name = reference.beside(of.1);
        let pool = self.led.get(&name).cloned();
        if pool.is_none() {
            let message = format!("there is no InferencePool `{}` in namespace `{}`", name.name, name.namespace);
            let remedy = "create it, or correct the reference; it takes effect as soon as the pool is there";
            self.note(of, "spec.poolRef.name", Weight::Unusable, (message, remedy));
        }
        pool
    }

    /// The arms of a claim's split. Without weights they share equally; where only some have one, the others get nothing,
    /// as in the reference.
    fn targets(&mut self, claim: &Claim<'_>) -> Vec<TargetModel> {
        let weights = claim.targets.iter().filter_map(|(_, weight)| *weight);
        let (sum, weighted) = weights.fold((0_u64, 0), |(sum, many), weight| (sum + u64::from(weight), many + 1));
        if weighted > 0 && weighted < claim.targets.len() && sum > 0 {
            let message = "some target models have a weight and some have none: those get nothing".to_owned();
            let remedy = "give a weight to all of them, or to none";
            self.note((claim.kind, claim.name), claim.targets_field.clone(), Weight::Doubt, (message, remedy));
        }
        if claim.targets.is_empty() {
            return vec![TargetModel { name: claim.model.unwrap_or_default().into(), weight: 1 }];
        }
        let share = |weight: Option<u32>| match sum {
            0 => 1,
            _ => weight.unwrap_or(0).min(defaults::LARGEST_WEIGHT),
        };
        claim
            .targets
            .iter()
            .map(|(name, weight)| TargetModel { name: (*name).into(), weight: share(*weight) })
            .collect()
    }

    fn objectives(&mut self) {
        let world = self.world;
        let mut found: BTreeMap<&ObjectName, Objective> = BTreeMap::new();
        for kind in [Kind::Objective, Kind::AlphaObjective] {
            for (name, object) in world.all(kind).filter(|(_, object)| !object.head.deleting) {
                let Body::Objective(objective) = &object.body else { continue };
                if !self.ours(&objective.pool.beside(name)) {
                    continue;
                }
                let Some(pool) = self.pool_of((kind, name), &objective.pool) else { continue };
                let objective = Objective { name: name.clone(), pool, priority: objective.priority };
                // The newer group's counts where both have one.
                found.entry(name).or_insert(objective);
            }
        }
        self.config.objectives = found.into_values().collect();
    }
}
