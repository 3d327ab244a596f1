// SPDX-License-Identifier: GPL-2.0

//! Real threads: readers without a lock against a writer. The models of `p2m-pure-loom` try all
//! orders of a few steps, this tries a few orders of many.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::Pfn;
use p2m_pure::map::{Maps, Which};
use p2m_pure::sparse::{Sparse, Watch};
use p2m_pure::table::{TableId, TableStore};
use p2m_pure_host::store::Store;

use crate::rig::{mfn, pfn, range, span};

const NR_STEPS: u64 = 5_000;
const NR_READERS: u64 = 2;

/// Some noise: the same for the same number.
fn noise(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Where writers write. The tree gets higher and lower for them.
const PLACES: [u64; 8] = [
    1,
    span(1),
    span(1) + 7,
    5 * span(1),
    span(2),
    span(2) + span(1),
    span(3) + 3,
    (1 << 40) - 1,
];

/// Where something always is.
const PINNED: [u64; 2] = [0, 2 * span(1) + 9];

/// What was stored at a place, as a history: at even positions nothing, at odd ones the position.
///
/// The writer says where it is going, does it, and says that it's there. So what a reader finds has
/// to be between what was done before it looked and what was begun when it had looked.
#[derive(Default)]
struct History {
    begun: AtomicU64,
    done: AtomicU64,
}

impl History {
    fn word(position: u64) -> u64 {
        if position % 2 == 0 {
            INVALID
        } else {
            position
        }
    }

    /// Makes a step from nothing to something or back, with what stores the word.
    fn step(&self, store: impl FnOnce(u64)) {
        let position = self.begun.load(Ordering::Relaxed) + 1;
        self.begun.store(position, Ordering::SeqCst);
        store(Self::word(position));
        self.done.store(position, Ordering::SeqCst);
    }

    /// Checks what `load` finds.
    fn check(&self, load: impl FnOnce() -> Option<u64>) -> bool {
        let done = self.done.load(Ordering::SeqCst);
        let Some(word) = load() else {
            return false;
        };
        let begun = self.begun.load(Ordering::SeqCst);
        if word == INVALID {
            assert!(begun > done || done % 2 == 0, "{done} was lost");
        } else {
            assert!((done..=begun).contains(&word), "{word} in {done}..={begun}");
            assert_eq!(word % 2, 1);
        }
        true
    }
}

/// The generation of an array, as Xen counts it.
#[derive(Default)]
struct Generation(AtomicU64);

impl Watch for Generation {
    fn before(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn leaf_replaced(&self, _: u64) {}

    fn after(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Lets readers go on that keep many tables from being freed.
fn wait_for_readers(store: &Store) {
    while store.nr_retired() > 512 {
        thread::yield_now();
    }
}

/// Says when the writer is done, even if it panics, so that readers don't wait for it for ever.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn readers_find_what_is_stored_whatever_the_writer_does() {
    let store = Store::new(1024);
    let (mut sparse, mut writer) = Sparse::new(&store);
    let generation = Generation::default();
    for at in PINNED {
        sparse
            .store(&mut writer, &store, &generation, at, at)
            .unwrap();
    }
    let histories: [History; PLACES.len()] = Default::default();
    let is_done = AtomicBool::new(false);

    thread::scope(|scope| {
        for reader in 0..NR_READERS {
            let (store, sparse, histories, is_done) = (&store, &sparse, &histories, &is_done);
            scope.spawn(move || {
                for step in (0..).take_while(|_| !is_done.load(Ordering::Acquire)) {
                    let _reader = store.reader();
                    for at in PINNED {
                        assert_eq!(sparse.load(store, at), at);
                    }
                    let choice = (noise(step + reader) % PLACES.len() as u64) as usize;
                    histories[choice].check(|| Some(sparse.load(store, PLACES[choice])));
                    let next = sparse.next_leaf(store, 1);
                    assert_eq!(next, Some(1), "the leaf of a pinned word is gone");
                    let next = sparse.next_leaf(store, span(1));
                    assert!(next.is_some_and(|next| next <= PINNED[1]));
                }
            });
        }

        let _done = Done(&is_done);
        for step in 0..NR_STEPS {
            let choice = (noise(step * 31) % PLACES.len() as u64) as usize;
            let at = PLACES[choice];
            wait_for_readers(&store);
            histories[choice].step(|word| {
                sparse
                    .store(&mut writer, &store, &generation, at, word)
                    .unwrap();
            });
            if noise(step * 17) % 3 == 0 {
                sparse.prune(&mut writer, &store, &generation, at, at);
            }
            if noise(step * 13) % 64 == 0 {
                sparse.prune(&mut writer, &store, &generation, 0, u64::MAX);
            }
        }
    });
    assert_eq!(store.nr_retired(), 0);
    sparse.clear(&mut writer, &store);
}

/// Readers that keep a leaf for as long as the generation says that they may.
#[test]
fn a_kept_leaf_is_good_until_the_generation_changes() {
    let store = Store::new(1024);
    let (mut maps, mut writer) = Maps::new(&store).unwrap();
    let histories: [History; PLACES.len()] = Default::default();
    let places = PLACES.map(|at| at.min(Pfn::LIMIT - 1));
    let is_done = AtomicBool::new(false);
    let nr_trusted = AtomicU64::new(0);

    thread::scope(|scope| {
        for reader in 0..NR_READERS {
            let (store, maps, histories, is_done) = (&store, &maps, &histories, &is_done);
            let nr_trusted = &nr_trusted;
            scope.spawn(move || {
                let mut kept: [Option<(u64, TableId)>; PLACES.len()] = [None; PLACES.len()];
                for step in (0..).take_while(|_| !is_done.load(Ordering::Acquire)) {
                    let choice = (noise(step + reader) % PLACES.len() as u64) as usize;
                    let at = places[choice];
                    let is_trusted = histories[choice].check(|| {
                        let _reader = store.reader();
                        let before = maps.generation(store, Which::P2m);
                        let leaf = match kept[choice] {
                            Some((generation, leaf)) if generation == before => leaf,
                            _ => maps.leaf(store, Which::P2m, at),
                        };
                        let word = store.table(leaf).load(at);
                        let is_same = maps.generation(store, Which::P2m) == before;
                        let is_trusted = is_same && before % 2 == 0;
                        kept[choice] = is_trusted.then_some((before, leaf));
                        is_trusted.then(|| match Entry::from_raw(word) {
                            Entry::Invalid => INVALID,
                            entry => entry.mfn().unwrap().get(),
                        })
                    });
                    nr_trusted.fetch_add(is_trusted.into(), Ordering::Relaxed);
                }
            });
        }

        let _done = Done(&is_done);
        // It goes on until a reader had something to trust, which may not have run yet.
        let goes_on = |step: &u64| *step < NR_STEPS || nr_trusted.load(Ordering::Relaxed) == 0;
        for step in (0..100 * NR_STEPS).take_while(goes_on) {
            let choice = (noise(step * 31) % PLACES.len() as u64) as usize;
            let at = pfn(places[choice]);
            wait_for_readers(&store);
            histories[choice].step(|word| match word {
                INVALID => maps.clear(&mut writer, &store, &(), range(at.get(), 1), |_| ()),
                word => {
                    let entry = Entry::Foreign(mfn(word));
                    maps.set(&mut writer, &store, &(), at, entry).unwrap();
                }
            });
        }
    });
    assert_ne!(nr_trusted.into_inner(), 0);
    maps.destroy(&mut writer, &store);
}

/// A frame moves between PFNs: who looks it up finds it where it was or is, or nowhere.
#[test]
fn a_frame_that_moves_is_never_somewhere_else() {
    let store = Store::new(1024);
    let (mut maps, mut writer) = Maps::new(&store).unwrap();
    let frames = [3, span(1), span(3)];
    let homes = |frame: u64| [frame + 1, frame + span(2)];
    let is_done = AtomicBool::new(false);

    thread::scope(|scope| {
        for _ in 0..NR_READERS {
            let (store, maps, is_done) = (&store, &maps, &is_done);
            scope.spawn(move || {
                while !is_done.load(Ordering::Acquire) {
                    for frame in frames {
                        let _reader = store.reader();
                        if let Some(at) = maps.mfn_to_pfn(store, mfn(frame)) {
                            assert!(homes(frame).contains(&at.get()), "{frame} at {at:?}");
                        }
                        for at in homes(frame) {
                            match maps.lookup(store, pfn(at)) {
                                Entry::Invalid => (),
                                entry => assert_eq!(entry, Entry::Present(mfn(frame))),
                            }
                        }
                    }
                }
            });
        }

        let _done = Done(&is_done);
        for step in 0..NR_STEPS {
            let frame = frames[(noise(step) % 3) as usize];
            let entry = Entry::Present(mfn(frame));
            wait_for_readers(&store);
            let [home, other] = homes(frame);
            let (from, to) = match maps.mfn_to_pfn(&store, mfn(frame)) {
                Some(at) if at.get() == home => (home, other),
                _ => (other, home),
            };
            maps.clear(&mut writer, &store, &(), range(from, 1), |_| ());
            maps.set(&mut writer, &store, &(), pfn(to), entry).unwrap();
            assert_eq!(maps.mfn_to_pfn(&store, mfn(frame)), Some(pfn(to)));
        }
    });
    maps.destroy(&mut writer, &store);
}
