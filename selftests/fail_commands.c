// SPDX-License-Identifier: GPL-2.0
/*
 * The commands of /dev/p2m, mappings and reads, each on a domain with everything that
 * it may need.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fail_commands.h"

static int region_create(int fd, __u32 flags, __u32 policy, __u64 pfn,
			 __u64 nr_pages)
{
	__u64 base = pfn;

	return _test_cmd_region_create(fd, flags | P2M_REGION_FIXED, policy,
				       nr_pages, 0, &base);
}

static int space_create(int fd, __u64 pool, __u64 nr_pages, __u32 *space)
{
	struct p2m_space_create cmd = {
		.size = sizeof(cmd),
		.backend = "p2m",
		.nr_levels = 4,
		.pool_pfn = pool,
		.pool_pages = nr_pages,
	};
	int ret = ioctl(fd, P2M_SPACE_CREATE, &cmd);

	*space = cmd.out_space;
	return ret;
}

static int space_map(const struct domain *d, __u64 address, __u64 pfn,
		     __u64 nr_pages)
{
	struct p2m_space_map cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.max_level = 1,
		.address = address,
		.pfn = pfn,
		.nr_pages = nr_pages,
		.pte_flags = P2M_PTE_RW,
	};

	return ioctl(d->fd, P2M_SPACE_MAP, &cmd);
}

static int space_unmap(const struct domain *d, __u64 address, __u64 nr_pages)
{
	struct p2m_space_unmap cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.address = address,
		.nr_pages = nr_pages,
	};

	return ioctl(d->fd, P2M_SPACE_UNMAP, &cmd);
}

static int space_change(const struct domain *d, __u32 flags, __u64 address,
			__u64 nr_pages, __u64 value)
{
	struct p2m_space_change cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.space = d->space,
		.address = address,
		.nr_pages = nr_pages,
		.value = value,
	};

	return ioctl(d->fd, P2M_SPACE_CHANGE, &cmd);
}

int space_dump(const struct domain *d, struct p2m_span *spans)
{
	struct p2m_space_dump cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.nr = MAX_SPANS,
		.spans = (uintptr_t)spans,
	};

	return ioctl(d->fd, P2M_SPACE_DUMP, &cmd) ? -1 : (int)cmd.out_nr;
}

void domain_close(struct domain *d)
{
	if (d->memory != MAP_FAILED)
		munmap(d->memory, END * P2M_PAGE_SIZE);
	close(d->lender);
	close(d->fd);
}

bool has_contents(__u64 pfn)
{
	return pfn < sizes.nr_scattered ||
	       (pfn >= ALIGNED && pfn < ALIGNED + sizes.nr_filled);
}

bool domain_open(struct domain *d)
{
	__u64 pfn;

	d->memory = MAP_FAILED;
	d->fd = p2m_open();
	d->lender = p2m_open();
	if (d->fd < 0 || d->lender < 0 ||
	    region_create(d->fd, 0, P2M_POLICY_SCATTER, SCATTERED, sizes.nr_scattered) ||
	    region_create(d->fd, 0, P2M_POLICY_CONTIGUOUS, ALIGNED, NR_ALIGNED) ||
	    region_create(d->fd, 0, P2M_POLICY_ANY, POOL, NR_POOL) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_SCATTER, DEMAND,
			  sizes.nr_demand) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, SLOTS,
			  NR_SLOTS) ||
	    region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, GUARDED,
			  NR_GUARDED) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, DEVICES,
			  NR_DEVICES) ||
	    region_create(d->lender, 0, P2M_POLICY_ANY, 0, NR_SLOTS) ||
	    space_create(d->fd, POOL, NR_POOL / 2, &d->space) ||
	    space_map(d, SPACE_ADDRESS, SCATTERED, sizes.nr_scattered) ||
	    space_map(d, 2 * SPACE_ADDRESS, ALIGNED, NR_ALIGNED))
		return false;
	d->memory = map_pages(d->fd, 0, END);
	if (d->memory == MAP_FAILED)
		return false;
	for (pfn = 0; pfn < END; pfn++)
		if (has_contents(pfn))
			page_fill(d->memory + pfn * P2M_PAGE_SIZE, pfn);
	return true;
}

#define COMMAND(id, number, ...)                                              \
	const struct command command_##id = { .name = #id, .nr = (number), __VA_ARGS__ }

static int run_info(const struct domain *d)
{
	struct p2m_info info;

	return _test_cmd_info(d->fd, &info);
}

COMMAND(info, P2M_INFO, .is_safe = true, .run = run_info);

static int run_stat(const struct domain *d)
{
	struct p2m_stat stat;

	return _test_cmd_stat(d->fd, &stat);
}

COMMAND(stat, P2M_STAT, .is_safe = true, .run = run_stat);

static int run_create(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_SCATTER, FRESH, sizes.nr_fresh);
}

static int undo_create(const struct domain *d)
{
	return _test_cmd_region_destroy(d->fd, FRESH);
}

COMMAND(region_create, P2M_REGION_CREATE, .run = run_create, .undo = undo_create);

static int run_create_guarded(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, FRESH,
			     sizes.nr_fresh);
}

COMMAND(region_create_guarded, P2M_REGION_CREATE, .run = run_create_guarded,
	.undo = undo_create);

static int run_create_contiguous(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_CONTIGUOUS, FRESH, sizes.nr_fresh);
}

COMMAND(region_create_contiguous, P2M_REGION_CREATE, .run = run_create_contiguous,
	.undo = undo_create);

static int run_create_on_demand(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, FRESH,
			     sizes.nr_fresh);
}

COMMAND(region_create_on_demand, P2M_REGION_CREATE, .run = run_create_on_demand,
	.undo = undo_create);

/* The other way round. */
static int run_destroy(const struct domain *d)
{
	return _test_cmd_region_destroy(d->fd, GUARDED);
}

