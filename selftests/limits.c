// SPDX-License-Identifier: GPL-2.0
/*
 * Limits: the user's, the control group's, the module's own and the machine's.
 * Whatever refuses a region, nothing of it is left, and nobody is killed.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "p2m_util.h"

static __u64 file_number(const char *path, const char *name)
{
	unsigned long long value = ~0ULL;
	char line[256], key[128];
	FILE *file = fopen(path, "r");

	if (!file)
		return value;
	while (fgets(line, sizeof(line), file)) {
		if (!name) {
			if (sscanf(line, "%llu", &value) == 1)
				break;
		} else if (sscanf(line, "%127s %llu", key, &value) == 2 &&
			   !strcmp(key, name)) {
			break;
		}
		value = ~0ULL;
	}
	fclose(file);
	return value;
}

static __u64 nr_oom_kills(void)
{
	return file_number("/proc/vmstat", "oom_kill");
}

/* RLIMIT_MEMLOCK, for a user who has no CAP_IPC_LOCK. */
#define MEMLOCK_PAGES 1024ULL

FIXTURE(memlock)
{
	int fd;
	__u64 total_pages;
	mode_t mode;
	bool changed;
};

FIXTURE_SETUP(memlock)
{
	const struct rlimit limit = {
		.rlim_cur = MEMLOCK_PAGES * P2M_PAGE_SIZE,
		.rlim_max = MEMLOCK_PAGES * P2M_PAGE_SIZE,
	};
	struct stat st;

	if (stat(P2M_DEVICE, &st))
		SKIP(return, "no " P2M_DEVICE);
	if (geteuid())
		SKIP(return, "must be root to become somebody else");
	self->total_pages = total_pages();
	self->mode = st.st_mode & 07777;
	ASSERT_EQ(0, chmod(P2M_DEVICE, 0666));
	self->changed = true;
	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &limit));
	ASSERT_EQ(0, drop_privileges());
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN_PARENT(memlock)
{
	if (!self->changed)
		return;
	EXPECT_EQ(self->total_pages, total_pages());
	EXPECT_EQ(0, chmod(P2M_DEVICE, self->mode));
}

TEST_F(memlock, is_the_most_that_a_user_can_have)
{
	struct snapshot snap;
	__u64 a, b;

	/* All of it at once. */
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY,
			       MEMLOCK_PAGES + 1, 0);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, MEMLOCK_PAGES, 0, &a);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));

	/* What was given back can be had again, in parts. */
	test_cmd_region_destroy(self->fd, a);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, MEMLOCK_PAGES - 56, 0,
			       &a);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 56, 0, &b);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	test_cmd_region_destroy(self->fd, b);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 57, 0);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 56, 0, &b);
}

/* They count as their pages do, whatever becomes of them. */
TEST_F(memlock, superpages_count_as_pages)
{
	struct p2m_collapse collapse = { .size = sizeof(collapse), .nr_pages = 512 };
	struct snapshot snap;
	__u64 base;

	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_SUPERPAGE,
			       MEMLOCK_PAGES + 1, 0);
	test_cmd_region_create(self->fd, P2M_POLICY_SUPERPAGE, MEMLOCK_PAGES, 0,
			       &base);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	/* There are more frames for a moment only. */
	test_cmd_release(self->fd, base + 5, 7);
	test_cmd_populate(self->fd, base, 512);
	collapse.start_pfn = base;
	ASSERT_EQ(0, ioctl(self->fd, P2M_COLLAPSE, &collapse));
	EXPECT_EQ(1, collapse.out_superpages);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	test_cmd_region_destroy(self->fd, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, MEMLOCK_PAGES, 0, &base);
}

TEST_F(memlock, counts_the_user_not_the_descriptor)
{
	int other = p2m_open();
	__u64 base;

	ASSERT_LE(0, other);
	test_cmd_region_create(other, P2M_POLICY_ANY, MEMLOCK_PAGES - 10, 0,
			       &base);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 11, 0);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 10, 0, &base);
	/* The end of a domain gives back all of its share. */
	ASSERT_EQ(0, close(other));
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, MEMLOCK_PAGES - 10, 0,
			       &base);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
}

