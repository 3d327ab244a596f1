# SPDX-License-Identifier: GPL-2.0
#
# Without KDIR, everything is built and run in a Debian root that is made on the
# first run (see qemu/). With KDIR, the module, the tools and the selftests are
# built with what is at hand, for a kernel tree that has its Rust metadata.

MAKEFLAGS += --no-print-directory

ifdef KDIR
include qemu/native.mk
else

define HELP
p2m: a pseudo-physical to machine mapping, as a kernel module in Rust

  make run        build, boot a guest, load the module and show what it does
  make test       run the tests, on the host and in guests (of test-crash, the short ones)
  make test-debug run those of the guest on a debug kernel, that is built first: TEST='NAME...'
                  for some of the programs
  make test-crash have guests panic with a crash kernel loaded: TEST='NAME...' for some of
                  the tests (see qemu/test-crash), CRASHES=N for as many panics in a row
  make fuzz       a long run of the fuzzer of system calls: FUZZ='--ops N --seed N',
                  or FUZZ='--replay build/fuzz.list' for the last list of calls
  make fuzz-pure  a long run of the fuzzers of what needs no kernel:
                  FUZZ_PURE='--minutes N [TARGET]...'
  make soak       all operations at once for an hour, under pressure and kills:
                  SOAK='--minutes N'
  make bench      measure it side by side with what people use today
  make bench-guest the same for kernels in regions, beside anonymous memory: RUNS=N
  make bench-crash the same for crash kernels, beside kdump: ROUNDS=N
  make check      formatting, lints and warnings
  make shell      a guest with the module loaded and p2m in the PATH
  make module     build the module      (tools, selftests: these)
  make clean      remove build/
  make update     have the next build use the newest packages and kernel, and remove what
                  nothing uses any more

  KERNEL=7.3|7.2  the series of the stock Debian kernel to use (debug: see above)
  P2M_CACHE=DIR   where the Debian root and the kernel tree are kept
  KDIR=DIR        for a prepared kernel tree, build natively: module (the default), tools,
                  selftests; clippy for lints of the module; install, install-crash
                  (PREFIX, DESTDIR) for all, or the service that loads crash kernels
endef
export HELP KERNEL P2M_CACHE

help:
	@echo "$$HELP"

run: module tools
	@qemu/guest --log run -- qemu/demo

test: module tools selftests
	@qemu/test

# The modules, the kernel and the guest all follow KERNEL.
ifeq ($(KERNEL),debug)
test-debug: module tools selftests
	@qemu/test $(TEST)
else
test-debug:
	@$(MAKE) KERNEL=debug test-debug
endif

# Ten million calls, unless FUZZ says otherwise, without a time limit. The last list stays
# where it is found when the kernel is no more.
FUZZ ?= --ops 10000000
fuzz: module selftests
	@qemu/guest --log fuzz --timeout 0 -- qemu/with-module \
		build/selftests/fuzz --record build/fuzz.list $(FUZZ)

# Each target in turn.
FUZZ_PURE ?= --minutes 30
fuzz-pure:
	@qemu/enter qemu/fuzz-pure $(FUZZ_PURE)

SOAK ?= --minutes 60
soak: module selftests
	@qemu/guest --log soak --monitor --smp 4 --memory 2G,slots=2,maxmem=4G --timeout 0 -- \
		qemu/with-module qemu/soak $(SOAK)

bench: module
	@qemu/enter make bench
	@qemu/bench

bench-guest: module tools selftests
	@qemu/guest --log bench-guest --timeout 3600 -- qemu/with-module qemu/bench-guest $(RUNS)

bench-crash: module tools
	@qemu/bench-crash $(ROUNDS)

test-crash: module tools
	@qemu/test-crash $(TEST)

check:
	@qemu/enter qemu/check

shell: module tools
	@qemu/guest --log shell --shell -- qemu/with-module bash

module tools selftests:
	@qemu/enter make $@

clean:
	rm -rf build

update:
	@qemu/update

.PHONY: help run test test-crash test-debug fuzz fuzz-pure soak bench bench-guest bench-crash check shell module tools selftests clean update
endif
