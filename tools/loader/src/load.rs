// SPDX-License-Identifier: GPL-2.0

//! Placing it all.

use core::ops::Range;
use std::io::SeekFrom;

use linux_loader::cmdline::{self, Cmdline};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{self, KernelLoader, load_cmdline};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use crate::boot::{
    E820_RAM, Entry, IdentityMap, MemoryRange, Pointers, boot_parameters, descriptor_table,
    memory_map,
};
use crate::error::Error;
use crate::image::{self, Format, Kernel};
use crate::layout::Layout;
use crate::segment::{Checksum, Segment, SegmentKind};
use crate::{PAGE_BYTES, Source};

const FOUR_GIB: u64 = 4 << 30;

/// Bytes that have to be at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where: in usable memory, or where the map has reserved memory.
    pub address: u64,
    /// What, not empty.
    pub bytes: Vec<u8>,
}

/// What a kernel gets besides memory.
#[derive(Debug)]
pub struct Images<'a, I> {
    /// The initial RAM disk, if there is one.
    pub initrd: Option<&'a mut I>,
    /// The command line.
    pub command_line: &'a str,
    /// What the machine has tables of, such as those of ACPI.
    pub tables: Vec<Table>,
    /// The address of ACPI's root pointer among them.
    pub root_pointer: Option<u64>,
}

/// Where pieces go, and what the kernel is told of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The map that the kernel gets.
    pub map: Vec<MemoryRange>,
    /// Where the kernel and the initrd may be, in the order of addresses.
    pub images: Vec<Range<u64>>,
    /// Where the rest may be, which the kernel reads once: command line, parameters, page tables and
    /// descriptors. The same, if it's empty.
    pub parameters: Vec<Range<u64>>,
    /// Where the tables of the caller may be, besides where the rest may.
    pub tables: Vec<Range<u64>>,
    /// Where the initrd is.
    pub initrd: InitrdPlace,
}

/// Where an initrd is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitrdPlace {
    /// As far up as it can be, where boot loaders have it.
    #[default]
    Highest,
    /// As far down as it can be.
    Lowest,
}

impl Plan {
    /// Returns the plan for a machine that has this memory and nothing else.
    pub fn of_memory(memory: &impl GuestMemory) -> Self {
        let ranges = memory.iter().map(|region| {
            let start = region.start_addr().raw_value();
            start..start.saturating_add(region.len())
        });
        let map = memory_map(ranges);
        let of_kind = |is_ram: bool| {
            map.iter()
                .filter(move |range| (range.kind == E820_RAM) == is_ram)
                .map(|range| range.range.clone())
        };
        // Address 0 means nowhere in many places, so the first page is left alone.
        let images = of_kind(true)
            .map(|range| range.start.max(PAGE_BYTES)..range.end.max(PAGE_BYTES))
            .collect();
        Self {
            images,
            tables: of_kind(false).collect(),
            map,
            ..Self::default()
        }
    }
}

/// A kernel that is where it has to be.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where everything is, in the order of addresses.
    pub segments: Vec<Segment>,
    /// The map that the kernel gets.
    pub map: Vec<MemoryRange>,
    /// Where the processor has to begin.
    pub entry: Entry,
}

/// Memory while it's being filled.
struct Filling<'a, M> {
    memory: &'a M,
    /// Room for images that has nothing yet.
    usable: Layout,
    /// The same for what the kernel reads once, if it's elsewhere.
    parameters: Option<Layout>,
    /// The same for the caller's tables.
    tables: Layout,
    segments: Vec<Segment>,
    /// All that was taken, also what is only room.
    taken: Vec<Range<u64>>,
}

/// Loads a kernel and all that it needs into memory.
///
/// The memory has to be zeroed. Where it is, is where the kernel will find memory: what isn't there,
/// the kernel won't use. After an error the memory may have a part of the pieces.
pub fn load<M, F, I>(
    memory: &M,
    kernel: &mut Kernel<F>,
    images: &mut Images<'_, I>,
) -> Result<Loaded, Error>
where
    M: GuestMemory,
    F: Source,
    I: Source,
{
    load_as(memory, kernel, images, Plan::of_memory(memory))
}

