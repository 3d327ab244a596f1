// SPDX-License-Identifier: GPL-2.0

//! Commands about spaces: page tables that are built through a backend.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::ops::Range;

use anyhow::Result;
use p2m::{
    Accessed, Address, Domain, Level, Mfn, Pfn, Populate, PteFlags, SpaceId, SpaceInfo, Span, Step,
    Word,
};
use serde::Serialize;

use crate::args::{AccessSpace, Args, CreateSpace, Dump, InSpace, Space, Target, Walk};
use crate::format::{Count, Verdict, hex_digits, json, section};
use crate::inspect::attach;

/// Size of a word of memory.
const WORD_BYTES: u64 = size_of::<u64>() as u64;

pub(crate) fn space(args: &Args, command: &Space, out: &mut impl Write) -> Result<bool> {
    match command {
        Space::Create(what) => create(args, what, out),
        Space::Destroy(of) => with(args, of, |_, space| {
            space.destroy()?;
            done(
                args,
                out,
                "space",
                &Destroyed {
                    destroyed: of.space,
                },
            )
        }),
        Space::Map(what) => with(args, &what.space, |_, space| {
            let frames = what.frames.clone();
            let pages = frames.end.0 - frames.start.0;
            space.map(what.address, frames, what.flags, what.max_leaf)?;
            done(args, out, "mapped", &Changed { pages })
        }),
        Space::Unmap(what) => with(args, &what.space, |domain, space| {
            let pages = match &what.range {
                Some(range) => space.unmap(range.addresses(domain.info().page_bytes())),
                None => space.unmap_all(),
            }?;
            done(args, out, "unmapped", &Changed { pages })
        }),
        Space::Protect(what) => with(args, &what.space, |domain, space| {
            let range = what.range.addresses(domain.info().page_bytes());
            let pages = space.protect(range, what.flags)?;
            done(args, out, "changed", &Changed { pages })
        }),
        Space::Remap(what) => with(args, &what.space, |_, space| {
            let pages = space.remap(what.address, what.frames.clone())?;
            done(args, out, "remapped", &Changed { pages })
        }),
        Space::List(of) => list(args, of, out),
        Space::Dump(what) => dump(args, what, out),
        Space::Access(what) => access(args, what, out),
    }
}

/// Does something with a space of another process.
fn with<T>(
    args: &Args,
    of: &InSpace,
    work: impl FnOnce(&Domain, p2m::Space<'_>) -> Result<T>,
) -> Result<T> {
    let domain = attach(args, &of.target)?;
    let space = domain.space_by_id(of.space);
    work(&domain, space)
}

/// Tells what was done.
fn done(
    args: &Args,
    out: &mut impl Write,
    label: &str,
    what: &(impl Display + Serialize),
) -> Result<bool> {
    if args.json {
        json(out, what)?;
    } else {
        section(out, label, [what])?;
    }
    Ok(true)
}

#[derive(Serialize)]
struct Changed {
    pages: u64,
}

impl Display for Changed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Count(self.pages, "page").fmt(f)
    }
}

#[derive(Serialize)]
struct Destroyed {
    destroyed: SpaceId,
}

impl Display for Destroyed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} is destroyed", self.destroyed)
    }
}

/// A new space.
#[derive(Serialize)]
struct Created {
    space: SpaceId,
    backend: String,
    levels: u32,
    pool_pfn: Pfn,
    pool_pages: u64,
    root_pfn: Pfn,
    root_mfn: Option<Mfn>,
}

fn create(args: &Args, what: &CreateSpace, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let space = domain.space(&what.backend, what.levels, what.pool.clone())?;
    // A walk begins at the root, whatever the address.
    let walk = space.walk(Address(0))?;
    let root = walk.steps.first();
    let created = Created {
        space: space.id(),
        backend: what.backend.clone(),
        levels: what.levels,
        pool_pfn: what.pool.start,
        pool_pages: what.pool.end.0 - what.pool.start.0,
        root_pfn: root.map_or(what.pool.start, |step| step.table_pfn),
        root_mfn: root.and_then(|step| shown(step.table_mfn)),
    };
    if args.json {
        json(out, &created)?;
    } else {
        created.print(out)?;
    }
    Ok(true)
}

