//! `flopwatch topics`: verifies the topics, or makes the missing ones.

use std::path::PathBuf;

use crate::config::Config;
use crate::error::Fatal;
use crate::kafka::topology::{self, Report, TopicReport};

/// Verify that the topics have the right partitions, cleanup and retention; with --create, make
/// those that are missing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make what is missing, with the cluster's default replication.
    #[arg(long)]
    create: bool,
    /// Partitions of a usage topic that is to be made.
    #[arg(long, value_name = "N", requires = "create")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: Option<u32>,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Config::load(args.config.as_deref())?;
    let report = if args.create {
        topology::create(&config, args.partitions)?
    } else {
        topology::verify(&config)?
    };
    super::print(&table(&report))
}

/// A line for each topic.
fn table(report: &Report) -> String {
    let mut text = String::new();
    for TopicReport { name, partitions, cleanup, created } in &report.topics {
        let state = if *created { "created" } else { "as it should be" };
        text += &format!("{name:<32} {partitions:>4} partitions  {cleanup:<8} {state}\n");
    }
    text
}
