// SPDX-License-Identifier: GPL-2.0
/*
 * Regions: which PFNs get populated, and that a command which fails leaves
 * everything as it was.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Regions that are placed by the module begin at a multiple of this. */
#define BASE_ALIGN 512ULL

static void expect_region(struct __test_metadata *_metadata, int fd,
			  __u64 base, __u64 nr_pages, __u32 policy, __u64 seed,
			  __u32 flags)
{
	struct p2m_region region = {};
	__u32 nr = 0;

	test_cmd_region_list(fd, base, &region, 1, &nr, NULL);
	EXPECT_EQ(1, nr);
	EXPECT_EQ(base, region.base_pfn);
	EXPECT_EQ(nr_pages, region.nr_pages);
	EXPECT_EQ(policy, region.policy);
	EXPECT_EQ(seed, region.seed);
	EXPECT_EQ(flags, region.flags);
}

FIXTURE(policy)
{
	int fd;
	__u64 total_pages;
};

FIXTURE_VARIANT(policy)
{
	__u32 policy;
	__u64 seed;
};

FIXTURE_VARIANT_ADD(policy, any)
{
	.policy = P2M_POLICY_ANY,
};

FIXTURE_VARIANT_ADD(policy, scatter)
{
	.policy = P2M_POLICY_SCATTER,
	.seed = 0x0123456789abcdefULL,
};

FIXTURE_VARIANT_ADD(policy, scatter_seed_0)
{
	.policy = P2M_POLICY_SCATTER,
};

FIXTURE_VARIANT_ADD(policy, contiguous)
{
	.policy = P2M_POLICY_CONTIGUOUS,
};

FIXTURE_VARIANT_ADD(policy, superpage)
{
	.policy = P2M_POLICY_SUPERPAGE,
};

FIXTURE_SETUP(policy)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(policy)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(policy, created_is_listed_until_destroyed)
{
	static const __u64 sizes[] = { 1, 4, 511, 512, 513, 1000 };
	struct snapshot snap;
	struct p2m_stat stat;
	__u64 base, total;
	size_t i;

	for (i = 0; i < ARRAY_LEN(sizes); i++) {
		ASSERT_EQ(0, snapshot_take(self->fd, &snap));
		test_cmd_region_create(self->fd, variant->policy, sizes[i],
				       variant->seed, &base);
		EXPECT_EQ(0, base % BASE_ALIGN);
		expect_region(_metadata, self->fd, base, sizes[i],
			      variant->policy, variant->seed, 0);
		test_cmd_stat(self->fd, &stat);
		EXPECT_EQ(snap.stat.out_regions + 1, stat.out_regions);
		EXPECT_EQ(snap.stat.out_pages + sizes[i], stat.out_pages);
		EXPECT_EQ(snap.stat.out_total_pages + sizes[i],
			  stat.out_total_pages);
		test_cmd_region_destroy(self->fd, base);
		test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
		EXPECT_EQ(0, total);
		EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	}
}

TEST_F(policy, exactly_its_pages_are_populated)
{
	const __u64 base = 1000, nr = 700;
	__u64 *entries;
	__u64 i;

	test_cmd_region_create_fixed(self->fd, variant->policy, nr,
				     variant->seed, base);
	entries = range_to_entries(self->fd, base - 100, nr + 200);
	ASSERT_NE(NULL, entries);
	for (i = 0; i < nr + 200; i++) {
		bool inside = i >= 100 && i < nr + 100;

		ASSERT_EQ(inside, entries[i] != P2M_ENTRY_INVALID)
			TH_LOG("PFN %llu", base - 100 + i);
	}
	free(entries);
	test_cmd_region_destroy(self->fd, base);
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, base + i));
	}
}

TEST_F(policy, no_frame_is_used_twice)
{
	const __u64 nr = 600;
	__u64 *a, *b;
	__u64 base_a, base_b, i;

	test_cmd_region_create(self->fd, variant->policy, nr, variant->seed,
			       &base_a);
	test_cmd_region_create(self->fd, variant->policy, nr, variant->seed,
			       &base_b);
	a = range_to_entries(self->fd, base_a, nr);
	b = range_to_entries(self->fd, base_b, nr);
	ASSERT_NE(NULL, a);
	ASSERT_NE(NULL, b);
	/* If no two PFNs had one frame, the M2P leads back from each. */
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(base_a + i, mfn_to_pfn(self->fd, a[i]));
		ASSERT_EQ(base_b + i, mfn_to_pfn(self->fd, b[i]));
	}
	free(a);
	free(b);
}

