// SPDX-License-Identifier: GPL-2.0
/*
 * DMA by a real device, QEMU's "edu", to and from scattered memory: what takes
 * bus addresses from the kernel moves the right bytes across every boundary, and
 * what takes frames to follow each other is caught, with all of its damage in the
 * guards. It's judged by contents, and by what QEMU says is in the machine's memory.
 *
 * How the guest is set up makes a difference, and is looked at: an IOMMU, bounce
 * buffers, and how many bits the device's bus addresses have ($P2M_EDU_BITS).
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../edu/p2m_edu.h"
#include "kselftest_harness.h"
#include "p2m_util.h"

#define BASE 512UL
#define NR_PAGES 4UL
#define SIZE (NR_PAGES * P2M_PAGE_SIZE)
/* A copy that begins and ends in the middle of pages, and has every boundary. */
#define OFFSET 2048UL
#define LENGTH (SIZE - P2M_PAGE_SIZE)
#define NR_BOUNDARIES (NR_PAGES - 1)
/* What is below this needs no bounce buffer with 28 bits. */
#define LOW_END_MFN (1ULL << (28 - 12))

static bool is_dir_empty(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	bool empty = true;

	while (dir && (entry = readdir(dir)))
		empty &= entry->d_name[0] == '.';
	if (dir)
		closedir(dir);
	return empty;
}

static bool have_iommu(void)
{
	return !is_dir_empty("/sys/class/iommu");
}

static unsigned long read_number(const char *path, const char *format)
{
	FILE *file = fopen(path, "r");
	unsigned long value = 0;

	if (!file)
		return 0;
	if (fscanf(file, format, &value) != 1)
		value = 0;
	fclose(file);
	return value;
}

static bool have_swiotlb(void)
{
	return read_number("/sys/kernel/debug/swiotlb/io_tlb_nslabs", "%lu");
}

/*
 * What the DMA API's debugging has found, on kernels that have it. It must find
 * nothing about the right way, and it doesn't see the naive way.
 */
static unsigned long nr_dma_errors(void)
{
	return read_number("/sys/kernel/debug/dma-api/error_count", "%lu");
}

static unsigned int dma_bits(void)
{
	const char *bits = getenv("P2M_EDU_BITS");

	return bits ? atoi(bits) : 28;
}

static bool find_device(char *name, size_t len)
{
	DIR *dir = opendir("/sys/bus/pci/devices");
	struct dirent *entry;
	bool found = false;
	char path[512];

	while (dir && !found && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vendor",
			 entry->d_name);
		if (read_number(path, "%lx") != 0x1234)
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/device",
			 entry->d_name);
		found = read_number(path, "%lx") == 0x11e8;
		snprintf(name, len, "%s", entry->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Next to the other module. */
static int load_driver(bool damages)
{
	const char *p2m = getenv("P2M_KO");
	char path[512], params[64];
	int fd, ret;

	if (!p2m || strlen(p2m) < strlen("p2m.ko"))
		return -1;
	snprintf(path, sizeof(path), "%.*sp2m_edu.ko",
		 (int)(strlen(p2m) - strlen("p2m.ko")), p2m);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	snprintf(params, sizeof(params), "dma_bits=%u damages=%u", dma_bits(),
		 damages);
	ret = syscall(SYS_finit_module, fd, params, 0);
	close(fd);
	return ret;
}

static int unload_driver(void)
{
	return syscall(SYS_delete_module, "p2m_edu", O_NONBLOCK);
}

FIXTURE(edu) {
	int fd;
	int device;
	int dmabuf;
	unsigned char *mem;
	/* What is in the memory, and what the device is to write or has read. */
	unsigned char *before;
	unsigned char *data;
	__u64 *entries;
	bool bounces;
	bool has_iommu;
	char name[256];
	unsigned long nr_dma_errors;
};

FIXTURE_VARIANT(edu) {
	/* P2M_EDU_USER or none. */
	__u32 source;
};

FIXTURE_VARIANT_ADD(edu, dma_buf) { .source = 0 };
FIXTURE_VARIANT_ADD(edu, pages) { .source = P2M_EDU_USER };

static int export_pages(int fd, __u64 nr_pages)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		.start_pfn = BASE,
		.nr_pages = nr_pages,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	return ioctl(fd, P2M_DMA_BUF_EXPORT, &cmd) ? -1 : cmd.out_fd;
}

