// SPDX-License-Identifier: GPL-2.0
/*
 * A domain lives as long as a descriptor or a mapping of it, however these come
 * and go; then all of its pages are given back.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define NR_PAGES 300ULL
#define LEN (NR_PAGES * P2M_PAGE_SIZE)

/* 64 MiB. */
#define BIG_PAGES 16384ULL
#define BIG_LEN (BIG_PAGES * P2M_PAGE_SIZE)

static __u64 total_domains(void)
{
	struct p2m_stat stat;
	int fd = p2m_open();
	int ret;

	if (fd < 0)
		return ~0ULL;
	ret = _test_cmd_stat(fd, &stat);
	close(fd);
	return ret ? ~0ULL : stat.out_total_domains;
}

FIXTURE(life)
{
	int fd;
	char *mem;
	/* Before this domain was there. */
	__u64 pages;
	__u64 domains;
};

FIXTURE_SETUP(life)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->pages = total_pages();
	self->domains = total_domains();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, NR_PAGES, 0, 0);
	self->mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
	page_fill(self->mem, 1);
}

FIXTURE_TEARDOWN(life)
{
	munmap(self->mem, LEN);
	close(self->fd);
	EXPECT_EQ(self->pages, total_pages());
	EXPECT_EQ(self->domains, total_domains());
}

/* Is exactly this domain there, with all of its pages? */
static void expect_alive(struct __test_metadata *_metadata,
			 FIXTURE_DATA(life) * self)
{
	EXPECT_EQ(self->pages + NR_PAGES, total_pages());
	EXPECT_EQ(self->domains + 1, total_domains());
}

static void expect_gone(struct __test_metadata *_metadata,
			FIXTURE_DATA(life) * self)
{
	EXPECT_EQ(self->pages, total_pages());
	EXPECT_EQ(self->domains, total_domains());
}

TEST_F(life, ends_with_the_last_reference)
{
	expect_alive(_metadata, self);
	ASSERT_EQ(0, close(self->fd));
	expect_alive(_metadata, self);
	ASSERT_EQ(0, munmap(self->mem, LEN));
	expect_gone(_metadata, self);
}

TEST_F(life, descriptor_outlives_the_mapping)
{
	ASSERT_EQ(0, munmap(self->mem, LEN));
	expect_alive(_metadata, self);
	self->mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
	EXPECT_TRUE(page_matches(self->mem, 1));
	ASSERT_EQ(0, munmap(self->mem, LEN));
	ASSERT_EQ(0, close(self->fd));
	expect_gone(_metadata, self);
}

TEST_F(life, mapping_outlives_the_descriptor)
{
	ASSERT_EQ(0, close(self->fd));
	EXPECT_TRUE(page_matches(self->mem, 1));
	/* It still faults, too. */
	ASSERT_EQ(0, madvise(self->mem, LEN, MADV_DONTNEED));
	EXPECT_TRUE(page_matches(self->mem, 1));
	page_fill(self->mem + LEN - P2M_PAGE_SIZE, 2);
	EXPECT_TRUE(page_matches(self->mem + LEN - P2M_PAGE_SIZE, 2));
	expect_alive(_metadata, self);
}

TEST_F(life, lasts_until_the_last_piece_is_unmapped)
{
	__u64 i, pieces = NR_PAGES / 10;

	ASSERT_EQ(0, close(self->fd));
	/* Every other piece, then the ones between. */
	for (i = 0; i < pieces; i += 2) {
		ASSERT_EQ(0, munmap(self->mem + i * 10 * P2M_PAGE_SIZE,
				    10 * P2M_PAGE_SIZE));
	}
	expect_alive(_metadata, self);
	for (i = 1; i < pieces - 1; i += 2) {
		ASSERT_EQ(0, munmap(self->mem + i * 10 * P2M_PAGE_SIZE,
				    10 * P2M_PAGE_SIZE));
	}
	expect_alive(_metadata, self);
	EXPECT_EQ(0, touch_read(self->mem + LEN - 1));
	ASSERT_EQ(0, munmap(self->mem + (pieces - 1) * 10 * P2M_PAGE_SIZE,
			    10 * P2M_PAGE_SIZE));
	expect_gone(_metadata, self);
}

