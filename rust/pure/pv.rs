// SPDX-License-Identifier: GPL-2.0

//! Backends: sets of hooks between page-table code, which knows only pseudo-physical addresses, and
//! page tables, which a processor walks.
//!
//! The hooks have the names and shapes of `struct pv_mmu_ops` in
//! `arch/x86/include/asm/paravirt_types.h`. One that a backend doesn't have falls back to native.
//!
//! | hooks | what they do |
//! |---|---|
//! | `pte_val` .. `pgd_val` | translate what is in a table into what the kernel means |
//! | `make_pte` .. `make_pgd` | translate what the kernel means into what is in a table |
//! | `set_pte` .. `set_pgd` | store a translated entry, perhaps later |
//! | `ptep_modify_prot_*` | change an entry that a processor may set bits in meanwhile |
//! | `alloc_pte` .. `release_pgd` | tell that a page is, or is no more, a table |
//! | `flush_tlb_*`, `write_cr3` | act on the processor |
//! | `lazy_mode_flush` | carry out what was put off |
//!
//! With four levels the top one is `p4d`, folded into the `pgd`, as in Linux.

use super::entry::Entry;
use super::frame::{Mfn, Pfn, PAGE_SHIFT, PAGE_SIZE};
use super::table::{Table, TABLE_BITS};

/// Bits of a page table entry (AMD64 manual, volume 2, 5.4).
pub mod bits {
    /// The entry translates something.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes are allowed.
    pub const RW: u64 = 1 << 1;
    /// User mode may use it.
    pub const USER: u64 = 1 << 2;
    /// Write-through caching.
    pub const PWT: u64 = 1 << 3;
    /// No caching.
    pub const PCD: u64 = 1 << 4;
    /// The processor used it.
    pub const ACCESSED: u64 = 1 << 5;
    /// The processor wrote through it.
    pub const DIRTY: u64 = 1 << 6;
    /// A leaf, above the lowest level.
    pub const PSE: u64 = 1 << 7;
    /// Selects a memory type, at the lowest level.
    pub const PAT: u64 = 1 << 7;
    /// Stays in the TLB when the tables are exchanged.
    pub const GLOBAL: u64 = 1 << 8;
    /// A bit that the processor ignores: the leaf is about to get another frame, and meanwhile holds
    /// what the kernel means, without `PRESENT`.
    pub const SUSPENDED: u64 = 1 << 9;
    /// Selects a memory type, in a leaf above the lowest level.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// Instructions can't be fetched.
    pub const NX: u64 = 1 << 63;
    /// The frame number.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
}

/// Number of levels that page tables have at most.
pub const MAX_LEVELS: usize = 5;

/// Returns the number of pages that an entry at `level` stands for.
#[inline]
pub const fn span_pages(level: usize) -> u64 {
    1 << (TABLE_BITS as usize * level)
}

/// Returns whether an entry at `level` is a leaf, if it's present.
#[inline]
pub const fn is_leaf(level: usize, word: u64) -> bool {
    level == 0 || word & bits::PSE != 0
}

/// Returns the bits of an entry that are its frame number.
///
/// A large leaf has fewer of them, and bit 12 isn't one: it is `PAT_LARGE`.
#[inline]
pub const fn frame_mask(level: usize, word: u64) -> u64 {
    if level > 0 && is_leaf(level, word) {
        bits::FRAME & !((span_pages(level) << PAGE_SHIFT) - 1)
    } else {
        bits::FRAME
    }
}

/// Returns the frame number of an entry, whatever kind of frame that is.
#[inline]
pub const fn frame(level: usize, word: u64) -> u64 {
    (word & frame_mask(level, word)) >> PAGE_SHIFT
}

/// A table that can't be made what a backend wants it to be, as somebody else has the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The machine below the backends, as a domain sees it.
pub trait Machine {
    /// Returns what is at a PFN, which may be any number.
    fn entry(&self, pfn: u64) -> Entry;