TEST_F(policy, new_pages_are_zero)
{
	const __u64 nr = 1024;
	const size_t len = nr * P2M_PAGE_SIZE;
	unsigned char *mem;
	__u64 base, i;
	int round;

	/* The second round gets the pages that the first one made dirty. */
	for (round = 0; round < 3; round++) {
		test_cmd_region_create(self->fd, variant->policy, nr,
				       variant->seed, &base);
		mem = map_pages(self->fd, base, nr);
		ASSERT_NE(MAP_FAILED, mem);
		ASSERT_EQ(len, first_nonzero(mem, len));
		for (i = 0; i < nr; i++)
			page_fill(mem + i * P2M_PAGE_SIZE, i);
		ASSERT_EQ(0, munmap(mem, len));
		test_cmd_region_destroy(self->fd, base);
	}
}

TEST_F(policy, fixed_base_is_kept)
{
	static const __u64 bases[] = {
		0, 1, 777, BASE_ALIGN, (1ULL << 18) - 2, (1ULL << 27) - 3,
		P2M_MAX_PFN - 5,
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(bases); i++) {
		test_cmd_region_create_fixed(self->fd, variant->policy, 5,
					     variant->seed, bases[i]);
		expect_region(_metadata, self->fd, bases[i], 5,
			      variant->policy, variant->seed,
			      P2M_REGION_FIXED);
		test_cmd_region_destroy(self->fd, bases[i]);
	}
}

TEST_F(policy, no_pages_is_EINVAL)
{
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EINVAL, self->fd, variant->policy, 0,
			       variant->seed);
	test_err_region_create_fixed(EINVAL, self->fd, variant->policy, 0,
				     variant->seed, 512);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(policy, base_without_fixed_flag_is_EINVAL)
{
	struct snapshot snap;
	__u64 base = 512;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	EXPECT_ERRNO(EINVAL, _test_cmd_region_create(self->fd, 0,
						     variant->policy, 4,
						     variant->seed, &base));
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

FIXTURE(region)
{
	int fd;
	__u64 total_pages;
};

FIXTURE_SETUP(region)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(region)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(region, overlap_by_any_page_is_EEXIST_without_side_effect)
{
	const __u64 start = 1000, end = 1012;
	struct snapshot snap;
	__u64 base, nr, entry, generation;
	struct p2m_stat stat;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, end - start, 0,
				     start);
	entry = pfn_to_entry(self->fd, start);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	generation = snap.stat.out_generation;
	/* All ranges around it; those that touch no page of it are fine. */
	for (base = start - 6; base <= end + 2; base++) {
		for (nr = 1; nr <= end - start + 8; nr++) {
			if (base >= end || base + nr <= start)
				continue;
			test_err_region_create_fixed(EEXIST, self->fd,
						     P2M_POLICY_ANY, nr, 0,
						     base);
		}
	}
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(generation, stat.out_generation);
	EXPECT_EQ(entry, pfn_to_entry(self->fd, start));
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(region, overlap_of_two_regions_is_EEXIST)
{
	struct snapshot snap;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 100);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 200);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create_fixed(EEXIST, self->fd, P2M_POLICY_ANY, 92, 0,
				     109);
	test_err_region_create_fixed(EEXIST, self->fd, P2M_POLICY_ANY, 1000, 0,
				     0);
	test_err_region_create_fixed(EEXIST, self->fd, P2M_POLICY_ANY, 91, 0,
				     110);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	/* What's between them is free. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 90, 0, 110);
}

TEST_F(region, neighbours_may_touch)
{
	struct p2m_region regions[4];
	__u64 total;
	__u32 nr;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 100);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, 10, 7, 110);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 90);
	test_cmd_region_list(self->fd, 0, regions, 4, &nr, &total);
	ASSERT_EQ(3, nr);
	EXPECT_EQ(3, total);
	EXPECT_EQ(90, regions[0].base_pfn);
	EXPECT_EQ(100, regions[1].base_pfn);
	EXPECT_EQ(110, regions[2].base_pfn);
	/* They stay three regions: the one in the middle can go alone. */
	test_cmd_region_destroy(self->fd, 100);
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 100));
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 109));
	EXPECT_NE(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 99));
	EXPECT_NE(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 110));
}

