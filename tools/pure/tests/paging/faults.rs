// SPDX-License-Identifier: GPL-2.0

//! Laws of failures: no page for a table, or one that somebody else uses, at every point at which
//! that can be.

use p2m_pure::frame::Pfn;
use p2m_pure::paging::{Change, Format, PagingError, Space};
use p2m_pure::pv::bits;

use crate::cpu::Access::{Read, Write};
use crate::rig::Rig;
use crate::sim::Pool;
use crate::world::{at, format, Backend, G1, M2};

crate::laws! {
    a_space_is_made_or_not,
    mapping_happens_whole_or_not_at_all,
    unmapping_says_how_far_it_got,
    changing_says_how_far_it_got,
    suspending_can_be_undone,
    what_was_mapped_for_a_moment_is_forgotten,
    unmapping_whole_leaves_needs_nothing,
}

/// What can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Pages,
    Peace,
}

impl Lack {
    /// Returns what the backend asks for at all.
    fn all(backend: &Backend) -> &'static [Self] {
        match backend.translates() {
            true => &[Self::Pages, Self::Peace],
            false => &[Self::Pages],
        }
    }

    /// Lets all attempts fail after some good ones.
    fn begin(self, rig: &Rig, nr_good: u64) {
        match self {
            Self::Pages => rig.pool.empty.blow_after(nr_good),
            Self::Peace => rig.sim.busy.blow_after(nr_good),
        }
    }

    fn end(self, rig: &Rig) {
        match self {
            Self::Pages => rig.pool.empty.mend(),
            Self::Peace => rig.sim.busy.mend(),
        }
    }

    fn error(self) -> PagingError {
        match self {
            Self::Pages => PagingError::NoTable,
            Self::Peace => PagingError::Busy,
        }
    }
}

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

fn a_space_is_made_or_not(backend: &Backend) {
    let sim = backend.world();
    let mut pool = Pool::new(&sim, [at::POOL]);
    pool.empty.blow_after(0);
    let result = Space::new(backend.ops, format(), &*sim, &mut pool);
    assert_eq!(result.err(), Some(PagingError::NoTable));
    pool.empty.mend();
    sim.busy.blow_after(0);
    let result = Space::new(backend.ops, format(), &*sim, &mut pool);
    assert_eq!(result.is_err(), backend.translates());
    if let Ok(space) = result {
        space.destroy(&*sim, &mut pool);
    }
    assert_eq!(pool.nr_taken(), 0);
    sim.busy.mend();
    let space = Space::new(backend.ops, format(), &*sim, &mut pool).unwrap();
    assert_eq!(space.nr_tables(), 1);
    space.destroy(&*sim, &mut pool);
    assert_eq!(pool.nr_taken(), 0);
}

fn mapping_happens_whole_or_not_at_all(backend: &Backend) {
    let five = Format::x86_64(5).unwrap();
    let mut nr_failures = 0;
    // Where, what, and what is there before.
    for (format, start, pfns, before) in [
        (format(), 5, (at::SCATTERED, 3), None),
        (five, 5, (at::SCATTERED, 3), None),
        (format(), M2 - 1, (at::SCATTERED, 2), Some((M2 - 3, 2))),
        (format(), M2 - 1, (at::SCATTERED, 2), Some((M2 + 1, 2))),
        (format(), G1 * M2 - 1, (at::SCATTERED, 2), None),
        (format(), G1 * M2 - 1, (at::SCATTERED, 2), Some((0, 1))),
        (
            five,
            G1 * M2 * M2 - 2,
            (at::SCATTERED, 4),
            Some((G1 * M2 * M2 + 2, 1)),
        ),
        // A small leaf, large ones, and small ones.
        (format(), G1 - M2 - 1, (at::ALIGNED - 1, 2 * M2 + 2), None),
        (format(), 4 * M2 - 3, (at::MISALIGNED, M2 + 5), Some((0, 1))),
    ] {
        for &lack in Lack::all(backend) {
            for nr_good in 0.. {
                let mut rig = Rig::new(backend, format);
                if let Some((start, nr)) = before {
                    rig.map(start, (at::ALIGNED, nr), bits::RW, 2).unwrap();
                }
                let image = rig.sim.image();
                let tables = rig.sim.table_frames();
                lack.begin(&rig, nr_good);
                let result = rig.map(start, pfns, bits::USER, 2);
                lack.end(&rig);
                if result.is_ok() {
                    rig.finish();
                    break;
                }
                nr_failures += 1;
                assert_eq!(result, Err(lack.error()));
                assert_eq!(rig.sim.image(), image);
                assert_eq!(rig.sim.table_frames(), tables);
                // And it isn't the worse for it.
                rig.map(start, pfns, bits::USER, 2).unwrap();
                rig.finish();
            }
        }
    }
    assert!(nr_failures >= 30, "{nr_failures}");
}

