// SPDX-License-Identifier: GPL-2.0

//! Laws of spaces: case 23, the algebra of mapping and unmapping, and what is special about tables
//! that are built through a backend.

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::paging::{Change, Format, Pages, PagingError};
use p2m_pure::pv::{bits, Machine};

use crate::cpu::Access::{Read, Write};
use crate::rig::{Frame, Rig};
use crate::world::{at, format, formats, Backend, Unbacked, FLAGS, FRESH, G1, M2};

crate::laws! {
    an_empty_space_has_a_root,
    a_page_is_mapped_and_gone_again,
    leaves_are_as_large_as_all_agree,
    every_alignment_maps_and_unmaps,
    an_overlap_by_any_page_changes_nothing,
    a_part_of_a_large_leaf_goes,
    a_part_of_a_large_leaf_changes,
    all_flags_are_kept_by_a_split,
    a_hole_is_missing,
    a_bad_range_or_flag_changes_nothing,
    the_last_page_is_a_page,
    unmapping_all_counts_pages,
    an_unbacked_page_depends_on_the_backend,
    an_unbacked_page_comes_back_if_it_was_kept,
    a_table_of_unbacked_pages_makes_room,
    frames_of_somebody_else_keep_their_place,
    a_frame_is_replaced_beneath_a_large_leaf,
    rights_are_lost_at_once,
    no_bit_gets_lost_while_an_entry_changes,
    a_processor_that_races_sees_no_freed_table,
    walks_find_what_is_there,
    tables_that_are_linked_again_have_an_end,
}

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

fn an_empty_space_has_a_root(backend: &Backend) {
    for format in formats() {
        let mut rig = Rig::new(backend, format);
        assert_eq!(rig.space.nr_tables(), 1);
        assert_eq!(rig.space.next_leaf(&*rig.sim, 0, u64::MAX), None);
        assert_eq!(rig.unmap(0, format.nr_pages()), (0, Ok(())));
        for page in [0, 1, format.nr_pages() - 1] {
            let walk = rig.space.walk(&*rig.sim, page);
            let steps: Vec<_> = walk.steps().map(|step| (step.raw, step.val)).collect();
            assert_eq!(steps, [(0, 0)]);
            assert_eq!(
                rig.change(page, 1, Change::Flags(0)).1,
                Err(PagingError::Missing)
            );
        }
        for page in [format.nr_pages(), u64::MAX] {
            assert!(rig.space.walk(&*rig.sim, page).last().is_none());
        }
        rig.finish();
    }
}

fn a_page_is_mapped_and_gone_again(backend: &Backend) {
    for format in formats() {
        let mut rig = Rig::new(backend, format);
        for page in [0, M2 - 1, M2, G1, G1 * M2 + 7, format.nr_pages() - 1] {
            rig.touch(page, Read);
            rig.map(page, (at::SCATTERED + 5, 1), bits::RW, 2).unwrap();
            assert_eq!(rig.space.nr_tables(), format.nr_levels as u64);
            rig.touch(page, Write);
            rig.touch(page, Read);
            rig.check_walks(0, format.nr_pages());
            let (done, result) = rig.unmap(page, 1);
            assert_eq!((done, result), (1, Ok(())));
            rig.touch(page, Read);
            assert_eq!(rig.space.nr_tables(), 1);
        }
        rig.finish();
    }
}

/// The level of each leaf that pages should be mapped with.
fn expected_levels(rig: &Rig, start: u64, pfns: (u64, u64), max_level: usize) -> Vec<usize> {
    let max_level = max_level.min(rig.format().max_leaf_level);
    let mut levels = Vec::new();
    let mut nr = 0;
    while nr < pfns.1 {
        let fits = |level: &usize| {
            let span = 1 << (9 * level);
            let is_aligned = |number: u64| number % span == 0;
            let frame = |nr: u64| rig.backend.mfn(&rig.sim, pfns.0 + nr);
            nr + span <= pfns.1
                && is_aligned(start + nr)
                && is_aligned(pfns.0 + nr)
                && frame(nr).is_some_and(is_aligned)
                && (1..span).all(|at| frame(nr + at) == frame(nr).map(|first| first + at))
        };
        let level = (1..=max_level).rev().find(fits).unwrap_or(0);
        levels.push(level);
        nr += 1 << (9 * level);
    }
    levels
}

