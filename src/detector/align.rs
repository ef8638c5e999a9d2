//! Tagged entries and watermarks of many input partitions, to epochs in order.
//!
//! A step M is taken when every input that counts has a watermark of at least M; it releases the
//! entries tagged before M. So what a step sees depends on each input's own sequence alone.
//!
//! Invariants: steps go up by one epoch; an entry is released once; the position is the first
//! record that still holds an entry not released, so that a restart reads it again, and the step's
//! offset tells which of those were released before.

use std::collections::{BTreeMap, VecDeque};

use super::StageError;
use super::changelog::{Reader, Writer};
use super::time::{Span, Timestamp};

/// What every internal record says of its input partition.
#[derive(Debug, Clone, Copy)]
pub struct Announcement {
    pub input: u32,
    /// How many inputs the sender knows.
    pub inputs: u32,
    pub watermark: Option<Timestamp>,
    pub idle: bool,
    /// Records that were lost to retention before the input or what feeds it read them.
    pub gap: u64,
}

#[derive(Debug)]
pub struct Align<T> {
    epoch: Span,
    /// The last step taken.
    step: Option<Timestamp>,
    /// Records before this offset had been read when that step was taken.
    step_offset: u64,
    /// The offset after the last record read since the start or the restore.
    read: Option<u64>,
    /// Inputs that are waited for even before their first record.
    expected: Option<u32>,
    inputs: BTreeMap<u32, Input>,
    pending: BTreeMap<Timestamp, Vec<T>>,
    /// Records that hold pending entries, with their greatest tag, in order of offset.
    holding: VecDeque<(u64, Timestamp)>,
    /// Announcements before this offset are known already: the state says what they added up to.
    announced: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Input {
    watermark: Option<Timestamp>,
    idle: bool,
    gap: u64,
}

impl<T> Align<T> {
    pub fn new(epoch: Span) -> Self {
        Self {
            epoch,
            step: None,
            step_offset: 0,
            read: None,
            expected: None,
            inputs: BTreeMap::new(),
            pending: BTreeMap::new(),
            holding: VecDeque::new(),
            announced: 0,
        }
    }

    /// The last step taken: the stage's own watermark.
    pub fn step(&self) -> Option<Timestamp> {
        self.step
    }

    /// What each input says it has lost.
    pub fn gaps(&self) -> impl Iterator<Item = u64> {
        self.inputs.values().map(|input| input.gap)
    }

    /// Entries not yet released.
    pub fn pending(&self) -> impl Iterator<Item = &T> {
        self.pending.values().flatten()
    }

    /// Takes in one record: its entries first, then what it says of its input.
    pub fn read(
        &mut self,
        offset: u64,
        announcement: Announcement,
        entries: impl Iterator<Item = (Timestamp, T)>,
    ) {
        let mut last_tag = None;
        for (tag, entry) in entries {
            // released before the restart that makes us read the record again
            if offset < self.step_offset && self.step.is_some_and(|step| tag < step) {
                continue;
            }
            self.pending.entry(tag).or_default().push(entry);
            last_tag = last_tag.max(Some(tag));
        }
        if let Some(tag) = last_tag {
            self.holding.push_back((offset, tag));
        }
        self.read = Some(offset + 1);
        if offset >= self.announced {
            self.announced = offset + 1;
            self.hear(announcement);
        }
    }

    fn hear(&mut self, announcement: Announcement) {
        self.expected.get_or_insert(announcement.inputs);
        let input = self.inputs.entry(announcement.input).or_default();
        input.idle = announcement.idle;
        input.watermark = input.watermark.max(announcement.watermark);
        input.gap = input.gap.max(announcement.gap);
    }

    /// The next step if its time has come, with the entries that it releases, in order of tag.
    pub fn next_step(&mut self) -> Option<(Timestamp, Vec<T>)> {
        let ready = self.ready()?;
        let next = match self.step {
            Some(step) => step.plus(self.epoch),
            None => match self.pending.first_key_value() {
                Some((tag, _)) => tag.plus(self.epoch).min(ready),
                None => ready,
            },
        };
        (next <= ready).then(|| (next, self.take(next)))
    }

