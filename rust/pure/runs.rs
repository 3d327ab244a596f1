// SPDX-License-Identifier: GPL-2.0

//! Ranges of PFNs as machine runs: consecutive PFNs with consecutive MFNs.

use super::entry::{Entry, INVALID};
use super::frame::{Mfn, Pfn, PfnRange};
use super::map::{Maps, SUPERPAGE_PAGES};
use super::sparse::Leaf;
use super::table::{Table, TableStore};

/// The most pages that [`piece()`] looks at, so that a lookup is over soon.
pub const PIECE_PAGES: u64 = 4096;

/// Consecutive PFNs, the entries of which continue the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first PFN.
    pub pfn: Pfn,
    /// Number of pages.
    pub nr_pages: u64,
    /// What is at the first PFN.
    pub entry: Entry,
}

impl Run {
    /// Returns the run that goes on with `next`, if it does.
    pub fn merge(self, next: Self) -> Option<Self> {
        let continues = self.pfn.get().checked_add(self.nr_pages) == Some(next.pfn.get())
            && self.entry.advance(self.nr_pages) == Some(next.entry);
        continues.then_some(Self {
            // OVERFLOW: Both are in the PFN space, one after the other.
            nr_pages: self.nr_pages + next.nr_pages,
            ..self
        })
    }

    /// Returns the number of the first PFN behind the run.
    pub fn end(self) -> u64 {
        // OVERFLOW: A run is in the PFN space.
        self.pfn.get() + self.nr_pages
    }

    /// Returns what the next word has to be for the run to go on.
    #[inline]
    fn next(self) -> Next {
        match self.entry.mfn() {
            None => Next {
                word: INVALID,
                step: 0,
                end: Pfn::LIMIT,
            },
            // OVERFLOW: A run ends with the last frame, at the latest, and the tags are far above.
            // Both numbers are far below 2^63.
            Some(mfn) => Next {
                word: self.entry.raw() + self.nr_pages,
                step: 1,
                end: self.pfn.get() + (Mfn::LIMIT - mfn.get()),
            },
        }
    }

    /// Returns how many words of a leaf, from the one behind the run on and at most `nr`, go on with
    /// it.
    #[inline]
    fn len_in(self, leaf: &Table, nr: u64) -> u64 {
        let next = self.next();
        // OVERFLOW: A run ends there, at the latest.
        let nr = nr.min(next.end - self.end());
        leaf.run_len(self.end(), next.word, next.step, nr)
    }
}

/// With which words a run goes on.
struct Next {
    /// The next one.
    word: u64,
    /// How much more each is than the one before.
    step: u64,
    /// The PFN at which there can't be one any more.
    end: u64,
}

/// Returns the part of a range that is in the leaf of its first PFN.
fn part_in_leaf(range: PfnRange) -> u64 {
    let start = range.start().get();
    range
        .nr_pages()
        .min(SUPERPAGE_PAGES - start % SUPERPAGE_PAGES)
}

/// Returns the hole that a range begins with, in a leaf that is missing, up to the next one that isn't.
fn hole<S: TableStore>(maps: &Maps, store: &S, range: PfnRange) -> Run {
    let pfn = range.start();
    let nr_pages = match maps.next_backed(store, pfn) {
        // It isn't before. If it has come since, a hole of one page is right, too.
        Some(next) => next.get().saturating_sub(pfn.get()),
        None => range.nr_pages(),
    };
    Run {
        pfn,
        nr_pages: nr_pages.clamp(1, range.nr_pages()),
        entry: Entry::Invalid,
    }
}

/// Returns the beginning of the run that a range begins with: what is in one leaf, or in none.
fn stretch<S: TableStore>(maps: &Maps, store: &S, range: PfnRange) -> Run {
    let pfn = range.start();
    let in_leaf = part_in_leaf(range);
    match maps.words(store, pfn) {
        Leaf::Missing => hole(maps, store, range),
        Leaf::Run(word) => Run {
            pfn,
            nr_pages: in_leaf,
            entry: Entry::from_raw(word),
        },
        Leaf::Table(leaf) => {
            let mut run = Run {
                pfn,
                nr_pages: 1,
                entry: Entry::from_raw(leaf.load(pfn.get())),
            };
            // OVERFLOW: A range isn't empty.
            run.nr_pages += run.len_in(leaf, in_leaf - 1);
            run
        }
    }
}