static int undo_destroy(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, GUARDED,
			     NR_GUARDED);
}

COMMAND(region_destroy, P2M_REGION_DESTROY, .is_safe = true, .run = run_destroy,
	.undo = undo_destroy);

static int run_list(const struct domain *d)
{
	struct p2m_region regions[16];
	struct p2m_constraint constraints[16];
	struct p2m_region_list cmd = {
		.size = sizeof(cmd),
		.regions = (uintptr_t)regions,
		.nr = ARRAY_LEN(regions),
		.constraints = (uintptr_t)constraints,
	};

	return ioctl(d->fd, P2M_REGION_LIST, &cmd);
}

COMMAND(region_list, P2M_REGION_LIST, .is_safe = true, .run = run_list);

static int run_translate(const struct domain *d)
{
	__u64 frames[600] = { 1, 2, 3 };

	return _test_cmd_translate(d->fd, 0, frames, frames, ARRAY_LEN(frames));
}

COMMAND(translate, P2M_TRANSLATE, .is_safe = true, .run = run_translate);

static int run_translate_m2p(const struct domain *d)
{
	__u64 frames[3] = { 1, 2, 3 };

	return _test_cmd_translate(d->fd, P2M_TRANSLATE_M2P, frames, frames,
				   ARRAY_LEN(frames));
}

COMMAND(translate_m2p, P2M_TRANSLATE, .is_safe = true, .run = run_translate_m2p);

static int run_runs(const struct domain *d)
{
	struct p2m_run runs[8];

	return _test_cmd_runs(d->fd, 0, END, runs, ARRAY_LEN(runs), NULL, NULL);
}

COMMAND(runs, P2M_RUNS, .is_safe = true, .run = run_runs);

/* A second space, if it's there. */
static __u32 other_space;

static int run_space_create(const struct domain *d)
{
	__u32 space;
	int ret = space_create(d->fd, POOL + NR_POOL / 2, NR_POOL / 2, &space);

	if (!ret)
		other_space = space;
	return ret;
}

static int space_destroy(const struct domain *d, __u32 space)
{
	struct p2m_space_destroy cmd = { .size = sizeof(cmd), .space = space };

	return ioctl(d->fd, P2M_SPACE_DESTROY, &cmd);
}

static int undo_space_create(const struct domain *d)
{
	__u32 space;

	/* Numbers aren't used again soon, and that of the fixture is the lowest. */
	for (space = d->space + 1; space < d->space + MAX_NTH; space++)
		if (!space_destroy(d, space))
			return 0;
	return -1;
}

COMMAND(space_create, P2M_SPACE_CREATE, .run = run_space_create,
	.undo = undo_space_create);

static int run_space_map(const struct domain *d)
{
	return space_map(d, ELSEWHERE, SCATTERED, sizes.nr_scattered);
}

