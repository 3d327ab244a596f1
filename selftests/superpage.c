// SPDX-License-Identifier: GPL-2.0
/*
 * Superpages: 2 MiB of machine frames behind 512 pages, mapped by one entry where
 * addresses allow it; split when a part of them changes, and collapsed on request.
 * What the kernel itself says of mappings and frames is what they are judged by.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Pages of a superpage. */
#define SP 512ULL
#define SP_KIB (SP * P2M_PAGE_SIZE / 1024)

/* Single pages, superpages, and single pages again. */
#define NR_HEAD 100ULL
#define NR_SP 4ULL
#define NR_TAIL 50ULL
#define BASE_PFN (3 * SP - NR_HEAD)
#define FIRST_PFN (3 * SP)
#define NR_PAGES (NR_HEAD + NR_SP * SP + NR_TAIL)
#define END_PFN (BASE_PFN + NR_PAGES)
#define LEN (NR_PAGES * P2M_PAGE_SIZE)

/* The PFN of a superpage. */
#define SP_PFN(nr) (FIRST_PFN + (nr) * SP)

/*
 * The commands. Each is an expression: the structure as the kernel left it, with
 * @err the errno that is expected.
 */
#define CMD(err, request, type, ...)                                     \
	({                                                               \
		struct type __cmd = { .size = sizeof(__cmd), __VA_ARGS__ }; \
		int __err = (err), __ret;                                \
		__ret = ioctl(self->fd, request, &__cmd);                \
		ASSERT_EQ(__err ? -1 : 0, __ret) TH_LOG(#request ": %m"); \
		if (__err)                                               \
			EXPECT_EQ(__err, errno);                         \
		__cmd;                                                   \
	})
#define RANGE(start, nr) .start_pfn = (start), .nr_pages = (nr)
#define release(err, start, nr) \
	CMD(err, P2M_RELEASE, p2m_release, RANGE(start, nr))
#define populate(err, start, nr) \
	CMD(err, P2M_POPULATE, p2m_populate, RANGE(start, nr))
#define move(err, start, nr, by) \
	CMD(err, P2M_MOVE, p2m_move, RANGE(start, nr), .policy = (by))
#define collapse(err, start, nr) \
	CMD(err, P2M_COLLAPSE, p2m_collapse, RANGE(start, nr))
#define evacuate(err, start, nr, bits)                         \
	CMD(err, P2M_EVACUATE, p2m_evacuate, .start_mfn = (start), \
	    .nr_frames = (nr), .flags = (bits))
#define contiguous(err, start, by)                                 \
	CMD(err, P2M_CONTIGUOUS, p2m_contiguous, .start_pfn = (start), \
	    .order = (by))
#define exchange(err, a, b, nr)                                            \
	CMD(err, P2M_EXCHANGE, p2m_exchange, .a_pfn = (a), .b_pfn = (b), \
	    .nr_pages = (nr))

static __u64 tag_of(__u64 pfn)
{
	return pfn * 7 + 1;
}

/* What the kernel says of a machine frame. */
#define FRAME_COMPOUND_HEAD (1ULL << 15)
#define FRAME_COMPOUND_TAIL (1ULL << 16)
#define FRAME_THP (1ULL << 22)

static __u64 frame_flags(__u64 mfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	__u64 flags = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &flags, sizeof(flags), mfn * sizeof(flags)) !=
	    sizeof(flags))
		flags = 0;
	close(fd);
	return flags;
}

/* KiB that one entry each maps 2 MiB of, in all mappings within a range. */
static __u64 huge_kib(const void *mem, size_t len)
{
	__u64 start = (uintptr_t)mem, end = start + len;
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long long from, to, kib;
	bool is_inside = false;
	__u64 sum = 0;
	char line[512];

	if (!file)
		return ~0ULL;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%llx-%llx ", &from, &to) == 2)
			is_inside = start < to && from < end;
		else if (is_inside &&
			 sscanf(line, "FilePmdMapped: %llu kB", &kib) == 1)
			sum += kib;
	}
	fclose(file);
	return sum;
}

/* Whether a superpage is at a PFN: by the P2M, and by what the kernel says. */
static bool is_superpage(int fd, __u64 pfn)
{
	__u64 *entries = range_to_entries(fd, pfn, SP);
	__u64 i, head = FRAME_COMPOUND_HEAD | FRAME_THP;
	bool is_good;

	if (!entries)
		return false;
	is_good = entries[0] % SP == 0 &&
		  (frame_flags(entries[0]) & head) == head;
	for (i = 1; i < SP && is_good; i++)
		is_good = entries[i] == entries[0] + i &&
			  (frame_flags(entries[i]) & FRAME_COMPOUND_TAIL);
	free(entries);
	return is_good;
}

static __u64 nr_superpages(int fd, __u64 pfn, __u64 nr)
{
	__u64 i, found = 0;

	for (i = 0; i < nr; i++)
		found += is_superpage(fd, pfn + i * SP);
	return found;
}

/* Whether no frame of a range is a part of something larger. */
static bool all_single(int fd, __u64 pfn, __u64 nr)
{
	__u64 *entries = range_to_entries(fd, pfn, nr);
	bool is_good = entries;
	__u64 i;

	for (i = 0; i < nr && is_good; i++)
		is_good = entries[i] == P2M_ENTRY_INVALID ||
			  !(frame_flags(entries[i]) &
			    (FRAME_COMPOUND_HEAD | FRAME_COMPOUND_TAIL));
	free(entries);
	return is_good;
}

static __u64 nr_tables(int fd)
{
	struct p2m_stat stat;

	if (_test_cmd_stat(fd, &stat))
		return ~0ULL;
	return stat.out_p2m_tables + stat.out_m2p_tables;
}

FIXTURE(superpage)
{
	int fd;
	char *mem;
	__u64 total_pages;
};

static char *page_at(const FIXTURE_DATA(superpage) * self, __u64 pfn)
{
	return self->mem + (pfn - BASE_PFN) * P2M_PAGE_SIZE;
}

static void fill_all(const FIXTURE_DATA(superpage) * self)
{
	__u64 pfn;

	for (pfn = BASE_PFN; pfn < END_PFN; pfn++)
		page_fill(page_at(self, pfn), tag_of(pfn));
}

/* The first page of a range that isn't as fill_all() left it. */
static __u64 first_bad(const FIXTURE_DATA(superpage) * self, __u64 pfn, __u64 end)
{
	while (pfn < end && page_matches(page_at(self, pfn), tag_of(pfn)))
		pfn++;
	return pfn;
}

static struct p2m_audit audit_of(int fd)
{
	struct p2m_audit audit = { .size = sizeof(audit) };

	if (ioctl(fd, P2M_AUDIT, &audit))
		audit.out_refs_bad = ~0ULL;
	return audit;
}

/* Pages are mapped meanwhile, and one that is being so may look pinned. */
#define ANY_NR_PINNED (~0ULL)

/* What the module counts; ~0 if it can't be found out. */
static __u64 superpages_counted(int fd)
{
	struct p2m_stat stat;

	return _test_cmd_stat(fd, &stat) ? ~0ULL : stat.out_superpages;
}

/* What it counts of all domains. */
static __u64 superpages_of_all(void)
{
	FILE *file = fopen("/sys/kernel/debug/p2m/stat", "r");
	unsigned long long found = ~0ULL;
	char line[128];

	if (!file)
		return ~0ULL;
	while (fgets(line, sizeof(line), file) &&
	       sscanf(line, "superpages %llu", &found) != 1)
		;
	fclose(file);
	return found;
}

