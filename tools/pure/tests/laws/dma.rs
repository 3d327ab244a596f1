// SPDX-License-Identifier: GPL-2.0

//! DMA segments against a loop over all bytes, and the laws of `drivers/xen/swiotlb-xen.c` and
//! `block/blk.h` against loops as they have them.

use p2m_pure::dma::{
    flags, requires_alignment, straddles, BadLimits, ByteRange, Limits, Parameters, Plan, Planned,
    Segment,
};
use p2m_pure::entry::Entry;
use p2m_pure::frame::{BadRange, Mfn, Pfn, PfnRange, PAGE_SHIFT, PAGE_SIZE};
use p2m_pure::runs::{piece, Run, PIECE_PAGES};
use proptest::prelude::*;

use crate::rig::{mfn, pfn, span, Domain};

const PAGE: u64 = PAGE_SIZE as u64;

/// Where the layouts of these tests begin: the PFN is a multiple of 4, and so is the first MFN.
const BASE: u64 = 64;

/// What is at each PFN from [`BASE`] on.
#[derive(Clone, Debug)]
struct Layout(Vec<Entry>);

impl Layout {
    fn entry(&self, pfn: Pfn) -> Entry {
        let at = pfn.get().checked_sub(BASE).map(|at| at as usize);
        let entry = at.and_then(|at| self.0.get(at));
        entry.copied().unwrap_or(Entry::Invalid)
    }

    /// Answers with runs in pieces of at most so many pages.
    fn source(&self, most: u64) -> impl FnMut(PfnRange) -> Run + '_ {
        move |range| {
            let first = self.entry(range.start());
            let continues = |at: &u64| {
                let next = range.nth(*at).map(|pfn| self.entry(pfn));
                next.is_some() && first.advance(*at) == next
            };
            Run {
                pfn: range.start(),
                nr_pages: 1 + (1..most).take_while(continues).count() as u64,
                entry: first,
            }
        }
    }

    fn plan(&self, range: ByteRange, limits: Limits) -> Vec<Planned> {
        Plan::new(range, 0, limits, self.source(u64::MAX)).collect()
    }
}

fn limits(parameters: Parameters) -> Limits {
    Limits::new(parameters).unwrap()
}

fn bytes(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(BASE, offset, length).unwrap()
}

/// The address that a device has to use for a byte, and of which kind the frame is.
fn at(layout: &Layout, byte: u64) -> (Option<u64>, u32) {
    let entry = layout.entry(pfn(byte / PAGE));
    let (mfn, kind) = match entry {
        Entry::Invalid => (None, 0),
        Entry::Present(mfn) => (Some(mfn), 1),
        Entry::Foreign(mfn) => (Some(mfn), 2),
        Entry::Identity(mfn) => (Some(mfn), 3),
    };
    (mfn.map(|mfn| mfn.get() * PAGE + byte % PAGE), kind)
}

/// A segment as one thinks of it: from byte to byte, and its first address.
#[derive(Debug, PartialEq, Eq)]
struct Naive {
    start: u64,
    end: u64,
    address: Option<u64>,
    flags: u32,
}

/// The plan for a range, byte by byte, in the words of the ABI.
fn naive(layout: &Layout, range: ByteRange, limits: &Parameters) -> Vec<Naive> {
    let none = |limit: u64| if limit == 0 { u64::MAX } else { limit };
    let boundary = none(limits.segment_boundary_mask);
    let mut segments: Vec<Naive> = Vec::new();
    let mut is_gathered = false;
    let mut last = (None, u32::MAX);
    for byte in range.start()..range.start() + range.length() {
        let (address, kind) = at(layout, byte);
        let goes_on = kind == last.1 && address == last.0.map(|last: u64| last + 1);
        is_gathered |= byte > range.start() && !goes_on;
        last = (address, kind);
        match segments.last_mut() {
            Some(segment) if goes_on => {
                let fits = match (segment.address, address) {
                    (Some(first), Some(address)) => {
                        byte - segment.start < none(limits.max_segment_size)
                            && first | boundary == address | boundary
                    }
                    _ => true,
                };
                if fits {
                    segment.end = byte + 1;
                    continue;
                }
            }
            _ => (),
        }
        let flags = [flags::UNBACKED, 0, flags::FOREIGN, flags::IDENTITY][kind as usize];
        segments.push(Naive {
            start: byte,
            end: byte + 1,
            address,
            flags,
        });
    }
    let has_many = segments.len() as u64 > none(limits.max_segments);
    for segment in &mut segments {
        let Some(address) = segment.address else {
            continue;
        };
        let length = segment.end - segment.start;
        if (address..address + length).any(|byte| byte > none(limits.dma_mask)) {
            segment.flags |= flags::MASK;
        }
        let alignment = limits.dma_alignment + 1;
        if address % alignment != 0 || length % alignment != 0 {
            segment.flags |= flags::ALIGNMENT;
        }
        if has_many && is_gathered {
            segment.flags |= flags::STRADDLE;
        }
    }
    segments
}

