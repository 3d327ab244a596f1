// SPDX-License-Identifier: GPL-2.0
/*
 * A live P2M at size: threads on all processors use memory all frames of which
 * change again and again, and a machine that has no large blocks left.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* 256 MiB. */
#define NR_PAGES 65536ULL
#define NR_THREADS 4

FIXTURE(stress) {
	int fd;
	__u64 baseline;
};

FIXTURE_SETUP(stress)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->baseline = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(stress)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->baseline, total_pages());
}

/* Each thread has the pages with its number modulo the number of threads. */
struct hammer {
	pthread_t thread;
	unsigned int nr;
	char *mem;
	__u64 *tags;
	const bool *stop;
	__u64 nr_done;
	__u64 nr_wrong;
};

static void *hammer_pages(void *arg)
{
	struct hammer *hammer = arg;
	cpu_set_t cpus;
	__u64 i;

	/* Each on a processor of its own, as far as there are any. */
	CPU_ZERO(&cpus);
	CPU_SET(hammer->nr % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	for (i = hammer->nr; !__atomic_load_n(hammer->stop, __ATOMIC_RELAXED);
	     i = (i + NR_THREADS) % NR_PAGES) {
		char *page = hammer->mem + i * P2M_PAGE_SIZE;

		if (!page_matches(page, hammer->tags[i]))
			hammer->nr_wrong++;
		hammer->tags[i] += NR_PAGES;
		page_fill(page, hammer->tags[i]);
		__atomic_fetch_add(&hammer->nr_done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* What changes all frames, or as many as it can. Each returns how many. */
static __u64 scatter_all(int fd, unsigned int round)
{
	struct p2m_move cmd;

	if (_test_cmd_move(fd, 0, NR_PAGES, P2M_POLICY_SCATTER, round, &cmd))
		return 0;
	return cmd.out_busy ? 0 : cmd.out_pages;
}

static __u64 contiguous_all(int fd, unsigned int round)
{
	struct p2m_contiguous cmd;
	__u64 pfn, nr = 0;

	(void)round;
	for (pfn = 0; pfn < NR_PAGES; pfn += 512) {
		if (!_test_cmd_contiguous(fd, pfn, 9, 0, &cmd))
			nr += 512;
		else if (errno != EADDRNOTAVAIL)
			return 0;
	}
	return nr;
}

/* Superpages, as many as the machine has room for. */
static __u64 collapse_all(int fd, unsigned int round)
{
	struct p2m_collapse cmd = {
		.size = sizeof(cmd),
		.nr_pages = NR_PAGES,
	};

	(void)round;
	if (ioctl(fd, P2M_COLLAPSE, &cmd) && errno != EADDRNOTAVAIL)
		return 0;
	return cmd.out_busy ? 0 : cmd.out_pages;
}

/* A page of each 512 changes, and so all of them do. */
static __u64 split_all(int fd, unsigned int round)
{
	struct p2m_move cmd;
	__u64 pfn, nr = 0;

	for (pfn = round; pfn < NR_PAGES; pfn += 512) {
		if (_test_cmd_move(fd, pfn, 1, P2M_POLICY_ANY, 0, &cmd) ||
		    cmd.out_busy)
			return 0;
		nr += cmd.out_pages;
	}
	return nr;
}

/* Out of the 64 MiB around the frame of some page. */
static __u64 evacuate_some(int fd, unsigned int round)
{
	const __u64 mfn = pfn_to_entry(fd, round * 9973 % NR_PAGES);
	struct p2m_evacuate cmd;

	if (_test_cmd_evacuate(fd, 0, mfn & ~0x3fffULL, 0x4000, &cmd))
		return 0;
	return cmd.out_busy ? 0 : cmd.out_pages;
}

static __u64 exchange_halves(int fd, unsigned int round)
{
	struct p2m_exchange cmd;

	(void)round;
	if (_test_cmd_exchange(fd, 0, NR_PAGES / 2, NR_PAGES / 2, &cmd))
		return 0;
	return cmd.out_busy ? 0 : 2 * cmd.out_pages;
}

TEST_F_TIMEOUT(stress, threads_lose_no_byte_of_256_mib, 600)
{
	static const struct {
		__u64 (*run)(int fd, unsigned int round);
		__u64 at_least;
	} changes[] = {
		{ scatter_all, NR_PAGES },
		/* As many as the machine has room for. */
		{ contiguous_all, 512 },
		{ collapse_all, 512 },
		{ evacuate_some, 1 },
		{ split_all, NR_PAGES / 512 },
		{ exchange_halves, NR_PAGES },
	};
	struct hammer hammers[NR_THREADS] = {};
	__u64 i, nr, before, nr_changes = 0;
	struct p2m_audit audit;
	struct p2m_stat stat;
	bool stop = false;
	__u64 *tags, base;
	size_t round;
	char *mem;

	test_cmd_region_create(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 1, &base);
	ASSERT_EQ(0, base);
	mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	tags = calloc(NR_PAGES, sizeof(*tags));
	ASSERT_NE(NULL, tags);
	for (i = 0; i < NR_PAGES; i++) {
		tags[i] = i;
		page_fill(mem + i * P2M_PAGE_SIZE, i);
	}
	for (i = 0; i < NR_THREADS; i++) {
		hammers[i] = (struct hammer){
			.nr = i, .mem = mem, .tags = tags, .stop = &stop,
		};
		ASSERT_EQ(0, pthread_create(&hammers[i].thread, NULL,
					    hammer_pages, &hammers[i]));
	}
	for (round = 0; round < ARRAY_LEN(changes); round++) {
		before = now_ms();
		nr = changes[round].run(self->fd, round);
		EXPECT_LE(changes[round].at_least, nr)
			TH_LOG("round %zu", round);
		nr_changes += nr;
		ASSERT_TRUE(audit_is_clean(self->fd, &audit))
			TH_LOG("round %zu", round);
		ASSERT_EQ(NR_PAGES, audit.out_frames);
		TH_LOG("round %zu: %llu frames in %llu ms", round, nr,
		       now_ms() - before);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < NR_THREADS; i++) {
		ASSERT_EQ(0, pthread_join(hammers[i].thread, NULL));
		EXPECT_EQ(0, hammers[i].nr_wrong);
		/* Nobody was kept from working for good. */
		EXPECT_LT(0, hammers[i].nr_done);
	}
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE, tags[i]))
			TH_LOG("page %llu", i);
	}
	TH_LOG("%llu frames changed, %lld processors", nr_changes,
	       (long long)sysconf(_SC_NPROCESSORS_ONLN));

	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_frames);
	ASSERT_EQ(0, munmap(mem, NR_PAGES * P2M_PAGE_SIZE));
	test_cmd_region_destroy(self->fd, 0);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(0, stat.out_frames);
	EXPECT_EQ(0, stat.out_pages);
	free(tags);
}

