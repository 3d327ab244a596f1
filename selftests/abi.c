// SPDX-License-Identifier: GPL-2.0
/*
 * The ioctl format of /dev/p2m: sizes, flags, reserved members and pointers.
 *
 * Every command goes through every test, by the native system call and, on
 * x86-64, by the one of 32-bit programs. Each test takes arguments that are
 * valid (the first test says so) and makes one thing wrong with them.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abi_layout.h"
#include "kselftest_harness.h"
#include "p2m_util.h"

/* The region that every test's domain has. */
#define BASE_PFN 512
#define NR_PAGES 16
/* Longest structure that the tests pass. */
#define MAX_LEN (3 * P2M_PAGE_SIZE)

/*
 * What the kernel is pointed at. It is below 4 GiB, where a 32-bit program's
 * pointers reach, and ends at a page that can't be touched.
 */
struct arena {
	__u64 frames[NR_PAGES];
	__u64 entries[NR_PAGES];
	struct p2m_region regions[NR_PAGES];
	struct p2m_constraint constraints[NR_PAGES];
	struct p2m_space_info spaces[NR_PAGES];
	struct p2m_run runs[NR_PAGES];
	struct p2m_span spans[NR_PAGES];
	struct p2m_dma_segment segments[NR_PAGES];
	/* The number of the space, for commands that need one. */
	__u32 space;
	unsigned char buffer[MAX_LEN] __attribute__((aligned(4096)));
	unsigned char guard[P2M_PAGE_SIZE];
};

static void fill_nothing(struct arena *arena, void *arg)
{
	(void)arena;
	(void)arg;
}

static void fill_region_create(struct arena *arena, void *arg)
{
	struct p2m_region_create *cmd = arg;

	(void)arena;
	cmd->nr_pages = 3;
}

static void fill_region_destroy(struct arena *arena, void *arg)
{
	struct p2m_region_destroy *cmd = arg;

	(void)arena;
	cmd->base_pfn = BASE_PFN;
}

static void fill_region_list(struct arena *arena, void *arg)
{
	struct p2m_region_list *cmd = arg;

	cmd->regions = (uintptr_t)arena->regions;
	cmd->constraints = (uintptr_t)arena->constraints;
	cmd->nr = NR_PAGES;
}

static void fill_translate(struct arena *arena, void *arg)
{
	struct p2m_translate *cmd = arg;
	int i;

	for (i = 0; i < NR_PAGES; i++)
		arena->frames[i] = BASE_PFN + i;
	cmd->frames = (uintptr_t)arena->frames;
	cmd->entries = (uintptr_t)arena->entries;
	cmd->nr = NR_PAGES;
}

static void fill_runs(struct arena *arena, void *arg)
{
	struct p2m_runs *cmd = arg;

	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
	cmd->runs = (uintptr_t)arena->runs;
	cmd->nr = NR_PAGES;
}

/* What a space maps, and where something else can be mapped. */
#define SPACE_PAGES 4
#define SPACE_ADDRESS 0x10000ULL
#define FREE_ADDRESS 0x200000ULL
/* Its table pool, and a range for another one. */
#define POOL_PFN 4096
#define POOL_PAGES 16

static void fill_space_create(struct arena *arena, void *arg)
{
	struct p2m_space_create *cmd = arg;

	(void)arena;
	memcpy(cmd->backend, "p2m", sizeof("p2m"));
	cmd->nr_levels = 4;
	cmd->pool_pfn = POOL_PFN + POOL_PAGES;
	cmd->pool_pages = POOL_PAGES;
}

static void fill_space_destroy(struct arena *arena, void *arg)
{
	struct p2m_space_destroy *cmd = arg;

	cmd->space = arena->space;
}

static void fill_space_map(struct arena *arena, void *arg)
{
	struct p2m_space_map *cmd = arg;

	cmd->space = arena->space;
	cmd->address = FREE_ADDRESS;
	cmd->pfn = BASE_PFN;
	cmd->nr_pages = SPACE_PAGES;
	cmd->pte_flags = P2M_PTE_RW;
}

static void fill_space_unmap(struct arena *arena, void *arg)
{
	struct p2m_space_unmap *cmd = arg;

	cmd->space = arena->space;
	cmd->address = SPACE_ADDRESS;
	cmd->nr_pages = SPACE_PAGES;
}

static void fill_space_change(struct arena *arena, void *arg)
{
	struct p2m_space_change *cmd = arg;

	cmd->space = arena->space;
	cmd->address = SPACE_ADDRESS;
	cmd->nr_pages = SPACE_PAGES;
	cmd->value = P2M_PTE_USER;
}

static void fill_space_walk(struct arena *arena, void *arg)
{
	struct p2m_space_walk *cmd = arg;

	cmd->space = arena->space;
	cmd->address = SPACE_ADDRESS;
}

static void fill_space_dump(struct arena *arena, void *arg)
{
	struct p2m_space_dump *cmd = arg;

	cmd->space = arena->space;
	cmd->spans = (uintptr_t)arena->spans;
	cmd->nr = NR_PAGES;
}

static void fill_space_access(struct arena *arena, void *arg)
{
	struct p2m_space_access *cmd = arg;

	cmd->space = arena->space;
	cmd->op = P2M_ACCESS_READ;
	cmd->address = SPACE_ADDRESS;
	cmd->buffer = (uintptr_t)arena->entries;
	cmd->nr_words = NR_PAGES;
}

