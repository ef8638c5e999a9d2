//! What ACCOUNT keeps of an account and GROUP of an owner or country: windows, the run, and the
//! episodes of alerts; how sums enter it, how slices leave, and how it stands on the changelog.

use super::StageError;
use super::alert::Episode;
use super::align::Align;
use super::changelog::{Reader, Writer, damaged};
use super::measure::Measure;
use super::names::Names;
use super::outbox::Outbox;
use super::rules::{Rules, TierRules};
use super::run::{Activity, RunCarry, RunView, Runs};
use super::time::Timestamp;
use super::window::{BlockId, Part, Place, Windows};

#[derive(Debug)]
pub struct KeyState {
    pub windows: Windows,
    pub runs: Runs,
    pub episodes: Vec<Episode>,
    /// Something that the head holds changed since it was last written.
    pub head_changed: bool,
}

impl KeyState {
    pub fn new(rules: &Rules) -> Self {
        Self {
            windows: Windows::new(rules.tiers.len()),
            runs: Runs::default(),
            episodes: Vec::new(),
            head_changed: true,
        }
    }

    /// Adds a part to every tier that still keeps its slice when `judged` is the last judged slice
    /// end; a slice that has left the finest tier adds to the run it lies in. Whether any tier took
    /// it is returned.
    pub fn add(
        &mut self,
        rules: &Rules,
        judged: Timestamp,
        slice_end: Timestamp,
        place: Place,
        measure: Measure,
    ) -> bool {
        let mut taken = false;
        for (index, tier) in rules.tiers.iter().enumerate() {
            // the coarser slice that holds the finer one
            let end = Timestamp(slice_end.0 - 1).slice_end(tier.slice);
            if is_kept(tier, judged, end) {
                self.windows.add(index, tier, end, place, measure);
                taken = true;
                if index == 0 {
                    self.runs.changed(end);
                }
            } else if index == 0 && self.runs.carry.add_late(slice_end, measure) {
                self.runs.forget_read();
                self.head_changed = true;
            }
        }
        taken
    }

    /// Adds to one tier alone: a slice of an account that moved.
    pub fn add_moved(
        &mut self,
        rules: &Rules,
        judged: Timestamp,
        tier: usize,
        end: Timestamp,
        place: Place,
        measure: Measure,
    ) {
        if let Some(tier_rules) = rules.tiers.get(tier)
            && is_kept(tier_rules, judged, end)
        {
            self.windows.add(tier, tier_rules, end, place, measure);
            if tier == 0 {
                self.runs.changed(end);
            }
        }
    }

    /// The run as it is judged at `at`.
    pub fn run(&mut self, rules: &Rules, at: Timestamp) -> Option<RunView> {
        let (windows, finest) = (&self.windows, rules.finest());
        self.runs.at(&activity(rules), at, |bounds, slice| {
            windows.each_slice(0, &finest, bounds, Part::All, slice);
        })
    }

    /// After the judgement of `judged`: slices that are no longer kept leave their tiers, and what
    /// is added to no more comes to rest.
    pub fn expire(&mut self, rules: &Rules, judged: Timestamp) {
        let activity = activity(rules);
        let (carry, mut changed) = (&mut self.runs.carry, false);
        for (index, tier) in rules.tiers.iter().enumerate() {
            let bound = judged.minus(tier.keep);
            self.windows.expire(index, tier, bound, |end, measure| {
                if index == 0 {
                    changed |= carry.absorb(&activity, end, measure);
                }
            });
            if index == 0 {
                changed |= carry.forget(&activity, bound);
            }
        }
        self.windows.rest();
        self.head_changed |= changed;
    }

    /// Nothing is left that a later judgement could need.
    pub fn is_over(&self) -> bool {
        self.windows.is_gone() && self.runs.carry.is_none() && self.episodes.is_empty()
    }

    /// Something changed since it was last logged.
    pub fn is_changed(&self) -> bool {
        self.head_changed || self.windows.is_changed()
    }

    /// The changelog of the blocks; whether the head is to be written too is returned.
    pub fn log_blocks(&mut self, scope: u8, key: &str, outbox: &mut Outbox) -> bool {
        if !outbox.keeps_changes() {
            self.windows.forget_changes();
            self.head_changed = false;
            return false;
        }
        self.windows.log(|block, value| {
            outbox.change(StateKey::Slices { scope, block, key }.bytes(), value);
        });
        self.head_changed || self.windows.places_changed()
    }

    pub fn write(&mut self, names: &Names, writer: &mut Writer) {
        self.head_changed = false;
        self.windows.write_places(names, writer);
        // what has left the finest tier has entered the carry: the two are one fact
        writer.time(self.windows.left());
        self.runs.carry.write(writer);
        write_episodes(&self.episodes, writer);
    }

    pub fn read(&mut self, names: &mut Names, reader: &mut Reader<'_>) -> Result<(), StageError> {
        self.head_changed = false;
        self.windows.read_places(names, reader)?;
        self.windows.set_left(reader.time()?);
        self.runs = Runs::of(RunCarry::read(reader)?);
        self.episodes = read_episodes(reader)?;
        Ok(())
    }
}

