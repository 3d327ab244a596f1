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
ABI_VALUE(P2M_SPACE_CREATE, 0xbb87);
ABI_VALUE(P2M_SPACE_DESTROY, 0xbb88);
ABI_VALUE(P2M_SPACE_MAP, 0xbb89);
ABI_VALUE(P2M_SPACE_UNMAP, 0xbb8a);
ABI_VALUE(P2M_SPACE_CHANGE, 0xbb8b);
ABI_VALUE(P2M_SPACE_WALK, 0xbb8c);
ABI_VALUE(P2M_SPACE_DUMP, 0xbb8d);
ABI_VALUE(P2M_SPACE_ACCESS, 0xbb8e);
ABI_VALUE(P2M_RELEASE, 0xbb8f);
ABI_VALUE(P2M_POPULATE, 0xbb90);
ABI_VALUE(P2M_MOVE, 0xbb91);
ABI_VALUE(P2M_EVACUATE, 0xbb92);
ABI_VALUE(P2M_CONTIGUOUS, 0xbb93);
ABI_VALUE(P2M_EXCHANGE, 0xbb94);
ABI_VALUE(P2M_AUDIT, 0xbb95);
ABI_VALUE(P2M_GUARD_CHECK, 0xbb96);
ABI_VALUE(P2M_FAIL_NTH, 0xbb97);
ABI_VALUE(P2M_DMA_PLAN, 0xbb98);
ABI_VALUE(P2M_FOREIGN_MAP, 0xbb99);
ABI_VALUE(P2M_FOREIGN_UNMAP, 0xbb9a);
ABI_VALUE(P2M_IDENTITY, 0xbb9b);
ABI_VALUE(P2M_SPACE_LIST, 0xbb9c);

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
ABI_VALUE(P2M_POLICY_SUPERPAGE, 3);
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

ABI_SIZE(p2m_stat, 104);
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
ABI_MEMBER(p2m_stat, out_frames, 80, 8);
ABI_MEMBER(p2m_stat, out_guards, 88, 8);
ABI_MEMBER(p2m_stat, out_superpages, 96, 8);

ABI_SIZE(p2m_region_create, 72);
ABI_MEMBER(p2m_region_create, size, 0, 4);
ABI_MEMBER(p2m_region_create, flags, 4, 4);
ABI_MEMBER(p2m_region_create, policy, 8, 4);
ABI_MEMBER(p2m_region_create, __reserved, 12, 4);
ABI_MEMBER(p2m_region_create, nr_pages, 16, 8);
ABI_MEMBER(p2m_region_create, seed, 24, 8);
ABI_MEMBER(p2m_region_create, base_pfn, 32, 8);
ABI_MEMBER(p2m_region_create, start_mfn, 40, 8);
ABI_MEMBER(p2m_region_create, end_mfn, 48, 8);
ABI_MEMBER(p2m_region_create, node, 56, 4);
ABI_MEMBER(p2m_region_create, divisor, 60, 4);
ABI_MEMBER(p2m_region_create, colour, 64, 4);
ABI_MEMBER(p2m_region_create, __reserved2, 68, 4);

ABI_SIZE(p2m_region_destroy, 16);
ABI_MEMBER(p2m_region_destroy, size, 0, 4);
ABI_MEMBER(p2m_region_destroy, flags, 4, 4);
ABI_MEMBER(p2m_region_destroy, base_pfn, 8, 8);

ABI_SIZE(p2m_region, 32);
ABI_MEMBER(p2m_region, base_pfn, 0, 8);
ABI_MEMBER(p2m_region, nr_pages, 8, 8);
ABI_MEMBER(p2m_region, seed, 16, 8);
ABI_MEMBER(p2m_region, policy, 24, 4);
ABI_MEMBER(p2m_region, flags, 28, 4);

ABI_SIZE(p2m_constraint, 32);
ABI_MEMBER(p2m_constraint, start_mfn, 0, 8);
ABI_MEMBER(p2m_constraint, end_mfn, 8, 8);
ABI_MEMBER(p2m_constraint, node, 16, 4);
ABI_MEMBER(p2m_constraint, divisor, 20, 4);
ABI_MEMBER(p2m_constraint, colour, 24, 4);
ABI_MEMBER(p2m_constraint, __reserved, 28, 4);

