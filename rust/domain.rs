// SPDX-License-Identifier: GPL-2.0

//! A domain: one pseudo-physical space, with its maps and its regions.
//!
//! # Lock order
//!
//! ```text
//! mmap_lock or VMA lock
//!   Domain::state
//!     Mapping (invalidate_lock)
//!       i_mmap_rwsem, page table locks
//! ```
//!
//! Lookups take none of these: they are RCU read-side critical sections. Nothing that may fault on
//! user memory is done under a lock.

use kernel::{
    bindings,
    fs::File,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu,
        Arc,
        Mutex, //
    }, //
};

use crate::{
    abi,
    compat::{
        parameter,
        EDQUOT,
        EOPNOTSUPP,
        EUCLEAN, //
    },
    counters::{
        Counter,
        Counters, //
    },
    dma_buf::Importers,
    ffi,
    frames::{
        self,
        Charge,
        Excluded,
        Filtered,
        Origin,
        Pages,
        Returned,
        Source, //
    },
    inject::Injection,
    mapping::{
        Invalidation,
        Mapping,
        Tracer, //
    },
    pure::{
        entry::{
            self,
            Entry,
            INVALID, //
        },
        frame::{
            Mfn,
            Pfn,
            PfnRange,
            PAGE_SHIFT, //
        },
        map::{
            Gone,
            Maps,
            SetError,
            Which,
            Writer, //
        },
        policy::{
            FrameSource,
            Policy, //
        },
        runs::Runs, //
    },
    space::{
        Claims,
        Host,
        OwnedSpace,
        Spaces, //
    },
    store::Store, //
};

mod foreign;
mod live;
mod superpage;
pub(crate) use live::{
    Moved,
    BATCH, //
};

/// The number of the next domain.
static NEXT_ID: Atomic<u64> = Atomic::new(1);

/// Domains in the system.
static NR_DOMAINS: Atomic<u64> = Atomic::new(0);

/// Superpages of all domains.
static NR_SUPERPAGES: Atomic<u64> = Atomic::new(0);

/// Returns the number of domains in the system.
pub(crate) fn nr_domains() -> u64 {
    NR_DOMAINS.load(Relaxed)
}

/// Returns the number of superpages of all domains.
pub(crate) fn nr_superpages() -> u64 {
    NR_SUPERPAGES.load(Relaxed)
}

/// Returns the most pages that one domain may have.
pub(crate) fn max_pages() -> u64 {
    match parameter(&crate::module_parameters::max_domain_pages) {
        0 => frames::max_total(),
        limit => limit,
    }
}

/// Regions that nobody asked to be at a certain place begin at multiples of this, so that they have
/// leaves of their own and may have large pages.
const REGION_ALIGN: u64 = 512;

/// How many frames go into the maps before faults get their turn.
const INSTALL_BATCH: usize = 512;

/// A populated range of PFNs.
struct Region {
    range: PfnRange,
    flags: u32,
    policy: u32,
    seed: u64,
    origin: Origin,
    /// There are superpages, or were once.
    has_superpages: bool,
    /// What pays for the pages. [`None`] while they are being allocated: the region keeps its place
    /// then, but isn't there yet.
    charge: Option<Charge>,
}

/// A region as `P2M_REGION_LIST` tells of it.
pub(crate) struct Listed {
    pub(crate) region: abi::p2m_region,
    pub(crate) constraint: abi::p2m_constraint,
}

impl Region {
    fn listed(&self) -> Listed {
        let Origin { constraint, node } = self.origin;
        let has = |flag| self.flags & flag != 0;
        let (divisor, colour) = constraint.colour.unwrap_or((0, 0));
        let (start_mfn, end_mfn) = match has(abi::P2M_REGION_RANGE) {
            true => constraint.range,
            false => (0, 0),
        };
        Listed {
            region: abi::p2m_region {
                base_pfn: self.range.start().get(),
                nr_pages: self.range.nr_pages(),
                seed: self.seed,
                policy: self.policy,
                flags: self.flags,
            },
            constraint: abi::p2m_constraint {
                start_mfn,
                end_mfn,
                // CAST: A node isn't negative.
                node: node.unwrap_or(0) as u32,
                divisor,
                colour,
                __reserved: 0,
            },
        }
    }
}

