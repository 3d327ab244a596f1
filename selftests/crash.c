// SPDX-License-Identifier: GPL-2.0
/*
 * The ABI of /dev/p2m_crash: the format of its ioctls, what P2M_CRASH_LOAD takes, and
 * who may use it.
 *
 * What is loaded here is no kernel. Nothing is left loaded.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <p2m_crash.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

#define ASSERT_LAYOUT(type, member, offset)                     \
	_Static_assert(offsetof(struct type, member) == (offset), \
		       #type "." #member)
#define ASSERT_COMMAND(command, number, type, length)                    \
	_Static_assert((command) == (number), #command " has changed");  \
	_Static_assert(sizeof(struct type) >= (length), #type " shrank"); \
	ASSERT_LAYOUT(type, size, 0);                                    \
	ASSERT_LAYOUT(type, flags, 4)

/* The numbers of the first release. */
ASSERT_COMMAND(P2M_CRASH_INFO, 0xbbe0, p2m_crash_info, 56);
ASSERT_COMMAND(P2M_CRASH_LOAD, 0xbbe1, p2m_crash_load, 80);
ASSERT_COMMAND(P2M_CRASH_UNLOAD, 0xbbe2, p2m_crash_unload, 8);
ASSERT_COMMAND(P2M_CRASH_STATUS, 0xbbe3, p2m_crash_status, 72);
ASSERT_COMMAND(P2M_CRASH_LOW, 0xbbe4, p2m_crash_low, 32);
ASSERT_LAYOUT(p2m_crash_info, out_refusal, 8);
ASSERT_LAYOUT(p2m_crash_info, out_nr_levels, 12);
ASSERT_LAYOUT(p2m_crash_info, out_base, 16);
ASSERT_LAYOUT(p2m_crash_info, out_note, 24);
ASSERT_LAYOUT(p2m_crash_info, out_note_size, 32);
ASSERT_LAYOUT(p2m_crash_info, out_tsc_khz, 40);
ASSERT_LAYOUT(p2m_crash_info, out_nr_iommus, 48);
ASSERT_LAYOUT(p2m_crash_info, out_generation, 56);
ASSERT_LAYOUT(p2m_crash_load, memory, 8);
ASSERT_LAYOUT(p2m_crash_load, min_memory, 16);
ASSERT_LAYOUT(p2m_crash_load, held_memory, 24);
ASSERT_LAYOUT(p2m_crash_load, entry, 32);
ASSERT_LAYOUT(p2m_crash_load, boot_params, 40);
ASSERT_LAYOUT(p2m_crash_load, page_tables, 48);
ASSERT_LAYOUT(p2m_crash_load, size_slot, 56);
ASSERT_LAYOUT(p2m_crash_load, segments, 64);
ASSERT_LAYOUT(p2m_crash_load, nr_segments, 72);
ASSERT_LAYOUT(p2m_crash_load, frames, 80);
ASSERT_LAYOUT(p2m_crash_load, frames_length, 88);
ASSERT_LAYOUT(p2m_crash_load, generation, 96);
ASSERT_LAYOUT(p2m_crash_status, out_loaded, 8);
ASSERT_LAYOUT(p2m_crash_status, out_flags, 12);
ASSERT_LAYOUT(p2m_crash_status, out_base, 16);
ASSERT_LAYOUT(p2m_crash_status, out_memory, 24);
ASSERT_LAYOUT(p2m_crash_status, out_min_memory, 32);
ASSERT_LAYOUT(p2m_crash_status, out_held, 40);
ASSERT_LAYOUT(p2m_crash_status, out_tables, 48);
ASSERT_LAYOUT(p2m_crash_status, out_free, 56);
ASSERT_LAYOUT(p2m_crash_status, out_would_get, 64);
ASSERT_LAYOUT(p2m_crash_status, out_low, 72);
ASSERT_LAYOUT(p2m_crash_status, out_stale, 80);
ASSERT_LAYOUT(p2m_crash_low, memory, 8);
ASSERT_LAYOUT(p2m_crash_low, ranges, 16);
ASSERT_LAYOUT(p2m_crash_low, nr_ranges, 24);
ASSERT_LAYOUT(p2m_crash_low, out_nr_ranges, 28);
_Static_assert(sizeof(struct p2m_crash_range) == 16, "p2m_crash_range");
ASSERT_LAYOUT(p2m_crash_range, start, 0);
ASSERT_LAYOUT(p2m_crash_range, length, 8);
_Static_assert(sizeof(struct p2m_crash_frames) == 16, "p2m_crash_frames");
ASSERT_LAYOUT(p2m_crash_frames, magic, 0);
ASSERT_LAYOUT(p2m_crash_frames, nr_frames, 8);
_Static_assert(sizeof(struct p2m_crash_segment) == 24, "p2m_crash_segment");
ASSERT_LAYOUT(p2m_crash_segment, data, 0);
ASSERT_LAYOUT(p2m_crash_segment, length, 8);
ASSERT_LAYOUT(p2m_crash_segment, offset, 16);
_Static_assert(P2M_CRASH_MAX_MEMORY == 1 << 30, "P2M_CRASH_MAX_MEMORY");
_Static_assert(P2M_CRASH_HOLD_ALL == 1, "P2M_CRASH_HOLD_ALL");
_Static_assert(P2M_CRASH_IOMMU == 2, "P2M_CRASH_IOMMU");
_Static_assert(P2M_CRASH_LOW_MEMORY == 4, "P2M_CRASH_LOW_MEMORY");
_Static_assert(P2M_CRASH_LOW_GRAIN == 1 << 20, "P2M_CRASH_LOW_GRAIN");
_Static_assert(P2M_CRASH_MAX_LOW == 128 << 20, "P2M_CRASH_MAX_LOW");

