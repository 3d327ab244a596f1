// SPDX-License-Identifier: GPL-2.0

//! `/dev/p2m`: the file operations, and which command is handled where.

use kernel::{
    fs::{
        File,
        Kiocb, //
    },
    iov::IovIterDest,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    prelude::*,
    seq_file::SeqFile,
    seq_print, //
};

use crate::{
    abi,
    commands::{
        self,
        check_killed,
        CHUNK,
        ENTRY_SIZE, //
    },
    dma_buf,
    dma_commands,
    domain::Domain,
    ioctl::dispatch,
    live_commands,
    operations::Operations,
    space_commands,
    vma, //
};

/// The operations of files that are domains.
static OPERATIONS: Operations = Operations::new();

/// Makes the operations of files. To be called once, before there are any.
pub(crate) fn prepare(options: MiscDeviceOptions, module: &'static ThisModule) -> Result {
    OPERATIONS.prepare::<Domain>(options, module, |operations| {
        operations.get_unmapped_area = Some(vma::get_unmapped_area);
    })
}

#[vtable]
impl MiscDevice for Domain {
    type Ptr = Pin<KBox<Self>>;

    fn open(file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        // SAFETY: It's a file of ours, and this is what opens it.
        unsafe { OPERATIONS.give(file) }?;
        Domain::new(file)
    }

    fn mmap(me: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        vma::mmap(&me, vma)
    }

    fn ioctl(me: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        dispatch!(&me, cmd, arg, {
            p2m_info => commands::info,
            p2m_stat => commands::stat,
            p2m_region_create => commands::region_create,
            p2m_region_destroy => commands::region_destroy,
            p2m_region_list => commands::region_list,
            p2m_translate => commands::translate,
            p2m_runs => commands::runs,
            p2m_space_create => space_commands::create,
            p2m_space_destroy => space_commands::destroy,
            p2m_space_map => space_commands::map,
            p2m_space_unmap => space_commands::unmap,
            p2m_space_change => space_commands::change,
            p2m_space_walk => space_commands::walk,
            p2m_space_dump => space_commands::dump,
            p2m_space_access => space_commands::access,
            p2m_space_list => space_commands::list,
            p2m_release => live_commands::release,
            p2m_populate => live_commands::populate,
            p2m_move => live_commands::move_pages,
            p2m_evacuate => live_commands::evacuate,
            p2m_contiguous => live_commands::contiguous,
            p2m_exchange => live_commands::exchange,
            p2m_collapse => live_commands::collapse,
            p2m_audit => live_commands::audit,
            p2m_foreign_map => live_commands::map_foreign,
            p2m_foreign_unmap => live_commands::unmap_foreign,
            p2m_identity => live_commands::make_identity,
            p2m_fail_nth => commands::fail_nth,
            p2m_guard_check => live_commands::check_guards,
            p2m_dma_plan => dma_commands::plan,
            p2m_dma_buf_export => dma_buf::export,
        })
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        let me = kiocb.file();
        let position = kiocb.ki_pos_mut();
        let offset = u64::try_from(*position).map_err(|_| EINVAL)?;
        if offset % ENTRY_SIZE as u64 != 0 || iov.len() % ENTRY_SIZE != 0 {
            return Err(EINVAL);
        }
        let mut words = KVec::from_elem(0u64, CHUNK, GFP_KERNEL)?;
        let mut pfn = offset / ENTRY_SIZE as u64;
        let mut done = 0;
        while !iov.is_empty() {
            check_killed()?;
            // Another thread may be changing it.
            let left = me.end_pfn().saturating_sub(pfn);
            if left == 0 {
                break;
            }
            // CAST: At most `CHUNK`.
            let nr = left.min((iov.len() / ENTRY_SIZE).min(CHUNK) as u64) as usize;
            let words = words.get_mut(..nr).ok_or(EINVAL)?;
            me.lookup(pfn, words);
            // A part of an entry is not an entry.
            let copied = iov.copy_to_iter(words.as_bytes()) / ENTRY_SIZE;
            done += copied * ENTRY_SIZE;
            pfn += copied as u64;
            if copied < nr {
                if done == 0 {
                    return Err(EFAULT);
                }
                break;
            }
        }
        // OVERFLOW: PFNs are below 2^31.
        *position = (pfn * ENTRY_SIZE as u64) as i64;
        Ok(done)
    }

    fn show_fdinfo(me: Pin<&Self>, m: &SeqFile, _file: &File) {
        let mut stat = abi::p2m_stat::default();
        me.stat(&mut stat);
        seq_print!(m, "p2m-domain:\t{}\n", me.id());
        seq_print!(m, "p2m-regions:\t{}\n", stat.out_regions);
        seq_print!(m, "p2m-pages:\t{}\n", stat.out_pages);
        seq_print!(m, "p2m-frames:\t{}\n", stat.out_frames);
        seq_print!(m, "p2m-superpages:\t{}\n", stat.out_superpages);
        seq_print!(m, "p2m-guards:\t{}\n", stat.out_guards);
        seq_print!(m, "p2m-tables:\t{}\n", stat.out_p2m_tables);
        seq_print!(m, "p2m-m2p-tables:\t{}\n", stat.out_m2p_tables);
        seq_print!(m, "p2m-generation:\t{}\n", stat.out_generation);
        seq_print!(m, "p2m-faults:\t{}\n", stat.out_faults);
        seq_print!(m, "p2m-fault-pages:\t{}\n", stat.out_fault_pages);
        me.counters().show(m);
        let usage = me.importers().usage();
        seq_print!(m, "p2m-dma-bufs:\t{}\n", usage.nr_buffers);
        seq_print!(m, "p2m-dma-attached:\t{}\n", usage.nr_attached);
        seq_print!(m, "p2m-dma-ever-attached:\t{}\n", usage.nr_ever_attached);
        if let Some(name) = usage.last_device() {
            seq_print!(m, "p2m-dma-device:\t{}\n", name);
        }
    }
}
