// SPDX-License-Identifier: GPL-2.0

//! The module, from userspace.

use std::cell::Cell;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use p2m::{Access, Domain, Mapping, Pfn, Policy, Populate, Region};
use rustix::io::pread;

use crate::Only;
use crate::host::Random;
use crate::race::{Contestant, Samples, nanoseconds, race};
use crate::report::{Figure, Goal, Part};
use crate::sys::{self, Memory, PAGE, Pages};

const GIB: usize = 1 << 30;
const MIB: usize = 1 << 20;

/// What pages can be touched of.
trait Touch: Sync {
    fn place(&self) -> (*mut u8, usize);

    /// Returns the first word of each page.
    fn pages(&self) -> impl DoubleEndedIterator<Item = &AtomicU64> + ExactSizeIterator {
        let (start, len) = self.place();
        (0..len / PAGE).map(move |number| {
            let word = start.wrapping_add(number * PAGE).cast::<AtomicU64>();
            // SAFETY: The memory is mapped for stores as long as `self` lives, and all use of it is
            // by atomics.
            unsafe { &*word }
        })
    }

    /// Writes to each page.
    fn touch(&self) {
        for word in self.pages() {
            word.store(1, Ordering::Relaxed);
        }
    }
}

impl Touch for Memory {
    fn place(&self) -> (*mut u8, usize) {
        (self.start(), self.len())
    }
}

impl Touch for Mapping {
    fn place(&self) -> (*mut u8, usize) {
        (self.as_ptr(), self.len_bytes())
    }
}

fn nr_pages(bytes: usize) -> u64 {
    (bytes / PAGE) as u64
}

fn size(bytes: usize) -> String {
    match bytes / MIB {
        mib if mib < 1024 => format!("{mib} MiB"),
        mib => format!("{} GiB", mib / 1024),
    }
}

/// Returns the policy of a name, if the library knows it.
fn policy(name: &str) -> Option<Policy> {
    let named = Policy::NAMES.iter().find(|(known, _)| *known == name);
    named.map(|&(_, policy)| policy)
}

/// Returns a seed, which only one policy has.
fn seed(policy: Policy) -> u64 {
    u64::from(policy == Policy::SCATTER)
}

fn create(domain: &Domain, bytes: usize, policy: Policy) -> p2m::Result<Region> {
    let region = domain.region(nr_pages(bytes)).policy(policy);
    region.seed(seed(policy)).create()
}

/// A domain with one region that is mapped and touched.
struct Rig {
    domain: Domain,
    region: Region,
    memory: Mapping,
}

impl Rig {
    fn new(bytes: usize, policy: Policy) -> Result<Self> {
        let domain = Domain::open()?;
        let region = create(&domain, bytes, policy)?;
        let memory = domain.map(region.range(), Access::ReadWrite, Populate::Lazily)?;
        memory.touch();
        Ok(Self {
            domain,
            region,
            memory,
        })
    }
}

/// What is measured, with room for what can't be.
struct Bench {
    part: Part,
    nr_rounds: usize,
}

impl Bench {
    fn add(&mut self, title: &str, case: &str, samples: &[Samples], goal: Option<Goal>) {
        let figures = Figure::of_first(title, case, samples, goal);
        self.part.figures.extend(figures);
    }

    fn leave_out(&mut self, what: &str, why: impl std::fmt::Display) {
        self.part.left_out.push(format!("{what}: {why}"));
    }

