//! What the probes answer, told by the directory's reader and the workers.
//!
//! Ready means: the directory has been read to its end, and every worker has an assignment whose
//! tasks are all restored. A rebalance makes a worker unready until it has restored again. Live
//! means only that the process answers: an unreachable broker is no reason to restart it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits for its partitions.
    Joining,
    /// Reads changelogs: this many of its tasks are not yet restored.
    Restoring { remaining: u32 },
    /// Processes; it may hold no partition at all when there are more workers than partitions.
    Running,
}

const JOINING: u64 = u64::MAX;
const RUNNING: u64 = 0;

impl Phase {
    /// One word, so that a reader never sees half a change.
    const fn to_word(self) -> u64 {
        match self {
            Self::Joining => JOINING,
            Self::Restoring { remaining } => remaining as u64,
            Self::Running => RUNNING,
        }
    }
}

/// Shared by the workers, which write, and the probes, which read.
#[derive(Debug)]
pub struct Health {
    directory_read: AtomicBool,
    stopping: AtomicBool,
    workers: Vec<AtomicU64>,
}

impl Health {
    pub fn new(workers: usize) -> Self {
        Self {
            directory_read: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            workers: (0..workers).map(|_| AtomicU64::new(JOINING)).collect(),
        }
    }

    /// The directory has been read to its end.
    pub fn directory_read(&self) {
        self.directory_read.store(true, Ordering::Release);
    }

    /// A worker has changed its phase.
    pub fn worker(&self, worker: usize, phase: Phase) {
        let slot = self.workers.get(worker).expect("workers are numbered from 0 to their count");
        slot.store(phase.to_word(), Ordering::Release);
    }

    /// The process drains and will end.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Why the process is not ready, for a person to read; `None` when it is.
    pub fn unready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping".into());
        }
        if !self.directory_read.load(Ordering::Acquire) {
            return Some("reading the account directory".into());
        }
        let (mut joining, mut restoring) = (0_u64, 0_u64);
        for slot in &self.workers {
            match slot.load(Ordering::Acquire) {
                JOINING => joining += 1,
                remaining => restoring += remaining,
            }
        }
        if joining > 0 {
            let workers = self.workers.len();
            return Some(format!("{joining} of {workers} workers wait for their partitions"));
        }
        (restoring > 0).then(|| format!("{restoring} tasks are being restored"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_the_directory_and_every_worker_restored() {
        let health = Health::new(2);
        assert_eq!(health.unready().as_deref(), Some("reading the account directory"));
        health.directory_read();
        assert_eq!(health.unready().as_deref(), Some("2 of 2 workers wait for their partitions"));
        health.worker(0, Phase::Restoring { remaining: 3 });
        assert_eq!(health.unready().as_deref(), Some("1 of 2 workers wait for their partitions"));
        health.worker(1, Phase::Restoring { remaining: 2 });
        assert_eq!(health.unready().as_deref(), Some("5 tasks are being restored"));
        health.worker(0, Phase::Running);
        health.worker(1, Phase::Running);
        assert_eq!(health.unready(), None);
    }

    #[test]
    fn a_rebalance_takes_readiness_away_and_stopping_ends_it() {
        let health = Health::new(1);
        health.directory_read();
        health.worker(0, Phase::Running);
        assert_eq!(health.unready(), None);
        health.worker(0, Phase::Joining);
        assert!(health.unready().is_some());
        health.worker(0, Phase::Restoring { remaining: 0 });
        assert_eq!(health.unready(), None);
        health.stopping();
        assert_eq!(health.unready().as_deref(), Some("stopping"));
    }
}
