//! The facts of one request, and what is told of them when it ends: one log line and the metrics.
//!
//! A receipt closes by being dropped, so that a client which leaves in the middle is told of exactly like an answer
//! that came to its end.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

pub(in crate::gateway) use super::facts::{Chosen, Outcome, Step, WaitsFor};
use super::{
    rejection::{PANIC, Rejection},
    summary::Summary,
};
use crate::{
    admission::Caller,
    clock,
    gateway::{
        House, Peer,
        decide::Shed,
        spending::{Named, Spending},
    },
    openai::Usage,
    telemetry::{
        Decision, Name, Tally,
        labels::{DecisionLabels, PoolReasonLabels, ReasonLabels, RequestLabels},
        logs::REQUEST,
    },
    upstream::FailureKind,
};

/// nginx's number for a client that closed its connection before the answer; no server sends it.
const CLIENT_LEFT: u16 = 499;

/// Why an answer broke off at a gateway that does not say which side had had enough.
const UNTOLD: &str = "client_or_pod";

/// One request's facts.
pub(in crate::gateway) struct Receipt {
    house: Arc<House>,
    pub(in crate::gateway) listener: Name,
    pub(in crate::gateway) request_id: http::HeaderValue,
    pub(in crate::gateway) endpoint: &'static str,
    /// Who asked.
    pub(in crate::gateway) client: Option<Peer>,
    pub(in crate::gateway) caller: Option<Arc<Caller>>,
    /// What was asked for by name, where it was refused: path or model, as the client wrote it, shortened.
    pub(in crate::gateway) asked: Option<String>,
    /// The names of a certificate that nobody knows.
    pub(in crate::gateway) certificate: Option<Box<str>>,
    pub(in crate::gateway) received: Instant,
    pub(in crate::gateway) read: Option<Instant>,
    pub(in crate::gateway) added: Option<Duration>,
    /// How long it waited because no pod was ready, or all were full.
    pub(in crate::gateway) waited: Option<Duration>,
    /// Which of both, if it did.
    pub(in crate::gateway) waits_for: Option<WaitsFor>,
    /// Since when it stands in line, if it ever did.
    pub(in crate::gateway) in_line_since: Option<Instant>,
    pub(in crate::gateway) sent: Option<Instant>,
    pub(in crate::gateway) first_token: Option<Instant>,
    pub(in crate::gateway) last_token: Option<Instant>,
    pub(in crate::gateway) step: Step,
    pub(in crate::gateway) chosen: Option<Chosen>,
    pub(in crate::gateway) attempts: u32,
    /// What went wrong before each further attempt.
    pub(in crate::gateway) retried: SmallVec<[FailureKind; 2]>,
    pub(in crate::gateway) status: Option<u16>,
    pub(in crate::gateway) streamed: bool,
    pub(in crate::gateway) body_bytes: usize,
    pub(in crate::gateway) tokens: u32,
    pub(in crate::gateway) usage: Option<Usage>,
    pub(in crate::gateway) outcome: Outcome,
    /// Whom an operator should look at, if it was refused.
    pub(in crate::gateway) culprit: Option<&'static str>,
    /// Whether the pod's head has to be there in the time that the first token has.
    pub(in crate::gateway) bound_by_token: bool,
    /// The code of the error that we answered with; what Envoy says of one that it answered with.
    pub(in crate::gateway) error_code: Option<Cow<'static, str>>,
    /// Why it was refused, where the log can be more exact than the metrics.
    exactly: Option<&'static str>,
    /// Whose limit refused it, and which.
    limit: Option<String>,
    /// Why it was refused that a pod could have had.
    pub(in crate::gateway) shed: Option<Box<Shed>>,
    /// What the decision log will tell, if there is one and the request was routed.
    pub(in crate::gateway) decision: Option<Box<Decision>>,
    /// What it holds of its callers' limits.
    pub(in crate::gateway) spending: Option<Box<Spending>>,
    /// What it counts in, once its model is known.
    tally: Option<Arc<Tally>>,
}

impl Receipt {
    /// A request's head has come.
    pub(in crate::gateway) fn open(house: Arc<House>, listener: Name, request_id: http::HeaderValue) -> Self {
        house.requests_open.fetch_add(1, Relaxed);
        Self {
            house,
            listener,
            request_id,
            endpoint: "unknown",
            client: None,
            caller: None,
            asked: None,
            certificate: None,
            received: clock::now(),
            read: None,
            added: None,
            waited: None,
            in_line_since: None,
            waits_for: None,
            sent: None,
            first_token: None,
            last_token: None,
            step: Step::Reading,
            chosen: None,
            attempts: 0,
            retried: SmallVec::new(),
            culprit: None,
            bound_by_token: false,
            error_code: None,
            exactly: None,
            limit: None,
            status: None,
            streamed: false,
            body_bytes: 0,
            tokens: 0,
            usage: None,
            outcome: Outcome::Open,
            shed: None,
            decision: None,
            spending: None,
            tally: None,
        }
    }

    /// The model is known: from now on the request is counted as open under it.
    pub(in crate::gateway) fn for_model(&mut self, model: &Arc<str>) {
        let tally = self.house.metrics.tally(&self.listener, model);
        tally.open(&self.house.metrics).inc();
        self.tally = Some(tally);
    }

