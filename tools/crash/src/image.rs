// SPDX-License-Identifier: GPL-2.0

//! What is in the window of a crash kernel when it starts.
//!
//! ```text
//!  offset      what                                    to the crash kernel
//!  0x1000      boot parameters, command line, tables   reserved
//!  0x10000     header of /proc/vmcore                  reserved
//!  1 MiB       its own frames, when it starts          reserved
//!  behind it   nothing                                 memory
//!  16 MiB      the kernel, with room to unpack itself  memory
//!  behind it   initramfs                               memory
//!  behind it   nothing                                 memory
//! ```
//!
//! All of it is as far down as it can be: if too few frames are free at a panic, it's the end of the
//! window that is missing.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use p2m_loader::{
    E820_ACPI, E820_NVS, E820_RAM, E820_RESERVED, Entry, Images, InitrdPlace, Kernel, MemoryRange,
    PAGE_BYTES as PAGE, Plan, SegmentKind, load_as,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::abi;
use crate::device::Info;
use crate::elfcore;
use crate::error::{Error, Result};
use crate::machine::{Machine, Note, Resource};

const PARAMETERS: u64 = 0x1000;
const ELF_HEADER: u64 = 0x1_0000;
const FRAMES: u64 = 0x10_0000;
const KERNEL: u64 = 0x100_0000;

/// Where other memory than the window can be, as usual: what a processor needs to wake up others, and
/// firmware to be found by.
const FIRST_MIB: u64 = 1 << 20;

/// Size of a slot of a kernel's bounce buffers (`IO_TLB_SIZE`).
const BOUNCE_SLOT: u64 = 2048;

/// What a kernel needs at least, besides its own image and the initramfs: it finds that out itself, so
/// this is what was seen to be enough.
const WORKING_MEMORY: u64 = 32 << 20;

/// What a crash kernel is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// What is added to the command line.
    pub append: String,
    /// Size of the window in bytes.
    pub memory: u64,
    /// Whether devices get the window by the IOMMUs.
    pub iommu: bool,
    /// Low memory that devices reach as it is, in ascending order.
    pub low: Vec<Range<u64>>,
}

/// A part of a window.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// Where they are in the window.
    pub offset: u64,
}

/// What is in a window.
pub struct Image {
    memory: GuestMemoryMmap,
    base: u64,
    size: u64,
    min_memory: u64,
    entry: Entry,
    /// The offsets of what has something in it, in order.
    parts: Vec<Range<u64>>,
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Returns an error of the loader as one about the kernel, or about the initramfs.
fn load_error(recipe: &Recipe) -> impl Fn(p2m_loader::Error) -> Error + use<'_> {
    |error| {
        let path = match error {
            p2m_loader::Error::Read(SegmentKind::Initrd, _) | p2m_loader::Error::EmptyInitrd => {
                &recipe.initrd
            }
            p2m_loader::Error::CommandLineTooLong { .. }
            | p2m_loader::Error::CommandLine
            | p2m_loader::Error::TooManyRanges(_) => return Error::DoesNotFit(error.to_string()),
            _ => &recipe.kernel,
        };
        Error::content(path, error.to_string())
    }
}

