// SPDX-License-Identifier: GPL-2.0

//! What a kernel finds beside itself when it starts.

use core::mem::offset_of;
use core::ops::Range;
use std::collections::BTreeMap;

use linux_loader::loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, boot_e820_entry, boot_params, setup_header,
};

use crate::PAGE_BYTES;
use crate::error::Error;

/// Usable memory (`enum e820_type`).
pub const E820_RAM: u32 = 1;
/// Memory that the kernel leaves alone.
pub const E820_RESERVED: u32 = 2;
/// Tables of ACPI.
pub const E820_ACPI: u32 = 3;
/// What ACPI keeps over a sleep.
pub const E820_NVS: u32 = 4;

/// What is no usable memory on any PC: from the extended BIOS data area to the first MiB. The memory
/// there is for tables that firmware would have.
const LEGACY: Range<u64> = 0x9_fc00..0x10_0000;

/// The part of it where a kernel looks for ACPI.
pub const HIGH_BIOS: Range<u64> = 0xe_0000..0x10_0000;

/// "undefined boot loader" (`type_of_loader`).
const UNDEFINED_LOADER: u8 = 0xff;

/// A range of addresses and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Its addresses.
    pub range: Range<u64>,
    /// [`E820_RAM`], [`E820_RESERVED`], or another type of the map.
    pub kind: u32,
}

/// Where the processor has to begin, in 64-bit mode with paging on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction (RIP).
    pub instruction: u64,
    /// `struct boot_params` (RSI).
    pub boot_params: u64,
    /// The root of four levels of page tables (CR3).
    pub page_table: u64,
    /// The table of descriptors (GDTR).
    pub descriptor_table: u64,
    /// The last byte of it, from its beginning.
    pub descriptor_limit: u16,
}

impl Entry {
    /// Returns the address of the size of an entry of the kernel's map, a word of 64 bits.
    pub fn map_size(&self, index: usize) -> u64 {
        let table = offset_of!(boot_params, e820_table);
        let entry = index.saturating_mul(size_of::<boot_e820_entry>());
        let offset = table + entry + offset_of!(boot_e820_entry, size);
        self.boot_params.saturating_add(offset as u64)
    }

    /// The code segment in the table of descriptors (`__BOOT_CS`).
    pub const CODE_SELECTOR: u16 = 0x10;
    /// The data segment (`__BOOT_DS`).
    pub const DATA_SELECTOR: u16 = 0x18;
}

/// Makes the map that the kernel gets, of ranges of memory that there are.
pub fn memory_map(memory: impl IntoIterator<Item = Range<u64>>) -> Vec<MemoryRange> {
    let mut map = Vec::new();
    for range in memory {
        let parts = [
            (range.start..range.end.min(LEGACY.start), E820_RAM),
            (
                range.start.max(LEGACY.start)..range.end.min(LEGACY.end),
                E820_RESERVED,
            ),
            (range.start.max(LEGACY.end)..range.end, E820_RAM),
        ];
        let parts = parts.into_iter().filter(|(range, _)| !range.is_empty());
        map.extend(parts.map(|(range, kind)| MemoryRange { range, kind }));
    }
    map
}

/// Where the pieces are that `struct boot_params` points to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pointers {
    pub(crate) command_line: u64,
    /// Empty if there is none.
    pub(crate) initrd: Range<u64>,
    /// 0 if there is none.
    pub(crate) root_pointer: u64,
}

/// Makes `struct boot_params` of a setup header, where pieces are, and a map.
pub(crate) fn boot_parameters(
    header: setup_header,
    pointers: &Pointers,
    map: &[MemoryRange],
) -> Result<boot_params, Error> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: pointers.root_pointer,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    let halves = |address: u64| (address as u32, (address >> 32) as u32);
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = halves(pointers.command_line);
    if !pointers.initrd.is_empty() {
        let bytes = pointers.initrd.end - pointers.initrd.start;
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(pointers.initrd.start);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(bytes);
    }
    let mut table = [boot_e820_entry::default(); E820_MAX_ENTRIES_ZEROPAGE as usize];
    if map.len() > table.len() {
        return Err(Error::TooManyRanges(map.len()));
    }
    for (entry, MemoryRange { range, kind }) in table.iter_mut().zip(map) {
        entry.addr = range.start;
        entry.size = range.end - range.start;
        entry.type_ = *kind;
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    Ok(params)
}

