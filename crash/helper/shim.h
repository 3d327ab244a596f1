/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the helper needs of the kernel and Rust can't reach: inline functions, and
 * structures that Rust has no bindings for. ffi.rs is the other side.
 */
#ifndef _P2M_CRASH_HELPER_SHIM_H
#define _P2M_CRASH_HELPER_SHIM_H

#include <linux/types.h>

struct device;

int p2m_helper_read(u64 address, void *to, size_t length);
void p2m_helper_sort(u32 *numbers, size_t nr);
void p2m_helper_hide(bool (*is_hidden)(unsigned long mfn));
void p2m_helper_show(void);
int p2m_helper_have_dma_mapped(struct device *device);

#endif /* _P2M_CRASH_HELPER_SHIM_H */
