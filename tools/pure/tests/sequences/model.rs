// SPDX-License-Identifier: GPL-2.0

//! The shadow model: what the ABI's description says, page by page, and nothing of how it's done.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ops::{Op, Policy, GUARDED, ON_DEMAND};

/// The PFNs that sequences are about: two leaves of the P2M.
pub(crate) const SPACE: u64 = 1024;

/// PFNs that can be identities: of machine frames that are no memory in any PC.
pub(crate) const IDENTITY: Range<u64> = 0xfec00..0xfec10;

/// How many pages the other domain has.
pub(crate) const LENT: u64 = 8;

/// Commands work through their ranges up to multiples of this.
const BATCH: u64 = 512;

/// What is at a PFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Invalid,
    /// A frame, with the contents of a tag. 0 are zeroes.
    Frame(u64),
    /// This page of the other domain.
    Foreign(u64),
    Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// So many pages were changed.
    Done(u64),
    Failed(&'static str),
    /// An error, before which so many pages were changed.
    Partly(&'static str, u64),
}

impl Outcome {
    pub(crate) const ERRORS: [&'static str; 5] = ["EEXIST", "EFAULT", "EINVAL", "ENOENT", "SIGBUS"];

    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Ok | Self::Done(_) => "ok",
            Self::Failed(error) | Self::Partly(error, _) => error,
        }
    }
}

