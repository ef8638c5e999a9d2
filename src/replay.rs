//! The three stages driven from any source of records: what `replay`, `validate`, tests and benches
//! run is what `run` runs.
//!
//! One METER task a source, each on a thread of its own, one ACCOUNT and one GROUP task: results do
//! not depend on how many partitions the internal topics have. What METER tasks send is taken from
//! the source that is furthest behind in event time, and no task is more than a few batches ahead,
//! so that memory stays bounded whatever the sources' pace and the order is always the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::detector::account::Account;
use crate::detector::alert::{Alert, Sum};
use crate::detector::directory::AccountRecord;
use crate::detector::event::Record;
use crate::detector::group::Group;
use crate::detector::internal::{AccountSum, UsagePacker, unpack_usage};
use crate::detector::measure::Measure;
use crate::detector::meter::Meter;
use crate::detector::names::Names;
use crate::detector::outbox::{DeadLetter, Outbox, Output, Tally};
use crate::detector::policy::{Policies, Scope};
use crate::detector::rules::Rules;
use crate::detector::time::Timestamp;
use crate::detector::{Stage, StageError};
use crate::error::Fatal;

/// Records that a METER task reads before it sends.
const BATCH: usize = 4096;
/// Bytes of records after which it sends fewer: refused ones wait whole in what it sends.
const BATCH_BYTES: usize = 4 << 20;
/// Batches that a METER task may be ahead.
const AHEAD: usize = 4;

/// Usage records of one partition, in order.
pub trait Source: Send {
    /// The next record's number (from 1, as dead letters name it) and value; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal>;

    /// Its records are lines of text, which hold JSON objects and never protobuf.
    fn is_text(&self) -> bool {
        false
    }

    /// Where a record stands, for a person to find it.
    fn place(&self, number: u64) -> String {
        format!("record {number}")
    }
}

/// Where outputs go, as they come.
pub trait Sink {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal>;

    /// `source` is the index of the source.
    fn dead_letter(&mut self, source: usize, letter: &DeadLetter) -> Result<(), Fatal>;

    /// A batch has been read.
    fn progress(&mut self, _tally: &Tally) {}

    /// Whether `sum` is to be asked.
    fn watches(&self) -> bool {
        false
    }

    /// Sees one of METER's sums; false keeps it from the later stages, for whom time passes all the
    /// same. What concerns one account depends on no other's sums.
    fn sum(&mut self, _account: &str, _sum: &AccountSum) -> bool {
        true
    }
}

/// What a replay came to.
#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    pub ledger: Vec<LedgerRow>,
}

/// A retained slice of the finest tier, in the ledger's form.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LedgerRow {
    pub scope: &'static str,
    pub key: String,
    pub end: Timestamp,
    #[serde(flatten)]
    pub sum: Sum,
}

/// Replays every source to its end, applies all sums and judges every complete slice.
pub fn replay(
    rules: &Arc<Rules>,
    policies: &Arc<Policies>,
    accounts: &[AccountRecord],
    sources: Vec<Box<dyn Source + '_>>,
    sink: &mut dyn Sink,
) -> Result<Outcome, Fatal> {
    let mut replay = Replay::new(rules, policies);
    for record in accounts {
        replay.account.directory(record);
    }
    let count = u32::try_from(sources.len()).expect("fewer than 2^32 sources");
    thread::scope(|scope| {
        let mut streams = Vec::with_capacity(sources.len());
        for (partition, source) in (0..).zip(sources) {
            let (sender, batches) = sync_channel(AHEAD);
            let meter = Meter::new(Arc::clone(rules), partition, count, 1);
            let meter = if source.is_text() { meter.over_lines() } else { meter };
            scope.spawn(move || read(source, meter, &sender));
            streams.push(Stream { batches: Some(batches), stream_time: None });
        }
        // left early, the streams go first: a thread that cannot send ends
        while let Some(index) = furthest_behind(&streams) {
            replay.take(index, &mut streams[index], sink)?;
        }
        replay.finish(streams.iter().filter_map(|stream| stream.stream_time).max(), sink)
    })
}

/// What a METER task made of some records.
struct Batch {
    outbox: Outbox,
    stream_time: Option<Timestamp>,
    /// Why it stops after them; what was refused before shows it.
    stopped: Option<Fatal>,
}

/// What comes from one METER task.
struct Stream {
    /// `None` once the source has ended.
    batches: Option<Receiver<Batch>>,
    /// After the last batch taken.
    stream_time: Option<Timestamp>,
}

