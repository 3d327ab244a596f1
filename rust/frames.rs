// SPDX-License-Identifier: GPL-2.0

//! Machine frames: the one place where they come in and go out, and where they are counted.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

use crate::{
    compat::{
        parameter,
        EADDRNOTAVAIL,
        EDQUOT, //
    },
    ffi,
    inject::Injection,
    pure::{
        frame::{
            Mfn,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        map::{
            Gone,
            SUPERPAGE_PAGES, //
        },
        policy::{
            Constraint,
            Exclusions,
            FrameError,
            FrameSource,
            Pick,
            Selector, //
        },
        search::{
            Places,
            Search, //
        },
        table::Table, //
    }, //
};

/// Pages of all domains.
static TOTAL: Atomic<u64> = Atomic::new(0);

/// Returns the number of pages that all domains have.
pub(crate) fn total() -> u64 {
    TOTAL.load(Relaxed)
}

/// Returns the most pages that all domains may have together.
pub(crate) fn max_total() -> u64 {
    match parameter(&crate::module_parameters::max_pages) {
        // SAFETY: It has no requirements.
        0 => unsafe { ffi::p2m_totalram_pages() as u64 / 4 * 3 },
        limit => limit,
    }
}

/// Returns the number that all MFNs of the machine are below, as it is now.
pub(crate) fn max_mfn() -> u64 {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_max_pfn() as u64 }
}

/// Returns whether a NUMA node has memory.
pub(crate) fn is_memory_node(node: c_int) -> bool {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_is_memory_node(node) }
}

/// The right to have a number of pages: counted against the module's limit and against the
/// RLIMIT_MEMLOCK of a user. The memory cgroup is charged by the page allocator.
///
/// # Invariants
///
/// `nr_pages` are counted in [`TOTAL`] and as locked memory of `user`, which we hold a reference to.
pub(crate) struct Charge {
    user: NonNull<bindings::user_struct>,
    nr_pages: u64,
}

// SAFETY: References to users are counted atomically and can be put by anybody.
unsafe impl Send for Charge {}

impl Charge {
    /// Counts pages of the current user, if the limits allow it.
    pub(crate) fn new(nr_pages: u64) -> Result<Self> {
        // SAFETY: It has no requirements.
        let user = NonNull::new(unsafe { ffi::p2m_get_current_user() }).ok_or(EINVAL)?;
        // INVARIANT: Nothing is counted yet.
        let mut charge = Self { user, nr_pages: 0 };

        // OVERFLOW: The sum of all requests at one time is far below 2^64, as each is checked to
        // be below 2^31.
        let total = TOTAL.fetch_add(nr_pages, Relaxed) + nr_pages;
        if total > max_total() {
            TOTAL.fetch_sub(nr_pages, Relaxed);
            return Err(EDQUOT);
        }
        // SAFETY: `user` is valid, as we have a reference to it.
        if !unsafe { ffi::p2m_charge_locked(user.as_ptr(), nr_pages as c_ulong) } {
            TOTAL.fetch_sub(nr_pages, Relaxed);
            return Err(ENOMEM);
        }
        // INVARIANT: Both have just been counted.
        charge.nr_pages = nr_pages;
        Ok(charge)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.nr_pages, Relaxed);
        // SAFETY: By the type invariants, that many pages are counted, and we have a reference,
        // which we give up.
        unsafe {
            ffi::p2m_uncharge_locked(self.user.as_ptr(), self.nr_pages as c_ulong);
            bindings::free_uid(self.user.as_ptr());
        }
    }
}

/// How many runs of a node are looked at for one below a limit.
const NODE_TRIES: u32 = 64;

/// How often it's tried to have a place cleared: pages may be in use for a moment only.
const PLACE_TRIES: u32 = 2;

/// The page allocator as a source of frames.
///
/// A frame that it gave is in use until it's freed, with a reference count of its own. There is a
/// `struct page` for it. The frames of a *superpage* are one compound page, with one count for all
/// of them: they come and go together, and are in the maps together, at PFNs as aligned as they are.
pub(crate) struct Source;

/// `GFP_USER | __GFP_ZERO | __GFP_ACCOUNT | __GFP_NOWARN`: memory for userspace, zeroed and charged
/// to its memory cgroup. Failure is an answer like any other.
const GFP_FRAME: bindings::gfp_t = bindings::GFP_KERNEL_ACCOUNT
    | 1 << bindings::___GFP_HARDWALL_BIT
    | 1 << bindings::___GFP_ZERO_BIT
    | 1 << bindings::___GFP_NOWARN_BIT;

/// For blocks: take what is there, since a smaller block does as well.
const GFP_BLOCK: bindings::gfp_t = GFP_FRAME
    & !(1 << bindings::___GFP_DIRECT_RECLAIM_BIT)
    & !(1 << bindings::___GFP_KSWAPD_RECLAIM_BIT);

