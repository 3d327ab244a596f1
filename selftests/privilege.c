// SPDX-License-Identifier: GPL-2.0
/*
 * Machine frame numbers are for openers with CAP_SYS_ADMIN. Everybody else who
 * may open the device has all the rest.
 *
 * As with /proc/pid/pagemap it is the opener that counts: who passes a
 * descriptor on passes the sight on, and root sees no more through a
 * descriptor that somebody else opened.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define BASE_PFN 1000ULL
#define NR_PAGES 600ULL
#define LEN (NR_PAGES * P2M_PAGE_SIZE)

FIXTURE(opener)
{
	int fd;
	/* The device node's, to be restored. */
	mode_t mode;
	bool changed;
};

FIXTURE_VARIANT(opener)
{
	/* Opens the device, and makes the test process what it is to be. */
	int (*open)(void);
	bool sees_mfns;
	__u32 policy;
};

static int open_as_root(void)
{
	return p2m_open();
}

static int open_as_nobody(void)
{
	return drop_privileges() ? -1 : p2m_open();
}

static int open_as_root_and_drop(void)
{
	int fd = p2m_open();

	return drop_privileges() ? -1 : fd;
}

FIXTURE_VARIANT_ADD(opener, root)
{
	.open = open_as_root,
	.sees_mfns = true,
	.policy = P2M_POLICY_SCATTER,
};

FIXTURE_VARIANT_ADD(opener, nobody)
{
	.open = open_as_nobody,
	.policy = P2M_POLICY_SCATTER,
};

FIXTURE_VARIANT_ADD(opener, nobody_contiguous)
{
	.open = open_as_nobody,
	.policy = P2M_POLICY_CONTIGUOUS,
};

/* A descriptor of root's, used by nobody. */
FIXTURE_VARIANT_ADD(opener, root_then_nobody)
{
	.open = open_as_root_and_drop,
	.sees_mfns = true,
	.policy = P2M_POLICY_SCATTER,
};

/* A descriptor of nobody's, used by root. */
FIXTURE_VARIANT_ADD(opener, nobody_then_root)
{
	.open = p2m_open_unprivileged,
	.policy = P2M_POLICY_SCATTER,
};

FIXTURE_SETUP(opener)
{
	struct stat st;

	if (stat(P2M_DEVICE, &st))
		SKIP(return, "no " P2M_DEVICE);
	if (geteuid())
		SKIP(return, "must be root to become somebody else");
	self->mode = st.st_mode & 07777;
	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	self->changed = true;
	self->fd = variant->open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, variant->policy, NR_PAGES, 0,
				     BASE_PFN);
}

/* The test process may not have the right to. */
FIXTURE_TEARDOWN_PARENT(opener)
{
	if (self->changed) {
		EXPECT_EQ(0, chmod(P2M_DEVICE, self->mode));
	}
}

/* An entry that says that there is a page, but not which frame. */
static bool is_masked(__u64 entry)
{
	return entry != P2M_ENTRY_INVALID && !(entry & P2M_ENTRY_MFN_MASK);
}

/* What must be true of the entry of a page. */
static bool is_as_expected(const FIXTURE_VARIANT(opener) * variant, __u64 entry)
{
	if (variant->sees_mfns)
		return entry != P2M_ENTRY_INVALID && entry;
	return is_masked(entry);
}

TEST_F(opener, device_is_for_root_unless_told_otherwise)
{
	EXPECT_EQ(0600, self->mode);
}

TEST_F(opener, info_and_header)
{
	const volatile struct p2m_header *header;
	struct p2m_info info;

	test_cmd_info(self->fd, &info);
	EXPECT_EQ(variant->sees_mfns,
		  !!(info.out_features & P2M_FEATURE_MFN_VISIBLE));
	EXPECT_EQ(variant->sees_mfns, !!info.out_max_mfn);
	header = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, header);
	EXPECT_EQ(variant->sees_mfns, !!header->end_mfn);
	EXPECT_EQ(P2M_ABI_VERSION, header->abi_version);
	EXPECT_LE(BASE_PFN + NR_PAGES, header->end_pfn);
}

TEST_F(opener, translate)
{
	__u64 *entries = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	__u64 i;

	ASSERT_NE(NULL, entries);
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(is_as_expected(variant, entries[i]))
			TH_LOG("entry %#llx", entries[i]);
	}
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, BASE_PFN - 1));
	free(entries);
}