impl Image {
    /// Puts everything in its place.
    pub fn new(recipe: &Recipe, machine: &Machine, info: &Info) -> Result<Self> {
        let (base, size) = (info.base, recipe.memory);
        let mut kernel = Kernel::open(open(&recipe.kernel)?).map_err(load_error(recipe))?;
        if !kernel.is_movable() {
            let what = "is no kernel that can be loaded above 4 GiB";
            return Err(Error::content(&recipe.kernel, what));
        }
        let mut initrd = open(&recipe.initrd)?;
        let initrd_bytes = initrd.metadata().map_or(0, |metadata| metadata.len());
        let needed = min_memory(kernel.memory_bytes(), initrd_bytes);
        if size < needed {
            return Err(Error::TooSmall {
                needed,
                given: size,
            });
        }
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(base), length)])
            .map_err(|error| Error::DoesNotFit(format!("no room for the window: {error}")))?;

        let mut image = Self {
            memory,
            base,
            size,
            min_memory: needed,
            entry: Entry::default(),
            parts: Vec::new(),
        };
        let plan = Plan {
            map: image.memory_map(&machine.resources, &recipe.low),
            images: vec![base + KERNEL..base + size],
            parameters: vec![base + PARAMETERS..base + ELF_HEADER],
            tables: Vec::new(),
            initrd: InitrdPlace::Lowest,
        };
        let mut images = Images {
            initrd: Some(&mut initrd),
            command_line: &image.command_line(recipe, machine, info),
            tables: Vec::new(),
            root_pointer: machine.rsdp,
        };
        let loaded =
            load_as(&image.memory, &mut kernel, &mut images, plan).map_err(load_error(recipe))?;
        image.entry = loaded.entry;
        for segment in &loaded.segments {
            let start = segment.address - base;
            image.add_part(start..start + segment.bytes);
        }
        image.write_elf_header(recipe, machine, info)?;
        Ok(image)
    }

    /// Adds a part, which begins with a page: the one before is longer then, if it's in that page.
    fn add_part(&mut self, part: Range<u64>) {
        let start = part.start & !(PAGE - 1);
        match self.parts.last_mut() {
            Some(last) if start < last.end.next_multiple_of(PAGE) => last.end = part.end,
            _ => self.parts.push(start..part.end),
        }
    }

    /// Returns the size of the window in bytes.
    pub fn memory(&self) -> u64 {
        self.size
    }

    /// Returns how many bytes of the window the crash kernel needs at least.
    pub fn min_memory(&self) -> u64 {
        self.min_memory
    }

    /// Returns the offset of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry.instruction - self.base
    }

    /// Returns the offset of the boot parameters.
    pub fn boot_params(&self) -> u64 {
        self.entry.boot_params - self.base
    }

    /// Returns the offset of the root of the page tables.
    pub fn page_tables(&self) -> u64 {
        self.entry.page_table - self.base
    }

    /// Returns the offset of the size of the memory in the memory map, where it's the first entry.
    pub fn size_slot(&self) -> u64 {
        self.entry.map_size(0) - self.base
    }

    /// Returns the offsets of where the crash kernel is told of its own frames.
    pub fn frames(&self) -> Range<u64> {
        let frames = size_of::<u32>() as u64 * (self.size / PAGE);
        let length = size_of::<abi::p2m_crash_frames>() as u64 + frames;
        FRAMES..FRAMES + length
    }

    /// Returns the offset at which its memory begins.
    fn memory_start(&self) -> u64 {
        self.frames().end.next_multiple_of(PAGE)
    }

    /// Returns the parts that have something in them.
    pub fn segments(&self) -> Result<Vec<Segment<'_>>> {
        { self.parts.iter() }
            .map(|part| {
                let count = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
                let slice = self
                    .memory
                    .get_slice(GuestAddress(self.base + part.start), count)
                    .map_err(|error| Error::DoesNotFit(error.to_string()))?;
                // SAFETY: The slice is in the memory that `self` has mapped, and nobody writes to it
                // while `self` is borrowed.
                let data =
                    unsafe { std::slice::from_raw_parts(slice.ptr_guard().as_ptr(), slice.len()) };
                let offset = part.start;
                Ok(Segment { data, offset })
            })
            .collect()
    }

    fn write_elf_header(&mut self, recipe: &Recipe, machine: &Machine, info: &Info) -> Result<()> {
        let (phys, length) = info.note;
        let mut notes = vec![Note { phys, length }];
        notes.extend(&machine.cpu_notes);
        notes.push(machine.vmcoreinfo);
        // Low memory is the crash kernel's own.
        let memory: Vec<_> = { machine.mapped.iter() }
            .flat_map(|piece| piece.without(&recipe.low))
            .collect();
        let header = elfcore::header(&notes, &memory);
        let number = notes.len() + memory.len();
        if header.len() as u64 > FRAMES - ELF_HEADER || number >= usize::from(u16::MAX) {
            let text = "the machine has too many processors and pieces of memory";
            return Err(Error::DoesNotFit(text.into()));
        }
        self.memory
            .write_slice(&header, GuestAddress(self.base + ELF_HEADER))
            .map_err(|error| Error::DoesNotFit(error.to_string()))?;
        let place = { self.parts.iter() }
            .take_while(|part| part.end <= ELF_HEADER)
            .count();
        let part = ELF_HEADER..ELF_HEADER + header.len() as u64;
        self.parts.insert(place, part);
        Ok(())
    }

    /// Returns the memory map of the crash kernel, in which the memory of its window comes first.
    fn memory_map(&self, resources: &[Resource], low: &[Range<u64>]) -> Vec<MemoryRange> {
        let entry = |range, kind| MemoryRange { range, kind };
        let start = self.base + self.memory_start();
        let mut map = vec![
            entry(start..self.base + self.size, E820_RAM),
            entry(self.base..start, E820_RESERVED),
        ];
        for Resource { range, name } in resources {
            let kind = match &**name {
                "System RAM" if range.end <= FIRST_MIB => E820_RAM,
                "System RAM" | "Reserved" | "Soft Reserved" | "Persistent Memory" => E820_RESERVED,
                "ACPI Tables" => E820_ACPI,
                "ACPI Non-volatile Storage" => E820_NVS,
                // A device.
                _ => continue,
            };
            let rest = without(range, low);
            map.extend(rest.into_iter().map(|range| entry(range, kind)));
        }
        map.extend(low.iter().map(|range| entry(range.clone(), E820_RAM)));
        map
    }

    /// Returns the command line of the crash kernel. What was added comes last, as later words win.
    fn command_line(&self, recipe: &Recipe, machine: &Machine, info: &Info) -> String {
        let mut words: Vec<String> = machine
            .command_line
            .split_whitespace()
            .filter(|word| {
                // The last one is for timers that are late, as emulated ones are. In a virtual
                // machine kernels assume it, but this one isn't told that it's in one.
                ["console=", "earlyprintk=", "earlycon=", "no_timer_check"]
                    .iter()
                    .any(|name| word.starts_with(name))
            })
            .map(str::to_owned)
            .collect();
        // One processor, devices that are in any state, no waiting after a panic; a firmware that
        // has never heard of memory up there, but tells of the old kernel's that was added later;
        // IOMMUs that are programmed, or stay off: they don't know what addresses mean up there.
        for word in [
            "nr_cpus=1",
            "reset_devices",
            "panic=-1",
            "disable_mtrr_trim",
            "acpi_no_memhotplug",
            "amd_iommu=off",
        ] {
            words.push(word.to_owned());
        }
        words.push(format!("elfcorehdr={:#x}", self.base + ELF_HEADER));
        // The timers may be in no state to measure it.
        words.extend(info.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        if recipe.iommu {
            // Devices reach all of the memory.
            words.push("swiotlb=noforce".to_owned());
        } else if !recipe.low.is_empty() {
            // Half of it for bounce buffers, as drivers also need memory that stays theirs.
            let bytes: u64 = recipe.low.iter().map(|range| range.end - range.start).sum();
            words.push(format!("swiotlb={}", bytes / 2 / BOUNCE_SLOT));
            words.push(format!("p2m_crash_helper.limit={:#x}", (4u64 << 30) - 1));
        }
        words.push(format!(
            "p2m_crash_helper.frames={:#x}",
            self.base + self.frames().start
        ));
        words.extend(recipe.append.split_whitespace().map(str::to_owned));
        words.join(" ")
    }
}

