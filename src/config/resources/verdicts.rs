//! What the owner of an `InferenceModel` is to read in its status: whether it is in force, and if not, why.
//!
//! Every gateway over the same objects comes to the same words, so it does not matter which of them writes.

use super::{
    Kind, Note, ObjectName, Weight, World,
    objects::{ACCEPTED, Body, Condition},
};

/// The longest message: what the API allows is 32,768 bytes, and nobody reads so much.
const LONGEST: usize = 1_024;

/// What is to be said of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The `InferenceModel`.
    pub name: ObjectName,
    /// What its status should say; without a time if it has to be now.
    pub condition: Condition,
    /// Whether it says so already.
    pub said: bool,
}

/// What is to be said of every model of `world`, after `notes` were made of it.
pub fn verdicts(world: &World, notes: &[Note]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (name, object) in world.all(Kind::Model).filter(|(_, object)| world.complete && !object.head.deleting) {
        let Body::Model(model) = &object.body else { continue };
        let against = |note: &&Note| note.kind == Kind::Model && note.name == *name && note.weight != Weight::Doubt;
        let (status, reason, message) = match notes.iter().find(against) {
            None => ("True", "Accepted", "in force".to_owned()),
            Some(note) if note.weight == Weight::NameInUse => ("False", "ModelNameInUse", said(note)),
            // The API has no word for it: what is lacking may come.
            Some(note) => ("Unknown", "Pending", said(note)),
        };
        let before = model.accepted.as_ref();
        let since = before.filter(|it| it.status == status).and_then(|it| it.last_transition_time.clone());
        let condition = Condition {
            what: ACCEPTED.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            observed_generation: object.head.generation,
            last_transition_time: since,
        };
        verdicts.push(Verdict { name: name.clone(), said: before == Some(&condition), condition });
    }
    verdicts
}

fn said(note: &Note) -> String {
    format!("{}: {}; {}", note.field, note.message, note.remedy).chars().take(LONGEST).collect()
}
