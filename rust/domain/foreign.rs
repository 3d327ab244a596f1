// SPDX-License-Identifier: GPL-2.0

//! What is at a PFN without being the domain's: frames of another domain, and machine frames that
//! are no memory.
//!
//! A foreign frame is one that the domain has a reference to, so it stays as long as it's there, but
//! can't get another place in the domain that it belongs to. The M2P doesn't have it.

use super::*;

use crate::{
    commands::check_killed,
    pure::policy::sort_by, //
};

impl Domain {
    /// Replaces PFNs by frames of the domain that are there, with a reference to each. Where there
    /// is none, there is why.
    pub(crate) fn lend(&self, pfns: &[u64], frames: &mut [Result<Mfn>]) {
        // No frame can go under the lock.
        let mut state = self.state.lock();
        for (pfn, frame) in pfns.iter().zip(frames) {
            *frame = self.lend_one(&mut state, *pfn);
        }
    }

    fn lend_one(&self, state: &mut State, number: u64) -> Result<Mfn> {
        let pfn = Pfn::new(number).ok_or(EFAULT)?;
        let frame = || self.maps.lookup(&self.store, pfn).owned().ok_or(EFAULT);
        let mfn = frame()?;
        if self.claims.is_table(&self.store, number) {
            return Err(EFAULT);
        }
        let mfn = match self.superpage_at(number) {
            // A reference to one page would keep all of them, when nobody pays for the others.
            Some(place) => {
                self.split(state, place)?;
                frame()?
            }
            None => mfn,
        };
        Source::take_reference(mfn);
        Ok(mfn)
    }

    /// Takes references to all pages of a range, foreign ones as well. Superpages that are partly in it
    /// are split, as a reference to one page would keep all of them.
    pub(crate) fn hold(&self, range: PfnRange) -> Result<Pages> {
        self.injection.check(ENOMEM)?;
        let mut pages = Pages::with_capacity(range.nr_pages())?;
        // No frame can go under the lock.
        let mut state = self.state.lock();
        state.check_populated(range)?;
        let frame = |pfn: Pfn| {
            let is_table = self.claims.is_table(&self.store, pfn.get());
            let frame = self.maps.lookup(&self.store, pfn).memory();
            frame.filter(|_| !is_table).ok_or(EFAULT)
        };
        range.iter().try_for_each(|pfn| frame(pfn).map(|_| ()))?;
        self.split_cut(&mut state, range)?;
        for pfn in range.iter() {
            pages.hold(frame(pfn)?)?;
        }
        Ok(pages)
    }

    /// Puts foreign frames, to which the caller has references, at PFNs from `start` on where there
    /// is nothing. Where that can't be, the reference goes, and `errors` says why.
    pub(crate) fn put_foreign(&self, start: u64, frames: &[Result<Mfn>], errors: &mut [i32]) {
        let mut state = self.state.lock();
        for ((number, frame), error) in (start..).zip(frames).zip(errors) {
            let result = match frame {
                Ok(mfn) => self.put_one(&mut state, number, Entry::Foreign(*mfn)),
                Err(error) => Err(*error),
            };
            if let (Err(_), Ok(mfn)) = (result, frame) {
                Source.free(*mfn);
            }
            *error = result.err().map_or(0, |error| -error.to_errno());
        }
    }

