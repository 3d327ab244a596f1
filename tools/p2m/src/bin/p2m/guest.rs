// SPDX-License-Identifier: GPL-2.0

//! A kernel in the pages of a domain: loading it, and running it.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use p2m::{Access, Constraint, Domain, Mapping, Pagemap, Pfn, Policy, Populate, Region};
use p2m_guest::{Console, Ending, Guest, How, Hypervisor, Memory, tables};
use p2m_loader::{Images, Kernel, Loaded, ReadBack, Segment, read_back};
use serde::Serialize;

use crate::alloc::hold;
use crate::args::{Args, Frames, parse_size};
use crate::format::{Bytes, Count, Progress, Verdict, json, section};
use crate::inspect::open;
use crate::kcore::{Below, Kcore};
use crate::layout::{Extent, Machine};

const PAGE_BYTES: u64 = p2m_loader::PAGE_BYTES;

#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Load a kernel into pages of a domain, and read it back where it is in the machine.
    ///
    /// Each segment has a checksum that was made from the image (CRC-32). Then each of its pages is
    /// looked up in the P2M, and read at the machine address of its frame, from /proc/kcore.
    Load(GuestLoad),
    /// Run a kernel in pages of a domain, under KVM.
    ///
    /// Its first serial port is the console, on this terminal. The exit status is the number that it
    /// wrote to its second one last: echo 3 >/dev/ttyS1. Without such a number the exit status is 0
    /// if it switched itself off, else 255; if it couldn't be run at all, it's 1.
    Run(GuestRun),
}

impl GuestCommand {
    /// Returns the policy and the seed, which have to go together.
    pub(crate) fn policy_and_seed(&self) -> (Policy, u64) {
        let images = match self {
            Self::Load(load) => &load.images,
            Self::Run(run) => &run.images,
        };
        (images.frames.policy, images.frames.seed)
    }

    /// Returns whether pages would go that can't come again.
    pub(crate) fn lacks_on_demand(&self) -> bool {
        match self {
            Self::Run(run) => run.free_pages && !run.images.frames.on_demand && !run.anonymous,
            Self::Load(_) => false,
        }
    }
}

/// What is loaded, and into what.
#[derive(Debug, clap::Args)]
pub(crate) struct GuestImages {
    /// The kernel: a bzImage such as /boot/vmlinuz-*, or a vmlinux.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// The initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Add this to the command line of the kernel.
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,

    /// Size of the memory, rounded up to whole pages.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,

