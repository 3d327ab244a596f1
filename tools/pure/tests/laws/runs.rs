// SPDX-License-Identifier: GPL-2.0

//! Runs against a loop over all pages.

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::runs::{piece, Run, Runs, PIECE_PAGES};
use proptest::prelude::*;

use crate::rig::{mfn, pfn, range, span, Domain};

/// Returns whether two entries are those of one run at neighbouring PFNs.
fn goes_on(entry: Entry, next: Entry) -> bool {
    let is_next = |mfn: Mfn, next: Mfn| mfn.get() + 1 == next.get();
    match (entry, next) {
        (Entry::Invalid, Entry::Invalid) => true,
        (Entry::Present(mfn), Entry::Present(next))
        | (Entry::Foreign(mfn), Entry::Foreign(next))
        | (Entry::Identity(mfn), Entry::Identity(next)) => is_next(mfn, next),
        _ => false,
    }
}

/// The runs of a range, page by page.
fn naive(domain: &Domain, range: PfnRange) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut last = None;
    for pfn in range.iter() {
        let entry = domain.lookup(pfn);
        match (runs.last_mut(), last) {
            (Some(run), Some(last)) if goes_on(last, entry) => run.nr_pages += 1,
            _ => runs.push(Run {
                pfn,
                nr_pages: 1,
                entry,
            }),
        }
        last = Some(entry);
    }
    runs
}

fn runs(domain: &Domain, range: PfnRange) -> Vec<Run> {
    Runs::new(&domain.maps, &domain.store, range).collect()
}

/// Makes a run, of the kind that `first` has.
fn fill(domain: &mut Domain, start: u64, nr_pages: u64, first: Entry) {
    for at in 0..nr_pages {
        let entry = first.advance(at).unwrap();
        domain.set(pfn(start + at), entry).unwrap();
    }
}

/// Returns a domain with one of everything, and the range that it is in.
fn example() -> (Domain, PfnRange) {
    let mut domain = Domain::new(());
    // Two neighbouring runs of frames that aren't neighbours.
    fill(&mut domain, 10, 5, Entry::Present(mfn(100)));
    fill(&mut domain, 15, 3, Entry::Present(mfn(200)));
    // Frames that go on, but are of another kind.
    fill(&mut domain, 18, 2, Entry::Foreign(mfn(203)));
    fill(&mut domain, 20, 2, Entry::Identity(mfn(205)));
    fill(&mut domain, 22, 2, Entry::Present(mfn(207)));
    // Backwards.
    for at in 0..4 {
        let entry = Entry::Present(mfn(310 - at));
        domain.set(pfn(24 + at), entry).unwrap();
    }
    // A hole in a leaf, and a run over its end.
    fill(&mut domain, span(1) - 3, 6, Entry::Present(mfn(400)));
    // Behind a missing leaf, a run that ends with its leaf.
    fill(&mut domain, 3 * span(1), span(1), Entry::Present(mfn(1000)));
    (domain, range(0, 5 * span(1)))
}

#[test]
fn runs_are_those_of_a_loop_over_all_pages() {
    let (domain, all) = example();
    let found = runs(&domain, all);
    assert_eq!(found, naive(&domain, all));
    // The loop is right, too: hole, 5, 3, 2, 2, 2, 4 * 1, hole, 6, hole, 512, hole.
    let lengths: Vec<u64> = found.iter().map(|run| run.nr_pages).collect();
    assert_eq!(
        lengths,
        [10, 5, 3, 2, 2, 2, 1, 1, 1, 1, 481, 6, 1021, 512, 512]
    );
}

/// Runs of a part are the runs of the whole, cut at its ends.
#[test]
fn runs_are_cut_at_the_ends_of_the_range() {
    let (domain, all) = example();
    let whole = runs(&domain, all);
    let ends = [
        0,
        1,
        9,
        10,
        11,
        14,
        15,
        17,
        19,
        24,
        26,
        30,
        span(1) - 4,
        span(1),
        span(1) + 2,
        span(1) + 3,
        2 * span(1),
        3 * span(1) - 1,
        3 * span(1) + 1,
        4 * span(1),
        5 * span(1),
    ];
    for (at, &start) in ends.iter().enumerate() {
        for &end in &ends[at + 1..] {
            let cut = whole.iter().filter_map(|run| {
                let from = run.pfn.get().max(start);
                let nr_pages = run.end().min(end).checked_sub(from)?;
                let entry = run.entry.advance(from - run.pfn.get())?;
                (nr_pages > 0).then(|| Run {
                    pfn: pfn(from),
                    nr_pages,
                    entry,
                })
            });
            let found = runs(&domain, range(start, end - start));
            assert_eq!(found, cut.collect::<Vec<_>>(), "{start}..{end}");
        }
    }
}

