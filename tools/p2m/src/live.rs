// SPDX-License-Identifier: GPL-2.0

//! Changing the machine frames under a domain while it is mapped and in use.

use core::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::Serialize;

use crate::abi;
use crate::domain::Domain;
use crate::error::{Attempt, Operation, Result};
use crate::frame::{Mfn, Pfn, Policy};
use crate::words::Word;

/// What became of pages that should get other frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// How many have other frames now.
    pub pages: u64,
    /// How many were left alone, as somebody has pinned them.
    pub busy: u64,
}

/// What happens to machine frames that pages were moved out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// The domain may get them again.
    Free,
    /// The domain keeps out of them, until [`Domain::readmit()`].
    KeepOut,
}

/// What an audit of a domain finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// PFNs with a frame of the domain.
    pub frames: u64,
    /// Frames that somebody else has a reference to, besides mappings. There is nothing wrong with
    /// that.
    pub pinned: u64,
    /// PFNs at the frame of which the M2P doesn't have the PFN.
    pub p2m_bad: u64,
    /// Frames at the PFN of which the P2M doesn't have the frame.
    pub m2p_bad: u64,
    /// PFNs with a frame, but in no region.
    pub orphans: u64,
    /// Frames with fewer references than the domain and mappings have.
    pub refs_bad: u64,
    /// Entries of spaces that name a frame which the domain doesn't know.
    pub spaces_bad: u64,
    /// Whether the domain counts another number of frames.
    pub count_bad: bool,
    /// The first PFN with something wrong.
    pub first_pfn: Option<Pfn>,
    /// The first frame with something wrong, unless it's hidden.
    pub first_mfn: Option<Mfn>,
}

/// What happens to guards that are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBroken {
    /// They stay so, and are found again.
    Leave,
    /// They get the pattern again.
    Refill,
}

/// What a check of guards finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guards {
    /// How many were looked at. One between two pages counts for each of them.
    pub checked: u64,
    /// How many of them don't hold the pattern.
    pub broken: u64,
    /// Where the first of these is broken.
    pub first: Option<Broken>,
}

/// Where a guard is broken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The page next to it.
    pub pfn: Pfn,
    /// Bytes from the beginning of that page: negative before it, or behind it.
    pub offset: i64,
    /// What is in the word with that byte.
    pub value: Word,
}

impl Broken {
    /// What is there in a guard that isn't broken.
    pub const PATTERN: u64 = abi::P2M_GUARD_PATTERN;
}

impl Audit {
    /// Returns whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        let bad = [
            self.p2m_bad,
            self.m2p_bad,
            self.orphans,
            self.refs_bad,
            self.spaces_bad,
        ];
        bad.iter().all(|&bad| bad == 0) && !self.count_bad
    }

    fn new(raw: &abi::p2m_audit) -> Self {
        let found = |number| (number != abi::ENTRY_INVALID).then_some(number);
        Self {
            frames: raw.out_frames,
            pinned: raw.out_pinned,
            p2m_bad: raw.out_p2m_bad,
            m2p_bad: raw.out_m2p_bad,
            orphans: raw.out_orphans,
            refs_bad: raw.out_refs_bad,
            spaces_bad: raw.out_spaces_bad,
            count_bad: raw.out_count_bad != 0,
            first_pfn: found(raw.out_first_pfn).map(Pfn),
            first_mfn: found(raw.out_first_mfn)
                .map(Mfn)
                .filter(|&mfn| mfn != Mfn::HIDDEN),
        }
    }
}

/// Returns the number of frames in a range.
fn count(start: u64, end: u64) -> u64 {
    end.saturating_sub(start)
}

