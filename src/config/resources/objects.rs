//! Kubernetes objects, as far as Tidegate reads them: a few fields of each, whatever else stands in them.
//!
//! Every field may be missing, because the API server and other versions of the same kind decide what is there, and an
//! object that lacks something is told of and not refused with all others. What differs between versions is evened out
//! here; nothing is judged.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, de::DeserializeOwned};

use super::Kind;
use crate::config::Criticality;

/// The name of an object of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

impl ObjectName {
    /// `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// An object, whatever its kind.
#[derive(Debug, Deserialize)]
pub(super) struct Typed<S> {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<S>,
    status: Option<Status>,
}

/// `status`, where it is ours to write.
#[derive(Debug, Deserialize)]
struct Status {
    conditions: Option<Vec<Condition>>,
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub what: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// Of which version of the object that was said.
    pub observed_generation: Option<i64>,
    /// Since when the status is so.
    pub last_transition_time: Option<String>,
}

/// The condition that says whether an `InferenceModel` is in force.
pub(super) const ACCEPTED: &str = "Accepted";

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<Labels>,
    /// RFC 3339 in UTC to the second, as the API server writes it: the older text is the older time.
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) generation: Option<i64>,
}

/// Labels, or the labels that a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) labels: Labels,
    pub(super) created: Option<String>,
    pub(super) deleting: bool,
    pub(super) generation: Option<i64>,
}

/// An object of a known kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub(super) head: Head,
    pub(super) body: Body,
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body {
    Pool(PoolBody),
    Model(ModelBody),
    Rewrite(RewriteBody),
    Objective(ObjectiveBody),
    Pod(PodBody),
    Slice(SliceBody),
}

/// `InferencePool`, of either group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolBody {
    pub(super) selector: Labels,
    pub(super) ports: Vec<u16>,
}

/// `InferenceModel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelBody {
    pub(super) model_name: String,
    pub(super) criticality: Criticality,
    pub(super) targets: Vec<(String, Option<u32>)>,
    pub(super) pool: PoolRef,
    /// What was last said of it.
    pub(super) accepted: Option<Condition>,
}

/// `InferenceModelRewrite`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RewriteBody {
    pub(super) pool: PoolRef,
    pub(super) rules: Vec<Rule>,
}

/// `InferenceObjective`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectiveBody {
    pub(super) pool: PoolRef,
    pub(super) priority: i32,
}

/// `Pod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodBody {
    /// Its address, once it has one.
    pub(super) ip: Option<String>,
    pub(super) ready: bool,
    /// The ports that its containers name.
    pub(super) ports: Vec<(Option<String>, u16)>,
}

/// `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceBody {
    pub(super) family: String,
    /// The first address of each endpoint that is ready.
    pub(super) addresses: Vec<String>,
    pub(super) ports: Vec<(Option<String>, u16)>,
}

/// `poolRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct PoolRef {
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) name: String,
}

impl PoolRef {
    /// The pool that it means in an object of that name: one of the same namespace.
    pub(super) fn beside(&self, object: &ObjectName) -> ObjectName {
        ObjectName { namespace: Arc::clone(&object.namespace), name: self.name.as_str().into() }
    }
}

