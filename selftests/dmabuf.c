// SPDX-License-Identifier: GPL-2.0
/*
 * Ranges as dma-bufs: they show the frames that the P2M names, and pin them, from
 * the export to the last user. What is judged by is /proc/self/pagemap. Devices
 * are in edu.c; here one driver of the kernel's own imports.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Two regions next to each other, and a range that has pages of both. */
#define FIRST 512UL
#define NR_FIRST 20UL
#define SECOND (FIRST + NR_FIRST)
#define NR_SECOND 28UL
#define END (SECOND + NR_SECOND)
#define BASE (FIRST + 3)
#define NR_PAGES 40UL
#define SIZE (NR_PAGES * P2M_PAGE_SIZE)

static int _test_cmd_export(int fd, __u64 pfn, __u64 nr_pages, __u32 fd_flags)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		.start_pfn = pfn,
		.nr_pages = nr_pages,
		.fd_flags = fd_flags,
		.out_fd = 12345,
	};

	/* After an error there is no descriptor. */
	if (ioctl(fd, P2M_DMA_BUF_EXPORT, &cmd))
		return cmd.out_fd == -1 || cmd.out_fd == 12345 ? -1 : -2;
	return cmd.out_fd;
}

static int command(int fd, unsigned long nr, void *cmd)
{
	return ioctl(fd, nr, cmd);
}

static void *page_at(void *mem, __u64 page)
{
	return (char *)mem + page * P2M_PAGE_SIZE;
}

/* A line of what the kernel tells about the domain. */
static bool read_fdinfo(int fd, const char *name, char *value, size_t len)
{
	char path[64], line[256];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)) ||
		    line[strlen(name)] != ':')
			continue;
		snprintf(value, len, "%s", line + strlen(name) + 2);
		value[strcspn(value, "\n")] = '\0';
		found = true;
	}
	fclose(file);
	return found;
}

static long fdinfo_number(int fd, const char *name)
{
	char value[32];

	return read_fdinfo(fd, name, value, sizeof(value)) ? atol(value) : -1;
}

FIXTURE(buffer) {
	__u64 baseline;
	int fd;
	int dmabuf;
	/* The domain from FIRST on, and the dma-buf. */
	void *mem;
	void *view;
};

FIXTURE_VARIANT(buffer) {
	__u32 flags;
	__u32 policy;
};

FIXTURE_VARIANT_ADD(buffer, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(buffer, scattered) { .policy = P2M_POLICY_SCATTER };
FIXTURE_VARIANT_ADD(buffer, contiguous) { .policy = P2M_POLICY_CONTIGUOUS };
FIXTURE_VARIANT_ADD(buffer, guarded) {
	.policy = P2M_POLICY_SCATTER,
	.flags = P2M_REGION_GUARDED,
};

static bool has_dma_buf(int fd)
{
	struct p2m_info info;

	return !_test_cmd_info(fd, &info) &&
	       info.out_features & P2M_FEATURE_DMA_BUF;
}

FIXTURE_SETUP(buffer)
{
	__u64 base = FIRST;
	__u64 i;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->baseline = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	if (!has_dma_buf(self->fd)) {
		EXPECT_ERRNO(EOPNOTSUPP,
			     _test_cmd_export(self->fd, BASE, 1, O_RDWR));
		SKIP(return, "no dma-bufs in this kernel");
	}
	ASSERT_EQ(0, _test_cmd_region_create(self->fd, variant->flags | P2M_REGION_FIXED,
					     variant->policy, NR_FIRST, 0, &base));
	base = SECOND;
	ASSERT_EQ(0, _test_cmd_region_create(self->fd, variant->flags | P2M_REGION_FIXED,
					     variant->policy, NR_SECOND, 0, &base));
	self->mem = map_pages(self->fd, FIRST, END - FIRST);
	ASSERT_NE(MAP_FAILED, self->mem);
	for (i = 0; i < END - FIRST; i++)
		page_fill(page_at(self->mem, i), i);
	self->dmabuf = _test_cmd_export(self->fd, BASE, NR_PAGES, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->dmabuf);
	self->view = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			  self->dmabuf, 0);
	ASSERT_NE(MAP_FAILED, self->view);
}

FIXTURE_TEARDOWN(buffer)
{
	if (self->view)
		munmap(self->view, SIZE);
	if (self->dmabuf > 0)
		close(self->dmabuf);
	if (self->mem)
		munmap(self->mem, (END - FIRST) * P2M_PAGE_SIZE);
	if (self->fd > 0)
		close(self->fd);
	EXPECT_EQ(self->baseline, total_pages());
}

