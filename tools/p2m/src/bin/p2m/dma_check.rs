// SPDX-License-Identifier: GPL-2.0

//! Finds drivers that take the frames of a buffer to follow each other.
//!
//! The buffer is one piece for its owner, and in the machine no two of its pages are neighbours: there
//! are guards between them. A program has a device read it, or write to it. What was read, what is in
//! the buffer, and whether guards are broken tells whether the device was told the right addresses.

use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use p2m::{
    Access, Broken, Constraint, DmaBuf, Domain, EntryKind, Guards, Mfn, MfnRange, OnBroken, Pfn,
    Policy, Populate, Region, Word, pages,
};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::Serialize;

use crate::args::{Args, DmaCheck, DmaExport};
use crate::format::{Bytes, Count, Verdict, json, section};
use crate::inspect::{attach, open};

const WORD: usize = size_of::<u64>();

/// Runs a program that has a dma-buf of a range of another process's domain.
pub(crate) fn export(args: &Args, what: &DmaExport) -> Result<u8> {
    let domain = attach(args, &what.target)?;
    let buffer = domain.export_dma_buf(what.range.clone())?;
    let size = (what.range.end.0 - what.range.start.0) * domain.info().page_bytes();
    let mut command = program(&what.command, &buffer, size, 0..size)?;
    let status = command.status().with_context(|| name_of(&what.command))?;
    Ok(exit_code(status))
}

/// Returns what a shell would make of a status.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn name_of(command: &[OsString]) -> String {
    let words = command.iter().map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

/// Returns a program that finds the dma-buf in its environment.
fn program(command: &[OsString], buffer: &DmaBuf, size: u64, range: Range<u64>) -> Result<Command> {
    let Some((name, arguments)) = command.split_first() else {
        bail!("there is no program to run");
    };
    // The program shall have it, too.
    fcntl_setfd(buffer, FdFlags::empty())?;
    let mut program = Command::new(name);
    program
        .args(arguments)
        .env("P2M_DMA_BUF", buffer.as_fd().as_raw_fd().to_string())
        .env("P2M_DMA_SIZE", size.to_string())
        .env("P2M_DMA_OFFSET", range.start.to_string())
        .env("P2M_DMA_LENGTH", (range.end - range.start).to_string());
    Ok(program)
}

/// Words of which no two are the same, so that each tells where it belongs.
mod pattern {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The inverse of an odd factor, by Newton's method: each step doubles the bits that are right.
    const INVERSE: u64 = {
        let mut inverse = FACTOR;
        let mut step = 0;
        while step < 5 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(FACTOR.wrapping_mul(inverse)));
            step += 1;
        }
        inverse
    };

    /// Mixes high bits into low ones, which have a short period otherwise. It's its own inverse.
    fn mix(word: u64) -> u64 {
        word ^ (word >> 32)
    }

    /// Returns the word of an index.
    pub(super) fn word(index: u64) -> u64 {
        mix(index.wrapping_add(1).wrapping_mul(FACTOR))
    }

    /// Returns the index of a word. Any word is that of some index.
    pub(super) fn index(word: u64) -> u64 {
        mix(word).wrapping_mul(INVERSE).wrapping_sub(1)
    }
}

fn bytes_of(words: impl Iterator<Item = u64>) -> Vec<u8> {
    words.flat_map(u64::to_ne_bytes).collect()
}

/// What was found instead of the right bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Found {
    /// What guards hold.
    Guard,
    /// What belongs to another page.
    Page(Pfn),
    /// What was there before.
    Old,
    /// Too few bytes.
    Nothing,
    /// Something else.
    Other(Word),
}

impl Display for Found {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guard => f.write_str("what guards hold"),
            Self::Page(pfn) => write!(f, "what belongs to PFN {pfn}"),
            Self::Old => f.write_str("what was there before"),
            Self::Nothing => f.write_str("nothing"),
            Self::Other(word) => word.fmt(f),
        }
    }
}

