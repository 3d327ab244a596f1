// SPDX-License-Identifier: GPL-2.0

//! The raw ABI, as bindgen makes it from `include/uapi/p2m.h`, and the numbers that can never
//! change again.

#![allow(missing_docs, non_camel_case_types, dead_code, unreachable_pub)]

use rustix::io;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use std::os::fd::BorrowedFd;

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

// C has an unsigned 64-bit literal where bindgen chooses the smallest type that holds the bits.
pub const ENTRY_INVALID: u64 = P2M_ENTRY_INVALID as u64;
pub const ENTRY_FOREIGN: u64 = P2M_ENTRY_FOREIGN as u64;
pub const ENTRY_IDENTITY: u64 = P2M_ENTRY_IDENTITY;
pub const ENTRY_MFN_MASK: u64 = P2M_ENTRY_MFN_MASK;
pub const MAX_PFN: u64 = P2M_MAX_PFN as u64;

macro_rules! commands {
    ($($structure:ident = $command:ident;)*) => {$(
        impl $structure {
            pub const OPCODE: Opcode = opcode::none(P2M_IOCTL_TYPE as u8, $command as u8);

            /// Returns the structure with its size filled in, and all else 0.
            pub fn new() -> Self {
                Self {
                    size: size_of::<Self>() as u32,
                    ..Self::default()
                }
            }

            /// Runs the command on an open /dev/p2m.
            ///
            /// # Safety
            ///
            /// A pointer in the structure points to an array of as many elements as the structure
            /// says, which may be written to if the command fills it in.
            pub unsafe fn call(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
                // SAFETY: The header defines command and structure by one name, and the kernel
                // writes to no more of the structure than its size says.
                let command = unsafe { Updater::<{ Self::OPCODE }, Self>::new(self) };
                // SAFETY: By the safety requirements of this function.
                unsafe { ioctl::ioctl(fd, command) }
            }
        }
    )*};
}

commands! {
    p2m_info = P2M_CMD_INFO;
    p2m_stat = P2M_CMD_STAT;
    p2m_region_create = P2M_CMD_REGION_CREATE;
    p2m_region_destroy = P2M_CMD_REGION_DESTROY;
    p2m_region_list = P2M_CMD_REGION_LIST;
    p2m_translate = P2M_CMD_TRANSLATE;
    p2m_runs = P2M_CMD_RUNS;
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
    assert!(P2M_REGION_FIXED == 1);
    assert!(P2M_TRANSLATE_M2P == 1);
    assert!(P2M_FEATURE_MFN_VISIBLE == 1);
    assert!(P2M_FEATURE_TABLE_MMAP == 2);
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
    p2m_stat: >= 80 {
        size: 0, flags: 4, out_generation: 8, out_regions: 16, out_pages: 24, out_p2m_tables: 32,
        out_m2p_tables: 40, out_faults: 48, out_fault_pages: 56, out_total_domains: 64,
        out_total_pages: 72,
    }
    p2m_region_create: >= 40 {
        size: 0, flags: 4, policy: 8, __reserved: 12, nr_pages: 16, seed: 24, base_pfn: 32,
    }
    p2m_region_destroy: >= 16 { size: 0, flags: 4, base_pfn: 8 }
    p2m_region: == 32 { base_pfn: 0, nr_pages: 8, seed: 16, policy: 24 }
    p2m_region_list: >= 40 {
        size: 0, flags: 4, start_pfn: 8, regions: 16, nr: 24, out_nr: 28, out_total: 32,
    }
    p2m_translate: >= 32 { size: 0, flags: 4, nr: 8, out_nr: 12, frames: 16, entries: 24 }
    p2m_run: == 24 { pfn: 0, nr_pages: 8, entry: 16 }
    p2m_runs: >= 48 {
        size: 0, flags: 4, start_pfn: 8, nr_pages: 16, runs: 24, nr: 32, out_nr: 36,
        out_next_pfn: 40,
    }
}