fn found(plan: &[Planned]) -> Vec<Naive> {
    let segments = plan.iter().map(|&Planned { segment, flags }| Naive {
        start: segment.start(),
        end: segment.start() + segment.length,
        address: segment.address(),
        flags,
    });
    segments.collect()
}

/// All layouts of three pages, of one of everything.
fn small_layouts() -> impl Iterator<Item = Layout> {
    let entries = [
        Entry::Invalid,
        Entry::Present(mfn(BASE)),
        Entry::Present(mfn(BASE + 1)),
        Entry::Present(mfn(BASE + 2)),
        Entry::Foreign(mfn(BASE + 1)),
        Entry::Identity(mfn(BASE + 2)),
    ];
    entries.into_iter().flat_map(move |a| {
        let with_b = move |b| entries.into_iter().map(move |c| Layout(vec![a, b, c]));
        entries.into_iter().flat_map(with_b)
    })
}

/// Layouts of up to five pages that have everything there is to a device.
fn telling_layouts() -> Vec<Layout> {
    let present = |numbers: &[u64]| {
        let entries = numbers.iter().map(|&at| Entry::Present(mfn(BASE + at)));
        Layout(entries.collect())
    };
    vec![
        present(&[0, 1, 2, 3, 4]),
        present(&[1, 2, 3, 5, 6]),
        present(&[4, 3, 2, 1, 0]),
        present(&[7, 0, 1, 9, 10]),
        Layout(vec![
            Entry::Foreign(mfn(3)),
            Entry::Identity(mfn(4)),
            Entry::Invalid,
            Entry::Invalid,
            Entry::Present(mfn(9)),
        ]),
    ]
}

/// Ranges that begin and end around the borders of pages, of three pages at most.
fn telling_ranges() -> Vec<ByteRange> {
    let mut ranges = Vec::new();
    for offset in [0, 1, 512, PAGE - 1] {
        for end in [
            1,
            513,
            PAGE - 1,
            PAGE,
            PAGE + 1,
            2 * PAGE,
            2 * PAGE + 512,
            3 * PAGE,
        ] {
            ranges.extend((end > offset).then(|| bytes(offset, end - offset)));
        }
    }
    ranges
}

/// A few devices with one peculiarity each, and some with several.
fn telling_devices() -> Vec<Parameters> {
    let all = Parameters::default();
    vec![
        all,
        Parameters {
            dma_mask: (BASE + 2) * PAGE - 1,
            ..all
        },
        Parameters {
            max_segment_size: 1536,
            ..all
        },
        Parameters {
            segment_boundary_mask: 2 * PAGE - 1,
            ..all
        },
        Parameters {
            dma_alignment: 511,
            ..all
        },
        Parameters {
            max_segments: 1,
            ..all
        },
        Parameters {
            dma_mask: (BASE + 1) * PAGE + 99,
            max_segment_size: 5 * 512,
            segment_boundary_mask: PAGE - 1,
            dma_alignment: 511,
            max_segments: 2,
        },
    ]
}

