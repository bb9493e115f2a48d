//! Where a trace's text comes from: the file that was given, else the whole trace where it usually lies, else the
//! beginning of it that is built in. Which one it was is told, because the numbers differ.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use super::Unmade;

/// A trace that everybody can have.
#[derive(Debug)]
pub(super) struct Known {
    /// Where the whole of it is looked for.
    usual: &'static str,
    /// What is built in.
    beginning: &'static str,
    /// What that is called.
    name: &'static str,
}

/// Mooncake's conversations.
pub(super) const MOONCAKE: Known = Known {
    usual: "../shared/traces/mooncake/conversation_trace.jsonl",
    beginning: include_str!("../../../tests/fixtures/traces/mooncake_conversation.jsonl"),
    name: "the first 1,500 requests of Mooncake's conversation trace (built in)",
};

/// Azure's conversations.
pub(super) const AZURE: Known = Known {
    usual: "../shared/traces/azure2023/AzureLLMInferenceTrace_conv.csv",
    beginning: include_str!("../../../tests/fixtures/traces/azure_conversation.csv"),
    name: "the first 2,000 requests of Azure's conversation trace of 2023 (built in)",
};

/// A trace's text and what it is called, which is its path if it has one.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: Cow<'static, str>,
}

impl Known {
    /// The trace at `given`, else this one.
    pub(super) fn or_given(&self, given: Option<&Path>) -> Result<Text, Unmade> {
        if let Some(path) = given {
            return read(path);
        }
        match fs::read_to_string(self.usual) {
            Ok(text) => Ok(Text { path: self.usual.into(), text: text.into() }),
            Err(_) => Ok(self.built_in()),
        }
    }

    /// Its beginning.
    pub(super) fn built_in(&self) -> Text {
        Text { path: self.name.into(), text: self.beginning.into() }
    }
}

/// The trace at `path`.
pub(super) fn read(path: &Path) -> Result<Text, Unmade> {
    let text = fs::read(path).and_then(|bytes| {
        let alien = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not text; unpack it first if it is packed");
        String::from_utf8(bytes).map_err(alien)
    });
    let text = text.map_err(|cause| Unmade::Trace { path: path.to_owned(), cause })?;
    Ok(Text { path: path.to_owned(), text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_and_what_is_not_there_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a").unwrap();
        assert_eq!(MOONCAKE.or_given(Some(file.path())).unwrap().text, "a");
        fs::write(file.path(), [0xff, 0xfe]).unwrap();
        let error = MOONCAKE.or_given(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("unpack it first"), "{error}");
        let error = MOONCAKE.or_given(Some(Path::new("no-such-file"))).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the trace no-such-file: "), "{error}");
    }
}
