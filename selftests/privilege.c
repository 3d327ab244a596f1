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

TEST_HARNESS_MAIN