/* Nothing is wrong, and nobody has a reference but mappings. */
static void expect_sound(struct __test_metadata *_metadata, int fd,
			 __u64 nr_frames, __u64 nr_pinned)
{
	struct p2m_audit audit = audit_of(fd);

	EXPECT_EQ(0, audit.out_p2m_bad);
	EXPECT_EQ(0, audit.out_m2p_bad);
	EXPECT_EQ(0, audit.out_orphans);
	EXPECT_EQ(0, audit.out_refs_bad);
	EXPECT_EQ(0, audit.out_spaces_bad);
	EXPECT_EQ(0, audit.out_count_bad);
	EXPECT_EQ(nr_frames, audit.out_frames);
	if (nr_pinned != ANY_NR_PINNED)
		EXPECT_EQ(nr_pinned, audit.out_pinned);
}

FIXTURE_SETUP(superpage)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SUPERPAGE, NR_PAGES, 0,
				     BASE_PFN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(superpage)
{
	struct p2m_stat stat;

	expect_sound(_metadata, self->fd, audit_of(self->fd).out_frames, 0);
	munmap(self->mem, LEN);
	/* Whatever was mapped has given its references back. */
	expect_sound(_metadata, self->fd, audit_of(self->fd).out_frames, 0);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(0, stat.out_frames);
	EXPECT_EQ(0, stat.out_p2m_tables);
	EXPECT_EQ(0, stat.out_m2p_tables);
	EXPECT_EQ(0, stat.out_superpages);
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

/* By the module, and by what the kernel says of the frames. */
TEST_F(superpage, are_counted_as_they_come_and_go)
{
	const __u64 others = superpages_of_all() - NR_SP;
	int fd;
	__u64 base;

#define EXPECT_COUNTED(nr)                                                  \
	({                                                                  \
		EXPECT_EQ(nr, superpages_counted(self->fd));                \
		EXPECT_EQ(nr, nr_superpages(self->fd, FIRST_PFN, NR_SP));   \
		EXPECT_EQ(others + (nr), superpages_of_all());              \
	})
	EXPECT_COUNTED(NR_SP);
	/* A part of one, all of one, and parts of two. */
	release(0, SP_PFN(0) + 5, 1);
	EXPECT_COUNTED(NR_SP - 1);
	release(0, SP_PFN(1), SP);
	EXPECT_COUNTED(NR_SP - 2);
	move(0, SP_PFN(2) + 500, 100, P2M_POLICY_ANY);
	EXPECT_COUNTED(0);
	populate(0, SP_PFN(0), 2 * SP);
	EXPECT_COUNTED(1);
	collapse(0, BASE_PFN, NR_PAGES);
	EXPECT_COUNTED(NR_SP);
	/* They are others, but as many. */
	move(0, BASE_PFN, NR_PAGES, P2M_POLICY_ANY);
	EXPECT_EQ(superpages_counted(self->fd),
		  nr_superpages(self->fd, FIRST_PFN, NR_SP));
	collapse(0, BASE_PFN, NR_PAGES);
	exchange(0, SP_PFN(0), SP_PFN(1), SP);
	EXPECT_COUNTED(NR_SP);
	contiguous(0, SP_PFN(3), 9);
	EXPECT_COUNTED(NR_SP - 1);
	/* A domain takes its own along. */
	fd = p2m_open();
	ASSERT_LE(0, fd);
	test_cmd_region_create(fd, P2M_POLICY_SUPERPAGE, 2 * SP, 0, &base);
	EXPECT_EQ(2, superpages_counted(fd));
	EXPECT_EQ(others + NR_SP + 1, superpages_of_all());
	ASSERT_EQ(0, close(fd));
	EXPECT_COUNTED(NR_SP - 1);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(0, superpages_counted(self->fd));
	EXPECT_EQ(others, superpages_of_all());
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SUPERPAGE, NR_PAGES, 0,
				     BASE_PFN);
	EXPECT_COUNTED(NR_SP);
}

