//! Golden records of every input format: what producers send, byte for byte, and what it means.
//!
//! `golden/input/<name>.json` or `.hex` is a record's value, `<name>.headers` its Kafka headers,
//! `<name>.toml` the `[input.fields]` that it needs. The files were not written by flopwatch's own
//! encoders. Every usage record means the same event; a change here is a change of the contract.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flopwatch::detector::decode::{self, Detected, FieldSource, Format, InputRules, Mapping};
use flopwatch::detector::directory::{AccountRecord, Country, Entry};
use flopwatch::detector::event::{Header, Kind, Record, Telemetry, UsageEvent};
use flopwatch::detector::invalid::{Invalid, Reason};
use flopwatch::detector::measure::{Measure, Peaks, measure};
use flopwatch::detector::rules::TimeRules;
use flopwatch::detector::time::{SECOND_NS, Span, Timestamp};

/// Every golden usage record, and the format that it is found to have.
const RECORDS: [(&str, Detected); 15] = [
    ("protobuf.hex", Detected::Protobuf),
    ("confluent_short.hex", Detected::Confluent),
    ("confluent_plain_count.hex", Detected::Confluent),
    ("confluent_zigzag_count.hex", Detected::Confluent),
    ("confluent_json.hex", Detected::Json),
    ("json_snake_case.json", Detected::Json),
    ("json_camel_case_strings.json", Detected::Json),
    ("json_rfc3339.json", Detected::Json),
    ("cloudevents_structured.json", Detected::CloudeventsStructured),
    ("cloudevents_structured_by_header.json", Detected::CloudeventsStructured),
    ("cloudevents_base64.json", Detected::CloudeventsStructured),
    ("cloudevents_binary_json.json", Detected::CloudeventsBinary),
    ("cloudevents_binary_protobuf.hex", Detected::CloudeventsBinary),
    ("openmeter.json", Detected::Openmeter),
    ("mapped.json", Detected::Mapped),
];

const START: Timestamp = Timestamp(1_717_200_000 * SECOND_NS);

/// The one event that every golden usage record means.
fn event() -> UsageEvent<'static> {
    UsageEvent {
        id: "evt-0001".into(),
        source: "//meter/eu-1".into(),
        account_id: "acme".into(),
        resource_id: "i-0abc".into(),
        region: "eu-west-1".into(),
        fabric_id: "fab-7".into(),
        accelerator: "NVIDIA H100 80GB HBM3".into(),
        instance_type: "p5.48xlarge".into(),
        quantity: 8.0,
        start: START,
        end: START.plus(Span::hours(1)),
        time: START.plus(Span::seconds(3605)),
        kind: Kind::Usage,
        telemetry: Telemetry {
            utilization: Some(0.93),
            tensor_active: Some(0.41),
            dram_active: Some(0.37),
            memory_used: Some(0.88),
            power_watts: Some(640.5),
            fabric_bytes: Some(1.25e12),
            external_bytes: Some(3.5e9),
        },
        precision: "bf16".into(),
    }
}

/// A record as a file has it.
struct Golden {
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
    fields: Option<Mapping>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = directory().join(name);
        let value = std::fs::read(&path).expect("a golden file");
        let value = if name.ends_with(".hex") { from_hex(&value) } else { value };
        let headers = std::fs::read_to_string(path.with_extension("headers")).unwrap_or_default();
        let headers = headers.lines().map(|line| {
            let (name, value) = line.split_once(": ").expect("name: value");
            (name.to_owned(), value.as_bytes().to_vec())
        });
        let fields = std::fs::read_to_string(path.with_extension("toml")).ok().map(|text| {
            let fields: BTreeMap<String, FieldSource> = toml::from_str(&text).expect("TOML");
            Mapping::new(fields).expect("a sound mapping")
        });
        Self { value, headers: headers.collect(), fields }
    }

    /// Decodes the record in `format` and hands the outcome to `check`.
    fn decode<T>(
        &self,
        format: Format,
        check: impl FnOnce(Result<(UsageEvent<'_>, Detected), Invalid>) -> T,
    ) -> T {
        let headers: Vec<Header<'_>> =
            self.headers.iter().map(|(name, value)| Header { name, value: Some(value) }).collect();
        let rules = InputRules { format, fields: self.fields.clone() };
        let value = Some(self.value.as_slice());
        let record = Record { offset: 0, timestamp: None, key: None, value, headers: &headers };
        check(decode::decode_as(&rules, &record))
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/input")
}

fn from_hex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
    };
    digits.chunks(2).map(byte).collect()
}

#[test]
fn every_golden_file_is_listed() {
    let mut listed: Vec<String> = RECORDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    listed.extend(ACCOUNTS.map(str::to_owned));
    listed.push("account_deleted.json".to_owned());
    listed.sort();
    let mut present: Vec<String> = std::fs::read_dir(directory())
        .expect("the directory of golden files")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.ends_with(".json") || name.ends_with(".hex"))
        .collect();
    present.sort();
    assert_eq!(listed, present);
}

#[test]
fn every_format_is_detected_and_means_the_same_event() {
    for (name, expected) in RECORDS {
        let (decoded, detected) = Golden::read(name)
            .decode(Format::Auto, |decoded| {
                decoded.map(|(decoded, detected)| (format!("{decoded:?}"), detected))
            })
            .unwrap_or_else(|invalid| panic!("{name}: {}", invalid.detail));
        assert_eq!(decoded, format!("{:?}", event()), "{name}");
        assert_eq!(detected, expected, "{name}");
    }
}