FIXTURE_SETUP(edu)
{
	struct p2m_region_create region = {
		.size = sizeof(region),
		.flags = P2M_REGION_FIXED | P2M_REGION_GUARDED,
		.policy = P2M_POLICY_SCATTER,
		.base_pfn = BASE,
		.nr_pages = NR_PAGES,
	};
	struct p2m_info info;
	__u64 i, state = 1;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (!find_device(self->name, sizeof(self->name)))
		SKIP(return, "no edu device (QEMU: -device edu)");
	if (load_driver(true))
		SKIP(return, "no p2m_edu for this kernel");
	self->device = open(P2M_EDU_DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, _test_cmd_info(self->fd, &info));
	self->has_iommu = have_iommu();
	self->nr_dma_errors = nr_dma_errors();
	if (dma_bits() == 28 && !self->has_iommu) {
		self->bounces = have_swiotlb();
		region.flags |= P2M_REGION_RANGE;
		/* What can't be bounced has to be in reach, and what can shall be. */
		region.start_mfn = self->bounces ? LOW_END_MFN : 1;
		region.end_mfn = self->bounces ? info.out_max_mfn : LOW_END_MFN;
	}
	ASSERT_EQ(0, ioctl(self->fd, P2M_REGION_CREATE, &region));
	self->entries = range_to_entries(self->fd, BASE, NR_PAGES);
	ASSERT_NE(NULL, self->entries);
	self->mem = map_pages(self->fd, BASE, NR_PAGES);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	for (i = 0; i < NR_PAGES; i++)
		page_fill(self->mem + i * P2M_PAGE_SIZE, i);
	self->before = malloc(SIZE);
	self->data = malloc(SIZE);
	ASSERT_NE(NULL, self->before);
	ASSERT_NE(NULL, self->data);
	memcpy(self->before, self->mem, SIZE);
	for (i = 0; i < SIZE; i++)
		self->data[i] = next_random(&state) >> 32;
	self->dmabuf = export_pages(self->fd, NR_PAGES);
	ASSERT_LE(0, self->dmabuf);
}

FIXTURE_TEARDOWN(edu)
{
	if (self->device <= 0)
		return;
	close(self->dmabuf);
	close(self->device);
	munmap(self->mem, SIZE);
	close(self->fd);
	free(self->before);
	free(self->data);
	free(self->entries);
	EXPECT_EQ(0, unload_driver());
	EXPECT_EQ(self->nr_dma_errors, nr_dma_errors());
}

static struct p2m_edu_copy make_copy(const FIXTURE_DATA(edu) * self,
				     const FIXTURE_VARIANT(edu) * variant,
				     __u32 flags)
{
	struct p2m_edu_copy copy = {
		.size = sizeof(copy),
		.flags = flags | variant->source,
		.offset = OFFSET,
		.length = LENGTH,
		.data = (uintptr_t)self->data,
	};

	if (variant->source & P2M_EDU_USER)
		copy.offset += (uintptr_t)self->mem;
	else
		copy.fd = self->dmabuf;
	return copy;
}

static struct p2m_guard_check check_guards(struct __test_metadata *_metadata,
					   int fd, __u64 pfn, __u64 nr_pages,
					   __u32 flags)
{
	struct p2m_guard_check check = {
		.size = sizeof(check),
		.flags = flags,
		.start_pfn = pfn,
		.nr_pages = nr_pages,
	};

	ASSERT_EQ(0, ioctl(fd, P2M_GUARD_CHECK, &check));
	ASSERT_EQ(2 * nr_pages, check.out_guards);
	return check;
}

static size_t first_difference(const void *a, const void *b, size_t len)
{
	const unsigned char *x = a, *y = b;
	size_t i;

	for (i = 0; i < len && x[i] == y[i]; i++)
		;
	return i;
}

/* QEMU has in each frame what the mapping shows. */
static void expect_seen_by_qemu(struct __test_metadata *_metadata,
				const FIXTURE_DATA(edu) * self)
{
	unsigned char page[P2M_PAGE_SIZE];
	struct qemu qemu;
	__u64 i;

	if (!qemu_open(&qemu)) {
		TH_LOG("no way to ask QEMU (qemu/guest --monitor)");
		return;
	}
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(qemu_read(&qemu, self->entries[i], page));
		EXPECT_EQ(P2M_PAGE_SIZE,
			  first_difference(page, self->mem + i * P2M_PAGE_SIZE,
					   P2M_PAGE_SIZE))
			TH_LOG("page %llu", i);
	}
	qemu_close(&qemu);
}

