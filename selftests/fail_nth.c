// SPDX-License-Identifier: GPL-2.0
/*
 * Has each place that can fail do so, one after the other, for every command:
 * P2M_FAIL_NTH counts up until the command succeeds without one. After a failure
 * the domain is as before, or has got as far as the command says; nothing is
 * lost, and no page has other contents.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Scattered pages, pages that follow each other, pages for tables. */
#define SCATTERED 0UL
#define NR_SCATTERED 600UL
#define ALIGNED 1024UL
#define NR_ALIGNED 1024UL
#define POOL 2048UL
#define NR_POOL 64UL
#define DEMAND 2560UL
#define NR_DEMAND 24UL
#define END (DEMAND + NR_DEMAND)

#define SPACE_ADDRESS 0x40000000UL
/* More places than any command has. */
#define MAX_NTH 5000

static __u64 fail_nth(int fd, __u64 nth)
{
	struct p2m_fail_nth cmd = { .size = sizeof(cmd), .nth = nth };

	return ioctl(fd, P2M_FAIL_NTH, &cmd) ? ~0ULL : cmd.out_left;
}

static int region_create(int fd, __u32 flags, __u32 policy, __u64 pfn,
			 __u64 nr_pages)
{
	__u64 base = pfn;

	return _test_cmd_region_create(fd, flags | P2M_REGION_FIXED, policy,
				       nr_pages, 0, &base);
}

static int space_create(int fd, __u32 *space)
{
	struct p2m_space_create cmd = {
		.size = sizeof(cmd),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = POOL,
		.pool_pages = NR_POOL,
	};
	int ret = ioctl(fd, P2M_SPACE_CREATE, &cmd);

	*space = cmd.out_space;
	return ret;
}

static int space_destroy(int fd, __u32 space)
{
	struct p2m_space_destroy cmd = { .size = sizeof(cmd), .space = space };

	return ioctl(fd, P2M_SPACE_DESTROY, &cmd);
}

static int space_map_at(int fd, __u32 space, __u64 address, __u64 pfn,
			__u64 nr_pages)
{
	struct p2m_space_map cmd = {
		.size = sizeof(cmd),
		.space = space,
		.max_level = 1,
		.address = address,
		.pfn = pfn,
		.nr_pages = nr_pages,
		.pte_flags = P2M_PTE_RW,
	};

	return ioctl(fd, P2M_SPACE_MAP, &cmd);
}

static int space_map(int fd, __u32 space, __u64 pfn, __u64 nr_pages)
{
	return space_map_at(fd, space, SPACE_ADDRESS + pfn * P2M_PAGE_SIZE, pfn,
			    nr_pages);
}

static int space_unmap_at(int fd, __u32 space, __u64 address, __u64 nr_pages)
{
	struct p2m_space_unmap cmd = {
		.size = sizeof(cmd),
		.space = space,
		.address = address,
		.nr_pages = nr_pages,
	};

	return ioctl(fd, P2M_SPACE_UNMAP, &cmd);
}

static int space_unmap(int fd, __u32 space, __u64 pfn, __u64 nr_pages)
{
	return space_unmap_at(fd, space, SPACE_ADDRESS + pfn * P2M_PAGE_SIZE,
			      nr_pages);
}

struct domain {
	int fd;
	__u32 space;
};

/*
 * The commands. Each begins with a domain as the fixture makes it, and @undo, if
 * it needs any, leads back to it after a success. @whole ones have no half-way.
 */
struct command {
	const char *name;
	bool whole;
	bool with_space;
	int (*run)(const struct domain *d);
	int (*undo)(const struct domain *d);
};

static int run_create(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_SCATTER, 4096, 700);
}

static int run_create_guarded(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, 4096, 700);
}

static int run_create_contiguous(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_CONTIGUOUS, 4096, 700);
}

static int undo_create(const struct domain *d)
{
	return _test_cmd_region_destroy(d->fd, 4096);
}

static int run_release(const struct domain *d)
{
	struct p2m_release cmd;

	return _test_cmd_release(d->fd, DEMAND, NR_DEMAND, &cmd);
}

static int run_populate(const struct domain *d)
{
	struct p2m_populate cmd;

	return _test_cmd_populate(d->fd, DEMAND, NR_DEMAND, &cmd);
}

