//! The base-URL door: requests come as plain HTTP and their answers are relayed.

mod answer;
mod attempts;
mod decision;
mod ending;
mod front;
mod headers;
mod heartbeat;
mod patience;
mod relay;
mod timer;

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

pub use answer::{Answer, refuse_unparsed};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header, request};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use self::{headers::X_REQUEST_ID, relay::Relay};
use super::{
    CurrentPolicy, House, ListenerPolicy, Peer, Policy, body,
    decide::{Matter, Pick},
    receipt::{Outcome, Receipt},
    rejection::{Rejection, shortened},
};
use crate::{
    clock,
    config::Timeouts,
    fleet::{Pod, PoolState},
    openai::{self, Ask, Asked, Changes, Dialect, Endpoint, PathProblem},
    routing::UnknownModel,
    scheduler::NoPod,
    upstream::{self, Carry},
};

/// Longest request id taken from a client, bytes: a UUID has 36, trace systems use up to 64.
const MAX_REQUEST_ID: usize = 128;

/// Which pod answered.
const X_TIDEGATE_POD: HeaderName = HeaderName::from_static("x-tidegate-pod");

/// Why that one.
const X_TIDEGATE_DECISION: HeaderName = HeaderName::from_static("x-tidegate-decision");

/// How many attempts it took.
const X_TIDEGATE_ATTEMPTS: HeaderName = HeaderName::from_static("x-tidegate-attempts");

/// One listener's desk.
#[derive(Clone, Debug)]
pub struct Desk {
    house: Arc<House>,
    policy: CurrentPolicy,
    listener: usize,
}

/// One request under one policy.
#[derive(Clone)]
struct Story {
    house: Arc<House>,
    policy: Arc<Policy>,
    listener: Arc<ListenerPolicy>,
}

/// Who has the answer.
enum Told {
    ByPod(Errand),
    ByUs(Bytes),
}

/// What is to be carried to a pod.
struct Errand {
    carry: Carry,
    /// Boxed, because it is handed on from step to step.
    sent: Box<Sent>,
    /// The one pod that it is for, if it is for no other and no choice was made.
    home: Option<(Arc<PoolState>, Arc<Pod>)>,
}

/// A pod's answer, the place it comes from and what was asked.
struct Brought {
    answer: upstream::Answer,
    pick: Pick,
    sent: Box<Sent>,
}

/// What the answer's way back needs to know of the request.
struct Sent {
    matter: Option<Matter>,
    endpoint: Endpoint,
    inject_usage: bool,
    timeouts: Timeouts,
    /// After how much silence of the pod's the client hears that its stream is alive.
    heartbeat: Option<Duration>,
}

impl Desk {
    /// The desk of the configuration's `listener`.
    pub fn new(house: Arc<House>, policy: CurrentPolicy, listener: usize) -> Self {
        Self { house, policy, listener }
    }

    /// Serves one request. There is always an answer.
    pub async fn serve(self, peer: Peer, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let policy = self.policy.load_full();
        let request_id = request_id(request.headers());
        let Some(listener) = policy.listeners.get(self.listener).map(Arc::clone) else {
            return Ok(answer::refusal(&Rejection::NoPod(NoPod::PoolEmpty), Dialect::OpenAi, &request_id));
        };
        let mut receipt = Receipt::open(Arc::clone(&self.house), listener.name.clone(), request_id);
        receipt.client = Some(peer);
        let story = Story { house: self.house, policy, listener };
        let mut dialect = Dialect::OpenAi;
        let told = story.guarded(pin!(story.tell(request, &mut receipt, &mut dialect))).await;
        Ok(match told {
            Ok(Told::ByPod(errand)) => match errand.sent.heartbeat {
                None => {
                    let brought = story.guarded(pin!(story.run(errand, &mut receipt))).await;
                    story.answer(brought, receipt, dialect)
                }
                // Boxed, because few need its room, and what all need would have to be as large.
                Some(every) => Box::pin(story.alive(errand, receipt, dialect, every)).await,
            },
            Ok(Told::ByUs(body)) => {
                receipt.status = Some(200);
                receipt.outcome = Outcome::Complete;
                answer::json(body, &receipt.request_id)
            }
            Err(rejection) => refuse(&rejection, receipt, dialect),
        })
    }
}

