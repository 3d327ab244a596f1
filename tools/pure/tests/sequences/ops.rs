// SPDX-License-Identifier: GPL-2.0

//! The operations, and how they are chosen.

use proptest::prelude::*;

use crate::model::{Cell, Model, IDENTITY, LENT, SPACE};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Any,
    Scatter,
    Contiguous,
}

impl Policy {
    pub(crate) const ALL: [Self; 3] = [Self::Any, Self::Scatter, Self::Contiguous];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Scatter => "scatter",
            Self::Contiguous => "contiguous",
        }
    }
}

/// Flags of a region, as in the ABI: `P2M_REGION_ON_DEMAND` and `P2M_REGION_GUARDED`.
pub(crate) const ON_DEMAND: u32 = 2;
pub(crate) const GUARDED: u32 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create {
        base: u64,
        nr: u64,
        policy: Policy,
        seed: u64,
        flags: u32,
    },
    Destroy {
        base: u64,
    },
    /// Writes to all of a page, through a mapping.
    Touch {
        pfn: u64,
        tag: u64,
    },
    Release {
        pfn: u64,
        nr: u64,
    },
    Populate {
        pfn: u64,
        nr: u64,
    },
    Move {
        pfn: u64,
        nr: u64,
        policy: Policy,
        seed: u64,
    },
    Contiguous {
        pfn: u64,
        order: u32,
    },
    Exchange {
        a: u64,
        b: u64,
        nr: u64,
    },
    /// Of the aligned `1 << order` frames that the frame at a PFN is one of.
    Evacuate {
        pfn: u64,
        order: u32,
    },
    /// Puts a page of another domain, which has [`LENT`] of them, into a slot.
    Lend {
        slot: u64,
        lent: u64,
    },
    Unlend {
        slot: u64,
    },
    Identity {
        pfn: u64,
        nr: u64,
    },
}

impl Op {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Destroy { .. } => "destroy",
            Self::Touch { .. } => "touch",
            Self::Release { .. } => "release",
            Self::Populate { .. } => "populate",
            Self::Move { .. } => "move",
            Self::Contiguous { .. } => "contiguous",
            Self::Exchange { .. } => "exchange",
            Self::Evacuate { .. } => "evacuate",
            Self::Lend { .. } => "lend",
            Self::Unlend { .. } => "unlend",
            Self::Identity { .. } => "identity",
        }
    }
}

/// What chance says. What it means depends on what there is by then.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    kind: Kind,
    /// A PFN, chosen among those of what the operation is for.
    at: u64,
    other: u64,
    nr: u64,
    policy: Policy,
    seed: u64,
    flags: u32,
    /// Whether it's aimed at what there is, or at anything.
    is_aimed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Create,
    Destroy,
    Touch,
    Release,
    Populate,
    Move,
    Contiguous,
    Exchange,
    Evacuate,
    Lend,
    Unlend,
    Identity,
}

pub(crate) fn choice() -> impl Strategy<Value = Choice> {
    let kind = prop_oneof![
        4 => Just(Kind::Create),
        1 => Just(Kind::Destroy),
        5 => Just(Kind::Touch),
        3 => Just(Kind::Release),
        3 => Just(Kind::Populate),
        4 => Just(Kind::Move),
        3 => Just(Kind::Contiguous),
        3 => Just(Kind::Exchange),
        2 => Just(Kind::Evacuate),
        2 => Just(Kind::Lend),
        1 => Just(Kind::Unlend),
        1 => Just(Kind::Identity),
    ];
    let policy = prop::sample::select(Policy::ALL.to_vec());
    let flags = prop_oneof![
        4 => Just(0),
        2 => Just(ON_DEMAND),
        1 => Just(GUARDED),
        1 => Just(ON_DEMAND | GUARDED),
    ];
    let nr = prop_oneof![3 => 1..16u64, 3 => 1..100u64, 1 => 1..600u64];
    (
        kind,
        any::<u64>(),
        any::<u64>(),
        nr,
        policy,
        0..1000u64,
        flags,
        prop::bool::weighted(0.85),
    )
        .prop_map(
            |(kind, at, other, nr, policy, seed, flags, is_aimed)| Choice {
                kind,
                at,
                other,
                nr,
                policy,
                seed,
                flags,
                is_aimed,
            },
        )
}

