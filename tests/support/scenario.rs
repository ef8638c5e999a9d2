//! Seeded cases for the reference model: small worlds that reach every rule of the contract.
//!
//! A seed gives one case, always the same. Thresholds are drawn from values that the model
//! observes, so that policies fire, hover and resolve, and exact equality is met often.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::reference::Fault;
use crate::reference::history::History;
use crate::reference::input::{
    Condition, DAY, DirectoryLine, Event, Field, HOUR, Line, MINUTE, Metric, Mode, Nanos,
    OriginMatch, Policy, SECOND, Scenario, Scope, Settings, Tier, ceil_to, floor_to,
};
use crate::reference::judging::observe;
use crate::reference::metering::{INSTANCES, SPELLINGS, meter, time_of};

/// 2024-03-01T00:00:00Z.
pub(crate) const START: Nanos = 1_709_251_200 * SECOND;

/// A seeded source of choices.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a small bound");
        usize::try_from(self.0.next_u64() % bound).expect("below a usize")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn within(&mut self, span: Nanos) -> Nanos {
        i128::from(self.0.next_u64()) % (span + 1)
    }

    fn maybe<T: Clone>(&mut self, percent: usize, choices: &[T]) -> Option<T> {
        self.chance(percent).then(|| self.pick(choices))
    }
}

pub(crate) fn scenario(seed: u64) -> Scenario {
    let mut dice = Dice::new(seed);
    let settings = settings(&mut dice);
    let span = dice.pick(&[3 * HOUR, 12 * HOUR, DAY, 2 * DAY, 4 * DAY, 12 * DAY]);
    let mut world = World { dice, settings, span, next_id: 0, long_run: None };
    let partitions = world.partitions();
    let directory = world.directory();
    let World { mut dice, settings, long_run, .. } = world;
    let mut scenario = Scenario { settings, policies: Vec::new(), directory, partitions };
    let metered = meter(&scenario.settings, &scenario.partitions, Fault::None);
    let history = History { scenario: &scenario, metered: &metered, fault: Fault::None };
    let policies = (0..=dice.below(5))
        .map(|place| policy(&mut dice, &history, place, long_run.is_some()))
        .collect();
    scenario.policies = policies;
    scenario
}

fn settings(dice: &mut Dice) -> Settings {
    let epoch = dice.pick(&[MINUTE, 5 * MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR]);
    let slice = dice.pick(&[15 * MINUTE, 30 * MINUTE, HOUR, HOUR, HOUR, 2 * HOUR]).max(epoch);
    let lateness = dice.pick(&[0, epoch, 3 * epoch, HOUR, 6 * HOUR]);
    let keep = dice.pick(&[28 * HOUR, 30 * HOUR, 2 * DAY, 3 * DAY, 8 * DAY]);
    let gaps: Vec<Nanos> = [slice, 90 * MINUTE, 3 * HOUR, 5 * HOUR, DAY, 3 * DAY]
        .into_iter()
        .filter(|gap| *gap >= slice && keep > gap + DAY)
        .collect();
    let coarser: &[&[Tier]] = &[
        &[],
        &[Tier { slice: 4 * HOUR, keep: 9 * DAY }],
        &[Tier { slice: DAY, keep: 10 * DAY }],
        &[Tier { slice: DAY, keep: 400 * DAY }],
        &[Tier { slice: 6 * HOUR, keep: 9 * DAY }, Tier { slice: DAY, keep: 60 * DAY }],
    ];
    let mut tiers = vec![Tier { slice, keep }];
    tiers.extend_from_slice(dice.pick(coarser));
    Settings {
        epoch,
        lateness,
        dedup_horizon: dice.pick(&[10 * MINUTE, HOUR, 2 * HOUR, DAY]),
        max_future: dice.pick(&[10 * MINUTE, 10 * MINUTE, HOUR]),
        max_interval: dice.pick(&[31 * DAY, 31 * DAY, DAY, 2 * HOUR]),
        tiers,
        home: dice.pick(&[vec!["US"], vec!["US", "FR"]]),
        basis: if dice.chance(80) {
            Field::ALL.to_vec()
        } else {
            vec![Field::Country, Field::UltimateParent]
        },
        foreign_if_any: if dice.chance(80) {
            Field::ALL.to_vec()
        } else {
            vec![Field::Payment, Field::Country]
        },
        unknown_is_foreign: dice.chance(70),
        low: dice.pick(&[0.18, 0.2]),
        central: dice.pick(&[0.33, 0.4]),
        high: dice.pick(&[0.5, 0.5, 0.61]),
        unknown: dice.pick(&["nvidia-h100-sxm", "nvidia-h20"]),
        unknown_count: dice.pick(&[8, 4]),
        min_accelerators: dice.pick(&[64.0, 64.0, 8.0, 12.5]),
        max_gap: dice.pick(&gaps),
    }
}

