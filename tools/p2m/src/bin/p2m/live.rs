// SPDX-License-Identifier: GPL-2.0

//! Commands that change the machine frames under a domain while it is in use.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::ops::Range;

use anyhow::Result;
use p2m::{Afterwards, Domain, Mfn, Moved, Pfn, Run};
use serde::Serialize;

use crate::args::{Args, Contig, Evacuate, Exchange, FailNth, MaybePages, Move, Pages, Target};
use crate::format::{Count, Progress, Verdict, json, section};
use crate::inspect::{attach, chosen};
use crate::layout::Machine;

/// How many pages are asked for at once, where somebody may want to see how it goes on.
const PART_PAGES: u64 = 1 << 14;

/// What an operation came to.
#[derive(Serialize)]
struct Report<Details> {
    operation: &'static str,
    #[serde(flatten)]
    moved: Moved,
    #[serde(flatten)]
    details: Details,
}

/// What there is of a domain.
#[derive(Serialize)]
struct Population {
    /// Pages that have a frame now.
    frames: u64,
    /// Pages of all regions.
    of: u64,
}

/// What a range is made of, before and after.
#[derive(Serialize)]
struct Change {
    /// Not if MFNs are hidden.
    before: Option<Machine>,
    /// Not if MFNs are hidden.
    after: Option<Machine>,
}

/// What is left in a range of machine frames.
#[derive(Serialize)]
struct Left {
    left: u64,
}

impl Population {
    fn of(domain: &Domain) -> Result<Self> {
        let stat = domain.stat()?;
        Ok(Self {
            frames: stat.frames,
            of: stat.pages,
        })
    }
}

impl Display for Population {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { frames, of } = self;
        write!(f, "{frames} of {} have a frame", Count(*of, "page"))
    }
}

impl Display for Left {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the domain", Count(self.left, "page"))
    }
}

pub(crate) fn release(args: &Args, what: &Pages, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let (moved, result) = in_parts("release", [what.range.clone()], |part| {
        domain.release(part).map(counted)
    });
    refused_at_once(moved, &result)?;
    report_population(args, out, &domain, "release", moved)?;
    Ok(result.map(|()| true)?)
}

pub(crate) fn populate(args: &Args, what: &MaybePages, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let ranges = chosen(what.range.as_ref(), &domain.regions()?);
    let (moved, result) = in_parts("populate", ranges, |part| {
        domain.populate(part).map(counted)
    });
    refused_at_once(moved, &result)?;
    report_population(args, out, &domain, "populate", moved)?;
    Ok(result.map(|()| true)?)
}

/// Fails if there's nothing to report but that the kernel refused.
fn refused_at_once(moved: Moved, result: &p2m::Result<()>) -> p2m::Result<()> {
    match result {
        Err(error) if moved == Moved::default() => Err(error.clone()),
        _ => Ok(()),
    }
}

fn counted(pages: u64) -> Moved {
    Moved { pages, busy: 0 }
}

fn report_population(
    args: &Args,
    out: &mut impl Write,
    domain: &Domain,
    operation: &'static str,
    moved: Moved,
) -> Result<()> {
    let details = Population::of(domain)?;
    if args.json {
        json(
            out,
            &Report {
                operation,
                moved,
                details,
            },
        )?;
    } else {
        section(out, operation, [Count(moved.pages, "page")])?;
        section(out, "domain", [details])?;
    }
    Ok(())
}

pub(crate) fn move_pages(args: &Args, what: &Move, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.pages.target)?;
    let ranges = chosen(what.pages.range.as_ref(), &domain.regions()?);
    let before = machine(&domain, &ranges)?;
    let (moved, result) = in_parts("move", ranges.clone(), |part| {
        domain.move_pages(part, what.policy, what.seed)
    });
    refused_at_once(moved, &result)?;
    let after = machine(&domain, &ranges)?;
    report_change(args, out, "move", "page", moved, Change { before, after })?;
    result?;
    Ok(moved.busy == 0)
}

