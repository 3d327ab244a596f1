#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# guest.sh [TEST]...: a whole kernel in a region, the one that runs here. What
# its memory really is, is told by the pagemap and by the machine's memory; what
# it thinks of it, by guest_init, which is its first process.
#
# The kernel is that of P2M_GUEST_KERNEL, or found where kernels are.

# The functions of this file are run by name.
# shellcheck disable=SC2317

source "$(dirname "$0")/lib.sh"

readonly device=/dev/p2m
readonly stat=/sys/kernel/debug/p2m/stat
readonly page=4096
# How long to wait for anything: everything is slow when it's emulated twice.
readonly patience=$((300 * ${P2M_TIMEOUT_FACTOR:-1}))
# A guest that doesn't get on isn't asked.
ending=KILL
programs=${P2M_GUEST_PROGRAMS:-$(dirname "$0")}
init=$programs/guest_init
vm=$(dirname "$0")/vm.sh
scan=$programs/guest_scan

tests=(
	load_is_read_back_from_the_machine
	load_says_what_is_wrong
	run_says_what_is_wrong
	kernel_sees_one_piece_while_its_frames_change
	free_pages_go_and_all_goes_with_sigkill
	ctrl_c_frees_everything
	qemu_boots_the_kernel_in_a_region
)

# Pages of all domains.
pages() {
	awk '$1 == "pages" { print $2 }' "$stat"
}