fn leaves_are_as_large_as_all_agree(backend: &Backend) {
    for format in formats()
        .into_iter()
        .filter(|format| format.address_bits == 47)
    {
        for max_level in 0..=2 {
            let mut rig = Rig::new(backend, format);
            // One page of a run is elsewhere.
            let elsewhere = Entry::Present(Mfn::new(FRESH).unwrap());
            rig.sim.set(at::ALIGNED + 3 * M2 + 7, 1, elsewhere);
            for (start, pfns) in [
                (M2, (at::ALIGNED + 2 * M2, 2 * M2)),
                (0, (at::ALIGNED, M2)),
                (0, (at::ALIGNED, 2 * M2 + 3)),
                (1, (at::ALIGNED, M2)),
                (1, (at::ALIGNED + 1, 2 * M2)),
                (M2 - 3, (at::ALIGNED - 3, M2 + 6)),
                (M2, (at::SCATTERED, M2)),
                (M2, (at::MISALIGNED, M2)),
                (M2, (at::MISALIGNED - M2, 2 * M2)),
                (M2, (at::FOREIGN, 2 * M2)),
                (M2, (at::IDENTITY, M2)),
                (M2, (at::FOREIGN_HIGH + 1, 2 * M2)),
                (G1 - M2, (at::ALIGNED, 2 * M2)),
            ] {
                rig.map(start, pfns, bits::RW, max_level).unwrap();
                let (leaves, _) = rig.leaves();
                let levels: Vec<usize> = leaves.iter().map(|leaf| leaf.level).collect();
                let expected = expected_levels(&rig, start, pfns, max_level);
                assert_eq!(levels, expected, "{start:#x}, {pfns:x?}");
                assert_eq!(rig.unmap(start, pfns.1), (pfns.1, Ok(())));
                assert_eq!(rig.space.nr_tables(), 1);
            }
            rig.finish();
        }
    }
}

/// All ranges that begin and end at some of these numbers.
fn ranges(ends: &[u64]) -> Vec<(u64, u64)> {
    let all = ends
        .iter()
        .flat_map(|&start| ends.iter().map(move |&end| (start, end)));
    all.filter(|(start, end)| start < end)
        .map(|(start, end)| (start, end - start))
        .collect()
}

fn every_alignment_maps_and_unmaps(backend: &Backend) {
    // Over the end of a table of level 0, 1 and 2.
    for (format, edge) in [
        (format(), M2),
        (format(), G1),
        (format(), G1 * M2),
        (Format::x86_64(5).unwrap(), G1 * M2 * M2),
    ] {
        let all = ranges(&[edge - 3, edge - 2, edge - 1, edge, edge + 1, edge + 2]);
        for &(start, nr) in &all {
            let mut rig = Rig::new(backend, format);
            rig.map(start, (at::SCATTERED, nr), bits::USER, 2).unwrap();
            let nr_tables = rig.space.nr_tables();
            for &(from, len) in &all {
                let common = (start + nr).min(from + len).saturating_sub(start.max(from));
                assert_eq!(rig.unmap(from, len), (common, Ok(())));
                rig.unmap(start, nr).1.unwrap();
                assert_eq!(rig.space.nr_tables(), 1);
                rig.map(start, (at::SCATTERED, nr), bits::USER, 2).unwrap();
                assert_eq!(rig.space.nr_tables(), nr_tables);
            }
            rig.finish();
        }
    }
}