/* The bus address is the machine's only where nothing is between them. */
static void expect_bus_address(struct __test_metadata *_metadata,
			       const FIXTURE_DATA(edu) * self, __u64 address)
{
	const __u64 machine = self->entries[0] * P2M_PAGE_SIZE + OFFSET;

	EXPECT_EQ(self->has_iommu || self->bounces, machine != address);
	if (dma_bits() < 64) {
		EXPECT_GT(1ULL << dma_bits(), address);
	}
}

TEST_F(edu, the_right_way_reads_the_right_bytes)
{
	struct p2m_edu_copy copy = make_copy(self, variant, 0);

	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, copy.out_done);
	/* A transfer for the part of each page. */
	EXPECT_EQ(NR_PAGES, copy.out_pieces);
	EXPECT_EQ(NR_PAGES, copy.out_segments);
	EXPECT_EQ(LENGTH, first_difference(self->data, self->before + OFFSET, LENGTH));
	EXPECT_EQ(SIZE, first_difference(self->mem, self->before, SIZE));
	EXPECT_EQ(0, check_guards(_metadata, self->fd, BASE, NR_PAGES, 0).out_broken);
	expect_bus_address(_metadata, self, copy.out_address);
}

TEST_F(edu, the_right_way_writes_the_right_bytes)
{
	struct p2m_edu_copy copy = make_copy(self, variant, P2M_EDU_WRITE);

	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, copy.out_done);
	EXPECT_EQ(NR_PAGES, copy.out_pieces);
	memcpy(self->before + OFFSET, self->data, LENGTH);
	EXPECT_EQ(SIZE, first_difference(self->mem, self->before, SIZE));
	EXPECT_EQ(0, check_guards(_metadata, self->fd, BASE, NR_PAGES, 0).out_broken);
	expect_bus_address(_metadata, self, copy.out_address);
	expect_seen_by_qemu(_metadata, self);
}

/*
 * A naive driver has the bytes up to the boundary right. What it reads beyond is
 * the guard.
 */
TEST_F(edu, the_naive_way_reads_guards)
{
	struct p2m_edu_copy copy = make_copy(self, variant, P2M_EDU_NAIVE);
	const __u64 pattern = P2M_GUARD_PATTERN;
	__u64 i, j;

	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, copy.out_done);
	EXPECT_EQ(NR_BOUNDARIES, copy.out_pieces);
	EXPECT_EQ(0, check_guards(_metadata, self->fd, BASE, NR_PAGES, 0).out_broken);
	expect_bus_address(_metadata, self, copy.out_address);
	if (!variant->source && self->has_iommu) {
		/* It maps a list without gaps: such a driver is right by luck. */
		EXPECT_EQ(LENGTH, first_difference(self->data, self->before + OFFSET,
						   LENGTH));
		return;
	}
	if (!variant->source && self->bounces) {
		/* Each segment is bounced by itself, to wherever there is room. */
		TH_LOG("right up to byte %zu of %lu",
		       first_difference(self->data, self->before + OFFSET, LENGTH),
		       LENGTH);
		return;
	}
	for (i = 0; i < NR_BOUNDARIES; i++) {
		unsigned char *piece = self->data + i * P2M_PAGE_SIZE;

		EXPECT_EQ(OFFSET, first_difference(piece, self->before + OFFSET +
						   i * P2M_PAGE_SIZE, P2M_PAGE_SIZE))
			TH_LOG("boundary %llu", i);
		for (j = OFFSET; j < P2M_PAGE_SIZE; j += sizeof(pattern))
			ASSERT_EQ(0, memcmp(piece + j, &pattern, sizeof(pattern)))
				TH_LOG("boundary %llu, byte %llu", i, j);
	}
}

