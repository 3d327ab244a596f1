// SPDX-License-Identifier: GPL-2.0
/*
 * As fail_nth, with the kernel's own fault injection: whatever allocates memory or
 * copies to or from userspace fails, one place after the other, in every command,
 * mapping and read. A command that fails leaves the domain as it was, or has done
 * all and failed to say so; nothing is lost, and no page has other contents. The
 * places are listed.
 *
 * It needs a kernel with CONFIG_FAULT_INJECTION, and so is none of the tests that
 * run everywhere.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

/* Where what is. FRESH is where regions are made, across the edge of a table. */
#define SCATTERED 0UL
#define NR_SCATTERED 40UL
#define ALIGNED 512UL
#define NR_ALIGNED 1024UL
#define POOL 1600UL
#define NR_POOL 32UL
#define DEMAND 1700UL
#define NR_DEMAND 12UL
#define SLOTS 1720UL
#define NR_SLOTS 8UL
#define GUARDED 1800UL
#define NR_GUARDED 8UL
#define FRESH 2042UL
#define NR_FRESH 16UL
#define END 2100UL

/* Machine frames that are devices' on every PC. */
#define DEVICES (3UL << 18)
#define NR_DEVICES 8UL

#define SPACE_ADDRESS 0x40000000UL
#define ELSEWHERE (SPACE_ADDRESS << 10)
/* More places than any command has. */
#define MAX_NTH 2000
#define MAX_PLACES 256
#define MAX_SPANS 256

/* Fault injection, as /proc/self/fail-nth has it. */

static const char *const injectors[] = {
	"failslab",
	"fail_page_alloc",
	"fail_usercopy",
};

static int fail_nth_fd = -1;
static int kmsg_fd = -1;

static bool set_knob(const char *injector, const char *knob, const char *value)
{
	char path[128];
	bool good;
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", injector, knob);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	good = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return good;
}

/* Allocations that may wait fail, too, and each failure is told with its stack. */
static bool injection_open(void)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(injectors); i++) {
		if (!set_knob(injectors[i], "verbose", "2") ||
		    !set_knob(injectors[i], "verbose_ratelimit_interval_ms", "0"))
			return false;
	}
	if (!set_knob("failslab", "ignore-gfp-wait", "N") ||
	    !set_knob("fail_page_alloc", "ignore-gfp-wait", "N") ||
	    !set_knob("fail_page_alloc", "ignore-gfp-highmem", "N") ||
	    !set_knob("fail_page_alloc", "min-order", "0"))
		return false;
	fail_nth_fd = open("/proc/self/fail-nth", O_RDWR | O_CLOEXEC);
	kmsg_fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return fail_nth_fd >= 0 && kmsg_fd >= 0 && lseek(kmsg_fd, 0, SEEK_END) >= 0;
}

static void arm(unsigned int nth)
{
	char word[16];
	int len = snprintf(word, sizeof(word), "%u", nth);

	if (pwrite(fail_nth_fd, word, len, 0) != len)
		abort();
}

/* What was left to count: 0 if something has failed. */
static unsigned int disarm(void)
{
	char word[16] = "";
	ssize_t len = pread(fail_nth_fd, word, sizeof(word) - 1, 0);
	/* To copy the answer is a place of its own. */
	unsigned int left = len > 0 ? strtoul(word, NULL, 10) : 1;

	if (left && pwrite(fail_nth_fd, "0", 1, 0) != 1)
		(void)!pwrite(fail_nth_fd, "0", 1, 0);
	return left;
}

/* The places of a command, each with how often it has failed. */
struct places {
	unsigned int nr;
	struct {
		char name[200];
		unsigned int times;
	} places[MAX_PLACES];
};

static void add_place(struct places *places, const char *name)
{
	unsigned int i;

	for (i = 0; i < places->nr; i++)
		if (!strcmp(places->places[i].name, name))
			break;
	if (i == places->nr) {
		if (i == MAX_PLACES)
			return;
		snprintf(places->places[i].name, sizeof(places->places[i].name), "%s",
			 name);
		places->nr++;
	}
	places->places[i].times++;
}

static void copy_word(char *to, size_t size, const char *from, const char *end)
{
	snprintf(to, size, "%.*s", (int)strcspn(from, end), from);
}

/*
 * What the kernel has said since the last time: who failed, and where the module
 * called it. Of allocations with __GFP_NOWARN it says nothing.
 */
