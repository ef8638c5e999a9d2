//! `flopwatch demo`: the service over the in-process mock of Kafka, as a newcomer runs it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use flopwatch::cli::demo::plan;
use flopwatch::config::Config;
use flopwatch::detector::alert::Alert;
use flopwatch::detector::cloudevent::structured;
use flopwatch::detector::decode::decode_account;
use flopwatch::detector::directory::AccountRecord;
use flopwatch::detector::outbox::DeadLetter;
use flopwatch::detector::policy::Mode;
use flopwatch::error::Fatal;
use flopwatch::record_file::Format;
use flopwatch::replay::{Sink, Source, replay};
use flopwatch::simulate::Cloud;
use flopwatch::simulate::encode::{encode_account, encode_event};

/// Long enough for three days of 512 accelerators, and for a run of 1e23 FLOP.
const DAYS: u32 = 4;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    command.arg("demo").args(arguments).env_remove("RUST_LOG").env_remove("FLOPWATCH_LOG");
    command
}

/// One partition in memory.
struct Partition(Vec<Vec<u8>>, usize);

impl Source for Partition {
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal> {
        self.1 += 1;
        Ok(self.0.get(self.1 - 1).map(|value| (self.1 as u64, value.as_slice())))
    }
}

#[derive(Default)]
struct Live(Vec<Alert>);

impl Sink for Live {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        if alert.policy.mode == Mode::Live {
            self.0.push(alert.clone());
        }
        Ok(())
    }

    fn dead_letter(&mut self, _source: usize, letter: &DeadLetter) -> Result<(), Fatal> {
        panic!("the demo's cloud sends nothing invalid: {:?}", letter.invalid);
    }
}

/// What a replay says of the same cloud. It judges the last slice too, which the service leaves
/// open until usage goes on.
fn replayed() -> Vec<String> {
    let config = Config::from_text("test", "").expect("the defaults");
    let mut cloud = Cloud::new(plan(1, DAYS)).expect("a sound plan");
    let end = cloud.plan().start.plus(cloud.plan().span);
    let listed = cloud.tenants().iter().filter(|tenant| !tenant.unlisted);
    let accounts: Vec<AccountRecord> = listed
        .map(|tenant| {
            let mut bytes = Vec::new();
            encode_account(&tenant.entry, Format::Delimited, &mut bytes);
            decode_account(None, Some(&bytes)).expect("an account")
        })
        .collect();
    let mut partitions: Vec<Vec<Vec<u8>>> = vec![Vec::new(); cloud.plan().partitions as usize];
    while let Some(sent) = cloud.next() {
        let mut bytes = Vec::new();
        encode_event(&sent.event, Format::Delimited, &mut bytes);
        partitions[sent.partition as usize].push(bytes);
    }
    let sources = partitions.into_iter().map(|values| Box::new(Partition(values, 0)) as _);
    let mut live = Live::default();
    replay(&config.rules, &config.policies, &accounts, sources.collect(), &mut live)
        .expect("a replay");
    let judged = live.0.iter().filter(|alert| alert.at < end);
    let text = |alert| String::from_utf8(structured(alert).value).expect("JSON is UTF-8");
    let mut lines: Vec<String> = judged.map(text).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn the_demo_gives_the_alerts_of_a_replay_byte_for_byte_and_prints_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("alerts.ndjson");
    let (days, file_name) = (DAYS.to_string(), file.to_str().expect("UTF-8"));
    let output = demo(&["--speed", "1000", "--days", &days, "--alerts", file_name])
        .output()
        .expect("the program starts");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "only what is for people");

    let text = std::fs::read_to_string(&file).expect("alerts");
    let mut alerts: Vec<String> = text.lines().map(str::to_owned).collect();
    alerts.sort_unstable();
    let expected = replayed();
    assert!(expected.len() > 20, "{} alerts", expected.len());
    assert_eq!(alerts.len(), expected.len(), "{printed}");
    assert_eq!(alerts, expected);

    let row = |scenario: &str| {
        let mut lines = printed.lines().map(str::trim_start);
        lines.find(|line| line.starts_with(scenario)).expect("a row of the summary")
    };
    for (scenario, policy) in [
        ("background ", "none"),
        ("steady-training ", "foreign-512-for-72h, foreign-run-1e23"),
        ("inference ", "none"),
        ("split-accounts ", "foreign-run-1e23"),
        ("split-regions ", "foreign-512-for-72h"),
        ("subsidiary ", "foreign-512-for-72h"),
        ("reseller ", "unknown-origin-64-for-24h"),
        ("below-threshold ", "none"),
    ] {
        assert!(row(scenario).contains(policy), "{scenario}: {}", row(scenario));
    }
    assert!(printed.contains("CN by ultimate parent, foreign"), "{printed}");
}

#[test]
fn an_interrupt_ends_the_demo_with_a_summary() {
    let mut child = demo(&["--days", "400"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut await_line = |wanted: &str| {
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(wanted));
        assert!(found, "the output ends without {wanted:?}");
    };
    await_line("WARNING");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.expect("kill is there").success());
    await_line("Interrupted");
    await_line("alerts fired");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
