// SPDX-License-Identifier: GPL-2.0

//! Page tables, built and walked through a backend.
//!
//! The code here is what a kernel's would be: it knows pseudo-physical addresses only, also of the
//! tables themselves, and leaves it to the hooks of [`pv`](super::pv) what is in a table.
//!
//! ```text
//!  level 4      3      2      1      0
//!        pgd    p4d    pud    pmd    pte      entries of that level make up a table of it
//!                      1 GiB  2 MiB  4 KiB    what a leaf of that level maps
//! ```
//!
//! Addresses are those of the tables' user; all ranges are in pages, as are positions in them.

use super::frame::{Pfn, PfnRange, PAGE_SHIFT};
use super::pv::{bits, frame, frame_mask, is_leaf, span_pages, Busy};
use super::pv::{Context, Lazy, Machine, MmuOps, Slot, LAZY_BATCH, MAX_LEVELS};
use super::table::{Table, TABLE_BITS, TABLE_WORDS};

/// What page tables are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Number of levels.
    pub nr_levels: usize,
    /// The highest level that may have leaves.
    pub max_leaf_level: usize,
    /// log2 of the number of bytes that can be addressed.
    pub address_bits: u32,
    /// Flags of entries that link tables, `bits::PRESENT` among them.
    pub link_flags: u64,
    /// Flags that a leaf may have, besides `bits::PRESENT`. `bits::PAT` is where level 0 has it.
    pub leaf_flags: u64,
}

impl Format {
    /// The lower half of the addresses of a processor in long mode with 4 or 5 levels, if leaves
    /// may be as large as 1 GiB. [`None`] for another number of levels.
    pub const fn x86_64(nr_levels: usize) -> Option<Self> {
        match nr_levels {
            4 | 5 => Some(Self {
                nr_levels,
                max_leaf_level: 2,
                // The upper half, with sign-extended addresses, is the kernel's.
                // CAST: A small number.
                address_bits: PAGE_SHIFT + TABLE_BITS * nr_levels as u32 - 1,
                link_flags: bits::PRESENT | bits::RW | bits::USER,
                leaf_flags: bits::RW
                    | bits::USER
                    | bits::PWT
                    | bits::PCD
                    | bits::ACCESSED
                    | bits::DIRTY
                    | bits::PAT
                    | bits::NX,
            }),
            _ => None,
        }
    }

    /// Returns the number of pages that can be addressed.
    pub const fn nr_pages(self) -> u64 {
        1 << (self.address_bits - PAGE_SHIFT)
    }

    /// Returns the level of the root.
    const fn top(self) -> usize {
        self.nr_levels - 1
    }

    /// Returns the bits of a leaf with these flags at `level`, without its frame.
    const fn leaf(self, level: usize, flags: u64) -> u64 {
        let flags = flags & self.leaf_flags | bits::PRESENT;
        if level == 0 {
            return flags;
        }
        // Where level 0 has its PAT bit, the others say that they are leaves.
        let pat = if flags & bits::PAT != 0 {
            bits::PAT_LARGE
        } else {
            0
        };
        flags & !bits::PAT | pat | bits::PSE
    }

    /// Returns the flags of a leaf at `level`, as they would be at level 0.
    const fn flags(self, level: usize, val: u64) -> u64 {
        let flags = val & !frame_mask(level, val);
        if level == 0 {
            return flags;
        }
        let pat = if flags & bits::PAT_LARGE != 0 {
            bits::PAT
        } else {
            0
        };
        flags & !(bits::PSE | bits::PAT_LARGE) | pat
    }
}

/// Pages at addresses: `nr_pages` from page number `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The first page number.
    pub start: u64,
    /// Number of pages, not 0.
    pub nr_pages: u64,
}

impl Pages {
    /// Returns the number of the first page behind the range.
    const fn end(self) -> u64 {
        self.start.saturating_add(self.nr_pages)
    }
}

