// SPDX-License-Identifier: GPL-2.0

//! The pure code, on the host.

use std::cell::Cell;
use std::hint::black_box;

use p2m_pure::entry::{Entry, INVALID};
use p2m_pure::frame::{Mfn, PAGE_SHIFT, Pfn, PfnRange};
use p2m_pure::map::Which;
use p2m_pure::pv::{self, Machine, MmuOps, Pte, bits};
use p2m_pure::runs::Runs;

use crate::Only;
use crate::arena::{Domain, Memory};
use crate::paging;
use crate::race::{Contestant, Samples, cpu_time, race};
use crate::report::{Curve, Figure, Goal, Part};

/// SplitMix64, to have the same order in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // CAST: The product's high half is below `limit`.
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// Returns the numbers below `nr` in any order.
    pub(crate) fn permutation(&mut self, nr: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..nr).collect();
        for last in (1..numbers.len()).rev() {
            // CAST: Below `last`.
            let other = self.below(last as u64 + 1) as usize;
            numbers.swap(last, other);
        }
        numbers
    }
}

/// How numbers follow each other.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Sequential,
    Random,
}

impl Order {
    const ALL: [Self; 2] = [Self::Sequential, Self::Random];

    fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
        }
    }
}

/// Frames are from here on, as the lowest memory is never a domain's.
const FIRST_MFN: u64 = 0x10_0000;

/// Lookups of a sample.
const NR_LOOKUPS: usize = 1 << 18;

/// A scattered domain, and the same as plain arrays.
struct Space {
    nr_pages: u32,
    domain: Domain,
    p2m: Vec<u64>,
    /// Of the frames from `FIRST_MFN` on.
    m2p: Vec<u64>,
    random: Vec<u32>,
}

impl Space {
    fn new(nr_pages: u32) -> Self {
        let mut random = Random::new(1);
        let mfns = random.permutation(nr_pages);
        let p2m: Vec<u64> = mfns.iter().map(|&nr| FIRST_MFN + u64::from(nr)).collect();
        let mut m2p = vec![0; p2m.len()];
        for (pfn, &nr) in (0..).zip(&mfns) {
            m2p[nr as usize] = pfn;
        }
        let domain = Domain::new(p2m.iter().copied());
        Self {
            nr_pages,
            domain,
            p2m,
            m2p,
            random: random.permutation(nr_pages),
        }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.nr_pages) << PAGE_SHIFT
    }

    fn name(&self) -> String {
        match self.bytes() >> 20 {
            mib if mib < 1024 => format!("{mib} MiB"),
            mib => format!("{} GiB", mib >> 10),
        }
    }

    /// Returns the numbers of all pages in an order.
    fn order(&self, order: Order) -> Vec<u32> {
        match order {
            Order::Sequential => (0..self.nr_pages).collect(),
            Order::Random => self.random.clone(),
        }
    }
}

/// The items of samples: each sample has the next ones, so that a space which is larger than a sample
/// isn't warmed by the one before.
struct Turns<'a, T> {
    items: &'a [T],
    next: Cell<usize>,
}

impl<'a, T> Turns<'a, T> {
    fn new(items: &'a [T]) -> Self {
        Self {
            items,
            next: Cell::new(0),
        }
    }

    /// Visits the items of a sample.
    #[inline]
    fn visit(&self, mut visit: impl FnMut(&T)) {
        let nr = self.items.len().min(NR_LOOKUPS);
        let start = self.next.get();
        self.next.set((start + nr) % self.items.len());
        let items = &self.items[start..start + nr];
        for _ in 0..NR_LOOKUPS / nr {
            for item in items {
                visit(item);
            }
        }
    }
}