TEST_F(life, duplicate_is_the_same_domain)
{
	int copy = dup(self->fd);
	struct p2m_stat stat;

	ASSERT_LE(0, copy);
	expect_alive(_metadata, self);
	ASSERT_EQ(0, munmap(self->mem, LEN));
	ASSERT_EQ(0, close(self->fd));
	expect_alive(_metadata, self);
	test_cmd_stat(copy, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_pages);
	ASSERT_EQ(0, close(copy));
	expect_gone(_metadata, self);
}

TEST_F(life, opening_again_is_another_domain)
{
	struct p2m_stat stat;
	char path[64];
	int other;

	/* Even by the name of this very descriptor. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	other = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, other);
	test_cmd_stat(other, &stat);
	EXPECT_EQ(0, stat.out_pages);
	EXPECT_EQ(self->domains + 1, stat.out_total_domains);
	ASSERT_EQ(0, close(other));
	expect_alive(_metadata, self);
}

TEST_F(life, child_keeps_it)
{
	int to_child[2], status;
	struct p2m_stat stat;
	pid_t pid;
	char c;

	ASSERT_EQ(0, pipe(to_child));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(to_child[1]);
		/* Until the parent has given up all that it had. */
		if (read(to_child[0], &c, 1) != 1)
			_exit(1);
		if (_test_cmd_stat(self->fd, &stat) ||
		    stat.out_pages != NR_PAGES || !page_matches(self->mem, 1))
			_exit(2);
		_exit(0);
	}
	ASSERT_EQ(0, munmap(self->mem, LEN));
	ASSERT_EQ(0, close(self->fd));
	expect_alive(_metadata, self);
	ASSERT_EQ(1, write(to_child[1], "x", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	expect_gone(_metadata, self);
}

static int send_fd(int sock, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -1;
}

static int receive_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

TEST_F(life, passed_descriptor_is_the_same_domain)
{
	int socks[2], status, fd;
	pid_t pid;
	char *mem;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Only what comes through the socket. */
		close(socks[1]);
		close(self->fd);
		munmap(self->mem, LEN);
		fd = receive_fd(socks[0]);
		if (fd < 0)
			_exit(1);
		mem = map_pages(fd, 0, NR_PAGES);
		if (mem == MAP_FAILED || !page_matches(mem, 1))
			_exit(2);
		page_fill(mem, 2);
		close(fd);
		/* Wait for the parent to have closed, and keep the mapping. */
		if (write(socks[0], "x", 1) != 1 || read(socks[0], &fd, 1) != 1)
			_exit(3);
		_exit(!page_matches(mem, 2));
	}
	close(socks[0]);
	ASSERT_EQ(0, send_fd(socks[1], self->fd));
	ASSERT_EQ(1, read(socks[1], &fd, 1));
	EXPECT_TRUE(page_matches(self->mem, 2));
	ASSERT_EQ(0, munmap(self->mem, LEN));
	ASSERT_EQ(0, close(self->fd));
	expect_alive(_metadata, self);
	ASSERT_EQ(1, write(socks[1], "x", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	expect_gone(_metadata, self);
}

TEST_F(life, descriptor_in_flight_keeps_it)
{
	int socks[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	ASSERT_EQ(0, send_fd(socks[1], self->fd));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, munmap(self->mem, LEN));
	expect_alive(_metadata, self);
	self->fd = receive_fd(socks[0]);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, send_fd(socks[1], self->fd));
	ASSERT_EQ(0, close(self->fd));
	/* Never received. */
	ASSERT_EQ(0, close(socks[0]));
	ASSERT_EQ(0, close(socks[1]));
	expect_gone(_metadata, self);
}

TEST_F(life, many_domains_come_and_go)
{
	int fds[100];
	__u64 base;
	size_t i;

	for (i = 0; i < ARRAY_LEN(fds); i++) {
		fds[i] = p2m_open();
		ASSERT_LE(0, fds[i]);
		test_cmd_region_create(fds[i], P2M_POLICY_ANY, 10, 0, &base);
	}
	EXPECT_EQ(self->domains + 101, total_domains());
	EXPECT_EQ(self->pages + NR_PAGES + 1000, total_pages());
	for (i = 0; i < ARRAY_LEN(fds); i++) {
		ASSERT_EQ(0, close(fds[i]));
	}
	expect_alive(_metadata, self);
}

/* The ways in which a process can end. */
FIXTURE(end)
{
	__u64 pages;
	__u64 domains;
};

FIXTURE_VARIANT(end)
{
	/* Sent to itself; 0 is _exit(). */
	int signal;
	bool exec;
};

FIXTURE_VARIANT_ADD(end, exits) {};
FIXTURE_VARIANT_ADD(end, is_killed) { .signal = SIGKILL };
FIXTURE_VARIANT_ADD(end, crashes) { .signal = SIGSEGV };
FIXTURE_VARIANT_ADD(end, execs) { .exec = true };

FIXTURE_SETUP(end)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->pages = total_pages();
	self->domains = total_domains();
}

