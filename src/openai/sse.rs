//! Where one server-sent event ends and the next begins, in any chunking.
//!
//! [`Frames`] gives whole events to those who only look; those who edit what passes take the finder of boundaries
//! alone. Relaying never waits for a reader.

use memchr::memchr2;

/// Largest event that is looked into. The largest seen are a `response.completed` that repeats a whole answer and
/// chunks with 20 logprobs a token; both stay far below. A larger one is skipped and counted.
pub(super) const MAX_EVENT: usize = 1024 * 1024;

/// What a buffer may keep of its size once it is empty: every ordinary event fits, and a stream that had one large
/// event does not hold its megabyte to the end.
pub(super) const KEPT_BUFFER: usize = 16 * 1024;

/// One event: what a client would be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its `event` field, if it has one.
    pub event: Option<&'a str>,
    /// Its `data` lines, joined by line feeds.
    pub data: &'a [u8],
}

/// Splits a stream into events. An event that lies whole in one chunk is not copied.
#[derive(Debug, Default)]
pub struct Frames {
    boundary: Boundary,
    /// The beginning of an event whose end has not come yet.
    partial: Vec<u8>,
    too_large: bool,
    skipped: u64,
    joined: Vec<u8>,
}

impl Frames {
    /// A splitter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and gives every event that they complete to `each`. Comments and events without data are
    /// no events.
    pub fn feed(&mut self, chunk: &[u8], mut each: impl FnMut(Event<'_>)) {
        let (_, mut rest) = self.boundary.owed(chunk);
        while !rest.is_empty() {
            let (block, behind, complete) = self.boundary.split(rest);
            rest = behind;
            if complete && self.partial.is_empty() && !self.too_large {
                self.give(block, &mut each);
            } else {
                self.hold(block);
                if complete {
                    self.give_held(&mut each);
                }
            }
        }
    }

    /// The stream is over: gives the last event even if the blank line behind it is missing, as SDKs do.
    pub fn finish(&mut self, mut each: impl FnMut(Event<'_>)) {
        self.give_held(&mut each);
        self.boundary = Boundary::default();
    }

    /// How many events were too large to look into.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The bytes held until their event is complete.
    pub fn held(&self) -> usize {
        self.partial.capacity() + self.joined.capacity()
    }

    /// Gives up looking into the present event, and with it the bytes held of it.
    pub fn let_go(&mut self) {
        self.too_large |= !self.partial.is_empty();
        self.partial = Vec::new();
    }

    /// Whether the last bytes are the beginning of an event; a comment is none.
    pub fn in_event(&self) -> bool {
        self.too_large || self.partial.first().is_some_and(|first| *first != b':')
    }

    fn hold(&mut self, block: &[u8]) {
        // One more than the bound: the LF of a CR LF does not count, and may or may not be here.
        self.too_large |= self.partial.len() + block.len() > MAX_EVENT + 1;
        if self.too_large {
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(block);
        }
    }

    fn give_held(&mut self, each: &mut impl FnMut(Event<'_>)) {
        if std::mem::take(&mut self.too_large) {
            self.skipped += 1;
        } else {
            let mut block = std::mem::take(&mut self.partial);
            self.give(&block, each);
            if block.capacity() <= KEPT_BUFFER {
                block.clear();
                self.partial = block;
            }
        }
    }

    fn give(&mut self, block: &[u8], each: &mut impl FnMut(Event<'_>)) {
        let size = block.len() - usize::from(block.ends_with(b"\n"));
        if size > MAX_EVENT {
            self.skipped += 1;
        } else if let Some(event) = read(block, &mut self.joined) {
            each(event);
            if self.joined.capacity() > KEPT_BUFFER {
                self.joined = Vec::new();
            }
        }
    }
}

/// Reads the lines of one event. `joined` is where several data lines are put together.
pub(super) fn read<'a>(block: &'a [u8], joined: &'a mut Vec<u8>) -> Option<Event<'a>> {
    let (mut event, mut data, mut several) = (None, None, false);
    let mut rest = block;
    while !rest.is_empty() {
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (line, behind) = rest.split_at_checked(end)?;
        // The line feed of a CR LF makes an empty line here, which says nothing.
        rest = behind.get(1..).unwrap_or_default();
        if let Some(value) = field(line, b"data") {
            match data {
                None => data = Some(value),
                Some(first) => {
                    if !several {
                        joined.clear();
                        joined.extend_from_slice(first);
                        several = true;
                    }
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                }
            }
        } else if let Some(value) = field(line, b"event") {
            event = str::from_utf8(value).ok();
        }
    }
    let data = if several { joined.as_slice() } else { data? };
    Some(Event { event, data })
}

fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Finds where events end: behind an empty line, whichever of LF, CR and CR LF ends lines.
#[derive(Debug, Default)]
pub(super) struct Boundary {
    /// Whether the line that we are in has bytes.
    in_line: bool,
    /// Whether the last byte was a CR, so that a LF belongs to it.
    after_cr: bool,
    /// Whether an event ended with that CR.
    owes_lf: bool,
}

impl Boundary {
    /// Splits off what the last event is still owed: the LF of its CR LF, if the chunk was cut between the two.
    /// To be asked first with every chunk.
    pub(super) fn owed<'a>(&mut self, chunk: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        if chunk.is_empty() || !std::mem::take(&mut self.owes_lf) {
            return (&[], chunk);
        }
        self.after_cr = false;
        let lf = usize::from(chunk.starts_with(b"\n"));
        chunk.split_at_checked(lf).unwrap_or((&[], chunk))
    }

    /// Splits what follows of the present event from the rest; true if the event ends there.
    pub(super) fn split<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8], bool) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..) {
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                break;
            };
            let is_cr = rest.get(length) == Some(&b'\r');
            let belongs_to_cr = self.after_cr && length == 0 && !is_cr;
            let blank = length == 0 && !self.in_line && !belongs_to_cr;
            (self.in_line, self.after_cr) = (false, is_cr);
            at += length + 1;
            if blank {
                if is_cr {
                    let next = bytes.get(at);
                    at += usize::from(next == Some(&b'\n'));
                    (self.after_cr, self.owes_lf) = (false, next.is_none());
                }
                let (block, behind) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
                return (block, behind, true);
            }
        }
        if at < bytes.len() {
            (self.in_line, self.after_cr) = (true, false);
        }
        (bytes, &[], false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::openai::pieces;

    type Owned = (Option<String>, String);

    fn frames(chunks: &[&[u8]]) -> Vec<Owned> {
        let (mut frames, mut seen) = (Frames::new(), Vec::new());
        let mut note = |event: Event<'_>| {
            seen.push((event.event.map(str::to_owned), String::from_utf8(event.data.to_vec()).unwrap()));
        };
        for chunk in chunks {
            frames.feed(chunk, &mut note);
        }
        frames.finish(&mut note);
        seen
    }

    fn data(data: &str) -> Owned {
        (None, data.to_owned())
    }

    #[test]
    fn all_three_line_ends_end_lines() {
        for end in ["\n", "\r\n", "\r"] {
            let stream =
                [": hello", "", "data: a", "", "event: e", "data:b", "data:  c", "id: 1", "", "data", "", ""].join(end);
            let expected = [data("a"), (Some("e".to_owned()), "b\n c".to_owned()), data("")];
            assert_eq!(frames(&[stream.as_bytes()]), expected, "{end:?}");
        }
    }

    #[test]
    fn comments_and_events_without_data_are_no_events() {
        assert_eq!(frames(&[b": keep-alive\n\n:\n\nevent: ping\n\n\n\n\ndatabase: x\n\n"]), []);
    }

    #[test]
    fn a_last_event_counts_without_its_blank_line() {
        assert_eq!(frames(&[b"data: a\n\ndata: [DO", b"NE]\n"]), [data("a"), data("[DONE]")]);
        assert_eq!(frames(&[b"data: a\n\ndata: [DONE]"]), [data("a"), data("[DONE]")]);
    }

    #[test]
    fn an_event_in_one_chunk_is_not_copied() {
        let chunk = b"data: first\n\ndata: second\n\n";
        let range = chunk.as_ptr_range();
        Frames::new().feed(chunk, |event| assert!(range.contains(&event.data.as_ptr())));
    }

    #[test]
    fn an_event_beyond_the_bound_is_skipped_and_counted_however_it_comes() {
        for (size, end, skipped) in [(0, "\r\n", 0), (1, "\r\n", 1), (0, "\n", 0), (1, "\n", 1)] {
            let frame = "data: ".len() + end.len() * 2 - 1;
            let large = format!("data: {}{end}{end}data: b{end}{end}", "x".repeat(MAX_EVENT + size - frame));
            for length in [large.len(), 65_536, 1000, MAX_EVENT] {
                let (mut frames, mut last) = (Frames::new(), Vec::new());
                for chunk in large.as_bytes().chunks(length) {
                    frames.feed(chunk, |event| last = event.data.to_vec());
                    assert!(frames.partial.len() <= MAX_EVENT + 1);
                }
                assert_eq!((frames.skipped(), last.as_slice()), (skipped, b"b".as_slice()), "{size} {end:?} {length}");
            }
        }
    }

    #[test]
    fn a_large_event_is_not_held_once_it_was_given() {
        let line = format!("data: {}\n", "x".repeat(MAX_EVENT / 4));
        let event = line.repeat(3) + "\n";
        let (mut frames, mut given) = (Frames::new(), 0);
        for chunk in event.as_bytes().chunks(5_000) {
            frames.feed(chunk, |_| given += 1);
        }
        assert_eq!(given, 1);
        assert!(frames.held() <= 2 * KEPT_BUFFER, "{}", frames.held());
    }

    #[test]
    fn an_event_that_is_let_go_is_skipped_and_the_next_is_read() {
        let (mut frames, mut seen) = (Frames::new(), Vec::new());
        frames.let_go();
        for chunk in ["data: a", "", "b\n\ndata: c\n\n"] {
            frames.feed(chunk.as_bytes(), |event| seen.push(event.data.to_vec()));
            if chunk.is_empty() {
                assert!(frames.in_event());
                frames.let_go();
                assert_eq!((frames.held(), frames.in_event()), (0, true));
            }
        }
        assert_eq!((seen, frames.skipped()), (vec![b"c".to_vec()], 1));
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(stream in "(data: ?[ab]{0,3}|event: x|: c|\n|\r\n|\r){0,30}", cuts in pieces::cuts()) {
            let pieces = pieces::cut(stream.as_bytes(), &cuts);
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            prop_assert_eq!(frames(&pieces), frames(&[stream.as_bytes()]));
        }
    }
}