#[test]
fn a_run_ends_with_the_last_frame() {
    for kind in [Entry::Present, Entry::Foreign, Entry::Identity] {
        let mut domain = Domain::new(());
        let last = kind(mfn(Mfn::LIMIT - 1));
        domain.set(pfn(5), last).unwrap();
        let all = range(4, 4);
        assert_eq!(runs(&domain, all), naive(&domain, all));
        assert_eq!(piece(&domain.maps, &domain.store, range(5, 3)).nr_pages, 1);

        let run = |at, nr_pages, entry| Run {
            pfn: pfn(at),
            nr_pages,
            entry,
        };
        let merged = run(5, 1, last).merge(run(6, 2, Entry::Invalid));
        assert_eq!(merged, None);
    }
}

#[test]
fn a_piece_is_never_longer_than_its_range_or_what_is_said() {
    let nr = PIECE_PAGES + 2 * span(1);
    let mut domain = Domain::new(());
    fill(&mut domain, 0, nr, Entry::Present(mfn(span(2))));
    for (start, nr_pages, expected) in [
        (0, 1, 1),
        (0, PIECE_PAGES - 1, PIECE_PAGES - 1),
        (0, PIECE_PAGES, PIECE_PAGES),
        (0, PIECE_PAGES + 1, PIECE_PAGES),
        (3, nr, PIECE_PAGES),
        (nr - 1, 1, 1),
        (nr - 1, 7, 1),
        (nr - PIECE_PAGES, PIECE_PAGES + 1, PIECE_PAGES),
    ] {
        let piece = piece(&domain.maps, &domain.store, range(start, nr_pages));
        assert_eq!(piece.pfn, pfn(start));
        assert_eq!(piece.nr_pages, expected, "{start} {nr_pages}");
        assert_eq!(piece.entry, domain.lookup(pfn(start)));
    }
    // Nobody sees where pieces end.
    for nr_pages in [PIECE_PAGES - 1, PIECE_PAGES, PIECE_PAGES + 1, nr] {
        assert_eq!(runs(&domain, range(0, nr_pages)).len(), 1);
    }
    assert_eq!(runs(&domain, range(0, nr + 9)).len(), 2);
}

/// A hole in a leaf is looked at page by page, so it's in pieces, too.
#[test]
fn holes_in_leaves_are_one_run_as_well() {
    let mut domain = Domain::new(());
    // Leaves that are there, with only their last pages in use.
    let nr_leaves = PIECE_PAGES / span(1) + 2;
    for leaf in 0..nr_leaves {
        let at = pfn(leaf * span(1) + 1);
        domain.set(at, Entry::Foreign(mfn(7))).unwrap();
    }
    for leaf in 0..nr_leaves - 1 {
        let at = pfn(leaf * span(1) + 1);
        domain.set(at, Entry::Invalid).unwrap();
    }
    let found = runs(&domain, range(0, nr_leaves * span(1)));
    let lengths: Vec<u64> = found.iter().map(|run| run.nr_pages).collect();
    assert_eq!(lengths, [(nr_leaves - 1) * span(1) + 1, 1, span(1) - 2]);
}

#[test]
fn the_whole_space_is_walked_in_a_few_steps() {
    let mut domain = Domain::new(());
    let places = [span(2), span(3) - 1, span(3), Pfn::LIMIT - 1];
    for at in places {
        domain.set(pfn(at), Entry::Foreign(mfn(9))).unwrap();
    }
    let mut all = Runs::new(&domain.maps, &domain.store, range(0, Pfn::LIMIT));
    let mut found = Vec::new();
    let mut nr_steps = 0;
    while !all.is_done() {
        found.extend(all.step());
        nr_steps += 1;
    }
    let starts: Vec<u64> = found.iter().map(|run| run.pfn.get()).collect();
    let expected = [
        0,
        span(2),
        span(2) + 1,
        span(3) - 1,
        span(3),
        span(3) + 1,
        Pfn::LIMIT - 1,
    ];
    assert_eq!(starts, expected);
    assert_eq!(
        found.iter().map(|run| run.nr_pages).sum::<u64>(),
        Pfn::LIMIT
    );
    // Three steps a leaf, two of which are holes in it, and one a hole between.
    assert!(nr_steps <= 4 * places.len() + 2, "{nr_steps}");
    assert_eq!(all.step(), None);
}