TEST_F(opener, reading)
{
	__u64 entries[NR_PAGES];
	__u64 i;

	ASSERT_EQ(sizeof(entries), pread(self->fd, entries, sizeof(entries),
					 BASE_PFN * 8));
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(is_as_expected(variant, entries[i]))
			TH_LOG("entry %#llx", entries[i]);
	}
	ASSERT_EQ(8, pread(self->fd, entries, 8, 0));
	EXPECT_EQ(P2M_ENTRY_INVALID, entries[0]);
}

TEST_F(opener, runs)
{
	struct p2m_run *runs = calloc(NR_PAGES + 2, sizeof(*runs));
	__u64 pfn = BASE_PFN - 1, next;
	__u32 nr, i;

	ASSERT_NE(NULL, runs);
	test_cmd_runs(self->fd, pfn, NR_PAGES + 2, runs, NR_PAGES + 2, &nr,
		      &next);
	EXPECT_EQ(BASE_PFN + NR_PAGES + 1, next);
	ASSERT_LE(3, nr);
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(pfn, runs[i].pfn);
		pfn += runs[i].nr_pages;
		if (i == 0 || i == nr - 1) {
			ASSERT_EQ(P2M_ENTRY_INVALID, runs[i].entry);
			ASSERT_EQ(1, runs[i].nr_pages);
		} else {
			ASSERT_TRUE(is_as_expected(variant, runs[i].entry));
		}
	}
	EXPECT_EQ(next, pfn);
	free(runs);
}

TEST_F(opener, m2p)
{
	__u64 frame = variant->sees_mfns ? pfn_to_entry(self->fd, BASE_PFN) : 1;
	__u64 pfn = 0x1234;

	if (variant->sees_mfns) {
		test_cmd_translate(self->fd, P2M_TRANSLATE_M2P, &frame, &pfn,
				   1);
		EXPECT_EQ(BASE_PFN, pfn);
		return;
	}
	test_err_translate(EPERM, self->fd, P2M_TRANSLATE_M2P, &frame, &pfn, 1);
	EXPECT_EQ(0x1234, pfn);
	/* Not even the question about nothing. */
	test_err_translate(EPERM, self->fd, P2M_TRANSLATE_M2P, &frame, &pfn, 0);
}

TEST_F(opener, table_views)
{
	static const __u64 offsets[] = { P2M_OFFSET_P2M, P2M_OFFSET_M2P };
	size_t i;

	for (i = 0; i < ARRAY_LEN(offsets); i++) {
		void *mem = map_window(self->fd, offsets[i], P2M_PAGE_SIZE);

		if (variant->sees_mfns) {
			EXPECT_NE(MAP_FAILED, mem);
		} else {
			EXPECT_EQ(MAP_FAILED, mem);
			EXPECT_EQ(EPERM, errno);
		}
	}
	if (!variant->sees_mfns) {
		/* Nor by way of a mapping that may be had. */
		char *mem = map_pages(self->fd, P2M_MAX_PFN - 1, 1);
		char *header = map_window(self->fd, P2M_OFFSET_HEADER,
					  P2M_PAGE_SIZE);

		ASSERT_NE(MAP_FAILED, mem);
		ASSERT_NE(MAP_FAILED, header);
		mem = mremap(mem, P2M_PAGE_SIZE, 2 * P2M_PAGE_SIZE,
			     MREMAP_MAYMOVE);
		if (mem != MAP_FAILED) {
			EXPECT_EQ(SIGBUS, touch_read(mem + P2M_PAGE_SIZE));
		}
		EXPECT_EQ(MAP_FAILED, mremap(header, P2M_PAGE_SIZE,
					     2 * P2M_PAGE_SIZE,
					     MREMAP_MAYMOVE));
	}
}

TEST_F(opener, pagemap_tells_nobody)
{
	int pagemap = pagemap_open();
	char *mem = map_pages(self->fd, BASE_PFN, NR_PAGES);

	ASSERT_LE(0, pagemap);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, touch_write(mem, 1));
	if (geteuid()) {
		EXPECT_EQ(0, pagemap_mfn(pagemap, mem));
	} else {
		EXPECT_NE(0, pagemap_mfn(pagemap, mem));
	}
}

