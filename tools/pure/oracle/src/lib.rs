// SPDX-License-Identifier: GPL-2.0

//! Page tables as the `x86_64` crate understands them.
//!
//! It shares no code with p2m and knows nothing of it: it sees a machine's memory and an address.

use std::collections::BTreeMap;

use x86_64::structures::paging::PhysFrame;
use x86_64::structures::paging::mapper::{MappedPageTable, PageTableFrameMapping};
use x86_64::structures::paging::mapper::{Translate, TranslateResult};
use x86_64::structures::paging::page_table::{PageTable, PageTableEntry, PageTableFlags};
use x86_64::{PhysAddr, VirtAddr};

/// What an address is translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The machine address.
    pub address: u64,
    /// Size of the leaf in bytes.
    pub nr_bytes: u64,
    /// The bits of the leaf that aren't an address at level 0.
    pub flags: u64,
}

/// A copy of the tables in a machine's memory, by frame number.
#[derive(Default)]
pub struct Memory(BTreeMap<u64, Box<PageTable>>);

impl Memory {
    /// Copies a table.
    pub fn insert(&mut self, mfn: u64, words: impl IntoIterator<Item = u64>) {
        let mut table = Box::new(PageTable::new());
        for (entry, word) in table.iter_mut().zip(words) {
            *entry = make_entry(word);
        }
        self.0.insert(mfn, table);
    }

    /// Translates an address through four levels of tables.
    ///
    /// # Panics
    ///
    /// Panics if the tables lead to a frame that isn't a table.
    pub fn translate(&mut self, root: u64, address: u64) -> Option<Translation> {
        let mut top = self.0.remove(&root).expect("the root is a table");
        // SAFETY: `top` is a table, and the mapping returns pointers to tables or panics.
        let mapper = unsafe { MappedPageTable::new(&mut top, Frames(&self.0)) };
        let result = mapper.translate(VirtAddr::new(address));
        self.0.insert(root, top);
        let (frame, offset, flags) = match result {
            TranslateResult::Mapped {
                frame,
                offset,
                flags,
            } => (frame, offset, flags),
            TranslateResult::NotMapped => return None,
            TranslateResult::InvalidFrameAddress(address) => panic!("{address:?} is no frame"),
        };
        // It looks at the present bit of links only.
        flags
            .contains(PageTableFlags::PRESENT)
            .then(|| Translation {
                address: frame.start_address().as_u64() + offset,
                nr_bytes: frame.size(),
                flags: flags.bits(),
            })
    }
}

/// Makes an entry of exactly this word.
fn make_entry(word: u64) -> PageTableEntry {
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    let flags = PageTableFlags::from_bits_retain(word & !FRAME);
    let mut entry = PageTableEntry::new();
    entry.set_addr(PhysAddr::new(word & FRAME), flags);
    entry
}

struct Frames<'a>(&'a BTreeMap<u64, Box<PageTable>>);

// SAFETY: All pointers are to tables that outlive `self`, and the root isn't among them. Who
// translates only reads.
unsafe impl PageTableFrameMapping for Frames<'_> {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        let mfn = frame.start_address().as_u64() >> 12;
        let table = self.0.get(&mfn);
        let table = table.unwrap_or_else(|| panic!("frame {mfn:#x} is no table"));
        std::ptr::from_ref::<PageTable>(table).cast_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_of_each_size_is_found() {
        let mut memory = Memory::default();
        let table = |words: &[(usize, u64)]| {
            let mut table = [0; 512];
            for &(index, word) in words {
                table[index] = word;
            }
            table
        };
        memory.insert(1, table(&[(0, 0x2003)]));
        memory.insert(2, table(&[(0, 0x3003), (1, 0x4000_0083)]));
        memory.insert(3, table(&[(0, 0x4003), (1, 0x20_1083)]));
        memory.insert(4, table(&[(0, 0x9000 | (1 << 63) | 1), (1, 0x9000)]));
        for (address, expected) in [
            (0x123, Some((0x9123, 1 << 12, (1 << 63) | 1))),
            (0x1123, None),
            (0x20_1234, Some((0x20_1234, 1 << 21, 0x83))),
            (0x4000_1234, Some((0x4000_1234, 1 << 30, 0x83))),
            (0x8000_0000, None),
            (1 << 39, None),
        ] {
            let expected = expected.map(|(address, nr_bytes, flags)| Translation {
                address,
                nr_bytes,
                flags,
            });
            assert_eq!(memory.translate(1, address), expected);
        }
    }
}