fn an_overlap_by_any_page_changes_nothing(backend: &Backend) {
    let all = ranges(&[M2 - 2, M2 - 1, M2, M2 + 1, M2 + 2]);
    for &(start, nr) in &all {
        let mut rig = Rig::new(backend, format());
        rig.map(start, (at::SCATTERED, nr), 0, 2).unwrap();
        for &(from, len) in &all {
            let image = rig.sim.image();
            let nr_allocs = rig.pool.nr_allocs;
            let is_free = from >= start + nr || from + len <= start;
            let result = rig.map(from, (at::ALIGNED, len), 0, 2);
            if is_free {
                assert_eq!(result, Ok(()));
                rig.unmap(from, len).1.unwrap();
            } else {
                assert_eq!(result, Err(PagingError::Occupied));
                assert_eq!(rig.pool.nr_allocs, nr_allocs);
            }
            assert_eq!(rig.sim.image(), image);
        }
        rig.finish();
    }
    // A large leaf, from any side.
    let mut rig = Rig::new(backend, format());
    rig.map(M2, (at::ALIGNED, M2), 0, 1).unwrap();
    for (from, len) in ranges(&[0, M2 - 1, M2, M2 + 1, 2 * M2 - 1, 2 * M2, 2 * M2 + 1]) {
        if from < 2 * M2 && from + len > M2 {
            let result = rig.map(from, (at::ALIGNED, len), 0, 2);
            assert_eq!(result, Err(PagingError::Occupied));
        }
    }
    rig.finish();
}

/// A format with small leaves only.
fn small() -> Format {
    Format {
        max_leaf_level: 0,
        ..format()
    }
}

/// Ends that cut a leaf of level 1 at `M2` in all ways.
const CUTS: [u64; 6] = [M2 - 1, M2, M2 + 1, 2 * M2 - 1, 2 * M2, 2 * M2 + 1];

/// A space with three leaves of level 1 from `0` on, if the format has such.
fn with_large_leaves(backend: &Backend, format: Format, flags: u64) -> Rig {
    let mut rig = Rig::new(backend, format);
    rig.map(0, (at::ALIGNED, 3 * M2), flags, 1).unwrap();
    rig
}

fn a_part_of_a_large_leaf_goes(backend: &Backend) {
    for format in [format(), small()] {
        for (start, nr) in ranges(&CUTS) {
            let mut rig = with_large_leaves(backend, format, bits::RW | bits::NX | bits::PAT);
            rig.touch(M2, Write);
            rig.touch(2 * M2, Read);
            let (done, result) = rig.unmap(start, nr);
            assert_eq!((done, result), (nr, Ok(())));
            for page in CUTS {
                rig.touch(page, Write);
            }
            let rest = [(0, start), (start + nr, 3 * M2 - start - nr)];
            for (start, nr) in rest {
                assert_eq!(rig.unmap(start, nr), (nr, Ok(())));
            }
            assert_eq!(rig.space.nr_tables(), 1);
            rig.finish();
        }
    }
}

fn a_part_of_a_large_leaf_changes(backend: &Backend) {
    for (start, nr) in ranges(&CUTS) {
        for change in [
            Change::Flags(bits::USER | bits::PAT),
            Change::Frames(pfn(at::SCATTERED + 1)),
            Change::Frames(pfn(at::GIANT + M2)),
            Change::Frames(pfn(at::ALIGNED + start)),
            Change::Frames(pfn(at::MISALIGNED)),
            Change::Frames(pfn(at::FOREIGN)),
        ] {
            let mut rig = with_large_leaves(backend, format(), bits::RW | bits::PWT);
            rig.touch(M2 + 1, Write);
            assert_eq!(rig.change(start, nr, change), (nr, Ok(())));
            for page in CUTS {
                rig.touch(page, Read);
            }
            assert_eq!(rig.unmap(0, 3 * M2), (3 * M2, Ok(())));
            rig.finish();
        }
    }
}

