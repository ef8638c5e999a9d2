//! Metrics and probes over HTTP.
//!
//! The server has its own thread and runtime, so that the data path never awaits and a slow reader
//! stalls nobody. It reads, and changes nothing: no request carries input that reaches the
//! detector. It speaks plain HTTP to whoever reaches it, and bounds connections by nothing but the
//! process's file limit: the address is loopback unless configured, and belongs behind a firewall
//! or a network policy where it is not.

pub mod health;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::oneshot;

use crate::error::Fatal;
use crate::metrics;
use health::Health;

/// How long open requests may take once the process stops; `Server::stop` says the same.
const DRAIN: Duration = Duration::from_secs(2);

/// Histogram samples wait in memory until somebody drains them.
const UPKEEP: Duration = Duration::from_secs(5);

const TEXT: &str = "text/plain; charset=utf-8";

/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

const PATHS: [(&str, &str); 3] = [
    ("/metrics", "series for Prometheus"),
    ("/healthz/live", "200 while the process runs"),
    ("/healthz/ready", "200 when the directory is read and every task restored, else 503 and why"),
];

/// A running server; dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Where it listens; the port is the real one when port 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers what is under way and ends, within two seconds.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the http thread panicked");
        }
    }
}

/// What the handlers read.
#[derive(Clone)]
struct Shared {
    handle: PrometheusHandle,
    health: Arc<Health>,
}

/// Listens on `listen`, which is the setting `key`, and answers in a thread of its own.
pub fn serve(
    key: &str,
    listen: SocketAddr,
    handle: PrometheusHandle,
    health: Arc<Health>,
) -> Result<Server, Fatal> {
    let refused = |error: std::io::Error| {
        Fatal::Config(format!(
            "{key} = \"{listen}\": cannot listen there ({error}); set another address or \
             port, or end the process that holds it"
        ))
    };
    let listener = std::net::TcpListener::bind(listen).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::Internal(format!("starting the http runtime: {error}")))?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("http".into())
        .spawn(move || runtime.block_on(run(listener, Shared { handle, health }, stopped)))
        .map_err(|error| Fatal::Internal(format!("starting the http thread: {error}")))?;
    tracing::info!(%address, "http listens");
    Ok(Server { address, stop: Some(stop), thread })
}

async fn run(listener: std::net::TcpListener, shared: Shared, stopped: oneshot::Receiver<()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "http cannot serve: metrics and probes are unanswered");
            return;
        }
    };
    let handle = shared.handle.clone();
    let (drain, drained) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(shared)).with_graceful_shutdown(async move {
        // an error means that the sender was dropped, which is the same wish
        stopped.await.unwrap_or_default();
        drop(drain);
    });
    let overdue = async {
        drained.await.unwrap_or_default();
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = server => {
            if let Err(error) = result {
                tracing::error!(%error, "http has ended: metrics and probes are unanswered");
            }
        }
        () = overdue => tracing::warn!("http requests were still open when the process ended"),
        () = keep_up(&handle) => {}
    }
}

/// Drains histograms even when nobody scrapes, so that their samples do not pile up.
async fn keep_up(handle: &PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(render))
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .with_state(shared)
}

async fn index() -> Response {
    let mut text = format!("flopwatch {}\n", env!("CARGO_PKG_VERSION"));
    for (path, meaning) in PATHS {
        writeln!(text, "{path}  {meaning}").expect("writing to a string cannot fail");
    }
    answer("/", StatusCode::OK, TEXT, text)
}

async fn render(State(shared): State<Shared>) -> Response {
    metrics::sample(shared.health.unready().is_none());
    answer("/metrics", StatusCode::OK, METRICS, shared.handle.render())
}

async fn live() -> Response {
    answer("/healthz/live", StatusCode::OK, TEXT, "live\n".into())
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.health.unready() {
        None => answer("/healthz/ready", StatusCode::OK, TEXT, "ready\n".into()),
        Some(reason) => {
            let text = format!("not ready: {reason}\n");
            answer("/healthz/ready", StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        }
    }
}

async fn unknown() -> Response {
    answer("other", StatusCode::NOT_FOUND, TEXT, "not found; / lists what there is\n".into())
}

async fn not_allowed() -> Response {
    let text = "only GET is answered here\n".into();
    answer("other", StatusCode::METHOD_NOT_ALLOWED, TEXT, text)
}

fn answer(
    path: &'static str,
    code: StatusCode,
    content_type: &'static str,
    text: String,
) -> Response {
    metrics::http_answered(path, code.as_u16());
    (code, [(CONTENT_TYPE, content_type)], text).into_response()
}
