// SPDX-License-Identifier: GPL-2.0

//! Backends, formats, and a domain that has one of everything.

use std::rc::Rc;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::paging::Format;
use p2m_pure::pv::{bits, MmuOps, Native, P2M, P2M_LOSSLESS};

use crate::sim::Sim;

/// Pages of a leaf of level 1.
pub(crate) const M2: u64 = 1 << 9;

/// Pages of a leaf of level 2.
pub(crate) const G1: u64 = 1 << 18;

/// Where a domain has what, in PFNs.
pub(crate) mod at {
    use super::{G1, M2};

    /// `2 * M2` pages, no two of which are neighbours in the machine.
    pub(crate) const SCATTERED: u64 = 0;
    /// `4 * M2` pages in one run, aligned for leaves of level 1.
    pub(crate) const ALIGNED: u64 = 2 * M2;
    /// `2 * M2` pages in one run that is not aligned.
    pub(crate) const MISALIGNED: u64 = 6 * M2;
    /// `M2` pages of somebody else, in an aligned run.
    pub(crate) const FOREIGN: u64 = 8 * M2;
    /// `M2` more of them, the numbers of which are higher than any PFN.
    pub(crate) const FOREIGN_HIGH: u64 = 9 * M2;
    /// `2 * M2` pages that are what they are called.
    pub(crate) const IDENTITY: u64 = 10 * M2;
    /// `2 * M2` pages with nothing behind them.
    pub(crate) const HOLE: u64 = 12 * M2;
    /// Pages for tables.
    pub(crate) const POOL: u64 = 16 * M2;
    /// `G1` pages in one run, aligned for a leaf of level 2, and `4 * M2` more.
    pub(crate) const GIANT: u64 = G1;
}

/// Number of pages for tables.
pub(crate) const NR_TABLES: u64 = 128;

/// A frame that nobody has, and many that follow it.
pub(crate) const FRESH: u64 = 0x700_0000;

/// What becomes of a present entry for a PFN with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unbacked {
    /// It is an entry as any other.
    Mapped,
    /// It is empty.
    Empty,
    /// It isn't present, but all else is there.
    Absent,
}

/// A backend, and how it differs from others by design.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) ops: &'static dyn MmuOps,
    pub(crate) unbacked: Unbacked,
}

/// Something that holds for all backends. It panics where it doesn't.
pub(crate) type Law = fn(&Backend);

/// Returns the backends that there are.
pub(crate) fn backends() -> [Backend; 3] {
    let backend = |ops, unbacked| Backend { ops, unbacked };
    [
        backend(&Native, Unbacked::Mapped),
        backend(&P2M, Unbacked::Empty),
        backend(&P2M_LOSSLESS, Unbacked::Absent),
    ]
}

impl Backend {
    pub(crate) fn name(&self) -> &'static str {
        self.ops.name()
    }

    /// Returns whether entries have machine frames.
    pub(crate) fn translates(&self) -> bool {
        self.unbacked != Unbacked::Mapped
    }

    /// Returns the machine frame that is meant by a PFN.
    pub(crate) fn mfn(&self, sim: &Sim, pfn: u64) -> Option<u64> {
        if self.translates() {
            sim.peek(pfn).mfn().map(Mfn::get)
        } else {
            Some(pfn)
        }
    }

    /// Makes a machine for the backend, with a domain.
    pub(crate) fn world(&self) -> Rc<Sim> {
        let tables = at::POOL..at::POOL + NR_TABLES;
        if !self.translates() {
            let sim = Sim::with_memory(tables);
            sim.set(0, 4 * G1, Entry::Present(Mfn::ZERO));
            return Rc::new(sim);
        }
        let place = |pfn: u64| 0x30_0000 + (pfn - at::POOL) * 77 % NR_TABLES * 3;
        let sim = Sim::with_memory(tables.clone().map(place));
        let mfn = |number| Mfn::new(number).unwrap();
        for pfn in tables {
            sim.set(pfn, 1, Entry::Present(mfn(place(pfn))));
        }
        for nr in 0..2 * M2 {
            let frame = 0x10_0001 + nr * 389 % (2 * M2) * 2;
            sim.set(at::SCATTERED + nr, 1, Entry::Present(mfn(frame)));
        }
        for (pfn, nr_pages, entry) in [
            (at::ALIGNED, 4 * M2, Entry::Present(mfn(0x24_0000))),
            (at::MISALIGNED, 2 * M2, Entry::Present(mfn(0x26_0001))),
            (at::FOREIGN, M2, Entry::Foreign(mfn(0x20_0000))),
            (at::FOREIGN_HIGH, M2, Entry::Foreign(mfn(4 * Pfn::LIMIT))),
            (at::IDENTITY, 2 * M2, Entry::Identity(mfn(at::IDENTITY))),
            (at::GIANT, G1 + 4 * M2, Entry::Present(mfn(5 * G1))),
        ] {
            sim.set(pfn, nr_pages, entry);
        }
        sim.must_protect.set(true);
        Rc::new(sim)
    }
}

/// Flags that a leaf may have in all formats.
pub(crate) const FLAGS: u64 = bits::RW
    | bits::USER
    | bits::PWT
    | bits::PCD
    | bits::ACCESSED
    | bits::DIRTY
    | bits::PAT
    | bits::NX;

/// Nested page tables: all addresses can be used, and all is of user mode.
const NESTED: Format = Format {
    nr_levels: 4,
    max_leaf_level: 2,
    address_bits: 48,
    link_flags: bits::PRESENT | bits::RW | bits::USER,
    leaf_flags: FLAGS,
};

/// Returns the formats to be tried.
pub(crate) fn formats() -> Vec<Format> {
    let mut formats = vec![NESTED];
    for nr_levels in [4, 5] {
        for max_leaf_level in 0..=2 {
            formats.push(Format {
                max_leaf_level,
                ..Format::x86_64(nr_levels).unwrap()
            });
        }
    }
    formats
}

/// Returns the format with four levels and leaves of all sizes.
pub(crate) fn format() -> Format {
    Format::x86_64(4).unwrap()
}