TEST_F(region, end_beyond_the_space_is_EOVERFLOW)
{
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 1, 0,
				     P2M_MAX_PFN);
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 2, 0,
				     P2M_MAX_PFN - 1);
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 4, 0,
				     1ULL << 52);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(region, wrap_is_EOVERFLOW)
{
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 1, 0,
				     ~0ULL);
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 4, 0,
				     ~0ULL - 1);
	/* In bytes it would wrap around to a PFN that is free. */
	test_err_region_create_fixed(EOVERFLOW, self->fd, P2M_POLICY_ANY, 1, 0,
				     1ULL << 63);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(region, unknown_policy_is_EOPNOTSUPP)
{
	static const __u32 policies[] = { 4, 5, 31, 32, 33, 64, 1U << 31, ~0U };
	struct snapshot snap;
	struct p2m_info info;
	size_t i;

	test_cmd_info(self->fd, &info);
	ASSERT_EQ(15, info.out_policies);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(policies); i++)
		test_err_region_create(EOPNOTSUPP, self->fd, policies[i], 4, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(region, seed_of_unseeded_policy_is_EINVAL)
{
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EINVAL, self->fd, P2M_POLICY_ANY, 4, 1);
	test_err_region_create(EINVAL, self->fd, P2M_POLICY_ANY, 4, 1ULL << 63);
	test_err_region_create(EINVAL, self->fd, P2M_POLICY_CONTIGUOUS, 4, 1);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(region, destroy_of_what_begins_nowhere_is_ENOENT)
{
	struct snapshot snap;

	test_err_region_destroy(ENOENT, self->fd, 0);

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 100);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_destroy(ENOENT, self->fd, 0);
	test_err_region_destroy(ENOENT, self->fd, 99);
	test_err_region_destroy(ENOENT, self->fd, 101);
	test_err_region_destroy(ENOENT, self->fd, 109);
	test_err_region_destroy(ENOENT, self->fd, 110);
	test_err_region_destroy(ENOENT, self->fd, P2M_MAX_PFN);
	test_err_region_destroy(ENOENT, self->fd, 100 + (1ULL << 32));
	test_err_region_destroy(ENOENT, self->fd, ~0ULL);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));

	test_cmd_region_destroy(self->fd, 100);
	test_err_region_destroy(ENOENT, self->fd, 100);
}

TEST_F(region, list_reports_from_start_in_order)
{
	/* Created in this order. */
	static const __u64 bases[] = { 3000, 10, 500000, 20, 1 };
	struct p2m_region regions[6];
	__u64 total;
	size_t i;
	__u32 nr;

	for (i = 0; i < ARRAY_LEN(bases); i++)
		test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER,
					     4 + i, bases[i], bases[i]);

	test_cmd_region_list(self->fd, 0, regions, 6, &nr, &total);
	ASSERT_EQ(5, nr);
	EXPECT_EQ(5, total);
	EXPECT_EQ(1, regions[0].base_pfn);
	EXPECT_EQ(8, regions[0].nr_pages);
	EXPECT_EQ(10, regions[1].base_pfn);
	EXPECT_EQ(5, regions[1].nr_pages);
	EXPECT_EQ(20, regions[2].base_pfn);
	EXPECT_EQ(7, regions[2].nr_pages);
	EXPECT_EQ(3000, regions[3].base_pfn);
	EXPECT_EQ(4, regions[3].nr_pages);
	EXPECT_EQ(500000, regions[4].base_pfn);
	EXPECT_EQ(6, regions[4].nr_pages);
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(P2M_POLICY_SCATTER, regions[i].policy);
		EXPECT_EQ(regions[i].base_pfn, regions[i].seed);
	}

	/* A region that begins below the start isn't reported. */
	test_cmd_region_list(self->fd, 11, regions, 6, &nr, &total);
	ASSERT_EQ(3, nr);
	EXPECT_EQ(3, total);
	EXPECT_EQ(20, regions[0].base_pfn);
	test_cmd_region_list(self->fd, 20, regions, 6, &nr, &total);
	EXPECT_EQ(3, nr);
	EXPECT_EQ(3, total);
	test_cmd_region_list(self->fd, 500000, regions, 6, &nr, &total);
	EXPECT_EQ(1, nr);
	EXPECT_EQ(1, total);
	test_cmd_region_list(self->fd, 500001, regions, 6, &nr, &total);
	EXPECT_EQ(0, nr);
	EXPECT_EQ(0, total);
	test_cmd_region_list(self->fd, ~0ULL, regions, 6, &nr, &total);
	EXPECT_EQ(0, nr);
	EXPECT_EQ(0, total);
}

