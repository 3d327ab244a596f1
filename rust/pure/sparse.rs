// SPDX-License-Identifier: GPL-2.0

//! A sparse array of words, made of page-sized tables.
//!
//! ```text
//!  root ──► level 2 ──► level 1 ──► leaf (level 0): 512 words
//!                │           └────► leaf
//!                └────► missing(1) ──► missing(0): 512 times INVALID
//! ```
//!
//! The tree is only as high as the highest index needs. Where nothing was stored, it ends in tables
//! that all arrays share, as `p2m_missing` and `p2m_mid_missing` of `arch/x86/xen/p2m.c`, so a lookup
//! has no special cases: it follows as many links as the tree is high.
//!
//! # Concurrency
//!
//! Lookups take no lock. Every change of the structure is one store of one link, made after what
//! it links to is complete; a table that was unlinked is freed only when no lookup can be in it any
//! more ([`TableStore::retire()`]). The tree grows by a new root that has the old one as its first
//! child, and shrinks by the reverse, so those still in the old root go on. Writers are serialised
//! by their [`Writer`].

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use super::entry::INVALID;
use super::table::{NoMemory, TableId, TableStore, TABLE_BITS, TABLE_WORDS};

/// Number of levels that the highest tree has: enough for every MFN.
pub const MAX_LEVELS: usize = 5;

/// The highest level a root can have.
const MAX_LEVEL: usize = MAX_LEVELS - 1;

/// Is told of changes of the structure.
pub trait Watch {
    /// The structure is about to change.
    fn before(&self);

    /// The leaf with the word at `index` was replaced: views of the old one are stale.
    fn leaf_replaced(&self, index: u64);

    /// The change is complete.
    fn after(&self);
}

/// The right to write to a [`Sparse`]: there is one, made together with the array.
#[derive(Debug)]
pub struct Writer {
    nr_tables: u64,
}

impl Writer {
    /// Returns the number of tables that the array has for itself.
    pub fn nr_tables(&self) -> u64 {
        self.nr_tables
    }
}

/// A sparse array of words, [`INVALID`] where nothing was stored.
///
/// # Invariants
///
/// `root` is the id of a table, tagged with its level, at most [`MAX_LEVEL`]. The words of a table
/// at level `n > 0` are ids of tables at level `n - 1`. All tables are shared missing ones or owned
/// by the array, and are linked once.
pub struct Sparse {
    root: AtomicU64,
}

/// The root of the tree at one moment.
#[derive(Clone, Copy)]
struct Root {
    id: TableId,
    level: usize,
}

impl Root {
    #[inline]
    fn from_word(word: u64) -> Self {
        Self {
            id: TableId::untag(word),
            // CAST: The tag is a small number.
            level: (word & TableId::TAG_MASK) as usize,
        }
    }

    fn word(self) -> u64 {
        self.id.get() | self.level as u64
    }

    /// Returns whether a tree of this height has a place for `index`.
    #[inline]
    fn covers(self, index: u64) -> bool {
        shift(index, self.level) < TABLE_WORDS as u64
    }
}

/// Returns the part of an index that selects a word at `level`, with what is above it.
///
/// A level is at most [`MAX_LEVEL`], so nothing wraps. Checks of that would take as long as the rest
/// of a lookup.
#[inline]
const fn shift(index: u64, level: usize) -> u64 {
    // CAST: A level is small.
    index.wrapping_shr(TABLE_BITS.wrapping_mul(level as u32))
}

/// Returns the number of indices that a word at `level` stands for.
#[inline]
const fn span(level: usize) -> u64 {
    1 << (TABLE_BITS as usize * level)
}

/// Returns what the words of a new table at `level` have to be.
fn blank<S: TableStore>(store: &S, level: usize) -> u64 {
    match level.checked_sub(1) {
        None => INVALID,
        Some(below) => store.missing(below).get(),
    }
}

impl Sparse {
    /// Makes an empty array, which needs no table.
    pub fn new<S: TableStore>(store: &S) -> (Self, Writer) {
        let root = Root {
            id: store.missing(0),
            level: 0,
        };
        // INVARIANT: A missing table of level 0 is a tree of its own.
        let array = Self {
            root: AtomicU64::new(root.word()),
        };
        (array, Writer { nr_tables: 0 })
    }

    #[inline]
    fn root(&self) -> Root {
        Root::from_word(self.root.load(Ordering::Acquire))
    }

    /// Returns the word at `index`.
    #[inline]
    pub fn load<S: TableStore>(&self, store: &S, index: u64) -> u64 {
        match self.leaf(store, index) {
            Some(leaf) => store.table(leaf).load(index),
            None => INVALID,
        }
    }

    /// Copies the words from `index` on. To find a leaf takes longer than to read it.
    pub fn load_run<S: TableStore>(&self, store: &S, index: u64, words: &mut [u64]) {
        let mut index = index;
        let mut left = words;
        while !left.is_empty() {
            // CAST: A small number.
            let in_leaf = TABLE_WORDS - (index % TABLE_WORDS as u64) as usize;
            let (part, rest) = left.split_at_mut(in_leaf.min(left.len()));
            match self.leaf(store, index) {
                Some(leaf) => store.table(leaf).load_run(index, part),
                None => part.fill(INVALID),
            }
            // No tree has a word for an index that high.
            index = index.saturating_add(part.len() as u64);
            left = rest;
        }
    }

