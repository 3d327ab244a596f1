// SPDX-License-Identifier: GPL-2.0

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn, PfnRange};
use p2m_pure::map::{Gone, Maps, SUPERPAGE_PAGES, SetError, Which, Writer};
use p2m_pure::runs::Runs;
use p2m_pure_host::store::Store;

use crate::{Run, below, run};

/// The maps under test, and what is in them.
struct Domain {
    store: Store,
    maps: Maps,
    writer: Writer,
    model: BTreeMap<u64, Entry>,
}

/// P2M and M2P against a map of entries, with superpages, and with failures to allocate a table.
pub fn map(data: &[u8]) {
    let store = Store::new(512);
    let Ok((maps, writer)) = Maps::new(&store) else {
        return;
    };
    let mut domain = Domain {
        store,
        maps,
        writer,
        model: BTreeMap::new(),
    };
    run(data, |bytes| {
        while !bytes.is_empty() {
            domain.step(bytes)?;
        }
        Ok(())
    });
    domain.store.fail_never();
    domain.check();
    domain.maps.destroy(&mut domain.writer, &domain.store);
    assert_eq!(domain.store.nr_live(), 0, "tables were lost");
    domain.store.check();
}

/// PFNs that are near each other, near the ends of tables, or far away.
fn some_pfn(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Pfn> {
    let base = match below(bytes, 5)? {
        0 | 1 => 0,
        2 => 508,
        3 => (1 << 18) - 4,
        _ => Pfn::LIMIT - 16,
    };
    Ok(Pfn::new(base + below(bytes, 16)?).unwrap_or(Pfn::ZERO))
}

fn some_mfn(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Mfn> {
    let base = match below(bytes, 4)? {
        0 | 1 => 0x1000,
        2 => 0x1ff8,
        _ => Mfn::LIMIT - 16,
    };
    Ok(Mfn::new(base + below(bytes, 16)?).unwrap_or(Mfn::ZERO))
}

impl Domain {
    fn step(&mut self, bytes: &mut Unstructured<'_>) -> Run {
        match below(bytes, 11)? {
            0..=3 => {
                let pfn = some_pfn(bytes)?;
                let mfn = some_mfn(bytes)?;
                let entry = match below(bytes, 8)? {
                    0 => Entry::Foreign(mfn),
                    1 => Entry::Identity(mfn),
                    2 => Entry::Invalid,
                    _ => Entry::Present(mfn),
                };
                self.set(pfn, entry);
            }
            4 => {
                let start = some_pfn(bytes)?.get();
                let nr_pages = 1 + below(bytes, 1024)?;
                if let Ok(range) = PfnRange::new(start, nr_pages.min(Pfn::LIMIT - start)) {
                    self.clear(range);
                }
            }
            5 => {
                let pfns = [some_pfn(bytes)?, some_pfn(bytes)?];
                let is_own = |pfn: &Pfn| self.lookup(*pfn).owned().is_some();
                if pfns[0] != pfns[1] && pfns.iter().all(is_own) {
                    self.exchange(pfns);
                }
            }
            6 => self.store.fail_once_after(below(bytes, 3)?),
            7 => {
                let start = some_pfn(bytes)?.get() & !(SUPERPAGE_PAGES - 1);
                let mfn = some_mfn(bytes)?.get() & !(SUPERPAGE_PAGES - 1);
                if let (Ok(range), Some(mfn)) =
                    (PfnRange::new(start, SUPERPAGE_PAGES), Mfn::new(mfn))
                {
                    self.set_superpage(range, mfn);
                }
            }
            8 | 9 => {
                let start = some_pfn(bytes)?.get();
                let nr_pages = 1 + below(bytes, 1024)?;
                let is_fold = below(bytes, 2)? == 0;
                let but_whole = below(bytes, 2)? == 0;
                if let Ok(range) = PfnRange::new(start, nr_pages.min(Pfn::LIMIT - start)) {
                    self.fold_or_unfold(range, is_fold, but_whole);
                }
            }
            _ => self.check(),
        }
        Ok(())
    }

    fn lookup(&self, pfn: Pfn) -> Entry {
        self.maps.lookup(&self.store, pfn)
    }

    fn expected(&self, pfn: Pfn) -> Entry {
        let entry = self.model.get(&pfn.get());
        entry.copied().unwrap_or(Entry::Invalid)
    }

    /// Returns where an own frame is.
    fn place(&self, mfn: Mfn) -> Option<u64> {
        let mut places = self.model.iter();
        places.find_map(|(&pfn, entry)| (entry.owned() == Some(mfn)).then_some(pfn))
    }

    fn set(&mut self, pfn: Pfn, entry: Entry) {
        let old = self.expected(pfn);
        let elsewhere = entry.owned().and_then(|mfn| self.place(mfn));
        let elsewhere = elsewhere.filter(|&place| place != pfn.get());
        match self
            .maps
            .set(&mut self.writer, &self.store, &(), pfn, entry)
        {
            Ok(was) => {
                assert_eq!(elsewhere, None, "a frame in two places");
                assert_eq!(was, old);
                match entry {
                    Entry::Invalid => drop(self.model.remove(&pfn.get())),
                    _ => drop(self.model.insert(pfn.get(), entry)),
                }
            }
            Err(SetError::Elsewhere(place)) => assert_eq!(elsewhere, Some(place.get())),
            Err(SetError::NoMemory) => (),
        }
        assert_eq!(self.lookup(pfn), self.expected(pfn));
    }

    fn set_superpage(&mut self, range: PfnRange, first: Mfn) {
        let pages = range.start().get()..range.end();
        let frames = first.get()..first.get() + SUPERPAGE_PAGES;
        let is_free = |(_, entry): (&u64, &Entry)| {
            let mfn = entry.owned().map(Mfn::get);
            !mfn.is_some_and(|mfn| frames.contains(&mfn))
        };
        let is_own = |(_, entry): (&u64, &Entry)| entry.owned().is_some();
        // That is up to who calls it.
        if !self.model.iter().all(is_free) || !self.model.range(pages.clone()).all(is_own) {
            return;
        }
        let mut gone = Vec::new();
        let result = self.maps.set_superpage(
            &mut self.writer,
            &self.store,
            &(),
            (range, first),
            |frame| gone.push(frame),
        );
        if result.is_err() {
            assert!(gone.is_empty());
            return self.check();
        }
        let old = self.model.range(pages.clone());
        let old = old.filter_map(|(_, entry)| entry.owned().map(Gone::Frame));
        assert!(gone.iter().copied().eq(old));
        for (pfn, mfn) in pages.zip(frames) {
            let mfn = Mfn::new(mfn).expect("frames of a superpage");
            self.model.insert(pfn, Entry::Present(mfn));
        }
        assert_eq!(self.maps.superpage(&self.store, range.start()), Some(first));
    }

    /// It changes what tables there are, and nothing else.
    fn fold_or_unfold(&mut self, range: PfnRange, is_fold: bool, but_whole: bool) {
        if is_fold {
            self.maps.fold(&mut self.writer, &self.store, &(), range);
        } else if self.unfold(range, but_whole) {
            assert!(but_whole || !self.is_folded(range));
        }
        for pfn in [range.start().get(), range.end() - 1] {
            let pfn = Pfn::new(pfn).expect("in the range");
            assert_eq!(self.lookup(pfn), self.expected(pfn));
        }
    }

    fn unfold(&mut self, range: PfnRange, but_whole: bool) -> bool {
        let result = self
            .maps
            .unfold(&mut self.writer, &self.store, &(), range, but_whole);
        result.is_ok()
    }

    fn is_folded(&self, range: PfnRange) -> bool {
        let mut pages = (range.start().get()..range.end()).step_by(SUPERPAGE_PAGES as usize);
        pages.any(|pfn| self.maps.is_folded(&self.store, Which::P2m, pfn))
    }

    fn clear(&mut self, range: PfnRange) {
        if !self.unfold(range, true) {
            return self.check();
        }
        let mut gone = Vec::new();
        self.maps
            .clear(&mut self.writer, &self.store, &(), range, |frame| {
                gone.push(frame)
            });
        let mut expected = Vec::new();
        self.model.retain(|&pfn, entry| {
            let stays = pfn < range.start().get() || range.end() <= pfn;
            match *entry {
                _ if stays => (),
                Entry::Present(mfn) => expected.push(Gone::Frame(mfn)),
                Entry::Foreign(mfn) => expected.push(Gone::Foreign(mfn)),
                Entry::Identity(_) | Entry::Invalid => (),
            }
            stays
        });
        assert_eq!(gone, expected);
    }

    fn exchange(&mut self, pfns: [Pfn; 2]) {
        for pfn in pfns {
            let page = PfnRange::new(pfn.get(), 1).expect("a page");
            if !self.unfold(page, false) {
                return self.check();
            }
        }
        let entries = pfns.map(|pfn| self.expected(pfn));
        self.maps
            .exchange(&mut self.writer, &self.store, &(), (pfns[0], pfns[1]));
        self.model.insert(pfns[0].get(), entries[1]);
        self.model.insert(pfns[1].get(), entries[0]);
    }

    fn check(&self) {
        for (&pfn, &entry) in &self.model {
            let pfn = Pfn::new(pfn).unwrap_or(Pfn::ZERO);
            assert_eq!(self.lookup(pfn), entry);
            if let Some(mfn) = entry.owned() {
                assert_eq!(self.maps.mfn_to_pfn(&self.store, mfn), Some(pfn));
            }
        }
        let nr_own = self.model.values().filter(|entry| entry.owned().is_some());
        let nr_own = nr_own.count() as u64;
        assert_eq!(self.writer.nr_frames(), nr_own);
        let nr_audited = self
            .maps
            .audit(&self.store, |finding| panic!("{finding:?}"));
        assert_eq!(nr_audited, nr_own);

        // What isn't empty is found.
        let mut next = Some(Pfn::ZERO);
        for &pfn in self.model.keys() {
            let found = next.and_then(|next| self.maps.next_backed(&self.store, next));
            assert!(found.is_some_and(|found| found.get() <= pfn));
            next = Pfn::new(pfn + 1);
        }

        // Runs are the same in another form.
        let Ok(all) = PfnRange::new(0, Pfn::LIMIT) else {
            return;
        };
        let mut runs = Runs::new(&self.maps, &self.store, all);
        let mut nr_backed = 0;
        let mut end = 0;
        while !runs.is_done() {
            let Some(run) = runs.step() else { continue };
            assert_eq!(run.pfn.get(), end, "a gap between runs");
            end = run.end();
            if run.entry != Entry::Invalid {
                nr_backed += run.nr_pages;
                assert_eq!(run.entry, self.expected(run.pfn));
            }
        }
        assert_eq!(end, Pfn::LIMIT);
        assert_eq!(nr_backed, self.model.len() as u64);
    }
}