    #[command(flatten)]
    frames: Frames,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GuestLoad {
    #[command(flatten)]
    images: GuestImages,

    /// Stay alive until a signal comes, so that others can attach.
    #[arg(long)]
    hold: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GuestRun {
    #[command(flatten)]
    images: GuestImages,

    /// Ask the guest to give back so much memory by its virtio balloon, from the beginning.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    balloon: Option<u64>,

    /// Have the guest tell by its virtio balloon which pages are free, and release them. It touches
    /// them again without a word, so this needs --on-demand.
    #[arg(long)]
    free_pages: bool,

    /// Use anonymous memory instead of a domain, to compare.
    #[arg(long, conflicts_with_all = ["policy", "seed", "on_demand", "guarded"])]
    anonymous: bool,

    /// Write a report in JSON here when the guest has ended.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What to load, opened before there is memory for it.
struct Opened {
    kernel: Kernel<File>,
    initrd: Option<File>,
    command_line: String,
    memory_bytes: u64,
}

impl Opened {
    fn new(images: &GuestImages) -> Result<Self> {
        let image = |path: &Path| -> io::Result<File> {
            let file = File::open(path)?;
            if file.metadata()?.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(file)
        };
        let name = images.kernel.display();
        let kernel = image(&images.kernel)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(Kernel::open(file)?))
            .with_context(|| format!("cannot use {name} as the kernel"))?;
        let initrd = images.initrd.as_deref().map(|path| {
            image(path).with_context(|| format!("cannot use {} as the initrd", path.display()))
        });
        let append = images.append.as_deref().unwrap_or_default();
        let command_line = format!("{} {append}", p2m_guest::COMMAND_LINE);
        let memory_bytes = images
            .memory
            .checked_next_multiple_of(PAGE_BYTES)
            .context("so much memory can't be")?;
        Ok(Self {
            kernel,
            initrd: initrd.transpose()?,
            command_line: command_line.trim_end().to_owned(),
            memory_bytes,
        })
    }

    fn load<K>(&mut self, memory: &Memory<K>, balloon: bool) -> Result<Loaded> {
        let tables = tables(balloon);
        let mut images = Images {
            initrd: self.initrd.as_mut(),
            command_line: &self.command_line,
            tables: tables.tables,
            root_pointer: Some(tables.root_pointer),
        };
        p2m_loader::load(memory.guest(), &mut self.kernel, &mut images)
            .context("cannot load the kernel")
    }
}

/// Regions for the memory of a guest, and the mappings of them.
fn populate(
    domain: &Domain,
    bytes: u64,
    frames: &Frames,
) -> Result<(Vec<Region>, Memory<Vec<Mapping>>)> {
    if domain.info().page_bytes() != PAGE_BYTES {
        bail!("a guest needs pages of 4 KiB");
    }
    let (mut regions, mut mappings, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
    for range in p2m_guest::layout(bytes)? {
        let region = frames
            .region(domain, (range.end - range.start) / PAGE_BYTES)
            .constraint(Constraint {
                guarded: frames.guarded,
                ..Constraint::default()
            })
            .base(Pfn(range.start / PAGE_BYTES))
            .create()?;
        let mapping = domain.map(region.range(), Access::ReadWrite, Populate::Lazily)?;
        pieces.push((range.start, mapping.as_ptr(), mapping.len_bytes()));
        regions.push(region);
        mappings.push(mapping);
    }
    // SAFETY: The mappings are of these addresses and sizes as long as they live, and nobody has
    // asked them for references.
    let memory = unsafe { Memory::new(&pieces, mappings) }?;
    Ok((regions, memory))
}

/// A segment, as it's printed.
#[derive(Serialize)]
struct Found {
    kind: String,
    address: u64,
    bytes: u64,
    pfn: Pfn,
    frames: u64,
    runs: u64,
    checksum: String,
    found: String,
    ok: bool,
}

impl Found {
    fn new(segment: &Segment, found: ReadBack) -> Self {
        Self {
            kind: segment.kind.to_string(),
            address: segment.address,
            bytes: segment.bytes,
            pfn: Pfn(segment.pfns().start),
            frames: found.frames,
            runs: found.runs,
            checksum: segment.checksum.to_string(),
            found: found.checksum.to_string(),
            ok: found.checksum == segment.checksum,
        }
    }

    fn line(&self) -> String {
        let Self {
            kind,
            address,
            bytes,
            checksum,
            found,
            ok,
            ..
        } = self;
        let end = address + bytes;
        let frames = format!(
            "{} in {}",
            Count(self.frames, "frame"),
            Count(self.runs, "run")
        );
        let verdict = Verdict(*ok);
        let found = if *ok {
            String::new()
        } else {
            format!(", found {found}")
        };
        format!(
            "{kind:<16} {address:#010x}..{end:#010x}  {frames}, checksum {checksum}{found}: {verdict}"
        )
    }
}

/// What is printed of a kernel that was loaded.
#[derive(Serialize)]
struct Report {
    regions: Vec<Extent>,
    machine: Machine,
    segments: Vec<Found>,
    /// Where the processor would begin.
    entry: u64,
    ok: bool,
    /// Who to attach to.
    pid: Option<u32>,
}

pub(crate) fn load(args: &Args, what: &GuestLoad, out: &mut impl Write) -> Result<bool> {
    let mut opened = Opened::new(&what.images)?;
    let domain = open(args)?;
    if !domain.info().mfn_visible {
        bail!("cannot read back: machine frame numbers are shown only with CAP_SYS_ADMIN");
    }
    let (regions, memory) = populate(&domain, opened.memory_bytes, &what.images.frames)?;
    let loaded = opened.load(&memory, false)?;

    let mut below = Below {
        domain: &domain,
        memory: Kcore::open()?,
    };
    let total = loaded.segments.iter().map(|segment| segment.bytes).sum();
    let progress = Progress::new("check", total);
    let mut segments = Vec::new();
    for segment in &loaded.segments {
        let found = read_back(segment, &mut below).map_err(|error| match error {
            p2m_loader::ReadBackError::Machine(error) => error,
            other => anyhow::Error::msg(other.to_string()),
        })?;
        progress.advance(segment.bytes);
        segments.push(Found::new(segment, found));
    }
    drop(progress);

    let runs = regions
        .iter()
        .flat_map(|region| domain.runs(region.range()));
    let machine = Machine::of(runs)?;
    let ok = segments.iter().all(|segment| segment.ok);
    let extents = regions
        .iter()
        .map(|&region| Extent::new(region, PAGE_BYTES));
    let report = Report {
        regions: extents.collect(),
        machine,
        segments,
        entry: loaded.entry.instruction,
        ok,
        pid: (ok && what.hold).then(std::process::id),
    };
    if args.json {
        json(out, &report)?;
    } else {
        report.print(out)?;
    }
    match report.pid {
        Some(_) => hold(out),
        None => Ok(ok),
    }
}

impl Report {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        section(out, "region", &self.regions)?;
        section(out, "machine", [&self.machine])?;
        section(out, "segment", self.segments.iter().map(Found::line))?;
        section(out, "entry", [format!("{:#x}", self.entry)])?;
        let bytes = self.segments.iter().map(|segment| segment.bytes).sum();
        let check = format!(
            "{} ({}) read back at machine addresses: {}",
            Count(self.segments.len() as u64, "segment"),
            Bytes(bytes),
            Verdict(self.ok)
        );
        section(out, "check", [check])?;
        if let Some(pid) = self.pid {
            section(
                out,
                "hold",
                [format!("process {pid}, until a signal comes")],
            )?;
        }
        Ok(())
    }
}

/// The pages of a domain, as a balloon needs them.
struct DomainPages<'a>(&'a Domain);

impl p2m_guest::Pages for DomainPages<'_> {
    fn release(&mut self, pfns: Range<u64>) -> io::Result<()> {
        let released = self.0.release(Pfn(pfns.start)..Pfn(pfns.end));
        released.map(drop).map_err(io::Error::other)
    }

