//! Chaos on a real Kafka: processes, broker and network fail by a seeded schedule while usage
//! flows, and what a `read_committed` reader finds in the end is what a replay of the same
//! partitions makes of them, record by record.
//!
//! `make chaos` runs it long, with a table; `CHAOS_EVENTS`, `CHAOS_SECONDS` and `CHAOS_SEED` set
//! its size. A seed gives the same usage and the same order of faults; what they strike is up to
//! the machine.

#[path = "support/broker.rs"]
mod broker;
#[path = "support/feed.rs"]
mod feed;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Broker;
use feed::{Feed, Watcher};
use fleet::Fleet;
use flopwatch::config::Config;
use flopwatch::detector::time::Span;
use flopwatch::simulate::{KeyBy, Plan, Scenario};
use proxy::{Line, Proxy};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use world::{Outcome, START, World, config_text};

/// The most processes at once.
const MEMBERS: usize = 4;
const PARTITIONS: u32 = 6;

/// Session and transaction timeouts, a restore and a busy machine.
const RECOVERY: Duration = Duration::from_secs(60);

/// Reading what is left, and judging it.
const DRAIN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// kill -9, and back at once under its name.
    Killed,
    /// kill -9, and back when the group has given its partitions away.
    KilledForLong,
    /// Stopped and continued within its session.
    Paused,
    /// Stopped beyond its session: a zombie when it continues.
    Zombie,
    /// Processes told to end, or new ones: one to four.
    Scaled,
    BrokerKilled,
    BrokerRestarted,
    LineCut,
    LineSlow,
    LineSilent,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Killed,
        Self::KilledForLong,
        Self::Paused,
        Self::Zombie,
        Self::Scaled,
        Self::BrokerKilled,
        Self::BrokerRestarted,
        Self::LineCut,
        Self::LineSlow,
        Self::LineSilent,
    ];
}

/// All kinds of fault, or those that `CHAOS_FAULTS` names.
fn kinds() -> Vec<Fault> {
    let Ok(named) = std::env::var("CHAOS_FAULTS") else { return Fault::ALL.to_vec() };
    let is_named = |fault: &Fault| named.split(',').any(|name| name == format!("{fault:?}"));
    Fault::ALL.into_iter().filter(is_named).collect()
}

/// Seeded chance.
struct Dice(ChaCha8Rng);

impl Dice {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    fn milliseconds(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn below(&mut self, bound: usize) -> usize {
        let drawn = self.between(0, u64::try_from(bound).expect("small") - 1);
        usize::try_from(drawn).expect("below a usize")
    }
}

/// A setting of the run from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text}: a number"))
    })
}

/// About this many events over 60 h, with duplicates, corrections and outages of the simulated
/// meters, and with [`spoil`]'s additions.
fn world(seed: u64, events: u64) -> World {
    let interval = Span::seconds(300);
    // background nodes: the scenarios have as many again, and records are repeated
    let nodes = u32::try_from(events / 2160).expect("at most billions of events");
    let mut world = World::of(Plan {
        seed,
        start: START,
        span: Span::hours(60),
        interval,
        partitions: PARTITIONS,
        key: KeyBy::Event,
        accounts: (nodes / 4).max(10),
        resources: nodes,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 20_000,
        disorder: Span::seconds(100),
    });
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x5b01));
    for partition in &mut world.partitions {
        spoil(partition, &mut dice);
    }
    world
}