/// For single frames: reclaim what can be reclaimed, but don't have anybody killed for it.
const GFP_SINGLE: bindings::gfp_t = GFP_FRAME | 1 << bindings::___GFP_RETRY_MAYFAIL_BIT;

/// For frames at a certain place. The allocator can't charge these to the memory cgroup, and refuses to
/// be asked.
const GFP_PLACE: bindings::gfp_t = GFP_SINGLE & !(1 << bindings::___GFP_ACCOUNT_BIT);

/// For superpages that were asked for: reclaim and compact, but don't have anybody killed for it.
const GFP_SUPERPAGE: bindings::gfp_t = GFP_SINGLE;

/// For superpages that single frames would do as well for.
const GFP_SUPERPAGE_LIGHT: bindings::gfp_t = GFP_BLOCK;

/// log2 of the number of pages in a superpage.
const SUPERPAGE_ORDER: u32 = SUPERPAGE_PAGES.ilog2();

/// One page of so many is left to others.
const OTHERS_SHARE: u64 = 32;

/// Of what the allocator gives without its being as asked, one page of so many is set aside.
const ASIDE_SHARE: u64 = 64;

/// The first frame above the zone for devices of old. What a zone promises is in
/// Documentation/mm/physical_memory.rst.
const DMA_END: u64 = 1 << (24 - PAGE_SHIFT);

/// The first frame above the zone for devices with addresses of 32 bits.
const DMA32_END: u64 = 1 << (32 - PAGE_SHIFT);

impl Source {
    /// Returns the first frame of a superpage, from a zone and a node.
    fn alloc_superpage_in(
        &mut self,
        gfp: bindings::gfp_t,
        zone: bindings::gfp_t,
        node: Option<c_int>,
    ) -> Option<Mfn> {
        let node = node.unwrap_or(bindings::NUMA_NO_NODE);
        // SAFETY: It has no requirements in a context that may sleep.
        Self::mfn(unsafe { ffi::p2m_alloc_superpage(gfp | zone, node) })
    }

    /// Returns whether a frame is one of a superpage.
    pub(crate) fn is_superpage(mfn: Mfn) -> bool {
        // SAFETY: There is a page for every frame that came from the page allocator.
        unsafe { ffi::p2m_is_compound(Self::page(mfn)) }
    }

    /// Takes back what has left the maps. Frames of a superpage are passed in order: the last one
    /// takes the others along.
    ///
    /// Returns whether that was a superpage.
    pub(crate) fn take_back(gone: Gone) -> bool {
        match gone {
            Gone::Frame(mfn) if Self::is_superpage(mfn) => {
                let is_last = mfn.get() % SUPERPAGE_PAGES == SUPERPAGE_PAGES - 1;
                if is_last {
                    Source.free(mfn);
                }
                is_last
            }
            // Of a foreign one it's our reference that goes.
            Gone::Frame(mfn) | Gone::Guard(mfn) | Gone::Foreign(mfn) => {
                Source.free(mfn);
                false
            }
        }
    }

    /// Returns whether the machine has that many pages to spare.
    ///
    /// Without it, a hopeless request would first drive everybody else's memory out. A part is left
    /// to others in any case: what is said to be available may be below the marks at which they
    /// have to wait or to die for a page, as these are raised for a while when blocks are split.
    pub(crate) fn has_room_for(nr_pages: u64) -> bool {
        // SAFETY: Both have no requirements.
        let (available, total) =
            unsafe { (bindings::si_mem_available(), ffi::p2m_totalram_pages()) };
        let available = u64::try_from(available).unwrap_or(0);
        nr_pages.saturating_add(total as u64 / OTHERS_SHARE) <= available
    }

    /// Returns the page of a frame that came from here.
    pub(crate) fn page(mfn: Mfn) -> *mut bindings::page {
        // SAFETY: There is a page for every frame that came from the page allocator.
        unsafe { ffi::p2m_pfn_to_page(mfn.get() as c_ulong) }
    }

    /// Returns a frame as a table, which its owner may write to as well.
    ///
    /// # Safety
    ///
    /// The frame isn't freed for `'a`.
    pub(crate) unsafe fn table<'a>(mfn: Mfn) -> &'a Table {
        // SAFETY: A frame of the page allocator is in the linear map. By the safety requirements of
        // this function it stays ours, it's initialised, and all accesses to it are atomic.
        unsafe { &*ffi::p2m_page_address(Self::page(mfn)).cast::<Table>() }
    }

    /// Returns the first of `1 << order` frames that follow each other, from a zone and a node.
    fn alloc_in(&mut self, order: u32, zone: bindings::gfp_t, node: Option<c_int>) -> Option<Mfn> {
        let gfp = zone | if order > 0 { GFP_BLOCK } else { GFP_SINGLE };
        let page = match node {
            // SAFETY: It has no requirements in a context that may sleep.
            None => unsafe { bindings::alloc_pages(gfp, order) },
            Some(node) if order == 0 => {
                let gfp = gfp | 1 << bindings::___GFP_THISNODE_BIT;
                let mut page = ptr::null_mut();
                // SAFETY: As above. There is room for one pointer.
                unsafe {
                    bindings::alloc_pages_bulk_noprof(gfp, node, ptr::null_mut(), 1, &mut page)
                };
                page
            }
            // No exported function takes a node and an order.
            Some(_) => ptr::null_mut(),
        };
        if order > 0 && !page.is_null() {
            // SAFETY: `page` is a block of that order, isn't compound and is only ours.
            unsafe { bindings::split_page(page, order) };
        }
        Self::mfn(page)
    }

