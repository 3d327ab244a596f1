// SPDX-License-Identifier: GPL-2.0

//! Policies on machines of every kind.

use std::collections::{BTreeMap, BTreeSet};

use p2m_pure::frame::Mfn;
use p2m_pure::policy::{
    Candidates, Constraint, Exclusions, FrameError, FrameSource, Pick, Policy, Selector,
    MIN_SCATTER,
};
use p2m_pure_host::machine::{End, Machine};
use proptest::prelude::*;

use crate::rig::mfn;

/// Which frames of a machine are free. No machine begins with frame 0.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All, in one block.
    Block,
    /// Two, then a hole.
    Pairs,
    /// Two, then a frame in use.
    Triples,
    /// Every second one.
    Alternate,
    /// Each with the same chance.
    Random,
}

const KINDS: [Kind; 5] = [
    Kind::Block,
    Kind::Pairs,
    Kind::Triples,
    Kind::Alternate,
    Kind::Random,
];

impl Kind {
    /// Returns the numbers of the first `nr` free frames.
    fn frames(self, nr: usize) -> Vec<u64> {
        let is_free = move |at: &u64| match self {
            Self::Block => true,
            Self::Pairs => at % 4 < 2,
            Self::Triples => at % 3 < 2,
            Self::Alternate => at % 2 == 0,
            // Any fixed noise does.
            Self::Random => at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0,
        };
        (4096..).filter(is_free).take(nr).collect()
    }
}

/// A source that hands out single frames in the order in which it has them.
struct Line {
    frames: Vec<u64>,
    given_back: Vec<u64>,
}

impl Line {
    fn new(frames: impl IntoIterator<Item = u64>) -> Self {
        let mut frames: Vec<u64> = frames.into_iter().collect();
        frames.reverse();
        Self {
            frames,
            given_back: Vec::new(),
        }
    }
}

impl FrameSource for Line {
    const MAX_ORDER: u32 = 0;

    fn alloc(&mut self, _: u32) -> Option<Mfn> {
        self.frames.pop().and_then(Mfn::new)
    }

    fn alloc_run(&mut self, _: usize) -> Option<Mfn> {
        None
    }

    fn free(&mut self, mfn: Mfn) {
        self.given_back.push(mfn.get());
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

fn fill<F: FrameSource>(policy: Policy, source: &mut F, nr: usize) -> Result<Vec<Mfn>, FrameError> {
    let mut frames = vec![Mfn::ZERO; nr];
    policy.fill(source, &mut frames)?;
    Ok(frames)
}

fn numbers(frames: &[Mfn]) -> Vec<u64> {
    frames.iter().map(|mfn| mfn.get()).collect()
}

fn sorted(frames: &[Mfn]) -> Vec<u64> {
    let mut numbers = numbers(frames);
    numbers.sort_unstable();
    numbers
}

fn is_scattered(frames: &[Mfn]) -> bool {
    frames
        .windows(2)
        .all(|pair| pair[0].get().abs_diff(pair[1].get()) > 1)
}

/// Returns the order that a set gets, when its frames come one by one as they are listed.
fn order<I: IntoIterator<Item = u64>>(frames: I, seed: u64) -> Vec<u64> {
    let mut line = Line::new(frames);
    let nr = line.frames.len();
    assert!(nr >= MIN_SCATTER);
    numbers(&fill(Policy::Scatter { seed }, &mut line, nr).unwrap())
}

/// The same for a region that is so small that its frames are chosen from twice as many.
fn small_order<I: IntoIterator<Item = u64>>(frames: I, seed: u64) -> Vec<u64> {
    let mut line = Line::new(frames);
    let nr = line.frames.len() / 2;
    assert!(nr < MIN_SCATTER);
    numbers(&fill(Policy::Scatter { seed }, &mut line, nr).unwrap())
}

fn give_back<const MAX_ORDER: u32>(machine: &mut Machine<MAX_ORDER>, frames: &[Mfn]) {
    for &mfn in frames {
        machine.free(mfn);
    }
}

/// The law of the policy, for every size. What was taken is exactly what is in use, and comes back.
fn assert_scatters(sizes: impl Iterator<Item = usize> + Clone, seeds: &[u64]) {
    let most = 2 * sizes.clone().max().unwrap();
    for kind in KINDS {
        let all = kind.frames(most);
        let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
        for nr in sizes.clone() {
            for &seed in seeds {
                let frames = fill(Policy::Scatter { seed }, &mut machine, nr).unwrap();
                assert!(is_scattered(&frames), "{kind:?} {nr} {seed}: {frames:?}");
                assert_eq!(sorted(&frames), machine.taken_frames());
                give_back(&mut machine, &frames);
            }
        }
        assert_eq!(machine.free_frames(), all);
    }
}

#[test]
fn small_regions_are_scattered_whatever_the_seed() {
    let seeds: Vec<u64> = (0..100).chain([u64::MAX, 1 << 63]).collect();
    assert_scatters(1..33, &seeds);
}

#[test]
fn regions_of_every_size_are_scattered() {
    assert_scatters(33..257, &[1]);
    assert_scatters((257..2050).step_by(31), &[2]);
    assert_scatters(
        [511, 512, 513, 1023, 1024, 1025, 2047, 2048].into_iter(),
        &[3],
    );
}

/// One block is the hardest machine, and a cheap one.
#[test]
fn a_run_of_every_length_is_scattered() {
    for nr in MIN_SCATTER..2048 {
        let frames = order(5000..5000 + nr as u64, nr as u64);
        let mut sorted = frames.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(5000..5000 + nr as u64));
        assert!(
            frames.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1),
            "{nr}: {frames:?}"
        );
    }
}