TEST_F(opener, all_else_works)
{
	struct p2m_region region;
	struct p2m_stat stat;
	__u64 base, total, i;
	char *mem;

	test_cmd_region_create(self->fd, P2M_POLICY_SCATTER, 64, 7, &base);
	EXPECT_EQ(0, base);
	test_cmd_region_list(self->fd, BASE_PFN, &region, 1, NULL, &total);
	EXPECT_EQ(1, total);
	EXPECT_EQ(BASE_PFN, region.base_pfn);
	EXPECT_EQ(NR_PAGES, region.nr_pages);
	EXPECT_EQ(variant->policy, region.policy);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(2, stat.out_regions);
	mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(LEN, first_nonzero(mem, LEN));
	for (i = 0; i < NR_PAGES; i++)
		page_fill(mem + i * P2M_PAGE_SIZE, i);
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE, i));
	}
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(SIGBUS, touch_read(mem));
	test_err_region_create_fixed(EEXIST, self->fd, P2M_POLICY_ANY, 1, 0, 63);
}

static int make_contiguous(int fd, __u32 address_bits)
{
	struct p2m_contiguous cmd = {
		.size = sizeof(cmd),
		.start_pfn = BASE_PFN,
		.order = 2,
		.address_bits = address_bits,
	};

	return ioctl(fd, P2M_CONTIGUOUS, &cmd);
}

/*
 * What asks for frames by their numbers tells something about them. It could have
 * the machine searched for them, too.
 */
TEST_F(opener, bounds_of_addresses_are_about_frames)
{
	int expected = variant->sees_mfns ? 0 : -1;

	ASSERT_EQ(0, make_contiguous(self->fd, 0));
	EXPECT_EQ(expected, make_contiguous(self->fd, 52));
	if (expected) {
		EXPECT_EQ(EPERM, errno);
	}
	/* Not even whether it's possible. */
	EXPECT_EQ(-1, make_contiguous(self->fd, 12));
	EXPECT_EQ(variant->sees_mfns ? EADDRNOTAVAIL : EPERM, errno);
}

static int evacuate(int fd)
{
	struct p2m_evacuate cmd = { .size = sizeof(cmd), .nr_frames = 1 };

	return ioctl(fd, P2M_EVACUATE, &cmd);
}

static int identity(int fd)
{
	/* The I/O APIC, which is no memory on any PC. */
	struct p2m_identity cmd = {
		.size = sizeof(cmd),
		.start_pfn = 0xfec00,
		.nr_pages = 1,
	};

	return ioctl(fd, P2M_IDENTITY, &cmd);
}

static int access_by_processor(int fd)
{
	struct p2m_space_access cmd = { .size = sizeof(cmd), .nr_words = 1,
					.op = P2M_ACCESS_CHECKSUM };

	return ioctl(fd, P2M_SPACE_ACCESS, &cmd);
}

/* It has all capabilities there, but none that count. */
TEST(root_of_a_user_namespace_is_nobody)
{
	struct p2m_info info;
	__u64 base;
	int fd;

	if (access(P2M_DEVICE, F_OK) || geteuid())
		SKIP(return, "no " P2M_DEVICE ", or not root");
	if (unshare(CLONE_NEWUSER))
		SKIP(return, "no user namespaces");
	ASSERT_TRUE(write_text("/proc/self/uid_map", "0 0 1"));
	ASSERT_EQ(0, geteuid());
	fd = p2m_open();
	ASSERT_LE(0, fd);
	test_cmd_info(fd, &info);
	EXPECT_FALSE(info.out_features & P2M_FEATURE_MFN_VISIBLE);
	EXPECT_EQ(0, info.out_max_mfn);
	EXPECT_EQ(MAP_FAILED, map_window(fd, P2M_OFFSET_M2P, P2M_PAGE_SIZE));
	EXPECT_ERRNO(EPERM, evacuate(fd));
	EXPECT_ERRNO(EPERM, identity(fd));
	EXPECT_ERRNO(EPERM, access_by_processor(fd));
	test_cmd_region_create(fd, P2M_POLICY_SCATTER, 16, 0, &base);
	EXPECT_EQ(0, pfn_to_entry(fd, base));
	close(fd);
}

