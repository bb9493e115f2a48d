//! A multipart form: refused, or its model stands where it is said to stand, between two delimiters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::openai::{Ask, Changes, Endpoint, splice};

fuzz_target!(|input: (String, Vec<u8>)| {
    let (parameters, body) = input;
    for kind in [format!("multipart/form-data; boundary={parameters}"), "multipart/form-data; boundary=b".to_owned()] {
        let Ok(ask) = Ask::parse(Endpoint::AudioTranscriptions, Some(&kind), &body) else { continue };
        assert_eq!(body.get(ask.model_span.clone()), Some(ask.model.as_bytes()));
        let changed = splice(&body, &ask, &Changes { model: Some("other"), include_usage: false });
        let again = Ask::parse(Endpoint::AudioTranscriptions, Some(&kind), &changed).expect("it can still be read");
        assert_eq!(again.model, "other");
    }
});
