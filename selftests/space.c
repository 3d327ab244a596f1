// SPDX-License-Identifier: GPL-2.0
/*
 * Spaces: page tables of a domain, built through a backend. Four judges have to
 * agree about what is in them: P2M_SPACE_WALK, P2M_SPACE_DUMP, a walker of ours
 * that reads the raw tables (walker.c), and the processor.
 *
 * The tests are the same for all backends and both numbers of levels. Where
 * backends differ by design, it is the difference that is tested.
 */
#include <cpuid.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"
#include "walker.h"

/*
 * The pseudo-physical space:
 *
 *	POOL	of tables, in scattered frames
 *	LOW	scattered frames, with a hole of HOLE_PAGES behind LOW_PAGES
 *	HIGH	scattered frames
 *	RUN	runs of 2 MiB that can be large leaves
 */
#define POOL_PFN 3ULL
#define POOL_PAGES 200ULL
#define LOW_PFN 1000ULL
#define LOW_PAGES 600ULL
#define HOLE_PFN (LOW_PFN + LOW_PAGES)
#define HOLE_PAGES 64ULL
#define HIGH_PFN (HOLE_PFN + HOLE_PAGES)
#define HIGH_PAGES 436ULL
#define RUN_PFN 4096ULL
#define NR_RUNS 3ULL
#define RUN_PAGES (NR_RUNS * 512)
#define END_PFN (RUN_PFN + RUN_PAGES)

/* Where tests map things. */
#define ADDRESS 0x40000000ULL
#define PAGES(n) ((__u64)(n) * P2M_PAGE_SIZE)
#define LARGE_PAGES 512ULL
#define GIANT_PAGES (512 * LARGE_PAGES)

/* Bits of entries that no flag of p2m.h names. */
#define PTE_P (1ULL << 0)
#define PTE_PS (1ULL << 7)
#define PTE_PAT_LARGE (1ULL << 12)
#define PTE_AD (P2M_PTE_ACCESSED | P2M_PTE_DIRTY)

/* What links of tables allow: everything. */
#define LINK_FLAGS (PTE_P | P2M_PTE_RW | P2M_PTE_USER)

enum backend { NATIVE, P2M, LOSSLESS };

static const char *const backend_names[] = { "native", "p2m", "p2m-lossless" };

/* The commands. What they report is in the structure, also after an error. */
static int _test_cmd_space_destroy(int fd, __u32 space)
{
	struct p2m_space_destroy cmd = { .size = sizeof(cmd), .space = space };

	return ioctl(fd, P2M_SPACE_DESTROY, &cmd);
}

static int _test_cmd_space_map(int fd, __u32 space, __u64 address, __u64 pfn,
			       __u64 nr_pages, __u64 pte_flags, __u32 max_level)
{
	struct p2m_space_map cmd = {
		.size = sizeof(cmd),
		.space = space,
		.max_level = max_level,
		.address = address,
		.pfn = pfn,
		.nr_pages = nr_pages,
		.pte_flags = pte_flags,
	};

	return ioctl(fd, P2M_SPACE_MAP, &cmd);
}

static int _test_cmd_space_unmap(int fd, __u32 space, __u32 flags,
				 __u64 address, __u64 nr_pages,
				 struct p2m_space_unmap *cmd)
{
	*cmd = (struct p2m_space_unmap){
		.size = sizeof(*cmd),
		.flags = flags,
		.space = space,
		.address = address,
		.nr_pages = nr_pages,
		.out_pages = ~0ULL,
	};
	return ioctl(fd, P2M_SPACE_UNMAP, cmd);
}

static int _test_cmd_space_change(int fd, __u32 space, __u32 flags,
				  __u64 address, __u64 nr_pages, __u64 value,
				  struct p2m_space_change *cmd)
{
	*cmd = (struct p2m_space_change){
		.size = sizeof(*cmd),
		.flags = flags,
		.space = space,
		.address = address,
		.nr_pages = nr_pages,
		.value = value,
		.out_pages = ~0ULL,
	};
	return ioctl(fd, P2M_SPACE_CHANGE, cmd);
}

static int _test_cmd_space_walk(int fd, __u32 space, __u64 address,
				struct p2m_space_walk *cmd)
{
	*cmd = (struct p2m_space_walk){
		.size = sizeof(*cmd),
		.space = space,
		.address = address,
	};
	return ioctl(fd, P2M_SPACE_WALK, cmd);
}

static int _test_cmd_space_dump(int fd, __u32 space, __u64 address,
				struct p2m_span *spans, __u32 nr,
				struct p2m_space_dump *cmd)
{
	*cmd = (struct p2m_space_dump){
		.size = sizeof(*cmd),
		.space = space,
		.nr = nr,
		.address = address,
		.spans = (uintptr_t)spans,
	};
	return ioctl(fd, P2M_SPACE_DUMP, cmd);
}

static int _test_cmd_space_access(int fd, __u32 space, __u32 op, __u64 address,
				  __u64 *buffer, __u32 nr_words,
				  struct p2m_space_access *cmd)
{
	*cmd = (struct p2m_space_access){
		.size = sizeof(*cmd),
		.space = space,
		.op = op,
		.address = address,
		.buffer = (uintptr_t)buffer,
		.nr_words = nr_words,
	};
	return ioctl(fd, P2M_SPACE_ACCESS, cmd);
}

#define test_cmd_space_destroy(...) \
	ASSERT_EQ(0, _test_cmd_space_destroy(__VA_ARGS__))
#define test_err_space_destroy(err, ...) \
	EXPECT_ERRNO(err, _test_cmd_space_destroy(__VA_ARGS__))
#define test_cmd_space_map(...) ASSERT_EQ(0, _test_cmd_space_map(__VA_ARGS__))
#define test_err_space_map(err, ...) \
	EXPECT_ERRNO(err, _test_cmd_space_map(__VA_ARGS__))
/* How many pages were unmapped, or changed. */
#define OUT_PAGES(...)                                \
	({                                            \
		__u64 __pages = __VA_ARGS__.out_pages; \
		__pages;                              \
	})
#define test_cmd_space_unmap(...)                                      \
	OUT_PAGES(TEST_CMD(p2m_space_unmap, _test_cmd_space_unmap,     \
			   __VA_ARGS__))
#define test_err_space_unmap(err, ...)                                 \
	OUT_PAGES(TEST_ERR(err, p2m_space_unmap, _test_cmd_space_unmap, \
			   __VA_ARGS__))
#define test_cmd_space_change(...)                                     \
	OUT_PAGES(TEST_CMD(p2m_space_change, _test_cmd_space_change,   \
			   __VA_ARGS__))
#define test_err_space_change(err, ...)                                \
	OUT_PAGES(TEST_ERR(err, p2m_space_change, _test_cmd_space_change, \
			   __VA_ARGS__))
#define test_cmd_space_walk(...) \
	TEST_CMD(p2m_space_walk, _test_cmd_space_walk, __VA_ARGS__)
#define test_err_space_walk(err, ...) \
	TEST_ERR(err, p2m_space_walk, _test_cmd_space_walk, __VA_ARGS__)
#define test_cmd_space_dump(...) \
	TEST_CMD(p2m_space_dump, _test_cmd_space_dump, __VA_ARGS__)
#define test_err_space_dump(err, ...) \
	TEST_ERR(err, p2m_space_dump, _test_cmd_space_dump, __VA_ARGS__)
#define test_cmd_space_access(...) \
	TEST_CMD(p2m_space_access, _test_cmd_space_access, __VA_ARGS__)
#define test_err_space_access(err, ...) \
	TEST_ERR(err, p2m_space_access, _test_cmd_space_access, __VA_ARGS__)

/* Commands of which only the outcome matters here. */
static int release_pages(int fd, __u64 start_pfn, __u64 nr_pages)
{
	struct p2m_release cmd;

	return _test_cmd_release(fd, start_pfn, nr_pages, &cmd);
}

static int make_contiguous(int fd, __u64 start_pfn, __u32 order)
{
	struct p2m_contiguous cmd;

	return _test_cmd_contiguous(fd, start_pfn, order, 0, &cmd);
}

static int move_pages(int fd, __u64 start_pfn, __u64 nr_pages, __u32 policy,
		      struct p2m_move *cmd)
{
	return _test_cmd_move(fd, start_pfn, nr_pages, policy,
			      policy == P2M_POLICY_SCATTER, cmd);
}

#define test_cmd_move_by(...) TEST_CMD(p2m_move, move_pages, __VA_ARGS__)

/* The processor has five levels in use: the kernel hides the flag if it hasn't. */
static bool cpu_has_five_levels(void)
{
	char line[8192];
	bool found = false;
	FILE *file = fopen("/proc/cpuinfo", "r");

	if (!file)
		abort();
	while (!found && fgets(line, sizeof(line), file))
		found = !strncmp(line, "flags", 5) && strstr(line, " la57");
	fclose(file);
	return found;
}

/*
 * Emulated by QEMU. It walks only where the program goes, while real processors
 * may mark what they only thought of as accessed.
 */
static bool cpu_is_emulated(void)
{
	unsigned int eax, name[3];

	__cpuid(0x40000000, eax, name[0], name[1], name[2]);
	return !memcmp(name, "TCGTCGTCGTCG", sizeof(name));
}

/* A domain with a space. */
struct domain {
	int fd;
	enum backend backend;
	struct p2m_space_create created;
	__u32 space;
	/* All of the pseudo-physical space, for writing. */
	char *mem;
	struct walker walker;
	bool has_cpu;
	/* The processor has looked, and set Accessed bits on its way. */
	bool is_marked;
	/* Addresses from there on are in another half, or not for this processor. */
	__u64 end;
	__u64 cpu_end;
	__u64 total_pages;
};

/* Fills in all regions, and no space yet. */
static void domain_open(struct __test_metadata *_metadata, struct domain *d)
{
	struct p2m_info info;
	__u64 i;

	*d = (struct domain){ .fd = -1 };
	d->total_pages = total_pages();
	d->fd = p2m_open();
	ASSERT_LE(0, d->fd);
	test_cmd_info(d->fd, &info);
	ASSERT_TRUE(info.out_features & P2M_FEATURE_SPACES);
	d->has_cpu = info.out_features & P2M_FEATURE_CPU_ACCESS;
	test_cmd_region_create_fixed(d->fd, P2M_POLICY_SCATTER, POOL_PAGES, 1,
				     POOL_PFN);
	test_cmd_region_create_fixed(d->fd, P2M_POLICY_SCATTER, LOW_PAGES, 2,
				     LOW_PFN);
	test_cmd_region_create_fixed(d->fd, P2M_POLICY_SCATTER, HIGH_PAGES, 3,
				     HIGH_PFN);
	test_cmd_region_create_fixed(d->fd, P2M_POLICY_ANY, RUN_PAGES, 0,
				     RUN_PFN);
	for (i = 0; i < NR_RUNS; i++)
		ASSERT_EQ(0, make_contiguous(d->fd, RUN_PFN + 512 * i, 9));
	d->mem = map_pages(d->fd, 0, END_PFN);
	ASSERT_NE(MAP_FAILED, d->mem);
}

static void domain_add_space(struct __test_metadata *_metadata,
			     struct domain *d, enum backend kind,
			     __u32 nr_levels, __u64 pool_pages)
{
	bool cpu_has_five = cpu_has_five_levels();

	d->backend = kind;
	d->created = test_cmd_space_create(d->fd, backend_names[kind],
					   nr_levels, POOL_PFN, pool_pages);
	d->space = d->created.out_space;
	d->end = nr_levels == 5 ? 1ULL << 56 : 1ULL << 47;
	d->cpu_end = cpu_has_five ? d->end : 1ULL << 47;
	ASSERT_EQ(0, walker_init(&d->walker, d->fd, &d->created));
}

static void domain_close(struct __test_metadata *_metadata, struct domain *d)
{
	walker_exit(&d->walker);
	munmap(d->mem, PAGES(END_PFN));
	EXPECT_EQ(0, close(d->fd));
	EXPECT_EQ(d->total_pages, total_pages());
}

/* The processor can be asked about the space of a domain. */
static bool domain_has_cpu(const struct domain *d)
{
	return d->has_cpu && d->backend != NATIVE;
}

static bool is_backed(const struct domain *d, __u64 pfn)
{
	return pfn < d->walker.end_pfn &&
	       d->walker.p2m[pfn] != P2M_ENTRY_INVALID;
}

/* A page's content that no other has. */
static void fill_all(const struct domain *d)
{
	__u64 pfn;

	for (pfn = LOW_PFN; pfn < END_PFN; pfn++)
		if (is_backed(d, pfn))
			page_fill(d->mem + PAGES(pfn), pfn);
}

/* The PFN of the first page that isn't as fill_all() left it. */
static __u64 first_mismatch(const struct domain *d)
{
	__u64 pfn;

	for (pfn = LOW_PFN; pfn < END_PFN; pfn++)
		if (is_backed(d, pfn) &&
		    !page_matches(d->mem + PAGES(pfn), pfn))
			break;
	return pfn;
}

static __u64 fnv1a(const void *mem, size_t len)
{
	const unsigned char *byte = mem;
	__u64 hash = 0xcbf29ce484222325ULL;

	while (len--)
		hash = (hash ^ *byte++) * 0x100000001b3ULL;
	return hash;
}

/* Spans, to be freed. */
struct dump {
	struct p2m_span *spans;
	size_t nr;
};

/* All of a space, with room for so many spans at a time. */
static struct dump dump_by(struct __test_metadata *_metadata, int fd,
			   __u32 space, __u32 room)
{
	struct dump dump = { .nr = 0 };
	struct p2m_space_dump cmd = { .out_next = 0 };

	do {
		dump.spans = reallocarray(dump.spans, dump.nr + room,
					  sizeof(*dump.spans));
		ASSERT_NE(NULL, dump.spans);
		cmd = test_cmd_space_dump(fd, space, cmd.out_next,
					  dump.spans + dump.nr, room);
		ASSERT_LE(cmd.out_nr, room);
		/* It ends where the room does, or where the space does. */
		if (cmd.out_next)
			ASSERT_EQ(room, cmd.out_nr);
		dump.nr += cmd.out_nr;
	} while (cmd.out_next);
	return dump;
}

static struct dump dump_all(struct __test_metadata *_metadata, int fd,
			    __u32 space)
{
	return dump_by(_metadata, fd, space, 500);
}

static void expect_same_dump(struct __test_metadata *_metadata,
			     const struct dump *a, const struct dump *b)
{
	size_t i;

	for (i = 0; i < a->nr && i < b->nr; i++)
		ASSERT_EQ(0, memcmp(&a->spans[i], &b->spans[i],
				    sizeof(*a->spans)))
			TH_LOG("span %zu: %llx+%llx -> %llx %llx %llx %u, and %llx+%llx -> %llx %llx %llx %u",
			       i, a->spans[i].address, a->spans[i].nr_pages,
			       a->spans[i].pfn, a->spans[i].mfn,
			       a->spans[i].pte_flags, a->spans[i].level,
			       b->spans[i].address, b->spans[i].nr_pages,
			       b->spans[i].pfn, b->spans[i].mfn,
			       b->spans[i].pte_flags, b->spans[i].level);
	ASSERT_EQ(a->nr, b->nr);
}

/* The raw tables, and all that the kernel tells about them, at one moment. */
struct image {
	__u64 *pool;
	struct dump dump;
};

static struct image image_take(struct __test_metadata *_metadata,
			       const struct domain *d)
{
	const size_t len = PAGES(d->created.pool_pages);
	struct image image = { .pool = malloc(len) };

	ASSERT_NE(NULL, image.pool);
	memcpy(image.pool, d->walker.pool, len);
	image.dump = dump_all(_metadata, d->fd, d->space);
	return image;
}

/* Nothing has changed since. Frees the image. */
static void expect_image(struct __test_metadata *_metadata,
			 const struct domain *d, struct image *image)
{
	struct image now = image_take(_metadata, d);

	EXPECT_EQ(0, memcmp(image->pool, now.pool, PAGES(d->created.pool_pages)));
	expect_same_dump(_metadata, &image->dump, &now.dump);
	free(image->pool);
	free(image->dump.spans);
	free(now.pool);
	free(now.dump.spans);
}

/* The kernel walks as the walker does. */
static void expect_walk(struct __test_metadata *_metadata,
			const struct domain *d, __u64 address)
{
	struct p2m_space_walk cmd =
		test_cmd_space_walk(d->fd, d->space, address);
	struct walker_walk walk;
	unsigned int i;

	walker_walk(&d->walker, address, &walk);
	ASSERT_FALSE(walk.is_malformed) TH_LOG("address %llx", address);
	ASSERT_EQ(walk.nr_steps, cmd.out_nr_steps)
		TH_LOG("address %llx", address);
	for (i = 0; i < walk.nr_steps; i++) {
		const struct walker_step *ours = &walk.steps[i];
		const struct p2m_step *step = &cmd.out_steps[i];

		ASSERT_EQ(ours->raw, step->raw)
			TH_LOG("address %llx", address);
		ASSERT_EQ(ours->val, step->val)
			TH_LOG("address %llx", address);
		ASSERT_EQ(ours->table_pfn, step->table_pfn);
		ASSERT_EQ(d->walker.p2m[ours->table_pfn], step->table_mfn);
		ASSERT_EQ(ours->level, step->level);
		ASSERT_EQ(ours->index, step->index);
	}
	for (; i < P2M_MAX_STEPS; i++) {
		ASSERT_EQ(0, cmd.out_steps[i].raw);
		ASSERT_EQ(0, cmd.out_steps[i].table_pfn);
	}
}

#define BUFFER_PAGES 16ULL
static __u64 buffer[PAGES(BUFFER_PAGES) / sizeof(__u64)];