static int undo_space_map(const struct domain *d)
{
	return space_unmap(d, ELSEWHERE, sizes.nr_scattered);
}

COMMAND(space_map, P2M_SPACE_MAP, .run = run_space_map, .undo = undo_space_map);

static int run_space_unmap(const struct domain *d)
{
	return space_unmap(d, SPACE_ADDRESS, sizes.nr_scattered);
}

static int undo_space_unmap(const struct domain *d)
{
	return space_map(d, SPACE_ADDRESS, SCATTERED, sizes.nr_scattered);
}

COMMAND(space_unmap, P2M_SPACE_UNMAP, .is_safe = true, .run = run_space_unmap,
	.undo = undo_space_unmap);

/* A large leaf has to be split. */
static int run_space_split(const struct domain *d)
{
	return space_unmap(d, 2 * SPACE_ADDRESS + 100 * P2M_PAGE_SIZE, 10);
}

static int undo_space_split(const struct domain *d)
{
	(void)!space_unmap(d, 2 * SPACE_ADDRESS, NR_ALIGNED);
	return space_map(d, 2 * SPACE_ADDRESS, ALIGNED, NR_ALIGNED);
}

COMMAND(space_unmap_part, P2M_SPACE_UNMAP, .half_way = true,
	.run = run_space_split, .undo = undo_space_split);

static int run_space_change(const struct domain *d)
{
	return space_change(d, P2M_CHANGE_FRAMES, SPACE_ADDRESS, 8, 20);
}

static int undo_space_change(const struct domain *d)
{
	return space_change(d, P2M_CHANGE_FRAMES, SPACE_ADDRESS, 8, SCATTERED);
}

COMMAND(space_change, P2M_SPACE_CHANGE, .is_safe = true, .half_way = true,
	.run = run_space_change, .undo = undo_space_change);

/* A large leaf has to be split, too. */
static int run_space_change_part(const struct domain *d)
{
	return space_change(d, 0, 2 * SPACE_ADDRESS + 100 * P2M_PAGE_SIZE, 10, 0);
}

COMMAND(space_change_part, P2M_SPACE_CHANGE, .half_way = true,
	.run = run_space_change_part, .undo = undo_space_split);

static int run_space_walk(const struct domain *d)
{
	struct p2m_space_walk cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.address = SPACE_ADDRESS,
	};

	return ioctl(d->fd, P2M_SPACE_WALK, &cmd);
}

COMMAND(space_walk, P2M_SPACE_WALK, .is_safe = true, .run = run_space_walk);

static int run_space_dump(const struct domain *d)
{
	struct p2m_span spans[MAX_SPANS];

	return space_dump(d, spans) < 0 ? -1 : 0;
}

COMMAND(space_dump, P2M_SPACE_DUMP, .is_safe = true, .run = run_space_dump);

static int space_access(const struct domain *d, __u32 op, __u64 *words, __u32 nr)
{
	struct p2m_space_access cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.op = op,
		.address = SPACE_ADDRESS,
		.buffer = (uintptr_t)words,
		.nr_words = nr,
	};

	return ioctl(d->fd, P2M_SPACE_ACCESS, &cmd);
}

static int run_space_list(const struct domain *d)
{
	struct p2m_space_info spaces[4];
	struct p2m_space_list cmd = {
		.size = sizeof(cmd),
		.nr = ARRAY_LEN(spaces),
		.spaces = (uintptr_t)spaces,
	};

	return ioctl(d->fd, P2M_SPACE_LIST, &cmd);
}

COMMAND(space_list, P2M_SPACE_LIST, .is_safe = true, .run = run_space_list);

static int run_space_access(const struct domain *d)
{
	__u64 words[8];

	return space_access(d, P2M_ACCESS_READ, words, ARRAY_LEN(words));
}

/* The processor sets accessed bits in the tables. */
COMMAND(space_access, P2M_SPACE_ACCESS, .half_way = true, .run = run_space_access);

static int run_release(const struct domain *d)
{
	struct p2m_release cmd;

	return _test_cmd_release(d->fd, DEMAND, sizes.nr_demand, &cmd);
}

COMMAND(release, P2M_RELEASE, .is_safe = true, .half_way = true, .run = run_release);

