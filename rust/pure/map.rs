// SPDX-License-Identifier: GPL-2.0

//! The maps of a domain: the P2M, and the M2P that is its inverse on the frames of the domain.
//!
//! The M2P alone proves nothing. Its entries may be stale for a moment, as a word of each map can't
//! be stored at once, so a frame is at a PFN only if the P2M says so too: `p2m[m2p[m]] == m`, as in
//! `mfn_to_pfn()` of `arch/x86/include/asm/xen/page.h`.

use super::entry::{Entry, GUARD, INVALID};
use super::frame::{Mfn, Pfn, PfnRange};
use super::sparse::{self, Leaf, Sparse, Watch};
use super::table::{NoMemory, TableId, TableStore, TABLE_WORDS};

/// Words of the header table, in the order of `struct p2m_header`.
pub mod header {
    /// Version of the ABI, and log2 of the page size in the high half.
    pub const VERSION: u64 = 0;
    /// Generation of the P2M.
    pub const GENERATION: u64 = 1;
    /// All populated PFNs are below this.
    pub const END_PFN: u64 = 2;
    /// All MFNs of the domain are below this.
    pub const END_MFN: u64 = 3;
    /// Generation of the M2P.
    pub const M2P_GENERATION: u64 = 4;
}

/// Which of the two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// From PFN to MFN.
    P2m,
    /// From MFN to PFN.
    M2p,
}

/// Is told when somebody who looks at a leaf from outside has to look again.
pub trait Views {
    /// The leaf of a map with the word at `index` was replaced by another one.
    ///
    /// It is called while the generation is odd. When it returns, nobody sees the old leaf.
    fn leaf_replaced(&self, which: Which, index: u64);

    /// There is something else at a PFN now.
    fn changed(&self, _pfn: Pfn, _old: Entry, _new: Entry) {}

    /// Returns whether anybody is told of changes, now. Who makes many asks once for each leaf.
    fn sees_changes(&self) -> bool {
        true
    }
}

/// Nobody looks from outside.
impl Views for () {
    fn leaf_replaced(&self, _: Which, _: u64) {}

    fn sees_changes(&self) -> bool {
        false
    }
}

/// Counts generations with Xen's rule (`p2m_generation` of `struct arch_shared_info`): a change of
/// the structure makes the number odd while it lasts and adds 2, a store of a value adds nothing.
struct Generation<'a, S, V> {
    store: &'a S,
    views: &'a V,
    header: TableId,
    which: Which,
}

impl<S: TableStore, V: Views> Generation<'_, S, V> {
    fn step(&self) {
        let header = self.store.table(self.header);
        let word = match self.which {
            Which::P2m => header::GENERATION,
            Which::M2p => header::M2P_GENERATION,
        };
        // The link that is stored next is stored with release order, hence seen after this.
        header.store(word, header.load(word).wrapping_add(1));
    }
}

impl<S: TableStore, V: Views> Watch for Generation<'_, S, V> {
    fn before(&self) {
        self.step();
    }

    fn leaf_replaced(&self, index: u64) {
        self.views.leaf_replaced(self.which, index);
    }

    fn after(&self) {
        self.step();
    }
}

/// The right to change the maps.
pub struct Writer {
    p2m: sparse::Writer,
    m2p: sparse::Writer,
    nr_frames: u64,
    nr_guards: u64,
}

impl Writer {
    /// Returns the number of tables of a map.
    pub fn nr_tables(&self, which: Which) -> u64 {
        match which {
            Which::P2m => self.p2m.nr_tables(),
            Which::M2p => self.m2p.nr_tables(),
        }
    }

    /// Returns the number of frames of the domain.
    pub fn nr_frames(&self) -> u64 {
        self.nr_frames
    }

    /// Returns the number of frames that are guards.
    pub fn nr_guards(&self) -> u64 {
        self.nr_guards
    }

    /// Returns the number of leaves that are folded, in both maps.
    pub fn nr_folded(&self) -> u64 {
        self.p2m.nr_folded().saturating_add(self.m2p.nr_folded())
    }

    /// Counts a frame that comes and one that goes, as far as they are the domain's.
    fn count(&mut self, old: Entry, new: Entry) {
        // OVERFLOW: There are far fewer than 2^64 frames, and one that goes was counted before.
        self.nr_frames += u64::from(new.owned().is_some());
        self.nr_frames -= u64::from(old.owned().is_some());
    }
}

/// A frame that has left the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It was the domain's, at a PFN.
    Frame(Mfn),
    /// It was the domain's, as a guard.
    Guard(Mfn),
    /// It is somebody else's.
    Foreign(Mfn),
}