/// Why page tables can't be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingError {
    /// The range is empty, or not in the address space.
    BadRange,
    /// There are flags that a leaf can't have.
    BadFlags,
    /// Something is mapped there already.
    Occupied,
    /// Nothing is mapped there.
    Missing,
    /// There is no page for a table.
    NoTable,
    /// A page can't be made a table, as somebody else uses it.
    Busy,
    /// Tables lead to more tables than there are: somebody else has linked one of them again.
    Endless,
}

impl From<Busy> for PagingError {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

/// Provides pages to be tables, from the pseudo-physical space.
pub trait TablePages {
    /// Returns a page, all zeroes.
    fn alloc(&mut self) -> Option<Pfn>;

    /// Takes a page back.
    fn free(&mut self, pfn: Pfn);
}

/// What a walk finds at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level.
    pub level: usize,
    /// Where the entry is.
    pub slot: Slot,
    /// The entry, as it is in the table.
    pub raw: u64,
    /// The entry, as the kernel means it.
    pub val: u64,
}

/// What a walk finds, from the root down.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    steps: [Option<Step>; MAX_LEVELS],
}

impl Walk {
    /// Returns the steps, from the root down.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.steps.iter().rev().flatten().copied()
    }

    /// Returns the step that ended the walk.
    pub fn last(&self) -> Option<Step> {
        self.steps.iter().flatten().copied().next()
    }
}

/// A leaf, or an entry that isn't present but not empty either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first page that it's about.
    pub start: u64,
    /// The level.
    pub level: usize,
    /// The entry, as it is in the table.
    pub raw: u64,
    /// The entry, as the kernel means it.
    pub val: u64,
}

impl Leaf {
    /// Returns the number of pages.
    pub fn nr_pages(&self) -> u64 {
        span_pages(self.level)
    }

    /// Returns whether it maps something.
    pub fn is_present(&self) -> bool {
        self.val & bits::PRESENT != 0
    }

    /// Returns the number of the frame that the kernel means.
    pub fn pfn(&self) -> u64 {
        frame(self.level, self.val)
    }
}

/// How a leaf shall be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// New flags. Those that the processor sets stay.
    Flags(u64),
    /// Other frames, from this one on, with the same flags.
    Frames(Pfn),
}

/// Page tables of a test address space, which is a *space* for short.
///
/// # Invariants
///
/// All tables are pages that came from one [`TablePages`] and were announced to the backend, and
/// each is linked once. Tables other than the root have an entry, unless the backend made it empty.
pub struct Space {
    ops: &'static dyn MmuOps,
    format: Format,
    root: Pfn,
    nr_tables: u64,
    lazy: Lazy,
}

/// What an operation on a space works with.
struct Builder<'a, P> {
    space: &'a mut Space,
    machine: &'a dyn Machine,
    pages: &'a mut P,
    /// How many tables may still be entered: each one once.
    left: u64,
}

impl Space {
    /// Makes an empty space.
    pub fn new(
        ops: &'static dyn MmuOps,
        format: Format,
        machine: &dyn Machine,
        pages: &mut impl TablePages,
    ) -> Result<Self, PagingError> {
        let root = pages.alloc().ok_or(PagingError::NoTable)?;
        if let Err(busy) = ops.alloc(machine, format.top(), root) {
            pages.free(root);
            return Err(busy.into());
        }
        // INVARIANT: The root has just been announced.
        Ok(Self {
            ops,
            format,
            root,
            nr_tables: 1,
            lazy: Lazy::new(),
        })
    }

    /// Returns the backend.
    pub fn ops(&self) -> &'static dyn MmuOps {
        self.ops
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the page that is the root.
    pub fn root(&self) -> Pfn {
        self.root
    }

    /// Returns the number of tables.
    pub fn nr_tables(&self) -> u64 {
        self.nr_tables
    }

    fn check(&self, pages: Pages) -> Result<(), PagingError> {
        match pages.start.checked_add(pages.nr_pages) {
            Some(end) if pages.nr_pages > 0 && end <= self.format.nr_pages() => Ok(()),
            _ => Err(PagingError::BadRange),
        }
    }

