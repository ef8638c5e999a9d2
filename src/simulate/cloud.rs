//! The simulated cloud: a stream of usage events from a plan and a seed.
//!
//! Each rented node is metered once an interval. Its events are written in the order of the
//! nodes' own phases after the interval's end, while the `time` that a meter stamps strays by up
//! to half of the disorder, and an exact duplicate follows within the other half: so the records
//! of a partition are out of order by less than the disorder, and stream time moves on.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::dice::Dice;
use super::plan::{KeyBy, Plan};
use super::population::Builder;
use super::scenario::{Allocation, Calendar, Scenario, Site, Tenant};
use super::telemetry::{Behaviour, telemetry};
use super::truth::{self, Used};
use crate::detector::event::{Kind, Telemetry, UsageEvent};
use crate::detector::time::{SECOND_NS, Span, Timestamp};

/// Meters of an interval report over this long at most.
const SPREAD: Span = Span::seconds(240);
const MILLISECOND_NS: u64 = 1_000_000;

/// A record to send, lent until the next one.
#[derive(Debug, Clone)]
pub struct Sent<'a> {
    pub partition: u32,
    /// When the meter's record reaches the log.
    pub written: Timestamp,
    pub event: UsageEvent<'a>,
    pub duplicate: bool,
}

#[derive(Debug, Clone, Copy)]
struct Resource {
    allocation: u32,
    node: u32,
}

/// What one event is about; a correction names the tick that it was made in.
#[derive(Debug, Clone, Copy)]
enum Variant {
    Usage,
    TakenBack(u32),
    Added(u32),
}

/// An event before its names are put on.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    resource: Resource,
    /// The interval used.
    tick: u32,
    variant: Variant,
    quantity: f64,
    time: Timestamp,
    written: Timestamp,
    telemetry: Telemetry,
    /// Turn of a record without a key.
    turn: u32,
    duplicate: bool,
}

/// Meters cut off: what they would have reported comes when they are back.
#[derive(Debug, Clone, Copy)]
struct Outage {
    from: Timestamp,
    until: Timestamp,
    /// The meter stamps its records when it sends them, not when it made them.
    restamps: bool,
}

/// The stream of records, and the truth about what was sent so far.
pub struct Cloud {
    plan: Plan,
    calendar: Calendar,
    tenants: Vec<Tenant>,
    used: Vec<Used>,
    sites: Vec<Site>,
    allocations: Vec<Allocation>,
    /// In the order in which they report.
    resources: Vec<Resource>,
    partition_of: Vec<u32>,
    source: String,
    outages: [Outage; 2],
    dice: Dice,
    tick: u32,
    /// Nodes rented of each allocation in this tick.
    active: Vec<u32>,
    cursor: usize,
    /// Records to be written later, by when and in order.
    waiting: BTreeMap<(Timestamp, u64), Drawn>,
    serial: u64,
    turn: u32,
    id: String,
    resource_id: String,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloud").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Cloud {
    /// Refuses a plan that makes no sense, saying what would.
    pub fn new(plan: Plan) -> Result<Self, String> {
        let ticks = plan.ticks()?;
        let milliseconds = plan.start.0 / MILLISECOND_NS % 86_400_000;
        let calendar = Calendar {
            ticks,
            ticks_per_hour_x1000: Span::hours(1).0 * 1000 / plan.interval.0,
            day_ms: u32::try_from(milliseconds).expect("a day has fewer than 2^32"),
            interval_ms: plan.interval.0 / MILLISECOND_NS,
        };
        let mut builder = Builder::new(plan.seed, calendar);
        for &scenario in &plan.scenarios {
            builder.add(scenario);
        }
        builder.background(plan.accounts, plan.resources, plan.constant);
        let mut population = builder.population;
        for tenant in &mut population.tenants {
            tenant.entry.updated_unix_nano = plan.start.0;
        }
        let mut dice = Dice::new(plan.seed, 1 << 32);
        let mut resources = Vec::new();
        for (allocation, rented) in (0..).zip(&population.allocations) {
            resources.extend((0..rented.nodes).map(|node| Resource { allocation, node }));
        }
        dice.shuffle(&mut resources);
        let partition_of = population
            .tenants
            .iter()
            .map(|tenant| partition(tenant.entry.account_id.as_bytes(), plan.partitions))
            .collect();
        let mut cloud = Self {
            calendar,
            used: vec![Used::default(); population.tenants.len()],
            active: vec![0; population.allocations.len()],
            tenants: population.tenants,
            sites: population.sites,
            allocations: population.allocations,
            resources,
            partition_of,
            source: format!("flopwatch-simulate/{}", plan.seed),
            outages: outages(&plan),
            dice,
            tick: 0,
            cursor: 0,
            waiting: BTreeMap::new(),
            serial: 0,
            turn: 0,
            id: String::new(),
            resource_id: String::new(),
            plan,
        };
        cloud.begin_tick();
        Ok(cloud)
    }

