// SPDX-License-Identifier: GPL-2.0

//! The arguments of the command line. Their descriptions are the help that users see.

use std::ffi::OsString;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use p2m::{
    Address, Colour, Constraint, DmaLimits, Domain, Level, Mfn, MfnRange, Pfn, Policy, PteFlags,
    RegionBuilder, SpaceId, pages,
};

use crate::crash::CrashCommand;
use crate::guest::GuestCommand;

/// What all commands have in common.
const GLOBAL: &str = "Global options";

/// Pseudo-physical memory: pages that look like one piece, and what they are made of.
///
/// A domain numbers its pages by PFN, pseudo-physical frame number. Where the data really is, says
/// the MFN, the machine frame number. P2M is the map from PFN to MFN, M2P the map back.
#[derive(Debug, Parser)]
#[command(
    name = "p2m",
    version,
    max_term_width = 100,
    after_help = "Numbers are decimal or 0x hexadecimal. Sizes take a suffix K, M, G or T, in powers \
                  of 1024.\n\
                  Exit status: 0 all is good, 1 an operation failed or left pages alone, or a check \
                  found a difference, 2 wrong usage."
)]
pub(crate) struct Args {
    /// Print JSON instead of text.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) json: bool,

    /// The device node.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "PATH", default_value = p2m::DEVICE)]
    pub(crate) device: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the module can do and what it allows.
    Info,
    /// Show statistics of the system, and with --pid of a domain.
    Stat(MaybeTarget),
    /// Create a region in a domain of its own, use it as one piece and show what it's made of.
    Alloc(Alloc),
    /// Show the machine runs that the regions of a domain consist of.
    Map(Map),
    /// Translate PFNs to MFNs, or back.
    Translate(Translate),
    /// Compare all that the module says about a domain with what the rest of the kernel says.
    ///
    /// For every populated PFN, the answer of the translating ioctl is compared with
    /// /proc/self/pagemap of a mapping made for the purpose, with read(2), with the runs, with the
    /// mapped tables, and with the M2P.
    Check(Target),
    /// Draw which machine frames are where: PFNs from left to right, MFNs from bottom to top.
    Plot(Plot),
    /// Build page tables in a domain, through a backend that decides what is in them.
    ///
    /// A space lives in a domain until it's destroyed or the domain ends. Its tables are pages of the
    /// domain, too.
    Space {
        #[command(subcommand)]
        command: Space,
    },
    /// Show what the tables of a space have for an address, at every level.
    ///
    /// Of each entry there is what is in the table, where the processor reads it, and what that means
    /// for the code that knows pseudo-physical addresses only. Flags are r present, w writable,
    /// x executable, u user, t write-through, c uncached, p other memory type, A accessed, D dirty.
    Walk(Walk),
    /// Give pages back to the kernel. Touching one is an error then, or brings a new one on demand.
    Release(Pages),
    /// Take zeroed pages where a region has none.
    Populate(MaybePages),
    /// Give pages other machine frames, while they are in use.
    Move(Move),
    /// Move the pages of a domain out of a range of machine frames.
    Evacuate(Evacuate),
    /// Give pages machine frames that follow each other.
    Contig(Contig),
    /// Make superpages: give each 512 pages, where they are aligned, 2 MiB of machine frames.
    Collapse(Pages),
    /// Have pages exchange their machine frames. Their contents stay where they were.
    Exchange(Exchange),
    /// Have the module check everything that it knows about a domain.
    Audit(Target),
    /// Create, destroy or list regions of a domain.
    Region {
        #[command(subcommand)]
        command: RegionCommand,
    },
    /// Find out who runs over the edges of the frames of a guarded region.
    Guard {
        #[command(subcommand)]
        command: Guard,
    },
    /// Have a domain see pages of another one.
    Foreign {
        #[command(subcommand)]
        command: Foreign,
    },
    /// Have PFNs, where nothing is, be the machine frames of the same numbers, which are no memory.
    ///
    /// They are for page tables: a mapping doesn't show them. Needs CAP_SYS_RAWIO. p2m release takes
    /// them away.
    Identity(Pages),
    /// Have the n-th place of a domain that can fail do so, once.
    ///
    /// Prints what was left to count since the last time: 0 if that has failed.
    FailNth(FailNth),
    /// Print every change of a P2M, and every region that comes or goes, as it happens.
    ///
    /// Needs root and a mounted tracefs, in which it has an instance of its own while it runs. With
    /// --json, there is one object on each line.
    Trace(Trace),
    /// See memory of a domain as a device does.
    Dma {
        #[command(subcommand)]
        command: DmaCommand,
    },
    /// Have a kernel started when the running one panics, without memory reserved for it.
    ///
    /// Needs the module p2m_crash and CAP_SYS_BOOT.
    Crash {
        #[command(subcommand)]
        command: CrashCommand,
    },
    /// Have a Linux kernel in the pages of a domain, which it sees as the memory of its machine.
    ///
    /// A region is made for its memory, in which PFNs are the guest's frame numbers: from 0 to 3 GiB,
    /// and from 4 GiB on.
    Guest {
        #[command(subcommand)]
        command: GuestCommand,
    },
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

/// The domain of another process. Attaching needs the right to trace it.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The process that has the domain open.
    #[arg(long)]
    pub(crate) pid: u32,