    /// Makes processors forget a range.
    fn flush(&self, machine: &dyn Machine, range: Pages) {
        self.ops.flush_tlb_multi(
            machine,
            range.start << PAGE_SHIFT,
            range.end() << PAGE_SHIFT,
        );
    }

    /// Maps the frames of a range from page number `start` on, where nothing is mapped yet, in
    /// leaves as large as `max_level` allows.
    ///
    /// It happens whole or not at all.
    pub fn map(
        &mut self,
        machine: &dyn Machine,
        pages: &mut impl TablePages,
        start: u64,
        pfns: PfnRange,
        flags: u64,
        max_level: usize,
    ) -> Result<(), PagingError> {
        let range = Pages {
            start,
            nr_pages: pfns.nr_pages(),
        };
        self.check(range)?;
        if flags & !self.format.leaf_flags != 0 {
            return Err(PagingError::BadFlags);
        }
        match self.next_leaf_within(machine, start, range.end(), &mut self.nr_entries()) {
            Ok(None) => (),
            Ok(Some(_)) => return Err(PagingError::Occupied),
            Err(_) => return Err(PagingError::Endless),
        }
        let (root, top) = (self.root, self.format.top());
        let mut builder = Builder::new(self, machine, pages);
        let plan = Plan {
            start,
            pfns,
            flags,
            max_level,
        };
        builder.enable_lazy_mode();
        let result = builder.map(root, top, range, &plan);
        builder.disable_lazy_mode();
        if result.is_err() {
            // All that is there now came from us, and giving up whole leaves needs no table.
            let mut done = 0;
            builder.left = builder.space.nr_tables;
            let _ = builder.unmap(root, top, range, &mut done);
            // A processor may have used what was there for a moment.
            self.flush(machine, range);
        }
        result
    }

    /// Unmaps what is mapped in a range, and returns how many pages that were, also if it stopped
    /// half-way: a large leaf of which a part stays needs tables.
    pub fn unmap(
        &mut self,
        machine: &dyn Machine,
        pages: &mut impl TablePages,
        range: Pages,
    ) -> (u64, Result<(), PagingError>) {
        let mut done = 0;
        if let Err(error) = self.check(range) {
            return (done, Err(error));
        }
        let (root, top) = (self.root, self.format.top());
        let mut builder = Builder::new(self, machine, pages);
        let result = builder.unmap(root, top, range, &mut done);
        self.flush(machine, range);
        (done, result)
    }

    /// Changes all of a range, which has to be mapped, and returns how many pages were changed, also
    /// if it stopped half-way: a large leaf of which only a part changes needs tables.
    pub fn change(
        &mut self,
        machine: &dyn Machine,
        pages: &mut impl TablePages,
        range: Pages,
        change: Change,
    ) -> (u64, Result<(), PagingError>) {
        let mut done = 0;
        if let Err(error) = self.check(range) {
            return (done, Err(error));
        }
        match change {
            Change::Flags(flags) if flags & !self.format.leaf_flags != 0 => {
                return (done, Err(PagingError::BadFlags));
            }
            Change::Frames(pfn) if PfnRange::new(pfn.get(), range.nr_pages).is_err() => {
                return (done, Err(PagingError::BadRange));
            }
            _ => (),
        }
        match self.is_mapped(machine, range) {
            Ok(true) => (),
            Ok(false) => return (done, Err(PagingError::Missing)),
            Err(error) => return (done, Err(error)),
        }
        let (root, top) = (self.root, self.format.top());
        let mut builder = Builder::new(self, machine, pages);
        let result = builder.change(root, top, range, (range.start, change), &mut done);
        self.flush(machine, range);
        (done, result)
    }

