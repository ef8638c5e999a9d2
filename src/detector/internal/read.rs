//! Reads the records between the stages: names and sums where they lie in the record.

use super::super::StageError;
use super::super::align::Announcement;
use super::super::changelog::unzigzag;
use super::super::measure::Measure;
use super::super::names::{NameId, Names};
use super::super::policy::Scope;
use super::super::time::Timestamp;
use super::super::window::Place;
use super::wire::{Fields, Value};
use super::{AccountSum, GroupKey, GroupSum, Membership};

/// Reads METER's record; its names join `names`.
pub fn unpack_usage(
    value: &[u8],
    names: &mut Names,
) -> Result<(Announcement, Vec<AccountSum>), StageError> {
    let mut head = Head::default();
    let mut sums = Vec::new();
    let mut fields = Fields(value);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => head.input = value.small()?,
            2 => head.inputs = value.small()?,
            3 => head.watermark = value.fixed()?,
            4 => head.idle = value.flag()?,
            5 => head.names.push(names.intern(value.text()?)),
            6 => sums.push(value.bytes()?),
            7 => head.gap = value.varint()?,
            _ => {}
        }
    }
    let sums = sums.into_iter().map(|bytes| head.account_sum(bytes)).collect::<Result<_, _>>()?;
    Ok((head.announcement()?, sums))
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
    let mut head = Head::default();
    let (mut tag, mut sums, mut memberships) = (0, Vec::new(), Vec::new());
    let mut fields = Fields(value);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => head.input = value.small()?,
            2 => head.inputs = value.small()?,
            3 => head.watermark = value.fixed()?,
            4 => tag = value.fixed()?,
            5 => head.names.push(names.intern(value.text()?)),
            6 => sums.push(value.bytes()?),
            7 => memberships.push(value.bytes()?),
            8 => head.gap = value.varint()?,
            _ => {}
        }
    }
    let sums = sums.into_iter().map(|bytes| head.group_sum(bytes)).collect::<Result<_, _>>()?;
    let memberships = memberships.into_iter().map(|bytes| head.membership(bytes));
    Ok(GroupUsage {
        announcement: head.announcement()?,
        tag: instant(tag)?,
        sums,
        memberships: memberships.collect::<Result<_, _>>()?,
    })
}

/// What a record says once.
#[derive(Debug)]
struct Head {
    input: u32,
    inputs: u32,
    watermark: u64,
    idle: bool,
    gap: u64,
    /// By local index.
    names: Vec<NameId>,
}

impl Default for Head {
    fn default() -> Self {
        // index 0 is the empty name and is not sent
        let names = vec![NameId::EMPTY];
        Self { input: 0, inputs: 0, watermark: 0, idle: false, gap: 0, names }
    }
}

impl Head {
    fn announcement(&self) -> Result<Announcement, StageError> {
        let watermark = self.watermark;
        Ok(Announcement {
            input: self.input,
            inputs: self.inputs,
            watermark: (watermark != 0).then(|| instant(watermark)).transpose()?,
            idle: self.idle,
            gap: self.gap,
        })
    }

    fn account_sum(&self, bytes: &[u8]) -> Result<AccountSum, StageError> {
        let (mut account, mut place, mut tag, mut end) = (0, [0; 3], 0, 0);
        let mut measure = Measure::ZERO;
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => account = value.small()?,
                2 => place[0] = value.small()?,
                3 => place[1] = value.small()?,
                4 => place[2] = value.small()?,
                5 => tag = value.fixed()?,
                6 => end = value.fixed()?,
                7 => measure = read_measure(value)?,
                _ => {}
            }
        }
        Ok(AccountSum {
            account: self.name(account)?,
            tag: instant(tag)?,
            slice_end: slice_end(end)?,
            place: self.place(place)?,
            measure,
        })
    }

    fn group_sum(&self, bytes: &[u8]) -> Result<GroupSum, StageError> {
        let (mut country, mut key, mut place, mut tier, mut end) = (false, 0, [0; 3], 0, 0);
        let mut measure = Measure::ZERO;
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => country = value.flag()?,
                2 => key = value.small()?,
                3 => place[0] = value.small()?,
                4 => place[1] = value.small()?,
                5 => place[2] = value.small()?,
                6 => tier = value.small()?,
                7 => end = value.fixed()?,
                8 => measure = read_measure(value)?,
                _ => {}
            }
        }
        Ok(GroupSum {
            group: self.group(country, key)?,
            place: self.place(place)?,
            tier: (tier as usize).checked_sub(1),
            slice_end: slice_end(end)?,
            measure,
        })
    }

    fn membership(&self, bytes: &[u8]) -> Result<Membership, StageError> {
        let (mut country, mut key, mut account, mut member) = (false, 0, 0, false);
        let mut facts = Vec::new();
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => country = value.flag()?,
                2 => key = value.small()?,
                3 => account = value.small()?,
                4 => member = value.flag()?,
                5 => facts = value.bytes()?.to_vec(),
                _ => {}
            }
        }
        Ok(Membership {
            group: self.group(country, key)?,
            account: self.name(account)?,
            member,
            facts,
        })
    }

    fn group(&self, country: bool, key: u32) -> Result<GroupKey, StageError> {
        let scope = if country { Scope::Country } else { Scope::Owner };
        Ok(GroupKey { scope, name: self.name(key)? })
    }

    fn place(&self, [region, fabric, accelerator]: [u32; 3]) -> Result<Place, StageError> {
        Ok(Place {
            region: self.name(region)?,
            fabric: self.name(fabric)?,
            accelerator: self.name(accelerator)?,
        })
    }

    fn name(&self, index: u32) -> Result<NameId, StageError> {
        self.names.get(index as usize).copied().ok_or_else(|| {
            StageError::State("an internal record refers to a name that it does not hold".into())
        })
    }
}

/// An instant that no span can carry out of range.
fn instant(unix_nano: u64) -> Result<Timestamp, StageError> {
    let instant = Timestamp(unix_nano);
    if instant > Timestamp::LIMIT { Err(damaged("an instant before 2525")) } else { Ok(instant) }
}

fn slice_end(unix_nano: u64) -> Result<Timestamp, StageError> {
    if unix_nano == 0 { Err(damaged("a slice's end")) } else { instant(unix_nano) }
}

fn damaged(expected: &str) -> StageError {
    StageError::State(format!("an internal record is damaged: {expected} expected"))
}

/// Fields 1 to 4 hold the low halves, 5 to 8 the high ones.
fn read_measure(value: Value<'_>) -> Result<Measure, StageError> {
    let mut halves = [0; 8];
    let mut fields = Fields(value.bytes()?);
    while let Some((field, value)) = fields.next()? {
        if let Some(half) = halves.get_mut((field as usize).wrapping_sub(1)) {
            *half = value.varint()?;
        }
    }
    let whole = |at: usize| unzigzag(u128::from(halves[at]) | (u128::from(halves[at + 4]) << 64));
    let measure = Measure {
        accelerator_ms: whole(0),
        flop: whole(1),
        flop_allocated: whole(2),
        flop_theoretical: whole(3),
    };
    if measure.is_plausible() { Ok(measure) } else { Err(damaged("a sum below 2^100")) }
}
