// SPDX-License-Identifier: GPL-2.0

//! The `x86_64` crate reads the same in our tables as our walker does.

use p2m_pure::paging::Format;
use p2m_pure::pv::{bits, span_pages};
use p2m_pure_oracle::{Memory, Translation};
use proptest::prelude::*;

use crate::cpu::Access;
use crate::random::op;
use crate::rig::{Frame, Rig};
use crate::world::{at, backends, format, G1, M2};

/// Compares some pages of each extent that is mapped, and those beside it. Returns how many of them
/// are mapped.
fn compare(rig: &Rig) -> u64 {
    let mut memory = Memory::default();
    for mfn in rig.sim.table_frames() {
        memory.insert(mfn, rig.sim.words(mfn));
    }
    let root = rig.space.root().get();
    let root = rig.backend.mfn(&rig.sim, root).unwrap();
    let around = |first: u64, last: u64| {
        [
            first.saturating_sub(1),
            first,
            first + (last - first) / 2,
            last,
            last + 1,
        ]
    };
    let extents = rig.model.merged();
    let pages = extents
        .iter()
        .flat_map(|extent| around(extent.start, extent.start + extent.nr - 1));
    // The processor's addresses end there, and the crate insists on it.
    let pages = pages.filter(|page| *page < format().nr_pages());
    let mut nr_mapped = 0;
    for page in pages.chain([0, format().nr_pages() - 1]) {
        let found = memory.translate(root, (page << 12) + 0xabc);
        let last = rig.space.walk(&*rig.sim, page).last().unwrap();
        let expected = (last.raw & bits::PRESENT != 0).then(|| {
            let span = span_pages(last.level);
            let first = (last.raw & bits::FRAME) / (span << 12) * (span << 12);
            Translation {
                address: first + ((page % span) << 12) + 0xabc,
                nr_bytes: span << 12,
                flags: last.raw & !bits::FRAME,
            }
        });
        assert_eq!(found, expected, "page {page:#x}");
        // And both are what should be there.
        let mfn = rig.model.get(page).and_then(|mapping| match mapping.frame {
            Frame::Own { mfn, .. } | Frame::Foreign { mfn } => Some(mfn),
            Frame::Absent { .. } => None,
        });
        assert_eq!(found.map(|found| found.address >> 12), mfn);
        nr_mapped += u64::from(mfn.is_some());
    }
    nr_mapped
}

#[test]
fn a_stranger_reads_leaves_of_all_sizes() {
    for backend in backends() {
        let mut rig = Rig::new(&backend, format());
        let flags = bits::RW | bits::USER | bits::PAT | bits::NX;
        rig.map(G1, (at::GIANT, G1 + M2 + 1), flags, 2).unwrap();
        rig.map(0, (at::SCATTERED, 3), bits::RW, 2).unwrap();
        rig.map(format().nr_pages() - M2, (at::MISALIGNED, M2), 0, 2)
            .unwrap();
        rig.touch(G1 + 1, Access::Write);
        assert!(compare(&rig) >= 8);
        rig.exchange((at::GIANT + G1, 3), |nr| {
            p2m_pure::entry::Entry::Present(p2m_pure::frame::Mfn::new(0xabc_0000 + 3 * nr).unwrap())
        });
        assert!(compare(&rig) >= 12);
        rig.unmap(G1 + 5 * M2, 1).1.unwrap();
        assert!(compare(&rig) >= 13);
        rig.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_stranger_reads_whatever_is_done(
        max_leaf_level in 0..=2usize,
        ops in prop::collection::vec(op(), 40..120),
    ) {
        for backend in backends() {
            let format = Format {
                max_leaf_level,
                ..format()
            };
            let mut rig = Rig::new(&backend, format);
            for (nr, op) in ops.iter().enumerate() {
                op.apply(&mut rig, nr as u64);
                if nr % 8 == 7 {
                    rig.sim.race([]);
                    compare(&rig);
                }
            }
            rig.sim.race([]);
            compare(&rig);
            rig.finish();
        }
    }
}
