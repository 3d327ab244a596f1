// SPDX-License-Identifier: GPL-2.0

//! Commands for the authors of drivers.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};

use anyhow::{Result, bail};
use p2m::{Bytes, DmaFlags, DmaLimits, DmaSegment, Domain, Run, plan_dma};
use serde::Serialize;

use crate::args::{Args, DmaPlan};
use crate::format::{Bytes as Size, Count, Verdict, json, section};
use crate::inspect::attach;

/// What a plan comes to.
#[derive(Clone, Copy, Default, Serialize)]
struct Sum {
    segments: u64,
    bytes: u64,
    bounced: u64,
    bounced_bytes: u64,
    /// Bytes where there is nothing.
    unbacked_bytes: u64,
}

impl Sum {
    fn add(&mut self, segment: &DmaSegment) {
        self.segments += 1;
        self.bytes += segment.length;
        if segment.flags.must_bounce() {
            self.bounced += 1;
            self.bounced_bytes += segment.length;
        }
        if segment.flags.contains(DmaFlags::UNBACKED) {
            self.unbacked_bytes += segment.length;
        }
    }
}

impl Display for Sum {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}",
            Count(self.segments, "segment"),
            Size(self.bytes)
        )?;
        match self.bounced {
            0 => f.write_str("; nothing must bounce")?,
            bounced => write!(f, "; {bounced} must bounce ({})", Size(self.bounced_bytes))?,
        }
        match self.unbacked_bytes {
            0 => Ok(()),
            bytes => write!(f, "; {} without a frame", Size(bytes)),
        }
    }
}

/// A plan with what it was made for.
#[derive(Serialize)]
struct Report {
    range: Bytes,
    device: DmaLimits,
    segments: Vec<DmaSegment>,
    sum: Sum,
    /// Whether the runs say the same, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
}

