/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of /dev/p2m share.
 *
 * Every command has a function _test_cmd_x() that returns what ioctl() returns,
 * and two macros over it: test_cmd_x() asserts success, test_err_x(errno, ...)
 * asserts one particular failure.
 */
#ifndef P2M_UTIL_H
#define P2M_UTIL_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

#include <p2m.h>

#define P2M_PAGE_SIZE 4096UL
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* A user without rights that nothing else in a test system uses. */
#define NOBODY_UID 54321

/* The device: -1 and errno if there is none. */
int p2m_open(void);
/* Opens as NOBODY_UID, without CAP_SYS_ADMIN; the caller stays who it is. */
int p2m_open_unprivileged(void);
/* For good: NOBODY_UID and no capabilities. */
int drop_privileges(void);
/* For good, too: integrity or confidentiality. */
bool can_lock_down(void);
int lock_down(const char *level);

/* The commands. */
int _test_cmd_info(int fd, struct p2m_info *info);
int _test_cmd_stat(int fd, struct p2m_stat *stat);
int _test_cmd_region_create(int fd, __u32 flags, __u32 policy, __u64 nr_pages,
			    __u64 seed, __u64 *base_pfn);
int _test_cmd_region_destroy(int fd, __u64 base_pfn);
int _test_cmd_region_list(int fd, __u64 start_pfn, struct p2m_region *regions,
			  __u32 nr, __u32 *out_nr, __u64 *out_total);
int _test_cmd_translate(int fd, __u32 flags, const __u64 *frames,
			__u64 *entries, __u32 nr);
int _test_cmd_runs(int fd, __u64 start_pfn, __u64 nr_pages,
		   struct p2m_run *runs, __u32 nr, __u32 *out_nr,
		   __u64 *out_next_pfn);

/* What these report is in the structure, also after an error. */
int _test_cmd_create_by(int fd, struct p2m_region_create *cmd);
int _test_cmd_release(int fd, __u64 start_pfn, __u64 nr_pages,
		      struct p2m_release *cmd);
int _test_cmd_populate(int fd, __u64 start_pfn, __u64 nr_pages,
		       struct p2m_populate *cmd);
int _test_cmd_move(int fd, __u64 start_pfn, __u64 nr_pages, __u32 policy,
		   __u64 seed, struct p2m_move *cmd);
int _test_cmd_evacuate(int fd, __u32 flags, __u64 start_mfn,
		       __u64 nr_frames, struct p2m_evacuate *cmd);
int _test_cmd_contiguous(int fd, __u64 start_pfn, __u32 order,
			 __u32 address_bits, struct p2m_contiguous *cmd);
int _test_cmd_exchange(int fd, __u64 a_pfn, __u64 b_pfn, __u64 nr_pages,
		       struct p2m_exchange *cmd);
int _test_cmd_audit(int fd, struct p2m_audit *cmd);
int _test_cmd_guard_check(int fd, __u32 flags, __u64 start_pfn,
			  __u64 nr_pages, struct p2m_guard_check *cmd);
int _test_cmd_foreign_map(int fd, int lender, __u64 start_pfn,
			  const __u64 *frames, __s32 *errors, __u32 nr,
			  __u32 *out_nr);
int _test_cmd_foreign_unmap(int fd, __u64 start_pfn, __s32 *errors, __u32 nr,
			    __u32 *out_nr);
int _test_cmd_identity(int fd, __u64 start_pfn, __u64 nr_pages);
int _test_cmd_space_create(int fd, const char *backend, __u32 nr_levels,
			   __u64 pool_pfn, __u64 pool_pages,
			   struct p2m_space_create *cmd);
/* True if an audit finds nothing wrong. */
bool audit_is_clean(int fd, struct p2m_audit *audit);

#define EXPECT_ERRNO(expected_errno, cmd)         \
	({                                        \
		ASSERT_EQ(-1, cmd);               \
		EXPECT_EQ(expected_errno, errno); \
	})

#define test_cmd_info(fd, info) ASSERT_EQ(0, _test_cmd_info(fd, info))
#define test_cmd_stat(fd, stat) ASSERT_EQ(0, _test_cmd_stat(fd, stat))

#define test_cmd_region_create(fd, policy, nr_pages, seed, base_pfn)          \
	({                                                                    \
		*(base_pfn) = 0;                                              \
		ASSERT_EQ(0, _test_cmd_region_create(fd, 0, policy, nr_pages, \
						     seed, base_pfn));        \
	})
#define test_err_region_create(err, fd, policy, nr_pages, seed)              \
	({                                                                   \
		__u64 __base = 0;                                            \
		EXPECT_ERRNO(err, _test_cmd_region_create(fd, 0, policy,     \
							  nr_pages, seed,    \
							  &__base));         \
	})
#define test_cmd_region_create_fixed(fd, policy, nr_pages, seed, base_pfn)    \
	({                                                                    \
		__u64 __base = (base_pfn);                                    \
		ASSERT_EQ(0, _test_cmd_region_create(fd, P2M_REGION_FIXED,    \
						     policy, nr_pages, seed,  \
						     &__base));               \
		ASSERT_EQ((__u64)(base_pfn), __base);                         \
	})
