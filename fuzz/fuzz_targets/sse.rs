//! A stream of events, cut anywhere: everything that watches or edits it does the same as for the whole.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::openai::{BodyWatch, Dialect, Endpoint, Frames, Framing, Lexicon, ModelRenamer, StreamWatch, UsageStripper};

fn pieces(bytes: &[u8], cuts: &[u8]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(bytes);
    let mut pieces = Vec::new();
    for cut in cuts.iter().chain(std::iter::repeat(&255)) {
        if rest.is_empty() {
            break;
        }
        pieces.push(rest.split_to(usize::from(*cut).max(1).min(rest.len())));
    }
    pieces
}

fn events(pieces: &[Bytes]) -> Vec<(Option<String>, Vec<u8>)> {
    let (mut frames, mut seen) = (Frames::new(), Vec::new());
    for piece in pieces {
        frames.feed(piece, |event| seen.push((event.event.map(str::to_owned), event.data.to_vec())));
    }
    frames.finish(|event| seen.push((event.event.map(str::to_owned), event.data.to_vec())));
    seen
}

fn watched(pieces: &[Bytes], dialect: Dialect, endpoint: Endpoint) -> String {
    let mut watch = StreamWatch::new(dialect, &Lexicon::default()).with_text(endpoint);
    let mut tokens = 0;
    for piece in pieces {
        tokens += watch.feed(piece).tokens;
    }
    tokens += watch.finish().tokens;
    let text = watch.text().map(|text| text.text().to_vec());
    format!("{tokens} {:?} {:?} {:?} {text:?}", watch.usage(), watch.end(), watch.response_id())
}

fn edited(pieces: &[Bytes], framing: Framing) -> Vec<u8> {
    let (mut strip, mut rename) = (UsageStripper::new(), ModelRenamer::new("an \"other\"", framing));
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&rename.push(strip.push(piece.clone())));
    }
    out.extend_from_slice(&rename.push(strip.finish()));
    out.extend_from_slice(&rename.finish());
    out
}

fn whole(pieces: &[Bytes]) -> String {
    let mut watch = BodyWatch::new(&Lexicon::default()).with_text(Endpoint::ChatCompletions);
    for piece in pieces {
        watch.feed(piece);
    }
    watch.finish();
    format!("{:?} {:?} {:?} {:?}", watch.usage(), watch.end(), watch.response_id(), watch.text().map(|it| it.text().to_vec()))
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (cuts, stream) = input;
    let (cut, uncut) = (pieces(&stream, &cuts), [Bytes::copy_from_slice(&stream)]);
    assert_eq!(events(&cut), events(&uncut));
    for (dialect, endpoint) in [
        (Dialect::OpenAi, Endpoint::ChatCompletions),
        (Dialect::OpenAi, Endpoint::Completions),
        (Dialect::Anthropic, Endpoint::Messages),
        (Dialect::Responses, Endpoint::Responses),
    ] {
        assert_eq!(watched(&cut, dialect, endpoint), watched(&uncut, dialect, endpoint));
    }
    for framing in [Framing::Events, Framing::Whole] {
        assert_eq!(edited(&cut, framing), edited(&uncut, framing));
    }
    assert_eq!(whole(&cut), whole(&uncut));
});
