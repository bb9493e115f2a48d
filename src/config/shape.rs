//! A tree of YAML values to typed ones, with every misfit reported and not only the first.
//!
//! serde gives up at an error. So a value that does not fit is reported, marked as dropped and left out, and the whole
//! is read again; a struct that then lacks what was dropped is left out silently in its turn. Unknown and repeated keys
//! are seen on the way and need no second reading. What is left goes on to the checks, with a note that it has holes.

use std::{cell::RefCell, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor, value::U32Deserializer},
};

use super::{
    report::{Finding, Place, nearest, suggestion},
    tree::{AT, Entry, Kind, Node},
};

/// After so many misfits the file is something else than a configuration, and more of them help nobody.
const MOST_MISFITS: usize = 100;

/// What became of a tree.
pub(super) struct Reading<T> {
    /// The typed value, unless its root did not fit.
    pub(super) value: Option<T>,
    /// What did not fit, was not known or stood twice.
    pub(super) findings: Vec<Finding>,
}

/// Reads a typed value from a tree.
pub(super) fn read<T: de::DeserializeOwned>(root: &Node) -> Reading<T> {
    read_knowing(root, Known::All)
}

/// Reads a typed value that holds a part of what may be in the tree: another key is a problem only if it is likely a
/// slip of one that is missing.
pub(super) fn read_part<T: de::DeserializeOwned>(root: &Node) -> Reading<T> {
    read_knowing(root, Known::Part)
}

/// How much of what may stand in a map its struct names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    All,
    Part,
}

fn read_knowing<T: de::DeserializeOwned>(root: &Node, known: Known) -> Reading<T> {
    let findings = RefCell::new(Vec::new());
    let mut value = None;
    while !root.dropped.get() && findings.borrow().len() < MOST_MISFITS {
        let reader = Reader { node: root, findings: &findings, known };
        match T::deserialize(reader) {
            Ok(read) => {
                value = Some(read);
                break;
            }
            Err(misfit) => drop(reader.settle(misfit)),
        }
    }
    let mut findings = findings.into_inner();
    if findings.len() >= MOST_MISFITS {
        let message = format!("only the first {MOST_MISFITS} problems are shown");
        findings.push(Finding::error(Place::default(), message, "correct these and check again"));
    }
    Reading { value, findings }
}

/// Why a value could not be read.
#[derive(Debug)]
pub(super) enum Misfit {
    /// The report has it already.
    Reported,
    /// A field is not there.
    Missing(&'static str),
    /// A word that is not one of those allowed.
    UnknownWord(String, &'static [&'static str]),
    /// In words: what is wrong and, on a second line, what to do.
    Said(String),
}

