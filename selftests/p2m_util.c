// SPDX-License-Identifier: GPL-2.0
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/kvm.h>
#include <linux/loop.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "p2m_util.h"

int p2m_open(void)
{
	return open(P2M_DEVICE, O_RDWR | O_CLOEXEC);
}

int p2m_open_unprivileged(void)
{
	int fd, saved_errno;

	/* An effective UID other than 0 has no effective capabilities. */
	if (seteuid(NOBODY_UID))
		return -1;
	fd = p2m_open();
	saved_errno = errno;
	if (seteuid(0))
		abort();
	errno = saved_errno;
	return fd;
}

int drop_privileges(void)
{
	if (setgroups(0, NULL) || setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID))
		return -1;
	if (setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID))
		return -1;
	/* Or /proc/self would stay root's. */
	return prctl(PR_SET_DUMPABLE, 1);
}

#define LOCKDOWN "/sys/kernel/security/lockdown"

bool can_lock_down(void)
{
	if (access(LOCKDOWN, F_OK))
		mount("none", "/sys/kernel/security", "securityfs", 0, NULL);
	return !access(LOCKDOWN, F_OK);
}

int lock_down(const char *level)
{
	int fd = open(LOCKDOWN, O_RDWR | O_CLOEXEC);
	char now[64] = "", wanted[32];
	ssize_t ret;

	if (fd < 0)
		return -1;
	ret = write(fd, level, strlen(level));
	/* The level that holds is in brackets. It's refused if it's held already. */
	snprintf(wanted, sizeof(wanted), "[%s]", level);
	if (pread(fd, now, sizeof(now) - 1, 0) < 0 || !strstr(now, wanted))
		ret = -1;
	close(fd);
	return ret < 0 && !strstr(now, wanted) ? -1 : 0;
}

int _test_cmd_info(int fd, struct p2m_info *info)
{
	*info = (struct p2m_info){ .size = sizeof(*info) };
	return ioctl(fd, P2M_INFO, info);
}

int _test_cmd_stat(int fd, struct p2m_stat *stat)
{
	*stat = (struct p2m_stat){ .size = sizeof(*stat) };
	return ioctl(fd, P2M_STAT, stat);
}

int _test_cmd_region_create(int fd, __u32 flags, __u32 policy, __u64 nr_pages,
			    __u64 seed, __u64 *base_pfn)
{
	struct p2m_region_create cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.policy = policy,
		.nr_pages = nr_pages,
		.seed = seed,
		.base_pfn = *base_pfn,
	};
	int ret = ioctl(fd, P2M_REGION_CREATE, &cmd);

	if (!ret)
		*base_pfn = cmd.base_pfn;
	return ret;
}

int _test_cmd_region_destroy(int fd, __u64 base_pfn)
{
	struct p2m_region_destroy cmd = {
		.size = sizeof(cmd),
		.base_pfn = base_pfn,
	};

	return ioctl(fd, P2M_REGION_DESTROY, &cmd);
}

int _test_cmd_region_list(int fd, __u64 start_pfn, struct p2m_region *regions,
			  __u32 nr, __u32 *out_nr, __u64 *out_total)
{
	struct p2m_region_list cmd = {
		.size = sizeof(cmd),
		.start_pfn = start_pfn,
		.regions = (uintptr_t)regions,
		.nr = nr,
	};
	int ret = ioctl(fd, P2M_REGION_LIST, &cmd);

	if (out_nr)
		*out_nr = cmd.out_nr;
	if (out_total)
		*out_total = cmd.out_total;
	return ret;
}

int _test_cmd_translate(int fd, __u32 flags, const __u64 *frames,
			__u64 *entries, __u32 nr)
{
	struct p2m_translate cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.nr = nr,
		.frames = (uintptr_t)frames,
		.entries = (uintptr_t)entries,
	};
	int ret = ioctl(fd, P2M_TRANSLATE, &cmd);

	/* Success is all of them. */
	if (!ret && cmd.out_nr != nr) {
		errno = EBADMSG;
		return -1;
	}
	return ret;
}

