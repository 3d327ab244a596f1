// SPDX-License-Identifier: GPL-2.0

//! The ABI.
//!
//! C header: [`include/uapi/p2m_crash.h`](../include/uapi/p2m_crash.h)

use kernel::{
    ioctl::_IO,
    prelude::*, //
};

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

pub(crate) use crate::ioctl::{
    handle,
    user_slice,
    Command, //
};
pub(crate) use generated::*;

macro_rules! commands {
    ($($command:ident = $nr:ident, $min_size:literal, $flags:expr;)*) => {$(
        impl Command for $command {
            const NUMBER: u32 = _IO(P2M_CRASH_IOCTL_TYPE, $nr);
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

commands! {
    p2m_crash_info = P2M_CRASH_CMD_INFO, 56, 0;
    p2m_crash_load = P2M_CRASH_CMD_LOAD, 80, P2M_CRASH_HOLD_ALL | P2M_CRASH_IOMMU;
    p2m_crash_unload = P2M_CRASH_CMD_UNLOAD, 8, 0;
    p2m_crash_status = P2M_CRASH_CMD_STATUS, 72, 0;
}

static_assert!(core::mem::size_of::<p2m_crash_segment>() == 24);
// A window is what one entry of level 2 stands for.
static_assert!(P2M_CRASH_MAX_MEMORY as u64 == pv::span_pages(2) << 12);
