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

#include "fail_commands.h"
#include "kselftest_harness.h"

const struct sizes sizes = {
	.nr_scattered = 40,
	.nr_demand = 12,
	.nr_fresh = 16,
	.nr_moved = 12,
	.nr_filled = 64,
};

#define MAX_PLACES 256

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

FIXTURE(failing) {
	struct domain domain;
	struct state before;
	struct places places;
	__u64 baseline;
};

FIXTURE_VARIANT(failing) {
	const struct command *command;
};

#define VARIANT(id) \
	FIXTURE_VARIANT_ADD(failing, id) { .command = &command_##id }
COMMANDS(VARIANT);

static int run_fail_nth(const struct domain *d)
{
	struct p2m_fail_nth cmd = { .size = sizeof(cmd) };

	return ioctl(d->fd, P2M_FAIL_NTH, &cmd);
}

static const struct command command_fail_nth = {
	.name = "fail_nth",
	.nr = P2M_FAIL_NTH,
	.run = run_fail_nth,
};

FIXTURE_VARIANT_ADD(failing, fail_nth) { .command = &command_fail_nth };

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
	ASSERT_TRUE(command_prepare(variant->command, &self->domain));
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
		} else if (command->half_way || command->is_silent) {
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

/* What is lost of a domain that can't be made is found when the module is unloaded. */
TEST(open_leaves_nothing_lost)
{
	static struct places places;
	__u64 baseline = total_pages();
	unsigned int nth;

	if (!injection_open())
		SKIP(return, "no fault injection in this kernel");
	for (nth = 1; nth <= MAX_NTH; nth++) {
		unsigned int left;
		int fd;

		arm(nth);
		fd = p2m_open();
		left = disarm();
		if (!left)
			read_place(&places);
		if (fd >= 0)
			close(fd);
		EXPECT_EQ(baseline, total_pages());
		if (left) {
			ASSERT_LE(0, fd);
			break;
		}
	}
	EXPECT_LT(1, nth);
	ASSERT_LT(nth, MAX_NTH);
	list_places(_metadata, &places, "open");
}

/* A mapping that creates a region has none after a failure. */
TEST(mmap_of_a_fresh_domain_leaves_nothing_lost)
{
	const size_t len = sizes.nr_fresh * P2M_PAGE_SIZE;
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
