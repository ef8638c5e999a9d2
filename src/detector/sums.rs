//! METER's sums between two commits.
//!
//! What events have in common besides their resource (account, region, fabric, accelerator,
//! instance type) is looked up once an event, by one hash over the names as given; what the
//! catalogue says of it and where its sums go is known from then on. Sums of the watermark in force
//! stand in one array for each slice, and leave it when the watermark moves: no event that comes
//! later can be tagged with an earlier one.
//!
//! Invariant: the sums drained are the exact sums of the parts added since the last drain, each
//! account, tag, slice and place once.

mod index;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::catalogue::{Catalogue, Resolved};
use super::internal::{self, AccountSum};
use super::measure::{Measure, Peaks, split};
use super::names::{NameId, Names, UNKNOWN_PREFIX};
use super::text::{self, Text};
use super::time::{Span, Timestamp};
use super::window::Place;
use index::Index;

/// Slices that have an array at once: the running one, and the last for events that cross into it.
/// Parts of other slices are few, whatever the interval's length.
const PAGES: usize = 3;

/// Names and all that follows from them.
#[derive(Debug, Default)]
pub(super) struct Sums {
    names: Names,
    index: Index,
    kinds: Vec<Kind>,
    /// What the catalogue makes of an accelerator or instance type: as many as differ.
    hardware: Vec<Hardware>,
    /// Indices of `lines`: different names of one accelerator have one line.
    line_of: HashMap<(NameId, Place), u32, FixedState>,
    lines: Vec<Line>,
    /// The tag of everything in `pages` and `others`.
    tag: Timestamp,
    pages: Vec<Page>,
    others: BTreeMap<(Timestamp, u32), Measure>,
    /// Sums of earlier tags, in order of tag, and of slice among those of `pages`.
    closed: Vec<ClosedSum>,
}

/// Events with the same names.
#[derive(Debug)]
#[repr(align(64))]
struct Kind {
    hash: u64,
    names: Box<[u8]>,
    /// Where each name ends.
    ends: [u16; 5],
    line: u32,
    /// In `hardware`.
    hardware: u32,
}

/// What one unit of an event's quantity is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hardware {
    pub(super) count: f64,
    pub(super) peaks: Peaks,
    pub(super) unknown: bool,
}

/// What sums are kept by.
#[derive(Debug, Clone, Copy)]
struct Line {
    account: NameId,
    place: Place,
    /// The downstream partition of the account.
    target: u32,
}

/// The sums of one slice by line.
#[derive(Debug, Default)]
struct Page {
    slice_end: Timestamp,
    sums: Vec<Sum>,
    /// A bit for each line that something was added to, and their number.
    touched: Vec<u64>,
    count: usize,
}

/// One line of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Sum(Measure);

#[derive(Debug)]
struct ClosedSum {
    line: u32,
    tag: Timestamp,
    slice_end: Timestamp,
    measure: Measure,
}

/// The account, region, fabric, accelerator and instance type of an event.
pub(super) type KindNames<'a> = [Text<'a>; 5];

/// Which kind an event may be of, by its hash alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Candidate(Option<u32>);

/// A kind that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KindId(u32);

const HASHER: FixedState = FixedState::with_seed(0);

/// Lengths are left out: two kinds of the same hash cost a comparison and nothing else.
pub(super) fn hash_of(names: &KindNames<'_>) -> u64 {
    let mut hasher = HASHER.build_hasher();
    names.iter().for_each(|name| hasher.write(name.as_bytes()));
    hasher.finish()
}

/// Looking a kind up takes three reads that depend on each other. Whoever looks up many lets each
/// read be under way for all of them before the next: what the first two functions return means
/// nothing, but must be used.
impl Sums {
    pub(super) fn approach_index(&self, hash: u64) -> u32 {
        self.index.approach(hash)
    }

    pub(super) fn candidate(&self, hash: u64) -> Candidate {
        Candidate(self.index.find(hash, |_| true))
    }