static void fill_release(struct arena *arena, void *arg)
{
	struct p2m_release *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = 2;
}

static void fill_populate(struct arena *arena, void *arg)
{
	struct p2m_populate *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
}

static void fill_move(struct arena *arena, void *arg)
{
	struct p2m_move *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
	cmd->policy = P2M_POLICY_SCATTER;
	cmd->seed = 3;
}

static void fill_evacuate(struct arena *arena, void *arg)
{
	struct p2m_evacuate *cmd = arg;

	(void)arena;
	/* The BIOS has it: the answer doesn't depend on placement. */
	cmd->start_mfn = 0xf0;
	cmd->nr_frames = 16;
}

static void fill_contiguous(struct arena *arena, void *arg)
{
	struct p2m_contiguous *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->order = 1;
}

static void fill_collapse(struct arena *arena, void *arg)
{
	struct p2m_collapse *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
}

static void fill_exchange(struct arena *arena, void *arg)
{
	struct p2m_exchange *cmd = arg;

	(void)arena;
	cmd->a_pfn = BASE_PFN;
	cmd->b_pfn = BASE_PFN + NR_PAGES / 2;
	cmd->nr_pages = NR_PAGES / 2;
}

static void fill_guard_check(struct arena *arena, void *arg)
{
	struct p2m_guard_check *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
}

static void fill_space_list(struct arena *arena, void *arg)
{
	struct p2m_space_list *cmd = arg;

	cmd->spaces = (uintptr_t)arena->spaces;
	cmd->nr = NR_PAGES;
}

static void fill_dma_plan(struct arena *arena, void *arg)
{
	struct p2m_dma_plan *cmd = arg;

	cmd->start_pfn = BASE_PFN;
	cmd->offset = 100;
	cmd->length = (NR_PAGES - 1) * P2M_PAGE_SIZE;
	cmd->max_segments = 1;
	cmd->segments = (uintptr_t)arena->segments;
	cmd->nr = NR_PAGES;
}

/* A domain to take frames from; it lives as long as the test. */
static int lender(void)
{
	static int fd = -1;
	__u64 base = BASE_PFN;

	if (fd < 0) {
		fd = p2m_open();
		_test_cmd_region_create(fd, P2M_REGION_FIXED, P2M_POLICY_ANY,
					NR_PAGES, 0, &base);
	}
	return fd;
}

/* Its slots are taken, which is a matter of each slot. */
static void fill_dma_buf_export(struct arena *arena, void *arg)
{
	struct p2m_dma_buf_export *cmd = arg;

	(void)arena;
	cmd->start_pfn = BASE_PFN;
	cmd->nr_pages = NR_PAGES;
	cmd->fd_flags = O_RDWR | O_CLOEXEC;
}

static void fill_foreign_map(struct arena *arena, void *arg)
{
	struct p2m_foreign_map *cmd = arg;
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		arena->frames[i] = BASE_PFN + i;
	cmd->fd = lender();
	cmd->nr = NR_PAGES;
	cmd->start_pfn = BASE_PFN;
	cmd->frames = (uintptr_t)arena->frames;
	cmd->errors = (uintptr_t)arena->entries;
}

static void fill_foreign_unmap(struct arena *arena, void *arg)
{
	struct p2m_foreign_unmap *cmd = arg;

	cmd->start_pfn = BASE_PFN;
	cmd->errors = (uintptr_t)arena->entries;
	cmd->nr = NR_PAGES;
}

/* Where PCs have their interrupt controller: no memory. */
#define IDENTITY_PFN 0xfec00

static void fill_identity(struct arena *arena, void *arg)
{
	struct p2m_identity *cmd = arg;

	(void)arena;
	cmd->start_pfn = IDENTITY_PFN;
	cmd->nr_pages = 1;
}

static int call_native(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg);
}

#ifdef __x86_64__
static long int80(long nr, long a, long b, long c)
{
	long ret;

	asm volatile("int $0x80"
		     : "=a"(ret)
		     : "0"(nr), "b"(a), "c"(b), "d"(c)
		     : "memory", "r8", "r9", "r10", "r11");
	return ret;
}

/* The numbers of arch/x86/entry/syscalls/syscall_32.tbl. */
#define IA32_getpid 20
#define IA32_ioctl 54

static int call_ia32(int fd, unsigned long cmd, void *arg)
{
	long ret = int80(IA32_ioctl, fd, cmd, (long)arg);

	if (ret < 0) {
		errno = -ret;
		return -1;
	}
	return ret;
}

static bool have_ia32(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		pid = getpid();
		_exit(int80(IA32_getpid, 0, 0, 0) != pid);
	}
	/* Where it's not there, it is a general protection fault. */
	return waitpid(pid, &status, 0) == pid && status == 0;
}
#endif

FIXTURE(command)
{
	int fd;
	struct arena *arena;
	/* The longest structure, and the command's own, which ends at guard. */
	unsigned char *buffer;
	unsigned char *last;
	__u64 total_pages;
	bool can_succeed;
};