#define drop_view(self)                               \
	({                                            \
		ASSERT_EQ(0, munmap((self)->view, SIZE)); \
		(self)->view = NULL;                  \
	})
#define drop_buffer(self)                         \
	({                                        \
		ASSERT_EQ(0, close((self)->dmabuf)); \
		(self)->dmabuf = 0;               \
	})

static struct p2m_audit audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit = { .size = sizeof(audit) };

	ASSERT_EQ(0, command(fd, P2M_AUDIT, &audit));
	EXPECT_EQ(0, audit.out_p2m_bad + audit.out_m2p_bad + audit.out_orphans +
			     audit.out_refs_bad + audit.out_spaces_bad +
			     audit.out_count_bad);
	return audit;
}

TEST_F(buffer, is_as_large_as_the_range)
{
	EXPECT_EQ(SIZE, lseek(self->dmabuf, 0, SEEK_END));
	EXPECT_EQ(FD_CLOEXEC, fcntl(self->dmabuf, F_GETFD));
	EXPECT_EQ(O_RDWR, fcntl(self->dmabuf, F_GETFL) & O_ACCMODE);
}

TEST_F(buffer, shows_the_frames_that_the_p2m_names)
{
	__u64 *entries = range_to_entries(self->fd, BASE, NR_PAGES);
	int pagemap = pagemap_open();
	__u64 i;

	ASSERT_NE(NULL, entries);
	ASSERT_LE(0, pagemap);
	for (i = 0; i < NR_PAGES; i++) {
		char *page = page_at(self->view, i);

		ASSERT_TRUE(page_matches(page, BASE - FIRST + i))
			TH_LOG("page %llu", i);
		ASSERT_EQ(entries[i], pagemap_mfn(pagemap, page));
		/* Both write to the same. */
		page_fill(page, 1000 + i);
		ASSERT_TRUE(page_matches(page_at(self->mem, BASE - FIRST + i),
					 1000 + i));
	}
	free(entries);
	ASSERT_EQ(0, close(pagemap));
}

TEST_F(buffer, has_its_pages_pinned_until_it_is_closed)
{
	struct p2m_contiguous contiguous = {
		.size = sizeof(contiguous),
		.start_pfn = BASE - 3,
		.order = 3,
	};
	struct p2m_exchange exchange = {
		.size = sizeof(exchange),
		.a_pfn = FIRST,
		.b_pfn = SECOND + 5,
		.nr_pages = 4,
	};
	struct p2m_move move = {
		.size = sizeof(move),
		.start_pfn = FIRST,
		.nr_pages = END - FIRST,
		.policy = P2M_POLICY_ANY,
	};
	__u64 *before = range_to_entries(self->fd, BASE, NR_PAGES), *after;

	ASSERT_NE(NULL, before);
	EXPECT_EQ(NR_PAGES, audit(_metadata, self->fd).out_pinned);
	ASSERT_EQ(0, command(self->fd, P2M_MOVE, &move));
	EXPECT_EQ(NR_PAGES, move.out_busy);
	EXPECT_EQ(END - FIRST - NR_PAGES, move.out_pages);
	ASSERT_EQ(0, command(self->fd, P2M_EXCHANGE, &exchange));
	EXPECT_EQ(4, exchange.out_busy);
	if (!(variant->flags & P2M_REGION_GUARDED)) {
		ASSERT_EQ(-1, command(self->fd, P2M_CONTIGUOUS, &contiguous));
		EXPECT_EQ(EBUSY, errno);
		EXPECT_EQ(BASE, contiguous.out_busy_pfn);
	}
	after = range_to_entries(self->fd, BASE, NR_PAGES);
	ASSERT_NE(NULL, after);
	EXPECT_EQ(0, memcmp(before, after, NR_PAGES * sizeof(*after)));

	/* A mapping keeps it as a descriptor does. */
	drop_buffer(self);
	ASSERT_EQ(0, command(self->fd, P2M_MOVE, &move));
	EXPECT_EQ(NR_PAGES, move.out_busy);
	drop_view(self);
	ASSERT_EQ(0, command(self->fd, P2M_MOVE, &move));
	EXPECT_EQ(0, move.out_busy);
	EXPECT_EQ(END - FIRST, move.out_pages);
	EXPECT_EQ(0, audit(_metadata, self->fd).out_pinned);
	free(before);
	free(after);
}

