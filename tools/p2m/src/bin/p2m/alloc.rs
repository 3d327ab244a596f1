// SPDX-License-Identifier: GPL-2.0

//! Creates a region and shows that it's one piece for its owner, and what it really is.

use std::fmt::{self, Display, Formatter};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use p2m::{Access, Domain, Mapping, Pagemap, Populate, Region};
use serde::Serialize;

use crate::args::{Alloc, Args};
use crate::check::{self, Witness};
use crate::format::{Bytes, Count, Progress, Verdict, json, section};
use crate::inspect::{asking, open};
use crate::layout::{Extent, Machine, Sample};
use crate::region::create;

/// What is printed, in this order.
#[derive(Serialize)]
struct Report {
    region: Extent,
    /// Not if MFNs are hidden.
    machine: Option<Machine>,
    sample: Sample,
    /// If pages come on demand.
    demand: Option<Demand>,
    /// Not if no page is touched.
    linear: Option<Linear>,
    /// If it was asked for.
    check: Option<check::Report>,
    /// If it was asked for.
    hold: Option<Hold>,
}

pub(crate) fn alloc(args: &Args, what: &Alloc, out: &mut impl Write) -> Result<bool> {
    let domain = open(args)?;
    let info = domain.info();
    if what.check && !info.mfn_visible {
        bail!("cannot check: machine frame numbers are shown only with CAP_SYS_ADMIN");
    }

    let region = create(&domain, &what.region)?;
    let frames_at_first = domain.stat()?.frames;
    let populate = if what.populate {
        Populate::AtOnce
    } else {
        Populate::Lazily
    };
    let memory = domain.map(region.range(), Access::ReadWrite, populate)?;

    let linear = if what.region.frames.on_demand && !what.populate {
        None
    } else {
        let words = memory.words().context("the memory is read-only")?;
        Some(Linear::of(words))
    };
    let demand = if what.region.frames.on_demand {
        Some(Demand {
            pages: region.nr_pages,
            frames_at_first,
            frames: domain.stat()?.frames,
        })
    } else {
        None
    };
    let machine = if info.mfn_visible {
        Some(Machine::of(domain.runs(region.range()))?)
    } else {
        None
    };
    let check = if what.check {
        Some(check_frames(&domain, &region, &memory)?)
    } else {
        None
    };
    let good = linear.as_ref().is_none_or(|linear| linear.ok)
        && check.as_ref().is_none_or(|check| check.ok);
    let report = Report {
        region: Extent::new(region, info.page_bytes()),
        machine,
        sample: Sample::of(&region, |pfns| domain.translate(pfns))?,
        demand,
        linear,
        check,
        hold: (good && what.hold).then(|| Hold::new(&domain)),
    };

    if args.json {
        json(out, &report)?;
    } else {
        report.print(out)?;
    }
    match report.hold {
        Some(_) => hold(out),
        None => Ok(good),
    }
}

/// Stays alive until a signal comes. Ends only if nobody can be told.
pub(crate) fn hold(out: &mut impl Write) -> Result<bool> {
    // Who waits for the numbers must get them.
    out.flush()?;
    loop {
        std::thread::park();
    }
}

/// Compares the frames of a region with those that are mapped.
fn check_frames(domain: &Domain, region: &Region, memory: &Mapping) -> Result<check::Report> {
    let frames = Pagemap::of_self()?.frames_of(memory)?;
    let first = region.base_pfn.0;
    let mapped = Witness::Frames(Box::new(|range| {
        let [start, end] = [range.start, range.end].map(|pfn| (pfn.0 - first) as usize);
        Ok(frames.get(start..end).unwrap_or_default().to_vec())
    }));
    let progress = Progress::new("check", region.nr_pages);
    check::check(
        [region.range()],
        asking(domain),
        vec![("/proc/self/pagemap", mapped)],
        move |nr_pages| progress.advance(nr_pages),
    )
}

/// How many pages came when they were touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Demand {
    pages: u64,
    /// Those that had a frame when the region was new.
    frames_at_first: u64,
    /// Those that have one now.
    frames: u64,
}

impl Display for Demand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            pages,
            frames_at_first,
            frames,
        } = self;
        write!(
            f,
            "{frames_at_first} of {} had a frame at first, {frames} have one now",
            Count(*pages, "page")
        )
    }
}

/// Whether memory holds as one piece what is stored to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Linear {
    ok: bool,
    bytes: u64,
    /// Offset of the first byte that isn't what was stored.
    first_bad: Option<u64>,
}

impl Linear {
    /// Stores to all of the memory, then loads all of it.
    fn of(words: &[AtomicU64]) -> Self {
        const CHUNK: usize = 1 << 17;
        let progress = Progress::new("linear", 2 * words.len() as u64);
        let chunks = || words.chunks(CHUNK).zip((0..).step_by(CHUNK));
        for (chunk, first) in chunks() {
            for (word, index) in chunk.iter().zip(first..) {
                word.store(pattern(index), Ordering::Relaxed);
            }
            progress.advance(chunk.len() as u64);
        }
        let first_bad = chunks().find_map(|(chunk, first)| {
            progress.advance(chunk.len() as u64);
            let mut chunk = chunk.iter().zip(first..);
            let bad = chunk.find(|(word, index)| word.load(Ordering::Relaxed) != pattern(*index));
            bad.map(|(_, index)| index * size_of::<u64>() as u64)
        });
        Self {
            ok: first_bad.is_none(),
            bytes: size_of_val(words) as u64,
            first_bad,
        }
    }
}

