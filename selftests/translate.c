// SPDX-License-Identifier: GPL-2.0
/*
 * The map: every way to ask for it gives the same answer, and the answer is
 * true. What is true is told by others than the module: /proc/self/pagemap, and
 * the machine memory itself as /proc/kcore shows it.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Begins and ends in the middle of a table of 512 entries. */
#define BASE_PFN 1000ULL
#define ENTRIES_PER_TABLE 512ULL

static __u64 view_bytes(__u64 nr)
{
	return (nr * sizeof(__u64) + P2M_PAGE_SIZE - 1) & ~(P2M_PAGE_SIZE - 1);
}

/* The runs of a range, worked out from its entries in the most simple way. */
static __u32 simple_runs(const __u64 *entries, __u64 pfn, __u64 nr_pages,
			 struct p2m_run *runs)
{
	__u32 nr = 0;
	__u64 i, step;

	for (i = 0; i < nr_pages; i++) {
		struct p2m_run *run = &runs[nr ? nr - 1 : 0];

		step = entries[i] == P2M_ENTRY_INVALID ? 0 : run->nr_pages;
		if (nr && entries[i] == run->entry + step &&
		    (run->entry == P2M_ENTRY_INVALID) ==
			    (entries[i] == P2M_ENTRY_INVALID)) {
			run->nr_pages++;
			continue;
		}
		runs[nr++] = (struct p2m_run){
			.pfn = pfn + i,
			.nr_pages = 1,
			.entry = entries[i],
		};
	}
	return nr;
}

FIXTURE(map)
{
	int fd;
	__u64 nr_pages;
	/* Those of the region. */
	__u64 *entries;
	__u64 total_pages;
};

FIXTURE_VARIANT(map)
{
	__u32 policy;
	__u64 nr_pages;
	__u64 seed;
};

FIXTURE_VARIANT_ADD(map, any)
{
	.policy = P2M_POLICY_ANY, .nr_pages = 2000,
};

FIXTURE_VARIANT_ADD(map, scatter)
{
	.policy = P2M_POLICY_SCATTER, .nr_pages = 2000, .seed = 11,
};

FIXTURE_VARIANT_ADD(map, contiguous)
{
	.policy = P2M_POLICY_CONTIGUOUS, .nr_pages = 700,
};

FIXTURE_VARIANT_ADD(map, one_page)
{
	.policy = P2M_POLICY_ANY, .nr_pages = 1,
};

FIXTURE_SETUP(map)
{
	__u64 base = BASE_PFN;
	int ret;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	self->nr_pages = variant->nr_pages;
	ret = _test_cmd_region_create(self->fd, P2M_REGION_FIXED,
				      variant->policy, variant->nr_pages,
				      variant->seed, &base);
	if (ret && errno == EADDRNOTAVAIL &&
	    variant->policy == P2M_POLICY_CONTIGUOUS)
		SKIP(return, "no machine run of this length is free");
	ASSERT_EQ(0, ret);
	self->entries = range_to_entries(self->fd, BASE_PFN, self->nr_pages);
	ASSERT_NE(NULL, self->entries);
}

FIXTURE_TEARDOWN(map)
{
	free(self->entries);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(map, entries_are_plain_frames_of_this_machine)
{
	struct p2m_info info;
	__u64 i;

	test_cmd_info(self->fd, &info);
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(0, self->entries[i] & ~P2M_ENTRY_MFN_MASK);
		ASSERT_LT(self->entries[i], info.out_max_mfn);
		ASSERT_NE(0, self->entries[i]);
	}
}

TEST_F(map, pagemap_names_the_same_frames)
{
	const size_t len = self->nr_pages * P2M_PAGE_SIZE;
	int pagemap = pagemap_open();
	char *mem;
	__u64 i;

	ASSERT_LE(0, pagemap);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   self->fd, BASE_PFN * P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(self->entries[i],
			  pagemap_mfn(pagemap, mem + i * P2M_PAGE_SIZE))
			TH_LOG("PFN %llu", BASE_PFN + i);
	}
	ASSERT_EQ(0, munmap(mem, len));
	close(pagemap);
}

TEST_F(map, content_is_at_the_machine_address)
{
	const size_t len = self->nr_pages * P2M_PAGE_SIZE;
	struct kcore *kcore = kcore_open();
	unsigned char page[P2M_PAGE_SIZE];
	char *mem;
	__u64 i;

	if (!kcore)
		SKIP(return, "can't read /proc/kcore");
	mem = map_pages(self->fd, BASE_PFN, self->nr_pages);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < self->nr_pages; i++)
		page_fill(mem + i * P2M_PAGE_SIZE, BASE_PFN + i);
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(0, kcore_read_page(kcore, self->entries[i], page))
			TH_LOG("MFN %#llx", self->entries[i]);
		ASSERT_TRUE(page_matches(page, BASE_PFN + i))
			TH_LOG("PFN %llu, MFN %#llx", BASE_PFN + i,
			       self->entries[i]);
	}
	ASSERT_EQ(0, munmap(mem, len));
	kcore_close(kcore);
}

TEST_F(map, single_questions_agree_with_batch)
{
	__u64 i;

	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(self->entries[i],
			  pfn_to_entry(self->fd, BASE_PFN + i));
	}
}

TEST_F(map, questions_may_come_in_any_order)
{
	__u64 state = 5, *frames, *entries;
	const __u32 nr = 5000;
	__u32 i;

	frames = calloc(nr, sizeof(*frames));
	entries = calloc(nr, sizeof(*entries));
	ASSERT_NE(NULL, frames);
	ASSERT_NE(NULL, entries);
	for (i = 0; i < nr; i++) {
		frames[i] = BASE_PFN - 200 +
			    next_random(&state) % (self->nr_pages + 400);
	}
	test_cmd_translate(self->fd, 0, frames, entries, nr);
	for (i = 0; i < nr; i++) {
		__u64 index = frames[i] - BASE_PFN;
		__u64 truth = index < self->nr_pages ? self->entries[index] :
						       P2M_ENTRY_INVALID;

		ASSERT_EQ(truth, entries[i]) TH_LOG("PFN %llu", frames[i]);
	}
	free(frames);
	free(entries);
}

