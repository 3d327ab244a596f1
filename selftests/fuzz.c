// SPDX-License-Identifier: GPL-2.0
/*
 * A fuzzer of /dev/p2m that knows its ABI: system calls on the same few domains
 * from several processes and threads at once, most of them valid, some not.
 *
 * It works in rounds. A round begins with fresh domains and ends with none, and
 * everything in it is a list of operations that is made beforehand, from the seed
 * and the number of the round, or (where there is KCOV) from operations that found
 * new code. So the list, which is stored before it's run, is all that is needed to
 * run a round again:
 *
 *	fuzz [--ops N] [--seconds S] [--seed N] [--record FILE]
 *	fuzz --replay FILE [--times N]
 *
 * What must hold, whatever the calls:
 *
 *  - A command fails only with errors that the header names.
 *  - P2M_AUDIT finds nothing wrong, at any time.
 *  - A call ends, and so does a process that was killed.
 *  - When a round is over, no domain and no page is left, and over many rounds
 *    the machine's free memory doesn't get less.
 *  - The kernel says nothing, which whoever reads its log has to check.
 *
 * Results are TAP.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/kcov.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "p2m_util.h"

#define NR_PROCS 2
#define NR_THREADS 3
/* Of each thread in a round. */
#define NR_OPS 1000
#define NR_DOMAINS 4
/* Those from here on are opened without CAP_SYS_ADMIN. */
#define FIRST_UNPRIVILEGED 3
#define NR_BUFFERS 4
#define NR_SLOTS 8
#define SLOT_PAGES 2048ULL
/* Most commands are about PFNs below this. */
#define NR_PFNS 2048ULL
#define REGION_SPACING 512ULL
/* Of those that are there from the beginning, the last few of which are tables. */
#define REGION_PAGES 96ULL
#define POOL_PAGES 16ULL
/*
 * How long a round may take on a machine that has other things to do, P2M_TIMEOUT_FACTOR
 * times as long on a slow kernel.
 */
#define ROUND_MS 300000ULL

/* Descriptors have fixed numbers, so do addresses: a list can be run again. */
#define DOMAIN_FD 100
#define BUFFER_FD 120
#define ARENA 0x200000000000UL
#define ARENA_PAGES 16UL
#define ARENA_READ_ONLY (ARENA + ARENA_PAGES * P2M_PAGE_SIZE)
#define ARENA_NOTHING (ARENA_READ_ONLY + P2M_PAGE_SIZE)
#define SLOTS 0x300000000000UL
/* A mapping may grow to twice its size. */
#define SLOT_SIZE (2 * SLOT_PAGES * P2M_PAGE_SIZE)

enum kind {
	OP_IOCTL,
	OP_MMAP,
	OP_MUNMAP,
	OP_MREMAP,
	OP_MPROTECT,
	OP_MADVISE,
	OP_MLOCK,
	OP_TOUCH,
	OP_READ,
	OP_REOPEN,
	OP_CLOSE,
	OP_FORK,
	OP_SIGNAL,
	OP_PIN,
	OP_COPY,
	OP_FDINFO,
	OP_OTHER,
	OP_BUFFER,
	NR_KINDS,
};

/* One call. What the arguments mean is up to the kind of it. */
struct op {
	__u8 kind;
	__u8 domain;
	__u8 command;
	__u8 where; /* the argument's place, of an ioctl */
	__u32 length;
	union {
		__u64 args[5];
		__u8 bytes[240];
	};
};

struct list {
	struct op ops[NR_PROCS][NR_THREADS][NR_OPS];
	/* The process that is killed after so many of its operations, if any. */
	__u32 victim;
	__u32 kill_after;
};

/* A few operations that found new code together. */
#define NR_FINDS 512
#define FIND_OPS 8

struct find {
	__u32 is_complete;
	struct op ops[FIND_OPS];
};

/* What all processes share. */
struct shared {
	struct list list;
	__u64 nr_done;
	__u64 nr_failed_calls;
	__u32 progress[NR_PROCS];
	__u32 nr_finds;
	__u32 nr_new;
	__u32 is_bad;
	char why[512];
	struct find finds[NR_FINDS];
	/* By a hash of the place. */
	__u8 seen[1 << 18];
};

static struct shared *shared;
static bool has_kcov;

/* The first thing that is wrong is what counts. */
#define bad(...)                                                          \
	({                                                                \
		if (!__atomic_exchange_n(&shared->is_bad, 1, __ATOMIC_SEQ_CST)) \
			snprintf(shared->why, sizeof(shared->why),        \
				 __VA_ARGS__);                            \
	})

/*
 * The ABI: what the members of the structures are.
 */
enum type {
	T_SIZE,
	T_FLAGS,
	T_ZERO,
	T_OUT,
	T_PFN,
	T_BASE,
	T_PAGES,
	T_MFN,
	T_FRAMES,
	T_SEED,
	T_POLICY,
	T_ARRAY,
	T_NR,
	T_SPACE,
	T_POOL,
	T_ADDRESS,
	T_WORD_ADDRESS,
	T_PTE,
	T_LEVELS,
	T_SMALL,
	T_BACKEND,
	T_DOMAIN_FD,
	T_ORDER,
	T_BITS,
	T_MASK,
	T_BYTES,
	T_OPEN_FLAGS,
	T_NTH,
	T_VALUE,
};

struct field {
	__u16 offset;
	__u16 size;
	__u32 type;
	/* The flags that are known. */
	__u32 known;
};

struct command {
	const char *name;
	__u32 number;
	__u32 size;
	/* How often, compared with others. */
	__u32 weight;
	struct field fields[24];
	/* What it fails with besides what every command does, ended by 0. */
	int errors[8];
};

