/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The userspace interface of /dev/p2m.
 *
 * This header is the one source of the ABI: C programs include it, and bindgen
 * makes the Rust side of both the module and the tools from it.
 */
#ifndef _UAPI_P2M_H
#define _UAPI_P2M_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: words
 *
 * PFN
 *   Pseudo-physical frame number: what the owner of a domain sees.
 * MFN
 *   Machine frame number: the page frame that really holds the data.
 * P2M, M2P
 *   The maps from PFN to MFN and back.
 * Run
 *   Consecutive PFNs with consecutive MFNs.
 * Domain
 *   One pseudo-physical space. Every open of /dev/p2m has its own; it lives as
 *   long as a descriptor or a mapping of it.
 * Region
 *   A populated range of PFNs in a domain.
 */

/**
 * DOC: general ioctl format
 *
 * The interface follows the habits of iommufd. Every ioctl takes a pointer to a
 * structure that begins with its own size in bytes, so that structures can grow
 * at their end. The kernel fills in members whose name begins with out_, also
 * when it returns an error half-way, so that they say how far it got. Unless an
 * ioctl says otherwise, it returns 0 on success and:
 *
 *  - ENOTTY: the command number is not known.
 *  - E2BIG: the structure is larger than the kernel knows, and the part that
 *    the kernel doesn't know isn't zero; or it is larger than a page.
 *  - EINVAL: the structure is smaller than its first version, a reserved member
 *    is not zero, or a value makes no sense.
 *  - EOPNOTSUPP: a flag or policy that this kernel doesn't know.
 *  - EFAULT: a pointer can't be read or written.
 *  - EOVERFLOW: a range wraps, or ends beyond the domain's last possible PFN.
 *  - EPERM: machine frame numbers were asked for, and the opener of the
 *    descriptor had no CAP_SYS_ADMIN.
 *  - ENOMEM: not enough memory, or RLIMIT_MEMLOCK would be exceeded.
 *  - EDQUOT: one of the module's own limits would be exceeded.
 *  - EINTR: the caller was killed. The operation was undone, or out_ members
 *    say how much of it was done.
 */
#define P2M_IOCTL_TYPE 0xBB

/** P2M_ABI_VERSION - changes only when a feature bit cannot express a change. */
#define P2M_ABI_VERSION 1

/** P2M_DEVICE - the device node. */
#define P2M_DEVICE "/dev/p2m"

/* The command numbers. New ones go to the end. */
#define P2M_CMD_BASE 0x80
#define P2M_CMD_INFO 0x80
#define P2M_CMD_STAT 0x81
#define P2M_CMD_REGION_CREATE 0x82
#define P2M_CMD_REGION_DESTROY 0x83
#define P2M_CMD_REGION_LIST 0x84
#define P2M_CMD_TRANSLATE 0x85
#define P2M_CMD_RUNS 0x86

/**
 * DOC: entries
 *
 * A P2M entry is a 64-bit word in Xen's encoding (arch/x86/include/asm/xen/page.h):
 *
 *  - P2M_ENTRY_INVALID: there is nothing at this PFN.
 *  - P2M_ENTRY_FOREIGN set: the MFN belongs to somebody else.
 *  - P2M_ENTRY_IDENTITY set: the PFN is that machine frame itself.
 *  - neither: a frame of the domain.
 *
 * The MFN is in P2M_ENTRY_MFN_MASK. For an opener without CAP_SYS_ADMIN, MFNs
 * read as 0, as in /proc/pid/pagemap; the type of the entry stays visible.
 *
 * An M2P entry is a PFN, or P2M_ENTRY_INVALID.
 */
#define P2M_ENTRY_INVALID 0xffffffffffffffffULL
#define P2M_ENTRY_FOREIGN 0x8000000000000000ULL
#define P2M_ENTRY_IDENTITY 0x4000000000000000ULL
#define P2M_ENTRY_MFN_MASK 0x3fffffffffffffffULL

