// SPDX-License-Identifier: GPL-2.0
/*
 * Recorded sequences of operations, with what a model has said of each: see
 * tools/pure/tests/sequences/, which records them, and replays them on the pure
 * part of the module. Here the module does them.
 *
 * Each step is a line with an operation and its outcome. Lines that begin with a
 * tab say what has changed; everything else has to be as it was.
 */
#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define HEADER "p2m-sequence 1"

/* The PFNs that sequences are about, with those that can be identities. */
#define SPACE 1024ULL
#define IDENTITY 0xfec00ULL
#define NR_IDENTITY 16ULL
#define NR_CELLS (SPACE + NR_IDENTITY)

/* Pages of the other domain. Page n has the contents of this tag. */
#define NR_LENT 8ULL
#define LENT_TAG(n) (0x1e47000000000000ULL + (n))

/* All contents are compared after so many steps. */
#define NR_BETWEEN 50

enum kind { INVALID, FRAME, FOREIGN, IDENTITY_FRAME };

/*
 * What has to be at a PFN: a frame with the contents of a tag, of which 0 is
 * zeroes, or a page of the other domain.
 */
struct cell {
	enum kind kind;
	__u64 tag;
};

/* What the effects of a step say of a frame. */
enum fate { STAYS, COMES_OR_GOES, MOVES };

struct replay {
	int fd;
	int lender;
	char *mem;
	struct cell cells[NR_CELLS];
	__u64 before[NR_CELLS];
	__u64 after[NR_CELLS];
	enum fate fates[NR_CELLS];
	/* The frame that a swap leaves at a PFN, if its fate is to stay. */
	__u64 swapped[NR_CELLS];
};

FIXTURE(sequence) {
	struct replay replay;
	__u64 baseline;
};

FIXTURE_SETUP(sequence)
{
	__u64 base = 0, i;
	char *lent;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	self->baseline = total_pages();
	self->replay.fd = p2m_open();
	self->replay.lender = p2m_open();
	ASSERT_LE(0, self->replay.fd);
	ASSERT_LE(0, self->replay.lender);
	test_cmd_region_create(self->replay.lender, P2M_POLICY_ANY, NR_LENT, 0, &base);
	lent = map_pages(self->replay.lender, 0, NR_LENT);
	ASSERT_NE(MAP_FAILED, lent);
	for (i = 0; i < NR_LENT; i++)
		page_fill(lent + i * P2M_PAGE_SIZE, LENT_TAG(i));
	munmap(lent, NR_LENT * P2M_PAGE_SIZE);
	/* So that a mapping makes no region. */
	base = 0;
	test_cmd_region_create(self->replay.fd, P2M_POLICY_ANY, 1, 0, &base);
	test_cmd_region_destroy(self->replay.fd, base);
	self->replay.mem = map_pages(self->replay.fd, 0, SPACE);
	ASSERT_NE(MAP_FAILED, self->replay.mem);
}

FIXTURE_TEARDOWN(sequence)
{
	munmap(self->replay.mem, SPACE * P2M_PAGE_SIZE);
	EXPECT_EQ(0, close(self->replay.fd));
	EXPECT_EQ(0, close(self->replay.lender));
	EXPECT_EQ(self->baseline, total_pages());
}

static __u64 cell_pfn(__u64 index)
{
	return index < SPACE ? index : IDENTITY + index - SPACE;
}

/* The index of a PFN, or NR_CELLS. */
static __u64 pfn_cell(__u64 pfn)
{
	if (pfn < SPACE)
		return pfn;
	if (pfn >= IDENTITY && pfn < IDENTITY + NR_IDENTITY)
		return SPACE + pfn - IDENTITY;
	return NR_CELLS;
}

static int read_entries(int fd, __u64 *entries)
{
	__u64 i;

	for (i = 0; i < NR_CELLS; i++)
		entries[i] = cell_pfn(i);
	return _test_cmd_translate(fd, 0, entries, entries, NR_CELLS);
}

static bool is_frame(__u64 entry)
{
	return !(entry & (P2M_ENTRY_FOREIGN | P2M_ENTRY_IDENTITY));
}

static char *page_of(struct replay *self, __u64 index)
{
	return self->mem + index * P2M_PAGE_SIZE;
}

