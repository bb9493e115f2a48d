//! A path: what is passed to a pod is plain, whatever reads it there.
#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::openai::{Endpoint, classify};

fuzz_target!(|path: &str| {
    for method in [Method::GET, Method::POST] {
        let Ok(asked) = classify(&method, path, &["/v1/extra".to_owned()]) else { continue };
        if asked.endpoint == Endpoint::ModelById {
            let name = asked.decoded_id().expect("a name");
            assert!(!name.is_empty() && !name.chars().any(char::is_control));
            continue;
        }
        assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"%\\;?#".contains(&byte)));
        assert!(path[1..].split('/').all(|segment| !["", ".", ".."].contains(&segment)));
    }
});