impl Story {
    /// `work`, unless a stop's grace is over before; a panic in it is a refusal as any other. Pinned where it is, because
    /// it is large and each move would copy it.
    async fn guarded<T>(&self, work: Pin<&mut impl Future<Output = Result<T, Rejection>>>) -> Result<T, Rejection> {
        tokio::select! {
            biased;
            done = AssertUnwindSafe(work).catch_unwind() => done.unwrap_or_else(|panic| Err(Rejection::Panicked(said(&*panic)))),
            () = self.house.cut.cancelled() => Err(Rejection::Stopping),
        }
    }

    /// Reads what is asked: answered by us, or what to carry to a pod.
    async fn tell(
        &self,
        request: Request<Incoming>,
        receipt: &mut Receipt,
        dialect: &mut Dialect,
    ) -> Result<Told, Rejection> {
        let (head, body) = request.into_parts();
        let config = &self.policy.config;
        front::check(&head, config.limits.header_fields)?;
        let asked = openai::classify(&head.method, head.uri.path(), &config.api.extra_paths)
            .map_err(|problem| self.refuse_path(problem, &head, receipt, dialect))?;
        *dialect = asked.endpoint.dialect();
        let endpoint = asked.endpoint;
        receipt.endpoint = endpoint.label();
        if matches!(asked.endpoint, Endpoint::Models | Endpoint::ModelById) {
            return self.list_models(asked).map(Told::ByUs);
        }
        let body = body::read(body, &config.limits, config.timeouts.body_read, &self.house.bodies).await?;
        receipt.read = Some(clock::now());
        receipt.body_bytes = body.len();
        if let (Endpoint::ResponseById | Endpoint::ResponseCancel, Some(id)) = (asked.endpoint, asked.id) {
            let id = id.to_owned();
            return self.revisit(head, body, &id, receipt);
        }
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let ask = Ask::parse(endpoint, content_type, &body)?;
        let session = head.headers.get(&config.sessions.header).and_then(|value| value.to_str().ok());
        let matter = Matter::new(&self.house, &self.listener, &ask, &body, session).inspect_err(|rejection| {
            if matches!(rejection, Rejection::UnknownModel(_)) {
                receipt.asked = Some(shortened(&ask.model));
            }
        })?;
        receipt.for_model(&matter.route.client_model);
        receipt.streamed = ask.stream;
        receipt.decision = self.house.decisions.as_ref().map(|_| Box::new(matter.decision()));
        let forward = matter.pool.config().forward_authorization;
        let carry = carry(head, self.body_for_pod(body, &ask, &matter)?, &receipt.request_id, forward);
        let mut timeouts = config.timeouts.with(&matter.route.timeouts);
        if ask.stream {
            // A token cannot come before the head.
            receipt.bound_by_token = timeouts.first_token < timeouts.first_byte;
            timeouts.first_byte = timeouts.first_byte.min(timeouts.first_token);
        }
        let heartbeat = config.api.heartbeat.filter(|_| ask.stream);
        let inject_usage = config.api.inject_usage && ask.lacks_usage();
        let sent = Box::new(Sent { matter: Some(matter), endpoint, inject_usage, timeouts, heartbeat });
        Ok(Told::ByPod(Errand { carry, sent, home: None }))
    }

    /// Carries it to a pod, and to another if it may.
    async fn run(&self, errand: Errand, receipt: &mut Receipt) -> Result<Box<Brought>, Rejection> {
        let Errand { carry, sent, home } = errand;
        let (total, received) = (sent.timeouts.total, receipt.received);
        let answered = async {
            match (&sent.matter, home) {
                (Some(matter), _) => self.attempts_with_patience(carry, &sent.timeouts, matter, receipt).await,
                // Rare, and twice as large as all others.
                (None, Some((pool, pod))) => Box::pin(self.only_attempt(carry, &sent.timeouts, (&pool, &pod))).await,
                (None, None) => Err(Rejection::NoPod(NoPod::PoolEmpty)),
            }
        };
        let (answer, pick) = match total {
            Some(limit) => {
                timeout_at((received + limit).into(), answered).await.map_err(|_| Rejection::TotalTimeout(limit))??
            }
            None => answered.await?,
        };
        Ok(Box::new(Brought { answer, pick, sent }))
    }

    /// Why a path is not served, noted where it may be noted.
    fn refuse_path(
        &self,
        problem: PathProblem,
        head: &request::Parts,
        receipt: &mut Receipt,
        dialect: &mut Dialect,
    ) -> Rejection {
        let path = head.uri.path();
        receipt.asked = Some(shortened(path));
        if let PathProblem::WrongMethod { endpoint, .. } = problem {
            *dialect = endpoint.dialect();
            receipt.endpoint = endpoint.label();
        }
        Rejection::of_path(problem, &head.method, path, &self.policy.config.api.extra_paths)
    }