impl fmt::Display for Misfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self:?}")
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::Said(words.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn unknown_variant(word: &str, allowed: &'static [&'static str]) -> Self {
        Self::UnknownWord(word.to_owned(), allowed)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let remedy = expectation(&expected.to_string(), found);
        Self::Said(format!(
            "{} does not fit here
{remedy}",
            described(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

fn described(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(value) => format!("the text `{value}`"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// What to write instead: Rust's names for types in the words of a configuration.
fn expectation(expected: &str, found: Unexpected<'_>) -> String {
    let words = match expected {
        "a string" => "plain text",
        "a boolean" => "`true` or `false`",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number, such as 10000",
        "i32" => "a whole number, such as 1 or -1",
        "f32" | "f64" => "a number",
        "a sequence" => "a list, each item on a line of its own after `- `",
        "path string" => "the path of a file",
        other => other,
    };
    let scalar =
        matches!(found, Unexpected::Bool(_) | Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_));
    let quotes = if expected == "a string" && scalar { ": put it in \"quotes\"" } else { "" };
    format!("write {words}{quotes}")
}

/// One node being read.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    findings: &'a RefCell<Vec<Finding>>,
    known: Known,
}

impl<'a> Reader<'a> {
    fn of(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    fn report(&self, finding: Finding) {
        self.findings.borrow_mut().push(finding);
    }

    /// Drops the node and reports why, unless that was done further in.
    fn settle(&self, misfit: Misfit) -> Misfit {
        let (message, remedy) = match misfit {
            Misfit::Reported => return Misfit::Reported,
            Misfit::Missing(field) if self.node.lost(field) => {
                self.node.dropped.set(true);
                return Misfit::Reported;
            }
            Misfit::Missing(field) => (format!("`{field}` is missing"), format!("add `{field}: ...` here")),
            Misfit::UnknownWord(word, allowed) => {
                (format!("`{word}` is not known here"), suggestion(&word, allowed, "allowed are"))
            }
            Misfit::Said(words) => match words.split_once('\n') {
                Some((message, remedy)) => (message.to_owned(), remedy.to_owned()),
                None => (words, "correct the value".to_owned()),
            },
        };
        self.report(Finding::error(self.node.place, message, remedy));
        self.node.dropped.set(true);
        Misfit::Reported
    }

    /// Reports keys that `known` does not list and keys that stand twice, and drops them.
    fn sift(&self, entries: &[Entry], known: Option<&'static [&'static str]>) {
        for (number, entry) in entries.iter().enumerate() {
            if entry.value.dropped.get() || entry.meant.get().is_some() {
                continue;
            }
            if self.findings.borrow().len() >= MOST_MISFITS {
                return;
            }
            let first = entries.iter().take(number).find(|earlier| earlier.key == entry.key);
            if let Some(first) = first {
                let message = format!("`{}` is given twice", entry.key);
                let remedy = format!("keep one: the first is on line {}", first.key_place.line);
                self.report(Finding::error(entry.key_place, message, remedy));
            } else if let Some(known) = known.filter(|known| !known.contains(&entry.key.as_str())) {
                if self.known == Known::Part && meant(entry, entries, known).is_none() {
                    continue;
                }
                let message = format!("`{}` is not a field here", entry.key);
                self.report(Finding::error(entry.key_place, message, suggestion(&entry.key, known, "the fields are")));
                // What is inside is read as the field that was probably meant, so that its problems show as well.
                entry.meant.set(meant(entry, entries, known));
                if entry.meant.get().is_some() {
                    continue;
                }
            } else {
                continue;
            }
            entry.value.dropped.set(true);
        }
    }

    fn unexpected(&self) -> Unexpected<'a> {
        match &self.node.kind {
            Kind::Null => Unexpected::Unit,
            Kind::Bool(value) => Unexpected::Bool(*value),
            Kind::Whole(value) => {
                i64::try_from(*value).map_or(Unexpected::Other("a very large number"), Unexpected::Signed)
            }
            Kind::Float(value) => Unexpected::Float(*value),
            Kind::Text(text) => Unexpected::Str(text),
            Kind::List(_) => Unexpected::Seq,
            Kind::Map(_) => Unexpected::Map,
        }
    }
}

/// The field that this key was probably meant to be, if it is not there.
fn meant(entry: &Entry, entries: &[Entry], known: &'static [&'static str]) -> Option<&'static str> {
    let near = nearest(&entry.key, known.iter().copied());
    near.filter(|near| entries.iter().all(|other| other.field() != *near))
}

impl Node {
    /// Whether this map once had `field`, or a slip of it, and it was dropped.
    pub(super) fn lost(&self, field: &str) -> bool {
        match &self.kind {
            Kind::Map(entries) => {
                entries.iter().any(|entry| entry.value.dropped.get() && nearest(&entry.key, [field]).is_some())
            }
            _ => false,
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.node.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Whole(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => Err(de::Error::invalid_value(self.unexpected(), &visitor)),
            },
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_borrowed_str(text),
            Kind::List(nodes) => visitor.visit_seq(List { reader: self, rest: nodes.iter() }),
            Kind::Map(entries) => {
                self.sift(entries, None);
                visitor.visit_map(Map { reader: self, rest: entries.iter(), value: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.node.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        if name == AT {
            let Place { line, column, length } = self.node.place;
            visitor.visit_seq(Placed { numbers: [line, column, length].into_iter(), reader: Some(self) })
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if let Kind::Map(entries) = &self.node.kind {
            self.sift(entries, Some(fields));
            visitor.visit_map(Map { reader: self, rest: entries.iter(), value: None })
        } else {
            Err(de::Error::invalid_type(self.unexpected(), &visitor))
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if let Kind::Text(word) = &self.node.kind {
            return visitor.visit_enum(word.as_str().into_deserializer());
        }
        let words = format!("one of {}", variants.join(", "));
        Err(de::Error::invalid_type(self.unexpected(), &words.as_str()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct List<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for List<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(node) = self.rest.by_ref().find(|node| !node.dropped.get()) else {
            return Ok(None);
        };
        let reader = self.reader.of(node);
        seed.deserialize(reader).map(Some).map_err(|misfit| reader.settle(misfit))
    }
}

struct Map<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Entry>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Map<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some(entry) = self.rest.by_ref().find(|entry| !entry.value.dropped.get()) else {
            return Ok(None);
        };
        self.value = Some(&entry.value);
        seed.deserialize(entry.field().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let node = self.value.take().ok_or(Misfit::Missing("value"))?;
        let reader = self.reader.of(node);
        seed.deserialize(reader).map_err(|misfit| reader.settle(misfit))
    }
}

/// What [`At`] is read from: three numbers, then the value.
struct Placed<'a> {
    numbers: std::array::IntoIter<u32, 3>,
    reader: Option<Reader<'a>>,
}

impl<'de> SeqAccess<'de> for Placed<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        if let Some(number) = self.numbers.next() {
            let number: U32Deserializer<Misfit> = number.into_deserializer();
            return seed.deserialize(number).map(Some);
        }
        self.reader.take().map(|reader| seed.deserialize(reader)).transpose()
    }
}