/// Puts garbage, invalid events and late repetitions (duplicates within the dedup horizon, and
/// records beyond it) between the records.
fn spoil(partition: &mut Vec<(Option<Vec<u8>>, Vec<u8>)>, dice: &mut Dice) {
    let closing = partition.len() - 2;
    // six hours of 60
    let reach = partition.len() / 10;
    let mut spoilt = Vec::with_capacity(partition.len() * 102 / 100);
    for (number, record) in partition.iter().enumerate() {
        if number < closing {
            match dice.between(0, 499) {
                0 => spoilt.push((None, dice.0.next_u64().to_be_bytes().to_vec())),
                1 => spoilt.push((Some(b"?".to_vec()), Vec::new())),
                2 => spoilt.push((None, br#"{"id":"","source":"s","account_id":"a"}"#.to_vec())),
                3..=7 if number > reach => {
                    let back = dice.below(reach) + 1;
                    spoilt.push(partition[number - back].clone());
                }
                _ => {}
            }
        }
        spoilt.push(record.clone());
    }
    *partition = spoilt;
}

struct Chaos {
    broker: Broker,
    proxy: Proxy,
    fleet: Fleet,
    watcher: Watcher,
    dice: Dice,
    /// Each fault's time to recover; `None` when the next one struck first.
    recoveries: BTreeMap<Fault, Vec<Option<Duration>>>,
}

impl Chaos {
    /// Faults until the time is over, each kind once before any comes again.
    fn rage(&mut self, length: Duration) {
        let until = Instant::now() + length;
        let mut left: Vec<Fault> = Vec::new();
        let mut first_round = true;
        while Instant::now() < until || first_round {
            if left.is_empty() {
                left = kinds();
            }
            let fault = left.swap_remove(self.dice.below(left.len()));
            first_round &= !left.is_empty();
            self.watcher.strike();
            eprintln!("{fault:?}, processes {:?}", self.fleet.running());
            self.strike(fault);
            // half of the faults strike while the last one's effects last
            let patience =
                if self.dice.below(2) == 0 { self.dice.milliseconds(0, 2000) } else { RECOVERY };
            let recovery = self.await_recovery(patience);
            if patience == RECOVERY {
                assert!(
                    recovery.is_some(),
                    "{fault:?}: no output within {RECOVERY:?}: {:#?}",
                    ["chaos.usage", "chaos.account-usage", "chaos.group-usage"]
                        .map(|topic| self.broker.stability("chaos", topic))
                );
                let rest = self.dice.milliseconds(500, 3000);
                self.fleet.hold(rest);
            }
            eprintln!("  {recovery:?}");
            self.recoveries.entry(fault).or_default().push(recovery);
        }
    }

    fn await_recovery(&mut self, patience: Duration) -> Option<Duration> {
        let until = Instant::now() + patience;
        loop {
            self.fleet.tend();
            let look = until.min(Instant::now() + Duration::from_millis(100));
            let recovery = self.watcher.recovery(look);
            if recovery.is_some() || Instant::now() >= until {
                return recovery;
            }
        }
    }

    fn strike(&mut self, fault: Fault) {
        let victim = self.dice.pick(&self.fleet.running());
        match fault {
            Fault::Killed => {
                self.fleet.kill(victim);
                self.fleet.start(victim);
            }
            Fault::KilledForLong => {
                self.fleet.kill(victim);
                let away = self.dice.milliseconds(6500, 9000);
                self.fleet.hold(away);
                self.fleet.start(victim);
            }
            Fault::Paused => self.stop(victim, 500, 4000),
            Fault::Zombie => self.stop(victim, 7000, 10_000),
            Fault::Scaled => self.scale(),
            Fault::BrokerKilled => self.broker.restart(true),
            Fault::BrokerRestarted => self.broker.restart(false),
            Fault::LineCut => self.disturb(Line::Cut, 500, 5000),
            Fault::LineSlow => {
                let delay = self.dice.milliseconds(50, 500);
                self.disturb(Line::Slow(delay), 2000, 6000);
            }
            Fault::LineSilent => self.disturb(Line::Silent, 1000, 9000),
        }
    }

    fn stop(&mut self, victim: usize, low: u64, high: u64) {
        self.fleet.signal(victim, "STOP");
        let length = self.dice.milliseconds(low, high);
        self.fleet.hold(length);
        self.fleet.signal(victim, "CONT");
    }

    fn disturb(&mut self, line: Line, low: u64, high: u64) {
        self.proxy.set(line);
        let length = self.dice.milliseconds(low, high);
        self.fleet.hold(length);
        self.proxy.set(Line::Sound);
    }

    /// To another number of processes.
    fn scale(&mut self) {
        let running = self.fleet.running();
        let others: Vec<usize> = (1..=MEMBERS).filter(|&count| count != running.len()).collect();
        let wanted = self.dice.pick(&others);
        for &number in running.iter().skip(wanted) {
            self.fleet.terminate(number);
        }
        let idle = (0..MEMBERS).filter(|number| !running.contains(number));
        for number in idle.take(wanted.saturating_sub(running.len())) {
            self.fleet.start(number);
        }
    }

    /// Waits until everything has been read and judged.
    fn drain(&mut self, world: &World, config: &Config, expected: &Outcome) {
        let deadline = Instant::now() + DRAIN;
        let ends: Vec<_> =
            world.partitions.iter().map(|records| i64::try_from(records.len()).ok()).collect();
        let topics = &config.topics;
        loop {
            self.fleet.hold(Duration::from_millis(500));
            let positions =
                self.broker.positions(&config.kafka.group_id, &topics.usage, ends.len());
            let published = [&topics.alerts, &topics.shadow_alerts]
                .map(|topic| self.broker.read(topic, "read_committed").len());
            if positions == ends && published.iter().sum::<usize>() >= expected.size().0 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "positions {positions:?} of {ends:?}, alerts {published:?} of {}: {}",
                expected.size().0,
                self.fleet.tail(self.fleet.running()[0])
            );
        }
    }
}

/// How many are missing and how many are there too often.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    lost: usize,
    repeated: usize,
}

