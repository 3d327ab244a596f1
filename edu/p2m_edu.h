/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The userspace interface of /dev/p2m_edu: DMA by QEMU's "edu" device, for tests.
 *
 * It follows the general ioctl format of p2m.h, and has the errors that are
 * listed there.
 */
#ifndef _P2M_EDU_H
#define _P2M_EDU_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define P2M_EDU_IOCTL_TYPE 0xBC

/** P2M_EDU_DEVICE - the device node. */
#define P2M_EDU_DEVICE "/dev/p2m_edu"

#define P2M_EDU_CMD_INFO 0x80
#define P2M_EDU_CMD_COPY 0x81

/** P2M_EDU_NAME_LEN - room for the name of a device, with a NUL */
#define P2M_EDU_NAME_LEN 32
/** P2M_EDU_MAX_LENGTH - the most bytes of one copy */
#define P2M_EDU_MAX_LENGTH 0x100000
/** P2M_EDU_PIECE - the most bytes that the device moves at once */
#define P2M_EDU_PIECE 4096

/**
 * struct p2m_edu_info - ioctl(P2M_EDU_INFO)
 * @size: sizeof(struct p2m_edu_info).
 * @flags: Must be 0.
 * @out_dma_bits: Bus addresses of the device have so many bits.
 * @out_damages: 1 if P2M_EDU_NAIVE may be combined with P2M_EDU_WRITE.
 * @out_name: Name of the device, ended by a NUL.
 *
 *  - ENODEV: there is no device.
 */
struct p2m_edu_info {
	__u32 size;
	__u32 flags;
	__u32 out_dma_bits;
	__u32 out_damages;
	__u8 out_name[P2M_EDU_NAME_LEN];
};
#define P2M_EDU_INFO _IO(P2M_EDU_IOCTL_TYPE, P2M_EDU_CMD_INFO)

/* Bits of p2m_edu_copy.flags. */
#define P2M_EDU_WRITE (1U << 0) /* the device writes to the memory, else it reads */
#define P2M_EDU_NAIVE (1U << 1) /* as if frames followed each other */
#define P2M_EDU_USER (1U << 2) /* the memory is the caller's, not a dma-buf */
#define P2M_EDU_CPU (1U << 3) /* the processor has access to it meanwhile */

/**
 * struct p2m_edu_copy - ioctl(P2M_EDU_COPY)
 * @size: sizeof(struct p2m_edu_copy).
 * @flags: P2M_EDU_* bits.
 * @fd: A descriptor of a dma-buf; with P2M_EDU_USER it must be 0.
 * @__reserved: Must be 0.
 * @offset: Where the memory begins: an offset in the dma-buf, or an address.
 * @length: Number of bytes, not 0, at most P2M_EDU_MAX_LENGTH.
 * @data: Pointer to what the device is to write there, or to where what it reads
 *        goes.
 * @out_done: How many bytes were moved.
 * @out_address: The bus address at which the memory begins.
 * @out_pieces: How many transfers the device made from or to the memory.
 * @out_segments: How many segments the memory is in for the device.
 *
 * Has the device copy memory to @data, or back. A transfer takes 100 ms, and a
 * piece needs two of them, as the device has a buffer of its own between.
 *
 * The right way is a transfer for each part of a segment. With P2M_EDU_NAIVE the
 * memory is cut into pieces of P2M_EDU_PIECE bytes, and for each the bus address
 * of its first byte is taken, as if the frame behind it in the buffer was the one
 * behind it in the machine. So a piece goes astray by less than a page.
 *
 * With P2M_EDU_CPU, for a dma-buf, the processor writes @data to it before the
 * device reads, or reads it to @data after the device has written, both while it's
 * mapped for the device.
 *
 *  - ENODEV: there is no device.
 *  - EPERM: P2M_EDU_NAIVE and P2M_EDU_WRITE, and the module doesn't let it.
 *  - EIO: the device doesn't answer. Neither will it any more.
 */
struct p2m_edu_copy {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 __reserved;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 data;
	__aligned_u64 out_done;
	__aligned_u64 out_address;
	__u32 out_pieces;
	__u32 out_segments;
};
#define P2M_EDU_COPY _IO(P2M_EDU_IOCTL_TYPE, P2M_EDU_CMD_COPY)

#endif /* _P2M_EDU_H */
