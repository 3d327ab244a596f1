// SPDX-License-Identifier: GPL-2.0

//! The raw ABI, as bindgen makes it from `include/uapi/p2m.h`, and the numbers that can never
//! change again.

#![allow(missing_docs, non_camel_case_types, dead_code, unreachable_pub)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

// C has an unsigned 64-bit literal where bindgen chooses the smallest type that holds the bits.
pub const ENTRY_INVALID: u64 = P2M_ENTRY_INVALID as u64;
pub const ENTRY_FOREIGN: u64 = P2M_ENTRY_FOREIGN as u64;
pub const ENTRY_IDENTITY: u64 = P2M_ENTRY_IDENTITY;
pub const ENTRY_MFN_MASK: u64 = P2M_ENTRY_MFN_MASK;
pub const MAX_PFN: u64 = P2M_MAX_PFN as u64;
pub const PTE_NX: u64 = P2M_PTE_NX as u64;

p2m_abi::commands! {
    type P2M_IOCTL_TYPE;
    p2m_info = P2M_CMD_INFO;
    p2m_stat = P2M_CMD_STAT;
    p2m_region_create = P2M_CMD_REGION_CREATE;
    p2m_region_destroy = P2M_CMD_REGION_DESTROY;
    p2m_region_list = P2M_CMD_REGION_LIST;
    p2m_translate = P2M_CMD_TRANSLATE;
    p2m_runs = P2M_CMD_RUNS;
    p2m_space_create = P2M_CMD_SPACE_CREATE;
    p2m_space_destroy = P2M_CMD_SPACE_DESTROY;
    p2m_space_map = P2M_CMD_SPACE_MAP;
    p2m_space_unmap = P2M_CMD_SPACE_UNMAP;
    p2m_space_change = P2M_CMD_SPACE_CHANGE;
    p2m_space_walk = P2M_CMD_SPACE_WALK;
    p2m_space_dump = P2M_CMD_SPACE_DUMP;
    p2m_space_access = P2M_CMD_SPACE_ACCESS;
    p2m_release = P2M_CMD_RELEASE;
    p2m_populate = P2M_CMD_POPULATE;
    p2m_move = P2M_CMD_MOVE;
    p2m_evacuate = P2M_CMD_EVACUATE;
    p2m_contiguous = P2M_CMD_CONTIGUOUS;
    p2m_collapse = P2M_CMD_COLLAPSE;
    p2m_exchange = P2M_CMD_EXCHANGE;
    p2m_audit = P2M_CMD_AUDIT;
    p2m_guard_check = P2M_CMD_GUARD_CHECK;
    p2m_fail_nth = P2M_CMD_FAIL_NTH;
    p2m_dma_plan = P2M_CMD_DMA_PLAN;
    p2m_foreign_map = P2M_CMD_FOREIGN_MAP;
    p2m_foreign_unmap = P2M_CMD_FOREIGN_UNMAP;
    p2m_identity = P2M_CMD_IDENTITY;
    p2m_space_list = P2M_CMD_SPACE_LIST;
    p2m_dma_buf_export = P2M_CMD_DMA_BUF_EXPORT;
}