#define MEMORY (16 * P2M_PAGE_SIZE)

static char data[3 * P2M_PAGE_SIZE];

/* Where there are IOMMUs, one may be on, and it can't be left as it is. */
static __u32 iommu_flag;

static struct p2m_crash_segment segments[P2M_CRASH_MAX_SEGMENTS + 1];

/* Three pages at the second one, in two segments. */
static struct p2m_crash_load valid_load(void)
{
	segments[0] = (struct p2m_crash_segment){
		.data = (uintptr_t)data,
		.length = P2M_PAGE_SIZE + 1,
		.offset = P2M_PAGE_SIZE,
	};
	segments[1] = (struct p2m_crash_segment){
		.data = (uintptr_t)data,
		.length = 16,
		.offset = 3 * P2M_PAGE_SIZE,
	};
	return (struct p2m_crash_load){
		.size = sizeof(struct p2m_crash_load),
		.flags = iommu_flag,
		.memory = MEMORY,
		.min_memory = 8 * P2M_PAGE_SIZE,
		.entry = 3 * P2M_PAGE_SIZE,
		.boot_params = P2M_PAGE_SIZE,
		.page_tables = 2 * P2M_PAGE_SIZE,
		.segments = (uintptr_t)segments,
		.nr_segments = 2,
	};
}

static int load(int fd)
{
	struct p2m_crash_load cmd = valid_load();

	return ioctl(fd, P2M_CRASH_LOAD, &cmd);
}

static int unload(int fd)
{
	struct p2m_crash_unload cmd = { .size = sizeof(cmd) };

	return ioctl(fd, P2M_CRASH_UNLOAD, &cmd);
}

static struct p2m_crash_status status_of(int fd)
{
	struct p2m_crash_status cmd = { .size = sizeof(cmd) };

	if (ioctl(fd, P2M_CRASH_STATUS, &cmd))
		cmd.out_loaded = ~0;
	return cmd;
}

static int open_crash(void)
{
	return open(P2M_CRASH_DEVICE, O_RDWR | O_CLOEXEC);
}

