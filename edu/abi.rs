// SPDX-License-Identifier: GPL-2.0

//! The ABI.
//!
//! C header: [`edu/p2m_edu.h`](p2m_edu.h)

use kernel::{
    ioctl::_IO,
    prelude::*, //
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

    include!(env!("P2M_EDU_UAPI_GENERATED"));
}

use crate::ioctl::Command;
pub(crate) use generated::*;

macro_rules! commands {
    ($($command:ident = $nr:ident, $min_size:literal, $flags:expr;)*) => {$(
        impl Command for $command {
            const NUMBER: u32 = _IO(P2M_EDU_IOCTL_TYPE, $nr);
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
    p2m_edu_info = P2M_EDU_CMD_INFO, 48, 0;
    p2m_edu_copy = P2M_EDU_CMD_COPY, 64, P2M_EDU_WRITE | P2M_EDU_NAIVE | P2M_EDU_USER | P2M_EDU_CPU;
}
