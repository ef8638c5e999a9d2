//! `flopwatch check`: is everything right, and what is in effect?

use std::path::PathBuf;

use crate::config::Config;
use crate::error::Fatal;
use crate::kafka::topology;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one, defaults and environment alone
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Validates, then prints the effective configuration. A broker that cannot be reached is a note
/// on standard error: the configuration may be checked far from it.
pub fn execute(args: Args) -> Result<(), Fatal> {
    let config = Config::load(args.config.as_deref())?;
    super::print(&config.effective())?;
    match topology::reachable(&config) {
        Ok(()) => topology::verify(&config).map(drop),
        Err(fatal) => {
            eprintln!("note: topics were not checked: {fatal}");
            Ok(())
        }
    }
}
