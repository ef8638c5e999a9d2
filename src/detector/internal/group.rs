//! Packs what ACCOUNT sends to GROUP. The bytes are those of `proto::GroupUsage`, as a test says.

use super::super::names::Names;
use super::super::policy::Scope;
use super::super::time::Timestamp;
use super::wire::{LocalNames, put_bytes, put_fixed, put_measure, put_varint};
use super::{ENTRY_SIZE, GroupSum, Membership, RECORD_LIMIT};

/// Packs what one step of ACCOUNT's sends to one target partition: each entry as it comes.
#[derive(Debug)]
pub struct GroupPacker<'a> {
    all: &'a Names,
    input: u32,
    inputs: u32,
    tag: Timestamp,
    record: Parts,
    /// One entry and its measure, while they are written.
    entry: Vec<u8>,
    measure: Vec<u8>,
    records: Vec<Vec<u8>>,
}

/// The record that is being packed.
#[derive(Debug, Default)]
struct Parts {
    names: LocalNames,
    sums: Vec<u8>,
    memberships: Vec<u8>,
    entries: usize,
    /// What entries take beside `ENTRY_SIZE` and names.
    facts: usize,
}

impl<'a> GroupPacker<'a> {
    pub fn new(input: u32, inputs: u32, tag: Timestamp, all: &'a Names) -> Self {
        let (record, records) = (Parts::default(), Vec::new());
        let (entry, measure) = (Vec::new(), Vec::new());
        Self { all, input, inputs, tag, record, entry, measure, records }
    }

    pub fn add(&mut self, sum: &GroupSum) {
        let (record, entry) = (&mut self.record, &mut self.entry);
        entry.clear();
        put_varint(1, u64::from(sum.group.scope == Scope::Country), entry);
        let names = [sum.group.name, sum.place.region, sum.place.fabric, sum.place.accelerator];
        for (field, name) in (2..).zip(names) {
            put_varint(field, record.names.index(self.all, name), entry);
        }
        put_varint(6, sum.tier.map_or(0, |tier| tier as u64 + 1), entry);
        put_fixed(7, sum.slice_end.0, entry);
        put_measure(&sum.measure, &mut self.measure);
        put_bytes(8, &self.measure, entry);
        put_bytes(6, entry, &mut record.sums);
        self.added();
    }

    pub fn add_membership(&mut self, membership: &Membership) {
        let (record, entry) = (&mut self.record, &mut self.entry);
        entry.clear();
        put_varint(1, u64::from(membership.group.scope == Scope::Country), entry);
        put_varint(2, record.names.index(self.all, membership.group.name), entry);
        put_varint(3, record.names.index(self.all, membership.account), entry);
        put_varint(4, u64::from(membership.member), entry);
        if !membership.facts.is_empty() {
            put_bytes(5, &membership.facts, entry);
        }
        put_bytes(7, entry, &mut record.memberships);
        record.facts += membership.facts.len();
        self.added();
    }

    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if self.record.entries > 0 {
            self.cut();
        }
        self.records
    }

    fn added(&mut self) {
        self.record.entries += 1;
        let Parts { entries, facts, names, .. } = &self.record;
        if entries * ENTRY_SIZE + facts + names.len() > RECORD_LIMIT - 4 * ENTRY_SIZE {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let Parts { mut names, sums, memberships, .. } = std::mem::take(&mut self.record);
        let names = names.take();
        let length = names.len() + sums.len() + memberships.len();
        let mut record = Vec::with_capacity(length + ENTRY_SIZE);
        put_varint(1, u64::from(self.input), &mut record);
        put_varint(2, u64::from(self.inputs), &mut record);
        put_fixed(4, self.tag.0, &mut record);
        for part in [names, sums, memberships] {
            record.extend_from_slice(&part);
        }
        self.records.push(record);
    }
}

/// A record that only says how far an ACCOUNT partition has come.
pub fn pack_watermark(input: u32, inputs: u32, watermark: Timestamp, gap: u64) -> Vec<u8> {
    let mut record = Vec::new();
    put_varint(1, u64::from(input), &mut record);
    put_varint(2, u64::from(inputs), &mut record);
    put_fixed(3, watermark.0, &mut record);
    put_varint(8, gap, &mut record);
    record
}

#[cfg(test)]
mod tests {
    use super::super::super::measure::Measure;
    use super::super::super::names::NameId;
    use prost::Message;

    use super::super::super::window::Place;
    use super::super::{GroupKey, unpack_group_usage};
    use super::*;
    use crate::proto;

    #[test]
    fn a_record_is_the_protos_bytes_and_reads_as_what_was_packed() {
        let mut names = Names::default();
        let mut name = |text: &str| names.intern(text);
        let place =
            Place { region: name("eu-1"), fabric: NameId::EMPTY, accelerator: name("h100") };
        let owner = GroupKey { scope: Scope::Owner, name: name("acme") };
        let country = GroupKey { scope: Scope::Country, name: name("CN") };
        let account = name("account-1");
        let measure = Measure { flop: -(1 << 90), accelerator_ms: 7, ..Measure::ZERO };
        let end = Timestamp(3600);
        let sums = [
            GroupSum { group: owner, place, tier: None, slice_end: end, measure },
            GroupSum { group: country, place, tier: Some(1), slice_end: end, measure },
            GroupSum {
                measure: Measure::ZERO,
                ..GroupSum { group: owner, place, tier: None, slice_end: end, measure }
            },
        ];
        let memberships = [
            Membership { group: owner, account, member: true, facts: vec![1, 2] },
            Membership { group: country, account, member: false, facts: Vec::new() },
        ];
        let mut packer = GroupPacker::new(3, 4, Timestamp(300), &names);
        sums.iter().for_each(|sum| packer.add(sum));
        memberships.iter().for_each(|membership| packer.add_membership(membership));
        let records = packer.finish();
        assert_eq!(records.len(), 1);
        let proto = proto::GroupUsage::decode(&records[0][..]).expect("protobuf");
        assert_eq!(proto.encode_to_vec(), records[0]);

        let read = unpack_group_usage(&records[0], &mut names).expect("own record");
        assert_eq!((read.announcement.input, read.announcement.inputs), (3, 4));
        assert_eq!(read.tag, Timestamp(300));
        assert_eq!(read.sums, sums);
        assert_eq!(read.memberships, memberships);

        let watermark = pack_watermark(1, 2, Timestamp(9), 5);
        let proto = proto::GroupUsage::decode(&watermark[..]).expect("protobuf");
        assert_eq!((proto.watermark_unix_nano, proto.gap_records), (9, 5));
        assert_eq!(proto.encode_to_vec(), watermark);
    }

    #[test]
    fn names_sums_and_facts_fill_records_up_to_the_limit() {
        let mut names = Names::default();
        let members: Vec<Membership> = (0..3000)
            .map(|number| Membership {
                group: GroupKey { scope: Scope::Owner, name: names.intern("owner") },
                account: names.intern(&format!("{number:0200}")),
                member: true,
                facts: vec![0; 300],
            })
            .collect();
        let mut packer = GroupPacker::new(0, 1, Timestamp(300), &names);
        members.iter().for_each(|membership| packer.add_membership(membership));
        let records = packer.finish();
        assert!(records.len() > 1);
        assert!(records.iter().all(|record| record.len() <= RECORD_LIMIT));
        let mut all = Vec::new();
        for record in &records {
            all.extend(unpack_group_usage(record, &mut names).expect("own record").memberships);
        }
        assert_eq!(all, members);
    }
}