// What is in use can't change: these are the numbers of the first release, not what the header
// happens to say. The C programs in selftests/ assert the same ones.
const _: () = {
    assert!(p2m_info::OPCODE == 0xbb80);
    assert!(p2m_stat::OPCODE == 0xbb81);
    assert!(p2m_region_create::OPCODE == 0xbb82);
    assert!(p2m_region_destroy::OPCODE == 0xbb83);
    assert!(p2m_region_list::OPCODE == 0xbb84);
    assert!(p2m_translate::OPCODE == 0xbb85);
    assert!(p2m_runs::OPCODE == 0xbb86);
    assert!(p2m_space_create::OPCODE == 0xbb87);
    assert!(p2m_space_destroy::OPCODE == 0xbb88);
    assert!(p2m_space_map::OPCODE == 0xbb89);
    assert!(p2m_space_unmap::OPCODE == 0xbb8a);
    assert!(p2m_space_change::OPCODE == 0xbb8b);
    assert!(p2m_space_walk::OPCODE == 0xbb8c);
    assert!(p2m_space_dump::OPCODE == 0xbb8d);
    assert!(p2m_space_access::OPCODE == 0xbb8e);
    assert!(p2m_release::OPCODE == 0xbb8f);
    assert!(p2m_populate::OPCODE == 0xbb90);
    assert!(p2m_move::OPCODE == 0xbb91);
    assert!(p2m_evacuate::OPCODE == 0xbb92);
    assert!(p2m_contiguous::OPCODE == 0xbb93);
    assert!(p2m_exchange::OPCODE == 0xbb94);
    assert!(p2m_audit::OPCODE == 0xbb95);
    assert!(p2m_guard_check::OPCODE == 0xbb96);
    assert!(p2m_fail_nth::OPCODE == 0xbb97);
    assert!(p2m_dma_plan::OPCODE == 0xbb98);
    assert!(p2m_foreign_map::OPCODE == 0xbb99);
    assert!(p2m_foreign_unmap::OPCODE == 0xbb9a);
    assert!(p2m_identity::OPCODE == 0xbb9b);
    assert!(p2m_space_list::OPCODE == 0xbb9c);
    assert!(p2m_collapse::OPCODE == 0xbb9d);
    assert!(p2m_dma_buf_export::OPCODE == 0xbb9e);

    assert!(ENTRY_INVALID == u64::MAX);
    assert!(ENTRY_FOREIGN == 1 << 63);
    assert!(ENTRY_IDENTITY == 1 << 62);
    assert!(ENTRY_MFN_MASK == !(3 << 62));
    assert!(MAX_PFN << 12 == 8 << 40);

    assert!(P2M_OFFSET_MEMORY == 0);
    assert!(P2M_OFFSET_HEADER == 8 << 40);
    assert!(P2M_OFFSET_P2M == 12 << 40);
    assert!(P2M_OFFSET_M2P == 16 << 40);

    assert!(P2M_POLICY_ANY == 0);
    assert!(P2M_POLICY_SCATTER == 1);
    assert!(P2M_POLICY_CONTIGUOUS == 2);
    assert!(P2M_POLICY_SUPERPAGE == 3);
    assert!(P2M_REGION_FIXED == 1);
    assert!(P2M_REGION_ON_DEMAND == 2);
    assert!(P2M_REGION_GUARDED == 4);
    assert!(P2M_REGION_NODE == 8);
    assert!(P2M_REGION_RANGE == 16);
    assert!(P2M_REGION_COLOUR == 32);
    assert!(P2M_TRANSLATE_M2P == 1);
    assert!(P2M_FEATURE_MFN_VISIBLE == 1);
    assert!(P2M_FEATURE_TABLE_MMAP == 2);
    assert!(P2M_FEATURE_SPACES == 4);
    assert!(P2M_FEATURE_CPU_ACCESS == 8);
    assert!(P2M_FEATURE_LIVE == 16);
    assert!(P2M_FEATURE_DMA_PLAN == 32);
    assert!(P2M_FEATURE_DMA_BUF == 64);

    assert!(P2M_PTE_RW == 1 << 1);
    assert!(P2M_PTE_USER == 1 << 2);
    assert!(P2M_PTE_PWT == 1 << 3);
    assert!(P2M_PTE_PCD == 1 << 4);
    assert!(P2M_PTE_ACCESSED == 1 << 5);
    assert!(P2M_PTE_DIRTY == 1 << 6);
    assert!(P2M_PTE_PAT == 1 << 7);
    assert!(PTE_NX == 1 << 63);
    assert!(P2M_UNMAP_ALL == 1);
    assert!(P2M_CHANGE_FRAMES == 1);
    assert!(P2M_MAX_STEPS == 5);
    assert!(P2M_ACCESS_READ == 0);
    assert!(P2M_ACCESS_WRITE == 1);
    assert!(P2M_ACCESS_CHECKSUM == 2);
    assert!(P2M_FAULT_RAISED == 1);
    assert!(P2M_FAULT_PROTECTION == 2);
    assert!(P2M_FAULT_WRITE == 4);
    assert!(P2M_MAX_ACCESS_WORDS == 1 << 16);
    assert!(P2M_EVACUATE_KEEP_OUT == 1);
    assert!(P2M_EVACUATE_READMIT == 2);
    assert!(P2M_GUARD_REFILL == 1);
    assert!(P2M_DMA_MASK == 1);
    assert!(P2M_DMA_STRADDLE == 2);
    assert!(P2M_DMA_ALIGNMENT == 4);
    assert!(P2M_DMA_FOREIGN == 8);
    assert!(P2M_DMA_IDENTITY == 16);
    assert!(P2M_DMA_UNBACKED == 32);
    assert!(P2M_DMA_BOUNCE == 7);
};

