/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pages as a dma-buf. rust/dma_buf.rs has what owns them, and the same functions.
 */
#ifndef _P2M_DMA_BUF_H
#define _P2M_DMA_BUF_H

#include <linux/types.h>

struct page;

/* In C: what the dma-buf framework calls. */
bool p2m_dma_buf_is_supported(void);
int p2m_dma_buf_export(struct page **pages, unsigned int nr_pages, int fd_flags,
		       void *owner);

/* In Rust: what becomes of the owner of the pages. */
void p2m_dma_buf_attached(void *owner, const char *device);
void p2m_dma_buf_detached(void *owner);
void p2m_dma_buf_released(void *owner);

#endif /* _P2M_DMA_BUF_H */
