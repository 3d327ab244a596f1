// SPDX-License-Identifier: GPL-2.0

//! Loads crash kernels through `/dev/p2m_crash`.
//!
//! The module takes a window of memory with something in it, and starts what is there when the kernel
//! panics. What is in it is made here, without its help: the kernel and its initramfs where the boot
//! protocol wants them, the boot parameters with a map of the memory, and the header of `/proc/vmcore`.
//!
//! - [`machine`]: what the running kernel says about the machine and itself.
//! - [`elfcore`]: the header by which the crash kernel finds the old one's memory.
//! - [`image`]: what is in a window.
//! - [`Crash`]: the device.

#![allow(clippy::single_range_in_vec_init)] // Ranges of addresses are meant as such.

mod abi;
mod device;
pub mod elfcore;
mod error;
pub mod image;
pub mod machine;

pub use device::{Crash, DEVICE, Info, LOW_GRAIN, Load, MAX_LOW, MAX_MEMORY, Status};
pub use error::{Error, Refusal, Result};
