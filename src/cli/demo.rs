//! `flopwatch demo`: a simulated cloud at high speed through the service itself, alerts as they
//! fire, and at the end what was found against what was true.
//!
//! Everything between the records that go in and the alerts that come out is what `run` starts:
//! the same threads, stages, transactions and topics. Only the broker is a stand-in, in this
//! process (`cluster.rs` says what it can and what it proves). One thread, this one, plays the
//! cloud's metering pipeline and the subscriber of the alerts at once; what it must know of the
//! service it reads from the service's own metrics, as an operator would.

mod cluster;
mod counters;
mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use self::cluster::{Alerts, Cluster, PARTITIONS};
use self::counters::Counters;
use self::report::Report;
use super::print;
use super::run::signals;
use super::show::Style;
use crate::config::Config;
use crate::detector::time::{Span, Timestamp};
use crate::error::Fatal;
use crate::http;
use crate::http::health::Health;
use crate::kafka::{Options, Service};
use crate::metrics;
use crate::record_file::Format;
use crate::simulate::encode::{encode_account, encode_event};
use crate::simulate::publish::Publisher;
use crate::simulate::{Cloud, KeyBy, Plan, Scenario, Sent};

/// 2026-01-05T00:00:00Z, a Monday.
const START: Timestamp = Timestamp(1_767_571_200_000_000_000);
/// Accounts of no interest among those that matter.
const BACKGROUND: u32 = 60;
/// Events that METER may not have committed: more than it reads between two commits a second apart,
/// and about 5 MB before compression, beyond which the mock forgets those of a partition.
const UNREAD: u64 = 32_768;
/// Events between two looks at the alerts.
const STRIDE: u64 = 512;
/// How long the service may take to hold its partitions; the mock lets a group form for 3 s.
const READY: Duration = Duration::from_secs(30);
/// How long it may take to follow to the end.
const DRAIN: Duration = Duration::from_secs(60);
/// A wait for an alert, between two looks at everything else.
const PAUSE: Duration = Duration::from_millis(5);

/// Watch a simulated cloud: no broker, no configuration.
///
/// The service runs over an in-process mock of Kafka. Alerts print as they fire; Ctrl-C ends early.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Simulated hours a second.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    speed: u32,
    /// Simulated days.
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=400))]
    days: u32,
    /// The same seed gives the same cloud.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also write the alerts as they stand in the topic to this .ndjson file.
    #[arg(long, value_name = "FILE")]
    alerts: Option<PathBuf>,
    /// Also answer /metrics and the probes here while it runs, as `run` does at `http.listen`.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

/// The demo's cloud: every scenario, metered hourly.
pub fn plan(seed: u64, days: u32) -> Plan {
    Plan {
        seed,
        start: START,
        span: Span::days(u64::from(days)),
        interval: Span::hours(1),
        partitions: PARTITIONS,
        key: KeyBy::Account,
        accounts: BACKGROUND,
        resources: BACKGROUND * 4,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 10_000,
        disorder: Span::seconds(120),
    }
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let signals = signals()?;
    let handle = metrics::install()?;
    let counters = Counters::new(handle.clone());
    let cloud = Cloud::new(plan(args.seed, args.days)).map_err(Fatal::Internal)?;
    let cluster = Cluster::start()?;
    let config = &cluster.config;
    announce(args, &cloud, config)?;
    publish_directory(&cloud, config)?;
    let health = Arc::new(Health::new(config.kafka.workers));
    let serve = |listen| http::serve("--listen", listen, handle, Arc::clone(&health));
    let server = args.listen.map(serve).transpose()?;
    let service = Service::start(config, cluster.layout, Options::default(), &health)?;
    let demo = Demo {
        alerts: cluster.alerts()?,
        report: Report::new(cloud.tenants(), Style::of_stdout(), args.alerts.as_deref())?,
        service,
        health,
        signals,
        counters,
    };
    let result = demo.run(cloud, config, args.speed);
    server.into_iter().for_each(http::Server::stop);
    result
}

fn announce(args: &Args, cloud: &Cloud, config: &Config) -> Result<(), Fatal> {
    print(&format!(
        "A cloud of {} accounts and {} nodes, {} days at {} hours a second; home is {}.\n\
         The service judges it by the {} default policies, over an in-process mock of Kafka.\n\
         Starting; the first alerts come within seconds. Ctrl-C ends early.\n",
        cloud.tenants().len(),
        cloud.resources(),
        args.days,
        args.speed,
        config.rules.origin.home.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        config.policies.list.len(),
    ))
}

/// Before the service starts, so that it knows every account from the first event on.
fn publish_directory(cloud: &Cloud, config: &Config) -> Result<(), Fatal> {
    let publisher = Publisher::new(&config.kafka.bootstrap_servers, &BTreeMap::new())?;
    let mut bytes = Vec::new();
    for tenant in cloud.tenants().iter().filter(|tenant| !tenant.unlisted) {
        encode_account(&tenant.entry, Format::Delimited, &mut bytes);
        let key = tenant.entry.account_id.as_bytes();
        publisher.send(&config.topics.accounts, None, Some(key), &bytes)?;
    }
    publisher.finish(&config.topics.accounts)
}

/// Simulated time against the clock.
#[derive(Debug, Clone, Copy)]
struct Pace {
    started: Instant,
    hours_per_second: u32,
}

impl Pace {
    /// How long a record must wait that is written at this instant.
    fn until(&self, written: Timestamp) -> Duration {
        let simulated = written.since(START).0;
        let due = Duration::from_nanos(simulated / 3600 / u64::from(self.hours_per_second));
        due.saturating_sub(self.started.elapsed())
    }
}

