// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that comes and goes while there are domains: a DIMM that QEMU adds to the
 * machine and takes out again, for which the machine needs slots
 * (qemu/guest --monitor --memory 2G,slots=2,maxmem=4G).
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define DIMM_BYTES (256ULL << 20)
/* A domain that is there all the time. */
#define NR_PAGES 2048ULL
/* What a slow machine needs until it has noticed. */
#define PATIENCE_MS 60000

#define MEMORY "/sys/devices/system/memory"

static bool read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return len > 0;
}

/* A DIMM that is in the machine, and the frames and blocks that it is. */
struct dimm {
	char id[16];
	__u64 start;
	__u64 end;
	__u64 first_block;
	__u64 nr_blocks;
};

/* False if QEMU refuses. */
static bool qemu_do(struct qemu *qemu, const char *command)
{
	char *answer = qemu_ask(qemu, command);
	bool is_good = answer && !strstr(answer, "\"error\"");

	if (!is_good)
		printf("# QEMU: %s", answer ?: "no answer\n");
	free(answer);
	return is_good;
}

/* The address of a DIMM that the machine has; ~0 for none. */
static __u64 dimm_address(struct qemu *qemu, const struct dimm *dimm)
{
	char *answer = qemu_ask(qemu, "\"execute\": \"query-memory-devices\"");
	char id[32], *data, *end, *field;
	__u64 address = ~0ULL;

	snprintf(id, sizeof(id), "\"id\": \"%s\"", dimm->id);
	/* Each is an object in braces, in which there are no others. */
	for (data = answer; data && (data = strstr(data, "\"data\": {")); data = end) {
		data += strlen("\"data\": {");
		end = strchr(data, '}');
		if (!end)
			break;
		*end++ = '\0';
		field = strstr(data, "\"addr\": ");
		if (strstr(data, id) && field)
			address = strtoull(field + strlen("\"addr\": "), NULL, 0);
	}
	free(answer);
	return address;
}

static bool block_text(__u64 block, const char *name, char *text, size_t size)
{
	char path[96];

	snprintf(path, sizeof(path), MEMORY "/memory%llu/%s", block, name);
	return read_text(path, text, size);
}

static bool block_set(__u64 block, const char *state)
{
	char path[96];

	snprintf(path, sizeof(path), MEMORY "/memory%llu/state", block);
	return write_text(path, state);
}

static bool block_is(__u64 block, const char *state)
{
	char text[32];

	return block_text(block, "state", text, sizeof(text)) && !strcmp(text, state);
}

/* How many blocks of it are there and in a state; with NULL, in any. */
static __u64 nr_blocks(const struct dimm *dimm, const char *state)
{
	__u64 i, nr = 0;
	char text[32];

	for (i = 0; i < dimm->nr_blocks; i++) {
		if (block_text(dimm->first_block + i, "state", text, sizeof(text)))
			nr += !state || !strcmp(text, state);
	}
	return nr;
}

static bool dimm_wait(const struct dimm *dimm, __u64 nr)
{
	__u64 end = now_ms() + PATIENCE_MS;

	while (nr_blocks(dimm, NULL) != nr) {
		if (now_ms() > end)
			return false;
		usleep(20000);
	}
	return true;
}

/* Puts a DIMM into the machine. Its blocks are there then, and offline. */
static bool dimm_add(struct qemu *qemu, struct dimm *dimm, const char *id)
{
	char command[256], text[32];
	__u64 block_bytes, address;

	snprintf(dimm->id, sizeof(dimm->id), "%s", id);
	if (!write_text(MEMORY "/auto_online_blocks", "offline") ||
	    !read_text(MEMORY "/block_size_bytes", text, sizeof(text)))
		return false;
	block_bytes = strtoull(text, NULL, 16);
	snprintf(command, sizeof(command),
		 "\"execute\": \"object-add\", \"arguments\": {\"qom-type\": \"memory-backend-memfd\", \"id\": \"m-%s\", \"size\": %llu, \"share\": true}",
		 id, DIMM_BYTES);
	if (!qemu_do(qemu, command))
		return false;
	snprintf(command, sizeof(command),
		 "\"execute\": \"device_add\", \"arguments\": {\"driver\": \"pc-dimm\", \"id\": \"%s\", \"memdev\": \"m-%s\"}",
		 id, id);
	if (!qemu_do(qemu, command))
		return false;
	address = dimm_address(qemu, dimm);
	if (address == ~0ULL)
		return false;
	dimm->start = address / P2M_PAGE_SIZE;
	dimm->end = dimm->start + DIMM_BYTES / P2M_PAGE_SIZE;
	dimm->first_block = address / block_bytes;
	dimm->nr_blocks = DIMM_BYTES / block_bytes;
	return dimm_wait(dimm, dimm->nr_blocks);
}

