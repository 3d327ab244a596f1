// SPDX-License-Identifier: GPL-2.0

//! DMA by AMD's IOMMU: a bus address means to a device what the pseudo-physical one means to the crash
//! kernel, if it's in the window, and all others are nothing.
//!
//! So drivers of the crash kernel needn't know, and what devices were told by the old kernel leads
//! nowhere. The tables are one more space over the same P2M, made through a backend whose entries are
//! those of the IOMMU (48882, 2.2.3).

use kernel::prelude::*;

use crate::{
    ffi,
    frames::{
        self,
        Pages, //
    },
    pure::{
        frame::Pfn,
        paging::Format,
        pv::{
            bits,
            Machine,
            MmuOps,
            P4d,
            Pmd,
            Pte,
            Pud,
            P2M, //
        }, //
    }, //
};

/// Levels of the tables: 48 bits of address.
const NR_LEVELS: usize = 4;

/// What the tables are like, for who builds them.
pub(crate) const FORMAT: Format = Format {
    nr_levels: NR_LEVELS,
    max_leaf_level: 0,
    address_bits: 48,
    link_flags: bits::PRESENT | bits::RW,
    leaf_flags: bits::RW,
};

/// Bits of an entry of the IOMMU, and of a device table entry.
mod word {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const TRANSLATES: u64 = 1 << 1;
    pub(super) const LEVEL_SHIFT: u32 = 9;
    pub(super) const READ: u64 = 1 << 61;
    pub(super) const WRITE: u64 = 1 << 62;
}

/// The backend for tables of the IOMMU.
///
/// An entry says the level of the table that it links, counted from 1; 0 makes it a leaf. As levels are
/// counted from 0 otherwise, it's the entry's own.
pub(crate) struct AmdIommu;

/// The one that there is.
pub(crate) static AMD_IOMMU: AmdIommu = AmdIommu;

impl AmdIommu {
    fn make(&self, machine: &dyn Machine, level: usize, val: u64) -> u64 {
        let ops: &dyn MmuOps = &P2M;
        let raw = ops.make(machine, level, val);
        if raw & bits::PRESENT == 0 {
            return 0;
        }
        let write = match raw & bits::RW {
            0 => 0,
            _ => word::WRITE,
        };
        let level = (level as u64) << word::LEVEL_SHIFT;
        raw & bits::FRAME | level | word::PRESENT | word::READ | write
    }

    fn val(&self, machine: &dyn Machine, level: usize, word: u64) -> u64 {
        if word & word::PRESENT == 0 {
            return 0;
        }
        let write = match word & word::WRITE {
            0 => 0,
            _ => bits::RW,
        };
        let ops: &dyn MmuOps = &P2M;
        ops.val(machine, level, word & bits::FRAME | bits::PRESENT | write)
    }
}

impl MmuOps for AmdIommu {
    fn name(&self) -> &'static str {
        "amd-iommu"
    }

    fn translates(&self) -> bool {
        true
    }

    fn can_be_leaf(&self, _: &dyn Machine, level: usize, _: Pfn) -> bool {
        level == 0
    }

    fn pte_val(&self, machine: &dyn Machine, pte: Pte) -> u64 {
        self.val(machine, 0, pte.0)
    }
    fn make_pte(&self, machine: &dyn Machine, val: u64) -> Pte {
        Pte(self.make(machine, 0, val))
    }
    fn pmd_val(&self, machine: &dyn Machine, pmd: Pmd) -> u64 {
        self.val(machine, 1, pmd.0)
    }
    fn make_pmd(&self, machine: &dyn Machine, val: u64) -> Pmd {
        Pmd(self.make(machine, 1, val))
    }
    fn pud_val(&self, machine: &dyn Machine, pud: Pud) -> u64 {
        self.val(machine, 2, pud.0)
    }
    fn make_pud(&self, machine: &dyn Machine, val: u64) -> Pud {
        Pud(self.make(machine, 2, val))
    }
    fn p4d_val(&self, machine: &dyn Machine, p4d: P4d) -> u64 {
        self.val(machine, 3, p4d.0)
    }
    fn make_p4d(&self, machine: &dyn Machine, val: u64) -> P4d {
        P4d(self.make(machine, 3, val))
    }
    fn write_cr3(&self, machine: &dyn Machine, cr3: u64) {
        P2M.write_cr3(machine, cr3);
    }
}

/// Returns how many IOMMUs the machine has.
pub(crate) fn nr_iommus() -> u32 {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_crash_nr_iommus() }
}

/// Returns whether one of them is on.
pub(crate) fn is_active() -> bool {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_crash_has_active_iommu() }
}

/// What the IOMMUs are given.
pub(crate) struct DeviceTable {
    /// An entry for each of the devices that there can be, all the same.
    table: Pages,
    commands: Pages,
}

impl DeviceTable {
    /// Makes one, with the root of the tables at a physical address.
    pub(crate) fn new(root: u64) -> Result<Self> {
        /// 65536 entries of 32 bytes.
        const ORDER: u32 = 9;
        /// One that the old kernel hardly gave to anybody.
        const DOMAIN: u64 = 0xfff0;

        let mut table = Pages::new(ORDER)?;
        let levels = (NR_LEVELS as u64) << word::LEVEL_SHIFT;
        let first = root | levels | word::PRESENT | word::TRANSLATES | word::READ | word::WRITE;
        // Without a table for interrupts, these pass as they are.
        let entry: [u64; 4] = [first, DOMAIN, 0, 0];
        for place in table.bytes_mut().chunks_exact_mut(size_of_val(&entry)) {
            place.copy_from_slice(entry.as_bytes());
        }
        Ok(Self {
            table,
            commands: Pages::new(0)?,
        })
    }

    /// Returns the number of bytes.
    pub(crate) fn size(&self) -> usize {
        self.table.len() + self.commands.len()
    }

    /// Adds what the IOMMUs will see to a checksum.
    pub(crate) fn checksum(&self, crc: u32) -> u32 {
        frames::checksum(crc, self.table.bytes())
    }

    /// Has all IOMMUs use it, and returns whether they say so.
    ///
    /// # Safety
    ///
    /// Devices are not waited for any more, and what they may reach now is nobody's else.
    pub(crate) unsafe fn switch(&mut self) -> bool {
        let address = self.commands.address();
        let commands = self.commands.bytes_mut().as_mut_ptr();
        // SAFETY: Both are pages of ours. The rest are the safety requirements of this function.
        unsafe { ffi::p2m_crash_switch_iommus(self.table.address(), commands.cast(), address) }
    }
}
