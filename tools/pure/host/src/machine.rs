// SPDX-License-Identifier: GPL-2.0

//! A machine with frames to give away.
//!
//! It is a buddy allocator, as the kernel's: free frames are kept in aligned blocks, which are split
//! when they are too large and joined when both halves are free.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use p2m_pure::frame::Mfn;
use p2m_pure::policy::FrameSource;

use crate::fuse::Fuse;

/// From which end a [`Machine`] takes one of several blocks that would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one with the lowest frames.
    Lowest,
    /// The one with the highest frames.
    Highest,
    /// The lowest and the highest in turn.
    Alternating,
}

/// What a [`Machine`] was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Order of the block.
    pub order: u32,
    /// Whether there was one.
    pub is_granted: bool,
}

/// A machine with frames to give away, in blocks of up to `1 << MAX_ORDER`.
#[derive(Clone, Debug)]
pub struct Machine<const MAX_ORDER: u32 = 10> {
    /// The orders of the free blocks, by their first frames.
    free: BTreeMap<u64, u32>,
    /// The first frames of the free blocks, by order.
    by_order: Vec<BTreeSet<u64>>,
    taken: BTreeSet<u64>,
    end: End,
    turn: bool,
    frame_fuse: Fuse,
    stop_fuse: Cell<Fuse>,
    requests: Vec<Request>,
}

impl<const MAX_ORDER: u32> Machine<MAX_ORDER> {
    /// Makes a machine in which these frames are free.
    pub fn new(free: impl IntoIterator<Item = u64>, end: End) -> Self {
        let mut machine = Self {
            free: BTreeMap::new(),
            by_order: vec![BTreeSet::new(); MAX_ORDER as usize + 1],
            taken: BTreeSet::new(),
            end,
            turn: false,
            frame_fuse: Fuse::Never,
            stop_fuse: Cell::new(Fuse::Never),
            requests: Vec::new(),
        };
        for frame in free {
            assert!(frame < Mfn::LIMIT, "no frame has the number {frame}");
            assert!(!machine.is_free(frame), "frame {frame} is listed twice");
            machine.put(frame, 0);
        }
        machine
    }

    /// Makes the allocation after `nr_good` ones fail, and no other.
    pub fn fail_once_after(&mut self, nr_good: u64) {
        self.frame_fuse = Fuse::Once(nr_good);
    }

    /// Makes all allocations after `nr_good` ones fail.
    pub fn fail_after(&mut self, nr_good: u64) {
        self.frame_fuse = Fuse::Forever(nr_good);
    }

    /// Tells the caller to stop when it has asked `nr_questions` times whether it has to.
    pub fn stop_after(&mut self, nr_questions: u64) {
        self.stop_fuse.set(Fuse::Forever(nr_questions));
    }

    /// Returns the frames that are free, in order.
    pub fn free_frames(&self) -> Vec<u64> {
        let block = |(&start, &order)| start..start + (1u64 << order);
        self.free.iter().flat_map(block).collect()
    }

    /// Returns the frames that were taken, in order.
    pub fn taken_frames(&self) -> Vec<u64> {
        self.taken.iter().copied().collect()
    }

    /// Returns all requests for blocks so far.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn is_free(&self, frame: u64) -> bool {
        let below = self.free.range(..=frame).next_back();
        below.is_some_and(|(&start, &order)| frame < start + (1 << order))
    }

    /// Adds a free block, and joins it with its buddy as long as there is one.
    fn put(&mut self, mut start: u64, mut order: u32) {
        while order < MAX_ORDER && self.by_order[order as usize].remove(&(start ^ (1 << order))) {
            self.free.remove(&(start ^ (1 << order)));
            start &= !(1 << order);
            order += 1;
        }
        self.free.insert(start, order);
        self.by_order[order as usize].insert(start);
    }

    /// Takes a free block out.
    fn remove(&mut self, start: u64) -> u32 {
        let order = self.free.remove(&start).expect("the block is free");
        self.by_order[order as usize].remove(&start);
        order
    }

    /// Takes a range of free frames out.
    fn take(&mut self, start: u64, nr: u64) {
        let end = start + nr;
        let (first, _) = self.free.range(..=start).next_back().expect("it is free");
        let blocks: Vec<u64> = self.free.range(*first..end).map(|(&at, _)| at).collect();
        for block in blocks {
            let order = self.remove(block);
            for frame in block..block + (1 << order) {
                if frame < start || frame >= end {
                    self.put(frame, 0);
                } else {
                    assert!(self.taken.insert(frame), "frame {frame} was given twice");
                }
            }
        }
    }

    /// Returns the smallest order, from `order` on, of which there is a block, and the block.
    fn find(&mut self, order: u32) -> Option<u64> {
        let blocks = self
            .by_order
            .get(order as usize..)?
            .iter()
            .find(|blocks| !blocks.is_empty())?;
        self.turn = !self.turn;
        match self.end {
            End::Lowest => blocks.first(),
            End::Highest => blocks.last(),
            End::Alternating if self.turn => blocks.first(),
            End::Alternating => blocks.last(),
        }
        .copied()
    }
}

impl<const MAX_ORDER: u32> FrameSource for Machine<MAX_ORDER> {
    const MAX_ORDER: u32 = MAX_ORDER;

    fn alloc(&mut self, order: u32) -> Option<Mfn> {
        assert!(order <= MAX_ORDER, "order {order} is never to be had");
        let start = if self.frame_fuse.blows() {
            None
        } else {
            self.find(order)
        };
        self.requests.push(Request {
            order,
            is_granted: start.is_some(),
        });
        let start = start?;
        self.take(start, 1 << order);
        Mfn::new(start)
    }

    fn alloc_run(&mut self, nr: usize) -> Option<Mfn> {
        assert_ne!(nr, 0, "a run of no frames was asked for");
        if self.frame_fuse.blows() {
            return None;
        }
        let nr = nr as u64;
        let mut run = 0..0;
        for (&start, &order) in &self.free {
            if run.end != start {
                run.start = start;
            }
            run.end = start + (1 << order);
            if run.end - run.start >= nr {
                self.take(run.start, nr);
                return Mfn::new(run.start);
            }
        }
        None
    }

    #[track_caller]
    fn free(&mut self, mfn: Mfn) {
        assert!(
            self.taken.remove(&mfn.get()),
            "{mfn:?} was given back without being taken"
        );
        self.put(mfn.get(), 0);
    }

    fn is_interrupted(&self) -> bool {
        let mut fuse = self.stop_fuse.get();
        let is_interrupted = fuse.blows();
        self.stop_fuse.set(fuse);
        is_interrupted
    }
}
