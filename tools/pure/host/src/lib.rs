// SPDX-License-Identifier: GPL-2.0

//! What the pure part of p2m gets from the kernel, made for the host.
//!
//! - [`store`]: tables. Using one that was freed, freeing one twice, losing one or writing to one
//!   that all share is noticed.
//! - [`machine`]: machine frames, as fragmented as one likes. It is noticed, too, when one is given
//!   back that wasn't taken.
//!
//! Both can be made to fail at any point. They don't return an error if the code under test breaks
//! a rule: they panic, as nothing that comes after would mean anything.

mod fuse;
pub mod machine;
pub mod store;