ABI_SIZE(p2m_region_list, 48);
ABI_MEMBER(p2m_region_list, size, 0, 4);
ABI_MEMBER(p2m_region_list, flags, 4, 4);
ABI_MEMBER(p2m_region_list, start_pfn, 8, 8);
ABI_MEMBER(p2m_region_list, regions, 16, 8);
ABI_MEMBER(p2m_region_list, nr, 24, 4);
ABI_MEMBER(p2m_region_list, out_nr, 28, 4);
ABI_MEMBER(p2m_region_list, out_total, 32, 8);
ABI_MEMBER(p2m_region_list, constraints, 40, 8);

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

ABI_VALUE(P2M_FEATURE_SPACES, 4);
ABI_VALUE(P2M_FEATURE_CPU_ACCESS, 8);
ABI_VALUE(P2M_BACKEND_NAME_LEN, 32);
ABI_VALUE(P2M_MAX_STEPS, 5);
ABI_VALUE(P2M_MAX_ACCESS_WORDS, 65536);
ABI_VALUE(P2M_UNMAP_ALL, 1);
ABI_VALUE(P2M_CHANGE_FRAMES, 1);
ABI_VALUE(P2M_ACCESS_READ, 0);
ABI_VALUE(P2M_ACCESS_WRITE, 1);
ABI_VALUE(P2M_ACCESS_CHECKSUM, 2);
ABI_VALUE(P2M_FAULT_RAISED, 1);
ABI_VALUE(P2M_FAULT_PROTECTION, 2);
ABI_VALUE(P2M_FAULT_WRITE, 4);
/* Those of the processor. */
ABI_VALUE(P2M_PTE_RW, 1 << 1);
ABI_VALUE(P2M_PTE_USER, 1 << 2);
ABI_VALUE(P2M_PTE_PWT, 1 << 3);
ABI_VALUE(P2M_PTE_PCD, 1 << 4);
ABI_VALUE(P2M_PTE_ACCESSED, 1 << 5);
ABI_VALUE(P2M_PTE_DIRTY, 1 << 6);
ABI_VALUE(P2M_PTE_PAT, 1 << 7);
ABI_VALUE(P2M_PTE_NX, 1ULL << 63);

ABI_SIZE(p2m_space_create, 72);
ABI_MEMBER(p2m_space_create, size, 0, 4);
ABI_MEMBER(p2m_space_create, flags, 4, 4);
ABI_MEMBER(p2m_space_create, backend, 8, 32);
ABI_MEMBER(p2m_space_create, nr_levels, 40, 4);
ABI_MEMBER(p2m_space_create, out_space, 44, 4);
ABI_MEMBER(p2m_space_create, pool_pfn, 48, 8);
ABI_MEMBER(p2m_space_create, pool_pages, 56, 8);
ABI_MEMBER(p2m_space_create, out_root_pfn, 64, 8);

ABI_SIZE(p2m_space_destroy, 16);
ABI_MEMBER(p2m_space_destroy, size, 0, 4);
ABI_MEMBER(p2m_space_destroy, flags, 4, 4);
ABI_MEMBER(p2m_space_destroy, space, 8, 4);
ABI_MEMBER(p2m_space_destroy, __reserved, 12, 4);

ABI_SIZE(p2m_space_map, 48);
ABI_MEMBER(p2m_space_map, size, 0, 4);
ABI_MEMBER(p2m_space_map, flags, 4, 4);
ABI_MEMBER(p2m_space_map, space, 8, 4);
ABI_MEMBER(p2m_space_map, max_level, 12, 4);
ABI_MEMBER(p2m_space_map, address, 16, 8);
ABI_MEMBER(p2m_space_map, pfn, 24, 8);
ABI_MEMBER(p2m_space_map, nr_pages, 32, 8);
ABI_MEMBER(p2m_space_map, pte_flags, 40, 8);

ABI_SIZE(p2m_space_unmap, 40);
ABI_MEMBER(p2m_space_unmap, size, 0, 4);
ABI_MEMBER(p2m_space_unmap, flags, 4, 4);
ABI_MEMBER(p2m_space_unmap, space, 8, 4);
ABI_MEMBER(p2m_space_unmap, __reserved, 12, 4);
ABI_MEMBER(p2m_space_unmap, address, 16, 8);
ABI_MEMBER(p2m_space_unmap, nr_pages, 24, 8);
ABI_MEMBER(p2m_space_unmap, out_pages, 32, 8);