/**
 * DOC: mmap and read
 *
 * The offsets of /dev/p2m are divided into windows. All views are MAP_SHARED.
 *
 * P2M_OFFSET_MEMORY
 *   The pseudo-physical space: the page at PFN << 12 is the page at that PFN.
 *   Where nothing is populated, a touch is SIGBUS. If the domain never had a
 *   region, mmap() itself creates one of the mapped size, at the mapped
 *   offset, with the default policy.
 * P2M_OFFSET_HEADER
 *   One read-only page, struct p2m_header.
 * P2M_OFFSET_P2M
 *   The P2M as an array of entries, indexed by PFN, read-only; needs an opener
 *   with CAP_SYS_ADMIN.
 * P2M_OFFSET_M2P
 *   The M2P as an array of PFNs, indexed by MFN, read-only; needs an opener
 *   with CAP_SYS_ADMIN. An entry is meaningful only if the P2M's entry at that
 *   PFN names the MFN again. The offset is out of reach for the mmap2() of
 *   32-bit programs, which use P2M_CMD_TRANSLATE.
 *
 * read() and pread() see the P2M as a file of entries: the entry of PFN n is at
 * offset 8 * n. Offset and length must be multiples of 8. The file ends behind
 * the highest region.
 */
#define P2M_OFFSET_MEMORY 0x0ULL
#define P2M_OFFSET_HEADER 0x80000000000ULL
#define P2M_OFFSET_P2M 0xc0000000000ULL
#define P2M_OFFSET_M2P 0x100000000000ULL

/** P2M_MAX_PFN - all PFNs of a domain are below this: 8 TiB of 4 KiB pages. */
#define P2M_MAX_PFN 0x80000000ULL

/**
 * struct p2m_header - what is mapped at P2M_OFFSET_HEADER
 * @abi_version: P2M_ABI_VERSION of the module.
 * @page_shift: log2 of the page size.
 * @generation: Odd while the structure of the P2M changes. Every such change adds
 *              2; a store into a table that is there adds nothing. Read it before
 *              and after reading an entry: if it was odd or has changed, read the
 *              entry again.
 * @end_pfn: All populated PFNs are below this.
 * @end_mfn: All MFNs of the domain are below this; 0 without CAP_SYS_ADMIN.
 * @m2p_generation: The same as @generation, for the M2P.
 */
struct p2m_header {
	__u32 abi_version;
	__u32 page_shift;
	__aligned_u64 generation;
	__aligned_u64 end_pfn;
	__aligned_u64 end_mfn;
	__aligned_u64 m2p_generation;
};

/* Bits of p2m_info.out_features. */
#define P2M_FEATURE_MFN_VISIBLE (1ULL << 0) /* this opener sees MFNs */
#define P2M_FEATURE_TABLE_MMAP (1ULL << 1) /* P2M_OFFSET_* views */

/**
 * struct p2m_info - ioctl(P2M_INFO)
 * @size: sizeof(struct p2m_info).
 * @flags: Must be 0.
 * @out_abi_version: P2M_ABI_VERSION of the module.
 * @out_page_shift: log2 of the page size.
 * @out_features: P2M_FEATURE_* bits.
 * @out_policies: Bit n is set if policy n can be asked for.
 * @out_max_pfn: All PFNs are below this.
 * @out_max_mfn: All MFNs of this machine are below this; 0 without
 *               CAP_SYS_ADMIN.
 * @out_max_domain_pages: Most pages that one domain may have.
 * @out_max_total_pages: Most pages that all domains may have together.
 * @out_max_regions: Most regions that one domain may have.
 * @out_default_policy: The policy of a region made by a plain mmap().
 *
 * What the module is, what it can do and what it allows.
 */