TEST_F(region, list_stores_no_more_than_fits)
{
	struct p2m_region regions[4];
	const struct p2m_region untouched = { .base_pfn = ~0ULL, .seed = 42 };
	__u64 total, start, seen = 0;
	__u32 nr, i;

	for (i = 0; i < 7; i++)
		test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0,
					     i * 100);
	regions[3] = untouched;
	test_cmd_region_list(self->fd, 0, regions, 3, &nr, &total);
	EXPECT_EQ(3, nr);
	EXPECT_EQ(7, total);
	EXPECT_EQ(0, memcmp(&untouched, &regions[3], sizeof(untouched)));

	/* Continued behind the last one that was stored. */
	start = 0;
	do {
		test_cmd_region_list(self->fd, start, regions, 3, &nr, &total);
		EXPECT_EQ(7 - seen, total);
		for (i = 0; i < nr; i++) {
			EXPECT_EQ((seen + i) * 100, regions[i].base_pfn);
		}
		seen += nr;
		if (nr)
			start = regions[nr - 1].base_pfn + 1;
	} while (nr);
	EXPECT_EQ(7, seen);
}

TEST_F(region, lowest_hole_that_fits_is_taken)
{
	__u64 base;

	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
	EXPECT_EQ(0, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 600, 0, &base);
	EXPECT_EQ(512, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
	EXPECT_EQ(1536, base);

	/* Exactly one block is free in front. */
	test_cmd_region_destroy(self->fd, 0);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 513, 0, &base);
	EXPECT_EQ(2048, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 512, 0, &base);
	EXPECT_EQ(0, base);

	/* Two blocks and an unusable rest, between 0 and 1536. */
	test_cmd_region_destroy(self->fd, 512);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, 513);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 512, 0, &base);
	EXPECT_EQ(1024, base);
}

TEST_F(region, last_hole_is_behind_the_last_region)
{
	__u64 base;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0,
				     P2M_MAX_PFN - 1);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 10, 0, &base);
	EXPECT_EQ(0, base);
}

TEST_F(region, domains_are_isolated)
{
	const __u64 nr = 64;
	struct snapshot snap;
	__u64 *mine, *theirs;
	char *mem, *other_mem;
	__u64 i, total;
	int other;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, nr, 0, 512);
	other = p2m_open();
	ASSERT_LE(0, other);
	test_cmd_region_list(other, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(0, total);
	EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(other, 512));
	/* Same place, other frames. */
	test_cmd_region_create_fixed(other, P2M_POLICY_SCATTER, nr, 3, 512);
	mine = range_to_entries(self->fd, 512, nr);
	theirs = range_to_entries(other, 512, nr);
	ASSERT_NE(NULL, mine);
	ASSERT_NE(NULL, theirs);
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(self->fd, theirs[i]));
		EXPECT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(other, mine[i]));
	}
	mem = map_pages(self->fd, 512, nr);
	other_mem = map_pages(other, 512, nr);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_NE(MAP_FAILED, other_mem);
	memset(mem, 0xaa, nr * P2M_PAGE_SIZE);
	EXPECT_EQ(nr * P2M_PAGE_SIZE,
		  first_nonzero(other_mem, nr * P2M_PAGE_SIZE));

	/* One goes, the other stays. */
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_cmd_region_destroy(other, 512);
	EXPECT_EQ(SIGBUS, touch_read(other_mem));
	EXPECT_EQ(0, touch_read(mem));
	EXPECT_EQ(0, munmap(other_mem, nr * P2M_PAGE_SIZE));
	EXPECT_EQ(0, close(other));
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(mine[i], pfn_to_entry(self->fd, 512 + i));
	}
	/* All but what the system has in total is as it was. */
	snap.stat.out_total_pages -= nr;
	snap.stat.out_total_domains--;
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	EXPECT_EQ(0, munmap(mem, nr * P2M_PAGE_SIZE));
	free(mine);
	free(theirs);
}

TEST_F_TIMEOUT(region, as_many_regions_as_the_limit_allows, 45)
{
	/* Enough to tell a table from a list. */
	const __u32 most = 4096;
	struct p2m_info info;
	struct p2m_stat stat;
	__u32 nr, i;
	__u64 base;

	test_cmd_info(self->fd, &info);
	nr = info.out_max_regions < most ? info.out_max_regions : most;
	for (i = 0; i < nr; i++) {
		test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
		ASSERT_EQ(i * BASE_ALIGN, base);
	}
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(nr, stat.out_regions);
	EXPECT_EQ(nr, stat.out_pages);
	if (nr == info.out_max_regions) {
		test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
		test_cmd_region_destroy(self->fd, nr / 2 * BASE_ALIGN);
		test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
		EXPECT_EQ(nr / 2 * BASE_ALIGN, base);
		test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
	}
}

/*
 * A random sequence of commands, next to the simplest model of a domain there
 * is: the number of the region, for each PFN of a small space.
 */
#define MODEL_BLOCKS 24
#define MODEL_PFNS (MODEL_BLOCKS * BASE_ALIGN)
#define MODEL_REGIONS 64

