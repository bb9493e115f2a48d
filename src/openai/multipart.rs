//! The two fields that matter of a multipart form: which model, and whether to stream.
//!
//! Written by hand because only spans are wanted: the file beside them may be many megabytes and is never copied.
//! Strict, since the engine's own parser will read the same bytes: one way to write a form, and a form that could be
//! read in two ways is refused.

use std::ops::Range;

use memchr::memmem;

use super::Malformed;

/// Most parts of a form: OpenAI's transcription has about ten fields, some of them repeatable.
const MAX_PARTS: usize = 256;

/// Longest delimiter, by RFC 2046.
const MAX_BOUNDARY: usize = 70;

/// What a form says.
#[derive(Debug)]
pub(super) struct Form<'a> {
    pub(super) model_name: &'a str,
    pub(super) model_span: Range<usize>,
    pub(super) stream: bool,
}

/// Reads the form that `content_type` announces.
pub(super) fn read<'a>(content_type: Option<&str>, body: &'a [u8]) -> Result<Form<'a>, Malformed> {
    let boundary = boundary(content_type.unwrap_or_default())?;
    let (mut model, mut stream) = (None, None);
    for part in Parts::new(body, &boundary)? {
        let part = part?;
        let slot = match part.name.as_str() {
            "model" => &mut model,
            "stream" => &mut stream,
            _ => continue,
        };
        if part.is_file {
            return Err(Malformed::Form("'model' and 'stream' must be plain fields"));
        }
        if slot.replace(part.value).is_some() {
            return Err(Malformed::duplicate(&part.name));
        }
    }
    let text = |span: &Range<usize>| {
        let bytes = body.get(span.clone()).unwrap_or_default();
        str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)
    };
    let model_span = model.ok_or(Malformed::ModelMissing)?;
    let model_name = text(&model_span)?;
    let stream = match stream {
        Some(span) => flag(text(&span)?)?,
        None => false,
    };
    Ok(Form { model_name, model_span, stream })
}

/// A boolean form field, in the spellings that engines take.
fn flag(value: &str) -> Result<bool, Malformed> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" | "y" | "t" => Ok(true),
        "false" | "0" | "off" | "no" | "n" | "f" | "" => Ok(false),
        _ => Err(Malformed::StreamInvalid),
    }
}

fn boundary(content_type: &str) -> Result<String, Malformed> {
    const KIND: &str = "multipart/form-data";
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case(KIND) {
        return Err(Malformed::Form("the content type must be multipart/form-data"));
    }
    let parameters = Parameters::read(parameters).ok_or(Malformed::Form("the content type is malformed"))?;
    let boundary = parameters.one("boundary")?.ok_or(Malformed::Form("the content type names no boundary"))?;
    // Engines decode names and values by it, and would read another model than is read here.
    if parameters.one("charset")?.is_some_and(|charset| !charset.eq_ignore_ascii_case("utf-8")) {
        return Err(Malformed::Form("its characters must be UTF-8"));
    }
    if !parameters.are_only(&["boundary", "charset"]) {
        return Err(Malformed::Form("the content type has a parameter other than boundary"));
    }
    if boundary.is_empty() || boundary.len() > MAX_BOUNDARY || !boundary.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    {
        return Err(Malformed::Form("the boundary is not acceptable"));
    }
    Ok(boundary.to_owned())
}

struct Part {
    name: String,
    is_file: bool,
    value: Range<usize>,
}

/// The parts of a body, in order; ends after the first error.
struct Parts<'a> {
    body: &'a [u8],
    delimiter: Vec<u8>,
    /// Just behind a delimiter's boundary; `None` when there is no more.
    at: Option<usize>,
    seen: usize,
}

impl<'a> Parts<'a> {
    fn new(body: &'a [u8], boundary: &str) -> Result<Self, Malformed> {
        let opening = format!("--{boundary}");
        if !body.starts_with(opening.as_bytes()) {
            return Err(Malformed::Form("the body does not begin with the boundary"));
        }
        let delimiter = format!("\r\n{opening}").into_bytes();
        Ok(Self { body, delimiter, at: Some(opening.len()), seen: 0 })
    }

    fn part(&mut self, at: usize) -> Result<Option<Part>, Malformed> {
        let rest = self.body.get(at..).unwrap_or_default();
        if let Some(end) = rest.strip_prefix(b"--") {
            return match end {
                b"" | b"\r\n" => Ok(None),
                _ => Err(Malformed::Form("there is something behind the last boundary")),
            };
        }
        self.seen += 1;
        if self.seen > MAX_PARTS {
            return Err(Malformed::Form("it has too many parts"));
        }
        let head = rest.strip_prefix(b"\r\n").ok_or(Malformed::Form("a boundary is not on a line of its own"))?;
        let head_length = memmem::find(head, b"\r\n\r\n").ok_or(Malformed::Form("a part has no end of headers"))?;
        let headers = head.get(..head_length).unwrap_or_default();
        // Searched from the headers' last line end, so that an empty value is found.
        let tail_at = at + 2 + head_length + 2;
        let tail = self.body.get(tail_at..).unwrap_or_default();
        let found = memmem::find(tail, &self.delimiter).ok_or(Malformed::Form("the last boundary is missing"))?;
        if found == 0 {
            return Err(Malformed::Form("a part has no value"));
        }
        let value = tail_at + 2..tail_at + found;
        self.at = Some(value.end + self.delimiter.len());
        let (name, is_file) = disposition(headers)?;
        Ok(Some(Part { name, is_file, value }))
    }
}

