// SPDX-License-Identifier: GPL-2.0

//! What is in the window of a crash kernel when it starts.
//!
//! ```text
//!  offset      what                                    to the crash kernel
//!  0x1000      boot parameters                         reserved
//!  0x2000      command line                            reserved
//!  0x3000      page tables that map it 1:1             reserved
//!  0x10000     header of /proc/vmcore                  reserved
//!  1 MiB       nothing                                 memory
//!  16 MiB      the kernel, with room to unpack itself  memory
//!  behind it   initramfs                               memory
//!  behind it   nothing                                 memory
//! ```
//!
//! All of it is as far down as it can be: if too few frames are free at a panic, it's the end of the
//! window that is missing.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::device::Info;
use crate::elfcore;
use crate::error::{Error, Result};
use crate::machine::{Machine, Note, Resource};

const BOOT_PARAMS: u64 = 0x1000;
const COMMAND_LINE: u64 = 0x2000;
const PAGE_TABLES: u64 = 0x3000;
const NR_PAGE_TABLES: u64 = 5;
const ELF_HEADER: u64 = 0x1_0000;
const MEMORY: u64 = 0x10_0000;
const KERNEL: u64 = 0x100_0000;

const PAGE: u64 = 0x1000;
const MAX_COMMAND_LINE: usize = 2048;

/// Offset of the entry of 64-bit boot loaders in a kernel, see `Documentation/arch/x86/boot.rst`.
const ENTRY_64: u64 = 0x200;

/// What a kernel needs at least, besides its own image and the initramfs: it finds that out itself, so
/// this is what was seen to be enough.
const WORKING_MEMORY: u64 = 32 << 20;

/// Types of the memory map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
const E820_NVS: u32 = 4;

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
    kernel_size: u64,
    initrd: (u64, u64),
    /// Length of the header of `/proc/vmcore`.
    elf_header_size: u64,
    size_slot: u64,
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(file_error(path))
}

