//! A backlog, read by the bare consumer and by flopwatch in turn.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Args;
use crate::cluster::{Cluster, Loaded};
use crate::process::Running;
use crate::report::{self, Run};
use crate::service::{self, Deployment};

pub(crate) fn run(args: &Args, folder: &Path) {
    let header = report::header();
    report::print_header(&header);
    let mut results = Vec::new();
    for workload in args.workloads() {
        // a broker for each workload: neither pays for the other's files
        let cluster = Cluster::start(folder, args.events);
        let loaded = cluster.load(workload, args.events);
        let mut rounds = Vec::new();
        for round in 0..args.rounds {
            rounds.push(one_round(args, &cluster, &loaded, round));
        }
        let per_event = loaded.bytes as f64 / loaded.events as f64;
        let title = format!(
            "{}: {} events, {per_event:.0} bytes each on the broker ({})",
            workload.name(),
            loaded.events,
            loaded.made
        );
        println!("{}\n", report::table(&title, &rounds, is_bare));
        println!("Broker peak {:.0} MB. {}\n", cluster.peak_megabytes(), kept(&rounds, &loaded));
        results.push(json!({
            "workload": workload.name(),
            "events": loaded.events,
            "bytes": loaded.bytes,
            "made": loaded.made,
            "rounds": rounds,
        }));
    }
    report::save(folder, "backlog.json", &json!({ "header": header, "workloads": results }));
}

pub(crate) fn is_bare(run: &Run) -> bool {
    run.system.starts_with("bare")
}

/// Each system once; who begins changes from round to round.
fn one_round(args: &Args, cluster: &Cluster, loaded: &Loaded, round: usize) -> Vec<Run> {
    let limit = Duration::from_secs(args.limit);
    let mut runs = Vec::new();
    let turns = args.bare.len() + 1;
    for turn in 0..turns {
        let turn = (turn + round) % turns;
        let run = match args.bare.get(turn) {
            Some(&threads) => bare(cluster, loaded, threads, limit),
            None => {
                let group = format!("bench-{}-{round}", loaded.workload.name());
                let deployment =
                    Deployment::new(cluster, &group, &loaded.usage, &loaded.accounts, "");
                let run = service::measure(cluster, &deployment, loaded, limit);
                deployment.remove(cluster);
                run
            }
        };
        eprintln!("round {}: {}: {:.3} M events/s", round + 1, run.system, run.rate() / 1e6);
        runs.push(run);
    }
    runs
}

/// The bare consumer as a process of its own.
pub(crate) fn bare(cluster: &Cluster, loaded: &Loaded, threads: usize, limit: Duration) -> Run {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--as-bare-consumer", &cluster.broker.address, &loaded.usage]);
    command.arg(threads.to_string());
    let mut running = Running::start(&mut command, &cluster.log("bare"));
    assert_eq!(running.line(limit), "first", "what the bare consumer says first");
    let before = cluster.cpu_seconds();
    let said = running.line(limit);
    let broker = cluster.cpu_seconds() - before;
    running.wait(limit);
    let said: Value = serde_json::from_str(&said).expect("the bare consumer's result");
    let number = |name: &str| said[name].as_f64().expect("a number");
    let events = said["events"].as_u64().expect("a number");
    assert_eq!(events, loaded.events, "the bare consumer reads the whole topic");
    Run {
        system: format!("bare, {threads} threads"),
        events,
        seconds: number("seconds"),
        start_up_seconds: number("start_up_seconds"),
        warm: None,
        cpu_seconds: number("cpu_seconds"),
        broker_cpu_seconds: broker,
        peak_megabytes: number("peak_megabytes"),
        drained_seconds: None,
        notes: BTreeMap::from([("payload bytes".to_owned(), number("bytes"))]),
    }
}

/// What the runs of flopwatch counted, and what they left on the broker for each event.
fn kept(rounds: &[Vec<Run>], loaded: &Loaded) -> String {
    let mut ours = rounds.iter().flatten().filter(|run| !is_bare(run));
    let Some(last) = ours.next_back() else { return String::new() };
    let notes = last.notes.iter().map(|(name, value)| match name.strip_prefix("bytes of ") {
        Some(topic) => format!("{topic} {:.2} B/event", value / loaded.events as f64),
        None => format!("{name} {value}"),
    });
    format!("flopwatch, last round: {}.", notes.collect::<Vec<_>>().join(", "))
}