# Makes an initial RAM disk of guest_init and the drivers of the balloon.
make_initrd() {
	local dir=$work/root modules name
	modules=/usr/lib/modules/$(uname -r)/kernel/drivers/virtio

	mkdir -p "$dir/dev" "$dir/proc"
	cp "$init" "$dir/init"
	for name in virtio_mmio virtio_balloon; do
		if [[ -e $modules/$name.ko.xz ]]; then
			xz -dc "$modules/$name.ko.xz" >"$dir/$name.ko"
		elif [[ -e $modules/$name.ko ]]; then
			cp "$modules/$name.ko" "$dir"
		fi
	done
	(cd "$dir" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initrd"
}

# Starts a kernel with a command line and options of p2m guest run. It can be
# told things with say, and waited for with await.
start() {
	local append=$1
	shift

	mkfifo "$tmp/in"
	exec {in}<>"$tmp/in"
	"$vm" "$p2m" guest run --kernel "$kernel" --initrd "$work/initrd" "$@" \
		--append "quiet no_timer_check panic=-1 $append" \
		<"$tmp/in" >"$tmp/console" 2>"$tmp/said" &
	pid=$!
}

say() {
	echo "$*" >&"$in"
}

# Waits for the number of a line like this that comes after another line.
await() {
	local i

	for ((i = 0; i < 10 * patience; i++)); do
		! tr -d '\r' <"$tmp/console" | tail -n "+${2:-1}" | grep -qE "$1" || return 0
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	fail "'$1' didn't come" "$(tail -n 20 "$tmp/console")" "$(<"$tmp/said")"
}

# Waits until it has checked all of its memory once more.
await_round() {
	local lines
	lines=$(wc -l <"$tmp/console")
	# One that was going on, and a whole one.
	await '^ROUND' $((lines + 1))
	lines=$(wc -l <"$tmp/console")
	await '^ROUND' $((lines + 1))
	note "round ${BASH_LINENO[0]}"
	! grep -qE 'BAD|[1-9][0-9]* bad' "$tmp/console" || fail "$(grep -a -m 3 -i bad "$tmp/console")"
}

# Waits until a command says that something is so.
until_so() {
	local i

	for ((i = 0; i < 10 * patience; i++)); do
		! "$@" || return 0
		kill -0 "$pid" 2>/dev/null || fail 'the guest has ended' "$(tail -n 20 "$tmp/console")" "$(<"$tmp/said")"
		sleep 0.1
	done
	fail "never: $*"
}

# Waits for its end. The status is in $status.
await_end() {
	status=0
	{ wait "$pid" || status=$?; } 2>/dev/null
}

note() {
	echo "# $SECONDS s: $*"
}

audit() {
	note "${FUNCNAME[1]}:${BASH_LINENO[0]}"
	run 0 --json audit --pid "$pid"
	json .ok
}

# The machine frames of the guest, as the pagemap of its process has them: a
# number a line, "-" where there is none.
frames() {
	python3 "$work/outside.py" frames "$pid"
}

outside() {
	python3 "$work/outside.py" "$@" || fail "outside $*"
}

write_outside() {
	cat >"$work/outside.py" <<-'END'
		import mmap, os, struct, sys, zlib
		from machine import Machine

		PAGE = mmap.PAGESIZE
		MASK = 2**64 - 1

		# The same as in guest_marker.h.
		def mix(seed, index):
		    z = (seed + (index + 1) * 0x9e3779b97f4a7c15) & MASK
		    z = ((z ^ z >> 30) * 0xbf58476d1ce4e5b9) & MASK
		    z = ((z ^ z >> 27) * 0x94d049bb133111eb) & MASK
		    return z ^ z >> 31

		def words_of(pid):
		    """Yield the words of the pagemap of what a process has mapped of the device, with
		    the numbers of the pages."""
		    with open(f"/proc/{pid}/maps") as maps, \
		            open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
		        for line in maps:
		            fields = line.split()
		            if fields[-1] != "/dev/p2m":
		                continue
		            start, end = (int(part, 16) // PAGE for part in fields[0].split("-"))
		            data = os.pread(pagemap.fileno(), 8 * (end - start), 8 * start)
		            first = int(fields[2], 16) // PAGE
		            yield from enumerate(struct.unpack(f"={len(data) // 8}Q", data), first)

		def table(pid):
		    return {pfn: word & (1 << 55) - 1 for pfn, word in words_of(pid) if word >> 63}

		def frames(pid):
		    """Print PFN and MFN of each page that is mapped."""
		    for pfn, mfn in sorted(table(pid).items()):
		        print(pfn, mfn)

		def checksum(pid, address, size):
		    """Print the CRC-32 of pseudo-physical memory, read by machine addresses."""
		    address, size = int(address), int(size)
		    mfns, machine, value = table(pid), Machine(), 0
		    while size:
		        part = min(size, PAGE - address % PAGE)
		        frame = mfns[address // PAGE] * PAGE
		        value = zlib.crc32(machine.read(frame + address % PAGE, part), value)
		        address, size = address + part, size - part
		    print(f"{value:08x}")

		def checksum_of(path, offset):
		    """Print the CRC-32 of a file."""
		    with open(path, "rb") as file:
		        file.seek(int(offset))
		        print(f"{zlib.crc32(file.read()):08x}")

		def is_marked(pid, address, seed):
		    """Say whether the frame that the pagemap names for an address has the marker."""
		    words = struct.unpack("=512Q", Machine().read(table(pid)[int(address) // PAGE] * PAGE, PAGE))
		    good = all(word == mix(int(seed, 0), index) for index, word in enumerate(words))
		    print("yes" if good else "no")

		def witness(size):
		    """Have memory of the device and other memory, and say whether it's still the same
		    when there is a line to read."""
		    size = int(size)
		    fd = os.open("/dev/p2m", os.O_RDWR)
		    memory = [mmap.mmap(fd, size), mmap.mmap(-1, size)]
		    for part in memory:
		        for at in range(0, size, 1 << 20):
		            part[at:at + (1 << 20)] = os.urandom(1 << 20)
		    before = [zlib.crc32(part) for part in memory]
		    print("ready", flush=True)
		    sys.stdin.readline()
		    print("same" if [zlib.crc32(part) for part in memory] == before else "other")

		globals()[sys.argv[1]](*sys.argv[2:])
	END
}

load_is_read_back_from_the_machine() {
	local before kind address bytes found

	before=$(pages)
	"$p2m" --json guest load --kernel "$kernel" --initrd "$work/initrd" --memory 192M \
		--policy scatter --seed 5 --append 'some words' --hold >"$tmp/console" 2>"$tmp/said" &
	pid=$!
	until_so jq -e .ok "$tmp/console" >/dev/null 2>&1
	out=$(<"$tmp/console")
	json '.ok and all(.segments[]; .ok and .checksum == .found and .runs == .frames)'
	json '[.segments[].kind] | contains(["command line", "boot parameters", "kernel", "initrd"])'
	json '.machine.runs == 49152 and .machine.longest_run_pages == 1'
	is "$(pages)" $((before + 49152)) 'number of pages'
	# Others say the same: the images themselves, and the pagemap.
	while read -r kind address bytes checksum; do
		found=$(outside checksum "$pid" "$address" "$bytes")
		is "$found" "$checksum" "checksum of the $kind at $address"
	done < <(jq -r '.segments[] | [(.kind | gsub(" "; "_")), .address, .bytes, .checksum] | join(" ")' <<<"$out")
	found=$(jq -r '.segments[] | select(.kind == "initrd").checksum' <<<"$out")
	is "$found" "$(outside checksum_of "$work/initrd" 0)" 'checksum of the initrd'
	setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$kernel")
	found=$(jq -r '.segments[] | select(.kind == "kernel").checksum' <<<"$out")
	is "$found" "$(outside checksum_of "$kernel" $(((setup + 1) * 512)))" 'checksum of the kernel'
	kill "$pid"
	wait "$pid" || true
	is "$(pages)" "$before" 'number of pages afterwards'
}

# Copies the kernel, with bytes at an offset changed.
spoiled() {
	cp "$kernel" "$tmp/kernel"
	printf '%b' "$2" | dd of="$tmp/kernel" bs=1 seek="$(($1))" conv=notrunc status=none
}

load_says_what_is_wrong() {
	local before

	before=$(pages)
	run 1 guest load --kernel /nonexistent
	complains 'cannot use /nonexistent as the kernel: No such file'
	run 1 guest load --kernel /
	complains 'cannot use / as the kernel: is a directory'
	run 1 guest load --kernel "$0"
	complains 'neither a bzImage nor an ELF file'
	head -c 5000000 "$kernel" >"$tmp/kernel"
	run 1 guest load --kernel "$tmp/kernel"
	complains 'the kernel is truncated: 5000000 bytes are there of '
	spoiled 0x206 '\x0a\x02'
	run 1 guest load --kernel "$tmp/kernel"
	complains 'the kernel has boot protocol 2.10, needed is 2.12 or later'
	spoiled 0x236 '\x00'
	run 1 guest load --kernel "$tmp/kernel"
	complains 'the kernel has no 64-bit entry point'
	run 1 guest load --kernel "$kernel" --initrd /nonexistent
	complains 'cannot use /nonexistent as the initrd: No such file'
	run 1 guest load --kernel "$kernel" --initrd /dev/null
	complains 'the initrd is empty'
	run 1 guest load --kernel "$kernel" --memory 16M
	complains 'cannot load the kernel: the kernel needs '
	truncate -s 200M "$tmp/initrd"
	run 1 guest load --kernel "$kernel" --initrd "$tmp/initrd" --memory 192M
	complains 'the initrd needs 209715200 bytes'
	run 1 guest load --kernel "$kernel" --append "$(printf '%03000d' 0)"
	complains 'this kernel takes 2047'
	run 1 guest load --kernel "$kernel" --memory 64K
	complains 'the memory has to be a multiple of the page size, and 1 MiB at least'
	run 1 guest load --kernel "$kernel" --memory 1T
	complains 'cannot create the region'
	complains 'hint: '
	is "$(pages)" "$before" 'number of pages'
}

run_says_what_is_wrong() {
	local before as=("$vm")

	before=$(pages)
	# That it's there is the last thing that is asked for before there is memory.
	mv /dev/kvm /dev/kvm.away
	trap 'mv /dev/kvm.away /dev/kvm; cleanup' EXIT
	run 1 guest run --kernel "$kernel"
	complains 'cannot open /dev/kvm: No such file'
	complains 'hint: there is no KVM'
	ln -s null /dev/kvm
	run 1 guest run --kernel "$kernel"
	rm /dev/kvm
	complains 'KVM cannot speak version 12 of its interface, which is needed'
	mv /dev/kvm.away /dev/kvm
	trap cleanup EXIT
	run 1 guest run --kernel "$0"
	complains 'neither a bzImage nor an ELF file'
	run 1 guest run --kernel "$kernel" --memory 1T
	complains 'cannot create the region'
	run 2 guest run --kernel "$kernel" --free-pages
	run 2 guest run --kernel "$kernel" --anonymous --on-demand
	run 2 guest run --kernel "$kernel" --seed 3
	# A kernel that panics, as it has no init and no root.
	run 255 guest run --kernel "$kernel" --memory 192M --append 'quiet no_timer_check panic=-1' </dev/null
	complains 'the guest reset itself and left no exit status'
	[[ $out == *'Kernel panic'* ]] || fail "no panic: $out"
	# A kernel of nothing but zeros, that are instructions that fault.
	cp "$kernel" "$tmp/kernel"
	dd if=/dev/zero of="$tmp/kernel" bs=64K seek=1 count=16 conv=notrunc status=none
	dd if=/dev/zero of="$tmp/kernel" bs=512 seek=$(($(od -An -tu1 -j $((0x1f1)) -N1 "$kernel") + 1)) \
		count=16 conv=notrunc status=none
	run 255 guest run --kernel "$tmp/kernel" --memory 192M </dev/null
	complains 'the guest died of a triple fault'
	is "$(pages)" "$before" 'number of pages'
}

kernel_sees_one_piece_while_its_frames_change() {
	local before top=$((191 << 20)) seed frame found change half end

	before=$(pages)
	python3 "$work/outside.py" witness $((32 << 20)) < <(while [[ ! -e $tmp/ask ]]; do sleep 0.2; done && echo) >"$tmp/witness" &
	witness=$!
	until [[ -s $tmp/witness ]]; do sleep 0.1; done
	seed=0x$(od -An -tx8 -N8 /dev/urandom | tr -d ' ')
	start "memmap=1M\$191M p2m.marker=$top p2m.seed=$seed p2m.load=16" \
		--memory 192M --policy scatter --seed 7 --balloon 32M --report "$tmp/report"
	await '^READY'
	note ready
	# One piece, but for what is below 1 MiB on every PC, and what was asked to be left out.
	found=$(tr -d '\r' <"$tmp/console" | sed -n 's/^IOMEM \(.*System RAM\)$/\1/p')
	is "$found" $'00001000-0009fbff : System RAM\n00100000-0befffff : System RAM' 'System RAM'
	# No two neighbours.
	run 0 --json map --pid "$pid"
	json 'all(.runs[]; .nr_pages == 1) and (.runs | length) == 49152'
	frames >"$tmp/frames"
	is "$(awk '$1 == pfn + 1 && ($2 == mfn + 1 || $2 == mfn - 1) { n++ } { pfn = $1; mfn = $2 } END { print n + 0 }' "$tmp/frames")" \
		0 'number of neighbours in the pagemap'
	# Its physical address is a PFN, the frame of which has the marker, and no other.
	run 0 --json translate --pid "$pid" $((top / page))
	frame=$(jq '.[0].mfn' <<<"$out")
	is "$(awk '$1 == pfn { print $2 }' pfn=$((top / page)) "$tmp/frames")" "$frame" 'frame by the pagemap'
	run 0 --json info
	is "$("$scan" "$seed" "$(jq .max_mfn <<<"$out")")" "$frame" 'frames with the marker'
	note 'found the marker'

	await_round
	for change in 'move --policy scatter --seed 11' move 'move --policy scatter --seed 12'; do
		frames >"$tmp/frames"
		# shellcheck disable=SC2086
		run 0 --json $change --pid "$pid"
		json '.pages == 49152 and .busy == 0'
		audit
		await_round
		frames | sort >"$tmp/frames.new"
		is "$(sort "$tmp/frames" | comm -12 - "$tmp/frames.new" | wc -l)" 0 "number of pages that stayed at $change"
	done
	run 0 --json map --pid "$pid"
	half=$(jq '[.runs[].mfn] | sort | .[length / 2 | floor]' <<<"$out")
	end=$(jq '[.runs[].mfn] | max + 1' <<<"$out")
	run 0 --json evacuate --pid "$pid" "$half..$end" --keep-out
	json '.left == 0 and .busy == 0 and .pages > 20000'
	audit
	await_round
	run 0 evacuate --pid "$pid" "$half..$end" --readmit

	# Single pages go and come, by the balloon.
	[[ -e $work/root/virtio_balloon.ko ]] || fail 'no drivers for the balloon'
	say inflate
	await '^INFLATE ok'
	has_frames() {
		run 0 --json stat --pid "$pid"
		(($(jq .frames <<<"$out") == $1))
	}
	until_so has_frames $((49152 - 8192))
	audit
	await_round
	run 0 --json move --pid "$pid" --policy scatter --seed 13
	json '.pages == 49152 - 8192 and .busy == 0'
	audit
	await_round
	say deflate
	await '^DEFLATE ok'
	until_so has_frames 49152
	audit
	await_round
	run 0 --json move --pid "$pid"
	json '.pages == 49152 and .busy == 0'
	await_round
	audit
	say exit 7
	await_end
	is "$status" 7 'exit status'
	is "$(<"$tmp/said")" '' 'standard error'
	jq -e '.status == 7 and .how == "off" and .memory == "p2m"' "$tmp/report" >/dev/null ||
		fail "$(<"$tmp/report")"
	: >"$tmp/ask"
	wait "$witness" || fail 'the witness died'
	is "$(tail -n 1 "$tmp/witness")" same 'memory of others'
	is "$(pages)" "$before" 'number of pages'
}

free_pages_go_and_all_goes_with_sigkill() {
	local before most

	before=$(pages)
	start "p2m.seed=9 p2m.load=16 page_reporting.page_reporting_order=0" \
		--memory 192M --policy scatter --seed 2 --on-demand --free-pages --guarded
	await '^READY'
	note ready
	run 0 --json stat --pid "$pid"
	most=$(jq .frames <<<"$out")
	((most < 49152)) || fail "it has touched all pages"
	say inflate
	await '^INFLATE ok'
	fewer() {
		run 0 --json stat --pid "$pid"
		(($(jq .frames <<<"$out") < most - 2000))
	}
	until_so fewer
	audit
	await_round
	run 0 --json move --pid "$pid" --policy scatter --seed 3
	audit
	await_round
	# Nobody has written beyond the edge of a frame.
	run 0 --json guard check --pid "$pid"
	json '.ok and .checked > 10000'
	kill -KILL "$pid"
	await_end
	is "$status" 137 'exit status'
	is "$(pages)" "$before" 'number of pages'
}

# On a terminal, which is as before afterwards.
ctrl_c_frees_everything() {
	local before

	before=$(pages)
	P2M=$p2m "$vm" python3 - "$kernel" <<-'END' || fail 'Ctrl-C on a terminal'
		import os, pty, select, sys, termios, time

		pid, terminal = pty.fork()
		if pid == 0:
		    os.execv(os.environ["P2M"], ["p2m", "guest", "run", "--kernel", sys.argv[1],
		             "--memory", "192M", "--append", "no_timer_check"])
		before = None
		seen = b""
		deadline = time.time() + 300
		while b"Linux version" not in seen:
		    assert time.time() < deadline, seen
		    if before is None:
		        before = termios.tcgetattr(terminal)
		    if select.select([terminal], [], [], 1)[0]:
		        seen += os.read(terminal, 4096)
		assert termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO) == 0
		os.write(terminal, b"\x03")
		while True:
		    done, status = os.waitpid(pid, os.WNOHANG)
		    if done:
		        break
		    # What it says has to go somewhere.
		    if select.select([terminal], [], [], 0.1)[0]:
		        try:
		            os.read(terminal, 4096)
		        except OSError:
		            pass
		assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 2, status
	END
	is "$(pages)" "$before" 'number of pages'
}

# A file for its memory is all that QEMU asks for.
qemu_boots_the_kernel_in_a_region() {
	command -v qemu-system-x86_64 >/dev/null || skip 'no QEMU'
	local before at=$((150 << 20)) seed

	before=$(pages)
	seed=0x$(od -An -tx8 -N8 /dev/urandom | tr -d ' ')
	mkfifo "$tmp/in"
	exec {in}<>"$tmp/in"
	"$vm" qemu-system-x86_64 -accel kvm -cpu host -m 192M -nodefaults -display none -no-reboot \
		-object "memory-backend-file,id=ram,size=192M,mem-path=$device,share=on" \
		-machine pc,memory-backend=ram -kernel "$kernel" -initrd "$work/initrd" \
		-append "console=ttyS0 quiet no_timer_check panic=-1 memmap=1M\$150M
			p2m.marker=$at p2m.seed=$seed p2m.load=16" \
		-chardev stdio,id=console,signal=off -serial chardev:console \
		-serial "file:$tmp/status" <"$tmp/in" >"$tmp/console" 2>"$tmp/said" &
	pid=$!
	await '^READY'
	note ready
	is "$(pages)" $((before + 49152)) 'number of pages'
	is "$(outside is_marked "$pid" "$at" "$seed")" yes 'the marker in its frame'
	await_round
	say exit 5
	await_end
	is "$status" 0 'exit status of QEMU'
	is "$(tr -d '\r' <"$tmp/status")" 5 'exit status of the guest'
	is "$(pages)" "$before" 'number of pages'
}

# That the device is there proves nothing.
has_kvm() {
	[[ -c /dev/kvm ]] || modprobe kvm_amd 2>/dev/null || modprobe kvm_intel 2>/dev/null
	[[ -w /dev/kvm ]]
}

find_kernel() {
	local file
	for file in "${P2M_GUEST_KERNEL:-}" "/boot/vmlinuz-$(uname -r)" \
		"/usr/lib/modules/$(uname -r)/vmlinuz" /usr/src/linux/vmlinuz; do
		[[ ! -r $file || -d $file ]] || { echo "$file" && return; }
	done
}

[[ -c $device && -r $stat ]] || skip_all "no $device or no debugfs: load the module"
[[ $p2m ]] || skip_all 'no p2m: build it, and add it to PATH or set P2M'
((EUID == 0)) || skip_all 'needs root'
for tool in busybox jq python3 xz; do
	command -v $tool >/dev/null || skip_all "no $tool"
done
kernel=$(find_kernel)
[[ $kernel ]] || skip_all 'no kernel to run: set P2M_GUEST_KERNEL'
[[ -x $init && -x $scan ]] || skip_all "no $init or $scan: build them, or set P2M_GUEST_PROGRAMS"

# It would need more memory than all of this has.
! grep -qw kasan_report /proc/kallsyms || [[ ${P2M_GUEST_KERNEL:-} ]] ||
	skip_all 'this kernel has KASAN: set P2M_GUEST_KERNEL to another one'

(($# == 0)) || tests=("$@")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
write_machine "$work"
write_outside
make_initrd
kvm=no
! has_kvm || kvm=yes

echo "TAP version 13"
echo "1..${#tests[@]}"
for test in "${tests[@]}"; do
	if [[ $kvm == no && $test != load_* ]]; then
		echo '# no KVM'
		status=4
	else
		tmp=$work/$test
		mkdir "$tmp"
		run_test "$test"
	fi
	result "$test"
done
exit $failed
