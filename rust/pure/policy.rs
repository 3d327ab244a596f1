// SPDX-License-Identifier: GPL-2.0

//! Policies: which machine frames a region gets, and in which order.

use super::frame::Mfn;

/// Provides machine frames. It's the one place where they come in.
///
/// Frames come in blocks, but each goes back on its own.
pub trait FrameSource {
    /// The highest order that [`alloc()`](Self::alloc) can provide.
    const MAX_ORDER: u32;

    /// Returns the first of `1 << order` zeroed frames that follow each other.
    fn alloc(&mut self, order: u32) -> Option<Mfn>;

    /// Returns the first of `nr` zeroed frames that follow each other, however many these are.
    fn alloc_run(&mut self, nr: usize) -> Option<Mfn>;

    /// Takes a frame back.
    fn free(&mut self, mfn: Mfn);

    /// Returns whether the caller was told to stop.
    fn is_interrupted(&self) -> bool;
}

/// What is asked of the frames of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whatever is fastest.
    Any,
    /// No two neighbours are neighbours in the machine, in either direction. The order is a function
    /// of the seed and of the set of frames.
    Scatter {
        /// Selects one of the orders.
        seed: u64,
    },
    /// One machine run.
    Contiguous,
}

/// What is asked of each frame, besides the order that a [`Policy`] puts them into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// The frame is in this range: first frame, and first frame behind.
    pub range: (u64, u64),
    /// The frame's number has this remainder, the second, by this divisor, the first.
    pub colour: Option<(u32, u32)>,
    /// The frames on both sides are guards: they are nobody's, and hold a pattern.
    pub is_guarded: bool,
}

impl Constraint {
    /// Nothing is asked.
    pub const NONE: Self = Self {
        range: (0, u64::MAX),
        colour: None,
        is_guarded: false,
    };

    /// Returns whether a frame is as asked, as far as it alone can tell.
    pub fn accepts(&self, number: u64) -> bool {
        let (start, end) = self.range;
        let has_colour = self.colour.is_none_or(|(divisor, colour)| {
            number.checked_rem(u64::from(divisor)) == Some(u64::from(colour))
        });
        start <= number && number < end && has_colour
    }

    /// Returns whether one of the frames from `start` to before `end` is as asked, as far as it alone
    /// can tell.
    pub fn accepts_any(&self, start: u64, end: u64) -> bool {
        let start = start.max(self.range.0);
        let first = match self.colour {
            None => Some(start),
            Some((divisor, colour)) => {
                let (divisor, colour) = (u64::from(divisor), u64::from(colour));
                // How far it is from `start` to the next one of the colour.
                start.checked_rem(divisor).and_then(|rest| {
                    // OVERFLOW: A remainder is smaller than the divisor. Both have 32 bits.
                    start.checked_add((colour + divisor - rest) % divisor)
                })
            }
        };
        first.is_some_and(|first| first < end && self.accepts(first))
    }
}

/// What becomes of a frame of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// It is as asked.
    Frame(Mfn),
    /// It's next to one.
    Guard(Mfn),
    /// It's of no use.
    Refused(Mfn),
}

/// Goes through a block of frames that follow each other, and picks those that are as asked.
#[derive(Clone, Copy, Debug)]
pub struct Selector {
    constraint: Constraint,
    first: u64,
    next: u64,
    end: u64,
    last_was_frame: bool,
}

impl Selector {
    /// Makes a selector for `nr` frames from `first` on.
    pub fn new(constraint: Constraint, first: Mfn, nr: u64) -> Self {
        Self {
            constraint,
            first: first.get(),
            next: first.get(),
            end: first.get().saturating_add(nr),
            last_was_frame: false,
        }
    }

    /// Returns the guard behind the frame that was picked last, if that was the last thing that
    /// happened.
    pub fn next_guard(&mut self) -> Option<Mfn> {
        if self.constraint.is_guarded && self.last_was_frame {
            match self.next() {
                Some(Pick::Guard(mfn)) => return Some(mfn),
                // A frame with a guard is never the last one of a block.
                _ => return None,
            }
        }
        None
    }

    /// Returns whether a frame of the block, not behind one that was picked, can be picked.
    fn can_pick(&self, number: u64) -> bool {
        let has_sides = self.first < number && number.saturating_add(1) < self.end;
        self.constraint.accepts(number) && (has_sides || !self.constraint.is_guarded)
    }
}

