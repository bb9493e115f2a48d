//! What is decided about one request of Envoy's: an answer of our own, or a pod and how its request differs from the
//! client's. The decision is the desk's own; here it is put into Envoy's terms.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    dialog::Rules,
    head::{BALANCER, DESTINATION, Head, names},
    session::{Decided, Whole},
    wire::{HeaderMutation, HeaderValue as Field, HeaderValueOption, HttpStatus, ImmediateResponse, Kind, Struct},
};
use crate::{
    clock,
    gateway::{
        decide::{Matter, Pick},
        entering::told,
        proxy::{
            front,
            headers::{VLLM_PRIORITY, steers},
        },
        reading::Asking,
        receipt::{Receipt, Step},
        rejection::Rejection,
        story::{Story, X_REQUEST_ID, request_id, shed},
        waiting,
    },
    openai::{Asked, Dialect, Endpoint},
    scheduler::Tried,
};

/// Says why a request got no pod, in the words of the reference.
const DROPPED: &str = "x-llm-d-request-dropped-reason";

/// What comes of a request.
pub(super) enum Told {
    /// The client gets this from us.
    ByUs(Bytes),
    /// A pod gets it.
    ByPod(Box<Sent>),
}

/// A request on its way.
pub(super) struct Sent {
    pub(super) decided: Decided,
    pub(super) pick: Pick,
    /// Named behind the chosen pod.
    pub(super) fallbacks: Box<[Arc<str>]>,
    pub(super) asking: Asking,
}

/// Decides.
pub(super) async fn choose(
    story: &Story,
    rules: Rules,
    whole: Whole,
    receipt: &mut Receipt,
    dialect: &mut Dialect,
) -> Result<Told, Rejection> {
    let Whole { head, body, noted } = whole;
    let head = Head::read(head, noted);
    let caller = told(&story.house, &story.listener, &head.headers);
    receipt.caller = Some(Arc::clone(&caller)).filter(|it| !Arc::ptr_eq(it, &story.listener.anonymous));
    let story = &Story { caller, ..story.clone() };
    let id = request_id(&head.headers);
    receipt.request_id = id;
    receipt.read = Some(clock::now());
    receipt.body_bytes = body.len();
    front::check_encoding(&head.headers)?;
    let asked = match story.classify(&head.method, &head.path, receipt, dialect) {
        Err(Rejection::NoSuchPath(_) | Rejection::LacksV1(_)) if rules.other_paths => {
            receipt.endpoint = Endpoint::Extra.label();
            receipt.asked = None;
            Asked { endpoint: Endpoint::Extra, id: None }
        }
        asked => asked?,
    };
    let body = story.house.bodies.keep(body)?;
    match (asked.endpoint, asked.id) {
        (Endpoint::Models | Endpoint::ModelById, _) => story.list_models(asked).map(Told::ByUs),
        (Endpoint::ResponseById | Endpoint::ResponseCancel, Some(id)) => {
            let told = revisit(story, &head, body, id, receipt)?;
            story.reserve_visit(receipt).await?;
            Ok(told)
        }
        (endpoint, _) => send(story, rules, (&head, endpoint), body, receipt).await,
    }
}

/// A request about a response that one pod made: to that pod or to nobody.
fn revisit(story: &Story, head: &Head, body: Bytes, id: &str, receipt: &mut Receipt) -> Result<Told, Rejection> {
    let unknown = || Rejection::UnknownResponse(id.to_owned());
    let pod = story.house.pod_of_response(&story.caller.tenant, id).ok_or_else(unknown)?;
    let pool = story.house.fleet.pool(&pod.pool).ok_or_else(unknown)?;
    let pick = Pick::of_pod(&story.house, &pool, &pod);
    receipt.chose(pick.chosen(&"".into()), pick.took);
    let decided = decided(head, &[Arc::clone(pod.address())], receipt, (body, false));
    let asking = Asking { matter: None, endpoint: Endpoint::ResponseById, inject_usage: false };
    Ok(Told::ByPod(Box::new(Sent { decided, pick, fallbacks: Box::default(), asking })))
}