int _test_cmd_runs(int fd, __u64 start_pfn, __u64 nr_pages,
		   struct p2m_run *runs, __u32 nr, __u32 *out_nr,
		   __u64 *out_next_pfn)
{
	struct p2m_runs cmd = {
		.size = sizeof(cmd),
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
		.runs = (uintptr_t)runs,
		.nr = nr,
	};
	int ret = ioctl(fd, P2M_RUNS, &cmd);

	if (out_nr)
		*out_nr = cmd.out_nr;
	if (out_next_pfn)
		*out_next_pfn = cmd.out_next_pfn;
	return ret;
}

int _test_cmd_create_by(int fd, struct p2m_region_create *cmd)
{
	cmd->size = sizeof(*cmd);
	return ioctl(fd, P2M_REGION_CREATE, cmd);
}

int _test_cmd_release(int fd, __u64 start_pfn, __u64 nr_pages,
		      struct p2m_release *cmd)
{
	*cmd = (struct p2m_release){
		.size = sizeof(*cmd),
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
	};
	return ioctl(fd, P2M_RELEASE, cmd);
}

int _test_cmd_populate(int fd, __u64 start_pfn, __u64 nr_pages,
		       struct p2m_populate *cmd)
{
	*cmd = (struct p2m_populate){
		.size = sizeof(*cmd),
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
	};
	return ioctl(fd, P2M_POPULATE, cmd);
}

int _test_cmd_move(int fd, __u64 start_pfn, __u64 nr_pages, __u32 policy,
		   __u64 seed, struct p2m_move *cmd)
{
	*cmd = (struct p2m_move){
		.size = sizeof(*cmd),
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
		.policy = policy,
		.seed = seed,
	};
	return ioctl(fd, P2M_MOVE, cmd);
}

int _test_cmd_evacuate(int fd, __u32 flags, __u64 start_mfn,
		       __u64 nr_frames, struct p2m_evacuate *cmd)
{
	*cmd = (struct p2m_evacuate){
		.size = sizeof(*cmd),
		.flags = flags,
		.start_mfn = start_mfn,
		.nr_frames = nr_frames,
	};
	return ioctl(fd, P2M_EVACUATE, cmd);
}

int _test_cmd_contiguous(int fd, __u64 start_pfn, __u32 order,
			 __u32 address_bits, struct p2m_contiguous *cmd)
{
	*cmd = (struct p2m_contiguous){
		.size = sizeof(*cmd),
		.start_pfn = start_pfn,
		.order = order,
		.address_bits = address_bits,
	};
	return ioctl(fd, P2M_CONTIGUOUS, cmd);
}

int _test_cmd_exchange(int fd, __u64 a_pfn, __u64 b_pfn, __u64 nr_pages,
		       struct p2m_exchange *cmd)
{
	*cmd = (struct p2m_exchange){
		.size = sizeof(*cmd),
		.a_pfn = a_pfn,
		.b_pfn = b_pfn,
		.nr_pages = nr_pages,
	};
	return ioctl(fd, P2M_EXCHANGE, cmd);
}

int _test_cmd_audit(int fd, struct p2m_audit *cmd)
{
	*cmd = (struct p2m_audit){ .size = sizeof(*cmd) };
	return ioctl(fd, P2M_AUDIT, cmd);
}

int _test_cmd_guard_check(int fd, __u32 flags, __u64 start_pfn,
			  __u64 nr_pages, struct p2m_guard_check *cmd)
{
	*cmd = (struct p2m_guard_check){
		.size = sizeof(*cmd),
		.flags = flags,
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
	};
	return ioctl(fd, P2M_GUARD_CHECK, cmd);
}

