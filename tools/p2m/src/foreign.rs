// SPDX-License-Identifier: GPL-2.0

//! What is at a PFN without being the domain's: frames of another domain, and machine frames that
//! are no memory.

use core::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::abi;
use crate::domain::Domain;
use crate::error::{Attempt, Error, Operation, Result};
use crate::frame::Pfn;

/// What became of a slot: `None` if all went well, else why not.
pub type Slot = Option<Errno>;

/// Returns the number of slots as the kernel takes it.
fn nr_slots(nr: u64) -> rustix::io::Result<u32> {
    u32::try_from(nr).map_err(|_| Errno::OVERFLOW)
}

/// Returns the numbers of pages, one for each slot, if there can be so many.
fn numbers(pages: Range<Pfn>) -> rustix::io::Result<Vec<u64>> {
    let range = pages.start.0..pages.end.0;
    let nr = nr_slots(range.end.saturating_sub(range.start))?;
    let mut numbers = Vec::new();
    numbers
        .try_reserve_exact(nr as usize)
        .map_err(|_| Errno::NOMEM)?;
    numbers.extend(range);
    Ok(numbers)
}

/// Returns what the kernel says of slots.
fn slots(errors: Vec<i32>) -> Vec<Slot> {
    let errno = |error| (error != 0).then(|| Errno::from_raw_os_error(error));
    errors.into_iter().map(errno).collect()
}

impl Domain {
    /// Puts pages of another domain at PFNs from `start` on, and returns what became of each. Both
    /// domains see the same memory from then on.
    pub fn map_foreign(&self, start: Pfn, from: &Self, pages: Range<Pfn>) -> Result<Vec<Slot>> {
        let operation = Operation::ForeignMap;
        let frames = numbers(pages).attempt(operation)?;
        let mut errors = vec![0i32; frames.len()];
        let mut raw = abi::p2m_foreign_map::new();
        raw.fd = from.as_fd().as_raw_fd();
        raw.nr = nr_slots(frames.len() as u64).attempt(operation)?;
        raw.start_pfn = start.0;
        raw.frames = frames.as_ptr() as u64;
        raw.errors = errors.as_mut_ptr() as u64;
        // SAFETY: `frames` and `errors` point to `nr` elements each; the former are only read.
        unsafe { raw.call(self.as_fd()) }.attempt(operation)?;
        checked(operation, raw.out_nr, slots(errors))
    }

    /// Takes pages of other domains away from a range of PFNs, and returns what became of each.
    pub fn unmap_foreign(&self, range: Range<Pfn>) -> Result<Vec<Slot>> {
        let operation = Operation::ForeignUnmap;
        let nr = nr_slots(range.end.0.saturating_sub(range.start.0)).attempt(operation)?;
        let mut errors = vec![0i32; nr as usize];
        let mut raw = abi::p2m_foreign_unmap::new();
        raw.start_pfn = range.start.0;
        raw.errors = errors.as_mut_ptr() as u64;
        raw.nr = nr;
        // SAFETY: `errors` points to `nr` elements.
        unsafe { raw.call(self.as_fd()) }.attempt(operation)?;
        checked(operation, raw.out_nr, slots(errors))
    }

    /// Has the PFNs of a range be the machine frames of the same numbers, none of which is memory.
    pub fn make_identity(&self, range: Range<Pfn>) -> Result<()> {
        let mut raw = abi::p2m_identity::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = range.end.0.saturating_sub(range.start.0);
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        // Before an error that comes at once, nothing was stored.
        let done = raw.out_next_pfn.saturating_sub(range.start.0);
        result.attempt_halfway(Operation::Identity, done)
    }
}

/// Returns the slots if as many of them are good as the kernel has counted.
fn checked(operation: Operation, nr_good: u32, slots: Vec<Slot>) -> Result<Vec<Slot>> {
    let found = slots.iter().filter(|slot| slot.is_none()).count();
    match found == nr_good as usize {
        true => Ok(slots),
        false => Err(Error::Short { operation }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::fake;
    use crate::frame::pages;

    #[test]
    fn a_slot_has_the_reason_that_the_kernel_gives() {
        let slots = slots(vec![0, 14, 17]);
        assert_eq!(slots, [None, Some(Errno::FAULT), Some(Errno::EXIST)]);
        let checked = |nr| checked(Operation::ForeignMap, nr, slots.clone()).is_ok();
        assert_eq!([checked(0), checked(1), checked(3)], [false, true, false]);
    }

    #[test]
    fn a_file_is_no_domain() {
        let domain = fake(&[]);
        let range = || pages(Pfn(0), 2);
        for error in [
            domain
                .map_foreign(Pfn(0), &domain, range())
                .expect_err("a file"),
            domain.unmap_foreign(range()).expect_err("a file"),
            domain.make_identity(range()).expect_err("a file"),
        ] {
            assert_eq!(error.errno(), Some(Errno::NOTTY));
            assert_eq!(error.done(), 0);
        }
        let range = || pages(Pfn(0), 1 << 32);
        for error in [
            domain
                .map_foreign(Pfn(0), &domain, range())
                .expect_err("too many"),
            domain.unmap_foreign(range()).expect_err("too many"),
        ] {
            assert_eq!(error.errno(), Some(Errno::OVERFLOW));
        }
    }
}
