// SPDX-License-Identifier: GPL-2.0
/*
 * What the helper needs of the kernel and Rust can't reach.
 */
#include <linux/crash_dump.h>
#include <linux/device.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "shim.h"

/* Reads memory that is reserved to this kernel. */
int p2m_helper_read(u64 address, void *to, size_t length)
{
	void *from = memremap(address, length, MEMREMAP_WB);

	if (!from)
		return -ENOMEM;
	memcpy(to, from, length);
	memunmap(from);
	return 0;
}

static int compare(const void *first, const void *second)
{
	const u32 *one = first, *other = second;

	return *one < *other ? -1 : *one > *other;
}

void p2m_helper_sort(u32 *numbers, size_t nr)
{
	sort(numbers, nr, sizeof(*numbers), compare, NULL);
}

static bool (*is_hidden)(unsigned long mfn);

static bool is_ram(struct vmcore_cb *cb, unsigned long pfn)
{
	return !is_hidden(pfn);
}

static struct vmcore_cb vmcore_cb = {
	.pfn_is_ram = is_ram,
};

/* Has frames for which a function says so read as zeroes in /proc/vmcore. */
void p2m_helper_hide(bool (*function)(unsigned long mfn))
{
	is_hidden = function;
	register_vmcore_cb(&vmcore_cb);
}

void p2m_helper_show(void)
{
	unregister_vmcore_cb(&vmcore_cb);
}

/* The operations of a transport, with one of ours. */
struct operations {
	struct virtio_config_ops ops;
	const struct virtio_config_ops *original;
};

/*
 * A device that isn't told of an IOMMU takes addresses for the machine's, and so its
 * queues and buffers don't go through the DMA API: there, nobody bounces. Whether they
 * do is looked up when the queues are made. It's the same to the device, which was told
 * before what its driver wants.
 */
static int find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[],
		    struct virtqueue_info infos[], struct irq_affinity *affinity)
{
	const struct operations *wrapped = container_of(vdev->config, struct operations, ops);

	__virtio_set_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return wrapped->original->find_vqs(vdev, nvqs, vqs, infos, affinity);
}

static int wrap(struct device *device, void *unused)
{
	struct operations *wrapped;
	struct virtio_device *vdev;

	/* The bus itself is not exported. */
	if (!device->bus || strcmp(device->bus->name, "virtio"))
		return 0;
	vdev = dev_to_virtio(device);
	if (vdev->config->find_vqs == find_vqs || device->driver)
		return 0;
	wrapped = kmalloc_obj(*wrapped);
	if (!wrapped)
		return -ENOMEM;
	wrapped->ops = *vdev->config;
	wrapped->ops.find_vqs = find_vqs;
	wrapped->original = vdev->config;
	vdev->config = &wrapped->ops;
	/* From now on, we are called by others that don't know us. */
	__module_get(THIS_MODULE);
	return 0;
}

/*
 * Has the virtio devices below a device, that have no driver yet, use the DMA API as if
 * they were behind an IOMMU.
 */
int p2m_helper_have_dma_mapped(struct device *device)
{
	return device_for_each_child(device, NULL, wrap);
}