/*
 * Free blocks of an order or a higher one; ~0 if it isn't known. The lowest zone is
 * only for those who ask for it.
 */
static __u64 free_blocks(unsigned int order)
{
	FILE *file = fopen("/proc/buddyinfo", "r");
	unsigned long count;
	unsigned int i;
	__u64 sum = 0;
	char name[32];

	if (!file)
		return ~0ULL;
	while (fscanf(file, "Node %*d, zone %31s", name) == 1) {
		for (i = 0; fscanf(file, " %lu", &count) == 1; i++)
			if (i >= order && strcmp(name, "DMA"))
				sum += count;
	}
	fclose(file);
	return sum;
}

/* 1 GiB. */
#define NR_GIANT 262144ULL

/* What the kernel says of a page: free, or on the list of what can be moved. */
#define FRAME_LRU (1ULL << 5)
#define FRAME_BUDDY (1ULL << 10)

/*
 * The most frames that follow each other, of one zone, and which are free or can be
 * moved, by what the kernel says; 0 if it isn't known.
 */
static __u64 longest_movable(void)
{
	static const __u64 borders[] = { 1ULL << 12, 1ULL << 20 };
	FILE *file = fopen("/proc/kpageflags", "r");
	__u64 flags, mfn, nr = 0, longest = 0;

	if (!file)
		return 0;
	for (mfn = 0; fread(&flags, sizeof(flags), 1, file) == 1; mfn++) {
		if (mfn == borders[0] || mfn == borders[1])
			nr = 0;
		nr = flags & (FRAME_LRU | FRAME_BUDDY) ? nr + 1 : 0;
		longest = nr > longest ? nr : longest;
	}
	fclose(file);
	return longest;
}