TEST_F(map, reading_agrees_with_translate)
{
	const size_t bytes = self->nr_pages * sizeof(__u64);
	__u64 end = BASE_PFN + self->nr_pages;
	__u64 *file = calloc(end, sizeof(*file));
	__u64 *piece = calloc(end, sizeof(*file));
	size_t done = 0, chunk = 8;
	ssize_t ret;
	__u64 i;

	ASSERT_NE(NULL, file);
	ASSERT_NE(NULL, piece);
	/* From the beginning, in pieces of several sizes, to the end. */
	while ((ret = read(self->fd, (char *)file + done, chunk)) > 0) {
		EXPECT_EQ(0, ret % 8);
		done += ret;
		if (done + chunk * 2 <= end * 8)
			chunk *= 2;
		else if (done + chunk > end * 8)
			chunk = 8;
	}
	ASSERT_EQ(0, ret);
	ASSERT_EQ(end * 8, done);
	for (i = 0; i < BASE_PFN; i++) {
		ASSERT_EQ(P2M_ENTRY_INVALID, file[i]);
	}
	ASSERT_EQ(0, memcmp(self->entries, file + BASE_PFN, bytes));

	ASSERT_EQ(bytes, pread(self->fd, piece, bytes, BASE_PFN * 8));
	EXPECT_EQ(0, memcmp(self->entries, piece, bytes));
	ASSERT_EQ(8, pread(self->fd, piece, 8, (end - 1) * 8));
	EXPECT_EQ(self->entries[self->nr_pages - 1], piece[0]);
	free(file);
	free(piece);
}

TEST_F(map, table_view_agrees_with_translate)
{
	const size_t len = view_bytes(BASE_PFN + self->nr_pages);
	const __u64 *view = map_window(self->fd, P2M_OFFSET_P2M, len);
	__u64 i;

	ASSERT_NE(MAP_FAILED, view);
	for (i = 0; i < len / sizeof(*view); i++) {
		__u64 index = i - BASE_PFN;
		__u64 truth = index < self->nr_pages ? self->entries[index] :
						       P2M_ENTRY_INVALID;

		ASSERT_EQ(truth, view[i]) TH_LOG("PFN %llu", i);
	}
	ASSERT_EQ(0, munmap((void *)view, len));
}

TEST_F(map, m2p_leads_back)
{
	__u64 *pfns = calloc(self->nr_pages, sizeof(*pfns));
	const __u64 *view;
	struct p2m_info info;
	size_t len;
	__u64 i, nr_backed = 0;

	ASSERT_NE(NULL, pfns);
	test_cmd_translate(self->fd, P2M_TRANSLATE_M2P, self->entries, pfns,
			   self->nr_pages);
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(BASE_PFN + i, pfns[i]);
	}
	free(pfns);

	test_cmd_info(self->fd, &info);
	len = view_bytes(info.out_max_mfn);
	view = map_window(self->fd, P2M_OFFSET_M2P, len);
	ASSERT_NE(MAP_FAILED, view);
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(BASE_PFN + i, view[self->entries[i]]);
	}
	/* No other frame claims to be of this domain, not even in error. */
	for (i = 0; i < info.out_max_mfn; i++)
		nr_backed += view[i] != P2M_ENTRY_INVALID;
	EXPECT_EQ(self->nr_pages, nr_backed);
	ASSERT_EQ(0, munmap((void *)view, len));
}

TEST_F(map, all_is_gone_after_destroy)
{
	const size_t len = view_bytes(BASE_PFN + self->nr_pages);
	const volatile __u64 *p2m, *m2p;
	struct p2m_info info;
	__u64 i, buf;

	test_cmd_info(self->fd, &info);
	p2m = map_window(self->fd, P2M_OFFSET_P2M, len);
	m2p = map_window(self->fd, P2M_OFFSET_M2P, view_bytes(info.out_max_mfn));
	ASSERT_NE(MAP_FAILED, p2m);
	ASSERT_NE(MAP_FAILED, m2p);
	/* What has been looked at must not stay behind in a page table. */
	for (i = 0; i < self->nr_pages; i++) {
		ASSERT_EQ(self->entries[i], p2m[BASE_PFN + i]);
		ASSERT_EQ(BASE_PFN + i, m2p[self->entries[i]]);
	}
	test_cmd_region_destroy(self->fd, BASE_PFN);
	for (i = 0; i < self->nr_pages; i++) {
		__u64 pfn = BASE_PFN + i, mfn = self->entries[i];

		ASSERT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, pfn));
		ASSERT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(self->fd, mfn));
		ASSERT_EQ(P2M_ENTRY_INVALID, p2m[pfn]);
		ASSERT_EQ(P2M_ENTRY_INVALID, m2p[mfn]);
	}
	EXPECT_EQ(0, pread(self->fd, &buf, 8, 0));
}

