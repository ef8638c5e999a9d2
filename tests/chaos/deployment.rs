//! One deployment on a broker of its own, through a proxy: usage flows, faults strike, and the
//! books are closed over what the topics hold in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flopwatch::config::Config;
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use tempfile::TempDir;

use crate::books::Books;
use crate::broker::Broker;
use crate::feed::{Feed, Watcher};
use crate::fleet::Fleet;
use crate::proxy::{Line, Proxy};
use crate::schedule::{Fault, MEMBERS, Schedule, Strike};
use crate::world::{Outcome, World, config_text};

/// Session and transaction timeouts, a restore and a busy machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(60);

/// How long a process may take to be where it is to be struck.
const SAID: Duration = Duration::from_secs(15);

/// Reading what is left, and judging it.
const DRAIN: Duration = Duration::from_secs(300);

/// Nothing more comes when nothing has come for this long: with all that is expected there, and
/// without.
const QUIET: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// A fault, and what was seen of it until the next one.
#[derive(Debug)]
pub(crate) struct Struck {
    pub(crate) fault: Fault,
    /// Until every usage partition was heard of again; `None` when the next one struck first.
    pub(crate) recovery: Option<Duration>,
    /// How long a usage partition was not heard of, at the most.
    pub(crate) silence: Duration,
}

pub(crate) struct Deployment {
    config: Config,
    pub(crate) fleet: Fleet,
    watcher: Watcher,
    proxy: Proxy,
    broker: Broker,
    world: Arc<World>,
    feed: Option<Feed>,
    /// The broker's, which has ended when this goes.
    _data: TempDir,
}

/// The workers of a process: those with odd numbers have two.
const fn workers(member: usize) -> usize {
    1 + member % 2
}

