// SPDX-License-Identifier: GPL-2.0

//! The pseudo-physical space of a crash kernel, and its nested page tables.
//!
//! ```text
//!  0        1 MiB                        base      base + 1 GiB  base + 2 GiB        end
//!  ├──────────┼────────────────────────────┼────────────┼─────────────┼───────────────┤
//!    identity   identity; old memory         window       tables        identity
//!               can't be written             P2M          not mapped
//! ```
//!
//! Of the old memory, what was given to the crash kernel for DMA can be written.
//!
//! A nested table is a space, whose addresses are the pseudo-physical ones: page number and PFN are
//! the same. It is built by [`paging`](crate::pure::paging) through the backend `p2m`. The tables
//! are pages of the space, as for every other builder, but no address leads to them.

use core::cell::Cell;

use kernel::prelude::*;

use crate::{
    abi,
    ffi,
    frames::{
        self,
        Ram,
        LOW_END, //
    },
    iommu::{
        self,
        AMD_IOMMU, //
    },
    pure::{
        entry::{
            Entry,
            INVALID, //
        },
        frame::{
            Mfn,
            Pfn,
            PfnRange,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        paging::{
            Format,
            PagingError,
            Space,
            TablePages, //
        },
        pv::{
            self,
            bits,
            span_pages,
            Busy,
            Machine, //
        },
        table::{
            Table,
            TABLE_BITS,
            TABLE_WORDS, //
        }, //
    }, //
};

/// The largest number of pages of a window, and of tables.
const MAX_PAGES: u64 = abi::P2M_CRASH_MAX_MEMORY as u64 >> PAGE_SHIFT;

/// Addresses that AMD processors keep for HyperTransport, below 1 TiB.
const HYPERTRANSPORT: (u64, u64) = (0xfd_0000_0000, 0x100_0000_0000);

impl From<PagingError> for Error {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::NoTable => ENOSPC,
            _ => EINVAL,
        }
    }
}

/// Returns the number of the page at which windows begin, if there is room for one.
///
/// It's behind all memory and all that is known to be a device, as the crash kernel finds the machine
/// around its window as it is.
pub(crate) fn base() -> Option<Pfn> {
    const STEP: u64 = abi::P2M_CRASH_MAX_MEMORY as u64;
    const SIZE: u64 = 2 * STEP;

    // SAFETY: They have no requirements.
    let (bits, mut start) = unsafe {
        (
            ffi::p2m_crash_physical_bits(),
            ffi::p2m_crash_end_of_memory().next_multiple_of(STEP),
        )
    };
    let end = 1u64.checked_shl(bits)?.min(Pfn::LIMIT << PAGE_SHIFT);
    while start.checked_add(SIZE)? <= end {
        let is_reserved = start < HYPERTRANSPORT.1 && HYPERTRANSPORT.0 < start + SIZE;
        // SAFETY: It has no requirements.
        if !is_reserved && unsafe { ffi::p2m_crash_is_hole(start, SIZE) } {
            return Pfn::new(start >> PAGE_SHIFT);
        }
        start += STEP;
    }
    None
}

/// The P2M of a crash kernel's space, and what it says of the machine's frames.
///
/// # Invariants
///
/// - What is in `p2m` came from [`frames::take()`] and is ours, or was free when the kernel panicked.
/// - What is in `tables` came from there and is ours.
/// - `by_frame` has the frame and the PFN of each table, ordered by frame.
pub(crate) struct Window {
    base: Pfn,
    p2m: KVVec<u64>,
    tables: KVVec<u64>,
    by_frame: KVVec<(u64, u64)>,
    cr3: Cell<u64>,
}

impl Window {
    /// Makes an empty window of `nr_pages` pages.
    pub(crate) fn new(base: Pfn, nr_pages: usize) -> Result<Self> {
        if nr_pages as u64 > MAX_PAGES {
            return Err(E2BIG);
        }
        // INVARIANT: There are no frames and no tables yet.
        Ok(Self {
            base,
            p2m: KVVec::from_elem(INVALID, nr_pages, GFP_KERNEL)?,
            tables: KVVec::new(),
            by_frame: KVVec::new(),
            cr3: Cell::new(0),
        })
    }

    /// Returns the number of pages.
    pub(crate) fn nr_pages(&self) -> usize {
        self.p2m.len()
    }