/* And what it writes beyond is in the guard, all of it. */
TEST_F(edu, the_naive_way_breaks_guards_and_nothing_else)
{
	struct p2m_edu_copy copy = make_copy(self, variant,
					     P2M_EDU_NAIVE | P2M_EDU_WRITE);
	unsigned char page[P2M_PAGE_SIZE];
	struct p2m_guard_check check;
	struct qemu qemu = {};
	bool has_qemu;
	__u64 i, guard;

	if (!variant->source && (self->has_iommu || self->bounces))
		SKIP(return, "there is no guard next to what the device sees");
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, copy.out_done);
	EXPECT_EQ(NR_BOUNDARIES, copy.out_pieces);
	has_qemu = qemu_open(&qemu);
	for (i = 0; i < NR_PAGES; i++) {
		const __u64 here = i * P2M_PAGE_SIZE;
		bool is_broken = i < NR_BOUNDARIES;

		/* The part before the boundary is right, the page behind isn't written. */
		if (is_broken)
			memcpy(self->before + here + OFFSET,
			       self->data + here, P2M_PAGE_SIZE - OFFSET);
		EXPECT_EQ(P2M_PAGE_SIZE, first_difference(self->mem + here,
							  self->before + here,
							  P2M_PAGE_SIZE))
			TH_LOG("page %llu", i);
		check = check_guards(_metadata, self->fd, BASE + i, 1, 0);
		if (!is_broken || !has_qemu)
			continue;
		/* The guard behind the frame has the rest, and nothing more. */
		ASSERT_TRUE(qemu_read(&qemu, self->entries[i] + 1, page));
		EXPECT_EQ(0, memcmp(page, self->data + here + P2M_PAGE_SIZE - OFFSET,
				    OFFSET))
			TH_LOG("guard %llu", i);
		EXPECT_EQ(0, memcmp(page + OFFSET,
				    &(__u64){ P2M_GUARD_PATTERN }, sizeof(__u64)));
		EXPECT_EQ(0, memcmp(page + OFFSET, page + OFFSET + 8,
				    P2M_PAGE_SIZE - OFFSET - 8));
	}
	if (has_qemu)
		qemu_close(&qemu);
	/* It's told where: in the first byte of a guard, on one side of a page. */
	check = check_guards(_metadata, self->fd, BASE, NR_PAGES, P2M_GUARD_REFILL);
	EXPECT_LE(NR_BOUNDARIES, check.out_broken);
	ASSERT_LE(BASE, check.out_pfn);
	ASSERT_GT(BASE + NR_PAGES, check.out_pfn);
	guard = self->entries[check.out_pfn - BASE];
	if (check.out_offset > 0) {
		EXPECT_EQ(P2M_PAGE_SIZE, check.out_offset);
		guard++;
	} else {
		EXPECT_EQ(-(__s64)P2M_PAGE_SIZE, check.out_offset);
		guard--;
	}
	/* The page before it has gone astray, and the value is what was behind there. */
	i = 0;
	while (i < NR_BOUNDARIES && self->entries[i] + 1 != guard)
		i++;
	ASSERT_GT(NR_BOUNDARIES, i);
	EXPECT_EQ(0, memcmp(&check.out_value,
			    self->data + (i + 1) * P2M_PAGE_SIZE - OFFSET,
			    sizeof(check.out_value)));
	EXPECT_EQ(0, check_guards(_metadata, self->fd, BASE, NR_PAGES, 0).out_broken);
}

/* The processor comes in between, while the device has the memory. */
TEST_F(edu, processor_and_device_see_what_the_other_wrote)
{
	struct p2m_edu_copy copy = make_copy(self, variant, P2M_EDU_CPU);
	unsigned char *written;

	if (variant->source)
		SKIP(return, "of dma-bufs only");
	written = malloc(LENGTH);
	ASSERT_NE(NULL, written);
	memcpy(written, self->data, LENGTH);
	/* What the processor writes, the device reads. */
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, first_difference(self->data, written, LENGTH));
	EXPECT_EQ(LENGTH, first_difference(self->mem + OFFSET, written, LENGTH));

	/* What the device writes, the processor reads. */
	memset(self->data, 0x5a, LENGTH);
	copy = make_copy(self, variant, P2M_EDU_CPU | P2M_EDU_WRITE);
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	memset(written, 0x5a, LENGTH);
	EXPECT_EQ(LENGTH, first_difference(self->data, written, LENGTH));
	EXPECT_EQ(LENGTH, first_difference(self->mem + OFFSET, written, LENGTH));
	free(written);
}

/* The frames live until their last user, who is a device here. */
static void *copy_in_background(void *arg)
{
	struct {
		int device;
		struct p2m_edu_copy *copy;
	} *job = arg;

	return (void *)(intptr_t)ioctl(job->device, P2M_EDU_COPY, job->copy);
}