pub(crate) fn contig(args: &Args, what: &Contig, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.pages.target)?;
    let range = what.pages.range.clone();
    let moved = counted(range.end.0 - range.start.0);
    let ranges = [range.clone()];
    let before = machine(&domain, &ranges)?;
    domain.make_contiguous(range, what.address_bits)?;
    let after = machine(&domain, &ranges)?;
    report_change(args, out, "contig", "page", moved, Change { before, after })?;
    Ok(true)
}

/// Superpages that there are now.
#[derive(Serialize)]
struct Superpages {
    superpages: u64,
}

impl Display for Superpages {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} in the range", Count(self.superpages, "superpage"))
    }
}

pub(crate) fn collapse(args: &Args, what: &Pages, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let (moved, superpages) = domain.collapse(what.range.clone())?;
    let details = Superpages { superpages };
    if args.json {
        let operation = "collapse";
        json(
            out,
            &Report {
                operation,
                moved,
                details,
            },
        )?;
    } else {
        section(out, "collapse", [described(moved, "page")])?;
        section(out, "range", [details])?;
    }
    Ok(moved.busy == 0)
}

pub(crate) fn exchange(args: &Args, what: &Exchange, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.pages.target)?;
    let range = what.pages.range.clone();
    let nr_pages = range.end.0 - range.start.0;
    let ranges = [range.clone(), p2m::pages(what.other, nr_pages)];
    let before = machine(&domain, &ranges)?;
    let moved = domain.exchange(range.start, what.other, nr_pages)?;
    let after = machine(&domain, &ranges)?;
    let change = Change { before, after };
    report_change(args, out, "exchange", "pair", moved, change)?;
    Ok(moved.busy == 0)
}

/// Returns what ranges are made of, unless MFNs are hidden.
fn machine(domain: &Domain, ranges: &[Range<Pfn>]) -> Result<Option<Machine>> {
    if !domain.info().mfn_visible {
        return Ok(None);
    }
    let runs = ranges.iter().flat_map(|range| domain.runs(range.clone()));
    Ok(Some(Machine::of(runs)?))
}

fn report_change(
    args: &Args,
    out: &mut impl Write,
    operation: &'static str,
    unit: &'static str,
    moved: Moved,
    details: Change,
) -> Result<()> {
    if args.json {
        json(
            out,
            &Report {
                operation,
                moved,
                details,
            },
        )?;
    } else {
        section(out, operation, [described(moved, unit)])?;
        section(out, "before", &details.before)?;
        section(out, "after", &details.after)?;
    }
    Ok(())
}

/// Says what became of pages, or of pairs of them.
fn described(moved: Moved, unit: &'static str) -> String {
    let done = Count(moved.pages, unit);
    match moved.busy {
        0 => done.to_string(),
        busy => format!(
            "{done}, {} left alone as somebody has pinned them: FAILED",
            Count(busy, unit)
        ),
    }
}

pub(crate) fn evacuate(args: &Args, what: &Evacuate, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let range = &what.range;
    let operation = if what.readmit { "readmit" } else { "evacuate" };
    // In one piece, as all of it has to be kept out of at the same time.
    let moved = if what.readmit {
        domain.readmit(range.clone())?;
        counted(0)
    } else if what.keep_out {
        domain.evacuate(range.clone(), Afterwards::KeepOut)?
    } else {
        domain.evacuate(range.clone(), Afterwards::Free)?
    };
    let regions = domain.regions()?;
    let runs = regions
        .iter()
        .flat_map(|region| domain.runs(region.range()));
    let details = Left {
        left: pages_in(runs, range)?,
    };
    if args.json {
        json(
            out,
            &Report {
                operation,
                moved,
                details,
            },
        )?;
    } else {
        let frames = format!("MFN {}..{}", range.start, range.end);
        let what = match what.readmit {
            true => frames,
            false => format!("{} out of {frames}", described(moved, "page")),
        };
        section(out, operation, [what])?;
        section(out, "left", [details])?;
    }
    Ok(moved.busy == 0)
}

