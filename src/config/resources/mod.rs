//! The operator's word in the language of Kubernetes: `InferencePool`, `InferenceModel` and their kin, pods and slices.
//!
//! A [`World`] is all objects at one moment, from a cluster or from files. It becomes pools and models of a
//! [`Config`](super::Config) in one place, [`furnish`], and the pods of a pool in another, [`targets`]; both are functions of the world and
//! nothing else. Where objects contradict each other the oldest wins, as everywhere in the Gateway API, and the others
//! are told of. It does no I/O and knows no API server.

mod addresses;
mod claims;
mod difference;
mod kinds;
mod manifests;
mod meaning;
mod objects;
mod picker_config;
mod section;
mod verdicts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use addresses::{targets, workloads};
pub use difference::differences;
pub use kinds::Kind;
pub use manifests::{Manifests, is_manifest};
pub use meaning::{Furnished, Note, Weight, furnish};
pub use objects::{Condition, Labels, Object, ObjectName};
pub use picker_config::picker_config;
pub(super) use section::{KubernetesFile, PodsFile, ReferenceFile, ServiceFile};
pub(super) use section::{kubernetes, members};
pub use verdicts::{Verdict, verdicts};

use objects::{Body, PoolBody};

/// Where inference resources come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// The namespaces that are looked at; empty: the gateway's own; `*` among them: all.
    pub namespaces: Vec<String>,
    /// How to reach the cluster from outside; `None`: as a pod in it does, or as kubectl does.
    pub kubeconfig: Option<std::path::PathBuf>,
    /// A directory (or one file) that is read instead of asking a cluster.
    pub manifests: Option<std::path::PathBuf>,
    /// Whether the command line named the manifests, and not the file.
    pub by_hand: bool,
    /// Whether the status of `InferenceModel`s is written.
    pub write_status: bool,
    /// The pod label whose values name pools.
    pub workload_label: Option<String>,
    /// Whether `InferencePool`s that no pool of the file stands for are somebody else's.
    pub named_pools_only: bool,
}

impl Kubernetes {
    /// Whether objects of all namespaces are looked at.
    pub fn everywhere(&self) -> bool {
        self.namespaces.iter().any(|namespace| namespace == EVERYWHERE)
    }

    /// The first namespace that is named: where objects are that name none.
    pub fn home(&self) -> Option<&str> {
        self.namespaces.iter().map(String::as_str).find(|namespace| *namespace != EVERYWHERE)
    }
}

/// All namespaces.
const EVERYWHERE: &str = "*";

/// Whose pods an endpoint of a pool stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Those of an `InferencePool`.
    InferencePool(Reference),
    /// Those that carry these labels.
    Pods {
        /// Where; `None`: where the gateway is.
        namespace: Option<String>,
        /// What they carry.
        selector: Labels,
        /// On which of their ports.
        port: PortRef,
    },
    /// Those behind a Service, or behind all Services that carry these labels.
    Service {
        /// Where; `None`: where the gateway is.
        namespace: Option<String>,
        /// The Service's name.
        name: Option<String>,
        /// What it carries.
        selector: Labels,
        /// On which of its ports.
        port: PortRef,
    },
}

/// An object by name, in the gateway's own namespace if it names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// One of a pod's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
    /// The one called `http`, or the only one.
    Usual,
}

/// Who is served first when not all can be: what an `InferenceObjective` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// The object's name, by which requests refer to it.
    pub name: ObjectName,
    /// The pool that it is for.
    pub pool: Arc<str>,
    /// Higher is served first; below 0 may be shed.
    pub priority: i32,
}

/// Objects of one kind, by name.
pub type Objects = BTreeMap<ObjectName, Arc<Object>>;

/// All objects at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The namespace of whatever names none.
    pub home: Arc<str>,
    /// Whether all there is to hear was heard at least once: before that nothing is missing, only unknown.
    pub complete: bool,
    /// Whether a label of pods names pools, so that pods are more than addresses.
    pub by_workload: bool,
    /// Workloads that had pods once: their pools stay while they have none.
    pub workloads: BTreeSet<ObjectName>,
    /// The objects.
    pub kinds: BTreeMap<Kind, Arc<Objects>>,
}

impl World {
    /// All objects of a kind.
    fn all(&self, kind: Kind) -> impl Iterator<Item = (&ObjectName, &Object)> {
        self.kinds.get(&kind).into_iter().flat_map(|objects| objects.iter()).map(|(name, object)| (name, &**object))
    }

    /// Those of one namespace.
    fn of(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Object)> {
        let first = ObjectName::new(namespace, "");
        let theirs = self.kinds.get(&kind).into_iter().flat_map(move |objects| objects.range(first.clone()..));
        theirs.map(|(name, object)| (name, &**object)).take_while(move |(name, _)| *name.namespace == *namespace)
    }

    fn resolve(&self, reference: &Reference) -> ObjectName {
        ObjectName::new(reference.namespace.as_deref().unwrap_or(&self.home), &reference.name)
    }

    /// The `InferencePool` of that name; where both groups have one, that of the newer counts. One that is being
    /// deleted is there no more.
    fn pool(&self, name: &ObjectName) -> Option<(Kind, &PoolBody)> {
        [Kind::Pool, Kind::AlphaPool].into_iter().find_map(|kind| {
            let object = self.kinds.get(&kind)?.get(name).filter(|object| !object.head.deleting)?;
            match &object.body {
                Body::Pool(pool) => Some((kind, pool)),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests;
