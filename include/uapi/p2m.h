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
#define P2M_CMD_SPACE_CREATE 0x87
#define P2M_CMD_SPACE_DESTROY 0x88
#define P2M_CMD_SPACE_MAP 0x89
#define P2M_CMD_SPACE_UNMAP 0x8a
#define P2M_CMD_SPACE_CHANGE 0x8b
#define P2M_CMD_SPACE_WALK 0x8c
#define P2M_CMD_SPACE_DUMP 0x8d
#define P2M_CMD_SPACE_ACCESS 0x8e
#define P2M_CMD_RELEASE 0x8f
#define P2M_CMD_POPULATE 0x90
#define P2M_CMD_MOVE 0x91
#define P2M_CMD_EVACUATE 0x92
#define P2M_CMD_CONTIGUOUS 0x93
#define P2M_CMD_EXCHANGE 0x94
#define P2M_CMD_AUDIT 0x95
#define P2M_CMD_GUARD_CHECK 0x96
#define P2M_CMD_FAIL_NTH 0x97
#define P2M_CMD_DMA_PLAN 0x98
#define P2M_CMD_FOREIGN_MAP 0x99
#define P2M_CMD_FOREIGN_UNMAP 0x9a
#define P2M_CMD_IDENTITY 0x9b
#define P2M_CMD_SPACE_LIST 0x9c
#define P2M_CMD_COLLAPSE 0x9d
#define P2M_CMD_DMA_BUF_EXPORT 0x9e

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
 * An M2P entry is a PFN, or P2M_ENTRY_INVALID, or P2M_ENTRY_GUARD for a frame
 * that is a guard of a neighbouring one.
 */
#define P2M_ENTRY_INVALID 0xffffffffffffffffULL
#define P2M_ENTRY_GUARD 0xfffffffffffffffeULL
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
 * Where there is no table yet, the views show P2M_ENTRY_INVALID. Touching the M2P
 * beyond the last frame of the machine is SIGBUS.
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
#define P2M_FEATURE_TABLE_MMAP (1ULL << 1) /* it can map P2M and M2P */
#define P2M_FEATURE_SPACES (1ULL << 2) /* P2M_SPACE_* */
#define P2M_FEATURE_CPU_ACCESS (1ULL << 3) /* P2M_SPACE_ACCESS works here */
#define P2M_FEATURE_LIVE (1ULL << 4) /* P2M_RELEASE .. P2M_AUDIT */
#define P2M_FEATURE_DMA_PLAN (1ULL << 5) /* P2M_DMA_PLAN */
#define P2M_FEATURE_DMA_BUF (1ULL << 6) /* P2M_DMA_BUF_EXPORT */

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
 * @out_frames: Machine frames that this domain has: @out_pages less those that
 *              were released or not touched yet.
 * @out_guards: Machine frames that are guards.
 * @out_superpages: Superpages, each of which is 512 of @out_frames.
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
	__aligned_u64 out_frames;
	__aligned_u64 out_guards;
	__aligned_u64 out_superpages;
};
#define P2M_STAT _IO(P2M_IOCTL_TYPE, P2M_CMD_STAT)

/*
 * Placement policies: where the machine frames of a region come from, and in
 * which order.
 */
#define P2M_POLICY_ANY 0 /* whatever is fastest */
#define P2M_POLICY_SCATTER 1 /* no two neighbours are machine neighbours */
#define P2M_POLICY_CONTIGUOUS 2 /* one machine run */
#define P2M_POLICY_SUPERPAGE 3 /* machine frames of 2 MiB, see superpages */

/**
 * DOC: superpages
 *
 * A superpage is 512 frames, 2 MiB, that follow each other, both they and their
 * PFNs beginning at a multiple of 512. A region with P2M_POLICY_SUPERPAGE has one
 * wherever it has all of such 512 PFNs, and single frames before and behind. Other
 * regions get them by P2M_COLLAPSE. A superpage takes no room in leaves of P2M and
 * M2P, unless somebody maps these.
 *
 * It is one compound page of the kernel, that is:
 *
 *  - A mapping that was made when there were superpages has each of them mapped
 *    by one entry, if the address is as aligned as the offset (a hint of NULL sees
 *    to that), the mapping has all of it, and the kernel allows it: see
 *    /sys/kernel/mm/transparent_hugepage/enabled, where "madvise" does, and
 *    MADV_NOHUGEPAGE.
 *  - It goes and comes as a whole. Who changes a part of it, splits it: all of its
 *    pages get single frames, with the same contents. That needs memory, and can
 *    fail.
 *  - Who has pinned a page of it, has pinned all of it. It can't be split then.
 */

/* Bits of p2m_region_create.flags. */
#define P2M_REGION_FIXED (1U << 0) /* @base_pfn is where the region must be */
#define P2M_REGION_ON_DEMAND (1U << 1) /* pages come when they are touched */
#define P2M_REGION_GUARDED (1U << 2) /* guard frames next to each frame */
#define P2M_REGION_NODE (1U << 3) /* frames of the NUMA node @node */
#define P2M_REGION_RANGE (1U << 4) /* frames of @start_mfn to before @end_mfn */
#define P2M_REGION_COLOUR (1U << 5) /* frames that are @colour modulo @divisor */

/**
 * P2M_GUARD_PATTERN - every word of a guard frame
 *
 * A guard is next to a frame of a guarded region, on both sides of it, and is
 * nobody's. Who writes to it has run over the edge of the frame.
 */