    /// Returns the leaf with the word at `index`, which may be the shared missing one, or [`None`]
    /// if the tree doesn't reach that far.
    #[inline]
    pub fn leaf<S: TableStore>(&self, store: &S, index: u64) -> Option<TableId> {
        let root = self.root();
        if !root.covers(index) {
            return None;
        }
        let mut id = root.id;
        let mut follow = |level| id = TableId::untag(store.table(id).load(shift(index, level)));
        // All translations wait for this. Few trees are higher than two levels of links, which have
        // shifts that are constants.
        if root.level > 2 {
            (3..=root.level).rev().for_each(&mut follow);
        }
        if root.level >= 2 {
            follow(2);
        }
        if root.level >= 1 {
            follow(1);
        }
        Some(id)
    }

    /// Returns the first index, from `index` on, at which there is a leaf of the array's own, and
    /// which a caller that looks for stored words should look at next.
    pub fn next_leaf<S: TableStore>(&self, store: &S, index: u64) -> Option<u64> {
        let root = self.root();
        let mut index = index;
        while root.covers(index) {
            match Self::missing_span(store, root, index) {
                None => return Some(index),
                // The next index that isn't in the same missing table.
                Some(span) => index = (index | (span - 1)).checked_add(1)?,
            }
        }
        None
    }

    /// Returns how many indices the missing table stands for in which the walk to `index` ends.
    fn missing_span<S: TableStore>(store: &S, root: Root, index: u64) -> Option<u64> {
        let mut id = root.id;
        for level in (0..=root.level).rev() {
            if id == store.missing(level) {
                return Some(span(level + 1));
            }
            if level > 0 {
                id = TableId::untag(store.table(id).load(shift(index, level)));
            }
        }
        None
    }