static void read_place(struct places *places)
{
	char injector[48] = "__GFP_NOWARN", frame[160] = "unknown";
	char record[2048], name[200];
	bool is_found = false;

	for (;;) {
		ssize_t len = read(kmsg_fd, record, sizeof(record) - 1);
		char *text, *end;

		if (len < 0 && errno == EPIPE)
			continue;
		if (len <= 0)
			break;
		record[len] = '\0';
		text = strchr(record, ';');
		if (!text)
			continue;
		text++;
		end = strchr(text, '\n');
		if (end)
			*end = '\0';
		if (strstr(text, "forcing a failure")) {
			copy_word(frame, sizeof(frame), "outside", " ");
			text = strstr(text, "name ");
			if (text)
				copy_word(injector, sizeof(injector), text + 5, ",");
		} else if (!is_found && strstr(text, "[p2m]") && !strchr(text, '?')) {
			is_found = true;
			text += strspn(text, " ");
			copy_word(frame, sizeof(frame), text, " ");
		}
	}
	snprintf(name, sizeof(name), "%s at %s", injector, frame);
	add_place(places, name);
}

static void list_places(struct __test_metadata *_metadata,
			const struct places *places, const char *name)
{
	unsigned int i;

	for (i = 0; i < places->nr; i++)
		TH_LOG("%s: %u x %s", name, places->places[i].times,
		       places->places[i].name);
}

/* A domain, with everything that a command may need. */
struct domain {
	int fd;
	int lender;
	__u32 space;
	unsigned char *memory;
};

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

/* Everything in a space, stored from @spans on. -1 on failure. */
static int space_dump(const struct domain *d, struct p2m_span *spans)
{
	struct p2m_space_dump cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.nr = MAX_SPANS,
		.spans = (uintptr_t)spans,
	};

	return ioctl(d->fd, P2M_SPACE_DUMP, &cmd) ? -1 : (int)cmd.out_nr;
}

static void domain_close(struct domain *d)
{
	if (d->memory != MAP_FAILED)
		munmap(d->memory, END * P2M_PAGE_SIZE);
	close(d->lender);
	close(d->fd);
}

static bool has_contents(__u64 pfn)
{
	return pfn < NR_SCATTERED || (pfn >= ALIGNED && pfn < ALIGNED + 64);
}

/* False, and errno, if something of it can't be had. */
static bool domain_open(struct domain *d)
{
	__u64 pfn;

	d->memory = MAP_FAILED;
	d->fd = p2m_open();
	d->lender = p2m_open();
	if (d->fd < 0 || d->lender < 0 ||
	    region_create(d->fd, 0, P2M_POLICY_SCATTER, SCATTERED, NR_SCATTERED) ||
	    region_create(d->fd, 0, P2M_POLICY_CONTIGUOUS, ALIGNED, NR_ALIGNED) ||
	    region_create(d->fd, 0, P2M_POLICY_ANY, POOL, NR_POOL) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_SCATTER, DEMAND,
			  NR_DEMAND) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, SLOTS,
			  NR_SLOTS) ||
	    region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, GUARDED,
			  NR_GUARDED) ||
	    region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, DEVICES,
			  NR_DEVICES) ||
	    region_create(d->lender, 0, P2M_POLICY_ANY, 0, NR_SLOTS) ||
	    space_create(d->fd, POOL, NR_POOL / 2, &d->space) ||
	    space_map(d, SPACE_ADDRESS, SCATTERED, NR_SCATTERED) ||
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

/* What a command that has failed must leave alone. */
struct state {
	__u64 *entries;
	struct snapshot snapshot;
	struct p2m_span spans[MAX_SPANS];
	int nr_spans;
};

static bool state_take(const struct domain *d, struct state *state)
{
	state->entries = range_to_entries(d->fd, 0, END);
	if (!state->entries || snapshot_take(d->fd, &state->snapshot))
		return false;
	memset(state->spans, 0, sizeof(state->spans));
	state->nr_spans = space_dump(d, state->spans);
	return state->nr_spans >= 0;
}

/* Frees the state. */
static bool state_is_current(const struct domain *d, struct state *state)
{
	static struct p2m_span spans[MAX_SPANS];
	__u64 *entries = range_to_entries(d->fd, 0, END);
	bool is_same;

	memset(spans, 0, sizeof(spans));
	is_same = snapshot_is_current(d->fd, &state->snapshot);
	is_same = space_dump(d, spans) == state->nr_spans && is_same &&
		  !memcmp(spans, state->spans, sizeof(spans)) && entries &&
		  !memcmp(entries, state->entries, END * sizeof(*entries));
	free(entries);
	free(state->entries);
	return is_same;
}

/*
 * The commands. @run begins with a domain as domain_open() makes it, and @undo
 * leads back to it after a success; without a success it fails, and changes
 * nothing. A command that may end half-way has no @undo that fails: it leads back
 * from anywhere. One without @undo needs none.
 */