/// Looks up PFNs that are known before.
fn lookup(space: &Space, order: Order, nr_rounds: usize) -> Vec<Samples> {
    let pfns = space.order(order);
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let (own, peer, again) = (Turns::new(&pfns), Turns::new(&pfns), Turns::new(&pfns));
    let slice = |turns: &Turns<'_, u32>| {
        let mut sum = 0;
        turns.visit(|&pfn| sum ^= space.p2m[pfn as usize]);
        sum
    };
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("p2m", NR_LOOKUPS, || {
                let mut sum = 0;
                own.visit(|&pfn| {
                    let entry = Pfn::new(pfn.into()).map(|pfn| maps.lookup(store, pfn));
                    sum ^= entry.and_then(Entry::owned).map_or(0, Mfn::get);
                });
                sum
            }),
            Contestant::timed("slice", NR_LOOKUPS, || slice(&peer)),
            Contestant::timed("slice once more", NR_LOOKUPS, || slice(&again)),
        ],
    );
    samples
}

/// Looks up PFNs each of which is known only when the one before it was looked up.
fn chain<'a>(space: &'a Space, pfns: &'a [u32]) -> Vec<Contestant<'a>> {
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let (own, peer) = (Turns::new(pfns), Turns::new(pfns));
    // No MFN has the topmost bit, but the compiler doesn't know.
    vec![
        Contestant::timed("p2m", NR_LOOKUPS, move || {
            let mut last = 0;
            own.visit(|&pfn| {
                let entry = Pfn::new(u64::from(pfn) | (last >> 63))
                    .map_or(Entry::Invalid, |pfn| maps.lookup(store, pfn));
                last = entry.raw();
            });
            last
        }),
        Contestant::timed("slice", NR_LOOKUPS, move || {
            let mut last = 0;
            peer.visit(|&pfn| last = space.p2m[(u64::from(pfn) | (last >> 63)) as usize]);
            last
        }),
    ]
}

fn lookup_chain(space: &Space, order: Order, nr_rounds: usize) -> Vec<Samples> {
    let [samples] = race(nr_rounds, chain(space, &space.order(order)));
    samples
}

#[cold]
#[inline(never)]
fn nothing_there() {
    unreachable!("all frames are somewhere");
}

/// Looks up MFNs, and checks what is found: each is known only when the one before it was looked up.
fn reverse_chain(space: &Space, order: Order, nr_rounds: usize) -> Vec<Samples> {
    let numbers = space.order(order);
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let (own, peer) = (Turns::new(&numbers), Turns::new(&numbers));
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("p2m", NR_LOOKUPS, || {
                let mut last = 0;
                own.visit(|&nr| {
                    let mfn = Mfn::new(FIRST_MFN + u64::from(nr) + (last >> 63));
                    // Who looks up a frame does something else if there is none.
                    match mfn.and_then(|mfn| maps.mfn_to_pfn(store, mfn)) {
                        Some(pfn) => last = pfn.get(),
                        None => nothing_there(),
                    }
                });
                last
            }),
            Contestant::timed("two loads", NR_LOOKUPS, || {
                let mut last = 0;
                peer.visit(|&nr| {
                    let pfn = space.m2p[(u64::from(nr) + (last >> 63)) as usize];
                    last = space.p2m[pfn as usize];
                });
                last
            }),
        ],
    );
    samples
}

/// Looks up MFNs that are known before, and checks what is found.
fn reverse(space: &Space, order: Order, nr_rounds: usize) -> Vec<Samples> {
    let numbers = space.order(order);
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let (own, peer) = (Turns::new(&numbers), Turns::new(&numbers));
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("p2m", NR_LOOKUPS, || {
                let mut sum = 0;
                own.visit(|&nr| {
                    match Mfn::new(FIRST_MFN + u64::from(nr))
                        .and_then(|mfn| maps.mfn_to_pfn(store, mfn))
                    {
                        Some(pfn) => sum ^= pfn.get(),
                        None => nothing_there(),
                    }
                });
                sum
            }),
            Contestant::timed("two loads", NR_LOOKUPS, || {
                let mut sum = 0;
                peer.visit(|&nr| sum ^= space.p2m[space.m2p[nr as usize] as usize]);
                sum
            }),
        ],
    );
    samples
}

