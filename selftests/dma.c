// SPDX-License-Identifier: GPL-2.0
/*
 * DMA plans: they agree with a loop over all bytes, each of which is looked up
 * by P2M_TRANSLATE, and with what the kernel itself says about the frames.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define BASE 512UL
#define NR_PAGES 48UL
#define MAX_SEGMENTS 1024
#define ALL_BYTES (NR_PAGES * P2M_PAGE_SIZE)

struct plan {
	__u32 nr;
	struct p2m_dma_segment segments[MAX_SEGMENTS];
};

/* A device, as the members of the command have it. */
struct limits {
	__u64 dma_mask;
	__u64 segment_boundary_mask;
	__u64 max_segment_size;
	__u32 dma_alignment;
	__u32 max_segments;
};

static const struct limits devices[] = {
	{},
	{ .dma_mask = 0xffffff },
	{ .dma_mask = 0xffffffff, .max_segment_size = 65536 },
	{ .max_segment_size = 1536 },
	{ .segment_boundary_mask = 0x1fff },
	{ .dma_alignment = 511 },
	{ .max_segments = 1 },
	{ .max_segments = NR_PAGES - 1 },
	{ .dma_mask = 0x7ffffff, .segment_boundary_mask = 0xffff,
	  .max_segment_size = 6144, .dma_alignment = 511, .max_segments = 5 },
};

static const struct {
	__u64 offset;
	__u64 length;
} ranges[] = {
	{ 0, ALL_BYTES },
	{ 0, 1 },
	{ 4095, 2 },
	{ 512, 8192 },
	{ 100, 3 * P2M_PAGE_SIZE },
	{ 5 * P2M_PAGE_SIZE + 1, 5 * P2M_PAGE_SIZE - 2 },
};

static void fill_command(struct p2m_dma_plan *cmd, const struct limits *limits,
			 __u64 offset, __u64 length)
{
	memset(cmd, 0, sizeof(*cmd));
	cmd->size = sizeof(*cmd);
	cmd->start_pfn = BASE;
	cmd->offset = offset;
	cmd->length = length;
	cmd->dma_mask = limits->dma_mask;
	cmd->segment_boundary_mask = limits->segment_boundary_mask;
	cmd->max_segment_size = limits->max_segment_size;
	cmd->dma_alignment = limits->dma_alignment;
	cmd->max_segments = limits->max_segments;
}

static int get_plan(int fd, struct p2m_dma_plan *cmd, struct plan *plan)
{
	int ret;

	cmd->segments = (uintptr_t)plan->segments;
	cmd->nr = MAX_SEGMENTS;
	ret = ioctl(fd, P2M_DMA_PLAN, cmd);
	plan->nr = cmd->out_nr;
	return ret;
}

static __u64 or_none(__u64 limit)
{
	return limit ? limit : ~0ULL;
}

static __u32 kind_flags(__u64 entry)
{
	if (entry == P2M_ENTRY_INVALID)
		return P2M_DMA_UNBACKED;
	if (entry & P2M_ENTRY_FOREIGN)
		return P2M_DMA_FOREIGN;
	return entry & P2M_ENTRY_IDENTITY ? P2M_DMA_IDENTITY : 0;
}

/* What P2M_DMA_PLAN has to say, byte by byte. */
static void own_plan(const __u64 *entries, __u64 offset, __u64 length,
		     const struct limits *limits, struct plan *plan)
{
	__u64 boundary = or_none(limits->segment_boundary_mask);
	__u64 last = 0, byte;
	bool scattered = false;
	__u32 i;

	plan->nr = 0;
	for (byte = offset; byte < offset + length; byte++) {
		__u64 entry = entries[byte / P2M_PAGE_SIZE];
		__u32 flags = kind_flags(entry), in_page = byte % P2M_PAGE_SIZE;
		__u64 address = P2M_ENTRY_INVALID;
		struct p2m_dma_segment *segment;

		if (flags != P2M_DMA_UNBACKED)
			address = (entry & P2M_ENTRY_MFN_MASK) * P2M_PAGE_SIZE +
				  in_page;
		if (plan->nr) {
			bool goes_on;

			segment = &plan->segments[plan->nr - 1];
			goes_on = segment->flags == flags &&
				  (flags == P2M_DMA_UNBACKED ||
				   address == last + 1);
			last = address;
			scattered |= !goes_on;
			if (goes_on &&
			    (flags == P2M_DMA_UNBACKED ||
			     (segment->length < or_none(limits->max_segment_size) &&
			      (segment->address | boundary) ==
				      (address | boundary)))) {
				segment->length++;
				continue;
			}
		}
		last = address;
		if (plan->nr == MAX_SEGMENTS)
			return;
		segment = &plan->segments[plan->nr++];
		segment->pfn = BASE + byte / P2M_PAGE_SIZE;
		segment->address = address;
		segment->length = 1;
		segment->offset = in_page;
		segment->flags = flags;
	}
	for (i = 0; i < plan->nr; i++) {
		struct p2m_dma_segment *segment = &plan->segments[i];

		if (segment->flags & P2M_DMA_UNBACKED)
			continue;
		if (scattered && plan->nr > or_none(limits->max_segments))
			segment->flags |= P2M_DMA_STRADDLE;
		if (segment->address + segment->length - 1 >
		    or_none(limits->dma_mask))
			segment->flags |= P2M_DMA_MASK;
		if ((segment->address | segment->length) & limits->dma_alignment)
			segment->flags |= P2M_DMA_ALIGNMENT;
	}
}

