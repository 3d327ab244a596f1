// SPDX-License-Identifier: GPL-2.0

//! C functions of this module.
//!
//! C header: [`rust/helpers.h`](helpers.h)

use kernel::{
    bindings,
    prelude::*, //
};

// A lock class key is empty without lockdep, and C structures with locks contain one.
#[allow(improper_ctypes)]
extern "C" {
    pub(crate) fn p2m_page_to_pfn(page: *const bindings::page) -> c_ulong;
    pub(crate) fn p2m_pfn_to_page(pfn: c_ulong) -> *mut bindings::page;
    pub(crate) fn p2m_page_address(page: *mut bindings::page) -> *mut c_void;
    pub(crate) fn p2m_page_count(page: *const bindings::page) -> c_int;
    pub(crate) fn p2m_page_mapcount(page: *mut bindings::page) -> c_int;
    pub(crate) fn p2m_max_pfn() -> c_ulong;
    pub(crate) fn p2m_totalram_pages() -> c_ulong;
    pub(crate) fn p2m_numa_mem_id() -> c_int;

    pub(crate) fn p2m_virt_to_page(addr: *const c_void) -> *mut bindings::page;
    pub(crate) fn p2m_free_page_rcu(page: *mut bindings::page);

    pub(crate) fn p2m_fatal_signal_pending() -> bool;
    pub(crate) fn p2m_cond_resched();

    pub(crate) fn p2m_get_current_user() -> *mut bindings::user_struct;
    pub(crate) fn p2m_charge_locked(user: *mut bindings::user_struct, nr_pages: c_ulong) -> bool;
    pub(crate) fn p2m_uncharge_locked(user: *mut bindings::user_struct, nr_pages: c_ulong);

    pub(crate) fn p2m_mapping_init(
        mapping: *mut bindings::address_space,
        host: *mut bindings::inode,
    );
    pub(crate) fn p2m_mapping_lock(mapping: *mut bindings::address_space);
    pub(crate) fn p2m_mapping_unlock(mapping: *mut bindings::address_space);
    pub(crate) fn p2m_mapping_lock_shared(mapping: *mut bindings::address_space);
    pub(crate) fn p2m_mapping_unlock_shared(mapping: *mut bindings::address_space);
}
