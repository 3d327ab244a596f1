// SPDX-License-Identifier: GPL-2.0

//! The arguments of the command line. Their descriptions are the help that users see.

use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use p2m::{Pfn, Policy, pages};

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
                  Exit status: 0 all is good, 1 an operation failed or a check found a difference, \
                  2 wrong usage."
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
    /// Size of the region, rounded up to whole pages.
    #[arg(value_parser = parse_size)]
    pub(crate) size: u64,

    /// Where the machine frames come from: whatever is fastest, no two neighbours, or one run.
    #[arg(long, default_value = "any", value_parser = policy_parser())]
    pub(crate) policy: Policy,

    /// Which of the scattered orders.
    #[arg(long, value_parser = parse_number, default_value = "0", hide_default_value = true)]
    pub(crate) seed: u64,

    /// First PFN of the region; otherwise the module chooses.
    #[arg(long, value_name = "PFN", value_parser = parse_pfn)]
    pub(crate) base: Option<Pfn>,

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
        if let Command::Alloc(alloc) = &self.command {
            if alloc.seed != 0 && alloc.policy != Policy::SCATTER {
                return Err(Self::command().error(
                    ErrorKind::ArgumentConflict,
                    "--seed chooses one of the orders of --policy scatter, other policies have none",
                ));
            }
        }
        Ok(self)
    }
}

fn policy_parser() -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(Policy::NAMES.map(|(name, _)| name))
        .try_map(|name| name.parse::<Policy>())
}

fn parse_number(text: &str) -> Result<u64, String> {
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

fn parse_range(text: &str) -> Result<Range<Pfn>, String> {
    let range = match text.split_once("..") {
        Some((start, end)) => parse_pfn(start)?..parse_pfn(end)?,
        None => pages(parse_pfn(text)?, 1),
    };
    if range.is_empty() {
        return Err("there is nothing in this range".to_owned());
    }
    Ok(range)
}

fn parse_size(text: &str) -> Result<u64, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ErrorKind> {
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
                Ok(Command::Alloc(alloc)) => assert_eq!(alloc.policy, expected),
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
    fn inspecting_needs_a_process() {
        let missing = Some(ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("p2m map").err(), missing);
        assert_eq!(parse("p2m check").err(), missing);
        assert_eq!(parse("p2m translate 1").err(), missing);
        assert_eq!(parse("p2m translate --pid 1").err(), missing);
        assert_eq!(parse("p2m stat --fd 3").err(), missing);
        assert!(parse("p2m stat").is_ok());
        assert!(parse("p2m check --pid 1 --fd 3").is_ok());
    }
}