    /// One translation, by the mapped table and by pagemap.
    fn translate_one(&mut self, rig: &Rig) -> Result<()> {
        const NR: usize = 1 << 12;
        let tables = rig.domain.tables()?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let nr = rig.region.nr_pages;
        let mut random = Random::new(3);
        let numbers: Vec<u64> = (0..NR).map(|_| random.below(nr)).collect();
        let first = rig.region.base_pfn.0;
        let page = rig.memory.as_ptr() as usize / PAGE;
        let lookup = |number: u64| tables.lookup(Pfn(first + number)).mfn().map(|mfn| mfn.0);
        let ask = |number: u64| {
            let mut word = [0; 8];
            pread(&pagemap, &mut word, (page as u64 + number) * 8).map(|_| {
                let mfn = u64::from_le_bytes(word) & ((1 << 55) - 1);
                (mfn != 0).then_some(mfn)
            })
        };
        for &number in &numbers {
            ensure!(ask(number)? == lookup(number), "page {number} is elsewhere");
        }
        let [samples] = race(
            5 * self.nr_rounds,
            vec![
                Contestant::timed("mapped table", NR * 16, || {
                    let turns = (0..16).flat_map(|_| &numbers);
                    turns
                        .filter_map(|&number| lookup(number))
                        .fold(0, |a, b| a ^ b)
                }),
                Contestant::timed("pread of pagemap", NR, || {
                    let found = numbers.iter().filter_map(|&number| ask(number).ok()?);
                    found.fold(0, |a, b| a ^ b)
                }),
            ],
        );
        let goal = Some(Goal::Faster(500.0));
        self.add("one translation", "random PFN", &samples, goal);
        Ok(())
    }

    /// All translations of a region.
    fn translate_all(&mut self, rig: &Rig, name: &str) -> Result<()> {
        let nr = rig.region.nr_pages;
        let range = rig.region.range();
        let pfns: Vec<Pfn> = (range.start.0..range.end.0).map(Pfn).collect();
        let tables = rig.domain.tables()?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let place = (rig.memory.as_ptr() as usize, rig.memory.len_bytes());
        let read = |file: &dyn Fn(&mut [u8], u64) -> rustix::io::Result<usize>, first: u64| {
            let mut words = vec![0_u8; nr as usize * 8];
            let mut done = 0;
            while done < words.len() {
                match file(&mut words[done..], first * 8 + done as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => done += more,
                }
            }
            (done == words.len()).then_some(words)
        };
        let by_read = || {
            let fd = rig.domain.as_fd();
            read(&|buffer, at| pread(fd, buffer, at), range.start.0)
        };
        let by_pagemap = || {
            let first = (place.0 / PAGE) as u64;
            read(&|buffer, at| pread(&pagemap, buffer, at), first)
        };
        let frames = |words: Option<Vec<u8>>| -> Option<Vec<u64>> {
            let words = words?;
            let words = words
                .chunks_exact(8)
                .filter_map(|word| word.try_into().ok());
            Some(
                words
                    .map(|word| u64::from_le_bytes(word) & ((1 << 55) - 1))
                    .collect(),
            )
        };
        let all = frames(by_pagemap()).context("pagemap is short")?;
        ensure!(
            Some(&all) == frames(by_read()).as_ref(),
            "read() and pagemap differ"
        );
        let looked_up = || {
            pfns.iter()
                .map(|&pfn| tables.lookup(pfn).mfn().map_or(0, |mfn| mfn.0))
        };
        ensure!(looked_up().eq(all), "the tables and pagemap differ");

        let scan = || {
            let mut regions = [sys::PageRegion::default(); 64];
            sys::pagemap_scan(&pagemap, place, &mut regions)
        };
        ensure!(scan()? > 0, "PAGEMAP_SCAN finds nothing");
        // CAST: Fits.
        let nr = nr as usize;
        let [samples] = race(
            self.nr_rounds,
            vec![
                Contestant::timed("read()", nr, by_read),
                Contestant::timed("P2M_TRANSLATE", nr, || rig.domain.translate(&pfns)),
                Contestant::timed("P2M_RUNS", nr, || rig.domain.runs(range.clone()).count()),
                Contestant::timed("mapped table", nr, || looked_up().fold(0, |a, b| a ^ b)),
                Contestant::timed("read() of pagemap", nr, by_pagemap),
                Contestant::timed("PAGEMAP_SCAN", nr, scan),
            ],
        );
        let (own, peers) = samples.split_at(4);
        for own in own {
            for peer in peers {
                let case = format!("{}, {name}, {}", size(place.1), own.name);
                let goal = Some(Goal::Faster(5.0));
                let figure = Figure::of("bulk translation, per page", &case, (own, peer), goal);
                self.part.figures.push(figure);
            }
        }
        Ok(())
    }