    /// Returns the first of `nr` frames that follow each other, from a zone and a node.
    fn alloc_run_in(
        &mut self,
        nr: usize,
        zone: bindings::gfp_t,
        node: Option<c_int>,
    ) -> Option<Mfn> {
        let order = nr.checked_next_power_of_two()?.ilog2();
        if order <= Self::MAX_ORDER && node.is_none() {
            // SAFETY: It has no requirements in a context that may sleep.
            let page = unsafe { bindings::alloc_pages(GFP_SINGLE | zone, order) };
            let first = Self::mfn(page)?;
            if order > 0 {
                // SAFETY: `page` is a block of that order, isn't compound and is only ours.
                unsafe { bindings::split_page(page, order) };
            }
            for surplus in nr as u64..1 << order {
                if let Some(mfn) = first.checked_add(surplus) {
                    self.free(mfn);
                }
            }
            return Some(first);
        }
        let mut gfp = GFP_PLACE | zone;
        if node.is_some() {
            gfp |= 1 << bindings::___GFP_THISNODE_BIT;
        }
        // SAFETY: They have no requirements in a context that may sleep. Without a mask all nodes
        // are looked at, the nearest first.
        let page = unsafe {
            let nid = node.unwrap_or_else(|| ffi::p2m_numa_mem_id());
            bindings::alloc_contig_pages_noprof(nr as c_ulong, gfp, nid, ptr::null_mut())
        };
        Self::mfn(page)
    }

    /// Takes a reference to a frame that somebody else has and keeps meanwhile. It goes back by
    /// `free()`.
    pub(crate) fn take_reference(mfn: Mfn) {
        // SAFETY: There is a page for every frame that came from the page allocator, and somebody has
        // a reference to it.
        unsafe { ffi::p2m_get_page(Self::page(mfn)) };
    }

    /// Returns whether machine frames are nothing that the kernel has for memory.
    pub(crate) fn is_no_memory(first: u64, nr: u64) -> bool {
        let (Some(start), Some(size)) = (
            first.checked_mul(PAGE_SIZE as u64),
            nr.checked_mul(PAGE_SIZE as u64),
        ) else {
            return false;
        };
        // SAFETY: It has no requirements.
        unsafe { ffi::p2m_is_no_memory(start, size) }
    }

    /// Copies a frame.
    ///
    /// # Safety
    ///
    /// Both are ours, and nobody else reads or writes them.
    pub(crate) unsafe fn copy(from: Mfn, to: Mfn) {
        // SAFETY: Both are in the linear map. By the safety requirements of this function there are
        // no other accesses. Different frames don't overlap.
        unsafe {
            let from = ffi::p2m_page_address(Self::page(from)).cast::<u8>();
            let to = ffi::p2m_page_address(Self::page(to)).cast::<u8>();
            ptr::copy_nonoverlapping(from, to, PAGE_SIZE);
        }
    }

    /// Exchanges the contents of two frames, by way of a buffer as large as a page.
    ///
    /// # Safety
    ///
    /// Both are ours, and nobody else reads or writes them.
    pub(crate) unsafe fn swap(a: Mfn, b: Mfn, buffer: &mut [u8]) {
        let Some(buffer) = buffer.get_mut(..PAGE_SIZE) else {
            return;
        };
        // SAFETY: As in `copy()`. The buffer has the size of a page.
        unsafe {
            let at_a = ffi::p2m_page_address(Self::page(a)).cast::<u8>();
            ptr::copy_nonoverlapping(at_a, buffer.as_mut_ptr(), PAGE_SIZE);
            Self::copy(b, a);
            let at_b = ffi::p2m_page_address(Self::page(b)).cast::<u8>();
            ptr::copy_nonoverlapping(buffer.as_ptr(), at_b, PAGE_SIZE);
        }
    }

    /// Returns who has references to a frame.
    pub(crate) fn references(mfn: Mfn) -> References {
        let page = Self::page(mfn);
        // SAFETY: There is a page for every frame that came from the page allocator.
        let count = || unsafe { ffi::p2m_page_count(page) };
        let mut nr_all = count();
        // SAFETY: As above.
        let mut nr_mapped = unsafe { ffi::p2m_page_mapcount(page) };
        // Pages are mapped and unmapped meanwhile: look again if one was.
        for _ in 0..MAX_LOOKS {
            let now = count();
            if now == nr_all {
                break;
            }
            nr_all = now;
            // SAFETY: As above.
            nr_mapped = unsafe { ffi::p2m_page_mapcount(page) };
        }
        References {
            // OVERFLOW: Both are not negative.
            nr_unknown: nr_all - 1 - nr_mapped,
        }
    }