/// Why a wait or the feed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reached,
    TimedOut,
    Interrupted,
}

struct Demo {
    service: Service,
    health: Arc<Health>,
    alerts: Alerts,
    report: Report,
    signals: Receiver<&'static str>,
    counters: Counters,
}

impl Demo {
    fn run(mut self, mut cloud: Cloud, config: &Config, speed: u32) -> Result<(), Fatal> {
        let played = self.play(&mut cloud, config, speed);
        // what a thread of the service died of explains everything that failed after it
        self.service.join()?;
        if played? == End::Interrupted {
            print("\nInterrupted: this is as far as it came.\n")?;
        }
        self.report.finish(cloud.tenants(), cloud.used(), &self.counters.read())
    }

    fn play(&mut self, cloud: &mut Cloud, config: &Config, speed: u32) -> Result<End, Fatal> {
        match self.await_that(READY, |demo| Ok(demo.health.unready().is_none()))? {
            End::Reached => {}
            End::Interrupted => return Ok(End::Interrupted),
            End::TimedOut => {
                let reason = self.health.unready().unwrap_or_default();
                return Err(Fatal::Broker(format!("the service is not ready: {reason}")));
            }
        }
        let mut fed = Fed::default();
        if self.feed(cloud, config, speed, &mut fed)? == End::Interrupted {
            return Ok(End::Interrupted);
        }
        let epoch = config.rules.time.epoch;
        let end = self.await_that(DRAIN, |demo| {
            let counts = demo.counters.read();
            let followed = counts.read >= fed.events && counts.watermark >= fed.watermark(epoch);
            Ok(followed && demo.alerts.is_at_end()?)
        })?;
        if end == End::TimedOut {
            print(
                "\nThe service has not followed to the end in time: the last hours are missing.\n",
            )?;
        }
        Ok(end)
    }

    /// Publishes the cloud's events, each when its simulated time has come.
    fn feed(
        &mut self,
        cloud: &mut Cloud,
        config: &Config,
        speed: u32,
        fed: &mut Fed,
    ) -> Result<End, Fatal> {
        let publisher = Publisher::new(&config.kafka.bootstrap_servers, &BTreeMap::new())?;
        let pace = Pace { started: Instant::now(), hours_per_second: speed };
        let topic = &config.topics.usage;
        let mut bytes = Vec::new();
        while let Some(Sent { partition, written, event, .. }) = cloud.next() {
            while !pace.until(written).is_zero() {
                let wait = pace.until(written).min(PAUSE);
                if self.attend(wait)? == End::Interrupted {
                    return Ok(End::Interrupted);
                }
            }
            if fed.events.is_multiple_of(STRIDE) && self.await_room(fed.events)? == End::Interrupted
            {
                return Ok(End::Interrupted);
            }
            encode_event(&event, Format::Delimited, &mut bytes);
            publisher.send_at(topic, partition, event.account_id.as_bytes(), &bytes, written)?;
            fed.add(partition, event.time);
        }
        publisher.finish(topic)?;
        Ok(End::Reached)
    }

    /// Until METER has committed all but so many that the mock keeps them.
    fn await_room(&mut self, fed: u64) -> Result<End, Fatal> {
        let end = self.await_that(READY, |demo| Ok(fed <= demo.counters.read().read + UNREAD))?;
        match end {
            End::Reached | End::Interrupted => Ok(end),
            End::TimedOut => Err(Fatal::Internal("the service reads no usage any more".into())),
        }
    }

    /// Serves alerts, signals and failures until `done`.
    fn await_that(
        &mut self,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> Result<bool, Fatal>,
    ) -> Result<End, Fatal> {
        let deadline = Instant::now() + patience;
        let mut wait = Duration::ZERO;
        loop {
            if self.attend(wait)? == End::Interrupted {
                return Ok(End::Interrupted);
            }
            if done(self)? {
                return Ok(End::Reached);
            }
            if Instant::now() >= deadline {
                return Ok(End::TimedOut);
            }
            wait = PAUSE;
        }
    }

    /// Prints the alerts that are there or come within `wait`, and looks at everything that may
    /// end the demo.
    fn attend(&mut self, wait: Duration) -> Result<End, Fatal> {
        let mut alert = self.alerts.next(wait)?;
        while let Some(bytes) = alert {
            self.report.alert(&bytes)?;
            alert = self.alerts.next(Duration::ZERO)?;
        }
        if let Some(fatal) = self.service.failure(Duration::ZERO) {
            return Err(fatal);
        }
        match self.signals.try_recv() {
            Ok(_) => Ok(End::Interrupted),
            Err(TryRecvError::Empty) => Ok(End::Reached),
            Err(TryRecvError::Disconnected) => {
                Err(Fatal::Internal("the signal thread ended".into()))
            }
        }
    }
}

/// What was published.
#[derive(Debug, Default)]
struct Fed {
    events: u64,
    /// The greatest `time` of each partition: its stream time once it is read.
    times: [Timestamp; PARTITIONS as usize],
}

impl Fed {
    fn add(&mut self, partition: u32, time: Timestamp) {
        self.events += 1;
        let latest = &mut self.times[partition as usize];
        *latest = time.max(*latest);
    }

    /// The M that every stage reaches.
    fn watermark(&self, epoch: Span) -> Timestamp {
        self.times.iter().min().copied().unwrap_or_default().floor(epoch)
    }
}
