// SPDX-License-Identifier: GPL-2.0

//! Kernels that are made for the purpose, good ones and bad ones, and memory of all shapes.
//!
//! What was loaded is judged by the bytes in memory, at the offsets that
//! Documentation/arch/x86/boot.rst gives.

#![allow(clippy::single_range_in_vec_init)] // Ranges of addresses are meant as such.

use std::io::Cursor;
use std::ops::Range;

use p2m_loader::{
    Checksum, E820_RAM, Error, Format, Images, Kernel, Loaded, PAGE_BYTES, SegmentKind, Table, load,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Image = Cursor<Vec<u8>>;

const MIB: u64 = 1 << 20;
/// Where kernels are linked to run, and the boundary that they can be moved to.
const PREFERRED: u64 = 16 * MIB;
const ALIGNMENT: u64 = 2 * MIB;
/// The end of the setup code of the images here.
const SETUP: usize = 1024;

fn put(image: &mut [u8], offset: usize, value: &[u8]) {
    image[offset..offset + value.len()].copy_from_slice(value);
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(0x9e37) >> 7) as u8)
        .collect()
}

/// Makes a bzImage with a kernel of so many bytes, a multiple of 16.
fn bzimage(bytes: usize) -> Vec<u8> {
    let mut image = vec![0; SETUP];
    image.extend(pattern(bytes));
    put(&mut image, 0x1f1, &[1]); // setup_sects
    put(&mut image, 0x1f4, &((bytes / 16) as u32).to_le_bytes()); // syssize
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x200, &[0xeb, 0x6a]); // a jump over the header
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]); // LOADED_HIGH
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(&mut image, 0x230, &(ALIGNMENT as u32).to_le_bytes());
    put(&mut image, 0x234, &[1]); // relocatable_kernel
    put(&mut image, 0x236, &3u16.to_le_bytes()); // XLF_KERNEL_64, XLF_CAN_BE_LOADED_ABOVE_4G
    put(&mut image, 0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(&mut image, 0x258, &PREFERRED.to_le_bytes());
    put(&mut image, 0x260, &(4 * MIB as u32).to_le_bytes()); // init_size
    image
}

/// Makes a vmlinux of segments: address, bytes in the file, bytes in memory.
fn vmlinux(entry: u64, segments: &[(u64, usize, u64)]) -> Vec<u8> {
    let mut image = vec![0; 64 + 56 * segments.len()];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes()); // ET_EXEC
    put(&mut image, 18, &62u16.to_le_bytes()); // EM_X86_64
    put(&mut image, 20, &1u32.to_le_bytes());
    put(&mut image, 24, &entry.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes()); // e_phoff
    put(&mut image, 52, &64u16.to_le_bytes()); // e_ehsize
    put(&mut image, 54, &56u16.to_le_bytes()); // e_phentsize
    put(&mut image, 56, &(segments.len() as u16).to_le_bytes());
    for (index, &(address, bytes, memory_bytes)) in segments.iter().enumerate() {
        let (header, offset) = (64 + 56 * index, image.len() as u64);
        put(&mut image, header, &1u32.to_le_bytes()); // PT_LOAD
        let virtual_address = 0xffff_ffff_8000_0000 + address;
        let words = [
            offset,
            virtual_address,
            address,
            bytes as u64,
            memory_bytes,
            4096,
        ];
        for (index, word) in words.into_iter().enumerate() {
            put(&mut image, header + 8 + 8 * index, &word.to_le_bytes());
        }
        image.extend(pattern(bytes));
    }
    image
}

fn good_vmlinux() -> Vec<u8> {
    vmlinux(
        PREFERRED,
        &[(PREFERRED, 5000, 0x3000), (PREFERRED + 0x4000, 100, 100)],
    )
}

fn memory(ranges: &[Range<u64>]) -> GuestMemoryMmap {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|range| {
            (
                GuestAddress(range.start),
                (range.end - range.start) as usize,
            )
        })
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).expect("memory")
}

fn some_memory() -> GuestMemoryMmap {
    memory(&[0..64 * MIB])
}

