//! What a request may use up, as the desk sees it: reserved before it goes anywhere, and settled by what its receipt
//! knows when it closes, however that comes about.

use std::time::{Duration, UNIX_EPOCH};

use super::{
    House, Policy,
    decide::Matter,
    receipt::{Outcome, Receipt, Step},
    rejection::Rejection,
    story::Story,
};
use crate::{
    admission::{Caller, Demand, Granted, Hold, Mode, Moment, Plan, Refusal, Scope, Spent, Standing},
    clock,
    config::{Money, Outage, Price},
    fleet::Pod,
    keys::{Reserved, Shared, Ticket},
    openai::Usage,
    telemetry::{Name, SpendLabels},
};

/// Tokens that chat templates put around a short prompt: Llama's and Qwen's default system turns have 20 to 30.
const SPARE: u64 = 32;

/// One in so many more than estimated: bytes a token differ by a fifth between prose and code.
const SPARE_SHARE: u64 = 4;

/// What one request holds, and what is needed to settle it.
pub(super) struct Spending {
    hold: Hold,
    /// The same where several gateways count together.
    ticket: Option<Ticket>,
    /// The room that was left when it came.
    pub(super) standing: Standing,
    demand: Demand,
    price: Option<Price>,
    labels: SpendLabels,
    /// Requests on its pod when its answer began and when it ended, itself among them.
    beside: [u64; 2],
}

/// Now, by both clocks.
pub fn moment() -> Moment {
    let unix = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { at: clock::now(), unix }
}

impl Story {
    /// Takes what `matter` will likely use up of its callers' limits; `receipt` holds it.
    pub(super) async fn reserve_quotas(&self, matter: &Matter, receipt: &mut Receipt) -> Result<(), Rejection> {
        let quotas = &self.policy.config.quotas;
        let model = &matter.route.client_model;
        let (plan, price) = (Plan::of(quotas, &self.caller, model), quotas.prices.get(model).copied());
        if plan.is_empty() && price.is_none() {
            return Ok(());
        }
        let demand = demand(matter, price);
        let granted = match &self.house.shared {
            // Boxed, because few need its room.
            Some(shared) => Box::pin(self.reserve_together(shared, &plan, &demand)).await,
            None => self.house.counts.reserve(&plan, &demand, Mode::Enforce, &moment()).map(|it| (it, None)),
        };
        let (Granted { hold, standing, would }, ticket) = granted.map_err(|refusal| {
            self.house.note_refusal(&refusal, true);
            Rejection::Quota(refusal)
        })?;
        for refusal in &would {
            self.house.note_refusal(refusal, false);
        }
        let labels = SpendLabels { tenant: self.tenant_label(), model: receipt.model().unwrap_or_default().into() };
        receipt.spending = Some(Box::new(Spending { hold, ticket, standing, demand, price, labels, beside: [1; 2] }));
        Ok(())
    }

    /// The same where several gateways count together. Here it is counted as well, so that there is something to go by
    /// when the others cannot be asked.
    async fn reserve_together(
        &self,
        shared: &Shared,
        plan: &Plan,
        demand: &Demand,
    ) -> Result<(Granted, Option<Ticket>), Box<Refusal>> {
        let now = moment();
        plan.can_ever(demand, &now)?;
        let meters = plan.shared(demand, &now);
        let here = |mode| self.house.counts.reserve(plan, demand, mode, &now);
        if meters.is_empty() {
            return here(Mode::Enforce).map(|it| (it, None));
        }
        let Some(Reserved { meters, ticket }) = shared.reserve(meters).await else {
            return match (shared.outage(), plan.unknown()) {
                (Outage::Refuse, Some(unknown)) => Err(unknown),
                (Outage::Allow, _) => here(Mode::Count).map(|it| (it, None)),
                _ => here(Mode::Enforce).map(|it| (it, None)),
            };
        };
        let stands: Vec<_> = meters.iter().map(|(_, stand)| *stand).collect();
        let standing = plan.judge(demand, &stands, &now)?;
        here(Mode::Count).map(|granted| (Granted { standing, ..granted }, ticket))
    }

    /// Whether token usage is to be asked for where the client did not: the operator wants it, or something depends on it.
    pub(super) fn wants_usage(&self, receipt: &Receipt) -> bool {
        self.policy.config.api.inject_usage || receipt.spending.is_some()
    }

    /// Tenants that the configuration names have rows of their own in the metrics; who shows nothing has one too.
    fn tenant_label(&self) -> Name {
        let tenant = &self.caller.tenant;
        let named = **tenant == *Caller::ANONYMOUS || self.policy.config.quotas.tenants.contains_key(tenant);
        if named { Name::from(tenant) } else { Name::from("other") }
    }
}

/// Which limit would refuse `matter`, if `caller` asked now. Nothing is taken, and where several gateways count together,
/// only this one's counts are looked at.
pub(super) fn would_refuse(house: &House, policy: &Policy, caller: &Caller, matter: &Matter) -> Option<Box<Refusal>> {
    let quotas = &policy.config.quotas;
    let model = &matter.route.client_model;
    let (plan, price) = (Plan::of(quotas, caller, model), quotas.prices.get(model).copied());
    house.counts.reserve(&plan, &demand(matter, price), Mode::Look, &moment()).err()
}