int _test_cmd_foreign_map(int fd, int lender, __u64 start_pfn,
			  const __u64 *frames, __s32 *errors, __u32 nr,
			  __u32 *out_nr)
{
	struct p2m_foreign_map cmd = {
		.size = sizeof(cmd),
		.fd = lender,
		.nr = nr,
		.start_pfn = start_pfn,
		.frames = (uintptr_t)frames,
		.errors = (uintptr_t)errors,
	};
	int ret = ioctl(fd, P2M_FOREIGN_MAP, &cmd);

	*out_nr = cmd.out_nr;
	return ret;
}

int _test_cmd_foreign_unmap(int fd, __u64 start_pfn, __s32 *errors, __u32 nr,
			    __u32 *out_nr)
{
	struct p2m_foreign_unmap cmd = {
		.size = sizeof(cmd),
		.start_pfn = start_pfn,
		.errors = (uintptr_t)errors,
		.nr = nr,
	};
	int ret = ioctl(fd, P2M_FOREIGN_UNMAP, &cmd);

	*out_nr = cmd.out_nr;
	return ret;
}

int _test_cmd_identity(int fd, __u64 start_pfn, __u64 nr_pages)
{
	struct p2m_identity cmd = {
		.size = sizeof(cmd),
		.start_pfn = start_pfn,
		.nr_pages = nr_pages,
	};

	return ioctl(fd, P2M_IDENTITY, &cmd);
}

int _test_cmd_space_create(int fd, const char *backend, __u32 nr_levels,
			   __u64 pool_pfn, __u64 pool_pages,
			   struct p2m_space_create *cmd)
{
	*cmd = (struct p2m_space_create){
		.size = sizeof(*cmd),
		.nr_levels = nr_levels,
		.pool_pfn = pool_pfn,
		.pool_pages = pool_pages,
	};
	memcpy(cmd->backend, backend, strlen(backend));
	return ioctl(fd, P2M_SPACE_CREATE, cmd);
}

bool audit_is_clean(int fd, struct p2m_audit *audit)
{
	return !_test_cmd_audit(fd, audit) && !audit->out_p2m_bad &&
	       !audit->out_m2p_bad && !audit->out_orphans &&
	       !audit->out_refs_bad && !audit->out_spaces_bad &&
	       !audit->out_count_bad;
}

__u64 pfn_to_entry(int fd, __u64 pfn)
{
	__u64 entry = P2M_ENTRY_INVALID;

	if (_test_cmd_translate(fd, 0, &pfn, &entry, 1))
		return P2M_ENTRY_INVALID;
	return entry;
}

__u64 mfn_to_pfn(int fd, __u64 mfn)
{
	__u64 pfn = P2M_ENTRY_INVALID;

	if (_test_cmd_translate(fd, P2M_TRANSLATE_M2P, &mfn, &pfn, 1))
		return P2M_ENTRY_INVALID;
	return pfn;
}

__u64 *range_to_entries(int fd, __u64 pfn, __u64 nr_pages)
{
	__u64 *entries = calloc(nr_pages, sizeof(*entries));
	__u64 i;

	if (!entries)
		return NULL;
	for (i = 0; i < nr_pages; i++)
		entries[i] = pfn + i;
	if (_test_cmd_translate(fd, 0, entries, entries, nr_pages)) {
		free(entries);
		return NULL;
	}
	return entries;
}

__u64 total_pages(void)
{
	struct p2m_stat stat;
	int fd = p2m_open();
	int ret;

	if (fd < 0)
		return ~0ULL;
	ret = _test_cmd_stat(fd, &stat);
	close(fd);
	return ret ? ~0ULL : stat.out_total_pages;
}

void *map_window(int fd, __u64 offset, size_t len)
{
	return mmap(NULL, len, PROT_READ, MAP_SHARED, fd, offset);
}

void *map_pages(int fd, __u64 pfn, __u64 nr_pages)
{
	return mmap(NULL, nr_pages * P2M_PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_SHARED, fd, P2M_OFFSET_MEMORY + pfn * P2M_PAGE_SIZE);
}