/// Returns the beginning of the run that a range begins with: all of it, or a good piece.
///
/// Unbacked PFNs make a run, too.
pub fn piece<S: TableStore>(maps: &Maps, store: &S, range: PfnRange) -> Run {
    let mut run = stretch(maps, store, range);
    // A hole that ends with its table is rather long. Else look leaf by leaf.
    while run.nr_pages < PIECE_PAGES {
        // OVERFLOW: A run isn't longer than the range that it's from.
        let Ok(rest) = PfnRange::new(run.end(), range.end() - run.end()) else {
            break;
        };
        match run.merge(stretch(maps, store, rest)) {
            Some(merged) => run.nr_pages = merged.nr_pages.min(PIECE_PAGES),
            None => break,
        }
    }
    run
}

/// The runs of a range, in order and without gaps.
pub struct Runs<'a, S> {
    maps: &'a Maps,
    store: &'a S,
    rest: Option<PfnRange>,
    pending: Option<Run>,
}

impl<'a, S: TableStore> Runs<'a, S> {
    /// Returns the runs of `range`.
    pub fn new(maps: &'a Maps, store: &'a S, range: PfnRange) -> Self {
        Self {
            maps,
            store,
            rest: Some(range),
            pending: None,
        }
    }

    /// Looks at the next leaf, or the rest of it, and passes each run that has come to its end to
    /// `found`, until that says that there is no room for more.
    ///
    /// There is nothing more when [`is_done()`](Self::is_done). In between the caller may let go of
    /// whatever keeps the tables.
    pub fn step_by_leaf(&mut self, mut found: impl FnMut(Run) -> bool) {
        let Some(rest) = self.rest else {
            if let Some(run) = self.pending.take() {
                found(run);
            }
            return;
        };
        let start = rest.start().get();
        let end = match self.maps.words(self.store, rest.start()) {
            Leaf::Table(leaf) => {
                // OVERFLOW: It is in the range.
                self.walk(leaf, start, start + part_in_leaf(rest), &mut found)
            }
            Leaf::Run(_) | Leaf::Missing => {
                let run = stretch(self.maps, self.store, rest);
                self.add(run, &mut found);
                run.end()
            }
        };
        // OVERFLOW: It isn't behind the range.
        self.rest = PfnRange::new(end, rest.end() - end).ok();
    }

    /// Looks at the words of a leaf from `start` to `end`, and returns where it stopped.
    fn walk(
        &mut self,
        leaf: &Table,
        start: u64,
        end: u64,
        found: &mut impl FnMut(Run) -> bool,
    ) -> u64 {
        let mut last: Option<(Run, Next)> = self.pending.map(|run| (run, run.next()));
        let mut at = start;
        for word in leaf.words(start) {
            let Some(pfn) = Pfn::new(at).filter(|_| at < end) else {
                break;
            };
            at += 1;
            let entry = Entry::from_raw(word);
            if let Some((run, next)) = &mut last {
                // There are other words that stand for nothing.
                if (word == next.word && pfn.get() < next.end)
                    || (run.entry == Entry::Invalid && entry == Entry::Invalid)
                {
                    // OVERFLOW: A run is in the PFN space.
                    run.nr_pages += 1;
                    next.word = next.word.wrapping_add(next.step);
                    continue;
                }
            }
            let run = Run {
                pfn,
                nr_pages: 1,
                entry,
            };
            let ended = last.replace((run, run.next()));
            if ended.is_some_and(|(run, _)| !found(run)) {
                break;
            }
        }
        self.pending = last.map(|(run, _)| run);
        at
    }

    /// Adds what comes next, and returns whether there is room for more.
    #[inline]
    fn add(&mut self, next: Run, found: &mut impl FnMut(Run) -> bool) -> bool {
        let ended = match self.pending.map(|run| (run, run.merge(next))) {
            Some((_, Some(merged))) => {
                self.pending = Some(merged);
                return true;
            }
            Some((run, None)) => Some(run),
            None => None,
        };
        self.pending = Some(next);
        ended.is_none_or(found)
    }

    /// Looks at what comes next, until a run has come to its end, at most all of a leaf.
    pub fn step(&mut self) -> Option<Run> {
        let mut ended = None;
        self.step_by_leaf(|run| {
            ended = Some(run);
            false
        });
        ended
    }

    /// Returns whether there is nothing more.
    pub fn is_done(&self) -> bool {
        self.rest.is_none() && self.pending.is_none()
    }
}

impl<S: TableStore> Iterator for Runs<'_, S> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        while !self.is_done() {
            if let Some(run) = self.step() {
                return Some(run);
            }
        }
        None
    }
}
