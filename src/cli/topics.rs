//! `flopwatch topics`: makes the topics that are missing and verifies the others.

use std::path::PathBuf;

use crate::config::Config;
use crate::error::Fatal;
use crate::kafka::topology::{self, Report, TopicReport};

/// Make the topics that are missing, and verify that the others have the right partitions, cleanup
/// and retention.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only verify: make nothing.
    #[arg(long, conflicts_with_all = ["create", "partitions"])]
    verify: bool,
    /// Make what is missing, with the cluster's default replication: what happens without --verify.
    #[arg(long)]
    create: bool,
    /// Partitions of a usage topic that is to be made.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: Option<u32>,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Config::load(args.config.as_deref())?;
    let report = if args.verify {
        topology::verify(&config)?
    } else {
        topology::create(&config, args.partitions)?
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
