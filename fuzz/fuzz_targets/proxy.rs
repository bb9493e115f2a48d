//! The PROXY header, cut anywhere: read alike, never beyond its bound, and what follows it is left as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::edge::proxy_client;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (size, bytes) = input;
    let whole = proxy_client(&bytes, bytes.len().max(1));
    assert_eq!(proxy_client(&bytes, usize::from(size).max(1)), whole);
    let (client, left) = whole;
    assert!(bytes.len() - left <= 16 + (4 << 10));
    if client.is_ok() {
        // A header that was accepted is one whatever follows it.
        let header = &bytes[..bytes.len() - left];
        assert_eq!(proxy_client(&[header, b"GET / HTTP/1.1\r\n"].concat(), 7), (client, 16));
    }
});
