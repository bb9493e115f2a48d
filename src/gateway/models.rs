//! `GET /v1/models`: what the configuration names and what pods report, in one list.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{House, ListenerPolicy};
use crate::{
    admission::Caller,
    openai::{self, ModelCard},
};

/// Who owns a model, where nobody says: OpenAI's field is required, and SDK users print it.
const OWNER: &str = "tidegate";

impl House {
    /// What pods report, by name, with an adapter's base.
    pub(super) fn reported_models(&self, policy: &ListenerPolicy) -> BTreeMap<Arc<str>, Option<Arc<str>>> {
        let pods = policy.pools_of(self).flat_map(|pool| pool.pods().to_vec());
        let models = pods.filter_map(|pod| pod.models()).flat_map(|models| models.to_vec());
        models.map(|model| (model.name, model.parent)).collect()
    }

    fn cards(&self, policy: &ListenerPolicy) -> Vec<ModelCard> {
        let reported = self.reported_models(policy);
        let mut cards: Vec<ModelCard> =
            policy.table.names().map(|name| card(name, reported.get(name).and_then(Option::as_deref))).collect();
        if policy.table.serves_reported() {
            for (name, parent) in &reported {
                if !cards.iter().any(|card| card.id == **name) {
                    cards.push(card(name, parent.as_deref()));
                }
            }
        }
        cards
    }

    /// Every name that may be asked for at this listener.
    pub(super) fn served_names(&self, policy: &ListenerPolicy) -> Vec<String> {
        self.cards(policy).into_iter().map(|card| card.id).collect()
    }

    /// Those that `caller` may ask for: it learns of no other.
    fn cards_for(&self, policy: &ListenerPolicy, caller: &Caller) -> Vec<ModelCard> {
        self.cards(policy).into_iter().filter(|card| caller.may_ask_for(&card.id)).collect()
    }

    /// The list.
    pub(super) fn models(&self, policy: &ListenerPolicy, caller: &Caller) -> Bytes {
        openai::list(&self.cards_for(policy, caller))
    }

    /// One entry of it.
    pub(super) fn model(&self, policy: &ListenerPolicy, caller: &Caller, name: &str) -> Option<Bytes> {
        self.cards_for(policy, caller).iter().find(|card| card.id == name).map(openai::one)
    }
}

fn card(name: &str, parent: Option<&str>) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        root: parent.map(|_| name.to_owned()),
        parent: parent.map(ToOwned::to_owned),
        owned_by: OWNER.to_owned(),
        // When a model was made is not known here; the epoch is what a client can tell as such.
        created: 0,
        max_model_len: None,
    }
}