/// Makes entries of level 0, or reads them, through a backend.
fn hook(space: &Space, order: Order, is_make: bool, nr_rounds: usize) -> Vec<Samples> {
    const FLAGS: u64 = bits::PRESENT | bits::RW | bits::USER;
    let words: Vec<u64> = space
        .order(order)
        .iter()
        .map(|&pfn| match is_make {
            true => u64::from(pfn),
            false => space.p2m[pfn as usize],
        })
        .map(|number| (number << PAGE_SHIFT) | FLAGS)
        .collect();
    let through = |name, ops: &'static dyn MmuOps| {
        // Nobody knows which backend and which machine it is.
        let ops = black_box(ops);
        let machine: &dyn Machine = black_box(&space.domain);
        let words = Turns::new(&words);
        Contestant::timed(name, NR_LOOKUPS, move || {
            let mut sum = 0;
            if is_make {
                words.visit(|&val| sum ^= ops.make_pte(machine, val).0);
            } else {
                words.visit(|&word| sum ^= ops.pte_val(machine, Pte(word)));
            }
            sum
        })
    };
    let [samples] = race(
        nr_rounds,
        vec![through("p2m", &pv::P2M), through("native", &pv::Native)],
    );
    samples
}

/// Audits maps, which looks at all of both. The peer looks at each word once, in the same order.
fn audit(space: &mut Space, nr_rounds: usize) -> Vec<Samples> {
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let nr_pages = space.nr_pages as usize;
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("audit", nr_pages, || {
                maps.audit(store, |finding| panic!("{finding:?}"))
            }),
            Contestant::timed("two loads each way", nr_pages, || {
                let p2m = (0..).zip(&space.p2m);
                let p2m = p2m.filter(|&(pfn, &mfn)| space.m2p[(mfn - FIRST_MFN) as usize] == pfn);
                let m2p = (FIRST_MFN..).zip(&space.m2p);
                let m2p = m2p.filter(|&(mfn, &pfn)| space.p2m[pfn as usize] == mfn);
                p2m.count() + m2p.count()
            }),
        ],
    );
    samples
}

/// Finds all runs. The peer looks at each word once.
fn runs(space: &mut Space, nr_rounds: usize) -> Vec<Samples> {
    let (maps, store) = (&space.domain.maps, &space.domain.store);
    let range = PfnRange::new(0, space.nr_pages.into()).expect("PFNs are small");
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("runs", space.p2m.len(), || {
                let (mut runs, mut sum) = (Runs::new(maps, store, range), 0);
                while !runs.is_done() {
                    runs.step_by_leaf(|run| {
                        sum ^= run.entry.raw();
                        true
                    });
                }
                sum
            }),
            Contestant::timed("chunks of a slice", space.p2m.len(), || {
                let runs = space.p2m.chunk_by(|mfn, next| mfn + 1 == *next);
                runs.fold(0, |sum, run| sum ^ run[0])
            }),
        ],
    );
    samples
}

/// Empties the maps, which is timed, and fills them again. The peer empties both arrays.
fn destroy(space: &mut Space, nr_rounds: usize) -> Vec<Samples> {
    let nr_pages = u64::from(space.nr_pages);
    let Space {
        domain, p2m, m2p, ..
    } = space;
    let mut arrays = (p2m.clone(), m2p.clone());
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::new("maps", || {
                let start = cpu_time();
                black_box(domain.clear(nr_pages));
                let time = cpu_time() - start;
                domain.fill(p2m.iter().copied());
                [time / nr_pages as f64]
            }),
            Contestant::new("two stores", || {
                let start = cpu_time();
                let mut sum = 0;
                for word in &mut arrays.0 {
                    let mfn = std::mem::replace(word, INVALID);
                    arrays.1[(mfn - FIRST_MFN) as usize] = INVALID;
                    sum ^= mfn;
                }
                black_box(sum);
                let time = cpu_time() - start;
                arrays.0.copy_from_slice(p2m);
                arrays.1.copy_from_slice(m2p);
                [time / nr_pages as f64]
            }),
        ],
    );
    samples
}