struct p2m_info {
	__u32 size;
	__u32 flags;
	__u32 out_abi_version;
	__u32 out_page_shift;
	__aligned_u64 out_features;
	__aligned_u64 out_policies;
	__aligned_u64 out_max_pfn;
	__aligned_u64 out_max_mfn;
	__aligned_u64 out_max_domain_pages;
	__aligned_u64 out_max_total_pages;
	__u32 out_max_regions;
	__u32 out_default_policy;
};
#define P2M_INFO _IO(P2M_IOCTL_TYPE, P2M_CMD_INFO)

/**
 * struct p2m_stat - ioctl(P2M_STAT)
 * @size: sizeof(struct p2m_stat).
 * @flags: Must be 0.
 * @out_generation: See struct p2m_header.
 * @out_regions: Regions of this domain.
 * @out_pages: Pages in them.
 * @out_p2m_tables: Page-sized tables that hold the P2M.
 * @out_m2p_tables: Page-sized tables that hold the M2P.
 * @out_faults: Page faults served on P2M_OFFSET_MEMORY since the open.
 * @out_fault_pages: Pages mapped by them.
 * @out_total_domains: Domains in the system.
 * @out_total_pages: Pages of all domains.
 */
struct p2m_stat {
	__u32 size;
	__u32 flags;
	__aligned_u64 out_generation;
	__aligned_u64 out_regions;
	__aligned_u64 out_pages;
	__aligned_u64 out_p2m_tables;
	__aligned_u64 out_m2p_tables;
	__aligned_u64 out_faults;
	__aligned_u64 out_fault_pages;
	__aligned_u64 out_total_domains;
	__aligned_u64 out_total_pages;
};
#define P2M_STAT _IO(P2M_IOCTL_TYPE, P2M_CMD_STAT)

/*
 * Placement policies: where the machine frames of a region come from, and in
 * which order.
 */
#define P2M_POLICY_ANY 0 /* whatever is fastest */
#define P2M_POLICY_SCATTER 1 /* no two neighbours are machine neighbours */
#define P2M_POLICY_CONTIGUOUS 2 /* one machine run */

/* Bits of p2m_region_create.flags. */
#define P2M_REGION_FIXED (1U << 0) /* @base_pfn is where the region must be */

/**
 * struct p2m_region_create - ioctl(P2M_REGION_CREATE)
 * @size: sizeof(struct p2m_region_create).
 * @flags: P2M_REGION_* bits.
 * @policy: One of P2M_POLICY_*.
 * @__reserved: Must be 0.
 * @nr_pages: Size of the region in pages, not 0.
 * @seed: For P2M_POLICY_SCATTER: the order of the frames is a function of the
 *        seed and of the set of frames. Must be 0 for other policies.
 * @base_pfn: With P2M_REGION_FIXED the first PFN of the region, else must be 0
 *            on input. On success the first PFN of the region.
 *
 * Populates a range of PFNs with zeroed pages. It happens whole or not at all.
 *
 *  - EEXIST: P2M_REGION_FIXED, and a region is there already.
 *  - ENOSPC: no hole of this size is left in the domain.
 *  - EADDRNOTAVAIL: there is memory, but no frames that satisfy the policy.
 */
struct p2m_region_create {
	__u32 size;
	__u32 flags;
	__u32 policy;
	__u32 __reserved;
	__aligned_u64 nr_pages;
	__aligned_u64 seed;
	__aligned_u64 base_pfn;
};
#define P2M_REGION_CREATE _IO(P2M_IOCTL_TYPE, P2M_CMD_REGION_CREATE)

/**
 * struct p2m_region_destroy - ioctl(P2M_REGION_DESTROY)
 * @size: sizeof(struct p2m_region_destroy).
 * @flags: Must be 0.
 * @base_pfn: First PFN of the region.
 *
 * Takes the region away, out of all mappings too: touching it there is SIGBUS
 * from then on. Pages that somebody else pinned go when they are unpinned.
 *
 *  - ENOENT: no region begins at this PFN.
 */