async fn send(
    story: &Story,
    rules: Rules,
    (head, endpoint): (&Head, Endpoint),
    body: Bytes,
    receipt: &mut Receipt,
) -> Result<Told, Rejection> {
    let (ask, mut matter) = match story.matter(endpoint, &head.headers, &body, receipt) {
        // On such a path a body is whatever the pod makes of it.
        Err(Rejection::Malformed(_)) if endpoint == Endpoint::Extra => {
            story.matter(endpoint, &head.headers, b"", receipt)?
        }
        read => read?,
    };
    let subset = head.subset();
    let among_few = subset.is_some();
    if let Some(subset) = subset {
        let number = xxh3_64(subset.join(",").as_bytes());
        matter.only_among(number, move |pod| subset.iter().any(|allowed| names(allowed, pod.address())));
    }
    story.reserve_quotas(&matter, (&ask, &body), receipt).await?;
    shed(&matter, &story.policy.config.waiting, receipt)?;
    let wants_usage = story.wants_usage(receipt);
    let before = body.as_ptr();
    let body = story.body_for_pod(body, &ask, &matter, wants_usage)?;
    let changed = body.as_ptr() != before;
    let pick = reserve(story, &matter, receipt, (body.len(), among_few, rules.wait)).await?;
    receipt.chose(pick.chosen(&matter.route.served_model), pick.took);
    let mut endpoints: SmallVec<[Arc<str>; 3]> = SmallVec::from_iter([Arc::clone(pick.verdict.pod.address())]);
    let mut tried = Tried::none();
    tried.add(&pick.verdict.pod);
    for _ in 0..rules.fallbacks {
        let Some(next) = matter.next_best(&story.listener, &tried) else { break };
        tried.add(&next);
        endpoints.push(Arc::clone(next.address()));
    }
    let mut decided = decided(head, &endpoints, receipt, (body, changed));
    if let Some(priority) = matter.vllm_priority() {
        decided.mutation.remove_headers.retain(|name| *name != VLLM_PRIORITY);
        set(&mut decided.mutation, VLLM_PRIORITY, priority.to_string());
    }
    let inject_usage = wants_usage && ask.lacks_usage();
    let asking = Asking { matter: Some(matter), endpoint, inject_usage };
    let fallbacks = endpoints.into_iter().skip(1).collect();
    Ok(Told::ByPod(Box::new(Sent { decided, pick, fallbacks, asking })))
}

/// A pod and a place there; and where none is ready, all are full or others already wait, when it is its turn. Who may have
/// only few pods does not wait for them to be usable: the gateway has said that there is nothing else.
async fn reserve(
    story: &Story,
    matter: &Matter,
    receipt: &mut Receipt,
    (bytes, among_few, timeout): (usize, bool, Duration),
) -> Result<Pick, Rejection> {
    let (house, limits) = (&story.house, &story.policy.config.waiting);
    let mut coming = waiting::Coming { bytes, tried: None, timeout, limits };
    let may_not_wait = || among_few || limits.timeout.is_zero() || matter.pool.is_closed();
    let news = matter.pool.news();
    if !matter.must_wait(house, limits, clock::now()) {
        match matter.reserve(house, &story.listener, &Tried::none()) {
            Ok(pick) => return Ok(pick),
            Err(no) if may_not_wait() => return Err(Rejection::NoPod(no)),
            Err(_) => coming.tried = Some(news),
        }
    }
    let mut place = house.waiting.enter(&matter.pool, matter.asked(coming.limits), coming)?;
    receipt.in_line_since = Some(place.began());
    receipt.waits_for = Some(place.waits_for());
    loop {
        receipt.step = Step::Waiting;
        place.called().await?;
        receipt.waited = Some(place.waited());
        match matter.reserve(house, &story.listener, &Tried::none()) {
            Ok(pick) => {
                place.served();
                return Ok(pick);
            }
            Err(no) if may_not_wait() => {
                place.turned_away();
                return Err(Rejection::NoPod(no));
            }
            Err(_) => place.stays(),
        }
    }
}

