//! What the stages send each other: sums packed into records of bounded size, names once a record.

mod group;
mod read;
mod usage;
mod wire;

use xxhash_rust::xxh3::xxh3_64;

use super::measure::Measure;
use super::names::NameId;
use super::policy::Scope;
use super::time::Timestamp;
use super::window::Place;

pub use group::{GroupPacker, pack_watermark};
pub use read::{GroupUsage, unpack_group_usage, unpack_usage};
pub use usage::UsagePacker;

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

#[cfg(test)]
mod tests {
    use super::super::names::Names;
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
