// SPDX-License-Identifier: GPL-2.0

//! Laws of exchanging frames under the pages that map them.

use p2m_pure::entry::Entry;
use p2m_pure::frame::Mfn;
use p2m_pure::paging::Format;
use p2m_pure::pv::bits;

use crate::cpu::Access::{Read, Write};
use crate::rig::Rig;
use crate::world::{at, format, Backend, FRESH, G1, M2};

crate::laws! {
    pages_follow_their_frames,
    pages_of_others_stay,
    no_bit_gets_lost_while_frames_are_exchanged,
    what_is_resumed_without_an_exchange_is_as_before,
}

fn fresh(nr: u64) -> Entry {
    Entry::Present(Mfn::new(FRESH + nr).unwrap())
}

/// Frames that don't follow each other.
fn strewn(nr: u64) -> Entry {
    Entry::Present(Mfn::new(FRESH + 0x1000 - 2 * nr).unwrap())
}

fn pages_follow_their_frames(backend: &Backend) {
    for format in [format(), Format::x86_64(5).unwrap()] {
        for (first, nr) in [(0, 1), (1, 1), (M2 - 1, 2), (0, M2), (5, 2 * M2)] {
            for entry in [fresh, strewn, |_| Entry::Invalid] {
                let mut rig = Rig::new(backend, format);
                let flags = bits::RW | bits::NX | bits::PAT;
                // Twice, in large leaves and in small ones.
                rig.map(M2, (at::ALIGNED, 3 * M2), flags, 1).unwrap();
                rig.map(G1 + 3, (at::ALIGNED, 9), bits::USER, 0).unwrap();
                rig.touch(M2, Write);
                rig.touch(M2 + first, Read);
                rig.touch(G1 + 3, Read);
                rig.exchange((at::ALIGNED + first, nr), entry);
                for page in [M2, M2 + first, 2 * M2, 3 * M2, G1 + 3, G1 + 3 + 8] {
                    rig.touch(page, Write);
                }
                // What became of it can be changed as ever.
                rig.unmap(M2 + 7, 2 * M2).1.unwrap();
                rig.finish();
            }
        }
    }
}

fn pages_of_others_stay(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    rig.map(0, (at::ALIGNED, M2), bits::RW, 1).unwrap();
    rig.map(M2, (at::SCATTERED, 9), bits::RW, 0).unwrap();
    rig.map(2 * M2, (at::FOREIGN, M2), bits::RW, 1).unwrap();
    rig.map(3 * M2, (at::IDENTITY, M2), bits::RW, 1).unwrap();
    rig.map(4 * M2, (at::HOLE, 9), bits::RW, 1).unwrap();
    rig.touch(0, Write);
    let image = rig.sim.image();
    let nr_tables = rig.space.nr_tables();
    for (first, nr) in [
        (at::ALIGNED - 1, 1),
        (at::ALIGNED + M2, M2),
        (at::MISALIGNED, 1),
        (at::SCATTERED + 9, 1),
        (at::GIANT, G1),
    ] {
        rig.suspend((first, nr)).unwrap();
        assert_eq!(rig.sim.image(), image);
        rig.resume((first, nr));
        assert_eq!(rig.sim.image(), image);
    }
    // A leaf that has only its last page, or its first, in the range.
    for (first, nr_more) in [(at::ALIGNED - 1, 1), (at::ALIGNED + M2 - 1, 0)] {
        rig.suspend((first, 2)).unwrap();
        rig.resume((first, 2));
        assert_eq!(rig.space.nr_tables(), nr_tables + nr_more.max(1));
    }
    rig.finish();
}

/// The processor begins to write at one chance or the other, as it sets bits only once.
fn no_bit_gets_lost_while_frames_are_exchanged(backend: &Backend) {
    for (max_level, page) in [(0, 0), (0, 9), (1, 0), (1, 9)] {
        for delay in 0..20 {
            let mut rig = Rig::new(backend, format());
            rig.map(0, (at::ALIGNED, M2), bits::RW, max_level).unwrap();
            rig.sim.race_after(delay, [(page, Write), (5, Read)]);
            rig.suspend((at::ALIGNED, 10)).unwrap();
            rig.sim.race([]);
            rig.sim.set(at::ALIGNED, 10, fresh(0));
            rig.resume((at::ALIGNED, 10));
            rig.finish();
        }
    }
}

fn what_is_resumed_without_an_exchange_is_as_before(backend: &Backend) {
    let mut rig = Rig::new(backend, format());
    rig.map(3, (at::SCATTERED, 20), bits::RW | bits::PAT | bits::PCD, 0)
        .unwrap();
    rig.touch(4, Write);
    let image = rig.sim.image();
    rig.suspend((at::SCATTERED + 1, 7)).unwrap();
    assert_ne!(rig.sim.image(), image);
    rig.resume((at::SCATTERED + 1, 7));
    assert_eq!(rig.sim.image(), image);
    // Once more than needed does nothing.
    rig.resume((at::SCATTERED + 1, 7));
    assert_eq!(rig.sim.image(), image);
    rig.finish();
}
