// SPDX-License-Identifier: GPL-2.0
/*
 * A live P2M: the machine frames under a domain change while it is mapped and in
 * use. Pages keep their PFNs and their contents, nobody sees a byte that isn't
 * right, and P2M, M2P and the counts agree at every moment.
 */
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Begins and ends in the middle of a table, and of a batch. */
#define BASE_PFN 1000ULL
#define NR_PAGES 1500ULL
#define LEN (NR_PAGES * P2M_PAGE_SIZE)
#define END_PFN (BASE_PFN + NR_PAGES)
#define HALF (NR_PAGES / 2)

/* All pages of a batch are changed at once. Batches end at its multiples. */
#define BATCH 512ULL

/* What P2M_EVACUATE is asked to clear, if nothing else matters: 16 MiB. */
#define NR_WINDOW 4096ULL

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
static __u64 first_mismatch(char *mem, __u64 nr_pages)
{
	__u64 i;

	for (i = 0; i < nr_pages; i++)
		if (!page_matches(page_at(mem, i), i))
			break;
	return i;
}

static __u64 nr_frames(int fd)
{
	struct p2m_stat stat;

	return _test_cmd_stat(fd, &stat) ? ~0ULL : stat.out_frames;
}

/* A descriptor without the right to see frames, even if only root may open it. */
static int open_unprivileged(void)
{
	struct stat st;
	int fd;

	if (stat(P2M_DEVICE, &st) || chmod(P2M_DEVICE, 0666))
		return -1;
	fd = p2m_open_unprivileged();
	if (chmod(P2M_DEVICE, st.st_mode & 07777))
		return -1;
	return fd;
}

static __u64 max_mfn(int fd)
{
	struct p2m_info info;

	return _test_cmd_info(fd, &info) ? 0 : info.out_max_mfn;
}

static __u64 nr_present(const __u64 *entries, __u64 nr)
{
	__u64 i, found = 0;

	for (i = 0; i < nr; i++)
		found += entries[i] != P2M_ENTRY_INVALID;
	return found;
}

/* Nothing is wrong, and the two ways to count agree. */
static struct p2m_audit expect_sound(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit = test_cmd_audit(fd);

	EXPECT_EQ(0, audit.out_p2m_bad);
	EXPECT_EQ(0, audit.out_m2p_bad);
	EXPECT_EQ(0, audit.out_orphans);
	EXPECT_EQ(0, audit.out_refs_bad);
	EXPECT_EQ(0, audit.out_spaces_bad);
	EXPECT_EQ(0, audit.out_count_bad);
	EXPECT_EQ(P2M_ENTRY_INVALID, audit.out_first_pfn);
	EXPECT_EQ(nr_frames(fd), audit.out_frames);
	return audit;
}

/* The M2P is the inverse of the P2M in a range: what the audit says, from outside. */
static void expect_mirrored(struct __test_metadata *_metadata, int fd,
			    __u64 start_pfn, __u64 nr)
{
	__u64 *entries = range_to_entries(fd, start_pfn, nr);
	__u64 *back = calloc(nr, sizeof(*back));
	__u64 i;

	ASSERT_NE(NULL, entries);
	ASSERT_NE(NULL, back);
	test_cmd_translate(fd, P2M_TRANSLATE_M2P, entries, back, nr);
	for (i = 0; i < nr; i++) {
		if (entries[i] == P2M_ENTRY_INVALID)
			continue;
		ASSERT_EQ(start_pfn + i, back[i])
			TH_LOG("PFN %llu", start_pfn + i);
	}
	free(entries);
	free(back);
}

static void expect_scattered(struct __test_metadata *_metadata, int fd,
			     __u64 start_pfn, __u64 nr)
{
	__u64 *entries = range_to_entries(fd, start_pfn, nr);
	__u64 i;

	ASSERT_NE(NULL, entries);
	for (i = 1; i < nr; i++) {
		__u64 a = entries[i - 1], b = entries[i];

		if (a == P2M_ENTRY_INVALID || b == P2M_ENTRY_INVALID)
			continue;
		ASSERT_FALSE(a + 1 == b || b + 1 == a)
			TH_LOG("PFN %llu", start_pfn + i);
	}
	free(entries);
}

/* No frame of a list is in the M2P any more. */
static void expect_forgotten(struct __test_metadata *_metadata, int fd,
			     const __u64 *mfns, __u64 nr)
{
	__u64 *back = calloc(nr, sizeof(*back));
	__u64 i;

	ASSERT_NE(NULL, back);
	test_cmd_translate(fd, P2M_TRANSLATE_M2P, mfns, back, nr);
	for (i = 0; i < nr; i++) {
		if (mfns[i] == P2M_ENTRY_INVALID)
			continue;
		ASSERT_EQ(P2M_ENTRY_INVALID, back[i])
			TH_LOG("frame %llx", mfns[i]);
	}
	free(back);
}

/* The entries of a range are as they were. Frees them. */
static void expect_unchanged(struct __test_metadata *_metadata, int fd,
			     __u64 start_pfn, __u64 nr, __u64 *before)
{
	__u64 *after = range_to_entries(fd, start_pfn, nr);
	__u64 i;

	ASSERT_NE(NULL, after);
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(before[i], after[i])
			TH_LOG("PFN %llu", start_pfn + i);
	}
	free(before);
	free(after);
}

/* Pages that somebody else has references to: a pipe. */
struct pin {
	int fds[2];
};

static int pin_open(struct pin *pin, __u64 nr_pages)
{
	if (pipe2(pin->fds, O_CLOEXEC))
		return -1;
	/* A slot for each page. */
	return fcntl(pin->fds[1], F_SETPIPE_SZ, nr_pages * P2M_PAGE_SIZE) < 0;
}

static int pin_add(struct pin *pin, void *mem, __u64 nr_pages)
{
	struct iovec iov = {
		.iov_base = mem, .iov_len = nr_pages * P2M_PAGE_SIZE,
	};
	ssize_t ret;

	while (iov.iov_len) {
		ret = vmsplice(pin->fds[1], &iov, 1, SPLICE_F_NONBLOCK);
		if (ret <= 0)
			return -1;
		iov.iov_base = (char *)iov.iov_base + ret;
		iov.iov_len -= ret;
	}
	return 0;
}

static bool pin_read(struct pin *pin, void *buf, __u64 nr_pages)
{
	size_t done, len = nr_pages * P2M_PAGE_SIZE;
	ssize_t ret;

	for (done = 0; done < len; done += ret) {
		ret = read(pin->fds[0], (char *)buf + done, len - done);
		if (ret <= 0)
			return false;
	}
	return true;
}

static void pin_close(struct pin *pin)
{
	close(pin->fds[0]);
	close(pin->fds[1]);
}

/*
 * A child process: has the mappings, and answers whether what it's asked for is so.
 */
struct peer {
	pid_t pid;
	int to_child[2];
	int to_parent[2];
};

/* The question that is none. */
#define PEER_ENDS 0x7f

static int peer_start(struct peer *peer, bool (*answer)(void *arg, char question),
		      void *arg)
{
	char c;

	if (pipe(peer->to_child) || pipe(peer->to_parent))
		return -1;
	peer->pid = fork();
	if (peer->pid)
		return peer->pid < 0 ? -1 : 0;
	/* If the test ends early, too. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(peer->to_child[0], &c, 1) == 1 && c != PEER_ENDS) {
		c = answer(arg, c);
		if (write(peer->to_parent[1], &c, 1) != 1)
			break;
	}
	_exit(0);
}

static bool peer_ask(struct peer *peer, char question)
{
	char c;

	return write(peer->to_child[1], &question, 1) == 1 &&
	       read(peer->to_parent[0], &c, 1) == 1 && c;
}

static bool peer_end(struct peer *peer)
{
	const char question = PEER_ENDS;
	int status;

	return write(peer->to_child[1], &question, 1) == 1 &&
	       waitpid(peer->pid, &status, 0) == peer->pid && !status;
}

/* A region of each policy, mapped. */
FIXTURE(live)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

FIXTURE_VARIANT(live)
{
	__u32 policy;
};

FIXTURE_VARIANT_ADD(live, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(live, scatter) { .policy = P2M_POLICY_SCATTER };
FIXTURE_VARIANT_ADD(live, contiguous) { .policy = P2M_POLICY_CONTIGUOUS };

FIXTURE_SETUP(live)
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

FIXTURE_TEARDOWN(live)
{
	struct p2m_stat stat;

	expect_sound(_metadata, self->fd);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(0, stat.out_frames);
	EXPECT_EQ(0, stat.out_pages);
	munmap(self->mem, LEN);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(live, released_pages_are_gone_until_populated)
{
	const __u64 from = 300, nr = 700;
	struct p2m_populate populate;
	struct p2m_release release;
	struct p2m_stat stat;
	__u64 *before, *after;
	__u64 i;

	fill_all(self->mem, NR_PAGES);
	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	release = test_cmd_release(self->fd, BASE_PFN + from, nr);
	EXPECT_EQ(nr, release.out_pages);
	EXPECT_EQ(BASE_PFN + from + nr, release.out_next_pfn);

	/* The region is as large as before, with fewer frames. */
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_pages);
	EXPECT_EQ(NR_PAGES - nr, stat.out_frames);
	EXPECT_EQ(self->total_pages + NR_PAGES, stat.out_total_pages);
	expect_sound(_metadata, self->fd);
	expect_forgotten(_metadata, self->fd, before + from, nr);
	for (i = 0; i < NR_PAGES; i++) {
		bool is_gone = i >= from && i < from + nr;

		if (is_gone) {
			before[i] = P2M_ENTRY_INVALID;
			ASSERT_EQ(SIGBUS, touch_read(page_at(self->mem, i)));
			ASSERT_EQ(SIGBUS,
				  touch_write(page_at(self->mem, i), 1));
		} else {
			ASSERT_TRUE(page_matches(page_at(self->mem, i), i))
				TH_LOG("page %llu", i);
		}
	}
	/* No touch has brought one back. */
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);

	/* More than was released: the others are passed over. */
	populate = test_cmd_populate(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(nr, populate.out_pages);
	EXPECT_EQ(END_PFN, populate.out_next_pfn);
	after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, after);
	EXPECT_EQ(NR_PAGES, nr_present(after, NR_PAGES));
	free(after);
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	if (variant->policy == P2M_POLICY_SCATTER)
		expect_scattered(_metadata, self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(nr * P2M_PAGE_SIZE,
		  first_nonzero(page_at(self->mem, from), nr * P2M_PAGE_SIZE));
	EXPECT_EQ(from, first_mismatch(self->mem, NR_PAGES));
	for (i = from + nr; i < NR_PAGES; i++) {
		ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
	}
	/* They are pages as all others are. */
	fill_all(self->mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	populate = test_cmd_populate(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(0, populate.out_pages);
	EXPECT_EQ(END_PFN, populate.out_next_pfn);
}

TEST_F(live, release_passes_over_what_is_gone)
{
	struct p2m_populate populate;
	struct p2m_release release;
	__u64 i, nr_single = 0;

	for (i = 0; i < NR_PAGES; i += 3) {
		release = test_cmd_release(self->fd, BASE_PFN + i, 1);
		ASSERT_EQ(1, release.out_pages);
		ASSERT_EQ(BASE_PFN + i + 1, release.out_next_pfn);
		nr_single++;
	}
	EXPECT_EQ(NR_PAGES - nr_single, nr_frames(self->fd));
	release = test_cmd_release(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES - nr_single, release.out_pages);
	EXPECT_EQ(END_PFN, release.out_next_pfn);
	EXPECT_EQ(0, nr_frames(self->fd));
	expect_sound(_metadata, self->fd);
	release = test_cmd_release(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(0, release.out_pages);
	EXPECT_EQ(END_PFN, release.out_next_pfn);

	/* Every third page between others that are still missing, then those. */
	for (i = 1; i < NR_PAGES; i += 3) {
		populate = test_cmd_populate(self->fd, BASE_PFN + i, 1);
		ASSERT_EQ(1, populate.out_pages);
		page_fill(page_at(self->mem, i), i);
	}
	populate = test_cmd_populate(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES - NR_PAGES / 3, populate.out_pages);
	for (i = 0; i < NR_PAGES; i++) {
		char *page = page_at(self->mem, i);

		if (i % 3 == 1) {
			ASSERT_TRUE(page_matches(page, i));
		} else {
			ASSERT_EQ(P2M_PAGE_SIZE,
				  first_nonzero(page, P2M_PAGE_SIZE));
		}
	}
	if (variant->policy == P2M_POLICY_SCATTER)
		expect_scattered(_metadata, self->fd, BASE_PFN, NR_PAGES);
}

TEST_F(live, range_outside_of_regions_is_ENOENT)
{
	/* Two regions with a hole of two pages, and the ends. */
	static const struct {
		__u64 start, nr;
	} ranges[] = {
		{ BASE_PFN - 1, 1 },	 { BASE_PFN - 1, 2 },
		{ BASE_PFN - 600, 700 }, { END_PFN, 1 },
		{ END_PFN + 1, 2 },	 { END_PFN - 1, 2 },
		{ END_PFN - 600, 603 },	 { BASE_PFN, NR_PAGES + 10 },
		{ END_PFN + 12, 1 },	 { P2M_MAX_PFN - 1, 1 },
	};
	size_t i;

	fill_all(self->mem, NR_PAGES);
	test_cmd_region_create_fixed(self->fd, variant->policy, 10, 0,
				     END_PFN + 2);
	for (i = 0; i < ARRAY_LEN(ranges); i++) {
		__u64 start = ranges[i].start, nr = ranges[i].nr, pfn, next;
		__u64 *entries = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		struct p2m_populate populate;
		struct p2m_release release;

		ASSERT_NE(NULL, entries);
		release = test_err_release(ENOENT, self->fd, start, nr);
		next = release.out_next_pfn;
		ASSERT_LE(start, next);
		ASSERT_GT(start + nr, next);
		EXPECT_EQ(next - start, release.out_pages);
		/* Batches are done whole or not at all. */
		EXPECT_TRUE(next == start || next % BATCH == 0);
		for (pfn = start; pfn < next; pfn++)
			entries[pfn - BASE_PFN] = P2M_ENTRY_INVALID;
		expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES,
				 entries);
		EXPECT_EQ(NR_PAGES + 10 - release.out_pages,
			  nr_frames(self->fd));

		populate = test_err_populate(ENOENT, self->fd, start, nr);
		EXPECT_EQ(next, populate.out_next_pfn);
		EXPECT_EQ(release.out_pages, populate.out_pages);
		EXPECT_EQ(NR_PAGES + 10, nr_frames(self->fd));
		test_err_guard_check(ENOENT, self->fd, 0, start, nr);
	}
	expect_sound(_metadata, self->fd);
	test_cmd_region_destroy(self->fd, END_PFN + 2);
}

TEST_F(live, range_without_sense_is_refused)
{
	const __u64 max = P2M_MAX_PFN;
	__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);

	ASSERT_NE(NULL, before);
	test_err_release(EINVAL, self->fd, BASE_PFN, 0);
	test_err_release(EOVERFLOW, self->fd, max - 1, 2);
	test_err_release(EOVERFLOW, self->fd, max, 1);
	test_err_release(EOVERFLOW, self->fd, BASE_PFN, ~0ULL);
	test_err_populate(EINVAL, self->fd, BASE_PFN, 0);
	test_err_populate(EOVERFLOW, self->fd, max - 1, 2);
	test_err_populate(EOVERFLOW, self->fd, BASE_PFN, ~0ULL);
	test_err_move(EINVAL, self->fd, BASE_PFN, 0, P2M_POLICY_ANY, 0);
	test_err_move(EOVERFLOW, self->fd, max - 1, 2, P2M_POLICY_ANY, 0);
	test_err_move(EOVERFLOW, self->fd, BASE_PFN, ~0ULL, P2M_POLICY_ANY, 0);
	test_err_move(EINVAL, self->fd, BASE_PFN, NR_PAGES, P2M_POLICY_ANY, 1);
	test_err_move(EOPNOTSUPP, self->fd, BASE_PFN, NR_PAGES,
		      P2M_POLICY_CONTIGUOUS, 0);
	test_err_move(EOPNOTSUPP, self->fd, BASE_PFN, NR_PAGES, 3, 0);
	test_err_contiguous(EINVAL, self->fd, BASE_PFN, 19, 0);
	test_err_contiguous(EINVAL, self->fd, BASE_PFN, 3, 65);
	test_err_contiguous(EOVERFLOW, self->fd, max - 7, 3, 0);
	test_err_contiguous(EOVERFLOW, self->fd, ~0ULL - 6, 3, 0);
	test_err_exchange(EINVAL, self->fd, BASE_PFN, BASE_PFN + HALF, 0);
	test_err_exchange(EOVERFLOW, self->fd, BASE_PFN, max - 9, 10);
	test_err_exchange(EOVERFLOW, self->fd, max - 9, BASE_PFN, 10);
	test_err_exchange(EOVERFLOW, self->fd, BASE_PFN, BASE_PFN + HALF,
			  ~0ULL);
	test_err_guard_check(EINVAL, self->fd, 0, BASE_PFN, 0);
	test_err_guard_check(EOVERFLOW, self->fd, 0, max - 1, 2);
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);
	EXPECT_EQ(LEN, first_nonzero(self->mem, LEN));
}

TEST_F(live, pinned_page_survives_its_release)
{
	const __u64 from = 500, nr = 20;
	char *buf = malloc(nr * P2M_PAGE_SIZE);
	struct p2m_release release;
	__u64 *before, *after;
	struct pin pin;
	__u64 i, j;

	ASSERT_NE(NULL, buf);
	fill_all(self->mem, NR_PAGES);
	before = range_to_entries(self->fd, BASE_PFN + from, nr);
	ASSERT_NE(NULL, before);
	ASSERT_EQ(0, pin_open(&pin, nr));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, from), nr));
	release = test_cmd_release(self->fd, BASE_PFN + from, nr);
	EXPECT_EQ(nr, release.out_pages);
	EXPECT_EQ(SIGBUS, touch_read(page_at(self->mem, from)));
	expect_sound(_metadata, self->fd);
	expect_forgotten(_metadata, self->fd, before, nr);

	/* The domain doesn't get the frames again, and what it writes stays here. */
	test_cmd_populate(self->fd, BASE_PFN + from, nr);
	after = range_to_entries(self->fd, BASE_PFN + from, nr);
	ASSERT_NE(NULL, after);
	for (i = 0; i < nr; i++)
		for (j = 0; j < nr; j++) {
			ASSERT_NE(before[i], after[j]);
		}
	memset(page_at(self->mem, from), 0xee, nr * P2M_PAGE_SIZE);
	test_cmd_move(self->fd, BASE_PFN, NR_PAGES, P2M_POLICY_ANY, 0);
	ASSERT_TRUE(pin_read(&pin, buf, nr));
	for (i = 0; i < nr; i++) {
		ASSERT_TRUE(page_matches(buf + i * P2M_PAGE_SIZE, from + i))
			TH_LOG("page %llu", i);
	}
	pin_close(&pin);
	free(before);
	free(after);
	free(buf);
}

