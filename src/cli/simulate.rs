//! `flopwatch simulate`: usage with accounts and ground truth, to files or to Kafka.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use super::duration::parse_span;
use crate::config::Config;
use crate::detector::event::UsageEvent;
use crate::detector::time::{Span, Timestamp};
use crate::error::Fatal;
use crate::proto::Account;
use crate::record_file::{Format, RecordWriter};
use crate::simulate::encode::{encode_account, encode_event};
use crate::simulate::publish::Publisher;
use crate::simulate::{Cloud, KeyBy, Plan, Scenario, Trace, truth};

/// Events between two looks at the progress bar.
const STRIDE: u64 = 1 << 14;

/// Simulate a cloud's usage events, with its accounts and what is true of them.
///
/// The cloud has labelled scenarios (all of them unless --scenario names some) among background
/// accounts whose sizes follow Zipf's law. The same arguments give the same bytes. With --trace, a
/// job trace is turned into usage events instead.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The same seed gives the same cloud.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A cloud to measure speed with: no scenarios, every node rented all the time.
    #[arg(long, value_enum)]
    workload: Option<Workload>,
    /// Background accounts [default: 200, or the workload's 100000].
    #[arg(long, value_name = "N")]
    accounts: Option<u32>,
    /// Nodes of the background accounts [default: 3 an account, or the workload's].
    #[arg(long, value_name = "N")]
    resources: Option<u32>,
    /// A scenario to include; may be given more than once. `background` alone leaves out the rest.
    #[arg(long, value_enum, value_name = "NAME")]
    scenario: Vec<Scenario>,
    /// Start of the first interval, RFC 3339.
    #[arg(long, value_name = "TIME", default_value = "2026-01-05T00:00:00Z", value_parser = parse_time)]
    start: Timestamp,
    /// Simulated time, such as 30d [default: 30d, or the workload's].
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    span: Option<Span>,
    /// Metering interval.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_span)]
    interval: Span,
    /// Share of events that are followed by an exact duplicate [default: 0.01].
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    duplicates: f64,
    /// Records of a partition are out of order by less than this, at most 20m.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_span)]
    disorder: Span,
    /// What gives a record its partition, and its key on Kafka.
    #[arg(long, value_enum, default_value = "account")]
    key: KeyBy,
    /// Partitions, one file each [default: 1, or the workload's 4]; Kafka's topic has its own.
    #[arg(long, value_name = "P")]
    partitions: Option<u32>,
    /// File for usage events; `%` stands for the partition (usage-%.ndjson, usage-%.pb.zst).
    #[arg(long, value_name = "FILE", required_unless_present = "kafka")]
    usage: Option<PathBuf>,
    /// File for the account directory (.ndjson or .pb).
    #[arg(long, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// CSV file for what each account really used.
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    truth: Option<PathBuf>,
    /// Send events and accounts to the broker and topics of --config, as protobuf.
    #[arg(long)]
    kafka: bool,
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Turn this job trace (account,job,accelerator,count,start,end[,class]) into usage events.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "scenario", "accounts"])]
    trace: Option<PathBuf>,
    /// Accelerator of jobs that name none.
    #[arg(long, value_name = "NAME", requires = "trace", default_value = "nvidia-v100-sxm2")]
    accelerator: String,
    /// Country of every account of the trace.
    #[arg(long, value_name = "XX", requires = "trace", default_value = "US")]
    country: String,
}

/// The two workloads of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// 1.5 million nodes of 100,000 accounts for 65 minutes: 20 million events.
    Fleet,
    /// 23,000 nodes of the same accounts for 72 hours: 20 million events.
    Sparse,
}

impl Workload {
    const fn resources(self) -> u32 {
        match self {
            Self::Fleet => 1_500_000,
            Self::Sparse => 23_000,
        }
    }

    const fn span(self) -> Span {
        match self {
            Self::Fleet => Span::seconds(65 * 60),
            Self::Sparse => Span::hours(72),
        }
    }
}

pub fn execute(args: Args) -> Result<(), Fatal> {
    match &args.trace {
        Some(path) => convert(&args, path),
        None => simulate(&args),
    }
}