ABI_SIZE(p2m_space_change, 48);
ABI_MEMBER(p2m_space_change, size, 0, 4);
ABI_MEMBER(p2m_space_change, flags, 4, 4);
ABI_MEMBER(p2m_space_change, space, 8, 4);
ABI_MEMBER(p2m_space_change, __reserved, 12, 4);
ABI_MEMBER(p2m_space_change, address, 16, 8);
ABI_MEMBER(p2m_space_change, nr_pages, 24, 8);
ABI_MEMBER(p2m_space_change, value, 32, 8);
ABI_MEMBER(p2m_space_change, out_pages, 40, 8);

ABI_SIZE(p2m_step, 40);
ABI_MEMBER(p2m_step, table_pfn, 0, 8);
ABI_MEMBER(p2m_step, table_mfn, 8, 8);
ABI_MEMBER(p2m_step, raw, 16, 8);
ABI_MEMBER(p2m_step, val, 24, 8);
ABI_MEMBER(p2m_step, level, 32, 4);
ABI_MEMBER(p2m_step, index, 36, 4);

ABI_SIZE(p2m_space_walk, 224);
ABI_MEMBER(p2m_space_walk, size, 0, 4);
ABI_MEMBER(p2m_space_walk, flags, 4, 4);
ABI_MEMBER(p2m_space_walk, space, 8, 4);
ABI_MEMBER(p2m_space_walk, out_nr_steps, 12, 4);
ABI_MEMBER(p2m_space_walk, address, 16, 8);
ABI_MEMBER(p2m_space_walk, out_steps, 24, 200);

ABI_SIZE(p2m_span, 48);
ABI_MEMBER(p2m_span, address, 0, 8);
ABI_MEMBER(p2m_span, nr_pages, 8, 8);
ABI_MEMBER(p2m_span, pfn, 16, 8);
ABI_MEMBER(p2m_span, mfn, 24, 8);
ABI_MEMBER(p2m_span, pte_flags, 32, 8);
ABI_MEMBER(p2m_span, level, 40, 4);
ABI_MEMBER(p2m_span, __reserved, 44, 4);

ABI_SIZE(p2m_space_dump, 48);
ABI_MEMBER(p2m_space_dump, size, 0, 4);
ABI_MEMBER(p2m_space_dump, flags, 4, 4);
ABI_MEMBER(p2m_space_dump, space, 8, 4);
ABI_MEMBER(p2m_space_dump, nr, 12, 4);
ABI_MEMBER(p2m_space_dump, address, 16, 8);
ABI_MEMBER(p2m_space_dump, spans, 24, 8);
ABI_MEMBER(p2m_space_dump, out_nr, 32, 4);
ABI_MEMBER(p2m_space_dump, __reserved, 36, 4);
ABI_MEMBER(p2m_space_dump, out_next, 40, 8);

ABI_SIZE(p2m_space_access, 64);
ABI_MEMBER(p2m_space_access, size, 0, 4);
ABI_MEMBER(p2m_space_access, flags, 4, 4);
ABI_MEMBER(p2m_space_access, space, 8, 4);
ABI_MEMBER(p2m_space_access, op, 12, 4);
ABI_MEMBER(p2m_space_access, address, 16, 8);
ABI_MEMBER(p2m_space_access, buffer, 24, 8);
ABI_MEMBER(p2m_space_access, nr_words, 32, 4);
ABI_MEMBER(p2m_space_access, out_words, 36, 4);
ABI_MEMBER(p2m_space_access, out_checksum, 40, 8);
ABI_MEMBER(p2m_space_access, out_fault_address, 48, 8);
ABI_MEMBER(p2m_space_access, out_fault, 56, 4);
ABI_MEMBER(p2m_space_access, __reserved, 60, 4);

ABI_VALUE(P2M_RELEASE, 0xbb8f);
ABI_VALUE(P2M_POPULATE, 0xbb90);
ABI_VALUE(P2M_MOVE, 0xbb91);
ABI_VALUE(P2M_EVACUATE, 0xbb92);
ABI_VALUE(P2M_CONTIGUOUS, 0xbb93);
ABI_VALUE(P2M_EXCHANGE, 0xbb94);
ABI_VALUE(P2M_AUDIT, 0xbb95);
ABI_VALUE(P2M_GUARD_CHECK, 0xbb96);
ABI_VALUE(P2M_FAIL_NTH, 0xbb97);

