// SPDX-License-Identifier: GPL-2.0

//! The ABI.
//!
//! C header: [`edu/p2m_edu.h`](p2m_edu.h)

use kernel::prelude::*;

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

use crate::ioctl::commands;
pub(crate) use generated::*;

commands! {
    type P2M_EDU_IOCTL_TYPE;
    p2m_edu_info = P2M_EDU_CMD_INFO, 48, 0;
    p2m_edu_copy = P2M_EDU_CMD_COPY, 64, P2M_EDU_WRITE | P2M_EDU_NAIVE | P2M_EDU_USER | P2M_EDU_CPU;
}
