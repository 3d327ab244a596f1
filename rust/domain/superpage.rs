// SPDX-License-Identifier: GPL-2.0

//! Superpages of a domain: frames that follow each other and are one compound page, so that page
//! tables of users can map them by one entry.
//!
//! All frames of a superpage are in the maps, in order, at PFNs as aligned as they are, which are all
//! in one region. There is one reference count for all of them, so they are pinned together, leave the
//! maps together, and go back to the allocator together. The kernel has nothing for modules that splits a compound page. So a
//! superpage is split by single frames that take the place of its own, with the same contents.

use super::*;

use crate::compat::EADDRNOTAVAIL;
use crate::pure::{
    map::SUPERPAGE_PAGES,
    policy::Candidates, //
};

use super::live::spare_frames;

/// What became of the pages that should be superpages.
#[derive(Default)]
pub(crate) struct Collapsed {
    /// How many pages became one of a superpage.
    pub(crate) nr_pages: u64,
    /// How many superpages there are now.
    pub(crate) nr_superpages: u64,
    /// How many pages were left alone, as some of them are in use by somebody else.
    pub(crate) nr_busy: u64,
}

/// Returns the parts of a range that a superpage can be at, or what is before and behind them.
fn parts(range: PfnRange) -> impl Iterator<Item = PfnRange> {
    let mut next = range.start().get();
    core::iter::from_fn(move || {
        // OVERFLOW: A PFN is below `Pfn::LIMIT`.
        let end = (next / SUPERPAGE_PAGES + 1) * SUPERPAGE_PAGES;
        let nr_pages = end.min(range.end()).checked_sub(next)?;
        let part = PfnRange::new(next, nr_pages).ok()?;
        next = part.end();
        Some(part)
    })
}

/// Returns whether a superpage can be at a range.
pub(super) fn is_place(range: PfnRange) -> bool {
    range.nr_pages() == SUPERPAGE_PAGES && range.start().get() % SUPERPAGE_PAGES == 0
}

/// Returns whether all of one range is in another one.
fn is_within(inner: PfnRange, outer: PfnRange) -> bool {
    outer.start() <= inner.start() && inner.end() <= outer.end()
}

/// Returns the frames from `first` on.
fn frames_from(first: Mfn) -> impl Iterator<Item = Mfn> {
    (0..SUPERPAGE_PAGES).filter_map(move |index| first.checked_add(index))
}

/// Returns why there is no superpage.
fn no_superpage() -> Error {
    match Source::has_room_for(SUPERPAGE_PAGES) {
        true => EADDRNOTAVAIL,
        false => ENOMEM,
    }
}

impl Domain {
    /// Returns whether a region in a range has superpages, or will have when it's mapped first.
    pub(crate) fn has_superpages(&self, range: PfnRange) -> bool {
        let state = self.state.lock();
        let mut regions = state.regions.values();
        (state.is_fresh && default_policy() == abi::P2M_POLICY_SUPERPAGE)
            || regions.any(|region| region.has_superpages && region.range.overlaps(range))
    }

    /// Returns whether nothing is at a range. It may say no where nothing is left.
    ///
    /// The caller is in an RCU read-side critical section or has locked the mapping.
    pub(crate) fn is_empty(&self, range: PfnRange) -> bool {
        let next = self.maps.next_backed(&self.store, range.start());
        next.is_none_or(|next| next.get() >= range.end())
    }

    /// Returns whether all pages of a range may be mapped. The caller has locked the mapping.
    pub(crate) fn may_map_all(&self, range: PfnRange, is_writable: bool) -> bool {
        !self.claims.has_any(&self.store, range)
            || range.iter().all(|pfn| self.may_map(pfn.get(), is_writable))
    }

    /// Makes a table of a leaf that is folded, so that it can be mapped.
    pub(crate) fn unfold_leaf(&self, which: Which, index: u64) -> Result {
        let mut state = self.state.lock();
        let views = self.mapping.lock();
        self.maps
            .unfold_leaf(&mut state.writer, &self.store, &views, which, index)?;
        Ok(())
    }

    /// Returns the superpage that a PFN is in.
    ///
    /// The caller is in an RCU read-side critical section, or has locked the state or the mapping.
    pub(crate) fn superpage_at(&self, number: u64) -> Option<PfnRange> {
        let mfn = self.maps.lookup(&self.store, Pfn::new(number)?).owned()?;
        let start = number - number % SUPERPAGE_PAGES;
        let range = PfnRange::new(start, SUPERPAGE_PAGES).ok();
        range.filter(|_| Source::is_superpage(mfn))
    }

