//! What is typed of quotas to what holds, with all that is wrong or strange about it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    GpuPrice, ModelQuotaFile, Money, Price, PriceFile, Quota, QuotaFile, Quotas, QuotasFile, Redis, RedisFile,
    TokenPrice, prices::Named,
};
use crate::config::{check::Sheet, tree::At};

/// Ten times what a Redis in the same data centre takes, with a pause for a slow command of somebody else's.
const TIMEOUT: Duration = Duration::from_millis(100);

/// What Redis keys begin with where nothing is said.
const PREFIX: &str = "tidegate";

/// Millionths of the currency: what a million tokens cost is given in them.
const MICROS: f64 = 1e6;

/// The section; `models` are the names that `models:` has, if that is all there are.
pub(in crate::config) fn quotas(file: Option<&QuotasFile>, models: Option<&[&str]>, sheet: &mut Sheet) -> Quotas {
    let Some(file) = file else { return Quotas::default() };
    sheet.names("tenant", &file.tenants.iter().map(|it| &it.name).collect::<Vec<_>>());
    sheet.names("model with limits", &file.models.iter().map(|it| &it.model_name).collect::<Vec<_>>());
    sheet.names("model with a price", &file.prices.iter().map(|it| &it.model_name).collect::<Vec<_>>());
    for ModelQuotaFile { model_name, .. } in &file.models {
        known_model(model_name, models, sheet);
    }
    let prices: BTreeMap<_, _> = file.prices.iter().filter_map(|it| price(it, models, sheet)).collect();
    let one = |file: Option<&QuotaFile>, sheet: &mut Sheet| file.map(|it| Arc::new(quota(it, sheet)));
    let quotas = Quotas {
        all: one(file.all.as_ref(), sheet),
        each_tenant: one(file.each_tenant.as_ref(), sheet),
        tenants: file
            .tenants
            .iter()
            .map(|it| (Arc::from(it.name.value.as_str()), Arc::new(quota(&it.limits, sheet))))
            .collect(),
        each_key: one(file.each_key.as_ref(), sheet),
        models: file
            .models
            .iter()
            .map(|it| (Arc::from(it.model_name.value.as_str()), Arc::new(quota(&it.limits, sheet))))
            .collect(),
        prices,
        state_file: file.state_file.as_ref().map(|at| at.value.clone()),
        redis: file.redis.as_ref().map(|it| redis(it, sheet)),
    };
    without_prices(file, &quotas, sheet);
    quotas
}

/// What one quota says.
pub(in crate::config) fn quota(file: &QuotaFile, sheet: &mut Sheet) -> Quota {
    let mut count = |at: Option<&At<u64>>| {
        if let Some(at) = at.filter(|at| at.value == 0) {
            sheet.warning(at.place, "with a limit of zero nothing comes in", "leave it out for no limit");
        }
        at.map(|at| at.value)
    };
    let (requests, tokens) = (count(file.requests_per_minute.as_ref()), count(file.tokens_per_minute.as_ref()));
    let (input, output) = (count(file.input_tokens_per_minute.as_ref()), count(file.output_tokens_per_minute.as_ref()));
    let concurrent = count(file.concurrent_requests.as_ref());
    let (day, month) = (budget(file.budget_per_day.as_ref(), sheet), budget(file.budget_per_month.as_ref(), sheet));
    if let (Some(at), Some((day, month))) = (&file.budget_per_day, day.zip(month))
        && day > month
    {
        sheet.warning(at.place, "a day may cost more than its whole month", "lower it, or raise `budget_per_month`");
    }
    Quota {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        input_tokens_per_minute: input,
        output_tokens_per_minute: output,
        concurrent_requests: concurrent,
        budget_per_day: day,
        budget_per_month: month,
        enforce: file.enforce.unwrap_or(true),
    }
}

fn budget(at: Option<&At<f64>>, sheet: &mut Sheet) -> Option<Money> {
    let at = at?;
    let money = Money::of(at.value);
    match money {
        None => sheet.error(at.place, "this is no amount of money", "write a number such as `50` or `12.5`"),
        Some(Money(0)) => {
            sheet.warning(at.place, "with a budget of zero nothing comes in", "leave it out for no limit");
        }
        Some(_) => {}
    }
    money
}

