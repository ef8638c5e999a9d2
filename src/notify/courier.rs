//! One target's thread: reads the alert topics as a member of the target's own group, delivers, and
//! commits what the target has taken.
//!
//! While a target does not answer, nothing more is read for it, its positions stay, and it is tried
//! again at growing intervals; the other targets go on. What is under way when the process stops is
//! finished and committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::http::Failure;
use crate::detector::event::Record;
use crate::detector::time::Timestamp;
use crate::error::Fatal;
use crate::http::health::{Health, Phase};
use crate::kafka::batch::Polled;
use crate::kafka::subscriber::{Given, Position, Subscriber};
use crate::kafka::task::Trouble;
use crate::metrics::{self, Target, Undelivered};

/// When there is nothing to do.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two tries while the broker is away.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two tries of a target that does not answer: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Between two looks at the lag.
const LOOK: Duration = Duration::from_secs(1);

/// Both clocks: one for waits, one for what is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) wall: Timestamp,
}

impl Now {
    fn read() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(since.as_nanos()).map_or(Timestamp::LATEST, Timestamp);
        Self { instant: Instant::now(), wall }
    }
}

/// What a target is told, and how far it has taken it. Partitions are numbered from 0 in the order
/// in which they begin.
pub(crate) trait Desk {
    fn target(&self) -> Target;
    /// A partition begins; returns the offset to read from.
    fn begin(&mut self, given: &Given) -> u64;
    fn take(&mut self, number: usize, record: &Record<'_>, now: Now);
    /// All before `offset` was handed over, and there is no more.
    fn at_end(&mut self, number: usize, offset: u64);
    /// Every partition is gone.
    fn forget(&mut self);
    /// Nothing more may be taken before something is delivered.
    fn is_full(&self) -> bool;
    fn is_due(&self, now: Now) -> bool;
    /// Delivers something of what is due.
    fn deliver(&mut self, now: Now) -> Result<(), Failure>;
    /// Up to where all is delivered, if that is beyond what the group knows.
    fn settled(&self, number: usize, known: Option<u64>) -> Option<Position>;
    /// Partitions that are still read for the first time.
    fn remaining(&self) -> u32;
}

pub(crate) struct Courier<D> {
    number: usize,
    desk: D,
    subscriber: Subscriber,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    /// What the group knows, by partition.
    committed: Vec<Option<Position>>,
    /// Failures of the target in a row, and when to try again.
    failures: u32,
    retry_at: Instant,
    /// When to talk to the broker again after trouble.
    open_at: Instant,
    looked: Instant,
}

impl<D: Desk> Courier<D> {
    pub(crate) fn new(
        number: usize,
        desk: D,
        subscriber: Subscriber,
        health: Arc<Health>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            number,
            desk,
            subscriber,
            health,
            stop,
            committed: Vec::new(),
            failures: 0,
            retry_at: now,
            open_at: now,
            looked: now,
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(&mut self) -> Result<(), Fatal> {
        let mut pause = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            pause = match self.round(pause) {
                Ok(true) => Duration::ZERO,
                Ok(false) => PAUSE,
                Err(Trouble::Fatal(fatal)) => return Err(fatal),
                Err(
                    Trouble::Passing(detail)
                    | Trouble::Undecided(detail)
                    | Trouble::Aborted { detail, .. },
                ) => {
                    let target = self.desk.target().name();
                    tracing::warn!(target_name = target, detail, "trouble: reads anew");
                    self.restart();
                    PAUSE
                }
            };
        }
        Ok(())
    }

    /// What is open is read again from its committed position.
    fn restart(&mut self) {
        self.subscriber.close();
        self.forget();
        self.open_at = Instant::now() + AGAIN;
    }

    fn forget(&mut self) {
        self.desk.forget();
        self.committed.clear();
        // what failed is taken anew
        self.failures = 0;
        self.health.worker(self.number, Phase::Joining);
    }

