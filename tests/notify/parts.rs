//! What a notification passes through: the program, an Alertmanager, a webhook, alerts to publish.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flopwatch::detector::alert::{Alert, Estimate, Evidence, Observed, Origin, PolicyRef, State};
use flopwatch::detector::cloudevent;
use flopwatch::detector::directory::Country;
use flopwatch::detector::policy::Mode;
use flopwatch::detector::time::{Span, Timestamp};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{Broker, free_port};

/// A step on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// 2026-03-01T06:00:00Z.
const AT: Timestamp = Timestamp(1_772_344_800_000_000_000);

/// Waits until `found` finds something.
pub(crate) fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::park_timeout(LOOK);
    }
}

/// A revision of the alert of an account.
pub(crate) fn alert(key: &str, revision: u32, state: State) -> Alert {
    Alert {
        alert_id: format!("{:0>32}", key.replace(|c: char| !c.is_ascii_hexdigit(), "0")),
        revision,
        state,
        at: AT.plus(Span::hours(u64::from(revision))),
        reason: None,
        policy: PolicyRef {
            id: "watched".into(),
            version: 1,
            title: "Any use".into(),
            severity: "warning",
            mode: Mode::Live,
            hash: "0123456789abcdef0123456789abcdef".into(),
            references: Vec::new(),
        },
        scope: "account",
        key: key.into(),
        accounts: vec![key.into()],
        accounts_total: 1,
        origin: Origin {
            country: Country::parse("CN").expect("a country"),
            foreign: true,
            decided_by: "country",
            foreign_by: vec!["country"],
            facts: BTreeMap::from([("country", "CN".to_owned())]),
        },
        conditions: vec![Observed {
            metric: "accelerators",
            window: Some("2h".into()),
            observed: 128.0,
            at_least: 1.0,
            unit: "accelerators",
            met: state != State::Resolved,
        }],
        estimate: Estimate {
            flop_low: 1e20,
            flop: 2e20,
            flop_high: 3e20,
            flop_allocated: 6e20,
            accelerators: 128.0,
            accelerator_hours: 256.0,
        },
        run: None,
        projection: None,
        evidence: Evidence::default(),
        first_at: AT,
        report_due: None,
    }
}

/// Topics, a group and targets of one test.
pub(crate) struct Deployment {
    pub(crate) name: &'static str,
    directory: TempDir,
    pub(crate) partitions: i32,
    producer: BaseProducer,
}

impl Deployment {
    pub(crate) fn new(name: &'static str, partitions: i32) -> Self {
        let broker = Broker::shared();
        let deployment = Self {
            name,
            directory: tempfile::tempdir().expect("a directory"),
            partitions,
            producer: broker.client().create().expect("a producer"),
        };
        for topic in [deployment.alerts(), deployment.shadow(), deployment.findings()] {
            broker.create_topic(&topic, partitions, &[]);
        }
        deployment
    }

    pub(crate) fn alerts(&self) -> String {
        format!("{}.alerts", self.name)
    }

    pub(crate) fn shadow(&self) -> String {
        format!("{}.shadow-alerts", self.name)
    }

    pub(crate) fn findings(&self) -> String {
        format!("{}.findings", self.name)
    }

    /// Publishes a revision as `run` does.
    pub(crate) fn publish(&self, alert: &Alert) {
        self.publish_to(&self.alerts(), &cloudevent::structured(alert));
    }

    pub(crate) fn publish_to(&self, topic: &str, published: &cloudevent::Published) {
        let headers =
            published.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        let record =
            BaseRecord::to(topic).key(&published.key).payload(&published.value).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).expect("queued");
        self.producer.flush(PATIENCE).expect("written");
    }

    /// A file with the secret.
    pub(crate) fn secret_file(&self, secret: &str) -> PathBuf {
        let path = self.directory.path().join("secret");
        fs::write(&path, format!("{secret}\n")).expect("the file can be written");
        path
    }

    /// Starts `flopwatch notify` with these settings under `[notify]`.
    pub(crate) fn start(&self, settings: &str) -> Program {
        let listen = format!("127.0.0.1:{}", free_port());
        let text = format!(
            "[kafka]\nbootstrap_servers = \"{}\"\ngroup_id = \"{name}\"\ninstance = \"a\"\n\
             [topics]\nalerts = \"{name}.alerts\"\nshadow_alerts = \"{name}.shadow-alerts\"\n\
             [notify]\nlisten = \"{listen}\"\n{settings}",
            Broker::shared().address,
            name = self.name,
        );
        let file = self.directory.path().join("flopwatch.toml");
        fs::write(&file, text).expect("the file can be written");
        Program::start("notify", &file, listen)
    }

    /// Whether a target's group has committed all of the alert topic.
    pub(crate) fn is_told(&self, target: &str) -> bool {
        let broker = Broker::shared();
        let group = format!("{}-notify-{target}", self.name);
        let partitions = usize::try_from(self.partitions).expect("few");
        let positions = broker.positions(&group, &self.alerts(), partitions);
        let told: i64 = positions.into_iter().map(|position| position.unwrap_or(0)).sum();
        told == broker.end(&self.alerts())
    }
}

/// A process of the program.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
    listen: String,
}