static struct p2m_audit audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit = { .size = sizeof(audit) };

	ASSERT_EQ(0, ioctl(fd, P2M_AUDIT, &audit));
	EXPECT_EQ(0, audit.out_p2m_bad + audit.out_m2p_bad + audit.out_orphans +
			     audit.out_refs_bad + audit.out_spaces_bad +
			     audit.out_count_bad);
	return audit;
}

TEST_F(edu, pages_stay_while_the_device_has_them)
{
	struct p2m_edu_copy copy = make_copy(self, variant, 0);
	struct {
		int device;
		struct p2m_edu_copy *copy;
	} job = { self->device, &copy };
	struct p2m_move move = {
		.size = sizeof(move),
		.start_pfn = BASE,
		.nr_pages = NR_PAGES,
		.policy = P2M_POLICY_ANY,
	};
	pthread_t thread;
	void *ret;

	/* Only the device shall have them. */
	ASSERT_EQ(0, munmap(self->mem, SIZE));
	self->mem = map_pages(self->fd, BASE, NR_PAGES);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	copy = make_copy(self, variant, 0);
	if (variant->source) {
		ASSERT_EQ(0, close(self->dmabuf));
		self->dmabuf = -1;
		EXPECT_EQ(0, audit(_metadata, self->fd).out_pinned);
	}
	ASSERT_EQ(0, pthread_create(&thread, NULL, copy_in_background, &job));
	if (variant->source) {
		while (audit(_metadata, self->fd).out_pinned < NR_PAGES)
			usleep(1000);
	} else {
		usleep(50000);
		/* The driver has the dma-buf by its descriptor only at the beginning. */
		EXPECT_EQ(NR_PAGES, audit(_metadata, self->fd).out_pinned);
	}
	ASSERT_EQ(0, ioctl(self->fd, P2M_MOVE, &move));
	EXPECT_EQ(NR_PAGES, move.out_busy);
	test_cmd_region_destroy(self->fd, BASE);
	ASSERT_EQ(0, pthread_join(thread, &ret));
	EXPECT_EQ(NULL, ret);
	EXPECT_EQ(LENGTH, copy.out_done);
	EXPECT_EQ(LENGTH, first_difference(self->data, self->before + OFFSET, LENGTH));
	audit(_metadata, self->fd);
}

static bool fdinfo_value(int fd, const char *name, char *value, size_t len)
{
	char path[64], line[256];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	while (file && !found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		snprintf(value, len, "%s", line + strlen(name) + 2);
		value[strcspn(value, "\n")] = '\0';
		found = true;
	}
	if (file)
		fclose(file);
	return found;
}

TEST_F(edu, is_known_by_name)
{
	struct p2m_edu_info info = { .size = sizeof(info) };
	struct p2m_edu_copy copy = make_copy(self, variant, 0);
	char value[256];

	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_INFO, &info));
	EXPECT_STREQ(self->name, (char *)info.out_name);
	EXPECT_EQ(dma_bits(), info.out_dma_bits);
	EXPECT_EQ(1, info.out_damages);
	if (variant->source)
		return;
	EXPECT_FALSE(fdinfo_value(self->fd, "p2m-dma-device", value, sizeof(value)));
	copy.length = 1;
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	ASSERT_TRUE(fdinfo_value(self->fd, "p2m-dma-device", value, sizeof(value)));
	EXPECT_STREQ(self->name, value);
	ASSERT_TRUE(fdinfo_value(self->fd, "p2m-dma-ever-attached", value,
				 sizeof(value)));
	EXPECT_STREQ("1", value);
	ASSERT_TRUE(fdinfo_value(self->fd, "p2m-dma-attached", value, sizeof(value)));
	EXPECT_STREQ("0", value);
}