    /// Whose it is.
    pub(in crate::gateway) fn tenant(&self) -> &str {
        self.caller.as_ref().map_or(Caller::ANONYMOUS, |it| &it.tenant)
    }

    /// The model's name, once it is known.
    pub(in crate::gateway) fn model(&self) -> Option<&str> {
        self.tally.as_ref().map(|it| &*it.model().0)
    }

    /// An attempt is followed by another for this reason. A request that waits for pods may see many.
    pub(in crate::gateway) fn tried_again(&mut self, why: FailureKind) {
        /// As many as an operator reads.
        const SHOWN: usize = 8;
        if self.retried.len() < SHOWN {
            self.retried.push(why);
        }
    }

    /// We said no. That we failed ourselves, somebody should look into.
    pub(in crate::gateway) fn refused(&mut self, rejection: &Rejection) {
        self.outcome = Outcome::Refused(rejection.reason());
        self.exactly = rejection.exactly(self.bound_by_token);
        self.error_code = Some(rejection.code().into());
        self.culprit = Some(rejection.fault().culprit());
        if let Rejection::Quota(refusal) = rejection {
            self.limit = Some(format!("{} {}", Named(&refusal.scope), refusal.limit.name()));
        }
        if let Rejection::Panicked(what) = rejection {
            tracing::error!(request_id = self.request_id.to_str().unwrap_or_default(), what, "a request panicked");
        }
    }

    /// A pod was chosen within `took`.
    pub(in crate::gateway) fn chose(&mut self, chosen: Chosen, took: Duration) {
        if let Some(tally) = &self.tally {
            let metrics = &self.house.metrics;
            let labels = DecisionLabels { pool: chosen.pool.clone(), policy: chosen.policy, sight: chosen.sight };
            let (decisions, pick) = tally.decisions(metrics, labels);
            decisions.inc();
            pick.observe(took.as_secs_f64());
            if let Some(read) = self.read.filter(|_| self.attempts == 0) {
                let added = clock::now().saturating_duration_since(read);
                // Waiting for a pod is not the gateway's own work.
                let added = added.saturating_sub(self.waited.unwrap_or_default());
                tally.overhead(metrics).observe(added.as_secs_f64());
                self.added = Some(added);
            }
        }
        self.attempts += 1;
        self.step = Step::AtPod;
        self.chosen = Some(chosen);
    }