static void expect_cpu_fault(struct __test_metadata *_metadata,
			     const struct domain *d, __u32 op, __u64 address,
			     __u32 fault)
{
	__u64 word = 0;
	struct p2m_space_access cmd = test_cmd_space_access(
		d->fd, d->space, op, address, &word, 1);

	ASSERT_EQ(fault, cmd.out_fault) TH_LOG("address %llx", address);
	ASSERT_EQ(0, cmd.out_words);
	ASSERT_EQ(address, cmd.out_fault_address);
	ASSERT_EQ(fnv1a(NULL, 0), cmd.out_checksum);
}

/*
 * The processor reads what is at the PFNs, wherever it may, and faults right
 * behind. It takes its time, so of the middle of a long range it reads a quarter,
 * another one each time.
 */
static void expect_cpu(struct __test_metadata *_metadata, struct domain *d,
		       const struct dump *dump)
{
	static unsigned int turn;
	__u64 start, address = 0, end = 0, pages, pfn, i;
	size_t nr = 0, first;

	d->is_marked = true;
	turn++;
	while (nr < dump->nr) {
		/* Consecutive addresses. */
		first = nr;
		address = dump->spans[first].address;
		for (end = address; nr < dump->nr; nr++) {
			const struct p2m_span *span = &dump->spans[nr];

			if (span->address != end || !(span->pte_flags & PTE_P))
				break;
			end += PAGES(span->nr_pages);
		}
		if (end == address) {
			/* Not present: lossless. */
			if (end < d->cpu_end)
				expect_cpu_fault(_metadata, d, P2M_ACCESS_READ,
						 end, P2M_FAULT_RAISED);
			nr++;
			continue;
		}
		if (end > d->cpu_end) {
			test_err_space_access(ERANGE, d->fd, d->space,
					      P2M_ACCESS_READ, end - 8, buffer,
					      1);
			continue;
		}
		start = address;
		for (; address < end; address += PAGES(pages)) {
			struct p2m_space_access cmd;

			pages = (end - address) / P2M_PAGE_SIZE;
			if (pages > BUFFER_PAGES)
				pages = BUFFER_PAGES;
			if (address != start && address + PAGES(pages) < end &&
			    (address / PAGES(BUFFER_PAGES) + turn) % 4)
				continue;
			cmd = test_cmd_space_access(d->fd, d->space,
						    P2M_ACCESS_READ, address,
						    buffer, 512 * pages);
			ASSERT_EQ(0, cmd.out_fault)
				TH_LOG("address %llx", cmd.out_fault_address);
			ASSERT_EQ(512 * pages, cmd.out_words);
			for (i = 0; i < pages; i++) {
				__u64 at = address + PAGES(i);

				while (at >= dump->spans[first].address +
						     PAGES(dump->spans[first].nr_pages))
					first++;
				pfn = dump->spans[first].pfn +
				      (at - dump->spans[first].address) /
					      P2M_PAGE_SIZE;
				ASSERT_EQ(0, memcmp(buffer + 512 * i,
						    d->mem + PAGES(pfn),
						    P2M_PAGE_SIZE))
					TH_LOG("address %llx, PFN %llu", at, pfn);
			}
		}
		if (end < d->cpu_end && nr < dump->nr &&
		    dump->spans[nr].address == end)
			continue;
		if (end < d->cpu_end)
			expect_cpu_fault(_metadata, d, P2M_ACCESS_READ, end,
					 P2M_FAULT_RAISED);
	}
}

/* All judges agree. Returns how many tables there are. */
static size_t expect_agreement(struct __test_metadata *_metadata,
			       struct domain *d)
{
	static const __u32 rooms[] = { 255, 256, 257, 1000, 1, 2, 7 };
	static unsigned int turn;
	struct dump ours, theirs;
	size_t nr_tables, nr_rooms, i;

	ASSERT_EQ(0, walker_refresh(&d->walker));
	ours.spans = walker_dump(&d->walker, &ours.nr, &nr_tables);
	ASSERT_NE(NULL, ours.spans);
	/* Not thousands of them one by one. */
	nr_rooms = ours.nr > 100 ? 4 : ARRAY_LEN(rooms);
	theirs = dump_by(_metadata, d->fd, d->space, rooms[turn++ % nr_rooms]);
	expect_same_dump(_metadata, &ours, &theirs);
	expect_walk(_metadata, d, 0);
	expect_walk(_metadata, d, d->end - 1);
	for (i = 0; i < ours.nr; i++) {
		const struct p2m_span *span = &ours.spans[i];
		__u64 end = span->address + PAGES(span->nr_pages);

		/* Many spans of a page: not all of their ends. */
		if (ours.nr > 100 && i % 16)
			continue;
		if (span->address)
			expect_walk(_metadata, d, span->address - 1);
		expect_walk(_metadata, d, span->address);
		expect_walk(_metadata, d, end - 1);
		if (end < d->end)
			expect_walk(_metadata, d, end);
	}
	EXPECT_EQ(0, test_cmd_audit(d->fd).out_spaces_bad);
	if (domain_has_cpu(d))
		expect_cpu(_metadata, d, &ours);
	free(ours.spans);
	free(theirs.spans);
	return nr_tables;
}

/* What is at an address, and how: the level, or -1 if nothing is. */
static int level_at(const struct domain *d, __u64 address,
		    struct walker_walk *walk)
{
	walker_walk(&d->walker, address, walk);
	if (walk->is_malformed)
		return -2;
	if (!walk->is_present)
		return -1;
	return walk->steps[walk->nr_steps - 1].level;
}

static __u64 raw_at(const struct domain *d, __u64 address)
{
	struct walker_walk walk;

	walker_walk(&d->walker, address, &walk);
	return walk.steps[walk.nr_steps - 1].raw;
}

/* Pages of a range are mapped so. */
static void expect_mapped(struct __test_metadata *_metadata,
			  const struct domain *d, __u64 address, __u64 pfn,
			  __u64 nr_pages, __u64 pte_flags, int level)
{
	const __u64 known = d->is_marked ? pte_flags | P2M_PTE_DIRTY : PTE_AD;
	struct walker_walk walk;
	__u64 i;

	for (i = 0; i < nr_pages; i++) {
		ASSERT_EQ(level, level_at(d, address + PAGES(i), &walk))
			TH_LOG("page %llu", i);
		ASSERT_EQ(pfn + i, walk.pfn) TH_LOG("page %llu", i);
		ASSERT_EQ(d->backend == NATIVE ? pfn + i :
						 d->walker.p2m[pfn + i] &
							 P2M_ENTRY_MFN_MASK,
			  walk.frame);
		ASSERT_EQ(!!(pte_flags & P2M_PTE_RW), walk.is_writable);
		ASSERT_EQ(!!(pte_flags & P2M_PTE_USER), walk.is_user);
		ASSERT_EQ(!(pte_flags & P2M_PTE_NX), walk.is_executable);
		ASSERT_EQ(!!(pte_flags & P2M_PTE_PAT) * 4 +
				  !!(pte_flags & P2M_PTE_PCD) * 2 +
				  !!(pte_flags & P2M_PTE_PWT),
			  walk.memory_type);
		ASSERT_EQ(pte_flags & PTE_AD & known,
			  walk.steps[walk.nr_steps - 1].raw & PTE_AD & known);
	}
}

static void expect_unmapped(struct __test_metadata *_metadata,
			    const struct domain *d, __u64 address,
			    __u64 nr_pages)
{
	struct walker_walk walk;
	__u64 i;

	for (i = 0; i < nr_pages; i++) {
		ASSERT_EQ(-1, level_at(d, address + PAGES(i), &walk))
			TH_LOG("page %llu", i);
		ASSERT_EQ(0, walk.steps[walk.nr_steps - 1].raw);
	}
}

/* How many tables there are. */
static size_t nr_tables(struct __test_metadata *_metadata,
			const struct domain *d)
{
	size_t nr, nr_spans;
	void *spans;

	spans = walker_dump(&d->walker, &nr_spans, &nr);
	ASSERT_NE(NULL, spans);
	free(spans);
	return nr;
}

FIXTURE(space)
{
	struct domain d;
};

FIXTURE_VARIANT(space)
{
	enum backend backend;
	__u32 nr_levels;
};

#define SPACE_VARIANT(name, b, n) \
	FIXTURE_VARIANT_ADD(space, name) { .backend = b, .nr_levels = n }
SPACE_VARIANT(native_4, NATIVE, 4);
SPACE_VARIANT(native_5, NATIVE, 5);
SPACE_VARIANT(p2m_4, P2M, 4);
SPACE_VARIANT(p2m_5, P2M, 5);
SPACE_VARIANT(lossless_4, LOSSLESS, 4);
SPACE_VARIANT(lossless_5, LOSSLESS, 5);

FIXTURE_SETUP(space)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	domain_open(_metadata, &self->d);
	domain_add_space(_metadata, &self->d, variant->backend,
			 variant->nr_levels, POOL_PAGES);
}

FIXTURE_TEARDOWN(space)
{
	domain_close(_metadata, &self->d);
}

/* What the processor is asked about. Native tables aren't for processors. */
FIXTURE(cpu)
{
	struct domain d;
};

FIXTURE_VARIANT(cpu)
{
	enum backend backend;
	__u32 nr_levels;
};

#define CPU_VARIANT(name, b, n) \
	FIXTURE_VARIANT_ADD(cpu, name) { .backend = b, .nr_levels = n }
CPU_VARIANT(p2m_4, P2M, 4);
CPU_VARIANT(p2m_5, P2M, 5);
CPU_VARIANT(lossless_4, LOSSLESS, 4);
CPU_VARIANT(lossless_5, LOSSLESS, 5);

FIXTURE_SETUP(cpu)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	domain_open(_metadata, &self->d);
	domain_add_space(_metadata, &self->d, variant->backend,
			 variant->nr_levels, POOL_PAGES);
	if (!self->d.has_cpu)
		SKIP(return, "no P2M_FEATURE_CPU_ACCESS here");
}

FIXTURE_TEARDOWN(cpu)
{
	domain_close(_metadata, &self->d);
}

TEST_F(space, is_empty_at_first)
{
	struct domain *d = &self->d;
	struct p2m_space_unmap unmap;

	EXPECT_EQ(1, expect_agreement(_metadata, d));
	EXPECT_LE(POOL_PFN, d->created.out_root_pfn);
	EXPECT_GT(POOL_PFN + POOL_PAGES, d->created.out_root_pfn);
	EXPECT_EQ(PAGES(POOL_PAGES),
		  first_nonzero(d->walker.pool, PAGES(POOL_PAGES)));
	ASSERT_EQ(0, _test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0,
					   &unmap));
	EXPECT_EQ(0, unmap.out_pages);
	EXPECT_EQ(0, test_err_space_unmap(ENOENT, d->fd, d->space, 0, ADDRESS,
					  10));
	if (domain_has_cpu(d))
		expect_cpu_fault(_metadata, d, P2M_ACCESS_WRITE, ADDRESS,
				 P2M_FAULT_RAISED | P2M_FAULT_WRITE);
}

/* All flags at all places that matter, at the ends of the lower half, too. */
TEST_F(space, maps_what_it_is_told)
{
	static const __u64 flags[] = {
		0, P2M_PTE_RW, P2M_PTE_USER, P2M_PTE_NX, PTE_AD,
		P2M_PTE_ACCESSED, P2M_PTE_RW | P2M_PTE_USER | P2M_PTE_NX | PTE_AD,
	};
	struct domain *d = &self->d;
	const __u64 addresses[] = {
		0, ADDRESS - PAGES(4), (1ULL << 39) - PAGES(4),
		(1ULL << 46) - PAGES(4), d->end - PAGES(7),
	};
	size_t i, j;

	fill_all(d);
	for (i = 0; i < ARRAY_LEN(flags); i++) {
		__u64 pfn = LOW_PFN + 7 * i;

		for (j = 0; j < ARRAY_LEN(addresses); j++)
			test_cmd_space_map(d->fd, d->space, addresses[j],
					   pfn + j, 7, flags[i], 0);
		ASSERT_EQ(0, walker_refresh(&d->walker));
		for (j = 0; j < ARRAY_LEN(addresses); j++)
			expect_mapped(_metadata, d, addresses[j], pfn + j, 7,
				      flags[i], 0);
		expect_agreement(_metadata, d);
		EXPECT_EQ(7 * ARRAY_LEN(addresses),
			  test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0,
					       0));
	}
	EXPECT_EQ(1, expect_agreement(_metadata, d));
}

/* Links allow everything, and leaves have exactly the bits that were asked for. */
TEST_F(space, raw_words_are_those_of_the_manual)
{
	struct domain *d = &self->d;
	const __u64 flags = P2M_PTE_RW | P2M_PTE_PWT | P2M_PTE_PCD | P2M_PTE_PAT |
			    P2M_PTE_NX | P2M_PTE_DIRTY;
	struct walker_walk walk;
	__u64 pfn = LOW_PFN + 5, frame;
	unsigned int i;

	test_cmd_space_map(d->fd, d->space, ADDRESS, pfn, 1, flags, 0);
	ASSERT_EQ(0, level_at(d, ADDRESS, &walk));
	ASSERT_EQ(variant->nr_levels, walk.nr_steps);
	for (i = 0; i < walk.nr_steps; i++) {
		const struct walker_step *step = &walk.steps[i];
		bool is_leaf = i == walk.nr_steps - 1;

		frame = is_leaf ? pfn : walk.steps[i + 1].table_pfn;
		if (d->backend != NATIVE)
			frame = pfn_to_entry(d->fd, frame);
		EXPECT_EQ(PAGES(frame) | PTE_P | (is_leaf ? flags : LINK_FLAGS),
			  step->raw);
	}
	expect_mapped(_metadata, d, ADDRESS, pfn, 1, flags, 0);
}

/* The difference between the backends: a page that isn't there, in a range. */
TEST_F(space, unbacked_page_in_a_range)
{
	struct domain *d = &self->d;
	const __u64 before = 10, after = 20, flags = P2M_PTE_RW | P2M_PTE_NX;
	const __u64 nr = before + HOLE_PAGES + after;
	const __u64 hole = ADDRESS + PAGES(before);
	struct walker_walk walk;
	__u64 i, raw;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, HOLE_PFN - before, nr, flags,
			   0);
	expect_mapped(_metadata, d, ADDRESS, HOLE_PFN - before, before, flags, 0);
	expect_mapped(_metadata, d, hole + PAGES(HOLE_PAGES), HIGH_PFN, after,
		      flags, 0);
	for (i = 0; i < HOLE_PAGES; i++) {
		int level = level_at(d, hole + PAGES(i), &walk);

		ASSERT_EQ(d->walker.nr_levels, walk.nr_steps);
		raw = walk.steps[walk.nr_steps - 1].raw;
		switch (d->backend) {
		case NATIVE:
			ASSERT_EQ(0, level);
			ASSERT_EQ(PAGES(HOLE_PFN + i) | flags | PTE_P, raw);
			break;
		case P2M:
			ASSERT_EQ(-1, level);
			ASSERT_EQ(0, raw);
			break;
		case LOSSLESS:
			ASSERT_EQ(-1, level);
			ASSERT_EQ(PAGES(HOLE_PFN + i) | flags, raw);
			break;
		}
	}
	expect_agreement(_metadata, d);

	if (d->backend == P2M) {
		/* Nothing is mapped there, so there is room, and nothing to change. */
		EXPECT_EQ(0, test_err_space_change(ENOENT, d->fd, d->space, 0,
						   ADDRESS, nr, 0));
		test_cmd_space_map(d->fd, d->space, hole, LOW_PFN, HOLE_PAGES,
				   0, 0);
		expect_mapped(_metadata, d, hole, LOW_PFN, HOLE_PAGES, 0, 0);
		expect_agreement(_metadata, d);
		EXPECT_EQ(HOLE_PAGES,
			  test_cmd_space_unmap(d->fd, d->space, 0, hole,
					       HOLE_PAGES));
		EXPECT_EQ(0, test_err_space_unmap(ENOENT, d->fd, d->space, 0,
						  hole, HOLE_PAGES));
		EXPECT_EQ(before + after,
			  test_cmd_space_unmap(d->fd, d->space, 0, ADDRESS, nr));
		return;
	}
	test_err_space_map(EEXIST, d->fd, d->space, hole, LOW_PFN, 1, 0, 0);
	/* Something comes to the PFNs. */
	test_cmd_region_create_fixed(d->fd, P2M_POLICY_SCATTER, HOLE_PAGES, 0,
				     HOLE_PFN);
	expect_agreement(_metadata, d);
	EXPECT_EQ(d->backend == NATIVE ? 0 : -1, level_at(d, hole, &walk));
	/* To be changed at all is enough. */
	EXPECT_EQ(nr, test_cmd_space_change(d->fd, d->space, 0, ADDRESS, nr,
					    P2M_PTE_USER));
	ASSERT_EQ(0, walker_refresh(&d->walker));
	expect_mapped(_metadata, d, ADDRESS, HOLE_PFN - before, nr, P2M_PTE_USER,
		      0);
	expect_agreement(_metadata, d);
	test_err_region_destroy(EBUSY, d->fd, HOLE_PFN);
	EXPECT_EQ(nr, test_cmd_space_unmap(d->fd, d->space, 0, ADDRESS, nr));
	test_cmd_region_destroy(d->fd, HOLE_PFN);
}

