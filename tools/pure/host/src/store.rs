// SPDX-License-Identifier: GPL-2.0

//! A store of tables that checks how it is used.
//!
//! An id names the place of a table and how often the place was used before, so an id that is out of
//! date is told from one that isn't. A freed table is filled with [`POISON`], which no test stores
//! and which leads nowhere as a link: who kept a reference is noticed, too.
//!
//! [`Store::reader()`] stands in for `rcu_read_lock()`: what is retired while readers are at work is
//! freed when the last of them is done. Lookups outside of it are allowed where nothing is retired
//! at the same time, and cost no lock.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError};

// The model checker has to know what orders readers and those who retire a table. All else here is
// only about checking and is none of its business.
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use p2m_pure::entry::INVALID;
use p2m_pure::sparse::MAX_LEVELS;
use p2m_pure::table::{NoMemory, Table, TableId, TableStore};

use crate::fuse::Fuse;

/// What a freed table is filled with: the id of no table, and the entry of a frame that no test has.
pub const POISON: u64 = 0xff_ffff_f000;

/// How many freed tables stay poisoned before one of them is used again.
const QUARANTINE: usize = if cfg!(loom) { 1 << 20 } else { 64 };

/// Bits of an id: the place of the table above the tag, then how often the place was used.
const PLACE_SHIFT: u32 = TableId::TAG_MASK.trailing_ones();
const PLACE_BITS: u32 = 24;
const USE_SHIFT: u32 = PLACE_SHIFT + PLACE_BITS;

/// A place for a table.
#[derive(Default)]
struct Place {
    /// The id of the table that is there now, or 0.
    id: AtomicU64,
    table: OnceLock<Box<Table>>,
}

impl Place {
    fn table(&self) -> &Table {
        self.table.get_or_init(|| Box::new(Table::new(POISON)))
    }
}

/// A table that is retired and not free yet.
struct Retired {
    id: TableId,
    /// The readers that may have found it before.
    readers: BTreeSet<u64>,
}

#[derive(Default)]
struct State {
    /// Places that were never used are from here on.
    unused: usize,
    /// Places that are free again, the oldest first.
    free: VecDeque<usize>,
    retired: Vec<Retired>,
    readers: BTreeSet<u64>,
    nr_readers_ever: u64,
    nr_live: u64,
    nr_allocs: u64,
    fuse: Fuse,
}

/// A store of tables that checks how it is used. See the [module](self).
///
/// It panics when it is dropped with tables in it.
pub struct Store {
    places: Box<[Place]>,
    missing: [TableId; MAX_LEVELS],
    state: Mutex<State>,
}

impl Store {
    /// Makes a store which has room for `capacity` tables and some that were freed recently.
    pub fn new(capacity: usize) -> Self {
        let quarantine = if cfg!(loom) { 0 } else { QUARANTINE };
        let places: Box<[Place]> = (0..MAX_LEVELS + capacity + quarantine)
            .map(|_| Place::default())
            .collect();
        if cfg!(loom) {
            // Making an atomic is no step of the model, so it must not happen in the middle of one.
            for place in &places {
                place.table();
            }
        }
        let mut below = INVALID;
        let missing = core::array::from_fn(|place| {
            let id = make_id(place, 0);
            places[place].table().fill(below);
            places[place].id.store(id.get(), Ordering::Release);
            below = id.get();
            id
        });
        Self {
            places,
            missing,
            state: Mutex::new(State {
                unused: MAX_LEVELS,
                ..State::default()
            }),
        }
    }

    /// Makes the allocation after `nr_good` ones fail, and no other.
    pub fn fail_once_after(&self, nr_good: u64) {
        self.state().fuse = Fuse::Once(nr_good);
    }

    /// Makes all allocations after `nr_good` ones fail.
    pub fn fail_after(&self, nr_good: u64) {
        self.state().fuse = Fuse::Forever(nr_good);
    }

    /// Lets allocations succeed again.
    pub fn fail_never(&self) {
        self.state().fuse = Fuse::Never;
    }

    /// Returns the number of tables that are neither freed nor retired.
    pub fn nr_live(&self) -> u64 {
        self.state().nr_live
    }

    /// Returns the number of tables that are retired and wait for readers.
    pub fn nr_retired(&self) -> usize {
        self.state().retired.len()
    }

    /// Returns the number of allocations that succeeded so far.
    pub fn nr_allocs(&self) -> u64 {
        self.state().nr_allocs
    }