/* Not only where a multiple of 1 GiB is: of these there are few, or none. */
TEST_F_TIMEOUT(stress, runs_of_1_gib_are_had_while_there_is_room, 300)
{
	struct p2m_run run;
	__u64 base, nr;
	__u32 nr_runs;

	if (!longest_movable())
		SKIP(return, "no /proc/kpageflags");
	/* What is left to others, too. */
	for (nr = 0; meminfo_kib("MemAvailable") > 1500 * 1024; nr++) {
		base = 0;
		if (_test_cmd_region_create(self->fd, 0, P2M_POLICY_CONTIGUOUS,
					    NR_GIANT, 0, &base)) {
			EXPECT_TRUE(errno == EADDRNOTAVAIL || errno == EDQUOT);
			if (errno == EADDRNOTAVAIL)
				EXPECT_GT(NR_GIANT, longest_movable());
			break;
		}
		test_cmd_runs(self->fd, base, NR_GIANT, &run, 1, &nr_runs, NULL);
		EXPECT_EQ(NR_GIANT, run.nr_pages);
		TH_LOG("MFN 0x%llx", run.entry);
	}
	TH_LOG("%llu of them", nr);
}

#define ORDER 4
/* One in so many frames stays taken. */
#define STEP (1ULL << ORDER)
/* What is fragmented, roughly: 512 MiB. */
#define NR_FRAGMENTED 131072ULL

/*
 * Takes what there is in blocks of at least ORDER into a domain, and gives all
 * but one frame of each back. Returns the number of frames that were given back.
 */
static __u64 fragment(struct __test_metadata *_metadata, int fd)
{
	__u64 pfn = 0, end, base, first, i, start, given_back = 0;
	struct p2m_release release;
	int order;

	/* The module leaves some to others: that is had when most was given back. */
	do {
		start = pfn;
		for (order = 10; order >= ORDER;) {
			base = pfn;
			/* What isn't free needn't be reclaimed for. */
			if (!free_blocks(order) ||
			    _test_cmd_region_create(fd, P2M_REGION_FIXED,
						    P2M_POLICY_CONTIGUOUS,
						    1ULL << order, 0, &base))
				order--;
			else
				pfn += 1ULL << order;
		}
		for (i = start; i < pfn; i += STEP) {
			/* Blocks are aligned to as much, and so are their PFNs. */
			first = pfn_to_entry(fd, i);
			ASSERT_EQ(0, first % STEP) TH_LOG("frame %llx", first);
			release = test_cmd_release(fd, i + 1, STEP - 1);
			given_back += release.out_pages;
		}
	} while (pfn != start && free_blocks(ORDER));
	/* What others have given back meanwhile. */
	for (end = pfn + 1024; pfn < end && free_blocks(ORDER); pfn += STEP) {
		base = pfn;
		if (_test_cmd_region_create(fd, P2M_REGION_FIXED,
					    P2M_POLICY_CONTIGUOUS, STEP, 0,
					    &base))
			break;
	}
	return given_back;
}

#define MIN_FREE "/proc/sys/vm/min_free_kbytes"

/* What the kernel keeps for those who can't wait. Returns what it was, or 0. */
static unsigned int set_min_free(unsigned int kib)
{
	FILE *file = fopen(MIN_FREE, "r+");
	unsigned int old;

	if (!file)
		return 0;
	if (fscanf(file, "%u", &old) != 1)
		old = 0;
	rewind(file);
	if (fprintf(file, "%u", kib) < 0)
		old = 0;
	return fclose(file) ? 0 : old;
}