/// Two pages that follow each other in the buffer, and their frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Boundary {
    before: Pfn,
    behind: Pfn,
    mfn_before: Mfn,
    mfn_behind: Mfn,
}

impl Display for Boundary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            before,
            behind,
            mfn_before,
            mfn_behind,
        } = self;
        write!(
            f,
            "PFN {before} | {behind}, MFN {mfn_before} | {mfn_behind}"
        )
    }
}

/// The first wrong byte of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Wrong {
    pfn: Pfn,
    offset: u64,
    found: Found,
}

/// What is to be in a buffer, or to be read from it.
struct Expected<'a> {
    base: Pfn,
    page_bytes: u64,
    /// Where in the buffer the bytes begin.
    start: u64,
    bytes: &'a [u8],
    /// The index of the first word of the buffer, in the pattern.
    first_index: u64,
    /// Words from here on belong to the buffer, as indices of the pattern.
    nr_words: u64,
}

impl Expected<'_> {
    /// Returns how many bytes are wrong, and the first one of each page that has any.
    fn compare(&self, found: &[u8]) -> (u64, Vec<Wrong>) {
        let mut nr_wrong = 0;
        let mut wrong: Vec<Wrong> = Vec::new();
        for (index, byte) in self.bytes.iter().enumerate() {
            if found.get(index) == Some(byte) {
                continue;
            }
            nr_wrong += 1;
            let position = self.start + index as u64;
            let pfn = Pfn(self.base.0 + position / self.page_bytes);
            if wrong.last().is_none_or(|last| last.pfn != pfn) {
                wrong.push(Wrong {
                    pfn,
                    offset: position % self.page_bytes,
                    found: self.identify(found, index),
                });
            }
        }
        (nr_wrong, wrong)
    }

    /// Says what is at an index: by the word that is there, if it's there as a whole.
    fn identify(&self, found: &[u8], index: usize) -> Found {
        if found.len() <= index {
            return Found::Nothing;
        }
        let misaligned = ((self.start + index as u64) % WORD as u64) as usize;
        let word = |first: usize| {
            let bytes = found.get(first..)?.first_chunk::<WORD>()?;
            Some(u64::from_ne_bytes(*bytes))
        };
        // Of a word that isn't there as a whole, nothing is known.
        let here = index.checked_sub(misaligned).and_then(word);
        let next = || word(index + WORD - misaligned);
        let Some(word) = here.or_else(next) else {
            return Found::Other(Word(found[index].into()));
        };
        let page = |first: u64| {
            let place = pattern::index(word).wrapping_sub(first);
            let pfn = Pfn(self.base.0 + place.wrapping_mul(WORD as u64) / self.page_bytes);
            (place < self.nr_words).then_some(pfn)
        };
        match (word == Broken::PATTERN, page(self.first_index)) {
            (true, _) => Found::Guard,
            (false, Some(pfn)) => Found::Page(pfn),
            (false, None) if self.first_index != 0 && page(0).is_some() => Found::Old,
            (false, None) => Found::Other(Word(word)),
        }
    }
}

/// A guard that somebody has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Damage {
    guard: Mfn,
    /// The page whose frame is before the guard, and the one whose frame is behind it.
    before: Option<Pfn>,
    behind: Option<Pfn>,
    /// Where the guard is broken first, if that is known.
    offset: Option<u64>,
}

impl Display for Damage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "MFN {}, ", self.guard)?;
        match (self.before, self.behind) {
            (Some(before), Some(behind)) => {
                write!(f, "which is behind PFN {before} and before PFN {behind}")?;
            }
            (Some(before), None) => write!(f, "which is behind PFN {before}")?,
            (None, Some(behind)) => write!(f, "which is before PFN {behind}")?,
            (None, None) => f.write_str("which is next to none of these pages")?,
        }
        match self.offset {
            Some(offset) => write!(f, ", from byte {offset:#x} on"),
            None => Ok(()),
        }
    }
}

