// SPDX-License-Identifier: GPL-2.0

//! Backends over the real maps: all else here has a P2M that is only simulated.

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::map::{Maps, Writer};
use p2m_pure::pv::{bits, Busy, Machine, MAX_LEVELS};
use p2m_pure::table::Table;
use p2m_pure_host::store::Store;

use crate::sim::Sim;
use crate::world::{at, Backend, FRESH, G1, M2};

crate::laws! {
    the_maps_answer_as_the_simulated_ones,
}

/// A machine with nothing but maps.
struct Domain {
    store: Store,
    maps: Maps,
    writer: Writer,
}

impl Domain {
    fn new() -> Self {
        let store = Store::new(256);
        let (maps, writer) = Maps::new(&store).unwrap();
        Self {
            store,
            maps,
            writer,
        }
    }

    fn set(&mut self, pfn: u64, entry: Entry) {
        let pfn = Pfn::new(pfn).unwrap();
        let result = self
            .maps
            .set(&mut self.writer, &self.store, &(), pfn, entry);
        result.unwrap();
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.maps.destroy(&mut self.writer, &self.store);
        }
    }
}

impl Machine for Domain {
    fn entry(&self, pfn: u64) -> Entry {
        let pfn = Pfn::new(pfn);
        pfn.map_or(Entry::Invalid, |pfn| self.maps.lookup(&self.store, pfn))
    }

    fn mfn_to_pfn(&self, mfn: Mfn) -> Option<Pfn> {
        self.maps.mfn_to_pfn(&self.store, mfn)
    }

    fn table(&self, _: Pfn) -> Option<&Table> {
        None
    }

    fn protect(&self, _: Pfn) -> Result<(), Busy> {
        Err(Busy)
    }

    fn unprotect(&self, _: Pfn) {}

    fn flush_tlb(&self, _: u64, _: u64) {}

    fn load_cr3(&self, _: u64) {}
}

/// Compares both directions for each of these frame numbers.
fn compare(backend: &Backend, sim: &Sim, domain: &Domain, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        for level in 0..MAX_LEVELS {
            for flags in [
                0,
                bits::PRESENT,
                bits::PRESENT | bits::PSE | bits::PAT_LARGE,
            ] {
                let word = (number << 12) | flags;
                let ops = backend.ops;
                let made = [sim as &dyn Machine, domain].map(|on| ops.make(on, level, word));
                assert_eq!(made[0], made[1], "{word:#x} of level {level}");
                let val = [sim as &dyn Machine, domain].map(|on| ops.val(on, level, word));
                assert_eq!(val[0], val[1], "{word:#x} of level {level}");
            }
        }
    }
}

fn the_maps_answer_as_the_simulated_ones(backend: &Backend) {
    if !backend.translates() {
        return;
    }
    let sim = backend.world();
    let mut domain = Domain::new();
    for run in sim.runs(0, at::POOL) {
        for nr in 0..run.nr {
            domain.set(run.start + nr, run.value.advance(nr).unwrap());
        }
    }
    // The rest of it is large, and not needed.
    sim.set(at::POOL, G1 + 8 * M2, Entry::Invalid);
    let numbers = || {
        let pfns = (0..at::POOL + M2).step_by(37);
        let mfns = (0x10_0000..0x10_0000 + 4 * M2).step_by(31);
        let starts = [0x20_0000, 0x24_0000, 0x26_0000, FRESH, 4 * Pfn::LIMIT];
        let around = starts.into_iter().flat_map(|at| at - 1..at + 3);
        pfns.chain(mfns)
            .chain(around)
            .chain([Pfn::LIMIT - 1, Pfn::LIMIT, Mfn::LIMIT - 1])
    };
    compare(backend, &sim, &domain, numbers());
    // Frames that were replaced leave nothing behind, in either M2P.
    let frame = |nr| Entry::Present(Mfn::new(FRESH + nr).unwrap());
    for (pfn, entry) in [
        (at::SCATTERED + 37, frame(0)),
        (at::ALIGNED, frame(1)),
        (at::ALIGNED + M2, Entry::Invalid),
        (at::IDENTITY, frame(2)),
        (at::HOLE, Entry::Foreign(Mfn::new(FRESH + 3).unwrap())),
        (at::FOREIGN, frame(4)),
        (at::SCATTERED + 37, frame(5)),
    ] {
        sim.set(pfn, 1, entry);
        domain.set(pfn, entry);
        compare(backend, &sim, &domain, numbers());
    }
}