/// An event with where and when it is written.
#[derive(Clone)]
struct Emission {
    partition: usize,
    written: Nanos,
    line: Line,
}

struct World {
    dice: Dice,
    settings: Settings,
    span: Nanos,
    next_id: usize,
    /// The account of a run that outlives the finest tier, and an instant towards its end.
    long_run: Option<(String, Nanos)>,
}

impl World {
    fn partitions(&mut self) -> Vec<Vec<Line>> {
        let count = 1 + self.dice.below(4);
        let mut emissions: Vec<Emission> = Vec::new();
        for _ in 0..self.dice.pick(&[4, 15, 40, 90]) {
            let emission = match self.dice.below(100) {
                0..8 => self.repeat(&emissions, count),
                8..22 => self.correction(&emissions, count),
                22..27 => Some(self.invalid(count)),
                27..29 => Some(self.garbage(count)),
                _ => None,
            };
            let emission = emission.unwrap_or_else(|| self.usage(count));
            emissions.push(emission);
        }
        for _ in 0..self.dice.below(3) {
            let steady = self.steady(count);
            emissions.extend(steady);
        }
        if self.dice.chance(20) {
            let long = self.long_run(count);
            emissions.extend(long);
        }
        // Sorted by the moment of writing: what was delayed stands behind younger records.
        emissions.sort_by_key(|emission| emission.written);
        let mut partitions = vec![Vec::new(); count];
        for emission in emissions {
            partitions[emission.partition].push(emission.line);
        }
        partitions
    }

    fn event(&mut self) -> Event {
        self.next_id += 1;
        let dice = &mut self.dice;
        let (accelerator, instance_type) = match dice.below(20) {
            0..12 => (dice.pick(&SPELLINGS).0, ""),
            12..16 => ("", dice.pick(&INSTANCES).0),
            16 => ("Acme Tensor 9", ""),
            17 => ("", "acme.9xlarge"),
            18 => (dice.pick(&SPELLINGS).0, "p5.48xlarge"),
            _ => ("", ""),
        };
        Event {
            id: format!("e{}", self.next_id),
            source: dice.pick(&["meter-1", "meter-1", "meter-2"]).to_owned(),
            account: format!("a{}", dice.below(5)),
            region: dice.pick(&["", "north", "south"]).to_owned(),
            fabric: dice.pick(&["", "f1", "f1", "f2"]).to_owned(),
            accelerator: accelerator.to_owned(),
            instance_type: instance_type.to_owned(),
            quantity: dice.pick(&[0.5, 1.0, 7.25, 8.0, 16.0, 64.0, 64.0, 100.0, 513.0, 1e6]),
            start: 0,
            end: 0,
            time: 0,
            correction: false,
            utilization: dice.maybe(25, &[0.25, 0.37, 1.0, 0.0, 1.5, 9.2e18]),
            tensor_active: dice.maybe(20, &[0.11, 0.42, 0.9, -0.1]),
            spelling: u8::try_from(dice.below(4)).expect("below 4"),
        }
    }

    /// An instant of the span, as often as not on a boundary of some kind.
    fn instant(&mut self) -> Nanos {
        let unit = self.dice.pick(&[1, SECOND, self.settings.epoch, self.settings.tiers[0].slice]);
        START + floor_to(self.dice.within(self.span), unit)
    }

    /// When the record is written, given its `time`: mostly at once.
    fn written(&mut self, time: Nanos) -> Nanos {
        let delays = [0, 0, 0, 0, 0, 0, MINUTE, 30 * MINUTE, 3 * HOUR, DAY];
        let delay = self.dice.pick(&delays);
        time + self.dice.within(delay)
    }