static int run_populate(const struct domain *d)
{
	struct p2m_populate cmd;

	return _test_cmd_populate(d->fd, DEMAND, sizes.nr_demand, &cmd);
}

COMMAND(populate, P2M_POPULATE, .half_way = true, .run = run_populate,
	.undo = run_release);

static int run_move(const struct domain *d)
{
	struct p2m_move cmd;

	return _test_cmd_move(d->fd, SCATTERED, sizes.nr_moved, P2M_POLICY_SCATTER, 3, &cmd);
}

COMMAND(move, P2M_MOVE, .half_way = true, .run = run_move);

static int run_evacuate(const struct domain *d)
{
	__u64 mfn = pfn_to_entry(d->fd, ALIGNED + 8);
	struct p2m_evacuate cmd;

	/* That question may have failed as well. */
	if (mfn > P2M_ENTRY_MFN_MASK)
		return -1;
	return _test_cmd_evacuate(d->fd, 0, mfn & ~7ULL, 8, &cmd);
}

COMMAND(evacuate, P2M_EVACUATE, .half_way = true, .run = run_evacuate);

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

COMMAND(keep_out, P2M_EVACUATE, .half_way = true, .run = run_keep_out,
	.undo = undo_keep_out);

COMMAND(readmit, P2M_EVACUATE, .half_way = true, .run = run_readmit,
	.undo = undo_keep_out);

static int run_contiguous(const struct domain *d)
{
	struct p2m_contiguous cmd;

	return _test_cmd_contiguous(d->fd, SCATTERED + 17, 3, 0, &cmd);
}

static int undo_contiguous(const struct domain *d)
{
	return run_move(d);
}

COMMAND(contiguous, P2M_CONTIGUOUS, .is_silent = true, .run = run_contiguous,
	.undo = undo_contiguous);

static int run_exchange(const struct domain *d)
{
	struct p2m_exchange cmd;

	return _test_cmd_exchange(d->fd, SCATTERED, SCATTERED + 20, 8, &cmd);
}

COMMAND(exchange, P2M_EXCHANGE, .half_way = true, .run = run_exchange);

static int run_collapse(const struct domain *d)
{
	struct p2m_collapse cmd = {
		.size = sizeof(cmd),
		.start_pfn = ALIGNED,
		.nr_pages = NR_ALIGNED / 2,
	};

	return ioctl(d->fd, P2M_COLLAPSE, &cmd);
}

/* A part of it has to become what it was. */
static int undo_collapse(const struct domain *d)
{
	struct p2m_move cmd;

	return _test_cmd_move(d->fd, ALIGNED, sizes.nr_moved, P2M_POLICY_SCATTER, 4,
			      &cmd);
}

COMMAND(collapse, P2M_COLLAPSE, .half_way = true, .run = run_collapse,
	.undo = undo_collapse);

static int run_audit(const struct domain *d)
{
	struct p2m_audit cmd;

	return _test_cmd_audit(d->fd, &cmd);
}

COMMAND(audit, P2M_AUDIT, .is_safe = true, .run = run_audit);

static int run_guard_check(const struct domain *d)
{
	struct p2m_guard_check cmd;

	return _test_cmd_guard_check(d->fd, 0, GUARDED, NR_GUARDED, &cmd);
}

COMMAND(guard_check, P2M_GUARD_CHECK, .is_safe = true, .run = run_guard_check);

static int run_foreign_map(const struct domain *d)
{
	__u64 frames[NR_SLOTS];
	__s32 errors[NR_SLOTS];
	__u32 nr;

	for (__u64 i = 0; i < NR_SLOTS; i++)
		frames[i] = i;
	if (_test_cmd_foreign_map(d->fd, d->lender, SLOTS, frames, errors, NR_SLOTS,
				  &nr))
		return -1;
	/* A slot that fails is no failure of the command. */
	return nr == NR_SLOTS ? 0 : -1;
}

static int run_foreign_unmap(const struct domain *d)
{
	__s32 errors[NR_SLOTS];
	__u32 nr;

	return _test_cmd_foreign_unmap(d->fd, SLOTS, errors, NR_SLOTS, &nr);
}

COMMAND(foreign_map, P2M_FOREIGN_MAP, .half_way = true, .run = run_foreign_map,
	.undo = run_foreign_unmap);

