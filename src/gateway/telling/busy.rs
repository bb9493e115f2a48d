//! Why a request was of no use in the line of a full pool: one word for metrics and headers, one clause for its client.

/// Why it did not wait until there was room, or did so in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// As many wait as may.
    LineFull,
    /// As many of its tenant's do.
    TenantFull,
    /// Those before it take longer than it may wait.
    TooLate,
    /// It waited for as long as it may.
    Expired,
    /// It waited, and made room for somebody who matters more, or whose tenant has fewer there.
    PushedOut,
}

impl Busy {
    /// The word in metrics and in the header.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LineFull => "line_crowded",
            Self::TenantFull => "tenant_crowded",
            Self::TooLate => "too_late",
            Self::Expired => "not_in_time",
            Self::PushedOut => "pushed_out",
        }
    }

    pub(super) fn told(self) -> &'static str {
        match self {
            Self::LineFull => "too many requests already wait for them",
            Self::TenantFull => "too many of your requests already wait for them",
            Self::TooLate => "those that already wait take longer than this request may",
            Self::Expired => "none was free for this request in time",
            Self::PushedOut => "another request took this one's place in the line",
        }
    }

    /// The reference's word for it.
    pub(in crate::gateway) fn dropped(self) -> &'static str {
        match self {
            Self::Expired => "rejected-ttl-expired",
            _ => "rejected-saturated",
        }
    }
}