FIXTURE(plan)
{
	int fd;
	__u64 total_pages;
	struct plan *found, *expected;
};

FIXTURE_VARIANT(plan)
{
	__u32 policy;
	__u32 flags;
	/* Pages that are given back, from BASE + 3 on. */
	__u64 nr_released;
	/* All is one run. */
	bool contiguous;
	/* No two pages are. */
	bool scattered;
};

FIXTURE_VARIANT_ADD(plan, any)
{
	.policy = P2M_POLICY_ANY,
};

FIXTURE_VARIANT_ADD(plan, scattered)
{
	.policy = P2M_POLICY_SCATTER,
	.scattered = true,
};

FIXTURE_VARIANT_ADD(plan, guarded)
{
	.policy = P2M_POLICY_ANY,
	.flags = P2M_REGION_GUARDED,
	.scattered = true,
};

FIXTURE_VARIANT_ADD(plan, contiguous)
{
	.policy = P2M_POLICY_CONTIGUOUS,
	.contiguous = true,
};

FIXTURE_VARIANT_ADD(plan, with_a_hole)
{
	.policy = P2M_POLICY_CONTIGUOUS,
	.nr_released = 2,
};

FIXTURE_SETUP(plan)
{
	struct p2m_release release = {
		.size = sizeof(release),
		.start_pfn = BASE + 3,
		.nr_pages = variant->nr_released,
	};
	__u64 base = BASE;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->found = malloc(sizeof(*self->found));
	self->expected = malloc(sizeof(*self->expected));
	ASSERT_NE(NULL, self->found);
	ASSERT_NE(NULL, self->expected);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, _test_cmd_region_create(self->fd,
					     variant->flags | P2M_REGION_FIXED,
					     variant->policy, NR_PAGES, 0,
					     &base));
	if (variant->nr_released)
		ASSERT_EQ(0, ioctl(self->fd, P2M_RELEASE, &release));
}

FIXTURE_TEARDOWN(plan)
{
	free(self->found);
	free(self->expected);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(plan, agrees_with_a_loop_over_all_bytes)
{
	__u64 *entries = range_to_entries(self->fd, BASE, NR_PAGES);
	struct p2m_dma_plan cmd;
	size_t r, d;
	__u32 i;

	ASSERT_NE(NULL, entries);
	for (r = 0; r < ARRAY_LEN(ranges); r++) {
		for (d = 0; d < ARRAY_LEN(devices); d++) {
			__u64 bounced = 0, bytes = 0;

			fill_command(&cmd, &devices[d], ranges[r].offset,
				     ranges[r].length);
			ASSERT_EQ(0, get_plan(self->fd, &cmd, self->found));
			own_plan(entries, ranges[r].offset, ranges[r].length,
				 &devices[d], self->expected);
			ASSERT_EQ(self->expected->nr, self->found->nr)
				TH_LOG("range %zu, device %zu", r, d);
			for (i = 0; i < self->found->nr; i++) {
				struct p2m_dma_segment *segment =
					&self->found->segments[i];

				ASSERT_EQ(0, memcmp(segment,
						    &self->expected->segments[i],
						    sizeof(*segment)))
					TH_LOG("range %zu, device %zu, segment %u",
					       r, d, i);
				if (segment->flags & P2M_DMA_BOUNCE) {
					bounced++;
					bytes += segment->length;
				}
			}
			EXPECT_EQ(ranges[r].length, cmd.out_next);
			EXPECT_EQ(bounced, cmd.out_bounced);
			EXPECT_EQ(bytes, cmd.out_bounced_bytes);
		}
	}
	free(entries);
}

TEST_F(plan, counting_is_listing_without_a_list)
{
	struct p2m_dma_plan listed, counted;
	size_t d;

	for (d = 0; d < ARRAY_LEN(devices); d++) {
		fill_command(&listed, &devices[d], 7, ALL_BYTES - 9);
		counted = listed;
		ASSERT_EQ(0, get_plan(self->fd, &listed, self->found));
		/* Nothing is written there. */
		counted.segments = 1;
		ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_PLAN, &counted));
		EXPECT_EQ(listed.out_nr, counted.out_nr);
		EXPECT_EQ(listed.out_next, counted.out_next);
		EXPECT_EQ(listed.out_bounced, counted.out_bounced);
		EXPECT_EQ(listed.out_bounced_bytes, counted.out_bounced_bytes);
	}
}