    /// Stores the [words](Entry::raw) of what is at the PFNs from `pfn` on.
    ///
    /// Who has them in a table can copy them.
    fn entries(&self, pfn: u64, words: &mut [u64]) {
        for (nr, word) in (0..).zip(words) {
            let entry = pfn.checked_add(nr).map(|pfn| self.entry(pfn));
            *word = entry.unwrap_or(Entry::Invalid).raw();
        }
    }

    /// Returns the PFN at which a frame of the domain is.
    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn>;

    /// Returns whether `nr_pages` PFNs from `pfn` on are one run of frames, all of one kind.
    ///
    /// Who knows it without looking at each can say so: a leaf of 1 GiB has 262144 of them.
    fn is_run(&self, pfn: Pfn, nr_pages: u64) -> bool {
        let first = self.entry(pfn.get());
        first.mfn().is_some()
            && (1..nr_pages).all(|nr| {
                let entry = pfn.get().checked_add(nr).map(|pfn| self.entry(pfn));
                entry.is_some() && first.advance(nr) == entry
            })
    }

    /// Returns the page at a PFN as a table, as `phys_to_virt()` does.
    fn table(&self, pfn: Pfn) -> Option<&Table>;

    /// Makes a page read-only to all who have mapped it, and zeroes it, so that nothing is left of
    /// what they wrote until then.
    fn protect(&self, pfn: Pfn) -> Result<(), Busy>;

    /// Undoes [`protect()`](Self::protect).
    fn unprotect(&self, pfn: Pfn);

    /// Forgets translations of addresses from `start` to before `end`.
    fn flush_tlb(&self, start: u64, end: u64);

    /// Loads the root of page tables.
    fn load_cr3(&self, cr3: u64);
}

macro_rules! entry_types {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub u64);
    )*};
}

entry_types! {
    /// An entry of the lowest level, as it is in a table.
    Pte;
    /// An entry of level 1, as it is in a table.
    Pmd;
    /// An entry of level 2, as it is in a table.
    Pud;
    /// An entry of level 3, as it is in a table.
    P4d;
    /// An entry of level 4, as it is in a table.
    Pgd;
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The page that is the table.
    pub table: Pfn,
    /// Number of the entry in the table.
    pub index: u64,
}

/// How many stores are put off at most, as `MC_BATCH` of `arch/x86/xen/multicalls.c`.
pub const LAZY_BATCH: usize = 32;

/// Stores that are put off in lazy mode.
///
/// The contract is that of `lazy_mmu_mode_enable()` in `include/linux/pgtable.h`. It nests, and
/// leaving it at any depth makes the stores. It can be paused, which makes the stores, too, and until
/// it's resumed, entering and leaving have no effect. What is read from a table in lazy mode may be
/// old.
pub struct Lazy {
    depth: u32,
    paused: u32,
    queue: [(Slot, u64); LAZY_BATCH],
    len: usize,
}

impl Default for Lazy {
    fn default() -> Self {
        Self::new()
    }
}

impl Lazy {
    /// Makes an empty queue, out of lazy mode.
    pub const fn new() -> Self {
        let nowhere = Slot {
            table: Pfn::ZERO,
            index: 0,
        };
        Self {
            depth: 0,
            paused: 0,
            queue: [(nowhere, 0); LAZY_BATCH],
            len: 0,
        }
    }

    /// Returns whether stores are put off now.
    pub fn is_active(&self) -> bool {
        self.depth > 0 && self.paused == 0
    }

    /// Returns how many stores are put off.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no store is put off.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a store off, after those that were put off before.
    fn push(&mut self, machine: &dyn Machine, slot: Slot, word: u64) {
        if self.len == LAZY_BATCH {
            self.flush(machine);
        }
        if let Some(place) = self.queue.get_mut(self.len) {
            *place = (slot, word);
            // OVERFLOW: It's smaller than `LAZY_BATCH`.
            self.len += 1;
        }
    }

