// SPDX-License-Identifier: GPL-2.0

//! What the module has from the kernel, for the host, and no slower than there.
//!
//! As in the module (`rust/store.rs`, `rust/space.rs`), the id of a table is its address, and a page
//! of the machine is found by arithmetic. Nothing is checked: `tools/pure/host` does that.

use std::alloc::{self, Layout};
use std::cell::Cell;

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::{Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use p2m_pure::map::{Maps, Writer};
use p2m_pure::paging::TablePages;
use p2m_pure::pv::{Busy, Machine};
use p2m_pure::sparse::{self, MAX_LEVELS, Sparse, Watch};
use p2m_pure::table::{NoMemory, Table, TableId, TableStore};

/// Provides tables, each of which is a page of the allocator. Tables are never retired under a
/// reader, as there is one thread.
pub(crate) struct Store {
    missing: [TableId; MAX_LEVELS],
}

impl Store {
    pub(crate) fn new() -> Self {
        let mut fill = INVALID;
        let missing = std::array::from_fn(|_| {
            let id = allocate(fill);
            fill = id.get();
            id
        });
        Self { missing }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for id in self.missing {
            self.free(id);
        }
    }
}

fn allocate(fill: u64) -> TableId {
    let layout = Layout::new::<Table>();
    // SAFETY: A table has a size.
    let page = unsafe { alloc::alloc_zeroed(layout) };
    if page.is_null() {
        alloc::handle_alloc_error(layout);
    }
    let id = TableId::new(page as u64).expect("tables are aligned to pages");
    if fill != 0 {
        table(id).fill(fill);
    }
    id
}

#[inline]
fn table<'a>(id: TableId) -> &'a Table {
    // SAFETY: By the contract of `TableStore`, `id` came from `allocate()`, so it's the address of
    // a page of initialised words, and the page isn't freed while somebody uses it. All accesses to
    // it are atomic.
    unsafe { &*(id.get() as *const Table) }
}

impl TableStore for Store {
    fn alloc(&self, fill: u64) -> Result<TableId, NoMemory> {
        Ok(allocate(fill))
    }

    #[inline]
    fn table(&self, id: TableId) -> &Table {
        table(id)
    }

    fn free(&self, id: TableId) {
        // SAFETY: By the contract of `TableStore`, the page came from `allocate()`, and nobody else
        // knows it any more.
        unsafe { alloc::dealloc(id.get() as *mut u8, Layout::new::<Table>()) };
    }

    fn retire(&self, id: TableId) {
        self.free(id);
    }

    #[inline]
    fn missing(&self, level: usize) -> TableId {
        self.missing[level]
    }
}

/// Zeroed pages that follow each other.
pub(crate) struct Memory {
    start: *mut u8,
    layout: Layout,
}

impl Memory {
    pub(crate) fn new(nr_pages: usize) -> Self {
        let layout = Layout::from_size_align(nr_pages << PAGE_SHIFT, PAGE_SIZE);
        let layout = layout.expect("the memory isn't larger than the machine");
        // SAFETY: Nobody asks for no pages.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        if start.is_null() {
            alloc::handle_alloc_error(layout);
        }
        Self { start, layout }
    }

    pub(crate) fn nr_pages(&self) -> usize {
        self.layout.size() >> PAGE_SHIFT
    }

    /// Returns the address of a page.
    #[inline]
    pub(crate) fn page(&self, number: usize) -> *mut u8 {
        // SAFETY: Callers name pages that are there.
        unsafe { self.start.add(number << PAGE_SHIFT) }
    }
}

