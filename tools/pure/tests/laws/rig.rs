// SPDX-License-Identifier: GPL-2.0

//! What several modules need: models, and things under test together with what they need.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::map::{Gone, Maps, SetError, Views, Writer};
use p2m_pure::sparse::{self, Sparse, Watch};
use p2m_pure::table::{NoMemory, TableId, TableStore, TABLE_BITS};
use p2m_pure_host::store::Store;

/// Number of indices that a word at `level` stands for.
pub(crate) const fn span(level: u32) -> u64 {
    1 << (TABLE_BITS * level)
}

/// Returns how many tables an array needs in which something is at these indices only.
pub(crate) fn nr_tables(indices: &BTreeSet<u64>) -> u64 {
    let mut nr_tables = 0;
    let Some(last) = indices.last() else {
        return 0;
    };
    for level in 0.. {
        let tables: BTreeSet<u64> = indices.iter().map(|at| at / span(level + 1)).collect();
        nr_tables += tables.len() as u64;
        if last / span(level + 1) == 0 {
            break;
        }
    }
    nr_tables
}

/// Watches an array, and checks that it's told in order.
#[derive(Default)]
pub(crate) struct Spy {
    generation: Cell<u64>,
    replaced: RefCell<Vec<u64>>,
}

impl Watch for Spy {
    fn before(&self) {
        assert_eq!(self.generation.get() % 2, 0, "a change in a change");
        self.generation.set(self.generation.get() + 1);
    }

    fn leaf_replaced(&self, index: u64) {
        assert_eq!(self.generation.get() % 2, 1, "a replacement without change");
        self.replaced.borrow_mut().push(index);
    }

    fn after(&self) {
        assert_eq!(self.generation.get() % 2, 1, "an end without beginning");
        self.generation.set(self.generation.get() + 1);
    }
}

/// A sparse array with all that it needs.
pub(crate) struct Array {
    pub(crate) store: Store,
    pub(crate) sparse: Sparse,
    pub(crate) writer: sparse::Writer,
    spy: Spy,
}

impl Array {
    pub(crate) fn new() -> Self {
        let store = Store::new(256);
        let (sparse, writer) = Sparse::new(&store);
        Self {
            store,
            sparse,
            writer,
            spy: Spy::default(),
        }
    }

    pub(crate) fn store(&mut self, index: u64, word: u64) -> Result<(), NoMemory> {
        self.sparse
            .store(&mut self.writer, &self.store, &self.spy, index, word)
    }

    pub(crate) fn prune(&mut self, first: u64, last: u64) {
        self.sparse
            .prune(&mut self.writer, &self.store, &self.spy, first, last);
    }

    pub(crate) fn reserve(&mut self, index: u64) -> Result<(), NoMemory> {
        self.sparse
            .reserve(&mut self.writer, &self.store, &self.spy, index)
    }

    pub(crate) fn replace(&mut self, index: u64, word: u64) -> bool {
        self.sparse.replace(&self.store, index, word)
    }

    /// Has a leaf be a folded one, or the missing one.
    pub(crate) fn replace_run(&mut self, index: u64, first: Option<u64>) -> Result<bool, NoMemory> {
        let (store, spy) = (&self.store, &self.spy);
        self.sparse
            .reserve_link(&mut self.writer, store, spy, index)?;
        let writer = &mut self.writer;
        Ok(self
            .sparse
            .replace_run(writer, store, spy, index, first, |_, _| ()))
    }

    pub(crate) fn fold(&mut self, index: u64) -> bool {
        self.sparse
            .fold(&mut self.writer, &self.store, &self.spy, index)
    }

    pub(crate) fn unfold(&mut self, index: u64) -> Result<(), NoMemory> {
        self.sparse
            .unfold(&mut self.writer, &self.store, &self.spy, index)
    }

    pub(crate) fn load(&self, index: u64) -> u64 {
        self.sparse.load(&self.store, index)
    }

    /// The leaf at an index as one sees it from outside.
    pub(crate) fn leaf(&self, index: u64) -> TableId {
        let leaf = self.sparse.leaf(&self.store, index);
        leaf.unwrap_or_else(|| self.store.missing(0))
    }

    /// Returns how often the structure changed, times 2.
    pub(crate) fn generation(&self) -> u64 {
        self.spy.generation.get()
    }

    /// Returns which leaves were replaced since the last call, by the first index.
    pub(crate) fn replaced(&self) -> BTreeSet<u64> {
        let replaced = self.spy.replaced.take();
        replaced.iter().map(|at| at / span(1) * span(1)).collect()
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // The store does the checking. After a panic there may be no sense in the array any more.
        if !std::thread::panicking() {
            self.sparse.clear(&mut self.writer, &self.store);
            assert_eq!(self.writer.nr_tables(), 0);
        }
    }
}

/// The maps of a domain with all that they need.
pub(crate) struct Domain<V = ()> {
    pub(crate) store: Store,
    pub(crate) maps: Maps,
    pub(crate) writer: Writer,
    pub(crate) views: V,
}

impl<V: Views> Domain<V> {
    pub(crate) fn new(views: V) -> Self {
        Self::with_capacity(views, 256)
    }

    pub(crate) fn with_capacity(views: V, nr_tables: usize) -> Self {
        let store = Store::new(nr_tables);
        let (maps, writer) = Maps::new(&store).unwrap();
        Self {
            store,
            maps,
            writer,
            views,
        }
    }

    pub(crate) fn set(&mut self, pfn: Pfn, entry: Entry) -> Result<Entry, SetError> {
        self.maps
            .set(&mut self.writer, &self.store, &self.views, pfn, entry)
    }

    /// Empties a range, and returns the domain's own frames that have gone.
    pub(crate) fn clear(&mut self, range: PfnRange) -> Vec<Mfn> {
        let is_own = |gone: &Gone| !matches!(gone, Gone::Foreign(_));
        let gone = self.clear_all(range).into_iter();
        gone.filter(is_own).map(Gone::mfn).collect()
    }

    /// Empties a range, and returns all that has gone.
    pub(crate) fn clear_all(&mut self, range: PfnRange) -> Vec<Gone> {
        let mut released = Vec::new();
        self.maps
            .clear(&mut self.writer, &self.store, &self.views, range, |gone| {
                released.push(gone)
            });
        released
    }

    pub(crate) fn lookup(&self, pfn: Pfn) -> Entry {
        self.maps.lookup(&self.store, pfn)
    }

    pub(crate) fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        self.maps.mfn_to_pfn(&self.store, mfn)
    }
}

impl<V> Drop for Domain<V> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.maps.destroy(&mut self.writer, &self.store);
        }
    }
}

pub(crate) fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

pub(crate) fn mfn(number: u64) -> Mfn {
    Mfn::new(number).unwrap()
}

pub(crate) fn range(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(start, nr_pages).unwrap()
}