#[test]
fn every_format_can_be_pinned() {
    for (name, detected) in RECORDS {
        let format = match detected {
            Detected::Protobuf | Detected::Confluent => Format::Protobuf,
            Detected::Json => Format::Json,
            Detected::CloudeventsStructured | Detected::CloudeventsBinary => Format::Cloudevents,
            Detected::Openmeter => Format::Openmeter,
            Detected::Mapped => Format::Mapped,
        };
        Golden::read(name).decode(format, |decoded| {
            assert_eq!(decoded.map(|(decoded, _)| decoded), Ok(event()), "{name}");
        });
    }
}

#[test]
fn every_format_gives_the_same_measure() {
    // H100 SXM; computed apart from flopwatch
    let peaks = Peaks { dense16: 989.4e12, dense_max: 1978.9e12, is_cpu: false };
    let expected = Measure {
        accelerator_ms: 28_800_000,
        flop: 11_682_835_098,
        flop_allocated: 28_494_720_000,
        flop_theoretical: 56_992_320_000,
    };
    for (name, _) in RECORDS {
        Golden::read(name).decode(Format::Auto, |decoded| {
            let (event, _) = decoded.expect(name);
            let tensor_active = event.telemetry.tensor_active.expect(name);
            let length = event.end.since(event.start);
            let measured = measure(event.quantity, length, peaks, f64::from(tensor_active));
            assert_eq!(measured, expected, "{name}");
        });
    }
}

const ACCOUNTS: [&str; 3] = ["account.hex", "account_snake_case.json", "account_camel_case.json"];

#[test]
fn every_form_of_an_account_means_the_same_entry() {
    let entry = Entry {
        owner_id: "acme-group".to_owned(),
        country: Country::parse("DE"),
        incorporation_country: Country::parse("DE"),
        ultimate_parent_country: Country::parse("CN"),
        payment_country: None,
        access_ips: vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()],
        access_countries: Vec::new(),
        updated: START,
    };
    let account_id = "acme".to_owned();
    for name in ACCOUNTS {
        let decoded = decode::decode_account(Some(b"acme"), Some(&Golden::read(name).value));
        let entry = Some(entry.clone());
        assert_eq!(decoded, Ok(AccountRecord { account_id: account_id.clone(), entry }), "{name}");
    }
    let removal = Ok(AccountRecord { account_id, entry: None });
    let deleted = Golden::read("account_deleted.json").value;
    assert_eq!(decode::decode_account(None, Some(&deleted)), removal);
    assert_eq!(decode::decode_account(Some(b"acme"), None), removal);
}

/// Small and seeded: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }
}

/// What tends to break decoders.
const TOKENS: [&[u8]; 20] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"null",
    b"-1",
    b"1e999",
    b"0.",
    b"18446744073709551616",
    b"\xFF",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
    b"\0",
    b"\n",
    b"\"id\":",
    b"2024-02-30T24:00:60.9999999999+99:99",
    b"\xE2\x82",
];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).expect("a byte"),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 => {
                let until = (at + random.below(12)).min(bytes.len());
                bytes.drain(at..until);
            }
            4 => {
                let from = random.below(other.len());
                let until = (from + random.below(24)).min(other.len());
                bytes.splice(at..at, other[from..until].iter().copied());
            }
            _ => {
                let token = TOKENS[random.below(TOKENS.len())];
                bytes.splice(at..at, token.iter().copied());
            }
        }
    }
}

#[test]
fn damaged_records_are_decoded_or_refused_and_never_panic() {
    let rules = TimeRules {
        epoch: Span::seconds(300),
        lateness: Span::seconds(900),
        dedup_horizon: Span::hours(2),
        max_future: Span::seconds(600),
        max_interval: Span::days(31),
    };
    let names: Vec<&str> = RECORDS.iter().map(|(name, _)| *name).chain(ACCOUNTS).collect();
    let goldens: Vec<Golden> = names.iter().map(|name| Golden::read(name)).collect();
    let fields = goldens.iter().find_map(|golden| golden.fields.clone());
    let mut random = Random(0x5EED);
    let (mut decoded, mut refused) = (0, 0);
    for round in 0..24_000 {
        let golden = &goldens[round % goldens.len()];
        let other = &goldens[random.below(goldens.len())].value;
        let mut damaged = Golden {
            value: golden.value.clone(),
            headers: golden.headers.clone(),
            fields: if round % 2 == 0 { fields.clone() } else { golden.fields.clone() },
        };
        mutate(&mut damaged.value, other, &mut random);
        if !damaged.headers.is_empty() {
            let header = random.below(damaged.headers.len());
            if random.below(4) == 0 {
                mutate(&mut damaged.headers[header].1, other, &mut random);
            }
        }
        let format = Format::ALL[random.below(Format::ALL.len())];
        for format in [Format::Auto, format] {
            damaged.decode(format, |outcome| match outcome {
                Ok((mut event, _)) => {
                    event.telemetry.drop_impossible();
                    let valid = event.validate(&rules, Some(event.time));
                    decoded += usize::from(valid.is_ok());
                }
                Err(invalid) => {
                    assert_eq!(invalid.reason, Reason::Undecodable);
                    refused += 1;
                }
            });
        }
        if let Ok(record) = decode::decode_account(Some(b"acme"), Some(&damaged.value)) {
            assert!(!record.account_id.is_empty());
        }
    }
    // a test that refuses all it is given, or nothing, tests nothing
    assert!(decoded > 1000 && refused > 1000, "{decoded} valid, {refused} refused");
}
