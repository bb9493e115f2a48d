//! The list of models: as a pod reports it, and as clients read it from us.
//!
//! Only what both sides agree on is kept; an engine's `permission` list and the like are left out.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One entry of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelCard {
    /// The name to ask for.
    pub id: String,
    /// What its weights are called or where they lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The base model, if this is an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Who made it, in the server's view.
    #[serde(default)]
    pub owned_by: String,
    /// Since when it is there, in Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// The longest context, prompt and answer together, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
}

#[derive(Serialize)]
struct Shown<'a> {
    object: &'static str,
    #[serde(flatten)]
    card: &'a ModelCard,
}

/// The answer to `GET /v1/models`.
pub fn list(cards: &[ModelCard]) -> Bytes {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: Vec<Shown<'a>>,
    }
    to_bytes(&List { object: "list", data: cards.iter().map(shown).collect() })
}

/// The answer to `GET /v1/models/{name}`.
pub fn one(card: &ModelCard) -> Bytes {
    to_bytes(&shown(card))
}

/// What a pod answers to `GET /v1/models`.
pub fn parse_list(body: &[u8]) -> Result<Vec<ModelCard>, serde_json::Error> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<ModelCard>,
    }
    serde_json::from_slice::<List>(body).map(|list| list.data)
}

fn shown(card: &ModelCard) -> Shown<'_> {
    Shown { object: "model", card }
}

#[expect(clippy::expect_used, reason = "strings, numbers and lists always have a JSON form, and memory takes any")]
fn to_bytes(answer: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(answer).expect("a list of models has a JSON form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_list_is_read_with_its_adapters() {
        let body = br#"{"object":"list","data":[
            {"id":"llama2","object":"model","created":1763000000,"owned_by":"vllm","root":"/models/llama2",
             "parent":null,"max_model_len":4096,"permission":[{"id":"modelperm-1","allow_view":true}]},
            {"id":"sql","object":"model","created":1763000001,"owned_by":"vllm","root":"/adapters/sql",
             "parent":"llama2","max_model_len":null}]}"#;
        let cards = parse_list(body).unwrap();
        assert_eq!(cards.len(), 2);
        assert_eq!(cards[0].max_model_len, Some(4096));
        assert_eq!(cards[0].parent, None);
        assert_eq!((cards[1].id.as_str(), cards[1].parent.as_deref()), ("sql", Some("llama2")));
    }

    #[test]
    fn a_sparse_list_is_enough_and_a_list_of_something_else_is_not() {
        let cards = parse_list(br#"{"data":[{"id":"m","meta":{"n_params":1}}]}"#).unwrap();
        assert_eq!(cards, [ModelCard { id: "m".to_owned(), ..ModelCard::default() }]);
        assert!(parse_list(br#"{"data":[{"name":"m"}]}"#).is_err());
        assert!(parse_list(br#"{"detail":"Not Found"}"#).is_err());
    }

    #[test]
    fn our_list_is_what_sdks_expect() {
        let card =
            ModelCard { id: "m".to_owned(), owned_by: "tidegate".to_owned(), created: 7, ..ModelCard::default() };
        let shown = r#"{"object":"model","id":"m","owned_by":"tidegate","created":7}"#;
        assert_eq!(one(&card), shown.as_bytes());
        assert_eq!(list(&[card]), format!(r#"{{"object":"list","data":[{shown}]}}"#).as_bytes());
        assert_eq!(list(&[]), r#"{"object":"list","data":[]}"#.as_bytes());
    }
}
