// SPDX-License-Identifier: GPL-2.0

//! Frame numbers.
//!
//! A pseudo-physical frame number is what the owner of a domain sees, a machine frame number is
//! where the data really is. They are different types, so that neither passes for the other; only
//! the maps convert between them.

/// log2 of the size of a page in bytes.
pub const PAGE_SHIFT: u32 = 12;

/// Size of a page in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A pseudo-physical frame number, below [`Pfn::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// All PFNs are below this: 8 TiB of pages. `P2M_MAX_PFN` of the ABI.
    pub const LIMIT: u64 = 1 << 31;

    /// The first PFN.
    pub const ZERO: Self = Self(0);

    /// Makes a PFN of a number, if it is one.
    #[inline]
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::LIMIT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A machine frame number, below [`Mfn::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(u64);

impl Mfn {
    /// All MFNs are below this: x86-64 has at most 52 bits of physical address (AMD64 manual,
    /// volume 2, 5.1), 40 of them above the page offset.
    pub const LIMIT: u64 = 1 << 40;

    /// The first MFN.
    pub const ZERO: Self = Self(0);

    /// Makes an MFN of a number, if it is one.
    #[inline]
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::LIMIT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the MFN that is `nr` frames further.
    #[inline]
    pub const fn checked_add(self, nr: u64) -> Option<Self> {
        match self.0.checked_add(nr) {
            Some(number) => Self::new(number),
            None => None,
        }
    }

    /// Returns whether the two frames are neighbours in the machine, in either direction.
    #[inline]
    pub const fn is_adjacent_to(self, other: Self) -> bool {
        self.0.abs_diff(other.0) == 1
    }
}

/// A range of PFNs that is not empty.
///
/// # Invariants
///
/// `nr_pages` is not 0, and `start.get() + nr_pages <= Pfn::LIMIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnRange {
    start: Pfn,
    nr_pages: u64,
}

/// Why two numbers are not a range of PFNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRange {
    /// It has no page.
    Empty,
    /// It wraps, or ends beyond [`Pfn::LIMIT`].
    Overflow,
}

impl PfnRange {
    /// Makes the range of `nr_pages` PFNs from `start`.
    pub const fn new(start: u64, nr_pages: u64) -> Result<Self, BadRange> {
        if nr_pages == 0 {
            return Err(BadRange::Empty);
        }
        match (Pfn::new(start), start.checked_add(nr_pages)) {
            // INVARIANT: The range isn't empty, and its end has just been compared with the limit.
            (Some(start), Some(end)) if end <= Pfn::LIMIT => Ok(Self { start, nr_pages }),
            _ => Err(BadRange::Overflow),
        }
    }

    /// Returns the first PFN.
    #[inline]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// Returns the number of pages, which is not 0.
    #[inline]
    pub const fn nr_pages(self) -> u64 {
        self.nr_pages
    }

    /// Returns the number of the first PFN behind the range, at most [`Pfn::LIMIT`].
    #[inline]
    pub const fn end(self) -> u64 {
        // OVERFLOW: By the type invariants the sum is at most `Pfn::LIMIT`.
        self.start.0 + self.nr_pages
    }

    /// Returns the PFN at position `index` of the range, if the range is that long.
    #[inline]
    pub const fn nth(self, index: u64) -> Option<Pfn> {
        if index < self.nr_pages {
            // OVERFLOW: By the type invariants the sum is below `Pfn::LIMIT`.
            Some(Pfn(self.start.0 + index))
        } else {
            None
        }
    }

    /// Returns whether the two ranges have a PFN in common.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end() && other.start.0 < self.end()
    }

    /// Returns the PFNs of the range, in order.
    pub fn iter(self) -> impl Iterator<Item = Pfn> {
        (self.start.0..self.end()).map(Pfn)
    }
}
