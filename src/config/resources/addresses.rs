//! Where pods are, by the word of the cluster: pods that a selector chooses, addresses of an `EndpointSlice`.
//!
//! A pod counts when it is ready and not being deleted, as for a Service; each of a pool's ports is an endpoint of its
//! own, because data-parallel ranks are told apart by their ports.

use std::net::IpAddr;

use serde::Deserialize;

use super::{
    Kind, World,
    objects::{Body, Labels, Metadata, Object, ObjectName, PodBody, SliceBody},
};
use crate::config::{Members, Origin, PortRef, Target, defaults};

/// The label by which an `EndpointSlice` names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The labels by which pods name their engine: of llm-d, of the extension before it, of Alibaba Cloud.
const ENGINE: [&str; 3] =
    ["llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type", "alibabacloud.com/inference-backend"];

/// The port that is taken where none is named, as monitoring does that finds pods by label.
const USUAL_PORT: &str = "http";

#[derive(Deserialize)]
pub(super) struct PodObject {
    metadata: Metadata,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
struct PodSpec {
    containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: u16,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(rename = "podIP")]
    ip: Option<String>,
    phase: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    what: String,
    status: String,
}

impl PodObject {
    pub(super) fn parts(self) -> (Metadata, Body) {
        let status = self.status.unwrap_or_default();
        let containers = self.spec.unwrap_or_default().containers.unwrap_or_default();
        let ports = containers.into_iter().flat_map(|it| it.ports.unwrap_or_default());
        let ready = |it: &Condition| it.what == "Ready" && it.status == "True";
        // A node that went away may have left the condition as it was.
        let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let pod = PodBody {
            // What is no address is named to nobody.
            ip: status.ip.filter(|ip| ip.parse::<IpAddr>().is_ok()),
            ready: !over && status.conditions.unwrap_or_default().iter().any(ready),
            ports: ports.map(|port| (port.name, port.container_port)).collect(),
        };
        (self.metadata, Body::Pod(pod))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceObject {
    metadata: Metadata,
    address_type: Option<String>,
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<SlicePort>>,
}

#[derive(Deserialize)]
struct SliceEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<SliceConditions>,
}

#[derive(Default, Deserialize)]
struct SliceConditions {
    ready: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
}

impl SliceObject {
    pub(super) fn parts(self) -> (Metadata, Body) {
        // Readiness that is not said is to be taken for ready, says the API.
        let usable = |it: &SliceEndpoint| {
            let said = it.conditions.as_ref();
            said.and_then(|said| said.ready) != Some(false) && said.and_then(|said| said.terminating) != Some(true)
        };
        let endpoints = self.endpoints.unwrap_or_default().into_iter().filter(usable);
        let ports = self.ports.unwrap_or_default().into_iter();
        let slice = SliceBody {
            family: self.address_type.unwrap_or_default(),
            // All addresses of one endpoint are the same pod; the API says to take the first.
            addresses: endpoints.filter_map(|it| it.addresses?.into_iter().next()).collect(),
            ports: ports.filter_map(|it| Some((it.name.filter(|name| !name.is_empty()), it.port?))).collect(),
        };
        (self.metadata, Body::Slice(slice))
    }
}

/// The pods for which `members` stand, in the order of their names.
pub fn targets(world: &World, members: &Members) -> Vec<Target> {
    match members {
        Members::InferencePool(reference) => {
            let name = world.resolve(reference);
            let Some((_, pool)) = world.pool(&name) else { return Vec::new() };
            let pods = chosen(world, &name.namespace, &pool.selector);
            pods.flat_map(|(labels, pod)| pool.ports.iter().filter_map(|port| target(labels, pod, *port))).collect()
        }
        Members::Pods { namespace, selector, port } => {
            let namespace = namespace.as_deref().unwrap_or(&world.home);
            let pods = chosen(world, namespace, selector);
            pods.filter_map(|(labels, pod)| target(labels, pod, wanted(&pod.ports, port)?)).collect()
        }
        Members::Service { namespace, name, selector, port } => {
            let namespace = namespace.as_deref().unwrap_or(&world.home);
            let mut wanted_labels = selector.clone();
            wanted_labels.extend(name.iter().map(|name| (SERVICE_NAME.to_owned(), name.clone())));
            slices(world, namespace, &wanted_labels, port)
        }
    }
}

/// The pods in `namespace` that are of use and that carry all of `selector`. A selector of nothing chooses nothing: it
/// is a slip, and all pods of a namespace are no pool.
fn chosen<'a>(
    world: &'a World,
    namespace: &'a str,
    selector: &'a Labels,
) -> impl Iterator<Item = (&'a Labels, &'a PodBody)> {
    world.of(Kind::Pod, namespace).filter_map(move |(_, object)| match &object.body {
        Body::Pod(pod) if pod.ready && !object.head.deleting && carries(&object.head.labels, selector) => {
            Some((&object.head.labels, pod))
        }
        _ => None,
    })
}