TEST_F(memlock, refused_region_is_not_counted)
{
	__u64 base;
	int i;

	/* Each of these fails after or before the limit was looked at. */
	for (i = 0; i < 20; i++) {
		test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY,
				       MEMLOCK_PAGES + 1, 0);
		test_err_region_create(EINVAL, self->fd, P2M_POLICY_ANY, 100,
				       1);
	}
	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0, 0);
	for (i = 0; i < 20; i++) {
		test_err_region_create_fixed(EEXIST, self->fd, P2M_POLICY_ANY,
					     100, 0, 0);
	}
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, MEMLOCK_PAGES - 1, 0,
			       &base);
}

TEST_F(memlock, holds_for_plain_mappings)
{
	char *mem = map_pages(self->fd, 0, MEMLOCK_PAGES + 1);

	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(ENOMEM, errno);
	mem = map_pages(self->fd, 0, MEMLOCK_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(0, touch_write(mem, 1));
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	/* As long as it's mapped it counts. */
	ASSERT_EQ(0, close(self->fd));
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	test_err_region_create(ENOMEM, self->fd, P2M_POLICY_ANY, 1, 0);
	ASSERT_EQ(0, munmap(mem, MEMLOCK_PAGES * P2M_PAGE_SIZE));
	mem = map_pages(self->fd, 0, MEMLOCK_PAGES);
	ASSERT_NE(MAP_FAILED, mem);
}

/* A control group of its own, with less memory than the test asks for. */
#define CGROUP_MIB 32ULL
#define MIB_PAGES 256ULL

FIXTURE(cgroup)
{
	char root[256];
	char dir[300];
	bool mounted;
	bool made;
	__u64 total_pages;
};

/* Finds a mounted cgroup2, or mounts one. */
static bool find_cgroup2(char *root, size_t len, bool *mounted)
{
	char line[1024], where[256], type[64];
	FILE *mounts = fopen("/proc/mounts", "r");
	bool found = false;

	*mounted = false;
	while (!found && mounts && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %255s %63s", where, type) == 2 &&
		    !strcmp(type, "cgroup2")) {
			snprintf(root, len, "%s", where);
			found = true;
		}
	}
	if (mounts)
		fclose(mounts);
	if (found)
		return true;
	snprintf(root, len, "/tmp/p2m-cgroup-XXXXXX");
	if (!mkdtemp(root) || mount("none", root, "cgroup2", 0, NULL))
		return false;
	*mounted = true;
	return true;
}

FIXTURE_SETUP(cgroup)
{
	char path[400], text[32];

	if (access(P2M_DEVICE, F_OK))
		SKIP(return, "no " P2M_DEVICE);
	if (geteuid())
		SKIP(return, "must be root to make a control group");
	if (!find_cgroup2(self->root, sizeof(self->root), &self->mounted))
		SKIP(return, "no control groups, version 2");
	self->total_pages = total_pages();
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", self->root);
	write_text(path, "+memory");
	snprintf(self->dir, sizeof(self->dir), "%s/p2m-test", self->root);
	ASSERT_EQ(0, mkdir(self->dir, 0755));
	self->made = true;
	snprintf(path, sizeof(path), "%s/memory.max", self->dir);
	snprintf(text, sizeof(text), "%llu", CGROUP_MIB << 20);
	if (!write_text(path, text))
		SKIP(return, "no memory controller");
	snprintf(path, sizeof(path), "%s/cgroup.procs", self->dir);
	ASSERT_TRUE(write_text(path, "0"));
}

FIXTURE_TEARDOWN_PARENT(cgroup)
{
	int i;

	if (self->made) {
		EXPECT_EQ(self->total_pages, total_pages());
		/* A process that has just ended may still be in it. */
		for (i = 0; i < 100 && rmdir(self->dir); i++)
			usleep(10000);
		EXPECT_NE(0, access(self->dir, F_OK));
	}
	if (self->mounted) {
		EXPECT_EQ(0, umount(self->root));
		EXPECT_EQ(0, rmdir(self->root));
	}
}

static __u64 cgroup_number(const FIXTURE_DATA(cgroup) * self, const char *file,
			   const char *name)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", self->dir, file);
	return file_number(path, name);
}

