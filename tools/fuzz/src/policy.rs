// SPDX-License-Identifier: GPL-2.0

use std::collections::BTreeSet;

use arbitrary::Unstructured;
use p2m_pure::frame::Mfn;
use p2m_pure::policy::{Constraint, Exclusions, FrameSource, Pick, Policy, Selector};
use p2m_pure_host::machine::{End, Machine};

use crate::{Run, below, run};

/// The frames that these targets are about.
const NR_FRAMES: u64 = 256;

/// Which frames a region gets, what a selector makes of a block, and sets of excluded frames, each
/// against sets of numbers.
pub fn policy(data: &[u8]) {
    run(data, |bytes| {
        while !bytes.is_empty() {
            match below(bytes, 3)? {
                0 => fill(bytes)?,
                1 => select(bytes)?,
                _ => exclude(bytes)?,
            }
        }
        Ok(())
    });
}

fn fill(bytes: &mut Unstructured<'_>) -> Run {
    let density = 1 + below(bytes, 4)?;
    let mut free = BTreeSet::new();
    for frame in 0..NR_FRAMES {
        if density == 1 || below(bytes, density)? > 0 {
            free.insert(frame);
        }
    }
    let end = match below(bytes, 3)? {
        0 => End::Lowest,
        1 => End::Highest,
        _ => End::Alternating,
    };
    let mut machine = Machine::<4>::new(free.iter().copied(), end);
    if below(bytes, 4)? == 0 {
        machine.fail_after(below(bytes, 16)?);
    }
    let policy = match below(bytes, 3)? {
        0 => Policy::Any,
        1 => Policy::Scatter {
            seed: bytes.arbitrary()?,
        },
        _ => Policy::Contiguous,
    };
    let nr = 1 + below(bytes, 64)?;
    let mut frames = vec![Mfn::ZERO; nr as usize];
    match policy.fill(&mut machine, &mut frames) {
        Ok(()) => {
            let numbers: BTreeSet<u64> = frames.iter().map(|mfn| mfn.get()).collect();
            assert_eq!(numbers.len(), frames.len(), "a frame was given twice");
            assert!(numbers.is_subset(&free));
            let taken: Vec<u64> = numbers.into_iter().collect();
            assert_eq!(machine.taken_frames(), taken, "more was taken than given");
            let is_next = |pair: &[Mfn]| pair[0].checked_add(1) == Some(pair[1]);
            match policy {
                Policy::Any => (),
                Policy::Contiguous => assert!(frames.windows(2).all(is_next)),
                Policy::Scatter { .. } => {
                    let mut pairs = frames.windows(2);
                    assert!(pairs.all(|pair| !pair[0].is_adjacent_to(pair[1])));
                }
            }
        }
        Err(_) => assert!(machine.taken_frames().is_empty(), "an error kept frames"),
    }
    for mfn in machine.taken_frames().into_iter().filter_map(Mfn::new) {
        machine.free(mfn);
    }
    Ok(())
}

fn select(bytes: &mut Unstructured<'_>) -> Run {
    let mut constraint = Constraint {
        range: (0, u64::MAX),
        colour: None,
        is_guarded: bytes.arbitrary()?,
    };
    if bytes.arbitrary()? {
        constraint.range = (below(bytes, NR_FRAMES)?, below(bytes, NR_FRAMES)?);
    }
    if bytes.arbitrary()? {
        let divisor = 1 + below(bytes, 8)? as u32;
        constraint.colour = Some((divisor, below(bytes, divisor.into())? as u32));
    }
    let (first, nr) = (below(bytes, NR_FRAMES)?, below(bytes, 64)?);
    let Some(mfn) = Mfn::new(first) else {
        return Ok(());
    };
    let picks: Vec<Pick> = Selector::new(constraint, mfn, nr).collect();
    assert_eq!(
        picks.len() as u64,
        nr,
        "each frame of a block becomes something"
    );
    let mut guards = BTreeSet::new();
    let mut frames = BTreeSet::new();
    for (number, pick) in (first..).zip(&picks) {
        let (mfn, set) = match pick {
            Pick::Frame(mfn) => (mfn, &mut frames),
            Pick::Guard(mfn) => (mfn, &mut guards),
            Pick::Refused(mfn) => (mfn, &mut BTreeSet::new()),
        };
        assert_eq!(mfn.get(), number, "frames are in order");
        set.insert(number);
    }
    let in_range = |number: u64| (constraint.range.0..constraint.range.1).contains(&number);
    let of_colour = |number: u64| {
        let mut colour = constraint.colour.iter();
        colour.all(|&(divisor, colour)| number % u64::from(divisor) == u64::from(colour))
    };
    assert!(
        frames
            .iter()
            .all(|&number| in_range(number) && of_colour(number))
    );
    if constraint.is_guarded {
        let both = |number: u64| guards.contains(&(number - 1)) && guards.contains(&(number + 1));
        assert!(frames.iter().all(|&number| number > 0 && both(number)));
        let needed = |number: u64| frames.contains(&(number + 1)) || frames.contains(&(number - 1));
        assert!(guards.iter().all(|&number| number == 0 || needed(number)));
    } else {
        assert!(guards.is_empty());
    }
    Ok(())
}

fn exclude(bytes: &mut Unstructured<'_>) -> Run {
    let mut model = BTreeSet::new();
    let mut list: Vec<(u64, u64)> = Vec::new();
    for _ in 0..1 + below(bytes, 32)? {
        let (start, end) = (below(bytes, NR_FRAMES)?, below(bytes, NR_FRAMES)?);
        let mut into = vec![(0, 0); list.len() + 1];
        let nr = if bytes.arbitrary()? {
            model.extend(start..end);
            Exclusions(&list).with(start, end, &mut into)
        } else {
            model.retain(|&number| number < start || end <= number);
            Exclusions(&list).without(start, end, &mut into)
        };
        into.truncate(nr);
        list = into;
        let numbers: Vec<u64> = list.iter().flat_map(|&(start, end)| start..end).collect();
        assert!(numbers.iter().eq(model.iter()), "not the set that it is");
        let is_apart = |pair: &[(u64, u64)]| pair[0].1 < pair[1].0;
        assert!(list.windows(2).all(is_apart), "ranges touch");
        let asked = (below(bytes, NR_FRAMES)?, below(bytes, NR_FRAMES)?);
        let has_any = asked.0 < asked.1 && model.range(asked.0..asked.1).next().is_some();
        assert_eq!(Exclusions(&list).has_any(asked.0, asked.1), has_any);
    }
    Ok(())
}
