// SPDX-License-Identifier: GPL-2.0
/*
 * An importer of dma-bufs as most drivers are one: it attaches its device, has
 * the buffer mapped, uses the bus addresses, and never looks at the pages.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/iosys-map.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "import.h"

MODULE_IMPORT_NS("DMA_BUF");

int p2m_edu_import(struct p2m_edu_import *import, struct device *dev, int fd,
		   int direction)
{
	struct dma_buf_attachment *attachment;
	struct dma_buf *dmabuf;
	struct sg_table *sgt;
	int ret;

	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	attachment = dma_buf_attach(dmabuf, dev);
	if (IS_ERR(attachment)) {
		ret = PTR_ERR(attachment);
		goto err_put;
	}
	sgt = dma_buf_map_attachment_unlocked(attachment, direction);
	if (IS_ERR(sgt)) {
		ret = PTR_ERR(sgt);
		goto err_detach;
	}
	import->dmabuf = dmabuf;
	import->attachment = attachment;
	import->sgt = sgt;
	import->size = dmabuf->size;
	import->direction = direction;
	return 0;

err_detach:
	dma_buf_detach(dmabuf, attachment);
err_put:
	dma_buf_put(dmabuf);
	return ret;
}

void p2m_edu_unimport(struct p2m_edu_import *import)
{
	dma_buf_unmap_attachment_unlocked(import->attachment, import->sgt,
					  import->direction);
	dma_buf_detach(import->dmabuf, import->attachment);
	dma_buf_put(import->dmabuf);
}

/*
 * Has the processor read or write the dma-buf while the device has it. The caller
 * has checked the range.
 */
int p2m_edu_cpu_copy(struct p2m_edu_import *import, size_t offset,
		     void __user *data, size_t length, bool is_read)
{
	enum dma_data_direction direction = is_read ? DMA_FROM_DEVICE :
						      DMA_TO_DEVICE;
	struct dma_buf *dmabuf = import->dmabuf;
	unsigned long left;
	struct iosys_map map;
	int ret, end;

	ret = dma_buf_begin_cpu_access(dmabuf, direction);
	if (ret)
		return ret;
	ret = dma_buf_vmap_unlocked(dmabuf, &map);
	if (ret)
		goto out_end;
	if (map.is_iomem)
		ret = -EINVAL;
	else if (is_read)
		left = copy_to_user(data, map.vaddr + offset, length);
	else
		left = copy_from_user(map.vaddr + offset, data, length);
	if (!ret && left)
		ret = -EFAULT;
	dma_buf_vunmap_unlocked(dmabuf, &map);
out_end:
	end = dma_buf_end_cpu_access(dmabuf, direction);
	return ret ?: end;
}

/* With the check for errors that the DMA API asks of everybody. */
int p2m_edu_map_page(struct device *dev, struct page *page, size_t offset,
		     size_t size, int direction, u64 *address)
{
	dma_addr_t mapped = dma_map_page(dev, page, offset, size, direction);

	if (dma_mapping_error(dev, mapped))
		return -EIO;
	*address = mapped;
	return 0;
}
