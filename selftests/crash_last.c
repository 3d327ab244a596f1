// SPDX-License-Identifier: GPL-2.0
/*
 * Crash kernels are loaded and unloaded by the rules of kexec_load(): what forbids the
 * one forbids the other, and what is loaded then stays.
 *
 * There is no way back, so this is for a machine that ends afterwards: it's skipped
 * unless the environment variable P2M_LOCKDOWN says how far to go. The tests follow each
 * other.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <p2m_crash.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define DISABLED "/proc/sys/kernel/kexec_load_disabled"
#define LIMIT "/proc/sys/kernel/kexec_load_limit_panic"

static char page[P2M_PAGE_SIZE];

static int load(int fd)
{
	struct p2m_crash_segment segment = {
		.data = (uintptr_t)page,
		.length = sizeof(page),
	};
	struct p2m_crash_load cmd = {
		.size = sizeof(cmd),
		.memory = 8 * P2M_PAGE_SIZE,
		.min_memory = 8 * P2M_PAGE_SIZE,
		.segments = (uintptr_t)&segment,
		.nr_segments = 1,
	};

	return ioctl(fd, P2M_CRASH_LOAD, &cmd) ? errno : 0;
}

static int unload(int fd)
{
	struct p2m_crash_unload cmd = { .size = sizeof(cmd) };

	return ioctl(fd, P2M_CRASH_UNLOAD, &cmd) ? errno : 0;
}

static __u32 refusal(int fd)
{
	struct p2m_crash_info cmd = { .size = sizeof(cmd) };

	return ioctl(fd, P2M_CRASH_INFO, &cmd) ? ~0U : cmd.out_refusal;
}

static bool is_loaded(int fd)
{
	struct p2m_crash_status cmd = { .size = sizeof(cmd) };

	return !ioctl(fd, P2M_CRASH_STATUS, &cmd) && cmd.out_loaded == 1;
}

static int read_number(const char *path)
{
	FILE *file = fopen(path, "re");
	int value = -2;

	if (!file)
		return -2;
	if (fscanf(file, "%d", &value) != 1)
		value = -2;
	fclose(file);
	return value;
}

static int write_number(const char *path, int value)
{
	FILE *file = fopen(path, "we");

	if (!file)
		return -1;
	fprintf(file, "%d", value);
	return fclose(file);
}

FIXTURE(last)
{
	int fd;
};

FIXTURE_SETUP(last)
{
	if (access(P2M_CRASH_DEVICE, F_OK))
		SKIP(return, "no " P2M_CRASH_DEVICE);
	if (!getenv("P2M_LOCKDOWN"))
		SKIP(return, "P2M_LOCKDOWN doesn't say that it may be done");
	self->fd = open(P2M_CRASH_DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(last)
{
	close(self->fd);
}

TEST_F(last, limit_of_loads_counts_ours)
{
	__u32 before = refusal(self->fd);
	/* An attempt counts, whether or not the machine can have a crash kernel. */
	int result = before ? EOPNOTSUPP : 0;

	if (read_number(LIMIT) != -1 || read_number(DISABLED) != 0)
		SKIP(return, "no limit, or there is one already");
	ASSERT_EQ(0, write_number(LIMIT, 2));
	EXPECT_EQ(result, load(self->fd));
	EXPECT_EQ(1, read_number(LIMIT));
	EXPECT_EQ(before, refusal(self->fd));
	EXPECT_EQ(result ? ENOENT : 0, unload(self->fd));
	EXPECT_EQ(result, load(self->fd));
	EXPECT_EQ(0, read_number(LIMIT));
	EXPECT_EQ(before ?: P2M_CRASH_NO_LOADS, refusal(self->fd));
	EXPECT_EQ(EPERM, load(self->fd));
	EXPECT_EQ(EPERM, unload(self->fd));
	EXPECT_EQ(before == 0, is_loaded(self->fd));
}

TEST_F(last, kexec_load_disabled_forbids_ours)
{
	bool was_loaded = is_loaded(self->fd);
	__u32 before = refusal(self->fd);

	if (read_number(DISABLED) == -2)
		SKIP(return, "a kernel without kexec");
	/* It can only be set. */
	if (!read_number(DISABLED))
		ASSERT_EQ(0, write_number(DISABLED, 1));
	EXPECT_EQ(before ?: P2M_CRASH_NO_LOADS, refusal(self->fd));
	EXPECT_EQ(EPERM, load(self->fd));
	EXPECT_EQ(EPERM, unload(self->fd));
	EXPECT_EQ(was_loaded, is_loaded(self->fd));
}

TEST_F(last, lockdown_forbids_all)
{
	bool was_loaded = is_loaded(self->fd);

	if (!can_lock_down())
		SKIP(return, "the kernel can't be locked down");
	ASSERT_EQ(0, lock_down(getenv("P2M_LOCKDOWN")));
	EXPECT_EQ(P2M_CRASH_LOCKED_DOWN, refusal(self->fd));
	EXPECT_EQ(EPERM, load(self->fd));
	EXPECT_EQ(EPERM, unload(self->fd));
	EXPECT_EQ(was_loaded, is_loaded(self->fd));
}

TEST_HARNESS_MAIN