impl Choice {
    /// Returns the operation. [`None`] if there is none that makes sense.
    pub(crate) fn op(&self, model: &Model) -> Option<Op> {
        let Self {
            at,
            other,
            nr,
            policy,
            flags,
            ..
        } = *self;
        let nr = nr.min(SPACE);
        let anywhere = |number: u64, nr: u64| number % (SPACE - nr + 1);
        // A PFN that is good for something, if one is soon found.
        let among = |number: u64, nr: u64, good: &dyn Fn(u64) -> bool| {
            let tries = (0..if self.is_aimed { 40 } else { 0 }).map(|nth: u64| {
                let step = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                anywhere(number.wrapping_add(step), nr)
            });
            let mut tries = tries.filter(|&pfn| good(pfn));
            tries.next().unwrap_or(anywhere(number, nr))
        };
        let all = |nr: u64, is_good: &dyn Fn(Cell) -> bool, pfn: u64| {
            (pfn..pfn + nr).all(|at| is_good(model.cell(at)) && model.is_in_region(at))
        };
        let is_frame = |cell| matches!(cell, Cell::Frame(_));
        let seed = match policy {
            Policy::Scatter => self.seed,
            Policy::Any | Policy::Contiguous => 0,
        };
        Some(match self.kind {
            // The identities need a place, too.
            Kind::Create if at % 8 == 0 => Op::Create {
                base: IDENTITY.start,
                nr: 16,
                policy: Policy::Any,
                seed: 0,
                flags: ON_DEMAND,
            },
            Kind::Create => Op::Create {
                base: among(at, nr, &|pfn| {
                    (pfn..pfn + nr).all(|at| !model.is_in_region(at))
                }),
                nr,
                policy,
                seed,
                flags,
            },
            Kind::Destroy => {
                let bases = model.bases();
                let base = match bases.len() {
                    len if len > 0 && self.is_aimed => bases[(at % len as u64) as usize],
                    _ => anywhere(at, 1),
                };
                Op::Destroy { base }
            }
            Kind::Touch => {
                let pfn = among(at, 1, &|pfn| model.is_in_region(pfn));
                // The page of another domain stays as it is.
                if matches!(model.cell(pfn), Cell::Foreign(_)) {
                    return None;
                }
                Op::Touch {
                    pfn,
                    tag: model.next_tag(),
                }
            }
            Kind::Release => Op::Release {
                pfn: among(at, nr, &|pfn| all(nr, &|_| true, pfn)),
                nr,
            },
            Kind::Populate => Op::Populate {
                pfn: among(at, nr, &|pfn| all(nr, &|_| true, pfn)),
                nr,
            },
            Kind::Move if policy == Policy::Contiguous => return None,
            Kind::Move => Op::Move {
                pfn: among(at, nr, &|pfn| is_frame(model.cell(pfn))),
                nr,
                policy,
                seed,
            },
            Kind::Contiguous => {
                let order = nr.ilog2();
                Op::Contiguous {
                    pfn: among(at, 1 << order, &|pfn| all(1 << order, &is_frame, pfn)),
                    order,
                }
            }
            Kind::Exchange => {
                let nr = nr.min(64);
                let is_good = |pfn: u64| all(nr, &is_frame, pfn);
                Op::Exchange {
                    a: among(at, nr, &is_good),
                    b: among(other, nr, &is_good),
                    nr,
                }
            }
            Kind::Evacuate => {
                let pfn = among(at, 1, &|pfn| is_frame(model.cell(pfn)));
                if !is_frame(model.cell(pfn)) {
                    return None;
                }
                let order = (nr % 10) as u32;
                Op::Evacuate { pfn, order }
            }
            Kind::Lend => Op::Lend {
                slot: among(at, 1, &|pfn| all(1, &|cell| cell == Cell::Invalid, pfn)),
                lent: other % (LENT + 1),
            },
            Kind::Unlend => Op::Unlend {
                slot: among(at, 1, &|pfn| matches!(model.cell(pfn), Cell::Foreign(_))),
            },
            // From 1 MiB on, every PC has memory.
            Kind::Identity if !self.is_aimed => Op::Identity {
                pfn: 0x100 + at % 0x80,
                nr,
            },
            Kind::Identity => {
                let nr = 1 + nr % 4;
                Op::Identity {
                    pfn: IDENTITY.start + at % (IDENTITY.end - IDENTITY.start - nr + 1),
                    nr,
                }
            }
        })
    }
}
