// SPDX-License-Identifier: GPL-2.0

//! A processor, written after chapter 5 of volume 2 of the AMD64 manual and nothing else.
//!
//! It has a TLB and a cache of links, which forget nothing until they are told to: the worst that a
//! real one may do.

use std::collections::BTreeMap;

use p2m_pure::table::Table;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What is allowed: with its bit of no execution inverted, an entry allows what its bits say.
const RIGHTS: u64 = WRITE | USER | NO_EXECUTE;

/// What a processor does with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Memory as a processor sees it. It panics if there is no table at a frame.
pub(crate) type Memory<'a> = dyn Fn(u64) -> &'a Table + 'a;

/// A translation, of all pages of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) start: u64,
    pub(crate) nr_pages: u64,
    pub(crate) mfn: u64,
    rights: u64,
    is_dirty: bool,
}

impl Translation {
    fn covers(&self, page: u64) -> bool {
        page >= self.start && page - self.start < self.nr_pages
    }

    fn allows(&self, access: Access) -> bool {
        access == Access::Read || self.rights & WRITE != 0
    }

    fn frame(&self, page: u64) -> u64 {
        self.mfn + (page - self.start)
    }
}

/// Bits that the processor set in a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) start: u64,
    pub(crate) nr_pages: u64,
    pub(crate) bits: u64,
}

/// A table that a walk is in.
#[derive(Clone, Copy)]
struct Node {
    level: usize,
    mfn: u64,
    rights: u64,
}

/// A leaf, or what else isn't empty, as it is in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) start: u64,
    pub(crate) level: usize,
    pub(crate) word: u64,
}

impl Raw {
    pub(crate) fn nr_pages(&self) -> u64 {
        1 << (9 * self.level)
    }

    pub(crate) fn is_present(&self) -> bool {
        self.word & PRESENT != 0
    }

    pub(crate) fn frame(&self) -> u64 {
        ((self.word & ADDRESS) >> 12) & !(self.nr_pages() - 1)
    }

    /// Returns the flags as level 0 would have them, without the present bit.
    pub(crate) fn flags(&self) -> u64 {
        let flags = self.word & !ADDRESS & !PRESENT;
        match self.level {
            0 => flags,
            // Bit 12 is the one that bit 7 is at level 0.
            _ => flags & !LARGE | ((self.word >> 5) & LARGE),
        }
    }
}

#[derive(Default)]
pub(crate) struct Cpu {
    nr_levels: usize,
    root: Option<u64>,
    tlb: Vec<Translation>,
    links: BTreeMap<(usize, u64), Node>,
    marks: Vec<Mark>,
}

impl Cpu {
    /// Loads a root. Nothing is kept from the one before.
    pub(crate) fn load_root(&mut self, nr_levels: usize, root: Option<u64>) {
        *self = Self {
            nr_levels,
            root,
            ..Self::default()
        };
    }

    /// Forgets all that has to do with addresses from `start` to before `end`.
    pub(crate) fn flush(&mut self, start: u64, end: u64) {
        let is_hit = |page: u64, nr_pages: u64| {
            let first = u128::from(page) << 12;
            first < u128::from(end) && first + (u128::from(nr_pages) << 12) > u128::from(start)
        };
        self.tlb.retain(|hit| !is_hit(hit.start, hit.nr_pages));
        self.links.retain(|&(level, prefix), _| {
            let shift = 9 * (level + 1);
            !is_hit(prefix << shift, 1 << shift)
        });
    }

    /// Returns whether it may still walk a table.
    pub(crate) fn remembers(&self, mfn: u64) -> bool {
        self.root == Some(mfn) || self.links.values().any(|node| node.mfn == mfn)
    }

    /// Returns what bits were set since the last call.
    pub(crate) fn take_marks(&mut self) -> Vec<Mark> {
        std::mem::take(&mut self.marks)
    }

    /// Uses an address, and returns the frame, if that is allowed.
    pub(crate) fn access(&mut self, memory: &Memory<'_>, page: u64, access: Access) -> Option<u64> {
        let hit = self.tlb.iter().position(|hit| hit.covers(page));
        if let Some(hit) = hit {
            let found = self.tlb[hit];
            if found.allows(access) && (access == Access::Read || found.is_dirty) {
                return Some(found.frame(page));
            }
            // A processor looks again before it complains or sets the dirty bit.
            self.tlb.remove(hit);
        }
        let found = self.walk(memory, page, access)?;
        self.tlb.push(found);
        Some(found.frame(page))
    }

