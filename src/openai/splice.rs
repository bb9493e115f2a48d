//! The edits that a request may need, made in place.
//!
//! The served model's name replaces the client's, usage is asked for, tenants' caches are kept apart; every other byte stays as the client wrote
//! it, because number precision, key order and unknown fields are the client's business and the engine's.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Ask, ask::Top};

/// What to change in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    /// The model's name for the pod.
    pub model: Option<&'a str>,
    /// Whether to ask for usage at the end of a stream whose client did not ask.
    pub include_usage: bool,
}

impl Changes<'_> {
    /// Whether the body can go on as it is, without a copy.
    pub fn change_nothing(&self, ask: &Ask) -> bool {
        self.model.is_none_or(|model| model == ask.model)
            && !(self.include_usage && ask.lacks_usage())
            && ask.salt_for_pod.is_none()
    }
}

/// The body with `changes` made. `ask` must have been parsed from this very body.
pub fn splice(body: &[u8], ask: &Ask, changes: &Changes<'_>) -> Bytes {
    let model = changes.model.filter(|model| *model != ask.model).map(|model| model_edit(ask, model));
    let usage = (changes.include_usage && ask.lacks_usage()).then(|| usage_edit(body, ask)).flatten();
    let salt = ask.salt_for_pod.as_deref().and_then(|salt| salt_edit(body, ask, salt));
    let mut edits: Vec<Edit> = model.into_iter().chain(usage.into_iter().flatten()).chain(salt).collect();
    edits.sort_by_key(|edit| edit.at.start);

    let growth: usize = edits.iter().map(|edit| edit.text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + growth);
    let mut copied = 0;
    for edit in &edits {
        out.extend_from_slice(body.get(copied..edit.at.start).unwrap_or_default());
        out.extend_from_slice(edit.text.as_bytes());
        copied = edit.at.end;
    }
    out.extend_from_slice(body.get(copied..).unwrap_or_default());
    out.freeze()
}

struct Edit {
    at: Range<usize>,
    text: String,
}

