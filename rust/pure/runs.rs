// SPDX-License-Identifier: GPL-2.0

//! Ranges of PFNs as machine runs: consecutive PFNs with consecutive MFNs.

use super::entry::Entry;
use super::frame::{Pfn, PfnRange};
use super::map::Maps;
use super::table::TableStore;

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
}

/// Returns the beginning of the run that a range begins with: all of it, or a good piece.
///
/// Unbacked PFNs make a run, too.
pub fn piece<S: TableStore>(maps: &Maps, store: &S, range: PfnRange) -> Run {
    let pfn = range.start();
    let entry = maps.lookup(store, pfn);
    let hole = match (entry, maps.next_backed(store, pfn)) {
        (Entry::Invalid, Some(next)) => next.get() - pfn.get(),
        (Entry::Invalid, None) => range.nr_pages(),
        _ => 0,
    };
    let mut nr_pages = hole.clamp(1, range.nr_pages());
    // A hole that ends with its table is rather long. Else look page by page.
    if hole == 0 {
        while nr_pages < PIECE_PAGES {
            match range.nth(nr_pages) {
                Some(next) if entry.advance(nr_pages) == Some(maps.lookup(store, next)) => {
                    nr_pages += 1;
                }
                _ => break,
            }
        }
    }
    Run {
        pfn,
        nr_pages,
        entry,
    }
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

    /// Looks at the next piece. Returns a run when one has come to its end.
    ///
    /// There is nothing more when [`is_done()`](Self::is_done). In between the caller may let go of
    /// whatever keeps the tables.
    pub fn step(&mut self) -> Option<Run> {
        let Some(rest) = self.rest else {
            return self.pending.take();
        };
        let piece = piece(self.maps, self.store, rest);
        // OVERFLOW: A piece isn't longer than the range that it's from.
        self.rest = PfnRange::new(piece.end(), rest.end() - piece.end()).ok();
        let Some(pending) = self.pending else {
            self.pending = Some(piece);
            return None;
        };
        match pending.merge(piece) {
            Some(merged) => {
                self.pending = Some(merged);
                None
            }
            None => self.pending.replace(piece),
        }
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
