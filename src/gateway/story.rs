//! One request under one policy, as far as its story is the same at both doors: what its path asks for, where it goes,
//! which bytes its pod shall read.

use std::{any::Any, panic::AssertUnwindSafe, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{
    House, ListenerPolicy, Policy,
    decide::{Matter, Wishes},
    proxy::headers::{OBJECTIVE, SERVED_AS},
    receipt::Receipt,
    rejection::{Rejection, shortened},
};
use crate::{
    admission::Caller,
    clock, config,
    config::Credentials,
    openai::{self, Ask, Asked, Changes, Dialect, Endpoint, PathProblem},
    routing::UnknownModel,
};

/// Every answer carries it.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id taken from a client, bytes: a UUID has 36, trace systems use up to 64.
const MAX_REQUEST_ID: usize = 128;

/// One request under one policy.
#[derive(Clone)]
pub(super) struct Story {
    pub(super) house: Arc<House>,
    pub(super) policy: Arc<Policy>,
    pub(super) listener: Arc<ListenerPolicy>,
    /// Who asks.
    pub(super) caller: Arc<Caller>,
}

impl Story {
    /// `work`, unless a stop's grace is over before; a panic in it is a refusal as any other. Pinned where it is, because
    /// it is large and each move would copy it.
    pub(super) async fn guarded<T>(
        &self,
        work: Pin<&mut impl Future<Output = Result<T, Rejection>>>,
    ) -> Result<T, Rejection> {
        tokio::select! {
            biased;
            done = AssertUnwindSafe(work).catch_unwind() => done.unwrap_or_else(|panic| Err(Rejection::Panicked(said(&*panic)))),
            () = self.house.cut.cancelled() => Err(Rejection::Stopping),
        }
    }

    /// What is asked for at `path`, and in which words to answer.
    pub(super) fn classify<'a>(
        &self,
        method: &Method,
        path: &'a str,
        receipt: &mut Receipt,
        dialect: &mut Dialect,
    ) -> Result<Asked<'a>, Rejection> {
        let asked = openai::classify(method, path, &self.policy.config.api.extra_paths);
        let endpoint = match &asked {
            Ok(asked) => Some(asked.endpoint),
            Err(PathProblem::WrongMethod { endpoint, .. }) => Some(*endpoint),
            Err(_) => None,
        };
        if let Some(endpoint) = endpoint {
            *dialect = endpoint.dialect();
            receipt.endpoint = endpoint.label();
        }
        asked.map_err(|problem| {
            receipt.asked = Some(shortened(path));
            Rejection::of_path(problem, method, path, &self.policy.config.api.extra_paths)
        })
    }

    /// What the body asks for and where that goes, noted on the receipt.
    pub(super) fn matter(
        &self,
        endpoint: Endpoint,
        headers: &HeaderMap,
        body: &[u8],
        receipt: &mut Receipt,
    ) -> Result<(Ask, Matter), Rejection> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut ask = Ask::parse(endpoint, text(header::CONTENT_TYPE.as_str()), body)?;
        self.keep_apart(&mut ask)?;
        let mut wishes = Wishes {
            session: text(&self.policy.config.sessions.header),
            caller: Some(&self.caller),
            ..Wishes::default()
        };
        wishes.hear_urgency(headers, self.listener.trusts_headers);
        if self.listener.trusts_headers {
            let first = |names: [&str; 2]| names.into_iter().find_map(|name| text(name).filter(|it| !it.is_empty()));
            wishes.objective = first(OBJECTIVE);
            wishes.served_as = first(SERVED_AS);
        }
        if !ask.model.is_empty() {
            self.may_ask_for(&ask.model, receipt)?;
        }
        let matter = Matter::new(&self.house, &self.listener, &ask, body, wishes).map_err(|rejection| {
            if matches!(rejection, Rejection::UnknownModel(_)) {
                receipt.asked = Some(shortened(&ask.model));
            }
            self.seen_by_caller(rejection)
        })?;
        self.may_ask_for(&matter.route.client_model, receipt)?;
        receipt.for_model(&matter.route.client_model);
        receipt.streamed = ask.stream;
        receipt.decision = self.house.decisions.as_ref().map(|_| Box::new(matter.decision()));
        Ok((ask, matter))
    }

    /// What one tenant asked is nobody else's: neither what is in prefix caches of it, nor its responses.
    fn keep_apart(&self, ask: &mut Ask) -> Result<(), Rejection> {
        let tenant = &*self.caller.tenant;
        if let Some(salt) = self.house.keyring.salt().filter(|_| ask.endpoint.generates()) {
            let own = ask.cache_salt.take().unwrap_or_default();
            ask.put_salt(salt.of(tenant, &own));
        }
        // Where nobody is known, a pod may still have a response that we have forgotten.
        let continued =
            ask.previous_response_id.as_deref().filter(|_| self.listener.credentials != Credentials::Ignored);
        match continued.filter(|id| self.house.pod_of_response(tenant, id).is_none()) {
            Some(id) => Err(Rejection::UnknownResponse(shortened(id))),
            None => Ok(()),
        }
    }

    /// Whoever may not ask for a model does not learn whether it exists.
    fn may_ask_for(&self, model: &str, receipt: &mut Receipt) -> Result<(), Rejection> {
        if self.caller.may_ask_for(model) {
            return Ok(());
        }
        receipt.asked = Some(shortened(model));
        Err(Rejection::ModelNotAllowed(shortened(model)))
    }

    /// Nor of others that exist.
    fn seen_by_caller(&self, rejection: Rejection) -> Rejection {
        match rejection {
            Rejection::UnknownModel(mut unknown) => {
                unknown.served.retain(|model| self.caller.may_ask_for(model));
                Rejection::UnknownModel(unknown)
            }
            other => other,
        }
    }

    /// The body with what the pod must read otherwise: its own name for the model, and the wish for usage. The client's
    /// is let go.
    pub(super) fn body_for_pod(
        &self,
        body: Bytes,
        ask: &Ask,
        matter: &Matter,
        include_usage: bool,
    ) -> Result<Bytes, Rejection> {
        let changes = Changes { model: Some(&matter.route.served_model), include_usage };
        if ask.model.is_empty() || changes.change_nothing(ask) {
            Ok(body)
        } else {
            self.house.bodies.keep(openai::splice(&body, ask, &changes))
        }
    }

    /// The models served here, or the one that is asked for.
    pub(super) fn list_models(&self, asked: Asked<'_>) -> Result<Bytes, Rejection> {
        let Some(name) = asked.decoded_id() else {
            return Ok(self.house.models(&self.listener, &self.caller));
        };
        self.house.model(&self.listener, &self.caller, &name).ok_or_else(|| {
            let served = self.house.served_names(&self.listener);
            self.seen_by_caller(Rejection::UnknownModel(UnknownModel { asked: name.into_owned(), served }))
        })
    }
}

