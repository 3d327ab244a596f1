// SPDX-License-Identifier: GPL-2.0

//! Places a Linux kernel in pseudo-physical memory, and reads it back from the machine.
//!
//! This is the one loader of p2m. It knows neither KVM nor `/dev/p2m`: memory is whatever
//! [`vm_memory`] has a backend for, such as a mapping of a region, and the machine is whatever
//! implements [`Machine`]. What it makes is what the 64-bit boot protocol of x86 asks for
//! (Documentation/arch/x86/boot.rst): the kernel, the initial RAM disk and the command line,
//! `boot_params` with a map of the memory, page tables that map all of it where it is, and a table of
//! segment descriptors.
//!
//! ```
//! use p2m_loader::{Images, Kernel, load};
//! use std::fs::File;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), p2m_loader::Error> {
//! # let Ok(memory) = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)]) else {
//! #     return Ok(());
//! # };
//! let not_a_kernel = std::io::Cursor::new(vec![0; 4096]);
//! assert!(Kernel::open(not_a_kernel).is_err());
//! # let Ok(file) = File::open("/nonexistent/vmlinuz") else { return Ok(()) };
//! let mut kernel = Kernel::open(file)?;
//! let loaded = load(
//!     &memory,
//!     &mut kernel,
//!     &mut Images {
//!         initrd: None::<&mut File>,
//!         command_line: "console=ttyS0",
//!         tables: Vec::new(),
//!         root_pointer: None,
//!     },
//! )?;
//! println!("starts at {:#x}", loaded.entry.instruction);
//! # Ok(())
//! # }
//! ```
//!
//! Every [`Segment`] has a checksum of what was to be placed, made from the image and not from the
//! memory. [`read_back()`] follows the P2M of every page of a segment to its machine frame, and makes
//! the checksum of what is there.

#![allow(clippy::single_range_in_vec_init)] // Ranges of addresses are meant as such.

mod boot;
mod error;
mod image;
mod layout;
mod load;
mod readback;
mod segment;

pub use boot::{
    E820_ACPI, E820_NVS, E820_RAM, E820_RESERVED, Entry, HIGH_BIOS, MemoryRange, memory_map,
};
pub use error::Error;
pub use image::{Format, Kernel};
pub use load::{Images, InitrdPlace, Loaded, Plan, Table, load, load_as};
pub use readback::{Machine, ReadBack, ReadBackError, read_back};
pub use segment::{Checksum, Segment, SegmentKind};

/// Size of a page in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// What can be an image: a file, or bytes in memory.
pub trait Source: std::io::Read + std::io::Seek + vm_memory::ReadVolatile {}

impl<T: std::io::Read + std::io::Seek + vm_memory::ReadVolatile> Source for T {}