impl Iterator for Parts<'_> {
    type Item = Result<Part, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at.take()?;
        self.part(at).transpose()
    }
}

/// The field's name from a part's headers, and whether it is a file or otherwise more than plain text.
fn disposition(headers: &[u8]) -> Result<(String, bool), Malformed> {
    let headers = str::from_utf8(headers).map_err(|_| Malformed::Form("a part's headers are not UTF-8"))?;
    let (mut found, mut encoded) = (None, false);
    for line in headers.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or(Malformed::Form("a part's header has no colon"))?;
        if name.is_empty() || line.contains(['\r', '\n', '\0']) || name.contains([' ', '\t']) {
            return Err(Malformed::Form("a part's header is malformed"));
        }
        encoded |= name.eq_ignore_ascii_case("content-transfer-encoding");
        if name.eq_ignore_ascii_case("content-disposition") && found.replace(value).is_some() {
            return Err(Malformed::Form("a part has two dispositions"));
        }
    }
    let value = found.ok_or(Malformed::Form("a part has no Content-Disposition"))?;
    let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(Malformed::Form("a part is not form-data"));
    }
    let parameters = Parameters::read(parameters).ok_or(Malformed::Form("a part's disposition is malformed"))?;
    let name = parameters.one("name")?.ok_or(Malformed::Form("a part has no name"))?;
    // `name*`, `name*0` and their like are names to some readers.
    if !parameters.are_only(&["name", "filename", "filename*"]) {
        return Err(Malformed::Form("a part's disposition has a parameter other than name and filename"));
    }
    let is_file = parameters.has("filename") || parameters.has("filename*") || encoded;
    Ok((name.to_owned(), is_file))
}

/// The `; key=value` parameters of a header, quotes removed.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// `None` if they are not well formed.
    fn read(text: &str) -> Option<Self> {
        let mut found = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (key, behind) = rest.split_once('=')?;
            let behind = behind.trim_start();
            let (value, next) = match behind.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => match behind.split_once(';') {
                    Some((value, next)) => (value.trim_end().to_owned(), Some(next)),
                    None => (behind.trim_end().to_owned(), None),
                },
            };
            let key = key.trim();
            if key.is_empty() || key.contains(['"', ';', ' ']) || (!behind.starts_with('"') && value.contains('"')) {
                return None;
            }
            found.push((key.to_ascii_lowercase(), value));
            rest = next.unwrap_or_default().trim_start();
        }
        Some(Self(found))
    }

    fn are_only(&self, known: &[&str]) -> bool {
        self.0.iter().all(|(name, _)| known.contains(&name.as_str()))
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    fn one(&self, key: &str) -> Result<Option<&str>, Malformed> {
        let mut values = self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (first, None) => Ok(first),
            _ => Err(Malformed::Form("a header parameter stands there twice")),
        }
    }
}

/// The rest of a quoted string and what follows the semicolon behind it. Browsers and HTTP libraries differ in how
/// they escape a quote; a backslash hides the character behind it in either reading.
fn unquote(quoted: &str) -> Option<(String, Option<&str>)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?.1),
            '"' => {
                let behind = quoted.get(at + 1..)?.trim_start();
                let next = behind.strip_prefix(';');
                return (next.is_some() || behind.is_empty()).then_some((value, next));
            }
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::string_slice, reason = "spans are looked at through it")]
mod tests {
    use super::*;

    const TYPE: Option<&str> = Some("multipart/form-data; boundary=\"x y\"");

    fn form(parts: &[(&str, &str)]) -> String {
        let parts = parts.iter().map(|(head, value)| format!("--x y\r\n{head}\r\n\r\n{value}\r\n"));
        parts.collect::<String>() + "--x y--\r\n"
    }

    fn field(name: &str) -> String {
        format!("Content-Disposition: form-data; name=\"{name}\"")
    }

    fn problem(body: &str) -> Malformed {
        read(TYPE, body.as_bytes()).unwrap_err()
    }

    const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a; name=\\\"model\\\".wav\"\r\nContent-Type: audio/wav";

