// SPDX-License-Identifier: GPL-2.0

//! Changing the machine frames under a domain while it is mapped and in use.
//!
//! Every operation takes pages out of all page tables first, under the domain's lock and with the
//! mapping locked against faults. From then on nobody reads or writes them, unless somebody has
//! pinned one, which its reference count tells. Then the map changes, and faults go on with what is
//! there now.

use super::*;

use crate::commands::check_killed;
use crate::compat::EADDRNOTAVAIL;
use crate::pure::{
    frame::PAGE_SIZE,
    map::{
        Finding,
        SUPERPAGE_PAGES, //
    },
    policy::Candidates,
    table::TABLE_WORDS, //
};

/// The most pages that an operation changes before others get their turn.
pub(crate) const BATCH: usize = 512;

/// How often another frame is tried for one page that must not be next to its neighbours.
const MAX_TRIES: usize = 16;

/// What is asked of the frame for a PFN.
#[derive(PartialEq, Eq)]
struct Wanted {
    policy: Policy,
    origin: Origin,
}

/// What became of pages that should get other frames.
#[derive(Default)]
pub(crate) struct Moved {
    /// How many have other frames now.
    pub(crate) nr_moved: u64,
    /// How many were left alone.
    pub(crate) nr_busy: u64,
}

impl State {
    /// Fails if a PFN of the range is in no region, and returns the region of the first one.
    pub(super) fn check_populated(&self, range: PfnRange) -> Result<&Region> {
        let mut number = range.start().get();
        let mut first = None;
        while number < range.end() {
            let region = self.region_of(number).ok_or(ENOENT)?;
            number = region.range.end();
            first = first.or(Some(region));
        }
        first.ok_or(ENOENT)
    }

    /// Returns where the frames of a range come from, if all regions of it ask for the same.
    fn common_origin(&self, range: PfnRange) -> Result<Origin> {
        let first = self.check_populated(range)?;
        let mut number = first.range.end();
        while number < range.end() {
            let region = self.region_of(number).ok_or(ENOENT)?;
            if region.origin != first.origin {
                return Err(EINVAL);
            }
            number = region.range.end();
        }
        Ok(first.origin)
    }

    /// Returns the region with this PFN, if it's complete.
    pub(super) fn region_of(&self, number: u64) -> Option<&Region> {
        let base = match self.regions.cursor_lower_bound(&number) {
            Some(next) if *next.current().0 == number => number,
            Some(next) => *next.peek_prev()?.0,
            None => *self.regions.cursor_back()?.current().0,
        };
        let region = self.regions.get(&base)?;
        (number < region.range.end() && region.charge.is_some()).then_some(region)
    }

    /// Returns the region that all of a range is in.
    pub(super) fn region_around(&self, range: PfnRange) -> Option<&Region> {
        let region = self.region_of(range.start().get());
        region.filter(|region| range.end() <= region.range.end())
    }
}

impl Domain {
    /// Returns the frames next to a PFN.
    pub(super) fn neighbours(&self, pfn: Pfn) -> [Option<Mfn>; 2] {
        let owned = |number| self.maps.lookup(&self.store, Pfn::new(number)?).owned();
        [
            pfn.get().checked_sub(1).and_then(owned),
            // OVERFLOW: A PFN is below `Pfn::LIMIT`.
            owned(pfn.get() + 1),
        ]
    }

    /// Gives the pages of a range back, and returns how many.
    pub(crate) fn release(&self, range: PfnRange) -> Result<u64> {
        let mut state = self.state.lock();
        state.check_populated(range)?;
        if self.is_used_by_space(&state, range) {
            return Err(EBUSY);
        }
        self.split_cut(&mut state, range)?;
        self.unfold(&mut state.writer, range, true)?;
        let mut nr_pages = 0;
        self.depopulate_for_good(&mut state.writer, range, |gone, nr| {
            if !matches!(gone, Gone::Guard(_)) {
                nr_pages += nr;
            }
        });
        Ok(nr_pages)
    }