static int run_move(const struct domain *d)
{
	struct p2m_move cmd;

	return _test_cmd_move(d->fd, SCATTERED, 40, P2M_POLICY_SCATTER, 3, &cmd);
}

static int run_evacuate(const struct domain *d)
{
	__u64 mfn = pfn_to_entry(d->fd, ALIGNED);
	struct p2m_evacuate cmd;

	if (mfn > P2M_ENTRY_MFN_MASK)
		return -1;
	return _test_cmd_evacuate(d->fd, 0, mfn & ~63ULL, 64, &cmd);
}

static int run_contiguous(const struct domain *d)
{
	struct p2m_contiguous cmd;

	return _test_cmd_contiguous(d->fd, SCATTERED + 17, 4, 0, &cmd);
}

static int run_exchange(const struct domain *d)
{
	struct p2m_exchange cmd;

	return _test_cmd_exchange(d->fd, SCATTERED, ALIGNED + 500, 20, &cmd);
}

static int run_space_create(const struct domain *d)
{
	__u32 space;

	return space_create(d->fd, &space);
}

static __u32 last_space(int fd)
{
	struct p2m_space_walk cmd = { .size = sizeof(cmd) };

	/* Numbers are not used again soon. */
	for (cmd.space = MAX_NTH + 10; cmd.space; cmd.space--)
		if (!ioctl(fd, P2M_SPACE_WALK, &cmd))
			break;
	return cmd.space;
}

static int undo_space_create(const struct domain *d)
{
	return space_destroy(d->fd, last_space(d->fd));
}

/* So far from anything else that it needs tables of its own. */
static int run_space_map(const struct domain *d)
{
	return space_map_at(d->fd, d->space, SPACE_ADDRESS << 10, SCATTERED, 600);
}

static int undo_space_map(const struct domain *d)
{
	return space_unmap_at(d->fd, d->space, SPACE_ADDRESS << 10, 600);
}

/* A large leaf has to be split. */
static int run_space_split(const struct domain *d)
{
	return space_unmap(d->fd, d->space, ALIGNED + 100, 10);
}

static int undo_space_split(const struct domain *d)
{
	return space_unmap(d->fd, d->space, ALIGNED, NR_ALIGNED) ?:
	       space_map(d->fd, d->space, ALIGNED, NR_ALIGNED);
}

static int run_export(const struct domain *d)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		.start_pfn = ALIGNED,
		.nr_pages = 100,
		.fd_flags = O_RDWR,
	};

	if (ioctl(d->fd, P2M_DMA_BUF_EXPORT, &cmd))
		return -1;
	return close(cmd.out_fd);
}

/* Beyond the machine: it costs nothing, and can be in any number of pieces. */
#define BEYOND (1ULL << 39)

static int run_keep_out(const struct domain *d)
{
	struct p2m_evacuate cmd;

	return _test_cmd_evacuate(d->fd, P2M_EVACUATE_KEEP_OUT, BEYOND, 8, &cmd) ?:
	       _test_cmd_evacuate(d->fd, P2M_EVACUATE_KEEP_OUT, BEYOND + 16, 8,
				  &cmd);
}

static int undo_keep_out(const struct domain *d)
{
	struct p2m_evacuate cmd;

	/* After a failure there may be nothing to readmit. */
	_test_cmd_evacuate(d->fd, P2M_EVACUATE_READMIT, BEYOND, 24, &cmd);
	return 0;
}

static int run_readmit(const struct domain *d)
{
	struct p2m_evacuate cmd;
	int ret = _test_cmd_evacuate(d->fd, P2M_EVACUATE_READMIT, BEYOND + 4, 1,
				     &cmd);

	/* There has to be something the first time. */
	if (ret && errno == ENOENT)
		ret = run_keep_out(d) ?:
		      _test_cmd_evacuate(d->fd, P2M_EVACUATE_READMIT,
					 BEYOND + 4, 1, &cmd);
	return ret;
}

static int run_foreign(const struct domain *d)
{
	const __u64 frames[] = { 0, 1, 2 };
	int lender = p2m_open(), ret;
	__s32 errors[3];
	__u32 nr;

	if (lender < 0 || region_create(lender, 0, P2M_POLICY_ANY, 0, 3))
		return -1;
	ret = _test_cmd_foreign_map(d->fd, lender, DEMAND, frames, errors, 3, &nr);
	close(lender);
	/* A slot that fails doesn't keep others from being filled. */
	return ret ?: nr == 3 ? 0 : -1;
}