static struct p2m_region *all_regions(int fd, __u64 *nr)
{
	struct p2m_region *regions;
	__u32 out_nr;

	if (_test_cmd_region_list(fd, 0, NULL, 0, NULL, nr))
		return NULL;
	/* Never an allocation of nothing. */
	regions = calloc(*nr + 1, sizeof(*regions));
	if (!regions)
		return NULL;
	if (_test_cmd_region_list(fd, 0, regions, *nr, &out_nr, NULL) ||
	    out_nr != *nr) {
		free(regions);
		return NULL;
	}
	return regions;
}

int snapshot_take(int fd, struct snapshot *snap)
{
	__u64 nr;

	if (_test_cmd_stat(fd, &snap->stat))
		return -1;
	snap->regions = all_regions(fd, &nr);
	if (!snap->regions || nr != snap->stat.out_regions)
		return -1;
	return 0;
}

bool snapshot_is_current(int fd, struct snapshot *snap)
{
	struct snapshot now;
	bool same;

	if (snapshot_take(fd, &now))
		return false;
	same = now.stat.out_regions == snap->stat.out_regions &&
	       now.stat.out_pages == snap->stat.out_pages &&
	       now.stat.out_total_pages == snap->stat.out_total_pages &&
	       now.stat.out_total_domains == snap->stat.out_total_domains &&
	       !memcmp(now.regions, snap->regions,
		       now.stat.out_regions * sizeof(*now.regions));
	free(now.regions);
	free(snap->regions);
	snap->regions = NULL;
	return same;
}

/* A finaliser of splitmix64: a bijection without visible structure. */
static __u64 mix(__u64 x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool is_good = fd >= 0 &&
		       write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int saved_errno = errno;

	if (fd >= 0)
		close(fd);
	errno = saved_errno;
	return is_good;
}

__u64 next_random(__u64 *state)
{
	*state += 0x9e3779b97f4a7c15ULL;
	return mix(*state);
}

void page_fill(void *page, __u64 tag)
{
	__u64 *word = page;
	size_t i;

	for (i = 0; i < P2M_PAGE_SIZE / sizeof(*word); i++)
		word[i] = mix(tag * 512 + i);
}

bool page_matches(const void *page, __u64 tag)
{
	const __u64 *word = page;
	size_t i;

	for (i = 0; i < P2M_PAGE_SIZE / sizeof(*word); i++)
		if (word[i] != mix(tag * 512 + i))
			return false;
	return true;
}

size_t first_nonzero(const void *mem, size_t len)
{
	const unsigned char *byte = mem;

	/* All bytes are zero if the first is and each equals the next one. */
	if (!len || (!byte[0] && !memcmp(byte, byte + 1, len - 1)))
		return len;
	while (!*byte)
		byte++;
	return byte - (const unsigned char *)mem;
}

static __thread sigjmp_buf touch_return;

static void touch_caught(int sig)
{
	siglongjmp(touch_return, sig);
}