static bool answer_released(void *arg, char question)
{
	char *mem = arg;

	if (question == 'f')
		return page_matches(page_at(mem, 710), 710);
	if (question == 'r')
		return touch_read(page_at(mem, 710)) == SIGBUS &&
		       page_matches(page_at(mem, 699), 699) &&
		       page_matches(page_at(mem, 750), 750);
	return page_matches(page_at(mem, 710), 7);
}

TEST_F(live, mappings_follow_release_and_populate)
{
	char *ro = mmap(NULL, LEN, PROT_READ, MAP_SHARED, self->fd,
			BASE_PFN * P2M_PAGE_SIZE);
	char *part = map_pages(self->fd, BASE_PFN + 700, 100);
	struct peer peer;

	ASSERT_NE(MAP_FAILED, ro);
	ASSERT_NE(MAP_FAILED, part);
	fill_all(self->mem, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(ro, NR_PAGES));
	EXPECT_TRUE(page_matches(page_at(part, 10), 710));
	ASSERT_EQ(0, peer_start(&peer, answer_released, self->mem));
	EXPECT_TRUE(peer_ask(&peer, 'f'));

	test_cmd_release(self->fd, BASE_PFN + 700, 50);
	EXPECT_EQ(SIGBUS, touch_read(part));
	EXPECT_EQ(SIGBUS, touch_write(page_at(part, 49), 1));
	EXPECT_EQ(SIGBUS, touch_read(page_at(ro, 700)));
	EXPECT_EQ(0, touch_read(page_at(part, 50)));
	EXPECT_TRUE(peer_ask(&peer, 'r'));

	test_cmd_populate(self->fd, BASE_PFN + 700, 50);
	page_fill(page_at(part, 10), 7);
	EXPECT_TRUE(peer_ask(&peer, 'p'));
	EXPECT_TRUE(page_matches(page_at(ro, 710), 7));
	EXPECT_EQ(P2M_PAGE_SIZE, first_nonzero(page_at(ro, 711), P2M_PAGE_SIZE));
	EXPECT_TRUE(peer_end(&peer));
	ASSERT_EQ(0, munmap(ro, LEN));
	ASSERT_EQ(0, munmap(part, 100 * P2M_PAGE_SIZE));
}

/* A domain without a region. */
FIXTURE(domain)
{
	int fd;
	__u64 total_pages;
};

FIXTURE_SETUP(domain)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(domain)
{
	expect_sound(_metadata, self->fd);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(domain, audit_of_nothing_finds_nothing)
{
	struct p2m_audit audit = expect_sound(_metadata, self->fd);

	EXPECT_EQ(0, audit.out_frames);
	EXPECT_EQ(0, audit.out_pinned);
	EXPECT_EQ(P2M_ENTRY_INVALID, audit.out_first_mfn);
}

TEST_F(domain, audit_counts_pinned_pages_once)
{
	struct p2m_audit audit;
	struct pin pin, again;
	char *mem;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 600, 0, 0);
	mem = map_pages(self->fd, 0, 600);
	ASSERT_NE(MAP_FAILED, mem);
	/* Mappings aren't somebody else. */
	memset(mem, 1, 600 * P2M_PAGE_SIZE);
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(600, audit.out_frames);
	EXPECT_EQ(0, audit.out_pinned);
	ASSERT_EQ(0, pin_open(&pin, 20));
	ASSERT_EQ(0, pin_open(&again, 20));
	ASSERT_EQ(0, pin_add(&pin, page_at(mem, 500), 20));
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(20, audit.out_pinned);
	ASSERT_EQ(0, pin_add(&again, page_at(mem, 510), 15));
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(25, audit.out_pinned);
	pin_close(&pin);
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(15, audit.out_pinned);
	ASSERT_EQ(0, munmap(mem, 600 * P2M_PAGE_SIZE));
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(15, audit.out_pinned);
	pin_close(&again);
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(0, audit.out_pinned);
	EXPECT_EQ(600, audit.out_frames);
}

/*
 * What was freed may be in the lists of processors, which don't count as free. To find
 * a run that is longer than its blocks, the page allocator empties them.
 */
static __u64 free_pages(void)
{
	int fd = p2m_open();
	__u64 base = 0;

	if (fd < 0 || _test_cmd_region_create(fd, 0, P2M_POLICY_CONTIGUOUS,
					      2048, 0, &base))
		fprintf(stderr, "# lists of free pages may not be empty\n");
	close(fd);
	return meminfo_kib("MemFree") / (P2M_PAGE_SIZE / 1024);
}

/* @now are @nr_pages more than @before, or not at all, but for noise. */
#define EXPECT_MORE(before, now, nr_pages) \
	EXPECT_LE((before) + (nr_pages) / 2, now)
#define EXPECT_NO_MORE(before, now, nr_pages) \
	EXPECT_GT((before) + (nr_pages) / 4, now)

TEST_F(domain, released_memory_is_the_systems)
{
	/* 64 MiB. */
	const __u64 nr = 16384;
	struct p2m_release release;
	__u64 before;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, nr, 0, 0);
	before = free_pages();
	release = test_cmd_release(self->fd, 0, nr);
	EXPECT_EQ(nr, release.out_pages);
	EXPECT_MORE(before, free_pages(), nr);
	test_cmd_populate(self->fd, 0, nr);
	EXPECT_NO_MORE(before, free_pages(), nr);
}

TEST_F(domain, pinned_memory_is_the_systems_when_it_is_unpinned)
{
	const __u64 nr = 16384;
	struct p2m_audit audit;
	struct pin pin;
	__u64 before;
	char *mem;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, nr, 0, 0);
	mem = map_pages(self->fd, 0, nr);
	ASSERT_NE(MAP_FAILED, mem);
	memset(mem, 1, nr * P2M_PAGE_SIZE);
	ASSERT_EQ(0, pin_open(&pin, nr));
	ASSERT_EQ(0, pin_add(&pin, mem, nr));
	audit = expect_sound(_metadata, self->fd);
	EXPECT_EQ(nr, audit.out_pinned);
	before = free_pages();
	test_cmd_release(self->fd, 0, nr);
	EXPECT_EQ(0, nr_frames(self->fd));
	EXPECT_NO_MORE(before, free_pages(), nr);
	pin_close(&pin);
	EXPECT_MORE(before, free_pages(), nr);
	ASSERT_EQ(0, munmap(mem, nr * P2M_PAGE_SIZE));
}

TEST_F(domain, move_passes_over_what_is_not_there)
{
	struct p2m_move move;

	move = test_cmd_move(self->fd, 0, 5000, P2M_POLICY_SCATTER, 1);
	EXPECT_EQ(0, move.out_pages);
	EXPECT_EQ(5000, move.out_next_pfn);
	/* Two regions, of which one has a hole. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 600, 0, 1000);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, 50, 0, 1600);
	test_cmd_release(self->fd, 1100, 30);
	move = test_cmd_move(self->fd, 0, 5000, P2M_POLICY_ANY, 0);
	EXPECT_EQ(620, move.out_pages);
	EXPECT_EQ(0, move.out_busy);
	EXPECT_EQ(5000, move.out_next_pfn);
	expect_mirrored(_metadata, self->fd, 1000, 650);
}

TEST_F(domain, commands_do_without_the_right_to_see_frames)
{
	int fd = open_unprivileged();
	struct p2m_exchange exchange;
	struct p2m_guard_check check;
	struct p2m_audit audit;
	struct p2m_move move;
	char *mem;

	ASSERT_LE(0, fd);
	test_cmd_region_create_fixed(fd, P2M_POLICY_ANY, 600, 0, 0);
	mem = map_pages(fd, 0, 600);
	ASSERT_NE(MAP_FAILED, mem);
	fill_all(mem, 600);
	move = test_cmd_move(fd, 0, 600, P2M_POLICY_SCATTER, 0);
	EXPECT_EQ(600, move.out_pages);
	exchange = test_cmd_exchange(fd, 0, 300, 300);
	EXPECT_EQ(300, exchange.out_pages);
	test_cmd_contiguous(fd, 100, 4, 0);
	EXPECT_EQ(600, first_mismatch(mem, 600));
	test_cmd_release(fd, 0, 600);
	test_cmd_populate(fd, 0, 600);
	check = test_cmd_guard_check(fd, 0, 0, 600);
	EXPECT_EQ(0, check.out_guards);
	audit = expect_sound(_metadata, fd);
	EXPECT_EQ(600, audit.out_frames);
	/* The one thing in it that is a frame number. */
	EXPECT_EQ(0, audit.out_first_mfn);
	ASSERT_EQ(0, munmap(mem, 600 * P2M_PAGE_SIZE));
	ASSERT_EQ(0, close(fd));
}

/* The ways to change the frames under all pages of a region. */
struct changed {
	__u64 nr;
	__u64 busy;
};

static int move_any(int fd, unsigned int round, struct changed *changed)
{
	struct p2m_move cmd;
	int ret = _test_cmd_move(fd, BASE_PFN, NR_PAGES, P2M_POLICY_ANY, 0,
				 &cmd);

	(void)round;
	changed->nr = cmd.out_pages;
	changed->busy = cmd.out_busy;
	return ret;
}

static int move_scatter(int fd, unsigned int round, struct changed *changed)
{
	struct p2m_move cmd;
	int ret = _test_cmd_move(fd, BASE_PFN, NR_PAGES, P2M_POLICY_SCATTER,
				 round, &cmd);

	changed->nr = cmd.out_pages;
	changed->busy = cmd.out_busy;
	return ret;
}

/*
 * How many windows are kept out of at one time. The pages may be all over the
 * machine: with all of their windows kept out of, none were left to go to.
 */
#define NR_KEPT_OUT 8

/* Until all pages were in a range that was cleared. */
static int evacuate_all(int fd, unsigned int round, struct changed *changed)
{
	__u64 *entries = range_to_entries(fd, BASE_PFN, NR_PAGES);
	__u64 i, first, window, kept_out[NR_KEPT_OUT];
	unsigned int nr_kept_out = 0;
	struct p2m_evacuate cmd;
	int ret = 0;

	changed->nr = changed->busy = 0;
	if (!entries)
		return -1;
	/* The round before may have been killed. */
	readmit_all(fd);
	/* Not always in the order of PFNs. */
	first = round * 389 % NR_PAGES;
	for (i = 0; i < NR_PAGES && !ret; i++) {
		__u64 index = (first + i) % NR_PAGES;
		__u64 *oldest = &kept_out[nr_kept_out % NR_KEPT_OUT];

		/* Moved, or left alone, with another one. */
		if (entries[index] == P2M_ENTRY_INVALID)
			continue;
		window = entries[index] & ~(NR_WINDOW - 1);
		for (__u64 j = 0; j < NR_PAGES; j++)
			if (entries[j] - window < NR_WINDOW)
				entries[j] = P2M_ENTRY_INVALID;
		if (nr_kept_out++ >= NR_KEPT_OUT)
			ret = _test_cmd_evacuate(fd, P2M_EVACUATE_READMIT,
						 *oldest, NR_WINDOW, &cmd);
		if (ret)
			break;
		*oldest = window;
		ret = _test_cmd_evacuate(fd, P2M_EVACUATE_KEEP_OUT, window,
					 NR_WINDOW, &cmd);
		changed->nr += cmd.out_pages;
		changed->busy += cmd.out_busy;
	}
	free(entries);
	readmit_all(fd);
	return ret;
}

/* Runs as large as fit. */
static int make_contiguous(int fd, unsigned int round, struct changed *changed)
{
	unsigned int order;
	__u64 pfn;

	changed->nr = changed->busy = 0;
	for (pfn = BASE_PFN; pfn < END_PFN; pfn += 1ULL << order) {
		struct p2m_contiguous cmd;

		for (order = 7 + round % 2; pfn + (1ULL << order) > END_PFN;)
			order--;
		if (!_test_cmd_contiguous(fd, pfn, order, 0, &cmd))
			changed->nr += 1ULL << order;
		else if (errno == EBUSY)
			changed->busy += 1ULL << order;
		else
			return -1;
	}
	return 0;
}