/// Returns how many pages have a machine frame of a range.
fn pages_in<E>(
    runs: impl IntoIterator<Item = Result<Run, E>>,
    range: &Range<Mfn>,
) -> Result<u64, E> {
    runs.into_iter().try_fold(0, |sum, run| {
        let run = run?;
        let Some(mfn) = run.entry.mfn() else {
            return Ok(sum);
        };
        let start = mfn.max(range.start).0;
        let end = mfn.0.saturating_add(run.nr_pages).min(range.end.0);
        Ok(sum + end.saturating_sub(start))
    })
}

/// Does ranges part by part, and returns what was done by the first error, and the error.
fn in_parts(
    what: &'static str,
    ranges: impl IntoIterator<Item = Range<Pfn>>,
    mut work: impl FnMut(Range<Pfn>) -> p2m::Result<Moved>,
) -> (Moved, p2m::Result<()>) {
    let ranges: Vec<_> = ranges.into_iter().collect();
    let size = |range: &Range<Pfn>| range.end.0.saturating_sub(range.start.0);
    let progress = Progress::new(what, ranges.iter().map(size).sum());
    let mut total = Moved::default();
    for part in ranges.into_iter().flat_map(parts) {
        match work(part.clone()) {
            Ok(moved) => {
                total.pages += moved.pages;
                total.busy += moved.busy;
            }
            Err(error) => {
                total.pages += error.done();
                return (total, Err(error));
            }
        }
        progress.advance(size(&part));
    }
    (total, Ok(()))
}

/// Divides a range into parts that end at multiples of their size, as the module's own do.
fn parts(range: Range<Pfn>) -> impl Iterator<Item = Range<Pfn>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let start = next;
        let end = (start.0 / PART_PAGES + 1).saturating_mul(PART_PAGES);
        next = Pfn(end).min(range.end);
        (start < range.end).then_some(start..next)
    })
}

pub(crate) fn audit(args: &Args, of: &Target, out: &mut impl Write) -> Result<bool> {
    let audit = Audit(attach(args, of)?.audit()?);
    if args.json {
        json(out, &audit)?;
    } else {
        audit.print(out)?;
    }
    Ok(audit.0.is_good())
}

/// An audit, as it's printed.
struct Audit(p2m::Audit);

impl Serialize for Audit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            ok: bool,
            #[serde(flatten)]
            audit: &'a p2m::Audit,
        }
        let audit = &self.0;
        let ok = audit.is_good();
        Form { ok, audit }.serialize(serializer)
    }
}

impl Audit {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Self(audit) = self;
        let verdicts = [
            (audit.p2m_bad, "PFNs whose frame isn't theirs by the M2P"),
            (audit.m2p_bad, "frames whose PFN isn't theirs by the P2M"),
            (audit.orphans, "pages in no region"),
            (audit.refs_bad, "frames with too few references"),
            (audit.spaces_bad, "entries of spaces with an unknown frame"),
            (audit.count_bad.into(), "wrong counts of frames"),
        ];
        let verdicts = verdicts
            .iter()
            .map(|(bad, what)| format!("{bad} {what}: {}", Verdict(*bad == 0)));
        let frames = Count(audit.frames, "frame");
        let frames = format!("{frames}, {} of them pinned by somebody else", audit.pinned);
        section(out, "audit", std::iter::once(frames).chain(verdicts))?;
        let pfn = audit.first_pfn.map(|pfn| format!("PFN {pfn}"));
        let mfn = audit.first_mfn.map(|mfn| format!("MFN {mfn}"));
        section(out, "first", pfn.into_iter().chain(mfn))
    }
}

/// What was left to count.
#[derive(Serialize)]
struct Nth {
    nth: u64,
    left: u64,
}