fn list(args: &Args, of: &Target, out: &mut impl Write) -> Result<bool> {
    let spaces = attach(args, of)?.spaces()?;
    if args.json {
        json(out, &spaces)?;
    } else {
        section(out, "space", spaces.iter().map(described))?;
    }
    Ok(true)
}

/// Describes a space in a line.
fn described(space: &SpaceInfo) -> String {
    let Range { start, end } = p2m::pages(space.pool_pfn, space.pool_pages);
    format!(
        "{}, backend {}, {} levels, pool PFN {start}..{end} ({}, {} in use), root PFN {}",
        space.space,
        space.backend,
        space.levels,
        Count(space.pool_pages, "page"),
        space.tables,
        space.root_pfn
    )
}

impl Created {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Range { start, end } = p2m::pages(self.pool_pfn, self.pool_pages);
        let pool = Count(self.pool_pages, "page");
        let space = format!(
            "{}, backend {}, {} levels, pool PFN {start}..{end} ({pool})",
            self.space, self.backend, self.levels
        );
        section(out, "space", [space])?;
        let root = format!("PFN {} -> MFN {}", self.root_pfn, Frame(self.root_mfn));
        section(out, "root", [root])
    }
}

/// Returns a machine frame, unless it's hidden.
fn shown(mfn: Mfn) -> Option<Mfn> {
    (mfn != Mfn::HIDDEN).then_some(mfn)
}

/// A machine frame, as it's printed.
struct Frame(Option<Mfn>);

impl Display for Frame {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mfn) => mfn.fmt(f),
            None => f.write_str("hidden"),
        }
    }
}

/// A walk, as it's printed.
#[derive(Serialize)]
struct WalkReport {
    address: Address,
    steps: Vec<Row>,
    page: Option<Mapped>,
    /// What ended a walk that found no page.
    end: Option<String>,
    /// If it was asked for.
    cpu: Option<Cpu>,
}

#[derive(Serialize)]
struct Row {
    level: Level,
    index: u32,
    table_pfn: Pfn,
    table_mfn: Option<Mfn>,
    raw: Word,
    val: Word,
    flags: PteFlags,
}

impl From<&Step> for Row {
    fn from(step: &Step) -> Self {
        Self {
            level: step.level,
            index: step.index,
            table_pfn: step.table_pfn,
            table_mfn: shown(step.table_mfn),
            raw: Word(step.raw),
            val: Word(step.val),
            flags: step.pseudo_physical().flags(),
        }
    }
}

/// The page that a walk leads to.
#[derive(Serialize)]
struct Mapped {
    pfn: Pfn,
    /// The machine frame that the processor would use.
    mfn: Option<Mfn>,
    /// What the P2M has at the PFN, if that is another one.
    p2m_mfn: Option<Mfn>,
}

