//! What is fuzzed: one function for every decoder, from bytes to assertions.
//!
//! `make fuzz` runs them under libFuzzer; `tests/fuzz_corpus.rs` replays the corpus in CI. Whatever
//! the bytes, nothing may panic; what a decoder accepts must be fit for all that comes after it.

use std::io::Write as _;
use std::sync::{Arc, Once, OnceLock};

use flopwatch::config::Config;
use flopwatch::detector::account::Account;
use flopwatch::detector::decode::{Format, decode_account, decode_as};
use flopwatch::detector::event::{Header, Record};
use flopwatch::detector::group::Group;
use flopwatch::detector::internal::{
    AccountSum, UsagePacker, pack_watermark, unpack_group_usage, unpack_usage,
};
use flopwatch::detector::measure::Measure;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::names::Names;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::detector::window::Place;
use flopwatch::detector::{Stage, cloudevent};
use flopwatch::record_file::RecordFile;

/// A target's name, and what it does with the bytes.
pub(crate) type Target = (&'static str, fn(&[u8]));

pub(crate) const TARGETS: [Target; 14] = [
    ("auto", auto),
    ("protobuf", protobuf),
    ("json", json),
    ("cloudevents", cloudevents),
    ("openmeter", openmeter),
    ("mapped", mapped),
    ("account", account),
    ("account_usage", account_usage),
    ("group_usage", group_usage),
    ("meter_state", meter_state),
    ("account_state", account_state),
    ("group_state", group_state),
    ("record_file", record_file),
    ("config", config),
];

/// Runs one target.
pub(crate) fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.expect("a target of the list").1(data);
}

/// Every accepted event is over these.
const POLICY: &str = r#"
[[policy]]
id = "SCOPE"
version = 1
title = "Anything at all"
severity = "info"
scope = "SCOPE"
origin = "any"
window = "4h"
[[policy.all]]
metric = "flop_theoretical"
at_least = 1e-9
"#;

const MAPPING: &str = include_str!("../golden/input/mapped.toml");

/// Longer stretches of event time are right, but take a step for every epoch of them.
const STRETCH: Span = Span::days(40);

/// 2026-01-05T00:00:00Z: when state holds no time of its own.
const START: Timestamp = Timestamp(1_767_571_200_000_000_000);

fn configured(format: Format) -> &'static Config {
    static CONFIGS: OnceLock<Vec<Config>> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        let policies =
            ["account", "site", "owner", "country"].map(|scope| POLICY.replace("SCOPE", scope));
        let policies = policies.concat();
        let text = |format: Format| {
            let fields = format == Format::Mapped;
            let mapping = if fields { format!("[input.fields]\n{MAPPING}") } else { String::new() };
            format!("[input]\nformat = \"{}\"\n{mapping}{policies}", format.name())
        };
        let read =
            |format| Config::from_text("fuzz", &text(format)).expect("a sound configuration");
        Format::ALL.into_iter().map(read).collect()
    });
    let index = Format::ALL.iter().position(|known| *known == format);
    &configs[index.expect("every format is listed")]
}

fn auto(data: &[u8]) {
    usage(Format::Auto, data, &[]);
}

fn protobuf(data: &[u8]) {
    usage(Format::Protobuf, data, &[]);
}

fn json(data: &[u8]) {
    usage(Format::Json, data, &[]);
}

fn openmeter(data: &[u8]) {
    usage(Format::Openmeter, data, &[]);
}

fn mapped(data: &[u8]) {
    usage(Format::Mapped, data, &[]);
}

/// Lines `name: value` up to an empty one are headers, the rest is the value.
fn cloudevents(data: &[u8]) {
    let mut headers = Vec::new();
    let mut rest = data;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, tail) = (&rest[..end], &rest[end + 1..]);
        let Some(colon) = line.windows(2).position(|pair| pair == b": ") else {
            if line.is_empty() {
                rest = tail;
            }
            break;
        };
        let Ok(name) = std::str::from_utf8(&line[..colon]) else { break };
        headers.push(Header { name, value: Some(&line[colon + 2..]) });
        rest = tail;
    }
    usage(Format::Cloudevents, rest, &headers);
    usage(Format::Auto, rest, &headers);
}

