//! The golden files: one record a line in hex, with what it says above it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use flopwatch::detector::changelog::VERSION;
use flopwatch::detector::key_state::StateKey;
use flopwatch::proto;
use prost::Message;

use super::pipeline::{Positions, Topic};

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) commit: usize,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// The golden files, read.
pub(crate) struct Fixture {
    topics: BTreeMap<Topic, Vec<Entry>>,
    pub(crate) positions: Vec<Positions>,
}

impl Fixture {
    /// What a version with this format wrote.
    pub(crate) fn read(format: u8) -> Self {
        let read = |topic: Topic| (topic, parse(&golden(format, &file_of(topic))));
        let positions = golden(format, "positions.txt");
        let positions = positions.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut words = line.split_whitespace().map(|word| word.parse().ok());
            std::array::from_fn(|_| words.next().expect("four positions"))
        });
        Self { topics: Topic::ALL.into_iter().map(read).collect(), positions: positions.collect() }
    }

    pub(crate) fn entries(&self, topic: Topic) -> &[Entry] {
        &self.topics[&topic]
    }
}

/// Compares a topic of the log with its file, or writes it.
pub(crate) fn compare(topic: Topic, log: &BTreeMap<Topic, Vec<Entry>>) {
    let mut text = String::new();
    let mut commit = 0;
    for entry in &log[&topic] {
        if entry.commit != commit {
            commit = entry.commit;
            writeln!(text, "commit {commit}").expect("a string");
        }
        writeln!(text, "# {}", describe(topic, entry)).expect("a string");
        let value = entry.value.as_deref().map_or_else(|| "-".to_owned(), hex);
        let key = if entry.key.is_empty() { "-".to_owned() } else { hex(&entry.key) };
        writeln!(text, "{key} {value}").expect("a string");
    }
    compare_text(&file_of(topic), &text);
}

pub(crate) fn compare_text(name: &str, found: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path(VERSION, name), found).expect("the golden file can be written");
    }
    let expected = golden(VERSION, name);
    let first = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
    assert!(first.is_none() && expected.len() == found.len(), "{name}: {first:#?}");
}

pub(crate) fn positions_text(positions: &[Positions]) -> String {
    let mut text = "# after each commit: usage 0, usage 1, account-usage, group-usage\n".to_owned();
    for committed in positions {
        let word = |position: &Option<u64>| position.map_or("-".into(), |at| at.to_string());
        let words: Vec<String> = committed.iter().map(word).collect();
        writeln!(text, "{}", words.join(" ")).expect("a string");
    }
    text
}

/// What a changelog key stands for.
pub(crate) fn kind(topic: Topic, key: &[u8]) -> String {
    if topic == Topic::MeterState {
        return if key.len() == 4 { "head" } else { "identities" }.to_owned();
    }
    match StateKey::parse(key).expect("a key of ours") {
        StateKey::Align => "alignment".into(),
        StateKey::Head { scope, .. } => format!("head {}", char::from(scope)),
        StateKey::Slices { scope, block, .. } => {
            format!("slices {} tier {}", char::from(scope), block.tier)
        }
    }
}

/// What was sent in all. Names are numbered as they come, so the order within a step may differ;
/// and restored stages say again how far they have come, in records without sums.
pub(crate) fn sums(topic: Topic, log: &BTreeMap<Topic, Vec<Entry>>) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in &log[&topic] {
        let value = entry.value.as_deref().expect("internal records have values");
        if topic == Topic::AccountUsage {
            let usage = proto::AccountUsage::decode(value).expect("protobuf");
            if !usage.sums.is_empty() {
                lines.push(format!("{usage:?}"));
            }
            continue;
        }
        let usage = proto::GroupUsage::decode(value).expect("protobuf");
        let name = |index: u32| match index {
            0 => "",
            index => &usage.names[index as usize - 1],
        };
        for sum in &usage.sums {
            let names = [sum.key, sum.region, sum.fabric, sum.accelerator].map(name);
            let at = (usage.tag_unix_nano, sum.country, sum.tier, sum.slice_end_unix_nano);
            lines.push(format!("{at:?} {names:?} {:?}", sum.measure));
        }
        for member in &usage.memberships {
            let names = [member.key, member.account].map(name);
            let at = (usage.tag_unix_nano, member.country, member.member);
            // facts begin with the format of who wrote them
            lines.push(format!("{at:?} {names:?} {:?}", member.facts.get(1..)));
        }
    }
    if topic == Topic::GroupUsage {
        lines.sort();
    }
    lines
}

fn describe(topic: Topic, entry: &Entry) -> String {
    let value = entry.value.as_deref().unwrap_or_default();
    match topic {
        Topic::AccountUsage => {
            format!("{:?}", proto::AccountUsage::decode(value).expect("protobuf"))
        }
        Topic::GroupUsage => format!("{:?}", proto::GroupUsage::decode(value).expect("protobuf")),
        Topic::MeterState | Topic::AccountState | Topic::GroupState => {
            let key = match StateKey::parse(&entry.key) {
                Ok(StateKey::Head { key, .. } | StateKey::Slices { key, .. })
                    if topic != Topic::MeterState =>
                {
                    format!(" of {key}")
                }
                Ok(_) | Err(_) => String::new(),
            };
            let size = entry
                .value
                .as_ref()
                .map_or_else(|| "removed".to_owned(), |value| format!("{} bytes", value.len()));
            format!("{}{key}: {size}", kind(topic, &entry.key))
        }
    }
}

fn parse(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut commit = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(number) = line.strip_prefix("commit ") {
            commit = number.parse().expect("a number");
            continue;
        }
        let (key, value) = line.split_once(' ').expect("key and value");
        let key = if key == "-" { Vec::new() } else { from_hex(key) };
        let value = (value != "-").then(|| from_hex(value));
        entries.push(Entry { commit, key, value });
    }
    entries
}

fn golden(format: u8, name: &str) -> String {
    std::fs::read_to_string(path(format, name)).expect("a golden file")
}

fn file_of(topic: Topic) -> String {
    format!("{}.hex", topic.name())
}

fn path(format: u8, name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/internal");
    all.join(format!("format-{format}")).join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
    };
    digits.map(byte).collect()
}
