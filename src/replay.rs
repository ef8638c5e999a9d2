//! The three stages driven from any source of records: what `replay`, `validate`, tests and benches
//! run is what `run` runs.
//!
//! One METER task a source, one ACCOUNT and one GROUP task: results do not depend on how many
//! partitions the internal topics have. The source that is furthest behind in event time is read
//! first, so that memory stays bounded whatever the sources' pace.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::detector::account::Account;
use crate::detector::alert::{Alert, Sum};
use crate::detector::directory::AccountRecord;
use crate::detector::event::Record;
use crate::detector::group::Group;
use crate::detector::measure::Measure;
use crate::detector::meter::Meter;
use crate::detector::outbox::{DeadLetter, Outbox, Output, Tally};
use crate::detector::policy::{Policies, Scope};
use crate::detector::rules::Rules;
use crate::detector::time::Timestamp;
use crate::detector::{Stage, StageError};
use crate::error::Fatal;

/// Records read from one source before the next choice.
const BATCH: usize = 4096;

/// Usage records of one partition, in order.
pub trait Source {
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
    let mut replay = Replay::new(rules, policies, &sources);
    for record in accounts {
        replay.account.directory(record);
    }
    let mut sources: Vec<Option<Box<dyn Source + '_>>> = sources.into_iter().map(Some).collect();
    while let Some(index) = replay.furthest_behind(&sources) {
        let source = sources[index].as_mut().expect("only open sources are chosen");
        if !replay.read_batch(index, source.as_mut(), sink)? {
            sources[index] = None;
            replay.meters[index].go_idle();
        }
        replay.forward(index, sink)?;
        sink.progress(&replay.tally);
    }
    replay.finish(sink)
}

struct Replay {
    meters: Vec<Meter>,
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
    fn new(rules: &Arc<Rules>, policies: &Arc<Policies>, sources: &[Box<dyn Source + '_>]) -> Self {
        let count = u32::try_from(sources.len()).expect("fewer than 2^32 sources");
        let meters = (0..).zip(sources).map(|(partition, source)| {
            let meter = Meter::new(Arc::clone(rules), partition, count, 1);
            if source.is_text() { meter.over_lines() } else { meter }
        });
        Self {
            meters: meters.collect(),
            account: Account::new(Arc::clone(rules), Arc::clone(policies), 0, 1),
            group: Group::new(Arc::clone(rules), Arc::clone(policies)),
            tally: Tally::default(),
            account_offset: 0,
            group_offset: 0,
            alerts: Vec::new(),
        }
    }

    fn furthest_behind(&self, sources: &[Option<Box<dyn Source + '_>>]) -> Option<usize> {
        let open = (0..sources.len()).filter(|index| sources[*index].is_some());
        open.min_by_key(|index| self.meters[*index].stream_time())
    }

    /// Feeds a batch to a meter; false at the source's end.
    fn read_batch(
        &mut self,
        index: usize,
        source: &mut dyn Source,
        sink: &mut dyn Sink,
    ) -> Result<bool, Fatal> {
        let mut outbox = Outbox::without_changes();
        let mut end = Ok(true);
        for _ in 0..BATCH {
            let Some((number, value)) = source.next()? else {
                end = Ok(false);
                break;
            };
            let record = Record {
                offset: number,
                timestamp: None,
                key: None,
                value: Some(value),
                headers: &[],
            };
            if let Err(error) = self.meters[index].process(&record, &mut outbox) {
                end = Err(stopped_at(source.place(number), error));
                break;
            }
        }
        // what was refused shows why the replay stops
        self.take_meter_outputs(index, outbox, sink)?;
        end
    }

    /// Sends a meter's sums on when its watermark moved or it went idle.
    fn forward(&mut self, index: usize, sink: &mut dyn Sink) -> Result<(), Fatal> {
        if !self.meters[index].is_urgent() {
            return Ok(());
        }
        let mut outbox = Outbox::without_changes();
        self.meters[index].seal(&mut outbox);
        self.take_meter_outputs(index, outbox, sink)
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
                    let mut outbox = Outbox::without_changes();
                    let record = internal_record(&mut self.account_offset, &value);
                    self.account.process(&record, &mut outbox).map_err(stopped)?;
                    self.account.seal(&mut outbox);
                    self.take_account_outputs(outbox)?;
                    self.hand_on_alerts(sink)?;
                }
                Output::DeadLetter(letter) => sink.dead_letter(index, &letter)?,
                Output::Change { .. } | Output::Alert(_) => {}
            }
        }
        Ok(())
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
    fn finish(mut self, sink: &mut dyn Sink) -> Result<Outcome, Fatal> {
        if let Some(last) = self.meters.iter().filter_map(Meter::stream_time).max() {
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
fn stopped_at(place: String, error: StageError) -> Fatal {
    match error {
        StageError::TooManyInvalid { limit, last, .. } => Fatal::Input(format!(
            "{place}: {limit} invalid records in a row before this one ({}: {}): mend the file or \
             input.format, or raise dead_letter.max_consecutive",
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
