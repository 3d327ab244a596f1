// SPDX-License-Identifier: GPL-2.0

//! The ABI.
//!
//! C header: [`include/uapi/p2m.h`](../include/uapi/p2m.h)

use kernel::prelude::*;

use crate::pure::{
    dma,
    entry,
    frame::{
        BadRange,
        Pfn,
        PfnRange, //
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

use crate::ioctl::commands;
pub(crate) use crate::ioctl::user_slice;
pub(crate) use generated::*;

/// Flags of a region.
const REGION_FLAGS: u32 = P2M_REGION_FIXED
    | P2M_REGION_ON_DEMAND
    | P2M_REGION_GUARDED
    | P2M_REGION_NODE
    | P2M_REGION_RANGE
    | P2M_REGION_COLOUR;

commands! {
    type P2M_IOCTL_TYPE;
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
    p2m_collapse = P2M_CMD_COLLAPSE, 56, 0;
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