TEST_F(superpage, frames_are_superpages_where_pages_are_aligned)
{
	__u64 pfn;

	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_TRUE(all_single(self->fd, BASE_PFN, NR_HEAD));
	EXPECT_TRUE(all_single(self->fd, SP_PFN(NR_SP), NR_TAIL));
	for (pfn = BASE_PFN; pfn < END_PFN; pfn++)
		ASSERT_EQ(pfn, mfn_to_pfn(self->fd, pfn_to_entry(self->fd, pfn)));
	EXPECT_EQ(LEN, first_nonzero(self->mem, LEN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

TEST_F(superpage, one_entry_maps_each)
{
	int pagemap = pagemap_open();
	struct p2m_stat stat;
	__u64 pfn;

	ASSERT_LE(0, pagemap);
	EXPECT_EQ(0, huge_kib(self->mem, LEN));
	for (pfn = 0; pfn < NR_SP; pfn++) {
		*(volatile char *)page_at(self, SP_PFN(pfn) + 77 * pfn) = 1;
		EXPECT_EQ((pfn + 1) * SP_KIB, huge_kib(self->mem, LEN));
	}
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_SP, stat.out_faults);
	EXPECT_EQ(NR_SP * SP, stat.out_fault_pages);
	fill_all(self);
	for (pfn = BASE_PFN; pfn < END_PFN; pfn++)
		ASSERT_EQ(pfn_to_entry(self->fd, pfn),
			  pagemap_mfn(pagemap, page_at(self, pfn)));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ(NR_SP * SP_KIB, huge_kib(self->mem, LEN));
	close(pagemap);
}

/* A mapping at any other address, or of a part, has pages. */
TEST_F(superpage, pages_are_mapped_where_one_entry_cannot)
{
	size_t len = 2 * SP * P2M_PAGE_SIZE;
	char *room, *part;
	__u64 i;

	fill_all(self);
	room = mmap(NULL, 2 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, room);
	/* One page off. */
	part = room + P2M_PAGE_SIZE +
	       (-(uintptr_t)room & (SP * P2M_PAGE_SIZE - 1));
	ASSERT_EQ(part, mmap(part, len, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_FIXED, self->fd,
			     SP_PFN(0) * P2M_PAGE_SIZE));
	for (i = 0; i < 2 * SP; i++)
		ASSERT_TRUE(page_matches(part + i * P2M_PAGE_SIZE,
					 tag_of(SP_PFN(0) + i)));
	EXPECT_EQ(0, huge_kib(part, len));
	EXPECT_EQ(NR_SP * SP_KIB, huge_kib(self->mem, LEN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	munmap(room, 2 * len);
	EXPECT_EQ(0, madvise(page_at(self, SP_PFN(0)), SP * P2M_PAGE_SIZE,
			     MADV_NOHUGEPAGE));
	EXPECT_EQ(0, madvise(page_at(self, SP_PFN(0)), SP * P2M_PAGE_SIZE,
			     MADV_DONTNEED));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ((NR_SP - 1) * SP_KIB, huge_kib(self->mem, LEN));
}

/* The kernel splits the entry, and counts right. */
TEST_F(superpage, mappings_can_be_cut_protected_and_moved)
{
	char *mem = page_at(self, SP_PFN(0)), *moved;
	size_t size = SP * P2M_PAGE_SIZE;

	fill_all(self);
	/* A part of the first one, a hole in the second one. */
	ASSERT_EQ(0, mprotect(mem + 5 * P2M_PAGE_SIZE, 7 * P2M_PAGE_SIZE,
			      PROT_READ));
	ASSERT_EQ(0, munmap(mem + size + 9 * P2M_PAGE_SIZE, P2M_PAGE_SIZE));
	EXPECT_EQ(SIGSEGV, touch_write(mem + 5 * P2M_PAGE_SIZE, 0));
	EXPECT_EQ(SIGSEGV, touch_read(mem + size + 9 * P2M_PAGE_SIZE));
	EXPECT_EQ((NR_SP - 2) * SP_KIB, huge_kib(self->mem, LEN));
	EXPECT_EQ(SP_PFN(1) + 9, first_bad(self, BASE_PFN, SP_PFN(1) + 9));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(1) + 10, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	/* All of the third one, to where one entry can't map it, and back. */
	moved = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	ASSERT_NE(MAP_FAILED, moved);
	moved += (-(uintptr_t)moved & (size - 1)) + P2M_PAGE_SIZE;
	ASSERT_EQ(moved, mremap(mem + 2 * size, size, size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	EXPECT_TRUE(page_matches(moved, tag_of(SP_PFN(2))));
	EXPECT_EQ(0, huge_kib(moved, size));
	ASSERT_EQ(mem + 2 * size,
		  mremap(moved, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			 mem + 2 * size));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(2), END_PFN));
	/* All of the fourth one is protected as a whole. */
	ASSERT_EQ(0, mprotect(mem + 3 * size, size, PROT_READ));
	EXPECT_EQ(SIGSEGV, touch_write(mem + 3 * size, 0));
	EXPECT_EQ(SP_KIB, huge_kib(mem + 3 * size, size));
	ASSERT_EQ(0, mprotect(mem + 3 * size, size, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, touch_write(mem + 3 * size, *(mem + 3 * size)));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

TEST_F(superpage, children_share_it)
{
	int status;
	pid_t pid;

	fill_all(self);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		bool is_good = first_bad(self, BASE_PFN, END_PFN) == END_PFN &&
			       huge_kib(self->mem, LEN) == NR_SP * SP_KIB;

		page_fill(page_at(self, SP_PFN(1) + 3), 5);
		_exit(!is_good);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(page_matches(page_at(self, SP_PFN(1) + 3), 5));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

TEST_F(superpage, destroy_takes_it_out_of_mappings)
{
	fill_all(self);
	test_cmd_region_destroy(self->fd, BASE_PFN);
	EXPECT_EQ(0, huge_kib(self->mem, LEN));
	EXPECT_EQ(SIGBUS, touch_read(page_at(self, SP_PFN(1) + 5)));
	/* What comes there now is mapped page by page, or not. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0,
				     BASE_PFN);
	fill_all(self);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ(0, huge_kib(self->mem, LEN));
}

TEST_F(superpage, release_of_a_part_splits_it)
{
	__u64 pfn = SP_PFN(1) + 17, before;
	struct p2m_release cmd;

	fill_all(self);
	before = pfn_to_entry(self->fd, SP_PFN(1));
	cmd = release(0, pfn, 40);
	EXPECT_EQ(40, cmd.out_pages);
	EXPECT_EQ(NR_SP - 1, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_TRUE(all_single(self->fd, SP_PFN(1), SP));
	/* The frames are nobody's, or somebody else's. */
	EXPECT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(self->fd, before));
	EXPECT_EQ(pfn, first_bad(self, BASE_PFN, pfn));
	EXPECT_EQ(END_PFN, first_bad(self, pfn + 40, END_PFN));
	EXPECT_EQ(SIGBUS, touch_read(page_at(self, pfn)));
	EXPECT_EQ(SIGBUS, touch_read(page_at(self, pfn + 39)));
	expect_sound(_metadata, self->fd, NR_PAGES - 40, 0);
	/* Over a border: parts of two. */
	release(0, SP_PFN(3) - 5, 10);
	EXPECT_EQ(1, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(SP_PFN(3) - 5, first_bad(self, pfn + 40, SP_PFN(3) - 5));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(3) + 5, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES - 50, 0);
	EXPECT_EQ(50, populate(0, BASE_PFN, NR_PAGES).out_pages);
}

TEST_F(superpage, release_of_a_whole_one_splits_nothing)
{
	fill_all(self);
	EXPECT_EQ(SP, release(0, SP_PFN(2), SP).out_pages);
	EXPECT_EQ(NR_SP - 1, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(SIGBUS, touch_read(page_at(self, SP_PFN(2) + 5)));
	EXPECT_EQ(SP_PFN(2), first_bad(self, BASE_PFN, SP_PFN(2)));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(3), END_PFN));
	EXPECT_EQ((NR_SP - 1) * SP_KIB, huge_kib(self->mem, LEN));
	/* It comes again as what it was. */
	EXPECT_EQ(SP, populate(0, SP_PFN(2), SP).out_pages);
	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(SP * P2M_PAGE_SIZE,
		  first_nonzero(page_at(self, SP_PFN(2)), SP * P2M_PAGE_SIZE));
}

TEST_F(superpage, moves_as_a_whole_and_is_split_by_a_part)
{
	__u64 before[NR_SP], i, *entries;
	struct p2m_move cmd;

	fill_all(self);
	for (i = 0; i < NR_SP; i++)
		before[i] = pfn_to_entry(self->fd, SP_PFN(i));
	cmd = move(0, BASE_PFN, NR_PAGES, P2M_POLICY_ANY);
	EXPECT_EQ(NR_PAGES, cmd.out_pages);
	EXPECT_EQ(0, cmd.out_busy);
	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	for (i = 0; i < NR_SP; i++)
		EXPECT_NE(before[i], pfn_to_entry(self->fd, SP_PFN(i)));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);

	cmd = move(0, SP_PFN(1) + 100, 3, P2M_POLICY_ANY);
	EXPECT_EQ(3, cmd.out_pages);
	EXPECT_EQ(NR_SP - 1, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_TRUE(all_single(self->fd, SP_PFN(1), SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);

	cmd = move(0, BASE_PFN, NR_PAGES, P2M_POLICY_SCATTER);
	EXPECT_EQ(NR_PAGES, cmd.out_pages + cmd.out_busy);
	EXPECT_EQ(0, cmd.out_busy);
	EXPECT_EQ(0, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	entries = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, entries);
	for (i = 1; i < NR_PAGES; i++) {
		ASSERT_NE(entries[i - 1] + 1, entries[i]);
		ASSERT_NE(entries[i - 1], entries[i] + 1);
	}
	free(entries);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ(0, huge_kib(self->mem, LEN));
}

TEST_F(superpage, evacuates_as_a_whole)
{
	__u64 mfn = pfn_to_entry(self->fd, SP_PFN(1));
	struct p2m_evacuate cmd;

	fill_all(self);
	/* All of its frames go, also those that need not. */
	cmd = evacuate(0, mfn + 100, 7, 0);
	EXPECT_EQ(0, cmd.out_busy);
	EXPECT_EQ(mfn + 107, cmd.out_next_mfn);
	EXPECT_NE(mfn, pfn_to_entry(self->fd, SP_PFN(1)));
	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(P2M_ENTRY_INVALID, mfn_to_pfn(self->fd, mfn + 100));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

TEST_F(superpage, frames_are_exchanged_as_a_whole_or_page_by_page)
{
	__u64 a = pfn_to_entry(self->fd, SP_PFN(0));
	__u64 b = pfn_to_entry(self->fd, SP_PFN(2)), c;

	fill_all(self);
	EXPECT_EQ(SP, exchange(0, SP_PFN(0), SP_PFN(2), SP).out_pages);
	EXPECT_EQ(b, pfn_to_entry(self->fd, SP_PFN(0)));
	EXPECT_EQ(a, pfn_to_entry(self->fd, SP_PFN(2)));
	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	/* With single pages, as many. */
	move(0, SP_PFN(1), SP, P2M_POLICY_SCATTER);
	c = pfn_to_entry(self->fd, SP_PFN(1));
	EXPECT_EQ(SP, exchange(0, SP_PFN(0), SP_PFN(1), SP).out_pages);
	EXPECT_EQ(b, pfn_to_entry(self->fd, SP_PFN(1)));
	EXPECT_EQ(c, pfn_to_entry(self->fd, SP_PFN(0)));
	EXPECT_TRUE(is_superpage(self->fd, SP_PFN(1)));
	EXPECT_TRUE(all_single(self->fd, SP_PFN(0), SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	/* Parts. */
	EXPECT_EQ(33, exchange(0, SP_PFN(1) + 7, SP_PFN(3) + 40, 33).out_pages);
	EXPECT_EQ(1, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

/* A region may go without the other one: no superpage is in both. */
TEST_F(superpage, exchanged_for_pages_of_two_regions_it_is_split)
{
	const __u64 base = 64 * SP, half = SP / 2;
	char *page = page_at(self, SP_PFN(1) + 100), *mem;
	struct iovec iov = { .iov_base = page, .iov_len = P2M_PAGE_SIZE };
	__u64 i;
	int fds[2];

	fill_all(self);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, half, 0, base);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, half, 0,
				     base + half);
	mem = map_pages(self->fd, base, SP);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < SP; i++)
		page_fill(mem + i * P2M_PAGE_SIZE, tag_of(base + i));
	/* In both directions, and one that can't be split. */
	EXPECT_EQ(SP, exchange(0, SP_PFN(0), base, SP).out_pages);
	EXPECT_EQ(SP, exchange(0, base, SP_PFN(2), SP).out_pages);
	ASSERT_EQ(0, pipe2(fds, O_CLOEXEC));
	ASSERT_EQ(P2M_PAGE_SIZE, vmsplice(fds[1], &iov, 1, 0));
	EXPECT_EQ(SP, exchange(0, SP_PFN(1), base, SP).out_busy);
	close(fds[0]);
	close(fds[1]);
	EXPECT_TRUE(all_single(self->fd, base, SP));
	EXPECT_EQ(2, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	/* Each goes alone, and leaves nothing. */
	test_cmd_region_destroy(self->fd, base + half);
	EXPECT_NE(0, touch_read(mem + half * P2M_PAGE_SIZE));
	for (i = 0; i < half; i++)
		EXPECT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE,
					 tag_of(base + i)));
	expect_sound(_metadata, self->fd, NR_PAGES + half, 0);
	test_cmd_region_destroy(self->fd, base);
	EXPECT_NE(0, touch_read(mem));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	munmap(mem, SP * P2M_PAGE_SIZE);
}

TEST_F(superpage, can_be_made_contiguous_with_others)
{
	__u64 first, i;

	fill_all(self);
	contiguous(0, SP_PFN(1), 10);
	first = pfn_to_entry(self->fd, SP_PFN(1));
	for (i = 0; i < 2 * SP; i++)
		ASSERT_EQ(first + i, pfn_to_entry(self->fd, SP_PFN(1) + i));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	/* Parts of two. */
	contiguous(0, SP_PFN(1) - 64, 7);
	contiguous(0, SP_PFN(4) - 32, 6);
	EXPECT_EQ(0, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	/* And back. */
	EXPECT_EQ(NR_SP, collapse(0, BASE_PFN, NR_PAGES).out_superpages);
	EXPECT_EQ(NR_SP, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
}

/* A pinned page keeps all of its superpage where it is. */
TEST_F(superpage, pinned_one_stays_whole)
{
	char *page = page_at(self, SP_PFN(1) + 100), *copy;
	struct iovec iov = { .iov_base = page, .iov_len = P2M_PAGE_SIZE };
	__u64 mfn = pfn_to_entry(self->fd, SP_PFN(1));
	struct p2m_collapse collapsed;
	struct p2m_contiguous cmd;
	int fds[2];

	fill_all(self);
	ASSERT_EQ(0, pipe2(fds, O_CLOEXEC));
	ASSERT_EQ(P2M_PAGE_SIZE, vmsplice(fds[1], &iov, 1, 0));
	expect_sound(_metadata, self->fd, NR_PAGES, SP);
	release(EBUSY, SP_PFN(1) + 100, 1);
	release(EBUSY, SP_PFN(1), 10);
	EXPECT_EQ(3, move(0, SP_PFN(1), 3, P2M_POLICY_ANY).out_busy);
	EXPECT_EQ(SP, move(0, SP_PFN(1), SP, P2M_POLICY_ANY).out_busy);
	EXPECT_EQ(SP, move(0, SP_PFN(1), SP, P2M_POLICY_SCATTER).out_busy);
	EXPECT_NE(0, evacuate(0, mfn, SP, 0).out_busy);
	EXPECT_EQ(SP, exchange(0, SP_PFN(1), SP_PFN(2), SP).out_busy);
	EXPECT_EQ(5, exchange(0, SP_PFN(1) + 1, BASE_PFN, 5).out_busy);
	cmd = contiguous(EBUSY, SP_PFN(1), 9);
	EXPECT_EQ(SP_PFN(1), cmd.out_busy_pfn);
	cmd = contiguous(EBUSY, SP_PFN(1) + 8, 3);
	EXPECT_EQ(SP_PFN(1) + 8, cmd.out_busy_pfn);
	collapsed = collapse(0, BASE_PFN, NR_PAGES);
	EXPECT_EQ(0, collapsed.out_pages);
	EXPECT_EQ(NR_SP, collapsed.out_superpages);
	EXPECT_EQ(mfn, pfn_to_entry(self->fd, SP_PFN(1)));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	/* All of it may go: the frames stay somebody's. */
	EXPECT_EQ(SP, release(0, SP_PFN(1), SP).out_pages);
	expect_sound(_metadata, self->fd, NR_PAGES - SP, 0);
	copy = malloc(P2M_PAGE_SIZE);
	ASSERT_NE(NULL, copy);
	ASSERT_EQ(P2M_PAGE_SIZE, read(fds[0], copy, P2M_PAGE_SIZE));
	EXPECT_TRUE(page_matches(copy, tag_of(SP_PFN(1) + 100)));
	free(copy);
	close(fds[0]);
	close(fds[1]);
}

TEST_F(superpage, pages_collapse_on_request)
{
	__u64 base = 16 * SP, nr = 3 * SP + 10, pfn, tables;
	struct p2m_collapse cmd;
	char *mem;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, nr, 3, base);
	mem = map_pages(self->fd, base, nr);
	ASSERT_NE(MAP_FAILED, mem);
	for (pfn = base; pfn < base + nr; pfn++)
		page_fill(mem + (pfn - base) * P2M_PAGE_SIZE, tag_of(pfn));
	tables = nr_tables(self->fd);
	/* Only what is whole. */
	cmd = collapse(0, base + 1, 2 * SP - 2);
	EXPECT_EQ(0, cmd.out_superpages);
	EXPECT_EQ(0, cmd.out_pages);
	release(0, base + 2 * SP + 5, 1);
	cmd = collapse(0, base, nr);
	EXPECT_EQ(2 * SP, cmd.out_pages);
	EXPECT_EQ(2, cmd.out_superpages);
	EXPECT_EQ(0, cmd.out_busy);
	EXPECT_EQ(base + nr, cmd.out_next_pfn);
	EXPECT_EQ(2, nr_superpages(self->fd, base, 3));
	EXPECT_GT(tables, nr_tables(self->fd));
	for (pfn = base; pfn < base + nr; pfn++)
		ASSERT_TRUE(pfn == base + 2 * SP + 5 ||
			    page_matches(mem + (pfn - base) * P2M_PAGE_SIZE,
					 tag_of(pfn)));
	/* A mapping that is made now can have them mapped by one entry. */
	EXPECT_EQ(0, huge_kib(mem, nr * P2M_PAGE_SIZE));
	munmap(mem, nr * P2M_PAGE_SIZE);
	mem = map_pages(self->fd, base, nr);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(page_matches(mem, tag_of(base)));
	EXPECT_EQ(SP_KIB, huge_kib(mem, nr * P2M_PAGE_SIZE));
	/* Again, it's nothing new. */
	cmd = collapse(0, base, nr);
	EXPECT_EQ(0, cmd.out_pages);
	EXPECT_EQ(2, cmd.out_superpages);
	EXPECT_EQ(SP_KIB, huge_kib(mem, nr * P2M_PAGE_SIZE));
	munmap(mem, nr * P2M_PAGE_SIZE);
	collapse(ENOENT, base, nr + 1);
	collapse(EINVAL, base, 0);
	collapse(EOVERFLOW, base, ~0ULL);
	CMD(EOPNOTSUPP, P2M_COLLAPSE, p2m_collapse, RANGE(base, nr), .flags = 1);
	expect_sound(_metadata, self->fd, NR_PAGES + nr - 1, 0);
	test_cmd_region_destroy(self->fd, base);
}

/* An entry can take the place of pages when their table is gone. */
TEST_F(superpage, collapsed_pages_are_mapped_by_one_entry_again)
{
	fill_all(self);
	move(0, SP_PFN(0), NR_SP * SP, P2M_POLICY_SCATTER);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ(0, huge_kib(self->mem, LEN));
	EXPECT_EQ(NR_SP, collapse(0, BASE_PFN, NR_PAGES).out_superpages);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	munmap(self->mem, LEN);
	self->mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	EXPECT_EQ(NR_SP * SP_KIB, huge_kib(self->mem, LEN));
}

/* Who looks at the tables sees what there would be without superpages. */
TEST_F(superpage, views_show_each_entry)
{
	__u64 words = END_PFN, pfn, mfn, tables, max_mfn;
	const volatile __u64 *p2m, *m2p;
	struct p2m_info info;

	test_cmd_info(self->fd, &info);
	max_mfn = info.out_max_mfn;
	p2m = map_window(self->fd, P2M_OFFSET_P2M, words * 8);
	m2p = map_window(self->fd, P2M_OFFSET_M2P, max_mfn * 8);
	ASSERT_NE(MAP_FAILED, p2m);
	ASSERT_NE(MAP_FAILED, m2p);
	tables = nr_tables(self->fd);
	for (pfn = 0; pfn < END_PFN; pfn++) {
		mfn = pfn_to_entry(self->fd, pfn);
		ASSERT_EQ(mfn, p2m[pfn]);
		if (mfn != P2M_ENTRY_INVALID)
			ASSERT_EQ(pfn, m2p[mfn]);
	}
	EXPECT_EQ(tables + 2 * NR_SP, nr_tables(self->fd));
	/* They follow what happens, in whatever form the tables are. */
	EXPECT_EQ(NR_SP, collapse(0, BASE_PFN, NR_PAGES).out_superpages);
	EXPECT_EQ(tables, nr_tables(self->fd));
	mfn = p2m[SP_PFN(2) + 9];
	EXPECT_EQ(SP_PFN(2) + 9, m2p[mfn]);
	move(0, SP_PFN(2), SP, P2M_POLICY_ANY);
	EXPECT_EQ(P2M_ENTRY_INVALID, m2p[mfn]);
	EXPECT_EQ(SP_PFN(2) + 9, m2p[p2m[SP_PFN(2) + 9]]);
	release(0, SP_PFN(2) + 9, 1);
	EXPECT_EQ(P2M_ENTRY_INVALID, p2m[SP_PFN(2) + 9]);
	EXPECT_EQ(SP_PFN(2) + 8, m2p[p2m[SP_PFN(2) + 8]]);
	munmap((void *)p2m, words * 8);
	munmap((void *)m2p, max_mfn * 8);
}

TEST_F(superpage, direct_io_writes_from_it_and_reads_into_it)
{
	char name[] = "/tmp/p2m-superpage-XXXXXX";
	size_t len = 2 * SP * P2M_PAGE_SIZE;
	int file = mkostemp(name, O_CLOEXEC | O_DIRECT);

	if (file < 0 && errno == EINVAL)
		SKIP(return, "no O_DIRECT in /tmp");
	ASSERT_LE(0, file);
	unlink(name);
	fill_all(self);
	ASSERT_EQ(len, pwrite(file, page_at(self, SP_PFN(0)), len, 0));
	memset(page_at(self, SP_PFN(2)), 0, len);
	ASSERT_EQ(len, pread(file, page_at(self, SP_PFN(2)), len, 0));
	EXPECT_EQ(0, memcmp(page_at(self, SP_PFN(0)), page_at(self, SP_PFN(2)),
			    len));
	close(file);
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
}

/* It's split, as a page of it in another domain would keep all of it there. */
TEST_F(superpage, pages_can_be_lent)
{
	__u64 pfns[] = { SP_PFN(1), SP_PFN(1) + 77, SP_PFN(1) + 511 };
	__s32 errors[ARRAY_LEN(pfns)];
	struct p2m_foreign_map cmd = {
		.size = sizeof(cmd),
		.fd = self->fd,
		.nr = ARRAY_LEN(pfns),
		.start_pfn = SP + 5,
		.frames = (uintptr_t)pfns,
		.errors = (uintptr_t)errors,
	};
	int other = p2m_open();
	char *mem;
	size_t i;

	ASSERT_LE(0, other);
	fill_all(self);
	test_cmd_region_create_fixed(other, P2M_POLICY_SUPERPAGE, 2 * SP, 0, SP);
	{
		struct p2m_release part = { .size = sizeof(part), RANGE(SP, SP) };

		ASSERT_EQ(0, ioctl(other, P2M_RELEASE, &part));
	}
	ASSERT_EQ(0, ioctl(other, P2M_FOREIGN_MAP, &cmd));
	EXPECT_EQ(ARRAY_LEN(pfns), cmd.out_nr);
	mem = map_pages(other, SP, 2 * SP);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < ARRAY_LEN(pfns); i++)
		EXPECT_TRUE(page_matches(mem + (5 + i) * P2M_PAGE_SIZE,
					 tag_of(pfns[i])));
	EXPECT_EQ(SIGBUS, touch_read(mem));
	EXPECT_EQ(0, touch_read(mem + SP * P2M_PAGE_SIZE));
	EXPECT_EQ(SP_KIB, huge_kib(mem, 2 * SP * P2M_PAGE_SIZE));
	expect_sound(_metadata, self->fd, NR_PAGES, ARRAY_LEN(pfns));
	EXPECT_FALSE(is_superpage(self->fd, SP_PFN(1)));
	EXPECT_TRUE(is_superpage(self->fd, SP_PFN(0)));
	EXPECT_EQ(ARRAY_LEN(pfns),
		  move(0, SP_PFN(1), SP, P2M_POLICY_ANY).out_busy);
	/* Its owner gives it back: the frames go with the last one who has them. */
	EXPECT_EQ(SP, release(0, SP_PFN(1), SP).out_pages);
	EXPECT_TRUE(page_matches(mem + 6 * P2M_PAGE_SIZE, tag_of(pfns[1])));
	munmap(mem, 2 * SP * P2M_PAGE_SIZE);
	EXPECT_EQ(0, close(other));
}

/* Who has a page of it in a dma-buf keeps that page, and pays for it. */
TEST_F(superpage, a_part_of_it_can_be_exported)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		RANGE(SP_PFN(1) - 1, SP + 2),
		.fd_flags = O_RDWR,
	};
	struct p2m_info info;
	int whole;

	test_cmd_info(self->fd, &info);
	if (!(info.out_features & P2M_FEATURE_DMA_BUF))
		SKIP(return, "no dma-bufs here");
	fill_all(self);
	ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_BUF_EXPORT, &cmd));
	EXPECT_FALSE(is_superpage(self->fd, SP_PFN(0)));
	EXPECT_TRUE(is_superpage(self->fd, SP_PFN(1)));
	EXPECT_FALSE(is_superpage(self->fd, SP_PFN(2)));
	expect_sound(_metadata, self->fd, NR_PAGES, SP + 2);
	whole = cmd.out_fd;
	/* One that is pinned can't be split. */
	cmd.start_pfn = SP_PFN(1);
	cmd.nr_pages = 1;
	EXPECT_ERRNO(EBUSY, ioctl(self->fd, P2M_DMA_BUF_EXPORT, &cmd));
	EXPECT_EQ(-1, cmd.out_fd);
	EXPECT_TRUE(is_superpage(self->fd, SP_PFN(1)));
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	ASSERT_EQ(0, close(whole));
	ASSERT_EQ(0, ioctl(self->fd, P2M_DMA_BUF_EXPORT, &cmd));
	EXPECT_FALSE(is_superpage(self->fd, SP_PFN(1)));
	expect_sound(_metadata, self->fd, NR_PAGES, 1);
	EXPECT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN));
	ASSERT_EQ(0, close(cmd.out_fd));
}

TEST_F_TIMEOUT(superpage, policy_goes_with_what_makes_sense, 120)
{
	struct p2m_region_create cmd = {
		.size = sizeof(cmd),
		.policy = P2M_POLICY_SUPERPAGE,
		.nr_pages = SP,
	};
	struct p2m_info info;

	test_cmd_info(self->fd, &info);
	EXPECT_TRUE(info.out_policies & 1ULL << P2M_POLICY_SUPERPAGE);
	test_err_region_create(EINVAL, self->fd, P2M_POLICY_SUPERPAGE, SP, 1);
	cmd.flags = P2M_REGION_GUARDED;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, P2M_REGION_CREATE, &cmd));
	cmd.flags = P2M_REGION_COLOUR;
	cmd.divisor = 2;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, P2M_REGION_CREATE, &cmd));
	move(EOPNOTSUPP, BASE_PFN, 1, P2M_POLICY_SUPERPAGE);
	/* Within a range of frames: that of a superpage that is taken. */
	cmd.flags = P2M_REGION_RANGE;
	cmd.divisor = 0;
	cmd.start_mfn = pfn_to_entry(self->fd, SP_PFN(1));
	cmd.end_mfn = cmd.start_mfn + SP;
	ASSERT_EQ(-1, ioctl(self->fd, P2M_REGION_CREATE, &cmd));
	EXPECT_TRUE(errno == EADDRNOTAVAIL || errno == ENOMEM);
	/* And one that is large enough. */
	cmd.start_mfn = 0x1000;
	cmd.end_mfn = info.out_max_mfn;
	ASSERT_EQ(0, ioctl(self->fd, P2M_REGION_CREATE, &cmd));
	EXPECT_TRUE(is_superpage(self->fd, cmd.base_pfn));
	test_cmd_region_destroy(self->fd, cmd.base_pfn);
	cmd.base_pfn = 0;
	cmd.start_mfn = 0;
	cmd.end_mfn = 0;
	cmd.flags = P2M_REGION_NODE;
	ASSERT_EQ(0, ioctl(self->fd, P2M_REGION_CREATE, &cmd));
	EXPECT_TRUE(is_superpage(self->fd, cmd.base_pfn));
	test_cmd_region_destroy(self->fd, cmd.base_pfn);
}

