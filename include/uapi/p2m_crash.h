/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The userspace interface of /dev/p2m_crash: a crash kernel for a machine on which
 * nothing is reserved for one.
 *
 * Words, and the general format of ioctls with its errors, are those of p2m.h.
 */
#ifndef _UAPI_P2M_CRASH_H
#define _UAPI_P2M_CRASH_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define P2M_CRASH_IOCTL_TYPE 0xBB

/** P2M_CRASH_DEVICE - the device node. Who opens it must have CAP_SYS_BOOT. */
#define P2M_CRASH_DEVICE "/dev/p2m_crash"

/* The command numbers. New ones go to the end. They are none of p2m.h. */
#define P2M_CRASH_CMD_BASE 0xe0
#define P2M_CRASH_CMD_INFO 0xe0
#define P2M_CRASH_CMD_LOAD 0xe1
#define P2M_CRASH_CMD_UNLOAD 0xe2
#define P2M_CRASH_CMD_STATUS 0xe3
#define P2M_CRASH_CMD_LOW 0xe4

/**
 * DOC: window
 *
 * The *window* is the memory of the crash kernel: a range of pseudo-physical
 * addresses, far above the memory of the machine. Its frames are anywhere in the
 * machine. What is in the window when the crash kernel starts is given as
 * segments, and has frames from then on. The rest can be without frames until the
 * kernel panics; then it gets free ones of the dying kernel.
 *
 * All other addresses mean to the crash kernel what they mean to the machine. It
 * can read the memory of the old kernel, but not write to it, the first MiB
 * excepted.
 */

/**
 * DOC: low memory
 *
 * Where no IOMMU gives devices the window, bus addresses are those of the machine. So
 * the crash kernel can have memory for DMA that is what it is in the machine, too:
 * pieces below 4 GiB, taken with P2M_CRASH_LOW before the load. Its memory map has
 * to say where they are, and its drivers have to be kept to them.
 */

/** P2M_CRASH_MAX_MEMORY - no window is larger. */
#define P2M_CRASH_MAX_MEMORY 0x40000000ULL

/**
 * DOC: refusals
 *
 * Why there can't be a crash kernel on this machine.
 *
 * P2M_CRASH_OK
 *   There can.
 * P2M_CRASH_NO_ENGINE
 *   The processor has no virtualisation that this module knows: it needs AMD's SVM.
 *   In a virtual machine it's the hypervisor that doesn't offer it.
 * P2M_CRASH_DISABLED
 *   The firmware has switched it off.
 * P2M_CRASH_NO_NESTED_PAGING
 *   It has no nested paging.
 * P2M_CRASH_ENCRYPTED
 *   Memory encryption is active.
 * P2M_CRASH_LOCKED_DOWN
 *   The kernel is locked down, and the signatures of images aren't checked here.
 * P2M_CRASH_OCCUPIED
 *   Another hypervisor than KVM has the processor.
 * P2M_CRASH_NO_HOLE
 *   There is no place for a window among the physical addresses.
 * P2M_CRASH_NO_LOADS
 *   No more kernels may be loaded: kernel.kexec_load_disabled is set, or
 *   kernel.kexec_load_limit_panic is 0.
 */
#define P2M_CRASH_OK 0
#define P2M_CRASH_NO_ENGINE 1
#define P2M_CRASH_DISABLED 2
#define P2M_CRASH_NO_NESTED_PAGING 3
#define P2M_CRASH_ENCRYPTED 4
#define P2M_CRASH_LOCKED_DOWN 5
#define P2M_CRASH_OCCUPIED 6
#define P2M_CRASH_NO_HOLE 7
#define P2M_CRASH_NO_LOADS 8

/**
 * struct p2m_crash_info - ioctl(P2M_CRASH_INFO)
 * @size: sizeof(struct p2m_crash_info)
 * @flags: Must be 0.
 * @out_refusal: P2M_CRASH_OK, or why there can't be a crash kernel.
 * @out_nr_levels: Levels of the nested page tables.
 * @out_base: The address at which windows begin, or 0 if it is refused.
 * @out_note: Physical address of the ELF note with the registers of the processor
 *	that panics. It is empty until then.
 * @out_note_size: Its size in bytes.
 * @out_tsc_khz: Frequency of the time stamp counter, or 0.
 * @out_nr_iommus: How many IOMMUs there are that P2M_CRASH_IOMMU can use.
 * @__reserved: 0.
 * @out_generation: Another number, not 0, whenever memory or processors were added or
 *	removed.
 *
 * Tells what the segments of a window have to say.
 */
struct p2m_crash_info {
	__u32 size;
	__u32 flags;
	__u32 out_refusal;
	__u32 out_nr_levels;
	__aligned_u64 out_base;
	__aligned_u64 out_note;
	__aligned_u64 out_note_size;
	__aligned_u64 out_tsc_khz;
	__u32 out_nr_iommus;
	__u32 __reserved;
	__aligned_u64 out_generation;
};

