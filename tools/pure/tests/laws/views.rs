// SPDX-License-Identifier: GPL-2.0

//! Views from outside: somebody who has leaves mapped, and looks again only when told to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::map::{header, Maps, Views, Which};
use p2m_pure::table::{TableId, TableStore};
use p2m_pure_host::store::Store;
use proptest::prelude::*;

use crate::rig::{mfn, pfn, range, span, Domain};

/// What somebody outside has mapped, as page tables have it: leaves by where they are.
#[derive(Default)]
struct Viewer {
    mapped: RefCell<BTreeMap<(bool, u64), TableId>>,
    nr_told: Cell<u64>,
}

impl Viewer {
    /// Reads a word as a program does: it looks at the generation before and after, and faults
    /// where nothing is mapped. Returns nothing if the word must not be trusted.
    fn read(&self, maps: &Maps, store: &Store, which: Which, index: u64) -> Option<u64> {
        let generation = || {
            store.table(maps.header()).load(match which {
                Which::P2m => header::GENERATION,
                Which::M2p => header::M2P_GENERATION,
            })
        };
        let before = generation();
        let place = (which == Which::P2m, index / span(1));
        let leaf = *self
            .mapped
            .borrow_mut()
            .entry(place)
            .or_insert_with(|| maps.leaf(store, which, index));
        // The store panics if somebody gave the leaf back and didn't say so.
        let word = store.table(leaf).load(index);
        (before % 2 == 0 && before == generation()).then_some(word)
    }
}

impl Views for &Viewer {
    fn leaf_replaced(&self, which: Which, index: u64) {
        let place = (which == Which::P2m, index / span(1));
        self.mapped.borrow_mut().remove(&place);
        self.nr_told.set(self.nr_told.get() + 1);
    }
}

const PLACES: [u64; 9] = [
    0,
    1,
    span(1) - 1,
    span(1),
    2 * span(1),
    span(2) - 1,
    span(2),
    span(3) - 1,
    span(3) + span(1),
];

#[track_caller]
fn assert_sees_all(viewer: &Viewer, domain: &Domain<&Viewer>) {
    for at in PLACES {
        let seen = viewer.read(&domain.maps, &domain.store, Which::P2m, at);
        assert_eq!(seen, Some(domain.lookup(pfn(at)).raw()), "PFN {at:#x}");
        let seen = viewer.read(&domain.maps, &domain.store, Which::M2p, at);
        let expected = domain.mfn_to_pfn(mfn(at)).map_or(INVALID, Pfn::get);
        assert_eq!(seen, Some(expected), "MFN {at:#x}");
    }
}

#[test]
fn a_view_is_stale_only_if_told() {
    let viewer = Viewer::default();
    let mut domain = Domain::new(&viewer);
    assert_sees_all(&viewer, &domain);
    for at in PLACES {
        domain.set(pfn(at), Entry::Present(mfn(at))).unwrap();
        assert_sees_all(&viewer, &domain);
    }
    for at in PLACES {
        domain.clear(range(at, 1));
        assert_sees_all(&viewer, &domain);
    }
}

#[test]
fn nobody_is_told_of_leaves_that_stay() {
    let viewer = Viewer::default();
    let mut domain = Domain::new(&viewer);
    let told = |nr: u64, what: &str| assert_eq!(viewer.nr_told.replace(0), nr, "{what}");
    let set = |domain: &mut Domain<&Viewer>, at| {
        domain.set(pfn(at), Entry::Foreign(mfn(at))).unwrap();
    };
    set(&mut domain, 0);
    told(1, "a leaf comes");
    set(&mut domain, 1);
    told(0, "a value comes");
    set(&mut domain, span(3));
    told(1, "two roots, a table and a leaf come");
    domain.clear(range(span(3), 1));
    told(1, "the same go");
    domain.clear(range(0, 1));
    told(0, "a value goes");
    domain.clear(range(1, 1));
    told(1, "the last leaf goes");
}

#[test]
fn failing_leaves_no_stale_view() {
    for at in PLACES {
        for nr_good in 0.. {
            let viewer = Viewer::default();
            let mut domain = Domain::new(&viewer);
            domain.set(pfn(2), Entry::Present(mfn(2))).unwrap();
            assert_sees_all(&viewer, &domain);
            domain.store.fail_after(nr_good);
            let result = domain.set(pfn(at), Entry::Present(mfn(at)));
            assert_sees_all(&viewer, &domain);
            if result.is_ok() {
                break;
            }
        }
    }
}

/// Looks at everything whenever the structure changes, which is when a reader may get it wrong.
struct Meddler<'a> {
    viewer: &'a Viewer,
    header: Cell<Option<TableId>>,
    store: Cell<Option<&'a Store>>,
    nr_told: Cell<u64>,
}

impl Views for Meddler<'_> {
    fn leaf_replaced(&self, which: Which, index: u64) {
        let (Some(header), Some(store)) = (self.header.get(), self.store.get()) else {
            return;
        };
        let word = match which {
            Which::P2m => header::GENERATION,
            Which::M2p => header::M2P_GENERATION,
        };
        let generation = store.table(header).load(word);
        assert_eq!(generation % 2, 1, "not to be seen from the generation");
        (&self.viewer).leaf_replaced(which, index);
        self.nr_told.set(self.nr_told.get() + 1);
    }
}

#[test]
fn the_generation_is_odd_while_leaves_are_replaced() {
    let viewer = Viewer::default();
    let store = Store::new(64);
    let (mut maps, mut writer) = Maps::new(&store).unwrap();
    let meddler = Meddler {
        viewer: &viewer,
        header: Cell::new(Some(maps.header())),
        store: Cell::new(Some(&store)),
        nr_told: Cell::new(0),
    };
    for at in PLACES {
        let entry = Entry::Present(mfn(at));
        maps.set(&mut writer, &store, &meddler, pfn(at), entry)
            .unwrap();
        for which in [Which::P2m, Which::M2p] {
            assert_eq!(maps.generation(&store, which) % 2, 0);
            let seen = viewer.read(&maps, &store, which, at);
            assert_eq!(seen, Some(at));
        }
    }
    for at in PLACES {
        maps.clear(&mut writer, &store, &meddler, range(at, 1), |_| ());
        assert_eq!(viewer.read(&maps, &store, Which::P2m, at), Some(INVALID));
    }
    // Leaves came and went again, in both maps: there are 7 of each.
    assert_eq!(meddler.nr_told.get(), 2 * 2 * 7);
    maps.destroy(&mut writer, &store);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_viewer_never_trusts_a_wrong_word(
        ops in prop::collection::vec((0..PLACES.len(), 0..PLACES.len(), 0..10u64), 1..60),
    ) {
        let viewer = Viewer::default();
        let mut domain = Domain::new(&viewer);
        for (at, frame, what) in ops {
            let (at, frame) = (pfn(PLACES[at]), mfn(PLACES[frame]));
            match what {
                0..5 => {
                    // The frame may be elsewhere.
                    let _ = domain.set(at, Entry::Present(frame));
                }
                5 => {
                    domain.set(at, Entry::Foreign(frame)).unwrap();
                }
                6 => {
                    domain.store.fail_after(frame.get() % 5);
                    let _ = domain.set(at, Entry::Present(frame));
                    domain.store.fail_never();
                }
                _ => {
                    let _: Vec<Mfn> = domain.clear(range(at.get(), what));
                }
            }
            assert_sees_all(&viewer, &domain);
        }
    }
}
