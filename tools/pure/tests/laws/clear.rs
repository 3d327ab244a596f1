// SPDX-License-Identifier: GPL-2.0

//! Emptying a range by leaves and runs, against emptying it page by page.

use std::cell::RefCell;
use std::collections::BTreeMap;

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Pfn, PfnRange};
use p2m_pure::map::{Gone, Views, Which};
use proptest::prelude::*;

use crate::rig::{mfn, pfn, range, span, Domain};

/// Where the PFNs begin, so that several levels of tables are concerned.
const BASES: [u64; 3] = [0, span(2) - span(1), span(3) - 2 * span(1) + 7];

/// The frame that the first one of a domain is near.
const BASE_MFN: u64 = span(3) - 2 * span(1);

/// How frames follow each other.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Run,
    Backwards,
    /// Every second one.
    Apart,
    /// With a guard behind each.
    Guarded,
    /// As many as a leaf has, in one, if it comes to be where it can be.
    Superpage,
    Foreign,
    Identity,
}

/// What comes next in a space.
#[derive(Clone, Debug)]
struct Part {
    hole: u64,
    nr_pages: u64,
    kind: Kind,
}

fn part() -> impl Strategy<Value = Part> {
    let hole = prop_oneof![
        4 => Just(0),
        2 => 1..20u64,
        1 => Just(span(1)),
        1 => 500..1500u64,
    ];
    let nr_pages = prop_oneof![3 => 1..20u64, 1 => 500..530u64, 1 => Just(2 * span(1))];
    let kind = prop_oneof![
        Just(Kind::Run),
        Just(Kind::Backwards),
        Just(Kind::Apart),
        Just(Kind::Guarded),
        Just(Kind::Superpage),
        Just(Kind::Foreign),
        Just(Kind::Identity),
    ];
    (hole, nr_pages, kind).prop_map(|(hole, nr_pages, kind)| Part {
        hole,
        nr_pages,
        kind,
    })
}

/// All changes, in order.
#[derive(Default)]
struct Log(RefCell<Vec<(u64, Entry, Entry)>>);

impl Views for &Log {
    fn leaf_replaced(&self, _: Which, _: u64) {}

    fn changed(&self, pfn: Pfn, old: Entry, new: Entry) {
        self.0.borrow_mut().push((pfn.get(), old, new));
    }
}

/// Fills a domain, and returns the number of the first PFN behind.
fn fill(domain: &mut Domain<&Log>, base: u64, parts: &[Part]) -> u64 {
    let (mut at, mut frame) = (base, BASE_MFN);
    for part in parts {
        at += part.hole;
        let nr = part.nr_pages;
        let (step, nr_frames) = match part.kind {
            Kind::Run | Kind::Backwards | Kind::Foreign | Kind::Identity => (1, nr),
            Kind::Apart | Kind::Guarded => (2, 2 * nr),
            Kind::Superpage => {
                at = at.next_multiple_of(span(1));
                let first = frame.next_multiple_of(span(1));
                let Domain {
                    store,
                    maps,
                    writer,
                    views,
                } = domain;
                let place = (range(at, span(1)), mfn(first));
                maps.set_superpage(writer, store, views, place, |gone| panic!("{gone:?}"))
                    .unwrap();
                at += span(1);
                frame = first + span(1);
                continue;
            }
        };
        for number in 0..nr {
            let ahead = match part.kind {
                Kind::Backwards => nr - 1 - number,
                _ => number * step,
            };
            let mfn_here = mfn(frame + ahead);
            let entry = match part.kind {
                Kind::Foreign => Entry::Foreign(mfn_here),
                Kind::Identity => Entry::Identity(mfn_here),
                _ => Entry::Present(mfn_here),
            };
            domain.set(pfn(at + number), entry).unwrap();
            if let Kind::Guarded = part.kind {
                let guard = mfn(frame + ahead + 1);
                domain
                    .maps
                    .set_guard(&mut domain.writer, &domain.store, &domain.views, guard)
                    .unwrap();
            }
        }
        at += nr;
        frame += nr_frames;
    }
    at
}

/// What somebody can see of a domain in a range.
#[derive(Debug, PartialEq)]
struct Seen {
    entries: Vec<Entry>,
    places: BTreeMap<u64, u64>,
    nr_tables: [u64; 2],
    nr_frames: u64,
    nr_guards: u64,
    nr_folded: u64,
}

fn seen(domain: &Domain<&Log>, all: PfnRange) -> Seen {
    let frames = BASE_MFN..BASE_MFN + 24 * span(1);
    let place = |frame| Some((frame, domain.mfn_to_pfn(mfn(frame))?.get()));
    let writer = &domain.writer;
    Seen {
        entries: all.iter().map(|pfn| domain.lookup(pfn)).collect(),
        places: frames.filter_map(place).collect(),
        nr_tables: [Which::P2m, Which::M2p].map(|which| writer.nr_tables(which)),
        nr_frames: writer.nr_frames(),
        nr_guards: writer.nr_guards(),
        nr_folded: writer.nr_folded(),
    }
}