/// All sets of up to 10 frames that are close to each other: 1023 of them.
#[test]
fn every_small_set_is_scattered() {
    for bits in 1..1u64 << 10 {
        let set = (0..10).filter(|at| (bits >> at) & 1 != 0);
        let nr = set.clone().count();
        for seed in 0..20 {
            let frames = match nr {
                0..MIN_SCATTER if nr % 2 != 0 => continue,
                0..MIN_SCATTER => small_order(set.clone(), seed),
                _ => order(set.clone(), seed),
            };
            assert!(
                frames.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1),
                "{bits:#b} {seed}: {frames:?}"
            );
        }
    }
}

/// Exchanging frames by chance does not always succeed for a few. What then comes is one order, so
/// it comes more often than its mirror image.
#[test]
fn chance_gives_up_on_hard_sets_and_they_are_scattered_all_the_same() {
    let mut counts = BTreeMap::new();
    for seed in 0..2000 {
        let mut line = Line::new(0..4);
        let frames = fill(Policy::Scatter { seed }, &mut line, 4).unwrap();
        *counts.entry(numbers(&frames)).or_insert(0u32) += 1;
    }
    let (without_chance, mirrored) = (counts[&vec![1, 3, 0, 2]], counts[&vec![2, 0, 3, 1]]);
    assert_eq!(without_chance + mirrored, 2000);
    assert!(mirrored > 0);
    assert!(without_chance > 2 * mirrored, "{counts:?}");
}

#[test]
fn an_order_is_a_function_of_seed_and_set() {
    for kind in KINDS {
        for nr in [1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 100, 513, 1000] {
            let is_small = nr < MIN_SCATTER;
            let set = kind.frames(if is_small { 2 * nr } else { nr });
            let order = |frames: Vec<u64>, seed| match is_small {
                true => small_order(frames, seed),
                false => order(frames, seed),
            };
            let scattered = order(set.clone(), 7);
            assert_eq!(order(set.iter().rev().copied().collect(), 7), scattered);
            // Odd places first, in the other direction.
            let (even, mut odd): (Vec<u64>, Vec<u64>) = set.iter().partition(|&at| at % 2 == 0);
            odd.reverse();
            assert_eq!(order([odd, even].concat(), 7), scattered);
            // In blocks of all sizes, from either end.
            for pick in [End::Lowest, End::Highest, End::Alternating] {
                let mut machine: Machine = Machine::new(set.iter().copied(), pick);
                let frames = fill(Policy::Scatter { seed: 7 }, &mut machine, scattered.len());
                assert_eq!(
                    numbers(&frames.unwrap()),
                    scattered,
                    "{kind:?} {nr} {pick:?}"
                );
            }
        }
    }
}