impl Gone {
    /// Returns the frame.
    pub const fn mfn(self) -> Mfn {
        match self {
            Self::Frame(mfn) | Self::Guard(mfn) | Self::Foreign(mfn) => mfn,
        }
    }

    /// Returns what is `nr` frames further in the same run.
    fn advance(self, nr: u64) -> Option<Self> {
        let mfn = self.mfn().checked_add(nr)?;
        Some(match self {
            Self::Frame(_) => Self::Frame(mfn),
            Self::Guard(_) => Self::Guard(mfn),
            Self::Foreign(_) => Self::Foreign(mfn),
        })
    }
}

/// What an audit finds wrong. The names are those of Xen's `audit_p2m()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The M2P doesn't have this PFN at the frame that the P2M has there.
    BadP2m(u64),
    /// The P2M doesn't have this MFN at the PFN that the M2P has there.
    BadM2p(u64),
}

/// Why an entry can't be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// There is no memory for a table.
    NoMemory,
    /// The frame is at this PFN already, and can only be at one.
    Elsewhere(Pfn),
}

/// Returns the first number of those that a leaf has, of which `number` is one.
const fn superpage_start(number: u64) -> u64 {
    number & !(SUPERPAGE_PAGES - 1)
}

/// Returns whether all of the superpage at `start` is in a range.
fn is_within(start: u64, range: PfnRange) -> bool {
    range.start().get() <= start && start.saturating_add(SUPERPAGE_PAGES) <= range.end()
}

impl From<NoMemory> for SetError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Number of pages in a superpage: as many as a leaf has words.
pub const SUPERPAGE_PAGES: u64 = TABLE_WORDS as u64;

/// How many words of the M2P are looked at for each frame that leaves it, at most, to find them in
/// order. To find one by its number takes a little longer than that.
const MAX_WORDS_A_FRAME: u64 = 8;

/// How many words an audit looks at before it asks whether to go on.
pub const AUDIT_BATCH: u64 = 4096;

/// P2M and M2P of a domain.
///
/// Leaves of both can be [folded](super::sparse). Who changes single entries unfolds their leaves
/// first: by [`unfold()`](Self::unfold), which can fail, before what can't.
///
/// # Invariants
///
/// When no writer is at work, the P2M has [`Entry::Present`] of an MFN at a PFN if and only if the
/// M2P has the PFN at the MFN. So no frame is at two PFNs.
pub struct Maps {
    p2m: Sparse,
    m2p: Sparse,
    header: TableId,
}

impl Maps {
    /// Makes empty maps.
    pub fn new<S: TableStore>(store: &S) -> Result<(Self, Writer), NoMemory> {
        let header = store.alloc(0)?;
        let (p2m, p2m_writer) = Sparse::new(store);
        let (m2p, m2p_writer) = Sparse::new(store);
        // INVARIANT: Nothing is in either map.
        let maps = Self { p2m, m2p, header };
        let writer = Writer {
            p2m: p2m_writer,
            m2p: m2p_writer,
            nr_frames: 0,
            nr_guards: 0,
        };
        Ok((maps, writer))
    }

    /// Returns the id of the header table, of which the generations are kept up to date.
    pub fn header(&self) -> TableId {
        self.header
    }

    /// Returns the generation of a map.
    pub fn generation<S: TableStore>(&self, store: &S, which: Which) -> u64 {
        store.table(self.header).load(match which {
            Which::P2m => header::GENERATION,
            Which::M2p => header::M2P_GENERATION,
        })
    }

    /// Stores the word that says what the header is.
    pub fn set_version<S: TableStore>(&self, store: &S, version: u64) {
        store.table(self.header).store(header::VERSION, version);
    }

    /// Says that all populated PFNs are below `end`.
    pub fn set_end_pfn<S: TableStore>(&self, _: &mut Writer, store: &S, end: u64) {
        store.table(self.header).store(header::END_PFN, end);
    }

    /// Says that all MFNs of the domain are below `end`, or what was said before if that's more.
    pub fn raise_end_mfn<S: TableStore>(&self, _: &mut Writer, store: &S, end: u64) {
        let header = store.table(self.header);
        header.store(header::END_MFN, header.load(header::END_MFN).max(end));
    }

    /// Returns the number that all populated PFNs are below.
    pub fn end_pfn<S: TableStore>(&self, store: &S) -> u64 {
        store.table(self.header).load(header::END_PFN)
    }

    /// Returns what is at a PFN.
    #[inline]
    pub fn lookup<S: TableStore>(&self, store: &S, pfn: Pfn) -> Entry {
        Entry::from_raw(self.p2m.load(store, pfn.get()))
    }

    /// Copies the words of the P2M from `pfn` on.
    #[inline]
    pub fn lookup_run<S: TableStore>(&self, store: &S, pfn: u64, words: &mut [u64]) {
        self.p2m.load_run(store, pfn, words);
    }