    /// Every account, listed in the directory or not.
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// What each of `tenants` used in the records lent so far.
    pub fn used(&self) -> &[Used] {
        &self.used
    }

    /// Nodes, rented at some time or other.
    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    /// The simulated time that has passed, of `span`.
    pub fn elapsed(&self) -> Span {
        Span(self.plan.interval.0 * u64::from(self.tick))
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The next record.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend from itself")]
    pub fn next(&mut self) -> Option<Sent<'_>> {
        let drawn = self.draw()?;
        if !drawn.duplicate {
            self.follow_with_duplicate(&drawn);
            self.account_for(&drawn);
        }
        Some(self.dress(&drawn))
    }

    fn draw(&mut self) -> Option<Drawn> {
        while self.tick < self.calendar.ticks {
            while let Some(&resource) = self.resources.get(self.cursor) {
                if resource.node >= self.active[resource.allocation as usize] {
                    self.cursor += 1;
                    continue;
                }
                let written = self.phase(self.cursor);
                if let Some(due) = self.due(written) {
                    return Some(due);
                }
                self.cursor += 1;
                if let Some(drawn) = self.meter(resource, written) {
                    return Some(drawn);
                }
            }
            self.tick += 1;
            self.begin_tick();
        }
        self.waiting.pop_first().map(|(_, drawn)| drawn)
    }

    /// When the node at this place of the order reports on the present tick.
    fn phase(&self, place: usize) -> Timestamp {
        let spread = SPREAD.0.min(self.plan.interval.0 / 5 * 4);
        let step = spread / self.resources.len().max(1) as u64;
        self.tick_end(self.tick).plus(Span(step * place as u64))
    }

    fn tick_end(&self, tick: u32) -> Timestamp {
        self.plan.start.plus(Span(self.plan.interval.0 * (u64::from(tick) + 1)))
    }

