//! Usage that keeps coming while faults strike, and a reader that sees what has been committed.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flopwatch::proto::AccountUsage;
use flopwatch::simulate::publish::Publisher;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::broker::Broker;
use crate::world::World;

const UNPOISONED: &str = "nothing panics while it holds this lock";

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(20);

/// Sends a world's partitions side by side, most of it within a planned time and the rest ever
/// more slowly, so that something comes however long the faults take.
pub(crate) struct Feed {
    finish: Sender<()>,
    thread: JoinHandle<()>,
}

impl Feed {
    pub(crate) fn start(world: &Arc<World>, topic: &str, address: &str, planned: Duration) -> Self {
        let (finish, told) = channel();
        let (world, topic, address) = (Arc::clone(world), topic.to_owned(), address.to_owned());
        let thread = thread::spawn(move || {
            let publisher = Publisher::new(&address, &Default::default()).expect("a producer");
            let began = Instant::now();
            let mut sent = vec![0; world.partitions.len()];
            loop {
                let finishing = told.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout);
                let share = if finishing { 1.0 } else { share(began.elapsed(), planned) };
                for ((number, records), sent) in (0..).zip(&world.partitions).zip(&mut sent) {
                    let until = until(records.len(), share);
                    for (key, value) in &records[*sent..until] {
                        publisher
                            .send(&topic, Some(number), key.as_deref(), value)
                            .expect("usage is sent");
                    }
                    *sent = until;
                }
                if finishing {
                    return publisher.finish(&topic).expect("usage is written");
                }
            }
        });
        Self { finish, thread }
    }

    /// Sends what is left at once and waits until it is written.
    pub(crate) fn finish(self) {
        // a feed that has failed says why when it is joined
        self.finish.send(()).unwrap_or_default();
        self.thread.join().expect("the feed does not fail");
    }
}

fn share(elapsed: Duration, planned: Duration) -> f64 {
    let elapsed = elapsed.as_secs_f64() / planned.as_secs_f64();
    if elapsed < 1.0 { 0.9 * elapsed } else { 1.0 - 0.1 * (1.0 - elapsed).exp() }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a few million records, cut off"
)]
fn until(records: usize, share: f64) -> usize {
    // the closing records come last of all
    if share < 1.0 { (records as f64 * share) as usize } else { records }
}

/// Reads account-usage as `read_committed` and notes when each usage partition is heard of again
/// after a fault.
pub(crate) struct Watcher {
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Debug)]
struct Heard {
    /// The last fault, on both clocks.
    struck: Instant,
    struck_ms: i64,
    /// By usage partition: the arrival of the first record that was produced after the fault.
    first: Vec<Option<Instant>>,
    /// By usage partition: the arrival of the last record.
    last: Vec<Instant>,
    /// The longest that a partition has not been heard of since the fault.
    silence: Duration,
}

impl Heard {
    fn new(partitions: usize) -> Self {
        let now = Instant::now();
        let (first, last) = (vec![None; partitions], vec![now; partitions]);
        Self { struck: now, struck_ms: wall_clock_ms(), first, last, silence: Duration::ZERO }
    }

    fn hear(&mut self, partition: usize, produced_ms: i64) {
        let now = Instant::now();
        if produced_ms > self.struck_ms {
            self.first[partition].get_or_insert(now);
        }
        let last = std::mem::replace(&mut self.last[partition], now);
        self.silence = self.silence.max(now - last);
    }
}

fn wall_clock_ms() -> i64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(clock.as_millis()).expect("a clock before the year 2500")
}

impl Watcher {
    pub(crate) fn start(broker: &Broker, topic: &str, usage_partitions: usize) -> Self {
        let consumer: BaseConsumer = broker
            .client()
            .set("group.id", "test-watcher")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "20")
            .set("reconnect.backoff.max.ms", "100")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..broker.partitions(topic) {
            let partition = i32::try_from(partition).expect("few partitions");
            assignment
                .add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a partition can be listed");
        }
        consumer.assign(&assignment).expect("an assignment");
        let heard = Arc::new((Mutex::new(Heard::new(usage_partitions)), Condvar::new()));
        let told = Arc::clone(&heard);
        // ends with the process
        thread::spawn(move || {
            loop {
                // the broker comes and goes: errors are what this test is about
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let value = record.payload().expect("sums have values");
                let usage = AccountUsage::decode(value).expect("a sound record");
                let produced_ms = record.timestamp().to_millis().unwrap_or(0);
                let mut heard = told.0.lock().expect(UNPOISONED);
                heard.hear(usage.input_partition as usize, produced_ms);
                told.1.notify_all();
            }
        });
        Self { heard }
    }

    /// A fault strikes now.
    pub(crate) fn strike(&self) {
        let mut heard = self.heard.0.lock().expect(UNPOISONED);
        let last = std::mem::take(&mut heard.last);
        *heard = Heard { last, ..Heard::new(heard.first.len()) };
    }

    /// Only what is produced from now on tells that the last fault is over.
    pub(crate) fn listen_again(&self) {
        let mut heard = self.heard.0.lock().expect(UNPOISONED);
        heard.struck_ms = wall_clock_ms();
        heard.first.fill(None);
    }

    /// The longest that a partition has not been heard of since the last fault.
    pub(crate) fn silence(&self) -> Duration {
        let heard = self.heard.0.lock().expect(UNPOISONED);
        let open = heard.last.iter().map(Instant::elapsed).max().unwrap_or_default();
        heard.silence.max(open)
    }

    /// How long after the fault the last usage partition was heard of again; `None` when not all
    /// have been by `until`.
    pub(crate) fn recovery(&self, until: Instant) -> Option<Duration> {
        let (heard, changed) = &*self.heard;
        let left = until.saturating_duration_since(Instant::now());
        let missing = |heard: &mut Heard| heard.first.iter().any(Option::is_none);
        let waited = changed.wait_timeout_while(heard.lock().expect(UNPOISONED), left, missing);
        let heard = waited.expect(UNPOISONED).0;
        let last = heard.first.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max()?;
        Some(last.duration_since(heard.struck))
    }
}