/* Compares the runs of one range with those that its entries make. */
static void expect_runs(struct __test_metadata *_metadata, int fd,
			const __u64 *entries, __u64 pfn, __u64 nr_pages,
			__u32 capacity)
{
	struct p2m_run *expected = calloc(nr_pages, sizeof(*expected));
	struct p2m_run *runs = calloc(nr_pages + 1, sizeof(*runs));
	const struct p2m_run untouched = { .pfn = 1, .entry = 2 };
	__u32 nr_expected, nr, seen = 0;
	__u64 next = pfn, end = pfn + nr_pages;

	ASSERT_NE(NULL, expected);
	ASSERT_NE(NULL, runs);
	nr_expected = simple_runs(entries, pfn, nr_pages, expected);

	/* Without room they are counted. */
	test_cmd_runs(fd, pfn, nr_pages, NULL, 0, &nr, &next);
	ASSERT_EQ(nr_expected, nr);
	ASSERT_EQ(end, next);

	/* With room for some, the next call goes on where this one ended. */
	next = pfn;
	while (next != end) {
		ASSERT_LT(seen, nr_expected);
		runs[seen + capacity < nr_pages ? seen + capacity : nr_pages] =
			untouched;
		test_cmd_runs(fd, next, end - next, runs + seen, capacity, &nr,
			      &next);
		ASSERT_LT(0, nr);
		ASSERT_GE(capacity, nr);
		if (next != end) {
			ASSERT_EQ(capacity, nr);
		}
		if (seen + capacity <= nr_pages) {
			ASSERT_EQ(0, memcmp(&untouched, &runs[seen + capacity],
					    sizeof(untouched)));
		}
		seen += nr;
		ASSERT_EQ(runs[seen - 1].pfn + runs[seen - 1].nr_pages, next);
	}
	ASSERT_EQ(nr_expected, seen);
	ASSERT_EQ(0, memcmp(expected, runs, seen * sizeof(*runs)));
	free(expected);
	free(runs);
}

TEST_F(map, runs_are_those_of_the_entries)
{
	static const __u32 capacities[] = { 1, 2, 7, 10000 };
	const __u64 start = BASE_PFN - 300, nr = self->nr_pages + 600;
	__u64 *entries = range_to_entries(self->fd, start, nr);
	size_t i;

	ASSERT_NE(NULL, entries);
	for (i = 0; i < ARRAY_LEN(capacities); i++) {
		__u32 capacity = capacities[i] < nr ? capacities[i] : nr;

		expect_runs(_metadata, self->fd, entries, start, nr, capacity);
	}
	free(entries);
}

TEST_F(map, runs_are_cut_at_the_ends_of_the_range)
{
	const __u64 nr = 40, start = BASE_PFN - nr / 2;
	const __u64 tail = BASE_PFN + self->nr_pages - nr / 2;
	__u64 *entries = range_to_entries(self->fd, start, nr);
	__u64 *tail_entries = range_to_entries(self->fd, tail, nr);
	__u64 first, len;

	ASSERT_NE(NULL, entries);
	ASSERT_NE(NULL, tail_entries);
	for (first = 0; first < nr; first += 3) {
		for (len = 1; len <= nr - first; len += 2) {
			expect_runs(_metadata, self->fd, entries + first,
				    start + first, len, len);
			expect_runs(_metadata, self->fd, tail_entries + first,
				    tail + first, len, len);
		}
	}
	free(entries);
	free(tail_entries);
}

FIXTURE(scatter)
{
	int fd;
	__u64 *entries;
};

FIXTURE_VARIANT(scatter)
{
	__u64 nr_pages;
	bool may_be_impossible;
};

/* With two or three frames that are neighbours there is no such order. */
FIXTURE_VARIANT_ADD(scatter, n1) { .nr_pages = 1 };
FIXTURE_VARIANT_ADD(scatter, n2) { .nr_pages = 2, .may_be_impossible = true };
FIXTURE_VARIANT_ADD(scatter, n3) { .nr_pages = 3, .may_be_impossible = true };
FIXTURE_VARIANT_ADD(scatter, n4) { .nr_pages = 4 };
FIXTURE_VARIANT_ADD(scatter, n5) { .nr_pages = 5 };
FIXTURE_VARIANT_ADD(scatter, n6) { .nr_pages = 6 };
FIXTURE_VARIANT_ADD(scatter, n7) { .nr_pages = 7 };
FIXTURE_VARIANT_ADD(scatter, n8) { .nr_pages = 8 };
FIXTURE_VARIANT_ADD(scatter, n64) { .nr_pages = 64 };
FIXTURE_VARIANT_ADD(scatter, n511) { .nr_pages = 511 };
FIXTURE_VARIANT_ADD(scatter, n512) { .nr_pages = 512 };
FIXTURE_VARIANT_ADD(scatter, n513) { .nr_pages = 513 };
FIXTURE_VARIANT_ADD(scatter, n4096) { .nr_pages = 4096 };
FIXTURE_VARIANT_ADD(scatter, n16384) { .nr_pages = 16384 };

