// SPDX-License-Identifier: GPL-2.0

use p2m_pure::dma::{ByteRange, Limits, Parameters, Plan, Planned, flags};
use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, PAGE_SIZE, Pfn, PfnRange};
use p2m_pure::runs;

use crate::{below, number, run};

/// Where the pages begin. All others are empty.
const BASE: u64 = 64;

/// What must bounce.
const BOUNCE: u32 = flags::MASK | flags::STRADDLE | flags::ALIGNMENT;

/// The most segments that are looked at.
const MOST: usize = 4096;

/// Plans for ranges and devices of any kind: without gaps, as few segments as there can be, all of
/// which the device takes or which must bounce, and the same from wherever they are resumed.
pub fn dma(data: &[u8]) {
    run(data, |bytes| {
        let mut entries = Vec::new();
        for _ in 0..below(bytes, 48)? {
            let mfn = 0x1000 + below(bytes, 16)?;
            let mfn = match below(bytes, 8)? {
                0 => Mfn::new(number(bytes)? % Mfn::LIMIT),
                _ => Mfn::new(mfn),
            };
            let next = entries.last().and_then(|last: &Entry| last.advance(1));
            entries.push(match (below(bytes, 8)?, mfn, next) {
                (0, Some(mfn), _) => Entry::Foreign(mfn),
                (1, Some(mfn), _) => Entry::Identity(mfn),
                (2, Some(mfn), _) => Entry::Present(mfn),
                (3, ..) => Entry::Invalid,
                // Mostly runs.
                (_, _, Some(next)) => next,
                (_, Some(mfn), _) => Entry::Present(mfn),
                (_, None, None) => Entry::Invalid,
            });
        }
        let source = |most: u64| {
            let entries = &entries;
            move |range: PfnRange| {
                let entry = |pfn: Pfn| {
                    let at = pfn.get().checked_sub(BASE);
                    let entry = at.and_then(|at| entries.get(at as usize));
                    entry.copied().unwrap_or(Entry::Invalid)
                };
                let first = entry(range.start());
                let continues = |at: &u64| {
                    let next = range.nth(*at).map(entry);
                    next.is_some() && first.advance(*at) == next
                };
                runs::Run {
                    pfn: range.start(),
                    nr_pages: 1 + (1..most).take_while(continues).count() as u64,
                    entry: first,
                }
            }
        };
        let is_any = below(bytes, 8)? == 0;
        let range = match is_any {
            true => ByteRange::new(number(bytes)?, number(bytes)?, number(bytes)?),
            false => ByteRange::new(
                BASE + below(bytes, 8)?,
                below(bytes, 2 * PAGE_SIZE as u64)?,
                1 + below(bytes, 48 * PAGE_SIZE as u64)?,
            ),
        };
        let mut limit = || -> arbitrary::Result<u64> {
            Ok(match below(bytes, 4)? {
                0 => 0,
                1 => number(bytes)?,
                2 => (1 << below(bytes, 40)?) - 1,
                _ => PAGE_SIZE as u64 * below(bytes, 8)?,
            })
        };
        let asked = Parameters {
            dma_mask: limit()?,
            max_segment_size: limit()?,
            segment_boundary_mask: limit()?,
            dma_alignment: limit()?,
            max_segments: limit()?,
        };
        let (Ok(range), Ok(limits)) = (range, Limits::new(asked)) else {
            return Ok(());
        };
        // A range of exabytes is of nothing, but for a few pages.
        if range.pages().nr_pages() > 1 << 12 {
            return Ok(());
        }
        let plan = |position, most| Plan::new(range, position, limits, source(most));
        let all: Vec<Planned> = plan(0, u64::MAX).take(MOST).collect();
        check(range, (&asked, &limits), &all, &source);

        // In pieces of any length, and from the middle on.
        let most = 1 + below(bytes, 8)?;
        let pieces: Vec<Planned> = plan(0, most).take(MOST).collect();
        assert_eq!(pieces, all);
        let at = below(bytes, all.len().max(1) as u64)? as usize;
        if let Some(first) = all.get(at) {
            let position = first.segment.start() - range.start();
            let nr = all.len() - at;
            let rest: Vec<Planned> = plan(position, u64::MAX).take(nr).collect();
            assert_eq!(rest, all[at..]);
        }
        Ok(())
    });
}

fn check<S: FnMut(PfnRange) -> runs::Run>(
    range: ByteRange,
    (asked, limits): (&Parameters, &Limits),
    all: &[Planned],
    source: &impl Fn(u64) -> S,
) {
    // 0 is no limit.
    let or_none = |limit| if limit == 0 { u64::MAX } else { limit };
    let mut next = range.start();
    for Planned { segment, flags } in all {
        assert_eq!(segment.start(), next, "a gap");
        assert!(segment.length > 0);
        next += segment.length;
        // What is at its first page is what the source says.
        if let Ok(page) = PfnRange::new(segment.pfn.get(), 1) {
            assert_eq!(source(1)(page).entry, segment.entry);
        }
        let Some(address) = segment.address() else {
            assert_eq!(*flags, flags::UNBACKED);
            continue;
        };
        let last = address + (segment.length - 1);
        if flags & BOUNCE == 0 {
            assert!(last <= or_none(asked.dma_mask), "beyond the mask");
            assert_eq!((address | segment.length) & asked.dma_alignment, 0);
        }
        assert!(
            segment.length <= or_none(asked.max_segment_size),
            "too long"
        );
        let boundary = |address: u64| address & !or_none(asked.segment_boundary_mask);
        assert_eq!(boundary(address), boundary(last), "across a boundary");
    }
    if all.len() < MOST {
        assert_eq!(next, range.start() + range.length(), "not all of it");
    }
    for pair in all.windows(2) {
        let merged = pair[0].segment.merge(pair[1].segment, limits);
        assert_eq!(merged, None, "two that could be one");
    }
}
