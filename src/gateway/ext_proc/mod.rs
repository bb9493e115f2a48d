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
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
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
use super::{CurrentPolicy, House, Peer, story::Story};
use crate::{config::ExtProc, tasks::Tasks};

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
        Self { house, policy, listener, following: Following::new(tasks), is_serving }
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
        let talk = Talk { story, rules, peer, following: self.following, since_last };
        let codec = ProstCodec::<ProcessingResponse, ProcessingRequest>::default();
        Ok(Grpc::new(codec).max_decoding_message_size(most).streaming(talk, request).await)
    }

    fn story(&self) -> Option<(Story, ExtProc)> {
        let policy = self.policy.load_full();
        let listener = policy.listeners.get(self.listener).map(Arc::clone)?;
        let how = policy.config.listeners.get(self.listener)?.ext_proc.clone()?;
        Some((Story { house: Arc::clone(&self.house), policy, listener }, how))
    }
}

/// What one conversation begins with.
struct Talk {
    story: Story,
    rules: Rules,
    peer: Peer,
    following: Following,
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
        let dialog = Dialog::new(about, inbound, self.following.clone());
        ready(Ok(tonic::Response::new(dialog.replies())))
    }
}