FIXTURE_VARIANT(command)
{
	unsigned int nr;
	size_t size;
	/* That of its first version, if it has grown since. */
	size_t first_size;
	__u32 known_flags;
	/* The members that must be 0, as far as there are any. */
	size_t reserved[2];
	/* It needs a space. */
	bool space;
	/* It needs P2M_FEATURE_*. */
	__u64 feature;
	/* It tells something in its structure. */
	bool has_out;
	void (*fill)(struct arena *arena, void *arg);
	int (*call)(int fd, unsigned long cmd, void *arg);
	bool ia32;
};

#define COMMAND_VARIANT(name, ...)                       \
	FIXTURE_VARIANT_ADD(command, name)               \
	{                                                \
		__VA_ARGS__, .call = call_native,        \
	}

#ifdef __x86_64__
#define COMMAND(name, ...)                                       \
	COMMAND_VARIANT(name, __VA_ARGS__);                      \
	FIXTURE_VARIANT_ADD(command, name##_ia32)                \
	{                                                        \
		__VA_ARGS__, .call = call_ia32, .ia32 = true,    \
	}
#else
#define COMMAND(name, ...) COMMAND_VARIANT(name, __VA_ARGS__)
#endif

COMMAND(info, .nr = P2M_INFO, .size = sizeof(struct p2m_info), .has_out = true,
	.fill = fill_nothing);
COMMAND(stat, .nr = P2M_STAT, .size = sizeof(struct p2m_stat), .has_out = true,
	.first_size = offsetof(struct p2m_stat, out_superpages),
	.fill = fill_nothing);
COMMAND(region_create, .nr = P2M_REGION_CREATE,
	.size = sizeof(struct p2m_region_create), .has_out = true,
	.known_flags = P2M_REGION_FIXED | P2M_REGION_ON_DEMAND |
		       P2M_REGION_GUARDED | P2M_REGION_NODE | P2M_REGION_RANGE |
		       P2M_REGION_COLOUR,
	.reserved = { offsetof(struct p2m_region_create, __reserved),
		      offsetof(struct p2m_region_create, __reserved2) },
	.fill = fill_region_create);
COMMAND(region_destroy, .nr = P2M_REGION_DESTROY,
	.size = sizeof(struct p2m_region_destroy), .fill = fill_region_destroy);
COMMAND(region_list, .nr = P2M_REGION_LIST,
	.size = sizeof(struct p2m_region_list), .has_out = true,
	.fill = fill_region_list);
COMMAND(translate, .nr = P2M_TRANSLATE, .size = sizeof(struct p2m_translate),
	.has_out = true, .known_flags = P2M_TRANSLATE_M2P,
	.fill = fill_translate);
COMMAND(runs, .nr = P2M_RUNS, .size = sizeof(struct p2m_runs), .has_out = true,
	.fill = fill_runs);

COMMAND(space_create, .nr = P2M_SPACE_CREATE,
	.size = sizeof(struct p2m_space_create), .has_out = true,
	.space = true, .fill = fill_space_create);
COMMAND(space_destroy, .nr = P2M_SPACE_DESTROY,
	.size = sizeof(struct p2m_space_destroy), .space = true,
	.reserved = { offsetof(struct p2m_space_destroy, __reserved) },
	.fill = fill_space_destroy);
COMMAND(space_map, .nr = P2M_SPACE_MAP, .size = sizeof(struct p2m_space_map),
	.space = true, .fill = fill_space_map);
COMMAND(space_unmap, .nr = P2M_SPACE_UNMAP,
	.size = sizeof(struct p2m_space_unmap), .has_out = true,
	.known_flags = P2M_UNMAP_ALL, .space = true,
	.reserved = { offsetof(struct p2m_space_unmap, __reserved) },
	.fill = fill_space_unmap);
COMMAND(space_change, .nr = P2M_SPACE_CHANGE,
	.size = sizeof(struct p2m_space_change), .has_out = true,
	.known_flags = P2M_CHANGE_FRAMES, .space = true,
	.reserved = { offsetof(struct p2m_space_change, __reserved) },
	.fill = fill_space_change);
COMMAND(space_walk, .nr = P2M_SPACE_WALK, .size = sizeof(struct p2m_space_walk),
	.has_out = true, .space = true, .fill = fill_space_walk);
COMMAND(space_dump, .nr = P2M_SPACE_DUMP, .size = sizeof(struct p2m_space_dump),
	.has_out = true, .space = true,
	.reserved = { offsetof(struct p2m_space_dump, __reserved) },
	.fill = fill_space_dump);
COMMAND(space_access, .nr = P2M_SPACE_ACCESS,
	.size = sizeof(struct p2m_space_access), .has_out = true,
	.space = true, .feature = P2M_FEATURE_CPU_ACCESS,
	.reserved = { offsetof(struct p2m_space_access, __reserved) },
	.fill = fill_space_access);

COMMAND(release, .nr = P2M_RELEASE, .size = sizeof(struct p2m_release),
	.has_out = true, .fill = fill_release);
COMMAND(populate, .nr = P2M_POPULATE, .size = sizeof(struct p2m_populate),
	.has_out = true, .fill = fill_populate);
COMMAND(move, .nr = P2M_MOVE, .size = sizeof(struct p2m_move), .has_out = true,
	.reserved = { offsetof(struct p2m_move, __reserved) }, .fill = fill_move);
COMMAND(evacuate, .nr = P2M_EVACUATE, .size = sizeof(struct p2m_evacuate),
	.has_out = true,
	.known_flags = P2M_EVACUATE_KEEP_OUT | P2M_EVACUATE_READMIT,
	.fill = fill_evacuate);
COMMAND(contiguous, .nr = P2M_CONTIGUOUS, .size = sizeof(struct p2m_contiguous),
	.has_out = true, .fill = fill_contiguous);
COMMAND(collapse, .nr = P2M_COLLAPSE, .size = sizeof(struct p2m_collapse),
	.has_out = true, .fill = fill_collapse);
COMMAND(exchange, .nr = P2M_EXCHANGE, .size = sizeof(struct p2m_exchange),
	.has_out = true, .fill = fill_exchange);
COMMAND(audit, .nr = P2M_AUDIT, .size = sizeof(struct p2m_audit),
	.has_out = true, .fill = fill_nothing);
COMMAND(guard_check, .nr = P2M_GUARD_CHECK,
	.size = sizeof(struct p2m_guard_check), .has_out = true,
	.known_flags = P2M_GUARD_REFILL, .fill = fill_guard_check);
COMMAND(fail_nth, .nr = P2M_FAIL_NTH, .size = sizeof(struct p2m_fail_nth),
	.has_out = true, .fill = fill_nothing);
COMMAND(dma_plan, .nr = P2M_DMA_PLAN, .size = sizeof(struct p2m_dma_plan),
	.has_out = true, .fill = fill_dma_plan);
COMMAND(foreign_map, .nr = P2M_FOREIGN_MAP,
	.size = sizeof(struct p2m_foreign_map), .has_out = true,
	.reserved = { offsetof(struct p2m_foreign_map, __reserved) },
	.fill = fill_foreign_map);
COMMAND(foreign_unmap, .nr = P2M_FOREIGN_UNMAP,
	.size = sizeof(struct p2m_foreign_unmap), .has_out = true,
	.fill = fill_foreign_unmap);
COMMAND(identity, .nr = P2M_IDENTITY, .size = sizeof(struct p2m_identity),
	.has_out = true, .fill = fill_identity);
COMMAND(space_list, .nr = P2M_SPACE_LIST, .size = sizeof(struct p2m_space_list),
	.has_out = true, .fill = fill_space_list);

COMMAND(dma_buf_export, .nr = P2M_DMA_BUF_EXPORT,
	.size = sizeof(struct p2m_dma_buf_export), .has_out = true,
	.feature = P2M_FEATURE_DMA_BUF, .fill = fill_dma_buf_export);

/* The last command that there is. */
#define LAST_COMMAND P2M_CMD_DMA_BUF_EXPORT

/* A new domain with the region that the valid arguments speak of. */
static int new_domain(struct __test_metadata *_metadata)
{
	int fd = p2m_open();

	ASSERT_LE(0, fd);
	/* Scattered, so that the number of runs is the same every time. */
	test_cmd_region_create_fixed(fd, P2M_POLICY_SCATTER, NR_PAGES, 1,
				     BASE_PFN);
	return fd;
}

/* A place for an identity, with nothing in it. */
static void add_identity_place(struct __test_metadata *_metadata, int fd)
{
	__u64 base = IDENTITY_PFN;

	ASSERT_EQ(0, _test_cmd_region_create(fd, P2M_REGION_FIXED |
					     P2M_REGION_ON_DEMAND,
					     P2M_POLICY_ANY, 1, 0, &base));
}

/* A space in it, which maps the first pages of the region. */
static __u32 add_space(struct __test_metadata *_metadata, int fd)
{
	struct p2m_space_create create = {
		.size = sizeof(create),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = POOL_PFN,
		.pool_pages = POOL_PAGES,
	};
	struct p2m_space_map map = {
		.size = sizeof(map),
		.address = SPACE_ADDRESS,
		.pfn = BASE_PFN,
		.nr_pages = SPACE_PAGES,
		.pte_flags = P2M_PTE_RW,
	};

	test_cmd_region_create_fixed(fd, P2M_POLICY_ANY, 2 * POOL_PAGES, 0,
				     POOL_PFN);
	ASSERT_EQ(0, ioctl(fd, P2M_SPACE_CREATE, &create));
	map.space = create.out_space;
	ASSERT_EQ(0, ioctl(fd, P2M_SPACE_MAP, &map));
	return create.out_space;
}

/* Valid arguments at @at, with a structure of @size bytes in all. */
static void fill(const FIXTURE_VARIANT(command) * variant,
		 struct arena *arena, void *at, size_t size)
{
	__u32 size32 = size;

	memset(at, 0, size);
	memcpy(at, &size32, sizeof(size32));
	variant->fill(arena, at);
}

static int call(const FIXTURE_VARIANT(command) * variant, int fd, void *arg)
{
	const struct p2m_dma_buf_export *cmd = arg;
	int ret = variant->call(fd, variant->nr, arg);

	/* The same descriptor next time, and no pages that are kept. */
	if (!ret && variant->nr == P2M_DMA_BUF_EXPORT && cmd->out_fd >= 0)
		close(cmd->out_fd);
	return ret;
}

FIXTURE_SETUP(command)
{
	struct p2m_info info;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
#ifdef __x86_64__
	if (variant->ia32 && !have_ia32())
		SKIP(return, "this kernel runs no 32-bit programs");
	self->arena = mmap(NULL, sizeof(*self->arena), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
#else
	self->arena = mmap(NULL, sizeof(*self->arena), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#endif
	ASSERT_NE(MAP_FAILED, self->arena);
	ASSERT_EQ(0, mprotect(self->arena->guard, P2M_PAGE_SIZE, PROT_NONE));
	self->buffer = self->arena->buffer;
	self->last = self->arena->guard - variant->size;
	if (variant->nr == P2M_FOREIGN_MAP)
		ASSERT_LE(0, lender());
	self->total_pages = total_pages();
	self->fd = new_domain(_metadata);
	if (variant->nr == P2M_IDENTITY)
		add_identity_place(_metadata, self->fd);
	if (variant->space)
		self->arena->space = add_space(_metadata, self->fd);
	test_cmd_info(self->fd, &info);
	self->can_succeed = (info.out_features & variant->feature) ==
			    variant->feature;
	if (self->can_succeed)
		return;
	/* It may not even be there. */
	fill(variant, self->arena, self->buffer, variant->size);
	if (call(variant, self->fd, self->buffer) && errno == ENOTTY)
		SKIP(return, "the module has no such command");
}

FIXTURE_TEARDOWN(command)
{
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->total_pages, total_pages());
}

TEST_F(command, valid_arguments_succeed)
{
	if (!self->can_succeed)
		SKIP(return, "the module can't do it here");

	fill(variant, self->arena, self->buffer, variant->size);
	ASSERT_EQ(0, call(variant, self->fd, self->buffer));
}

TEST_F(command, structure_may_end_where_memory_ends)
{
	if (!self->can_succeed)
		SKIP(return, "the module can't do it here");

	fill(variant, self->arena, self->last, variant->size);
	ASSERT_EQ(0, call(variant, self->fd, self->last));
}

static size_t first_size(const FIXTURE_VARIANT(command) * variant)
{
	return variant->first_size ? variant->first_size : variant->size;
}

/* Nobody has to know what was added later, and nothing is written there. */
TEST_F(command, size_of_the_first_version_is_enough)
{
	const size_t first = first_size(variant);
	__u32 size = first;
	size_t i;

	if (!self->can_succeed)
		SKIP(return, "the module can't do it here");
	fill(variant, self->arena, self->buffer, variant->size);
	memset(self->buffer + first, 0xa5, variant->size - first);
	memcpy(self->buffer, &size, sizeof(size));
	ASSERT_EQ(0, call(variant, self->fd, self->buffer));
	for (i = first; i < variant->size; i++)
		ASSERT_EQ(0xa5, self->buffer[i]);
}

TEST_F(command, smaller_size_is_EINVAL)
{
	struct snapshot snap;
	__u32 size;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (size = 0; size < first_size(variant); size++) {
		fill(variant, self->arena, self->buffer, variant->size);
		memcpy(self->buffer, &size, sizeof(size));
		ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
			TH_LOG("size %u", size);
		ASSERT_EQ(EINVAL, errno) TH_LOG("size %u", size);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

/* The lengths of the part that the kernel doesn't know. */
static const size_t tails[] = { 1, 2, 7, 8, 64, 1000, P2M_PAGE_SIZE };

/* The last one fills the page. */
static size_t tail_len(const FIXTURE_VARIANT(command) * variant, size_t i)
{
	return tails[i] < P2M_PAGE_SIZE - variant->size ?
		       tails[i] : P2M_PAGE_SIZE - variant->size;
}

TEST_F(command, nonzero_tail_is_E2BIG)
{
	struct snapshot snap;
	size_t i, size;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(tails); i++) {
		size = variant->size + tail_len(variant, i);

		/* The last byte alone. */
		fill(variant, self->arena, self->buffer, size);
		self->buffer[size - 1] = 1;
		ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
			TH_LOG("size %zu", size);
		ASSERT_EQ(E2BIG, errno) TH_LOG("size %zu", size);

		/* The first byte alone. */
		fill(variant, self->arena, self->buffer, size);
		self->buffer[variant->size] = 0x80;
		ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
			TH_LOG("size %zu", size);
		ASSERT_EQ(E2BIG, errno) TH_LOG("size %zu", size);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(command, larger_than_a_page_is_E2BIG)
{
	static const __u32 sizes[] = { P2M_PAGE_SIZE + 1, P2M_PAGE_SIZE + 8,
				       2 * P2M_PAGE_SIZE, 1U << 31, ~0U };
	struct snapshot snap;
	size_t i;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(sizes); i++) {
		fill(variant, self->arena, self->buffer, MAX_LEN);
		memcpy(self->buffer, &sizes[i], sizeof(sizes[i]));
		ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
			TH_LOG("size %u", sizes[i]);
		ASSERT_EQ(E2BIG, errno) TH_LOG("size %u", sizes[i]);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

/* What depends on which machine frames a domain got. */
static void forget_placement(const FIXTURE_VARIANT(command) * variant,
			     void *arg)
{
	struct p2m_space_walk *walk = arg;
	struct p2m_stat *stat = arg;
	int i;

	if (variant->nr == P2M_STAT)
		stat->out_m2p_tables = 0;
	if (variant->nr != P2M_SPACE_WALK)
		return;
	for (i = 0; i < P2M_MAX_STEPS; i++) {
		walk->out_steps[i].table_mfn = 0;
		walk->out_steps[i].raw = 0;
	}
}

TEST_F(command, zero_tail_changes_nothing)
{
	unsigned char expected[256];
	unsigned char *out = self->buffer + sizeof(__u32);
	size_t out_len = variant->size - sizeof(__u32);
	size_t i, len;

	if (!self->can_succeed)
		SKIP(return, "the module can't do it here");

	fill(variant, self->arena, self->buffer, variant->size);
	ASSERT_EQ(0, call(variant, self->fd, self->buffer));
	ASSERT_GE(sizeof(expected), variant->size);
	forget_placement(variant, self->buffer);
	memcpy(expected, out, out_len);

	for (i = 0; i < ARRAY_LEN(tails); i++) {
		len = tail_len(variant, i);
		ASSERT_EQ(0, close(self->fd));
		self->fd = new_domain(_metadata);
		if (variant->nr == P2M_IDENTITY)
			add_identity_place(_metadata, self->fd);
		if (variant->space)
			self->arena->space = add_space(_metadata, self->fd);
		fill(variant, self->arena, self->buffer, variant->size + len);
		ASSERT_EQ(0, call(variant, self->fd, self->buffer))
			TH_LOG("tail of %zu", len);
		forget_placement(variant, self->buffer);
		EXPECT_EQ(0, memcmp(expected, out, out_len))
			TH_LOG("tail of %zu", len);
		/* What the kernel doesn't know it doesn't write. */
		EXPECT_EQ(len, first_nonzero(self->buffer + variant->size, len))
			TH_LOG("tail of %zu", len);
	}
}

TEST_F(command, unknown_flag_is_EOPNOTSUPP)
{
	struct snapshot snap;
	__u32 flags;
	int bit;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (bit = 0; bit < 32; bit++) {
		flags = 1U << bit;
		if (flags & variant->known_flags)
			continue;
		fill(variant, self->arena, self->buffer, variant->size);
		memcpy(self->buffer + sizeof(__u32), &flags, sizeof(flags));
		ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
			TH_LOG("flag %#x", flags);
		ASSERT_EQ(EOPNOTSUPP, errno) TH_LOG("flag %#x", flags);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(command, nonzero_reserved_member_is_EINVAL)
{
	struct snapshot snap;
	__u32 value;
	size_t i;
	int bit;

	if (!variant->reserved[0])
		SKIP(return, "the command has none");

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(variant->reserved); i++) {
		if (!variant->reserved[i])
			break;
		for (bit = 0; bit < 32; bit++) {
			value = 1U << bit;
			fill(variant, self->arena, self->buffer, variant->size);
			memcpy(self->buffer + variant->reserved[i], &value,
			       sizeof(value));
			ASSERT_EQ(-1, call(variant, self->fd, self->buffer))
				TH_LOG("member %zu, value %#x", i, value);
			ASSERT_EQ(EINVAL, errno)
				TH_LOG("member %zu, value %#x", i, value);
		}
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	/* It was only that. */
	fill(variant, self->arena, self->buffer, variant->size);
	EXPECT_EQ(self->can_succeed ? 0 : -1,
		  call(variant, self->fd, self->buffer));
}

TEST_F(command, unreadable_structure_is_EFAULT)
{
	struct snapshot snap;
	unsigned char *guard = self->arena->guard;
	unsigned char *at;
	__u32 size = variant->size;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, NULL));
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, guard));
	/* Not even the size is whole. */
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, guard - 2));
	/* The last byte is missing. */
	fill(variant, self->arena, self->last, variant->size);
	at = self->last + 1;
	memmove(at, self->last, variant->size - 1);
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, at));
	/* The last byte of the tail is missing. */
	memset(self->buffer, 0, MAX_LEN);
	fill(variant, self->arena, self->last, variant->size);
	size++;
	memcpy(self->last, &size, sizeof(size));
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, self->last));
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(command, unwritable_structure_is_EFAULT)
{
	struct snapshot snap;

	if (!variant->has_out)
		SKIP(return, "the command tells nothing");

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	fill(variant, self->arena, self->buffer, variant->size);
	ASSERT_EQ(0, mprotect(self->buffer, MAX_LEN, PROT_READ));
	EXPECT_ERRNO(EFAULT, call(variant, self->fd, self->buffer));
	/* A region whose place nobody was told isn't there. */
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

/*
 * The number says which command it is, but the other parts of the request
 * aren't those of the command.
 */
TEST_F(command, other_encoding_is_ENOTTY)
{
	struct snapshot snap;
	unsigned int nr = _IOC_NR(variant->nr);
	unsigned int requests[] = {
		_IO(P2M_IOCTL_TYPE + 1, nr),
		_IO(0, nr),
		_IOC(_IOC_READ, P2M_IOCTL_TYPE, nr, variant->size),
		_IOC(_IOC_READ | _IOC_WRITE, P2M_IOCTL_TYPE, nr, variant->size),
		_IOC(_IOC_NONE, P2M_IOCTL_TYPE, nr, variant->size),
	};
	size_t i;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	for (i = 0; i < ARRAY_LEN(requests); i++) {
		fill(variant, self->arena, self->buffer, variant->size);
		ASSERT_EQ(-1, variant->call(self->fd, requests[i],
					    self->buffer))
			TH_LOG("request %#x", requests[i]);
		ASSERT_EQ(ENOTTY, errno) TH_LOG("request %#x", requests[i]);
	}
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

FIXTURE(device)
{
	int fd;
	/* A page with a hole behind it. */
	unsigned char *page;
};

FIXTURE_SETUP(device)
{
	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->fd = new_domain(_metadata);
	self->page = mmap(NULL, 2 * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->page);
	ASSERT_EQ(0, munmap(self->page + P2M_PAGE_SIZE, P2M_PAGE_SIZE));
}

FIXTURE_TEARDOWN(device)
{
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(device, unknown_command_is_ENOTTY)
{
	struct p2m_info info = { .size = sizeof(info) };
	unsigned int nr;

	for (nr = 0; nr < 256; nr++) {
		if (nr >= P2M_CMD_BASE && nr <= LAST_COMMAND)
			continue;
		ASSERT_EQ(-1, ioctl(self->fd, _IO(P2M_IOCTL_TYPE, nr), &info))
			TH_LOG("command %#x", nr);
		ASSERT_EQ(ENOTTY, errno) TH_LOG("command %#x", nr);
	}
	/* And with no argument that could be looked at. */
	EXPECT_ERRNO(ENOTTY, ioctl(self->fd, _IO(P2M_IOCTL_TYPE, 0x7f), NULL));
}

TEST_F(device, info_tells_the_constants)
{
	struct p2m_info info;

	test_cmd_info(self->fd, &info);
	EXPECT_EQ(P2M_ABI_VERSION, info.out_abi_version);
	EXPECT_EQ(12, info.out_page_shift);
	EXPECT_EQ(P2M_FEATURE_MFN_VISIBLE | P2M_FEATURE_TABLE_MMAP,
		  info.out_features &
		  (P2M_FEATURE_MFN_VISIBLE | P2M_FEATURE_TABLE_MMAP));
	EXPECT_EQ(7, info.out_policies & 7);
	EXPECT_EQ(P2M_MAX_PFN, info.out_max_pfn);
	EXPECT_LT(0, info.out_max_mfn);
	EXPECT_LT(0, info.out_max_domain_pages);
	EXPECT_LT(0, info.out_max_total_pages);
	EXPECT_LT(0, info.out_max_regions);
	EXPECT_TRUE(info.out_policies & (1ULL << info.out_default_policy));
}

TEST_F(device, stat_counts)
{
	struct p2m_stat before, stat;
	__u64 base;
	void *mem;
	int fd;

	test_cmd_stat(self->fd, &before);
	EXPECT_EQ(1, before.out_regions);
	EXPECT_EQ(NR_PAGES, before.out_pages);
	EXPECT_EQ(NR_PAGES, before.out_frames);
	EXPECT_EQ(0, before.out_faults);
	EXPECT_EQ(0, before.out_fault_pages);
	EXPECT_LE(1, before.out_total_domains);
	EXPECT_LE(NR_PAGES, before.out_total_pages);
	EXPECT_LT(0, before.out_p2m_tables);
	EXPECT_LT(0, before.out_m2p_tables);

	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 100, 0, &base);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(2, stat.out_regions);
	EXPECT_EQ(NR_PAGES + 100, stat.out_pages);
	EXPECT_EQ(before.out_total_pages + 100, stat.out_total_pages);
	EXPECT_EQ(before.out_total_domains, stat.out_total_domains);

	mem = map_pages(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, touch_read(mem));
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(1, stat.out_faults);
	EXPECT_LE(1, stat.out_fault_pages);
	EXPECT_GE(NR_PAGES, stat.out_fault_pages);

	fd = p2m_open();
	ASSERT_LE(0, fd);
	test_cmd_stat(fd, &stat);
	EXPECT_EQ(0, stat.out_regions);
	EXPECT_EQ(0, stat.out_pages);
	EXPECT_EQ(0, stat.out_faults);
	EXPECT_EQ(before.out_total_domains + 1, stat.out_total_domains);
	EXPECT_EQ(before.out_total_pages + 100, stat.out_total_pages);
	EXPECT_EQ(0, close(fd));

	test_cmd_region_destroy(self->fd, base);
	test_cmd_stat(self->fd, &stat);
	EXPECT_EQ(1, stat.out_regions);
	EXPECT_EQ(NR_PAGES, stat.out_pages);
	EXPECT_EQ(before.out_total_pages, stat.out_total_pages);
	EXPECT_EQ(before.out_total_domains, stat.out_total_domains);
}

TEST_F(device, header_agrees_with_info_and_stat)
{
	const volatile struct p2m_header *header;
	struct p2m_info info;
	struct p2m_stat stat;
	__u64 entry;

	header = map_window(self->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, header);
	test_cmd_info(self->fd, &info);
	test_cmd_stat(self->fd, &stat);
	entry = pfn_to_entry(self->fd, BASE_PFN);
	EXPECT_EQ(info.out_abi_version, header->abi_version);
	EXPECT_EQ(info.out_page_shift, header->page_shift);
	EXPECT_EQ(stat.out_generation, header->generation);
	EXPECT_EQ(0, header->generation & 1);
	EXPECT_LE(BASE_PFN + NR_PAGES, header->end_pfn);
	EXPECT_GE(P2M_MAX_PFN, header->end_pfn);
	EXPECT_LT(entry, header->end_mfn);
	EXPECT_GE(info.out_max_mfn, header->end_mfn);
	/* The rest of the page tells nothing. */
	EXPECT_EQ(P2M_PAGE_SIZE - sizeof(*header),
		  first_nonzero((const void *)(header + 1),
				P2M_PAGE_SIZE - sizeof(*header)));
}

TEST_F(device, unwritable_array_of_list_is_EFAULT)
{
	struct p2m_region *regions;
	struct p2m_region region;
	__u32 out_nr;

	/* Room for one and a half. */
	regions = (void *)(self->page + P2M_PAGE_SIZE -
			   sizeof(*regions) * 3 / 2);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, 4096);
	test_cmd_region_list(self->fd, 0, regions, 1, &out_nr, NULL);
	EXPECT_EQ(1, out_nr);

	memset(regions, 0, sizeof(*regions));
	EXPECT_ERRNO(EFAULT, _test_cmd_region_list(self->fd, 0, regions, 2,
						   &out_nr, NULL));
	/* It tells how far it got, and that much is right. */
	EXPECT_GE(1, out_nr);
	if (out_nr) {
		memcpy(&region, regions, sizeof(region));
		EXPECT_EQ(BASE_PFN, region.base_pfn);
		EXPECT_EQ(NR_PAGES, region.nr_pages);
	}
	test_err_region_list(EFAULT, self->fd, 0, NULL, 1);
}

TEST_F(device, arrays_of_no_elements_are_not_looked_at)
{
	void *bad = self->page + P2M_PAGE_SIZE;
	__u64 total, next;
	__u32 nr;

	test_cmd_region_list(self->fd, 0, bad, 0, &nr, &total);
	EXPECT_EQ(0, nr);
	EXPECT_EQ(1, total);
	test_cmd_runs(self->fd, BASE_PFN, NR_PAGES, bad, 0, &nr, &next);
	EXPECT_LT(0, nr);
	EXPECT_EQ(BASE_PFN + NR_PAGES, next);
	test_cmd_translate(self->fd, 0, (__u64 *)self->page,
			   (__u64 *)self->page, 0);
}

TEST_F(device, unreadable_frames_of_translate_is_EFAULT)
{
	const unsigned int half = NR_PAGES / 2;
	__u64 *frames = (__u64 *)(self->page + P2M_PAGE_SIZE) - half;
	__u64 entries[NR_PAGES] = {};
	struct p2m_translate cmd = {
		.size = sizeof(cmd),
		.nr = NR_PAGES,
		.frames = (uintptr_t)frames,
		.entries = (uintptr_t)entries,
	};
	__u64 *truth;
	unsigned int i;

	truth = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, truth);
	for (i = 0; i < half; i++)
		frames[i] = BASE_PFN + i;
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, P2M_TRANSLATE, &cmd));
	EXPECT_GE(half, cmd.out_nr);
	EXPECT_EQ(0, memcmp(truth, entries, cmd.out_nr * sizeof(*truth)));

	test_err_translate(EFAULT, self->fd, 0, NULL, entries, 1);
	free(truth);
}