/* Asks the machine to take it out, and waits: @expected says for how long. */
static bool dimm_remove(struct qemu *qemu, const struct dimm *dimm, bool expected)
{
	__u64 end = now_ms() + (expected ? PATIENCE_MS : 5000);
	char command[128];

	snprintf(command, sizeof(command),
		 "\"execute\": \"device_del\", \"arguments\": {\"id\": \"%s\"}",
		 dimm->id);
	if (!qemu_do(qemu, command))
		return false;
	while (dimm_address(qemu, dimm) != ~0ULL) {
		if (now_ms() > end)
			return false;
		usleep(50000);
	}
	snprintf(command, sizeof(command),
		 "\"execute\": \"object-del\", \"arguments\": {\"id\": \"m-%s\"}",
		 dimm->id);
	return qemu_do(qemu, command) && dimm_wait(dimm, 0);
}

FIXTURE(hotplug) {
	struct qemu qemu;
	int fd;
	char *mem;
	__u64 baseline;
	char auto_online[32];
};

FIXTURE_SETUP(hotplug)
{
	char *answer;
	__u64 i;

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (geteuid())
		SKIP(return, "must be root");
	if (!read_text(MEMORY "/auto_online_blocks", self->auto_online,
		       sizeof(self->auto_online)) ||
	    access("/sys/bus/acpi/drivers", F_OK))
		SKIP(return, "no memory hotplug in this kernel");
	if (access("/sys/firmware/acpi/hotplug/memory", F_OK))
		SKIP(return, "no hotplug of DIMMs in this kernel");
	if (!qemu_open(&self->qemu))
		SKIP(return, "no way to ask QEMU (qemu/guest --monitor)");
	answer = qemu_ask(&self->qemu,
			  "\"execute\": \"qom-get\", \"arguments\": {\"path\": \"/machine\", \"property\": \"memory\"}");
	/* Without room, "max-size" is what there is. */
	if (!answer || !strstr(answer, "\"slots\": 2")) {
		free(answer);
		SKIP(return, "the machine has no slots for memory");
	}
	free(answer);

	self->baseline = total_pages();
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_SCATTER, NR_PAGES, 0, 0);
	self->mem = map_pages(self->fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, self->mem);
	for (i = 0; i < NR_PAGES; i++)
		page_fill(self->mem + i * P2M_PAGE_SIZE, i);
}

FIXTURE_TEARDOWN(hotplug)
{
	write_text(MEMORY "/auto_online_blocks", self->auto_online);
	qemu_close(&self->qemu);
	EXPECT_EQ(0, munmap(self->mem, NR_PAGES * P2M_PAGE_SIZE));
	EXPECT_EQ(0, close(self->fd));
	EXPECT_EQ(self->baseline, total_pages());
}

static void expect_sound(struct __test_metadata *_metadata, int fd, const char *mem,
			 __u64 nr_pages)
{
	struct p2m_audit audit;
	__u64 i;

	ASSERT_TRUE(audit_is_clean(fd, &audit));
	for (i = 0; i < nr_pages; i++) {
		ASSERT_TRUE(page_matches(mem + i * P2M_PAGE_SIZE, i))
			TH_LOG("page %llu", i);
	}
}

static __u64 nr_inside(int fd, __u64 nr_pages, const struct dimm *dimm)
{
	__u64 *entries = range_to_entries(fd, 0, nr_pages), i, nr = 0;

	for (i = 0; entries && i < nr_pages; i++) {
		const __u64 mfn = entries[i] & P2M_ENTRY_MFN_MASK;

		nr += entries[i] != P2M_ENTRY_INVALID && dimm->start <= mfn &&
		      mfn < dimm->end;
	}
	free(entries);
	return entries ? nr : ~0ULL;
}

/* Of what can be moved out of the way, no domain takes anything. */
TEST_F_TIMEOUT(hotplug, movable_memory_comes_and_goes, 300)
{
	__u64 round, i, before, nr_tries;
	struct p2m_info info;
	struct dimm dimm;
	struct p2m_move move;

	test_cmd_info(self->fd, &info);
	before = info.out_max_mfn;
	for (round = 0; round < 2; round++) {
		ASSERT_TRUE(dimm_add(&self->qemu, &dimm, "movable"));
		for (i = 0; i < dimm.nr_blocks; i++)
			ASSERT_TRUE(block_set(dimm.first_block + i, "online_movable"));
		test_cmd_info(self->fd, &info);
		EXPECT_LE(dimm.end, info.out_max_mfn);
		EXPECT_LE(before, info.out_max_mfn);

		/* All of the domain gets other frames, while there are others' to have. */
		move = test_cmd_move(self->fd, 0, NR_PAGES, P2M_POLICY_SCATTER, round + 1);
		EXPECT_EQ(NR_PAGES, move.out_pages);
		EXPECT_EQ(0, nr_inside(self->fd, NR_PAGES, &dimm));

		/* The programs that run have some of it. It's moved, or tried again. */
		for (i = 0; i < dimm.nr_blocks; i++) {
			for (nr_tries = 0; !block_is(dimm.first_block + i, "offline");
			     nr_tries++) {
				ASSERT_GT(100, nr_tries);
				if (!block_set(dimm.first_block + i, "offline"))
					usleep(100000);
			}
		}
		expect_sound(_metadata, self->fd, self->mem, NR_PAGES);
		ASSERT_TRUE(dimm_remove(&self->qemu, &dimm, true));
		expect_sound(_metadata, self->fd, self->mem, NR_PAGES);
	}
}