/// The choice in Envoy's terms: only what differs from the client's head is named.
fn decided(head: &Head, endpoints: &[Arc<str>], receipt: &Receipt, (body, changed): (Bytes, bool)) -> Decided {
    let destination = endpoints.join(",");
    let mut mutation = HeaderMutation::default();
    set(&mut mutation, DESTINATION, destination.clone());
    if head.headers.get(X_REQUEST_ID) != Some(&receipt.request_id) {
        set(&mut mutation, "x-request-id", Bytes::copy_from_slice(receipt.request_id.as_bytes()));
    }
    let packed = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if head.headers.get(header::ACCEPT_ENCODING).is_some_and(packed) {
        // We read what pods answer, so they must not compress it.
        set(&mut mutation, "accept-encoding", "identity");
    }
    if changed && head.headers.contains_key(header::CONTENT_LENGTH) {
        set(&mut mutation, "content-length", body.len().to_string());
    }
    let ours = |name: &&HeaderName| {
        let word = name.as_str();
        word != DESTINATION && steers(word)
    };
    mutation.remove_headers = head.headers.keys().filter(ours).map(ToString::to_string).collect();
    let metadata = Struct::of(BALANCER, Kind::Struct(Struct::of_text(DESTINATION, destination)));
    Decided { mutation, metadata, body, changed }
}

fn set(mutation: &mut HeaderMutation, name: &'static str, value: impl Into<Bytes>) {
    let header = Some(Field::new(name, value));
    mutation.set_headers.push(HeaderValueOption { header, append_action: HeaderValueOption::OVERWRITE });
}

/// A refusal in Envoy's terms.
pub(super) fn refusal(rejection: &Rejection, dialect: Dialect, receipt: &Receipt) -> ImmediateResponse {
    let response = rejection.to_response(dialect);
    let mut headers = HeaderMutation::default();
    for (name, value) in response.headers() {
        // The connection is Envoy's.
        if *name != header::CONNECTION {
            let field = Field {
                key: Bytes::copy_from_slice(name.as_str().as_bytes()),
                value: Bytes::new(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
            };
            headers
                .set_headers
                .push(HeaderValueOption { header: Some(field), append_action: HeaderValueOption::OVERWRITE });
        }
    }
    set(&mut headers, "x-request-id", Bytes::copy_from_slice(receipt.request_id.as_bytes()));
    if let Some(reason) = dropped(rejection) {
        set(&mut headers, DROPPED, reason);
    }
    immediate(response.status().as_u16(), headers, response.into_body(), rejection.reason())
}

/// An answer of ours in Envoy's terms.
pub(super) fn answer(body: Bytes, receipt: &Receipt) -> ImmediateResponse {
    let mut headers = HeaderMutation::default();
    set(&mut headers, "content-type", "application/json");
    set(&mut headers, "x-request-id", Bytes::copy_from_slice(receipt.request_id.as_bytes()));
    immediate(200, headers, body, "answered")
}

fn immediate(status: u16, headers: HeaderMutation, body: Bytes, why: &str) -> ImmediateResponse {
    let status = Some(HttpStatus { code: i32::from(status) });
    ImmediateResponse { status, headers: Some(headers), body, details: format!("tidegate_{why}") }
}

/// The reference's word for it.
fn dropped(rejection: &Rejection) -> Option<&'static str> {
    match rejection {
        Rejection::NoPod(_) | Rejection::NoPodInTime { .. } => Some("rejected-no-endpoints"),
        Rejection::Saturated { .. } | Rejection::LineFull { .. } | Rejection::BuffersFull => Some("rejected-saturated"),
        Rejection::Busy { why, .. } => Some(why.dropped()),
        Rejection::Stopping => Some("rejected-shutting-down"),
        _ => None,
    }
}
