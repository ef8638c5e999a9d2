//! STAGE 1, per usage partition: decode, validate, deduplicate, measure, sum, forward.
//!
//! Between two commits integers are added per (epoch, account, region, fabric, accelerator,
//! slice); `seal` sends every sum, so that this stage's own state is stream time, idle flag and
//! identities, never sums. It makes no assumption about the input key.

use std::sync::Arc;

use super::changelog::{Reader, Writer, damaged};
use super::decode::{decode_into, decode_line};
use super::dedup::{BlockChange, Dedup, Identity};
use super::event::{Kind, Record, Telemetry, UsageEvent};
use super::internal::UsagePacker;
use super::invalid::{Invalid, Reason};
use super::measure::measure;
use super::outbox::{DeadLetter, Outbox, Output, Tally};
use super::rules::Rules;
use super::sums::{self, Candidate, Hardware, KindNames, Sums};
use super::time::Timestamp;
use super::{Stage, StageError};

/// Interned names are forgotten at a commit once there are this many.
const NAME_LIMIT: usize = 1 << 20;
/// Records that are decoded before the first of them is counted: enough to wait for the memory of
/// all at once, few enough to stay in the nearest cache.
const GROUP: usize = 16;

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
    clock: Clock,
    idle: bool,
    dedup: Dedup,
    sums: Sums,
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

/// Stream time and what follows from it, worked out when it passes into another epoch.
#[derive(Debug, Default)]
struct Clock {
    stream_time: Option<Timestamp>,
    watermark: Timestamp,
    /// The watermark after this one.
    next: Timestamp,
}

impl Clock {
    fn set(&mut self, stream_time: Timestamp, rules: &Rules) {
        self.stream_time = Some(stream_time);
        if stream_time >= self.next || stream_time < self.watermark {
            self.watermark = stream_time.floor(rules.time.epoch);
            self.next = self.watermark.plus(rules.time.epoch);
        }
    }
}