/* Memory in use, so that the limit of the module is no limit here. */
static char *use_memory(__u64 bytes)
{
	char *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

TEST_F_TIMEOUT(stress, fragmented_machine_has_regions_but_no_runs, 300)
{
	const __u64 nr = 16384;
	struct p2m_contiguous contiguous;
	struct p2m_region_create giant = {
		.size = sizeof(giant),
		.policy = P2M_POLICY_CONTIGUOUS,
	};
	static const __u32 policies[] = { P2M_POLICY_ANY, P2M_POLICY_SCATTER };
	__u64 *before, *after, base, i, blocks, in_use, given_back, nr_held;
	int fragments = p2m_open(), err;
	struct p2m_audit audit;
	struct p2m_info info;
	unsigned int min_free;
	char *mem, *used;
	size_t p;

	ASSERT_LE(0, fragments);
	blocks = free_blocks(ORDER);
	if (blocks == ~0ULL)
		SKIP(return, "no /proc/buddyinfo");
	test_cmd_info(self->fd, &info);
	/* The module leaves a quarter to others. We are those, and need some more. */
	in_use = meminfo_kib("MemTotal") / 4 * 1024 + 2 * nr * P2M_PAGE_SIZE;
	used = use_memory(in_use);
	ASSERT_NE(NULL, used);
	/* Most of the rest is just taken, in a way that nobody can move. */
	nr_held = meminfo_kib("MemFree") / 4;
	if (nr_held < 2 * NR_FRAGMENTED)
		SKIP(goto out, "there's too little memory");
	nr_held -= NR_FRAGMENTED;
	base = 1ULL << 24;
	ASSERT_EQ(0, _test_cmd_region_create(fragments, P2M_REGION_FIXED,
					     P2M_POLICY_ANY, nr_held, 0, &base));
	/* It keeps large blocks, too. */
	min_free = set_min_free(1024);
	given_back = fragment(_metadata, fragments);
	if (min_free)
		set_min_free(min_free);
	TH_LOG("%llu free blocks before, %llu now, %llu frames given back",
	       blocks, free_blocks(ORDER), given_back);
	ASSERT_LE(4 * nr, given_back);
	/* There were hundreds. One or another may come back at any time. */
	if (free_blocks(ORDER) > 2 && system("cat /proc/buddyinfo >&2"))
		TH_LOG("no /proc/buddyinfo");
	ASSERT_LE(free_blocks(ORDER), 2);

	for (p = 0; p < ARRAY_LEN(policies); p++) {
		test_cmd_region_create(self->fd, policies[p], nr, 0, &base);
		mem = map_pages(self->fd, base, nr);
		ASSERT_NE(MAP_FAILED, mem);
		for (i = 0; i < nr; i++)
			page_fill(mem + i * P2M_PAGE_SIZE, i);
		before = range_to_entries(self->fd, base, nr);
		ASSERT_NE(NULL, before);
		for (i = 1; i < nr && policies[p] == P2M_POLICY_SCATTER; i++)
			ASSERT_FALSE(before[i] == before[i - 1] + 1 ||
				     before[i] + 1 == before[i - 1])
				TH_LOG("page %llu", i);

		/* A run is made by moving others' pages out of the way, or isn't. */
		errno = 0;
		err = _test_cmd_contiguous(self->fd, base, ORDER, 0,
					   &contiguous) ? errno : 0;
		TH_LOG("a run of %u pages: %s", 1 << ORDER, strerror(err));
		after = range_to_entries(self->fd, base, nr);
		ASSERT_NE(NULL, after);
		if (err) {
			EXPECT_EQ(EADDRNOTAVAIL, err);
			EXPECT_EQ(P2M_ENTRY_INVALID, contiguous.out_busy_pfn);
			EXPECT_EQ(0, memcmp(before, after, nr * sizeof(*after)));
		}
		for (i = 1; !err && i < 1 << ORDER; i++)
			EXPECT_EQ(after[0] + i, after[i]);

		for (i = 0; i < nr; i++)
			ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE, i))
				TH_LOG("page %llu", i);
		ASSERT_TRUE(audit_is_clean(self->fd, &audit));
		free(before);
		free(after);
		munmap(mem, nr * P2M_PAGE_SIZE);
		test_cmd_region_destroy(self->fd, base);
	}
	/*
	 * 128 MiB of what is free, but in one piece: our own memory can be moved out
	 * of the way, if there is as much of it anywhere.
	 */
	giant.nr_pages = 2 * nr;
	errno = 0;
	err = ioctl(self->fd, P2M_REGION_CREATE, &giant) ? errno : 0;
	TH_LOG("a run of %llu pages: %s", giant.nr_pages, strerror(err));
	if (!err) {
		struct p2m_run run;
		__u32 nr_runs;

		test_cmd_runs(self->fd, giant.base_pfn, giant.nr_pages, &run, 1,
			      &nr_runs, NULL);
		EXPECT_EQ(giant.nr_pages, run.nr_pages);
		test_cmd_region_destroy(self->fd, giant.base_pfn);
	} else {
		EXPECT_EQ(EADDRNOTAVAIL, err);
	}

	ASSERT_TRUE(audit_is_clean(fragments, &audit));
out:
	munmap(used, in_use);
	EXPECT_EQ(0, close(fragments));
	/* Free memory is in one piece again, as far as it was. */
	EXPECT_LT(blocks / 4, free_blocks(ORDER));
	test_cmd_region_create(self->fd, P2M_POLICY_CONTIGUOUS, 512, 0, &base);
}

TEST_HARNESS_MAIN
