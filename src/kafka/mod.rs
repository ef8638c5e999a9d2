//! The Kafka shell: moves bytes between topics and stages, exactly once, and decides nothing about
//! usage.
//!
//! # Exactly once
//! A task is a pure function of the records of its partition. What it wants to happen (outputs and
//! changelog) waits in its outbox; at a commit one transaction carries the outboxes of all tasks
//! of a worker *and* the positions after the records that led to them. So after any crash, the
//! group's committed position, the changelog and what `read_committed` readers see agree, because
//! the broker decided all three together. Three things could still break it, and each has its
//! guard:
//!
//! * *Two owners.* The transaction carries the consumer's group metadata (member and generation),
//!   so the coordinator refuses positions from whoever no longer owns the partition; and a new
//!   producer under the same transactional id fences the old one.
//! * *A decision in flight.* The next owner asks for *stable* positions, which the broker withholds
//!   while a transaction that moves them is undecided, and only then takes the changelog's end as
//!   `read_uncommitted` and reads to it (`restore.rs`). A decision that never comes stops us
//!   (`undecided.rs`).
//! * *Memory ahead of the broker.* After an abort, a fence or a lost assignment the tasks hold what
//!   never happened. They are dropped and restored: there is no undo in memory.
//!
//! # Threads
//! *Workers*: each has one consumer (a static member of the group), one transactional producer and
//! its tasks, all by value; nothing is shared on the path of a record. *The directory's reader*:
//! one thread that reads `accounts` into a shared table and tells every worker. librdkafka's own
//! threads fetch and send. Whoever starts the [`Service`] waits for it; HTTP has a thread of its
//! own.
//!
//! Nothing here waits for a lock that another thread holds while it waits: channels to workers are
//! bounded, and a worker never waits for the directory once it has been read.

pub mod alerts;
pub mod batch;
pub mod client;
pub mod context;
mod directory;
mod restore;
pub(crate) mod subscriber;
pub(crate) mod task;
pub mod topology;
mod transaction;
mod undecided;
mod worker;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::Config;
use crate::detector::policy::Policies;
use crate::error::Fatal;
use crate::http::health::Health;
use crate::metrics;
use directory::{Directory, Reader};
use task::Shared;
use topology::Layout;
use worker::{Inlets, Worker};

/// How long the threads may take to drain, leave and close their clients: longer than a last
/// commit that is tried until the coordinator gives it up.
const DRAIN: Duration = Duration::from_secs(60);

/// What `run` is asked to do beyond its configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Go on when retention has removed records that were never read.
    pub accept_gap: bool,
}

/// The running threads of one process.
pub struct Service {
    stop: Arc<AtomicBool>,
    health: Arc<Health>,
    policies: Vec<Sender<Arc<Policies>>>,
    threads: Vec<JoinHandle<()>>,
    /// Every thread's result, sent before it closes what it owns: a client that cannot be closed
    /// must not keep the reason to itself.
    ended: Receiver<Result<(), Fatal>>,
    /// Disconnected once every thread is gone.
    gone: Receiver<Infallible>,
}

/// What a thread reports through.
#[derive(Clone)]
pub(crate) struct Reports {
    ended: Sender<Result<(), Fatal>>,
    /// Never sent on; dropped with the thread.
    gone: Sender<Infallible>,
}