/// A space with three leaves of level 1 from `M2` on.
fn with_large_leaves(backend: &Backend) -> Rig {
    let mut rig = Rig::new(backend, format());
    let flags = bits::RW | bits::PAT;
    rig.map(M2, (at::ALIGNED, 3 * M2), flags, 1).unwrap();
    rig.touch(M2, Write);
    rig.touch(4 * M2 - 1, Read);
    rig
}

/// Ranges that cut one or two of these leaves.
const CUTS: [(u64, u64); 5] = [
    (M2, 1),
    (2 * M2 - 1, 2),
    (2 * M2 - 1, M2 + 2),
    (M2 + 1, 3 * M2 - 2),
    (0, M2 + 1),
];

fn unmapping_says_how_far_it_got(backend: &Backend) {
    for (start, nr) in CUTS {
        for &lack in Lack::all(backend) {
            for nr_good in 0.. {
                let mut rig = with_large_leaves(backend);
                let nr_mapped = rig.model.nr_within(start, nr);
                lack.begin(&rig, nr_good);
                let (done, result) = rig.unmap(start, nr);
                lack.end(&rig);
                if result.is_ok() {
                    assert_ne!(nr_good, 0);
                    rig.finish();
                    break;
                }
                assert_eq!(result, Err(lack.error()));
                assert_eq!(rig.unmap(start, nr), (nr_mapped - done, Ok(())));
                rig.finish();
            }
        }
    }
}

fn changing_says_how_far_it_got(backend: &Backend) {
    for (start, nr) in CUTS.into_iter().filter(|cut| cut.0 >= M2) {
        for change in [Change::Flags(bits::NX), Change::Frames(pfn(at::SCATTERED))] {
            for &lack in Lack::all(backend) {
                for nr_good in 0.. {
                    let mut rig = with_large_leaves(backend);
                    lack.begin(&rig, nr_good);
                    let (_, result) = rig.change(start, nr, change);
                    lack.end(&rig);
                    if result.is_ok() {
                        assert_ne!(nr_good, 0);
                        rig.finish();
                        break;
                    }
                    assert_eq!(result, Err(lack.error()));
                    assert_eq!(rig.change(start, nr, change), (nr, Ok(())));
                    rig.finish();
                }
            }
        }
    }
}

fn suspending_can_be_undone(backend: &Backend) {
    for (first, nr) in [(0, 1), (M2 - 1, 2), (1, 3 * M2 - 2)] {
        for &lack in Lack::all(backend) {
            for nr_good in 0.. {
                let mut rig = with_large_leaves(backend);
                let pfns = (at::ALIGNED + first, nr);
                lack.begin(&rig, nr_good);
                let result = rig.suspend(pfns);
                lack.end(&rig);
                rig.resume(pfns);
                if result.is_ok() {
                    assert_ne!(nr_good, 0);
                    rig.finish();
                    break;
                }
                assert_eq!(result, Err(lack.error()));
                rig.finish();
            }
        }
    }
}

/// The processor uses the pages that a failing call has already mapped.
fn what_was_mapped_for_a_moment_is_forgotten(backend: &Backend) {
    for &lack in Lack::all(backend) {
        for nr_good in 0.. {
            let mut rig = Rig::new(backend, format());
            rig.map(0, (at::ALIGNED, 1), bits::RW, 0).unwrap();
            let pages = [1, 2, M2 - 1, M2, 2 * M2, 3 * M2 - 1, G1];
            rig.sim.race(pages.map(|page| (page, Write)));
            lack.begin(&rig, nr_good);
            // Into a table that is there, and on into others. The rig looks into the TLB.
            let result = rig.map(1, (at::SCATTERED, 2 * M2), bits::RW, 0);
            rig.sim.race([]);
            lack.end(&rig);
            for page in pages {
                rig.touch(page, Read);
            }
            rig.finish();
            if result.is_ok() {
                assert_eq!(nr_good, 2);
                break;
            }
        }
    }
}

fn unmapping_whole_leaves_needs_nothing(backend: &Backend) {
    let mut rig = with_large_leaves(backend);
    rig.map(7 * M2 + 3, (at::SCATTERED, 9), 0, 0).unwrap();
    rig.pool.empty.blow_after(0);
    rig.sim.busy.blow_after(0);
    assert_eq!(rig.unmap(7 * M2 + 4, 3), (3, Ok(())));
    assert_eq!(rig.unmap(2 * M2, M2), (M2, Ok(())));
    let changed = rig.change(M2, M2, Change::Flags(bits::NX));
    assert_eq!(changed, (M2, Ok(())));
    let nr = 2 * M2 + 6;
    assert_eq!(rig.unmap(0, format().nr_pages()), (nr, Ok(())));
    rig.finish();
}
