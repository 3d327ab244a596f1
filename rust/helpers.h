/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the module needs of the kernel and Rust can't reach: inline functions and
 * macros. Nothing is decided here. rust/ffi.rs is the other side.
 */
#ifndef _P2M_HELPERS_H
#define _P2M_HELPERS_H

#include <linux/mm_types.h>
#include <linux/types.h>

/* The most frames that p2m_put_frames() takes. */
#define P2M_MAX_PUT 64

struct address_space;
struct inode;
struct page;
struct user_struct;
struct vm_area_struct;
struct vm_fault;

unsigned long p2m_page_to_pfn(const struct page *page);
struct page *p2m_pfn_to_page(unsigned long pfn);
void *p2m_page_address(struct page *page);
int p2m_page_count(const struct page *page);
int p2m_page_mapcount(struct page *page);
void p2m_get_page(struct page *page);
void p2m_put_page(struct page *page);
void p2m_put_frames(const u64 *pfns, int nr);
bool p2m_is_compound(const struct page *page);
unsigned long p2m_open_from(unsigned long start, unsigned long end, int nid);
struct page *p2m_alloc_superpage_at(gfp_t gfp, unsigned long pfn);
struct page *p2m_alloc_superpage(gfp_t gfp, int nid);
vm_fault_t p2m_insert_superpage(struct vm_fault *vmf, struct page *page);
bool p2m_fault_is_unmapped(const struct vm_fault *vmf);
bool p2m_fault_is_huge(const struct vm_fault *vmf);
vm_fault_t p2m_insert_page(struct vm_area_struct *vma, unsigned long addr,
			   struct page *page);
void p2m_vma_set_hugepage(struct vm_area_struct *vma);
void p2m_vma_start_write(struct vm_area_struct *vma);
bool p2m_is_no_memory(u64 start, u64 size);
bool p2m_is_locked_down(void);
unsigned long p2m_max_pfn(void);
unsigned long p2m_totalram_pages(void);
int p2m_numa_mem_id(void);
bool p2m_is_memory_node(int nid);

struct page *p2m_virt_to_page(const void *addr);
void p2m_free_page_rcu(struct page *page);

bool p2m_fatal_signal_pending(void);
void p2m_cond_resched(void);

struct user_struct *p2m_get_current_user(void);
bool p2m_charge_locked(struct user_struct *user, unsigned long nr_pages);
void p2m_uncharge_locked(struct user_struct *user, unsigned long nr_pages);

void p2m_mapping_init(struct address_space *mapping, struct inode *host);
void p2m_mapping_lock(struct address_space *mapping);
void p2m_mapping_unlock(struct address_space *mapping);
void p2m_mapping_lock_shared(struct address_space *mapping);
void p2m_mapping_unlock_shared(struct address_space *mapping);

bool p2m_trace_change_is_on(void);
void p2m_trace_change(u64 domain, u64 pfn, u64 old, u64 new);
void p2m_trace_region(u64 domain, u64 base, u64 nr_pages, bool created);

#endif /* _P2M_HELPERS_H */
