// SPDX-License-Identifier: GPL-2.0

use std::cell::Cell;
use std::collections::BTreeMap;

use arbitrary::Unstructured;
use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::paging::{Change, Format, Pages, PagingError, Space, TablePages};
use p2m_pure::pv::{self, Busy, MmuOps, Native, P2M, P2M_LOSSLESS, bits};
use p2m_pure::table::Table;

use crate::{Run, below, number, run};

/// Pages no two of which are neighbours in the machine.
const SCATTERED: u64 = 256;
/// Where a run begins that is aligned for large leaves, and how long it is.
const RUN: u64 = 512;
const RUN_PAGES: u64 = 1024;
/// The table pool.
const POOL: u64 = 2048;
const POOL_PAGES: usize = 24;
/// Where the run is in the machine.
const RUN_MFN: u64 = 0x20_0000;
const SCATTERED_MFN: u64 = 0x1000;
const POOL_MFN: u64 = 0x5000;

/// A domain with pages of all kinds, and with tables.
struct Machine {
    tables: Vec<Table>,
    is_protected: Vec<Cell<bool>>,
}

fn pool_index(pfn: u64) -> Option<usize> {
    let index = usize::try_from(pfn.checked_sub(POOL)?).ok()?;
    (index < POOL_PAGES).then_some(index)
}

impl pv::Machine for Machine {
    fn entry(&self, pfn: u64) -> Entry {
        let mfn = match pfn {
            0..SCATTERED => SCATTERED_MFN + 2 * pfn,
            RUN..POOL if pfn < RUN + RUN_PAGES => RUN_MFN + (pfn - RUN),
            _ if pool_index(pfn).is_some() => POOL_MFN + (pfn - POOL),
            _ => return Entry::Invalid,
        };
        Mfn::new(mfn).map_or(Entry::Invalid, Entry::Present)
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        let mfn = mfn.get();
        let near = [
            mfn.checked_sub(SCATTERED_MFN).map(|at| at / 2),
            mfn.checked_sub(RUN_MFN).map(|at| RUN + at),
            mfn.checked_sub(POOL_MFN).map(|at| POOL + at),
        ];
        let is_there = |&pfn: &u64| self.entry(pfn).owned().map(Mfn::get) == Some(mfn);
        near.into_iter().flatten().find(is_there).and_then(Pfn::new)
    }

    fn table(&self, pfn: Pfn) -> Option<&Table> {
        self.tables.get(pool_index(pfn.get())?)
    }

    fn protect(&self, pfn: Pfn) -> Result<(), Busy> {
        let index = pool_index(pfn.get()).ok_or(Busy)?;
        assert!(!self.is_protected[index].replace(true), "a table twice");
        self.tables[index].fill(0);
        Ok(())
    }

    fn unprotect(&self, pfn: Pfn) {
        let index = pool_index(pfn.get()).expect("a page of the pool");
        assert!(self.is_protected[index].replace(false), "no table");
    }

    fn flush_tlb(&self, _: u64, _: u64) {}

    fn load_cr3(&self, _: u64) {}
}

/// Pages for tables. A page is given once.
struct Pool<'a> {
    machine: &'a Machine,
    is_free: Vec<bool>,
}

impl TablePages for Pool<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        let index = self.is_free.iter().position(|&is_free| is_free)?;
        self.is_free[index] = false;
        self.machine.tables[index].fill(0);
        Pfn::new(POOL + index as u64)
    }

    fn free(&mut self, pfn: Pfn) {
        let index = pool_index(pfn.get()).expect("a page of the pool");
        assert!(!self.is_free[index], "a table was given back twice");
        assert!(!self.machine.is_protected[index].get());
        self.is_free[index] = true;
    }
}

/// What is mapped at a page number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapped {
    pfn: u64,
    flags: u64,
}

type Model = BTreeMap<u64, Mapped>;

/// What is in the tables, leaf by leaf.
fn contents(space: &Space, machine: &Machine) -> Model {
    let mut found = Model::new();
    let end = space.format().nr_pages();
    let mut page = 0;
    while let Some(leaf) = space.next_leaf(machine, page, end) {
        assert!(leaf.start >= page, "leaves are in order");
        assert!(leaf.is_present());
        let val = match leaf.level {
            0 => leaf.val,
            // It says so where others have the bit that is elsewhere then.
            _ if leaf.val & bits::PAT_LARGE == 0 => leaf.val & !bits::PSE,
            _ => leaf.val,
        };
        let flags = val & space.format().leaf_flags & !(bits::ACCESSED | bits::DIRTY);
        for at in 0..leaf.nr_pages() {
            let pfn = leaf.pfn() + at;
            found.insert(leaf.start + at, Mapped { pfn, flags });
        }
        page = leaf.start + leaf.nr_pages();
    }
    found
}

