// SPDX-License-Identifier: GPL-2.0
/*
 * What the module needs of the kernel and Rust can't reach: inline functions and
 * macros. What is used when the kernel panics takes no lock and allocates nothing.
 */
#include <linux/cc_platform.h>
#include <linux/cpu.h>
#include <linux/cpufeature.h>
#include <linux/crc32.h>
#include <linux/elf.h>
#include <linux/elfcore.h>
#include <linux/ioport.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/module.h>
#include <linux/panic_notifier.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/sizes.h>

#include <asm/cpuid/api.h>
#include <asm/msr.h>
#include <asm/tsc.h>

#include "shim.h"

/* As entry.S has it. */
static_assert(offsetof(struct pt_regs, ip) == 16 * 8);
static_assert(offsetof(struct pt_regs, cs) == 17 * 8);
static_assert(offsetof(struct pt_regs, ss) == 20 * 8);

static void (*crash)(const struct pt_regs *registers);

/*
 * The registers are the notifier's: it isn't told those of an exception. From them,
 * the way that led here can be unwound.
 */
static int panicking(struct notifier_block *nb, unsigned long event, void *message)
{
	struct pt_regs registers = {};

	p2m_crash_capture(&registers);
	crash(&registers);
	return NOTIFY_DONE;
}

/* The last one: others may have something to do yet, and this one doesn't return. */
static struct notifier_block notifier = {
	.notifier_call = panicking,
	.priority = INT_MIN,
};

int p2m_crash_start(void (*panicked)(const struct pt_regs *registers))
{
	int ret = p2m_crash_find_rules();

	if (ret)
		return ret;
	crash = panicked;
	ret = atomic_notifier_chain_register(&panic_notifier_list, &notifier);
	if (ret)
		p2m_crash_forget_rules();
	return ret;
}

void p2m_crash_stop(void)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, &notifier);
	p2m_crash_forget_rules();
}

/* Grows with what is added and removed. */
static atomic64_t generation = ATOMIC64_INIT(1);

static int memory_changed(struct notifier_block *nb, unsigned long event, void *what)
{
	if (event == MEM_ONLINE || event == MEM_OFFLINE)
		atomic64_inc(&generation);
	return NOTIFY_OK;
}

/* That a processor goes offline changes nothing: its note stays where it is. */
static int processors_changed(struct notifier_block *nb, unsigned long event, void *what)
{
	if (event == BUS_NOTIFY_ADD_DEVICE || event == BUS_NOTIFY_REMOVED_DEVICE)
		atomic64_inc(&generation);
	return NOTIFY_OK;
}

static struct notifier_block memory_notifier = {
	.notifier_call = memory_changed,
};

static struct notifier_block processor_notifier = {
	.notifier_call = processors_changed,
};

int p2m_crash_watch_machine(void)
{
	int ret = register_memory_notifier(&memory_notifier);

	if (ret)
		return ret;
	ret = bus_register_notifier(&cpu_subsys, &processor_notifier);
	if (ret)
		unregister_memory_notifier(&memory_notifier);
	return ret;
}

void p2m_crash_unwatch_machine(void)
{
	bus_unregister_notifier(&cpu_subsys, &processor_notifier);
	unregister_memory_notifier(&memory_notifier);
}

u64 p2m_crash_generation(void)
{
	return atomic64_read(&generation);
}

void p2m_crash_get_module(void)
{
	__module_get(THIS_MODULE);
}

void p2m_crash_put_module(void)
{
	module_put(THIS_MODULE);
}

bool p2m_crash_is_killed(void)
{
	return fatal_signal_pending(current);
}

bool p2m_crash_has_svm(void)
{
	return boot_cpu_has(X86_FEATURE_SVM);
}

/*
 * Whether somebody else than KVM has switched SVM on. KVM is there if it can be asked
 * for a function of its own.
 */
bool p2m_crash_is_occupied(void)
{
	u64 efer;
	void *kvm;

	if (rdmsrq_safe(MSR_EFER, &efer) || !(efer & EFER_SVME))
		return false;
	kvm = __symbol_get("kvm_put_kvm");
	if (!kvm)
		return true;
	__symbol_put("kvm_put_kvm");
	return false;
}

bool p2m_crash_is_virtual(void)
{
	return boot_cpu_has(X86_FEATURE_HYPERVISOR);
}

bool p2m_crash_is_encrypted(void)
{
	return cc_platform_has(CC_ATTR_MEM_ENCRYPT) ||
	       cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT);
}

int p2m_crash_locked_down(void)
{
	return security_locked_down(LOCKDOWN_KEXEC);
}

u32 p2m_crash_nr_levels(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

bool p2m_crash_has_gbpages(void)
{
	return boot_cpu_has(X86_FEATURE_GBPAGES);
}

u32 p2m_crash_physical_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

u64 p2m_crash_tsc_khz(void)
{
	return tsc_khz;
}

/* max_pfn is not exported. */
u64 p2m_crash_end_of_memory(void)
{
	u64 max = 0;
	int nid;

	for_each_online_node(nid)
		max = max(max, PFN_PHYS(pgdat_end_pfn(NODE_DATA(nid))));
	return max;
}

bool p2m_crash_is_hole(u64 start, u64 size)
{
	return region_intersects(start, size, 0, IORES_DESC_NONE) == REGION_DISJOINT;
}

struct walk {
	void *arg;
	int (*each)(void *arg, u64 start, u64 end);
};

static int walk_one(struct resource *res, void *arg)
{
	struct walk *walk = arg;

	return walk->each(walk->arg, res->start, res->end + 1);
}

int p2m_crash_walk_ram(void *arg, int (*each)(void *arg, u64 start, u64 end))
{
	struct walk walk = { .arg = arg, .each = each };

	return walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY,
				   0, U64_MAX, &walk, walk_one);
}