    /// Fills `frames`, which are for a range: with superpages where there can be some.
    pub(super) fn fill_superpages(
        range: PfnRange,
        source: &mut Filtered,
        frames: &mut [Mfn],
    ) -> Result {
        let mut done = 0;
        for part in parts(range) {
            // CAST: A part is small.
            let nr = part.nr_pages() as usize;
            let Some(places) = frames.get_mut(done..done + nr) else {
                break;
            };
            let result = if source.is_interrupted() {
                Err(EINTR)
            } else if is_place(part) {
                source.alloc_superpage(true).map_or_else(
                    || Err(no_superpage()),
                    |first| {
                        for (place, mfn) in places.iter_mut().zip(frames_from(first)) {
                            *place = mfn;
                        }
                        Ok(())
                    },
                )
            } else {
                let filled = Policy::Any.fill(source, places);
                filled.map_err(|error| source.reason(error))
            };
            if let Err(error) = result {
                for &mfn in frames.iter().take(done) {
                    Source::take_back(Gone::Frame(mfn));
                }
                return Err(error);
            }
            done += nr;
        }
        Ok(())
    }

    /// Puts frames into the maps as [`fill_superpages()`](Self::fill_superpages) returned them.
    ///
    /// Returns how many, also if it stopped half-way.
    pub(super) fn install_superpages(
        &self,
        writer: &mut Writer,
        range: PfnRange,
        frames: &[Mfn],
    ) -> (usize, Result) {
        let mut nr_done = 0;
        for part in parts(range) {
            // CAST: A part is small.
            let nr = part.nr_pages() as usize;
            let Some(frames) = frames.get(nr_done..nr_done + nr) else {
                break;
            };
            let (nr, result) = match frames.first() {
                Some(&first) if is_place(part) => match self.install_superpage(writer, part, first)
                {
                    Ok(()) => {
                        self.counters.add(Counter::Populated, SUPERPAGE_PAGES);
                        (nr, Ok(()))
                    }
                    Err(error) => (0, Err(error)),
                },
                _ => self.install(writer, part, frames),
            };
            nr_done += nr;
            if result.is_err() {
                return (nr_done, result);
            }
        }
        (nr_done, Ok(()))
    }

    fn install_superpage(&self, writer: &mut Writer, place: PfnRange, first: Mfn) -> Result {
        let views = self.mapping.lock();
        self.maps
            .set_superpage(writer, &self.store, &views, (place, first), |gone| {
                self.take_back(gone)
            })?;
        self.count_superpage();
        Ok(())
    }

    /// Takes a superpage for a place where nothing is, if it's all in a region that has them, and if
    /// there is one at hand. Returns whether it did.
    pub(super) fn populate_superpage(&self, state: &mut State, place: PfnRange) -> Result<bool> {
        let region = state.region_around(place);
        let has_them = |region: &&Region| region.policy == abi::P2M_POLICY_SUPERPAGE;
        let Some(region) = region.filter(has_them).filter(|_| self.is_empty(place)) else {
            return Ok(false);
        };
        let mut source = self.source(state, region.origin);
        let Some(first) = source.alloc_superpage(false) else {
            return Ok(false);
        };
        let installed = self.install_superpage(&mut state.writer, place, first);
        installed.inspect_err(|_| Source.free(first))?;
        self.counters.add(Counter::Populated, SUPERPAGE_PAGES);
        self.raise_end_mfn(&mut state.writer, place);
        Ok(true)
    }

    /// Splits the superpages that are partly in a range.
    pub(super) fn split_cut(&self, state: &mut State, range: PfnRange) -> Result {
        // OVERFLOW: A range isn't empty.
        for number in [range.start().get(), range.end() - 1] {
            match self.superpage_at(number) {
                Some(place) if !is_within(place, range) => self.split(state, place)?,
                _ => (),
            }
        }
        Ok(())
    }

    /// Splits the superpages that are in a range or partly so. Those that somebody has pinned are
    /// left alone.
    pub(super) fn split_all(&self, state: &mut State, range: PfnRange) -> Result {
        for part in parts(range) {
            if let Some(place) = self.superpage_at(part.start().get()) {
                match self.split(state, place) {
                    Err(error) if error != EBUSY => return Err(error),
                    _ => (),
                }
            }
        }
        Ok(())
    }

    /// Gives the pages of a superpage single frames.
    pub(super) fn split(&self, state: &mut State, place: PfnRange) -> Result {
        let region = state.region_of(place.start().get()).ok_or(ENOENT)?;
        let mut source = self.source(state, region.origin);
        self.injection.check(ENOMEM)?;
        let mut frames = KVVec::from_elem(Mfn::ZERO, SUPERPAGE_PAGES as usize, GFP_KERNEL)?;
        Policy::Any
            .fill(&mut source, &mut frames)
            .map_err(|error| source.reason(error))?;
        let result = self.with_spaces_suspended(state, &[place], |writer| {
            self.replace_superpage(writer, place, &frames)
        });
        if result.is_err() {
            for &mfn in &frames {
                Source.free(mfn);
            }
        }
        self.raise_end_mfn(&mut state.writer, place);
        result
    }

