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

#include "fail_commands.h"
#include "kselftest_harness.h"

const struct sizes sizes = {
	.nr_scattered = 600,
	.nr_demand = 24,
	.nr_fresh = 700,
	.nr_moved = 40,
	.nr_filled = NR_ALIGNED,
};

static __u64 fail_nth(int fd, __u64 nth)
{
	struct p2m_fail_nth cmd = { .size = sizeof(cmd), .nth = nth };

	return ioctl(fd, P2M_FAIL_NTH, &cmd) ? ~0ULL : cmd.out_left;
}

FIXTURE(failing) {
	struct domain domain;
	__u64 baseline;
};

FIXTURE_VARIANT(failing) {
	const struct command *command;
};

#define VARIANT(id) \
	FIXTURE_VARIANT_ADD(failing, id) { .command = &command_##id }
COMMANDS(VARIANT);

FIXTURE_SETUP(failing)
{
	self->baseline = total_pages();
	self->domain.fd = p2m_open();
	ASSERT_LE(0, self->domain.fd) SKIP(return, "cannot open " P2M_DEVICE);
	close(self->domain.fd);
	ASSERT_TRUE(domain_open(&self->domain))
		TH_LOG("no domain: %s", strerror(errno));
	ASSERT_TRUE(command_prepare(variant->command, &self->domain));
}

FIXTURE_TEARDOWN(failing)
{
	domain_close(&self->domain);
	EXPECT_EQ(self->baseline, total_pages());
}

static void check_contents(struct __test_metadata *_metadata,
			   const unsigned char *memory)
{
	__u64 pfn;

	for (pfn = 0; pfn < END; pfn++)
		if (has_contents(pfn))
			ASSERT_TRUE(page_matches(memory + pfn * P2M_PAGE_SIZE, pfn))
				TH_LOG("page %llu has other contents", pfn);
}

static void check_audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit;

	ASSERT_TRUE(audit_is_clean(fd, &audit));
}

TEST_F_TIMEOUT(failing, leaves_nothing_lost, 120)
{
	const struct command *command = variant->command;
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
		if (ret && !command->half_way) {
			after = range_to_entries(domain->fd, 0, END);
			ASSERT_NE(NULL, after);
			EXPECT_EQ(0, memcmp(before, after, END * sizeof(*after)))
				TH_LOG("place %u of %s: frames differ", nth,
				       command->name);
			free(after);
		}
		free(before);
		if (nth % 16 == 1 || left)
			check_contents(_metadata, domain->memory);

		/* Not reached, and so not failed. */
		if (left) {
			ASSERT_EQ(0, ret);
			break;
		}
		nr_failures++;
		if (command->undo && (!ret || command->half_way))
			command->undo(domain);
	}
	ASSERT_LT(nth, MAX_NTH);
	/* One in which nothing can fail proves nothing, unless it has to be so. */
	EXPECT_EQ(command->is_safe, !nr_failures);
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
	__u64 left = 0, base = 0;
	unsigned int nth;

	ASSERT_LE(0, fd) SKIP(return, "cannot open " P2M_DEVICE);
	ASSERT_EQ(0, _test_cmd_region_create(fd, P2M_REGION_ON_DEMAND | P2M_REGION_FIXED,
					     P2M_POLICY_ANY, MAX_NTH, 0, &base));
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
