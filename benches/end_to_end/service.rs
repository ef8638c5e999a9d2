//! `flopwatch run` over a workload, watched through `/metrics` and its committed positions.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use flopwatch::config::Config;

use crate::broker::free_port;
use crate::cluster::{Cluster, Loaded, Positions};
use crate::process::{Running, cpu_seconds, peak_megabytes};
use crate::report::Run;

/// Between two looks: a hundredth of the shortest run worth a figure.
const LOOK: Duration = Duration::from_millis(20);

/// A deployment: a group with topics of its own, so that each round starts afresh.
pub(crate) struct Deployment {
    pub(crate) group: String,
    pub(crate) text: String,
    pub(crate) config: Config,
    listen: SocketAddr,
}

impl Deployment {
    /// `more` is added to the configuration.
    pub(crate) fn new(
        cluster: &Cluster,
        group: &str,
        usage: &str,
        accounts: &str,
        more: &str,
    ) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let text = format!(
            "[kafka]\nbootstrap_servers = {:?}\ngroup_id = {group:?}\ninstance = \"bench\"\n\
             [topics]\nusage = {usage:?}\naccounts = {accounts:?}\n\
             account_usage = \"{group}.account-usage\"\ngroup_usage = \"{group}.group-usage\"\n\
             alerts = \"{group}.alerts\"\nshadow_alerts = \"{group}.shadow-alerts\"\n\
             dead_letters = \"{group}.dead-letters\"\n[http]\nlisten = \"{listen}\"\n{more}",
            cluster.broker.address
        );
        let config = Config::from_text("bench", &text).expect("a valid configuration");
        Self { group: group.to_owned(), text, config, listen }
    }

    pub(crate) fn start(&self, cluster: &Cluster) -> Running {
        let path = cluster.write(&format!("{}.toml", self.group), &self.text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
        command.args(["run", "--config"]).arg(path);
        Running::start(&mut command, &cluster.log(&self.group))
    }

    /// Removes what the round left on the broker.
    pub(crate) fn remove(&self, cluster: &Cluster) {
        cluster.delete(&Cluster::own_topics(&self.config));
    }

    /// Every series by its name with labels; empty while nobody listens.
    pub(crate) fn series(&self) -> BTreeMap<String, f64> {
        let text = self.scrape().unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    fn scrape(&self) -> std::io::Result<String> {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.listen, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

fn events_read(series: &BTreeMap<String, f64>) -> f64 {
    series.get("flopwatch_events_read_total").copied().unwrap_or(0.0)
}

/// The least watermark of a stage over its partitions.
fn watermark(series: &BTreeMap<String, f64>, stage: &str) -> Option<f64> {
    let of_stage = format!("stage=\"{stage}\"");
    let marks = series
        .iter()
        .filter(|(name, _)| name.starts_with("flopwatch_watermark_timestamp_seconds"))
        .filter(|(name, _)| name.contains(&of_stage))
        .map(|(_, value)| *value);
    marks.reduce(f64::min).filter(|mark| mark.is_finite())
}

/// From the first event processed to the last committed. The first look that sees an event counts
/// from the look before it, so that a run is never made shorter than it was.
pub(crate) fn measure(
    cluster: &Cluster,
    deployment: &Deployment,
    loaded: &Loaded,
    limit: Duration,
) -> Run {
    let mut running = deployment.start(cluster);
    let pid = running.pid();
    let deadline = running.started + limit;
    let check = |running: &mut Running| {
        thread::sleep(LOOK);
        running.assert_alive();
        if Instant::now() > deadline {
            running.fail("does not come to the end of the topic");
        }
    };
    let look = || (Instant::now(), cpu_seconds(pid), cluster.cpu_seconds());
    let mut began = look();
    loop {
        // before asking: the answer may be late on a busy machine
        let now = look();
        if events_read(&deployment.series()) > 0.0 {
            break;
        }
        began = now;
        check(&mut running);
    }
    let total = loaded.events as f64;
    let positions = Positions::new(cluster, &deployment.group, &loaded.usage);
    let mut progress = Vec::new();
    let (ended, committed) = loop {
        check(&mut running);
        if events_read(&deployment.series()) < total / 4.0 {
            continue;
        }
        let committed = positions.committed();
        let now = look();
        progress.push((now.0, committed));
        if committed >= loaded.events {
            break (now, committed);
        }
    };
    // every step that the events allow has been taken and committed by the stages behind
    let drained = loop {
        let series = deployment.series();
        let marks = ["meter", "account", "group"].map(|stage| watermark(&series, stage));
        if marks[0].is_some() && marks[0] == marks[1] && marks[1] == marks[2] {
            break Instant::now();
        }
        check(&mut running);
    };
    let run = Run {
        system: "flopwatch".to_owned(),
        events: committed,
        seconds: (ended.0 - began.0).as_secs_f64(),
        start_up_seconds: (began.0 - running.started).as_secs_f64(),
        warm: crate::report::warm(&progress),
        cpu_seconds: ended.1 - began.1,
        broker_cpu_seconds: ended.2 - began.2,
        peak_megabytes: peak_megabytes(pid),
        drained_seconds: Some((drained - ended.0).as_secs_f64()),
        notes: counts(&deployment.series(), cluster, deployment),
    };
    running.stop();
    run
}

/// What was counted, for the reader to see that all of it was; and what it left on the disk.
fn counts(
    series: &BTreeMap<String, f64>,
    cluster: &Cluster,
    deployment: &Deployment,
) -> BTreeMap<String, f64> {
    let mut notes: BTreeMap<String, f64> = BTreeMap::new();
    for name in ["read", "counted", "duplicate", "dead_lettered", "late"] {
        let series_name = format!("flopwatch_events_{name}_total");
        let labelled = format!("{series_name}{{");
        let found = series
            .iter()
            .filter(|(key, _)| key.as_str() == series_name || key.starts_with(&labelled));
        notes.insert(name.to_owned(), found.map(|(_, value)| value).sum());
    }
    let kept = notes["counted"] + notes["duplicate"] + notes["dead_lettered"];
    assert!((notes["read"] - kept).abs() < 0.5, "read is counted + duplicate + dead: {notes:?}");
    for topic in Cluster::own_topics(&deployment.config) {
        let short = topic.strip_prefix(&format!("{}.", deployment.group)).unwrap_or(&topic);
        notes.insert(format!("bytes of {short}"), cluster.bytes(&topic) as f64);
    }
    notes
}
