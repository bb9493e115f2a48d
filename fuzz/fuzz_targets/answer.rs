//! The answer of a pod, cut anywhere: refused or read alike, and no more is taken for its data than came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::upstream::{Read, read};

fuzz_target!(|input: (u8, bool, Vec<u8>)| {
    let (size, to_head, wire) = input;
    let whole = read([wire.as_slice()], to_head);
    // How much lies behind is only known where all of it came at once.
    let plain = |read: Option<Read>| read.map(|read| Read { behind: 0, ..read });
    let cut = plain(read(wire.chunks(usize::from(size).max(1)), to_head));
    let whole = plain(whole);
    assert_eq!(cut, whole);
    let Some(read) = whole else { return };
    assert!(read.data.len() <= wire.len());
    assert!(!to_head || read.data.is_empty());
    if read.keep_alive {
        let framed = ["content-length", "transfer-encoding"].into_iter().filter(|name| read.fields.contains_key(*name));
        assert!(framed.count() <= 1, "two framings, and the connection is believed");
    }
    if let (true, Some(length)) = (read.over && !to_head && read.status != 304 && read.status != 204, read.fields.get("content-length"))
        && !read.fields.contains_key("transfer-encoding")
    {
        assert_eq!(length.to_str().ok().and_then(|it| it.trim().parse().ok()), Some(read.data.len()));
    }
});
