//! What a client's certificate says of it: names, once whoever vouches for them has been found trusted.
//!
//! The door verifies and reads; here are only the names. A name is what some authority of the operator's put its hand to,
//! so a rule may believe it; which of them means what is the rule's business.

/// The names in a client's certificate that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// URIs of its alternative names, such as `spiffe://cluster/ns/default/sa/shop`.
    pub uris: Vec<String>,
    /// Its DNS names.
    pub dns_names: Vec<String>,
    /// Its mail addresses.
    pub emails: Vec<String>,
    /// Its subject in one line, such as `CN=shop, O=Example`.
    pub subject: String,
}
