// SPDX-License-Identifier: GPL-2.0

//! The laws of the pure part of p2m.
//!
//! Each module has a naive model of what it tests: a map, a set or a loop over all pages. Where the
//! space is small enough, all of it is tried, else it is sampled with fixed limits.
//!
//! ```text
//! cargo test -p p2m-pure
//! ```

mod clear;
mod dma;
mod entry;
mod folded;
mod frame;
mod map;
mod policy;
mod remap;
mod rig;
mod runs;
mod search;
mod sparse;
mod stress;
mod views;
