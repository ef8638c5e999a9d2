//! SPEC 3.4, 3.5 and 4: which records count, what each is worth, and what falls into each slice.
//!
//! Brute force: every check looks through all records counted before.

use super::Fault;
use super::input::{Event, Line, Nanos, SECOND, Settings, ceil_to, floor_to};

/// The four integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) accelerator_ms: i128,
    pub(crate) flop: i128,
    pub(crate) flop_allocated: i128,
    pub(crate) flop_theoretical: i128,
}

impl Amount {
    pub(crate) fn each(self, mut apply: impl FnMut(i128) -> i128) -> Self {
        Self {
            accelerator_ms: apply(self.accelerator_ms),
            flop: apply(self.flop),
            flop_allocated: apply(self.flop_allocated),
            flop_theoretical: apply(self.flop_theoretical),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            accelerator_ms: self.accelerator_ms + other.accelerator_ms,
            flop: self.flop + other.flop,
            flop_allocated: self.flop_allocated + other.flop_allocated,
            flop_theoretical: self.flop_theoretical + other.flop_theoretical,
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        self.plus(other.each(|value| -value))
    }

    pub(crate) fn sum(amounts: impl IntoIterator<Item = Self>) -> Self {
        amounts.into_iter().fold(Self::default(), Self::plus)
    }
}

/// What one counted event puts into one slice of the finest tier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) account: String,
    pub(crate) region: String,
    pub(crate) fabric: String,
    /// The catalogue key, or `unknown:<name>`.
    pub(crate) accelerator: String,
    pub(crate) unknown: bool,
    pub(crate) slice_end: Nanos,
    /// The end of the slice that holds it in each tier.
    pub(crate) tier_ends: Vec<Nanos>,
    /// The watermark that its event left METER with.
    pub(crate) tag: Nanos,
    pub(crate) amount: Amount,
}

/// What METER makes of all partitions.
#[derive(Debug, Default)]
pub(crate) struct Metered {
    pub(crate) read: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    pub(crate) late: u64,
    /// For each partition: line number from 1, and reason.
    pub(crate) dead_letters: Vec<Vec<(usize, &'static str)>>,
    pub(crate) parts: Vec<Part>,
    /// The greatest accepted `time` of all partitions.
    pub(crate) greatest: Option<Nanos>,
}

pub(crate) fn meter(settings: &Settings, partitions: &[Vec<Line>], fault: Fault) -> Metered {
    let mut metered = Metered::default();
    let mut forgotten = false;
    for lines in partitions {
        let mut dead_letters = Vec::new();
        let mut counted: Vec<&Event> = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            metered.read += 1;
            let verdict = match line {
                Line::Garbage(_) => Verdict::DeadLetter("undecodable"),
                Line::Event(event) => judge_record(settings, &counted, event, fault),
            };
            match (verdict, line) {
                (Verdict::DeadLetter(reason), _) => dead_letters.push((index + 1, reason)),
                (Verdict::Duplicate, _) => metered.duplicate += 1,
                (Verdict::Counted, Line::Garbage(_)) => unreachable!("garbage is undecodable"),
                (Verdict::Counted, Line::Event(event)) => {
                    metered.counted += 1;
                    counted.push(event);
                    let stream_time = stream_time(&counted).expect("one was counted just now");
                    let tag = floor_to(stream_time, settings.epoch);
                    metered.late += u64::from(is_late(settings, event, tag, fault));
                    if fault == Fault::ForgetsACorrection && event.correction && !forgotten {
                        forgotten = true;
                    } else {
                        metered.parts.extend(parts(settings, event, tag, fault));
                    }
                }
            }
        }
        metered.greatest = metered.greatest.max(stream_time(&counted));
        metered.dead_letters.push(dead_letters);
    }
    metered
}

