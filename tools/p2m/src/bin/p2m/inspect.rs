// SPDX-License-Identifier: GPL-2.0

//! Commands that look and change nothing.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use p2m::{Access, Domain, Entry, Info, Mfn, Pagemap, Pfn, Populate, Region, Run, Stat};
use serde::Serialize;

use crate::args::{Args, Map, MaybeTarget, Target, Translate};
use crate::check::{self, Ask, Witness};
use crate::format::{Bytes, Count, Progress, json, section};
use crate::layout::{Extent, Page};

pub(crate) fn info(args: &Args, out: &mut impl Write) -> Result<bool> {
    let domain = open(args)?;
    if args.json {
        json(out, domain.info())?;
    } else {
        print_info(out, domain.info())?;
    }
    Ok(true)
}

fn print_info(out: &mut impl Write, info: &Info) -> io::Result<()> {
    let page = info.page_bytes();
    let bytes = |pages: u64| Bytes(pages.saturating_mul(page));
    let policies: Vec<_> = info.policies.iter().map(ToString::to_string).collect();
    let yes_no = |yes| if yes { "yes" } else { "no" };

    let (abi, page) = (info.abi_version, Bytes(page));
    section(
        out,
        "module",
        [format!("ABI version {abi}, pages of {page}")],
    )?;
    section(
        out,
        "policies",
        [format!(
            "{}; by default {}",
            policies.join(", "),
            info.default_policy
        )],
    )?;
    section(
        out,
        "opener",
        [format!(
            "sees MFNs: {}, can map tables: {}",
            yes_no(info.mfn_visible),
            yes_no(info.table_mmap)
        )],
    )?;
    section(
        out,
        "can do",
        [
            format!(
                "spaces: {}, access by the processor: {}, change frames in use: {}",
                yes_no(info.spaces),
                yes_no(info.cpu_access),
                yes_no(info.live)
            ),
            format!(
                "plan DMA: {}, export dma-bufs: {}",
                yes_no(info.dma_plan),
                yes_no(info.dma_buf)
            ),
        ],
    )?;
    let mut limits = vec![format!(
        "PFNs below {} ({})",
        info.max_pfn,
        bytes(info.max_pfn.0)
    )];
    if info.max_mfn != Mfn::HIDDEN {
        let mfns = info.max_mfn;
        limits.push(format!("MFNs below {mfns} ({})", bytes(mfns.0)));
    }
    for (whose, pages) in [
        ("each domain", info.max_domain_pages),
        ("all domains", info.max_total_pages),
    ] {
        let count = Count(pages, "page");
        limits.push(format!("{count} ({}) for {whose}", bytes(pages)));
    }
    let regions = Count(info.max_regions.into(), "region");
    limits.push(format!("{regions} for each domain"));
    section(out, "limits", limits)
}

pub(crate) fn stat(args: &Args, of: &MaybeTarget, out: &mut impl Write) -> Result<bool> {
    let target = of.target();
    let domain = match &target {
        Some(target) => attach(args, target)?,
        None => open(args)?,
    };
    let stat = domain.stat()?;
    if args.json {
        json(out, &stat)?;
    } else {
        print_stat(out, &stat, domain.info().page_bytes(), target.is_some())?;
    }
    Ok(true)
}

fn print_stat(out: &mut impl Write, stat: &Stat, page: u64, of_domain: bool) -> io::Result<()> {
    let bytes = |pages: u64| Bytes(pages.saturating_mul(page));
    // Of a domain that was made just for the question, there's nothing to tell.
    if of_domain {
        let domain = format!(
            "{}, {} ({}), generation {}",
            Count(stat.regions, "region"),
            Count(stat.pages, "page"),
            bytes(stat.pages),
            stat.generation
        );
        section(out, "domain", [domain])?;
        let frames = format!(
            "{} ({}), {}, and {}",
            Count(stat.frames, "frame"),
            bytes(stat.frames),
            Count(stat.superpages, "superpage"),
            Count(stat.guards, "guard")
        );
        section(out, "machine", [frames])?;
        let tables = format!(
            "{} for the P2M, {} for the M2P ({})",
            stat.p2m_tables,
            stat.m2p_tables,
            bytes(stat.p2m_tables.saturating_add(stat.m2p_tables))
        );
        section(out, "tables", [tables])?;
        let faults = format!(
            "{}, which mapped {}",
            Count(stat.faults, "fault"),
            Count(stat.fault_pages, "page")
        );
        section(out, "faults", [faults])?;
    }
    let system = format!(
        "{}, {} ({})",
        Count(stat.total_domains, "domain"),
        Count(stat.total_pages, "page"),
        bytes(stat.total_pages)
    );
    section(out, "system", [system])
}