#define P2M_GUARD_PATTERN 0x7261756721326d70ULL

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
 * @start_mfn: With P2M_REGION_RANGE the first frame that may be used, else 0.
 * @end_mfn: With P2M_REGION_RANGE the first frame behind those, else 0.
 * @node: With P2M_REGION_NODE the NUMA node, else 0.
 * @divisor: With P2M_REGION_COLOUR the number of colours, not 0, else 0.
 * @colour: With P2M_REGION_COLOUR a number below @divisor, else 0.
 * @__reserved2: Must be 0.
 *
 * P2M_REGION_RANGE and P2M_REGION_COLOUR need an opener with CAP_SYS_ADMIN. All
 * flags can be combined, also with every policy, but P2M_POLICY_CONTIGUOUS with
 * P2M_REGION_GUARDED, with P2M_REGION_COLOUR or with P2M_REGION_ON_DEMAND makes no
 * sense (EINVAL), nor does P2M_POLICY_SUPERPAGE with one of the first two, nor
 * P2M_REGION_NODE with P2M_REGION_GUARDED (EOPNOTSUPP: the kernel gives modules
 * only single frames of a node). A guarded page counts twice against limits.
 *
 * Populates a range of PFNs with zeroed pages. It happens whole or not at all.
 *
 * Frames of a range, or of a colour, are had if they are free, or if who has them
 * can be moved: userspace, the page cache, but not the kernel's own memory, nor
 * another domain.
 *
 * A region with P2M_REGION_ON_DEMAND is empty at first. A page is taken when it
 * is touched through a mapping, or by P2M_POPULATE. Limits and RLIMIT_MEMLOCK
 * count the whole region all the same, so that a touch doesn't fail for them. With
 * P2M_POLICY_SUPERPAGE a whole superpage is taken, if nothing is in its place and
 * there is one; else single frames will do, as in P2M_POPULATE.
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
	__aligned_u64 start_mfn;
	__aligned_u64 end_mfn;
	__u32 node;
	__u32 divisor;
	__u32 colour;
	__u32 __reserved2;
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
 *  - EBUSY: a space maps a page of it, or has its tables there.
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
 * @flags: The flags given at its creation.
 */
struct p2m_region {
	__aligned_u64 base_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 seed;
	__u32 policy;
	__u32 flags;
};

/**
 * struct p2m_constraint - what is asked of the frames of a region
 * @start_mfn: As in struct p2m_region_create.
 * @end_mfn: As there.
 * @node: As there.
 * @divisor: As there.
 * @colour: As there.
 * @__reserved: 0.
 *
 * Members are 0 where the flags of the region don't speak of them.
 */