    /// Memory from nothing to touched, and back to nothing.
    fn create_and_destroy(&mut self, bytes: usize) -> Result<()> {
        let domain = Domain::open()?;
        let mut own = vec![("any", Policy::ANY), ("scatter", Policy::SCATTER)];
        own.extend(policy("superpage").map(|policy| ("superpage", policy)));
        let ours = own.iter().map(|&(name, policy)| {
            let domain = &domain;
            Contestant::new(format!("p2m {name}"), move || {
                let start = Instant::now();
                let Ok(region) = create(domain, bytes, policy) else {
                    return [f64::NAN; 2];
                };
                let range = region.range();
                let memory = domain.map(range, Access::ReadWrite, Populate::Lazily);
                if let Ok(memory) = &memory {
                    memory.touch();
                }
                let created = nanoseconds(start);
                let start = Instant::now();
                drop(memory);
                let destroyed = domain.destroy(region.base_pfn);
                match destroyed {
                    Ok(()) => [created, nanoseconds(start)],
                    Err(_) => [f64::NAN; 2],
                }
            })
        });
        type Make = fn(usize) -> std::io::Result<Memory>;
        let peers: [(&str, Make); 5] = [
            ("MAP_POPULATE", |len| {
                Memory::anonymous(len, Pages::Small, true)
            }),
            ("THP", |len| Memory::anonymous(len, Pages::Large, true)),
            ("memfd", |len| Memory::of(sys::memfd(len)?, len, true)),
            ("udmabuf", |len| Memory::of(sys::udmabuf(len)?, len, false)),
            ("dma-heap", |len| {
                Memory::of(sys::dma_heap(len)?, len, false)
            }),
        ];
        let mut usable = Vec::new();
        for (name, make) in peers {
            match make(bytes) {
                Ok(_) => usable.push((name, make)),
                Err(error) => self.leave_out(name, error),
            }
        }
        let theirs = usable.iter().map(|&(name, make)| {
            Contestant::new(name, move || {
                let start = Instant::now();
                let Ok(memory) = make(bytes) else {
                    return [f64::NAN; 2];
                };
                memory.touch();
                let created = nanoseconds(start);
                let start = Instant::now();
                drop(memory);
                [created, nanoseconds(start)]
            })
        });
        let [created, destroyed] = race(self.nr_rounds, ours.chain(theirs).collect());
        for (title, samples) in [
            ("create, map and touch", created),
            ("unmap and destroy", destroyed),
        ] {
            let is_create = title.starts_with("create");
            let (own_samples, peers) = samples.split_at(own.len());
            for (&(name, _), own) in own.iter().zip(own_samples) {
                for peer in peers {
                    // Each has its peer: small pages for small ones, large ones for large ones.
                    let is_peer = match peer.name.as_str() {
                        "THP" => name == "superpage",
                        "MAP_POPULATE" => name != "superpage",
                        _ => is_create,
                    };
                    let limit = match (is_create, name) {
                        (true, "scatter") => 1.3,
                        _ => 1.0,
                    };
                    let goal = is_peer.then_some(Goal::AtMost(limit));
                    let case = format!("{}, {name}", size(bytes));
                    let figure = Figure::of(title, &case, (own, peer), goal);
                    self.part.figures.push(figure);
                }
            }
        }
        Ok(())
    }

    /// Pages that come when they are touched.
    fn fault_in(&mut self, bytes: usize, nr_threads: usize) -> Result<()> {
        let domain = Domain::open()?;
        let own = Contestant::new("p2m on demand", || {
            let region = domain.region(nr_pages(bytes)).on_demand().create();
            let Ok(region) = region else {
                return [f64::NAN];
            };
            let memory = domain.map(region.range(), Access::ReadWrite, Populate::Lazily);
            let time = memory.map_or(f64::NAN, |memory| touch_by(&memory, nr_threads));
            let _ = domain.destroy(region.base_pfn);
            [time]
        });
        let peer = Contestant::new("anonymous", || {
            let memory = Memory::anonymous(bytes, Pages::Small, false);
            [memory.map_or(f64::NAN, |memory| touch_by(&memory, nr_threads))]
        });
        let [samples] = race(self.nr_rounds, vec![own, peer]);
        let case = format!("{}, {nr_threads} threads, per page", size(bytes));
        let goal = Some(Goal::AtMost(1.1));
        self.add("fault-in", &case, &samples, goal);
        Ok(())
    }

