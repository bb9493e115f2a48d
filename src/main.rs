//! One binary; the verbs live in `cli`.
fn main() {}
