// SPDX-License-Identifier: GPL-2.0

//! P2M and M2P against a bijection that is kept in ordered maps.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::map::{Finding, Gone, Maps, SetError, Views, Which, AUDIT_BATCH};
use p2m_pure::table::{NoMemory, TableStore};
use p2m_pure_host::store::Store;
use proptest::prelude::*;

use crate::rig::{mfn, nr_tables, pfn, range, span, Domain};

/// PFNs and MFNs on either side of the borders of tables of all levels.
const PFNS: [u64; 8] = [
    0,
    1,
    span(1) - 1,
    span(1),
    span(2) - 1,
    span(2),
    span(3),
    Pfn::LIMIT - 1,
];
const MFNS: [u64; 7] = [
    0,
    1,
    span(1),
    span(2) + 1,
    span(3) + span(1),
    span(4),
    Mfn::LIMIT - 1,
];

fn owned(model: &BTreeMap<u64, Entry>) -> impl Iterator<Item = (u64, u64)> + '_ {
    model
        .iter()
        .filter_map(|(&pfn, entry)| Some((entry.owned()?.get(), pfn)))
}

/// Checks both maps, whole and word by word, and what they cost.
#[track_caller]
fn assert_holds<V: Views>(domain: &Domain<V>, model: &BTreeMap<u64, Entry>) {
    let store = &domain.store;
    for at in PFNS {
        let expected = model.get(&at).copied().unwrap_or(Entry::Invalid);
        assert_eq!(domain.lookup(pfn(at)), expected, "at PFN {at:#x}");
        let leaf = domain.maps.leaf(store, Which::P2m, at);
        assert_eq!(store.table(leaf).load(at), expected.raw());
    }
    let inverse: BTreeMap<u64, u64> = owned(model).collect();
    assert_eq!(inverse.len(), owned(model).count(), "the model is wrong");
    for at in MFNS {
        let expected = inverse.get(&at).copied();
        assert_eq!(domain.mfn_to_pfn(mfn(at)).map(Pfn::get), expected);
        // Between changes not even the word is stale.
        let leaf = domain.maps.leaf(store, Which::M2p, at);
        let word = store.table(leaf).load(at);
        assert_eq!(word, expected.unwrap_or(INVALID), "at MFN {at:#x}");
    }
    for which in [Which::P2m, Which::M2p] {
        assert_eq!(domain.maps.generation(store, which) % 2, 0);
    }
    assert_eq!(domain.writer.nr_frames(), inverse.len() as u64);
    let frames = inverse.keys().copied().collect();
    assert_eq!(domain.writer.nr_tables(Which::M2p), nr_tables(&frames));
    let nr_tables = [Which::P2m, Which::M2p].map(|which| domain.writer.nr_tables(which));
    // One more is the header.
    assert_eq!(nr_tables.iter().sum::<u64>() + 1, store.nr_live());
}

fn filled(model: &BTreeMap<u64, Entry>) -> Domain {
    let mut domain = Domain::new(());
    for (&at, &entry) in model {
        domain.set(pfn(at), entry).unwrap();
    }
    domain
}

/// What a domain may look like before something is done to it.
fn models() -> Vec<BTreeMap<u64, Entry>> {
    let present = |(at, frame)| (at, Entry::Present(mfn(frame)));
    vec![
        BTreeMap::new(),
        BTreeMap::from([present((0, 1))]),
        BTreeMap::from([present((span(2), span(4)))]),
        BTreeMap::from([
            (1, Entry::Identity(mfn(1))),
            (span(1), Entry::Foreign(mfn(span(1)))),
            present((span(1) - 1, 0)),
            present((span(2), span(2) + 1)),
            present((Pfn::LIMIT - 1, Mfn::LIMIT - 1)),
        ]),
    ]
}

fn entries() -> impl Iterator<Item = Entry> {
    let some = |at: u64| {
        [
            Entry::Present(mfn(at)),
            Entry::Foreign(mfn(at)),
            Entry::Identity(mfn(at)),
        ]
    };
    MFNS.into_iter().flat_map(some).chain([Entry::Invalid])
}

#[test]
fn an_empty_domain_costs_a_header() {
    let domain = Domain::new(());
    assert_holds(&domain, &BTreeMap::new());
    assert_eq!(domain.store.nr_live(), 1);
}

#[test]
fn a_domain_without_header_is_none() {
    let store = Store::new(1);
    store.fail_after(0);
    assert!(matches!(Maps::new(&store), Err(NoMemory)));
}

