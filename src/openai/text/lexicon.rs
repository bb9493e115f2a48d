//! The keys that answers are searched for, made ready once and shared: to prepare one takes longer than to read an event.

use std::{ops::Deref, sync::Arc};

use super::Word;

/// All keys; together they are four kilobytes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lexicon(Arc<Words>);

impl Deref for Lexicon {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.0
    }
}

/// The words of a [`Lexicon`].
#[derive(Debug)]
pub struct Words {
    pub(in crate::openai) usage: Word,
    pub(in crate::openai) error: Word,
    pub(in crate::openai) detail: Word,
    pub(in crate::openai) finish_reason: Word,
    pub(in crate::openai) stop_reason: Word,
    pub(in crate::openai) id: Word,
    pub(in crate::openai) status: Word,
    pub(in crate::openai) number: Word,
    pub(in crate::openai) message: Word,
    pub(in crate::openai) delta: Word,
    pub(in crate::openai) content: Word,
    pub(in crate::openai) text: Word,
    pub(in crate::openai) reasoning_content: Word,
    pub(in crate::openai) reasoning: Word,
    pub(in crate::openai) tool_calls: Word,
    pub(in crate::openai) thinking: Word,
    pub(in crate::openai) signature: Word,
    pub(in crate::openai) partial_json: Word,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            usage: Word::new("\"usage\""),
            error: Word::new("\"error\""),
            detail: Word::new("\"detail\""),
            finish_reason: Word::new("\"finish_reason\""),
            stop_reason: Word::new("\"stop_reason\""),
            id: Word::new("\"id\""),
            status: Word::new("\"status\""),
            number: Word::new("\"sequence_number\""),
            message: Word::new("\"message\""),
            delta: Word::new("\"delta\""),
            content: Word::new("\"content\""),
            text: Word::new("\"text\""),
            reasoning_content: Word::new("\"reasoning_content\""),
            reasoning: Word::new("\"reasoning\""),
            tool_calls: Word::new("\"tool_calls\""),
            thinking: Word::new("\"thinking\""),
            signature: Word::new("\"signature\""),
            partial_json: Word::new("\"partial_json\""),
        }
    }
}

impl Words {
    pub(in crate::openai) fn openai_content(&self) -> [&Word; 5] {
        [&self.content, &self.text, &self.reasoning_content, &self.reasoning, &self.tool_calls]
    }

    pub(in crate::openai) fn anthropic_content(&self) -> [&Word; 3] {
        [&self.text, &self.partial_json, &self.thinking]
    }
}
