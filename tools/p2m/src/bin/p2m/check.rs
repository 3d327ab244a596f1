// SPDX-License-Identifier: GPL-2.0

//! Compares what the module says about a domain with what others say.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::ops::Range;

use anyhow::Result;
use p2m::{Entry, EntryKind, Mfn, Pfn, pages};
use serde::Serialize;

use crate::format::{Verdict, section};

/// How many pages are compared at a time.
const BATCH_PAGES: u64 = 4096;

/// How many differences are told; after some more it's clear enough.
const MAX_TOLD: usize = 10;

/// Answers a question about several pages with an answer for each.
pub(crate) type Ask<'a, Question, Answer> = Box<dyn FnMut(Question) -> Result<Vec<Answer>> + 'a>;

/// Somebody who knows which frames are where, and is asked for it.
pub(crate) enum Witness<'a> {
    /// Knows the P2M entries of PFNs.
    Entries(Ask<'a, Range<Pfn>, Entry>),
    /// Knows the machine frames that are mapped at PFNs. It has to map them first, which is no
    /// good where nothing is: it's asked about populated PFNs only.
    Frames(Ask<'a, Range<Pfn>, Option<Mfn>>),
    /// Knows the PFNs of machine frames.
    Reverse(Ask<'a, Vec<Mfn>, Option<Pfn>>),
}

impl Witness<'_> {
    /// Asks about consecutive pages, and returns for each what it should answer and what it did.
    fn ask(&mut self, range: Range<Pfn>, entries: &[Entry]) -> Result<Vec<Comparison>> {
        let pfns = (range.start.0..range.end.0).map(Pfn);
        let pages = pfns.zip(entries.iter().copied());
        Ok(match self {
            Self::Entries(ask) => {
                let expected = pages.map(|(pfn, entry)| (pfn, Answer::Entry(entry)));
                compare(expected, ask(range)?.into_iter().map(Answer::Entry))
            }
            Self::Frames(ask) => {
                let mut comparisons = Vec::new();
                for (range, entries) in populated(range.start, entries) {
                    let pfns = (range.start.0..range.end.0).map(Pfn);
                    let answers = entries.iter().map(|entry| Answer::Frame(entry.mfn()));
                    let found = ask(range)?.into_iter().map(Answer::Frame);
                    comparisons.extend(compare(pfns.zip(answers), found));
                }
                comparisons
            }
            Self::Reverse(ask) => {
                // Frames that aren't the domain's own have no PFN.
                let (pfns, mfns): (Vec<_>, Vec<_>) = pages
                    .filter_map(|(pfn, entry)| match entry.kind() {
                        EntryKind::Frame(mfn) => Some((pfn, mfn)),
                        _ => None,
                    })
                    .unzip();
                let expected = pfns.iter().map(|&pfn| (pfn, Answer::Pfn(Some(pfn))));
                compare(expected, ask(mfns)?.into_iter().map(Answer::Pfn))
            }
        })
    }
}

/// What a witness says about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Entry(Entry),
    Frame(Option<Mfn>),
    Pfn(Option<Pfn>),
    Nothing,
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "{entry}"),
            Self::Frame(Some(mfn)) => write!(f, "MFN {mfn}"),
            Self::Pfn(Some(pfn)) => write!(f, "PFN {pfn}"),
            Self::Frame(None) => f.write_str("no frame"),
            Self::Pfn(None) => f.write_str("no PFN"),
            Self::Nothing => f.write_str("no answer"),
        }
    }
}

/// Returns the parts of consecutive pages, of which the first is at `start`, that have frames.
fn populated(start: Pfn, entries: &[Entry]) -> impl Iterator<Item = (Range<Pfn>, &[Entry])> {
    let mut next = start;
    entries
        .chunk_by(|a, b| a.mfn().is_some() == b.mfn().is_some())
        .map(move |part| {
            let range = pages(next, part.len() as u64);
            next = range.end;
            (range, part)
        })
        .filter(|(_, part)| part.first().is_some_and(|entry| entry.mfn().is_some()))
}

struct Comparison {
    pfn: Pfn,
    expected: Answer,
    found: Answer,
}

fn compare(
    expected: impl Iterator<Item = (Pfn, Answer)>,
    found: impl Iterator<Item = Answer>,
) -> Vec<Comparison> {
    // Who answers too little doesn't agree.
    let found = found.chain(std::iter::repeat(Answer::Nothing));
    expected
        .zip(found)
        .map(|((pfn, expected), found)| Comparison {
            pfn,
            expected,
            found,
        })
        .collect()
}

/// What a check comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    witnesses: Vec<Agreement>,
    differences: Vec<Difference>,
}

/// How far a witness agrees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Agreement {
    witness: &'static str,
    asked: u64,
    agreed: u64,
}

