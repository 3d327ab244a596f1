// SPDX-License-Identifier: GPL-2.0

//! What a CPU sees through page tables of a domain: no simulation, the tables are loaded into CR3.
//!
//! They are not loaded as they are. The root is a page of the domain's, in which the kernel's half
//! of the address space has no place, so a private page stands in for it:
//!
//! ```text
//!  private root            the space's root            its other tables
//!    0    ...                0    ...
//!    i    entry i  ───┐      i    entry i  ─────────►
//!    ...              │      ...              ▲
//!    256  kernel's    └───────────────────────┘
//!    ...
//! ```
//!
//! Only the entries on the way to the addresses in question are copied. The Accessed bits that the
//! CPU sets in the copies are put where they belong afterwards; all others it sets in the tables.
//!
//! The number of levels is the CPU's. It can't be changed, so if a space has another one, only
//! addresses below 2^47 mean the same to both:
//!
//! - A CPU with five levels, a space with four: one more private table below the root.
//! - A CPU with four levels, a space with five: the table behind entry 0 of the space's root is the
//!   root of a space with four.
//!
//! The accesses are those of a kernel, with `CR0.WP` set: leaves for the user and leaves for the
//! kernel can be read alike, and only writable ones can be written.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    bindings,
    prelude::*, //
};

use crate::{
    compat::{
        EOPNOTSUPP,
        EUCLEAN, //
    },
    ffi,
    pure::{
        frame::{
            Mfn,
            PAGE_SHIFT, //
        },
        pv::{
            self,
            bits, //
        },
        table::{
            Table,
            TABLE_BITS, //
        }, //
    }, //
};

/// The most words that one call reads or writes: 1 MiB of them.
///
/// Interrupts are only off for a page of words at a time.
pub(crate) const MAX_WORDS: usize = 1 << 17;

/// Size of a word in bytes.
const WORD_SIZE: u64 = size_of::<u64>() as u64;

/// Bits that an entry may have besides its frame number, and `bits::PSE`.
///
/// Not `GLOBAL`, as the translation would outlive the space. Not `PWT`, `PCD` and `PAT`: frames are
/// in the kernel's linear map, and must not have a second memory type. None that are reserved, as a
/// fault on them would be an oops, and no protection keys.
const ALLOWED: u64 =
    bits::PRESENT | bits::RW | bits::USER | bits::ACCESSED | bits::DIRTY | bits::NX;

/// What the CPU has to do.
pub(crate) enum Access<'a> {
    /// Read words and put them there.
    Read(&'a mut [u64]),
    /// Write these words.
    Write(&'a [u64]),
    /// Read a number of words, for their checksum only.
    Checksum(usize),
}

impl Access<'_> {
    fn nr_words(&self) -> usize {
        match self {
            Self::Read(words) => words.len(),
            Self::Write(words) => words.len(),
            Self::Checksum(nr_words) => *nr_words,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Address of the word.
    pub(crate) address: u64,
    /// The word can be read, so it was the protection. The CPU has tried that too, hence the page
    /// is accessed.
    pub(crate) is_present: bool,
    /// It was a write.
    pub(crate) is_write: bool,
}

/// What the CPU saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Number of words that were read or written: all of them if there was no fault.
    pub(crate) nr_words: usize,
    /// Checksum of these words: the 64-bit FNV-1a of their bytes, in memory order.
    pub(crate) checksum: u64,
    /// Why it wasn't all.
    pub(crate) fault: Option<Fault>,
}

/// Why a CPU can't be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A paravirtualised guest of Xen doesn't own CR3.
    XenPv,
    /// Memory is encrypted, which the entries of a domain say nothing about.
    Encrypted,
    /// The CPU doesn't know `bits::NX`.
    NoNx,
    /// Something else.
    Other,
}

impl Refusal {
    /// Returns the reason in words.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::XenPv => "a Xen PV guest doesn't own CR3",
            Self::Encrypted => "memory is encrypted",
            Self::NoNx => "the CPU has no NX bit",
            Self::Other => "unknown",
        }
    }
}