    fn usage(&mut self, partitions: usize) -> Emission {
        let mut event = self.event();
        let time = self.instant();
        let lags = [0, 0, 0, 0, MINUTE, 20 * MINUTE, 2 * HOUR, DAY, 3 * DAY, 11 * DAY];
        let lag = self.dice.pick(&lags);
        let early = self.dice.maybe(10, &[MINUTE, 5 * MINUTE]).unwrap_or(0);
        event.end = time - lag + early;
        if self.dice.chance(50) {
            event.end = floor_to(event.end, self.settings.tiers[0].slice);
        }
        let lengths = [
            10 * SECOND,
            MINUTE,
            5 * MINUTE,
            HOUR,
            HOUR,
            90 * MINUTE + 1,
            3 * HOUR,
            3 * HOUR + 7_000_000_003,
            DAY,
            2 * DAY + 3,
        ];
        event.start = event.end - self.dice.pick(&lengths);
        event.time = if event.end == time && self.dice.chance(50) { 0 } else { time };
        self.emission(event, partitions)
    }

    fn emission(&mut self, event: Event, partitions: usize) -> Emission {
        let written = self.written(time_of(&event));
        Emission {
            partition: self.dice.below(partitions),
            written,
            line: Line::Event(Box::new(event)),
        }
    }

    fn earlier(&mut self, emissions: &[Emission]) -> Option<(usize, Event)> {
        if emissions.is_empty() {
            return None;
        }
        let emission = self.dice.pick(emissions);
        match emission.line {
            Line::Garbage(_) => None,
            Line::Event(event) => Some((emission.partition, *event)),
        }
    }

    /// The same identity again: the same record, or one with another time, or from elsewhere.
    fn repeat(&mut self, emissions: &[Emission], partitions: usize) -> Option<Emission> {
        let (partition, mut event) = self.earlier(emissions)?;
        let later = self.dice.pick(&[0, 0, SECOND, HOUR, 2 * HOUR, 5 * HOUR]);
        event.time = time_of(&event) + later;
        if self.dice.chance(15) {
            event.source = "meter-3".to_owned();
        }
        let mut emission = self.emission(event, partitions);
        if self.dice.chance(80) {
            emission.partition = partition;
        }
        Some(emission)
    }

    /// Takes back all or part of an earlier event, or adds to it, some time later.
    fn correction(&mut self, emissions: &[Emission], partitions: usize) -> Option<Emission> {
        let (_, mut event) = self.earlier(emissions)?;
        self.next_id += 1;
        event.id = format!("c{}", self.next_id);
        event.correction = true;
        event.quantity *= self.dice.pick(&[-1.0, -1.0, -0.5, 0.5, -1.5]);
        let delay = self.dice.pick(&[0, HOUR, 3 * HOUR, DAY, 4 * DAY]);
        event.time = time_of(&event) + self.dice.within(delay);
        Some(self.emission(event, partitions))
    }

    fn invalid(&mut self, partitions: usize) -> Emission {
        let mut emission = self.usage(partitions);
        let Line::Event(event) = &mut emission.line else { return emission };
        let long = "x".repeat(257);
        match self.dice.below(16) {
            0 => event.id = String::new(),
            1 => event.id = long,
            2 => event.source = String::new(),
            3 => event.account = String::new(),
            4 => event.account = long,
            5 => event.region = long,
            6 => event.start = 946_684_799 * SECOND,
            7 => event.time = 17_000_000_000 * SECOND,
            8 => event.end = event.start,
            9 => event.end = event.start - SECOND,
            10 => event.start = event.end - self.settings.max_interval - 1,
            11 => event.time = event.end - self.settings.max_future - 1,
            12 => event.quantity = 0.0,
            13 => event.quantity = -event.quantity,
            14 => event.quantity = 1.000_000_1e7,
            // The longest name that is still allowed.
            _ => event.account = "y".repeat(256),
        }
        emission
    }

    fn garbage(&mut self, partitions: usize) -> Emission {
        let lines = [
            "not json",
            "[]",
            r#"{"id":"g1","source":"meter-1","account_id":"a1","quantity":"many"}"#,
            r#"{"id":7,"source":"meter-1","account_id":"a1","quantity":1.0}"#,
            r#"{"id":"g2","source":"meter-1","account_id":"a1","quantity":1.0"#,
        ];
        let written = self.instant();
        let line = Line::Garbage(self.dice.pick(&lines));
        Emission { partition: self.dice.below(partitions), written, line }
    }

