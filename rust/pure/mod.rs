// SPDX-License-Identifier: GPL-2.0

//! The pure part of p2m: everything that needs neither a kernel nor `unsafe`.
//!
//! It uses only `core` and small traits, as [`TableStore`](table::TableStore) and
//! [`FrameSource`](policy::FrameSource), so the same source is compiled into the modules and, by
//! `tools/pure`, into a library for the host, where it is tested, fuzzed and measured.
//!
//! From the bottom up:
//!
//! - [`frame`]: frame numbers and ranges of them.
//! - [`entry`]: P2M entries in Xen's encoding.
//! - [`table`]: page-sized tables of words, and who provides them.
//! - [`sparse`]: a sparse array made of such tables, read without a lock.
//! - [`map`]: the P2M and the M2P of a domain, kept consistent.
//! - [`runs`]: ranges of PFNs as machine runs.
//! - [`dma`]: ranges of bytes as segments that a device takes.
//! - [`policy`]: which machine frames a region gets, and in which order.
//! - [`search`]: frames at places that the caller names.
//! - [`pv`]: backends, the hooks between page-table code and page tables.
//! - [`paging`]: page tables, built and walked through a backend.

pub mod dma;
pub mod entry;
pub mod frame;
pub mod map;
pub mod paging;
pub mod policy;
pub mod pv;
pub mod runs;
pub mod search;
pub mod sparse;
pub mod table;