impl Memory {
    /// Copies a page into one of another memory.
    pub(crate) fn copy_page(&self, number: usize, other: &Self, to: usize) {
        assert!(number < self.nr_pages() && to < other.nr_pages());
        // SAFETY: Both pages are there, and not the same, as the memories aren't.
        unsafe { std::ptr::copy_nonoverlapping(self.page(number), other.page(to), PAGE_SIZE) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: It was allocated with this layout, and references to it are gone.
        unsafe { alloc::dealloc(self.start, self.layout) };
    }
}

/// Nobody looks from outside.
struct Unwatched;

impl Watch for Unwatched {
    fn before(&self) {}
    fn leaf_replaced(&self, _: u64) {}
    fn after(&self) {}
}

/// What is known of a page of a table pool, as in `rust/space.rs`.
mod claim {
    pub(super) const FREE: u64 = 0;
    pub(super) const TABLE: u64 = 1;
    pub(super) const PROTECTED: u64 = 2;
}

/// A domain: PFNs over frames that are anywhere.
pub(crate) struct Domain {
    pub(crate) store: Store,
    pub(crate) maps: Maps,
    writer: Writer,
    claims: Sparse,
    claims_writer: sparse::Writer,
    /// The frames that tables may be in, and the number of the first of them.
    memory: Option<(Memory, u64)>,
}

impl Domain {
    /// Makes a domain of these frames, at the PFNs from 0 on.
    pub(crate) fn new(mfns: impl IntoIterator<Item = u64>) -> Self {
        let store = Store::new();
        let (maps, writer) = Maps::new(&store).expect("tables are to be had");
        let (claims, claims_writer) = Sparse::new(&store);
        let mut domain = Self {
            store,
            maps,
            writer,
            claims,
            claims_writer,
            memory: None,
        };
        domain.fill(mfns);
        domain
    }

    /// Puts frames at the PFNs from 0 on.
    pub(crate) fn fill(&mut self, mfns: impl IntoIterator<Item = u64>) {
        for (pfn, mfn) in (0..).zip(mfns) {
            let entry = Entry::Present(Mfn::new(mfn).expect("MFNs are small"));
            let pfn = Pfn::new(pfn).expect("PFNs are small");
            let old = self
                .maps
                .set(&mut self.writer, &self.store, &(), pfn, entry);
            assert_eq!(old, Ok(Entry::Invalid));
        }
    }

    /// Empties the first PFNs, and returns something that depends on all frames that were there.
    pub(crate) fn clear(&mut self, nr_pages: u64) -> u64 {
        let range = PfnRange::new(0, nr_pages).expect("PFNs are small");
        let mut sum = 0;
        self.maps
            .clear_runs(&mut self.writer, &self.store, &(), range, |gone, nr| {
                sum ^= gone.mfn().get() ^ nr;
            });
        sum
    }

    /// Gives the domain memory for its frames from `first` on, and makes PFNs a table pool.
    pub(crate) fn add_memory(&mut self, memory: Memory, first: u64, pool: std::ops::Range<u64>) {
        for pfn in pool {
            let claims = &mut self.claims_writer;
            self.claims
                .store(claims, &self.store, &Unwatched, pfn, claim::FREE)
                .expect("tables are to be had");
        }
        self.memory = Some((memory, first));
    }

    /// Gives each of the first PFNs another frame and then its own one again, as a move does with the
    /// maps, a batch at a time.
    pub(crate) fn move_and_back(&mut self, nr_pages: u64, spare: u64) {
        const BATCH: u64 = 512;
        let (maps, store) = (&self.maps, &self.store);
        for start in (0..nr_pages).step_by(BATCH as usize) {
            let pfns = || (start..nr_pages.min(start + BATCH)).filter_map(Pfn::new);
            let olds: Vec<_> = pfns().map(|pfn| maps.lookup(store, pfn)).collect();
            let news = (spare..).filter_map(Mfn::new).map(Entry::Present);
            for entries in [news.take(olds.len()).collect(), olds] {
                let mut gone = (Mfn::new(spare), None);
                for (pfn, entry) in pfns().zip(entries) {
                    let writer = &mut self.writer;
                    let old = maps.set_without_pruning(writer, store, &(), pfn, entry);
                    let mfn = old.ok().and_then(Entry::owned);
                    gone = (gone.0.min(mfn), gone.1.max(mfn));
                }
                if let (Some(first), Some(last)) = gone {
                    maps.prune_frames(&mut self.writer, store, &(), (first, last));
                }
            }
        }
    }

