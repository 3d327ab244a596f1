// SPDX-License-Identifier: GPL-2.0

//! The ABI, and how structures cross it.
//!
//! C header: [`include/uapi/p2m.h`](../include/uapi/p2m.h)

use kernel::{
    ioctl::_IO,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader, //
    }, //
};

use zerocopy::{
    Immutable,
    KnownLayout, //
};

use crate::compat::EOPNOTSUPP;
use crate::pure::{
    dma,
    entry,
    frame::{
        BadRange,
        Pfn,
        PfnRange,
        PAGE_SIZE, //
    },
    map::header,
    pv::{
        self,
        bits, //
    },
    table::NoMemory, //
};

/// What bindgen makes of the header.
#[allow(dead_code, missing_docs, non_camel_case_types, unreachable_pub)]
#[allow(clippy::all)]
mod generated {
    use kernel::ffi;
    use zerocopy_derive::{
        FromBytes,
        Immutable,
        IntoBytes,
        KnownLayout, //
    };

    include!(env!("P2M_UAPI_GENERATED"));
}

pub(crate) use generated::*;

/// A structure that an ioctl takes.
///
/// # Safety of extension
///
/// It begins with its size in bytes. It grows only at its end, and then `MIN_SIZE` stays.
pub(crate) trait Command: FromBytes + IntoBytes + KnownLayout + Immutable {
    /// The number of the ioctl.
    const NUMBER: u32;

    /// The size of the first version of the structure.
    const MIN_SIZE: usize;

    /// The flags that are known.
    const FLAGS: u32;

    /// Returns the flags of the command.
    fn flags(&self) -> u32;
}

macro_rules! commands {
    ($($command:ident = $nr:ident, $min_size:literal, $flags:expr;)*) => {$(
        impl Command for $command {
            const NUMBER: u32 = _IO(P2M_IOCTL_TYPE, $nr);
            const MIN_SIZE: usize = $min_size;
            const FLAGS: u32 = $flags;

            fn flags(&self) -> u32 {
                self.flags
            }
        }

        static_assert!(core::mem::offset_of!($command, size) == 0);
        static_assert!(core::mem::offset_of!($command, flags) == 4);
        static_assert!(core::mem::size_of::<$command>() >= $min_size);
        static_assert!(core::mem::size_of::<$command>() % 8 == 0);
    )*};
}

/// Flags of a region.
const REGION_FLAGS: u32 = P2M_REGION_FIXED
    | P2M_REGION_ON_DEMAND
    | P2M_REGION_GUARDED
    | P2M_REGION_NODE
    | P2M_REGION_RANGE
    | P2M_REGION_COLOUR;

commands! {
    p2m_info = P2M_CMD_INFO, 72, 0;
    p2m_stat = P2M_CMD_STAT, 96, 0;
    p2m_region_create = P2M_CMD_REGION_CREATE, 72, REGION_FLAGS;
    p2m_region_destroy = P2M_CMD_REGION_DESTROY, 16, 0;
    p2m_region_list = P2M_CMD_REGION_LIST, 48, 0;
    p2m_translate = P2M_CMD_TRANSLATE, 32, P2M_TRANSLATE_M2P;
    p2m_runs = P2M_CMD_RUNS, 48, 0;
    p2m_space_create = P2M_CMD_SPACE_CREATE, 72, 0;
    p2m_space_destroy = P2M_CMD_SPACE_DESTROY, 16, 0;
    p2m_space_map = P2M_CMD_SPACE_MAP, 48, 0;
    p2m_space_unmap = P2M_CMD_SPACE_UNMAP, 40, P2M_UNMAP_ALL;
    p2m_space_change = P2M_CMD_SPACE_CHANGE, 48, P2M_CHANGE_FRAMES;
    p2m_space_walk = P2M_CMD_SPACE_WALK, 224, 0;
    p2m_space_dump = P2M_CMD_SPACE_DUMP, 48, 0;
    p2m_space_access = P2M_CMD_SPACE_ACCESS, 64, 0;
    p2m_space_list = P2M_CMD_SPACE_LIST, 32, 0;
    p2m_release = P2M_CMD_RELEASE, 40, 0;
    p2m_populate = P2M_CMD_POPULATE, 40, 0;
    p2m_move = P2M_CMD_MOVE, 64, 0;
    p2m_evacuate = P2M_CMD_EVACUATE, 48, P2M_EVACUATE_KEEP_OUT | P2M_EVACUATE_READMIT;
    p2m_contiguous = P2M_CMD_CONTIGUOUS, 32, 0;
    p2m_exchange = P2M_CMD_EXCHANGE, 48, 0;
    p2m_audit = P2M_CMD_AUDIT, 88, 0;
    p2m_foreign_map = P2M_CMD_FOREIGN_MAP, 48, 0;
    p2m_foreign_unmap = P2M_CMD_FOREIGN_UNMAP, 32, 0;
    p2m_identity = P2M_CMD_IDENTITY, 32, 0;
    p2m_fail_nth = P2M_CMD_FAIL_NTH, 24, 0;
    p2m_guard_check = P2M_CMD_GUARD_CHECK, 72, P2M_GUARD_REFILL;
    p2m_dma_plan = P2M_CMD_DMA_PLAN, 112, 0;
    p2m_dma_buf_export = P2M_CMD_DMA_BUF_EXPORT, 32, 0;
}