TEST_F(space, change_keeps_frames_and_what_the_processor_has_set)
{
	struct domain *d = &self->d;
	const __u64 nr = 600;
	__u64 i;

	fill_all(d);
	for (i = 0; i < nr; i++)
		test_cmd_space_map(d->fd, d->space, ADDRESS + PAGES(i),
				   LOW_PFN + i, 1,
				   P2M_PTE_RW |
					   (i % 2 ? P2M_PTE_ACCESSED : 0) |
					   (i % 3 ? P2M_PTE_DIRTY : 0),
				   0);
	EXPECT_EQ(nr - 2, test_cmd_space_change(d->fd, d->space, 0,
						ADDRESS + PAGES(1), nr - 2,
						P2M_PTE_USER | P2M_PTE_NX));
	for (i = 0; i < nr; i++)
		expect_mapped(_metadata, d, ADDRESS + PAGES(i), LOW_PFN + i, 1,
			      (i && i < nr - 1 ? P2M_PTE_USER | P2M_PTE_NX :
						 P2M_PTE_RW) |
				      (i % 2 ? P2M_PTE_ACCESSED : 0) |
				      (i % 3 ? P2M_PTE_DIRTY : 0),
			      0);
	expect_agreement(_metadata, d);
}

TEST_F(space, change_to_other_frames_keeps_flags)
{
	struct domain *d = &self->d;
	const __u64 flags = P2M_PTE_RW | P2M_PTE_NX | P2M_PTE_DIRTY;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 30, flags, 0);
	EXPECT_EQ(10, test_cmd_space_change(d->fd, d->space, P2M_CHANGE_FRAMES,
					    ADDRESS + PAGES(10), 10, HIGH_PFN));
	expect_mapped(_metadata, d, ADDRESS, LOW_PFN, 10, flags, 0);
	expect_mapped(_metadata, d, ADDRESS + PAGES(10), HIGH_PFN, 10, flags, 0);
	expect_mapped(_metadata, d, ADDRESS + PAGES(20), LOW_PFN + 20, 10, flags,
		      0);
	expect_agreement(_metadata, d);
}

/* Each way to overlap, by one page and by many. */
TEST_F(space, overlap_is_EEXIST_and_changes_nothing)
{
	static const struct {
		int first, nr;
	} overlaps[] = {
		{ 0, 1 }, { -1, 2 }, { 9, 1 }, { 9, 2 }, { -5, 6 }, { -5, 30 },
		{ 3, 3 }, { 0, 10 }, { -600, 601 }, { 9, 600 },
	};
	struct domain *d = &self->d;
	struct image image;
	size_t i;

	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 10, 0, 0);
	for (i = 0; i < ARRAY_LEN(overlaps); i++) {
		image = image_take(_metadata, d);
		test_err_space_map(EEXIST, d->fd, d->space,
				   ADDRESS + PAGES(overlaps[i].first), RUN_PFN,
				   overlaps[i].nr, P2M_PTE_RW, i % 3);
		expect_image(_metadata, d, &image);
	}
	/* Next to it there is room. */
	test_cmd_space_map(d->fd, d->space, ADDRESS - PAGES(5), LOW_PFN, 5, 0, 0);
	test_cmd_space_map(d->fd, d->space, ADDRESS + PAGES(10), LOW_PFN, 5, 0,
			   0);
	expect_mapped(_metadata, d, ADDRESS, LOW_PFN, 10, 0, 0);
	expect_agreement(_metadata, d);
}

TEST_F(space, unmap_counts_what_was_mapped)
{
	struct domain *d = &self->d;
	__u64 i;

	/* Every third page. */
	for (i = 0; i < 300; i += 3)
		test_cmd_space_map(d->fd, d->space, ADDRESS - PAGES(150 - i),
				   LOW_PFN + i, 1, 0, 0);
	EXPECT_EQ(0, test_err_space_unmap(ENOENT, d->fd, d->space, 0,
					  ADDRESS - PAGES(149), 2));
	EXPECT_EQ(1, test_cmd_space_unmap(d->fd, d->space, 0,
					  ADDRESS - PAGES(149), 3));
	EXPECT_EQ(20, test_cmd_space_unmap(d->fd, d->space, 0,
					   ADDRESS - PAGES(30), 60));
	expect_agreement(_metadata, d);
	EXPECT_EQ(79, test_cmd_space_unmap(d->fd, d->space, 0, 0,
					   d->end / P2M_PAGE_SIZE));
	EXPECT_EQ(1, expect_agreement(_metadata, d));
	EXPECT_EQ(0, test_err_space_unmap(ENOENT, d->fd, d->space, 0, 0,
					  d->end / P2M_PAGE_SIZE));
	test_cmd_space_map(d->fd, d->space, ADDRESS - PAGES(5), LOW_PFN, 10, 0,
			   0);
	EXPECT_EQ(10, test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0));
	EXPECT_EQ(0, test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0));
}

TEST_F(space, change_over_a_hole_is_ENOENT_and_changes_nothing)
{
	struct domain *d = &self->d;
	const __u64 address = ADDRESS - PAGES(10);
	struct image image;
	__u64 hole;

	for (hole = 0; hole < 20; hole += 19 - hole % 2 * 10) {
		test_cmd_space_map(d->fd, d->space, address, LOW_PFN, 20,
				   P2M_PTE_RW, 0);
		ASSERT_EQ(1, test_cmd_space_unmap(d->fd, d->space, 0,
						  address + PAGES(hole), 1));
		image = image_take(_metadata, d);
		EXPECT_EQ(0, test_err_space_change(ENOENT, d->fd, d->space, 0,
						   address, 20, P2M_PTE_USER));
		EXPECT_EQ(0, test_err_space_change(ENOENT, d->fd, d->space,
						   P2M_CHANGE_FRAMES, address,
						   20, HIGH_PFN));
		expect_image(_metadata, d, &image);
		ASSERT_EQ(19, test_cmd_space_unmap(d->fd, d->space,
						   P2M_UNMAP_ALL, 0, 0));
	}
}

TEST_F(space, arguments_that_make_no_sense)
{
	struct domain *d = &self->d;
	const __u64 bad_flags[] = { 1ULL << 0, 1ULL << 8, 1ULL << 9, 1ULL << 12,
				    1ULL << 52, 1ULL << 62 };
	const __u64 last = d->end - P2M_PAGE_SIZE;
	struct p2m_span spans[2];
	struct image image;
	size_t i;

	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 4, P2M_PTE_RW, 0);
	image = image_take(_metadata, d);
	for (i = 0; i < ARRAY_LEN(bad_flags); i++) {
		test_err_space_map(EOPNOTSUPP, d->fd, d->space, 0, LOW_PFN, 1,
				   bad_flags[i], 0);
		EXPECT_EQ(0, test_err_space_change(EOPNOTSUPP, d->fd, d->space, 0,
						   ADDRESS, 1, bad_flags[i]));
	}
	test_err_space_map(EINVAL, d->fd, d->space, 8, LOW_PFN, 1, 0, 0);
	test_err_space_map(EINVAL, d->fd, d->space, 0, LOW_PFN, 0, 0, 0);
	test_err_space_map(EINVAL, d->fd, d->space, 0, LOW_PFN, 1, 0, 3);
	test_err_space_map(EOVERFLOW, d->fd, d->space, last, LOW_PFN, 2, 0, 0);
	test_err_space_map(EOVERFLOW, d->fd, d->space, d->end, LOW_PFN, 1, 0, 0);
	test_err_space_map(EOVERFLOW, d->fd, d->space, -P2M_PAGE_SIZE, LOW_PFN, 1,
			   0, 0);
	test_err_space_map(EOVERFLOW, d->fd, d->space, 0, P2M_MAX_PFN, 1, 0, 0);
	test_err_space_map(EOVERFLOW, d->fd, d->space, 0, P2M_MAX_PFN - 1, 2, 0,
			   0);
	test_err_space_map(EOVERFLOW, d->fd, d->space, 0, LOW_PFN, ~0ULL, 0, 0);

	test_err_space_unmap(EINVAL, d->fd, d->space, 0, ADDRESS + 8, 1);
	test_err_space_unmap(EINVAL, d->fd, d->space, 0, ADDRESS, 0);
	test_err_space_unmap(EINVAL, d->fd, d->space, P2M_UNMAP_ALL, ADDRESS, 0);
	test_err_space_unmap(EINVAL, d->fd, d->space, P2M_UNMAP_ALL, 0, 1);
	test_err_space_unmap(EOPNOTSUPP, d->fd, d->space, 2, ADDRESS, 1);
	test_err_space_unmap(EOVERFLOW, d->fd, d->space, 0, last, 2);
	test_err_space_unmap(EOVERFLOW, d->fd, d->space, 0, ADDRESS, ~0ULL);

	test_err_space_change(EINVAL, d->fd, d->space, 0, ADDRESS + 8, 1, 0);
	test_err_space_change(EINVAL, d->fd, d->space, 0, ADDRESS, 0, 0);
	test_err_space_change(EOPNOTSUPP, d->fd, d->space, 2, ADDRESS, 1, 0);
	test_err_space_change(EOVERFLOW, d->fd, d->space, 0, last, 2, 0);
	test_err_space_change(EOVERFLOW, d->fd, d->space, P2M_CHANGE_FRAMES,
			      ADDRESS, 2, P2M_MAX_PFN - 1);
	test_err_space_change(EOVERFLOW, d->fd, d->space, P2M_CHANGE_FRAMES,
			      ADDRESS, 1, P2M_MAX_PFN);

	test_err_space_walk(EOVERFLOW, d->fd, d->space, d->end);
	test_err_space_walk(EOVERFLOW, d->fd, d->space, ~0ULL);
	test_err_space_dump(EINVAL, d->fd, d->space, 8, spans, 1);
	test_err_space_dump(EINVAL, d->fd, d->space, 0, spans, 0);
	expect_image(_metadata, d, &image);

	if (!domain_has_cpu(d)) {
		if (d->has_cpu)
			test_err_space_access(EOPNOTSUPP, d->fd, d->space,
					      P2M_ACCESS_READ, ADDRESS, buffer,
					      1);
		return;
	}
	test_err_space_access(EINVAL, d->fd, d->space, P2M_ACCESS_READ,
			      ADDRESS + 4, buffer, 1);
	test_err_space_access(EINVAL, d->fd, d->space, P2M_ACCESS_READ, ADDRESS,
			      buffer, 0);
	test_err_space_access(EINVAL, d->fd, d->space, P2M_ACCESS_CHECKSUM,
			      ADDRESS, NULL, P2M_MAX_ACCESS_WORDS + 1);
	test_err_space_access(EINVAL, d->fd, d->space, P2M_ACCESS_CHECKSUM + 1,
			      ADDRESS, buffer, 1);
	test_err_space_access(EFAULT, d->fd, d->space, P2M_ACCESS_READ, ADDRESS,
			      NULL, 1);
}

TEST_F(space, no_such_space_is_ENOENT)
{
	struct domain *d = &self->d;
	const __u32 numbers[] = { 0, d->space + 1, ~0U };
	int other = p2m_open();
	size_t i;

	ASSERT_LE(0, other);
	for (i = 0; i < ARRAY_LEN(numbers) + 1; i++) {
		/* Or the number of somebody else's. */
		bool is_other = i == ARRAY_LEN(numbers);
		int fd = is_other ? other : d->fd;
		__u32 space = is_other ? d->space : numbers[i];
		struct p2m_span span;

		test_err_space_destroy(ENOENT, fd, space);
		test_err_space_map(ENOENT, fd, space, ADDRESS, LOW_PFN, 1, 0, 0);
		test_err_space_unmap(ENOENT, fd, space, P2M_UNMAP_ALL, 0, 0);
		test_err_space_change(ENOENT, fd, space, 0, ADDRESS, 1, 0);
		test_err_space_walk(ENOENT, fd, space, ADDRESS);
		test_err_space_dump(ENOENT, fd, space, 0, &span, 1);
		if (d->has_cpu)
			test_err_space_access(ENOENT, fd, space, P2M_ACCESS_READ,
					      ADDRESS, buffer, 1);
	}
	close(other);
	test_cmd_space_destroy(d->fd, d->space);
	test_err_space_walk(ENOENT, d->fd, d->space, ADDRESS);
	test_err_space_destroy(ENOENT, d->fd, d->space);
}

/*
 * 600 pages over a border of tables need the root and, of each level below it, a
 * table for each side of the border that is one of that level.
 */
TEST_F(space, too_small_a_pool_is_ENOSPC_and_undone)
{
	struct domain *d = &self->d;
	const __u64 address = ADDRESS - PAGES(300), nr = 600;
	/* ADDRESS is a border of 1 GiB: two tables of levels 0 and 1. */
	const __u64 needed = variant->nr_levels + 2;
	struct image image;
	__u64 pool;

	for (pool = 1; pool <= needed; pool++) {
		test_cmd_space_destroy(d->fd, d->space);
		walker_exit(&d->walker);
		domain_add_space(_metadata, d, variant->backend,
				 variant->nr_levels, pool);
		if (pool == needed)
			break;
		image = image_take(_metadata, d);
		test_err_space_map(ENOSPC, d->fd, d->space, address, LOW_PFN, nr,
				   P2M_PTE_RW, 0);
		expect_image(_metadata, d, &image);
		EXPECT_EQ(1, expect_agreement(_metadata, d));
	}
	test_cmd_space_map(d->fd, d->space, address, LOW_PFN, nr, P2M_PTE_RW, 0);
	EXPECT_EQ(needed, expect_agreement(_metadata, d));
	/* Where there are tables, there is room. Elsewhere, there is none. */
	test_cmd_space_map(d->fd, d->space, address - PAGES(50), LOW_PFN, 50, 0,
			   0);
	image = image_take(_metadata, d);
	test_err_space_map(ENOSPC, d->fd, d->space, address - PAGES(512), LOW_PFN,
			   400, 0, 0);
	expect_image(_metadata, d, &image);
	test_err_space_map(ENOSPC, d->fd, d->space, d->end - PAGES(1), LOW_PFN, 1,
			   0, 0);
	expect_agreement(_metadata, d);
}

/* The same tables again and again, and the pages are free between. */
TEST_F(space, empty_tables_go_back_to_the_pool)
{
	struct domain *d = &self->d;
	const __u64 needed = variant->nr_levels;
	__u64 i, pfn;

	test_cmd_space_destroy(d->fd, d->space);
	walker_exit(&d->walker);
	domain_add_space(_metadata, d, variant->backend, variant->nr_levels,
			 needed);
	for (i = 0; i < 50; i++) {
		__u64 address = i << 40 | i << 31 | i << 22;

		test_cmd_space_map(d->fd, d->space, address, LOW_PFN, 1, 0, 0);
		test_err_space_map(ENOSPC, d->fd, d->space, address + (1 << 30),
				   LOW_PFN, 1, 0, 0);
		EXPECT_EQ(needed, nr_tables(_metadata, d));
		EXPECT_EQ(1, test_cmd_space_unmap(d->fd, d->space, 0, address,
						  1));
		EXPECT_EQ(1, nr_tables(_metadata, d));
		EXPECT_EQ(PAGES(needed),
			  first_nonzero(d->walker.pool, PAGES(needed)));
	}
	/* All but the root are the owner's again. */
	for (pfn = POOL_PFN; pfn < POOL_PFN + needed; pfn++) {
		bool is_protected = d->backend != NATIVE &&
				    pfn == d->created.out_root_pfn;

		EXPECT_EQ(is_protected ? SIGBUS : 0,
			  touch_write(d->mem + PAGES(pfn), 0))
			TH_LOG("PFN %llu", pfn);
	}
}

TEST_F(space, pools_are_of_populated_pages_of_no_other_pool)
{
	const char *name = backend_names[variant->backend];
	struct domain *d = &self->d;
	const __u32 nr = variant->nr_levels;
	struct p2m_space_create cmd;
	struct image image = image_take(_metadata, d);

	test_err_space_create(EEXIST, d->fd, name, nr, POOL_PFN, 1);
	test_err_space_create(EEXIST, d->fd, name, nr, POOL_PFN + POOL_PAGES - 1,
			      1);
	test_err_space_create(EFAULT, d->fd, name, nr, POOL_PFN + POOL_PAGES, 1);
	test_err_space_create(EFAULT, d->fd, name, nr, HOLE_PFN - 1, 2);
	test_err_space_create(EFAULT, d->fd, name, nr, HIGH_PFN - 1, 2);
	test_err_space_create(EFAULT, d->fd, name, nr, END_PFN, 1);
	test_err_space_create(EINVAL, d->fd, name, nr, LOW_PFN, 0);
	test_err_space_create(EOVERFLOW, d->fd, name, nr, P2M_MAX_PFN, 1);
	test_err_space_create(EOVERFLOW, d->fd, name, nr, LOW_PFN, ~0ULL);
	expect_image(_metadata, d, &image);
	/* The ends of a pool are where they are. */
	cmd = test_cmd_space_create(d->fd, name, nr, LOW_PFN + 5, 5);
	EXPECT_NE(d->space, cmd.out_space);
	test_err_space_create(EEXIST, d->fd, name, nr, LOW_PFN + 4, 2);
	test_err_space_create(EEXIST, d->fd, name, nr, LOW_PFN + 9, 2);
	test_cmd_space_create(d->fd, name, nr, LOW_PFN + 4, 1);
	test_cmd_space_create(d->fd, name, nr, LOW_PFN + 10, 1);
	/* One that failed, and one that was destroyed, left nothing claimed. */
	test_cmd_space_create(d->fd, name, nr, HOLE_PFN - 1, 1);
	test_cmd_space_destroy(d->fd, cmd.out_space);
	test_cmd_space_create(d->fd, name, nr, LOW_PFN + 6, 1);
	test_cmd_space_create(d->fd, name, nr, LOW_PFN + 9, 1);
}

/* Somebody else has a reference to pages: a pipe. */
struct pin {
	int fds[2];
};

static int pin(struct pin *pin, const struct domain *d, __u64 pfn)
{
	struct iovec iov = {
		.iov_base = d->mem + PAGES(pfn), .iov_len = P2M_PAGE_SIZE,
	};

	if (pipe2(pin->fds, O_CLOEXEC))
		return -1;
	return vmsplice(pin->fds[1], &iov, 1, 0) == P2M_PAGE_SIZE ? 0 : -1;
}