TEST_F(plan, goes_on_where_it_was_left)
{
	struct p2m_dma_plan whole, cmd;
	__u64 bounced;
	size_t d;
	__u32 i;

	for (d = 0; d < ARRAY_LEN(devices); d++) {
		fill_command(&cmd, &devices[d], 100, ALL_BYTES - 200);
		whole = cmd;
		ASSERT_EQ(0, get_plan(self->fd, &whole, self->found));
		bounced = 0;
		for (i = 0; i < self->found->nr; i++) {
			struct p2m_dma_segment segment = {};

			cmd.segments = (uintptr_t)&segment;
			cmd.nr = 1;
			ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_PLAN, &cmd));
			ASSERT_EQ(1, cmd.out_nr);
			ASSERT_EQ(0, memcmp(&segment,
					    &self->found->segments[i],
					    sizeof(segment)));
			ASSERT_EQ(cmd.position + segment.length, cmd.out_next);
			bounced += cmd.out_bounced;
			cmd.position = cmd.out_next;
		}
		EXPECT_EQ(whole.out_bounced, bounced);
		/* At the end there's nothing more. */
		EXPECT_EQ(whole.out_next, cmd.position);
		ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_PLAN, &cmd));
		EXPECT_EQ(0, cmd.out_nr);
		EXPECT_EQ(cmd.position, cmd.out_next);
	}
}

TEST_F(plan, has_a_segment_for_each_run)
{
	struct p2m_dma_plan cmd;
	__u32 nr_runs;

	fill_command(&cmd, &devices[0], 0, ALL_BYTES);
	ASSERT_EQ(0, get_plan(self->fd, &cmd, self->found));
	test_cmd_runs(self->fd, BASE, NR_PAGES, NULL, 0, &nr_runs, NULL);
	EXPECT_EQ(nr_runs, cmd.out_nr);
	if (variant->contiguous)
		EXPECT_EQ(1, cmd.out_nr);
	if (variant->scattered)
		EXPECT_EQ(NR_PAGES, cmd.out_nr);
	/* A device without limits has nothing to complain about. */
	EXPECT_EQ(0, cmd.out_bounced);
}

TEST_F(plan, names_the_frames_that_the_kernel_knows)
{
	unsigned char *memory = map_pages(self->fd, BASE, NR_PAGES);
	int pagemap = pagemap_open();
	struct p2m_dma_plan cmd;
	__u64 page, nr = 0;
	__u32 i;

	ASSERT_NE(MAP_FAILED, memory);
	ASSERT_LE(0, pagemap);
	fill_command(&cmd, &devices[0], 0, ALL_BYTES);
	ASSERT_EQ(0, get_plan(self->fd, &cmd, self->found));
	for (i = 0; i < self->found->nr; i++) {
		struct p2m_dma_segment *segment = &self->found->segments[i];

		if (segment->flags & P2M_DMA_UNBACKED)
			continue;
		for (page = 0; page < segment->length / P2M_PAGE_SIZE; page++) {
			unsigned char *at = memory + (segment->pfn - BASE + page) *
							     P2M_PAGE_SIZE;

			ASSERT_EQ(0, touch_write(at, 1));
			ASSERT_EQ(pagemap_mfn(pagemap, at),
				  segment->address / P2M_PAGE_SIZE + page);
			nr++;
		}
	}
	EXPECT_EQ(NR_PAGES - variant->nr_released, nr);
	EXPECT_EQ(0, close(pagemap));
	EXPECT_EQ(0, munmap(memory, ALL_BYTES));
}