    /// Returns the number of pages that have a frame, of the first `nr_pages`.
    pub(crate) fn nr_held(&self, nr_pages: usize) -> usize {
        let words = self.p2m.iter().take(nr_pages);
        words.filter(|&&word| word != INVALID).count()
    }

    /// Returns the number of tables that there is room for.
    pub(crate) fn nr_tables(&self) -> usize {
        self.tables.len()
    }

    /// Returns the frame of a page.
    pub(crate) fn frame(&self, page: usize) -> Option<Mfn> {
        Entry::from_raw(*self.p2m.get(page)?).owned()
    }

    /// Gives frames to those of the pages from `first` to before `end` that have none.
    pub(crate) fn hold(&mut self, first: usize, end: usize) -> Result {
        let words = self.p2m.get_mut(first..end).ok_or(EINVAL)?;
        let nr = words.iter().filter(|&&word| word == INVALID).count();
        let mut missing = words.iter_mut().filter(|word| **word == INVALID);
        // INVARIANT: The frame is ours now.
        frames::take(nr as u64, |mfn| {
            if let Some(word) = missing.next() {
                *word = Entry::Present(mfn).raw();
            }
        })
    }

    /// Returns the first run of pages without frames, from `page` on: from its first page to before
    /// its last.
    fn hole(&self, page: usize) -> Option<(usize, usize)> {
        let is_missing = |&word: &u64| word == INVALID;
        let words = self.p2m.get(page..)?;
        let first = words.iter().position(is_missing)?;
        let nr = words.iter().skip(first).take_while(|word| is_missing(word));
        // OVERFLOW: They are positions in the window.
        Some((page + first, page + first + nr.count()))
    }

    /// Gives frames to pages without one, in order, as long as there are frames, and calls `each`
    /// for the runs that got some. Returns the number of pages from the first one on that have frames
    /// then.
    ///
    /// It takes no lock and allocates nothing.
    fn fill(
        &mut self,
        frames: &mut impl Iterator<Item = Mfn>,
        mut each: impl FnMut(&Self, usize, usize) -> Result,
    ) -> Result<usize> {
        let mut page = 0;
        while let Some((first, end)) = self.hole(page) {
            let words = self.p2m.get_mut(first..end).ok_or(EINVAL)?;
            let mut nr = 0;
            // The words first: a frame that is taken must not get lost.
            for (word, mfn) in words.iter_mut().zip(&mut *frames) {
                // INVARIANT: It's what the caller says.
                *word = Entry::Present(mfn).raw();
                nr += 1;
            }
            page = first + nr;
            if nr > 0 {
                each(self, first, page)?;
            }
            if page < end {
                return Ok(page);
            }
        }
        Ok(self.nr_pages())
    }

    /// Makes room for `nr` tables.
    fn add_tables(&mut self, nr: u64) -> Result {
        if nr > MAX_PAGES {
            return Err(ENOSPC);
        }
        // CAST: A small number.
        let len = nr as usize;
        self.tables.reserve(len, GFP_KERNEL)?;
        self.by_frame.reserve(len, GFP_KERNEL)?;
        let tables = &mut self.tables;
        let mut result = Ok(());
        // INVARIANT: They are ours now.
        let taken = frames::take(nr, |mfn| {
            // There is room, so it doesn't fail.
            if tables.push(mfn.get(), GFP_KERNEL).is_err() {
                result = Err(ENOMEM);
            }
        });
        taken.and(result)?;
        let start = self.table_start();
        for (position, &mfn) in self.tables.iter().enumerate() {
            // OVERFLOW: There are fewer than `MAX_PAGES`.
            let table = (mfn, start + position as u64);
            self.by_frame.push(table, GFP_KERNEL)?;
            // Blocks come in any order, but the frames of each are in order.
            let sorted = self.by_frame.get(..position).unwrap_or(&[]);
            let place = sorted.partition_point(|other| other < &table);
            if let Some(moved) = self.by_frame.get_mut(place..) {
                moved.rotate_right(1);
            }
        }
        Ok(())
    }

    /// Returns the PFN of the first table.
    fn table_start(&self) -> u64 {
        // OVERFLOW: There is room for twice as much behind a base.
        self.base.get() + MAX_PAGES
    }