    /// Makes the stores, in order.
    fn flush(&mut self, machine: &dyn Machine) {
        for &(slot, word) in self.queue.iter().take(self.len) {
            native_set(machine, slot, word);
        }
        self.len = 0;
    }
}

/// What hooks that change something work on.
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a dyn Machine,
    /// Stores that are put off.
    pub lazy: &'a mut Lazy,
}

impl Context<'_> {
    /// Enters lazy mode, once more.
    pub fn enable_lazy_mode(&mut self) {
        if self.lazy.paused == 0 {
            self.lazy.depth = self.lazy.depth.saturating_add(1);
        }
    }

    /// Leaves lazy mode, once. All stores are made.
    pub fn disable_lazy_mode(&mut self, ops: &dyn MmuOps) {
        if self.lazy.paused == 0 {
            ops.lazy_mode_flush(self);
            self.lazy.depth = self.lazy.depth.saturating_sub(1);
        }
    }

    /// Stops putting stores off until [`resume_lazy_mode()`](Self::resume_lazy_mode). All stores
    /// are made.
    pub fn pause_lazy_mode(&mut self, ops: &dyn MmuOps) {
        ops.lazy_mode_flush(self);
        self.lazy.paused = self.lazy.paused.saturating_add(1);
    }

    /// Puts stores off again.
    pub fn resume_lazy_mode(&mut self) {
        self.lazy.paused = self.lazy.paused.saturating_sub(1);
    }
}

fn native_set(machine: &dyn Machine, slot: Slot, word: u64) {
    if let Some(table) = machine.table(slot.table) {
        table.store(slot.index, word);
    }
}

/// Stores entries from `slot` on, as far as they are in the table.
fn native_set_run(machine: &dyn Machine, slot: Slot, words: &[u64]) {
    if let Some(table) = machine.table(slot.table) {
        table.store_run(slot.index, words);
    }
}

fn native_get(machine: &dyn Machine, slot: Slot) -> u64 {
    machine
        .table(slot.table)
        .map_or(0, |table| table.load(slot.index))
}

/// A set of hooks. What a backend doesn't define is native.
pub trait MmuOps: Sync {
    /// The name of the backend.
    fn name(&self) -> &'static str;

    /// Returns whether what is in a table depends on which frames are at PFNs.
    fn translates(&self) -> bool {
        false
    }

    /// Returns whether the run of pages that begins at `pfn` can be a leaf at `level`.
    ///
    /// Xen has no such hook, and no large pages in its paravirtualised guests.
    fn can_be_leaf(&self, _: &dyn Machine, _level: usize, _pfn: Pfn) -> bool {
        true
    }

    /// Translates an entry of level 0 for the kernel.
    fn pte_val(&self, _: &dyn Machine, pte: Pte) -> u64 {
        pte.0
    }
    /// Makes an entry of level 0.
    fn make_pte(&self, _: &dyn Machine, val: u64) -> Pte {
        Pte(val)
    }
    /// Makes entries of level 0 with the same flags for the PFNs from `pfn` on.
    ///
    /// Entries of neighbours are made without arithmetic on machine frames, unlike what the kernel's
    /// `set_ptes()` does natively.
    fn make_ptes(&self, machine: &dyn Machine, pfn: Pfn, flags: u64, words: &mut [u64]) {
        let mut val = (pfn.get() << PAGE_SHIFT) | flags;
        for word in words {
            *word = self.make_pte(machine, val).0;
            // A frame number has room for those of all PFNs.
            val = val.wrapping_add(PAGE_SIZE as u64);
        }
    }
    /// Translates an entry of level 1 for the kernel.
    fn pmd_val(&self, _: &dyn Machine, pmd: Pmd) -> u64 {
        pmd.0
    }
    /// Makes an entry of level 1.
    fn make_pmd(&self, _: &dyn Machine, val: u64) -> Pmd {
        Pmd(val)
    }
    /// Translates an entry of level 2 for the kernel.
    fn pud_val(&self, _: &dyn Machine, pud: Pud) -> u64 {
        pud.0
    }
    /// Makes an entry of level 2.
    fn make_pud(&self, _: &dyn Machine, val: u64) -> Pud {
        Pud(val)
    }
    /// Translates an entry of level 3 for the kernel.
    fn p4d_val(&self, _: &dyn Machine, p4d: P4d) -> u64 {
        p4d.0
    }
    /// Makes an entry of level 3.
    fn make_p4d(&self, _: &dyn Machine, val: u64) -> P4d {
        P4d(val)
    }
    /// Translates an entry of level 4 for the kernel.
    fn pgd_val(&self, _: &dyn Machine, pgd: Pgd) -> u64 {
        pgd.0
    }
    /// Makes an entry of level 4.
    fn make_pgd(&self, _: &dyn Machine, val: u64) -> Pgd {
        Pgd(val)
    }