/// Compares two lists as sets with repetition.
fn difference<T: Ord>(
    expected: impl Iterator<Item = T>,
    found: impl Iterator<Item = T>,
) -> Difference {
    let mut balance: BTreeMap<T, i64> = BTreeMap::new();
    for item in expected {
        *balance.entry(item).or_default() -= 1;
    }
    for item in found {
        *balance.entry(item).or_default() += 1;
    }
    let count = |sign: i64| balance.values().map(|n| (n * sign).max(0)).sum::<i64>();
    let small = |count| usize::try_from(count).expect("a count");
    Difference { lost: small(count(-1)), repeated: small(count(1)) }
}

fn differences(expected: &Outcome, found: &Outcome) -> [(&'static str, usize, Difference); 4] {
    fn alerts(outcome: &Outcome) -> impl Iterator<Item = (&str, &[u8], &str)> {
        outcome.alerts.iter().flat_map(|((topic, key), values)| {
            values.iter().map(|value| (topic.as_str(), key.as_slice(), value.as_str()))
        })
    }
    fn sums(outcome: &Outcome) -> impl Iterator<Item = (&str, u64, [i128; 4])> {
        outcome.sums.iter().map(|((account, end), sum)| {
            let sum = [sum.accelerator_ms, sum.flop, sum.flop_allocated, sum.flop_theoretical];
            (account.as_str(), end.0, sum)
        })
    }
    let slices = |outcome: &Outcome| {
        let rows = outcome.ledger.iter();
        rows.map(|((scope, key, end), sum)| (*scope, key.clone(), end.0, sum.flop))
            .collect::<Vec<_>>()
    };
    let letters = |outcome: &Outcome| outcome.dead_letters.clone();
    [
        ("alert revisions", expected.size().0, difference(alerts(expected), alerts(found))),
        (
            "dead letters",
            expected.dead_letters.len(),
            difference(letters(expected).into_iter(), letters(found).into_iter()),
        ),
        ("sums by account and slice", expected.sums.len(), difference(sums(expected), sums(found))),
        (
            "restored slices",
            expected.ledger.len(),
            difference(slices(expected).into_iter(), slices(found).into_iter()),
        ),
    ]
}

fn table(chaos: &Chaos, events: usize, expected: &Outcome, found: &Outcome) -> String {
    let mut text =
        String::from("\nfault            struck  recovered alone  median s  longest s\n");
    for (fault, recoveries) in &chaos.recoveries {
        let mut alone: Vec<f64> = recoveries.iter().flatten().map(Duration::as_secs_f64).collect();
        alone.sort_by(f64::total_cmp);
        let name = format!("{fault:?}");
        let median = alone.get(alone.len() / 2).copied().unwrap_or(f64::NAN);
        let longest = alone.last().copied().unwrap_or(f64::NAN);
        let (struck, alone) = (recoveries.len(), alone.len());
        writeln!(text, "{name:16} {struck:6} {alone:16} {median:9.1} {longest:10.1}")
            .expect("text grows");
    }
    let faults: usize = chaos.recoveries.values().map(Vec::len).sum();
    writeln!(text, "{faults} faults survived, {events} usage records").expect("text grows");
    for (name, expected, Difference { lost, repeated }) in differences(expected, found) {
        writeln!(text, "{name:26} {expected:8}  lost {lost}  repeated {repeated}")
            .expect("text grows");
    }
    let ended = &chaos.fleet.ended;
    writeln!(text, "{} processes ended by themselves and were started again", ended.len())
        .expect("text grows");
    for line in ended {
        writeln!(text, "  {line}").expect("text grows");
    }
    text
}

#[test]
fn whatever_fails_the_outputs_equal_a_clean_replay() {
    let seed = setting("CHAOS_SEED", 1);
    let length = Duration::from_secs(setting("CHAOS_SECONDS", 60));
    let mut world = world(seed, setting("CHAOS_EVENTS", 200_000));
    let data = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(Some(data.path()));
    let proxy = Proxy::start(broker.proxied.1, broker.proxied.0);
    // no partition goes idle because the feed waits for a broker that starts
    let text = |member: usize, address: &str| {
        let workers = 1 + member % 2;
        let text = config_text("chaos", &format!("p{member}"), workers, address);
        format!("{text}[time]\nidle_timeout = \"30m\"\n")
    };
    let config = Config::from_text("chaos", &text(0, &broker.address)).expect("valid");
    world.prepare(&config);
    let through_proxy = format!("127.0.0.1:{}", broker.proxied.1);
    let texts: Vec<_> = (0..MEMBERS).map(|member| text(member, &through_proxy)).collect();
    let mut fleet = Fleet::new(&texts);
    (0..2).for_each(|number| fleet.start(number));
    let watcher = Watcher::start(&broker, &config.topics.account_usage, world.partitions.len());
    let sent = Arc::new(world);
    let feed = Feed::start(&sent, &config.topics.usage, &broker.address, length);
    let dice = Dice(ChaCha8Rng::seed_from_u64(seed));
    let recoveries = BTreeMap::new();
    let mut chaos = Chaos { broker, proxy, fleet, watcher, dice, recoveries };
    assert!(chaos.await_recovery(RECOVERY).is_some(), "{}", chaos.fleet.tail(0));
    chaos.rage(length);
    feed.finish();

    // the books are closed over what stands in the topic
    world = Arc::into_inner(sent).expect("the feed has ended");
    let records: usize = world.partitions.iter().map(Vec::len).sum();
    world.read_back(&chaos.broker, &config.topics.usage);
    assert_eq!(world.partitions.iter().map(Vec::len).sum::<usize>(), records, "as it was sent");
    let expected = world.replayed(&config);
    chaos.drain(&world, &config, &expected);
    for number in chaos.fleet.running() {
        chaos.fleet.terminate(number);
    }
    let found = world.found_on(&chaos.broker, &config);
    eprintln!("{}", table(&chaos, records, &expected, &found));
    for (name, _, difference) in differences(&expected, &found) {
        assert_eq!(difference, Difference::default(), "{name}, seed {seed}");
    }
    // and in the order in which they were published
    assert!(found == expected, "the order of revisions differs, seed {seed}");
}