impl From<Refusal> for Error {
    fn from(_: Refusal) -> Self {
        EOPNOTSUPP
    }
}

/// Returns whether a CPU of this machine can be asked.
///
/// A hypervisor that intercepts writes to CR3 and allows only those that it knows can't be noticed.
pub(crate) fn availability() -> Result<(), Refusal> {
    // SAFETY: It has no requirements.
    match unsafe { ffi::p2m_cpu_refusal() } {
        0 => Ok(()),
        ffi::P2M_CPU_XEN_PV => Err(Refusal::XenPv),
        ffi::P2M_CPU_ENCRYPTED => Err(Refusal::Encrypted),
        ffi::P2M_CPU_NO_NX => Err(Refusal::NoNx),
        _ => Err(Refusal::Other),
    }
}

/// Returns the number of levels of the CPU's page tables, 4 or 5.
pub(crate) fn nr_levels() -> usize {
    // SAFETY: It has no requirements.
    // CAST: A small number.
    unsafe { ffi::p2m_cpu_nr_levels() as usize }
}

/// What a frame of a domain is used for, as the page types of Xen say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Data, that anybody may write.
    Data,
    /// A page table. Nobody can change it but who holds the right to, and CPUs, which set Accessed
    /// and Dirty bits.
    Table,
}

/// Page tables of a domain.
#[derive(Clone, Copy)]
pub(crate) struct PageTables<'a> {
    /// The frame of the root.
    pub(crate) root: Mfn,
    /// Number of levels, 4 or 5.
    pub(crate) nr_levels: usize,
    /// Tells what a frame is used for, if it's the domain's.
    pub(crate) frames: &'a dyn Fn(Mfn) -> Option<Use>,
}

impl PageTables<'_> {
    /// Returns the number of levels that the CPU and the space have in common.
    fn common_levels(&self) -> usize {
        self.nr_levels.min(nr_levels())
    }

    /// Returns the address that all that a CPU of this machine can be asked about are below.
    pub(crate) fn end(&self) -> u64 {
        // The upper half is the kernel's.
        1 << (shift(self.common_levels()) - 1)
    }

    /// Checks what the CPU will find on its way to a page: tables that nobody can change, and a
    /// frame of the domain, which isn't a table if it can be written.
    ///
    /// Where nothing is mapped, or only for reading, there will be a fault, so that's fine.
    ///
    /// # Safety
    ///
    /// As for [`run()`].
    unsafe fn check(&self, address: u64, is_write: bool) -> Result {
        let mut mfn = self.root;
        let mut is_write = is_write;
        for level in (0..self.nr_levels).rev() {
            if (self.frames)(mfn) != Some(Use::Table) {
                return Err(EUCLEAN);
            }
            // SAFETY: It's a table of the domain.
            let entry = unsafe { table(mfn) }.load(address >> shift(level));
            if entry & bits::PRESENT == 0 {
                return Ok(());
            }
            let is_leaf = pv::is_leaf(level, entry);
            let mut allowed = ALLOWED | pv::frame_mask(level, entry);
            let mut number = pv::frame(level, entry);
            if is_leaf && level > 0 {
                if level > max_leaf_level() {
                    return Err(EUCLEAN);
                }
                allowed |= bits::PSE;
                // OVERFLOW: The low bits of the frame of a large leaf are 0.
                number += address >> PAGE_SHIFT & (pv::span_pages(level) - 1);
            }
            if entry & !allowed != 0 {
                return Err(EUCLEAN);
            }
            is_write &= entry & bits::RW != 0;
            mfn = Mfn::new(number).ok_or(EUCLEAN)?;
            if is_leaf {
                break;
            }
        }
        match (self.frames)(mfn) {
            Some(Use::Table) if !is_write => Ok(()),
            Some(Use::Data) => Ok(()),
            _ => Err(EUCLEAN),
        }
    }
}

/// Returns the position of the bits of an address that select an entry at `level`.
const fn shift(level: usize) -> u32 {
    // CAST: A small number.
    PAGE_SHIFT + TABLE_BITS * level as u32
}