TEST_F(buffer, keeps_pages_that_were_released)
{
	struct p2m_release release = {
		.size = sizeof(release),
		.start_pfn = BASE,
		.nr_pages = 10,
	};
	struct p2m_populate populate = {
		.size = sizeof(populate),
		.start_pfn = BASE,
		.nr_pages = 10,
	};
	__u64 i;

	ASSERT_EQ(0, command(self->fd, P2M_RELEASE, &release));
	EXPECT_EQ(10, release.out_pages);
	EXPECT_EQ(NR_PAGES - 10, audit(_metadata, self->fd).out_pinned);
	EXPECT_EQ(SIGBUS, touch_read(page_at(self->mem, BASE - FIRST)));
	ASSERT_EQ(0, command(self->fd, P2M_POPULATE, &populate));
	EXPECT_EQ(10, populate.out_pages);
	/* What comes then is another page, and the old one is still the dma-buf's. */
	for (i = 0; i < 10; i++) {
		EXPECT_EQ(P2M_PAGE_SIZE,
			  first_nonzero(page_at(self->mem, BASE - FIRST + i),
					P2M_PAGE_SIZE));
		EXPECT_TRUE(page_matches(page_at(self->view, i), BASE - FIRST + i));
	}
	audit(_metadata, self->fd);
}

TEST_F(buffer, outlives_its_regions_and_its_domain)
{
	int other = p2m_open();
	struct p2m_stat stat;
	__u64 i;

	ASSERT_LE(0, other);
	test_cmd_stat(other, &stat);
	EXPECT_LE(END - FIRST + NR_PAGES, stat.out_total_pages - self->baseline);
	test_cmd_region_destroy(self->fd, FIRST);
	EXPECT_EQ(SIGBUS, touch_read(page_at(self->mem, BASE - FIRST)));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_matches(page_at(self->view, i), BASE - FIRST + i));
	test_cmd_region_destroy(self->fd, SECOND);
	ASSERT_EQ(0, munmap(self->mem, (END - FIRST) * P2M_PAGE_SIZE));
	self->mem = NULL;
	ASSERT_EQ(0, close(self->fd));
	self->fd = 0;
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_matches(page_at(self->view, i), BASE - FIRST + i));
	/* They are still somebody's, and counted. */
	test_cmd_stat(other, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_total_pages - self->baseline);
	drop_view(self);
	test_cmd_stat(other, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_total_pages - self->baseline);
	drop_buffer(self);
	test_cmd_stat(other, &stat);
	EXPECT_EQ(0, stat.out_total_pages - self->baseline);
	ASSERT_EQ(0, close(other));
}

TEST_F(buffer, can_be_exported_many_times)
{
	int fds[50];
	size_t i;

	for (i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = _test_cmd_export(self->fd, BASE + i % 7, NR_PAGES - 7,
					  O_RDWR);
		ASSERT_LE(0, fds[i]);
	}
	EXPECT_EQ(1 + ARRAY_LEN(fds), fdinfo_number(self->fd, "p2m-dma-bufs"));
	EXPECT_EQ(NR_PAGES, audit(_metadata, self->fd).out_pinned);
	for (i = 0; i < ARRAY_LEN(fds); i++)
		ASSERT_EQ(0, close(fds[i]));
	EXPECT_EQ(1, fdinfo_number(self->fd, "p2m-dma-bufs"));
	EXPECT_EQ(0, fdinfo_number(self->fd, "p2m-dma-attached"));
}

TEST_F(buffer, can_be_synchronised)
{
	static const __u64 accesses[] = { DMA_BUF_SYNC_READ, DMA_BUF_SYNC_WRITE,
					  DMA_BUF_SYNC_RW };
	struct dma_buf_sync sync;
	size_t i;

	for (i = 0; i < ARRAY_LEN(accesses); i++) {
		sync.flags = accesses[i] | DMA_BUF_SYNC_START;
		EXPECT_EQ(0, ioctl(self->dmabuf, DMA_BUF_IOCTL_SYNC, &sync));
		sync.flags = accesses[i] | DMA_BUF_SYNC_END;
		EXPECT_EQ(0, ioctl(self->dmabuf, DMA_BUF_IOCTL_SYNC, &sync));
	}
	EXPECT_TRUE(page_matches(self->view, BASE - FIRST));
}