/* How many hold the module, by the kernel, or -1. */
static int references(void)
{
	FILE *file = fopen("/sys/module/p2m_crash/refcnt", "re");
	int nr = -1;

	if (file) {
		if (fscanf(file, "%d", &nr) != 1)
			nr = -1;
		fclose(file);
	}
	return nr;
}

/* For good, in this process. */
static int drop_cap_sys_boot(void)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct caps[2];

	if (syscall(SYS_capget, &header, caps))
		return -1;
	caps[0].effective &= ~(1U << CAP_SYS_BOOT);
	caps[0].permitted &= ~(1U << CAP_SYS_BOOT);
	return syscall(SYS_capset, &header, caps);
}

/*
 * The format, for each command.
 */

FIXTURE(format)
{
	int fd;
	/* Two pages, the second of which can't be touched. */
	unsigned char *buffer;
};

FIXTURE_VARIANT(format)
{
	unsigned int command;
	size_t size;
	/* Known flags. */
	__u32 flags;
	/* What it says of all that is in order. */
	int error;
};

/* Whether it can be loaded depends on the machine: so nothing that can be is tried here. */
FIXTURE_VARIANT_ADD(format, info) {
	.command = P2M_CRASH_INFO,
	.size = 56,
};

FIXTURE_VARIANT_ADD(format, load) {
	.command = P2M_CRASH_LOAD,
	.size = 80,
	.flags = P2M_CRASH_HOLD_ALL | P2M_CRASH_IOMMU | P2M_CRASH_LOW_MEMORY,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(format, unload) {
	.command = P2M_CRASH_UNLOAD,
	.size = 8,
	.error = ENOENT,
};

FIXTURE_VARIANT_ADD(format, status) {
	.command = P2M_CRASH_STATUS,
	.size = 72,
};

FIXTURE_VARIANT_ADD(format, low) {
	.command = P2M_CRASH_LOW,
	.size = 32,
	.error = EINVAL,
};

static int call(int fd, unsigned int command, void *arg)
{
	return ioctl(fd, command, arg) ? errno : 0;
}

FIXTURE_SETUP(format)
{
	__u32 size = variant->size;

	if (access(P2M_CRASH_DEVICE, F_OK))
		SKIP(return, "no " P2M_CRASH_DEVICE);
	self->fd = open_crash();
	ASSERT_LE(0, self->fd);
	self->buffer = mmap(NULL, 3 * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->buffer);
	ASSERT_EQ(0, munmap(self->buffer + 2 * P2M_PAGE_SIZE, P2M_PAGE_SIZE));
	memcpy(self->buffer, &size, sizeof(size));
}

FIXTURE_TEARDOWN(format)
{
	close(self->fd);
}

static void set_size(unsigned char *buffer, __u32 size)
{
	memcpy(buffer, &size, sizeof(size));
}

TEST_F(format, first_version_is_known)
{
	ASSERT_EQ(variant->error,
		  call(self->fd, variant->command, self->buffer));
}

TEST_F(format, structure_may_end_where_memory_ends)
{
	unsigned char *end = self->buffer + 2 * P2M_PAGE_SIZE - variant->size;

	set_size(end, variant->size);
	ASSERT_EQ(variant->error, call(self->fd, variant->command, end));
}

TEST_F(format, smaller_size_is_EINVAL)
{
	__u32 size;

	for (size = 0; size < variant->size; size++) {
		set_size(self->buffer, size);
		ASSERT_EQ(EINVAL,
			  call(self->fd, variant->command, self->buffer));
	}
}

TEST_F(format, zero_tail_changes_nothing)
{
	set_size(self->buffer, P2M_PAGE_SIZE);
	ASSERT_EQ(variant->error,
		  call(self->fd, variant->command, self->buffer));
}

TEST_F(format, nonzero_tail_is_E2BIG)
{
	size_t at[] = { 1024, P2M_PAGE_SIZE - 1 }, i;

	set_size(self->buffer, P2M_PAGE_SIZE);
	for (i = 0; i < ARRAY_LEN(at); i++) {
		self->buffer[at[i]] = 1;
		ASSERT_EQ(E2BIG,
			  call(self->fd, variant->command, self->buffer));
		self->buffer[at[i]] = 0;
	}
}

TEST_F(format, larger_than_a_page_is_E2BIG)
{
	set_size(self->buffer, P2M_PAGE_SIZE + 8);
	ASSERT_EQ(E2BIG, call(self->fd, variant->command, self->buffer));
}

TEST_F(format, unknown_flag_is_EOPNOTSUPP)
{
	__u32 bit, flags;

	for (bit = 0; bit < 32; bit++) {
		flags = 1U << bit;
		/* A newer version may have more. */
		if (flags & variant->flags || (bit > 0 && bit < 16 && variant->flags))
			continue;
		memcpy(self->buffer + 4, &flags, sizeof(flags));
		ASSERT_EQ(EOPNOTSUPP,
			  call(self->fd, variant->command, self->buffer));
	}
}

TEST_F(format, unreadable_structure_is_EFAULT)
{
	unsigned char *end = self->buffer + 2 * P2M_PAGE_SIZE;

	ASSERT_EQ(EFAULT, call(self->fd, variant->command, NULL));
	ASSERT_EQ(EFAULT, call(self->fd, variant->command, end));
	set_size(end - 4, variant->size);
	ASSERT_EQ(EFAULT, call(self->fd, variant->command, end - 4));
}

TEST_F(format, unwritable_structure_is_EFAULT)
{
	ASSERT_EQ(0, mprotect(self->buffer, P2M_PAGE_SIZE, PROT_READ));
	ASSERT_EQ(EFAULT, call(self->fd, variant->command, self->buffer));
}

TEST_F(format, other_encoding_is_ENOTTY)
{
	unsigned int nr = _IOC_NR(variant->command);

	ASSERT_EQ(ENOTTY, call(self->fd, _IOR(P2M_CRASH_IOCTL_TYPE, nr, int),
			       self->buffer));
	ASSERT_EQ(ENOTTY, call(self->fd, _IOW(P2M_CRASH_IOCTL_TYPE, nr, int),
			       self->buffer));
	ASSERT_EQ(ENOTTY, call(self->fd, _IO(P2M_CRASH_IOCTL_TYPE + 1, nr),
			       self->buffer));
}

/*
 * What is loaded.
 */

FIXTURE(crash)
{
	int fd;
	struct p2m_crash_info info;
	mode_t mode;
};

FIXTURE_SETUP(crash)
{
	struct stat stat;

	if (access(P2M_CRASH_DEVICE, F_OK))
		SKIP(return, "no " P2M_CRASH_DEVICE);
	self->fd = open_crash();
	ASSERT_LE(0, self->fd);
	self->info.size = sizeof(self->info);
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_INFO, &self->info));
	iommu_flag = self->info.out_nr_iommus ? P2M_CRASH_IOMMU : 0;
	ASSERT_EQ(0, fstat(self->fd, &stat));
	self->mode = stat.st_mode & 07777;
}

