// SPDX-License-Identifier: GPL-2.0

//! Commands about spaces: arguments are checked, and handed on to the page tables.

use core::ffi::CStr;

use kernel::{
    bindings,
    pr_info_once,
    prelude::*, //
};

use crate::{
    abi,
    commands::check_killed,
    compat::{
        EOPNOTSUPP,
        EUCLEAN, //
    },
    cpu::{
        self,
        Access, //
    },
    domain::Domain,
    ffi,
    pure::{
        frame::{
            Mfn,
            Pfn,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        paging::{
            Change,
            Leaf,
            Pages, //
        },
        pv::{
            bits,
            frame,
            frame_mask,
            Machine, //
        }, //
    },
};

/// Number of spans that are collected at once, between two looks at signals.
const CHUNK: usize = 256;

/// Returns the number of the page at an address that has to be a multiple of the page size.
fn page_number(address: u64) -> Result<u64> {
    if address % PAGE_SIZE as u64 != 0 {
        return Err(EINVAL);
    }
    Ok(address >> PAGE_SHIFT)
}

/// Returns the pages at an address.
fn pages(address: u64, nr_pages: u64) -> Result<Pages> {
    let start = page_number(address)?;
    if nr_pages == 0 {
        return Err(EINVAL);
    }
    Ok(Pages { start, nr_pages })
}

/// Fails if a member that has to be zero isn't.
fn check_zero(reserved: u32) -> Result {
    if reserved != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

/// `P2M_SPACE_CREATE`
pub(crate) fn create(domain: &Domain, command: &mut abi::p2m_space_create) -> Result {
    let pool = abi::range(command.pool_pfn, command.pool_pages)?;
    let name = CStr::from_bytes_until_nul(&command.backend).map_err(|_| EINVAL)?;
    let name = name.to_str().map_err(|_| EINVAL)?;
    // CAST: Both are as wide as a word at least.
    let nr_levels = command.nr_levels as usize;
    let (number, root) =
        domain.with_spaces(|spaces| spaces.create(domain, name, nr_levels, pool))?;
    command.out_space = number;
    command.out_root_pfn = root.get();
    Ok(())
}

/// `P2M_SPACE_DESTROY`
pub(crate) fn destroy(domain: &Domain, command: &mut abi::p2m_space_destroy) -> Result {
    check_zero(command.__reserved)?;
    domain.with_spaces(|spaces| spaces.destroy(domain, command.space))
}

/// `P2M_SPACE_MAP`
pub(crate) fn map(domain: &Domain, command: &mut abi::p2m_space_map) -> Result {
    let start = page_number(command.address)?;
    let pfns = abi::range(command.pfn, command.nr_pages)?;
    // CAST: Both are as wide as a word at least.
    let max_level = command.max_level as usize;
    domain.with_space(command.space, |owned, host| {
        let (space, mut pool) = owned.parts(host);
        if max_level > space.format().max_leaf_level {
            return Err(EINVAL);
        }
        let flags = command.pte_flags;
        Ok(space.map(host, &mut pool, start, pfns, flags, max_level)?)
    })
}

/// `P2M_SPACE_UNMAP`
pub(crate) fn unmap(domain: &Domain, command: &mut abi::p2m_space_unmap) -> Result {
    command.out_pages = 0;
    check_zero(command.__reserved)?;
    let is_all = command.flags & abi::P2M_UNMAP_ALL != 0;
    if is_all && (command.address != 0 || command.nr_pages != 0) {
        return Err(EINVAL);
    }
    domain.with_space(command.space, |owned, host| {
        let (space, mut pool) = owned.parts(host);
        let range = if is_all {
            Pages {
                start: 0,
                nr_pages: space.format().nr_pages(),
            }
        } else {
            pages(command.address, command.nr_pages)?
        };
        let (done, result) = space.unmap(host, &mut pool, range);
        command.out_pages = done;
        result?;
        if done == 0 && !is_all {
            return Err(ENOENT);
        }
        Ok(())
    })
}

/// `P2M_SPACE_CHANGE`
pub(crate) fn change(domain: &Domain, command: &mut abi::p2m_space_change) -> Result {
    command.out_pages = 0;
    check_zero(command.__reserved)?;
    let range = pages(command.address, command.nr_pages)?;
    let change = if command.flags & abi::P2M_CHANGE_FRAMES != 0 {
        Change::Frames(Pfn::new(command.value).ok_or(EOVERFLOW)?)
    } else {
        Change::Flags(command.value)
    };
    domain.with_space(command.space, |owned, host| {
        let (space, mut pool) = owned.parts(host);
        let (done, result) = space.change(host, &mut pool, range, change);
        command.out_pages = done;
        Ok(result?)
    })
}

/// `P2M_SPACE_WALK`
pub(crate) fn walk(domain: &Domain, command: &mut abi::p2m_space_walk) -> Result {
    command.out_nr_steps = 0;
    command.out_steps = Default::default();
    let page = command.address >> PAGE_SHIFT;
    domain.with_space(command.space, |owned, host| {
        let space = &owned.space;
        if page >= space.format().nr_pages() {
            return Err(EOVERFLOW);
        }
        let walk = space.walk(host, page);
        for (out, step) in command.out_steps.iter_mut().zip(walk.steps()) {
            let table = step.slot.table.get();
            *out = abi::p2m_step {
                table_pfn: table,
                table_mfn: 0,
                raw: step.raw & !frame_mask(step.level, step.raw),
                val: step.val,
                // CAST: Levels and indices are small numbers.
                level: step.level as u32,
                index: step.slot.index as u32,
            };
            if domain.sees_mfns() {
                out.table_mfn = host.entry(table).mfn().map_or(0, Mfn::get);
                out.raw = step.raw;
            }
            command.out_nr_steps += 1;
        }
        Ok(())
    })
}

/// Returns what a leaf translates.
fn span(domain: &Domain, leaf: Leaf) -> abi::p2m_span {
    let mfn = if domain.sees_mfns() && leaf.raw & bits::PRESENT != 0 {
        frame(leaf.level, leaf.raw)
    } else {
        0
    };
    abi::p2m_span {
        address: leaf.start << PAGE_SHIFT,
        nr_pages: leaf.nr_pages(),
        pfn: leaf.pfn(),
        mfn,
        pte_flags: leaf.val & !frame_mask(leaf.level, leaf.val),
        // CAST: Levels are small numbers.
        level: leaf.level as u32,
        __reserved: 0,
    }
}

/// Returns whether `next` goes on where `span` ends.
fn continues(span: &abi::p2m_span, next: &abi::p2m_span) -> bool {
    // OVERFLOW: All of it is in the address space or below 2^52.
    let follows = |first: u64, next: u64| next == first + span.nr_pages;
    let is_hidden = span.mfn == 0 && next.mfn == 0;
    next.address == span.address + (span.nr_pages << PAGE_SHIFT)
        && follows(span.pfn, next.pfn)
        && (is_hidden || follows(span.mfn, next.mfn))
        && next.pte_flags == span.pte_flags
        && next.level == span.level
}

/// Adds spans from `page` on, the first of which may go on where the last one of `spans` ends, until
/// there are `limit`. Returns where to go on.
fn collect(
    domain: &Domain,
    command: &abi::p2m_space_dump,
    page: u64,
    spans: &mut KVec<abi::p2m_span>,
    limit: usize,
) -> Result<Option<u64>> {
    domain.with_space(command.space, |owned, host| {
        let space = &owned.space;
        let end = space.format().nr_pages();
        let mut page = page;
        // A look at signals now and then, even if one span goes on and on, or there is none.
        let mut left = (CHUNK * CHUNK) as u64;
        loop {
            let leaf = match space.next_leaf_within(host, page, end, &mut left) {
                Ok(Some(leaf)) => leaf,
                Ok(None) => return Ok(None),
                Err(page) => return Ok(Some(page)),
            };
            let next = span(domain, leaf);
            let has_room = spans.len() < limit;
            match spans.last_mut() {
                Some(last) if continues(last, &next) => last.nr_pages += next.nr_pages,
                _ if has_room => spans.push(next, GFP_KERNEL)?,
                _ => break,
            }
            // OVERFLOW: A leaf is in the address space.
            page = leaf.start + leaf.nr_pages();
        }
        Ok(Some(page))
    })
}

/// `P2M_SPACE_DUMP`
pub(crate) fn dump(domain: &Domain, command: &mut abi::p2m_space_dump) -> Result {
    command.out_nr = 0;
    command.out_next = command.address;
    check_zero(command.__reserved)?;
    if command.nr == 0 {
        return Err(EINVAL);
    }
    let mut next = Some(page_number(command.address)?);
    let mut writer = abi::user_slice::<abi::p2m_span>(command.spans, command.nr)?.writer();
    // The last span stays, as it may go on.
    // CAST: Both are as wide as a word at least.
    let nr_wanted = (command.nr as usize).min(CHUNK - 1) + 1;
    let mut spans = KVec::with_capacity(nr_wanted, GFP_KERNEL)?;
    loop {
        check_killed()?;
        next = match next {
            Some(page) => collect(domain, command, page, &mut spans, nr_wanted)?,
            None => None,
        };
        let nr_complete = match next {
            Some(_) => spans.len().saturating_sub(1),
            None => spans.len(),
        };
        let room = command.nr - command.out_nr;
        // CAST: There are at most `CHUNK`.
        let nr = room.min(nr_complete as u32);
        for span in spans.iter().take(nr as usize) {
            writer.write_slice(span.as_bytes())?;
            command.out_nr += 1;
            // OVERFLOW: A span is in the address space.
            command.out_next = span.address + (span.nr_pages << PAGE_SHIFT);
        }
        if nr == room && (nr as usize) < spans.len() {
            return Ok(());
        }
        if next.is_none() {
            command.out_next = 0;
            return Ok(());
        }
        let last = spans.pop();
        spans.clear();
        if let Some(last) = last {
            spans.push(last, GFP_KERNEL)?;
        }
    }
}

/// `P2M_SPACE_LIST`
pub(crate) fn list(domain: &Domain, command: &mut abi::p2m_space_list) -> Result {
    command.out_nr = 0;
    command.out_total = 0;
    let mut writer = abi::user_slice::<abi::p2m_space_info>(command.spaces, command.nr)?.writer();
    let mut next = command.start_space;
    loop {
        check_killed()?;
        let (info, nr_left) = domain.with_spaces(|spaces| spaces.describe(domain, next));
        if command.out_nr == 0 {
            command.out_total = nr_left;
        }
        let Some(info) = info.filter(|_| command.out_nr < command.nr) else {
            return Ok(());
        };
        writer.write_slice(info.as_bytes())?;
        command.out_nr += 1;
        match info.space.checked_add(1) {
            Some(number) => next = number,
            None => return Ok(()),
        }
    }
}

/// `P2M_SPACE_ACCESS`
pub(crate) fn access(domain: &Domain, command: &mut abi::p2m_space_access) -> Result {
    command.out_words = 0;
    command.out_checksum = 0;
    command.out_fault_address = 0;
    command.out_fault = 0;
    // SAFETY: It has no requirements.
    let may = unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) };
    if !may || !domain.sees_mfns() {
        return Err(EPERM);
    }
    // SAFETY: It has no requirements.
    if unsafe { ffi::p2m_is_locked_down() } {
        return Err(EPERM);
    }
    check_zero(command.__reserved)?;
    if command.op == abi::P2M_ACCESS_WRITE && !domain.is_writable() {
        return Err(EACCES);
    }
    if command.op > abi::P2M_ACCESS_CHECKSUM
        || command.nr_words == 0
        || command.nr_words > abi::P2M_MAX_ACCESS_WORDS
    {
        return Err(EINVAL);
    }
    cpu::availability().inspect_err(|refusal| {
        pr_info_once!("no processor can be given a space: {}\n", refusal.reason());
    })?;
    // CAST: Both are as wide as a word at least.
    let nr_words = command.nr_words as usize;
    let mut words = KVVec::new();
    if command.op != abi::P2M_ACCESS_CHECKSUM {
        domain.injection().check(ENOMEM)?;
        words.resize(nr_words, 0u64, GFP_KERNEL_ACCOUNT)?;
    }
    let buffer = abi::user_slice::<u64>(command.buffer, command.nr_words)?;
    let (mut reader, mut writer) = buffer.reader_writer();
    if command.op == abi::P2M_ACCESS_WRITE {
        reader.read_slice(words.as_mut_bytes())?;
    }
    let access = match command.op {
        abi::P2M_ACCESS_READ => Access::Read(&mut words),
        abi::P2M_ACCESS_WRITE => Access::Write(&words),
        _ => Access::Checksum(nr_words),
    };

    let seen = domain.with_space(command.space, |owned, host| {
        let space = &owned.space;
        let root = space.root().get() << PAGE_SHIFT;
        space.ops().write_cr3(host, root);
        let root = host.cr3().map(|cr3| cr3 >> PAGE_SHIFT).and_then(Mfn::new);
        let root = root.ok_or(EUCLEAN)?;
        if host.use_of(root) != Some(cpu::Use::Table) {
            return Err(EOPNOTSUPP);
        }
        let tables = cpu::PageTables {
            root,
            nr_levels: space.format().nr_levels,
            frames: &|mfn| host.use_of(mfn),
        };
        // For its private tables.
        domain.injection().check(ENOMEM)?;
        // SAFETY: Tables and frames of the domain stay what they are under its lock.
        unsafe { cpu::run(&tables, command.address, access) }
    })?;

    // CAST: Not more than there were.
    command.out_words = seen.nr_words as u32;
    command.out_checksum = seen.checksum;
    if let Some(fault) = seen.fault {
        command.out_fault_address = fault.address;
        command.out_fault = abi::P2M_FAULT_RAISED;
        if fault.is_present {
            command.out_fault |= abi::P2M_FAULT_PROTECTION;
        }
        if fault.is_write {
            command.out_fault |= abi::P2M_FAULT_WRITE;
        }
    }
    if command.op == abi::P2M_ACCESS_READ {
        let words = words.get(..seen.nr_words).ok_or(EINVAL)?;
        writer.write_slice(words.as_bytes())?;
    }
    Ok(())
}