pub(crate) fn map(args: &Args, what: &Map, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let regions = domain.regions()?;
    let ranges = chosen(what.range.as_ref(), &regions);
    let runs = ranges.into_iter().flat_map(|range| domain.runs(range));
    let extents = regions
        .iter()
        .map(|&region| Extent::new(region, domain.info().page_bytes()));

    if args.json {
        let regions = extents.collect();
        let runs = runs.collect::<p2m::Result<Vec<_>>>()?;
        return json(out, &Listing::new(regions, runs, what.pages))
            .map(|()| true)
            .map_err(Into::into);
    }

    section(out, "region", extents)?;
    for run in runs {
        let run = run?;
        if what.pages {
            for (pfn, entry) in run.pages() {
                writeln!(out, "{pfn:8}  {entry:8}")?;
            }
        } else {
            let Run {
                pfn,
                nr_pages,
                entry,
            } = run;
            writeln!(out, "{pfn:8} {nr_pages:>10}  {entry:8}")?;
        }
    }
    Ok(true)
}

/// Returns the range that was chosen, or those of all regions.
pub(crate) fn chosen(range: Option<&Range<Pfn>>, regions: &[Region]) -> Vec<Range<Pfn>> {
    match range {
        Some(range) => vec![range.clone()],
        None => regions.iter().map(Region::range).collect(),
    }
}

/// All of a domain.
#[derive(Serialize)]
struct Listing {
    regions: Vec<Extent>,
    #[serde(flatten)]
    contents: Contents,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Contents {
    Runs(Vec<Run>),
    Pages(Vec<Page>),
}

impl Listing {
    fn new(regions: Vec<Extent>, runs: Vec<Run>, by_page: bool) -> Self {
        let contents = if by_page {
            let pages = runs.into_iter().flat_map(Run::pages);
            Contents::Pages(pages.map(|(pfn, entry)| Page { pfn, entry }).collect())
        } else {
            Contents::Runs(runs)
        };
        Self { regions, contents }
    }
}

pub(crate) fn translate(args: &Args, what: &Translate, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    if what.reverse {
        let mfns: Vec<_> = what.numbers.iter().copied().map(Mfn).collect();
        let pfns = domain.reverse(&mfns)?;
        let answers: Vec<_> = mfns
            .into_iter()
            .zip(pfns)
            .map(|(mfn, pfn)| Reversed { mfn, pfn })
            .collect();
        if args.json {
            json(out, &answers)?;
            return Ok(true);
        }
        for Reversed { mfn, pfn } in answers {
            match pfn {
                Some(pfn) => writeln!(out, "MFN {mfn} -> PFN {pfn}")?,
                None => writeln!(out, "MFN {mfn} -> nothing")?,
            }
        }
    } else {
        let pfns: Vec<_> = what.numbers.iter().copied().map(Pfn).collect();
        let entries = domain.translate(&pfns)?;
        let answers: Vec<_> = pfns
            .into_iter()
            .zip(entries)
            .map(|(pfn, entry)| Page { pfn, entry })
            .collect();
        if args.json {
            json(out, &answers)?;
            return Ok(true);
        }
        for Page { pfn, entry } in answers {
            writeln!(out, "PFN {pfn} -> {entry}")?;
        }
    }
    Ok(true)
}

#[derive(Serialize)]
struct Reversed {
    mfn: Mfn,
    pfn: Option<Pfn>,
}

pub(crate) fn check(args: &Args, of: &Target, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, of)?;
    let regions = domain.regions()?;
    if !domain.info().mfn_visible {
        bail!("cannot check: machine frame numbers are shown only with CAP_SYS_ADMIN");
    }
    // What finds nothing to compare must not look like what found no difference.
    if regions.is_empty() {
        bail!("cannot check: the domain has no region");
    }