FIXTURE_TEARDOWN(end)
{
	EXPECT_EQ(self->pages, total_pages());
	EXPECT_EQ(self->domains, total_domains());
}

TEST_F(end, of_a_process_gives_all_back)
{
	int fd, status;
	__u64 base = 0;
	pid_t pid;
	char *mem;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_DUMPABLE, 0);
		fd = p2m_open();
		if (_test_cmd_region_create(fd, 0, P2M_POLICY_SCATTER, NR_PAGES,
					    0, &base))
			_exit(1);
		mem = map_pages(fd, base, NR_PAGES);
		if (mem == MAP_FAILED || touch_write(mem, 1) ||
		    map_window(fd, P2M_OFFSET_P2M, P2M_PAGE_SIZE) == MAP_FAILED)
			_exit(1);
		if (variant->exec)
			execl("/bin/true", "true", NULL);
		if (variant->signal) {
			signal(variant->signal, SIG_DFL);
			kill(getpid(), variant->signal);
		}
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	if (variant->signal) {
		ASSERT_TRUE(WIFSIGNALED(status));
		EXPECT_EQ(variant->signal, WTERMSIG(status));
	} else {
		EXPECT_EQ(0, status);
	}
}

/* Big regions. */
FIXTURE(big)
{
	int fd;
	__u64 pages;
	__u64 domains;
};

FIXTURE_VARIANT(big)
{
	__u32 policy;
};

FIXTURE_VARIANT_ADD(big, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(big, scatter) { .policy = P2M_POLICY_SCATTER };

FIXTURE_SETUP(big)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (meminfo_kib("MemFree") < 4 * BIG_LEN / 1024)
		SKIP(return, "not enough free memory");
	self->pages = total_pages();
	self->domains = total_domains();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(big)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->pages, total_pages());
	EXPECT_EQ(self->domains, total_domains());
}

TEST_F_TIMEOUT(big, memory_comes_back, 45)
{
	/* What else goes on in a system that has nothing to do. */
	const __u64 noise_kib = 12 * 1024;
	__u64 before = 0, between = 0, after, base;
	int round;

	/* The first one may leave caches filled. */
	for (round = 0; round < 6; round++) {
		if (round == 1)
			before = meminfo_kib("MemFree");
		test_cmd_region_create(self->fd, variant->policy, BIG_PAGES, 0,
				       &base);
		between = meminfo_kib("MemFree");
		test_cmd_region_destroy(self->fd, base);
	}
	after = meminfo_kib("MemFree");
	EXPECT_LE(between + BIG_LEN / 1024, before + noise_kib)
		TH_LOG("MemFree %llu KiB, with a region %llu KiB", before,
		       between);
	EXPECT_LE(before, after + noise_kib)
		TH_LOG("MemFree %llu KiB before, %llu KiB after", before,
		       after);
}

