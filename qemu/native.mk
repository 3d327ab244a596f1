# SPDX-License-Identifier: GPL-2.0
#
# Included by the top Makefile when KDIR is set, as it is in the Debian root.

RELEASE := $(shell cat $(KDIR)/include/config/kernel.release 2>/dev/null)
ifeq ($(RELEASE),)
$(error KDIR=$(KDIR) is not a prepared kernel tree)
endif
ifeq ($(wildcard $(KDIR)/rust/libkernel.rmeta),)
$(error KDIR=$(KDIR) has no Rust metadata, configure it with CONFIG_RUST and run make prepare)
endif
# Objects of different kernels must not mix.
MODULE := $(CURDIR)/build/module-$(RELEASE)
# A kernel that was built with clang needs its modules to be, too.
ifneq ($(shell grep -x CONFIG_CC_IS_CLANG=y $(KDIR)/.config),)
export LLVM ?= 1
endif
CARGO_TARGET_DIR ?= $(CURDIR)/build/target
export CARGO_TARGET_DIR

module:
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(MODULE) modules

# Clippy may change the code that is generated: never load what this makes.
clippy:
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(CURDIR)/build/clippy-$(RELEASE) CLIPPY=1 W=e modules

tools:
	cargo build --release --locked -p p2m --manifest-path tools/Cargo.toml
	install -D $(CARGO_TARGET_DIR)/release/p2m build/bin/p2m

# It has the pure code compiled as the module has it.
bench:
	cargo build --profile module --locked -p p2m-bench --manifest-path tools/Cargo.toml
	install -D $(CARGO_TARGET_DIR)/module/p2m-bench build/bench/p2m-bench

selftests:
	$(MAKE) -C selftests OUTPUT=$(CURDIR)/build/selftests

# The modules but those for tests, the command, and the service that has a crash kernel
# loaded. A tree of headers only doesn't run depmod.
PREFIX ?= /usr/local
prefix = $(or $(filter /usr /usr/local,$(PREFIX)), \
	$(error PREFIX=$(PREFIX) is neither /usr/local nor /usr: systemd and udev look there only))
install: export P2M_INSTALL := 1
install: module tools
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(MODULE) INSTALL_MOD_PATH=$(DESTDIR) modules_install
	[ -n "$(DESTDIR)" ] || depmod $(RELEASE)
	install -D build/bin/p2m $(DESTDIR)$(prefix)/sbin/p2m
	$(MAKE) install-crash

install-crash:
	install -D -t $(DESTDIR)$(prefix)/sbin crash/service/p2m-crash
	install -D -t $(DESTDIR)$(prefix)/lib/p2m-crash crash/mkinitramfs crash/init
	install -D -m 644 -t $(DESTDIR)$(prefix)/lib/systemd/system crash/service/p2m-crash.service
	install -D -m 644 -t $(DESTDIR)$(prefix)/lib/udev/rules.d crash/service/60-p2m-crash.rules
	[ -e $(DESTDIR)/etc/default/p2m-crash ] || \
		install -D -m 644 crash/service/p2m-crash.default $(DESTDIR)/etc/default/p2m-crash

clean:
	rm -rf build

.PHONY: module clippy tools bench selftests install install-crash clean