static int undo_foreign(const struct domain *d)
{
	__s32 errors[3];
	__u32 nr;

	return _test_cmd_foreign_unmap(d->fd, DEMAND, errors, 3, &nr);
}

#define IDENTITY 0xfec00UL

static int run_identity(const struct domain *d)
{
	/* The place stays, and is there after the first time. */
	region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, IDENTITY, 16);
	return _test_cmd_identity(d->fd, IDENTITY, 16);
}

static int undo_identity(const struct domain *d)
{
	struct p2m_release cmd;

	return _test_cmd_release(d->fd, IDENTITY, 16, &cmd);
}

/* A large leaf has to be split, too. */
static int run_space_change(const struct domain *d)
{
	struct p2m_space_change cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.address = SPACE_ADDRESS + (ALIGNED + 100) * P2M_PAGE_SIZE,
		.nr_pages = 10,
	};

	return ioctl(d->fd, P2M_SPACE_CHANGE, &cmd);
}

static int run_region_destroy(const struct domain *d)
{
	return _test_cmd_region_destroy(d->fd, DEMAND);
}

static int undo_region_destroy(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_SCATTER,
			     DEMAND, NR_DEMAND);
}

/* Everything that is there is looked at. */
static int run_looks(const struct domain *d)
{
	struct p2m_guard_check guards = {
		.size = sizeof(guards), .nr_pages = NR_SCATTERED,
	};
	struct p2m_dma_plan plan = { .size = sizeof(plan), .length = 1 };
	struct p2m_space_walk walk = { .size = sizeof(walk), .space = d->space };
	struct p2m_space_dump dump = {
		.size = sizeof(dump), .space = d->space, .nr = 1,
	};
	struct p2m_space_info info;
	struct p2m_space_list list = { .size = sizeof(list), .nr = 1 };
	struct p2m_region region;
	struct p2m_audit audit;
	struct p2m_span span;
	struct p2m_info all;
	struct p2m_stat stat;
	struct p2m_run run;
	__u64 next, entry = SCATTERED;
	__u32 nr;

	dump.spans = (uintptr_t)&span;
	list.spaces = (uintptr_t)&info;
	return _test_cmd_info(d->fd, &all) ?: _test_cmd_stat(d->fd, &stat) ?:
	       _test_cmd_region_list(d->fd, 0, &region, 1, &nr, &next) ?:
	       _test_cmd_translate(d->fd, 0, &entry, &entry, 1) ?:
	       _test_cmd_runs(d->fd, 0, END, &run, 1, &nr, &next) ?:
	       _test_cmd_audit(d->fd, &audit) ?:
	       ioctl(d->fd, P2M_GUARD_CHECK, &guards) ?:
	       ioctl(d->fd, P2M_DMA_PLAN, &plan) ?:
	       ioctl(d->fd, P2M_SPACE_WALK, &walk) ?:
	       ioctl(d->fd, P2M_SPACE_DUMP, &dump) ?:
	       ioctl(d->fd, P2M_SPACE_LIST, &list);
}

/* Everything that can be taken away goes. */
static int run_takes_away(const struct domain *d)
{
	struct p2m_space_unmap unmap = {
		.size = sizeof(unmap), .flags = P2M_UNMAP_ALL, .space = d->space,
	};
	struct p2m_release release;

	return ioctl(d->fd, P2M_SPACE_UNMAP, &unmap) ?:
	       space_destroy(d->fd, d->space) ?:
	       _test_cmd_release(d->fd, DEMAND, NR_DEMAND, &release) ?:
	       undo_foreign(d);
}

