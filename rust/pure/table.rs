// SPDX-License-Identifier: GPL-2.0

//! Page-sized tables of words, and who provides them.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use super::entry::INVALID;

/// log2 of the number of words in a table.
///
/// A model checker looks at every word in every state, so it gets small tables.
pub const TABLE_BITS: u32 = if cfg!(loom) { 1 } else { 9 };

/// Number of words in a table.
pub const TABLE_WORDS: usize = 1 << TABLE_BITS;

/// A page of words that are read and written at any time by anyone.
#[cfg_attr(not(loom), repr(C, align(4096)))]
pub struct Table {
    words: [AtomicU64; TABLE_WORDS],
}

impl Table {
    /// Makes a table of `fill`.
    pub fn new(fill: u64) -> Self {
        Self {
            words: core::array::from_fn(|_| AtomicU64::new(fill)),
        }
    }

    /// Sets all words of a table that nobody else can see yet.
    pub fn fill(&self, word: u64) {
        for slot in &self.words {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// Sets all words of a table that nobody else can see yet: to `first`, and those that follow it.
    pub fn fill_run(&self, first: u64) {
        for (slot, word) in self.words.iter().zip(first..) {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// Returns the word that `index` selects by its low [`TABLE_BITS`] bits.
    ///
    /// What was written before that word was stored is seen from now on.
    #[inline]
    pub fn load(&self, index: u64) -> u64 {
        self.slot(index).load(Ordering::Acquire)
    }

    /// Copies words from the one that `index` selects on: as many as fit into `words` and are in
    /// the table. Each is loaded as by [`load()`](Self::load).
    pub fn load_run(&self, index: u64, words: &mut [u64]) {
        for (word, slot) in words.iter_mut().zip(self.slots(index)) {
            *word = slot.load(Ordering::Acquire);
        }
    }

    /// Returns the words from the one that `index` selects on, to the end of the table. Each is loaded as
    /// by [`load()`](Self::load).
    #[inline]
    pub fn words(&self, index: u64) -> impl Iterator<Item = u64> + '_ {
        self.slots(index)
            .iter()
            .map(|slot| slot.load(Ordering::Acquire))
    }

    /// Returns how many words from the one that `index` selects on are `word`, and those that follow it
    /// by `step`: at most `nr`. Each is loaded as by [`load()`](Self::load).
    #[inline]
    pub fn run_len(&self, index: u64, word: u64, step: u64, nr: u64) -> u64 {
        let mut expected = word;
        let mut len = 0;
        for slot in self.slots(index) {
            if len == nr || slot.load(Ordering::Acquire) != expected {
                break;
            }
            // The last one may have none that follows it.
            expected = expected.wrapping_add(step);
            len += 1;
        }
        len
    }

    /// Stores a word where `index` selects by its low [`TABLE_BITS`] bits.
    ///
    /// Who loads it sees what was written before.
    #[inline]
    pub fn store(&self, index: u64, word: u64) {
        self.slot(index).store(word, Ordering::Release);
    }

    /// Stores words from where `index` selects on, as far as they are in the table. Each is stored
    /// as by [`store()`](Self::store), in order.
    pub fn store_run(&self, index: u64, words: &[u64]) {
        for (&word, slot) in words.iter().zip(self.slots(index)) {
            slot.store(word, Ordering::Release);
        }
    }

    /// Passes each word to `visit`, with the indices from `start` on. Each is loaded as by
    /// [`load()`](Self::load).
    pub fn for_each(&self, start: u64, mut visit: impl FnMut(u64, u64)) {
        for (index, slot) in (start..).zip(&self.words) {
            visit(index, slot.load(Ordering::Acquire));
        }
    }

    /// Stores [`INVALID`] in place of `nr` words from the one that `index` selects on, as far as they
    /// are in the table, and passes the index of each and the word that was there to `gone`, when it's
    /// gone. Only one thread writes there.
    pub fn take_run(&self, index: u64, nr: u64, mut gone: impl FnMut(u64, u64)) {
        for ((index, slot), _) in (index..).zip(self.slots(index)).zip(0..nr) {
            let word = slot.load(Ordering::Relaxed);
            slot.store(INVALID, Ordering::Release);
            gone(index, word);
        }
    }

    /// Stores [`INVALID`] in place of the words that `is_taken` names, and passes the index of each to
    /// `gone`, when it's gone. Only one thread writes there.
    pub fn take_if(&self, is_taken: impl Fn(u64) -> bool, mut gone: impl FnMut(u64)) {
        for (index, slot) in (0..).zip(&self.words) {
            if is_taken(slot.load(Ordering::Relaxed)) {
                slot.store(INVALID, Ordering::Release);
                gone(index);
            }
        }
    }

    /// Stores [`INVALID`] in place of `nr` words from the one that `index` selects on, as far as they
    /// are in the table. Each is stored as by [`store()`](Self::store), in order.
    pub fn clear_run(&self, index: u64, nr: u64) {
        for (slot, _) in self.slots(index).iter().zip(0..nr) {
            slot.store(INVALID, Ordering::Release);
        }
    }

    /// Stores a word where `index` selects, and returns what was there.
    pub fn swap(&self, index: u64, word: u64) -> u64 {
        self.slot(index).swap(word, Ordering::AcqRel)
    }

    /// Replaces the word that `index` selects by what `change` makes of it, however often others
    /// change it meanwhile.
    pub fn update(&self, index: u64, change: impl Fn(u64) -> u64) {
        let slot = self.slot(index);
        let mut word = slot.load(Ordering::Relaxed);
        while let Err(now) =
            slot.compare_exchange(word, change(word), Ordering::AcqRel, Ordering::Relaxed)
        {
            word = now;
        }
    }

    /// Returns whether all words are `word`.
    pub fn is_all(&self, word: u64) -> bool {
        self.words
            .iter()
            .all(|slot| slot.load(Ordering::Relaxed) == word)
    }

    fn slots(&self, first: u64) -> &[AtomicU64] {
        // CAST: Masked to the few bits that an index has.
        // PANIC: The mask makes the index smaller than the number of words.
        &self.words[(first & (TABLE_WORDS as u64 - 1)) as usize..]
    }

    /// Returns whether the words are `first`, and those that follow it.
    pub fn is_run(&self, first: u64) -> bool {
        self.words
            .iter()
            .zip(first..)
            .all(|(slot, word)| slot.load(Ordering::Relaxed) == word)
    }

    #[inline]
    fn slot(&self, index: u64) -> &AtomicU64 {
        // CAST: Masked to the few bits that an index has.
        // PANIC: The mask makes the index smaller than the number of words.
        &self.words[(index & (TABLE_WORDS as u64 - 1)) as usize]
    }
}

/// Names a table of a [`TableStore`].
///
/// # Invariants
///
/// The low 12 bits are 0, so that a word that names a table has room for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableId(u64);

impl TableId {
    /// The bits that are 0 in every id.
    pub const TAG_MASK: u64 = 0xfff;

    /// Makes an id of a word that a store made up.
    #[inline]
    pub const fn new(word: u64) -> Option<Self> {
        if word & Self::TAG_MASK == 0 {
            // INVARIANT: The low bits have just been checked.
            Some(Self(word))
        } else {
            None
        }
    }

    /// Makes an id of a word which an id, and perhaps a tag, was stored in.
    #[inline]
    pub(super) const fn untag(word: u64) -> Self {
        // INVARIANT: The low bits are masked away.
        Self(word & !Self::TAG_MASK)
    }

    /// Returns the word that stands for the id.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// There was no memory for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Provides tables.
///
/// In the module it is the page allocator, and an id is the address of a page. On the host it is a
/// store that notices a table that is used after it was freed.
///
/// Who uses a store passes to [`table()`](Self::table), [`retire()`](Self::retire) and
/// [`free()`](Self::free) only ids that [`alloc()`](Self::alloc) or [`missing()`](Self::missing)
/// of the same store returned and that are still there.
pub trait TableStore {
    /// Returns a new table, all words of which are `fill`.
    fn alloc(&self, fill: u64) -> Result<TableId, NoMemory>;

    /// Returns a table by its id.
    fn table(&self, id: TableId) -> &Table;

    /// Frees a table that nobody else can see.
    fn free(&self, id: TableId);

    /// Frees a table that can't be found any more, once all lookups that may have found it before
    /// are over.
    fn retire(&self, id: TableId);

    /// Returns the shared table that stands for a missing one at `level`, counted from the leaves.
    ///
    /// At level 0 all of its words are [`INVALID`](super::entry::INVALID), above they are the id of
    /// the missing table one level lower. It is never written and never freed.
    fn missing(&self, level: usize) -> TableId;
}
