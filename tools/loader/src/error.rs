// SPDX-License-Identifier: GPL-2.0

//! Why a kernel can't be loaded.

use std::io;

use crate::segment::SegmentKind;

/// An image that is no good, or memory that it doesn't fit into. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image can't be read.
    #[error("cannot read the {0}")]
    Read(SegmentKind, #[source] io::Error),
    /// It's neither of the formats.
    #[error("this is no kernel: neither a bzImage nor an ELF file")]
    NotAKernel,
    /// It ends before it should.
    #[error("the kernel is truncated: {found} bytes are there of {expected}")]
    Truncated {
        /// How many it has.
        found: u64,
        /// How many it should have.
        expected: u64,
    },
    /// A bzImage that is too old.
    #[error(
        "the kernel has boot protocol {}.{:02}, needed is 2.12 or later",
        version >> 8, version & 0xff
    )]
    Protocol {
        /// The version, the major one in the upper byte.
        version: u16,
    },
    /// A zImage.
    #[error("the kernel is a zImage, which has to be below 1 MiB; a bzImage is needed")]
    LoadedLow,
    /// A bzImage of a 32-bit kernel.
    #[error("the kernel has no 64-bit entry point (XLF_KERNEL_64)")]
    Not64Bit,
    /// A header with a value that can't be.
    #[error("the kernel is damaged: {0}")]
    Damaged(&'static str),
    /// An ELF file for something else.
    #[error("the ELF file is no x86-64 kernel: {0}")]
    ForeignElf(&'static str),
    /// There is no memory at all.
    #[error("there is no memory to load anything into")]
    NoMemory,
    /// A piece has to be at one address, and can't.
    #[error("the {kind} has to be at {address:#x}, where {bytes:#x} bytes are not free")]
    Occupied {
        /// What.
        kind: SegmentKind,
        /// Where.
        address: u64,
        /// Size.
        bytes: u64,
    },
    /// A piece fits nowhere.
    #[error("the {kind} needs {bytes} bytes below {below:#x} and the memory has no such room")]
    DoesNotFit {
        /// What.
        kind: SegmentKind,
        /// Size.
        bytes: u64,
        /// The end of where it may be.
        below: u64,
    },
    /// The command line is too long for this kernel.
    #[error("the command line has {bytes} bytes, this kernel takes {limit}")]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
        /// The longest one.
        limit: usize,
    },
    /// The command line has characters that it can't have.
    #[error("the command line has a character that is not printable ASCII")]
    CommandLine,
    /// There is nothing in the initrd.
    #[error("the initrd is empty")]
    EmptyInitrd,
    /// More ranges than `boot_params` has room for.
    #[error("the memory is in {0} pieces, boot_params has room for 128")]
    TooManyRanges(usize),
    /// The crate that places kernels refused.
    #[error("cannot place the kernel")]
    Place(#[from] linux_loader::loader::Error),
    /// The memory refused.
    #[error("cannot write the {0} to memory")]
    Write(SegmentKind, #[source] vm_memory::GuestMemoryError),
}
