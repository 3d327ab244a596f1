// SPDX-License-Identifier: GPL-2.0

//! Models of a writer and those who read at the same time. Loom tries all orders of their steps, and
//! all values that a load may return in each. It takes seconds if it's optimised:
//!
//! ```text
//! cargo test --release -p p2m-pure-loom
//! ```
//!
//! Tables have two words here. So the header of the maps has fewer words than it needs: the
//! generation of the P2M shares its place with what models that look at it must not use.

extern crate p2m_pure_loom as p2m_pure;

#[path = "../../host/src/fuse.rs"]
mod fuse;
// The models need only a part of it.
#[allow(dead_code, unreachable_pub)]
#[path = "../../host/src/store.rs"]
mod store;

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::Mutex;
use loom::thread;

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::map::{self, Maps, Views, Which};
use p2m_pure::sparse::{self, Sparse, Watch};
use p2m_pure::table::{TableId, TableStore, TABLE_WORDS};

use store::Store;

/// Runs a model. Each preemption more makes it several times longer, and most mistakes need only one
/// or two. `LOOM_MAX_PREEMPTIONS` says otherwise.
fn model(body: impl Fn() + Send + Sync + 'static) {
    let nr_preemptions = if cfg!(debug_assertions) { 2 } else { 3 };
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound.get_or_insert(nr_preemptions);
    builder.check(body);
}

/// Nobody watches an array.
struct Nobody;

impl Watch for Nobody {
    fn before(&self) {}

    fn leaf_replaced(&self, _: u64) {}

    fn after(&self) {}
}

struct Array {
    store: Store,
    sparse: Sparse,
}

impl Array {
    fn new() -> (Self, sparse::Writer) {
        let store = Store::new(16);
        let (sparse, writer) = Sparse::new(&store);
        (Self { store, sparse }, writer)
    }

    fn store(&self, writer: &mut sparse::Writer, index: u64, word: u64) {
        self.sparse
            .store(writer, &self.store, &Nobody, index, word)
            .unwrap();
    }

    fn clear(&self, writer: &mut sparse::Writer, index: u64) {
        self.store(writer, index, INVALID);
        self.sparse
            .prune(writer, &self.store, &Nobody, index, index);
    }

    fn load(&self, index: u64) -> u64 {
        self.sparse.load(&self.store, index)
    }
}

