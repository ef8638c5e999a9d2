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
//!   `read_uncommitted` and reads to it (`restore.rs`).
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

pub mod batch;
pub mod client;
pub mod context;
mod directory;
mod restore;
mod task;
pub mod topology;
mod transaction;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use crate::config::Config;
use crate::detector::policy::Policies;
use crate::error::Fatal;
use crate::http::health::Health;
use crate::metrics;
use directory::{Directory, Reader};
use task::Shared;
use topology::Layout;
use worker::{Inlets, Worker};

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
    ended: Receiver<Result<(), Fatal>>,
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
        let (ended, ends) = channel();
        let mut service = Self {
            stop: Arc::clone(&stop),
            health: Arc::clone(health),
            policies: Vec::new(),
            threads: Vec::new(),
            ended: ends,
        };
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
            let work = move || Worker::new(number, inlets)?.run();
            service.spawn(format!("worker-{number}"), &ended, work)?;
        }
        let reader = Reader::new(&shared, &directory, tellers, health, &stop)?;
        service.spawn("directory".to_owned(), &ended, move || reader.run())?;
        metrics::policies_in_force(&config.policies);
        Ok(service)
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
    pub fn failure(&self, timeout: std::time::Duration) -> Option<Fatal> {
        match self.ended.recv_timeout(timeout) {
            Ok(Err(fatal)) => Some(fatal),
            Ok(Ok(())) | Err(_) => None,
        }
    }

    /// Stops, waits for every thread, and says what went wrong first.
    pub fn join(self) -> Result<(), Fatal> {
        self.stop();
        for thread in self.threads {
            if thread.join().is_err() {
                return Err(Fatal::Internal("a thread panicked: see its message above".into()));
            }
        }
        self.ended.try_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    fn spawn(
        &mut self,
        name: String,
        ended: &Sender<Result<(), Fatal>>,
        work: impl FnOnce() -> Result<(), Fatal> + Send + 'static,
    ) -> Result<(), Fatal> {
        let ended = ended.clone();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                let result = result.unwrap_or_else(|_| {
                    Err(Fatal::Internal("a thread panicked: see its message above".into()))
                });
                // nobody listens once the service is dropped
                ended.send(result).unwrap_or_default();
            })
            .map_err(|error| Fatal::Internal(format!("starting a thread: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }
}