/* What is there is what has to be there; its contents too, if it has any. */
static bool cell_is_right(struct replay *self, __u64 index,
			  bool with_contents)
{
	const struct cell *cell = &self->cells[index];
	const __u64 entry = self->after[index];
	const char *page;

	switch (cell->kind) {
	case INVALID:
		return entry == P2M_ENTRY_INVALID;
	case IDENTITY_FRAME:
		return entry == (P2M_ENTRY_IDENTITY | cell_pfn(index));
	case FOREIGN:
		if (entry != (P2M_ENTRY_FOREIGN |
			      pfn_to_entry(self->lender, cell->tag)))
			return false;
		break;
	case FRAME:
		if (!is_frame(entry))
			return false;
		break;
	}
	if (!with_contents || index >= SPACE)
		return true;
	page = page_of(self, index);
	if (cell->kind == FOREIGN)
		return page_matches(page, LENT_TAG(cell->tag));
	if (!cell->tag)
		return first_nonzero(page, P2M_PAGE_SIZE) == P2M_PAGE_SIZE;
	return page_matches(page, cell->tag);
}

static const char *errno_name(int err)
{
	static const struct {
		int err;
		const char *name;
	} names[] = {
		{ EEXIST, "EEXIST" }, { EFAULT, "EFAULT" }, { EINVAL, "EINVAL" },
		{ ENOENT, "ENOENT" }, { ENOMEM, "ENOMEM" },
		{ EADDRNOTAVAIL, "EADDRNOTAVAIL" },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(names); i++)
		if (names[i].err == err)
			return names[i].name;
	return strerror(err);
}

static __u32 policy_of(const char *name)
{
	if (!strcmp(name, "scatter"))
		return P2M_POLICY_SCATTER;
	return strcmp(name, "contiguous") ? P2M_POLICY_ANY :
					    P2M_POLICY_CONTIGUOUS;
}

/*
 * What a line has: a word, numbers with at most one word among them, and what is
 * behind the arrow.
 */
struct line {
	char op[16];
	char word[16];
	__u64 args[4];
	unsigned int nr_args;
	char outcome[64];
};

static bool parse_line(char *text, struct line *line)
{
	char *arrow = strstr(text, " -> "), *token, *save, *end;

	memset(line, 0, sizeof(*line));
	text[strcspn(text, "\n")] = 0;
	if (arrow) {
		*arrow = 0;
		snprintf(line->outcome, sizeof(line->outcome), "%s", arrow + 4);
	}
	for (token = strtok_r(text, " \t", &save); token;
	     token = strtok_r(NULL, " \t", &save)) {
		const __u64 value = strtoull(token, &end, 0);

		if (!line->op[0])
			snprintf(line->op, sizeof(line->op), "%s", token);
		else if (*end)
			snprintf(line->word, sizeof(line->word), "%s", token);
		else if (line->nr_args < ARRAY_LEN(line->args))
			line->args[line->nr_args++] = value;
		else
			return false;
	}
	return line->op[0];
}