static int touch(volatile unsigned char *addr, int value)
{
	struct sigaction action = { .sa_handler = touch_caught };
	struct sigaction old_bus, old_segv;
	int sig;

	sigemptyset(&action.sa_mask);
	sigaction(SIGBUS, &action, &old_bus);
	sigaction(SIGSEGV, &action, &old_segv);
	sig = sigsetjmp(touch_return, 1);
	if (!sig) {
		if (value < 0)
			(void)*addr;
		else
			*addr = value;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return sig;
}

int touch_read(const volatile void *addr)
{
	return touch((volatile unsigned char *)addr, -1);
}

int touch_write(volatile void *addr, unsigned char value)
{
	return touch(addr, value);
}

int pagemap_open(void)
{
	return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

__u64 pagemap_mfn(int pagemap, const void *addr)
{
	off_t offset = (uintptr_t)addr / P2M_PAGE_SIZE * sizeof(__u64);
	__u64 entry;

	if (pread(pagemap, &entry, sizeof(entry), offset) != sizeof(entry))
		return P2M_ENTRY_INVALID;
	/* Documentation/admin-guide/mm/pagemap.rst: bit 63 is "present". */
	if (!(entry >> 63))
		return P2M_ENTRY_INVALID;
	return entry & ((1ULL << 55) - 1);
}

struct kcore {
	int fd;
	size_t nr;
	Elf64_Phdr phdrs[];
};

struct kcore *kcore_open(void)
{
	struct kcore *kcore = NULL;
	Elf64_Ehdr ehdr;
	ssize_t len;
	int fd;

	fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (pread(fd, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr) ||
	    memcmp(ehdr.e_ident, ELFMAG, SELFMAG) ||
	    ehdr.e_phentsize != sizeof(Elf64_Phdr))
		goto fail;
	len = ehdr.e_phnum * sizeof(Elf64_Phdr);
	kcore = malloc(sizeof(*kcore) + len);
	if (!kcore || pread(fd, kcore->phdrs, len, ehdr.e_phoff) != len)
		goto fail;
	kcore->fd = fd;
	kcore->nr = ehdr.e_phnum;
	return kcore;
fail:
	free(kcore);
	close(fd);
	return NULL;
}

int kcore_read_page(const struct kcore *kcore, __u64 mfn, void *page)
{
	/* x86's __START_KERNEL_map: what's above isn't the direct map. */
	const __u64 kernel_map = 0xffffffff80000000ULL;
	__u64 paddr = mfn * P2M_PAGE_SIZE;
	size_t i;

	for (i = 0; i < kcore->nr; i++) {
		const Elf64_Phdr *phdr = &kcore->phdrs[i];

		if (phdr->p_type != PT_LOAD || phdr->p_paddr == ~0ULL ||
		    phdr->p_vaddr >= kernel_map || paddr < phdr->p_paddr ||
		    paddr - phdr->p_paddr >= phdr->p_memsz)
			continue;
		if (pread(kcore->fd, page, P2M_PAGE_SIZE,
			  phdr->p_offset + paddr - phdr->p_paddr) ==
		    P2M_PAGE_SIZE)
			return 0;
		return -1;
	}
	errno = ENXIO;
	return -1;
}

void kcore_close(struct kcore *kcore)
{
	close(kcore->fd);
	free(kcore);
}

__u64 meminfo_kib(const char *field)
{
	FILE *file = fopen("/proc/meminfo", "r");
	unsigned long long value;
	char name[64];
	__u64 ret = ~0ULL;

	if (!file)
		return ret;
	while (fscanf(file, "%63[^:]: %llu%*[^\n]\n", name, &value) >= 2) {
		if (!strcmp(name, field)) {
			ret = value;
			break;
		}
	}
	fclose(file);
	return ret;
}

static FILE *open_port(void)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	char path[512], name[32];
	FILE *port = NULL, *file;
	int fd;

	while (dir && !port && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name",
			 entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fscanf(file, "%31s", name) == 1 && !strcmp(name, "monitor")) {
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
			if (fd >= 0)
				port = fdopen(fd, "r+");
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return port;
}

/* Lines come until the one that answers. */
char *qemu_ask(struct qemu *qemu, const char *command)
{
	static unsigned int id;
	char mark[32], *line = NULL;
	size_t size = 0;

	snprintf(mark, sizeof(mark), "\"id\": %u", ++id);
	if (fprintf(qemu->port, "{%s, \"id\": %u}\n", command, id) < 0 ||
	    fflush(qemu->port))
		return NULL;
	while (getline(&line, &size, qemu->port) > 0)
		if (strstr(line, mark))
			return line;
	free(line);
	return NULL;
}

bool qemu_open(struct qemu *qemu)
{
	char *answer;

	qemu->port = open_port();
	if (!qemu->port)
		return false;
	setvbuf(qemu->port, NULL, _IONBF, 0);
	/* An error says that it was done before. */
	answer = qemu_ask(qemu, "\"execute\": \"qmp_capabilities\"");
	free(answer);
	return answer;
}

bool qemu_read(struct qemu *qemu, __u64 mfn, void *page)
{
	char command[160], *answer, *next;
	__u64 *words = page;
	size_t i;

	snprintf(command, sizeof(command),
		 "\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"xp /512gx 0x%llx\"}",
		 mfn * P2M_PAGE_SIZE);
	answer = qemu_ask(qemu, command);
	if (!answer)
		return false;
	next = answer;
	for (i = 0; i < P2M_PAGE_SIZE / sizeof(*words); i++) {
		next = strstr(next, " 0x");
		if (!next)
			break;
		words[i] = strtoull(next + 1, &next, 16);
	}
	free(answer);
	return i == P2M_PAGE_SIZE / sizeof(*words);
}

void qemu_close(struct qemu *qemu)
{
	fclose(qemu->port);
}

__u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

int timeout_factor(void)
{
	const char *factor = getenv("P2M_TIMEOUT_FACTOR");

	return factor && atoi(factor) > 0 ? atoi(factor) : 1;
}

bool module_can_reload(void)
{
	const char *path = getenv("P2M_KO");

	return path && !access(path, R_OK) && geteuid() == 0;
}

int module_unload(void)
{
	return syscall(SYS_delete_module, "p2m", O_NONBLOCK);
}

int module_load(const char *params)
{
	const char *path = getenv("P2M_KO");
	int fd, ret, saved_errno;

	if (!path) {
		errno = ENOENT;
		return -1;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ret = syscall(SYS_finit_module, fd, params, 0);
	saved_errno = errno;
	close(fd);
	errno = saved_errno;
	return ret;
}

int module_reload(const char *params)
{
	if (module_unload() && errno != ENOENT)
		return -1;
	return module_load(params);
}

int module_restore(void)
{
	const char *params = getenv("P2M_PARAMS");

	return module_reload(params ? params : "");
}

__u64 window_of(int fd, __u64 pfn, __u64 nr)
{
	__u64 entry = pfn_to_entry(fd, pfn);

	return entry > P2M_ENTRY_MFN_MASK ? P2M_ENTRY_INVALID :
					    entry & ~(nr - 1);
}

void readmit_all(int fd)
{
	struct p2m_evacuate cmd;
	struct p2m_info info;

	if (!_test_cmd_info(fd, &info))
		_test_cmd_evacuate(fd, P2M_EVACUATE_READMIT, 0,
				   info.out_max_mfn, &cmd);
}

bool kvm_guest_open(struct kvm_guest *guest, void *mem, size_t len,
		    const char **reason)
{
	struct kvm_userspace_memory_region slot = {
		.memory_size = len,
		.userspace_addr = (uintptr_t)mem,
	};
	struct kvm_sregs sregs;

	*reason = "no KVM";
	if (access("/dev/kvm", F_OK) &&
	    system("modprobe -q kvm_amd || modprobe -q kvm_intel"))
		return false;
	guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (guest->kvm < 0)
		return false;
	*reason = "KVM makes no virtual machine here";
	guest->vm = ioctl(guest->kvm, KVM_CREATE_VM, 0);
	if (guest->vm < 0) {
		close(guest->kvm);
		return false;
	}
	*reason = NULL;
	if (ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &slot))
		return false;
	guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
	guest->size = ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (guest->vcpu < 0 || guest->size < 0)
		return false;
	guest->run = mmap(NULL, guest->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  guest->vcpu, 0);
	if (guest->run == MAP_FAILED || ioctl(guest->vcpu, KVM_GET_SREGS, &sregs))
		return false;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	return !ioctl(guest->vcpu, KVM_SET_SREGS, &sregs);
}

bool kvm_guest_run(struct kvm_guest *guest, __u64 address)
{
	struct kvm_regs regs = { .rip = address, .rflags = 2 };

	return !ioctl(guest->vcpu, KVM_SET_REGS, &regs) &&
	       !ioctl(guest->vcpu, KVM_RUN, 0) &&
	       guest->run->exit_reason == KVM_EXIT_HLT;
}

bool kvm_guest_close(struct kvm_guest *guest)
{
	bool is_good = !munmap(guest->run, guest->size);

	is_good &= !close(guest->vcpu);
	is_good &= !close(guest->vm);
	return is_good & !close(guest->kvm);
}

/* How often a run increments the words, which begin 13 pages. */
#define MACHINE_LOOPS 500

/* Where the code is, and the words. */
#define MACHINE_CODE 0x1000
#define MACHINE_DATA 0x2000
#define MACHINE_END 0xf000

static void *run_machine(void *arg)
{
	struct machine *machine = arg;

	while (!__atomic_load_n(&machine->stop, __ATOMIC_RELAXED)) {
		if (!kvm_guest_run(&machine->guest, MACHINE_CODE)) {
			__atomic_store_n(&machine->has_failed, true,
					 __ATOMIC_RELAXED);
			break;
		}
		__atomic_fetch_add(&machine->nr_done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

bool machine_start(struct machine *machine, char *mem, const char **reason)
{
	static const unsigned char code[] = {
		0xb9, MACHINE_LOOPS & 0xff, MACHINE_LOOPS >> 8, /* mov cx, n */
		0xbb, 0x00, 0x20, /* again: mov bx, 0x2000 */
		0xff, 0x07, /* next: inc word [bx] */
		0x81, 0xc3, 0x00, 0x10, /* add bx, 0x1000 */
		0x81, 0xfb, 0x00, 0xf0, /* cmp bx, 0xf000 */
		0x72, 0xf4, /* jb next */
		0xe2, 0xef, /* loop again */
		0xf4, /* hlt */
	};

	*machine = (struct machine){ .mem = mem };
	if (!kvm_guest_open(&machine->guest, mem, MACHINE_LEN, reason))
		return false;
	memcpy(mem + MACHINE_CODE, code, sizeof(code));
	if (pthread_create(&machine->thread, NULL, run_machine, machine))
		return false;
	while (!machine_runs(machine) &&
	       !__atomic_load_n(&machine->has_failed, __ATOMIC_RELAXED))
		usleep(1000);
	return true;
}

__u64 machine_runs(const struct machine *machine)
{
	return __atomic_load_n(&machine->nr_done, __ATOMIC_RELAXED);
}

bool machine_stop(struct machine *machine)
{
	bool is_good;
	size_t at;

	__atomic_store_n(&machine->stop, true, __ATOMIC_RELAXED);
	is_good = !pthread_join(machine->thread, NULL);
	is_good &= !machine->has_failed;
	for (at = MACHINE_DATA; at < MACHINE_END; at += P2M_PAGE_SIZE)
		is_good &= *(__u16 *)(machine->mem + at) ==
			   (__u16)(machine->nr_done * MACHINE_LOOPS);
	return kvm_guest_close(&machine->guest) & is_good;
}

int open_loop_device(size_t len)
{
	/* The device goes when the last descriptor does. */
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, backing, nr, loop = -1;
	char path[64];

	/* It may be there already, or built in. */
	if (system("modprobe -q loop 2>/dev/null"))
		fprintf(stderr, "# modprobe loop failed\n");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -1;
	nr = ioctl(control, LOOP_CTL_GET_FREE);
	close(control);
	snprintf(path, sizeof(path), "/dev/loop%d", nr);
	backing = memfd_create("p2m-direct", MFD_CLOEXEC);
	if (backing < 0)
		return -1;
	config.fd = backing;
	if (!ftruncate(backing, len))
		loop = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config)) {
		close(loop);
		loop = -1;
	}
	close(backing);
	return loop;
}
