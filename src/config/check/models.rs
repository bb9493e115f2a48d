//! Models, listeners and schedulers: whether every name leads somewhere, and whether anything leads to every name.

use std::{collections::BTreeSet, sync::Arc};

use super::{Sheet, address, doors, settings};
use crate::config::{
    Identity, Listener, Model, Scheduler, TargetModel, WeightedScorer, defaults,
    file::{File, ModelFile, PolicyFile, SchedulerFile, TargetModelFile},
    identity,
    listener::{ListenerFile, ListenerModelFile},
    report::suggestion,
    tree::At,
};

/// The models of the file, or none.
fn given(file: &File) -> &[ModelFile] {
    file.models.as_ref().map(|models| models.value.as_slice()).unwrap_or_default()
}

/// Every model of the file.
pub(super) fn models(file: &File, serve_reported: bool, sheet: &mut Sheet) -> Vec<Model> {
    let models = given(file);
    if models.is_empty() && sheet.models_known && !serve_reported {
        let place = file.models.as_ref().map(|models| models.place).unwrap_or_default();
        let remedy = "add `models: [ { modelName: llama2, poolRef: vllm } ]`, or remove `serve_reported_models: false`";
        sheet.error(place, "there is no model, and those that pods report are not served", remedy);
    }
    sheet.names("model", &models.iter().map(|model| &model.model_name).collect::<Vec<_>>());
    models.iter().map(|model| self::model(model, file, sheet)).collect()
}

fn model(model: &ModelFile, file: &File, sheet: &mut Sheet) -> Model {
    known_pool(&model.pool_ref, file, sheet);
    let name: Arc<str> = model.model_name.value.as_str().into();
    let targets = match &model.target_models {
        Some(targets) if !targets.value.is_empty() => self::targets(targets, sheet),
        _ => vec![TargetModel { name: Arc::clone(&name), weight: 1 }],
    };
    Model {
        name,
        criticality: model.criticality.unwrap_or_default(),
        pool: model.pool_ref.value.as_str().into(),
        targets,
        sticky: model.sticky.unwrap_or_default(),
        rewrite_response_model: model.rewrite_response_model.unwrap_or(false),
        timeouts: settings::model_timeouts(model.timeouts.as_ref(), sheet),
    }
}

fn targets(targets: &At<Vec<TargetModelFile>>, sheet: &mut Sheet) -> Vec<TargetModel> {
    sheet.names("target model", &targets.value.iter().map(|target| &target.name).collect::<Vec<_>>());
    let weighted = targets.value.iter().filter(|target| target.weight.is_some()).count();
    if let Some(bare) = targets.value.iter().find(|target| target.weight.is_none()).filter(|_| weighted > 0) {
        let message = format!("`{}` has no weight, but others here have one", bare.name.value);
        sheet.error(bare.name.place, message, "give a weight to all target models or to none (equal shares)");
    }
    for weight in targets.value.iter().filter_map(|target| target.weight.as_ref()) {
        if weight.value.0 > defaults::LARGEST_WEIGHT {
            let remedy = format!("write 0 to {}; only the proportions matter", defaults::LARGEST_WEIGHT);
            sheet.error(weight.place, format!("the weight {} is too large", weight.value.0), remedy);
        }
    }
    let weight = |target: &TargetModelFile| target.weight.as_ref().map_or(1, |weight| weight.value.0);
    if weighted > 0 && targets.value.iter().all(|target| weight(target) == 0) {
        sheet.error(
            targets.place,
            "all weights are zero, so nothing could be chosen",
            "give at least one target model a weight above 0",
        );
    }
    if targets.value.len() > defaults::TARGET_MODELS {
        let message = format!(
            "the Inference Extension allows {} target models, and here are {}",
            defaults::TARGET_MODELS,
            targets.value.len()
        );
        sheet.warning(
            targets.place,
            message,
            "Tidegate serves them all, but this cannot be carried over to an InferenceModel",
        );
    }
    targets
        .value
        .iter()
        .map(|target| TargetModel { name: target.name.value.as_str().into(), weight: weight(target) })
        .collect()
}

fn known_pool(reference: &At<String>, file: &File, sheet: &mut Sheet) {
    let names: Vec<&str> = file.pools.value.iter().map(|pool| pool.name.value.as_str()).collect();
    let elsewhere = sheet.resources && (names.is_empty() || reference.value.contains('/'));
    if sheet.pools_known && !names.is_empty() && !elsewhere && !names.contains(&reference.value.as_str()) {
        let remedy = suggestion(&reference.value, &names, "the pools are");
        sheet.error(reference.place, format!("there is no pool called `{}`", reference.value), remedy);
    }
}

/// Every listener of the file whose address can be understood.
pub(super) fn listeners(file: &File, known: &Identity, sheet: &mut Sheet) -> Vec<Listener> {
    let listeners = &file.listeners;
    if listeners.value.is_empty() && sheet.listeners_known {
        let remedy = "add one: `- { name: openai, address: 0.0.0.0:8081 }`";
        sheet.error(listeners.place, "there is no listener, so nobody could ask", remedy);
    }
    sheet.names("listener", &listeners.value.iter().map(|listener| &listener.name).collect::<Vec<_>>());
    listeners.value.iter().filter_map(|listener| self::listener(listener, (file, known), sheet)).collect()
}