fn all_flags_are_kept_by_a_split(backend: &Backend) {
    let each: Vec<u64> = (0..64).map(|bit| 1 << bit).collect();
    let each: Vec<u64> = each.into_iter().filter(|bit| FLAGS & bit != 0).collect();
    assert_eq!(each.len(), 8);
    // Each of them, all but each, none and all.
    let all_but = each.iter().map(|bit| FLAGS & !bit);
    for flags in all_but.chain(each.iter().copied()).chain([0, FLAGS]) {
        let mut rig = Rig::new(backend, format());
        rig.map(0, (at::ALIGNED, M2), flags, 1).unwrap();
        assert_eq!(rig.leaves().0.len(), 1);
        // The model compares the flags.
        assert_eq!(rig.unmap(7, 1), (1, Ok(())));
        assert_eq!(rig.leaves().0.len(), M2 as usize - 1);
        rig.change(9, 1, Change::Flags(!flags & FLAGS)).1.unwrap();
        rig.change(10, 1, Change::Frames(pfn(at::SCATTERED)))
            .1
            .unwrap();
        rig.finish();
    }
}

fn a_hole_is_missing(backend: &Backend) {
    let frames = Change::Frames(pfn(at::SCATTERED));
    for hole in [0, 1, M2 - 1, M2, 2 * M2 - 1] {
        let mut rig = Rig::new(backend, format());
        rig.map(0, (at::ALIGNED, 2 * M2), bits::RW, 1).unwrap();
        rig.unmap(hole, 1).1.unwrap();
        let image = rig.sim.image();
        for change in [Change::Flags(0), frames] {
            for (start, nr) in ranges(&[0, hole, hole + 1, 2 * M2, 2 * M2 + 1]) {
                let is_whole = !(start..start + nr).contains(&hole) && start + nr <= 2 * M2;
                if !is_whole {
                    let result = rig.change(start, nr, change);
                    assert_eq!(result, (0, Err(PagingError::Missing)));
                }
            }
        }
        assert_eq!(rig.sim.image(), image);
        // Unmapping a hole is nothing to complain about.
        assert_eq!(rig.unmap(hole, 1), (0, Ok(())));
        assert_eq!(rig.unmap(0, 3 * M2), (2 * M2 - 1, Ok(())));
        rig.finish();
    }
}

fn a_bad_range_or_flag_changes_nothing(backend: &Backend) {
    for format in formats() {
        let mut rig = Rig::new(backend, format);
        let end = format.nr_pages();
        rig.map(end - 1, (at::SCATTERED, 1), 0, 0).unwrap();
        let image = rig.sim.image();
        let bad = [
            (0, 0),
            (5, 0),
            (end, 1),
            (end - 1, 2),
            (0, end + 1),
            (end + 1, 1),
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
        ];
        for (start, nr) in bad {
            assert_eq!(rig.unmap(start, nr).1, Err(PagingError::BadRange));
            let result = rig.change(start, nr, Change::Flags(0));
            assert_eq!(result.1, Err(PagingError::BadRange));
            if nr == 1 || nr == 2 {
                let result = rig.map(start, (at::SCATTERED, nr), 0, 2);
                assert_eq!(result, Err(PagingError::BadRange));
            }
        }
        let beyond = Change::Frames(pfn(Pfn::LIMIT - 1));
        let result = rig.space.change(
            &*rig.sim,
            &mut rig.pool,
            Pages {
                start: end - 2,
                nr_pages: 2,
            },
            beyond,
        );
        assert_eq!(result, (0, Err(PagingError::BadRange)));
        for bit in (0..64)
            .map(|bit| 1u64 << bit)
            .filter(|bit| FLAGS & bit == 0)
        {
            let result = rig.map(0, (at::SCATTERED, 1), bits::RW | bit, 0);
            assert_eq!(result, Err(PagingError::BadFlags));
            let result = rig.change(end - 1, 1, Change::Flags(bit));
            assert_eq!(result, (0, Err(PagingError::BadFlags)));
        }
        assert_eq!(rig.sim.image(), image);
        rig.finish();
    }
}