TEST_F(device, unwritable_entries_of_translate_is_EFAULT)
{
	const unsigned int half = NR_PAGES / 2;
	__u64 *entries = (__u64 *)(self->page + P2M_PAGE_SIZE) - half;
	__u64 frames[NR_PAGES];
	struct p2m_translate cmd = {
		.size = sizeof(cmd),
		.nr = NR_PAGES,
		.frames = (uintptr_t)frames,
		.entries = (uintptr_t)entries,
	};
	__u64 *truth;
	unsigned int i;

	truth = range_to_entries(self->fd, BASE_PFN, NR_PAGES);
	ASSERT_NE(NULL, truth);
	for (i = 0; i < NR_PAGES; i++)
		frames[i] = BASE_PFN + i;
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, P2M_TRANSLATE, &cmd));
	EXPECT_GE(half, cmd.out_nr);
	EXPECT_EQ(0, memcmp(truth, entries, cmd.out_nr * sizeof(*truth)));

	test_err_translate(EFAULT, self->fd, 0, frames, NULL, 1);
	free(truth);
}

TEST_F(device, unwritable_array_of_runs_is_EFAULT)
{
	struct p2m_run *runs, run;
	__u64 next = 0;
	__u32 nr = 0;

	/* Three runs: nothing, a page, nothing. */
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, 4096);
	runs = (void *)(self->page + P2M_PAGE_SIZE - sizeof(*runs) * 3 / 2);
	test_cmd_runs(self->fd, 4095, 3, runs, 1, &nr, &next);
	EXPECT_EQ(1, nr);
	EXPECT_EQ(4096, next);

	EXPECT_ERRNO(EFAULT, _test_cmd_runs(self->fd, 4095, 3, runs, 3, &nr,
					    &next));
	EXPECT_GE(1, nr);
	EXPECT_EQ(4095 + nr, next);
	if (nr) {
		memcpy(&run, runs, sizeof(run));
		EXPECT_EQ(4095, run.pfn);
		EXPECT_EQ(1, run.nr_pages);
		EXPECT_EQ(P2M_ENTRY_INVALID, run.entry);
	}
	test_err_runs(EFAULT, self->fd, 4095, 3, NULL, 1);
}

TEST_F(device, unwritable_buffer_of_read_is_EFAULT)
{
	EXPECT_ERRNO(EFAULT, pread(self->fd, self->page + P2M_PAGE_SIZE, 8,
				   BASE_PFN * 8));
}

TEST_HARNESS_MAIN