struct p2m_constraint {
	__aligned_u64 start_mfn;
	__aligned_u64 end_mfn;
	__u32 node;
	__u32 divisor;
	__u32 colour;
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
 * @constraints: Pointer to an array of @nr struct p2m_constraint for the same
 *               regions, or 0.
 */
struct p2m_region_list {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 regions;
	__u32 nr;
	__u32 out_nr;
	__aligned_u64 out_total;
	__aligned_u64 constraints;
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
 * answers P2M_ENTRY_INVALID. An M2P answer was checked against the P2M; so a
 * guard, which is at no PFN, answers P2M_ENTRY_INVALID, too.
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
 *         P2M_ENTRY_INVALID for all of the run. For an opener without
 *         CAP_SYS_ADMIN the MFN reads as 0; where runs begin and end is the same.
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

/**
 * DOC: spaces
 *
 * A space is a test address space of the domain: page tables in the format of
 * the processor, built by code that knows pseudo-physical addresses only,
 * through a backend. The backend decides what is in the tables:
 *
 *  - "native": the pseudo-physical address itself.
 *  - "p2m": the machine address, with the semantics of Xen's paravirtualised
 *    guests. A page that isn't populated gives an empty entry.
 *  - "p2m-lossless": the same, but a page that isn't populated gives an entry
 *    which isn't present and keeps the PFN.
 *
 * The pages of the tables come from a range of PFNs that is named when the
 * space is created, its table pool. While a page is a table of a "p2m" backend,
 * a writable mapping of it is SIGBUS, and so is any mapping for an opener
 * without CAP_SYS_ADMIN; others can read what is in the table.
 *
 * Addresses are those of the lower half: 47 bits with 4 levels, 56 bits with 5.
 */

/** P2M_BACKEND_NAME_LEN - size of a backend's name, with its NUL. */
#define P2M_BACKEND_NAME_LEN 32

/**
 * struct p2m_space_create - ioctl(P2M_SPACE_CREATE)
 * @size: sizeof(struct p2m_space_create).
 * @flags: Must be 0.
 * @backend: Name of the backend, ended by a NUL.
 * @nr_levels: 4 or 5.
 * @out_space: The number by which the space goes from now on.
 * @pool_pfn: First PFN of the table pool.
 * @pool_pages: Number of pages in the table pool, all of them populated.
 * @out_root_pfn: The page of the pool that is the root table.
 *
 *  - ENOENT: no backend has this name.
 *  - EEXIST: a page of the pool belongs to the pool of a space already.
 *  - EFAULT: a page of the pool isn't populated.
 *  - EBUSY: a page of the pool is pinned by somebody else.
 *  - EDQUOT: the domain has too many spaces.
 */
struct p2m_space_create {
	__u32 size;
	__u32 flags;
	__u8 backend[P2M_BACKEND_NAME_LEN];
	__u32 nr_levels;
	__u32 out_space;
	__aligned_u64 pool_pfn;
	__aligned_u64 pool_pages;
	__aligned_u64 out_root_pfn;
};
#define P2M_SPACE_CREATE _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_CREATE)

/**
 * struct p2m_space_destroy - ioctl(P2M_SPACE_DESTROY)
 * @size: sizeof(struct p2m_space_destroy).
 * @flags: Must be 0.
 * @space: The space.
 * @__reserved: Must be 0.
 *
 *  - ENOENT: there is no such space, as with all commands that name one.
 */
struct p2m_space_destroy {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 __reserved;
};
#define P2M_SPACE_DESTROY _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_DESTROY)

/*
 * What a leaf of a space allows: bits of the processor's entry. The bits A and D
 * may be set by us as well as by the processor.
 */
#define P2M_PTE_RW (1ULL << 1)
#define P2M_PTE_USER (1ULL << 2)
#define P2M_PTE_PWT (1ULL << 3)
#define P2M_PTE_PCD (1ULL << 4)
#define P2M_PTE_ACCESSED (1ULL << 5)
#define P2M_PTE_DIRTY (1ULL << 6)
#define P2M_PTE_PAT (1ULL << 7)
#define P2M_PTE_NX (1ULL << 63)

/**
 * struct p2m_space_map - ioctl(P2M_SPACE_MAP)
 * @size: sizeof(struct p2m_space_map).
 * @flags: Must be 0.
 * @space: The space.
 * @max_level: The highest level of leaves: 0 for 4 KiB, 1 for 2 MiB, 2 for
 *             1 GiB. A large leaf is made only where the frames allow it.
 * @address: Where to map, a multiple of the page size.
 * @pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @pte_flags: P2M_PTE_* bits of the leaves.
 *
 * Maps a range of PFNs. It happens whole or not at all.
 *
 *  - EEXIST: something is mapped there already.
 *  - ENOSPC: the table pool has too few pages.
 *  - EBUSY: a page of the table pool is pinned by somebody else.
 *  - EUCLEAN: native tables lead to more tables than there are, as their owner has
 *    linked one of them again.
 */
struct p2m_space_map {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 max_level;
	__aligned_u64 address;
	__aligned_u64 pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 pte_flags;
};
#define P2M_SPACE_MAP _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_MAP)

/* Bits of p2m_space_unmap.flags. */
#define P2M_UNMAP_ALL (1U << 0) /* all of the space */

/**
 * struct p2m_space_unmap - ioctl(P2M_SPACE_UNMAP)
 * @size: sizeof(struct p2m_space_unmap).
 * @flags: P2M_UNMAP_* bits.
 * @space: The space.
 * @__reserved: Must be 0.
 * @address: First address, a multiple of the page size. Must be 0 with
 *           P2M_UNMAP_ALL.
 * @nr_pages: Number of pages, not 0. Must be 0 with P2M_UNMAP_ALL.
 * @out_pages: How many pages were mapped and are not any more, also after an
 *             error.
 *
 * Unmaps what is mapped in a range. A large leaf of which a part stays is split.
 * Tables that have become empty go back to the pool.
 *
 *  - ENOENT: nothing is mapped there. Not with P2M_UNMAP_ALL.
 *  - ENOSPC: the table pool has too few pages to split a leaf.
 *  - EUCLEAN: as with P2M_SPACE_MAP.
 */
struct p2m_space_unmap {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 __reserved;
	__aligned_u64 address;
	__aligned_u64 nr_pages;
	__aligned_u64 out_pages;
};
#define P2M_SPACE_UNMAP _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_UNMAP)

/* Bits of p2m_space_change.flags. */
#define P2M_CHANGE_FRAMES (1U << 0) /* other frames instead of other flags */

/**
 * struct p2m_space_change - ioctl(P2M_SPACE_CHANGE)
 * @size: sizeof(struct p2m_space_change).
 * @flags: P2M_CHANGE_* bits.
 * @space: The space.
 * @__reserved: Must be 0.
 * @address: First address, a multiple of the page size.
 * @nr_pages: Number of pages, not 0.
 * @value: New P2M_PTE_* bits of the leaves; A and D stay if they are set. With
 *         P2M_CHANGE_FRAMES the first one of the PFNs to map instead, with the
 *         same bits.
 * @out_pages: How many pages were changed, also after an error.
 *
 * Changes what is mapped in a range. A large leaf that can't be changed as a
 * whole is split.
 *
 *  - ENOENT: a page of the range isn't mapped. Nothing was changed.
 *  - ENOSPC: the table pool has too few pages to split a leaf.
 *  - EUCLEAN: as with P2M_SPACE_MAP.
 */
struct p2m_space_change {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 __reserved;
	__aligned_u64 address;
	__aligned_u64 nr_pages;
	__aligned_u64 value;
	__aligned_u64 out_pages;
};
#define P2M_SPACE_CHANGE _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_CHANGE)

/**
 * struct p2m_step - one level of a walk
 * @table_pfn: The page that is the table.
 * @table_mfn: Its machine frame.
 * @raw: The entry as it is in the table.
 * @val: The entry as the backend translates it.
 * @level: 0 for the lowest one.
 * @index: Number of the entry in the table.
 *
 * For an opener without CAP_SYS_ADMIN, machine frames read as 0, those in @raw
 * too.
 */
struct p2m_step {
	__aligned_u64 table_pfn;
	__aligned_u64 table_mfn;
	__aligned_u64 raw;
	__aligned_u64 val;
	__u32 level;
	__u32 index;
};

/** P2M_MAX_STEPS - levels that a walk has at most. */
#define P2M_MAX_STEPS 5

/**
 * struct p2m_space_walk - ioctl(P2M_SPACE_WALK)
 * @size: sizeof(struct p2m_space_walk).
 * @flags: Must be 0.
 * @space: The space.
 * @out_nr_steps: Number of elements of @out_steps that were filled in.
 * @address: The address to walk to.
 * @out_steps: What there is at each level, from the root down. The walk ends with
 *             a leaf or with an entry that isn't present.
 */
struct p2m_space_walk {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 out_nr_steps;
	__aligned_u64 address;
	struct p2m_step out_steps[P2M_MAX_STEPS];
};
#define P2M_SPACE_WALK _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_WALK)

/**
 * struct p2m_span - consecutive addresses that are translated alike
 * @address: First address.
 * @nr_pages: Number of pages.
 * @pfn: PFN of the first page, the others follow.
 * @mfn: Machine frame of the first page, the others follow. 0 for an opener
 *       without CAP_SYS_ADMIN.
 * @pte_flags: Bits of the translated entries, without frame numbers. Bit 0 is
 *             not set where nothing is present.
 * @level: Level of the leaves.
 * @__reserved: 0.
 */
struct p2m_span {
	__aligned_u64 address;
	__aligned_u64 nr_pages;
	__aligned_u64 pfn;
	__aligned_u64 mfn;
	__aligned_u64 pte_flags;
	__u32 level;
	__u32 __reserved;
};

/**
 * struct p2m_space_dump - ioctl(P2M_SPACE_DUMP)
 * @size: sizeof(struct p2m_space_dump).
 * @flags: Must be 0.
 * @space: The space.
 * @nr: Number of elements that fit into @spans, not 0.
 * @address: Where to begin, a multiple of the page size.
 * @spans: Pointer to an array of struct p2m_span.
 * @out_nr: Number of elements stored.
 * @__reserved: Must be 0.
 * @out_next: Where to go on, or 0 if there is nothing more.
 */
struct p2m_space_dump {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 nr;
	__aligned_u64 address;
	__aligned_u64 spans;
	__u32 out_nr;
	__u32 __reserved;
	__aligned_u64 out_next;
};
#define P2M_SPACE_DUMP _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_DUMP)

/**
 * struct p2m_space_info - one space, as P2M_SPACE_LIST reports it
 * @backend: Name of the backend, ended by a NUL.
 * @space: The number of the space.
 * @nr_levels: 4 or 5.
 * @pool_pfn: First PFN of the table pool.
 * @pool_pages: Number of pages in the table pool.
 * @root_pfn: The page of the pool that is the root table.
 * @nr_tables: How many pages of the pool are tables.
 */
struct p2m_space_info {
	__u8 backend[P2M_BACKEND_NAME_LEN];
	__u32 space;
	__u32 nr_levels;
	__aligned_u64 pool_pfn;
	__aligned_u64 pool_pages;
	__aligned_u64 root_pfn;
	__aligned_u64 nr_tables;
};

/**
 * struct p2m_space_list - ioctl(P2M_SPACE_LIST)
 * @size: sizeof(struct p2m_space_list).
 * @flags: Must be 0.
 * @start_space: Report spaces with this number or a higher one, in order.
 * @nr: Number of elements that fit into @spaces.
 * @spaces: Pointer to an array of struct p2m_space_info. Not used if @nr is 0.
 * @out_nr: Number of elements stored.
 * @out_total: Number of spaces with @start_space or a higher number.
 */
struct p2m_space_list {
	__u32 size;
	__u32 flags;
	__u32 start_space;
	__u32 nr;
	__aligned_u64 spaces;
	__u32 out_nr;
	__u32 out_total;
};
#define P2M_SPACE_LIST _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_LIST)

/* Values of p2m_space_access.op. */
#define P2M_ACCESS_READ 0 /* words to @buffer */
#define P2M_ACCESS_WRITE 1 /* words from @buffer */
#define P2M_ACCESS_CHECKSUM 2 /* only @out_checksum */

/* Bits of p2m_space_access.out_fault. */
#define P2M_FAULT_RAISED (1U << 0) /* there was one */
#define P2M_FAULT_PROTECTION (1U << 1) /* of a page that is present */
#define P2M_FAULT_WRITE (1U << 2) /* by a write */

/** P2M_MAX_ACCESS_WORDS - how many words can be accessed at once. */
#define P2M_MAX_ACCESS_WORDS 65536U

/**
 * struct p2m_space_access - ioctl(P2M_SPACE_ACCESS)
 * @size: sizeof(struct p2m_space_access).
 * @flags: Must be 0.
 * @space: The space. Its backend has to be a "p2m" one.
 * @op: One of P2M_ACCESS_*.
 * @address: First address, a multiple of 8.
 * @buffer: Pointer to an array of @nr_words 64-bit words. Not used with
 *          P2M_ACCESS_CHECKSUM.
 * @nr_words: Number of words, not 0 and at most P2M_MAX_ACCESS_WORDS.
 * @out_words: How many words were accessed.
 * @out_checksum: FNV-1a, 64 bits wide, of the bytes that were accessed.
 * @out_fault_address: The address that the processor couldn't access.
 * @out_fault: P2M_FAULT_* bits.
 * @__reserved: Must be 0.
 *
 * Has the processor walk the tables: with interrupts off, it gets the space's
 * root, accesses memory, and gets the kernel's root back. A fault ends the
 * access and is told, which is a success. Accessed and dirty bits that the
 * processor sets are in the tables afterwards.
 *
 * If processor and space have another number of levels, only addresses below 2^47
 * can be accessed.
 *
 *  - EPERM: the caller, or the opener, has no CAP_SYS_ADMIN, or the kernel is
 *    locked down.
 *  - EACCES: P2M_ACCESS_WRITE, and the descriptor wasn't opened for writing.
 *  - EOPNOTSUPP: not with this backend, or not on this machine. The kernel log
 *    says why.
 *  - ERANGE: not all of the words are at addresses that can be accessed.
 *  - EUCLEAN: an entry on the way is one that the processor must not get: its leaf
 *    is cached in a way of its own (P2M_PTE_PWT, P2M_PTE_PCD, P2M_PTE_PAT), or a
 *    table could be written through it.
 *  - EIO: a machine check.
 */
struct p2m_space_access {
	__u32 size;
	__u32 flags;
	__u32 space;
	__u32 op;
	__aligned_u64 address;
	__aligned_u64 buffer;
	__u32 nr_words;
	__u32 out_words;
	__aligned_u64 out_checksum;
	__aligned_u64 out_fault_address;
	__u32 out_fault;
	__u32 __reserved;
};
#define P2M_SPACE_ACCESS _IO(P2M_IOCTL_TYPE, P2M_CMD_SPACE_ACCESS)

/**
 * DOC: a live P2M
 *
 * The machine frames under a domain change while it is mapped and in use. Its
 * pages keep their PFNs and, unless they are released, their contents; whoever
 * touches a page meanwhile waits for a moment. Spaces keep up.
 *
 * The commands work through their range in batches, and between batches a fatal
 * signal ends the command with EINTR. out_next_pfn says how far it got: everything
 * before it is done. Where memory runs out within a batch, the part of it that was
 * done stays, and is counted, too.
 *
 * A page that is pinned by somebody else (for DMA or direct I/O, or as a table of
 * a space) can't get another frame. It is counted as busy and left alone.
 *
 * Large leaves of spaces that map pages which get other frames are split. If a
 * table pool has too few pages for that, the command fails with ENOSPC. Native
 * tables are left as they are, since they have no frames.
 */

/**
 * struct p2m_release - ioctl(P2M_RELEASE)
 * @size: sizeof(struct p2m_release).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @out_pages: How many pages were released.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Gives pages of regions back to the kernel, as a balloon does. Touching one is
 * SIGBUS until it is populated again or, in a region with P2M_REGION_ON_DEMAND,
 * takes a new one. Pages that aren't there are passed over. A frame that
 * somebody else pinned goes when it's unpinned.
 *
 *  - ENOENT: a PFN of the range is in no region.
 *  - EBUSY: a space maps a page of the range, or has a table there; or the range
 *    has a part of a superpage that is pinned. A space of which the native tables lead
 *    to more tables than there are is taken to map all pages.
 *  - ENOSPC: to split a superpage that is partly in the range, leaves of a space would
 *    have to be split, and its table pool has too few pages.
 *  - EADDRNOTAVAIL: there is memory, but no frames that satisfy the policy, to split one.
 */
struct p2m_release {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_pages;
	__aligned_u64 out_next_pfn;
};
#define P2M_RELEASE _IO(P2M_IOCTL_TYPE, P2M_CMD_RELEASE)

/**
 * struct p2m_populate - ioctl(P2M_POPULATE)
 * @size: sizeof(struct p2m_populate).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @out_pages: How many pages were populated.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Takes zeroed pages for PFNs of regions that have none, by the policy of the
 * region. In a contiguous region they come from anywhere.
 *
 *  - ENOENT: a PFN of the range is in no region.
 *  - EADDRNOTAVAIL: there is memory, but no frames that satisfy the policy.
 */
struct p2m_populate {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_pages;
	__aligned_u64 out_next_pfn;
};
#define P2M_POPULATE _IO(P2M_IOCTL_TYPE, P2M_CMD_POPULATE)

/**
 * struct p2m_move - ioctl(P2M_MOVE)
 * @size: sizeof(struct p2m_move).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @seed: For P2M_POLICY_SCATTER. Must be 0 for other policies.
 * @policy: P2M_POLICY_ANY or P2M_POLICY_SCATTER.
 * @__reserved: Must be 0.
 * @out_pages: How many pages were moved.
 * @out_busy: How many pages were left alone.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Gives pages other frames, with the same contents. PFNs without a page are
 * passed over. With P2M_POLICY_ANY a whole superpage becomes another one, if there
 * is one; else it is split.
 */
struct p2m_move {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 seed;
	__u32 policy;
	__u32 __reserved;
	__aligned_u64 out_pages;
	__aligned_u64 out_busy;
	__aligned_u64 out_next_pfn;
};
#define P2M_MOVE _IO(P2M_IOCTL_TYPE, P2M_CMD_MOVE)

/* Bits of p2m_evacuate.flags. */
#define P2M_EVACUATE_KEEP_OUT (1U << 0) /* take no frame from there again */
#define P2M_EVACUATE_READMIT (1U << 1) /* only undo P2M_EVACUATE_KEEP_OUT */

/**
 * struct p2m_evacuate - ioctl(P2M_EVACUATE)
 * @size: sizeof(struct p2m_evacuate).
 * @flags: P2M_EVACUATE_* bits.
 * @start_mfn: First machine frame.
 * @nr_frames: Number of machine frames, not 0.
 * @out_pages: How many pages were moved.
 * @out_busy: How many pages were left alone.
 * @out_next_mfn: All frames of the range before this one are done.
 *
 * A superpage goes as a whole, also if only a part of it is in the range.
 *
 * Moves the domain's pages out of a range of machine frames. Needs an opener with
 * CAP_SYS_ADMIN. Frames that are kept out of are a set: ranges may overlap, and
 * any part of what was excluded can be readmitted.
 *
 *  - ENOENT: P2M_EVACUATE_READMIT, and no frame of the range is excluded.
 *  - EDQUOT: the set would fall into more than 65536 pieces.
 */
struct p2m_evacuate {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_mfn;
	__aligned_u64 nr_frames;
	__aligned_u64 out_pages;
	__aligned_u64 out_busy;
	__aligned_u64 out_next_mfn;
};
#define P2M_EVACUATE _IO(P2M_IOCTL_TYPE, P2M_CMD_EVACUATE)

/**
 * struct p2m_contiguous - ioctl(P2M_CONTIGUOUS)
 * @size: sizeof(struct p2m_contiguous).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @order: log2 of the number of pages, at most 18.
 * @address_bits: All machine addresses shall have at most so many bits. 0 for any
 *                number of them; else it needs an opener with CAP_SYS_ADMIN.
 * @out_busy_pfn: After EBUSY the first page that can't be moved.
 *
 * Gives pages frames that follow each other, with the same contents; the first
 * one is aligned to their number. They are single frames, whatever their number:
 * P2M_COLLAPSE makes superpages. After an error the pages have the very frames that
 * they had, but for a superpage that was partly in the range, which may be split.
 * P2M_MOVE with P2M_POLICY_SCATTER is the inverse.
 *
 *  - ENOENT: a PFN of the range is in no region.
 *  - EINVAL: the region is guarded or of a colour, or the range is of regions that
 *    ask other things of their frames.
 *  - EFAULT: a page of the range isn't populated.
 *  - EBUSY: a page of the range can't be moved.
 *  - EADDRNOTAVAIL: there is no such run of frames.
 */
struct p2m_contiguous {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__u32 order;
	__u32 address_bits;
	__aligned_u64 out_busy_pfn;
};
#define P2M_CONTIGUOUS _IO(P2M_IOCTL_TYPE, P2M_CMD_CONTIGUOUS)

/**
 * struct p2m_collapse - ioctl(P2M_COLLAPSE)
 * @size: sizeof(struct p2m_collapse).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @out_pages: How many pages became a part of a superpage.
 * @out_superpages: How many superpages there are where all of them could be.
 * @out_busy: How many pages were left alone, as some of the same 512 are pinned.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Gives each 512 pages at PFNs that are a multiple of that, and are all in the
 * range and in one region, a superpage of frames, with the same contents, whatever
 * the policy of the region. Where not all of the 512 are populated, nothing is
 * done. Tables that hold them are given back.
 *
 *  - ENOENT: a PFN of the range is in no region.
 *  - EINVAL: a region is guarded or of a colour.
 *  - EADDRNOTAVAIL: there is memory, but no superpage that satisfies the policy.
 */
struct p2m_collapse {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_pages;
	__aligned_u64 out_superpages;
	__aligned_u64 out_busy;
	__aligned_u64 out_next_pfn;
};
#define P2M_COLLAPSE _IO(P2M_IOCTL_TYPE, P2M_CMD_COLLAPSE)

/**
 * struct p2m_exchange - ioctl(P2M_EXCHANGE)
 * @size: sizeof(struct p2m_exchange).
 * @flags: Must be 0.
 * @a_pfn: First PFN of a range.
 * @b_pfn: First PFN of another range.
 * @nr_pages: Number of pages, not 0.
 * @out_pages: How many pairs of pages exchanged their frames.
 * @out_busy: How many pairs were left alone.
 *
 * Has pages exchange their frames. Their contents stay where they were. Superpages
 * are split, unless both ranges begin at a multiple of 512: then each 512 pages
 * that have one on either side, and are in one region on both, exchange their
 * frames all or not at all.
 *
 *  - EINVAL: the ranges have a page in common, or are of regions that ask other
 *    things of their frames (guards, range, colour).
 *  - ENOENT: a PFN of the ranges is in no region.
 *  - EFAULT: a page of the ranges isn't populated.
 */
struct p2m_exchange {
	__u32 size;
	__u32 flags;
	__aligned_u64 a_pfn;
	__aligned_u64 b_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_pages;
	__aligned_u64 out_busy;
};
#define P2M_EXCHANGE _IO(P2M_IOCTL_TYPE, P2M_CMD_EXCHANGE)

/**
 * struct p2m_audit - ioctl(P2M_AUDIT)
 * @size: sizeof(struct p2m_audit).
 * @flags: Must be 0.
 * @out_frames: PFNs with a frame of the domain.
 * @out_pinned: Frames that somebody else has a reference to, besides mappings. All
 *              of a superpage are, if one is.
 * @out_p2m_bad: PFNs at the frame of which the M2P doesn't have the PFN.
 * @out_m2p_bad: Frames at the PFN of which the P2M doesn't have the frame.
 * @out_orphans: PFNs with a frame, but in no region.
 * @out_refs_bad: Frames with fewer references than the domain and mappings have. One
 *                that seems so is taken out of mappings for a moment, to be certain.
 * @out_spaces_bad: Entries of spaces that name a frame which the domain doesn't
 *                  know.
 * @out_count_bad: 1 if the domain counts another number of frames.
 * @out_first_pfn: The first PFN with something wrong, or P2M_ENTRY_INVALID.
 * @out_first_mfn: The first frame with something wrong, or P2M_ENTRY_INVALID. 0
 *                 for an opener without CAP_SYS_ADMIN.
 *
 * Checks all of the domain, and changes nothing. Nothing is wrong if all members
 * with _bad in their names, and @out_orphans, are 0.
 */
struct p2m_audit {
	__u32 size;
	__u32 flags;
	__aligned_u64 out_frames;
	__aligned_u64 out_pinned;
	__aligned_u64 out_p2m_bad;
	__aligned_u64 out_m2p_bad;
	__aligned_u64 out_orphans;
	__aligned_u64 out_refs_bad;
	__aligned_u64 out_spaces_bad;
	__aligned_u64 out_count_bad;
	__aligned_u64 out_first_pfn;
	__aligned_u64 out_first_mfn;
};
#define P2M_AUDIT _IO(P2M_IOCTL_TYPE, P2M_CMD_AUDIT)

/* Bits of p2m_guard_check.flags. */
#define P2M_GUARD_REFILL (1U << 0) /* fill broken guards with the pattern again */

/**
 * struct p2m_guard_check - ioctl(P2M_GUARD_CHECK)
 * @size: sizeof(struct p2m_guard_check).
 * @flags: P2M_GUARD_* bits.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @out_guards: How many guards were looked at. One between two pages counts for
 *              each of them.
 * @out_broken: How many of them don't hold the pattern.
 * @out_pfn: The page next to the first broken one, or P2M_ENTRY_INVALID.
 * @out_offset: Where that is broken first, in bytes from the beginning of the
 *              page: negative before it, or behind it.
 * @out_value: What is there instead of P2M_GUARD_PATTERN, in the word that the
 *             offset is in.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Looks whether somebody has run over the edge of a frame of a guarded region.
 *
 *  - ENOENT: a PFN of the range is in no region.
 */
struct p2m_guard_check {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_guards;
	__aligned_u64 out_broken;
	__aligned_u64 out_pfn;
	__aligned_s64 out_offset;
	__aligned_u64 out_value;
	__aligned_u64 out_next_pfn;
};
#define P2M_GUARD_CHECK _IO(P2M_IOCTL_TYPE, P2M_CMD_GUARD_CHECK)

/**
 * struct p2m_fail_nth - ioctl(P2M_FAIL_NTH)
 * @size: sizeof(struct p2m_fail_nth).
 * @flags: Must be 0.
 * @nth: The place that fails, counted from 1. 0 for none.
 * @out_left: What was left to count since the last time: 0 if that has failed.
 *
 * Has the n-th place of this domain that can fail do so, once, as
 * /proc/self/fail-nth does. Places are those that need memory, and those that
 * find a page in use by somebody else. For tests of what a failure undoes: count
 * up until a command succeeds and @out_left isn't 0.
 */
struct p2m_fail_nth {
	__u32 size;
	__u32 flags;
	__aligned_u64 nth;
	__aligned_u64 out_left;
};
#define P2M_FAIL_NTH _IO(P2M_IOCTL_TYPE, P2M_CMD_FAIL_NTH)

/**
 * struct p2m_foreign_map - ioctl(P2M_FOREIGN_MAP)
 * @size: sizeof(struct p2m_foreign_map).
 * @flags: Must be 0.
 * @fd: A descriptor of another domain.
 * @nr: Number of slots, not 0.
 * @start_pfn: The first slot: a PFN of this domain, in a region, where nothing is.
 * @frames: Pointer to an array of @nr 64-bit PFNs of the other domain.
 * @errors: Pointer to an array of @nr 32-bit numbers: for each slot 0, or the
 *          errno that says why it stays empty.
 * @out_nr: How many slots were filled.
 * @__reserved: Must be 0.
 *
 * Puts frames of another domain into slots, as P2M_ENTRY_FOREIGN. Both see the
 * same memory from then on. The other domain can't give the page another frame
 * meanwhile; it can give it back, and then the frame goes when the slot is
 * emptied. A superpage of the other domain is split for that, as all of it would stay
 * with one page. A slot that fails doesn't keep others from being filled.
 *
 *  - EBADF, EINVAL: @fd is none, or not of another domain.
 *  - EACCES: @fd wasn't opened for writing.
 *
 * Of a slot:
 *
 *  - EFAULT: the other domain has no page there, or a table of a space.
 *  - EBUSY: it's one of a superpage of which others are pinned, or a table.
 *  - ENOSPC: to split the superpage, leaves of a space of the other domain would have
 *    to be split, and its table pool has too few pages.
 *  - EADDRNOTAVAIL: there is memory, but no frames that satisfy the policy, to split it.
 *  - EEXIST: the slot isn't empty.
 *  - ENOENT: the slot is in no region.
 */
struct p2m_foreign_map {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 nr;
	__aligned_u64 start_pfn;
	__aligned_u64 frames;
	__aligned_u64 errors;
	__u32 out_nr;
	__u32 __reserved;
};
#define P2M_FOREIGN_MAP _IO(P2M_IOCTL_TYPE, P2M_CMD_FOREIGN_MAP)

/**
 * struct p2m_foreign_unmap - ioctl(P2M_FOREIGN_UNMAP)
 * @size: sizeof(struct p2m_foreign_unmap).
 * @flags: Must be 0.
 * @start_pfn: The first slot.
 * @errors: Pointer to an array of @nr 32-bit numbers: for each slot 0, or the
 *          errno that says why it isn't emptied.
 * @nr: Number of slots, not 0.
 * @out_nr: How many slots were emptied.
 *
 * Empties slots. One that fails doesn't keep others from being emptied.
 *
 * Of a slot:
 *
 *  - EINVAL: it has no foreign frame.
 *  - EBUSY: a space maps the frame, by this slot or by another one that has it, too.
 */
struct p2m_foreign_unmap {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 errors;
	__u32 nr;
	__u32 out_nr;
};
#define P2M_FOREIGN_UNMAP _IO(P2M_IOCTL_TYPE, P2M_CMD_FOREIGN_UNMAP)

/**
 * struct p2m_identity - ioctl(P2M_IDENTITY)
 * @size: sizeof(struct p2m_identity).
 * @flags: Must be 0.
 * @start_pfn: First PFN, and first machine frame.
 * @nr_pages: Number of pages, not 0.
 * @out_next_pfn: All PFNs of the range before this one are done.
 *
 * Has PFNs of a region, where nothing is, be the machine frames of the same
 * numbers, as P2M_ENTRY_IDENTITY. They are for page tables: a mapping doesn't show
 * them. P2M_RELEASE takes them away.
 *
 *  - EPERM: the caller has no CAP_SYS_RAWIO, or the kernel is locked down.
 *  - EINVAL: some of the machine frames are memory.
 *  - EEXIST: something is at one of the PFNs.
 *  - ENOENT: one of the PFNs is in no region.
 */
struct p2m_identity {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__aligned_u64 out_next_pfn;
};
#define P2M_IDENTITY _IO(P2M_IOCTL_TYPE, P2M_CMD_IDENTITY)

/* Bits of p2m_dma_segment.flags. The first three say why it must bounce. */
#define P2M_DMA_MASK (1U << 0) /* the device can't address all of it */
#define P2M_DMA_STRADDLE (1U << 1) /* the range is in more segments than it takes */
#define P2M_DMA_ALIGNMENT (1U << 2) /* address or length is not aligned */
#define P2M_DMA_FOREIGN (1U << 3) /* frames of somebody else */
#define P2M_DMA_IDENTITY (1U << 4) /* frames that are no memory */
#define P2M_DMA_UNBACKED (1U << 5) /* no frames: nothing to access */

/** P2M_DMA_BOUNCE - a segment with one of these must bounce */
#define P2M_DMA_BOUNCE (P2M_DMA_MASK | P2M_DMA_STRADDLE | P2M_DMA_ALIGNMENT)

/**
 * struct p2m_dma_segment - consecutive bytes with consecutive machine addresses
 * @pfn: The page of the first byte.
 * @address: Machine address of the first byte, or P2M_ENTRY_INVALID where there
 *           are no frames.
 * @length: Number of bytes.
 * @offset: Where in its page the first byte is.
 * @flags: P2M_DMA_* bits.
 */
struct p2m_dma_segment {
	__aligned_u64 pfn;
	__aligned_u64 address;
	__aligned_u64 length;
	__u32 offset;
	__u32 flags;
};

/**
 * struct p2m_dma_plan - ioctl(P2M_DMA_PLAN)
 * @size: sizeof(struct p2m_dma_plan).
 * @flags: Must be 0.
 * @start_pfn: A page.
 * @offset: Where the range begins, in bytes from the beginning of that page. It
 *          may be more than a page.
 * @length: Number of bytes in the range, not 0.
 * @dma_mask: The highest machine address that the device can access, as in struct
 *            device.
 * @segment_boundary_mask: No segment has addresses on both sides of a multiple of
 *                         this plus 1, as in struct device_dma_parameters.
 * @max_segment_size: The most bytes of a segment, as there.
 * @dma_alignment: The bits that have to be 0 in the address and in the length of a
 *                 segment, as in struct queue_limits.
 * @max_segments: The most segments that the device takes at once, as there. 1 for
 *                one that can't gather.
 * @position: Where to begin, in bytes from the beginning of the range: 0, or where
 *            a segment begins.
 * @segments: Pointer to an array of struct p2m_dma_segment. Not used if @nr is 0.
 * @nr: Number of elements that fit into @segments. 0 only counts.
 * @out_nr: Number of segments stored, or counted if @nr is 0.
 * @out_next: The position to go on at: behind the last segment stored or counted.
 * @out_bounced: How many of these segments must bounce.
 * @out_bounced_bytes: Number of bytes in them.
 *
 * What a device has to be told to access a range of bytes: as few segments as
 * possible, in order and without gaps. A limit of 0 is none. Pages that aren't
 * populated are a segment without limits; frames of different owners are never in
 * one segment. Needs an opener with CAP_SYS_ADMIN.
 *
 * P2M_DMA_STRADDLE is for all of a range that is in more than @max_segments, if it
 * would be in fewer if all of its frames followed each other. A range that is in
 * too many only for its length has to be cut by its owner.
 *
 * Addresses are those of the machine, as a device without an IOMMU sees them. They
 * stay what they are only while the pages are pinned, or nobody changes their
 * frames.
 *
 *  - EINVAL: a mask, but for @dma_mask, isn't one less than a power of two;
 *    @max_segment_size, or @segment_boundary_mask plus 1, isn't a multiple of the
 *    alignment; or @position is beyond the range.
 */
struct p2m_dma_plan {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 dma_mask;
	__aligned_u64 segment_boundary_mask;
	__aligned_u64 max_segment_size;
	__u32 dma_alignment;
	__u32 max_segments;
	__aligned_u64 position;
	__aligned_u64 segments;
	__u32 nr;
	__u32 out_nr;
	__aligned_u64 out_next;
	__aligned_u64 out_bounced;
	__aligned_u64 out_bounced_bytes;
};
#define P2M_DMA_PLAN _IO(P2M_IOCTL_TYPE, P2M_CMD_DMA_PLAN)

/**
 * struct p2m_dma_buf_export - ioctl(P2M_DMA_BUF_EXPORT)
 * @size: sizeof(struct p2m_dma_buf_export).
 * @flags: Must be 0.
 * @start_pfn: First PFN.
 * @nr_pages: Number of pages, not 0.
 * @fd_flags: O_RDONLY, O_WRONLY or O_RDWR for mappings of the dma-buf, and
 *            O_CLOEXEC, as in struct dma_heap_allocation_data.
 * @out_fd: A descriptor of the dma-buf, or -1.
 *
 * Makes a dma-buf of a range, to be handed to drivers. Each device that it's
 * mapped for gets a bus address for each run of frames that it takes in one piece.
 *
 * The pages keep their frames as long as the dma-buf lives: for all commands they
 * are pinned. When they are released, or their region or domain goes, they leave the
 * domain only. They count once more against limits and RLIMIT_MEMLOCK. Superpages that
 * are partly in the range are split, as all of one stays with any of its pages.
 * /proc/pid/fdinfo of the domain says how many dma-bufs it has, and which device attached last.
 *
 *  - EOPNOTSUPP: the kernel has no dma-bufs.
 *  - ENOENT: a PFN of the range is in no region.
 *  - EFAULT: a page of the range isn't populated, is a table of a space, or is no
 *    memory.
 *  - EBUSY: a superpage that is partly in the range can't be split, as it is pinned
 *    or has a table of a space.
 *  - ENOSPC, EADDRNOTAVAIL: nor can it for want of pages in the table pool of a space, or
 *    of frames that satisfy the policy.
 *  - EACCES: @fd_flags ask for writing, and the domain's descriptor wasn't opened
 *    for it.
 *  - EMFILE: too many descriptors.
 */
struct p2m_dma_buf_export {
	__u32 size;
	__u32 flags;
	__aligned_u64 start_pfn;
	__aligned_u64 nr_pages;
	__u32 fd_flags;
	__s32 out_fd;
};
#define P2M_DMA_BUF_EXPORT _IO(P2M_IOCTL_TYPE, P2M_CMD_DMA_BUF_EXPORT)

#endif /* _UAPI_P2M_H */
