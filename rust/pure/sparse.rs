// SPDX-License-Identifier: GPL-2.0

//! A sparse array of words, made of page-sized tables.
//!
//! ```text
//!  root ──► level 2 ──► level 1 ──► leaf (level 0): 512 words
//!                │           ├────► leaf
//!                │           └ folded: 512 words that follow each other, without a table
//!                └────► missing(1) ──► missing(0): 512 times INVALID
//! ```
//!
//! The tree is only as high as the highest index needs. Where nothing was stored, it ends in tables
//! that all arrays share, as `p2m_missing` and `p2m_mid_missing` of `arch/x86/xen/p2m.c`, so a lookup
//! has no special cases: it follows as many links as the tree is high.
//!
//! A leaf the words of which follow each other can be *folded*: in place of its link there is its
//! first word, with a tag. That is only another form of the leaf. Lookups see the same words, but a
//! word of it can't be changed before it's [unfolded](Sparse::unfold), which needs a table.
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
use super::table::{NoMemory, Table, TableId, TableStore, TABLE_BITS, TABLE_WORDS};

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
    nr_folded: u64,
}

impl Writer {
    /// Returns the number of tables that the array has for itself.
    pub fn nr_tables(&self) -> u64 {
        self.nr_tables
    }

    /// Returns the number of leaves that are folded.
    pub fn nr_folded(&self) -> u64 {
        self.nr_folded
    }
}

/// A sparse array of words, [`INVALID`] where nothing was stored.
///
/// # Invariants
///
/// `root` is the id of a table, tagged with its level, at most [`MAX_LEVEL`]. The words of a table
/// at level `n > 0` are ids of tables at level `n - 1`, or at level 1 folded leaves. All tables are
/// shared missing ones or owned by the array, and are linked once.
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

/// The tag of a link that is a folded leaf.
const FOLDED: u64 = 1;

/// Where the first word of a folded leaf begins.
const FIRST_SHIFT: u32 = TableId::TAG_MASK.trailing_ones();

/// The first words of leaves that can be folded are at most this.
const MAX_FIRST: u64 = (u64::MAX >> FIRST_SHIFT) - TABLE_WORDS as u64;

/// Returns the first word of a folded leaf, if a link is one.
#[inline]
const fn folded(link: u64) -> Option<u64> {
    if link & FOLDED != 0 {
        Some(link >> FIRST_SHIFT)
    } else {
        None
    }
}

/// Returns the link that is a folded leaf.
const fn fold(first: u64) -> u64 {
    (first << FIRST_SHIFT) | FOLDED
}

/// Returns the word at `index` of a folded leaf.
#[inline]
const fn folded_word(first: u64, index: u64) -> u64 {
    // OVERFLOW: A first word is at most `MAX_FIRST`.
    first + (index & (TABLE_WORDS as u64 - 1))
}

/// Cuts `nr` indices from `index` on at the ends of leaves: returns the first index and the number of
/// those in each leaf.
fn leaves(index: u64, nr: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut rest = (index, nr);
    core::iter::from_fn(move || {
        let (index, nr) = rest;
        let in_leaf = nr.min(TABLE_WORDS as u64 - index % TABLE_WORDS as u64);
        // OVERFLOW: It isn't more than there is. No tree has a word for an index that high.
        rest = (index.saturating_add(in_leaf), nr - in_leaf);
        (nr > 0).then_some((index, in_leaf))
    })
}

/// Where a walk ends.
#[derive(Clone, Copy)]
enum Found {
    /// At a leaf, which may be the shared missing one.
    Leaf(TableId),
    /// At a folded leaf, with this first word.
    Folded(u64),
    /// The tree doesn't reach that far.
    Nothing,
}

