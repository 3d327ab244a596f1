// SPDX-License-Identifier: GPL-2.0
/*
 * Memory accesses through page tables that are not the kernel's.
 *
 * It is what use_temporary_mm() does, without an mm: this one is not exported,
 * and as the tables are nobody's who runs, there is nothing to keep up to date.
 */
#include <linux/cc_platform.h>
#include <linux/compiler.h>
#include <linux/cpufeature.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/workqueue.h>

#include <asm/asm.h>
#include <asm/debugreg.h>
#include <asm/smap.h>
#include <asm/special_insns.h>
#include <asm/trapnr.h>

#include "cpu_access.h"

/* Interrupts are off for as many words at a time: one page of them. */
#define WINDOW_WORDS	(PAGE_SIZE / sizeof(u64))

/* Of the 64-bit FNV-1a. */
#define FNV_PRIME	0x100000001b3ULL

int p2m_cpu_refusal(void)
{
	/* CR3 is the hypervisor's, and so are page tables. */
	if (cpu_feature_enabled(X86_FEATURE_XENPV))
		return P2M_CPU_XEN_PV;
	/* The entries would need the bit that says that a frame is encrypted. */
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return P2M_CPU_ENCRYPTED;
	/* The bit would be a reserved one, and a fault on it an oops. */
	if (!(__supported_pte_mask & _PAGE_NX))
		return P2M_CPU_NO_NX;
	return 0;
}

u32 p2m_cpu_nr_levels(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

bool p2m_cpu_has_gbpages(void)
{
	return cpu_feature_enabled(X86_FEATURE_GBPAGES);
}

u64 *p2m_cpu_table(u64 mfn)
{
	return __va(PFN_PHYS(mfn));
}

u64 p2m_cpu_table_mfn(const u64 *table)
{
	return PHYS_PFN(__pa(table));
}

/*
 * Both leave the vector in AX when there is an exception.
 *
 * The type is not EX_TYPE_UACCESS, which is for memory of the current task: after
 * a machine check the task would have to deal with it on its return to user mode,
 * where a kernel thread never goes. For the same reason it is not a MOV that
 * reads: is_copy_from_user() would take it for one that copies from the user.
 */
static __always_inline u32 read_word(unsigned long address, u64 *word)
{
	u32 trap = 0;

	*word = 0;
	asm volatile("1: orq (%[address]), %[word]\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_FAULT_MCE_SAFE)
		     : "+a" (trap), [word] "+r" (*word)
		     : [address] "r" (address)
		     : "memory", "cc");
	return trap;
}

static __always_inline u32 write_word(unsigned long address, u64 word)
{
	u32 trap = 0;

	asm volatile("1: movq %[word], (%[address])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_FAULT_MCE_SAFE)
		     : "+a" (trap)
		     : [address] "r" (address), [word] "r" (word)
		     : "memory");
	return trap;
}

static __always_inline u64 checksum_word(u64 checksum, u64 word)
{
	int i;

	for (i = 0; i < sizeof(word); i++, word >>= 8)
		checksum = (checksum ^ (word & 0xff)) * FNV_PRIME;
	return checksum;
}

/*
 * Accesses words up to @end. Not instrumented, and calls nothing: a function that
 * is traced could be told anything, and might look at what it thinks is memory of
 * the user.
 *
 * - The code, the stack, @access and the words are in the kernel's half of the
 *   address space, which the root shares.
 * - Under page table isolation, bit 12 of CR3 tells the entry code of NMIs and
 *   machine checks, which come at any time, which half of a pair of roots is
 *   loaded. It is clear in @cr3, so they see that it is the kernel's, and leave it.
 * - The PCID in @cr3 is 0, which the kernel has reserved for those who don't know
 *   about PCIDs, see kern_pcid(). Without X86_CR3_PCID_NOFLUSH, both loads flush
 *   what was cached under the PCID that they select. What stays in the TLB under
 *   PCID 0 is never used, as nobody selects it without such a flush. Global
 *   translations of the kernel stay; there are no others, see cpu.rs.
 * - native_write_cr3() as there is no hypervisor that has to be asked.
 * - With SMAP, a fault in the lower half is an oops unless AC is set, even if
 *   nothing is mapped there. With LASS, there would be no access at all.
 * - CR2 is not looked at. Whoever traces page faults may have had one of his own
 *   since; and as words don't cross pages, it is clear what was in it.
 */
static noinstr void access_words(struct p2m_cpu_access *access, unsigned long cr3, u64 end)
{
	u64 *words = access->words;
	u64 checksum = access->checksum;
	u64 i = access->nr_done;
	unsigned long address = access->address + i * sizeof(u64);
	unsigned long kernel_cr3 = __native_read_cr3();
	bool is_readable = false;
	u32 trap = 0;
	u64 word;

	native_write_cr3(cr3);
	stac();
	for (; i < end; i++, address += sizeof(u64)) {
		if (access->is_write) {
			word = words[i];
			trap = write_word(address, word);
		} else {
			trap = read_word(address, &word);
		}
		if (trap)
			break;
		if (words && !access->is_write)
			words[i] = word;
		checksum = checksum_word(checksum, word);
	}
	/* The error code is lost. But the CPU can tell once more. */
	if (trap == X86_TRAP_PF && access->is_write)
		is_readable = !read_word(address, &word);
	clac();
	native_write_cr3(kernel_cr3);

	access->nr_done = i;
	access->checksum = checksum;
	access->trap = trap;
	access->is_readable = is_readable;
}

static void access_window(struct p2m_cpu_access *access)
{
	u64 end = min(access->nr_done + WINDOW_WORDS, access->nr_words);
	unsigned long cr3 = __pa(access->root);
	unsigned long flags, dr7;
	u64 *kernel_root;
	int i;

	local_irq_save(flags);
	/* Perf's watchpoints are on addresses that mean something else now. */
	dr7 = local_db_save();
	/*
	 * Now that this CPU stays where it is: parts of it are for the mm that is
	 * loaded, and memory that was added in the meantime is of no interest.
	 */
	kernel_root = __va(native_read_cr3_pa());
	for (i = PTRS_PER_PGD / 2; i < PTRS_PER_PGD; i++)
		access->root[i] = READ_ONCE(kernel_root[i]);

	access_words(access, cr3, end);

	local_db_restore(dr7);
	local_irq_restore(flags);
}

struct access_work {
	struct work_struct work;
	struct p2m_cpu_access *access;
};

/*
 * A kernel thread has no mm: page faults are not handled but go to the fixup,
 * nmi_uaccess_okay() is false, so no perf or BPF program follows a user's stack
 * into our tables, there are no watchpoints of a debugger, PKRU is what the
 * kernel starts with (key 0 is allowed), and CR3 has no LAM bits to care for.
 *
 * The mm that the thread has borrowed is loaded before and after. This CPU gets
 * all requests to flush it, a little later.
 */
static void access_worker(struct work_struct *work)
{
	struct p2m_cpu_access *access = container_of(work, struct access_work, work)->access;

	do {
		access_window(access);
		cond_resched();
	} while (!access->trap && access->nr_done < access->nr_words);
}

void p2m_cpu_access(struct p2m_cpu_access *access)
{
	struct access_work work = { .access = access };

	access->nr_done = 0;
	INIT_WORK_ONSTACK(&work.work, access_worker);
	queue_work(system_dfl_wq, &work.work);
	flush_work(&work.work);
	destroy_work_on_stack(&work.work);
}
