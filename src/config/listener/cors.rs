//! Which web pages may call a listener from a browser: as typed, and as checked.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{tree::At, units::Span};

/// Which web pages may call from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Whose; `None` = everybody's.
    pub origins: Option<Vec<String>>,
    /// The request headers that they may set (lower case); `None` = any.
    pub headers: Option<Vec<String>>,
    /// For how long a browser need not ask again.
    pub max_age: Duration,
    /// Whether cookies and the like may come along.
    pub credentials: bool,
}

/// Which web pages may call from a browser.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ origins: [\"https://chat.example.com\"] }`")]
pub(in crate::config) struct CorsFile {
    /// Whose pages: `https://chat.example.com`, or `*` for everybody's.
    pub(in crate::config) origins: At<Vec<At<String>>>,
    /// The request headers that they may set. Default: any.
    pub(in crate::config) headers: Option<Vec<At<String>>>,
    /// For how long a browser need not ask again. Default: 10m.
    pub(in crate::config) max_age: Option<At<Span>>,
    /// Whether cookies and the like may come along; not with `*`. Default: false.
    pub(in crate::config) credentials: Option<At<bool>>,
}
