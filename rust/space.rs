// SPDX-License-Identifier: GPL-2.0

//! Spaces of a domain: page tables that are built through a backend, in pages of the domain.
//!
//! What the page-table code sees of the machine is here: pages of the domain as tables, which are
//! taken out of user mappings while they are tables.

use core::cell::Cell;

use kernel::{
    prelude::*,
    rbtree::RBTree,
    sync::global_lock, //
};

use crate::{
    abi,
    commands::check_killed,
    compat::{
        EDQUOT,
        EOPNOTSUPP,
        EUCLEAN, //
    },
    cpu,
    domain::Domain,
    frames::Source,
    mapping::Invalidation,
    pure::{
        entry::{
            Entry,
            INVALID, //
        },
        frame::{
            Mfn,
            Pfn,
            PfnRange, //
        },
        paging::{
            Format,
            Leaf,
            PagingError,
            Space,
            TablePages, //
        },
        pv::{
            self,
            Busy,
            Machine,
            MmuOps,
            Registry, //
        },
        sparse::{
            self,
            Sparse,
            Watch, //
        },
        table::Table, //
    },
    store::Store, //
};

global_lock! {
    // SAFETY: Initialised in module initialiser before first use.
    unsafe(uninit) static BACKENDS: Mutex<Registry> = Registry::new();
}

/// The backends of the module itself.
static BUILT_IN: [&dyn MmuOps; 3] = [&pv::Native, &pv::P2M, &pv::P2M_LOSSLESS];

/// Makes the backends known. To be called once, before anything else here.
pub(crate) fn register_backends() -> Result {
    // SAFETY: Called once, in the module initialiser.
    unsafe { BACKENDS.init() };
    let mut backends = BACKENDS.lock();
    for ops in BUILT_IN {
        backends.register(ops).map_err(|_| EEXIST)?;
    }
    Ok(())
}

/// Calls `visit` with the name of each backend.
pub(crate) fn for_each_backend(mut visit: impl FnMut(&str)) {
    for name in BACKENDS.lock().names() {
        visit(name);
    }
}

/// The use of a backend.
struct Backend(&'static dyn MmuOps);

impl Backend {
    fn get(name: &str) -> Result<Self> {
        BACKENDS.lock().get(name).map(Self).ok_or(ENOENT)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        BACKENDS.lock().put(self.0.name());
    }
}

/// Most spaces of a domain.
const MAX_SPACES: u32 = 1024;

/// How many leaves are looked at between two looks at signals.
const LEAF_BATCH: u64 = 4096;

/// What is known of a page of a table pool. Pages of no pool are [`INVALID`].
mod claim {
    /// It's no table now.
    pub(super) const FREE: u64 = 0;
    /// It's a table, and its owner may write to it.
    pub(super) const TABLE: u64 = 1;
    /// It's a table, and its owner must not write to it.
    pub(super) const PROTECTED: u64 = 2;
}

/// Which pages of a domain belong to table pools. It is read without a lock.
pub(crate) struct Claims {
    pages: Sparse,
}

impl Claims {
    /// Makes an empty set, and the right to change it.
    pub(crate) fn new(store: &Store) -> (Self, sparse::Writer) {
        let (pages, writer) = Sparse::new(store);
        (Self { pages }, writer)
    }

    /// Returns whether a page must not be written to through a mapping.
    ///
    /// The caller is in an RCU read-side critical section or has locked the mapping.
    pub(crate) fn is_protected(&self, store: &Store, number: u64) -> bool {
        self.pages.load(store, number) == claim::PROTECTED
    }

    /// Returns whether a page is a table.
    pub(crate) fn is_table(&self, store: &Store, number: u64) -> bool {
        matches!(
            self.pages.load(store, number),
            claim::TABLE | claim::PROTECTED
        )
    }

    /// Returns whether a page of a range belongs to a pool.
    pub(crate) fn has_any(&self, store: &Store, range: PfnRange) -> bool {
        let mut next = range.start().get();
        while let Some(number) = self.pages.next_leaf(store, next) {
            if number >= range.end() {
                break;
            }
            if self.pages.load(store, number) != INVALID {
                return true;
            }
            next = number + 1;
        }
        false
    }

    /// Frees the tables of the set. Nobody uses it any more.
    pub(crate) fn destroy(&mut self, writer: &mut sparse::Writer, store: &Store) {
        self.pages.clear(writer, store);
    }
}

/// Nobody looks at the set from outside.
impl Watch for Invalidation<'_> {
    fn before(&self) {}
    fn leaf_replaced(&self, _: u64) {}
    fn after(&self) {}
}

