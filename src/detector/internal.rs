//! What the stages send each other: sums packed into records of bounded size, names once a record.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use prost::Message;
use prost::encoding::encode_varint;
use xxhash_rust::xxh3::xxh3_64;

use super::StageError;
use super::align::Announcement;
use super::changelog::{unzigzag, zigzag};
use super::event::NAME_LIMIT;
use super::measure::Measure;
use super::names::{NameId, Names};
use super::policy::Scope;
use super::time::Timestamp;
use super::window::Place;
use crate::proto;

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
#[derive(Debug, Default)]
struct LocalNames {
    local: HashMap<NameId, u32, FixedState>,
    texts: Vec<String>,
    bytes: usize,
}

impl LocalNames {
    /// Index 0 is the empty name and is not sent.
    fn index(&mut self, names: &Names, name: NameId) -> u32 {
        if name == NameId::EMPTY {
            return 0;
        }
        *self.local.entry(name).or_insert_with(|| {
            let text = names.text(name);
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
///
/// A sum is written as it comes: there may be one for every event. The bytes are those of
/// `proto::AccountUsage`, as a test says.
#[derive(Debug, Default)]
pub struct UsagePacker {
    input: u32,
    inputs: u32,
    gap: u64,
    names: LocalNames,
    /// The last sum's account and place, as often the next one's, and their indices.
    last: ([NameId; 4], [u32; 4]),
    sums: Vec<u8>,
    /// An entry and its measure while they are written.
    scratch: (Vec<u8>, Vec<u8>),
    /// Names and sums of the records that are full.
    full: Vec<(Vec<String>, Vec<u8>)>,
}

impl UsagePacker {
    /// Retention removed `gap` of the input's records before they were read.
    pub fn new(input: u32, inputs: u32, gap: u64) -> Self {
        Self { input, inputs, gap, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.sums.is_empty() && self.full.is_empty()
    }

    pub fn add(&mut self, names: &Names, sum: &AccountSum) {
        let Place { region, fabric, accelerator } = sum.place;
        let ids = [sum.account, region, fabric, accelerator];
        for (index, (id, last)) in self.last.1.iter_mut().zip(ids.iter().zip(self.last.0)) {
            if *id != last {
                *index = self.names.index(names, *id);
            }
        }
        self.last.0 = ids;
        self.write(sum);
        // the next entry's own names fit into what is left below Kafka's limit
        if self.sums.len() + self.names.bytes > RECORD_LIMIT - 4 * NAME_LIMIT - ENTRY_SIZE {
            self.cut();
        }
    }

    /// One entry of `AccountUsage.sums`.
    fn write(&mut self, sum: &AccountSum) {
        let Measure { accelerator_ms, flop, flop_allocated, flop_theoretical } = sum.measure;
        let values = [accelerator_ms, flop, flop_allocated, flop_theoretical].map(halves);
        let (entry, measure) = &mut self.scratch;
        entry.clear();
        measure.clear();
        for (field, index) in (1..).zip(self.last.1) {
            varint(field, u64::from(index), entry);
        }
        fixed(5, sum.tag.0, entry);
        fixed(6, sum.slice_end.0, entry);
        for (field, (low, _)) in (1..).zip(values) {
            varint(field, low, measure);
        }
        for (field, (_, high)) in (5..).zip(values) {
            varint(field, high, measure);
        }
        message(7, measure, entry);
        message(6, entry, &mut self.sums);
    }

    fn cut(&mut self) {
        self.full.push((self.names.take(), std::mem::take(&mut self.sums)));
        self.last = ([NameId::EMPTY; 4], [0; 4]);
    }

    /// The records; the last one carries the watermark and the idle flag.
    pub fn finish(mut self, watermark: Option<Timestamp>, idle: bool) -> Vec<Vec<u8>> {
        if !self.sums.is_empty() || self.full.is_empty() {
            self.cut();
        }
        let full = std::mem::take(&mut self.full);
        let last = full.len() - 1;
        let mut records = Vec::with_capacity(full.len());
        for (number, (names, sums)) in full.into_iter().enumerate() {
            let is_last = number == last;
            let head = proto::AccountUsage {
                input_partition: self.input,
                partitions: self.inputs,
                watermark_unix_nano: if is_last { watermark.unwrap_or_default().0 } else { 0 },
                idle: is_last && idle,
                names,
                sums: Vec::new(),
                gap_records: self.gap,
            };
            // the order of fields is free: sums go after the gap
            let mut record = Vec::with_capacity(head.encoded_len() + sums.len());
            head.encode(&mut record).expect("a vector has room");
            record.extend_from_slice(&sums);
            records.push(record);
        }
        records
    }
}

/// Writes protobuf fields; zeros are left out, as protobuf has it.
fn varint(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encode_varint(u64::from(field << 3), out);
        encode_varint(value, out);
    }
}

fn fixed(field: u32, value: u64, out: &mut Vec<u8>) {
    encode_varint(u64::from(field << 3 | 1), out);
    out.extend_from_slice(&value.to_le_bytes());
}

fn message(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_varint(u64::from(field << 3 | 2), out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Reads METER's record; its names join `names`.
pub fn unpack_usage(
    value: &[u8],
    names: &mut Names,
) -> Result<(Announcement, Vec<AccountSum>), StageError> {
    let record = proto::AccountUsage::decode(value).map_err(|error| unreadable(&error))?;
    let local = intern_all(&record.names, names);
    let mut sums = Vec::with_capacity(record.sums.len());
    for sum in &record.sums {
        sums.push(AccountSum {
            account: look_up(&local, sum.account)?,
            tag: instant(sum.tag_unix_nano)?,
            slice_end: slice_end(sum.slice_end_unix_nano)?,
            place: place(&local, sum.region, sum.fabric, sum.accelerator)?,
            measure: unpack(sum.measure.as_ref())?,
        });
    }
    let announcement = Announcement {
        input: record.input_partition,
        inputs: record.partitions,
        watermark: some_time(record.watermark_unix_nano)?,
        idle: record.idle,
        gap: record.gap_records,
    };
    Ok((announcement, sums))
}

/// Packs what one step of ACCOUNT's sends to one target partition.
#[derive(Debug)]
pub struct GroupPacker<'a> {
    all: &'a Names,
    names: LocalNames,
    input: u32,
    inputs: u32,
    tag: Timestamp,
    record: proto::GroupUsage,
    records: Vec<proto::GroupUsage>,
}

impl<'a> GroupPacker<'a> {
    pub fn new(input: u32, inputs: u32, tag: Timestamp, names: &'a Names) -> Self {
        let (all, names) = (names, LocalNames::default());
        let record = proto::GroupUsage::default();
        Self { all, names, input, inputs, tag, record, records: Vec::new() }
    }

    pub fn add(&mut self, sum: &GroupSum) {
        let packed = proto::GroupSum {
            country: sum.group.scope == Scope::Country,
            key: self.names.index(self.all, sum.group.name),
            region: self.names.index(self.all, sum.place.region),
            fabric: self.names.index(self.all, sum.place.fabric),
            accelerator: self.names.index(self.all, sum.place.accelerator),
            tier: sum.tier.map_or(0, |tier| u32::try_from(tier + 1).expect("few tiers")),
            slice_end_unix_nano: sum.slice_end.0,
            measure: Some(pack(&sum.measure)),
        };
        self.record.sums.push(packed);
        self.cut_when_full();
    }

    pub fn add_membership(&mut self, membership: &Membership) {
        let packed = proto::Membership {
            country: membership.group.scope == Scope::Country,
            key: self.names.index(self.all, membership.group.name),
            account: self.names.index(self.all, membership.account),
            member: membership.member,
            facts: membership.facts.clone(),
        };
        self.names.bytes += packed.facts.len();
        self.record.memberships.push(packed);
        self.cut_when_full();
    }

    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.record.sums.is_empty() || !self.record.memberships.is_empty() {
            self.cut();
        }
        self.records.iter().map(Message::encode_to_vec).collect()
    }

    fn cut_when_full(&mut self) {
        let entries = self.record.sums.len() + self.record.memberships.len();
        if entries * ENTRY_SIZE + self.names.bytes > RECORD_LIMIT - 4 * ENTRY_SIZE {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let mut record = std::mem::take(&mut self.record);
        record.input_partition = self.input;
        record.partitions = self.inputs;
        record.tag_unix_nano = self.tag.0;
        record.names = self.names.take();
        self.records.push(record);
    }
}

/// A record that only says how far an ACCOUNT partition has come.
pub fn pack_watermark(input: u32, inputs: u32, watermark: Timestamp, gap: u64) -> Vec<u8> {
    let record = proto::GroupUsage {
        input_partition: input,
        partitions: inputs,
        watermark_unix_nano: watermark.0,
        gap_records: gap,
        ..proto::GroupUsage::default()
    };
    record.encode_to_vec()
}

/// What one record of ACCOUNT's holds.
#[derive(Debug)]
pub struct GroupUsage {
    pub announcement: Announcement,
    pub tag: Timestamp,
    pub sums: Vec<GroupSum>,
    pub memberships: Vec<Membership>,
}

/// Reads ACCOUNT's record; its names join `names`.
pub fn unpack_group_usage(value: &[u8], names: &mut Names) -> Result<GroupUsage, StageError> {
    let record = proto::GroupUsage::decode(value).map_err(|error| unreadable(&error))?;
    let local = intern_all(&record.names, names);
    let group = |country: bool, key: u32| {
        let scope = if country { Scope::Country } else { Scope::Owner };
        look_up(&local, key).map(|name| GroupKey { scope, name })
    };
    let mut sums = Vec::with_capacity(record.sums.len());
    for sum in &record.sums {
        sums.push(GroupSum {
            group: group(sum.country, sum.key)?,
            place: place(&local, sum.region, sum.fabric, sum.accelerator)?,
            tier: (sum.tier as usize).checked_sub(1),
            slice_end: slice_end(sum.slice_end_unix_nano)?,
            measure: unpack(sum.measure.as_ref())?,
        });
    }
    let mut memberships = Vec::with_capacity(record.memberships.len());
    for membership in record.memberships {
        memberships.push(Membership {
            group: group(membership.country, membership.key)?,
            account: look_up(&local, membership.account)?,
            member: membership.member,
            facts: membership.facts,
        });
    }
    let announcement = Announcement {
        input: record.input_partition,
        inputs: record.partitions,
        watermark: some_time(record.watermark_unix_nano)?,
        idle: false,
        gap: record.gap_records,
    };
    Ok(GroupUsage { announcement, tag: instant(record.tag_unix_nano)?, sums, memberships })
}

fn unreadable(error: &prost::DecodeError) -> StageError {
    StageError::State(format!(
        "an internal record cannot be read ({error}): it is damaged, or a newer flopwatch wrote it"
    ))
}

fn intern_all(texts: &[String], names: &mut Names) -> Vec<NameId> {
    let interned = texts.iter().map(|text| names.intern(text));
    std::iter::once(NameId::EMPTY).chain(interned).collect()
}

fn look_up(local: &[NameId], index: u32) -> Result<NameId, StageError> {
    local.get(index as usize).copied().ok_or_else(|| {
        StageError::State("an internal record refers to a name that it does not hold".into())
    })
}

fn place(
    local: &[NameId],
    region: u32,
    fabric: u32,
    accelerator: u32,
) -> Result<Place, StageError> {
    Ok(Place {
        region: look_up(local, region)?,
        fabric: look_up(local, fabric)?,
        accelerator: look_up(local, accelerator)?,
    })
}

/// An instant that no span can carry out of range.
fn instant(unix_nano: u64) -> Result<Timestamp, StageError> {
    let instant = Timestamp(unix_nano);
    if instant > Timestamp::LIMIT { Err(damaged("an instant before 2525")) } else { Ok(instant) }
}

fn slice_end(unix_nano: u64) -> Result<Timestamp, StageError> {
    if unix_nano == 0 { Err(damaged("a slice's end")) } else { instant(unix_nano) }
}

fn some_time(unix_nano: u64) -> Result<Option<Timestamp>, StageError> {
    (unix_nano != 0).then(|| instant(unix_nano)).transpose()
}

fn damaged(expected: &str) -> StageError {
    StageError::State(format!("an internal record is damaged: {expected} expected"))
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

fn unpack(measure: Option<&proto::Measure>) -> Result<Measure, StageError> {
    let Some(measure) = measure else { return Ok(Measure::ZERO) };
    let measure = Measure {
        accelerator_ms: whole(measure.accelerator_ms, measure.accelerator_ms_high),
        flop: whole(measure.flop, measure.flop_high),
        flop_allocated: whole(measure.flop_allocated, measure.flop_allocated_high),
        flop_theoretical: whole(measure.flop_theoretical, measure.flop_theoretical_high),
    };
    if measure.is_plausible() { Ok(measure) } else { Err(damaged("a sum below 2^100")) }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 128 bits")]
const fn halves(value: i128) -> (u64, u64) {
    let value = zigzag(value);
    (value as u64, (value >> 64) as u64)
}

fn whole(low: u64, high: u64) -> i128 {
    unzigzag(u128::from(low) | (u128::from(high) << 64))
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
        let mut packer = UsagePacker::new(3, 4, 0);
        sums.iter().for_each(|sum| packer.add(&names, sum));
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
