//! A page of metrics in Prometheus' text format -> the few samples that somebody wants, borrowing from the page.
//!
//! A vLLM page has 600 lines of which 20 matter, so lines are told apart by their name before anything is parsed. The
//! sample line itself is read by `prometheus-parse`, but only what follows the labels: its expression for names
//! rejects the `:` of engines' names, and its labels end at the first `}` and are cut at every comma, also inside
//! quotes (`running_lora_adapters="a,b"`). Names and labels are therefore split here, with respect for quotes.
//!
//! What this will not do: types, help, histograms as such, timestamps.

use std::borrow::Cow;

use memchr::{memchr, memchr2, memchr3};
use prometheus_parse::LineInfo;

/// The wanted samples of one page, in the page's order.
#[derive(Debug, Default)]
pub(super) struct Page<'a> {
    samples: Vec<Sample<'a>>,
    /// Lines that have a wanted name but could not be read.
    pub(super) unparsed_lines: u32,
}

/// One series and its value.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    pub(super) labels: Labels<'a>,
    pub(super) value: f64,
}

/// The labels of one sample, as written between the braces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Labels<'a>(&'a str);

impl<'a> Page<'a> {
    /// Reads the lines of `text` whose metric is one of `wanted`.
    pub(super) fn read(text: &'a [u8], wanted: &[&str]) -> Self {
        let mut page = Self::default();
        let mut line_buffer = String::new();
        let mut rest = text;
        // Most of a page are the buckets of histograms, whose lines have one name after the other.
        let mut unwanted: &[u8] = &[];
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, tail) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            rest = tail.get(1..).unwrap_or_default();
            if let Some(b'{') = line.strip_prefix(unwanted).and_then(<[u8]>::first) {
                continue;
            }
            let Some(name) = name_of(line) else { continue };
            if !wanted.iter().any(|it| it.as_bytes() == name) {
                unwanted = name;
                continue;
            }
            match Sample::parse(line, &mut line_buffer) {
                Some(sample) => page.samples.push(sample),
                None => page.unparsed_lines = page.unparsed_lines.saturating_add(1),
            }
        }
        page
    }

    /// Whether nothing wanted was found.
    pub(super) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Every series of a metric.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &Sample<'a>> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

/// The metric's name in a line that is a sample.
fn name_of(line: &[u8]) -> Option<&[u8]> {
    let line = match line.first() {
        None | Some(b'#') => return None,
        Some(b' ' | b'\t') => line.trim_ascii_start(),
        Some(_) => line,
    };
    let name = memchr3(b'{', b' ', b'\t', line).map_or(line, |end| line.get(..end).unwrap_or(line));
    Some(name.strip_suffix(b"\r").unwrap_or(name))
}

impl<'a> Sample<'a> {
    fn parse(line: &'a [u8], buffer: &mut String) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.trim_ascii();
        let (name, rest) = line.split_at_checked(line.find(['{', ' ', '\t'])?)?;
        let rest = rest.trim_ascii_start();
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => Labels::split_off(inside)?,
            None => (Labels::default(), rest),
        };
        let value = value(rest, buffer)?;
        Some(Self { name, labels, value })
    }
}

/// What stands after name and labels: value, perhaps a timestamp, perhaps an exemplar.
fn value(rest: &str, buffer: &mut String) -> Option<f64> {
    // Engines write the value alone.
    if let Ok(value) = rest.trim_ascii().parse() {
        return Some(value);
    }
    buffer.clear();
    buffer.push_str("sample ");
    buffer.push_str(rest);
    match LineInfo::parse(buffer) {
        LineInfo::Sample { value, .. } => value.parse().ok(),
        _ => None,
    }
}

impl<'a> Labels<'a> {
    /// The value of a label, unescaped.
    pub(super) fn get(self, name: &str) -> Option<Cow<'a, str>> {
        let (_, raw) = self.raw().find(|(key, _)| *key == name)?;
        Some(unescape(raw))
    }

    /// Every label with its unescaped value.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        self.raw().map(|(key, raw)| (key, unescape(raw)))
    }

    fn raw(self) -> impl Iterator<Item = Label<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (label, tail) = next_label(rest)?;
            rest = tail;
            label
        })
    }

    /// Splits `inside` (what follows an opening brace) at the brace that closes it; `None` if there is none or if what
    /// is between them are no labels.
    pub(super) fn split_off(inside: &'a str) -> Option<(Self, &'a str)> {
        let mut rest = inside;
        while let Some((label, tail)) = next_label(rest) {
            label?;
            rest = tail;
        }
        let after = rest.trim_ascii_start().strip_prefix('}')?;
        let length = inside.len().checked_sub(rest.len())?;
        Some((Self(inside.get(..length)?), after))
    }
}

