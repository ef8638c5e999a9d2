//! A partition of the `fleet` workload in memory, in every input format.

#![allow(dead_code, reason = "each bench uses a part")]

use flopwatch::detector::event::{Header, Record, UsageEvent};
use flopwatch::detector::time::{SECOND_NS, Span, Timestamp};
use flopwatch::record_file::Format;
use flopwatch::simulate::encode::encode_event;
use flopwatch::simulate::{Cloud, KeyBy, Plan};
use serde_json::{Value, json};

const START: Timestamp = Timestamp(1_767_571_200 * SECOND_NS);

/// How events stand in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Protobuf,
    Json,
    CloudeventsStructured,
    CloudeventsBinary,
    Openmeter,
}

impl Wire {
    pub(crate) const ALL: [Self; 5] = [
        Self::Protobuf,
        Self::Json,
        Self::CloudeventsStructured,
        Self::CloudeventsBinary,
        Self::Openmeter,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "protobuf",
            Self::Json => "json",
            Self::CloudeventsStructured => "cloudevents_structured",
            Self::CloudeventsBinary => "cloudevents_binary",
            Self::Openmeter => "openmeter",
        }
    }
}

/// Records handed out together.
const GROUP: usize = 32;

/// Records one after the other in one buffer, as a consumer's batches lie in memory.
#[derive(Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Values of the headers of `HEADERS`, for each record, when there are any.
    headers: Vec<Vec<Vec<u8>>>,
}

const HEADERS: [&str; 6] =
    ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type"];

/// About `events` records of `accounts` accounts, metered every 5 minutes for so many intervals.
pub(crate) fn fleet(wire: Wire, events: u64, accounts: u32, intervals: u64) -> Records {
    let plan = Plan {
        seed: 1,
        start: START,
        span: Span::seconds(300 * intervals),
        interval: Span::seconds(300),
        partitions: 1,
        key: KeyBy::Account,
        accounts,
        resources: u32::try_from(events * 100 / 101 / intervals).expect("a few million"),
        scenarios: Vec::new(),
        constant: true,
        duplicates_per_million: 10_000,
        disorder: Span::seconds(120),
    };
    let mut cloud = Cloud::new(plan).expect("a sound plan");
    let mut records = Records::default();
    while let Some(sent) = cloud.next() {
        records.push(wire, &sent.event);
    }
    records
}

impl Records {
    fn push(&mut self, wire: Wire, event: &UsageEvent<'_>) {
        let mut bytes = Vec::new();
        match wire {
            Wire::Protobuf => encode_event(event, Format::Delimited, &mut bytes),
            Wire::Json => encode_event(event, Format::Lines, &mut bytes),
            Wire::CloudeventsBinary => {
                encode_event(event, Format::Delimited, &mut bytes);
                let time = event.time.to_string();
                let values = ["1.0", &event.id, &event.source, "gpu.usage", &time];
                let mut values = values.map(|value| value.as_bytes().to_vec()).to_vec();
                values.push(b"application/protobuf".to_vec());
                self.headers.push(values);
            }
            Wire::CloudeventsStructured => {
                let envelope = json!({
                    "specversion": "1.0",
                    "type": "gpu.usage",
                    "id": &*event.id,
                    "source": &*event.source,
                    "subject": &*event.account_id,
                    "time": event.time.to_string(),
                    "datacontenttype": "application/json",
                    "data": data(event),
                });
                bytes = serde_json::to_vec(&envelope).expect("JSON");
            }
            Wire::Openmeter => {
                let flat = json!({
                    "id": &*event.id,
                    "type": "gpu.usage",
                    "source": &*event.source,
                    "subject": &*event.account_id,
                    "time": event.time.0 / SECOND_NS,
                    "data": data(event).to_string(),
                });
                bytes = serde_json::to_vec(&flat).expect("JSON");
            }
        }
        self.bytes.extend_from_slice(&bytes);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn len(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Hands out the records in order, a group at a time as a partition's queue does.
    pub(crate) fn groups(&self, mut take: impl FnMut(&[Record<'_>])) {
        let mut first = 0;
        let mut begin = 0;
        for ends in self.ends.chunks(GROUP) {
            let headers: Vec<Vec<Header<'_>>> =
                (first..first + ends.len()).map(|index| self.headers_of(index)).collect();
            let record = |(index, &end): (usize, &usize)| {
                let value = Some(&self.bytes[begin..end]);
                begin = end;
                let offset = (first + index) as u64;
                Record { offset, timestamp: None, key: None, value, headers: &headers[index] }
            };
            let records: Vec<Record<'_>> = ends.iter().enumerate().map(record).collect();
            take(&records);
            first += ends.len();
        }
    }

    fn headers_of(&self, index: usize) -> Vec<Header<'_>> {
        let values = self.headers.get(index).map_or(&[][..], Vec::as_slice);
        let named = HEADERS.iter().zip(values);
        named.map(|(name, value)| Header { name, value: Some(value) }).collect()
    }
}

/// The event without what its envelope says.
fn data(event: &UsageEvent<'_>) -> Value {
    let mut bytes = Vec::new();
    encode_event(event, Format::Lines, &mut bytes);
    let mut value: Value = serde_json::from_slice(&bytes).expect("our own JSON");
    let fields = value.as_object_mut().expect("an object");
    for name in ["id", "source", "account_id", "time_unix_nano"] {
        fields.remove(name);
    }
    value
}
