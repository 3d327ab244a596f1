// SPDX-License-Identifier: GPL-2.0

//! Pseudo-physical memory by `/dev/p2m`.
//!
//! A [`Domain`] is a pseudo-physical space. Its pages are numbered by [`Pfn`]s and look like one
//! piece, whatever machine frames ([`Mfn`]s) they are in. The P2M is the map from PFN to MFN, the M2P
//! the map back.
//!
//! ```no_run
//! use p2m::{Access, Domain, Policy, Populate};
//! use std::sync::atomic::Ordering;
//!
//! let domain = Domain::open()?;
//! // A MiB of PFNs without a gap, and no two of its machine frames are neighbours.
//! let region = domain.region(256).policy(Policy::SCATTER).seed(7).create()?;
//! let memory = domain.map(region.range(), Access::ReadWrite, Populate::Lazily)?;
//! if let Some(words) = memory.words() {
//!     words[0].store(1, Ordering::Relaxed);
//! }
//! for run in domain.runs(region.range()) {
//!     let run = run?;
//!     println!("PFN {} -> {}, {} pages", run.pfn, run.entry, run.nr_pages);
//! }
//! # Ok::<(), p2m::Error>(())
//! ```
//!
//! The same question has several answers here: [`Domain::translate()`] asks the module by ioctl,
//! [`Domain::read_entries()`] by read(2), [`Domain::runs()`] for the whole layout; [`TableView`]
//! looks into the module's own tables without a system call; and [`Pagemap`] asks the rest of the
//! kernel, which doesn't know of the P2M at all.
//!
//! The machine frames can change while the memory is in use: see [`Domain::move_pages()`],
//! [`Domain::make_contiguous()`] and their like, and [`Domain::audit()`].
//!
//! A [`Space`] has page tables, which a backend makes out of pseudo-physical addresses:
//!
//! ```no_run
//! # use p2m::{Address, Domain, Level, Pfn, PteFlags};
//! # let domain = Domain::open()?;
//! # let region = domain.region(256).create()?;
//! // The last 16 pages are for the tables.
//! let space = domain.space("p2m", 4, Pfn(240)..Pfn(256))?;
//! let flags = PteFlags::RW | PteFlags::USER | PteFlags::NX;
//! space.map(Address(0x40_0000), Pfn(0)..Pfn(64), flags, Level(0))?;
//! for step in space.walk(Address(0x40_5000))?.steps {
//!     println!("{}: {:#x} is {:#x}", step.level, step.raw, step.val);
//! }
//! # Ok::<(), p2m::Error>(())
//! ```

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the offsets of /dev/p2m need 64-bit Linux");

mod abi;
mod dma;
mod dma_buf;
mod domain;
mod error;
mod foreign;
mod frame;
mod live;
mod mapping;
mod pagemap;
mod paging;
mod space;
mod table;
mod words;

pub use dma::{Bytes, DmaFlags, DmaLimits, DmaPlan, DmaSegment, plan_dma};
pub use dma_buf::DmaBuf;
pub use domain::{Domain, Info, RegionBuilder, Runs, Stat};
pub use error::{Error, Operation, Result};
pub use foreign::Slot;
pub use frame::{
    Colour, Constraint, Entry, EntryKind, Mfn, MfnRange, Pfn, Policy, Region, Run, UnknownPolicy,
    pages,
};
pub use live::{Afterwards, Audit, Broken, Guards, Moved, OnBroken};
pub use mapping::{Access, Mapping, Populate};
pub use pagemap::Pagemap;
pub use paging::{Address, Level, PteFlags, Span, Step, TableEntry, UnknownFlag, Walk};
pub use space::{Accessed, Fault, Space, SpaceId, SpaceInfo, Spans};
pub use table::TableView;
pub use words::Word;

/// The device node.
pub const DEVICE: &str = p2m_abi::text(abi::P2M_DEVICE);