FIXTURE_SETUP(scatter)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(scatter)
{
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(scatter, no_two_neighbours_are_machine_neighbours)
{
	const __u64 nr = variant->nr_pages;
	__u64 seed, base, i, *mfns;
	int rounds = nr <= 64 ? 200 : nr <= 513 ? 20 : 2;
	int ret, impossible = 0;
	__u32 nr_runs;

	for (seed = 0; seed < rounds; seed++) {
		base = 0;
		ret = _test_cmd_region_create(self->fd, 0, P2M_POLICY_SCATTER,
					      nr, seed, &base);
		if (ret && variant->may_be_impossible) {
			ASSERT_EQ(EADDRNOTAVAIL, errno);
			impossible++;
			continue;
		}
		ASSERT_EQ(0, ret) TH_LOG("seed %llu", seed);
		mfns = range_to_entries(self->fd, base, nr);
		ASSERT_NE(NULL, mfns);
		for (i = 0; i + 1 < nr; i++) {
			ASSERT_NE(mfns[i] + 1, mfns[i + 1])
				TH_LOG("PFN %llu, seed %llu", base + i, seed);
			ASSERT_NE(mfns[i], mfns[i + 1] + 1)
				TH_LOG("PFN %llu, seed %llu", base + i, seed);
		}
		free(mfns);
		/* So each page is a run. */
		test_cmd_runs(self->fd, base, nr, NULL, 0, &nr_runs, NULL);
		ASSERT_EQ(nr, nr_runs);
		test_cmd_region_destroy(self->fd, base);
	}
	if (impossible == rounds)
		SKIP(return, "no such frames were ever free");
}

static int by_value(const void *a, const void *b)
{
	const __u64 *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

/*
 * A region again and again, until some of them got the same frames. They are
 * most likely the ones that were just given back, but nobody promises that.
 */
#define PLACED_PAGES 16
#define PLACED_ROUNDS 1500
#define PLACED_PAIRS 10

struct placement {
	__u64 seed;
	__u64 order[PLACED_PAGES];
	__u64 frames[PLACED_PAGES];
};

static void place(struct __test_metadata *_metadata, int fd, __u64 seed,
		  struct placement *placement)
{
	__u64 base, *entries;

	test_cmd_region_create(fd, P2M_POLICY_SCATTER, PLACED_PAGES, seed,
			       &base);
	entries = range_to_entries(fd, base, PLACED_PAGES);
	ASSERT_NE(NULL, entries);
	placement->seed = seed;
	memcpy(placement->order, entries, sizeof(placement->order));
	free(entries);
	test_cmd_region_destroy(fd, base);
	memcpy(placement->frames, placement->order, sizeof(placement->frames));
	qsort(placement->frames, PLACED_PAGES, sizeof(__u64), by_value);
}

FIXTURE(seed)
{
	int fd;
	struct placement *placed;
};

FIXTURE_SETUP(seed)
{
	cpu_set_t one;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	self->placed = calloc(PLACED_ROUNDS, sizeof(*self->placed));
	ASSERT_NE(NULL, self->placed);
	/* Every processor has a stock of free pages of its own. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
}

FIXTURE_TEARDOWN(seed)
{
	free(self->placed);
	EXPECT_EQ(0, close(self->fd));
}

TEST_F_TIMEOUT(seed, order_is_a_function_of_seed_and_frames, 45)
{
	int i, j, same_seed = 0, other_seed = 0;

	for (i = 0; i < PLACED_ROUNDS; i++) {
		struct placement *this = &self->placed[i];

		if (same_seed >= PLACED_PAIRS && other_seed >= PLACED_PAIRS)
			break;
		place(_metadata, self->fd, i % 2, this);
		for (j = 0; j < i; j++) {
			const struct placement *that = &self->placed[j];
			bool same_order;

			if (memcmp(this->frames, that->frames,
				   sizeof(this->frames)))
				continue;
			same_order = !memcmp(this->order, that->order,
					     sizeof(this->order));
			if (this->seed == that->seed)
				same_seed++;
			else
				other_seed++;
			ASSERT_EQ(this->seed == that->seed, same_order)
				TH_LOG("seeds %llu and %llu", this->seed,
				       that->seed);
		}
	}
	TH_LOG("%d regions, same frames and seed %d times, other seed %d times",
	       i, same_seed, other_seed);
	if (!same_seed || !other_seed)
		SKIP(return, "never got the same frames twice");
}

FIXTURE(contiguous)
{
	int fd;
};

FIXTURE_VARIANT(contiguous)
{
	__u64 nr_pages;
	/* So little that any machine has a run of it. */
	bool must_be_possible;
};

FIXTURE_VARIANT_ADD(contiguous, n1) { .nr_pages = 1, .must_be_possible = true };
FIXTURE_VARIANT_ADD(contiguous, n2) { .nr_pages = 2, .must_be_possible = true };
FIXTURE_VARIANT_ADD(contiguous, n3) { .nr_pages = 3, .must_be_possible = true };
FIXTURE_VARIANT_ADD(contiguous, n8) { .nr_pages = 8, .must_be_possible = true };
FIXTURE_VARIANT_ADD(contiguous, n511) { .nr_pages = 511 };
FIXTURE_VARIANT_ADD(contiguous, n512) { .nr_pages = 512 };
FIXTURE_VARIANT_ADD(contiguous, n513) { .nr_pages = 513 };
FIXTURE_VARIANT_ADD(contiguous, n1024) { .nr_pages = 1024 };
FIXTURE_VARIANT_ADD(contiguous, n1500) { .nr_pages = 1500 };
FIXTURE_VARIANT_ADD(contiguous, n4096) { .nr_pages = 4096 };

FIXTURE_SETUP(contiguous)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(contiguous)
{
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(contiguous, is_one_machine_run_or_nothing)
{
	const __u64 nr = variant->nr_pages;
	struct p2m_run runs[2];
	struct snapshot snap;
	__u64 base = BASE_PFN, i, *mfns;
	__u32 nr_runs;
	int ret;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	ret = _test_cmd_region_create(self->fd, P2M_REGION_FIXED,
				      P2M_POLICY_CONTIGUOUS, nr, 0, &base);
	if (ret && !variant->must_be_possible) {
		if (errno != ENOMEM) {
			ASSERT_EQ(EADDRNOTAVAIL, errno);
		}
		EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
		SKIP(return, "no machine run of this length is free");
	}
	ASSERT_EQ(0, ret);
	mfns = range_to_entries(self->fd, base, nr);
	ASSERT_NE(NULL, mfns);
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(mfns[0] + i, mfns[i]);
	}
	test_cmd_runs(self->fd, base, nr, runs, 2, &nr_runs, NULL);
	ASSERT_EQ(1, nr_runs);
	EXPECT_EQ(base, runs[0].pfn);
	EXPECT_EQ(nr, runs[0].nr_pages);
	EXPECT_EQ(mfns[0], runs[0].entry);
	free(mfns);
}

FIXTURE(question)
{
	int fd;
};

FIXTURE_SETUP(question)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, 100);
}

