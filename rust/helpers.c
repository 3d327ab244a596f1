// SPDX-License-Identifier: GPL-2.0
/*
 * What the module needs of the kernel and Rust can't reach: inline functions and
 * macros.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/ioport.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/page_ref.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/security.h>
#include <linux/topology.h>

#include "helpers.h"

/* See compat.rs. */
static_assert((VM_SHARED << 4) == VM_MAYSHARE);

unsigned long p2m_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

struct page *p2m_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

void *p2m_page_address(struct page *page)
{
	return page_address(page);
}

int p2m_page_count(const struct page *page)
{
	return page_count(page);
}

int p2m_page_mapcount(struct page *page)
{
	return folio_mapcount(page_folio(page));
}

void p2m_get_page(struct page *page)
{
	get_page(page);
}

void p2m_put_page(struct page *page)
{
	put_page(page);
}

/* Gives up a reference to each of not more than P2M_MAX_PUT frames. */
void p2m_put_frames(const u64 *pfns, int nr)
{
	struct page *pages[P2M_MAX_PUT];
	int i;

	for (i = 0; i < nr; i++)
		pages[i] = pfn_to_page(pfns[i]);
	release_pages(pages, nr);
}

bool p2m_is_compound(const struct page *page)
{
	return PageCompound(page);
}

/*
 * Whether a page can't be had from whoever has it: roughly what page_is_unmovable()
 * says, which isn't exported. It's read without a lock, so this is only a hint.
 */
static bool is_in_the_way(const struct page *page)
{
	if (PageReserved(page) || PageHWPoison(page))
		return true;
	if (PageCompound(page))
		return !PageHuge(page) && !PageLRU(page);
	return page_ref_count(page) && !PageLRU(page) &&
	       !page_has_movable_ops(page);
}

/*
 * The lowest frame from which on to before @end all are of one zone that kernel
 * memory may be in, and of @nid if that isn't NUMA_NO_NODE, and nothing is in the
 * way.
 */
unsigned long p2m_open_from(unsigned long start, unsigned long end, int nid)
{
	const struct zone *zone = NULL;
	unsigned long pfn;

	for (pfn = end; pfn > start; pfn--) {
		struct page *page = pfn_to_online_page(pfn - 1);

		if (!page || page_zonenum(page) > gfp_zone(GFP_KERNEL))
			break;
		if (zone && page_zone(page) != zone)
			break;
		zone = page_zone(page);
		if (nid != NUMA_NO_NODE && page_to_nid(page) != nid)
			break;
		if (is_in_the_way(page))
			break;
	}
	return pfn;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* As p2m_alloc_superpage(), at a certain place. */
struct page *p2m_alloc_superpage_at(gfp_t gfp, unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);

	if (alloc_contig_frozen_range(pfn, pfn + HPAGE_PMD_NR, ACR_FLAGS_NONE,
				      gfp | __GFP_COMP))
		return NULL;
	/* As the allocator does for folios. */
	set_page_count(page, 1);
	folio_set_large_rmappable(page_folio(page));
	return page;
}

/*
 * A folio that user page tables can map by one entry. No more than one node is
 * asked if @nid is not NUMA_NO_NODE.
 */
struct page *p2m_alloc_superpage(gfp_t gfp, int nid)
{
	struct folio *folio;

	if (nid == NUMA_NO_NODE)
		folio = folio_alloc(gfp, HPAGE_PMD_ORDER);
	else
		folio = __folio_alloc(gfp | __GFP_THISNODE, HPAGE_PMD_ORDER,
				      nid, NULL);
	return folio ? folio_page(folio, 0) : NULL;
}

/*
 * Map a superpage where nothing is mapped, by one entry. It is not made writable
 * by force, so whatever is there by now, it does no harm.
 */
vm_fault_t p2m_insert_superpage(struct vm_fault *vmf, struct page *page)
{
	struct folio *folio = page_folio(page);

	if (page != folio_page(folio, 0) || folio_order(folio) != HPAGE_PMD_ORDER)
		return VM_FAULT_FALLBACK;
	return vmf_insert_folio_pmd(vmf, folio, false);
}
#else
struct page *p2m_alloc_superpage_at(gfp_t gfp, unsigned long pfn)
{
	return NULL;
}

