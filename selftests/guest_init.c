// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of a kernel that runs in a region. It says what the kernel
 * thinks of its memory, leaves a marker at a physical address, and then writes
 * and checks memory without an end, while somebody changes the frames below.
 *
 * The kernel's command line has what it needs:
 *
 *	p2m.marker=ADDRESS	where to leave the marker, in reserved memory
 *	p2m.seed=NUMBER		what the marker and the memory are made of
 *	p2m.load=MIB		how much memory to write and check
 *
 * The console has commands, one a line, and an answer to each:
 *
 *	inflate		load the drivers of the balloon
 *	deflate		unload it, which gives all pages back to the kernel
 *	exit STATUS	end, with this status if no check has failed
 *	panic		have the kernel panic
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest_marker.h"

#define PAGE_BYTES 4096UL
#define WORDS(bytes) ((bytes) / sizeof(__u64))
/* The status if a check has failed, whatever was asked for. */
#define STATUS_BAD 99

static void die(const char *what)
{
	printf("INIT failed: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static __u64 parameter(const char *name)
{
	static char line[4096];
	const char *found;
	ssize_t len;
	int fd;

	if (!*line) {
		fd = open("/proc/cmdline", O_RDONLY);
		len = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
		if (len < 0)
			die("/proc/cmdline");
		close(fd);
	}
	found = strstr(line, name);
	return found ? strtoull(found + strlen(name), NULL, 0) : 0;
}

static void show_iomem(void)
{
	FILE *file = fopen("/proc/iomem", "r");
	char line[256];

	if (!file)
		die("/proc/iomem");
	while (fgets(line, sizeof(line), file)) {
		if (*line != ' ')
			printf("IOMEM %s", line);
	}
	fclose(file);
}

/* Word by word, so that the marker is nowhere else in memory. */
static void leave_marker(__u64 address, __u64 seed)
{
	volatile __u64 *page;
	size_t i;
	int fd;

	fd = open("/dev/mem", O_RDWR);
	if (fd < 0)
		die("/dev/mem");
	page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		    address);
	if (page == MAP_FAILED)
		die("mmap of /dev/mem");
	for (i = 0; i < WORDS(PAGE_BYTES); i++)
		page[i] = mix(seed, i);
	close(fd);
	printf("MARKER %#llx\n", (unsigned long long)address);
}

static int insert(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -1;
	ret = syscall(SYS_finit_module, fd, "", 0);
	close(fd);
	return ret;
}

static unsigned long long mem_kib(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "r");
	unsigned long long found = 0;
	char line[256];

	if (!file)
		die("/proc/meminfo");
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)))
			found = strtoull(line + strlen(name), NULL, 10);
	}
	fclose(file);
	return found;
}

static void end(int status)
{
	FILE *file = fopen("/dev/ttyS1", "w");

	if (!file)
		die("/dev/ttyS1");
	fprintf(file, "%d\n", status);
	if (fclose(file))
		die("/dev/ttyS1");
	printf("END %d\n", status);
	fflush(stdout);
	reboot(RB_POWER_OFF);
	die("power off");
}

static void obey(const char *line, unsigned long long bad)
{
	int fd, ret = -1;

	if (!strncmp(line, "inflate", 7)) {
		ret = insert("/virtio_mmio.ko") || insert("/virtio_balloon.ko");
		printf("INFLATE %s\n", ret ? strerror(errno) : "ok");
	} else if (!strncmp(line, "deflate", 7)) {
		ret = syscall(SYS_delete_module, "virtio_balloon", O_NONBLOCK);
		printf("DEFLATE %s, MemTotal %llu MemFree %llu\n",
		       ret ? strerror(errno) : "ok", mem_kib("MemTotal:"),
		       mem_kib("MemFree:"));
	} else if (!strncmp(line, "exit ", 5)) {
		end(bad ? STATUS_BAD : atoi(line + 5));
	} else if (!strncmp(line, "panic", 5)) {
		fd = open("/proc/sysrq-trigger", O_WRONLY);
		if (fd < 0 || write(fd, "c", 1) != 1)
			die("panic");
	} else {
		printf("WHAT? %s\n", line);
	}
}

/* Does what the console says, if it says something. */
static void listen(unsigned long long bad)
{
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	char line[128];
	ssize_t len;

	while (poll(&input, 1, 0) == 1) {
		len = read(STDIN_FILENO, line, sizeof(line) - 1);
		if (len <= 0)
			die("console");
		line[len] = '\0';
		line[strcspn(line, "\r\n")] = '\0';
		obey(line, bad);
	}
}

int main(void)
{
	unsigned long long round, bad = 0;
	__u64 seed, bytes, address;
	__u64 *memory;
	size_t i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	/* The kernel may have mounted it. */
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	if (mount("proc", "/proc", "proc", 0, NULL))
		die("mount");
	seed = parameter("p2m.seed=");
	bytes = parameter("p2m.load=") << 20;
	address = parameter("p2m.marker=");
	show_iomem();
	if (address)
		leave_marker(address, seed);
	if (!bytes)
		end(0);

	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (i = 0; i < WORDS(bytes); i++)
		memory[i] = mix(seed, i);
	printf("READY\n");
	for (round = 1; ; round++) {
		/* What is checked is what the previous round wrote. */
		for (i = 0; i < WORDS(bytes); i++) {
			if (memory[i] != mix(seed + round - 1, i)) {
				if (!bad++)
					printf("BAD word %zu\n", i);
			}
			memory[i] = mix(seed + round, i);
			if (!(i % (1 << 17)))
				listen(bad);
		}
		printf("ROUND %llu, %llu bad\n", round, bad);
	}
}
