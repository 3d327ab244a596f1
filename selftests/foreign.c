// SPDX-License-Identifier: GPL-2.0
/*
 * What is at a PFN without being the domain's: frames of another domain, and
 * machine frames that are no memory.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define NR_PAGES 64UL
#define POOL_PFN 4096UL
/* Where PCs have their interrupt controller: no memory. */
#define IOAPIC_MFN 0xfec00UL

FIXTURE(foreign) {
	int lender;
	int borrower;
	unsigned char *lent;
	unsigned char *slots;
	__u64 baseline;
};

static int release_pages(int fd, __u64 start_pfn, __u64 nr_pages)
{
	struct p2m_release cmd;

	return _test_cmd_release(fd, start_pfn, nr_pages, &cmd);
}

static void check_audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit;

	EXPECT_TRUE(audit_is_clean(fd, &audit));
}

FIXTURE_SETUP(foreign)
{
	__u64 base = 0;

	self->baseline = total_pages();
	self->lender = p2m_open();
	ASSERT_LE(0, self->lender) SKIP(return, "cannot open " P2M_DEVICE);
	self->borrower = p2m_open();
	ASSERT_LE(0, self->borrower);
	test_cmd_region_create(self->lender, P2M_POLICY_SCATTER, NR_PAGES, 1,
			       &base);
	ASSERT_EQ(0, base);
	/* Slots: a region with nothing in it. */
	base = 0;
	ASSERT_EQ(0, _test_cmd_region_create(self->borrower,
					     P2M_REGION_ON_DEMAND |
					     P2M_REGION_FIXED,
					     P2M_POLICY_ANY, NR_PAGES, 0,
					     &base));
	self->lent = map_pages(self->lender, 0, NR_PAGES);
	self->slots = map_pages(self->borrower, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->lent);
	ASSERT_NE(MAP_FAILED, self->slots);
	for (__u64 pfn = 0; pfn < NR_PAGES; pfn++)
		page_fill(self->lent + pfn * P2M_PAGE_SIZE, pfn);
}

FIXTURE_TEARDOWN(foreign)
{
	munmap(self->lent, NR_PAGES * P2M_PAGE_SIZE);
	munmap(self->slots, NR_PAGES * P2M_PAGE_SIZE);
	close(self->lender);
	close(self->borrower);
	EXPECT_EQ(self->baseline, total_pages());
}

TEST_F(foreign, both_see_the_same_memory)
{
	__u64 frames[4] = { 3, 0, 63, 17 };
	__s32 errors[4] = { -1, -1, -1, -1 };
	__u32 nr;

	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 8, frames, errors,
					   4, &nr));
	EXPECT_EQ(4, nr);
	for (int i = 0; i < 4; i++) {
		unsigned char *slot = self->slots + (8 + i) * P2M_PAGE_SIZE;
		__u64 mfn = pfn_to_entry(self->lender, frames[i]);

		EXPECT_EQ(0, errors[i]);
		EXPECT_EQ(mfn | P2M_ENTRY_FOREIGN,
			  pfn_to_entry(self->borrower, 8 + i));
		/* It's at no PFN of the borrower. */
		EXPECT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(self->borrower, mfn));
		EXPECT_EQ(frames[i], mfn_to_pfn(self->lender, mfn));
		EXPECT_TRUE(page_matches(slot, frames[i]));
		page_fill(slot, 1000 + i);
		EXPECT_TRUE(page_matches(self->lent + frames[i] * P2M_PAGE_SIZE,
					 1000 + i));
	}
	check_audit(_metadata, self->borrower);
	check_audit(_metadata, self->lender);
}

TEST_F(foreign, one_bad_slot_does_not_keep_others_from_being_filled)
{
	/* Nothing there, and far beyond the space. */
	__u64 frames[5] = { 1, NR_PAGES, 2, ~0ULL, 4 };
	__s32 errors[5];
	__u32 nr;

	/* One slot has a page of its own. */
	self->slots[4 * P2M_PAGE_SIZE] = 1;
	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 0, frames, errors,
					   5, &nr));
	EXPECT_EQ(2, nr);
	EXPECT_EQ(0, errors[0]);
	EXPECT_EQ(EFAULT, errors[1]);
	EXPECT_EQ(0, errors[2]);
	EXPECT_EQ(EFAULT, errors[3]);
	EXPECT_EQ(EEXIST, errors[4]);
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->borrower, 1));
	EXPECT_TRUE(page_matches(self->slots + 2 * P2M_PAGE_SIZE, 2));
	check_audit(_metadata, self->borrower);
}