TEST_F_TIMEOUT(cgroup, more_than_the_group_may_have_is_ENOMEM, 45)
{
	const __u64 kills = nr_oom_kills();
	struct snapshot snap;
	__u64 base;
	int fd, i;

	fd = p2m_open();
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, snapshot_take(fd, &snap));
	for (i = 0; i < 3; i++) {
		test_err_region_create(ENOMEM, fd, P2M_POLICY_ANY,
				       2 * CGROUP_MIB * MIB_PAGES, 0);
	}
	test_err_region_create(ENOMEM, fd, P2M_POLICY_SCATTER,
			       2 * CGROUP_MIB * MIB_PAGES, 0);
	EXPECT_TRUE(snapshot_is_current(fd, &snap));
	EXPECT_EQ(0, cgroup_number(self, "memory.events", "oom_kill"));
	EXPECT_EQ(kills, nr_oom_kills());
	/* The group can still have what it may have. */
	test_cmd_region_create(fd, P2M_POLICY_ANY, CGROUP_MIB / 2 * MIB_PAGES,
			       0, &base);
	ASSERT_EQ(0, close(fd));
}

static void expect_charged(struct __test_metadata *_metadata,
			   const FIXTURE_DATA(cgroup) * self, int fd,
			   __u32 policy, __u64 pages)
{
	/* Tables, and what each processor keeps in stock. */
	const __u64 noise = 2 << 20;
	__u64 before, between, after, base;

	before = cgroup_number(self, "memory.current", NULL);
	test_cmd_region_create(fd, policy, pages, 0, &base);
	between = cgroup_number(self, "memory.current", NULL);
	test_cmd_region_destroy(fd, base);
	after = cgroup_number(self, "memory.current", NULL);
	EXPECT_LE(before + pages * P2M_PAGE_SIZE, between + noise)
		TH_LOG("policy %u: %llu before, %llu with", policy, before,
		       between);
	EXPECT_LE(after, before + noise)
		TH_LOG("policy %u: %llu before, %llu after", policy, before,
		       after);
}

TEST_F(cgroup, pages_are_charged_to_it)
{
	int fd = p2m_open();

	ASSERT_LE(0, fd);
	expect_charged(_metadata, self, fd, P2M_POLICY_ANY, 16 * MIB_PAGES);
	expect_charged(_metadata, self, fd, P2M_POLICY_SCATTER, 16 * MIB_PAGES);
	expect_charged(_metadata, self, fd, P2M_POLICY_SUPERPAGE, 16 * MIB_PAGES);
	ASSERT_EQ(0, close(fd));
}

/* Those that the group has no room for aren't had, and nobody dies for them. */
TEST_F_TIMEOUT(cgroup, superpages_are_limited_by_it, 45)
{
	const __u64 kills = nr_oom_kills();
	struct snapshot snap;
	__u64 base = 0;
	int fd;

	fd = p2m_open();
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, snapshot_take(fd, &snap));
	/* There is memory, but none for it. */
	EXPECT_ERRNO(EADDRNOTAVAIL,
		     _test_cmd_region_create(fd, 0, P2M_POLICY_SUPERPAGE,
					     2 * CGROUP_MIB * MIB_PAGES, 0,
					     &base));
	EXPECT_TRUE(snapshot_is_current(fd, &snap));
	EXPECT_EQ(0, cgroup_number(self, "memory.events", "oom_kill"));
	EXPECT_EQ(kills, nr_oom_kills());
	test_cmd_region_create(fd, P2M_POLICY_SUPERPAGE,
			       CGROUP_MIB / 2 * MIB_PAGES, 0, &base);
	ASSERT_EQ(0, close(fd));
}

/* Tables cost much more than pages where pages are far from each other. */
TEST_F(cgroup, tables_are_charged_to_it)
{
	const __u64 nr = 2048;
	__u64 before, after, tables, pfn;
	struct p2m_stat stat;
	int fd;

	before = cgroup_number(self, "memory.current", NULL);
	fd = p2m_open();
	ASSERT_LE(0, fd);
	for (pfn = 0; pfn < nr; pfn++) {
		test_cmd_region_create_fixed(fd, P2M_POLICY_ANY, 1, 0,
					     pfn * 512);
	}
	test_cmd_stat(fd, &stat);
	tables = stat.out_p2m_tables + stat.out_m2p_tables;
	ASSERT_LE(nr, tables);
	after = cgroup_number(self, "memory.current", NULL);
	/* Each processor has a few in stock. */
	EXPECT_LE(before + (nr + tables) * P2M_PAGE_SIZE, after + (1 << 20))
		TH_LOG("%llu tables, %llu bytes before, %llu with", tables,
		       before, after);
	ASSERT_EQ(0, close(fd));
}

