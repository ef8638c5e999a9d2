//! `flopwatch run`: the service.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config, ConfigSource};
use crate::error::Fatal;
use crate::http;
use crate::http::health::Health;
use crate::kafka::{Options, Service, topology};
use crate::metrics;

/// Between two looks at the policy files.
const LOOK: Duration = Duration::from_secs(2);

/// How soon a signal is acted upon.
const TICK: Duration = Duration::from_millis(100);

/// Read usage from Kafka and publish alerts, until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on when retention has removed records that were never read, and count them.
    #[arg(long)]
    accept_gap: bool,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Arc::new(Config::load(args.config.as_deref())?);
    let signals = signals()?;
    // before Kafka, so that a wrong port shows at once and probes see the start
    let handle = metrics::install()?;
    let health = Arc::new(Health::new(config.kafka.workers));
    let server = http::serve("http.listen", config.http_listen, handle, Arc::clone(&health))?;
    let result = serve(&config, args, &health, &signals);
    server.stop();
    result
}

fn serve(
    config: &Arc<Config>,
    args: &Args,
    health: &Arc<Health>,
    signals: &Receiver<&'static str>,
) -> Result<(), Fatal> {
    let report = topology::prepare(config)?;
    let layout = report.layout;
    tracing::info!(
        instance = config.kafka.instance,
        workers = config.kafka.workers,
        usage_partitions = layout.usage,
        tasks = layout.tasks,
        "starting"
    );
    let options = Options { accept_gap: args.accept_gap };
    let service = Service::start(config, layout, options, health)?;
    let mut reload = Reload::new(&config.source);
    loop {
        if let Some(fatal) = service.failure(TICK) {
            // the others drain and commit what they have
            service.join().unwrap_or_default();
            return Err(fatal);
        }
        match signals.try_recv() {
            Ok(name) => {
                tracing::info!(signal = name, "draining");
                break;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(Fatal::Internal("the signal thread ended".into()));
            }
        }
        reload.look(&service);
    }
    service.join()?;
    tracing::info!("drained");
    Ok(())
}

/// SIGTERM and SIGINT as messages. The second one ends the process as if we had not listened.
pub(crate) fn signals() -> Result<Receiver<&'static str>, Fatal> {
    let failed = |error: std::io::Error| Fatal::Internal(format!("listening to signals: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    drop(guard);
    let (sender, receiver) = channel();
    let listen = move || {
        runtime.block_on(async {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if sender.send(name).is_err() {
                    return;
                }
            }
        });
    };
    thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
    Ok(receiver)
}

/// Watches the policy files.
struct Reload<'a> {
    source: &'a ConfigSource,
    fingerprint: u64,
    looked: Instant,
}

impl<'a> Reload<'a> {
    fn new(source: &'a ConfigSource) -> Self {
        Self { source, fingerprint: source.fingerprint(), looked: Instant::now() }
    }

    /// Hands changed policies to the tasks; wrong ones are refused whole and the old ones stay.
    fn look(&mut self, service: &Service) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let fingerprint = self.source.fingerprint();
        if fingerprint == self.fingerprint {
            return;
        }
        self.fingerprint = fingerprint;
        match config::load_policies(self.source) {
            Ok(policies) => {
                let count = policies.list.len();
                service.set_policies(&Arc::new(policies));
                metrics::policies_reloaded(true);
                tracing::info!(policies = count, "policies reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "changed policies refused: the old ones stay in force");
                metrics::policies_reloaded(false);
            }
        }
    }
}