TEST_F(buffer, mappings_are_shared_and_within_it)
{
	const size_t part = 5 * P2M_PAGE_SIZE;
	void *view;
	pid_t pid;
	int status;

	EXPECT_EQ(MAP_FAILED, mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE,
				   self->dmabuf, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, SIZE + P2M_PAGE_SIZE, PROT_READ,
				   MAP_SHARED, self->dmabuf, 0));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, part, PROT_READ, MAP_SHARED,
				   self->dmabuf, SIZE - part + P2M_PAGE_SIZE));

	view = mmap(NULL, part, PROT_READ, MAP_SHARED, self->dmabuf, SIZE - part);
	ASSERT_NE(MAP_FAILED, view);
	EXPECT_TRUE(page_matches(view, BASE - FIRST + NR_PAGES - 5));
	EXPECT_EQ(SIGSEGV, touch_write(view, 1));
	EXPECT_EQ(MAP_FAILED, mremap(view, part, part + P2M_PAGE_SIZE,
				     MREMAP_MAYMOVE));
	/* What was thrown out of the page tables comes again. */
	ASSERT_EQ(0, madvise(view, part, MADV_DONTNEED));
	EXPECT_TRUE(page_matches(view, BASE - FIRST + NR_PAGES - 5));
	ASSERT_EQ(0, munmap(view, part));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		page_fill(page_at(self->view, 1), 77);
		_exit(!page_matches(page_at(self->view, 2), BASE - FIRST + 2));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(page_matches(page_at(self->view, 1), 77));
}

TEST_F(buffer, is_only_read_if_so_exported)
{
	int fd = _test_cmd_export(self->fd, BASE, 2, O_RDONLY);
	void *view;

	ASSERT_LE(0, fd);
	EXPECT_EQ(0, fcntl(fd, F_GETFD));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	view = mmap(NULL, P2M_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, view);
	EXPECT_TRUE(page_matches(view, BASE - FIRST));
	EXPECT_EQ(-1, mprotect(view, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, munmap(view, P2M_PAGE_SIZE));
	ASSERT_EQ(0, close(fd));
}

/* What a processor walks nobody else may write to. */
TEST_F(buffer, has_no_tables_of_spaces)
{
	int fd;

	/* A page that is pinned can't become one. */
	test_err_space_create(EBUSY, self->fd, "p2m", 4, BASE, 8);
	drop_view(self);
	drop_buffer(self);
	test_cmd_space_create(self->fd, "p2m", 4, BASE, 8);
	EXPECT_ERRNO(EFAULT, _test_cmd_export(self->fd, BASE, NR_PAGES, O_RDWR));
	EXPECT_ERRNO(EFAULT, _test_cmd_export(self->fd, BASE - 1, 2, O_RDWR));
	fd = _test_cmd_export(self->fd, BASE + 8, NR_PAGES - 8, O_RDWR);
	EXPECT_LE(0, fd);
	ASSERT_EQ(0, close(fd));
}

/* Frames of another domain, which has given them back meanwhile. */
TEST_F(buffer, can_be_of_foreign_frames)
{
	__u64 frames[4] = { BASE, BASE + 30, BASE + 7, BASE + 8 }, base = 0, i;
	__s32 errors[4];
	struct p2m_foreign_map map = {
		.size = sizeof(map),
		.fd = self->fd,
		.nr = 4,
		.frames = (uintptr_t)frames,
		.errors = (uintptr_t)errors,
	};
	int fd = p2m_open(), dmabuf;
	void *view;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, _test_cmd_region_create(fd, P2M_REGION_ON_DEMAND,
					     P2M_POLICY_ANY, 4, 0, &base));
	map.start_pfn = base;
	ASSERT_EQ(0, command(fd, P2M_FOREIGN_MAP, &map));
	ASSERT_EQ(4, map.out_nr);
	dmabuf = _test_cmd_export(fd, base, 4, O_RDWR);
	ASSERT_LE(0, dmabuf);
	ASSERT_EQ(0, close(fd));
	test_cmd_region_destroy(self->fd, SECOND);
	view = mmap(NULL, 4 * P2M_PAGE_SIZE, PROT_READ, MAP_SHARED, dmabuf, 0);
	ASSERT_NE(MAP_FAILED, view);
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(page_matches(page_at(view, i), frames[i] - FIRST));
	ASSERT_EQ(0, munmap(view, 4 * P2M_PAGE_SIZE));
	ASSERT_EQ(0, close(dmabuf));
}