struct model {
	/* 0 if the PFN is free, else index + 1. */
	unsigned char owner[MODEL_PFNS];
	struct p2m_region regions[MODEL_REGIONS];
};

static bool model_is_free(const struct model *model, __u64 base, __u64 nr)
{
	__u64 i;

	for (i = 0; i < nr; i++)
		if (base + i < MODEL_PFNS && model->owner[base + i])
			return false;
	return true;
}

static __u64 model_lowest_hole(const struct model *model, __u64 nr)
{
	__u64 base = 0;

	while (!model_is_free(model, base, nr))
		base += BASE_ALIGN;
	return base;
}

static int model_slot(const struct model *model)
{
	int i;

	for (i = 0; i < MODEL_REGIONS; i++)
		if (!model->regions[i].nr_pages)
			return i;
	return -1;
}

static int by_base(const void *a, const void *b)
{
	const struct p2m_region *left = a, *right = b;

	return (left->base_pfn > right->base_pfn) -
	       (left->base_pfn < right->base_pfn);
}

static void expect_model(struct __test_metadata *_metadata, int fd,
			 const struct model *model)
{
	struct p2m_region expected[MODEL_REGIONS], seen[MODEL_REGIONS];
	__u32 nr = 0, out_nr;
	__u64 i, *entries;

	for (i = 0; i < MODEL_REGIONS; i++)
		if (model->regions[i].nr_pages)
			expected[nr++] = model->regions[i];
	qsort(expected, nr, sizeof(*expected), by_base);
	test_cmd_region_list(fd, 0, seen, MODEL_REGIONS, &out_nr, NULL);
	ASSERT_EQ(nr, out_nr);
	ASSERT_EQ(0, memcmp(expected, seen, nr * sizeof(*seen)));

	entries = range_to_entries(fd, 0, MODEL_PFNS);
	ASSERT_NE(NULL, entries);
	for (i = 0; i < MODEL_PFNS; i++) {
		ASSERT_EQ(!model->owner[i], entries[i] == P2M_ENTRY_INVALID)
			TH_LOG("PFN %llu", i);
	}
	free(entries);
}

TEST_F_TIMEOUT(region, random_commands_do_what_the_model_does, 45)
{
	struct model *model = calloc(1, sizeof(*model));
	__u64 state = 2026, base, nr, expected, i;
	struct p2m_region *region;
	int step, slot, ret;
	__u32 flags;

	ASSERT_NE(NULL, model);
	for (step = 0; step < 2000; step++) {
		slot = model_slot(model);
		if (slot < 0 || next_random(&state) % 3 == 0) {
			/* Destroy: mostly one that is there. */
			region = &model->regions[next_random(&state) %
						 MODEL_REGIONS];
			if (!region->nr_pages) {
				base = next_random(&state) % MODEL_PFNS;
				if (model->owner[base] &&
				    model->regions[model->owner[base] - 1]
						    .base_pfn == base)
					continue;
				test_err_region_destroy(ENOENT, self->fd, base);
				continue;
			}
			test_cmd_region_destroy(self->fd, region->base_pfn);
			memset(model->owner + region->base_pfn, 0,
			       region->nr_pages);
			memset(region, 0, sizeof(*region));
			continue;
		}
		/* Create: many are small, some are more than a block. */
		nr = 1 + next_random(&state) %
			     (next_random(&state) % 4 ? 40 : 700);
		flags = next_random(&state) % 2;
		if (flags & P2M_REGION_FIXED) {
			base = next_random(&state) % (MODEL_PFNS - nr);
			expected = base;
		} else {
			base = 0;
			expected = model_lowest_hole(model, nr);
			/* Only what the model has room for. */
			if (expected + nr > MODEL_PFNS)
				continue;
		}
		ret = _test_cmd_region_create(self->fd, flags, P2M_POLICY_ANY,
					      nr, 0, &base);
		if (!model_is_free(model, expected, nr)) {
			ASSERT_EQ(-1, ret) TH_LOG("step %d", step);
			ASSERT_EQ(EEXIST, errno) TH_LOG("step %d", step);
			continue;
		}
		ASSERT_EQ(0, ret) TH_LOG("step %d", step);
		ASSERT_EQ(expected, base) TH_LOG("step %d", step);
		model->regions[slot].base_pfn = base;
		model->regions[slot].nr_pages = nr;
		model->regions[slot].flags = flags;
		for (i = 0; i < nr; i++)
			model->owner[base + i] = slot + 1;
		if (step % 50 == 0)
			expect_model(_metadata, self->fd, model);
	}
	expect_model(_metadata, self->fd, model);
	free(model);
}

TEST_HARNESS_MAIN