#[test]
fn every_entry_can_be_set_everywhere_or_is_elsewhere() {
    for model in models() {
        for at in PFNS {
            for entry in entries() {
                let mut domain = filled(&model);
                let mut model = model.clone();
                let elsewhere = owned(&model).find(|&(frame, place)| {
                    place != at && entry.owned().map(Mfn::get) == Some(frame)
                });
                let result = domain.set(pfn(at), entry);
                if let Some((_, place)) = elsewhere {
                    assert_eq!(result, Err(SetError::Elsewhere(pfn(place))));
                } else {
                    let old = model.insert(at, entry).unwrap_or(Entry::Invalid);
                    assert_eq!(result, Ok(old));
                }
                model.retain(|_, entry| *entry != Entry::Invalid);
                assert_holds(&domain, &model);
            }
        }
    }
}

/// Case 12.
#[test]
fn a_frame_that_was_replaced_is_nowhere() {
    let mut domain = Domain::new(());
    let (old, new) = (Entry::Present(mfn(1)), Entry::Present(mfn(span(4))));
    domain.set(pfn(7), old).unwrap();
    assert_eq!(domain.set(pfn(7), new), Ok(old));
    assert_eq!(domain.mfn_to_pfn(mfn(1)), None);
    assert_eq!(domain.mfn_to_pfn(mfn(span(4))), Some(pfn(7)));
    // It's free to be somewhere else.
    domain.set(pfn(span(2)), old).unwrap();
    assert_eq!(domain.mfn_to_pfn(mfn(1)), Some(pfn(span(2))));
}

#[test]
fn an_m2p_entry_alone_proves_nothing() {
    let mut domain = Domain::new(());
    domain.set(pfn(7), Entry::Present(mfn(1))).unwrap();
    // Each of these could be seen while a writer is at work, or would be if there were no check.
    let forge = |domain: &Domain, at, word| {
        let leaf = domain.maps.leaf(&domain.store, Which::M2p, at);
        domain.store.table(leaf).store(at, word);
    };
    domain.set(pfn(9), Entry::Present(mfn(3))).unwrap();
    for stale in [7, 8, span(3), Pfn::LIMIT] {
        forge(&domain, 2, stale);
        assert_eq!(domain.mfn_to_pfn(mfn(2)), None);
    }
    forge(&domain, 2, INVALID);
    for entry in [Entry::Foreign(mfn(1)), Entry::Identity(mfn(1))] {
        domain.set(pfn(7), entry).unwrap();
        forge(&domain, 1, 7);
        assert_eq!(domain.mfn_to_pfn(mfn(1)), None);
        forge(&domain, 1, INVALID);
    }
}

/// A foreign frame has to go back to whom it belongs, an identity to nobody.
#[test]
fn clearing_tells_what_each_frame_was() {
    let mut domain = Domain::new(());
    let entries = [
        (1, Entry::Present(mfn(0x40))),
        (2, Entry::Foreign(mfn(0x1000))),
        (3, Entry::Identity(mfn(3))),
        // The same frame of somebody else's may be in several places.
        (4, Entry::Foreign(mfn(0x1000))),
    ];
    for (at, entry) in entries {
        domain.set(pfn(at), entry).unwrap();
    }
    let (maps, store, views) = (&domain.maps, &domain.store, &domain.views);
    maps.set_guard(&mut domain.writer, store, views, mfn(0x41))
        .unwrap();
    let expected = [
        Gone::Frame(mfn(0x40)),
        Gone::Guard(mfn(0x41)),
        Gone::Foreign(mfn(0x1000)),
        Gone::Foreign(mfn(0x1000)),
    ];
    assert_eq!(domain.clear_all(range(0, 8)), expected);
    assert_eq!(domain.clear_all(range(0, 8)), []);
}

#[test]
fn clearing_releases_each_frame_of_the_domain_once() {
    for model in models() {
        for (first, last) in PFNS.iter().zip(&PFNS[1..]).chain([(&0, &Pfn::LIMIT)]) {
            // The whole space is a long way page by page: only around what is in it.
            let (start, end) = (*first, (*last).min(span(2) + span(1)));
            if start >= end {
                continue;
            }
            let mut domain = filled(&model);
            let mut left = model.clone();
            let gone = range(start, end - start);
            left.retain(|&at, _| at < start || at >= end);
            let expected: Vec<u64> = owned(&model)
                .filter(|&(_, at)| at >= start && at < end)
                .map(|(frame, _)| frame)
                .collect();
            let released: BTreeSet<u64> = domain.clear(gone).iter().map(|mfn| mfn.get()).collect();
            assert_eq!(released, expected.into_iter().collect());
            assert_holds(&domain, &left);
            let held = left.keys().copied().collect();
            assert_eq!(domain.writer.nr_tables(Which::P2m), nr_tables(&held));
            assert_eq!(domain.clear(gone), []);
        }
    }
}