fn carries(labels: &Labels, selector: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The port that is meant: by its number; by its name; else the one called `http`, or the only one there is.
fn wanted(ports: &[(Option<String>, u16)], wanted: &PortRef) -> Option<u16> {
    let named = |word: &str| ports.iter().find(|(name, _)| name.as_deref() == Some(word)).map(|(_, port)| *port);
    match wanted {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => named(name),
        PortRef::Usual => named(USUAL_PORT).or(match ports {
            [(_, only)] => Some(*only),
            _ => None,
        }),
    }
}

fn target(labels: &Labels, pod: &PodBody, port: u16) -> Option<Target> {
    let host = pod.ip.as_deref()?;
    let engine = ENGINE.iter().find_map(|label| labels.get(*label)).map(String::as_str);
    Some(at(host, port, engine))
}

/// The target at an address. Whatever engine it is tells its page, but Triton's is on a port of its own.
fn at(host: &str, port: u16, engine: Option<&str>) -> Target {
    let origin = Origin { https: false, host: host.to_owned(), port };
    let metrics_url = engine.filter(|engine| engine.starts_with("triton")).map(|_| {
        let page = Origin { port: defaults::TRITON_METRICS_PORT, ..origin.clone() };
        format!("http://{}{}", page.authority(), defaults::METRICS_PATH)
    });
    Target { origin, base_path: String::new(), token_file: None, metrics_url }
}

/// The addresses of all slices that carry these labels. A service of two families has its pods in slices of both: the
/// first family counts, so that no pod is there twice.
fn slices(world: &World, namespace: &str, labels: &Labels, port: &PortRef) -> Vec<Target> {
    let found: Vec<(&Object, &SliceBody)> = world
        .of(Kind::Slice, namespace)
        .filter_map(|(_, object)| match &object.body {
            Body::Slice(slice) if !object.head.deleting && carries(&object.head.labels, labels) => {
                Some((object, slice))
            }
            _ => None,
        })
        .collect();
    let of_family = |family: &str| {
        let of_it = found.iter().filter(|(_, slice)| slice.family == family);
        let targets = of_it.flat_map(|(object, slice)| {
            let port = slice_port(slice, port);
            let engine = ENGINE.iter().find_map(|label| object.head.labels.get(*label)).map(String::as_str);
            slice.addresses.iter().filter_map(move |address| Some(at(address, port?, engine)))
        });
        targets.collect::<Vec<_>>()
    };
    Some(of_family("IPv4")).filter(|targets| !targets.is_empty()).unwrap_or_else(|| of_family("IPv6"))
}

/// Of a slice only the ports that it lists lead anywhere.
fn slice_port(slice: &SliceBody, port: &PortRef) -> Option<u16> {
    wanted(&slice.ports, port).filter(|number| slice.ports.iter().any(|(_, listed)| listed == number))
}

/// The values of `label` on the pods of `namespace`, ready or not: each is a workload.
pub fn workloads<'a>(world: &'a World, label: &'a str) -> impl Iterator<Item = ObjectName> {
    world.all(Kind::Pod).filter_map(move |(name, object)| {
        let value = object.head.labels.get(label)?;
        Some(ObjectName::new(&name.namespace, value))
    })
}