/// What a move does with the maps, and what it does besides: copy a page.
fn moves(space: &mut Space, nr_rounds: usize) -> Vec<Samples> {
    let nr_pages = u64::from(space.nr_pages);
    // There and back.
    let nr_moves = 2 * nr_pages as usize;
    let (from, to) = (Memory::new(nr_moves / 2), Memory::new(nr_moves / 2));
    let order = space.random.clone();
    let domain = &mut space.domain;
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::timed("maps", nr_moves, || {
                domain.move_and_back(nr_pages, FIRST_MFN + 4 * nr_pages)
            }),
            Contestant::timed("copy of a page", nr_moves / 2, || {
                for (number, &other) in order.iter().enumerate() {
                    from.copy_page(number, &to, other as usize);
                }
            }),
        ],
    );
    samples
}

/// Measures lookups in spaces of several sizes, in the same rounds.
fn growth(spaces: &[Space], order: Order, nr_rounds: usize) -> (Vec<Figure>, Vec<Curve>) {
    let orders: Vec<Vec<u32>> = spaces.iter().map(|space| space.order(order)).collect();
    let contestants = spaces.iter().zip(&orders);
    let contestants = contestants.flat_map(|(space, pfns)| chain(space, pfns));
    let [samples] = race(nr_rounds, contestants.collect());
    let (own, peers): (Vec<_>, Vec<_>) = samples.chunks(2).map(|pair| (&pair[0], &pair[1])).unzip();
    let (Some(smallest), Some(smallest_peer)) = (own.first(), peers.first()) else {
        return Default::default();
    };
    let mut figures = Vec::new();
    for (space, (own, peer)) in spaces.iter().zip(own.iter().zip(&peers)) {
        let case = format!("{} {}", space.name(), order.name());
        let of = |own, peer, name: &str| {
            let mut figure = Figure::of("lookup as the space grows", &case, (own, peer), None);
            figure.peer = name.to_owned();
            figure
        };
        figures.push(of(own, smallest, "p2m, smallest"));
        figures.push(of(peer, smallest_peer, "slice against slice, smallest"));
    }
    let curve = |name: &str, samples: &[&Samples]| Curve {
        name: format!("{name}, {}", order.name()),
        points: spaces
            .iter()
            .zip(samples)
            .map(|(space, samples)| (space.bytes(), samples.stat()))
            .collect(),
    };
    let curves = vec![curve("p2m", &own), curve("slice", &peers)];
    (figures, curves)
}

