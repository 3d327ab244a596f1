// SPDX-License-Identifier: GPL-2.0
/*
 * A program as p2m dma check runs one: it has QEMU's edu device read the buffer,
 * and prints what it has read, or has it write its input to the buffer.
 *
 *	edu_copy [--naive] [--pages] read|write
 *
 * With --naive the driver takes frames to follow each other. With --pages it gets
 * no dma-buf, but an address where the buffer is mapped.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../edu/p2m_edu.h"

static unsigned long number(const char *name)
{
	const char *text = getenv(name);

	if (!text) {
		fprintf(stderr, "edu_copy: no %s: run it by p2m dma check\n", name);
		exit(2);
	}
	return strtoul(text, NULL, 0);
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct p2m_edu_copy copy = { .size = sizeof(copy) };
	size_t size, length;
	const char *what = NULL;
	void *memory;
	char *data;
	int i, fd;

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--naive"))
			copy.flags |= P2M_EDU_NAIVE;
		else if (!strcmp(argv[i], "--pages"))
			copy.flags |= P2M_EDU_USER;
		else
			what = argv[i];
	}
	if (!what || (strcmp(what, "read") && strcmp(what, "write"))) {
		fprintf(stderr, "usage: edu_copy [--naive] [--pages] read|write\n");
		return 2;
	}
	copy.fd = number("P2M_DMA_BUF");
	copy.offset = number("P2M_DMA_OFFSET");
	size = number("P2M_DMA_SIZE");
	length = number("P2M_DMA_LENGTH");
	data = malloc(length);
	if (!data)
		return fail("malloc");
	copy.data = (uintptr_t)data;
	copy.length = length;
	if (!strcmp(what, "write")) {
		copy.flags |= P2M_EDU_WRITE;
		if (fread(data, 1, length, stdin) != length)
			return fail("edu_copy: too little input");
	}
	if (copy.flags & P2M_EDU_USER) {
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			      copy.fd, 0);
		if (memory == MAP_FAILED)
			return fail("mmap");
		copy.offset += (uintptr_t)memory;
		copy.fd = 0;
	}
	fd = open(P2M_EDU_DEVICE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail(P2M_EDU_DEVICE);
	if (ioctl(fd, P2M_EDU_COPY, &copy))
		return fail("P2M_EDU_COPY");
	if (!strcmp(what, "read") && fwrite(data, 1, length, stdout) != length)
		return fail("edu_copy: output");
	return fflush(stdout) ? fail("edu_copy: output") : 0;
}
