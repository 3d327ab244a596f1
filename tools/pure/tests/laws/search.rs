// SPDX-License-Identifier: GPL-2.0

//! Searches of machines that are in use in every way.

use std::collections::BTreeSet;

use p2m_pure::frame::Mfn;
use p2m_pure::policy::Constraint;
use p2m_pure::search::{Places, Search, BLOCK};
use proptest::prelude::*;

/// A machine, some frames of which can't be had, which it tells of some of them only.
#[derive(Default)]
struct Machine {
    /// In the way, and known to be.
    walls: BTreeSet<u64>,
    /// In the way, as is found out when they are taken.
    traps: BTreeSet<u64>,
    taken: BTreeSet<u64>,
    nr_refusals: u32,
    /// How many calls there are until the caller is told to stop.
    nr_calls_left: std::cell::Cell<u32>,
}

impl Machine {
    fn new(walls: impl IntoIterator<Item = u64>, traps: impl IntoIterator<Item = u64>) -> Self {
        Self {
            walls: walls.into_iter().collect(),
            traps: traps.into_iter().collect(),
            nr_calls_left: u32::MAX.into(),
            ..Self::default()
        }
    }

    fn can_be_had(&self, at: u64) -> bool {
        !self.walls.contains(&at) && !self.traps.contains(&at)
    }
}

impl Places for Machine {
    fn open_from(&self, start: u64, end: u64) -> u64 {
        assert!(start < end);
        let last = self.walls.range(start..end).next_back();
        last.map_or(start, |last| last + 1)
    }

    fn take(&mut self, start: u64, end: u64) -> bool {
        assert!(start < end);
        if !(start..end).all(|at| self.can_be_had(at)) {
            self.nr_refusals += 1;
            return false;
        }
        for at in start..end {
            assert!(self.taken.insert(at), "{at:#x} was taken twice");
        }
        true
    }

    fn is_interrupted(&self) -> bool {
        let left = self.nr_calls_left.get();
        self.nr_calls_left.set(left.saturating_sub(1));
        left == 0
    }
}

/// All blocks that there are.
fn blocks(
    machine: &mut Machine,
    ranges: [(u64, u64); 2],
    constraint: &Constraint,
) -> Vec<(u64, u64)> {
    let mut search = Search::new(ranges);
    let next = || search.next_block(machine, constraint);
    let blocks = std::iter::from_fn(next).map(|(first, nr)| (first.get(), nr));
    let blocks = blocks.collect();
    assert_eq!(search.next_block(machine, constraint), None);
    blocks
}

const fn coloured(divisor: u32, colour: u32) -> Constraint {
    Constraint {
        colour: Some((divisor, colour)),
        ..Constraint::NONE
    }
}

#[test]
fn any_of_a_range_is_accepted_if_one_is() {
    let constraints = [
        Constraint::NONE,
        coloured(1, 0),
        coloured(3, 2),
        coloured(8, 0),
        coloured(64, 63),
        coloured(u32::MAX, u32::MAX - 1),
        coloured(0, 0),
    ];
    for constraint in constraints {
        for range in [(0, u64::MAX), (0, 0), (5, 6), (17, 100)] {
            let constraint = Constraint {
                range,
                ..constraint
            };
            for (start, end) in (0..70).flat_map(|a| (0..140).map(move |b| (a, b))) {
                let expected = (start..end).any(|at| constraint.accepts(at));
                let accepted = constraint.accepts_any(start, end);
                assert_eq!(accepted, expected, "{constraint:?} {start}..{end}");
            }
            assert!(!constraint.accepts_any(u64::MAX, u64::MAX));
        }
    }
    assert!(Constraint::NONE.accepts_any(7, u64::MAX));
    assert!(!coloured(2, 0).accepts_any(u64::MAX, u64::MAX));
}

#[test]
fn a_free_machine_comes_in_the_largest_blocks() {
    let mut machine = Machine::new([], []);
    let found = blocks(&mut machine, [(0, 2 * BLOCK), (0, 0)], &Constraint::NONE);
    assert_eq!(found, [(0, BLOCK), (BLOCK, BLOCK)]);
    // Not aligned: as a buddy allocator would have it.
    let mut machine = Machine::new([], []);
    let found = blocks(
        &mut machine,
        [(5, 13), (2 * BLOCK, 3 * BLOCK)],
        &Constraint::NONE,
    );
    assert_eq!(found, [(5, 1), (6, 2), (8, 4), (12, 1), (2 * BLOCK, BLOCK)]);
}

#[test]
fn a_run_is_found_wherever_it_is() {
    for align in [1, 4, 64, BLOCK] {
        for wall in 0..64 {
            // All but one aligned place has a wall in it.
            let nr = align.max(3);
            let end = 64 * nr.next_multiple_of(align);
            let place = wall * nr.next_multiple_of(align);
            let walls = (0..end).filter(|at| *at < place || place + nr <= *at);
            let mut machine = Machine::new(walls, []);
            let mut search = Search::new([(0, end), (0, 0)]);
            let found = search.next_run(&mut machine, nr, align);
            assert_eq!(found.map(Mfn::get), Some(place));
            assert_eq!(machine.taken, (place..place + nr).collect());
            assert_eq!(search.next_run(&mut machine, nr, align), None);
        }
    }
}

