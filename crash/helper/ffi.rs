// SPDX-License-Identifier: GPL-2.0

//! C functions of the helper.
//!
//! C header: [`crash/helper/shim.h`](shim.h)

use kernel::{
    bindings,
    prelude::*, //
};

// A lock class key is empty without lockdep, and C structures with locks contain one.
#[allow(improper_ctypes)]
extern "C" {
    pub(crate) fn p2m_helper_read(address: u64, to: *mut c_void, length: usize) -> c_int;
    pub(crate) fn p2m_helper_sort(numbers: *mut u32, nr: usize);
    pub(crate) fn p2m_helper_hide(is_hidden: extern "C" fn(mfn: c_ulong) -> bool);
    pub(crate) fn p2m_helper_show();
    pub(crate) fn p2m_helper_have_dma_mapped(device: *mut bindings::device) -> c_int;
}
