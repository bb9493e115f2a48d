//! `grpc.health.v1`, as the reference picker answers it: whether it lives, whether it may be asked.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::sleep;
use tonic::{Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::wire::{HealthCheckRequest, HealthCheckResponse, ServingStatus};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Answered as long as the process does.
const LIVENESS: &str = "liveness";

/// The one name under which published manifests ask the reference picker for liveness and readiness both. It answers by
/// whether it knows its pool, with pods or without, and so do we: whoever is up knows it. By whether a pod can be had, a
/// picker would be restarted again and again while its first pods load their models.
const BOTH: &str = "inference-extension";

/// Answered by whether a pod can be had: all of it, as Kubernetes asks, as Envoy asks.
const READINESS: [&str; 3] = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"];

/// How often a watcher's answer is looked at again: as often as the most eager probe asks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether this gateway may be asked for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// No pod was ready yet.
    NotYet,
    /// It may.
    Now,
    /// A stop has begun.
    NoMore,
}

/// How to find out.
pub type IsServing = Arc<dyn Fn() -> Serving + Send + Sync>;

/// Whether this is a question for health.
pub(super) fn is_asked(path: &str) -> bool {
    path == CHECK || path == WATCH
}

/// Answers it, and nothing else.
pub async fn serve(request: Request<Incoming>, is_serving: IsServing) -> Response<Body> {
    if !is_asked(request.uri().path()) {
        return Status::unimplemented("only health is served here").into_http();
    }
    let codec = ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
    if request.uri().path() == CHECK {
        let check = service_fn(move |request: tonic::Request<HealthCheckRequest>| {
            let status = status(&request.get_ref().service, &is_serving);
            let told = status.map(answer).ok_or_else(|| Status::not_found("there is no such service"));
            std::future::ready(told.map(tonic::Response::new))
        });
        return Grpc::new(codec).unary(check, request).await;
    }
    let watch = service_fn(move |request: tonic::Request<HealthCheckRequest>| {
        let told = changes(request.into_inner().service, Arc::clone(&is_serving));
        std::future::ready(Ok::<_, Status>(tonic::Response::new(told)))
    });
    Grpc::new(codec).server_streaming(watch, request).await
}

fn status(service: &str, is_serving: &IsServing) -> Option<ServingStatus> {
    let serving = match service {
        LIVENESS => true,
        BOTH => is_serving() != Serving::NoMore,
        service if READINESS.contains(&service) => is_serving() == Serving::Now,
        _ => return None,
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// How it is, and each time it becomes different; up to a stop, which would wait for its watchers.
fn changes(service: String, is_serving: IsServing) -> BoxStream<'static, Result<HealthCheckResponse, Status>> {
    let told = stream::unfold(None, move |last: Option<ServingStatus>| {
        let (service, is_serving) = (service.clone(), Arc::clone(&is_serving));
        async move {
            loop {
                let now = status(&service, &is_serving).unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(now) {
                    return Some((Ok(answer(now)), Some(now)));
                }
                if is_serving() == Serving::NoMore {
                    return None;
                }
                sleep(LOOK_AGAIN).await;
            }
        }
    });
    told.boxed()
}