    /// Pages that get other frames while threads touch them.
    fn moves(&mut self, bytes: usize, nr_threads: usize) -> Result<()> {
        let nodes = sys::nodes();
        let rig = Rig::new(bytes, Policy::ANY)?;
        let turn = Cell::new(0);
        let own = Contestant::new("P2M_MOVE", || {
            // Scattered and back again: all pages move each time.
            turn.set(turn.get() + 1);
            let policy = [Policy::SCATTER, Policy::ANY][turn.get() % 2];
            [while_touched(&rig.memory, nr_threads, || {
                let range = rig.region.range();
                let moved = rig.domain.move_pages(range, policy, seed(policy));
                moved.map_or(0, |moved| moved.pages as usize)
            })]
        });
        let mut contestants = vec![own];
        if let [first, second, ..] = nodes[..] {
            let fresh = move || -> std::io::Result<Memory> {
                sys::prefer(first)?;
                Memory::anonymous(bytes, Pages::Small, true)
            };
            contestants.push(Contestant::new("move_pages()", move || {
                let Ok(memory) = fresh() else {
                    return [f64::NAN];
                };
                [while_touched(&memory, nr_threads, || {
                    sys::move_pages(&memory, second).unwrap_or(0)
                })]
            }));
            contestants.push(Contestant::new("migrate_pages()", move || {
                let Ok(memory) = fresh() else {
                    return [f64::NAN];
                };
                let time = while_touched(&memory, nr_threads, || {
                    // Those that it didn't move are moved by the one below, so they are counted.
                    sys::migrate_pages(first, second).map_or(0, |()| memory.len() / PAGE)
                });
                // What else the process has comes back.
                drop(memory);
                let _ = sys::migrate_pages(second, first);
                [time]
            }));
        } else {
            self.leave_out(
                "move_pages(), migrate_pages()",
                "there is one NUMA node only",
            );
        }
        let [samples] = race(self.nr_rounds, contestants);
        let case = format!("{}, {nr_threads} touching, per page", size(bytes));
        let goal = Some(Goal::Faster(1.5));
        self.add("move mapped pages", &case, &samples, goal);
        Ok(())
    }

    /// What tables cost.
    fn memory(&mut self, bytes: usize) -> Result<()> {
        for (name, policy) in Policy::NAMES {
            let domain = Domain::open()?;
            let case = format!("{}, {name}", size(bytes));
            if let Err(error) = create(&domain, bytes, policy) {
                self.leave_out(&format!("memory of the maps, {case}"), error);
                continue;
            }
            let stat = domain.stat()?;
            let nr_tables = stat.p2m_tables + stat.m2p_tables;
            let per_page = (nr_tables * PAGE as u64) as f64 / stat.pages as f64;
            // The goal of large pages is 0.1 bytes.
            let goal = match name {
                "superpage" => 0.1 / 16.0,
                _ => 1.0,
            };
            self.part.figures.push(Figure::exact(
                "memory of P2M and M2P",
                &case,
                per_page,
                ("Xen", 16.0),
                "bytes a page",
                Some(Goal::AtMost(goal)),
            ));
        }
        Ok(())
    }
}

/// Has threads touch parts of memory at the same time, and returns the nanoseconds for each page.
fn touch_by(memory: &impl Touch, nr_threads: usize) -> f64 {
    let (_, len) = memory.place();
    let nr_pages = len / PAGE;
    let barrier = Barrier::new(nr_threads + 1);
    let start = thread::scope(|scope| {
        for thread in 0..nr_threads {
            let barrier = &barrier;
            scope.spawn(move || {
                let part = nr_pages / nr_threads;
                barrier.wait();
                for word in memory.pages().skip(thread * part).take(part) {
                    word.store(1, Ordering::Relaxed);
                }
            });
        }
        barrier.wait();
        Instant::now()
    });
    nanoseconds(start) / nr_pages as f64
}