    /// Returns whether a space maps a page of the range or has a table there. It's so, too, where nobody
    /// could find out: a fatal signal is pending, or there is no memory.
    pub(super) fn is_used_by_space(&self, state: &State, range: PfnRange) -> bool {
        if self.claims.has_any(&self.store, range) {
            return true;
        }
        let mut is_mapped = false;
        let looked = state.spaces.for_mapped(self, range, |_| {
            is_mapped = true;
            false
        });
        is_mapped || looked.is_err()
    }

    /// Takes pages for the PFNs of a range that have none, and counts them in `nr_pages`.
    pub(crate) fn populate_range(&self, range: PfnRange, nr_pages: &mut u64) -> Result {
        self.state.lock().check_populated(range)?;
        let mut start = range.start().get();
        while start < range.end() {
            // What is asked of frames is a matter of the region.
            let region = self
                .state
                .lock()
                .region_of(start)
                .map(|region| region.range);
            let end = region.ok_or(ENOENT)?.end().min(range.end());
            self.populate_within_region(PfnRange::new(start, end - start)?, nr_pages)?;
            start = end;
        }
        Ok(())
    }

    fn populate_within_region(&self, range: PfnRange, nr_pages: &mut u64) -> Result {
        let mut state = self.state.lock();
        let region = state.check_populated(range)?;
        let policy = match rule(region.policy, region.seed)? {
            Policy::Contiguous => Policy::Any,
            policy => policy,
        };
        let is_missing = |pfn: &Pfn| self.maps.lookup(&self.store, *pfn) == Entry::Invalid;
        let nr_missing = range.iter().filter(is_missing).count();
        if nr_missing == 0 {
            return Ok(());
        }
        if !Source::has_room_for(nr_missing as u64) {
            return Err(ENOMEM);
        }
        if superpage::is_place(range) && self.populate_superpage(&mut state, range)? {
            *nr_pages += range.nr_pages();
            return Ok(());
        }
        let origin = state.check_populated(range)?.origin;
        let mut source = self.source(&state, origin);
        self.injection.check(ENOMEM)?;
        let mut frames = spare_frames(nr_missing, policy)?;
        let mut candidates = Candidates::new(&mut source, &mut frames, policy)
            .map_err(|error| source.reason(error))?;
        let nr_before = state.writer.nr_frames();
        let result = self.populate_from(&mut state.writer, range, &mut candidates);
        // OVERFLOW: Frames only came. After an error, those that came stay.
        let nr_new = state.writer.nr_frames() - nr_before;
        *nr_pages += nr_new;
        self.counters.add(Counter::Populated, nr_new);
        candidates.give_back(&mut source);
        let guarded = self.install_guards(&mut state.writer, &mut source);
        self.raise_end_mfn(&mut state.writer, range);
        result.and(guarded)
    }

