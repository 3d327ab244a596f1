/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A dma-buf in the hands of a driver, and what else Rust can't reach of the DMA
 * API. edu/memory.rs has the same structure and functions.
 */
#ifndef _P2M_EDU_IMPORT_H
#define _P2M_EDU_IMPORT_H

#include <linux/types.h>

struct device;
struct page;

/**
 * struct p2m_edu_import - a dma-buf that is mapped for a device
 * @dmabuf: the dma-buf
 * @attachment: of the device
 * @sgt: its segments, with bus addresses
 * @size: number of bytes
 * @direction: of the transfers, enum dma_data_direction
 */
struct p2m_edu_import {
	void *dmabuf;
	void *attachment;
	struct sg_table *sgt;
	size_t size;
	int direction;
};

int p2m_edu_import(struct p2m_edu_import *import, struct device *dev, int fd,
		   int direction);
void p2m_edu_unimport(struct p2m_edu_import *import);
int p2m_edu_cpu_copy(struct p2m_edu_import *import, size_t offset,
		     void __user *data, size_t length, bool is_read);

int p2m_edu_map_page(struct device *dev, struct page *page, size_t offset,
		     size_t size, int direction, u64 *address);

#endif /* _P2M_EDU_IMPORT_H */
