//! What each engine calls its gauges -> one [`Reading`] with the differences removed. Engines' metric names live here
//! and nowhere else.
//!
//! A metric that is not on the page stays `None`. `nan`, infinite and negative values are no counts either.

mod custom;
mod llamacpp;
mod sglang;
mod triton;
mod trtllm;
mod vllm;

use memchr::memmem;

use super::exposition::{Page, Sample};
use crate::{config::Engine, fleet::Reading};

/// How each engine's page is told from the others', in the order of asking: Triton's page may carry vLLM's metrics
/// beside its own, and vLLM's say more.
const MARKS: [(&str, Engine); 6] = [
    ("vllm:", Engine::Vllm),
    ("sglang:", Engine::Sglang),
    ("trtllm_", Engine::TrtllmServe),
    ("nv_trt_llm_", Engine::Triton),
    ("nv_inference_", Engine::Triton),
    ("llamacpp:", Engine::LlamaCpp),
];

/// Reads a page; `None` if it holds nothing that this engine would say.
pub(super) fn read(engine: &Engine, text: &[u8]) -> Option<Reading> {
    let found;
    let engine = match engine {
        Engine::Auto => {
            found = detect(text)?;
            &found
        }
        told => told,
    };
    let (page, reading) = match engine {
        Engine::Auto => return None,
        Engine::Vllm => with(text, "vllm", vllm::WANTED, vllm::read),
        Engine::Sglang => with(text, "sglang", sglang::WANTED, sglang::read),
        Engine::TrtllmServe => with(text, "trtllm-serve", trtllm::WANTED, trtllm::read),
        Engine::Triton => with(text, "triton", triton::WANTED, triton::read),
        Engine::LlamaCpp => with(text, "llamacpp", llamacpp::WANTED, llamacpp::read),
        Engine::Custom(names) => {
            let spec = custom::Spec::of(names);
            with(text, "custom", &spec.wanted(), |page| spec.read(page))
        }
    };
    (!page.is_empty() || page.unparsed_lines > 0).then_some(reading)
}

fn with<'a>(
    text: &'a [u8],
    engine: &str,
    wanted: &[&str],
    read: impl FnOnce(&Page<'a>) -> Reading,
) -> (Page<'a>, Reading) {
    let page = Page::read(text, wanted);
    let mut reading = read(&page);
    engine.clone_into(&mut reading.engine);
    reading.unparsed_lines = page.unparsed_lines;
    (page, reading)
}

fn detect(text: &[u8]) -> Option<Engine> {
    let speaks = |mark: &str| {
        memmem::find_iter(text, mark).any(|at| at == 0 || at.checked_sub(1).and_then(|at| text.get(at)) == Some(&b'\n'))
    };
    let (_, engine) = MARKS.iter().find(|(mark, _)| speaks(mark))?;
    Some(engine.clone())
}

/// A value as a count: `nan`, infinite and negative ones are none.
fn count(value: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked, and a cast from f64 saturates"
    )]
    let whole = value.round() as u64;
    (value.is_finite() && value >= 0.0).then_some(whole)
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The sum over samples; `None` if none of them is a count.
fn sum<'p>(samples: impl Iterator<Item = &'p Sample<'p>>) -> Option<u64> {
    samples.filter_map(|sample| count(sample.value)).reduce(u64::saturating_add)
}

/// A usage between 0 and 1; a full cache is sometimes reported a hair above 1.
fn share(value: f64) -> Option<f64> {
    (value.is_finite() && value >= 0.0).then(|| value.min(1.0))
}

/// Mean and maximum of usage gauges that all weigh the same.
fn usage<'p>(samples: impl Iterator<Item = &'p Sample<'p>>) -> (Option<f64>, Option<f64>) {
    let shares: Vec<_> = samples.filter_map(|sample| Some((share(sample.value)?, 1.0))).collect();
    mean_and_max(&shares)
}

/// The mean of shares by weight, and the largest.
fn mean_and_max(shares: &[(f64, f64)]) -> (Option<f64>, Option<f64>) {
    let weight: f64 = shares.iter().map(|(_, weight)| weight).sum();
    if weight <= 0.0 {
        return (None, None);
    }
    let mean = shares.iter().map(|(share, weight)| share * weight).sum::<f64>() / weight;
    (Some(mean), shares.iter().map(|(share, _)| *share).reduce(f64::max))
}