/* A guest has the first pages of one, while it is moved, split and collapsed. */
TEST_F(superpage, kvm_guest_goes_on_in_it)
{
	char *mem = page_at(self, SP_PFN(1));
	struct machine machine;
	const char *reason;
	unsigned int round;
	__u64 before;

	fill_all(self);
	memset(mem, 0, MACHINE_LEN);
	EXPECT_EQ(NR_SP * SP_KIB, huge_kib(self->mem, LEN));
	if (!machine_start(&machine, mem, &reason)) {
		ASSERT_NE(NULL, reason);
		SKIP(return, "%s", reason);
	}
	before = machine_runs(&machine);
	for (round = 0; round < 5; round++) {
		/* As a whole, a part, and as a whole again. */
		EXPECT_EQ(SP, move(0, SP_PFN(1), SP, P2M_POLICY_ANY).out_pages);
		EXPECT_EQ(8, move(0, SP_PFN(1) + 4, 8, P2M_POLICY_ANY).out_pages);
		EXPECT_FALSE(is_superpage(self->fd, SP_PFN(1)));
		EXPECT_EQ(1, collapse(0, SP_PFN(1), SP).out_superpages);
		EXPECT_TRUE(is_superpage(self->fd, SP_PFN(1)));
		exchange(0, SP_PFN(1), SP_PFN(2), SP);
		expect_sound(_metadata, self->fd, NR_PAGES, ANY_NR_PINNED);
	}
	EXPECT_LT(before, machine_runs(&machine));
	EXPECT_TRUE(machine_stop(&machine));
	EXPECT_EQ(SP_PFN(1), first_bad(self, BASE_PFN, SP_PFN(1)));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(1) + 16, END_PFN));
}

