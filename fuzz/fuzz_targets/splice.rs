//! A body with another model's name in it: what is read back is that name, and all else is as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::openai::{Ask, Changes, Endpoint, splice};

fuzz_target!(|input: (String, bool, Vec<u8>)| {
    let (name, include_usage, body) = input;
    let Ok(ask) = Ask::parse(Endpoint::ChatCompletions, None, &body) else { return };
    if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        return;
    }
    let changes = Changes { model: Some(&name), include_usage };
    let changed = splice(&body, &ask, &changes);
    let again = Ask::parse(Endpoint::ChatCompletions, None, &changed).expect("it can still be read");
    assert_eq!(again.model, name);
    assert_eq!(again.stream, ask.stream);
    assert_eq!(again.include_usage, ask.include_usage || (include_usage && ask.lacks_usage()));
    let texts = |ask: &Ask, body: &[u8]| {
        let mut text = Vec::new();
        ask.prompt_text(body, usize::MAX, |piece| text.extend_from_slice(piece));
        text
    };
    assert_eq!(texts(&again, &changed), texts(&ask, &body));
    assert_eq!(changes.change_nothing(&ask), changed == body);
});
