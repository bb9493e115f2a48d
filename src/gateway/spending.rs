//! What a request may use up, as the desk sees it: reserved before it goes anywhere, and settled by what its receipt
//! knows when it closes, however that comes about.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

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
    config::{Config, Money, Outage, Price},
    fleet::Pod,
    keys::{Reserved, Shared, Ticket},
    openai::{Ask, BesideText, Usage},
    telemetry::{Name, SpendLabels},
};

/// Tokens that chat templates put around a short prompt: Llama's and Qwen's default system turns have 20 to 30.
const SPARE: u64 = 32;

/// One in so many more than estimated: bytes a token differ by a fifth between prose and code.
const SPARE_SHARE: u64 = 4;

/// Tokens of an image, a sound or a file in a prompt, whose bytes say little. OpenAI counts 765 to 1,105 for an image in
/// high detail, Qwen2-VL 1,280 for a million pixels.
const BESIDE_TEXT: u32 = 1_000;

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
    /// Whether it only asks about a response: it is a request, and takes neither tokens nor money.
    only_asks: bool,
    /// Whether its answer said why it ended, whatever became of the rest.
    told_its_end: bool,
}

/// Now, by both clocks.
pub fn moment() -> Moment {
    let unix = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { at: clock::now(), unix }
}

impl Story {
    /// Refuses who has had all requests of this minute, or has as many at once as it may, before anything of the request is
    /// held. Where several gateways count together only they know.
    pub(super) fn look_at_quotas(&self) -> Result<(), Rejection> {
        let plan = Plan::of(&self.policy.config.quotas, &self.caller, None);
        if plan.is_empty() || self.house.shared.is_some() {
            return Ok(());
        }
        let looked = self.house.counts.reserve(&plan, &Demand::default(), Mode::Look, &moment());
        looked.map(drop).map_err(|refusal| self.refused_by(refusal))
    }

    /// Takes what `matter` will likely use up of its callers' limits; `receipt` holds it. It is what `ask` says in `body`.
    pub(super) async fn reserve_quotas(
        &self,
        matter: &Matter,
        (ask, body): (&Ask, &[u8]),
        receipt: &mut Receipt,
    ) -> Result<(), Rejection> {
        let (plan, price) = counted(&self.policy.config, &self.caller, matter);
        if plan.is_empty() && price.is_none() {
            return Ok(());
        }
        let demand = demand(matter, ask.beside_text(body), price);
        self.reserve_plan(&plan, demand, price, receipt).await
    }

    /// The same for a request about a response: whatever that took is paid by who asked for it.
    pub(super) async fn reserve_visit(&self, receipt: &mut Receipt) -> Result<(), Rejection> {
        let plan = Plan::of(&self.policy.config.quotas, &self.caller, None);
        if !plan.is_empty() {
            self.reserve_plan(&plan, Demand::default(), None, receipt).await?;
        }
        if let Some(spending) = &mut receipt.spending {
            spending.only_asks = true;
        }
        Ok(())
    }

    async fn reserve_plan(
        &self,
        plan: &Plan,
        demand: Demand,
        price: Option<Price>,
        receipt: &mut Receipt,
    ) -> Result<(), Rejection> {
        let granted = match &self.house.shared {
            // Boxed, because few need its room.
            Some(shared) => Box::pin(self.reserve_together(shared, plan, &demand)).await,
            None => self.house.counts.reserve(plan, &demand, Mode::Enforce, &moment()).map(|it| (it, None)),
        };
        let (Granted { hold, standing, would }, ticket) = granted.map_err(|refusal| self.refused_by(refusal))?;
        for refusal in &would {
            self.house.note_refusal(refusal, false);
        }
        let labels = SpendLabels { tenant: self.tenant_label(), model: receipt.model().unwrap_or_default().into() };
        let (beside, only_asks, told_its_end) = ([1; 2], false, false);
        let spending = Spending { hold, ticket, standing, demand, price, labels, beside, only_asks, told_its_end };
        receipt.spending = Some(Box::new(spending));
        Ok(())
    }

    fn refused_by(&self, refusal: Box<Refusal>) -> Rejection {
        self.house.note_refusal(&refusal, true);
        Rejection::Quota(refusal)
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
pub(super) fn would_refuse(
    house: &House,
    policy: &Policy,
    caller: &Caller,
    matter: &Matter,
    (ask, body): (&Ask, &[u8]),
) -> Option<Box<Refusal>> {
    let (plan, price) = counted(&policy.config, caller, matter);
    let demand = demand(matter, ask.beside_text(body), price);
    house.counts.reserve(&plan, &demand, Mode::Look, &moment()).err()
}

/// Where `matter` counts if `caller` asks, and what it costs.
fn counted(config: &Config, caller: &Caller, matter: &Matter) -> (Plan, Option<Price>) {
    let model = billed(config, &matter.route.client_model);
    (Plan::of(&config.quotas, caller, Some(model)), config.quotas.prices.get(model).copied())
}

/// Under which name a model's limits and price are found. Where pods report a name that only one model has among its
/// targets, and nothing is said of the name itself, asking for it by that name is asking for that model.
fn billed<'a>(config: &'a Config, name: &'a Arc<str>) -> &'a Arc<str> {
    let quotas = &config.quotas;
    let models = || config.models.iter().chain(&config.pool_models);
    let is_own = || quotas.models.contains_key(name) || quotas.prices.contains_key(name);
    if (quotas.models.is_empty() && quotas.prices.is_empty()) || is_own() || models().any(|it| it.name == *name) {
        return name;
    }
    let mut leading = models().filter(|it| it.targets.iter().any(|target| target.name == *name));
    match (leading.next(), leading.next()) {
        (Some(model), None) => &model.name,
        _ => name,
    }
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
fn demand(matter: &Matter, beside: BesideText, price: Option<Price>) -> Demand {
    let (_, output) = matter.tokens();
    let input = matter.pool.tokens(matter.prompt_bytes.saturating_sub(beside.bytes));
    let input = input.saturating_add(beside.parts.saturating_mul(BESIDE_TEXT));
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

    /// Its answer is over, and `pod` said that it took this, and perhaps why it ended.
    pub(super) fn took(&mut self, usage: Option<Usage>, told_its_end: bool, pod: &Pod) {
        self.usage = usage;
        if let Some(spending) = &mut self.spending {
            let [_, last] = &mut spending.beside;
            *last = pod.ledger.in_flight().max(1);
            spending.told_its_end = told_its_end;
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
        let only_asked = Spent { requests: 1, ..Spent::default() };
        if self.only_asks {
            return (only_asked, 0);
        }
        if receipt.attempts == 0 {
            return (Spent::default(), 0);
        }
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
        // Of an answer that broke off its pod may have said less than came; and of one that was whole but for its usage
        // nobody pays less than was reserved, or leaving just then would be worth while.
        let least = if self.told_its_end && said.completion_tokens.is_none() { output } else { 0 };
        let output =
            told.completion_tokens.map_or(seen.max(said.completion_tokens.unwrap_or(0).into()).max(least), u64::from);
        let input = match told.prompt_tokens.map(u64::from) {
            Some(told) if complete => told,
            told => told.unwrap_or(0).max(input),
        };
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