    /// Has no leaf name the frames of a range until [`resume()`](Self::resume): the frames are about
    /// to be exchanged, and afterwards nobody could tell what a leaf with an old one means. Linux has
    /// migration entries for this.
    ///
    /// Large leaves are split, which needs tables, as the new frames need not follow each other. After
    /// an error some leaves are suspended.
    ///
    /// There is no need for it if the backend doesn't [translate](MmuOps::translates).
    pub fn suspend(
        &mut self,
        machine: &dyn Machine,
        pages: &mut impl TablePages,
        pfns: PfnRange,
    ) -> Result<(), PagingError> {
        let (root, top) = (self.root, self.format.top());
        let mut builder = Builder::new(self, machine, pages);
        let result = builder.suspend(root, top, pfns);
        self.ops.flush_tlb_user(machine);
        result
    }

    /// Has the suspended leaves name the frames that their pages have now.
    pub fn resume(&mut self, machine: &dyn Machine, pages: &mut impl TablePages) {
        let (root, top) = (self.root, self.format.top());
        let mut builder = Builder::new(self, machine, pages);
        builder.resume(root, top);
    }

    /// Returns whether there is a leaf for every page of a range.
    fn is_mapped(&self, machine: &dyn Machine, range: Pages) -> Result<bool, PagingError> {
        let mut left = self.nr_entries();
        let mut page = range.start;
        while page < range.end() {
            match self.next_leaf_within(machine, page, range.end(), &mut left) {
                // OVERFLOW: A leaf is in the address space.
                Ok(Some(leaf)) if leaf.start <= page => page = leaf.start + leaf.nr_pages(),
                Ok(_) => return Ok(false),
                Err(_) => return Err(PagingError::Endless),
            }
        }
        Ok(true)
    }

    /// Empties the space and frees its tables.
    pub fn destroy(mut self, machine: &dyn Machine, pages: &mut impl TablePages) {
        let all = Pages {
            start: 0,
            nr_pages: self.format.nr_pages(),
        };
        // No leaf is split.
        let _ = self.unmap(machine, pages, all);
        self.ops.release(machine, self.format.top(), self.root);
        pages.free(self.root);
    }

    /// Returns the entries that lead to a page.
    pub fn walk(&self, machine: &dyn Machine, page: u64) -> Walk {
        let mut walk = Walk {
            steps: [None; MAX_LEVELS],
        };
        if page >= self.format.nr_pages() {
            return walk;
        }
        let mut next = Some(self.root);
        for level in (0..self.format.nr_levels).rev() {
            let (Some(pfn), Some(place)) = (next, walk.steps.get_mut(level)) else {
                break;
            };
            let slot = Slot {
                table: pfn,
                index: index(page, level),
            };
            let Some(table) = machine.table(pfn) else {
                break;
            };
            let raw = table.load(slot.index);
            let val = self.ops.val(machine, level, raw);
            *place = Some(Step {
                level,
                slot,
                raw,
                val,
            });
            next = link(level, val);
        }
        walk
    }

    /// Returns the first leaf that maps a page from `page` on and before `end`.
    pub fn next_leaf(&self, machine: &dyn Machine, page: u64, end: u64) -> Option<Leaf> {
        let mut left = u64::MAX;
        let found = self.next_leaf_within(machine, page, end, &mut left);
        found.unwrap_or_default()
    }

    /// As [`next_leaf()`](Self::next_leaf), but looks at `left` entries at most, and takes off as many
    /// as it has looked at. If it found nothing among them, it returns the page to go on with.
    ///
    /// Who goes through all of a space has to look at [`nr_entries()`](Self::nr_entries), if nobody
    /// else writes to its tables.
    pub fn next_leaf_within(
        &self,
        machine: &dyn Machine,
        page: u64,
        end: u64,
        left: &mut u64,
    ) -> Result<Option<Leaf>, u64> {
        let end = end.min(self.format.nr_pages());
        let mut page = page;
        while page < end {
            if *left == 0 {
                return Err(page);
            }
            let Some(step) = self.walk(machine, page).last() else {
                break;
            };
            let start = page & !(span_pages(step.level) - 1);
            if step.raw != 0 {
                *left -= 1;
                return Ok(Some(Leaf {
                    start,
                    level: step.level,
                    raw: step.raw,
                    val: step.val,
                }));
            }
            // An empty entry: go on behind what it stands for. There may be more of them.
            page = self.skip_empty(machine, step, start, end);
            // OVERFLOW: It's behind the entry.
            *left = left.saturating_sub((page - start) / span_pages(step.level));
        }
        Ok(None)
    }