/// Returns whether a leaf has a frame that isn't at a PFN of the domain: a foreign one, if all is well.
fn is_unknown(leaf: &Leaf) -> bool {
    leaf.raw & pv::bits::PRESENT != 0 && !leaf.is_present()
}

/// A space, and what it keeps.
pub(crate) struct OwnedSpace {
    pub(crate) space: Space,
    pool: PfnRange,
    backend: Backend,
}

/// The spaces of a domain. They are changed under the domain's lock.
pub(crate) struct Spaces {
    claims: sparse::Writer,
    list: RBTree<u32, OwnedSpace>,
    nr: u32,
    next: u32,
}

impl Spaces {
    /// Makes an empty set of spaces.
    pub(crate) fn new(claims: sparse::Writer) -> Self {
        Self {
            claims,
            list: RBTree::new(),
            nr: 0,
            next: 1,
        }
    }

    /// Returns a space by its number.
    pub(crate) fn get(&mut self, number: u32) -> Result<&mut OwnedSpace> {
        self.list.get_mut(&number).ok_or(ENOENT)
    }

    /// Creates a space, and returns its number and the page that is its root.
    pub(crate) fn create(
        &mut self,
        domain: &Domain,
        backend: &str,
        nr_levels: usize,
        pool: PfnRange,
    ) -> Result<(u32, Pfn)> {
        let format = Format::x86_64(nr_levels).ok_or(EINVAL)?;
        let backend = Backend::get(backend)?;
        if self.nr >= MAX_SPACES {
            return Err(EDQUOT);
        }
        let host = Host::new(domain, pool);
        if pool
            .iter()
            .any(|pfn| host.entry(pfn.get()).owned().is_none())
        {
            return Err(EFAULT);
        }
        let (claims, store) = domain.claims();
        if claims.has_any(store, pool) {
            return Err(EEXIST);
        }
        // It comes round in the end.
        let mut number = self.next;
        while self.list.get(&number).is_some() {
            number = number.wrapping_add(1).max(1);
        }
        let injection = domain.injection();
        let result = self.claim(domain, pool).and_then(|()| {
            injection.check(ENOMEM)?;
            let mut pages = Pool::new(&host, pool);
            let space = Space::new(backend.0, format, &host, &mut pages)?;
            let root = space.root();
            let owned = OwnedSpace {
                space,
                pool,
                backend,
            };
            self.list
                .try_create_and_insert(number, owned, GFP_KERNEL_ACCOUNT)?;
            Ok(root)
        });
        match result {
            Ok(root) => {
                self.nr += 1;
                self.next = number.wrapping_add(1).max(1);
                Ok((number, root))
            }
            Err(error) => {
                self.unclaim(domain, pool);
                Err(error)
            }
        }
    }

    /// Destroys a space.
    pub(crate) fn destroy(&mut self, domain: &Domain, number: u32) -> Result {
        let owned = self.list.remove(&number).ok_or(ENOENT)?;
        // OVERFLOW: The space was counted when it was created.
        self.nr -= 1;
        let host = owned.host(domain);
        owned
            .space
            .destroy(&host, &mut Pool::new(&host, owned.pool));
        self.unclaim(domain, owned.pool);
        Ok(())
    }

    /// Describes the space with the lowest number from `start` on, and returns how many there are.
    pub(crate) fn describe(
        &self,
        domain: &Domain,
        start: u32,
    ) -> (Option<abi::p2m_space_info>, u32) {
        let mut from_start = self.list.iter().filter(|(&number, _)| number >= start);
        let Some((&number, owned)) = from_start.next() else {
            return (None, 0);
        };
        let host = owned.host(domain);
        let tables = owned.pool.iter().filter(|&pfn| host.is_table(pfn));
        let mut info = abi::p2m_space_info {
            space: number,
            // CAST: A small number.
            nr_levels: owned.space.format().nr_levels as u32,
            pool_pfn: owned.pool.start().get(),
            pool_pages: owned.pool.nr_pages(),
            root_pfn: owned.space.root().get(),
            nr_tables: tables.count() as u64,
            ..Default::default()
        };
        // A name is shorter than its place, as it has to be given with a NUL.
        for (place, byte) in info.backend.iter_mut().zip(owned.backend.0.name().bytes()) {
            *place = byte;
        }
        // CAST: There are at most `MAX_SPACES`.
        (Some(info), 1 + from_start.count() as u32)
    }

