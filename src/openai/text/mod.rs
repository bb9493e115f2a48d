//! Prompts and answers in one form: what a model reads of them, whatever JSON they came in.
//!
//! A conversation's next turn repeats the answer of the last, but never in the same JSON: the client's own escapes,
//! key order and empty fields stand around it. So strings are spelt in one way, a turn is its role and its content, and
//! structure becomes bytes that UTF-8 never uses. Then the form of a prompt, with the form of its answer behind it, is
//! the beginning of the next prompt's. It is made to be compared and hashed, not to be read; it need not be what the
//! engine's template makes of the same, only be the same where that is the same.

mod answer;
mod cursor;
mod lexicon;
mod plain;
#[cfg(test)]
mod tests;
mod word;

use std::ops::Range;

pub use answer::AnswerText;
pub(super) use cursor::Cursor;
pub use lexicon::Lexicon;
pub(super) use word::{Word, has_content};

use self::plain::Plain;
use super::Endpoint;

/// Begins a turn; its role follows.
const TURN: u8 = 0xff;

/// Ends a role; what is said follows.
const SAYS: u8 = 0xfe;

/// Begins what is taken as it lies.
const AS_IS: u8 = 0xfd;

/// Begins a tool call; the tool's name follows.
const CALL: u8 = 0xfc;

/// Ends a tool's name; its arguments follow.
const WITH: u8 = 0xfb;

/// One of the values that make a prompt, and where it stands in the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is to the prompt.
    pub(super) kind: Kind,
    /// Where it stands.
    pub(super) span: Range<usize>,
}

/// What a value is to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A list of turns, or one user's words.
    Turns,
    /// What the system says.
    System,
    /// Text without turns.
    Text,
    /// Anything else, taken as it lies: tools, documents, token ids.
    Given,
}

/// Gives the form of a prompt to `take`, piece by piece, at least up to `most` bytes. Returns the length of all of it,
/// what lies behind counted as it lies.
pub(super) fn prompt(parts: &[Part], body: &[u8], most: usize, take: &mut dyn FnMut(&[u8])) -> usize {
    let mut plain = Plain::prompt(take, most);
    for part in parts {
        let Some(value) = body.get(part.span.clone()) else { continue };
        let mut at = Cursor::new(value);
        match part.kind {
            Kind::Turns if at.peek() == Some(b'[') => plain.turns(&mut at),
            Kind::Turns => plain.said_by(b"user", &mut at),
            Kind::System => plain.said_by(b"system", &mut at),
            Kind::Text if at.peek() == Some(b'"') => plain.content(&mut at),
            Kind::Text | Kind::Given => plain.as_is(at.value()),
        }
        plain.skipped(at.rest().len());
    }
    plain.finish()
}

/// What opens the answer to a prompt for `endpoint`.
fn opening(endpoint: Endpoint) -> &'static [u8] {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Messages | Endpoint::Responses => b"\xffassistant\xfe",
        _ => b"",
    }
}
