//! A search for JSON's own words, without parsing: inside a string a quote is always escaped, so a key with its bare
//! quotes can only be a key. What stands behind it is judged by its first bytes.

use memchr::memmem::Finder;

/// A key with its quotes.
#[derive(Debug)]
pub(in crate::openai) struct Word {
    finder: Finder<'static>,
}

impl Word {
    pub(in crate::openai) fn new(quoted: &'static str) -> Self {
        Self { finder: Finder::new(quoted) }
    }

    pub(in crate::openai) fn any(&self, json: &[u8], wanted: impl Fn(&[u8]) -> bool) -> bool {
        self.find(json, wanted).is_some()
    }

    /// What begins behind the first of these keys whose value is `wanted`.
    pub(in crate::openai) fn find<'a>(&self, json: &'a [u8], wanted: impl Fn(&[u8]) -> bool) -> Option<&'a [u8]> {
        let mut rest = json;
        loop {
            let at = self.finder.find(rest)? + self.finder.needle().len();
            rest = rest.get(at..)?;
            if let Some(value) = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start)
                && wanted(value)
            {
                return Some(value);
            }
        }
    }
}

/// A string or a list that is not empty.
pub(in crate::openai) fn has_content(value: &[u8]) -> bool {
    match value {
        [b'"', next, ..] => *next != b'"',
        [b'[', next, ..] => *next != b']',
        _ => false,
    }
}