/* Far pages, and then near ones. */
static int exchange_all(int fd, unsigned int round, struct changed *changed)
{
	struct p2m_exchange cmd;
	int ret = _test_cmd_exchange(fd, BASE_PFN, BASE_PFN + HALF, HALF, &cmd);

	(void)round;
	changed->nr = 2 * cmd.out_pages;
	changed->busy = 2 * cmd.out_busy;
	return ret;
}

FIXTURE(change)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

FIXTURE_VARIANT(change)
{
	int (*run)(int fd, unsigned int round, struct changed *changed);
	/* How many pages 21 pinned ones keep from being changed. */
	__u64 busy;
	/* Afterwards no two neighbours are neighbours in the machine. */
	bool scatters;
};

FIXTURE_VARIANT_ADD(change, move_any) { .run = move_any, .busy = 21 };
FIXTURE_VARIANT_ADD(change, move_scatter)
{
	.run = move_scatter, .busy = 21, .scatters = true,
};
FIXTURE_VARIANT_ADD(change, evacuate) { .run = evacuate_all, .busy = 21 };
/* Two whole runs. */
FIXTURE_VARIANT_ADD(change, contiguous)
{
	.run = make_contiguous, .busy = 2 * 128,
};
/* With their partners. */
FIXTURE_VARIANT_ADD(change, exchange) { .run = exchange_all, .busy = 2 * 21 };

FIXTURE_SETUP(change)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0,
				     BASE_PFN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(change)
{
	expect_sound(_metadata, self->fd);
	EXPECT_EQ(NR_PAGES, nr_frames(self->fd));
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(0, nr_frames(self->fd));
	munmap(self->mem, LEN);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(change, every_frame_changes_and_no_content)
{
	int pagemap = pagemap_open();
	struct changed changed;
	unsigned int round;
	__u64 i;

	ASSERT_LE(0, pagemap);
	fill_all(self->mem, NR_PAGES);
	for (round = 0; round < 3; round++) {
		__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		__u64 *back = calloc(NR_PAGES, sizeof(*back));
		__u64 *after;

		ASSERT_NE(NULL, before);
		ASSERT_NE(NULL, back);
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_EQ(0, changed.busy);
		/* An evacuated page may come to a range that is next. */
		EXPECT_LE(NR_PAGES, changed.nr);
		after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		ASSERT_NE(NULL, after);
		EXPECT_EQ(NR_PAGES, nr_present(after, NR_PAGES));
		expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
		test_cmd_translate(self->fd, P2M_TRANSLATE_M2P, before, back,
				   NR_PAGES);
		EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
		for (i = 0; i < NR_PAGES; i++) {
			ASSERT_NE(before[i], after[i]) TH_LOG("page %llu", i);
			/* The old frame is nobody's or somebody else's. */
			ASSERT_NE(BASE_PFN + i, back[i]);
			/* What page tables have is what the P2M has. */
			ASSERT_EQ(after[i],
				  pagemap_mfn(pagemap, page_at(self->mem, i)));
		}
		if (variant->scatters)
			expect_scattered(_metadata, self->fd, BASE_PFN,
					 NR_PAGES);
		expect_sound(_metadata, self->fd);
		free(before);
		free(after);
		free(back);
	}
	ASSERT_EQ(0, close(pagemap));
}

struct views {
	char *mem, *ro, *part;
};

/* A question is a round, the content of which is all over the place. */
static bool answer_views(void *arg, char question)
{
	const struct views *views = arg;
	__u64 i, tag = question * NR_PAGES;

	for (i = 0; i < NR_PAGES; i += 11)
		if (!page_matches(page_at(views->mem, i), tag + i) ||
		    !page_matches(page_at(views->ro, i), tag + i))
			return false;
	/* 704 is the first of those in the part. */
	for (i = 4; i < 100; i += 11)
		if (!page_matches(page_at(views->part, i), tag + 700 + i))
			return false;
	/* And the other way. */
	page_fill(page_at(views->part, 1), tag + 1);
	return true;
}

TEST_F(change, all_mappings_follow)
{
	struct views views = {
		.mem = self->mem,
		.ro = mmap(NULL, LEN, PROT_READ, MAP_SHARED, self->fd,
			   BASE_PFN * P2M_PAGE_SIZE),
		.part = map_pages(self->fd, BASE_PFN + 700, 100),
	};
	struct peer heirs[2];
	struct changed changed;
	char round;
	__u64 i;

	ASSERT_NE(MAP_FAILED, views.ro);
	ASSERT_NE(MAP_FAILED, views.part);
	/* One that begins with empty page tables and one that doesn't. */
	ASSERT_EQ(0, peer_start(&heirs[0], answer_views, &views));
	for (i = 0; i < NR_PAGES; i += 11)
		page_fill(page_at(self->mem, i), i);
	ASSERT_EQ(0, peer_start(&heirs[1], answer_views, &views));
	for (round = 0; round < 4; round++) {
		__u64 tag = round * NR_PAGES;

		for (i = 0; i < NR_PAGES; i += 11)
			page_fill(page_at(self->mem, i), tag + i);
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_EQ(0, changed.busy);
		/* Mappings don't keep it from being changed. */
		EXPECT_TRUE(peer_ask(&heirs[round % 2], round));
		EXPECT_TRUE(page_matches(page_at(self->mem, 701), tag + 1));
		EXPECT_TRUE(page_matches(page_at(views.ro, 701), tag + 1));
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_TRUE(peer_ask(&heirs[1 - round % 2], round));
		EXPECT_TRUE(answer_views(&views, round));
		EXPECT_EQ(SIGSEGV, touch_write(views.ro, 1));
	}
	EXPECT_TRUE(peer_end(&heirs[0]));
	EXPECT_TRUE(peer_end(&heirs[1]));
	ASSERT_EQ(0, munmap(views.ro, LEN));
	ASSERT_EQ(0, munmap(views.part, 100 * P2M_PAGE_SIZE));
}

/* 20 pages and a single one, in different halves of runs and of the region. */
static bool is_pinned(__u64 index)
{
	return (index >= 200 && index < 220) || index == 300;
}

TEST_F(change, pinned_pages_stay_and_others_go)
{
	char *buf = malloc(21 * P2M_PAGE_SIZE);
	__u64 *before, *after;
	struct changed changed;
	struct pin pin;
	__u64 i, nr_same = 0;

	ASSERT_NE(NULL, buf);
	fill_all(self->mem, NR_PAGES);
	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	ASSERT_EQ(0, pin_open(&pin, 21));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, 200), 20));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, 300), 1));
	ASSERT_EQ(0, variant->run(self->fd, 0, &changed));
	EXPECT_EQ(variant->busy, changed.busy);
	EXPECT_LE(NR_PAGES - variant->busy, changed.nr);
	EXPECT_EQ(21, expect_sound(_metadata, self->fd).out_pinned);
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, after);
	for (i = 0; i < NR_PAGES; i++) {
		nr_same += before[i] == after[i];
		if (is_pinned(i)) {
			ASSERT_EQ(before[i], after[i]) TH_LOG("page %llu", i);
		}
	}
	EXPECT_EQ(variant->busy, nr_same);
	/* The page in the pipe is the page that is mapped. */
	page_fill(page_at(self->mem, 200), 42);
	ASSERT_TRUE(pin_read(&pin, buf, 21));
	EXPECT_TRUE(page_matches(buf, 42));
	for (i = 1; i < 20; i++) {
		EXPECT_TRUE(page_matches(buf + i * P2M_PAGE_SIZE, 200 + i));
	}
	EXPECT_TRUE(page_matches(buf + 20 * P2M_PAGE_SIZE, 300));
	/* What is read is not pinned any more. */
	ASSERT_EQ(0, variant->run(self->fd, 0, &changed));
	EXPECT_EQ(0, changed.busy);
	EXPECT_TRUE(page_matches(page_at(self->mem, 200), 42));
	pin_close(&pin);
	free(before);
	free(after);
	free(buf);
}

TEST_F(change, old_frames_go_back)
{
	const unsigned int nr_rounds = 20;
	struct changed changed;
	__u64 before;
	unsigned int round;

	ASSERT_EQ(0, variant->run(self->fd, 0, &changed));
	before = free_pages();
	for (round = 0; round < nr_rounds; round++) {
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
	}
	/* If they stayed, that were 117 MiB. */
	EXPECT_GE(free_pages() + nr_rounds * NR_PAGES / 4, before);
}

/* Each thread has the pages with its number modulo the number of threads. */
#define NR_HAMMERS 4

struct hammer {
	pthread_t thread;
	unsigned int nr;
	char *mem;
	const bool *stop;
	/* What is in its pages, and how many it found other contents in. */
	__u64 tags[NR_PAGES];
	__u64 nr_wrong;
	__u64 nr_done;
};

static void *hammer_pages(void *arg)
{
	struct hammer *hammer = arg;
	__u64 i;

	for (i = hammer->nr; !__atomic_load_n(hammer->stop, __ATOMIC_RELAXED);
	     i = (i + NR_HAMMERS) % NR_PAGES) {
		char *page = page_at(hammer->mem, i);

		if (!page_matches(page, hammer->tags[i]))
			hammer->nr_wrong++;
		hammer->tags[i] += NR_PAGES;
		page_fill(page, hammer->tags[i]);
		__atomic_fetch_add(&hammer->nr_done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(change, threads_lose_no_byte, 60)
{
	struct hammer *hammers = calloc(NR_HAMMERS, sizeof(*hammers));
	__u64 i, nr_busy = 0, nr_before[NR_HAMMERS];
	struct changed changed;
	unsigned int nr, round;
	bool stop = false;

	ASSERT_NE(NULL, hammers);
	fill_all(self->mem, NR_PAGES);
	for (nr = 0; nr < NR_HAMMERS; nr++) {
		hammers[nr].nr = nr;
		hammers[nr].mem = self->mem;
		hammers[nr].stop = &stop;
		for (i = 0; i < NR_PAGES; i++)
			hammers[nr].tags[i] = i;
		ASSERT_EQ(0, pthread_create(&hammers[nr].thread, NULL,
					    hammer_pages, &hammers[nr]));
	}
	for (nr = 0; nr < NR_HAMMERS; nr++) {
		while (!__atomic_load_n(&hammers[nr].nr_done, __ATOMIC_RELAXED))
			usleep(1000);
		nr_before[nr] = hammers[nr].nr_done;
	}
	for (round = 0; round < 8; round++) {
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		nr_busy += changed.busy;
		expect_sound(_metadata, self->fd);
	}
	/* None of them was kept waiting for good. */
	for (nr = 0; nr < NR_HAMMERS; nr++)
		while (__atomic_load_n(&hammers[nr].nr_done, __ATOMIC_RELAXED) <
		       nr_before[nr] + 100)
			usleep(1000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (nr = 0; nr < NR_HAMMERS; nr++) {
		ASSERT_EQ(0, pthread_join(hammers[nr].thread, NULL));
		EXPECT_EQ(0, hammers[nr].nr_wrong);
	}
	/* Touching isn't pinning. */
	EXPECT_EQ(0, nr_busy);
	/* NR_PAGES is a multiple of the number of threads. */
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_TRUE(page_matches(page_at(self->mem, i),
					 hammers[i % NR_HAMMERS].tags[i]))
			TH_LOG("page %llu", i);
	}
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	free(hammers);
}

struct direct {
	pthread_t thread;
	int file;
	char *mem;
	const bool *stop;
	__u64 nr_done;
	__u64 nr_wrong;
};

#define DIRECT_PAGES 32ULL

/* Writes pages of the first half out, and reads them into the second half. */
static void *direct_io(void *arg)
{
	const size_t len = DIRECT_PAGES * P2M_PAGE_SIZE;
	struct direct *direct = arg;
	__u64 i, from, to, nr = 0;

	while (!__atomic_load_n(direct->stop, __ATOMIC_RELAXED)) {
		from = nr % (HALF / DIRECT_PAGES) * DIRECT_PAGES;
		to = HALF + from;
		/* Each time other content. */
		for (i = 0; i < DIRECT_PAGES; i++)
			page_fill(page_at(direct->mem, from + i),
				  nr * NR_PAGES + i);
		if (pwrite(direct->file, page_at(direct->mem, from), len, 0) !=
			    len ||
		    pread(direct->file, page_at(direct->mem, to), len, 0) !=
			    len) {
			direct->nr_wrong++;
			break;
		}
		for (i = 0; i < DIRECT_PAGES; i++)
			if (!page_matches(page_at(direct->mem, to + i),
					  nr * NR_PAGES + i))
				direct->nr_wrong++;
		__atomic_store_n(&direct->nr_done, ++nr, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F(change, direct_io_is_kept_or_waited_for)
{
	bool stop = false;
	struct direct direct = { .mem = self->mem, .stop = &stop };
	struct changed changed;
	unsigned int round;
	__u64 nr_during;

	direct.file = open_loop_device(LEN);
	if (direct.file < 0)
		SKIP(return, "no loop device");
	ASSERT_EQ(0, pthread_create(&direct.thread, NULL, direct_io, &direct));
	while (__atomic_load_n(&direct.nr_done, __ATOMIC_RELAXED) < 2 &&
	       !__atomic_load_n(&direct.nr_wrong, __ATOMIC_RELAXED))
		usleep(1000);
	nr_during = direct.nr_done;
	for (round = 0; round < 20; round++) {
		/* Busy pages are fine. */
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_LE(NR_PAGES, changed.nr + changed.busy);
		expect_sound(_metadata, self->fd);
	}
	nr_during = direct.nr_done - nr_during;
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(direct.thread, NULL));
	EXPECT_EQ(0, direct.nr_wrong);
	EXPECT_LT(0, nr_during);
	EXPECT_EQ(0, expect_sound(_metadata, self->fd).out_pinned);
	ASSERT_EQ(0, close(direct.file));
}

TEST_F(change, kvm_guest_goes_on)
{
	struct machine machine;
	struct changed changed;
	const char *reason;
	unsigned int round;
	__u64 nr_during;

	if (!machine_start(&machine, self->mem, &reason)) {
		ASSERT_NE(NULL, reason);
		SKIP(return, "%s", reason);
	}
	nr_during = machine_runs(&machine);
	for (round = 0; round < 8; round++) {
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_LE(NR_PAGES, changed.nr + changed.busy);
		expect_sound(_metadata, self->fd);
	}
	nr_during = machine_runs(&machine) - nr_during;
	EXPECT_LT(0, nr_during);
	EXPECT_TRUE(machine_stop(&machine));
}

/* What a reader of the tables has accepted. */
#define MAX_SAMPLES 100000U
#define VIEW_ROUNDS 8U

struct sample {
	__u32 index;
	__u64 mfn;
};

struct reader {
	pthread_t thread;
	const volatile struct p2m_header *header;
	const volatile __u64 *p2m, *m2p;
	__u64 max_mfn;
	const bool *stop;
	struct sample *samples;
	unsigned int nr, nr_back;
};

static void *read_views(void *arg)
{
	struct reader *reader = arg;
	__u64 before, entry, mfn, pfn, random = 1;
	__u32 index;

	while (!__atomic_load_n(reader->stop, __ATOMIC_RELAXED)) {
		index = next_random(&random) % NR_PAGES;
		do {
			before = reader->header->generation;
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			entry = reader->p2m[BASE_PFN + index];
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
		} while (before % 2 || before != reader->header->generation);
		/* If there is no room any more, the first are overwritten. */
		reader->samples[reader->nr++ % MAX_SAMPLES] =
			(struct sample){ .index = index, .mfn = entry };

		/* Some frame near it: by the M2P, which the P2M must confirm. */
		mfn = entry ^ (next_random(&random) % 64);
		if (mfn >= reader->max_mfn)
			continue;
		pfn = reader->m2p[mfn];
		if (pfn - BASE_PFN >= NR_PAGES || reader->p2m[pfn] != mfn)
			continue;
		reader->nr_back++;
		reader->samples[reader->nr++ % MAX_SAMPLES] =
			(struct sample){ .index = pfn - BASE_PFN, .mfn = mfn };
	}
	return NULL;
}

TEST_F(change, reader_of_tables_accepts_only_what_was)
{
	const size_t p2m_len = END_PFN * sizeof(__u64) + P2M_PAGE_SIZE;
	__u64 *history[VIEW_ROUNDS + 1], max = max_mfn(self->fd);
	bool stop = false;
	struct reader reader = { .max_mfn = max, .stop = &stop };
	struct changed changed;
	unsigned int i, round;

	/* Evacuation moves a page twice, so not all states are known. */
	if (variant->run == evacuate_all)
		SKIP(return, "intermediate states are not seen");
	reader.header = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, reader.header);
	reader.p2m = map_window(self->fd, P2M_OFFSET_P2M, p2m_len);
	ASSERT_NE(MAP_FAILED, reader.p2m);
	reader.m2p = map_window(self->fd, P2M_OFFSET_M2P, max * sizeof(__u64));
	ASSERT_NE(MAP_FAILED, reader.m2p);
	reader.samples = calloc(MAX_SAMPLES, sizeof(*reader.samples));
	ASSERT_NE(NULL, reader.samples);
	history[0] = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, history[0]);
	ASSERT_EQ(0, pthread_create(&reader.thread, NULL, read_views, &reader));
	for (round = 0; round < VIEW_ROUNDS; round++) {
		ASSERT_EQ(0, variant->run(self->fd, round, &changed));
		EXPECT_EQ(0, changed.busy);
		history[round + 1] = range_to_entries(self->fd, BASE_PFN,
						      NR_PAGES);
		ASSERT_NE(NULL, history[round + 1]);
	}
	/* It has to see some of it. */
	while (__atomic_load_n(&reader.nr, __ATOMIC_RELAXED) < 1000)
		usleep(1000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(reader.thread, NULL));
	EXPECT_LT(0, reader.nr_back);
	if (reader.nr > MAX_SAMPLES)
		reader.nr = MAX_SAMPLES;
	for (i = 0; i < reader.nr; i++) {
		const struct sample *sample = &reader.samples[i];

		for (round = 0; round <= VIEW_ROUNDS; round++)
			if (history[round][sample->index] == sample->mfn)
				break;
		ASSERT_GE(VIEW_ROUNDS, round)
			TH_LOG("page %u never had %llx", sample->index,
			       sample->mfn);
	}
	for (round = 0; round <= VIEW_ROUNDS; round++)
		free(history[round]);
	free(reader.samples);
	munmap((void *)reader.header, P2M_PAGE_SIZE);
	munmap((void *)reader.p2m, p2m_len);
	munmap((void *)reader.m2p, max * sizeof(__u64));
}

/* A process that is killed half-way leaves a domain that others can use. */
TEST_F(change, killed_half_way_leaves_all_right)
{
	struct changed changed;
	unsigned int round;
	pid_t pid;

	fill_all(self->mem, NR_PAGES);
	for (round = 0; round < 6; round++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				variant->run(self->fd, round++, &changed);
		}
		usleep(20000 + round * 7000);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, NULL, 0));
		expect_sound(_metadata, self->fd);
		EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	}
	ASSERT_EQ(0, variant->run(self->fd, 0, &changed));
	EXPECT_EQ(0, changed.busy);
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
}