    /// Begins a lookup: what it finds stays until the returned guard is dropped.
    pub fn reader(&self) -> Reader<'_> {
        let mut state = self.state();
        let number = state.nr_readers_ever;
        state.nr_readers_ever += 1;
        state.readers.insert(number);
        drop(state);
        Reader {
            store: self,
            number,
        }
    }

    /// Checks what can't be noticed when it happens: nobody wrote to a table that is shared or free.
    #[track_caller]
    pub fn check(&self) {
        let mut below = INVALID;
        for (level, id) in self.missing.iter().enumerate() {
            assert!(
                self.table(*id).is_all(below),
                "the missing table of level {level} was written to"
            );
            below = id.get();
        }
        let free: Vec<usize> = self.state().free.iter().copied().collect();
        for place in free {
            self.check_poison(place);
        }
    }

    fn check_poison(&self, place: usize) {
        assert!(
            self.places[place].table().is_all(POISON),
            "a table was written to after it was freed"
        );
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Who panicked left nothing half done, and what it had to say shouldn't be drowned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where the table is, after making sure that it is there.
    #[track_caller]
    fn place(&self, id: TableId) -> &Place {
        let word = id.get();
        assert_ne!(word, POISON, "a link in a freed table was followed");
        let place = self.places.get(place_of(id));
        let Some(place) = place else {
            panic!("{word:#x} never was a table");
        };
        let now = place.id.load(Ordering::Acquire);
        assert_eq!(now, word, "the table {word:#x} was used after it was freed");
        place
    }

    /// Takes a table away. Nobody can see it.
    #[track_caller]
    fn release(&self, id: TableId) {
        let place = self.place(id);
        let old = place.id.swap(0, Ordering::AcqRel);
        assert_eq!(old, id.get(), "the table {:#x} was freed twice", id.get());
        place.table().fill(POISON);
        self.state().free.push_back(place_of(id));
    }

    #[track_caller]
    fn check_own(&self, id: TableId) {
        assert!(
            !self.missing.contains(&id),
            "a missing table was given back"
        );
    }
}

fn make_id(place: usize, nr_uses: u64) -> TableId {
    // Ids begin at 1, so that a word of 0 is none.
    let word = (nr_uses << USE_SHIFT) | ((place as u64 + 1) << PLACE_SHIFT);
    TableId::new(word).expect("the low bits are 0")
}

fn place_of(id: TableId) -> usize {
    // CAST: Masked to the bits of a place.
    (((id.get() >> PLACE_SHIFT) & ((1 << PLACE_BITS) - 1)) as usize).wrapping_sub(1)
}

fn nr_uses_of(word: u64) -> u64 {
    word >> USE_SHIFT
}

impl TableStore for Store {
    fn alloc(&self, fill: u64) -> Result<TableId, NoMemory> {
        let mut state = self.state();
        if state.fuse.blows() {
            return Err(NoMemory);
        }
        let is_reused = state.free.len() > QUARANTINE || state.unused == self.places.len();
        let place = if is_reused {
            state.free.pop_front().ok_or(NoMemory)?
        } else {
            state.unused += 1;
            state.unused - 1
        };
        state.nr_live += 1;
        state.nr_allocs += 1;
        // Numbered over the whole store, so that no id ever comes back.
        let id = make_id(place, state.nr_allocs);
        assert_eq!(nr_uses_of(id.get()), state.nr_allocs, "out of ids");
        drop(state);

        if is_reused {
            self.check_poison(place);
        }
        self.places[place].table().fill(fill);
        self.places[place].id.store(id.get(), Ordering::Release);
        Ok(id)
    }

    #[inline]
    #[track_caller]
    fn table(&self, id: TableId) -> &Table {
        self.place(id).table()
    }

    #[track_caller]
    fn free(&self, id: TableId) {
        self.check_own(id);
        {
            let mut state = self.state();
            let is_retired = state.retired.iter().any(|retired| retired.id == id);
            assert!(!is_retired, "a retired table was freed");
            state.nr_live -= 1;
        }
        self.release(id);
    }

    #[track_caller]
    fn retire(&self, id: TableId) {
        self.check_own(id);
        self.place(id);
        {
            let mut state = self.state();
            let is_retired = state.retired.iter().any(|retired| retired.id == id);
            assert!(!is_retired, "a table was retired twice");
            state.nr_live -= 1;
            if !state.readers.is_empty() {
                let readers = state.readers.clone();
                state.retired.push(Retired { id, readers });
                return;
            }
        }
        self.release(id);
    }

    #[inline]
    fn missing(&self, level: usize) -> TableId {
        self.missing[level]
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A test that has failed already has said more than this would.
        if std::thread::panicking() {
            return;
        }
        self.check();
        let state = self.state();
        assert!(state.retired.is_empty(), "a reader was lost");
        assert_eq!(state.nr_live, 0, "tables were lost");
    }
}

/// Keeps what a lookup finds from being freed.
pub struct Reader<'a> {
    store: &'a Store,
    number: u64,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut done = Vec::new();
        {
            let mut state = self.store.state();
            state.readers.remove(&self.number);
            state.retired.retain_mut(|retired| {
                retired.readers.remove(&self.number);
                let is_waiting = !retired.readers.is_empty();
                if !is_waiting {
                    done.push(retired.id);
                }
                is_waiting
            });
        }
        for id in done {
            self.store.release(id);
        }
    }
}