/* A dma-buf of a part pins that part only, and shows what is in it. */
TEST_F(superpage, dma_buf_of_a_part_pins_that)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		RANGE(SP_PFN(1) + 500, 40),
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	char *mem;
	__u64 i;

	fill_all(self);
	if (ioctl(self->fd, P2M_DMA_BUF_EXPORT, &cmd)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		SKIP(return, "the kernel has no dma-bufs");
	}
	expect_sound(_metadata, self->fd, NR_PAGES, 40);
	mem = mmap(NULL, 40 * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   cmd.out_fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < 40; i++)
		ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE,
					 tag_of(SP_PFN(1) + 500 + i)));
	EXPECT_EQ(40, move(0, SP_PFN(1), 2 * SP, P2M_POLICY_ANY).out_busy);
	EXPECT_EQ(NR_SP - 2, nr_superpages(self->fd, FIRST_PFN, NR_SP));
	/* It outlives what it was made of. */
	release(0, SP_PFN(1), 2 * SP);
	expect_sound(_metadata, self->fd, NR_PAGES - 2 * SP, 0);
	for (i = 0; i < 40; i++)
		ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE,
					 tag_of(SP_PFN(1) + 500 + i)));
	populate(0, SP_PFN(1), 2 * SP);
	page_fill(mem, 7);
	EXPECT_EQ(P2M_PAGE_SIZE, first_nonzero(page_at(self, SP_PFN(1) + 500),
					       P2M_PAGE_SIZE));
	munmap(mem, 40 * P2M_PAGE_SIZE);
	ASSERT_EQ(0, close(cmd.out_fd));
	EXPECT_EQ(SP, move(0, SP_PFN(1), SP, P2M_POLICY_ANY).out_pages);
}