    /// Stores an entry of level 0.
    fn set_pte(&self, cx: &mut Context<'_>, slot: Slot, pte: Pte) {
        native_set(cx.machine, slot, pte.0);
    }
    /// Stores entries of level 0 that follow each other in a table from `slot` on.
    fn set_ptes(&self, cx: &mut Context<'_>, slot: Slot, words: &[u64]) {
        for (index, &word) in (slot.index..).zip(words) {
            self.set_pte(cx, Slot { index, ..slot }, Pte(word));
        }
    }
    /// Stores an entry of level 1.
    fn set_pmd(&self, cx: &mut Context<'_>, slot: Slot, pmd: Pmd) {
        native_set(cx.machine, slot, pmd.0);
    }
    /// Stores an entry of level 2.
    fn set_pud(&self, cx: &mut Context<'_>, slot: Slot, pud: Pud) {
        native_set(cx.machine, slot, pud.0);
    }
    /// Stores an entry of level 3.
    fn set_p4d(&self, cx: &mut Context<'_>, slot: Slot, p4d: P4d) {
        native_set(cx.machine, slot, p4d.0);
    }
    /// Stores an entry of level 4.
    fn set_pgd(&self, cx: &mut Context<'_>, slot: Slot, pgd: Pgd) {
        native_set(cx.machine, slot, pgd.0);
    }

    /// Begins to change an entry of level 0, and returns it. No bit that a processor sets from now
    /// on gets lost: natively as the entry is empty meanwhile, so that the processor faults.
    fn ptep_modify_prot_start(&self, cx: &mut Context<'_>, slot: Slot) -> Pte {
        let table = cx.machine.table(slot.table);
        Pte(table.map_or(0, |table| table.swap(slot.index, 0)))
    }
    /// Ends to change an entry of level 0.
    fn ptep_modify_prot_commit(&self, cx: &mut Context<'_>, slot: Slot, pte: Pte) {
        self.set_pte(cx, slot, pte);
    }

    /// A page becomes a table of level 0.
    fn alloc_pte(&self, _: &dyn Machine, _: Pfn) -> Result<(), Busy> {
        Ok(())
    }
    /// A page becomes a table of level 1.
    fn alloc_pmd(&self, _: &dyn Machine, _: Pfn) -> Result<(), Busy> {
        Ok(())
    }
    /// A page becomes a table of level 2.
    fn alloc_pud(&self, _: &dyn Machine, _: Pfn) -> Result<(), Busy> {
        Ok(())
    }
    /// A page becomes a table of level 3.
    fn alloc_p4d(&self, _: &dyn Machine, _: Pfn) -> Result<(), Busy> {
        Ok(())
    }
    /// A page becomes a table of level 4.
    fn pgd_alloc(&self, _: &dyn Machine, _: Pfn) -> Result<(), Busy> {
        Ok(())
    }
    /// A page is no table of level 0 any more.
    fn release_pte(&self, _: &dyn Machine, _: Pfn) {}
    /// A page is no table of level 1 any more.
    fn release_pmd(&self, _: &dyn Machine, _: Pfn) {}
    /// A page is no table of level 2 any more.
    fn release_pud(&self, _: &dyn Machine, _: Pfn) {}
    /// A page is no table of level 3 any more.
    fn release_p4d(&self, _: &dyn Machine, _: Pfn) {}
    /// A page is no table of level 4 any more.
    fn pgd_free(&self, _: &dyn Machine, _: Pfn) {}