TEST_F(cgroup, machine_run_is_charged_to_it)
{
	__u64 base = 0;
	int fd = p2m_open();

	/* The longest that the page allocator has; longer ones it can't charge. */
	ASSERT_LE(0, fd);
	if (_test_cmd_region_create(fd, 0, P2M_POLICY_CONTIGUOUS, 4 * MIB_PAGES,
				    0, &base))
		SKIP(return, "no machine run of this length is free");
	test_cmd_region_destroy(fd, base);
	expect_charged(_metadata, self, fd, P2M_POLICY_CONTIGUOUS,
		       4 * MIB_PAGES);
	ASSERT_EQ(0, close(fd));
}

/*
 * The module's own limits, as module parameters set them. The module is loaded
 * again for each test, so nobody else may use it.
 */
FIXTURE(module)
{
	int fd;
	bool reloaded;
};

FIXTURE_VARIANT(module)
{
	const char *params;
	__u64 max_pages;
	__u64 max_domain_pages;
	__u32 max_regions;
	__u32 default_policy;
};

FIXTURE_VARIANT_ADD(module, tight)
{
	.params = "max_pages=4096 max_domain_pages=1000 max_regions=3 default_policy=1",
	.max_pages = 4096,
	.max_domain_pages = 1000,
	.max_regions = 3,
	.default_policy = P2M_POLICY_SCATTER,
};

FIXTURE_VARIANT_ADD(module, tighter)
{
	.params = "max_pages=10 max_domain_pages=8 max_regions=1 default_policy=2",
	.max_pages = 10,
	.max_domain_pages = 8,
	.max_regions = 1,
	.default_policy = P2M_POLICY_CONTIGUOUS,
};

FIXTURE_VARIANT_ADD(module, one_domain_may_have_all)
{
	.params = "max_pages=600 max_domain_pages=600 max_regions=2 default_policy=0",
	.max_pages = 600,
	.max_domain_pages = 600,
	.max_regions = 2,
	.default_policy = P2M_POLICY_ANY,
};

FIXTURE_SETUP(module)
{
	if (!module_can_reload())
		SKIP(return, "P2M_KO names no module to load");
	if (module_reload(variant->params)) {
		ASSERT_TRUE(errno == EBUSY || errno == EAGAIN);
		SKIP(return, "the module is in use");
	}
	self->reloaded = true;
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN_PARENT(module)
{
	if (self->reloaded) {
		EXPECT_EQ(0, module_restore());
	}
}

TEST_F(module, parameters_are_told)
{
	struct p2m_info info;

	test_cmd_info(self->fd, &info);
	EXPECT_EQ(variant->max_pages, info.out_max_total_pages);
	EXPECT_EQ(variant->max_domain_pages, info.out_max_domain_pages);
	EXPECT_EQ(variant->max_regions, info.out_max_regions);
	EXPECT_EQ(variant->default_policy, info.out_default_policy);
}

TEST_F(module, default_policy_is_that_of_plain_mappings)
{
	struct p2m_region region;
	char *mem = map_pages(self->fd, 0, 8);

	ASSERT_NE(MAP_FAILED, mem);
	test_cmd_region_list(self->fd, 0, &region, 1, NULL, NULL);
	EXPECT_EQ(variant->default_policy, region.policy);
	EXPECT_EQ(8, region.nr_pages);
}

TEST_F(module, more_pages_than_a_domain_may_have_is_EDQUOT)
{
	const __u64 most = variant->max_domain_pages;
	struct snapshot snap;
	__u64 base;
	char *mem;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, most + 1, 0);
	mem = map_pages(self->fd, 0, most + 1);
	EXPECT_EQ(MAP_FAILED, mem);
	EXPECT_EQ(EDQUOT, errno);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));

	test_cmd_region_create(self->fd, P2M_POLICY_ANY, most, 0, &base);
	if (variant->max_regions > 1) {
		ASSERT_EQ(0, snapshot_take(self->fd, &snap));
		test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
		EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	}
	test_cmd_region_destroy(self->fd, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, most, 0, &base);
}

TEST_F(module, more_regions_than_a_domain_may_have_is_EDQUOT)
{
	struct snapshot snap;
	__u64 base;
	__u32 i;

	for (i = 0; i < variant->max_regions; i++)
		test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	test_cmd_region_destroy(self->fd, base);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
	test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
}

