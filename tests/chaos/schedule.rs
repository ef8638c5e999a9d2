//! What strikes when: a seed gives one order of faults, whatever the machine does meanwhile.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The most processes at once.
pub(crate) const MEMBERS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// kill -9, and back at once under its name.
    Killed,
    /// kill -9, and back when the group has given its partitions away.
    KilledForLong,
    /// kill -9, and again while it restores what it had.
    KilledRestoring,
    /// kill -9 when the group has told it to give its partitions back, for another came or went.
    KilledRebalancing,
    /// Stopped and continued within its session.
    Paused,
    /// Stopped beyond its session: a zombie when it continues.
    Zombie,
    /// kill -9, and stopped beyond its session while it restores what it had.
    ZombieRestoring,
    /// Processes told to end, or new ones: one to four.
    Scaled,
    BrokerKilled,
    BrokerRestarted,
    LineCut,
    LineSlow,
    LineSilent,
}

impl Fault {
    const ALL: [Self; 13] = [
        Self::Killed,
        Self::KilledForLong,
        Self::KilledRestoring,
        Self::KilledRebalancing,
        Self::Paused,
        Self::Zombie,
        Self::ZombieRestoring,
        Self::Scaled,
        Self::BrokerKilled,
        Self::BrokerRestarted,
        Self::LineCut,
        Self::LineSlow,
        Self::LineSilent,
    ];

    /// One of each kind that a change of ours may break, for a test that everybody runs.
    const FEW: [Self; 5] =
        [Self::Killed, Self::Zombie, Self::Scaled, Self::BrokerKilled, Self::LineCut];
}

/// Seeded chance.
pub(crate) struct Dice(pub(crate) ChaCha8Rng);

impl Dice {
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let drawn = self.between(0, u64::try_from(bound).expect("small") - 1);
        usize::try_from(drawn).expect("below a usize")
    }

    fn milliseconds(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}

/// One fault of the schedule.
#[derive(Debug)]
pub(crate) struct Strike {
    pub(crate) fault: Fault,
    /// Which of the processes, counted over those that run.
    pub(crate) victim: usize,
    /// How long it lasts.
    pub(crate) length: Duration,
    /// What a slow line adds to each chunk.
    pub(crate) delay: Duration,
    /// How many processes there are after a scaling.
    pub(crate) processes: usize,
    /// How soon the next one strikes; `None` lets this one be recovered from first.
    pub(crate) patience: Option<Duration>,
    /// Calm after the recovery.
    pub(crate) rest: Duration,
}

/// Faults without end, each kind once before any comes again.
pub(crate) struct Schedule {
    kinds: Vec<Fault>,
    left: Vec<Fault>,
    dice: Dice,
}

impl Schedule {
    /// Of the kinds that `named` lists, of all, or without a list of a few.
    pub(crate) fn new(seed: u64, named: Option<&str>) -> Self {
        let kinds = match named {
            None => Fault::FEW.to_vec(),
            Some("all") => Fault::ALL.to_vec(),
            Some(named) => named.split(',').map(fault).collect(),
        };
        Self { kinds, left: Vec::new(), dice: Dice(ChaCha8Rng::seed_from_u64(seed)) }
    }

    /// How many kinds there are: a round.
    pub(crate) const fn kinds(&self) -> usize {
        self.kinds.len()
    }

    pub(crate) fn next(&mut self) -> Strike {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let dice = &mut self.dice;
        let fault = self.left.swap_remove(dice.below(self.left.len()));
        let (low, high) = match fault {
            Fault::Killed
            | Fault::KilledRestoring
            | Fault::KilledRebalancing
            | Fault::Scaled
            | Fault::BrokerKilled
            | Fault::BrokerRestarted => (0, 0),
            Fault::KilledForLong => (6500, 9000),
            Fault::Paused => (500, 4000),
            Fault::Zombie | Fault::ZombieRestoring => (7000, 10_000),
            Fault::LineCut => (500, 5000),
            Fault::LineSlow => (2000, 6000),
            Fault::LineSilent => (1000, 9000),
        };
        // half of the faults strike while the last one's effects last
        let at_once = dice.below(2) == 0;
        let soon = dice.milliseconds(0, 2000);
        Strike {
            fault,
            victim: dice.below(60),
            length: dice.milliseconds(low, high),
            delay: dice.milliseconds(50, 500),
            processes: dice.below(MEMBERS) + 1,
            patience: at_once.then_some(soon),
            rest: dice.milliseconds(500, 3000),
        }
    }
}

fn fault(name: &str) -> Fault {
    let named = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
    named.unwrap_or_else(|| panic!("CHAOS_FAULTS: {name:?} is none of {:?}, or all", Fault::ALL))
}

#[test]
fn a_seed_gives_the_same_faults_every_time_and_each_kind_in_every_round() {
    let strikes = |seed| {
        let mut schedule = Schedule::new(seed, Some("all"));
        (0..39).map(|_| schedule.next()).collect::<Vec<_>>()
    };
    assert_eq!(format!("{:?}", strikes(5)), format!("{:?}", strikes(5)));
    assert_ne!(format!("{:?}", strikes(5)), format!("{:?}", strikes(6)));
    for round in strikes(7).chunks(Fault::ALL.len()) {
        let mut kinds: Vec<Fault> = round.iter().map(|strike| strike.fault).collect();
        kinds.sort();
        assert_eq!(kinds, Fault::ALL);
    }
}