#[test]
fn a_byte_range_is_the_pages_of_its_bytes() {
    for offset in (0..3)
        .chain(PAGE - 2..PAGE + 3)
        .chain(3 * PAGE - 1..3 * PAGE + 2)
    {
        for length in (1..4)
            .chain(PAGE - 2..PAGE + 3)
            .chain(2 * PAGE - 1..2 * PAGE + 2)
        {
            let range = bytes(offset, length);
            let start = BASE * PAGE + offset;
            assert_eq!((range.start(), range.length()), (start, length));
            let pages = range.pages();
            assert_eq!(pages.start().get(), start / PAGE);
            assert_eq!(pages.end(), (start + length - 1) / PAGE + 1);
            for nr in [0, length / 2, length - 1] {
                assert_eq!(
                    range.skip(nr),
                    ByteRange::new(BASE, offset + nr, length - nr).ok()
                );
                assert!(range.skip(nr).is_some());
            }
            for nr in [length, length + 1, u64::MAX] {
                assert_eq!(range.skip(nr), None);
            }
        }
    }
}

#[test]
fn byte_ranges_are_not_empty_and_end_in_the_space() {
    let end = Pfn::LIMIT * PAGE;
    for (pfn, offset, length, bad) in [
        (0, 0, 0, BadRange::Empty),
        (u64::MAX, u64::MAX, 0, BadRange::Empty),
        (0, 0, end + 1, BadRange::Overflow),
        (0, end, 1, BadRange::Overflow),
        (Pfn::LIMIT, 0, 1, BadRange::Overflow),
        (Pfn::LIMIT - 1, PAGE - 1, 2, BadRange::Overflow),
        (1 << 52, 0, 1, BadRange::Overflow),
        (1, u64::MAX, 1, BadRange::Overflow),
        (0, u64::MAX, 1, BadRange::Overflow),
        (0, 1, u64::MAX, BadRange::Overflow),
        (u64::MAX, u64::MAX, u64::MAX, BadRange::Overflow),
    ] {
        assert_eq!(
            ByteRange::new(pfn, offset, length),
            Err(bad),
            "{pfn} {offset} {length}"
        );
    }
    assert!(ByteRange::new(0, 0, end).is_ok());
    assert!(ByteRange::new(0, end - 1, 1).is_ok());
    assert!(ByteRange::new(Pfn::LIMIT - 1, PAGE - 1, 1).is_ok());
}

/// `range_straddles_page_boundary()` as it is there, except that nothing follows nothing.
#[test]
fn a_range_straddles_if_a_frame_does_not_follow_the_first_one() {
    let straddles_naively = |layout: &Layout, range: ByteRange| {
        let number = |pfn: Pfn| layout.entry(pfn).mfn().map(Mfn::get);
        let first = number(range.pages().start());
        let mut pages = (0..).zip(range.pages().iter()).skip(1);
        pages.any(|(at, pfn)| {
            let next = first.map(|first| first + at);
            next.is_none() || number(pfn) != next
        })
    };
    let mut nr = 0;
    for layout in small_layouts().chain(telling_layouts()) {
        for range in telling_ranges() {
            let expected = straddles_naively(&layout, range);
            for most in [1, 2, u64::MAX] {
                assert_eq!(
                    straddles(range, layout.source(most)),
                    expected,
                    "{layout:?} {range:?}"
                );
            }
            nr += u32::from(expected);
        }
    }
    assert!(nr > 1000);
}

#[test]
fn straddling_is_that_of_the_oracle_cases() {
    let layout = |numbers: [Entry; 2]| Layout(numbers.to_vec());
    let (a, b) = (Entry::Present(mfn(5)), Entry::Present(mfn(6)));
    let does = |layout: &Layout, offset, length| straddles(bytes(offset, length), layout.source(9));
    // One page never does.
    for entry in [Entry::Invalid, a, Entry::Foreign(mfn(5))] {
        assert!(!does(&layout([entry, Entry::Invalid]), 0, PAGE));
        assert!(!does(&layout([entry, Entry::Invalid]), PAGE - 1, 1));
    }
    // 2 bytes over a border count two pages.
    assert!(does(&layout([b, a]), PAGE - 1, 2));
    assert!(!does(&layout([a, b]), PAGE - 1, 2));
    // Nothing follows nothing.
    assert!(does(&layout([Entry::Invalid, Entry::Invalid]), PAGE - 1, 2));
    // The kind of a frame is no matter to Xen.
    assert!(!does(&layout([a, Entry::Foreign(mfn(6))]), 0, 2 * PAGE));
    // After the last frame of all there's no other one.
    let last = Entry::Present(mfn(Mfn::LIMIT - 1));
    assert!(does(&layout([last, a]), 0, 2 * PAGE));
    // And what has no bytes is no range.
    assert_eq!(ByteRange::new(BASE, 1, 0), Err(BadRange::Empty));
}

