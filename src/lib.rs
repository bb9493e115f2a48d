//! Tidegate, from the ground up: each line below is a room, and a room knows only the rooms above it.

// Ground: knows nobody.
pub mod clock; // the only place that reads the time or takes a random generator
pub mod config; // what the operator asked for: YAML in, one checked Config or every problem out
pub mod openai; // the clients' dialect: what is asked, for which model, and how answers are framed
pub mod tasks; // the only place that spawns, so that stopping can wait for everything

// What we tell operators, and what we show and believe.
pub mod certificates; // certificates and authorities in files, read again when they change
pub mod telemetry; // metric families, log set-up, bounded labels

// Knowledge: what is true about the pods. No I/O.
pub mod fleet; // pods, their load and its age, what we sent, health, learned speeds
pub mod prefix; // which pod likely holds the beginning of this prompt

// Senses: I/O that keeps the knowledge fresh.
pub mod discovery; // which pods exist
pub mod keys; // who may come
pub mod scrape; // how busy each is

// Judgement: pure functions of (knowledge, ask, now, rng).
pub mod routing; // which pool, under which name
pub mod scheduler; // which pod, and why

// Hands, desk, doors.
pub mod admin; // probes, metrics and the operator's view
pub mod admission; // may it come in, and when
pub mod edge; // listeners: accept, limits, drain
pub mod gateway; // the story of one request
pub mod upstream; // one attempt at one pod, and whose fault it was if it failed

// All together.
pub mod app; // Config -> a running gateway, and its stop
pub mod cli; // the verbs

// The annex.
pub mod bench; // a load generator that reads SSE over real sockets
pub mod lab;
pub mod sim; // a pod that is not there // many such pods on a virtual clock, with our own judgement deciding