static const struct command commands[] = {
	{ "region_create", true, true, run_create, undo_create },
	{ "region_create guarded", true, true, run_create_guarded, undo_create },
	{ "region_create contiguous", true, true, run_create_contiguous,
	  undo_create },
	{ "populate", false, true, run_populate, run_release },
	{ "move", false, true, run_move, NULL },
	{ "evacuate", false, true, run_evacuate, NULL },
	{ "contiguous", true, true, run_contiguous, NULL },
	{ "exchange", false, true, run_exchange, NULL },
	{ "space_create", true, false, run_space_create, undo_space_create },
	{ "space_map", true, true, run_space_map, undo_space_map },
	{ "space_unmap a part of a large leaf", false, true, run_space_split,
	  undo_space_split },
	{ "dma_buf_export", true, true, run_export, NULL },
	{ "evacuate and keep out", false, true, run_keep_out, undo_keep_out },
	{ "readmit", false, true, run_readmit, undo_keep_out },
	{ "foreign_map", false, true, run_foreign, undo_foreign },
	{ "identity", true, true, run_identity, undo_identity },
	{ "space_change a part of a large leaf", false, true, run_space_change,
	  undo_space_split },
	{ "region_destroy", true, true, run_region_destroy, undo_region_destroy },
	{ "what only looks", true, true, run_looks, NULL },
	{ "what takes away", true, true, run_takes_away, NULL },
};

/* What only looks, or takes away, needs nothing that can be missing. */
static bool is_safe(const struct command *command)
{
	return command->run == run_region_destroy || command->run == run_looks ||
	       command->run == run_takes_away;
}

FIXTURE(failing) {
	struct domain domain;
	unsigned char *memory;
	__u64 baseline;
};

FIXTURE_VARIANT(failing) {
	unsigned int command;
};

#define VARIANT(nr, name) \
	FIXTURE_VARIANT_ADD(failing, name) { .command = nr }

VARIANT(0, region_create);
VARIANT(1, region_create_guarded);
VARIANT(2, region_create_contiguous);
VARIANT(3, populate);
VARIANT(4, move);
VARIANT(5, evacuate);
VARIANT(6, contiguous);
VARIANT(7, exchange);
VARIANT(8, space_create);
VARIANT(9, space_map);
VARIANT(10, space_unmap_part);
VARIANT(11, dma_buf_export);
VARIANT(12, keep_out);
VARIANT(13, readmit);
VARIANT(14, foreign_map);
VARIANT(15, identity);
VARIANT(16, space_change_part);
VARIANT(17, region_destroy);
VARIANT(18, what_only_looks);
VARIANT(19, what_takes_away);

FIXTURE_SETUP(failing)
{
	self->baseline = total_pages();
	self->domain.fd = p2m_open();
	ASSERT_LE(0, self->domain.fd) SKIP(return, "cannot open " P2M_DEVICE);
	ASSERT_EQ(0, region_create(self->domain.fd, 0, P2M_POLICY_SCATTER, SCATTERED,
				   NR_SCATTERED));
	ASSERT_EQ(0, region_create(self->domain.fd, 0, P2M_POLICY_CONTIGUOUS, ALIGNED,
				   NR_ALIGNED));
	ASSERT_EQ(0, region_create(self->domain.fd, 0, P2M_POLICY_ANY, POOL, NR_POOL));
	ASSERT_EQ(0, region_create(self->domain.fd, P2M_REGION_ON_DEMAND,
				   P2M_POLICY_SCATTER, DEMAND, NR_DEMAND));
	self->memory = map_pages(self->domain.fd, 0, END);
	ASSERT_NE(MAP_FAILED, self->memory);
	for (__u64 pfn = 0; pfn < POOL; pfn++)
		if (pfn < NR_SCATTERED || pfn >= ALIGNED)
			page_fill(self->memory + pfn * P2M_PAGE_SIZE, pfn);

	if (commands[variant->command].with_space) {
		ASSERT_EQ(0, space_create(self->domain.fd, &self->domain.space));
		ASSERT_EQ(0, space_map(self->domain.fd, self->domain.space, SCATTERED,
				       NR_SCATTERED));
	}
	if (commands[variant->command].undo == undo_space_split)
		ASSERT_EQ(0, space_map(self->domain.fd, self->domain.space, ALIGNED,
				       NR_ALIGNED));
}

FIXTURE_TEARDOWN(failing)
{
	munmap(self->memory, END * P2M_PAGE_SIZE);
	close(self->domain.fd);
	EXPECT_EQ(self->baseline, total_pages());
}

static void check_contents(struct __test_metadata *_metadata,
			   const unsigned char *memory)
{
	__u64 pfn;

	for (pfn = 0; pfn < POOL; pfn++)
		if (pfn < NR_SCATTERED || pfn >= ALIGNED)
			ASSERT_TRUE(page_matches(memory + pfn * P2M_PAGE_SIZE,
						 pfn))
				TH_LOG("page %llu has other contents", pfn);
}

