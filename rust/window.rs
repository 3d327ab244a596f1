// SPDX-License-Identifier: GPL-2.0

//! The windows that the offsets of `/dev/p2m` are divided into.

use kernel::prelude::*;

use crate::{
    abi,
    frames,
    pure::frame::{
        Pfn,
        PfnRange,
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};

/// What an offset is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// The pseudo-physical space.
    Memory,
    /// The header page.
    Header,
    /// The P2M, as an array.
    P2m,
    /// The M2P, as an array.
    M2p,
}

impl Window {
    const ALL: [Self; 4] = [Self::Memory, Self::Header, Self::P2m, Self::M2p];

    /// Returns the offset in bytes at which the window begins.
    pub(crate) const fn offset(self) -> u64 {
        match self {
            // CAST: bindgen makes the smallest type of each constant.
            Self::Memory => abi::P2M_OFFSET_MEMORY as u64,
            Self::Header => abi::P2M_OFFSET_HEADER,
            Self::P2m => abi::P2M_OFFSET_P2M,
            Self::M2p => abi::P2M_OFFSET_M2P,
        }
    }

    /// Returns the size of the window in pages.
    fn nr_pages(self) -> u64 {
        let table = |nr_words: u64| nr_words.div_ceil(PAGE_SIZE as u64 / 8);
        match self {
            Self::Memory => Pfn::LIMIT,
            Self::Header => 1,
            Self::P2m => table(Pfn::LIMIT),
            Self::M2p => table(frames::max_mfn()),
        }
    }

    /// Returns the window that `nr_pages` from page offset `pgoff` on are in.
    pub(crate) fn of(pgoff: u64, nr_pages: u64) -> Result<Self> {
        let end = pgoff.checked_add(nr_pages).ok_or(EOVERFLOW)?;
        Self::ALL
            .into_iter()
            .find(|window| {
                let start = window.offset() >> PAGE_SHIFT;
                // OVERFLOW: All windows end far below 2^64.
                start <= pgoff && end <= start + window.nr_pages()
            })
            .ok_or(EINVAL)
    }

    /// Returns the PFNs of `nr_pages` from page offset `pgoff` on, in the memory window.
    pub(crate) fn pfns(pgoff: u64, nr_pages: u64) -> Result<PfnRange> {
        abi::range(pgoff, nr_pages)
    }

    /// Returns the index of the first word that the page at `pgoff` shows, if it's in the window.
    pub(crate) fn word_index(self, pgoff: u64) -> Option<u64> {
        let page = pgoff.checked_sub(self.offset() >> PAGE_SHIFT)?;
        // OVERFLOW: The page is in the window.
        (page < self.nr_pages()).then(|| page * (PAGE_SIZE as u64 / 8))
    }
}
