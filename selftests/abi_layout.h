/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The layout of the ABI, written down a second time.
 *
 * p2m.h must never change in a way that these assertions notice. They hold for
 * 64-bit and 32-bit programs alike: that is why the device needs no translation
 * for compat callers.
 */
#ifndef P2M_ABI_LAYOUT_H
#define P2M_ABI_LAYOUT_H

#include <stddef.h>

#include <p2m.h>

#define ABI_SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), "size of " #type)

#define ABI_MEMBER(type, member, offset, bytes)                          \
	_Static_assert(offsetof(struct type, member) == (offset) &&      \
		       sizeof(((struct type *)0)->member) == (bytes),    \
		       #type "." #member)

#define ABI_VALUE(name, value) _Static_assert((name) == (value), #name)

ABI_VALUE(P2M_IOCTL_TYPE, 0xbb);
ABI_VALUE(P2M_ABI_VERSION, 1);
ABI_VALUE(P2M_INFO, 0xbb80);
ABI_VALUE(P2M_STAT, 0xbb81);
ABI_VALUE(P2M_REGION_CREATE, 0xbb82);
ABI_VALUE(P2M_REGION_DESTROY, 0xbb83);
ABI_VALUE(P2M_REGION_LIST, 0xbb84);
ABI_VALUE(P2M_TRANSLATE, 0xbb85);
ABI_VALUE(P2M_RUNS, 0xbb86);

ABI_VALUE(P2M_ENTRY_INVALID, ~0ULL);
ABI_VALUE(P2M_ENTRY_FOREIGN, 1ULL << 63);
ABI_VALUE(P2M_ENTRY_IDENTITY, 1ULL << 62);
ABI_VALUE(P2M_ENTRY_MFN_MASK, (1ULL << 62) - 1);

ABI_VALUE(P2M_MAX_PFN, 1ULL << 31);
ABI_VALUE(P2M_OFFSET_MEMORY, 0);
ABI_VALUE(P2M_OFFSET_HEADER, P2M_MAX_PFN << 12);
ABI_VALUE(P2M_OFFSET_P2M, 0xc0000000000ULL);
ABI_VALUE(P2M_OFFSET_M2P, 0x100000000000ULL);
/* The windows don't overlap, and all but the last are in reach of mmap2(). */
_Static_assert(P2M_OFFSET_P2M + P2M_MAX_PFN * 8 <= P2M_OFFSET_M2P, "windows");
_Static_assert(P2M_OFFSET_P2M + P2M_MAX_PFN * 8 <= 1ULL << 44, "mmap2");

ABI_VALUE(P2M_FEATURE_MFN_VISIBLE, 1);
ABI_VALUE(P2M_FEATURE_TABLE_MMAP, 2);
ABI_VALUE(P2M_POLICY_ANY, 0);
ABI_VALUE(P2M_POLICY_SCATTER, 1);
ABI_VALUE(P2M_POLICY_CONTIGUOUS, 2);
ABI_VALUE(P2M_REGION_FIXED, 1);
ABI_VALUE(P2M_TRANSLATE_M2P, 1);

ABI_SIZE(p2m_header, 40);
ABI_MEMBER(p2m_header, abi_version, 0, 4);
ABI_MEMBER(p2m_header, page_shift, 4, 4);
ABI_MEMBER(p2m_header, generation, 8, 8);
ABI_MEMBER(p2m_header, end_pfn, 16, 8);
ABI_MEMBER(p2m_header, end_mfn, 24, 8);
ABI_MEMBER(p2m_header, m2p_generation, 32, 8);

ABI_SIZE(p2m_info, 72);
ABI_MEMBER(p2m_info, size, 0, 4);
ABI_MEMBER(p2m_info, flags, 4, 4);
ABI_MEMBER(p2m_info, out_abi_version, 8, 4);
ABI_MEMBER(p2m_info, out_page_shift, 12, 4);
ABI_MEMBER(p2m_info, out_features, 16, 8);
ABI_MEMBER(p2m_info, out_policies, 24, 8);
ABI_MEMBER(p2m_info, out_max_pfn, 32, 8);
ABI_MEMBER(p2m_info, out_max_mfn, 40, 8);
ABI_MEMBER(p2m_info, out_max_domain_pages, 48, 8);
ABI_MEMBER(p2m_info, out_max_total_pages, 56, 8);
ABI_MEMBER(p2m_info, out_max_regions, 64, 4);
ABI_MEMBER(p2m_info, out_default_policy, 68, 4);

ABI_SIZE(p2m_stat, 80);
ABI_MEMBER(p2m_stat, size, 0, 4);
ABI_MEMBER(p2m_stat, flags, 4, 4);
ABI_MEMBER(p2m_stat, out_generation, 8, 8);
ABI_MEMBER(p2m_stat, out_regions, 16, 8);
ABI_MEMBER(p2m_stat, out_pages, 24, 8);
ABI_MEMBER(p2m_stat, out_p2m_tables, 32, 8);
ABI_MEMBER(p2m_stat, out_m2p_tables, 40, 8);
ABI_MEMBER(p2m_stat, out_faults, 48, 8);
ABI_MEMBER(p2m_stat, out_fault_pages, 56, 8);
ABI_MEMBER(p2m_stat, out_total_domains, 64, 8);
ABI_MEMBER(p2m_stat, out_total_pages, 72, 8);

ABI_SIZE(p2m_region_create, 40);
ABI_MEMBER(p2m_region_create, size, 0, 4);
ABI_MEMBER(p2m_region_create, flags, 4, 4);
ABI_MEMBER(p2m_region_create, policy, 8, 4);
ABI_MEMBER(p2m_region_create, __reserved, 12, 4);
ABI_MEMBER(p2m_region_create, nr_pages, 16, 8);
ABI_MEMBER(p2m_region_create, seed, 24, 8);
ABI_MEMBER(p2m_region_create, base_pfn, 32, 8);

ABI_SIZE(p2m_region_destroy, 16);
ABI_MEMBER(p2m_region_destroy, size, 0, 4);
ABI_MEMBER(p2m_region_destroy, flags, 4, 4);
ABI_MEMBER(p2m_region_destroy, base_pfn, 8, 8);

ABI_SIZE(p2m_region, 32);
ABI_MEMBER(p2m_region, base_pfn, 0, 8);
ABI_MEMBER(p2m_region, nr_pages, 8, 8);
ABI_MEMBER(p2m_region, seed, 16, 8);
ABI_MEMBER(p2m_region, policy, 24, 4);
ABI_MEMBER(p2m_region, __reserved, 28, 4);

ABI_SIZE(p2m_region_list, 40);
ABI_MEMBER(p2m_region_list, size, 0, 4);
ABI_MEMBER(p2m_region_list, flags, 4, 4);
ABI_MEMBER(p2m_region_list, start_pfn, 8, 8);
ABI_MEMBER(p2m_region_list, regions, 16, 8);
ABI_MEMBER(p2m_region_list, nr, 24, 4);
ABI_MEMBER(p2m_region_list, out_nr, 28, 4);
ABI_MEMBER(p2m_region_list, out_total, 32, 8);

ABI_SIZE(p2m_translate, 32);
ABI_MEMBER(p2m_translate, size, 0, 4);
ABI_MEMBER(p2m_translate, flags, 4, 4);
ABI_MEMBER(p2m_translate, nr, 8, 4);
ABI_MEMBER(p2m_translate, out_nr, 12, 4);
ABI_MEMBER(p2m_translate, frames, 16, 8);
ABI_MEMBER(p2m_translate, entries, 24, 8);

ABI_SIZE(p2m_run, 24);
ABI_MEMBER(p2m_run, pfn, 0, 8);
ABI_MEMBER(p2m_run, nr_pages, 8, 8);
ABI_MEMBER(p2m_run, entry, 16, 8);

ABI_SIZE(p2m_runs, 48);
ABI_MEMBER(p2m_runs, size, 0, 4);
ABI_MEMBER(p2m_runs, flags, 4, 4);
ABI_MEMBER(p2m_runs, start_pfn, 8, 8);
ABI_MEMBER(p2m_runs, nr_pages, 16, 8);
ABI_MEMBER(p2m_runs, runs, 24, 8);
ABI_MEMBER(p2m_runs, nr, 32, 4);
ABI_MEMBER(p2m_runs, out_nr, 36, 4);
ABI_MEMBER(p2m_runs, out_next_pfn, 40, 8);

#endif /* P2M_ABI_LAYOUT_H */