TEST_F(superpage, touch_takes_all_of_it)
{
	__u64 base = 0, nr = 3 * SP;
	struct p2m_stat stat;
	char *mem;

	ASSERT_EQ(0, _test_cmd_region_create(self->fd, P2M_REGION_ON_DEMAND,
					     P2M_POLICY_SUPERPAGE, nr, 0, &base));
	mem = map_pages(self->fd, base, nr);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES, stat.out_frames);
	mem[(SP + 9) * P2M_PAGE_SIZE] = 1;
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES + SP, stat.out_frames);
	EXPECT_TRUE(is_superpage(self->fd, base + SP));
	EXPECT_EQ(SP_KIB, huge_kib(mem, nr * P2M_PAGE_SIZE));
	/* Only what is missing comes, then page by page. */
	release(0, base + SP + 20, 2);
	EXPECT_EQ(0, touch_read(mem + (SP + 20) * P2M_PAGE_SIZE));
	EXPECT_EQ(1, mem[(SP + 9) * P2M_PAGE_SIZE]);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(NR_PAGES + SP - 1, stat.out_frames);
	EXPECT_EQ(2 * SP + 1, populate(0, base, nr).out_pages);
	EXPECT_EQ(2, nr_superpages(self->fd, base, 3));
	munmap(mem, nr * P2M_PAGE_SIZE);
	test_cmd_region_destroy(self->fd, base);
}

