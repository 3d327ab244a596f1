// SPDX-License-Identifier: GPL-2.0

//! Sequences of operations, against the model.

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::paging::Change;
use p2m_pure::pv::bits;
use proptest::prelude::*;

use crate::cpu::Access;
use crate::rig::Rig;
use crate::world::{at, backends, formats, FLAGS, FRESH, G1, M2};

/// What is done to a space.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map {
        start: u64,
        pfns: (u64, u64),
        flags: u64,
        max_level: usize,
    },
    Unmap(u64, u64),
    Flags(u64, u64, u64),
    Frames(u64, u64, u64),
    Touch(u64, bool),
    /// Lets the processor use pages from now on.
    Race(u64, bool),
    /// Puts another frame at a PFN, and changes the pages that map it.
    Rebase(u64),
    /// Puts other frames at PFNs while the pages that map them are suspended.
    Exchange(u64, u64),
    /// Lets the next one have only so many tables.
    Starve(u64),
    Walk(u64, u64),
}

/// Pages near the ends of tables of each level.
fn page() -> impl Strategy<Value = u64> {
    let near = prop_oneof![
        3 => Just(0),
        2 => Just(G1 - 2 * M2),
        1 => Just(G1 * M2 - 2 * M2),
    ];
    let offset = prop_oneof![
        2 => (0..4u64).prop_map(|nr| nr * M2),
        2 => (1..4u64, 0..6u64).prop_map(|(nr, at)| nr * M2 + at - 3),
        1 => 0..4 * M2,
    ];
    (near, offset).prop_map(|(near, offset)| near + offset)
}

fn nr_pages() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 1..5u64,
        2 => Just(M2),
        1 => Just(2 * M2),
        1 => M2 - 2..M2 + 3,
    ]
}

fn pfn() -> impl Strategy<Value = u64> {
    let region = prop::sample::select(vec![
        at::SCATTERED,
        at::ALIGNED,
        at::ALIGNED,
        at::ALIGNED + M2,
        at::MISALIGNED,
        at::FOREIGN,
        at::FOREIGN_HIGH,
        at::IDENTITY,
        at::HOLE,
        at::GIANT,
    ]);
    prop_oneof![
        2 => region.clone(),
        1 => (region, 0..M2).prop_map(|(first, offset)| first + offset),
    ]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![Just(bits::RW), any::<u64>().prop_map(|bits| bits & FLAGS)]
}

/// PFNs that belong to the domain.
fn own() -> impl Strategy<Value = u64> {
    prop_oneof![0..6 * M2, Just(at::ALIGNED), Just(at::ALIGNED + M2)]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let map = (page(), pfn(), nr_pages(), flags(), 0..3usize);
    prop_oneof![
        6 => map.prop_map(|(start, pfn, nr, flags, max_level)| Op::Map {
            start,
            pfns: (pfn, nr),
            flags,
            max_level,
        }),
        4 => (page(), nr_pages()).prop_map(|(start, nr)| Op::Unmap(start, nr)),
        3 => (page(), nr_pages(), flags()).prop_map(|(start, nr, bits)| Op::Flags(start, nr, bits)),
        3 => (page(), nr_pages(), pfn()).prop_map(|(start, nr, pfn)| Op::Frames(start, nr, pfn)),
        6 => (page(), any::<bool>()).prop_map(|(page, is_write)| Op::Touch(page, is_write)),
        1 => (page(), any::<bool>()).prop_map(|(page, is_write)| Op::Race(page, is_write)),
        1 => own().prop_map(Op::Rebase),
        1 => (own(), 1..9u64).prop_map(|(pfn, nr)| Op::Exchange(pfn, nr)),
        1 => (0..6u64).prop_map(Op::Starve),
        1 => (page(), nr_pages()).prop_map(|(start, nr)| Op::Walk(start, nr)),
    ]
}

/// Frames that nobody had before, none of which follows another.
fn fresh(nr: u64) -> Entry {
    Entry::Present(Mfn::new(FRESH + 2 * nr).unwrap())
}

impl Op {
    /// Does it, as number `nr` of a sequence.
    pub(crate) fn apply(&self, rig: &mut Rig, nr: u64) {
        let access = |is_write| {
            if is_write {
                Access::Write
            } else {
                Access::Read
            }
        };
        match *self {
            Op::Map {
                start,
                pfns,
                flags,
                max_level,
            } => {
                let _ = rig.map(
                    start,
                    pfns,
                    flags & !(bits::ACCESSED | bits::DIRTY),
                    max_level,
                );
            }
            Op::Unmap(start, nr) => {
                let _ = rig.unmap(start, nr);
            }
            Op::Flags(start, nr, flags) => {
                let _ = rig.change(start, nr, Change::Flags(flags));
            }
            Op::Frames(start, nr, pfn) => {
                let _ = rig.change(start, nr, Change::Frames(Pfn::new(pfn).unwrap()));
            }
            Op::Touch(page, is_write) => rig.touch(page, access(is_write)),
            Op::Race(page, is_write) => {
                let pages = [page, page ^ 1, page + M2];
                rig.sim.race(pages.map(|page| (page, access(is_write))));
            }
            Op::Rebase(pfn) => {
                rig.sim.race([]);
                rig.pool.empty.mend();
                rig.rebase(pfn, fresh(16 * nr));
            }
            Op::Exchange(pfn, len) => {
                rig.pool.empty.mend();
                rig.exchange((pfn, len), |at| fresh(16 * nr + at));
            }
            Op::Starve(nr_good) => rig.pool.empty.blow_after(nr_good),
            Op::Walk(start, nr) => {
                rig.sim.race([]);
                rig.check_walks(start, start + nr);
            }
        }
        // Hunger doesn't last.
        if !matches!(self, Op::Starve(_)) {
            rig.pool.empty.mend();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The same for each backend, in one format or the other.
    #[test]
    fn any_sequence_is_as_the_model_says(
        format in prop::sample::select(formats()),
        ops in prop::collection::vec(op(), 100..300),
    ) {
        for backend in backends() {
            let mut rig = Rig::new(&backend, format);
            for (nr, op) in ops.iter().enumerate() {
                op.apply(&mut rig, nr as u64);
            }
            rig.sim.race([]);
            rig.check_walks(0, u64::MAX);
            rig.unmap(0, format.nr_pages()).1.unwrap();
            prop_assert_eq!(rig.space.nr_tables(), 1);
            rig.finish();
        }
    }
}
