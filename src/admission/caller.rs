//! Who asks, as far as those need to know who decide what may come in and when.

use std::sync::Arc;

/// Who asks. Made from a credential or from what a trusted gateway says, never from what a client calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose limits and whose share of a full fleet count; many callers may be of one tenant.
    pub tenant: Arc<str>,
    /// The public id of the key that was shown, if one was: short, and no secret.
    pub key: Option<Arc<str>>,
    /// How much its requests matter, if that is said of it: higher comes first, below 0 may be shed.
    pub priority: Option<i32>,
}

impl Caller {
    /// The tenant of all who show nothing.
    pub const ANONYMOUS: &str = "anonymous";

    /// Somebody who showed nothing where nothing need be shown.
    pub fn anonymous() -> Self {
        Self { tenant: Self::ANONYMOUS.into(), key: None, priority: None }
    }
}
