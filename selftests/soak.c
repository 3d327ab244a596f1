// SPDX-License-Identifier: GPL-2.0
/*
 * All operations at once, for as long as one likes, while processes are killed at
 * any moment, memory is short, and processors come and go. P2M_SECONDS says how
 * long, of all tests together.
 *
 * What must hold: who lives on finds everything as it was, and what died leaves
 * nothing, so that the module can be unloaded at once.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define NR_TESTS 4
#define NR_WORKERS 6

/* A domain that all workers change: half of it is kept, half comes and goes. */
#define KEPT_PAGES 4096ULL
#define NR_PAGES (2 * KEPT_PAGES)
#define POOL_PAGES 64ULL
/* The most that one region of a worker's own domain has. */
#define MOST_PAGES 4096ULL

static __u64 seconds(void)
{
	const char *text = getenv("P2M_SECONDS");
	__u64 all = text ? strtoull(text, NULL, 0) : 60;

	return all / NR_TESTS;
}

/* An hour more than that: the tests end by themselves. */
static int timeout(void)
{
	return seconds() + 3600;
}

static __u64 below(__u64 *rng, __u64 n)
{
	return next_random(rng) % n;
}

/* One of the operations that change what is there, on a range of PFNs. */
static void change(int fd, __u64 *rng, __u64 start, __u64 nr)
{
	__u64 pfn = start + below(rng, nr);
	__u64 left = start + nr - pfn;
	struct p2m_move move = {
		.size = sizeof(move),
		.start_pfn = pfn,
		.nr_pages = left,
		.policy = below(rng, 2),
	};
	struct p2m_exchange exchange = {
		.size = sizeof(exchange),
		.a_pfn = start,
		.b_pfn = start + nr / 2,
		.nr_pages = 1 + below(rng, nr / 2),
	};
	struct p2m_contiguous contiguous = {
		.size = sizeof(contiguous),
		.start_pfn = pfn,
		.order = below(rng, 10),
	};
	struct p2m_evacuate evacuate = {
		.size = sizeof(evacuate),
		.start_mfn = below(rng, 512) << 9,
		.nr_frames = 1 << below(rng, 14),
	};
	struct p2m_collapse collapse = {
		.size = sizeof(collapse),
		.start_pfn = pfn,
		.nr_pages = left,
	};
	struct p2m_audit audit = { .size = sizeof(audit) };

	switch (below(rng, 7)) {
	case 0:
	case 1:
		ioctl(fd, P2M_MOVE, &move);
		break;
	case 2:
		ioctl(fd, P2M_EXCHANGE, &exchange);
		break;
	case 3:
		ioctl(fd, P2M_CONTIGUOUS, &contiguous);
		break;
	case 4:
		ioctl(fd, P2M_EVACUATE, &evacuate);
		break;
	case 5:
		ioctl(fd, P2M_COLLAPSE, &collapse);
		break;
	case 6:
		ioctl(fd, P2M_AUDIT, &audit);
		break;
	}
}

static void release_and_populate(int fd, __u64 *rng)
{
	__u64 pfn = KEPT_PAGES + below(rng, KEPT_PAGES);
	struct p2m_release release = {
		.size = sizeof(release),
		.start_pfn = pfn,
		.nr_pages = NR_PAGES - pfn,
	};
	struct p2m_populate populate = {
		.size = sizeof(populate),
		.start_pfn = pfn,
		.nr_pages = NR_PAGES - pfn,
	};

	ioctl(fd, P2M_RELEASE, &release);
	ioctl(fd, P2M_POPULATE, &populate);
}