#define test_err_region_create_fixed(err, fd, policy, nr_pages, seed, base_pfn) \
	({                                                                      \
		__u64 __base = (base_pfn);                                      \
		EXPECT_ERRNO(err, _test_cmd_region_create(fd, P2M_REGION_FIXED, \
							  policy, nr_pages,     \
							  seed, &__base));      \
	})
#define test_cmd_region_destroy(fd, base_pfn) \
	ASSERT_EQ(0, _test_cmd_region_destroy(fd, base_pfn))
#define test_err_region_destroy(err, fd, base_pfn) \
	EXPECT_ERRNO(err, _test_cmd_region_destroy(fd, base_pfn))

#define test_cmd_region_list(fd, start_pfn, regions, nr, out_nr, out_total)   \
	ASSERT_EQ(0, _test_cmd_region_list(fd, start_pfn, regions, nr, out_nr, \
					   out_total))
#define test_err_region_list(err, fd, start_pfn, regions, nr)                \
	EXPECT_ERRNO(err, _test_cmd_region_list(fd, start_pfn, regions, nr,  \
						NULL, NULL))

#define test_cmd_translate(fd, flags, frames, entries, nr) \
	ASSERT_EQ(0, _test_cmd_translate(fd, flags, frames, entries, nr))
#define test_err_translate(err, fd, flags, frames, entries, nr) \
	EXPECT_ERRNO(err, _test_cmd_translate(fd, flags, frames, entries, nr))

#define test_cmd_runs(fd, start_pfn, nr_pages, runs, nr, out_nr, out_next)   \
	ASSERT_EQ(0, _test_cmd_runs(fd, start_pfn, nr_pages, runs, nr,       \
				    out_nr, out_next))
#define test_err_runs(err, fd, start_pfn, nr_pages, runs, nr)                \
	EXPECT_ERRNO(err, _test_cmd_runs(fd, start_pfn, nr_pages, runs, nr,  \
					 NULL, NULL))

/* Each is an expression: the structure as the kernel left it. */
#define TEST_CMD(type, func, ...)                         \
	({                                                \
		struct type __cmd;                        \
		ASSERT_EQ(0, func(__VA_ARGS__, &__cmd));  \
		__cmd;                                    \
	})
#define TEST_ERR(err, type, func, ...)                    \
	({                                                \
		struct type __cmd;                        \
		EXPECT_ERRNO(err, func(__VA_ARGS__, &__cmd)); \
		__cmd;                                    \
	})

#define test_cmd_create_by(fd, cmd) ASSERT_EQ(0, _test_cmd_create_by(fd, cmd))
#define test_err_create_by(err, fd, cmd) \
	EXPECT_ERRNO(err, _test_cmd_create_by(fd, cmd))
#define test_cmd_release(...) \
	TEST_CMD(p2m_release, _test_cmd_release, __VA_ARGS__)
#define test_err_release(err, ...) \
	TEST_ERR(err, p2m_release, _test_cmd_release, __VA_ARGS__)
#define test_cmd_populate(...) \
	TEST_CMD(p2m_populate, _test_cmd_populate, __VA_ARGS__)
#define test_err_populate(err, ...) \
	TEST_ERR(err, p2m_populate, _test_cmd_populate, __VA_ARGS__)
#define test_cmd_move(...) TEST_CMD(p2m_move, _test_cmd_move, __VA_ARGS__)
#define test_err_move(err, ...) \
	TEST_ERR(err, p2m_move, _test_cmd_move, __VA_ARGS__)
#define test_cmd_evacuate(...) \
	TEST_CMD(p2m_evacuate, _test_cmd_evacuate, __VA_ARGS__)
#define test_err_evacuate(err, ...) \
	TEST_ERR(err, p2m_evacuate, _test_cmd_evacuate, __VA_ARGS__)
#define test_cmd_contiguous(...) \
	TEST_CMD(p2m_contiguous, _test_cmd_contiguous, __VA_ARGS__)
#define test_err_contiguous(err, ...) \
	TEST_ERR(err, p2m_contiguous, _test_cmd_contiguous, __VA_ARGS__)
#define test_cmd_exchange(...) \
	TEST_CMD(p2m_exchange, _test_cmd_exchange, __VA_ARGS__)
#define test_err_exchange(err, ...) \
	TEST_ERR(err, p2m_exchange, _test_cmd_exchange, __VA_ARGS__)
#define test_cmd_audit(...) TEST_CMD(p2m_audit, _test_cmd_audit, __VA_ARGS__)
#define test_cmd_guard_check(...) \
	TEST_CMD(p2m_guard_check, _test_cmd_guard_check, __VA_ARGS__)
#define test_err_guard_check(err, ...) \
	TEST_ERR(err, p2m_guard_check, _test_cmd_guard_check, __VA_ARGS__)
#define test_cmd_space_create(...) \
	TEST_CMD(p2m_space_create, _test_cmd_space_create, __VA_ARGS__)