/// Where a witness does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Difference {
    witness: &'static str,
    pfn: Pfn,
    expected: String,
    found: String,
}

/// Compares what `reference` says about every page of the ranges with what the witnesses say.
///
/// `done` is told how many pages were compared.
pub(crate) fn check(
    ranges: impl IntoIterator<Item = Range<Pfn>>,
    mut reference: Ask<'_, Range<Pfn>, Entry>,
    mut witnesses: Vec<(&'static str, Witness<'_>)>,
    done: impl Fn(u64),
) -> Result<Report> {
    let mut agreements: Vec<_> = witnesses
        .iter()
        .map(|&(witness, _)| Agreement {
            witness,
            asked: 0,
            agreed: 0,
        })
        .collect();
    let mut differences = Vec::new();

    for range in ranges.into_iter().flat_map(batches) {
        let entries = reference(range.clone())?;
        for ((witness, ask), agreement) in witnesses.iter_mut().zip(&mut agreements) {
            for Comparison {
                pfn,
                expected,
                found,
            } in ask.ask(range.clone(), &entries)?
            {
                agreement.asked += 1;
                if expected == found {
                    agreement.agreed += 1;
                } else if differences.len() < MAX_TOLD {
                    differences.push(Difference {
                        witness,
                        pfn,
                        expected: expected.to_string(),
                        found: found.to_string(),
                    });
                }
            }
        }
        done(range.end.0 - range.start.0);
    }

    Ok(Report {
        // Who asks nothing proves nothing.
        ok: agreements.iter().all(Agreement::ok) && agreements.iter().any(|a| a.asked > 0),
        witnesses: agreements,
        differences,
    })
}

/// Divides a range into batches.
fn batches(range: Range<Pfn>) -> impl Iterator<Item = Range<Pfn>> {
    (range.start.0..range.end.0)
        .step_by(BATCH_PAGES as usize)
        .map(move |start| Pfn(start)..pages(Pfn(start), BATCH_PAGES).end.min(range.end))
}

impl Agreement {
    fn ok(&self) -> bool {
        self.agreed == self.asked
    }
}

impl Display for Agreement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} frames agree with {}: {}",
            self.agreed,
            self.asked,
            self.witness,
            Verdict(self.ok())
        )
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            witness,
            pfn,
            expected,
            found,
        } = self;
        write!(f, "PFN {pfn}: {expected} expected, {found} says {witness}")
    }
}

impl Report {
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        section(out, "check", &self.witnesses)?;
        section(out, "differs", &self.differences)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A P2M in which everything is backwards.
    const NR_PAGES: u64 = 2 * BATCH_PAGES + 5;

    fn entry(pfn: u64) -> Entry {
        Entry::from_raw(2 * NR_PAGES - pfn)
    }

    fn entries(range: Range<Pfn>) -> Result<Vec<Entry>> {
        Ok((range.start.0..range.end.0).map(entry).collect())
    }

    fn frames(range: Range<Pfn>) -> Result<Vec<Option<Mfn>>> {
        Ok(entries(range)?.into_iter().map(Entry::mfn).collect())
    }

    fn reverse(mfns: Vec<Mfn>) -> Result<Vec<Option<Pfn>>> {
        Ok(mfns
            .into_iter()
            .map(|mfn| Some(Pfn(2 * NR_PAGES - mfn.0)))
            .collect())
    }

    fn report(witness: Witness<'_>) -> Report {
        let ranges = [Pfn(0)..Pfn(NR_PAGES)];
        check(ranges, Box::new(entries), vec![("it", witness)], |_| ()).expect("no errors here")
    }