ABI_VALUE(P2M_FEATURE_LIVE, 16);
ABI_VALUE(P2M_REGION_ON_DEMAND, 2);
ABI_VALUE(P2M_REGION_GUARDED, 4);
ABI_VALUE(P2M_REGION_NODE, 8);
ABI_VALUE(P2M_REGION_RANGE, 16);
ABI_VALUE(P2M_REGION_COLOUR, 32);
ABI_VALUE(P2M_GUARD_REFILL, 1);
ABI_VALUE(P2M_GUARD_PATTERN, 0x7261756721326d70ULL);
ABI_VALUE(P2M_ENTRY_GUARD, ~1ULL);
ABI_VALUE(P2M_EVACUATE_KEEP_OUT, 1);
ABI_VALUE(P2M_EVACUATE_READMIT, 2);

ABI_SIZE(p2m_release, 40);
ABI_MEMBER(p2m_release, size, 0, 4);
ABI_MEMBER(p2m_release, flags, 4, 4);
ABI_MEMBER(p2m_release, start_pfn, 8, 8);
ABI_MEMBER(p2m_release, nr_pages, 16, 8);
ABI_MEMBER(p2m_release, out_pages, 24, 8);
ABI_MEMBER(p2m_release, out_next_pfn, 32, 8);

ABI_SIZE(p2m_populate, 40);
ABI_MEMBER(p2m_populate, size, 0, 4);
ABI_MEMBER(p2m_populate, flags, 4, 4);
ABI_MEMBER(p2m_populate, start_pfn, 8, 8);
ABI_MEMBER(p2m_populate, nr_pages, 16, 8);
ABI_MEMBER(p2m_populate, out_pages, 24, 8);
ABI_MEMBER(p2m_populate, out_next_pfn, 32, 8);

ABI_SIZE(p2m_move, 64);
ABI_MEMBER(p2m_move, size, 0, 4);
ABI_MEMBER(p2m_move, flags, 4, 4);
ABI_MEMBER(p2m_move, start_pfn, 8, 8);
ABI_MEMBER(p2m_move, nr_pages, 16, 8);
ABI_MEMBER(p2m_move, seed, 24, 8);
ABI_MEMBER(p2m_move, policy, 32, 4);
ABI_MEMBER(p2m_move, __reserved, 36, 4);
ABI_MEMBER(p2m_move, out_pages, 40, 8);
ABI_MEMBER(p2m_move, out_busy, 48, 8);
ABI_MEMBER(p2m_move, out_next_pfn, 56, 8);

ABI_SIZE(p2m_evacuate, 48);
ABI_MEMBER(p2m_evacuate, size, 0, 4);
ABI_MEMBER(p2m_evacuate, flags, 4, 4);
ABI_MEMBER(p2m_evacuate, start_mfn, 8, 8);
ABI_MEMBER(p2m_evacuate, nr_frames, 16, 8);
ABI_MEMBER(p2m_evacuate, out_pages, 24, 8);
ABI_MEMBER(p2m_evacuate, out_busy, 32, 8);
ABI_MEMBER(p2m_evacuate, out_next_mfn, 40, 8);

ABI_VALUE(P2M_COLLAPSE, 0xbb9d);
ABI_SIZE(p2m_collapse, 56);
ABI_MEMBER(p2m_collapse, size, 0, 4);
ABI_MEMBER(p2m_collapse, flags, 4, 4);
ABI_MEMBER(p2m_collapse, start_pfn, 8, 8);
ABI_MEMBER(p2m_collapse, nr_pages, 16, 8);
ABI_MEMBER(p2m_collapse, out_pages, 24, 8);
ABI_MEMBER(p2m_collapse, out_superpages, 32, 8);
ABI_MEMBER(p2m_collapse, out_busy, 40, 8);
ABI_MEMBER(p2m_collapse, out_next_pfn, 48, 8);

ABI_SIZE(p2m_contiguous, 32);
ABI_MEMBER(p2m_contiguous, size, 0, 4);
ABI_MEMBER(p2m_contiguous, flags, 4, 4);
ABI_MEMBER(p2m_contiguous, start_pfn, 8, 8);
ABI_MEMBER(p2m_contiguous, order, 16, 4);
ABI_MEMBER(p2m_contiguous, address_bits, 20, 4);
ABI_MEMBER(p2m_contiguous, out_busy_pfn, 24, 8);