fn furthest_behind(streams: &[Stream]) -> Option<usize> {
    let open = (0..streams.len()).filter(|index| streams[*index].batches.is_some());
    open.min_by_key(|index| streams[*index].stream_time)
}

/// A thread: feeds a source to its METER task until its end, an error, or nobody's listening.
fn read(mut source: Box<dyn Source + '_>, mut meter: Meter, sender: &SyncSender<Batch>) {
    let mut buffer = Buffer::default();
    loop {
        let mut outbox = Outbox::without_changes();
        let unread = buffer.fill(source.as_mut());
        let at = |error| stopped_at(source.as_ref(), error);
        let counted = meter.process_all(&buffer.records(), &mut outbox).map_err(at);
        let stopped = counted.and(unread).err();
        let is_over = stopped.is_some() || buffer.is_last;
        if is_over {
            meter.go_idle();
        }
        if stopped.is_none() && meter.is_urgent() {
            meter.seal(&mut outbox);
        }
        let batch = Batch { outbox, stream_time: meter.stream_time(), stopped };
        if sender.send(batch).is_err() || is_over {
            return;
        }
    }
}

/// Records of a source, which lends one at a time.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Number of each record and where it ends.
    ends: Vec<(u64, usize)>,
    /// The source had no more.
    is_last: bool,
}

impl Buffer {
    fn fill(&mut self, source: &mut dyn Source) -> Result<(), Fatal> {
        self.bytes.clear();
        self.ends.clear();
        while self.ends.len() < BATCH && self.bytes.len() < BATCH_BYTES && !self.is_last {
            match source.next()? {
                Some((number, value)) => {
                    self.bytes.extend_from_slice(value);
                    self.ends.push((number, self.bytes.len()));
                }
                None => self.is_last = true,
            }
        }
        Ok(())
    }

    fn records(&self) -> Vec<Record<'_>> {
        let mut start = 0;
        let record = |&(offset, end): &(u64, usize)| {
            let value = Some(&self.bytes[start..end]);
            start = end;
            Record { offset, timestamp: None, key: None, value, headers: &[] }
        };
        self.ends.iter().map(record).collect()
    }
}

struct Replay {
    account: Account,
    group: Group,
    tally: Tally,
    /// Offsets of the two internal streams.
    account_offset: u64,
    group_offset: u64,
    /// Alerts not yet handed on: ACCOUNT may judge several slice ends before GROUP follows.
    alerts: Vec<Alert>,
}

impl Replay {
    fn new(rules: &Arc<Rules>, policies: &Arc<Policies>) -> Self {
        Self {
            account: Account::new(Arc::clone(rules), Arc::clone(policies), 0, 1),
            group: Group::new(Arc::clone(rules), Arc::clone(policies)),
            tally: Tally::default(),
            account_offset: 0,
            group_offset: 0,
            alerts: Vec::new(),
        }
    }

    /// Takes the next batch of a stream, or its end.
    fn take(
        &mut self,
        index: usize,
        stream: &mut Stream,
        sink: &mut dyn Sink,
    ) -> Result<(), Fatal> {
        let batches = stream.batches.as_ref().expect("only open streams are chosen");
        let Ok(batch) = batches.recv() else {
            stream.batches = None;
            return Ok(());
        };
        stream.stream_time = batch.stream_time;
        self.take_meter_outputs(index, batch.outbox, sink)?;
        sink.progress(&self.tally);
        batch.stopped.map_or(Ok(()), Err)
    }

    fn take_meter_outputs(
        &mut self,
        index: usize,
        outbox: Outbox,
        sink: &mut dyn Sink,
    ) -> Result<(), Fatal> {
        self.tally.add(&outbox.tally);
        for output in outbox.outputs {
            match output {
                Output::Forward { value, .. } => {
                    for value in watched(value, sink)? {
                        self.take_sums(&value, sink)?;
                    }
                }
                Output::DeadLetter(letter) => sink.dead_letter(index, &letter)?,
                Output::Change { .. } | Output::Alert(_) => {}
            }
        }
        Ok(())
    }

    fn take_sums(&mut self, value: &[u8], sink: &mut dyn Sink) -> Result<(), Fatal> {
        let mut outbox = Outbox::without_changes();
        let record = internal_record(&mut self.account_offset, value);
        self.account.process(&record, &mut outbox).map_err(stopped)?;
        self.account.seal(&mut outbox);
        self.take_account_outputs(outbox)?;
        self.hand_on_alerts(sink)
    }