FIXTURE_TEARDOWN(crash)
{
	unload(self->fd);
	chmod(P2M_CRASH_DEVICE, self->mode);
	close(self->fd);
}

TEST_F(crash, unknown_command_is_ENOTTY)
{
	struct p2m_crash_status status = { .size = sizeof(status) };
	unsigned int nr;

	/* Among them are those of p2m.h. Newer versions may have more. */
	for (nr = 0; nr < P2M_CRASH_CMD_BASE; nr++)
		ASSERT_EQ(ENOTTY, call(self->fd, _IO(P2M_CRASH_IOCTL_TYPE, nr),
				       &status));
	ASSERT_EQ(ENOTTY, call(self->fd, _IO(P2M_CRASH_IOCTL_TYPE, 0xff), &status));
}

TEST_F(crash, info_agrees_with_itself)
{
	EXPECT_EQ(0, self->info.flags);
	EXPECT_EQ(0, self->info.__reserved);
	EXPECT_EQ(self->info.out_refusal == P2M_CRASH_OK,
		  self->info.out_base != 0);
	EXPECT_EQ(0, self->info.out_base % P2M_CRASH_MAX_MEMORY);
	EXPECT_NE(0, self->info.out_note);
	EXPECT_EQ(0, self->info.out_note % P2M_PAGE_SIZE);
	EXPECT_EQ(P2M_PAGE_SIZE, self->info.out_note_size);
}