COMMAND(foreign_unmap, P2M_FOREIGN_UNMAP, .is_safe = true, .half_way = true,
	.run = run_foreign_unmap);

static int run_identity(const struct domain *d)
{
	return _test_cmd_identity(d->fd, DEVICES, NR_DEVICES);
}

static int undo_identity(const struct domain *d)
{
	struct p2m_release cmd;

	return _test_cmd_release(d->fd, DEVICES, NR_DEVICES, &cmd);
}

COMMAND(identity, P2M_IDENTITY, .is_silent = true, .run = run_identity,
	.undo = undo_identity);

static int run_dma_plan(const struct domain *d)
{
	struct p2m_dma_segment segments[8];
	struct p2m_dma_plan cmd = {
		.size = sizeof(cmd),
		.start_pfn = SCATTERED,
		.length = 8 * P2M_PAGE_SIZE,
		.segments = (uintptr_t)segments,
		.nr = ARRAY_LEN(segments),
	};

	return ioctl(d->fd, P2M_DMA_PLAN, &cmd);
}

COMMAND(dma_plan, P2M_DMA_PLAN, .is_safe = true, .run = run_dma_plan);

static int run_export(const struct domain *d)
{
	struct p2m_dma_buf_export cmd = {
		.size = sizeof(cmd),
		.start_pfn = SCATTERED,
		.nr_pages = 16,
		.fd_flags = O_RDWR,
	};
	int ret = ioctl(d->fd, P2M_DMA_BUF_EXPORT, &cmd);

	if (!ret)
		close(cmd.out_fd);
	return ret;
}

COMMAND(dma_buf_export, P2M_DMA_BUF_EXPORT, .run = run_export);

/* The fixture has made it. */
static int run_space_destroy(const struct domain *d)
{
	return space_destroy(d, other_space);
}

COMMAND(space_destroy, P2M_SPACE_DESTROY, .is_safe = true, .run = run_space_destroy,
	.undo = run_space_create);

/* Not commands. */

static int run_read(const struct domain *d)
{
	__u64 entries[600];

	return pread(d->fd, entries, sizeof(entries), 0) == sizeof(entries) ? 0 : -1;
}

COMMAND(read, 0, .is_safe = true, .run = run_read);

static int run_open(const struct domain *d)
{
	int fd = p2m_open();

	(void)d;
	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

COMMAND(open, 0, .is_safe = true, .run = run_open);

static int run_fdinfo(const struct domain *d)
{
	char path[32], text[1024];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", d->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	len = read(fd, text, sizeof(text));
	close(fd);
	return len > 0 ? 0 : -1;
}

COMMAND(fdinfo, 0, .is_safe = true, .run = run_fdinfo);

/* Maps and touches pages of a window. */
static int run_map(const struct domain *d, __u64 offset, size_t len, int prot)
{
	volatile unsigned char *mem = mmap(NULL, len, prot, MAP_SHARED, d->fd, offset);
	int sig = 0;
	size_t i;

	if (mem == MAP_FAILED)
		return -1;
	for (i = 0; i < len && !sig; i += P2M_PAGE_SIZE)
		sig = touch_read(mem + i);
	munmap((void *)mem, len);
	return sig ? -1 : 0;
}

static int run_map_memory(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_MEMORY, 4 * P2M_PAGE_SIZE,
		       PROT_READ | PROT_WRITE);
}

COMMAND(map_memory, 0, .is_safe = true, .run = run_map_memory);

static int run_map_on_demand(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_MEMORY + DEMAND * P2M_PAGE_SIZE,
		       4 * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE);
}

COMMAND(map_on_demand, 0, .half_way = true, .run = run_map_on_demand,
	.undo = run_release);

static int run_map_header(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_HEADER, P2M_PAGE_SIZE, PROT_READ);
}

COMMAND(map_header, 0, .is_safe = true, .run = run_map_header);

static int run_map_p2m(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_P2M, 2 * P2M_PAGE_SIZE, PROT_READ);
}

COMMAND(map_p2m, 0, .is_safe = true, .run = run_map_p2m);

static int run_map_m2p(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_M2P, 2 * P2M_PAGE_SIZE, PROT_READ);
}

COMMAND(map_m2p, 0, .is_safe = true, .run = run_map_m2p);

bool command_prepare(const struct command *command, const struct domain *d)
{
	return command != &command_space_destroy || !run_space_create(d);
}