    /// Its descriptor of the domain; not needed if it has only one.
    #[arg(long)]
    pub(crate) fd: Option<RawFd>,
}

/// The domain of another process, or none. (A flattened `Option<Target>` would still require --pid.)
#[derive(Debug, clap::Args)]
pub(crate) struct MaybeTarget {
    /// The process that has the domain open.
    #[arg(long)]
    pid: Option<u32>,

    /// Its descriptor of the domain; not needed if it has only one.
    #[arg(long, requires = "pid")]
    fd: Option<RawFd>,
}

impl MaybeTarget {
    pub(crate) fn target(&self) -> Option<Target> {
        self.pid.map(|pid| Target { pid, fd: self.fd })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Alloc {
    #[command(flatten)]
    pub(crate) region: NewRegion,

    /// Map all pages at once, not at the first touch.
    #[arg(long)]
    pub(crate) populate: bool,

    /// Compare every frame with /proc/self/pagemap.
    #[arg(long)]
    pub(crate) check: bool,

    /// Stay alive until a signal comes, so that others can attach.
    #[arg(long)]
    pub(crate) hold: bool,
}

/// What machine frames a region shall have, and when.
#[derive(Debug, clap::Args)]
pub(crate) struct Frames {
    /// Where the machine frames come from: whatever is fastest, no two neighbours, one run, or runs of
    /// 2 MiB.
    #[arg(long, default_value = "any", value_parser = policy_parser(Policy::NAMES.map(|(name, _)| name)))]
    pub(crate) policy: Policy,

    /// Which of the scattered orders.
    #[arg(long, value_parser = parse_number, default_value = "0", hide_default_value = true)]
    pub(crate) seed: u64,

    /// Have pages come when they are touched. p2m alloc touches none then, unless by --populate.
    #[arg(long)]
    pub(crate) on_demand: bool,

    /// Have guard frames on both sides of each frame, for p2m guard check.
    #[arg(long)]
    pub(crate) guarded: bool,
}

impl Frames {
    /// Begins a region of them.
    pub(crate) fn region<'a>(&self, domain: &'a Domain, nr_pages: u64) -> RegionBuilder<'a> {
        let region = domain.region(nr_pages).policy(self.policy).seed(self.seed);
        match self.on_demand {
            true => region.on_demand(),
            false => region,
        }
    }
}

/// What a region shall be.
#[derive(Debug, clap::Args)]
pub(crate) struct NewRegion {
    /// Size of the region, rounded up to whole pages.
    #[arg(value_parser = parse_size)]
    pub(crate) size: u64,

    #[command(flatten)]
    pub(crate) frames: Frames,

    /// First PFN of the region; otherwise the module chooses.
    #[arg(long, value_name = "PFN", value_parser = parse_pfn)]
    pub(crate) base: Option<Pfn>,

    /// Take frames of this NUMA node only.
    #[arg(long, value_name = "N")]
    node: Option<u32>,

    /// Take frames below this machine address only, such as 4G.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "mfns")]
    below: Option<u64>,

    /// Take frames with these numbers only.
    #[arg(long, value_name = "START..END", value_parser = parse_mfns)]
    mfns: Option<Range<Mfn>>,

    /// Take frames only whose numbers, divided by N, leave C.
    #[arg(long, visible_alias = "color", value_name = "C/N", value_parser = parse_colour)]
    colour: Option<Colour>,
}