fn simulate(args: &Args) -> Result<(), Fatal> {
    let mut plan = plan(args)?;
    let mut outlet = Outlet::open(args, &mut plan.partitions)?;
    let mut cloud = Cloud::new(plan)
        .map_err(|detail| Fatal::Config(format!("the simulation cannot be set up: {detail}")))?;
    let listed = cloud.tenants().iter().filter(|tenant| !tenant.unlisted);
    outlet.accounts(args.directory.as_deref(), listed.map(|tenant| &tenant.entry))?;

    let progress = progress_bar(cloud.plan().span);
    let mut written = 0_u64;
    let mut duplicates = 0_u64;
    loop {
        let elapsed = cloud.elapsed();
        let Some(sent) = cloud.next() else { break };
        outlet.usage(sent.partition, &sent.event)?;
        written += 1;
        duplicates += u64::from(sent.duplicate);
        if written.is_multiple_of(STRIDE) {
            progress.set_position(elapsed.0);
            progress.set_message(format!("{written} events"));
        }
    }
    progress.finish_and_clear();
    outlet.finish()?;
    if let Some(path) = &args.truth {
        write_truth(path, &cloud)?;
    }
    report(&format!(
        "{written} records ({duplicates} of them duplicates) of {} accounts on {} nodes, seed {}",
        cloud.tenants().len(),
        cloud.resources(),
        args.seed
    ));
    Ok(())
}

