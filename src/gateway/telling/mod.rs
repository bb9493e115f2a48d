//! What is told of one request: to its client why it was refused, to the operator how it went.

pub(in crate::gateway) mod busy;
mod cuts;
pub(in crate::gateway) mod facts;
pub(in crate::gateway) mod limits;
pub(in crate::gateway) mod receipt;
pub(in crate::gateway) mod rejection;
pub(in crate::gateway) mod summary;
mod words;