impl House {
    fn note_refusal(&self, refusal: &Refusal, enforced: bool) {
        let Refusal { scope, limit, .. } = refusal;
        self.metrics.quotas.refused(scope.kind(), limit.name(), enforced);
        if !enforced {
            tracing::debug!(scope = %Named(scope), limit = limit.name(), "a limit that is only counted would refuse this");
        }
    }
}

/// A scope as the log names it.
pub(super) struct Named<'a>(pub(super) &'a Scope);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = (self.0.kind(), self.0.name());
        if name.is_empty() { out.write_str(kind) } else { write!(out, "{kind} {name}") }
    }
}

/// What `matter` will likely take: its prompt as estimated, and as long an answer as its client allows or as answers of
/// its pool have, whichever is less.
fn demand(matter: &Matter, price: Option<Price>) -> Demand {
    let (input, output) = matter.tokens();
    // A prompt's length is a guess by its bytes, and templates add what no client wrote.
    let (spare, output) = (u64::from(input) / SPARE_SHARE + SPARE, u64::from(output));
    let input = u64::from(input);
    let most = input + spare;
    let cost = price.map(|price| match price {
        Price::Tokens(price) => price.cost(most, 0, output),
        // As if it had its pod alone: it will not, and gets the rest back.
        Price::Gpus(price) => {
            let pace = matter.pool.pace();
            let ms = pace.base_ms + most as f64 * pace.ms_per_token + output as f64 * pace.itl_ms(1.0);
            price.cost(micros(Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()), 1)
        }
    });
    Demand { input, spare, output, cost }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Receipt {
    /// Its answer comes from `pod`.
    pub(super) fn relays_from(&mut self, pod: &Pod) {
        self.step = Step::Relaying;
        if let Some(spending) = &mut self.spending {
            spending.beside = [pod.ledger.in_flight().max(1); 2];
        }
    }

    /// Its answer is over, and `pod` said that it took this.
    pub(super) fn took(&mut self, usage: Option<Usage>, pod: &Pod) {
        self.usage = usage;
        if let Some(Spending { beside: [_, last], .. }) = self.spending.as_deref_mut() {
            *last = pod.ledger.in_flight().max(1);
        }
    }
}

impl Spending {
    /// Settles it by what `receipt` knows.
    pub(super) fn settle(self, house: &House, receipt: &Receipt) {
        let now = moment();
        let (spent, cached) = self.spent(receipt, &now);
        let rows = &house.metrics.quotas;
        rows.spent(&self.labels, [spent.input, spent.output, cached], spent.cost.amount());
        self.hold.settle(&spent, &now);
        if let (Some(ticket), Some(shared)) = (self.ticket, &house.shared) {
            shared.settle(ticket, |letter| spent.of(letter));
        }
    }

    /// What it took, and how much of its prompt was cached.
    fn spent(&self, receipt: &Receipt, now: &Moment) -> (Spent, u64) {
        let Demand { input, output, cost, .. } = self.demand;
        if receipt.attempts == 0 {
            return (Spent::default(), 0);
        }
        let only_asked = Spent { requests: 1, ..Spent::default() };
        let reserved = Spent { requests: 1, input, output, cost: cost.unwrap_or_default() };
        let answered = receipt.status.is_none_or(|status| status < 300);
        let seen = u64::from(receipt.tokens);
        let complete = receipt.outcome == Outcome::Complete;
        match (&receipt.outcome, receipt.step) {
            // No pod answered it, or one said no.
            (Outcome::Refused(_), _) | (_, Step::Waiting | Step::Reading) => return (only_asked, 0),
            _ if !answered => return (only_asked, 0),
            // The pod is at fault that nothing came.
            (Outcome::Cut(_), _) if receipt.streamed && seen == 0 => return (only_asked, 0),
            _ if receipt.usage.is_none() && seen == 0 => return (reserved, 0),
            _ => {}
        }
        let said = receipt.usage.unwrap_or_default();
        let told = Usage { completion_tokens: said.completion_tokens.filter(|_| complete), ..said };
        let input = told.prompt_tokens.map_or(input, u64::from);
        // Of an answer that broke off its pod may have said less than came.
        let output = told.completion_tokens.map_or(seen.max(said.completion_tokens.unwrap_or(0).into()), u64::from);
        let cached = u64::from(told.cached_tokens.unwrap_or(0));
        let cost = self.price.map_or(Money(0), |price| match price {
            Price::Tokens(price) => price.cost(input, cached, output),
            Price::Gpus(price) => {
                let time = receipt.sent.map_or(Duration::ZERO, |sent| now.at.saturating_duration_since(sent));
                // The mean of two looks.
                price.cost(micros(time).saturating_mul(2), self.beside.iter().sum())
            }
        });
        (Spent { requests: 1, input, output, cost }, cached)
    }
}