/// Returns the highest level that may have leaves.
fn max_leaf_level() -> usize {
    // SAFETY: It has no requirements.
    if unsafe { ffi::p2m_cpu_has_gbpages() } {
        2
    } else {
        1
    }
}

/// Returns the table that a frame is.
///
/// # Safety
///
/// The frame is memory that is in use, and stays so for `'a`. All accesses to it are atomic.
unsafe fn table<'a>(mfn: Mfn) -> &'a Table {
    // SAFETY: All memory is in the linear map. The rest are the safety requirements of this
    // function.
    unsafe { &*ffi::p2m_cpu_table(mfn.get()).cast::<Table>() }
}

/// The private tables: a root, and one that may stand below it.
///
/// They are a pair of pages, as all roots are under page table isolation: bit 12 of CR3 then tells
/// which of them is loaded, and must be 0 for the kernel's.
///
/// # Invariants
///
/// `first` is the first of two pages with an even frame number, which are ours.
struct PrivateTables {
    first: NonNull<Table>,
}

/// log2 of the number of private tables.
const ORDER: u32 = 1;

impl PrivateTables {
    /// Makes empty ones.
    fn new() -> Result<Self> {
        const GFP: bindings::gfp_t = bindings::GFP_KERNEL | 1 << bindings::___GFP_ZERO_BIT;
        // SAFETY: It has no requirements in a context that may sleep.
        let address = unsafe { bindings::get_free_pages_noprof(GFP, ORDER) };
        // INVARIANT: Blocks of pages are aligned to their size.
        let first = NonNull::new(address as *mut Table).ok_or(ENOMEM)?;
        Ok(Self { first })
    }

    /// Returns the root.
    fn root(&self) -> &Table {
        // SAFETY: By the type invariants, it's a page. It's initialised, and all accesses to it are
        // atomic, except those by `p2m_cpu_access()`, while nobody else uses it.
        unsafe { self.first.as_ref() }
    }

    /// Links the other table at entry 0 of the root, and returns it.
    fn below(&self) -> &Table {
        // SAFETY: By the type invariants, there is a second page. The rest is as above.
        let below = unsafe { self.first.add(1).as_ref() };
        // SAFETY: A page of the linear map.
        let mfn = unsafe { ffi::p2m_cpu_table_mfn(ptr::from_ref(below).cast()) };
        // Who may do what is up to the entries below.
        let flags = bits::PRESENT | bits::RW | bits::USER;
        self.root().store(0, mfn << PAGE_SHIFT | flags);
        below
    }
}

impl Drop for PrivateTables {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the pages are ours, and no CPU has them in CR3.
        unsafe { bindings::free_pages(self.first.as_ptr() as c_ulong, ORDER) };
    }
}

/// Checksum of nothing.
const CHECKSUM_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Vector of the page fault.
const TRAP_PAGE_FAULT: u32 = 14;