#[test]
fn an_empty_domain_has_no_tables_again() {
    for model in models() {
        let mut domain = filled(&model);
        // Replacing frames must not leave tables of the M2P behind.
        for (at, entry) in [(1, span(3) + span(1)), (1, span(2) + 2), (1, 9)] {
            domain.set(pfn(at), Entry::Present(mfn(entry))).unwrap();
        }
        for at in PFNS {
            domain.clear(range(at, 1));
        }
        assert_holds(&domain, &BTreeMap::new());
        assert_eq!(domain.store.nr_live(), 1);
    }
}

/// Case 9 for both maps: whichever table is the one that can't be had.
#[test]
fn a_failed_allocation_changes_nothing() {
    let mut nr_failures = 0;
    for model in models() {
        for at in PFNS {
            for entry in entries() {
                for nr_good in 0.. {
                    let mut domain = filled(&model);
                    let tables = [Which::P2m, Which::M2p].map(|map| domain.writer.nr_tables(map));
                    domain.store.fail_after(nr_good);
                    if domain.set(pfn(at), entry) != Err(SetError::NoMemory) {
                        break;
                    }
                    nr_failures += 1;
                    assert_holds(&domain, &model);
                    let after = [Which::P2m, Which::M2p].map(|map| domain.writer.nr_tables(map));
                    assert_eq!(after, tables);

                    domain.store.fail_never();
                    domain.set(pfn(at), entry).unwrap();
                    let mut model = model.clone();
                    model.insert(at, entry);
                    assert_holds(&domain, &model);
                }
            }
        }
    }
    assert!(nr_failures > 1000, "{nr_failures}");
}

#[test]
fn clearing_needs_no_memory() {
    for model in models() {
        let mut domain = filled(&model);
        domain.store.fail_after(0);
        for at in PFNS {
            domain.clear(range(at, 1));
        }
        assert_holds(&domain, &BTreeMap::new());
    }
}

#[test]
fn a_domain_is_destroyed_with_what_is_in_it() {
    for model in models() {
        // The store panics if something is left.
        drop(filled(&model));
    }
}

#[test]
fn generations_of_the_two_maps_are_independent() {
    let mut domain = Domain::new(());
    let generations = |domain: &Domain| {
        [Which::P2m, Which::M2p].map(|which| domain.maps.generation(&domain.store, which))
    };
    for (at, entry, expected, what) in [
        (0, Entry::Invalid, [0, 0], "nothing"),
        (0, Entry::Foreign(mfn(1)), [2, 0], "a P2M leaf"),
        (1, Entry::Present(mfn(5)), [2, 2], "an M2P leaf"),
        (2, Entry::Present(mfn(6)), [2, 2], "two values"),
        (3, Entry::Identity(mfn(3)), [2, 2], "a value"),
        (span(1), Entry::Present(mfn(7)), [6, 2], "P2M root and leaf"),
        (4, Entry::Present(mfn(span(1))), [6, 6], "M2P root and leaf"),
        (4, Entry::Present(mfn(span(1) + 1)), [6, 6], "values"),
        (4, Entry::Present(mfn(8)), [6, 10], "M2P leaf and root go"),
    ] {
        domain.set(pfn(at), entry).unwrap();
        assert_eq!(generations(&domain), expected, "{what}");
    }
    domain.clear(range(span(1), 1));
    assert_eq!(generations(&domain), [10, 10], "P2M leaf and root go");
}

