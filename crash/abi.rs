// SPDX-License-Identifier: GPL-2.0

//! The ABI.
//!
//! C header: [`include/uapi/p2m_crash.h`](../include/uapi/p2m_crash.h)

use kernel::prelude::*;

use crate::pure::pv;

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

    include!(env!("P2M_CRASH_UAPI_GENERATED"));
}

use crate::ioctl::commands;
pub(crate) use crate::ioctl::user_slice;
pub(crate) use generated::*;

commands! {
    type P2M_CRASH_IOCTL_TYPE;
    p2m_crash_info = P2M_CRASH_CMD_INFO, 56, 0;
    p2m_crash_load = P2M_CRASH_CMD_LOAD, 80, P2M_CRASH_HOLD_ALL | P2M_CRASH_IOMMU | P2M_CRASH_LOW_MEMORY;
    p2m_crash_unload = P2M_CRASH_CMD_UNLOAD, 8, 0;
    p2m_crash_status = P2M_CRASH_CMD_STATUS, 72, 0;
    p2m_crash_low = P2M_CRASH_CMD_LOW, 32, 0;
}

static_assert!(core::mem::size_of::<p2m_crash_segment>() == 24);
static_assert!(core::mem::size_of::<p2m_crash_range>() == 16);
static_assert!(core::mem::size_of::<p2m_crash_frames>() == 16);
// A window is what one entry of level 2 stands for.
static_assert!(P2M_CRASH_MAX_MEMORY as u64 == pv::span_pages(2) << 12);