FIXTURE_TEARDOWN(question)
{
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(question, any_number_is_a_valid_pfn)
{
	static const __u64 pfns[] = {
		0, 99, 110, 511, 512, P2M_MAX_PFN - 1, P2M_MAX_PFN,
		P2M_MAX_PFN + 100, 100 + (1ULL << 32), 100 + (1ULL << 36),
		1ULL << 51, 1ULL << 52, 100 + (1ULL << 52), 1ULL << 61,
		100 + (1ULL << 61), P2M_ENTRY_IDENTITY, P2M_ENTRY_FOREIGN,
		100 | P2M_ENTRY_FOREIGN, ~0ULL - 1, ~0ULL,
	};
	__u64 entries[ARRAY_LEN(pfns)] = {};
	size_t i;

	test_cmd_translate(self->fd, 0, pfns, entries, ARRAY_LEN(pfns));
	for (i = 0; i < ARRAY_LEN(pfns); i++) {
		EXPECT_EQ(P2M_ENTRY_INVALID, entries[i])
			TH_LOG("PFN %#llx", pfns[i]);
	}
}

TEST_F(question, any_number_is_a_valid_mfn)
{
	__u64 mine = pfn_to_entry(self->fd, 100);
	struct p2m_info info;
	size_t i;

	test_cmd_info(self->fd, &info);

	__u64 mfns[] = {
		0, info.out_max_mfn - 1, info.out_max_mfn, info.out_max_mfn + 1,
		mine + (1ULL << 32), mine + (1ULL << 52), mine + (1ULL << 61),
		mine | P2M_ENTRY_IDENTITY, mine | P2M_ENTRY_FOREIGN,
		1ULL << 40, 1ULL << 52, ~0ULL - 1, ~0ULL,
	};
	__u64 pfns[ARRAY_LEN(mfns)] = {};

	ASSERT_EQ(100, mfn_to_pfn(self->fd, mine));
	/* Unless the machine's last frame is ours. */
	for (i = 100; i < 110; i++) {
		if (pfn_to_entry(self->fd, i) == mfns[1])
			mfns[1] = 0;
	}
	test_cmd_translate(self->fd, P2M_TRANSLATE_M2P, mfns, pfns,
			   ARRAY_LEN(mfns));
	for (i = 0; i < ARRAY_LEN(mfns); i++) {
		EXPECT_EQ(P2M_ENTRY_INVALID, pfns[i])
			TH_LOG("MFN %#llx", mfns[i]);
	}
}

TEST_F(question, range_of_runs_is_checked)
{
	struct p2m_run run;

	test_err_runs(EINVAL, self->fd, 100, 0, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, P2M_MAX_PFN, 1, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, P2M_MAX_PFN - 1, 2, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, 0, P2M_MAX_PFN + 1, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, 100, ~0ULL, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, ~0ULL, 1, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, ~0ULL, 2, &run, 1);
	test_err_runs(EOVERFLOW, self->fd, 1, ~0ULL, &run, 1);
}

/* Walking 2^31 entries one by one takes longer than this test may. */
TEST_F(question, holes_of_any_size_are_cheap)
{
	const __u64 last = P2M_MAX_PFN - 1;
	struct p2m_run runs[8];
	__u64 next;
	__u32 nr;

	test_cmd_region_destroy(self->fd, 100);
	test_cmd_runs(self->fd, 0, P2M_MAX_PFN, runs, 8, &nr, &next);
	ASSERT_EQ(1, nr);
	EXPECT_EQ(P2M_MAX_PFN, next);
	EXPECT_EQ(0, runs[0].pfn);
	EXPECT_EQ(P2M_MAX_PFN, runs[0].nr_pages);
	EXPECT_EQ(P2M_ENTRY_INVALID, runs[0].entry);

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, 100);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, last);
	test_cmd_runs(self->fd, 0, P2M_MAX_PFN, runs, 8, &nr, &next);
	ASSERT_EQ(4, nr);
	EXPECT_EQ(P2M_MAX_PFN, next);
	EXPECT_EQ(0, runs[0].pfn);
	EXPECT_EQ(100, runs[0].nr_pages);
	EXPECT_EQ(P2M_ENTRY_INVALID, runs[0].entry);
	EXPECT_EQ(100, runs[1].pfn);
	EXPECT_EQ(1, runs[1].nr_pages);
	EXPECT_EQ(pfn_to_entry(self->fd, 100), runs[1].entry);
	EXPECT_EQ(101, runs[2].pfn);
	EXPECT_EQ(last - 101, runs[2].nr_pages);
	EXPECT_EQ(P2M_ENTRY_INVALID, runs[2].entry);
	EXPECT_EQ(last, runs[3].pfn);
	EXPECT_EQ(1, runs[3].nr_pages);
	EXPECT_EQ(pfn_to_entry(self->fd, last), runs[3].entry);
}

TEST_F(question, reading_needs_whole_entries)
{
	__u64 buf[4];
	int i;

	for (i = 1; i < 8; i++) {
		EXPECT_ERRNO(EINVAL, pread(self->fd, buf, 8, i));
		EXPECT_ERRNO(EINVAL, pread(self->fd, buf, i, 0));
		EXPECT_ERRNO(EINVAL, pread(self->fd, buf, 8 + i, 0));
		EXPECT_ERRNO(EINVAL, read(self->fd, buf, i));
	}
	/* None of these moved the position. */
	EXPECT_EQ(8, read(self->fd, buf, 8));
	EXPECT_EQ(P2M_ENTRY_INVALID, buf[0]);
	EXPECT_EQ(0, pread(self->fd, buf, 0, 0));
}

