// SPDX-License-Identifier: GPL-2.0

//! A machine that checks how it is used.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::paging::TablePages;
use p2m_pure::pv::{Busy, Machine};
use p2m_pure::table::Table;

use crate::cpu::{Access, Cpu, Mark, Raw};
use crate::extents::{Advance, Extent, Extents};

/// Failure from some attempt on.
#[derive(Default)]
pub(crate) struct Fuse(Cell<Option<u64>>);

impl Fuse {
    /// Lets all attempts fail that come after `nr_good` ones.
    pub(crate) fn blow_after(&self, nr_good: u64) {
        self.0.set(Some(nr_good));
    }

    /// Lets attempts succeed again.
    pub(crate) fn mend(&self) {
        self.0.set(None);
    }

    fn blows(&self) -> bool {
        match self.0.get() {
            None => false,
            Some(0) => true,
            Some(left) => {
                self.0.set(Some(left - 1));
                false
            }
        }
    }
}

impl Advance for Entry {
    fn after(self, nr: u64) -> Self {
        self.advance(nr).expect("the frames of a run exist")
    }
}

/// The frames in which there is something, with their words.
pub(crate) type Image = BTreeMap<u64, Vec<u64>>;

/// A machine that checks how it is used.
#[derive(Default)]
pub(crate) struct Sim {
    p2m: RefCell<Extents<Entry>>,
    /// As any M2P, it may be stale.
    m2p: RefCell<Extents<u64>>,
    /// The frames that tables may be in.
    memory: BTreeMap<u64, OnceCell<Box<Table>>>,
    /// The frames that are tables now.
    tables: RefCell<BTreeSet<u64>>,
    protected: RefCell<BTreeSet<u64>>,
    /// Whether what isn't protected can't be a table.
    pub(crate) must_protect: Cell<bool>,
    /// Which attempts to protect a page fail.
    pub(crate) busy: Fuse,
    cpu: RefCell<Cpu>,
    /// What was loaded into the register.
    pub(crate) roots: RefCell<Vec<u64>>,
    /// Which ranges were flushed.
    pub(crate) flushes: RefCell<Vec<(u64, u64)>>,
    /// What the processor does whenever it could, and after how many chances it begins.
    racing: RefCell<Vec<(u64, Access)>>,
    race_delay: Cell<u64>,
}

impl Sim {
    /// Makes memory of frames.
    pub(crate) fn with_memory(frames: impl IntoIterator<Item = u64>) -> Self {
        let frames = frames.into_iter();
        Self {
            memory: frames.map(|mfn| (mfn, OnceCell::new())).collect(),
            ..Self::default()
        }
    }

    /// Returns what is at a PFN, for those who look from outside.
    pub(crate) fn peek(&self, pfn: u64) -> Entry {
        self.p2m.borrow().get(pfn).unwrap_or(Entry::Invalid)
    }

    /// Returns the runs at some PFNs, for those who look from outside.
    pub(crate) fn runs(&self, pfn: u64, nr_pages: u64) -> Vec<Extent<Entry>> {
        self.p2m.borrow().within(pfn, nr_pages)
    }

    /// Returns the PFN at which a frame of the domain is, for those who look from outside.
    fn peek_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        let pfn = Pfn::new(self.m2p.borrow().get(mfn.get())?)?;
        (self.peek(pfn.get()) == Entry::Present(mfn)).then_some(pfn)
    }

    /// Puts a run of frames into the P2M.
    pub(crate) fn set(&self, pfn: u64, nr_pages: u64, entry: Entry) {
        match entry {
            Entry::Invalid => self.p2m.borrow_mut().remove(pfn, nr_pages),
            _ => self.p2m.borrow_mut().insert(pfn, nr_pages, entry),
        }
        if let Some(mfn) = entry.owned() {
            self.m2p.borrow_mut().insert(mfn.get(), nr_pages, pfn);
        }
    }

    /// Forges an entry of the M2P.
    pub(crate) fn set_m2p(&self, mfn: u64, pfn: u64) {
        self.m2p.borrow_mut().insert(mfn, 1, pfn);
    }

    /// Makes a page a table that came from nobody.
    pub(crate) fn adopt(&self, pfn: u64) -> Pfn {
        let pfn = Pfn::new(pfn).unwrap();
        let mfn = self.peek(pfn.get()).mfn().unwrap();
        self.tables.borrow_mut().insert(mfn.get());
        pfn
    }

    pub(crate) fn is_protected(&self, pfn: u64) -> bool {
        self.protected.borrow().contains(&pfn)
    }

    pub(crate) fn nr_protected(&self) -> usize {
        self.protected.borrow().len()
    }

    /// Returns what is in a frame, for those who see through all.
    fn content(&self, mfn: u64) -> &Table {
        self.memory[&mfn].get_or_init(|| Box::new(Table::new(0)))
    }

    pub(crate) fn words(&self, mfn: u64) -> impl Iterator<Item = u64> + '_ {
        let table = self.content(mfn);
        (0..512).map(|index| table.load(index))
    }

    pub(crate) fn is_blank(&self, mfn: u64) -> bool {
        self.content(mfn).is_all(0)
    }

    /// Returns all frames that are tables.
    pub(crate) fn table_frames(&self) -> Vec<u64> {
        self.tables.borrow().iter().copied().collect()
    }

    /// Returns all that is in memory.
    pub(crate) fn image(&self) -> Image {
        let is_used = |mfn: &u64| self.memory[mfn].get().is_some() && !self.is_blank(*mfn);
        let used = self.memory.keys().copied().filter(is_used);
        used.map(|mfn| (mfn, self.words(mfn).collect())).collect()
    }

    fn frame(&self, mfn: u64) -> &Table {
        assert!(
            self.tables.borrow().contains(&mfn),
            "frame {mfn:#x} is no table"
        );
        self.content(mfn)
    }

    /// The same, as the processor sees it.
    fn physical(&self, mfn: u64) -> &Table {
        let table = self.frame(mfn);
        if self.must_protect.get() {
            let pfn = self.peek_pfn(Mfn::new(mfn).unwrap());
            let is_protected = pfn.is_some_and(|pfn| self.is_protected(pfn.get()));
            assert!(is_protected, "table {mfn:#x} isn't protected");
        }
        table
    }

    /// Exchanges the root of the processor, without a hook.
    pub(crate) fn load_root(&self, nr_levels: usize, root: Option<u64>) {
        self.cpu.borrow_mut().load_root(nr_levels, root);
    }

    /// Lets the processor use an address.
    pub(crate) fn access(&self, page: u64, access: Access) -> Option<u64> {
        let memory = |mfn| self.physical(mfn);
        self.cpu.borrow_mut().access(&memory, page, access)
    }

    /// Lets the processor use addresses whenever it could.
    pub(crate) fn race(&self, accesses: impl IntoIterator<Item = (u64, Access)>) {
        *self.racing.borrow_mut() = accesses.into_iter().collect();
        self.race_delay.set(0);
    }

    /// The same, but it lets some chances pass.
    pub(crate) fn race_after(&self, nr: u64, accesses: impl IntoIterator<Item = (u64, Access)>) {
        self.race(accesses);
        self.race_delay.set(nr);
    }

    fn let_race(&self) {
        if self.race_delay.get() > 0 {
            self.race_delay.set(self.race_delay.get() - 1);
            return;
        }
        for &(page, access) in self.racing.borrow().iter() {
            self.access(page, access);
        }
    }

    /// Returns all leaves and the number of tables.
    pub(crate) fn leaves(&self) -> (Vec<Raw>, usize) {
        self.cpu.borrow().leaves(&|mfn| self.physical(mfn))
    }

    /// Checks that the processor remembers nothing that isn't so any more.
    #[track_caller]
    pub(crate) fn check_tlb(&self) {
        self.cpu.borrow().check(&|mfn| self.physical(mfn));
    }

    pub(crate) fn take_marks(&self) -> Vec<Mark> {
        self.cpu.borrow_mut().take_marks()
    }
}