    /// Returns whether nobody but the domain has a reference to a frame.
    pub(crate) fn is_exclusive(mfn: Mfn) -> bool {
        // SAFETY: There is a page for every frame that came from the page allocator.
        unsafe { ffi::p2m_page_count(Self::page(mfn)) == 1 }
    }

    /// Returns whether there are at least `nr` references to a frame.
    pub(crate) fn has_references(mfn: Mfn, nr: c_int) -> bool {
        // SAFETY: There is a page for every frame that came from the page allocator.
        unsafe { ffi::p2m_page_count(Self::page(mfn)) >= nr }
    }

    /// Returns the frame of a page that the allocator returned.
    fn mfn(page: *mut bindings::page) -> Option<Mfn> {
        if page.is_null() {
            return None;
        }
        // SAFETY: `page` is a valid page.
        Mfn::new(unsafe { ffi::p2m_page_to_pfn(page) as u64 })
    }
}

/// References to frames, in order, which somebody has and keeps while they are taken.
///
/// # Invariants
///
/// All are valid pages, to each of which we have a reference.
pub(crate) struct Pages {
    pages: KVVec<*mut bindings::page>,
}

// SAFETY: References to pages are counted atomically and can be put by anybody.
unsafe impl Send for Pages {}
// SAFETY: A shared one does nothing.
unsafe impl Sync for Pages {}

impl Pages {
    /// Makes room for `nr_pages`.
    pub(crate) fn with_capacity(nr_pages: u64) -> Result<Self> {
        let nr_pages = usize::try_from(nr_pages).map_err(|_| ENOMEM)?;
        // INVARIANT: There are none.
        Ok(Self {
            pages: KVVec::with_capacity(nr_pages, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?,
        })
    }

    /// Takes a reference to a frame that somebody else has and keeps meanwhile, if there is room.
    pub(crate) fn hold(&mut self, mfn: Mfn) -> Result {
        self.pages
            .push_within_capacity(Source::page(mfn))
            .map_err(|_| EINVAL)?;
        // INVARIANT: It's one of the page allocator's, and here is the reference.
        Source::take_reference(mfn);
        Ok(())
    }

    /// Returns where the pages are and how many. They stay there until this is dropped.
    pub(crate) fn as_raw(&mut self) -> Result<(*mut *mut bindings::page, c_uint)> {
        let nr_pages = c_uint::try_from(self.pages.len()).map_err(|_| EOVERFLOW)?;
        Ok((self.pages.as_mut_ptr(), nr_pages))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for &page in &self.pages {
            // SAFETY: By the type invariants, which give up the reference here.
            unsafe { ffi::p2m_put_page(page) };
        }
    }
}

/// Frames on their way back. The kernel takes many at once for less than one after the other. Those
/// that are left go when this is dropped.
///
/// # Invariants
///
/// The first `nr` came from the page allocator, and we have a reference to each.
pub(crate) struct Returned {
    frames: [u64; ffi::P2M_MAX_PUT],
    nr: usize,
}

impl Returned {
    pub(crate) fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            frames: [0; ffi::P2M_MAX_PUT],
            nr: 0,
        }
    }

    /// Takes back `nr` frames that follow each other and have left the maps, from the one that is gone
    /// on. Of a superpage there are all frames.
    ///
    /// Returns how many superpages that were.
    pub(crate) fn take_back(&mut self, gone: Gone, nr: u64) -> u64 {
        let first = gone.mfn().get();
        // OVERFLOW: They are below `Mfn::LIMIT`.
        let end = first + nr;
        let Gone::Frame(_) = gone else {
            // Of a foreign one it's our reference that goes.
            (first..end).for_each(|number| self.push(number));
            return 0;
        };
        let mut nr_superpages = 0;
        let mut number = first;
        while number < end {
            // What is in an aligned part is all of one superpage, or no part of any.
            let next = (number / SUPERPAGE_PAGES + 1) * SUPERPAGE_PAGES;
            if Mfn::new(number).is_some_and(Source::is_superpage) {
                // The last frame takes the others along, so all have to be here: better to lose one
                // than to give away what somebody still has.
                let is_whole = number + SUPERPAGE_PAGES == next && next <= end;
                if !is_whole {
                    pr_warn!("a part of the superpage at MFN {number:#x} left a domain alone\n");
                } else {
                    self.push(next - 1);
                    nr_superpages += 1;
                }
            } else {
                (number..next.min(end)).for_each(|number| self.push(number));
            }
            number = next;
        }
        nr_superpages
    }

    #[inline]
    fn push(&mut self, number: u64) {
        if self.nr == self.frames.len() {
            self.put();
        }
        if let Some(place) = self.frames.get_mut(self.nr) {
            *place = number;
            // INVARIANT: The reference was the domain's. OVERFLOW: There was a place.
            self.nr += 1;
        }
    }

    fn put(&mut self) {
        // CAST: There are at most `P2M_MAX_PUT`.
        // SAFETY: By the type invariants. The references are given up here.
        unsafe { ffi::p2m_put_frames(self.frames.as_ptr(), self.nr as c_int) };
        // INVARIANT: There are none.
        self.nr = 0;
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.put();
    }
}