    /// One round; says whether there was something to do.
    fn round(&mut self, pause: Duration) -> Result<bool, Trouble> {
        if self.subscriber.serve(pause)?.is_some() {
            self.forget();
        }
        let mut now = Now::read();
        if self.subscriber.is_waiting() && now.instant >= self.open_at {
            self.open()?;
        }
        if now.instant < self.retry_at {
            self.look(now);
            return Ok(false);
        }
        let mut busy = false;
        let is_failing = self.failures > 0 && self.desk.is_due(now);
        if !is_failing && !self.desk.is_full() {
            busy = self.read(now)?;
            now = Now::read();
        }
        if self.desk.is_due(now) {
            self.deliver(now);
            busy = true;
        }
        self.commit()?;
        self.look(now);
        Ok(busy && self.failures == 0)
    }

    fn open(&mut self) -> Result<(), Trouble> {
        let (desk, committed) = (&mut self.desk, &mut self.committed);
        // an earlier try may have begun some
        desk.forget();
        committed.clear();
        self.subscriber.open(|given| {
            committed.push(given.committed.clone());
            desk.begin(given)
        })?;
        tracing::info!(
            target_name = self.desk.target().name(),
            partitions = self.committed.len(),
            "reading alerts"
        );
        Ok(())
    }

    fn read(&mut self, now: Now) -> Result<bool, Trouble> {
        let desk = &mut self.desk;
        let records = self.subscriber.read(|number, polled| {
            match polled {
                Polled::Records(records) => {
                    records.iter().for_each(|record| desk.take(number, record, now));
                }
                Polled::End { offset } => desk.at_end(number, offset),
                // a position outside the log, or a topic that is gone: asked for anew
                Polled::Failed(code) => {
                    return Err(Trouble::Passing(format!("reading alerts: {code}")));
                }
            }
            Ok(())
        })?;
        Ok(records > 0)
    }

    fn deliver(&mut self, now: Now) {
        let target = self.desk.target();
        match self.desk.deliver(now) {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(target_name = target.name(), "delivers again");
                }
                self.failures = 0;
            }
            Err(Failure::Again(detail) | Failure::Refused(detail)) => {
                metrics::not_notified(target, Undelivered::Again);
                let wait = retry(self.failures);
                let seconds = wait.as_secs_f64();
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(target_name = target.name(), detail, seconds, "not delivered yet");
                self.retry_at = Instant::now() + wait;
            }
        }
    }

    /// Commits what has been delivered since the last commit.
    fn commit(&mut self) -> Result<(), Trouble> {
        let mut positions = Vec::new();
        for number in 0..self.committed.len() {
            let known = self.committed[number].as_ref().map(|position| position.offset);
            positions.extend(self.desk.settled(number, known).map(|position| (number, position)));
        }
        if positions.is_empty() {
            return Ok(());
        }
        self.subscriber.commit(&positions)?;
        for (number, position) in positions {
            self.committed[number] = Some(position);
        }
        Ok(())
    }

    /// Now and then: what probes and series show.
    fn look(&mut self, now: Now) {
        if now.instant.duration_since(self.looked) < LOOK {
            return;
        }
        self.looked = now.instant;
        let mut lag = 0;
        for (number, committed) in self.committed.iter().enumerate() {
            let delivered = committed.as_ref().map_or(0, |position| position.offset);
            lag += self.subscriber.end(number).map_or(0, |end| end.saturating_sub(delivered));
        }
        metrics::notify_lag(self.desk.target(), lag);
        if !self.subscriber.is_waiting() && self.subscriber.is_member() {
            let remaining = self.desk.remaining();
            let phase = match remaining {
                0 => Phase::Running,
                remaining => Phase::Restoring { remaining },
            };
            self.health.worker(self.number, phase);
        }
    }
}

/// How long to wait after this many failures in a row.
fn retry(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.min(7)).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_grow_to_a_minute_and_stay_there() {
        assert_eq!(retry(0), Duration::from_millis(500));
        assert_eq!(retry(1), Duration::from_secs(1));
        assert_eq!(retry(6), Duration::from_secs(32));
        assert_eq!(retry(7), LAST_RETRY);
        assert_eq!(retry(u32::MAX), LAST_RETRY);
    }
}