fn frames(gone: &[Gone]) -> Vec<Gone> {
    let is_guard = |gone: &&Gone| matches!(gone, Gone::Guard(_));
    gone.iter()
        .filter(|gone| !is_guard(gone))
        .copied()
        .collect()
}

fn guards(gone: &[Gone]) -> Vec<u64> {
    let is_guard = |gone: &&Gone| matches!(gone, Gone::Guard(_));
    let guards = gone.iter().filter(is_guard);
    let mut guards: Vec<u64> = guards.map(|gone| gone.mfn().get()).collect();
    guards.sort_unstable();
    guards
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn by_leaves_is_the_same_as_page_by_page(
        base in prop::sample::select(BASES.to_vec()),
        parts in prop::collection::vec(part(), 1..10),
        cut in (0..700u64, 0..700u64),
    ) {
        let logs = [(); 3].map(|()| Log::default());
        let mut domains = logs.each_ref().map(Domain::new);
        let [end, ..] = [0, 1, 2].map(|which| fill(&mut domains[which], base, &parts));
        let all = range(base, end - base);
        let start = base + cut.0.min(end - base - 1);
        let last = (end - 1).saturating_sub(cut.1).max(start);
        let part = range(start, last - start + 1);
        let [runs, ordered, pages] = &mut domains;

        // What can fail comes first. Of a leaf that stays folded, nothing may be outside.
        let Domain { store, maps, writer, views } = runs;
        maps.unfold(writer, store, views, part, true).unwrap();
        let nr_tables = store.nr_live();
        store.fail_after(0);
        let mut gone = Vec::new();
        let mut last_run: Option<(Gone, u64)> = None;
        let mut nr_wrong = 0;
        maps.clear_runs(writer, store, views, part, |what, nr| {
            for at in 0..nr {
                let frame = mfn(what.mfn().get() + at);
                // It has left both maps.
                nr_wrong += u64::from(maps.mfn_to_pfn(store, frame).is_some());
                gone.push(match what {
                    Gone::Frame(_) => Gone::Frame(frame),
                    Gone::Guard(_) => Gone::Guard(frame),
                    Gone::Foreign(_) => Gone::Foreign(frame),
                });
            }
            // Two runs that are one, one after the other, would be none.
            if let (Some((Gone::Frame(first), nr)), Gone::Frame(next)) = (last_run, what) {
                nr_wrong += u64::from(first.get() + nr == next.get());
            }
            last_run = Some((what, nr));
        });
        store.fail_never();
        prop_assert_eq!(nr_wrong, 0);
        prop_assert!(store.nr_live() <= nr_tables);

        let Domain { store, maps, writer, views } = ordered;
        maps.unfold(writer, store, views, part, true).unwrap();
        let mut gone_in_order = Vec::new();
        maps.clear(writer, store, views, part, |what| gone_in_order.push(what));

        let Domain { store, maps, writer, views } = pages;
        maps.unfold(writer, store, views, part, false).unwrap();
        let mut expected = Vec::new();
        for pfn in part.iter() {
            maps.clear(writer, store, views, range(pfn.get(), 1), |what| expected.push(what));
        }

        prop_assert_eq!(frames(&gone_in_order), frames(&expected));
        prop_assert_eq!(guards(&gone_in_order), guards(&expected));
        // In whichever order.
        let sorted = |gone: &[Gone]| {
            let mut frames = frames(gone);
            frames.sort_by_key(|gone| gone.mfn());
            frames
        };
        prop_assert_eq!(sorted(&gone), sorted(&expected));
        prop_assert_eq!(guards(&gone), guards(&expected));
        prop_assert_eq!(seen(runs, all), seen(pages, all));
        prop_assert_eq!(seen(ordered, all), seen(pages, all));
        for log in &logs[..2] {
            prop_assert_eq!(&*log.0.borrow(), &*logs[2].0.borrow());
        }
        for domain in [&*runs, &*ordered, &*pages] {
            domain.maps.audit(&domain.store, |found| panic!("{found:?}"));
        }
        for (domain, log) in domains.iter_mut().zip(&logs) {
            domain.clear(all);
            prop_assert_eq!(domain.store.nr_live(), 1);
            let nr_changes = log.0.borrow().len();
            prop_assert_eq!(nr_changes % 2, 0);
        }
    }
}

/// As often as if it were emptied word by word and pruned.
#[test]
fn a_leaf_that_goes_whole_changes_the_structure_once() {
    let mut domain = Domain::new(());
    for at in 0..2 * span(1) {
        let (at, frame) = (pfn(span(2) + at), mfn(span(2) + at));
        domain.set(at, Entry::Present(frame)).unwrap();
    }
    let generation = |domain: &Domain, which| domain.maps.generation(&domain.store, which);
    let before = [Which::P2m, Which::M2p].map(|which| generation(&domain, which));
    domain.clear(range(span(2), span(1)));
    let after = [Which::P2m, Which::M2p].map(|which| generation(&domain, which));
    assert_eq!(after, before.map(|before| before + 2));
}