    fn take_account_outputs(&mut self, outbox: Outbox) -> Result<(), Fatal> {
        self.tally.add(&outbox.tally);
        for output in outbox.outputs {
            match output {
                Output::Forward { value, .. } => {
                    let mut outbox = Outbox::without_changes();
                    let record = internal_record(&mut self.group_offset, &value);
                    self.group.process(&record, &mut outbox).map_err(stopped)?;
                    self.group.seal(&mut outbox);
                    self.take_group_outputs(outbox);
                }
                Output::Alert(alert) => self.alerts.push(*alert),
                Output::Change { .. } | Output::DeadLetter(_) => {}
            }
        }
        Ok(())
    }

    fn take_group_outputs(&mut self, outbox: Outbox) {
        self.tally.add(&outbox.tally);
        for output in outbox.outputs {
            match output {
                Output::Alert(alert) => self.alerts.push(*alert),
                Output::Forward { .. } | Output::Change { .. } | Output::DeadLetter(_) => {}
            }
        }
    }

    /// GROUP has followed ACCOUNT: in order of slice end, accounts and sites before owners and
    /// countries.
    fn hand_on_alerts(&mut self, sink: &mut dyn Sink) -> Result<(), Fatal> {
        let is_group = |alert: &Alert| {
            [Scope::Owner, Scope::Country].iter().any(|scope| scope.name() == alert.scope)
        };
        self.alerts.sort_by_key(|alert| (alert.at, is_group(alert)));
        self.alerts.drain(..).try_for_each(|alert| sink.alert(&alert))
    }

    /// Every watermark goes to infinity.
    fn finish(mut self, last: Option<Timestamp>, sink: &mut dyn Sink) -> Result<Outcome, Fatal> {
        if let Some(last) = last {
            self.group.end_at(last);
            let mut outbox = Outbox::without_changes();
            self.account.finish(last, &mut outbox);
            self.account.seal(&mut outbox);
            self.take_account_outputs(outbox)?;
            let mut outbox = Outbox::without_changes();
            self.group.finish(last, &mut outbox).map_err(stopped)?;
            self.take_group_outputs(outbox);
            self.hand_on_alerts(sink)?;
        }
        let ledger = ledger(&self.account, &self.group);
        Ok(Outcome { tally: self.tally, ledger })
    }
}

/// METER's record as it goes on, once the sink has seen its sums.
fn watched(value: Vec<u8>, sink: &mut dyn Sink) -> Result<Vec<Vec<u8>>, Fatal> {
    if !sink.watches() {
        return Ok(vec![value]);
    }
    let mut names = Names::default();
    let (head, sums) = unpack_usage(&value, &mut names).map_err(stopped)?;
    let mut kept = UsagePacker::new(head.input, head.inputs, head.gap);
    let mut all = true;
    for sum in &sums {
        if sink.sum(names.text(sum.account), sum) {
            kept.add(&names, sum);
        } else {
            all = false;
        }
    }
    Ok(if all { vec![value] } else { kept.finish(head.watermark, head.idle) })
}

/// Every retained slice of the finest tier that is not all zero, sorted by scope, key and end.
fn ledger(account: &Account, group: &Group) -> Vec<LedgerRow> {
    let accounts = account.ledger().map(|(key, end, sum)| (Scope::Account, key, end, sum));
    let mut rows: BTreeMap<(&'static str, &str, Timestamp), Measure> = BTreeMap::new();
    for (scope, key, end, sum) in accounts.chain(group.ledger()) {
        if !sum.is_zero() {
            rows.insert((scope.name(), key, end), sum);
        }
    }
    rows.into_iter()
        .map(|((scope, key, end), sum)| LedgerRow {
            scope,
            key: key.to_owned(),
            end,
            sum: Sum::of(&sum),
        })
        .collect()
}

fn internal_record<'a>(offset: &mut u64, value: &'a [u8]) -> Record<'a> {
    let record =
        Record { offset: *offset, timestamp: None, key: None, value: Some(value), headers: &[] };
    *offset += 1;
    record
}

/// METER's error at a record of a source.
fn stopped_at(source: &dyn Source, error: StageError) -> Fatal {
    match error {
        StageError::TooManyInvalid { offset, limit, last } => Fatal::Input(format!(
            "{}: {limit} invalid records in a row before this one ({}: {}): mend the file or \
             input.format, or raise dead_letter.max_consecutive",
            source.place(offset),
            last.reason.name(),
            last.detail
        )),
        StageError::State(_) => stopped(error),
    }
}

/// The stages' own records are sound.
fn stopped(error: StageError) -> Fatal {
    Fatal::Internal(error.to_string())
}
