//! `flopwatch notify`: takes alerts to Alertmanager, a webhook and a topic of OCSF findings.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use super::run::signals;
use crate::config::Config;
use crate::error::Fatal;
use crate::http;
use crate::http::health::Health;
use crate::metrics;
use crate::notify;

/// How soon a signal is acted upon.
const TICK: Duration = Duration::from_millis(100);

/// Take alerts from Kafka to the targets under [notify], until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default, and no target is on.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Arc::new(Config::load(args.config.as_deref())?);
    let signals = signals()?;
    let handle = metrics::install()?;
    let health = Arc::new(Health::new(notify::targets(&config).len()));
    let server = http::serve("notify.listen", config.notify.listen, handle, Arc::clone(&health))?;
    let result = serve(&config, &health, &signals);
    server.stop();
    result
}

fn serve(
    config: &Arc<Config>,
    health: &Arc<Health>,
    signals: &Receiver<&'static str>,
) -> Result<(), Fatal> {
    let service = notify::start(config, health)?;
    let targets: Vec<&str> =
        notify::targets(config).into_iter().map(metrics::Target::name).collect();
    tracing::info!(?targets, "notifying");
    loop {
        if let Some(fatal) = service.failure(TICK) {
            // the others finish what is under way
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
    }
    service.join()?;
    tracing::info!("drained");
    Ok(())
}