    /// Returns the number of entries in all tables.
    pub fn nr_entries(&self) -> u64 {
        self.nr_tables.saturating_mul(TABLE_WORDS as u64)
    }

    /// Returns the first page from the empty entry of `step` on that has an entry which isn't empty,
    /// or the first one behind the table.
    fn skip_empty(&self, machine: &dyn Machine, step: Step, start: u64, end: u64) -> u64 {
        let span = span_pages(step.level);
        let mut page = start;
        let Some(table) = machine.table(step.slot.table) else {
            return end;
        };
        for index in step.slot.index..TABLE_WORDS as u64 {
            if table.load(index) != 0 {
                break;
            }
            page = page.saturating_add(span);
        }
        page
    }
}

/// Returns the number of the entry for a page in a table of `level`.
const fn index(page: u64, level: usize) -> u64 {
    (page >> (TABLE_BITS as usize * level)) & (TABLE_WORDS as u64 - 1)
}

/// Takes an entry out, after which the processor sets no bits in it, and returns it as it was.
fn take(machine: &dyn Machine, slot: Slot) -> u64 {
    machine
        .table(slot.table)
        .map_or(0, |table| table.swap(slot.index, 0))
}

/// Returns the table that an entry links.
fn link(level: usize, val: u64) -> Option<Pfn> {
    if val & bits::PRESENT == 0 || is_leaf(level, val) {
        return None;
    }
    Pfn::new(frame(level, val))
}

/// What is to be mapped.
struct Plan {
    start: u64,
    pfns: PfnRange,
    flags: u64,
    max_level: usize,
}

impl Plan {
    /// Returns the frame for a page.
    fn pfn(&self, page: u64) -> Option<Pfn> {
        self.pfns.nth(page.checked_sub(self.start)?)
    }
}

/// Returns the parts of a range that the entries of a table of `level` stand for: the number of each
/// entry, and the pages.
fn parts(range: Pages, level: usize) -> impl Iterator<Item = (u64, Pages)> {
    let span = span_pages(level);
    let mut page = range.start;
    core::iter::from_fn(move || {
        if page >= range.end() {
            return None;
        }
        let start = page;
        page = (start | (span - 1)).saturating_add(1).min(range.end());
        let part = Pages {
            start,
            nr_pages: page - start,
        };
        Some((index(start, level), part))
    })
}

impl<'a, P: TablePages> Builder<'a, P> {
    fn new(space: &'a mut Space, machine: &'a dyn Machine, pages: &'a mut P) -> Self {
        let left = space.nr_tables;
        Self {
            space,
            machine,
            pages,
            left,
        }
    }

    /// Enters a table. Who writes to native tables can link them in a way that leads to as many as
    /// there are addresses.
    fn enter(&mut self) -> Result<(), PagingError> {
        self.left = self.left.checked_sub(1).ok_or(PagingError::Endless)?;
        Ok(())
    }

    fn table(&self, pfn: Pfn) -> Result<&Table, PagingError> {
        self.machine.table(pfn).ok_or(PagingError::NoTable)
    }

    fn context(&mut self) -> (&'static dyn MmuOps, Context<'_>) {
        let cx = Context {
            machine: self.machine,
            lazy: &mut self.space.lazy,
        };
        (self.space.ops, cx)
    }

    fn enable_lazy_mode(&mut self) {
        self.context().1.enable_lazy_mode();
    }

    fn disable_lazy_mode(&mut self) {
        let (ops, mut cx) = self.context();
        cx.disable_lazy_mode(ops);
    }