/// A device as it is described in a line.
struct Device(DmaLimits);

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(limits) = self;
        let mut parts = Vec::new();
        if limits.dma_mask != 0 {
            parts.push(format!("addresses up to {:#x}", limits.dma_mask));
        }
        if limits.max_segment_size != 0 {
            let most = Size(limits.max_segment_size);
            parts.push(format!("segments of {most} at most"));
        }
        if limits.segment_boundary_mask != 0 {
            let boundary = limits.segment_boundary_mask.saturating_add(1);
            parts.push(format!("none across {}", Size(boundary)));
        }
        if limits.dma_alignment != 0 {
            let align = u64::from(limits.dma_alignment) + 1;
            parts.push(format!("aligned to {}", Size(align)));
        }
        if limits.max_segments != 0 {
            let most = Count(limits.max_segments.into(), "segment");
            parts.push(format!("{most} at once"));
        }
        match parts.is_empty() {
            true => f.write_str("without limits"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

pub(crate) fn plan(args: &Args, what: &DmaPlan, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let range = bytes(what, domain.info().page_bytes())?;
    let limits = what.limits();
    let mut sum = Sum::default();
    let mut segments = Vec::new();
    if !args.json {
        let Bytes { offset, length, .. } = range;
        let pages = &what.range;
        let from = match offset {
            0 => String::new(),
            offset => format!(" from byte {offset:#x} on"),
        };
        let line = format!("PFN {}..{}{from}, {}", pages.start, pages.end, Size(length));
        section(out, "range", [line])?;
        section(out, "device", [Device(limits)])?;
    }
    for segment in domain.dma_plan(range, limits) {
        let segment = segment?;
        sum.add(&segment);
        if !args.json {
            print_segment(out, &segment)?;
        }
        if args.json || what.check {
            segments.push(segment);
        }
    }
    let ok = match what.check {
        true => Some(is_that_of_the_runs(&domain, range, limits, &segments)?),
        false => None,
    };
    if args.json {
        json(
            out,
            &Report {
                range,
                device: limits,
                segments,
                sum,
                ok,
            },
        )?;
    } else {
        section(out, "plan", [sum])?;
        if let Some(ok) = ok {
            let verdict = format!("the runs of the domain say the same: {}", Verdict(ok));
            section(out, "check", [verdict])?;
        }
    }
    Ok(ok.unwrap_or(true))
}

/// Returns which bytes of the pages are meant.
fn bytes(what: &DmaPlan, page_bytes: u64) -> Result<Bytes> {
    let nr_pages = what.range.end.0 - what.range.start.0;
    let size = nr_pages.saturating_mul(page_bytes);
    let rest = size.saturating_sub(what.offset);
    let length = what.length.unwrap_or(rest);
    if length == 0 || length > rest {
        bail!(
            "these bytes are not in the pages, which have {}",
            Size(size)
        );
    }
    Ok(Bytes {
        pfn: what.range.start,
        offset: what.offset,
        length,
    })
}

fn print_segment(out: &mut impl Write, segment: &DmaSegment) -> io::Result<()> {
    let DmaSegment {
        pfn,
        offset,
        length,
        address,
        flags,
    } = segment;
    let address = match address {
        Some(address) => format!("{address:#014x}"),
        None => "nothing".to_owned(),
    };
    let line = format!("{pfn:8}+{offset:#05x} {length:>10}  {address:14}  {flags}");
    writeln!(out, "{}", line.trim_end())
}

/// Returns whether the same plan can be made of the runs that the module reports.
fn is_that_of_the_runs(
    domain: &Domain,
    range: Bytes,
    limits: DmaLimits,
    segments: &[DmaSegment],
) -> Result<bool> {
    let runs = domain
        .runs(range.pages())
        .collect::<p2m::Result<Vec<Run>>>()?;
    Ok(plan_dma(&runs, range, limits)? == segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::tests::dma_plan;
    use p2m::{Entry, EntryKind, Mfn, Pfn};

    fn segments(line: &str) -> Vec<DmaSegment> {
        let what = dma_plan(line);
        let runs = [
            Run {
                pfn: Pfn(0),
                nr_pages: 2,
                entry: Entry::from(EntryKind::Frame(Mfn(0x57b4))),
            },
            Run {
                pfn: Pfn(2),
                nr_pages: 1,
                entry: Entry::from(EntryKind::Frame(Mfn(0x10_0000))),
            },
        ];
        let range = bytes(&what, 4096).expect("bytes");
        plan_dma(&runs, range, what.limits()).expect("plan")
    }

    fn print(line: &str) -> (String, String) {
        let mut out = Vec::new();
        let mut sum = Sum::default();
        for segment in segments(line) {
            print_segment(&mut out, &segment).expect("print");
            sum.add(&segment);
        }
        (String::from_utf8(out).expect("UTF-8"), sum.to_string())
    }

    #[test]
    fn a_segment_is_a_line() {
        let (lines, sum) = print("0..4 --offset 0x10 --mask 32");
        let expected = "\
0x00000000+0x010       8176  0x0000057b4010
0x00000002+0x000       4096  0x000100000000  mask
0x00000003+0x000       4096  nothing         unbacked
";
        assert_eq!(lines, expected);
        assert_eq!(
            sum,
            "3 segments, 16.0 KiB; 1 must bounce (4 KiB); 4 KiB without a frame"
        );
        let (_, sum) = print("0..2");
        assert_eq!(sum, "1 segment, 8 KiB; nothing must bounce");
    }

    #[test]
    fn bytes_are_in_their_pages() {
        let of =
            |line: &str| bytes(&dma_plan(line), 4096).map(|bytes| (bytes.offset, bytes.length));
        assert_eq!(of("1..3").ok(), Some((0, 8192)));
        assert_eq!(of("1..3 --offset 4097").ok(), Some((4097, 4095)));
        assert_eq!(of("1..3 --offset 4097 --length 2").ok(), Some((4097, 2)));
        assert_eq!(of("1..3 --offset 8191 --length 1").ok(), Some((8191, 1)));
        for line in [
            "1..3 --offset 8192",
            "1..3 --offset 8191 --length 2",
            "1..3 --length 8193",
            "1..3 --offset 0xffffffffffffffff --length 1",
        ] {
            assert!(of(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_device_is_described_by_its_limits() {
        let of = |line: &str| Device(dma_plan(line).limits()).to_string();
        assert_eq!(of("0"), "without limits");
        assert_eq!(
            of("0 --mask 32 --max-segment 64K --boundary 4G --align 512 --max-segments 1"),
            "addresses up to 0xffffffff, segments of 64 KiB at most, none across 4 GiB, aligned to \
             512 bytes, 1 segment at once"
        );
    }

    #[test]
    fn json_has_names_for_reasons() {
        let segments = segments("2 --mask 32");
        let text = serde_json::to_string(&segments).expect("JSON");
        assert_eq!(
            text,
            r#"[{"pfn":2,"offset":0,"length":4096,"address":4294967296,"flags":["mask"]}]"#
        );
    }
}
