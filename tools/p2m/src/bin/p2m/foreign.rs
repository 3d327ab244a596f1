// SPDX-License-Identifier: GPL-2.0

//! What is at a PFN without being the domain's.

use std::io::{self, Write};

use anyhow::Result;
use p2m::{Pfn, Slot};
use serde::Serialize;

use crate::args::{Args, Foreign, MapForeign, Pages, Target};
use crate::format::{Count, json, section};
use crate::inspect::attach;

pub(crate) fn foreign(args: &Args, command: &Foreign, out: &mut impl Write) -> Result<bool> {
    match command {
        Foreign::Map(what) => map(args, what, out),
        Foreign::Unmap(what) => unmap(args, what, out),
    }
}

/// A slot that didn't become what it should.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Failed {
    pfn: Pfn,
    errno: i32,
    reason: &'static str,
}

#[derive(Serialize)]
struct Report {
    operation: &'static str,
    pages: u64,
    failed: Vec<Failed>,
}

impl Report {
    fn new(
        operation: &'static str,
        start: Pfn,
        slots: &[Slot],
        reason: fn(i32) -> &'static str,
    ) -> Self {
        let numbered = (start.0..).map(Pfn).zip(slots);
        let failed = numbered.filter_map(|(pfn, slot)| {
            let errno = (*slot)?.raw_os_error();
            Some(Failed {
                pfn,
                errno,
                reason: reason(errno),
            })
        });
        let failed: Vec<_> = failed.collect();
        Self {
            operation,
            pages: (slots.len() - failed.len()) as u64,
            failed,
        }
    }

    fn print(&self, args: &Args, out: &mut impl Write) -> io::Result<bool> {
        if args.json {
            json(out, self)?;
        } else {
            section(out, self.operation, [Count(self.pages, "page")])?;
            let failed = self.failed.iter();
            let lines = failed.map(|failed| format!("PFN {}: {}", failed.pfn, failed.reason));
            section(out, "failed", lines)?;
        }
        Ok(self.failed.is_empty())
    }
}

fn why_not_mapped(errno: i32) -> &'static str {
    match rustix::io::Errno::from_raw_os_error(errno) {
        rustix::io::Errno::FAULT => "the other domain has no page there, or a table of a space",
        rustix::io::Errno::EXIST => "something is there already",
        rustix::io::Errno::NOENT => "it is in no region",
        rustix::io::Errno::NOMEM => "memory is short",
        _ => "refused by the kernel",
    }
}

fn why_not_unmapped(_: i32) -> &'static str {
    "no page of another domain is there"
}

fn map(args: &Args, what: &MapForeign, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let lender = Target {
        pid: what.from_pid,
        fd: what.from_fd,
    };
    let lender = attach(args, &lender)?;
    let slots = domain.map_foreign(what.start, &lender, what.frames.clone())?;
    let report = Report::new("mapped", what.start, &slots, why_not_mapped);
    Ok(report.print(args, out)?)
}

fn unmap(args: &Args, what: &Pages, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let slots = domain.unmap_foreign(what.range.clone())?;
    let report = Report::new("unmapped", what.range.start, &slots, why_not_unmapped);
    Ok(report.print(args, out)?)
}

#[derive(Serialize)]
struct Identity {
    operation: &'static str,
    start_pfn: Pfn,
    pages: u64,
}

pub(crate) fn identity(args: &Args, what: &Pages, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    domain.make_identity(what.range.clone())?;
    let range = &what.range;
    let identity = Identity {
        operation: "identity",
        start_pfn: range.start,
        pages: range.end.0 - range.start.0,
    };
    if args.json {
        json(out, &identity)?;
    } else {
        let pages = Count(identity.pages, "page");
        let text = format!("PFN {}..{} ({pages})", range.start, range.end);
        section(out, identity.operation, [text])?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn slots_that_fail_are_told_by_their_pfns() {
        let slots = [None, Some(Errno::EXIST), None, Some(Errno::FAULT)];
        let report = Report::new("mapped", Pfn(16), &slots, why_not_mapped);
        assert_eq!(report.pages, 2);
        let failed: Vec<_> = report.failed.iter().map(|slot| slot.pfn.0).collect();
        assert_eq!(failed, [17, 19]);
        assert_eq!(report.failed[0].reason, "something is there already");
    }
}
