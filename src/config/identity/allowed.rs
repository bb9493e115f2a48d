//! Which models somebody may ask for.

use std::sync::Arc;

/// Names of models, in which `*` stands for anything; none of them: no model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedModels(Arc<[Box<str>]>);

impl AllowedModels {
    /// These.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        Self(names.into_iter().map(|name| name.as_ref().into()).collect())
    }

    /// Whether `model` is among them.
    pub fn allows(&self, model: &str) -> bool {
        self.0.iter().any(|name| matches(name, model))
    }

    /// As they were written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for any number of characters.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is the best: it leaves the most for what follows.
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_all_else_for_itself() {
        for (pattern, text, is) in [
            ("llama", "llama", true),
            ("llama", "llama2", false),
            ("llama", "", false),
            ("*", "", true),
            ("*", "anything/at all", true),
            ("llama-*", "llama-", true),
            ("llama-*", "my-llama-7b", false),
            ("*-7b", "llama-7b", true),
            ("*-7b", "llama-7b-chat", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*bc", "abc", false),
            ("a**c", "abc", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
        assert!(!AllowedModels::new::<&str>([]).allows("m"), "no name, no model");
        assert!(AllowedModels::new(["a", "b*"]).allows("bx"));
    }
}