    pub(super) fn approach_kind(&self, Candidate(kind): Candidate) -> u64 {
        let Some(kind) = kind else { return 0 };
        self.kinds[kind as usize].hash
    }

    pub(super) fn approach_sum(&self, Candidate(kind): Candidate) -> u64 {
        let Some(kind) = kind else { return 0 };
        let kind = &self.kinds[kind as usize];
        let sum = |page: &Page| page.sums.get(kind.line as usize).map_or(0, |sum| sum.0.flop);
        let sums = self.pages.iter().map(sum).fold(0, |all, sum| all ^ sum);
        u64::from(kind.names[0] ^ kind.names[kind.names.len() - 1]) ^ u64::from(sums == 0)
    }
}

impl Sums {
    /// The kind of events with these names.
    pub(super) fn kind(
        &mut self,
        hash: u64,
        names: &KindNames<'_>,
        catalogue: &Catalogue,
        targets: u32,
    ) -> KindId {
        let found = self.index.find(hash, |kind| self.kinds[kind as usize].is_of(hash, names));
        KindId(found.unwrap_or_else(|| self.new_kind(hash, names, catalogue, targets)))
    }

    #[cold]
    fn new_kind(
        &mut self,
        hash: u64,
        names: &KindNames<'_>,
        catalogue: &Catalogue,
        targets: u32,
    ) -> u32 {
        let [account, region, fabric, accelerator, instance_type] = names;
        let resolved = catalogue.resolve(accelerator, instance_type);
        let accelerator = if resolved.unknown {
            self.names.intern(&format!("{UNKNOWN_PREFIX}{}", resolved.key))
        } else {
            self.names.intern(resolved.key)
        };
        let target = internal::partition_of(account, targets);
        let account = self.names.intern(account);
        let (region, fabric) = (self.names.intern(region), self.names.intern(fabric));
        let place = Place { region, fabric, accelerator };
        let lines = &mut self.lines;
        let line = *self.line_of.entry((account, place)).or_insert_with(|| {
            lines.push(Line { account, place, target });
            index_of(lines.len() - 1)
        });
        let names = names.each_ref().map(Text::as_bytes);
        let mut end = 0;
        let ends = names.map(|name| {
            end += name.len();
            u16::try_from(end).expect("five names of at most 256 bytes")
        });
        let Resolved { count, peaks, unknown, .. } = resolved;
        let hardware = Hardware { count, peaks, unknown };
        let hardware = match self.hardware.iter().position(|known| *known == hardware) {
            Some(known) => index_of(known),
            None => {
                self.hardware.push(hardware);
                index_of(self.hardware.len() - 1)
            }
        };
        self.kinds.push(Kind { hash, names: names.concat().into(), ends, line, hardware });
        let kind = index_of(self.kinds.len() - 1);
        self.index.insert(hash, kind, |kind| self.kinds[kind as usize].hash);
        kind
    }

    pub(super) fn hardware(&self, kind: KindId) -> Hardware {
        self.hardware[self.kinds[kind.0 as usize].hardware as usize]
    }

    /// Adds what was used in `[start, end)`, read while the watermark was `tag`, which never goes
    /// back. Returns the end of the first slice it touches.
    pub(super) fn add(
        &mut self,
        kind: KindId,
        tag: Timestamp,
        (start, end): (Timestamp, Timestamp),
        slice: Span,
        total: Measure,
    ) -> Timestamp {
        if tag != self.tag {
            self.close();
            self.tag = tag;
        }
        let line = self.kinds[kind.0 as usize].line;
        let first = start.slice_end(slice);
        if end <= first {
            self.add_part(line, first, total);
        } else {
            split(total, start, end, slice, |slice_end, part| {
                self.add_part(line, slice_end, part);
            });
        }
        first
    }