    /// Returns the leaf of the P2M with the word at `pfn`, to look at many of them.
    #[inline]
    pub fn words<'a, S: TableStore>(&self, store: &'a S, pfn: Pfn) -> Leaf<'a> {
        self.p2m.words(store, pfn.get())
    }

    /// Returns the first PFN from `pfn` on at which there may be something.
    pub fn next_backed<S: TableStore>(&self, store: &S, pfn: Pfn) -> Option<Pfn> {
        Pfn::new(self.p2m.next_leaf(store, pfn.get())?)
    }

    /// Returns the PFN at which a frame of the domain is.
    // Always, as hooks do little else: a call of its own would make them noticeably slower.
    #[inline(always)]
    pub fn mfn_to_pfn<S: TableStore>(&self, store: &S, mfn: Mfn) -> Option<Pfn> {
        let pfn = Pfn::new(self.m2p.load(store, mfn.get()))?;
        // The word of `Entry::Present` is the number, and no other entry has that word.
        (self.p2m.load(store, pfn.get()) == mfn.get()).then_some(pfn)
    }

    fn map(&self, which: Which) -> &Sparse {
        match which {
            Which::P2m => &self.p2m,
            Which::M2p => &self.m2p,
        }
    }

    /// Returns whether the leaf of a map with the word at `index` is folded, so that there is no
    /// table to be looked at from outside.
    pub fn is_folded<S: TableStore>(&self, store: &S, which: Which, index: u64) -> bool {
        self.map(which).folded(store, index).is_some()
    }

    /// Makes a table of the leaf of a map with the word at `index`, if it's folded.
    pub fn unfold_leaf<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        which: Which,
        index: u64,
    ) -> Result<(), NoMemory> {
        let watch = self.watch(store, views, which);
        let writer = match which {
            Which::P2m => &mut writer.p2m,
            Which::M2p => &mut writer.m2p,
        };
        self.map(which).unfold(writer, store, &watch, index)
    }

    /// Returns the leaf of a map with the word at `index`: the shared missing one where there is
    /// none, or where it is folded.
    pub fn leaf<S: TableStore>(&self, store: &S, which: Which, index: u64) -> TableId {
        let leaf = self.map(which).leaf(store, index);
        leaf.unwrap_or_else(|| store.missing(0))
    }

    /// Returns whether both maps have leaves for a frame at a PFN: then to [set](Self::set) it, where
    /// nothing is, replaces none.
    pub fn has_leaves<S: TableStore>(&self, store: &S, pfn: Pfn, mfn: Mfn) -> bool {
        self.p2m.has_leaf(store, pfn.get()) && self.m2p.has_leaf(store, mfn.get())
    }

    fn watch<'a, S, V>(&self, store: &'a S, views: &'a V, which: Which) -> Generation<'a, S, V> {
        Generation {
            store,
            views,
            header: self.header,
            which,
        }
    }

    /// Puts `entry` at a PFN, in both maps, and returns what was there. Who replaces a frame of the
    /// domain owns it from then on.
    ///
    /// After an error the maps are as before.
    pub fn set<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        pfn: Pfn,
        entry: Entry,
    ) -> Result<Entry, SetError> {
        let old = self.set_without_pruning(writer, store, views, pfn, entry)?;
        if let Some(mfn) = old.owned().filter(|_| old != entry) {
            // Nobody else would: it is found by what is in the P2M.
            self.prune_m2p(writer, store, views, mfn, mfn);
        }
        Ok(old)
    }

    /// Does the same, but leaves it to the caller to [prune](Self::prune_frames) what was there: once
    /// for many frames, as to look at all of a table takes longer than all else here.
    pub fn set_without_pruning<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        pfn: Pfn,
        entry: Entry,
    ) -> Result<Entry, SetError> {
        let old = self.lookup(store, pfn);
        if old == entry {
            return Ok(old);
        }
        if let Some(mfn) = old.owned() {
            // Then it can be taken out of the M2P.
            self.unfold_leaf(writer, store, views, Which::M2p, mfn.get())?;
        }
        if let Some(mfn) = entry.owned() {
            if let Some(elsewhere) = self.mfn_to_pfn(store, mfn) {
                return Err(SetError::Elsewhere(elsewhere));
            }
            let watch = self.watch(store, views, Which::M2p);
            self.m2p
                .store(&mut writer.m2p, store, &watch, mfn.get(), pfn.get())?;
        }
        let watch = self.watch(store, views, Which::P2m);
        let stored = self
            .p2m
            .store(&mut writer.p2m, store, &watch, pfn.get(), entry.raw());

        // INVARIANT: The frame that isn't at the PFN leaves the M2P: the old one after success, the
        // new one after an error.
        let gone = match stored {
            Ok(()) => old,
            Err(NoMemory) => entry,
        };
        if let Some(mfn) = gone.owned() {
            self.forget(&mut writer.m2p, store, views, mfn);
            if stored.is_err() {
                self.prune_m2p(writer, store, views, mfn, mfn);
            }
        }
        stored?;
        writer.count(old, entry);
        views.changed(pfn, old, entry);
        Ok(old)
    }

    /// Makes the tables that [`replace()`](Self::replace) needs for frames from `first` to `last`,
    /// until they are [pruned](Self::prune_frames).
    pub fn reserve_frames<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        (first, last): (Mfn, Mfn),
    ) -> Result<(), NoMemory> {
        let watch = self.watch(store, views, Which::M2p);
        let mut number = first.get();
        while number <= last.get() {
            let reserved = self.m2p.reserve(&mut writer.m2p, store, &watch, number);
            if reserved.is_err() {
                self.prune_m2p(writer, store, views, first, last);
                return reserved;
            }
            // The first one that has another table.
            number = (number | (TABLE_WORDS as u64 - 1)) + 1;
        }
        Ok(())
    }

    /// Unfolds the leaves of all PFNs of a range, and of the frames there; or with `but_whole` only
    /// those that have something outside of the range, too.
    ///
    /// After an error the entries are as before.
    pub fn unfold<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        range: PfnRange,
        but_whole: bool,
    ) -> Result<(), NoMemory> {
        if writer.nr_folded() == 0 {
            return Ok(());
        }
        let stays = |start| but_whole && is_within(start, range);
        let mut leaf = None;
        for pfn in range.iter() {
            let start = superpage_start(pfn.get());
            if (pfn == range.start() || start == pfn.get()) && !stays(start) {
                self.unfold_leaf(writer, store, views, Which::P2m, start)?;
            }
            let Some(mfn) = self.lookup(store, pfn).owned() else {
                continue;
            };
            // Frames of the same leaf tend to be next to each other.
            if leaf.replace(superpage_start(mfn.get())) == leaf {
                continue;
            }
            match self.m2p.folded(store, mfn.get()) {
                Some(start) if !stays(start) => {
                    self.unfold_leaf(writer, store, views, Which::M2p, mfn.get())?;
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Folds the leaves of the superpages of a range.
    pub fn fold<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        range: PfnRange,
    ) {
        let mut start = range.start().get().next_multiple_of(SUPERPAGE_PAGES);
        while is_within(start, range) {
            let mfn = Pfn::new(start).and_then(|pfn| self.superpage(store, pfn));
            if let Some(mfn) = mfn {
                let watch = self.watch(store, views, Which::M2p);
                self.m2p.fold(&mut writer.m2p, store, &watch, mfn.get());
                let watch = self.watch(store, views, Which::P2m);
                self.p2m.fold(&mut writer.p2m, store, &watch, start);
            }
            // OVERFLOW: It is in a range of PFNs.
            start += SUPERPAGE_PAGES;
        }
    }

    /// Returns the first frame of the superpage that `pfn` is in, if there is one: frames of the
    /// domain that follow each other, both they and their PFNs aligned to their number.
    pub fn superpage<S: TableStore>(&self, store: &S, pfn: Pfn) -> Option<Mfn> {
        let start = superpage_start(pfn.get());
        let first = self.lookup(store, Pfn::new(start)?).owned()?;
        if superpage_start(first.get()) != first.get() {
            return None;
        }
        let is_run = match self.p2m.folded(store, start) {
            Some(number) => number == first.get(),
            None => store
                .table(self.leaf(store, Which::P2m, start))
                .is_run(first.get()),
        };
        is_run.then_some(first)
    }

    /// Puts a superpage at the PFNs from `pfn` on, both aligned to the number of its pages, and
    /// passes what was there to `release`. None of its frames is anywhere yet, and what is there are
    /// frames of the domain or nothing.
    ///
    /// After an error the entries are as before.
    pub fn set_superpage<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        (range, first): (PfnRange, Mfn),
        mut release: impl FnMut(Gone),
    ) -> Result<(), NoMemory> {
        let start = range.start().get();
        self.unfold(writer, store, views, range, true)?;
        let watch = self.watch(store, views, Which::M2p);
        self.m2p
            .reserve_link(&mut writer.m2p, store, &watch, first.get())?;
        let watch = self.watch(store, views, Which::P2m);
        let reserved = self.p2m.reserve_link(&mut writer.p2m, store, &watch, start);
        if reserved.is_err() {
            self.prune_m2p(writer, store, views, first, first);
            return reserved;
        }

        // Now nothing can go wrong any more.
        let Writer {
            p2m,
            m2p,
            nr_frames,
            ..
        } = writer;
        let watch = self.watch(store, views, Which::M2p);
        self.m2p
            .replace_run(m2p, store, &watch, first.get(), Some(start), |_, _| ());
        let mut span: Option<(Mfn, Mfn)> = None;
        let watch = self.watch(store, views, Which::P2m);
        let run = Some(first.get());
        self.p2m
            .replace_run(p2m, store, &watch, start, run, |at, word| {
                let old = Entry::from_raw(word);
                // OVERFLOW: There are far fewer than 2^64 frames, and one that goes was counted before.
                *nr_frames += 1;
                if let Some(mfn) = old.owned() {
                    *nr_frames -= 1;
                    self.forget_within(m2p, store, views, mfn, range);
                    let (low, high) = span.unwrap_or((mfn, mfn));
                    span = Some((low.min(mfn), high.max(mfn)));
                }
                // OVERFLOW: The index isn't before the first one of the leaf.
                let new = first.checked_add(at - start).map(Entry::Present);
                if let (Some(pfn), Some(new)) = (Pfn::new(at), new) {
                    views.changed(pfn, old, new);
                }
                if let Some(mfn) = old.owned() {
                    release(Gone::Frame(mfn));
                }
            });
        if let Some(span) = span {
            self.prune_frames(writer, store, views, span);
        }
        Ok(())
    }

    /// Puts a frame for which there is a table in the place of another one. It can't fail, and
    /// returns the old one, if there was one to be replaced. Neither leaf is folded.
    pub fn replace<S: TableStore, V: Views>(
        &self,
        _: &mut Writer,
        store: &S,
        views: &V,
        pfn: Pfn,
        mfn: Mfn,
    ) -> Option<Mfn> {
        let old = self.lookup(store, pfn);
        let old_mfn = old.owned()?;
        let new = Entry::Present(mfn);
        self.m2p.replace(store, mfn.get(), pfn.get());
        self.p2m.replace(store, pfn.get(), new.raw());
        self.m2p.replace(store, old_mfn.get(), INVALID);
        views.changed(pfn, old, new);
        Some(old_mfn)
    }

    /// Gives back tables for frames from `first` to `last`, and for guards next to them, that hold
    /// nothing any more.
    pub fn prune_frames<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        (first, last): (Mfn, Mfn),
    ) {
        let first = Mfn::new(first.get().saturating_sub(1)).unwrap_or(first);
        let last = last.checked_add(1).unwrap_or(last);
        self.prune_m2p(writer, store, views, first, last);
    }

    /// Exchanges the frames of two PFNs, if both have one. It needs no table, so it can't fail. No
    /// leaf of theirs is folded.
    pub fn exchange<S: TableStore, V: Views>(
        &self,
        _: &mut Writer,
        store: &S,
        views: &V,
        (a, b): (Pfn, Pfn),
    ) {
        let (at_a, at_b) = (self.lookup(store, a), self.lookup(store, b));
        if a == b || at_a.owned().is_none() || at_b.owned().is_none() {
            return;
        }
        for (pfn, old, new) in [(a, at_a, at_b), (b, at_b, at_a)] {
            // Both maps have leaves for what is there.
            self.p2m.replace(store, pfn.get(), new.raw());
            if let Some(mfn) = new.owned() {
                self.m2p.replace(store, mfn.get(), pfn.get());
            }
            views.changed(pfn, old, new);
        }
    }

    /// Makes a frame that is at no PFN a guard of its neighbours.
    pub fn set_guard<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        mfn: Mfn,
    ) -> Result<(), NoMemory> {
        let watch = self.watch(store, views, Which::M2p);
        self.m2p
            .store(&mut writer.m2p, store, &watch, mfn.get(), GUARD)?;
        // OVERFLOW: There are far fewer than 2^64 frames.
        writer.nr_guards += 1;
        Ok(())
    }

    /// Returns whether a frame is a guard.
    pub fn is_guard<S: TableStore>(&self, store: &S, mfn: Mfn) -> bool {
        self.m2p.load(store, mfn.get()) == GUARD
    }

    /// Returns whether a frame of the domain is next to `mfn`.
    pub fn has_neighbour<S: TableStore>(&self, store: &S, mfn: Mfn) -> bool {
        let sides = [mfn.get().checked_sub(1), mfn.get().checked_add(1)];
        let mut sides = sides.into_iter().flatten().filter_map(Mfn::new);
        sides.any(|side| self.mfn_to_pfn(store, side).is_some())
    }

    /// After a frame has gone, takes the guards next to it out that guard nothing any more, and
    /// passes them to `release`.
    pub fn drop_guards<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        mfn: Mfn,
        release: impl FnMut(Mfn),
    ) {
        let Writer { m2p, nr_guards, .. } = writer;
        self.drop_guards_of((m2p, nr_guards), store, views, mfn, release);
    }

    fn drop_guards_of<S: TableStore, V: Views>(
        &self,
        (writer, nr_guards): (&mut sparse::Writer, &mut u64),
        store: &S,
        views: &V,
        mfn: Mfn,
        mut release: impl FnMut(Mfn),
    ) {
        if *nr_guards == 0 {
            return;
        }
        let sides = [mfn.get().checked_sub(1), mfn.get().checked_add(1)];
        for side in sides.into_iter().flatten().filter_map(Mfn::new) {
            if self.is_guard(store, side) && !self.has_neighbour(store, side) {
                self.forget(writer, store, views, side);
                // OVERFLOW: The guard was counted when it was made.
                *nr_guards -= 1;
                release(side);
            }
        }
    }

    /// Takes a frame out of the M2P.
    fn forget<S: TableStore, V: Views>(
        &self,
        writer: &mut sparse::Writer,
        store: &S,
        views: &V,
        mfn: Mfn,
    ) {
        let watch = self.watch(store, views, Which::M2p);
        // Storing `INVALID` where no leaf is folded needs no table, so it can't fail.
        let _ = self.m2p.store(writer, store, &watch, mfn.get(), INVALID);
    }

    /// Takes a frame out of the M2P which leaves a range of PFNs, as all that were there do. If its
    /// leaf is folded, they are in that range, and all of the leaf goes.
    fn forget_within<S: TableStore, V: Views>(
        &self,
        writer: &mut sparse::Writer,
        store: &S,
        views: &V,
        mfn: Mfn,
        range: PfnRange,
    ) {
        let watch = self.watch(store, views, Which::M2p);
        match self.m2p.folded(store, mfn.get()) {
            Some(start) if is_within(start, range) => {
                self.m2p
                    .replace_run(writer, store, &watch, mfn.get(), None, |_, _| ());
            }
            // It isn't folded, and then storing `INVALID` needs no table.
            _ => {
                let _ = self.m2p.store(writer, store, &watch, mfn.get(), INVALID);
            }
        }
    }

    fn prune_m2p<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        first: Mfn,
        last: Mfn,
    ) {
        let watch = self.watch(store, views, Which::M2p);
        self.m2p
            .prune(&mut writer.m2p, store, &watch, first.get(), last.get());
    }

    /// Empties a range in both maps, passing each frame that goes to `release`, in the order of PFNs,
    /// and gives back the tables that hold nothing any more.
    ///
    /// As [`clear_runs()`](Self::clear_runs), frame by frame.
    pub fn clear<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        range: PfnRange,
        mut release: impl FnMut(Gone),
    ) {
        self.clear_by(Which::P2m, writer, store, views, range, |gone, nr| {
            (0..nr)
                .filter_map(|at| gone.advance(at))
                .for_each(&mut release);
        });
    }

    /// Empties a range in both maps, passing runs of frames that go to `release`, as long as frames
    /// follow each other: the first one, and how many there are. Guards that guard nothing any more
    /// come after the run that they are next to. Gives back the tables that hold nothing any more.
    ///
    /// Leaves go as a whole where they can. A frame has left the P2M before it leaves the M2P, and both
    /// before it's passed to `release`. Runs come in the order of MFNs, where the M2P has little else:
    /// so those of a scattered range are as long as can be, and whoever takes frames back finds their
    /// neighbours. Else they come in the order of PFNs.
    ///
    /// It can't fail. No leaf is folded that has something outside of the range, too:
    /// [`unfold()`](Self::unfold) sees to that. What is in one that is stays there.
    pub fn clear_runs<S: TableStore, V: Views>(
        &self,
        writer: &mut Writer,
        store: &S,
        views: &V,
        range: PfnRange,
        release: impl FnMut(Gone, u64),
    ) {
        let nr_frames = range.nr_pages().min(writer.nr_frames);
        // OVERFLOW: There are far fewer tables and frames than 2^50.
        let nr_words = writer.m2p.nr_tables() * TABLE_WORDS as u64;
        let by = match nr_words <= nr_frames * MAX_WORDS_A_FRAME {
            true => Which::M2p,
            false => Which::P2m,
        };
        self.clear_by(by, writer, store, views, range, release);
    }

    /// Empties a range as [`clear_runs()`](Self::clear_runs) does, in the order of a map.
    fn clear_by<S: TableStore, V: Views>(
        &self,
        by: Which,
        writer: &mut Writer,
        store: &S,
        views: &V,
        range: PfnRange,
        release: impl FnMut(Gone, u64),
    ) {
        let Writer {
            p2m,
            m2p,
            nr_frames,
            nr_guards,
        } = writer;
        let mut leaving = Leaving {
            maps: self,
            store,
            views,
            by,
            m2p,
            nr_frames,
            nr_guards,
            run: None,
            span: None,
            release,
        };
        let mut next = Some(range.start().get());
        while let Some(start) = next {
            // Where there is no leaf, there is nothing to be taken out.
            let Some(start) = self.p2m.next_leaf(store, start) else {
                break;
            };
            // OVERFLOW: It is in the space of PFNs, of which a leaf ends with the last one.
            let end = range.end().min(superpage_start(start) + SUPERPAGE_PAGES);
            if start >= end {
                break;
            }
            let watch = self.watch(store, views, Which::P2m);
            let part = (start, end - start);
            let sees_changes = views.sees_changes();
            self.p2m.take_run(p2m, store, &watch, part, |at, word| {
                leaving.add(at, word, sees_changes);
            });
            next = (end < range.end()).then_some(end);
        }
        leaving.leave_m2p(range);
        if let Some(span) = leaving.span {
            self.prune_frames(writer, store, views, span);
        }
        let watch = self.watch(store, views, Which::P2m);
        // OVERFLOW: A range isn't empty.
        let last = range.end() - 1;
        self.p2m
            .prune(&mut writer.p2m, store, &watch, range.start().get(), last);
    }

    /// Returns the first frame of the domain from `mfn` on and below `end`, and where it is.
    pub fn next_frame<S: TableStore>(&self, store: &S, mfn: Mfn, end: u64) -> Option<(Mfn, Pfn)> {
        let mut number = mfn.get();
        loop {
            number = self.m2p.next_leaf(store, number)?;
            if number >= end {
                return None;
            }
            let mfn = Mfn::new(number)?;
            if let Some(pfn) = self.mfn_to_pfn(store, mfn) {
                return Some((mfn, pfn));
            }
            // OVERFLOW: An MFN is below `Mfn::LIMIT`.
            number += 1;
        }
    }

    /// Checks that the maps are inverse to each other, and passes what is wrong to `report`. It
    /// changes nothing. Writers are excluded.
    ///
    /// Returns how many PFNs have a frame of the domain.
    pub fn audit<S: TableStore>(&self, store: &S, report: impl FnMut(Finding)) -> u64 {
        let nr_frames = self.audit_while(store, report, || true);
        nr_frames.unwrap_or_default()
    }

    /// As [`audit()`](Self::audit), as long as `goes_on` says so, which is asked now and then.
    pub fn audit_while<S: TableStore>(
        &self,
        store: &S,
        mut report: impl FnMut(Finding),
        mut goes_on: impl FnMut() -> bool,
    ) -> Option<u64> {
        let mut nr_looked = 0u64;
        let mut goes_on_now = || {
            // OVERFLOW: There are far fewer than 2^64 words.
            nr_looked += 1;
            nr_looked % AUDIT_BATCH != 0 || goes_on()
        };
        let mut nr_frames = 0;
        let mut next = self.p2m.next_leaf(store, 0);
        while let Some(number) = next {
            if !goes_on_now() {
                return None;
            }
            let Some(pfn) = Pfn::new(number) else {
                report(Finding::BadP2m(number));
                break;
            };
            if let Some(mfn) = self.lookup(store, pfn).owned() {
                nr_frames += 1;
                if self.m2p.load(store, mfn.get()) != number {
                    report(Finding::BadP2m(number));
                }
            }
            next = self.p2m.next_leaf(store, number + 1);
        }
        let mut next = self.m2p.next_leaf(store, 0);
        while let Some(number) = next {
            if !goes_on_now() {
                return None;
            }
            let word = self.m2p.load(store, number);
            let there = Pfn::new(word).map(|pfn| self.lookup(store, pfn));
            let mfn = there.and_then(Entry::owned);
            let is_good = match word {
                INVALID => true,
                GUARD => Mfn::new(number).is_some_and(|mfn| self.has_neighbour(store, mfn)),
                _ => mfn.map(Mfn::get) == Some(number),
            };
            if !is_good {
                report(Finding::BadM2p(number));
            }
            next = self.m2p.next_leaf(store, number + 1);
        }
        Some(nr_frames)
    }

    /// Frees all tables. Frames that are still in the maps are the caller's affair.
    ///
    /// It's the last that is done with the maps.
    pub fn destroy<S: TableStore>(&mut self, writer: &mut Writer, store: &S) {
        self.p2m.clear(&mut writer.p2m, store);
        self.m2p.clear(&mut writer.m2p, store);
        store.free(self.header);
    }
}

