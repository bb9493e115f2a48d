//! `EndpointPickerConfig`: the reference picker's own configuration. It is recognised, and not followed.
//!
//! Who moves over from that picker has one, so a start must neither fail for it nor be silent about it. Its scorers and
//! their weights are knobs for what the policy least-cost puts a price on; to take them over would be to give that up
//! unasked. So every plugin is sorted by what its absence means here, and each sort is one sentence. Parameters are not
//! looked at.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::{shape, tree};

/// Its word in `kind:`.
const KIND: &str = "EndpointPickerConfig";

/// What least-cost puts a price on: queues, running requests, the KV cache, cached prefixes, loaded adapters.
const PRICED: [&str; 11] = [
    "queue-scorer",
    "running-requests-size-scorer",
    "kv-cache-utilization-scorer",
    "prefix-cache-scorer",
    "precise-prefix-cache-scorer",
    "no-hit-lru-scorer",
    "lora-affinity-scorer",
    "load-aware-scorer",
    "active-request-scorer",
    "token-load-scorer",
    "latency-scorer",
];

/// What is always done here.
const BUILT_IN: [&str; 9] = [
    "openai-parser",
    "max-score-picker",
    "single-profile-handler",
    "approx-prefix-cache-producer",
    "inflight-load-producer",
    "token-producer",
    "metrics-data-source",
    "core-metrics-extractor",
    "models-data-source",
];

/// What says, besides everything that ends in `-filter`, which pods may be chosen at all.
const NARROWING: [&str; 6] = [
    "by-label",
    "by-label-selector",
    "disagg-profile-handler",
    "pd-profile-handler",
    "data-parallel-profile-handler",
    "header-profile-handler",
];

/// Endings of types of plugins that the reference has and that do something else.
const OTHER_ENDINGS: [&str; 12] = [
    "-scorer",
    "-picker",
    "-parser",
    "-producer",
    "-admitter",
    "-detector",
    "-fairness",
    "-fairness-policy",
    "-ordering-policy",
    "-policy",
    "-source",
    "-extractor",
];

/// As far as it is read.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    plugins: Option<Vec<Plugin>>,
    scheduling_profiles: Option<Vec<Profile>>,
    flow_control: Option<serde::de::IgnoredAny>,
    saturation_detector: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Plugin {
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Profile {
    plugins: Option<Vec<Weighed>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Weighed {
    plugin_ref: String,
    weight: Option<f64>,
}

/// What has to be said of `text` if it is an `EndpointPickerConfig`, or was meant to be one; else `None`.
pub fn picker_config(text: &str) -> Option<Vec<String>> {
    let says_so = |line: &str| line.split_once("kind").is_some_and(|(_, rest)| rest.contains(KIND));
    if !text.lines().any(says_so) {
        return None;
    }
    let read = tree::parse(text).map(|root| shape::read_part::<File>(&root));
    Some(match read {
        Ok(shape::Reading { value: Some(file), .. }) => told(&file),
        _ => vec!["it cannot be read, and nothing of it counts".to_owned()],
    })
}

fn told(file: &File) -> Vec<String> {
    let profiles = file.scheduling_profiles.as_deref().unwrap_or_default();
    let weighed = profiles.iter().flat_map(|profile| profile.plugins.as_deref().unwrap_or_default());
    let weights: BTreeMap<&str, f64> = weighed.filter_map(|it| Some((it.plugin_ref.as_str(), it.weight?))).collect();
    let [mut priced, mut built_in, mut narrowing, mut others, mut unknown] = [const { Vec::new() }; 5];
    for Plugin { name, kind } in file.plugins.as_deref().unwrap_or_default() {
        let kind = kind.as_str();
        if PRICED.contains(&kind) {
            let weight = weights.get(name.as_deref().unwrap_or(kind)).map(|weight| format!(" ({weight})"));
            priced.push(format!("{kind}{}", weight.unwrap_or_default()));
        } else if BUILT_IN.contains(&kind) {
            built_in.push(kind.to_owned());
        } else if NARROWING.contains(&kind) || kind.ends_with("-filter") {
            narrowing.push(kind.to_owned());
        } else if OTHER_ENDINGS.iter().any(|ending| kind.ends_with(ending)) {
            others.push(kind.to_owned());
        } else {
            unknown.push(kind.to_owned());
        }
    }
    others.extend(file.flow_control.is_some().then(|| "flowControl".to_owned()));
    others.extend(file.saturation_detector.is_some().then(|| "saturationDetector".to_owned()));
    let sentences = [
        (priced, "priced by least-cost itself, without weights"),
        (built_in, "built in"),
        (narrowing, "passed over, so every ready pod of the pool may be chosen"),
        (others, "passed over"),
        (unknown, "not known here and passed over"),
    ];
    let told = sentences.into_iter().filter(|(names, _)| !names.is_empty());
    told.map(|(names, what)| format!("{what}: {}", names.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: queue-scorer
- { type: prefix-cache-scorer, name: prefix, parameters: { blockSize: 64 } }
- type: max-score-picker
- { type: decode-filter }
- type: disagg-profile-handler
- type: session-affinity-scorer
- type: frobnicator
schedulingProfiles:
- name: default
  plugins:
  - { pluginRef: queue-scorer, weight: 2 }
  - { pluginRef: prefix, weight: 2.5 }
  - pluginRef: max-score-picker
flowControl: { maxRequests: 100 }
";

    #[test]
    fn every_plugin_is_named_with_what_becomes_of_it() {
        assert_eq!(
            picker_config(WHOLE).unwrap(),
            [
                "priced by least-cost itself, without weights: queue-scorer (2), prefix-cache-scorer (2.5)",
                "built in: max-score-picker",
                "passed over, so every ready pod of the pool may be chosen: decode-filter, disagg-profile-handler",
                "passed over: session-affinity-scorer, flowControl",
                "not known here and passed over: frobnicator",
            ]
        );
        let json = r#"{"kind": "EndpointPickerConfig", "plugins": [{"type": "by-label"}]}"#;
        assert_eq!(picker_config(json).unwrap().len(), 1);
    }

    #[test]
    fn a_broken_one_is_told_of_and_anything_else_is_not_one() {
        assert_eq!(picker_config("kind: EndpointPickerConfig\nplugins: [").unwrap().len(), 1);
        let odd = "kind: EndpointPickerConfig\nplugins: 7\nschedulingProfiles: [{ plugins: [{ weight: many }] }]";
        assert_eq!(picker_config(odd), Some(Vec::new()), "nothing is asked for that could be named");
        assert_eq!(picker_config("listeners: []\n# not an EndpointPickerConfig"), None);
    }
}