    /// The body with what the pod must read otherwise: its own name for the model, and the wish for usage. The client's
    /// is let go.
    fn body_for_pod(&self, body: Bytes, ask: &Ask, matter: &Matter) -> Result<Bytes, Rejection> {
        let changes =
            Changes { model: Some(&matter.route.served_model), include_usage: self.policy.config.api.inject_usage };
        if ask.model.is_empty() || changes.change_nothing(ask) {
            Ok(body)
        } else {
            self.house.bodies.keep(openai::splice(&body, ask, &changes))
        }
    }

    fn answer(&self, brought: Result<Box<Brought>, Rejection>, receipt: Receipt, dialect: Dialect) -> Response<Answer> {
        match brought {
            Ok(brought) => {
                let (response, relay) = self.relay(*brought, receipt);
                response.map(|()| Answer::relay(relay))
            }
            Err(rejection) => refuse(&rejection, receipt, dialect),
        }
    }

    fn relay(&self, brought: Brought, mut receipt: Receipt) -> (Response<()>, Box<Relay>) {
        let Brought { answer, mut pick, sent } = brought;
        pick.course.sent(answer.sent);
        let status = answer.head.status;
        receipt.status = Some(status.as_u16());
        receipt.sent = Some(answer.sent);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = answer.head.headers;
        let (attempts, request_id) = (receipt.attempts, receipt.request_id.clone());
        let decided = self
            .policy
            .config
            .api
            .decision_headers
            .then(|| (Arc::clone(pick.verdict.pod.address()), decision::header(&pick.verdict)));
        let relay = Relay::new(self, (answer.body, status, response.headers()), pick, sent, receipt);
        headers::to_client(response.headers_mut(), &request_id, relay.rewrites());
        let headers = response.headers_mut();
        if let Some((pod, decision)) = decided {
            let text = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("?"));
            headers.insert(X_TIDEGATE_POD, text(&pod));
            headers.insert(X_TIDEGATE_DECISION, text(&decision));
        }
        tell_attempts(headers, attempts);
        (response, relay)
    }

    /// A request about a response that one pod made: to that pod or to nobody.
    fn revisit(&self, head: request::Parts, body: Bytes, id: &str, receipt: &Receipt) -> Result<Told, Rejection> {
        let unknown = || Rejection::UnknownResponse(id.to_owned());
        let pod = self.house.pod_of_response(id).ok_or_else(unknown)?;
        let pool = self.house.fleet.pool(&pod.pool).ok_or_else(unknown)?;
        let carry = carry(head, body, &receipt.request_id, pool.config().forward_authorization);
        let sent = Box::new(Sent {
            matter: None,
            endpoint: Endpoint::ResponseById,
            inject_usage: false,
            timeouts: self.policy.config.timeouts,
            heartbeat: None,
        });
        let home = Some((pool, pod));
        Ok(Told::ByPod(Errand { carry, sent, home }))
    }

    fn list_models(&self, asked: Asked<'_>) -> Result<Bytes, Rejection> {
        let Some(name) = asked.decoded_id() else {
            return Ok(self.house.models(&self.listener));
        };
        self.house.model(&self.listener, &name).ok_or_else(|| {
            let served = self.house.served_names(&self.listener);
            Rejection::UnknownModel(UnknownModel { asked: name.into_owned(), served })
        })
    }
}

fn tell_attempts(headers: &mut HeaderMap, attempts: u32) {
    if attempts > 1 {
        headers.insert(X_TIDEGATE_ATTEMPTS, HeaderValue::from(attempts));
    }
}

fn refuse(rejection: &Rejection, mut receipt: Receipt, dialect: Dialect) -> Response<Answer> {
    let mut response = answer::refusal(rejection, dialect, &receipt.request_id);
    tell_attempts(response.headers_mut(), receipt.attempts);
    receipt.status = Some(response.status().as_u16());
    receipt.refused(rejection);
    response
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("nothing").to_owned()
}

/// The client's request id if it can be one, else a new one. A copy: it lives as long as the request, and a slice of the
/// head would hold the 8 KiB that it was read into for as long.
fn request_id(headers: &HeaderMap) -> HeaderValue {
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

fn carry(head: request::Parts, body: Bytes, request_id: &HeaderValue, forward_authorization: bool) -> Carry {
    Carry {
        method: head.method,
        path: head.uri.path_and_query().map_or("/", |it| it.as_str()).into(),
        headers: Arc::new(headers::to_pod(head.headers, request_id, forward_authorization)),
        body,
    }
}