    /// An account that holds enough accelerators slice after slice, with gaps around `max_gap`.
    fn steady(&mut self, partitions: usize) -> Vec<Emission> {
        let slice = self.settings.tiers[0].slice;
        let pattern = self.event();
        let partition = self.dice.below(partitions);
        let enough = self.settings.min_accelerators;
        let mut end = ceil_to(self.instant(), slice);
        let mut emissions = Vec::new();
        for _ in 0..self.dice.pick(&[3, 12, 40]) {
            self.next_id += 1;
            let mut event = pattern.clone();
            event.id = format!("s{}", self.next_id);
            event.accelerator = "nvidia-h100-sxm".to_owned();
            event.quantity = enough * self.dice.pick(&[1.0, 1.0, 1.0, 2.0, 0.999]);
            (event.start, event.end, event.time) = (end - slice, end, 0);
            let mut emission = self.emission(event, partitions);
            emission.partition = partition;
            emissions.push(emission);
            let gap = floor_to(self.settings.max_gap, slice);
            let gaps = [slice, slice, slice, slice, slice, slice, gap, gap + slice, 2 * slice];
            end += self.dice.pick(&gaps).max(slice);
            if end > START + self.span + DAY {
                break;
            }
        }
        emissions
    }

    /// A run that outlives the finest tier, with sums that come when their slices have left it.
    fn long_run(&mut self, partitions: usize) -> Vec<Emission> {
        let Tier { slice, keep } = self.settings.tiers[0];
        let mut pattern = self.event();
        pattern.account = format!("a{}", self.dice.below(2));
        pattern.accelerator = "nvidia-h100-sxm".to_owned();
        let partition = self.dice.below(partitions);
        let count = keep / slice + 12;
        let mut emissions = Vec::new();
        for place in 0..count {
            let mut event = pattern.clone();
            event.end = START + (place + 1) * slice;
            event.start = event.end - slice;
            event.id = format!("l{place}");
            event.quantity = self.settings.min_accelerators;
            if self.dice.chance(15) {
                event.quantity = self.dice.pick(&[0.5, 8.0, 100.0]);
            }
            // Late by as much as the tier keeps, where another tier still wants it.
            event.time = event.end;
            if place < 10 && self.dice.chance(30) {
                event.time += keep + slice;
            }
            let written = event.time;
            emissions.push(Emission { partition, written, line: Line::Event(Box::new(event)) });
        }
        self.span = self.span.max(count * slice);
        self.long_run = Some((pattern.account, START + (count - 6) * slice));
        emissions
    }

    fn directory(&mut self) -> Vec<DirectoryLine> {
        let mut lines = Vec::new();
        for account in 0..5 {
            if self.dice.chance(20) {
                continue;
            }
            let entries = self.dice.pick(&[1, 1, 1, 2, 2, 3]);
            for place in 0..entries {
                let line = self.directory_line(format!("a{account}"), place > 0);
                lines.push(line);
            }
        }
        if let Some((account, instant)) = self.long_run.clone() {
            for updated in [START - DAY, instant] {
                let mut line = self.directory_line(account.clone(), updated > START);
                line.updated = updated;
                lines.push(line);
            }
        }
        lines
    }

    fn directory_line(&mut self, account: String, later: bool) -> DirectoryLine {
        let countries = ["", "", "US", "US", "CN", "RU", "FR", "cn", "zz"];
        let mut country = || self.dice.pick(&countries);
        let countries = [country(), country(), country(), country()];
        let updated = if later { self.instant() } else { START - DAY };
        DirectoryLine {
            account,
            owner: self.dice.pick(&["", "", "o1", "o1", "o2", "a0"]).to_owned(),
            countries,
            updated,
            deleted: later && self.dice.chance(10),
        }
    }
}