    /// The next step at the end of all input: entries, then slices up to `last`, decide how far.
    pub fn next_final_step(&mut self, last: Timestamp) -> Option<(Timestamp, Vec<T>)> {
        let next = match (self.step, self.pending.first_key_value()) {
            (Some(step), _) => step.plus(self.epoch),
            (None, Some((tag, _))) => tag.plus(self.epoch),
            (None, None) => return None,
        };
        (!self.pending.is_empty() || next <= last).then(|| (next, self.take(next)))
    }

    /// The first record that still holds an unreleased entry, else the next to read; `None`
    /// before the first record.
    pub fn position(&self) -> Option<u64> {
        self.holding.front().map(|(offset, _)| *offset).or(self.read)
    }

    /// The greatest step that every input that counts allows.
    fn ready(&self) -> Option<Timestamp> {
        let expected = self.expected?;
        if (0..expected).any(|input| !self.inputs.contains_key(&input)) {
            return None;
        }
        // an input that was added later counts from its first watermark on
        let counts =
            |(number, input): &(&u32, &Input)| **number < expected || input.watermark.is_some();
        let active = self.inputs.iter().filter(counts).filter(|(_, input)| !input.idle);
        // an active input without a watermark holds everybody back; if all are idle, nobody moves
        active.map(|(_, input)| input.watermark).min().flatten()
    }

    fn take(&mut self, step: Timestamp) -> Vec<T> {
        self.step = Some(step);
        self.step_offset = self.step_offset.max(self.read.unwrap_or_default());
        let later = self.pending.split_off(&step);
        let released = std::mem::replace(&mut self.pending, later);
        while self.holding.front().is_some_and(|(_, tag)| *tag < step) {
            self.holding.pop_front();
        }
        let mut released = released.into_values();
        // one tag is the rule
        let mut all = released.next().unwrap_or_default();
        released.for_each(|entries| all.extend(entries));
        all
    }

    pub fn write(&self, writer: &mut Writer) {
        writer.optional_time(self.step);
        writer.unsigned(self.step_offset);
        writer.unsigned(self.announced);
        writer.unsigned(self.expected.unwrap_or_default());
        writer.unsigned(self.inputs.len() as u64);
        for (number, input) in &self.inputs {
            writer.unsigned(*number);
            writer.optional_time(input.watermark);
            writer.flag(input.idle);
            writer.unsigned(input.gap);
        }
    }