/* A domain's frames stay what they are, until they are moved on purpose. */
TEST_F_TIMEOUT(hotplug, memory_in_use_cannot_be_taken_out, 300)
{
	struct p2m_region_create create = {
		.size = sizeof(create),
		.flags = P2M_REGION_FIXED | P2M_REGION_RANGE,
		.policy = P2M_POLICY_ANY,
		.nr_pages = NR_PAGES,
	};
	struct p2m_evacuate evacuate;
	__u64 i, nr_offline, nr_tries;
	int fd = p2m_open(), pagemap;
	struct p2m_info info;
	struct dimm dimm;
	char *mem;

	ASSERT_LE(0, fd);
	ASSERT_TRUE(dimm_add(&self->qemu, &dimm, "fixed"));
	for (i = 0; i < dimm.nr_blocks; i++)
		ASSERT_TRUE(block_set(dimm.first_block + i, "online_kernel"));
	test_cmd_info(fd, &info);
	EXPECT_LE(dimm.end, info.out_max_mfn);
	create.start_mfn = dimm.start;
	create.end_mfn = dimm.end;
	test_cmd_create_by(fd, &create);
	EXPECT_EQ(NR_PAGES, nr_inside(fd, NR_PAGES, &dimm));
	mem = map_pages(fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < NR_PAGES; i++)
		page_fill(mem + i * P2M_PAGE_SIZE, i);
	/* The kernel itself says so, too. */
	pagemap = pagemap_open();
	ASSERT_LE(0, pagemap);
	for (i = 0; i < NR_PAGES; i += 100)
		EXPECT_EQ(pfn_to_entry(fd, i),
			  pagemap_mfn(pagemap, mem + i * P2M_PAGE_SIZE));
	close(pagemap);

	/* At least the block that they are in can't go. */
	nr_offline = 0;
	for (i = 0; i < dimm.nr_blocks; i++) {
		if (block_set(dimm.first_block + i, "offline"))
			nr_offline++;
		else
			EXPECT_EQ(EBUSY, errno);
	}
	EXPECT_GT(dimm.nr_blocks, nr_offline);
	EXPECT_EQ(nr_offline, nr_blocks(&dimm, "offline"));
	TH_LOG("%llu of %llu blocks can go", nr_offline, dimm.nr_blocks);
	expect_sound(_metadata, fd, mem, NR_PAGES);

	/* Neither can all of it, when the machine asks for it. */
	EXPECT_FALSE(dimm_remove(&self->qemu, &dimm, false));
	EXPECT_EQ(dimm.nr_blocks, nr_blocks(&dimm, NULL));
	expect_sound(_metadata, fd, mem, NR_PAGES);
	expect_sound(_metadata, self->fd, self->mem, NR_PAGES);

	/* Once they have moved, there is nothing of the domain that keeps it. */
	for (i = 0; i < dimm.nr_blocks; i++) {
		if (block_is(dimm.first_block + i, "offline"))
			ASSERT_TRUE(block_set(dimm.first_block + i, "online_kernel"));
	}
	EXPECT_EQ(0, munmap(mem, NR_PAGES * P2M_PAGE_SIZE));
	test_cmd_region_destroy(fd, 0);
	create.flags = P2M_REGION_FIXED;
	create.start_mfn = 0;
	create.end_mfn = 0;
	test_cmd_create_by(fd, &create);
	mem = map_pages(fd, 0, NR_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < NR_PAGES; i++)
		page_fill(mem + i * P2M_PAGE_SIZE, i);
	evacuate = test_cmd_evacuate(fd, P2M_EVACUATE_KEEP_OUT, dimm.start,
				     dimm.end - dimm.start);
	EXPECT_EQ(0, evacuate.out_busy);
	test_cmd_evacuate(self->fd, P2M_EVACUATE_KEEP_OUT, dimm.start,
			  dimm.end - dimm.start);
	EXPECT_EQ(0, nr_inside(fd, NR_PAGES, &dimm));
	EXPECT_EQ(0, nr_inside(self->fd, NR_PAGES, &dimm));
	expect_sound(_metadata, fd, mem, NR_PAGES);

	/* What else the kernel has put there may keep it, though. */
	nr_offline = 0;
	for (i = 0; i < dimm.nr_blocks; i++) {
		for (nr_tries = 0; nr_tries < 3; nr_tries++) {
			if (block_set(dimm.first_block + i, "offline")) {
				nr_offline++;
				break;
			}
		}
	}
	TH_LOG("%llu of %llu blocks went", nr_offline, dimm.nr_blocks);
	expect_sound(_metadata, fd, mem, NR_PAGES);
	expect_sound(_metadata, self->fd, self->mem, NR_PAGES);
	if (nr_offline == dimm.nr_blocks)
		EXPECT_TRUE(dimm_remove(&self->qemu, &dimm, true));
	expect_sound(_metadata, fd, mem, NR_PAGES);
	EXPECT_EQ(0, munmap(mem, NR_PAGES * P2M_PAGE_SIZE));
	EXPECT_EQ(0, close(fd));
}

TEST_HARNESS_MAIN
