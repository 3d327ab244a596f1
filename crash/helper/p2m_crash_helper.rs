// SPDX-License-Identifier: GPL-2.0

//! For the crash kernel, that `p2m_crash` has started: what it can't know by itself, as it's like any
//! other kernel.
//!
//! - Its memory is frames of the old kernel's that were free. In `/proc/vmcore` they are zeroes
//!   ([`hidden`]), not what is in them by now.
//! - Where no IOMMU gives devices its memory, they have the bus addresses of the machine, and it has a
//!   little memory that is at the same addresses. Devices are kept to that ([`bound`]), so the DMA API
//!   bounces what is elsewhere.
//!
//! It has to be loaded before the drivers whose devices are to work. The crash kernel's command line has
//! its parameters.

use kernel::prelude::*;

use crate::{
    bound::Bound,
    compat::parameter,
    hidden::Hidden, //
};

mod bound;
#[allow(dead_code, unused_imports)]
#[path = "../../rust/compat.rs"]
mod compat;
mod ffi;
mod hidden;

module! {
    type: Helper,
    name: "p2m_crash_helper",
    authors: ["The p2m engineers"],
    description: "Keeps a crash kernel's devices to the memory that they reach",
    license: "GPL",
    params: {
        frames: u64 {
            default: 0,
            description: "Where the crash kernel was told of its frames, 0 for nowhere",
        },
        limit: u64 {
            default: 0,
            description: "The highest bus address of devices that leads to the kernel's memory, 0 if all do",
        },
    },
}

/// The module.
struct Helper {
    _hidden: Option<Hidden>,
    _bound: Option<Bound>,
}

impl kernel::Module for Helper {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Devices first: without them there is no dump at all.
        let bound = match parameter(&module_parameters::limit) {
            0 => None,
            limit => Some(Bound::new(limit)?),
        };
        let hidden = match parameter(&module_parameters::frames) {
            0 => None,
            // A dump with frames that change is better than none.
            address => Hidden::new(address)
                .inspect_err(|error| pr_err!("cannot hide this kernel's own frames: {error:?}\n"))
                .ok(),
        };
        Ok(Self {
            _hidden: hidden,
            _bound: bound,
        })
    }
}