/* Tables of a space in a superpage: its owner can't write to them. */
TEST_F(superpage, tables_of_a_space_can_be_in_it)
{
	struct p2m_space_create space = {
		.size = sizeof(space),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = SP_PFN(1) + 50,
		.pool_pages = 20,
	};
	struct p2m_space_destroy destroy = { .size = sizeof(destroy) };
	struct p2m_space_map map = {
		.size = sizeof(map),
		.address = 0x40000000,
		.pfn = SP_PFN(2),
		.nr_pages = SP,
		.pte_flags = P2M_PTE_RW,
		.max_level = 1,
	};
	__u64 mfn;

	fill_all(self);
	ASSERT_EQ(0, ioctl(self->fd, P2M_SPACE_CREATE, &space));
	map.space = space.out_space;
	ASSERT_EQ(0, ioctl(self->fd, P2M_SPACE_MAP, &map));
	EXPECT_EQ(SIGBUS, touch_write(page_at(self, space.out_root_pfn), 1));
	/* Others of the same superpage are as before, and so is what is mapped. */
	EXPECT_EQ(SP_PFN(1) + 50, first_bad(self, BASE_PFN, SP_PFN(1) + 50));
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(1) + 70, END_PFN));
	EXPECT_EQ((NR_SP - 1) * SP_KIB, huge_kib(self->mem, LEN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	EXPECT_EQ(SP, move(0, SP_PFN(1), SP, P2M_POLICY_ANY).out_busy);
	EXPECT_EQ(1, move(0, SP_PFN(1), 1, P2M_POLICY_ANY).out_busy);
	release(EBUSY, SP_PFN(2), 1);
	mfn = pfn_to_entry(self->fd, SP_PFN(2));
	EXPECT_EQ(SP, move(0, SP_PFN(2), SP, P2M_POLICY_ANY).out_pages);
	EXPECT_NE(mfn, pfn_to_entry(self->fd, SP_PFN(2)));
	EXPECT_EQ(1, move(0, SP_PFN(2) + 3, 1, P2M_POLICY_ANY).out_pages);
	EXPECT_EQ(END_PFN, first_bad(self, SP_PFN(2), END_PFN));
	expect_sound(_metadata, self->fd, NR_PAGES, 0);
	destroy.space = space.out_space;
	ASSERT_EQ(0, ioctl(self->fd, P2M_SPACE_DESTROY, &destroy));
	EXPECT_EQ(0, touch_write(page_at(self, space.out_root_pfn), 1));
}

/*
 * The n-th thing that can fail does, for each n: no content is lost, and nothing
 * is half done.
 */
static bool fails_at(int fd, __u64 nth)
{
	struct p2m_fail_nth cmd = { .size = sizeof(cmd), .nth = nth };

	return !ioctl(fd, P2M_FAIL_NTH, &cmd) && (nth || !cmd.out_left);
}

static int run_create(int fd)
{
	__u64 base = 0;
	int ret = _test_cmd_region_create(fd, 0, P2M_POLICY_SUPERPAGE,
					  2 * SP + 7, 0, &base);

	return ret ?: _test_cmd_region_destroy(fd, base);
}

static int run_collapse(int fd)
{
	struct p2m_move move = {
		.size = sizeof(move),
		RANGE(SP_PFN(0), SP),
		.policy = P2M_POLICY_SCATTER,
	};
	struct p2m_collapse cmd = { .size = sizeof(cmd), RANGE(SP_PFN(0), SP) };

	if (ioctl(fd, P2M_MOVE, &move))
		return -1;
	return ioctl(fd, P2M_COLLAPSE, &cmd);
}

static int run_release(int fd)
{
	struct p2m_release cmd = {
		.size = sizeof(cmd), RANGE(SP_PFN(1) - 3, 6),
	};
	struct p2m_populate populate = {
		.size = sizeof(populate), RANGE(SP_PFN(1) - 3, 6),
	};

	return ioctl(fd, P2M_RELEASE, &cmd) ?: ioctl(fd, P2M_POPULATE, &populate);
}

static int run_move(int fd)
{
	struct p2m_move cmd = {
		.size = sizeof(cmd), RANGE(SP_PFN(0) - 5, 2 * SP),
	};

	return ioctl(fd, P2M_MOVE, &cmd);
}

static int run_exchange(int fd)
{
	struct p2m_exchange cmd = {
		.size = sizeof(cmd),
		.a_pfn = SP_PFN(0), .b_pfn = SP_PFN(2), .nr_pages = SP,
	};

	return ioctl(fd, P2M_EXCHANGE, &cmd);
}

static int run_exchange_parts(int fd)
{
	struct p2m_exchange cmd = {
		.size = sizeof(cmd),
		.a_pfn = SP_PFN(0) + 3, .b_pfn = SP_PFN(2) - 4, .nr_pages = 8,
	};

	return ioctl(fd, P2M_EXCHANGE, &cmd);
}

static int run_contiguous(int fd)
{
	struct p2m_contiguous cmd = {
		.size = sizeof(cmd), .start_pfn = SP_PFN(2) - 64, .order = 7,
	};

	return ioctl(fd, P2M_CONTIGUOUS, &cmd);
}

static int run_evacuate(int fd)
{
	struct p2m_evacuate cmd = {
		.size = sizeof(cmd),
		.start_mfn = pfn_to_entry(fd, SP_PFN(1)),
		.nr_frames = 10,
	};

	return ioctl(fd, P2M_EVACUATE, &cmd);
}

static int run_touch(int fd)
{
	__u64 base = 0;
	char *mem;
	int sig;

	if (_test_cmd_region_create(fd, P2M_REGION_ON_DEMAND,
				    P2M_POLICY_SUPERPAGE, SP, 0, &base))
		return -1;
	mem = map_pages(fd, base, SP);
	sig = mem == MAP_FAILED ? SIGBUS : touch_write(mem, 1);
	munmap(mem, SP * P2M_PAGE_SIZE);
	return _test_cmd_region_destroy(fd, base) ?: sig;
}

static int run_view(int fd)
{
	const char *view = map_window(fd, P2M_OFFSET_P2M, END_PFN * 8);
	int sig;

	if (view == MAP_FAILED)
		return -1;
	sig = touch_read(view + SP_PFN(3) * 8);
	munmap((void *)view, END_PFN * 8);
	return sig;
}

TEST_F_TIMEOUT(superpage, failures_undo_what_they_began, 300)
{
	static const struct {
		const char *name;
		int (*run)(int fd);
		/* Contents may go. */
		__u64 pfn, nr;
	} commands[] = {
		{ "create", run_create, 0, 0 },
		{ "collapse", run_collapse, 0, 0 },
		{ "release", run_release, SP_PFN(1) - 3, 6 },
		{ "move", run_move, 0, 0 },
		{ "exchange", run_exchange, 0, 0 },
		{ "exchange parts", run_exchange_parts, 0, 0 },
		{ "contiguous", run_contiguous, 0, 0 },
		{ "evacuate", run_evacuate, 0, 0 },
		{ "touch", run_touch, 0, 0 },
		{ "view", run_view, 0, 0 },
	};
	__u64 nth, pfn;
	size_t i;

	fill_all(self);
	for (i = 0; i < ARRAY_LEN(commands); i++) {
		/* Only every few of those that are like each other. */
		for (nth = 1;; nth += nth < 12 ? 1 : nth / 3) {
			bool has_failed;

			collapse(0, BASE_PFN, NR_PAGES);
			ASSERT_TRUE(fails_at(self->fd, nth));
			commands[i].run(self->fd);
			has_failed = fails_at(self->fd, 0);
			expect_sound(_metadata, self->fd,
				     audit_of(self->fd).out_frames, 0);
			/* Nothing is mapped there any more, or what it was. */
			for (pfn = 0; pfn < commands[i].nr; pfn++) {
				populate(0, commands[i].pfn + pfn, 1);
				page_fill(page_at(self, commands[i].pfn + pfn),
					  tag_of(commands[i].pfn + pfn));
			}
			ASSERT_EQ(END_PFN, first_bad(self, BASE_PFN, END_PFN))
				TH_LOG("%s, %llu", commands[i].name, nth);
			if (!has_failed)
				break;
		}
		EXPECT_LT(1, nth) TH_LOG("%s", commands[i].name);
	}
}

/* A region of 1 GiB: what the tables cost, and that it's mapped by 512 entries. */
TEST_F_TIMEOUT(superpage, large_region_costs_no_tables, 240)
{
	const __u64 nr = 512 * SP;
	__u64 before = nr_tables(self->fd), base = 0, i;
	char *mem;

	if (_test_cmd_region_create(self->fd, 0, P2M_POLICY_SUPERPAGE, nr, 0,
				    &base)) {
		ASSERT_TRUE(errno == ENOMEM || errno == EADDRNOTAVAIL ||
			    errno == EDQUOT);
		SKIP(return, "no GiB in pieces of 2 MiB");
	}
	EXPECT_LE((nr_tables(self->fd) - before) * 4096 * 10, nr);
	mem = map_pages(self->fd, base, nr);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < nr; i += SP)
		mem[(i + i / SP) * P2M_PAGE_SIZE] = 1;
	EXPECT_EQ(nr * P2M_PAGE_SIZE / 1024,
		  huge_kib(mem, nr * P2M_PAGE_SIZE));
	munmap(mem, nr * P2M_PAGE_SIZE);
	test_cmd_region_destroy(self->fd, base);
}