static void unpin(struct pin *pin)
{
	close(pin->fds[0]);
	close(pin->fds[1]);
}

/* Who has pinned a page could go on writing to it. */
TEST_F(space, pinned_page_is_no_table)
{
	const char *name = backend_names[variant->backend];
	struct domain *d = &self->d;
	struct p2m_space_create cmd;
	struct image image;
	struct pin pinned;
	__u64 victim;

	/* The root. */
	ASSERT_EQ(0, pin(&pinned, d, LOW_PFN));
	if (variant->backend == NATIVE) {
		cmd = test_cmd_space_create(d->fd, name, variant->nr_levels,
					    LOW_PFN, 1);
		test_cmd_space_destroy(d->fd, cmd.out_space);
	} else {
		test_err_space_create(EBUSY, d->fd, name, variant->nr_levels,
				      LOW_PFN, 1);
	}
	unpin(&pinned);
	test_cmd_space_create(d->fd, name, variant->nr_levels, LOW_PFN, 1);

	/* Others, each of those that are taken for a map of two leaf tables. */
	for (victim = 1; victim < 1 + variant->nr_levels; victim++) {
		image = image_take(_metadata, d);
		ASSERT_EQ(0, pin(&pinned, d, POOL_PFN + victim));
		if (variant->backend == NATIVE) {
			test_cmd_space_map(d->fd, d->space,
					   ADDRESS + PAGES(512 - 30), HIGH_PFN,
					   60, 0, 0);
			ASSERT_EQ(60, test_cmd_space_unmap(d->fd, d->space,
							   P2M_UNMAP_ALL, 0,
							   0));
		} else {
			test_err_space_map(EBUSY, d->fd, d->space,
					   ADDRESS + PAGES(512 - 30), HIGH_PFN,
					   60, 0, 0);
		}
		unpin(&pinned);
		expect_image(_metadata, d, &image);
	}
	test_cmd_space_map(d->fd, d->space, ADDRESS + PAGES(512 - 30), HIGH_PFN,
			   60, 0, 0);
	EXPECT_EQ(variant->nr_levels + 1, expect_agreement(_metadata, d));
}

TEST_F(space, tables_are_not_for_writing)
{
	struct domain *d = &self->d;
	const int expected = variant->backend == NATIVE ? 0 : SIGBUS;
	__u64 pfns[WALKER_MAX_LEVELS];
	struct walker_walk walk;
	struct image image;
	unsigned int i;
	char *early, *late;

	/* Mapped before there are tables, and afterwards. */
	early = mmap(NULL, PAGES(POOL_PAGES), PROT_READ, MAP_SHARED, d->fd,
		     PAGES(POOL_PFN));
	ASSERT_NE(MAP_FAILED, early);
	for (i = 0; i < POOL_PAGES; i++)
		ASSERT_EQ(0, touch_read(early + PAGES(i)));
	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 1, 0, 0);
	late = map_pages(d->fd, POOL_PFN, POOL_PAGES);
	ASSERT_NE(MAP_FAILED, late);
	ASSERT_EQ(0, level_at(d, ADDRESS, &walk));
	for (i = 0; i < walk.nr_steps; i++)
		pfns[i] = walk.steps[i].table_pfn;
	image = image_take(_metadata, d);

	for (i = 0; i < walk.nr_steps; i++) {
		char *tables[] = {
			d->mem + PAGES(pfns[i]),
			late + PAGES(pfns[i] - POOL_PFN),
		};
		char *readable = early + PAGES(pfns[i] - POOL_PFN);
		__u64 raw = walk.steps[i].raw;
		size_t j;

		EXPECT_EQ(0, touch_read(readable));
		EXPECT_EQ(raw, ((__u64 *)readable)[walk.steps[i].index]);
		EXPECT_EQ(SIGSEGV, touch_write(readable, 1));
		for (j = 0; j < ARRAY_LEN(tables); j++) {
			EXPECT_EQ(expected, touch_read(tables[j]));
			/* Entry 511, which is in nobody's way, and not present. */
			EXPECT_EQ(expected, touch_write(tables[j] + 4088, 2));
			if (!expected)
				EXPECT_EQ(0, touch_write(tables[j] + 4088, 0));
		}
	}
	expect_image(_metadata, d, &image);

	/* What was mapped for reading doesn't become writable by a trick. */
	ASSERT_EQ(0, mprotect(early, PAGES(POOL_PAGES), PROT_READ | PROT_WRITE));
	for (i = 0; i < walk.nr_steps; i++) {
		char *table = early + PAGES(pfns[i] - POOL_PFN);

		EXPECT_EQ(expected, touch_write(table + 4088, 0));
		EXPECT_EQ(expected, touch_read(table));
	}
	ASSERT_EQ(0, mprotect(early, PAGES(POOL_PAGES), PROT_READ));
	for (i = 0; i < walk.nr_steps; i++)
		EXPECT_EQ(0, touch_read(early + PAGES(pfns[i] - POOL_PFN)));
	expect_agreement(_metadata, d);

	/* Its pages are memory again when the space is gone. */
	test_cmd_space_destroy(d->fd, d->space);
	for (i = 0; i < POOL_PAGES; i++) {
		EXPECT_EQ(0, touch_write(late + PAGES(i), 1));
		EXPECT_EQ(0, touch_write(d->mem + PAGES(POOL_PFN + i), 0));
	}
	EXPECT_EQ(PAGES(POOL_PAGES), first_nonzero(late, PAGES(POOL_PAGES)));
	munmap(early, PAGES(POOL_PAGES));
	munmap(late, PAGES(POOL_PAGES));
}

struct toucher {
	const char *page;
	bool stop;
};

static void *touch_again_and_again(void *arg)
{
	struct toucher *toucher = arg;

	while (!__atomic_load_n(&toucher->stop, __ATOMIC_RELAXED))
		touch_read(toucher->page);
	return NULL;
}

/* Nor by a fault in the middle of it: who reads maps the page as fast as it goes. */
TEST_F(space, tables_do_not_become_writable_by_a_race)
{
	struct domain *d = &self->d;
	struct iovec local = { .iov_base = buffer, .iov_len = 8 };
	struct toucher toucher = {};
	struct iovec remote;
	pthread_t thread;
	char *root;
	int i;

	if (variant->backend == NATIVE)
		SKIP(return, "its owner may write to native tables");
	root = mmap(NULL, P2M_PAGE_SIZE, PROT_READ, MAP_SHARED, d->fd,
		    PAGES(d->created.out_root_pfn));
	ASSERT_NE(MAP_FAILED, root);
	toucher.page = root;
	/* Entry 511, which is in nobody's way. */
	remote = (struct iovec){ .iov_base = root + 4088, .iov_len = 8 };
	buffer[0] = 0;
	ASSERT_EQ(0, pthread_create(&thread, NULL, touch_again_and_again,
				    &toucher));
	for (i = 0; i < 1000; i++) {
		ssize_t written;

		if (mprotect(root, P2M_PAGE_SIZE, PROT_READ | PROT_WRITE))
			break;
		written = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
		EXPECT_EQ(-1, written) TH_LOG("in round %d", i);
		if (written != -1 || mprotect(root, P2M_PAGE_SIZE, PROT_READ))
			break;
	}
	EXPECT_EQ(1000, i);
	__atomic_store_n(&toucher.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	munmap(root, P2M_PAGE_SIZE);
}

/* Nor can the kernel be asked to write there. */
TEST_F(space, tables_are_not_for_system_calls_to_write)
{
	struct domain *d = &self->d;
	char *root = d->mem + PAGES(d->created.out_root_pfn);
	struct iovec local = { .iov_base = buffer, .iov_len = 8 };
	struct iovec remote = { .iov_base = root, .iov_len = 8 };
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	bool is_native = variant->backend == NATIVE;

	ASSERT_LE(0, zero);
	buffer[0] = 0;
	EXPECT_EQ(is_native ? 8 : -1, read(zero, root, 8));
	EXPECT_EQ(is_native ? 8 : -1,
		  process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(1, expect_agreement(_metadata, d));
	close(zero);
}

/*
 * The owner of native tables has all entries of each link the next table, which leads
 * to 512 times as many at each level; the last one is full, or empty.
 */
static void check_endless(struct __test_metadata *_metadata, struct domain *d,
			  bool is_full)
{
	struct p2m_span span = {};
	struct p2m_space_dump dump;
	struct p2m_space_unmap unmap;
	struct walker_walk walk;
	unsigned int i, j;
	int status;
	pid_t pid;

	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 1, 0, 0);
	ASSERT_EQ(0, level_at(d, ADDRESS, &walk));
	for (i = 0; i < walk.nr_steps; i++) {
		__u64 *table =
			(__u64 *)(d->mem + PAGES(walk.steps[i].table_pfn));
		bool is_empty = i + 1 == walk.nr_steps && !is_full;

		for (j = 0; j < 512; j++)
			table[j] = is_empty ? 0 : walk.steps[i].raw;
	}

	EXPECT_EQ(LOW_PAGES,
		  test_cmd_move_by(d->fd, LOW_PFN, LOW_PAGES, P2M_POLICY_ANY)
			  .out_pages);
	/* Nobody knows what is behind the end. */
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, RUN_PFN, 1));
	test_err_region_destroy(EBUSY, d->fd, RUN_PFN);
	EXPECT_EQ(0, test_err_space_change(EUCLEAN, d->fd, d->space, 0, 0,
					   d->end / P2M_PAGE_SIZE, 0));
	test_err_space_map(is_full ? EEXIST : EUCLEAN, d->fd, d->space, 0, 0,
			   P2M_MAX_PFN / 2, 0, 0);
	/* Who looks for spans goes on for as long as they may. */
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(_test_cmd_space_dump(d->fd, d->space, 0, &span, 1, &dump) &&
		      errno == EINTR);
	usleep(200000);
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(-1, _test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0,
					    &unmap));
	test_cmd_space_destroy(d->fd, d->space);
	EXPECT_EQ(0, release_pages(d->fd, RUN_PFN, 1));
	test_cmd_region_destroy(d->fd, RUN_PFN);
	test_cmd_region_destroy(d->fd, POOL_PFN);
}

TEST_F(space, full_tables_without_an_end_keep_nobody)
{
	if (variant->backend != NATIVE)
		SKIP(return, "only native tables can be written");
	check_endless(_metadata, &self->d, true);
}

TEST_F(space, empty_tables_without_an_end_keep_nobody)
{
	if (variant->backend != NATIVE)
		SKIP(return, "only native tables can be written");
	check_endless(_metadata, &self->d, false);
}

TEST_F(space, what_is_in_use_stays)
{
	struct domain *d = &self->d;
	struct image image;

	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN + 10, 10, 0, 0);
	test_cmd_space_map(d->fd, d->space, ADDRESS + LARGE_PAGES * P2M_PAGE_SIZE,
			   RUN_PFN, 512, 0, 1);
	image = image_take(_metadata, d);
	test_err_region_destroy(EBUSY, d->fd, LOW_PFN);
	test_err_region_destroy(EBUSY, d->fd, RUN_PFN);
	test_err_region_destroy(EBUSY, d->fd, POOL_PFN);
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, LOW_PFN + 10, 1));
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, LOW_PFN + 19, 1));
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, LOW_PFN, 11));
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, RUN_PFN, 1));
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, RUN_PFN + 511, 2));
	/* Free pages of the pool, too. */
	EXPECT_ERRNO(EBUSY, release_pages(d->fd, POOL_PFN + POOL_PAGES - 1,
					  1));
	expect_image(_metadata, d, &image);
	/* Right beside nothing is in use. */
	EXPECT_EQ(0, release_pages(d->fd, LOW_PFN + 9, 1));
	EXPECT_EQ(0, release_pages(d->fd, LOW_PFN + 20, 1));
	EXPECT_EQ(0, release_pages(d->fd, RUN_PFN + 512, 1));
	expect_agreement(_metadata, d);

	EXPECT_EQ(10 + 512, test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL,
						 0, 0));
	EXPECT_EQ(0, release_pages(d->fd, RUN_PFN, 1));
	test_cmd_region_destroy(d->fd, LOW_PFN);
	test_cmd_region_destroy(d->fd, RUN_PFN);
	test_err_region_destroy(EBUSY, d->fd, POOL_PFN);
	test_cmd_space_destroy(d->fd, d->space);
	test_cmd_region_destroy(d->fd, POOL_PFN);
}

TEST_F(space, is_there_as_long_as_the_domain)
{
	struct domain *d = &self->d;
	__u64 total = total_pages();
	struct walker_walk walk;

	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 10, 0, 0);
	/* Only mappings are left. */
	ASSERT_EQ(0, close(d->fd));
	EXPECT_EQ(total, total_pages());
	EXPECT_EQ(0, level_at(d, ADDRESS, &walk));
	EXPECT_EQ(variant->backend == NATIVE ? 0 : SIGBUS,
		  touch_write(d->mem + PAGES(d->created.out_root_pfn), 0));
	munmap(d->mem, PAGES(END_PFN));
	EXPECT_EQ(total, total_pages());
	walker_exit(&d->walker);
	EXPECT_EQ(d->total_pages, total_pages());
	/* For the teardown. */
	d->fd = p2m_open();
	ASSERT_LE(0, d->fd);
	test_err_space_walk(ENOENT, d->fd, d->space, ADDRESS);
	d->mem = mmap(NULL, PAGES(END_PFN), PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, d->mem);
}

/* The processor. */

TEST_F(cpu, reads_writes_and_sums)
{
	struct domain *d = &self->d;
	const __u64 nr = 50, len = PAGES(nr);
	const __u64 address = ADDRESS - PAGES(20);
	struct p2m_space_access cmd;
	__u64 *words = malloc(len);
	__u64 i;

	ASSERT_NE(NULL, words);
	fill_all(d);
	test_cmd_space_map(d->fd, d->space, address, LOW_PFN, nr,
			   P2M_PTE_RW | P2M_PTE_NX, 0);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ, address,
				    words, len / 8);
	EXPECT_EQ(len / 8, cmd.out_words);
	EXPECT_EQ(0, cmd.out_fault);
	EXPECT_EQ(0, cmd.out_fault_address);
	EXPECT_EQ(0, memcmp(words, d->mem + PAGES(LOW_PFN), len));
	EXPECT_EQ(fnv1a(d->mem + PAGES(LOW_PFN), len), cmd.out_checksum);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_CHECKSUM, address,
				    NULL, len / 8);
	EXPECT_EQ(len / 8, cmd.out_words);
	EXPECT_EQ(fnv1a(words, len), cmd.out_checksum);
	/* A part that begins and ends within a page. */
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_CHECKSUM,
				    address + 4088, NULL, 514);
	EXPECT_EQ(514, cmd.out_words);
	EXPECT_EQ(fnv1a((char *)words + 4088, 514 * 8), cmd.out_checksum);
	EXPECT_EQ(END_PFN, first_mismatch(d));

	for (i = 0; i < nr; i++)
		page_fill(words + 512 * i, END_PFN + i);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_WRITE,
				    address + 4088, words + 511, len / 8 - 512);
	EXPECT_EQ(len / 8 - 512, cmd.out_words);
	EXPECT_EQ(0, cmd.out_fault);
	EXPECT_EQ(fnv1a(words + 511, len - 4096), cmd.out_checksum);
	/* The words, nothing before and nothing behind them. */
	EXPECT_EQ(0, memcmp(words + 511, d->mem + PAGES(LOW_PFN) + 4088,
			    len - 4096));
	page_fill(words, LOW_PFN);
	EXPECT_EQ(0, memcmp(words, d->mem + PAGES(LOW_PFN), 4088));
	page_fill(words, LOW_PFN + nr - 1);
	EXPECT_EQ(0, memcmp(words + 511,
			    d->mem + PAGES(LOW_PFN + nr - 1) + 4088, 8));
	for (i = 0; i < nr; i++)
		page_fill(d->mem + PAGES(LOW_PFN + i), LOW_PFN + i);
	EXPECT_EQ(END_PFN, first_mismatch(d));
	free(words);
}

/* As many words as can be asked for, over several leaves. */
TEST_F(cpu, reads_the_most)
{
	struct domain *d = &self->d;
	const __u64 len = P2M_MAX_ACCESS_WORDS * 8;
	__u64 *words = malloc(len);
	struct p2m_space_access cmd;

	ASSERT_NE(NULL, words);
	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, RUN_PFN, RUN_PAGES,
			   P2M_PTE_RW, 1);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ,
				    ADDRESS + PAGES(512 - 5) + 8, words,
				    P2M_MAX_ACCESS_WORDS);
	EXPECT_EQ(P2M_MAX_ACCESS_WORDS, cmd.out_words);
	EXPECT_EQ(0, memcmp(words, d->mem + PAGES(RUN_PFN + 512 - 5) + 8, len));
	EXPECT_EQ(fnv1a(words, len), cmd.out_checksum);
	free(words);
}

