//! The HTTP server: one page, for whoever asks.

use std::{collections::VecDeque, convert::Infallible, fmt, future, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{prometheus_text, text},
    registry::Registry,
};
use tokio::{net::TcpListener, task, time::sleep};

/// One more, and the oldest is closed: whoever holds connections open keeps nobody else from asking.
const MAX_CONNECTIONS: usize = 16;
/// For a request to come, and for the next one on the same connection: longer than most scrape intervals.
const PATIENCE: Duration = Duration::from_secs(120);
/// A request's headers are not longer.
const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// Where a connection cannot be accepted (no descriptors), before the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text";
const HOME: &str = "<!doctype html><title>rsttrace</title><p>rsttrace: <a href=\"/metrics\">metrics</a>\n";

/// Answers for ever.
pub async fn serve(listener: TcpListener, registry: Registry) {
    let registry = Arc::new(registry);
    let mut connections: VecDeque<task::AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let registry = Arc::clone(&registry);
        let service = service_fn(move |request| future::ready(Ok::<_, Infallible>(answer(&request, &registry))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(MAX_REQUEST)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let task = task::spawn_local(async move {
            // Whatever the other end did wrong is its own affair.
            let _ = connection.await;
        });
        connections.push_back(task.abort_handle());
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let is_known = matches!(request.uri().path(), "/" | "/metrics");
    match (request.uri().path(), request.method()) {
        _ if !is_known => page(StatusCode::NOT_FOUND, "text/plain", "not found: there is only /metrics\n"),
        ("/metrics", &(Method::GET | Method::HEAD)) => metrics(request.headers(), registry),
        (_, &(Method::GET | Method::HEAD)) => page(StatusCode::OK, "text/html", HOME),
        _ => {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            refusal
        }
    }
}

/// OpenMetrics, unless Prometheus' older text is all that is asked for.
fn metrics(asked: &HeaderMap, registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = String::new();
    let accepts = |what: &str| asked.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(what)));
    let (written, content_type): (fmt::Result, _) = if accepts("text/plain") && !accepts(OPEN_METRICS) {
        (prometheus_text::encode(&mut body, registry), "text/plain; version=0.0.4")
    } else {
        (text::encode(&mut body, registry), "application/openmetrics-text; version=1.0.0")
    };
    match written {
        Ok(()) => page(StatusCode::OK, content_type, body),
        Err(_) => page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the metrics could not be written\n"),
    }
}

fn page(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::try_from(format!("{content_type}; charset=utf-8")) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}