    fn populate(&mut self, pfns: Range<u64>) -> io::Result<()> {
        let populated = self.0.populate(Pfn(pfns.start)..Pfn(pfns.end));
        populated.map(drop).map_err(io::Error::other)
    }
}

/// What is reported of a guest that has ended. Times are in seconds.
#[derive(Serialize)]
struct RunReport {
    memory: &'static str,
    memory_bytes: u64,
    how: &'static str,
    status: Option<u8>,
    /// To make and map the memory.
    memory_seconds: f64,
    /// To load the kernel.
    load_seconds: f64,
    /// From the first instruction to the end.
    run_seconds: f64,
    /// Pages with a frame at the end.
    frames: u64,
    /// Pages that the tables of the domain take.
    table_pages: u64,
}

/// When things were done.
struct Times {
    start: Instant,
    memory: Duration,
    load: Duration,
}

pub(crate) fn run(args: &Args, what: &GuestRun) -> Result<u8> {
    let mut opened = Opened::new(&what.images)?;
    // Before there is memory, as this fails most often.
    let hypervisor = Hypervisor::open()?;
    if what.anonymous {
        let start = Instant::now();
        let memory = Memory::anonymous(opened.memory_bytes)?;
        run_in(
            what,
            &mut opened,
            &hypervisor,
            &memory,
            start,
            || &memory,
            None,
        )
    } else {
        let domain = open(args)?;
        let start = Instant::now();
        let (_, memory) = populate(&domain, opened.memory_bytes, &what.images.frames)?;
        let pages = || DomainPages(&domain);
        run_in(
            what,
            &mut opened,
            &hypervisor,
            &memory,
            start,
            pages,
            Some(&domain),
        )
    }
}