TEST_F(cpu, faults_are_told)
{
	struct domain *d = &self->d;
	/* The last page before a border of each kind of table. */
	const __u64 borders[] = { PAGES(100), PAGES(512), 1ULL << 30, 1ULL << 39,
				  1ULL << 46 };
	const __u32 ops[] = { P2M_ACCESS_READ, P2M_ACCESS_WRITE,
			      P2M_ACCESS_CHECKSUM };
	struct p2m_space_access cmd;
	size_t i, j;

	fill_all(d);
	for (i = 0; i < ARRAY_LEN(borders); i++) {
		/* Behind it there is nothing, in this table or in others. */
		__u64 address = borders[i] - PAGES(1);

		test_cmd_space_map(d->fd, d->space, address, LOW_PFN + i, 1,
				   P2M_PTE_RW, 0);
		for (j = 0; j < ARRAY_LEN(ops); j++) {
			const char *page = d->mem + PAGES(LOW_PFN + i);
			__u32 write = ops[j] == P2M_ACCESS_WRITE;

			page_fill(buffer, LOW_PFN + i);
			cmd = test_cmd_space_access(d->fd, d->space, ops[j],
						    address + 8, buffer + 1,
						    1024);
			EXPECT_EQ(511, cmd.out_words);
			EXPECT_EQ(address + 4096, cmd.out_fault_address);
			EXPECT_EQ(P2M_FAULT_RAISED |
					  (write ? P2M_FAULT_WRITE : 0),
				  cmd.out_fault);
			EXPECT_EQ(fnv1a(page + 8, 4088), cmd.out_checksum);
		}
		expect_cpu_fault(_metadata, d, P2M_ACCESS_WRITE,
				 address + PAGES(1),
				 P2M_FAULT_RAISED | P2M_FAULT_WRITE);
		expect_cpu_fault(_metadata, d, P2M_ACCESS_READ,
				 address + PAGES(1), P2M_FAULT_RAISED);
		expect_cpu_fault(_metadata, d, P2M_ACCESS_READ, address - 8,
				 P2M_FAULT_RAISED);
	}
	/* Another page and another right: a write ends where it may not go. */
	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN + 100, 1,
			   P2M_PTE_USER, 0);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_WRITE,
				    ADDRESS - PAGES(1), buffer, 1024);
	EXPECT_EQ(512, cmd.out_words);
	EXPECT_EQ(ADDRESS, cmd.out_fault_address);
	EXPECT_EQ(P2M_FAULT_RAISED | P2M_FAULT_PROTECTION | P2M_FAULT_WRITE,
		  cmd.out_fault);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ,
				    ADDRESS - PAGES(1), buffer, 1024);
	EXPECT_EQ(1024, cmd.out_words);
	EXPECT_EQ(0, cmd.out_fault);
	EXPECT_TRUE(page_matches(buffer + 512, LOW_PFN + 100));
	/* Page 2 was overwritten by what was in the buffer: its own content. */
	page_fill(d->mem + PAGES(LOW_PFN + 2), LOW_PFN + 2);
	EXPECT_EQ(END_PFN, first_mismatch(d));
}

TEST_F(cpu, goes_to_the_end_of_the_lower_half)
{
	struct domain *d = &self->d;
	const __u64 half = 1ULL << 47;
	struct p2m_space_access cmd;
	__u64 word;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, half - PAGES(1), LOW_PFN, 1, 0, 0);
	test_cmd_space_map(d->fd, d->space, d->end - PAGES(2), LOW_PFN + 1,
			   d->end > half ? 2 : 1, 0, 0);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ, half - 8,
				    &word, 1);
	EXPECT_EQ(1, cmd.out_words);
	EXPECT_EQ(((__u64 *)(d->mem + PAGES(LOW_PFN)))[511], word);
	/* Not even a part. */
	cmd = test_err_space_access(ERANGE, d->fd, d->space, P2M_ACCESS_READ,
				    d->cpu_end - 8, &word, 2);
	EXPECT_EQ(0, cmd.out_words);
	test_err_space_access(ERANGE, d->fd, d->space, P2M_ACCESS_READ,
			      d->cpu_end, &word, 1);
	test_err_space_access(ERANGE, d->fd, d->space, P2M_ACCESS_READ,
			      ~0ULL - 7, &word, 1);
	test_err_space_access(ERANGE, d->fd, d->space, P2M_ACCESS_READ,
			      ~0ULL - 7, &word, 2);
	if (d->cpu_end == half)
		return;
	/* Five levels, really. */
	expect_cpu_fault(_metadata, d, P2M_ACCESS_READ, half, P2M_FAULT_RAISED);
	cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ,
				    d->end - PAGES(2), buffer, 1024);
	EXPECT_EQ(1024, cmd.out_words);
	EXPECT_EQ(0, memcmp(buffer, d->mem + PAGES(LOW_PFN + 1), PAGES(2)));
}

/* The tables as they would be if the processor had gone to an address. */
static void mark(struct __test_metadata *_metadata, const struct domain *d,
		 __u64 *pool, __u64 address, __u64 leaf_bits)
{
	struct walker_walk walk;
	unsigned int i;

	walker_walk(&d->walker, address, &walk);
	ASSERT_FALSE(walk.is_malformed);
	for (i = 0; i < walk.nr_steps; i++) {
		const struct walker_step *step = &walk.steps[i];
		__u64 at = (step->table_pfn - POOL_PFN) * 512 + step->index;

		if (step->raw & PTE_P)
			pool[at] |= i == walk.nr_steps - 1 ? leaf_bits :
							     P2M_PTE_ACCESSED;
	}
}

TEST_F(cpu, sets_accessed_and_dirty_where_it_was)
{
	enum { READ_ONLY = 0x1000000, LARGE = 0x2000000 };
	struct domain *d = &self->d;
	const struct {
		__u32 op;
		__u64 address;
		__u64 leaf_bits;
		__u32 fault;
	} accesses[] = {
		{ P2M_ACCESS_READ, ADDRESS + PAGES(2) + 80, P2M_PTE_ACCESSED, 0 },
		{ P2M_ACCESS_WRITE, ADDRESS + PAGES(3) + 4088, PTE_AD, 0 },
		{ P2M_ACCESS_CHECKSUM, ADDRESS + PAGES(4), P2M_PTE_ACCESSED, 0 },
		/* That it can be read is found out by reading it. */
		{ P2M_ACCESS_WRITE, ADDRESS + READ_ONLY, P2M_PTE_ACCESSED,
		  P2M_FAULT_RAISED | P2M_FAULT_PROTECTION | P2M_FAULT_WRITE },
		{ P2M_ACCESS_READ, ADDRESS + READ_ONLY + PAGES(1),
		  P2M_PTE_ACCESSED, 0 },
		{ P2M_ACCESS_READ, ADDRESS + LARGE + PAGES(7), P2M_PTE_ACCESSED,
		  0 },
		{ P2M_ACCESS_WRITE, ADDRESS + LARGE + PAGES(512 + 7), PTE_AD, 0 },
		{ P2M_ACCESS_WRITE, ADDRESS + LARGE + PAGES(511), PTE_AD, 0 },
		/* Behind the last page. */
		{ P2M_ACCESS_WRITE, ADDRESS + PAGES(8), 0,
		  P2M_FAULT_RAISED | P2M_FAULT_WRITE },
		{ P2M_ACCESS_WRITE, 0x123456000, PTE_AD, 0 },
		{ P2M_ACCESS_READ, (1ULL << 47) - PAGES(1), P2M_PTE_ACCESSED, 0 },
	};
	bool is_exact = cpu_is_emulated();
	struct p2m_space_access cmd;
	struct image image;
	size_t i, j;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 8, P2M_PTE_RW, 0);
	test_cmd_space_map(d->fd, d->space, ADDRESS + READ_ONLY, LOW_PFN + 8, 8,
			   0, 0);
	test_cmd_space_map(d->fd, d->space, ADDRESS + LARGE, RUN_PFN, 1024,
			   P2M_PTE_RW, 1);
	test_cmd_space_map(d->fd, d->space, 0x123456000, LOW_PFN + 16, 1,
			   P2M_PTE_RW | P2M_PTE_USER, 0);
	test_cmd_space_map(d->fd, d->space, (1ULL << 47) - PAGES(1), LOW_PFN + 17,
			   1, P2M_PTE_NX, 0);
	image = image_take(_metadata, d);
	for (i = 0; i < POOL_PAGES * 512; i++)
		ASSERT_EQ(0, image.pool[i] & PTE_P ? image.pool[i] & PTE_AD : 0);

	for (i = 0; i < ARRAY_LEN(accesses); i++) {
		cmd = test_cmd_space_access(d->fd, d->space, accesses[i].op,
					    accesses[i].address, buffer, 1);
		EXPECT_EQ(accesses[i].fault, cmd.out_fault)
			TH_LOG("access %zu", i);
		mark(_metadata, d, image.pool, accesses[i].address,
		     accesses[i].leaf_bits);
		for (j = 0; j < POOL_PAGES * 512; j++) {
			__u64 now = d->walker.pool[j];

			/* A present entry may have been on a way not taken. */
			if (!is_exact && image.pool[j] & PTE_P)
				now &= image.pool[j] | ~P2M_PTE_ACCESSED;
			ASSERT_EQ(image.pool[j], now)
				TH_LOG("access %zu: table %llu, entry %zu", i,
				       (__u64)POOL_PFN + j / 512, j % 512);
		}
	}
	free(image.pool);
	free(image.dump.spans);
	expect_agreement(_metadata, d);
}

/* What the processor must not get. */
TEST_F(cpu, gets_no_other_memory_types_and_no_writable_tables)
{
	const __u64 types[] = { P2M_PTE_PWT, P2M_PTE_PCD, P2M_PTE_PAT };
	struct domain *d = &self->d;
	const __u64 tables = ADDRESS + PAGES(512);
	struct p2m_space_access cmd;
	struct walker_walk walk;
	unsigned int i;
	size_t j;

	for (j = 0; j < ARRAY_LEN(types); j++) {
		test_cmd_space_map(d->fd, d->space, ADDRESS + PAGES(2 * j),
				   LOW_PFN, 1, P2M_PTE_RW, 0);
		test_cmd_space_map(d->fd, d->space, ADDRESS + PAGES(2 * j + 1),
				   LOW_PFN + j, 1, P2M_PTE_RW | types[j], 0);
		test_cmd_space_map(d->fd, d->space, PAGES(512 * (1 + j)),
				   RUN_PFN, 512, P2M_PTE_RW | types[j], 1);
		/* Not even the page before it. */
		cmd = test_err_space_access(EUCLEAN, d->fd, d->space,
					    P2M_ACCESS_READ,
					    ADDRESS + PAGES(2 * j), buffer,
					    1024);
		EXPECT_EQ(0, cmd.out_words);
		test_err_space_access(EUCLEAN, d->fd, d->space, P2M_ACCESS_READ,
				      PAGES(512 * (1 + j) + 9), buffer, 1);
	}
	EXPECT_EQ(0, raw_at(d, ADDRESS) & PTE_AD);

	/* The tables of the space, in the space: read by the processor as data. */
	test_cmd_space_map(d->fd, d->space, tables, POOL_PFN, POOL_PAGES,
			   P2M_PTE_RW, 0);
	ASSERT_EQ(0, level_at(d, tables, &walk));
	for (i = 0; i < walk.nr_steps; i++) {
		__u64 address = tables +
				PAGES(walk.steps[i].table_pfn - POOL_PFN);
		const __u64 *raw = d->walker.pool +
				   (walk.steps[i].table_pfn - POOL_PFN) * 512;

		test_err_space_access(EUCLEAN, d->fd, d->space, P2M_ACCESS_WRITE,
				      address, buffer, 1);
		/* Those in which it sets bits while it looks have them now. */
		test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ, address,
				      buffer, 512);
		cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ,
					    address, buffer, 512);
		EXPECT_EQ(512, cmd.out_words);
		EXPECT_EQ(0, memcmp(raw, buffer, P2M_PAGE_SIZE));
	}
	/* Where it couldn't write anyway, it's a fault like others. */
	EXPECT_EQ(POOL_PAGES, test_cmd_space_change(d->fd, d->space, 0, tables,
						    POOL_PAGES, 0));
	expect_cpu_fault(_metadata, d, P2M_ACCESS_WRITE,
			 tables + PAGES(d->created.out_root_pfn - POOL_PFN),
			 P2M_FAULT_RAISED | P2M_FAULT_PROTECTION |
				 P2M_FAULT_WRITE);
}

/* Large leaves. */

/* A run of frames that a leaf of a level can stand for, as the P2M has it. */
static bool is_run(const struct domain *d, __u64 pfn, unsigned int level)
{
	const __u64 nr = 1ULL << (9 * level);
	__u64 i;

	if (pfn % nr)
		return false;
	if (d->backend == NATIVE)
		return true;
	if (!is_backed(d, pfn) || (d->walker.p2m[pfn] & P2M_ENTRY_MFN_MASK) % nr)
		return false;
	for (i = 1; i < nr; i++)
		if (pfn + i >= d->walker.end_pfn ||
		    d->walker.p2m[pfn + i] != d->walker.p2m[pfn] + i)
			return false;
	return true;
}

TEST_F(space, a_part_of_a_large_leaf_is_unmapped)
{
	static const struct {
		__u64 first, nr;
	} parts[] = { { 0, 1 }, { 511, 1 }, { 100, 200 }, { 1, 511 } };
	const __u64 flags[] = { P2M_PTE_RW | PTE_AD,
				P2M_PTE_NX | P2M_PTE_PAT | P2M_PTE_ACCESSED };
	struct domain *d = &self->d;
	size_t i, j, before;

	fill_all(d);
	for (i = 0; i < ARRAY_LEN(parts); i++) {
		for (j = 0; j < ARRAY_LEN(flags); j++) {
			__u64 first = parts[i].first, nr = parts[i].nr;
			__u64 behind = first + nr;

			test_cmd_space_map(d->fd, d->space, ADDRESS,
					   RUN_PFN + 512, 1024, flags[j], 1);
			ASSERT_EQ(0, walker_refresh(&d->walker));
			expect_mapped(_metadata, d, ADDRESS, RUN_PFN + 512, 1024,
				      flags[j], 1);
			EXPECT_EQ(PTE_P | PTE_PS |
					  (flags[j] & P2M_PTE_PAT ?
						   flags[j] - P2M_PTE_PAT +
							   PTE_PAT_LARGE :
						   flags[j]),
				  raw_at(d, ADDRESS) &
					  ~walker_frame_mask(1, PTE_PS));
			before = nr_tables(_metadata, d);
			EXPECT_EQ(nr, test_cmd_space_unmap(
					      d->fd, d->space, 0,
					      ADDRESS + PAGES(first), nr));
			expect_mapped(_metadata, d, ADDRESS, RUN_PFN + 512,
				      first, flags[j], 0);
			expect_unmapped(_metadata, d, ADDRESS + PAGES(first),
					nr);
			expect_mapped(_metadata, d, ADDRESS + PAGES(behind),
				      RUN_PFN + 512 + behind, 512 - behind,
				      flags[j], 0);
			expect_mapped(_metadata, d, ADDRESS + PAGES(512),
				      RUN_PFN + 1024, 512, flags[j], 1);
			EXPECT_EQ(before + 1, nr_tables(_metadata, d));
			if (i % 2 == j && !(flags[j] & P2M_PTE_PAT))
				expect_agreement(_metadata, d);
			EXPECT_EQ(1024 - nr,
				  test_cmd_space_unmap(d->fd, d->space,
						       P2M_UNMAP_ALL, 0, 0));
			EXPECT_EQ(1, nr_tables(_metadata, d));
		}
	}
}

TEST_F(space, a_large_leaf_changes_as_a_whole_or_is_split)
{
	struct domain *d = &self->d;
	const __u64 flags = P2M_PTE_RW | P2M_PTE_DIRTY;
	bool is_native = variant->backend == NATIVE;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, RUN_PFN, 1024, flags, 1);
	/* Flags of all of it, then of a part. */
	EXPECT_EQ(512, test_cmd_space_change(d->fd, d->space, 0, ADDRESS, 512,
					     P2M_PTE_USER));
	expect_mapped(_metadata, d, ADDRESS, RUN_PFN, 512,
		      P2M_PTE_USER | P2M_PTE_DIRTY, 1);
	EXPECT_EQ(12, test_cmd_space_change(d->fd, d->space, 0,
					    ADDRESS + PAGES(500), 12, P2M_PTE_NX));
	expect_mapped(_metadata, d, ADDRESS, RUN_PFN, 500,
		      P2M_PTE_USER | P2M_PTE_DIRTY, 0);
	expect_mapped(_metadata, d, ADDRESS + PAGES(500), RUN_PFN + 500, 12,
		      P2M_PTE_NX | P2M_PTE_DIRTY, 0);
	expect_mapped(_metadata, d, ADDRESS + PAGES(512), RUN_PFN + 512, 512,
		      flags, 1);
	expect_agreement(_metadata, d);
	/* Frames: another run, and what is none. */
	EXPECT_EQ(512, test_cmd_space_change(d->fd, d->space, P2M_CHANGE_FRAMES,
					     ADDRESS + PAGES(512), 512,
					     RUN_PFN + 1024));
	expect_mapped(_metadata, d, ADDRESS + PAGES(512), RUN_PFN + 1024, 512,
		      flags, 1);
	expect_agreement(_metadata, d);
	EXPECT_EQ(512, test_cmd_space_change(d->fd, d->space, P2M_CHANGE_FRAMES,
					     ADDRESS + PAGES(512), 512, 1024));
	expect_mapped(_metadata, d, ADDRESS + PAGES(512), 1024, 512, flags,
		      is_native ? 1 : 0);
	expect_agreement(_metadata, d);
	EXPECT_EQ(512, test_cmd_space_change(d->fd, d->space, P2M_CHANGE_FRAMES,
					     ADDRESS + PAGES(512), 512,
					     RUN_PFN + 1));
	expect_mapped(_metadata, d, ADDRESS + PAGES(512), RUN_PFN + 1, 512, flags,
		      0);
	expect_agreement(_metadata, d);
}

