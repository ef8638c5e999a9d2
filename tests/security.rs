//! TLS and SASL on a real Kafka, and where secrets must not show.

#[path = "support/broker.rs"]
mod broker;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use broker::{Broker, Extra, free_port};
use flopwatch::config::Config;
use flopwatch::simulate::publish::Publisher;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// A login that is refused is no reason to wait.
const SOON: Duration = Duration::from_secs(15);

/// What must show nowhere.
const PASSWORD: &str = "correct-horse-battery-staple";
const WRONG: &str = "wrong-horse-battery-staple";

/// A broker with a listener for each way in, its certificate and that of another authority.
struct Secured {
    broker: Broker,
    directory: TempDir,
    sasl: u16,
    tls: u16,
}

impl Secured {
    fn shared() -> &'static Self {
        static SECURED: OnceLock<Secured> = OnceLock::new();
        SECURED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        authority(directory.path(), "ca");
        authority(directory.path(), "other");
        certificate(directory.path());
        let (sasl, tls) = (free_port(), free_port());
        let identity = directory.path().join("server.pem");
        let broker = Broker::start_with(None, |plain, controller| Extra {
            properties: format!(
                r#"
listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},\
  LOGIN://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},LOGIN://localhost:{sasl},TLS://localhost:{tls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_SSL,TLS:SSL
ssl.keystore.type=PEM
ssl.keystore.location={}
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=\
  org.apache.kafka.common.security.plain.PlainLoginModule required user_flopwatch="{PASSWORD}";
listener.name.login.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
"#,
                identity.display()
            ),
            format: format!("--add-scram SCRAM-SHA-512=[name=flopwatch,password={PASSWORD}]"),
        });
        Self { broker, directory, sasl, tls }
    }

    /// A configuration of its own topics; `client` stands under `[kafka.client]`.
    fn config(&self, name: &str, port: u16, client: &str) -> std::path::PathBuf {
        let file = self.directory.path().join(format!("{name}.toml"));
        let topics = [
            "usage",
            "accounts",
            "account_usage",
            "group_usage",
            "alerts",
            "shadow_alerts",
            "dead_letters",
        ]
        .map(|topic| format!("{topic} = \"{name}.{topic}\"\n"))
        .concat();
        let text = format!(
            "[kafka]\nbootstrap_servers = \"localhost:{port}\"\ngroup_id = \"{name}\"\n\
             workers = 1\n[kafka.client]\n\"ssl.ca.location\" = \"{}\"\n{client}\n\
             [topics]\n{topics}[http]\nlisten = \"127.0.0.1:0\"\n",
            self.directory.path().join("ca.pem").display()
        );
        fs::write(&file, text).expect("the file can be written");
        file
    }

    fn sasl(&self, name: &str, mechanism: &str, password: &str) -> std::path::PathBuf {
        fs::write(self.directory.path().join(format!("{name}.secret")), format!("{password}\n"))
            .expect("the file can be written");
        let client = format!(
            "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"{mechanism}\"\n\
             \"sasl.username\" = \"flopwatch\"\n\"sasl.password_file\" = \"{name}.secret\""
        );
        self.config(name, self.sasl, &client)
    }
}

/// Runs openssl in a directory.
fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority that signs itself.
fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey rsa:2048 -noenc -days 2 -subj /CN={name} -keyout {name}.key \
             -out {name}.pem"
        ),
    );
}

/// The broker's key and certificate in one file, as Kafka reads them.
fn certificate(directory: &Path) {
    openssl(
        directory,
        "req -newkey rsa:2048 -noenc -subj /CN=localhost -keyout server.key -out server.csr",
    );
    fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        .expect("the file can be written");
    openssl(
        directory,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out \
         server.crt -extfile names",
    );
    let text = |name: &str| fs::read_to_string(directory.join(name)).expect("openssl wrote it");
    let identity = text("server.key") + &text("server.crt") + &text("ca.pem");
    fs::write(directory.join("server.pem"), identity).expect("the file can be written");
}

/// Runs a verb to its end: exit code, standard output, standard error.
fn verb(config: &Path, level: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("RUST_LOG", level)
        .output()
        .expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("an exit code");
    (code, text(output.stdout), text(output.stderr))
}

/// `flopwatch run`, with everything that it logs at the most talkative.
struct Running {
    child: Child,
    lines: Receiver<String>,
    log: String,
}