fn price(file: &PriceFile, models: Option<&[&str]>, sheet: &mut Sheet) -> Option<Named> {
    known_model(&file.model_name, models, sheet);
    let name = Arc::from(file.model_name.value.as_str());
    let by_tokens = file.input_per_million.as_ref().or(file.cached_per_million.as_ref());
    let by_tokens = by_tokens.or(file.output_per_million.as_ref());
    match (&file.gpu_hour, by_tokens) {
        (Some(at), Some(_)) => {
            let message = format!("`{name}` has two prices: of tokens, and of its GPUs' time");
            sheet.error(at.place, message, "keep one of the two");
            None
        }
        (Some(at), None) => {
            let gpus = sheet.count(file.gpus.as_ref(), 1);
            let hour = amount(at, 1.0, sheet)?;
            let all = Money::of(hour * f64::from(gpus));
            if all.is_none() {
                sheet.error(at.place, "this is more than can be counted", "check `gpu_hour` and `gpus`");
            }
            Some((name, Price::Gpus(GpuPrice { pod_hour: all? })))
        }
        (None, Some(_)) => {
            if let Some(at) = &file.gpus {
                let message = "`gpus` means nothing without `gpu_hour`";
                sheet.warning(at.place, message, "take it out, or write `gpu_hour` instead of prices of tokens");
            }
            let mut micros = |at: Option<&At<f64>>| at.map_or(Some(0), |at| micros(at, sheet));
            let (input, output) = (micros(file.input_per_million.as_ref()), micros(file.output_per_million.as_ref()));
            let cached = file.cached_per_million.as_ref().map_or(input, |at| micros(Some(at)));
            Some((name, Price::Tokens(TokenPrice { input: input?, cached: cached?, output: output? })))
        }
        (None, None) => {
            let remedy = "add `input_per_million` and `output_per_million`, or `gpu_hour`";
            sheet.error(file.model_name.place, format!("`{name}` has no price here"), remedy);
            None
        }
    }
}

/// A price as a number of `scale`-ths.
fn amount(at: &At<f64>, scale: f64, sheet: &mut Sheet) -> Option<f64> {
    let value = at.value * scale;
    let fits = (0.0..1e15).contains(&value);
    if !fits {
        sheet.error(at.place, "this is no price", "write a number such as `0.5` or `12`");
    }
    fits.then_some(value)
}

fn micros(at: &At<f64>, sheet: &mut Sheet) -> Option<u64> {
    let value = amount(at, MICROS, sheet)?.round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1e15 by the check before")]
    Some(value as u64)
}

/// Says if a model is named that no client can ask for.
fn known_model(name: &At<String>, models: Option<&[&str]>, sheet: &mut Sheet) {
    let Some(models) = models else { return };
    if !models.contains(&name.value.as_str()) {
        let message = format!("no model is called `{}`, so this never counts", name.value);
        let remedy = crate::config::report::suggestion(&name.value, models, "the models are");
        sheet.warning(name.place, message, remedy);
    }
}

/// Says if there are budgets that nothing can use up, and prices of nothing.
fn without_prices(file: &QuotasFile, quotas: &Quotas, sheet: &mut Sheet) {
    if !quotas.prices.is_empty() {
        return;
    }
    let given = [&file.all, &file.each_tenant, &file.each_key].into_iter().flatten();
    let given = given.chain(file.tenants.iter().map(|it| &it.limits)).chain(file.models.iter().map(|it| &it.limits));
    let mut given = given;
    let budget = given.find_map(|it| it.budget_per_day.as_ref().or(it.budget_per_month.as_ref()));
    if let Some(at) = budget {
        let remedy = "add `prices: [ { modelName: llama2, input_per_million: 0.5, output_per_million: 1.5 } ]`";
        sheet.warning(at.place, "no model has a price, so this budget is never used up", remedy);
    }
}