TEST_F(foreign, a_slot_that_is_not_foreign_is_EINVAL_and_others_are_emptied)
{
	__u64 frames[2] = { 5, 6 };
	__s32 errors[3];
	__u32 nr;

	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 0, frames, errors,
					   1, &nr));
	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 2, frames + 1,
					   errors, 1, &nr));
	self->slots[P2M_PAGE_SIZE] = 1;
	ASSERT_EQ(0, _test_cmd_foreign_unmap(self->borrower, 0, errors, 3, &nr));
	EXPECT_EQ(2, nr);
	EXPECT_EQ(0, errors[0]);
	EXPECT_EQ(EINVAL, errors[1]);
	EXPECT_EQ(0, errors[2]);
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->borrower, 0));
	EXPECT_EQ(1, self->slots[P2M_PAGE_SIZE]);
	/* Touched again, it's a page of its own. */
	EXPECT_EQ(P2M_PAGE_SIZE, first_nonzero(self->slots, P2M_PAGE_SIZE));
	EXPECT_TRUE(page_matches(self->lent + 5 * P2M_PAGE_SIZE, 5));
}

TEST_F(foreign, a_lent_page_is_busy_for_its_owner)
{
	struct p2m_move move = {
		.size = sizeof(move),
		.nr_pages = NR_PAGES,
	};
	__u64 frames[2] = { 7, 9 };
	__s32 errors[2];
	__u32 nr;

	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 0, frames, errors,
					   2, &nr));
	ASSERT_EQ(0, ioctl(self->lender, P2M_MOVE, &move));
	EXPECT_EQ(2, move.out_busy);
	EXPECT_EQ(NR_PAGES - 2, move.out_pages);
	EXPECT_TRUE(page_matches(self->slots, 7));
	ASSERT_EQ(0, _test_cmd_foreign_unmap(self->borrower, 0, errors, 2, &nr));
	ASSERT_EQ(0, ioctl(self->lender, P2M_MOVE, &move));
	EXPECT_EQ(0, move.out_busy);
}

/* The tables would name a frame that is somebody else's by then. */
TEST_F(foreign, a_slot_that_a_space_maps_stays)
{
	struct p2m_space_map map = {
		.size = sizeof(map),
		.pfn = 8,
		.nr_pages = 2,
	};
	struct p2m_space_unmap unmap = { .size = sizeof(unmap), .nr_pages = 1 };
	/* One page twice, and one that nobody maps. */
	__u64 frames[4] = { 3, 4, 4, 5 };
	__s32 errors[5];
	__u32 nr;

	test_cmd_region_create_fixed(self->borrower, P2M_POLICY_ANY, 8, 0,
				     POOL_PFN);
	map.space = unmap.space =
		test_cmd_space_create(self->borrower, "p2m", 4, POOL_PFN, 8)
			.out_space;
	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 8, frames,
					   errors, 4, &nr));
	ASSERT_EQ(4, nr);
	self->slots[0] = 1;
	ASSERT_EQ(0, ioctl(self->borrower, P2M_SPACE_MAP, &map));

	/* What reads back without a number isn't the first page. */
	EXPECT_EQ(0, release_pages(self->borrower, 0, 8));
	EXPECT_ERRNO(EBUSY, release_pages(self->borrower, 8, 1));
	EXPECT_ERRNO(EBUSY, release_pages(self->borrower, 9, 1));
	EXPECT_ERRNO(EBUSY, release_pages(self->borrower, 0, NR_PAGES));
	test_err_region_destroy(EBUSY, self->borrower, 0);
	ASSERT_EQ(0, _test_cmd_foreign_unmap(self->borrower, 8, errors, 5, &nr));
	EXPECT_EQ(1, nr);
	EXPECT_EQ(EBUSY, errors[0]);
	EXPECT_EQ(EBUSY, errors[1]);
	EXPECT_EQ(EBUSY, errors[2]);
	EXPECT_EQ(0, errors[3]);
	EXPECT_EQ(EINVAL, errors[4]);
	EXPECT_TRUE(page_matches(self->slots + 8 * P2M_PAGE_SIZE, 3));
	EXPECT_TRUE(page_matches(self->slots + 9 * P2M_PAGE_SIZE, 4));
	check_audit(_metadata, self->borrower);

	ASSERT_EQ(0, ioctl(self->borrower, P2M_SPACE_UNMAP, &unmap));
	ASSERT_EQ(0, _test_cmd_foreign_unmap(self->borrower, 8, errors, 3, &nr));
	EXPECT_EQ(1, nr);
	EXPECT_EQ(0, errors[0]);
	EXPECT_EQ(EBUSY, errors[1]);
	EXPECT_EQ(EBUSY, errors[2]);
	check_audit(_metadata, self->borrower);
	unmap.address = P2M_PAGE_SIZE;
	ASSERT_EQ(0, ioctl(self->borrower, P2M_SPACE_UNMAP, &unmap));
	EXPECT_EQ(0, release_pages(self->borrower, 0, NR_PAGES));
	test_cmd_region_destroy(self->borrower, 0);
	check_audit(_metadata, self->borrower);
}