#[test]
fn frames_pruned_at_once_leave_what_those_pruned_one_by_one_leave() {
    // Frames of three leaves go, and one frame of the last of them stays.
    let frames = [0, 1, span(1), span(1) + 1, 3 * span(1)];
    let mut domains = [Domain::new(()), Domain::new(())];
    for domain in &mut domains {
        for (at, &frame) in frames.iter().enumerate() {
            let entry = Entry::Present(mfn(frame));
            assert_eq!(domain.set(pfn(at as u64), entry), Ok(Entry::Invalid));
        }
    }
    let [one_by_one, at_once] = &mut domains;
    for at in 0..frames.len() as u64 - 1 {
        let entry = Entry::Present(mfn(span(2) + at));
        let gone = one_by_one.set(pfn(at), entry);
        let Domain {
            maps,
            writer,
            store,
            views,
        } = &mut *at_once;
        let set = maps.set_without_pruning(writer, store, views, pfn(at), entry);
        assert_eq!(set, gone);
        assert_eq!(gone, Ok(Entry::Present(mfn(frames[at as usize]))));
    }
    let nr_tables = |domain: &Domain| domain.writer.nr_tables(Which::M2p);
    assert!(nr_tables(at_once) > nr_tables(one_by_one));
    let span = (mfn(frames[0]), mfn(frames[3]));
    let Domain {
        maps,
        writer,
        store,
        views,
    } = &mut *at_once;
    maps.prune_frames(writer, store, views, span);
    assert_eq!(nr_tables(at_once), nr_tables(one_by_one));
    for frame in frames {
        let found = [&*one_by_one, at_once].map(|domain| domain.mfn_to_pfn(mfn(frame)));
        assert_eq!(found, [(frame == frames[4]).then(|| pfn(4)); 2]);
    }
}

#[test]
fn the_next_backed_pfn_skips_missing_leaves() {
    let domain = filled(&BTreeMap::from([
        (span(2) + 5, Entry::Foreign(mfn(0))),
        (Pfn::LIMIT - 1, Entry::Foreign(mfn(0))),
    ]));
    for (from, expected) in [
        (0, span(2)),
        (span(2) - 1, span(2)),
        (span(2) + 5, span(2) + 5),
        (span(2) + 6, span(2) + 6),
        (span(2) + span(1), Pfn::LIMIT - span(1)),
        (Pfn::LIMIT - 1, Pfn::LIMIT - 1),
    ] {
        let next = domain.maps.next_backed(&domain.store, pfn(from));
        assert_eq!(next, Some(pfn(expected)), "from {from:#x}");
    }
    let empty = Domain::new(());
    assert_eq!(empty.maps.next_backed(&empty.store, Pfn::ZERO), None);
}

/// Two PFNs and a frame for each, in leaves that are far from each other.
const PAIR: [(u64, u64); 2] = [(3, span(3)), (span(2), 5)];

fn pair() -> (Domain, BTreeMap<u64, Entry>) {
    let model = PAIR.map(|(at, frame)| (at, Entry::Present(mfn(frame))));
    (filled(&model.into()), model.into())
}

/// A region gets a machine run: all that can fail comes before anything is changed.
#[test]
fn replacing_reserved_frames_needs_no_memory() {
    // The run goes over two borders of leaves.
    let first = span(2) - 1;
    let run = (mfn(first), mfn(first + span(1) + 1));
    for nr_good in 0.. {
        let (mut domain, mut model) = pair();
        let Domain {
            store,
            maps,
            writer,
            ..
        } = &mut domain;
        let tables = writer.nr_tables(Which::M2p);
        store.fail_after(nr_good);
        if maps.reserve_frames(writer, store, &(), run) == Err(NoMemory) {
            assert_eq!(writer.nr_tables(Which::M2p), tables, "{nr_good}");
            assert_holds(&domain, &model);
            continue;
        }
        store.fail_after(0);
        for (nr, (at, old)) in PAIR.into_iter().enumerate() {
            // One at either end of the run.
            let frame = [run.0, run.1][nr];
            let replaced = maps.replace(writer, store, &(), pfn(at), frame);
            assert_eq!(replaced, Some(mfn(old)));
            assert_eq!(maps.mfn_to_pfn(store, mfn(old)), None);
            assert_eq!(maps.mfn_to_pfn(store, frame), Some(pfn(at)));
            model.insert(at, Entry::Present(frame));
        }
        maps.prune_frames(writer, store, &(), (mfn(0), mfn(Mfn::LIMIT - 1)));
        store.fail_never();
        assert_holds(&domain, &model);
        break;
    }
}

#[test]
fn only_frames_of_the_domain_are_replaced() {
    for entry in entries().filter(|entry| entry.owned().is_none()) {
        let mut domain = Domain::new(());
        domain.set(pfn(7), entry).unwrap();
        let Domain {
            store,
            maps,
            writer,
            ..
        } = &mut domain;
        let frames = (mfn(2), mfn(2));
        maps.reserve_frames(writer, store, &(), frames).unwrap();
        assert_eq!(maps.replace(writer, store, &(), pfn(7), mfn(2)), None);
        assert_eq!(maps.replace(writer, store, &(), pfn(span(2)), mfn(2)), None);
        maps.prune_frames(writer, store, &(), frames);
        assert_eq!(domain.lookup(pfn(7)), entry);
        assert_eq!(domain.writer.nr_frames(), 0);
        assert_eq!(domain.writer.nr_tables(Which::M2p), 0);
    }
}