/// Refuses what may be refused while its pool is full, unless it has a share by which it may wait. Asked once it is known
/// which pods could have it, and before it waits for any.
pub(super) fn shed(matter: &Matter, limits: &config::Waiting, receipt: &mut Receipt) -> Result<(), Rejection> {
    let Some(shed) = matter.shed().filter(|_| !matter.has_share(limits)) else { return Ok(()) };
    let pause = shed.saturation.pause();
    receipt.shed = Some(Box::new(shed));
    Err(Rejection::Saturated { pause })
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("nothing").to_owned()
}

/// The client's request id if it can be one, else a new one. A copy: it lives as long as the request, and a slice of the
/// head would hold the 8 KiB that it was read into for as long.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let visible = |value: &&HeaderValue| {
        value.len() <= MAX_REQUEST_ID && !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    headers.get(X_REQUEST_ID).filter(visible).and_then(copy).unwrap_or_else(|| {
        let number: u128 = rand::RngExt::random(&mut clock::rng());
        HeaderValue::from_bytes(&in_hex(number)).unwrap_or_else(|_| HeaderValue::from_static("0"))
    })
}

/// All its digits, leading zeros too.
fn in_hex(number: u128) -> [u8; 32] {
    let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' + half - 10 };
    let mut text = [0; 32];
    for (pair, byte) in text.as_chunks_mut().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    text
}