TEST_F(foreign, a_frame_stays_when_its_owner_gives_it_back)
{
	__u64 frames[1] = { 11 };
	__s32 errors[1];
	__u32 nr;

	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, 0, frames, errors,
					   1, &nr));
	ASSERT_EQ(0, release_pages(self->lender, 0, NR_PAGES));
	EXPECT_TRUE(page_matches(self->slots, 11));
	check_audit(_metadata, self->lender);
	close(self->lender);
	munmap(self->lent, NR_PAGES * P2M_PAGE_SIZE);
	EXPECT_TRUE(page_matches(self->slots, 11));
	check_audit(_metadata, self->borrower);
	self->lender = -1;
}

TEST_F(foreign, a_lender_has_to_be_another_domain)
{
	__u64 frames[1] = { 0 };
	__s32 errors[1];
	__u32 nr;
	int other = open("/dev/null", O_RDWR);

	EXPECT_ERRNO(EBADF, _test_cmd_foreign_map(self->borrower, -1, 0, frames, errors, 1,
						  &nr));
	EXPECT_ERRNO(EBADF, _test_cmd_foreign_map(self->borrower, 9999, 0, frames, errors,
						  1, &nr));
	EXPECT_ERRNO(EINVAL, _test_cmd_foreign_map(self->borrower, other, 0, frames,
						   errors, 1, &nr));
	EXPECT_ERRNO(EINVAL, _test_cmd_foreign_map(self->borrower, self->borrower, 0,
						   frames, errors, 1, &nr));
	EXPECT_ERRNO(EOVERFLOW, _test_cmd_foreign_map(self->borrower, self->lender,
						      P2M_MAX_PFN, frames, errors, 1,
						      &nr));
	close(other);
}

TEST_F(foreign, a_slot_outside_regions_is_ENOENT)
{
	__u64 frames[1] = { 0 };
	__s32 errors[1];
	__u32 nr;

	ASSERT_EQ(0, _test_cmd_foreign_map(self->borrower, self->lender, NR_PAGES, frames,
					   errors, 1, &nr));
	EXPECT_EQ(0, nr);
	EXPECT_EQ(ENOENT, errors[0]);
}

TEST_F(foreign, identity_is_for_what_is_no_memory)
{
	__u64 base = IOAPIC_MFN;
	__u64 ram = pfn_to_entry(self->lender, 0);

	ASSERT_EQ(0, _test_cmd_region_create(self->borrower,
					     P2M_REGION_ON_DEMAND |
					     P2M_REGION_FIXED,
					     P2M_POLICY_ANY, 16, 0, &base));
	ASSERT_EQ(0, _test_cmd_identity(self->borrower, IOAPIC_MFN, 1));
	EXPECT_EQ(IOAPIC_MFN | P2M_ENTRY_IDENTITY,
		  pfn_to_entry(self->borrower, IOAPIC_MFN));
	EXPECT_ERRNO(EEXIST, _test_cmd_identity(self->borrower, IOAPIC_MFN, 2));
	EXPECT_EQ(P2M_ENTRY_INVALID,
		  pfn_to_entry(self->borrower, IOAPIC_MFN + 1));
	/* A mapping doesn't show it. */
	unsigned char *mem = map_pages(self->borrower, IOAPIC_MFN, 1);

	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(SIGBUS, touch_read(mem));
	munmap(mem, P2M_PAGE_SIZE);
	ASSERT_EQ(0, release_pages(self->borrower, IOAPIC_MFN, 1));
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->borrower, IOAPIC_MFN));

	base = ram;
	ASSERT_EQ(0, _test_cmd_region_create(self->borrower,
					     P2M_REGION_ON_DEMAND |
					     P2M_REGION_FIXED,
					     P2M_POLICY_ANY, 1, 0, &base));
	EXPECT_ERRNO(EINVAL, _test_cmd_identity(self->borrower, ram, 1));
	EXPECT_ERRNO(ENOENT, _test_cmd_identity(self->borrower, IOAPIC_MFN + 64, 1));
	check_audit(_metadata, self->borrower);
}

TEST(identity_needs_a_capability)
{
	int fd = p2m_open();

	ASSERT_LE(0, fd) SKIP(return, "cannot open " P2M_DEVICE);
	ASSERT_EQ(0, drop_privileges());
	EXPECT_ERRNO(EPERM, _test_cmd_identity(fd, IOAPIC_MFN, 1));
	close(fd);
}

TEST_HARNESS_MAIN