    /// Returns the PFN behind what isn't an identity.
    fn end(&self) -> u64 {
        // OVERFLOW: As above.
        self.base.get() + 2 * MAX_PAGES
    }

    /// Adds the frames of the window and the tables to a checksum, and which ones they are.
    pub(crate) fn checksum(&self, mut crc: u32) -> u32 {
        for words in [&self.p2m, &self.tables] {
            crc = frames::checksum(crc, words.as_bytes());
        }
        for page in 0..self.nr_pages() {
            if let Some(mfn) = self.frame(page) {
                // SAFETY: By the type invariants, the frame is ours.
                crc = frames::checksum(crc, unsafe { &*frames::content(mfn) });
            }
        }
        for mfn in self.tables.iter().filter_map(|&mfn| Mfn::new(mfn)) {
            // SAFETY: As above. No processor uses it as a table yet.
            crc = frames::checksum(crc, unsafe { &*frames::content(mfn) });
        }
        crc
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let frames = (0..self.nr_pages()).filter_map(|page| self.frame(page));
        let tables = self.tables.iter().filter_map(|&mfn| Mfn::new(mfn));
        for mfn in Iterator::chain(frames, tables) {
            // SAFETY: By the type invariants, they came from there. There are none that were free
            // when the kernel panicked, as then nothing is dropped any more.
            unsafe { frames::give_back(mfn) };
        }
    }
}

impl Machine for Window {
    fn entry(&self, pfn: u64) -> Entry {
        if let Some(position) = pfn
            .checked_sub(self.base.get())
            .filter(|_| pfn < self.end())
        {
            let (words, position) = match position.checked_sub(MAX_PAGES) {
                None => (&self.p2m, position),
                Some(position) => (&self.tables, position),
            };
            // CAST: Both are 64 bits wide.
            let word = words.get(position as usize);
            return word.map_or(Entry::Invalid, |&word| Entry::from_raw(word));
        }
        Mfn::new(pfn).map_or(Entry::Invalid, Entry::Identity)
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        let table = self
            .by_frame
            .binary_search_by_key(&mfn.get(), |&(mfn, _)| mfn);
        let pfn = match table {
            Ok(position) => self.by_frame.get(position)?.1,
            // Only walks down to leaves of the window ask for these, and nobody is in a hurry.
            Err(_) => {
                let word = Entry::Present(mfn).raw();
                let position = self.p2m.iter().position(|&other| other == word)?;
                self.base.get().checked_add(position as u64)?
            }
        };
        Pfn::new(pfn)
    }

    fn is_run(&self, pfn: Pfn, nr_pages: u64) -> bool {
        // Identities are.
        match pfn.get().checked_add(nr_pages) {
            Some(end) => end <= self.base.get() || self.end() <= pfn.get(),
            None => false,
        }
    }

    fn table(&self, pfn: Pfn) -> Option<&Table> {
        let position = pfn.get().checked_sub(self.table_start())?;
        // CAST: Both are 64 bits wide.
        let mfn = Mfn::new(*self.tables.get(position as usize)?)?;
        // SAFETY: By the type invariants, the frame is ours. It's initialised, and all accesses are
        // atomic while somebody changes it.
        Some(unsafe { &*frames::content(mfn).cast::<Table>() })
    }

    fn protect(&self, _: Pfn) -> Result<(), Busy> {
        // Nobody else has it.
        Ok(())
    }

    fn unprotect(&self, _: Pfn) {}

    fn flush_tlb(&self, _start: u64, _end: u64) {
        // No processor has used the tables before they are complete.
    }

    fn load_cr3(&self, cr3: u64) {
        self.cr3.set(cr3);
    }
}

/// Tables are taken in order, and nothing goes back: when building fails, all of it does.
struct Pool<'a> {
    range: PfnRange,
    next: &'a mut u64,
}

impl<'a> Pool<'a> {
    fn new(window: &Window, next: &'a mut u64) -> Result<Self> {
        let range = PfnRange::new(window.table_start(), window.nr_tables() as u64);
        Ok(Self {
            range: range.map_err(|_| EINVAL)?,
            next,
        })
    }
}

impl TablePages for Pool<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        let pfn = self.range.nth(*self.next)?;
        // OVERFLOW: It's below the length of the range.
        *self.next += 1;
        Some(pfn)
    }

    fn free(&mut self, _: Pfn) {}
}