/* A scattered region, for what commands do one by one. */
FIXTURE(scattered)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

FIXTURE_SETUP(scattered)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0,
				     BASE_PFN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
	fill_all(self->mem, NR_PAGES);
}

FIXTURE_TEARDOWN(scattered)
{
	expect_sound(_metadata, self->fd);
	munmap(self->mem, LEN);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

/* No frame of the domain is in a range, by both maps. */
static void expect_clear(struct __test_metadata *_metadata, int fd,
			 __u64 start_mfn, __u64 nr, __u64 start_pfn,
			 __u64 nr_pages)
{
	__u64 *entries = range_to_entries(fd, start_pfn, nr_pages);
	__u64 *mfns = calloc(nr, sizeof(*mfns));
	__u64 i;

	ASSERT_NE(NULL, entries);
	ASSERT_NE(NULL, mfns);
	for (i = 0; i < nr_pages; i++) {
		ASSERT_FALSE(entries[i] - start_mfn < nr)
			TH_LOG("PFN %llu is at %llx", start_pfn + i, entries[i]);
	}
	for (i = 0; i < nr; i++)
		mfns[i] = start_mfn + i;
	expect_forgotten(_metadata, fd, mfns, nr);
	free(entries);
	free(mfns);
}

TEST_F(scattered, move_within_scattered_pages_keeps_them_scattered)
{
	static const __u64 sizes[] = { 1, 2, 3, 5, 100, 700 };
	size_t i;

	for (i = 0; i < ARRAY_LEN(sizes); i++) {
		struct p2m_move move;
		__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		__u64 *after, j, from = 300 + i;

		ASSERT_NE(NULL, before);
		move = test_cmd_move(self->fd, BASE_PFN + from, sizes[i],
				     P2M_POLICY_SCATTER, i);
		EXPECT_EQ(sizes[i], move.out_pages);
		EXPECT_EQ(0, move.out_busy);
		EXPECT_EQ(BASE_PFN + from + sizes[i], move.out_next_pfn);
		/* At the ends of the range, too. */
		expect_scattered(_metadata, self->fd, BASE_PFN, NR_PAGES);
		after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		ASSERT_NE(NULL, after);
		for (j = 0; j < NR_PAGES; j++) {
			ASSERT_EQ(j >= from && j < from + sizes[i],
				  before[j] != after[j])
				TH_LOG("page %llu", j);
		}
		free(before);
		free(after);
	}
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, evacuated_range_is_clear)
{
	const __u64 window = window_of(self->fd, BASE_PFN + 700, NR_WINDOW);
	struct p2m_evacuate evacuate;
	__u64 *before, *after;
	__u64 i, nr_inside = 0;

	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	for (i = 0; i < NR_PAGES; i++)
		nr_inside += before[i] - window < NR_WINDOW;
	evacuate = test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	EXPECT_EQ(nr_inside, evacuate.out_pages);
	EXPECT_EQ(0, evacuate.out_busy);
	EXPECT_EQ(window + NR_WINDOW, evacuate.out_next_mfn);
	expect_clear(_metadata, self->fd, window, NR_WINDOW, BASE_PFN,
		     NR_PAGES);
	/* Only those were moved. */
	after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, after);
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(before[i] - window < NR_WINDOW,
			  before[i] != after[i]);
	}
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	/* Now there is nothing to do. */
	evacuate = test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	EXPECT_EQ(0, evacuate.out_pages);
	EXPECT_EQ(window + NR_WINDOW, evacuate.out_next_mfn);
	/* One frame is a range, too. */
	evacuate = test_cmd_evacuate(self->fd, 0, after[3], 1);
	EXPECT_EQ(1, evacuate.out_pages);
	EXPECT_NE(after[3], pfn_to_entry(self->fd, BASE_PFN + 3));
	free(before);
	free(after);
}

TEST_F(scattered, half_of_the_machine_can_be_evacuated)
{
	const __u64 half = max_mfn(self->fd) / 2;
	/* Where most of it is. */
	const __u64 start = pfn_to_entry(self->fd, BASE_PFN) < half ? 0 : half;
	struct p2m_evacuate evacuate;

	evacuate = test_cmd_evacuate(self->fd, 0, start, half);
	EXPECT_LT(0, evacuate.out_pages);
	EXPECT_EQ(0, evacuate.out_busy);
	expect_clear(_metadata, self->fd, start, half, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, busy_pages_of_an_evacuated_range_stay)
{
	const __u64 window = window_of(self->fd, BASE_PFN + 700, NR_WINDOW);
	struct p2m_evacuate evacuate;
	__u64 *before;
	struct pin pin;
	__u64 i, nr_inside = 0;

	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	for (i = 0; i < NR_PAGES; i++)
		nr_inside += before[i] - window < NR_WINDOW;
	ASSERT_EQ(0, pin_open(&pin, 1));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, 700), 1));
	evacuate = test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	EXPECT_EQ(nr_inside - 1, evacuate.out_pages);
	EXPECT_EQ(1, evacuate.out_busy);
	EXPECT_EQ(window + NR_WINDOW, evacuate.out_next_mfn);
	EXPECT_EQ(before[700], pfn_to_entry(self->fd, BASE_PFN + 700));
	EXPECT_EQ(BASE_PFN + 700, mfn_to_pfn(self->fd, before[700]));
	pin_close(&pin);
	evacuate = test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	EXPECT_EQ(1, evacuate.out_pages);
	expect_clear(_metadata, self->fd, window, NR_WINDOW, BASE_PFN,
		     NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	free(before);
}

/*
 * The half of the machine that large blocks come from now: looking for frames in the
 * other one would go through all of this.
 */
static void choose_half(struct __test_metadata *_metadata, int fd,
			__u64 *start_mfn, __u64 *end_mfn)
{
	const __u64 half = max_mfn(fd) / 2, nr = 4096;
	__u64 base, mfn;

	test_cmd_region_create(fd, P2M_POLICY_ANY, nr, 0, &base);
	mfn = pfn_to_entry(fd, base + nr - 1024);
	test_cmd_region_destroy(fd, base);
	*start_mfn = mfn < half ? 1 : half;
	*end_mfn = mfn < half ? half : 2 * half;
}

/* Makes a region in a range of machine frames, for a moment. */
static int create_in_range(int fd, __u64 start_mfn, __u64 end_mfn, __u64 nr_pages)
{
	struct p2m_region_create cmd = {
		.flags = P2M_REGION_RANGE,
		.nr_pages = nr_pages,
		.start_mfn = start_mfn,
		.end_mfn = end_mfn,
	};
	int ret = _test_cmd_create_by(fd, &cmd);

	return ret ? ret : _test_cmd_region_destroy(fd, cmd.base_pfn);
}

TEST_F(scattered, kept_out_range_is_not_used)
{
	const __u64 window = window_of(self->fd, BASE_PFN + 700, NR_WINDOW);
	const __u64 other = END_PFN + 100, nr = 1000;
	struct p2m_region_create on_demand = {
		.flags = P2M_REGION_ON_DEMAND | P2M_REGION_FIXED,
		.base_pfn = other,
		.nr_pages = nr,
	};
	static const __u32 policies[] = {
		P2M_POLICY_ANY, P2M_POLICY_SCATTER, P2M_POLICY_CONTIGUOUS,
	};
	char *mem;
	size_t i;

	test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, window, NR_WINDOW);
#define EXPECT_CLEAR() \
	expect_clear(_metadata, self->fd, window, NR_WINDOW, BASE_PFN, \
		     other + nr - BASE_PFN)
	/* What has just become free would be taken first. */
	EXPECT_CLEAR();
	for (i = 0; i < ARRAY_LEN(policies); i++) {
		test_cmd_region_create_fixed(self->fd, policies[i], nr, 0,
					     other);
		EXPECT_CLEAR();
		test_cmd_move(self->fd, other, nr, P2M_POLICY_ANY, 0);
		EXPECT_CLEAR();
		test_cmd_move(self->fd, other, nr, P2M_POLICY_SCATTER, i);
		EXPECT_CLEAR();
		test_cmd_release(self->fd, other, nr);
		test_cmd_populate(self->fd, other, nr);
		EXPECT_CLEAR();
		test_cmd_contiguous(self->fd, other, 6, 0);
		EXPECT_CLEAR();
		test_cmd_region_destroy(self->fd, other);
	}
	test_cmd_create_by(self->fd, &on_demand);
	mem = map_pages(self->fd, other, nr);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < nr; i += 7) {
		ASSERT_EQ(0, touch_write(page_at(mem, i), 1));
	}
	EXPECT_CLEAR();
	ASSERT_EQ(0, munmap(mem, nr * P2M_PAGE_SIZE));
	test_cmd_region_destroy(self->fd, other);
#undef EXPECT_CLEAR
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, readmitted_range_is_used_again)
{
	__u64 start, end;

	choose_half(_metadata, self->fd, &start, &end);
	test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, start, end - start);
	expect_clear(_metadata, self->fd, start, end - start, BASE_PFN,
		     NR_PAGES);
	test_cmd_evacuate(self->fd, P2M_EVACUATE_READMIT, start, end - start);
	EXPECT_EQ(0, create_in_range(self->fd, start, end, 64));
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, range_is_kept_out_until_it_is_readmitted)
{
	const __u64 window = window_of(self->fd, BASE_PFN + 700, NR_WINDOW);
	const __u32 keep_out = P2M_EVACUATE_KEEP_OUT;
	const __u32 readmit = P2M_EVACUATE_READMIT;

	test_err_evacuate(ENOENT, self->fd, readmit, window, NR_WINDOW);
	/* An evacuation alone keeps nothing out. */
	test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	test_err_evacuate(ENOENT, self->fd, readmit, window, NR_WINDOW);
	test_cmd_evacuate(self->fd, keep_out, window, NR_WINDOW);
	/* Any part of it, until nothing is left. */
	test_cmd_evacuate(self->fd, readmit, window, 1);
	test_err_evacuate(ENOENT, self->fd, readmit, window, 1);
	test_cmd_evacuate(self->fd, readmit, window + 100, 100);
	test_cmd_evacuate(self->fd, readmit, window + NR_WINDOW - 1, 100);
	test_cmd_evacuate(self->fd, readmit, window, NR_WINDOW);
	test_err_evacuate(ENOENT, self->fd, readmit, window, NR_WINDOW);
	/* Once, however often it was excluded. */
	test_cmd_evacuate(self->fd, keep_out, window, NR_WINDOW);
	test_cmd_evacuate(self->fd, keep_out, window, NR_WINDOW);
	test_cmd_evacuate(self->fd, readmit, window, NR_WINDOW);
	test_err_evacuate(ENOENT, self->fd, readmit, window, NR_WINDOW);
	/* It isn't readmitted by an evacuation. */
	test_cmd_evacuate(self->fd, keep_out, window, NR_WINDOW);
	test_cmd_evacuate(self->fd, 0, window, NR_WINDOW);
	test_cmd_evacuate(self->fd, readmit, window, NR_WINDOW);
	test_err_evacuate(ENOENT, self->fd, readmit, window, NR_WINDOW);
}

