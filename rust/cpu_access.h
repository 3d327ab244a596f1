/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory accesses through page tables that are not the kernel's. rust/cpu.rs
 * decides what to do, and rust/ffi.rs has the same structure.
 */
#ifndef _P2M_CPU_ACCESS_H
#define _P2M_CPU_ACCESS_H

#include <linux/build_bug.h>
#include <linux/types.h>

/* Why it can't be done here. */
#define P2M_CPU_XEN_PV		1
#define P2M_CPU_ENCRYPTED	2
#define P2M_CPU_NO_NX		3

/**
 * struct p2m_cpu_access - words to read or to write
 * @root: (in) root of the page tables, the lower half of it: a page with an even
 *	frame number. The upper half is filled in here.
 * @words: (in) where the words go to or come from; NULL to read them only
 * @address: (in) address of the first word, a multiple of 8 in the lower half
 * @nr_words: (in) number of words, not 0
 * @nr_done: (out) number of words until there was an exception
 * @checksum: (in, out) 64-bit FNV-1a of their bytes, begun by the caller
 * @trap: (out) vector of the exception, or 0
 * @is_write: (in) the words are to be written
 * @is_readable: (out) the word that could not be written could be read
 */
struct p2m_cpu_access {
	u64 *root;
	u64 *words;
	u64 address;
	u64 nr_words;
	u64 nr_done;
	u64 checksum;
	u32 trap;
	bool is_write;
	bool is_readable;
};

static_assert(sizeof(struct p2m_cpu_access) == 56);

int p2m_cpu_refusal(void);
u32 p2m_cpu_nr_levels(void);
bool p2m_cpu_has_gbpages(void);
u64 *p2m_cpu_table(u64 mfn);
u64 p2m_cpu_table_mfn(const u64 *table);
void p2m_cpu_access(struct p2m_cpu_access *access);

#endif /* _P2M_CPU_ACCESS_H */