/* A space over memory that changes, and a dma-buf that holds some of it. */
static void use(int fd, __u64 *rng, __u64 nr)
{
	struct p2m_space_create create = {
		.size = sizeof(create),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pages = POOL_PAGES,
	};
	struct p2m_space_map map = {
		.size = sizeof(map),
		.max_level = below(rng, 2),
		.pfn = POOL_PAGES,
		.nr_pages = nr - POOL_PAGES,
		.pte_flags = P2M_PTE_RW,
	};
	struct p2m_space_access access = {
		.size = sizeof(access),
		.op = P2M_ACCESS_CHECKSUM,
		.nr_words = 4096,
	};
	struct p2m_dma_buf_export export = {
		.size = sizeof(export),
		.start_pfn = POOL_PAGES,
		.nr_pages = 1 + below(rng, nr - POOL_PAGES),
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	if (!ioctl(fd, P2M_SPACE_CREATE, &create)) {
		map.space = access.space = create.out_space;
		ioctl(fd, P2M_SPACE_MAP, &map);
		change(fd, rng, 0, nr);
		ioctl(fd, P2M_SPACE_ACCESS, &access);
	}
	/* It may outlive the domain, or end with the process. */
	if (!ioctl(fd, P2M_DMA_BUF_EXPORT, &export) && below(rng, 2))
		close(export.out_fd);
}

static void use_own_domain(__u64 *rng)
{
	__u64 nr = 2 * POOL_PAGES + below(rng, MOST_PAGES);
	struct p2m_region_create create = {
		.size = sizeof(create),
		.policy = below(rng, 4),
		.nr_pages = nr,
	};
	int fd = p2m_open(), i;
	char *mem;

	if (fd < 0)
		return;
	if (!below(rng, 4))
		create.flags |= P2M_REGION_ON_DEMAND;
	if (!below(rng, 4))
		create.flags |= P2M_REGION_GUARDED;
	if (!ioctl(fd, P2M_REGION_CREATE, &create)) {
		mem = map_pages(fd, 0, nr);
		if (mem != MAP_FAILED) {
			/* A touch may fail for want of memory. */
			madvise(mem, nr * P2M_PAGE_SIZE, MADV_POPULATE_WRITE);
			for (i = 0; i < 4; i++)
				change(fd, rng, 0, nr);
			use(fd, rng, nr);
			munmap(mem, nr * P2M_PAGE_SIZE);
		}
	}
	close(fd);
	/* Descriptors of dma-bufs. */
	close_range(200, ~0U, 0);
}

static pid_t start_worker(int fd, __u64 seed)
{
	pid_t pid = fork();
	__u64 rng = seed;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, SIG_DFL);
	for (;;) {
		switch (below(&rng, 3)) {
		case 0:
			change(fd, &rng, 0, NR_PAGES);
			break;
		case 1:
			release_and_populate(fd, &rng);
			break;
		case 2:
			use_own_domain(&rng);
			break;
		}
	}
}

/* Somebody who wants most of the memory, and gives it back now and then. */
static pid_t start_hog(void)
{
	pid_t pid = fork();
	size_t len;
	char *mem;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* If somebody has to be killed, it's not those who are looked at. */
	write_text("/proc/self/oom_score_adj", "1000");
	for (;;) {
		len = meminfo_kib("MemAvailable") * 1024 / 8 * 7;
		mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (mem == MAP_FAILED)
			continue;
		madvise(mem, len, MADV_POPULATE_WRITE);
		munmap(mem, len);
	}
}

struct domain {
	int fd;
	char *mem;
	/* What all others had before. */
	__u64 pages;
};

/* A domain with contents in what is kept. */
static bool domain_open(struct domain *domain)
{
	__u64 i, base = 0;

	domain->fd = p2m_open();
	if (domain->fd < 0 ||
	    _test_cmd_region_create(domain->fd, P2M_REGION_FIXED,
				    P2M_POLICY_SCATTER, NR_PAGES, 0, &base))
		return false;
	domain->mem = map_pages(domain->fd, 0, NR_PAGES);
	if (domain->mem == MAP_FAILED)
		return false;
	for (i = 0; i < KEPT_PAGES; i++)
		page_fill(domain->mem + i * P2M_PAGE_SIZE, i);
	return true;
}

static bool domain_close(struct domain *domain)
{
	return !munmap(domain->mem, NR_PAGES * P2M_PAGE_SIZE) && !close(domain->fd);
}

FIXTURE(soak) {
	struct domain domain;
	__u64 rng;
};

FIXTURE_SETUP(soak)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (geteuid())
		SKIP(return, "must be root");
	if (meminfo_kib("MemFree") < 1 << 20)
		SKIP(return, "not enough free memory");
	self->domain.pages = total_pages();
	self->rng = now_ms();
	TH_LOG("seed %llu", self->rng);
	ASSERT_TRUE(domain_open(&self->domain));
}

FIXTURE_TEARDOWN(soak)
{
	EXPECT_TRUE(domain_close(&self->domain));
	EXPECT_EQ(self->domain.pages, total_pages());
}