    /// Stores what the kernel means.
    fn set(&mut self, level: usize, slot: Slot, val: u64) {
        let (ops, mut cx) = self.context();
        let word = ops.make(cx.machine, level, val);
        ops.set(&mut cx, level, slot, word);
    }

    /// Reads what the kernel means, and the entry as it is in the table.
    fn get(&self, level: usize, slot: Slot) -> Result<(u64, u64), PagingError> {
        let raw = self.table(slot.table)?.load(slot.index);
        Ok((self.space.ops.val(self.machine, level, raw), raw))
    }

    /// Makes a table of `level`, which isn't linked yet.
    fn new_table(&mut self, level: usize) -> Result<Pfn, PagingError> {
        let pfn = self.pages.alloc().ok_or(PagingError::NoTable)?;
        if let Err(busy) = self.space.ops.alloc(self.machine, level, pfn) {
            self.pages.free(pfn);
            return Err(busy.into());
        }
        // OVERFLOW: There are far fewer than 2^64 pages.
        self.space.nr_tables += 1;
        self.left += 1;
        Ok(pfn)
    }

    /// Frees a table of `level`, the link to which was taken away.
    fn free_table(&mut self, level: usize, pfn: Pfn) {
        // A native table can be written by its owner, who may have linked what isn't a table.
        self.space.nr_tables = self.space.nr_tables.saturating_sub(1);
        // A processor may still have the link in a cache of its own.
        self.space.ops.flush_tlb_user(self.machine);
        self.space.ops.release(self.machine, level, pfn);
        self.pages.free(pfn);
    }

    /// Links a table into an entry of `level`.
    fn set_link(&mut self, level: usize, slot: Slot, table: Pfn) {
        let val = (table.get() << PAGE_SHIFT) | self.space.format.link_flags;
        self.set(level, slot, val);
        // The table is used at once, so its link can't wait.
        let (ops, mut cx) = self.context();
        ops.lazy_mode_flush(&mut cx);
    }

    fn map(
        &mut self,
        table: Pfn,
        level: usize,
        range: Pages,
        plan: &Plan,
    ) -> Result<(), PagingError> {
        self.enter()?;
        if level == 0 {
            return self.map_pages(table, range, plan);
        }
        for (index, part) in parts(range, level) {
            let slot = Slot { table, index };
            let pfn = plan.pfn(part.start).ok_or(PagingError::BadRange)?;
            let (val, raw) = self.get(level, slot)?;
            if self.fits(level, part, pfn, plan, raw) {
                let flags = self.space.format.leaf(level, plan.flags);
                self.set(level, slot, (pfn.get() << PAGE_SHIFT) | flags);
                continue;
            }
            // OVERFLOW: It isn't level 0.
            let below = level - 1;
            let child = match raw {
                0 => {
                    let child = self.new_table(below)?;
                    self.set_link(level, slot, child);
                    child
                }
                _ => link(level, val).ok_or(PagingError::Occupied)?,
            };
            self.map(child, below, part, plan)?;
        }
        Ok(())
    }

    /// Maps pages in a table of level 0, which has no entry for them yet.
    fn map_pages(&mut self, table: Pfn, range: Pages, plan: &Plan) -> Result<(), PagingError> {
        self.table(table)?;
        let flags = self.space.format.leaf(0, plan.flags);
        let mut batch = [0; LAZY_BATCH];
        let mut page = range.start;
        while page < range.end() {
            let slot = Slot {
                table,
                index: index(page, 0),
            };
            let pfn = plan.pfn(page).ok_or(PagingError::BadRange)?;
            // OVERFLOW: The page is before the end.
            // CAST: At most the size of the batch.
            let nr = (range.end() - page).min(LAZY_BATCH as u64) as usize;
            let words = batch.get_mut(..nr).ok_or(PagingError::BadRange)?;
            let (ops, mut cx) = self.context();
            ops.make_ptes(cx.machine, pfn, flags, words);
            ops.set_ptes(&mut cx, slot, words);
            page = page.saturating_add(nr as u64);
        }
        Ok(())
    }

