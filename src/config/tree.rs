//! YAML text to a tree in which every value knows its place.
//!
//! Why a tree first: serde stops at the first misfit, and an operator wants to hear of all of them. The tree lets
//! [`super::shape`] set a misfit aside and go on. Only text that is not YAML at all still ends at its first error.

use std::{cell::Cell, fmt};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::report::{Finding, Place};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) kind: Kind,
    /// Set once a problem with it has been reported, so that it is passed over from then on.
    pub(super) dropped: Cell<bool>,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Whole(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a map.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) value: Node,
    /// The field that a misspelt key was taken for, once that has been reported.
    pub(super) meant: Cell<Option<&'static str>>,
}

impl Entry {
    /// The field that this entry is read as.
    pub(super) fn field(&self) -> &str {
        self.meant.get().unwrap_or(&self.key)
    }
}

/// Reads one YAML document.
pub(super) fn parse(text: &str) -> Result<Node, Finding> {
    parse_with(text, options())
}

/// The same for a list of tens of thousands of entries.
pub(super) fn parse_large(text: &str) -> Result<Node, Finding> {
    let mut options = options();
    options.budget = serde_saphyr::budget! { max_events: 2_000_000, max_nodes: 1_000_000, max_depth: 32 };
    parse_with(text, options)
}

fn parse_with(text: &str, options: serde_saphyr::Options) -> Result<Node, Finding> {
    match serde_saphyr::from_str_with_options::<Spanned<Kind>>(text, options) {
        Ok(root) => Ok(Node::from(root)),
        Err(error) => Err(finding(text, &error)),
    }
}

/// Reads any number of YAML documents, `---` between them; empty ones are left out.
pub(super) fn parse_all(text: &str) -> Result<Vec<Node>, Finding> {
    match serde_saphyr::from_multiple_with_options::<Spanned<Kind>>(text, options()) {
        Ok(documents) => Ok(documents.into_iter().map(Node::from).collect()),
        Err(error) => Err(finding(text, &error)),
    }
}

/// Duplicate keys pass here because `shape` reports them all; booleans are `true` and `false` alone, so that a model
/// called `no` stays a word. The budgets are far above any real file and far below what would hurt.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
        with_snippet: false,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! { max_events: 200_000, max_nodes: 100_000, max_depth: 32 },
    }
}

impl From<Spanned<Kind>> for Node {
    fn from(spanned: Spanned<Kind>) -> Self {
        let mut place = place(&spanned.referenced);
        if matches!(spanned.value, Kind::List(_) | Kind::Map(_) | Kind::Null) {
            place.length = 1;
        }
        Self { place, kind: spanned.value, dropped: Cell::new(false) }
    }
}

fn place(location: &Location) -> Place {
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Place { line: narrow(location.line()), column: narrow(location.column()), length: narrow(location.span().len()) }
}

/// A parser's error in our words where it is a common one, with what to do about it.
fn finding(text: &str, error: &serde_saphyr::Error) -> Finding {
    use serde_saphyr::Error;
    let mut error = error.without_snippet();
    let mut at = error.location().map(|location| place(&location)).unwrap_or_default();
    while let Error::AliasError { error: inner, .. } = error {
        error = inner;
    }
    at.length = 1;
    if let Some(place) = tab_indent(text, at.line) {
        return Finding::error(
            place,
            "a tab is used for indentation",
            "YAML allows only spaces there: replace each tab by two spaces",
        );
    }
    let (message, remedy) = match error {
        Error::MultipleDocuments { .. } => (
            "there is more than one YAML document".to_owned(),
            "keep one configuration in one file: remove the `---` and what follows it",
        ),
        Error::UnknownAnchor { .. } => {
            ("this alias has no anchor".to_owned(), "write `&name` before the value that `*name` shall repeat")
        }
        Error::Unexpected { expected: "string scalar", .. } => {
            ("a key has to be text".to_owned(), "write the key as one word and its value after `: `")
        }
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => (
            "this file is larger or more deeply nested than any configuration".to_owned(),
            "split it: endpoints can live in a file of their own (`file: endpoints.yaml`)",
        ),
        Error::UnsupportedTag { tag, .. } => {
            (format!("the tag `{tag}` is not supported"), "remove the tag and write the value plainly")
        }
        other => (
            format!("this is not valid YAML: {}", plain_message(other)),
            if needs_quotes(text, at.line) {
                "a value that begins with `[` or `{`, or holds one of them or a `:` within `{ }`, is not plain text to \
                 YAML: put it in quotes, such as `\"[::]:8081\"`"
            } else {
                "look at the line and the one above: indentation, a missing `:`, an open quote, bracket or brace"
            },
        ),
    };
    Finding::error(at, message, remedy)
}

/// The parser's own sentence without its position, which we show ourselves.
fn plain_message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::{DefaultMessageFormatter, MessageFormatter};
    DefaultMessageFormatter.format_message(error).into_owned()
}

/// Whether the line at fault looks like text that YAML takes for a list or map: `[::]:8081`, or a bracket, brace or
/// colon inside an inline value.
fn needs_quotes(text: &str, line: u32) -> bool {
    let line = text.lines().zip(1_u32..).find(|(_, number)| *number == line).map_or("", |(line, _)| line);
    let inline = line.split_once('{').map_or("", |(_, inline)| inline);
    let letters = inline.chars().zip(inline.chars().skip(1));
    let glued = |(letter, next): (char, char)| match letter {
        ':' => !next.is_whitespace(),
        letter => letter.is_alphanumeric() && matches!(next, '[' | '{'),
    };
    line.contains("[::") || letters.into_iter().any(glued)
}

/// The first line up to the error's own, or just after it, that is indented with a tab.
fn tab_indent(text: &str, error_line: u32) -> Option<Place> {
    let lines = text.lines().zip(1_u32..).take_while(|(_, number)| *number <= error_line.saturating_add(1));
    for (line, number) in lines {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        let tab = line.chars().take(indent).position(|letter| letter == '\t');
        if let (Some(column), false) = (tab, line.trim().is_empty()) {
            return Some(Place { line: number, column: u32::try_from(column).ok()?.saturating_add(1), length: 1 });
        }
    }
    None
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        Kind::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Kind, E> {
        Ok(Kind::Whole(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Kind, E> {
        i128::try_from(value).map(Kind::Whole).map_err(|_| E::custom("this number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Kind, E> {
        Ok(Kind::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Kind>>()? {
            list.push(Node::from(item));
        }
        Ok(Kind::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = items.next_entry::<Spanned<String>, Spanned<Kind>>()? {
            map.push(Entry {
                key_place: place(&key.referenced),
                key: key.value,
                value: Node::from(value),
                meant: Cell::new(None),
            });
        }
        Ok(Kind::Map(map))
    }
}

/// A value with the place where it stands; by default nothing, nowhere.
#[derive(Clone, Debug, Default)]
pub(super) struct At<T> {
    /// The value.
    pub(super) value: T,
    /// Where it stands.
    pub(super) place: Place,
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// How [`At`] asks `shape` for a place; no YAML value can be a newtype struct of this name.
pub(super) const AT: &str = "tidegate::At";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pair<T> {
            type Value = At<T>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a value with its place")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let mut number = || parts.next_element::<u32>().map(Option::unwrap_or_default);
                let place = Place { line: number()?, column: number()?, length: number()? };
                let value = parts.next_element()?.ok_or_else(|| de::Error::custom("a place without a value"))?;
                Ok(At { value, place })
            }
        }
        deserializer.deserialize_newtype_struct(AT, Pair(std::marker::PhantomData))
    }
}
