//! What the stages send each other: sums packed into records of bounded size, names once a record.

mod group;
mod read;
mod wire;

use std::collections::HashMap;

use foldhash::fast::FixedState;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::changelog::zigzag;
use super::measure::Measure;
use super::names::{NameId, Names};
use super::policy::Scope;
use super::time::Timestamp;
use super::window::Place;
use crate::proto;

pub use group::{GroupPacker, pack_watermark};
pub use read::{GroupUsage, unpack_group_usage, unpack_usage};

/// Largest internal record: well below Kafka's default limit of 1 MiB.
const RECORD_LIMIT: usize = 512 * 1024;
/// More than any sum or membership takes without its names.
const ENTRY_SIZE: usize = 192;

/// The partition that a key belongs to, the same in every version.
pub fn partition_of(key: &str, partitions: u32) -> u32 {
    let partition = xxh3_64(key.as_bytes()) % u64::from(partitions);
    u32::try_from(partition).expect("less than a u32")
}

/// One sum of METER's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountSum {
    pub account: NameId,
    pub tag: Timestamp,
    pub slice_end: Timestamp,
    pub place: Place,
    pub measure: Measure,
}

impl AccountSum {
    /// What tells it from sums that it can be added to.
    pub fn adds_to(&self) -> (NameId, Timestamp, Place) {
        (self.account, self.slice_end, self.place)
    }
}

/// One sum of ACCOUNT's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSum {
    pub group: GroupKey,
    pub place: Place,
    /// `None`: every tier that still keeps the slice. Else one tier alone: a moved slice.
    pub tier: Option<usize>,
    pub slice_end: Timestamp,
    pub measure: Measure,
}

/// An owner or a country.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    pub scope: Scope,
    pub name: NameId,
}

/// An account joins or leaves a group; its encoded facts are for owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub group: GroupKey,
    pub account: NameId,
    pub member: bool,
    pub facts: Vec<u8>,
}

/// Names of one record, numbered as they first occur.
#[derive(Debug)]
struct LocalNames<'a> {
    names: &'a Names,
    local: HashMap<NameId, u32, FixedState>,
    texts: Vec<String>,
    bytes: usize,
}

impl<'a> LocalNames<'a> {
    fn new(names: &'a Names) -> Self {
        let local = HashMap::with_hasher(FixedState::default());
        Self { names, local, texts: Vec::new(), bytes: 0 }
    }

    /// Index 0 is the empty name and is not sent.
    fn index(&mut self, name: NameId) -> u32 {
        if name == NameId::EMPTY {
            return 0;
        }
        *self.local.entry(name).or_insert_with(|| {
            let text = self.names.text(name);
            self.bytes += text.len() + 4;
            self.texts.push(text.to_owned());
            u32::try_from(self.texts.len()).expect("bounded by the record's size")
        })
    }

    fn take(&mut self) -> Vec<String> {
        self.local.clear();
        self.bytes = 0;
        std::mem::take(&mut self.texts)
    }
}

/// Packs METER's sums for one target partition.
#[derive(Debug)]
pub struct UsagePacker<'a> {
    names: LocalNames<'a>,
    input: u32,
    inputs: u32,
    sums: Vec<proto::AccountSum>,
    records: Vec<proto::AccountUsage>,
    gap: u64,
}

impl<'a> UsagePacker<'a> {
    pub fn new(input: u32, inputs: u32, names: &'a Names) -> Self {
        let names = LocalNames::new(names);
        Self { names, input, inputs, sums: Vec::new(), records: Vec::new(), gap: 0 }
    }

    /// Retention removed this many of the input's records before they were read.
    pub fn mark_gap(&mut self, records: u64) {
        self.gap = records;
    }

