//! What another world changes of the pools and models in force, for people.

use std::{collections::BTreeMap, sync::Arc};

use crate::config::{Config, Model};

/// One line for each pool, model and objective that came, went or is different. Pods are no difference: they come and
/// go without anybody being told.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let pools = |config: &Config| -> BTreeMap<String, _> {
        config.pools.iter().map(|pool| (format!("pool {}", pool.name), (Arc::clone(pool), String::new()))).collect()
    };
    let models = |config: &Config| -> BTreeMap<String, _> {
        config.models.iter().map(|model| (format!("model {}", model.name), (model.clone(), said(model)))).collect()
    };
    let objectives = |config: &Config| -> BTreeMap<String, _> {
        let said = |priority: i32| format!("priority {priority}");
        let one = |it: &super::Objective| (format!("objective {}", it.name), (it.clone(), said(it.priority)));
        config.objectives.iter().map(one).collect()
    };
    let others = |config: &Config| -> BTreeMap<String, _> {
        let one = |it: &Model| (format!("other models of pool {}", it.pool), (it.clone(), said(it)));
        config.other_models.iter().map(one).collect()
    };
    let of_pools = |config: &Config| -> BTreeMap<String, _> {
        let one = |it: &Model| (format!("model {} of pool {}", it.name, it.pool), (it.clone(), said(it)));
        config.pool_models.iter().map(one).collect()
    };
    let mut told = compared(&pools(old), &pools(new));
    told.extend(compared(&models(old), &models(new)));
    told.extend(compared(&of_pools(old), &of_pools(new)));
    told.extend(compared(&others(old), &others(new)));
    told.extend(compared(&objectives(old), &objectives(new)));
    told
}

fn compared<T: PartialEq>(old: &BTreeMap<String, (T, String)>, new: &BTreeMap<String, (T, String)>) -> Vec<String> {
    let spaced = |said: &str| if said.is_empty() { String::new() } else { format!(" {said}") };
    let mut told = Vec::new();
    for (name, (_, said)) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
        told.push(format!("{name}: removed{}", spaced(said)));
    }
    for (name, (is, said)) in new {
        match old.get(name) {
            None => told.push(format!("{name}: added{}", spaced(said))),
            Some((was, before)) if was != is && before != said => told.push(format!("{name}: {before} -> {said}")),
            Some((was, _)) if was != is => told.push(format!("{name}: changed")),
            Some(_) => {}
        }
    }
    told
}

/// Where a model goes.
fn said(model: &Model) -> String {
    let arms: Vec<String> = model.targets.iter().map(|target| format!("{} {}", target.name, target.weight)).collect();
    format!("pool {}, {:?}, {}", model.pool, model.criticality, arms.join(", "))
}