TEST_F(question, file_ends_behind_the_highest_region)
{
	__u64 buf[4];

	/* Short at the end, nothing behind it. */
	EXPECT_EQ(32, pread(self->fd, buf, 32, 106 * 8));
	EXPECT_EQ(24, pread(self->fd, buf, 32, 107 * 8));
	EXPECT_EQ(pfn_to_entry(self->fd, 109), buf[2]);
	EXPECT_EQ(8, pread(self->fd, buf, 32, 109 * 8));
	EXPECT_EQ(0, pread(self->fd, buf, 32, 110 * 8));
	EXPECT_EQ(0, pread(self->fd, buf, 32, 111 * 8));
	EXPECT_EQ(0, pread(self->fd, buf, 32, P2M_MAX_PFN * 8));
	EXPECT_EQ(0, pread(self->fd, buf, 32, 1LL << 62));

	/* It grows and shrinks. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 2, 0, 1000);
	EXPECT_EQ(32, pread(self->fd, buf, 32, 110 * 8));
	EXPECT_EQ(P2M_ENTRY_INVALID, buf[0]);
	EXPECT_EQ(16, pread(self->fd, buf, 32, 1000 * 8));
	test_cmd_region_destroy(self->fd, 1000);
	EXPECT_EQ(0, pread(self->fd, buf, 32, 110 * 8));
	EXPECT_EQ(8, pread(self->fd, buf, 32, 109 * 8));
	test_cmd_region_destroy(self->fd, 100);
	EXPECT_EQ(0, pread(self->fd, buf, 32, 0));
}

TEST_F(question, last_entry_of_the_space_can_be_read)
{
	const __u64 last = P2M_MAX_PFN - 1;
	__u64 buf[2] = {};

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, last);
	EXPECT_EQ(8, pread(self->fd, buf, 16, last * 8));
	EXPECT_EQ(pfn_to_entry(self->fd, last), buf[0]);
	EXPECT_EQ(0, pread(self->fd, buf, 16, (last + 1) * 8));
}

FIXTURE(view)
{
	int fd;
	const volatile struct p2m_header *header;
	/* All of it: what isn't there costs nothing. */
	const volatile __u64 *p2m;
	const volatile __u64 *m2p;
	__u64 max_mfn;
};

FIXTURE_SETUP(view)
{
	struct p2m_info info;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_info(self->fd, &info);
	self->max_mfn = info.out_max_mfn;
	self->header = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, self->header);
	self->p2m = map_window(self->fd, P2M_OFFSET_P2M, P2M_MAX_PFN * 8);
	ASSERT_NE(MAP_FAILED, self->p2m);
	self->m2p = map_window(self->fd, P2M_OFFSET_M2P,
			       view_bytes(self->max_mfn));
	ASSERT_NE(MAP_FAILED, self->m2p);
}

FIXTURE_TEARDOWN(view)
{
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(view, of_nothing_is_invalid_everywhere)
{
	__u64 pfn;
	int bit;

	EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[0]);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[511]);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[P2M_MAX_PFN - 1]);
	for (bit = 0; bit < 31; bit++) {
		pfn = 1ULL << bit;
		EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[pfn])
			TH_LOG("PFN %#llx", pfn);
		EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[pfn - 1])
			TH_LOG("PFN %#llx", pfn - 1);
	}
	EXPECT_EQ(P2M_ENTRY_INVALID, self->m2p[0]);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->m2p[self->max_mfn - 1]);
}

TEST_F(view, follows_what_happens)
{
	static const __u64 bases[] = { 0, 510, 1ULL << 18, (1ULL << 27) - 2,
				       P2M_MAX_PFN - 4 };
	__u64 i, mfns[4];
	size_t b;

	for (b = 0; b < ARRAY_LEN(bases); b++) {
		const __u64 base = bases[b];

		for (i = 0; i < 4; i++) {
			ASSERT_EQ(P2M_ENTRY_INVALID, self->p2m[base + i]);
		}
		test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0,
					     base);
		for (i = 0; i < 4; i++) {
			mfns[i] = pfn_to_entry(self->fd, base + i);
			ASSERT_NE(P2M_ENTRY_INVALID, mfns[i]);
			ASSERT_EQ(mfns[i], self->p2m[base + i]);
			ASSERT_EQ(base + i, self->m2p[mfns[i]]);
		}
		EXPECT_LE(base + 4, self->header->end_pfn);
		EXPECT_LT(mfns[3], self->header->end_mfn);
		test_cmd_region_destroy(self->fd, base);
		for (i = 0; i < 4; i++) {
			ASSERT_EQ(P2M_ENTRY_INVALID, self->p2m[base + i]);
			ASSERT_EQ(P2M_ENTRY_INVALID, self->m2p[mfns[i]]);
		}
	}
}