/// Page tables of all backends and formats against a map of pages, in a pool that is too small.
pub fn paging(data: &[u8]) {
    let machine = Machine {
        tables: (0..POOL_PAGES).map(|_| Table::new(!0)).collect(),
        is_protected: vec![Cell::new(false); POOL_PAGES],
    };
    let mut pool = Pool {
        machine: &machine,
        is_free: vec![true; POOL_PAGES],
    };
    run(data, |bytes| {
        let ops: &'static dyn MmuOps = match below(bytes, 3)? {
            0 => &Native,
            1 => &P2M,
            _ => &P2M_LOSSLESS,
        };
        let Some(format) = Format::x86_64(4 + below(bytes, 2)? as usize) else {
            return Ok(());
        };
        let mut space = Space::new(ops, format, &machine, &mut pool).expect("the pool is full");
        let mut model = Model::new();
        let mut result = Ok(());
        while result.is_ok() && !bytes.is_empty() {
            result = step(bytes, &mut space, &machine, &mut pool, &mut model);
        }
        space.destroy(&machine, &mut pool);
        result
    });
    assert!(
        pool.is_free.iter().all(|&is_free| is_free),
        "a table was lost"
    );
}

/// A range of page numbers that begins near the others, near an end, or anywhere.
fn some_pages(bytes: &mut Unstructured<'_>, nr_pages: u64) -> arbitrary::Result<Pages> {
    let base = match below(bytes, 8)? {
        0..=3 => 0,
        4 => 1 << 18,
        5 => 1 << 27,
        6 => (1 << 35) - 512,
        _ => number(bytes)?,
    };
    let start = base.saturating_add(512 * below(bytes, 4)? + below(bytes, 4)?);
    Ok(Pages { start, nr_pages })
}

/// A range of PFNs that have pages.
fn some_pfns(bytes: &mut Unstructured<'_>) -> arbitrary::Result<(u64, u64)> {
    let (first, all) = match below(bytes, 2)? {
        0 => (0, SCATTERED),
        _ => (RUN, RUN_PAGES),
    };
    let start = match below(bytes, 2)? {
        0 => below(bytes, all / 128)? * 128,
        _ => below(bytes, all)?,
    };
    let nr = 1 + match below(bytes, 4)? {
        0 => below(bytes, 1024)?,
        1 => 511,
        _ => below(bytes, 8)?,
    };
    Ok((first + start, nr.min(all - start)))
}

fn some_flags(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    Ok(match below(bytes, 16)? {
        0 => number(bytes)?,
        flags => {
            let bit = |nr: u64, flag| if (flags >> nr) & 1 == 0 { 0 } else { flag };
            bit(0, bits::RW) | bit(1, bits::USER) | bit(2, bits::NX)
        }
    })
}

fn step(
    bytes: &mut Unstructured<'_>,
    space: &mut Space,
    machine: &Machine,
    pool: &mut Pool<'_>,
    model: &mut Model,
) -> Run {
    let (pfn, nr_pages) = some_pfns(bytes)?;
    let range = some_pages(bytes, nr_pages)?;
    let end = range.start.saturating_add(nr_pages);
    let is_inside = end <= space.format().nr_pages();
    let is_in = |page: &u64| range.start <= *page && *page < end;
    let before = model.clone();
    let flags = some_flags(bytes)?;
    let nr_flags = flags & !space.format().leaf_flags;
    let kept = flags & !(bits::ACCESSED | bits::DIRTY);
    let nr_mapped = model.range(range.start..end.max(range.start)).count() as u64;
    let result = match below(bytes, 4)? {
        0 | 1 => {
            let Ok(pfns) = PfnRange::new(pfn, nr_pages) else {
                return Ok(());
            };
            let level = below(bytes, 3)? as usize;
            let result = space.map(machine, pool, range.start, pfns, flags, level);
            if result.is_ok() {
                assert!(is_inside && nr_flags == 0 && nr_mapped == 0);
                for at in 0..nr_pages {
                    let pfn = pfn + at;
                    model.insert(range.start + at, Mapped { pfn, flags: kept });
                }
            } else if result == Err(PagingError::Occupied) {
                assert_ne!(nr_mapped, 0);
            }
            result
        }
        2 => {
            let (done, result) = space.unmap(machine, pool, range);
            assert!(done <= nr_mapped);
            if result.is_ok() {
                assert_eq!(done, nr_mapped);
                model.retain(|page, _| !is_in(page));
            }
            result
        }
        _ => {
            let is_frames = bytes.arbitrary()?;
            let change = match Pfn::new(pfn) {
                Some(pfn) if is_frames => Change::Frames(pfn),
                _ => Change::Flags(flags),
            };
            let (done, result) = space.change(machine, pool, range, change);
            assert!(done <= nr_pages);
            if result.is_ok() {
                assert_eq!((done, nr_mapped), (nr_pages, nr_pages));
                for (page, mapped) in model.range_mut(range.start..end) {
                    match change {
                        Change::Frames(pfn) => mapped.pfn = pfn.get() + (page - range.start),
                        Change::Flags(_) => mapped.flags = kept,
                    }
                }
            } else if result == Err(PagingError::Missing) {
                assert_ne!(nr_mapped, nr_pages);
            }
            result
        }
    };
    let found = contents(space, machine);
    match result {
        // It may have stopped half-way, but has touched nothing else.
        Err(PagingError::NoTable) => {
            let outside = |model: &Model| -> Vec<(u64, Mapped)> {
                let pages = model.iter().map(|(&page, &mapped)| (page, mapped));
                pages.filter(|(page, _)| !is_in(page)).collect()
            };
            assert_eq!(outside(&found), outside(&before));
            *model = found;
        }
        Err(_) => assert_eq!(found, before, "an error changed something"),
        Ok(()) => assert_eq!(&found, model),
    }
    Ok(())
}