fn plan(args: &Args) -> Result<Plan, Fatal> {
    let workload = args.workload;
    let accounts = args.accounts.unwrap_or(if workload.is_some() { 100_000 } else { 200 });
    let resources = match (args.resources, workload) {
        (Some(resources), _) => resources,
        (None, Some(workload)) => workload.resources(),
        (None, None) => accounts.saturating_mul(3),
    };
    if !(0.0..=0.5).contains(&args.duplicates) {
        return Err(Fatal::Config(format!(
            "--duplicates {} must be a share from 0 to 0.5",
            args.duplicates
        )));
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most half a million")]
    #[expect(clippy::cast_sign_loss, reason = "checked not to be negative")]
    let duplicates_per_million = (args.duplicates * 1e6).round() as u32;
    let mut scenarios = match (args.scenario.is_empty(), workload) {
        (false, _) => args.scenario.clone(),
        (true, Some(_)) => Vec::new(),
        (true, None) => Scenario::ALL.to_vec(),
    };
    scenarios.sort_unstable();
    scenarios.dedup();
    let default_span = workload.map_or(Span::days(30), Workload::span);
    Ok(Plan {
        seed: args.seed,
        start: args.start,
        span: args.span.unwrap_or(default_span),
        interval: args.interval,
        partitions: args.partitions.unwrap_or(if workload.is_some() { 4 } else { 1 }),
        key: args.key,
        accounts,
        resources,
        scenarios,
        constant: workload.is_some(),
        duplicates_per_million,
        disorder: args.disorder,
    })
}

fn convert(args: &Args, path: &Path) -> Result<(), Fatal> {
    if args.interval < Span::seconds(1) || args.interval > Span::days(31) {
        return Err(Fatal::Config(format!("--interval {} must be from 1s to 31d", args.interval)));
    }
    let trace = Trace::open(path, &args.accelerator)?;
    let mut partitions = args.partitions.unwrap_or(1);
    let mut outlet = Outlet::open(args, &mut partitions)?;
    let accounts: Vec<Account> = trace.directory(&args.country);
    outlet.accounts(args.directory.as_deref(), accounts.iter())?;
    let mut written = 0_u64;
    for event in trace.events(args.interval) {
        let key = match args.key {
            KeyBy::Account => event.account_id.as_bytes(),
            KeyBy::Event => event.id.as_bytes(),
            KeyBy::None => &written.to_be_bytes(),
        };
        let partition = crate::simulate::cloud::partition(key, partitions);
        outlet.usage(partition, &event)?;
        written += 1;
    }
    outlet.finish()?;
    report(&format!(
        "{written} events from {} jobs of {} accounts; {} jobs taken to run on {}",
        trace.jobs(),
        trace.accounts.len(),
        trace.assumed,
        args.accelerator
    ));
    Ok(())
}

/// Where records go: a file for each partition, or Kafka.
struct Outlet {
    files: Vec<RecordWriter>,
    kafka: Option<(Publisher, String, String)>,
    key: KeyBy,
    bytes: Vec<u8>,
}

impl Outlet {
    /// Kafka's topic says how many partitions there are.
    fn open(args: &Args, partitions: &mut u32) -> Result<Self, Fatal> {
        let mut kafka = None;
        if args.kafka {
            let config = Config::load(args.config.as_deref())?;
            let publisher = Publisher::new(&config.kafka.bootstrap_servers, &config.kafka.client)?;
            *partitions = publisher.partitions(&config.topics.usage)?;
            kafka = Some((publisher, config.topics.usage, config.topics.accounts));
        }
        if *partitions == 0 {
            return Err(Fatal::Config("--partitions must be at least 1".to_owned()));
        }
        let files = match &args.usage {
            Some(pattern) => usage_files(pattern, *partitions)?,
            None => Vec::new(),
        };
        Ok(Self { files, kafka, key: args.key, bytes: Vec::with_capacity(512) })
    }

    fn accounts<'a>(
        &mut self,
        path: Option<&Path>,
        accounts: impl Iterator<Item = &'a Account>,
    ) -> Result<(), Fatal> {
        let mut file = path.map(RecordWriter::create).transpose()?;
        for account in accounts {
            if let Some(file) = &mut file {
                encode_account(account, file.format(), &mut self.bytes);
                file.write(&self.bytes)?;
            }
            if let Some((publisher, _, topic)) = &self.kafka {
                encode_account(account, Format::Delimited, &mut self.bytes);
                let key = account.account_id.as_bytes();
                publisher.send(topic, None, Some(key), &self.bytes)?;
            }
        }
        file.map_or(Ok(()), RecordWriter::finish)
    }

    fn usage(&mut self, partition: u32, event: &UsageEvent<'_>) -> Result<(), Fatal> {
        if let Some(file) = self.files.get_mut(partition as usize) {
            encode_event(event, file.format(), &mut self.bytes);
            file.write(&self.bytes)?;
        }
        if let Some((publisher, topic, _)) = &self.kafka {
            encode_event(event, Format::Delimited, &mut self.bytes);
            let key = match self.key {
                KeyBy::Account => Some(event.account_id.as_bytes()),
                KeyBy::Event => Some(event.id.as_bytes()),
                KeyBy::None => None,
            };
            publisher.send(topic, Some(partition), key, &self.bytes)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Fatal> {
        for file in self.files {
            file.finish()?;
        }
        match self.kafka {
            Some((publisher, topic, _)) => publisher.finish(&topic),
            None => Ok(()),
        }
    }
}

fn usage_files(pattern: &Path, partitions: u32) -> Result<Vec<RecordWriter>, Fatal> {
    let text = pattern.to_string_lossy();
    if partitions > 1 && !text.contains('%') {
        return Err(Fatal::Config(format!(
            "--usage {text} must contain % for the partition's number, as there are {partitions}"
        )));
    }
    (0..partitions)
        .map(|number| RecordWriter::create(Path::new(&text.replace('%', &number.to_string()))))
        .collect()
}

fn write_truth(path: &Path, cloud: &Cloud) -> Result<(), Fatal> {
    let refuse = |error: &dyn std::fmt::Display| {
        Fatal::Input(format!("{}: cannot be written: {error}", path.display()))
    };
    let file = File::create(path).map_err(|error| refuse(&error))?;
    let mut csv = csv::Writer::from_writer(BufWriter::new(file));
    csv.write_record(truth::HEADER).map_err(|error| refuse(&error))?;
    for (tenant, used) in cloud.tenants().iter().zip(cloud.used()) {
        csv.write_record(truth::row(tenant, used)).map_err(|error| refuse(&error))?;
    }
    csv.flush().map_err(|error: io::Error| refuse(&error))
}

/// On a terminal; hidden elsewhere.
fn progress_bar(span: Span) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {elapsed}<{eta} {msg}")
        .expect("the template is sound");
    ProgressBar::new(span.0).with_style(style)
}

/// To standard error: standard output may be a file of events.
fn report(line: &str) {
    eprintln!("{line}");
}

pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let instant: jiff::Timestamp =
        text.parse().map_err(|_| "wanted RFC 3339, such as 2026-01-05T00:00:00Z".to_owned())?;
    u64::try_from(instant.as_nanosecond())
        .map(Timestamp)
        .map_err(|_| "it lies outside the years 1970 to 2499".to_owned())
}
