// SPDX-License-Identifier: GPL-2.0

//! Commands that change the frames under a domain: arguments are checked, and what is asked for is
//! done batch by batch.

use kernel::{
    bindings,
    fs::LocalFile,
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

use crate::{
    abi,
    commands::check_killed,
    compat::EOPNOTSUPP,
    counters::Counter,
    domain::{
        self,
        Domain,
        Moved,
        BATCH, //
    },
    ffi,
    frames,
    pure::{
        frame::{
            Mfn,
            Pfn,
            PfnRange, //
        },
        policy::Policy, //
    }, //
};

/// The highest order that can be made contiguous: 1 GiB.
const MAX_ORDER: u32 = 18;

/// A range of machine frames without any.
const NOTHING: (u64, u64) = (0, 0);

/// Calls `work` with one batch of a range after the other, and tells in `next` how far it got.
fn for_batches(
    start_pfn: u64,
    nr_pages: u64,
    next: &mut u64,
    mut work: impl FnMut(PfnRange) -> Result,
) -> Result {
    *next = start_pfn;
    let range = abi::range(start_pfn, nr_pages)?;
    while *next < range.end() {
        check_killed()?;
        // Batches end where leaves do.
        let end = (*next / BATCH as u64 + 1) * BATCH as u64;
        let batch = abi::range(*next, end.min(range.end()) - *next)?;
        work(batch)?;
        *next = batch.end();
    }
    Ok(())
}

/// Counts what became of pages.
fn count(domain: &Domain, moved: &Moved) {
    domain.counters().add(Counter::Moved, moved.nr_moved);
    domain.counters().add(Counter::Busy, moved.nr_busy);
}

/// `P2M_RELEASE`
pub(crate) fn release(domain: &Domain, command: &mut abi::p2m_release) -> Result {
    let (out_pages, next) = (&mut command.out_pages, &mut command.out_next_pfn);
    *out_pages = 0;
    for_batches(command.start_pfn, command.nr_pages, next, |batch| {
        *out_pages += domain.release(batch)?;
        Ok(())
    })
}

/// `P2M_POPULATE`
pub(crate) fn populate(domain: &Domain, command: &mut abi::p2m_populate) -> Result {
    let (out_pages, next) = (&mut command.out_pages, &mut command.out_next_pfn);
    *out_pages = 0;
    for_batches(command.start_pfn, command.nr_pages, next, |batch| {
        domain.populate_range(batch, out_pages)
    })
}

/// `P2M_MOVE`
pub(crate) fn move_pages(domain: &Domain, command: &mut abi::p2m_move) -> Result {
    command.out_pages = 0;
    command.out_busy = 0;
    if command.__reserved != 0 {
        return Err(EINVAL);
    }
    let policy = domain::rule(command.policy, command.seed)?;
    if policy == Policy::Contiguous || command.policy == abi::P2M_POLICY_SUPERPAGE {
        return Err(EOPNOTSUPP);
    }
    let (out_pages, out_busy) = (&mut command.out_pages, &mut command.out_busy);
    let next = &mut command.out_next_pfn;
    let mut pfns = KVec::with_capacity(BATCH, GFP_KERNEL)?;
    for_batches(command.start_pfn, command.nr_pages, next, |batch| {
        domain.backed_pfns(batch, &mut pfns)?;
        move_batch(domain, &pfns, policy, NOTHING, (out_pages, out_busy))
    })
}

/// Gives pages other frames, none of them in `avoided`, and counts them.
fn move_batch(
    domain: &Domain,
    pfns: &[Pfn],
    policy: Policy,
    avoided: (u64, u64),
    (out_pages, out_busy): (&mut u64, &mut u64),
) -> Result {
    let mut moved = Moved::default();
    let result = domain.move_pages(pfns, policy, avoided, &mut moved);
    count(domain, &moved);
    *out_pages += moved.nr_moved;
    *out_busy += moved.nr_busy;
    result
}

/// `P2M_EVACUATE`
pub(crate) fn evacuate(domain: &Domain, command: &mut abi::p2m_evacuate) -> Result {
    command.out_pages = 0;
    command.out_busy = 0;
    command.out_next_mfn = command.start_mfn;
    if !domain.sees_mfns() {
        return Err(EPERM);
    }
    let both = abi::P2M_EVACUATE_KEEP_OUT | abi::P2M_EVACUATE_READMIT;
    if command.nr_frames == 0 || command.flags & both == both {
        return Err(EINVAL);
    }
    let start = command.start_mfn;
    let end = start.checked_add(command.nr_frames);
    let end = end.filter(|&end| end <= Mfn::LIMIT).ok_or(EOVERFLOW)?;
    if command.flags & abi::P2M_EVACUATE_READMIT != 0 {
        return domain.readmit(start, end);
    }
    if command.flags & abi::P2M_EVACUATE_KEEP_OUT != 0 {
        domain.exclude(start, end)?;
    }
    while command.out_next_mfn < end {
        check_killed()?;
        let (pfns, next) = domain.pfns_in(command.out_next_mfn, end)?;
        // What is free again must not be taken at once, or pages would go round in circles.
        let counts = (&mut command.out_pages, &mut command.out_busy);
        move_batch(domain, &pfns, Policy::Any, (start, end), counts)?;
        command.out_next_mfn = next;
    }
    Ok(())
}

/// `P2M_CONTIGUOUS`
pub(crate) fn contiguous(domain: &Domain, command: &mut abi::p2m_contiguous) -> Result {
    command.out_busy_pfn = crate::pure::entry::INVALID;
    if command.order > MAX_ORDER || command.address_bits > 64 {
        return Err(EINVAL);
    }
    // It's about where frames are, and what doesn't fit is kept until one is found that does.
    if command.address_bits != 0 && !domain.sees_mfns() {
        return Err(EPERM);
    }
    let range = abi::range(command.start_pfn, 1 << command.order)?;
    let limit = match command
        .address_bits
        .checked_sub(crate::pure::frame::PAGE_SHIFT)
    {
        _ if command.address_bits == 0 => frames::max_mfn(),
        Some(bits) => 1 << bits,
        None => 0,
    };
    domain
        .make_contiguous(range, limit)
        .map_err(|(error, pfn)| {
            command.out_busy_pfn = pfn;
            error
        })?;
    domain.counters().add(Counter::Moved, range.nr_pages());
    Ok(())
}

/// `P2M_COLLAPSE`
pub(crate) fn collapse(domain: &Domain, command: &mut abi::p2m_collapse) -> Result {
    let (out_pages, out_superpages) = (&mut command.out_pages, &mut command.out_superpages);
    let out_busy = &mut command.out_busy;
    (*out_pages, *out_superpages, *out_busy) = (0, 0, 0);
    let next = &mut command.out_next_pfn;
    for_batches(command.start_pfn, command.nr_pages, next, |batch| {
        let collapsed = domain.collapse(batch)?;
        *out_pages += collapsed.nr_pages;
        *out_superpages += collapsed.nr_superpages;
        *out_busy += collapsed.nr_busy;
        Ok(())
    })
}

/// `P2M_EXCHANGE`
pub(crate) fn exchange(domain: &Domain, command: &mut abi::p2m_exchange) -> Result {
    command.out_pages = 0;
    command.out_busy = 0;
    let a = abi::range(command.a_pfn, command.nr_pages)?;
    let b = abi::range(command.b_pfn, command.nr_pages)?;
    if a.overlaps(b) {
        return Err(EINVAL);
    }
    let mut start = 0;
    while start < command.nr_pages {
        check_killed()?;
        let nr_pages = (command.nr_pages - start).min(BATCH as u64);
        let part = |range: PfnRange| abi::range(range.start().get() + start, nr_pages);
        let moved = domain.exchange(part(a)?, part(b)?)?;
        // Of each pair, both get another frame.
        count(domain, &moved);
        count(domain, &moved);
        command.out_pages += moved.nr_moved;
        command.out_busy += moved.nr_busy;
        start += nr_pages;
    }
    Ok(())
}

/// `P2M_AUDIT`
pub(crate) fn audit(domain: &Domain, command: &mut abi::p2m_audit) -> Result {
    *command = abi::p2m_audit {
        size: command.size,
        ..Default::default()
    };
    domain.audit(command)
}

/// `P2M_GUARD_CHECK`
pub(crate) fn check_guards(domain: &Domain, command: &mut abi::p2m_guard_check) -> Result {
    command.out_guards = 0;
    command.out_broken = 0;
    command.out_pfn = crate::pure::entry::INVALID;
    command.out_offset = 0;
    command.out_value = 0;
    let mut next = command.start_pfn;
    let result = for_batches(command.start_pfn, command.nr_pages, &mut next, |batch| {
        domain.check_guards(batch, command)
    });
    command.out_next_pfn = next;
    result
}

/// Calls `work` with one chunk of slots after the other, and writes the errors of each. Returns how
/// many slots have none.
fn for_slots(
    start_pfn: u64,
    nr: u32,
    errors: u64,
    mut work: impl FnMut(u64, &mut [i32]) -> Result,
) -> Result<u32> {
    abi::range(start_pfn, u64::from(nr))?;
    let mut writer = abi::user_slice::<i32>(errors, nr)?.writer();
    let mut buffer = KVec::from_elem(0i32, BATCH, GFP_KERNEL)?;
    let mut nr_good = 0;
    let mut next = start_pfn;
    while !writer.is_empty() {
        check_killed()?;
        let len = (writer.len() / core::mem::size_of::<i32>()).min(BATCH);
        let slots = buffer.get_mut(..len).ok_or(EINVAL)?;
        work(next, slots)?;
        nr_good += slots.iter().filter(|&&error| error == 0).count() as u32;
        writer.write_slice(slots.as_bytes())?;
        // OVERFLOW: The range was checked.
        next += len as u64;
    }
    Ok(nr_good)
}

/// `P2M_FOREIGN_MAP`
pub(crate) fn map_foreign(domain: &Domain, command: &mut abi::p2m_foreign_map) -> Result {
    command.out_nr = 0;
    if command.__reserved != 0 || command.nr == 0 {
        return Err(EINVAL);
    }
    let lender = Lender::get(command.fd, domain)?;
    let mut reader = abi::user_slice::<u64>(command.frames, command.nr)?.reader();
    let mut pfns = KVec::from_elem(0u64, BATCH, GFP_KERNEL)?;
    let mut frames = KVec::from_elem(Err(EFAULT), BATCH, GFP_KERNEL)?;
    let (start, nr, errors) = (command.start_pfn, command.nr, command.errors);
    command.out_nr = for_slots(start, nr, errors, |start, errors| {
        let pfns = pfns.get_mut(..errors.len()).ok_or(EINVAL)?;
        let frames = frames.get_mut(..errors.len()).ok_or(EINVAL)?;
        reader.read_slice(pfns.as_mut_bytes())?;
        lender.domain().lend(pfns, frames);
        domain.put_foreign(start, frames, errors);
        Ok(())
    })?;
    Ok(())
}

/// `P2M_FOREIGN_UNMAP`
pub(crate) fn unmap_foreign(domain: &Domain, command: &mut abi::p2m_foreign_unmap) -> Result {
    command.out_nr = 0;
    if command.nr == 0 {
        return Err(EINVAL);
    }
    let (start, nr, errors) = (command.start_pfn, command.nr, command.errors);
    command.out_nr = for_slots(start, nr, errors, |start, errors| {
        domain.take_foreign(start, errors)
    })?;
    Ok(())
}

/// `P2M_IDENTITY`
pub(crate) fn make_identity(domain: &Domain, command: &mut abi::p2m_identity) -> Result {
    // SAFETY: It has no requirements.
    if !unsafe { bindings::capable(bindings::CAP_SYS_RAWIO as c_int) } {
        return Err(EPERM);
    }
    // SAFETY: It has no requirements.
    if unsafe { ffi::p2m_is_locked_down() } {
        return Err(EPERM);
    }
    let next = &mut command.out_next_pfn;
    for_batches(command.start_pfn, command.nr_pages, next, |batch| {
        domain.make_identity(batch)
    })
}

/// Another domain, by a descriptor of it.
struct Lender {
    file: ARef<LocalFile>,
}

impl Lender {
    fn get(fd: i32, borrower: &Domain) -> Result<Self> {
        let fd = u32::try_from(fd).map_err(|_| EBADF)?;
        let file = LocalFile::fget(fd)?;
        // SAFETY: The file is valid, and its operations don't change any more.
        if unsafe { (*file.as_ptr()).f_op } != borrower.operations() {
            return Err(EINVAL);
        }
        let lender = Self { file };
        // What is its own is not foreign.
        if core::ptr::eq(lender.domain(), borrower) {
            return Err(EINVAL);
        }
        // The borrower may write to what it gets.
        if !lender.domain().is_writable() {
            return Err(EACCES);
        }
        Ok(lender)
    }

    fn domain(&self) -> &Domain {
        // SAFETY: The file has the operations of a domain, so a domain is its private data, as long as
        // we have a reference to the file.
        let domain = unsafe {
            let private_data = (*self.file.as_ptr()).private_data;
            <Pin<KBox<Domain>> as ForeignOwnable>::borrow(private_data)
        };
        domain.get_ref()
    }
}