    /// Calls `found` with the pages of a range that spaces map, in no order and perhaps again, until it
    /// returns false.
    ///
    /// It's called with all of the range if native tables lead to more of them than there are.
    pub(crate) fn for_mapped(
        &self,
        domain: &Domain,
        range: PfnRange,
        mut found: impl FnMut(PfnRange) -> bool,
    ) -> Result {
        let mut foreign = None;
        let mut visit = |leaf: Leaf| {
            if !is_unknown(&leaf) {
                // OVERFLOW: A frame number is below 2^40.
                let end = range.end().min(leaf.pfn() + leaf.nr_pages());
                let start = range.start().get().max(leaf.pfn());
                let part = PfnRange::new(start, end.saturating_sub(start));
                return Ok(part.map_or(true, &mut found));
            }
            // No PFN can be read from the table, so it's looked for the frames.
            let slots = match &mut foreign {
                Some(slots) => slots,
                none => none.insert(domain.foreign_frames(range)?),
            };
            let first = pv::frame(leaf.level, leaf.raw);
            let from = slots.partition_point(|(mfn, _)| mfn.get() < first);
            // OVERFLOW: As above.
            let end = first + leaf.nr_pages();
            let slots = slots.iter().skip(from);
            let mut named = slots.take_while(|(mfn, _)| mfn.get() < end);
            Ok(named.all(|(_, pfn)| PfnRange::new(pfn.get(), 1).map_or(true, &mut found)))
        };
        let mut is_endless = false;
        for owned in self.list.values() {
            match owned.for_leaves(&owned.host(domain), &mut visit) {
                Ok(true) => (),
                Ok(false) => return Ok(()),
                Err(error) if error == EUCLEAN => is_endless = true,
                Err(error) => return Err(error),
            }
        }
        if is_endless {
            found(range);
        }
        Ok(())
    }

    /// Has no leaf of a space name a frame of a range until [`resume()`](Self::resume).
    pub(crate) fn suspend(&mut self, domain: &Domain, range: PfnRange) -> Result {
        for owned in self.translating() {
            let host = owned.host(domain);
            let (space, mut pool) = owned.parts(&host);
            space.suspend(&host, &mut pool, range)?;
        }
        Ok(())
    }

    /// Has the leaves of all spaces name the frames that their pages have now.
    pub(crate) fn resume(&mut self, domain: &Domain) {
        for owned in self.translating() {
            let host = owned.host(domain);
            let (space, mut pool) = owned.parts(&host);
            space.resume(&host, &mut pool);
        }
    }

    /// Returns the spaces with frames in their tables. Others have PFNs there, which stay what they are
    /// whatever frames come to be at them; and their owner writes to them.
    fn translating(&mut self) -> impl Iterator<Item = &mut OwnedSpace> {
        let all = self.list.values_mut();
        all.filter(|owned| owned.backend.0.translates())
    }

    /// Returns how many entries of spaces name a frame that the domain doesn't know.
    pub(crate) fn audit(&mut self, domain: &Domain) -> Result<u64> {
        let mut nr_bad = 0;
        for owned in self.translating() {
            let host = owned.host(domain);
            let space = &owned.space;
            let end = space.format().nr_pages();
            let mut page = 0;
            while let Some(leaf) = space.next_leaf(&host, page, end) {
                check_killed()?;
                if is_unknown(&leaf) {
                    let is_known = match Mfn::new(pv::frame(leaf.level, leaf.raw)) {
                        Some(mfn) => domain.has_foreign(mfn)?,
                        None => false,
                    };
                    nr_bad += u64::from(!is_known);
                }
                // OVERFLOW: A leaf is in the address space.
                page = leaf.start + leaf.nr_pages();
            }
        }
        Ok(nr_bad)
    }