/*
 * All that was to be kept is there, nothing is out of order, and nobody else has
 * anything. Nobody is at work any more.
 */
static void expect_sound(struct __test_metadata *_metadata,
			 const struct domain *domain)
{
	struct p2m_audit audit;
	struct p2m_stat stat;
	__u64 i;

	ASSERT_TRUE(audit_is_clean(domain->fd, &audit));
	/* Who was killed may have left a gap. */
	test_cmd_populate(domain->fd, 0, NR_PAGES);
	for (i = 0; i < KEPT_PAGES; i++) {
		ASSERT_TRUE(page_matches(domain->mem + i * P2M_PAGE_SIZE, i))
			TH_LOG("page %llu", i);
	}
	test_cmd_stat(domain->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_frames);
	EXPECT_EQ(domain->pages + NR_PAGES, total_pages());
	ASSERT_TRUE(audit_is_clean(domain->fd, &audit));
	EXPECT_EQ(NR_PAGES, audit.out_frames);
}

/* What is killed is dead, but what others look at for it may take a moment. */
static void expect_alone(struct __test_metadata *_metadata, int fd)
{
	struct p2m_stat stat;
	int i;

	for (i = 0; i < 500; i++) {
		test_cmd_stat(fd, &stat);
		if (stat.out_total_domains == 1)
			break;
		usleep(10000);
	}
	EXPECT_EQ(1, stat.out_total_domains);
}

static void end_all(struct __test_metadata *_metadata, pid_t *pids, int nr)
{
	int i;

	for (i = 0; i < nr; i++)
		kill(pids[i], SIGKILL);
	for (i = 0; i < nr; i++)
		EXPECT_EQ(pids[i], waitpid(pids[i], NULL, 0));
}

/* The longest that the other tests don't look at what there is. */
#define ROUND_MS 3000

TEST_F_TIMEOUT(soak, killed_at_any_moment_leaves_nothing, timeout())
{
	__u64 end = now_ms() + seconds() * 1000, round_end;
	__u64 nr_kills = 0, nr_rounds = 0, nr_unloads = 0;
	pid_t pids[NR_WORKERS + 1];
	int i;

	do {
		for (i = 0; i <= NR_WORKERS; i++) {
			pids[i] = i < NR_WORKERS ?
				start_worker(self->domain.fd,
					     next_random(&self->rng)) :
				start_hog();
			ASSERT_LT(0, pids[i]);
		}
		for (round_end = now_ms() + ROUND_MS; now_ms() < round_end;) {
			usleep(below(&self->rng, 60000));
			i = below(&self->rng, NR_WORKERS + 1);
			kill(pids[i], SIGKILL);
			ASSERT_EQ(pids[i], waitpid(pids[i], NULL, 0));
			nr_kills++;
			pids[i] = i < NR_WORKERS ?
				start_worker(self->domain.fd,
					     next_random(&self->rng)) :
				start_hog();
			ASSERT_LT(0, pids[i]);
		}
		end_all(_metadata, pids, NR_WORKERS + 1);
		nr_rounds++;
		expect_alone(_metadata, self->domain.fd);
		expect_sound(_metadata, &self->domain);
		if (!module_can_reload())
			continue;
		/* At once: nothing that died is still at work. */
		for (i = 0; i < NR_WORKERS; i++) {
			pids[i] = start_worker(self->domain.fd,
					       next_random(&self->rng));
			ASSERT_LT(0, pids[i]);
		}
		usleep(below(&self->rng, 200000));
		ASSERT_TRUE(domain_close(&self->domain));
		end_all(_metadata, pids, NR_WORKERS);
		/* Somebody may be looking at the memory of one that was killed. */
		for (i = 0; i < 500 && module_unload() && errno == EAGAIN; i++)
			usleep(10000);
		EXPECT_NE(0, access(P2M_DEVICE, F_OK)) TH_LOG("still in use");
		nr_unloads++;
		ASSERT_EQ(0, module_restore());
		ASSERT_TRUE(domain_open(&self->domain));
	} while (now_ms() < end);
	TH_LOG("%llu kills, %llu rounds, %llu times unloaded", nr_kills, nr_rounds,
	       nr_unloads);
}