/* No table is left to split a leaf with. */
TEST_F(space, a_leaf_that_cannot_be_split_stays)
{
	struct domain *d = &self->d;
	__u64 *entries;
	struct image image;
	struct p2m_move move;

	test_cmd_space_destroy(d->fd, d->space);
	walker_exit(&d->walker);
	domain_add_space(_metadata, d, variant->backend, variant->nr_levels,
			 variant->nr_levels - 1);
	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, RUN_PFN, 1024, P2M_PTE_RW,
			   1);
	expect_mapped(_metadata, d, ADDRESS, RUN_PFN, 1024, P2M_PTE_RW, 1);
	image = image_take(_metadata, d);
	EXPECT_EQ(0, test_err_space_unmap(ENOSPC, d->fd, d->space, 0,
					  ADDRESS + PAGES(1), 511));
	EXPECT_EQ(0, test_err_space_change(ENOSPC, d->fd, d->space, 0,
					   ADDRESS + PAGES(1), 1000, 0));
	EXPECT_EQ(0, test_err_space_change(ENOSPC, d->fd, d->space,
					   P2M_CHANGE_FRAMES, ADDRESS, 512,
					   LOW_PFN + 1));
	test_err_space_map(ENOSPC, d->fd, d->space, ADDRESS + PAGES(1024),
			   RUN_PFN, 1, 0, 0);
	expect_image(_metadata, d, &image);

	/* Nor do frames change below it, if there are any in it. */
	if (d->backend == NATIVE) {
		image = image_take(_metadata, d);
		EXPECT_EQ(10, test_cmd_move_by(d->fd, RUN_PFN + 300, 10,
					       P2M_POLICY_ANY)
				      .out_pages);
		EXPECT_EQ(0, make_contiguous(d->fd, RUN_PFN, 9));
		expect_image(_metadata, d, &image);
	}
	image = image_take(_metadata, d);
	entries = range_to_entries(d->fd, RUN_PFN, RUN_PAGES);
	ASSERT_NE(NULL, entries);
	if (d->backend != NATIVE) {
		EXPECT_ERRNO(ENOSPC, move_pages(d->fd, RUN_PFN + 300, 10,
						P2M_POLICY_ANY, &move));
		EXPECT_EQ(0, move.out_pages);
		EXPECT_ERRNO(ENOSPC, make_contiguous(d->fd, RUN_PFN, 9));
	}
	{
		__u64 *now = range_to_entries(d->fd, RUN_PFN, RUN_PAGES);

		ASSERT_NE(NULL, now);
		EXPECT_EQ(0, memcmp(entries, now, RUN_PAGES * sizeof(*now)));
		free(now);
		free(entries);
	}
	expect_image(_metadata, d, &image);
	expect_agreement(_metadata, d);
	EXPECT_EQ(END_PFN, first_mismatch(d));
	/* A whole leaf needs no table. What was done until then is told. */
	EXPECT_EQ(512, test_err_space_unmap(ENOSPC, d->fd, d->space, 0, ADDRESS,
					    513));
	expect_unmapped(_metadata, d, ADDRESS, 512);
	expect_mapped(_metadata, d, ADDRESS + PAGES(512), RUN_PFN + 512, 512,
		      P2M_PTE_RW, 1);
	expect_agreement(_metadata, d);
	EXPECT_EQ(512, test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0));
}

FIXTURE(leaf)
{
	struct domain d;
};

FIXTURE_VARIANT(leaf)
{
	enum backend backend;
	__u32 nr_levels;
	__u32 max_level;
};