impl Service {
    /// Starts the workers and the directory's reader over topics that exist.
    pub fn start(
        config: &Arc<Config>,
        layout: Layout,
        options: Options,
        health: &Arc<Health>,
    ) -> Result<Self, Fatal> {
        let shared = Arc::new(Shared {
            config: Arc::clone(config),
            tasks: layout.tasks,
            usage: AtomicU32::new(layout.usage),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let directory = Arc::new(Directory::default());
        let (mut service, reports) = Self::new(&stop, health);
        let mut tellers = Vec::new();
        for number in 0..config.kafka.workers {
            let (teller, told) = sync_channel(directory::WAITING);
            let (policies, new_policies) = channel();
            tellers.push(teller);
            service.policies.push(policies);
            let inlets = Inlets {
                shared: Arc::clone(&shared),
                policies: Arc::clone(&config.policies),
                new_policies,
                directory: Arc::clone(&directory),
                told,
                health: Arc::clone(health),
                stop: Arc::clone(&stop),
                accept_gap: options.accept_gap,
            };
            // made in its thread, whose callbacks it serves
            let make = move || Worker::new(number, inlets);
            service.spawn(format!("worker-{number}"), &reports, make, Worker::run)?;
        }
        let reader = Reader::new(&shared, &directory, tellers, health, &stop)?;
        service.spawn("directory".to_owned(), &reports, move || Ok(reader), Reader::run)?;
        metrics::policies_in_force(&config.policies);
        Ok(service)
    }

    /// Without threads yet.
    pub(crate) fn new(stop: &Arc<AtomicBool>, health: &Arc<Health>) -> (Self, Reports) {
        let (ended, ends) = channel();
        let (gone, is_gone) = channel();
        let service = Self {
            stop: Arc::clone(stop),
            health: Arc::clone(health),
            policies: Vec::new(),
            threads: Vec::new(),
            ended: ends,
            gone: is_gone,
        };
        (service, Reports { ended, gone })
    }

    /// Every task takes these up at its next judgement.
    pub fn set_policies(&self, policies: &Arc<Policies>) {
        metrics::policies_in_force(policies);
        for worker in &self.policies {
            // a worker that is gone has said why
            worker.send(Arc::clone(policies)).unwrap_or_default();
        }
    }

    /// Asks every thread to drain and end; `join` waits for it.
    pub fn stop(&self) {
        self.health.stopping();
        self.stop.store(true, Ordering::Release);
    }

    /// Waits up to `timeout` for a thread to end by itself, which none does unless it must.
    pub fn failure(&self, timeout: Duration) -> Option<Fatal> {
        match self.ended.recv_timeout(timeout) {
            Ok(Err(fatal)) => Some(fatal),
            Ok(Ok(())) | Err(_) => None,
        }
    }

    /// Stops, waits for every thread, and says what went wrong first. A thread that does not end
    /// is left behind: the process ends without it, and what it had not committed never was.
    pub fn join(self) -> Result<(), Fatal> {
        self.join_within(DRAIN)
    }

    fn join_within(self, limit: Duration) -> Result<(), Fatal> {
        self.stop();
        let first = |ended: &Receiver<Result<(), Fatal>>| ended.try_iter().find_map(Result::err);
        if self.gone.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let hanging = self.threads.iter().filter(|thread| !thread.is_finished());
            let names: Vec<&str> = hanging.filter_map(|thread| thread.thread().name()).collect();
            tracing::error!(threads = ?names, seconds = limit.as_secs(), "threads do not end");
            let text = format!("threads {names:?} do not end: left behind");
            return Err(first(&self.ended).unwrap_or(Fatal::Internal(text)));
        }
        for thread in self.threads {
            if thread.join().is_err() {
                return Err(Fatal::Internal("a thread panicked: see its message above".into()));
            }
        }
        first(&self.ended).map_or(Ok(()), Err)
    }

    /// Makes a thread's owner in the thread and runs it.
    pub(crate) fn spawn<T>(
        &mut self,
        name: String,
        reports: &Reports,
        make: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
        run: impl FnOnce(&mut T) -> Result<(), Fatal> + Send + 'static,
    ) -> Result<(), Fatal> {
        let reports = reports.clone();
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let Reports { ended, gone } = reports;
                let mut owner = None;
                let work = AssertUnwindSafe(|| run(owner.insert(make()?)));
                let result = catch_unwind(work).unwrap_or_else(|_| {
                    Err(Fatal::Internal("a thread panicked: see its message above".into()))
                });
                if let Err(fatal) = &result {
                    tracing::error!(thread = name, %fatal, "ends the process");
                }
                // nobody listens once the service is dropped
                ended.send(result).unwrap_or_default();
                drop(owner);
                drop(gone);
            })
            .map_err(|error| Fatal::Internal(format!("starting a thread: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for a client that cannot be closed.
    struct Stuck(Receiver<()>);

    impl Drop for Stuck {
        fn drop(&mut self) {
            self.0.recv().unwrap_or_default();
        }
    }

    #[test]
    fn a_thread_that_cannot_close_keeps_neither_its_reason_nor_the_process() {
        let (stop, health) = (Arc::new(AtomicBool::new(false)), Arc::new(Health::new(1)));
        let (mut service, reports) = Service::new(&stop, &health);
        let (release, held) = channel();
        let fails = |_: &mut Stuck| Err(Fatal::Broker("gone".into()));
        service
            .spawn("stuck".into(), &reports, move || Ok(Stuck(held)), fails)
            .expect("a thread starts");
        let fatal = service.failure(Duration::from_secs(20));
        assert_eq!(fatal, Some(Fatal::Broker("gone".into())));
        let left = service.join_within(Duration::from_millis(50)).expect_err("it hangs");
        assert!(left.to_string().contains("\"stuck\""), "{left}");
        drop(release);
    }

    #[test]
    fn a_panic_is_a_reason_like_any_other() {
        let (stop, health) = (Arc::new(AtomicBool::new(false)), Arc::new(Health::new(1)));
        let (mut service, reports) = Service::new(&stop, &health);
        let panics = |(): &mut ()| panic!("on purpose");
        service.spawn("panics".into(), &reports, || Ok(()), panics).expect("a thread starts");
        drop(reports);
        let fatal = service.join().expect_err("it panics");
        assert!(fatal.to_string().contains("panicked"), "{fatal}");
    }
}