    fn printed(report: &Report) -> String {
        let mut out = Vec::new();
        report.print(&mut out).expect("print");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn who_says_the_same_agrees() {
        for witness in [
            Witness::Entries(Box::new(entries)),
            Witness::Frames(Box::new(frames)),
            Witness::Reverse(Box::new(reverse)),
        ] {
            let report = report(witness);
            assert!(report.ok);
            let line = format!("check    {NR_PAGES} of {NR_PAGES} frames agree with it: ok\n");
            assert_eq!(printed(&report), line);
        }
    }

    #[test]
    fn a_single_lie_is_found_wherever_it_is() {
        for liar in [0, 1, BATCH_PAGES - 1, BATCH_PAGES, NR_PAGES - 1] {
            let lie = |range: &Range<Pfn>| range.contains(&Pfn(liar));
            let index = |range: &Range<Pfn>| (liar - range.start.0) as usize;
            for (witness, expected, found) in [
                (
                    Witness::Entries(Box::new(|range| {
                        let mut entries = entries(range.clone())?;
                        if lie(&range) {
                            entries[index(&range)] = Entry::INVALID;
                        }
                        Ok(entries)
                    })),
                    entry(liar).to_string(),
                    "nothing".to_owned(),
                ),
                (
                    Witness::Frames(Box::new(|range| {
                        let mut frames = frames(range.clone())?;
                        if lie(&range) {
                            frames[index(&range)] = Some(Mfn(1));
                        }
                        Ok(frames)
                    })),
                    entry(liar).to_string(),
                    "MFN 0x1".to_owned(),
                ),
                (
                    Witness::Reverse(Box::new(|mfns| {
                        let mut pfns = reverse(mfns)?;
                        pfns.iter_mut()
                            .filter(|pfn| **pfn == Some(Pfn(liar)))
                            .for_each(|pfn| *pfn = None);
                        Ok(pfns)
                    })),
                    format!("PFN {}", Pfn(liar)),
                    "no PFN".to_owned(),
                ),
            ] {
                let report = report(witness);
                assert!(!report.ok);
                assert_eq!(report.witnesses[0].agreed, NR_PAGES - 1);
                let difference = Difference {
                    witness: "it",
                    pfn: Pfn(liar),
                    expected,
                    found,
                };
                assert_eq!(report.differences, [difference]);
            }
        }
    }

    #[test]
    fn the_kind_of_an_entry_counts_too() {
        let foreign = |range| {
            let entries = entries(range)?.into_iter();
            let foreign = entries.map(|entry| match entry.kind() {
                EntryKind::Frame(mfn) => EntryKind::Foreign(mfn).into(),
                _ => entry,
            });
            Ok(foreign.collect())
        };
        assert!(!report(Witness::Entries(Box::new(foreign))).ok);
    }

    #[test]
    fn who_answers_too_little_does_not_agree() {
        let report = report(Witness::Entries(Box::new(|range| {
            let mut entries = entries(range)?;
            entries.pop();
            Ok(entries)
        })));
        assert!(!report.ok);
        assert_eq!(report.differences.len(), 3);
        assert_eq!(report.differences[0].found, "no answer");
    }

    #[test]
    fn who_asks_nothing_proves_nothing() {
        let witness = Witness::Entries(Box::new(entries));
        let report = check([], Box::new(entries), vec![("it", witness)], |_| ());
        assert!(!report.expect("no errors here").ok);
    }

    #[test]
    fn many_differences_are_counted_and_few_told() {
        let report = report(Witness::Frames(Box::new(|range| {
            Ok(vec![None; frames(range)?.len()])
        })));
        assert_eq!(report.witnesses[0].agreed, 0);
        assert_eq!(report.differences.len(), MAX_TOLD);
        assert!(printed(&report).contains("frames agree with it: FAILED\ndiffers  PFN 0x0: "));
    }

    #[test]
    fn nobody_has_to_map_a_hole() {
        // Of every three pages, the last is missing.
        let with_holes = |range: Range<Pfn>| -> Result<Vec<Entry>> {
            let pfns = range.start.0..range.end.0;
            Ok(pfns
                .map(|pfn| match pfn % 3 {
                    2 => Entry::INVALID,
                    _ => entry(pfn),
                })
                .collect())
        };
        let mapped = |range: Range<Pfn>| {
            assert!(range.end.0 - range.start.0 <= 2 && range.start.0 % 3 < 2);
            frames(range)
        };
        let witnesses = vec![
            ("frames", Witness::Frames(Box::new(mapped))),
            ("entries", Witness::Entries(Box::new(with_holes))),
            ("reverse", Witness::Reverse(Box::new(reverse))),
        ];
        let ranges = [Pfn(0)..Pfn(NR_PAGES)];
        let report = check(ranges, Box::new(with_holes), witnesses, |_| ()).expect("no errors");
        assert!(report.ok);
        let asked: Vec<_> = report.witnesses.iter().map(|w| w.asked).collect();
        let holes = NR_PAGES / 3;
        assert_eq!(asked, [NR_PAGES - holes, NR_PAGES, NR_PAGES - holes]);
    }

    #[test]
    fn an_error_of_a_witness_is_an_error_of_the_check() {
        let witness = Witness::Frames(Box::new(|_| anyhow::bail!("lost its memory")));
        let ranges = [Pfn(0)..Pfn(1)];
        let report = check(ranges, Box::new(entries), vec![("it", witness)], |_| ());
        assert!(report.is_err());
    }

    #[test]
    fn batches_cover_the_range_without_gap_or_overlap() {
        for nr in [0, 1, BATCH_PAGES, BATCH_PAGES + 1, 3 * BATCH_PAGES - 1] {
            let mut next = Pfn(7);
            for batch in batches(pages(Pfn(7), nr)) {
                assert_eq!(batch.start, next);
                assert!(!batch.is_empty());
                next = batch.end;
            }
            assert_eq!(next, Pfn(7 + nr));
        }
    }
}
