/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the module needs of the kernel and Rust can't reach: inline functions, macros
 * and instructions. crash/ffi.rs is the other side.
 */
#ifndef _P2M_CRASH_SHIM_H
#define _P2M_CRASH_SHIM_H

#include <linux/types.h>

struct page;
struct pt_regs;

/* Registers of a guest that VMRUN doesn't load. */
struct p2m_crash_registers {
	u64 rbx;
	u64 rcx;
	u64 rdx;
	u64 rsi;
	u64 rdi;
	u64 rbp;
	u64 r8;
	u64 r9;
	u64 r10;
	u64 r11;
	u64 r12;
	u64 r13;
	u64 r14;
	u64 r15;
};

int p2m_crash_start(void (*panicked)(const struct pt_regs *registers));
void p2m_crash_stop(void);

int p2m_crash_watch_machine(void);
void p2m_crash_unwatch_machine(void);
u64 p2m_crash_generation(void);

void p2m_crash_get_module(void);
void p2m_crash_put_module(void);
bool p2m_crash_is_killed(void);

bool p2m_crash_has_svm(void);
bool p2m_crash_is_occupied(void);
bool p2m_crash_is_virtual(void);
bool p2m_crash_is_encrypted(void);
int p2m_crash_locked_down(void);
u32 p2m_crash_nr_levels(void);
bool p2m_crash_has_gbpages(void);
u32 p2m_crash_physical_bits(void);
u64 p2m_crash_tsc_khz(void);

u64 p2m_crash_end_of_memory(void);
bool p2m_crash_is_hole(u64 start, u64 size);
int p2m_crash_walk_ram(void *arg, int (*each)(void *arg, u64 start, u64 end));
u64 p2m_crash_nr_free(void);
int p2m_crash_free_order(u64 mfn);
int p2m_crash_cache_order(u64 mfn);

u64 p2m_crash_page_to_mfn(const struct page *page);
u64 p2m_crash_address_to_mfn(const void *address);
struct page *p2m_crash_mfn_to_page(u64 mfn);
void *p2m_crash_frame(u64 mfn);
u32 p2m_crash_checksum(u32 crc, const void *bytes, size_t length);
void p2m_crash_write_note(void *note, size_t size, const struct pt_regs *registers);

int p2m_crash_read_msr(u32 msr, u64 *value);
int p2m_crash_write_msr(u32 msr, u64 value);
void p2m_crash_cpuid(u32 leaf, u32 subleaf, u32 *registers);
void p2m_crash_reset(void) __noreturn;

/* quiesce.c */
int p2m_crash_find_interrupts(void);
void p2m_crash_forget_interrupts(void);
void p2m_crash_quiesce(void);

/* iommu.c */
int p2m_crash_find_iommus(void);
void p2m_crash_forget_iommus(void);
unsigned int p2m_crash_nr_iommus(void);
bool p2m_crash_has_active_iommu(void);
bool p2m_crash_switch_iommus(u64 device_table, void *commands, u64 address);

/* permission.c */
int p2m_crash_find_rules(void);
void p2m_crash_forget_rules(void);
bool p2m_crash_is_disabled(void);
int p2m_crash_permit_load(void);

/* entry.S */
void p2m_crash_capture(struct pt_regs *registers);
void p2m_crash_svm_begin(u64 host_vmcb);
void p2m_crash_svm_end(void);
void p2m_crash_svm_run(u64 vmcb, struct p2m_crash_registers *registers, u64 host_vmcb);

#endif /* _P2M_CRASH_SHIM_H */
