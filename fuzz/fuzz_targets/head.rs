//! The head of a request, cut anywhere: refused or accepted alike, and what is accepted has one length and whole lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::edge::accepts;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (size, head) = input;
    let whole = accepts([head.as_slice()]);
    assert_eq!(accepts(head.chunks(usize::from(size).max(1))), whole);
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let Some(end) = text.find("\r\n\r\n").filter(|_| whole && !text.starts_with("\r\n")) else { return };
    let lines: Vec<&str> = text[..end].split("\r\n").collect();
    assert!(lines.iter().all(|line| !line.contains('\n') && !line.contains('\r')));
    let framing = |line: &&&str| line.starts_with("content-length:") || line.starts_with("transfer-encoding:");
    assert!(lines.iter().skip(1).filter(framing).count() <= 1);
});