fn run_in<'a, K, P: p2m_guest::Pages + 'a>(
    what: &GuestRun,
    opened: &mut Opened,
    hypervisor: &Hypervisor,
    memory: &'a Memory<K>,
    start: Instant,
    pages: impl FnOnce() -> P,
    domain: Option<&Domain>,
) -> Result<u8> {
    let balloon = what.balloon.is_some() || what.free_pages;
    let made = start.elapsed();
    let loaded = opened.load(memory, balloon)?;
    let times = Times {
        start,
        memory: made,
        load: start.elapsed() - made,
    };
    let mut guest = Guest::new(hypervisor, memory.guest(), &loaded.entry)?;
    if balloon {
        let target = what.balloon.unwrap_or(0).min(opened.memory_bytes) / PAGE_BYTES;
        let target = u32::try_from(target).context("the balloon is too large")?;
        guest.balloon(pages(), target, what.free_pages)?;
    }
    let console = Console::attach()?;
    guest.feed_console()?;
    let ending = guest.run();
    drop(console);
    let ending = ending?;
    if let Some(path) = &what.report {
        report(path, opened.memory_bytes, &times, ending, memory, domain)
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    Ok(status(ending))
}

/// Returns the exit status to hand on, and says so if there is none.
fn status(ending: Ending) -> u8 {
    const DIED: u8 = 255;
    match (ending.status, ending.how) {
        (Some(status), _) => status,
        (None, How::Off) => 0,
        (None, How::Reset) => {
            eprintln!("p2m: the guest reset itself and left no exit status");
            DIED
        }
        (None, How::TripleFault) => {
            eprintln!("p2m: the guest died of a triple fault");
            DIED
        }
    }
}

fn report<K>(
    path: &Path,
    memory_bytes: u64,
    times: &Times,
    ending: Ending,
    memory: &Memory<K>,
    domain: Option<&Domain>,
) -> Result<()> {
    let run = times.start.elapsed() - times.memory - times.load;
    let (frames, table_pages) = match domain {
        Some(domain) => {
            let stat = domain.stat()?;
            (stat.frames, stat.p2m_tables + stat.m2p_tables)
        }
        None => (present(memory)?, 0),
    };
    let report = RunReport {
        memory: if domain.is_some() { "p2m" } else { "anonymous" },
        memory_bytes,
        how: match ending.how {
            How::Off => "off",
            How::Reset => "reset",
            How::TripleFault => "triple fault",
        },
        status: ending.status,
        memory_seconds: times.memory.as_secs_f64(),
        load_seconds: times.load.as_secs_f64(),
        run_seconds: run.as_secs_f64(),
        frames,
        table_pages,
    };
    json(&mut File::create(path)?, &report)?;
    Ok(())
}

/// Returns how many pages of memory are there by the pagemap.
fn present<K>(memory: &Memory<K>) -> Result<u64> {
    let pagemap = Pagemap::of_self()?;
    let mut present = 0;
    for (address, bytes) in memory.mapped() {
        let frames = pagemap.frames(address, bytes / PAGE_BYTES as usize)?;
        present += frames.iter().flatten().count() as u64;
    }
    Ok(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_says_nothing_has_died_unless_it_is_off() {
        for (how, said, expected) in [
            (How::Off, None, 0),
            (How::Off, Some(3), 3),
            (How::Reset, None, 255),
            (How::Reset, Some(0), 0),
            (How::TripleFault, None, 255),
            (How::TripleFault, Some(7), 7),
        ] {
            let ending = Ending { how, status: said };
            assert_eq!(status(ending), expected, "{ending:?}");
        }
    }
}