// What the header says and the pure part knows, too.
// CAST: bindgen makes signed constants of words with the highest bit set.
static_assert!(P2M_ENTRY_INVALID as u64 == entry::INVALID);
static_assert!(P2M_ENTRY_GUARD as u64 == entry::GUARD);
static_assert!(P2M_ENTRY_FOREIGN as u64 == entry::FOREIGN);
static_assert!(P2M_ENTRY_IDENTITY == entry::IDENTITY);
static_assert!(P2M_MAX_PFN as u64 == Pfn::LIMIT);
static_assert!(core::mem::offset_of!(p2m_header, generation) as u64 == 8 * header::GENERATION);
static_assert!(core::mem::offset_of!(p2m_header, end_pfn) as u64 == 8 * header::END_PFN);
static_assert!(core::mem::offset_of!(p2m_header, end_mfn) as u64 == 8 * header::END_MFN);
static_assert!(
    core::mem::offset_of!(p2m_header, m2p_generation) as u64 == 8 * header::M2P_GENERATION
);

// The bits of a leaf are those of the processor.
// CAST: bindgen makes the smallest type of each constant.
static_assert!(P2M_PTE_RW as u64 == bits::RW);
static_assert!(P2M_PTE_USER as u64 == bits::USER);
static_assert!(P2M_PTE_PWT as u64 == bits::PWT);
static_assert!(P2M_PTE_PCD as u64 == bits::PCD);
static_assert!(P2M_PTE_ACCESSED as u64 == bits::ACCESSED);
static_assert!(P2M_PTE_DIRTY as u64 == bits::DIRTY);
static_assert!(P2M_PTE_PAT as u64 == bits::PAT);
static_assert!(P2M_PTE_NX as u64 == bits::NX);
static_assert!(P2M_MAX_STEPS as usize == pv::MAX_LEVELS);

static_assert!(P2M_DMA_MASK == dma::flags::MASK);
static_assert!(P2M_DMA_STRADDLE == dma::flags::STRADDLE);
static_assert!(P2M_DMA_ALIGNMENT == dma::flags::ALIGNMENT);
static_assert!(P2M_DMA_FOREIGN == dma::flags::FOREIGN);
static_assert!(P2M_DMA_IDENTITY == dma::flags::IDENTITY);
static_assert!(P2M_DMA_UNBACKED == dma::flags::UNBACKED);
static_assert!(P2M_DMA_BOUNCE == dma::flags::BOUNCE);

impl From<BadRange> for Error {
    fn from(error: BadRange) -> Self {
        match error {
            BadRange::Empty => EINVAL,
            BadRange::Overflow => EOVERFLOW,
        }
    }
}

impl From<dma::BadLimits> for Error {
    fn from(_: dma::BadLimits) -> Self {
        EINVAL
    }
}

impl From<NoMemory> for Error {
    fn from(NoMemory: NoMemory) -> Self {
        ENOMEM
    }
}

/// Makes a range of what userspace gave.
pub(crate) fn range(start: u64, nr_pages: u64) -> Result<PfnRange> {
    Ok(PfnRange::new(start, nr_pages)?)
}

/// Makes a user pointer of what userspace gave.
pub(crate) fn user_ptr(address: u64) -> Result<UserPtr> {
    Ok(UserPtr::from_addr(
        usize::try_from(address).map_err(|_| EFAULT)?,
    ))
}

/// Returns the bytes from `address` on, `nr` times the size of `T`, if that is not too many.
pub(crate) fn user_slice<T>(address: u64, nr: u32) -> Result<UserSlice> {
    let length = usize::try_from(nr)
        .ok()
        .and_then(|nr| nr.checked_mul(core::mem::size_of::<T>()))
        .ok_or(EOVERFLOW)?;
    Ok(UserSlice::new(user_ptr(address)?, length))
}

/// Reads a command, handles it, and writes back what it says then.
///
/// The structure may be older or newer than ours, as with `copy_struct_from_user()`. It is written
/// back after an error as well, so that it tells how far the command got.
pub(crate) fn handle<C: Command>(
    arg: UserPtr,
    handler: impl FnOnce(&mut C) -> Result,
) -> Result<isize> {
    let mut size = 0u32;
    UserSlice::new(arg, core::mem::size_of::<u32>())
        .reader()
        .read_slice(size.as_mut_bytes())?;
    let size = usize::try_from(size).map_err(|_| E2BIG)?;
    if size < C::MIN_SIZE {
        return Err(EINVAL);
    }
    if size > PAGE_SIZE {
        return Err(E2BIG);
    }
    let known = size.min(core::mem::size_of::<C>());

    let mut command = C::new_zeroed();
    let mut reader = UserSlice::new(arg, size).reader();
    let bytes = command.as_mut_bytes().get_mut(..known).ok_or(EINVAL)?;
    reader.read_slice(bytes)?;
    // The size was read twice, and only the first one was checked.
    // CAST: The size is at most that of a page.
    if let Some(field) = bytes.first_chunk_mut() {
        *field = (size as u32).to_ne_bytes();
    }
    check_zero(reader)?;
    if command.flags() & !C::FLAGS != 0 {
        return Err(EOPNOTSUPP);
    }

    // What can't say what it did must not do it.
    write_back(arg, known, &command)?;
    let result = handler(&mut command);
    let written = write_back(arg, known, &command);
    result.and(written).map(|()| 0)
}

/// Writes the part of a structure that userspace knows.
fn write_back<C: Command>(arg: UserPtr, known: usize, command: &C) -> Result {
    let bytes = command.as_bytes().get(..known).ok_or(EINVAL)?;
    UserSlice::new(arg, known).writer().write_slice(bytes)
}

/// Checks that the rest of a structure, which we don't know, is zero.
fn check_zero(mut reader: UserSliceReader) -> Result {
    let mut chunk = [0u8; 64];
    while !reader.is_empty() {
        let len = reader.len().min(chunk.len());
        let bytes = chunk.get_mut(..len).ok_or(EINVAL)?;
        reader.read_slice(bytes)?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}
