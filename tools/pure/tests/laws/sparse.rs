// SPDX-License-Identifier: GPL-2.0

//! Sparse arrays against an ordered map.
//!
//! "Case" numbers are those of the list of oracle cases that the project's survey of Xen's P2M made.

use std::collections::{BTreeMap, BTreeSet};

use p2m_pure::entry::INVALID;
use p2m_pure::sparse::MAX_LEVELS;
use p2m_pure::table::{NoMemory, TableStore};
use p2m_pure_host::store::POISON;
use proptest::prelude::*;

use crate::rig::{nr_tables, span, Array};

/// The first index that is none.
const LIMIT: u64 = span(MAX_LEVELS as u32);

/// Indices around the places where a tree has to be higher: few enough to try all sets of them.
const UNIVERSE: [u64; 9] = [
    0,
    span(1) - 1,
    span(1),
    2 * span(1),
    span(2) - 1,
    span(2),
    span(3) + span(1),
    (1 << 40) - 1,
    LIMIT - 1,
];

/// A word that tells where it belongs.
fn word(index: u64) -> u64 {
    index ^ 0x5555_0000_0000
}

fn sets() -> impl Iterator<Item = BTreeSet<u64>> {
    (0..1u32 << UNIVERSE.len()).map(|bits| {
        let is_in = |at: &usize| (bits >> at) & 1 != 0;
        let chosen = (0..UNIVERSE.len()).filter(is_in);
        chosen.map(|at| UNIVERSE[at]).collect()
    })
}

fn array_of(set: &BTreeSet<u64>) -> Array {
    let mut array = Array::new();
    for &index in set {
        array.store(index, word(index)).unwrap();
    }
    array
}

/// The indices that are worth a look: all that the universe is next to.
fn places() -> impl Iterator<Item = u64> {
    let around = |at: u64| [at.wrapping_sub(1), at, at + 1];
    let far = [LIMIT, LIMIT + 1, 1 << 62, u64::MAX - 1, u64::MAX];
    UNIVERSE.into_iter().flat_map(around).chain(far)
}

#[track_caller]
fn assert_holds(array: &Array, set: &BTreeSet<u64>) {
    for index in places() {
        let expected = if set.contains(&index) {
            word(index)
        } else {
            INVALID
        };
        assert_eq!(array.load(index), expected, "at {index:#x} of {set:x?}");
    }
}

#[test]
fn a_run_is_each_of_its_words() {
    for set in sets().step_by(7) {
        let array = array_of(&set);
        for first in places() {
            for nr in [0, 1, 2, span(1) + 2, 2 * span(1) + 1] {
                let mut words = vec![1; nr as usize];
                array.sparse.load_run(&array.store, first, &mut words);
                let expected = (0..nr).map(|nr| match first.checked_add(nr) {
                    Some(index) => array.load(index),
                    None => INVALID,
                });
                let expected: Vec<u64> = expected.collect();
                assert!(words == expected, "{nr} from {first:#x} of {set:x?}");
            }
        }
    }
}

#[test]
fn an_empty_array_needs_no_table() {
    let array = Array::new();
    assert_holds(&array, &BTreeSet::new());
    assert_eq!(array.writer.nr_tables(), 0);
    assert_eq!(array.store.nr_live(), 0);
}

/// The first half of case 8.
#[test]
fn storing_invalid_where_nothing_is_needs_no_table() {
    for set in sets().filter(|set| set.len() < 3) {
        let mut array = array_of(&set);
        let (tables, generation) = (array.writer.nr_tables(), array.generation());
        array.store.fail_after(0);
        for index in places().filter(|index| !set.contains(index)) {
            assert_eq!(array.store(index, INVALID), Ok(()), "{index:#x}");
        }
        assert_holds(&array, &set);
        assert_eq!(array.writer.nr_tables(), tables);
        assert_eq!(array.generation(), generation);
    }
}

/// The second half of case 8.
#[test]
fn a_stored_word_is_alone_in_its_leaf() {
    for index in UNIVERSE {
        let array = array_of(&BTreeSet::from([index]));
        let leaf = index / span(1) * span(1);
        for sibling in leaf..leaf + span(1) {
            let expected = if sibling == index {
                word(index)
            } else {
                INVALID
            };
            assert_eq!(array.load(sibling), expected);
        }
    }
}

#[test]
fn every_set_is_held_in_the_tables_it_needs() {
    for set in sets() {
        let array = array_of(&set);
        assert_holds(&array, &set);
        assert_eq!(array.writer.nr_tables(), nr_tables(&set), "{set:x?}");
        assert_eq!(array.store.nr_live(), nr_tables(&set));
        assert_eq!(array.store.nr_allocs(), nr_tables(&set));
    }
}