fn the_last_page_is_a_page(backend: &Backend) {
    for format in formats() {
        let end = format.nr_pages();
        for nr in [1, 3, M2, M2 + 1, 2 * M2] {
            let mut rig = Rig::new(backend, format);
            rig.map(end - nr, (at::ALIGNED + 2 * M2 - nr, nr), 0, 2)
                .unwrap();
            rig.check_walks(0, u64::MAX);
            rig.touch(end - 1, Read);
            rig.change(end - 1, 1, Change::Flags(bits::RW)).1.unwrap();
            rig.touch(end - 1, Write);
            assert_eq!(rig.unmap(end - nr, nr), (nr, Ok(())));
            rig.finish();
        }
    }
}

fn unmapping_all_counts_pages(backend: &Backend) {
    for format in formats() {
        let mut rig = Rig::new(backend, format);
        let places = [
            0,
            M2 + 3,
            5 * M2,
            G1 - 1,
            G1 * M2 - 2,
            format.nr_pages() - M2,
        ];
        for start in places {
            rig.map(start, (at::ALIGNED, M2), bits::RW, 2).unwrap();
            rig.touch(start, Write);
        }
        let nr = places.len() as u64 * M2;
        assert_eq!(rig.unmap(0, format.nr_pages()), (nr, Ok(())));
        assert_eq!(rig.space.nr_tables(), 1);
        rig.finish();
    }
}

fn an_unbacked_page_depends_on_the_backend(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    // Three pages with nothing behind them, between others.
    for nr in [0, 1, 5, 6] {
        let frame = Mfn::new(FRESH + 2 * nr).unwrap();
        rig.sim.set(at::HOLE + nr, 1, Entry::Present(frame));
    }
    rig.map(0, (at::HOLE, 7), bits::RW | bits::NX, 2).unwrap();
    let (leaves, _) = rig.leaves();
    let present: Vec<u64> = leaves
        .iter()
        .filter(|leaf| leaf.is_present())
        .map(|leaf| leaf.start)
        .collect();
    match backend.unbacked {
        Unbacked::Mapped => assert_eq!(present, [0, 1, 2, 3, 4, 5, 6]),
        _ => assert_eq!(present, [0, 1, 5, 6]),
    }
    assert_eq!(leaves.len() == 7, backend.unbacked != Unbacked::Empty);
    for page in 0..8 {
        rig.touch(page, Read);
    }
    rig.check_walks(0, M2);
    // So they are mapped, or free, or occupied.
    let result = rig.map(2, (at::SCATTERED, 3), 0, 2);
    let nr = match backend.unbacked {
        Unbacked::Empty => {
            assert_eq!(result, Ok(()));
            assert_eq!(rig.unmap(2, 3), (3, Ok(())));
            let result = rig.change(0, 7, Change::Flags(0));
            assert_eq!(result, (0, Err(PagingError::Missing)));
            4
        }
        _ => {
            assert_eq!(result, Err(PagingError::Occupied));
            assert_eq!(rig.change(0, 7, Change::Flags(0)), (7, Ok(())));
            7
        }
    };
    // What is changed to frames that aren't there goes the same way.
    rig.touch(0, Read);
    rig.change(0, 1, Change::Frames(pfn(at::HOLE + 3)))
        .1
        .unwrap();
    let nr = if backend.unbacked == Unbacked::Empty {
        nr - 1
    } else {
        nr
    };
    assert_eq!(rig.unmap(0, M2), (nr, Ok(())));
    rig.finish();
}