TEST_F_TIMEOUT(big, new_region_shows_nothing_of_an_old_one, 90)
{
	const __u64 left_kib = 512 << 10, most_kib = 4 << 20;
	__u64 kib = meminfo_kib("MemFree");
	struct p2m_info info;
	__u64 base, nr, len;
	char *mem, *rest;
	int round;

	/* What others have of the memory, so that less is there to be looked at. */
	if (kib > left_kib) {
		__u64 taken = kib - left_kib < most_kib ? kib - left_kib : most_kib;

		rest = mmap(NULL, taken << 10, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		ASSERT_NE(MAP_FAILED, rest);
		madvise(rest, taken << 10, MADV_HUGEPAGE);
		ASSERT_EQ(0, madvise(rest, taken << 10, MADV_POPULATE_WRITE));
		kib = meminfo_kib("MemFree");
	}
	/*
	 * More than half of what is free, so that the second region has pages
	 * of the first one, wherever they come from. Not more than 2 GiB.
	 */
	kib = kib / 10 * 6;
	nr = (kib < 2 << 20 ? kib : 2 << 20) / 4;
	len = nr * P2M_PAGE_SIZE;
	test_cmd_info(self->fd, &info);
	if (nr > info.out_max_domain_pages)
		SKIP(return, "a domain may have too little");
	for (round = 0; round < 3; round++) {
		test_cmd_region_create(self->fd, variant->policy, nr, 0, &base);
		mem = map_pages(self->fd, base, nr);
		ASSERT_NE(MAP_FAILED, mem);
		ASSERT_EQ(len, first_nonzero(mem, len));
		memset(mem, 0xa5, len);
		ASSERT_EQ(0, munmap(mem, len));
		/* By destroy, and by the end of the domain. */
		if (round == 0) {
			test_cmd_region_destroy(self->fd, base);
		}
		ASSERT_EQ(0, close(self->fd));
		self->fd = p2m_open();
		ASSERT_LE(0, self->fd);
	}
}

static pid_t creating_child(int fd, __u32 policy)
{
	__u64 base = 0;
	pid_t pid = fork();

	if (!pid)
		_exit(!!_test_cmd_region_create(fd, 0, policy, BIG_PAGES, 0,
						&base));
	return pid;
}

TEST_F_TIMEOUT(big, creator_killed_half_way_leaves_all_or_nothing, 45)
{
	const int steps = 16;
	struct p2m_stat stat;
	__u64 start, duration;
	int step, status, killed = 0;
	pid_t pid;

	/* How long does it take when it's let alone? */
	start = now_ms();
	pid = creating_child(self->fd, variant->policy);
	ASSERT_LT(0, pid);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	duration = now_ms() - start;
	test_cmd_region_destroy(self->fd, 0);

	for (step = 0; step <= steps; step++) {
		pid = creating_child(self->fd, variant->policy);
		ASSERT_LT(0, pid);
		usleep(duration * 1000 * step / steps);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		test_cmd_stat(self->fd, &stat);
		if (stat.out_regions) {
			EXPECT_EQ(1, stat.out_regions);
			EXPECT_EQ(BIG_PAGES, stat.out_pages);
			EXPECT_EQ(self->pages + BIG_PAGES,
				  stat.out_total_pages);
			test_cmd_region_destroy(self->fd, 0);
		} else {
			EXPECT_EQ(0, stat.out_pages);
			EXPECT_EQ(self->pages, stat.out_total_pages);
			EXPECT_TRUE(WIFSIGNALED(status));
			EXPECT_EQ(P2M_ENTRY_INVALID, pfn_to_entry(self->fd, 0));
			killed++;
		}
	}
	TH_LOG("creation takes %llu ms; killed before its end: %d of %d",
	       duration, killed, steps + 1);
	EXPECT_LT(0, killed);
}

TEST_F(big, owner_killed_half_way_gives_all_back)
{
	int step, fd;
	pid_t pid;

	for (step = 0; step < 8; step++) {
		fd = p2m_open();
		ASSERT_LE(0, fd);
		pid = creating_child(fd, variant->policy);
		ASSERT_LT(0, pid);
		/* The child's descriptor is now the only one. */
		ASSERT_EQ(0, close(fd));
		usleep(step * 5000);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, NULL, 0));
		ASSERT_EQ(self->pages, total_pages());
		ASSERT_EQ(self->domains + 1, total_domains());
	}
}

static void *create_big(void *arg)
{
	__u64 base = 0;

	return (void *)(long)_test_cmd_region_create(*(int *)arg, 0,
						     P2M_POLICY_ANY, BIG_PAGES,
						     0, &base);
}

TEST_F(big, close_during_creation_gives_all_back)
{
	int step, fd, copy;
	pthread_t thread;

	for (step = 0; step < 4; step++) {
		fd = p2m_open();
		ASSERT_LE(0, fd);
		copy = fd;
		ASSERT_EQ(0, pthread_create(&thread, NULL, create_big, &copy));
		usleep(step * 3000);
		/* Whether it runs, has run, or finds no descriptor any more. */
		ASSERT_EQ(0, close(fd));
		ASSERT_EQ(0, pthread_join(thread, NULL));
		ASSERT_EQ(self->pages, total_pages());
	}
}

/*
 * A thread that touches a mapping while another one destroys and creates what's
 * there. The phases of round i are those of translate.c: 4i nothing, 4i+1
 * creation, 4i+2 there, 4i+3 destruction. The tag in a page is i + 1.
 */
#define RACE_PAGES 64
#define RACE_MS 4000

