// SPDX-License-Identifier: GPL-2.0

//! A domain made of the pure part as the module makes it, and what is compared after each step.

use std::cell::RefCell;
use std::collections::BTreeMap;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::map::{Gone, Maps, Views, Which, Writer};
use p2m_pure::policy::{
    self, Candidates, Constraint, Exclusions, FrameError, FrameSource, Pick, Selector,
};
use p2m_pure_host::machine::{End, Machine};
use p2m_pure_host::store::Store;

use crate::format::Step;
use crate::model::{Cell, Effect, Outcome, IDENTITY, LENT, SPACE};
use crate::ops::{Op, Policy, GUARDED, ON_DEMAND};

/// The machine has 64 MiB.
const MACHINE: u64 = 1 << 14;

const BATCH: u64 = 512;

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).expect("a PFN")
}

fn range(start: u64, nr: u64) -> PfnRange {
    PfnRange::new(start, nr).expect("a range")
}

/// Frames of the machine, with what is asked of them, and without those that are kept out of.
struct Source<'a> {
    machine: &'a mut Machine,
    constraint: Constraint,
    excluded: (u64, u64),
    /// What is of no use, until the end.
    refused: Vec<Mfn>,
    block: Option<Selector>,
    guards: Vec<Mfn>,
}

impl<'a> Source<'a> {
    fn new(machine: &'a mut Machine, is_guarded: bool, excluded: (u64, u64)) -> Self {
        Self {
            machine,
            constraint: Constraint {
                is_guarded,
                ..Constraint::NONE
            },
            excluded,
            refused: Vec::new(),
            block: None,
            guards: Vec::new(),
        }
    }

    fn block(&mut self, order: u32) -> Option<Mfn> {
        let excluded = [self.excluded];
        let excluded = Exclusions(match self.excluded.0 < self.excluded.1 {
            true => &excluded,
            false => &[],
        });
        loop {
            let first = self.machine.alloc(order)?;
            let end = first.get() + (1 << order);
            if !excluded.has_any(first.get(), end) {
                return Some(first);
            }
            let frames = (first.get()..end).filter_map(Mfn::new);
            self.refused.extend(frames);
        }
    }

    fn pick(&mut self) -> Option<Mfn> {
        loop {
            match self.block.as_mut().and_then(Iterator::next) {
                Some(Pick::Frame(mfn)) => return Some(mfn),
                Some(Pick::Guard(mfn)) => self.guards.push(mfn),
                Some(Pick::Refused(mfn)) => self.refused.push(mfn),
                None => {
                    let order = (2..=5)
                        .rev()
                        .find_map(|order| Some((self.block(order)?, order)));
                    let (first, order) = order?;
                    self.block = Some(Selector::new(self.constraint, first, 1 << order));
                }
            }
        }
    }

    /// Gives back what is of no use, and returns the guards.
    fn finish(mut self) -> Vec<Mfn> {
        if let Some(guard) = self.block.as_mut().and_then(Selector::next_guard) {
            self.guards.push(guard);
        }
        for pick in self.block.take().into_iter().flatten() {
            let (Pick::Frame(mfn) | Pick::Guard(mfn) | Pick::Refused(mfn)) = pick;
            self.refused.push(mfn);
        }
        for &mfn in &self.refused {
            self.machine.free(mfn);
        }
        self.guards
    }
}