/// One usage record, through all three stages.
fn usage(format: Format, value: &[u8], headers: &[Header<'_>]) {
    let config = configured(format);
    let record = Record { offset: 0, timestamp: None, key: None, value: Some(value), headers };
    let decoded = decode_as(&config.rules.input, &record);
    let mut meter = Meter::new(Arc::clone(&config.rules), 0, 1, 1);
    let mut outbox = Outbox::default();
    for offset in 0..2 {
        // a hostile clock stamped the second
        let timestamp = (offset == 1).then_some(Timestamp(u64::MAX));
        meter.process(&Record { offset, timestamp, ..record }, &mut outbox).expect("dead letters");
    }
    meter.seal(&mut outbox);
    let tally = outbox.tally.clone();
    assert_eq!(tally.read, tally.counted + tally.duplicate + tally.dead_letter_total());
    assert!(decoded.is_ok() || tally.counted == 0);
    assert!(tally.counted < 2, "the second is a duplicate, or by the first's time too old");
    let mut restored = Meter::new(Arc::clone(&config.rules), 0, 1, 1);
    restore(&mut restored, &outbox);
    assert_eq!(restored.stream_time(), meter.stream_time());
    let mut again = [Outbox::default(), Outbox::default()];
    for (stage, outbox) in [&mut meter, &mut restored].into_iter().zip(&mut again) {
        stage.process(&record, outbox).expect("dead letters");
    }
    assert_eq!(again[0].tally, again[1].tally, "a restored stage does as the live one");
    downstream(config, outbox, meter.stream_time());
}

/// What METER sent is sound: no stage refuses it, whatever the event said.
fn downstream(config: &Config, outbox: Outbox, stream_time: Option<Timestamp>) {
    let (rules, policies) = (&config.rules, &config.policies);
    let mut account = Account::new(Arc::clone(rules), Arc::clone(policies), 0, 1);
    let mut group = Group::new(Arc::clone(rules), Arc::clone(policies));
    let sent = feed(&mut account, outbox);
    let sent = [
        sent,
        finished(|outbox| {
            if let Some(last) = stream_time {
                account.finish(last, outbox);
            }
            account.seal(outbox);
        }),
    ];
    for outbox in sent {
        alerts(&outbox);
        alerts(&feed(&mut group, outbox));
    }
    alerts(&finished(|outbox| {
        if let Some(last) = stream_time {
            group.finish(last, outbox).expect("sound sums");
        }
        group.seal(outbox);
    }));
}

/// Feeds what one stage forwarded to the next.
fn feed(stage: &mut impl Stage, outbox: Outbox) -> Outbox {
    finished(|out| {
        let values = outbox.outputs.into_iter().filter_map(forwarded);
        for (offset, value) in (0..).zip(values) {
            stage.process(&internal(offset, &value), out).expect("our own record");
        }
        stage.seal(out);
    })
}

fn finished(fill: impl FnOnce(&mut Outbox)) -> Outbox {
    let mut outbox = Outbox::default();
    fill(&mut outbox);
    outbox
}

fn forwarded(output: Output) -> Option<Vec<u8>> {
    match output {
        Output::Forward { value, .. } => Some(value),
        Output::Change { .. } | Output::Alert(_) | Output::DeadLetter(_) => None,
    }
}

fn internal(offset: u64, value: &[u8]) -> Record<'_> {
    Record { offset, timestamp: None, key: None, value: Some(value), headers: &[] }
}

fn alerts(outbox: &Outbox) {
    for output in &outbox.outputs {
        if let Output::Alert(alert) = output {
            cloudevent::structured(alert);
        }
    }
}

/// What a stage logged, it reads.
fn restore(stage: &mut impl Stage, outbox: &Outbox) {
    for output in &outbox.outputs {
        if let Output::Change { key, value } = output {
            stage.restore(key, value.as_deref()).expect("our own state");
        }
    }
}

fn account(data: &[u8]) {
    let config = configured(Format::Auto);
    let mut stage = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    for key in [None, Some(&b"a"[..])] {
        if let Ok(record) = decode_account(key, Some(data)) {
            stage.directory(&record);
        }
    }
    decode_account(Some(data), None).map(drop).unwrap_or_default();
    // the facts take effect with the account's first sum
    let value = usage_of("a");
    let outbox = finished(|outbox| {
        let mut meter = Meter::new(Arc::clone(&config.rules), 0, 1, 1);
        meter.process(&internal(0, value.as_bytes()), outbox).expect("counted");
        meter.seal(outbox);
    });
    let outbox = feed(&mut stage, outbox);
    let mut restored = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    restore(&mut restored, &outbox);
}

fn usage_of(account: &str) -> String {
    let (from, until) = (START.0, START.plus(Span::hours(1)).0);
    format!(
        r#"{{"id":"1","source":"s","account_id":"{account}","accelerator":"h100","quantity":8,
        "start_time_unix_nano":{from},"end_time_unix_nano":{until}}}"#
    )
}

fn account_usage(data: &[u8]) {
    let Ok((said, sums)) = unpack_usage(data, &mut Names::default()) else { return };
    let times = sums.iter().map(|sum| sum.tag).chain(said.watermark);
    if is_long(times) {
        return;
    }
    let config = configured(Format::Auto);
    let mut stage = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    let mut outbox = Outbox::default();
    for offset in 0..2 {
        if stage.process(&internal(offset, data), &mut outbox).is_err() {
            return;
        }
    }
    stage.seal(&mut outbox);
    alerts(&outbox);
    let mut restored = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    restore(&mut restored, &outbox);
    let mut group = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
    feed(&mut group, outbox);
}