pub(crate) fn walk(args: &Args, what: &Walk, out: &mut impl Write) -> Result<bool> {
    with(args, &what.space, |domain, space| {
        // First, so that the walk finds what the processor left in the tables.
        let accessed = if what.cpu {
            let mut word = [0];
            let address = Address(what.address.0 & !(WORD_BYTES - 1));
            Some((space.read(address, &mut word)?, word[0]))
        } else {
            None
        };
        let walk = space.walk(what.address)?;
        let page = match walk.page() {
            Some((pfn, mfn)) => {
                let entry = domain.translate(&[pfn])?.first().copied();
                let p2m_mfn = entry.and_then(p2m::Entry::mfn).and_then(shown);
                let mfn = shown(mfn);
                Some(Mapped {
                    pfn,
                    mfn,
                    p2m_mfn: p2m_mfn.filter(|_| p2m_mfn != mfn),
                })
            }
            None => None,
        };
        let cpu = match accessed {
            Some((accessed, word)) => {
                let expected = page
                    .as_ref()
                    .map(|page| word_of(domain, page.pfn, what.address))
                    .transpose()?;
                Some(Cpu::new(&accessed, word, expected))
            }
            None => None,
        };
        let end = match &page {
            Some(_) => None,
            None => walk.steps.last().map(why_no_page),
        };
        let report = WalkReport {
            address: what.address,
            steps: walk.steps.iter().map(Into::into).collect(),
            page,
            end,
            cpu,
        };
        if args.json {
            json(out, &report)?;
        } else {
            report.print(out)?;
        }
        Ok(report.cpu.is_none_or(|cpu| cpu.ok))
    })
}

/// Returns the word that a page of the domain has where an address says.
fn word_of(domain: &Domain, pfn: Pfn, address: Address) -> Result<u64> {
    let page = domain.map(p2m::pages(pfn, 1), p2m::Access::Read, Populate::Lazily)?;
    // A page that has just gone must not end us.
    page.populate()?;
    let offset = address.0 % domain.info().page_bytes() / WORD_BYTES;
    Ok(page.load(offset).unwrap_or_default())
}

/// Says why a walk that ended with this step found no page.
fn why_no_page(step: &Step) -> String {
    let (machine, level) = (step.machine(), step.level);
    let val = step.pseudo_physical();
    if step.raw == 0 {
        format!("the {level} entry is empty")
    } else if machine.is_present() && !val.is_present() {
        format!("the {level} entry names a machine frame that the domain doesn't have")
    } else if val.is_present() {
        format!("the {level} entry links a page that is no table")
    } else {
        format!(
            "the {level} entry is not present, but keeps PFN {}",
            Pfn(val.frame())
        )
    }
}

/// What the processor found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cpu {
    /// Whether it's what was to be expected.
    ok: bool,
    word: Option<Word>,
    /// What the page of the domain has there.
    expected: Option<Word>,
    fault: Option<String>,
}

impl Cpu {
    fn new(accessed: &Accessed, word: u64, expected: Option<u64>) -> Self {
        let word = (accessed.words == 1).then_some(word);
        Self {
            ok: word == expected,
            word: word.map(Word),
            expected: expected.map(Word),
            fault: accessed.fault.map(|fault| fault.to_string()),
        }
    }
}

impl Display for Cpu {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.word, &self.fault) {
            (Some(word), _) => write!(f, "reads {word}, ")?,
            (None, Some(fault)) => write!(f, "{fault}, ")?,
            (None, None) => f.write_str("reads nothing, ")?,
        }
        match self.expected {
            Some(expected) => write!(f, "and the page of the domain has {expected}: ")?,
            None => f.write_str("and no page is mapped: ")?,
        }
        Verdict(self.ok).fmt(f)
    }
}

impl WalkReport {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let numbers = self.steps.iter().map(|row| (row.table_pfn, row.table_mfn));
        let page = self.page.iter().map(|page| (page.pfn, page.mfn));
        let largest = numbers
            .chain(page)
            .map(|(pfn, mfn)| pfn.0.max(mfn.map_or(0, |mfn| mfn.0)))
            .max();
        let digits = hex_digits(largest.unwrap_or(0));
        let frames = |pfn: Pfn, mfn| format!("{pfn:digits$} -> {:digits$}", Frame(mfn));
        let title = "table PFN -> MFN";
        let width = title.len().max(2 * (digits + 2) + " -> ".len());