/* What a program does with its memory while all of it changes. */
#define NR_HAMMERS 4
#define STRESS_SP 128ULL /* 256 MiB */
#define STRESS_LEN (STRESS_SP * SP * P2M_PAGE_SIZE)

struct hammer {
	char *mem;
	const atomic_bool *stop;
	__u64 seed, nr_rounds, nr_wrong;
};

/*
 * Each page has a number and its complement, which is the page's alone, and each
 * thread has the pages that are its own modulo the number of threads: it checks one
 * and writes it anew.
 */
static void *hammer(void *arg)
{
	struct hammer *hammer = arg;
	__u64 state = hammer->seed;
	__u64 nr = STRESS_SP * SP / NR_HAMMERS;
	__u64 *seen = calloc(nr, sizeof(*seen));

	while (seen && !atomic_load(hammer->stop)) {
		__u64 at = next_random(&state) % nr;
		__u64 page = at * NR_HAMMERS + hammer->seed;
		volatile __u64 *words = (__u64 *)(hammer->mem +
						  page * P2M_PAGE_SIZE);
		size_t offset = next_random(&state) % 510;

		if (words[0] != seen[at] || words[511] != ~seen[at] * !!seen[at])
			hammer->nr_wrong++;
		/* All between is the same number. */
		if (seen[at] && words[1 + offset] != seen[at])
			hammer->nr_wrong++;
		seen[at] = next_random(&state) | 1;
		for (offset = 0; offset < 511; offset++)
			words[offset] = seen[at];
		words[511] = ~seen[at];
		hammer->nr_rounds++;
	}
	free(seen);
	return NULL;
}

TEST_F_TIMEOUT(superpage, nothing_is_lost_while_all_frames_change, 300)
{
	__u64 base = 0, nr = STRESS_SP * SP, round, state = 7, free_kib;
	struct hammer hammers[NR_HAMMERS];
	pthread_t threads[NR_HAMMERS];
	atomic_bool stop = false;
	__u64 end, nr_rounds = 0;
	char *mem;
	size_t i;

	free_kib = meminfo_kib("MemFree");
	if (_test_cmd_region_create(self->fd, 0, P2M_POLICY_SUPERPAGE, nr, 0,
				    &base)) {
		ASSERT_TRUE(errno == ENOMEM || errno == EADDRNOTAVAIL);
		SKIP(return, "no 256 MiB in pieces of 2 MiB");
	}
	mem = map_pages(self->fd, base, nr);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < NR_HAMMERS; i++) {
		hammers[i] = (struct hammer){ mem, &stop, i, 0, 0 };
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, hammer,
					    &hammers[i]));
	}
	end = now_ms() + 15000;
	for (round = 0; round < 3 || now_ms() < end; round++) {
		__u64 sp = base + next_random(&state) % (STRESS_SP - 2) * SP;
		__u64 mfn;

		/* Whole ones, and parts of them. */
		move(0, base, nr, P2M_POLICY_ANY);
		move(0, sp + 9, 700, P2M_POLICY_ANY);
		sp = base + next_random(&state) % (STRESS_SP - 2) * SP;
		move(0, sp, 2 * SP, P2M_POLICY_SCATTER);
		/* 16 MiB of the machine around a frame. */
		mfn = window_of(self->fd, sp + 5, 4096);
		evacuate(0, mfn, 4096, 0);
		exchange(0, base + 3 * SP, base + 64 * SP, 32 * SP);
		exchange(0, base + 7, base + 100 * SP + 99, SP + 1);
		sp = base + next_random(&state) % (STRESS_SP - 2) * SP;
		{
			struct p2m_contiguous cmd = {
				.size = sizeof(cmd), .start_pfn = sp + 256,
				.order = 9,
			};
			int ret = ioctl(self->fd, P2M_CONTIGUOUS, &cmd);

			ASSERT_TRUE(!ret || errno == EADDRNOTAVAIL ||
				    errno == ENOMEM || errno == EBUSY);
		}
		{
			struct p2m_collapse cmd = {
				.size = sizeof(cmd), RANGE(base, nr),
			};
			int ret = ioctl(self->fd, P2M_COLLAPSE, &cmd);

			ASSERT_TRUE(!ret || errno == EADDRNOTAVAIL ||
				    errno == ENOMEM);
		}
		expect_sound(_metadata, self->fd, NR_PAGES + nr, ANY_NR_PINNED);
	}
	atomic_store(&stop, true);
	for (i = 0; i < NR_HAMMERS; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		EXPECT_EQ(0, hammers[i].nr_wrong);
		EXPECT_LT(0, hammers[i].nr_rounds);
		nr_rounds += hammers[i].nr_rounds;
	}
	TH_LOG("%llu rounds of changes, %llu of writes", round, nr_rounds);
	expect_sound(_metadata, self->fd, NR_PAGES + nr, 0);
	munmap(mem, STRESS_LEN);
	test_cmd_region_destroy(self->fd, base);
	/* All of it is the system's again, but for what others took: an eighth. */
	EXPECT_LT(free_kib - STRESS_LEN / 1024 / 8, meminfo_kib("MemFree"));
}

TEST_HARNESS_MAIN