/// The same, where pieces go as the caller plans it. All that is planned has to be in the memory.
pub fn load_as<M, F, I>(
    memory: &M,
    kernel: &mut Kernel<F>,
    images: &mut Images<'_, I>,
    plan: Plan,
) -> Result<Loaded, Error>
where
    M: GuestMemory,
    F: Source,
    I: Source,
{
    let map = plan.map;
    if map.is_empty() {
        return Err(Error::NoMemory);
    }
    let mut filling = Filling {
        memory,
        usable: Layout::of(plan.images),
        parameters: (!plan.parameters.is_empty()).then(|| Layout::of(plan.parameters)),
        tables: Layout::of(plan.tables),
        segments: Vec::new(),
        taken: Vec::new(),
    };

    for table in &images.tables {
        filling.table(table)?;
    }
    let shift = filling.kernel(kernel)?;
    let initrd = match &mut images.initrd {
        Some(initrd) => filling.initrd(*initrd, kernel.initrd_limit(), plan.initrd)?,
        None => 0..0,
    };
    let command_line = filling.command_line(images.command_line, kernel.command_line_limit())?;
    let pointers = Pointers {
        command_line,
        initrd,
        root_pointer: images.root_pointer.unwrap_or(0),
    };
    let params = boot_parameters(kernel.header, &pointers, &map)?;
    let boot_params = filling.boot_params(&params)?;

    let kind = SegmentKind::DescriptorTable;
    let descriptors = descriptor_table();
    let descriptor_table = filling.take_low(kind, descriptors.len() as u64, 8)?;
    filling.write(kind, descriptor_table, &descriptors)?;

    // A kernel that switches to five levels does so from the first MiB.
    let first = [0..PAGE_BYTES];
    let identity = IdentityMap::of(first.into_iter().chain(filling.taken.iter().cloned()));
    let kind = SegmentKind::PageTables;
    let page_table = filling.take_low(kind, identity.bytes(), PAGE_BYTES)?;
    filling.write(kind, page_table, &identity.tables(page_table))?;

    let mut segments = filling.segments;
    segments.sort_by_key(|segment| segment.address);
    Ok(Loaded {
        segments,
        map,
        entry: Entry {
            instruction: kernel.entry.wrapping_add(shift),
            boot_params,
            page_table,
            descriptor_table,
            descriptor_limit: (descriptors.len() as u16).saturating_sub(1),
        },
    })
}