/*
 * A domain whose descriptor is only for reading can be handed to somebody who is to
 * see memory, but not to change it.
 */
TEST(read_only_descriptor_gives_no_memory_to_write_to)
{
	__u64 pfn = 0;
	__s32 error = 0;
	struct p2m_foreign_map foreign = {
		.size = sizeof(foreign),
		.nr = 1,
		.start_pfn = 16,
		.frames = (uintptr_t)&pfn,
		.errors = (uintptr_t)&error,
	};
	struct p2m_dma_buf_export export = {
		.size = sizeof(export),
		.nr_pages = 1,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	struct p2m_space_access write = {
		.size = sizeof(write),
		.op = P2M_ACCESS_WRITE,
		.nr_words = 1,
	};
	struct p2m_region_create create = {
		.size = sizeof(create),
		.flags = P2M_REGION_FIXED | P2M_REGION_ON_DEMAND,
		.nr_pages = 1,
		.base_pfn = 16,
	};
	struct p2m_info info;
	int ro, rw;

	ro = open(P2M_DEVICE, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		SKIP(return, "cannot open " P2M_DEVICE);
	rw = p2m_open();
	ASSERT_LE(0, rw);
	test_cmd_info(ro, &info);
	test_cmd_region_create_fixed(ro, P2M_POLICY_ANY, 1, 0, 0);
	ASSERT_EQ(0, ioctl(rw, P2M_REGION_CREATE, &create));

	/* Not by a mapping, and not by somebody else's. */
	EXPECT_EQ(MAP_FAILED, map_pages(ro, 0, 1));
	EXPECT_EQ(EACCES, errno);
	foreign.fd = ro;
	EXPECT_ERRNO(EACCES, ioctl(rw, P2M_FOREIGN_MAP, &foreign));
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(rw, 16));
	if (info.out_features & P2M_FEATURE_DMA_BUF) {
		EXPECT_ERRNO(EACCES, ioctl(ro, P2M_DMA_BUF_EXPORT, &export));
		export.fd_flags = O_RDONLY | O_CLOEXEC;
		ASSERT_EQ(0, ioctl(ro, P2M_DMA_BUF_EXPORT, &export));
		EXPECT_EQ(MAP_FAILED, mmap(NULL, P2M_PAGE_SIZE, PROT_WRITE,
					   MAP_SHARED, export.out_fd, 0));
		close(export.out_fd);
	}
	if (!geteuid()) {
		EXPECT_ERRNO(EACCES, ioctl(ro, P2M_SPACE_ACCESS, &write));
	}
	close(rw);
	close(ro);
}

/* Page tables may name frames that are somebody else's, or no memory. */
TEST(processor_reaches_frames_of_the_domain_only)
{
	enum { POOL, OWN = 16, FOREIGN, IO_APIC = 0xfec00 };
	static const __u64 pfns[] = { OWN, FOREIGN, IO_APIC };
	__u64 pfn = 0;
	__s32 error = 0;
	struct p2m_foreign_map foreign = {
		.size = sizeof(foreign),
		.nr = 1,
		.start_pfn = FOREIGN,
		.frames = (uintptr_t)&pfn,
		.errors = (uintptr_t)&error,
	};
	struct p2m_region_create create = {
		.size = sizeof(create),
		.flags = P2M_REGION_FIXED | P2M_REGION_ON_DEMAND,
		.nr_pages = 1,
	};
	struct p2m_space_create space = {
		.size = sizeof(space),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = POOL,
		.pool_pages = OWN,
	};
	struct p2m_space_map map = {
		.size = sizeof(map),
		.nr_pages = 1,
		.pte_flags = P2M_PTE_RW,
	};
	struct p2m_space_access cmd = {
		.size = sizeof(cmd),
		.op = P2M_ACCESS_CHECKSUM,
		.nr_words = 1,
	};
	struct p2m_info info;
	int fd, lender;
	size_t i;

	fd = p2m_open();
	lender = p2m_open();
	if (fd < 0 || lender < 0 || geteuid())
		SKIP(return, "no " P2M_DEVICE ", or not root");
	test_cmd_info(fd, &info);
	if (!(info.out_features & P2M_FEATURE_CPU_ACCESS))
		SKIP(return, "this processor can't be asked");
	test_cmd_region_create_fixed(lender, P2M_POLICY_ANY, 1, 0, 0);
	test_cmd_region_create_fixed(fd, P2M_POLICY_ANY, FOREIGN, 0, 0);
	create.base_pfn = FOREIGN;
	ASSERT_EQ(0, ioctl(fd, P2M_REGION_CREATE, &create));
	create.base_pfn = IO_APIC;
	ASSERT_EQ(0, ioctl(fd, P2M_REGION_CREATE, &create));
	foreign.fd = lender;
	ASSERT_EQ(0, ioctl(fd, P2M_FOREIGN_MAP, &foreign));
	ASSERT_EQ(1, foreign.out_nr);
	ASSERT_EQ(0, identity(fd));

	ASSERT_EQ(0, ioctl(fd, P2M_SPACE_CREATE, &space));
	cmd.space = map.space = space.out_space;
	for (i = 0; i < ARRAY_LEN(pfns); i++) {
		map.pfn = pfns[i];
		map.address = i * P2M_PAGE_SIZE;
		ASSERT_EQ(0, ioctl(fd, P2M_SPACE_MAP, &map));
		cmd.address = map.address;
		if (pfns[i] == OWN) {
			ASSERT_EQ(0, ioctl(fd, P2M_SPACE_ACCESS, &cmd));
			EXPECT_EQ(1, cmd.out_words);
		} else {
			EXPECT_ERRNO(EUCLEAN,
				     ioctl(fd, P2M_SPACE_ACCESS, &cmd));
		}
	}
	close(fd);
	close(lender);
}

#define FDINFO_SIZE 2048

/* What fdinfo says of a domain, less what is about the file and the number of it. */
static int fdinfo_read(int fd, char *text)
{
	char line[256], path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	if (!file)
		return -1;
	*text = '\0';
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, "p2m-", 4) ||
		    !strncmp(line, "p2m-domain:", 11) ||
		    !strncmp(line, "p2m-m2p-tables:", 15))
			continue;
		if (strlen(text) + strlen(line) < FDINFO_SIZE)
			strcat(text, line);
	}
	fclose(file);
	return 0;
}