/// Returns the word to store at an index: another one at each, so that a page that shows up twice or
/// in the wrong place is noticed. An odd factor never gives the same product for two indices.
fn pattern(index: u64) -> u64 {
    index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Display for Linear {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.bytes);
        let verdict = Verdict(self.ok);
        write!(f, "wrote and read back {bytes} as one piece: {verdict}")?;
        if let Some(first_bad) = self.first_bad {
            write!(f, " at byte {first_bad:#x}")?;
        }
        Ok(())
    }
}

/// Where others find the domain.
#[derive(Serialize)]
struct Hold {
    pid: u32,
    fd: RawFd,
}

impl Hold {
    fn new(domain: &Domain) -> Self {
        Self {
            pid: std::process::id(),
            fd: domain.as_fd().as_raw_fd(),
        }
    }
}

impl Display for Hold {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { pid, fd } = self;
        write!(
            f,
            "until a signal; attach by: p2m map --pid {pid} --fd {fd}"
        )
    }
}

impl Report {
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        section(out, "region", [&self.region])?;
        match &self.machine {
            Some(machine) => section(out, "machine", [machine])?,
            None => section(
                out,
                "machine",
                ["hidden, as it's shown only with CAP_SYS_ADMIN"],
            )?,
        }
        section(out, "sample", self.sample.lines())?;
        section(out, "demand", &self.demand)?;
        section(out, "linear", &self.linear)?;
        if let Some(check) = &self.check {
            check.print(out)?;
        }
        section(out, "hold", &self.hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::{Constraint, Entry, Pfn, Policy, Run};
    use std::collections::HashSet;
    use std::convert::Infallible;

    #[test]
    fn memory_that_keeps_its_words_is_linear() {
        let words: Vec<_> = (0..3 << 17).map(AtomicU64::new).collect();
        let linear = Linear::of(&words);
        assert_eq!(linear.first_bad, None);
        assert_eq!(
            linear.to_string(),
            "wrote and read back 3 MiB as one piece: ok"
        );
    }

    #[test]
    fn a_bad_word_is_told_by_its_offset() {
        let linear = Linear {
            ok: false,
            bytes: 4096,
            first_bad: Some(0xff8),
        };
        assert!(
            linear
                .to_string()
                .ends_with("one piece: FAILED at byte 0xff8")
        );
    }

    #[test]
    fn no_two_words_of_the_pattern_are_the_same() {
        let nr_words = 1 << 16;
        let words: HashSet<_> = (0..nr_words).map(pattern).collect();
        assert_eq!(words.len() as u64, nr_words);
        // A page that was never stored to is noticed as well.
        assert!(!words.contains(&0));
    }

    #[test]
    fn pages_on_demand_are_counted() {
        let demand = Demand {
            pages: 256,
            frames_at_first: 0,
            frames: 255,
        };
        assert_eq!(
            demand.to_string(),
            "0 of 256 pages had a frame at first, 255 have one now"
        );
    }

    #[test]
    fn report_reads_at_a_glance() {
        let region = Region {
            base_pfn: Pfn(0),
            nr_pages: 16384,
            policy: Policy::SCATTER,
            seed: 7,
            on_demand: false,
            constraint: Constraint::default(),
        };
        let entry = |pfn: u64| Entry::from_raw(0x7ffff - 2 * pfn);
        let runs = (0..16384).map(|pfn| -> Result<_, Infallible> {
            Ok(Run {
                pfn: Pfn(pfn),
                nr_pages: 1,
                entry: entry(pfn),
            })
        });
        let Ok(machine) = Machine::of(runs);
        let sample = Sample::of(&region, |pfns| -> Result<_, Infallible> {
            Ok(pfns.iter().map(|pfn| entry(pfn.0)).collect())
        });
        let Ok(sample) = sample;
        let report = Report {
            region: Extent::new(region, 4096),
            machine: Some(machine),
            sample,
            demand: None,
            linear: Some(Linear {
                ok: true,
                bytes: 64 << 20,
                first_bad: None,
            }),
            check: None,
            hold: Some(Hold { pid: 42, fd: 3 }),
        };
        let mut out = Vec::new();
        report.print(&mut out).expect("print");
        let expected = "\
region   PFN 0x0..0x4000 (64 MiB, 16384 pages), policy scatter, seed 7
machine  16384 runs, longest 1 page, MFN 0x78001..0x80000
sample   PFN 0x0000 -> MFN 0x7ffff
         PFN 0x0001 -> MFN 0x7fffd
         PFN 0x0002 -> MFN 0x7fffb
         ...
         PFN 0x3fff -> MFN 0x78001
linear   wrote and read back 64 MiB as one piece: ok
hold     until a signal; attach by: p2m map --pid 42 --fd 3
";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