impl Deployment {
    /// With so many processes, and usage that takes about `length` to flow.
    pub(crate) fn start(name: &str, world: World, length: Duration, processes: usize) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let broker = Broker::start(Some(data.path()));
        let proxy = Proxy::start(broker.proxied.1, broker.proxied.0);
        // no partition goes idle because the feed waits for a broker that starts
        let text = |member: usize, address: &str| {
            let text = config_text(name, &format!("p{member}"), workers(member), address);
            format!("{text}[time]\nidle_timeout = \"30m\"\n")
        };
        let config = Config::from_text(name, &text(0, &broker.address)).expect("valid");
        world.prepare(&config);
        let through_proxy = format!("127.0.0.1:{}", broker.proxied.1);
        let texts: Vec<_> = (0..MEMBERS).map(|member| text(member, &through_proxy)).collect();
        let mut fleet = Fleet::new(&texts);
        (0..processes).for_each(|number| fleet.start(number));
        let partitions = world.partitions.len();
        let watcher = Watcher::start(&broker, &config.topics.account_usage, partitions);
        let world = Arc::new(world);
        let feed = Some(Feed::start(&world, &config.topics.usage, &broker.address, length));
        let mut deployment =
            Self { config, fleet, watcher, proxy, broker, world, feed, _data: data };
        assert!(
            deployment.await_recovery(RECOVERY).is_some(),
            "no output at first: {}",
            deployment.fleet.tail(0)
        );
        deployment
    }

    /// Faults until the time is over, each kind once at least.
    pub(crate) fn rage(&mut self, schedule: &mut Schedule, length: Duration) -> Vec<Struck> {
        let (began, mut struck) = (Instant::now(), Vec::new());
        while began.elapsed() < length || struck.len() < schedule.kinds() {
            let strike = schedule.next();
            let fault = strike.fault;
            let (at, running) = (began.elapsed().as_secs_f64(), self.fleet.running());
            eprint!("{at:6.1} s  {:17} processes {running:?}  ", format!("{fault:?}"));
            self.watcher.strike();
            self.strike(&strike);
            let recovery = match strike.patience {
                Some(soon) => self.await_recovery(soon),
                None => {
                    if fault == Fault::Scaled {
                        self.await_members();
                    }
                    let recovery = self.await_recovery(RECOVERY);
                    assert!(recovery.is_some(), "{fault:?}: {}", self.silent());
                    self.fleet.hold(strike.rest);
                    recovery
                }
            };
            let silence = self.watcher.silence();
            eprintln!("recovery {recovery:.1?}  silence {silence:.1?}");
            struck.push(Struck { fault, recovery, silence });
        }
        struck
    }

    /// What is known when no output comes.
    fn silent(&self) -> String {
        let topics = &self.config.topics;
        let inputs = [&topics.usage, &topics.account_usage, &topics.group_usage];
        let group = &self.config.kafka.group_id;
        let stability = inputs.map(|topic| self.broker.stability(group, topic));
        format!("no output within {RECOVERY:?}: {stability:#?}")
    }

    /// How long after the last fault all partitions were heard of.
    pub(crate) fn await_recovery(&mut self, patience: Duration) -> Option<Duration> {
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

    /// Waits until the group has all workers that run and no other, and each has its share.
    pub(crate) fn await_members(&mut self) {
        let deadline = Instant::now() + RECOVERY;
        loop {
            let running = self.fleet.running();
            let wanted: usize = running.iter().map(|&member| workers(member)).sum();
            let members = self.broker.members(&self.config.kafka.group_id);
            let shares: Vec<_> = running.iter().map(|&member| self.fleet.tasks(member)).collect();
            // METER, ACCOUNT and GROUP of each partition
            let tasks: u64 = shares.iter().sum();
            if members == wanted
                && tasks == 3 * self.world.partitions.len() as u64
                && !shares.contains(&0)
            {
                self.watcher.listen_again();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{members} members for {wanted} workers of {running:?}, tasks {shares:?}"
            );
            self.fleet.hold(Duration::from_millis(100));
        }
    }

    fn strike(&mut self, strike: &Strike) {
        let running = self.fleet.running();
        let victim = running[strike.victim % running.len()];
        match strike.fault {
            Fault::Killed => {
                self.fleet.kill(victim);
                self.fleet.start(victim);
            }
            Fault::KilledForLong => {
                self.fleet.kill(victim);
                self.fleet.hold(strike.length);
                self.fleet.start(victim);
            }
            Fault::KilledRestoring => {
                self.fleet.kill(victim);
                self.fleet.start(victim);
                self.kill_when(victim, 0, "assigned");
            }
            Fault::KilledRebalancing => {
                let said = self.fleet.said(victim);
                match (0..MEMBERS).find(|number| !running.contains(number)) {
                    Some(idle) => self.fleet.start(idle),
                    None => self.fleet.terminate(running[(strike.victim + 1) % MEMBERS]),
                }
                self.kill_when(victim, said, "revoked");
            }
            Fault::Paused | Fault::Zombie => self.stop(victim, strike.length),
            Fault::ZombieRestoring => {
                self.fleet.kill(victim);
                self.fleet.start(victim);
                self.await_message(victim, 0, "assigned");
                self.stop(victim, strike.length);
            }
            Fault::Scaled => {
                let same = strike.processes == running.len();
                self.scale(if same { strike.processes % MEMBERS + 1 } else { strike.processes });
            }
            Fault::BrokerKilled => self.broker.restart(true),
            Fault::BrokerRestarted => self.broker.restart(false),
            Fault::LineCut => self.disturb(Line::Cut, strike.length),
            Fault::LineSlow => self.disturb(Line::Slow(strike.delay), strike.length),
            Fault::LineSilent => self.disturb(Line::Silent, strike.length),
        }
    }

    fn stop(&mut self, victim: usize, length: Duration) {
        self.fleet.signal(victim, "STOP");
        self.fleet.hold(length);
        self.fleet.signal(victim, "CONT");
    }

    /// Waits until a process is where it is to be struck; it is struck all the same.
    fn await_message(&self, victim: usize, said: usize, message: &str) {
        let is_said = self.fleet.await_message(victim, said, message, SAID);
        eprint!("{}", if is_said { "" } else { "(elsewhere) " });
    }

    /// Kills a process once it says so, having said so much before, and starts it again.
    fn kill_when(&mut self, victim: usize, said: usize, message: &str) {
        self.await_message(victim, said, message);
        // what was heard before does not tell that this is over
        self.watcher.strike();
        self.fleet.kill(victim);
        self.fleet.start(victim);
    }

    fn disturb(&mut self, line: Line, length: Duration) {
        self.proxy.set(line);
        self.fleet.hold(length);
        self.proxy.set(Line::Sound);
    }

    /// To this number of processes; those that must go are told to.
    pub(crate) fn scale(&mut self, processes: usize) {
        let running = self.fleet.running();
        for &number in running.iter().skip(processes) {
            self.fleet.terminate(number);
        }
        let idle = (0..MEMBERS).filter(|number| !running.contains(number));
        for number in idle.take(processes.saturating_sub(running.len())) {
            self.fleet.start(number);
        }
    }

    /// As a fault of the schedule: a change of the number of processes, and what came of it.
    pub(crate) fn scale_and_settle(&mut self, processes: usize) -> Struck {
        self.watcher.strike();
        self.scale(processes);
        self.await_members();
        let recovery = self.await_recovery(RECOVERY);
        assert!(recovery.is_some(), "{processes} processes: {}", self.silent());
        Struck { fault: Fault::Scaled, recovery, silence: self.watcher.silence() }
    }

    /// Sends what is left, waits until all has been read and judged, and stops everything.
    pub(crate) fn close(mut self) -> Books {
        self.feed.take().expect("closed once").finish();
        let world = Arc::get_mut(&mut self.world).expect("the feed has ended");
        let records = |world: &World| world.partitions.iter().map(Vec::len).collect::<Vec<_>>();
        let sent = records(world);
        world.read_back(&self.broker, &self.config.topics.usage);
        assert_eq!(records(world), sent, "usage as it was sent");
        let expected = world.replayed(&self.config);
        self.drain(&sent, &expected);
        for number in self.fleet.running() {
            self.fleet.terminate(number);
        }
        let found = self.world.found_on(&self.broker, &self.config);
        let ended = std::mem::take(&mut self.fleet.ended);
        Books { records: sent.iter().sum(), expected, found, ended }
    }

    /// Waits until all is there, or nothing more comes: the comparison says what is missing.
    fn drain(&mut self, sent: &[usize], expected: &Outcome) {
        let deadline = Instant::now() + DRAIN;
        let ends: Vec<_> = sent.iter().map(|&records| i64::try_from(records).ok()).collect();
        let (mut held, mut since) = (Vec::new(), Instant::now());
        loop {
            self.fleet.hold(Duration::from_millis(250));
            let (group, usage) = (&self.config.kafka.group_id, &self.config.topics.usage);
            let positions = self.broker.positions(group, usage, ends.len());
            let found = self.ends_of_outputs();
            if found != held {
                (held, since) = (found, Instant::now());
            }
            if positions == ends {
                let topics = &self.config.topics;
                let published = [&topics.alerts, &topics.shadow_alerts]
                    .map(|topic| self.broker.read(topic, "read_committed").len());
                let complete = published.iter().sum::<usize>() >= expected.size().0;
                let quiet = since.elapsed();
                if complete && quiet >= QUIET.0 || quiet >= QUIET.1 {
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "positions {positions:?} of {ends:?}: {}",
                self.fleet.tail(self.fleet.running()[0])
            );
        }
    }

    fn ends_of_outputs(&self) -> Vec<i64> {
        let topics = &self.config.topics;
        let states = Stage::ALL.map(|stage| topology::changelog(&self.config, stage));
        let outputs = [
            &topics.account_usage,
            &topics.group_usage,
            &topics.alerts,
            &topics.shadow_alerts,
            &topics.dead_letters,
        ];
        outputs.into_iter().chain(&states).map(|topic| self.broker.end(topic)).collect()
    }
}