#[test]
fn every_set_is_taken_apart_in_either_order() {
    for set in sets() {
        for is_upwards in [true, false] {
            let mut array = array_of(&set);
            let mut left = set.clone();
            while let Some(index) = if is_upwards {
                left.pop_first()
            } else {
                left.pop_last()
            } {
                array.store(index, INVALID).unwrap();
                array.prune(index, index);
                assert_holds(&array, &left);
                assert_eq!(array.writer.nr_tables(), nr_tables(&left), "{left:x?}");
            }
            assert_eq!(array.store.nr_live(), 0);
        }
    }
}

#[test]
fn pruning_takes_nothing_that_is_used() {
    for set in sets() {
        let mut array = array_of(&set);
        let generation = array.generation();
        array.prune(0, u64::MAX);
        for index in places() {
            array.prune(index, index);
        }
        assert_holds(&array, &set);
        assert_eq!(array.writer.nr_tables(), nr_tables(&set));
        assert_eq!(array.generation(), generation, "{set:x?}");
    }
}

#[test]
fn an_index_that_is_none_is_refused_without_effect() {
    for set in sets().filter(|set| set.len() < 3) {
        let mut array = array_of(&set);
        for index in [LIMIT, LIMIT + 1, 1 << 63, u64::MAX] {
            assert_eq!(array.store(index, 1), Err(NoMemory));
            assert_holds(&array, &set);
            assert_eq!(array.writer.nr_tables(), nr_tables(&set));
        }
    }
}

/// Case 9, for every table that a store may need.
#[test]
fn a_failed_allocation_changes_nothing() {
    for set in sets().filter(|set| set.len() < 4) {
        for index in UNIVERSE.into_iter().filter(|index| !set.contains(index)) {
            let mut with = set.clone();
            with.insert(index);
            let nr_needed = nr_tables(&with) - nr_tables(&set);
            for nr_good in 0..nr_needed {
                let mut array = array_of(&set);
                let leaves: Vec<_> = places().map(|at| array.leaf(at)).collect();

                array.store.fail_after(nr_good);
                assert_eq!(array.store(index, word(index)), Err(NoMemory));
                assert_holds(&array, &set);
                assert_eq!(
                    array.writer.nr_tables(),
                    nr_tables(&set),
                    "{index:#x} to {set:x?}"
                );
                assert_eq!(array.generation() % 2, 0);
                assert!(places().map(|at| array.leaf(at)).eq(leaves));

                array.store.fail_never();
                assert_eq!(array.store(index, word(index)), Ok(()));
                assert_holds(&array, &with);
                assert_eq!(array.writer.nr_tables(), nr_tables(&with));
            }
            // That it needs no more than that.
            let mut array = array_of(&set);
            array.store.fail_after(nr_needed);
            assert_eq!(array.store(index, word(index)), Ok(()));
        }
    }
}

#[test]
fn a_failure_that_passes_is_like_one_that_stays() {
    for index in UNIVERSE {
        let mut array = array_of(&BTreeSet::from([span(1)]));
        let before = array.writer.nr_tables();
        for nr_good in 0.. {
            array.store.fail_once_after(nr_good);
            match array.store(index, word(index)) {
                Ok(()) => break,
                Err(NoMemory) => assert_eq!(array.writer.nr_tables(), before),
            }
        }
        assert_eq!(array.load(index), word(index));
        array.store.fail_never();
    }
}

#[test]
fn what_is_reserved_can_be_replaced_without_memory() {
    for set in sets().filter(|set| set.len() < 3) {
        for index in UNIVERSE {
            let mut with = set.clone();
            with.insert(index);
            for nr_good in 0.. {
                let mut array = array_of(&set);
                if !set.contains(&index) && array.leaf(index) == array.store.missing(0) {
                    assert!(!array.replace(index, word(index)));
                }
                array.store.fail_after(nr_good);
                let result = array.reserve(index);
                assert_holds(&array, &set);
                if result.is_err() {
                    assert_eq!(array.writer.nr_tables(), nr_tables(&set));
                    continue;
                }
                assert_eq!(array.writer.nr_tables(), nr_tables(&with));
                let (generation, leaf) = (array.generation(), array.leaf(index));
                assert!(array.replace(index, word(index)));
                assert_holds(&array, &with);
                assert_eq!((array.generation(), array.leaf(index)), (generation, leaf));
                // What was reserved for nothing goes as what was cleared does.
                assert!(array.replace(index, INVALID));
                array.prune(index, index);
                with.remove(&index);
                assert_holds(&array, &with);
                assert_eq!(array.writer.nr_tables(), nr_tables(&with));
                break;
            }
        }
    }
}