/// What has changed, besides what `Evacuate` makes of the frames of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// There is something else now, or other contents.
    Is { pfn: u64, nr: u64, cell: Cell },
    /// Each page that has a frame has another one.
    Moves { pfn: u64, nr: u64 },
    /// The frames are one aligned machine run.
    Run { pfn: u64, nr: u64 },
    /// No two frames of neighbours are machine neighbours.
    Scattered { pfn: u64, nr: u64 },
    /// The pages have each other's frames.
    Swaps { a: u64, b: u64, nr: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Region {
    nr: u64,
    policy: Policy,
    flags: u32,
}

pub(crate) struct Model {
    /// What isn't there is invalid.
    cells: BTreeMap<u64, Cell>,
    /// By their first PFNs.
    regions: BTreeMap<u64, Region>,
    last_tag: u64,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            cells: BTreeMap::new(),
            regions: BTreeMap::new(),
            last_tag: 0,
        }
    }

    pub(crate) fn cell(&self, pfn: u64) -> Cell {
        self.cells.get(&pfn).copied().unwrap_or(Cell::Invalid)
    }

    pub(crate) fn is_in_region(&self, pfn: u64) -> bool {
        self.region(pfn).is_some()
    }

    pub(crate) fn bases(&self) -> Vec<u64> {
        self.regions.keys().copied().collect()
    }

    pub(crate) fn next_tag(&self) -> u64 {
        self.last_tag + 1
    }

    fn region(&self, pfn: u64) -> Option<Region> {
        let (base, region) = self.regions.range(..=pfn).next_back()?;
        (pfn < base + region.nr).then_some(*region)
    }

    fn put(&mut self, pfn: u64, cell: Cell) {
        match cell {
            Cell::Invalid => self.cells.remove(&pfn),
            cell => self.cells.insert(pfn, cell),
        };
    }

    /// Changes cells, and says which.
    fn set(&mut self, pfns: impl IntoIterator<Item = u64>, cell: Cell) -> Vec<Effect> {
        let pfns: Vec<u64> = pfns.into_iter().collect();
        for &pfn in &pfns {
            self.put(pfn, cell);
        }
        runs(&pfns)
            .map(|(pfn, nr)| Effect::Is { pfn, nr, cell })
            .collect()
    }

    fn guarded(&self, pfn: u64) -> bool {
        self.region(pfn)
            .is_some_and(|region| region.flags & GUARDED != 0)
    }

    fn all_in_regions(&self, start: u64, nr: u64) -> bool {
        (start..start + nr).all(|pfn| self.is_in_region(pfn))
    }

    fn all_frames(&self, start: u64, nr: u64) -> bool {
        (start..start + nr).all(|pfn| matches!(self.cell(pfn), Cell::Frame(_)))
    }

    /// Whether all of a range asks for the same, and for what.
    fn common(&self, start: u64, nr: u64) -> Option<bool> {
        let first = self.guarded(start);
        (start..start + nr)
            .all(|pfn| self.guarded(pfn) == first)
            .then_some(first)
    }

    /// The parts that a command does one after the other, and whether all are in regions.
    fn batches(&self, pfn: u64, nr: u64) -> (Vec<Range<u64>>, bool) {
        let mut batches = Vec::new();
        let mut start = pfn;
        while start < pfn + nr {
            let end = ((start / BATCH + 1) * BATCH).min(pfn + nr);
            if !self.all_in_regions(start, end - start) {
                return (batches, false);
            }
            batches.push(start..end);
            start = end;
        }
        (batches, true)
    }

    /// Says what becomes of an operation, and has it done.
    pub(crate) fn apply(&mut self, op: &Op) -> (Outcome, Vec<Effect>) {
        let failed = |error| (Outcome::Failed(error), Vec::new());
        match *op {
            Op::Create {
                base,
                nr,
                policy,
                flags,
                ..
            } => {
                if policy == Policy::Contiguous && flags != 0 {
                    return failed("EINVAL");
                }
                if (base..base + nr).any(|pfn| self.is_in_region(pfn)) {
                    return failed("EEXIST");
                }
                let region = Region { nr, policy, flags };
                self.regions.insert(base, region);
                if flags & ON_DEMAND != 0 {
                    return (Outcome::Ok, Vec::new());
                }
                let mut effects = self.set(base..base + nr, Cell::Frame(0));
                match policy {
                    Policy::Any => (),
                    Policy::Scatter => effects.push(Effect::Scattered { pfn: base, nr }),
                    // Only what is made contiguous is aligned, too.
                    Policy::Contiguous => (),
                }
                (Outcome::Ok, effects)
            }
            Op::Destroy { base } => match self.regions.remove(&base) {
                None => failed("ENOENT"),
                Some(region) => {
                    let range = base..base + region.nr;
                    (Outcome::Ok, self.empty(range).1)
                }
            },
            Op::Touch { pfn, tag } => {
                let region = self.region(pfn);
                let is_new = match (self.cell(pfn), region) {
                    (Cell::Frame(_), _) => false,
                    (Cell::Invalid, Some(region)) if region.flags & ON_DEMAND != 0 => true,
                    _ => return failed("SIGBUS"),
                };
                self.last_tag = tag;
                let mut effects = self.set([pfn], Cell::Frame(tag));
                let is_scattered = region.is_some_and(|region| region.policy == Policy::Scatter);
                if is_new && is_scattered {
                    effects.push(around(pfn, 1));
                }
                (Outcome::Ok, effects)
            }
            Op::Release { pfn, nr } => {
                let (batches, is_all) = self.batches(pfn, nr);
                let mut effects = Vec::new();
                let mut pages = 0;
                for batch in batches {
                    let (nr, gone) = self.empty(batch);
                    pages += nr;
                    effects.extend(gone);
                }
                (counted(is_all, pages), effects)
            }
            Op::Populate { pfn, nr } => {
                let (batches, is_all) = self.batches(pfn, nr);
                let mut effects = Vec::new();
                let mut pages = 0;
                for batch in batches {
                    let missing = batch.filter(|&pfn| self.cell(pfn) == Cell::Invalid);
                    let missing: Vec<u64> = missing.collect();
                    let is_scattered = |pfn: &u64| {
                        let region = self.region(*pfn);
                        region.is_some_and(|region| region.policy == Policy::Scatter)
                    };
                    let scattered: Vec<u64> =
                        missing.iter().copied().filter(is_scattered).collect();
                    pages += missing.len() as u64;
                    effects.extend(self.set(missing, Cell::Frame(0)));
                    effects.extend(runs(&scattered).map(|(pfn, nr)| around(pfn, nr)));
                }
                (counted(is_all, pages), effects)
            }
            Op::Move {
                pfn, nr, policy, ..
            } => {
                let is_frame = |pfn: &u64| matches!(self.cell(*pfn), Cell::Frame(_));
                let moved: Vec<u64> = (pfn..pfn + nr).filter(is_frame).collect();
                let mut effects: Vec<_> = runs(&moved)
                    .map(|(pfn, nr)| Effect::Moves { pfn, nr })
                    .collect();
                if policy == Policy::Scatter {
                    effects.extend(runs(&moved).map(|(pfn, nr)| around(pfn, nr)));
                }
                (Outcome::Done(moved.len() as u64), effects)
            }
            Op::Contiguous { pfn, order } => {
                let nr = 1 << order;
                if !self.all_in_regions(pfn, nr) {
                    return failed("ENOENT");
                }
                if self.common(pfn, nr) != Some(false) {
                    return failed("EINVAL");
                }
                if !self.all_frames(pfn, nr) {
                    return failed("EFAULT");
                }
                let effects = vec![Effect::Moves { pfn, nr }, Effect::Run { pfn, nr }];
                (Outcome::Ok, effects)
            }
            Op::Exchange { a, b, nr } => {
                if a < b + nr && b < a + nr {
                    return failed("EINVAL");
                }
                if !self.all_in_regions(a, nr) || !self.all_in_regions(b, nr) {
                    return failed("ENOENT");
                }
                let (of_a, of_b) = (self.common(a, nr), self.common(b, nr));
                if of_a.is_none() || of_a != of_b {
                    return failed("EINVAL");
                }
                if !self.all_frames(a, nr) || !self.all_frames(b, nr) {
                    return failed("EFAULT");
                }
                (Outcome::Done(nr), vec![Effect::Swaps { a, b, nr }])
            }
            Op::Evacuate { .. } => (Outcome::Ok, Vec::new()),
            Op::Lend { slot, lent } => {
                if lent >= LENT {
                    return failed("EFAULT");
                }
                if !self.is_in_region(slot) {
                    return failed("ENOENT");
                }
                if self.cell(slot) != Cell::Invalid {
                    return failed("EEXIST");
                }
                (Outcome::Ok, self.set([slot], Cell::Foreign(lent)))
            }
            Op::Unlend { slot } => match self.cell(slot) {
                Cell::Foreign(_) => (Outcome::Ok, self.set([slot], Cell::Invalid)),
                _ => failed("EINVAL"),
            },
            Op::Identity { pfn, nr } => {
                let range = pfn..pfn + nr;
                if range.start < IDENTITY.start || range.end > IDENTITY.end {
                    return failed("EINVAL");
                }
                if !self.all_in_regions(pfn, nr) {
                    return failed("ENOENT");
                }
                if range.clone().any(|pfn| self.cell(pfn) != Cell::Invalid) {
                    return failed("EEXIST");
                }
                (Outcome::Ok, self.set(range, Cell::Identity))
            }
        }
    }

    /// Empties a range, and returns how many frames went, of whomever.
    fn empty(&mut self, range: Range<u64>) -> (u64, Vec<Effect>) {
        let gone: Vec<u64> = range
            .filter(|&pfn| self.cell(pfn) != Cell::Invalid)
            .collect();
        let is_memory = |pfn: &&u64| self.cell(**pfn) != Cell::Identity;
        let nr = gone.iter().filter(is_memory).count() as u64;
        (nr, self.set(gone, Cell::Invalid))
    }
}

/// The outcome of a command that goes through its range and stops where there is no region.
fn counted(is_all: bool, pages: u64) -> Outcome {
    match is_all {
        true => Outcome::Done(pages),
        false => Outcome::Partly("ENOENT", pages),
    }
}

/// Pages, and those next to them, are scattered.
fn around(pfn: u64, nr: u64) -> Effect {
    let start = pfn.saturating_sub(1);
    Effect::Scattered {
        pfn: start,
        nr: pfn + nr + 1 - start,
    }
}

/// Runs of numbers that follow each other.
fn runs(numbers: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| (run[0], run.len() as u64))
}
