//! Packs what METER sends to ACCOUNT. The bytes are those of `proto::AccountUsage`, as a test says.

use super::super::event::NAME_LIMIT;
use super::super::names::{NameId, Names};
use super::super::time::Timestamp;
use super::super::window::Place;
use super::wire::{LocalNames, put_bytes, put_fixed, put_measure, put_varint};
use super::{AccountSum, ENTRY_SIZE, RECORD_LIMIT};

/// Packs METER's sums for one target partition: each as it comes, for there may be one for every
/// event.
#[derive(Debug, Default)]
pub struct UsagePacker {
    input: u32,
    inputs: u32,
    gap: u64,
    names: LocalNames,
    /// The last sum's account and place, as often the next one's, and their indices.
    last: ([NameId; 4], [u64; 4]),
    sums: Vec<u8>,
    /// One entry and its measure, while they are written.
    entry: Vec<u8>,
    measure: Vec<u8>,
    /// Names and sums of the records that are full.
    full: Vec<(Vec<u8>, Vec<u8>)>,
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
        let entry = &mut self.entry;
        entry.clear();
        for (field, index) in (1..).zip(self.last.1) {
            put_varint(field, index, entry);
        }
        put_fixed(5, sum.tag.0, entry);
        put_fixed(6, sum.slice_end.0, entry);
        put_measure(&sum.measure, &mut self.measure);
        put_bytes(7, &self.measure, entry);
        put_bytes(6, entry, &mut self.sums);
        // the next entry's own names fit into what is left below Kafka's limit
        if self.sums.len() + self.names.len() > RECORD_LIMIT - 4 * NAME_LIMIT - ENTRY_SIZE {
            self.cut();
        }
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
        let Self { input, inputs, gap, full, .. } = self;
        let last = full.len() - 1;
        let pack = |(number, (names, sums)): (usize, (Vec<u8>, Vec<u8>))| {
            let mut record = Vec::with_capacity(names.len() + sums.len() + ENTRY_SIZE);
            put_varint(1, u64::from(input), &mut record);
            put_varint(2, u64::from(inputs), &mut record);
            if number == last {
                put_fixed(3, watermark.unwrap_or_default().0, &mut record);
                put_varint(4, u64::from(idle), &mut record);
            }
            record.extend_from_slice(&names);
            record.extend_from_slice(&sums);
            put_varint(7, gap, &mut record);
            record
        };
        full.into_iter().enumerate().map(pack).collect()
    }
}