TEST_F(view, is_read_only)
{
	void *mem;

	EXPECT_EQ(SIGSEGV, touch_write((void *)self->header, 1));
	EXPECT_EQ(SIGSEGV, touch_write((void *)self->p2m, 1));
	EXPECT_EQ(SIGSEGV, touch_write((void *)self->m2p, 1));
	EXPECT_ERRNO(EACCES, mprotect((void *)self->header, P2M_PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
	EXPECT_ERRNO(EACCES, mprotect((void *)self->p2m, P2M_PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
	EXPECT_ERRNO(EACCES, mprotect((void *)self->m2p, P2M_PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
	mem = mmap(NULL, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->fd, P2M_OFFSET_HEADER);
	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(EACCES, errno);
	mem = mmap(NULL, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->fd, P2M_OFFSET_P2M);
	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(EACCES, errno);
	mem = mmap(NULL, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->fd, P2M_OFFSET_M2P);
	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(EACCES, errno);
	/* Nothing of it had an effect. */
	EXPECT_EQ(P2M_ABI_VERSION, self->header->abi_version);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[0]);
}

TEST_F(view, is_not_private)
{
	static const __u64 offsets[] = { P2M_OFFSET_HEADER, P2M_OFFSET_P2M,
					 P2M_OFFSET_M2P };
	size_t i;

	for (i = 0; i < ARRAY_LEN(offsets); i++) {
		EXPECT_EQ(MAP_FAILED, mmap(NULL, P2M_PAGE_SIZE, PROT_READ,
					   MAP_PRIVATE, self->fd, offsets[i]));
		EXPECT_EQ(EINVAL, errno);
	}
}

TEST_F(view, ends_where_its_window_ends)
{
	const __u64 p2m_end = P2M_OFFSET_P2M + P2M_MAX_PFN * 8;
	static const __u64 outside[] = {
		P2M_OFFSET_HEADER + 0x1000,
		P2M_OFFSET_P2M - 0x1000,
		P2M_OFFSET_P2M + P2M_MAX_PFN * 8,
		P2M_OFFSET_M2P - 0x1000,
		P2M_OFFSET_M2P + (1ULL << 44),
		0x7ffffffffffff000ULL,
	};
	void *mem;
	size_t i;

	for (i = 0; i < ARRAY_LEN(outside); i++) {
		EXPECT_EQ(MAP_FAILED,
			  map_window(self->fd, outside[i], P2M_PAGE_SIZE))
			TH_LOG("offset %#llx", outside[i]);
		/* The kernel itself answers for what is beyond any file. */
		if (errno != EOVERFLOW || i + 1 < ARRAY_LEN(outside)) {
			EXPECT_EQ(EINVAL, errno)
				TH_LOG("offset %#llx", outside[i]);
		}
	}
	/* One page too long. */
	EXPECT_EQ(MAP_FAILED, map_window(self->fd, P2M_OFFSET_HEADER,
					 2 * P2M_PAGE_SIZE));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, map_window(self->fd, p2m_end - P2M_PAGE_SIZE,
					 2 * P2M_PAGE_SIZE));
	EXPECT_EQ(EINVAL, errno);
	/* And none can grow into what's behind it. */
	mem = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(MAP_FAILED, mremap(mem, P2M_PAGE_SIZE, 2 * P2M_PAGE_SIZE,
				     MREMAP_MAYMOVE));
	mem = map_window(self->fd, p2m_end - P2M_PAGE_SIZE, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(MAP_FAILED, mremap(mem, P2M_PAGE_SIZE, 2 * P2M_PAGE_SIZE,
				     MREMAP_MAYMOVE));
}

TEST_F(view, outlives_the_descriptor)
{
	__u64 mfn;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 512);
	mfn = pfn_to_entry(self->fd, 512);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(mfn, self->p2m[512]);
	EXPECT_EQ(512, self->m2p[mfn]);
	EXPECT_EQ(P2M_ENTRY_INVALID, self->p2m[511]);
	EXPECT_LE(516, self->header->end_pfn);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

TEST_F(view, generation_counts_new_tables_only)
{
	__u64 before;

	/* The first tables, and what's above them. */
	before = self->header->generation;
	EXPECT_EQ(0, before & 1);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 0);
	EXPECT_LT(before, self->header->generation);
	EXPECT_EQ(0, self->header->generation & 1);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 512);

	/* Values go into the table that's there. */
	before = self->header->generation;
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 4);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 508);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 1020);
	EXPECT_EQ(before, self->header->generation);

	/* One more table beside these, then three more at once. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 1024);
	EXPECT_EQ(before + 2, self->header->generation);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 513, 0, 2047);
	EXPECT_EQ(before + 6, self->header->generation);

	/* Far away, more than one table is missing. */
	before = self->header->generation;
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0,
				     P2M_MAX_PFN - 1);
	EXPECT_LE(before + 4, self->header->generation);
	EXPECT_EQ(0, self->header->generation & 1);
}

TEST_F(view, questions_leave_the_generation_alone)
{
	__u64 before, m2p_before, buf, i;
	struct p2m_stat stat;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 4, 0, 0);
	before = self->header->generation;
	m2p_before = self->header->m2p_generation;
	EXPECT_EQ(0, m2p_before & 1);
	for (i = 0; i < 31; i++) {
		__u64 pfn = 1ULL << i;

		pfn_to_entry(self->fd, pfn);
		mfn_to_pfn(self->fd, pfn);
		EXPECT_LE(0, pread(self->fd, &buf, 8, pfn * 8));
		EXPECT_EQ(0, touch_read(&self->p2m[pfn]));
	}
	test_cmd_runs(self->fd, 0, P2M_MAX_PFN, NULL, 0, NULL, NULL);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(before, stat.out_generation);
	EXPECT_EQ(before, self->header->generation);
	EXPECT_EQ(m2p_before, self->header->m2p_generation);
}

/*
 * A thread that reads while another one creates and destroys. Phases of round i:
 * 4i nothing is there, 4i+1 it is being created, 4i+2 it is there, 4i+3 it is
 * being destroyed. A reader that saw a phase before and after its reading knows
 * which rounds' entries the value can be.
 */
#define RACE_ROUNDS 20000
#define RACE_PAGES 10
#define RACE_MS 4000
#define RACE_LATER 100000

static const __u64 race_bases[] = { 0, 507, 1ULL << 18, (1ULL << 27) - 5,
				    P2M_MAX_PFN - RACE_PAGES };

struct race {
	int fd;
	const volatile struct p2m_header *header;
	const volatile __u64 *p2m;
	unsigned int phase;
	bool stop;
	__u64 (*truth)[RACE_PAGES];

	/* What the reader found. */
	__u64 nr_checked, nr_alive, nr_retries;
	__u64 nr_wrong, wrong_value;
	unsigned int wrong_phase;
	/* To be judged when all truth is known. */
	struct observation {
		unsigned int before, after;
		unsigned int place, page;
		__u64 value;
	} *later;
	size_t nr_later;
};

enum race_way { RACE_VIEW, RACE_TRANSLATE, RACE_READ, RACE_WAYS };