/// A rule of an `InferenceModelRewrite`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Rule {
    pub(super) matches: Option<Vec<Match>>,
    pub(super) targets: Option<Vec<RewriteTarget>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Match {
    pub(super) model: Option<ModelMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ModelMatch {
    #[serde(rename = "type")]
    pub(super) how: Option<String>,
    pub(super) value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct RewriteTarget {
    #[serde(rename = "modelRewrite")]
    pub(super) model: String,
    pub(super) weight: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolSpec {
    selector: Option<Selector>,
    target_ports: Option<Vec<TargetPort>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: Option<Labels>,
}

#[derive(Deserialize)]
struct TargetPort {
    number: u16,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AlphaPoolSpec {
    selector: Option<Labels>,
    target_port_number: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelSpec {
    #[serde(default)]
    model_name: String,
    criticality: Option<Criticality>,
    target_models: Option<Vec<TargetModelSpec>>,
    pool_ref: Option<PoolRef>,
}

#[derive(Deserialize)]
struct TargetModelSpec {
    name: String,
    weight: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RewriteSpec {
    pool_ref: Option<PoolRef>,
    rules: Option<Vec<Rule>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectiveSpec {
    pool_ref: Option<PoolRef>,
    priority: Option<i32>,
}

impl From<PoolSpec> for PoolBody {
    fn from(spec: PoolSpec) -> Self {
        let ports = spec.target_ports.unwrap_or_default();
        Self {
            selector: spec.selector.and_then(|selector| selector.match_labels).unwrap_or_default(),
            ports: ports.into_iter().map(|port| port.number).collect(),
        }
    }
}

impl From<AlphaPoolSpec> for PoolBody {
    fn from(spec: AlphaPoolSpec) -> Self {
        Self { selector: spec.selector.unwrap_or_default(), ports: spec.target_port_number.into_iter().collect() }
    }
}

impl From<ModelSpec> for ModelBody {
    fn from(spec: ModelSpec) -> Self {
        let targets = spec.target_models.unwrap_or_default();
        Self {
            model_name: spec.model_name,
            criticality: spec.criticality.unwrap_or_default(),
            targets: targets.into_iter().map(|target| (target.name, target.weight)).collect(),
            pool: spec.pool_ref.unwrap_or_default(),
            accepted: None,
        }
    }
}

impl From<RewriteSpec> for RewriteBody {
    fn from(spec: RewriteSpec) -> Self {
        Self { pool: spec.pool_ref.unwrap_or_default(), rules: spec.rules.unwrap_or_default() }
    }
}

impl From<ObjectiveSpec> for ObjectiveBody {
    fn from(spec: ObjectiveSpec) -> Self {
        // Without a priority: 0, as the API has it.
        Self { pool: spec.pool_ref.unwrap_or_default(), priority: spec.priority.unwrap_or_default() }
    }
}

/// Whatever can be read as one of the shapes here: JSON from an API server, or YAML with places from a file.
pub(super) trait Readable {
    type Error;

    /// Reads the whole object as a `T`.
    fn typed<T: DeserializeOwned>(&self) -> Result<T, Self::Error>;
}

impl Object {
    /// Reads an object of this kind; its name, with `home` where it names no namespace, and what it says.
    pub(super) fn read<R: Readable>(kind: Kind, from: &R, home: &str) -> Result<(ObjectName, Self), R::Error> {
        let (metadata, body) = match kind {
            Kind::Pool => of(from.typed::<Typed<PoolSpec>>()?, |spec| Body::Pool(spec.into())),
            Kind::AlphaPool => of(from.typed::<Typed<AlphaPoolSpec>>()?, |spec| Body::Pool(spec.into())),
            Kind::Model => {
                let mut object = from.typed::<Typed<ModelSpec>>()?;
                let conditions = object.status.take().and_then(|status| status.conditions).unwrap_or_default();
                let accepted = conditions.into_iter().find(|it| it.what == ACCEPTED);
                of(object, |spec| Body::Model(ModelBody { accepted, ..spec.into() }))
            }
            Kind::Rewrite | Kind::AlphaRewrite => {
                of(from.typed::<Typed<RewriteSpec>>()?, |spec| Body::Rewrite(spec.into()))
            }
            Kind::Objective | Kind::AlphaObjective => {
                of(from.typed::<Typed<ObjectiveSpec>>()?, |spec| Body::Objective(spec.into()))
            }
            Kind::Pod => from.typed::<super::addresses::PodObject>()?.parts(),
            Kind::Slice => from.typed::<super::addresses::SliceObject>()?.parts(),
        };
        let namespace = metadata.namespace.as_deref().filter(|it| !it.is_empty()).unwrap_or(home);
        let name = ObjectName::new(namespace, &metadata.name);
        let head = Head {
            labels: metadata.labels.unwrap_or_default(),
            created: metadata.creation_timestamp,
            deleting: metadata.deletion_timestamp.is_some(),
            generation: metadata.generation,
        };
        Ok((name, Self { head, body }))
    }

    /// Reads what an API server sent.
    ///
    /// # Errors
    /// If it is no object of this kind.
    pub fn from_json(kind: Kind, json: serde_json::Value) -> Result<(ObjectName, Self), serde_json::Error> {
        Self::read(kind, &Json(json), "")
    }
}

fn of<S: Default>(object: Typed<S>, body: impl FnOnce(S) -> Body) -> (Metadata, Body) {
    (object.metadata, body(object.spec.unwrap_or_default()))
}

struct Json(serde_json::Value);

impl Readable for Json {
    type Error = serde_json::Error;

    fn typed<T: DeserializeOwned>(&self) -> Result<T, Self::Error> {
        T::deserialize(&self.0)
    }
}