fn an_unbacked_page_comes_back_if_it_was_kept(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    rig.map(0, (at::HOLE, 4), bits::RW, 2).unwrap();
    let frame = Mfn::new(FRESH).unwrap();
    rig.sim.set(at::HOLE, 4, Entry::Present(frame));
    rig.touch(1, Read);
    let result = rig.change(0, 4, Change::Flags(bits::RW));
    match backend.unbacked {
        Unbacked::Mapped => assert_eq!(result, (4, Ok(()))),
        Unbacked::Empty => assert_eq!(result, (0, Err(PagingError::Missing))),
        Unbacked::Absent => {
            assert_eq!(result, (4, Ok(())));
            assert_eq!(rig.sim.access(1, Write), Some(FRESH + 1));
            rig.touch(1, Write);
        }
    }
    rig.finish();
    // The one entry that can't be kept is that of the first page without any flag.
    if backend.unbacked == Unbacked::Absent {
        let mut rig = Rig::new(backend, format());
        rig.sim.set(0, 1, Entry::Invalid);
        rig.map(0, (at::HOLE, 1), 0, 0).unwrap();
        let map = |rig: &mut Rig, flags| {
            let range = p2m_pure::frame::PfnRange::new(0, 1).unwrap();
            rig.space.map(&*rig.sim, &mut rig.pool, 1, range, flags, 0)
        };
        assert_eq!(map(&mut rig, 0), Ok(()));
        assert_eq!(rig.leaves().0.len(), 1);
        assert_eq!(map(&mut rig, bits::RW), Ok(()));
        assert_eq!(rig.leaves().0.len(), 2);
        let page = Pages {
            start: 1,
            nr_pages: 1,
        };
        let result = rig.space.unmap(&*rig.sim, &mut rig.pool, page);
        assert_eq!(result, (1, Ok(())));
        rig.unmap(0, 1).1.unwrap();
        rig.finish();
    }
}

/// With a backend that makes unbacked pages empty, a table can have no entry at all.
fn a_table_of_unbacked_pages_makes_room(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    rig.map(0, (at::HOLE, M2), bits::RW, 2).unwrap();
    let frame = Mfn::new(FRESH).unwrap();
    rig.sim.set(at::HOLE, M2, Entry::Present(frame));
    if backend.unbacked != Unbacked::Empty {
        rig.unmap(0, M2).1.unwrap();
    }
    // A leaf that would take the place of the table loses no table.
    rig.map(0, (at::HOLE, M2), bits::RW, 2).unwrap();
    rig.touch(5, Write);
    assert_eq!(rig.unmap(0, M2), (M2, Ok(())));
    assert_eq!(rig.space.nr_tables(), 1);
    // Nor is one left, if there is nothing to be unmapped.
    rig.map(0, (at::HOLE + M2, M2), bits::RW, 2).unwrap();
    rig.unmap(0, M2).1.unwrap();
    assert_eq!(rig.space.nr_tables(), 1);
    rig.finish();
}

/// Nobody makes up a frame for an entry that the kernel has no number for, and nobody loses it.
fn frames_of_somebody_else_keep_their_place(backend: &Backend) {
    if !backend.translates() {
        return;
    }
    for first in [at::FOREIGN, at::FOREIGN_HIGH] {
        for max_level in [0, 1] {
            for (start, nr) in [(0, M2), (0, 1), (3, 5), (M2 - 1, 1)] {
                let mut rig = Rig::new(backend, format());
                rig.map(0, (first, M2), bits::RW | bits::PAT, max_level)
                    .unwrap();
                rig.touch(3, Write);
                assert_eq!(rig.change(start, nr, Change::Flags(bits::NX)), (nr, Ok(())));
                for page in [0, 3, 4, M2 - 1] {
                    rig.touch(page, Read);
                    let mapping = rig.model.get(page).unwrap();
                    assert!(matches!(mapping.frame, Frame::Foreign { .. }));
                }
                // Once more, as it's no longer what was mapped.
                assert_eq!(rig.change(0, M2, Change::Flags(bits::RW)), (M2, Ok(())));
                rig.check_walks(0, M2);
                assert_eq!(rig.unmap(start, nr), (nr, Ok(())));
                rig.finish();
            }
        }
    }
}