    /// Makes the pages of a pool known.
    fn claim(&mut self, domain: &Domain, pool: PfnRange) -> Result {
        let (claims, store) = domain.claims();
        let watch = domain.mapping().lock();
        for pfn in pool.iter() {
            claims
                .pages
                .store(&mut self.claims, store, &watch, pfn.get(), claim::FREE)?;
        }
        Ok(())
    }

    /// Forgets the pages of a pool.
    fn unclaim(&mut self, domain: &Domain, pool: PfnRange) {
        let (claims, store) = domain.claims();
        let watch = domain.mapping().lock();
        for pfn in pool.iter() {
            claims.pages.replace(store, pfn.get(), INVALID);
        }
        // OVERFLOW: A range isn't empty.
        let (first, last) = (pool.start().get(), pool.end() - 1);
        claims
            .pages
            .prune(&mut self.claims, store, &watch, first, last);
    }

    /// Frees what is left when the domain goes. The pages of the tables go with its regions.
    pub(crate) fn release(&mut self, claims: &mut Claims, store: &Store) {
        claims.destroy(&mut self.claims, store);
    }
}

impl OwnedSpace {
    /// Returns the domain as the machine below the space.
    pub(crate) fn host<'a>(&self, domain: &'a Domain) -> Host<'a> {
        Host::new(domain, self.pool)
    }

    /// Calls `visit` with each leaf until it returns false, and returns whether it never did.
    fn for_leaves(
        &self,
        host: &Host<'_>,
        mut visit: impl FnMut(Leaf) -> Result<bool>,
    ) -> Result<bool> {
        let end = self.space.format().nr_pages();
        let mut left = self.space.nr_entries();
        let mut page = 0;
        for nr in 0u64.. {
            if nr % LEAF_BATCH == 0 {
                check_killed()?;
            }
            let leaf = match self.space.next_leaf_within(host, page, end, &mut left) {
                Ok(Some(leaf)) => leaf,
                Ok(None) => break,
                Err(_) => return Err(PagingError::Endless.into()),
            };
            if !visit(leaf)? {
                return Ok(false);
            }
            // OVERFLOW: A leaf is in the address space.
            page = leaf.start + leaf.nr_pages();
        }
        Ok(true)
    }

    /// Returns the space, with what is needed to change it.
    pub(crate) fn parts<'a>(&'a mut self, host: &'a Host<'a>) -> (&'a mut Space, Pool<'a>) {
        (&mut self.space, Pool::new(host, self.pool))
    }
}

/// A domain as the machine below one of its spaces. Whoever has one holds the domain's lock.
pub(crate) struct Host<'a> {
    domain: &'a Domain,
    /// Where the tables of the space are.
    pool: PfnRange,
    cr3: Cell<Option<u64>>,
}

impl<'a> Host<'a> {
    /// Makes a view of the domain for a space with a table pool.
    fn new(domain: &'a Domain, pool: PfnRange) -> Self {
        Self {
            domain,
            pool,
            cr3: Cell::new(None),
        }
    }

    /// Returns the root that was loaded last.
    pub(crate) fn cr3(&self) -> Option<u64> {
        self.cr3.get()
    }

    /// Returns what the processor may take a frame for, when it walks tables.
    pub(crate) fn use_of(&self, mfn: Mfn) -> Option<cpu::Use> {
        let pfn = self.mfn_to_pfn(mfn)?;
        Some(match self.claim(pfn) {
            claim::PROTECTED => cpu::Use::Table,
            // What the owner can write to is no table that a processor is given.
            _ => cpu::Use::Data,
        })
    }

    fn claim(&self, pfn: Pfn) -> u64 {
        let (claims, store) = self.domain.claims();
        claims.pages.load(store, pfn.get())
    }

    /// Returns whether a page is a table.
    fn is_table(&self, pfn: Pfn) -> bool {
        let (claims, store) = self.domain.claims();
        claims.is_table(store, pfn.get())
    }

    fn set_claim(&self, pfn: Pfn, claim: u64) {
        let (claims, store) = self.domain.claims();
        claims.pages.replace(store, pfn.get(), claim);
    }

