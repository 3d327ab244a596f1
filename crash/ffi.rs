// SPDX-License-Identifier: GPL-2.0

//! C functions and assembly of this module.
//!
//! C header: [`crash/shim.h`](shim.h)

use kernel::{
    bindings,
    prelude::*, //
};

/// Registers of a guest that VMRUN doesn't load.
#[derive(Clone, Copy, Default)]
#[allow(non_camel_case_types)]
#[repr(C)]
pub(crate) struct p2m_crash_registers {
    pub(crate) rbx: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rbp: u64,
    pub(crate) r8_to_r15: [u64; 8],
}

const _: () = assert!(size_of::<p2m_crash_registers>() == 14 * 8);

// A lock class key is empty without lockdep, and C structures with locks contain one.
#[allow(improper_ctypes)]
extern "C" {
    pub(crate) fn p2m_crash_start(
        panicked: unsafe extern "C" fn(registers: *const bindings::pt_regs),
    ) -> c_int;
    pub(crate) fn p2m_crash_stop();

    pub(crate) fn p2m_crash_watch_machine() -> c_int;
    pub(crate) fn p2m_crash_unwatch_machine();
    pub(crate) fn p2m_crash_generation() -> u64;

    pub(crate) fn p2m_crash_get_module();
    pub(crate) fn p2m_crash_put_module();
    pub(crate) fn p2m_crash_is_killed() -> bool;

    pub(crate) fn p2m_crash_has_svm() -> bool;
    pub(crate) fn p2m_crash_is_occupied() -> bool;
    pub(crate) fn p2m_crash_is_virtual() -> bool;
    pub(crate) fn p2m_crash_is_encrypted() -> bool;
    pub(crate) fn p2m_crash_locked_down() -> c_int;
    pub(crate) fn p2m_crash_is_disabled() -> bool;
    pub(crate) fn p2m_crash_permit_load() -> c_int;
    pub(crate) fn p2m_crash_nr_levels() -> u32;
    pub(crate) fn p2m_crash_has_gbpages() -> bool;
    pub(crate) fn p2m_crash_physical_bits() -> u32;
    pub(crate) fn p2m_crash_tsc_khz() -> u64;

    pub(crate) fn p2m_crash_end_of_memory() -> u64;
    pub(crate) fn p2m_crash_is_hole(start: u64, size: u64) -> bool;
    pub(crate) fn p2m_crash_walk_ram(
        arg: *mut c_void,
        each: unsafe extern "C" fn(arg: *mut c_void, start: u64, end: u64) -> c_int,
    ) -> c_int;
    pub(crate) fn p2m_crash_nr_free() -> u64;
    pub(crate) fn p2m_crash_free_order(mfn: u64) -> c_int;
    pub(crate) fn p2m_crash_cache_order(mfn: u64) -> c_int;

    pub(crate) fn p2m_crash_page_to_mfn(page: *const bindings::page) -> u64;
    pub(crate) fn p2m_crash_address_to_mfn(address: *const c_void) -> u64;
    pub(crate) fn p2m_crash_mfn_to_page(mfn: u64) -> *mut bindings::page;
    pub(crate) fn p2m_crash_frame(mfn: u64) -> *mut c_void;
    pub(crate) fn p2m_crash_checksum(crc: u32, bytes: *const c_void, length: usize) -> u32;
    pub(crate) fn p2m_crash_write_note(
        note: *mut c_void,
        size: usize,
        registers: *const bindings::pt_regs,
    );

    pub(crate) fn p2m_crash_read_msr(msr: u32, value: *mut u64) -> c_int;
    pub(crate) fn p2m_crash_write_msr(msr: u32, value: u64) -> c_int;
    pub(crate) fn p2m_crash_cpuid(leaf: u32, subleaf: u32, registers: *mut u32);
    pub(crate) fn p2m_crash_reset() -> !;

    pub(crate) fn p2m_crash_find_interrupts() -> c_int;
    pub(crate) fn p2m_crash_forget_interrupts();
    pub(crate) fn p2m_crash_quiesce();

    pub(crate) fn p2m_crash_find_iommus() -> c_int;
    pub(crate) fn p2m_crash_forget_iommus();
    pub(crate) fn p2m_crash_nr_iommus() -> c_uint;
    pub(crate) fn p2m_crash_has_active_iommu() -> bool;
    pub(crate) fn p2m_crash_switch_iommus(
        device_table: u64,
        commands: *mut c_void,
        address: u64,
    ) -> bool;

    pub(crate) fn p2m_crash_svm_begin(host_vmcb: u64);
    pub(crate) fn p2m_crash_svm_end();
    pub(crate) fn p2m_crash_svm_run(vmcb: u64, registers: *mut p2m_crash_registers, host_vmcb: u64);
}
