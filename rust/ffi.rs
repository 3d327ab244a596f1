// SPDX-License-Identifier: GPL-2.0

//! C functions of this module.
//!
//! C headers: [`rust/helpers.h`](helpers.h), [`rust/cpu_access.h`](cpu_access.h),
//! [`rust/dma_buf.h`](dma_buf.h)

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
    pub(crate) fn p2m_get_page(page: *mut bindings::page);
    pub(crate) fn p2m_put_page(page: *mut bindings::page);
    pub(crate) fn p2m_put_frames(pfns: *const u64, nr: c_int);
    pub(crate) fn p2m_is_compound(page: *const bindings::page) -> bool;
    pub(crate) fn p2m_open_from(start: c_ulong, end: c_ulong, nid: c_int) -> c_ulong;
    pub(crate) fn p2m_alloc_superpage_at(gfp: bindings::gfp_t, pfn: c_ulong)
        -> *mut bindings::page;
    pub(crate) fn p2m_alloc_superpage(gfp: bindings::gfp_t, nid: c_int) -> *mut bindings::page;
    pub(crate) fn p2m_insert_superpage(
        vmf: *mut bindings::vm_fault,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    pub(crate) fn p2m_fault_is_unmapped(vmf: *const bindings::vm_fault) -> bool;
    pub(crate) fn p2m_fault_is_huge(vmf: *const bindings::vm_fault) -> bool;
    pub(crate) fn p2m_insert_page(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    pub(crate) fn p2m_vma_set_hugepage(vma: *mut bindings::vm_area_struct);
    pub(crate) fn p2m_vma_start_write(vma: *mut bindings::vm_area_struct);
    pub(crate) fn p2m_is_no_memory(start: u64, size: u64) -> bool;
    pub(crate) fn p2m_is_locked_down() -> bool;
    pub(crate) fn p2m_max_pfn() -> c_ulong;
    pub(crate) fn p2m_totalram_pages() -> c_ulong;
    pub(crate) fn p2m_numa_mem_id() -> c_int;
    pub(crate) fn p2m_is_memory_node(nid: c_int) -> bool;

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

    pub(crate) fn p2m_dma_buf_is_supported() -> bool;
    pub(crate) fn p2m_dma_buf_export(
        pages: *mut *mut bindings::page,
        nr_pages: c_uint,
        fd_flags: c_int,
        owner: *mut c_void,
    ) -> c_int;

    pub(crate) fn p2m_trace_change_is_on() -> bool;
    pub(crate) fn p2m_trace_change(domain: u64, pfn: u64, old: u64, new: u64);
    pub(crate) fn p2m_trace_region(domain: u64, base: u64, nr_pages: u64, created: bool);
}

/// The most frames that `p2m_put_frames()` takes.
pub(crate) const P2M_MAX_PUT: usize = 64;

pub(crate) const P2M_CPU_XEN_PV: c_int = 1;
pub(crate) const P2M_CPU_ENCRYPTED: c_int = 2;
pub(crate) const P2M_CPU_NO_NX: c_int = 3;

/// Words to read or to write. The C side describes the fields.
#[allow(non_camel_case_types)]
#[repr(C)]
pub(crate) struct p2m_cpu_access {
    pub(crate) root: *mut u64,
    pub(crate) words: *mut u64,
    pub(crate) address: u64,
    pub(crate) nr_words: u64,
    pub(crate) nr_done: u64,
    pub(crate) checksum: u64,
    pub(crate) trap: u32,
    pub(crate) is_write: bool,
    pub(crate) is_readable: bool,
}

const _: () = assert!(size_of::<p2m_cpu_access>() == 56);

extern "C" {
    pub(crate) fn p2m_cpu_refusal() -> c_int;
    pub(crate) fn p2m_cpu_nr_levels() -> u32;
    pub(crate) fn p2m_cpu_has_gbpages() -> bool;
    pub(crate) fn p2m_cpu_table(mfn: u64) -> *mut u64;
    pub(crate) fn p2m_cpu_table_mfn(table: *const u64) -> u64;
    pub(crate) fn p2m_cpu_access(access: *mut p2m_cpu_access);
}