fn policy(dice: &mut Dice, history: &History<'_>, place: usize, long_run: bool) -> Policy {
    let settings = &history.scenario.settings;
    let about_runs = long_run && dice.chance(50);
    let any_scope =
        [Scope::Account, Scope::Account, Scope::Site, Scope::Owner, Scope::Owner, Scope::Country];
    let scope = dice.pick(if about_runs { &[Scope::Account, Scope::Owner] } else { &any_scope });
    let wanted = [
        OriginMatch::Any,
        OriginMatch::Any,
        OriginMatch::Foreign,
        OriginMatch::Foreign,
        OriginMatch::Home,
        OriginMatch::Unknown,
        OriginMatch::Countries(vec!["CN", "FR"]),
        OriginMatch::Countries(vec!["@d5", "US"]),
    ];
    let slice = settings.tiers[0].slice;
    let lengths = [slice, 4 * slice, 2 * HOUR, 12 * HOUR, DAY, DAY, 2 * DAY, 7 * DAY, 9 * DAY];
    let windows: Vec<Nanos> = lengths
        .into_iter()
        .filter(|length| {
            settings.tiers.iter().any(|tier| tier.keep >= *length && length % tier.slice == 0)
        })
        .collect();
    let metrics: Vec<Metric> =
        (0..=dice.below(3)).map(|_| metric(dice, settings, scope, about_runs)).collect();
    let own = dice.maybe(70, &windows);
    let mut conditions = Vec::new();
    for metric in metrics {
        let window =
            if own.is_none() || dice.chance(30) { Some(dice.pick(&windows)) } else { None };
        conditions.push(Condition { metric, window, at_least: 1.0 });
    }
    let mut policy = Policy {
        id: format!("p{place}"),
        version: u32::try_from(1 + dice.below(3)).expect("small"),
        mode: Mode::Live,
        scope,
        conditions,
        origin: dice.pick(&wanted),
        window: own,
        hold: dice.pick(&[0, 0, 0, 30 * MINUTE, HOUR, 3 * HOUR, 12 * HOUR]),
        keep_firing: dice.pick(&[0, 0, 0, 30 * MINUTE, HOUR, 3 * HOUR, 12 * HOUR]),
        renotify: dice.maybe(50, &[HOUR, 90 * MINUTE, 6 * HOUR, DAY]),
        report_within: dice.maybe(50, &[DAY, 15 * DAY]),
    };
    policy.mode = match dice.below(10) {
        0 => Mode::Off,
        1 | 2 => Mode::Shadow,
        _ => Mode::Live,
    };
    draw_thresholds(dice, history, &mut policy);
    policy
}

fn metric(dice: &mut Dice, settings: &Settings, scope: Scope, about_runs: bool) -> Metric {
    let share = dice.pick(&[settings.min_accelerators, 8.0, 64.0, 0.5]);
    let windowed = [
        Metric::Accelerators,
        Metric::AcceleratorHours,
        Metric::Flop,
        Metric::FlopLow,
        Metric::FlopHigh,
        Metric::FlopAllocated,
        Metric::FlopTheoretical,
        Metric::FlopRate,
        Metric::FlopRateTheoretical,
        Metric::Sustained(share),
    ];
    let run = [
        Metric::RunFlop,
        Metric::RunFlopLow,
        Metric::RunFlopHigh,
        Metric::RunHours,
        Metric::ProjectedRunFlop(dice.pick(&[30 * DAY, 7 * HOUR])),
    ];
    if about_runs || (scope.keeps_runs() && dice.chance(40)) {
        dice.pick(&run)
    } else {
        dice.pick(&windowed)
    }
}

/// Thresholds at, above and below what one key shows at one judgement.
fn draw_thresholds(dice: &mut Dice, history: &History<'_>, policy: &mut Policy) {
    let ends = history.ends();
    if ends.is_empty() {
        return;
    }
    let mut observed = Vec::new();
    for _ in 0..4 {
        let judgement = history.judge(dice.pick(&ends));
        let keys: Vec<String> = judgement.keys(policy.scope).into_iter().collect();
        if keys.is_empty() {
            continue;
        }
        observed = observe(&judgement, policy, &dice.pick(&keys));
        if observed.iter().all(|condition| condition.observed > 0.0) {
            break;
        }
    }
    for (condition, seen) in policy.conditions.iter_mut().zip(observed) {
        if seen.observed > 0.0 {
            let factor = dice.pick(&[1.0, 1.0, 1.0, 0.9, 0.4, 0.1, 1.1]);
            let is_share = matches!(condition.metric, Metric::Sustained(_));
            condition.at_least =
                (seen.observed * factor).min(if is_share { 1.0 } else { f64::MAX });
        }
    }
}
