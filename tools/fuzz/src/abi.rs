// SPDX-License-Identifier: GPL-2.0

use p2m_pure::dma::{BadLimits, ByteRange, Limits, Parameters};
use p2m_pure::entry::{Entry, FOREIGN, IDENTITY, INVALID};
use p2m_pure::frame::{BadRange, Mfn, PAGE_SIZE, Pfn, PfnRange};
use p2m_pure::paging::Format;
use p2m_pure::table::TableId;

use crate::{number, run};

/// What crosses the ABI as words: whatever they are, they are refused, or stand for what arithmetic
/// without limits says.
pub fn abi(data: &[u8]) {
    run(data, |bytes| {
        while !bytes.is_empty() {
            entry(number(bytes)?, number(bytes)?);
            range(number(bytes)?, number(bytes)?, number(bytes)?);
            bytes_of(number(bytes)?, number(bytes)?, number(bytes)?);
            limits(Parameters {
                dma_mask: number(bytes)?,
                max_segment_size: number(bytes)?,
                segment_boundary_mask: number(bytes)?,
                dma_alignment: number(bytes)?,
                max_segments: number(bytes)?,
            });
            levels(number(bytes)?);
        }
        Ok(())
    });
}

fn entry(word: u64, nr: u64) {
    let ours = Entry::from_raw(word);
    let tags = word & (FOREIGN | IDENTITY);
    let is_good = word & !tags < Mfn::LIMIT && tags != (FOREIGN | IDENTITY);
    assert_eq!(ours != Entry::Invalid, is_good);
    assert_eq!(ours.raw(), if is_good { word } else { INVALID });

    let mfn = ours.mfn().map(Mfn::get);
    assert_eq!(mfn, is_good.then_some(word & !tags));
    assert_eq!(ours.owned().is_some(), is_good && tags == 0);
    assert_eq!(ours.memory().is_some(), is_good && tags != IDENTITY);
    let hidden = Entry::from_raw(ours.redacted().raw());
    assert_eq!(hidden, ours.redacted());
    assert_eq!(hidden.mfn().map(Mfn::get), mfn.map(|_| 0));

    // An entry that advances stays what it is.
    let next = ours.advance(nr);
    match mfn.map(|mfn| u128::from(mfn) + u128::from(nr)) {
        None => assert_eq!(next, Some(Entry::Invalid)),
        Some(sum) if sum < u128::from(Mfn::LIMIT) => {
            let word = u128::from(tags) | sum;
            assert_eq!(next.map(|next| u128::from(next.raw())), Some(word));
        }
        Some(_) => assert_eq!(next, None),
    }
}

fn range(start: u64, nr_pages: u64, at: u64) {
    let end = u128::from(start) + u128::from(nr_pages);
    match PfnRange::new(start, nr_pages) {
        Ok(range) => {
            assert!(nr_pages > 0 && end <= u128::from(Pfn::LIMIT));
            assert_eq!((range.start().get(), range.nr_pages()), (start, nr_pages));
            assert_eq!(u128::from(range.end()), end);
            let nth = (at < nr_pages).then(|| start + at);
            assert_eq!(range.nth(at).map(Pfn::get), nth);
        }
        Err(BadRange::Empty) => assert_eq!(nr_pages, 0),
        Err(BadRange::Overflow) => assert!(end > u128::from(Pfn::LIMIT)),
    }
    // The page of a table, and nothing else, is one's number.
    let id = TableId::new(start);
    assert_eq!(id.map(TableId::get), id.map(|_| start));
    assert_eq!(Pfn::new(at).map(Pfn::get), (at < Pfn::LIMIT).then_some(at));
    assert_eq!(Mfn::new(at).map(Mfn::get), (at < Mfn::LIMIT).then_some(at));
}

fn bytes_of(pfn: u64, offset: u64, length: u64) {
    let page = PAGE_SIZE as u128;
    let first = u128::from(pfn) * page + u128::from(offset);
    let end = first + u128::from(length);
    match ByteRange::new(pfn, offset, length) {
        Ok(range) => {
            assert!(length > 0 && end <= u128::from(Pfn::LIMIT) * page);
            assert_eq!(u128::from(range.start()), first);
            assert_eq!(range.length(), length);
            let pages = range.pages();
            assert_eq!(u128::from(pages.start().get()), first / page);
            assert_eq!(u128::from(pages.end()), end.div_ceil(page));
            for skip in [0, 1, length - 1, length] {
                let rest = range.skip(skip);
                assert_eq!(rest.is_some(), skip < length);
                if let Some(rest) = rest {
                    assert_eq!(u128::from(rest.start()), first + u128::from(skip));
                    assert_eq!(rest.length(), length - skip);
                }
            }
        }
        Err(BadRange::Empty) => assert_eq!(length, 0),
        Err(BadRange::Overflow) => assert!(end > u128::from(Pfn::LIMIT) * page),
    }
}

fn limits(asked: Parameters) {
    let is_mask = |mask: u64| mask & mask.wrapping_add(1) == 0;
    let limits: Result<Limits, BadLimits> = Limits::new(asked);
    let Ok(limits) = limits else {
        return;
    };
    assert!(is_mask(asked.segment_boundary_mask) && is_mask(asked.dma_alignment));
    for address in [
        0,
        1,
        PAGE_SIZE as u64 - 1,
        asked.segment_boundary_mask,
        asked.dma_mask,
    ] {
        // A plan that gets nowhere would never end.
        assert_ne!(limits.room(address), 0, "at {address:#x}");
    }
}

fn levels(nr: u64) {
    let format = usize::try_from(nr).ok().and_then(Format::x86_64);
    assert_eq!(format.is_some(), nr == 4 || nr == 5);
    if let Some(format) = format {
        assert_eq!(format.nr_levels as u64, nr);
        assert_eq!(
            u128::from(format.nr_pages()) << 12,
            1u128 << format.address_bits
        );
    }
}