/// Frames that have left the P2M, joined to runs as long as they follow each other.
struct Leaving<'a, S, V, F> {
    maps: &'a Maps,
    store: &'a S,
    views: &'a V,
    /// By which map: by the P2M, frames leave the M2P as they come. By the M2P, they do in the end.
    by: Which,
    m2p: &'a mut sparse::Writer,
    nr_frames: &'a mut u64,
    nr_guards: &'a mut u64,
    /// Frames that were not released yet: the first one, and how many there are.
    run: Option<(Mfn, u64)>,
    /// The first and the last of all frames.
    span: Option<(Mfn, Mfn)>,
    release: F,
}

impl<S: TableStore, V: Views, F: FnMut(Gone, u64)> Leaving<'_, S, V, F> {
    /// Adds what has left the P2M at the index `at`.
    #[inline]
    fn add(&mut self, at: u64, word: u64, sees_changes: bool) {
        if word == INVALID {
            return;
        }
        let entry = Entry::from_raw(word);
        if sees_changes {
            if let Some(pfn) = Pfn::new(at) {
                self.views.changed(pfn, entry, Entry::Invalid);
            }
        }
        match entry {
            Entry::Present(mfn) => match self.by {
                Which::P2m => self.add_frame(mfn),
                Which::M2p => self.add_to_span(mfn, mfn),
            },
            Entry::Foreign(mfn) => {
                self.flush();
                (self.release)(Gone::Foreign(mfn), 1);
            }
            Entry::Identity(_) | Entry::Invalid => (),
        }
    }

    #[inline]
    fn add_to_span(&mut self, first: Mfn, last: Mfn) {
        let (low, high) = self.span.unwrap_or((first, last));
        self.span = Some((low.min(first), high.max(last)));
    }

    /// Adds a frame to the run.
    #[inline]
    fn add_frame(&mut self, mfn: Mfn) {
        match &mut self.run {
            // OVERFLOW: A run ends with the last frame, at the latest.
            Some((first, nr)) if first.get() + *nr == mfn.get() => *nr += 1,
            _ => {
                self.flush();
                self.run = Some((mfn, 1));
            }
        }
    }

    /// Has all frames that are still in the M2P leave it: the M2P has them at the PFNs of a range.
    fn leave_m2p(&mut self, range: PfnRange) {
        if let (Which::M2p, Some((first, last))) = (self.by, self.span) {
            let (maps, store) = (self.maps, self.store);
            let mut next = maps.m2p.next_leaf(store, first.get());
            while let Some(number) = next.filter(|&number| number <= last.get()) {
                let start = superpage_start(number);
                self.leave_leaf(start, range);
                next = maps.m2p.next_leaf(store, start + SUPERPAGE_PAGES);
            }
        }
        self.flush();
    }

    /// Has the frames of a leaf of the M2P leave it that are at the PFNs of a range.
    fn leave_leaf(&mut self, start: u64, range: PfnRange) {
        let (maps, store) = (self.maps, self.store);
        match maps.m2p.words(store, start) {
            Leaf::Missing => (),
            Leaf::Run(pfn) if !is_within(pfn, range) => (),
            Leaf::Run(_) => {
                let watch = maps.watch(store, self.views, Which::M2p);
                let all = (start, SUPERPAGE_PAGES);
                maps.m2p.clear_run(self.m2p, store, &watch, all);
                for number in start..start + SUPERPAGE_PAGES {
                    Mfn::new(number)
                        .into_iter()
                        .for_each(|mfn| self.add_frame(mfn));
                }
            }
            Leaf::Table(leaf) => {
                let pfns = range.start().get()..range.end();
                leaf.take_if(
                    |pfn| pfns.contains(&pfn),
                    |at| {
                        // OVERFLOW: The leaf has frames.
                        Mfn::new(start + at)
                            .into_iter()
                            .for_each(|mfn| self.add_frame(mfn));
                    },
                );
            }
        }
    }

    /// Takes the run out of the M2P, if it's still there, and releases it.
    fn flush(&mut self) {
        let Some((first, nr)) = self.run.take() else {
            return;
        };
        let (maps, store, views) = (self.maps, self.store, self.views);
        // OVERFLOW: A run isn't empty.
        let last = first.checked_add(nr - 1).unwrap_or(first);
        if self.by == Which::P2m {
            let watch = maps.watch(store, views, Which::M2p);
            let run = (first.get(), nr);
            maps.m2p.clear_run(self.m2p, store, &watch, run);
            self.add_to_span(first, last);
        }
        // OVERFLOW: Frames that go were counted before.
        *self.nr_frames -= nr;

        let release = &mut self.release;
        release(Gone::Frame(first), nr);
        // Within a run there are none.
        for mfn in [first, last] {
            let guards = (&mut *self.m2p, &mut *self.nr_guards);
            maps.drop_guards_of(guards, store, views, mfn, |mfn| {
                release(Gone::Guard(mfn), 1);
            });
        }
    }
}