TEST_F(plan, is_one_segment_after_making_it_contiguous)
{
	static const struct limits one = { .dma_mask = 0xffffffff,
					   .max_segments = 1 };
	struct p2m_contiguous contiguous = {
		.size = sizeof(contiguous),
		.start_pfn = BASE + 16,
		.order = 4,
		.address_bits = 32,
	};
	struct p2m_dma_plan cmd;

	if (variant->flags & P2M_REGION_GUARDED)
		SKIP(return, "guards keep frames apart");
	fill_command(&cmd, &one, 16 * P2M_PAGE_SIZE, 16 * P2M_PAGE_SIZE);
	ASSERT_EQ(0, get_plan(self->fd, &cmd, self->found));
	if (variant->scattered) {
		EXPECT_EQ(16, cmd.out_bounced);
		EXPECT_TRUE(self->found->segments[0].flags & P2M_DMA_STRADDLE);
	}
	ASSERT_EQ(0, ioctl(self->fd, P2M_CONTIGUOUS, &contiguous));
	ASSERT_EQ(0, get_plan(self->fd, &cmd, self->found));
	EXPECT_EQ(1, cmd.out_nr);
	EXPECT_EQ(0, cmd.out_bounced);
	EXPECT_EQ(0, self->found->segments[0].flags);
}

FIXTURE(errors)
{
	int fd;
	struct plan *found;
	struct p2m_dma_plan cmd;
};

FIXTURE_SETUP(errors)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->found = malloc(sizeof(*self->found));
	ASSERT_NE(NULL, self->found);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0,
				     BASE);
	fill_command(&self->cmd, &devices[0], 0, ALL_BYTES);
	self->cmd.segments = (uintptr_t)self->found->segments;
	self->cmd.nr = MAX_SEGMENTS;
	ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_PLAN, &self->cmd));
	ASSERT_EQ(NR_PAGES, self->cmd.out_nr);
}

FIXTURE_TEARDOWN(errors)
{
	free(self->found);
	EXPECT_EQ(0, close(self->fd));
}

static int plan_errno(int fd, struct p2m_dma_plan *cmd)
{
	return ioctl(fd, P2M_DMA_PLAN, cmd) ? errno : 0;
}

TEST_F(errors, ranges_are_not_empty_and_end_in_the_space)
{
	static const struct {
		__u64 pfn, offset, length;
		int error;
	} cases[] = {
		{ BASE, 0, 0, EINVAL },
		{ P2M_MAX_PFN, 0, 1, EOVERFLOW },
		{ P2M_MAX_PFN - 1, P2M_PAGE_SIZE - 1, 2, EOVERFLOW },
		{ 0, ~0ULL, 1, EOVERFLOW },
		{ 1, 0, ~0ULL, EOVERFLOW },
		{ 1ULL << 52, 0, 1, EOVERFLOW },
		{ P2M_MAX_PFN - 1, P2M_PAGE_SIZE - 1, 1, 0 },
		{ 0, P2M_MAX_PFN * P2M_PAGE_SIZE - 1, 1, 0 },
		{ 0, 0, P2M_MAX_PFN * P2M_PAGE_SIZE, 0 },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(cases); i++) {
		self->cmd.start_pfn = cases[i].pfn;
		self->cmd.offset = cases[i].offset;
		self->cmd.length = cases[i].length;
		EXPECT_EQ(cases[i].error, plan_errno(self->fd, &self->cmd))
			TH_LOG("case %zu", i);
	}
	/* Before and behind the region there's nothing. */
	EXPECT_EQ(NR_PAGES + 2, self->cmd.out_nr);
}

TEST_F(errors, masks_are_masks_and_cuts_are_aligned)
{
	static const struct {
		struct limits limits;
		int error;
	} cases[] = {
		{ { .segment_boundary_mask = 0x1000 }, EINVAL },
		{ { .segment_boundary_mask = ~1ULL }, EINVAL },
		{ { .segment_boundary_mask = ~0ULL }, 0 },
		{ { .dma_alignment = 512 }, EINVAL },
		{ { .dma_alignment = 511, .max_segment_size = 1000 }, EINVAL },
		{ { .dma_alignment = 511, .max_segment_size = 1024 }, 0 },
		{ { .dma_alignment = 511, .segment_boundary_mask = 255 }, EINVAL },
		{ { .dma_alignment = 511, .segment_boundary_mask = 511 }, 0 },
		{ { .dma_mask = 12345 }, 0 },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(cases); i++) {
		fill_command(&self->cmd, &cases[i].limits, 0, ALL_BYTES);
		EXPECT_EQ(cases[i].error, plan_errno(self->fd, &self->cmd))
			TH_LOG("case %zu", i);
	}
}