    /// A record that waited and comes before `written`.
    fn due(&mut self, written: Timestamp) -> Option<Drawn> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= written).then(|| first.remove())
    }

    fn wait(&mut self, drawn: Drawn) {
        self.serial += 1;
        self.waiting.insert((drawn.written, self.serial), drawn);
    }

    /// The event of one node's interval, unless its meter is cut off.
    fn meter(&mut self, resource: Resource, written: Timestamp) -> Option<Drawn> {
        let rented = &self.allocations[resource.allocation as usize];
        let bits = [self.dice.bits(), self.dice.bits()];
        let load = self.active[resource.allocation as usize] * 1000 / rented.nodes;
        let seconds = u32::try_from(self.plan.interval.0 / SECOND_NS).expect("at most a day");
        let accelerators = rented.quantity * rented.hardware.count;
        let telemetry = telemetry(
            rented.behaviour,
            rented.probe,
            rented.hardware,
            accelerators,
            seconds,
            load,
            bits,
        );
        self.turn = self.turn.wrapping_add(1);
        let mut drawn = Drawn {
            resource,
            tick: self.tick,
            variant: Variant::Usage,
            quantity: rented.quantity,
            time: written.plus(self.stray()),
            written,
            telemetry,
            turn: self.turn,
            duplicate: false,
        };
        let account = self.allocations[resource.allocation as usize].account;
        if self.tenants[account as usize].scenario != Scenario::Corrections {
            return Some(drawn);
        }
        let end = self.tick_end(self.tick);
        let cut = self.outages.iter().find(|outage| outage.from <= end && end < outage.until);
        let Some(outage) = cut else { return Some(drawn) };
        drawn.written = outage.until;
        if outage.restamps {
            drawn.time = outage.until;
        }
        self.wait(drawn);
        None
    }

    /// Up to half of the disorder.
    fn stray(&mut self) -> Span {
        let half = self.plan.disorder.0 / 2;
        Span(if half == 0 { 0 } else { self.dice.below(half) })
    }

    fn follow_with_duplicate(&mut self, drawn: &Drawn) {
        let rate = u64::from(self.plan.duplicates_per_million);
        if rate == 0 || self.dice.below(1_000_000) >= rate {
            return;
        }
        let written = drawn.written.plus(self.stray());
        self.wait(Drawn { written, duplicate: true, ..*drawn });
    }

    fn account_for(&mut self, drawn: &Drawn) {
        let rented = &self.allocations[drawn.resource.allocation as usize];
        let interval = self.plan.interval;
        let amount = truth::amount(rented.hardware, drawn.quantity, interval, &drawn.telemetry);
        let end = self.tick_end(drawn.tick);
        self.used[rented.account as usize].add(end.minus(interval), end, amount);
    }

    /// Settles how many nodes each allocation has in the present tick.
    fn begin_tick(&mut self) {
        self.cursor = 0;
        if self.tick >= self.calendar.ticks {
            return;
        }
        let day_ms = self.calendar.time_of_day(self.tick);
        let mut now: BTreeMap<u32, f64> = BTreeMap::new();
        for (rented, active) in self.allocations.iter().zip(&mut self.active) {
            *active = rented.rhythm.active(rented.nodes, self.tick, day_ms);
            if !rented.hardware.peaks.is_cpu && *active > 0 {
                let accelerators = f64::from(*active) * rented.quantity * rented.hardware.count;
                *now.entry(rented.account).or_default() += accelerators;
            }
        }
        for (account, accelerators) in now {
            let used = &mut self.used[account as usize];
            used.peak_accelerators = used.peak_accelerators.max(accelerators);
        }
        let half = self.calendar.ticks / 2;
        let late = self.calendar.ticks / 5 * 4;
        if self.tick > 0 && (self.tick == half || self.tick == late) {
            self.correct();
        }
    }

    /// Bills are mended: half of some past interval is taken back from each node, and a quarter
    /// of another is added for every fourth.
    fn correct(&mut self) {
        let day = Span::days(1).0 / self.plan.interval.0;
        let back = u64::from(self.tick).min(day);
        for allocation in 0..self.allocations.len() {
            let rented = &self.allocations[allocation];
            let scenario = self.tenants[rented.account as usize].scenario;
            if scenario != Scenario::Corrections || rented.behaviour != Behaviour::Training {
                continue;
            }
            let (nodes, quantity) = (rented.nodes, rented.quantity);
            let allocation = u32::try_from(allocation).expect("allocations fit 32 bits");
            for node in 0..nodes {
                let resource = Resource { allocation, node };
                self.correction(resource, back, -quantity / 2.0, Variant::TakenBack(self.tick));
                if node % 4 == 0 {
                    self.correction(resource, back, quantity / 4.0, Variant::Added(self.tick));
                }
            }
        }
    }

    fn correction(&mut self, resource: Resource, back: u64, quantity: f64, variant: Variant) {
        let ago = u32::try_from(1 + self.dice.below(back)).expect("at most a day of intervals");
        let written = self.tick_end(self.tick).plus(Span::seconds(1));
        self.turn = self.turn.wrapping_add(1);
        self.wait(Drawn {
            resource,
            tick: self.tick - ago,
            variant,
            quantity,
            time: written,
            written,
            telemetry: Telemetry::default(),
            turn: self.turn,
            duplicate: false,
        });
    }

    /// Puts the names on.
    fn dress(&mut self, drawn: &Drawn) -> Sent<'_> {
        self.write_ids(drawn);
        let rented = &self.allocations[drawn.resource.allocation as usize];
        let site = &self.sites[rented.site as usize];
        let end = self.tick_end(drawn.tick);
        let kind = match drawn.variant {
            Variant::Usage => Kind::Usage,
            Variant::TakenBack(_) | Variant::Added(_) => Kind::Correction,
        };
        let precision = match rented.behaviour {
            Behaviour::Training | Behaviour::FineTuning => "bf16",
            Behaviour::Inference
            | Behaviour::Batch
            | Behaviour::Rendering
            | Behaviour::Research => "",
        };
        let partition = match self.plan.key {
            KeyBy::Account => self.partition_of[rented.account as usize],
            KeyBy::Event => partition(self.id.as_bytes(), self.plan.partitions),
            KeyBy::None => drawn.turn % self.plan.partitions,
        };
        let event = UsageEvent {
            id: self.id.as_str().into(),
            source: self.source.as_str().into(),
            account_id: self.tenants[rented.account as usize].entry.account_id.as_str().into(),
            resource_id: self.resource_id.as_str().into(),
            region: site.region.as_str().into(),
            fabric_id: site.fabric.as_str().into(),
            accelerator: rented.hardware.accelerator.into(),
            instance_type: rented.hardware.instance_type.into(),
            quantity: drawn.quantity,
            start: end.minus(self.plan.interval),
            end,
            time: drawn.time,
            kind,
            telemetry: drawn.telemetry,
            precision: precision.into(),
        };
        Sent { partition, written: drawn.written, event, duplicate: drawn.duplicate }
    }

    /// `i-<allocation><node>` and that with the tick; a correction says when it was made.
    fn write_ids(&mut self, drawn: &Drawn) {
        self.resource_id.clear();
        self.resource_id.push_str("i-");
        push_hex(&mut self.resource_id, drawn.resource.allocation, 5);
        push_hex(&mut self.resource_id, drawn.resource.node, 5);
        self.id.clear();
        self.id.push_str(&self.resource_id);
        self.id.push('-');
        push_hex(&mut self.id, drawn.tick, 6);
        let (letter, made) = match drawn.variant {
            Variant::Usage => return,
            Variant::TakenBack(made) => ('t', made),
            Variant::Added(made) => ('a', made),
        };
        self.id.push(letter);
        push_hex(&mut self.id, made, 6);
    }
}