/// `range_requires_alignment()`, with the order counted up as `get_order()` is defined.
#[test]
fn alignment_is_required_where_only_the_pseudo_physical_address_has_it() {
    let mut nr = 0;
    for at in 0..17 {
        for offset in [0, 1, PAGE - 1] {
            for length in [
                1,
                PAGE - 1,
                PAGE,
                PAGE + 1,
                2 * PAGE,
                3 * PAGE,
                4 * PAGE + 1,
                8 * PAGE,
            ] {
                let range = ByteRange::new(at, offset, length).unwrap();
                let mut order = 0;
                while PAGE << order < length {
                    order += 1;
                }
                let align = PAGE << order;
                for frame in 0..17 {
                    for entry in [Entry::Present(mfn(frame)), Entry::Foreign(mfn(frame))] {
                        let expected = range.start() % align == 0 && (frame * PAGE) % align != 0;
                        assert_eq!(requires_alignment(range, entry), expected);
                        nr += u32::from(expected);
                    }
                }
                // All bits of Xen's invalid entry are set.
                let expected = range.start() % align == 0 && order > 0;
                assert_eq!(requires_alignment(range, Entry::Invalid), expected);
            }
        }
    }
    assert!(nr > 100);
}

#[test]
fn limits_are_those_that_a_device_can_have() {
    let all = Parameters::default();
    assert_eq!(Limits::new(all), Ok(Limits::NONE));
    for shift in 0..64 {
        let mask = (1u64 << shift) - 1;
        assert!(Limits::new(Parameters {
            segment_boundary_mask: mask,
            ..all
        })
        .is_ok());
        assert!(Limits::new(Parameters {
            dma_alignment: mask,
            ..all
        })
        .is_ok());
    }
    for no_mask in [2, 4, 5, 6, PAGE, PAGE + 1, u64::MAX - 1, 1 << 63] {
        let boundary = Parameters {
            segment_boundary_mask: no_mask,
            ..all
        };
        assert_eq!(Limits::new(boundary), Err(BadLimits::Boundary));
        let alignment = Parameters {
            dma_alignment: no_mask,
            ..all
        };
        assert_eq!(Limits::new(alignment), Err(BadLimits::Alignment));
        // A mask of addresses may be anything.
        assert!(Limits::new(Parameters {
            dma_mask: no_mask,
            ..all
        })
        .is_ok());
    }
    // What is cut must be aligned.
    for (size, boundary, is_good) in [
        (512, 0, true),
        (1024, 511, true),
        (513, 0, false),
        (256, 0, false),
        (0, 255, false),
        (0, 1023, true),
    ] {
        let parameters = Parameters {
            max_segment_size: size,
            segment_boundary_mask: boundary,
            dma_alignment: 511,
            ..all
        };
        let bad = (!is_good).then_some(BadLimits::Cuts);
        assert_eq!(Limits::new(parameters).err(), bad, "{size} {boundary}");
    }
}

/// `get_max_segment_size()`, counted up.
#[test]
fn there_is_room_to_the_boundary_or_the_size() {
    for boundary in [0, 1, 3, 7, 15] {
        for size in 0..20 {
            let limits = limits(Parameters {
                segment_boundary_mask: boundary,
                max_segment_size: size,
                ..Parameters::default()
            });
            for address in 0..40 {
                if size == 0 && boundary == 0 {
                    // All that there can be.
                    assert_eq!(limits.room(address), u64::MAX - address.max(1) + 1);
                    continue;
                }
                let mut room = 1;
                while room != size && (boundary == 0 || (address + room) % (boundary + 1) != 0) {
                    room += 1;
                }
                assert_eq!(limits.room(address), room, "{boundary} {size} {address}");
            }
        }
    }
    // Nothing overflows at the ends.
    assert_eq!(Limits::NONE.room(u64::MAX), 1);
    assert_eq!(Limits::NONE.room(1), u64::MAX);
}