TEST_F(module, more_pages_than_all_may_have_is_EDQUOT)
{
	__u64 left = variant->max_pages, base, nr;
	int fds[16], nr_fds = 0, other;
	struct snapshot snap;

	/* Fill it up, one domain after the other. */
	while (left) {
		ASSERT_GT(ARRAY_LEN(fds), nr_fds);
		nr = left < variant->max_domain_pages ?
			     left : variant->max_domain_pages;
		fds[nr_fds] = p2m_open();
		ASSERT_LE(0, fds[nr_fds]);
		test_cmd_region_create(fds[nr_fds++], P2M_POLICY_ANY, nr, 0,
				       &base);
		left -= nr;
	}
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EDQUOT, self->fd, P2M_POLICY_ANY, 1, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	/* Destroy makes room, and the end of a domain does. */
	test_cmd_region_destroy(fds[0], 0);
	test_cmd_region_create(self->fd, P2M_POLICY_ANY, 1, 0, &base);
	nr = variant->max_domain_pages;
	if (nr > 1) {
		test_err_region_create(EDQUOT, fds[0], P2M_POLICY_ANY, nr, 0);
		test_cmd_region_create(fds[0], P2M_POLICY_ANY, nr - 1, 0,
				       &base);
	}
	ASSERT_EQ(0, close(fds[0]));
	other = p2m_open();
	ASSERT_LE(0, other);
	test_cmd_region_create(other, P2M_POLICY_ANY, nr - 1, 0, &base);
	ASSERT_EQ(0, close(other));
	while (--nr_fds > 0) {
		ASSERT_EQ(0, close(fds[nr_fds]));
	}
	EXPECT_EQ(1, total_pages());
}

TEST_F(module, in_use_cannot_be_unloaded)
{
	void *mem;

	/* An open descriptor. */
	EXPECT_EQ(-1, module_unload());
	EXPECT_TRUE(errno == EBUSY || errno == EAGAIN);
	/* A mapping alone, of memory and of a view. */
	mem = map_pages(self->fd, 0, 4);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ(0, touch_write(mem, 1));
	ASSERT_EQ(0, close(self->fd));
	EXPECT_EQ(-1, module_unload());
	EXPECT_TRUE(errno == EBUSY || errno == EAGAIN);
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, munmap(mem, 4 * P2M_PAGE_SIZE));
	mem = map_window(self->fd, P2M_OFFSET_P2M, P2M_PAGE_SIZE);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, close(self->fd));
	EXPECT_EQ(-1, module_unload());
	EXPECT_TRUE(errno == EBUSY || errno == EAGAIN);
	ASSERT_EQ(0, munmap(mem, P2M_PAGE_SIZE));
	/* Unused it can. */
	EXPECT_EQ(0, module_unload());
	EXPECT_NE(0, access(P2M_DEVICE, F_OK));
	EXPECT_EQ(0, module_load(variant->params));
	EXPECT_EQ(0, access(P2M_DEVICE, F_OK));
}

/* With limits out of the way. */
FIXTURE(machine)
{
	int fd;
	bool reloaded;
};

