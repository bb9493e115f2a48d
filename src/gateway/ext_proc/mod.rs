//! Envoy's door: its `ext_proc` filter asks which pod shall have a request, and tells of the answer as it comes back.
//!
//! The endpoint picker of the Gateway API Inference Extension. The desk decides as it does for clients of the base URL;
//! only how bytes come, and that Envoy carries them, differs. `session` says what is replied when, `wire` how it is
//! written, `choosing` what is decided, `dialog` brings them together for one request.

mod answering;
mod choosing;
mod dialog;
mod following;
mod head;
mod health;
mod inbound;
mod patience;
mod session;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{
    collections::HashSet,
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream::BoxStream;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::{Status, Streaming, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::Service;

pub use self::health::{IsServing, Serving, serve as serve_health};
use self::{
    dialog::{Dialog, Rules},
    following::Following,
    inbound::{Inbound, SinceLast},
    wire::{ProcessingRequest, ProcessingResponse},
};
use super::{CurrentPolicy, House, Peer, Rejection, story::Story};
use crate::{
    clock,
    config::ExtProc,
    fleet::{Pod, PodId},
    tasks::Tasks,
    telemetry::Seldom,
};

/// Where the filter asks.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// What a message may be longer than the largest body: a head of 64 KiB and what is noted beside it, four times over.
const BESIDE_THE_BODY: u64 = 256 << 10;

/// One listener's desk for Envoy.
#[derive(Clone)]
pub struct Picker {
    house: Arc<House>,
    policy: CurrentPolicy,
    listener: usize,
    following: Following,
    mistakes: Arc<Mistakes>,
    is_serving: IsServing,
}

impl std::fmt::Debug for Picker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picker").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Picker {
    /// The desk of the configuration's `listener`; what outlives its conversations runs on `tasks`.
    pub fn new(house: Arc<House>, policy: CurrentPolicy, listener: usize, tasks: Tasks, is_serving: IsServing) -> Self {
        Self { house, policy, listener, following: Following::new(tasks), mistakes: Arc::default(), is_serving }
    }

    /// Serves one gRPC call.
    pub async fn serve(self, peer: Peer, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        if health::is_asked(path) {
            return Ok(health::serve(request, self.is_serving).await);
        }
        if path != PROCESS {
            return Ok(Status::unimplemented("only ext_proc and health are served here").into_http());
        }
        let Some((story, how)) = self.story() else {
            return Ok(Status::unavailable("this listener is going").into_http());
        };
        let rules = Rules::new(&story, &how);
        let most = usize::try_from(rules.terms.body.saturating_add(BESIDE_THE_BODY)).unwrap_or(usize::MAX);
        let since_last = SinceLast::default();
        let share = story.house.bodies.share();
        let request = request.map(|bytes| Inbound::new(bytes, Arc::clone(&since_last), share));
        let beside = (self.following, self.mistakes);
        let talk = Talk { story, rules, peer, beside, since_last };
        let codec = ProstCodec::<ProcessingResponse, ProcessingRequest>::default();
        Ok(Grpc::new(codec).max_decoding_message_size(most).streaming(talk, request).await)
    }

    fn story(&self) -> Option<(Story, ExtProc)> {
        let policy = self.policy.load_full();
        let listener = policy.listeners.get(self.listener).map(Arc::clone)?;
        let how = policy.config.listeners.get(self.listener)?.ext_proc.clone()?;
        let caller = Arc::clone(&listener.anonymous);
        Some((Story { house: Arc::clone(&self.house), policy, listener, caller }, how))
    }
}

/// Of so many pods it is told that Envoy does not follow us to them: by then it is plain what they have in common.
const PODS_TOLD: usize = 32;

/// What is wrong with how Envoy is set, told to its operator, and not with every request.
#[derive(Debug, Default)]
struct Mistakes {
    /// The pods of which it was told.
    elsewhere: Mutex<HashSet<PodId>>,
    unreadable: Seldom,
}

impl Mistakes {
    /// Envoy went to `served`, which we had not named, and not to `chosen`.
    fn goes_elsewhere(&self, chosen: &Pod, served: &str) {
        let is_news = {
            let mut told = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
            told.len() < PODS_TOLD && told.insert(chosen.id.clone())
        };
        if is_news {
            let pod = chosen.address();
            tracing::warn!(
                pool = &*chosen.pool,
                went_to = served,
                "Envoy does not follow the choice of {pod}: is it among the endpoints of Envoy's cluster, and does it answer?"
            );
        }
    }

    /// A request was refused: it may be for how Envoy's filter is set, and then all are.
    fn is_set_so(&self, rejection: &Rejection) {
        if matches!(rejection, Rejection::Unreadable(_)) && self.unreadable.is_due(clock::now()) {
            tracing::warn!("requests with a body are refused: {rejection}");
        }
    }
}

/// What one conversation begins with.
struct Talk {
    story: Story,
    rules: Rules,
    peer: Peer,
    beside: (Following, Arc<Mistakes>),
    since_last: SinceLast,
}

impl Service<tonic::Request<Streaming<ProcessingRequest>>> for Talk {
    type Response = tonic::Response<BoxStream<'static, Result<ProcessingResponse, Status>>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let about = (self.story.clone(), self.rules, self.peer.clone());
        let inbound = (request.into_inner(), Arc::clone(&self.since_last));
        let dialog = Dialog::new(about, inbound, self.beside.clone());
        ready(Ok(tonic::Response::new(dialog.replies())))
    }
}