#define LEAF_VARIANTS(name, b)                                              \
	FIXTURE_VARIANT_ADD(leaf, name##_4_0)                               \
	{ .backend = b, .nr_levels = 4, .max_level = 0 };                   \
	FIXTURE_VARIANT_ADD(leaf, name##_4_1)                               \
	{ .backend = b, .nr_levels = 4, .max_level = 1 };                   \
	FIXTURE_VARIANT_ADD(leaf, name##_4_2)                               \
	{ .backend = b, .nr_levels = 4, .max_level = 2 };                   \
	FIXTURE_VARIANT_ADD(leaf, name##_5_0)                               \
	{ .backend = b, .nr_levels = 5, .max_level = 0 };                   \
	FIXTURE_VARIANT_ADD(leaf, name##_5_1)                               \
	{ .backend = b, .nr_levels = 5, .max_level = 1 };                   \
	FIXTURE_VARIANT_ADD(leaf, name##_5_2)                               \
	{ .backend = b, .nr_levels = 5, .max_level = 2 }
LEAF_VARIANTS(native, NATIVE);
LEAF_VARIANTS(p2m, P2M);
LEAF_VARIANTS(lossless, LOSSLESS);

FIXTURE_SETUP(leaf)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	domain_open(_metadata, &self->d);
	domain_add_space(_metadata, &self->d, variant->backend,
			 variant->nr_levels, POOL_PAGES);
}

FIXTURE_TEARDOWN(leaf)
{
	domain_close(_metadata, &self->d);
}

/* Wherever addresses and frames are aligned, or not. */
TEST_F(leaf, is_large_only_where_frames_are_a_run)
{
	static const __u64 offsets[] = { 0, 1, 256, 511 };
	struct domain *d = &self->d;
	/* The last one is scattered, and has an aligned PFN in its middle. */
	static const __u64 bases[] = { RUN_PFN, RUN_PFN + 512, 1024 };
	struct walker_walk walk;
	unsigned int nr_large = 0;
	size_t nr_cases = ARRAY_LEN(bases) * ARRAY_LEN(offsets) *
			  ARRAY_LEN(offsets);
	size_t nr_case;
	__u64 n;

	fill_all(d);
	for (nr_case = 0; nr_case < nr_cases; nr_case++) {
		size_t k = nr_case % ARRAY_LEN(offsets);
		size_t j = nr_case / ARRAY_LEN(offsets) % ARRAY_LEN(offsets);
		size_t i = nr_case / ARRAY_LEN(offsets) / ARRAY_LEN(offsets);
		__u64 address = ADDRESS + PAGES(offsets[j]);
		__u64 pfn = bases[i] + offsets[k];
		__u64 nr = bases[i] == 1024 ? 512 - offsets[k] :
					      1024 - offsets[k];

		test_cmd_space_map(d->fd, d->space, address, pfn, nr, P2M_PTE_RW,
				   variant->max_level);
		for (n = 0; n < nr; n++) {
			__u64 first = (offsets[j] + n) & ~511ULL;
			/* The 2 MiB around the page are in the range. */
			bool fits = first >= offsets[j] &&
				    first + 512 <= offsets[j] + nr;
			int level = variant->max_level && fits &&
				    is_run(d, pfn + first - offsets[j], 1);

			ASSERT_EQ(level, level_at(d, address + PAGES(n), &walk))
				TH_LOG("base %zu, offsets %llu %llu, page %llu",
				       i, offsets[j], offsets[k], n);
			ASSERT_EQ(pfn + n, walk.pfn);
			nr_large += level;
		}
		if (j == i && k == i)
			expect_agreement(_metadata, d);
		EXPECT_EQ(nr, test_cmd_space_unmap(d->fd, d->space,
						   P2M_UNMAP_ALL, 0, 0));
	}
	if (variant->max_level)
		EXPECT_LT(1024, nr_large);
	EXPECT_EQ(1, nr_tables(_metadata, d));
}

/* In a region that was made in one run, and wherever frames come as they like. */
TEST_F(leaf, is_as_large_as_a_contiguous_region_allows)
{
	struct domain *d = &self->d;
	static const __u32 policies[] = { P2M_POLICY_CONTIGUOUS, P2M_POLICY_ANY };
	const __u64 base = 8192, nr = 1200;
	struct walker_walk walk;
	size_t i;
	__u64 n;

	for (i = 0; i < ARRAY_LEN(policies); i++) {
		test_cmd_region_create_fixed(d->fd, policies[i], nr, 0, base);
		ASSERT_EQ(0, walker_refresh(&d->walker));
		test_cmd_space_map(d->fd, d->space, ADDRESS, base, nr, P2M_PTE_RW,
				   variant->max_level);
		for (n = 0; n < nr; n++) {
			int level = variant->max_level && n < 1024 &&
				    is_run(d, base + (n & ~511ULL), 1);

			ASSERT_EQ(level, level_at(d, ADDRESS + PAGES(n), &walk))
				TH_LOG("policy %u, page %llu", policies[i], n);
			ASSERT_EQ(base + n, walk.pfn);
		}
		EXPECT_EQ(nr, test_cmd_space_unmap(d->fd, d->space,
						   P2M_UNMAP_ALL, 0, 0));
		test_cmd_region_destroy(d->fd, base);
	}
}

FIXTURE(giant)
{
	struct domain d;
};

FIXTURE_VARIANT(giant)
{
	enum backend backend;
	__u32 nr_levels;
};

#define GIANT_VARIANT(name, b, n) \
	FIXTURE_VARIANT_ADD(giant, name) { .backend = b, .nr_levels = n }
GIANT_VARIANT(native_4, NATIVE, 4);
GIANT_VARIANT(native_5, NATIVE, 5);
GIANT_VARIANT(p2m_4, P2M, 4);
GIANT_VARIANT(p2m_5, P2M, 5);
GIANT_VARIANT(lossless_4, LOSSLESS, 4);
GIANT_VARIANT(lossless_5, LOSSLESS, 5);

FIXTURE_SETUP(giant)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	domain_open(_metadata, &self->d);
	domain_add_space(_metadata, &self->d, variant->backend,
			 variant->nr_levels, POOL_PAGES);
}

FIXTURE_TEARDOWN(giant)
{
	domain_close(_metadata, &self->d);
}

/* Has a part of a leaf of 1 GiB go, in both ways. */
static void take_giant_apart(struct __test_metadata *_metadata, struct domain *d,
			     __u64 address, __u64 pfn, __u64 flags)
{
	const __u64 hole = PAGES(512 * 5 + 3);
	struct walker_walk walk;
	size_t before = nr_tables(_metadata, d);

	EXPECT_EQ(1, test_cmd_space_unmap(d->fd, d->space, 0, address + hole, 1));
	EXPECT_EQ(before + 2, nr_tables(_metadata, d));
	expect_mapped(_metadata, d, address, pfn, 512 * 5, flags, 1);
	expect_mapped(_metadata, d, address + PAGES(512 * 5), pfn + 512 * 5, 3,
		      flags, 0);
	EXPECT_EQ(-1, level_at(d, address + hole, &walk));
	expect_mapped(_metadata, d, address + PAGES(512 * 6), pfn + 512 * 6, 600,
		      flags, 1);
	expect_mapped(_metadata, d, address + PAGES(GIANT_PAGES - 1),
		      pfn + GIANT_PAGES - 1, 1, flags, 1);
	EXPECT_EQ(GIANT_PAGES - 1,
		  test_cmd_space_unmap(d->fd, d->space, 0, address, GIANT_PAGES));
	EXPECT_EQ(1, nr_tables(_metadata, d));
}

/*
 * Machine frames from 3 GiB to 4 GiB are devices', on every PC. A space can map
 * them as identities, and no processor gets them.
 */
TEST_F(giant, leaf_of_identities)
{
	const __u64 flags = P2M_PTE_RW | P2M_PTE_PAT | P2M_PTE_ACCESSED;
	const int level = 2;
	const __u64 pfn = 3ULL << 18;
	struct p2m_region_create create = {
		.size = sizeof(create),
		.flags = P2M_REGION_FIXED | P2M_REGION_ON_DEMAND,
		.policy = P2M_POLICY_ANY,
		.nr_pages = GIANT_PAGES,
		.base_pfn = pfn,
	};
	struct p2m_identity identity = {
		.size = sizeof(identity),
		.start_pfn = pfn,
		.nr_pages = GIANT_PAGES,
	};
	struct domain *d = &self->d;
	const __u64 address = 5ULL << 30;
	struct walker_walk walk;
	struct dump dump;

	if (ioctl(d->fd, P2M_REGION_CREATE, &create))
		SKIP(return, "no 1 GiB of pages allowed: %s", strerror(errno));
	if (ioctl(d->fd, P2M_IDENTITY, &identity))
		SKIP(return, "there is memory at 3 GiB: %s", strerror(errno));
	ASSERT_EQ(0, walker_refresh(&d->walker));
	/* What is an identity in the P2M is the same number in it. */
	ASSERT_EQ(pfn | P2M_ENTRY_IDENTITY, d->walker.p2m[pfn]);
	ASSERT_EQ(pfn, walker_frame_to_pfn(&d->walker, pfn));

	test_cmd_space_map(d->fd, d->space, address, pfn, GIANT_PAGES, flags,
			   level);
	ASSERT_EQ(level, level_at(d, address, &walk));
	EXPECT_EQ(PAGES(pfn) | PTE_P | PTE_PS | PTE_PAT_LARGE | P2M_PTE_RW |
			  P2M_PTE_ACCESSED,
		  walk.steps[walk.nr_steps - 1].raw);
	EXPECT_EQ(4, walk.memory_type);
	ASSERT_EQ(level, level_at(d, address + PAGES(GIANT_PAGES - 1), &walk));
	EXPECT_EQ(pfn + GIANT_PAGES - 1, walk.pfn);
	EXPECT_EQ(variant->nr_levels - level, nr_tables(_metadata, d));
	dump = dump_all(_metadata, d->fd, d->space);
	ASSERT_EQ(1, dump.nr);
	EXPECT_EQ(GIANT_PAGES, dump.spans[0].nr_pages);
	EXPECT_EQ(pfn, dump.spans[0].mfn);
	EXPECT_EQ(level, dump.spans[0].level);
	free(dump.spans);
	expect_walk(_metadata, d, address);
	expect_walk(_metadata, d, address + PAGES(77777));
	if (domain_has_cpu(d))
		test_err_space_access(EUCLEAN, d->fd, d->space, P2M_ACCESS_READ,
				      address, buffer, 1);
	EXPECT_EQ(GIANT_PAGES, test_cmd_space_change(d->fd, d->space, 0, address,
						     GIANT_PAGES, P2M_PTE_RW));
	EXPECT_EQ(level, level_at(d, address, &walk));
	EXPECT_EQ(0, walk.memory_type);
	if (domain_has_cpu(d))
		test_err_space_access(EUCLEAN, d->fd, d->space, P2M_ACCESS_READ,
				      address, buffer, 1);
	/* An address or a PFN that isn't aligned to 1 GiB gets smaller ones. */
	EXPECT_EQ(GIANT_PAGES, test_cmd_space_unmap(d->fd, d->space,
						    P2M_UNMAP_ALL, 0, 0));
	test_cmd_space_map(d->fd, d->space, address + PAGES(512), pfn,
			   GIANT_PAGES, flags, level);
	EXPECT_EQ(1, level_at(d, address + PAGES(512), &walk));
	EXPECT_EQ(1, level_at(d, address + PAGES(GIANT_PAGES), &walk));
	EXPECT_EQ(pfn + GIANT_PAGES - 512, walk.pfn);
	EXPECT_EQ(GIANT_PAGES, test_cmd_space_unmap(d->fd, d->space,
						    P2M_UNMAP_ALL, 0, 0));
	test_cmd_space_map(d->fd, d->space, address, pfn, GIANT_PAGES, flags,
			   level);
	take_giant_apart(_metadata, d, address, pfn, flags);
	/* Leaves of 2 MiB, if no larger ones are asked for. */
	test_cmd_space_map(d->fd, d->space, address, pfn, GIANT_PAGES, flags, 1);
	EXPECT_EQ(1, level_at(d, address, &walk));
	EXPECT_EQ(1, level_at(d, address + PAGES(GIANT_PAGES - 1), &walk));
	EXPECT_EQ(pfn + GIANT_PAGES - 1, walk.pfn);
	EXPECT_EQ(variant->nr_levels - 1, nr_tables(_metadata, d));
}

TEST_F(giant, leaf_of_memory)
{
	const __u64 pfn = 1ULL << 18, address = 7ULL << 30;
	struct domain *d = &self->d;
	struct p2m_space_access cmd;
	__u64 base = pfn, word, i;
	char *mem;

	if (_test_cmd_region_create(d->fd, P2M_REGION_FIXED,
				    P2M_POLICY_CONTIGUOUS, GIANT_PAGES, 0, &base))
		SKIP(return, "no 1 GiB of memory in one run: %s",
		     strerror(errno));
	ASSERT_EQ(0, walker_refresh(&d->walker));
	if (!is_run(d, pfn, 2))
		SKIP(return, "1 GiB of memory, but not aligned");
	mem = map_pages(d->fd, pfn, GIANT_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_space_map(d->fd, d->space, address, pfn, GIANT_PAGES, P2M_PTE_RW,
			   2);
	for (i = 0; i < GIANT_PAGES; i += 7919) {
		*(__u64 *)(mem + PAGES(i) + 8 * (i % 512)) = ~i;
		expect_mapped(_metadata, d, address + PAGES(i), pfn + i, 1,
			      i && domain_has_cpu(d) ?
				      P2M_PTE_RW | P2M_PTE_ACCESSED :
				      P2M_PTE_RW,
			      2);
		expect_walk(_metadata, d, address + PAGES(i));
		if (!domain_has_cpu(d))
			continue;
		cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_READ,
					    address + PAGES(i) + 8 * (i % 512),
					    &word, 1);
		EXPECT_EQ(0, cmd.out_fault);
		EXPECT_EQ(~i, word);
	}
	munmap(mem, PAGES(GIANT_PAGES));
	EXPECT_EQ(GIANT_PAGES, test_cmd_space_unmap(d->fd, d->space,
						    P2M_UNMAP_ALL, 0, 0));
	test_cmd_space_map(d->fd, d->space, address, pfn, GIANT_PAGES, P2M_PTE_NX,
			   2);
	take_giant_apart(_metadata, d, address, pfn, P2M_PTE_NX);
}

/* Frames change below a space. */

struct mapping {
	__u64 address, pfn, nr_pages, flags;
	int level;
};

TEST_F(space, frames_change_below_it)
{
	struct domain *d = &self->d;
	/* What is there: scattered pages, some of them twice, and large leaves. */
	const struct mapping mappings[] = {
		{ ADDRESS - PAGES(200), LOW_PFN, 400, P2M_PTE_RW | PTE_AD, 0 },
		{ 0x123450000000, LOW_PFN + 100, 50, P2M_PTE_NX, 0 },
		{ ADDRESS + PAGES(512), RUN_PFN, 512,
		  P2M_PTE_RW | P2M_PTE_ACCESSED, 1 },
		{ ADDRESS + PAGES(1024), RUN_PFN + 512, 512, P2M_PTE_USER, 1 },
		{ ADDRESS + PAGES(2048), RUN_PFN + 1024, 512, 0, 1 },
	};
	int levels[ARRAY_LEN(mappings)];
	/* Native leaves have no frames that could fall apart. */
	const int split_level = variant->backend == NATIVE ? 1 : 0;
	struct p2m_exchange exchange;
	struct p2m_move move;
	bool changed;
	unsigned int step;
	size_t i;
	__u64 *before, *after, n;

	fill_all(d);
	for (i = 0; i < ARRAY_LEN(mappings); i++) {
		const struct mapping *m = &mappings[i];

		levels[i] = m->level;
		test_cmd_space_map(d->fd, d->space, m->address, m->pfn,
				   m->nr_pages, m->flags, m->level);
	}
	for (step = 0; step < 7; step++) {
		__u64 first = 0, nr = 0;

		before = range_to_entries(d->fd, 0, END_PFN);
		ASSERT_NE(NULL, before);
		switch (step) {
		case 0:
			first = LOW_PFN;
			nr = LOW_PAGES;
			move = test_cmd_move_by(d->fd, first, nr,
						P2M_POLICY_SCATTER);
			EXPECT_EQ(nr, move.out_pages);
			break;
		case 1:
			/* One page of a large leaf: it is split, others aren't. */
			first = RUN_PFN + 300;
			nr = 1;
			move = test_cmd_move_by(d->fd, first, nr, P2M_POLICY_ANY);
			EXPECT_EQ(1, move.out_pages);
			levels[2] = split_level;
			break;
		case 2:
			/* Beside it and in between: nothing is split. */
			first = HIGH_PFN;
			nr = HIGH_PAGES;
			exchange = test_cmd_exchange(d->fd, HIGH_PFN,
						     HIGH_PFN + 200, 200);
			EXPECT_EQ(200, exchange.out_pages);
			nr = 400;
			break;
		case 3:
			/* Over the border of two large leaves. */
			first = RUN_PFN + 1020;
			nr = 8;
			exchange = test_cmd_exchange(d->fd, first, LOW_PFN + 40,
						     nr);
			EXPECT_EQ(nr, exchange.out_pages);
			levels[3] = split_level;
			levels[4] = split_level;
			break;
		case 4:
			/* A run again. Nobody makes a large leaf of it by himself. */
			first = RUN_PFN + 512;
			nr = 512;
			ASSERT_EQ(0, make_contiguous(d->fd, first, 9));
			break;
		case 5:
			/* A run of what is mapped page by page. */
			first = LOW_PFN + 64;
			nr = 128;
			ASSERT_EQ(0, make_contiguous(d->fd, first, 7));
			break;
		case 6:
			/* All there is. Tables stay where they are. */
			first = RUN_PFN;
			nr = RUN_PAGES;
			move = test_cmd_move_by(d->fd, POOL_PFN, POOL_PAGES,
						P2M_POLICY_ANY);
			EXPECT_EQ(nr_tables(_metadata, d), move.out_busy);
			EXPECT_EQ(POOL_PAGES - move.out_busy, move.out_pages);
			move = test_cmd_move_by(d->fd, first, nr,
						P2M_POLICY_SCATTER);
			EXPECT_EQ(nr, move.out_pages);
			break;
		}
		after = range_to_entries(d->fd, 0, END_PFN);
		ASSERT_NE(NULL, after);
		changed = false;
		for (n = first; n < first + nr; n++)
			changed |= before[n] != after[n];
		EXPECT_TRUE(changed) TH_LOG("step %u", step);
		free(before);
		free(after);

		ASSERT_EQ(0, walker_refresh(&d->walker));
		for (i = 0; i < ARRAY_LEN(mappings); i++) {
			const struct mapping *m = &mappings[i];

			expect_mapped(_metadata, d, m->address, m->pfn,
				      m->nr_pages, m->flags, levels[i]);
		}
		expect_agreement(_metadata, d);
		EXPECT_EQ(END_PFN, first_mismatch(d)) TH_LOG("step %u", step);
	}
	EXPECT_EQ(400 + 50 + 3 * 512,
		  test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0));
	EXPECT_EQ(1, nr_tables(_metadata, d));
}

/*
 * What the processor has marked stays marked when the frame changes, and so does
 * what it has written.
 */
TEST_F(cpu, goes_on_while_frames_change)
{
	struct domain *d = &self->d;
	struct p2m_space_access cmd;
	__u64 round, i, word;

	fill_all(d);
	test_cmd_space_map(d->fd, d->space, ADDRESS, LOW_PFN, 100, P2M_PTE_RW, 0);
	for (round = 0; round < 20; round++) {
		__u64 page = round * 5;

		word = ~round;
		cmd = test_cmd_space_access(d->fd, d->space, P2M_ACCESS_WRITE,
					    ADDRESS + PAGES(page) + 8 * round,
					    &word, 1);
		EXPECT_EQ(0, cmd.out_fault);
		EXPECT_EQ(100, test_cmd_move_by(d->fd, LOW_PFN, 100,
						round % 2 ? P2M_POLICY_ANY :
						P2M_POLICY_SCATTER)
			  .out_pages);
		for (i = 0; i <= round; i++) {
			EXPECT_EQ(PTE_AD, raw_at(d, ADDRESS + PAGES(i * 5)) &
						  PTE_AD);
			cmd = test_cmd_space_access(
				d->fd, d->space, P2M_ACCESS_READ,
				ADDRESS + PAGES(i * 5) + 8 * i, &word, 1);
			EXPECT_EQ(~i, word);
		}
		EXPECT_EQ(0, raw_at(d, ADDRESS + PAGES(page + 1)) &
				     P2M_PTE_DIRTY);
	}
	for (i = 0; i < 20; i++)
		page_fill(d->mem + PAGES(LOW_PFN + i * 5), LOW_PFN + i * 5);
	EXPECT_EQ(END_PFN, first_mismatch(d));
	expect_agreement(_metadata, d);
}

/* Random operations, over a model of what a space is. */

#define SLOT_PAGES 512ULL
#define AREA_SLOTS 2
#define AREA_PAGES (AREA_SLOTS * SLOT_PAGES)
#define NR_AREAS 6

struct model_page {
	bool is_used; /* there is an entry, present or not */
	__u8 level;
	__u64 pfn;
	__u64 flags;
};

struct model_area {
	__u64 address;
	/* There is a table of level 0. */
	bool has_table[AREA_SLOTS];
	struct model_page pages[AREA_PAGES];
};

struct model {
	struct domain *d;
	__u64 random;
	/* The processor sets Accessed bits on its own. */
	bool is_accessed_unknown;
	struct model_area areas[NR_AREAS];
};

static void model_init(struct model *m, struct domain *d, __u32 nr_levels,
		       __u64 seed)
{
	/* Across borders of all kinds of tables. */
	const __u64 middles[NR_AREAS] = {
		PAGES(512), 1ULL << 30, 1ULL << 39, 1ULL << 46,
		nr_levels == 5 ? 1ULL << 48 : 3ULL << 39,
		(nr_levels == 5 ? 1ULL << 56 : 1ULL << 47) - PAGES(512),
	};
	size_t i;

	memset(m, 0, sizeof(*m));
	m->d = d;
	m->random = seed;
	for (i = 0; i < NR_AREAS; i++)
		m->areas[i].address = middles[i] - PAGES(512);
}

static __u64 below(struct model *m, __u64 end)
{
	return next_random(&m->random) % end;
}

/* What an entry for a PFN becomes, if that isn't there: nothing, or not present. */
static bool is_dropped(const struct model *m, __u64 pfn)
{
	return m->d->backend == P2M && !is_backed(m->d, pfn);
}

static void model_split(struct model_area *area, __u64 page)
{
	__u64 slot = page / SLOT_PAGES, i;

	for (i = slot * SLOT_PAGES; i < (slot + 1) * SLOT_PAGES; i++)
		area->pages[i].level = 0;
	area->has_table[slot] = true;
}

static bool covers(__u64 start, __u64 nr, __u64 slot)
{
	return start <= slot * SLOT_PAGES &&
	       (slot + 1) * SLOT_PAGES <= start + nr;
}

/* The errno that it takes. */
static int model_map(struct model *m, struct model_area *area, __u64 start,
		     __u64 nr, __u64 pfn, __u64 flags, unsigned int max_level)
{
	__u64 i;

	for (i = start; i < start + nr; i++)
		if (area->pages[i].is_used)
			return EEXIST;
	for (i = start; i < start + nr; i++) {
		__u64 slot = i / SLOT_PAGES;
		__u64 first = pfn + slot * SLOT_PAGES - start;
		struct model_page *page = &area->pages[i];

		*page = (struct model_page){
			.is_used = true,
			.pfn = pfn + i - start,
			.flags = flags,
		};
		if (max_level && covers(start, nr, slot) &&
		    !area->has_table[slot] && is_run(m->d, first, 1)) {
			page->level = 1;
			continue;
		}
		page->is_used = !is_dropped(m, page->pfn);
	}
	for (i = start; i < start + nr; i++)
		if (!area->pages[i].level)
			area->has_table[i / SLOT_PAGES] = true;
	return 0;
}

/* How many pages it takes away. */
static __u64 model_unmap(struct model_area *area, __u64 start, __u64 nr)
{
	__u64 i, slot, done = 0;

	for (i = start; i < start + nr; i++) {
		struct model_page *page = &area->pages[i];

		if (!page->is_used)
			continue;
		if (page->level && !covers(start, nr, i / SLOT_PAGES))
			model_split(area, i);
		page->is_used = false;
		page->level = 0;
		done++;
	}
	for (slot = start / SLOT_PAGES; slot * SLOT_PAGES < start + nr; slot++) {
		area->has_table[slot] = false;
		for (i = slot * SLOT_PAGES; i < (slot + 1) * SLOT_PAGES; i++)
			area->has_table[slot] |= area->pages[i].is_used &&
						 !area->pages[i].level;
	}
	return done;
}

static int model_change(struct model *m, struct model_area *area, __u64 start,
			__u64 nr, bool is_frames, __u64 value)
{
	__u64 i;

	for (i = start; i < start + nr; i++)
		if (!area->pages[i].is_used)
			return ENOENT;
	for (i = start; i < start + nr; i++) {
		struct model_page *page = &area->pages[i];
		__u64 slot = i / SLOT_PAGES;

		if (page->level &&
		    (!covers(start, nr, slot) ||
		     (is_frames &&
		      !is_run(m->d, value + slot * SLOT_PAGES - start, 1))))
			model_split(area, i);
		if (is_frames)
			page->pfn = value + i - start;
		else
			page->flags = value | (page->flags & PTE_AD);
		page->is_used = !is_dropped(m, page->pfn);
	}
	return 0;
}

/* The frames of a range are about to change. */
static void model_suspend(struct model *m, __u64 pfn, __u64 nr)
{
	size_t a;
	__u64 i;

	/* Native tables have none. */
	if (m->d->backend == NATIVE)
		return;
	for (a = 0; a < NR_AREAS; a++)
		for (i = 0; i < AREA_PAGES; i++) {
			struct model_page *page = &m->areas[a].pages[i];

			if (page->is_used && page->level &&
			    pfn <= page->pfn && page->pfn < pfn + nr)
				model_split(&m->areas[a], i);
		}
}

/* The raw word of the leaf. */
static __u64 model_raw(const struct model *m, const struct model_page *page,
		       __u64 index)
{
	__u64 pfn = page->level ? page->pfn - index % SLOT_PAGES : page->pfn;
	bool is_present = m->d->backend == NATIVE || is_backed(m->d, pfn);
	__u64 frame = m->d->backend != NATIVE && is_present ?
			      m->d->walker.p2m[pfn] :
			      pfn;
	__u64 flags = page->flags;

	if (page->level && flags & P2M_PTE_PAT)
		flags ^= P2M_PTE_PAT | PTE_PAT_LARGE;
	return PAGES(frame) | flags | (is_present ? PTE_P : 0) |
	       (page->level ? PTE_PS : 0);
}

/* How many tables it takes. */
static size_t model_tables(const struct model *m, unsigned int nr_levels)
{
	__u64 seen[NR_AREAS * AREA_SLOTS];
	size_t nr = 1, nr_seen, i, j;
	unsigned int level;

	for (level = 0; level < nr_levels - 1; level++) {
		nr_seen = 0;
		for (i = 0; i < NR_AREAS * AREA_SLOTS; i++) {
			const struct model_area *area = &m->areas[i / AREA_SLOTS];
			__u64 slot = i % AREA_SLOTS;
			__u64 page = area->address / P2M_PAGE_SIZE +
				     slot * SLOT_PAGES;
			__u64 key = page >> (9 * (level + 1));
			bool exists = area->has_table[slot] ||
				      (level && area->pages[slot * SLOT_PAGES]
							.is_used);

			if (!exists)
				continue;
			for (j = 0; j < nr_seen && seen[j] != key; j++)
				;
			if (j == nr_seen)
				seen[nr_seen++] = key;
		}
		nr += nr_seen;
	}
	return nr;
}

static void expect_model(struct __test_metadata *_metadata, struct model *m)
{
	struct domain *d = m->d;
	__u64 ignored = m->is_accessed_unknown ? P2M_PTE_ACCESSED : 0;
	struct walker_walk walk;
	__u64 used = 0, dumped = 0, i;
	struct dump dump;
	size_t a, nr;

	ASSERT_EQ(0, walker_refresh(&d->walker));
	for (a = 0; a < NR_AREAS; a++)
		for (i = 0; i < AREA_PAGES; i++) {
			const struct model_page *page = &m->areas[a].pages[i];
			__u64 address = m->areas[a].address + PAGES(i);
			const struct walker_step *last;
			__u64 raw;

			walker_walk(&d->walker, address, &walk);
			ASSERT_FALSE(walk.is_malformed);
			last = &walk.steps[walk.nr_steps - 1];
			if (!page->is_used) {
				ASSERT_EQ(0, last->raw)
					TH_LOG("address %llx", address);
				continue;
			}
			used++;
			raw = model_raw(m, page, i);
			ASSERT_EQ(raw | ignored, last->raw | ignored)
				TH_LOG("address %llx", address);
			ASSERT_EQ(raw & ignored, raw & ignored & last->raw);
			ASSERT_EQ(page->level, last->level);
			if (walk.is_present)
				ASSERT_EQ(page->pfn, walk.pfn);
		}
	/* And nothing else. */
	dump = dump_all(_metadata, d->fd, d->space);
	for (i = 0; i < dump.nr; i++)
		dumped += dump.spans[i].nr_pages;
	free(dump.spans);
	ASSERT_EQ(used, dumped);
	nr = expect_agreement(_metadata, d);
	ASSERT_EQ(model_tables(m, d->walker.nr_levels), nr);
	m->is_accessed_unknown |= domain_has_cpu(d);
}

/* A part of an area, often of whole slots. */
static void pick_pages(struct model *m, __u64 *start, __u64 *nr)
{
	if (below(m, 3)) {
		*start = below(m, AREA_PAGES);
		*nr = 1 + below(m, below(m, 4) ? 40 : AREA_PAGES);
	} else {
		*start = below(m, AREA_SLOTS) * SLOT_PAGES;
		*nr = SLOT_PAGES * (1 + below(m, AREA_SLOTS));
	}
	if (*nr > AREA_PAGES - *start)
		*nr = AREA_PAGES - *start;
}

/* Frames for them, with or without some that aren't there. */
static __u64 pick_pfn(struct model *m, __u64 start, __u64 nr, bool with_holes)
{
	if (!below(m, 2) && start % SLOT_PAGES + nr <= RUN_PAGES)
		return RUN_PFN + start % SLOT_PAGES +
		       (nr <= SLOT_PAGES ? SLOT_PAGES * below(m, 2) : 0);
	if (with_holes && !below(m, 4))
		return HOLE_PFN - below(m, nr) + below(m, HOLE_PAGES);
	if (nr <= 400)
		return LOW_PFN + below(m, LOW_PAGES - nr);
	return RUN_PFN + below(m, RUN_PAGES - nr + 1);
}

static const __u64 random_flags = P2M_PTE_RW | P2M_PTE_USER | P2M_PTE_NX |
				  PTE_AD;

TEST_F_TIMEOUT(space, random_operations, 120)
{
	struct domain *d = &self->d;
	struct model *m = malloc(sizeof(*m));
	struct p2m_space_unmap unmap;
	struct p2m_space_change change;
	struct p2m_exchange exchange;
	struct p2m_move move;
	unsigned int counts[8] = { 0 }, step, op;
	__u64 start, nr, pfn, address, flags, a, b;
	int ret, expected;

	ASSERT_NE(NULL, m);
	model_init(m, d, variant->nr_levels, 20 + variant->nr_levels);
	fill_all(d);
	for (step = 0; step < 1200; step++) {
		struct model_area *area = &m->areas[below(m, NR_AREAS)];
		unsigned int max_level = below(m, 3);

		pick_pages(m, &start, &nr);
		pfn = pick_pfn(m, start, nr, true);
		address = area->address + PAGES(start);
		flags = next_random(&m->random) & random_flags;
		/* So that the processor isn't kept out of everything. */
		if (!d->has_cpu || d->backend == NATIVE)
			flags |= next_random(&m->random) & P2M_PTE_PAT;
		op = below(m, 40);
		if (op < 16) {
			expected = model_map(m, area, start, nr, pfn, flags,
					     max_level);
			ret = _test_cmd_space_map(d->fd, d->space, address, pfn,
						  nr, flags, max_level);
			ASSERT_EQ(expected, ret ? errno : 0)
				TH_LOG("step %u", step);
			counts[expected ? 1 : 0]++;
		} else if (op < 25) {
			__u64 done = model_unmap(area, start, nr);

			ret = _test_cmd_space_unmap(d->fd, d->space, 0, address,
						    nr, &unmap);
			ASSERT_EQ(done ? 0 : ENOENT, ret ? errno : 0)
				TH_LOG("step %u", step);
			ASSERT_EQ(done, unmap.out_pages) TH_LOG("step %u", step);
			counts[2]++;
		} else if (op < 37) {
			bool is_frames = op >= 32;

			/* Where it may succeed. */
			while (nr > 1 && !area->pages[start + nr - 1].is_used)
				nr--;
			while (nr > 1 && !area->pages[start].is_used) {
				start++;
				nr--;
			}
			address = area->address + PAGES(start);
			expected = model_change(m, area, start, nr, is_frames,
						is_frames ? pfn : flags);
			ret = _test_cmd_space_change(
				d->fd, d->space,
				is_frames ? P2M_CHANGE_FRAMES : 0, address, nr,
				is_frames ? pfn : flags, &change);
			ASSERT_EQ(expected, ret ? errno : 0)
				TH_LOG("step %u", step);
			ASSERT_EQ(expected ? 0 : nr, change.out_pages)
				TH_LOG("step %u", step);
			counts[3] += !expected;
		} else if (op == 37) {
			nr = 1 + below(m, 300);
			a = below(m, 2) ? LOW_PFN + below(m, LOW_PAGES - nr) :
					  RUN_PFN + below(m, RUN_PAGES - nr);
			move = test_cmd_move_by(d->fd, a, nr, below(m, 2));
			ASSERT_EQ(nr, move.out_pages + move.out_busy);
			ASSERT_EQ(0, move.out_busy);
			model_suspend(m, a, nr);
			counts[4]++;
		} else if (op == 38) {
			nr = 1 + below(m, 100);
			a = LOW_PFN + below(m, LOW_PAGES - nr);
			b = RUN_PFN + below(m, RUN_PAGES - nr);
			exchange = test_cmd_exchange(d->fd, a, b, nr);
			ASSERT_EQ(nr, exchange.out_pages);
			model_suspend(m, a, nr);
			model_suspend(m, b, nr);
			counts[5]++;
		} else {
			unsigned int order = below(m, 2) ? 9 : below(m, 9);

			a = RUN_PFN + (below(m, NR_RUNS) << 9);
			ret = make_contiguous(d->fd, a, order);
			if (!ret) {
				model_suspend(m, a, 1ULL << order);
				counts[6]++;
			} else {
				/* Memory may be in pieces by now. */
				ASSERT_TRUE(errno == ENOMEM ||
					    errno == EADDRNOTAVAIL);
			}
		}
		if (op >= 37)
			ASSERT_EQ(0, walker_refresh(&d->walker));
		if (step % 40 == 39)
			expect_model(_metadata, m);
	}
	/* It has really seen something of everything. */
	for (op = 0; op < 7; op++)
		EXPECT_LT(5, counts[op]) TH_LOG("operation %u", op);
	EXPECT_EQ(END_PFN, first_mismatch(d));
	for (nr = 0, a = 0; a < NR_AREAS; a++)
		for (b = 0; b < AREA_PAGES; b++)
			nr += m->areas[a].pages[b].is_used;
	EXPECT_EQ(nr, test_cmd_space_unmap(d->fd, d->space, P2M_UNMAP_ALL, 0, 0));
	EXPECT_EQ(1, expect_agreement(_metadata, d));
	free(m);
}

/* Programs that know nothing of a backend: the same one over all of them. */

/* As the kernel of a guest sees it: no machine frames, and pages like pages. */
static void forget_frames(struct dump *dump)
{
	size_t i, nr = 0;

	for (i = 0; i < dump->nr; i++) {
		struct p2m_span *span = &dump->spans[i], *last = NULL;

		span->mfn = 0;
		if (nr)
			last = &dump->spans[nr - 1];
		if (last && last->pte_flags == span->pte_flags &&
		    last->level == span->level &&
		    last->pfn + last->nr_pages == span->pfn &&
		    last->address + PAGES(last->nr_pages) == span->address)
			last->nr_pages += span->nr_pages;
		else
			dump->spans[nr++] = *span;
	}
	dump->nr = nr;
}

FIXTURE(backends)
{
	struct domain d;
	__u32 spaces[3];
};

FIXTURE_VARIANT(backends)
{
	__u32 nr_levels;
};

FIXTURE_VARIANT_ADD(backends, levels_4) { .nr_levels = 4 };
FIXTURE_VARIANT_ADD(backends, levels_5) { .nr_levels = 5 };

FIXTURE_SETUP(backends)
{
	size_t i;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	domain_open(_metadata, &self->d);
	ASSERT_EQ(0, close(p2m_open()));
	for (i = 0; i < 3; i++)
		self->spaces[i] =
			test_cmd_space_create(self->d.fd, backend_names[i],
					      variant->nr_levels,
					      POOL_PFN + 60 * i, 60)
				.out_space;
}

FIXTURE_TEARDOWN(backends)
{
	domain_close(_metadata, &self->d);
}

/*
 * Over pages that are there, no backend differs from another: neither in what
 * commands return, nor in what is mapped afterwards.
 */
TEST_F_TIMEOUT(backends, same_program_same_view, 120)
{
	struct domain *d = &self->d;
	struct model *m = malloc(sizeof(*m));
	struct p2m_space_unmap unmap;
	struct p2m_space_change change;
	struct p2m_move move;
	struct dump dumps[3];
	unsigned int step, op;
	size_t i, nr_spans = 0;

	ASSERT_NE(NULL, m);
	/* Only for its areas. */
	model_init(m, d, variant->nr_levels, 30 + variant->nr_levels);
	for (step = 0; step < 400; step++) {
		__u64 area = m->areas[below(m, NR_AREAS)].address, start, nr;
		__u64 flags = next_random(&m->random) &
			      (random_flags | P2M_PTE_PAT | P2M_PTE_PCD);
		int errors[3];
		__u64 out[3] = { 0 }, pfn, address;

		pick_pages(m, &start, &nr);
		pfn = pick_pfn(m, start, nr, false);
		address = area + PAGES(start);
		op = below(m, 10);
		if (op == 9)
			move = test_cmd_move_by(d->fd, LOW_PFN + below(m, 100), 50,
						P2M_POLICY_ANY);
		for (i = 0; i < 3 && op < 9; i++) {
			int ret;

			if (op < 4) {
				ret = _test_cmd_space_map(d->fd, self->spaces[i],
							  address, pfn, nr,
							  flags, 0);
			} else if (op < 6) {
				ret = _test_cmd_space_unmap(
					d->fd, self->spaces[i], 0, address, nr,
					&unmap);
				out[i] = unmap.out_pages;
			} else {
				ret = _test_cmd_space_change(
					d->fd, self->spaces[i],
					op == 6 ? P2M_CHANGE_FRAMES : 0, address,
					nr % 5 + 1, op == 6 ? pfn : flags,
					&change);
				out[i] = change.out_pages;
			}
			errors[i] = ret ? errno : 0;
			ASSERT_EQ(errors[0], errors[i]) TH_LOG("step %u", step);
			ASSERT_EQ(out[0], out[i]) TH_LOG("step %u", step);
		}
		if (op == 9)
			ASSERT_EQ(50, move.out_pages);
		if (step % 20 != 19)
			continue;
		for (i = 0; i < 3; i++) {
			dumps[i] = dump_all(_metadata, d->fd, self->spaces[i]);
			forget_frames(&dumps[i]);
		}
		expect_same_dump(_metadata, &dumps[NATIVE], &dumps[P2M]);
		expect_same_dump(_metadata, &dumps[NATIVE], &dumps[LOSSLESS]);
		nr_spans += dumps[0].nr;
		for (i = 0; i < 3; i++)
			free(dumps[i].spans);
	}
	EXPECT_LT(100, nr_spans);
	free(m);
}

/* Domains with one kind of region are enough for the rest. */

FIXTURE(plain)
{
	int fd;
	__u64 base;
	__u64 total_pages;
	mode_t mode;
};

#define PLAIN_PAGES 1100ULL

FIXTURE_SETUP(plain)
{
	struct stat st;

	if (stat(P2M_DEVICE, &st))
		SKIP(return, "no " P2M_DEVICE);
	self->mode = st.st_mode & 07777;
	self->total_pages = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create(self->fd, P2M_POLICY_SCATTER, PLAIN_PAGES, 0,
			       &self->base);
}

FIXTURE_TEARDOWN(plain)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
	/* A test may have changed it, and be nobody by now. */
	if (!geteuid())
		EXPECT_EQ(0, chmod(P2M_DEVICE, self->mode));
}

TEST_F(plain, unknown_backends_and_levels)
{
	static const char *const names[] = { "", "p2", "p2m2", "P2M", "p2m ",
					     "native\n" };
	static const __u32 levels[] = { 0, 1, 3, 6, ~0U };
	struct p2m_space_create cmd = {
		.size = sizeof(cmd),
		.nr_levels = 4,
		.pool_pfn = self->base,
		.pool_pages = 10,
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(names); i++)
		test_err_space_create(ENOENT, self->fd, names[i], 4, self->base,
				      10);
	for (i = 0; i < ARRAY_LEN(levels); i++)
		test_err_space_create(EINVAL, self->fd, "p2m", levels[i],
				      self->base, 10);
	/* No end of the name, and no characters. */
	memset(cmd.backend, 'a', sizeof(cmd.backend));
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, P2M_SPACE_CREATE, &cmd));
	cmd.backend[sizeof(cmd.backend) - 1] = 0;
	EXPECT_ERRNO(ENOENT, ioctl(self->fd, P2M_SPACE_CREATE, &cmd));
	cmd.backend[0] = 0xff;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, P2M_SPACE_CREATE, &cmd));
	for (i = 0; i < ARRAY_LEN(backend_names); i++)
		test_cmd_space_create(self->fd, backend_names[i], 4 + i % 2,
				      self->base + 10 * i, 10);
}