/// Where a key's records go.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    u32::try_from(xxh3_64(key) % u64::from(partitions)).expect("below a 32-bit number")
}

/// Two outages: one whose meters keep their stamps and are back within the default horizon of
/// the duplicate check, and a longer one whose meters stamp anew.
fn outages(plan: &Plan) -> [Outage; 2] {
    let at = |percent: u64| plan.start.plus(Span(plan.span.0 / 100 * percent));
    let (short, long) = (at(40), at(60));
    [
        Outage { from: short, until: short.plus(Span::seconds(90 * 60)), restamps: false },
        Outage { from: long, until: long.plus(Span::hours(6)), restamps: true },
    ]
}

fn push_hex(text: &mut String, value: u32, width: u32) {
    let width = width.max((32 - value.leading_zeros()).div_ceil(4));
    for digit in (0..width).rev() {
        let nibble = value >> (4 * digit) & 0xf;
        text.push(char::from_digit(nibble, 16).expect("a nibble is one hexadecimal digit"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::plan::DISORDER_LIMIT;

    fn plan() -> Plan {
        Plan {
            seed: 1,
            start: Timestamp(1_767_571_200 * SECOND_NS),
            span: Span::days(2),
            interval: Span::hours(1),
            partitions: 3,
            key: KeyBy::None,
            accounts: 50,
            resources: 500,
            scenarios: vec![Scenario::Corrections],
            constant: true,
            duplicates_per_million: 100_000,
            disorder: Span::seconds(120),
        }
    }

    #[test]
    fn a_duplicate_follows_its_event_into_the_same_partition() {
        for key in [KeyBy::Account, KeyBy::Event, KeyBy::None] {
            let mut cloud = Cloud::new(Plan { key, ..plan() }).expect("a sound plan");
            let mut partition_of = BTreeMap::new();
            let mut duplicates = 0;
            while let Some(sent) = cloud.next() {
                let id = sent.event.id.into_owned();
                if sent.duplicate {
                    duplicates += 1;
                    assert_eq!(partition_of.get(&id), Some(&sent.partition), "{id}");
                } else {
                    assert_eq!(partition_of.insert(id, sent.partition), None, "ids are unique");
                }
            }
            assert!(duplicates > 1000, "{duplicates}");
        }
    }

    #[test]
    fn no_record_is_beyond_the_default_horizon_and_long_outages_are_late() {
        let horizon = Span::hours(2);
        let disorder = DISORDER_LIMIT;
        let mut cloud = Cloud::new(Plan { disorder, ..plan() }).expect("a sound plan");
        let mut stream_time = [Timestamp(0); 3];
        let mut late = 0;
        while let Some(sent) = cloud.next() {
            let stream_time = &mut stream_time[sent.partition as usize];
            assert!(sent.event.time >= stream_time.minus(horizon), "{}", sent.event.id);
            *stream_time = sent.event.time.max(*stream_time);
            let delay = sent.event.time.since(sent.event.end);
            late += u32::from(delay > Span::hours(3) && sent.event.kind == Kind::Usage);
        }
        assert!(late > 0, "the longer outage's records are stamped when they are sent");
    }

    #[test]
    fn constant_nodes_report_once_an_interval_and_sizes_follow_zipf() {
        let scenarios = Vec::new();
        let quiet = Plan { scenarios, duplicates_per_million: 0, resources: 20_000, ..plan() };
        let mut cloud = Cloud::new(quiet).expect("a sound plan");
        let mut events = 0_u64;
        while cloud.next().is_some() {
            events += 1;
        }
        assert_eq!(events, 20_000 * 48);
        // 20,000 over 1 + 1/2 + ... + 1/50 = 4.499: 4,445 nodes for the first, a tenth of them for
        // the tenth
        let nodes = |rank: usize| cloud.used()[rank - 1].events / 48;
        assert!((4200..4700).contains(&nodes(1)), "{}", nodes(1));
        assert!((380..510).contains(&nodes(10)), "{}", nodes(10));
    }

    #[test]
    fn a_plan_that_makes_no_sense_is_refused() {
        let refused = |plan: Plan| Cloud::new(plan).expect_err("refused");
        assert!(refused(Plan { interval: Span(1), ..plan() }).contains("from 1s to 1d"));
        assert!(refused(Plan { span: Span::seconds(60), ..plan() }).contains("one interval"));
        assert!(refused(Plan { partitions: 0, ..plan() }).contains("at least 1"));
        assert!(refused(Plan { start: Timestamp(0), ..plan() }).contains("2000"));
    }
}