    /// Puts single frames in the place of a superpage. After an error it's there as before.
    fn replace_superpage(&self, writer: &mut Writer, place: PfnRange, frames: &[Mfn]) -> Result {
        let views = self.mapping.lock();
        views.unmap(place);
        let old = self.check_superpage(place)?;
        self.maps
            .unfold(writer, &self.store, &views, place, false)?;
        let reserved = frames.iter().try_for_each(|&mfn| {
            self.maps
                .reserve_frames(writer, &self.store, &views, (mfn, mfn))
        });
        if let Err(error) = reserved {
            for &mfn in frames {
                self.maps
                    .prune_frames(writer, &self.store, &views, (mfn, mfn));
            }
            self.maps.fold(writer, &self.store, &views, place);
            return Err(error.into());
        }

        // Now nothing can go wrong any more.
        for ((pfn, &new), old) in place.iter().zip(frames).zip(frames_from(old)) {
            // SAFETY: Both are frames of the domain's. The new one is nobody else's yet. The old one
            // was taken out of all mappings, and nobody has pinned it.
            unsafe { Source::copy(old, new) };
            self.maps.replace(writer, &self.store, &views, pfn, new);
            // A guard of another region may be next to it, and to nothing else any more.
            self.maps
                .drop_guards(writer, &self.store, &views, old, |mfn| Source.free(mfn));
        }
        // One reference is for all of them.
        let last = frames_from(old).last().unwrap_or(old);
        self.take_back(Gone::Frame(last));
        self.maps
            .prune_frames(writer, &self.store, &views, (old, last));
        Ok(())
    }

    /// Returns the first frame of a superpage that was taken out of all mappings, if it can get other
    /// frames.
    fn check_superpage(&self, place: PfnRange) -> Result<Mfn> {
        let first = self.maps.lookup(&self.store, place.start()).owned();
        let first = first
            .filter(|mfn| Source::is_superpage(*mfn))
            .ok_or(EAGAIN)?;
        if !self.may_get_others(place.start(), first) || self.has_table(place) {
            return Err(EBUSY);
        }
        Ok(first)
    }

    fn has_table(&self, range: PfnRange) -> bool {
        self.claims.has_any(&self.store, range)
            && range
                .iter()
                .any(|pfn| self.claims.is_table(&self.store, pfn.get()))
    }

    /// Gives pages of a superpage, `nr_pages` of it, other frames: those of another superpage if it
    /// is all of them, and there is one, and the policy allows it. Else it is split. Nothing is done
    /// if it isn't there any more.
    pub(super) fn move_superpage(
        &self,
        place: PfnRange,
        nr_pages: u64,
        policy: Policy,
        mut source: Filtered,
    ) -> Result<Option<Moved>> {
        let is_whole = nr_pages == place.nr_pages();
        if is_whole && policy == Policy::Any {
            if let Some(first) = source.alloc_superpage(false) {
                let result = self.change_superpage(place, first);
                if result.is_err() {
                    Source.free(first);
                }
                return moved(nr_pages, result);
            }
        }
        self.injection.check(ENOMEM)?;
        let mut spare = spare_frames(SUPERPAGE_PAGES as usize, policy)?;
        let mut frames = KVVec::with_capacity(SUPERPAGE_PAGES as usize, GFP_KERNEL)?;
        let mut candidates = Candidates::new(&mut source, &mut spare, policy)
            .map_err(|error| source.reason(error))?;
        let mut state = self.state.lock();
        for (pfn, index) in place.iter().zip(0..) {
            let [before, behind] = self.neighbours(pfn);
            let neighbours = [
                match index {
                    0 => before,
                    _ => frames.last().copied(),
                },
                behind.filter(|_| index == SUPERPAGE_PAGES - 1),
            ];
            match candidates.take(neighbours) {
                // There is room for all of them.
                Some(mfn) => frames.push_within_capacity(mfn).map_err(|_| EINVAL)?,
                None => break,
            }
        }
        let result = if frames.len() as u64 == SUPERPAGE_PAGES {
            self.with_spaces_suspended(&mut state, &[place], |writer| {
                self.replace_superpage(writer, place, &frames)
            })
        } else {
            Err(EBUSY)
        };
        self.raise_end_mfn(&mut state.writer, place);
        drop(state);
        candidates.give_back(&mut source);
        if result.is_err() {
            for &mfn in &frames {
                Source.free(mfn);
            }
        }
        moved(nr_pages, result)
    }