        writeln!(
            out,
            "level  {title:<width$}  entry  {:18}  {:23}  flags",
            "raw (machine)", "value (pseudo-physical)"
        )?;
        for row in &self.steps {
            let (level, index) = (row.level, row.index);
            let table = frames(row.table_pfn, row.table_mfn);
            let (raw, val) = (row.raw.to_string(), row.val.to_string());
            let flags = match row.raw {
                Word(0) => "empty".to_owned(),
                _ => row.flags.to_string(),
            };
            writeln!(
                out,
                "{level:<5}  {table:<width$}  [{index:>3}]  {raw:18}  {val:23}  {flags}"
            )?;
        }
        match &self.page {
            Some(Mapped { pfn, mfn, p2m_mfn }) => {
                writeln!(out, "page   {}", frames(*pfn, *mfn))?;
                if let Some(p2m_mfn) = p2m_mfn {
                    writeln!(
                        out,
                        "       but the P2M has MFN {p2m_mfn} there: the processor goes elsewhere"
                    )?;
                }
            }
            None => writeln!(out, "page   none: {}", self.end.as_deref().unwrap_or("?"))?,
        }
        if let Some(cpu) = &self.cpu {
            writeln!(out, "cpu    {cpu}")?;
        }
        Ok(())
    }
}

/// What is mapped, as it's printed.
#[derive(Serialize)]
struct Part {
    address: Address,
    nr_pages: u64,
    level: Level,
    pfn: Pfn,
    mfn: Option<Mfn>,
    present: bool,
    flags: PteFlags,
}

impl From<Span> for Part {
    fn from(span: Span) -> Self {
        Self {
            address: span.address,
            nr_pages: span.nr_pages,
            level: span.level,
            pfn: span.pfn,
            mfn: shown(span.mfn),
            present: span.flags.contains(PteFlags::PRESENT),
            flags: span.flags,
        }
    }
}

impl Part {
    /// Returns its pages, one by one.
    fn pages(self, page_bytes: u64) -> impl Iterator<Item = Self> {
        (0..self.nr_pages).map(move |n| Self {
            address: Address(self.address.0 + n * page_bytes),
            nr_pages: 1,
            pfn: Pfn(self.pfn.0 + n),
            mfn: self.mfn.map(|mfn| Mfn(mfn.0 + n)),
            ..self
        })
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            nr_pages,
            level,
            pfn,
            ..
        } = self;
        write!(f, "{address:14}  {nr_pages:>10}  {level:4}  {pfn:8} -> ")?;
        if self.present {
            write!(f, "{:<10}", format!("{:8}", Frame(self.mfn)))?;
        } else {
            f.write_str("no frame  ")?;
        }
        write!(f, "  {}", self.flags)
    }
}

fn dump(args: &Args, what: &Dump, out: &mut impl Write) -> Result<bool> {
    with(args, &what.space, |domain, space| {
        let page = domain.info().page_bytes();
        let mut all = Vec::new();
        let mut is_empty = true;
        for span in space.spans(Address(0)) {
            let part = Part::from(span?);
            if is_empty && !args.json {
                writeln!(
                    out,
                    "{:16}  {:>10}  leaf  {:>10} -> {:10}  flags",
                    "address", "pages", "PFN", "MFN"
                )?;
            }
            is_empty = false;
            match (args.json, what.pages) {
                (true, true) => all.extend(part.pages(page)),
                (true, false) => all.push(part),
                (false, true) => part
                    .pages(page)
                    .try_for_each(|part| writeln!(out, "{part}"))?,
                (false, false) => writeln!(out, "{part}")?,
            }
        }
        if args.json {
            json(out, &all)?;
        } else if is_empty {
            writeln!(out, "nothing is mapped")?;
        }
        Ok(true)
    })
}

/// An access by the processor, as it's printed.
#[derive(Serialize)]
struct AccessReport {
    #[serde(skip)]
    label: &'static str,
    address: Address,
    accessed: u64,
    checksum: Word,
    /// If they were read and shall be shown.
    words: Option<Vec<Word>>,
    fault: Option<p2m::Fault>,
}

