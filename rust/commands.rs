// SPDX-License-Identifier: GPL-2.0

//! Commands about the domain and its regions: arguments are checked, and handed on to the domain.

use kernel::{
    prelude::*,
    sync::rcu, //
};

use crate::{
    abi,
    compat::EOPNOTSUPP,
    cpu,
    dma_buf,
    domain::{
        self,
        Domain,
        Place,
        Request, //
    },
    frames::{
        self,
        Origin, //
    },
    pure::{
        frame::{
            Pfn,
            PAGE_SHIFT, //
        },
        policy::FrameSource, //
    }, //
};

/// Number of words that are looked up at once, between two looks at signals.
pub(crate) const CHUNK: usize = 512;

/// Number of runs that are copied to userspace at once.
const RUNS_CHUNK: usize = 128;

/// Size of an entry in bytes.
pub(crate) const ENTRY_SIZE: usize = core::mem::size_of::<u64>();

/// Fails if the caller was killed.
pub(crate) fn check_killed() -> Result {
    if frames::Source.is_interrupted() {
        return Err(EINTR);
    }
    Ok(())
}

/// `P2M_INFO`
pub(crate) fn info(domain: &Domain, command: &mut abi::p2m_info) -> Result {
    command.out_abi_version = abi::P2M_ABI_VERSION;
    command.out_page_shift = PAGE_SHIFT;
    command.out_features =
        u64::from(abi::P2M_FEATURE_SPACES | abi::P2M_FEATURE_LIVE | abi::P2M_FEATURE_DMA_PLAN);
    command.out_policies = domain::POLICIES;
    command.out_max_pfn = Pfn::LIMIT;
    command.out_max_mfn = 0;
    command.out_max_domain_pages = domain::max_pages();
    command.out_max_total_pages = frames::max_total();
    command.out_max_regions = domain::max_regions();
    command.out_default_policy = domain::default_policy();
    if dma_buf::is_supported() {
        command.out_features |= u64::from(abi::P2M_FEATURE_DMA_BUF);
    }
    if cpu::availability().is_ok() {
        command.out_features |= u64::from(abi::P2M_FEATURE_CPU_ACCESS);
    }
    if domain.sees_mfns() {
        command.out_features |=
            u64::from(abi::P2M_FEATURE_MFN_VISIBLE | abi::P2M_FEATURE_TABLE_MMAP);
        command.out_max_mfn = frames::max_mfn();
    }
    Ok(())
}

/// `P2M_STAT`
pub(crate) fn stat(domain: &Domain, command: &mut abi::p2m_stat) -> Result {
    domain.stat(command);
    Ok(())
}

/// `P2M_REGION_CREATE`
pub(crate) fn region_create(domain: &Domain, command: &mut abi::p2m_region_create) -> Result {
    if command.__reserved != 0 || command.__reserved2 != 0 {
        return Err(EINVAL);
    }
    let origin = origin(domain, command)?;
    let place = if command.flags & abi::P2M_REGION_FIXED != 0 {
        Place::Fixed(abi::range(command.base_pfn, command.nr_pages)?)
    } else {
        if command.base_pfn != 0 {
            return Err(EINVAL);
        }
        // As long as the whole space it may be, wherever it will be.
        Place::Anywhere(abi::range(0, command.nr_pages)?.nr_pages())
    };
    let request = Request {
        place,
        flags: command.flags,
        policy: command.policy,
        seed: command.seed,
        origin,
    };
    let range = domain.create(&request)?;
    command.base_pfn = range.start().get();
    Ok(())
}

/// Returns where the frames of a region shall come from.
fn origin(domain: &Domain, command: &abi::p2m_region_create) -> Result<Origin> {
    let has = |flag| command.flags & flag != 0;
    let is_guarded = has(abi::P2M_REGION_GUARDED);
    let mut origin = Origin::ANYWHERE;
    origin.constraint.is_guarded = is_guarded;

    if (has(abi::P2M_REGION_RANGE) || has(abi::P2M_REGION_COLOUR)) && !domain.sees_mfns() {
        return Err(EPERM);
    }
    match (command.start_mfn, command.end_mfn) {
        (0, 0) if !has(abi::P2M_REGION_RANGE) => (),
        (start, end) if has(abi::P2M_REGION_RANGE) && start < end => {
            origin.constraint.range = (start, end);
        }
        _ => return Err(EINVAL),
    }
    match (command.divisor, command.colour) {
        (0, 0) if !has(abi::P2M_REGION_COLOUR) => (),
        (divisor, colour) if has(abi::P2M_REGION_COLOUR) && colour < divisor => {
            origin.constraint.colour = Some((divisor, colour));
        }
        _ => return Err(EINVAL),
    }
    match c_int::try_from(command.node) {
        Ok(0) if !has(abi::P2M_REGION_NODE) => (),
        Ok(node) if has(abi::P2M_REGION_NODE) && frames::is_memory_node(node) => {
            if is_guarded {
                return Err(EOPNOTSUPP);
            }
            origin.node = Some(node);
        }
        _ => return Err(EINVAL),
    }
    let is_picky = is_guarded || has(abi::P2M_REGION_COLOUR);
    let is_run = command.policy == abi::P2M_POLICY_CONTIGUOUS;
    if (is_picky && (is_run || command.policy == abi::P2M_POLICY_SUPERPAGE))
        || (is_run && has(abi::P2M_REGION_ON_DEMAND))
    {
        return Err(EINVAL);
    }
    Ok(origin)
}