/// What counting a valid event takes.
struct Prepared<'a> {
    identity: Identity,
    time: Timestamp,
    start: Timestamp,
    end: Timestamp,
    kind: Kind,
    /// As the event gives it, before an instance's count.
    quantity: f64,
    utilization: f64,
    names: KindNames<'a>,
    /// Of the names.
    hash: u64,
    candidate: Candidate,
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
        let dedup = Dedup::new(rules.time.dedup_horizon);
        Self {
            rules,
            partition,
            targets,
            partitions,
            lines: false,
            clock: Clock::default(),
            idle: false,
            dedup,
            sums: Sums::default(),
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
        self.clock.stream_time.map(|_| self.clock.watermark)
    }

    pub fn stream_time(&self) -> Option<Timestamp> {
        self.clock.stream_time
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
        self.process_all(std::slice::from_ref(record), outbox)
    }

    fn process_all(
        &mut self,
        records: &[Record<'_>],
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        records.chunks(GROUP).try_for_each(|group| self.process_group(group, outbox))
    }

    fn seal(&mut self, outbox: &mut Outbox) {
        self.forward(outbox);
        self.log(outbox);
        self.sums.bound_names(NAME_LIMIT);
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

/// A few records, step by step.
impl Meter {
    /// Decodes all, then counts one after the other: by then what the first step asked memory for
    /// has come.
    fn process_group(
        &mut self,
        records: &[Record<'_>],
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        let mut prepared: Vec<Result<Prepared<'_>, Invalid>> =
            records.iter().map(|record| self.prepare(record, &mut outbox.tally)).collect();
        self.approach(&mut prepared);
        for (record, prepared) in records.iter().zip(&prepared) {
            outbox.tally.read += 1;
            self.idle = false;
            match prepared {
                Ok(event) => match self.is_new(event) {
                    Ok(true) => self.count(event, outbox),
                    Ok(false) => outbox.tally.duplicate += 1,
                    Err(late) => self.refuse(record, late, outbox)?,
                },
                Err(invalid) => self.refuse(record, invalid.clone(), outbox)?,
            }
            self.position = Some(record.offset + 1);
        }
        Ok(())
    }

    /// What can be said of a record whatever came before it.
    fn prepare<'a>(&self, record: &Record<'a>, tally: &mut Tally) -> Result<Prepared<'a>, Invalid> {
        let mut event = UsageEvent::default();
        if self.lines {
            event = decode_line(&self.rules.input, record)?;
        } else {
            decode_into(&self.rules.input, record, &mut event)?;
        }
        tally.telemetry_dropped += event.telemetry.drop_impossible();
        event.validate(&self.rules.time, record.timestamp)?;
        let identity = Identity::new(event.source.as_bytes(), event.id.as_bytes());
        let utilization = self.utilization(&event.telemetry);
        let UsageEvent { time, start, end, kind, quantity, .. } = event;
        let names = [
            event.account_id,
            event.region,
            event.fabric_id,
            event.accelerator,
            event.instance_type,
        ];
        let (hash, candidate) = (sums::hash_of(&names), Candidate::default());
        Ok(Prepared {
            identity,
            time,
            start,
            end,
            kind,
            quantity,
            utilization,
            names,
            hash,
            candidate,
        })
    }

    fn utilization(&self, telemetry: &Telemetry) -> f64 {
        let central = self.rules.utilization.central;
        match (telemetry.tensor_active, telemetry.utilization) {
            (Some(tensor_active), _) => f64::from(tensor_active),
            (None, Some(utilization)) => central * f64::from(utilization),
            (None, None) => central,
        }
    }

    /// Touches the memory that the group will need: the processor waits for one line no longer
    /// than for many, as long as none depends on another.
    fn approach(&self, prepared: &mut [Result<Prepared<'_>, Invalid>]) {
        let mut near = 0;
        for event in prepared.iter().flatten() {
            near ^= self.dedup.approach(event.identity, event.time);
            near ^= u64::from(self.sums.approach_index(event.hash));
        }
        for event in prepared.iter_mut().flatten() {
            event.candidate = self.sums.candidate(event.hash);
            near ^= self.sums.approach_kind(event.candidate);
        }
        for event in prepared.iter().flatten() {
            near ^= self.sums.approach_sum(event.candidate);
        }
        std::hint::black_box(near);
    }

    /// Whether the event is to be counted: false for a duplicate.
    fn is_new(&mut self, event: &Prepared<'_>) -> Result<bool, Invalid> {
        self.invalid_in_a_row = 0;
        let Some(stream_time) = self.clock.stream_time else { return Ok(true) };
        self.check_retention(event)?;
        let horizon = stream_time.minus(self.rules.time.dedup_horizon);
        if event.time < horizon {
            let detail = format!("time {} is before the dedup horizon {horizon}", event.time);
            return Err(Invalid::new(Reason::BeyondHorizon, detail));
        }
        Ok(!self.dedup.was_counted(event.identity, event.time, horizon))
    }

    fn check_retention(&self, event: &Prepared<'_>) -> Result<(), Invalid> {
        let oldest = self.clock.watermark.minus(self.rules.longest_keep());
        if event.end > oldest {
            return Ok(());
        }
        let detail = format!("the interval ended {}, nothing before {oldest} is kept", event.end);
        Err(Invalid::new(Reason::BeyondRetention, detail))
    }

    fn count(&mut self, event: &Prepared<'_>, outbox: &mut Outbox) {
        self.dedup.insert(event.identity, event.time);
        if self.clock.stream_time < Some(event.time) {
            self.clock.set(event.time, &self.rules);
        }
        let Prepared { hash, names, start, end, .. } = event;
        let kind = self.sums.kind(*hash, names, &self.rules.catalogue, self.targets);
        let Hardware { count, peaks, unknown } = self.sums.hardware(kind);
        let total = measure(event.quantity * count, end.since(*start), peaks, event.utilization);
        let (tag, slice) = (self.clock.watermark, self.rules.finest().slice);
        let first = self.sums.add(kind, tag, (*start, *end), slice, total);
        if event.kind == Kind::Usage && tag.minus(self.rules.time.lateness) >= first {
            outbox.tally.late += 1;
        }
        outbox.tally.unknown_accelerator += u64::from(unknown);
        outbox.tally.counted += 1;
    }

    /// To the dead letters, whole; too many in a row stop the process before the next.
    fn refuse(
        &mut self,
        record: &Record<'_>,
        invalid: Invalid,
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        if !invalid.reason.is_late() {
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
        // what the packers take names from is lent while sums leave
        let mut sums = std::mem::take(&mut self.sums);
        let mut packers: Vec<UsagePacker> = (0..self.targets)
            .map(|_| UsagePacker::new(self.partition, self.partitions, now.gap))
            .collect();
        sums.drain(|names, target, sum| packers[target as usize].add(names, sum));
        self.sums = sums;
        for (target, packer) in (0..self.targets).zip(packers) {
            if packer.is_empty() && !changed {
                continue;
            }
            for value in packer.finish(now.watermark, now.idle) {
                outbox.push(Output::Forward { partition: target, value });
            }
        }
    }

    fn log(&mut self, outbox: &mut Outbox) {
        self.announced = Some(self.announcement());
        if !outbox.keeps_changes() {
            self.dedup.forget_changes();
        }
        let head = self.head();
        if self.logged.as_ref() != Some(&head) && outbox.keeps_changes() {
            let key = MeterKey { partition: self.partition, block: None }.bytes();
            outbox.push(Output::Change { key, value: Some(head.clone()) });
            self.logged = Some(head);
        }
        if let Some(stream_time) = self.clock.stream_time {
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
        if let Some(stream_time) = self.clock.stream_time {
            self.dedup.log(stream_time, push);
        }
    }

    fn head(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.optional_time(self.clock.stream_time);
        writer.flag(self.idle);
        writer.unsigned(self.invalid_in_a_row);
        writer.unsigned(self.gap);
        writer.finish()
    }

    fn restore_head(&mut self, value: Option<&[u8]>) -> Result<(), StageError> {
        let mut reader = Reader::new(value.ok_or_else(|| damaged("the stream time"))?)?;
        if let Some(stream_time) = reader.optional_time()? {
            self.clock.set(stream_time, &self.rules);
        }
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