/// A label's name, its value as written between the quotes.
type Label<'a> = (&'a str, &'a str);

/// The next label and what follows it and its comma. `None` at the end of the labels; `Some((None, _))` if what stands
/// there is no label.
fn next_label(text: &str) -> Option<(Option<Label<'_>>, &str)> {
    let text = text.trim_ascii_start();
    if text.is_empty() || text.starts_with('}') {
        return None;
    }
    let label = || {
        let (name, rest) = text.split_once('=')?;
        let rest = rest.trim_ascii_start().strip_prefix('"')?;
        let end = closing_quote(rest)?;
        let (raw, rest) = (rest.get(..end)?, rest.get(end + 1..)?.trim_ascii_start());
        let rest = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.starts_with('}') || rest.is_empty() => rest,
            None => return None,
        };
        is_label_name(name.trim_ascii_end()).then(|| ((name.trim_ascii_end(), raw), rest))
    };
    Some(match label() {
        Some((label, rest)) => (Some(label), rest),
        None => (None, text),
    })
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Where the quote that is not escaped stands.
fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut from = 0;
    loop {
        let at = from + memchr2(b'"', b'\\', bytes.get(from..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at);
        }
        // Whatever follows a backslash is part of the value.
        from = at + 2;
    }
}

/// `\\`, `\"` and `\n` mean what they say, any other backslash is itself.
fn unescape(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        let meant = match (c, chars.peek()) {
            ('\\', Some('n')) => '\n',
            ('\\', Some('\\')) => '\\',
            ('\\', Some('"')) => '"',
            _ => {
                text.push(c);
                continue;
            }
        };
        chars.next();
        text.push(meant);
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: [&str; 2] = ["e:running", "e:tokens_total"];

    type Plain = (String, Vec<(String, String)>, u64);

    fn quick(text: &[u8]) -> (Vec<Plain>, u32) {
        let page = Page::read(text, &WANTED);
        let plain = |sample: &Sample<'_>| {
            let labels = sample.labels.iter().map(|(key, value)| (key.into(), value.into()));
            (sample.name.into(), labels.collect(), bits(sample.value))
        };
        (page.samples.iter().map(plain).collect(), page.unparsed_lines)
    }

    /// One NaN is like another.
    fn bits(value: f64) -> u64 {
        if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }
    }

    /// The same, slowly: one character after the other, nothing borrowed, nothing skipped.
    fn slow(text: &str) -> (Vec<Plain>, u32) {
        let (mut found, mut unparsed) = (Vec::new(), 0);
        for line in text.split('\n') {
            let line: Vec<char> = line.trim_ascii().chars().collect();
            let end = line.iter().position(|c| "{ \t".contains(*c)).unwrap_or(line.len());
            let name: String = line[..end].iter().collect();
            if WANTED.contains(&name.as_str()) {
                match slow_rest(&line[end..]) {
                    Some((labels, value)) => found.push((name, labels, value)),
                    None => unparsed += 1,
                }
            }
        }
        (found, unparsed)
    }

    fn slow_rest(chars: &[char]) -> Option<(Vec<(String, String)>, u64)> {
        let mut at = 0;
        let mut labels = Vec::new();
        let skip_spaces = |at: &mut usize| {
            while chars.get(*at).is_some_and(char::is_ascii_whitespace) {
                *at += 1;
            }
        };
        skip_spaces(&mut at);
        if chars.get(at) == Some(&'{') {
            at += 1;
            loop {
                skip_spaces(&mut at);
                if chars.get(at)? == &'}' {
                    at += 1;
                    break;
                }
                let mut key = String::new();
                while chars.get(at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    key.push(chars[at]);
                    at += 1;
                }
                skip_spaces(&mut at);
                if key.is_empty() || chars.get(at)? != &'=' {
                    return None;
                }
                at += 1;
                skip_spaces(&mut at);
                if chars.get(at)? != &'"' {
                    return None;
                }
                at += 1;
                let mut value = String::new();
                while chars.get(at)? != &'"' {
                    match (chars[at], chars.get(at + 1)) {
                        ('\\', Some('n')) => value.push('\n'),
                        ('\\', Some('\\')) => value.push('\\'),
                        ('\\', Some('"')) => value.push('"'),
                        (c, _) => {
                            value.push(c);
                            at += 1;
                            continue;
                        }
                    }
                    at += 2;
                }
                at += 1;
                labels.push((key, value));
                skip_spaces(&mut at);
                match chars.get(at)? {
                    ',' => at += 1,
                    '}' => {}
                    _ => return None,
                }
            }
        }
        let rest: String = chars[at..].iter().collect();
        Some((labels, bits(rest.split_whitespace().next()?.parse().ok()?)))
    }

    fn label() -> impl Strategy<Value = String> {
        ("[a-z_]{1,4}", r#"([a-c,={} é]|\\\\|\\"|\\n|\\x){0,6}"#, "[ ]?", "[ ]?")
            .prop_map(|(key, value, before, after)| format!("{before}{key}{after}={before}\"{value}\"{after}"))
    }

    fn line() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "e:running",
            "e:tokens_total",
            "e:run",
            "e:running_x",
            "# e:running",
            " e:running",
        ]);
        let labels = prop_oneof![
            Just(String::new()),
            Just("{}".into()),
            prop::collection::vec(label(), 1..4).prop_map(|labels| format!("{{{}}}", labels.join(","))),
            prop::collection::vec(label(), 1..4).prop_map(|labels| format!("{{{},}}", labels.join(","))),
        ];
        let value = prop_oneof![
            any::<f64>().prop_map(|value| format!("{value:e}")),
            prop::sample::select(vec!["NaN", "nan", "+Inf", "-Inf", "Inf", "0", "1.0", "-0", "wtf", ""])
                .prop_map(String::from),
        ];
        let behind = prop::sample::select(vec!["", " 1543182234", " 1 # {trace=\"x\"} 0.5", "\t", "  "]);
        let gap = prop::sample::select(vec!["", " ", "\t", "  "]);
        let end = prop::sample::select(vec!["\n", "\r\n"]);
        let whole = (name, labels, gap, value, behind, end)
            .prop_map(|(name, labels, gap, value, behind, end)| format!("{name}{labels}{gap}{value}{behind}{end}"));
        // And lines that lost or won a character somewhere.
        (
            whole,
            any::<prop::sample::Index>(),
            prop::option::weighted(0.3, prop::sample::select(vec!["\"", "{", "}", ",", "\\", "=", "é", ""])),
        )
            .prop_map(|(whole, at, noise)| {
                let Some(noise) = noise else { return whole };
                let mut chars: Vec<String> = whole.chars().map(String::from).collect();
                let at = at.index(chars.len());
                chars[at] = noise.into();
                chars.concat()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_quick_reader_reads_what_a_slow_one_reads(lines in prop::collection::vec(line(), 0..12)) {
            let text = lines.concat();
            prop_assert_eq!(quick(text.as_bytes()), slow(&text));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = [b"e:running{".as_slice(), &bytes].concat();
            quick(&text);
        }
    }

    #[test]
    fn what_prometheus_parse_alone_would_lose_is_kept() {
        let text = b"e:running{} 1\ne:running{a=\"x,y\",b=\"}\"} 2 99\ne:tokens_total 3e2";
        let (found, unparsed) = quick(text);
        let labels = [("a", "x,y"), ("b", "}")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(
            found,
            [
                ("e:running".to_owned(), vec![], 1f64.to_bits()),
                ("e:running".to_owned(), labels.to_vec(), 2f64.to_bits()),
                ("e:tokens_total".to_owned(), vec![], 300f64.to_bits()),
            ]
        );
        assert_eq!(unparsed, 0);
    }

    #[test]
    fn a_wanted_line_that_is_no_text_is_counted() {
        assert_eq!(quick(b"e:running{a=\"\xff\"} 1\n"), (vec![], 1));
        assert_eq!(quick(b"e:other{a=\"\xff\"} 1\n"), (vec![], 0));
    }
}