/*
 * What takes long. Each runs on the domain that is shared, over and over, until it
 * is killed in the middle of it.
 */

/* A region and a space that come and go, beside what is kept. */
#define MORE (1ULL << 20)
#define NR_MORE 16384ULL

static void long_create(int fd)
{
	__u64 base = MORE;

	_test_cmd_region_create(fd, P2M_REGION_FIXED, P2M_POLICY_SCATTER, NR_MORE, 0,
				&base);
	_test_cmd_region_destroy(fd, MORE);
}

static void long_create_guarded(int fd)
{
	__u64 base = MORE;

	_test_cmd_region_create(fd, P2M_REGION_FIXED | P2M_REGION_GUARDED,
				P2M_POLICY_ANY, NR_MORE / 2, 0, &base);
	_test_cmd_region_destroy(fd, MORE);
}

static void long_populate(int fd)
{
	struct p2m_release release;
	struct p2m_populate populate;

	_test_cmd_release(fd, KEPT_PAGES, KEPT_PAGES, &release);
	_test_cmd_populate(fd, KEPT_PAGES, KEPT_PAGES, &populate);
}

static void long_move(int fd)
{
	struct p2m_move move;

	_test_cmd_move(fd, 0, NR_PAGES, P2M_POLICY_SCATTER, 1, &move);
}

static void long_evacuate(int fd)
{
	struct p2m_evacuate evacuate;

	_test_cmd_evacuate(fd, 0, 0, 1 << 18, &evacuate);
	_test_cmd_evacuate(fd, 0, 1 << 18, 1 << 18, &evacuate);
}

static void long_contiguous(int fd)
{
	struct p2m_contiguous contiguous;
	__u64 pfn;

	for (pfn = 0; pfn < NR_PAGES; pfn += 512)
		_test_cmd_contiguous(fd, pfn, 9, 0, &contiguous);
}

static void long_collapse(int fd)
{
	struct p2m_collapse collapse = {
		.size = sizeof(collapse),
		.nr_pages = NR_PAGES,
	};

	ioctl(fd, P2M_COLLAPSE, &collapse);
	long_move(fd);
}

static void long_exchange(int fd)
{
	struct p2m_exchange exchange;

	_test_cmd_exchange(fd, 0, NR_PAGES / 2, NR_PAGES / 2, &exchange);
}

static void long_foreign(int fd)
{
	static __u64 frames[KEPT_PAGES];
	static __s32 errors[KEPT_PAGES];
	__u64 base = 0, place = MORE;
	int lender = p2m_open();
	__u32 i, nr;

	for (i = 0; i < ARRAY_LEN(frames); i++)
		frames[i] = i;
	_test_cmd_region_create(lender, P2M_REGION_FIXED, P2M_POLICY_ANY,
				ARRAY_LEN(frames), 0, &base);
	_test_cmd_region_create(fd, P2M_REGION_FIXED | P2M_REGION_ON_DEMAND,
				P2M_POLICY_ANY, ARRAY_LEN(frames), 0, &place);
	_test_cmd_foreign_map(fd, lender, MORE, frames, errors, ARRAY_LEN(frames), &nr);
	_test_cmd_foreign_unmap(fd, MORE, errors, ARRAY_LEN(frames), &nr);
	close(lender);
}

static void long_space(int fd)
{
	struct p2m_space_create create = {
		.size = sizeof(create),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = KEPT_PAGES,
		.pool_pages = POOL_PAGES,
	};
	struct p2m_space_map map = {
		.size = sizeof(map),
		.nr_pages = KEPT_PAGES,
		.pte_flags = P2M_PTE_RW,
	};
	struct p2m_space_unmap unmap = {
		.size = sizeof(unmap),
		.nr_pages = KEPT_PAGES,
	};
	struct p2m_space_access access = {
		.size = sizeof(access),
		.op = P2M_ACCESS_CHECKSUM,
		.nr_words = P2M_MAX_ACCESS_WORDS,
	};
	struct p2m_space_destroy destroy = { .size = sizeof(destroy) };

	if (ioctl(fd, P2M_SPACE_CREATE, &create))
		return;
	map.space = create.out_space;
	unmap.space = create.out_space;
	access.space = create.out_space;
	destroy.space = create.out_space;
	ioctl(fd, P2M_SPACE_MAP, &map);
	ioctl(fd, P2M_SPACE_ACCESS, &access);
	ioctl(fd, P2M_SPACE_UNMAP, &unmap);
	ioctl(fd, P2M_SPACE_DESTROY, &destroy);
}