#define test_err_space_create(err, ...) \
	TEST_ERR(err, p2m_space_create, _test_cmd_space_create, __VA_ARGS__)

/*
 * Single frames. One that has none, or a call that fails, is
 * P2M_ENTRY_INVALID.
 */
__u64 pfn_to_entry(int fd, __u64 pfn);
__u64 mfn_to_pfn(int fd, __u64 mfn);
/* The entries of a range, to be freed; NULL and errno on failure. */
__u64 *range_to_entries(int fd, __u64 pfn, __u64 nr_pages);

/* What all domains have together; ~0 if it can't be found out. */
__u64 total_pages(void);

/* A mapping of the pages at a PFN: shared, readable and writable. */
void *map_pages(int fd, __u64 pfn, __u64 nr_pages);
void *map_window(int fd, __u64 offset, size_t len);

/*
 * The regions of a domain and how many pages it has: what a command that fails
 * must leave alone.
 */
struct snapshot {
	struct p2m_stat stat;
	struct p2m_region *regions;
};
int snapshot_take(int fd, struct snapshot *snap);
/* True if nothing has changed since. Frees the snapshot. */
bool snapshot_is_current(int fd, struct snapshot *snap);

/*
 * A page's content that is like no other's: a function of @tag, which differs
 * in every word.
 */
void page_fill(void *page, __u64 tag);
bool page_matches(const void *page, __u64 tag);
/* The index of the first byte that isn't zero, or @len. */
size_t first_nonzero(const void *mem, size_t len);

/* 0, or the number of the signal that the access raised. */
int touch_read(const volatile void *addr);
int touch_write(volatile void *addr, unsigned char value);

/* The machine frame behind an address as the kernel itself reports it. */
int pagemap_open(void);
/* P2M_ENTRY_INVALID if nothing is mapped there. */
__u64 pagemap_mfn(int pagemap, const void *addr);

/* Machine memory, through the direct map as /proc/kcore shows it. */
struct kcore;
struct kcore *kcore_open(void);
int kcore_read_page(const struct kcore *kcore, __u64 mfn, void *page);
void kcore_close(struct kcore *kcore);

/* A field of /proc/meminfo in KiB, ~0 if it isn't there. */
__u64 meminfo_kib(const char *field);

/*
 * The first of @nr frames, a power of two and aligned as much, with that of a page;
 * P2M_ENTRY_INVALID if it has none.
 */
__u64 window_of(int fd, __u64 pfn, __u64 nr);
/* No frame is kept out of afterwards. */
void readmit_all(int fd);

/*
 * A virtual machine in real mode, the memory of which is @len bytes at @mem. False
 * if there is none: with a reason if there can be none here.
 */
struct kvm_guest {
	int kvm, vm, vcpu, size;
	struct kvm_run *run;
};
bool kvm_guest_open(struct kvm_guest *guest, void *mem, size_t len,
		    const char **reason);
/* Runs from an address until it halts; false if it doesn't. */
bool kvm_guest_run(struct kvm_guest *guest, __u64 address);
bool kvm_guest_close(struct kvm_guest *guest);

/*
 * One that runs in a thread of its own, in the first MACHINE_LEN bytes of memory:
 * each run increments the word that begins each of some pages, again and again.
 */
#define MACHINE_LEN (16 * P2M_PAGE_SIZE)
struct machine {
	struct kvm_guest guest;
	pthread_t thread;
	char *mem;
	bool stop;
	bool has_failed;
	__u64 nr_done;
};
/* As kvm_guest_open(), and it has run at least once. */
bool machine_start(struct machine *machine, char *mem, const char **reason);
/* How often it has run. */
__u64 machine_runs(const struct machine *machine);
/* True if all went well, and all words are what they have to be. */
bool machine_stop(struct machine *machine);

/* A device for I/O that doesn't copy, of @len bytes or more; -1 if there's none. */
int open_loop_device(size_t len);

/* QEMU itself, which a guest can ask at a virtio port (qemu/guest --monitor). */
struct qemu {
	FILE *port;
};
/* False if there is none. */
bool qemu_open(struct qemu *qemu);
/* The answer to a QMP command, given without braces: to be freed; NULL if there is none. */
char *qemu_ask(struct qemu *qemu, const char *command);
/* A page of the machine, as QEMU has it. */
bool qemu_read(struct qemu *qemu, __u64 mfn, void *page);
void qemu_close(struct qemu *qemu);

/* Writes all of a text to a file that exists. Returns whether it did, or else sets errno. */
bool write_text(const char *path, const char *text);

__u64 now_ms(void);
/* How many times as long things may take as elsewhere: what run_tests.sh is told. */
int timeout_factor(void);
/* A pseudo-random sequence that is the same in every run. */
__u64 next_random(__u64 *state);

/*
 * Loads the module from $P2M_KO. module_reload() gives it other parameters;
 * module_restore() those that the environment names in $P2M_PARAMS.
 */
bool module_can_reload(void);
int module_unload(void);
int module_load(const char *params);
int module_reload(const char *params);
int module_restore(void);

#endif /* P2M_UTIL_H */