    /// Forgets all translations of the user part.
    fn flush_tlb_user(&self, machine: &dyn Machine) {
        machine.flush_tlb(0, u64::MAX);
    }
    /// Forgets the translation of one address of the user part.
    fn flush_tlb_one_user(&self, machine: &dyn Machine, address: u64) {
        machine.flush_tlb(address, address.saturating_add(1));
    }
    /// Forgets the translations from `start` to before `end`, on all processors.
    fn flush_tlb_multi(&self, machine: &dyn Machine, start: u64, end: u64) {
        machine.flush_tlb(start, end);
    }

    /// Loads the root of page tables, the address of which is one of the kernel's.
    fn write_cr3(&self, machine: &dyn Machine, cr3: u64) {
        machine.load_cr3(cr3);
    }

    /// Makes the stores that are put off.
    fn lazy_mode_flush(&self, cx: &mut Context<'_>) {
        cx.lazy.flush(cx.machine);
    }
}

impl dyn MmuOps + '_ {
    /// Translates an entry of any level for the kernel.
    #[inline]
    pub fn val(&self, machine: &dyn Machine, level: usize, word: u64) -> u64 {
        match level {
            0 => self.pte_val(machine, Pte(word)),
            1 => self.pmd_val(machine, Pmd(word)),
            2 => self.pud_val(machine, Pud(word)),
            3 => self.p4d_val(machine, P4d(word)),
            _ => self.pgd_val(machine, Pgd(word)),
        }
    }

    /// Makes an entry of any level.
    #[inline]
    pub fn make(&self, machine: &dyn Machine, level: usize, val: u64) -> u64 {
        match level {
            0 => self.make_pte(machine, val).0,
            1 => self.make_pmd(machine, val).0,
            2 => self.make_pud(machine, val).0,
            3 => self.make_p4d(machine, val).0,
            _ => self.make_pgd(machine, val).0,
        }
    }

    /// Stores an entry of any level.
    #[inline]
    pub fn set(&self, cx: &mut Context<'_>, level: usize, slot: Slot, word: u64) {
        match level {
            0 => self.set_pte(cx, slot, Pte(word)),
            1 => self.set_pmd(cx, slot, Pmd(word)),
            2 => self.set_pud(cx, slot, Pud(word)),
            3 => self.set_p4d(cx, slot, P4d(word)),
            _ => self.set_pgd(cx, slot, Pgd(word)),
        }
    }

    /// A page becomes a table of any level.
    pub fn alloc(&self, machine: &dyn Machine, level: usize, pfn: Pfn) -> Result<(), Busy> {
        match level {
            0 => self.alloc_pte(machine, pfn),
            1 => self.alloc_pmd(machine, pfn),
            2 => self.alloc_pud(machine, pfn),
            3 => self.alloc_p4d(machine, pfn),
            _ => self.pgd_alloc(machine, pfn),
        }
    }

    /// A page is no table of any level any more.
    pub fn release(&self, machine: &dyn Machine, level: usize, pfn: Pfn) {
        match level {
            0 => self.release_pte(machine, pfn),
            1 => self.release_pmd(machine, pfn),
            2 => self.release_pud(machine, pfn),
            3 => self.release_p4d(machine, pfn),
            _ => self.pgd_free(machine, pfn),
        }
    }
}

/// How many backends there can be at one time.
pub const MAX_BACKENDS: usize = 8;

/// Why a backend can't come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryError {
    /// There is a backend of this name.
    Exists,
    /// There are too many of them.
    Full,
    /// There is no backend of this name.
    Unknown,
    /// A space is built through it.
    InUse,
}