fn redis(file: &RedisFile, sheet: &mut Sheet) -> Redis {
    let url = file.url.value.trim();
    let rest = url.strip_prefix("redis://");
    if rest.is_none_or(str::is_empty) {
        let (message, remedy) = if url.starts_with("rediss://") {
            let remedy =
                "write `redis://` and keep it within a network of yours, or put a TLS tunnel beside the gateway";
            ("TLS to Redis is not offered".to_owned(), remedy)
        } else {
            let remedy = "write one such as `redis://10.0.0.5:6379` or `redis://redis:6379/2`";
            (format!("`{url}` is not where a Redis is"), remedy)
        };
        sheet.error(file.url.place, message, remedy);
    }
    if rest.is_some_and(|rest| rest.contains('@')) {
        sheet.error(
            file.url.place,
            "a password stands in this URL",
            "put it into a file and name that as `password_file`",
        );
    }
    let plain =
        |at: &&At<String>| !at.value.is_empty() && at.value.bytes().all(|it| it.is_ascii_graphic() && it != b'{');
    if let Some(at) = file.prefix.as_ref().filter(|at| !plain(at)) {
        sheet.error(at.place, "keys cannot begin with this", "write a word such as `tidegate`");
    }
    Redis {
        url: url.to_owned(),
        password_file: file.password_file.clone(),
        outage: file.outage.unwrap_or_default(),
        timeout: sheet.span(file.timeout.as_ref(), TIMEOUT),
        prefix: file.prefix.as_ref().map_or_else(|| PREFIX.to_owned(), |at| at.value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    const BASE: &str = "listeners: [{ name: a, address: 127.0.0.1:8081 }]
identity: { keys: { file: keys.yaml } }
pools: [{ name: vllm, endpoints: [{ url: \"http://10.0.0.1:8000\" }] }]
models: [{ modelName: m, poolRef: vllm }]
api: { serve_reported_models: false }
quotas:
";

    fn read(section: &str) -> (Quotas, Vec<String>) {
        let (config, warnings) = load("t.yaml", &format!("{BASE}{section}")).unwrap();
        (config.quotas, warnings.iter().map(ToString::to_string).collect())
    }

    fn wrong(section: &str) -> String {
        load("t.yaml", &format!("{BASE}{section}")).unwrap_err().to_string()
    }

    #[test]
    fn every_scope_has_its_quota() {
        let (quotas, warnings) = read(
            "  all: { requests_per_minute: 600 }
  each_tenant: { tokens_per_minute: 1000, enforce: false }
  tenants: [{ name: team-a, limits: { budget_per_day: 12.5 } }]
  each_key: { concurrent_requests: 4 }
  models: [{ modelName: m, limits: { output_tokens_per_minute: 5 } }]
  prices: [{ modelName: m, input_per_million: 0.5, output_per_million: 1.5 }]
",
        );
        assert_eq!(warnings, [] as [&str; 0]);
        assert_eq!(quotas.all.unwrap().requests_per_minute, Some(600));
        let tenant = quotas.each_tenant.unwrap();
        assert_eq!((tenant.tokens_per_minute, tenant.enforce), (Some(1000), false));
        assert_eq!(quotas.tenants["team-a"].budget_per_day, Some(Money(12_500_000_000)));
        assert_eq!(quotas.each_key.unwrap().concurrent_requests, Some(4));
        assert_eq!(quotas.models["m"].output_tokens_per_minute, Some(5));
        let price = TokenPrice { input: 500_000, cached: 500_000, output: 1_500_000 };
        assert_eq!(quotas.prices["m"], Price::Tokens(price), "what is cached costs as much, unless it is said");
    }

    #[test]
    fn nonsense_is_warned_of() {
        let (_, warnings) = read(
            "  all: { requests_per_minute: 0, budget_per_day: 5 }
  models: [{ modelName: n, limits: {} }]
",
        );
        let told = warnings.join("\n");
        for word in ["limit of zero", "never used up", "no model is called `n`"] {
            assert!(told.contains(word), "{word}: {told}");
        }
        let (_, warnings) = read(
            "  prices: [{ modelName: m, gpu_hour: 2, gpus: 8 }]\n  all: { budget_per_day: 9, budget_per_month: 1 }\n",
        );
        assert!(warnings.join("\n").contains("whole month"), "{warnings:?}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (section, word) in [
            ("  all: { budget_per_day: -1 }\n", "no amount of money"),
            ("  prices: [{ modelName: m }]\n", "no price here"),
            ("  prices: [{ modelName: m, gpu_hour: 1, input_per_million: 1 }]\n", "two prices"),
            ("  prices: [{ modelName: m, output_per_million: -1 }]\n", "is no price"),
            ("  tenants: [{ name: a, limits: {} }, { name: a, limits: {} }]\n", "two tenants"),
            ("  redis: { url: \"http://x\" }\n", "not where a Redis is"),
            ("  redis: { url: \"rediss://x\" }\n", "TLS to Redis is not offered"),
            ("  all: { tokens_per_minute: 10k }\n", "write a whole number, such as 10000"),
            ("  redis: { url: \"redis://:secret@x\" }\n", "password stands in this URL"),
            ("  redis: { url: \"redis://x\", prefix: \"a b\" }\n", "cannot begin"),
            ("  all: { requests_per_minute: -1 }\n", "requests_per_minute"),
        ] {
            let told = wrong(section);
            assert!(told.contains(word), "{section}: {told}");
        }
    }

    #[test]
    fn eight_gpus_cost_eight_times_as_much() {
        let (quotas, _) = read("  prices: [{ modelName: m, gpu_hour: 2.5, gpus: 8 }]\n");
        assert_eq!(quotas.prices["m"], Price::Gpus(GpuPrice { pod_hour: Money(20_000_000_000) }));
    }
}
