#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# p2m dma export and p2m dma check, with a driver of QEMU's edu device that is right,
# or naive. Needs root, the module, and p2m in the PATH; P2M_EDU_COPY names edu_copy.

# shellcheck disable=SC2317 # the tests are called by name

echo "TAP version 13"

skip_all() {
	echo "1..0 # SKIP $*"
	exit 4
}

copy=${P2M_EDU_COPY:-edu_copy}
bits=${P2M_EDU_BITS:-28}
driver=${P2M_KO%p2m.ko}p2m_edu.ko

[[ $EUID == 0 ]] || skip_all "must be root"
[[ -c /dev/p2m ]] || skip_all "no /dev/p2m"
command -v p2m >/dev/null || skip_all "no p2m in the PATH"
p2m info --json | grep -q '"dma_buf": true' || skip_all "no dma-bufs in this kernel"

tmp=$(mktemp -d)
loaded=''
device=''
trap '[[ ! $loaded ]] || rmmod p2m_edu; rm -rf "$tmp"' EXIT

for dir in /sys/bus/pci/devices/*; do
	[[ $(<"$dir/vendor") != 0x1234 || $(<"$dir/device") != 0x11e8 ]] || device=${dir##*/}
done
if [[ $device && -r $driver && -x $copy ]]; then
	insmod "$driver" dma_bits="$bits" damages=1 && loaded=1
fi

fail() {
	echo "# $*"
	sed 's/^/# /' "$tmp/out"
	return 1
}

# check OPTION... -- COMMAND...: four pages, all but half of one at each end.
check() {
	local mask=()

	# Where nothing can be bounced, the device has to reach the buffer.
	((bits == 64)) || mask=(--mask "$bits")
	p2m dma check "${mask[@]}" --offset 2048 --length 12288 "$@" >"$tmp/out" 2>&1
}

says() {
	grep -qE "$1" "$tmp/out" || fail "doesn't say: $1"
}

program_that_fails_is_no_success() {
	! check --reads 16K -- bash -c 'exit 3' || fail "a success" || return
	says 'exit status 3' && says '12288 wrong bytes: FAILED' && says 'nothing$'
}

program_that_is_not_there_is_an_error() {
	! check --reads 16K -- /nowhere/at-all || fail "it ran" || return
	says '/nowhere/at-all'
}

ranges_are_in_the_buffer() {
	! p2m dma check --reads --offset 16K 16K -- true >"$tmp/out" 2>&1 || fail "it ran" ||
		return
	says 'not in the buffer'
}

export_hands_a_range_over() {
	local pid status=0

	p2m alloc 64K --policy scatter --hold >"$tmp/held" 2>&1 &
	pid=$!
	for _ in {1..100}; do
		! grep -q '^hold' "$tmp/held" || break
		sleep 0.1
	done
	# shellcheck disable=SC2016
	p2m dma export --pid "$pid" 0x2..0x6 -- bash -c '
		readlink /proc/self/fd/$P2M_DMA_BUF
		echo size $P2M_DMA_SIZE
		grep -H p2m-dma-bufs /proc/$PPID/fdinfo/*
		exit 7' >"$tmp/out" 2>&1 || status=$?
	kill "$pid"
	wait "$pid" 2>/dev/null
	[[ $status == 7 ]] || fail "status $status" || return
	says dmabuf && says '^size 16384$' && says 'p2m-dma-bufs:.1$'
}

right_driver_reads() {
	check --reads 16K -- "$copy" read || fail "not right" || return
	says "^device +$device reads 12 KiB from byte 0x800 on" && says 'all bytes are right: ok' &&
		says "^verdict +$device was told the right addresses: ok"
}

right_driver_writes() {
	check --writes 16K -- "$copy" write || fail "not right" || return
	says "^device +$device writes" && says 'guards looked at: ok' && says '^verdict .*: ok'
}

# The driver gets an address where the buffer is mapped, and so no attachment.
right_driver_of_pages_reads() {
	check --reads --name edu0 16K -- "$copy" --pages read || fail "not right" || return
	says '^verdict +edu0 was told the right addresses: ok'
}

# Every boundary is named, with its PFNs, and what was found there.
naive_driver_that_reads_is_caught() {
	! check --reads --name "$device" 16K -- "$copy" --naive --pages read ||
		fail "not caught" || return
	says '^content +6[01][0-9][0-9] wrong bytes: FAILED' &&
		says 'PFN 0x1 from byte 0x0 on: what guards hold' &&
		says 'PFN 0x2 from byte 0x0 on: what guards hold' &&
		says 'PFN 0x3 from byte 0x0 on: what guards hold' &&
		says '^guards +.* looked at: ok' &&
		says 'PFN 0x0 \| 0x1, MFN 0x[0-9a-f]+ \| 0x[0-9a-f]+$' &&
		says 'PFN 0x2 \| 0x3, MFN' &&
		says "^verdict +$device was told as if frames followed each other: FAILED"
}

naive_driver_that_writes_is_caught() {
	! check --writes --name "$device" 16K -- "$copy" --naive --pages write ||
		fail "not caught" || return
	says '^content +6[01][0-9][0-9] wrong bytes: FAILED' &&
		says 'PFN 0x1 from byte 0x0 on: what was there before' &&
		says '^guards +3 guards broken: FAILED' &&
		says 'which is behind PFN 0x1.*, from byte 0x0 on' &&
		says 'PFN 0x1 \| 0x2, MFN' &&
		says "^verdict +$device was told as if frames followed each other: FAILED"
}

programs_can_read_the_report() {
	! check --json --writes --name "$device" 16K -- "$copy" --naive --pages write ||
		fail "not caught" || return
	python3 - "$tmp/out" <<-'END' >"$tmp/said" 2>&1 || fail "$(<"$tmp/said")"
		import json, sys
		report = json.load(open(sys.argv[1]))
		assert not report["ok"]
		# A byte may happen to be right.
		assert 6000 < report["wrong_bytes"] <= 6144
		assert [b["before"] for b in report["boundaries"]] == [0, 1, 2]
		assert {w["found"] for w in report["wrong"]} == {"old"}
		for b in report["boundaries"]:
		    damage = [d for d in report["damages"] if d["before"] == b["before"]]
		    assert len(damage) == 1 and damage[0]["offset"] == 0
		    assert damage[0]["guard"] == b["mfn_before"] + 1
	END
}

tests=(
	program_that_fails_is_no_success
	program_that_is_not_there_is_an_error
	ranges_are_in_the_buffer
	export_hands_a_range_over
)
device_tests=(
	right_driver_reads
	right_driver_writes
	right_driver_of_pages_reads
	naive_driver_that_reads_is_caught
	naive_driver_that_writes_is_caught
	programs_can_read_the_report
)

failed=0 nr=0
echo "1..$((${#tests[@]} + ${#device_tests[@]}))"
for name in "${tests[@]}" "${device_tests[@]}"; do
	nr=$((nr + 1))
	if ((nr > ${#tests[@]})) && [[ ! $loaded ]]; then
		echo "ok $nr $name # SKIP no driver for an edu device (QEMU: -device edu)"
	elif "$name"; then
		echo "ok $nr $name"
	else
		echo "not ok $nr $name"
		failed=1
	fi
done
exit $failed