/// Has a CPU access words through page tables, from `address` on.
///
/// It ends early at the first fault. Fails with
///
/// - `EOPNOTSUPP` where it isn't [available](availability),
/// - `EINVAL` if `address` isn't a multiple of 8, if there are no words, or for a number of levels
///   that no CPU has,
/// - `E2BIG` if there are more than [`MAX_WORDS`],
/// - `ERANGE` if the words aren't all below [`PageTables::end()`],
/// - `EUCLEAN` if the CPU would find what it must not find: a frame that isn't the domain's, a table
///   that isn't one or that could be written, a memory type, a bit that no entry should have,
/// - `EIO` after a machine check,
/// - `ENOMEM`.
///
/// The CPU sets Accessed and Dirty bits. Real ones may also set Accessed bits on ways that they only
/// thought of going.
///
/// # Safety
///
/// Until it returns,
///
/// - frames for which `tables.frames` tells a use are pages of memory that are in use and stay so,
///   and that nobody but userspace and CPUs through page tables relies on,
/// - those that are tables are only changed by CPUs, which set Accessed and Dirty bits.
pub(crate) unsafe fn run(
    tables: &PageTables<'_>,
    address: u64,
    access: Access<'_>,
) -> Result<Seen> {
    availability()?;
    let is_write = access.is_write();
    // CAST: Both are 64 bits wide.
    let nr_words = access.nr_words() as u64;
    if nr_words == 0 || address % WORD_SIZE != 0 || !matches!(tables.nr_levels, 4 | 5) {
        return Err(EINVAL);
    }
    if nr_words > MAX_WORDS as u64 {
        return Err(E2BIG);
    }
    let last = address
        .checked_add((nr_words - 1) * WORD_SIZE)
        .filter(|&last| last < tables.end())
        .ok_or(ERANGE)?;
    for page in address >> PAGE_SHIFT..=last >> PAGE_SHIFT {
        // SAFETY: By the safety requirements of this function.
        unsafe { tables.check(page << PAGE_SHIFT, is_write)? };
    }

    let mut done = ffi::p2m_cpu_access {
        root: ptr::null_mut(),
        words: match access {
            Access::Read(words) => words.as_mut_ptr(),
            // They are only read.
            Access::Write(words) => words.as_ptr().cast_mut(),
            Access::Checksum(_) => ptr::null_mut(),
        },
        address,
        nr_words,
        nr_done: 0,
        checksum: CHECKSUM_START,
        trap: 0,
        is_write,
        is_readable: false,
    };
    // SAFETY: By the safety requirements of this function, as all tables on the way are checked.
    unsafe { load_and_access(tables, last, &mut done)? };

    let fault = Fault {
        // OVERFLOW: The address of a word of the range.
        address: address + done.nr_done * WORD_SIZE,
        is_present: done.is_readable,
        is_write,
    };
    Ok(Seen {
        // CAST: At most `nr_words`, which was one.
        nr_words: done.nr_done as usize,
        checksum: done.checksum,
        fault: match done.trap {
            0 => None,
            TRAP_PAGE_FAULT => Some(fault),
            _ => return Err(EIO),
        },
    })
}

/// Makes the private tables for addresses up to `last`, and has a CPU use them.
///
/// # Safety
///
/// As for [`run()`]. All tables on the way to the addresses are tables of the domain, and the CPU
/// may find the frames that they lead to. `access` is valid but for its root.
unsafe fn load_and_access(
    tables: &PageTables<'_>,
    last: u64,
    access: &mut ffi::p2m_cpu_access,
) -> Result {
    let common = tables.common_levels();
    // SAFETY: It's a table of the domain, by the safety requirements of this function.
    let mut top = unsafe { table(tables.root) };
    let mut rights = !0;
    if common < tables.nr_levels {
        // What a CPU with that many levels would do, as all addresses in question begin with 0.
        let entry = top.load(0);
        if entry & bits::PRESENT == 0 {
            access.trap = TRAP_PAGE_FAULT;
            return Ok(());
        }
        top.update(0, |entry| entry | bits::ACCESSED);
        // What this entry doesn't allow, none below it can.
        if entry & bits::RW == 0 {
            rights &= !bits::RW;
        }
        let mfn = Mfn::new(pv::frame(common, entry)).ok_or(EUCLEAN)?;
        // SAFETY: As above.
        top = unsafe { table(mfn) };
    }

    let private = PrivateTables::new()?;
    let copy = if common < nr_levels() {
        private.below()
    } else {
        private.root()
    };
    // The addresses are in the lower half, so these are too.
    let indices = access.address >> shift(common - 1)..=last >> shift(common - 1);
    for index in indices.clone() {
        copy.store(index, top.load(index) & rights);
    }
    access.root = ptr::from_ref(private.root()).cast_mut().cast();
    // SAFETY: The root leads to nothing but what the safety requirements of this function allow, and
    // to the kernel's half, when that is filled in.
    unsafe { ffi::p2m_cpu_access(access) };

    for index in indices {
        if copy.load(index) & bits::ACCESSED != 0 {
            top.update(index, |entry| entry | bits::ACCESSED);
        }
    }
    Ok(())
}