    pub fn add(&mut self, sum: &AccountSum) {
        let packed = proto::AccountSum {
            account: self.names.index(sum.account),
            region: self.names.index(sum.place.region),
            fabric: self.names.index(sum.place.fabric),
            accelerator: self.names.index(sum.place.accelerator),
            tag_unix_nano: sum.tag.0,
            slice_end_unix_nano: sum.slice_end.0,
            measure: Some(pack(&sum.measure)),
        };
        self.sums.push(packed);
        // the next entry's own names fit into what is left below Kafka's limit
        if self.sums.len() * ENTRY_SIZE + self.names.bytes > RECORD_LIMIT - 4 * ENTRY_SIZE {
            self.cut();
        }
    }

    /// The records; the last one carries the watermark and the idle flag.
    pub fn finish(mut self, watermark: Option<Timestamp>, idle: bool) -> Vec<Vec<u8>> {
        if !self.sums.is_empty() || self.records.is_empty() {
            self.cut();
        }
        let last = self.records.last_mut().expect("at least one record");
        last.watermark_unix_nano = watermark.unwrap_or_default().0;
        last.idle = idle;
        self.records.iter().map(Message::encode_to_vec).collect()
    }

    fn cut(&mut self) {
        self.records.push(proto::AccountUsage {
            input_partition: self.input,
            partitions: self.inputs,
            watermark_unix_nano: 0,
            idle: false,
            gap_records: self.gap,
            names: self.names.take(),
            sums: std::mem::take(&mut self.sums),
        });
    }
}

fn pack(measure: &Measure) -> proto::Measure {
    let (accelerator_ms, accelerator_ms_high) = halves(measure.accelerator_ms);
    let (flop, flop_high) = halves(measure.flop);
    let (flop_allocated, flop_allocated_high) = halves(measure.flop_allocated);
    let (flop_theoretical, flop_theoretical_high) = halves(measure.flop_theoretical);
    proto::Measure {
        accelerator_ms,
        flop,
        flop_allocated,
        flop_theoretical,
        accelerator_ms_high,
        flop_high,
        flop_allocated_high,
        flop_theoretical_high,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 128 bits")]
const fn halves(value: i128) -> (u64, u64) {
    let value = zigzag(value);
    (value as u64, (value >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_128_bits_survive_and_records_stay_bounded() {
        let mut names = Names::default();
        let place = Place {
            region: names.intern("eu-1"),
            fabric: NameId::EMPTY,
            accelerator: names.intern("nvidia-h100-sxm"),
        };
        let sums: Vec<AccountSum> = (0..20_000)
            .map(|number| AccountSum {
                account: names.intern(&format!("account-{number}")),
                tag: Timestamp(300),
                slice_end: Timestamp(3600),
                place,
                measure: Measure {
                    flop: -(i128::from(u64::MAX) << 20) - i128::from(number),
                    accelerator_ms: i128::from(number),
                    ..Measure::ZERO
                },
            })
            .collect();
        let mut packer = UsagePacker::new(3, 4, &names);
        sums.iter().for_each(|sum| packer.add(sum));
        let records = packer.finish(Some(Timestamp(600)), true);
        assert!(records.len() > 1);
        assert!(records.iter().all(|record| record.len() <= RECORD_LIMIT));

        let mut read = Vec::new();
        let mut watermarks = Vec::new();
        for record in &records {
            let (announcement, sums) = unpack_usage(record, &mut names).expect("own record");
            assert_eq!((announcement.input, announcement.inputs), (3, 4));
            watermarks.push((announcement.watermark, announcement.idle));
            read.extend(sums);
        }
        assert_eq!(read, sums);
        assert_eq!(watermarks.pop(), Some((Some(Timestamp(600)), true)));
        assert!(watermarks.iter().all(|said| *said == (None, false)));
    }

    #[test]
    fn keys_keep_their_partition_in_every_version() {
        let partitions: Vec<u32> =
            ["a", "b", "account-1", ""].map(|key| partition_of(key, 16)).into();
        assert_eq!(partitions, [15, 15, 10, 2]);
    }
}