struct race {
	const char *mem;
	unsigned int phase;
	bool stop;
	__u64 nr_there, nr_gone, nr_wrong;
	__u64 wrong_value;
	unsigned int wrong_phase;
	int wrong_signal;
};

static __thread sigjmp_buf race_return;

static void race_caught(int sig)
{
	siglongjmp(race_return, sig);
}

static void *race_toucher(void *arg)
{
	struct race *race = arg;
	__u64 state = 1;

	while (!__atomic_load_n(&race->stop, __ATOMIC_ACQUIRE)) {
		const volatile __u64 *word = (const volatile __u64 *)
			(race->mem +
			 next_random(&state) % RACE_PAGES * P2M_PAGE_SIZE);
		unsigned int before, after;
		volatile __u64 value = 0;
		bool ok;
		int sig;

		before = __atomic_load_n(&race->phase, __ATOMIC_SEQ_CST);
		sig = sigsetjmp(race_return, 1);
		if (!sig)
			value = *word;
		after = __atomic_load_n(&race->phase, __ATOMIC_SEQ_CST);
		if (before == after && before % 4 == 0) {
			ok = sig == SIGBUS;
			race->nr_gone++;
		} else if (before == after && before % 4 == 2) {
			ok = !sig && value == before / 4 + 1;
			race->nr_there++;
		} else if (sig) {
			ok = sig == SIGBUS;
		} else {
			ok = !value || (value >= before / 4 + 1 &&
					value <= after / 4 + 1);
		}
		if (!ok && !race->nr_wrong++) {
			race->wrong_value = value;
			race->wrong_phase = before;
			race->wrong_signal = sig;
		}
	}
	return NULL;
}

static bool race_saw_enough(const struct race *race, unsigned int rounds)
{
	return rounds > 10 && __atomic_load_n(&race->nr_there, __ATOMIC_RELAXED) &&
	       __atomic_load_n(&race->nr_gone, __ATOMIC_RELAXED);
}

TEST_F_TIMEOUT(life, touching_thread_sees_only_what_is_there, 45)
{
	const __u64 base = 5000;
	struct race race = {};
	struct sigaction action = { .sa_handler = race_caught };
	__u64 deadline = now_ms() + RACE_MS, page;
	pthread_t toucher;
	unsigned int i;
	char *mem;

	/* One mapping for each thread: the writer's page tables differ. */
	race.mem = mmap(NULL, RACE_PAGES * P2M_PAGE_SIZE, PROT_READ, MAP_SHARED,
			self->fd, base * P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, race.mem);
	mem = map_pages(self->fd, base, RACE_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, sigaction(SIGBUS, &action, NULL));
	ASSERT_EQ(0, pthread_create(&toucher, NULL, race_toucher, &race));
	/* On a slow kernel as long as it takes to see something. */
	for (i = 0; now_ms() < deadline || !race_saw_enough(&race, i); i++) {
		__atomic_store_n(&race.phase, 4 * i + 1, __ATOMIC_SEQ_CST);
		test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY,
					     RACE_PAGES, 0, base);
		for (page = 0; page < RACE_PAGES; page++)
			*(volatile __u64 *)(mem + page * P2M_PAGE_SIZE) = i + 1;
		__atomic_store_n(&race.phase, 4 * i + 2, __ATOMIC_SEQ_CST);
		if (i % 4 == 0)
			usleep(200);
		__atomic_store_n(&race.phase, 4 * i + 3, __ATOMIC_SEQ_CST);
		test_cmd_region_destroy(self->fd, base);
		__atomic_store_n(&race.phase, 4 * i + 4, __ATOMIC_SEQ_CST);
		if (i % 4 == 1)
			usleep(200);
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	ASSERT_EQ(0, pthread_join(toucher, NULL));
	TH_LOG("%u rounds, %llu touches of what was there, %llu of what was not",
	       i, race.nr_there, race.nr_gone);
	EXPECT_EQ(0, race.nr_wrong)
		TH_LOG("value %#llx, signal %d, phase %u", race.wrong_value,
		       race.wrong_signal, race.wrong_phase);
	EXPECT_LT(10, i);
	EXPECT_LT(0, race.nr_there);
	EXPECT_LT(0, race.nr_gone);
	ASSERT_EQ(0, munmap(mem, RACE_PAGES * P2M_PAGE_SIZE));
	ASSERT_EQ(0, munmap((void *)race.mem, RACE_PAGES * P2M_PAGE_SIZE));
}

TEST_HARNESS_MAIN