/// Runs a model of an array that has words at the indices `pinned`, the same as these.
///
/// The writer has a thread of its own, the reader is in the thread of the model.
fn array_model(
    pinned: &'static [u64],
    write: impl Fn(&Array, &mut sparse::Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(&Array) + Send + Sync + 'static,
) {
    model(move || {
        let (array, mut writer) = Array::new();
        for &index in pinned {
            array.store(&mut writer, index, index);
        }
        let array = Arc::new(array);
        let writer = thread::spawn({
            let array = array.clone();
            move || {
                write(&array, &mut writer);
                writer
            }
        });
        {
            let _reader = array.store.reader();
            read(&array);
        }
        let mut writer = writer.join().unwrap();
        let mut array = Arc::into_inner(array).unwrap();
        array.sparse.clear(&mut writer, &array.store);
        // The store checks that there are no tables left, and that nobody wrote to a free one.
    });
}

#[test]
fn tables_are_small() {
    assert_eq!(TABLE_WORDS, 2);
}

#[test]
fn a_tree_that_grows_loses_nothing_and_keeps_the_order_of_stores() {
    array_model(
        &[0],
        |array, writer| {
            array.store(writer, 2, 2);
            array.store(writer, 4, 4);
        },
        |array| {
            let high = array.load(4);
            let middle = array.load(2);
            assert!([INVALID, 4].contains(&high));
            assert!([INVALID, 2].contains(&middle));
            assert!(high == INVALID || middle == 2);
            assert_eq!(array.load(0), 0);
        },
    );
}

#[test]
fn a_tree_that_shrinks_loses_nothing() {
    array_model(
        &[0, 4],
        |array, writer| array.clear(writer, 4),
        |array| {
            let high = array.load(4);
            assert!([INVALID, 4].contains(&high));
            assert_eq!(array.load(0), 0);
            let again = array.load(4);
            assert!([INVALID, high].contains(&again));
        },
    );
}

#[test]
fn a_leaf_that_goes_and_comes_back_is_seen_in_order() {
    array_model(
        &[0, 2],
        |array, writer| {
            array.clear(writer, 2);
            array.store(writer, 2, 22);
        },
        |array| {
            let order = |word| [2, INVALID, 22].iter().position(|&known| known == word);
            let first = order(array.load(2)).unwrap();
            let second = order(array.load(2)).unwrap();
            assert!(first <= second);
            assert_eq!(array.load(0), 0);
        },
    );
}

#[test]
fn an_array_that_is_emptied_is_empty_or_not() {
    array_model(
        &[3],
        |array, writer| {
            array.clear(writer, 3);
            array.store(writer, 0, 0);
        },
        |array| {
            let (low, high) = (array.load(0), array.load(3));
            assert!([INVALID, 0].contains(&low));
            assert!([INVALID, 3].contains(&high));
            // What was stored later was seen, so what was cleared before is gone.
            assert!(low == INVALID || high == INVALID);
        },
    );
}

#[test]
fn the_next_leaf_is_found_while_others_come_and_go() {
    array_model(
        &[2],
        |array, writer| {
            array.store(writer, 4, 4);
            array.clear(writer, 4);
        },
        |array| {
            assert_eq!(array.sparse.next_leaf(&array.store, 0), Some(2));
            let next = array.sparse.next_leaf(&array.store, 4);
            assert!([None, Some(4)].contains(&next));
        },
    );
}

/// The leaf can't be had, and the roots that were made for it go again.
#[test]
fn a_store_that_fails_is_not_noticed() {
    array_model(
        &[0, 1],
        |array, writer| {
            array.store.fail_after(2);
            let result = array.sparse.store(writer, &array.store, &Nobody, 8, 8);
            assert!(result.is_err());
            assert_eq!(writer.nr_tables(), 1);
        },
        |array| {
            assert_eq!(array.load(0), 0);
            assert_eq!(array.load(8), INVALID);
            assert_eq!(array.load(1), 1);
        },
    );
}

/// Whatever form a leaf has, its words are the same; and a word of a leaf that was unfolded changes.
#[test]
fn a_leaf_is_folded_and_unfolded_under_those_who_read_it() {
    array_model(
        &[0, 2, 3],
        |array, writer| {
            assert!(array.sparse.fold(writer, &array.store, &Nobody, 2));
            array
                .sparse
                .unfold(writer, &array.store, &Nobody, 3)
                .unwrap();
            array.store(writer, 3, 9);
        },
        |array| {
            assert_eq!(array.load(2), 2);
            let first = array.load(3);
            let second = array.load(3);
            assert!([3, 9].contains(&first));
            assert!(second == first || second == 9);
            assert_eq!(array.load(2), 2);
            assert_eq!(array.load(0), 0);
        },
    );
}

/// A store to a word of a folded leaf changes no other one.
#[test]
fn a_folded_leaf_that_is_written_to_keeps_its_other_words() {
    array_model(
        &[0, 2, 3],
        |array, writer| {
            assert!(array.sparse.fold(writer, &array.store, &Nobody, 2));
            array.store(writer, 2, INVALID);
        },
        |array| {
            let before = array.load(2);
            assert!([2, INVALID].contains(&before));
            assert_eq!(array.load(3), 3);
            assert!(before == 2 || array.load(2) == INVALID);
        },
    );
}

/// Two writers store to different indices of one leaf that isn't there: one makes it.
#[test]
fn two_writers_share_the_leaf_that_one_of_them_made() {
    model(|| {
        let (array, writer) = Array::new();
        let shared = Arc::new((array, Mutex::new(writer)));
        let threads = [2, 3].map(|index| {
            let shared = shared.clone();
            thread::spawn(move || {
                let (array, writer) = &*shared;
                array.store(&mut writer.lock().unwrap(), index, index);
                assert_eq!(array.load(index), index);
            })
        });
        for index in [2, 3] {
            assert!([INVALID, index].contains(&shared.0.load(index)));
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let (mut array, writer) = Arc::into_inner(shared).unwrap();
        let mut writer = writer.into_inner().unwrap();
        assert_eq!((array.load(2), array.load(3)), (2, 3));
        // A root and the leaf.
        assert_eq!(writer.nr_tables(), 2);
        assert_eq!(array.store.nr_allocs(), 2);
        array.sparse.clear(&mut writer, &array.store);
    });
}

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

fn mfn(number: u64) -> Mfn {
    Mfn::new(number).unwrap()
}

fn one(number: u64) -> PfnRange {
    PfnRange::new(number, 1).unwrap()
}

/// A step of a writer's at one PFN: nothing becomes something, or something nothing.
///
/// The writer says where it is going, does it, and says that it's there. So what a reader finds has
/// to be between what was done before it looked and what was begun when it had looked.
#[derive(Default)]
struct History {
    begun: AtomicU64,
    done: AtomicU64,
}

impl History {
    fn step(&self, position: u64, change: impl FnOnce()) {
        self.begun.store(position, Ordering::Release);
        change();
        self.done.store(position, Ordering::Release);
    }

    /// Checks the word that `load` trusts. Even positions are nothing, odd ones foreign frames.
    fn check(&self, load: impl FnOnce() -> Option<u64>) {
        let done = self.done.load(Ordering::Acquire);
        let Some(word) = load() else {
            return;
        };
        let begun = self.begun.load(Ordering::Acquire);
        match Entry::from_raw(word) {
            Entry::Invalid => assert!(begun > done || done % 2 == 0),
            Entry::Foreign(mfn) => assert!((done..=begun).contains(&mfn.get())),
            entry => panic!("{entry:?} never was there"),
        }
    }
}

struct Domain<V> {
    store: Store,
    maps: Maps,
    views: V,
    history: History,
}

impl<V: Views> Domain<V> {
    fn new(views: V) -> (Self, map::Writer) {
        let store = Store::new(16);
        let (maps, writer) = Maps::new(&store).unwrap();
        let domain = Self {
            store,
            maps,
            views,
            history: History::default(),
        };
        (domain, writer)
    }

    fn set(&self, writer: &mut map::Writer, at: u64, entry: Entry) {
        self.maps
            .set(writer, &self.store, &self.views, pfn(at), entry)
            .unwrap();
    }

    fn clear(&self, writer: &mut map::Writer, at: u64) {
        self.maps
            .clear(writer, &self.store, &self.views, one(at), |_| ());
    }

    /// Empties the leaf of PFNs 2 and 3, by the M2P, as that has little else.
    fn clear_leaf(&self, writer: &mut map::Writer) {
        let leaf = PfnRange::new(2, 2).unwrap();
        self.maps
            .clear_runs(writer, &self.store, &self.views, leaf, |_, _| ());
    }

    /// Does the same in the order of PFNs.
    fn clear_leaf_by_pfns(&self, writer: &mut map::Writer) {
        let leaf = PfnRange::new(2, 2).unwrap();
        self.maps
            .clear(writer, &self.store, &self.views, leaf, |_| ());
    }

    fn generation(&self) -> u64 {
        self.maps.generation(&self.store, Which::P2m)
    }

    /// Goes to a position of the history of PFN 2.
    fn step(&self, writer: &mut map::Writer, position: u64) {
        self.history.step(position, || match position % 2 {
            0 => self.clear(writer, 2),
            _ => self.set(writer, 2, Entry::Foreign(mfn(position))),
        });
    }

    /// Goes to a position at which there is nothing, with all of the leaf.
    fn step_by_leaf(&self, writer: &mut map::Writer, position: u64) {
        self.history.step(position, || self.clear_leaf(writer));
    }

    fn lookup(&self, at: u64) -> Entry {
        self.maps.lookup(&self.store, pfn(at))
    }

    fn destroy(this: Arc<Self>, mut writer: map::Writer) {
        let mut this = Arc::into_inner(this).unwrap();
        this.maps.destroy(&mut writer, &this.store);
    }
}

/// Runs a model of a domain that is somewhere in the history of PFN 2. PFN 0 is in use, too.
fn domain_model<V: Views + Send + Sync + 'static>(
    start: u64,
    views: impl Fn() -> V + Send + Sync + 'static,
    write: impl Fn(&Domain<V>, &mut map::Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(&Domain<V>, u64, TableId) + Send + Sync + 'static,
) {
    model(move || {
        let (domain, mut writer) = Domain::new(views());
        domain.set(&mut writer, 0, Entry::Foreign(mfn(0)));
        for position in 1..=start {
            domain.step(&mut writer, position);
        }
        let generation = domain.generation();
        let leaf = domain.maps.leaf(&domain.store, Which::P2m, 2);
        let domain = Arc::new(domain);
        let writer = thread::spawn({
            let domain = domain.clone();
            move || {
                write(&domain, &mut writer);
                writer
            }
        });
        read(&domain, generation, leaf);
        let writer = writer.join().unwrap();
        assert_eq!(domain.generation() % 2, 0);
        Domain::destroy(domain, writer);
    });
}

/// A reader that keeps a leaf for as long as the generation says that it may.
fn read_kept(domain: &Domain<()>, generation: u64, leaf: TableId) {
    let mut kept = Some((generation, leaf));
    for _ in 0..2 {
        domain.history.check(|| {
            let _reader = domain.store.reader();
            let before = domain.generation();
            let leaf = match kept {
                Some((generation, leaf)) if generation == before => leaf,
                _ => domain.maps.leaf(&domain.store, Which::P2m, 2),
            };
            let word = domain.store.table(leaf).load(2);
            let is_trusted = before % 2 == 0 && domain.generation() == before;
            kept = is_trusted.then_some((before, leaf));
            is_trusted.then_some(word)
        });
    }
}

#[test]
fn a_kept_leaf_is_good_until_one_takes_its_place() {
    domain_model(0, || (), |domain, writer| domain.step(writer, 1), read_kept);
}

#[test]
fn a_kept_leaf_is_good_until_it_goes() {
    domain_model(1, || (), |domain, writer| domain.step(writer, 2), read_kept);
}

#[test]
fn a_kept_leaf_is_good_until_it_goes_and_comes_back() {
    let write = |domain: &Domain<()>, writer: &mut map::Writer| {
        domain.step(writer, 2);
        domain.step(writer, 3);
    };
    domain_model(1, || (), write, read_kept);
}

#[test]
fn a_kept_leaf_is_good_until_it_goes_whole() {
    let write = |domain: &Domain<()>, writer: &mut map::Writer| domain.step_by_leaf(writer, 2);
    domain_model(1, || (), write, read_kept);
}

#[test]
fn a_kept_leaf_is_good_until_it_goes_whole_and_comes_back() {
    let write = |domain: &Domain<()>, writer: &mut map::Writer| {
        domain.step_by_leaf(writer, 2);
        domain.step(writer, 3);
    };
    domain_model(1, || (), write, read_kept);
}

/// Somebody who has the leaf of PFN 2 mapped, in page tables with a lock.
#[derive(Default)]
struct Viewer {
    mapped: Mutex<Option<TableId>>,
}

impl Views for Viewer {
    fn leaf_replaced(&self, which: Which, index: u64) {
        if which == Which::P2m && index / 2 == 1 {
            *self.mapped.lock().unwrap() = None;
        }
    }
}

/// A program with a view: it knows nothing of locks or readers. Only when it faults, the leaf is
/// looked up, with the page tables locked.
fn read_view(domain: &Domain<Viewer>, _: u64, _: TableId) {
    for _ in 0..2 {
        domain.history.check(|| {
            let before = domain.generation();
            let word = {
                let mut mapped = domain.views.mapped.lock().unwrap();
                let leaf = *mapped.get_or_insert_with(|| {
                    let _reader = domain.store.reader();
                    domain.maps.leaf(&domain.store, Which::P2m, 2)
                });
                domain.store.table(leaf).load(2)
            };
            (before % 2 == 0 && domain.generation() == before).then_some(word)
        });
    }
}

#[test]
fn a_view_is_of_the_leaf_that_takes_its_place() {
    let write = |domain: &Domain<Viewer>, writer: &mut map::Writer| domain.step(writer, 1);
    domain_model(0, Viewer::default, write, read_view);
}

#[test]
fn a_view_is_not_of_a_leaf_that_went() {
    let write = |domain: &Domain<Viewer>, writer: &mut map::Writer| domain.step(writer, 2);
    domain_model(1, Viewer::default, write, read_view);
}

#[test]
fn a_view_is_not_of_a_leaf_that_went_whole() {
    let write = |domain: &Domain<Viewer>, writer: &mut map::Writer| domain.step_by_leaf(writer, 2);
    domain_model(1, Viewer::default, write, read_view);
}

/// The generations of these are nonsense, as words of the header share their places.
fn frames_model(
    write: impl Fn(&Domain<()>, &mut map::Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(&Domain<()>, &dyn Fn(u64) -> Option<u64>) + Send + Sync + 'static,
) {
    frames_model_of(&[(2, 1)], write, read);
}

/// Runs a model of a domain that has these frames at these PFNs.
fn frames_model_of(
    frames: &'static [(u64, u64)],
    write: impl Fn(&Domain<()>, &mut map::Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(&Domain<()>, &dyn Fn(u64) -> Option<u64>) + Send + Sync + 'static,
) {
    model(move || {
        let (domain, mut writer) = Domain::new(());
        for &(at, frame) in frames {
            domain.set(&mut writer, at, Entry::Present(mfn(frame)));
        }
        let domain = Arc::new(domain);
        let writer = thread::spawn({
            let domain = domain.clone();
            move || {
                write(&domain, &mut writer);
                writer
            }
        });
        {
            let _reader = domain.store.reader();
            read(&domain, &|frame| {
                let at = domain.maps.mfn_to_pfn(&domain.store, mfn(frame));
                at.map(Pfn::get)
            });
        }
        let writer = writer.join().unwrap();
        Domain::destroy(domain, writer);
    });
}

#[test]
fn a_frame_that_moves_is_where_it_was_or_is_or_nowhere() {
    frames_model(
        |domain, writer| {
            domain.clear(writer, 2);
            domain.set(writer, 3, Entry::Present(mfn(1)));
        },
        |domain, mfn_to_pfn| {
            let order = |at| {
                [Some(2), None, Some(3)]
                    .iter()
                    .position(|&known| known == at)
            };
            let first = order(mfn_to_pfn(1)).unwrap();
            let second = order(mfn_to_pfn(1)).unwrap();
            assert!(first <= second);
            // It was found at its new place, so it isn't at its old one any more.
            let is_moved = domain.lookup(3) != Entry::Invalid;
            assert!(!is_moved || domain.lookup(2) == Entry::Invalid);
        },
    );
}

/// Leaves of both maps go, those of single pages or of a superpage, and one of the frames comes back.
fn leaves_go_whole(fold: bool, clear: fn(&Domain<()>, &mut map::Writer)) {
    frames_model_of(
        &[(2, 4), (3, 5)],
        move |domain, writer| {
            if fold {
                let leaf = PfnRange::new(2, 2).unwrap();
                domain.maps.fold(writer, &domain.store, &domain.views, leaf);
            }
            clear(domain, writer);
            domain.set(writer, 2, Entry::Present(mfn(5)));
        },
        |domain, mfn_to_pfn| {
            let order = |at| {
                [Some(3), None, Some(2)]
                    .iter()
                    .position(|&known| known == at)
            };
            let first = order(mfn_to_pfn(5)).unwrap();
            let second = order(mfn_to_pfn(5)).unwrap();
            assert!(first <= second);
            let entry = domain.lookup(2).owned().map(Mfn::get);
            assert!([Some(4), None, Some(5)].contains(&entry));
            // What came later was seen, so what was there before is gone.
            assert!(second < 2 || entry == Some(5));
            assert!(entry != Some(5) || domain.lookup(3) == Entry::Invalid);
            assert!(entry == Some(4) || mfn_to_pfn(4).is_none());
        },
    );
}

#[test]
fn frames_of_leaves_that_go_whole_are_nowhere() {
    leaves_go_whole(false, Domain::clear_leaf);
}

#[test]
fn frames_of_leaves_that_go_whole_by_pfns_are_nowhere() {
    leaves_go_whole(false, Domain::clear_leaf_by_pfns);
}

#[test]
fn frames_of_folded_leaves_that_go_whole_are_nowhere() {
    leaves_go_whole(true, Domain::clear_leaf);
}

#[test]
fn frames_of_folded_leaves_that_go_whole_by_pfns_are_nowhere() {
    leaves_go_whole(true, Domain::clear_leaf_by_pfns);
}

#[test]
fn a_frame_that_was_replaced_is_nowhere() {
    frames_model(
        |domain, writer| domain.set(writer, 2, Entry::Present(mfn(4))),
        |_, mfn_to_pfn| {
            let new = mfn_to_pfn(4);
            let old = mfn_to_pfn(1);
            assert!([None, Some(2)].contains(&new));
            assert!([None, Some(2)].contains(&old));
            assert!(new.is_none() || old.is_none());
        },
    );
}

/// A superpage takes the place of a frame, and then another one of the superpage.
#[test]
fn frames_that_a_superpage_replaced_are_nowhere() {
    let superpage = |domain: &Domain<()>, writer: &mut map::Writer, first| {
        let place = (PfnRange::new(2, 2).unwrap(), mfn(first));
        domain
            .maps
            .set_superpage(writer, &domain.store, &(), place, |_| ())
            .unwrap();
    };
    frames_model(
        move |domain, writer| {
            superpage(domain, writer, 4);
            superpage(domain, writer, 6);
        },
        |domain, mfn_to_pfn| {
            // In the order in which they come, the other way round: what is new is found no later.
            let third = mfn_to_pfn(7);
            let second = mfn_to_pfn(5);
            let first = mfn_to_pfn(1);
            assert!([None, Some(3)].contains(&third));
            assert!([None, Some(3)].contains(&second));
            assert!([None, Some(2)].contains(&first));
            assert!(third.is_none() || (second.is_none() && first.is_none()));
            assert!(second.is_none() || first.is_none());
            let entry = domain.lookup(2).owned().map(Mfn::get);
            assert!([Some(1), Some(4), Some(6)].contains(&entry));
            assert!(third.is_none() || entry == Some(6));
        },
    );
}
