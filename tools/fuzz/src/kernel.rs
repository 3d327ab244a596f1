// SPDX-License-Identifier: GPL-2.0

use std::io::Cursor;

use p2m_loader::{Checksum, Images, Kernel, Loaded, Segment, SegmentKind, load};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;

/// Where memory is, with a hole in it: little of it, so that most kernels have to be moved.
const MEMORY: [(u64, u64); 2] = [(0, 2 * MIB), (16 * MIB, 4 * MIB)];

/// Files that are kernels or not: they are refused, or everything is where there is memory, nothing
/// is where something else is, and what is there is what was to be.
pub fn kernel(data: &[u8]) {
    let Ok(mut kernel) = Kernel::open(Cursor::new(data)) else {
        return;
    };
    let limit = kernel.command_line_limit();
    let ranges = MEMORY.map(|(start, bytes)| (GuestAddress(start), bytes as usize));
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("some MiB of memory");
    let command_line = "console=ttyS0";
    // Something that isn't the kernel.
    let mut initrd = data.get(..data.len() / 2).map(Cursor::new);
    let result = load(
        &memory,
        &mut kernel,
        &mut Images {
            initrd: initrd.as_mut(),
            command_line,
            tables: Vec::new(),
            root_pointer: None,
        },
    );
    let Ok(loaded) = result else {
        return;
    };
    assert!(command_line.len() <= limit);
    check(&memory, &loaded);
}

fn check(memory: &GuestMemoryMmap, loaded: &Loaded) {
    let is_memory = |start: u64, end: u64| {
        let mut ranges = MEMORY.iter();
        ranges.any(|&(from, bytes)| from <= start && end <= from + bytes)
    };
    let mut end = 1;
    for segment in &loaded.segments {
        assert!(segment.bytes > 0 && segment.bytes <= segment.memory_bytes);
        assert!(segment.address >= end, "pieces overlap");
        end = segment.address + segment.memory_bytes;
        assert!(is_memory(segment.address, end), "where there is no memory");
        let mut found = vec![0; segment.bytes as usize];
        memory
            .read_slice(&mut found, GuestAddress(segment.address))
            .expect("it's in memory");
        assert_eq!(Checksum::of(&found), segment.checksum, "{}", segment.kind);
    }
    let has = |kind, address| {
        let holds = |segment: &Segment| {
            segment.kind == kind
                && segment.address <= address
                && address - segment.address < segment.memory_bytes
        };
        loaded.segments.iter().any(holds)
    };
    let entry = loaded.entry;
    assert!(has(SegmentKind::Kernel, entry.instruction));
    assert!(has(SegmentKind::BootParameters, entry.boot_params));
    assert!(has(SegmentKind::PageTables, entry.page_table));
    assert!(has(SegmentKind::DescriptorTable, entry.descriptor_table));
}