/// Case 11: every change of a link adds 2, nothing else adds anything.
#[test]
fn generations_count_changes_of_the_structure() {
    let mut array = Array::new();
    for (index, word, nr_changes, what) in [
        (7, INVALID, 0, "nothing"),
        (7, 1, 1, "the first leaf"),
        (7, 2, 0, "a value"),
        (8, 3, 0, "a sibling"),
        (8, INVALID, 0, "no value"),
        (span(1), 4, 2, "a higher root, a leaf"),
        (span(1) + 1, 5, 0, "its sibling"),
        (2 * span(1), 6, 1, "a leaf"),
        (span(2), 7, 3, "a higher root, a middle table, a leaf"),
        (span(2) + span(1), 8, 1, "a leaf"),
        (2 * span(2), 9, 2, "a middle table, a leaf"),
        (span(4), INVALID, 0, "nothing far away"),
        (
            span(3) + 1,
            10,
            4,
            "a higher root, two middle tables, a leaf",
        ),
    ] {
        let before = array.generation();
        array.store(index, word).unwrap();
        assert_eq!(array.generation() - before, 2 * nr_changes, "{what}");
    }
    for (index, nr_changes, what) in [
        (8, 0, "a used leaf"),
        (3 * span(1), 0, "a missing leaf"),
        (2 * span(1), 1, "a leaf"),
        (2 * span(2), 2, "a leaf, a middle table"),
        (span(3) + 1, 4, "a leaf, two middle tables, a lower root"),
    ] {
        if index != 8 {
            array.store(index, INVALID).unwrap();
        }
        let before = array.generation();
        array.prune(index, index);
        assert_eq!(array.generation() - before, 2 * nr_changes, "{what}");
    }
}

#[test]
fn the_next_leaf_is_the_first_one_that_is_there() {
    for set in sets() {
        let array = array_of(&set);
        let leaves: BTreeSet<u64> = set.iter().map(|at| at / span(1)).collect();
        for index in places() {
            let expected = leaves
                .range(index / span(1)..)
                .next()
                .map(|leaf| index.max(leaf * span(1)));
            let next = array.sparse.next_leaf(&array.store, index);
            assert_eq!(next, expected, "from {index:#x} in {set:x?}");
        }
    }
}

#[test]
fn a_reader_keeps_what_was_retired() {
    let mut array = array_of(&BTreeSet::from([3, span(2)]));
    let (low, high) = (array.leaf(3), array.leaf(span(2)));
    let missing = array.store.missing(0);
    {
        let store = &array.store;
        let _reader = store.reader();
        let table = store.table(high);
        let (sparse, writer) = (&array.sparse, &mut array.writer);
        let spy = crate::rig::Spy::default();
        sparse.store(writer, store, &spy, span(2), INVALID).unwrap();
        sparse.prune(writer, store, &spy, span(2), span(2));
        // The leaf, the middle table above it, and the roots that were there for them only.
        assert_eq!(store.nr_retired(), 4);
        assert_eq!(sparse.leaf(store, span(2)), None);
        assert_eq!(store.table(high).load(0), INVALID);
        assert!(table.is_all(INVALID));
    }
    assert_eq!(array.store.nr_retired(), 0);
    assert_eq!(array.leaf(3), low);
    assert_eq!(array.leaf(span(2)), missing);
}

/// What the other tests rely on: the store does notice.
mod the_store_notices {
    use super::*;
    use p2m_pure_host::store::Store;

    fn store_with_table() -> (Store, p2m_pure::table::TableId) {
        let store = Store::new(4);
        let id = store.alloc(7).unwrap();
        (store, id)
    }

    #[test]
    #[should_panic(expected = "used after it was freed")]
    fn a_use_after_free() {
        let (store, id) = store_with_table();
        store.free(id);
        store.table(id);
    }

    #[test]
    #[should_panic(expected = "used after it was freed")]
    fn an_id_of_an_earlier_table_in_the_same_place() {
        let (store, id) = store_with_table();
        store.free(id);
        for _ in 0..200 {
            let next = store.alloc(7).unwrap();
            store.free(next);
        }
        store.table(id);
    }

