#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# vm.sh COMMAND...: run a command that runs virtual machines, and not on the first processor
# where QEMU emulates them.
#
# Whenever a processor loads the state of an FPU, QEMU (as of 10.0) clears IGNNE of the first one:
# cpu_clear_ignne() reads and writes hflags2, and nothing keeps what VMRUN or #VMEXIT write there
# meanwhile from being undone. Then the first processor is in the host with the guest's nested
# tables, finds no IDT and dies; or takes an interrupt with the guest's GS; or lacks GIF and hears
# of no interrupt any more. A loop of FXRSTOR on another processor brings that about in seconds.

if grep -q '^model name.*QEMU TCG' /proc/cpuinfo && cpus=$(nproc) && ((cpus > 1)); then
	exec taskset --cpu-list "1-$((cpus - 1))" "$@"
fi
exec "$@"