TEST_F(crash, refused_machine_loads_nothing)
{
	if (!self->info.out_refusal)
		SKIP(return, "not refused");
	ASSERT_EQ(-1, load(self->fd));
	switch (self->info.out_refusal) {
	case P2M_CRASH_LOCKED_DOWN:
	case P2M_CRASH_NO_LOADS:
		EXPECT_EQ(EPERM, errno);
		break;
	default:
		EXPECT_EQ(EOPNOTSUPP, errno);
	}
	EXPECT_EQ(0, status_of(self->fd).out_loaded);
}

TEST_F(crash, status_tells_what_is_loaded)
{
	struct p2m_crash_status status;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	status = status_of(self->fd);
	EXPECT_EQ(0, status.out_loaded);
	EXPECT_EQ(0, status.out_memory);
	EXPECT_LT(0, status.out_free);
	ASSERT_EQ(0, load(self->fd));
	status = status_of(self->fd);
	EXPECT_EQ(1, status.out_loaded);
	EXPECT_EQ(self->info.out_base, status.out_base);
	EXPECT_EQ(MEMORY, status.out_memory);
	EXPECT_EQ(8 * P2M_PAGE_SIZE, status.out_min_memory);
	EXPECT_EQ(3 * P2M_PAGE_SIZE, status.out_held);
	EXPECT_EQ(MEMORY, status.out_would_get);
	EXPECT_LT(0, status.out_tables);
	ASSERT_EQ(0, unload(self->fd));
	EXPECT_EQ(0, status_of(self->fd).out_loaded);
	EXPECT_EQ(-1, unload(self->fd));
	EXPECT_EQ(ENOENT, errno);
}

TEST_F(crash, held_memory_is_held)
{
	struct p2m_crash_load cmd = valid_load();

	if (self->info.out_refusal)
		SKIP(return, "refused");
	cmd.held_memory = 6 * P2M_PAGE_SIZE;
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOAD, &cmd));
	EXPECT_EQ(6 * P2M_PAGE_SIZE, status_of(self->fd).out_held);
	cmd.flags |= P2M_CRASH_HOLD_ALL;
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOAD, &cmd));
	EXPECT_EQ(MEMORY, status_of(self->fd).out_held);
	EXPECT_EQ(cmd.flags, status_of(self->fd).out_flags);
}

