//! The base-URL door: requests come as plain HTTP and their answers are relayed.

mod answer;
mod attempts;
mod decision;
mod ending;
pub(super) mod front;
pub(super) mod headers;
mod heartbeat;
mod patience;
mod relay;
mod timer;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

pub use answer::{Answer, refuse_clear_text, refuse_unparsed};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header, request};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use self::relay::Relay;
use super::{
    CurrentPolicy, House, Peer, body,
    decide::Pick,
    entering::{Known, cors, identify, unmasked, whose},
    reading::{AnswerHead, Asking},
    receipt::{Outcome, Receipt},
    rejection::Rejection,
    story::{Story, request_id, shed},
    telling::limits::tell_standing,
};
use crate::{
    admission::Stranger,
    clock,
    config::{Credentials, Pool, Timeouts},
    fleet::{Pod, PoolState},
    openai::{Dialect, Endpoint},
    scheduler::NoPod,
    upstream::{self, Carry},
};

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
    asking: Asking,
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
        let peer = whose(peer, request.headers(), &listener.network);
        let admitted = listener.network.admits(peer.address().ip());
        receipt.client = Some(peer.clone());
        let fields = policy.config.limits.header_fields;
        if !admitted {
            let why = strictly(request, fields).err().unwrap_or(Rejection::Denied);
            return Ok(refuse(&why, receipt, Dialect::OpenAi));
        }
        let page =
            listener.cors.as_ref().map(|cors| (Arc::clone(cors), request.headers().get(header::ORIGIN).cloned()));
        if let Some((cors, _)) = page.as_ref().filter(|_| cors::is_preflight(request.method(), request.headers())) {
            return Ok(match strictly(request, fields) {
                Ok(headers) => answer::preflight(cors::preflight(cors, &headers), receipt),
                Err(rejection) => refuse(&rejection, receipt, Dialect::OpenAi),
            });
        }
        let known = identify(&self.house, (&policy, &listener), request.headers(), &peer).await;
        let (caller, stranger) = match known {
            Ok(caller) => (caller, None),
            Err(stranger) => (Arc::clone(&listener.anonymous), Some(stranger)),
        };
        match stranger.map(|stranger| unmasked(&self.house, &policy, (request.headers(), &peer), stranger)) {
            // Where nobody is asked, that nobody has said who it is tells nothing.
            None if listener.credentials == Credentials::Ignored && Arc::ptr_eq(&caller, &listener.anonymous) => {}
            None => receipt.caller = Some(Arc::clone(&caller)),
            Some(Some(Known::Caller(known))) => receipt.caller = Some(known),
            Some(Some(Known::Names(names))) => receipt.certificate = Some(names.into()),
            Some(None) => {}
        }
        let story = Story { house: self.house, policy, listener, caller };
        let mut dialect = Dialect::OpenAi;
        let told = story.guarded(pin!(story.tell(request, stranger, &mut receipt, &mut dialect))).await;
        let mut answer = match told {
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
        };
        if let Some((cors, origin)) = page {
            cors::mark(&cors, origin.as_ref(), answer.headers_mut());
        }
        Ok(answer)
    }
}

impl Story {
    /// Reads what is asked: answered by us, or what to carry to a pod.
    async fn tell(
        &self,
        request: Request<Incoming>,
        stranger: Option<Stranger>,
        receipt: &mut Receipt,
        dialect: &mut Dialect,
    ) -> Result<Told, Rejection> {
        let (head, body) = request.into_parts();
        let config = &self.policy.config;
        front::check(&head, config.limits.header_fields)?;
        let asked = self.classify(&head.method, head.uri.path(), receipt, dialect)?;
        let endpoint = asked.endpoint;
        if let Some(stranger) = stranger {
            return Err(Rejection::Stranger(stranger));
        }
        if matches!(asked.endpoint, Endpoint::Models | Endpoint::ModelById) {
            return self.list_models(asked).map(Told::ByUs);
        }
        self.look_at_quotas()?;
        let known = Some(&self.caller.tenant).filter(|_| self.listener.credentials != Credentials::Ignored).cloned();
        let body = body::read(body, &config.limits, config.timeouts.body_read, (&self.house.bodies, known)).await?;
        receipt.read = Some(clock::now());
        receipt.body_bytes = body.len();
        if let (Endpoint::ResponseById | Endpoint::ResponseCancel, Some(id)) = (asked.endpoint, asked.id) {
            let id = id.to_owned();
            let told = self.revisit(head, body, &id, receipt)?;
            self.reserve_visit(receipt).await?;
            return Ok(told);
        }
        let (ask, matter) = self.matter(endpoint, &head.headers, &body, receipt)?;
        self.reserve_quotas(&matter, (&ask, &body), receipt).await?;
        shed(&matter, &config.waiting, receipt)?;
        let wants_usage = self.wants_usage(receipt);
        let forward = self.may_forward(&matter.pool.config());
        let body = self.body_for_pod(body, &ask, &matter, wants_usage)?;
        let mut carry = carry(head, body, &receipt.request_id, forward);
        if let (Some(priority), Some(headers)) = (matter.vllm_priority(), Arc::get_mut(&mut carry.headers)) {
            headers.insert(headers::VLLM_PRIORITY, HeaderValue::from(priority));
        }
        let mut timeouts = config.timeouts.with(&matter.route.timeouts);
        if ask.stream {
            // A token cannot come before the head.
            receipt.bound_by_token = timeouts.first_token < timeouts.first_byte;
            timeouts.first_byte = timeouts.first_byte.min(timeouts.first_token);
        }
        let heartbeat = config.api.heartbeat.filter(|_| ask.stream);
        let inject_usage = wants_usage && ask.lacks_usage();
        let asking = Asking { matter: Some(matter), endpoint, inject_usage };
        let sent = Box::new(Sent { asking, timeouts, heartbeat });
        Ok(Told::ByPod(Errand { carry, sent, home: None }))
    }