struct page *p2m_alloc_superpage(gfp_t gfp, int nid)
{
	return NULL;
}

vm_fault_t p2m_insert_superpage(struct vm_fault *vmf, struct page *page)
{
	return VM_FAULT_FALLBACK;
}
#endif

/* Whether nothing at all is mapped where a superpage would be. */
bool p2m_fault_is_unmapped(const struct vm_fault *vmf)
{
	return pmd_none(READ_ONCE(*vmf->pmd));
}

/* Whether a superpage is mapped there, by one entry. */
bool p2m_fault_is_huge(const struct vm_fault *vmf)
{
	return pmd_leaf(READ_ONCE(*vmf->pmd));
}

/* As vm_insert_page(), for mappings that have no VM_MIXEDMAP. */
vm_fault_t p2m_insert_page(struct vm_area_struct *vma, unsigned long addr,
			   struct page *page)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr,
	};

	return vmf_insert_page_mkwrite(&vmf, page, false);
}

void p2m_vma_set_hugepage(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_HUGEPAGE);
}

/* No fault on @vma goes on until the mmap_lock, held for writing, is dropped. */
void p2m_vma_start_write(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}

bool p2m_is_no_memory(u64 start, u64 size)
{
	return region_intersects(start, size, IORESOURCE_SYSTEM_RAM,
				 IORES_DESC_NONE) == REGION_DISJOINT;
}

/* What reaches around the kernel's own memory management is as /dev/mem. */
bool p2m_is_locked_down(void)
{
	return security_locked_down(LOCKDOWN_DEV_MEM);
}

/* max_pfn is not exported. */
unsigned long p2m_max_pfn(void)
{
	unsigned long max = 0;
	int nid;

	for_each_online_node(nid)
		max = max(max, pgdat_end_pfn(NODE_DATA(nid)));
	return max;
}

unsigned long p2m_totalram_pages(void)
{
	return totalram_pages();
}

int p2m_numa_mem_id(void)
{
	return numa_mem_id();
}

bool p2m_is_memory_node(int nid)
{
	return nid >= 0 && nid < MAX_NUMNODES && node_state(nid, N_MEMORY);
}

struct page *p2m_virt_to_page(const void *addr)
{
	return virt_to_page(addr);
}

static void p2m_free_page_callback(struct rcu_head *head)
{
	put_page(container_of(head, struct page, rcu_head));
}

/* As page tables are freed: a page that is nobody's else has room for the head. */
void p2m_free_page_rcu(struct page *page)
{
	call_rcu(&page->rcu_head, p2m_free_page_callback);
}

bool p2m_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

void p2m_cond_resched(void)
{
	cond_resched();
}

struct user_struct *p2m_get_current_user(void)
{
	return get_uid(current_user());
}

/* As __io_account_mem() of io_uring. */
bool p2m_charge_locked(struct user_struct *user, unsigned long nr_pages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	long old = atomic_long_read(&user->locked_vm);
	long new;

	if (rlimit(RLIMIT_MEMLOCK) == RLIM_INFINITY || capable(CAP_IPC_LOCK))
		limit = LONG_MAX;

	do {
		new = old + nr_pages;
		if (new < 0 || new > limit)
			return false;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old, new));
	return true;
}

void p2m_uncharge_locked(struct user_struct *user, unsigned long nr_pages)
{
	atomic_long_sub(nr_pages, &user->locked_vm);
}

/* As inode_init_always_gfp() sets up the address space of an inode. */
void p2m_mapping_init(struct address_space *mapping, struct inode *host)
{
	address_space_init_once(mapping);
	mapping->host = host;
	mapping->a_ops = &empty_aops;
	mapping_set_gfp_mask(mapping, GFP_USER);
	init_rwsem(&mapping->invalidate_lock);
}

void p2m_mapping_lock(struct address_space *mapping)
{
	filemap_invalidate_lock(mapping);
}

void p2m_mapping_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

void p2m_mapping_lock_shared(struct address_space *mapping)
{
	filemap_invalidate_lock_shared(mapping);
}

void p2m_mapping_unlock_shared(struct address_space *mapping)
{
	filemap_invalidate_unlock_shared(mapping);
}