    /// Stores `word` at `index`, and makes what tables it needs.
    ///
    /// Storing [`INVALID`] where nothing is needs none. After an error the array is as before.
    pub fn store<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        word: u64,
    ) -> Result<(), NoMemory> {
        if let Some(leaf) = self.leaf(store, index) {
            if leaf != store.missing(0) {
                store.table(leaf).store(index, word);
                return Ok(());
            }
        }
        if word == INVALID {
            return Ok(());
        }
        match self.install(writer, store, watch, index) {
            Ok(leaf) => {
                store.table(leaf).store(index, word);
                Ok(())
            }
            Err(NoMemory) => {
                self.prune(writer, store, watch, index, index);
                Err(NoMemory)
            }
        }
    }

    /// Makes the leaf for `index`, so that [`replace()`](Self::replace) works there until it's pruned.
    pub fn reserve<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> Result<(), NoMemory> {
        match self.install(writer, store, watch, index) {
            Ok(_) => Ok(()),
            Err(NoMemory) => {
                self.prune(writer, store, watch, index, index);
                Err(NoMemory)
            }
        }
    }

    /// Stores `word` at `index` if there is a leaf of the array's own, and returns whether there is.
    ///
    /// It changes no structure. Who stores something else there meanwhile has to be excluded.
    pub fn replace<S: TableStore>(&self, store: &S, index: u64, word: u64) -> bool {
        match self.leaf(store, index) {
            Some(leaf) if leaf != store.missing(0) => {
                store.table(leaf).store(index, word);
                true
            }
            _ => false,
        }
    }

    /// Makes a leaf for `index` and what leads to it, as far as it is missing.
    fn install<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> Result<TableId, NoMemory> {
        let mut root = self.root();
        while !root.covers(index) {
            if root.level == MAX_LEVEL {
                return Err(NoMemory);
            }
            let level = root.level + 1;
            // An empty tree is as high as one likes, for nothing.
            let id = if root.id == store.missing(root.level) {
                store.missing(level)
            } else {
                let id = writer.alloc(store, level)?;
                store.table(id).store(0, root.id.get());
                id
            };
            root = Root { id, level };
            // INVARIANT: The new root's first child is the old root, its others are missing.
            self.set_root(store, watch, root, index);
        }

        if root.id == store.missing(root.level) {
            root.id = writer.alloc(store, root.level)?;
            // INVARIANT: A new table takes the place of the missing one.
            self.set_root(store, watch, root, index);
        }

        let mut id = root.id;
        for level in (1..=root.level).rev() {
            let table = store.table(id);
            let slot = shift(index, level);
            id = TableId::untag(table.load(slot));
            if id == store.missing(level - 1) {
                id = writer.alloc(store, level - 1)?;
                watch.before();
                // INVARIANT: A new table takes the place of the missing one.
                table.store(slot, id.get());
                if level == 1 {
                    watch.leaf_replaced(index);
                }
                watch.after();
            }
        }
        Ok(id)
    }

    /// Makes `root` the root, and returns the old one. `index` is one that is concerned.
    fn set_root<S: TableStore>(
        &self,
        store: &S,
        watch: &impl Watch,
        root: Root,
        index: u64,
    ) -> Root {
        let old = self.root();
        // Going from one missing table to another is nothing that anybody could see.
        if old.id == store.missing(old.level) && root.id == store.missing(root.level) {
            self.root.store(root.word(), Ordering::Release);
            return old;
        }
        watch.before();
        self.root.store(root.word(), Ordering::Release);
        // A tree that gets higher or lower keeps its leaves.
        if old.level == 0 && root.level == 0 {
            watch.leaf_replaced(index);
        }
        watch.after();
        old
    }

    /// Gives back the tables between the indices `first` and `last` that hold nothing any more, and
    /// the roots that are higher than the array still needs.
    pub fn prune<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        first: u64,
        last: u64,
    ) {
        let root = self.root();
        let empty = Root {
            id: store.missing(0),
            level: 0,
        };
        if root.id == store.missing(root.level) {
            // INVARIANT: One missing table takes the place of another.
            self.set_root(store, watch, empty, first);
            return;
        }
        // What is left of a tree that failed to grow high enough doesn't cover the range.
        if root.covers(first) {
            let last = last.min(span(root.level + 1) - 1);
            if Self::prune_below(writer, store, watch, root, (first, last)) {
                // INVARIANT: The missing table takes the place of a tree that had nothing in it.
                let old = self.set_root(store, watch, empty, first);
                writer.retire(store, old.id);
                return;
            }
        }
        self.lower(writer, store, watch);
    }

    /// Makes the tree of an array that isn't empty as low as its highest index allows.
    fn lower<S: TableStore>(&self, writer: &mut Writer, store: &S, watch: &impl Watch) {
        let mut root = self.root();
        while let Some(below) = root.level.checked_sub(1) {
            let table = store.table(root.id);
            let missing = store.missing(below).get();
            if (1..TABLE_WORDS as u64).any(|slot| table.load(slot) != missing) {
                break;
            }
            let child = Root {
                id: TableId::untag(table.load(0)),
                level: below,
            };
            // INVARIANT: The old root had nothing but this child. It keeps the link, for those who
            // are still in it.
            self.set_root(store, watch, child, 0);
            writer.retire(store, root.id);
            root = child;
        }
    }

    /// Prunes what is below `node`, and returns whether nothing is left in it.
    fn prune_below<S: TableStore>(
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        node: Root,
        (first, last): (u64, u64),
    ) -> bool {
        let table = store.table(node.id);
        let Some(below) = node.level.checked_sub(1) else {
            return table.is_all(INVALID);
        };
        let missing = store.missing(below);
        for slot in shift(first, node.level)..=shift(last, node.level) {
            let child = Root {
                id: TableId::untag(table.load(slot)),
                level: below,
            };
            // The part of the range that is in this child.
            let start = slot << (TABLE_BITS as usize * node.level);
            let end = start + (span(node.level) - 1);
            let part = (first.max(start), last.min(end));
            if child.id != missing && Self::prune_below(writer, store, watch, child, part) {
                watch.before();
                // INVARIANT: The missing table takes the place of one that had nothing in it.
                table.store(slot, missing.get());
                if below == 0 {
                    watch.leaf_replaced(start);
                }
                watch.after();
                writer.retire(store, child.id);
            }
        }
        table.is_all(missing.get())
    }

    /// Frees all tables. Nobody can be looking any more, as nobody else has a reference.
    pub fn clear<S: TableStore>(&mut self, writer: &mut Writer, store: &S) {
        let root = self.root();
        let empty = Root {
            id: store.missing(0),
            level: 0,
        };
        // INVARIANT: As in `new()`.
        self.root.store(empty.word(), Ordering::Relaxed);
        Self::free_below(writer, store, root);
    }

    fn free_below<S: TableStore>(writer: &mut Writer, store: &S, node: Root) {
        if node.id == store.missing(node.level) {
            return;
        }
        if let Some(below) = node.level.checked_sub(1) {
            let table = store.table(node.id);
            for slot in 0..TABLE_WORDS as u64 {
                let child = Root {
                    id: TableId::untag(table.load(slot)),
                    level: below,
                };
                Self::free_below(writer, store, child);
            }
        }
        writer.free(store, node.id);
    }
}

impl Writer {
    fn alloc<S: TableStore>(&mut self, store: &S, level: usize) -> Result<TableId, NoMemory> {
        let id = store.alloc(blank(store, level))?;
        // OVERFLOW: There are far fewer than 2^64 pages.
        self.nr_tables += 1;
        Ok(id)
    }

    fn retire<S: TableStore>(&mut self, store: &S, id: TableId) {
        // OVERFLOW: The table was counted when it was allocated.
        self.nr_tables -= 1;
        store.retire(id);
    }

    fn free<S: TableStore>(&mut self, store: &S, id: TableId) {
        // OVERFLOW: The table was counted when it was allocated.
        self.nr_tables -= 1;
        store.free(id);
    }
}