    /// Pending entries are not state: the records that hold them are read again.
    pub fn restore(&mut self, reader: &mut Reader<'_>) -> Result<(), StageError> {
        self.step = reader.optional_time()?;
        self.step_offset = reader.number()?;
        self.announced = reader.number()?;
        let expected = reader.small()?;
        self.expected = (expected > 0).then_some(expected);
        self.inputs.clear();
        for _ in 0..reader.small()? {
            let number = reader.small()?;
            let (watermark, idle) = (reader.optional_time()?, reader.flag()?);
            let input = Input { watermark, idle, gap: reader.number()? };
            self.inputs.insert(number, input);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Span = Span::seconds(300);

    fn at(epochs: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span(EPOCH.0 * epochs))
    }

    fn says(input: u32, watermark: u64) -> Announcement {
        Announcement { input, inputs: 2, watermark: Some(at(watermark)), idle: false, gap: 0 }
    }

    fn entries(list: &[(u64, char)]) -> impl Iterator<Item = (Timestamp, char)> {
        list.iter().map(|(tag, entry)| (at(*tag), *entry))
    }

    fn steps(align: &mut Align<char>) -> Vec<(Timestamp, String)> {
        std::iter::from_fn(|| align.next_step())
            .map(|(step, released)| (step, released.into_iter().collect()))
            .collect()
    }

    #[test]
    fn a_step_waits_for_the_slowest_input() {
        let mut align = Align::new(EPOCH);
        align.read(0, says(0, 9), entries(&[(5, 'a'), (6, 'b'), (9, 'c')]));
        assert!(steps(&mut align).is_empty(), "input 1 has not been heard");
        align.read(1, says(1, 7), entries(&[(5, 'd')]));
        assert_eq!(steps(&mut align), [(at(6), "ad".into()), (at(7), "b".into())]);
        assert_eq!(align.position(), Some(0), "c waits in record 0");
        align.read(2, says(1, 10), entries(&[]));
        // input 0 stays at 9
        assert_eq!(steps(&mut align), [(at(8), String::new()), (at(9), String::new())]);
    }

    #[test]
    fn an_idle_input_holds_nobody_back_until_its_next_record() {
        let mut align = Align::new(EPOCH);
        let idle = Announcement { idle: true, watermark: None, ..says(1, 0) };
        align.read(0, says(0, 6), entries(&[(5, 'a')]));
        align.read(1, idle, entries(&[]));
        assert_eq!(steps(&mut align), [(at(6), "a".into())]);
        align.read(2, says(1, 3), entries(&[(3, 'b')]));
        align.read(3, says(0, 8), entries(&[]));
        assert!(steps(&mut align).is_empty(), "input 1 returned behind");
        align.read(4, says(1, 8), entries(&[]));
        assert_eq!(steps(&mut align)[0], (at(7), "b".into()));
    }

    #[test]
    fn an_input_added_later_holds_back_from_its_first_watermark_on() {
        let mut align = Align::new(EPOCH);
        align.read(0, says(0, 6), entries(&[(5, 'a')]));
        align.read(1, says(1, 6), entries(&[]));
        align.read(2, Announcement { watermark: None, ..says(2, 0) }, entries(&[]));
        assert_eq!(steps(&mut align), [(at(6), "a".into())]);
        align.read(3, says(2, 6), entries(&[]));
        align.read(4, says(0, 8), entries(&[]));
        align.read(5, says(1, 8), entries(&[]));
        assert!(steps(&mut align).is_empty());
    }

    #[test]
    fn when_all_are_idle_the_step_stays() {
        let mut align = Align::new(EPOCH);
        align.read(0, says(0, 6), entries(&[(5, 'a')]));
        align.read(1, Announcement { idle: true, ..says(0, 6) }, entries(&[]));
        align.read(2, Announcement { idle: true, ..says(1, 2) }, entries(&[]));
        assert!(steps(&mut align).is_empty());
    }

    fn feed(align: &mut Align<char>, offset: u64) {
        let idle = Announcement { idle: true, ..says(1, 6) };
        let (announcement, list): (_, &[(u64, char)]) = match offset {
            0 => (says(0, 6), &[(5, 'a'), (6, 'b')]),
            1 => (says(1, 6), &[(4, 'c'), (6, 'd')]),
            2 => (says(0, 8), &[(7, 'e')]),
            3 => (idle, &[]),
            _ => (says(1, 8), &[(6, 'f')]),
        };
        align.read(offset, announcement, entries(list));
    }

    #[test]
    fn a_restored_align_releases_what_the_live_one_would() {
        let mut live = Align::new(EPOCH);
        let mut whole = Vec::new();
        for offset in 0..5 {
            feed(&mut live, offset);
            whole.extend(steps(&mut live));
        }
        assert_eq!(whole.last(), Some(&(at(8), "e".into())), "f came back behind");
        for cut in 1..5 {
            let mut before = Align::new(EPOCH);
            let mut released = Vec::new();
            for offset in 0..cut {
                feed(&mut before, offset);
                released.extend(steps(&mut before));
            }
            let mut writer = Writer::default();
            before.write(&mut writer);
            let bytes = writer.finish();
            let mut after = Align::new(EPOCH);
            after.restore(&mut Reader::new(&bytes).expect("own version")).expect("sound");
            assert_eq!(after.position(), None, "nothing has been read again yet");
            for offset in before.position().expect("records were read")..5 {
                feed(&mut after, offset);
                released.extend(steps(&mut after));
            }
            assert_eq!(released, whole, "cut before record {cut}");
        }
    }
}