struct command {
	const char *name;
	__u32 nr;
	bool half_way;
	int (*run)(const struct domain *d);
	int (*undo)(const struct domain *d);
};

FIXTURE(failing) {
	struct domain domain;
	struct state before;
	struct places places;
	__u64 baseline;
};

FIXTURE_VARIANT(failing) {
	const struct command *command;
};

#define COMMAND(id, number, ...)                                              \
	static const struct command command_##id = { .name = #id,             \
						     .nr = (number),          \
						     __VA_ARGS__ };           \
	FIXTURE_VARIANT_ADD(failing, id) { .command = &command_##id }

static int run_info(const struct domain *d)
{
	struct p2m_info info;

	return _test_cmd_info(d->fd, &info);
}

COMMAND(info, P2M_INFO, .run = run_info);

static int run_stat(const struct domain *d)
{
	struct p2m_stat stat;

	return _test_cmd_stat(d->fd, &stat);
}

COMMAND(stat, P2M_STAT, .run = run_stat);

static int run_create(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_SCATTER, FRESH, NR_FRESH);
}

static int undo_create(const struct domain *d)
{
	return _test_cmd_region_destroy(d->fd, FRESH);
}

COMMAND(region_create, P2M_REGION_CREATE, .run = run_create, .undo = undo_create);

static int run_create_guarded(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_GUARDED, P2M_POLICY_ANY, FRESH,
			     NR_FRESH);
}

COMMAND(region_create_guarded, P2M_REGION_CREATE, .run = run_create_guarded,
	.undo = undo_create);

static int run_create_contiguous(const struct domain *d)
{
	return region_create(d->fd, 0, P2M_POLICY_CONTIGUOUS, FRESH, NR_FRESH);
}

COMMAND(region_create_contiguous, P2M_REGION_CREATE, .run = run_create_contiguous,
	.undo = undo_create);