/// A window with its nested page tables, and those that devices use.
pub(crate) struct NestedSpace {
    window: Window,
    space: Space,
    /// What devices see: the window, and nothing else.
    dma: Option<Space>,
    next_table: u64,
}

// SAFETY: Nothing in it belongs to a thread. The cell is only written by `root()`, through a mutable
// reference.
unsafe impl Send for NestedSpace {}
// SAFETY: As above.
unsafe impl Sync for NestedSpace {}

/// Leaves of nested tables are all for the user, as a guest's accesses are.
const RO: u64 = bits::USER;
const RW: u64 = bits::USER | bits::RW;

impl NestedSpace {
    /// Makes the tables of a window, in which all pages that have frames are mapped by now. There
    /// are enough tables for the rest.
    ///
    /// `low` are ranges of `ram` that may be written.
    pub(crate) fn new(
        mut window: Window,
        ram: &Ram,
        low: &[(u64, u64)],
        has_dma: bool,
    ) -> Result<Self> {
        // SAFETY: They have no requirements.
        let (nr_levels, has_gbpages, bits) = unsafe {
            (
                // The processor takes as many for a guest as it's using itself.
                ffi::p2m_crash_nr_levels() as usize,
                ffi::p2m_crash_has_gbpages(),
                ffi::p2m_crash_physical_bits(),
            )
        };
        let format = Format {
            nr_levels,
            max_leaf_level: if has_gbpages { 2 } else { 1 },
            // CAST: A small number.
            address_bits: PAGE_SHIFT + TABLE_BITS * nr_levels as u32,
            link_flags: bits::PRESENT | bits::RW | bits::USER,
            leaf_flags: RW,
        };
        let end = 1u64
            .checked_shl(bits.saturating_sub(PAGE_SHIFT))
            .ok_or(EINVAL)?
            .min(Pfn::LIMIT);
        let nr_ranges = ram.ranges().len() + low.len();
        let nr_tables = nr_tables(&window, ram, nr_ranges, end, has_gbpages);
        let nr_dma_tables = if has_dma { nr_dma_tables(&window) } else { 0 };
        window.add_tables(nr_tables + nr_dma_tables)?;

        let mut next_table = 0;
        let mut pool = Pool::new(&window, &mut next_table)?;
        let space = Space::new(&pv::P2M, format, &window, &mut pool)?;
        let dma = match has_dma {
            true => Some(Space::new(&AMD_IOMMU, iommu::FORMAT, &window, &mut pool)?),
            false => None,
        };
        let mut nested = Self {
            window,
            space,
            dma,
            next_table,
        };
        nested.map_machine(ram, low, end)?;
        nested.map_held()?;
        Ok(nested)
    }

    /// Returns the window.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the physical address of the root of a space.
    fn root_of(&self, space: &Space) -> u64 {
        let cr3 = space.root().get() << PAGE_SHIFT;
        space.ops().write_cr3(&self.window, cr3);
        self.window.cr3.get()
    }

    /// Returns the physical address of the root.
    pub(crate) fn root(&mut self) -> u64 {
        self.root_of(&self.space)
    }

    /// Returns the physical address of the root of the tables that devices use, if there are any.
    pub(crate) fn dma_root(&mut self) -> Option<u64> {
        Some(self.root_of(self.dma.as_ref()?))
    }

    fn map(&mut self, first: u64, end: u64, flags: u64, max_level: usize) -> Result {
        if first >= end {
            return Ok(());
        }
        // OVERFLOW: `first` is smaller.
        let pfns = PfnRange::new(first, end - first).map_err(|_| EINVAL)?;
        let mut pool = Pool::new(&self.window, &mut self.next_table)?;
        let space = &mut self.space;
        Ok(space.map(&self.window, &mut pool, first, pfns, flags, max_level)?)
    }