static void long_export(int fd)
{
	struct p2m_dma_buf_export export = {
		.size = sizeof(export),
		.nr_pages = NR_PAGES,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	char *mem;

	if (ioctl(fd, P2M_DMA_BUF_EXPORT, &export))
		return;
	mem = mmap(NULL, NR_PAGES * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   export.out_fd, 0);
	if (mem != MAP_FAILED) {
		madvise(mem, NR_PAGES * P2M_PAGE_SIZE, MADV_POPULATE_READ);
		munmap(mem, NR_PAGES * P2M_PAGE_SIZE);
	}
	close(export.out_fd);
}

static void long_map(int fd)
{
	char *mem = map_pages(fd, 0, NR_PAGES);

	if (mem == MAP_FAILED)
		return;
	madvise(mem, NR_PAGES * P2M_PAGE_SIZE, MADV_POPULATE_READ);
	munmap(mem, NR_PAGES * P2M_PAGE_SIZE);
}

static void long_looks(int fd)
{
	static struct p2m_run runs[NR_PAGES];
	static __u64 words[NR_PAGES];
	struct p2m_audit audit;
	__u32 nr;

	_test_cmd_audit(fd, &audit);
	_test_cmd_runs(fd, 0, P2M_MAX_PFN, runs, ARRAY_LEN(runs), &nr, NULL);
	if (pread(fd, words, sizeof(words), 0) < 0)
		_exit(1);
}

/* Takes what a space, a region or a slot was left with by somebody who died. */
static void clean_up(struct __test_metadata *_metadata, int fd)
{
	struct p2m_space_info spaces[64];
	struct p2m_space_list list = {
		.size = sizeof(list),
		.nr = ARRAY_LEN(spaces),
		.spaces = (uintptr_t)spaces,
	};
	struct p2m_space_destroy destroy = { .size = sizeof(destroy) };
	__u32 i;

	ASSERT_EQ(0, ioctl(fd, P2M_SPACE_LIST, &list));
	for (i = 0; i < list.out_nr; i++) {
		destroy.space = spaces[i].space;
		EXPECT_EQ(0, ioctl(fd, P2M_SPACE_DESTROY, &destroy));
	}
	if (_test_cmd_region_destroy(fd, MORE))
		EXPECT_EQ(ENOENT, errno);
}

TEST_F_TIMEOUT(soak, killed_in_each_operation_leaves_nothing, timeout())
{
	static const struct {
		const char *name;
		void (*run)(int fd);
	} operations[] = {
		{ "region_create", long_create },
		{ "region_create, guarded", long_create_guarded },
		{ "populate", long_populate },
		{ "move", long_move },
		{ "evacuate", long_evacuate },
		{ "contiguous", long_contiguous },
		{ "collapse", long_collapse },
		{ "exchange", long_exchange },
		{ "foreign_map", long_foreign },
		{ "space", long_space },
		{ "dma_buf_export", long_export },
		{ "mmap", long_map },
		{ "what looks", long_looks },
	};
	__u64 share = seconds() * 1000 / ARRAY_LEN(operations), end;
	__u64 start, took, longest, nr_kills;
	struct p2m_audit audit;
	size_t i;
	pid_t pid;

	for (i = 0; i < ARRAY_LEN(operations); i++) {
		longest = 0;
		nr_kills = 0;
		end = now_ms() + share;
		do {
			pid = fork();
			ASSERT_LE(0, pid);
			if (!pid) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				signal(SIGBUS, SIG_DFL);
				for (;;)
					operations[i].run(self->domain.fd);
			}
			/* Mostly soon, and at times late. */
			usleep(below(&self->rng, below(&self->rng, 4) ? 10000 : 150000));
			start = now_ms();
			kill(pid, SIGKILL);
			ASSERT_EQ(pid, waitpid(pid, NULL, 0));
			took = now_ms() - start;
			if (took > longest)
				longest = took;
			nr_kills++;
			ASSERT_TRUE(audit_is_clean(self->domain.fd, &audit))
				TH_LOG("%s", operations[i].name);
			clean_up(_metadata, self->domain.fd);
		} while (now_ms() < end);
		TH_LOG("%s: %llu kills, the longest took %llu ms",
		       operations[i].name, nr_kills, longest);
		expect_alone(_metadata, self->domain.fd);
		expect_sound(_metadata, &self->domain);
	}
}