/// What changes about a domain.
struct State {
    /// The right to change the maps.
    writer: Writer,
    /// Regions by their first PFN. They don't overlap.
    regions: RBTree<u64, Region>,
    nr_regions: u32,
    /// Pages of all regions.
    nr_pages: u64,
    /// There never was a region, so a mapping creates one.
    is_fresh: bool,
    spaces: Spaces,
    /// Machine frames that the domain keeps out of.
    exclusions: Excluded,
}

impl State {
    /// Returns whether a region has a PFN in `range`.
    fn is_taken(&self, range: PfnRange) -> bool {
        let overlaps = |(_, region): (&u64, &Region)| region.range.overlaps(range);
        // Of the regions that begin before the range, only the last one can reach into it.
        match self.regions.cursor_lower_bound(&range.start().get()) {
            Some(next) => overlaps(next.current()) || next.peek_prev().is_some_and(overlaps),
            None => self
                .regions
                .cursor_back()
                .is_some_and(|last| overlaps(last.current())),
        }
    }

    /// Returns the lowest place that has room for `nr_pages`.
    fn find_hole(&self, nr_pages: u64) -> Result<PfnRange> {
        let mut start = 0u64;
        for region in self.regions.values() {
            // OVERFLOW: `start` is a little above `Pfn::LIMIT` at most, and so is `nr_pages`.
            if start + nr_pages <= region.range.start().get() {
                break;
            }
            start = region.range.end().next_multiple_of(REGION_ALIGN);
        }
        PfnRange::new(start, nr_pages).map_err(|_| ENOSPC)
    }

    /// Takes a region out.
    fn remove(&mut self, base: u64) -> Option<Region> {
        let region = self.regions.remove(&base)?;
        // OVERFLOW: The region was counted when it was inserted.
        self.nr_regions -= 1;
        self.nr_pages -= region.range.nr_pages();
        Some(region)
    }

    /// Returns the number that all populated PFNs are below.
    fn end_pfn(&self) -> u64 {
        let last = self.regions.cursor_back();
        last.map_or(0, |last| last.current().1.range.end())
    }
}

/// What a region shall be.
pub(crate) struct Request {
    pub(crate) place: Place,
    /// `P2M_REGION_*`
    pub(crate) flags: u32,
    /// `P2M_POLICY_*`
    pub(crate) policy: u32,
    pub(crate) seed: u64,
    pub(crate) origin: Origin,
}

/// Where a region shall be.
pub(crate) enum Place {
    /// In the lowest hole that is large enough, for a number of pages.
    Anywhere(u64),
    /// There.
    Fixed(PfnRange),
}

/// A pseudo-physical space: what an open of `/dev/p2m` is.
#[pin_data(PinnedDrop)]
pub(crate) struct Domain {
    store: Store,
    maps: Maps,
    /// The opener may know machine frame numbers, as with pagemap.
    sees_mfns: bool,
    /// The descriptor was opened for writing.
    is_writable: bool,
    nr_faults: Atomic<u64>,
    nr_fault_pages: Atomic<u64>,
    nr_superpages: Atomic<u64>,
    counters: Counters,
    /// Pages that belong to spaces.
    claims: Claims,
    injection: Arc<Injection>,
    /// Who uses dma-bufs of the domain.
    importers: Arc<Importers>,
    /// The operations of the file, which tell that a file is a domain's.
    operations: *const bindings::file_operations,
    /// The number by which tracepoints and fdinfo call the domain.
    id: u64,
    #[pin]
    mapping: Mapping,
    #[pin]
    state: Mutex<State>,
}

// SAFETY: The pointer to the operations is only compared. Everything else is `Send`.
unsafe impl Send for Domain {}
// SAFETY: As above, with `Sync`.
unsafe impl Sync for Domain {}