/* Does an operation, and writes what became of it as the sequence has it. */
static void do_step(struct replay *self, const struct line *line,
		    char *outcome, size_t len)
{
	const __u64 *args = line->args;
	const char *op = line->op;
	const int fd = self->fd;
	/* A command tells how many pages it changed, also after such an error. */
	bool is_counted = false, is_partial = false;
	__u64 pages = 0, entry, base;
	__s32 error = 0;
	__u32 nr;
	int ret = 0;

	errno = 0;
	if (!strcmp(op, "create")) {
		base = args[0];
		ret = _test_cmd_region_create(fd, P2M_REGION_FIXED | args[3],
					      policy_of(line->word), args[1],
					      args[2], &base);
	} else if (!strcmp(op, "destroy")) {
		ret = _test_cmd_region_destroy(fd, args[0]);
	} else if (!strcmp(op, "touch")) {
		if (touch_read(page_of(self, args[0])) == SIGBUS) {
			snprintf(outcome, len, "SIGBUS");
			return;
		}
		page_fill(page_of(self, args[0]), args[1]);
	} else if (!strcmp(op, "release")) {
		struct p2m_release cmd;

		ret = _test_cmd_release(fd, args[0], args[1], &cmd);
		pages = cmd.out_pages;
		is_counted = is_partial = true;
	} else if (!strcmp(op, "populate")) {
		struct p2m_populate cmd;

		ret = _test_cmd_populate(fd, args[0], args[1], &cmd);
		pages = cmd.out_pages;
		is_counted = is_partial = true;
	} else if (!strcmp(op, "move")) {
		struct p2m_move cmd;

		ret = _test_cmd_move(fd, args[0], args[1],
				     policy_of(line->word), args[2], &cmd);
		/* Nobody has pinned anything. */
		pages = cmd.out_busy ? ~0ULL : cmd.out_pages;
		is_counted = is_partial = true;
	} else if (!strcmp(op, "contiguous")) {
		struct p2m_contiguous cmd;

		ret = _test_cmd_contiguous(fd, args[0], args[1], 0, &cmd);
	} else if (!strcmp(op, "exchange")) {
		struct p2m_exchange cmd;

		ret = _test_cmd_exchange(fd, args[0], args[1], args[2], &cmd);
		pages = cmd.out_busy ? ~0ULL : cmd.out_pages;
		is_counted = true;
	} else if (!strcmp(op, "evacuate")) {
		struct p2m_evacuate cmd;

		entry = self->before[pfn_cell(args[0])];
		ret = _test_cmd_evacuate(fd, 0, entry >> args[1] << args[1],
					 1ULL << args[1], &cmd);
		if (!ret && (cmd.out_busy || !cmd.out_pages))
			ret = -1;
	} else if (!strcmp(op, "lend")) {
		ret = _test_cmd_foreign_map(fd, self->lender, args[0], &args[1],
					    &error, 1, &nr);
	} else if (!strcmp(op, "unlend")) {
		ret = _test_cmd_foreign_unmap(fd, args[0], &error, 1, &nr);
	} else if (!strcmp(op, "identity")) {
		ret = _test_cmd_identity(fd, args[0], args[1]);
	} else {
		snprintf(outcome, len, "no such operation");
		return;
	}
	if (ret)
		error = errno;
	if (error && is_partial)
		snprintf(outcome, len, "%s %llu", errno_name(error), pages);
	else if (error)
		snprintf(outcome, len, "%s", errno_name(error));
	else if (is_counted)
		snprintf(outcome, len, "ok %llu", pages);
	else
		snprintf(outcome, len, "ok");
}

static bool are_neighbours(__u64 a, __u64 b)
{
	return is_frame(a) && is_frame(b) && (a + 1 == b || b + 1 == a);
}

/* Takes in what a line says has changed. False if the frames are not like that. */
static bool take_effect(struct replay *self, const struct line *line)
{
	const __u64 first = pfn_cell(line->args[0]);
	const bool swaps = !strcmp(line->op, "swaps");
	const __u64 nr = line->args[swaps ? 2 : 1];
	const __u64 other = swaps ? pfn_cell(line->args[1]) : first;
	const __u64 *after = self->after;
	__u64 i, at;

	if (first + nr > NR_CELLS || other + nr > NR_CELLS)
		return false;
	for (i = 0; i < nr; i++) {
		at = first + i;
		if (!strcmp(line->op, "is")) {
			struct cell *cell = &self->cells[at];

			cell->tag = line->args[2];
			if (!strcmp(line->word, "frame"))
				cell->kind = FRAME;
			else if (!strcmp(line->word, "foreign"))
				cell->kind = FOREIGN;
			else if (!strcmp(line->word, "identity"))
				cell->kind = IDENTITY_FRAME;
			else
				cell->kind = INVALID;
			self->fates[at] = COMES_OR_GOES;
		} else if (!strcmp(line->op, "moves")) {
			self->fates[at] = MOVES;
		} else if (!strcmp(line->op, "run")) {
			if (after[at] != after[first] + i || after[first] % nr)
				return false;
		} else if (!strcmp(line->op, "scattered")) {
			if (i && are_neighbours(after[at - 1], after[at]))
				return false;
		} else if (swaps) {
			self->swapped[at] = self->before[other + i];
			self->swapped[other + i] = self->before[at];
		} else {
			return false;
		}
	}
	return true;
}

/* Each frame has had the fate that the effects of the step say. */
static bool frame_is_right(struct replay *self, __u64 index,
			   const struct line *step)
{
	const __u64 before = self->before[index], after = self->after[index];

	if (!strcmp(step->op, "evacuate") && is_frame(before)) {
		const __u64 window = self->before[pfn_cell(step->args[0])] >>
				     step->args[1];

		if (before >> step->args[1] == window)
			return is_frame(after) && after >> step->args[1] != window;
	}
	switch (self->fates[index]) {
	case STAYS:
		return after == self->swapped[index];
	case MOVES:
		return is_frame(before) && is_frame(after) && before != after;
	case COMES_OR_GOES:
		/* Other contents alone are no reason for another frame. */
		return before == after || before == P2M_ENTRY_INVALID ||
		       after == P2M_ENTRY_INVALID;
	}
	return false;
}