impl Iterator for Selector {
    type Item = Pick;

    fn next(&mut self) -> Option<Pick> {
        let number = self.next;
        let mfn = Mfn::new(number).filter(|_| number < self.end)?;
        // OVERFLOW: An MFN is below `Mfn::LIMIT`.
        self.next += 1;
        let is_guarded = self.constraint.is_guarded;
        let is_behind_frame = is_guarded && self.last_was_frame;
        self.last_was_frame = !is_behind_frame && self.can_pick(number);
        Some(if self.last_was_frame {
            Pick::Frame(mfn)
        } else if is_behind_frame || (is_guarded && self.can_pick(self.next)) {
            Pick::Guard(mfn)
        } else {
            Pick::Refused(mfn)
        })
    }
}

/// Ranges of machine frames that are kept out of: first frame, and first frame behind. They are in
/// order, none is empty, and there is a frame between one and the next.
#[derive(Clone, Copy, Debug)]
pub struct Exclusions<'a>(pub &'a [(u64, u64)]);

impl Exclusions<'_> {
    /// Returns whether one of the frames from `start` to before `end` is excluded.
    pub fn has_any(&self, start: u64, end: u64) -> bool {
        let nr_before = self.0.partition_point(|&(_, stop)| stop <= start);
        let next = self.0.get(nr_before);
        start < end && next.is_some_and(|&(first, _)| first < end)
    }

    /// Returns the lowest frame from which on to before `end` none is excluded: `start`, a frame behind
    /// it, or `end`.
    pub fn open_from(&self, start: u64, end: u64) -> u64 {
        let nr_before = self.0.partition_point(|&(first, _)| first < end);
        let last = nr_before.checked_sub(1).and_then(|last| self.0.get(last));
        last.map_or(start, |&(_, stop)| start.max(stop.min(end)))
    }

    /// Stores to `into` the ranges with frames from `start` to before `end` besides, and returns how
    /// many they are. There has to be room for one more than now.
    pub fn with(&self, start: u64, end: u64, into: &mut [(u64, u64)]) -> usize {
        if start >= end {
            return self.without(start, end, into);
        }
        // What overlaps the new range, or is next to it, becomes one with it.
        let nr_before = self.0.partition_point(|&(_, stop)| stop < start);
        let nr_until = self.0.partition_point(|&(first, _)| first <= end);
        let before = self.0.get(..nr_before).unwrap_or_default();
        let merged = self.0.get(nr_before..nr_until).unwrap_or_default();
        let behind = self.0.get(nr_until..).unwrap_or_default();
        let first = merged.first().map_or(start, |first| first.0.min(start));
        let stop = merged.last().map_or(end, |last| last.1.max(end));
        let all = before.iter().copied().chain([(first, stop)]);
        store(all.chain(behind.iter().copied()), into)
    }

    /// Stores to `into` the ranges without frames from `start` to before `end`, and returns how many
    /// they are. There has to be room for one more than now.
    pub fn without(&self, start: u64, end: u64, into: &mut [(u64, u64)]) -> usize {
        let parts = |&(first, stop): &(u64, u64)| {
            let is_apart = start >= end || stop <= start || end <= first;
            let parts = match is_apart {
                true => [(first, stop), (0, 0)],
                false => [(first, start), (end, stop)],
            };
            parts.into_iter().filter(|(first, stop)| first < stop)
        };
        store(self.0.iter().flat_map(parts), into)
    }
}

/// Stores as many ranges as there are, and returns their number.
fn store(ranges: impl Iterator<Item = (u64, u64)>, into: &mut [(u64, u64)]) -> usize {
    let places = into.iter_mut().zip(ranges);
    places.map(|(place, range)| *place = range).count()
}

/// Frames that are to be placed one by one, next to others that have their places already.
pub struct Candidates<'a> {
    frames: &'a mut [Mfn],
    nr: usize,
    must_scatter: bool,
}

impl<'a> Candidates<'a> {
    /// How many more frames than places make it practically certain that each place gets one.
    pub const SPARE: usize = 8;