/// Makes a table of descriptors: two that are empty, then flat segments of code and data.
pub(crate) fn descriptor_table() -> Vec<u8> {
    // Present, of ring 0, accessed, with limits in pages; 64-bit code that can be read, and data
    // that can be written.
    let descriptors: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    descriptors
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, a large page.
const LARGE: u64 = 0x83;

/// Four levels of page tables with which all addresses of some GiB are what they are.
///
/// They have large pages of 2 MiB, which every processor knows.
#[derive(Clone, Debug)]
pub(crate) struct IdentityMap {
    /// The GiB to map, by their number, under the 512 GiB that they are in.
    upper: BTreeMap<u64, Vec<u64>>,
}

impl IdentityMap {
    /// Maps the GiB that ranges are in.
    pub(crate) fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut gibs: Vec<_> = ranges
            .into_iter()
            .flat_map(|range| range.start / GIB..range.end.div_ceil(GIB))
            .collect();
        gibs.sort_unstable();
        gibs.dedup();
        let mut upper = BTreeMap::<_, Vec<_>>::new();
        for gib in gibs {
            upper.entry(gib / ENTRIES).or_default().push(gib);
        }
        Self { upper }
    }

    /// Returns the size of the tables in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let gibs: usize = self.upper.values().map(Vec::len).sum();
        (1 + self.upper.len() + gibs) as u64 * PAGE_BYTES
    }

    /// Makes the tables for an address where they will be. The root is the first page.
    pub(crate) fn tables(&self, address: u64) -> Vec<u8> {
        let mut words = vec![0u64; (self.bytes() / 8) as usize];
        let at = |table: u64, index: u64| (table * ENTRIES + index) as usize;
        let mut next = 1;
        for (index, gibs) in &self.upper {
            let upper = next;
            words[at(0, index % ENTRIES)] = (address + upper * PAGE_BYTES) | TABLE;
            next += 1;
            for gib in gibs {
                words[at(upper, gib % ENTRIES)] = (address + next * PAGE_BYTES) | TABLE;
                for large in 0..ENTRIES {
                    words[at(next, large)] = (gib * GIB + large * LARGE_PAGE) | LARGE;
                }
                next += 1;
            }
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows tables as the processor does.
    fn walk(tables: &[u8], base: u64, virtual_address: u64) -> Option<u64> {
        let mut table = base;
        for level in [3, 2, 1] {
            let index = (virtual_address >> (12 + 9 * level)) % 512;
            let offset = (table - base + 8 * index) as usize;
            let entry = tables.get(offset..offset + 8)?.try_into().ok()?;
            let entry = u64::from_le_bytes(entry);
            if entry & 1 == 0 {
                return None;
            }
            let frame = entry & 0x000f_ffff_ffff_f000;
            if entry & 0x80 != 0 {
                assert_eq!(level, 1, "large pages are of 2 MiB");
                return Some(frame | (virtual_address & 0x1f_ffff));
            }
            table = frame;
        }
        panic!("small pages");
    }

    #[test]
    fn addresses_are_what_they_are() {
        let base = 0x10_0000_9000;
        let map = IdentityMap::of([
            0x1000..0x2000,
            0x3fff_ffff..0x4000_0001,
            0x10_0000_0000..0x10_0000_0001,
            0x80_0000_0000..0x80_0000_0001,
        ]);
        let tables = map.tables(base);
        assert_eq!(tables.len() as u64, map.bytes());
        // A root, two tables of the next level, and four of the one after it.
        assert_eq!(map.bytes(), 7 * PAGE_BYTES);
        for gib in [0, 1, 0x40, 0x200] {
            for offset in [0, 1, 0x1f_ffff, 0x20_0000, 0x3fff_ffff] {
                let address = (gib << 30) + offset;
                assert_eq!(walk(&tables, base, address), Some(address));
            }
        }
        for gib in [2, 0x3f, 0x41, 0x1ff, 0x201, 0x400] {
            assert_eq!(walk(&tables, base, gib << 30), None);
        }
    }

    #[test]
    fn only_the_legacy_hole_is_left_out() {
        let ram = |range| MemoryRange {
            range,
            kind: E820_RAM,
        };
        let reserved = |range| MemoryRange {
            range,
            kind: E820_RESERVED,
        };
        assert_eq!(
            memory_map([0..1 << 30, 4 << 30..5 << 30]),
            [
                ram(0..0x9_fc00),
                reserved(0x9_fc00..0x10_0000),
                ram(0x10_0000..1 << 30),
                ram(4 << 30..5 << 30),
            ]
        );
        assert_eq!(memory_map([0..0x8_0000]), [ram(0..0x8_0000)]);
        assert_eq!(
            memory_map([0xf_0000..0xf_1000]),
            [reserved(0xf_0000..0xf_1000)]
        );
        assert_eq!(memory_map([1 << 36..1 << 37]), [ram(1 << 36..1 << 37)]);
    }

    #[test]
    fn boot_params_have_room_for_128_ranges() {
        let range = MemoryRange {
            range: 0..1,
            kind: E820_RAM,
        };
        let make = |nr| {
            boot_parameters(
                setup_header::default(),
                &Pointers::default(),
                &vec![range.clone(); nr],
            )
        };
        assert_eq!(make(128).expect("room").e820_entries, 128);
        assert!(matches!(make(129), Err(Error::TooManyRanges(129))));
    }

    #[test]
    fn pointers_have_two_halves() {
        let pointers = Pointers {
            command_line: 0x12_3456_7000,
            initrd: 0x23_4567_8000..0x24_4567_8001,
            root_pointer: 0xe_0000,
        };
        let params = boot_parameters(setup_header::default(), &pointers, &[]).expect("fits");
        let hdr = params.hdr;
        assert_eq!(
            ({ hdr.cmd_line_ptr }, { params.ext_cmd_line_ptr }),
            (0x3456_7000, 0x12)
        );
        assert_eq!(
            ({ hdr.ramdisk_image }, { params.ext_ramdisk_image }),
            (0x4567_8000, 0x23)
        );
        assert_eq!(({ hdr.ramdisk_size }, { params.ext_ramdisk_size }), (1, 1));
        assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    }
}