TEST_F(plain, has_1024_spaces_at_most)
{
	struct p2m_space_create cmd = { 0 };
	__u32 last = 0;
	__u64 i;

	for (i = 0; i < 1024; i++) {
		cmd = test_cmd_space_create(self->fd, backend_names[i % 3], 4,
					    self->base + i, 1);
		ASSERT_LT(last, cmd.out_space);
		ASSERT_EQ(self->base + i, cmd.out_root_pfn);
		last = cmd.out_space;
	}
	test_err_space_create(EDQUOT, self->fd, "p2m", 4, self->base + i, 1);
	test_cmd_space_destroy(self->fd, last - 500);
	cmd = test_cmd_space_create(self->fd, "p2m", 4, self->base + i, 1);
	test_err_space_create(EDQUOT, self->fd, "p2m", 4, self->base + i + 1, 1);
	test_err_space_walk(ENOENT, self->fd, last - 500, 0);
	test_cmd_space_walk(self->fd, last - 499, 0);
	test_cmd_space_walk(self->fd, cmd.out_space, 0);
}

/* What an opener without CAP_SYS_ADMIN is shown of a p2m space, and what not. */
TEST_F(plain, unprivileged_opener_sees_no_machine_frames)
{
	const __u64 frames = 0x000ffffffffff000ULL;
	size_t b;

	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	for (b = 0; b < ARRAY_LEN(backend_names); b++) {
		bool is_native = b == NATIVE;
		int expected = is_native ? 0 : SIGBUS;
		struct p2m_space_create space;
		struct p2m_space_walk walk;
		struct p2m_info info;
		struct dump dump;
		char *rw, *ro;
		__u64 pfn = 0, word = 0;
		unsigned int i;
		int fd;

		fd = p2m_open_unprivileged();
		ASSERT_LE(0, fd);
		test_cmd_info(fd, &info);
		ASSERT_FALSE(info.out_features & P2M_FEATURE_MFN_VISIBLE);
		test_cmd_region_create(fd, P2M_POLICY_SCATTER, 40, 0, &pfn);
		rw = map_pages(fd, pfn, 40);
		ro = map_window(fd, PAGES(pfn), PAGES(40));
		ASSERT_NE(MAP_FAILED, rw);
		ASSERT_NE(MAP_FAILED, ro);
		for (i = 0; i < 40; i++)
			ASSERT_EQ(0, touch_write(rw + PAGES(i), 0));
		space = test_cmd_space_create(fd, backend_names[b], 4, pfn, 10);
		test_cmd_space_map(fd, space.out_space, ADDRESS, pfn + 10, 20,
				   P2M_PTE_RW, 0);

		walk = test_cmd_space_walk(fd, space.out_space,
					   ADDRESS + PAGES(5));
		ASSERT_EQ(4, walk.out_nr_steps);
		for (i = 0; i < 4; i++) {
			const struct p2m_step *step = &walk.out_steps[i];
			__u64 table = step->table_pfn - pfn;
			__u64 next = i < 3 ? walk.out_steps[i + 1].table_pfn :
					     pfn + 15;

			EXPECT_EQ(0, step->table_mfn);
			EXPECT_EQ(0, step->raw & frames);
			EXPECT_EQ(i < 3 ? LINK_FLAGS : PTE_P | P2M_PTE_RW,
				  step->raw);
			EXPECT_EQ(PAGES(next) | step->raw, step->val);
			ASSERT_GT(10, table);
			EXPECT_EQ(expected, touch_read(rw + PAGES(table)));
			EXPECT_EQ(expected, touch_read(ro + PAGES(table)));
			EXPECT_EQ(expected, touch_write(rw + PAGES(table) + 4088,
							0));
		}
		dump = dump_all(_metadata, fd, space.out_space);
		/* The runs of machine frames aren't told either. */
		ASSERT_EQ(1, dump.nr);
		EXPECT_EQ(20, dump.spans[0].nr_pages);
		EXPECT_EQ(pfn + 10, dump.spans[0].pfn);
		EXPECT_EQ(0, dump.spans[0].mfn);
		free(dump.spans);
		test_err_space_access(EPERM, fd, space.out_space, P2M_ACCESS_READ,
				      ADDRESS, &word, 1);
		/* An error that leaves nothing behind, and the end. */
		test_err_space_map(EEXIST, fd, space.out_space, ADDRESS - PAGES(5),
				   pfn + 10, 20, 0, 0);
		EXPECT_EQ(5, test_cmd_space_unmap(fd, space.out_space, 0,
						  ADDRESS, 5));
		test_cmd_space_destroy(fd, space.out_space);
		EXPECT_EQ(PAGES(10), first_nonzero(ro, PAGES(10)));
		munmap(rw, PAGES(40));
		munmap(ro, PAGES(40));
		close(fd);
	}
}

/*
 * The owner of native tables can link whatever they like, but tables of other spaces
 * are not read or written through it: what is in there isn't theirs.
 */
TEST_F(plain, native_tables_lead_to_no_others)
{
	struct p2m_space_create space, native;
	struct p2m_space_unmap unmap;
	struct p2m_space_walk walk;
	__u64 *root;
	__u64 pfn = 0;
	int fd;

	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	fd = p2m_open_unprivileged();
	ASSERT_LE(0, fd);
	test_cmd_region_create(fd, P2M_POLICY_SCATTER, 40, 0, &pfn);
	space = test_cmd_space_create(fd, "p2m", 4, pfn, 10);
	test_cmd_space_map(fd, space.out_space, ADDRESS, pfn + 20, 1, 0, 0);
	native = test_cmd_space_create(fd, "native", 4, pfn + 10, 10);
	root = map_pages(fd, native.out_root_pfn, 1);
	ASSERT_NE(MAP_FAILED, root);

	/* Each of the tables, as one that the root links. */
	walk = test_cmd_space_walk(fd, space.out_space, ADDRESS);
	ASSERT_EQ(4, walk.out_nr_steps);
	for (int i = 0; i < 4; i++) {
		__u64 table = walk.out_steps[i].table_pfn;

		root[0] = PAGES(table) | LINK_FLAGS;
		EXPECT_EQ(1, test_cmd_space_walk(fd, native.out_space, ADDRESS)
				     .out_nr_steps);
		EXPECT_EQ(-1, _test_cmd_space_map(fd, native.out_space, ADDRESS,
						  pfn + 21, 1, 0, 0));
		EXPECT_EQ(-1, _test_cmd_space_unmap(fd, native.out_space, 0,
						    ADDRESS, 1, &unmap));
	}
	root[0] = 0;
	EXPECT_EQ(0, memcmp(walk.out_steps,
			    test_cmd_space_walk(fd, space.out_space, ADDRESS)
				    .out_steps,
			    sizeof(walk.out_steps)));
	munmap(root, P2M_PAGE_SIZE);
	close(fd);
}

/* It is the caller, too, who needs the right to have the processor walk. */
TEST_F(plain, unprivileged_caller_cannot_ask_the_processor)
{
	struct p2m_space_create space;
	__u64 word;
	int status;
	pid_t pid;

	space = test_cmd_space_create(self->fd, "p2m", 4, self->base, 10);
	test_cmd_space_map(self->fd, space.out_space, ADDRESS, self->base + 10, 1,
			   0, 0);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct p2m_space_access cmd;
		int ret;

		if (drop_privileges())
			_exit(1);
		ret = _test_cmd_space_access(self->fd, space.out_space,
					     P2M_ACCESS_READ, ADDRESS, &word, 1,
					     &cmd);
		_exit(ret == -1 && errno == EPERM && !cmd.out_words ? 0 : 2);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	/* What it sees isn't a matter of the caller. */
	EXPECT_EQ(pfn_to_entry(self->fd, self->base),
		  test_cmd_space_walk(self->fd, space.out_space, ADDRESS)
			  .out_steps[0]
			  .table_mfn);
}

TEST_HARNESS_MAIN