/* Somebody empties a DIMM in steps, from both ends, and then puts a new one in. */
TEST_F(scattered, range_is_kept_out_in_steps)
{
	const __u64 window = window_of(self->fd, BASE_PFN + 700, NR_WINDOW);
	const __u64 step = NR_WINDOW / 64;
	__u64 i, at, nr_out = 0;

	for (i = 0; i < 64; i++) {
		at = window + (i % 2 ? 63 - i / 2 : i / 2) * step;
		test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, at, step);
	}
	test_cmd_move(self->fd, BASE_PFN, NR_PAGES, P2M_POLICY_SCATTER, 1);
	expect_clear(_metadata, self->fd, window, NR_WINDOW, BASE_PFN,
		     NR_PAGES);
	test_cmd_evacuate(self->fd, P2M_EVACUATE_READMIT, window, NR_WINDOW);
	test_err_evacuate(ENOENT, self->fd, P2M_EVACUATE_READMIT, window,
			  NR_WINDOW);

	/* Pieces, none next to another, become one: beyond the machine. */
	at = max_mfn(self->fd);
	for (i = 0; i < 400; i++) {
		test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, at + 2 * i, 1);
	}
	test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, at, 801);
	for (i = 0; i < 801; i++)
		nr_out += !_test_cmd_evacuate(self->fd, P2M_EVACUATE_READMIT,
					      at + i, 1,
					      &(struct p2m_evacuate){});
	EXPECT_EQ(801, nr_out);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, evacuation_without_sense_is_refused)
{
	__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	const __u32 both = P2M_EVACUATE_KEEP_OUT | P2M_EVACUATE_READMIT;
	int fd = open_unprivileged();

	ASSERT_NE(NULL, before);
	ASSERT_LE(0, fd);
	test_err_evacuate(EPERM, fd, 0, before[0], 1);
	test_err_evacuate(EPERM, fd, P2M_EVACUATE_READMIT, before[0], 1);
	test_err_evacuate(EINVAL, self->fd, 0, before[0], 0);
	test_err_evacuate(EINVAL, self->fd, both, before[0], 1);
	test_err_evacuate(EOPNOTSUPP, self->fd, 1 << 2, before[0], 1);
	test_err_evacuate(EOVERFLOW, self->fd, 0, before[0], ~0ULL);
	test_err_evacuate(EOVERFLOW, self->fd, 0, ~0ULL, 1);
	test_err_evacuate(EOVERFLOW, self->fd, 0, P2M_ENTRY_MFN_MASK, 2);
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);
	ASSERT_EQ(0, close(fd));
}

TEST_F(scattered, contiguous_pages_are_one_aligned_run)
{
	unsigned int order;
	__u64 end = max_mfn(self->fd);
	unsigned int bits = 0;

	/* As many bits as half of the machine has. */
	while ((1ULL << bits) < end / 2)
		bits++;
	for (order = 0; order <= 10; order++) {
		const __u64 nr = 1ULL << order, start = BASE_PFN + 3 + order;
		/* From anywhere, and from the lower half. */
		const __u32 limits[] = { 0, bits + 12, 64 };
		size_t i;

		for (i = 0; i < ARRAY_LEN(limits); i++) {
			__u64 *before = range_to_entries(self->fd, BASE_PFN,
							 NR_PAGES);
			struct p2m_contiguous contiguous;
			struct p2m_run run;
			__u64 *after, j;
			__u32 nr_runs;

			ASSERT_NE(NULL, before);
			contiguous = test_cmd_contiguous(self->fd, start, order,
							 limits[i]);
			EXPECT_EQ(P2M_ENTRY_INVALID, contiguous.out_busy_pfn);
			test_cmd_runs(self->fd, start, nr, &run, 1, &nr_runs,
				      NULL);
			EXPECT_EQ(1, nr_runs);
			EXPECT_EQ(nr, run.nr_pages);
			EXPECT_EQ(0, run.entry % nr);
			if (limits[i] == bits + 12)
				EXPECT_GE(1ULL << bits, run.entry + nr);
			expect_forgotten(_metadata, self->fd,
					 before + (start - BASE_PFN), nr);
			after = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
			ASSERT_NE(NULL, after);
			/* The others have what they had. */
			for (j = 0; j < NR_PAGES; j++) {
				if (BASE_PFN + j - start < nr)
					continue;
				ASSERT_EQ(before[j], after[j]);
			}
			free(before);
			free(after);
		}
		EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
		EXPECT_EQ(NR_PAGES,
			  expect_sound(_metadata, self->fd).out_frames);
	}
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	/* And back. */
	test_cmd_move(self->fd, BASE_PFN, NR_PAGES, P2M_POLICY_SCATTER, 7);
	expect_scattered(_metadata, self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, contiguous_fails_with_the_frames_as_they_were)
{
	/* 256 pages from here on. */
	const __u64 from = 200, start = BASE_PFN + from;
	struct p2m_contiguous contiguous;
	struct pin pin;
	__u64 *before;

#define EXPECT_FAILURE(err, order, bits)                                      \
	({                                                                    \
		before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);      \
		ASSERT_NE(NULL, before);                                      \
		contiguous = test_err_contiguous(err, self->fd, start, order, \
						 bits);                       \
		expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES,     \
				 before);                                     \
		expect_sound(_metadata, self->fd);                            \
	})
	/* Nothing is there at all, or too little for so many pages. */
	EXPECT_FAILURE(EADDRNOTAVAIL, 8, 1);
	EXPECT_FAILURE(EADDRNOTAVAIL, 8, 11);
	EXPECT_FAILURE(EADDRNOTAVAIL, 0, 12);
	EXPECT_FAILURE(EADDRNOTAVAIL, 8, 19);
	EXPECT_FAILURE(EADDRNOTAVAIL, 8, 20);
	EXPECT_EQ(P2M_ENTRY_INVALID, contiguous.out_busy_pfn);

	/* The first of two that are in the way. */
	ASSERT_EQ(0, pin_open(&pin, 2));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, from + 255), 1));
	EXPECT_FAILURE(EBUSY, 8, 0);
	EXPECT_EQ(start + 255, contiguous.out_busy_pfn);
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, from + 100), 1));
	EXPECT_FAILURE(EBUSY, 8, 0);
	EXPECT_EQ(start + 100, contiguous.out_busy_pfn);
	pin_close(&pin);

	/* One isn't there: at an end, and in the middle. */
	test_cmd_release(self->fd, start + 255, 1);
	EXPECT_FAILURE(EFAULT, 8, 0);
	test_cmd_populate(self->fd, start + 255, 1);
	test_cmd_release(self->fd, start + 77, 1);
	EXPECT_FAILURE(EFAULT, 8, 0);
	test_cmd_populate(self->fd, start + 77, 1);
	EXPECT_EQ(from + 77, first_mismatch(self->mem, NR_PAGES));
	page_fill(page_at(self->mem, from + 77), from + 77);
	page_fill(page_at(self->mem, from + 255), from + 255);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	/* Nothing is in the way any more. */
	test_cmd_contiguous(self->fd, start, 8, 0);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
#undef EXPECT_FAILURE
}

TEST_F(scattered, pages_of_no_region_are_ENOENT)
{
	__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);

	ASSERT_NE(NULL, before);
	test_err_contiguous(ENOENT, self->fd, END_PFN - 8, 4, 0);
	test_err_contiguous(ENOENT, self->fd, BASE_PFN - 1, 0, 0);
	test_err_exchange(ENOENT, self->fd, BASE_PFN, END_PFN - 9, 10);
	test_err_exchange(ENOENT, self->fd, BASE_PFN - 1, BASE_PFN + 100, 10);
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, exchanged_pages_have_each_others_frames)
{
	static const struct {
		__u64 a, b, nr;
	} ranges[] = {
		{ 0, 1, 1 },	     { 10, 5, 5 },   { 300, 900, 600 },
		{ 900, 300, 600 },   { 0, HALF, HALF }, { 24, 536, 512 },
		{ NR_PAGES - 1, 0, 1 },
	};
	struct p2m_exchange exchange;
	size_t i;

	for (i = 0; i < ARRAY_LEN(ranges); i++) {
		const __u64 a = ranges[i].a, b = ranges[i].b, nr = ranges[i].nr;
		__u64 *before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
		__u64 *expected = calloc(NR_PAGES, sizeof(*expected));
		__u64 *again = calloc(NR_PAGES, sizeof(*again));

		ASSERT_NE(NULL, before);
		ASSERT_NE(NULL, expected);
		ASSERT_NE(NULL, again);
		memcpy(expected, before, NR_PAGES * sizeof(*expected));
		memcpy(again, before, NR_PAGES * sizeof(*again));
		memcpy(expected + a, before + b, nr * sizeof(*expected));
		memcpy(expected + b, before + a, nr * sizeof(*expected));
		exchange = test_cmd_exchange(self->fd, BASE_PFN + a,
					     BASE_PFN + b, nr);
		EXPECT_EQ(nr, exchange.out_pages);
		EXPECT_EQ(0, exchange.out_busy);
		expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES,
				 expected);
		expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
		EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
		/* Twice is not at all. */
		test_cmd_exchange(self->fd, BASE_PFN + b, BASE_PFN + a, nr);
		expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES,
				 again);
		free(before);
	}
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, exchange_reaches_other_regions)
{
	const __u64 other = END_PFN + 1000;
	__u64 *a, *b;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_CONTIGUOUS, 600, 0,
				     other);
	a = range_to_entries(self->fd, BASE_PFN + 100, 600);
	b = range_to_entries(self->fd, other, 600);
	ASSERT_NE(NULL, a);
	ASSERT_NE(NULL, b);
	test_cmd_exchange(self->fd, BASE_PFN + 100, other, 600);
	expect_unchanged(_metadata, self->fd, other, 600, a);
	expect_unchanged(_metadata, self->fd, BASE_PFN + 100, 600, b);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
	/* The frames go with the pages now. */
	test_cmd_region_destroy(self->fd, other);
	EXPECT_EQ(NR_PAGES, first_mismatch(self->mem, NR_PAGES));
}

TEST_F(scattered, exchange_fails_with_the_frames_as_they_were)
{
	__u64 *before;

	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	test_err_exchange(EINVAL, self->fd, BASE_PFN, BASE_PFN, 1);
	test_err_exchange(EINVAL, self->fd, BASE_PFN, BASE_PFN + 9, 10);
	test_err_exchange(EINVAL, self->fd, BASE_PFN + 9, BASE_PFN, 10);
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);

	test_cmd_release(self->fd, BASE_PFN + 20, 1);
	before = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, before);
	test_err_exchange(EFAULT, self->fd, BASE_PFN + 11, BASE_PFN + 100, 10);
	test_err_exchange(EFAULT, self->fd, BASE_PFN + 100, BASE_PFN + 11, 10);
	expect_unchanged(_metadata, self->fd, BASE_PFN, NR_PAGES, before);
	EXPECT_EQ(20, first_mismatch(self->mem, 20));
	test_cmd_exchange(self->fd, BASE_PFN + 100, BASE_PFN + 10, 10);
}

/*
 * A thousand random commands, and what a model says of them: a page is missing, or
 * has the content with a tag, of which 0 is that of a new page.
 */
#define MODEL_PAGES 300ULL
#define MODEL_MISSING (~0ULL)

struct model {
	__u64 tags[MODEL_PAGES];
	__u64 random;
	__u64 next_tag;
};

static __u64 model_random(struct model *model, __u64 limit)
{
	return next_random(&model->random) % limit;
}

static __u64 model_count(const struct model *model, __u64 from, __u64 nr)
{
	__u64 i, count = 0;

	for (i = from; i < from + nr; i++)
		count += model->tags[i] != MODEL_MISSING;
	return count;
}

static bool model_page_is_right(const struct model *model, char *mem, __u64 i)
{
	char *page = page_at(mem, i);

	if (model->tags[i] == MODEL_MISSING)
		return touch_read(page) == SIGBUS;
	if (!model->tags[i])
		return first_nonzero(page, P2M_PAGE_SIZE) == P2M_PAGE_SIZE;
	return page_matches(page, model->tags[i]);
}

/* One random command. */
static void model_step(struct __test_metadata *_metadata, struct model *model,
		       int fd, char *mem)
{
	__u64 from = model_random(model, MODEL_PAGES);
	__u64 nr = 1 + model_random(model, MODEL_PAGES - from);
	__u64 present, i, to;
	struct p2m_evacuate evacuate;
	struct p2m_exchange exchange;
	struct p2m_populate populate;
	struct p2m_release release;
	struct p2m_move move;
	unsigned int order;

	if (model_random(model, 2) && nr > 40)
		nr = 40;
	present = model_count(model, from, nr);
	switch (model_random(model, 8)) {
	case 0:
	case 1:
		for (i = from; i < from + nr; i++)
			if (model->tags[i] != MODEL_MISSING) {
				model->tags[i] = ++model->next_tag;
				page_fill(page_at(mem, i), model->tags[i]);
			}
		break;
	case 2:
		release = test_cmd_release(fd, BASE_PFN + from, nr);
		ASSERT_EQ(present, release.out_pages);
		for (i = from; i < from + nr; i++)
			model->tags[i] = MODEL_MISSING;
		break;
	case 3:
		populate = test_cmd_populate(fd, BASE_PFN + from, nr);
		ASSERT_EQ(nr - present, populate.out_pages);
		for (i = from; i < from + nr; i++)
			if (model->tags[i] == MODEL_MISSING)
				model->tags[i] = 0;
		break;
	case 4:
		if (model_random(model, 2))
			move = test_cmd_move(fd, BASE_PFN + from, nr,
					     P2M_POLICY_SCATTER, from);
		else
			move = test_cmd_move(fd, BASE_PFN + from, nr,
					     P2M_POLICY_ANY, 0);
		ASSERT_EQ(present, move.out_pages);
		ASSERT_EQ(0, move.out_busy);
		break;
	case 5:
		to = model_random(model, MODEL_PAGES - nr + 1);
		if (to < from + nr && from < to + nr) {
			test_err_exchange(EINVAL, fd, BASE_PFN + from,
					  BASE_PFN + to, nr);
		} else if (present + model_count(model, to, nr) < 2 * nr) {
			test_err_exchange(EFAULT, fd, BASE_PFN + from,
					  BASE_PFN + to, nr);
		} else {
			exchange = test_cmd_exchange(fd, BASE_PFN + from,
						     BASE_PFN + to, nr);
			ASSERT_EQ(nr, exchange.out_pages);
		}
		break;
	case 6:
		for (order = 0; 2ULL << order <= nr;)
			order++;
		nr = 1ULL << order;
		if (model_count(model, from, nr) < nr) {
			test_err_contiguous(EFAULT, fd, BASE_PFN + from, order,
					    0);
			break;
		}
		test_cmd_contiguous(fd, BASE_PFN + from, order, 0);
		break;
	case 7:
		if (model->tags[from] == MODEL_MISSING)
			break;
		to = pfn_to_entry(fd, BASE_PFN + from) & ~63ULL;
		evacuate = test_cmd_evacuate(fd, 0, to, 64);
		ASSERT_LE(1, evacuate.out_pages);
		ASSERT_EQ(0, evacuate.out_busy);
		break;
	}
}

TEST_F_TIMEOUT(domain, random_commands_follow_the_model, 60)
{
	struct model *model = calloc(1, sizeof(*model));
	unsigned int step;
	char *mem;
	__u64 i;

	ASSERT_NE(NULL, model);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, MODEL_PAGES, 0,
				     BASE_PFN);
	mem = map_pages(self->fd, BASE_PFN, MODEL_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	for (step = 0; step < 1000; step++) {
		model_step(_metadata, model, self->fd, mem);
		ASSERT_EQ(model_count(model, 0, MODEL_PAGES),
			  expect_sound(_metadata, self->fd).out_frames)
			TH_LOG("step %u", step);
		i = model_random(model, MODEL_PAGES);
		ASSERT_TRUE(model_page_is_right(model, mem, i))
			TH_LOG("step %u, page %llu", step, i);
		if (step % 50 != 49)
			continue;
		for (i = 0; i < MODEL_PAGES; i++) {
			ASSERT_TRUE(model_page_is_right(model, mem, i))
				TH_LOG("step %u, page %llu", step, i);
		}
		expect_mirrored(_metadata, self->fd, BASE_PFN, MODEL_PAGES);
	}
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(0, nr_frames(self->fd));
	ASSERT_EQ(0, munmap(mem, MODEL_PAGES * P2M_PAGE_SIZE));
	free(model);
}

/* Regions that are empty until they are touched. */
FIXTURE(on_demand)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

