//! Prometheus' text format as Python's client library writes it: order of labels, `_created` twins, number format.
//!
//! A gateway's parser must live with these habits, so they are kept to the byte. It knows no family by name.

use super::histograms::Histogram;

/// A page being written.
pub(super) struct Exposition<'a> {
    /// What was written so far.
    pub(super) out: String,
    /// The value of `model_name`.
    pub(super) model: &'a str,
    /// The value of every `_created`, in seconds since 1970.
    pub(super) started: f64,
}

impl Exposition<'_> {
    /// A gauge with vLLM's usual labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(&format!("vllm:{name}"), help, "gauge");
        self.sample(&format!("{name}{{{}}}", self.labels("", "")), value);
    }

    /// A gauge with one label more.
    pub(super) fn labelled(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(&format!("vllm:{name}"), help, "gauge");
        for (label_value, value) in values {
            self.sample(&format!("{name}{{{}}}", self.labels(label, label_value)), *value);
        }
    }

    /// A counter with vLLM's usual labels, and when it began.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, "", &[("", value)]);
    }

    /// A counter with one label more.
    pub(super) fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        let labels = |it: &str| self.labels(label, it);
        let series: Vec<(String, f64)> = values.iter().map(|(it, value)| (labels(it), *value)).collect();
        self.series(name, help, &series);
    }

    /// A counter whose labels are given whole.
    pub(super) fn series(&mut self, name: &str, help: &str, series: &[(String, f64)]) {
        self.head(&format!("vllm:{name}_total"), help, "counter");
        for (labels, value) in series {
            self.sample(&format!("{name}_total{{{labels}}}"), *value);
        }
        self.head(&format!("vllm:{name}_created"), help, "gauge");
        for (labels, _) in series {
            self.sample(&format!("{name}_created{{{labels}}}"), self.started);
        }
    }

    /// A histogram, and when it began.
    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(&format!("vllm:{name}"), help, "histogram");
        let bounds = histogram.bounds.iter().map(|&bound| number(bound)).chain(["+Inf".to_owned()]);
        let mut so_far = 0;
        for (bound, count) in bounds.zip(&histogram.counts) {
            so_far += count;
            self.sample(&format!("{name}_bucket{{{}}}", self.labels("le", &bound)), so_far as f64);
        }
        let labels = self.labels("", "");
        self.sample(&format!("{name}_count{{{labels}}}"), so_far as f64);
        self.sample(&format!("{name}_sum{{{labels}}}"), histogram.sum);
        self.head(&format!("vllm:{name}_created"), help, "gauge");
        self.sample(&format!("{name}_created{{{labels}}}"), self.started);
    }

    /// The labels every family has, and one more, in alphabetical order as the Python client writes them.
    fn labels(&self, name: &str, value: &str) -> String {
        let model = self.model;
        let mut labels = vec![("engine", "0"), ("model_name", model), (name, value)];
        labels.retain(|(name, _)| !name.is_empty());
        labels.sort_unstable();
        let written: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        written.join(",")
    }

    /// A line as it is.
    pub(super) fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// What comes before a family's samples.
    pub(super) fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(&format!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, series: &str, value: f64) {
        self.line(&format!("vllm:{series} {}", number(value)));
    }
}

/// A number as the Python client writes it: `13.0`, and `1.7952171e+09` from a million on.
pub(super) fn number(value: f64) -> String {
    let plain = format!("{value:?}");
    if let Some((digits, exponent)) = plain.split_once("e-") {
        return format!("{digits}e-{exponent:0>2}");
    }
    let Some((whole, fraction)) = plain.split_once('.').filter(|(whole, _)| value > 0.0 && whole.len() > 6) else {
        return plain;
    };
    let (first, rest) = whole.split_at_checked(1).unwrap_or((whole, ""));
    let digits = format!("{rest}{fraction}");
    let mantissa = format!("{first}.{}", digits.trim_end_matches('0'));
    format!("{}e+{:02}", mantissa.trim_end_matches('.'), whole.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_the_python_client_writes_them() {
        for (value, text) in [
            (13.0, "13.0"),
            (0.25, "0.25"),
            (0.000_075, "7.5e-05"),
            (0.0, "0.0"),
            (123_456.5, "123456.5"),
            (10_000_000.0, "1e+07"),
            (4_158_713_856.0, "4.158713856e+09"),
            (1_795_217_101.094_748_5, "1.7952171010947485e+09"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