    /// Takes foreign frames away from PFNs from `start` on, but for those that spaces map: their tables
    /// would name frames that are somebody else's by then.
    pub(crate) fn take_foreign(&self, start: u64, errors: &mut [i32]) -> Result {
        let mut state = self.state.lock();
        errors.fill(0);
        let busy = -EBUSY.to_errno();
        let range = PfnRange::new(start, errors.len() as u64)?;
        state.spaces.for_mapped(self, range, |part| {
            // CAST: Both are at most the number of errors.
            // OVERFLOW: The part is in the range.
            let nr_before = (part.start().get() - start) as usize;
            for error in errors
                .iter_mut()
                .skip(nr_before)
                .take(part.nr_pages() as usize)
            {
                *error = busy;
            }
            true
        })?;
        for (number, error) in (start..).zip(errors) {
            let entry = Pfn::new(number).map(|pfn| self.maps.lookup(&self.store, pfn));
            let result = match entry {
                Some(Entry::Foreign(_)) if *error == busy => Err(EBUSY),
                Some(Entry::Foreign(_)) => PfnRange::new(number, 1).map_err(Error::from),
                _ => Err(EINVAL),
            };
            if let Ok(range) = result {
                // It's one.
                self.depopulate(&mut state.writer, range, |gone, _| Source.free(gone.mfn()));
            }
            *error = result.err().map_or(0, |error| -error.to_errno());
        }
        Ok(())
    }

    /// Returns the foreign frames in a range and where they are, in the order of the frames.
    pub(crate) fn foreign_frames(&self, range: PfnRange) -> Result<KVVec<(Mfn, Pfn)>> {
        let mut frames = KVVec::new();
        let mut next = Some(range.start());
        while let Some(pfn) = next.and_then(|pfn| self.maps.next_backed(&self.store, pfn)) {
            if pfn.get() >= range.end() {
                break;
            }
            if let Entry::Foreign(mfn) = self.maps.lookup(&self.store, pfn) {
                frames.push((mfn, pfn), GFP_KERNEL)?;
            }
            if pfn.get() % BATCH as u64 == 0 {
                check_killed()?;
            }
            // OVERFLOW: A PFN is below `Pfn::LIMIT`.
            next = Pfn::new(pfn.get() + 1);
        }
        sort_by(&mut frames, |(mfn, _)| mfn.get());
        Ok(frames)
    }

    /// Returns whether a foreign frame is somewhere. It looks everywhere.
    pub(crate) fn has_foreign(&self, mfn: Mfn) -> Result<bool> {
        let mut next = Some(Pfn::ZERO);
        while let Some(pfn) = next.and_then(|pfn| self.maps.next_backed(&self.store, pfn)) {
            if self.maps.lookup(&self.store, pfn) == Entry::Foreign(mfn) {
                return Ok(true);
            }
            if pfn.get() % BATCH as u64 == 0 {
                check_killed()?;
            }
            // OVERFLOW: A PFN is below `Pfn::LIMIT`.
            next = Pfn::new(pfn.get() + 1);
        }
        Ok(false)
    }

    /// Has the PFNs of a range be the machine frames of the same numbers, none of which is memory.
    pub(crate) fn make_identity(&self, range: PfnRange) -> Result {
        if !Source::is_no_memory(range.start().get(), range.nr_pages()) {
            return Err(EINVAL);
        }
        let mut state = self.state.lock();
        state.check_populated(range)?;
        let is_free = |pfn| self.maps.lookup(&self.store, pfn) == Entry::Invalid;
        if !range.iter().all(is_free) {
            return Err(EEXIST);
        }
        let result = range.iter().try_for_each(|pfn| {
            let mfn = Mfn::new(pfn.get()).ok_or(EOVERFLOW)?;
            self.put_one(&mut state, pfn.get(), Entry::Identity(mfn))
        });
        if result.is_err() {
            // It was empty before.
            self.depopulate(&mut state.writer, range, |_, _| ());
        }
        result
    }

    /// Puts something at a PFN of a region where there is nothing.
    fn put_one(&self, state: &mut State, number: u64, entry: Entry) -> Result {
        let pfn = Pfn::new(number).ok_or(EOVERFLOW)?;
        state.region_of(number).ok_or(ENOENT)?;
        if self.maps.lookup(&self.store, pfn) != Entry::Invalid {
            return Err(EEXIST);
        }
        self.injection.check(ENOMEM)?;
        let views = self.mapping.lock();
        self.maps
            .set(&mut state.writer, &self.store, &views, pfn, entry)?;
        Ok(())
    }
}
