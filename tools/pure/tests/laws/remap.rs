// SPDX-License-Identifier: GPL-2.0

//! Holes of the machine become holes of the pseudo-physical space: the memory that was there goes
//! behind the end, and the holes are identities, as after `xen_set_identity_and_remap()` and
//! `xen_remap_memory()` of `arch/x86/xen/setup.c`.

use std::collections::BTreeMap;

use p2m_pure::entry::Entry;
use p2m_pure::frame::Mfn;

use crate::rig::{mfn, pfn, span, Domain};

/// The PFNs of the memory, and the holes in it: over borders of tables, and of no round size.
const END: u64 = span(1) * 3 + 77;
const HOLES: [(u64, u64); 3] = [(0x10, 0x23), (500, 600), (1023, 1024)];

/// The frame at a PFN at first: in no order, and none that is the PFN itself.
fn frame(number: u64) -> Mfn {
    mfn(span(3) + number * 7 % END)
}

fn filled() -> Domain {
    let mut domain = Domain::new(());
    for number in 0..END {
        let entry = Entry::Present(frame(number));
        domain.set(pfn(number), entry).unwrap();
    }
    domain
}

/// The PFNs of holes in order, and where the memory of each goes.
fn moves() -> Vec<(u64, u64)> {
    let holes = HOLES.iter().flat_map(|&(start, end)| start..end);
    holes.zip(END..).collect()
}

/// Does the moves chunk by chunk, in an order that `rotate` and `is_reversed` say.
fn remap(domain: &mut Domain, size: usize, rotate: usize, is_reversed: bool) {
    let moves = moves();
    let mut chunks: Vec<_> = moves.chunks(size).collect();
    let nr = chunks.len();
    chunks.rotate_left(rotate % nr);
    if is_reversed {
        chunks.reverse();
    }
    for chunk in chunks {
        for &(hole, behind) in chunk {
            let old = domain.set(pfn(hole), Entry::Identity(mfn(hole))).unwrap();
            assert_eq!(domain.set(pfn(behind), old), Ok(Entry::Invalid));
        }
    }
}

/// Case 20.
#[test]
fn a_remapped_hole_is_an_identity_and_its_memory_is_behind_the_end() {
    let mut frames: Vec<Mfn> = (0..END).map(frame).collect();
    frames.sort_unstable();
    let moves: BTreeMap<u64, u64> = moves().into_iter().collect();
    // The size of Xen's chunks is 509; none of the others divides it, or 512.
    for size in [1, 2, 7, 100, 509, 512, 513, 10_000] {
        for (rotate, is_reversed) in [(0, false), (0, true), (1, false), (5, true)] {
            let mut domain = filled();
            remap(&mut domain, size, rotate, is_reversed);
            // No frame is lost, and none is there twice.
            let all = 0..END + moves.len() as u64;
            let mut found: Vec<Mfn> = all
                .filter_map(|number| domain.lookup(pfn(number)).owned())
                .collect();
            found.sort_unstable();
            assert_eq!(found, frames);
            for number in 0..END {
                // Whatever the chunks: what was in order stays in order, behind the end.
                let place = match moves.get(&number) {
                    Some(&behind) => {
                        let identity = Entry::Identity(mfn(number));
                        assert_eq!(domain.lookup(pfn(number)), identity);
                        // It's no frame of the domain.
                        assert_eq!(domain.mfn_to_pfn(mfn(number)), None);
                        behind
                    }
                    None => number,
                };
                assert_eq!(domain.lookup(pfn(place)), Entry::Present(frame(number)));
                assert_eq!(domain.mfn_to_pfn(frame(number)), Some(pfn(place)));
            }
            domain
                .maps
                .audit(&domain.store, |found| panic!("{found:?}"));
        }
    }
}