    /// Fills `frames` from `source`: all of it, or after an error nothing. What isn't placed goes
    /// back by [`give_back()`](Self::give_back).
    pub fn new<F: FrameSource>(
        source: &mut F,
        frames: &'a mut [Mfn],
        policy: Policy,
    ) -> Result<Self, FrameError> {
        collect(source, frames)?;
        let must_scatter = match policy {
            Policy::Scatter { seed } => {
                sort(frames);
                shuffle(frames, &mut Random(seed));
                true
            }
            Policy::Any | Policy::Contiguous => false,
        };
        let nr = frames.len();
        Ok(Self {
            frames,
            nr,
            must_scatter,
        })
    }

    /// Takes a frame for a place between two others.
    #[must_use]
    pub fn take(&mut self, neighbours: [Option<Mfn>; 2]) -> Option<Mfn> {
        let rest = self.frames.get_mut(..self.nr)?;
        let is_good = |mfn: &Mfn| {
            let is_apart = |other: &Mfn| !mfn.is_adjacent_to(*other);
            !self.must_scatter || neighbours.iter().flatten().all(is_apart)
        };
        let index = rest.iter().rposition(is_good)?;
        // OVERFLOW: There is one at `index`.
        self.nr -= 1;
        rest.swap(index, self.nr);
        rest.get(self.nr).copied()
    }

    /// Puts a frame back which wasn't needed.
    pub fn put(&mut self, mfn: Mfn) {
        if let Some(place) = self.frames.get_mut(self.nr) {
            *place = mfn;
            // OVERFLOW: There is a place at `nr`.
            self.nr += 1;
        }
    }

    /// Gives back what wasn't placed.
    pub fn give_back<F: FrameSource>(self, source: &mut F) {
        for &mfn in self.frames.iter().take(self.nr) {
            source.free(mfn);
        }
    }
}

/// Why frames can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// There is no memory.
    NoMemory,
    /// There is memory, but no run as long as it would have to be.
    NoRun,
    /// The caller was told to stop.
    Interrupted,
}

impl Policy {
    /// Fills `frames` with frames from `source`: all of it, or after an error nothing.
    pub fn fill<F: FrameSource>(
        self,
        source: &mut F,
        frames: &mut [Mfn],
    ) -> Result<(), FrameError> {
        match self {
            Self::Any => collect(source, frames),
            Self::Scatter { seed } if frames.len() < MIN_SCATTER => {
                let mut spare = [Mfn::ZERO; 2 * MIN_SCATTER];
                // PANIC: There are twice as many as `MIN_SCATTER`.
                let candidates = &mut spare[..2 * frames.len()];
                collect(source, candidates)?;
                sort(candidates);
                // Every second of different numbers in order: the difference is at least 2.
                for (index, &mfn) in candidates.iter().enumerate() {
                    match frames.get_mut(index / 2) {
                        Some(frame) if index % 2 == 0 => *frame = mfn,
                        _ => source.free(mfn),
                    }
                }
                shuffle(frames, &mut Random(seed));
                Ok(())
            }
            Self::Scatter { seed } => {
                collect(source, frames)?;
                scatter(frames, seed);
                Ok(())
            }
            Self::Contiguous => {
                let first = source.alloc_run(frames.len()).ok_or(FrameError::NoRun)?;
                for (frame, mfn) in frames.iter_mut().zip(run(first)) {
                    *frame = mfn;
                }
                Ok(())
            }
        }
    }
}

/// Returns the frames from `first` on.
fn run(first: Mfn) -> impl Iterator<Item = Mfn> {
    (0..).map_while(move |nr| first.checked_add(nr))
}

/// Fills `frames` in as large blocks as there are.
///
/// It never asks again for a size that was refused, so a fragmented machine costs one failure an
/// order.
fn collect<F: FrameSource>(source: &mut F, frames: &mut [Mfn]) -> Result<(), FrameError> {
    let mut order = F::MAX_ORDER;
    let mut done = 0;
    while done < frames.len() {
        // PANIC: `done` is smaller than the length.
        let rest = &mut frames[done..];
        order = order.min(rest.len().ilog2());
        let error = if source.is_interrupted() {
            FrameError::Interrupted
        } else if let Some(first) = source.alloc(order) {
            for (frame, mfn) in rest.iter_mut().take(1 << order).zip(run(first)) {
                *frame = mfn;
            }
            // OVERFLOW: The block isn't larger than the rest.
            done += 1 << order;
            continue;
        } else if order > 0 {
            order -= 1;
            continue;
        } else {
            FrameError::NoMemory
        };
        for &mfn in frames.iter().take(done) {
            source.free(mfn);
        }
        return Err(error);
    }
    Ok(())
}