impl Domain {
    /// Makes an empty domain for a file that is being opened.
    pub(crate) fn new(file: &File) -> Result<Pin<KBox<Self>>> {
        let injection = Arc::new(Injection::new(), GFP_KERNEL_ACCOUNT)?;
        let importers = Importers::new()?;
        // First, since nobody takes the maps apart after an error.
        let place = KBox::<Self>::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let store = Store::new(injection.clone())?;
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let (maps, writer) = Maps::new(&store)?;
        let (claims, claims_writer) = Claims::new(&store);
        // CAST: Capabilities are small numbers.
        // SAFETY: It has no requirements.
        let sees_mfns = unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) };

        let version = u64::from(abi::P2M_ABI_VERSION) | u64::from(PAGE_SHIFT) << 32;
        maps.set_version(&store, version);
        let domain = place.write_pin_init(pin_init!(Self {
            store,
            maps,
            sees_mfns,
            is_writable: file.flags() & bindings::O_ACCMODE != bindings::O_RDONLY,
            nr_faults: Atomic::new(0),
            nr_fault_pages: Atomic::new(0),
            nr_superpages: Atomic::new(0),
            counters: Counters::new(),
            claims,
            injection,
            importers,
            // SAFETY: `file` is valid, and has its operations already.
            operations: unsafe { (*file.as_ptr()).f_op },
            id,
            mapping <- Mapping::new(file, *id),
            state <- new_mutex!(State {
                writer,
                regions: RBTree::new(),
                nr_regions: 0,
                nr_pages: 0,
                is_fresh: true,
                spaces: Spaces::new(claims_writer),
                exclusions: Excluded::NOTHING,
            }),
        }))?;
        NR_DOMAINS.fetch_add(1, Relaxed);
        // SAFETY: The file is being opened. The domain becomes its private data, which lives until
        // it's released.
        unsafe { domain.mapping.attach(file) };
        Ok(domain)
    }

    /// Returns whether the opener may know machine frame numbers.
    pub(crate) fn sees_mfns(&self) -> bool {
        self.sees_mfns
    }

    /// Returns whether the descriptor was opened for writing: without that, nobody gets memory of
    /// the domain to write to.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Returns the address space that the domain is mapped through.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Returns the number by which tracepoints call the domain.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Returns the operations of files that are domains.
    pub(crate) fn operations(&self) -> *const bindings::file_operations {
        self.operations
    }

    /// Returns what counts what happens to pages.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns what fails on purpose.
    pub(crate) fn injection(&self) -> &Injection {
        &self.injection
    }

    /// Returns who uses dma-bufs of the domain.
    pub(crate) fn importers(&self) -> &Arc<Importers> {
        &self.importers
    }

    /// Returns where frames for the domain come from.
    fn source(&self, state: &State, origin: Origin) -> Filtered {
        Filtered::new(self.injection.clone(), origin, state.exclusions.clone())
    }

    /// Returns the maps, to look something up, and the store of their tables.
    ///
    /// Tables stay where they are in an RCU read-side critical section, and while the
    /// [`Mapping`] is locked.
    pub(crate) fn maps(&self) -> (&Maps, &Store) {
        (&self.maps, &self.store)
    }

    /// Returns the pages that belong to spaces, and the store of its tables.
    pub(crate) fn claims(&self) -> (&Claims, &Store) {
        (&self.claims, &self.store)
    }

    /// Calls `work` with the spaces. It must not fault on user memory.
    pub(crate) fn with_spaces<R>(&self, work: impl FnOnce(&mut Spaces) -> R) -> R {
        let mut state = self.state.lock();
        work(&mut state.spaces)
    }

    /// Calls `work` with a space, and the domain as the machine below it. It must not fault on user
    /// memory.
    pub(crate) fn with_space<R>(
        &self,
        number: u32,
        work: impl FnOnce(&mut OwnedSpace, &Host<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut state = self.state.lock();
        let owned = state.spaces.get(number)?;
        let host = owned.host(self);
        work(owned, &host)
    }

    /// Returns whether a page may be mapped writable or not, as `is_writable` says.
    ///
    /// What is a table of a space has its protection from here: nobody writes to it, and it's full
    /// of machine frame numbers. The caller has locked the mapping.
    pub(crate) fn may_map(&self, number: u64, is_writable: bool) -> bool {
        !self.claims.is_protected(&self.store, number) || (self.sees_mfns && !is_writable)
    }

    /// Returns an entry as the opener may see it.
    pub(crate) fn visible(&self, entry: Entry) -> Entry {
        if self.sees_mfns {
            entry
        } else {
            entry.redacted()
        }
    }

    /// Counts a fault that mapped `nr_pages`.
    pub(crate) fn count_fault(&self, nr_pages: u64) {
        self.nr_faults.fetch_add(1, Relaxed);
        self.nr_fault_pages.fetch_add(nr_pages, Relaxed);
    }

    /// Populates a range of PFNs, whole or not at all, and returns it.
    pub(crate) fn create(&self, request: &Request) -> Result<PfnRange> {
        let rule = rule(request.policy, request.seed)?;
        let range = self.reserve(request)?;
        let result = self.populate(range, rule, request);
        if result.is_err() {
            self.state.lock().remove(range.start().get());
        }
        result.map(|()| range)
    }

    /// Creates a region of the default policy, if the domain never had one.
    pub(crate) fn create_if_fresh(&self, range: PfnRange) -> Result {
        if !self.state.lock().is_fresh {
            return Ok(());
        }
        let request = Request {
            place: Place::Fixed(range),
            flags: 0,
            policy: default_policy(),
            seed: 0,
            origin: Origin::ANYWHERE,
        };
        match self.create(&request) {
            // Somebody else was faster.
            Err(error) if error == EEXIST => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Takes a place for a region that is to come.
    fn reserve(&self, request: &Request) -> Result<PfnRange> {
        self.injection.check(ENOMEM)?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let mut state = self.state.lock();
        let range = match request.place {
            Place::Fixed(range) if state.is_taken(range) => return Err(EEXIST),
            Place::Fixed(range) => range,
            Place::Anywhere(nr_pages) => state.find_hole(nr_pages)?,
        };
        // OVERFLOW: Both are below 2^31.
        if state.nr_pages + range.nr_pages() > max_pages() || state.nr_regions >= max_regions() {
            return Err(EDQUOT);
        }
        let region = Region {
            range,
            flags: request.flags,
            policy: request.policy,
            seed: request.seed,
            origin: request.origin,
            has_superpages: request.policy == abi::P2M_POLICY_SUPERPAGE,
            charge: None,
        };
        state
            .regions
            .insert(node.into_node(range.start().get(), region));
        state.nr_regions += 1;
        state.nr_pages += range.nr_pages();
        Ok(range)
    }

    /// Gets frames for a reserved range and puts them there.
    fn populate(&self, range: PfnRange, rule: Policy, request: &Request) -> Result {
        // A guard for each page, roughly.
        let weight = 1 + u64::from(request.origin.constraint.is_guarded);
        // OVERFLOW: There are not more pages than PFNs.
        self.injection.check(ENOMEM)?;
        let charge = Charge::new(range.nr_pages() * weight)?;
        let nr_pages = match request.flags & abi::P2M_REGION_ON_DEMAND {
            0 => range.nr_pages(),
            _ => 0,
        };
        if !Source::has_room_for(nr_pages * weight) {
            return Err(ENOMEM);
        }
        let nr_pages = usize::try_from(nr_pages).map_err(|_| ENOMEM)?;
        self.injection.check(ENOMEM)?;
        let mut frames = KVVec::from_elem(Mfn::ZERO, nr_pages, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        let mut source = self.source(&self.state.lock(), request.origin);
        let has_superpages = request.policy == abi::P2M_POLICY_SUPERPAGE;
        if has_superpages {
            Self::fill_superpages(range, &mut source, &mut frames)?;
        } else if nr_pages > 0 {
            rule.fill(&mut source, &mut frames)
                .map_err(|error| source.reason(error))?;
        }

        let mut state = self.state.lock();
        let writer = &mut state.writer;
        let (nr_installed, result) = match has_superpages {
            true => self.install_superpages(writer, range, &frames),
            false => self.install(writer, range, &frames),
        };
        let result = result.and_then(|()| self.install_guards(writer, &mut source));
        if let Err(error) = result {
            // With their guards.
            self.depopulate_for_good(writer, range, |_, _| ());
            for &mfn in frames.iter().skip(nr_installed) {
                Source::take_back(Gone::Frame(mfn));
            }
            return Err(error);
        }
        if self.sees_mfns {
            let end = frames.iter().max().map_or(0, |last| last.get() + 1);
            self.maps.raise_end_mfn(&mut state.writer, &self.store, end);
        }
        if let Some(region) = state.regions.get_mut(&range.start().get()) {
            region.charge = Some(charge);
        }
        state.is_fresh = false;
        trace_region(self.id, range, true);
        self.update_end(&mut state);
        Ok(())
    }

    /// Puts frames into the maps.
    ///
    /// Returns how many, also if it stopped half-way.
    fn install(&self, writer: &mut Writer, range: PfnRange, frames: &[Mfn]) -> (usize, Result) {
        let mut nr_done = 0;
        let mut pfns = range.iter();
        for batch in frames.chunks(INSTALL_BATCH) {
            let views = self.mapping.lock();
            for (&mfn, pfn) in batch.iter().zip(&mut pfns) {
                let entry = Entry::Present(mfn);
                let result = self.maps.set(writer, &self.store, &views, pfn, entry);
                if let Err(error) = result {
                    self.counters.add(Counter::Populated, nr_done as u64);
                    return (nr_done, Err(error.into()));
                }
                nr_done += 1;
            }
        }
        self.counters.add(Counter::Populated, nr_done as u64);
        (nr_done, Ok(()))
    }

    /// Puts the guards that a source has picked next to frames into the maps, as far as the frames
    /// are there.
    fn install_guards(&self, writer: &mut Writer, source: &mut Filtered) -> Result {
        let guards = source.take_guards()?;
        if guards.is_empty() {
            return Ok(());
        }
        let views = self.mapping.lock();
        let mut result = Ok(());
        for &mfn in &guards {
            if result.is_ok() && self.maps.has_neighbour(&self.store, mfn) {
                // SAFETY: The frame is ours, and nobody else's.
                unsafe { Source::table(mfn) }.fill(abi::P2M_GUARD_PATTERN);
                result = self.maps.set_guard(writer, &self.store, &views, mfn);
                if result.is_ok() {
                    continue;
                }
            }
            Source.free(mfn);
        }
        Ok(result?)
    }

    /// Takes a range out of all page tables and out of the maps. Passes what has left them to
    /// `release`, as [`Maps::clear_runs()`] does.
    fn depopulate(&self, writer: &mut Writer, range: PfnRange, mut release: impl FnMut(Gone, u64)) {
        let mut nr_frames = 0;
        let views = self.mapping.lock();
        views.unmap(range);
        self.maps
            .clear_runs(writer, &self.store, &views, range, |gone, nr| {
                if let Gone::Frame(_) = gone {
                    nr_frames += nr;
                }
                release(gone, nr);
            });
        self.counters.add(Counter::Released, nr_frames);
    }

    /// Takes back what has left the maps, as [`Source::take_back()`] does.
    fn take_back(&self, gone: Gone) {
        self.discount_superpages(Source::take_back(gone).into());
    }

    /// Takes a range out of all page tables and out of the maps, and its frames back. Passes what has
    /// left the maps to `report`.
    fn depopulate_for_good(
        &self,
        writer: &mut Writer,
        range: PfnRange,
        mut report: impl FnMut(Gone, u64),
    ) {
        let mut returned = Returned::new();
        self.depopulate(writer, range, |gone, nr| {
            report(gone, nr);
            self.discount_superpages(returned.take_back(gone, nr));
        });
    }

    fn discount_superpages(&self, nr: u64) {
        if nr > 0 {
            self.nr_superpages.fetch_sub(nr, Relaxed);
            NR_SUPERPAGES.fetch_sub(nr, Relaxed);
        }
    }

    /// Counts a superpage that is in the maps now.
    fn count_superpage(&self) {
        self.nr_superpages.fetch_add(1, Relaxed);
        NR_SUPERPAGES.fetch_add(1, Relaxed);
    }

    fn update_end(&self, state: &mut State) {
        let end = state.end_pfn();
        self.maps.set_end_pfn(&mut state.writer, &self.store, end);
    }

    /// Takes the region that begins at `base` away, out of all mappings, too.
    pub(crate) fn destroy(&self, base: u64) -> Result {
        let mut state = self.state.lock();
        let range = match state.regions.get(&base) {
            Some(region) if region.charge.is_some() => region.range,
            _ => return Err(ENOENT),
        };
        // Tables would name frames that are somebody else's by then.
        if self.is_used_by_space(&state, range) {
            return Err(EBUSY);
        }
        let region = state.remove(base).ok_or(ENOENT)?;
        self.depopulate_for_good(&mut state.writer, region.range, |_, _| ());
        self.update_end(&mut state);
        trace_region(self.id, range, false);
        drop(state);
        // Only now there are fewer pages.
        drop(region);
        Ok(())
    }

    /// Returns the regions that begin at or above `start`: the first ones, as many as fit into
    /// `limit`, and the number of all.
    pub(crate) fn list(&self, start: u64, limit: usize) -> Result<(KVVec<Listed>, u64)> {
        let mut list = KVVec::new();
        loop {
            let state = self.state.lock();
            let regions = || {
                // A tree has no iterator that begins in its middle.
                let all = state.regions.values();
                all.filter(|region| region.charge.is_some() && region.range.start().get() >= start)
            };
            let total = regions().count();
            if list.capacity() < total.min(limit) {
                drop(state);
                list.reserve(total.min(limit), GFP_KERNEL_ACCOUNT)?;
                continue;
            }
            for region in regions().take(limit) {
                // There is room, as has just been checked.
                list.push_within_capacity(region.listed())
                    .map_err(|_| ENOMEM)?;
            }
            return Ok((list, total as u64));
        }
    }

    /// Fills `words` with what is at the PFNs from `first` on.
    pub(crate) fn lookup(&self, first: u64, words: &mut [u64]) {
        let guard = rcu::read_lock();
        self.maps.lookup_run(&self.store, first, words);
        drop(guard);
        if !self.sees_mfns {
            for word in words {
                *word = self.visible(Entry::from_raw(*word)).raw();
            }
        }
    }

    /// Replaces PFNs by what is there.
    pub(crate) fn pfns_to_entries(&self, words: &mut [u64]) {
        let _guard = rcu::read_lock();
        for word in words {
            *word = self.entry(*word);
        }
    }

    /// Replaces MFNs by the PFNs at which they are.
    pub(crate) fn mfns_to_pfns(&self, words: &mut [u64]) {
        let _guard = rcu::read_lock();
        for word in words {
            let pfn = Mfn::new(*word).and_then(|mfn| self.maps.mfn_to_pfn(&self.store, mfn));
            *word = pfn.map_or(INVALID, Pfn::get);
        }
    }

    /// Returns the word of an entry, as the opener may see it.
    fn entry(&self, number: u64) -> u64 {
        let entry =
            Pfn::new(number).map_or(Entry::Invalid, |pfn| self.maps.lookup(&self.store, pfn));
        self.visible(entry).raw()
    }

    /// Returns the runs of a range. Each step has to be in an RCU read-side critical section.
    pub(crate) fn runs(&self, range: PfnRange) -> Runs<'_, Store> {
        Runs::new(&self.maps, &self.store, range)
    }

    /// Returns the number that all populated PFNs are below.
    pub(crate) fn end_pfn(&self) -> u64 {
        self.maps.end_pfn(&self.store)
    }

    /// Fills in what `P2M_STAT` tells.
    pub(crate) fn stat(&self, stat: &mut abi::p2m_stat) {
        let state = self.state.lock();
        stat.out_generation = self.maps.generation(&self.store, Which::P2m);
        stat.out_regions = u64::from(state.nr_regions);
        stat.out_pages = state.nr_pages;
        stat.out_p2m_tables = state.writer.nr_tables(Which::P2m);
        stat.out_m2p_tables = state.writer.nr_tables(Which::M2p);
        stat.out_frames = state.writer.nr_frames();
        stat.out_guards = state.writer.nr_guards();
        stat.out_superpages = self.nr_superpages.load(Relaxed);
        drop(state);
        stat.out_faults = self.nr_faults.load(Relaxed);
        stat.out_fault_pages = self.nr_fault_pages.load(Relaxed);
        stat.out_total_domains = nr_domains();
        stat.out_total_pages = frames::total();
    }
}

fn trace_region(domain: u64, range: PfnRange, is_new: bool) {
    // SAFETY: It has no requirements.
    unsafe {
        ffi::p2m_trace_region(domain, range.start().get(), range.nr_pages(), is_new);
    }
}

impl From<SetError> for Error {
    fn from(error: SetError) -> Self {
        match error {
            SetError::NoMemory => ENOMEM,
            // The page allocator doesn't hand out a frame that we have.
            SetError::Elsewhere(_) => EUCLEAN,
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Domain {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        let mut state = this.state.lock();
        let State {
            writer,
            regions,
            spaces,
            ..
        } = &mut *state;
        spaces.release(this.claims, this.store);
        // No mapping is left, as each has a reference to the file. So there's nothing to zap.
        let tracer = Tracer(*this.id);
        let nr_frames = writer.nr_frames();
        for region in regions.values() {
            let nr_superpages = &this.nr_superpages;
            let mut returned = Returned::new();
            this.maps
                .clear_runs(writer, this.store, &tracer, region.range, |gone, nr| {
                    let nr = returned.take_back(gone, nr);
                    if nr > 0 {
                        nr_superpages.fetch_sub(nr, Relaxed);
                        NR_SUPERPAGES.fetch_sub(nr, Relaxed);
                    }
                });
            trace_region(*this.id, region.range, false);
        }
        this.counters.add(Counter::Released, nr_frames);
        this.maps.destroy(writer, this.store);
        NR_DOMAINS.fetch_sub(1, Relaxed);
    }
}

/// Checks the parameters of the module.
pub(crate) fn check_parameters() -> Result {
    rule(default_policy(), 0).map(|_| ()).inspect_err(|_| {
        pr_err!(
            "default_policy: no policy has the number {}\n",
            default_policy()
        )
    })
}

/// Returns the most regions that one domain may have.
pub(crate) fn max_regions() -> u32 {
    parameter(&crate::module_parameters::max_regions)
}

/// Returns the policy of regions that nobody named a policy for.
pub(crate) fn default_policy() -> u32 {
    parameter(&crate::module_parameters::default_policy)
}

/// Policies that can be asked for, as a bit mask.
pub(crate) const POLICIES: u64 = 1 << abi::P2M_POLICY_ANY
    | 1 << abi::P2M_POLICY_SCATTER
    | 1 << abi::P2M_POLICY_CONTIGUOUS
    | 1 << abi::P2M_POLICY_SUPERPAGE;

/// Returns the policy that a number and its seed stand for: that of single frames.
pub(crate) fn rule(policy: u32, seed: u64) -> Result<Policy> {
    let rule = match policy {
        abi::P2M_POLICY_SCATTER => return Ok(Policy::Scatter { seed }),
        abi::P2M_POLICY_ANY | abi::P2M_POLICY_SUPERPAGE => Policy::Any,
        abi::P2M_POLICY_CONTIGUOUS => Policy::Contiguous,
        _ => return Err(EOPNOTSUPP),
    };
    if seed != 0 {
        return Err(EINVAL);
    }
    Ok(rule)
}