/// All orders in which 5 frames may come, and all of 6 for a region of 3.
#[test]
fn the_order_in_which_frames_come_does_not_matter() {
    fn permutations(rest: &[u64]) -> Vec<Vec<u64>> {
        if rest.is_empty() {
            return vec![Vec::new()];
        }
        let with = |at: usize| {
            let mut others = rest.to_vec();
            let first = others.remove(at);
            let tails = permutations(&others).into_iter();
            tails.map(move |tail| [&[first], tail.as_slice()].concat())
        };
        (0..rest.len()).flat_map(with).collect()
    }

    let far = Mfn::LIMIT - 1;
    for set in [
        vec![1, 2, 3, 4, 5, 6],
        vec![0, 1, 2, far - 2, far - 1, far],
        vec![7, 8, 1 << 12, 1 << 20, (1 << 20) + 1, far],
    ] {
        let orders: BTreeSet<_> = permutations(&set)
            .into_iter()
            .flat_map(|frames| [order(frames.clone(), 3), small_order(frames, 3)])
            .collect();
        assert_eq!(orders.len(), 2, "{set:?}");
    }
    let set: Vec<u64> = (100..108).collect();
    let all = permutations(&set[..5]).into_iter().map(|mut frames| {
        frames.extend(&set[5..]);
        order(frames, 3)
    });
    assert_eq!(all.collect::<BTreeSet<_>>().len(), 1);
}

#[test]
fn different_seeds_are_different_orders() {
    let orders: BTreeSet<_> = (0..200).map(|seed| order(0..64, seed)).collect();
    assert_eq!(orders.len(), 200);
}

/// The ABI promises that an order can be had again. A change of these, which a second implementation
/// made, is a change of the ABI.
#[test]
fn orders_are_what_they_were() {
    let first = [104, 109, 102, 106, 101, 107, 105, 100, 103, 108];
    assert_eq!(order(100..110, 0), first);
    let second = [109, 100, 107, 104, 108, 102, 106, 101, 103, 105];
    assert_eq!(order(100..110, 1), second);
    assert_eq!(small_order(100..106, 1), [100, 104, 102]);
    // A set that chance gives up on.
    assert!((0..50).any(|seed| order(0..4, seed) == [1, 3, 0, 2]));
}

#[test]
fn a_small_region_gives_back_what_it_did_not_choose() {
    for nr in 1..MIN_SCATTER {
        let mut line = Line::new(0..100);
        let frames = fill(Policy::Scatter { seed: 9 }, &mut line, nr).unwrap();
        let kept: BTreeSet<u64> = numbers(&frames).into_iter().collect();
        let back: BTreeSet<u64> = line.given_back.iter().copied().collect();
        assert_eq!(line.given_back.len(), nr);
        assert_eq!(kept.len(), nr);
        assert!(kept.union(&back).copied().eq(0..2 * nr as u64));
    }
}

#[test]
fn any_takes_each_frame_once() {
    for kind in KINDS {
        let all = kind.frames(700);
        for nr in [1, 2, 3, 4, 5, 64, 511, 512, 513, 700] {
            for pick in [End::Lowest, End::Highest, End::Alternating] {
                let mut machine: Machine = Machine::new(all.iter().copied(), pick);
                let frames = fill(Policy::Any, &mut machine, nr).unwrap();
                assert_eq!(sorted(&frames), machine.taken_frames());
                assert_eq!(frames.len(), nr);
                give_back(&mut machine, &frames);
                assert_eq!(machine.free_frames(), all);
            }
        }
    }
}