pub(crate) fn fail_nth(args: &Args, what: &FailNth, out: &mut impl Write) -> Result<bool> {
    let left = attach(args, &what.target)?.fail_nth(what.nth)?;
    let nth = what.nth;
    if args.json {
        json(out, &Nth { nth, left })?;
    } else {
        let fails = match nth {
            0 => "none".to_owned(),
            nth => format!("place {nth} from now on"),
        };
        section(out, "fails", [fails])?;
        section(
            out,
            "left",
            [format!("{left} to count since the last time")],
        )?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Entry;
    use std::convert::Infallible;

    #[test]
    fn parts_cover_the_range_without_gap_or_overlap() {
        for start in [0, 5, PART_PAGES - 1, PART_PAGES] {
            for nr in [0, 1, PART_PAGES, PART_PAGES + 1, 3 * PART_PAGES - 1] {
                let range = p2m::pages(Pfn(start), nr);
                let mut next = range.start;
                for part in parts(range.clone()) {
                    assert_eq!(part.start, next);
                    assert!(!part.is_empty());
                    next = part.end;
                    assert!(next == range.end || next.0 % PART_PAGES == 0);
                }
                assert_eq!(next, range.end);
            }
        }
    }

    #[test]
    fn the_last_pages_of_all_are_parts_too() {
        let last = Pfn(u64::MAX - 2)..Pfn(u64::MAX);
        assert_eq!(parts(last.clone()).collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn parts_add_up_to_the_first_error() {
        let range = p2m::pages(Pfn(0), 3 * PART_PAGES);
        let one = Moved { pages: 5, busy: 2 };
        let (total, result) = in_parts("test", [range.clone(), range.clone()], |_| Ok(one));
        assert_eq!(
            (total, result),
            (
                Moved {
                    pages: 30,
                    busy: 12
                },
                Ok(())
            )
        );

        let error = p2m::Error::Short {
            operation: p2m::Operation::Move,
        };
        let (total, result) = in_parts("test", [range], |part| match part.start.0 {
            0 => Ok(one),
            _ => Err(error.clone()),
        });
        assert_eq!((total, result), (one, Err(error)));
    }

    #[test]
    fn only_pages_in_the_range_are_left() {
        let run = |pfn, nr_pages, mfn| -> Result<_, Infallible> {
            Ok(Run {
                pfn: Pfn(pfn),
                nr_pages,
                entry: Entry::from_raw(mfn),
            })
        };
        let runs = || [run(0, 4, 8), run(4, 100, u64::MAX), run(104, 10, 12)];
        for (start, end, expected) in [
            (0, 8, 0),
            (0, 9, 1),
            (0, 100, 14),
            (10, 13, 3),
            (11, 12, 1),
            (22, 90, 0),
        ] {
            let Ok(left) = pages_in(runs(), &(Mfn(start)..Mfn(end)));
            assert_eq!(left, expected, "{start}..{end}");
        }
    }

    fn audit() -> p2m::Audit {
        p2m::Audit {
            frames: 2048,
            pinned: 4,
            p2m_bad: 0,
            m2p_bad: 0,
            orphans: 0,
            refs_bad: 0,
            spaces_bad: 0,
            count_bad: false,
            first_pfn: None,
            first_mfn: None,
        }
    }

    fn printed(audit: p2m::Audit) -> String {
        let mut out = Vec::new();
        Audit(audit).print(&mut out).expect("print");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn an_audit_reads_at_a_glance() {
        let expected = "\
audit    2048 frames, 4 of them pinned by somebody else
         0 PFNs whose frame isn't theirs by the M2P: ok
         0 frames whose PFN isn't theirs by the P2M: ok
         0 pages in no region: ok
         0 frames with too few references: ok
         0 entries of spaces with an unknown frame: ok
         0 wrong counts of frames: ok
";
        assert_eq!(printed(audit()), expected);
        let text = printed(p2m::Audit {
            m2p_bad: 3,
            first_mfn: Some(Mfn(0x17)),
            ..audit()
        });
        assert!(text.contains("3 frames whose PFN isn't theirs by the P2M: FAILED\n"));
        assert!(text.ends_with("first    MFN 0x17\n"));
    }

    #[test]
    fn pages_left_alone_are_told() {
        let text = |busy| described(Moved { pages: 7, busy }, "page");
        assert_eq!(text(0), "7 pages");
        assert_eq!(
            text(1),
            "7 pages, 1 page left alone as somebody has pinned them: FAILED"
        );
    }
}