impl Running {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
            .args(["run", "--config"])
            .arg(config)
            .env("RUST_LOG", "trace")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, log: String::new() }
    }

    /// Reads the log up to a line that holds `text`, and gives that line.
    fn await_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {text:?} in\n{}", self.log);
            };
            self.log += &line;
            self.log.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Asks it to stop: exit code and the whole log.
    fn stop(mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
        assert!(sent.expect("kill runs").success());
        let code = self.child.wait().expect("the program ends").code();
        let rest: Vec<String> = self.lines.iter().collect();
        let log = std::mem::take(&mut self.log) + &rest.join("\n");
        (code, log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // after a failed assertion; gone already otherwise
        self.child.kill().unwrap_or_default();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("the request is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer ends");
    text
}

/// Topics are made and a record goes through, over the listener that `config` names; nothing that
/// is printed, logged or served holds the password.
fn works(name: &str, config: &Path) {
    let secured = Secured::shared();
    let (code, _, error) = verb(config, "trace", &["topics", "--create", "--partitions", "1"]);
    assert_eq!(code, 0, "{error}");
    assert!(!error.contains(PASSWORD), "in the log of topics:\n{error}");
    let (code, effective, error) = verb(config, "trace", &["check"]);
    assert_eq!(code, 0, "{error}");
    assert!(!effective.contains(PASSWORD) && !error.contains(PASSWORD), "{effective}\n{error}");

    let mut running = Running::start(config);
    let line = running.await_line("http listens");
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    let address = line["address"].as_str().expect("an address").to_owned();
    running.await_line("\"running\"");
    let usage = format!("{name}.usage");
    let publisher = Publisher::new(&secured.broker.address, &BTreeMap::new()).expect("a producer");
    publisher.send(&usage, None, None, b"no usage event").expect("a record is sent");
    publisher.finish(&usage).expect("the record is written");
    let deadline = Instant::now() + PATIENCE;
    while secured.broker.read(&format!("{name}.dead_letters"), "read_committed").is_empty() {
        assert!(Instant::now() < deadline, "no dead letter");
    }
    let metrics = get(&address, "/metrics");
    assert!(metrics.contains("flopwatch_"), "{metrics}");
    assert!(!metrics.contains(PASSWORD));
    let (code, log) = running.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(PASSWORD), "in the log of run");
}

#[test]
fn scram_over_tls_works_and_its_secret_shows_nowhere() {
    let config = Secured::shared().sasl("scram", "SCRAM-SHA-512", PASSWORD);
    works("scram", &config);
}

#[test]
fn plain_over_tls_works_and_its_secret_shows_nowhere() {
    let config = Secured::shared().sasl("plain", "PLAIN", PASSWORD);
    // librdkafka's own debugging talks of every setting and every request
    let text = fs::read_to_string(&config).expect("written above");
    let text = text.replace("[kafka.client]\n", "[kafka.client]\ndebug = \"all\"\n");
    fs::write(&config, text).expect("the file can be written");
    works("plain", &config);
}

#[test]
fn tls_without_a_login_works() {
    let secured = Secured::shared();
    let config = secured.config("tls", secured.tls, "\"security.protocol\" = \"ssl\"");
    works("tls", &config);
}

/// A verb says in one line why it may not in, soon, and exits with 1.
fn is_refused(config: &Path, says: &[&str]) {
    for arguments in [&["run"][..], &["topics", "--create", "--partitions", "1"]] {
        let began = Instant::now();
        let (code, _, error) = verb(config, "warn", arguments);
        assert!(began.elapsed() < SOON, "{:?}: {error}", began.elapsed());
        assert_eq!(code, 1, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in says {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains(PASSWORD) && !error.contains(WRONG), "{error}");
    }
}

#[test]
fn a_wrong_password_is_one_line_that_does_not_say_it() {
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let name = format!("wrong-{}", mechanism.to_ascii_lowercase());
        let config = Secured::shared().sasl(&name, mechanism, WRONG);
        is_refused(&config, &["refuses the login", "sasl.password_file"]);
    }
}

#[test]
fn a_broker_of_another_authority_is_not_trusted() {
    let secured = Secured::shared();
    let config = secured.sasl("untrusted", "PLAIN", PASSWORD);
    let text = fs::read_to_string(&config).expect("written above");
    fs::write(&config, text.replace("ca.pem", "other.pem")).expect("the file can be written");
    is_refused(&config, &["certificate", "ssl.ca.location"]);
}

#[test]
fn a_plain_client_at_a_tls_port_is_told_what_to_set() {
    let secured = Secured::shared();
    let config = secured.config("unencrypted", secured.tls, "");
    is_refused(&config, &["security.protocol"]);
}

#[test]
fn a_password_file_that_is_missing_is_bad_configuration() {
    let secured = Secured::shared();
    let config = secured.sasl("missing", "PLAIN", PASSWORD);
    fs::remove_file(secured.directory.path().join("missing.secret")).expect("written above");
    let (code, _, error) = verb(&config, "warn", &["run"]);
    assert_eq!(code, 2, "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("sasl.password_file") && error.contains("missing.secret"), "{error}");
}

#[test]
fn http_is_on_loopback_unless_the_operator_says_otherwise() {
    let config = Config::from_text("empty", "").expect("defaults are valid");
    assert!(config.http_listen.ip().is_loopback(), "{}", config.http_listen);
}