/// The backends that spaces can be created with.
pub struct Registry {
    /// Backends, and how many spaces are built through each.
    backends: [Option<(&'static dyn MmuOps, usize)>; MAX_BACKENDS],
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Makes a registry without backends.
    pub const fn new() -> Self {
        Self {
            backends: [None; MAX_BACKENDS],
        }
    }

    fn find(&mut self, name: &str) -> Option<&mut Option<(&'static dyn MmuOps, usize)>> {
        self.backends
            .iter_mut()
            .find(|place| place.is_some_and(|(ops, _)| ops.name() == name))
    }

    /// Returns the names of the backends.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.backends.iter().flatten().map(|(ops, _)| ops.name())
    }

    /// Adds a backend.
    pub fn register(&mut self, ops: &'static dyn MmuOps) -> Result<(), RegistryError> {
        if self.find(ops.name()).is_some() {
            return Err(RegistryError::Exists);
        }
        match self.backends.iter_mut().find(|place| place.is_none()) {
            Some(place) => {
                *place = Some((ops, 0));
                Ok(())
            }
            None => Err(RegistryError::Full),
        }
    }

    /// Removes a backend that isn't in use.
    pub fn unregister(&mut self, name: &str) -> Result<(), RegistryError> {
        match self.find(name) {
            None => Err(RegistryError::Unknown),
            Some(Some((_, 1..))) => Err(RegistryError::InUse),
            Some(place) => {
                *place = None;
                Ok(())
            }
        }
    }

    /// Returns a backend by its name. It is in use until [`put()`](Self::put).
    pub fn get(&mut self, name: &str) -> Option<&'static dyn MmuOps> {
        let (ops, nr_users) = self.find(name)?.as_mut()?;
        *nr_users = nr_users.checked_add(1)?;
        Some(*ops)
    }

    /// Ends a use of a backend.
    pub fn put(&mut self, name: &str) {
        if let Some(Some((_, nr_users))) = self.find(name) {
            *nr_users = nr_users.saturating_sub(1);
        }
    }
}

/// No translation: a pseudo-physical address is taken for a machine address.
pub struct Native;

impl MmuOps for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn set_ptes(&self, cx: &mut Context<'_>, slot: Slot, words: &[u64]) {
        native_set_run(cx.machine, slot, words);
    }
}

/// What becomes of a present entry for a PFN with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unbacked {
    /// An empty entry, as with Xen: neither the PFN nor the flags come back.
    Empty,
    /// The same entry, but not present: only that bit gets lost.
    NotPresent,
}

/// Translation through the P2M.
pub struct P2m {
    name: &'static str,
    unbacked: Unbacked,
}

/// The semantics of Xen's paravirtualised guests, see `arch/x86/xen/mmu_pv.c`.
pub static P2M: P2m = P2m {
    name: "p2m",
    unbacked: Unbacked::Empty,
};

/// The same, but a PFN that comes to be backed later is not lost.
pub static P2M_LOSSLESS: P2m = P2m {
    name: "p2m-lossless",
    unbacked: Unbacked::NotPresent,
};

/// Returns whether an entry at `level`, with this [`frame_mask()`], has room for a frame number: a
/// large leaf has none for a frame that isn't aligned.
#[inline]
const fn has_room(level: usize, mask: u64, number: u64) -> bool {
    level == 0 || (number << PAGE_SHIFT) & !mask == 0
}

impl P2m {
    /// As `pte_pfn_to_mfn()`.
    #[inline]
    fn pfn_to_mfn(&self, machine: &dyn Machine, level: usize, val: u64) -> u64 {
        // What isn't present names no frame: it may be a swap entry, or a PFN of one's own.
        if val & bits::PRESENT == 0 {
            return val;
        }
        let mask = frame_mask(level, val);
        match machine.entry((val & mask) >> PAGE_SHIFT).mfn() {
            Some(mfn) if has_room(level, mask, mfn.get()) => {
                (mfn.get() << PAGE_SHIFT) | val & !mask
            }
            _ => self.unbacked(val),
        }
    }