#[test]
fn any_takes_blocks_as_large_as_there_are() {
    let requests = |kind: Kind, nr| {
        let mut machine: Machine<6> = Machine::new(kind.frames(nr), End::Lowest);
        let frames = fill(Policy::Any, &mut machine, nr).unwrap();
        let requests = machine.requests().to_vec();
        give_back(&mut machine, &frames);
        requests
    };
    // 4 blocks of the highest order, one of 32 and one of 1.
    let block = requests(Kind::Block, 4 * 64 + 33);
    let orders: Vec<u32> = block.iter().map(|request| request.order).collect();
    assert_eq!(orders, [6, 6, 6, 6, 5, 0]);
    assert!(block.iter().all(|request| request.is_granted));

    for kind in KINDS {
        let mut refused = u32::MAX;
        for request in requests(kind, 500) {
            assert!(request.order < refused, "asked again");
            if !request.is_granted {
                refused = request.order;
            }
        }
    }
    // On the most fragmented machine: one failure an order, then single frames.
    let alternate = requests(Kind::Alternate, 500);
    assert_eq!(alternate.len(), 6 + 500);
}

#[test]
fn no_frames_are_always_to_be_had() {
    let mut machine: Machine = Machine::new([], End::Lowest);
    for policy in [Policy::Any, Policy::Scatter { seed: 1 }] {
        assert_eq!(fill(policy, &mut machine, 0), Ok(vec![]));
    }
    assert_eq!(machine.requests(), []);
}

#[test]
fn contiguous_is_one_run_or_nothing() {
    for kind in KINDS {
        let all = kind.frames(300);
        let longest = match kind {
            Kind::Block => 300,
            Kind::Pairs | Kind::Triples => 2,
            Kind::Alternate => 1,
            Kind::Random => continue,
        };
        for nr in [1, 2, 3, 7, 255, 256, 299, 300, 301] {
            let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
            match fill(Policy::Contiguous, &mut machine, nr) {
                Ok(frames) => {
                    assert!(nr <= longest, "{kind:?} {nr}");
                    let first = frames[0].get();
                    assert!(numbers(&frames).into_iter().eq(first..first + nr as u64));
                    assert_eq!(machine.taken_frames(), numbers(&frames));
                    give_back(&mut machine, &frames);
                }
                Err(error) => {
                    assert!(nr > longest, "{kind:?} {nr}");
                    assert_eq!(error, FrameError::NoRun);
                }
            }
            assert_eq!(machine.free_frames(), all);
        }
    }
}

#[test]
fn a_run_that_fails_for_once_takes_nothing() {
    let mut machine: Machine = Machine::new(Kind::Block.frames(9), End::Lowest);
    machine.fail_once_after(0);
    let result = fill(Policy::Contiguous, &mut machine, 9);
    assert_eq!(result, Err(FrameError::NoRun));
    assert_eq!(machine.taken_frames(), []);
    assert!(fill(Policy::Contiguous, &mut machine, 9).is_ok());
}

const BLOCKWISE: [Policy; 2] = [Policy::Any, Policy::Scatter { seed: 5 }];

#[test]
fn without_memory_everything_is_given_back() {
    for policy in BLOCKWISE {
        for kind in KINDS {
            let all = kind.frames(80);
            // There never were enough, or there are none from some time on.
            let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
            assert_eq!(
                fill(policy, &mut machine, 81),
                Err(FrameError::NoMemory),
                "{kind:?}"
            );
            assert_eq!(machine.free_frames(), all);
            for nr in [1, 2, 3, 4, 33, 80] {
                for nr_good in 0.. {
                    let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
                    machine.fail_after(nr_good);
                    match fill(policy, &mut machine, nr) {
                        Ok(frames) => {
                            assert_eq!(sorted(&frames), machine.taken_frames());
                            break;
                        }
                        Err(error) => assert_eq!(error, FrameError::NoMemory),
                    }
                    assert_eq!(machine.taken_frames(), []);
                    assert_eq!(machine.free_frames(), all);
                }
            }
        }
    }
}

