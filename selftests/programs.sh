#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Programs that know nothing of p2m and take a file for their memory get it from
# /dev/p2m, by a plain mmap().

# shellcheck disable=SC2317 # the tests are called by name

device=/dev/p2m
stat=/sys/kernel/debug/p2m/stat

echo "TAP version 13"
if [[ ! -w $device || ! -r $stat ]]; then
	echo "1..0 # SKIP needs root, $device and debugfs"
	exit 4
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
	echo "# $*"
	return 1
}

# Pages of all domains.
pages() {
	awk '$1 == "pages" { print $2 }' "$stat"
}

# Direct I/O with buffers in scattered or other frames, checked by fio itself.
fio_has_its_buffers_there() {
	command -v fio >/dev/null || return 4
	local before

	before=$(pages)
	fio --name=p2m --ioengine=psync --direct=1 --rw=randrw --bs=64k --size=8M \
		--directory="$work" --iomem="mmapshared:$device" \
		--verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 >"$work/fio.log" 2>&1 ||
		fail "$(tail -n 3 "$work/fio.log")" || return
	grep -q 'err= 0' "$work/fio.log" || fail "fio saw errors" || return
	[[ $(pages) == "$before" ]] || fail "pages are left"
}

# The firmware runs in it, and what it writes to its console comes out.
qemu_has_its_ram_there() {
	command -v qemu-system-x86_64 >/dev/null || return 4
	local before pid used='' tries

	before=$(pages)
	timeout 60 qemu-system-x86_64 -accel tcg -m 64M -nodefaults -display none \
		-object "memory-backend-file,id=ram,size=64M,mem-path=$device,share=on" \
		-machine pc,memory-backend=ram \
		-chardev "file,id=log,path=$work/firmware.log" \
		-device isa-debugcon,iobase=0x402,chardev=log &
	pid=$!
	for ((tries = 0; tries < 300; tries++)); do
		grep -q 'No bootable device' "$work/firmware.log" 2>/dev/null && break
		sleep 0.1
	done
	used=$(($(pages) - before))
	kill "$pid" 2>/dev/null
	wait "$pid" 2>/dev/null
	grep -q 'SeaBIOS' "$work/firmware.log" || fail "the firmware said nothing" || return
	[[ $used == 16384 ]] || fail "QEMU has $used pages of p2m, not 16384" || return
	[[ $(pages) == "$before" ]] || fail "pages are left"
}

tests=(fio_has_its_buffers_there qemu_has_its_ram_there)
failed=0
nr=0
echo "1..${#tests[@]}"
for test in "${tests[@]}"; do
	nr=$((nr + 1))
	"$test"
	case $? in
	0) echo "ok $nr $test" ;;
	4) echo "ok $nr $test # SKIP the program isn't there" ;;
	*) echo "not ok $nr $test" && failed=1 ;;
	esac
done
exit $failed