#[test]
fn merging_is_associative_and_keeps_all_pages() {
    let entries = [
        Entry::Invalid,
        Entry::Present(mfn(5)),
        Entry::Present(mfn(6)),
        Entry::Present(mfn(7)),
        Entry::Foreign(mfn(6)),
        Entry::Identity(mfn(7)),
    ];
    let run = |at, nr_pages, entry| Run {
        pfn: pfn(at),
        nr_pages,
        entry,
    };
    let mut nr_merged = 0;
    for a in entries {
        for b in entries {
            // Not next to each other, whatever is in them.
            assert_eq!(run(1, 1, a).merge(run(3, 1, b)), None);
            assert_eq!(run(1, 2, a).merge(run(2, 1, b)), None);
            assert_eq!(run(2, 1, a).merge(run(1, 1, b)), None);
            let merged = run(1, 1, a).merge(run(2, 1, b));
            assert_eq!(merged.is_some(), goes_on(a, b));
            for c in entries {
                let (a, b, c) = (run(1, 1, a), run(2, 1, b), run(3, 1, c));
                let left = a.merge(b).and_then(|run| run.merge(c));
                let right = b.merge(c).and_then(|run| a.merge(run));
                assert_eq!(left, right);
                if let Some(run) = left {
                    assert_eq!((run.pfn, run.nr_pages, run.entry), (pfn(1), 3, a.entry));
                    nr_merged += 1;
                }
            }
        }
    }
    // Three holes, and 5, 6, 7.
    assert_eq!(nr_merged, 2);
}

/// What comes next in a space: how far away, and pages of which kind.
#[derive(Clone, Debug)]
struct Part {
    hole: u64,
    nr_pages: u64,
    kind: u8,
    is_run: bool,
}

fn part() -> impl Strategy<Value = Part> {
    let hole = prop_oneof![
        3 => Just(0),
        3 => 1..20u64,
        2 => 400..600u64,
        1 => Just(span(1)),
        1 => 3000..5000u64,
    ];
    let nr_pages = prop_oneof![4 => 1..20u64, 1 => 500..530u64, 1 => Just(span(1))];
    (hole, nr_pages, 0..3u8, any::<bool>()).prop_map(|(hole, nr_pages, kind, is_run)| Part {
        hole,
        nr_pages,
        kind,
        is_run,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn runs_tell_all_about_a_range(
        start in prop_oneof![Just(0), span(1) - 9..span(1), span(2) - 9..span(2)],
        parts in prop::collection::vec(part(), 1..12),
        cut in (0..900u64, 0..900u64),
    ) {
        let mut domain = Domain::new(());
        let (mut at, mut frame) = (start, 1000);
        for part in &parts {
            at += part.hole;
            for _ in 0..part.nr_pages {
                let kind = [Entry::Present, Entry::Foreign, Entry::Identity][part.kind as usize];
                domain.set(pfn(at), kind(mfn(frame))).unwrap();
                at += 1;
                frame += if part.is_run { 1 } else { 2 };
            }
        }
        let end = at + 700 - cut.1.min(at - start);
        let all = range(start + cut.0.min(end - start - 1), end - start - cut.0.min(end - start - 1));
        let found = runs(&domain, all);
        prop_assert_eq!(&found, &naive(&domain, all));

        // They are put together again to what was there.
        let mut next = all.start().get();
        for run in &found {
            prop_assert_eq!(run.pfn.get(), next);
            for nr in 0..run.nr_pages {
                prop_assert_eq!(run.entry.advance(nr), Some(domain.lookup(pfn(next + nr))));
            }
            next = run.end();
        }
        prop_assert_eq!(next, all.end());
        for (run, next) in found.iter().zip(&found[1..]) {
            prop_assert_eq!(run.merge(*next), None);
        }
    }
}
