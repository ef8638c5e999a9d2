//! Processes of the program that come, go, die and stand still, each under a name of its own.

#![allow(dead_code, reason = "each binary that tests with it uses a part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a process may take to drain on a busy machine.
const DRAIN: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The processes of one deployment.
pub(crate) struct Fleet {
    directory: TempDir,
    members: Vec<Member>,
    /// Why processes have ended by themselves and were started again, as a supervisor does.
    pub(crate) ended: Vec<String>,
}

struct Member {
    configuration: PathBuf,
    log: PathBuf,
    /// Where in the log the present process begins.
    began: usize,
    /// `None` while it is not wanted.
    child: Option<Child>,
}

impl Fleet {
    /// `configurations` are those of the members, by number; none is started.
    pub(crate) fn new(configurations: &[String]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let members = configurations.iter().enumerate().map(|(number, text)| {
            let configuration = directory.path().join(format!("{number}.toml"));
            fs::write(&configuration, text).expect("the file can be written");
            let log = directory.path().join(format!("{number}.log"));
            Member { configuration, log, began: 0, child: None }
        });
        let members = members.collect();
        Self { directory, members, ended: Vec::new() }
    }

    pub(crate) fn start(&mut self, number: usize) {
        self.start_with(number, &[]);
    }

    /// Starts a member with more arguments.
    pub(crate) fn start_with(&mut self, number: usize, arguments: &[&str]) {
        let member = &mut self.members[number];
        member.began = read(&member.log).len();
        let log = File::options().create(true).append(true).open(&member.log).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
            .args(["run", "--config"])
            .arg(&member.configuration)
            .args(arguments)
            .env("FLOPWATCH_LOG", "json")
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        member.child = Some(child);
    }

    /// The numbers of those that should be running.
    pub(crate) fn running(&self) -> Vec<usize> {
        let members = self.members.iter().enumerate();
        members.filter(|(_, member)| member.child.is_some()).map(|(number, _)| number).collect()
    }

    pub(crate) fn signal(&self, number: usize, name: &str) {
        let child = self.members[number].child.as_ref().expect("a running member");
        let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) fn kill(&mut self, number: usize) {
        let mut child = self.members[number].child.take().expect("a running member");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Tells a member to drain, and waits for it.
    pub(crate) fn terminate(&mut self, number: usize) {
        self.signal(number, "TERM");
        let status = self.await_end(number, DRAIN);
        assert_eq!(status.code(), Some(0), "SIGTERM drains: {}", self.tail(number));
    }

    pub(crate) fn await_end(&mut self, number: usize, patience: Duration) -> ExitStatus {
        let mut child = self.members[number].child.take().expect("a running member");
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                return status;
            }
            if Instant::now() >= deadline {
                child.kill().unwrap_or_default();
                panic!("member {number} does not end: {}", self.tail(number));
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// Lets time pass: how long a fault lasts is part of the fault.
    pub(crate) fn hold(&mut self, length: Duration) {
        let until = Instant::now() + length;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.tend();
            std::thread::park_timeout(left.min(LOOK));
        }
    }

    /// Starts again whoever has ended for a reason that a fault explains, and fails for another.
    pub(crate) fn tend(&mut self) {
        for number in self.running() {
            let child = self.members[number].child.as_mut().expect("it runs");
            let Some(status) = child.try_wait().expect("a child can be asked") else { continue };
            let tail = self.tail(number);
            let last = tail.lines().last().unwrap_or_default().to_owned();
            let member = &self.members[number];
            let started = read(&member.log)[member.began..].contains("\"message\":\"starting\"");
            let explained = last.starts_with("error: fenced: ")
                || last.starts_with("error: kafka: ") && !started;
            assert!(explained && status.code() == Some(1), "member {number}, {status}: {tail}");
            self.ended.push(last);
            self.start(number);
        }
    }

    /// The last lines of a member's log.
    pub(crate) fn tail(&self, number: usize) -> String {
        let log = read(&self.members[number].log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The last line of a member's log that holds the text.
    pub(crate) fn line(&self, number: usize, text: &str) -> Option<String> {
        let log = read(&self.members[number].log);
        log.lines().rfind(|line| line.contains(text)).map(str::to_owned)
    }

    /// Whether a line of a member's log holds the text.
    pub(crate) fn has_logged(&self, number: usize, text: &str) -> bool {
        let log = read(&self.members[number].log);
        log.lines().any(|line| line.contains(text))
    }

    /// Waits until a member has logged this.
    pub(crate) fn await_line(&mut self, number: usize, text: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.has_logged(number, text) {
            assert!(Instant::now() < deadline, "no {text:?}: {}", self.tail(number));
            self.tend();
            std::thread::park_timeout(LOOK);
        }
    }

    /// How many lines the present process of a member has logged.
    pub(crate) fn said(&self, number: usize) -> usize {
        self.log_of_process(number).lines().count()
    }

    /// Waits until the present process of a member has logged a message after so many lines.
    pub(crate) fn await_message(
        &self,
        number: usize,
        said: usize,
        message: &str,
        patience: Duration,
    ) -> bool {
        let wanted = format!("\"message\":\"{message}\"");
        let deadline = Instant::now() + patience;
        while !self.log_of_process(number).lines().skip(said).any(|line| line.contains(&wanted)) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::park_timeout(LOOK / 5);
        }
        true
    }

    /// How many tasks the present process of a member runs, by what it has logged.
    pub(crate) fn tasks(&self, number: usize) -> u64 {
        let mut tasks = BTreeMap::new();
        for line in self.log_of_process(number).lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let worker = line["worker"].as_u64();
            match line["message"].as_str() {
                Some("running") => drop(tasks.insert(worker, line["tasks"].as_u64().unwrap_or(0))),
                Some("revoked" | "assigned" | "aborted" | "trouble") => drop(tasks.remove(&worker)),
                Some(_) | None => {}
            }
        }
        tasks.values().sum()
    }

    fn log_of_process(&self, number: usize) -> String {
        let member = &self.members[number];
        read(&member.log).split_off(member.began)
    }

    pub(crate) fn pid(&self, number: usize) -> u32 {
        self.members[number].child.as_ref().expect("a running member").id()
    }
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // after a failed assertion; gone already otherwise
                child.kill().unwrap_or_default();
                child.wait().map(drop).unwrap_or_default();
            }
        }
        if std::thread::panicking() {
            // what the processes said is evidence
            let kept = std::env::temp_dir().join(format!("flopwatch-chaos-{}", std::process::id()));
            fs::create_dir_all(&kept).unwrap_or_default();
            for member in &self.members {
                let name = member.log.file_name().expect("logs are files");
                fs::copy(&member.log, kept.join(name)).map(drop).unwrap_or_default();
            }
            eprintln!("logs of {} in {}", self.directory.path().display(), kept.display());
        }
    }
}