impl NewRegion {
    /// Returns what is asked of each frame.
    pub(crate) fn constraint(&self, page_bytes: u64) -> Constraint {
        let below = self.below.map(|bytes| MfnRange {
            start: Mfn(0),
            end: Mfn(bytes / page_bytes),
        });
        let mfns = self.mfns.as_ref().map(|range| MfnRange {
            start: range.start,
            end: range.end,
        });
        Constraint {
            guarded: self.frames.guarded,
            node: self.node,
            mfns: below.or(mfns),
            colour: self.colour,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegionCommand {
    /// Create a region in a domain.
    Create(CreateRegion),
    /// Destroy the region that begins at a PFN, out of all mappings too.
    Destroy(DestroyRegion),
    /// List the regions of a domain, and what was asked of each.
    List(Target),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateRegion {
    #[command(flatten)]
    pub(crate) target: Target,

    #[command(flatten)]
    pub(crate) region: NewRegion,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DestroyRegion {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Its first PFN.
    #[arg(value_name = "PFN", value_parser = parse_pfn)]
    pub(crate) base: Pfn,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Guard {
    /// Look at the guards next to pages. Exit status 1 if one doesn't hold the pattern.
    Check(CheckGuards),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckGuards {
    #[command(flatten)]
    pub(crate) pages: MaybePages,

    /// Fill broken guards with the pattern again.
    #[arg(long)]
    pub(crate) refill: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Foreign {
    /// Put pages of another domain at PFNs of a region where nothing is. Both see them then.
    ///
    /// A page that can't be had or put leaves its place empty, is told, and the exit status is 1.
    Map(MapForeign),
    /// Take pages of other domains away.
    Unmap(Pages),
}

#[derive(Debug, clap::Args)]
pub(crate) struct MapForeign {
    #[command(flatten)]
    pub(crate) target: Target,

    /// The process that has the other domain open.
    #[arg(long, value_name = "PID")]
    pub(crate) from_pid: u32,

    /// Its descriptor of the other domain; not needed if it has only one.
    #[arg(long, value_name = "FD")]
    pub(crate) from_fd: Option<RawFd>,

    /// Where to put the first page.
    #[arg(value_name = "PFN", value_parser = parse_pfn)]
    pub(crate) start: Pfn,

    /// Pages of the other domain: a PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) frames: Range<Pfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FailNth {
    #[command(flatten)]
    pub(crate) target: Target,

    /// The place that fails, counted from 1. 0 for none.
    #[arg(value_name = "N", value_parser = parse_number)]
    pub(crate) nth: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) target: MaybeTarget,

    /// End after so many seconds; otherwise when a signal comes.
    #[arg(long = "for", value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) duration: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Map {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Show one line for each page, not for each run.
    #[arg(long)]
    pub(crate) pages: bool,

    /// Show this PFN, or START..END, with its holes; otherwise all regions.
    #[arg(value_parser = parse_range)]
    pub(crate) range: Option<Range<Pfn>>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Translate {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Translate MFNs to PFNs.
    #[arg(long)]
    pub(crate) reverse: bool,

    /// Frame numbers.
    #[arg(required = true, value_name = "N", value_parser = parse_number)]
    pub(crate) numbers: Vec<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Plot {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Write a PNG instead of drawing in the terminal.
    #[arg(long, value_name = "FILE.png")]
    pub(crate) out: Option<PathBuf>,

    /// Draw this PFN, or START..END; otherwise all regions.
    #[arg(value_parser = parse_range)]
    pub(crate) range: Option<Range<Pfn>>,
}

/// A space in the domain of another process.
#[derive(Debug, clap::Args)]
pub(crate) struct InSpace {
    #[command(flatten)]
    pub(crate) target: Target,

    /// The number that p2m space create gave it.
    #[arg(long, value_name = "N", value_parser = parse_space)]
    pub(crate) space: SpaceId,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Space {
    /// Create a space, and print its number.
    Create(CreateSpace),
    /// Destroy a space. Its tables become ordinary pages again.
    Destroy(InSpace),
    /// Map pages of the domain.
    Map(MapInSpace),
    /// Unmap addresses.
    Unmap(Unmap),
    /// Change the flags of what is mapped.
    Protect(Protect),
    /// Map other pages of the domain instead, with the same flags.
    Remap(Remap),
    /// List the spaces of a domain.
    List(Target),
    /// List what is mapped.
    Dump(Dump),
    /// Have the processor walk the tables and read or write words.
    Access(AccessSpace),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateSpace {
    #[command(flatten)]
    pub(crate) target: Target,

    /// What decides what is in the tables: p2m, p2m-lossless or native.
    #[arg(long, value_name = "NAME", default_value = "p2m")]
    pub(crate) backend: String,

    /// Number of levels of tables: 4 or 5.
    #[arg(long, value_name = "N", default_value = "4",
          value_parser = clap::value_parser!(u32).range(4..=5))]
    pub(crate) levels: u32,

    /// The pages of the domain that become tables when they are needed.
    #[arg(long, value_name = "START..END", value_parser = parse_range)]
    pub(crate) pool: Range<Pfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MapInSpace {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// What the mapping allows, such as rwxu; see p2m walk.
    #[arg(long, default_value = "rwu", value_parser = parse_flags)]
    pub(crate) flags: PteFlags,

    /// The largest leaves: 4K, 2M or 1G. They are made only where the machine frames allow it.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = level_parser())]
    pub(crate) max_leaf: Level,

    /// Where to map.
    #[arg(value_parser = parse_address)]
    pub(crate) address: Address,

    /// What to map: a PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) frames: Range<Pfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Unmap {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// Unmap all that is mapped.
    #[arg(long)]
    pub(crate) all: bool,

    /// The address of a page, or START..END.
    #[arg(value_name = "ADDRESSES", value_parser = parse_addresses, required_unless_present = "all",
          conflicts_with = "all")]
    pub(crate) range: Option<AddressRange>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Protect {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// What the mapping allows from now on, such as ru; see p2m walk. A and D stay.
    #[arg(long, value_parser = parse_flags)]
    pub(crate) flags: PteFlags,

    /// The address of a page, or START..END.
    #[arg(value_name = "ADDRESSES", value_parser = parse_addresses)]
    pub(crate) range: AddressRange,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remap {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// Where to map.
    #[arg(value_parser = parse_address)]
    pub(crate) address: Address,

    /// What to map: a PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) frames: Range<Pfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// Show one line for each page, not for each run.
    #[arg(long)]
    pub(crate) pages: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AccessSpace {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// Write these words.
    #[arg(long, value_name = "WORD", num_args = 1.., value_parser = parse_number,
          conflicts_with_all = ["words", "checksum"])]
    pub(crate) write: Vec<u64>,

    /// How many words of 8 bytes to read.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_words)]
    pub(crate) words: usize,

    /// Show only the checksum of the words (FNV-1a).
    #[arg(long)]
    pub(crate) checksum: bool,

    /// The address of the first word.
    #[arg(value_parser = parse_address)]
    pub(crate) address: Address,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Walk {
    #[command(flatten)]
    pub(crate) space: InSpace,

    /// Have the processor walk, too: read a word, and compare it with that in the page of the domain.
    #[arg(long)]
    pub(crate) cpu: bool,

    /// The address to walk to.
    #[arg(value_parser = parse_address)]
    pub(crate) address: Address,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pages {
    #[command(flatten)]
    pub(crate) target: Target,

    /// A PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) range: Range<Pfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MaybePages {
    #[command(flatten)]
    pub(crate) target: Target,

    /// A PFN, or START..END; otherwise all regions.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) range: Option<Range<Pfn>>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    #[command(flatten)]
    pub(crate) pages: MaybePages,

    /// Where the machine frames come from: whatever is fastest, or no two neighbours.
    #[arg(long, default_value = "any", value_parser = policy_parser(["any", "scatter"]))]
    pub(crate) policy: Policy,

    /// Which of the scattered orders.
    #[arg(long, value_parser = parse_number, default_value = "0", hide_default_value = true)]
    pub(crate) seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Evacuate {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Have the domain take no frame from there again.
    #[arg(long, conflicts_with = "readmit")]
    pub(crate) keep_out: bool,

    /// Move nothing, and let the domain have frames from there again.
    #[arg(long)]
    pub(crate) readmit: bool,

    /// An MFN, or START..END.
    #[arg(value_name = "MFNS", value_parser = parse_mfns)]
    pub(crate) range: Range<Mfn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Contig {
    #[command(flatten)]
    pub(crate) pages: Pages,

    /// The number of bits that machine addresses may have at most, for a device that knows no more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(12..=64))]
    pub(crate) address_bits: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exchange {
    #[command(flatten)]
    pub(crate) pages: Pages,

    /// The first PFN of the other pages, which are as many.
    #[arg(value_name = "PFN", value_parser = parse_pfn)]
    pub(crate) other: Pfn,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DmaCommand {
    /// List the segments that a range is for a device, and say which must bounce, and why.
    ///
    /// The limits are those that a driver has in struct device_dma_parameters and struct
    /// queue_limits; without an option there is none. Reasons to bounce are mask (the device can't
    /// address it), straddle (the range is in more segments than it takes) and alignment; foreign,
    /// identity and unbacked say that something isn't memory of the domain.
    Plan(DmaPlan),

    /// Run a program that has a range as a dma-buf.
    ///
    /// It finds the number of the descriptor in $P2M_DMA_BUF, and its size in bytes in
    /// $P2M_DMA_SIZE. The exit status is that of the program.
    Export(DmaExport),

    /// Find out whether a driver takes the frames of a buffer to follow each other.
    ///
    /// A buffer is made that is one piece for its owner, and in the machine no two pages of which are
    /// neighbours: there are guards between them. A program that has it as a dma-buf has the device
    /// access bytes of it, all of them from --offset on: it finds its descriptor in $P2M_DMA_BUF, the
    /// size in $P2M_DMA_SIZE, and the range in $P2M_DMA_OFFSET and $P2M_DMA_LENGTH. With --reads it
    /// prints what the device has read, with --writes its input is what the device has to write. It
    /// may also map the buffer, and hand the driver the address.
    Check(DmaCheck),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DmaExport {
    #[command(flatten)]
    pub(crate) target: Target,

    /// A PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) range: Range<Pfn>,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("direction").required(true))]
pub(crate) struct DmaCheck {
    /// The device reads the buffer.
    #[arg(long, group = "direction")]
    pub(crate) reads: bool,

    /// The device writes to the buffer.
    #[arg(long, group = "direction")]
    pub(crate) writes: bool,

    /// Begin so many bytes behind the beginning of the buffer.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_offset, hide_default_value = true)]
    pub(crate) offset: u64,

    /// So many bytes; otherwise all to the end of the buffer.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) length: Option<u64>,

    /// Have a buffer that a device reaches which has so many bits of addresses.
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(20..=64))]
    pub(crate) mask: Option<u32>,

    /// Which of the scattered orders.
    #[arg(long, value_parser = parse_number, default_value = "0", hide_default_value = true)]
    pub(crate) seed: u64,

    /// What to call the device, if it doesn't attach to the dma-buf.
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Size of the buffer, rounded up to whole pages.
    #[arg(value_parser = parse_size)]
    pub(crate) size: u64,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DmaPlan {
    #[command(flatten)]
    pub(crate) target: Target,

    /// Begin so many bytes behind the beginning of the first page.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_offset, hide_default_value = true)]
    pub(crate) offset: u64,

    /// So many bytes; otherwise all to the end of the last page.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) length: Option<u64>,

    /// The bits of machine addresses that the device has.
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) mask: Option<u32>,

    /// The largest segment.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_segment: Option<u64>,

    /// No segment lies across a multiple of this power of two.
    #[arg(long, value_name = "SIZE", value_parser = parse_power)]
    pub(crate) boundary: Option<u64>,

    /// The power of two that addresses and lengths of segments are multiples of.
    #[arg(long, value_name = "SIZE", value_parser = parse_alignment)]
    pub(crate) align: Option<u32>,

    /// The most segments that the device takes at once: 1 if it can't gather.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_segments: Option<u32>,

    /// Make the plan of the runs of the domain, too, and compare.
    #[arg(long)]
    pub(crate) check: bool,

    /// A PFN, or START..END.
    #[arg(value_name = "PFNS", value_parser = parse_range)]
    pub(crate) range: Range<Pfn>,
}

impl DmaPlan {
    /// Returns the device as the kernel has it.
    pub(crate) fn limits(&self) -> DmaLimits {
        DmaLimits {
            dma_mask: self.mask.map_or(0, |bits| u64::MAX >> (u64::BITS - bits)),
            max_segment_size: self.max_segment.unwrap_or(0),
            segment_boundary_mask: self.boundary.map_or(0, |size| size - 1),
            dma_alignment: self.align.unwrap_or(0),
            max_segments: self.max_segments.unwrap_or(0),
        }
    }
}

/// Addresses as they are given: of one page, or a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressRange {
    Page(Address),
    Range(Range<Address>),
}

impl AddressRange {
    pub(crate) fn addresses(&self, page_bytes: u64) -> Range<Address> {
        match self {
            Self::Page(start) => *start..Address(start.0.saturating_add(page_bytes)),
            Self::Range(range) => range.clone(),
        }
    }
}

impl Args {
    /// Returns the arguments of this process, or ends it with help or a complaint.
    pub(crate) fn from_command_line() -> Self {
        Self::try_parse()
            .and_then(Self::validated)
            .unwrap_or_else(|error| error.exit())
    }

    /// Returns the description of the command line.
    pub(crate) fn described() -> clap::Command {
        Self::command()
    }

    /// Turns away what is well-formed, but makes no sense.
    fn validated(self) -> Result<Self, clap::Error> {
        let conflict = |message| Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        let (policy, seed) = match &self.command {
            Command::Alloc(Alloc { region, .. })
            | Command::Region {
                command: RegionCommand::Create(CreateRegion { region, .. }),
            } => (region.frames.policy, region.frames.seed),
            Command::Move(what) => (what.policy, what.seed),
            Command::Guest { command } => command.policy_and_seed(),
            _ => return Ok(self),
        };
        if seed != 0 && policy != Policy::SCATTER {
            return conflict(
                "--seed chooses one of the orders of --policy scatter, other policies have none",
            );
        }
        match &self.command {
            Command::Guest { command } if command.lacks_on_demand() => {
                conflict("--free-pages needs --on-demand: the guest touches free pages as it likes")
            }
            Command::Alloc(alloc)
                if alloc.region.frames.on_demand && alloc.check && !alloc.populate =>
            {
                conflict("--check compares pages, of which --on-demand leaves none: add --populate")
            }
            _ => Ok(self),
        }
    }
}

pub(crate) fn policy_parser<const N: usize>(
    names: [&'static str; N],
) -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Policy>())
}

fn level_parser() -> impl TypedValueParser<Value = Level> {
    const SIZES: [&str; 3] = ["4K", "2M", "1G"];
    PossibleValuesParser::new(SIZES).map(|size| {
        let level = SIZES.iter().position(|known| *known == size);
        Level(level.unwrap_or_default() as u32)
    })
}

pub(crate) fn parse_number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        // The parser would take a sign.
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16),
        _ => text.parse(),
    }
    .map_err(|error| error.to_string())
}

fn parse_pfn(text: &str) -> Result<Pfn, String> {
    parse_number(text).map(Pfn)
}

fn parse_address(text: &str) -> Result<Address, String> {
    parse_number(text).map(Address)
}

fn parse_space(text: &str) -> Result<SpaceId, String> {
    let number = parse_number(text)?.try_into();
    number
        .map(SpaceId)
        .map_err(|_| "no space has such a number".to_owned())
}

fn parse_words(text: &str) -> Result<usize, String> {
    // 128 MiB: more than anybody wants to read, and less than there is to keep them in.
    match parse_number(text)? {
        0 => Err("must be more than nothing".to_owned()),
        number if number <= 1 << 24 => Ok(number as usize),
        _ => Err("more than can be read".to_owned()),
    }
}

fn parse_flags(text: &str) -> Result<PteFlags, String> {
    text.parse::<PteFlags>().map_err(|error| error.to_string())
}

/// Parses START..END. [`None`] if there are no dots.
fn parse_bounds(text: &str) -> Result<Option<Range<u64>>, String> {
    let Some((start, end)) = text.split_once("..") else {
        return Ok(None);
    };
    let range = parse_number(start)?..parse_number(end)?;
    if range.is_empty() {
        return Err("there is nothing in this range".to_owned());
    }
    Ok(Some(range))
}

fn parse_range(text: &str) -> Result<Range<Pfn>, String> {
    let range = match parse_bounds(text)? {
        Some(range) => Pfn(range.start)..Pfn(range.end),
        None => pages(parse_pfn(text)?, 1),
    };
    if range.is_empty() {
        return Err("there is nothing in this range".to_owned());
    }
    Ok(range)
}

fn parse_mfns(text: &str) -> Result<Range<Mfn>, String> {
    let Range { start, end } = parse_range(text)?;
    Ok(Mfn(start.0)..Mfn(end.0))
}

fn parse_addresses(text: &str) -> Result<AddressRange, String> {
    Ok(match parse_bounds(text)? {
        Some(range) => AddressRange::Range(Address(range.start)..Address(range.end)),
        None => AddressRange::Page(parse_address(text)?),
    })
}

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let suffix = |(index, unit): (usize, &str)| {
        let number = text.strip_suffix(unit)?;
        Some((number, 10 * (index as u32 + 1)))
    };
    let (number, shift) = ["K", "M", "G", "T"]
        .into_iter()
        .enumerate()
        .find_map(suffix)
        .unwrap_or((text, 0));
    match parse_number(number)?.checked_mul(1 << shift) {
        None => Err("more than there are addresses".to_owned()),
        Some(0) => Err("must be more than nothing".to_owned()),
        Some(size) => Ok(size),
    }
}

fn parse_colour(text: &str) -> Result<Colour, String> {
    let number = |text| {
        let number = parse_number(text)?;
        u32::try_from(number).map_err(|_| "too many colours".to_owned())
    };
    let (colour, of) = text.split_once('/').ok_or("must be like 3/16")?;
    let (colour, of) = (number(colour)?, number(of)?);
    if colour >= of {
        return Err(format!("{of} colours have numbers below {of}"));
    }
    Ok(Colour { colour, of })
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses a size that may be nothing.
pub(crate) fn parse_offset(text: &str) -> Result<u64, String> {
    parse_number(text).or_else(|_| parse_size(text))
}

/// Parses a power of two, which more than one byte is.
fn parse_power(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        1 => Err("must be more than a byte".to_owned()),
        size if size.is_power_of_two() => Ok(size),
        _ => Err("must be a power of two".to_owned()),
    }
}

/// Parses a power of two, and returns the mask of what has to be 0.
fn parse_alignment(text: &str) -> Result<u32, String> {
    let mask = parse_power(text)? - 1;
    mask.try_into().map_err(|_| "more than 4G".to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_check_has_a_direction_and_a_program() {
        let of = |rest: &str| -> Result<DmaCheck, ErrorKind> {
            match parse(&format!("p2m dma check {rest}"))?.command {
                Command::Dma {
                    command: DmaCommand::Check(check),
                } => Ok(check),
                other => panic!("{other:?}"),
            }
        };
        let check = of("--reads 64K --offset 2048 --name edu0 -- prog --reads a").expect("check");
        assert_eq!((check.reads, check.writes), (true, false));
        assert_eq!(
            (check.size, check.offset, check.length),
            (65536, 2048, None)
        );
        assert_eq!(check.name.as_deref(), Some("edu0"));
        assert_eq!(check.command, ["prog", "--reads", "a"]);
        for line in ["64K -- prog", "--reads --writes 64K -- prog", "--reads 64K"] {
            assert!(of(line).is_err(), "{line}");
        }
    }

    /// Returns the arguments of `p2m dma plan`.
    pub(crate) fn dma_plan(rest: &str) -> DmaPlan {
        match parse(&format!("p2m dma plan --pid 1 {rest}")).map(|args| args.command) {
            Ok(Command::Dma {
                command: DmaCommand::Plan(plan),
            }) => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_has_the_limits_that_are_given() {
        assert_eq!(dma_plan("1").limits(), DmaLimits::default());
        let all =
            dma_plan("1 --mask 28 --max-segment 64K --boundary 4G --align 4G --max-segments 9");
        assert_eq!(
            all.limits(),
            DmaLimits {
                dma_mask: 0xfff_ffff,
                max_segment_size: 65536,
                segment_boundary_mask: 0xffff_ffff,
                dma_alignment: 0xffff_ffff,
                max_segments: 9,
            }
        );
        assert_eq!(dma_plan("1 --mask 64").limits().dma_mask, u64::MAX);
        for (text, offset) in [("0", 0), ("0x10", 16), ("64K", 65536)] {
            assert_eq!(dma_plan(&format!("1 --offset {text}")).offset, offset);
        }
        for wrong in [
            "--mask 0",
            "--mask 65",
            "--max-segment 0",
            "--boundary 5000",
            "--boundary 1",
            "--align 513",
            "--align 8G",
            "--max-segments 0",
        ] {
            assert!(
                parse(&format!("p2m dma plan --pid 1 1 {wrong}")).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_region_is_asked_for_what_is_given() {
        let constraint = |rest: &str| {
            let command = parse(&format!("p2m alloc 1M {rest}")).map(|args| args.command);
            match command {
                Ok(Command::Alloc(alloc)) => alloc.region.constraint(4096),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(constraint(""), Constraint::default());
        let mfns = |start, end| {
            Some(MfnRange {
                start: Mfn(start),
                end: Mfn(end),
            })
        };
        let all = constraint("--guarded --node 1 --below 4G --colour 0x3/16");
        assert_eq!(
            all,
            Constraint {
                guarded: true,
                node: Some(1),
                mfns: mfns(0, 1 << 20),
                colour: Some(Colour { colour: 3, of: 16 }),
            }
        );
        assert_eq!(constraint("--mfns 0x10..0x20").mfns, mfns(0x10, 0x20));
        for wrong in [
            "--below 4G --mfns 1..2",
            "--colour 3",
            "--colour 3/3",
            "--colour 0/0",
            "--colour 1/0x100000000",
            "--node -1",
            "--below 0",
            "--mfns 2..1",
        ] {
            assert!(parse(&format!("p2m alloc 1M {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_time_that_there_is_can_be_waited_for() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "x", "-1", "nan", "inf", "1e300"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    pub(crate) fn parse(line: &str) -> Result<Args, ErrorKind> {
        Args::try_parse_from(line.split_whitespace())
            .and_then(Args::validated)
            .map_err(|error| error.kind())
    }

    #[test]
    fn description_is_consistent() {
        Args::described().debug_assert();
    }

    #[test]
    fn a_size_is_its_number_times_its_unit() {
        for (unit, shift) in [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)] {
            for (text, number) in [("1", 1), ("64", 64), ("0x10", 16)] {
                let size = parse_size(&format!("{text}{unit}"));
                assert_eq!(size, Ok(number << shift), "{text}{unit}");
            }
        }
    }

    #[test]
    fn no_size_but_a_positive_one_that_fits_is_taken() {
        assert_eq!(parse_size("16777215T"), Ok(16777215 << 40));
        for text in [
            "",
            "K",
            "0",
            "0M",
            "-1",
            "1.5G",
            "1X",
            "64MB",
            "M1",
            " 1",
            "16777216T",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn numbers_have_two_bases_and_no_sign() {
        assert_eq!(parse_number("10"), Ok(10));
        assert_eq!(parse_number("0x10"), Ok(16));
        assert_eq!(parse_number("0XfF"), Ok(255));
        assert_eq!(parse_number("0xffffffffffffffff"), Ok(u64::MAX));
        for text in ["", "0x", "ff", "0x+1", "-1", "0x10000000000000000", "1 2"] {
            assert!(parse_number(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_range_has_a_beginning_before_its_end() {
        assert_eq!(parse_range("0x10..32"), Ok(Pfn(16)..Pfn(32)));
        assert_eq!(parse_range("7"), Ok(Pfn(7)..Pfn(8)));
        for text in ["", "..", "1..", "..1", "2..2", "3..2", "1...2", "1-2"] {
            assert!(parse_range(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_policy_can_be_asked_for_by_name() {
        for (name, expected) in Policy::NAMES {
            match parse(&format!("p2m alloc 1M --policy {name}")).map(|args| args.command) {
                Ok(Command::Alloc(alloc)) => assert_eq!(alloc.region.frames.policy, expected),
                other => panic!("{other:?}"),
            }
        }
        let unknown = parse("p2m alloc 1M --policy spread");
        assert_eq!(unknown.err(), Some(ErrorKind::InvalidValue));
    }

    #[test]
    fn only_scattering_takes_a_seed() {
        assert!(parse("p2m alloc 1M --policy scatter --seed 7").is_ok());
        for policy in ["any", "contiguous"] {
            let with_seed = parse(&format!("p2m alloc 1M --policy {policy} --seed 7"));
            assert_eq!(with_seed.err(), Some(ErrorKind::ArgumentConflict));
        }
    }

    #[test]
    fn moving_knows_no_contiguous_frames() {
        for (name, is_known) in [("any", true), ("scatter", true), ("contiguous", false)] {
            let line = format!("p2m move --pid 1 --policy {name}");
            assert_eq!(parse(&line).is_ok(), is_known, "{name}");
        }
        assert!(parse("p2m move --pid 1 --policy scatter --seed 7").is_ok());
        assert!(parse("p2m move --pid 1 --seed 7").is_err());
    }

    #[test]
    fn nothing_on_demand_can_be_checked() {
        assert!(parse("p2m alloc 1M --on-demand").is_ok());
        assert!(parse("p2m alloc 1M --on-demand --check --populate").is_ok());
        let conflict = Some(ErrorKind::ArgumentConflict);
        assert_eq!(parse("p2m alloc 1M --on-demand --check").err(), conflict);
    }

    #[test]
    fn addresses_are_of_a_page_or_a_range() {
        let range = |text| parse_addresses(text).map(|range| range.addresses(4096));
        assert_eq!(range("0x1000"), Ok(Address(0x1000)..Address(0x2000)));
        assert_eq!(range("4096..0x9000"), Ok(Address(0x1000)..Address(0x9000)));
        for text in ["", "..", "1..", "2..2", "3..2", "x"] {
            assert!(parse_addresses(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn leaves_have_three_sizes() {
        for (size, level) in [("4K", 0), ("2M", 1), ("1G", 2)] {
            let line = format!("p2m space map --pid 1 --space 1 --max-leaf {size} 0 1");
            match parse(&line).map(|args| args.command) {
                Ok(Command::Space {
                    command: Space::Map(map),
                }) => assert_eq!(map.max_leaf, Level(level)),
                other => panic!("{other:?}"),
            }
        }
        assert!(parse("p2m space map --pid 1 --space 1 --max-leaf 8K 0 1").is_err());
    }

    #[test]
    fn all_of_a_space_or_a_part_is_unmapped() {
        assert!(parse("p2m space unmap --pid 1 --space 1 0x1000").is_ok());
        assert!(parse("p2m space unmap --pid 1 --space 1 --all").is_ok());
        assert!(parse("p2m space unmap --pid 1 --space 1").is_err());
        assert!(parse("p2m space unmap --pid 1 --space 1 --all 0x1000").is_err());
    }

    #[test]
    fn words_are_read_or_written() {
        let access = |rest| parse(&format!("p2m space access --pid 1 --space 1 {rest}"));
        assert!(access("0x1000").is_ok());
        assert!(access("0x1000 --words 9 --checksum").is_ok());
        assert!(access("0x1000 --write 1 0x2").is_ok());
        assert!(access("0x1000 --write 1 --checksum").is_err());
        assert!(access("0x1000 --words 0").is_err());
        assert!(access("0x1000 --words 0x1000000").is_ok());
        assert!(access("0x1000 --words 0x1000001").is_err());
        assert!(access("").is_err());
    }

    #[test]
    fn inspecting_needs_a_process() {
        let missing = Some(ErrorKind::MissingRequiredArgument);
        for line in [
            "p2m plot",
            "p2m release 1",
            "p2m populate",
            "p2m move",
            "p2m evacuate 1",
            "p2m contig 1",
            "p2m exchange 1 2",
            "p2m audit",
            "p2m dma plan 1",
            "p2m walk --space 1 0",
            "p2m walk --pid 1 0",
            "p2m space create --pool 1..2",
            "p2m space map --space 1 0 1",
        ] {
            assert_eq!(parse(line).err(), missing, "{line}");
        }
        assert_eq!(parse("p2m map").err(), missing);
        assert_eq!(parse("p2m check").err(), missing);
        assert_eq!(parse("p2m translate 1").err(), missing);
        assert_eq!(parse("p2m translate --pid 1").err(), missing);
        assert_eq!(parse("p2m stat --fd 3").err(), missing);
        assert!(parse("p2m stat").is_ok());
        assert!(parse("p2m check --pid 1 --fd 3").is_ok());
    }
}
