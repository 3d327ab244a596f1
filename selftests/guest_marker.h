/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What guest_init leaves in memory, guest_scan looks for, and guest.sh knows, too.
 */
#ifndef GUEST_MARKER_H
#define GUEST_MARKER_H

#include <linux/types.h>

/* A word that occurs nowhere by chance. */
static inline __u64 mix(__u64 seed, __u64 index)
{
	__u64 z = seed + (index + 1) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

#endif /* GUEST_MARKER_H */