/// How often references are counted again that change meanwhile.
const MAX_LOOKS: u32 = 16;

/// Who has references to a frame, at one moment.
pub(crate) struct References {
    /// References besides the domain's own and those of mappings.
    pub(crate) nr_unknown: c_int,
}

impl FrameSource for Source {
    const MAX_ORDER: u32 = bindings::MAX_PAGE_ORDER;

    fn alloc(&mut self, order: u32) -> Option<Mfn> {
        self.alloc_in(order, 0, None)
    }

    fn alloc_run(&mut self, nr: usize) -> Option<Mfn> {
        self.alloc_run_in(nr, 0, None)
    }

    fn free(&mut self, mfn: Mfn) {
        // SAFETY: The frame came from here, so we have a reference to its page, or to the compound
        // page that it's a part of, and give it up.
        unsafe { ffi::p2m_put_page(Self::page(mfn)) };
    }

    fn is_interrupted(&self) -> bool {
        // SAFETY: Both may be called in any context that may sleep.
        unsafe {
            ffi::p2m_cond_resched();
            ffi::p2m_fatal_signal_pending()
        }
    }
}

/// Where frames shall come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// What is asked of each frame.
    pub(crate) constraint: Constraint,
    /// The NUMA node, or none in particular.
    pub(crate) node: Option<c_int>,
}

impl Origin {
    /// From anywhere.
    pub(crate) const ANYWHERE: Self = Self {
        constraint: Constraint::NONE,
        node: None,
    };
}

/// The machine frames that a domain keeps out of, at one moment.
#[derive(Clone)]
pub(crate) struct Excluded {
    /// As [`Exclusions`] has them. None is the same as an empty set.
    ranges: Option<Arc<KVVec<(u64, u64)>>>,
    /// A range that somebody keeps out of besides.
    besides: (u64, u64),
}

/// The most pieces that the set may fall into: a megabyte of them.
const MAX_PIECES: usize = 1 << 16;

impl Excluded {
    /// Nothing is kept out of.
    pub(crate) const NOTHING: Self = Self {
        ranges: None,
        besides: (0, 0),
    };

    /// Returns whether it's the very set, not only an equal one.
    fn is_same(&self, other: &Self) -> bool {
        let address = |set: &Self| set.ranges.as_ref().map(|ranges| ranges.as_ptr());
        address(self) == address(other) && self.besides == other.besides
    }

    fn ranges(&self) -> Exclusions<'_> {
        Exclusions(self.ranges.as_ref().map_or(&[], |ranges| ranges.as_slice()))
    }

    /// Returns whether one of `nr` frames from `first` on is excluded.
    fn has_any(&self, first: Mfn, nr: u64) -> bool {
        let (start, end) = (first.get(), first.get().saturating_add(nr));
        (self.besides.0 < end && start < self.besides.1) || self.ranges().has_any(start, end)
    }

    /// Returns the lowest frame from which on to before `end` none is excluded: `start`, a frame behind
    /// it, or `end`.
    fn open_from(&self, start: u64, end: u64) -> u64 {
        let open = self.ranges().open_from(start, end);
        let (first, stop) = self.besides;
        match first < end {
            true => open.max(stop.min(end)),
            false => open,
        }
    }

    /// Returns the set with a range more.
    pub(crate) fn with(&self, start: u64, end: u64) -> Result<Self> {
        self.changed(|old, ranges| old.with(start, end, ranges))
    }

    /// Returns the set with a range less, if it has a frame of the range.
    pub(crate) fn without(&self, start: u64, end: u64) -> Result<Self> {
        if !self.ranges().has_any(start, end) {
            return Err(ENOENT);
        }
        self.changed(|old, ranges| old.without(start, end, ranges))
    }

    fn changed(
        &self,
        change: impl FnOnce(Exclusions<'_>, &mut [(u64, u64)]) -> usize,
    ) -> Result<Self> {
        let old = self.ranges();
        // OVERFLOW: There are at most `MAX_PIECES`.
        let mut ranges = KVVec::from_elem((0, 0), old.0.len() + 1, GFP_KERNEL_ACCOUNT)?;
        let nr = change(old, &mut ranges);
        if nr > MAX_PIECES {
            return Err(EDQUOT);
        }
        ranges.truncate(nr);
        Ok(Self {
            ranges: Some(Arc::new(ranges, GFP_KERNEL_ACCOUNT)?),
            besides: self.besides,
        })
    }
}

/// The machine, as far as a domain may have its frames, wherever they are.
struct Machine<'a> {
    exclusions: &'a Excluded,
    node: Option<c_int>,
    /// Frames are taken as superpages.
    is_compound: bool,
}