fn a_frame_is_replaced_beneath_a_large_leaf(backend: &Backend) {
    for page in [0, 1, M2 / 2, M2 - 1] {
        for entry in [
            Entry::Present(Mfn::new(FRESH).unwrap()),
            Entry::Present(Mfn::new(FRESH + 1).unwrap()),
            Entry::Foreign(Mfn::new(FRESH).unwrap()),
            Entry::Invalid,
        ] {
            let mut rig = Rig::new(backend, format());
            rig.map(M2, (at::ALIGNED, 2 * M2), bits::RW, 1).unwrap();
            rig.map(8 * M2 + 5, (at::ALIGNED, M2), 0, 1).unwrap();
            rig.touch(M2 + page, Write);
            rig.rebase(at::ALIGNED + page, entry);
            for at in [0, page, 1, M2 - 1, M2] {
                rig.touch(M2 + at, Read);
                rig.touch(8 * M2 + 5 + at, Read);
            }
            rig.check_walks(0, 10 * M2);
            rig.finish();
        }
    }
}

fn rights_are_lost_at_once(backend: &Backend) {
    for max_level in [0, 1] {
        let mut rig = Rig::new(backend, format());
        rig.map(0, (at::ALIGNED, 2 * M2), bits::RW, max_level)
            .unwrap();
        for page in [0, 1, M2, 2 * M2 - 1] {
            rig.touch(page, Write);
        }
        rig.change(0, M2 + 1, Change::Flags(0)).1.unwrap();
        for page in [0, 1, M2, 2 * M2 - 1] {
            rig.touch(page, Write);
        }
        rig.unmap(1, 1).1.unwrap();
        rig.touch(1, Read);
        rig.change(0, 1, Change::Frames(pfn(at::SCATTERED)))
            .1
            .unwrap();
        rig.touch(0, Read);
        rig.finish();
    }
}

/// The processor writes whenever it can: each time that somebody asks the machine for something or
/// wants a page for a table. It begins at any of these chances, as it sets bits only once.
fn no_bit_gets_lost_while_an_entry_changes(backend: &Backend) {
    for (max_level, page, work) in [0, 1].into_iter().flat_map(|level| {
        let pages = [1, 9].into_iter();
        pages.flat_map(move |page| (0..4).map(move |work| (level, page, work)))
    }) {
        // That many chances there are before the work begins, and while the first page changes.
        let nr_before = if max_level == 0 { M2 + 1 } else { 2 };
        for delay in (0..4).chain(nr_before..nr_before + 8) {
            let mut rig = Rig::new(backend, format());
            rig.map(0, (at::ALIGNED, M2), bits::RW, max_level).unwrap();
            rig.sim.race_after(delay, [(page, Write), (5, Read)]);
            // The model knows what the processor did.
            match work {
                0 => rig.change(0, M2, Change::Flags(bits::RW)).1.unwrap(),
                1 => rig
                    .change(1, 9, Change::Flags(bits::RW | bits::NX))
                    .1
                    .unwrap(),
                2 => rig
                    .change(1, 9, Change::Frames(pfn(at::SCATTERED)))
                    .1
                    .unwrap(),
                _ => rig.unmap(2, 3).1.unwrap(),
            }
            rig.sim.race([]);
            rig.check();
            rig.finish();
        }
    }
}

fn a_processor_that_races_sees_no_freed_table(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    let pages = [0, 1, M2 - 1, M2, G1 - 1, G1, 5 * G1];
    rig.sim.race(pages.map(|page| (page, Write)));
    rig.map(0, (at::SCATTERED, 9), bits::RW, 2).unwrap();
    rig.map(G1 - 1, (at::SCATTERED, 2), bits::RW, 2).unwrap();
    rig.map(M2 - 1, (at::MISALIGNED, 3), bits::RW, 2).unwrap();
    rig.unmap(0, 1).1.unwrap();
    rig.unmap(0, 2 * M2).1.unwrap();
    rig.map(0, (at::ALIGNED, 2 * M2), bits::RW, 2).unwrap();
    rig.unmap(1, 1).1.unwrap();
    rig.change(M2, 3, Change::Frames(pfn(at::SCATTERED)))
        .1
        .unwrap();
    rig.unmap(0, 6 * G1).1.unwrap();
    rig.sim.race([]);
    rig.finish();
}

