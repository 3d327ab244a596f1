// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "p2m_util.h"
#include "walker.h"

/* The manual's names. Not those of p2m.h: that has them from where we look. */
#define BIT_P (1ULL << 0)
#define BIT_RW (1ULL << 1)
#define BIT_US (1ULL << 2)
#define BIT_PWT (1ULL << 3)
#define BIT_PCD (1ULL << 4)
#define BIT_PS (1ULL << 7) /* of levels 1 and 2 */
#define BIT_PAT (1ULL << 7) /* of level 0 */
#define BIT_PAT_LARGE (1ULL << 12) /* of leaves of levels 1 and 2 */
#define BIT_NX (1ULL << 63)
#define ADDRESS_BITS 0x000ffffffffff000ULL
#define MAX_LEAF_LEVEL 2

/* Pages that an entry of a level stands for. */
static __u64 span_pages(unsigned int level)
{
	return 1ULL << (9 * level);
}

static bool is_leaf(unsigned int level, __u64 raw)
{
	return level == 0 || (raw & BIT_PS);
}

__u64 walker_frame_mask(unsigned int level, __u64 raw)
{
	if (!is_leaf(level, raw))
		return ADDRESS_BITS;
	return ADDRESS_BITS & ~(span_pages(level) * P2M_PAGE_SIZE - 1);
}

static bool must_be_zero(unsigned int level, __u64 raw)
{
	__u64 mbz = 0;

	if (level > MAX_LEAF_LEVEL)
		mbz = BIT_PS;
	else if (level && is_leaf(level, raw))
		mbz = ADDRESS_BITS & ~walker_frame_mask(level, raw) &
		      ~BIT_PAT_LARGE;
	return !(raw & mbz);
}

static int compare_frames(const void *a, const void *b)
{
	const struct walker_frame *x = a, *y = b;

	return x->mfn < y->mfn ? -1 : x->mfn > y->mfn;
}

__u64 walker_frame_to_pfn(const struct walker *w, __u64 frame)
{
	const struct walker_frame key = { .mfn = frame };
	const struct walker_frame *found;

	if (w->is_native)
		return frame;
	found = bsearch(&key, w->frames, w->nr_frames, sizeof(key),
			compare_frames);
	return found ? found->pfn : P2M_ENTRY_INVALID;
}

int walker_refresh(struct walker *w)
{
	struct p2m_header *header;
	size_t len;
	__u64 pfn;

	header = map_window(w->fd, P2M_OFFSET_HEADER, P2M_PAGE_SIZE);
	if (header == MAP_FAILED)
		return -1;
	w->end_pfn = header->end_pfn;
	munmap(header, P2M_PAGE_SIZE);

	free(w->p2m);
	free(w->frames);
	len = w->end_pfn * sizeof(*w->p2m);
	w->p2m = malloc(len);
	w->frames = malloc(w->end_pfn * sizeof(*w->frames));
	if (!w->p2m || !w->frames)
		return -1;
	if (pread(w->fd, w->p2m, len, 0) != (ssize_t)len)
		return -1;
	w->nr_frames = 0;
	for (pfn = 0; pfn < w->end_pfn; pfn++)
		if (w->p2m[pfn] != P2M_ENTRY_INVALID)
			w->frames[w->nr_frames++] = (struct walker_frame){
				.mfn = w->p2m[pfn] & P2M_ENTRY_MFN_MASK,
				.pfn = pfn,
			};
	qsort(w->frames, w->nr_frames, sizeof(*w->frames), compare_frames);
	return 0;
}

int walker_init(struct walker *w, int fd, const struct p2m_space_create *space)
{
	void *pool;

	*w = (struct walker){
		.fd = fd,
		.nr_levels = space->nr_levels,
		.is_native = !strcmp((const char *)space->backend, "native"),
		.root_pfn = space->out_root_pfn,
		.pool_pfn = space->pool_pfn,
		.pool_pages = space->pool_pages,
	};
	pool = map_window(fd, w->pool_pfn * P2M_PAGE_SIZE,
			  w->pool_pages * P2M_PAGE_SIZE);
	if (pool == MAP_FAILED)
		return -1;
	w->pool = pool;
	return walker_refresh(w);
}

void walker_exit(struct walker *w)
{
	if (w->pool)
		munmap((void *)w->pool, w->pool_pages * P2M_PAGE_SIZE);
	free(w->p2m);
	free(w->frames);
	*w = (struct walker){ .fd = -1 };
}

/* The table at a PFN, if that is in the pool. */
static const volatile __u64 *table_at(const struct walker *w, __u64 pfn)
{
	if (pfn - w->pool_pfn >= w->pool_pages)
		return NULL;
	return w->pool + (pfn - w->pool_pfn) * 512;
}

/* What an entry means. */
static __u64 to_val(const struct walker *w, unsigned int level, __u64 raw)
{
	__u64 mask = walker_frame_mask(level, raw);
	__u64 pfn;

	if (!(raw & BIT_P))
		return raw;
	pfn = walker_frame_to_pfn(w, (raw & mask) / P2M_PAGE_SIZE);
	if (pfn == P2M_ENTRY_INVALID)
		return raw & ~mask & ~BIT_P;
	return (raw & ~mask) | pfn * P2M_PAGE_SIZE;
}