/// `biovec_phys_mergeable()` and the size, for all neighbours of a few bytes around a border.
#[test]
fn what_is_merged_is_adjacent_and_within_the_limits() {
    let segment = |start: u64, length: u64, entry: Entry| Segment {
        pfn: pfn(start / PAGE),
        offset: start % PAGE,
        length,
        entry,
    };
    let base = 8 * PAGE;
    let (here, next) = (mfn(20), mfn(21));
    let kinds = [Entry::Present, Entry::Foreign, Entry::Identity];
    let mut nr_merged = 0;
    for boundary in [0, 1, 3, PAGE - 1, 2 * PAGE - 1] {
        for size in 0..7 {
            let parameters = Parameters {
                segment_boundary_mask: boundary,
                max_segment_size: size,
                ..Parameters::default()
            };
            let limits = limits(parameters);
            for start in PAGE - 3..PAGE {
                for length in 1..4 {
                    let end = start + length;
                    let a = segment(base + start, length, Entry::Present(here));
                    for gap in [0, 1] {
                        let page = if end + gap < PAGE { here } else { next };
                        for kind in kinds {
                            for frame in [here, next, mfn(22)] {
                                let b = segment(base + end + gap, 2, kind(frame));
                                let is_same = matches!(kind(frame), Entry::Present(_));
                                let first = here.get() * PAGE + start;
                                let last = first + length + 1;
                                let fits = (size == 0 || length + 2 <= size)
                                    && (boundary == 0 || first | boundary == last | boundary);
                                let expected = gap == 0 && is_same && frame == page && fits;
                                let merged = a.merge(b, &limits);
                                assert_eq!(
                                    merged.is_some(),
                                    expected,
                                    "{a:?} {b:?} {parameters:?}"
                                );
                                if let Some(merged) = merged {
                                    assert_eq!(
                                        merged,
                                        Segment {
                                            length: length + 2,
                                            ..a
                                        }
                                    );
                                    nr_merged += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(nr_merged > 50, "{nr_merged}");
    // Nothing goes on with nothing, whatever the limits are, but with no frame.
    let tiny = limits(Parameters {
        max_segment_size: 1,
        ..Parameters::default()
    });
    let hole = |at, length| segment(at, length, Entry::Invalid);
    assert_eq!(
        hole(base, 9).merge(hole(base + 9, 9), &tiny),
        Some(hole(base, 18))
    );
    assert_eq!(hole(base, 9).merge(hole(base + 8, 9), &tiny), None);
    let frame = segment(base + 9, 1, Entry::Present(mfn(0)));
    assert_eq!(hole(base, 9).merge(frame, &Limits::NONE), None);
}

/// Everything about a plan: the range exactly once and in order, each segment within the limits or
/// with its reason, and no reason too many.
#[test]
fn a_plan_is_that_of_a_loop_over_all_bytes() {
    let mut reasons = 0;
    for layout in telling_layouts() {
        for range in telling_ranges() {
            for device in telling_devices() {
                let plan = layout.plan(range, limits(device));
                let expected = naive(&layout, range, &device);
                assert_eq!(found(&plan), expected, "{layout:?} {range:?} {device:?}");
                reasons |= expected.iter().fold(0, |all, segment| all | segment.flags);
            }
        }
    }
    let all = flags::BOUNCE | flags::FOREIGN | flags::IDENTITY | flags::UNBACKED;
    assert_eq!(reasons, all);
}

#[test]
fn plans_are_right_for_all_layouts_of_three_pages() {
    let devices = telling_devices();
    for layout in small_layouts() {
        for range in [bytes(0, 3 * PAGE), bytes(PAGE - 1, PAGE + 2)] {
            for device in [devices[0], devices[5], devices[6]] {
                let plan = layout.plan(range, limits(device));
                assert_eq!(
                    found(&plan),
                    naive(&layout, range, &device),
                    "{layout:?} {range:?}"
                );
            }
        }
    }
}

/// All masks that one can tell apart in five pages.
#[test]
fn a_segment_bounces_if_its_last_byte_is_beyond_the_mask() {
    let layout = &telling_layouts()[1];
    let range = bytes(3, 4 * PAGE);
    for dma_mask in (0..12).flat_map(|page| {
        let edge = (BASE + page) * PAGE;
        [edge - 1, edge, edge + 2, edge + 3, edge + 4]
    }) {
        let device = Parameters {
            dma_mask,
            ..Parameters::default()
        };
        let plan = layout.plan(range, limits(device));
        assert_eq!(found(&plan), naive(layout, range, &device), "{dma_mask:#x}");
        for Planned { segment, flags } in plan {
            let last = segment.address().unwrap() + segment.length - 1;
            assert_eq!(flags, if last > dma_mask { flags::MASK } else { 0 });
        }
    }
    for bits in 0..64 {
        let dma_mask = u64::MAX >> bits;
        let plan = layout.plan(
            range,
            limits(Parameters {
                dma_mask,
                ..Parameters::default()
            }),
        );
        let must = plan.iter().all(|planned| planned.flags & flags::MASK != 0);
        assert_eq!(must, dma_mask < BASE * PAGE, "{dma_mask:#x}");
    }
}

/// All sizes, boundaries and alignments that are cut differently in a page and a bit.
#[test]
fn segments_obey_every_size_boundary_and_alignment() {
    let layout = &telling_layouts()[0];
    let range = bytes(PAGE - 40, 80);
    let masks = || (0..8).map(|shift| (1u64 << shift) - 1);
    let mut nr = 0;
    for max_segment_size in 0..82 {
        for segment_boundary_mask in masks() {
            for dma_alignment in masks() {
                let device = Parameters {
                    max_segment_size,
                    segment_boundary_mask,
                    dma_alignment,
                    ..Parameters::default()
                };
                let Ok(limits) = Limits::new(device) else {
                    continue;
                };
                let plan = layout.plan(range, limits);
                assert_eq!(found(&plan), naive(layout, range, &device), "{device:?}");
                nr += 1;
            }
        }
    }
    assert!(nr > 500, "{nr}");
}

/// With no other limit it's the law of Xen: the device that can't gather.
#[test]
fn one_segment_is_enough_unless_the_range_straddles() {
    let device = Parameters {
        max_segments: 1,
        ..Parameters::default()
    };
    for layout in telling_layouts().iter().take(4) {
        for range in telling_ranges() {
            let plan = layout.plan(range, limits(device));
            let does = straddles(range, layout.source(u64::MAX));
            assert_eq!(plan.len() > 1, does);
            for Planned { flags, .. } in plan {
                assert_eq!(flags, if does { flags::STRADDLE } else { 0 });
            }
        }
    }
}

#[test]
fn a_copy_cures_only_what_the_machine_is_to_blame_for() {
    let layouts = telling_layouts();
    let range = bytes(0, 5 * PAGE);
    let straddling = |layout: &Layout, max_segments, max_segment_size| {
        let device = Parameters {
            max_segments,
            max_segment_size,
            ..Parameters::default()
        };
        let plan = layout.plan(range, limits(device));
        let flagged = plan
            .iter()
            .filter(|planned| planned.flags & flags::STRADDLE != 0);
        let nr = flagged.count();
        assert!(nr == 0 || nr == plan.len());
        (plan.len(), nr != 0)
    };
    // One run of five pages is in five segments as the device wants it so.
    assert_eq!(straddling(&layouts[0], 1, PAGE), (5, false));
    assert_eq!(straddling(&layouts[0], 4, PAGE), (5, false));
    // Five runs are in five segments, as many as it takes or more.
    assert_eq!(straddling(&layouts[2], 4, PAGE), (5, true));
    assert_eq!(straddling(&layouts[2], 5, PAGE), (5, false));
    // Of two runs one is cut.
    assert_eq!(straddling(&layouts[1], 2, 2 * PAGE), (3, true));
    assert_eq!(straddling(&layouts[1], 3, 2 * PAGE), (3, false));
}

#[test]
fn nothing_has_no_limits_and_never_bounces() {
    let layout = Layout(vec![Entry::Invalid; 5]);
    for device in telling_devices() {
        let plan = layout.plan(bytes(9, 4 * PAGE), limits(device));
        assert_eq!(plan.len(), 1);
        let Planned { segment, flags } = plan[0];
        assert_eq!((segment.address(), segment.length), (None, 4 * PAGE));
        assert_eq!(flags, flags::UNBACKED);
    }
}

/// Nobody sees in which pieces runs come, and a plan can be resumed where a segment begins.
#[test]
fn a_plan_goes_on_where_it_was_left() {
    for layout in telling_layouts() {
        for range in [bytes(0, 5 * PAGE), bytes(PAGE - 3, 2 * PAGE + 7)] {
            for device in telling_devices() {
                let whole = layout.plan(range, limits(device));
                for most in [1, 2, 3] {
                    let plan = Plan::new(range, 0, limits(device), layout.source(most));
                    assert_eq!(plan.collect::<Vec<_>>(), whole);
                }
                for (at, planned) in whole.iter().enumerate() {
                    let position = planned.segment.start() - range.start();
                    let rest = Plan::new(range, position, limits(device), layout.source(1));
                    assert_eq!(rest.collect::<Vec<_>>(), whole[at..]);
                }
                for position in [range.length(), range.length() + 1, u64::MAX] {
                    let mut rest = Plan::new(range, position, limits(device), layout.source(1));
                    assert!(rest.is_done());
                    assert_eq!(rest.next(), None);
                }
            }
        }
    }
}

#[test]
fn no_two_neighbours_could_be_one_segment() {
    for layout in telling_layouts() {
        for range in telling_ranges() {
            for device in telling_devices() {
                let plan = layout.plan(range, limits(device));
                for pair in plan.windows(2) {
                    let (a, b) = (pair[0].segment, pair[1].segment);
                    let merged = a.merge(b, &limits(device));
                    // The next one may be too long to merge, but then its first byte is, too.
                    let first = Segment { length: 1, ..b };
                    assert_eq!((merged, a.merge(first, &limits(device))), (None, None));
                }
            }
        }
    }
}

/// Whatever a source says, a plan is a plan.
#[test]
fn a_source_that_lies_is_not_believed_too_much() {
    for nr_pages in [0, 1, 2, 7, u64::MAX] {
        for number in [0, Mfn::LIMIT - 2, Mfn::LIMIT - 1] {
            let lie = |_| Run {
                pfn: Pfn::ZERO,
                nr_pages,
                entry: Entry::Present(mfn(number)),
            };
            for device in telling_devices() {
                let range = bytes(5, 3 * PAGE);
                let mut next = range.start();
                for Planned { segment, .. } in Plan::new(range, 0, limits(device), lie) {
                    assert_eq!(segment.start(), next);
                    // Beyond the machine there is nothing.
                    let nr = segment.pfn.get() - BASE;
                    if nr_pages == u64::MAX && number + nr >= Mfn::LIMIT {
                        assert_eq!(segment.address(), None);
                    }
                    next += segment.length;
                }
                assert!(next <= range.start() + range.length());
                straddles(range, lie);
            }
        }
    }
}

/// One step looks at one piece, so that a caller can let go of the tables in between.
#[test]
fn a_step_looks_at_one_piece() {
    let mut domain = Domain::new(());
    let nr = 2 * PIECE_PAGES + 5;
    for at in 0..nr {
        let entry = Entry::Present(mfn(span(2) + at));
        domain.set(pfn(at), entry).unwrap();
    }
    let range = ByteRange::new(0, 1, Pfn::LIMIT * PAGE - 1).unwrap();
    for max_segments in [0, 1, 5] {
        let device = Parameters {
            max_segments,
            ..Parameters::default()
        };
        let nr_calls = core::cell::Cell::new(0);
        let mut plan = Plan::new(range, 0, limits(device), |range| {
            nr_calls.set(nr_calls.get() + 1);
            piece(&domain.maps, &domain.store, range)
        });
        let mut found = Vec::new();
        while !plan.is_done() {
            let before = nr_calls.get();
            found.extend(plan.step());
            assert!(nr_calls.get() <= before + 1);
        }
        let lengths: Vec<u64> = found.iter().map(|planned| planned.segment.length).collect();
        assert_eq!(lengths, [nr * PAGE - 1, (Pfn::LIMIT - nr) * PAGE]);
        let straddle = if max_segments == 1 {
            flags::STRADDLE
        } else {
            0
        };
        assert_eq!(found[0].flags, straddle);
        assert_eq!(found[1].flags, flags::UNBACKED);
        // Three pieces, the rest of the last leaf, and all that is missing; twice with a survey.
        assert!(nr_calls.get() <= 2 * 6, "{}", nr_calls.get());
    }
}

/// What is too many is soon known, however small the segments are.
#[test]
fn counting_ends_when_there_are_too_many() {
    let mut entries = vec![Entry::Invalid; 600];
    for (at, entry) in entries.iter_mut().enumerate() {
        *entry = Entry::Present(mfn(BASE + at as u64));
    }
    let last = entries.len() - 1;
    entries[last] = Entry::Present(mfn(1));
    let layout = Layout(entries);
    let device = Parameters {
        max_segments: 3,
        max_segment_size: 1,
        ..Parameters::default()
    };
    let range = bytes(0, 600 * PAGE);
    let mut plan = Plan::new(range, 0, limits(device), layout.source(u64::MAX));
    let mut nr_steps = 0;
    let first = loop {
        nr_steps += 1;
        if let Some(planned) = plan.step() {
            break planned;
        }
    };
    assert_eq!(first.flags, flags::STRADDLE);
    assert_eq!(first.segment.length, 1);
    assert!(nr_steps < 12, "{nr_steps}");
}

fn device() -> impl Strategy<Value = Parameters> {
    let mask = |most: u32| (0..=most).prop_map(|bits| (1u64 << bits) - 1);
    (
        prop_oneof![Just(0), 1..(BASE + 20) * PAGE],
        prop_oneof![Just(0), 1..40u64, Just(3 * PAGE)],
        mask(15),
        mask(13),
        0..4u64,
    )
        .prop_map(
            |(dma_mask, units, boundary, dma_alignment, max_segments)| Parameters {
                dma_mask,
                max_segment_size: units * (dma_alignment + 1),
                segment_boundary_mask: if boundary < dma_alignment {
                    0
                } else {
                    boundary
                },
                dma_alignment,
                max_segments,
            },
        )
}

fn layout() -> impl Strategy<Value = Layout> {
    // A run of a kind: where it begins, and how many pages it has.
    let run = (0..6u8, 0..20u64, 1..4u64);
    prop::collection::vec(run, 1..5).prop_map(|runs| {
        let entries = runs.into_iter().flat_map(|(kind, first, nr_pages)| {
            (first..first + nr_pages).map(move |number| {
                let mfn = mfn(BASE + number);
                match kind {
                    0 => Entry::Invalid,
                    1 => Entry::Foreign(mfn),
                    2 => Entry::Identity(mfn),
                    _ => Entry::Present(mfn),
                }
            })
        });
        Layout(entries.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn plans_are_right_for_all_devices(
        layout in layout(),
        device in device(),
        (offset, length) in (0..2 * PAGE, 1..6 * PAGE),
        most in 1..5u64,
    ) {
        let range = bytes(offset, length);
        let plan = Plan::new(range, 0, limits(device), layout.source(most));
        let plan: Vec<_> = plan.collect();
        prop_assert_eq!(found(&plan), naive(&layout, range, &device));
        for (at, planned) in plan.iter().enumerate() {
            let position = planned.segment.start() - range.start();
            let rest = Plan::new(range, position, limits(device), layout.source(most));
            prop_assert_eq!(&rest.take(3).collect::<Vec<_>>(), &plan[at..plan.len().min(at + 3)]);
            if at == 20 {
                break;
            }
        }
        prop_assert_eq!(range.start() >> PAGE_SHIFT, range.pages().start().get());
    }
}