#[test]
fn a_run_that_is_all_of_a_range_needs_no_alignment() {
    for (start, nr) in [(1, 1), (7, 1000), (3, 1 << 18)] {
        let mut machine = Machine::new([start - 1, start + nr], []);
        let mut search = Search::new([(start, start + nr), (0, 0)]);
        let found = search.next_run(&mut machine, nr, 1);
        assert_eq!(found.map(Mfn::get), Some(start));
    }
}

/// Each costs a lot, so it isn't tried for ever.
#[test]
fn refusals_come_to_an_end() {
    let mut machine = Machine::new([], (0..1 << 20).step_by(2));
    let mut search = Search::new([(0, 1 << 20), (0, 0)]);
    assert_eq!(search.next_run(&mut machine, 2, 1), None);
    assert!(machine.nr_refusals <= 64, "{}", machine.nr_refusals);
}

#[test]
fn what_no_numbers_are_left_for_is_not_found() {
    let end = Mfn::LIMIT;
    let mut machine = Machine::new([], []);
    let mut search = Search::new([(end - 3, end), (0, 0)]);
    assert_eq!(search.next_run(&mut machine, u64::MAX, 1), None);
    let mut search = Search::new([(end - 3, end), (0, 0)]);
    assert_eq!(search.next_run(&mut machine, 4, 1), None);
    let mut search = Search::new([(u64::MAX - 3, u64::MAX), (0, 0)]);
    assert_eq!(search.next_run(&mut machine, 2, BLOCK), None);
    assert_eq!(search.next_block(&mut machine, &Constraint::NONE), None);
    assert!(machine.taken.is_empty());
}

fn constraint() -> impl Strategy<Value = Constraint> {
    let colour = prop::option::of((1..40u32).prop_flat_map(|divisor| (Just(divisor), 0..divisor)));
    (colour, any::<bool>()).prop_map(|(colour, is_guarded)| Constraint {
        colour,
        is_guarded,
        ..Constraint::NONE
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever can be had is, but for what is of no use; and nothing else.
    #[test]
    fn all_that_can_be_had_is_had(
        start in 0..600u64,
        nr in 0..1500u64,
        low in prop::option::of((4000..4100u64, 0..600u64)),
        walls in prop::collection::btree_set(0..4700u64, 0..60),
        traps in prop::collection::btree_set(0..4700u64, 0..20),
        constraint in constraint(),
    ) {
        let low = low.map_or((0, 0), |(start, nr)| (start, start + nr));
        let ranges = [low, (start, start + nr)];
        let mut machine = Machine::new(walls, traps);
        let found = blocks(&mut machine, ranges, &constraint);
        let frames: BTreeSet<u64> = found.iter().flat_map(|&(first, nr)| first..first + nr).collect();
        prop_assert_eq!(&frames, &machine.taken);
        let is_in = |at: u64| ranges.iter().any(|&(start, end)| start <= at && at < end);
        prop_assert!(frames.iter().all(|&at| is_in(at) && machine.can_be_had(at)));
        for &(first, nr) in &found {
            prop_assert!(nr.is_power_of_two() && nr <= BLOCK && first % nr == 0);
            prop_assert!((first..first + nr).any(|at| constraint.accepts(at)));
            prop_assert!(nr >= 4 || !constraint.is_guarded);
        }
        if !constraint.is_guarded {
            let missed = ranges.iter().flat_map(|&(start, end)| start..end).find(|&at| {
                constraint.accepts(at) && machine.can_be_had(at) && !frames.contains(&at)
            });
            prop_assert_eq!(missed, None);
        }
    }

    #[test]
    fn a_run_is_found_if_there_is_one_and_all_is_known(
        start in 0..100u64,
        nr_frames in 0..3000u64,
        walls in prop::collection::btree_set(0..3100u64, 0..40),
        nr in 1..300u64,
        align in (0..8u32).prop_map(|shift| 1u64 << shift),
    ) {
        let end = start + nr_frames;
        let mut machine = Machine::new(walls, []);
        let mut search = Search::new([(start, end), (0, 0)]);
        let found = search.next_run(&mut machine, nr, align);
        let places = (start..end).filter(|at| at % align == 0 && at + nr <= end);
        let is_good = |at: &u64| (*at..at + nr).all(|at| !machine.walls.contains(&at));
        prop_assert_eq!(found.map(Mfn::get), places.clone().find(is_good));
        let expected: BTreeSet<u64> = found.into_iter().flat_map(|first| {
            first.get()..first.get() + nr
        }).collect();
        prop_assert_eq!(machine.taken, expected);
    }

    #[test]
    fn who_is_told_to_stop_takes_nothing_more(
        nr_calls in 0..20u32,
        traps in prop::collection::btree_set(0..3000u64, 0..40),
    ) {
        let mut machine = Machine::new([], traps);
        machine.nr_calls_left.set(nr_calls);
        let mut search = Search::new([(0, 3000), (0, 0)]);
        let mut nr_taken = 0;
        while let Some((_, nr)) = search.next_block(&mut machine, &Constraint::NONE) {
            nr_taken += nr;
        }
        prop_assert_eq!(machine.taken.len() as u64, nr_taken);
        prop_assert_eq!(search.next_run(&mut machine, 1, 1), None);
    }
}
