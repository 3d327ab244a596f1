// SPDX-License-Identifier: GPL-2.0

//! Searching a machine for frames at places that the caller names.

use super::{
    frame::Mfn,
    policy::Constraint, //
};

/// Frames of a machine that can be taken where they are, whoever has to move for it.
pub trait Places {
    /// Returns the lowest frame from which on to before `end` nothing is known to be in the way:
    /// `start`, a frame behind it, or `end`.
    fn open_from(&self, start: u64, end: u64) -> u64;

    /// Takes the frames from `start` to before `end`, zeroed. All of them, or none.
    fn take(&mut self, start: u64, end: u64) -> bool;

    /// Returns whether the caller was told to stop.
    fn is_interrupted(&self) -> bool;
}

/// The most frames that are taken at once, if it isn't for their being together: as many as the
/// kernel sets apart at least, whatever it's asked for.
pub const BLOCK: u64 = 512;

/// With a guard on either side, one frame takes three, and a block is a power of two.
const LEAST_GUARDED: u64 = 4;

/// How many runs are looked at that can't be had, though nothing seemed to be in the way.
const MAX_REFUSALS: u32 = 64;

/// Goes through ranges of a machine once, one after the other, and takes what it comes across.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// What is still to be searched: next frame, and first frame behind.
    ranges: [(u64, u64); 2],
    nr_refusals: u32,
}

impl Search {
    /// Makes a search through two ranges, each of which may be empty.
    pub fn new(ranges: [(u64, u64); 2]) -> Self {
        Self {
            ranges,
            nr_refusals: 0,
        }
    }

    /// Returns the range that is being searched.
    fn current(&self) -> Option<(u64, u64)> {
        self.ranges.into_iter().find(|(next, end)| next < end)
    }

    /// Goes on at `next`.
    fn go_on_at(&mut self, next: u64) {
        if let Some(range) = self.ranges.iter_mut().find(|(next, end)| next < end) {
            range.0 = next;
        }
    }

    /// Takes a block that has frames which a constraint accepts, and returns its first frame and how
    /// many they are. Nothing is left if there is none.
    #[must_use]
    pub fn next_block(
        &mut self,
        places: &mut impl Places,
        constraint: &Constraint,
    ) -> Option<(Mfn, u64)> {
        let least = match constraint.is_guarded {
            true => LEAST_GUARDED,
            false => 1,
        };
        while let Some((start, end)) = self.current() {
            let first = Mfn::new(start).filter(|_| !places.is_interrupted())?;
            // OVERFLOW: The range isn't empty. A block ends in it.
            let mut nr = 1 << (end - start).ilog2().min(BLOCK.ilog2());
            nr = nr.min(1 << start.trailing_zeros().min(BLOCK.ilog2()));
            let mut skipped = nr;
            while nr >= least {
                let stop = start + nr;
                if !constraint.accepts_any(start, stop) {
                    skipped = nr;
                    break;
                }
                if places.open_from(start, stop) == start && places.take(start, stop) {
                    self.go_on_at(stop);
                    return Some((first, nr));
                }
                // What is in the way of all of it may be so of a part.
                skipped = nr;
                nr /= 2;
            }
            self.go_on_at(start + skipped);
        }
        None
    }

    /// Takes `nr` frames that follow each other, the first of which is a multiple of `align`, and
    /// returns that. Nothing is left if there is none.
    #[must_use]
    pub fn next_run(&mut self, places: &mut impl Places, nr: u64, align: u64) -> Option<Mfn> {
        // To look at every frame behind one that was refused is too much.
        let step = nr.checked_next_power_of_two()?.min(BLOCK).max(align);
        while let Some((next, end)) = self.current() {
            if places.is_interrupted() || self.nr_refusals >= MAX_REFUSALS {
                return None;
            }
            let place = next.checked_next_multiple_of(align).and_then(|start| {
                let stop = start.checked_add(nr)?;
                (stop <= end).then_some((start, stop))
            });
            let Some((start, stop)) = place else {
                self.go_on_at(end);
                continue;
            };
            let first = Mfn::new(start)?;
            let open = places.open_from(start, stop);
            if open > start {
                self.go_on_at(open);
            } else if places.take(start, stop) {
                self.go_on_at(stop);
                return Some(first);
            } else {
                self.nr_refusals += 1;
                // OVERFLOW: There is a frame behind `start`.
                let behind = (start + 1).checked_next_multiple_of(step);
                self.go_on_at(behind.unwrap_or(end).min(end));
            }
        }
        None
    }
}
