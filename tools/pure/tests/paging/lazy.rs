// SPDX-License-Identifier: GPL-2.0

//! Laws of lazy mode: case 22, the contract of `lazy_mmu_mode_enable()` in
//! `include/linux/pgtable.h`.
//!
//! A backend may make all stores at once, as native does, so most laws are about when a store has
//! to be made at the latest. One that puts stores off has to do it, too: it is the point of it.

use p2m_pure::frame::Pfn;
use p2m_pure::pv::{bits, Context, Lazy, Machine, Pte, Slot, LAZY_BATCH, MAX_LEVELS};

use crate::sim::Sim;
use crate::world::{at, Backend};

crate::laws! {
    stores_are_put_off_until_they_are_flushed,
    leaving_at_any_depth_makes_the_stores,
    a_pause_makes_the_stores_and_puts_none_off,
    nothing_else_has_an_effect_in_a_pause,
    the_last_store_wins,
    a_full_queue_loses_nothing,
    flushing_nothing_does_nothing,
    more_exits_than_entries_do_no_harm,
    a_change_is_made_after_what_was_put_off,
    a_queue_that_is_dropped_makes_no_store,
}

/// A table, and a queue of stores to it.
struct Rig<'a> {
    backend: &'a Backend,
    sim: std::rc::Rc<Sim>,
    lazy: Lazy,
}

impl<'a> Rig<'a> {
    fn new(backend: &'a Backend) -> Self {
        let sim = backend.world();
        for table in 0..MAX_LEVELS as u64 {
            sim.adopt(at::POOL + table);
        }
        Self {
            backend,
            sim,
            lazy: Lazy::new(),
        }
    }

