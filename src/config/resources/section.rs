//! The configuration's side: the section `kubernetes`, and endpoints that stand for what a cluster says.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Kubernetes, Labels, Members, PortRef, Reference};
use crate::config::{check::Sheet, file::EndpointFile, tree::At};

/// Inference resources: from the cluster, or from files.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ namespaces: [default] }`")]
pub(in crate::config) struct KubernetesFile {
    /// The namespaces that are looked at; "*" for all. Default: the one that the gateway runs in.
    pub(in crate::config) namespaces: Option<Vec<At<String>>>,
    /// How to reach the cluster from outside. Default: as a pod in it does, else as kubectl does.
    pub(in crate::config) kubeconfig: Option<At<PathBuf>>,
    /// A directory of YAML or JSON manifests that is read instead of asking a cluster, again when it changes; also
    /// `--manifests`.
    pub(in crate::config) manifests: Option<At<PathBuf>>,
    /// Whether `InferenceModel`s are told in their status whether they are in force. Default: true.
    pub(in crate::config) write_status: Option<bool>,
    /// A pod label whose every value is a pool of its own, named NAMESPACE/VALUE, for those without `InferencePool`s, such
    /// as alibabacloud.com/inference-workload or kaito.sh/workspace. Default: none.
    pub(in crate::config) workload_label: Option<At<String>>,
    /// Whether only those `InferencePool`s count that a pool of this file names, with what refers to them; the others are
    /// somebody else's, and no status is written. Default: false, every one is a pool.
    pub(in crate::config) named_pools_only: Option<bool>,
}

/// An object by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a reference, such as `{ name: vllm-llama2-7b-pool }`")]
pub(in crate::config) struct ReferenceFile {
    /// Its name.
    pub(in crate::config) name: At<String>,
    /// Its namespace. Default: the first of `kubernetes.namespaces`, else the gateway's own.
    pub(in crate::config) namespace: Option<At<String>>,
}

/// Pods by label.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "pods, such as `{ selector: { app: vllm }, port: 8000 }`")]
pub(in crate::config) struct PodsFile {
    /// The labels that they carry.
    pub(in crate::config) selector: At<Labels>,
    /// Their namespace. Default: the first of `kubernetes.namespaces`, else the gateway's own.
    pub(in crate::config) namespace: Option<At<String>>,
    /// Number or name of the port. Default: the one named http, else the only one.
    #[schemars(with = "Option<String>")]
    pub(in crate::config) port: Option<At<PortText>>,
}

/// What is behind a Service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a Service, such as `{ name: workspace-qwen }`")]
pub(in crate::config) struct ServiceFile {
    /// Its name.
    pub(in crate::config) name: Option<At<String>>,
    /// Instead of a name: the labels that it carries; several Services may.
    pub(in crate::config) selector: Option<At<Labels>>,
    /// Its namespace. Default: the first of `kubernetes.namespaces`, else the gateway's own.
    pub(in crate::config) namespace: Option<At<String>>,
    /// Name of its port, or number of the pods' port. Default: the one named http, else the only one.
    #[schemars(with = "Option<String>")]
    pub(in crate::config) port: Option<At<PortText>>,
}

/// A port, by number or name.
#[derive(Clone, Debug)]
pub(in crate::config) struct PortText(PortRef);

impl<'de> Deserialize<'de> for PortText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = PortText;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a port, such as 8000 or http")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<PortText, E> {
                match u16::try_from(number) {
                    Ok(port) if port > 0 => Ok(PortText(PortRef::Number(port))),
                    _ => Err(E::custom(format!("{number} is not a port\nwrite a number from 1 to 65535, or a name"))),
                }
            }

            fn visit_str<E>(self, name: &str) -> Result<PortText, E> {
                Ok(PortText(name.parse().map_or_else(|_| PortRef::Name(name.to_owned()), PortRef::Number)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The section; `manifests` is what the command line said.
pub(in crate::config) fn kubernetes(
    file: Option<&KubernetesFile>,
    manifests: Option<PathBuf>,
    sheet: &mut Sheet,
) -> Option<Kubernetes> {
    let nothing = KubernetesFile::default();
    let file = match (file, &manifests) {
        (Some(file), _) => file,
        (None, Some(_)) => &nothing,
        (None, None) => return None,
    };
    let namespaces = file.namespaces.as_deref().unwrap_or_default();
    for namespace in namespaces.iter().filter(|it| it.value != "*" && !is_label(&it.value)) {
        let remedy = "write its name as `kubectl get namespaces` shows it, or `\"*\"` for all";
        sheet.error(namespace.place, format!("`{}` is not a namespace", namespace.value), remedy);
    }
    if let (Some(at), Some(_)) = (&file.kubeconfig, &file.manifests) {
        let message = "with `manifests` no cluster is asked, so `kubeconfig` has no effect";
        sheet.warning(at.place, message, "remove one of them");
    }
    if let Some(label) = file.workload_label.as_ref().filter(|label| label.value.is_empty()) {
        sheet.error(label.place, "this is not a label", "write one, such as `alibabacloud.com/inference-workload`");
    }
    let named_pools_only = file.named_pools_only.unwrap_or(false);
    Some(Kubernetes {
        named_pools_only,
        namespaces: namespaces.iter().map(|it| it.value.clone()).collect(),
        kubeconfig: file.kubeconfig.as_ref().map(|path| path.value.clone()),
        by_hand: manifests.is_some(),
        manifests: manifests.or_else(|| file.manifests.as_ref().map(|path| path.value.clone())),
        // Whoever owns a model looks there, and nowhere else. Who looks at some pools only knows half of who has a name.
        write_status: file.write_status.unwrap_or(true) && !named_pools_only,
        workload_label: file.workload_label.as_ref().map(|label| label.value.clone()),
    })
}

/// Whether this is a name that a namespace may have.
fn is_label(text: &str) -> bool {
    let letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    !text.is_empty() && text.chars().all(letter) && !text.starts_with('-') && !text.ends_with('-')
}

/// The pods that an endpoint stands for, if it names any of a cluster's.
pub(in crate::config) fn members(endpoint: &EndpointFile, sheet: &mut Sheet) -> Option<Members> {
    let text = |at: &Option<At<String>>| at.as_ref().map(|at| at.value.clone());
    let port = |at: &Option<At<PortText>>| at.as_ref().map_or(PortRef::Usual, |at| at.value.0.clone());
    if let Some(pool) = &endpoint.inference_pool {
        let (namespace, name) = (text(&pool.value.namespace), pool.value.name.value.clone());
        return Some(Members::InferencePool(Reference { namespace, name }));
    }
    if let Some(pods) = &endpoint.pods {
        let PodsFile { selector, namespace, port: number } = &pods.value;
        if selector.value.is_empty() {
            let remedy = "name at least one label, such as `{ app: vllm }`";
            sheet.error(selector.place, "this selector chooses no pod", remedy);
        }
        return Some(Members::Pods {
            namespace: text(namespace),
            selector: selector.value.clone(),
            port: port(number),
        });
    }
    let service = endpoint.service.as_ref()?;
    let ServiceFile { name, selector, namespace, port: number } = &service.value;
    let labels = selector.as_ref().map(|selector| selector.value.clone()).unwrap_or_default();
    if name.is_some() != labels.is_empty() {
        let remedy = "give the Service's `name`, or as `selector` the labels that it carries";
        sheet.error(service.place, "this does not say which Service is meant", remedy);
    }
    Some(Members::Service { namespace: text(namespace), name: text(name), selector: labels, port: port(number) })
}