    /// Returns whether a part can be one leaf at `level`, where `raw` is in the table.
    fn fits(&self, level: usize, part: Pages, pfn: Pfn, plan: &Plan, raw: u64) -> bool {
        let span = span_pages(level);
        level <= plan.max_level.min(self.space.format.max_leaf_level)
            && part.nr_pages == span
            && pfn.get() % span == 0
            // A table may be there in which a backend made all entries empty. It has room.
            && raw == 0
            && self.space.ops.can_be_leaf(self.machine, level, pfn)
    }

    /// Unmaps a range below `table`, adding to `done`, and frees tables that have become empty.
    fn unmap(
        &mut self,
        table: Pfn,
        level: usize,
        range: Pages,
        done: &mut u64,
    ) -> Result<(), PagingError> {
        self.enter()?;
        for (index, part) in parts(range, level) {
            let slot = Slot { table, index };
            let raw = self.table(slot.table)?.load(slot.index);
            if raw == 0 {
                continue;
            }
            // What a page is mapped to doesn't matter, and would have to be looked up.
            let child = match level {
                0 => None,
                _ => link(level, self.space.ops.val(self.machine, level, raw)),
            };
            let child = match child {
                Some(child) => child,
                None if part.nr_pages == span_pages(level) => {
                    self.set(level, slot, 0);
                    // OVERFLOW: All of them are in the address space.
                    *done += part.nr_pages;
                    continue;
                }
                None => self.split(level, slot)?,
            };
            // OVERFLOW: Level 0 has no links, and its leaves are of one page.
            let below = level - 1;
            let result = self.unmap(child, below, part, done);
            if self.table(child)?.is_all(0) {
                self.set(level, slot, 0);
                self.free_table(below, child);
            }
            result?;
        }
        Ok(())
    }

    /// Changes a range below `table`. The frames of a change are those for page `origin` on.
    fn change(
        &mut self,
        table: Pfn,
        level: usize,
        range: Pages,
        (origin, change): (u64, Change),
        done: &mut u64,
    ) -> Result<(), PagingError> {
        self.enter()?;
        for (index, part) in parts(range, level) {
            let slot = Slot { table, index };
            let (val, _) = self.get(level, slot)?;
            let child = match link(level, val) {
                Some(child) => child,
                None if self.change_leaf(level, slot, part, (origin, change)) => {
                    // OVERFLOW: All of them are in the address space.
                    *done += part.nr_pages;
                    continue;
                }
                None => self.split(level, slot)?,
            };
            // OVERFLOW: Level 0 has no links, and its leaves can be changed.
            self.change(child, level - 1, part, (origin, change), done)?;
        }
        Ok(())
    }

    /// Changes a leaf, if it can be changed as a whole.
    fn change_leaf(
        &mut self,
        level: usize,
        slot: Slot,
        part: Pages,
        (origin, change): (u64, Change),
    ) -> bool {
        if part.nr_pages != span_pages(level) {
            return false;
        }
        // OVERFLOW: The part is in the range that begins with `origin`, and the frames were checked.
        let target = match change {
            Change::Flags(_) => None,
            Change::Frames(first) => Pfn::new(first.get() + (part.start - origin)),
        };
        if let Some(pfn) = target {
            let is_aligned = pfn.get() % span_pages(level) == 0;
            if level > 0 && !(is_aligned && self.space.ops.can_be_leaf(self.machine, level, pfn)) {
                return false;
            }
        }
        let format = self.space.format;
        let (ops, mut cx) = self.context();
        let machine = cx.machine;
        // Only entries of level 0 have a hook for it. The others are exchanged.
        let raw = if level == 0 {
            ops.ptep_modify_prot_start(&mut cx, slot).0
        } else {
            take(machine, slot)
        };
        let val = ops.val(machine, level, raw);
        let with_flags = |old: u64, flags: u64| {
            let kept = old & (bits::ACCESSED | bits::DIRTY);
            old & frame_mask(level, old) | format.leaf(level, flags) | kept
        };
        let word = match (change, target) {
            // The kernel has no number for the frame. It's the same one afterwards.
            (Change::Flags(flags), _) if raw & !val & bits::PRESENT != 0 => with_flags(raw, flags),
            (Change::Flags(flags), _) => ops.make(machine, level, with_flags(val, flags)),
            (Change::Frames(_), Some(pfn)) => {
                let flags = format.leaf(level, format.flags(level, val));
                ops.make(machine, level, (pfn.get() << PAGE_SHIFT) | flags)
            }
            (Change::Frames(_), None) => 0,
        };
        if level == 0 {
            ops.ptep_modify_prot_commit(&mut cx, slot, super::pv::Pte(word));
        } else {
            ops.set(&mut cx, level, slot, word);
        }
        true
    }