    fn add_part(&mut self, line: u32, slice_end: Timestamp, part: Measure) {
        let page = match self.pages.iter().position(|page| page.slice_end == slice_end) {
            Some(page) => page,
            None if self.pages.len() < PAGES => {
                self.pages.push(Page { slice_end, ..Page::default() });
                self.pages.len() - 1
            }
            None => match self.pages.iter().position(|page| page.count == 0) {
                Some(page) => {
                    self.pages[page].slice_end = slice_end;
                    page
                }
                None => {
                    *self.others.entry((slice_end, line)).or_insert(Measure::ZERO) += part;
                    return;
                }
            },
        };
        self.pages[page].add(line as usize, part, self.lines.len());
    }

    /// The tag is past: what was summed under it is complete.
    fn close(&mut self) {
        self.pages.sort_unstable_by_key(|page| page.slice_end);
        let (tag, closed) = (self.tag, &mut self.closed);
        for page in &mut self.pages {
            let slice_end = page.slice_end;
            page.drain(|line, measure| closed.push(ClosedSum { line, tag, slice_end, measure }));
        }
        for ((slice_end, line), measure) in std::mem::take(&mut self.others) {
            closed.push(ClosedSum { line, tag, slice_end, measure });
        }
    }

    /// Hands out every sum with the partition it goes to, account by account, and then in order of
    /// tag; nothing is left.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Names, u32, &AccountSum)) {
        self.close();
        // by counting: the accounts are numbered, and a stable order keeps that of the tags
        let mut places = vec![0_u32; self.names.len() + 1];
        for sum in &self.closed {
            places[self.account_of(sum) + 1] += 1;
        }
        let mut before = 0;
        for place in &mut places {
            before += *place;
            *place = before;
        }
        let mut order = vec![0_u32; self.closed.len()];
        for (position, sum) in (0..).zip(&self.closed) {
            let place = &mut places[self.account_of(sum)];
            order[*place as usize] = position;
            *place += 1;
        }
        for position in order {
            let sum = &self.closed[position as usize];
            let line = &self.lines[sum.line as usize];
            let account_sum = AccountSum {
                account: line.account,
                tag: sum.tag,
                slice_end: sum.slice_end,
                place: line.place,
                measure: sum.measure,
            };
            each(&self.names, line.target, &account_sum);
        }
        self.closed.clear();
    }

    fn account_of(&self, sum: &ClosedSum) -> usize {
        self.lines[sum.line as usize].account.0 as usize
    }

    /// Forgets all names once there are more than `limit`; there are no sums.
    pub(super) fn bound_names(&mut self, limit: usize) {
        if self.names.len() > limit || self.kinds.len() > limit {
            *self = Self { tag: self.tag, ..Self::default() };
        }
    }
}

impl Kind {
    fn is_of(&self, hash: u64, names: &KindNames<'_>) -> bool {
        let mut start = 0;
        self.hash == hash
            && names.iter().zip(self.ends).all(|(name, end)| {
                let own = &self.names[start..usize::from(end)];
                start = usize::from(end);
                text::is_same(own, name.as_bytes())
            })
    }
}

impl Page {
    fn add(&mut self, line: usize, part: Measure, lines: usize) {
        if line >= self.sums.len() {
            self.sums.resize(lines, Sum::default());
            self.touched.resize(lines.div_ceil(64), 0);
        }
        self.sums[line].0 += part;
        let (word, bit) = (&mut self.touched[line / 64], 1 << (line % 64));
        self.count += usize::from(*word & bit == 0);
        *word |= bit;
    }

    fn drain(&mut self, mut each: impl FnMut(u32, Measure)) {
        if std::mem::take(&mut self.count) == 0 {
            return;
        }
        for (word, touched) in self.touched.iter_mut().enumerate() {
            let mut bits = std::mem::take(touched);
            while bits != 0 {
                let line = word * 64 + bits.trailing_zeros() as usize;
                each(index_of(line), std::mem::take(&mut self.sums[line]).0);
                bits &= bits - 1;
            }
        }
    }
}