    fn populate_from(
        &self,
        writer: &mut Writer,
        range: PfnRange,
        candidates: &mut Candidates<'_>,
    ) -> Result {
        let views = self.mapping.lock();
        for pfn in range.iter() {
            if self.maps.lookup(&self.store, pfn) != Entry::Invalid {
                continue;
            }
            let mfn = candidates.take(self.neighbours(pfn)).ok_or(EADDRNOTAVAIL)?;
            let entry = Entry::Present(mfn);
            if let Err(error) = self.maps.set(writer, &self.store, &views, pfn, entry) {
                candidates.put(mfn);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Takes a page for a PFN that was touched, if it's in a region where that is so.
    pub(crate) fn populate_on_touch(&self, pfn: Pfn) -> Result {
        let mut state = self.state.lock();
        let Some(wanted) = self.wanted_on_touch(&state, pfn)? else {
            return Ok(());
        };
        let start = pfn.get() - pfn.get() % SUPERPAGE_PAGES;
        let place = PfnRange::new(start, SUPERPAGE_PAGES)?;
        if self.populate_superpage(&mut state, place)? {
            return Ok(());
        }
        let mut source = self.source(&state, wanted.origin);
        drop(state);

        let mut tried = [Mfn::ZERO; MAX_TRIES];
        let mut nr_tried = 0;
        let result = loop {
            let Some(slot) = tried.get_mut(nr_tried) else {
                break Err(ENOMEM);
            };
            // That it's zeroed takes longer than all else, so others may go on meanwhile.
            let Some(mfn) = source.alloc(0) else {
                break Err(ENOMEM);
            };
            *slot = mfn;
            nr_tried += 1;
            let mut state = self.state.lock();
            match self.wanted_on_touch(&state, pfn) {
                Ok(Some(now)) if now == wanted && source.keeps_out_of(&state.exclusions) => (),
                // If it's still to be populated, the caller finds that out.
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
            let is_next = |other: &Mfn| mfn.is_adjacent_to(*other);
            if matches!(wanted.policy, Policy::Scatter { .. })
                && self.neighbours(pfn).iter().flatten().any(is_next)
            {
                continue;
            }
            if let Err(error) = self.set_untouched(&mut state.writer, pfn, mfn) {
                break Err(error);
            }
            nr_tried -= 1;
            self.counters.add(Counter::Populated, 1);
            if let Ok(range) = PfnRange::new(pfn.get(), 1) {
                self.raise_end_mfn(&mut state.writer, range);
            }
            // The page is there, whether or not there was memory to note what guards it.
            let _ = self.install_guards(&mut state.writer, &mut source);
            break Ok(());
        };
        for &mfn in tried.iter().take(nr_tried) {
            source.free(mfn);
        }
        result
    }

    /// Returns what is asked of the frame for a PFN that was touched, if there shall be one.
    fn wanted_on_touch(&self, state: &State, pfn: Pfn) -> Result<Option<Wanted>> {
        let region = state.region_of(pfn.get()).ok_or(EFAULT)?;
        if region.flags & abi::P2M_REGION_ON_DEMAND == 0 {
            return Err(EFAULT);
        }
        match self.maps.lookup(&self.store, pfn) {
            Entry::Invalid => Ok(Some(Wanted {
                policy: rule(region.policy, region.seed)?,
                origin: region.origin,
            })),
            // Another thread was faster.
            Entry::Present(_) | Entry::Foreign(_) => Ok(None),
            Entry::Identity(_) => Err(EFAULT),
        }
    }

    /// Puts a frame at a PFN where nothing is. Other faults need not wait for that: nothing is taken
    /// away, unless it's a leaf that is replaced, which the tables' mappings show.
    fn set_untouched(&self, writer: &mut Writer, pfn: Pfn, mfn: Mfn) -> Result {
        let entry = Entry::Present(mfn);
        if self.maps.has_leaves(&self.store, pfn, mfn) {
            self.maps
                .set(writer, &self.store, &Tracer(self.id), pfn, entry)?;
        } else {
            let views = self.mapping.lock();
            self.maps.set(writer, &self.store, &views, pfn, entry)?;
        }
        Ok(())
    }

    /// Unfolds leaves of the maps as [`Maps::unfold()`] does.
    fn unfold(&self, writer: &mut Writer, range: PfnRange, but_whole: bool) -> Result {
        let views = self.mapping.lock();
        self.maps
            .unfold(writer, &self.store, &views, range, but_whole)?;
        Ok(())
    }

    /// Keeps what the header says of the frames up to date after those of a range have changed.
    pub(super) fn raise_end_mfn(&self, writer: &mut Writer, range: PfnRange) {
        if self.sees_mfns {
            let last = range
                .iter()
                .filter_map(|pfn| self.maps.lookup(&self.store, pfn).owned())
                .max();
            // OVERFLOW: An MFN is below `Mfn::LIMIT`.
            let end = last.map_or(0, |last| last.get() + 1);
            self.maps.raise_end_mfn(writer, &self.store, end);
        }
    }

    /// Gives pages other frames, none of them in `avoided`, with the same contents. `pfns` are in
    /// order. Adds what became of them to `moved`, also before an error.
    pub(crate) fn move_pages(
        &self,
        pfns: &[Pfn],
        policy: Policy,
        avoided: (u64, u64),
        moved: &mut Moved,
    ) -> Result {
        let mut rest = pfns;
        while let Some(first) = rest.first() {
            // What is asked of frames is a matter of the region.
            let (end, origin) = match self.state.lock().region_of(first.get()) {
                Some(region) => (region.range.end(), region.origin),
                None => (first.get() + 1, Origin::ANYWHERE),
            };
            let nr = rest.partition_point(|pfn| pfn.get() < end);
            // PANIC: A partition point is a position in the slice.
            let (part, behind) = rest.split_at(nr);
            let mut part = part;
            while !part.is_empty() {
                let (place, nr) = self.first_part(part);
                // PANIC: It's the length of a part of it.
                let (now, later) = part.split_at(nr);
                let of_superpage = match place {
                    Some(place) => {
                        let mut source = self.source(&self.state.lock(), origin);
                        source.keep_out_of(avoided);
                        self.move_superpage(place, nr as u64, policy, source)?
                    }
                    None => None,
                };
                match of_superpage {
                    Some(result) => {
                        moved.nr_moved += result.nr_moved;
                        moved.nr_busy += result.nr_busy;
                    }
                    None => self.move_within_region(now, policy, (origin, avoided), moved)?,
                }
                part = later;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Returns how many of the PFNs, which are in order, are moved together first: those of one
    /// superpage, and which one it is; or those before the first one.
    fn first_part(&self, pfns: &[Pfn]) -> (Option<PfnRange>, usize) {
        let _guard = rcu::read_lock();
        let mut nr = 0;
        while let Some(next) = pfns.get(nr) {
            let place = self.superpage_at(next.get());
            if place.is_some() && nr > 0 {
                break;
            }
            // What is in the same place is in the same superpage, or in none.
            // OVERFLOW: A PFN is below `Pfn::LIMIT`.
            let end = (next.get() / SUPERPAGE_PAGES + 1) * SUPERPAGE_PAGES;
            let rest = pfns.get(nr..).unwrap_or_default();
            nr += rest.partition_point(|pfn| pfn.get() < end);
            if place.is_some() {
                return (place, nr);
            }
        }
        (None, nr)
    }

    fn move_within_region(
        &self,
        pfns: &[Pfn],
        policy: Policy,
        (origin, avoided): (Origin, (u64, u64)),
        moved: &mut Moved,
    ) -> Result {
        let (Some(first), Some(last)) = (pfns.first(), pfns.last()) else {
            return Ok(());
        };
        // OVERFLOW: The PFNs are in order.
        let bounds = PfnRange::new(first.get(), last.get() - first.get() + 1)?;
        self.injection.check(ENOMEM)?;
        let mut frames = spare_frames(pfns.len(), policy)?;
        let mut source = self.source(&self.state.lock(), origin);
        source.keep_out_of(avoided);
        let mut candidates = Candidates::new(&mut source, &mut frames, policy)
            .map_err(|error| source.reason(error))?;

        let mut state = self.state.lock();
        let result = self.with_spaces_suspended(&mut state, &[bounds], |writer| {
            self.move_to(writer, pfns, &mut candidates, moved)
        });
        candidates.give_back(&mut source);
        let guarded = self.install_guards(&mut state.writer, &mut source);
        self.raise_end_mfn(&mut state.writer, bounds);
        result.and(guarded)
    }

    fn move_to(
        &self,
        writer: &mut Writer,
        pfns: &[Pfn],
        candidates: &mut Candidates<'_>,
        moved: &mut Moved,
    ) -> Result {
        let views = self.mapping.lock();
        for run in pfns.chunk_by(|a, b| a.get() + 1 == b.get()) {
            if let Some(first) = run.first() {
                views.unmap(PfnRange::new(first.get(), run.len() as u64)?);
            }
        }
        let mut span: Option<(Mfn, Mfn)> = None;
        let mut result = Ok(());
        for &pfn in pfns {
            let Some(old) = self.maps.lookup(&self.store, pfn).owned() else {
                continue;
            };
            if !self.is_movable(pfn, old) {
                moved.nr_busy += 1;
                continue;
            }
            let Some(new) = candidates.take(self.neighbours(pfn)) else {
                moved.nr_busy += 1;
                continue;
            };
            // SAFETY: Both are frames of the domain's. The new one is nobody else's yet. The old one
            // was taken out of all mappings, and nobody has pinned it.
            unsafe { Source::copy(old, new) };
            let entry = Entry::Present(new);
            let maps = &self.maps;
            let set = maps.set_without_pruning(writer, &self.store, &views, pfn, entry);
            if let Err(error) = set {
                candidates.put(new);
                result = Err(error.into());
                break;
            }
            self.maps
                .drop_guards(writer, &self.store, &views, old, |mfn| Source.free(mfn));
            Source.free(old);
            moved.nr_moved += 1;
            let (first, last) = span.unwrap_or((old, old));
            span = Some((first.min(old), last.max(old)));
        }
        if let Some(span) = span {
            self.maps.prune_frames(writer, &self.store, &views, span);
        }
        result
    }

    /// Returns whether a page that was taken out of all mappings can get another frame, alone.
    fn is_movable(&self, pfn: Pfn, mfn: Mfn) -> bool {
        self.may_get_others(pfn, mfn) && !Source::is_superpage(mfn)
    }

    /// Returns whether a page that was taken out of all mappings can get another frame: alone, or
    /// with the superpage that it's in, which then was taken out as a whole.
    pub(super) fn may_get_others(&self, pfn: Pfn, mfn: Mfn) -> bool {
        !self.claims.is_table(&self.store, pfn.get())
            && Source::is_exclusive(mfn)
            && !self.injection.should_fail()
    }

    /// Has the leaves of spaces that map a page of the ranges follow what `work` does to its frame.
    pub(super) fn with_spaces_suspended<R>(
        &self,
        state: &mut State,
        ranges: &[PfnRange],
        work: impl FnOnce(&mut Writer) -> Result<R>,
    ) -> Result<R> {
        let mut ranges = ranges.iter();
        let suspended = ranges.try_for_each(|range| state.spaces.suspend(self, *range));
        let result = suspended.and_then(|()| work(&mut state.writer));
        state.spaces.resume(self);
        result
    }

    /// Fills `pfns` with those of a range that have a frame of the domain.
    pub(crate) fn backed_pfns(&self, range: PfnRange, pfns: &mut KVec<Pfn>) -> Result {
        pfns.clear();
        pfns.reserve(BATCH, GFP_KERNEL)?;
        let _guard = rcu::read_lock();
        for pfn in range.iter() {
            if self.maps.lookup(&self.store, pfn).owned().is_some() {
                // There is room for a batch.
                pfns.push_within_capacity(pfn).map_err(|_| EINVAL)?;
            }
        }
        Ok(())
    }

    /// Returns the PFNs at frames from `start` to before `end`, at most as many as a batch has, in
    /// order, and the frame to go on with.
    pub(crate) fn pfns_in(&self, start: u64, end: u64) -> Result<(KVec<Pfn>, u64)> {
        let mut pfns = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        let mut next = start;
        let guard = rcu::read_lock();
        while pfns.len() < BATCH {
            let found = Mfn::new(next)
                .filter(|_| next < end)
                .and_then(|mfn| self.maps.next_frame(&self.store, mfn, end));
            let Some((mfn, pfn)) = found else {
                next = end;
                break;
            };
            if let Some(place) = self.superpage_at(pfn.get()) {
                // It's moved as a whole, also if not all of it is there.
                if pfns.is_empty() {
                    // CAST: The remainder is small.
                    let nr_before = mfn.get() % SUPERPAGE_PAGES;
                    for pfn in place.iter() {
                        // There is room for a batch.
                        pfns.push_within_capacity(pfn).map_err(|_| ENOMEM)?;
                    }
                    // OVERFLOW: An MFN is below `Mfn::LIMIT`.
                    next = (mfn.get() - nr_before + SUPERPAGE_PAGES).min(end);
                } else {
                    next = mfn.get();
                }
                break;
            }
            // There is room, as has just been checked.
            pfns.push_within_capacity(pfn).map_err(|_| ENOMEM)?;
            // OVERFLOW: An MFN is below `Mfn::LIMIT`.
            next = mfn.get() + 1;
        }
        drop(guard);
        // Each PFN is there once, so a simple way to sort does: frames that are near each other tend
        // to be in order already.
        for index in 1..pfns.len() {
            let mut place = index;
            while place > 0 && pfns[place - 1] > pfns[place] {
                pfns.swap(place - 1, place);
                place -= 1;
            }
        }
        Ok((pfns, next))
    }

    /// Keeps out of machine frames from now on.
    pub(crate) fn exclude(&self, start: u64, end: u64) -> Result {
        self.injection.check(ENOMEM)?;
        let exclusions = &mut self.state.lock().exclusions;
        *exclusions = exclusions.with(start, end)?;
        Ok(())
    }

    /// Doesn't keep out of machine frames any more.
    pub(crate) fn readmit(&self, start: u64, end: u64) -> Result {
        self.injection.check(ENOMEM)?;
        let exclusions = &mut self.state.lock().exclusions;
        *exclusions = exclusions.without(start, end)?;
        Ok(())
    }

    /// Gives the pages of a range frames that follow each other, below `limit`.
    ///
    /// After an error each page has the frame that it had.
    pub(crate) fn make_contiguous(&self, range: PfnRange, limit: u64) -> Result<(), (Error, u64)> {
        let nothing = |error| (error, entry::INVALID);
        let nr_pages = usize::try_from(range.nr_pages()).map_err(|_| nothing(EOVERFLOW))?;
        let origin = self.origin_of(range).map_err(nothing)?;
        let mut source = self.source(&self.state.lock(), origin);
        let run = source.alloc_run_below(nr_pages, limit, range.nr_pages());
        let first = run.ok_or_else(|| {
            nothing(match Source::has_room_for(range.nr_pages()) {
                true => EADDRNOTAVAIL,
                false => ENOMEM,
            })
        })?;
        let mut state = self.state.lock();
        let mut busy = entry::INVALID;
        let result = self.split_cut(&mut state, range).inspect_err(|error| {
            if *error == EBUSY {
                busy = range.start().get();
            }
        });
        let result = result.and_then(|()| {
            self.with_spaces_suspended(&mut state, &[range], |writer| {
                self.make_run(writer, range, first).map_err(|(error, pfn)| {
                    busy = pfn;
                    error
                })
            })
        });
        self.raise_end_mfn(&mut state.writer, range);
        drop(state);
        if result.is_err() {
            for index in 0..range.nr_pages() {
                if let Some(mfn) = first.checked_add(index) {
                    source.free(mfn);
                }
            }
        }
        result.map_err(|error| (error, busy))
    }

    /// Returns where the frames of a range come from, if they don't have to be single.
    pub(super) fn origin_of(&self, range: PfnRange) -> Result<Origin> {
        let state = self.state.lock();
        let origin = state.common_origin(range)?;
        if origin.constraint.is_guarded || origin.constraint.colour.is_some() {
            return Err(EINVAL);
        }
        Ok(origin)
    }

    fn make_run(
        &self,
        writer: &mut Writer,
        range: PfnRange,
        first: Mfn,
    ) -> Result<(), (Error, u64)> {
        let nothing = |error| (error, entry::INVALID);
        let views = self.mapping.lock();
        views.unmap(range);
        // OVERFLOW: A range isn't empty.
        let last = first.checked_add(range.nr_pages() - 1);
        let run = (first, last.ok_or(nothing(EOVERFLOW))?);
        for pfn in range.iter() {
            let mfn = self.maps.lookup(&self.store, pfn).owned();
            if !self.may_get_others(pfn, mfn.ok_or((EFAULT, pfn.get()))?) {
                return Err((EBUSY, pfn.get()));
            }
        }
        self.maps
            .unfold(writer, &self.store, &views, range, false)
            .map_err(|error| nothing(error.into()))?;
        self.maps
            .reserve_frames(writer, &self.store, &views, run)
            .map_err(|error| nothing(error.into()))?;

        // Now nothing can go wrong any more.
        let mut span = run;
        for (pfn, index) in range.iter().zip(0..) {
            let old = self.maps.lookup(&self.store, pfn).owned();
            let (Some(old), Some(new)) = (old, first.checked_add(index)) else {
                continue;
            };
            // SAFETY: As in `move_to()`.
            unsafe { Source::copy(old, new) };
            self.maps.replace(writer, &self.store, &views, pfn, new);
            // A guard of another region may be next to it, and to nothing else any more.
            self.maps
                .drop_guards(writer, &self.store, &views, old, |mfn| Source.free(mfn));
            self.take_back(Gone::Frame(old));
            span = (span.0.min(old), span.1.max(old));
        }
        self.maps.prune_frames(writer, &self.store, &views, span);
        Ok(())
    }

    /// Has the pages of two ranges exchange their frames, with their contents staying.
    pub(crate) fn exchange(&self, a: PfnRange, b: PfnRange) -> Result<Moved> {
        let mut moved = Moved::default();
        self.injection.check(ENOMEM)?;
        let mut buffer = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL)?;
        let mut state = self.state.lock();
        state.check_populated(a)?;
        state.check_populated(b)?;
        // A frame brings its guards along, and its colour.
        if state.common_origin(a)?.constraint != state.common_origin(b)?.constraint {
            return Err(EINVAL);
        }
        let frame = |pfn: Pfn| self.maps.lookup(&self.store, pfn).owned();
        let is_backed = |range: PfnRange| range.iter().all(|pfn| frame(pfn).is_some());
        if !is_backed(a) || !is_backed(b) {
            return Err(EFAULT);
        }
        // Superpages change their places as a whole, or are split.
        let has_superpages = |range: PfnRange| {
            let superpage = |pfn: Pfn| self.superpage_at(pfn.get());
            range.iter().any(|pfn| superpage(pfn).is_some())
        };
        let may_have_one =
            |range: PfnRange| superpage::is_place(range) && state.region_around(range).is_some();
        let is_whole =
            may_have_one(a) && may_have_one(b) && (has_superpages(a) || has_superpages(b));
        if !is_whole {
            self.split_all(&mut state, a)?;
            self.split_all(&mut state, b)?;
        }
        let result = self.with_spaces_suspended(&mut state, &[a, b], |writer| {
            let views = self.mapping.lock();
            views.unmap(a);
            views.unmap(b);
            for range in [a, b] {
                self.maps
                    .unfold(writer, &self.store, &views, range, false)?;
            }
            let may = |pfn| frame(pfn).is_some_and(|mfn| self.may_get_others(pfn, mfn));
            if is_whole && !(a.iter().all(may) && b.iter().all(may)) {
                moved.nr_busy += a.nr_pages();
                return Ok(());
            }
            for (pfn_a, pfn_b) in a.iter().zip(b.iter()) {
                let (Some(mfn_a), Some(mfn_b)) = (frame(pfn_a), frame(pfn_b)) else {
                    continue;
                };
                if !is_whole && (!self.is_movable(pfn_a, mfn_a) || !self.is_movable(pfn_b, mfn_b)) {
                    moved.nr_busy += 1;
                    continue;
                }
                // SAFETY: Both are frames of the domain's, which were taken out of all mappings, and
                // nobody has pinned them.
                unsafe { Source::swap(mfn_a, mfn_b, &mut buffer) };
                self.maps
                    .exchange(writer, &self.store, &views, (pfn_a, pfn_b));
                moved.nr_moved += 1;
            }
            for range in [a, b] {
                if is_whole {
                    self.maps.fold(writer, &self.store, &views, range);
                }
            }
            Ok(())
        });
        result.map(|()| moved)
    }

    /// Looks at the guards next to the pages of a range.
    pub(crate) fn check_guards(
        &self,
        range: PfnRange,
        report: &mut abi::p2m_guard_check,
    ) -> Result {
        let state = self.state.lock();
        state.check_populated(range)?;
        for pfn in range.iter() {
            let Some(mfn) = self.maps.lookup(&self.store, pfn).owned() else {
                continue;
            };
            let before = mfn.get().checked_sub(1).and_then(Mfn::new);
            let sides = [
                (before, -(PAGE_SIZE as i64)),
                (mfn.checked_add(1), PAGE_SIZE as i64),
            ];
            for (side, distance) in sides {
                let Some(guard) = side.filter(|side| self.maps.is_guard(&self.store, *side)) else {
                    continue;
                };
                report.out_guards += 1;
                // SAFETY: A guard is ours, and can't go while the state is locked.
                let table = unsafe { Source::table(guard) };
                let mut words = (0..)
                    .take(TABLE_WORDS)
                    .map(|index| (index, table.load(index)));
                let Some((index, word)) = words.find(|(_, word)| *word != abi::P2M_GUARD_PATTERN)
                else {
                    continue;
                };
                if report.out_broken == 0 {
                    // The first byte that differs: the lowest one comes first.
                    let byte = (word ^ abi::P2M_GUARD_PATTERN).trailing_zeros() / 8;
                    report.out_pfn = pfn.get();
                    // CAST: An index is a small number.
                    report.out_offset = distance + index as i64 * 8 + i64::from(byte);
                    report.out_value = word;
                }
                report.out_broken += 1;
                if report.flags & abi::P2M_GUARD_REFILL != 0 {
                    table.fill(abi::P2M_GUARD_PATTERN);
                }
            }
        }
        Ok(())
    }

    /// Checks everything, and changes nothing.
    pub(crate) fn audit(&self, report: &mut abi::p2m_audit) -> Result {
        let mut state = self.state.lock();
        let mut first_pfn = entry::INVALID;
        let mut first_mfn = entry::INVALID;
        let found = |finding| match finding {
            Finding::BadP2m(pfn) => {
                report.out_p2m_bad += 1;
                first_pfn = first_pfn.min(pfn);
            }
            Finding::BadM2p(mfn) => {
                report.out_m2p_bad += 1;
                first_mfn = first_mfn.min(mfn);
            }
        };
        let goes_on = || check_killed().is_ok();
        let nr_frames = self.maps.audit_while(&self.store, found, goes_on);
        report.out_frames = nr_frames.ok_or(EINTR)?;
        let mut next = Some(Pfn::ZERO);
        while let Some(pfn) = next.and_then(|pfn| self.maps.next_backed(&self.store, pfn)) {
            if pfn.get() % BATCH as u64 == 0 {
                check_killed()?;
            }
            if let Some(mfn) = self.maps.lookup(&self.store, pfn).owned() {
                let is_orphan = state.region_of(pfn.get()).is_none();
                let references = Source::references(mfn);
                // What comes and goes meanwhile may make it look so.
                let is_bad = references.nr_unknown < 0 && self.lacks_references(pfn, mfn);
                if is_orphan || is_bad {
                    first_pfn = first_pfn.min(pfn.get());
                }
                report.out_orphans += u64::from(is_orphan);
                report.out_refs_bad += u64::from(is_bad);
                report.out_pinned += u64::from(references.nr_unknown > 0);
            }
            // OVERFLOW: A PFN is below `Pfn::LIMIT`.
            next = Pfn::new(pfn.get() + 1);
        }
        report.out_spaces_bad = state.spaces.audit(self)?;
        report.out_count_bad = u64::from(state.writer.nr_frames() != report.out_frames);
        report.out_first_pfn = first_pfn;
        report.out_first_mfn = if self.sees_mfns { first_mfn } else { 0 };
        Ok(())
    }
}

impl Domain {
    /// Returns whether a frame has fewer references than the domain and mappings have.
    ///
    /// To be certain, it's taken out of mappings, and nobody can map it meanwhile: not by a fault, and
    /// not by a fork, which copies what is mapped. The caller has locked the state.
    fn lacks_references(&self, pfn: Pfn, mfn: Mfn) -> bool {
        let place = self.superpage_at(pfn.get());
        let Some(range) = place.or_else(|| PfnRange::new(pfn.get(), 1).ok()) else {
            return false;
        };
        let views = self.mapping.lock();
        // Or the frame might be freed here, if it's so.
        Source::take_reference(mfn);
        views.unmap(range);
        let is_bad = !Source::has_references(mfn, 2);
        // If it is bad, the reference stays where one is missing.
        if !is_bad {
            Source.free(mfn);
        }
        is_bad
    }
}

/// Returns room for as many frames as are needed to give each of `nr_pages` one.
pub(super) fn spare_frames(nr_pages: usize, policy: Policy) -> Result<KVVec<Mfn>> {
    let spare = match policy {
        Policy::Scatter { .. } => Candidates::SPARE,
        Policy::Any | Policy::Contiguous => 0,
    };
    // OVERFLOW: There are not more pages than PFNs.
    let nr = nr_pages + spare;
    Ok(KVVec::from_elem(Mfn::ZERO, nr, GFP_KERNEL)?)
}