    /// Suspends the leaves below `table` that map a page of a range.
    fn suspend(&mut self, table: Pfn, level: usize, pfns: PfnRange) -> Result<(), PagingError> {
        for index in 0..TABLE_WORDS as u64 {
            let slot = Slot { table, index };
            let (val, _) = self.get(level, slot)?;
            if val & bits::PRESENT == 0 {
                continue;
            }
            let child = match link(level, val) {
                Some(child) => child,
                None => {
                    let first = frame(level, val);
                    // OVERFLOW: A frame number is below 2^40.
                    let last = first + (span_pages(level) - 1);
                    if last < pfns.start().get() || pfns.end() <= first {
                        continue;
                    }
                    if level == 0 {
                        let raw = take(self.machine, slot);
                        let val = self.space.ops.val(self.machine, level, raw);
                        self.set(level, slot, val & !bits::PRESENT | bits::SUSPENDED);
                        continue;
                    }
                    self.split(level, slot)?
                }
            };
            // OVERFLOW: Level 0 has no links.
            self.suspend(child, level - 1, pfns)?;
        }
        Ok(())
    }

    /// Resumes the leaves below `table`.
    fn resume(&mut self, table: Pfn, level: usize) {
        for index in 0..TABLE_WORDS as u64 {
            let slot = Slot { table, index };
            let Ok((val, _)) = self.get(level, slot) else {
                continue;
            };
            if let Some(child) = link(level, val) {
                // OVERFLOW: Level 0 has no links.
                self.resume(child, level - 1);
            } else if val & (bits::PRESENT | bits::SUSPENDED) == bits::SUSPENDED {
                self.set(level, slot, val & !bits::SUSPENDED | bits::PRESENT);
            }
        }
    }

    /// Replaces a large leaf by a table of smaller ones that map the same.
    ///
    /// A leaf is a run of the machine, so that is no matter of translation: whatever is at its PFNs
    /// by now, and if there are no PFNs at all, as it's somebody else's.
    fn split(&mut self, level: usize, slot: Slot) -> Result<Pfn, PagingError> {
        // OVERFLOW: Leaves of level 0 are never split.
        let below = level - 1;
        let child = self.new_table(below)?;
        let raw = take(self.machine, slot);
        let format = self.space.format;
        let leaf = match format.leaf(below, format.flags(level, raw)) {
            // One that isn't present stays so.
            leaf if raw & bits::PRESENT == 0 => leaf & !bits::PRESENT,
            leaf => leaf,
        };
        let (ops, mut cx) = self.context();
        for index in 0..TABLE_WORDS as u64 {
            // OVERFLOW: The last frame of a leaf has a number as the first one has.
            let number = frame(level, raw) + index * span_pages(below);
            let slot = Slot {
                table: child,
                index,
            };
            ops.set(&mut cx, below, slot, (number << PAGE_SHIFT) | leaf);
        }
        self.set_link(level, slot, child);
        Ok(child)
    }
}