impl Program {
    /// Starts a verb with a configuration file, beside which it logs.
    pub(crate) fn start(verb: &str, file: &Path, listen: String) -> Self {
        let log = file.with_file_name(format!("{verb}.log"));
        let to = File::options().create(true).append(true).open(&log).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
            .args([verb, "--config"])
            .arg(file)
            // a proxy of this machine leads nowhere
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(to)
            .spawn()
            .expect("the program starts");
        Self { child, log, listen }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("notify ends", || self.child.try_wait().expect("a child can be asked"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn await_ready(&self) {
        let url = format!("http://{}/healthz/ready", self.listen);
        eventually("notify is ready", || get(&url).filter(|(status, _)| *status == 200));
    }

    /// The value of a series, whole with its labels.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = get(&format!("http://{}/metrics", self.listen))?;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Status and body, if there is an answer.
fn get(url: &str) -> Option<(u16, String)> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .new_agent();
    let mut answer = agent.get(url).call().ok()?;
    let status = answer.status().as_u16();
    answer.body_mut().read_to_string().ok().map(|body| (status, body))
}

/// A real Alertmanager on a port of its own; it forgets everything with its end.
pub(crate) struct Alertmanager {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl Alertmanager {
    pub(crate) fn start() -> Self {
        Self::start_at(free_port())
    }

    pub(crate) fn start_at(port: u16) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("alertmanager.yml");
        let text = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n";
        fs::write(&file, text).expect("the file can be written");
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's prometheus-alertmanager is installed: .ci/setup test");
        let alertmanager = Self { port, child, _directory: directory };
        let url = format!("{}/-/ready", alertmanager.url());
        eventually("Alertmanager is ready", || get(&url).filter(|(status, _)| *status == 200));
        alertmanager
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it and starts another in its place, which knows nothing.
    pub(crate) fn replace(self) -> Self {
        let port = self.port;
        drop(self);
        Self::start_at(port)
    }

    /// Unresolved alerts.
    pub(crate) fn list(&self) -> Vec<Value> {
        let (status, body) = get(&format!("{}/api/v2/alerts", self.url())).expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("a list")
    }

    /// Unresolved alerts by key.
    pub(crate) fn alerts(&self) -> BTreeMap<String, Value> {
        let alerts = self.list();
        let key = |alert: &Value| alert["labels"]["key"].as_str().unwrap_or_default().to_owned();
        let by_key: BTreeMap<_, _> =
            alerts.iter().map(|alert| (key(alert), alert.clone())).collect();
        assert_eq!(by_key.len(), alerts.len(), "one alert a key: {alerts:?}");
        by_key
    }

    /// Waits for exactly these keys at these revisions.
    pub(crate) fn await_alerts(&self, expected: &[(&str, &str)]) {
        eventually(&format!("Alertmanager has {expected:?}"), || {
            let alerts = self.alerts();
            let found: Vec<(&str, &str)> = alerts
                .iter()
                .map(|(key, alert)| {
                    let revision = alert["annotations"]["revision"].as_str();
                    (key.as_str(), revision.unwrap_or_default())
                })
                .collect();
            (found == expected).then_some(())
        });
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// What a webhook does with a request.
pub(crate) enum Act {
    Answer(u16),
    /// Closes the connection without a word.
    Close,
    /// Says that it has the request and answers 200 when it is told to, or closes when nobody can.
    Hold(Sender<()>, Receiver<()>),
}

#[derive(Debug, Clone)]
pub(crate) struct Posted {
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Posted {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }
}

/// A server that does as it is told, then answers 200 for ever.
pub(crate) struct Webhook {
    pub(crate) port: u16,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Webhook {
    pub(crate) fn start(acts: Vec<Act>) -> Self {
        Self::start_at(0, acts)
    }

    pub(crate) fn start_at(port: u16, acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let acts = Arc::new(Mutex::new(VecDeque::from(acts)));
        let webhook = Self { port, posted: Arc::clone(&posted) };
        // ends with the process
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (posted, acts) = (Arc::clone(&posted), Arc::clone(&acts));
                thread::spawn(move || {
                    // an error is a client that has gone
                    drop(serve(stream, &posted, &acts));
                });
            }
        });
        webhook
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/in", self.port)
    }

    pub(crate) fn posted(&self) -> Vec<Posted> {
        self.posted.lock().expect("nothing panics with it").clone()
    }

    pub(crate) fn await_ids(&self, expected: &[String]) -> Vec<Posted> {
        eventually(&format!("the webhook has {expected:?}"), || {
            let posted = self.posted();
            let ids: Vec<&str> = posted.iter().map(Posted::id).collect();
            (ids == expected).then(|| posted.clone())
        })
    }
}

/// The requests of one connection.
fn serve(
    stream: TcpStream,
    posted: &Mutex<Vec<Posted>>,
    acts: &Mutex<VecDeque<Act>>,
) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        assert!(line.starts_with("POST /in HTTP/1.1"), "{line}");
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers["content-length"].parse().expect("a length");
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let act = acts.lock().expect("nothing panics with it").pop_front();
        posted.lock().expect("nothing panics with it").push(Posted { headers, body });
        let status = match act.unwrap_or(Act::Answer(200)) {
            Act::Answer(status) => status,
            Act::Close => return Ok(()),
            Act::Hold(held, release) => {
                held.send(()).unwrap_or_default();
                if release.recv_timeout(PATIENCE).is_err() {
                    return Ok(());
                }
                200
            }
        };
        write!(out, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")?;
    }
}

/// An act that waits, the news that it does, and what ends it.
pub(crate) fn hold() -> (Act, Receiver<()>, Sender<()>) {
    let (held, is_held) = channel();
    let (release, released) = channel();
    (Act::Hold(held, released), is_held, release)
}