/// Returns what is left of a range without others, which are in ascending order.
pub(crate) fn without(range: &Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut start = range.start;
    for other in others {
        rest.push(start..other.start.min(range.end));
        start = start.max(other.end);
    }
    rest.push(start..range.end);
    rest.retain(|range| !range.is_empty());
    rest
}

/// Returns how many bytes of a window a kernel and an initramfs of some sizes need at least.
fn min_memory(kernel: u64, initrd: u64) -> u64 {
    let initrd_start = KERNEL.saturating_add(kernel).next_multiple_of(PAGE);
    // The initramfs is unpacked.
    (initrd_start + 4 * initrd + WORKING_MEMORY).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Mapped, parse_program_headers};
    use linux_loader::loader::bootparam::boot_params;
    use std::fs;
    use tempfile::TempDir;

    const BASE: u64 = 0x9_0000_0000;
    const SETUP_SECTORS: usize = 3;

    /// The smallest thing that says that it's a kernel.
    fn kernel(xloadflags: u16) -> Vec<u8> {
        let mut bytes = vec![0; (SETUP_SECTORS + 1) * 512 + 0x3000];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0x1f1, &[SETUP_SECTORS as u8]);
        set(0x1fe, &[0x55, 0xaa]);
        set(0x200, &[0xeb, 0x6a]); // a jump over the header
        set(0x202, b"HdrS");
        set(0x206, &0x020fu16.to_le_bytes());
        set(0x211, &[1]); // loaded high
        set(0x230, &0x20_0000u32.to_le_bytes()); // alignment
        set(0x234, &[1]); // relocatable
        set(0x236, &xloadflags.to_le_bytes());
        set(0x238, &2047u32.to_le_bytes());
        set(0x258, &0x100_0000u64.to_le_bytes()); // where it wants to be
        set(0x260, &0x80_0000u32.to_le_bytes()); // room to unpack itself
        bytes
    }

    struct Files {
        directory: TempDir,
        low: Vec<Range<u64>>,
    }

    impl Files {
        fn new(kernel: &[u8], initrd: &[u8]) -> Self {
            let directory = tempfile::tempdir().expect("directory");
            fs::write(directory.path().join("kernel"), kernel).expect("file");
            fs::write(directory.path().join("initrd"), initrd).expect("file");
            Self {
                directory,
                low: Vec::new(),
            }
        }

        fn image(&self, memory: u64) -> Result<Image> {
            let recipe = Recipe {
                kernel: self.directory.path().join("kernel"),
                initrd: self.directory.path().join("initrd"),
                append: "word=1 word=2".into(),
                memory,
                iommu: self.low.is_empty(),
                low: self.low.clone(),
            };
            let resource = |range, name: &str| Resource {
                range,
                name: name.into(),
            };
            let machine = Machine {
                resources: vec![
                    resource(0x1000..0x9_fc00, "System RAM"),
                    resource(0x10_0000..0x4000_0000, "System RAM"),
                    resource(0x8000_0000..0xb000_0000, "PCI Bus 0000:00"),
                    resource(0xf000_0000..0xf000_1000, "ACPI Tables"),
                ],
                mapped: vec![Mapped {
                    virt: 0xffff_8880_0010_0000,
                    phys: 0x10_0000,
                    length: 0x3ff0_0000,
                }],
                cpu_notes: vec![Note {
                    phys: 0x1234,
                    length: 512,
                }],
                vmcoreinfo: Note {
                    phys: 0x5000,
                    length: 4096,
                },
                rsdp: Some(0x7fff_0000),
                command_line: "root=/dev/sda1 console=tty0 console=ttyS0 quiet".into(),
            };
            let info = Info {
                base: BASE,
                note: (0x6000, 4096),
                tsc_khz: Some(2_600_000),
                nr_levels: 4,
                nr_iommus: 1,
                generation: 1,
            };
            Image::new(&recipe, &machine, &info)
        }
    }

    fn word(image: &Image, address: u64) -> u64 {
        image.memory.read_obj(GuestAddress(address)).expect("word")
    }

    fn parameters(image: &Image) -> boot_params {
        let address = GuestAddress(BASE + image.boot_params());
        image.memory.read_obj(address).expect("parameters")
    }

    fn e820(image: &Image) -> Vec<(u64, u64, u32)> {
        let params = parameters(image);
        params.e820_table[..usize::from(params.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.size, entry.type_))
            .collect()
    }

    fn command_line(image: &Image) -> String {
        let params = parameters(image);
        let address =
            (u64::from(params.ext_cmd_line_ptr) << 32) | u64::from(params.hdr.cmd_line_ptr);
        let mut bytes = [0; 2048];
        image
            .memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("line");
        let line = bytes.split(|&byte| byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(line).into_owned()
    }

    /// Returns where an address leads to, as the processor finds it.
    fn walk(image: &Image, address: u64) -> Option<u64> {
        let mut table = image.base + image.page_tables();
        for level in (1..4).rev() {
            let entry = word(image, table + 8 * ((address >> (12 + 9 * level)) & 511));
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if entry & (1 << 7) != 0 {
                return Some(table + (address & 0x1f_ffff));
            }
        }
        None
    }

    #[test]
    fn the_window_and_the_first_gib_are_where_they_are() {
        let files = Files::new(&kernel(3), b"initramfs");
        let image = files.image(256 << 20).expect("image");
        for address in [
            0x413,
            0x3fff_ffff,
            BASE,
            BASE + 0x123_4567,
            BASE + 0x3fff_ffff,
        ] {
            assert_eq!(walk(&image, address), Some(address), "{address:#x}");
        }
        for address in [0x4000_0000, BASE - 1, BASE + 0x4000_0000, 1 << 40] {
            assert_eq!(walk(&image, address), None, "{address:#x}");
        }
    }

    #[test]
    fn what_is_needed_is_below_the_least_memory() {
        let files = Files::new(&kernel(3), &[7; 100_000]);
        let image = files.image(256 << 20).expect("image");
        let segments = image.segments().expect("segments");
        for segment in &segments {
            assert_eq!(segment.offset % PAGE, 0);
            assert!(segment.offset + segment.data.len() as u64 <= image.min_memory());
        }
        let pairs = segments.windows(2);
        let end = |segment: &Segment<'_>| segment.offset + segment.data.len() as u64;
        // No page is in two of them.
        assert!({ pairs }.all(|pair| end(&pair[0]).next_multiple_of(PAGE) <= pair[1].offset));
        let initrd = segments.last().expect("initramfs");
        assert_eq!(initrd.data, [7; 100_000]);
        // Where the kernel unpacks itself, nothing is.
        assert!(initrd.offset >= KERNEL + 0x80_0000);
        let kernel = { segments.iter() }.find(|segment| segment.offset == KERNEL);
        assert_eq!(kernel.expect("kernel").data.len(), 0x3000);
        let header = { segments.iter() }.find(|segment| segment.offset == ELF_HEADER);
        assert!(header.is_some_and(|header| header.data.starts_with(b"\x7fELF")));
    }

    #[test]
    fn a_window_that_is_too_small_is_refused() {
        let files = Files::new(&kernel(3), b"initramfs");
        let least = files.image(256 << 20).expect("image").min_memory();
        assert!(files.image(least).is_ok());
        let error = files.image(least - PAGE).err().expect("an error");
        assert!(matches!(error, Error::TooSmall { needed, .. } if needed == least));
    }

    #[test]
    fn only_the_window_and_the_first_mib_are_memory() {
        let files = Files::new(&kernel(3), b"initramfs");
        let size = 256 << 20;
        let image = files.image(size).expect("image");
        let params = parameters(&image);
        let map = e820(&image);
        // 4 bytes for each of the 65536 frames, and something before them.
        let memory = 0x14_1000;
        let expected = [
            (BASE + memory, size - memory, E820_RAM),
            (BASE, memory, E820_RESERVED),
            (0x1000, 0x9_ec00, E820_RAM),
            (0x10_0000, 0x3ff0_0000, E820_RESERVED),
            (0xf000_0000, 0x1000, E820_ACPI),
        ];
        assert_eq!(map, expected);
        // That is what gets smaller.
        assert_eq!(word(&image, BASE + image.size_slot()), size - memory);
        assert_eq!({ params.acpi_rsdp_addr }, 0x7fff_0000);
        assert_eq!(image.frames(), 0x10_0000..0x14_0010);
    }

    #[test]
    fn low_memory_is_memory_and_nothing_to_dump() {
        let mut files = Files::new(&kernel(3), b"initramfs");
        files.low = vec![0x2000_0000..0x2040_0000, 0x3fc0_0000..0x4000_0000];
        let image = files.image(256 << 20).expect("image");
        let map: Vec<_> = e820(&image).into_iter().skip(2).collect();
        let expected = [
            (0x1000, 0x9_ec00, E820_RAM),
            (0x10_0000, 0x1ff0_0000, E820_RESERVED),
            (0x2040_0000, 0x1f80_0000, E820_RESERVED),
            (0xf000_0000, 0x1000, E820_ACPI),
            (0x2000_0000, 0x40_0000, E820_RAM),
            (0x3fc0_0000, 0x40_0000, E820_RAM),
        ];
        assert_eq!(map, expected);
        let segments = image.segments().expect("segments");
        let header = { segments.iter() }.find(|segment| segment.offset == ELF_HEADER);
        let headers = header
            .and_then(|segment| parse_program_headers(segment.data))
            .expect("headers");
        let loads: Vec<_> = { headers.iter() }
            .filter(|header| header.kind == 1)
            .map(|header| (header.virt, header.phys, header.length))
            .collect();
        let virt = 0xffff_8880_0000_0000;
        let expected = [(0x10_0000, 0x1ff0_0000), (0x2040_0000, 0x1f80_0000)];
        assert_eq!(
            loads,
            expected.map(|(phys, length)| (virt + phys, phys, length))
        );
        let line = command_line(&image);
        for word in [
            "amd_iommu=off",
            "swiotlb=2048",
            "p2m_crash_helper.limit=0xffffffff",
        ] {
            assert!(line.split(' ').any(|other| other == word), "{line}");
        }
        assert!(!line.contains("noforce"), "{line}");
    }

    #[test]
    fn what_is_left_is_what_no_other_has() {
        let others = [0..5, 10..20, 30..35, 90..100];
        for (range, rest) in [
            (0..100, vec![5..10, 20..30, 35..90]),
            (12..18, vec![]),
            (5..10, vec![5..10]),
            (15..32, vec![20..30]),
            (40..50, vec![40..50]),
        ] {
            assert_eq!(without(&range, &others), rest, "{range:?}");
        }
    }

    #[test]
    fn the_command_line_has_consoles_and_what_was_added_last() {
        let files = Files::new(&kernel(3), b"initramfs");
        let image = files.image(256 << 20).expect("image");
        let line = command_line(&image);
        assert!(
            line.starts_with("console=tty0 console=ttyS0 nr_cpus=1 "),
            "{line}"
        );
        assert!(line.ends_with(" word=1 word=2"), "{line}");
        for word in [
            "elfcorehdr=0x900010000",
            "tsc_early_khz=2600000",
            "amd_iommu=off",
            "swiotlb=noforce",
        ] {
            assert!(
                line.split(' ').any(|other| other == word),
                "{word} in {line}"
            );
        }
        assert!(!line.contains("root="), "{line}");
    }

    #[test]
    fn what_is_no_kernel_for_there_is_refused() {
        for (name, bytes) in [
            ("nothing", Vec::new()),
            ("no header", vec![0; 8192]),
            ("32 bits", kernel(0)),
            ("below 4 GiB", kernel(1)),
        ] {
            let files = Files::new(&bytes, b"initramfs");
            let error = files.image(256 << 20).err();
            assert!(matches!(error, Some(Error::Content { .. })), "{name}");
        }
    }
}