#[test]
fn exchanging_is_for_frames_and_its_own_inverse() {
    let (mut domain, mut model) = pair();
    let exchange = |domain: &mut Domain, a, b| {
        let pfns = (pfn(a), pfn(b));
        let (maps, writer) = (&domain.maps, &mut domain.writer);
        maps.exchange(writer, &domain.store, &(), pfns);
    };
    domain.store.fail_after(0);
    let [(a, at_a), (b, at_b)] = PAIR.map(|(at, frame)| (at, Entry::Present(mfn(frame))));
    for [first, second] in [[at_b, at_a], [at_a, at_b]] {
        exchange(&mut domain, a, b);
        model = BTreeMap::from([(a, first), (b, second)]);
        assert_eq!(
            (domain.lookup(pfn(a)), domain.lookup(pfn(b))),
            (first, second)
        );
        assert_holds(&domain, &model);
    }
    // With itself, with a hole in a leaf, and with what has no leaf.
    for other in [a, a + 1, span(3)] {
        exchange(&mut domain, a, other);
        exchange(&mut domain, other, a);
        assert_eq!(domain.lookup(pfn(a)), at_a);
        assert_holds(&domain, &model);
    }
    domain.store.fail_never();
    for entry in [Entry::Foreign(mfn(9)), Entry::Identity(mfn(9))] {
        domain.set(pfn(a + 1), entry).unwrap();
        exchange(&mut domain, a, a + 1);
        assert_eq!(domain.lookup(pfn(a)), at_a);
        assert_eq!(domain.lookup(pfn(a + 1)), entry);
    }
}

#[test]
fn the_next_frame_is_the_first_one_of_the_domain() {
    for model in models() {
        let domain = filled(&model);
        let inverse: BTreeMap<u64, u64> = owned(&model).collect();
        let ends = MFNS.into_iter().chain([2, span(2) + 2, Mfn::LIMIT]);
        for end in ends {
            for from in MFNS {
                let expected = if from < end {
                    inverse.range(from..end).next()
                } else {
                    None
                };
                let next = domain.maps.next_frame(&domain.store, mfn(from), end);
                let next = next.map(|(frame, at)| (frame.get(), at.get()));
                assert_eq!(next, expected.map(|(&frame, &at)| (frame, at)));
            }
        }
    }
}

/// Guards are next to frames of the domain, and go with the last of these.
#[test]
fn a_guard_stays_as_long_as_it_guards() {
    // Two frames with a guard on each side, one of which they share. It's in a leaf of its own.
    let frames = [span(2) - 2, span(2)];
    let guards = [span(2) - 3, span(2) - 1, span(2) + 1];
    for goes_first in [0, 1] {
        let mut domain = Domain::new(());
        for (at, frame) in (7..).zip(frames) {
            domain.set(pfn(at), Entry::Present(mfn(frame))).unwrap();
        }
        let Domain {
            store,
            maps,
            writer,
            ..
        } = &mut domain;
        for guard in guards {
            assert!(maps.has_neighbour(store, mfn(guard)));
            maps.set_guard(writer, store, &(), mfn(guard)).unwrap();
            assert!(maps.is_guard(store, mfn(guard)));
            assert_eq!(maps.mfn_to_pfn(store, mfn(guard)), None);
        }
        assert_eq!((writer.nr_guards(), writer.nr_frames()), (3, 2));
        maps.audit(store, |found| panic!("{found:?}"));

        let goes_last = 1 - goes_first;
        let released = domain.clear(range(7 + goes_first, 1));
        let outer = [guards[0], guards[2]];
        let gone = [frames, outer].map(|pair| mfn(pair[goes_first as usize]));
        assert_eq!(released, gone);
        assert_eq!(domain.writer.nr_guards(), 2);
        domain
            .maps
            .audit(&domain.store, |found| panic!("{found:?}"));

        let mut released = domain.clear(range(7 + goes_last, 1));
        released.sort_unstable();
        let mut gone = [frames, outer]
            .map(|pair| pair[goes_last as usize])
            .to_vec();
        gone.push(guards[1]);
        gone.sort_unstable();
        assert!(released.iter().map(|mfn| mfn.get()).eq(gone));
        assert_eq!(domain.writer.nr_guards(), 0);
        assert_holds(&domain, &BTreeMap::new());
    }
}