impl Domain {
    /// Gives pages of regions back to the kernel, and returns how many there were.
    pub fn release(&self, range: Range<Pfn>) -> Result<u64> {
        let mut raw = abi::p2m_release::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::Release, raw.out_pages)?;
        Ok(raw.out_pages)
    }

    /// Takes zeroed pages for PFNs of regions that have none, and returns how many.
    pub fn populate(&self, range: Range<Pfn>) -> Result<u64> {
        let mut raw = abi::p2m_populate::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::PopulatePages, raw.out_pages)?;
        Ok(raw.out_pages)
    }

    /// Gives pages other frames, with the same contents. `seed` is for [`Policy::SCATTER`] only.
    pub fn move_pages(&self, range: Range<Pfn>, policy: Policy, seed: u64) -> Result<Moved> {
        let mut raw = abi::p2m_move::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = count(range.start.0, range.end.0);
        raw.policy = policy.0;
        raw.seed = seed;
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::Move, raw.out_pages)?;
        Ok(Moved {
            pages: raw.out_pages,
            busy: raw.out_busy,
        })
    }

    /// Moves the domain's pages out of a range of machine frames.
    pub fn evacuate(&self, range: Range<Mfn>, afterwards: Afterwards) -> Result<Moved> {
        let mut raw = abi::p2m_evacuate::new();
        if afterwards == Afterwards::KeepOut {
            raw.flags = abi::P2M_EVACUATE_KEEP_OUT;
        }
        raw.start_mfn = range.start.0;
        raw.nr_frames = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::Evacuate, raw.out_pages)?;
        Ok(Moved {
            pages: raw.out_pages,
            busy: raw.out_busy,
        })
    }

    /// Lets the domain have frames of a range again, as far as it was kept out of it.
    pub fn readmit(&self, range: Range<Mfn>) -> Result<()> {
        let mut raw = abi::p2m_evacuate::new();
        raw.flags = abi::P2M_EVACUATE_READMIT;
        raw.start_mfn = range.start.0;
        raw.nr_frames = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::Readmit)
    }

    /// Gives pages, of which the number is a power of two, frames that follow each other, with the
    /// same contents.
    ///
    /// With `address_bits`, all machine addresses have at most so many bits.
    pub fn make_contiguous(&self, range: Range<Pfn>, address_bits: Option<u32>) -> Result<()> {
        let nr_pages = count(range.start.0, range.end.0);
        let mut raw = abi::p2m_contiguous::new();
        // Where the kernel doesn't say which page is to blame.
        raw.out_busy_pfn = abi::ENTRY_INVALID;
        let result = if nr_pages.is_power_of_two() && address_bits != Some(0) {
            raw.start_pfn = range.start.0;
            raw.order = nr_pages.ilog2();
            raw.address_bits = address_bits.unwrap_or(0);
            // SAFETY: There is no pointer in it.
            unsafe { raw.call(self.as_fd()) }
        } else {
            Err(Errno::INVAL)
        };
        let blamed = (raw.out_busy_pfn != abi::ENTRY_INVALID).then_some(Pfn(raw.out_busy_pfn));
        result.attempt_at(Operation::Contiguous, blamed)
    }

    /// Makes superpages of 512 pages each, where all of them are in the range, in one region and
    /// populated. Returns how many pages became a part of one, and how many superpages there are.
    pub fn collapse(&self, range: Range<Pfn>) -> Result<(Moved, u64)> {
        let mut raw = abi::p2m_collapse::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::Collapse, raw.out_pages)?;
        let moved = Moved {
            pages: raw.out_pages,
            busy: raw.out_busy,
        };
        Ok((moved, raw.out_superpages))
    }

    /// Has as many pages from `a` and from `b` on exchange their frames, with the contents staying
    /// where they were. Of pairs, not of pages, is what it returns.
    pub fn exchange(&self, a: Pfn, b: Pfn, nr_pages: u64) -> Result<Moved> {
        let mut raw = abi::p2m_exchange::new();
        raw.a_pfn = a.0;
        raw.b_pfn = b.0;
        raw.nr_pages = nr_pages;
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.as_fd()) };
        result.attempt_halfway(Operation::Exchange, raw.out_pages)?;
        Ok(Moved {
            pages: raw.out_pages,
            busy: raw.out_busy,
        })
    }

    /// Looks at the guards next to the pages of a range.
    pub fn check_guards(&self, range: Range<Pfn>, on_broken: OnBroken) -> Result<Guards> {
        let mut raw = abi::p2m_guard_check::new();
        if on_broken == OnBroken::Refill {
            raw.flags = abi::P2M_GUARD_REFILL;
        }
        raw.start_pfn = range.start.0;
        raw.nr_pages = count(range.start.0, range.end.0);
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::GuardCheck)?;
        Ok(Guards {
            checked: raw.out_guards,
            broken: raw.out_broken,
            first: (raw.out_pfn != abi::ENTRY_INVALID).then_some(Broken {
                pfn: Pfn(raw.out_pfn),
                offset: raw.out_offset,
                value: Word(raw.out_value),
            }),
        })
    }

    /// Has the `nth` place of the domain that can fail do so, once, or none if it's 0. Returns what
    /// was left to count since the last time.
    pub fn fail_nth(&self, nth: u64) -> Result<u64> {
        let mut raw = abi::p2m_fail_nth::new();
        raw.nth = nth;
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::FailNth)?;
        Ok(raw.out_left)
    }

    /// Checks everything about the domain, and changes nothing.
    pub fn audit(&self) -> Result<Audit> {
        let mut raw = abi::p2m_audit::new();
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::Audit)?;
        Ok(Audit::new(&raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::fake;
    use crate::frame::pages;

    fn raw_audit() -> abi::p2m_audit {
        abi::p2m_audit {
            out_frames: 7,
            out_pinned: 3,
            out_first_pfn: abi::ENTRY_INVALID,
            out_first_mfn: abi::ENTRY_INVALID,
            ..abi::p2m_audit::new()
        }
    }

    #[test]
    fn pinned_frames_are_no_trouble() {
        let audit = Audit::new(&raw_audit());
        assert!(audit.is_good());
        assert_eq!((audit.first_pfn, audit.first_mfn), (None, None));
    }

    #[test]
    fn any_trouble_is_noticed() {
        for spoil in [
            (|raw| raw.out_p2m_bad = 1) as fn(&mut abi::p2m_audit),
            |raw| raw.out_m2p_bad = 1,
            |raw| raw.out_orphans = 1,
            |raw| raw.out_refs_bad = 1,
            |raw| raw.out_spaces_bad = 1,
            |raw| raw.out_count_bad = 1,
        ] {
            let mut raw = raw_audit();
            spoil(&mut raw);
            assert!(!Audit::new(&raw).is_good(), "{raw:?}");
        }
    }

    #[test]
    fn a_hidden_frame_is_not_the_first_one() {
        let mut raw = raw_audit();
        raw.out_first_mfn = 0;
        assert_eq!(Audit::new(&raw).first_mfn, None);
        raw.out_first_mfn = 5;
        assert_eq!(Audit::new(&raw).first_mfn, Some(Mfn(5)));
    }

    #[test]
    fn only_a_power_of_two_can_be_contiguous() {
        let domain = fake(&[]);
        let errno = |nr, bits| {
            let result = domain.make_contiguous(pages(Pfn(0), nr), bits);
            result.expect_err("a file").errno()
        };
        for nr in [0, 3, 5, 513] {
            assert_eq!(errno(nr, None), Some(Errno::INVAL));
        }
        // The ABI means any address by no bits at all.
        assert_eq!(errno(4, Some(0)), Some(Errno::INVAL));
        for nr in [1, 2, 512] {
            assert_eq!(errno(nr, None), Some(Errno::NOTTY));
        }
    }

    #[test]
    fn a_file_is_no_domain() {
        let domain = fake(&[]);
        let range = || pages(Pfn(0), 1);
        let mfns = || Mfn(0)..Mfn(1);
        for error in [
            domain.release(range()).expect_err("a file"),
            domain.populate(range()).expect_err("a file"),
            domain
                .move_pages(range(), Policy::ANY, 0)
                .expect_err("a file"),
            domain
                .evacuate(mfns(), Afterwards::Free)
                .expect_err("a file"),
            domain.readmit(mfns()).expect_err("a file"),
            domain.exchange(Pfn(0), Pfn(1), 1).expect_err("a file"),
            domain.audit().expect_err("a file"),
            domain
                .check_guards(range(), OnBroken::Refill)
                .expect_err("a file"),
            domain.fail_nth(1).expect_err("a file"),
        ] {
            assert_eq!(error.errno(), Some(Errno::NOTTY));
            assert_eq!(error.done(), 0);
        }
    }
}
