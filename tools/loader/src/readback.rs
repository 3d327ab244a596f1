// SPDX-License-Identifier: GPL-2.0

//! Reads what was loaded where it really is.

use core::ops::Range;

use crate::PAGE_BYTES;
use crate::segment::{Checksum, Segment};

/// The machine below pseudo-physical memory.
pub trait Machine {
    /// What can go wrong.
    type Error;

    /// Returns the machine frame of each of the PFNs, if it has one.
    fn frames(&mut self, pfns: Range<u64>) -> Result<Vec<Option<u64>>, Self::Error>;

    /// Reads all of `bytes` from a machine address on. It's within one frame.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// What was found of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// How many machine frames it is in.
    pub frames: u64,
    /// How many of these aren't next to the one before.
    pub runs: u64,
    /// The checksum of what is in them.
    pub checksum: Checksum,
}

/// Why a segment can't be read back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadBackError<E> {
    /// The machine says so.
    #[error(transparent)]
    Machine(E),
    /// There is no frame.
    #[error("PFN {pfn:#x} of the {kind} has no machine frame", kind = segment.kind)]
    NoFrame {
        /// Of this segment.
        segment: Box<Segment>,
        /// At this PFN.
        pfn: u64,
    },
}

/// Reads a segment, page by page, only by the machine addresses of its frames.
pub fn read_back<M: Machine>(
    segment: &Segment,
    machine: &mut M,
) -> Result<ReadBack, ReadBackError<M::Error>> {
    let pfns = segment.pfns();
    let mfns = machine
        .frames(pfns.clone())
        .map_err(ReadBackError::Machine)?;
    let end = segment.address.saturating_add(segment.bytes);
    let mut hasher = crc32fast::Hasher::new();
    let mut page = [0; PAGE_BYTES as usize];
    let (mut frames, mut runs, mut next) = (0, 0, None);
    for (index, pfn) in pfns.enumerate() {
        let no_frame = || ReadBackError::NoFrame {
            segment: Box::new(segment.clone()),
            pfn,
        };
        let mfn = mfns.get(index).copied().flatten().ok_or_else(no_frame)?;
        // The part of the page that the segment has.
        let from = segment.address.max(pfn * PAGE_BYTES) % PAGE_BYTES;
        let to = (end - pfn * PAGE_BYTES).min(PAGE_BYTES);
        let part = page
            .get_mut(from as usize..to as usize)
            .ok_or_else(no_frame)?;
        let address = mfn.checked_mul(PAGE_BYTES).ok_or_else(no_frame)?;
        machine
            .read(address + from, part)
            .map_err(ReadBackError::Machine)?;
        hasher.update(part);
        frames += 1;
        runs += u64::from(next != Some(mfn));
        next = mfn.checked_add(1);
    }
    Ok(ReadBack {
        frames,
        runs,
        checksum: Checksum(hasher.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentKind;

    /// A machine of a few frames, in which PFN n is at the frame that a table says.
    struct Few {
        p2m: Vec<Option<u64>>,
        frames: Vec<[u8; PAGE_BYTES as usize]>,
    }

    impl Machine for Few {
        type Error = &'static str;

        fn frames(&mut self, pfns: Range<u64>) -> Result<Vec<Option<u64>>, Self::Error> {
            let pfns = pfns.start as usize..pfns.end as usize;
            Ok(self.p2m.get(pfns).ok_or("beyond the P2M")?.to_vec())
        }

        fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Error> {
            let frame = self.frames.get((address / PAGE_BYTES) as usize);
            let from = (address % PAGE_BYTES) as usize;
            let frame = frame.ok_or("no such frame")?;
            bytes.copy_from_slice(frame.get(from..from + bytes.len()).ok_or("two frames")?);
            Ok(())
        }
    }

    fn few() -> (Few, Vec<u8>) {
        let p2m = [3, 0, 2, 1];
        let linear: Vec<u8> = (0..4 * PAGE_BYTES).map(|n| (n / 7) as u8).collect();
        let mut frames = vec![[0; PAGE_BYTES as usize]; 4];
        for (page, mfn) in linear.chunks(PAGE_BYTES as usize).zip(p2m) {
            frames[mfn].copy_from_slice(page);
        }
        let p2m = p2m.map(|mfn| Some(mfn as u64)).to_vec();
        (Few { p2m, frames }, linear)
    }

    fn segment(range: Range<usize>, linear: &[u8]) -> Segment {
        Segment {
            kind: SegmentKind::Kernel,
            address: range.start as u64,
            bytes: range.len() as u64,
            memory_bytes: range.len() as u64,
            checksum: Checksum::of(&linear[range]),
        }
    }

    #[test]
    fn frames_anywhere_are_the_segment_again() {
        let (mut few, linear) = few();
        let cuts = [0, 1, 100, 4095, 4096, 4097, 8191, 8192, 12288, 16383, 16384];
        for &from in &cuts {
            for &to in cuts.iter().filter(|&&to| to > from) {
                let segment = segment(from..to, &linear);
                let found = read_back(&segment, &mut few).expect("all is there");
                assert_eq!(found.checksum, segment.checksum, "{from}..{to}");
                let pages = (to.div_ceil(4096) - from / 4096) as u64;
                assert_eq!((found.frames, found.runs), (pages, pages));
            }
        }
    }

    #[test]
    fn one_bit_in_the_machine_is_noticed() {
        let (mut few, linear) = few();
        let segment = segment(100..16000, &linear);
        for (mfn, byte) in [(3, 100), (0, 0), (1, 3711), (2, 4095)] {
            few.frames[mfn][byte] ^= 0x10;
            let found = read_back(&segment, &mut few).expect("all is there");
            assert_ne!(found.checksum, segment.checksum, "frame {mfn}");
            few.frames[mfn][byte] ^= 0x10;
        }
        // Next to it, it's not of the segment.
        few.frames[3][99] ^= 1;
        few.frames[1][3712] ^= 1;
        let found = read_back(&segment, &mut few).expect("all is there");
        assert_eq!(found.checksum, segment.checksum);
    }

    #[test]
    fn a_wrong_p2m_is_noticed() {
        let (mut few, linear) = few();
        let segment = segment(0..16384, &linear);
        few.p2m.swap(1, 2);
        let found = read_back(&segment, &mut few).expect("all is there");
        assert_ne!(found.checksum, segment.checksum);
    }

    #[test]
    fn a_page_without_a_frame_is_an_error() {
        let (mut few, linear) = few();
        few.p2m[2] = None;
        let segment = segment(0..16384, &linear);
        let error = read_back(&segment, &mut few).expect_err("PFN 2 is empty");
        assert_eq!(
            error.to_string(),
            "PFN 0x2 of the kernel has no machine frame"
        );
    }
}