enum Verdict {
    DeadLetter(&'static str),
    Duplicate,
    Counted,
}

/// `0` means the end.
pub(crate) fn time_of(event: &Event) -> Nanos {
    if event.time == 0 { event.end } else { event.time }
}

/// The greatest accepted `time`.
fn stream_time(counted: &[&Event]) -> Option<Nanos> {
    counted.iter().map(|event| time_of(event)).max()
}

fn judge_record(settings: &Settings, counted: &[&Event], event: &Event, fault: Fault) -> Verdict {
    if let Some(reason) = invalid(settings, event) {
        return Verdict::DeadLetter(reason);
    }
    // Before the first counted event there is no stream time that anything could be beyond.
    let Some(stream_time) = stream_time(counted) else { return Verdict::Counted };
    let keep = settings.tiers.iter().map(|tier| tier.keep).max().expect("there is a tier");
    if event.end <= floor_to(stream_time, settings.epoch) - keep {
        return Verdict::DeadLetter("beyond_retention");
    }
    let horizon = stream_time - settings.dedup_horizon;
    if time_of(event) < horizon {
        return Verdict::DeadLetter("beyond_horizon");
    }
    let seen = counted.iter().any(|earlier| {
        (&earlier.source, &earlier.id) == (&event.source, &event.id)
            && (time_of(earlier) >= horizon || fault == Fault::NeverForgetsIdentities)
    });
    if seen { Verdict::Duplicate } else { Verdict::Counted }
}

/// SPEC 3.4 up to what depends on stream time, in its order.
fn invalid(settings: &Settings, event: &Event) -> Option<&'static str> {
    let earliest = 946_684_800 * SECOND;
    let latest = 16_725_225_600 * SECOND;
    let time = time_of(event);
    let wrong_name = |name: &str| name.is_empty() || name.len() > 256;
    let others = [&event.region, &event.fabric, &event.accelerator, &event.instance_type];
    let checks = [
        (wrong_name(&event.id), "invalid_id"),
        (wrong_name(&event.source), "invalid_source"),
        (wrong_name(&event.account), "invalid_account_id"),
        (others.iter().any(|name| name.len() > 256), "name_too_long"),
        (
            [time, event.start, event.end].iter().any(|at| *at < earliest || *at >= latest),
            "time_out_of_range",
        ),
        (event.end <= event.start, "empty_interval"),
        (event.end - event.start > settings.max_interval, "interval_too_long"),
        (event.end > time + settings.max_future, "end_in_future"),
        (
            event.quantity == 0.0
                || (event.quantity < 0.0 && !event.correction)
                || event.quantity.abs() > 1e7,
            "invalid_quantity",
        ),
    ];
    checks.iter().find(|(wrong, _)| *wrong).map(|(_, reason)| *reason)
}

/// A USAGE event whose tag >= the end of the first slice it touches + lateness.
fn is_late(settings: &Settings, event: &Event, tag: Nanos, fault: Fault) -> bool {
    let slice = settings.tiers[0].slice;
    let first_end = floor_to(event.start, slice) + slice;
    let judged = first_end + settings.lateness;
    !event.correction && (tag > judged || (tag == judged && fault != Fault::LateByMoreThan))
}

/// Keys, dense 16-bit and highest dense peak in FLOP/s, and whether it is plain compute: a few
/// rows of the published tables.
const ACCELERATORS: [(&str, f64, f64, bool); 6] = [
    ("nvidia-h100-sxm", 989.4e12, 1978.9e12, false),
    ("nvidia-a100-80-sxm", 312e12, 624e12, false),
    ("nvidia-a100-40-sxm", 312e12, 624e12, false),
    ("nvidia-h20", 148e12, 296e12, false),
    ("google-tpu-v5p", 459e12, 918e12, false),
    ("vcpu", 0.1e12, 0.1e12, true),
];

/// Spellings of the field that stand for one of the keys.
pub(crate) const SPELLINGS: [(&str, &str); 9] = [
    ("nvidia-h100-sxm", "nvidia-h100-sxm"),
    ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm"),
    ("H100-SXM5-80GB", "nvidia-h100-sxm"),
    ("NVIDIA_H100.SXM", "nvidia-h100-sxm"),
    ("nvidia-a100-80-sxm", "nvidia-a100-80-sxm"),
    ("nvidia-h20", "nvidia-h20"),
    ("TPU-v5p", "google-tpu-v5p"),
    ("vcpu", "vcpu"),
    ("vCPU", "vcpu"),
];

