//! Heads of requests.

#[path = "../../src/edge/head.rs"]
mod head;

/// Whether a head that comes in these pieces is accepted.
pub fn accepts<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut head = head::Head::default();
    pieces.into_iter().all(|piece| head.accepts(piece))
}