    fn with<T>(&mut self, work: impl FnOnce(&Backend, &mut Context<'_>) -> T) -> T {
        let mut cx = Context {
            machine: &*self.sim,
            lazy: &mut self.lazy,
        };
        work(self.backend, &mut cx)
    }

    fn enable(&mut self) {
        self.with(|_, cx| cx.enable_lazy_mode());
    }

    fn disable(&mut self) {
        self.with(|backend, cx| cx.disable_lazy_mode(backend.ops));
    }

    fn pause(&mut self) {
        self.with(|backend, cx| cx.pause_lazy_mode(backend.ops));
    }

    fn resume(&mut self) {
        self.with(|_, cx| cx.resume_lazy_mode());
    }

    fn flush(&mut self) {
        self.with(|backend, cx| backend.ops.lazy_mode_flush(cx));
    }

    /// Stores into the table that is there for the level.
    fn set(&mut self, level: usize, index: u64, word: u64) {
        let slot = slot(level, index);
        self.with(|backend, cx| backend.ops.set(cx, level, slot, word));
    }

    /// Returns what the processor would see.
    fn get(&self, level: usize, index: u64) -> u64 {
        let slot = slot(level, index);
        self.sim.table(slot.table).unwrap().load(slot.index)
    }

    /// Returns whether the backend may put a store off now.
    fn is_lazy(&self) -> bool {
        self.backend.translates() && self.lazy.is_active()
    }
}

fn slot(level: usize, index: u64) -> Slot {
    Slot {
        table: Pfn::new(at::POOL + level as u64).unwrap(),
        index,
    }
}

fn stores_are_put_off_until_they_are_flushed(backend: &Backend) {
    for level in 0..MAX_LEVELS {
        let mut rig = Rig::new(backend);
        rig.set(level, 0, 8);
        assert_eq!(rig.get(level, 0), 8, "out of lazy mode, a store is one");
        rig.enable();
        assert!(rig.lazy.is_active());
        rig.set(level, 0, 16);
        rig.set(level, 1, 24);
        let seen = [rig.get(level, 0), rig.get(level, 1)];
        let expected = if rig.is_lazy() { [8, 0] } else { [16, 24] };
        assert_eq!(seen, expected);
        rig.flush();
        assert_eq!([rig.get(level, 0), rig.get(level, 1)], [16, 24]);
        assert!(rig.lazy.is_active(), "a flush leaves nothing");
        rig.set(level, 0, 32);
        rig.disable();
        assert_eq!(rig.get(level, 0), 32);
        assert!(!rig.lazy.is_active());
        rig.set(level, 0, 40);
        assert_eq!(rig.get(level, 0), 40);
    }
}

fn leaving_at_any_depth_makes_the_stores(backend: &Backend) {
    for depth in 1..5 {
        let mut rig = Rig::new(backend);
        for _ in 0..depth {
            rig.enable();
        }
        for left in (0..depth).rev() {
            rig.set(0, left, 8);
            rig.disable();
            assert_eq!(rig.get(0, left), 8, "depth {left}");
            assert!(rig.lazy.is_empty());
            assert_eq!(rig.lazy.is_active(), left > 0);
        }
    }
}

fn a_pause_makes_the_stores_and_puts_none_off(backend: &Backend) {
    let mut rig = Rig::new(backend);
    rig.enable();
    rig.set(0, 0, 8);
    rig.pause();
    assert_eq!(rig.get(0, 0), 8);
    assert!(!rig.lazy.is_active());
    rig.set(0, 0, 16);
    assert_eq!(rig.get(0, 0), 16);
    // Pauses nest.
    rig.pause();
    rig.set(0, 1, 8);
    assert_eq!(rig.get(0, 1), 8);
    rig.resume();
    rig.set(0, 2, 8);
    assert_eq!(rig.get(0, 2), 8);
    rig.resume();
    assert!(rig.lazy.is_active());
    rig.set(0, 3, 8);
    assert_eq!(rig.get(0, 3) == 0, rig.is_lazy());
    rig.disable();
    assert_eq!(rig.get(0, 3), 8);
    // A pause out of lazy mode.
    rig.pause();
    rig.set(0, 4, 8);
    assert_eq!(rig.get(0, 4), 8);
    rig.resume();
    assert!(!rig.lazy.is_active());
}

fn nothing_else_has_an_effect_in_a_pause(backend: &Backend) {
    let mut rig = Rig::new(backend);
    // Entering in a pause doesn't count, also if nobody leaves.
    rig.pause();
    rig.enable();
    rig.set(0, 0, 8);
    assert_eq!(rig.get(0, 0), 8);
    rig.resume();
    assert!(!rig.lazy.is_active());
    // Nor does leaving.
    rig.enable();
    rig.pause();
    rig.disable();
    rig.disable();
    rig.resume();
    assert!(rig.lazy.is_active());
    rig.disable();
    assert!(!rig.lazy.is_active());
}

fn the_last_store_wins(backend: &Backend) {
    // Stores to few slots of several levels, in an order that each of them can tell.
    let mut rig = Rig::new(backend);
    let mut expected = [[0; 4]; MAX_LEVELS];
    for round in 0..3 {
        rig.enable();
        for nr in 1..=3 * LAZY_BATCH as u64 {
            let (level, index) = (nr as usize % MAX_LEVELS, nr % 3 + round);
            let word = (round * 1000 + nr) << 12;
            rig.set(level, index % 4, word);
            expected[level][index as usize % 4] = word;
        }
        rig.disable();
        for (level, words) in expected.iter().enumerate() {
            for (index, word) in words.iter().enumerate() {
                assert_eq!(rig.get(level, index as u64), *word);
            }
        }
    }
}

fn a_full_queue_loses_nothing(backend: &Backend) {
    let batch = LAZY_BATCH as u64;
    for nr_stores in [batch - 1, batch, batch + 1, 2 * batch, 2 * batch + 1] {
        let mut rig = Rig::new(backend);
        rig.enable();
        for index in 0..nr_stores {
            rig.set(0, index, (index << 12) | 8);
        }
        // Those that had no room in the queue any more were made, in order.
        let made: Vec<bool> = (0..nr_stores).map(|at| rig.get(0, at) != 0).collect();
        assert!(made.windows(2).all(|pair| pair[0] || !pair[1]));
        let nr_made = made.iter().filter(|made| **made).count() as u64;
        if rig.is_lazy() {
            assert_eq!(nr_made, (nr_stores - 1) / batch * batch);
            assert_eq!(rig.lazy.len() as u64, nr_stores - nr_made);
        }
        rig.disable();
        for index in 0..nr_stores {
            assert_eq!(rig.get(0, index), (index << 12) | 8);
        }
        assert_eq!(rig.get(0, nr_stores), 0);
    }
}

fn flushing_nothing_does_nothing(backend: &Backend) {
    let mut rig = Rig::new(backend);
    rig.set(0, 0, 8);
    let before = rig.sim.image();
    rig.flush();
    rig.enable();
    rig.flush();
    rig.disable();
    rig.flush();
    assert_eq!(rig.sim.image(), before);
    assert!(rig.lazy.is_empty());
    // Nor does what was flushed come back.
    rig.enable();
    rig.set(0, 1, 8);
    rig.disable();
    rig.set(0, 1, 0);
    rig.flush();
    assert_eq!(rig.sim.image(), before);
}

fn more_exits_than_entries_do_no_harm(backend: &Backend) {
    let mut rig = Rig::new(backend);
    rig.disable();
    rig.resume();
    rig.set(0, 0, 8);
    assert_eq!(rig.get(0, 0), 8);
    rig.enable();
    assert!(rig.lazy.is_active());
    rig.disable();
    assert!(!rig.lazy.is_active());
}

fn a_change_is_made_after_what_was_put_off(backend: &Backend) {
    let mut rig = Rig::new(backend);
    let (old, new) = (bits::PRESENT | bits::RW, bits::PRESENT);
    rig.set(0, 0, old);
    rig.enable();
    rig.set(0, 0, old | bits::NX);
    rig.with(|backend, cx| {
        backend.ops.ptep_modify_prot_start(cx, slot(0, 0));
        backend
            .ops
            .ptep_modify_prot_commit(cx, slot(0, 0), Pte(new));
    });
    rig.disable();
    assert_eq!(rig.get(0, 0), new);
}

fn a_queue_that_is_dropped_makes_no_store(backend: &Backend) {
    let mut rig = Rig::new(backend);
    rig.enable();
    rig.set(0, 0, 8);
    let is_lazy = rig.is_lazy();
    rig.lazy = Lazy::default();
    rig.flush();
    rig.disable();
    assert_eq!(rig.get(0, 0) == 0, is_lazy);
}