    /// `tokens` more came at `at`.
    pub(in crate::gateway) fn saw_tokens(&mut self, tokens: u32, at: Instant) {
        self.first_token.get_or_insert(at);
        self.last_token = Some(at);
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// Mean milliseconds between the stream's tokens, if it had two.
    pub(in crate::gateway) fn itl_ms(&self) -> Option<f64> {
        let (first, last) = (self.first_token?, self.last_token?);
        let gaps = self.tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(last.saturating_duration_since(first).as_secs_f64() * 1e3 / f64::from(gaps))
    }

    /// The status to tell.
    pub(in crate::gateway) fn code(&self) -> u16 {
        self.status.unwrap_or(CLIENT_LEFT)
    }

    fn count(&self, whole: Duration) {
        let metrics = &self.house.metrics;
        let reason = |reason| ReasonLabels { listener: self.listener.clone(), reason };
        match self.outcome {
            Outcome::Refused(why) => _ = metrics.rejections.get_or_create(&reason(why)).inc(),
            Outcome::Open => _ = metrics.aborts.get_or_create(&reason(self.step.name())).inc(),
            Outcome::BrokeOff => _ = metrics.aborts.get_or_create(&reason(UNTOLD)).inc(),
            Outcome::Complete | Outcome::Cut(_) => {}
        }
        if let (Some(shed), Outcome::Refused(reason)) = (&self.shed, &self.outcome) {
            metrics.shed.get_or_create(&PoolReasonLabels { pool: shed.pool.clone(), reason }).inc();
        }
        let (endpoint, code) = (self.endpoint, self.code());
        if let Some(caller) = &self.caller {
            metrics.identity.ended(&caller.tenant, code, self.usage);
        }
        let Some(tally) = &self.tally else {
            let labels = RequestLabels { listener: self.listener.clone(), endpoint, model: "unknown".into(), code };
            metrics.requests.get_or_create(&labels).inc();
            return;
        };
        tally.requests(metrics, endpoint, code).inc();
        tally.duration(metrics).observe(whole.as_secs_f64());
        if let Some(first) = self.first_token {
            let ttft = first.saturating_duration_since(self.received).as_secs_f64();
            tally.ttft(metrics).observe(ttft);
        }
        if let Some(itl) = self.itl_ms() {
            tally.itl(metrics).observe(itl / 1e3);
        }
        if let Some(chosen) = &self.chosen {
            tally.arms(metrics, &chosen.served_model).inc();
        }
        if let Some(usage) = self.usage {
            tally.count_tokens(metrics, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens);
        }
    }

    fn log(&self, whole: Duration) {
        let (outcome, reason) = self.ending();
        let (chosen, shed) = (self.chosen.as_ref(), self.shed.as_ref());
        tracing::info!(
            target: REQUEST,
            request_id = self.request_id.to_str().unwrap_or_default(),
            listener = &*self.listener.0,
            client = self.client.as_ref().map(Peer::shown),
            tenant = self.caller.as_ref().map(|it| &*it.tenant),
            key = self.caller.as_ref().and_then(|it| it.key.as_deref()),
            certificate = self.certificate.as_deref(),
            asked = self.asked.as_deref(),
            endpoint = self.endpoint,
            model = self.model(),
            served_model = chosen.map(|it| &*it.served_model.0),
            pool = chosen.map(|it| &*it.pool.0).or(shed.map(|it| &*it.pool.0)),
            pod = chosen.map(|it| &*it.pod),
            asked_pod = chosen.and_then(|it| it.asked_pod.as_deref()),
            policy = chosen.map(|it| it.policy),
            sight = chosen.map(|it| it.sight),
            cost_ms = chosen.map(|it| rounded(it.cost_ms)),
            attempts = self.attempts,
            retried = (!self.retried.is_empty()).then(|| self.why_retried()),
            status = self.code(),
            outcome,
            reason,
            code = self.error_code.as_deref(),
            limit = self.limit.as_deref(),
            saturation = shed.map(|it| rounded(it.saturation.level)),
            priority = shed.map(|it| it.priority.0),
            culprit = self.culprit,
            streamed = self.streamed,
            body_bytes = self.body_bytes,
            read_ms = self.ms_to(self.read),
            added_ms = self.added.map(|added| rounded(added.as_secs_f64() * 1e3)),
            waited_ms = self.waited_in_all().map(|waited| rounded(waited.as_secs_f64() * 1e3)),
            waited_for = self.waits_for.map(WaitsFor::name),
            ttft_ms = self.ms_to(self.first_token),
            itl_ms = self.itl_ms().map(rounded),
            duration_ms = rounded(whole.as_secs_f64() * 1e3),
            prompt_tokens = self.usage.and_then(|it| it.prompt_tokens),
            cached_tokens = self.usage.and_then(|it| it.cached_tokens),
            output_tokens = self.output_tokens(),
            "{}",
            Summary { receipt: self, whole },
        );
    }

    /// How long it waited, also if that is how it ended: out of time, or its client left.
    fn waited_in_all(&self) -> Option<Duration> {
        if self.step != Step::Waiting {
            return self.waited;
        }
        self.in_line_since.map(|since| clock::now().saturating_duration_since(since))
    }

    /// How it ended, in words.
    pub(in crate::gateway) fn ending(&self) -> (&'static str, Option<&'static str>) {
        match self.outcome {
            Outcome::Open => ("client_left", Some(self.step.name())),
            Outcome::Complete => ("complete", None),
            Outcome::Refused(reason) => ("refused", Some(self.exactly.unwrap_or(reason))),
            Outcome::Cut(reason) => ("cut", Some(reason)),
            Outcome::BrokeOff => ("broke_off", Some(UNTOLD)),
        }
    }

    /// What went wrong before each further attempt.
    fn why_retried(&self) -> String {
        self.retried.iter().map(|kind| kind.detail()).collect::<Vec<_>>().join(",")
    }

    /// As the pod reports them, else as the stream showed them.
    fn output_tokens(&self) -> Option<u32> {
        self.usage.and_then(|it| it.completion_tokens).or(Some(self.tokens).filter(|seen| *seen > 0))
    }

    /// From the request's head to `then`.
    fn ms_to(&self, then: Option<Instant>) -> Option<f64> {
        Some(rounded(then?.saturating_duration_since(self.received).as_secs_f64() * 1e3))
    }

    /// Completes the line for the decision log and hands it over.
    fn log_decision(&mut self) {
        let (Some(log), Some(mut decision)) = (&self.house.decisions, self.decision.take()) else { return };
        let usage = self.usage.unwrap_or_default();
        decision.at_ms = rounded(log.since_start(self.received).as_secs_f64() * 1e3);
        decision.pod = self.chosen.as_ref().map(|it| it.pod.to_string());
        decision.prompt_tokens = usage.prompt_tokens.unwrap_or(decision.prompt_tokens);
        decision.output_tokens = self.output_tokens();
        decision.cached_tokens = usage.cached_tokens;
        decision.ttft_ms = self.ms_to(self.first_token);
        decision.itl_ms = self.itl_ms().map(rounded);
        decision.outcome = self.ending().0;
        log.put(decision);
    }
}

/// To a microsecond: more digits are noise in a log line.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if std::thread::panicking() && self.outcome == Outcome::Open {
            // Nobody who could have said so is left.
            self.outcome = Outcome::Cut(PANIC);
        }
        if let Some(spending) = self.spending.take() {
            spending.settle(&self.house, self);
        }
        let whole = clock::now().saturating_duration_since(self.received);
        self.count(whole);
        self.log(whole);
        self.log_decision();
        if let Some(tally) = &self.tally {
            tally.open(&self.house.metrics).dec();
        }
        self.house.requests_open.fetch_sub(1, Relaxed);
    }
}