impl Places for Machine<'_> {
    fn open_from(&self, start: u64, end: u64) -> u64 {
        let open = self.exclusions.open_from(start, end);
        let node = self.node.unwrap_or(bindings::NUMA_NO_NODE);
        // SAFETY: It has no requirements.
        unsafe { ffi::p2m_open_from(open as c_ulong, end as c_ulong, node) as u64 }
    }

    fn take(&mut self, start: u64, end: u64) -> bool {
        // It's there after the others were moved, too, but not what they were moved to.
        if !Source::has_room_for(end - start) {
            return false;
        }
        if self.is_compound {
            // SAFETY: There are pages, all of one zone, as `open_from()` has found. A memory block that
            // goes offline meanwhile is isolated by then, which is found out.
            let take = || unsafe { ffi::p2m_alloc_superpage_at(GFP_PLACE, start as c_ulong) };
            return (0..PLACE_TRIES).any(|_| !take().is_null());
        }
        let take = |start: u64, end: u64| {
            let (start, end) = (start as c_ulong, end as c_ulong);
            // SAFETY: As above. The flags say that it isn't of what is set apart for devices.
            unsafe { bindings::alloc_contig_range_noprof(start, end, 0, GFP_PLACE) == 0 }
        };
        if take(start, end) {
            return true;
        }
        // A huge page that reaches into it can be moved only if it's asked for all of it.
        let first = start - start % SUPERPAGE_PAGES;
        let last = end.next_multiple_of(SUPERPAGE_PAGES);
        let is_open = self.open_from(first, last) == first;
        if !(is_open && (0..PLACE_TRIES).any(|_| take(first, last))) {
            return false;
        }
        for number in first..last {
            let mfn = Mfn::new(number).filter(|_| number < start || end <= number);
            if let Some(mfn) = mfn {
                Source.free(mfn);
            }
        }
        true
    }

    fn is_interrupted(&self) -> bool {
        Source.is_interrupted()
    }
}

/// Makes a search for frames of a range, in the lowest zone last.
fn search((start, end): (u64, u64)) -> Search {
    let end = end.min(max_mfn());
    Search::new([(start.max(DMA_END), end), (start, end.min(DMA_END))])
}

/// The page allocator, with what is asked of frames, and without what a domain keeps out of.
///
/// What the allocator gives depends on chance. If too much of it isn't as asked, the machine is
/// searched instead, and frames are taken where they are.
pub(crate) struct Filtered {
    injection: Arc<Injection>,
    origin: Origin,
    exclusions: Excluded,
    /// Blocks that were refused, by their order. They are kept until the end, as they would come
    /// again at once.
    refused: KVVec<(Mfn, u32)>,
    /// How many frames are in them.
    nr_refused: u64,
    /// How far the machine was searched, if it is.
    search: Option<Search>,
    /// The block that frames are picked from, and the order of the next one.
    block: Option<Selector>,
    order: u32,
    /// Guards of the frames that were picked.
    guards: KVVec<Mfn>,
}

impl Filtered {
    /// Makes a source.
    pub(crate) fn new(injection: Arc<Injection>, origin: Origin, exclusions: Excluded) -> Self {
        Self {
            injection,
            origin,
            exclusions,
            refused: KVVec::new(),
            nr_refused: 0,
            search: None,
            block: None,
            order: Source::MAX_ORDER,
            guards: KVVec::new(),
        }
    }

    /// Has it keep out of another range of machine frames, too.
    pub(crate) fn keep_out_of(&mut self, (start, end): (u64, u64)) {
        self.exclusions.besides = (start, end);
    }