#[test]
fn a_guard_in_the_next_leaf_takes_its_leaf_along() {
    for (frame, guard) in [(span(1) - 1, span(1)), (span(2), span(2) - 1)] {
        let mut domain = Domain::new(());
        domain.set(pfn(0), Entry::Present(mfn(frame))).unwrap();
        let (maps, writer) = (&domain.maps, &mut domain.writer);
        maps.set_guard(writer, &domain.store, &(), mfn(guard))
            .unwrap();
        assert_eq!(domain.clear(range(0, 1)), [mfn(frame), mfn(guard)]);
        assert_holds(&domain, &BTreeMap::new());
    }
}

#[test]
fn a_guard_that_can_not_be_set_is_none() {
    for nr_good in 0.. {
        let mut domain = Domain::new(());
        domain
            .set(pfn(0), Entry::Present(mfn(span(1) - 1)))
            .unwrap();
        let Domain {
            store,
            maps,
            writer,
            ..
        } = &mut domain;
        store.fail_after(nr_good);
        if maps.set_guard(writer, store, &(), mfn(span(1))) == Ok(()) {
            assert_ne!(nr_good, 0);
            break;
        }
        assert_eq!(writer.nr_guards(), 0);
        assert!(!maps.is_guard(store, mfn(span(1))));
        let model = BTreeMap::from([(0, Entry::Present(mfn(span(1) - 1)))]);
        assert_holds(&domain, &model);
    }
}

#[test]
fn an_audit_finds_guards_that_guard_nothing() {
    let mut domain = Domain::new(());
    let Domain {
        store,
        maps,
        writer,
        ..
    } = &mut domain;
    for lonely in [0, 5, Mfn::LIMIT - 1] {
        maps.set_guard(writer, store, &(), mfn(lonely)).unwrap();
        let mut findings = Vec::new();
        maps.audit(store, |found| findings.push(found));
        assert!(findings.contains(&Finding::BadM2p(lonely)));
    }
}

#[test]
fn an_audit_ends_when_it_is_told_to() {
    let mut domain = Domain::new(());
    let nr_pages = 3 * AUDIT_BATCH;
    for number in 0..nr_pages {
        let entry = Entry::Present(mfn(2 * nr_pages - number));
        domain.set(pfn(number), entry).unwrap();
    }
    // Both maps have as many words.
    let nr_questions = 2 * nr_pages / AUDIT_BATCH;
    for nr_good in 0..=nr_questions {
        let mut nr_asked = 0;
        let found = domain.maps.audit_while(
            &domain.store,
            |found| panic!("{found:?}"),
            || {
                nr_asked += 1;
                nr_asked <= nr_good
            },
        );
        let is_done = nr_good == nr_questions;
        assert_eq!(found, is_done.then_some(nr_pages), "{nr_good}");
        assert_eq!(nr_asked, nr_questions.min(nr_good + 1));
    }
}

#[test]
fn an_audit_finds_what_is_wrong_and_leaves_it() {
    let (mut domain, _) = pair();
    domain.set(pfn(4), Entry::Foreign(mfn(5))).unwrap();
    let audit = |domain: &Domain| {
        let mut findings = Vec::new();
        let nr_frames = domain
            .maps
            .audit(&domain.store, |found| findings.push(found));
        (nr_frames, findings)
    };
    assert_eq!(audit(&domain), (2, vec![]));
    let [(a, frame), (b, _)] = PAIR;
    for (which, at, word, nr_frames, expected) in [
        // A frame at two PFNs, also if the other one is the one that the M2P names.
        (Which::P2m, a + 2, frame, 3, vec![Finding::BadP2m(a + 2)]),
        (
            Which::M2p,
            frame,
            a + 2,
            2,
            vec![Finding::BadP2m(a), Finding::BadM2p(frame)],
        ),
        // A word of the M2P that is stale, of a foreign frame, or of no PFN.
        (
            Which::M2p,
            frame + 1,
            a,
            2,
            vec![Finding::BadM2p(frame + 1)],
        ),
        (
            Which::M2p,
            frame + 1,
            4,
            2,
            vec![Finding::BadM2p(frame + 1)],
        ),
        (
            Which::M2p,
            frame + 1,
            Pfn::LIMIT,
            2,
            vec![Finding::BadM2p(frame + 1)],
        ),
        // A frame that the M2P doesn't know, or one that the P2M lost.
        (Which::M2p, frame, INVALID, 2, vec![Finding::BadP2m(a)]),
        (Which::P2m, b, INVALID, 1, vec![Finding::BadM2p(5)]),
    ] {
        let leaf = domain.maps.leaf(&domain.store, which, at);
        let table = domain.store.table(leaf);
        let before = table.load(at);
        table.store(at, word);
        assert_eq!(audit(&domain), (nr_frames, expected.clone()));
        assert_eq!(audit(&domain), (nr_frames, expected));
        assert_eq!(table.load(at), word);
        table.store(at, before);
    }
    assert_eq!(audit(&domain), (2, vec![]));
}