#[test]
fn a_refused_block_is_made_up_for_by_smaller_ones() {
    for policy in BLOCKWISE {
        for nr_good in 0..6 {
            let mut machine: Machine<4> = Machine::new(Kind::Block.frames(100), End::Lowest);
            machine.fail_once_after(nr_good);
            let frames = fill(policy, &mut machine, 79).unwrap();
            assert_eq!(sorted(&frames), machine.taken_frames());
            assert!(matches!(policy, Policy::Any) || is_scattered(&frames));
        }
    }
}

#[test]
fn who_is_told_to_stop_gives_everything_back() {
    for policy in BLOCKWISE {
        for kind in KINDS {
            let all = kind.frames(80);
            for nr in [1, 2, 3, 4, 33, 80] {
                let mut nr_stops = 0;
                loop {
                    let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
                    machine.stop_after(nr_stops);
                    match fill(policy, &mut machine, nr) {
                        Ok(_) => break,
                        Err(error) => assert_eq!(error, FrameError::Interrupted),
                    }
                    // It asks before each request, so it doesn't go on for long.
                    assert_eq!(machine.requests().len() as u64, nr_stops);
                    assert_eq!(machine.taken_frames(), []);
                    assert_eq!(machine.free_frames(), all);
                    nr_stops += 1;
                }
                assert_ne!(nr_stops, 0);
            }
        }
    }
}

/// Places are filled one by one, in any order, next to others that are filled already.
#[test]
fn candidates_are_scattered_into_places_in_any_order() {
    for kind in KINDS {
        for nr in [1, 2, 3, 4, 7, 64, 200] {
            let all = kind.frames(nr + Candidates::SPARE);
            for step in [1, 3, 7, 11] {
                let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
                let mut room = vec![Mfn::ZERO; nr + Candidates::SPARE];
                let policy = Policy::Scatter { seed: step };
                let mut candidates = Candidates::new(&mut machine, &mut room, policy).unwrap();
                let mut places: Vec<Option<Mfn>> = vec![None; nr];
                // Every `step`th place, then those that were left out.
                let mut order: Vec<usize> = (0..nr).collect();
                order.sort_by_key(|at| at % step as usize);
                for at in order {
                    let before = at.checked_sub(1).and_then(|at| places[at]);
                    let behind = places.get(at + 1).copied().flatten();
                    places[at] = candidates.take([before, behind]);
                    assert!(places[at].is_some(), "{kind:?} {nr} {step}");
                }
                candidates.give_back(&mut machine);
                let frames: Vec<Mfn> = places.into_iter().flatten().collect();
                assert!(is_scattered(&frames), "{frames:?}");
                assert_eq!(sorted(&frames), machine.taken_frames());
            }
        }
    }
}

#[test]
fn candidates_are_given_back_once() {
    for policy in [Policy::Any, Policy::Contiguous, Policy::Scatter { seed: 1 }] {
        let all = Kind::Block.frames(20);
        let mut machine: Machine = Machine::new(all.iter().copied(), End::Lowest);
        let mut room = [Mfn::ZERO; 5];
        let mut candidates = Candidates::new(&mut machine, &mut room, policy).unwrap();
        let taken: Vec<Mfn> = (0..5).filter_map(|_| candidates.take([None; 2])).collect();
        assert_eq!(sorted(&taken), machine.taken_frames());
        assert_eq!(taken.len(), 5);
        assert_eq!(candidates.take([None; 2]), None);
        // What came back can be taken again.
        candidates.put(taken[2]);
        candidates.put(taken[0]);
        let again = candidates.take([None; 2]).unwrap();
        assert!([taken[0], taken[2]].contains(&again));
        candidates.give_back(&mut machine);
        let mut kept: Vec<Mfn> = vec![taken[1], taken[3], taken[4], again];
        kept.sort_unstable();
        assert_eq!(machine.taken_frames(), numbers(&kept));

        machine.fail_after(0);
        let mut room = [Mfn::ZERO; 5];
        let error = Candidates::new(&mut machine, &mut room, policy).err();
        assert_eq!(error, Some(FrameError::NoMemory));
        assert_eq!(machine.taken_frames(), numbers(&kept));
    }
}