FIXTURE_SETUP(machine)
{
	if (!module_can_reload())
		SKIP(return, "P2M_KO names no module to load");
	if (module_reload("max_pages=2147483648 max_domain_pages=2147483648")) {
		ASSERT_TRUE(errno == EBUSY || errno == EAGAIN);
		SKIP(return, "the module is in use");
	}
	self->reloaded = true;
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN_PARENT(machine)
{
	if (self->reloaded) {
		EXPECT_EQ(0, total_pages());
		EXPECT_EQ(0, module_restore());
	}
}

TEST_F(machine, no_hole_of_this_size_is_ENOSPC)
{
	struct snapshot snap;

	test_cmd_region_create_fixed(self->fd, P2M_POLICY_ANY, 1, 0,
				     P2M_MAX_PFN / 2);
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(ENOSPC, self->fd, P2M_POLICY_ANY,
			       P2M_MAX_PFN / 2 + 1, 0);
	/* Both halves would be enough, but it must be one. */
	test_err_region_create(ENOSPC, self->fd, P2M_POLICY_ANY,
			       P2M_MAX_PFN - 1, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

TEST_F(machine, longer_than_the_space_is_EOVERFLOW)
{
	struct snapshot snap;

	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	test_err_region_create(EOVERFLOW, self->fd, P2M_POLICY_ANY,
			       P2M_MAX_PFN + 1, 0);
	test_err_region_create(EOVERFLOW, self->fd, P2M_POLICY_ANY, ~0ULL, 0);
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
}

FIXTURE(exhaustion)
{
	int fd;
	bool reloaded;
};

FIXTURE_VARIANT(exhaustion)
{
	__u32 policy;
};

FIXTURE_VARIANT_ADD(exhaustion, any) { .policy = P2M_POLICY_ANY };
FIXTURE_VARIANT_ADD(exhaustion, scatter) { .policy = P2M_POLICY_SCATTER };
FIXTURE_VARIANT_ADD(exhaustion, contiguous) { .policy = P2M_POLICY_CONTIGUOUS };

FIXTURE_SETUP(exhaustion)
{
	machine_setup(_metadata, (FIXTURE_DATA(machine) *)self, NULL);
}

FIXTURE_TEARDOWN_PARENT(exhaustion)
{
	machine_teardown(_metadata, (FIXTURE_DATA(machine) *)self, NULL);
}

/* This is for a small guest: it takes all of its memory for a moment. */
TEST_F_TIMEOUT(exhaustion, more_than_the_machine_has_is_ENOMEM, 120)
{
	const __u64 nr = meminfo_kib("MemTotal") / 4 * 5 / 4;
	const __u64 noise_kib = 64 * 1024;
	__u64 kills = nr_oom_kills(), before, after, base = 0;
	struct snapshot snap;
	int ret;

	if (meminfo_kib("MemTotal") > 4ULL << 20)
		SKIP(return, "too much memory to use all of it");
	ASSERT_EQ(0, snapshot_take(self->fd, &snap));
	before = meminfo_kib("MemAvailable");
	ret = _test_cmd_region_create(self->fd, 0, variant->policy, nr, 0,
				      &base);
	ASSERT_EQ(-1, ret);
	if (variant->policy == P2M_POLICY_CONTIGUOUS) {
		EXPECT_TRUE(errno == ENOMEM || errno == EADDRNOTAVAIL);
	} else {
		EXPECT_EQ(ENOMEM, errno);
	}
	after = meminfo_kib("MemAvailable");
	EXPECT_EQ(kills, nr_oom_kills());
	EXPECT_TRUE(snapshot_is_current(self->fd, &snap));
	EXPECT_LE(before, after + noise_kib)
		TH_LOG("%llu KiB before, %llu KiB after", before, after);
	test_cmd_region_create(self->fd, variant->policy, 1, 0, &base);
}

/* Piece by piece, until there's no more. */
TEST_F_TIMEOUT(exhaustion, last_piece_of_memory_is_not_taken, 120)
{
	const __u64 piece = variant->policy == P2M_POLICY_CONTIGUOUS ? 512 : 4096;
	const __u64 noise_kib = 64 * 1024;
	__u64 kills = nr_oom_kills(), before, after = 0, base, got = 0;
	unsigned int tries;

	if (meminfo_kib("MemTotal") > 4ULL << 20)
		SKIP(return, "too much memory to use all of it");
	before = meminfo_kib("MemAvailable");
	for (;;) {
		base = 0;
		if (_test_cmd_region_create(self->fd, 0, variant->policy, piece,
					    0, &base))
			break;
		got += piece * 4;
		ASSERT_GT(meminfo_kib("MemTotal"), got);
	}
	if (variant->policy == P2M_POLICY_CONTIGUOUS) {
		EXPECT_TRUE(errno == ENOMEM || errno == EADDRNOTAVAIL);
	} else {
		EXPECT_EQ(ENOMEM, errno);
		/* Nearly all of it could be had. */
		EXPECT_LE(before / 4 * 3, got);
	}
	EXPECT_EQ(kills, nr_oom_kills());
	ASSERT_EQ(0, close(self->fd));
	/* What processors keep in stock comes back by and by. */
	for (tries = 0; tries < 300; tries++) {
		after = meminfo_kib("MemAvailable");
		if (before <= after + noise_kib)
			break;
		usleep(100000);
	}
	EXPECT_LE(before, after + noise_kib)
		TH_LOG("%llu KiB before, %llu KiB after", before, after);
	EXPECT_EQ(0, total_pages());
	self->fd = p2m_open();
	ASSERT_LE(0, self->fd);
}

TEST_HARNESS_MAIN