#define F(s, m, t, bits)                                         \
	{ offsetof(struct p2m_##s, m), sizeof(((struct p2m_##s *)0)->m), \
	  t, bits }
#define COMMAND(name, NUMBER, weight) \
	#name, NUMBER, sizeof(struct p2m_##name), weight
#define HEAD(s, bits) F(s, size, T_SIZE, 0), F(s, flags, T_FLAGS, bits)

static const struct command commands[] = {
	{ COMMAND(info, P2M_INFO, 1), { HEAD(info, 0) }, {} },
	{ COMMAND(stat, P2M_STAT, 2), { HEAD(stat, 0) }, {} },
	{ COMMAND(region_create, P2M_REGION_CREATE, 10),
	  { HEAD(region_create, 0x3f), F(region_create, policy, T_POLICY, 0),
	    F(region_create, __reserved, T_ZERO, 0),
	    F(region_create, nr_pages, T_PAGES, 0),
	    F(region_create, seed, T_SEED, 0),
	    F(region_create, base_pfn, T_BASE, 0),
	    F(region_create, start_mfn, T_MFN, 0),
	    F(region_create, end_mfn, T_MFN, 0),
	    F(region_create, node, T_SMALL, 0),
	    F(region_create, divisor, T_SMALL, 0),
	    F(region_create, colour, T_SMALL, 0),
	    F(region_create, __reserved2, T_ZERO, 0) },
	  { EEXIST, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(region_destroy, P2M_REGION_DESTROY, 6),
	  { HEAD(region_destroy, 0), F(region_destroy, base_pfn, T_BASE, 0) },
	  { ENOENT, EBUSY } },
	{ COMMAND(region_list, P2M_REGION_LIST, 3),
	  { HEAD(region_list, 0), F(region_list, start_pfn, T_PFN, 0),
	    F(region_list, regions, T_ARRAY, 0), F(region_list, nr, T_NR, 0),
	    F(region_list, constraints, T_ARRAY, 0) },
	  {} },
	{ COMMAND(translate, P2M_TRANSLATE, 6),
	  { HEAD(translate, 1), F(translate, nr, T_NR, 0),
	    F(translate, frames, T_ARRAY, 0),
	    F(translate, entries, T_ARRAY, 0) },
	  {} },
	{ COMMAND(runs, P2M_RUNS, 6),
	  { HEAD(runs, 0), F(runs, start_pfn, T_PFN, 0),
	    F(runs, nr_pages, T_PAGES, 0), F(runs, runs, T_ARRAY, 0),
	    F(runs, nr, T_NR, 0) },
	  {} },
	{ COMMAND(space_create, P2M_SPACE_CREATE, 6),
	  { HEAD(space_create, 0), F(space_create, backend, T_BACKEND, 0),
	    F(space_create, nr_levels, T_LEVELS, 0),
	    F(space_create, pool_pfn, T_POOL, 0),
	    F(space_create, pool_pages, T_SMALL, 0) },
	  /* The last one if P2M_FAIL_NTH has the pool fail. */
	  { ENOENT, EEXIST, EBUSY, ENOSPC } },
	{ COMMAND(space_destroy, P2M_SPACE_DESTROY, 2),
	  { HEAD(space_destroy, 0), F(space_destroy, space, T_SPACE, 0),
	    F(space_destroy, __reserved, T_ZERO, 0) },
	  { ENOENT } },
	{ COMMAND(space_map, P2M_SPACE_MAP, 12),
	  { HEAD(space_map, 0), F(space_map, space, T_SPACE, 0),
	    F(space_map, max_level, T_LEVELS, 0),
	    F(space_map, address, T_ADDRESS, 0), F(space_map, pfn, T_PFN, 0),
	    F(space_map, nr_pages, T_PAGES, 0),
	    F(space_map, pte_flags, T_PTE, 0) },
	  { ENOENT, EEXIST, ENOSPC, EBUSY, EUCLEAN } },
	{ COMMAND(space_unmap, P2M_SPACE_UNMAP, 5),
	  { HEAD(space_unmap, 1), F(space_unmap, space, T_SPACE, 0),
	    F(space_unmap, __reserved, T_ZERO, 0),
	    F(space_unmap, address, T_ADDRESS, 0),
	    F(space_unmap, nr_pages, T_PAGES, 0) },
	  { ENOENT, ENOSPC, EBUSY, EUCLEAN } },
	{ COMMAND(space_change, P2M_SPACE_CHANGE, 5),
	  { HEAD(space_change, 1), F(space_change, space, T_SPACE, 0),
	    F(space_change, __reserved, T_ZERO, 0),
	    F(space_change, address, T_ADDRESS, 0),
	    F(space_change, nr_pages, T_PAGES, 0),
	    F(space_change, value, T_PTE, 0) },
	  { ENOENT, ENOSPC, EBUSY, EUCLEAN } },
	{ COMMAND(space_walk, P2M_SPACE_WALK, 4),
	  { HEAD(space_walk, 0), F(space_walk, space, T_SPACE, 0),
	    F(space_walk, address, T_ADDRESS, 0) },
	  { ENOENT } },
	{ COMMAND(space_dump, P2M_SPACE_DUMP, 3),
	  { HEAD(space_dump, 0), F(space_dump, space, T_SPACE, 0),
	    F(space_dump, nr, T_NR, 0), F(space_dump, address, T_ADDRESS, 0),
	    F(space_dump, spans, T_ARRAY, 0),
	    F(space_dump, __reserved, T_ZERO, 0) },
	  { ENOENT } },
	{ COMMAND(space_access, P2M_SPACE_ACCESS, 6),
	  { HEAD(space_access, 0), F(space_access, space, T_SPACE, 0),
	    F(space_access, op, T_LEVELS, 0),
	    F(space_access, address, T_WORD_ADDRESS, 0),
	    F(space_access, buffer, T_ARRAY, 0),
	    F(space_access, nr_words, T_NR, 0),
	    F(space_access, __reserved, T_ZERO, 0) },
	  { ENOENT, ERANGE, EUCLEAN } },
	{ COMMAND(space_list, P2M_SPACE_LIST, 2),
	  { HEAD(space_list, 0), F(space_list, start_space, T_SPACE, 0),
	    F(space_list, nr, T_NR, 0), F(space_list, spaces, T_ARRAY, 0) },
	  {} },
	{ COMMAND(release, P2M_RELEASE, 8),
	  { HEAD(release, 0), F(release, start_pfn, T_PFN, 0),
	    F(release, nr_pages, T_PAGES, 0) },
	  { ENOENT, EBUSY, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(populate, P2M_POPULATE, 8),
	  { HEAD(populate, 0), F(populate, start_pfn, T_PFN, 0),
	    F(populate, nr_pages, T_PAGES, 0) },
	  { ENOENT, EADDRNOTAVAIL } },
	{ COMMAND(move, P2M_MOVE, 8),
	  { HEAD(move, 0), F(move, start_pfn, T_PFN, 0),
	    F(move, nr_pages, T_PAGES, 0), F(move, seed, T_SEED, 0),
	    F(move, policy, T_POLICY, 0), F(move, __reserved, T_ZERO, 0) },
	  { ENOENT, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(evacuate, P2M_EVACUATE, 4),
	  { HEAD(evacuate, 3), F(evacuate, start_mfn, T_MFN, 0),
	    F(evacuate, nr_frames, T_FRAMES, 0) },
	  { ENOENT, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(contiguous, P2M_CONTIGUOUS, 6),
	  { HEAD(contiguous, 0), F(contiguous, start_pfn, T_PFN, 0),
	    F(contiguous, order, T_ORDER, 0),
	    F(contiguous, address_bits, T_BITS, 0) },
	  { ENOENT, EBUSY, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(exchange, P2M_EXCHANGE, 6),
	  { HEAD(exchange, 0), F(exchange, a_pfn, T_PFN, 0),
	    F(exchange, b_pfn, T_PFN, 0), F(exchange, nr_pages, T_PAGES, 0) },
	  { ENOENT, ENOSPC, EADDRNOTAVAIL } },
	{ COMMAND(collapse, P2M_COLLAPSE, 4),
	  { HEAD(collapse, 0), F(collapse, start_pfn, T_PFN, 0),
	    F(collapse, nr_pages, T_PAGES, 0) },
	  { ENOENT, EADDRNOTAVAIL } },
	{ COMMAND(audit, P2M_AUDIT, 3), { HEAD(audit, 0) }, {} },
	{ COMMAND(guard_check, P2M_GUARD_CHECK, 3),
	  { HEAD(guard_check, 1), F(guard_check, start_pfn, T_PFN, 0),
	    F(guard_check, nr_pages, T_PAGES, 0) },
	  { ENOENT } },
	{ COMMAND(fail_nth, P2M_FAIL_NTH, 4),
	  { HEAD(fail_nth, 0), F(fail_nth, nth, T_NTH, 0) },
	  {} },
	{ COMMAND(foreign_map, P2M_FOREIGN_MAP, 6),
	  { HEAD(foreign_map, 0), F(foreign_map, fd, T_DOMAIN_FD, 0),
	    F(foreign_map, nr, T_NR, 0), F(foreign_map, start_pfn, T_PFN, 0),
	    F(foreign_map, frames, T_ARRAY, 0),
	    F(foreign_map, errors, T_ARRAY, 0),
	    F(foreign_map, __reserved, T_ZERO, 0) },
	  { EBADF, EACCES } },
	{ COMMAND(foreign_unmap, P2M_FOREIGN_UNMAP, 4),
	  { HEAD(foreign_unmap, 0), F(foreign_unmap, start_pfn, T_PFN, 0),
	    F(foreign_unmap, errors, T_ARRAY, 0),
	    F(foreign_unmap, nr, T_NR, 0) },
	  {} },
	{ COMMAND(identity, P2M_IDENTITY, 2),
	  { HEAD(identity, 0), F(identity, start_pfn, T_PFN, 0),
	    F(identity, nr_pages, T_PAGES, 0) },
	  { ENOENT, EEXIST } },
	{ COMMAND(dma_plan, P2M_DMA_PLAN, 4),
	  { HEAD(dma_plan, 0), F(dma_plan, start_pfn, T_PFN, 0),
	    F(dma_plan, offset, T_BYTES, 0), F(dma_plan, length, T_BYTES, 0),
	    F(dma_plan, dma_mask, T_MASK, 0),
	    F(dma_plan, segment_boundary_mask, T_MASK, 0),
	    F(dma_plan, max_segment_size, T_BYTES, 0),
	    F(dma_plan, dma_alignment, T_MASK, 0),
	    F(dma_plan, max_segments, T_SMALL, 0),
	    F(dma_plan, position, T_BYTES, 0),
	    F(dma_plan, segments, T_ARRAY, 0), F(dma_plan, nr, T_NR, 0) },
	  {} },
	{ COMMAND(dma_buf_export, P2M_DMA_BUF_EXPORT, 4),
	  { HEAD(dma_buf_export, 0), F(dma_buf_export, start_pfn, T_PFN, 0),
	    F(dma_buf_export, nr_pages, T_PAGES, 0),
	    F(dma_buf_export, fd_flags, T_OPEN_FLAGS, 0) },
	  { ENOENT, EMFILE, EACCES, EBUSY, ENOSPC, EADDRNOTAVAIL } },
};
#define NR_COMMANDS ARRAY_LEN(commands)

/* What every command may fail with. */
static const int general_errors[] = { E2BIG, EINVAL, EOPNOTSUPP, EFAULT,
				      EOVERFLOW, EPERM, ENOMEM, EDQUOT, EINTR };

static int index_of(__u32 number)
{
	size_t i;

	for (i = 0; i < NR_COMMANDS; i++) {
		if (commands[i].number == number)
			return i;
	}
	abort();
}

/* A number below @n. */
static __u64 below(__u64 *rng, __u64 n)
{
	return next_random(rng) % n;
}

static bool one_in(__u64 *rng, __u64 n)
{
	return !below(rng, n);
}

#define pick(rng, array) ((array)[below(rng, ARRAY_LEN(array))])

/* Where something ends, most often. */
static __u64 odd_number(__u64 *rng)
{
	static const __u64 numbers[] = {
		0, 1, 2, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537,
		0x7fffffff, 0x80000000, 0xffffffff, 0x100000000ULL,
		P2M_MAX_PFN - 1, P2M_MAX_PFN, P2M_MAX_PFN + 1, 1ULL << 47,
		1ULL << 52, 1ULL << 56, 1ULL << 62, 1ULL << 63, ~0ULL - 1, ~0ULL,
		P2M_OFFSET_HEADER, P2M_OFFSET_P2M, P2M_OFFSET_M2P,
	};

	switch (below(rng, 4)) {
	case 0:
		return 1ULL << below(rng, 64);
	case 1:
		return next_random(rng);
	default:
		return pick(rng, numbers);
	}
}

static __u64 some_pfn(__u64 *rng)
{
	__u64 base = below(rng, NR_PFNS / REGION_SPACING) * REGION_SPACING;

	switch (below(rng, 8)) {
	case 0:
	case 1:
		return base;
	case 2:
		return below(rng, NR_PFNS);
	case 3:
		return base + 8 * below(rng, REGION_SPACING / 8);
	default:
		return base + below(rng, REGION_PAGES);
	}
}

/* Large numbers take long and find little that small ones don't. */
static __u64 some_nr(__u64 *rng)
{
	static const __u64 numbers[] = { 1, 1, 1, 2, 2, 3, 4, 5, 8, 8, 16, 16,
					 32, 64, 96 };
	static const __u64 large_ones[] = { 128, 256, 511, 512, 513, 1024 };

	return one_in(rng, 24) ? pick(rng, large_ones) : pick(rng, numbers);
}

/* An address to be read from or written to by the kernel. */
static __u64 some_pointer(__u64 *rng)
{
	__u64 slot = SLOTS + below(rng, NR_SLOTS) * SLOT_SIZE;

	switch (below(rng, 16)) {
	case 0:
		return ARENA_READ_ONLY + below(rng, 512) * 8;
	case 1:
		return ARENA_NOTHING - below(rng, 64) * 8;
	case 2:
		return odd_number(rng);
	case 3:
	case 4:
	case 5:
		/* Memory of a domain: a fault within a command. */
		return slot + below(rng, 64) * P2M_PAGE_SIZE;
	default:
		return ARENA + below(rng, ARENA_PAGES / 2 * 512) * 8;
	}
}

static __u64 some_address(__u64 *rng)
{
	static const __u64 bases[] = { 0, 0, 1ULL << 21, 1ULL << 30, 1ULL << 39,
				       (1ULL << 47) - (1ULL << 21), 1ULL << 48,
				       (1ULL << 56) - (1ULL << 21) };

	return pick(rng, bases) + below(rng, 64) * P2M_PAGE_SIZE;
}

static __u64 some_value(__u64 *rng, const struct command *command,
			const struct field *field)
{
	static const __u64 ptes[] = { P2M_PTE_RW, P2M_PTE_RW, P2M_PTE_USER,
				      P2M_PTE_NX, P2M_PTE_ACCESSED,
				      P2M_PTE_DIRTY, P2M_PTE_PWT, P2M_PTE_PAT };
	__u64 value = 0;
	int i;

	/* The size is checked first of all, so there is more to see with a good one. */
	if (one_in(rng, field->type == T_SIZE ? 200 : 40))
		return odd_number(rng);
	switch (field->type) {
	case T_SIZE:
		return command->size;
	case T_FLAGS:
		return one_in(rng, 2) ? 0 : next_random(rng) & next_random(rng) &
					    field->known;
	case T_PFN:
		return some_pfn(rng);
	case T_BASE:
	case T_POOL:
		return below(rng, NR_PFNS / REGION_SPACING) * REGION_SPACING +
		       (one_in(rng, 4) ? below(rng, REGION_PAGES) : 0);
	case T_PAGES:
		return some_nr(rng);
	case T_MFN:
		return one_in(rng, 2) ? 0 : below(rng, 64) << 13;
	case T_FRAMES:
		return 1ULL << below(rng, 16);
	case T_SEED:
		return one_in(rng, 2) ? 0 : below(rng, 8);
	case T_POLICY:
		return below(rng, 4);
	case T_ARRAY:
		return one_in(rng, 8) ? 0 : some_pointer(rng);
	case T_NR:
		return one_in(rng, 8) ? 0 : some_nr(rng);
	case T_SPACE:
		return below(rng, 5);
	case T_ADDRESS:
		return some_address(rng);
	case T_WORD_ADDRESS:
		return some_address(rng) + 8 * below(rng, 512);
	case T_PTE:
		for (i = below(rng, 4); i > 0; i--)
			value |= pick(rng, ptes);
		return one_in(rng, 4) ? some_pfn(rng) : value;
	case T_LEVELS:
		/* Of tables, of leaves, or an operation. */
		return command->number == P2M_SPACE_CREATE ?
			       4 + below(rng, 2) : below(rng, 3);
	case T_SMALL:
		return below(rng, 24);
	case T_DOMAIN_FD:
		return DOMAIN_FD + below(rng, NR_DOMAINS);
	case T_ORDER:
		return below(rng, 11);
	case T_BITS:
		return one_in(rng, 2) ? 0 : 24 + below(rng, 10);
	case T_MASK:
		return one_in(rng, 2) ? 0 : (1ULL << below(rng, 40)) - 1;
	case T_BYTES:
		return below(rng, 2) ? below(rng, 1 << 20) :
				       below(rng, 64) * P2M_PAGE_SIZE;
	case T_OPEN_FLAGS:
		return below(rng, 3) | O_CLOEXEC;
	case T_NTH:
		return below(rng, 3) ? 0 : 1 + below(rng, 40);
	default:
		return 0;
	}
}

static const struct command *some_command(__u64 *rng)
{
	__u32 sum = 0, number;
	size_t i;

	for (i = 0; i < NR_COMMANDS; i++)
		sum += commands[i].weight;
	number = below(rng, sum);
	for (i = 0; number >= commands[i].weight; i++)
		number -= commands[i].weight;
	return &commands[i];
}

static void make_ioctl(__u64 *rng, struct op *op,
		       const struct command *command)
{
	static const char *const backends[] = { "native", "p2m", "p2m-lossless",
						"p2m", "", "xen" };
	const struct field *field = command->fields;
	__u64 value;

	op->kind = OP_IOCTL;
	op->command = command - commands;
	op->length = command->size;
	memset(op->bytes, 0, sizeof(op->bytes));
	for (; field->size; field++) {
		if (field->type == T_BACKEND) {
			snprintf((char *)op->bytes + field->offset, field->size,
				 "%s", pick(rng, backends));
			continue;
		}
		value = some_value(rng, command, field);
		memcpy(op->bytes + field->offset, &value, field->size);
	}
	/* A range, a colour and so on are valid only where their flag is. */
	if (command->number == P2M_REGION_CREATE && !one_in(rng, 8)) {
		struct p2m_region_create *create = (void *)op->bytes;

		if (!(create->flags & P2M_REGION_FIXED))
			create->base_pfn = 0;
		if (!(create->flags & P2M_REGION_RANGE))
			create->start_mfn = create->end_mfn = 0;
		if (!(create->flags & P2M_REGION_COLOUR))
			create->divisor = create->colour = 0;
		create->node = 0;
		if (create->policy != P2M_POLICY_SCATTER)
			create->seed = 0;
	}
	op->where = below(rng, 32);
}

static void make_op(__u64 *rng, struct op *op)
{
	static const __u8 kinds[] = {
		OP_MMAP, OP_MMAP, OP_MUNMAP, OP_MREMAP, OP_MREMAP, OP_MPROTECT,
		OP_MADVISE, OP_MADVISE, OP_MLOCK, OP_TOUCH, OP_TOUCH, OP_TOUCH,
		OP_TOUCH, OP_TOUCH, OP_TOUCH, OP_READ, OP_READ, OP_SIGNAL,
		OP_PIN, OP_COPY, OP_FDINFO, OP_OTHER, OP_BUFFER, OP_BUFFER,
	};
	size_t i;

	memset(op, 0, sizeof(*op));
	op->domain = below(rng, NR_DOMAINS);
	if (!one_in(rng, 3)) {
		make_ioctl(rng, op, some_command(rng));
		return;
	}
	op->kind = pick(rng, kinds);
	if (one_in(rng, 60))
		op->kind = OP_REOPEN;
	else if (one_in(rng, 200))
		op->kind = OP_CLOSE;
	else if (one_in(rng, 300))
		op->kind = OP_FORK;
	for (i = 0; i < ARRAY_LEN(op->args); i++)
		op->args[i] = next_random(rng);
}

/* A region and a space in each domain, or much would be about nothing. */
static void make_start(__u64 *rng, struct op *op, int nr)
{
	memset(op, 0, sizeof(*op));
	op->domain = nr % NR_DOMAINS;
	if (nr < 3 * NR_DOMAINS) {
		struct p2m_region_create *create = (void *)op->bytes;

		make_ioctl(rng, op, &commands[index_of(P2M_REGION_CREATE)]);
		*create = (struct p2m_region_create){
			.size = sizeof(*create),
			.flags = P2M_REGION_FIXED,
			.policy = below(rng, 2),
			.nr_pages = REGION_PAGES - below(rng, 2),
			.base_pfn = nr / NR_DOMAINS * REGION_SPACING,
		};
		/* As large as a superpage, which it may have or become. */
		if (nr >= 2 * NR_DOMAINS && one_in(rng, 2)) {
			create->nr_pages = REGION_SPACING;
			create->policy = below(rng, 4);
		}
		if (one_in(rng, 4))
			create->flags |= P2M_REGION_ON_DEMAND;
		else if (one_in(rng, 4))
			create->flags |= P2M_REGION_GUARDED;
	} else {
		struct p2m_space_create *create = (void *)op->bytes;

		make_ioctl(rng, op, &commands[index_of(P2M_SPACE_CREATE)]);
		create->size = sizeof(*create);
		create->flags = 0;
		snprintf((char *)create->backend, sizeof(create->backend), "%s",
			 one_in(rng, 4) ? "p2m-lossless" : "p2m");
		create->nr_levels = 4 + below(rng, 2);
		create->pool_pfn = below(rng, 3) * REGION_SPACING +
				   REGION_PAGES - POOL_PAGES - 1;
		create->pool_pages = POOL_PAGES;
	}
	op->where = 16;
}

static void mutate(__u64 *rng, struct op *op)
{
	__u64 value = odd_number(rng);
	size_t at;

	if (op->kind != OP_IOCTL) {
		op->args[below(rng, ARRAY_LEN(op->args))] = next_random(rng);
		return;
	}
	/* Members are of 4 or 8 bytes. */
	at = 4 * below(rng, commands[op->command].size / 4);
	memcpy(op->bytes + at, &value, one_in(rng, 2) ? 4 : 8);
}

static void make_list(struct list *list, __u64 seed, __u64 round)
{
	__u64 rng = seed + round * 0x9e3779b97f4a7c15ULL;
	__u32 nr_finds = __atomic_load_n(&shared->nr_finds, __ATOMIC_ACQUIRE);
	int p, t, i, n;

	if (nr_finds > NR_FINDS)
		nr_finds = NR_FINDS;
	next_random(&rng);
	for (p = 0; p < NR_PROCS; p++) {
		for (t = 0; t < NR_THREADS; t++) {
			struct op *ops = list->ops[p][t];

			for (i = 0; i < NR_OPS; i++)
				make_op(&rng, &ops[i]);
			/* What found something once finds more when it's changed. */
			for (n = 0; nr_finds && n < NR_OPS / FIND_OPS / 2; n++) {
				const struct find *find =
					&shared->finds[below(&rng, nr_finds)];

				if (!find->is_complete)
					continue;
				i = below(&rng, NR_OPS - FIND_OPS);
				memcpy(&ops[i], find->ops, sizeof(find->ops));
				mutate(&rng, &ops[i + below(&rng, FIND_OPS)]);
			}
		}
		/* The first ones, in turns. */
		for (i = 0; i < 4 * NR_DOMAINS; i++)
			make_start(&rng, &list->ops[p][i % NR_THREADS][i / NR_THREADS],
				   i);
	}
	list->victim = below(&rng, 3 * NR_PROCS);
	list->kill_after = below(&rng, NR_THREADS * NR_OPS);
}

/*
 * Running a list. A signal that an access raises ends the operation.
 */
struct thread {
	pthread_t id;
	pid_t tid;
	int process;
	int number;
	const struct op *ops;
	int pipe[2];
	bool is_child;
	__u64 *kcov;
	sigjmp_buf escape;
	volatile bool may_fault;
};

static struct thread threads[NR_THREADS];
static __thread struct thread *self;
static __thread char argument[2 * P2M_PAGE_SIZE] __attribute__((aligned(4096)));

static void on_fault(int signal)
{
	if (self && self->may_fault) {
		self->may_fault = false;
		siglongjmp(self->escape, signal);
	}
	bad("signal %d outside of an access", signal);
	_exit(1);
}

static void on_signal(int signal)
{
	(void)signal;
}

/* Evaluates @what, which may fault. */
#define guarded(what)                                    \
	({                                               \
		if (!sigsetjmp(self->escape, 0)) {       \
			self->may_fault = true;          \
			what;                            \
		}                                        \
		self->may_fault = false;                 \
	})

static char *slot_address(__u64 arg)
{
	return (char *)(SLOTS + arg % NR_SLOTS * SLOT_SIZE);
}

static void check_audit(int domain)
{
	struct p2m_audit audit = { .size = sizeof(audit) };

	if (ioctl(DOMAIN_FD + domain, P2M_AUDIT, &audit))
		return;
	if (audit.out_p2m_bad || audit.out_m2p_bad || audit.out_orphans ||
	    audit.out_refs_bad || audit.out_spaces_bad || audit.out_count_bad)
		bad("audit of domain %d: p2m %llu m2p %llu orphans %llu refs %llu spaces %llu count %llu, pfn %#llx mfn %#llx",
		    domain, audit.out_p2m_bad, audit.out_m2p_bad,
		    audit.out_orphans, audit.out_refs_bad, audit.out_spaces_bad,
		    audit.out_count_bad, audit.out_first_pfn,
		    audit.out_first_mfn);
}

static void check_error(const struct command *command, int error)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(general_errors); i++) {
		if (general_errors[i] == error)
			return;
	}
	for (i = 0; command->errors[i]; i++) {
		if (command->errors[i] == error)
			return;
	}
	/* The descriptor may be closed, or not a domain's. */
	if (error == EBADF || error == ENOTTY)
		return;
	bad("%s: %s", command->name, strerror(error));
}

static void run_ioctl(const struct op *op)
{
	const struct command *command = &commands[op->command % NR_COMMANDS];
	char *arg = argument;
	int ret;

	switch (op->where) {
	case 0:
		arg = (char *)ARENA_NOTHING - 8;
		break;
	case 1:
		arg = (char *)ARENA_READ_ONLY;
		break;
	case 2:
		/* It ends where memory ends. */
		arg = (char *)ARENA_READ_ONLY - command->size;
		break;
	case 3:
	case 4:
		arg = slot_address(op->domain + op->where);
		break;
	}
	if (op->where != 1)
		guarded(memcpy(arg, op->bytes, command->size));
	ret = ioctl(DOMAIN_FD + op->domain, command->number, arg);
	if (ret) {
		__atomic_add_fetch(&shared->nr_failed_calls, 1, __ATOMIC_RELAXED);
		check_error(command, errno);
		return;
	}
	if (command->number == P2M_DMA_BUF_EXPORT && arg == argument) {
		int fd = ((struct p2m_dma_buf_export *)arg)->out_fd;

		if (fd < 0) {
			bad("dma_buf_export: descriptor %d", fd);
			return;
		}
		dup3(fd, BUFFER_FD + op->domain % NR_BUFFERS, O_CLOEXEC);
		close(fd);
	}
}

/* Mostly short ones. */
static __u64 some_length(__u64 arg)
{
	return 1 + arg % (arg >> 32 & 15 ? 48 : 600);
}

static void run_mmap(const struct op *op)
{
	static const __u64 windows[] = {
		P2M_OFFSET_MEMORY, P2M_OFFSET_MEMORY, P2M_OFFSET_MEMORY,
		P2M_OFFSET_MEMORY, P2M_OFFSET_MEMORY, P2M_OFFSET_HEADER,
		P2M_OFFSET_P2M, P2M_OFFSET_M2P,
	};
	__u64 window = windows[op->args[1] % ARRAY_LEN(windows)];
	__u64 page = op->args[2] % NR_PFNS, nr = some_length(op->args[3]);
	int prot = op->args[4] & (PROT_READ | PROT_WRITE | PROT_EXEC);
	int flags = MAP_SHARED | MAP_FIXED;

	if (window != P2M_OFFSET_MEMORY) {
		page = op->args[2] % 4;
		nr = 1 + op->args[3] % 4;
		prot = PROT_READ;
	}
	if (op->args[4] & 8)
		prot |= PROT_READ | PROT_WRITE;
	if (!(op->args[4] >> 4 & 15))
		flags |= MAP_POPULATE;
	if (!(op->args[4] >> 8 & 63))
		flags ^= MAP_SHARED ^ MAP_PRIVATE;
	if (!(op->args[4] >> 16 & 63))
		page = op->args[2];
	mmap(slot_address(op->args[0]), nr * P2M_PAGE_SIZE, prot, flags,
	     DOMAIN_FD + op->domain, window + page * P2M_PAGE_SIZE);
}

static void run_madvise(const struct op *op)
{
	static const int advices[] = { MADV_DONTNEED, MADV_DONTNEED, MADV_WILLNEED,
				       MADV_DONTFORK, MADV_DOFORK, 20 /* COLD */,
				       21 /* PAGEOUT */, 22 /* POPULATE_READ */,
				       23 /* POPULATE_WRITE */, MADV_REMOVE,
				       MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
				       25 /* COLLAPSE */ };

	madvise(slot_address(op->args[0]) + op->args[1] % 512 * P2M_PAGE_SIZE,
		some_length(op->args[2]) * P2M_PAGE_SIZE,
		advices[op->args[3] % ARRAY_LEN(advices)]);
}

static void touch(volatile char *at, bool is_write)
{
	if (is_write)
		guarded(*at = 1);
	else
		guarded((void)*at);
}

static void run_touch(const struct op *op)
{
	char *at = slot_address(op->args[0]) +
		   some_length(op->args[1]) * P2M_PAGE_SIZE;
	__u64 i, step = 1 + op->args[3] % 16;

	for (i = 0; i < 4; i++)
		touch(at + i * step * P2M_PAGE_SIZE, op->args[2] & 1);
}

/* References to pages, by way of a pipe. */
static void run_pin(const struct op *op)
{
	struct iovec iov = {
		.iov_base = slot_address(op->args[0]) +
			    op->args[1] % 512 * P2M_PAGE_SIZE,
		.iov_len = (1 + op->args[2] % 8) * P2M_PAGE_SIZE,
	};

	if (self->is_child)
		return;
	if (op->args[3] & 1)
		vmsplice(self->pipe[1], &iov, 1, SPLICE_F_NONBLOCK);
	/* Into memory of a domain, now and then. */
	else if (op->args[3] & 2)
		read(self->pipe[0], (void *)iov.iov_base, iov.iov_len);
	else
		read(self->pipe[0], argument, sizeof(argument));
}

static void run_copy(const struct op *op)
{
	struct iovec local = {
		.iov_base = slot_address(op->args[0]),
		.iov_len = (1 + op->args[2] % 64) * P2M_PAGE_SIZE,
	};
	struct iovec remote = {
		.iov_base = slot_address(op->args[1]) +
			    op->args[3] % 256 * P2M_PAGE_SIZE,
		.iov_len = local.iov_len,
	};

	if (op->args[4] & 1)
		process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	else
		process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
}

static void run_fdinfo(const struct op *op)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d",
		 DOMAIN_FD + op->domain);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	read(fd, argument, sizeof(argument));
	close(fd);
}

/* What a file might be asked for, too. */
static void run_other(const struct op *op)
{
	int fd = DOMAIN_FD + op->domain;
	struct pollfd pollfd = { .fd = fd, .events = POLLIN | POLLOUT };
	struct stat st;

	switch (op->args[0] % 9) {
	case 0:
		write(fd, argument, op->args[1] % 100);
		break;
	case 1:
		lseek(fd, op->args[1], op->args[2] % 5);
		break;
	case 2:
		poll(&pollfd, 1, 0);
		break;
	case 3:
		ftruncate(fd, op->args[1] % (1 << 20));
		break;
	case 4:
		fallocate(fd, op->args[1] & 3, 0, op->args[2] % (1 << 20));
		break;
	case 5:
		fsync(fd);
		break;
	case 6:
		fstat(fd, &st);
		break;
	case 7:
		/* A command of another encoding, or of nobody. */
		ioctl(fd, _IOC(op->args[1] & 3, P2M_IOCTL_TYPE,
			       0x7e + op->args[2] % 0x24, op->args[3] & 0x3fff),
		      argument);
		break;
	case 8:
		fcntl(fd, F_SETFL, op->args[1] & (O_NONBLOCK | O_APPEND));
		break;
	}
}

static void run_buffer(const struct op *op)
{
	int fd = BUFFER_FD + op->args[0] % NR_BUFFERS;
	__u64 sync = op->args[2] & 7;

	switch (op->args[1] % 6) {
	case 0:
	case 1:
		mmap(slot_address(op->args[2]),
		     (1 + op->args[3] % 64) * P2M_PAGE_SIZE,
		     PROT_READ | (op->args[4] & PROT_WRITE),
		     MAP_SHARED | MAP_FIXED, fd,
		     op->args[4] >> 8 & 15 ? 0 :
					     op->args[4] % 600 * P2M_PAGE_SIZE);
		break;
	case 2:
		close(fd);
		break;
	case 3:
		/* DMA_BUF_IOCTL_SYNC */
		ioctl(fd, _IOW('b', 0, __u64), &sync);
		break;
	case 4:
		lseek(fd, 0, SEEK_END);
		break;
	case 5:
		/* The domain of another process may be where it's wanted, too. */
		ioctl(fd, P2M_STAT, argument);
		break;
	}
}

/* Opens a domain at a fixed number. */
static int open_domain(int domain, bool is_privileged)
{
	int fd, ret;

	/* Of this thread only, other than by the C library. */
	if (!is_privileged)
		syscall(SYS_setresuid, -1, NOBODY_UID, -1);
	fd = p2m_open();
	if (!is_privileged)
		syscall(SYS_setresuid, -1, 0, -1);
	if (fd < 0)
		return -1;
	ret = dup3(fd, DOMAIN_FD + domain, O_CLOEXEC);
	close(fd);
	return ret;
}

static void run_op(const struct op *op, int nr);

/* A process with the same mappings, that ends at some time. */
static void run_fork(const struct op *op, int nr)
{
	int status, i;
	pid_t pid;

	if (self->is_child)
		return;
	pid = fork();
	if (!pid) {
		self->is_child = true;
		self->kcov = NULL;
		for (i = nr + 1; i < NR_OPS && i < nr + 1 + op->args[0] % 16; i++)
			run_op(&self->ops[i], i);
		_exit(0);
	}
	if (pid < 0)
		return;
	if (op->args[1] & 1) {
		usleep(op->args[2] % 2000);
		kill(pid, SIGKILL);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
}

static void run_op(const struct op *op, int nr)
{
	char *slot = slot_address(op->args[0]);
	size_t nr_read = some_length(op->args[1]) * 8;
	struct thread *other;

	switch (op->kind) {
	case OP_IOCTL:
		run_ioctl(op);
		break;
	case OP_MMAP:
		run_mmap(op);
		break;
	case OP_MUNMAP:
		munmap(slot + op->args[1] % 64 * P2M_PAGE_SIZE,
		       some_length(op->args[2]) * P2M_PAGE_SIZE);
		break;
	case OP_MREMAP:
		mremap(slot, (some_length(op->args[1]) - 1) * P2M_PAGE_SIZE,
		       2 * some_length(op->args[2]) * P2M_PAGE_SIZE,
		       op->args[3] & 1 ? MREMAP_MAYMOVE | MREMAP_FIXED : 0,
		       slot_address(op->args[4]));
		break;
	case OP_MPROTECT:
		mprotect(slot + op->args[1] % 64 * P2M_PAGE_SIZE,
			 some_length(op->args[2]) * P2M_PAGE_SIZE,
			 op->args[3] & 7);
		break;
	case OP_MADVISE:
		run_madvise(op);
		break;
	case OP_MLOCK:
		if (op->args[3] & 1)
			mlock(slot, (1 + op->args[1] % 64) * P2M_PAGE_SIZE);
		else
			munlock(slot, (1 + op->args[1] % 600) * P2M_PAGE_SIZE);
		break;
	case OP_TOUCH:
		run_touch(op);
		break;
	case OP_READ:
		pread(DOMAIN_FD + op->domain,
		      (void *)(op->args[3] & 7 ? ARENA : (__u64)slot), nr_read,
		      op->args[2] % (2 * NR_PFNS) * 8 + !(op->args[4] & 31));
		break;
	case OP_REOPEN:
		open_domain(op->domain, op->domain < FIRST_UNPRIVILEGED);
		break;
	case OP_CLOSE:
		close(DOMAIN_FD + op->domain);
		break;
	case OP_FORK:
		run_fork(op, nr);
		break;
	case OP_SIGNAL:
		other = &threads[op->args[0] % NR_THREADS];
		if (other->tid && !self->is_child)
			syscall(SYS_tgkill, getpid(), other->tid, SIGUSR1);
		break;
	case OP_PIN:
		run_pin(op);
		break;
	case OP_COPY:
		run_copy(op);
		break;
	case OP_FDINFO:
		run_fdinfo(op);
		break;
	case OP_OTHER:
		run_other(op);
		break;
	case OP_BUFFER:
		run_buffer(op);
		break;
	}
}

/*
 * KCOV: which code of the kernel a thread went through.
 */
#define COVER_SIZE (64 << 10)

static __u64 *kcov_enable(void)
{
	int fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	__u64 *cover;

	if (fd < 0)
		return NULL;
	if (ioctl(fd, KCOV_INIT_TRACE, COVER_SIZE))
		return NULL;
	cover = mmap(NULL, COVER_SIZE * sizeof(*cover), PROT_READ | PROT_WRITE,
		     MAP_SHARED, fd, 0);
	if (cover == MAP_FAILED || ioctl(fd, KCOV_ENABLE, KCOV_TRACE_PC))
		return NULL;
	return cover;
}

static void look_for_new_code(int nr)
{
	__u64 i, nr_pcs = __atomic_load_n(self->kcov, __ATOMIC_RELAXED);
	bool is_new = false;
	__u32 at;

	for (i = 1; i <= nr_pcs && i < COVER_SIZE; i++) {
		__u64 hash = self->kcov[i] * 0x9e3779b97f4a7c15ULL >> 46;

		if (!shared->seen[hash]) {
			shared->seen[hash] = 1;
			is_new = true;
		}
	}
	if (!is_new)
		return;
	__atomic_add_fetch(&shared->nr_new, 1, __ATOMIC_RELAXED);
	if (nr < FIND_OPS - 1)
		return;
	at = __atomic_fetch_add(&shared->nr_finds, 1, __ATOMIC_ACQ_REL);
	if (at >= NR_FINDS)
		at %= NR_FINDS;
	memcpy(shared->finds[at].ops, &self->ops[nr - FIND_OPS + 1],
	       sizeof(shared->finds[at].ops));
	__atomic_store_n(&shared->finds[at].is_complete, 1, __ATOMIC_RELEASE);
}

static void *run_thread(void *arg)
{
	int i;

	self = arg;
	self->tid = syscall(SYS_gettid);
	if (has_kcov)
		self->kcov = kcov_enable();
	for (i = 0; i < NR_OPS && !shared->is_bad; i++) {
		if (self->kcov)
			__atomic_store_n(self->kcov, 0, __ATOMIC_RELAXED);
		run_op(&self->ops[i], i);
		if (self->kcov)
			look_for_new_code(i);
		__atomic_add_fetch(&shared->nr_done, 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&shared->progress[self->process], 1,
				   __ATOMIC_RELAXED);
		if (i % 256 == 255)
			check_audit(i / 256 % NR_DOMAINS);
	}
	return NULL;
}

static void run_process(int process)
{
	struct sigaction fault = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	struct sigaction signal = { .sa_handler = on_signal };
	int i;

	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGUSR1, &signal, NULL);
	if (mmap((void *)ARENA, ARENA_PAGES * P2M_PAGE_SIZE,
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) == MAP_FAILED ||
	    mmap((void *)ARENA_READ_ONLY, P2M_PAGE_SIZE, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		_exit(1);
	for (i = 0; i < NR_THREADS; i++) {
		threads[i] = (struct thread){
			.process = process,
			.number = i,
			.ops = shared->list.ops[process][i],
		};
		if (pipe2(threads[i].pipe, O_CLOEXEC | O_NONBLOCK))
			_exit(1);
	}
	for (i = 0; i < NR_THREADS; i++) {
		if (pthread_create(&threads[i].id, NULL, run_thread, &threads[i]))
			_exit(1);
	}
	for (i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i].id, NULL);
	_exit(0);
}

/* What is left of a round: nothing. */
static void check_end(void)
{
	struct p2m_stat stat;
	int fd = p2m_open();

	if (fd < 0 || _test_cmd_stat(fd, &stat)) {
		bad("no device: %s", strerror(errno));
		return;
	}
	if (stat.out_total_domains != 1 || stat.out_total_pages)
		bad("%llu domains and %llu pages are left",
		    stat.out_total_domains - 1, stat.out_total_pages);
	close(fd);
}

/* Runs the list. */
static void run_round(void)
{
	const struct list *list = &shared->list;
	__u64 limit = ROUND_MS * timeout_factor();
	__u64 start = now_ms();
	pid_t pids[NR_PROCS];
	int i, status, left = 0;

	memset(shared->progress, 0, sizeof(shared->progress));
	for (i = 0; i < NR_DOMAINS; i++) {
		if (open_domain(i, i < FIRST_UNPRIVILEGED) < 0)
			bad("open: %s", strerror(errno));
	}
	for (i = 0; i < NR_PROCS; i++) {
		pids[i] = fork();
		if (!pids[i])
			run_process(i);
		if (pids[i] > 0)
			left++;
		else
			bad("fork: %s", strerror(errno));
	}
	/* What a domain has is the others' from here on. */
	for (i = 0; i < NR_DOMAINS; i++)
		close(DOMAIN_FD + i);
	while (left) {
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid > 0) {
			for (i = 0; i < NR_PROCS; i++) {
				if (pids[i] != pid)
					continue;
				left--;
				pids[i] = 0;
				if (WIFSIGNALED(status) &&
				    WTERMSIG(status) != SIGKILL)
					bad("a process ended by signal %d",
					    WTERMSIG(status));
				if (WIFEXITED(status) && WEXITSTATUS(status))
					bad("a process ended with %d",
					    WEXITSTATUS(status));
			}
			continue;
		}
		i = list->victim;
		if (i < NR_PROCS && pids[i] > 0 &&
		    shared->progress[i] >= list->kill_after)
			kill(pids[i], SIGKILL);
		if (now_ms() - start > limit) {
			int fd = open("/proc/sysrq-trigger", O_WRONLY);

			/* Where they are, to the kernel log. */
			if (fd >= 0)
				write(fd, "t", 1);
			bad("a round takes more than %llu ms", limit);
			return;
		}
		usleep(2000);
	}
	/* Processes of one that was killed are ours now, and end, too. */
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	check_end();
}

static int store(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	ssize_t ret;

	if (fd < 0)
		return -1;
	ret = write(fd, &shared->list, sizeof(shared->list));
	close(fd);
	return ret == sizeof(shared->list) ? 0 : -1;
}

static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t ret;
	int p, t, i;

	if (fd < 0)
		return -1;
	ret = read(fd, &shared->list, sizeof(shared->list));
	close(fd);
	if (ret != sizeof(shared->list))
		return -1;
	for (p = 0; p < NR_PROCS; p++) {
		for (t = 0; t < NR_THREADS; t++) {
			for (i = 0; i < NR_OPS; i++) {
				struct op *op = &shared->list.ops[p][t][i];

				op->command %= NR_COMMANDS;
				op->domain %= NR_DOMAINS;
			}
		}
	}
	return 0;
}

/* What processors keep in stock: that is up to an eighth of the memory for each. */
static __u64 stock_kib(void)
{
	FILE *file = fopen("/proc/zoneinfo", "re");
	__u64 nr, nr_pages = 0;
	char line[256];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, " count: %llu", &nr) == 1)
			nr_pages += nr;
	}
	fclose(file);
	return nr_pages * (P2M_PAGE_SIZE / 1024);
}

