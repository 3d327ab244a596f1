// SPDX-License-Identifier: GPL-2.0

//! A space, and a model of what is in it.
//!
//! Every call is compared with what the model says, and afterwards all that is in the tables, read
//! as a processor would, is compared with the model.

use std::rc::Rc;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Pfn, PfnRange};
use p2m_pure::paging::{Change, Format, Leaf, Pages, PagingError, Space};
use p2m_pure::pv::bits;

use crate::cpu::{Access, Raw};
use crate::extents::{merge, Advance, Extent, Extents};
use crate::sim::{Pool, Sim};
use crate::world::{at, Backend, Unbacked, NR_TABLES};

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Frame {
    /// A frame that the kernel has a number for.
    Own { pfn: u64, mfn: u64 },
    /// A frame that it has none for.
    Foreign { mfn: u64 },
    /// None, but the number of one.
    Absent { pfn: u64 },
}

/// How a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mapping {
    pub(crate) frame: Frame,
    /// As at level 0, without the present bit.
    pub(crate) flags: u64,
}

impl Advance for Frame {
    fn after(self, nr: u64) -> Self {
        match self {
            Self::Own { pfn, mfn } => Self::Own {
                pfn: pfn + nr,
                mfn: mfn + nr,
            },
            Self::Foreign { mfn } => Self::Foreign { mfn: mfn + nr },
            Self::Absent { pfn } => Self::Absent { pfn: pfn + nr },
        }
    }
}

impl Advance for Mapping {
    fn after(self, nr: u64) -> Self {
        let frame = self.frame.after(nr);
        Self { frame, ..self }
    }
}

/// What a processor sees of a mapping.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    is_present: bool,
    /// Number of the machine frame, or what is in its place.
    number: u64,
    flags: u64,
}

impl Advance for Seen {
    fn after(self, nr: u64) -> Self {
        Self {
            number: self.number + nr,
            ..self
        }
    }
}

impl Mapping {
    fn seen(self) -> Seen {
        let (is_present, number) = match self.frame {
            Frame::Own { mfn, .. } | Frame::Foreign { mfn } => (true, mfn),
            Frame::Absent { pfn } => (false, pfn),
        };
        Seen {
            is_present,
            number,
            flags: self.flags,
        }
    }
}

const AD: u64 = bits::ACCESSED | bits::DIRTY;

pub(crate) struct Rig {
    pub(crate) backend: Backend,
    pub(crate) sim: Rc<Sim>,
    pub(crate) pool: Pool,
    pub(crate) space: Space,
    pub(crate) model: Extents<Mapping>,
}