/// How active slices are told in the finest tier.
pub fn activity(rules: &Rules) -> Activity {
    Activity { rules: rules.run, slice: rules.finest().slice }
}

fn is_kept(tier: &TierRules, judged: Timestamp, end: Timestamp) -> bool {
    end > judged.minus(tier.keep)
}

pub fn write_episodes(episodes: &[Episode], writer: &mut Writer) {
    writer.unsigned(episodes.len() as u64);
    for episode in episodes {
        episode.write(writer);
    }
}

pub fn read_episodes(reader: &mut Reader<'_>) -> Result<Vec<Episode>, StageError> {
    (0..reader.small()?).map(|_| Episode::read(reader)).collect()
}

/// A changelog key of ACCOUNT or GROUP.
#[derive(Debug, PartialEq, Eq)]
pub enum StateKey<'a> {
    /// Alignment and the rules that the state was built under.
    Align,
    Head {
        scope: u8,
        key: &'a str,
    },
    Slices {
        scope: u8,
        block: BlockId,
        key: &'a str,
    },
}

impl<'a> StateKey<'a> {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Align => vec![b'a'],
            Self::Head { scope, key } => [&[b'h', *scope], key.as_bytes()].concat(),
            Self::Slices { scope, block, key } => {
                let number = block.number.to_be_bytes();
                [&[b's', *scope, block.tier], &number[..], key.as_bytes()].concat()
            }
        }
    }

    pub fn parse(bytes: &'a [u8]) -> Result<Self, StageError> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| damaged("a key"));
        match bytes {
            [b'a'] => Ok(Self::Align),
            [b'h', scope, key @ ..] => Ok(Self::Head { scope: *scope, key: text(key)? }),
            [b's', scope, tier, rest @ ..] => {
                let (number, key) = rest.split_first_chunk().ok_or_else(|| damaged("a block"))?;
                let block = BlockId { tier: *tier, number: u64::from_be_bytes(*number) };
                Ok(Self::Slices { scope: *scope, block, key: text(key)? })
            }
            _ => Err(damaged("a known key")),
        }
    }
}

/// Writes the alignment, and with it what the state was built under and what was lost.
pub fn log_alignment<T>(rules: &Rules, gap: u64, align: &Align<T>, outbox: &mut Outbox) {
    let mut writer = Writer::default();
    write_stamp(rules, &mut writer);
    writer.unsigned(gap);
    align.write(&mut writer);
    outbox.change(StateKey::Align.bytes(), Some(writer.finish()));
}

/// The rules that stored sums depend on: state built under others is refused, never mixed.
pub fn write_stamp(rules: &Rules, writer: &mut Writer) {
    writer.unsigned(rules.time.epoch.0);
    writer.unsigned(rules.time.lateness.0);
    writer.unsigned(rules.tiers.len() as u64);
    for tier in &rules.tiers {
        writer.unsigned(tier.slice.0);
        writer.unsigned(tier.keep.0);
    }
}

pub fn check_stamp(rules: &Rules, reader: &mut Reader<'_>) -> Result<(), StageError> {
    let refused = |what: &str| {
        Err(StageError::State(format!(
            "stored state was built under another {what}: put the old setting back, or start \
             afresh under a new kafka.group_id with new state and internal topics"
        )))
    };
    if reader.number()? != rules.time.epoch.0 {
        return refused("time.epoch");
    }
    if reader.number()? != rules.time.lateness.0 {
        return refused("time.lateness");
    }
    if reader.number()? != rules.tiers.len() as u64 {
        return refused("number of tiers");
    }
    for tier in &rules.tiers {
        if (reader.number()?, reader.number()?) != (tier.slice.0, tier.keep.0) {
            return refused("tier (slice or keep)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::names::NameId;
    use super::super::time::Span;
    use super::*;
    use crate::config::Config;

    const PLACE: Place =
        Place { region: NameId::EMPTY, fabric: NameId::EMPTY, accelerator: NameId::EMPTY };

    fn hour(number: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span::hours(number))
    }

    proptest! {
        /// Each hour, some usage: of the hour, or late by up to ten days, active or taken back.
        #[test]
        fn a_run_read_hour_by_hour_is_the_run_read_anew(
            usage in proptest::collection::vec(
                proptest::collection::vec((0u64..240, -70i128..140), 0..3),
                1..400,
            ),
        ) {
            let rules = Config::from_text("test", "").expect("the defaults are valid").rules;
            let (mut kept, mut anew) = (KeyState::new(&rules), KeyState::new(&rules));
            for (number, parts) in (1000u64..).zip(usage) {
                for (late, accelerators) in parts {
                    let accelerator_ms = accelerators * 3_600_000;
                    let measure = Measure { accelerator_ms, flop: accelerators, ..Measure::ZERO };
                    // one in three is on time
                    let end = hour(number - late.saturating_sub(80));
                    for state in [&mut kept, &mut anew] {
                        state.add(&rules, hour(number - 1), end, PLACE, measure);
                    }
                }
                anew.runs.forget_read();
                prop_assert_eq!(kept.run(&rules, hour(number)), anew.run(&rules, hour(number)));
                kept.expire(&rules, hour(number));
                anew.expire(&rules, hour(number));
            }
        }
    }
}