/// Keeps a P2M of its own, from what it's told.
#[derive(Default)]
struct Follower {
    entries: RefCell<BTreeMap<u64, Entry>>,
}

impl Views for &Follower {
    fn leaf_replaced(&self, _: Which, _: u64) {}

    fn changed(&self, pfn: Pfn, old: Entry, new: Entry) {
        let mut entries = self.entries.borrow_mut();
        let before = match new {
            Entry::Invalid => entries.remove(&pfn.get()),
            new => entries.insert(pfn.get(), new),
        };
        assert_eq!(before.unwrap_or(Entry::Invalid), old);
        assert_ne!(old, new, "told of nothing");
    }
}

/// What the maps cost: 16 bytes a page in leaves, and what leads to them.
mod cost {
    use super::*;

    /// The leaves that have a part of a range.
    fn nr_leaves(start: u64, nr: u64) -> u64 {
        (start + nr - 1) / span(1) - start / span(1) + 1
    }

    /// Fills a region with a machine run and returns the number of tables of each map.
    fn cost(start: u64, first: u64, nr: u64) -> [u64; 2] {
        let mut domain = Domain::with_capacity((), 1024);
        for at in 0..nr {
            let entry = Entry::Present(mfn(first + at));
            domain.set(pfn(start + at), entry).unwrap();
        }
        let cost = [Which::P2m, Which::M2p].map(|which| domain.writer.nr_tables(which));
        domain.clear(range(start, nr));
        assert_eq!(domain.store.nr_live(), 1);
        cost
    }

    #[test]
    fn a_dense_region_costs_its_leaves_and_a_path() {
        for nr in [1, 2, 511, 512, 513, 1024, 5000, 60_000] {
            for (start, first) in [
                (0, 0),
                (span(1), 3 * span(2)),
                (span(2) - 1, span(3) - 1),
                (Pfn::LIMIT - 60_000, span(4)),
            ] {
                let [p2m, m2p] = cost(start, first, nr);
                for (tables, start) in [(p2m, start), (m2p, first)] {
                    let leaves = nr_leaves(start, nr);
                    // Rounding: a leaf at either end that is used in part.
                    assert!(leaves <= nr.div_ceil(span(1)) + 1);
                    // At most 4 levels above, of each as many as there are leaves / 512, and one at
                    // either end that is used in part.
                    let upper = tables - leaves;
                    assert!(upper <= 4 * (leaves.div_ceil(span(1)) + 1), "{upper}");
                }
            }
        }
    }