fn index_of(position: usize) -> u32 {
    u32::try_from(position).expect("names are bounded")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Span = Span::hours(1);

    fn at(minutes: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span::seconds(minutes * 60))
    }

    fn names<'a>(account: &'a str, fabric: &'a str, accelerator: &'a str) -> KindNames<'a> {
        [account, "eu-1", fabric, accelerator, ""].map(Text::from)
    }

    type Key = (u32, String, [String; 3], Timestamp, Timestamp);

    fn drained(sums: &mut Sums) -> BTreeMap<Key, Measure> {
        let mut all = BTreeMap::new();
        sums.drain(|names, target, sum| {
            let Place { region, fabric, accelerator } = sum.place;
            let place = [region, fabric, accelerator].map(|name| names.text(name).to_owned());
            let account = names.text(sum.account).to_owned();
            let earlier = all.insert((target, account, place, sum.tag, sum.slice_end), sum.measure);
            assert_eq!(earlier, None, "a key comes once");
        });
        all
    }

    proptest! {
        #[test]
        fn what_is_drained_is_what_was_added_each_key_once(
            events in proptest::collection::vec(
                // account, fabric, spelling, minutes to the next tag, start and length, amount
                (0..30_u32, 0..3_u32, 0..3_usize, 0..3_u64, 0..500_u64, 1..900_u64, -50..50_i128),
                1..200,
            ),
            commits in 1..4_usize,
        ) {
            let catalogue = Catalogue::shipped();
            let spellings = ["nvidia-h100-sxm", "NVIDIA H100 80GB HBM3", "warp core"];
            let mut sums = Sums::default();
            let mut tag = at(0);
            for events in events.chunks(events.len().div_ceil(commits)) {
                let mut expected: BTreeMap<Key, Measure> = BTreeMap::new();
                for &(account, fabric, spelling, step, start, length, amount) in events {
                    tag = tag.plus(Span::seconds(step * 300));
                    let account = format!("account-{account}");
                    let fabric = format!("fabric-{fabric}");
                    let names = names(&account, &fabric, spellings[spelling]);
                    let (start, end) = (at(start), at(start + length));
                    let total = Measure { flop: amount, ..Measure::ZERO };
                    let kind = sums.kind(hash_of(&names), &names, &catalogue, 4);
                    let first = sums.add(kind, tag, (start, end), HOUR, total);
                    prop_assert_eq!(first, start.slice_end(HOUR));
                    let accelerator = ["nvidia-h100-sxm", "nvidia-h100-sxm", "unknown:warp core"];
                    let place = ["eu-1", &fabric, accelerator[spelling]].map(str::to_owned);
                    let target = internal::partition_of(&account, 4);
                    split(total, start, end, HOUR, |slice_end, part| {
                        let key = (target, account.clone(), place.clone(), tag, slice_end);
                        *expected.entry(key).or_insert(Measure::ZERO) += part;
                    });
                }
                prop_assert_eq!(drained(&mut sums), expected);
                prop_assert!(drained(&mut sums).is_empty());
            }
        }
    }

    #[test]
    fn two_kinds_of_one_hash_are_told_apart_by_their_names() {
        let (catalogue, mut sums) = (Catalogue::shipped(), Sums::default());
        let (one, other) = (names("ab", "c", "vcpu"), names("a", "bc", "vcpu"));
        let kinds = [&one, &other, &one, &other].map(|names| sums.kind(7, names, &catalogue, 1));
        assert_eq!((kinds[0], kinds[1]), (kinds[2], kinds[3]));
        assert_ne!(kinds[0], kinds[1]);
    }

    #[test]
    fn names_are_forgotten_beyond_their_limit_and_sums_go_on() {
        let (catalogue, mut sums) = (Catalogue::shipped(), Sums::default());
        let total = Measure { flop: 1, ..Measure::ZERO };
        for round in 0..3 {
            for number in 0..50 {
                let account = format!("account-{number}");
                let names = names(&account, "", "vcpu");
                let kind = sums.kind(hash_of(&names), &names, &catalogue, 1);
                sums.add(kind, at(round * 5), (at(0), at(5)), HOUR, total);
            }
            assert_eq!(drained(&mut sums).len(), 50);
            sums.bound_names(40);
            assert_eq!(sums.kinds.len(), 0);
        }
    }
}