    /// Returns a page of a pool as a table, whether it's one or not.
    fn page(&self, pfn: Pfn) -> Option<&Table> {
        let mfn = self.entry(pfn.get()).owned()?;
        // SAFETY: The domain's lock is held, and it would have to be taken to free the frame.
        Some(unsafe { Source::table(mfn) })
    }
}

impl Machine for Host<'_> {
    fn entry(&self, pfn: u64) -> Entry {
        let (maps, store) = self.domain.maps();
        Pfn::new(pfn).map_or(Entry::Invalid, |pfn| maps.lookup(store, pfn))
    }

    fn entries(&self, pfn: u64, words: &mut [u64]) {
        let (maps, store) = self.domain.maps();
        maps.lookup_run(store, pfn, words);
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        let (maps, store) = self.domain.maps();
        maps.mfn_to_pfn(store, mfn)
    }

    fn table(&self, pfn: Pfn) -> Option<&Table> {
        // The owner of a native table can link whatever they like. Tables of other spaces are not
        // theirs to read or to write.
        if pfn < self.pool.start() || self.pool.end() <= pfn.get() {
            return None;
        }
        match self.claim(pfn) {
            claim::TABLE | claim::PROTECTED => self.page(pfn),
            _ => None,
        }
    }

    fn protect(&self, pfn: Pfn) -> Result<(), Busy> {
        // What maps another page of the same superpage has a reference, too.
        let superpage = self.domain.superpage_at(pfn.get());
        let range = match superpage {
            Some(place) => place,
            None => PfnRange::new(pfn.get(), 1).map_err(|_| Busy)?,
        };
        let mfn = self.entry(pfn.get()).owned().ok_or(Busy)?;
        if self.domain.injection().should_fail() {
            return Err(Busy);
        }
        let views = self.domain.mapping().lock();
        views.unmap(range);
        // Now no mapping has a reference. Who pinned the page could go on writing to it.
        if !Source::is_exclusive(mfn) {
            return Err(Busy);
        }
        if let Some(table) = self.page(pfn) {
            table.fill(0);
        }
        self.set_claim(pfn, claim::PROTECTED);
        Ok(())
    }

    fn unprotect(&self, pfn: Pfn) {
        let _views = self.domain.mapping().lock();
        // The owner may read it from now on, but machine frame numbers are not for every owner.
        if let Some(table) = self.page(pfn) {
            table.fill(0);
        }
        self.set_claim(pfn, claim::TABLE);
    }

    fn flush_tlb(&self, _start: u64, _end: u64) {
        // A processor has the tables only under the domain's lock, and forgets all of them at once
        // when it gets the kernel's back.
    }

    fn load_cr3(&self, cr3: u64) {
        self.cr3.set(Some(cr3));
    }
}

/// The table pool of a space.
pub(crate) struct Pool<'a> {
    host: &'a Host<'a>,
    range: PfnRange,
    /// All pages before this one are in use.
    next: u64,
}

impl<'a> Pool<'a> {
    fn new(host: &'a Host<'a>, range: PfnRange) -> Self {
        Self {
            host,
            range,
            next: 0,
        }
    }
}

impl TablePages for Pool<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        if self.host.domain.injection().should_fail() {
            return None;
        }
        while let Some(pfn) = self.range.nth(self.next) {
            if self.host.claim(pfn) == claim::FREE {
                self.host.page(pfn)?.fill(0);
                self.host.set_claim(pfn, claim::TABLE);
                return Some(pfn);
            }
            self.next += 1;
        }
        None
    }

    fn free(&mut self, pfn: Pfn) {
        // The owner of a native table can link whatever they like.
        if self.host.claim(pfn) != claim::TABLE {
            return;
        }
        self.host.set_claim(pfn, claim::FREE);
        if let Some(position) = pfn.get().checked_sub(self.range.start().get()) {
            self.next = self.next.min(position);
        }
    }
}

impl From<PagingError> for Error {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::BadRange => EOVERFLOW,
            PagingError::BadFlags => EOPNOTSUPP,
            PagingError::Occupied => EEXIST,
            PagingError::Missing => ENOENT,
            PagingError::NoTable => ENOSPC,
            PagingError::Busy => EBUSY,
            PagingError::Endless => EUCLEAN,
        }
    }
}