#[test]
fn a_neighbour_is_no_candidate() {
    for (frame, is_good) in [(98, true), (99, false), (101, false), (102, true)] {
        for neighbours in [[Some(mfn(100)), None], [None, Some(mfn(100))]] {
            for policy in [Policy::Any, Policy::Scatter { seed: 0 }] {
                let mut line = Line::new([frame]);
                let mut room = [Mfn::ZERO];
                let mut candidates = Candidates::new(&mut line, &mut room, policy).unwrap();
                let is_any = policy == Policy::Any;
                let taken = candidates.take(neighbours);
                assert_eq!(taken, (is_any || is_good).then_some(mfn(frame)));
            }
        }
    }
}

/// What a selector does with all blocks of up to 10 frames that begin at 0 to 6.
mod selectors {
    use super::*;

    fn constraints() -> impl Iterator<Item = Constraint> {
        let colours = [
            None,
            Some((1, 0)),
            Some((2, 1)),
            Some((3, 0)),
            Some((2, 2)),
            Some((0, 0)),
        ];
        let ranges = [(0, u64::MAX), (3, 9), (5, 6), (4, 4)];
        colours.into_iter().flat_map(move |colour| {
            ranges.into_iter().flat_map(move |range| {
                [false, true].map(|is_guarded| Constraint {
                    range,
                    colour,
                    is_guarded,
                })
            })
        })
    }

    fn blocks() -> impl Iterator<Item = (u64, u64)> {
        (0..7).flat_map(|first| (0..11).map(move |nr| (first, nr)))
    }

    fn accepts(constraint: &Constraint, number: u64) -> bool {
        let has_colour = match constraint.colour {
            None => true,
            Some((0, _)) => false,
            Some((divisor, colour)) => number % u64::from(divisor) == u64::from(colour),
        };
        (constraint.range.0..constraint.range.1).contains(&number) && has_colour
    }

    fn number(pick: Pick) -> u64 {
        let (Pick::Frame(mfn) | Pick::Guard(mfn) | Pick::Refused(mfn)) = pick;
        mfn.get()
    }

    #[test]
    fn decide_about_each_frame_once() {
        for constraint in constraints() {
            for (first, nr) in blocks() {
                let picks = Selector::new(constraint, mfn(first), nr).map(number);
                assert!(picks.eq(first..first + nr), "{constraint:?} {first} {nr}");
            }
        }
    }

    #[test]
    fn pick_what_is_asked_and_as_much_as_guards_allow() {
        for constraint in constraints() {
            for (first, nr) in blocks() {
                let picks: Vec<Pick> = Selector::new(constraint, mfn(first), nr).collect();
                let is_frame = |at: Option<usize>| {
                    let pick = at.and_then(|at| picks.get(at));
                    matches!(pick, Some(Pick::Frame(_)))
                };
                for (at, &pick) in picks.iter().enumerate() {
                    let is_accepted = accepts(&constraint, number(pick));
                    assert_eq!(constraint.accepts(number(pick)), is_accepted);
                    let is_at_end = at == 0 || at + 1 == picks.len();
                    let is_next = is_frame(at.checked_sub(1)) || is_frame(Some(at + 1));
                    let expected = match pick {
                        _ if !constraint.is_guarded => match is_accepted {
                            true => Pick::Frame(mfn(number(pick))),
                            false => Pick::Refused(mfn(number(pick))),
                        },
                        // Each of these would break the rule, or waste a frame.
                        Pick::Frame(mfn) if is_accepted && !is_at_end && !is_next => {
                            Pick::Frame(mfn)
                        }
                        _ if is_next => Pick::Guard(mfn(number(pick))),
                        _ if is_accepted && !is_at_end => Pick::Frame(mfn(number(pick))),
                        _ => Pick::Refused(mfn(number(pick))),
                    };
                    assert_eq!(pick, expected, "{constraint:?} {first} {nr}: {picks:?}");
                }
            }
        }
    }