    #[test]
    #[should_panic(expected = "used after it was freed")]
    fn a_second_free() {
        let (store, id) = store_with_table();
        let other = store.alloc(7).unwrap();
        store.free(id);
        store.free(id);
        store.free(other);
    }

    #[test]
    #[should_panic(expected = "retired twice")]
    fn a_second_retire() {
        let (store, id) = store_with_table();
        let _other = store.alloc(7).unwrap();
        let _reader = store.reader();
        store.retire(id);
        store.retire(id);
    }

    #[test]
    #[should_panic(expected = "tables were lost")]
    fn a_leak() {
        let (_store, _id) = store_with_table();
    }

    #[test]
    #[should_panic(expected = "the missing table of level 1 was written to")]
    fn a_write_to_a_shared_table() {
        let (store, id) = store_with_table();
        store.free(id);
        store.table(store.missing(1)).store(3, 0);
    }

    #[test]
    #[should_panic(expected = "written to after it was freed")]
    fn a_write_to_a_free_table() {
        let (store, id) = store_with_table();
        let table = store.table(id);
        store.free(id);
        table.store(3, 0);
        store.check();
    }

    #[test]
    #[should_panic(expected = "a link in a freed table was followed")]
    fn a_link_from_a_free_table() {
        let (store, id) = store_with_table();
        let table = store.table(id);
        store.free(id);
        assert_eq!(table.load(0), POISON);
        store.table(p2m_pure::table::TableId::new(table.load(0)).unwrap());
    }

    #[test]
    #[should_panic(expected = "a missing table was given back")]
    fn a_free_of_a_shared_table() {
        let store = Store::new(4);
        store.free(store.missing(0));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Store(u64, u64),
    Clear(u64),
    Prune(u64, u64),
    /// A store, during which no more than so many allocations succeed.
    Starve(u64, u64),
}

/// Indices in clusters, so that leaves are shared and emptied again.
fn index() -> impl Strategy<Value = u64> {
    let base = prop::sample::select(vec![0, span(1), 7 * span(1), span(2), 3 * span(3), span(4)]);
    (base, 0..3u64, 0..4u64).prop_map(|(base, leaf, at)| base + leaf * span(1) + at * 170)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (index(), 0..1000u64).prop_map(|(at, word)| Op::Store(at, word)),
        4 => index().prop_map(Op::Clear),
        2 => (index(), index()).prop_map(|(a, b)| Op::Prune(a.min(b), a.max(b))),
        1 => Just(Op::Prune(0, u64::MAX)),
        2 => (index(), 0..8u64).prop_map(|(at, nr)| Op::Starve(at, nr)),
    ]
}

fn leaves(array: &Array, indices: &BTreeSet<u64>) -> Vec<p2m_pure::table::TableId> {
    indices.iter().map(|&at| array.leaf(at)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_array_is_a_map(ops in prop::collection::vec(op(), 1..120)) {
        let mut array = Array::new();
        let mut model = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for op in ops {
            if let Op::Store(at, _) | Op::Clear(at) | Op::Starve(at, _) = op {
                seen.insert(at);
            }
            let before = leaves(&array, &seen);
            match op {
                Op::Store(at, word) => {
                    array.store(at, word).unwrap();
                    model.insert(at, word);
                }
                Op::Clear(at) => {
                    array.store(at, INVALID).unwrap();
                    model.remove(&at);
                }
                Op::Prune(first, last) => {
                    array.prune(first, last);
                    if (first, last) == (0, u64::MAX) {
                        let held = model.keys().copied().collect();
                        prop_assert_eq!(array.writer.nr_tables(), nr_tables(&held));
                    }
                }
                Op::Starve(at, nr_good) => {
                    array.store.fail_after(nr_good);
                    if array.store(at, 7).is_ok() {
                        model.insert(at, 7);
                    }
                    array.store.fail_never();
                }
            }
            prop_assert_eq!(array.writer.nr_tables(), array.store.nr_live());
            // Who looks from outside is told of all leaves that aren't the same any more.
            let after = leaves(&array, &seen);
            let replaced = array.replaced();
            for (at, (before, after)) in seen.iter().zip(before.iter().zip(&after)) {
                if before != after {
                    prop_assert!(replaced.contains(&(at / span(1) * span(1))));
                }
                let word = model.get(at).copied().unwrap_or(INVALID);
                prop_assert_eq!(array.load(*at), word);
            }
        }
        for &at in model.keys() {
            array.store(at, INVALID).unwrap();
        }
        array.prune(0, u64::MAX);
        prop_assert_eq!(array.writer.nr_tables(), 0);
    }
}