struct p2m_region_destroy {
	__u32 size;
	__u32 flags;
	__aligned_u64 base_pfn;
};
#define P2M_REGION_DESTROY _IO(P2M_IOCTL_TYPE, P2M_CMD_REGION_DESTROY)

/**
 * struct p2m_region - one region, as P2M_REGION_LIST reports it
 * @base_pfn: First PFN.
 * @nr_pages: Number of pages.
 * @seed: The seed given at its creation.
 * @policy: The policy given at its creation.
 * @__reserved: 0.
 */
struct p2m_region {
	__aligned_u64 base_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 seed;
	__u32 policy;
	__u32 __reserved;
};

/**
 * struct p2m_region_list - ioctl(P2M_REGION_LIST)
 * @size: sizeof(struct p2m_region_list).
 * @flags: Must be 0.
 * @start_pfn: Report regions that begin at or above this PFN, in order.
 * @regions: Pointer to an array of struct p2m_region. Not used if @nr is 0.
 * @nr: Number of elements that fit into @regions.
 * @out_nr: Number of elements stored.
 * @out_total: Number of regions that begin at or above @start_pfn.
 */
struct p2m_region_list {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 regions;
	__u32 nr;
	__u32 out_nr;
	__aligned_u64 out_total;
};
#define P2M_REGION_LIST _IO(P2M_IOCTL_TYPE, P2M_CMD_REGION_LIST)

/* Bits of p2m_translate.flags. */
#define P2M_TRANSLATE_M2P (1U << 0) /* from MFN to PFN; needs CAP_SYS_ADMIN */

/**
 * struct p2m_translate - ioctl(P2M_TRANSLATE)
 * @size: sizeof(struct p2m_translate).
 * @flags: P2M_TRANSLATE_* bits.
 * @nr: Number of frames to translate.
 * @out_nr: Number of frames translated.
 * @frames: Pointer to an array of @nr 64-bit PFNs (MFNs with P2M_TRANSLATE_M2P).
 * @entries: Pointer to an array for @nr 64-bit P2M (M2P) entries; may be the
 *           same array.
 *
 * Any number is a valid question: a PFN beyond the space has no frame and
 * answers P2M_ENTRY_INVALID. An M2P answer was checked against the P2M.
 */
struct p2m_translate {
	__u32 size;
	__u32 flags;
	__u32 nr;
	__u32 out_nr;
	__aligned_u64 frames;
	__aligned_u64 entries;
};
#define P2M_TRANSLATE _IO(P2M_IOCTL_TYPE, P2M_CMD_TRANSLATE)

/**
 * struct p2m_run - consecutive PFNs with consecutive MFNs
 * @pfn: First PFN.
 * @nr_pages: Number of pages.
 * @entry: P2M entry of the first PFN. That of PFN @pfn + n is @entry + n, or
 *         P2M_ENTRY_INVALID for all of the run.
 */
struct p2m_run {
	__aligned_u64 pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 entry;
};

/**
 * struct p2m_runs - ioctl(P2M_RUNS)
 * @size: sizeof(struct p2m_runs).
 * @flags: Must be 0.
 * @start_pfn: First PFN of the range.
 * @nr_pages: Number of pages in the range, not 0.
 * @runs: Pointer to an array of struct p2m_run. Not used if @nr is 0.
 * @nr: Number of elements that fit into @runs. 0 only counts.
 * @out_nr: Number of runs stored, or counted if @nr is 0.
 * @out_next_pfn: Where to go on: behind the last run stored or counted.
 *
 * The runs that a range of PFNs consists of, in order and without gaps: unbacked
 * PFNs are reported as runs of P2M_ENTRY_INVALID. The first and the last run are
 * cut at the ends of the range.
 */
struct p2m_runs {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 runs;
	__u32 nr;
	__u32 out_nr;
	__aligned_u64 out_next_pfn;
};
#define P2M_RUNS _IO(P2M_IOCTL_TYPE, P2M_CMD_RUNS)

#endif /* _UAPI_P2M_H */