ABI_SIZE(p2m_exchange, 48);
ABI_MEMBER(p2m_exchange, size, 0, 4);
ABI_MEMBER(p2m_exchange, flags, 4, 4);
ABI_MEMBER(p2m_exchange, a_pfn, 8, 8);
ABI_MEMBER(p2m_exchange, b_pfn, 16, 8);
ABI_MEMBER(p2m_exchange, nr_pages, 24, 8);
ABI_MEMBER(p2m_exchange, out_pages, 32, 8);
ABI_MEMBER(p2m_exchange, out_busy, 40, 8);

ABI_SIZE(p2m_audit, 88);
ABI_MEMBER(p2m_audit, size, 0, 4);
ABI_MEMBER(p2m_audit, flags, 4, 4);
ABI_MEMBER(p2m_audit, out_frames, 8, 8);
ABI_MEMBER(p2m_audit, out_pinned, 16, 8);
ABI_MEMBER(p2m_audit, out_p2m_bad, 24, 8);
ABI_MEMBER(p2m_audit, out_m2p_bad, 32, 8);
ABI_MEMBER(p2m_audit, out_orphans, 40, 8);
ABI_MEMBER(p2m_audit, out_refs_bad, 48, 8);
ABI_MEMBER(p2m_audit, out_spaces_bad, 56, 8);
ABI_MEMBER(p2m_audit, out_count_bad, 64, 8);
ABI_MEMBER(p2m_audit, out_first_pfn, 72, 8);
ABI_MEMBER(p2m_audit, out_first_mfn, 80, 8);

ABI_SIZE(p2m_guard_check, 72);
ABI_MEMBER(p2m_guard_check, size, 0, 4);
ABI_MEMBER(p2m_guard_check, flags, 4, 4);
ABI_MEMBER(p2m_guard_check, start_pfn, 8, 8);
ABI_MEMBER(p2m_guard_check, nr_pages, 16, 8);
ABI_MEMBER(p2m_guard_check, out_guards, 24, 8);
ABI_MEMBER(p2m_guard_check, out_broken, 32, 8);
ABI_MEMBER(p2m_guard_check, out_pfn, 40, 8);
ABI_MEMBER(p2m_guard_check, out_offset, 48, 8);
ABI_MEMBER(p2m_guard_check, out_value, 56, 8);
ABI_MEMBER(p2m_guard_check, out_next_pfn, 64, 8);

ABI_SIZE(p2m_fail_nth, 24);
ABI_MEMBER(p2m_fail_nth, size, 0, 4);
ABI_MEMBER(p2m_fail_nth, flags, 4, 4);
ABI_MEMBER(p2m_fail_nth, nth, 8, 8);
ABI_MEMBER(p2m_fail_nth, out_left, 16, 8);

ABI_VALUE(P2M_DMA_BUF_EXPORT, 0xbb9e);
ABI_VALUE(P2M_FEATURE_DMA_BUF, 64);

ABI_SIZE(p2m_dma_buf_export, 32);
ABI_MEMBER(p2m_dma_buf_export, size, 0, 4);
ABI_MEMBER(p2m_dma_buf_export, flags, 4, 4);
ABI_MEMBER(p2m_dma_buf_export, start_pfn, 8, 8);
ABI_MEMBER(p2m_dma_buf_export, nr_pages, 16, 8);
ABI_MEMBER(p2m_dma_buf_export, fd_flags, 24, 4);
ABI_MEMBER(p2m_dma_buf_export, out_fd, 28, 4);

ABI_VALUE(P2M_DMA_PLAN, 0xbb98);
ABI_VALUE(P2M_FEATURE_DMA_PLAN, 32);
ABI_VALUE(P2M_DMA_MASK, 1);
ABI_VALUE(P2M_DMA_STRADDLE, 2);
ABI_VALUE(P2M_DMA_ALIGNMENT, 4);
ABI_VALUE(P2M_DMA_FOREIGN, 8);
ABI_VALUE(P2M_DMA_IDENTITY, 16);
ABI_VALUE(P2M_DMA_UNBACKED, 32);
ABI_VALUE(P2M_DMA_BOUNCE, 7);

ABI_SIZE(p2m_dma_segment, 32);
ABI_MEMBER(p2m_dma_segment, pfn, 0, 8);
ABI_MEMBER(p2m_dma_segment, address, 8, 8);
ABI_MEMBER(p2m_dma_segment, length, 16, 8);
ABI_MEMBER(p2m_dma_segment, offset, 24, 4);
ABI_MEMBER(p2m_dma_segment, flags, 28, 4);