/// The words of a leaf, in whichever form it has.
#[derive(Clone, Copy)]
pub enum Leaf<'a> {
    /// They are in a table.
    Table(&'a Table),
    /// The leaf is folded, and the one at the index has this word.
    Run(u64),
    /// Nothing was stored in it.
    Missing,
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
        let writer = Writer {
            nr_tables: 0,
            nr_folded: 0,
        };
        (array, writer)
    }

    #[inline]
    fn root(&self) -> Root {
        Root::from_word(self.root.load(Ordering::Acquire))
    }

    /// Returns the word at `index`.
    #[inline]
    pub fn load<S: TableStore>(&self, store: &S, index: u64) -> u64 {
        match self.find(store, index) {
            Found::Leaf(leaf) => store.table(leaf).load(index),
            Found::Folded(first) => folded_word(first, index),
            Found::Nothing => INVALID,
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
            match self.find(store, index) {
                Found::Leaf(leaf) => store.table(leaf).load_run(index, part),
                Found::Folded(first) => {
                    for (word, number) in part.iter_mut().zip(folded_word(first, index)..) {
                        *word = number;
                    }
                }
                Found::Nothing => part.fill(INVALID),
            }
            // No tree has a word for an index that high.
            index = index.saturating_add(part.len() as u64);
            left = rest;
        }
    }

    /// Returns the leaf with the word at `index`, which may be the shared missing one, or [`None`]
    /// if the tree doesn't reach that far, or if the leaf is folded.
    #[inline]
    pub fn leaf<S: TableStore>(&self, store: &S, index: u64) -> Option<TableId> {
        match self.find(store, index) {
            Found::Leaf(leaf) => Some(leaf),
            Found::Folded(_) | Found::Nothing => None,
        }
    }

    /// Returns whether the leaf with the word at `index` is a table of its own, so that to store a
    /// word there replaces no leaf.
    #[inline]
    pub fn has_leaf<S: TableStore>(&self, store: &S, index: u64) -> bool {
        self.leaf(store, index)
            .is_some_and(|leaf| leaf != store.missing(0))
    }

    /// Returns the leaf with the word at `index`, to look at many of its words.
    #[inline]
    pub fn words<'a, S: TableStore>(&self, store: &'a S, index: u64) -> Leaf<'a> {
        match self.find(store, index) {
            Found::Leaf(leaf) if leaf != store.missing(0) => Leaf::Table(store.table(leaf)),
            Found::Leaf(_) | Found::Nothing => Leaf::Missing,
            Found::Folded(first) => Leaf::Run(folded_word(first, index)),
        }
    }

    /// Returns the first word of the leaf with the word at `index`, if it is folded.
    #[inline]
    pub fn folded<S: TableStore>(&self, store: &S, index: u64) -> Option<u64> {
        match self.find(store, index) {
            Found::Folded(first) => Some(first),
            Found::Leaf(_) | Found::Nothing => None,
        }
    }

    #[inline]
    fn find<S: TableStore>(&self, store: &S, index: u64) -> Found {
        let root = self.root();
        if !root.covers(index) {
            return Found::Nothing;
        }
        let mut id = root.id;
        let link = |id: TableId, level| store.table(id).load(shift(index, level));
        // All translations wait for this. Few trees are higher than two levels of links, which have
        // shifts that are constants.
        if root.level > 2 {
            for level in (3..=root.level).rev() {
                id = TableId::untag(link(id, level));
            }
        }
        if root.level >= 2 {
            id = TableId::untag(link(id, 2));
        }
        if root.level >= 1 {
            let link = link(id, 1);
            if let Some(first) = folded(link) {
                return Found::Folded(first);
            }
            id = TableId::untag(link);
        }
        Found::Leaf(id)
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
                let link = store.table(id).load(shift(index, level));
                if folded(link).is_some() {
                    return None;
                }
                id = TableId::untag(link);
            }
        }
        None
    }

    /// Stores `word` at `index`, and makes what tables it needs.
    ///
    /// Storing [`INVALID`] needs none, but where the leaf is folded. After an error the array is as
    /// before.
    pub fn store<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        word: u64,
    ) -> Result<(), NoMemory> {
        match self.find(store, index) {
            Found::Leaf(leaf) if leaf != store.missing(0) => {
                store.table(leaf).store(index, word);
                return Ok(());
            }
            Found::Folded(first) if folded_word(first, index) == word => return Ok(()),
            Found::Folded(_) => (),
            Found::Leaf(_) | Found::Nothing if word == INVALID => return Ok(()),
            Found::Leaf(_) | Found::Nothing => (),
        }
        match self.install(writer, store, watch, index, 0) {
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

    /// Makes the leaf for `index`, so that [`replace()`](Self::replace) works there until it's pruned
    /// or folded.
    pub fn reserve<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> Result<(), NoMemory> {
        self.reserve_level(writer, store, watch, index, 0)
    }

    /// Makes what leads to the leaf for `index`, so that [`replace_run()`](Self::replace_run) works
    /// there until it's pruned.
    pub fn reserve_link<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> Result<(), NoMemory> {
        self.reserve_level(writer, store, watch, index, 1)
    }

    fn reserve_level<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        level: usize,
    ) -> Result<(), NoMemory> {
        match self.install(writer, store, watch, index, level) {
            Ok(_) => Ok(()),
            Err(NoMemory) => {
                self.prune(writer, store, watch, index, index);
                Err(NoMemory)
            }
        }
    }

    /// Makes a table of the leaf with the word at `index`, if it's folded.
    pub fn unfold<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> Result<(), NoMemory> {
        if self.folded(store, index).is_some() {
            self.install(writer, store, watch, index, 0)?;
        }
        Ok(())
    }

    /// Folds the leaf with the word at `index`, if its words follow each other and there is a link to
    /// it, and returns whether it is folded.
    pub fn fold<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
    ) -> bool {
        let leaf = match self.find(store, index) {
            Found::Leaf(leaf) => store.table(leaf),
            Found::Folded(_) => return true,
            Found::Nothing => return false,
        };
        let first = leaf.load(0);
        first <= MAX_FIRST
            && leaf.is_run(first)
            && self.replace_run(writer, store, watch, index, Some(first), |_, _| ())
    }

    /// Has the leaf with the word at `index` be a folded one with the first word `first`, or the
    /// missing one. Passes each index of the leaf and the word that was there to `gone`, if it's a
    /// change. Returns whether there is a link for it.
    ///
    /// It needs no memory. Who stores something else there meanwhile has to be excluded.
    pub fn replace_run<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        first: Option<u64>,
        mut gone: impl FnMut(u64, u64),
    ) -> bool {
        let Some(old) = self.relink(writer, store, watch, index, first) else {
            return false;
        };
        let start = index & !(TABLE_WORDS as u64 - 1);
        match old {
            Found::Nothing => (),
            Found::Folded(first) => {
                let indices = (start..).take(TABLE_WORDS);
                indices.for_each(|index| gone(index, folded_word(first, index)));
            }
            Found::Leaf(leaf) => {
                store.table(leaf).for_each(start, gone);
                if leaf != store.missing(0) {
                    writer.retire(store, leaf);
                }
            }
        }
        true
    }

    /// Has the link to the leaf with the word at `index` be a folded leaf with the first word `first`,
    /// or the missing one, if there is a link for it. Returns the leaf that was there, which the caller
    /// retires if it's a table of the array's own, or [`Found::Nothing`] if that is no change.
    fn relink<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        first: Option<u64>,
    ) -> Option<Found> {
        let root = self.root();
        let is_good = first.is_none_or(|first| first <= MAX_FIRST);
        if !root.covers(index) || root.level == 0 || !is_good {
            return None;
        }
        let mut id = root.id;
        for level in (2..=root.level).rev() {
            id = TableId::untag(store.table(id).load(shift(index, level)));
        }
        // Nobody writes to a shared table.
        if id == store.missing(1) {
            return None;
        }
        let table = store.table(id);
        let slot = shift(index, 1);
        let old = table.load(slot);
        let new = first.map_or(store.missing(0).get(), fold);
        if old == new {
            return Some(Found::Nothing);
        }
        watch.before();
        // INVARIANT: A folded leaf, or the missing one, takes the place of another one.
        table.store(slot, new);
        watch.leaf_replaced(index);
        watch.after();
        // OVERFLOW: Each folded leaf was counted when it came. There are fewer than 2^64.
        writer.nr_folded += u64::from(first.is_some());
        writer.nr_folded -= u64::from(folded(old).is_some());
        Some(match folded(old) {
            Some(first) => Found::Folded(first),
            None => Found::Leaf(TableId::untag(old)),
        })
    }

    /// Takes `nr` words from `index` on out, and passes the index of each and the word that was there
    /// to `gone`, in order and when it's gone. Of a leaf that is folded, all goes or nothing.
    ///
    /// A leaf that goes whole is unlinked and not written to: those who are in it see it as it was.
    /// It needs no memory. Who stores something else there meanwhile has to be excluded.
    pub fn take_run<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        (index, nr): (u64, u64),
        mut gone: impl FnMut(u64, u64),
    ) {
        for (index, nr) in leaves(index, nr) {
            let is_whole = nr == TABLE_WORDS as u64;
            if is_whole && self.replace_run(writer, store, watch, index, None, &mut gone) {
                continue;
            }
            if let Leaf::Table(leaf) = self.words(store, index) {
                leaf.take_run(index, nr, &mut gone);
            }
        }
    }

    /// Stores [`INVALID`] at `nr` indices from `index` on. Of a leaf that is folded, all goes or
    /// nothing.
    ///
    /// A leaf that goes whole is unlinked and not written to: those who are in it see it as it was.
    /// It needs no memory. Who stores something else there meanwhile has to be excluded.
    pub fn clear_run<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        (index, nr): (u64, u64),
    ) {
        for (index, nr) in leaves(index, nr) {
            if nr == TABLE_WORDS as u64 {
                if let Some(old) = self.relink(writer, store, watch, index, None) {
                    match old {
                        Found::Leaf(leaf) => writer.retire(store, leaf),
                        Found::Folded(_) | Found::Nothing => (),
                    }
                    continue;
                }
            }
            if let Leaf::Table(leaf) = self.words(store, index) {
                leaf.clear_run(index, nr);
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

    /// Makes a table at `down_to`, 0 or 1, for `index` and what leads to it, as far as it is missing.
    fn install<S: TableStore>(
        &self,
        writer: &mut Writer,
        store: &S,
        watch: &impl Watch,
        index: u64,
        down_to: usize,
    ) -> Result<TableId, NoMemory> {
        let mut root = self.root();
        while !root.covers(index) || root.level < down_to {
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
        for level in (down_to + 1..=root.level).rev() {
            let table = store.table(id);
            let slot = shift(index, level);
            let link = table.load(slot);
            let folded = folded(link);
            id = TableId::untag(link);
            if folded.is_some() || id == store.missing(level - 1) {
                id = writer.alloc(store, level - 1)?;
                if let Some(first) = folded {
                    store.table(id).fill_run(first);
                    // OVERFLOW: The leaf was counted when it was folded.
                    writer.nr_folded -= 1;
                }
                watch.before();
                // INVARIANT: A new table takes the place of the missing one, or of a folded leaf with
                // the same words.
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
            let has_more = (1..TABLE_WORDS as u64).any(|slot| table.load(slot) != missing);
            if has_more || folded(table.load(0)).is_some() {
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
            let link = table.load(slot);
            if folded(link).is_some() {
                continue;
            }
            let child = Root {
                id: TableId::untag(link),
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
                let link = table.load(slot);
                if folded(link).is_some() {
                    // OVERFLOW: The leaf was counted when it was folded.
                    writer.nr_folded -= 1;
                    continue;
                }
                let child = Root {
                    id: TableId::untag(link),
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