/// Returns which guards are broken, given what a check of each page has found.
fn damages(mfns: &[Mfn], base: Pfn, page_bytes: u64, found: &[Guards]) -> Vec<Damage> {
    let page_of = |mfn: Option<u64>| {
        let index = mfns.iter().position(|other| Some(other.0) == mfn)?;
        Some(Pfn(base.0 + index as u64))
    };
    let mut damages: Vec<Damage> = Vec::new();
    for (mfn, guards) in mfns.iter().zip(found) {
        let Some(first) = guards.first else {
            continue;
        };
        let (is_behind, offset) = match u64::try_from(first.offset) {
            Ok(offset) => (true, offset.wrapping_sub(page_bytes)),
            Err(_) => (false, page_bytes.wrapping_sub(first.offset.unsigned_abs())),
        };
        // Only the first one is described.
        let other = (guards.broken > 1 && !is_behind).then_some((true, None));
        for (is_behind, offset) in [(is_behind, Some(offset))].into_iter().chain(other) {
            let guard = match is_behind {
                true => mfn.0.wrapping_add(1),
                false => mfn.0.wrapping_sub(1),
            };
            match damages.iter_mut().find(|other| other.guard.0 == guard) {
                Some(known) => known.offset = known.offset.or(offset),
                None => damages.push(Damage {
                    guard: Mfn(guard),
                    before: page_of(guard.checked_sub(1)),
                    behind: page_of(guard.checked_add(1)),
                    offset,
                }),
            }
        }
    }
    damages
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Direction {
    /// The device reads the buffer.
    Reads,
    /// The device writes to it.
    Writes,
}

/// What is printed, in this order.
#[derive(Debug, Serialize)]
struct Report {
    base: Pfn,
    bytes: u64,
    runs: u64,
    start: u64,
    length: u64,
    direction: Direction,
    command: String,
    status: i32,
    device: Option<String>,
    wrong_bytes: u64,
    wrong: Vec<Wrong>,
    guards: u64,
    damages: Vec<Damage>,
    /// Boundaries that the device has not been told of.
    boundaries: Vec<Boundary>,
    ok: bool,
}

/// More of a kind are not listed.
const MAX_LINES: usize = 8;

impl Report {
    /// Finds the boundaries that were run over: a page is wrong from its first byte on, or the guard
    /// behind the one before it is broken from there on.
    fn find_boundaries(&mut self, mfns: &[Mfn]) {
        let page_bytes = self.bytes / (mfns.len() as u64).max(1);
        // Where the device begins, it hasn't come from anywhere.
        let is_behind_start =
            |pfn: Pfn| pfn.0.saturating_sub(self.base.0).saturating_mul(page_bytes) > self.start;
        let is_wrong = |pfn: Pfn| {
            let mut wrong = self.wrong.iter();
            // A byte may happen to be right.
            let is_first = |wrong: &Wrong| wrong.pfn == pfn && wrong.offset < WORD as u64;
            is_behind_start(pfn) && wrong.any(is_first)
        };
        let is_damaged = |pfn: Pfn| {
            let mut damages = self.damages.iter();
            damages
                .any(|damage| damage.before == Some(pfn) && damage.offset.is_none_or(|at| at == 0))
        };
        let boundaries = mfns
            .windows(2)
            .zip(self.base.0..)
            .filter_map(|(pair, number)| {
                let [mfn_before, mfn_behind] = *pair else {
                    return None;
                };
                let (before, behind) = (Pfn(number), Pfn(number + 1));
                (is_wrong(behind) || is_damaged(before)).then_some(Boundary {
                    before,
                    behind,
                    mfn_before,
                    mfn_behind,
                })
            });
        self.boundaries = boundaries.collect();
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let end = Pfn(self.base.0 + self.runs);
        let buffer = format!(
            "PFN {}..{end} ({}), {}, with guards between",
            self.base,
            Bytes(self.bytes),
            Count(self.runs, "machine run")
        );
        section(out, "buffer", [buffer])?;
        let does = match self.direction {
            Direction::Reads => "reads",
            Direction::Writes => "writes",
        };
        let device = self.device.as_deref().unwrap_or("one that didn't attach");
        let line = format!(
            "{device} {does} {} from byte {:#x} on",
            Bytes(self.length),
            self.start
        );
        section(out, "device", [line])?;
        let line = format!("{}: exit status {}", self.command, self.status);
        section(out, "program", [line])?;
        let content = match self.wrong_bytes {
            0 => "all bytes are right: ok".to_owned(),
            wrong => format!("{}: FAILED", Count(wrong, "wrong byte")),
        };
        let details = self.wrong.iter().map(|wrong| {
            let Wrong { pfn, offset, found } = wrong;
            format!("PFN {pfn} from byte {offset:#x} on: {found}")
        });
        section(
            out,
            "content",
            [content].into_iter().chain(some_of(details)),
        )?;
        let guards = match self.damages.len() {
            0 => format!("{} looked at: ok", Count(self.guards, "guard")),
            broken => format!("{} broken: FAILED", Count(broken as u64, "guard")),
        };
        let details = self.damages.iter().map(ToString::to_string);
        section(out, "guards", [guards].into_iter().chain(some_of(details)))?;
        let boundaries = self.boundaries.iter().map(ToString::to_string);
        section(out, "boundary", some_of(boundaries))?;
        section(out, "verdict", [self.verdict()])
    }

    fn verdict(&self) -> String {
        let ok = Verdict(self.ok);
        let device = self.device.as_deref().unwrap_or("the device");
        match (self.ok, self.boundaries.is_empty()) {
            (true, _) => format!("{device} was told the right addresses: {ok}"),
            (false, false) => format!("{device} was told as if frames followed each other: {ok}"),
            (false, true) if self.wrong_bytes > 0 || !self.damages.is_empty() => {
                format!("not what an overrun from one page to the next would do: {ok}")
            }
            (false, true) => format!("the program has failed: {ok}"),
        }
    }
}

/// Returns the first lines, and how many there are more.
fn some_of(lines: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let lines: Vec<_> = lines.collect();
    let rest = lines.len().saturating_sub(MAX_LINES);
    let more = (rest > 0).then(|| format!("and {rest} more"));
    lines.into_iter().take(MAX_LINES).chain(more)
}

pub(crate) fn check(args: &Args, what: &DmaCheck, out: &mut impl Write) -> Result<bool> {
    let domain = open(args)?;
    if !domain.info().mfn_visible {
        bail!("cannot check: machine frame numbers are shown only with CAP_SYS_ADMIN");
    }
    let page_bytes = domain.info().page_bytes();
    let region = create(&domain, what, page_bytes)?;
    let size = region.nr_pages * page_bytes;
    let length = what.length.unwrap_or(size.saturating_sub(what.offset));
    let end = what.offset.checked_add(length).filter(|&end| end <= size);
    let Some(end) = end.filter(|_| length > 0) else {
        bail!(
            "these bytes are not in the buffer, which has {}",
            Bytes(size)
        );
    };
    let direction = match what.writes {
        true => Direction::Writes,
        false => Direction::Reads,
    };

    let memory = domain.map(region.range(), Access::ReadWrite, Populate::AtOnce)?;
    let words = memory.words().context("the memory is read-only")?;
    let nr_words = words.len() as u64;
    for (word, index) in words.iter().zip(0..) {
        word.store(pattern::word(index), Ordering::Relaxed);
    }
    let buffer = domain.export_dma_buf(region.range())?;
    let mut command = program(&what.command, &buffer, size, what.offset..end)?;
    let (start, end) = (what.offset as usize, end as usize);
    let mut content = bytes_of((0..nr_words).map(pattern::word));
    let (status, found, expected) = match direction {
        Direction::Reads => {
            let (status, output) = read_output(&mut command, &what.command, length)?;
            // Nobody has to write to what is read.
            let expected = content.get(start..end).unwrap_or_default().to_vec();
            (status, output, expected)
        }
        Direction::Writes => {
            let new = bytes_of((nr_words..2 * nr_words).map(pattern::word));
            let new = new.get(start..end).unwrap_or_default();
            let status = feed(&mut command, &what.command, new)?;
            if let Some(part) = content.get_mut(start..end) {
                part.copy_from_slice(new);
            }
            (status, load(words), content.clone())
        }
    };
    let expected = Expected {
        base: region.base_pfn,
        page_bytes,
        start: match direction {
            Direction::Reads => what.offset,
            Direction::Writes => 0,
        },
        bytes: &expected,
        first_index: match direction {
            Direction::Reads => 0,
            Direction::Writes => nr_words,
        },
        nr_words,
    };
    let (mut wrong_bytes, mut wrong) = expected.compare(&found);
    if direction == Direction::Reads && load(words) != content {
        // Who reads has no business to write.
        let unchanged = Expected {
            start: 0,
            bytes: &content,
            ..expected
        };
        let (nr_changed, changed) = unchanged.compare(&load(words));
        wrong_bytes += nr_changed;
        wrong.extend(changed);
    }

    let mfns = frames(&domain, &region)?;
    let guards = (0..region.nr_pages)
        .map(|index| {
            let page = pages(Pfn(region.base_pfn.0 + index), 1);
            domain.check_guards(page, OnBroken::Leave)
        })
        .collect::<p2m::Result<Vec<_>>>()?;
    let damages = damages(&mfns, region.base_pfn, page_bytes, &guards);
    let device = what.name.clone().or(domain.last_importer()?);
    let mut report = Report {
        base: region.base_pfn,
        bytes: size,
        runs: domain.runs(region.range()).count() as u64,
        start: what.offset,
        length,
        direction,
        command: name_of(&what.command),
        status: i32::from(exit_code(status)),
        device,
        ok: wrong_bytes == 0 && damages.is_empty() && status.success(),
        wrong_bytes,
        wrong,
        guards: guards.iter().map(|guards| guards.checked).sum(),
        damages,
        boundaries: Vec::new(),
    };
    report.find_boundaries(&mfns);
    if args.json {
        json(out, &report)?;
    } else {
        report.print(out)?;
    }
    Ok(report.ok)
}

/// Creates the buffer.
fn create(domain: &Domain, what: &DmaCheck, page_bytes: u64) -> Result<Region> {
    let mfns = what.mask.map(|bits| MfnRange {
        start: Mfn(0),
        end: Mfn((1u64 << bits.min(63)) / page_bytes),
    });
    let region = domain
        .region(what.size.div_ceil(page_bytes))
        .policy(Policy::SCATTER)
        .seed(what.seed)
        .constraint(Constraint {
            guarded: true,
            mfns,
            ..Constraint::default()
        });
    Ok(region.create()?)
}

/// Returns the frames of a region.
fn frames(domain: &Domain, region: &Region) -> Result<Vec<Mfn>> {
    let range = region.range();
    let pfns: Vec<_> = (range.start.0..range.end.0).map(Pfn).collect();
    let entries = domain.translate(&pfns)?;
    let frames = entries.iter().map(|entry| match entry.kind() {
        EntryKind::Frame(mfn) => Some(mfn),
        _ => None,
    });
    frames
        .collect::<Option<Vec<_>>>()
        .context("a page of the buffer is gone")
}

/// Returns what words hold.
fn load(words: &[AtomicU64]) -> Vec<u8> {
    bytes_of(words.iter().map(|word| word.load(Ordering::Relaxed)))
}

/// Runs a program that tells on its standard output what the device has read.
fn read_output(
    program: &mut Command,
    command: &[OsString],
    length: u64,
) -> Result<(ExitStatus, Vec<u8>)> {
    let mut child = program
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| name_of(command))?;
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // What is more than was asked for doesn't matter.
        let mut stdout = stdout.take(length);
        stdout.read_to_end(&mut output)?;
        io::copy(&mut stdout.into_inner(), &mut io::sink())?;
    }
    Ok((child.wait()?, output))
}