#define GROUP "/sys/fs/cgroup/p2m-soak"
/* How much a group may have, and what its domain takes of it. */
#define GROUP_MIB 64
#define OWN_PAGES 4096ULL

/* Takes memory, until somebody has to be killed for it. */
static void own_and_take(__u64 seed)
{
	__u64 rng = seed, base = 0;
	size_t len = 1 << 20;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!write_text(GROUP "/cgroup.procs", "0"))
		_exit(1);
	fd = p2m_open();
	if (fd < 0 || _test_cmd_region_create(fd, 0, P2M_POLICY_ANY, OWN_PAGES,
					      0, &base))
		_exit(2);
	if (map_pages(fd, 0, OWN_PAGES) == MAP_FAILED)
		_exit(3);
	for (;;) {
		char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (mem == MAP_FAILED)
			_exit(4);
		/* Not at the same point each time. */
		if (below(&rng, 2))
			change(fd, &rng, 0, OWN_PAGES);
		memset(mem, 1, len);
	}
}

TEST_F_TIMEOUT(soak, owners_killed_for_memory_leave_nothing, timeout())
{
	__u64 end = now_ms() + seconds() * 1000, nr_kills = 0;
	char text[32];
	int status, i;
	pid_t pid;

	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(GROUP, 0755) && errno != EEXIST)
		SKIP(return, "no control groups");
	snprintf(text, sizeof(text), "%d", GROUP_MIB << 20);
	if (!write_text(GROUP "/memory.max", text)) {
		rmdir(GROUP);
		SKIP(return, "no memory controller");
	}
	write_text(GROUP "/memory.swap.max", "0");
	do {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			own_and_take(next_random(&self->rng));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		next_random(&self->rng);
		ASSERT_TRUE(WIFSIGNALED(status)) TH_LOG("status %#x", status);
		EXPECT_EQ(SIGKILL, WTERMSIG(status));
		expect_alone(_metadata, self->domain.fd);
		EXPECT_EQ(self->domain.pages + NR_PAGES, total_pages());
		nr_kills++;
	} while (now_ms() < end);
	TH_LOG("%llu kills", nr_kills);
	expect_sound(_metadata, &self->domain);
	/* What it was charged for is gone, so it can go. */
	for (i = 0; i < 500 && rmdir(GROUP); i++)
		usleep(10000);
	EXPECT_NE(0, access(GROUP, F_OK));
}

static bool set_online(int cpu, bool is_online)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	return write_text(path, is_online ? "1" : "0");
}

TEST_F_TIMEOUT(soak, processors_come_and_go, timeout())
{
	__u64 end = now_ms() + seconds() * 1000, nr_changes = 0;
	int cpu, i, nr_cpus = sysconf(_SC_NPROCESSORS_CONF);
	pid_t pids[NR_WORKERS];

	/* The first one stays. */
	if (nr_cpus < 2 || !set_online(1, true))
		SKIP(return, "no processor that can go");
	for (i = 0; i < NR_WORKERS; i++) {
		pids[i] = start_worker(self->domain.fd,
				       next_random(&self->rng));
		ASSERT_LT(0, pids[i]);
	}
	do {
		cpu = 1 + below(&self->rng, nr_cpus - 1);
		EXPECT_TRUE(set_online(cpu, false));
		usleep(below(&self->rng, 20000));
		EXPECT_TRUE(set_online(cpu, true));
		nr_changes++;
	} while (now_ms() < end);
	/* With one processor and with all. */
	for (cpu = 1; cpu < nr_cpus; cpu++)
		EXPECT_TRUE(set_online(cpu, false));
	usleep(500000);
	for (cpu = 1; cpu < nr_cpus; cpu++)
		EXPECT_TRUE(set_online(cpu, true));
	end_all(_metadata, pids, NR_WORKERS);
	TH_LOG("%llu times", nr_changes);
	expect_alone(_metadata, self->domain.fd);
	expect_sound(_metadata, &self->domain);
}

TEST_HARNESS_MAIN