    #[test]
    fn tell_the_guard_behind_a_frame() {
        for constraint in constraints() {
            for (first, nr) in blocks() {
                let mut selector = Selector::new(constraint, mfn(first), nr);
                assert_eq!(selector.next_guard(), None);
                while let Some(pick) = selector.next() {
                    let is_frame = constraint.is_guarded && matches!(pick, Pick::Frame(_));
                    let behind = is_frame.then(|| mfn(number(pick) + 1));
                    assert_eq!(selector.next_guard(), behind);
                    assert_eq!(selector.next_guard(), None);
                }
            }
        }
    }

    #[test]
    fn stop_where_there_are_no_frames_any_more() {
        let last = Mfn::LIMIT - 1;
        let picks: Vec<Pick> = Selector::new(Constraint::NONE, mfn(last), u64::MAX).collect();
        assert_eq!(picks, [Pick::Frame(mfn(last))]);
    }
}

mod exclusions {
    use super::*;

    /// What the module does: each change makes a new set, with room for one range more.
    #[derive(Default)]
    struct Set(Vec<(u64, u64)>);

    impl Set {
        fn change(&mut self, change: impl FnOnce(Exclusions<'_>, &mut [(u64, u64)]) -> usize) {
            let mut ranges = vec![(7, 7); self.0.len() + 1];
            let nr = change(Exclusions(&self.0), &mut ranges);
            ranges.truncate(nr);
            self.0 = ranges;
        }

        fn add(&mut self, start: u64, end: u64) {
            self.change(|old, into| old.with(start, end, into));
        }

        fn remove(&mut self, start: u64, end: u64) {
            self.change(|old, into| old.without(start, end, into));
        }

        /// In order, none of them empty, and none next to another.
        fn is_normal(&self) -> bool {
            self.0.iter().all(|(start, end)| start < end)
                && self.0.windows(2).all(|pair| pair[0].1 < pair[1].0)
        }
    }

    #[test]
    fn all_changes_of_all_small_sets_are_those_of_bits() {
        const BITS: u64 = 7;
        for bits in 0..1u32 << BITS {
            for (start, end) in (0..=BITS).flat_map(|a| (0..=BITS).map(move |b| (a, b))) {
                let range = (0..BITS).filter(|at| start <= *at && *at < end);
                let mask = range.fold(0, |mask, at| mask | (1 << at));
                for (is_add, expected) in [(true, bits | mask), (false, bits & !mask)] {
                    let mut set = Set::default();
                    let of_bits = (0..BITS).filter(|at| (bits >> at) & 1 != 0);
                    of_bits.for_each(|at| set.add(at, at + 1));
                    assert_eq!(set.0.len() as u32, (bits & !(bits << 1)).count_ones());
                    match is_add {
                        true => set.add(start, end),
                        false => set.remove(start, end),
                    }
                    assert!(set.is_normal(), "{:?}", set.0);
                    let runs = (expected & !(expected << 1)).count_ones();
                    assert_eq!(set.0.len() as u32, runs, "neighbours are one");
                    for at in 0..BITS {
                        let is_out = Exclusions(&set.0).has_any(at, at + 1);
                        assert_eq!(is_out, (expected >> at) & 1 != 0, "{at} of {:?}", set.0);
                    }
                }
            }
        }
    }