    /// Walks the tables, sets bits in them, and remembers links.
    fn walk(&mut self, memory: &Memory<'_>, page: u64, access: Access) -> Option<Translation> {
        let mut node = (0..self.nr_levels)
            .find_map(|level| self.links.get(&(level, page >> (9 * (level + 1)))).copied())
            .or(self.top())?;
        loop {
            let table = memory(node.mfn);
            let index = (page >> (9 * node.level)) & 511;
            let word = table.load(index);
            let next = step(node, page, word)?;
            let may_write = next.rights() & WRITE != 0;
            if access == Access::Write && !may_write {
                return None;
            }
            match next {
                Next::Table(child) => {
                    table.update(index, |word| word | ACCESSED);
                    self.links
                        .insert((child.level, page >> (9 * (child.level + 1))), child);
                    node = child;
                }
                Next::Leaf(mut leaf) => {
                    let bits = match access {
                        Access::Read => ACCESSED,
                        Access::Write => ACCESSED | DIRTY,
                    };
                    table.update(index, |word| word | bits);
                    leaf.is_dirty = (word | bits) & DIRTY != 0;
                    self.marks.push(Mark {
                        start: leaf.start,
                        nr_pages: leaf.nr_pages,
                        bits,
                    });
                    return Some(leaf);
                }
            }
        }
    }

    fn top(&self) -> Option<Node> {
        Some(Node {
            level: self.nr_levels.checked_sub(1)?,
            mfn: self.root?,
            rights: RIGHTS,
        })
    }

    /// Translates a page by what is in memory now.
    pub(crate) fn translate(&self, memory: &Memory<'_>, page: u64) -> Option<Translation> {
        let mut node = self.top()?;
        loop {
            let word = memory(node.mfn).load((page >> (9 * node.level)) & 511);
            match step(node, page, word)? {
                Next::Table(child) => node = child,
                Next::Leaf(leaf) => return Some(leaf),
            }
        }
    }

    /// Checks that nothing is remembered that isn't so any more.
    #[track_caller]
    pub(crate) fn check(&self, memory: &Memory<'_>) {
        for old in &self.tlb {
            // All pages of a large leaf that was split have to be the same still.
            for page in [
                old.start,
                old.start + old.nr_pages / 2,
                old.start + old.nr_pages - 1,
            ] {
                let now = self.translate(memory, page);
                let is_good = now.is_some_and(|now| {
                    now.frame(page) == old.frame(page) && old.rights & !now.rights == 0
                });
                assert!(is_good, "page {page:#x} is stale: {old:x?}, now {now:x?}");
            }
        }
        for node in self.links.values() {
            // It panics if that's no table any more.
            memory(node.mfn);
        }
    }

    /// Returns all leaves and the number of tables.
    pub(crate) fn leaves(&self, memory: &Memory<'_>) -> (Vec<Raw>, usize) {
        let mut leaves = Vec::new();
        let nr_tables = self
            .top()
            .map_or(0, |top| gather(memory, top, 0, &mut leaves));
        (leaves, nr_tables)
    }
}

fn gather(memory: &Memory<'_>, node: Node, start: u64, leaves: &mut Vec<Raw>) -> usize {
    let table = memory(node.mfn);
    let mut nr_tables = 1;
    for index in 0..512 {
        let start = start + (index << (9 * node.level));
        let word = table.load(index);
        match step(node, start, word) {
            Some(Next::Table(child)) => nr_tables += gather(memory, child, start, leaves),
            None if word == 0 => (),
            _ => leaves.push(Raw {
                start,
                level: node.level,
                word,
            }),
        }
    }
    nr_tables
}

enum Next {
    Table(Node),
    Leaf(Translation),
}

impl Next {
    fn rights(&self) -> u64 {
        match self {
            Self::Table(node) => node.rights,
            Self::Leaf(leaf) => leaf.rights,
        }
    }
}

/// Takes a step from a table, in which there is a word for a page.
fn step(node: Node, page: u64, word: u64) -> Option<Next> {
    if word & PRESENT == 0 {
        return None;
    }
    let rights = node.rights & (word ^ NO_EXECUTE);
    if node.level > 0 && word & LARGE == 0 {
        return Some(Next::Table(Node {
            level: node.level - 1,
            mfn: (word & ADDRESS) >> 12,
            rights,
        }));
    }
    assert!(node.level <= 2, "no leaf is that large");
    let nr_pages = 1 << (9 * node.level);
    // Bit 12 of a large leaf selects a memory type, the others below the frame must be 0.
    let reserved = (ADDRESS & ((nr_pages << 12) - 1)) & !(1 << 12);
    assert_eq!(word & reserved, 0, "reserved bits in {word:#x}");
    Some(Next::Leaf(Translation {
        start: page & !(nr_pages - 1),
        nr_pages,
        mfn: ((word & ADDRESS) >> 12) & !(nr_pages - 1),
        rights,
        is_dirty: word & DIRTY != 0,
    }))
}
