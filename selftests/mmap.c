// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings of the pseudo-physical space: memory like any other, for the program
 * that maps it and for the rest of the system.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Begins and ends in the middle of a table, and of a huge page. */
#define BASE_PFN 1000ULL
#define NR_PAGES 2000ULL
#define LEN (NR_PAGES * P2M_PAGE_SIZE)

static char *page_at(char *mem, __u64 index)
{
	return mem + index * P2M_PAGE_SIZE;
}

static void fill_all(char *mem, __u64 nr_pages)
{
	__u64 i;

	for (i = 0; i < nr_pages; i++)
		page_fill(page_at(mem, i), i);
}

/* The index of the first page that isn't as fill_all() left it. */
static __u64 first_mismatch(const char *mem, __u64 nr_pages)
{
	__u64 i;

	for (i = 0; i < nr_pages; i++)
		if (!page_matches(mem + i * P2M_PAGE_SIZE, i))
			break;
	return i;
}

FIXTURE(memory)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

FIXTURE_VARIANT(memory)
{
	__u32 policy;
};

FIXTURE_VARIANT_ADD(memory, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(memory, scatter) { .policy = P2M_POLICY_SCATTER };

FIXTURE_VARIANT_ADD(memory, superpage) { .policy = P2M_POLICY_SUPERPAGE };

FIXTURE_SETUP(memory)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, variant->policy, NR_PAGES, 0,
				     BASE_PFN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(memory)
{
	/* Tests that unmap or move it may have unmapped all of it. */
	munmap(self->mem, LEN);
	EXPECT_EQ(0, close(self->fd));
}

/* A test that has unmapped everything leaves no page behind. */
static void expect_all_returned(struct __test_metadata *_metadata,
				FIXTURE_DATA(memory) * self)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

TEST_F(memory, is_one_linear_piece)
{
	char *again;
	__u64 i;

	fill_all(self->mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	/* Each page can be mapped alone, by its PFN. */
	for (i = 0; i < NR_PAGES; i += 97) {
		again = map_pages(self->fd, BASE_PFN + i, 1);
		ASSERT_NE(MAP_FAILED, again);
		ASSERT_TRUE(page_matches(again, i));
		ASSERT_EQ(0, munmap(again, P2M_PAGE_SIZE));
	}
	/* Across pages too. */
	memmove(self->mem + 1, self->mem, LEN - 1);
	memmove(self->mem, self->mem + 1, LEN - 1);
	EXPECT_EQ(NR_PAGES - 1, first_mismatch(self->mem, NR_PAGES - 1));
	ASSERT_EQ(0, munmap(self->mem, LEN));
	expect_all_returned(_metadata, self);
}

TEST_F(memory, one_fault_serves_many_pages)
{
	struct p2m_stat stat;
	__u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(0, touch_read(page_at(self->mem, i)));
	}
	test_cmd_stat(self->fd, &stat);
	EXPECT_LE(1, stat.out_faults);
	EXPECT_GE(NR_PAGES / 8, stat.out_faults);
	EXPECT_LE(NR_PAGES, stat.out_fault_pages);
	/* Present pages don't fault again, for writing neither. */
	fill_all(self->mem, NR_PAGES);
	i = stat.out_faults;
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(i, stat.out_faults);
}

TEST_F(memory, populated_mapping_does_not_fault)
{
	struct p2m_stat before, after;
	char *mem;

	mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   self->fd, BASE_PFN * P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_stat(self->fd, &before);
	fill_all(mem, NR_PAGES);
	test_cmd_stat(self->fd, &after);
	EXPECT_EQ(before.out_faults, after.out_faults);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	ASSERT_EQ(0, munmap(mem, LEN));
}

struct toucher {
	pthread_t thread;
	char *mem;
	unsigned int nr;
	pthread_barrier_t *start;
};

#define NR_TOUCHERS 4

/* All threads write to all pages, each its own byte, from another start. */
static void *touch_all(void *arg)
{
	struct toucher *toucher = arg;
	__u64 i, page;

	pthread_barrier_wait(toucher->start);
	for (i = 0; i < NR_PAGES; i++) {
		page = (i + toucher->nr * NR_PAGES / NR_TOUCHERS) % NR_PAGES;
		page_at(toucher->mem, page)[toucher->nr] = page + toucher->nr;
	}
	return NULL;
}

TEST_F(memory, threads_fault_in_parallel)
{
	struct toucher touchers[NR_TOUCHERS];
	pthread_barrier_t start;
	unsigned int nr, round;
	char *mem;
	__u64 i;

	ASSERT_EQ(0, pthread_barrier_init(&start, NULL, NR_TOUCHERS));
	for (round = 0; round < 5; round++) {
		mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
		ASSERT_NE(MAP_FAILED, mem);
		for (nr = 0; nr < NR_TOUCHERS; nr++) {
			touchers[nr] = (struct toucher){
				.mem = mem, .nr = nr, .start = &start,
			};
			ASSERT_EQ(0, pthread_create(&touchers[nr].thread, NULL,
						    touch_all, &touchers[nr]));
		}
		for (nr = 0; nr < NR_TOUCHERS; nr++) {
			ASSERT_EQ(0, pthread_join(touchers[nr].thread, NULL));
		}
		for (i = 0; i < NR_PAGES; i++) {
			for (nr = 0; nr < NR_TOUCHERS; nr++) {
				ASSERT_EQ((char)(i + nr),
					  page_at(self->mem, i)[nr]);
			}
		}
		memset(self->mem, 0, LEN);
		ASSERT_EQ(0, munmap(mem, LEN));
	}
}

TEST_F(memory, read_only_mapping_is_read_only)
{
	char *mem = mmap(NULL, LEN, PROT_READ, MAP_SHARED, self->fd,
			 BASE_PFN * P2M_PAGE_SIZE);

	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(SIGSEGV, touch_write(mem, 1));
	EXPECT_EQ(0, touch_read(mem));
	EXPECT_EQ(SIGSEGV, touch_write(mem, 1));
	EXPECT_EQ(0, self->mem[0]);
	/* It sees what is written elsewhere. */
	fill_all(self->mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(mem, NR_PAGES));
	/* The descriptor may write, so the mapping may come to. */
	ASSERT_EQ(0, mprotect(mem, LEN, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, touch_write(mem, 0x5a));
	EXPECT_EQ(0x5a, self->mem[0]);
	ASSERT_EQ(0, mprotect(mem, LEN, PROT_READ));
	EXPECT_EQ(SIGSEGV, touch_write(mem, 1));
	ASSERT_EQ(0, mprotect(mem, LEN, PROT_NONE));
	EXPECT_EQ(SIGSEGV, touch_read(mem));
	ASSERT_EQ(0, mprotect(mem, LEN, PROT_READ));
	EXPECT_EQ(0x5a, mem[0]);
	ASSERT_EQ(0, munmap(mem, LEN));
}

TEST_F(memory, private_mapping_is_EINVAL)
{
	EXPECT_EQ(MAP_FAILED, mmap(NULL, LEN, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE, self->fd,
				   BASE_PFN * P2M_PAGE_SIZE));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, LEN, PROT_READ, MAP_PRIVATE, self->fd,
				   BASE_PFN * P2M_PAGE_SIZE));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(memory, touch_of_nothing_is_SIGBUS)
{
	const __u64 around = 600;
	char *mem = map_pages(self->fd, BASE_PFN - around,
			      NR_PAGES + 2 * around);
	__u64 i;

	ASSERT_NE(MAP_FAILED, mem);
	fill_all(self->mem, NR_PAGES);
	/* Not even right beside pages that are there. */
	for (i = 0; i < around; i++) {
		char *below = page_at(mem, i);
		char *above = page_at(mem, around + NR_PAGES + i);

		ASSERT_EQ(SIGBUS, touch_read(below)) TH_LOG("page %llu", i);
		ASSERT_EQ(SIGBUS, touch_write(below, 1));
		ASSERT_EQ(SIGBUS, touch_read(above)) TH_LOG("page %llu", i);
		ASSERT_EQ(SIGBUS, touch_write(above, 1));
	}
	EXPECT_EQ(NR_PAGES, first_mismatch(page_at(mem, around), NR_PAGES));

	/* When something comes to be there, the mapping has it. */
	test_cmd_region_create_fixed(self->fd, variant->policy, around, 0,
				     BASE_PFN + NR_PAGES);
	for (i = 0; i < around; i++) {
		ASSERT_EQ(0, touch_read(page_at(mem, around + NR_PAGES + i)));
	}
	EXPECT_EQ(SIGBUS, touch_read(page_at(mem, around - 1)));
	ASSERT_EQ(0, munmap(mem, (NR_PAGES + 2 * around) * P2M_PAGE_SIZE));
}

TEST_F(memory, destroy_takes_it_out_of_mappings)
{
	char *again = map_pages(self->fd, BASE_PFN, NR_PAGES);
	__u64 i;

	ASSERT_NE(MAP_FAILED, again);
	fill_all(self->mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(again, NR_PAGES));
	test_cmd_region_destroy(self->fd, BASE_PFN);
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(SIGBUS, touch_read(page_at(self->mem, i)));
		ASSERT_EQ(SIGBUS, touch_write(page_at(again, i), 1));
	}
	/* A new region at the place is seen by the old mappings. */
	test_cmd_region_create_fixed(self->fd, variant->policy, NR_PAGES, 0,
				     BASE_PFN);
	EXPECT_EQ(LEN, first_nonzero(self->mem, LEN));
	fill_all(again, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	ASSERT_EQ(0, munmap(again, LEN));
}

TEST_F(memory, partial_unmap_keeps_the_rest)
{
	const __u64 from = 700, to = 1300;
	__u64 i;

	fill_all(self->mem, NR_PAGES);
	ASSERT_EQ(0, munmap(page_at(self->mem, from),
			    (to - from) * P2M_PAGE_SIZE));
	for (i = 0; i < NR_PAGES; i++) {
		if (i >= from && i < to) {
			ASSERT_EQ(SIGSEGV, touch_read(page_at(self->mem, i)));
		} else {
			ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
		}
	}
	/* Forget the page tables; the halves fault at their own offsets. */
	ASSERT_EQ(0, madvise(self->mem, from * P2M_PAGE_SIZE, MADV_DONTNEED));
	ASSERT_EQ(0, madvise(page_at(self->mem, to),
			     (NR_PAGES - to) * P2M_PAGE_SIZE, MADV_DONTNEED));
	for (i = to; i < NR_PAGES; i++) {
		ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
	}
	EXPECT_EQ(from, first_mismatch(self->mem, from));
	ASSERT_EQ(0, munmap(self->mem, from * P2M_PAGE_SIZE));
	ASSERT_EQ(0, munmap(page_at(self->mem, to),
			    (NR_PAGES - to) * P2M_PAGE_SIZE));
	expect_all_returned(_metadata, self);
}

TEST_F(memory, dontneed_keeps_the_content)
{
	fill_all(self->mem, NR_PAGES);
	ASSERT_EQ(0, madvise(self->mem, LEN, MADV_DONTNEED));
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(memory, can_be_moved)
{
	char *place, *moved;

	fill_all(self->mem, NR_PAGES);
	place = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, place);
	moved = mremap(self->mem, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED,
		       place);
	ASSERT_EQ(place, moved);
	EXPECT_EQ(SIGSEGV, touch_read(self->mem));
	EXPECT_EQ(NR_PAGES, first_mismatch(moved, NR_PAGES));
	ASSERT_EQ(0, madvise(moved, LEN, MADV_DONTNEED));
	EXPECT_EQ(NR_PAGES, first_mismatch(moved, NR_PAGES));
	/* Gone for the module, too, at its new place. */
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(SIGBUS, touch_read(moved));
	EXPECT_EQ(SIGBUS, touch_read(moved + LEN - 1));
	ASSERT_EQ(0, munmap(moved, LEN));
	expect_all_returned(_metadata, self);
}

TEST_F(memory, can_shrink_and_grow)
{
	const __u64 half = NR_PAGES / 2;
	char *mem;

	fill_all(self->mem, NR_PAGES);
	mem = mremap(self->mem, LEN, half * P2M_PAGE_SIZE, 0);
	ASSERT_EQ(self->mem, mem);
	EXPECT_EQ(half, first_mismatch(mem, half));
	EXPECT_EQ(SIGSEGV, touch_read(page_at(mem, half)));
	/* Back to its size, and one more: there is nothing. */
	mem = mremap(mem, half * P2M_PAGE_SIZE, LEN + P2M_PAGE_SIZE,
		     MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(NR_PAGES, first_mismatch(mem, NR_PAGES));
	EXPECT_EQ(SIGBUS, touch_read(mem + LEN));
	ASSERT_EQ(0, munmap(mem, LEN + P2M_PAGE_SIZE));
	expect_all_returned(_metadata, self);
}

TEST_F(memory, growth_ends_where_the_window_ends)
{
	const __u64 last = P2M_MAX_PFN - 1;
	char *mem, *grown;

	test_cmd_region_create_fixed(self->fd, variant->policy, 1, 0, last);
	mem = map_pages(self->fd, last, 1);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(0, touch_write(mem, 1));
	EXPECT_EQ(MAP_FAILED, map_pages(self->fd, last, 2));
	EXPECT_EQ(EINVAL, errno);
	/* The header begins there: it must not come to be writable memory. */
	grown = mremap(mem, P2M_PAGE_SIZE, 2 * P2M_PAGE_SIZE, MREMAP_MAYMOVE);
	if (grown != MAP_FAILED) {
		EXPECT_EQ(0, touch_read(grown));
		EXPECT_EQ(SIGBUS, touch_read(grown + P2M_PAGE_SIZE));
		EXPECT_EQ(SIGBUS, touch_write(grown + P2M_PAGE_SIZE, 1));
		mem = grown;
	}
	munmap(mem, 2 * P2M_PAGE_SIZE);
}

TEST_F(memory, mapping_can_be_doubled)
{
	char *copy;

	/* See mremap(2) on an old size of 0. */
	fill_all(self->mem, NR_PAGES);
	copy = mremap(self->mem, 0, LEN, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, copy);
	EXPECT_EQ(NR_PAGES, first_mismatch(copy, NR_PAGES));
	self->mem[17] = 0x17;
	EXPECT_EQ(0x17, copy[17]);
	ASSERT_EQ(0, munmap(copy, LEN));
}

TEST_F(memory, fork_shares_it)
{
	int to_child[2], to_parent[2], status;
	char c;
	pid_t pid;

	ASSERT_EQ(0, pipe(to_child));
	ASSERT_EQ(0, pipe(to_parent));
	page_fill(self->mem, 1);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Written before the fork, and by the parent after it. */
		if (!page_matches(self->mem, 1) ||
		    read(to_child[0], &c, 1) != 1 ||
		    !page_matches(page_at(self->mem, 1), 2))
			_exit(1);
		/* The other way: a page in the table, and one to fault. */
		page_fill(self->mem, 3);
		page_fill(page_at(self->mem, NR_PAGES - 1), 4);
		if (write(to_parent[1], "x", 1) != 1)
			_exit(1);
		_exit(read(to_child[0], &c, 1) != 1);
	}
	page_fill(page_at(self->mem, 1), 2);
	ASSERT_EQ(1, write(to_child[1], "x", 1));
	ASSERT_EQ(1, read(to_parent[0], &c, 1));
	EXPECT_TRUE(page_matches(self->mem, 3));
	EXPECT_TRUE(page_matches(page_at(self->mem, NR_PAGES - 1), 4));
	ASSERT_EQ(1, write(to_child[1], "x", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(memory, destroy_reaches_the_mappings_of_other_processes)
{
	int to_child[2], to_parent[2], status;
	pid_t pid;
	char c;

	ASSERT_EQ(0, pipe(to_child));
	ASSERT_EQ(0, pipe(to_parent));
	page_fill(self->mem, 1);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (touch_read(self->mem) || write(to_parent[1], "x", 1) != 1 ||
		    read(to_child[0], &c, 1) != 1)
			_exit(1);
		_exit(touch_read(self->mem) != SIGBUS);
	}
	ASSERT_EQ(1, read(to_parent[0], &c, 1));
	test_cmd_region_destroy(self->fd, BASE_PFN);
	ASSERT_EQ(1, write(to_child[1], "x", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(memory, dontfork_keeps_it_from_children)
{
	int status;
	pid_t pid;

	ASSERT_EQ(0, touch_write(self->mem, 1));
	ASSERT_EQ(0, madvise(self->mem, LEN, MADV_DONTFORK));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(touch_read(self->mem) != SIGSEGV);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, self->mem[0]);
}

TEST_F(memory, can_be_locked)
{
	fill_all(self->mem, NR_PAGES);
	ASSERT_EQ(0, mlock(self->mem, LEN));
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	ASSERT_EQ(0, munlock(self->mem, LEN));
}

/* A child that has the mapping and lives until it's killed. */
static pid_t sleeping_child(void)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	/* If the test ends early, too. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

TEST_F(memory, other_process_reads_and_writes_it)
{
	char *local = malloc(LEN);
	struct iovec here = { .iov_base = local, .iov_len = LEN };
	struct iovec there = { .iov_base = self->mem, .iov_len = LEN };
	pid_t pid;

	ASSERT_NE(NULL, local);
	fill_all(self->mem, NR_PAGES);
	pid = sleeping_child();
	ASSERT_LT(0, pid);
	/* The child's page tables are empty in part: it has not touched it. */
	EXPECT_EQ(LEN, process_vm_readv(pid, &here, 1, &there, 1, 0));
	EXPECT_EQ(NR_PAGES, first_mismatch(local, NR_PAGES));
	memset(local, 0x77, LEN);
	EXPECT_EQ(LEN, process_vm_writev(pid, &here, 1, &there, 1, 0));
	EXPECT_EQ(0, memcmp(local, self->mem, LEN));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	free(local);
}

TEST_F(memory, debugger_peeks_and_pokes)
{
	long *word = (long *)page_at(self->mem, 5);
	int status;
	pid_t pid;

	*word = 0x1122334455667788;
	pid = sleeping_child();
	ASSERT_LT(0, pid);
	ASSERT_EQ(0, ptrace(PTRACE_ATTACH, pid, NULL, NULL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	errno = 0;
	EXPECT_EQ(0x1122334455667788,
		  ptrace(PTRACE_PEEKDATA, pid, word, NULL));
	EXPECT_EQ(0, errno);
	EXPECT_EQ(0, ptrace(PTRACE_POKEDATA, pid, word, (void *)42));
	EXPECT_EQ(42, *word);
	/* Where nothing is there is nothing to see. */
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(-1, ptrace(PTRACE_PEEKDATA, pid, word, NULL));
	EXPECT_EQ(EIO, errno);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
}

TEST_F(memory, goes_through_a_pipe)
{
	const __u64 nr = 16;
	struct iovec iov = {
		.iov_base = self->mem, .iov_len = nr * P2M_PAGE_SIZE,
	};
	char *buf = malloc(nr * P2M_PAGE_SIZE);
	ssize_t ret, done;
	int fds[2];

	ASSERT_NE(NULL, buf);
	fill_all(self->mem, nr);
	ASSERT_EQ(0, pipe(fds));
	ASSERT_LE(nr * P2M_PAGE_SIZE,
		  fcntl(fds[1], F_SETPIPE_SZ, 2 * nr * P2M_PAGE_SIZE));
	/* Copied. */
	ASSERT_EQ(iov.iov_len, write(fds[1], iov.iov_base, iov.iov_len));
	ASSERT_EQ(iov.iov_len, read(fds[0], buf, iov.iov_len));
	EXPECT_EQ(nr, first_mismatch(buf, nr));
	/* By reference. */
	memset(buf, 0, iov.iov_len);
	ASSERT_EQ(iov.iov_len, vmsplice(fds[1], &iov, 1, 0));
	for (done = 0; done < iov.iov_len; done += ret) {
		ret = read(fds[0], buf + done, iov.iov_len - done);
		ASSERT_LT(0, ret);
	}
	EXPECT_EQ(nr, first_mismatch(buf, nr));
	/* And as what a read stores into. */
	ASSERT_EQ(iov.iov_len, write(fds[1], buf, iov.iov_len));
	memset(self->mem, 0, iov.iov_len);
	ASSERT_EQ(iov.iov_len, read(fds[0], self->mem, iov.iov_len));
	EXPECT_EQ(nr, first_mismatch(self->mem, nr));
	free(buf);
}

TEST_F(memory, pinned_pages_survive_destroy)
{
	const __u64 nr = 8;
	struct iovec iov = {
		.iov_base = self->mem, .iov_len = nr * P2M_PAGE_SIZE,
	};
	char *buf = malloc(iov.iov_len);
	ssize_t ret, done;
	int fds[2];

	ASSERT_NE(NULL, buf);
	fill_all(self->mem, nr);
	ASSERT_EQ(0, pipe(fds));
	ASSERT_EQ(iov.iov_len, vmsplice(fds[1], &iov, 1, 0));
	test_cmd_region_destroy(self->fd, BASE_PFN);
	/* New regions don't get those pages meanwhile. */
	test_cmd_region_create_fixed(self->fd, variant->policy, NR_PAGES, 0,
				     BASE_PFN);
	memset(self->mem, 0xee, LEN);
	for (done = 0; done < iov.iov_len; done += ret) {
		ret = read(fds[0], buf + done, iov.iov_len - done);
		ASSERT_LT(0, ret);
	}
	EXPECT_EQ(nr, first_mismatch(buf, nr));
	free(buf);
}

TEST_F(memory, read_only_descriptor_maps_read_only)
{
	int fd = open(P2M_DEVICE, O_RDONLY | O_CLOEXEC);
	char *mem;

	ASSERT_LE(0, fd);
	mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(EACCES, errno);
	mem = mmap(NULL, LEN, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(LEN, first_nonzero(mem, LEN));
	EXPECT_ERRNO(EACCES, mprotect(mem, LEN, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, munmap(mem, LEN));
	ASSERT_EQ(0, close(fd));
}

/*
 * I/O that doesn't copy: the pages themselves are what the device or file system
 * reads and writes.
 */
FIXTURE(direct)
{
	int fd;
	int file;
	char *mem;
};

FIXTURE_VARIANT(direct)
{
	int (*open)(void);
};

static int open_temp_file(void)
{
	/* A real file system rather than one in memory. */
	const char *dirs[] = { ".", getenv("TMPDIR"), "/var/tmp", "/tmp" };
	char path[4096];
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_LEN(dirs); i++) {
		if (!dirs[i])
			continue;
		snprintf(path, sizeof(path), "%s/p2m-direct-XXXXXX", dirs[i]);
		fd = mkostemp(path, O_DIRECT | O_CLOEXEC);
		if (fd < 0)
			continue;
		unlink(path);
		return fd;
	}
	return -1;
}

static int open_direct_loop(void)
{
	return open_loop_device(LEN);
}

FIXTURE_VARIANT_ADD(direct, file) { .open = open_temp_file };
FIXTURE_VARIANT_ADD(direct, block_device) { .open = open_direct_loop };

FIXTURE_SETUP(direct)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->file = variant->open();
	if (self->file < 0)
		SKIP(return, "nothing here that can do O_DIRECT");
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 5,
				     BASE_PFN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(direct)
{
	EXPECT_EQ(0, close(self->file));
	EXPECT_EQ(0, munmap(self->mem, LEN));
	EXPECT_EQ(0, close(self->fd));
}

static ssize_t transfer_all(ssize_t (*transfer)(int, void *, size_t, off_t),
			    int fd, char *mem)
{
	ssize_t ret, done = 0;

	while (done < LEN) {
		ret = transfer(fd, mem + done, LEN - done, done);
		if (ret <= 0)
			return -1;
		done += ret;
	}
	return done;
}

static ssize_t pwrite_any(int fd, void *mem, size_t len, off_t offset)
{
	return pwrite(fd, mem, len, offset);
}

static ssize_t pread_any(int fd, void *mem, size_t len, off_t offset)
{
	return pread(fd, mem, len, offset);
}

TEST_F(direct, writes_from_it_and_reads_into_it)
{
	fill_all(self->mem, NR_PAGES);
	ASSERT_EQ(LEN, transfer_all(pwrite_any, self->file, self->mem));
	memset(self->mem, 0, LEN);
	/* Neither page is in a page table: the kernel has to fault them in. */
	ASSERT_EQ(0, madvise(self->mem, LEN, MADV_DONTNEED));
	ASSERT_EQ(LEN, transfer_all(pread_any, self->file, self->mem));
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(direct, stops_where_nothing_is)
{
	char *mem = map_pages(self->fd, BASE_PFN, NR_PAGES + 8);

	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_ERRNO(EFAULT, pwrite(self->file, page_at(mem, NR_PAGES),
				    4 * P2M_PAGE_SIZE, 0));
	ASSERT_EQ(0, munmap(mem, (NR_PAGES + 8) * P2M_PAGE_SIZE));
}

/* Regions that are made by mapping. */
FIXTURE(plain)
{
	int fd;
	__u64 total_pages;
};

FIXTURE_SETUP(plain)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(plain)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(plain, mmap_of_a_new_descriptor_makes_a_region)
{
	struct p2m_region region;
	struct p2m_info info;
	__u64 total;
	char *mem;
	__u32 nr;

	test_cmd_info(self->fd, &info);
	mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_region_list(self->fd, 0, &region, 1, &nr, &total);
	ASSERT_EQ(1, nr);
	EXPECT_EQ(1, total);
	EXPECT_EQ(0, region.base_pfn);
	EXPECT_EQ(NR_PAGES, region.nr_pages);
	EXPECT_EQ(info.out_default_policy, region.policy);
	EXPECT_EQ(LEN, first_nonzero(mem, LEN));
	fill_all(mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(mem, NR_PAGES));
	ASSERT_EQ(0, munmap(mem, LEN));
	/* The region stays, and with it the content. */
	mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(NR_PAGES, first_mismatch(mem, NR_PAGES));
	ASSERT_EQ(0, munmap(mem, LEN));
	test_cmd_region_list(self->fd, 0, &region, 1, &nr, &total);
	EXPECT_EQ(1, total);
}

TEST_F(plain, region_is_where_it_is_mapped)
{
	struct p2m_region region;
	__u64 total;
	char *mem;

	mem = map_pages(self->fd, 12345, 10);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_region_list(self->fd, 0, &region, 1, NULL, &total);
	ASSERT_EQ(1, total);
	EXPECT_EQ(12345, region.base_pfn);
	EXPECT_EQ(10, region.nr_pages);
	EXPECT_EQ(0, touch_write(mem + 10 * P2M_PAGE_SIZE - 1, 1));
	ASSERT_EQ(0, munmap(mem, 10 * P2M_PAGE_SIZE));
}

TEST_F(plain, length_is_rounded_up_to_pages)
{
	struct p2m_region region;
	char *mem;

	mem = mmap(NULL, 5000, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_region_list(self->fd, 0, &region, 1, NULL, NULL);
	EXPECT_EQ(2, region.nr_pages);
	ASSERT_EQ(0, munmap(mem, 5000));
}

TEST_F(plain, only_the_first_mapping_makes_a_region)
{
	__u64 total;
	char *mem;

	mem = map_pages(self->fd, 0, 10);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, munmap(mem, 10 * P2M_PAGE_SIZE));
	mem = map_pages(self->fd, 5, 10);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(1, total);
	EXPECT_EQ(0, touch_read(mem));
	EXPECT_EQ(SIGBUS, touch_read(mem + 5 * P2M_PAGE_SIZE));
	ASSERT_EQ(0, munmap(mem, 10 * P2M_PAGE_SIZE));
	/* A domain that had a region is no new one. */
	test_cmd_region_destroy(self->fd, 0);
	mem = map_pages(self->fd, 0, 10);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(SIGBUS, touch_read(mem));
	test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(0, total);
	ASSERT_EQ(0, munmap(mem, 10 * P2M_PAGE_SIZE));
}

TEST_F(plain, mapping_of_a_view_makes_no_region)
{
	void *view = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	__u64 total;
	char *mem;

	ASSERT_NE(MAP_FAILED, view);
	test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(0, total);
	mem = map_pages(self->fd, 0, 3);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(0, touch_read(mem));
	test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(1, total);
	ASSERT_EQ(0, munmap(mem, 3 * P2M_PAGE_SIZE));
	ASSERT_EQ(0, munmap(view, P2M_PAGE_SIZE));
}

TEST_F(plain, mapping_that_fails_makes_no_region)
{
	__u64 total;

	EXPECT_EQ(MAP_FAILED, mmap(NULL, LEN, PROT_READ, MAP_PRIVATE, self->fd,
				   0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, map_pages(self->fd, P2M_MAX_PFN - 1, 2));
	EXPECT_EQ(EINVAL, errno);
	test_cmd_region_list(self->fd, 0, NULL, 0, NULL, &total);
	EXPECT_EQ(0, total);
}

/* The memory as that of a virtual machine. */
TEST_F(plain, kvm_guest_runs_in_it)
{
	/* mov byte [0x5000], 0x42; mov al, [0x6000]; mov [0x5001], al; hlt */
	static const unsigned char code[] = {
		0xc6, 0x06, 0x00, 0x50, 0x42, 0xa0, 0x00,
		0x60, 0xa2, 0x01, 0x50, 0xf4,
	};
	struct kvm_guest guest;
	const char *reason;
	char *mem;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, 64, 9, 0);
	mem = map_pages(self->fd, 0, 64);
	ASSERT_NE(MAP_FAILED, mem);
	memcpy(mem + 0x1000, code, sizeof(code));
	mem[0x6000] = 0x66;
	if (!kvm_guest_open(&guest, mem, 64 * P2M_PAGE_SIZE, &reason)) {
		ASSERT_NE(NULL, reason);
		SKIP(return, "%s", reason);
	}
	EXPECT_TRUE(kvm_guest_run(&guest, 0x1000));
	EXPECT_EQ(0x42, mem[0x5000]);
	EXPECT_EQ(0x66, mem[0x5001]);

	/* What is taken out of mappings is taken from the guest, too. */
	test_cmd_region_destroy(self->fd, 0);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, 64, 10, 0);
	memcpy(mem + 0x1000, code, sizeof(code));
	mem[0x6000] = 0x67;
	EXPECT_TRUE(kvm_guest_run(&guest, 0x1000));
	EXPECT_EQ(0x67, mem[0x5001]);

	EXPECT_TRUE(kvm_guest_close(&guest));
	ASSERT_EQ(0, munmap(mem, 64 * P2M_PAGE_SIZE));
}

TEST_HARNESS_MAIN