impl<M: GuestMemory> Filling<'_, M> {
    fn table(&mut self, table: &Table) -> Result<(), Error> {
        let kind = SegmentKind::Table;
        let bytes = table.bytes.len() as u64;
        let range = table.address..table.address.saturating_add(bytes);
        if !self.tables.take(range.clone()) && !self.usable.take(range) {
            return Err(Error::Occupied {
                kind,
                address: table.address,
                bytes,
            });
        }
        self.write(kind, table.address, &table.bytes)
    }

    /// Places the kernel, and returns how far from where it wanted to be, modulo 2⁶⁴.
    fn kernel<F: Source>(&mut self, kernel: &mut Kernel<F>) -> Result<u64, Error> {
        let kind = SegmentKind::Kernel;
        let parts = kernel.parts.clone();
        let mut shift = 0;
        for part in &parts {
            let bytes = part.memory_bytes;
            let wanted = part.address..part.address.saturating_add(bytes);
            let address = if self.usable.take(wanted.clone()) {
                wanted.start
            } else if let Some(align) = kernel.relocatable() {
                // As far up as it wants to be, if it can: lower, its own decompressor moves it.
                let mut take = |from| self.usable.take_lowest(bytes, align, from, u64::MAX);
                let below = u64::MAX;
                take(part.address)
                    .or_else(|| take(0))
                    .ok_or(Error::DoesNotFit { kind, bytes, below })?
            } else {
                return Err(Error::Occupied {
                    kind,
                    address: part.address,
                    bytes,
                });
            };
            self.taken.push(address..address + bytes);
            // Only a bzImage is relocatable, which has one part.
            shift = address.wrapping_sub(part.address);
            if part.bytes > 0 {
                let checksum = kernel.checksum(part)?;
                self.segments.push(Segment {
                    kind,
                    address,
                    bytes: part.bytes,
                    memory_bytes: bytes,
                    checksum,
                });
            }
        }
        match (kernel.format, parts.first()) {
            (Format::BzImage, Some(part)) => {
                let address = GuestAddress(part.address.wrapping_add(shift));
                BzImage::load(self.memory, Some(address), &mut kernel.file, None)?
            }
            _ => Elf::load(self.memory, None, &mut kernel.file, None)?,
        };
        Ok(shift)
    }

    fn initrd(
        &mut self,
        initrd: &mut impl Source,
        limit: u64,
        place: InitrdPlace,
    ) -> Result<Range<u64>, Error> {
        let kind = SegmentKind::Initrd;
        let bytes = image::length(initrd, kind)?;
        if bytes == 0 {
            return Err(Error::EmptyInitrd);
        }
        let checksum = image::checksum(initrd, 0, bytes, kind)?;
        let taken = match place {
            InitrdPlace::Highest => self.usable.take_highest(bytes, PAGE_BYTES, limit),
            InitrdPlace::Lowest => self.usable.take_lowest(bytes, PAGE_BYTES, 0, limit),
        };
        let address = taken.ok_or(Error::DoesNotFit {
            kind,
            bytes,
            below: limit,
        })?;
        initrd
            .seek(SeekFrom::Start(0))
            .map_err(|error| Error::Read(kind, error))?;
        self.memory
            .read_exact_volatile_from(GuestAddress(address), initrd, bytes as usize)
            .map_err(|error| Error::Write(kind, error))?;
        self.taken(kind, address, bytes, checksum);
        Ok(address..address + bytes)
    }

    fn command_line(&mut self, line: &str, limit: usize) -> Result<u64, Error> {
        let kind = SegmentKind::CommandLine;
        let too_long = Error::CommandLineTooLong {
            bytes: line.len(),
            limit,
        };
        if line.len() > limit {
            return Err(too_long);
        }
        // With the zero, and for the checks of that crate.
        let parsed = Cmdline::new(limit.saturating_add(1)).and_then(|mut parsed| {
            if !line.is_empty() {
                parsed.insert_str(line)?;
            }
            parsed.as_cstring().map(|bytes| (parsed, bytes))
        });
        let (parsed, bytes) = parsed.map_err(|error| match error {
            cmdline::Error::TooLarge => too_long,
            _ => Error::CommandLine,
        })?;
        let bytes = bytes.to_bytes_with_nul();
        let address = self.take_low(kind, bytes.len() as u64, 16)?;
        load_cmdline(self.memory, GuestAddress(address), &parsed)?;
        self.taken(kind, address, bytes.len() as u64, Checksum::of(bytes));
        Ok(address)
    }

    fn boot_params(&mut self, params: &boot_params) -> Result<u64, Error> {
        let kind = SegmentKind::BootParameters;
        let bytes = params.as_slice();
        let address = self.take_low(kind, bytes.len() as u64, PAGE_BYTES)?;
        let placed = BootParams::new(params, GuestAddress(address));
        LinuxBootConfigurator::write_bootparams(&placed, self.memory)
            .map_err(|_| loader::Error::MemoryOverflow)?;
        self.taken(kind, address, bytes.len() as u64, Checksum::of(bytes));
        Ok(address)
    }

    /// Takes room for what every kernel can reach.
    fn take_low(&mut self, kind: SegmentKind, bytes: u64, align: u64) -> Result<u64, Error> {
        let below = u64::MAX;
        let room = self.parameters.as_mut().unwrap_or(&mut self.usable);
        room.take_lowest(bytes, align, 0, FOUR_GIB)
            .or_else(|| room.take_lowest(bytes, align, 0, below))
            .ok_or(Error::DoesNotFit { kind, bytes, below })
    }

    fn write(&mut self, kind: SegmentKind, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| Error::Write(kind, error))?;
        self.taken(kind, address, bytes.len() as u64, Checksum::of(bytes));
        Ok(())
    }

    fn taken(&mut self, kind: SegmentKind, address: u64, bytes: u64, checksum: Checksum) {
        self.taken.push(address..address + bytes);
        self.segments.push(Segment {
            kind,
            address,
            bytes,
            memory_bytes: bytes,
            checksum,
        });
    }
}