    /// Returns the entry for a PFN with nothing behind it.
    // Apart, so that what is nearly always taken has less to keep.
    #[cold]
    #[inline(never)]
    fn unbacked(&self, val: u64) -> u64 {
        match self.unbacked {
            Unbacked::Empty => 0,
            Unbacked::NotPresent => val & !bits::PRESENT,
        }
    }

    /// As `pte_mfn_to_pfn()`. A frame that the domain doesn't know reads as not present, without a
    /// frame number and with its other flags.
    #[inline]
    fn mfn_to_pfn(&self, machine: &dyn Machine, level: usize, word: u64) -> u64 {
        if word & bits::PRESENT == 0 {
            return word;
        }
        let mask = frame_mask(level, word);
        let pfn = Mfn::new((word & mask) >> PAGE_SHIFT).and_then(|mfn| machine.mfn_to_pfn(mfn));
        match pfn {
            Some(pfn) if has_room(level, mask, pfn.get()) => {
                (pfn.get() << PAGE_SHIFT) | word & !mask
            }
            Some(_) => word & !mask & !bits::PRESENT,
            None => Self::unowned(machine, level, word),
        }
    }

    /// Returns what an entry with a frame that isn't at a PFN of the domain means.
    ///
    /// Xen takes every number above its table for an identity. Here it's one only if the P2M says so.
    #[cold]
    #[inline(never)]
    fn unowned(machine: &dyn Machine, level: usize, word: u64) -> u64 {
        let number = frame(level, word);
        match machine.entry(number) {
            Entry::Identity(mfn) if mfn.get() == number => word,
            _ => word & !frame_mask(level, word) & !bits::PRESENT,
        }
    }

    fn set(&self, cx: &mut Context<'_>, slot: Slot, word: u64) {
        if cx.lazy.is_active() {
            cx.lazy.push(cx.machine, slot, word);
        } else {
            native_set(cx.machine, slot, word);
        }
    }
}