void walker_walk(const struct walker *w, __u64 address, struct walker_walk *walk)
{
	__u64 page = address / P2M_PAGE_SIZE;
	__u64 pfn = w->root_pfn;
	unsigned int level = w->nr_levels;
	__u64 raw = 0;

	memset(walk, 0, sizeof(*walk));
	walk->is_writable = true;
	walk->is_user = true;
	walk->is_executable = true;
	walk->frame = P2M_ENTRY_INVALID;
	walk->pfn = P2M_ENTRY_INVALID;
	while (level--) {
		struct walker_step *step = &walk->steps[walk->nr_steps];
		const volatile __u64 *table = table_at(w, pfn);

		if (!table) {
			walk->is_malformed = true;
			return;
		}
		step->table_pfn = pfn;
		step->level = level;
		step->index = page >> (9 * level) & 511;
		step->raw = raw = table[step->index];
		step->val = to_val(w, level, raw);
		walk->nr_steps++;
		if (!(raw & BIT_P))
			return;
		if (!must_be_zero(level, raw)) {
			walk->is_malformed = true;
			return;
		}
		walk->is_writable &= !!(raw & BIT_RW);
		walk->is_user &= !!(raw & BIT_US);
		walk->is_executable &= !(raw & BIT_NX);
		if (is_leaf(level, raw))
			break;
		pfn = walker_frame_to_pfn(w, (raw & ADDRESS_BITS) /
						     P2M_PAGE_SIZE);
	}
	walk->is_present = true;
	if (raw & (level ? BIT_PAT_LARGE : BIT_PAT))
		walk->memory_type |= 4;
	if (raw & BIT_PCD)
		walk->memory_type |= 2;
	if (raw & BIT_PWT)
		walk->memory_type |= 1;
	walk->frame = (raw & walker_frame_mask(level, raw)) / P2M_PAGE_SIZE +
		      (page & (span_pages(level) - 1));
	walk->pfn = walker_frame_to_pfn(w, walk->frame);
}

/* Spans that are being collected. */
struct collection {
	const struct walker *w;
	struct p2m_span *spans;
	size_t nr_spans;
	size_t room;
	size_t nr_tables;
	bool is_broken;
};

static void add_span(struct collection *c, const struct p2m_span *span)
{
	struct p2m_span *last = c->nr_spans ? &c->spans[c->nr_spans - 1] : NULL;

	if (last && last->level == span->level &&
	    last->pte_flags == span->pte_flags &&
	    last->address + last->nr_pages * P2M_PAGE_SIZE == span->address &&
	    last->pfn + last->nr_pages == span->pfn &&
	    ((!last->mfn && !span->mfn) ||
	     last->mfn + last->nr_pages == span->mfn)) {
		last->nr_pages += span->nr_pages;
		return;
	}
	if (c->nr_spans == c->room) {
		c->room = c->room ? 2 * c->room : 256;
		c->spans = reallocarray(c->spans, c->room, sizeof(*c->spans));
		if (!c->spans)
			abort();
	}
	c->spans[c->nr_spans++] = *span;
}

static void collect(struct collection *c, __u64 pfn, unsigned int level,
		    __u64 address)
{
	const volatile __u64 *table = table_at(c->w, pfn);
	unsigned int index;

	if (!table || ++c->nr_tables > c->w->pool_pages) {
		c->is_broken = true;
		return;
	}
	for (index = 0; index < 512; index++, address += span_pages(level) *
							 P2M_PAGE_SIZE) {
		__u64 raw = table[index], val = to_val(c->w, level, raw);
		__u64 mask = walker_frame_mask(level, raw);
		struct p2m_span span = {
			.address = address,
			.nr_pages = span_pages(level),
			.pfn = (val & mask) / P2M_PAGE_SIZE,
			.mfn = raw & BIT_P ? (raw & mask) / P2M_PAGE_SIZE : 0,
			.pte_flags = val & ~mask,
			.level = level,
		};

		if (!raw)
			continue;
		if (!(raw & BIT_P) || is_leaf(level, raw)) {
			if (raw & BIT_P && !must_be_zero(level, raw))
				c->is_broken = true;
			add_span(c, &span);
			continue;
		}
		if (!must_be_zero(level, raw) || !level || !(val & BIT_P)) {
			c->is_broken = true;
			continue;
		}
		collect(c, span.pfn, level - 1, address);
	}
}

struct p2m_span *walker_dump(const struct walker *w, size_t *nr_spans,
			     size_t *nr_tables)
{
	struct collection c = { .w = w };

	collect(&c, w->root_pfn, w->nr_levels - 1, 0);
	*nr_spans = c.nr_spans;
	*nr_tables = c.nr_tables;
	if (c.is_broken) {
		free(c.spans);
		return NULL;
	}
	/* Never NULL for nothing. */
	return c.spans ?: malloc(1);
}