/// Measures the pure code.
pub(crate) fn measure(only: &Only) -> Part {
    let mut part = Part::new();
    let goals = [1.2, 1.5, 2.0, 1.0].map(|limit| Some(Goal::AtMost(limit)));
    let [lookup_goal, reverse_goal, hook_goal, build_goal] = goals;
    let nr_rounds = 101;
    let sizes = [10, 14, 18, 20, 22, 24];
    let sizes = sizes.map(|log_pages: u32| 1_u32 << log_pages);
    // Both maps, both arrays, and the order.
    let enough = |nr_pages: u32| part.machine.memory_bytes / 2 > u64::from(nr_pages) * 40;
    // What is as large as that is for these only.
    let needs_large = only.wants(&["lookup as the space grows", "memory of P2M and M2P"]);
    let sizes = sizes.into_iter();
    let sizes = sizes.filter(|&nr| needs_large || nr <= 1 << 20);
    let (sizes, too_large): (Vec<u32>, Vec<u32>) = sizes.partition(|&nr| enough(nr));
    if !too_large.is_empty() {
        part.left_out.push(format!(
            "spaces of {too_large:?} pages, the maps of which are too large for this machine"
        ));
    }
    let mut spaces: Vec<Space> = sizes.into_iter().map(Space::new).collect();
    for space in spaces.iter().filter(|space| space.nr_pages <= 1 << 18) {
        for order in Order::ALL {
            let case = format!("{}, {}", space.name(), order.name());
            eprintln!("host: {case}");
            let figures = &mut part.figures;
            let mut add = |title: &str, how: &str, samples: &[Samples], goal| {
                let case = format!("{case}{how}");
                figures.push(Figure::of(title, &case, (&samples[0], &samples[1]), goal));
            };
            if only.wants(&["p2m lookup"]) {
                let samples = lookup_chain(space, order, nr_rounds);
                add("p2m lookup", ", dependent", &samples, lookup_goal);
                let samples = lookup(space, order, nr_rounds);
                add("p2m lookup", ", independent", &samples, lookup_goal);
                add("what noise does", "", &samples[1..], None);
            }
            if only.wants(&["m2p lookup, checked"]) {
                let title = "m2p lookup, checked";
                let samples = reverse_chain(space, order, nr_rounds);
                add(title, ", dependent", &samples, reverse_goal);
                let samples = reverse(space, order, nr_rounds);
                add(title, ", independent", &samples, reverse_goal);
            }
            for (title, is_make) in [("make_pte", true), ("pte_val", false)] {
                if only.wants(&[title]) {
                    let samples = hook(space, order, is_make, nr_rounds);
                    add(title, "", &samples, hook_goal);
                }
            }
        }
    }
    // One after the other, by what they are about.
    let place = |title: &str| {
        let titles = [
            "what noise does",
            "p2m lookup",
            "m2p lookup, checked",
            "make_pte",
        ];
        titles.iter().position(|&other| other == title)
    };
    part.figures
        .sort_by_key(|figure| place(&figure.title).unwrap_or(usize::MAX));
    let growing = Order::ALL.into_iter();
    for order in growing.filter(|_| only.wants(&["lookup as the space grows"])) {
        eprintln!("host: growth, {}", order.name());
        let (figures, curves) = growth(&spaces, order, 21);
        part.figures.extend(figures);
        part.curves.extend(curves);
    }
    for space in &mut spaces {
        if only.wants(&["memory of P2M and M2P"]) {
            part.figures.push(memory(space));
        }
        if space.nr_pages > 1 << 20 {
            continue;
        }
        eprintln!("host: all pages, {}", space.name());
        let case = format!("{}, per page", space.name());
        let is_small = space.nr_pages <= 1 << 18;
        let mut measure = |title, measure: fn(&mut Space, usize) -> Vec<Samples>, is_small| {
            if is_small && only.wants(&[title]) {
                let samples = measure(space, 15);
                let figures = Figure::of_first(title, &case, &samples, None);
                part.figures.extend(figures);
            }
        };
        measure("audit of the maps", audit, true);
        measure("all runs of the maps", runs, is_small);
        measure("a move in the maps", moves, is_small);
        measure("a destroy in the maps", destroy, is_small);
    }
    drop(spaces);
    if !only.wants(&["page tables through hooks"]) {
        return part;
    }
    eprintln!("host: page tables");
    let samples = paging::build(51);
    let case = "1 GiB of 4 KiB leaves, per leaf";
    let title = "page tables through hooks";
    let figures = Figure::of_first(title, case, &samples, build_goal);
    part.figures
        .extend(figures.into_iter().map(|figure| Figure {
            // Native hooks are no peer to be ahead of.
            goal: build_goal.filter(|_| figure.peer != "native"),
            ..figure
        }));
    part
}

/// Returns what the maps of a scattered space cost.
fn memory(space: &Space) -> Figure {
    let nr_tables = space.domain.nr_tables(Which::P2m) + space.domain.nr_tables(Which::M2p);
    let bytes = (nr_tables << PAGE_SHIFT) as f64 / f64::from(space.nr_pages);
    Figure::exact(
        "memory of P2M and M2P",
        &format!("{}, scatter, by count", space.name()),
        bytes,
        ("Xen", 16.0),
        "bytes a page",
        Some(Goal::AtMost(1.0)),
    )
}