/// Runs a program that learns on its standard input what the device has to write.
fn feed(program: &mut Command, command: &[OsString], data: &[u8]) -> Result<ExitStatus> {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::from(io::stderr()))
        .spawn()
        .with_context(|| name_of(command))?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Who doesn't want it all needn't have it.
            let _ = stdin.map(|mut stdin| stdin.write_all(data));
        });
        child.wait()
    })
    .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const NR_WORDS: u64 = 4 * PAGE / WORD as u64;

    fn content() -> Vec<u8> {
        bytes_of((0..NR_WORDS).map(pattern::word))
    }

    fn expected(start: u64, bytes: &[u8]) -> Expected<'_> {
        Expected {
            base: Pfn(16),
            page_bytes: PAGE,
            start,
            bytes,
            first_index: 0,
            nr_words: NR_WORDS,
        }
    }

    #[test]
    fn a_word_tells_its_index() {
        for index in [0, 1, 2, 511, 512, 1 << 40, u64::MAX - 1, u64::MAX] {
            assert_eq!(pattern::index(pattern::word(index)), index);
        }
        assert!(pattern::index(Broken::PATTERN) > 1 << 40);
    }

    #[test]
    fn the_right_bytes_are_right() {
        let content = content();
        assert_eq!(expected(0, &content).compare(&content), (0, vec![]));
    }

    #[test]
    fn what_is_wrong_is_told_by_the_page() {
        let content = content();
        // From the middle of a page on, and at odd places, too.
        for start in [2048, 2049, 2055] {
            let right = &content[start..3 * 4096];
            let mut found = right.to_vec();
            let guard = Broken::PATTERN.to_ne_bytes();
            for (position, byte) in (start..).zip(&mut found) {
                match position {
                    4096..6144 => *byte = guard[position % 8],
                    8192..9000 => *byte = content[position - 4096],
                    _ => (),
                }
            }
            let (nr_wrong, wrong) = expected(start as u64, right).compare(&found);
            assert!((2048 + 700..=2048 + 808).contains(&nr_wrong), "{nr_wrong}");
            let wrong_at = |pfn, found| Wrong {
                pfn: Pfn(pfn),
                offset: 0,
                found,
            };
            assert_eq!(
                wrong,
                [
                    wrong_at(17, Found::Guard),
                    wrong_at(18, Found::Page(Pfn(17)))
                ]
            );
        }
    }

    #[test]
    fn what_is_missing_is_wrong() {
        let content = content();
        let (nr_wrong, wrong) = expected(0, &content[..4096]).compare(&content[..4000]);
        assert_eq!(nr_wrong, 96);
        assert_eq!(
            wrong,
            [Wrong {
                pfn: Pfn(16),
                offset: 4000,
                found: Found::Nothing
            }]
        );
    }

    #[test]
    fn old_and_new_are_told_apart() {
        let old = content();
        let new = bytes_of((NR_WORDS..2 * NR_WORDS).map(pattern::word));
        let expected = Expected {
            first_index: NR_WORDS,
            ..expected(0, &new)
        };
        let mut found = new.clone();
        found[4096..8192].copy_from_slice(&old[4096..8192]);
        found[8192..8200].copy_from_slice(&new[..8]);
        found[12288..12296].fill(0x41);
        let (_, wrong) = expected.compare(&found);
        let found: Vec<_> = wrong.iter().map(|wrong| wrong.found).collect();
        let word = 0x4141_4141_4141_4141;
        assert_eq!(
            found,
            [Found::Old, Found::Page(Pfn(16)), Found::Other(Word(word))]
        );
    }

    fn guards(broken: u64, first: Option<i64>) -> Guards {
        Guards {
            checked: 2,
            broken,
            first: first.map(|offset| Broken {
                pfn: Pfn(0),
                offset,
                value: Word(0),
            }),
        }
    }

    fn report(damages: Vec<Damage>, wrong: Vec<Wrong>, mfns: &[Mfn]) -> Report {
        let ok = damages.is_empty() && wrong.is_empty();
        let mut report = Report {
            base: Pfn(16),
            bytes: 4 * PAGE,
            runs: 4,
            start: 2048,
            length: 3 * PAGE,
            direction: Direction::Writes,
            command: "driver-test --fast".to_owned(),
            status: 0,
            device: Some("0000:00:04.0".to_owned()),
            wrong_bytes: wrong.len() as u64,
            wrong,
            guards: 8,
            damages,
            boundaries: Vec::new(),
            ok,
        };
        report.find_boundaries(mfns);
        report
    }

    const MFNS: [Mfn; 4] = [Mfn(0x100), Mfn(0x202), Mfn(0x102), Mfn(0x200)];

    #[test]
    fn a_guard_between_two_pages_is_one() {
        // Frame 0x101 is behind PFN 16 and before PFN 18, and broken from its first byte on.
        let found = [
            guards(1, Some(4096)),
            guards(0, None),
            guards(1, Some(-4096)),
            guards(0, None),
        ];
        let damages = damages(&MFNS, Pfn(16), PAGE, &found);
        let expected = Damage {
            guard: Mfn(0x101),
            before: Some(Pfn(16)),
            behind: Some(Pfn(18)),
            offset: Some(0),
        };
        assert_eq!(damages, [expected]);
        let report = report(damages, Vec::new(), &MFNS);
        assert_eq!(
            report.boundaries,
            [Boundary {
                before: Pfn(16),
                behind: Pfn(17),
                mfn_before: Mfn(0x100),
                mfn_behind: Mfn(0x202),
            }]
        );
    }

    #[test]
    fn both_guards_of_a_page_may_be_broken() {
        let none = || guards(0, None);
        let found = [none(), guards(2, Some(-8)), none(), none()];
        let damages = damages(&MFNS, Pfn(16), PAGE, &found);
        let guards: Vec<_> = damages.iter().map(|damage| damage.guard.0).collect();
        assert_eq!(guards, [0x201, 0x203]);
        assert_eq!(damages[0].offset, Some(4088));
        assert_eq!(damages[1].offset, None);
    }

    #[test]
    fn a_report_names_the_boundary_and_the_device() {
        let damage = Damage {
            guard: Mfn(0x203),
            before: Some(Pfn(17)),
            behind: None,
            offset: Some(0),
        };
        let wrong = Wrong {
            pfn: Pfn(18),
            offset: 0,
            found: Found::Old,
        };
        let mut out = Vec::new();
        report(vec![damage], vec![wrong], &MFNS)
            .print(&mut out)
            .expect("print");
        let expected = "\
buffer   PFN 0x10..0x14 (16 KiB), 4 machine runs, with guards between
device   0000:00:04.0 writes 12 KiB from byte 0x800 on
program  driver-test --fast: exit status 0
content  1 wrong byte: FAILED
         PFN 0x12 from byte 0x0 on: what was there before
guards   1 guard broken: FAILED
         MFN 0x203, which is behind PFN 0x11, from byte 0x0 on
boundary PFN 0x11 | 0x12, MFN 0x202 | 0x102
verdict  0000:00:04.0 was told as if frames followed each other: FAILED
";
        assert_eq!(String::from_utf8_lossy(&out), expected);

        let mut out = Vec::new();
        report(Vec::new(), Vec::new(), &MFNS)
            .print(&mut out)
            .expect("print");
        let text = String::from_utf8_lossy(&out);
        assert!(text.ends_with("verdict  0000:00:04.0 was told the right addresses: ok\n"));
    }

    #[test]
    fn wrong_bytes_elsewhere_are_no_boundary() {
        let wrong = Wrong {
            pfn: Pfn(17),
            offset: 100,
            found: Found::Other(Word(1)),
        };
        let report = report(Vec::new(), vec![wrong], &MFNS);
        assert!(report.boundaries.is_empty());
        assert!(report.verdict().ends_with("would do: FAILED"));
    }
}