    /// Carries it to a pod, and to another if it may.
    async fn run(&self, errand: Errand, receipt: &mut Receipt) -> Result<Box<Brought>, Rejection> {
        let Errand { carry, sent, home } = errand;
        let (total, received) = (sent.timeouts.total, receipt.received);
        let answered = async {
            match (&sent.asking.matter, home) {
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
        let standing = receipt.spending.as_ref().map(|it| (it.standing, sent.asking.endpoint.dialect()));
        let decided = self
            .policy
            .config
            .api
            .decision_headers
            .then(|| (Arc::clone(pick.verdict.pod.address()), decision::header(&pick.verdict)));
        let head = AnswerHead { status, headers: response.headers() };
        let relay = Relay::new(self, (answer.body, &head), pick, sent, receipt);
        headers::to_client(response.headers_mut(), &request_id, relay.reading.rewrites());
        let headers = response.headers_mut();
        if let Some((pod, decision)) = decided {
            let text = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("?"));
            headers.insert(X_TIDEGATE_POD, text(&pod));
            headers.insert(X_TIDEGATE_DECISION, text(&decision));
        }
        if let Some((standing, dialect)) = standing {
            tell_standing(headers, &standing, dialect);
        }
        tell_attempts(headers, attempts);
        (response, relay)
    }

    /// Whether a client's own `Authorization` goes on to the pods of `pool`: not where it is one that we know them by.
    fn may_forward(&self, pool: &Pool) -> bool {
        let is_ours = self.listener.credentials != Credentials::Ignored && self.policy.config.identity.reads_headers();
        pool.forward_authorization && !is_ours
    }

    /// A request about a response that one pod made: to that pod or to nobody.
    fn revisit(&self, head: request::Parts, body: Bytes, id: &str, receipt: &Receipt) -> Result<Told, Rejection> {
        let unknown = || Rejection::UnknownResponse(id.to_owned());
        let pod = self.house.pod_of_response(&self.caller.tenant, id).ok_or_else(unknown)?;
        let pool = self.house.fleet.pool(&pod.pool).ok_or_else(unknown)?;
        let carry = carry(head, body, &receipt.request_id, self.may_forward(&pool.config()));
        let asking = Asking { matter: None, endpoint: Endpoint::ResponseById, inject_usage: false };
        let sent = Box::new(Sent { asking, timeouts: self.policy.config.timeouts, heartbeat: None });
        let home = Some((pool, pod));
        Ok(Told::ByPod(Errand { carry, sent, home }))
    }
}

/// The headers of a request that is answered before anybody asks whose it is. It is read as strictly as any: others follow on
/// its connection, and where they begin must be told alike by all who read it.
fn strictly(request: Request<Incoming>, fields: usize) -> Result<HeaderMap, Rejection> {
    let (head, _) = request.into_parts();
    front::check(&head, fields)?;
    Ok(head.headers)
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

fn carry(head: request::Parts, body: Bytes, request_id: &HeaderValue, forward_authorization: bool) -> Carry {
    Carry {
        method: head.method,
        path: head.uri.path_and_query().map_or("/", |it| it.as_str()).into(),
        headers: Arc::new(headers::to_pod(head.headers, request_id, forward_authorization)),
        body,
    }
}