/* The protocol that struct p2m_header documents. */
static __u64 view_read(struct race *race, __u64 pfn)
{
	__u64 generation, value;

	do {
		generation = __atomic_load_n(&race->header->generation,
					     __ATOMIC_ACQUIRE);
		value = __atomic_load_n(&race->p2m[pfn], __ATOMIC_ACQUIRE);
		race->nr_retries++;
	} while (generation & 1 ||
		 generation != __atomic_load_n(&race->header->generation,
					       __ATOMIC_ACQUIRE));
	race->nr_retries--;
	return value;
}

static bool race_possible(const struct race *race,
			  const struct observation *seen)
{
	unsigned int i;

	if (seen->value == P2M_ENTRY_INVALID)
		return true;
	for (i = seen->before / 4; i <= seen->after / 4; i++)
		if (i % ARRAY_LEN(race_bases) == seen->place &&
		    race->truth[i][seen->page] == seen->value)
			return true;
	return false;
}

static void race_judge(struct race *race, const struct observation *seen)
{
	unsigned int i = seen->before / 4, state = seen->before % 4;
	bool ok;

	race->nr_checked++;
	if (seen->before == seen->after &&
	    (state == 0 || i % ARRAY_LEN(race_bases) != seen->place)) {
		ok = seen->value == P2M_ENTRY_INVALID;
	} else if (seen->before == seen->after && state == 2) {
		race->nr_alive++;
		ok = seen->value == race->truth[i][seen->page];
	} else if (seen->value == P2M_ENTRY_INVALID) {
		ok = true;
	} else {
		if (race->nr_later < RACE_LATER)
			race->later[race->nr_later++] = *seen;
		return;
	}
	if (!ok && !race->nr_wrong++) {
		race->wrong_value = seen->value;
		race->wrong_phase = seen->before;
	}
}

static void *race_reader(void *arg)
{
	struct race *race = arg;
	__u64 state = 1, pfn;
	unsigned int way = 0;

	while (!__atomic_load_n(&race->stop, __ATOMIC_ACQUIRE)) {
		struct observation seen;

		seen.place = next_random(&state) % ARRAY_LEN(race_bases);
		seen.page = next_random(&state) % RACE_PAGES;
		pfn = race_bases[seen.place] + seen.page;
		seen.before = __atomic_load_n(&race->phase, __ATOMIC_SEQ_CST);
		switch (way++ % RACE_WAYS) {
		case RACE_VIEW:
			seen.value = view_read(race, pfn);
			break;
		case RACE_TRANSLATE:
			seen.value = pfn_to_entry(race->fd, pfn);
			break;
		case RACE_READ:
			/* Behind the end nothing is read. */
			seen.value = P2M_ENTRY_INVALID;
			if (pread(race->fd, &seen.value, 8, pfn * 8) < 0)
				race->nr_wrong++;
			break;
		}
		seen.after = __atomic_load_n(&race->phase, __ATOMIC_SEQ_CST);
		race_judge(race, &seen);
	}
	return NULL;
}

TEST_F_TIMEOUT(view, reader_never_accepts_a_wrong_entry, 45)
{
	struct race race = {
		.fd = self->fd,
		.header = self->header,
		.p2m = self->p2m,
	};
	__u64 deadline = now_ms() + RACE_MS, *entries, base;
	pthread_t reader;
	unsigned int i;
	size_t n;

	race.truth = calloc(RACE_ROUNDS, sizeof(*race.truth));
	race.later = calloc(RACE_LATER, sizeof(*race.later));
	ASSERT_NE(NULL, race.truth);
	ASSERT_NE(NULL, race.later);
	ASSERT_EQ(0, pthread_create(&reader, NULL, race_reader, &race));
	/* On a slow kernel as long as it takes to see something. */
	for (i = 0; i < RACE_ROUNDS; i++) {
		__u64 nr_alive = __atomic_load_n(&race.nr_alive, __ATOMIC_RELAXED);

		if (now_ms() >= deadline && i > 10 && nr_alive)
			break;
		base = race_bases[i % ARRAY_LEN(race_bases)];
		__atomic_store_n(&race.phase, 4 * i + 1, __ATOMIC_SEQ_CST);
		test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY,
					     RACE_PAGES, 0, base);
		entries = range_to_entries(self->fd, base, RACE_PAGES);
		ASSERT_NE(NULL, entries);
		memcpy(race.truth[i], entries, sizeof(race.truth[i]));
		free(entries);
		__atomic_store_n(&race.phase, 4 * i + 2, __ATOMIC_SEQ_CST);
		/* Let the reader see it in peace now and then. */
		if (i % 8 == 0)
			usleep(100);
		__atomic_store_n(&race.phase, 4 * i + 3, __ATOMIC_SEQ_CST);
		test_cmd_region_destroy(self->fd, base);
		__atomic_store_n(&race.phase, 4 * i + 4, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	ASSERT_EQ(0, pthread_join(reader, NULL));

	TH_LOG("%u rounds, %llu readings (%llu of them of a region that was there, %zu judged later), %llu retries",
	       i, race.nr_checked, race.nr_alive, race.nr_later,
	       race.nr_retries);
	EXPECT_EQ(0, race.nr_wrong)
		TH_LOG("%llu wrong, the first one %#llx in phase %u",
		       race.nr_wrong, race.wrong_value, race.wrong_phase);
	for (n = 0; n < race.nr_later; n++) {
		ASSERT_TRUE(race_possible(&race, &race.later[n]))
			TH_LOG("value %#llx, phases %u to %u",
			       race.later[n].value, race.later[n].before,
			       race.later[n].after);
	}
	/* The race was one. */
	EXPECT_LT(10, i);
	EXPECT_LT(0, race.nr_alive);
	free(race.truth);
	free(race.later);
}

TEST_HARNESS_MAIN