fn listener(listener: &ListenerFile, (file, known): (&File, &Identity), sheet: &mut Sheet) -> Option<Listener> {
    let address = address(&listener.address, sheet);
    let scheduler = listener.scheduler.as_ref().map(|scheduler| self::scheduler(scheduler, sheet));
    let models = listener.models.as_ref().map(|models| {
        if models.value.is_empty() {
            let remedy = "name the models that it serves, or leave `models` out to serve them all";
            sheet.error(models.place, format!("listener `{}` serves no model", listener.name.value), remedy);
        }
        sheet.names("model", &models.value.iter().map(|model| &model.model_name).collect::<Vec<_>>());
        let names: Vec<&str> = given(file).iter().map(|model| model.model_name.value.as_str()).collect();
        for ListenerModelFile { model_name, pool_ref } in &models.value {
            if sheet.models_known && !names.contains(&model_name.value.as_str()) {
                let remedy = if names.is_empty() {
                    format!("add it: `models: [ {{ modelName: {}, poolRef: ... }} ]`", model_name.value)
                } else {
                    suggestion(&model_name.value, &names, "the models are")
                };
                sheet.error(model_name.place, format!("there is no model called `{}`", model_name.value), remedy);
            }
            if let Some(pool_ref) = pool_ref {
                known_pool(pool_ref, file, sheet);
            }
        }
        let name = |at: &At<String>| Arc::from(at.value.as_str());
        models.value.iter().map(|model| (name(&model.model_name), model.pool_ref.as_ref().map(name))).collect()
    });
    if let Some(pool) = &listener.pool {
        known_pool(pool, file, sheet);
        if listener.models.is_some() {
            let remedy = "keep `pool` to serve all that the pool has, or `models` to serve some models";
            sheet.error(pool.place, "`pool` and `models` both say what is served here", remedy);
        }
    }
    let pool = listener.pool.as_ref().map(|pool| pool.value.as_str().into());
    let ext_proc = settings::ext_proc(listener, sheet);
    let trust_headers = settings::trust_headers(listener);
    let credentials = identity::credentials(listener, known, sheet);
    let name = listener.name.value.as_str().into();
    Some(Listener {
        name,
        address: address?,
        scheduler,
        models,
        pool,
        ext_proc,
        credentials,
        trust_headers,
        tls: doors::tls(listener, sheet),
        network: doors::addresses(listener, sheet),
        cors: doors::cors(listener.cors.as_ref(), sheet),
    })
}

/// Pools and models that no request could reach: probably a slip, but no harm.
pub(super) fn unused(file: &File, serve_reported: bool, sheet: &mut Sheet) {
    if sheet.errors() > 0 {
        return;
    }
    let listed =
        || file.listeners.value.iter().filter_map(|listener| listener.models.as_ref()).flat_map(|models| &models.value);
    let everywhere = file.listeners.value.iter().any(|listener| listener.models.is_none());
    let offered: BTreeSet<&str> = listed().map(|model| model.model_name.value.as_str()).collect();
    for ModelFile { model_name, .. } in given(file) {
        if !everywhere && !offered.contains(model_name.value.as_str()) {
            let remedy = "add it to a listener's `models`, or remove it";
            sheet.warning(model_name.place, format!("no listener serves model `{}`", model_name.value), remedy);
        }
    }
    let bound = file.listeners.value.iter().filter_map(|listener| listener.pool.as_ref());
    let references = given(file).iter().map(|model| &model.pool_ref);
    let references = references.chain(listed().filter_map(|model| model.pool_ref.as_ref())).chain(bound);
    let referred: BTreeSet<&str> = references.map(|reference| reference.value.as_str()).collect();
    for pool in &file.pools.value {
        if !serve_reported && !referred.contains(pool.name.value.as_str()) {
            let remedy = "name it in a model's `poolRef`, or remove it";
            sheet.warning(pool.name.place, format!("no model uses pool `{}`", pool.name.value), remedy);
        }
    }
}

/// A scheduler with its scorers.
pub(super) fn scheduler(file: &SchedulerFile, sheet: &mut Sheet) -> Scheduler {
    if let Some(scorers) = file.scorers.as_ref().filter(|_| file.policy.value != PolicyFile::Weighted) {
        sheet.error(
            scorers.place,
            "`scorers` are read only by `policy: weighted`",
            "write `policy: weighted`, or remove `scorers`",
        );
    }
    match file.policy.value {
        PolicyFile::LeastCost => Scheduler::LeastCost,
        PolicyFile::Weighted => Scheduler::Weighted(scorers(file, sheet)),
        PolicyFile::LeastRequest => Scheduler::LeastRequest,
        PolicyFile::PowerOfTwo => Scheduler::PowerOfTwo,
        PolicyFile::RoundRobin => Scheduler::RoundRobin,
        PolicyFile::Random => Scheduler::Random,
        PolicyFile::SessionHash => Scheduler::SessionHash,
    }
}

fn scorers(file: &SchedulerFile, sheet: &mut Sheet) -> Vec<WeightedScorer> {
    let Some(given) = &file.scorers else {
        return defaults::SCORERS.to_vec();
    };
    let mut scorers: Vec<WeightedScorer> = Vec::new();
    for scorer in &given.value {
        if scorers.iter().any(|earlier| earlier.scorer == scorer.name.value) {
            sheet.error(scorer.name.place, "this scorer is listed twice", "keep one, with the sum of the weights");
        }
        let weight = scorer.weight.as_ref().map_or(defaults::SCORER_WEIGHT, |weight| weight.value);
        if let Some(at) = scorer.weight.as_ref().filter(|_| !weight.is_finite() || weight < 0.0) {
            sheet.error(at.place, format!("the weight {weight} is not usable"), "write a number, 0 or more");
        }
        scorers.push(WeightedScorer { scorer: scorer.name.value, weight });
    }
    if scorers.iter().all(|scorer| scorer.weight == 0.0) {
        let remedy = "give at least one scorer a weight above 0, or leave `scorers` out for the defaults";
        sheet.error(given.place, "no scorer counts, so every pod would score the same", remedy);
    }
    scorers
}