TEST_F(errors, a_position_is_in_the_range_or_at_its_end)
{
	self->cmd.position = ALL_BYTES;
	EXPECT_EQ(0, plan_errno(self->fd, &self->cmd));
	EXPECT_EQ(0, self->cmd.out_nr);
	self->cmd.position = ALL_BYTES + 1;
	EXPECT_EQ(EINVAL, plan_errno(self->fd, &self->cmd));
	self->cmd.position = ~0ULL;
	EXPECT_EQ(EINVAL, plan_errno(self->fd, &self->cmd));
}

TEST_F(errors, machine_addresses_are_for_administrators)
{
	struct stat st;
	int fd;

	ASSERT_EQ(0, stat(P2M_DEVICE, &st));
	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	fd = p2m_open_unprivileged();
	ASSERT_EQ(0, chmod(P2M_DEVICE, st.st_mode & 07777));
	ASSERT_LE(0, fd);
	test_cmd_region_create_fixed(fd, P2M_POLICY_ANY, NR_PAGES, 0, BASE);
	EXPECT_EQ(EPERM, plan_errno(fd, &self->cmd));
	EXPECT_EQ(0, self->cmd.out_nr);
	/* Counting would tell where runs end, but not only that. */
	self->cmd.nr = 0;
	EXPECT_EQ(EPERM, plan_errno(fd, &self->cmd));
	EXPECT_EQ(0, close(fd));
}

TEST_F(errors, what_was_stored_is_told_after_a_bad_pointer)
{
	unsigned char *memory = mmap(NULL, 2 * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, memory);
	ASSERT_EQ(0, munmap(memory + P2M_PAGE_SIZE, P2M_PAGE_SIZE));
	/* Three fit before what isn't there. */
	self->cmd.segments = (uintptr_t)(memory + P2M_PAGE_SIZE -
					 3 * sizeof(struct p2m_dma_segment));
	EXPECT_EQ(EFAULT, plan_errno(self->fd, &self->cmd));
	EXPECT_EQ(3, self->cmd.out_nr);
	EXPECT_EQ(3 * P2M_PAGE_SIZE, self->cmd.out_next);
	EXPECT_EQ(0, memcmp(memory + P2M_PAGE_SIZE -
				    3 * sizeof(struct p2m_dma_segment),
			    self->found->segments,
			    3 * sizeof(struct p2m_dma_segment)));
	EXPECT_EQ(0, munmap(memory, P2M_PAGE_SIZE));
}

TEST_F(errors, frames_of_others_are_told_apart)
{
	__u64 frames[2] = { BASE, BASE + 1 }, base = 0;
	__s32 slot_errors[2];
	struct p2m_foreign_map map = {
		.size = sizeof(map),
		.fd = self->fd,
		.nr = 2,
		.frames = (uintptr_t)frames,
		.errors = (uintptr_t)slot_errors,
	};
	int fd = p2m_open();

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, _test_cmd_region_create(fd, P2M_REGION_ON_DEMAND,
					     P2M_POLICY_ANY, 4, 0, &base));
	map.start_pfn = base + 1;
	ASSERT_EQ(0, ioctl(fd, P2M_FOREIGN_MAP, &map));
	ASSERT_EQ(2, map.out_nr);
	self->cmd.start_pfn = base;
	self->cmd.length = 4 * P2M_PAGE_SIZE;
	ASSERT_EQ(0, ioctl(fd, P2M_DMA_PLAN, &self->cmd));
	ASSERT_EQ(4, self->cmd.out_nr);
	EXPECT_EQ(P2M_DMA_UNBACKED, self->found->segments[0].flags);
	EXPECT_EQ(P2M_DMA_FOREIGN, self->found->segments[1].flags);
	EXPECT_EQ(P2M_DMA_FOREIGN, self->found->segments[2].flags);
	EXPECT_EQ(P2M_DMA_UNBACKED, self->found->segments[3].flags);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->found->segments[0].address);
	EXPECT_EQ(pfn_to_entry(self->fd, BASE),
		  self->found->segments[1].address / P2M_PAGE_SIZE);
	EXPECT_EQ(0, close(fd));
}

TEST_HARNESS_MAIN