impl Machine for Sim {
    fn entry(&self, pfn: u64) -> Entry {
        self.let_race();
        self.peek(pfn)
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        self.let_race();
        self.peek_pfn(mfn)
    }

    fn table(&self, pfn: Pfn) -> Option<&Table> {
        let mfn = self.p2m.borrow().get(pfn.get())?.mfn()?;
        Some(self.frame(mfn.get()))
    }

    fn protect(&self, pfn: Pfn) -> Result<(), Busy> {
        if self.busy.blows() {
            return Err(Busy);
        }
        let is_new = self.protected.borrow_mut().insert(pfn.get());
        assert!(is_new, "{pfn:?} is protected twice");
        Ok(())
    }

    fn unprotect(&self, pfn: Pfn) {
        let was_there = self.protected.borrow_mut().remove(&pfn.get());
        assert!(was_there, "{pfn:?} isn't protected");
    }

    fn flush_tlb(&self, start: u64, end: u64) {
        self.flushes.borrow_mut().push((start, end));
        self.cpu.borrow_mut().flush(start, end);
    }

    fn load_cr3(&self, cr3: u64) {
        self.roots.borrow_mut().push(cr3);
    }
}

/// Pages to be tables, with an eye on who has them.
pub(crate) struct Pool {
    sim: Rc<Sim>,
    free: VecDeque<Pfn>,
    taken: BTreeSet<u64>,
    /// Which attempts to get a page fail.
    pub(crate) empty: Fuse,
    pub(crate) nr_allocs: u64,
}

impl Pool {
    pub(crate) fn new(sim: &Rc<Sim>, pages: impl IntoIterator<Item = u64>) -> Self {
        let pages = pages.into_iter();
        Self {
            sim: sim.clone(),
            free: pages.map(|pfn| Pfn::new(pfn).unwrap()).collect(),
            taken: BTreeSet::new(),
            empty: Fuse::default(),
            nr_allocs: 0,
        }
    }

    /// Returns the number of pages that somebody has.
    pub(crate) fn nr_taken(&self) -> u64 {
        self.taken.len() as u64
    }

    fn mfn(&self, pfn: Pfn) -> u64 {
        self.sim.peek(pfn.get()).mfn().unwrap().get()
    }
}

impl TablePages for Pool {
    fn alloc(&mut self) -> Option<Pfn> {
        self.sim.let_race();
        if self.empty.blows() {
            return None;
        }
        let pfn = self.free.pop_front()?;
        self.taken.insert(pfn.get());
        self.nr_allocs += 1;
        let mfn = self.mfn(pfn);
        self.sim.tables.borrow_mut().insert(mfn);
        assert!(
            self.sim.is_blank(mfn),
            "{pfn:?} was written to after it was freed"
        );
        Some(pfn)
    }

    fn free(&mut self, pfn: Pfn) {
        self.sim.let_race();
        let mfn = self.mfn(pfn);
        assert!(self.taken.remove(&pfn.get()), "{pfn:?} is freed twice");
        assert!(
            !self.sim.is_protected(pfn.get()),
            "{pfn:?} is freed with its protection"
        );
        assert!(
            !self.sim.cpu.borrow().remembers(mfn),
            "{pfn:?} is freed while the processor may walk it"
        );
        assert!(self.sim.is_blank(mfn), "{pfn:?} is freed with entries");
        self.sim.tables.borrow_mut().remove(&mfn);
        // Others first, so that who uses it once more is noticed.
        self.free.push_back(pfn);
    }
}
