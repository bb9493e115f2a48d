//! What each engine calls its gauges -> one [`Reading`] with the differences removed. Engines' metric names live here
//! and nowhere else.
//!
//! A metric that is not on the page stays `None`. `nan`, infinite and negative values are no counts either.

mod custom;
mod llamacpp;
#[cfg(test)]
mod recorded;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config::CustomMetrics, fleet::Adapters};

    fn reading(engine: &Engine, page: &str) -> Reading {
        read(engine, page.as_bytes()).unwrap()
    }

    fn auto(page: &str) -> Reading {
        reading(&Engine::Auto, page)
    }

    #[test]
    fn a_v0_page_tells_swapped_requests_and_no_adapters_where_lora_is_off() {
        let it = auto(
            "vllm:num_requests_running{model_name=\"m\"} 3.0\n\
             vllm:num_requests_swapped{model_name=\"m\"} 2.0\n\
             vllm:num_requests_waiting{model_name=\"m\"} 1.0\n\
             vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.25\n\
             vllm:cpu_cache_usage_perc{model_name=\"m\"} 0.9\n\
             vllm:gpu_prefix_cache_queries_total{model_name=\"m\"} 70.0\n\
             vllm:gpu_prefix_cache_hits_total{model_name=\"m\"} 7.0\n\
             vllm:lora_requests_info{max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1.0\n\
             vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1.0\n",
        );
        let expected = Reading {
            engine: "vllm".into(),
            running: Some(3),
            waiting: Some(1),
            swapped: Some(2),
            kv_usage: Some(0.25),
            kv_usage_max: Some(0.25),
            block_size: Some(16),
            prefix_queries_total: Some(70),
            prefix_hits_total: Some(7),
            ..Reading::default()
        };
        assert_eq!(it, expected);
    }

    #[test]
    fn a_usage_told_under_both_names_is_not_counted_twice() {
        let it = auto(
            "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.1\nvllm:gpu_cache_usage_perc{engine=\"1\"} 0.1\n\
             vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.6\n",
        );
        assert_eq!((it.kv_usage, it.kv_usage_max), (Some(0.4), Some(0.6)));
    }

    #[test]
    fn ranks_of_different_size_weigh_by_it() {
        let it = auto(
            "vllm:kv_cache_usage_perc{engine=\"0\"} 0.9\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.1\n\
             vllm:cache_config_info{engine=\"0\",block_size=\"16\",num_gpu_blocks=\"100\"} 1\n\
             vllm:cache_config_info{engine=\"1\",block_size=\"16\",num_gpu_blocks=\"300\"} 1\n",
        );
        assert!((it.kv_usage.unwrap() - 0.3).abs() < 1e-12);
        assert_eq!((it.kv_usage_max, it.blocks), (Some(0.9), Some(400)));
    }

    #[test]
    fn the_newest_adapters_win_wherever_they_stand() {
        let series = |running: &str, at: &str| {
            format!(
                "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",\
                 waiting_lora_adapters=\"\"}} {at}\n"
            )
        };
        let page = series("old", "1.7e9") + &series("b, a", "1.7952172934468977e+09") + &series("", "1.79e9");
        let names: Vec<Arc<str>> = vec!["b".into(), "a".into()];
        let expected = Adapters { max: Some(4), running: names, waiting: Vec::new() };
        assert_eq!(auto(&page).adapters, Some(expected));
    }

    #[test]
    fn an_engine_sleeps_when_none_of_its_ranks_is_awake() {
        let page = |first: u8, second: u8| {
            auto(&format!(
                "vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"awake\"}} {first}.0\n\
                 vllm:engine_sleep_state{{engine=\"1\",sleep_state=\"awake\"}} {second}.0\n\
                 vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"discard_all\"}} 1.0\n"
            ))
            .asleep
        };
        assert_eq!([page(0, 0), page(0, 1), page(1, 1)], [true, false, false]);
        assert!(!auto("vllm:num_requests_running 0\n").asleep, "a page that says nothing");
    }

    #[test]
    fn sglang_adds_up_data_parallel_ranks_but_not_tensor_parallel_ones() {
        let series = |name: &str, dp: u8, tp: u8, value: &str| {
            format!("sglang:{name}{{dp_rank=\"{dp}\",tp_rank=\"{tp}\"}} {value}\n")
        };
        let mut page = String::new();
        for (dp, running, usage) in [(0, "3.0", "0.5"), (1, "4.0", "0.1")] {
            for tp in 0..2 {
                page += &series("num_running_reqs", dp, tp, running);
                page += &series("token_usage", dp, tp, usage);
                page += &series("max_total_num_tokens", dp, tp, "1600.0");
                page += &series("page_size", dp, tp, "16.0");
            }
        }
        let it = auto(&page);
        assert_eq!((it.running, it.waiting), (Some(7), None));
        assert_eq!((it.kv_usage, it.kv_usage_max), (Some(0.3), Some(0.5)));
        assert_eq!((it.block_size, it.blocks), (Some(16), Some(200)));
    }

    #[test]
    fn trtllm_serve_is_read() {
        let it = auto(
            "trtllm_num_requests_running{engine_type=\"trtllm\"} 5\ntrtllm_num_requests_waiting 2\n\
             trtllm_kv_cache_utilization 0.75\ntrtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 4096\n",
        );
        let expected = Reading {
            engine: "trtllm-serve".into(),
            running: Some(5),
            waiting: Some(2),
            kv_usage: Some(0.75),
            kv_usage_max: Some(0.75),
            block_size: Some(32),
            blocks: Some(4_096),
            ..Reading::default()
        };
        assert_eq!(it, expected);
    }

    #[test]
    fn triton_tells_waiting_from_scheduled_by_label_and_never_takes_a_counter_for_a_gauge() {
        let it = auto(
            "nv_inference_exec_count{model=\"e\"} 900\n\
             nv_inference_pending_request_count{model=\"e\"} 9\n\
             nv_trt_llm_request_metrics{model=\"t\",request_type=\"waiting\",version=\"1\"} 2\n\
             nv_trt_llm_request_metrics{model=\"t\",request_type=\"scheduled\",version=\"1\"} 5\n\
             nv_trt_llm_request_metrics{model=\"t\",request_type=\"max\",version=\"1\"} 512\n\
             nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"t\"} 0.4\n\
             nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\",model=\"t\"} 64\n\
             nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"t\"} 600\n",
        );
        assert_eq!((it.running, it.waiting, it.kv_usage), (Some(5), Some(2), Some(0.4)));
        assert_eq!((it.block_size, it.blocks), (Some(64), Some(600)));
        let plain = auto("nv_inference_pending_request_count{model=\"e\"} 9\nnv_inference_exec_count 900\n");
        assert_eq!((plain.engine.as_str(), plain.running, plain.waiting), ("triton", None, Some(9)));
    }

    #[test]
    fn a_nan_of_llamacpp_is_not_an_empty_cache() {
        let it = auto(
            "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\nllamacpp:kv_cache_usage_ratio nan\n\
             llamacpp:prompt_tokens_total 1.5e+03\nllamacpp:tokens_predicted_total 20\n",
        );
        let expected = Reading {
            engine: "llamacpp".into(),
            running: Some(1),
            waiting: Some(0),
            prompt_tokens_total: Some(1_500),
            generation_tokens_total: Some(20),
            ..Reading::default()
        };
        assert_eq!(it, expected);
    }

    #[test]
    fn custom_names_pick_their_series_by_label() {
        let engine = Engine::Custom(CustomMetrics {
            waiting: Some("my_requests{state=\"waiting\", model=\"a,b\"}".into()),
            running: Some(" my_requests{state=\"running\"} ".into()),
            kv_cache_usage: Some("my_usage".into()),
        });
        let it = reading(
            &engine,
            "my_requests{model=\"a,b\",state=\"waiting\"} 2\nmy_requests{model=\"c\",state=\"waiting\"} 4\n\
             my_requests{model=\"a\",state=\"running\"} 8\nmy_requests{model=\"b\",state=\"running\"} 16\n\
             my_usage{rank=\"0\"} 0.5\nmy_usage{rank=\"1\"} 1.00001\n",
        );
        assert_eq!((it.waiting, it.running), (Some(2), Some(24)));
        assert_eq!((it.kv_usage, it.kv_usage_max), (Some(0.75), Some(1.0)));
    }

    #[test]
    fn a_page_of_something_else_is_no_reading() {
        for page in ["", "{\"detail\":\"Not Found\"}", "go_goroutines 7\n", "# HELP vllm:num_requests_running x\n"] {
            assert_eq!(read(&Engine::Auto, page.as_bytes()), None, "{page}");
            assert_eq!(read(&Engine::Vllm, page.as_bytes()), None, "{page}");
        }
    }

    #[test]
    fn lines_that_look_wanted_but_cannot_be_read_are_counted() {
        let it = auto("vllm:num_requests_running{engine=\"0} 3\nvllm:num_requests_waiting many\n");
        assert_eq!((it.running, it.waiting, it.unparsed_lines), (None, None, 2));
    }

    #[test]
    fn negative_infinite_and_absent_values_are_no_counts() {
        let it = auto("vllm:num_requests_running -1\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc NaN\n");
        assert_eq!((it.streams(), it.kv_usage, it.unparsed_lines), (None, None, 0));
    }
}
