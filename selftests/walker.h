/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Page tables of a space, walked from outside: the raw words as a mapping shows
 * them, read as volume 2 of the AMD64 manual says (5.3 and 5.4), and an inverse of
 * the P2M that was made from the P2M. Nothing here asks the module about a space.
 */
#ifndef WALKER_H
#define WALKER_H

#include <stdbool.h>
#include <stddef.h>

#include <p2m.h>

#define WALKER_MAX_LEVELS 5

struct walker_frame {
	__u64 mfn;
	__u64 pfn;
};

struct walker {
	int fd;
	unsigned int nr_levels;
	/* What is in the tables are PFNs. */
	bool is_native;
	__u64 root_pfn;
	/* The table pool, mapped. */
	__u64 pool_pfn;
	__u64 pool_pages;
	const __u64 *pool;
	/* The P2M, and its inverse, sorted. */
	__u64 *p2m;
	__u64 end_pfn;
	struct walker_frame *frames;
	size_t nr_frames;
};

/* An entry on the way. */
struct walker_step {
	__u64 table_pfn;
	__u64 raw;
	/* What it means: with the PFN in place of the MFN. */
	__u64 val;
	unsigned int level;
	unsigned int index;
};

struct walker_walk {
	unsigned int nr_steps;
	struct walker_step steps[WALKER_MAX_LEVELS];
	/* The address is translated. */
	bool is_present;
	/* The processor would find a bit that must be 0, or no table. */
	bool is_malformed;
	/* What all entries on the way allow. */
	bool is_writable;
	bool is_user;
	bool is_executable;
	/* PAT, PCD and PWT of the leaf as one number. */
	unsigned int memory_type;
	/* The number in the table for this very page, and its PFN. */
	__u64 frame;
	__u64 pfn;
};

/* 0, or -1 and errno. */
int walker_init(struct walker *w, int fd, const struct p2m_space_create *space);
void walker_exit(struct walker *w);
/* Reads the P2M anew. */
int walker_refresh(struct walker *w);

__u64 walker_frame_to_pfn(const struct walker *w, __u64 frame);
void walker_walk(const struct walker *w, __u64 address, struct walker_walk *walk);

/*
 * All that the tables hold, in the form of P2M_SPACE_DUMP, to be freed. Counts the
 * tables. NULL if they are no tree of tables of the pool.
 */
struct p2m_span *walker_dump(const struct walker *w, size_t *nr_spans,
			     size_t *nr_tables);

/* The bits of an entry that are a frame number. */
__u64 walker_frame_mask(unsigned int level, __u64 raw);

#endif /* WALKER_H */
