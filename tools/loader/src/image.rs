// SPDX-License-Identifier: GPL-2.0

//! Kernel images: what they ask for, and whether they can be believed.

use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::{self, setup_header};
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, ReadCache};
use vm_memory::ByteValued;

use crate::error::Error;
use crate::segment::{Checksum, SegmentKind};
use crate::{PAGE_BYTES, Source};

/// Where `struct setup_header` begins in a bzImage.
const SETUP_HEADER: u64 = 0x1f1;

/// The smallest file that has all of the header that is looked at.
const MIN_BYTES: u64 = 0x268;

const SECTOR_BYTES: u64 = 512;

// The bindings have the widest type for all constants.
const LOADED_HIGH: u8 = bootparam::LOADED_HIGH as u8;
const XLF_KERNEL_64: u16 = bootparam::XLF_KERNEL_64 as u16;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = bootparam::XLF_CAN_BE_LOADED_ABOVE_4G as u16;

/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;

const BOOT_FLAG: u16 = 0xaa55;

/// The first version that says whether there is a 64-bit entry point.
const MIN_VERSION: u16 = 0x020c;

/// Where the 64-bit entry point of a bzImage is, from the beginning of the kernel.
const ENTRY_64: u64 = 0x200;

/// The longest command line of a kernel that doesn't say (COMMAND_LINE_SIZE of x86, less the end).
const COMMAND_LINE_BYTES: u32 = 2047;

/// What kernels that don't say can reach of an initrd.
const INITRD_MAX: u64 = 0x7fff_ffff;

/// How a kernel is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `arch/x86/boot/bzImage`, which unpacks itself.
    BzImage,
    /// `vmlinux`, an ELF file.
    Elf,
}

/// A part of an image that is placed as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it's in the file.
    pub(crate) offset: u64,
    /// Its size there.
    pub(crate) bytes: u64,
    /// Where it wants to be.
    pub(crate) address: u64,
    /// Its size there.
    pub(crate) memory_bytes: u64,
}

/// A kernel image that was looked at and found good.
#[derive(Debug)]
pub struct Kernel<F> {
    pub(crate) file: F,
    pub(crate) format: Format,
    pub(crate) header: setup_header,
    /// One for a bzImage, at least one for an ELF file.
    pub(crate) parts: Vec<Part>,
    /// The first instruction, where the kernel wants to be.
    pub(crate) entry: u64,
}

impl<F: Source> Kernel<F> {
    /// Looks at an image, and says what is wrong with it.
    pub fn open(mut file: F) -> Result<Self, Error> {
        let len = length(&mut file, SegmentKind::Kernel)?;
        let mut magic = [0; 4];
        if len < magic.len() as u64 {
            return Err(Error::NotAKernel);
        }
        read_at(&mut file, 0, &mut magic)?;
        if magic == elf::ELFMAG {
            Self::open_elf(file, len)
        } else {
            Self::open_bzimage(file, len)
        }
    }

    fn open_bzimage(mut file: F, len: u64) -> Result<Self, Error> {
        if len < MIN_BYTES {
            return Err(Error::NotAKernel);
        }
        let mut header = setup_header::default();
        read_at(&mut file, SETUP_HEADER, header.as_mut_slice())?;
        if header.boot_flag != BOOT_FLAG || header.header != HEADER_MAGIC {
            return Err(Error::NotAKernel);
        }
        let version = header.version;
        if version < MIN_VERSION {
            return Err(Error::Protocol { version });
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(Error::LoadedLow);
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::Not64Bit);
        }
        // A header ends where its second byte of a jump over it leads to. What is behind is code.
        let end = 0x202 + u64::from(header.jump >> 8);
        if end < SETUP_HEADER + 0x77 {
            return Err(Error::Damaged("the setup header is too short"));
        }
        let known = (end - SETUP_HEADER) as usize;
        if let Some(code) = header.as_mut_slice().get_mut(known..) {
            code.fill(0);
        }

