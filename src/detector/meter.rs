//! STAGE 1, per usage partition: decode, validate, deduplicate, measure, sum, forward.
//!
//! Between two commits integers are added per (epoch, account, region, fabric, accelerator,
//! slice); `seal` sends every sum, so that this stage's own state is stream time, idle flag and
//! identities, never sums. It makes no assumption about the input key.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::changelog::{Reader, Writer, damaged};
use super::decode::{decode, decode_line};
use super::dedup::{BlockChange, Dedup, Identity};
use super::event::{Kind, Record, UsageEvent};
use super::internal::{self, AccountSum, UsagePacker};
use super::invalid::{Invalid, Reason};
use super::measure::{Measure, measure, split};
use super::names::{NameId, Names, UNKNOWN_PREFIX};
use super::outbox::{DeadLetter, Outbox, Output};
use super::rules::Rules;
use super::time::Timestamp;
use super::window::Place;
use super::{Stage, StageError};

/// Interned names are forgotten at a commit once there are this many.
const NAME_LIMIT: usize = 1 << 20;

#[derive(Debug)]
pub struct Meter {
    rules: Arc<Rules>,
    partition: u32,
    /// Partitions of the downstream topic.
    targets: u32,
    /// Usage partitions that exist, as far as the shell knows.
    partitions: u32,
    /// Records are lines of a text file.
    lines: bool,
    stream_time: Option<Timestamp>,
    idle: bool,
    dedup: Dedup,
    names: Names,
    sums: HashMap<SumKey, Measure, FixedState>,
    /// Undecodable or invalid records in a row; state, so that a restart does not start afresh.
    invalid_in_a_row: u64,
    /// Records that retention removed before they were read.
    gap: u64,
    position: Option<u64>,
    /// What every target partition has been told.
    announced: Option<Announced>,
    /// The head as the changelog has it.
    logged: Option<Vec<u8>>,
    removed: Vec<BlockChange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SumKey {
    account: NameId,
    tag: Timestamp,
    slice_end: Timestamp,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Announced {
    watermark: Option<Timestamp>,
    idle: bool,
    partitions: u32,
    gap: u64,
}

impl Meter {
    /// The task of usage partition `partition`, which sends to `targets` partitions downstream;
    /// there are `partitions` usage partitions.
    pub fn new(rules: Arc<Rules>, partition: u32, partitions: u32, targets: u32) -> Self {
        Self {
            rules,
            partition,
            targets,
            partitions,
            lines: false,
            stream_time: None,
            idle: false,
            dedup: Dedup::default(),
            names: Names::default(),
            sums: HashMap::with_hasher(FixedState::default()),
            invalid_in_a_row: 0,
            gap: 0,
            position: None,
            announced: None,
            logged: None,
            removed: Vec::new(),
        }
    }

    /// Its records are lines of text: what is no JSON object is refused, never read as protobuf.
    #[must_use]
    pub fn over_lines(self) -> Self {
        Self { lines: true, ..self }
    }

    /// The partition's stream time, floored to the epoch.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.stream_time.map(|time| time.floor(self.rules.time.epoch))
    }

    pub fn stream_time(&self) -> Option<Timestamp> {
        self.stream_time
    }

    /// The usage topic has been found to have this many partitions.
    pub fn set_partitions(&mut self, partitions: u32) {
        self.partitions = self.partitions.max(partitions);
    }

    /// Nothing has come for `time.idle_timeout`: hold nobody back until the next record.
    pub fn go_idle(&mut self) {
        self.idle = true;
    }

    /// Retention removed this many records before they were read: later alerts say so.
    pub fn accept_gap(&mut self, records: u64) {
        self.gap += records;
    }

    /// Identities held for the dedup horizon.
    pub fn identities(&self) -> usize {
        self.dedup.len()
    }
}

impl Stage for Meter {
    fn process(&mut self, record: &Record<'_>, outbox: &mut Outbox) -> Result<(), StageError> {
        outbox.tally.read += 1;
        self.idle = false;
        match self.accept(record, outbox) {
            Ok(Some((event, identity))) => self.count(&event, identity, outbox),
            Ok(None) => outbox.tally.duplicate += 1,
            Err(invalid) => self.refuse(record, invalid, outbox)?,
        }
        self.position = Some(record.offset + 1);
        Ok(())
    }

    fn seal(&mut self, outbox: &mut Outbox) {
        self.forward(outbox);
        self.log(outbox);
        if self.names.len() > NAME_LIMIT {
            self.names = Names::default();
        }
    }