pub(crate) const INSTANCES: [(&str, &str, f64); 3] = [
    ("p5.48xlarge", "nvidia-h100-sxm", 8.0),
    ("p4de.24xlarge", "nvidia-a100-80-sxm", 8.0),
    ("p4d.24xlarge", "nvidia-a100-40-sxm", 8.0),
];

struct Resolved {
    label: String,
    unknown: bool,
    count: f64,
    peaks: (f64, f64, bool),
}

/// `accelerator` wins; an unknown one counts at `catalogue.unknown`, an unknown instance type as
/// `catalogue.unknown_count` of them, and neither as one.
fn resolve(settings: &Settings, event: &Event) -> Resolved {
    let peaks = |key: &str| {
        let row = ACCELERATORS.iter().find(|row| row.0 == key).expect("a key of the table");
        (row.1, row.2, row.3)
    };
    let (name, count, key) = if !event.accelerator.is_empty() {
        let known = SPELLINGS.iter().find(|row| row.0 == event.accelerator);
        (&event.accelerator, 1.0, known.map(|row| row.1))
    } else if !event.instance_type.is_empty() {
        match INSTANCES.iter().find(|row| row.0 == event.instance_type) {
            Some((_, key, count)) => (&event.instance_type, *count, Some(*key)),
            None => (&event.instance_type, f64::from(settings.unknown_count), None),
        }
    } else {
        (&event.accelerator, 1.0, None)
    };
    match key {
        Some(key) => Resolved { label: key.to_owned(), unknown: false, count, peaks: peaks(key) },
        None => Resolved {
            label: format!("unknown:{name}"),
            unknown: true,
            count,
            peaks: peaks(settings.unknown),
        },
    }
}

/// What an event is worth, each integer rounded once, half away from zero.
fn total(settings: &Settings, event: &Event, resolved: &Resolved) -> Amount {
    let (dense16, dense_max, cpu) = resolved.peaks;
    let q = event.quantity * resolved.count;
    let s = to_f64(event.end - event.start) / 1e9;
    let plausible =
        |ratio: Option<f32>| ratio.filter(|value| (0.0..=1.0).contains(value)).map(f64::from);
    let utilization = match (plausible(event.tensor_active), plausible(event.utilization)) {
        (Some(tensor), _) => tensor,
        (None, Some(utilization)) => settings.central * utilization,
        (None, None) => settings.central,
    };
    Amount {
        accelerator_ms: if cpu { 0 } else { rounded(q * s * 1000.0) },
        flop: rounded(q * s * dense16 * utilization / 1e9),
        flop_allocated: rounded(q * s * dense16 / 1e9),
        flop_theoretical: rounded(q * s * dense_max / 1e9),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "events are worth less than 2^127")]
fn rounded(value: f64) -> i128 {
    value.round() as i128
}

pub(crate) fn to_f64(value: i128) -> f64 {
    value as f64
}

/// Cumulative floor: each slice gets the difference of the shares at its two boundaries.
fn parts(settings: &Settings, event: &Event, tag: Nanos, fault: Fault) -> Vec<Part> {
    let resolved = resolve(settings, event);
    let total = total(settings, event, &resolved);
    let slice = settings.tiers[0].slice;
    let length = event.end - event.start;
    let share = |until: Nanos| {
        let elapsed = until.clamp(event.start, event.end) - event.start;
        total.each(|value| {
            let exact = value.abs() * elapsed;
            let up = if fault == Fault::CeilsTheSplit { length - 1 } else { 0 };
            value.signum() * ((exact + up) / length)
        })
    };
    let mut parts = Vec::new();
    let mut end = floor_to(event.start, slice) + slice;
    while end <= ceil_to(event.end, slice) {
        parts.push(Part {
            account: event.account.clone(),
            region: event.region.clone(),
            fabric: event.fabric.clone(),
            accelerator: resolved.label.clone(),
            unknown: resolved.unknown,
            slice_end: end,
            tier_ends: settings.tiers.iter().map(|tier| ceil_to(end, tier.slice)).collect(),
            tag,
            amount: share(end).minus(share(end - slice)),
        });
        end += slice;
    }
    parts
}
