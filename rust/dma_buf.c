// SPDX-License-Identifier: GPL-2.0
/*
 * Pages as a dma-buf: what the framework calls, none of which Rust has bindings
 * for. Where pages come from and what they cost is decided in rust/dma_buf.rs.
 *
 * The pages belong to an owner, who keeps them from the export to the release:
 * they have the same frames all the time, whoever is attached.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dma_buf.h"

#ifdef CONFIG_DMA_SHARED_BUFFER

MODULE_IMPORT_NS("DMA_BUF");

/**
 * struct p2m_dma_buf - what is exported
 * @pages: the owner's pages
 * @nr_pages: number of them, not 0
 * @owner: of the pages; ours until the release
 * @lock: taken inside the dma-buf's reservation lock
 * @mappings: for devices, see struct p2m_dma_mapping
 */
struct p2m_dma_buf {
	struct page **pages;
	unsigned int nr_pages;
	void *owner;
	struct mutex lock; /* of @mappings */
	struct list_head mappings;
};

/**
 * struct p2m_dma_mapping - the pages as a device sees them
 * @node: in the list of the dma-buf
 * @sgt: segments and their bus addresses
 * @dev: the device
 * @direction: of its transfers
 */
struct p2m_dma_mapping {
	struct list_head node;
	struct sg_table sgt;
	struct device *dev;
	enum dma_data_direction direction;
};

static int p2m_dma_buf_attach(struct dma_buf *dmabuf,
			      struct dma_buf_attachment *attachment)
{
	struct p2m_dma_buf *buf = dmabuf->priv;

	p2m_dma_buf_attached(buf->owner, dev_name(attachment->dev));
	return 0;
}

static void p2m_dma_buf_detach(struct dma_buf *dmabuf,
			       struct dma_buf_attachment *attachment)
{
	struct p2m_dma_buf *buf = dmabuf->priv;

	p2m_dma_buf_detached(buf->owner);
}

/* The largest segment of whole pages that a device takes. */
static unsigned int p2m_dma_max_segment(struct device *dev)
{
	size_t size = min_t(size_t, dma_get_max_seg_size(dev),
			    dma_max_mapping_size(dev));

	return max_t(size_t, min_t(size_t, size, UINT_MAX) & PAGE_MASK,
		     PAGE_SIZE);
}

static struct sg_table *p2m_dma_buf_map(struct dma_buf_attachment *attachment,
					enum dma_data_direction direction)
{
	struct p2m_dma_buf *buf = attachment->dmabuf->priv;
	struct p2m_dma_mapping *mapping;
	int ret;

	mapping = kzalloc_obj(*mapping);
	if (!mapping)
		return ERR_PTR(-ENOMEM);
	mapping->dev = attachment->dev;
	mapping->direction = direction;
	/* Pages are machine frames: those that are neighbours really are. */
	ret = sg_alloc_table_from_pages_segment(&mapping->sgt, buf->pages,
						buf->nr_pages, 0,
						(unsigned long)buf->nr_pages <<
							PAGE_SHIFT,
						p2m_dma_max_segment(mapping->dev),
						GFP_KERNEL);
	if (ret)
		goto err_free;
	ret = dma_map_sgtable(mapping->dev, &mapping->sgt, direction, 0);
	if (ret)
		goto err_table;

	mutex_lock(&buf->lock);
	list_add(&mapping->node, &buf->mappings);
	mutex_unlock(&buf->lock);
	return &mapping->sgt;

err_table:
	sg_free_table(&mapping->sgt);
err_free:
	kfree(mapping);
	return ERR_PTR(ret);
}

static void p2m_dma_buf_unmap(struct dma_buf_attachment *attachment,
			      struct sg_table *sgt,
			      enum dma_data_direction direction)
{
	struct p2m_dma_mapping *mapping =
		container_of(sgt, struct p2m_dma_mapping, sgt);
	struct p2m_dma_buf *buf = attachment->dmabuf->priv;

	mutex_lock(&buf->lock);
	list_del(&mapping->node);
	mutex_unlock(&buf->lock);
	dma_unmap_sgtable(mapping->dev, sgt, direction, 0);
	sg_free_table(sgt);
	kfree(mapping);
}

/* What is to be synchronised of a mapping, given what the processor does. */
static enum dma_data_direction
p2m_dma_sync_direction(const struct p2m_dma_mapping *mapping,
		       enum dma_data_direction direction)
{
	return mapping->direction == DMA_BIDIRECTIONAL ? direction :
							 mapping->direction;
}

static int p2m_dma_buf_begin_cpu_access(struct dma_buf *dmabuf,
					enum dma_data_direction direction)
{
	struct p2m_dma_buf *buf = dmabuf->priv;
	struct p2m_dma_mapping *mapping;