    #[test]
    fn an_aligned_region_costs_16_bytes_a_page_in_leaves() {
        let nr = 64 * span(1);
        let [p2m, m2p] = cost(span(2), span(3), nr);
        // From PFN 2^18 a root and a middle table, from MFN 2^27 one more.
        let upper = 2 + 3;
        assert_eq!((p2m + m2p - upper) * 4096, 16 * nr);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Set(usize, Entry),
    /// A set, during which no more than so many allocations succeed.
    Starve(usize, Entry, u64),
    /// Two PFNs change their frames, by way of nothing.
    Swap(usize, usize),
    /// Two PFNs exchange their frames.
    Exchange(usize, usize),
    /// A PFN gets a frame for which a table was reserved.
    Replace(usize, usize),
    Clear(usize, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let entry = || prop::sample::select(entries().collect::<Vec<_>>());
    let at = || 0..PFNS.len();
    prop_oneof![
        6 => (at(), entry()).prop_map(|(at, entry)| Op::Set(at, entry)),
        2 => (at(), entry(), 0..8u64).prop_map(|(at, entry, nr)| Op::Starve(at, entry, nr)),
        2 => (at(), at()).prop_map(|(a, b)| Op::Swap(a, b)),
        2 => (at(), at()).prop_map(|(a, b)| Op::Exchange(a, b)),
        2 => (at(), 0..MFNS.len()).prop_map(|(at, frame)| Op::Replace(at, frame)),
        2 => (at(), 1..600u64).prop_map(|(at, nr)| Op::Clear(at, nr)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn maps_are_a_bijection_on_the_frames_of_the_domain(
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let follower = Follower::default();
        let mut domain = Domain::new(&follower);
        let mut model = BTreeMap::<u64, Entry>::new();
        for op in ops {
            match op {
                Op::Set(at, entry) | Op::Starve(at, entry, _) => {
                    let at = PFNS[at];
                    if let Op::Starve(_, _, nr_good) = op {
                        domain.store.fail_after(nr_good);
                    }
                    let elsewhere = owned(&model).find(|&(frame, place)| {
                        place != at && entry.owned().map(Mfn::get) == Some(frame)
                    });
                    match domain.set(pfn(at), entry) {
                        Ok(old) => {
                            prop_assert_eq!(elsewhere, None);
                            let expected = model.insert(at, entry).unwrap_or(Entry::Invalid);
                            prop_assert_eq!(old, expected);
                        }
                        Err(SetError::Elsewhere(place)) => {
                            prop_assert_eq!(elsewhere.map(|(_, at)| at), Some(place.get()));
                        }
                        Err(SetError::NoMemory) => {
                            prop_assert!(matches!(op, Op::Starve(..)));
                        }
                    }
                    domain.store.fail_never();
                }
                Op::Swap(a, b) => {
                    let (a, b) = (PFNS[a], PFNS[b]);
                    let [at_a, at_b] = [a, b].map(|at| domain.lookup(pfn(at)));
                    for (at, entry) in [(a, Entry::Invalid), (b, at_a), (a, at_b)] {
                        domain.set(pfn(at), entry).unwrap();
                        model.insert(at, entry);
                    }
                }
                Op::Exchange(a, b) => {
                    let (a, b) = (PFNS[a], PFNS[b]);
                    let Domain { store, maps, writer, views } = &mut domain;
                    store.fail_after(0);
                    maps.exchange(writer, store, views, (pfn(a), pfn(b)));
                    store.fail_never();
                    let is_owned = |at| owned(&model).any(|(_, place)| place == at);
                    if a != b && is_owned(a) && is_owned(b) {
                        let at_a = model[&a];
                        let at_b = model.insert(b, at_a).unwrap();
                        model.insert(a, at_b);
                    }
                }
                Op::Replace(at, frame) => {
                    let (at, frame) = (PFNS[at], MFNS[frame]);
                    if owned(&model).any(|(other, _)| other == frame) {
                        continue;
                    }
                    let Domain { store, maps, writer, views } = &mut domain;
                    let frames = (mfn(frame), mfn(frame));
                    maps.reserve_frames(writer, store, views, frames).unwrap();
                    store.fail_after(0);
                    let old = maps.replace(writer, store, views, pfn(at), mfn(frame));
                    store.fail_never();
                    let expected = model.get(&at).and_then(|entry| entry.owned());
                    prop_assert_eq!(old, expected);
                    if let Some(old) = old {
                        model.insert(at, Entry::Present(mfn(frame)));
                        maps.prune_frames(writer, store, views, (old, old));
                    }
                    maps.prune_frames(writer, store, views, frames);
                }
                Op::Clear(at, nr) => {
                    let start = PFNS[at];
                    let nr = nr.min(Pfn::LIMIT - start);
                    let mut released: Vec<u64> =
                        domain.clear(range(start, nr)).iter().map(|mfn| mfn.get()).collect();
                    released.sort_unstable();
                    let is_cleared = |at: u64| at >= start && at < start + nr;
                    let mut expected: Vec<u64> = owned(&model)
                        .filter(|&(_, at)| is_cleared(at))
                        .map(|(frame, _)| frame)
                        .collect();
                    expected.sort_unstable();
                    prop_assert_eq!(released, expected);
                    model.retain(|&at, _| !is_cleared(at));
                }
            }
            model.retain(|_, entry| *entry != Entry::Invalid);
            assert_holds(&domain, &model);
            prop_assert_eq!(&*follower.entries.borrow(), &model);
        }
        let nr_frames = domain.maps.audit(&domain.store, |found| panic!("{found:?}"));
        prop_assert_eq!(nr_frames, owned(&model).count() as u64);
        for at in PFNS {
            domain.clear(range(at, 1));
        }
        prop_assert_eq!(domain.store.nr_live(), 1);
    }
}