static void check_audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit;

	ASSERT_TRUE(audit_is_clean(fd, &audit));
}

TEST_F_TIMEOUT(failing, leaves_nothing_lost, 120)
{
	const struct command *command = &commands[variant->command];
	const struct domain *domain = &self->domain;
	unsigned int nth, nr_failures = 0;

	for (nth = 1; nth <= MAX_NTH; nth++) {
		__u64 *before = range_to_entries(domain->fd, 0, END);
		__u64 *after;
		__u64 left;
		int ret;

		ASSERT_NE(NULL, before);
		fail_nth(domain->fd, nth);
		ret = command->run(domain);
		left = fail_nth(domain->fd, 0);

		check_audit(_metadata, domain->fd);
		if (ret && command->whole) {
			after = range_to_entries(domain->fd, 0, END);
			ASSERT_NE(NULL, after);
			EXPECT_EQ(0, memcmp(before, after, END * sizeof(*after)))
				TH_LOG("place %u of %s: frames differ", nth,
				       command->name);
			free(after);
		}
		free(before);
		if (nth % 16 == 1 || left)
			check_contents(_metadata, self->memory);

		/* Not reached, and so not failed. */
		if (left) {
			ASSERT_EQ(0, ret);
			break;
		}
		nr_failures++;
		if (command->undo && (!ret || !command->whole))
			command->undo(domain);
	}
	ASSERT_LT(nth, MAX_NTH);
	/* One in which nothing can fail proves nothing, unless it has to be so. */
	EXPECT_EQ(is_safe(command), !nr_failures);
	TH_LOG("%s: %u places failed", command->name, nr_failures);
}

/* A mapping that creates a region has none after a failure. */
TEST(mmap_of_a_fresh_domain_leaves_nothing_lost)
{
	const size_t len = 600 * P2M_PAGE_SIZE;
	__u64 baseline = total_pages();
	unsigned int nth;

	for (nth = 1; nth <= MAX_NTH; nth++) {
		int fd = p2m_open();
		__u64 left;
		void *mem;

		ASSERT_LE(0, fd) SKIP(return, "cannot open " P2M_DEVICE);
		fail_nth(fd, nth);
		mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		left = fail_nth(fd, 0);
		check_audit(_metadata, fd);
		if (mem == MAP_FAILED) {
			struct p2m_stat stat = { .size = sizeof(stat) };

			test_cmd_stat(fd, &stat);
			EXPECT_EQ(0, stat.out_regions);
			EXPECT_EQ(0, stat.out_frames);
		} else {
			EXPECT_EQ(len, first_nonzero(mem, len));
			munmap(mem, len);
		}
		close(fd);
		EXPECT_EQ(baseline, total_pages());
		if (left) {
			ASSERT_NE(MAP_FAILED, mem);
			break;
		}
	}
	EXPECT_LT(1, nth);
	ASSERT_LT(nth, MAX_NTH);
}

/* A touch that finds no memory is a signal, and the next one finds some. */
TEST(touch_on_demand_leaves_nothing_lost)
{
	int fd = p2m_open();
	volatile unsigned char *mem;
	unsigned int nth;
	__u64 left = 0;

	ASSERT_LE(0, fd) SKIP(return, "cannot open " P2M_DEVICE);
	ASSERT_EQ(0, region_create(fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, 0,
				   MAX_NTH));
	mem = map_pages(fd, 0, MAX_NTH);
	ASSERT_NE(MAP_FAILED, mem);
	for (nth = 1; nth < 100 && !left; nth++) {
		volatile unsigned char *page = mem + nth * 512 % MAX_NTH * P2M_PAGE_SIZE;
		int sig;

		fail_nth(fd, nth);
		sig = touch_write(page, nth);
		left = fail_nth(fd, 0);
		check_audit(_metadata, fd);
		/* It may have done without what failed. */
		EXPECT_TRUE(!sig || (!left && sig == SIGBUS));
		EXPECT_EQ(0, touch_write(page, nth));
	}
	EXPECT_LT(2, nth);
	EXPECT_NE(0, left);
	munmap((void *)mem, MAX_NTH * P2M_PAGE_SIZE);
	close(fd);
}

TEST_HARNESS_MAIN