/// Loads a kernel with what is wanted besides.
fn load_with(
    memory: &GuestMemoryMmap,
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    command_line: &str,
    tables: Vec<Table>,
) -> Result<Loaded, Error> {
    let mut initrd = initrd.map(Cursor::new);
    let mut kernel = Kernel::open(Cursor::new(kernel))?;
    let mut images = Images {
        initrd: initrd.as_mut(),
        command_line,
        tables,
        root_pointer: None,
    };
    load(memory, &mut kernel, &mut images)
}

fn load_plain(memory: &GuestMemoryMmap, kernel: Vec<u8>) -> Result<Loaded, Error> {
    load_with(memory, kernel, None, "", Vec::new())
}

fn bytes_at(memory: &GuestMemoryMmap, address: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("in memory");
    bytes
}

fn word32(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory
        .read_obj::<u32>(GuestAddress(address))
        .expect("in memory")
        .into()
}

/// Asserts what holds of everything that was loaded: pieces are in usable memory (tables may be in
/// the other one), apart from each other, and what their checksums say.
fn assert_sound(memory: &GuestMemoryMmap, loaded: &Loaded) {
    let mut end = 0;
    for segment in &loaded.segments {
        assert!(segment.bytes > 0 && segment.memory_bytes >= segment.bytes);
        assert!(segment.address >= end, "{segment:?} overlaps");
        end = segment.address + segment.memory_bytes;
        let holds = |map: &&p2m_loader::MemoryRange| {
            map.range.start <= segment.address && end <= map.range.end
        };
        let map = loaded
            .map
            .iter()
            .find(holds)
            .expect("in one range of memory");
        assert!(map.kind == E820_RAM || segment.kind == SegmentKind::Table);
        let found = bytes_at(memory, segment.address, segment.bytes);
        assert_eq!(Checksum::of(&found), segment.checksum, "{segment:?}");
    }
    // The processor finds its tables: the entry point, by the root, is where it is.
    let mut table = loaded.entry.page_table;
    for level in [3, 2, 1] {
        let index = (loaded.entry.instruction >> (12 + 9 * level)) % 512;
        let entry: u64 = memory
            .read_obj(GuestAddress(table + 8 * index))
            .expect("a table");
        assert_eq!(entry & 1, 1, "level {level}");
        table = entry & 0x000f_ffff_ffff_f000;
    }
    assert_eq!(table, loaded.entry.instruction & !(2 * MIB - 1));
    // Segments of code and data are where the protocol wants them.
    let descriptors = loaded.entry.descriptor_table;
    assert_eq!(loaded.entry.descriptor_limit, 31);
    let descriptor = |selector| -> u64 {
        memory
            .read_obj(GuestAddress(descriptors + selector))
            .expect("a descriptor")
    };
    assert_eq!((descriptor(0x10) >> 40) & 0xff, 0x9b);
    assert_eq!((descriptor(0x10) >> 53) & 1, 1, "64-bit code");
    assert_eq!((descriptor(0x18) >> 40) & 0xff, 0x93);
}

fn segment(loaded: &Loaded, kind: SegmentKind) -> &p2m_loader::Segment {
    let mut found = loaded
        .segments
        .iter()
        .filter(|segment| segment.kind == kind);
    found.next().expect("such a segment")
}

#[test]
fn a_bzimage_is_where_it_wants_to_be() {
    let memory = some_memory();
    let image = bzimage(100_000);
    let kernel = Kernel::open(Cursor::new(image.clone())).expect("good");
    assert_eq!(
        (kernel.format(), kernel.protocol()),
        (Format::BzImage, 0x020f)
    );
    let loaded = load_plain(&memory, image.clone()).expect("loads");
    assert_sound(&memory, &loaded);
    let kernel = segment(&loaded, SegmentKind::Kernel);
    assert_eq!(kernel.address, PREFERRED);
    assert_eq!((kernel.bytes, kernel.memory_bytes), (100_000, 4 * MIB));
    assert_eq!(kernel.checksum, Checksum::of(&image[SETUP..]));
    assert_eq!(bytes_at(&memory, PREFERRED, 100_000), image[SETUP..]);
    assert_eq!(loaded.entry.instruction, PREFERRED + 0x200);
}