impl FrameSource for Source<'_> {
    const MAX_ORDER: u32 = <Machine as FrameSource>::MAX_ORDER;

    fn alloc(&mut self, order: u32) -> Option<Mfn> {
        match self.constraint.is_guarded {
            false => self.block(order),
            true if order > 0 => None,
            true => self.pick(),
        }
    }

    fn alloc_run(&mut self, nr: usize) -> Option<Mfn> {
        self.machine.alloc_run(nr)
    }

    fn free(&mut self, mfn: Mfn) {
        self.machine.free(mfn);
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

/// Keeps a P2M of its own, from what it's told.
#[derive(Default)]
struct Follower(RefCell<BTreeMap<u64, Entry>>);

impl Views for Follower {
    fn leaf_replaced(&self, _: Which, _: u64) {}

    fn changed(&self, pfn: Pfn, old: Entry, new: Entry) {
        let mut entries = self.0.borrow_mut();
        let before = match new {
            Entry::Invalid => entries.remove(&pfn.get()),
            new => entries.insert(pfn.get(), new),
        };
        assert_eq!(before.unwrap_or(Entry::Invalid), old, "PFN {pfn:?}");
    }
}

#[derive(Clone, Copy)]
struct Region {
    nr: u64,
    policy: policy::Policy,
    flags: u32,
}

pub(crate) struct Replay {
    machine: Machine,
    store: Store,
    maps: Maps,
    writer: Writer,
    views: Follower,
    regions: BTreeMap<u64, Region>,
    /// What is in each frame.
    contents: BTreeMap<u64, u64>,
    /// The frames of the other domain, and how many slots each is in.
    lent: Vec<(Mfn, u64)>,
    /// What the steps say is there.
    expected: BTreeMap<u64, Cell>,
}

type Done = Result<u64, &'static str>;

impl Replay {
    pub(crate) fn new() -> Self {
        let mut machine = Machine::new(1..MACHINE, End::Alternating);
        let lent = (0..LENT).map(|_| (machine.alloc(0).expect("memory"), 0));
        let lent = lent.collect();
        let store = Store::new(256);
        let (maps, writer) = Maps::new(&store).expect("memory");
        Self {
            machine,
            store,
            maps,
            writer,
            views: Follower::default(),
            regions: BTreeMap::new(),
            contents: BTreeMap::new(),
            lent,
            expected: BTreeMap::new(),
        }
    }

    fn entry(&self, number: u64) -> Entry {
        self.maps.lookup(&self.store, pfn(number))
    }

    fn owned(&self, number: u64) -> Option<Mfn> {
        self.entry(number).owned()
    }

    fn region(&self, number: u64) -> Option<(u64, Region)> {
        let (&base, &region) = self.regions.range(..=number).next_back()?;
        (number < base + region.nr).then_some((base, region))
    }

    fn check_populated(&self, start: u64, nr: u64) -> Result<(), &'static str> {
        let is_in = |number| self.region(number).is_some();
        match (start..start + nr).all(is_in) {
            true => Ok(()),
            false => Err("ENOENT"),
        }
    }

    fn neighbours(&self, number: u64) -> [Option<Mfn>; 2] {
        let before = number.checked_sub(1).and_then(|number| self.owned(number));
        [before, self.owned(number + 1)]
    }

    fn set(&mut self, number: u64, entry: Entry) -> Entry {
        let set = self.maps.set(
            &mut self.writer,
            &self.store,
            &self.views,
            pfn(number),
            entry,
        );
        set.expect("there is memory, and no frame is used twice")
    }

    fn put_new(&mut self, number: u64, mfn: Mfn) {
        self.set(number, Entry::Present(mfn));
        self.contents.insert(mfn.get(), 0);
    }

    fn free(&mut self, mfn: Mfn) {
        self.contents.remove(&mfn.get());
        self.machine.free(mfn);
    }

    fn install_guards(&mut self, guards: Vec<Mfn>) {
        for mfn in guards {
            if self.maps.has_neighbour(&self.store, mfn) {
                self.maps
                    .set_guard(&mut self.writer, &self.store, &self.views, mfn)
                    .expect("memory");
            } else {
                self.machine.free(mfn);
            }
        }
    }

    fn depopulate(&mut self, start: u64, nr: u64) -> u64 {
        let mut gone = Vec::new();
        self.maps.clear(
            &mut self.writer,
            &self.store,
            &self.views,
            range(start, nr),
            |frame| gone.push(frame),
        );
        let mut nr_pages = 0;
        for frame in gone {
            match frame {
                Gone::Frame(mfn) | Gone::Guard(mfn) => self.free(mfn),
                Gone::Foreign(mfn) => self.put_back(mfn),
            }
            nr_pages += u64::from(!matches!(frame, Gone::Guard(_)));
        }
        nr_pages
    }

    fn put_back(&mut self, mfn: Mfn) {
        let lent = self.lent.iter_mut().find(|(lent, _)| *lent == mfn);
        lent.expect("a frame that was lent").1 -= 1;
    }

    /// Takes frames, puts them where `place` says, and gives the rest back.
    fn with_candidates(
        &mut self,
        nr: usize,
        policy: policy::Policy,
        is_guarded: bool,
        excluded: (u64, u64),
        mut place: impl FnMut(&mut Self, &mut Candidates<'_>),
    ) -> Result<(), FrameError> {
        let spare = match policy {
            policy::Policy::Scatter { .. } => Candidates::SPARE,
            _ => 0,
        };
        let mut frames = vec![Mfn::ZERO; nr + spare];
        let mut machine = std::mem::replace(&mut self.machine, Machine::new([], End::Lowest));
        let mut source = Source::new(&mut machine, is_guarded, excluded);
        let candidates = Candidates::new(&mut source, &mut frames, policy);
        let guards = source.finish();
        self.machine = machine;
        let mut candidates = candidates?;
        place(self, &mut candidates);
        candidates.give_back(&mut self.machine);
        self.install_guards(guards);
        Ok(())
    }

    fn do_step(&mut self, op: &Op) -> Result<Option<u64>, (&'static str, Option<u64>)> {
        let whole = |done: Done| match done {
            Ok(_) => Ok(None),
            Err(error) => Err((error, None)),
        };
        let counted = |done: Done| match done {
            Ok(nr) => Ok(Some(nr)),
            Err(error) => Err((error, None)),
        };
        match *op {
            Op::Create {
                base,
                nr,
                policy,
                seed,
                flags,
            } => whole(self.create(base, nr, rule(policy, seed), flags)),
            Op::Destroy { base } => whole(match self.regions.remove(&base) {
                None => Err("ENOENT"),
                Some(region) => Ok(self.depopulate(base, region.nr)),
            }),
            Op::Touch { pfn, tag } => whole(self.touch(pfn, tag)),
            Op::Release { pfn, nr } => self.in_batches(pfn, nr, |me, start, nr| {
                me.check_populated(start, nr)?;
                Ok(me.depopulate(start, nr))
            }),
            Op::Populate { pfn, nr } => self.in_batches(pfn, nr, Self::populate),
            Op::Move {
                pfn,
                nr,
                policy,
                seed,
            } => self.in_batches(pfn, nr, |me, start, nr| {
                let has_frame = |&number: &u64| me.owned(number).is_some();
                let pfns: Vec<u64> = (start..start + nr).filter(has_frame).collect();
                me.move_pages(&pfns, rule(policy, seed), (0, 0))
            }),
            Op::Contiguous { pfn, order } => whole(self.make_contiguous(pfn, 1 << order)),
            Op::Exchange { a, b, nr } => counted(self.exchange(a, b, nr)),
            Op::Evacuate { pfn, order } => whole(self.evacuate(pfn, order)),
            Op::Lend { slot, lent } => whole(self.lend(slot, lent)),
            Op::Unlend { slot } => whole(match self.entry(slot) {
                Entry::Foreign(_) => Ok(self.depopulate(slot, 1)),
                _ => Err("EINVAL"),
            }),
            Op::Identity { pfn, nr } => whole(self.make_identity(pfn, nr)),
        }
    }

    fn in_batches(
        &mut self,
        start: u64,
        nr: u64,
        mut work: impl FnMut(&mut Self, u64, u64) -> Done,
    ) -> Result<Option<u64>, (&'static str, Option<u64>)> {
        let mut total = 0;
        let mut next = start;
        while next < start + nr {
            let end = ((next / BATCH + 1) * BATCH).min(start + nr);
            total += work(self, next, end - next).map_err(|error| (error, Some(total)))?;
            next = end;
        }
        Ok(Some(total))
    }

    fn create(&mut self, base: u64, nr: u64, policy: policy::Policy, flags: u32) -> Done {
        if policy == policy::Policy::Contiguous && flags != 0 {
            return Err("EINVAL");
        }
        if (base..base + nr).any(|number| self.region(number).is_some()) {
            return Err("EEXIST");
        }
        let region = Region { nr, policy, flags };
        self.regions.insert(base, region);
        if flags & ON_DEMAND == 0 {
            let mut frames = vec![Mfn::ZERO; nr as usize];
            let mut source = Source::new(&mut self.machine, flags & GUARDED != 0, (0, 0));
            let filled = policy.fill(&mut source, &mut frames);
            let guards = source.finish();
            filled.map_err(|_| "EADDRNOTAVAIL")?;
            for (number, mfn) in (base..).zip(frames) {
                self.put_new(number, mfn);
            }
            self.install_guards(guards);
        }
        Ok(nr)
    }

    fn touch(&mut self, number: u64, tag: u64) -> Done {
        let mfn = match (self.entry(number), self.region(number)) {
            (Entry::Present(mfn), _) => mfn,
            (Entry::Invalid, Some((_, region))) if region.flags & ON_DEMAND != 0 => {
                let is_guarded = region.flags & GUARDED != 0;
                self.with_candidates(1, region.policy, is_guarded, (0, 0), |me, candidates| {
                    let mfn = candidates.take(me.neighbours(number)).expect("a frame");
                    me.put_new(number, mfn);
                })
                .map_err(|_| "SIGBUS")?;
                self.owned(number).ok_or("SIGBUS")?
            }
            _ => return Err("SIGBUS"),
        };
        self.contents.insert(mfn.get(), tag);
        Ok(1)
    }

    fn populate(&mut self, start: u64, nr: u64) -> Done {
        self.check_populated(start, nr)?;
        let mut total = 0;
        let mut next = start;
        while next < start + nr {
            let (base, region) = self.region(next).ok_or("ENOENT")?;
            let end = (base + region.nr).min(start + nr);
            let is_missing = |&number: &u64| self.entry(number) == Entry::Invalid;
            let missing: Vec<u64> = (next..end).filter(is_missing).collect();
            let policy = match region.policy {
                policy::Policy::Contiguous => policy::Policy::Any,
                policy => policy,
            };
            let is_guarded = region.flags & GUARDED != 0;
            self.with_candidates(
                missing.len(),
                policy,
                is_guarded,
                (0, 0),
                |me, candidates| {
                    for &number in &missing {
                        let mfn = candidates.take(me.neighbours(number)).expect("a frame");
                        me.put_new(number, mfn);
                    }
                },
            )
            .map_err(|_| "EADDRNOTAVAIL")?;
            total += missing.len() as u64;
            next = end;
        }
        Ok(total)
    }

    fn move_pages(&mut self, pfns: &[u64], policy: policy::Policy, excluded: (u64, u64)) -> Done {
        let mut total = 0;
        let region = |number: &u64| self.region(*number).map(|(base, _)| base);
        let parts = pfns.chunk_by(|a, b| region(a) == region(b));
        let parts: Vec<Vec<u64>> = parts.map(<[u64]>::to_vec).collect();
        for part in parts {
            let (_, region) = self.region(part[0]).ok_or("ENOENT")?;
            let is_guarded = region.flags & GUARDED != 0;
            let mut gone = Vec::new();
            self.with_candidates(
                part.len(),
                policy,
                is_guarded,
                excluded,
                |me, candidates| {
                    for &number in &part {
                        let new = candidates.take(me.neighbours(number)).expect("a frame");
                        let Entry::Present(old) = me.set(number, Entry::Present(new)) else {
                            panic!("there was a frame");
                        };
                        let tag = me.contents.remove(&old.get()).expect("contents");
                        me.contents.insert(new.get(), tag);
                        me.maps
                            .drop_guards(&mut me.writer, &me.store, &me.views, old, |mfn| {
                                gone.push(mfn)
                            });
                        gone.push(old);
                    }
                },
            )
            .map_err(|_| "EADDRNOTAVAIL")?;
            let (first, last) = (gone.iter().min(), gone.iter().max());
            if let (Some(&first), Some(&last)) = (first, last) {
                self.maps
                    .prune_frames(&mut self.writer, &self.store, &self.views, (first, last));
            }
            for mfn in gone {
                self.machine.free(mfn);
            }
            total += part.len() as u64;
        }
        Ok(total)
    }

    /// What all regions of a range ask for, if it's the same.
    fn common(&self, start: u64, nr: u64) -> Result<bool, &'static str> {
        let is_guarded = |number| {
            let region = self.region(number);
            region.is_some_and(|(_, region)| region.flags & GUARDED != 0)
        };
        let first = is_guarded(start);
        match (start..start + nr).all(|number| is_guarded(number) == first) {
            true => Ok(first),
            false => Err("EINVAL"),
        }
    }

    fn make_contiguous(&mut self, start: u64, nr: u64) -> Done {
        self.check_populated(start, nr)?;
        if self.common(start, nr)? {
            return Err("EINVAL");
        }
        let order = nr.ilog2();
        let first = self.machine.alloc(order).ok_or("EADDRNOTAVAIL")?;
        let run = || (first.get()..).map(|number| Mfn::new(number).expect("a frame"));
        let last = run().nth(nr as usize - 1).expect("a frame");
        let (maps, store, writer) = (&self.maps, &self.store, &mut self.writer);
        if (start..start + nr).any(|number| maps.lookup(store, pfn(number)).owned().is_none()) {
            for mfn in run().take(nr as usize) {
                self.machine.free(mfn);
            }
            return Err("EFAULT");
        }
        maps.reserve_frames(writer, store, &self.views, (first, last))
            .expect("memory");
        // From here on nothing is allocated.
        store.fail_after(0);
        let mut span = (first, last);
        for (number, new) in (start..start + nr).zip(run()) {
            let old = maps
                .replace(writer, store, &self.views, pfn(number), new)
                .expect("a frame");
            let tag = self.contents.remove(&old.get()).expect("contents");
            self.contents.insert(new.get(), tag);
            // A guard of another region may be next to it, and to nothing else any more.
            maps.drop_guards(writer, store, &self.views, old, |mfn| {
                self.machine.free(mfn);
            });
            self.machine.free(old);
            span = (span.0.min(old), span.1.max(old));
        }
        maps.prune_frames(writer, store, &self.views, span);
        store.fail_never();
        Ok(nr)
    }

    fn exchange(&mut self, a: u64, b: u64, nr: u64) -> Done {
        if a < b + nr && b < a + nr {
            return Err("EINVAL");
        }
        self.check_populated(a, nr)?;
        self.check_populated(b, nr)?;
        if self.common(a, nr)? != self.common(b, nr)? {
            return Err("EINVAL");
        }
        let has_frame = |number| self.owned(number).is_some();
        if !(a..a + nr).chain(b..b + nr).all(has_frame) {
            return Err("EFAULT");
        }
        for (a, b) in (a..a + nr).zip(b..b + nr) {
            let frames = [a, b].map(|number| self.owned(number).expect("a frame").get());
            // The contents stay where they are.
            let tags = frames.map(|frame| self.contents[&frame]);
            self.maps
                .exchange(&mut self.writer, &self.store, &self.views, (pfn(a), pfn(b)));
            self.contents.insert(frames[0], tags[1]);
            self.contents.insert(frames[1], tags[0]);
        }
        Ok(nr)
    }

    fn evacuate(&mut self, number: u64, order: u32) -> Done {
        let mfn = self.owned(number).ok_or("EFAULT")?;
        let (start, end) = window(mfn, order);
        let mut pfns = Vec::new();
        let mut next = Mfn::new(start);
        while let Some((mfn, pfn)) =
            next.and_then(|next| self.maps.next_frame(&self.store, next, end))
        {
            pfns.push(pfn.get());
            next = mfn.checked_add(1);
        }
        pfns.sort_unstable();
        self.move_pages(&pfns, policy::Policy::Any, (start, end))
    }

    fn lend(&mut self, slot: u64, lent: u64) -> Done {
        let mfn = self.lent.get(lent as usize).ok_or("EFAULT")?.0;
        self.region(slot).ok_or("ENOENT")?;
        if self.entry(slot) != Entry::Invalid {
            return Err("EEXIST");
        }
        self.set(slot, Entry::Foreign(mfn));
        self.lent[lent as usize].1 += 1;
        Ok(1)
    }

    fn make_identity(&mut self, start: u64, nr: u64) -> Done {
        if start < IDENTITY.start || start + nr > IDENTITY.end {
            return Err("EINVAL");
        }
        self.check_populated(start, nr)?;
        if (start..start + nr).any(|number| self.entry(number) != Entry::Invalid) {
            return Err("EEXIST");
        }
        for number in start..start + nr {
            let mfn = Mfn::new(number).expect("a frame");
            self.set(number, Entry::Identity(mfn));
        }
        Ok(nr)
    }

    /// Does a step, and compares everything with what it says.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), String> {
        let before = self.frames();
        let window = match step.op {
            Op::Evacuate { pfn, order } => self.owned(pfn).map(|mfn| window(mfn, order)),
            _ => None,
        };
        let outcome = match self.do_step(&step.op) {
            Ok(None) => Outcome::Ok,
            Ok(Some(nr)) => Outcome::Done(nr),
            Err((error, None)) => Outcome::Failed(error),
            Err((error, Some(nr))) => Outcome::Partly(error, nr),
        };
        if outcome != step.outcome {
            return Err(format!("{outcome}, not {}", step.outcome));
        }
        let after = self.frames();
        self.compare_frames(&before, &after, &step.effects, window)?;
        for effect in &step.effects {
            if let Effect::Is { pfn, nr, cell } = *effect {
                for number in pfn..pfn + nr {
                    self.expected.insert(number, cell);
                }
            }
        }
        self.compare_cells()?;
        self.audit()
    }

    /// The frames of all PFNs.
    fn frames(&self) -> BTreeMap<u64, u64> {
        let frames = numbers().filter_map(|number| Some((number, self.owned(number)?.get())));
        frames.collect()
    }

    fn compare_frames(
        &self,
        before: &BTreeMap<u64, u64>,
        after: &BTreeMap<u64, u64>,
        effects: &[Effect],
        window: Option<(u64, u64)>,
    ) -> Result<(), String> {
        let mut expected = before.clone();
        for effect in effects {
            match *effect {
                // What comes and what goes has been told, and so has what changes its frame.
                Effect::Is { pfn, nr, .. } => {
                    for number in pfn..pfn + nr {
                        match (before.get(&number), after.get(&number)) {
                            (Some(_), None) => expected.remove(&number),
                            (None, Some(&new)) => expected.insert(number, new),
                            _ => None,
                        };
                    }
                }
                Effect::Moves { pfn, nr } => {
                    for number in pfn..pfn + nr {
                        let new = after.get(&number);
                        if new.is_none() || new == before.get(&number) {
                            return Err(format!("PFN {number:#x} has not moved"));
                        }
                        expected.extend(new.map(|&new| (number, new)));
                    }
                }
                Effect::Run { pfn, nr } => {
                    let first = after.get(&pfn).copied().unwrap_or(1);
                    let is_run = (0..nr).all(|at| after.get(&(pfn + at)) == Some(&(first + at)));
                    if !is_run || first % nr != 0 {
                        return Err(format!("no run at {pfn:#x}"));
                    }
                }
                Effect::Scattered { pfn, nr } => {
                    for number in pfn..pfn + nr - 1 {
                        let pair = after.get(&number).zip(after.get(&(number + 1)));
                        if pair.is_some_and(|(a, b)| a.abs_diff(*b) == 1) {
                            return Err(format!("neighbours at {number:#x}"));
                        }
                    }
                }
                Effect::Swaps { a, b, nr } => {
                    for (a, b) in (a..a + nr).zip(b..b + nr) {
                        expected.insert(a, before[&b]);
                        expected.insert(b, before[&a]);
                    }
                }
            }
        }
        if let Some((start, end)) = window {
            let is_inside = |mfn: &u64| (start..end).contains(mfn);
            for (number, mfn) in before.iter().filter(|(_, mfn)| is_inside(mfn)) {
                let new = after.get(number).filter(|new| !is_inside(new));
                let new = new.ok_or(format!("PFN {number:#x} is still at {mfn:#x}"))?;
                expected.insert(*number, *new);
            }
        }
        let differing = numbers().find(|number| expected.get(number) != after.get(number));
        match differing {
            None => Ok(()),
            Some(number) => Err(format!("PFN {number:#x} has another frame")),
        }
    }

    fn compare_cells(&self) -> Result<(), String> {
        for number in numbers() {
            let found = match self.entry(number) {
                Entry::Invalid => Cell::Invalid,
                Entry::Present(mfn) => Cell::Frame(self.contents[&mfn.get()]),
                Entry::Identity(_) => Cell::Identity,
                Entry::Foreign(mfn) => {
                    let lent = self.lent.iter().position(|(lent, _)| *lent == mfn);
                    Cell::Foreign(lent.expect("a frame that was lent") as u64)
                }
            };
            let expected = self.expected.get(&number).copied();
            let expected = expected.unwrap_or(Cell::Invalid);
            if found != expected {
                return Err(format!("PFN {number:#x} is {found:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    /// Nothing is wrong, and every frame that was taken is somewhere.
    fn audit(&self) -> Result<(), String> {
        let mut findings = Vec::new();
        let nr_frames = self.maps.audit(&self.store, |found| findings.push(found));
        if !findings.is_empty() || nr_frames != self.writer.nr_frames() {
            return Err(format!("audit: {findings:?}, {nr_frames} frames"));
        }
        let of_regions = self.views.0.borrow();
        let differing = numbers().find(|&number| {
            let told = of_regions.get(&number).copied();
            told.unwrap_or(Entry::Invalid) != self.entry(number)
        });
        if let Some(number) = differing {
            return Err(format!("PFN {number:#x} has changed without a word"));
        }
        let nr_taken = self.machine.taken_frames().len() as u64;
        let nr_known = nr_frames + self.writer.nr_guards() + LENT;
        if nr_taken != nr_known || nr_frames != self.contents.len() as u64 {
            return Err(format!("{nr_taken} frames are taken, {nr_known} are known"));
        }
        Ok(())
    }

    /// Destroys what is left: everything goes back.
    pub(crate) fn finish(mut self) {
        let bases: Vec<u64> = self.regions.keys().copied().collect();
        for base in bases {
            let region = self.regions[&base];
            self.depopulate(base, region.nr);
        }
        assert!(self.lent.iter().all(|(_, nr)| *nr == 0));
        assert_eq!(self.machine.taken_frames().len() as u64, LENT);
        assert_eq!(self.writer.nr_guards(), 0);
        self.maps.destroy(&mut self.writer, &self.store);
    }
}

/// All PFNs that sequences are about.
fn numbers() -> impl Iterator<Item = u64> {
    (0..SPACE).chain(IDENTITY)
}

fn rule(policy: Policy, seed: u64) -> policy::Policy {
    match policy {
        Policy::Any => policy::Policy::Any,
        Policy::Scatter => policy::Policy::Scatter { seed },
        Policy::Contiguous => policy::Policy::Contiguous,
    }
}

/// The aligned frames that a frame is one of.
fn window(mfn: Mfn, order: u32) -> (u64, u64) {
    let start = mfn.get() >> order << order;
    (start, start + (1 << order))
}