FIXTURE_VARIANT(on_demand)
{
	__u32 policy;
};

FIXTURE_VARIANT_ADD(on_demand, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(on_demand, scatter) { .policy = P2M_POLICY_SCATTER };

FIXTURE_SETUP(on_demand)
{
	struct p2m_region_create cmd = {
		.flags = P2M_REGION_ON_DEMAND | P2M_REGION_FIXED,
		.policy = variant->policy,
		.nr_pages = NR_PAGES,
		.base_pfn = BASE_PFN,
	};

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_create_by(self->fd, &cmd);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(on_demand)
{
	expect_sound(_metadata, self->fd);
	expect_mirrored(_metadata, self->fd, BASE_PFN, NR_PAGES);
	if (variant->policy == P2M_POLICY_SCATTER)
		expect_scattered(_metadata, self->fd, BASE_PFN, NR_PAGES);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(0, nr_frames(self->fd));
	EXPECT_EQ(SIGBUS, touch_read(self->mem));
	ASSERT_EQ(0, munmap(self->mem, LEN));
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

/* Exactly the pages with is_there() are. */
#define EXPECT_THERE(is_there)                                                 \
	do {                                                                   \
		__u64 *__entries =                                             \
			range_to_entries(self->fd, BASE_PFN, NR_PAGES);        \
		__u64 i, __nr = 0;                                             \
		ASSERT_NE(NULL, __entries);                                    \
		for (i = 0; i < NR_PAGES; i++) {                               \
			ASSERT_EQ(is_there,                                    \
				  __entries[i] != P2M_ENTRY_INVALID)           \
				TH_LOG("page %llu", i);                        \
			__nr += is_there;                                      \
		}                                                              \
		EXPECT_EQ(__nr, nr_frames(self->fd));                          \
		free(__entries);                                               \
	} while (0)

TEST_F(on_demand, exactly_what_is_touched_is_taken)
{
	struct p2m_stat stat;
	__u64 page;

	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_pages);
	EXPECT_EQ(self->total_pages + NR_PAGES, stat.out_total_pages);
	EXPECT_THERE(false);
	/* Reading is touching, too. */
	for (page = 0; page < NR_PAGES; page += 3) {
		if (page % 2)
			page_fill(page_at(self->mem, page), page);
		else
			ASSERT_EQ(P2M_PAGE_SIZE,
				  first_nonzero(page_at(self->mem, page),
						P2M_PAGE_SIZE));
	}
	EXPECT_THERE(i % 3 == 0);
	/* Now in the other direction, next to pages that are there. */
	for (page = NR_PAGES; page--;) {
		if (page % 3 != 1)
			continue;
		ASSERT_EQ(0, touch_write(page_at(self->mem, page), 1));
	}
	EXPECT_THERE(i % 3 != 2);
	for (page = 3; page < NR_PAGES; page += 6) {
		ASSERT_TRUE(page_matches(page_at(self->mem, page), page));
	}
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_pages);
	EXPECT_EQ(self->total_pages + NR_PAGES, stat.out_total_pages);
}

TEST_F(on_demand, populate_takes_the_rest)
{
	struct p2m_populate populate;
	struct p2m_stat before, after;
	__u64 i;

	for (i = 0; i < NR_PAGES; i += 5)
		page_fill(page_at(self->mem, i), i);
	populate = test_cmd_populate(self->fd, BASE_PFN, NR_PAGES);
	EXPECT_EQ(NR_PAGES - NR_PAGES / 5, populate.out_pages);
	EXPECT_THERE(true);
	test_cmd_stat(self->fd, &before);
	for (i = 0; i < NR_PAGES; i++) {
		if (i % 5) {
			ASSERT_EQ(P2M_PAGE_SIZE,
				  first_nonzero(page_at(self->mem, i),
						P2M_PAGE_SIZE));
		} else {
			ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
		}
	}
	/* What is there is mapped many at a time. */
	test_cmd_stat(self->fd, &after);
	EXPECT_GE(before.out_faults + NR_PAGES / 4, after.out_faults);
}

TEST_F(on_demand, released_page_can_be_touched_again)
{
	struct p2m_release release;
	__u64 page;

	for (page = 0; page < NR_PAGES; page += 2)
		page_fill(page_at(self->mem, page), page);
	release = test_cmd_release(self->fd, BASE_PFN + 100, 1000);
	EXPECT_EQ(500, release.out_pages);
	EXPECT_EQ(BASE_PFN + 1100, release.out_next_pfn);
	EXPECT_THERE(i % 2 == 0 && (i < 100 || i >= 1100));
	for (page = 100; page < 1100; page++) {
		ASSERT_EQ(P2M_PAGE_SIZE, first_nonzero(page_at(self->mem, page),
						       P2M_PAGE_SIZE));
	}
	EXPECT_THERE(i % 2 == 0 || (i >= 100 && i < 1100));
	for (page = 0; page < 100; page += 2) {
		ASSERT_TRUE(page_matches(page_at(self->mem, page), page));
	}
}

TEST_F(on_demand, commands_know_what_is_not_there)
{
	struct p2m_exchange exchange;
	struct p2m_move move;
	__u64 i;

	for (i = 0; i < NR_PAGES; i += 3)
		page_fill(page_at(self->mem, i), i);
	move = test_cmd_move(self->fd, BASE_PFN, NR_PAGES, P2M_POLICY_SCATTER,
			     1);
	EXPECT_EQ(NR_PAGES / 3, move.out_pages);
	EXPECT_EQ(END_PFN, move.out_next_pfn);
	test_err_contiguous(EFAULT, self->fd, BASE_PFN, 2, 0);
	test_err_exchange(EFAULT, self->fd, BASE_PFN, BASE_PFN + 100, 2);
	exchange = test_cmd_exchange(self->fd, BASE_PFN + 3, BASE_PFN + 300, 1);
	EXPECT_EQ(1, exchange.out_pages);
	/* None of them has touched anything. */
	EXPECT_THERE(i % 3 == 0);
	for (i = 0; i < NR_PAGES; i += 3) {
		ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
	}
}

TEST_F(on_demand, kernel_touches_as_a_program_does)
{
	char *buf = calloc(4, P2M_PAGE_SIZE);
	struct pin pin;
	int fds[2];

	ASSERT_NE(NULL, buf);
	/* Copied to, and pinned. */
	ASSERT_EQ(0, pipe(fds));
	memset(buf, 0x33, P2M_PAGE_SIZE);
	ASSERT_EQ(P2M_PAGE_SIZE, write(fds[1], buf, P2M_PAGE_SIZE));
	ASSERT_EQ(P2M_PAGE_SIZE,
		  read(fds[0], page_at(self->mem, 10), P2M_PAGE_SIZE));
	ASSERT_EQ(0, pin_open(&pin, 4));
	ASSERT_EQ(0, pin_add(&pin, page_at(self->mem, 20), 4));
	EXPECT_THERE(i == 10 || (i >= 20 && i < 24));
	EXPECT_EQ(0, memcmp(buf, page_at(self->mem, 10), P2M_PAGE_SIZE));
	ASSERT_TRUE(pin_read(&pin, buf, 4));
	EXPECT_EQ(4 * P2M_PAGE_SIZE, first_nonzero(buf, 4 * P2M_PAGE_SIZE));
	pin_close(&pin);
	free(buf);
}

struct toucher {
	pthread_t thread;
	unsigned int nr;
	char *mem;
	pthread_barrier_t *arrival;
};

#define NR_TOUCHERS 4

/* At each page they wait for each other, to touch it at the same time. */
static void *touch_all(void *arg)
{
	struct toucher *toucher = arg;
	__u64 i;

	for (i = 0; i < NR_PAGES; i++) {
		pthread_barrier_wait(toucher->arrival);
		page_at(toucher->mem, i)[toucher->nr] = i + toucher->nr;
	}
	return NULL;
}

TEST_F(on_demand, threads_that_touch_a_page_get_the_same)
{
	struct toucher touchers[NR_TOUCHERS];
	int pagemap = pagemap_open();
	unsigned int nr, round;
	__u64 page;

	ASSERT_LE(0, pagemap);
	for (round = 0; round < 2; round++) {
		pthread_barrier_t arrival;

		ASSERT_EQ(0, pthread_barrier_init(&arrival, NULL, NR_TOUCHERS));
		for (nr = 0; nr < NR_TOUCHERS; nr++) {
			touchers[nr] = (struct toucher){
				.nr = nr, .mem = self->mem,
				.arrival = &arrival,
			};
			ASSERT_EQ(0, pthread_create(&touchers[nr].thread, NULL,
						    touch_all, &touchers[nr]));
		}
		for (nr = 0; nr < NR_TOUCHERS; nr++) {
			ASSERT_EQ(0, pthread_join(touchers[nr].thread, NULL));
		}
		pthread_barrier_destroy(&arrival);
		EXPECT_THERE(true);
		for (page = 0; page < NR_PAGES; page++) {
			char *mem = page_at(self->mem, page);

			for (nr = 0; nr < NR_TOUCHERS; nr++) {
				ASSERT_EQ((char)(page + nr), mem[nr]);
			}
			/* What the first one got is what the domain has. */
			ASSERT_EQ(pfn_to_entry(self->fd, BASE_PFN + page),
				  pagemap_mfn(pagemap, mem))
				TH_LOG("page %llu", page);
		}
		expect_sound(_metadata, self->fd);
		test_cmd_release(self->fd, BASE_PFN, NR_PAGES);
	}
	ASSERT_EQ(0, close(pagemap));
}

/* What can be asked of frames. */
#define WITH_PAGES 600ULL

FIXTURE(constraint)
{
	int fd;
	char *mem;
	const __u64 *m2p;
	size_t m2p_len;
	struct p2m_region_create region;
	__u64 total_pages;
};

FIXTURE_VARIANT(constraint)
{
	__u32 flags;
	__u32 policy;
	__u32 divisor;
	__u32 colour;
};

#define CONSTRAINT(name, ...) \
	FIXTURE_VARIANT_ADD(constraint, name) { __VA_ARGS__ }
CONSTRAINT(guarded, .flags = P2M_REGION_GUARDED);
CONSTRAINT(guarded_scatter, .flags = P2M_REGION_GUARDED,
	   .policy = P2M_POLICY_SCATTER);
CONSTRAINT(guarded_on_demand, .flags = P2M_REGION_GUARDED | P2M_REGION_ON_DEMAND);
CONSTRAINT(colour, .flags = P2M_REGION_COLOUR, .divisor = 8, .colour = 5);
CONSTRAINT(colour_scatter, .flags = P2M_REGION_COLOUR,
	   .policy = P2M_POLICY_SCATTER, .divisor = 2);
CONSTRAINT(colour_of_all, .flags = P2M_REGION_COLOUR, .divisor = 1);
CONSTRAINT(guarded_colour, .flags = P2M_REGION_GUARDED | P2M_REGION_COLOUR,
	   .divisor = 3, .colour = 1);
CONSTRAINT(range, .flags = P2M_REGION_RANGE);
CONSTRAINT(range_scatter, .flags = P2M_REGION_RANGE,
	   .policy = P2M_POLICY_SCATTER);
CONSTRAINT(range_contiguous, .flags = P2M_REGION_RANGE,
	   .policy = P2M_POLICY_CONTIGUOUS);
CONSTRAINT(node, .flags = P2M_REGION_NODE);
CONSTRAINT(node_scatter, .flags = P2M_REGION_NODE, .policy = P2M_POLICY_SCATTER);
CONSTRAINT(node_contiguous, .flags = P2M_REGION_NODE,
	   .policy = P2M_POLICY_CONTIGUOUS);
CONSTRAINT(node_range_colour_on_demand,
	   .flags = P2M_REGION_NODE | P2M_REGION_RANGE | P2M_REGION_COLOUR |
		    P2M_REGION_ON_DEMAND,
	   .policy = P2M_POLICY_SCATTER, .divisor = 4, .colour = 3);
CONSTRAINT(guarded_range_colour_scatter,
	   .flags = P2M_REGION_GUARDED | P2M_REGION_RANGE | P2M_REGION_COLOUR,
	   .policy = P2M_POLICY_SCATTER, .divisor = 4, .colour = 2);

FIXTURE_SETUP(constraint)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	self->m2p_len = max_mfn(self->fd) * sizeof(__u64);
	self->m2p = map_window(self->fd, P2M_OFFSET_M2P, self->m2p_len);
	ASSERT_NE(MAP_FAILED, self->m2p);
	self->region = (struct p2m_region_create){
		.flags = variant->flags | P2M_REGION_FIXED,
		.policy = variant->policy,
		.nr_pages = WITH_PAGES,
		.base_pfn = BASE_PFN,
		.divisor = variant->divisor,
		.colour = variant->colour,
	};
	if (variant->flags & P2M_REGION_RANGE)
		choose_half(_metadata, self->fd, &self->region.start_mfn,
			    &self->region.end_mfn);
	test_cmd_create_by(self->fd, &self->region);
	if (variant->flags & P2M_REGION_ON_DEMAND) {
		EXPECT_EQ(0, nr_frames(self->fd));
		test_cmd_populate(self->fd, BASE_PFN, WITH_PAGES);
	}
	self->mem = map_pages(self->fd, BASE_PFN, WITH_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(constraint)
{
	struct p2m_stat stat;

	expect_sound(_metadata, self->fd);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(0, stat.out_frames);
	EXPECT_EQ(0, stat.out_guards);
	ASSERT_EQ(0, munmap(self->mem, WITH_PAGES * P2M_PAGE_SIZE));
	ASSERT_EQ(0, munmap((void *)self->m2p, self->m2p_len));
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

/* Each page has two guards, which are in the M2P, full of the pattern, and no more. */
static void expect_guards(struct __test_metadata *_metadata,
			  FIXTURE_DATA(constraint) * self, const __u64 *entries)
{
	__u64 word[P2M_PAGE_SIZE / sizeof(__u64)], i, nr = 0, nr_pages = 0;
	struct kcore *kcore = kcore_open();
	struct p2m_guard_check check;
	struct p2m_stat stat;
	size_t side, j;

	for (i = 0; i < WITH_PAGES; i++) {
		if (entries[i] == P2M_ENTRY_INVALID)
			continue;
		nr_pages++;
		for (side = 0; side < 2; side++) {
			const __u64 guard = entries[i] + 2 * side - 1;

			ASSERT_EQ(P2M_ENTRY_GUARD, self->m2p[guard])
				TH_LOG("page %llu", i);
			if (!kcore || i % 50)
				continue;
			ASSERT_EQ(0, kcore_read_page(kcore, guard, word));
			for (j = 0; j < ARRAY_LEN(word); j++) {
				ASSERT_EQ(P2M_GUARD_PATTERN, word[j]);
			}
		}
		/* One between two pages is one. */
		nr += 2;
		for (j = 0; j < i; j++)
			nr -= entries[j] - entries[i] == 2 ||
			      entries[i] - entries[j] == 2;
	}
	if (kcore)
		kcore_close(kcore);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(nr, stat.out_guards);
	check = test_cmd_guard_check(self->fd, 0, BASE_PFN, WITH_PAGES);
	EXPECT_EQ(2 * nr_pages, check.out_guards);
	EXPECT_EQ(0, check.out_broken);
	EXPECT_EQ(P2M_ENTRY_INVALID, check.out_pfn);
	EXPECT_EQ(BASE_PFN + WITH_PAGES, check.out_next_pfn);
}

/* All frames are as asked. */
static void expect_as_asked(struct __test_metadata *_metadata,
			    FIXTURE_DATA(constraint) * self, __u64 nr_pages)
{
	const struct p2m_region_create *region = &self->region;
	__u64 *entries = range_to_entries(self->fd, BASE_PFN, WITH_PAGES);
	struct p2m_stat stat;
	__u64 i;

	ASSERT_NE(NULL, entries);
	EXPECT_EQ(nr_pages, nr_present(entries, WITH_PAGES));
	for (i = 0; i < WITH_PAGES; i++) {
		if (entries[i] == P2M_ENTRY_INVALID)
			continue;
		if (region->flags & P2M_REGION_COLOUR) {
			ASSERT_EQ(region->colour, entries[i] % region->divisor)
				TH_LOG("page %llu", i);
		}
		if (region->flags & P2M_REGION_RANGE) {
			ASSERT_LE(region->start_mfn, entries[i]);
			ASSERT_GT(region->end_mfn, entries[i]);
		}
	}
	if (region->flags & P2M_REGION_GUARDED) {
		expect_guards(_metadata, self, entries);
	} else {
		test_cmd_stat(self->fd, &stat);
		EXPECT_EQ(0, stat.out_guards);
	}
	free(entries);
	expect_mirrored(_metadata, self->fd, BASE_PFN, WITH_PAGES);
	EXPECT_EQ(nr_pages, expect_sound(_metadata, self->fd).out_frames);
}

TEST_F(constraint, holds_whatever_changes)
{
	const __u32 single = P2M_REGION_GUARDED | P2M_REGION_COLOUR;
	struct p2m_evacuate evacuate;
	struct p2m_exchange exchange;
	struct p2m_move move;
	unsigned int round;
	__u64 *before;

	expect_as_asked(_metadata, self, WITH_PAGES);
	if (variant->policy == P2M_POLICY_SCATTER)
		expect_scattered(_metadata, self->fd, BASE_PFN, WITH_PAGES);
	fill_all(self->mem, WITH_PAGES);
	for (round = 0; round < 2; round++) {
		before = range_to_entries(self->fd, BASE_PFN, WITH_PAGES);
		ASSERT_NE(NULL, before);
		if (round)
			move = test_cmd_move(self->fd, BASE_PFN, WITH_PAGES,
					     P2M_POLICY_ANY, 0);
		else
			move = test_cmd_move(self->fd, BASE_PFN, WITH_PAGES,
					     P2M_POLICY_SCATTER, 1);
		EXPECT_EQ(WITH_PAGES, move.out_pages);
		EXPECT_EQ(0, move.out_busy);
		expect_as_asked(_metadata, self, WITH_PAGES);
		free(before);
	}
	/* A part that is moved shares guards with what isn't. */
	move = test_cmd_move(self->fd, BASE_PFN + 50, 333, P2M_POLICY_ANY, 0);
	EXPECT_EQ(333, move.out_pages);
	expect_as_asked(_metadata, self, WITH_PAGES);
	EXPECT_EQ(WITH_PAGES, first_mismatch(self->mem, WITH_PAGES));

	before = range_to_entries(self->fd, BASE_PFN, WITH_PAGES);
	ASSERT_NE(NULL, before);
	evacuate = test_cmd_evacuate(self->fd, 0, before[100] & ~63ULL, 64);
	EXPECT_LE(1, evacuate.out_pages);
	EXPECT_EQ(0, evacuate.out_busy);
	expect_clear(_metadata, self->fd, before[100] & ~63ULL, 64, BASE_PFN,
		     WITH_PAGES);
	expect_as_asked(_metadata, self, WITH_PAGES);
	free(before);

	exchange = test_cmd_exchange(self->fd, BASE_PFN, BASE_PFN + 300, 300);
	EXPECT_EQ(300, exchange.out_pages);
	expect_as_asked(_metadata, self, WITH_PAGES);

	/* What must be single or of one colour can't follow each other. */
	if (variant->flags & single)
		test_err_contiguous(EINVAL, self->fd, BASE_PFN + 100, 5, 0);
	else
		test_cmd_contiguous(self->fd, BASE_PFN + 100, 5, 0);
	expect_as_asked(_metadata, self, WITH_PAGES);
	EXPECT_EQ(WITH_PAGES, first_mismatch(self->mem, WITH_PAGES));
}

TEST_F(constraint, holds_for_what_comes_again)
{
	struct p2m_populate populate;
	struct p2m_release release;
	__u64 i, nr_single = 0;

	fill_all(self->mem, WITH_PAGES);
	for (i = 0; i < WITH_PAGES; i += 7) {
		release = test_cmd_release(self->fd, BASE_PFN + i, 1);
		ASSERT_EQ(1, release.out_pages);
		nr_single++;
	}
	expect_as_asked(_metadata, self, WITH_PAGES - nr_single);
	/* Few, as each may have to look at all of the memory. */
	if (variant->flags & P2M_REGION_ON_DEMAND) {
		for (i = 0; i < 28; i += 7) {
			ASSERT_EQ(0, touch_write(page_at(self->mem, i), 1));
			nr_single--;
			expect_as_asked(_metadata, self,
					WITH_PAGES - nr_single);
		}
	}
	populate = test_cmd_populate(self->fd, BASE_PFN, WITH_PAGES);
	EXPECT_EQ(nr_single, populate.out_pages);
	expect_as_asked(_metadata, self, WITH_PAGES);
	if (variant->policy == P2M_POLICY_SCATTER)
		expect_scattered(_metadata, self->fd, BASE_PFN, WITH_PAGES);
	for (i = 0; i < WITH_PAGES; i++) {
		if (i % 7) {
			ASSERT_TRUE(page_matches(page_at(self->mem, i), i));
		}
	}
	test_cmd_release(self->fd, BASE_PFN, WITH_PAGES);
	expect_as_asked(_metadata, self, 0);
	test_cmd_populate(self->fd, BASE_PFN, WITH_PAGES);
	expect_as_asked(_metadata, self, WITH_PAGES);
	EXPECT_EQ(WITH_PAGES * P2M_PAGE_SIZE,
		  first_nonzero(self->mem, WITH_PAGES * P2M_PAGE_SIZE));
}

TEST_F(constraint, frames_are_exchanged_only_with_their_like)
{
	const __u64 other = END_PFN;
	__u64 *before = range_to_entries(self->fd, BASE_PFN, WITH_PAGES);
	const __u32 asks = P2M_REGION_GUARDED | P2M_REGION_COLOUR |
			   P2M_REGION_RANGE;
	struct p2m_region_create like = self->region;

	ASSERT_NE(NULL, before);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 10, 0, other);
	like.base_pfn = other + 10;
	like.nr_pages = 10;
	if (like.policy == P2M_POLICY_CONTIGUOUS)
		like.policy = P2M_POLICY_ANY;
	test_cmd_create_by(self->fd, &like);
	test_cmd_populate(self->fd, other + 10, 10);
	if (variant->flags & asks && variant->divisor != 1) {
		test_err_exchange(EINVAL, self->fd, BASE_PFN, other, 10);
		test_err_exchange(EINVAL, self->fd, other, BASE_PFN, 10);
		expect_unchanged(_metadata, self->fd, BASE_PFN, WITH_PAGES,
				 before);
	}
	test_cmd_exchange(self->fd, BASE_PFN, other + 10, 10);
	test_cmd_region_destroy(self->fd, other);
	test_cmd_region_destroy(self->fd, other + 10);
	expect_as_asked(_metadata, self, WITH_PAGES);
}

/* One thing is wrong at a time. */
/* What is asked of frames is a matter of each region, also if a range has several. */
TEST_F(domain, neighbouring_regions_keep_their_constraints)
{
	struct p2m_region_create regions[] = {
		{ .flags = P2M_REGION_FIXED, .nr_pages = 16 },
		{ .flags = P2M_REGION_FIXED | P2M_REGION_GUARDED,
		  .base_pfn = 16, .nr_pages = 16 },
		{ .flags = P2M_REGION_FIXED | P2M_REGION_COLOUR, .base_pfn = 32,
		  .nr_pages = 16, .divisor = 4, .colour = 3 },
		{ .flags = P2M_REGION_FIXED, .policy = P2M_POLICY_SCATTER,
		  .base_pfn = 48, .nr_pages = 16 },
	};
	__u64 *entries;
	size_t i;

	for (i = 0; i < ARRAY_LEN(regions); i++)
		test_cmd_create_by(self->fd, &regions[i]);
	/* Guards go with their frames, and come with others. */
	test_err_contiguous(EINVAL, self->fd, 0, 5, 0);
	test_err_contiguous(EINVAL, self->fd, 40, 4, 0);
	test_err_exchange(EINVAL, self->fd, 0, 16, 16);
	test_err_exchange(EINVAL, self->fd, 8, 40, 16);
	expect_sound(_metadata, self->fd);
	test_cmd_release(self->fd, 4, 56);
	expect_sound(_metadata, self->fd);
	EXPECT_EQ(56, test_cmd_populate(self->fd, 0, 64).out_pages);
	expect_sound(_metadata, self->fd);
	EXPECT_EQ(32, test_cmd_guard_check(self->fd, 0, 0, 64).out_guards);
	expect_scattered(_metadata, self->fd, 48, 16);
	EXPECT_EQ(64, test_cmd_move(self->fd, 0, 64, P2M_POLICY_ANY, 0).out_pages);
	expect_sound(_metadata, self->fd);
	EXPECT_EQ(32, test_cmd_guard_check(self->fd, 0, 0, 64).out_guards);
	entries = range_to_entries(self->fd, 0, 64);
	ASSERT_NE(NULL, entries);
	for (i = 32; i < 48; i++)
		EXPECT_EQ(3, entries[i] % 4);
	free(entries);
}

TEST_F(domain, constraint_without_sense_is_refused)
{
	static const __u32 contiguous = P2M_POLICY_CONTIGUOUS;
	static const struct {
		int err;
		struct p2m_region_create region;
	} faults[] = {
		{ EINVAL, { .flags = P2M_REGION_RANGE } },
		{ EINVAL, { .start_mfn = 1 } },
		{ EINVAL, { .end_mfn = 0x10000 } },
		{ EINVAL, { .start_mfn = 1, .end_mfn = 0x10000 } },
		{ EINVAL, { .flags = P2M_REGION_RANGE, .start_mfn = 0x1000 } },
		{ EINVAL, { .flags = P2M_REGION_RANGE, .start_mfn = 0x1000,
			    .end_mfn = 0x1000 } },
		{ EINVAL, { .flags = P2M_REGION_RANGE, .start_mfn = 0x1001,
			    .end_mfn = 0x1000 } },
		{ EINVAL, { .flags = P2M_REGION_COLOUR } },
		{ EINVAL, { .divisor = 2 } },
		{ EINVAL, { .colour = 1 } },
		{ EINVAL, { .divisor = 2, .colour = 1 } },
		{ EINVAL, { .flags = P2M_REGION_COLOUR, .colour = 1 } },
		{ EINVAL, { .flags = P2M_REGION_COLOUR, .divisor = 4,
			    .colour = 4 } },
		{ EINVAL, { .node = 1 } },
		{ EINVAL, { .flags = P2M_REGION_NODE, .node = 63 } },
		{ EINVAL, { .flags = P2M_REGION_NODE, .node = 1023 } },
		{ EINVAL, { .flags = P2M_REGION_NODE, .node = INT_MAX } },
		{ EINVAL, { .flags = P2M_REGION_NODE, .node = 1U << 31 } },
		{ EINVAL, { .flags = P2M_REGION_NODE, .node = ~0U } },
		{ EOPNOTSUPP, { .flags = P2M_REGION_NODE | P2M_REGION_GUARDED } },
		{ EINVAL, { .flags = P2M_REGION_GUARDED, .policy = contiguous } },
		{ EINVAL, { .flags = P2M_REGION_ON_DEMAND,
			    .policy = contiguous } },
		{ EINVAL, { .flags = P2M_REGION_COLOUR, .divisor = 2,
			    .policy = contiguous } },
		{ EINVAL, { .__reserved2 = 1 } },
		{ EOPNOTSUPP, { .flags = 1U << 6 } },
		{ EOPNOTSUPP, { .flags = 1U << 31 } },
	};
	struct snapshot snap;
	size_t i;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(faults); i++) {
		struct p2m_region_create region = faults[i].region;

		region.nr_pages = 8;
		ASSERT_EQ(-1, _test_cmd_create_by(self->fd, &region))
			TH_LOG("fault %zu", i);
		EXPECT_EQ(faults[i].err, errno) TH_LOG("fault %zu", i);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(domain, constraints_that_name_frames_need_the_right_to)
{
	static const struct {
		int err;
		struct p2m_region_create region;
	} cases[] = {
		{ EPERM, { .flags = P2M_REGION_RANGE, .end_mfn = 1ULL << 40 } },
		{ EPERM, { .flags = P2M_REGION_COLOUR, .divisor = 1 } },
		{ 0, { .flags = P2M_REGION_GUARDED } },
		{ 0, { .flags = P2M_REGION_NODE } },
		{ 0, { .flags = P2M_REGION_ON_DEMAND } },
	};
	int fd = open_unprivileged();
	size_t i;

	ASSERT_LE(0, fd);
	for (i = 0; i < ARRAY_LEN(cases); i++) {
		struct p2m_region_create region = cases[i].region;
		int ret;

		region.nr_pages = 8;
		ret = _test_cmd_create_by(fd, &region);
		if (ret)
			ret = errno;
		EXPECT_EQ(cases[i].err, ret) TH_LOG("case %zu", i);
	}
	ASSERT_EQ(0, close(fd));
}

/* Pages of a huge page, and its size. */
#define NR_HUGE 512ULL
#define HUGE_LEN (NR_HUGE * P2M_PAGE_SIZE)

/* Anonymous memory in one huge page, filled: memory that is in use, but can be moved. */
struct huge {
	char *map;
	char *mem;
	__u64 mfn;
};

static bool huge_take(struct huge *huge)
{
	int pagemap = pagemap_open();
	__u64 i;

	huge->map = mmap(NULL, 2 * HUGE_LEN, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (huge->map == MAP_FAILED || pagemap < 0)
		return false;
	huge->mem = huge->map + (-(uintptr_t)huge->map & (HUGE_LEN - 1));
	if (madvise(huge->mem, HUGE_LEN, MADV_HUGEPAGE))
		return false;
	fill_all(huge->mem, NR_HUGE);
	huge->mfn = pagemap_mfn(pagemap, huge->mem);
	for (i = 1; i < NR_HUGE; i++)
		if (pagemap_mfn(pagemap, page_at(huge->mem, i)) != huge->mfn + i)
			break;
	close(pagemap);
	return i == NR_HUGE && huge->mfn % NR_HUGE == 0;
}

/* The memory is as it was, but somewhere else. */
static void expect_moved(struct __test_metadata *_metadata,
			 const struct huge *huge, bool is_all_moved)
{
	int pagemap = pagemap_open();
	__u64 i, mfn;

	ASSERT_LE(0, pagemap);
	EXPECT_EQ(NR_HUGE, first_mismatch(huge->mem, NR_HUGE));
	for (i = 0; i < NR_HUGE && is_all_moved; i++) {
		mfn = pagemap_mfn(pagemap, page_at(huge->mem, i));
		ASSERT_TRUE(mfn < huge->mfn || mfn >= huge->mfn + NR_HUGE);
	}
	close(pagemap);
}

/*
 * Frames that somebody has who can be moved out of the way: whatever the allocator
 * gives, they are had, all that were asked for.
 */
TEST_F(domain, frames_of_a_place_are_had_from_who_can_be_moved)
{
	static const struct p2m_region_create regions[] = {
		{ .policy = P2M_POLICY_ANY, .nr_pages = NR_HUGE },
		{ .policy = P2M_POLICY_SCATTER, .nr_pages = NR_HUGE },
		{ .policy = P2M_POLICY_CONTIGUOUS, .nr_pages = NR_HUGE },
		{ .policy = P2M_POLICY_SUPERPAGE, .nr_pages = NR_HUGE },
		/* A part of it, not aligned. */
		{ .policy = P2M_POLICY_CONTIGUOUS, .nr_pages = NR_HUGE - 7 },
		{ .policy = P2M_POLICY_ANY, .flags = P2M_REGION_COLOUR,
		  .divisor = 8, .colour = 5, .nr_pages = NR_HUGE / 8 },
		{ .policy = P2M_POLICY_SCATTER, .flags = P2M_REGION_GUARDED,
		  .nr_pages = NR_HUGE / 4 },
	};
	struct p2m_region_create region;
	struct huge huge;
	__u64 *entries, i, j;
	size_t nr;
	char *mem;

	for (nr = 0; nr < ARRAY_LEN(regions); nr++) {
		bool is_all;

		region = regions[nr];
		if (!huge_take(&huge))
			SKIP(return, "no huge page");
		region.flags |= P2M_REGION_RANGE;
		region.start_mfn = huge.mfn;
		region.end_mfn = huge.mfn + NR_HUGE;
		if (region.nr_pages % 2)
			region.start_mfn += 3;
		ASSERT_EQ(0, _test_cmd_create_by(self->fd, &region))
			TH_LOG("region %zu: %m", nr);
		is_all = region.nr_pages == NR_HUGE;
		expect_moved(_metadata, &huge, is_all);
		entries = range_to_entries(self->fd, region.base_pfn,
					   region.nr_pages);
		ASSERT_NE(NULL, entries);
		for (i = 0; i < region.nr_pages; i++) {
			ASSERT_LE(region.start_mfn, entries[i]);
			ASSERT_GT(region.end_mfn, entries[i]);
			for (j = 0; j < i; j++)
				ASSERT_NE(entries[j], entries[i]);
		}
		free(entries);
		mem = map_pages(self->fd, region.base_pfn, region.nr_pages);
		ASSERT_NE(MAP_FAILED, mem);
		EXPECT_EQ(region.nr_pages * P2M_PAGE_SIZE,
			  first_nonzero(mem, region.nr_pages * P2M_PAGE_SIZE));
		expect_sound(_metadata, self->fd);
		/* There is no more of it, for anybody. */
		if (is_all) {
			struct p2m_region_create more = region;

			more.nr_pages = 1;
			more.base_pfn = 0;
			more.policy = P2M_POLICY_ANY;
			test_err_create_by(EADDRNOTAVAIL, self->fd, &more);
		}
		munmap(mem, region.nr_pages * P2M_PAGE_SIZE);
		test_cmd_region_destroy(self->fd, region.base_pfn);
		munmap(huge.map, 2 * HUGE_LEN);
	}
}

/* How many huge pages are looked at for two that follow each other. */
#define NR_HUGE_TRIED 32

/* A range that has room for a run only where somebody else is. */
TEST_F(domain, contiguous_pages_are_had_from_who_can_be_moved)
{
	struct p2m_region_create region = {
		.flags = P2M_REGION_RANGE,
		.nr_pages = NR_HUGE,
	};
	struct huge huge[NR_HUGE_TRIED];
	__u64 i, *entries;
	char *mem;
	size_t a, b;

	for (a = 0; a < NR_HUGE_TRIED; a++)
		if (!huge_take(&huge[a]))
			SKIP(return, "no huge page");
	for (i = 0; i < NR_HUGE_TRIED * NR_HUGE_TRIED; i++) {
		a = i / NR_HUGE_TRIED;
		b = i % NR_HUGE_TRIED;
		if (huge[b].mfn == huge[a].mfn + NR_HUGE)
			break;
	}
	if (i == NR_HUGE_TRIED * NR_HUGE_TRIED)
		SKIP(return, "no huge pages that follow each other");
	region.start_mfn = huge[a].mfn;
	region.end_mfn = huge[b].mfn + NR_HUGE;
	test_cmd_create_by(self->fd, &region);
	mem = map_pages(self->fd, region.base_pfn, NR_HUGE);
	ASSERT_NE(MAP_FAILED, mem);
	fill_all(mem, NR_HUGE);
	/* It has one half, and gets the other one. */
	EXPECT_EQ(region.start_mfn, pfn_to_entry(self->fd, region.base_pfn));
	test_cmd_contiguous(self->fd, region.base_pfn, 9, 0);
	entries = range_to_entries(self->fd, region.base_pfn, NR_HUGE);
	ASSERT_NE(NULL, entries);
	for (i = 0; i < NR_HUGE; i++)
		ASSERT_EQ(huge[b].mfn + i, entries[i]);
	free(entries);
	EXPECT_EQ(NR_HUGE, first_mismatch(mem, NR_HUGE));
	for (i = 0; i < NR_HUGE_TRIED; i++) {
		EXPECT_EQ(NR_HUGE, first_mismatch(huge[i].mem, NR_HUGE));
		munmap(huge[i].map, 2 * HUGE_LEN);
	}
	expect_sound(_metadata, self->fd);
	munmap(mem, HUGE_LEN);
	test_cmd_region_destroy(self->fd, region.base_pfn);
}

/* What nobody may move, isn't had; and it's as it was. */
TEST_F(domain, frames_of_a_place_are_not_had_from_who_cannot_be_moved)
{
	struct p2m_region_create region = {
		.flags = P2M_REGION_RANGE,
	};
	int other = p2m_open();
	__u64 base, mfn, i;
	char *mem;

	ASSERT_LE(0, other);
	test_cmd_region_create(other, P2M_POLICY_SUPERPAGE, NR_HUGE, 0, &base);
	mfn = pfn_to_entry(other, base);
	mem = map_pages(other, base, NR_HUGE);
	ASSERT_NE(MAP_FAILED, mem);
	fill_all(mem, NR_HUGE);
	region.start_mfn = mfn;
	region.end_mfn = mfn + NR_HUGE;
	for (i = 1; i <= NR_HUGE; i *= 8) {
		region.nr_pages = i;
		test_err_create_by(EADDRNOTAVAIL, self->fd, &region);
		EXPECT_EQ(0, nr_frames(self->fd));
	}
	EXPECT_EQ(mfn, pfn_to_entry(other, base));
	EXPECT_EQ(NR_HUGE, first_mismatch(mem, NR_HUGE));
	expect_sound(_metadata, other);
	munmap(mem, NR_HUGE * P2M_PAGE_SIZE);
	EXPECT_EQ(0, close(other));
}

TEST_F_TIMEOUT(domain, impossible_constraint_leaves_nothing_behind, 90)
{
	const __u64 beyond = max_mfn(self->fd) + (1 << 20);
	const struct p2m_region_create impossible[] = {
		/* Behind the machine. */
		{ .nr_pages = 5000, .flags = P2M_REGION_RANGE,
		  .start_mfn = beyond, .end_mfn = beyond + 0x10000,
		  .policy = P2M_POLICY_CONTIGUOUS },
		/* A colour that no frame has: all of them are looked at. */
		{ .nr_pages = 2, .flags = P2M_REGION_GUARDED | P2M_REGION_COLOUR,
		  .divisor = 1U << 31, .colour = (1U << 31) - 1 },
	};
	const __u64 before = meminfo_kib("MemAvailable");
	struct p2m_region_create region;
	struct snapshot snap;
	char *mem;
	size_t i;

	for (i = 0; i < ARRAY_LEN(impossible); i++) {
		ASSERT_EQ(0, snapshot_take(self->fd, &snap));
		region = impossible[i];
		test_err_create_by(EADDRNOTAVAIL, self->fd, &region);
		EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
		EXPECT_EQ(0, nr_frames(self->fd));
	}
	/* All that was looked at is there again, but for noise. */
	EXPECT_GE(meminfo_kib("MemAvailable") + 64 * 1024, before);

	/* On demand, it's known only when there is a touch. */
	region = impossible[1];
	region.flags |= P2M_REGION_ON_DEMAND | P2M_REGION_FIXED;
	test_cmd_create_by(self->fd, &region);
	mem = map_pages(self->fd, 0, 2);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(SIGBUS, touch_read(mem));
	EXPECT_EQ(0, nr_frames(self->fd));
	EXPECT_GE(meminfo_kib("MemAvailable") + 64 * 1024, before);
	ASSERT_EQ(0, munmap(mem, 2 * P2M_PAGE_SIZE));
}

/*
 * The one who can run over the edge of a frame is a device that is told a wrong
 * address: QEMU's "edu", which needs no driver. See docs/specs/edu.rst in QEMU.
 */
struct edu {
	int config;
	volatile void *regs;
};

#define EDU_SOURCE 0x80
#define EDU_TARGET 0x88
#define EDU_LENGTH 0x90
#define EDU_COMMAND 0x98
#define EDU_START 1
#define EDU_TO_RAM 2
#define EDU_BUFFER 0x40000
#define EDU_SIZE 0x100000
/* It reaches 28 bits. */
#define EDU_END_MFN (1ULL << 16)

static __u64 read_number(const char *dir, const char *name)
{
	unsigned long value = ~0UL;
	char path[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "r");
	if (!file)
		return ~0ULL;
	if (fscanf(file, "%lx", &value) != 1)
		value = ~0UL;
	fclose(file);
	return value;
}

static int open_in(const char *dir, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return open(path, O_RDWR | O_SYNC | O_CLOEXEC);
}

static bool edu_open(struct edu *edu)
{
	/* Command register: memory and bus master. */
	const __u16 command = 6;
	glob_t devices;
	size_t i;
	int fd;

	edu->regs = MAP_FAILED;
	if (glob("/sys/bus/pci/devices/*", 0, NULL, &devices))
		return false;
	for (i = 0; i < devices.gl_pathc && edu->regs == MAP_FAILED; i++) {
		const char *dir = devices.gl_pathv[i];

		if (read_number(dir, "vendor") != 0x1234 ||
		    read_number(dir, "device") != 0x11e8)
			continue;
		edu->config = open_in(dir, "config");
		fd = open_in(dir, "resource0");
		if (edu->config >= 0 && fd >= 0 &&
		    pwrite(edu->config, &command, sizeof(command), 4) ==
			    sizeof(command))
			edu->regs = mmap(NULL, EDU_SIZE,
					 PROT_READ | PROT_WRITE, MAP_SHARED, fd,
					 0);
		close(fd);
	}
	globfree(&devices);
	return edu->regs != MAP_FAILED;
}

static void edu_write(struct edu *edu, size_t reg, __u64 value)
{
	*(volatile __u64 *)((volatile char *)edu->regs + reg) = value;
}

static bool edu_is_busy(struct edu *edu)
{
	return *(volatile __u64 *)((volatile char *)edu->regs + EDU_COMMAND) &
	       EDU_START;
}

static void edu_transfer(struct edu *edu, __u64 source, __u64 target, __u64 len,
			 __u64 direction)
{
	edu_write(edu, EDU_SOURCE, source);
	edu_write(edu, EDU_TARGET, target);
	edu_write(edu, EDU_LENGTH, len);
	edu_write(edu, EDU_COMMAND, EDU_START | direction);
	while (edu_is_busy(edu))
		usleep(1000);
}

static void edu_close(struct edu *edu)
{
	const __u16 command = 2;

	/* No bus master any more. */
	if (pwrite(edu->config, &command, sizeof(command), 4) !=
	    sizeof(command))
		abort();
	munmap((void *)edu->regs, EDU_SIZE);
	close(edu->config);
}

/* The guard's word with @nr of its bytes, from @from on, as the device wrote it. */
static __u64 broken_word(size_t from, size_t nr)
{
	__u64 word = P2M_GUARD_PATTERN;

	memset((char *)&word + from, 0x5a, nr);
	return word;
}

TEST_F(domain, guards_tell_who_runs_over_the_edge)
{
	static const struct {
		/* Where the device writes a page to, and what that breaks. */
		__s64 shift, offset;
		size_t from, nr;
	} cases[] = {
		{ 0, 0, 0, 0 },
		{ 8, 4096, 0, 8 },
		{ 3, 4096, 0, 3 },
		{ 1, 4096, 0, 1 },
		{ -1, -1, 7, 1 },
		{ -5, -5, 3, 5 },
		{ -16, -16, 0, 8 },
	};
	struct p2m_region_create region = {
		.flags = P2M_REGION_GUARDED | P2M_REGION_RANGE,
		.nr_pages = 16,
		.start_mfn = 1,
		.end_mfn = EDU_END_MFN,
	};
	struct p2m_guard_check check;
	__u64 *entries, i, j;
	struct edu edu;
	char *mem;

	if (!access("/sys/class/iommu", F_OK) &&
	    system("test -z \"$(ls /sys/class/iommu)\""))
		SKIP(return, "an IOMMU is in the way");
	if (!edu_open(&edu))
		SKIP(return, "no device that does as it's told (QEMU: -device edu)");
	test_cmd_create_by(self->fd, &region);
	ASSERT_EQ(0, region.base_pfn);
	mem = map_pages(self->fd, 0, 16);
	ASSERT_NE(MAP_FAILED, mem);
	entries = range_to_entries(self->fd, 0, 16);
	ASSERT_NE(NULL, entries);
	memset(page_at(mem, 15), 0x5a, P2M_PAGE_SIZE);
	edu_transfer(&edu, entries[15] * P2M_PAGE_SIZE, EDU_BUFFER,
		     P2M_PAGE_SIZE, 0);
	for (i = 0; i < ARRAY_LEN(cases); i++) {
		const __u64 page = 2 * i;
		const bool is_broken = cases[i].shift;
		__u64 beyond = 2;
		__u64 broken_pfn = P2M_ENTRY_INVALID;
		unsigned int nr_times = 0;

		if (cases[i].shift < 0)
			beyond = -2;
		if (is_broken)
			broken_pfn = page;
		edu_transfer(&edu, EDU_BUFFER,
			     entries[page] * P2M_PAGE_SIZE + cases[i].shift,
			     P2M_PAGE_SIZE, EDU_TO_RAM);
		EXPECT_EQ(0x5a, page_at(mem, page)[100]);
		/* The guard counts for each page beside it. */
		for (j = 0; j < 16; j++)
			nr_times += entries[j] == entries[page] ||
				    entries[j] == entries[page] + beyond;
		check = test_cmd_guard_check(self->fd, 0, page, 1);
		EXPECT_EQ(2, check.out_guards);
		EXPECT_EQ(is_broken, check.out_broken);
		EXPECT_EQ(broken_pfn, check.out_pfn);
		EXPECT_EQ(cases[i].offset, check.out_offset);
		if (is_broken)
			EXPECT_EQ(broken_word(cases[i].from, cases[i].nr),
				  check.out_value);
		check = test_cmd_guard_check(self->fd, 0, 0, 16);
		EXPECT_EQ(32, check.out_guards);
		if (!is_broken)
			nr_times = 0;
		EXPECT_EQ(nr_times, check.out_broken);
		/* A check alone mends nothing. */
		check = test_cmd_guard_check(self->fd, P2M_GUARD_REFILL, page,
					     1);
		EXPECT_EQ(is_broken, check.out_broken);
		check = test_cmd_guard_check(self->fd, 0, 0, 16);
		EXPECT_EQ(0, check.out_broken);
		expect_sound(_metadata, self->fd);
	}
	edu_close(&edu);
	free(entries);
	ASSERT_EQ(0, munmap(mem, 16 * P2M_PAGE_SIZE));
}

TEST_HARNESS_MAIN