/// `P2M_REGION_DESTROY`
pub(crate) fn region_destroy(domain: &Domain, command: &mut abi::p2m_region_destroy) -> Result {
    domain.destroy(command.base_pfn)
}

/// `P2M_REGION_LIST`
pub(crate) fn region_list(domain: &Domain, command: &mut abi::p2m_region_list) -> Result {
    command.out_nr = 0;
    let (nr, has_constraints) = (command.nr, command.constraints != 0);
    let mut regions = abi::user_slice::<abi::p2m_region>(command.regions, nr)?.writer();
    let constraints = abi::user_slice::<abi::p2m_constraint>(command.constraints, nr)?;
    let mut constraints = constraints.writer();
    let limit = usize::try_from(nr).map_err(|_| EOVERFLOW)?;
    let (list, total) = domain.list(command.start_pfn, limit)?;
    for (index, listed) in list.iter().enumerate() {
        if index % CHUNK == 0 {
            check_killed()?;
        }
        regions.write_slice(listed.region.as_bytes())?;
        if has_constraints {
            constraints.write_slice(listed.constraint.as_bytes())?;
        }
    }
    // CAST: Not more than `nr`, which is a `u32`.
    command.out_nr = list.len() as u32;
    command.out_total = total;
    Ok(())
}

/// `P2M_TRANSLATE`
pub(crate) fn translate(domain: &Domain, command: &mut abi::p2m_translate) -> Result {
    let to_pfn = command.flags & abi::P2M_TRANSLATE_M2P != 0;
    command.out_nr = 0;
    if to_pfn && !domain.sees_mfns() {
        return Err(EPERM);
    }
    let mut reader = abi::user_slice::<u64>(command.frames, command.nr)?.reader();
    let mut writer = abi::user_slice::<u64>(command.entries, command.nr)?.writer();
    let mut words = KVec::from_elem(0u64, CHUNK, GFP_KERNEL)?;
    while !reader.is_empty() {
        check_killed()?;
        let nr = (reader.len() / ENTRY_SIZE).min(CHUNK);
        let words = words.get_mut(..nr).ok_or(EINVAL)?;
        reader.read_slice(words.as_mut_bytes())?;
        if to_pfn {
            domain.mfns_to_pfns(words);
        } else {
            domain.pfns_to_entries(words);
        }
        writer.write_slice(words.as_bytes())?;
        // CAST: Not more than `nr` in all, which is a `u32`.
        command.out_nr += nr as u32;
    }
    Ok(())
}

/// `P2M_RUNS`
pub(crate) fn runs(domain: &Domain, command: &mut abi::p2m_runs) -> Result {
    let range = abi::range(command.start_pfn, command.nr_pages)?;
    let only_counts = command.nr == 0;
    let mut writer = abi::user_slice::<abi::p2m_run>(command.runs, command.nr)?.writer();
    command.out_nr = 0;
    command.out_next_pfn = command.start_pfn;

    let mut runs = domain.runs(range);
    let mut records = KVec::with_capacity(RUNS_CHUNK, GFP_KERNEL)?;
    while !runs.is_done() && (only_counts || command.out_nr < command.nr) {
        check_killed()?;
        records.clear();
        let room = match only_counts {
            true => u32::MAX,
            // OVERFLOW: There is room for more, as has just been checked.
            false => command.nr - command.out_nr,
        };
        let mut nr = 0;
        let mut next_pfn = command.out_next_pfn;
        let guard = rcu::read_lock();
        runs.step_by_leaf(|run| {
            nr += 1;
            next_pfn = run.end();
            if only_counts {
                return true;
            }
            let record = abi::p2m_run {
                pfn: run.pfn.get(),
                nr_pages: run.nr_pages,
                entry: domain.visible(run.entry).raw(),
            };
            // There is room, as is checked below.
            records.push_within_capacity(record).is_ok() && records.len() < RUNS_CHUNK && nr < room
        });
        drop(guard);
        writer.write_slice(records.as_bytes())?;
        // OVERFLOW: There are not more runs than PFNs.
        command.out_nr += nr;
        command.out_next_pfn = next_pfn;
    }
    Ok(())
}

/// `P2M_FAIL_NTH`
pub(crate) fn fail_nth(domain: &Domain, command: &mut abi::p2m_fail_nth) -> Result {
    command.out_left = domain.injection().set(command.nth);
    Ok(())
}