    /// Returns the guards of the frames that were picked. They are the caller's now.
    pub(crate) fn take_guards(&mut self) -> Result<KVVec<Mfn>> {
        // The frame that was picked last has one behind it, too.
        if let Some(block) = &mut self.block {
            if let Some(guard) = block.next_guard() {
                let pushed = self.guards.push(guard, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
                pushed.inspect_err(|_| Source.free(guard))?;
            }
        }
        Ok(core::mem::replace(&mut self.guards, KVVec::new()))
    }

    /// Returns whether it keeps out of these frames, as they were when it was made.
    pub(crate) fn keeps_out_of(&self, exclusions: &Excluded) -> bool {
        self.exclusions.is_same(exclusions)
    }

    /// Returns why frames can't be had, given why the allocator has no more.
    pub(crate) fn reason(&self, error: FrameError) -> Error {
        match error {
            FrameError::NoMemory
                if self.origin.constraint == Constraint::NONE && self.refused.is_empty() =>
            {
                ENOMEM
            }
            FrameError::NoMemory | FrameError::NoRun => EADDRNOTAVAIL,
            FrameError::Interrupted => EINTR,
        }
    }

    /// Returns the first of `nr` frames that follow each other, all of which are below `limit`. It is a
    /// multiple of `align`, which is `nr` or 1.
    pub(crate) fn alloc_run_below(&mut self, nr: usize, limit: u64, align: u64) -> Option<Mfn> {
        let (start, end) = self.origin.constraint.range;
        let range = (start, end.min(limit));
        if self.injection.should_fail() {
            return None;
        }
        if let Some(first) = self.alloc_run_in(nr, range) {
            return Some(first);
        }
        // What was found there isn't charged to a memory cgroup. So it's for those who may ask for a
        // place, and for those to whom nobody would charge it anyway.
        let is_place = start > 0 || range.1 < max_mfn();
        let is_charged = nr <= 1 << Source::MAX_ORDER && self.origin.node.is_none();
        if is_charged && !is_place {
            return None;
        }
        let mut search = self.begin_search(range)?;
        search.next_run(&mut self.machine(false), nr as u64, align)
    }

    /// Returns the first of `nr` frames that follow each other, all of which are in a range, if the
    /// allocator gives such a one.
    fn alloc_run_in(&mut self, nr: usize, (start, end): (u64, u64)) -> Option<Mfn> {
        let is_place = start > 0 || end < max_mfn();
        let mut nr_tries = 0;
        loop {
            let first = Source.alloc_run_in(nr, zone_below(end), self.origin.node)?;
            nr_tries += 1;
            // OVERFLOW: An MFN is below `Mfn::LIMIT`, and so is the end of a run.
            let is_in_range = start <= first.get() && first.get() + nr as u64 <= end;
            if is_in_range && !self.exclusions.has_any(first, nr as u64) {
                return Some(first);
            }
            // Another one may be. But each that is kept makes it less likely.
            let mut goes_on = nr <= 1 << Source::MAX_ORDER;
            // For a node, each is cleared by migration, which takes long.
            goes_on &= self.origin.node.is_none() || nr_tries < NODE_TRIES;
            for mfn in (0..nr as u64).map_while(|index| first.checked_add(index)) {
                if goes_on {
                    goes_on = self.refuse(mfn, 0, is_place).is_some();
                } else {
                    Source.free(mfn);
                }
            }
            if !goes_on {
                return None;
            }
        }
    }

    /// Returns the first frame of a superpage that is as asked. With `is_needed`, others' pages are
    /// moved or written out for it.
    pub(crate) fn alloc_superpage(&mut self, is_needed: bool) -> Option<Mfn> {
        let range = self.origin.constraint.range;
        // Nobody is driven out for what may be refused.
        let gfp = match is_needed && range == Constraint::NONE.range {
            true => GFP_SUPERPAGE,
            false => GFP_SUPERPAGE_LIGHT,
        };
        if self.injection.should_fail() {
            return None;
        }
        if self.search.is_none() {
            if let Some(first) = self.alloc_superpage_in(gfp) {
                return Some(first);
            }
        }
        // As in `alloc_run_below()`.
        if !is_needed || range == Constraint::NONE.range {
            return None;
        }
        let mut search = match self.search {
            Some(search) => search,
            None => self.begin_search(range)?,
        };
        let found = search.next_run(&mut self.machine(true), SUPERPAGE_PAGES, SUPERPAGE_PAGES);
        self.search = Some(search);
        found
    }

    /// Returns the first frame of a superpage that is as asked, if the allocator gives such a one.
    fn alloc_superpage_in(&mut self, gfp: bindings::gfp_t) -> Option<Mfn> {
        let (start, end) = self.origin.constraint.range;
        loop {
            let first = Source.alloc_superpage_in(gfp, zone_below(end), self.origin.node)?;
            // OVERFLOW: An MFN is below `Mfn::LIMIT`, and so is the end of a block.
            let is_in_range = start <= first.get() && first.get() + SUPERPAGE_PAGES <= end;
            if is_in_range && !self.exclusions.has_any(first, SUPERPAGE_PAGES) {
                return Some(first);
            }
            let has_search = (start, end) != Constraint::NONE.range;
            self.refuse(first, SUPERPAGE_ORDER, has_search)?;
        }
    }

    /// Returns the machine, for a search.
    fn machine(&self, is_compound: bool) -> Machine<'_> {
        Machine {
            exclusions: &self.exclusions,
            node: self.origin.node,
            is_compound,
        }
    }

    /// Begins to search the machine for frames of a range, unless the caller was told to stop. What
    /// was kept until now is what others can be moved to.
    fn begin_search(&mut self, range: (u64, u64)) -> Option<Search> {
        self.give_back_refused();
        (!self.is_interrupted()).then(|| search(range))
    }

    fn give_back_refused(&mut self) {
        for (first, order) in self.refused.drain_all() {
            free_block(first, order);
        }
        self.nr_refused = 0;
    }

    /// Returns a block that has no frame which is kept out of.
    fn alloc_block(&mut self, order: u32) -> Option<Mfn> {
        let zone = zone_below(self.origin.constraint.range.1);
        if self.injection.should_fail() {
            return None;
        }
        loop {
            let first = Source.alloc_in(order, zone, self.origin.node)?;
            if !self.exclusions.has_any(first, 1 << order) {
                return Some(first);
            }
            let has_search = self.origin.constraint != Constraint::NONE;
            self.refuse(first, order, has_search)?;
        }
    }