fn model_edit(ask: &Ask, model: &str) -> Edit {
    let text = if ask.endpoint.is_multipart() { model.to_owned() } else { quoted(model) };
    Edit { at: ask.model_span.clone(), text }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Asks for usage at the end, and at the end alone: without `include_usage` vLLM passes `continuous_usage_stats` over, and
/// with it each chunk would tell what the client did not ask for.
fn usage_edit(body: &[u8], ask: &Ask) -> Option<Vec<Edit>> {
    const MEMBER: &str = r#""include_usage":true"#;
    let Some(options) = ask.stream_options.clone() else {
        let inside = body.iter().position(|byte| *byte == b'{')? + 1;
        return Some(vec![Edit { at: inside..inside, text: format!(r#""stream_options":{{{MEMBER}}},"#) }]);
    };
    let raw = body.get(options.clone())?;
    if raw == b"null" {
        return Some(vec![Edit { at: options, text: format!("{{{MEMBER}}}") }]);
    }
    let top = Top::read(raw).ok()?;
    let instead = |name, text: &str| {
        let value = top.span(top.raw(name)?);
        Some(Edit { at: options.start + value.start..options.start + value.end, text: text.to_owned() })
    };
    let asked = instead("include_usage", "true").unwrap_or_else(|| {
        let inside = options.start + 1;
        let comma = if top.is_empty() { "" } else { "," };
        Edit { at: inside..inside, text: format!("{MEMBER}{comma}") }
    });
    Some([Some(asked), instead("continuous_usage_stats", "false")].into_iter().flatten().collect())
}

fn salt_edit(body: &[u8], ask: &Ask, salt: &str) -> Option<Edit> {
    let salt = quoted(salt);
    if let Some(at) = ask.salt_span.clone() {
        return Some(Edit { at, text: salt });
    }
    let inside = body.iter().position(|byte| *byte == b'{')? + 1;
    Some(Edit { at: inside..inside, text: format!(r#""cache_salt":{salt},"#) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::openai::Endpoint;

    fn spliced(body: &str, changes: Changes<'_>) -> String {
        let ask = Ask::parse(Endpoint::ChatCompletions, None, body.as_bytes()).unwrap();
        let out = splice(body.as_bytes(), &ask, &changes);
        assert_eq!(changes.change_nothing(&ask), out == body.as_bytes());
        String::from_utf8(out.to_vec()).unwrap()
    }

    const USAGE: Changes<'_> = Changes { model: None, include_usage: true };

    #[test]
    fn only_the_models_value_changes() {
        let changes = Changes { model: Some("a/\"b\""), include_usage: false };
        let body = "{ \"x\": 1.00, \"model\" :\t\"old\" , \"y\":\"model\"}";
        assert_eq!(spliced(body, changes), body.replace("\"old\"", r#""a/\"b\"""#));
        assert_eq!(spliced(body, Changes { model: Some("old"), include_usage: true }), body);
    }

    #[test]
    fn usage_is_asked_for_wherever_the_options_stand() {
        for (before, after) in [
            (
                r#"{"stream":true,"model":"m"}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true,"model":"m"}"#,
            ),
            (
                r#"{"stream":true,"stream_options":null,"model":"m"}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true},"model":"m"}"#,
            ),
            (
                r#"{"stream":true,"model":"m","stream_options":{ }}"#,
                r#"{"stream":true,"model":"m","stream_options":{"include_usage":true }}"#,
            ),
            (
                r#"{"stream":true,"model":"m","stream_options":{"a":1}}"#,
                r#"{"stream":true,"model":"m","stream_options":{"include_usage":true,"a":1}}"#,
            ),
            (
                r#"{"stream":true,"model":"m","stream_options":{"a":1,"include_usage": false}}"#,
                r#"{"stream":true,"model":"m","stream_options":{"a":1,"include_usage": true}}"#,
            ),
            (
                r#"{"stream":true,"model":"m","stream_options":{"continuous_usage_stats": true}}"#,
                r#"{"stream":true,"model":"m","stream_options":{"include_usage":true,"continuous_usage_stats": false}}"#,
            ),
        ] {
            assert_eq!(spliced(before, USAGE), after);
            assert_eq!(spliced(after, USAGE), after);
        }
        let asked =
            r#"{"stream":true,"model":"m","stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#;
        assert_eq!(spliced(asked, USAGE), asked, "who asks for both gets both");
        let whole = r#"{"model":"m"}"#;
        assert_eq!(spliced(whole, USAGE), whole);
    }

    #[test]
    fn a_salt_is_put_in_or_takes_the_place_of_the_clients_own() {
        for (before, after) in [
            (r#"{"model":"m"}"#, r#"{"cache_salt":"s","model":"m"}"#),
            (r#" { "model":"m"}"#, r#" {"cache_salt":"s", "model":"m"}"#),
            (r#"{"model":"m","cache_salt" : "mine" }"#, r#"{"model":"m","cache_salt" : "s" }"#),
            (r#"{"cache_salt":null,"model":"m"}"#, r#"{"cache_salt":"s","model":"m"}"#),
            (r#"{"cache\u005fsalt":"mine","model":"m"}"#, r#"{"cache\u005fsalt":"s","model":"m"}"#),
            (r#"{"cache_salt":{"a":1},"model":"m"}"#, r#"{"cache_salt":"s","model":"m"}"#),
        ] {
            let mut ask = Ask::parse(Endpoint::ChatCompletions, None, before.as_bytes()).unwrap();
            assert!(Changes::default().change_nothing(&ask));
            ask.put_salt("s".to_owned());
            assert!(!Changes::default().change_nothing(&ask));
            assert_eq!(splice(before.as_bytes(), &ask, &Changes::default()), after);
        }
        let body = r#"{"stream":true,"model":"old"}"#;
        let mut ask = Ask::parse(Endpoint::ChatCompletions, None, body.as_bytes()).unwrap();
        ask.put_salt("s".to_owned());
        let all = splice(body.as_bytes(), &ask, &Changes { model: Some("new"), include_usage: true });
        assert_eq!(all, r#"{"stream_options":{"include_usage":true},"cache_salt":"s","stream":true,"model":"new"}"#);
    }

    #[test]
    fn a_form_gets_the_name_as_it_is() {
        let body = "--b\r\nContent-Disposition: form-data; name=model\r\n\r\nold\r\n--b--\r\n";
        let kind = Some("multipart/form-data; boundary=b");
        let ask = Ask::parse(Endpoint::AudioTranscriptions, kind, body.as_bytes()).unwrap();
        let changes = Changes { model: Some("n/\"w"), include_usage: true };
        assert_eq!(splice(body.as_bytes(), &ask, &changes), body.replace("old", "n/\"w"));
    }

    proptest! {
        #[test]
        fn every_other_byte_stays_and_the_new_name_is_read_back(
            (before, after) in (r#"( |"a":\[1, ?2\.0\],|"b":"é\\u0041",){0,1}"#, r#"( |, "c":\{"model":"no"\}|,"d":1e5){0,1}"#),
            (old, new) in ("[a-z/é\"]{1,9}", "[A-Z\"\\\\é/]{1,9}"),
            usage: bool,
        ) {
            let old = quoted(&old);
            let body = format!(r#"{{{before}"model": {old}{after}, "stream":true}}"#);
            let changes = Changes { model: Some(&new), include_usage: usage };
            let changed = spliced(&body, changes);
            let ask = Ask::parse(Endpoint::ChatCompletions, None, changed.as_bytes()).unwrap();
            prop_assert_eq!(&ask.model, &new);
            prop_assert_eq!(ask.include_usage, usage);
            let mut back = changed;
            back.replace_range(ask.model_span, &old);
            let back = back.replace(r#""stream_options":{"include_usage":true},"#, "");
            prop_assert_eq!(back, body);
        }
    }
}