fn group_usage(data: &[u8]) {
    let Ok(usage) = unpack_group_usage(data, &mut Names::default()) else { return };
    let has_entries = !usage.sums.is_empty() || !usage.memberships.is_empty();
    if is_long(has_entries.then_some(usage.tag).into_iter().chain(usage.announcement.watermark)) {
        return;
    }
    let config = configured(Format::Auto);
    let mut stage = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
    let mut outbox = Outbox::default();
    for offset in 0..2 {
        if stage.process(&internal(offset, data), &mut outbox).is_err() {
            return;
        }
    }
    stage.seal(&mut outbox);
    alerts(&outbox);
    let mut restored = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
    restore(&mut restored, &outbox);
}

fn is_long(times: impl Iterator<Item = Timestamp> + Clone) -> bool {
    match (times.clone().min(), times.max()) {
        (Some(first), Some(last)) => last.since(first) > STRETCH,
        (None, _) | (_, None) => false,
    }
}

/// Restores a stage from changelog records: one byte of the key's length, the key, two bytes of
/// the value's length (65535: a tombstone), the value. False if it refuses one.
fn restored(stage: &mut impl Stage, mut data: &[u8]) -> bool {
    while let Some((&length, rest)) = data.split_first() {
        let Some((key, rest)) = rest.split_at_checked(usize::from(length)) else { break };
        let Some((length, rest)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes(*length));
        let tombstone = length == usize::from(u16::MAX);
        let (value, rest) = rest.split_at(if tombstone { 0 } else { length.min(rest.len()) });
        if stage.restore(key, (!tombstone).then_some(value)).is_err() {
            return false;
        }
        data = rest;
    }
    true
}

/// State that is accepted is fit to go on with.
fn meter_state(data: &[u8]) {
    let config = configured(Format::Auto);
    let mut stage = Meter::new(Arc::clone(&config.rules), 0, 1, 1);
    if !restored(&mut stage, data) {
        return;
    }
    let mut outbox = Outbox::default();
    let value = usage_of("a");
    stage.process(&internal(0, value.as_bytes()), &mut outbox).expect("counted or a dead letter");
    stage.seal(&mut outbox);
    let mut again = Meter::new(Arc::clone(&config.rules), 0, 1, 1);
    restore(&mut again, &outbox);
}

fn account_state(data: &[u8]) {
    let config = configured(Format::Auto);
    let mut stage = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    if !restored(&mut stage, data) {
        return;
    }
    let next = stage.watermark().unwrap_or(START).plus(Span::hours(2));
    let mut names = Names::default();
    let sum = AccountSum {
        account: names.intern("a"),
        tag: next.minus(Span::hours(1)),
        slice_end: next.floor(Span::hours(1)),
        place: Place::default(),
        measure: Measure { flop: 1, ..Default::default() },
    };
    let mut packer = UsagePacker::new(0, 1, 0);
    packer.add(&names, &sum);
    let mut outbox = Outbox::default();
    for (offset, value) in (1 << 40..).zip(packer.finish(Some(next), false)) {
        if stage.process(&internal(offset, &value), &mut outbox).is_err() {
            return;
        }
    }
    stage.seal(&mut outbox);
    alerts(&outbox);
    let mut again = Account::new(Arc::clone(&config.rules), Arc::clone(&config.policies), 0, 1);
    restore(&mut again, &outbox);
}

fn group_state(data: &[u8]) {
    let config = configured(Format::Auto);
    let mut stage = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
    if !restored(&mut stage, data) {
        return;
    }
    let next = stage.watermark().unwrap_or(START).plus(Span::hours(2));
    let value = pack_watermark(0, 1, next, 0);
    let mut outbox = Outbox::default();
    if stage.process(&internal(1 << 40, &value), &mut outbox).is_err() {
        return;
    }
    stage.seal(&mut outbox);
    alerts(&outbox);
    let mut again = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
    restore(&mut again, &outbox);
}

/// The first byte chooses the file's name, the rest is the file. Files end or are refused.
fn record_file(data: &[u8]) {
    const ENDINGS: [&str; 10] = [
        "",
        ".ndjson",
        ".pb",
        ".gz",
        ".zst",
        ".ndjson.gz",
        ".ndjson.zst",
        ".pb.gz",
        ".pb.zst",
        ".parquet",
    ];
    let Some((choice, data)) = data.split_first() else { return };
    // libFuzzer aborts at every panic, but those of the Parquet library are caught by our reader
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let ending = ENDINGS[usize::from(*choice) % ENDINGS.len()];
    let mut file = tempfile::Builder::new().suffix(ending).tempfile().expect("a temporary file");
    file.write_all(data).expect("it can be written");
    let Ok(mut records) = RecordFile::open(file.path()) else { return };
    let mut last = 0;
    while let Ok(Some(record)) = records.next() {
        assert!(record.number > last, "records are numbered upwards");
        last = record.number;
    }
}

/// A configuration is refused, or its effective form says the same again.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // no file of the machine is to be read
    if text.contains("file") || text.contains("policies") || text.contains("geoip") {
        return;
    }
    if let Ok(config) = Config::from_text("fuzz", text) {
        let effective = config.effective();
        assert!(!effective.is_empty());
    }
}
