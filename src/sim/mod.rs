//! A pod that is not there: vLLM's scheduler, cache, endpoints, metrics and failures, without a GPU.
//!
//! The engine is pure and runs on virtual time, so that the lab can run an hour in seconds; the server around it is a
//! thin rim that runs the same engine in real time. It imitates what a gateway can see of vLLM, not what vLLM says:
//! answers are made of nonsense words that a test can predict.

pub mod cache;
pub mod engine;
pub mod profiles;
pub mod step;