/*
 * Domains that had the same done to them look alike, whatever their frames are. Only
 * the tables of the M2P are as many as the frames are far apart.
 */
TEST(fdinfo_does_not_depend_on_frames)
{
	char texts[2][FDINFO_SIZE];
	char *mem;
	int i, fd;

	for (i = 0; i < 2; i++) {
		fd = p2m_open();
		if (fd < 0)
			SKIP(return, "cannot open " P2M_DEVICE);
		/* One is low, the other one goes up to the end of memory. */
		test_cmd_region_create_fixed(fd, i ? P2M_POLICY_SCATTER :
						     P2M_POLICY_CONTIGUOUS,
					     NR_PAGES, 0, BASE_PFN);
		mem = map_pages(fd, BASE_PFN, NR_PAGES);
		ASSERT_NE(MAP_FAILED, mem);
		ASSERT_EQ(0, touch_read(mem));
		ASSERT_EQ(0, make_contiguous(fd, 0));
		ASSERT_EQ(0, fdinfo_read(fd, texts[i]));
		munmap(mem, LEN);
		close(fd);
	}
	EXPECT_NE(0, strlen(texts[0]));
	EXPECT_STREQ(texts[0], texts[1]);
}

/* Tracepoints tell of frames, and what is in debugfs tells of all domains. */
TEST(tracing_is_not_for_everybody)
{
	static const char *const paths[] = {
		"/sys/kernel/tracing/events/p2m/p2m_change/enable",
		"/sys/kernel/tracing/trace",
		"/sys/kernel/debug/p2m/stat",
	};
	size_t i;

	if (access(P2M_DEVICE, F_OK) || geteuid())
		SKIP(return, "no " P2M_DEVICE ", or not root");
	if (access(paths[0], R_OK))
		SKIP(return, "no tracefs");
	ASSERT_EQ(0, drop_privileges());
	for (i = 0; i < ARRAY_LEN(paths); i++)
		EXPECT_NE(0, access(paths[i], R_OK)) TH_LOG("path %zu", i);
}

TEST_HARNESS_MAIN