/* What processors keep in stock, and caches, isn't lost. */
static __u64 free_kib(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		write(fd, "3", 1);
		close(fd);
	}
	/* Until what is freed by RCU is. */
	usleep(200000);
	return meminfo_kib("MemFree") + stock_kib() + meminfo_kib("Cached") +
	       meminfo_kib("SReclaimable");
}

/* How much less free memory is noise, whatever the number of rounds. */
#define NOISE_KIB 24576ULL
#define WARM_UP_ROUNDS 3

static __u64 to_number(const char *text)
{
	char *end;
	__u64 value = strtoull(text, &end, 0);

	if (!*text || *end) {
		fprintf(stderr, "fuzz: %s is no number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "ops", required_argument, NULL, 'o' },
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "record", required_argument, NULL, 'w' },
		{ "replay", required_argument, NULL, 'p' },
		{ "times", required_argument, NULL, 'n' },
		{}
	};
	__u64 max_ops = ~0ULL, seconds = 15, seed = 1, times = 10, round, first = 0;
	__u64 start = now_ms(), said = start;
	const char *record = NULL, *replay = NULL;
	struct stat st;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'o':
			max_ops = to_number(optarg);
			seconds = ~0ULL / 1000;
			break;
		case 's':
			seconds = to_number(optarg);
			break;
		case 'r':
			seed = to_number(optarg);
			break;
		case 'w':
			record = optarg;
			break;
		case 'p':
			replay = optarg;
			seconds = ~0ULL / 1000;
			break;
		case 'n':
			times = to_number(optarg);
			break;
		default:
			return 2;
		}
	}

	printf("TAP version 13\n");
	if (stat(P2M_DEVICE, &st) || geteuid()) {
		printf("1..0 # SKIP no " P2M_DEVICE ", or not root\n");
		return 4;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || chmod(P2M_DEVICE, 0666) ||
	    prctl(PR_SET_CHILD_SUBREAPER, 1))
		return 1;
	if (replay && load(replay)) {
		fprintf(stderr, "fuzz: %s can't be read, or is none\n", replay);
		return 2;
	}
	has_kcov = !access("/sys/kernel/debug/kcov", W_OK);
	printf("1..1\n# seed %llu%s\n", seed, has_kcov ? ", with KCOV" : "");
	fflush(stdout);

	for (round = 0; !shared->is_bad; round++) {
		if (replay ? round >= times : shared->nr_done >= max_ops ||
		    now_ms() - start >= seconds * 1000)
			break;
		if (!replay)
			make_list(&shared->list, seed, round);
		/* The kernel may not live long enough to do it afterwards. */
		if (record && store(record))
			bad("%s: %s", record, strerror(errno));
		run_round();
		if (round == WARM_UP_ROUNDS)
			first = free_kib();
		if (now_ms() - said > 30000) {
			said = now_ms();
			printf("# %llu operations, %llu rounds, %u times new code, %llu KiB free\n",
			       shared->nr_done, round + 1, shared->nr_new,
			       free_kib());
			fflush(stdout);
		}
	}
	if (first && !shared->is_bad) {
		__u64 last = free_kib();

		if (last + NOISE_KIB < first)
			bad("free memory: %llu KiB, then %llu KiB", first, last);
	}
	chmod(P2M_DEVICE, st.st_mode & 07777);
	printf("# %llu operations in %llu rounds and %llu ms, %llu failed commands, %u times new code\n",
	       shared->nr_done, round, now_ms() - start,
	       shared->nr_failed_calls, shared->nr_new);
	if (shared->is_bad)
		printf("# round %llu: %s\n", round - 1, shared->why);
	printf("%sok 1 calls_in_any_order_leave_all_right\n",
	       shared->is_bad ? "not " : "");
	return shared->is_bad;
}