	mutex_lock(&buf->lock);
	list_for_each_entry(mapping, &buf->mappings, node)
		dma_sync_sgtable_for_cpu(mapping->dev, &mapping->sgt,
					 p2m_dma_sync_direction(mapping,
								direction));
	mutex_unlock(&buf->lock);
	return 0;
}

static int p2m_dma_buf_end_cpu_access(struct dma_buf *dmabuf,
				      enum dma_data_direction direction)
{
	struct p2m_dma_buf *buf = dmabuf->priv;
	struct p2m_dma_mapping *mapping;

	mutex_lock(&buf->lock);
	list_for_each_entry(mapping, &buf->mappings, node)
		dma_sync_sgtable_for_device(mapping->dev, &mapping->sgt,
					    p2m_dma_sync_direction(mapping,
								   direction));
	mutex_unlock(&buf->lock);
	return 0;
}

static vm_fault_t p2m_dma_buf_fault(struct vm_fault *vmf)
{
	struct p2m_dma_buf *buf = vmf->vma->vm_private_data;

	if (vmf->pgoff >= buf->nr_pages)
		return VM_FAULT_SIGBUS;
	return vmf_insert_page(vmf->vma, vmf->address, buf->pages[vmf->pgoff]);
}

static const struct vm_operations_struct p2m_dma_buf_vm_ops = {
	.fault = p2m_dma_buf_fault,
};

/* A mapping has a reference to the file of the dma-buf. */
static int p2m_dma_buf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	vma->vm_ops = &p2m_dma_buf_vm_ops;
	vma->vm_private_data = dmabuf->priv;
	/* Pages with reference counts, as in a mapping of the domain. */
	vm_flags_set(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP);
	return 0;
}

static int p2m_dma_buf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct p2m_dma_buf *buf = dmabuf->priv;
	void *vaddr = vmap(buf->pages, buf->nr_pages, VM_MAP, PAGE_KERNEL);

	if (!vaddr)
		return -ENOMEM;
	iosys_map_set_vaddr(map, vaddr);
	return 0;
}

static void p2m_dma_buf_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	vunmap(map->vaddr);
}

static void p2m_dma_buf_release(struct dma_buf *dmabuf)
{
	struct p2m_dma_buf *buf = dmabuf->priv;

	p2m_dma_buf_released(buf->owner);
	kfree(buf);
}

static const struct dma_buf_ops p2m_dma_buf_ops = {
	.attach = p2m_dma_buf_attach,
	.detach = p2m_dma_buf_detach,
	.map_dma_buf = p2m_dma_buf_map,
	.unmap_dma_buf = p2m_dma_buf_unmap,
	.begin_cpu_access = p2m_dma_buf_begin_cpu_access,
	.end_cpu_access = p2m_dma_buf_end_cpu_access,
	.mmap = p2m_dma_buf_mmap,
	.vmap = p2m_dma_buf_vmap,
	.vunmap = p2m_dma_buf_vunmap,
	.release = p2m_dma_buf_release,
};

bool p2m_dma_buf_is_supported(void)
{
	return true;
}

/*
 * Exports pages, and returns a descriptor, or what went wrong. On success the
 * owner is the dma-buf's, and is told when it is released; it keeps the array
 * until then.
 */
int p2m_dma_buf_export(struct page **pages, unsigned int nr_pages, int fd_flags,
		       void *owner)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct p2m_dma_buf *buf;
	struct dma_buf *dmabuf;
	int fd;

	buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);
	if (!buf)
		return -ENOMEM;
	buf->pages = pages;
	buf->nr_pages = nr_pages;
	buf->owner = owner;
	mutex_init(&buf->lock);
	INIT_LIST_HEAD(&buf->mappings);

	/* What may fail comes first: once it's exported, it's released. */
	fd = get_unused_fd_flags(fd_flags & O_CLOEXEC);
	if (fd < 0)
		goto err_free;
	info.ops = &p2m_dma_buf_ops;
	info.size = (size_t)nr_pages << PAGE_SHIFT;
	info.flags = fd_flags & O_ACCMODE;
	info.priv = buf;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		put_unused_fd(fd);
		fd = PTR_ERR(dmabuf);
		goto err_free;
	}
	fd_install(fd, dmabuf->file);
	return fd;

err_free:
	kfree(buf);
	return fd;
}

#else /* !CONFIG_DMA_SHARED_BUFFER */

bool p2m_dma_buf_is_supported(void)
{
	return false;
}

int p2m_dma_buf_export(struct page **pages, unsigned int nr_pages, int fd_flags,
		       void *owner)
{
	return -EOPNOTSUPP;
}

#endif /* CONFIG_DMA_SHARED_BUFFER */