    let progress = Progress::new("check", regions.iter().map(|region| region.nr_pages).sum());
    let report = check::check(
        regions.iter().map(Region::range),
        asking(&domain),
        witnesses(&domain)?,
        move |nr_pages| progress.advance(nr_pages),
    )?;
    if args.json {
        json(out, &report)?;
    } else {
        report.print(out)?;
    }
    Ok(report.ok)
}

/// Returns how the module itself is asked for entries.
pub(crate) fn asking(domain: &Domain) -> Ask<'_, Range<Pfn>, Entry> {
    Box::new(|range| Ok(domain.translate(&numbers(&range))?))
}

/// Returns everybody who can say something about a domain.
fn witnesses(domain: &Domain) -> Result<Vec<(&'static str, Witness<'_>)>> {
    let pagemap = Pagemap::of_self()?;
    let mut witnesses = vec![
        (
            "/proc/self/pagemap",
            Witness::Frames(Box::new(move |range| {
                let memory = domain.map(range, Access::Read, Populate::Lazily)?;
                memory.populate()?;
                Ok(pagemap.frames_of(&memory)?)
            })),
        ),
        (
            "read(2)",
            Witness::Entries(Box::new(|range| Ok(domain.read_entries(range)?))),
        ),
        (
            "the runs",
            Witness::Entries(Box::new(|range| {
                let runs = domain.runs(range).collect::<p2m::Result<Vec<_>>>()?;
                let pages = runs.into_iter().flat_map(Run::pages);
                Ok(pages.map(|(_, entry)| entry).collect())
            })),
        ),
        (
            "the M2P",
            Witness::Reverse(Box::new(|mfns| Ok(domain.reverse(&mfns)?))),
        ),
    ];
    if domain.info().table_mmap {
        let [p2m, m2p] = [domain.tables()?, domain.tables()?];
        witnesses.push((
            "the mapped P2M",
            Witness::Entries(Box::new(move |range| {
                let entries = numbers(&range).into_iter().map(|pfn| p2m.lookup(pfn));
                Ok::<Vec<Entry>, _>(entries.collect())
            })),
        ));
        witnesses.push((
            "the mapped M2P",
            Witness::Reverse(Box::new(move |mfns| {
                Ok(mfns.into_iter().map(|mfn| m2p.reverse(mfn)).collect())
            })),
        ));
    }
    Ok(witnesses)
}

fn numbers(range: &Range<Pfn>) -> Vec<Pfn> {
    (range.start.0..range.end.0).map(Pfn).collect()
}

/// Makes a new domain.
pub(crate) fn open(args: &Args) -> Result<Domain> {
    Domain::open_at(&args.device).with_context(|| args.device.display().to_string())
}

/// Attaches to the domain of another process.
pub(crate) fn attach(args: &Args, target: &Target) -> Result<Domain> {
    let fd = descriptor(args, target)?;
    let domain = Domain::attach(target.pid, fd);
    domain.with_context(|| format!("cannot attach to descriptor {fd} of process {}", target.pid))
}

/// Returns the descriptor that was chosen, or the only one.
pub(crate) fn descriptor(args: &Args, target: &Target) -> Result<RawFd> {
    match target.fd {
        Some(fd) => Ok(fd),
        None => only_descriptor(target.pid, &args.device),
    }
}

/// Returns the descriptor that a process has of the device, if there is exactly one.
fn only_descriptor(pid: u32, device: &Path) -> Result<RawFd> {
    let directory = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&directory)
        .with_context(|| format!("cannot look for descriptors in {directory}"))?;
    let mut found: Vec<RawFd> = entries
        // A descriptor that was closed meanwhile isn't the one.
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == device))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    match found[..] {
        [fd] => Ok(fd),
        [] => bail!("process {pid} has no descriptor of {}", device.display()),
        _ => bail!(
            "process {pid} has several descriptors of {}, choose one by --fd: {found:?}",
            device.display()
        ),
    }
}