impl Rig {
    pub(crate) fn new(backend: &Backend, format: Format) -> Self {
        let sim = backend.world();
        let mut pool = Pool::new(&sim, at::POOL..at::POOL + NR_TABLES);
        let space = Space::new(backend.ops, format, &*sim, &mut pool).unwrap();
        assert_eq!(space.ops().name(), backend.name());
        assert_eq!(space.format(), format);
        let root = space.root().get();
        backend.ops.write_cr3(&*sim, root << 12);
        let cr3 = sim.roots.borrow().last().copied();
        assert_eq!(cr3, backend.mfn(&sim, root).map(|mfn| mfn << 12));
        sim.load_root(format.nr_levels, cr3.map(|cr3| cr3 >> 12));
        Self {
            backend: *backend,
            sim,
            pool,
            space,
            model: Extents::default(),
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.space.format()
    }

    /// Returns what PFNs are mapped to if they are mapped now, by PFN.
    fn frames(&self, pfn: u64, nr_pages: u64) -> Extents<Frame> {
        let mut frames = Extents::default();
        match self.backend.unbacked {
            Unbacked::Mapped => frames.insert(pfn, nr_pages, Frame::Own { pfn, mfn: pfn }),
            Unbacked::Absent => frames.insert(pfn, nr_pages, Frame::Absent { pfn }),
            Unbacked::Empty => (),
        }
        if !self.backend.translates() {
            return frames;
        }
        for run in self.sim.runs(pfn, nr_pages) {
            let frame = match run.value {
                Entry::Present(mfn) | Entry::Identity(mfn) => Frame::Own {
                    pfn: run.start,
                    mfn: mfn.get(),
                },
                Entry::Foreign(mfn) => Frame::Foreign { mfn: mfn.get() },
                Entry::Invalid => continue,
            };
            frames.insert(run.start, run.nr, frame);
        }
        frames
    }

    /// Puts PFNs into the model.
    fn put(&mut self, start: u64, nr_pages: u64, pfn: u64, flags: u64) {
        self.model.remove(start, nr_pages);
        for extent in self.frames(pfn, nr_pages).merged() {
            let frame = extent.value;
            let start = start + (extent.start - pfn);
            self.model
                .insert(start, extent.nr, Mapping { frame, flags });
        }
    }

    /// Makes the model know what the processor did to leaves that were there before or are now.
    fn mark(&mut self, marks: &[crate::cpu::Mark]) {
        for mark in marks {
            self.model.change(mark.start, mark.nr_pages, |mapping| {
                mapping.flags |= mark.bits;
            });
        }
    }

    fn is_in_space(&self, start: u64, nr_pages: u64) -> bool {
        let end = start.checked_add(nr_pages);
        nr_pages > 0 && end.is_some_and(|end| end <= self.format().nr_pages())
    }

    #[track_caller]
    pub(crate) fn map(
        &mut self,
        start: u64,
        pfns: (u64, u64),
        flags: u64,
        max_level: usize,
    ) -> Result<(), PagingError> {
        let range = PfnRange::new(pfns.0, pfns.1).unwrap();
        let nr_tables = self.space.nr_tables();
        let result = self
            .space
            .map(&*self.sim, &mut self.pool, start, range, flags, max_level);
        let marks = self.sim.take_marks();
        self.mark(&marks);
        let expected = if !self.is_in_space(start, pfns.1) {
            Err(PagingError::BadRange)
        } else if flags & !self.format().leaf_flags != 0 {
            Err(PagingError::BadFlags)
        } else if self.model.nr_within(start, pfns.1) > 0 {
            Err(PagingError::Occupied)
        } else {
            Ok(())
        };
        match result {
            Err(PagingError::NoTable | PagingError::Busy) => assert_eq!(expected, Ok(())),
            _ => assert_eq!(result, expected),
        }
        if result.is_ok() {
            self.put(start, pfns.1, pfns.0, flags);
            self.mark(&marks);
        } else if self.backend.unbacked != Unbacked::Empty {
            assert_eq!(self.space.nr_tables(), nr_tables);
        }
        self.check();
        result
    }

    #[track_caller]
    pub(crate) fn unmap(&mut self, start: u64, nr_pages: u64) -> (u64, Result<(), PagingError>) {
        let (done, result) =
            self.space
                .unmap(&*self.sim, &mut self.pool, Pages { start, nr_pages });
        let marks = self.sim.take_marks();
        self.mark(&marks);
        if !self.is_in_space(start, nr_pages) {
            assert_eq!((done, result), (0, Err(PagingError::BadRange)));
            return (done, result);
        }
        // It goes from the lowest page on.
        let mut left = done;
        for part in self.model.within(start, nr_pages) {
            let nr = part.nr.min(left);
            self.model.remove(part.start, nr);
            left -= nr;
        }
        assert_eq!(left, 0, "more was unmapped than there was");
        match result {
            Ok(()) => assert_eq!(self.model.nr_within(start, nr_pages), 0),
            Err(error) => {
                assert!(matches!(error, PagingError::NoTable | PagingError::Busy));
                assert_ne!(self.model.nr_within(start, nr_pages), 0);
            }
        }
        self.mark(&marks);
        self.check();
        (done, result)
    }

    #[track_caller]
    pub(crate) fn change(
        &mut self,
        start: u64,
        nr_pages: u64,
        change: Change,
    ) -> (u64, Result<(), PagingError>) {
        let result = self.change_only(start, nr_pages, change);
        self.check();
        result
    }

    /// Changes pages without a look at others.
    #[track_caller]
    fn change_only(
        &mut self,
        start: u64,
        nr_pages: u64,
        change: Change,
    ) -> (u64, Result<(), PagingError>) {
        let (done, result) = self.space.change(
            &*self.sim,
            &mut self.pool,
            Pages { start, nr_pages },
            change,
        );
        let marks = self.sim.take_marks();
        self.mark(&marks);
        let is_good = match change {
            Change::Flags(flags) if flags & !self.format().leaf_flags != 0 => {
                Err(PagingError::BadFlags)
            }
            Change::Frames(pfn) if pfn.get() + nr_pages > Pfn::LIMIT => Err(PagingError::BadRange),
            _ => Ok(()),
        };
        let expected = if !self.is_in_space(start, nr_pages) {
            Err(PagingError::BadRange)
        } else if is_good.is_err() {
            is_good
        } else if self.model.nr_within(start, nr_pages) < nr_pages {
            Err(PagingError::Missing)
        } else {
            Ok(())
        };
        match (result, expected) {
            (Err(PagingError::NoTable | PagingError::Busy), Ok(())) => assert!(done < nr_pages),
            (Ok(()), Ok(())) => assert_eq!(done, nr_pages),
            _ => assert_eq!((done, result), (0, expected)),
        }
        for part in self.model.within(start, done) {
            let kept = part.value.flags;
            match change {
                Change::Flags(flags) => self.reflag(part, flags | kept & AD),
                Change::Frames(pfn) => {
                    let pfn = pfn.get() + (part.start - start);
                    self.put(part.start, part.nr, pfn, kept);
                }
            }
        }
        self.mark(&marks);
        (done, result)
    }

    /// Gives pages in the model other flags. Their numbers are translated anew.
    fn reflag(&mut self, part: Extent<Mapping>, flags: u64) {
        match part.value.frame {
            Frame::Own { pfn, .. } | Frame::Absent { pfn } => {
                self.put(part.start, part.nr, pfn, flags);
            }
            Frame::Foreign { .. } => {
                let change = |mapping: &mut Mapping| mapping.flags = flags;
                self.model.change(part.start, part.nr, change);
            }
        }
    }

    /// Puts another frame at a PFN, and makes all pages that map it follow.
    #[track_caller]
    pub(crate) fn rebase(&mut self, pfn: u64, entry: Entry) {
        self.sim.set(pfn, 1, entry);
        let maps = |part: &Extent<Mapping>| match part.value.frame {
            Frame::Own { pfn: first, .. } | Frame::Absent { pfn: first } => {
                (first <= pfn && pfn - first < part.nr).then(|| part.start + (pfn - first))
            }
            Frame::Foreign { .. } => None,
        };
        let pages: Vec<u64> = self.model.merged().iter().filter_map(maps).collect();
        // Those that still have the old frame are the frames of nobody until they're changed.
        for &page in &pages {
            self.model.change(page, 1, |mapping| {
                if let Frame::Own { mfn, .. } = mapping.frame {
                    mapping.frame = Frame::Foreign { mfn };
                }
            });
        }
        for page in pages {
            let frames = Change::Frames(Pfn::new(pfn).unwrap());
            assert_eq!(self.change_only(page, 1, frames), (1, Ok(())));
        }
        self.check();
    }

    /// Puts other frames at PFNs, in the way that makes all pages that map them follow.
    #[track_caller]
    pub(crate) fn exchange(&mut self, pfns: (u64, u64), entry: impl Fn(u64) -> Entry) {
        assert_eq!(self.suspend(pfns), Ok(()));
        for nr in 0..pfns.1 {
            self.sim.set(pfns.0 + nr, 1, entry(nr));
        }
        self.resume(pfns);
    }

    /// Returns the pages that map PFNs of a range.
    fn pages_of(&self, pfns: (u64, u64)) -> Vec<Extent<Mapping>> {
        let part = |extent: Extent<Mapping>| {
            let Frame::Own { pfn, .. } = extent.value.frame else {
                return None;
            };
            let from = pfn.max(pfns.0);
            let nr = (pfn + extent.nr).min(pfns.0 + pfns.1).checked_sub(from)?;
            (nr > 0).then(|| Extent {
                start: extent.start + (from - pfn),
                nr,
                value: extent.value.after(from - pfn),
            })
        };
        self.model.merged().into_iter().filter_map(part).collect()
    }

    /// Suspends the pages that map PFNs of a range.
    #[track_caller]
    pub(crate) fn suspend(&mut self, pfns: (u64, u64)) -> Result<(), PagingError> {
        let range = PfnRange::new(pfns.0, pfns.1).unwrap();
        let result = self.space.suspend(&*self.sim, &mut self.pool, range);
        let marks = self.sim.take_marks();
        self.mark(&marks);
        self.sim.check_tlb();
        if result.is_ok() {
            for part in self.pages_of(pfns) {
                for page in [part.start, part.start + part.nr - 1] {
                    assert_eq!(self.sim.access(page, Access::Read), None);
                }
            }
            assert!(self.sim.take_marks().is_empty());
        }
        result
    }

    /// Resumes the pages that map PFNs of a range.
    #[track_caller]
    pub(crate) fn resume(&mut self, pfns: (u64, u64)) {
        self.space.resume(&*self.sim, &mut self.pool);
        let marks = self.sim.take_marks();
        for part in self.pages_of(pfns) {
            if let Frame::Own { pfn, .. } = part.value.frame {
                self.put(part.start, part.nr, pfn, part.value.flags);
            }
        }
        self.mark(&marks);
        self.check();
    }

    /// Lets the processor use an address, and checks that it can if it should.
    #[track_caller]
    pub(crate) fn touch(&mut self, page: u64, access: Access) {
        let found = self.sim.access(page, access);
        let expected = self
            .model
            .get(page)
            .and_then(|mapping| match mapping.frame {
                Frame::Own { mfn, .. } | Frame::Foreign { mfn } => {
                    (access == Access::Read || mapping.flags & bits::RW != 0).then_some(mfn)
                }
                Frame::Absent { .. } => None,
            });
        assert_eq!(found, expected, "page {page:#x}");
        let marks = self.sim.take_marks();
        self.mark(&marks);
    }

    /// Returns the tables as a processor sees them: all leaves, and how many tables there are.
    pub(crate) fn leaves(&self) -> (Vec<Raw>, usize) {
        self.sim.leaves()
    }

    /// Compares all that is in the tables with the model.
    #[track_caller]
    pub(crate) fn check(&self) {
        let (leaves, nr_tables) = self.leaves();
        for raw in &leaves {
            assert!(raw.level <= self.format().max_leaf_level);
        }
        let found = merge(leaves.iter().map(|raw| Extent {
            start: raw.start,
            nr: raw.nr_pages(),
            value: Seen {
                is_present: raw.is_present(),
                number: raw.frame(),
                flags: raw.flags(),
            },
        }));
        let seen = |extent: Extent<Mapping>| Extent {
            start: extent.start,
            nr: extent.nr,
            value: extent.value.seen(),
        };
        let expected = merge(self.model.merged().into_iter().map(seen));
        if found != expected {
            let at = found.iter().zip(&expected).take_while(|(a, b)| a == b);
            let at = at.count();
            panic!(
                "extent {at} is {:x?}, not {:x?}",
                found.get(at),
                expected.get(at)
            );
        }
        assert_eq!(nr_tables as u64, self.space.nr_tables(), "tables");
        assert_eq!(nr_tables as u64, self.pool.nr_taken(), "pages");
        let protected = if self.backend.translates() {
            nr_tables
        } else {
            0
        };
        assert_eq!(self.sim.nr_protected(), protected);
        if self.backend.unbacked != Unbacked::Empty {
            self.check_tables();
        }
        self.sim.check_tlb();
    }

    /// Checks that no table but the root is empty.
    fn check_tables(&self) {
        let root = self.space.root().get();
        let root = self.backend.mfn(&self.sim, root).unwrap();
        for mfn in self.sim.table_frames() {
            let is_empty = self.sim.is_blank(mfn);
            assert!(!is_empty || mfn == root, "table {mfn:#x} is empty");
        }
    }

    /// Compares what the walker of the space finds in a range with what is in the tables.
    #[track_caller]
    pub(crate) fn check_walks(&self, start: u64, end: u64) {
        let (leaves, _) = self.leaves();
        let inside = |raw: &&Raw| raw.start + raw.nr_pages() > start && raw.start < end;
        let mut page = start;
        for raw in leaves.iter().filter(inside) {
            let leaf = self.space.next_leaf(&*self.sim, page, end);
            let mapping = self.model.get(raw.start).unwrap();
            let val = match mapping.frame {
                Frame::Own { pfn, mfn } => raw.word ^ ((pfn ^ mfn) << 12),
                Frame::Foreign { mfn } => raw.word & !(mfn << 12) & !bits::PRESENT,
                Frame::Absent { .. } => raw.word,
            };
            let expected = Leaf {
                start: raw.start,
                level: raw.level,
                raw: raw.word,
                val,
            };
            assert_eq!(leaf, Some(expected));
            assert_eq!(expected.nr_pages(), raw.nr_pages());
            match mapping.frame {
                Frame::Own { pfn, .. } => {
                    assert_eq!((expected.is_present(), expected.pfn()), (true, pfn));
                }
                Frame::Foreign { .. } => {
                    assert_eq!((expected.is_present(), expected.pfn()), (false, 0));
                }
                Frame::Absent { pfn } => {
                    assert_eq!((expected.is_present(), expected.pfn()), (false, pfn));
                }
            }
            self.check_steps(page.max(raw.start), *raw);
            page = raw.start + raw.nr_pages();
        }
        assert_eq!(self.space.next_leaf(&*self.sim, page, end), None);
    }

    /// Checks the steps of a walk to a leaf.
    fn check_steps(&self, page: u64, raw: Raw) {
        let walk = self.space.walk(&*self.sim, page);
        let steps: Vec<_> = walk.steps().collect();
        let mut table = self.space.root();
        for (step, level) in steps.iter().zip((0..self.format().nr_levels).rev()) {
            assert_eq!(step.level, level);
            assert_eq!(step.slot.table, table);
            assert_eq!(step.slot.index, (page >> (9 * level)) & 511);
            table = Pfn::new((step.val & bits::FRAME) >> 12).unwrap_or(table);
        }
        assert_eq!(steps.len(), self.format().nr_levels - raw.level);
        assert_eq!(steps.last().map(|step| step.raw), Some(raw.word));
        assert_eq!(walk.last(), steps.last().copied());
    }

    /// Destroys the space, and checks that nothing is left.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.check();
        self.sim.load_root(0, None);
        self.space.destroy(&*self.sim, &mut self.pool);
        assert_eq!(self.pool.nr_taken(), 0, "pages were lost");
        assert_eq!(self.sim.nr_protected(), 0);
        assert!(self.sim.image().is_empty());
    }
}
