// SPDX-License-Identifier: GPL-2.0

//! Frame numbers and ranges of them.

use p2m_pure::frame::{BadRange, Mfn, Pfn, PfnRange};

const MAX: u64 = u64::MAX;

#[test]
fn frame_numbers_end_at_their_limits() {
    for number in [0, 1, Pfn::LIMIT - 1] {
        assert_eq!(Pfn::new(number).map(Pfn::get), Some(number));
    }
    for number in [Pfn::LIMIT, Pfn::LIMIT + 1, 1 << 40, MAX] {
        assert_eq!(Pfn::new(number), None);
    }
    for number in [0, 1, Pfn::LIMIT, Mfn::LIMIT - 1] {
        assert_eq!(Mfn::new(number).map(Mfn::get), Some(number));
    }
    for number in [Mfn::LIMIT, Mfn::LIMIT + 1, 1 << 52, MAX] {
        assert_eq!(Mfn::new(number), None);
    }
    assert_eq!(Pfn::new(0), Some(Pfn::ZERO));
    assert_eq!(Mfn::new(0), Some(Mfn::ZERO));
}

#[test]
fn adding_to_a_frame_never_leaves_the_space() {
    let last = Mfn::LIMIT - 1;
    for (start, nr, sum) in [
        (0, 0, Some(0)),
        (0, last, Some(last)),
        (0, Mfn::LIMIT, None),
        (0, MAX, None),
        (last, 0, Some(last)),
        (last, 1, None),
        // These wrap.
        (last, MAX, None),
        (1, MAX, None),
    ] {
        let mfn = Mfn::new(start).unwrap();
        assert_eq!(
            mfn.checked_add(nr).map(Mfn::get),
            sum,
            "{start:#x} + {nr:#x}"
        );
    }
}

#[test]
fn neighbours_differ_by_one_in_either_direction() {
    let numbers = || (0..6).chain(Mfn::LIMIT - 6..Mfn::LIMIT);
    for a in numbers() {
        for b in numbers() {
            let is_adjacent = a + 1 == b || b + 1 == a;
            let (a, b) = (Mfn::new(a).unwrap(), Mfn::new(b).unwrap());
            assert_eq!(a.is_adjacent_to(b), is_adjacent, "{a:?} {b:?}");
        }
    }
}

#[test]
fn ranges_are_not_empty_and_end_in_the_space() {
    let last = Pfn::LIMIT - 1;
    for (start, nr_pages, bad) in [
        (0, 0, Some(BadRange::Empty)),
        (last, 0, Some(BadRange::Empty)),
        (Pfn::LIMIT, 0, Some(BadRange::Empty)),
        (MAX, 0, Some(BadRange::Empty)),
        (0, 1, None),
        (0, last, None),
        (0, Pfn::LIMIT, None),
        (0, Pfn::LIMIT + 1, Some(BadRange::Overflow)),
        (0, MAX, Some(BadRange::Overflow)),
        (1, last, None),
        (1, Pfn::LIMIT, Some(BadRange::Overflow)),
        (1, MAX, Some(BadRange::Overflow)),
        (last, 1, None),
        (last, 2, Some(BadRange::Overflow)),
        (last, MAX, Some(BadRange::Overflow)),
        (Pfn::LIMIT, 1, Some(BadRange::Overflow)),
        (MAX, 1, Some(BadRange::Overflow)),
        (MAX, MAX, Some(BadRange::Overflow)),
        // The sum wraps to a number that looks good.
        (MAX, 2, Some(BadRange::Overflow)),
        (1 << 63, 1 << 63, Some(BadRange::Overflow)),
    ] {
        let range = PfnRange::new(start, nr_pages);
        assert_eq!(range.err(), bad, "{start:#x} {nr_pages:#x}");
        if let Ok(range) = range {
            assert_eq!(range.start().get(), start);
            assert_eq!(range.nr_pages(), nr_pages);
            assert_eq!(range.end(), start + nr_pages);
        }
    }
}

/// All ranges at either end of the space that have at most 5 pages.
fn small_ranges() -> impl Iterator<Item = PfnRange> {
    let starts = (0..6).chain(Pfn::LIMIT - 6..Pfn::LIMIT + 2);
    starts.flat_map(|start| (0..6).filter_map(move |nr| PfnRange::new(start, nr).ok()))
}

#[test]
fn a_range_is_the_pages_in_it() {
    for range in small_ranges() {
        let pages: Vec<u64> = (range.start().get()..range.end()).collect();
        let iterated: Vec<u64> = range.iter().map(Pfn::get).collect();
        assert_eq!(iterated, pages);
        for index in (0..8).chain([Pfn::LIMIT, MAX]) {
            let page = usize::try_from(index).ok().and_then(|at| pages.get(at));
            assert_eq!(range.nth(index).map(Pfn::get), page.copied());
        }
    }
}

#[test]
fn ranges_overlap_when_a_page_is_in_both() {
    for a in small_ranges() {
        for b in small_ranges() {
            let is_common = a.iter().any(|page| b.iter().any(|other| page == other));
            assert_eq!(a.overlaps(b), is_common, "{a:?} {b:?}");
        }
    }
}