fn access(args: &Args, what: &AccessSpace, out: &mut impl Write) -> Result<bool> {
    with(args, &what.space, |_, space| {
        let mut words = Vec::new();
        let (label, accessed) = if !what.write.is_empty() {
            ("written", space.write(what.address, &what.write)?)
        } else if what.checksum {
            ("read", space.checksum(what.address, what.words)?)
        } else {
            words.resize(what.words, 0);
            ("read", space.read(what.address, &mut words)?)
        };
        // What was not read, because of a fault, isn't there.
        words.truncate(accessed.words as usize);
        let report = AccessReport {
            label,
            address: what.address,
            accessed: accessed.words,
            checksum: Word(accessed.checksum),
            words: (what.write.is_empty() && !what.checksum)
                .then(|| words.into_iter().map(Word).collect()),
            fault: accessed.fault,
        };
        if args.json {
            json(out, &report)?;
        } else {
            report.print(out)?;
        }
        Ok(report.fault.is_none())
    })
}

impl AccessReport {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        const WORDS_PER_LINE: usize = 4;
        let words = self.words.as_deref().unwrap_or_default();
        let lines = words.chunks(WORDS_PER_LINE).zip(0..);
        for (line, index) in lines {
            let offset = index * WORDS_PER_LINE as u64 * WORD_BYTES;
            write!(out, "{:14} ", Address(self.address.0.wrapping_add(offset)))?;
            for word in line {
                write!(out, " {word}")?;
            }
            writeln!(out)?;
        }
        let count = Count(self.accessed, "word");
        let sum = format!("{count}, checksum {}", self.checksum);
        section(out, self.label, [sum])?;
        section(out, "fault", self.fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Fault;

    const NOTHING_ACCESSED: Accessed = Accessed {
        words: 0,
        checksum: 0,
        fault: None,
    };

    fn step(level: u32, table: (u64, u64), index: u32, raw: u64, val: u64) -> Step {
        Step {
            level: Level(level),
            index,
            table_pfn: Pfn(table.0),
            table_mfn: Mfn(table.1),
            raw,
            val,
        }
    }

    fn printed(report: &WalkReport) -> String {
        let mut out = Vec::new();
        report.print(&mut out).expect("print");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_walk_shows_both_sides_at_every_level() {
        let steps = [
            step(1, (0x66, 0x4d65), 2, 0x4d66007, 0x67007),
            step(0, (0x67, 0x4d66), 5, (1 << 63) | 0x4f34067, 0x405067),
        ];
        let mut report = WalkReport {
            address: Address(0x405000),
            steps: steps.iter().map(Into::into).collect(),
            page: Some(Mapped {
                pfn: Pfn(0x405),
                mfn: Some(Mfn(0x4f34)),
                p2m_mfn: None,
            }),
            end: None,
            cpu: None,
        };
        let expected = "\
level  table PFN -> MFN  entry  raw (machine)       value (pseudo-physical)  flags
pmd    0x0066 -> 0x4d65  [  2]  0x0000000004d66007  0x0000000000067007       rwxu-----
pte    0x0067 -> 0x4d66  [  5]  0x8000000004f34067  0x0000000000405067       rwxu---AD
page   0x0405 -> 0x4f34
";
        assert_eq!(printed(&report), expected);

        report.page = None;
        report.steps = vec![Row::from(&step(0, (0x67, 0x4d66), 5, 0, 0))];
        report.end = Some("why".to_owned());
        report.cpu = Some(Cpu::new(&NOTHING_ACCESSED, 0, None));
        assert!(printed(&report).ends_with(
            "  empty\npage   none: why\ncpu    reads nothing, and no page is mapped: ok\n"
        ));
    }

    #[test]
    fn tables_that_lead_elsewhere_are_noticed() {
        let report = WalkReport {
            address: Address(0),
            steps: Vec::new(),
            page: Some(Mapped {
                pfn: Pfn(0x405),
                mfn: Some(Mfn(0x405)),
                p2m_mfn: Some(Mfn(0x4f34)),
            }),
            end: None,
            cpu: None,
        };
        assert!(printed(&report).contains("but the P2M has MFN 0x4f34 there"));
    }

    #[test]
    fn the_end_of_a_walk_is_explained() {
        for (raw, val, reason) in [
            (0, 0, "the pte entry is empty"),
            (
                0x405006,
                0x405006,
                "the pte entry is not present, but keeps PFN 0x405",
            ),
            (
                0x405007,
                0,
                "the pte entry names a machine frame that the domain doesn't have",
            ),
        ] {
            assert_eq!(why_no_page(&step(0, (1, 1), 0, raw, val)), reason);
        }
        let link = step(1, (1, 1), 0, 0x7007, 0x8007);
        assert!(why_no_page(&link).ends_with("links a page that is no table"));
    }

    #[test]
    fn the_processor_must_find_what_the_domain_has() {
        let one = Accessed {
            words: 1,
            ..NOTHING_ACCESSED
        };
        assert!(Cpu::new(&one, 7, Some(7)).ok);
        assert!(!Cpu::new(&one, 7, Some(8)).ok);
        assert!(!Cpu::new(&one, 7, None).ok);

        let none = Accessed {
            fault: Some(Fault {
                address: Address(0x1000),
                protection: false,
                write: false,
            }),
            ..NOTHING_ACCESSED
        };
        let cpu = Cpu::new(&none, 0, None);
        assert!(cpu.ok);
        assert_eq!(
            cpu.to_string(),
            "page fault by a read at 0x1000: no page is present, and no page is mapped: ok"
        );
        assert!(!Cpu::new(&none, 0, Some(0)).ok);
        assert_eq!(
            Cpu::new(&one, 7, Some(8)).to_string(),
            "reads 0x0000000000000007, and the page of the domain has 0x0000000000000008: FAILED"
        );
    }

    fn part(flags: &str) -> Part {
        Part::from(Span {
            address: Address(0x40_0000),
            nr_pages: 2,
            pfn: Pfn(0x405),
            mfn: Mfn(0x4f34),
            flags: flags.parse().expect("flags"),
            level: Level(0),
        })
    }

    #[test]
    fn a_part_reads_well() {
        assert_eq!(
            part("rw").to_string(),
            "0x00000000400000           2  pte   0x00000405 -> 0x00004f34  rw-------"
        );
        assert_eq!(
            part("-w").to_string(),
            "0x00000000400000           2  pte   0x00000405 -> no frame    -w-------"
        );
    }

    #[test]
    fn pages_of_a_part_are_consecutive() {
        let pages = part("rw").pages(4096);
        let pages: Vec<_> = pages
            .map(|page| (page.address.0, page.nr_pages, page.pfn.0, page.mfn))
            .collect();
        assert_eq!(
            pages,
            [
                (0x40_0000, 1, 0x405, Some(Mfn(0x4f34))),
                (0x40_1000, 1, 0x406, Some(Mfn(0x4f35))),
            ]
        );
    }

    #[test]
    fn words_are_shown_four_in_a_line() {
        let report = AccessReport {
            label: "read",
            address: Address(0x1000),
            accessed: 5,
            checksum: Word(15),
            words: Some((1..=5).map(Word).collect()),
            fault: None,
        };
        let mut out = Vec::new();
        report.print(&mut out).expect("print");
        let text = String::from_utf8(out).expect("UTF-8");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].split_whitespace().count(), 5);
        assert_eq!(lines[1], "0x00000000001020  0x0000000000000005");
        assert_eq!(lines[2], "read     5 words, checksum 0x000000000000000f");
    }

    #[test]
    fn words_lose_nothing_in_json() {
        let json = serde_json::to_string(&Word(u64::MAX)).expect("serializable");
        assert_eq!(json, r#""0xffffffffffffffff""#);
    }
}