    #[test]
    fn the_model_is_found_between_files_and_other_fields() {
        let file = "RIFF\r\n--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nfake";
        let body =
            form(&[(FILE, file), (&field("stream"), "True"), (&field("model"), "whisper"), (&field("empty"), "")]);
        let form = read(TYPE, body.as_bytes()).unwrap();
        assert_eq!((form.model_name, form.stream), ("whisper", true));
        assert_eq!(&body[form.model_span], "whisper");
    }

    #[test]
    fn names_may_be_bare_and_headers_in_any_case() {
        let body = form(&[("content-type: text/plain\r\ncontent-DISPOSITION:form-data;name=model", "m")]);
        assert_eq!(read(TYPE, body.as_bytes()).unwrap().model_name, "m");
        let other = body.replace("x y", "b");
        let kind = Some("Multipart/Form-Data; charset=utf-8; Boundary=b");
        assert_eq!(read(kind, other.as_bytes()).unwrap().model_name, "m");
    }

    #[test]
    fn a_second_model_in_another_alphabet_or_in_pieces_of_a_name_is_refused() {
        let model = field("model");
        let decoy = |head: &str| form(&[(&model, "small"), (head, "big")]);
        for head in [
            "Content-Disposition: form-data; name=\"foo\"; name*0=\"model\"",
            "Content-Disposition: form-data; name=\"foo\"; name*0*=utf-8''model",
            "Content-Disposition: form-data; name=\"foo\"; other=\"model\"",
        ] {
            assert!(matches!(problem(&decoy(head)), Malformed::Form(_)), "{head}");
        }
        let form = decoy(&field("+AG0AbwBkAGUAbA-"));
        for more in ["; charset=utf-7", "; boundary*0=b", "; charset=utf-8; charset=utf-7", "; x=1"] {
            let kind = format!("{}{more}", TYPE.unwrap());
            assert!(matches!(read(Some(&kind), form.as_bytes()), Err(Malformed::Form(_))), "{more}");
        }
        assert_eq!(read(TYPE, form.as_bytes()).unwrap().model_name, "small");
    }

    #[test]
    fn two_models_or_a_model_in_disguise_are_refused() {
        let model = field("model");
        let twice = form(&[(&model, "a"), (FILE, "x"), (&model, "b")]);
        assert_eq!(problem(&twice), Malformed::DuplicateKey("model".to_owned()));
        assert_eq!(problem(&form(&[(FILE, "x")])), Malformed::ModelMissing);
        for head in [
            format!("{model}; filename=\"f\""),
            format!("{model}\r\nContent-Transfer-Encoding: base64"),
            format!("{model}; name=\"other\""),
            format!("{model}; name*=utf-8''other"),
            format!("{model}\r\nContent-Disposition: form-data; name=\"x\""),
            format!("{model}\r\n folded: 1"),
            format!("{model}\n\nX: 1"),
            "Content-Disposition: attachment; name=\"model\"".to_owned(),
            "Content-Disposition: form-data; name=\"model".to_owned(),
            "Content-Disposition: form-data; name=\"model\"x".to_owned(),
            "Content-Disposition: form-data".to_owned(),
            "Content-Type: text/plain".to_owned(),
        ] {
            assert!(matches!(problem(&form(&[(&head, "m")])), Malformed::Form(_)), "{head}");
        }
    }

    #[test]
    fn a_form_that_is_cut_or_padded_is_refused() {
        let body = form(&[(&field("model"), "m")]);
        for length in 0..body.len() - 2 {
            assert!(read(TYPE, &body.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(read(TYPE, body.trim_end().as_bytes()).is_ok());
        assert!(read(TYPE, format!("\r\n{body}").as_bytes()).is_err());
        assert!(read(TYPE, format!("{body}--x y").as_bytes()).is_err());
        assert!(read(TYPE, body.replace("\r\n", "\n").as_bytes()).is_err());
        let many = form(&vec![(field("a").as_str(), "1"); MAX_PARTS + 1]);
        assert_eq!(problem(&many), Malformed::Form("it has too many parts"));
    }

    #[test]
    fn the_content_type_must_say_what_it_is() {
        let body = form(&[(&field("model"), "m")]);
        for kind in [
            None,
            Some("application/json"),
            Some("multipart/form-data"),
            Some("multipart/form-data; boundary="),
            Some("multipart/form-data; boundary=\"x y"),
            Some("multipart/form-data; boundary=a; boundary=\"x y\""),
            Some("multipart/mixed; boundary=\"x y\""),
        ] {
            assert!(matches!(read(kind, body.as_bytes()), Err(Malformed::Form(_))), "{kind:?}");
        }
    }

    #[test]
    fn an_odd_stream_flag_is_refused() {
        let (model, stream) = (field("model"), field("stream"));
        let with = |flag: &str| form(&[(&model, "m"), (&stream, flag)]);
        assert!(!read(TYPE, with("false").as_bytes()).unwrap().stream);
        assert_eq!(problem(&with("maybe")), Malformed::StreamInvalid);
    }
}