    /// Keeps a block that is of no use, and returns whether to go on. With `has_search`, that's not for
    /// long, as the machine can be searched then.
    fn refuse(&mut self, first: Mfn, order: u32, has_search: bool) -> Option<()> {
        if self
            .refused
            .push((first, order), GFP_KERNEL_ACCOUNT | __GFP_NOWARN)
            .is_err()
        {
            free_block(first, order);
            return None;
        }
        // OVERFLOW: They aren't more than the machine has.
        self.nr_refused += 1 << order;
        // What is kept is missed elsewhere.
        // SAFETY: It has no requirements.
        let total = unsafe { ffi::p2m_totalram_pages() as u64 };
        ((!has_search || self.nr_refused <= total / ASIDE_SHARE)
            && Source::has_room_for(max_total() / 8)
            && !self.is_interrupted())
        .then_some(())
    }

    /// Returns a frame that is as asked.
    fn pick(&mut self) -> Option<Mfn> {
        if self.origin.constraint.range.0 >= max_mfn() {
            return None;
        }
        loop {
            match self.block.as_mut().and_then(Iterator::next) {
                Some(Pick::Frame(mfn)) => return Some(mfn),
                Some(Pick::Guard(mfn)) => {
                    if self
                        .guards
                        .push(mfn, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)
                        .is_err()
                    {
                        Source.free(mfn);
                        return None;
                    }
                }
                // It doesn't come again, as no place is searched twice.
                Some(Pick::Refused(mfn)) if self.search.is_some() => Source.free(mfn),
                Some(Pick::Refused(mfn)) => {
                    if self.refuse(mfn, 0, true).is_none() {
                        self.search = Some(self.begin_search(self.origin.constraint.range)?);
                    }
                }
                None => {
                    let (first, nr) = self.next_block()?;
                    self.block = Some(Selector::new(self.origin.constraint, first, nr));
                }
            }
        }
    }

    /// Returns a block that may have frames which are as asked, and how many it has.
    fn next_block(&mut self) -> Option<(Mfn, u64)> {
        let constraint = self.origin.constraint;
        let mut search = match self.search {
            Some(search) => search,
            None => {
                if let Some(block) = self.alloc_block_in_range() {
                    return Some(block);
                }
                self.begin_search(constraint.range)?
            }
        };
        let found = match self.injection.should_fail() {
            true => None,
            false => search.next_block(&mut self.machine(false), &constraint),
        };
        self.search = Some(search);
        found
    }

    /// Returns a block of which a part is in the range that was asked for, and how many frames it has,
    /// if the allocator gives such a one.
    fn alloc_block_in_range(&mut self) -> Option<(Mfn, u64)> {
        let (start, end) = self.origin.constraint.range;
        loop {
            let order = self.order;
            match self.alloc_block(order) {
                // OVERFLOW: An MFN is below `Mfn::LIMIT`, and so is the end of a block.
                Some(first) if first.get() < end && start < first.get() + (1 << order) => {
                    return Some((first, 1 << order));
                }
                Some(first) => self.refuse(first, order, true)?,
                None => self.order = order.checked_sub(1)?,
            }
        }
    }
}

/// Returns the flag of the zone that has no frames above a limit, if that is of use.
fn zone_below(limit: u64) -> bindings::gfp_t {
    match limit {
        ..=DMA_END => 1 << bindings::___GFP_DMA_BIT,
        ..=DMA32_END if DMA32_END < max_mfn() => 1 << bindings::___GFP_DMA32_BIT,
        _ => 0,
    }
}

impl FrameSource for Filtered {
    const MAX_ORDER: u32 = Source::MAX_ORDER;

    fn alloc(&mut self, order: u32) -> Option<Mfn> {
        if self.origin.constraint == Constraint::NONE {
            self.alloc_block(order)
        } else if order > 0 {
            // Not all of a block need be as asked.
            None
        } else {
            self.pick()
        }
    }

    fn alloc_run(&mut self, nr: usize) -> Option<Mfn> {
        self.alloc_run_below(nr, u64::MAX, 1)
    }

    fn free(&mut self, mfn: Mfn) {
        Source.free(mfn);
    }

    fn is_interrupted(&self) -> bool {
        Source.is_interrupted()
    }
}

fn free_block(first: Mfn, order: u32) {
    if Source::is_superpage(first) {
        return Source.free(first);
    }
    for index in 0..1 << order {
        if let Some(mfn) = first.checked_add(index) {
            Source.free(mfn);
        }
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        self.give_back_refused();
        for &mfn in &self.guards {
            Source.free(mfn);
        }
        for pick in self.block.into_iter().flatten() {
            let (Pick::Frame(mfn) | Pick::Guard(mfn) | Pick::Refused(mfn)) = pick;
            Source.free(mfn);
        }
    }
}