TEST_F(buffer, ranges_are_populated_and_flags_known)
{
	static const struct {
		__u64 pfn, nr_pages;
		__u32 fd_flags;
		int error;
	} cases[] = {
		{ BASE, 0, O_RDWR, EINVAL },
		{ BASE, 1, O_ACCMODE, EINVAL },
		{ BASE, 1, O_RDWR | O_NONBLOCK, EINVAL },
		{ BASE, 1, O_RDWR | 1U << 31, EINVAL },
		{ FIRST - 1, 2, O_RDWR, ENOENT },
		{ END - 1, 2, O_RDWR, ENOENT },
		{ 0, 1, O_RDWR, ENOENT },
		{ P2M_MAX_PFN, 1, O_RDWR, EOVERFLOW },
		{ BASE, ~0ULL, O_RDWR, EOVERFLOW },
		{ BASE, P2M_MAX_PFN - BASE + 1, O_RDWR, EOVERFLOW },
		{ FIRST, END - FIRST, O_RDWR, EFAULT },
	};
	struct p2m_release release = {
		.size = sizeof(release),
		.start_pfn = END - 1,
		.nr_pages = 1,
	};
	struct snapshot snap;
	size_t i;

	ASSERT_EQ(0, command(self->fd, P2M_RELEASE, &release));
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(cases); i++) {
		ASSERT_EQ(-1, _test_cmd_export(self->fd, cases[i].pfn,
					       cases[i].nr_pages,
					       cases[i].fd_flags))
			TH_LOG("case %zu", i);
		EXPECT_EQ(cases[i].error, errno) TH_LOG("case %zu", i);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	EXPECT_EQ(1, fdinfo_number(self->fd, "p2m-dma-bufs"));
}

TEST_F(buffer, needs_a_descriptor)
{
	struct rlimit limit, old;
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	limit = old;
	limit.rlim_cur = 3;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(-1, _test_cmd_export(self->fd, BASE, 1, O_RDWR));
	EXPECT_EQ(EMFILE, errno);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	EXPECT_EQ(1, fdinfo_number(self->fd, "p2m-dma-bufs"));
}

/* Pages that are kept would escape the limits otherwise. */
TEST(pages_count_once_more)
{
	struct rlimit limit = { 30 * P2M_PAGE_SIZE, 30 * P2M_PAGE_SIZE };
	struct stat st;
	pid_t pid;
	int status;

	if (stat(P2M_DEVICE, &st))
		SKIP(return, "no " P2M_DEVICE);
	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		__u64 base = 0;
		int fd, dmabuf;

		if (setrlimit(RLIMIT_MEMLOCK, &limit) || drop_privileges())
			_exit(1);
		fd = p2m_open();
		if (fd < 0)
			_exit(2);
		if (!has_dma_buf(fd))
			_exit(0);
		if (_test_cmd_region_create(fd, 0, P2M_POLICY_ANY, 20, 0, &base))
			_exit(3);
		if (_test_cmd_export(fd, base, 11, O_RDWR) >= 0 || errno != ENOMEM)
			_exit(4);
		/* Who has no rights may export, too. */
		dmabuf = _test_cmd_export(fd, base, 10, O_RDWR);
		if (dmabuf < 0)
			_exit(5);
		if (_test_cmd_region_destroy(fd, base))
			_exit(6);
		if (!_test_cmd_region_create(fd, 0, P2M_POLICY_ANY, 21, 0, &base) ||
		    errno != ENOMEM)
			_exit(7);
		if (_test_cmd_region_create(fd, 0, P2M_POLICY_ANY, 20, 0, &base))
			_exit(8);
		if (_test_cmd_region_destroy(fd, base) || close(dmabuf))
			_exit(9);
		if (_test_cmd_region_create(fd, 0, P2M_POLICY_ANY, 30, 0, &base))
			_exit(10);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, chmod(P2M_DEVICE, st.st_mode & 07777));
	EXPECT_EQ(0, status);
}

/*
 * The importer of the kernel's own that a virtual machine has a device for:
 * zero-copy receive of io_uring. It attaches the network device to the dma-buf,
 * has it mapped, looks whether the segments are all of it, and then finds that
 * the device has no queues for it. linux/io_uring.h of Debian 13 is older.
 */
struct ring_params {
	__u32 sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle;
	__u32 features, wq_fd, resv[3];
	__u64 offsets[10];
};