/// From this number on, different frames can always be put into an order without neighbours. Of
/// three that follow each other, the one in the middle is next to both others.
pub const MIN_SCATTER: usize = 4;

/// How often a neighbour is exchanged for another frame before [`scatter()`] does without chance.
const MAX_TRIES: usize = 128;

/// Puts at least [`MIN_SCATTER`] different frames into an order in which no two neighbours are
/// neighbours in the machine. The order depends on the set of frames and the seed only.
fn scatter(frames: &mut [Mfn], seed: u64) {
    let mut random = Random(seed);
    sort(frames);
    shuffle(frames, &mut random);
    // A random order has two such neighbours on average, whatever its length.
    for index in 1..frames.len() {
        if is_apart(frames, index) {
            continue;
        }
        let repaired = (0..MAX_TRIES).any(|_| {
            let other = random.below(frames.len());
            frames.swap(index, other);
            let is_good = [index, index + 1, other, other + 1]
                .iter()
                .all(|&place| is_apart(frames, place));
            if !is_good {
                frames.swap(index, other);
            }
            is_good
        });
        if !repaired {
            return interleave(frames);
        }
    }
}

/// Returns whether the frames before and at `index` are no neighbours. True at either end.
fn is_apart(frames: &[Mfn], index: usize) -> bool {
    match (
        index.checked_sub(1).and_then(|before| frames.get(before)),
        frames.get(index),
    ) {
        (Some(before), Some(frame)) => !before.is_adjacent_to(*frame),
        _ => true,
    }
}

/// Puts the frames into an order without neighbours that needs no luck: every second one, then the
/// others.
fn interleave(frames: &mut [Mfn]) {
    sort(frames);
    // In place, without memory: rotate the odd places of ever longer beginnings to the front. Only
    // sets of a few frames come here.
    for place in 0..frames.len() / 2 {
        // PANIC: `2 * place + 1` is smaller than the length.
        frames[place..=2 * place + 1].rotate_right(1);
    }
}

/// Sorts frames.
fn sort(frames: &mut [Mfn]) {
    sort_by(frames, Mfn::get);
}

/// Sorts what has a frame, by its number, bit by bit from the highest one in which they differ.
///
/// Frames come in blocks, and a block is in order. So few bits have to be looked at, in long runs
/// of the same value, and what remains is found to be in order.
pub fn sort_by<T: Copy>(items: &mut [T], number: impl Fn(T) -> u64 + Copy) {
    let mut rest = items;
    while !rest.is_sorted_by_key(|&item| number(item)) {
        let first = rest.first().map_or(0, |&item| number(item));
        let differing = rest
            .iter()
            .fold(0, |bits, &item| bits | (number(item) ^ first));
        let Some(bit) = differing.checked_ilog2() else {
            break;
        };
        let nr_zeros = partition(rest, |item| (number(item) >> bit) & 1 != 0);
        // PANIC: `partition()` returns a position in the slice.
        let (zeros, ones) = rest.split_at_mut(nr_zeros);
        // As each step is about a lower bit, there are at most as many as an MFN has.
        sort_by(zeros, number);
        rest = ones;
    }
}

/// Moves items with a bit clear before those that have it set, and returns how many they are.
fn partition<T: Copy>(items: &mut [T], is_set: impl Fn(T) -> bool) -> usize {
    let is_set = |item: &T| is_set(*item);
    let (mut start, mut end) = (0, items.len());
    loop {
        while start < end && !items.get(start).is_some_and(is_set) {
            start += 1;
        }
        while start < end && items.get(end - 1).is_some_and(is_set) {
            end -= 1;
        }
        if start == end {
            return start;
        }
        // OVERFLOW: There is one with the bit set at `start`, and one without before `end`.
        end -= 1;
        items.swap(start, end);
        start += 1;
    }
}

/// Puts the frames into a random order (Fisher and Yates).
fn shuffle(frames: &mut [Mfn], random: &mut Random) {
    for len in (2..=frames.len()).rev() {
        let other = random.below(len);
        frames.swap(len - 1, other);
    }
}

/// SplitMix64, by Sebastiano Vigna: small, fast, and every seed is as good as any other.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        // The high half of the product (Lemire). Its bias is one in 2^64 / limit.
        // CAST: The high half is below `limit`.
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}