    /// Somebody empties a part of the machine step by step, in any order.
    #[test]
    fn steps_of_one_range_are_one_range() {
        for step in [1, 3, 64] {
            let mut set = Set::default();
            for at in (0..200).map(|at| at * 77 % 200) {
                set.add(at * step, (at + 1) * step);
                assert!(set.is_normal());
            }
            assert_eq!(set.0, [(0, 200 * step)]);
            set.remove(5, 6);
            assert_eq!(set.0, [(0, 5), (6, 200 * step)]);
            set.remove(0, u64::MAX);
            assert_eq!(set.0, []);
        }
    }

    #[test]
    fn may_be_everything() {
        let mut set = Set::default();
        set.add(0, u64::MAX);
        set.add(1, u64::MAX);
        assert_eq!(set.0, [(0, u64::MAX)]);
        assert!(Exclusions(&set.0).has_any(Mfn::LIMIT - 1, Mfn::LIMIT));
        assert!(Exclusions(&set.0).has_any(Mfn::LIMIT - 1, u64::MAX));
        assert!(!Exclusions(&set.0).has_any(5, 5));
        set.remove(9, 9);
        assert_eq!(set.0, [(0, u64::MAX)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn follow_a_set_of_frames(
            steps in prop::collection::vec((any::<bool>(), 0..300u64, 0..60u64), 1..80),
        ) {
            let mut set = Set::default();
            let mut model = BTreeSet::new();
            for (is_add, start, nr) in steps {
                let end = start + nr;
                if is_add {
                    set.add(start, end);
                    model.extend(start..end);
                } else {
                    set.remove(start, end);
                    model.retain(|at| *at < start || *at >= end);
                }
                prop_assert!(set.is_normal());
                let frames: BTreeSet<u64> =
                    set.0.iter().flat_map(|&(start, end)| start..end).collect();
                prop_assert_eq!(&frames, &model);
                for first in (0..360).step_by(7) {
                    let expected = model.range(first..first + 5).next().is_some();
                    prop_assert_eq!(Exclusions(&set.0).has_any(first, first + 5), expected);
                    let last = model.range(first..first + 9).next_back();
                    let open = last.map_or(first, |last| last + 1);
                    prop_assert_eq!(Exclusions(&set.0).open_from(first, first + 9), open);
                }
            }
        }
    }
}

/// What the other tests rely on: the machine does notice.
mod the_machine_notices {
    use super::*;

    #[test]
    #[should_panic(expected = "without being taken")]
    fn a_second_free() {
        let mut machine: Machine = Machine::new(0..8, End::Lowest);
        let frame = machine.alloc(0).unwrap();
        machine.free(frame);
        machine.free(frame);
    }

    #[test]
    #[should_panic(expected = "without being taken")]
    fn a_frame_from_elsewhere() {
        let mut machine: Machine = Machine::new(0..8, End::Lowest);
        machine.free(mfn(9));
    }

    #[test]
    fn blocks_are_aligned_and_joined_again() {
        let mut machine: Machine<3> = Machine::new(1..24, End::Lowest);
        assert_eq!(machine.alloc(3), Some(mfn(8)));
        assert_eq!(machine.alloc(3), Some(mfn(16)));
        assert_eq!(machine.alloc(3), None);
        assert_eq!(machine.alloc(2), Some(mfn(4)));
        assert_eq!(machine.alloc_run(4), None);
        assert_eq!(machine.alloc_run(3), Some(mfn(1)));
        for frame in (1..24).rev() {
            machine.free(mfn(frame));
        }
        assert_eq!(machine.alloc(3), Some(mfn(8)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_set_is_scattered_in_an_order_of_its_own(
        set in prop::collection::btree_set(0..300u64, 8..150),
        seed: u64,
    ) {
        let frames = order(set.iter().copied(), seed);
        prop_assert!(frames.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1));
        prop_assert_eq!(&frames.iter().copied().collect::<BTreeSet<_>>(), &set);
        prop_assert_eq!(frames.len(), set.len());
        prop_assert_eq!(order(set.iter().rev().copied(), seed), frames);
    }
}
