//! Processes that a bench starts, and what the kernel says of them.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What the kernel counts CPU time in: a hundredth of a second on every Linux we know.
const TICKS_A_SECOND: f64 = 100.0;

/// How long a process may take to drain and end.
const END: Duration = Duration::from_secs(60);

/// CPU seconds of a process so far, user and system, all its threads.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the name before the last parenthesis may hold spaces
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = |index: usize| -> f64 {
        fields.split_whitespace().nth(index).and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    (field(11) + field(12)) / TICKS_A_SECOND
}

/// Peak resident megabytes of a process.
pub(crate) fn peak_megabytes(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    let kilobytes = line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1000.0
}

/// A child that ends with us, its standard output line by line, the rest in a log file.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    pub(crate) lines: Receiver<String>,
    pub(crate) started: Instant,
}

impl Running {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::create(log).expect("a log file");
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, log: log.to_path_buf(), lines, started }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid())
    }

    /// The next line of output within `limit`.
    pub(crate) fn line(&mut self, limit: Duration) -> String {
        match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => self.fail("says nothing"),
            Err(RecvTimeoutError::Disconnected) => self.fail("ended early"),
        }
    }

    pub(crate) fn assert_alive(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            self.fail(&format!("ended: {status}"));
        }
    }

    pub(crate) fn fail(&mut self, what: &str) -> ! {
        self.kill();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        panic!("{what}; {}:\n{}", self.log.display(), tail.join("\n"));
    }

    /// Asks it to drain and waits, then insists.
    pub(crate) fn stop(mut self) {
        let pid = self.pid().to_string();
        drop(Command::new("kill").args(["-s", "TERM", &pid]).status());
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait().expect("a child can be asked") {
                Some(status) if status.success() => return,
                Some(status) => self.fail(&format!("ended: {status}")),
                None if Instant::now() > deadline => self.fail("does not end"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn kill(&mut self) {
        // it may have ended by itself
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
