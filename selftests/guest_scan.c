// SPDX-License-Identifier: GPL-2.0
/*
 * guest_scan SEED END: print the number of each machine frame below END that has
 * the marker of guest_init.
 */
#include <stdio.h>
#include <stdlib.h>

#include "guest_marker.h"
#include "p2m_util.h"

#define WORDS (P2M_PAGE_SIZE / sizeof(__u64))

int main(int argc, char **argv)
{
	__u64 page[WORDS], seed, end, mfn, frames = 0;
	struct kcore *kcore = kcore_open();
	size_t i;

	if (argc != 3 || !kcore) {
		fprintf(stderr, "usage: guest_scan SEED END, with /proc/kcore\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 0);
	end = strtoull(argv[2], NULL, 0);
	for (mfn = 0; mfn < end; mfn++) {
		if (kcore_read_page(kcore, mfn, page))
			continue;
		frames++;
		for (i = 0; i < WORDS && page[i] == mix(seed, i); i++)
			;
		if (i < WORDS)
			continue;
		printf("%llu\n", (unsigned long long)mfn);
		/* It mustn't be found in the copies that reading it made. */
		kcore_read_page(kcore, mfn ? mfn - 1 : 1, page);
	}
	kcore_close(kcore);
	/* A scan of nothing finds nothing. */
	return frames ? 0 : 1;
}
