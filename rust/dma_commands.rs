// SPDX-License-Identifier: GPL-2.0

//! Commands for those who do DMA: arguments are checked, and ranges are looked at piece by piece.

use kernel::{
    prelude::*,
    sync::rcu, //
};

use crate::{
    abi,
    commands::check_killed,
    domain::Domain,
    pure::{
        dma::{
            flags,
            ByteRange,
            Limits,
            Parameters,
            Plan, //
        },
        entry::INVALID,
        runs::piece, //
    }, //
};

/// `P2M_DMA_PLAN`
pub(crate) fn plan(domain: &Domain, command: &mut abi::p2m_dma_plan) -> Result {
    command.out_nr = 0;
    command.out_next = command.position;
    command.out_bounced = 0;
    command.out_bounced_bytes = 0;
    if !domain.sees_mfns() {
        return Err(EPERM);
    }
    let range = ByteRange::new(command.start_pfn, command.offset, command.length)?;
    let limits = Limits::new(Parameters {
        dma_mask: command.dma_mask,
        max_segment_size: command.max_segment_size,
        segment_boundary_mask: command.segment_boundary_mask,
        dma_alignment: u64::from(command.dma_alignment),
        max_segments: u64::from(command.max_segments),
    })?;
    if command.position > range.length() {
        return Err(EINVAL);
    }
    let only_counts = command.nr == 0;
    let mut writer =
        abi::user_slice::<abi::p2m_dma_segment>(command.segments, command.nr)?.writer();

    let (maps, store) = domain.maps();
    let mut plan = Plan::new(range, command.position, limits, |pages| {
        let _guard = rcu::read_lock();
        piece(maps, store, pages)
    });
    while !plan.is_done() && (only_counts || command.out_nr < command.nr) {
        check_killed()?;
        let Some(planned) = plan.step() else { continue };
        let segment = planned.segment;
        if !only_counts {
            let record = abi::p2m_dma_segment {
                pfn: segment.pfn.get(),
                address: segment.address().unwrap_or(INVALID),
                length: segment.length,
                // CAST: It is less than the size of a page.
                offset: segment.offset as u32,
                flags: planned.flags,
            };
            writer.write_slice(record.as_bytes())?;
        }
        // A count that doesn't fit ends here, and can be gone on with as any other.
        let Some(nr) = command.out_nr.checked_add(1) else {
            break;
        };
        command.out_nr = nr;
        // OVERFLOW: The segment is in the range.
        command.out_next = segment.start() + segment.length - range.start();
        if planned.flags & flags::BOUNCE != 0 {
            // OVERFLOW: There are not more segments than bytes, and not more bytes than in the range.
            command.out_bounced += 1;
            command.out_bounced_bytes += segment.length;
        }
    }
    Ok(())
}