/// Has threads touch memory while `work` is done, which returns how many pages it did. Returns the
/// nanoseconds for each of them.
fn while_touched(memory: &impl Touch, nr_threads: usize, work: impl FnOnce() -> usize) -> f64 {
    let is_over = AtomicBool::new(false);
    let barrier = Barrier::new(nr_threads + 1);
    thread::scope(|scope| {
        for thread in 0..nr_threads {
            let (is_over, barrier) = (&is_over, &barrier);
            scope.spawn(move || {
                let words: Vec<&AtomicU64> = memory.pages().collect();
                barrier.wait();
                let mut at = thread * words.len() / nr_threads;
                while !is_over.load(Ordering::Relaxed) {
                    // A stride without a pattern that a batch would have.
                    at = (at + 769) % words.len();
                    words[at].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        barrier.wait();
        let start = Instant::now();
        let nr = black_box(work());
        let time = nanoseconds(start);
        is_over.store(true, Ordering::Relaxed);
        match nr {
            0 => f64::NAN,
            nr => time / nr as f64,
        }
    })
}

/// How large what is measured is, in bytes.
struct Sizes {
    region: usize,
    faults: usize,
    moves: usize,
}

impl Sizes {
    const FULL: Self = Self {
        region: GIB,
        faults: 256 * MIB,
        moves: 64 * MIB,
    };

    /// What takes minutes where a processor takes seconds.
    const EMULATED: Self = Self {
        region: 256 * MIB,
        faults: 64 * MIB,
        moves: 16 * MIB,
    };
}

/// Measures the module. The results are written as they come, as a guest may be killed.
pub(crate) fn measure(path: &Path, only: &Only) -> Result<()> {
    // Only who asks for large pages gets them, and pages stay where they are put.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")?;
    let _ = fs::write("/proc/sys/kernel/numa_balancing", "0");
    let mut bench = Bench {
        part: Part::new(),
        nr_rounds: 5,
    };
    let sizes = match bench.part.machine.is_emulated() {
        true => {
            let why = "on an emulated processor, what is of that size is a quarter as large";
            bench.leave_out("1 GiB", why);
            Sizes::EMULATED
        }
        false => Sizes::FULL,
    };
    let done = |bench: &Bench, what: &str| {
        eprintln!("guest: {what}");
        bench.part.clone().write(path)
    };
    if only.wants(&["one translation"]) {
        let rig = Rig::new(64 * MIB, Policy::SCATTER)?;
        bench.translate_one(&rig)?;
        done(&bench, "one translation")?;
    }
    for nr_threads in [1, 4] {
        if only.wants(&["fault-in"]) {
            bench.fault_in(sizes.faults, nr_threads)?;
            done(&bench, "faults")?;
        }
        if only.wants(&["move mapped pages"]) {
            bench.moves(sizes.moves, nr_threads)?;
            done(&bench, "moves")?;
        }
    }
    if only.wants(&["memory of P2M and M2P"]) {
        for bytes in [4 * MIB, 64 * MIB, GIB] {
            bench.memory(bytes)?;
        }
        done(&bench, "memory")?;
    }
    if only.wants(&["create, map and touch", "unmap and destroy"]) {
        bench.create_and_destroy(sizes.region)?;
        done(&bench, "regions")?;
    }
    if only.wants(&["bulk translation"]) {
        for name in ["any", "scatter"] {
            let rig = Rig::new(sizes.region, policy(name).context("a policy is gone")?)?;
            bench.translate_all(&rig, name)?;
            done(&bench, "all translations")?;
        }
    }
    // As they are listed elsewhere.
    let place = |figure: &Figure| {
        let titles = [
            "one translation",
            "bulk",
            "create",
            "unmap",
            "move",
            "fault",
        ];
        titles
            .iter()
            .position(|title| figure.title.starts_with(title))
    };
    let figures = &mut bench.part.figures;
    figures.sort_by_key(|figure| place(figure).unwrap_or(usize::MAX));
    bench.part.left_out.dedup();
    bench.part.write(path)
}