/* Each row makes one thing wrong. */
TEST_F(crash, wrong_arguments_load_nothing_and_leave_what_is_loaded)
{
	const struct {
		const char *what;
		size_t at;
		__u64 value;
		int error;
	} rows[] = {
#define ROW(member, value, error) \
	{ #member " " #value, offsetof(struct p2m_crash_load, member), value, error }
		ROW(memory, 0, EINVAL),
		ROW(memory, MEMORY + 1, EINVAL),
		ROW(memory, P2M_CRASH_MAX_MEMORY + P2M_PAGE_SIZE, E2BIG),
		ROW(memory, -P2M_PAGE_SIZE, E2BIG),
		ROW(min_memory, MEMORY + P2M_PAGE_SIZE, EINVAL),
		ROW(min_memory, 17, EINVAL),
		/* A segment isn't below it. */
		ROW(min_memory, 3 * P2M_PAGE_SIZE, EINVAL),
		ROW(held_memory, MEMORY + P2M_PAGE_SIZE, EINVAL),
		ROW(held_memory, 1, EINVAL),
		/* In no segment. */
		ROW(entry, 0, EINVAL),
		ROW(entry, MEMORY, EINVAL),
		ROW(entry, -1, EINVAL),
		ROW(boot_params, 4 * P2M_PAGE_SIZE, EINVAL),
		ROW(page_tables, 5 * P2M_PAGE_SIZE, EINVAL),
		/* Crosses a page. */
		ROW(size_slot, 3 * P2M_PAGE_SIZE - 4, EINVAL),
		ROW(size_slot, 8 * P2M_PAGE_SIZE, EINVAL),
		ROW(segments, 8, EFAULT),
		ROW(segments, -8, EFAULT),
		/* It has no length, and a length needs it. */
		ROW(frames, 5 * P2M_PAGE_SIZE, EINVAL),
		ROW(frames_length, P2M_PAGE_SIZE, EINVAL),
		ROW(generation, self->info.out_generation + 1, ESTALE),
#undef ROW
	};
	struct p2m_crash_load cmd;
	size_t i;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	ASSERT_EQ(0, load(self->fd));
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		cmd = valid_load();
		memcpy((char *)&cmd + rows[i].at, &rows[i].value,
		       sizeof(rows[i].value));
		EXPECT_EQ(rows[i].error, call(self->fd, P2M_CRASH_LOAD, &cmd))
			TH_LOG("%s", rows[i].what);
		EXPECT_EQ(3 * P2M_PAGE_SIZE, status_of(self->fd).out_held);
	}
	cmd = valid_load();
	cmd.__reserved = 1;
	EXPECT_EQ(EINVAL, call(self->fd, P2M_CRASH_LOAD, &cmd));
	cmd = valid_load();
	cmd.nr_segments = 0;
	EXPECT_EQ(EINVAL, call(self->fd, P2M_CRASH_LOAD, &cmd));
	cmd.nr_segments = P2M_CRASH_MAX_SEGMENTS + 1;
	EXPECT_EQ(E2BIG, call(self->fd, P2M_CRASH_LOAD, &cmd));
	if (!self->info.out_nr_iommus) {
		cmd = valid_load();
		cmd.flags = P2M_CRASH_IOMMU;
		EXPECT_EQ(EOPNOTSUPP, call(self->fd, P2M_CRASH_LOAD, &cmd));
	}
	EXPECT_EQ(1, status_of(self->fd).out_loaded);
}

TEST_F(crash, iommu_that_is_on_cannot_be_left_as_it_is)
{
	struct p2m_crash_load cmd = valid_load();
	int error;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	ASSERT_EQ(0, load(self->fd));
	cmd.flags = 0;
	error = call(self->fd, P2M_CRASH_LOAD, &cmd);
	if (!error)
		SKIP(return, "no IOMMU is on");
	EXPECT_EQ(EBUSY, error);
	EXPECT_EQ(iommu_flag, status_of(self->fd).out_flags);
}

TEST_F(crash, wrong_segments_load_nothing)
{
	static const struct {
		const char *what;
		__u64 length, offset;
		int error;
	} rows[] = {
		{ "no bytes", 0, 5 * P2M_PAGE_SIZE, EINVAL },
		{ "not at a page", 1, 5 * P2M_PAGE_SIZE + 8, EINVAL },
		{ "over the end", P2M_PAGE_SIZE + 1, 7 * P2M_PAGE_SIZE, EINVAL },
		{ "behind the end", 1, P2M_CRASH_MAX_MEMORY + P2M_PAGE_SIZE, E2BIG },
		{ "longer than all", -1, 5 * P2M_PAGE_SIZE, EINVAL },
		{ "the same page", 1, 2 * P2M_PAGE_SIZE, EEXIST },
	};
	struct p2m_crash_load cmd;
	size_t i;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		cmd = valid_load();
		segments[1].length = rows[i].length;
		segments[1].offset = rows[i].offset;
		cmd.entry = P2M_PAGE_SIZE;
		EXPECT_EQ(rows[i].error, call(self->fd, P2M_CRASH_LOAD, &cmd))
			TH_LOG("%s", rows[i].what);
		EXPECT_EQ(0, status_of(self->fd).out_loaded);
	}
	cmd = valid_load();
	segments[0].data = 8;
	EXPECT_EQ(EFAULT, call(self->fd, P2M_CRASH_LOAD, &cmd));
	EXPECT_EQ(0, status_of(self->fd).out_loaded);
}

