/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What fail_nth and fail_kernel have fail: commands of /dev/p2m, mappings and reads.
 */
#ifndef FAIL_COMMANDS_H
#define FAIL_COMMANDS_H

#include "p2m_util.h"

/* Where what is. FRESH is where regions are made, across the edge of a table. */
#define SCATTERED 0UL
#define ALIGNED 1024UL
#define NR_ALIGNED 1024UL
#define POOL 2048UL
#define NR_POOL 128UL
#define DEMAND 2200UL
#define SLOTS 2240UL
#define NR_SLOTS 8UL
#define GUARDED 2260UL
#define NR_GUARDED 8UL
#define FRESH 2554UL
#define END (FRESH + 800)

/* Machine frames that are devices' on every PC. */
#define DEVICES (3UL << 18)
#define NR_DEVICES 8UL

#define SPACE_ADDRESS 0x40000000UL
#define ELSEWHERE (SPACE_ADDRESS << 10)
#define MAX_SPANS 1024
/* More places than any command has. */
#define MAX_NTH 5000

/* How many pages there are where, as the program that includes this has it. */
struct sizes {
	__u64 nr_scattered;
	__u64 nr_demand;
	__u64 nr_fresh;
	/* Of the scattered ones, those that are moved. */
	__u64 nr_moved;
	/* Of the aligned ones, those that have contents, as all scattered ones have. */
	__u64 nr_filled;
};
extern const struct sizes sizes;

/* A domain, with everything that a command may need. */
struct domain {
	int fd;
	int lender;
	__u32 space;
	unsigned char *memory;
};

/* False, and errno, if something of it can't be had. */
bool domain_open(struct domain *d);
void domain_close(struct domain *d);
bool has_contents(__u64 pfn);
/* Everything in a space, stored from @spans on. -1 on failure. */
int space_dump(const struct domain *d, struct p2m_span *spans);

/*
 * A command. @run begins with a domain as domain_open() makes it, and @undo leads back
 * to it after a success; without a success it fails, and changes nothing. A command
 * that may end half-way has no @undo that fails: it leads back from anywhere. So does
 * that of a command after which nobody can tell whether it was done, if it was silent.
 * One without @undo needs none.
 */
struct command {
	const char *name;
	__u32 nr;
	bool half_way;
	bool is_silent;
	/* Nothing in it can fail for want of memory: it only looks, or takes away. */
	bool is_safe;
	int (*run)(const struct domain *d);
	int (*undo)(const struct domain *d);
};

/* Makes what the command takes away. False if it can't. */
bool command_prepare(const struct command *command, const struct domain *d);

/* All of them. P2M_FAIL_NTH itself is no command that can be had to fail by it. */
#define COMMANDS(X) \
	X(info); X(stat); X(region_create); X(region_create_guarded); \
	X(region_create_contiguous); X(region_create_on_demand); \
	X(region_destroy); X(region_list); X(translate); X(translate_m2p); \
	X(runs); X(space_create); X(space_map); X(space_unmap); \
	X(space_unmap_part); X(space_change); X(space_change_part); \
	X(space_walk); X(space_dump); X(space_list); X(space_access); \
	X(release); X(populate); X(move); X(evacuate); X(keep_out); \
	X(readmit); X(contiguous); X(exchange); X(collapse); X(audit); \
	X(guard_check); X(foreign_map); X(foreign_unmap); X(identity); \
	X(dma_plan); X(dma_buf_export); X(space_destroy); X(read); X(open); \
	X(fdinfo); X(map_memory); X(map_on_demand); X(map_header); \
	X(map_p2m); X(map_m2p)

#define DECLARE_COMMAND(id) extern const struct command command_##id
COMMANDS(DECLARE_COMMAND);

#endif /* FAIL_COMMANDS_H */