impl Image {
    /// Puts everything in its place.
    pub fn new(recipe: &Recipe, machine: &Machine, info: &Info) -> Result<Self> {
        let (base, size) = (info.base, recipe.memory);
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(base), length)])
            .map_err(|error| Error::DoesNotFit(format!("no room for the window: {error}")))?;

        let mut kernel = open(&recipe.kernel)?;
        let loaded = BzImage::load(
            &memory,
            Some(GuestAddress(base + KERNEL)),
            &mut kernel,
            None,
        )
        .map_err(|error| Error::content(&recipe.kernel, error.to_string()))?;
        let header = loaded.setup_header.unwrap_or_default();
        check_kernel(&recipe.kernel, &header)?;
        let kernel_size = loaded.kernel_end - base - KERNEL;

        let mut initrd = Vec::new();
        let mut file = open(&recipe.initrd)?;
        file.read_to_end(&mut initrd)
            .map_err(file_error(&recipe.initrd))?;
        let initrd_start = KERNEL + kernel_size.max(header.init_size.into());
        let initrd_start = initrd_start.next_multiple_of(PAGE);
        let initrd_size = initrd.len() as u64;

        let mut image = Self {
            memory,
            base,
            size,
            kernel_size,
            initrd: (initrd_start, initrd_size),
            elf_header_size: 0,
            size_slot: 0,
        };
        let needed = image.min_memory();
        if size < needed {
            return Err(Error::TooSmall {
                needed,
                given: size,
            });
        }
        image.write(initrd_start, &initrd)?;
        image.write_elf_header(machine, info)?;
        image.write_page_tables()?;
        image.write_boot_params(recipe, machine, info, header)?;
        Ok(image)
    }

    /// Returns the size of the window in bytes.
    pub fn memory(&self) -> u64 {
        self.size
    }

    /// Returns how many bytes of the window the crash kernel needs at least.
    pub fn min_memory(&self) -> u64 {
        let (start, size) = self.initrd;
        // The initramfs is unpacked.
        (start + 4 * size + WORKING_MEMORY).next_multiple_of(PAGE)
    }

    /// Returns the offset of the first instruction.
    pub fn entry(&self) -> u64 {
        KERNEL + ENTRY_64
    }

    /// Returns the offset of the boot parameters.
    pub fn boot_params(&self) -> u64 {
        BOOT_PARAMS
    }

    /// Returns the offset of the root of the page tables.
    pub fn page_tables(&self) -> u64 {
        PAGE_TABLES
    }

    /// Returns the offset of the size of the memory in the memory map.
    pub fn size_slot(&self) -> u64 {
        self.size_slot
    }

    /// Returns the parts that have something in them.
    pub fn segments(&self) -> Result<Vec<Segment<'_>>> {
        let (initrd, initrd_size) = self.initrd;
        [
            (
                BOOT_PARAMS,
                PAGE_TABLES + NR_PAGE_TABLES * PAGE - BOOT_PARAMS,
            ),
            (ELF_HEADER, self.elf_header_size),
            (KERNEL, self.kernel_size),
            (initrd, initrd_size),
        ]
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .map(|(offset, length)| {
            let count = usize::try_from(length).unwrap_or(usize::MAX);
            let address = GuestAddress(self.base + offset);
            let slice = self.memory.get_slice(address, count);
            let slice = slice.map_err(|error| Error::DoesNotFit(error.to_string()))?;
            // SAFETY: The slice is in the memory that `self` has mapped, and nobody writes to it while
            // `self` is borrowed.
            let data =
                unsafe { std::slice::from_raw_parts(slice.ptr_guard().as_ptr(), slice.len()) };
            Ok(Segment { data, offset })
        })
        .collect()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let result = self
            .memory
            .write_slice(bytes, GuestAddress(self.base + offset));
        result.map_err(|error| Error::DoesNotFit(error.to_string()))
    }

    fn write_elf_header(&mut self, machine: &Machine, info: &Info) -> Result<()> {
        let (phys, length) = info.note;
        let mut notes = vec![Note { phys, length }];
        notes.extend(&machine.cpu_notes);
        notes.push(machine.vmcoreinfo);
        let header = elfcore::header(&notes, &machine.mapped);
        let number = notes.len() + machine.mapped.len();
        if header.len() as u64 > MEMORY - ELF_HEADER || number >= usize::from(u16::MAX) {
            let text = "the machine has too many processors and pieces of memory";
            return Err(Error::DoesNotFit(text.into()));
        }
        self.write(ELF_HEADER, &header)?;
        self.elf_header_size = header.len() as u64;
        Ok(())
    }

    /// Maps the GiB of the window to itself, in 2 MiB pages, and the first GiB: the kernel looks there
    /// for what firmware has left before it has page tables of its own.
    fn write_page_tables(&self) -> Result<()> {
        const PRESENT_RW: u64 = 3;
        const LARGE: u64 = 1 << 7;

        let table = |number: u64| PAGE_TABLES + number * PAGE;
        let set = |number: u64, index: u64, entry: u64| {
            let bytes = (entry | PRESENT_RW).to_le_bytes();
            self.write(table(number) + 8 * index, &bytes)
        };
        let index = |address: u64, level: u32| (address >> (12 + 9 * level)) & 511;
        // Tables 1 and 2 lead to the window, 3 and 4 to the first GiB.
        for (address, upper, lower) in [(0, 3, 4), (self.base, 1, 2)] {
            // There may be one for both.
            let upper = match index(self.base, 3) {
                0 => 1,
                _ => upper,
            };
            set(0, index(address, 3), self.base + table(upper))?;
            set(upper, index(address, 2), self.base + table(lower))?;
            for number in 0..512 {
                set(lower, number, (address + (number << 21)) | LARGE)?;
            }
        }
        Ok(())
    }

    fn write_boot_params(
        &mut self,
        recipe: &Recipe,
        machine: &Machine,
        info: &Info,
        header: setup_header,
    ) -> Result<()> {
        const OTHER_LOADER: u8 = 0xff;

        let command_line = self.command_line(recipe, machine, info);
        if command_line.len() >= MAX_COMMAND_LINE.min(header.cmdline_size as usize) {
            let text = "the command line is too long for the crash kernel";
            return Err(Error::DoesNotFit(text.into()));
        }
        self.write(COMMAND_LINE, command_line.as_bytes())?;

        let halves = |offset: u64| {
            let address = self.base + offset;
            // CAST: They are halves.
            (address as u32, (address >> 32) as u32)
        };
        let (initrd, initrd_size) = self.initrd;
        let mut params = boot_params {
            hdr: header,
            ..boot_params::default()
        };
        params.hdr.type_of_loader = OTHER_LOADER;
        (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = halves(COMMAND_LINE);
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initrd);
        params.hdr.ramdisk_size = u32::try_from(initrd_size)
            .map_err(|_| Error::DoesNotFit("the initramfs is too large".into()))?;
        params.acpi_rsdp_addr = machine.rsdp.unwrap_or(0);

        let map = self.memory_map(&machine.resources);
        let Some(places) = params.e820_table.get_mut(..map.len()) else {
            let text = "the memory map has more entries than there is room for";
            return Err(Error::DoesNotFit(text.into()));
        };
        places.copy_from_slice(&map);
        params.e820_entries = map.len() as u8;
        let result = self
            .memory
            .write_obj(params, GuestAddress(self.base + BOOT_PARAMS));
        result.map_err(|error| Error::DoesNotFit(error.to_string()))?;

        // The first entry is the window's memory.
        let table = std::mem::offset_of!(boot_params, e820_table);
        let size = std::mem::offset_of!(boot_e820_entry, size);
        self.size_slot = BOOT_PARAMS + (table + size) as u64;
        Ok(())
    }

    /// Returns the memory map of the crash kernel, in which the memory of its window comes first.
    fn memory_map(&self, resources: &[Resource]) -> Vec<boot_e820_entry> {
        let entry = |addr: u64, end: u64, type_: u32| boot_e820_entry {
            addr,
            size: end - addr,
            type_,
        };
        let mut map = vec![
            entry(self.base + MEMORY, self.base + self.size, E820_RAM),
            entry(self.base, self.base + MEMORY, E820_RESERVED),
        ];
        map.extend(resources.iter().filter_map(|resource| {
            let range = &resource.range;
            let kind = match &*resource.name {
                // What a processor needs to wake up others, and firmware to be found by.
                "System RAM" if range.end <= MEMORY => E820_RAM,
                "System RAM" | "Reserved" | "Soft Reserved" | "Persistent Memory" => E820_RESERVED,
                "ACPI Tables" => E820_ACPI,
                "ACPI Non-volatile Storage" => E820_NVS,
                // A device.
                _ => return None,
            };
            Some(entry(range.start, range.end, kind))
        }));
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
        // has never heard of memory up there.
        for word in [
            "nr_cpus=1",
            "reset_devices",
            "panic=-1",
            "disable_mtrr_trim",
        ] {
            words.push(word.to_owned());
        }
        words.push(format!("elfcorehdr={:#x}", self.base + ELF_HEADER));
        // The timers may be in no state to measure it.
        words.extend(info.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        if recipe.iommu {
            // They are programmed, and devices reach all of the memory.
            words.extend(["amd_iommu=off", "swiotlb=noforce"].map(str::to_owned));
        }
        words.extend(recipe.append.split_whitespace().map(str::to_owned));
        words.join(" ")
    }
}