#define P2M_CRASH_INFO _IO(P2M_CRASH_IOCTL_TYPE, P2M_CRASH_CMD_INFO)

/**
 * struct p2m_crash_segment - a part of the window with something in it
 * @data: Pointer to the bytes.
 * @length: Number of bytes, not 0. The rest of the last page is zeroes.
 * @offset: Where they are in the window, a multiple of the page size.
 */
struct p2m_crash_segment {
	__aligned_u64 data;
	__aligned_u64 length;
	__aligned_u64 offset;
};

/** P2M_CRASH_MAX_SEGMENTS - there can't be more. */
#define P2M_CRASH_MAX_SEGMENTS 64

/**
 * struct p2m_crash_frames - what the crash kernel is told of its own frames
 * @magic: P2M_CRASH_FRAMES_MAGIC when the window was filled.
 * @nr_frames: How many frames follow.
 *
 * Behind it are the numbers of the frames of the window, of 32 bits each, in no order.
 * They were the old kernel's, and what is in them is not any more.
 */
struct p2m_crash_frames {
	__aligned_u64 magic;
	__aligned_u64 nr_frames;
};

/** P2M_CRASH_FRAMES_MAGIC - "P2Mframe" */
#define P2M_CRASH_FRAMES_MAGIC 0x656d6172664d3250ULL

/* Take all frames of the window now. */
#define P2M_CRASH_HOLD_ALL 0x1
/* Give devices the window, at the same addresses, and nothing else. */
#define P2M_CRASH_IOMMU 0x2
/* Give the crash kernel what this open file has taken with P2M_CRASH_LOW. */
#define P2M_CRASH_LOW_MEMORY 0x4

/**
 * struct p2m_crash_load - ioctl(P2M_CRASH_LOAD)
 * @size: sizeof(struct p2m_crash_load)
 * @flags: P2M_CRASH_HOLD_ALL, P2M_CRASH_IOMMU, P2M_CRASH_LOW_MEMORY.
 * @memory: Size of the window in bytes, a multiple of the page size.
 * @min_memory: With fewer bytes of it, from its beginning on, the crash kernel isn't
 *	entered. All segments are below.
 * @held_memory: So many bytes of the window, from its beginning on, have frames
 *	from now on, besides the segments.
 * @entry: Offset in the window where the crash kernel is entered, in 64-bit mode,
 *	as the boot protocol has it.
 * @boot_params: Offset of what RSI points to then.
 * @page_tables: Offset of the root of its page tables.
 * @size_slot: Offset of a 64-bit word in a segment, from which as many bytes are
 *	subtracted as are missing at the end of the window if too few frames are free:
 *	the size in a memory map. 0 if there is no such word.
 * @segments: Pointer to an array of struct p2m_crash_segment, which don't overlap.
 * @nr_segments: Number of elements, not 0.
 * @__reserved: Must be 0.
 * @frames: Offset of a struct p2m_crash_frames that is made when the kernel panics, a
 *	multiple of the page size below @min_memory, where no segment is. 0 for none.
 * @frames_length: Number of bytes that there are for it: enough for all frames of the
 *	window.
 * @generation: What P2M_CRASH_INFO said before it was looked what memory and processors
 *	there are, or 0 if that doesn't matter.
 *
 * From now on, until P2M_CRASH_UNLOAD, a panic starts this crash kernel. It takes the
 * place of one that was loaded before, which stays if this fails. Nobody can change
 * it, and the module can't go meanwhile.
 *
 * Additional errors:
 *
 *  - EOPNOTSUPP: also if there can't be a crash kernel, as P2M_CRASH_INFO tells, or
 *    no IOMMU.
 *  - EPERM: also without CAP_SYS_BOOT, whoever opened the device; if the kernel is
 *    locked down; or if kernel.kexec_load_disabled or kernel.kexec_load_limit_panic
 *    forbid it. A call counts for the latter whether or not it fails after that.
 *  - EACCES: a security module forbids kernels that it can't judge.
 *  - ENOMEM: also if too little memory is free for the crash kernel to get
 *    @min_memory.
 *  - E2BIG: @memory is larger than P2M_CRASH_MAX_MEMORY, or there are too many
 *    segments.
 *  - EEXIST: segments overlap, each other or @frames.
 *  - EBUSY: an IOMMU is on, but P2M_CRASH_IOMMU isn't given: DMA and interrupts would go
 *    where tables of the old kernel say.
 *  - ESTALE: memory or processors were added or removed since @generation.
 *  - ENODATA: P2M_CRASH_LOW_MEMORY, but this open file has no low memory. After any
 *    load with the flag it has none.
 */