/* There is room for a header and the 16 frames of the window. */
TEST_F(crash, frames_have_room_that_no_segment_has)
{
	static const struct {
		const char *what;
		__u64 frames, length;
		int error;
	} rows[] = {
		{ "enough", 4 * P2M_PAGE_SIZE, 16 + 4 * 16, 0 },
		{ "too little", 4 * P2M_PAGE_SIZE, 16 + 4 * 16 - 1, EINVAL },
		{ "not at a page", 4 * P2M_PAGE_SIZE + 8, 16 + 4 * 16, EINVAL },
		{ "in a segment", 3 * P2M_PAGE_SIZE, 16 + 4 * 16, EEXIST },
		{ "over what it needs", 7 * P2M_PAGE_SIZE, P2M_PAGE_SIZE + 1, EINVAL },
		{ "longer than all", 4 * P2M_PAGE_SIZE, -1, EINVAL },
	};
	struct p2m_crash_load cmd;
	size_t i;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		cmd = valid_load();
		cmd.frames = rows[i].frames;
		cmd.frames_length = rows[i].length;
		EXPECT_EQ(rows[i].error, call(self->fd, P2M_CRASH_LOAD, &cmd))
			TH_LOG("%s", rows[i].what);
	}
}

TEST_F(crash, what_is_loaded_for_this_machine_is_not_stale)
{
	struct p2m_crash_load cmd = valid_load();

	if (self->info.out_refusal)
		SKIP(return, "refused");
	EXPECT_NE(0, self->info.out_generation);
	cmd.generation = self->info.out_generation;
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOAD, &cmd));
	EXPECT_EQ(0, status_of(self->fd).out_stale);
}

#define NR_LOW 3

static struct p2m_crash_low valid_low(struct p2m_crash_range *ranges)
{
	return (struct p2m_crash_low){
		.size = sizeof(struct p2m_crash_low),
		.memory = NR_LOW * P2M_CRASH_LOW_GRAIN,
		.ranges = (uintptr_t)ranges,
		.nr_ranges = NR_LOW,
	};
}

TEST_F(crash, low_memory_is_below_4_GiB_and_goes_to_one_load)
{
	struct p2m_crash_range ranges[NR_LOW] = {};
	struct p2m_crash_low low = valid_low(ranges);
	struct p2m_crash_load cmd = valid_load();
	__u64 end = 0, sum = 0;
	unsigned int i;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	cmd.flags |= P2M_CRASH_LOW_MEMORY;
	EXPECT_EQ(ENODATA, call(self->fd, P2M_CRASH_LOAD, &cmd));
	/* The first is given back. */
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOW, &low));
	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOW, &low));
	ASSERT_LE(1, low.out_nr_ranges);
	ASSERT_GE(NR_LOW, low.out_nr_ranges);
	for (i = 0; i < low.out_nr_ranges; i++) {
		EXPECT_EQ(0, ranges[i].start % P2M_CRASH_LOW_GRAIN);
		EXPECT_EQ(0, ranges[i].length % P2M_CRASH_LOW_GRAIN);
		/* What touches is one range. */
		EXPECT_LT(end, ranges[i].start);
		end = ranges[i].start + ranges[i].length;
		sum += ranges[i].length;
	}
	EXPECT_GE(1ULL << 32, end);
	EXPECT_EQ(low.memory, sum);

	ASSERT_EQ(0, ioctl(self->fd, P2M_CRASH_LOAD, &cmd));
	EXPECT_EQ(cmd.flags, status_of(self->fd).out_flags);
	EXPECT_EQ(low.memory, status_of(self->fd).out_low);
	EXPECT_EQ(ENODATA, call(self->fd, P2M_CRASH_LOAD, &cmd));
	ASSERT_EQ(0, load(self->fd));
	EXPECT_EQ(0, status_of(self->fd).out_low);
}

