//! The two edits that a request may need, made in place.
//!
//! The served model's name replaces the client's, and usage is asked for; every other byte stays as the client wrote
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
        self.model.is_none_or(|model| model == ask.model) && !(self.include_usage && ask.lacks_usage())
    }
}

/// The body with `changes` made. `ask` must have been parsed from this very body.
pub fn splice(body: &[u8], ask: &Ask, changes: &Changes<'_>) -> Bytes {
    let model = changes.model.filter(|model| *model != ask.model).map(|model| model_edit(ask, model));
    let usage = (changes.include_usage && ask.lacks_usage()).then(|| usage_edit(body, ask)).flatten();
    let mut edits: Vec<Edit> = model.into_iter().chain(usage).collect();
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

fn usage_edit(body: &[u8], ask: &Ask) -> Option<Edit> {
    const MEMBER: &str = r#""include_usage":true"#;
    let Some(options) = ask.stream_options.clone() else {
        let inside = body.iter().position(|byte| *byte == b'{')? + 1;
        return Some(Edit { at: inside..inside, text: format!(r#""stream_options":{{{MEMBER}}},"#) });
    };
    let raw = body.get(options.clone())?;
    if raw == b"null" {
        return Some(Edit { at: options, text: format!("{{{MEMBER}}}") });
    }
    let top = Top::read(raw).ok()?;
    if let Some(value) = top.raw("include_usage") {
        let value = top.span(value);
        return Some(Edit { at: options.start + value.start..options.start + value.end, text: "true".to_owned() });
    }
    let inside = options.start + 1;
    let comma = if top.is_empty() { "" } else { "," };
    Some(Edit { at: inside..inside, text: format!("{MEMBER}{comma}") })
}
