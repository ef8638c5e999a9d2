//! flopwatch end to end on a real broker, beside a bare librdkafka batch consumer.
//!
//! `make bench` reads a backlog in interleaved rounds and prints a table of every run with ratios
//! within a round; `--latency` measures from the append of the event that closes a slice to the
//! append of the alert, `--memory` what an account costs, `--peers` runs the same task in Kafka
//! Streams and Flink. Figures hold for this machine and day only: compare what one run printed.
//!
//! Everything that is started is stopped, every wait has an end, and the broker's data goes.

#![expect(clippy::print_stdout, reason = "what a bench is for")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]

mod backlog;
mod bare;
#[path = "../../tests/support/broker.rs"]
mod broker;
mod cluster;
mod latency;
#[path = "../support/lived.rs"]
mod lived;
mod memory;
mod peers;
mod process;
mod report;
mod service;
mod sizing;

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "flopwatch on a real broker, beside a bare librdkafka batch consumer")]
struct Args {
    /// Latency at a steady rate instead of the backlog.
    #[arg(long)]
    latency: bool,
    /// Memory per account instead of the backlog.
    #[arg(long)]
    memory: bool,
    /// Kafka Streams and Flink beside us instead of the bare consumer.
    #[arg(long)]
    peers: bool,
    /// The worked clouds of deploy/SIZING.md, from its figures.
    #[arg(long)]
    sizing: bool,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Events of each workload; fewer leave out nodes of `fleet` and time of `sparse`.
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,
    /// Only this workload; may be given twice.
    #[arg(long, value_enum)]
    workload: Vec<cluster::Workload>,
    /// Threads of the bare consumer, each with a consumer of its own; every number is run.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    bare: Vec<usize>,
    /// Peers to run [default: all].
    #[arg(long, value_enum)]
    peer: Vec<peers::Peer>,
    /// Seconds that one run may take.
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// --latency: events a second, and seconds.
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// --memory: accounts, half of them active around the clock, half sparse.
    #[arg(long, default_value_t = 1_000_000)]
    accounts: u64,
    /// Where data, logs and results go [default: target/bench].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The bare consumer itself, which a run starts as a process of its own.
    #[arg(long, hide = true, num_args = 3, value_names = ["SERVERS", "TOPIC", "THREADS"])]
    as_bare_consumer: Option<Vec<String>>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    if let Some(given) = &args.as_bare_consumer {
        bare::consume(&given[0], &given[1], given[2].parse().expect("a number of threads"));
        return;
    }
    if args.sizing {
        sizing::print();
        return;
    }
    let folder = args.folder.clone().unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("bench")
    });
    std::fs::create_dir_all(&folder).expect("a folder for data and results");
    match (args.latency, args.memory, args.peers) {
        (true, ..) => latency::run(&args, &folder),
        (_, true, _) => memory::run(&args, &folder),
        (_, _, true) => peers::run(&args, &folder),
        (false, false, false) => backlog::run(&args, &folder),
    }
}

impl Args {
    fn workloads(&self) -> Vec<cluster::Workload> {
        match self.workload.is_empty() {
            true => vec![cluster::Workload::Fleet, cluster::Workload::Sparse],
            false => self.workload.clone(),
        }
    }
}