#[test]
fn boot_params_are_as_the_protocol_says() {
    let memory = some_memory();
    let initrd = pattern(12_345);
    let line = "console=ttyS0 quiet";
    let tables = vec![Table {
        address: 0xe_0000,
        bytes: pattern(64),
    }];
    let mut initrd_file = Cursor::new(initrd.clone());
    let mut kernel = Kernel::open(Cursor::new(bzimage(4096))).expect("good");
    let loaded = load(
        &memory,
        &mut kernel,
        &mut Images {
            initrd: Some(&mut initrd_file),
            command_line: line,
            tables,
            root_pointer: Some(0xe_0000),
        },
    );
    let loaded = loaded.expect("loads");
    assert_sound(&memory, &loaded);
    let params = loaded.entry.boot_params;
    assert_eq!(word32(&memory, params + 0x70), 0xe_0000); // acpi_rsdp_addr
    assert_eq!(bytes_at(&memory, params + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(bytes_at(&memory, params + 0x202, 4), *b"HdrS");
    assert_eq!(bytes_at(&memory, params + 0x210, 1), [0xff]); // type_of_loader
    let (at, len) = (
        word32(&memory, params + 0x218),
        word32(&memory, params + 0x21c),
    );
    assert_eq!(bytes_at(&memory, at, len), initrd);
    assert_eq!(at % PAGE_BYTES, 0);
    let at = word32(&memory, params + 0x228); // cmd_line_ptr
    assert_eq!(bytes_at(&memory, at, 20), format!("{line}\0").as_bytes());
    // The map: entries of 20 bytes, of which there are as many as a byte says.
    let entries: Vec<_> = (0..u64::from(bytes_at(&memory, params + 0x1e8, 1)[0]))
        .map(|index| {
            let at = params + 0x2d0 + 20 * index;
            let word = |at| memory.read_obj::<u64>(GuestAddress(at)).expect("in memory");
            (word(at), word(at + 8), word32(&memory, at + 16))
        })
        .collect();
    let expected = [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x6_0400, 2),
        (MIB, 63 * MIB, 1),
    ];
    assert_eq!(entries, expected);
}

#[test]
fn what_is_behind_a_header_is_not_taken_for_it() {
    let memory = some_memory();
    let mut image = bzimage(4096);
    // The header ends behind init_size and handover_offset. kernel_info_offset is code.
    put(&mut image, 0x200, &[0xeb, 0x66]);
    put(&mut image, 0x268, &[0xcc; 16]);
    let loaded = load_plain(&memory, image).expect("loads");
    assert_eq!(word32(&memory, loaded.entry.boot_params + 0x268), 0);
}

#[test]
fn a_vmlinux_is_where_it_was_linked() {
    let memory = some_memory();
    let kernel = Kernel::open(Cursor::new(good_vmlinux())).expect("good");
    assert_eq!(kernel.format(), Format::Elf);
    let loaded = load_with(&memory, good_vmlinux(), Some(pattern(99)), "x", Vec::new());
    let loaded = loaded.expect("loads");
    assert_sound(&memory, &loaded);
    let kernel: Vec<_> = loaded
        .segments
        .iter()
        .filter(|segment| segment.kind == SegmentKind::Kernel)
        .map(|segment| (segment.address, segment.bytes, segment.memory_bytes))
        .collect();
    assert_eq!(
        kernel,
        [(PREFERRED, 5000, 0x3000), (PREFERRED + 0x4000, 100, 100)]
    );
    assert_eq!(bytes_at(&memory, PREFERRED, 5000), pattern(5000));
    assert_eq!(loaded.entry.instruction, PREFERRED);
    assert_eq!(
        bytes_at(&memory, loaded.entry.boot_params + 0x202, 4),
        *b"HdrS"
    );
}

#[test]
fn a_relocatable_kernel_goes_where_memory_is() {
    for (range, expected) in [
        (0x10_0000_0000..0x10_0400_0000, 0x10_0000_0000 + ALIGNMENT),
        (0x10_000f_f000..0x10_0400_0000, 0x10_0000_0000 + ALIGNMENT),
        (4 * MIB + 4096..20 * MIB - 4096, 6 * MIB),
        (32 * MIB..64 * MIB, 34 * MIB),
    ] {
        let memory = memory(&[range.clone()]);
        // The first pages of some of them are taken before.
        let tables = vec![Table {
            address: range.start,
            bytes: vec![1],
        }];
        let loaded = load_with(&memory, bzimage(4096), Some(pattern(5000)), "", tables);
        let loaded = loaded.expect("loads");
        assert_sound(&memory, &loaded);
        let kernel = segment(&loaded, SegmentKind::Kernel).address;
        assert_eq!(kernel, expected);
        assert_eq!(loaded.entry.instruction, kernel + 0x200);
    }
}

#[test]
fn an_initrd_is_as_high_as_the_kernel_can_reach() {
    let memory = memory(&[0..64 * MIB]);
    let place = |image: Vec<u8>| {
        let loaded = load_with(&memory, image, Some(pattern(4097)), "", Vec::new());
        segment(&loaded.expect("loads"), SegmentKind::Initrd).address
    };
    assert_eq!(place(bzimage(4096)), 64 * MIB - 2 * PAGE_BYTES);
    let mut old = bzimage(4096);
    put(&mut old, 0x236, &1u16.to_le_bytes());
    assert_eq!(place(old.clone()), 64 * MIB - 2 * PAGE_BYTES);
    put(&mut old, 0x22c, &(32 * MIB as u32 - 1).to_le_bytes());
    assert_eq!(place(old), 32 * MIB - 2 * PAGE_BYTES);
}

/// A way to spoil an image, and what the error says of it.
type Spoiled = (&'static str, fn(&mut Vec<u8>));

#[test]
fn a_bad_bzimage_is_refused_and_told_why() {
    let neither = "this is no kernel: neither a bzImage nor an ELF file";
    let cases: &[Spoiled] = &[
        (neither, |image| image.clear()),
        (neither, |image| image.truncate(3)),
        (neither, |image| image.truncate(0x267)),
        (neither, |image| image[0x1fe] = 0),
        (neither, |image| image[0x202] = b'h'),
        (
            "the kernel has boot protocol 2.11, needed is 2.12 or later",
            |image| {
                put(image, 0x206, &0x020bu16.to_le_bytes());
            },
        ),
        (
            "the kernel has boot protocol 0.00, needed is 2.12 or later",
            |image| {
                put(image, 0x206, &[0, 0]);
            },
        ),
        (
            "the kernel is a zImage, which has to be below 1 MiB; a bzImage is needed",
            |image| {
                image[0x211] = 0;
            },
        ),
        (
            "the kernel has no 64-bit entry point (XLF_KERNEL_64)",
            |image| image[0x236] = 2,
        ),
        (
            "the kernel is damaged: the setup header is too short",
            |image| image[0x201] = 0x65,
        ),
        (
            "the kernel is truncated: 5119 bytes are there of 5120",
            |image| image.truncate(5119),
        ),
        (
            "the kernel is truncated: 1024 bytes are there of 5120",
            |image| image.truncate(1024),
        ),
        (
            "the kernel is truncated: 5120 bytes are there of 68719477744",
            |image| {
                put(image, 0x1f4, &[0xff; 4]);
            },
        ),
        (
            "the kernel is damaged: there is nothing behind the setup code",
            |image| {
                put(image, 0x1f4, &[0; 4]);
                image.truncate(1024);
            },
        ),
        (
            "the kernel is damaged: kernel_alignment is no power of two",
            |image| image[0x231] = 1,
        ),
        (
            "the kernel is damaged: kernel_alignment is no power of two",
            |image| {
                put(image, 0x230, &[0; 4]);
            },
        ),
        (
            "the kernel is damaged: pref_address is not aligned",
            |image| image[0x258] = 1,
        ),
        (
            "the kernel is damaged: pref_address is beyond all addresses",
            |image| {
                put(image, 0x258, &(0u64.wrapping_sub(ALIGNMENT)).to_le_bytes());
            },
        ),
    ];
    for (expected, spoil) in cases {
        let mut image = bzimage(4096);
        spoil(&mut image);
        let error = Kernel::open(Cursor::new(image)).expect_err(expected);
        assert_eq!(error.to_string(), *expected);
    }
}

#[test]
fn a_bad_vmlinux_is_refused_and_told_why() {
    let cases: &[Spoiled] = &[
        (
            "the ELF file is no x86-64 kernel: it is not of 64 bits",
            |image| image[4] = 1,
        ),
        (
            "the ELF file is no x86-64 kernel: it is not of 64 bits",
            |image| image.truncate(63),
        ),
        (
            "the ELF file is no x86-64 kernel: it is big-endian",
            |image| image[5] = 2,
        ),
        (
            "the ELF file is no x86-64 kernel: it is for another processor",
            |image| image[18] = 3,
        ),
        (
            "the ELF file is no x86-64 kernel: it is not linked to run at an address",
            |image| {
                image[16] = 3;
            },
        ),
        (
            "the kernel is damaged: the program headers are not there",
            |image| image.truncate(100),
        ),
        (
            "the kernel is damaged: the program headers are not there",
            |image| {
                put(image, 32, &u64::MAX.to_le_bytes());
            },
        ),
        (
            "the kernel is damaged: the entry point is not in it",
            |image| image[24..32].fill(0),
        ),
        // No segment is to be loaded.
        (
            "the kernel is damaged: the entry point is not in it",
            |image| {
                (image[64], image[120]) = (4, 4);
            },
        ),
        (
            "the kernel is truncated: 5275 bytes are there of 5276",
            |image| image.truncate(5275),
        ),
        (
            "the kernel is damaged: a segment is beyond all offsets",
            |image| {
                put(image, 64 + 8, &u64::MAX.to_le_bytes());
            },
        ),
        (
            "the kernel is damaged: a segment is larger in the file than in memory",
            |image| {
                put(image, 64 + 40, &4999u64.to_le_bytes());
            },
        ),
        // Who loads it would overwrite what is there.
        (
            "the kernel is damaged: a segment is larger in the file than in memory",
            |image| {
                put(image, 120 + 40, &0u64.to_le_bytes());
            },
        ),
        ("the kernel is damaged: segments overlap", |image| {
            put(image, 64 + 40, &0x4001u64.to_le_bytes());
        }),
        (
            "the kernel is damaged: a segment is beyond all addresses",
            |image| {
                put(image, 120 + 24, &(u64::MAX - 50).to_le_bytes());
            },
        ),
    ];
    for (expected, spoil) in cases {
        let mut image = good_vmlinux();
        spoil(&mut image);
        let error = Kernel::open(Cursor::new(image)).expect_err(expected);
        assert_eq!(error.to_string(), *expected);
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let error = |memory: &GuestMemoryMmap, kernel: Vec<u8>, initrd: Option<Vec<u8>>| {
        let error = load_with(memory, kernel, initrd, "", Vec::new()).expect_err("no room");
        error.to_string()
    };
    let small = memory(&[0..4 * MIB]);
    let max = u64::MAX;
    assert_eq!(
        error(&small, bzimage(4096), None),
        format!("the kernel needs 4194304 bytes below {max:#x} and the memory has no such room")
    );
    let mut fixed = bzimage(4096);
    fixed[0x234] = 0;
    assert_eq!(
        error(&small, fixed, None),
        "the kernel has to be at 0x1000000, where 0x400000 bytes are not free"
    );
    assert_eq!(
        error(&small, good_vmlinux(), None),
        "the kernel has to be at 0x1000000, where 0x3000 bytes are not free"
    );
    let tight = memory(&[0..20 * MIB + 4096]);
    assert_eq!(
        error(&tight, bzimage(4096), Some(pattern(16 << 20))),
        format!("the initrd needs 16777216 bytes below {max:#x} and the memory has no such room")
    );
    assert_eq!(
        error(&tight, bzimage(4096), Some(Vec::new())),
        "the initrd is empty"
    );
    // All of the memory is for the kernel.
    let full = memory(&[PREFERRED..PREFERRED + 4 * MIB]);
    assert_eq!(
        error(&full, bzimage(4096), None),
        format!("the command line needs 1 bytes below {max:#x} and the memory has no such room")
    );
}

#[test]
fn a_command_line_that_the_kernel_cannot_take_is_refused() {
    let memory = some_memory();
    let line = |line: &str| load_with(&memory, bzimage(4096), None, line, Vec::new());
    let longest = "x".repeat(2047);
    let loaded = line(&longest).expect("it's not too long");
    assert_eq!(segment(&loaded, SegmentKind::CommandLine).bytes, 2048);
    let error = line(&format!("{longest}x")).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "the command line has 2048 bytes, this kernel takes 2047"
    );
    for bad in ["a\0b", "a\nb", "grüße"] {
        assert!(matches!(line(bad), Err(Error::CommandLine)), "{bad:?}");
    }
}

#[test]
fn tables_that_overlap_are_refused() {
    let memory = some_memory();
    let tables = |addresses: &[u64]| {
        let tables = addresses.iter().map(|&address| Table {
            address,
            bytes: vec![7; 16],
        });
        load_with(&memory, bzimage(4096), None, "", tables.collect())
    };
    assert_sound(
        &memory,
        &tables(&[0xe_0000, 0xe_0010, 0x9_fbf0, 0x9_fc00]).expect("apart"),
    );
    for addresses in [
        &[0xe_0000, 0xe_000f][..],
        // Partly in usable memory.
        &[0x9_fbf8],
        // Not in memory, or at its end.
        &[64 * MIB],
        &[64 * MIB - 8],
        &[u64::MAX - 8],
        // The first page is nobody's.
        &[0],
    ] {
        let error = tables(addresses).expect_err("no room");
        assert!(
            matches!(
                error,
                Error::Occupied {
                    kind: SegmentKind::Table,
                    ..
                }
            ),
            "{error}"
        );
    }
    // Where the kernel can't be any other place than that of a table.
    let mut fixed = bzimage(4096);
    fixed[0x234] = 0;
    let table = Table {
        address: PREFERRED,
        bytes: vec![7; 16],
    };
    let error = load_with(&memory, fixed, None, "", vec![table]).expect_err("no room");
    assert!(
        matches!(
            error,
            Error::Occupied {
                kind: SegmentKind::Kernel,
                ..
            }
        ),
        "{error}"
    );
}

/// An image that gets shorter while it's read.
#[test]
fn an_image_that_cannot_be_read_is_an_error() {
    struct Broken(Image);

    impl std::io::Read for Broken {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            if self.0.position() >= 4096 {
                return Err(std::io::Error::other("the disk is on fire"));
            }
            self.0.read(bytes)
        }
    }

    impl std::io::Seek for Broken {
        fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
            self.0.seek(to)
        }
    }

    impl vm_memory::ReadVolatile for Broken {
        fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
            &mut self,
            bytes: &mut vm_memory::VolatileSlice<'_, B>,
        ) -> Result<usize, vm_memory::VolatileMemoryError> {
            self.0.read_volatile(bytes)
        }
    }

    let mut kernel = Kernel::open(Broken(Cursor::new(bzimage(1 << 17)))).expect("the header");
    let mut images = Images {
        initrd: None::<&mut Image>,
        command_line: "",
        tables: Vec::new(),
        root_pointer: None,
    };
    let error = load(&some_memory(), &mut kernel, &mut images).expect_err("unreadable");
    assert_eq!(error.to_string(), "cannot read the kernel");
    assert!(matches!(error, Error::Read(SegmentKind::Kernel, _)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Memory of any shape and images of any size: either it's refused, or all is sound.
    #[test]
    fn whatever_is_loaded_is_sound(
        pages in proptest::collection::vec((1u64..200, 1u64..3000), 1..6),
        kernel in 33usize..3000,
        initrd in proptest::option::of(1usize..(1 << 19)),
        line in "[ -~]{0,99}",
    ) {
        let mut next = 0;
        let ranges: Vec<_> = pages
            .into_iter()
            .map(|(hole, pages)| {
                let start = next + (hole - 1) * PAGE_BYTES;
                next = start + pages * PAGE_BYTES + PAGE_BYTES;
                start..next - PAGE_BYTES
            })
            .collect();
        let memory = memory(&ranges);
        let initrd = initrd.map(pattern);
        match load_with(&memory, bzimage(16 * kernel), initrd, &line, Vec::new()) {
            Ok(loaded) => assert_sound(&memory, &loaded),
            Err(Error::DoesNotFit { .. } | Error::CommandLine) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Images with any bytes in their headers: no panic, and what is loaded is sound.
    #[test]
    fn headers_with_any_bytes_do_no_harm(
        elf: bool,
        changes in proptest::collection::vec((0usize..0x268, any::<u8>()), 1..8),
    ) {
        let mut image = if elf { good_vmlinux() } else { bzimage(4096) };
        for (offset, byte) in changes {
            image[offset] = byte;
        }
        let memory = some_memory();
        if let Ok(loaded) = load_with(&memory, image, Some(pattern(5000)), "x", Vec::new()) {
            assert_sound(&memory, &loaded);
        }
    }
}
