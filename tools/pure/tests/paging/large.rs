// SPDX-License-Identifier: GPL-2.0

//! Laws of leaves of 1 GiB, few as they take long.

use p2m_pure::frame::Pfn;
use p2m_pure::paging::{Change, PagingError};
use p2m_pure::pv::bits;

use crate::cpu::Access::{Read, Write};
use crate::rig::Rig;
use crate::world::{at, format, Backend, Unbacked, G1, M2};

crate::laws! {
    leaves_of_all_sizes_meet,
    a_page_of_a_giant_leaf_goes,
    a_page_of_a_giant_leaf_changes,
    a_giant_leaf_needs_two_tables_to_be_split,
}

/// A space with a leaf of 1 GiB at `G1`, of which the first page was written.
fn with_giant_leaf(backend: &Backend) -> Rig {
    let mut rig = Rig::new(backend, format());
    let flags = bits::RW | bits::PAT | bits::NX;
    rig.map(G1, (at::GIANT, G1), flags, 2).unwrap();
    assert_eq!(rig.leaves().0.len(), 1);
    assert_eq!(rig.space.nr_tables(), 2);
    rig.touch(G1, Write);
    rig
}

fn leaves_of_all_sizes_meet(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    // Two of 4 KiB, three of 2 MiB, one of 1 GiB, two of 2 MiB and one of 4 KiB. Where they begin,
    // PFNs that aren't neighbours meet.
    rig.map(G1 - 2 * M2 - 2, (at::SCATTERED, 2), 0, 2).unwrap();
    rig.map(G1 - 2 * M2, (at::ALIGNED, 2 * M2), 0, 2).unwrap();
    rig.map(G1, (at::GIANT, G1 + 2 * M2 + 1), bits::RW, 2)
        .unwrap();
    let (leaves, _) = rig.leaves();
    let levels: Vec<usize> = leaves.iter().map(|leaf| leaf.level).collect();
    assert_eq!(levels, [0, 0, 1, 1, 2, 1, 1, 0]);
    for page in [
        G1 - 2 * M2 - 1,
        G1 - 1,
        G1,
        2 * G1 - 1,
        2 * G1,
        2 * G1 + 2 * M2,
    ] {
        rig.touch(page, Read);
    }
    rig.check_walks(0, u64::MAX);
    // A range that isn't aligned for the leaf it would fit in.
    rig.map(4 * G1 + M2, (at::GIANT, 2 * M2), 0, 2).unwrap();
    assert_eq!(rig.leaves().0.len(), 10);
    let nr_pages = 2 + 2 * M2 + G1 + 2 * M2 + 1 + 2 * M2;
    assert_eq!(rig.unmap(0, 8 * G1), (nr_pages, Ok(())));
    rig.finish();
}

fn a_page_of_a_giant_leaf_goes(backend: &Backend) {
    for (start, nr, nr_tables) in [
        (0, 1, 2),
        (G1 - 1, 1, 2),
        (5 * M2, M2, 1),
        (5 * M2 + 1, M2, 3),
        (1, G1 - 1, 2),
        (0, G1, 0),
    ] {
        let mut rig = with_giant_leaf(backend);
        let nr_before = if nr == G1 { 1 } else { 2 };
        assert_eq!(rig.unmap(G1 + start, nr), (nr, Ok(())));
        assert_eq!(rig.space.nr_tables(), nr_before + nr_tables);
        for page in [0, 1, 5 * M2, G1 - 1] {
            rig.touch(G1 + page, Read);
        }
        rig.finish();
    }
}

fn a_page_of_a_giant_leaf_changes(backend: &Backend) {
    let pfn = |number| Pfn::new(number).unwrap();
    for (start, nr, change, nr_tables) in [
        (0, G1, Change::Flags(bits::USER | bits::PAT), 2),
        (0, 1, Change::Flags(0), 4),
        (3 * M2, M2, Change::Flags(0), 3),
        (3 * M2, M2, Change::Frames(pfn(at::ALIGNED)), 3),
        (3 * M2, M2, Change::Frames(pfn(at::SCATTERED)), 4),
        // Another run of the same size, which isn't aligned.
        (3 * M2 - 1, 2 * M2, Change::Frames(pfn(at::ALIGNED)), 6),
    ] {
        let mut rig = with_giant_leaf(backend);
        assert_eq!(rig.change(G1 + start, nr, change), (nr, Ok(())));
        let expected = match change {
            // All runs are aligned if the machine is the pseudo-physical space.
            Change::Frames(first) if first.get() == at::SCATTERED && !backend.translates() => 3,
            _ => nr_tables,
        };
        assert_eq!(rig.space.nr_tables(), expected);
        for page in [0, 1, 3 * M2 - 1, 3 * M2, G1 - 1] {
            rig.touch(G1 + page, Read);
        }
        rig.finish();
    }
}

fn a_giant_leaf_needs_two_tables_to_be_split(backend: &Backend) {
    for nr_good in 0..3 {
        let mut rig = with_giant_leaf(backend);
        rig.pool.empty.blow_after(nr_good);
        let result = rig.unmap(G1 + 3, 1);
        let expected = match nr_good {
            2 => (1, Ok(())),
            // What was split once maps the same.
            _ => (0, Err(PagingError::NoTable)),
        };
        assert_eq!(result, expected);
        assert_eq!(rig.space.nr_tables(), 2 + nr_good);
        rig.pool.empty.mend();
        assert_eq!(rig.unmap(G1, G1), (G1 - expected.0, Ok(())));
        rig.finish();
    }
    // Nothing behind it: there are no large leaves, but the pages can be had.
    if backend.unbacked == Unbacked::Empty {
        let mut rig = Rig::new(backend, format());
        rig.map(0, (at::HOLE, M2), 0, 2).unwrap();
        assert!(rig.leaves().0.is_empty());
        rig.finish();
    }
}