static int run_create_on_demand(const struct domain *d)
{
	return region_create(d->fd, P2M_REGION_ON_DEMAND, P2M_POLICY_ANY, FRESH,
			     NR_FRESH);
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

COMMAND(region_destroy, P2M_REGION_DESTROY, .run = run_destroy,
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

COMMAND(region_list, P2M_REGION_LIST, .run = run_list);

static int run_translate(const struct domain *d)
{
	__u64 frames[600] = { 1, 2, 3 };

	return _test_cmd_translate(d->fd, 0, frames, frames, ARRAY_LEN(frames));
}

COMMAND(translate, P2M_TRANSLATE, .run = run_translate);

static int run_translate_m2p(const struct domain *d)
{
	__u64 frames[3] = { 1, 2, 3 };

	return _test_cmd_translate(d->fd, P2M_TRANSLATE_M2P, frames, frames,
				   ARRAY_LEN(frames));
}

COMMAND(translate_m2p, P2M_TRANSLATE, .run = run_translate_m2p);

static int run_runs(const struct domain *d)
{
	struct p2m_run runs[8];

	return _test_cmd_runs(d->fd, 0, END, runs, ARRAY_LEN(runs), NULL, NULL);
}

COMMAND(runs, P2M_RUNS, .run = run_runs);

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
	return space_map(d, ELSEWHERE, SCATTERED, NR_SCATTERED);
}

static int undo_space_map(const struct domain *d)
{
	return space_unmap(d, ELSEWHERE, NR_SCATTERED);
}

COMMAND(space_map, P2M_SPACE_MAP, .run = run_space_map, .undo = undo_space_map);

static int run_space_unmap(const struct domain *d)
{
	return space_unmap(d, SPACE_ADDRESS, NR_SCATTERED);
}

static int undo_space_unmap(const struct domain *d)
{
	return space_map(d, SPACE_ADDRESS, SCATTERED, NR_SCATTERED);
}

COMMAND(space_unmap, P2M_SPACE_UNMAP, .run = run_space_unmap,
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

COMMAND(space_change, P2M_SPACE_CHANGE, .half_way = true, .run = run_space_change,
	.undo = undo_space_change);

static int run_space_walk(const struct domain *d)
{
	struct p2m_space_walk cmd = {
		.size = sizeof(cmd),
		.space = d->space,
		.address = SPACE_ADDRESS,
	};

	return ioctl(d->fd, P2M_SPACE_WALK, &cmd);
}

COMMAND(space_walk, P2M_SPACE_WALK, .run = run_space_walk);

static int run_space_dump(const struct domain *d)
{
	struct p2m_span spans[MAX_SPANS];

	return space_dump(d, spans) < 0 ? -1 : 0;
}

COMMAND(space_dump, P2M_SPACE_DUMP, .run = run_space_dump);

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

COMMAND(space_list, P2M_SPACE_LIST, .run = run_space_list);

static int run_space_access(const struct domain *d)
{
	__u64 words[8];

	return space_access(d, P2M_ACCESS_READ, words, ARRAY_LEN(words));
}

/* The processor sets accessed bits in the tables. */
COMMAND(space_access, P2M_SPACE_ACCESS, .half_way = true,
	.run = run_space_access);

static int run_release(const struct domain *d)
{
	struct p2m_release cmd;

	return _test_cmd_release(d->fd, DEMAND, NR_DEMAND, &cmd);
}

COMMAND(release, P2M_RELEASE, .half_way = true, .run = run_release);

static int run_populate(const struct domain *d)
{
	struct p2m_populate cmd;

	return _test_cmd_populate(d->fd, DEMAND, NR_DEMAND, &cmd);
}

COMMAND(populate, P2M_POPULATE, .half_way = true, .run = run_populate,
	.undo = run_release);

static int run_move(const struct domain *d)
{
	struct p2m_move cmd;

	return _test_cmd_move(d->fd, SCATTERED, 12, P2M_POLICY_SCATTER, 3, &cmd);
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

static int run_contiguous(const struct domain *d)
{
	struct p2m_contiguous cmd;

	return _test_cmd_contiguous(d->fd, SCATTERED + 17, 3, 0, &cmd);
}

static int undo_contiguous(const struct domain *d)
{
	return run_move(d);
}

COMMAND(contiguous, P2M_CONTIGUOUS, .half_way = true, .run = run_contiguous,
	.undo = undo_contiguous);

static int run_exchange(const struct domain *d)
{
	struct p2m_exchange cmd;

	return _test_cmd_exchange(d->fd, SCATTERED, SCATTERED + 20, 8, &cmd);
}

COMMAND(exchange, P2M_EXCHANGE, .half_way = true, .run = run_exchange);

static int run_audit(const struct domain *d)
{
	struct p2m_audit cmd;

	return _test_cmd_audit(d->fd, &cmd);
}

COMMAND(audit, P2M_AUDIT, .run = run_audit);

static int run_guard_check(const struct domain *d)
{
	struct p2m_guard_check cmd;

	return _test_cmd_guard_check(d->fd, 0, GUARDED, NR_GUARDED, &cmd);
}

COMMAND(guard_check, P2M_GUARD_CHECK, .run = run_guard_check);

static int run_fail_nth(const struct domain *d)
{
	struct p2m_fail_nth cmd = { .size = sizeof(cmd) };

	return ioctl(d->fd, P2M_FAIL_NTH, &cmd);
}

COMMAND(fail_nth, P2M_FAIL_NTH, .run = run_fail_nth);

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

COMMAND(foreign_unmap, P2M_FOREIGN_UNMAP, .half_way = true,
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

COMMAND(identity, P2M_IDENTITY, .half_way = true, .run = run_identity,
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

COMMAND(dma_plan, P2M_DMA_PLAN, .run = run_dma_plan);

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

COMMAND(space_destroy, P2M_SPACE_DESTROY, .run = run_space_destroy,
	.undo = run_space_create);

/* Not commands. */

static int run_read(const struct domain *d)
{
	__u64 entries[600];

	return pread(d->fd, entries, sizeof(entries), 0) == sizeof(entries) ? 0 : -1;
}

COMMAND(read, 0, .run = run_read);

static int run_open(const struct domain *d)
{
	int fd = p2m_open();

	(void)d;
	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

COMMAND(open, 0, .run = run_open);

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

COMMAND(fdinfo, 0, .run = run_fdinfo);

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

COMMAND(map_memory, 0, .run = run_map_memory);

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

COMMAND(map_header, 0, .run = run_map_header);

static int run_map_p2m(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_P2M, 2 * P2M_PAGE_SIZE, PROT_READ);
}

COMMAND(map_p2m, 0, .run = run_map_p2m);

static int run_map_m2p(const struct domain *d)
{
	return run_map(d, P2M_OFFSET_M2P, 2 * P2M_PAGE_SIZE, PROT_READ);
}

COMMAND(map_m2p, 0, .run = run_map_m2p);

FIXTURE_SETUP(failing)
{
	self->baseline = total_pages();
	self->domain.fd = p2m_open();
	ASSERT_LE(0, self->domain.fd) SKIP(return, "cannot open " P2M_DEVICE);
	close(self->domain.fd);
	if (!injection_open())
		SKIP(return, "no fault injection in this kernel");
	ASSERT_TRUE(domain_open(&self->domain))
		TH_LOG("no domain: %s", strerror(errno));
	if (variant->command == &command_space_destroy)
		ASSERT_EQ(0, run_space_create(&self->domain));
}

FIXTURE_TEARDOWN(failing)
{
	domain_close(&self->domain);
	EXPECT_EQ(self->baseline, total_pages());
}

static void check_audit(struct __test_metadata *_metadata, int fd)
{
	struct p2m_audit audit;

	EXPECT_TRUE(audit_is_clean(fd, &audit));
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

TEST_F_TIMEOUT(failing, leaves_nothing_lost, 300)
{
	const struct command *command = variant->command;
	const struct domain *domain = &self->domain;
	unsigned int nth, nr_failures = 0, nr_unsaid = 0;

	for (nth = 1; nth <= MAX_NTH; nth++) {
		unsigned int left;
		int ret, error;

		ASSERT_TRUE(state_take(domain, &self->before));
		arm(nth);
		ret = command->run(domain);
		error = errno;
		left = disarm();

		check_audit(_metadata, domain->fd);
		if (!left) {
			read_place(&self->places);
			nr_failures += !!ret;
		}
		if (!ret) {
			if (command->undo)
				ASSERT_EQ(0, command->undo(domain));
		} else if (command->half_way) {
			if (command->undo)
				command->undo(domain);
		} else if (command->undo && error == EFAULT &&
			   !command->undo(domain)) {
			/* All was done, and then there was no way to say so. */
			nr_unsaid++;
		} else {
			EXPECT_TRUE(state_is_current(domain, &self->before))
				TH_LOG("place %u of %s leaves something behind", nth,
				       command->name);
			self->before.entries = NULL;
		}
		if (self->before.entries) {
			free(self->before.entries);
			free(self->before.snapshot.regions);
			self->before.entries = NULL;
		}
		if (nth % 16 == 1 || left)
			check_contents(_metadata, domain->memory);
		/* Not reached, and so not failed. */
		if (left) {
			ASSERT_EQ(0, ret)
				TH_LOG("%s: %s", command->name, strerror(error));
			break;
		}
	}
	ASSERT_LT(nth, MAX_NTH);
	/* What copies something can fail. */
	EXPECT_LT(0, nr_failures);
	/* Only that which says how far it got comes after all. */
	EXPECT_GE(1, nr_unsaid);
	TH_LOG("%s: %u of %u places are failures", command->name, nr_failures, nth - 1);
	list_places(_metadata, &self->places, command->name);
}

/* A command that is forgotten here would prove nothing. */
TEST(every_command_is_there)
{
	int fd = p2m_open();
	__u32 nr;

	ASSERT_LE(0, fd) SKIP(return, "cannot open " P2M_DEVICE);
	for (nr = P2M_CMD_BASE; nr < 0x100; nr++) {
		const struct __fixture_variant_metadata *v;
		const __u32 request = _IO(P2M_IOCTL_TYPE, nr);
		bool is_found = false;

		ASSERT_EQ(-1, ioctl(fd, request, NULL));
		if (errno == ENOTTY)
			continue;
		for (v = _failing_fixture_object.variant; v; v = v->next) {
			/* All that a variant consists of. */
			const struct command *const *command = v->data;

			is_found |= (*command)->nr == request;
		}
		EXPECT_TRUE(is_found) TH_LOG("command %#x", nr);
	}
	close(fd);
}

/* A mapping that creates a region has none after a failure. */
TEST(mmap_of_a_fresh_domain_leaves_nothing_lost)
{
	const size_t len = NR_FRESH * P2M_PAGE_SIZE;
	__u64 baseline = total_pages();
	static struct places places;
	unsigned int nth;

	if (!injection_open())
		SKIP(return, "no fault injection in this kernel");
	for (nth = 1; nth <= MAX_NTH; nth++) {
		struct p2m_stat stat;
		unsigned int left;
		int fd = p2m_open();
		void *mem;

		ASSERT_LE(0, fd);
		arm(nth);
		mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		left = disarm();
		if (!left)
			read_place(&places);
		check_audit(_metadata, fd);
		ASSERT_EQ(0, _test_cmd_stat(fd, &stat));
		if (mem == MAP_FAILED) {
			EXPECT_EQ(0, stat.out_regions);
			EXPECT_EQ(0, stat.out_frames);
		} else {
			EXPECT_EQ(1, stat.out_regions);
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
	list_places(_metadata, &places, "mmap");
}

TEST_HARNESS_MAIN