/* One thing is wrong at a time. The device does nothing then. */
TEST_F(edu, what_makes_no_sense_is_refused)
{
	const struct {
		__u32 flags;
		int fd;
		__u64 offset, length, data;
		int error;
	} cases[] = {
		{ 1U << 4, self->dmabuf, 0, 1, 1, EOPNOTSUPP },
		{ 0, self->dmabuf, 0, 0, 1, EINVAL },
		{ 0, self->dmabuf, 0, P2M_EDU_MAX_LENGTH + 1, 1, EINVAL },
		{ 0, self->dmabuf, 1, SIZE, 1, EOVERFLOW },
		{ 0, self->dmabuf, SIZE, 1, 1, EOVERFLOW },
		{ 0, self->dmabuf, ~0ULL, 1, 1, EOVERFLOW },
		{ 0, -1, 0, 1, 1, EBADF },
		{ 0, self->fd, 0, 1, 1, EINVAL },
		{ P2M_EDU_USER, 1, (uintptr_t)self->mem, 1, 1, EINVAL },
		{ P2M_EDU_USER | P2M_EDU_CPU, 0, (uintptr_t)self->mem, 1, 1, EINVAL },
		{ P2M_EDU_USER, 0, 0, 1, 1, EFAULT },
		{ P2M_EDU_USER, 0, ~0ULL, 1, 1, EFAULT },
		{ P2M_EDU_USER, 0, (uintptr_t)self->mem, 1, 0, EFAULT },
		{ P2M_EDU_WRITE, self->dmabuf, 0, 1, 0, EFAULT },
		/* What can't be copied is zeroed. */
		{ P2M_EDU_CPU, self->dmabuf, SIZE - 1, 1, 0, EFAULT },
	};
	struct p2m_edu_copy copy;
	size_t i;

	for (i = 0; i < ARRAY_LEN(cases); i++) {
		copy = (struct p2m_edu_copy){
			.size = sizeof(copy),
			.flags = cases[i].flags,
			.fd = cases[i].fd,
			.offset = cases[i].offset,
			.length = cases[i].length,
			.data = 1,
		};
		if (cases[i].data)
			copy.data = (uintptr_t)self->data;
		ASSERT_EQ(-1, ioctl(self->device, P2M_EDU_COPY, &copy))
			TH_LOG("case %zu", i);
		EXPECT_EQ(cases[i].error, errno) TH_LOG("case %zu", i);
		EXPECT_EQ(0, copy.out_done);
	}
	EXPECT_EQ(-1, ioctl(self->device, P2M_EDU_COPY + 1, &copy));
	EXPECT_EQ(ENOTTY, errno);
	EXPECT_LE(SIZE - 1, first_difference(self->mem, self->before, SIZE));
	EXPECT_EQ(NR_PAGES, audit(_metadata, self->fd).out_pinned);
}

/* Writes that go astray have to be asked for when the module is loaded. */
TEST_F(edu, damages_have_to_be_permitted)
{
	struct p2m_edu_copy copy = make_copy(self, variant,
					     P2M_EDU_NAIVE | P2M_EDU_WRITE);

	ASSERT_EQ(0, close(self->device));
	ASSERT_EQ(0, unload_driver());
	ASSERT_EQ(0, load_driver(false));
	self->device = open(P2M_EDU_DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
	ASSERT_EQ(-1, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, check_guards(_metadata, self->fd, BASE, NR_PAGES, 0).out_broken);
}

TEST_F(edu, may_be_unbound_while_it_is_open)
{
	struct p2m_edu_copy copy = make_copy(self, variant, 0);

	copy.length = 10;
	ASSERT_TRUE(write_text("/sys/bus/pci/drivers/p2m_edu/unbind", self->name));
	ASSERT_EQ(-1, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(ENODEV, errno);
	ASSERT_TRUE(write_text("/sys/bus/pci/drivers/p2m_edu/bind", self->name));
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(10, first_difference(self->data, self->before + OFFSET, 10));
}

/* The driver knows nothing of p2m: it takes other dma-bufs as well. */
TEST_F(edu, takes_buffers_that_are_not_ours)
{
	struct p2m_edu_copy copy = make_copy(self, variant, P2M_EDU_WRITE);
	struct dma_heap_allocation_data heap = {
		.len = SIZE,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int fd = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC);
	unsigned char *mem;

	if (variant->source)
		SKIP(return, "of dma-bufs only");
	if (fd < 0)
		SKIP(return, "no dma-heaps in this kernel");
	if (dma_bits() == 28 && !self->has_iommu && !self->bounces)
		SKIP(return, "it may be out of the device's reach");
	ASSERT_EQ(0, ioctl(fd, DMA_HEAP_IOCTL_ALLOC, &heap));
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, heap.fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)mem);
	copy.fd = heap.fd;
	ASSERT_EQ(0, ioctl(self->device, P2M_EDU_COPY, &copy));
	EXPECT_EQ(LENGTH, first_difference(mem + OFFSET, self->data, LENGTH));
	ASSERT_EQ(0, munmap(mem, SIZE));
	ASSERT_EQ(0, close(heap.fd));
	ASSERT_EQ(0, close(fd));
}

TEST_HARNESS_MAIN