    /// Puts a superpage in the place of another one.
    fn change_superpage(&self, place: PfnRange, first: Mfn) -> Result {
        let mut state = self.state.lock();
        let result = self.with_spaces_suspended(&mut state, &[place], |writer| {
            let views = self.mapping.lock();
            views.unmap(place);
            self.check_superpage(place)?;
            self.copy_to_superpage(writer, &views, place, first)
        });
        self.raise_end_mfn(&mut state.writer, place);
        result
    }

    /// Gives pages that were taken out of all mappings the frames of a superpage. All can get others.
    fn copy_to_superpage(
        &self,
        writer: &mut Writer,
        views: &Invalidation<'_>,
        place: PfnRange,
        first: Mfn,
    ) -> Result {
        let mut olds = KVec::with_capacity(SUPERPAGE_PAGES as usize, GFP_KERNEL)?;
        for (pfn, new) in place.iter().zip(frames_from(first)) {
            if let Some(old) = self.maps.lookup(&self.store, pfn).owned() {
                // SAFETY: As in `replace_superpage()`.
                unsafe { Source::copy(old, new) };
                // There is room for all of them.
                olds.push_within_capacity(old).map_err(|_| EINVAL)?;
            }
        }
        self.maps
            .set_superpage(writer, &self.store, views, (place, first), |gone| {
                self.take_back(gone)
            })?;
        self.count_superpage();
        for old in olds {
            // As in `replace_superpage()`.
            self.maps
                .drop_guards(writer, &self.store, views, old, |mfn| Source.free(mfn));
        }
        Ok(())
    }

    /// Makes superpages of the pages of a range, where that can be: where all pages are there, and
    /// are of one region.
    pub(crate) fn collapse(&self, range: PfnRange) -> Result<Collapsed> {
        let mut collapsed = Collapsed::default();
        let origin = self.origin_of(range)?;
        if !is_place(range) {
            return Ok(collapsed);
        }
        let state = self.state.lock();
        let mut source = self.source(&state, origin);
        let is_there = self.superpage_at(range.start().get()).is_some();
        drop(state);
        let first = match is_there {
            true => None,
            false => Some(source.alloc_superpage(true).ok_or_else(no_superpage)?),
        };
        let mut state = self.state.lock();
        let result = self.collapse_to(&mut state, range, first);
        if let (Some(first), Ok(false) | Err(_)) = (first, &result) {
            Source.free(first);
        }
        self.raise_end_mfn(&mut state.writer, range);
        match result {
            Ok(is_new) => {
                collapsed.nr_pages += u64::from(is_new) * SUPERPAGE_PAGES;
                collapsed.nr_superpages += u64::from(is_new || is_there);
            }
            Err(error) if error == EBUSY => collapsed.nr_busy += SUPERPAGE_PAGES,
            Err(error) => return Err(error),
        }
        Ok(collapsed)
    }

    /// Makes a superpage of pages, and returns whether it is a new one.
    fn collapse_to(&self, state: &mut State, place: PfnRange, first: Option<Mfn>) -> Result<bool> {
        state.check_populated(place)?;
        let Some(region) = state.region_around(place) else {
            return Ok(false);
        };
        let base = region.range.start().get();
        let is_there = self.superpage_at(place.start().get()).is_some();
        let Some(first) = first.filter(|_| !is_there) else {
            // It is one already. It may have been looked at, so that there are tables of it.
            let views = self.mapping.lock();
            self.maps
                .fold(&mut state.writer, &self.store, &views, place);
            return Ok(false);
        };
        let frame = |pfn| self.maps.lookup(&self.store, pfn).owned();
        if !place.iter().all(|pfn| frame(pfn).is_some()) {
            return Ok(false);
        }
        self.with_spaces_suspended(state, &[place], |writer| {
            let views = self.mapping.lock();
            views.unmap(place);
            let is_movable = |pfn| frame(pfn).is_some_and(|mfn| self.may_get_others(pfn, mfn));
            if !place.iter().all(is_movable) {
                return Err(EBUSY);
            }
            self.copy_to_superpage(writer, &views, place, first)
        })?;
        if let Some(region) = state.regions.get_mut(&base) {
            region.has_superpages = true;
        }
        Ok(true)
    }
}

/// Returns what became of the pages of a superpage.
fn moved(nr_pages: u64, result: Result) -> Result<Option<Moved>> {
    match result {
        Ok(()) => Ok(Some(Moved {
            nr_moved: nr_pages,
            nr_busy: 0,
        })),
        Err(error) if error == EBUSY => Ok(Some(Moved {
            nr_moved: 0,
            nr_busy: nr_pages,
        })),
        Err(error) if error == EAGAIN => Ok(None),
        Err(error) => Err(error),
    }
}