struct p2m_crash_load {
	__u32 size;
	__u32 flags;
	__aligned_u64 memory;
	__aligned_u64 min_memory;
	__aligned_u64 held_memory;
	__aligned_u64 entry;
	__aligned_u64 boot_params;
	__aligned_u64 page_tables;
	__aligned_u64 size_slot;
	__aligned_u64 segments;
	__u32 nr_segments;
	__u32 __reserved;
	__aligned_u64 frames;
	__aligned_u64 frames_length;
	__aligned_u64 generation;
};

#define P2M_CRASH_LOAD _IO(P2M_CRASH_IOCTL_TYPE, P2M_CRASH_CMD_LOAD)

/**
 * struct p2m_crash_unload - ioctl(P2M_CRASH_UNLOAD)
 * @size: sizeof(struct p2m_crash_unload)
 * @flags: Must be 0.
 *
 * From now on a panic starts no crash kernel. ENOENT if none was loaded. EPERM as for
 * P2M_CRASH_LOAD: what is loaded stays then.
 */
struct p2m_crash_unload {
	__u32 size;
	__u32 flags;
};

#define P2M_CRASH_UNLOAD _IO(P2M_CRASH_IOCTL_TYPE, P2M_CRASH_CMD_UNLOAD)

/**
 * struct p2m_crash_status - ioctl(P2M_CRASH_STATUS)
 * @size: sizeof(struct p2m_crash_status)
 * @flags: Must be 0.
 * @out_loaded: 1 if a crash kernel is loaded, else 0; then the rest is 0, except
 *	@out_free.
 * @out_flags: Those that it was loaded with. P2M_CRASH_HOLD_ALL if all of the window
 *	has frames.
 * @out_base: The address at which the window begins.
 * @out_memory: Size of the window in bytes.
 * @out_min_memory: What the crash kernel isn't entered with less than.
 * @out_held: Bytes of the window that have frames.
 * @out_tables: Bytes that page tables and the engine's state take.
 * @out_free: Bytes that are free now and could be taken at a panic.
 * @out_would_get: Bytes that the window would have if the kernel panicked now.
 * @out_low: Bytes of low memory that are held.
 * @out_stale: 1 if memory or processors were added or removed since it was loaded, else
 *	0. What was added isn't in the dump then, and the crash kernel could write to
 *	that memory; it has to be loaded again.
 * @__reserved: 0.
 */
struct p2m_crash_status {
	__u32 size;
	__u32 flags;
	__u32 out_loaded;
	__u32 out_flags;
	__aligned_u64 out_base;
	__aligned_u64 out_memory;
	__aligned_u64 out_min_memory;
	__aligned_u64 out_held;
	__aligned_u64 out_tables;
	__aligned_u64 out_free;
	__aligned_u64 out_would_get;
	__aligned_u64 out_low;
	__u32 out_stale;
	__u32 __reserved;
};

#define P2M_CRASH_STATUS _IO(P2M_CRASH_IOCTL_TYPE, P2M_CRASH_CMD_STATUS)

/** P2M_CRASH_LOW_GRAIN - low memory comes in multiples of this. */
#define P2M_CRASH_LOW_GRAIN 0x100000

/** P2M_CRASH_MAX_LOW - there can't be more low memory. */
#define P2M_CRASH_MAX_LOW 0x8000000

/**
 * struct p2m_crash_range - a range of physical addresses
 * @start: The first one.
 * @length: Number of bytes.
 */
struct p2m_crash_range {
	__aligned_u64 start;
	__aligned_u64 length;
};

/**
 * struct p2m_crash_low - ioctl(P2M_CRASH_LOW)
 * @size: sizeof(struct p2m_crash_low)
 * @flags: Must be 0.
 * @memory: Number of bytes, a multiple of P2M_CRASH_LOW_GRAIN, not 0.
 * @ranges: Pointer to an array of struct p2m_crash_range, to which is written where
 *	the memory is, in ascending order.
 * @nr_ranges: Number of elements that there is room for.
 * @out_nr_ranges: Number of elements that there are.
 *
 * Takes memory below 4 GiB, in pieces that are multiples of P2M_CRASH_LOW_GRAIN. It
 * belongs to this open file, in the place of what it had taken before, until a load
 * gives it to a crash kernel.
 *
 * Additional errors:
 *
 *  - ENOMEM: there are no such pieces.
 *  - E2BIG: @memory is larger than P2M_CRASH_MAX_LOW.
 *  - ENOSPC: @nr_ranges is less than @out_nr_ranges. Nothing is taken.
 */
struct p2m_crash_low {
	__u32 size;
	__u32 flags;
	__aligned_u64 memory;
	__aligned_u64 ranges;
	__u32 nr_ranges;
	__u32 out_nr_ranges;
};

#define P2M_CRASH_LOW _IO(P2M_CRASH_IOCTL_TYPE, P2M_CRASH_CMD_LOW)

#endif /* _UAPI_P2M_CRASH_H */