    /// Returns the number of tables of the maps.
    pub(crate) fn nr_tables(&self, which: p2m_pure::map::Which) -> u64 {
        self.writer.nr_tables(which)
    }

    /// Returns the frame at a PFN.
    pub(crate) fn mfn(&self, pfn: u64) -> Option<Mfn> {
        self.entry(pfn).owned()
    }

    /// Returns the address of a frame of the memory.
    #[inline]
    pub(crate) fn memory(&self, mfn: Mfn) -> *const u8 {
        match &self.memory {
            // CAST: As wide as an address.
            Some((memory, first)) => memory.page((mfn.get() - first) as usize),
            None => std::ptr::null(),
        }
    }

    fn claim(&self, pfn: Pfn) -> u64 {
        self.claims.load(&self.store, pfn.get())
    }

    fn set_claim(&self, pfn: Pfn, claim: u64) {
        self.claims.replace(&self.store, pfn.get(), claim);
    }

    fn page(&self, pfn: Pfn) -> Option<&Table> {
        let page = self.memory(self.entry(pfn.get()).owned()?);
        // SAFETY: The page is one of the memory's, zeroed once and used as a table only.
        Some(unsafe { &*page.cast::<Table>() })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.maps.destroy(&mut self.writer, &self.store);
        self.claims.clear(&mut self.claims_writer, &self.store);
    }
}

/// As `Host` in `rust/space.rs`, without the user mappings.
impl Machine for Domain {
    fn entry(&self, pfn: u64) -> Entry {
        Pfn::new(pfn).map_or(Entry::Invalid, |pfn| self.maps.lookup(&self.store, pfn))
    }

    fn entries(&self, pfn: u64, words: &mut [u64]) {
        self.maps.lookup_run(&self.store, pfn, words);
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        self.maps.mfn_to_pfn(&self.store, mfn)
    }

    fn table(&self, pfn: Pfn) -> Option<&Table> {
        match self.claim(pfn) {
            claim::TABLE | claim::PROTECTED => self.page(pfn),
            _ => None,
        }
    }

    fn protect(&self, pfn: Pfn) -> Result<(), Busy> {
        self.page(pfn).ok_or(Busy)?.fill(0);
        self.set_claim(pfn, claim::PROTECTED);
        Ok(())
    }

    fn unprotect(&self, pfn: Pfn) {
        self.set_claim(pfn, claim::TABLE);
    }

    fn flush_tlb(&self, _start: u64, _end: u64) {}

    fn load_cr3(&self, _cr3: u64) {}
}

/// The table pool of a space, as in `rust/space.rs`.
pub(crate) struct Pool<'a> {
    domain: &'a Domain,
    pool: std::ops::Range<u64>,
    next: Cell<u64>,
}

impl<'a> Pool<'a> {
    pub(crate) fn new(domain: &'a Domain, pool: std::ops::Range<u64>) -> Self {
        let next = Cell::new(pool.start);
        Self { domain, pool, next }
    }
}

impl TablePages for Pool<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        while self.next.get() < self.pool.end {
            let pfn = Pfn::new(self.next.get())?;
            if self.domain.claim(pfn) == claim::FREE {
                self.domain.page(pfn)?.fill(0);
                self.domain.set_claim(pfn, claim::TABLE);
                return Some(pfn);
            }
            self.next.set(pfn.get() + 1);
        }
        None
    }

    fn free(&mut self, pfn: Pfn) {
        if self.domain.claim(pfn) != claim::TABLE {
            return;
        }
        self.domain.set_claim(pfn, claim::FREE);
        self.next.set(self.next.get().min(pfn.get()));
    }
}