static void replay(struct __test_metadata *_metadata, struct replay *self,
		   const char *path)
{
	char text[256], outcome[64];
	struct p2m_audit audit;
	struct line step, line;
	unsigned int nr = 0;
	__u64 i;
	FILE *file = fopen(path, "r");
	bool has_line;

	ASSERT_NE(NULL, file) TH_LOG("%s", path);
	ASSERT_NE(NULL, fgets(text, sizeof(text), file));
	ASSERT_EQ(0, strcmp(text, HEADER "\n"));
	has_line = fgets(text, sizeof(text), file);
	while (has_line) {
		nr++;
		ASSERT_TRUE(parse_line(text, &step)) TH_LOG("step %u", nr);
		ASSERT_EQ(0, read_entries(self->fd, self->before));
		do_step(self, &step, outcome, sizeof(outcome));
		ASSERT_EQ(0, strcmp(step.outcome, outcome))
			TH_LOG("step %u, %s %#llx: %s, not %s", nr, step.op,
			       step.args[0], outcome, step.outcome);
		ASSERT_EQ(0, read_entries(self->fd, self->after));

		memset(self->fates, 0, sizeof(self->fates));
		memcpy(self->swapped, self->before, sizeof(self->swapped));
		while ((has_line = fgets(text, sizeof(text), file)) &&
		       text[0] == '\t') {
			ASSERT_TRUE(parse_line(text, &line));
			ASSERT_TRUE(take_effect(self, &line))
				TH_LOG("step %u, %s: not %s %#llx", nr, step.op,
				       line.op, line.args[0]);
		}
		for (i = 0; i < NR_CELLS; i++) {
			/* The contents of all, now and then, else of what changed. */
			const bool with_contents = nr % NR_BETWEEN == 0 ||
						   self->before[i] != self->after[i] ||
						   self->fates[i] != STAYS;

			ASSERT_TRUE(cell_is_right(self, i, with_contents))
				TH_LOG("step %u, %s: PFN %#llx", nr, step.op,
				       cell_pfn(i));
			ASSERT_TRUE(frame_is_right(self, i, &step))
				TH_LOG("step %u, %s: frame of PFN %#llx", nr,
				       step.op, cell_pfn(i));
		}
		ASSERT_TRUE(audit_is_clean(self->fd, &audit))
			TH_LOG("step %u, %s", nr, step.op);
	}
	fclose(file);
	/* A sequence that is cut shows less than it should. */
	EXPECT_LE(100, nr);
}

/* Where the sequences are: next to the sources of the tests, or the program. */
static const char *sequences(void)
{
	static const char *const dirs[] = {
		"sequences", "../../selftests/sequences", "selftests/sequences",
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(dirs); i++)
		if (!access(dirs[i], X_OK))
			return dirs[i];
	return NULL;
}

FIXTURE_VARIANT(sequence) {
	const char *name;
};

#define SEQUENCE(nr) \
	FIXTURE_VARIANT_ADD(sequence, everything_##nr) { \
		.name = "everything-" #nr ".p2m" \
	}

SEQUENCE(1);
SEQUENCE(2);
SEQUENCE(3);
SEQUENCE(4);
SEQUENCE(5);
SEQUENCE(6);

TEST_F_TIMEOUT(sequence, does_what_the_model_has_said, 60)
{
	const char *dir = sequences();
	char path[PATH_MAX];

	if (!dir)
		SKIP(return, "the sequences are not here");
	snprintf(path, sizeof(path), "%s/%s", dir, variant->name);
	replay(_metadata, &self->replay, path);
}

/* Every file that is there is replayed by one of the variants. */
TEST(no_sequence_is_forgotten)
{
	const char *dir = sequences();
	unsigned int nr = 0;
	struct dirent *entry;
	DIR *files;

	if (!dir)
		SKIP(return, "the sequences are not here");
	files = opendir(dir);
	ASSERT_NE(NULL, files);
	while ((entry = readdir(files)))
		nr += !!strstr(entry->d_name, ".p2m");
	closedir(files);
	EXPECT_EQ(6, nr);
}

TEST_HARNESS_MAIN