/// Asserts the size of structures and where each of their members begins.
///
/// Those that begin with their own size, and the header, may grow at their end. The elements of
/// arrays can't.
macro_rules! assert_layout {
    ($($structure:ident: $relation:tt $size:literal { $($member:ident: $offset:literal),* $(,)? })*) => {
        const _: () = {$(
            assert!(size_of::<$structure>() $relation $size);
            $(assert!(core::mem::offset_of!($structure, $member) == $offset);)*
        )*};
    };
}

assert_layout! {
    p2m_header: >= 40 {
        abi_version: 0, page_shift: 4, generation: 8, end_pfn: 16, end_mfn: 24, m2p_generation: 32,
    }
    p2m_info: >= 72 {
        size: 0, flags: 4, out_abi_version: 8, out_page_shift: 12, out_features: 16,
        out_policies: 24, out_max_pfn: 32, out_max_mfn: 40, out_max_domain_pages: 48,
        out_max_total_pages: 56, out_max_regions: 64, out_default_policy: 68,
    }
    p2m_stat: >= 96 {
        size: 0, flags: 4, out_generation: 8, out_regions: 16, out_pages: 24, out_p2m_tables: 32,
        out_m2p_tables: 40, out_faults: 48, out_fault_pages: 56, out_total_domains: 64,
        out_total_pages: 72, out_frames: 80, out_guards: 88, out_superpages: 96,
    }
    p2m_region_create: >= 72 {
        size: 0, flags: 4, policy: 8, __reserved: 12, nr_pages: 16, seed: 24, base_pfn: 32,
        start_mfn: 40, end_mfn: 48, node: 56, divisor: 60, colour: 64, __reserved2: 68,
    }
    p2m_region_destroy: >= 16 { size: 0, flags: 4, base_pfn: 8 }
    p2m_region: == 32 { base_pfn: 0, nr_pages: 8, seed: 16, policy: 24, flags: 28 }
    p2m_constraint: == 32 {
        start_mfn: 0, end_mfn: 8, node: 16, divisor: 20, colour: 24, __reserved: 28,
    }
    p2m_region_list: >= 48 {
        size: 0, flags: 4, start_pfn: 8, regions: 16, nr: 24, out_nr: 28, out_total: 32,
        constraints: 40,
    }
    p2m_translate: >= 32 { size: 0, flags: 4, nr: 8, out_nr: 12, frames: 16, entries: 24 }
    p2m_run: == 24 { pfn: 0, nr_pages: 8, entry: 16 }
    p2m_runs: >= 48 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, runs: 24, nr: 32, out_nr: 36,
        out_next_pfn: 40,
    }
    p2m_space_create: >= 72 {
        size: 0, flags: 4, backend: 8, nr_levels: 40, out_space: 44, pool_pfn: 48,
        pool_pages: 56, out_root_pfn: 64,
    }
    p2m_space_destroy: >= 16 { size: 0, flags: 4, space: 8, __reserved: 12 }
    p2m_space_map: >= 48 {
        size: 0, flags: 4, space: 8, max_level: 12, address: 16, pfn: 24, nr_pages: 32,
        pte_flags: 40,
    }
    p2m_space_unmap: >= 40 {
        size: 0, flags: 4, space: 8, __reserved: 12, address: 16, nr_pages: 24, out_pages: 32,
    }
    p2m_space_change: >= 48 {
        size: 0, flags: 4, space: 8, __reserved: 12, address: 16, nr_pages: 24, value: 32,
        out_pages: 40,
    }
    p2m_step: == 40 { table_pfn: 0, table_mfn: 8, raw: 16, val: 24, level: 32, index: 36 }
    p2m_space_walk: >= 224 {
        size: 0, flags: 4, space: 8, out_nr_steps: 12, address: 16, out_steps: 24,
    }
    p2m_span: == 48 {
        address: 0, nr_pages: 8, pfn: 16, mfn: 24, pte_flags: 32, level: 40, __reserved: 44,
    }
    p2m_space_dump: >= 48 {
        size: 0, flags: 4, space: 8, nr: 12, address: 16, spans: 24, out_nr: 32, __reserved: 36,
        out_next: 40,
    }
    p2m_space_access: >= 64 {
        size: 0, flags: 4, space: 8, op: 12, address: 16, buffer: 24, nr_words: 32, out_words: 36,
        out_checksum: 40, out_fault_address: 48, out_fault: 56, __reserved: 60,
    }
    p2m_release: >= 40 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, out_pages: 24, out_next_pfn: 32,
    }
    p2m_populate: >= 40 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, out_pages: 24, out_next_pfn: 32,
    }
    p2m_move: >= 64 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, seed: 24, policy: 32, __reserved: 36,
        out_pages: 40, out_busy: 48, out_next_pfn: 56,
    }
    p2m_evacuate: >= 48 {
        size: 0, flags: 4, start_mfn: 8, nr_frames: 16, out_pages: 24, out_busy: 32,
        out_next_mfn: 40,
    }
    p2m_contiguous: >= 32 {
        size: 0, flags: 4, start_pfn: 8, order: 16, address_bits: 20, out_busy_pfn: 24,
    }
    p2m_collapse: >= 56 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, out_pages: 24, out_superpages: 32,
        out_busy: 40, out_next_pfn: 48,
    }
    p2m_exchange: >= 48 {
        size: 0, flags: 4, a_pfn: 8, b_pfn: 16, nr_pages: 24, out_pages: 32, out_busy: 40,
    }
    p2m_audit: >= 88 {
        size: 0, flags: 4, out_frames: 8, out_pinned: 16, out_p2m_bad: 24, out_m2p_bad: 32,
        out_orphans: 40, out_refs_bad: 48, out_spaces_bad: 56, out_count_bad: 64,
        out_first_pfn: 72, out_first_mfn: 80,
    }
    p2m_guard_check: >= 72 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, out_guards: 24, out_broken: 32, out_pfn: 40,
        out_offset: 48, out_value: 56, out_next_pfn: 64,
    }
    p2m_fail_nth: >= 24 { size: 0, flags: 4, nth: 8, out_left: 16 }
    p2m_foreign_map: >= 48 {
        size: 0, flags: 4, fd: 8, nr: 12, start_pfn: 16, frames: 24, errors: 32, out_nr: 40,
        __reserved: 44,
    }
    p2m_foreign_unmap: >= 32 { size: 0, flags: 4, start_pfn: 8, errors: 16, nr: 24, out_nr: 28 }
    p2m_identity: >= 32 { size: 0, flags: 4, start_pfn: 8, nr_pages: 16, out_next_pfn: 24 }
    p2m_space_info: == 72 {
        backend: 0, space: 32, nr_levels: 36, pool_pfn: 40, pool_pages: 48, root_pfn: 56,
        nr_tables: 64,
    }
    p2m_space_list: >= 32 {
        size: 0, flags: 4, start_space: 8, nr: 12, spaces: 16, out_nr: 24, out_total: 28,
    }
    p2m_dma_segment: == 32 { pfn: 0, address: 8, length: 16, offset: 24, flags: 28 }
    p2m_dma_plan: >= 112 {
        size: 0, flags: 4, start_pfn: 8, offset: 16, length: 24, dma_mask: 32,
        segment_boundary_mask: 40, max_segment_size: 48, dma_alignment: 56, max_segments: 60,
        position: 64, segments: 72, nr: 80, out_nr: 84, out_next: 88, out_bounced: 96,
        out_bounced_bytes: 104,
    }
    p2m_dma_buf_export: >= 32 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, fd_flags: 24, out_fd: 28,
    }
}
