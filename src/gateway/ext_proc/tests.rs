//! What a real Envoy said, byte for byte, against what is read of it here.

use http::StatusCode;
use prost::Message as _;

use super::{
    head::{AnswerHead, Head},
    session::{Decided, Heard, Session, Terms},
    wire::{BodySendMode, HeaderMutation, ProcessingRequest, Said, Struct},
};

const CHAT: [&[u8]; 3] = [
    include_bytes!("../../../tests/fixtures/ext_proc/chat-request-head.bin"),
    include_bytes!("../../../tests/fixtures/ext_proc/chat-request-body.bin"),
    include_bytes!("../../../tests/fixtures/ext_proc/chat-request-end.bin"),
];
const ANSWER: [&[u8]; 3] = [
    include_bytes!("../../../tests/fixtures/ext_proc/chat-answer-head.bin"),
    include_bytes!("../../../tests/fixtures/ext_proc/chat-answer-body.bin"),
    include_bytes!("../../../tests/fixtures/ext_proc/chat-answer-end.bin"),
];
const GET: &[u8] = include_bytes!("../../../tests/fixtures/ext_proc/get-request-head.bin");

fn session() -> Session {
    // As if nothing were known: Envoy says how it is set.
    Session::new(Terms { request: BodySendMode::None, response: BodySendMode::None, body: 1_000, head: (100, 10_000) })
}

#[test]
fn a_recorded_chat_is_read_and_its_answer_too() {
    let mut session = session();
    let mut whole = None;
    for bytes in CHAT {
        match session.hear(ProcessingRequest::decode(bytes).unwrap()) {
            Heard::Replies(replies) => assert!(replies.is_empty()),
            Heard::Request(it) => whole = Some(it),
            other => panic!("{other:?}"),
        }
    }
    let whole = whole.unwrap();
    assert_eq!(whole.body.len(), 75);
    let head = Head::read(whole.head, whole.noted);
    assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(head.headers["x-latin"].as_bytes(), b"caf\xe9");
    assert_eq!(head.headers["content-type"], "application/json");
    assert_eq!(head.subset().unwrap(), ["127.0.0.1:18001", "[::1]:18002"]);
    let metadata = Struct::of_text("k", "v".to_owned());
    let decided = Decided { mutation: HeaderMutation::default(), metadata, body: whole.body, changed: false };
    assert_eq!(session.decided(decided).len(), 2);

    let Heard::AnswerHead(told) = session.hear(ProcessingRequest::decode(ANSWER[0]).unwrap()) else { panic!("a head") };
    let head = AnswerHead::read(told.0, told.1);
    assert_eq!((head.status, head.served()), (StatusCode::OK, Some("127.0.0.1:18001")));
    assert!(!head.is_envoys_own());
    for (bytes, end) in [(ANSWER[1], false), (ANSWER[2], true)] {
        let Heard::AnswerPiece(piece) = session.hear(ProcessingRequest::decode(bytes).unwrap()) else {
            panic!("a piece")
        };
        assert_eq!((piece.end_of_stream, piece.body.is_empty()), (end, end));
        assert_eq!(session.piece_read(piece, None).len(), 1);
    }
}

#[test]
fn a_recorded_get_is_whole_with_its_head() {
    assert!(matches!(session().hear(ProcessingRequest::decode(GET).unwrap()), Heard::Request(_)));
}

#[test]
fn bytes_cut_anywhere_or_changed_are_refused_or_read_but_never_upset() {
    for bytes in CHAT.into_iter().chain(ANSWER) {
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x55;
            for bytes in [&bytes[..at], &changed] {
                if let Ok(message) = ProcessingRequest::decode(bytes) {
                    if let Some(Said::RequestHeaders(head)) = message.said.clone() {
                        drop(Head::read(head, super::session::Noted::default()).subset());
                    }
                    drop(session().hear(message));
                }
            }
        }
    }
}