fn walks_find_what_is_there(backend: &Backend) {
    for format in formats() {
        let mut rig = Rig::new(backend, format);
        for (start, first, nr) in [
            (3, at::SCATTERED, 2),
            (M2, at::ALIGNED, 2 * M2),
            (G1 - 1, at::FOREIGN, 2),
            (G1 * M2, at::HOLE, 1),
            (G1 * M2 + 1, at::IDENTITY, 1),
            (format.nr_pages() - 1, at::SCATTERED, 1),
        ] {
            rig.map(start, (first, nr), bits::RW | bits::PAT, 2)
                .unwrap();
        }
        rig.unmap(2 * M2 + 1, 1).1.unwrap();
        let ends = [0, 3, 5, M2, M2 + 1, 2 * M2, 2 * M2 + 1, 2 * M2 + 2];
        let far = [
            G1 - 1,
            G1,
            G1 + 1,
            G1 * M2,
            G1 * M2 + 2,
            format.nr_pages(),
            u64::MAX,
        ];
        let ends = [&ends[..], &far].concat();
        for pair in ends.windows(2) {
            rig.check_walks(pair[0], pair[1]);
        }
        for (start, end) in [(0, u64::MAX), (M2 + 7, 2 * M2 + 7), (2 * M2 + 1, G1 * M2)] {
            rig.check_walks(start, end);
        }
        assert_eq!(rig.space.next_leaf(&*rig.sim, 5, 5), None);
        assert_eq!(rig.space.next_leaf(&*rig.sim, M2, 3), None);
        // The entries that lead to a hole end with the empty one.
        let last = rig.space.walk(&*rig.sim, 2 * M2 + 1).last().unwrap();
        assert_eq!((last.raw, last.val, last.level), (0, 0, 0));
        // Walking changes nothing, and asks the machine alone.
        let table = rig.sim.table(rig.space.root()).unwrap();
        assert!(!table.is_all(0));
        rig.finish();
    }
}

/// Each table has all of its entries link the next one, and the last one is full, or empty.
fn tables_that_are_linked_again_have_an_end(backend: &Backend) {
    for (format, is_full) in [(format(), false), (Format::x86_64(5).unwrap(), true)] {
        let mut rig = Rig::new(backend, format);
        rig.map(0, (at::SCATTERED, 1), bits::RW, 0).unwrap();
        for step in rig.space.walk(&*rig.sim, 0).steps() {
            let is_empty = step.level == 0 && !is_full;
            let table = rig.sim.table(step.slot.table).unwrap();
            for index in 0..M2 {
                table.store(index, if is_empty { 0 } else { step.raw });
            }
        }

        let nr_pages = format.nr_pages();
        let mut left = rig.space.nr_entries();
        let mut page = 0;
        let stopped = loop {
            let next = rig
                .space
                .next_leaf_within(&*rig.sim, page, u64::MAX, &mut left);
            match next {
                Ok(Some(leaf)) => page = leaf.start + leaf.nr_pages(),
                Ok(None) => break nr_pages,
                Err(page) => break page,
            }
        };
        assert_eq!((left, stopped), (0, rig.space.nr_tables() * M2));

        let all = Pages { start: 0, nr_pages };
        let (sim, pool) = (&*rig.sim, &mut rig.pool);
        let changed = rig.space.change(sim, pool, all, Change::Flags(0));
        assert_eq!(changed, (0, Err(PagingError::Endless)));
        let pfns = PfnRange::new(at::SCATTERED, M2).unwrap();
        let mapped = rig.space.map(sim, pool, G1, pfns, 0, 0);
        assert_eq!(mapped.is_err(), is_full);
    }
}