u64 p2m_crash_nr_free(void)
{
	return global_zone_page_state(NR_FREE_PAGES);
}

/*
 * Returns the order of the block of free pages that begins at a frame, or -1 if none
 * does. There is no lock: the CPU that has it may have been stopped, and never will
 * give it back. A block loses its type before a page of it is handed out, and has it
 * only after its order was stored (__del_page_from_free_list(), set_buddy_order());
 * pages in the lists of CPUs don't have it.
 */
int p2m_crash_free_order(u64 mfn)
{
	struct page *page = pfn_to_online_page(mfn);
	unsigned long order;

	if (!page || !PageBuddy(page))
		return -1;
	order = READ_ONCE(page->private);
	if (order > MAX_PAGE_ORDER || !IS_ALIGNED(mfn, 1UL << order) || page_count(page))
		return -1;
	return order;
}

/*
 * Returns the order of the folio that begins at a frame, if it's clean page cache that
 * nobody has to do with, or -1. There is no lock here either, but nobody changes it any
 * more. As for devices: they write to page cache while it's locked (it's being read), or
 * pinned (by direct I/O to a mapping, or RDMA), and read it while it's under writeback or
 * referred to (by packets on their way). Any of it is told by a flag or by a reference
 * beside the page cache's own; and a processor that was stopped in the middle of something
 * had taken either before. What has no flag, no other reference and no mapping is what is
 * on the disk, and only that. Dump tools leave it out as they do what is free.
 */
int p2m_crash_cache_order(u64 mfn)
{
	const unsigned long wanted = BIT(PG_uptodate) | BIT(PG_lru);
	const unsigned long unwanted = BIT(PG_locked) | BIT(PG_dirty) | BIT(PG_writeback) |
				       BIT(PG_private) | BIT(PG_private_2) | BIT(PG_swapbacked) |
				       BIT(PG_unevictable) | BIT(PG_mlocked) | BIT(PG_reserved) |
				       BIT(PG_hwpoison);
	struct page *page = pfn_to_online_page(mfn);
	struct folio *folio;
	unsigned long flags, mapping;
	unsigned int order;

	if (!page || PageTail(page) || page_has_type(page))
		return -1;
	folio = (struct folio *)page;
	flags = READ_ONCE(folio->flags.f);
	mapping = (unsigned long)READ_ONCE(folio->mapping);
	if ((flags & (wanted | unwanted)) != wanted || !mapping || mapping & FOLIO_MAPPING_FLAGS)
		return -1;
	order = folio_order(folio);
	if (order > MAX_PAGE_ORDER || !IS_ALIGNED(mfn, 1UL << order) || folio_mapped(folio))
		return -1;
	return folio_ref_count(folio) == 1 << order ? order : -1;
}

u64 p2m_crash_page_to_mfn(const struct page *page)
{
	return page_to_pfn(page);
}

u64 p2m_crash_address_to_mfn(const void *address)
{
	return PHYS_PFN(__pa(address));
}

struct page *p2m_crash_mfn_to_page(u64 mfn)
{
	return pfn_to_page(mfn);
}

void *p2m_crash_frame(u64 mfn)
{
	return __va(PFN_PHYS(mfn));
}

u32 p2m_crash_checksum(u32 crc, const void *bytes, size_t length)
{
	return crc32_le(crc, bytes, length);
}

#define NOTE_NAME "CORE"

/* As crash_save_cpu(), which isn't exported. Leaves room for the end of the notes. */
void p2m_crash_write_note(void *note, size_t size, const struct pt_regs *registers)
{
	const size_t name_size = round_up(sizeof(NOTE_NAME), 4);
	struct elf_note *header = note;
	struct elf_prstatus *status = note + sizeof(*header) + name_size;
	size_t length = sizeof(*header) + name_size + round_up(sizeof(*status), 4);

	if (length + sizeof(*header) > size)
		return;
	memset(note, 0, size);
	header->n_namesz = sizeof(NOTE_NAME);
	header->n_descsz = sizeof(*status);
	header->n_type = NT_PRSTATUS;
	memcpy(note + sizeof(*header), NOTE_NAME, sizeof(NOTE_NAME));
	status->common.pr_pid = current->pid;
	/* elf_core_copy_regs() wants a symbol that isn't exported. */
	BUILD_BUG_ON(sizeof(status->pr_reg) < sizeof(*registers));
	memcpy(&status->pr_reg, registers, sizeof(*registers));
}

int p2m_crash_read_msr(u32 msr, u64 *value)
{
	return rdmsrq_safe(msr, value);
}

int p2m_crash_write_msr(u32 msr, u64 value)
{
	return wrmsrq_safe(msr, value);
}

void p2m_crash_cpuid(u32 leaf, u32 subleaf, u32 *registers)
{
	cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}

void p2m_crash_reset(void)
{
	emergency_restart();
	for (;;)
		native_halt();
}
