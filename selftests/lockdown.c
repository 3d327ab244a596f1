// SPDX-License-Identifier: GPL-2.0
/*
 * A kernel that is locked down protects itself from root: what reaches around it
 * is refused, all else works.
 *
 * There is no way back, so this is for a machine that ends afterwards: it's skipped
 * unless the environment variable P2M_LOCKDOWN says how far to go: integrity or
 * confidentiality.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define NR_PAGES 64ULL

FIXTURE(locked_down)
{
	int fd;
};

FIXTURE_SETUP(locked_down)
{
	const char *level = getenv("P2M_LOCKDOWN");

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (!level)
		SKIP(return, "P2M_LOCKDOWN doesn't say that it may be done");
	if (!can_lock_down())
		SKIP(return, "the kernel can't be locked down");
	/* A space that the processor could be given. */
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0,
				     0);
	ASSERT_EQ(0, lock_down(level));
}

FIXTURE_TEARDOWN(locked_down)
{
	close(self->fd);
}

static int space_create(int fd)
{
	struct p2m_space_create cmd = {
		.size = sizeof(cmd),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pages = 16,
	};

	return ioctl(fd, P2M_SPACE_CREATE, &cmd) ? -1 : (int)cmd.out_space;
}

TEST_F(locked_down, processor_gets_no_tables)
{
	struct p2m_space_access cmd = {
		.size = sizeof(cmd),
		.op = P2M_ACCESS_CHECKSUM,
		.nr_words = 1,
	};
	int space = space_create(self->fd);

	ASSERT_LE(0, space);
	cmd.space = space;
	EXPECT_ERRNO(EPERM, ioctl(self->fd, P2M_SPACE_ACCESS, &cmd));
}

TEST_F(locked_down, no_machine_frames_that_are_no_memory)
{
	struct p2m_region_create create = {
		.size = sizeof(create),
		.flags = P2M_REGION_FIXED | P2M_REGION_ON_DEMAND,
		.nr_pages = 1,
		/* The I/O APIC. */
		.base_pfn = 0xfec00,
	};
	struct p2m_identity identity = {
		.size = sizeof(identity),
		.start_pfn = 0xfec00,
		.nr_pages = 1,
	};

	ASSERT_EQ(0, ioctl(self->fd, P2M_REGION_CREATE, &create));
	EXPECT_ERRNO(EPERM, ioctl(self->fd, P2M_IDENTITY, &identity));
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 0xfec00));
}

TEST_F(locked_down, all_else_works)
{
	struct p2m_move move = {
		.size = sizeof(move),
		.nr_pages = NR_PAGES,
	};
	struct p2m_audit audit = { .size = sizeof(audit) };
	char *mem = map_pages(self->fd, 0, NR_PAGES);

	ASSERT_NE(MAP_FAILED, mem);
	page_fill(mem, 1);
	ASSERT_EQ(0, ioctl(self->fd, P2M_MOVE, &move));
	EXPECT_EQ(NR_PAGES, move.out_pages);
	EXPECT_TRUE(page_matches(mem, 1));
	/* As pagemap shows them to root still. */
	EXPECT_NE(0, pfn_to_entry(self->fd, 0));
	EXPECT_NE(MAP_FAILED, map_window(self->fd, P2M_OFFSET_P2M,
					 P2M_PAGE_SIZE));
	ASSERT_EQ(0, ioctl(self->fd, P2M_AUDIT, &audit));
	EXPECT_EQ(NR_PAGES, audit.out_frames);
	munmap(mem, NR_PAGES * P2M_PAGE_SIZE);
}

/* A module that nobody signed doesn't come in any more. */
TEST_F(locked_down, unsigned_module_stays_out)
{
	if (!module_can_reload())
		SKIP(return, "P2M_KO names no module to load");
	/* Were it welcome, it would be there already. */
	EXPECT_ERRNO(EPERM, module_load(""));
}

TEST_HARNESS_MAIN