impl MmuOps for P2m {
    fn name(&self) -> &'static str {
        self.name
    }

    fn translates(&self) -> bool {
        true
    }

    fn can_be_leaf(&self, machine: &dyn Machine, level: usize, pfn: Pfn) -> bool {
        let is_aligned = |mfn: Mfn| mfn.get() % span_pages(level) == 0;
        machine.entry(pfn.get()).mfn().is_some_and(is_aligned)
            && machine.is_run(pfn, span_pages(level))
    }

    fn pte_val(&self, machine: &dyn Machine, pte: Pte) -> u64 {
        self.mfn_to_pfn(machine, 0, pte.0)
    }
    fn make_pte(&self, machine: &dyn Machine, val: u64) -> Pte {
        Pte(self.pfn_to_mfn(machine, 0, val))
    }
    fn make_ptes(&self, machine: &dyn Machine, pfn: Pfn, flags: u64, words: &mut [u64]) {
        if flags & bits::PRESENT == 0 {
            return Native.make_ptes(machine, pfn, flags, words);
        }
        machine.entries(pfn.get(), words);
        let mut val = (pfn.get() << PAGE_SHIFT) | flags;
        for word in words {
            *word = match Entry::from_raw(*word).mfn() {
                Some(mfn) => (mfn.get() << PAGE_SHIFT) | flags,
                None => self.unbacked(val),
            };
            // A frame number has room for those of all PFNs.
            val = val.wrapping_add(PAGE_SIZE as u64);
        }
    }
    fn pmd_val(&self, machine: &dyn Machine, pmd: Pmd) -> u64 {
        self.mfn_to_pfn(machine, 1, pmd.0)
    }
    fn make_pmd(&self, machine: &dyn Machine, val: u64) -> Pmd {
        Pmd(self.pfn_to_mfn(machine, 1, val))
    }
    fn pud_val(&self, machine: &dyn Machine, pud: Pud) -> u64 {
        self.mfn_to_pfn(machine, 2, pud.0)
    }
    fn make_pud(&self, machine: &dyn Machine, val: u64) -> Pud {
        Pud(self.pfn_to_mfn(machine, 2, val))
    }
    fn p4d_val(&self, machine: &dyn Machine, p4d: P4d) -> u64 {
        self.mfn_to_pfn(machine, 3, p4d.0)
    }
    fn make_p4d(&self, machine: &dyn Machine, val: u64) -> P4d {
        P4d(self.pfn_to_mfn(machine, 3, val))
    }
    fn pgd_val(&self, machine: &dyn Machine, pgd: Pgd) -> u64 {
        self.mfn_to_pfn(machine, 4, pgd.0)
    }
    fn make_pgd(&self, machine: &dyn Machine, val: u64) -> Pgd {
        Pgd(self.pfn_to_mfn(machine, 4, val))
    }

    fn set_pte(&self, cx: &mut Context<'_>, slot: Slot, pte: Pte) {
        self.set(cx, slot, pte.0);
    }
    fn set_ptes(&self, cx: &mut Context<'_>, slot: Slot, words: &[u64]) {
        // They are a batch already, which comes after what was put off before it.
        self.lazy_mode_flush(cx);
        native_set_run(cx.machine, slot, words);
    }
    fn set_pmd(&self, cx: &mut Context<'_>, slot: Slot, pmd: Pmd) {
        self.set(cx, slot, pmd.0);
    }
    fn set_pud(&self, cx: &mut Context<'_>, slot: Slot, pud: Pud) {
        self.set(cx, slot, pud.0);
    }
    fn set_p4d(&self, cx: &mut Context<'_>, slot: Slot, p4d: P4d) {
        self.set(cx, slot, p4d.0);
    }
    fn set_pgd(&self, cx: &mut Context<'_>, slot: Slot, pgd: Pgd) {
        self.set(cx, slot, pgd.0);
    }

    /// As `xen_ptep_modify_prot_start()`: the entry stays.
    fn ptep_modify_prot_start(&self, cx: &mut Context<'_>, slot: Slot) -> Pte {
        Pte(native_get(cx.machine, slot))
    }
    /// As `MMU_PT_UPDATE_PRESERVE_AD`: bits that the processor has set meanwhile stay set. Where
    /// nothing is left that they could be about, the entry is empty.
    fn ptep_modify_prot_commit(&self, cx: &mut Context<'_>, slot: Slot, pte: Pte) {
        // Not after what was put off before it.
        self.lazy_mode_flush(cx);
        if let Some(table) = cx.machine.table(slot.table) {
            table.update(slot.index, |word| match pte.0 {
                0 => 0,
                new => new | word & (bits::ACCESSED | bits::DIRTY),
            });
        }
    }

    fn alloc_pte(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
        machine.protect(pfn)
    }
    fn alloc_pmd(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
        machine.protect(pfn)
    }
    fn alloc_pud(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
        machine.protect(pfn)
    }
    fn alloc_p4d(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
        machine.protect(pfn)
    }
    fn pgd_alloc(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
        machine.protect(pfn)
    }
    fn release_pte(&self, machine: &dyn Machine, pfn: Pfn) {
        machine.unprotect(pfn);
    }
    fn release_pmd(&self, machine: &dyn Machine, pfn: Pfn) {
        machine.unprotect(pfn);
    }
    fn release_pud(&self, machine: &dyn Machine, pfn: Pfn) {
        machine.unprotect(pfn);
    }
    fn release_p4d(&self, machine: &dyn Machine, pfn: Pfn) {
        machine.unprotect(pfn);
    }
    fn pgd_free(&self, machine: &dyn Machine, pfn: Pfn) {
        machine.unprotect(pfn);
    }

    fn write_cr3(&self, machine: &dyn Machine, cr3: u64) {
        // Not an entry: what would be its present bit may be one of the PCID.
        let root = machine.entry((cr3 & bits::FRAME) >> PAGE_SHIFT);
        if let Some(mfn) = root.mfn() {
            machine.load_cr3((mfn.get() << PAGE_SHIFT) | cr3 & !bits::FRAME);
        }
    }
}