struct zcrx_area {
	__u64 addr, len, rq_area_token;
	__u32 flags, dmabuf_fd;
	__u64 resv[2];
};

struct zcrx_region {
	__u64 user_addr, size;
	__u32 flags, id;
	__u64 mmap_offset, resv[4];
};

struct zcrx_reg {
	__u32 if_idx, if_rxq, rq_entries, flags;
	__u64 area_ptr, region_ptr;
	__u32 head, tail, rqes, resv2;
	__u64 resv3[2];
	__u32 zcrx_id, rx_buf_len;
	__u64 event_desc, resv[2];
};

#define RING_CQE32 (1U << 11)
#define RING_SINGLE_ISSUER (1U << 12)
#define RING_DEFER_TASKRUN (1U << 13)
#define REGISTER_ZCRX_IFQ 32
#define ZCRX_AREA_DMABUF 1

/* A network device that is a PCI device's, and the name of that. */
static unsigned int find_interface(char *device, size_t len)
{
	DIR *dir = opendir("/sys/class/net");
	unsigned int index = 0;
	struct dirent *entry;

	while (dir && !index && (entry = readdir(dir))) {
		char path[512], target[512];
		ssize_t n;

		snprintf(path, sizeof(path), "/sys/class/net/%s/device",
			 entry->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		if (n < 0)
			continue;
		target[n] = '\0';
		/* Of a virtio device it's the parent that does DMA. */
		if (strstr(target, "virtio"))
			continue;
		snprintf(device, len, "%s", strrchr(target, '/') + 1);
		index = if_nametoindex(entry->d_name);
	}
	if (dir)
		closedir(dir);
	return index;
}

static int register_zcrx(int ring, unsigned int index, int dmabuf, __u64 len)
{
	struct zcrx_area area = {
		.len = len,
		.flags = ZCRX_AREA_DMABUF,
		.dmabuf_fd = dmabuf,
	};
	struct zcrx_region region = { .size = 16 * P2M_PAGE_SIZE };
	struct zcrx_reg reg = {
		.if_idx = index,
		.rq_entries = 16,
		.area_ptr = (uintptr_t)&area,
		.region_ptr = (uintptr_t)&region,
	};

	return syscall(__NR_io_uring_register, ring, REGISTER_ZCRX_IFQ, &reg, 1);
}

TEST_F(buffer, is_imported_by_a_driver_that_is_not_ours)
{
	struct ring_params params = {
		.flags = RING_CQE32 | RING_SINGLE_ISSUER | RING_DEFER_TASKRUN,
	};
	char device[256], attached[256];
	unsigned int index, tries;
	long nr;
	int ring;

	if (system("modprobe -q vmxnet3"))
		SKIP(return, "no vmxnet3 in this kernel");
	/* It takes a moment to be there. */
	for (tries = 0; tries < 50; tries++) {
		index = find_interface(device, sizeof(device));
		if (index)
			break;
		usleep(20000);
	}
	if (!index)
		SKIP(return, "no network device (QEMU: -device vmxnet3)");
	ring = syscall(__NR_io_uring_setup, 8, &params);
	if (ring < 0)
		SKIP(return, "no io_uring");
	/* Half of it isn't what the segments add up to. */
	ASSERT_EQ(-1, register_zcrx(ring, index, self->dmabuf, SIZE / 2));
	if (errno == EINVAL && !fdinfo_number(self->fd, "p2m-dma-ever-attached"))
		SKIP(return, "no zero-copy receive in this kernel");
	EXPECT_EQ(EINVAL, errno);
	nr = fdinfo_number(self->fd, "p2m-dma-ever-attached");
	EXPECT_EQ(1, nr);
	EXPECT_EQ(-1, register_zcrx(ring, index, self->dmabuf, SIZE));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_EQ(nr + 1, fdinfo_number(self->fd, "p2m-dma-ever-attached"));
	ASSERT_TRUE(read_fdinfo(self->fd, "p2m-dma-device", attached,
				sizeof(attached)));
	EXPECT_STREQ(device, attached);
	/* It is gone when its last work is done. */
	ASSERT_EQ(0, close(ring));
	for (tries = 0; tries < 250; tries++) {
		if (!fdinfo_number(self->fd, "p2m-dma-attached"))
			break;
		usleep(20000);
	}
	EXPECT_EQ(0, fdinfo_number(self->fd, "p2m-dma-attached"));
	audit(_metadata, self->fd);
}

TEST_HARNESS_MAIN