TEST_F(crash, wrong_low_memory_is_not_taken)
{
	struct p2m_crash_range ranges[NR_LOW];
	const struct {
		const char *what;
		__u64 memory, ranges;
		__u32 nr_ranges;
		int error;
	} rows[] = {
		{ "none", 0, (uintptr_t)ranges, NR_LOW, EINVAL },
		{ "a page", P2M_PAGE_SIZE, (uintptr_t)ranges, NR_LOW, EINVAL },
		{ "too much", P2M_CRASH_MAX_LOW + P2M_CRASH_LOW_GRAIN, (uintptr_t)ranges, NR_LOW,
		  E2BIG },
		{ "all", -(__u64)P2M_CRASH_LOW_GRAIN, (uintptr_t)ranges, NR_LOW, E2BIG },
		{ "no room", P2M_CRASH_LOW_GRAIN, (uintptr_t)ranges, 0, ENOSPC },
		{ "nowhere", P2M_CRASH_LOW_GRAIN, 8, NR_LOW, EFAULT },
	};
	struct p2m_crash_load cmd = valid_load();
	struct p2m_crash_low low;
	size_t i;

	cmd.flags = P2M_CRASH_LOW_MEMORY;
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		low = valid_low(ranges);
		low.memory = rows[i].memory;
		low.ranges = rows[i].ranges;
		low.nr_ranges = rows[i].nr_ranges;
		EXPECT_EQ(rows[i].error, call(self->fd, P2M_CRASH_LOW, &low))
			TH_LOG("%s", rows[i].what);
		EXPECT_EQ(ENODATA, call(self->fd, P2M_CRASH_LOAD, &cmd));
	}
}

/*
 * Who may use it.
 */

TEST_F(crash, only_root_opens_it)
{
	EXPECT_EQ(0600, self->mode);
	ASSERT_EQ(0, drop_privileges());
	EXPECT_EQ(-1, open_crash());
	EXPECT_EQ(EACCES, errno);
}

TEST_F(crash, opening_needs_CAP_SYS_BOOT)
{
	ASSERT_EQ(0, chmod(P2M_CRASH_DEVICE, 0666));
	ASSERT_EQ(0, drop_cap_sys_boot());
	EXPECT_EQ(-1, open_crash());
	EXPECT_EQ(EPERM, errno);
}

TEST_F(crash, files_and_what_is_loaded_hold_the_module)
{
	int before = references();
	int fd, status;
	pid_t child;

	ASSERT_LE(0, before);
	fd = open_crash();
	ASSERT_LE(0, fd);
	EXPECT_EQ(before + 1, references());
	close(fd);
	EXPECT_EQ(before, references());

	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(drop_cap_sys_boot() || open_crash() >= 0);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(before, references());

	if (self->info.out_refusal)
		SKIP(return, "refused");
	ASSERT_EQ(0, load(self->fd));
	EXPECT_EQ(before + 1, references());
	ASSERT_EQ(0, unload(self->fd));
	EXPECT_EQ(before, references());
}

TEST_F(crash, descriptor_gives_no_right_to_load_or_unload)
{
	pid_t child;
	int status;

	if (self->info.out_refusal)
		SKIP(return, "refused");
	ASSERT_EQ(0, load(self->fd));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		if (drop_cap_sys_boot())
			_exit(1);
		if (!load(self->fd) || errno != EPERM)
			_exit(2);
		if (!unload(self->fd) || errno != EPERM)
			_exit(3);
		_exit(status_of(self->fd).out_loaded == 1 ? 0 : 4);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, status_of(self->fd).out_loaded);
}

TEST_HARNESS_MAIN