ABI_SIZE(p2m_dma_plan, 112);
ABI_MEMBER(p2m_dma_plan, size, 0, 4);
ABI_MEMBER(p2m_dma_plan, flags, 4, 4);
ABI_MEMBER(p2m_dma_plan, start_pfn, 8, 8);
ABI_MEMBER(p2m_dma_plan, offset, 16, 8);
ABI_MEMBER(p2m_dma_plan, length, 24, 8);
ABI_MEMBER(p2m_dma_plan, dma_mask, 32, 8);
ABI_MEMBER(p2m_dma_plan, segment_boundary_mask, 40, 8);
ABI_MEMBER(p2m_dma_plan, max_segment_size, 48, 8);
ABI_MEMBER(p2m_dma_plan, dma_alignment, 56, 4);
ABI_MEMBER(p2m_dma_plan, max_segments, 60, 4);
ABI_MEMBER(p2m_dma_plan, position, 64, 8);
ABI_MEMBER(p2m_dma_plan, segments, 72, 8);
ABI_MEMBER(p2m_dma_plan, nr, 80, 4);
ABI_MEMBER(p2m_dma_plan, out_nr, 84, 4);
ABI_MEMBER(p2m_dma_plan, out_next, 88, 8);
ABI_MEMBER(p2m_dma_plan, out_bounced, 96, 8);
ABI_MEMBER(p2m_dma_plan, out_bounced_bytes, 104, 8);

ABI_SIZE(p2m_foreign_map, 48);
ABI_MEMBER(p2m_foreign_map, size, 0, 4);
ABI_MEMBER(p2m_foreign_map, flags, 4, 4);
ABI_MEMBER(p2m_foreign_map, fd, 8, 4);
ABI_MEMBER(p2m_foreign_map, nr, 12, 4);
ABI_MEMBER(p2m_foreign_map, start_pfn, 16, 8);
ABI_MEMBER(p2m_foreign_map, frames, 24, 8);
ABI_MEMBER(p2m_foreign_map, errors, 32, 8);
ABI_MEMBER(p2m_foreign_map, out_nr, 40, 4);
ABI_MEMBER(p2m_foreign_map, __reserved, 44, 4);

ABI_SIZE(p2m_foreign_unmap, 32);
ABI_MEMBER(p2m_foreign_unmap, size, 0, 4);
ABI_MEMBER(p2m_foreign_unmap, flags, 4, 4);
ABI_MEMBER(p2m_foreign_unmap, start_pfn, 8, 8);
ABI_MEMBER(p2m_foreign_unmap, errors, 16, 8);
ABI_MEMBER(p2m_foreign_unmap, nr, 24, 4);
ABI_MEMBER(p2m_foreign_unmap, out_nr, 28, 4);

ABI_SIZE(p2m_identity, 32);
ABI_MEMBER(p2m_identity, size, 0, 4);
ABI_MEMBER(p2m_identity, flags, 4, 4);
ABI_MEMBER(p2m_identity, start_pfn, 8, 8);
ABI_MEMBER(p2m_identity, nr_pages, 16, 8);
ABI_MEMBER(p2m_identity, out_next_pfn, 24, 8);

ABI_SIZE(p2m_space_info, 72);
ABI_MEMBER(p2m_space_info, backend, 0, 32);
ABI_MEMBER(p2m_space_info, space, 32, 4);
ABI_MEMBER(p2m_space_info, nr_levels, 36, 4);
ABI_MEMBER(p2m_space_info, pool_pfn, 40, 8);
ABI_MEMBER(p2m_space_info, pool_pages, 48, 8);
ABI_MEMBER(p2m_space_info, root_pfn, 56, 8);
ABI_MEMBER(p2m_space_info, nr_tables, 64, 8);

ABI_SIZE(p2m_space_list, 32);
ABI_MEMBER(p2m_space_list, size, 0, 4);
ABI_MEMBER(p2m_space_list, flags, 4, 4);
ABI_MEMBER(p2m_space_list, start_space, 8, 4);
ABI_MEMBER(p2m_space_list, nr, 12, 4);
ABI_MEMBER(p2m_space_list, spaces, 16, 8);
ABI_MEMBER(p2m_space_list, out_nr, 24, 4);
ABI_MEMBER(p2m_space_list, out_total, 28, 4);

#endif /* P2M_ABI_LAYOUT_H */