    /// Maps the machine, up to the frame `end`.
    ///
    /// The memory type of a large leaf is undefined if it's about memory and devices. So there is
    /// none where they may be close together.
    fn map_machine(&mut self, ram: &Ram, low: &[(u64, u64)], end: u64) -> Result {
        let base = self.window.base.get();
        self.map(0, LOW_END, RW, 0)?;
        let mut next = LOW_END;
        for &(first, last) in ram.ranges() {
            let (first, last) = (first.max(next), last.max(next));
            self.map(next, first, RW, 1)?;
            next = first;
            let is_inside = |&&(start, end): &&(u64, u64)| first <= start && end <= last;
            for &(start, end) in low.iter().filter(is_inside) {
                self.map(next, start, RO, 2)?;
                self.map(start, end, RW, 2)?;
                next = end;
            }
            self.map(next, last, RO, 2)?;
            next = last;
        }
        let all_behind = next.next_multiple_of(span_pages(2)).min(base);
        self.map(next, all_behind, RW, 1)?;
        self.map(all_behind, base, RW, 2)?;
        self.map(self.window.end(), end, RW, 2)
    }

    /// Maps the pages of the window that have frames.
    fn map_held(&mut self) -> Result {
        let mut page = 0;
        while page < self.window.nr_pages() {
            let (first, end) = self
                .window
                .hole(page)
                .unwrap_or((self.window.nr_pages(), 0));
            self.map_window(page, first)?;
            page = first.max(end);
        }
        Ok(())
    }

    /// Maps pages of the window.
    fn map_window(&mut self, first: usize, end: usize) -> Result {
        if first >= end {
            return Ok(());
        }
        let mut pool = Pool::new(&self.window, &mut self.next_table)?;
        let spaces = [Some(&mut self.space), self.dma.as_mut()];
        map_pages(spaces, &self.window, &mut pool, first, end)
    }

    /// Gives all pages frames that are free, now that the kernel has panicked, and maps them. Returns
    /// the number of pages from the first one on that have frames now.
    ///
    /// It takes no lock and allocates nothing.
    pub(crate) fn fill(&mut self, frames: &mut impl Iterator<Item = Mfn>) -> Result<usize> {
        let mut pool = Pool::new(&self.window, &mut self.next_table)?;
        let (space, dma) = (&mut self.space, &mut self.dma);
        self.window.fill(frames, |window, first, end| {
            let spaces = [Some(&mut *space), dma.as_mut()];
            map_pages(spaces, window, &mut pool, first, end)
        })
    }
}

/// Maps pages of a window in spaces.
fn map_pages(
    spaces: [Option<&mut Space>; 2],
    window: &Window,
    pool: &mut Pool<'_>,
    first: usize,
    end: usize,
) -> Result {
    // OVERFLOW: They are in the window, and `first` is smaller.
    let start = window.base.get() + first as u64;
    let pfns = PfnRange::new(start, (end - first) as u64).map_err(|_| EINVAL)?;
    for space in spaces.into_iter().flatten() {
        let flags = RW & space.format().leaf_flags;
        space.map(window, pool, start, pfns, flags, 0)?;
    }
    Ok(())
}

/// Returns how many tables devices need at most: those of 4 levels, of which all but the lowest have
/// one or two.
fn nr_dma_tables(window: &Window) -> u64 {
    // OVERFLOW: A small number.
    (window.nr_pages() as u64).div_ceil(TABLE_WORDS as u64) + 8
}

/// Returns how many tables a window needs at most, if there are `nr_ranges` ranges of memory that
/// differ.
fn nr_tables(window: &Window, ram: &Ram, nr_ranges: usize, end: u64, has_gbpages: bool) -> u64 {
    // OVERFLOW: All of them are small numbers: there are at most 2^31 pages, and few ranges.
    let of_level = |end: u64, level| end.div_ceil(span_pages(level) * TABLE_WORDS as u64);
    let nr_levels_above = 2;
    // Where leaves may be of 1 GiB, there is a table for each that isn't one.
    let last = ram.ranges().last().map_or(0, |&(_, end)| end);
    let of_level_1 = if has_gbpages {
        of_level(last.max(LOW_END), 1) + 1
    } else {
        of_level(end, 1)
    };
    // A range begins and ends in the middle of large leaves.
    let of_borders = 2 * (2 * nr_ranges as u64 + 4);
    let of_window = of_level(window.nr_pages() as u64, 0) + 2;
    nr_levels_above + of_level(end, 2) + of_level_1 + of_borders + of_window
}

// A page is a table.
static_assert!(core::mem::size_of::<Table>() == PAGE_SIZE);