    fn position(&self) -> Option<u64> {
        self.position
    }

    fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        match MeterKey::parse(key)? {
            key if key.partition != self.partition => Ok(()),
            MeterKey { block: Some((bucket, block)), .. } => {
                self.dedup.restore(bucket, block, value)
            }
            MeterKey { block: None, .. } => self.restore_head(value),
        }
    }

    fn is_urgent(&self) -> bool {
        self.announced != Some(self.announcement())
    }
}

/// One record, step by step.
impl Meter {
    /// The event if it is to be counted, `None` if it was counted before.
    fn accept<'a>(
        &mut self,
        record: &Record<'a>,
        outbox: &mut Outbox,
    ) -> Result<Option<(UsageEvent<'a>, Identity)>, Invalid> {
        let mut event = if self.lines {
            decode_line(&self.rules.input, record)?
        } else {
            decode(&self.rules.input, record)?
        };
        outbox.tally.telemetry_dropped += event.telemetry.drop_impossible();
        event.validate(&self.rules.time, record.timestamp)?;
        self.invalid_in_a_row = 0;
        let identity = Identity::new(&event.source, &event.id);
        let Some(stream_time) = self.stream_time else { return Ok(Some((event, identity))) };
        self.check_retention(&event, stream_time)?;
        let horizon = stream_time.minus(self.rules.time.dedup_horizon);
        if event.time < horizon {
            let detail = format!("time {} is before the dedup horizon {horizon}", event.time);
            return Err(Invalid::new(Reason::BeyondHorizon, detail));
        }
        let duplicate = self.dedup.was_counted(identity, horizon);
        Ok((!duplicate).then_some((event, identity)))
    }

    fn check_retention(
        &self,
        event: &UsageEvent<'_>,
        stream_time: Timestamp,
    ) -> Result<(), Invalid> {
        let watermark = stream_time.floor(self.rules.time.epoch);
        let oldest = watermark.minus(self.rules.longest_keep());
        if event.end > oldest {
            return Ok(());
        }
        let detail = format!("the interval ended {}, nothing before {oldest} is kept", event.end);
        Err(Invalid::new(Reason::BeyondRetention, detail))
    }

    fn count(&mut self, event: &UsageEvent<'_>, identity: Identity, outbox: &mut Outbox) {
        let (total, place) = self.measure(event, outbox);
        self.dedup.insert(identity, event.time);
        self.stream_time = self.stream_time.max(Some(event.time));
        let tag = self.watermark().expect("an event was counted");
        let slice = self.rules.finest().slice;
        let judged = tag.minus(self.rules.time.lateness);
        if event.kind == Kind::Usage && judged >= event.start.slice_end(slice) {
            outbox.tally.late += 1;
        }
        outbox.tally.counted += 1;
        let account = self.names.intern(&event.account_id);
        split(total, event.start, event.end, slice, |slice_end, part| {
            let key = SumKey { account, tag, slice_end, place };
            *self.sums.entry(key).or_insert(Measure::ZERO) += part;
        });
    }

    fn measure(&mut self, event: &UsageEvent<'_>, outbox: &mut Outbox) -> (Measure, Place) {
        let resolved = self.rules.catalogue.resolve(&event.accelerator, &event.instance_type);
        let central = self.rules.utilization.central;
        let telemetry = &event.telemetry;
        let utilization = match (telemetry.tensor_active, telemetry.utilization) {
            (Some(tensor_active), _) => f64::from(tensor_active),
            (None, Some(utilization)) => central * f64::from(utilization),
            (None, None) => central,
        };
        let accelerators = event.quantity * resolved.count;
        let length = event.end.since(event.start);
        let total = measure(accelerators, length, resolved.peaks, utilization);
        let accelerator = if resolved.unknown {
            outbox.tally.unknown_accelerator += 1;
            self.names.intern(&format!("{UNKNOWN_PREFIX}{}", resolved.key))
        } else {
            self.names.intern(resolved.key)
        };
        let place = Place {
            region: self.names.intern(&event.region),
            fabric: self.names.intern(&event.fabric_id),
            accelerator,
        };
        (total, place)
    }

    /// To the dead letters, whole; too many in a row stop the process before the next.
    fn refuse(
        &mut self,
        record: &Record<'_>,
        invalid: Invalid,
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        if invalid.reason.is_late() {
            self.invalid_in_a_row = 0;
        } else {
            let limit = self.rules.dead_letter_max_consecutive;
            if self.invalid_in_a_row >= limit {
                let offset = record.offset;
                return Err(StageError::TooManyInvalid { offset, limit, last: invalid });
            }
            self.invalid_in_a_row += 1;
        }
        outbox.tally.dead_letter(invalid.reason);
        outbox.push(Output::DeadLetter(DeadLetter {
            invalid,
            offset: record.offset,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record
                .headers
                .iter()
                .map(|header| (header.name.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect(),
        }));
        Ok(())
    }
}

/// What leaves at a commit.
impl Meter {
    fn announcement(&self) -> Announced {
        let (watermark, idle) = (self.watermark(), self.idle);
        Announced { watermark, idle, partitions: self.partitions, gap: self.gap }
    }

    /// Every target partition that there are sums for gets records; all of them do when the
    /// watermark, the idle flag or the partition count changed.
    fn forward(&mut self, outbox: &mut Outbox) {
        let now = self.announcement();
        let changed = self.announced != Some(now);
        let mut by_target: Vec<Vec<(SumKey, Measure)>> = vec![Vec::new(); self.targets as usize];
        for (key, sum) in self.sums.drain() {
            let target = internal::partition_of(self.names.text(key.account), self.targets);
            by_target[target as usize].push((key, sum));
        }
        for (target, mut sums) in (0..self.targets).zip(by_target) {
            if sums.is_empty() && !changed {
                continue;
            }
            sums.sort_unstable_by_key(|(key, _)| *key);
            let mut packer = UsagePacker::new(self.partition, self.partitions, &self.names);
            packer.mark_gap(now.gap);
            for (key, measure) in &sums {
                packer.add(&AccountSum {
                    account: key.account,
                    tag: key.tag,
                    slice_end: key.slice_end,
                    place: key.place,
                    measure: *measure,
                });
            }
            for value in packer.finish(now.watermark, now.idle) {
                outbox.push(Output::Forward { partition: target, value });
            }
        }
    }

    fn log(&mut self, outbox: &mut Outbox) {
        self.announced = Some(self.announcement());
        if !outbox.keeps_changes() {
            self.dedup.log(|_| ());
        }
        let head = self.head();
        if self.logged.as_ref() != Some(&head) && outbox.keeps_changes() {
            let key = MeterKey { partition: self.partition, block: None }.bytes();
            outbox.push(Output::Change { key, value: Some(head.clone()) });
            self.logged = Some(head);
        }
        if let Some(stream_time) = self.stream_time {
            let horizon = stream_time.minus(self.rules.time.dedup_horizon);
            self.dedup.expire(horizon, |change| self.removed.push(change));
        }
        let partition = self.partition;
        let mut push = |change: BlockChange| {
            let block = Some((change.bucket, change.block));
            let key = MeterKey { partition, block }.bytes();
            outbox.push(Output::Change { key, value: change.value });
        };
        self.removed.drain(..).for_each(&mut push);
        self.dedup.log(push);
    }

    fn head(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.optional_time(self.stream_time);
        writer.flag(self.idle);
        writer.unsigned(self.invalid_in_a_row);
        writer.unsigned(self.gap);
        writer.finish()
    }

    fn restore_head(&mut self, value: Option<&[u8]>) -> Result<(), StageError> {
        let mut reader = Reader::new(value.ok_or_else(|| damaged("the stream time"))?)?;
        self.stream_time = reader.optional_time()?;
        self.idle = reader.flag()?;
        self.invalid_in_a_row = reader.number()?;
        self.gap = reader.number()?;
        Ok(())
    }
}

/// A changelog key: the partition's head, or one block of identities.
#[derive(Debug, PartialEq, Eq)]
struct MeterKey {
    partition: u32,
    block: Option<(u64, u32)>,
}

impl MeterKey {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.partition.to_be_bytes().to_vec();
        if let Some((bucket, block)) = self.block {
            bytes.extend(bucket.to_be_bytes());
            bytes.extend(block.to_be_bytes());
        }
        bytes
    }

    fn parse(key: &[u8]) -> Result<Self, StageError> {
        let (partition, rest) = key.split_first_chunk().ok_or_else(|| damaged("a key"))?;
        let partition = u32::from_be_bytes(*partition);
        if rest.is_empty() {
            return Ok(Self { partition, block: None });
        }
        let (bucket, rest) = rest.split_first_chunk().ok_or_else(|| damaged("a bucket"))?;
        let block: [u8; 4] = rest.try_into().map_err(|_| damaged("a block"))?;
        let block = Some((u64::from_be_bytes(*bucket), u32::from_be_bytes(block)));
        Ok(Self { partition, block })
    }
}