        let sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let offset = (sectors + 1) * SECTOR_BYTES;
        let expected = offset + u64::from(header.syssize) * 16;
        if len < expected {
            return Err(Error::Truncated {
                found: len,
                expected,
            });
        }
        // What is behind, such as a signature, is placed, too: it's in memory that the kernel needs.
        let bytes = len.saturating_sub(offset);
        if bytes <= ENTRY_64 {
            return Err(Error::Damaged("there is nothing behind the setup code"));
        }
        let alignment = u64::from(header.kernel_alignment);
        if !alignment.is_power_of_two() || alignment < PAGE_BYTES {
            return Err(Error::Damaged("kernel_alignment is no power of two"));
        }
        let address = header.pref_address;
        if address % alignment != 0 {
            return Err(Error::Damaged("pref_address is not aligned"));
        }
        let memory_bytes = u64::from(header.init_size).max(bytes);
        if address.checked_add(memory_bytes).is_none() {
            return Err(Error::Damaged("pref_address is beyond all addresses"));
        }
        let part = Part {
            offset,
            bytes,
            address,
            memory_bytes,
        };
        Ok(Self {
            file,
            format: Format::BzImage,
            header,
            parts: vec![part],
            entry: address + ENTRY_64,
        })
    }

    fn open_elf(mut file: F, len: u64) -> Result<Self, Error> {
        type Header = elf::FileHeader64<LittleEndian>;

        let foreign = Error::ForeignElf;
        let cache = ReadCache::new(&mut file);
        let header = Header::parse(&cache).map_err(|_| foreign("it is not of 64 bits"))?;
        let endian = header.endian().map_err(|_| foreign("it is big-endian"))?;
        if header.e_machine(endian) != elf::EM_X86_64 {
            return Err(foreign("it is for another processor"));
        }
        if header.e_type(endian) != elf::ET_EXEC {
            return Err(foreign("it is not linked to run at an address"));
        }
        let entry = header.e_entry(endian);
        let headers = header
            .program_headers(endian, &cache)
            .map_err(|_| Error::Damaged("the program headers are not there"))?;
        let mut parts: Vec<Part> = headers
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .filter(|header| header.p_memsz(endian) > 0 || header.p_filesz(endian) > 0)
            .map(|header| Part {
                offset: header.p_offset(endian),
                bytes: header.p_filesz(endian),
                address: header.p_paddr(endian),
                memory_bytes: header.p_memsz(endian),
            })
            .collect();
        parts.sort_by_key(|part| part.address);

        let mut below = 0;
        for part in &parts {
            let expected = part.offset.checked_add(part.bytes);
            let expected = expected.ok_or(Error::Damaged("a segment is beyond all offsets"))?;
            if len < expected {
                return Err(Error::Truncated {
                    found: len,
                    expected,
                });
            }
            if part.bytes > part.memory_bytes {
                return Err(Error::Damaged(
                    "a segment is larger in the file than in memory",
                ));
            }
            if part.address < below {
                return Err(Error::Damaged("segments overlap"));
            }
            below = part
                .address
                .checked_add(part.memory_bytes)
                .ok_or(Error::Damaged("a segment is beyond all addresses"))?;
        }
        let holds_entry = |part: &Part| entry >= part.address && entry - part.address < part.bytes;
        if !parts.iter().any(holds_entry) {
            return Err(Error::Damaged("the entry point is not in it"));
        }
        // There is none in the file, so it says what is known of all such kernels.
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: MIN_VERSION,
            loadflags: LOADED_HIGH,
            xloadflags: XLF_KERNEL_64,
            kernel_alignment: 0x20_0000,
            cmdline_size: COMMAND_LINE_BYTES,
            ..setup_header::default()
        };
        Ok(Self {
            file,
            format: Format::Elf,
            header,
            parts,
            entry,
        })
    }

    /// Returns how it's packed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the version of the boot protocol, the major one in the upper byte.
    pub fn protocol(&self) -> u16 {
        self.header.version
    }

    /// Returns the longest command line that it takes, in bytes without the zero at its end.
    pub fn command_line_limit(&self) -> usize {
        self.header.cmdline_size as usize
    }

    /// Returns whether it can be moved to any address, also above 4 GiB.
    pub fn is_movable(&self) -> bool {
        let above_4g = self.header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        self.relocatable().is_some() && above_4g
    }

    /// Returns how many bytes it needs when it runs, in all its parts.
    pub fn memory_bytes(&self) -> u64 {
        let bytes = self.parts.iter().map(|part| part.memory_bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Returns the address that an initrd has to end below.
    pub(crate) fn initrd_limit(&self) -> u64 {
        let above_4g = self.header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        match u64::from(self.header.initrd_addr_max) {
            _ if above_4g => u64::MAX,
            0 => INITRD_MAX + 1,
            last => last + 1,
        }
    }

    /// Returns the boundary that it can be moved to, if it can be moved.
    pub(crate) fn relocatable(&self) -> Option<u64> {
        let can = self.format == Format::BzImage && self.header.relocatable_kernel != 0;
        can.then(|| u64::from(self.header.kernel_alignment))
    }

    /// Returns the checksum of a part of the file.
    pub(crate) fn checksum(&mut self, part: &Part) -> Result<Checksum, Error> {
        checksum(&mut self.file, part.offset, part.bytes, SegmentKind::Kernel)
    }
}

/// Returns the length of an image.
pub(crate) fn length(file: &mut impl Source, kind: SegmentKind) -> Result<u64, Error> {
    file.seek(SeekFrom::End(0))
        .map_err(|error| Error::Read(kind, error))
}

fn read_at(file: &mut (impl Read + Seek), offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(bytes))
        .map_err(|error| Error::Read(SegmentKind::Kernel, error))
}

/// Returns the checksum of a part of an image, which is read in small pieces.
pub(crate) fn checksum(
    file: &mut (impl Read + Seek),
    offset: u64,
    bytes: u64,
    kind: SegmentKind,
) -> Result<Checksum, Error> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut read = || {
        file.seek(SeekFrom::Start(offset))?;
        let mut rest = bytes;
        while rest > 0 {
            let len = rest.min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..len];
            file.read_exact(piece)?;
            hasher.update(piece);
            rest -= len as u64;
        }
        Ok(())
    };
    read().map_err(|error| Error::Read(kind, error))?;
    Ok(Checksum(hasher.finalize()))
}
