//! What a bench prints: where it ran, every run, medians; and the same as JSON in a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use flopwatch::config::Config;
use flopwatch::kafka::client;
use serde_json::{Value, json};

/// One run of one system over one workload.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Run {
    pub(crate) system: String,
    pub(crate) events: u64,
    /// From the first event processed to the last committed.
    pub(crate) seconds: f64,
    /// From the start of the process to the first event processed.
    pub(crate) start_up_seconds: f64,
    /// Events a second from the first third committed to the end, for systems that warm up.
    pub(crate) warm: Option<f64>,
    pub(crate) cpu_seconds: f64,
    pub(crate) broker_cpu_seconds: f64,
    pub(crate) peak_megabytes: f64,
    /// From the last event committed to the last judgement committed.
    pub(crate) drained_seconds: Option<f64>,
    pub(crate) notes: BTreeMap<String, f64>,
}

impl Run {
    pub(crate) fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    fn cpu_per_million(&self) -> f64 {
        self.cpu_seconds / self.events as f64 * 1e6
    }

    fn broker_per_million(&self) -> f64 {
        self.broker_cpu_seconds / self.events as f64 * 1e6
    }
}

/// The rate from the first look at a third of the end, when there is time enough between.
pub(crate) fn warm(progress: &[(Instant, u64)]) -> Option<f64> {
    let &(end, last) = progress.last()?;
    let &(begin, first) = progress.iter().find(|(_, committed)| *committed * 3 >= last)?;
    let seconds = (end - begin).as_secs_f64();
    (seconds > 1.0).then(|| (last - first) as f64 / seconds)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// A table of one workload: every run, ratios to the fastest run of `base` in the same round, and
/// the medians of each system. Without a base the ratio is of flopwatch to the run.
pub(crate) fn table(title: &str, rounds: &[Vec<Run>], is_base: impl Fn(&Run) -> bool) -> String {
    let mut lines = vec![
        format!("### {title}"),
        String::new(),
        "| round | system | M events/s | of base | warm M/s | CPU s per M | of base | \
         broker CPU s per M | peak MB | start-up s | judged after s |"
            .to_owned(),
        format!("|{}", " --- |".repeat(11)),
    ];
    let mut by_system: BTreeMap<&str, Vec<[f64; 9]>> = BTreeMap::new();
    for (number, round) in (1..).zip(rounds) {
        let base =
            round.iter().filter(|run| is_base(run)).max_by(|a, b| a.rate().total_cmp(&b.rate()));
        for run in round {
            let ratio = |mine: f64, theirs: Option<f64>| theirs.map_or(f64::NAN, |it| mine / it);
            let row = [
                run.rate() / 1e6,
                ratio(run.rate(), base.map(Run::rate)),
                run.warm.unwrap_or(f64::NAN) / 1e6,
                run.cpu_per_million(),
                ratio(run.cpu_per_million(), base.map(Run::cpu_per_million)),
                run.broker_per_million(),
                run.peak_megabytes,
                run.start_up_seconds,
                run.drained_seconds.unwrap_or(f64::NAN),
            ];
            lines.push(cells(&number.to_string(), &run.system, row));
            by_system.entry(&run.system).or_default().push(row);
        }
    }
    for (system, rows) in by_system {
        let medians = std::array::from_fn(|index| {
            median(rows.iter().map(|row| row[index]).filter(|value| value.is_finite()))
        });
        lines.push(cells("**median**", &format!("**{system}**"), medians));
    }
    lines.join("\n")
}

fn cells(round: &str, system: &str, row: [f64; 9]) -> String {
    let text = |value: f64| match value {
        value if !value.is_finite() => "-".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.3}"),
    };
    format!("| {round} | {system} | {} |", row.map(text).join(" | "))
}

/// Versions, settings and the state of the machine: a figure without them is not a comparison.
pub(crate) fn header() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let pom = include_str!("../../tests/support/kafka/pom.xml");
    let kafka = pom.split("<version>").nth(2).and_then(|rest| rest.split('<').next());
    let text = "[kafka]\nbootstrap_servers = \"bench\"\n";
    let config = Config::from_text("bench", text).expect("a valid configuration");
    let settings: BTreeMap<String, String> = client::reader_options(&config.kafka, "bench")
        .config_map()
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    json!({
        "date": said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "rustc": said("rustc", &["--version"]),
        "librdkafka": rdkafka::util::get_rdkafka_version().1,
        "kafka": kafka.unwrap_or("?"),
        "java": said("java", &["-version"]),
        "kernel": said("uname", &["-sr"]),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": memory.lines().next().unwrap_or_default(),
        "load before": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        "consumer settings of both sides": settings,
        "batch": client::BATCH,
    })
}

fn said(program: &str, arguments: &[&str]) -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let Ok(output) = Command::new(program).args(arguments).current_dir(folder).output() else {
        return "?".to_owned();
    };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or("?").to_owned()
}

/// The header as Markdown.
pub(crate) fn print_header(header: &Value) {
    println!("Figures of this machine and hour only; ratios are within a round.\n");
    for (name, value) in header.as_object().expect("an object") {
        match value.as_str() {
            Some(text) => println!("- {name}: {text}"),
            None => println!("- {name}: `{value}`"),
        }
    }
    println!();
}

pub(crate) fn save(folder: &Path, name: &str, value: &Value) {
    let path = folder.join(name);
    let text = serde_json::to_string_pretty(value).expect("values are JSON");
    fs::write(&path, text).expect("results can be written");
    println!("\nEvery figure: {}", path.display());
}