/// Checks that a kernel can be started where the window is.
fn check_kernel(path: &Path, header: &setup_header) -> Result<()> {
    const KERNEL_64: u16 = 1 << 0;
    const ABOVE_4G: u16 = 1 << 1;

    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x020c || flags & (KERNEL_64 | ABOVE_4G) != KERNEL_64 | ABOVE_4G {
        let what = "is no 64-bit kernel that can be loaded above 4 GiB";
        return Err(Error::content(path, what));
    }
    if header.relocatable_kernel == 0 {
        return Err(Error::content(path, "is not relocatable"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Mapped;
    use std::fs;
    use tempfile::TempDir;

    const BASE: u64 = 0x9_0000_0000;
    const SETUP_SECTORS: usize = 3;

    /// The smallest thing that says that it's a kernel.
    fn kernel(xloadflags: u16) -> Vec<u8> {
        let mut bytes = vec![0; (SETUP_SECTORS + 1) * 512 + 0x3000];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0x1f1, &[SETUP_SECTORS as u8]);
        set(0x202, b"HdrS");
        set(0x206, &0x020fu16.to_le_bytes());
        set(0x211, &[1]); // loaded high
        set(0x234, &[1]); // relocatable
        set(0x236, &xloadflags.to_le_bytes());
        set(0x238, &2047u32.to_le_bytes());
        set(0x260, &0x80_0000u32.to_le_bytes()); // room to unpack itself
        bytes
    }

    struct Files {
        directory: TempDir,
    }

    impl Files {
        fn new(kernel: &[u8], initrd: &[u8]) -> Self {
            let directory = tempfile::tempdir().expect("directory");
            fs::write(directory.path().join("kernel"), kernel).expect("file");
            fs::write(directory.path().join("initrd"), initrd).expect("file");
            Self { directory }
        }

        fn image(&self, memory: u64) -> Result<Image> {
            let recipe = Recipe {
                kernel: self.directory.path().join("kernel"),
                initrd: self.directory.path().join("initrd"),
                append: "word=1 word=2".into(),
                memory,
                iommu: true,
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
            };
            Image::new(&recipe, &machine, &info)
        }
    }

    fn word(image: &Image, address: u64) -> u64 {
        image.memory.read_obj(GuestAddress(address)).expect("word")
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
        assert!(
            { pairs }.all(|pair| { pair[0].offset + pair[0].data.len() as u64 <= pair[1].offset })
        );
        let initrd = segments.last().expect("initramfs");
        assert_eq!(initrd.data, [7; 100_000]);
        // Where the kernel unpacks itself, nothing is.
        assert!(initrd.offset >= KERNEL + 0x80_0000);
        assert_eq!(segments[2].data.len(), 0x3000);
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
        let params: boot_params = image
            .memory
            .read_obj(GuestAddress(BASE + BOOT_PARAMS))
            .expect("parameters");
        let map: Vec<_> = params.e820_table[..usize::from(params.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.size, entry.type_))
            .collect();
        let expected = [
            (BASE + MEMORY, size - MEMORY, E820_RAM),
            (BASE, MEMORY, E820_RESERVED),
            (0x1000, 0x9_ec00, E820_RAM),
            (0x10_0000, 0x3ff0_0000, E820_RESERVED),
            (0xf000_0000, 0x1000, E820_ACPI),
        ];
        assert_eq!(map, expected);
        // That is what gets smaller.
        assert_eq!(word(&image, BASE + image.size_slot()), size - MEMORY);
        assert_eq!({ params.acpi_rsdp_addr }, 0x7fff_0000);
    }

    #[test]
    fn the_command_line_has_consoles_and_what_was_added_last() {
        let files = Files::new(&kernel(3), b"initramfs");
        let image = files.image(256 << 20).expect("image");
        let mut bytes = [0; MAX_COMMAND_LINE];
        let address = GuestAddress(BASE + COMMAND_LINE);
        image.memory.read_slice(&mut bytes, address).expect("line");
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches('\0');
        assert!(
            line.starts_with("console=tty0 console=ttyS0 nr_cpus=1 "),
            "{line}"
        );
        assert!(line.ends_with(" word=1 word=2"), "{line}");
        for word in [
            "elfcorehdr=0x900010000",
            "tsc_early_khz=2600000",
            "amd_iommu=off",
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
