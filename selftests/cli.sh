#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# cli.sh [TEST]...: test every command of the program p2m, from its arguments to
# its exit status. What it says about frames is compared with what Python reads
# from the pagemap, and page tables with what it finds in the machine's memory,
# where it reads them by machine addresses only, as the processor does.

# The functions of this file are run by name, and jq has variables, too.
# shellcheck disable=SC2016,SC2317

source "$(dirname "$0")/lib.sh"

readonly device=/dev/p2m
readonly page=4096

tests=(
	info_has_all_keys
	info_reads_well
	alloc_reads_at_a_glance
	alloc_has_all_keys
	alloc_contiguous_is_one_run
	alloc_scatter_has_no_neighbours
	alloc_check_compares_every_frame
	alloc_rounds_up_to_pages
	alloc_puts_the_region_at_its_base
	alloc_says_which_limit_was_hit
	alloc_says_that_no_frames_fit
	alloc_says_that_memory_may_not_be_locked
	alloc_frees_all_at_its_end
	alloc_on_demand_takes_what_is_touched
	alloc_says_what_was_asked_of_frames
	map_agrees_with_the_pagemap
	map_by_page_agrees_with_the_pagemap
	map_shows_regions_and_holes
	map_into_a_closed_pipe_is_quiet
	translate_agrees_with_the_pagemap
	translate_takes_numbers_of_both_bases
	translate_reverse_is_the_inverse
	check_asks_all_witnesses
	check_of_nothing_fails
	stat_counts
	attach_finds_the_only_descriptor
	attach_wants_a_choice_of_several
	attach_says_what_is_missing
	plain_mmap_is_seen_from_outside
	wrong_usage_exits_with_2
	no_module_is_a_hint
	user_without_access_gets_a_hint
	user_with_access_sees_no_mfns
	root_without_capability_sees_no_mfns
	user_cannot_attach_to_root
	space_tables_are_what_the_processor_needs
	space_tables_have_large_leaves
	space_tables_follow_their_pages
	space_reads_well
	space_says_what_is_wrong
	space_goes_when_it_is_destroyed
	space_list_knows_all
	walk_agrees_with_the_machine
	walk_says_why_there_is_no_page
	walk_notices_where_native_tables_lead
	walk_cpu_finds_what_the_domain_has
	access_by_the_processor
	live_changes_while_a_process_writes
	release_and_populate
	release_says_what_is_wrong
	move_gives_other_frames
	move_leaves_pinned_pages_alone
	evacuate_leaves_nothing
	evacuate_says_what_is_wrong
	contig_is_one_run
	collapse_makes_superpages
	contig_says_what_is_wrong
	exchange_swaps_frames
	audit_reads_at_a_glance
	region_has_the_frames_that_were_asked_for
	region_says_what_is_wrong
	region_comes_and_goes
	guard_check_finds_who_runs_over_the_edge
	foreign_pages_are_seen_by_both
	foreign_says_what_is_wrong
	identity_is_for_what_is_no_memory
	fail_nth_fails_once
	counters_add_up
	trace_sees_every_change
	trace_chooses_a_domain
	trace_cleans_up
	trace_says_what_is_missing
	plot_in_the_terminal
	plot_into_a_file
	plot_of_nothing_fails
	dma_plan_has_the_addresses_of_the_pagemap
	dma_plan_says_what_bounces
	dma_plan_says_what_is_wrong
	completions_are_a_script
)

# matches LINE...: what was printed is these lines, each a regular expression.
matches() {
	local lines line

	mapfile -t lines <<<"$out"
	((${#lines[@]} == $#)) || fail "$# lines wanted, printed was: $out"
	for line in "${lines[@]}"; do
		[[ $line =~ ^$1$ ]] || fail "not '$1': '$line'"
		shift
	done
}

# hold ARGUMENT...: have another process hold a region. Sets pid, fd and domain,
# which are the arguments to attach to it.
hold() {
	: >"$tmp/hold"
	"${as[@]}" "$p2m" --json alloc --hold "$@" >"$tmp/hold" 2>&1 &
	held $!
	fd=$(jq .hold.fd "$tmp/hold")
	is "$(jq .hold.pid "$tmp/hold")" "$pid" pid
}

# python PROGRAM: have a Python program hold a domain. It says when it's ready.
# Sets pid, fd and domain. (Python's mmap has a descriptor of its own.)
python() {
	: >"$tmp/hold"
	python3 -c "
import ctypes, fcntl, mmap, os, struct, sys, time

PAGE = mmap.PAGESIZE

def create(fd, base, nr_pages, policy=0, seed=0, flags=1):
    fcntl.ioctl(fd, 0xbb82, struct.pack('=4I5Q4I', 72, flags, policy, 0, nr_pages, seed, base, 0, 0, 0, 0, 0, 0))

$1
print('{}', flush=True)
time.sleep(1000)
" >"$tmp/hold" 2>&1 &
	held $!
	fd=$(find "/proc/$pid/fd" -lname "$device" -printf '%f\n' | sort -n | head -n 1)
	domain+=(--fd "$fd")
}

# held PID: wait until a process has printed JSON.
held() {
	pid=$1 domain=(--pid "$1")
	for ((i = 0; i < 600; i++)); do
		if [[ -s $tmp/hold ]] && jq -e . "$tmp/hold" >/dev/null 2>&1; then
			return
		fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	fail "no domain to attach to: $(<"$tmp/hold")"
}

# Print "PFN MFN" of each page that $pid has mapped, as the pagemap has it.
pagemap() {
	python3 - "$pid" <<-'END'
		import struct, sys

		pid = sys.argv[1]
		with open(f"/proc/{pid}/maps") as maps, \
		     open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
		    for line in maps:
		        addresses, _, offset, _, _, *path = line.split()
		        if path != ["/dev/p2m"]:
		            continue
		        start, end = (int(part, 16) // 4096 for part in addresses.split("-"))
		        pagemap.seek(8 * start)
		        words = struct.unpack(f"={end - start}Q", pagemap.read(8 * (end - start)))
		        for pfn, word in enumerate(words, int(offset, 16) // 4096):
		            assert word >> 63, f"{pfn} isn't mapped"
		            mfn = word & (1 << 55) - 1
		            assert mfn, f"{pfn} is hidden"
		            print(pfn, mfn)
	END
}

# outside WHAT ARGUMENT...: look at a domain from outside, see outside.py below.
outside() {
	python3 "$tmp/outside.py" "$@" || fail "outside $*"
}

write_outside() {
	cat >"$tmp/outside.py" <<-'END'
		import ctypes, hashlib, json, mmap, os, struct, sys
		from machine import Machine

		PAGE = mmap.PAGESIZE

		def unpack(data):
		    return struct.unpack(f"={len(data) // 8}Q", data)

		# The first word that p2m alloc stores to a page of a region from PFN 0 on.
		def first_word(pfn):
		    return (pfn * 512 + 1) * 0x9e3779b97f4a7c15 % 2**64

		# The words of a frame.
		def words_in(machine, mfn):
		    return unpack(machine.read(mfn * PAGE, PAGE))

		class Domain:
		    def __init__(self, pid, fd):
		        libc = ctypes.CDLL(None, use_errno=True)
		        self.fd = libc.syscall(438, os.pidfd_open(int(pid)), int(fd), 0)
		        assert self.fd >= 0, os.strerror(ctypes.get_errno())

		    def map(self, pfn, nr_pages=1):
		        return mmap.mmap(self.fd, nr_pages * PAGE, mmap.MAP_SHARED, mmap.PROT_READ,
		                         offset=pfn * PAGE)

		    # The machine frame of a page, as the pagemap has it.
		    def mfn(self, pfn):
		        with self.map(pfn) as memory:
		            memory[0]
				            with open("/proc/self/maps") as maps:
		                line = next(l for l in maps if l.split()[-1] == "/dev/p2m")
		            start = int(line.split("-")[0], 16)
		            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
		                word = unpack(os.pread(pagemap.fileno(), 8, start // PAGE * 8))[0]
		            assert word >> 63, f"{pfn} isn't mapped"
		            return word & (1 << 55) - 1

		FRAME = 0x000ffffffffff000

		def letters(entry, is_large):
		    pat = entry >> 12 if is_large else entry >> 7
		    bits = [1, entry >> 1, ~entry >> 63, entry >> 2, entry >> 3, entry >> 4, pat,
		            entry >> 5, entry >> 6]
		    return "".join(l if bit & 1 else "-" for l, bit in zip("rwxutcpAD", bits))

		# Yields the address, the frame and the flags of every page that is mapped.
		def leaves(machine, mfn, level, start=0):
		    for index, entry in enumerate(words_in(machine, mfn)):
		        span = PAGE << 9 * level
		        address = start + index * span
		        if not entry & 1:
		            continue
		        is_large = level > 0 and entry & 0x80
		        if level > 0 and not is_large:
		            yield from leaves(machine, (entry & FRAME) >> 12, level - 1, address)
		            continue
		        frame = (entry & FRAME & ~(span - 1)) >> 12
		        for page in range(span // PAGE):
		            yield address + page * PAGE, frame + page, letters(entry, is_large)

		def tables(pid, fd, root, levels):
		    """Print "ADDRESS PFN MFN FLAGS" of each page that is mapped. The PFN is known by
		    what is in the page."""
		    machine = Machine()
		    pfns = {first_word(pfn): pfn for pfn in range(1 << 14)}
		    root = Domain(pid, fd).mfn(int(root))
		    for address, mfn, flags in leaves(machine, root, int(levels) - 1):
		        print(address, pfns.get(words_in(machine, mfn)[0]), mfn, flags)

		def words(pid, fd, pfn, index, nr):
		    """Print words of a page."""
		    with Domain(pid, fd).map(int(pfn)) as memory:
		        print(*unpack(memory[8 * int(index):8 * (int(index) + int(nr))]))

		def entries():
		    """Print the words at machine frame and index, of which there are lines."""
		    machine = Machine()
		    for line in sys.stdin:
		        mfn, index = map(int, line.split())
		        print(f"{words_in(machine, mfn)[index]:#018x}")

		def frames():
		    """Say whether each entry of a walk leads to the table of the next one."""
		    walk = json.load(sys.stdin)
		    mfns = [step["table_mfn"] for step in walk["steps"]] + [walk["page"]["mfn"]]
		    pfns = [step["table_pfn"] for step in walk["steps"]] + [walk["page"]["pfn"]]
		    for step, mfn, pfn in zip(walk["steps"], mfns[1:], pfns[1:]):
		        assert (int(step["raw"], 16) & FRAME) >> 12 == mfn, step
		        assert (int(step["val"], 16) & FRAME) >> 12 == pfn, step
		    print("good")

		def checksum(*words):
		    """Print FNV-1a of words."""
		    value = 0xcbf29ce484222325
		    for byte in b"".join(struct.pack("=Q", int(word) % 2**64) for word in words):
		        value = (value ^ byte) * 0x100000001b3 % 2**64
		    print(f"{value:#018x}")

		def overrun(mfn, shift):
		    """Have a device write a page of other words, shifted by some bytes. "none" if there
		    is no device that does as it's told (QEMU: -device edu), or an IOMMU is in the way."""
		    devices = "/sys/bus/pci/devices"
		    name = next((name for name in os.listdir(devices) if all(
		        int(open(f"{devices}/{name}/{file}").read(), 16) == value
		        for file, value in (("vendor", 0x1234), ("device", 0x11e8)))), None)
		    iommus = "/sys/class/iommu"
		    if not name or os.path.exists(iommus) and os.listdir(iommus):
		        print("none")
		        return
		    # Command register: memory and bus master.
		    config = os.open(f"{devices}/{name}/config", os.O_RDWR)
		    os.pwrite(config, struct.pack("=H", 6), 4)
		    with open(f"{devices}/{name}/resource0", "r+b", buffering=0) as file:
		        registers = mmap.mmap(file.fileno(), 1 << 20)
		    def write(register, value):
		        ctypes.c_uint64.from_buffer(registers, register).value = value
		    def transfer(source, destination, command):
		        for register, value in ((0x80, source), (0x88, destination), (0x90, PAGE),
		                                (0x98, command)):
		            write(register, value)
		        while ctypes.c_uint64.from_buffer(registers, 0x98).value & 1:
		            pass
		    # Its buffer has what others left there, perhaps a guard: first read the page.
		    transfer(int(mfn) * PAGE, 0x40000, 1)
		    transfer(0x40000, int(mfn) * PAGE + int(shift), 3)
		    os.pwrite(config, struct.pack("=H", 2), 4)
		    print("done")

		def digest(pid, fd, pfn, nr):
		    """Print a checksum of the contents of pages."""
		    with Domain(pid, fd).map(int(pfn), int(nr)) as memory:
		        print(hashlib.sha256(memory).hexdigest())

		globals()[sys.argv[1]](*sys.argv[2:])
	END
}

# expect_pages FILTER: what the filter makes of the output are the lines of the
# pagemap of $pid.
expect_pages() {
	pagemap >"$tmp/expected" || fail "pagemap can't be read"
	[[ -s $tmp/expected ]] || fail "nothing is mapped"
	jq -r "$1" <<<"$out" >"$tmp/found" || fail "jq $1: $out"
	diff "$tmp/expected" "$tmp/found" >"$tmp/diff" ||
		fail "pagemap and p2m differ: $(head -n 4 "$tmp/diff" | tr '\n' ' ')"
}

info_has_all_keys() {
	run 0 --json info
	json '(keys_unsorted | join(" ")) == "abi_version page_shift mfn_visible " +
		"table_mmap spaces cpu_access live dma_plan dma_buf policies default_policy max_pfn " +
		"max_mfn max_domain_pages max_total_pages max_regions"'
	json '.abi_version == 1 and .page_shift == 12 and .mfn_visible and .table_mmap'
	json '.policies == ["any", "scatter", "contiguous", "superpage"] and .max_pfn == 2147483648'
	# No memory of the machine is above its last frame.
	json ".max_mfn * $page >= $(awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo)"
}

info_reads_well() {
	local number='[0-9]+ pages \([0-9.]+ [KMGT]iB\)'

	run 0 info
	matches 'module   ABI version 1, pages of 4 KiB' \
		'policies any, scatter, contiguous, superpage; by default any' \
		'opener   sees MFNs: yes, can map tables: yes' \
		"can do   spaces: yes, access by the processor: (yes|no), change frames in use: yes" \
		'         plan DMA: yes, export dma-bufs: yes' \
		'limits   PFNs below 0x80000000 \(8 TiB\)' \
		'         MFNs below 0x[0-9a-f]+ \([0-9.]+ GiB\)' \
		"         $number for each domain" \
		"         $number for all domains" \
		'         [0-9]+ regions for each domain'
}

alloc_reads_at_a_glance() {
	local mfn='0x[0-9a-f]+'

	run 0 alloc 8M --policy scatter --seed 7 --check
	matches 'region   PFN 0x0\.\.0x800 \(8 MiB, 2048 pages\), policy scatter, seed 7' \
		"machine  2048 runs, longest 1 page, MFN $mfn\.\.$mfn" \
		"sample   PFN 0x000 -> MFN $mfn" \
		"         PFN 0x001 -> MFN $mfn" \
		"         PFN 0x002 -> MFN $mfn" \
		"         \.\.\." \
		"         PFN 0x7ff -> MFN $mfn" \
		'linear   wrote and read back 8 MiB as one piece: ok' \
		'check    2048 of 2048 frames agree with /proc/self/pagemap: ok'
}

alloc_has_all_keys() {
	run 0 --json alloc 1M
	json '(keys_unsorted | join(" ")) ==
		"region machine sample demand linear check hold"'
	json '.region == {base_pfn: 0, nr_pages: 256, policy: "any", seed: 0, on_demand: false,
		guarded: false, node: null, mfns: null, colour: null, bytes: 1048576}'
	json '.linear == {ok: true, bytes: 1048576, first_bad: null}'
	json '[.sample[].pfn] == [0, 1, 2, 255]'
	json 'all(.sample[]; .type == "frame" and .mfn > 0)'
	json '.machine as $m | all(.sample[].mfn; . >= $m.start_mfn and . < $m.end_mfn)'
	json '.check == null and .hold == null and .demand == null'
	run 0 --json alloc 1M --policy scatter --seed 0x10
	json '.region.policy == "scatter" and .region.seed == 16'
}

alloc_contiguous_is_one_run() {
	run 0 --json alloc 5M --policy contiguous --populate
	json '.machine | .runs == 1 and .longest_run_pages == 1280'
	json '.machine | .end_mfn - .start_mfn == 1280'
	json '.sample[-1].mfn - .sample[0].mfn == 1279'
}

alloc_scatter_has_no_neighbours() {
	run 0 --json alloc 5M --policy scatter
	json '.machine | .runs == 1280 and .longest_run_pages == 1'
}

alloc_check_compares_every_frame() {
	local policy

	for policy in any scatter contiguous superpage; do
		run 0 --json alloc 3M --policy "$policy" --check
		json '.check | .ok and .differences == []'
		json '.check.witnesses ==
			[{witness: "/proc/self/pagemap", asked: 768, agreed: 768}]'
	done
}

alloc_rounds_up_to_pages() {
	local size

	for size in 1:1 4095:1 4096:1 4097:2 0x1001:2 5K:2 1M:256; do
		run 0 --json alloc "${size%:*}"
		json ".region.nr_pages == ${size#*:}"
	done
}

alloc_puts_the_region_at_its_base() {
	run 0 --json alloc 64K --base 0x7ffffff0 --check
	json '.region.base_pfn == 2147483632 and .check.ok'
	run 1 alloc 68K --base 0x7ffffff0
	complains 'hint: the range ends beyond the last possible PFN'
}

alloc_says_which_limit_was_hit() {
	run 0 --json info
	run 1 alloc "$((($(jq .max_domain_pages <<<"$out") + 1) * page))"
	complains 'cannot create the region: Disk quota exceeded'
	complains 'hint: a limit of the module is reached'
	is "$out" '' 'standard output'
}

alloc_says_that_no_frames_fit() {
	# The first of these is the firmware's.
	run 1 alloc 1M --policy contiguous --mfns 0..256
	complains 'hint: no free frames satisfy the policy'
}

alloc_says_that_memory_may_not_be_locked() {
	as=(setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock
		prlimit --memlock=1048576)
	run 0 alloc 512K
	run 1 alloc 2M
	complains 'hint: memory is short, or the region is larger than RLIMIT_MEMLOCK'
}

total_pages() {
	run 0 --json stat
	jq .total_pages <<<"$out"
}

alloc_frees_all_at_its_end() {
	local before status=0

	before=$(total_pages)
	hold 1M
	is "$(total_pages)" $((before + 256)) 'pages of all domains'
	kill "$pid"
	wait "$pid" || status=$?
	is "$status" $((128 + 15)) 'exit status'
	is "$(total_pages)" "$before" 'pages of all domains'
}

alloc_says_what_was_asked_of_frames() {
	run 0 alloc 64K --below 1G --colour 1/4 --guarded --policy scatter
	[[ $out == *', policy scatter, seed 0, guarded, MFN 0x0..0x40000, colour 1 of 4'$'\n'* ]] ||
		fail "$out"
	run 1 alloc 64K --mfns 0x7ffffff0..0x80000000
	complains 'hint: no free frames satisfy the policy'
	run 1 alloc 64K --guarded --policy contiguous
	complains "hint: a contiguous region can't be guarded"
	run 1 alloc 64K --node 63
	complains 'the node must have memory'
	run 1 alloc 64K --node 0 --guarded
	complains 'single frames of a node only'
}

map_agrees_with_the_pagemap() {
	local policy

	for policy in any scatter contiguous superpage; do
		hold 2M --policy "$policy"
		run 0 --json map --pid "$pid" --fd "$fd"
		json '(keys_unsorted | join(" ")) == "regions runs"'
		json '.regions | length == 1 and .[0].nr_pages == 512'
		expect_pages '.runs[] | range(.nr_pages) as $n | "\(.pfn + $n) \(.mfn + $n)"'
		kill "$pid"
	done
}

map_by_page_agrees_with_the_pagemap() {
	hold 2M --policy scatter --base 0x12345
	run 0 --json map --pages --pid "$pid" --fd "$fd"
	expect_pages '.pages[] | "\(.pfn) \(.mfn)"'
	run 0 map --pages --pid "$pid" --fd "$fd"
	is "${out%%$'\n'*}" \
		'region   PFN 0x12345..0x12545 (2 MiB, 512 pages), policy scatter, seed 0'
	is "$(tail -n +2 "$tmp/out")" "$(pagemap | while read -r pfn mfn; do
		printf '0x%08x  MFN 0x%08x\n' "$pfn" "$mfn"
	done)" 'list of pages'
}

map_shows_regions_and_holes() {
	python '
fd = os.open("/dev/p2m", os.O_RDWR)
create(fd, 0x10, 4, policy=2)
create(fd, 0x20, 2, policy=2)
'
	run 0 map --pid "$pid"
	matches 'region   PFN 0x10\.\.0x14 \(16 KiB, 4 pages\), policy contiguous' \
		'         PFN 0x20\.\.0x22 \(8 KiB, 2 pages\), policy contiguous' \
		'0x00000010          4  MFN 0x[0-9a-f]{8}' \
		'0x00000020          2  MFN 0x[0-9a-f]{8}'
	run 0 --json map --pid "$pid" 0..0x21
	json '[.runs[] | [.pfn, .nr_pages, .type]] == [[0, 16, "invalid"],
		[16, 4, "frame"], [20, 12, "invalid"], [32, 1, "frame"]]'
	run 0 map --pid "$pid" 0x15
	is "$(tail -n 1 "$tmp/out")" '0x00000015          1  nothing' 'hole'
	run 0 --json check --pid "$pid"
	json '.ok and all(.witnesses[]; .asked == 6)'
}

map_into_a_closed_pipe_is_quiet() {
	hold 4M --policy scatter
	"$p2m" map --pages --pid "$pid" 2>"$tmp/err" | head -n 1 >"$tmp/out"
	is "$(<"$tmp/err")" '' 'standard error'
	[[ $(<"$tmp/out") == region* ]] || fail "$(<"$tmp/out")"
}

translate_agrees_with_the_pagemap() {
	hold 1M --policy scatter
	# shellcheck disable=SC2046
	run 0 --json translate --pid "$pid" --fd "$fd" $(seq 0 255)
	expect_pages '.[] | "\(.pfn) \(.mfn)"'
}

translate_takes_numbers_of_both_bases() {
	local mfn

	hold 1M --policy contiguous
	mfn=$(jq '.machine.start_mfn + 255' "$tmp/hold")
	run 0 translate --pid "$pid" 255 0xff 256 0xffffffffffffffff
	matches "PFN 0xff -> MFN $(printf '0x%x' "$mfn")" \
		"PFN 0xff -> MFN $(printf '0x%x' "$mfn")" \
		'PFN 0x100 -> nothing' \
		'PFN 0xffffffffffffffff -> nothing'
	run 0 --json translate --pid "$pid" 0x100
	json '. == [{pfn: 256, type: "invalid", mfn: null}]'
}

translate_reverse_is_the_inverse() {
	hold 1M --policy scatter --base 1000
	# shellcheck disable=SC2046
	run 0 --json translate --reverse --pid "$pid" $(pagemap | cut -d ' ' -f 2)
	expect_pages '.[] | "\(.pfn) \(.mfn)"'
	# The firmware's frame and one that no machine has.
	run 0 translate --reverse --pid "$pid" 0 0xffffffffff
	matches 'MFN 0x0 -> nothing' 'MFN 0xffffffffff -> nothing'
}

check_asks_all_witnesses() {
	local policy name names=(/proc/self/pagemap 'read\(2\)' 'the runs' 'the M2P'
		'the mapped P2M' 'the mapped M2P') lines=()

	# More than is compared at once.
	for name in "${names[@]}"; do
		lines+=(".{8} 5000 of 5000 frames agree with $name: ok")
	done
	for policy in any scatter contiguous superpage; do
		hold $((5000 * page)) --policy "$policy" --base 0x1ff
		run 0 check --pid "$pid" --fd "$fd"
		matches "${lines[@]}"
		run 0 --json check --pid "$pid" --fd "$fd"
		json '(keys_unsorted | join(" ")) == "ok witnesses differences"'
		json '.ok and .differences == [] and (.witnesses | length) == 6'
		json 'all(.witnesses[]; .asked == 5000 and .agreed == 5000)'
		kill "$pid"
	done
}

check_of_nothing_fails() {
	python 'fd = os.open("/dev/p2m", os.O_RDWR)'
	run 1 check --pid "$pid"
	complains 'the domain has no region'
}

stat_counts() {
	hold 2M --populate
	run 0 --json stat --pid "$pid" --fd "$fd"
	json '(keys_unsorted | join(" ")) == "generation regions pages frames guards superpages " +
		"p2m_tables m2p_tables faults fault_pages total_domains total_pages"'
	json '.regions == 1 and .pages == 512 and .frames == 512 and .generation % 2 == 0'
	json '.p2m_tables > 0 and .m2p_tables > 0 and .faults > 0'
	json '.total_domains >= 1 and .total_pages >= 512'
	run 0 stat --pid "$pid"
	matches 'domain   1 region, 512 pages \(2 MiB\), generation [0-9]+' \
		'machine  512 frames \(2 MiB\), [0-9]+ superpages?, and 0 guards' \
		'tables   [0-9]+ for the P2M, [0-9]+ for the M2P \([0-9.]+ KiB\)' \
		'faults   [0-9]+ faults?, which mapped [0-9]+ pages' \
		'system   [0-9]+ domains?, [0-9]+ pages \(.*\)'
	# Without a domain, there's only the system to tell of.
	run 0 stat
	matches 'system   [0-9]+ domains?, [0-9]+ pages \(.*\)'
}

attach_finds_the_only_descriptor() {
	hold 64K
	run 0 --json map --pid "$pid"
	with_search=$out
	run 0 --json map --pid "$pid" --fd "$fd"
	is "$with_search" "$out" 'what is found without --fd'
}

attach_wants_a_choice_of_several() {
	python '
for nr_pages in 1, 2:
    create(os.open("/dev/p2m", os.O_RDWR), 0, nr_pages)
'
	run 1 map --pid "$pid"
	complains "process $pid has several descriptors of $device, choose one by --fd"
	fd=${err##*[} fd=${fd%]*} fd=${fd##*, }
	run 0 --json map --pid "$pid" --fd "$fd"
	json '.regions[0].nr_pages == 2'
}

attach_says_what_is_missing() {
	hold 64K
	run 1 map --pid "$pid" --fd 99
	complains 'hint: the process has no such descriptor'
	run 1 map --pid "$pid" --fd 1
	complains 'hint: the descriptor is not one of /dev/p2m'
	run 1 map --pid $$
	complains "process $$ has no descriptor of $device"
	run 1 map --pid 4194303 --fd 3
	complains 'hint: there is no process of this number'
}

plain_mmap_is_seen_from_outside() {
	python '
fd = os.open("/dev/p2m", os.O_RDWR)
memory = mmap.mmap(fd, 32 * PAGE, mmap.MAP_SHARED, offset=5 * PAGE)
memory.write(b"x" * 32 * PAGE)
# The mapping has a descriptor of its own.
os.close(fd)
'
	run 0 --json map --pages --pid "$pid"
	json '.regions == [{base_pfn: 5, nr_pages: 32, policy: "any", seed: 0,
		on_demand: false, guarded: false, node: null, mfns: null, colour: null,
		bytes: 131072}]'
	expect_pages '.pages[] | "\(.pfn) \(.mfn)"'
	run 0 --json check --pid "$pid"
	json '.ok and all(.witnesses[]; .asked == 32)'
}

wrong_usage_exits_with_2() {
	local arguments

	for arguments in '' bogus 'info extra' alloc 'alloc 0' 'alloc 1.5M' \
		'alloc 1M --policy bogus' 'alloc 1M --seed 1' map 'map --fd 3' \
		'map --pid x' 'map --pid 1 5..5' check 'translate --pid 1' \
		'alloc 1M --on-demand --check' 'release --pid 1' 'move --pid 1 --seed 1' \
		'move --pid 1 --policy contiguous' 'evacuate --pid 1' 'exchange --pid 1 1' \
		'contig --pid 1 0..8 --address-bits 11' audit plot space 'space create --pid 1' \
		'space create --pid 1 --pool 0..8 --levels 6' 'space unmap --pid 1 --space 1' \
		'space map --pid 1 --space 1 0 0 --flags q' 'walk --pid 1 0' \
		'translate --pid 1 zero' 'stat --fd 3' 'completions bogus'; do
		# shellcheck disable=SC2086
		run 2 $arguments
		is "$out" '' 'standard output'
		[[ $err ]] || fail "p2m $arguments: says nothing"
	done
}

no_module_is_a_hint() {
	local arguments

	for arguments in info stat 'alloc 1M' '--json info'; do
		# shellcheck disable=SC2086
		run 1 --device /dev/nonexistent $arguments
		complains 'hint: the module is not loaded: insmod p2m.ko'
		is "$out" '' 'standard output'
	done
	run 1 --device /dev/null info
	complains 'hint: the descriptor is not one of /dev/p2m'
}

as_nobody() {
	as=(setpriv --reuid nobody --regid nogroup --clear-groups)
}

# Let everybody open the device until the test ends.
for_everybody() {
	local mode

	mode=$(stat -c %a "$device")
	# shellcheck disable=SC2064
	trap "chmod $mode $device; cleanup" EXIT
	chmod 666 "$device"
}

user_without_access_gets_a_hint() {
	as_nobody
	run 1 info
	complains 'Permission denied'
	complains "hint: the device is root's: try with sudo"
}

# The caller may open the device, but sees no MFNs.
expect_hidden() {
	run 0 --json info
	json '.mfn_visible == false and .max_mfn == 0'
	run 0 info
	[[ $out == *'sees MFNs: no'* && $out != *'MFNs below'* ]] || fail "$out"

	run 0 alloc 64K
	matches 'region   PFN 0x0\.\.0x10 \(64 KiB, 16 pages\), policy any' \
		"machine  hidden, as it's shown only with CAP_SYS_ADMIN" \
		'sample   PFN 0x0 -> MFN hidden' \
		'         PFN 0x1 -> MFN hidden' \
		'         PFN 0x2 -> MFN hidden' \
		'         \.\.\.' \
		'         PFN 0xf -> MFN hidden' \
		'linear   wrote and read back 64 KiB as one piece: ok'
	run 0 --json alloc 64K
	json '.machine == null and .linear.ok'
	json 'all(.sample[]; .type == "frame" and .mfn == null)'

	run 1 alloc 64K --check
	complains 'only with CAP_SYS_ADMIN'
	hold 64K
	run 1 check --pid "$pid"
	complains 'only with CAP_SYS_ADMIN'
	run 1 translate --reverse --pid "$pid" 1
	complains 'only to an opener with CAP_SYS_ADMIN'
	run 0 --json map --pages --pid "$pid"
	json '[.pages[] | [.pfn, .type, .mfn]] == [range(16) | [., "frame", null]]'

	run 0 --json move --pid "$pid" 0..8
	json '.pages == 8 and .busy == 0 and .before == null and .after == null'
	run 0 --json audit --pid "$pid"
	json '.ok and .frames == 16 and .first_mfn == null'
	run 1 evacuate --pid "$pid" 0..0x1000
	complains 'only to an opener with CAP_SYS_ADMIN'
	run 1 plot --pid "$pid"
	complains 'only with CAP_SYS_ADMIN'
	run 0 space create --pid "$pid" --pool 8..16
	matches 'space    1, backend p2m, 4 levels, pool PFN 0x8\.\.0x10 \(8 pages\)' \
		'root     PFN 0x8 -> MFN hidden'
	run 0 space map --pid "$pid" --space 1 0x1000 2
	run 0 --json walk --pid "$pid" --space 1 0x1000
	json '.page == {pfn: 2, mfn: null, p2m_mfn: null}'
	json '[.steps[] | [.table_pfn, .table_mfn]] == [range(8; 12) | [., null]]'
	json '.steps[3].raw == "0x8000000000000007" and .steps[3].val == "0x8000000000002007"'
	run 0 space dump --pid "$pid" --space 1
	[[ $out == *'0x00000002 -> hidden      rw-u-----' ]] || fail "$out"
	run 1 walk --cpu --pid "$pid" --space 1 0x1000
	complains 'hint: '
}

user_with_access_sees_no_mfns() {
	for_everybody
	as_nobody
	expect_hidden
}

root_without_capability_sees_no_mfns() {
	as=(setpriv --bounding-set -sys_admin --inh-caps -sys_admin)
	expect_hidden
}

user_cannot_attach_to_root() {
	hold 64K
	as_nobody
	run 1 map --pid "$pid" --fd "$fd"
	complains 'hint: needs the right to trace the process'
}

completions_are_a_script() {
	run 0 completions bash
	bash -n "$tmp/out" || fail 'bash does not understand it'
	[[ $out == *translate* ]] || fail 'a command is missing'
}

alloc_on_demand_takes_what_is_touched() {
	run 0 alloc 1M --on-demand
	matches 'region   PFN 0x0\.\.0x100 \(1 MiB, 256 pages\), policy any, on demand' \
		'machine  0 runs, longest 0 pages' \
		'sample   PFN 0x00 -> nothing' \
		'         PFN 0x01 -> nothing' \
		'         PFN 0x02 -> nothing' \
		'         \.\.\.' \
		'         PFN 0xff -> nothing' \
		'demand   0 of 256 pages had a frame at first, 0 have one now'
	run 0 --json alloc 1M --on-demand --populate --check --policy scatter
	json '.region.on_demand and .demand == {pages: 256, frames_at_first: 0, frames: 256}'
	json '.check.ok and .linear.ok and .machine.longest_run_pages == 1'

	python '
fd = os.open("/dev/p2m", os.O_RDWR)
create(fd, 0, 64, flags=3)
memory = mmap.mmap(fd, 64 * PAGE)
for pfn in 1, 3, 62:
    memory[pfn * PAGE] = 1
'
	run 0 --json stat "${domain[@]}"
	json '.pages == 64 and .frames == 3'
	run 0 --json map "${domain[@]}" --pages
	json '[.pages[] | select(.mfn) | .pfn] == [1, 3, 62]'
	json '.regions[0].on_demand'
}

# expect_tables SPACE ROOT LEVELS NUMBER: what the space maps, as p2m lists it, is
# what is found from the root on in the machine's memory, and as many pages.
expect_tables() {
	outside tables "$pid" "$fd" "$2" "$3" >"$tmp/expected"
	run 0 --json space dump --pages "${domain[@]}" --space "$1"
	jq -r '.[] | select(.present) | "\(.address) \(.pfn) \(.mfn) \(.flags)"' \
		<<<"$out" >"$tmp/found" || fail "$out"
	diff "$tmp/expected" "$tmp/found" >"$tmp/diff" ||
		fail "tables and p2m differ: $(head -n 4 "$tmp/diff" | tr '\n' ' ')"
	is "$(wc -l <"$tmp/found")" "$4" 'number of pages mapped'
}

# audit: the module finds nothing wrong with itself.
audit() {
	run 0 --json audit "${domain[@]}"
	json '.ok and ([to_entries[] | select(.key | endswith("_bad")) | .value] |
		all(. == 0 or . == false))'
}

# Create a space with its tables from PFN 0x300 on.
space() {
	run 0 --json space create "${domain[@]}" --pool 0x300..0x380 "$@"
	json '.space == 1 and .root_pfn == 768 and .pool_pages == 128'
	space=("${domain[@]}" --space 1)
}

space_tables_are_what_the_processor_needs() {
	local backend levels

	for backend in p2m p2m-lossless; do
		for levels in 4 5; do
			hold 4M --policy scatter
			space --backend "$backend" --levels "$levels"
			run 0 space map "${space[@]}" 0x400000 0x100..0x200 --flags rwu
			run 0 space map "${space[@]}" 0x7ffffffff000 0x17 --flags rx
			run 0 space map "${space[@]}" 0x8000001000 0x20..0x22 --flags rwuxtcpAD
			run 0 space protect "${space[@]}" 0x410000..0x420000 --flags ru
			run 0 space remap "${space[@]}" 0x418000 0x40..0x48
			run 0 space unmap "${space[@]}" 0x480000..0x490000
			run 0 space unmap "${space[@]}" 0x400000
			expect_tables 1 768 "$levels" $((256 + 1 + 2 - 16 - 1))
			json 'any(.[]; .address == 4296704 and .pfn == 65 and .flags == "r--u-----")'
			audit
			run 0 space unmap "${space[@]}" --all
			expect_tables 1 768 "$levels" 0
			kill "$pid"
		done
	done
}

space_tables_have_large_leaves() {
	hold 4M
	run 0 contig "${domain[@]}" 0..0x200
	space
	run 0 space map "${space[@]}" 0x40000000 0..0x200 --max-leaf 2M --flags rwup
	run 0 --json space dump "${space[@]}"
	json '[.[] | [.address, .nr_pages, .pfn, .level, .flags]] ==
		[[1073741824, 512, 0, "pmd", "rw-u--p--"]]'
	expect_tables 1 768 4 512
	run 0 --json walk "${space[@]}" 0x40123456
	json '.page.pfn == 291 and (.steps | length) == 3'
	# What stays of a leaf is in small ones.
	run 0 space unmap "${space[@]}" 0x40100000
	expect_tables 1 768 4 511
	json 'all(.[]; .level == "pte" and .flags == "rw-u--p--")'
}

space_tables_follow_their_pages() {
	local mfn

	hold 4M
	space
	run 0 space map "${space[@]}" 0x400000 0..0x200
	run 0 space map "${space[@]}" 0x200000000 0x180..0x280 --flags ru
	# The tables themselves can't move.
	for change in '1:move --policy scatter' '0:contig 0..0x200' '0:exchange 0..0x80 0x200' \
		'0:move 0x100..0x180'; do
		# shellcheck disable=SC2086
		run "${change%%:*}" ${change#*:} "${domain[@]}"
		expect_tables 1 768 4 768
		audit
	done
	run 0 --json translate "${domain[@]}" 0
	mfn=$(jq '.[0].mfn' <<<"$out")
	run 0 evacuate "${domain[@]}" "$mfn"
	expect_tables 1 768 4 768
	json "all(.[]; .mfn != $mfn)"
}

space_reads_well() {
	local hex='0x[0-9a-f]'

	hold 4M --policy scatter
	run 0 space create "${domain[@]}" --pool 0x300..0x380
	matches 'space    1, backend p2m, 4 levels, pool PFN 0x300\.\.0x380 \(128 pages\)' \
		"root     PFN 0x300 -> MFN $hex+"
	space=("${domain[@]}" --space 1)
	run 0 space dump "${space[@]}"
	matches 'nothing is mapped'
	run 0 space map "${space[@]}" 0x400000 0x10..0x12
	matches 'mapped   2 pages'
	run 0 walk "${space[@]}" 0x401008
	matches "level  table PFN -> MFN +entry  raw \(machine\)       value \(pseudo-physical\)  flags" \
		"p4d    0x0*300 -> $hex+ +\[  0\]  ${hex}{16}  0x0000000000301007       rwxu-----" \
		"pud    0x0*301 -> $hex+ +\[  0\]  ${hex}{16}  0x0000000000302007       rwxu-----" \
		"pmd    0x0*302 -> $hex+ +\[  2\]  ${hex}{16}  0x0000000000303007       rwxu-----" \
		"pte    0x0*303 -> $hex+ +\[  1\]  0x8${hex#0x}{15}  0x8000000000011007       rw-u-----" \
		"page   0x0*011 -> $hex+"
	run 0 space protect "${space[@]}" 0x400000..0x402000 --flags r
	matches 'changed  2 pages'
	run 0 space remap "${space[@]}" 0x401000 0x20
	matches 'remapped 1 page'
	run 0 space dump "${space[@]}"
	matches 'address                pages  leaf         PFN -> MFN         flags' \
		"0x00000000400000           1  pte   0x00000010 -> ${hex}{8}  r--------" \
		"0x00000000401000           1  pte   0x00000020 -> ${hex}{8}  r--------"
	run 0 space unmap "${space[@]}" 0x401000
	matches 'unmapped 1 page'
	run 0 space destroy "${space[@]}"
	matches 'space    1 is destroyed'
}

space_says_what_is_wrong() {
	hold 4M
	run 1 space create "${domain[@]}" --pool 0x300..0x380 --backend xen
	complains 'hint: no backend has this name: try p2m, p2m-lossless or native'
	run 1 space create "${domain[@]}" --pool 0x3f0..0x410
	complains "hint: a page of the pool isn't populated"
	run 1 space create "${domain[@]}" --pool 0x7fffffff..0x80000001
	complains 'hint: the range ends beyond the last possible PFN'
	space
	run 1 space create "${domain[@]}" --pool 0x37f..0x390
	complains 'hint: a page of the pool is in that of another space'
	run 0 space create "${domain[@]}" --pool 0x380..0x384
	# Four tables, of which each is needed for the first page.
	run 0 space map "${domain[@]}" --space 2 0 1
	run 1 space map "${domain[@]}" --space 2 0x200000 2
	complains 'hint: the table pool has too few pages'

	for command in 'space map 0 0' 'space dump' 'space destroy' 'walk 0'; do
		# shellcheck disable=SC2086
		run 1 $command "${domain[@]}" --space 99
		complains 'hint: the domain has no space of this number'
	done
	run 0 space map "${space[@]}" 0x1000 1..4
	run 1 space map "${space[@]}" 0x3000 8
	complains 'hint: something is mapped there: unmap it before'
	run 1 space map "${space[@]}" 0x10001 8
	complains 'hint: addresses have to be multiples of the page size'
	run 1 space map "${space[@]}" 0x7ffffffff000 8..10
	complains 'hint: the range ends beyond the space'
	run 1 space unmap "${space[@]}" 0x100000
	complains 'hint: not all of it is mapped there'
	run 1 space protect "${space[@]}" 0x1000..0x5000 --flags r
	complains 'hint: not all of it is mapped there'
	run 1 walk "${space[@]}" 0x800000000000
	complains 'hint: the address is beyond the space'
	run 0 --json space dump "${space[@]}"
	json '[.[] | [.address, .nr_pages, .pfn]] == [[4096, 3, 1]]'
	audit
}

space_goes_when_it_is_destroyed() {
	hold 4M
	space
	run 0 space map "${space[@]}" 0x1000 1..4
	run 0 space destroy "${space[@]}"
	run 1 space dump "${space[@]}"
	complains 'hint: the domain has no space of this number'
	# Nothing is kept from going any more.
	run 0 release "${domain[@]}" 0..0x400
	run 0 --json stat "${domain[@]}"
	json '.frames == 0'
}

space_list_knows_all() {
	local i

	hold 4M
	run 0 --json space list "${domain[@]}"
	json '. == []'
	for i in 1 2 3; do
		run 0 space create "${domain[@]}" --pool "$((0x300 + 0x10 * i))..$((0x310 + 0x10 * i))" \
			--backend "$([[ $i == 2 ]] && echo native || echo p2m)" --levels $((i == 3 ? 5 : 4))
	done
	run 0 space map "${domain[@]}" --space 3 0x1000 1..4
	run 0 space destroy "${domain[@]}" --space 1
	run 0 space list "${domain[@]}"
	matches 'space    2, backend native, 4 levels, pool PFN 0x320\.\.0x330 \(16 pages, 1 in use\), root PFN 0x320' \
		'         3, backend p2m, 5 levels, pool PFN 0x330\.\.0x340 \(16 pages, 5 in use\), root PFN 0x330'
	run 0 --json space list "${domain[@]}"
	json '[.[].space] == [2, 3] and [.[].tables] == [1, 5] and .[1].root_pfn == 816'
}

walk_agrees_with_the_machine() {
	local address

	hold 4M --policy scatter
	space --levels 5
	run 0 space map "${space[@]}" 0x400000 0x100..0x200
	run 0 space map "${space[@]}" 0xffffffffff000 0x17 --flags rx
	outside tables "$pid" "$fd" 768 5 >"$tmp/tables"
	for address in 0x400000 0x4ff123 0xffffffffff000; do
		run 0 --json walk "${space[@]}" "$address"
		json '(keys_unsorted | join(" ")) == "address steps page end cpu"'
		json '[.steps[].level] == ["pgd", "p4d", "pud", "pmd", "pte"]'
		# Each entry is in the machine's memory, where the one above leads.
		is "$(jq -r '.steps[] | "\(.table_mfn) \(.index)"' <<<"$out" | outside entries)" \
			"$(jq -r '.steps[].raw' <<<"$out")" 'entries'
		is "$(outside frames <<<"$out")" good 'frames'
		is "$(jq -r '"\(.address - .address % 4096) \(.page.pfn) \(.page.mfn) \(
			.steps[-1].flags)"' <<<"$out")" \
			"$(grep "^$((address & ~4095)) " "$tmp/tables")" page
	done
}

walk_says_why_there_is_no_page() {
	hold 4M
	run 0 release "${domain[@]}" 0x10
	space --backend p2m-lossless
	run 0 space map "${space[@]}" 0x10000 0x10..0x12
	run 0 walk "${space[@]}" 0x10000
	is "$(tail -n 1 "$tmp/out")" \
		'page   none: the pte entry is not present, but keeps PFN 0x10' end
	run 0 walk "${space[@]}" 0x12000
	[[ $out == *'empty'$'\n''page   none: the pte entry is empty' ]] || fail "$out"
	run 0 --json walk "${space[@]}" 0x40000000
	json '.page == null and .end == "the pud entry is empty" and (.steps | length) == 2'
	run 0 space dump "${space[@]}"
	[[ $out == *'0x00000010 -> no frame    -w-u-----'* ]] || fail "$out"
}

walk_notices_where_native_tables_lead() {
	hold 4M --policy scatter
	space --backend native
	run 0 space map "${space[@]}" 0x10000 0x10
	run 0 walk "${space[@]}" 0x10000
	[[ $out == *'the processor goes elsewhere' ]] || fail "$out"
	run 0 --json walk "${space[@]}" 0x10000
	json '.page.mfn == 16 and .page.p2m_mfn > 16'
	json 'all(.steps[]; .raw == .val)'
	run 1 walk --cpu "${space[@]}" 0x10000
	complains 'hint: the processor walks tables of the backends p2m and p2m-lossless only'
}

# The processor can be had to access spaces; else that's what is said.
needs_cpu_access() {
	run 0 --json info
	jq -e .cpu_access <<<"$out" >/dev/null && return
	run 1 walk --cpu "${space[@]}" 0x10000
	complains 'hint: the processor walks tables'
	skip 'the processor can not be had to access spaces'
}

walk_cpu_finds_what_the_domain_has() {
	hold 4M --policy scatter
	space
	run 0 space map "${space[@]}" 0x10000 0x10..0x12
	needs_cpu_access

	run 0 walk --cpu "${space[@]}" 0x11008
	# The word of p2m alloc, and what the processor leaves in all tables.
	word=$(printf '0x%016x' "$(outside words "$pid" "$fd" 17 1 1)")
	is "$(tail -n 1 "$tmp/out")" \
		"cpu    reads $word, and the page of the domain has $word: ok" cpu
	is "$(grep -c -- '---A-$' "$tmp/out")" 4 'accessed entries'
	run 0 --json walk --cpu "${space[@]}" 0x12000
	json '.cpu.ok and .page == null and (.cpu.fault | contains("no page is present"))'
}

access_by_the_processor() {
	hold 4M --policy scatter
	space
	run 0 space map "${space[@]}" 0x10000 0x10..0x12 --flags rw
	run 0 space map "${space[@]}" 0x12000 0x20 --flags r
	needs_cpu_access

	run 0 --json space access "${space[@]}" 0x10ff0 --words 4
	# shellcheck disable=SC2046
	is "$(jq -r '.words[]' <<<"$out")" "$(printf '0x%016x\n' \
		$(outside words "$pid" "$fd" 16 510 2) $(outside words "$pid" "$fd" 17 0 2))" words
	run 0 space access "${space[@]}" 0x10ff0 --write 1 0xffffffffffffffff 3
	matches 'written  3 words, checksum 0x[0-9a-f]{16}'
	is "$(outside words "$pid" "$fd" 16 510 2)" '1 18446744073709551615' 'words written'
	is "$(outside words "$pid" "$fd" 17 0 1)" 3 'word written'
	run 0 --json space dump "${space[@]}"
	json '[.[].flags] == ["rw-----AD", "rw-----AD", "r--------"]'
	run 0 --json space access "${space[@]}" 0x10ff0 --words 3 --checksum
	json '.words == null and .accessed == 3'
	checksum=$(jq -r .checksum <<<"$out")
	is "$checksum" "$(outside checksum 1 $((-1)) 3)" checksum
	run 0 space access "${space[@]}" 0x10ff0 --words 3
	matches '0x00000000010ff0  0x0000000000000001 0xffffffffffffffff 0x0000000000000003' \
		"read     3 words, checksum $checksum"

	# From a page that may be written to one that may not, and to none.
	run 1 space access "${space[@]}" 0x11ff8 --write 7 8
	[[ $out == 'written  1 word, '*"fault    page fault by a write at 0x12000: the page doesn't allow it" ]] ||
		fail "$out"
	run 1 --json space access "${space[@]}" 0x12ff0 --words 9
	json '.accessed == 2 and (.words | length) == 2'
	json '.fault == {address: 77824, protection: false, write: false}'
	run 1 space access "${space[@]}" 0x10001
	complains 'hint: the address has to be a multiple of 8'
	audit
}

live_changes_while_a_process_writes() {
	local before frames rounds change

	python "
words_of_page = PAGE // 8
nr_pages = 512
fd = os.open('/dev/p2m', os.O_RDWR)
create(fd, 0, 2 * nr_pages)
memory = mmap.mmap(fd, 2 * nr_pages * PAGE)
for page in range(2 * nr_pages):
    struct.pack_into('=QQ', memory, page * PAGE, page, 0)
    struct.pack_into('=Q', memory, page * PAGE + PAGE - 8, ~page % 2**64)
words = memoryview(memory).cast('Q')
print('{}', flush=True)
rounds = 0
# The upper half of the pages stays as it is.
while not os.path.exists('$tmp/stop'):
    for page in range(nr_pages):
        start = page * words_of_page
        found = words[start], words[start + 1], words[start + words_of_page - 1]
        assert found == (page, rounds, ~page % 2**64), f'page {page}: {found}'
        words[start + 1] = rounds + 1
    rounds += 1
with open('$tmp/rounds.new', 'w') as file:
    print(rounds, file=file)
os.rename('$tmp/rounds.new', '$tmp/rounds')
"
	before=$(outside digest "$pid" "$fd" 512 512)
	for change in move 'move --policy scatter' 'contig 0..0x200' 'exchange 0..0x200 0x200' \
		'move --policy scatter --seed 9' 'contig 0x100..0x300' 'exchange 0x80..0x100 0x100'; do
		frames=$(pagemap_mfns)
		# shellcheck disable=SC2086
		run 0 $change "${domain[@]}"
		audit
		[[ $frames != "$(pagemap_mfns)" ]] || fail "$change: changed nothing"
		is "$(outside digest "$pid" "$fd" 512 512)" "$before" "contents after $change"
	done
	run 0 --json map "${domain[@]}"
	frames=$(jq '[.runs[] | .mfn + .nr_pages] | max' <<<"$out")
	run 0 --json evacuate "${domain[@]}" "$((frames / 2))..$frames"
	json '.left == 0 and .busy == 0'
	audit
	is "$(outside digest "$pid" "$fd" 512 512)" "$before" 'contents after evacuate'
	run 0 check "${domain[@]}"

	: >"$tmp/stop"
	for ((i = 0; i < 300; i++)); do
		[[ ! -e $tmp/rounds ]] || break
		kill -0 "$pid" || fail "the writer has ended: $(<"$tmp/hold")"
		sleep 0.1
	done
	rounds=$(<"$tmp/rounds")
	((rounds > 1)) || fail "only $rounds rounds of writing"
}

# The machine frames of $pid, as the module has them.
pagemap_mfns() {
	run 0 --json map --pages "${domain[@]}"
	jq -c '[.pages[].mfn]' <<<"$out"
}

release_and_populate() {
	hold 2M --policy scatter
	run 0 release "${domain[@]}" 0x10..0x50
	matches 'release  64 pages' 'domain   448 of 512 pages have a frame'
	run 0 --json map "${domain[@]}" 0x10..0x51
	json '[.runs[] | [.pfn, .nr_pages, .type]] == [[16, 64, "invalid"], [80, 1, "frame"]]'
	run 0 --json stat "${domain[@]}"
	json '.pages == 512 and .frames == 448'
	# What isn't there is passed over.
	run 0 --json release "${domain[@]}" 0..0x50
	json '. == {operation: "release", pages: 16, busy: 0, frames: 432, of: 512}'
	audit
	run 0 populate "${domain[@]}" 0x20..0x28
	matches 'populate 8 pages' 'domain   440 of 512 pages have a frame'
	run 0 --json populate "${domain[@]}"
	json '.pages == 72 and .frames == 512'
	run 0 --json map "${domain[@]}"
	json 'all(.runs[]; .nr_pages == 1 and .type == "frame")'
	# Pages come back empty, the others are what they were.
	is "$(outside words "$pid" "$fd" 79 0 1)" 0 'first word of a new page'
	[[ $(outside words "$pid" "$fd" 80 0 1) != 0 ]] || fail 'a page lost its contents'
	audit
}

release_says_what_is_wrong() {
	hold 4M
	space
	run 0 space map "${space[@]}" 0x1000 1..4
	for range in 3 0x300 0..0x400; do
		run 1 release "${domain[@]}" "$range"
		complains 'hint: a space maps a page of it or has its tables there'
		is "$out" '' 'standard output'
	done
	for command in 'release 0x400' 'populate 0x400' 'release 0x10000000..0x10000010'; do
		# shellcheck disable=SC2086
		run 1 $command "${domain[@]}"
		complains 'hint: a PFN of the range is in no region'
	done
	run 0 --json stat "${domain[@]}"
	json '.frames == 1024'
	# What was done by then is told.
	run 1 release "${domain[@]}" 0x380..0x401
	complains 'cannot release the pages any further than 128 of them: No such file'
	matches 'release  128 pages' 'domain   896 of 1024 pages have a frame'
}

move_gives_other_frames() {
	local before digest

	hold 4M --policy contiguous
	before=$(pagemap_mfns) digest=$(outside digest "$pid" "$fd" 0 1024)
	run 0 move "${domain[@]}" --policy scatter --seed 3
	matches 'move     1024 pages' \
		'before   1 run, longest 1024 pages, MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+' \
		'after    1024 runs, longest 1 page, MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+'
	jq -en --argjson a "$before" --argjson b "$(pagemap_mfns)" \
		'[$a, $b] | transpose | all(.[0] != .[1])' >/dev/null || fail 'a page stayed'
	is "$(outside digest "$pid" "$fd" 0 1024)" "$digest" contents
	before=$(pagemap_mfns)
	run 0 --json move "${domain[@]}" 7
	json '.operation == "move" and .pages == 1 and .busy == 0 and .after.runs == 1'
	jq -en --argjson a "$before" --argjson b "$(pagemap_mfns)" \
		'[range(1024) | select($a[.] != $b[.])] == [7]' >/dev/null || fail 'others moved'
	# Where nothing is, nothing moves.
	run 0 --json move "${domain[@]}" 0x10000..0x20000
	json '.pages == 0'
	audit
}

move_leaves_pinned_pages_alone() {
	python '
fd = os.open("/dev/p2m", os.O_RDWR)
create(fd, 0, 16)
memory = mmap.mmap(fd, 16 * PAGE)
memory.write(b"x" * 16 * PAGE)
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pipe = os.pipe()
vector = iovec(address + 5 * PAGE, PAGE)
assert ctypes.CDLL(None).vmsplice(pipe[1], ctypes.byref(vector), 1, 0) == PAGE
'
	run 0 --json audit "${domain[@]}"
	json '.ok and .pinned == 1 and .frames == 16'
	run 1 move "${domain[@]}"
	[[ $out == 'move     15 pages, 1 page left alone as somebody has pinned them: FAILED'* ]] ||
		fail "$out"
	run 1 --json exchange "${domain[@]}" 4..6 8
	json '.pages == 1 and .busy == 1'
	run 1 contig "${domain[@]}" 4..8
	complains 'because of PFN 0x5'
	complains "hint: somebody else uses the page, or it's a table of a space"
	run 1 space create "${domain[@]}" --pool 5..6
	complains 'hint: somebody else uses a page of the pool'
	audit
}

evacuate_leaves_nothing() {
	local start end middle

	hold 8M
	run 0 --json map "${domain[@]}"
	start=$(jq '[.runs[].mfn] | min' <<<"$out")
	end=$(jq '[.runs[] | .mfn + .nr_pages] | max' <<<"$out")
	middle=$(((start + end) / 2))
	inside="[.runs[] | range(.mfn; .mfn + .nr_pages) | select(. >= $start and . < $middle)] | length"
	number=$(jq "$inside" <<<"$out")
	((number > 0)) || fail 'nothing to evacuate'
	run 0 evacuate "${domain[@]}" "$start..$middle" --keep-out
	matches "evacuate $number pages? out of MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+" \
		'left     0 pages of the domain'
	run 0 --json check "${domain[@]}"
	# It is kept out of, whatever comes.
	run 0 move "${domain[@]}" --policy scatter
	run 0 move "${domain[@]}"
	run 0 --json map "${domain[@]}"
	json "($inside) == 0"
	run 0 evacuate "${domain[@]}" "$start..$middle" --readmit
	matches 'readmit  MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+' 'left     0 pages of the domain'
	audit
}

evacuate_says_what_is_wrong() {
	hold 64K
	run 1 evacuate "${domain[@]}" 0..0x100 --readmit
	complains "hint: the domain doesn't keep out of any frame of this range"
	run 1 evacuate "${domain[@]}" 0..0xffffffffffffffff
	complains 'hint: the range ends beyond the last possible MFN'
}

collapse_makes_superpages() {
	hold 5M --policy scatter --seed 3
	run 0 collapse "${domain[@]}" 0..0x500
	matches 'collapse 1024 pages' 'range    2 superpages in the range'
	run 0 --json map "${domain[@]}"
	json '[.runs[] | select(.pfn % 512 == 0 and .nr_pages >= 512 and .mfn % 512 == 0)] |
		length > 0'
	run 0 --json collapse "${domain[@]}" 0..0x500
	json '.operation == "collapse" and .pages == 0 and .superpages == 2'
	run 0 check "${domain[@]}"
	run 1 collapse "${domain[@]}" 0..0x600
	complains 'in no region'
}

contig_is_one_run() {
	local digest

	hold 4M --policy scatter
	digest=$(outside digest "$pid" "$fd" 0 1024)
	run 0 contig "${domain[@]}" 0x80..0x100
	matches 'contig   128 pages' \
		'before   128 runs, longest 1 page, MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+' \
		'after    1 run, longest 128 pages, MFN 0x[0-9a-f]+\.\.0x[0-9a-f]+'
	run 0 --json map "${domain[@]}" 0x80..0x100
	json '(.runs | length) == 1 and .runs[0].mfn % 128 == 0'
	run 0 --json contig "${domain[@]}" 0..0x100 --address-bits 30
	json '.operation == "contig" and .pages == 256 and .after.end_mfn <= 262144'
	is "$(outside digest "$pid" "$fd" 0 1024)" "$digest" contents
	audit
}

contig_says_what_is_wrong() {
	local before

	hold 4M --policy scatter
	before=$(pagemap_mfns)
	run 1 contig "${domain[@]}" 0..3
	complains 'hint: the number of pages has to be a power of two'
	run 1 contig "${domain[@]}" 0..0x100 --address-bits 13
	complains 'hint: there is no such run of free frames'
	run 1 contig "${domain[@]}" 0x300..0x500
	complains 'hint: a PFN of the range is in no region'
	space
	run 1 contig "${domain[@]}" 0x200..0x400
	complains 'because of PFN 0x300'
	complains "it's a table of a space"
	is "$(pagemap_mfns)" "$before" frames
	run 0 release "${domain[@]}" 0x17
	before=$(pagemap_mfns)
	run 1 contig "${domain[@]}" 0..0x100
	complains 'because of PFN 0x17'
	complains "hint: a page of the range isn't populated"
	is "$(pagemap_mfns)" "$before" frames
}

exchange_swaps_frames() {
	local before digest

	hold 4M --policy scatter
	before=$(pagemap_mfns) digest=$(outside digest "$pid" "$fd" 0 1024)
	run 0 exchange "${domain[@]}" 0..0x180 0x200
	matches 'exchange 384 pairs' 'before   .*' 'after    .*'
	jq -en --argjson a "$before" --argjson b "$(pagemap_mfns)" \
		'$b == $a[512:896] + $a[384:512] + $a[:384] + $a[896:]' >/dev/null || fail 'not swapped'
	is "$(outside digest "$pid" "$fd" 0 1024)" "$digest" contents
	run 1 exchange "${domain[@]}" 0..4 3
	complains 'hint: the ranges have a page in common'
	run 1 exchange "${domain[@]}" 0..4 0x3fd
	complains 'hint: a PFN of the range is in no region'
	run 0 release "${domain[@]}" 0x3ff
	run 1 exchange "${domain[@]}" 0..4 0x3fc
	complains "hint: a page of the range isn't populated"
	audit
}

audit_reads_at_a_glance() {
	hold 1M
	run 0 audit "${domain[@]}"
	matches 'audit    256 frames, 0 of them pinned by somebody else' \
		"         0 PFNs whose frame isn't theirs by the M2P: ok" \
		"         0 frames whose PFN isn't theirs by the P2M: ok" \
		'         0 pages in no region: ok' \
		'         0 frames with too few references: ok' \
		'         0 entries of spaces with an unknown frame: ok' \
		'         0 wrong counts of frames: ok'
	run 0 --json audit "${domain[@]}"
	json '(keys_unsorted | join(" ")) == "ok frames pinned p2m_bad m2p_bad orphans " +
		"refs_bad spaces_bad count_bad first_pfn first_mfn"'
	json '.frames == 256 and .first_pfn == null and .first_mfn == null'
}

region_has_the_frames_that_were_asked_for() {
	hold 16K
	run 0 region create "${domain[@]}" 256K --below 1G --base 0x1000
	matches 'region   PFN 0x1000\.\.0x1040 \(256 KiB, 64 pages\), policy any, MFN 0x0\.\.0x40000'
	run 0 --json region create "${domain[@]}" 256K --mfns 0x100..0x30000 --colour 3/16 \
		--policy scatter --seed 7 --base 0x2000
	json '.mfns == {start: 256, end: 196608} and .colour == {colour: 3, of: 16} and .seed == 7'
	run 0 region create "${domain[@]}" 128K --guarded --base 0x3000
	run 0 region create "${domain[@]}" 128K --node 0 --base 0x4000 --on-demand
	run 0 --json region list "${domain[@]}"
	json '[.[].base_pfn] == [0, 4096, 8192, 12288, 16384]'
	json '[.[].guarded] == [false, false, false, true, false]'
	json '[.[].node] == [null, null, null, null, 0]'
	json '[.[] | .colour.of, .mfns.end] == [null, null, null, 262144, 16, 196608, null, null, null, null]'
	json '.[4].on_demand'
	run 0 region list "${domain[@]}"
	matches 'region   PFN 0x0\.\.0x4 .*, policy any' '         PFN 0x1000\.\..*, MFN 0x0\.\.0x40000' \
		'         PFN 0x2000\.\..*, policy scatter, seed 7, MFN 0x100\.\.0x30000, colour 3 of 16' \
		'         PFN 0x3000\.\..*, policy any, guarded' \
		'         PFN 0x4000\.\..*, policy any, on demand, node 0'
	# All that was asked is so, and stays so.
	for change in '' 'populate 0x4000..0x4020' 'move --policy scatter'; do
		# shellcheck disable=SC2086
		[[ ! $change ]] || run 0 $change "${domain[@]}"
		run 0 --json map --pages "${domain[@]}"
		json '[.pages[] | select(.pfn >= 4096 and .pfn < 8192)] | length == 64 and
			all(.mfn < 262144)'
		json '[.pages[] | select(.pfn >= 8192 and .pfn < 12288)] | length == 64 and
			all(.mfn >= 256 and .mfn < 196608 and .mfn % 16 == 3)'
		json '[.pages[].mfn] as $all |
			[.pages[] | select(.pfn >= 12288 and .pfn < 16384) | .mfn] |
			length == 32 and all(. as $mfn | $all | index($mfn + 1) == null)'
	done
	run 0 --json stat "${domain[@]}"
	json '.guards >= 33 and .frames == 196'
	audit
}

region_says_what_is_wrong() {
	hold 64K
	run 1 region create "${domain[@]}" 64K --base 8
	complains 'hint: there is a region already'
	run 1 region create "${domain[@]}" 64K --colour 0/2 --policy contiguous
	complains "hint: a contiguous region can't be"
	run 1 region destroy "${domain[@]}" 1
	complains 'hint: no region begins at this PFN'
}

region_comes_and_goes() {
	hold 64K
	run 0 --json region create "${domain[@]}" 64K
	json '.base_pfn == 512 and .bytes == 65536'
	run 0 region destroy "${domain[@]}" 512
	matches 'region   at PFN 0x200 is destroyed'
	run 0 --json region destroy "${domain[@]}" 0
	json '. == {destroyed: 0}'
	run 0 --json region list "${domain[@]}"
	json '. == []'
}

guard_check_finds_who_runs_over_the_edge() {
	local mfn

	# The device reaches 28 bits.
	hold 64K --guarded --below 256M
	run 0 guard check "${domain[@]}"
	matches 'guards   32 guards looked at: ok'
	run 0 --json guard check "${domain[@]}" 3..5
	json '. == {ok: true, checked: 4, broken: 0, first: null, refilled: false}'
	run 1 guard check "${domain[@]}" 0x100
	complains 'hint: a PFN of the range is in no region'
	run 0 --json map --pages "${domain[@]}"
	mfn=$(jq '.pages[7].mfn' <<<"$out")
	[[ $(outside overrun "$mfn" 8) == 'done' ]] ||
		skip 'no device that does as it is told, or an IOMMU in its way'

	run 1 guard check "${domain[@]}" 7
	matches 'guards   2 guards looked at, 1 broken: FAILED' \
		'first    PFN 0x7, at byte 0x1000 behind its beginning: 0x[0-9a-f]{16} instead of 0x7261756721326d70'
	outside overrun "$mfn" -3 >/dev/null
	run 1 --json guard check "${domain[@]}" 7 --refill
	json '.broken == 2 and .first.pfn == 7 and .first.offset == -3 and .refilled'
	run 0 guard check "${domain[@]}"
	audit
}

# hold_two SIZE SIZE: have two processes hold a region each. Sets lender, which are
# the arguments to have foreign pages from the first one, and domain for the other.
hold_two() {
	hold "$1"
	lender=(--from-pid "$pid") lender_domain=("${domain[@]}") lender_pid=$pid lender_fd=$fd
	hold "$2"
}

foreign_pages_are_seen_by_both() {
	hold_two 64K 64K
	run 0 release "${domain[@]}" 4..8
	run 0 foreign map "${domain[@]}" "${lender[@]}" 4 0..4
	matches 'mapped   4 pages'
	run 0 --json map --pages "${domain[@]}" 4..8
	mine=$(jq -c '[.pages[] | [.type, .mfn]]' <<<"$out")
	run 0 --json map --pages "${lender_domain[@]}" 0..4
	is "$(jq -c '[.pages[] | ["foreign", .mfn]]' <<<"$out")" "$mine" 'foreign frames'
	is "$(outside digest "$pid" "$fd" 4 4)" "$(outside digest "$lender_pid" "$lender_fd" 0 4)" contents
	# The other one's pages stay where they are meanwhile.
	run 1 --json move "${lender_domain[@]}" 0..8
	json '.pages == 4 and .busy == 4'
	run 0 --json foreign unmap "${domain[@]}" 4..6
	json '. == {operation: "unmapped", pages: 2, failed: []}'
	# What isn't foreign doesn't keep others from going.
	run 1 foreign unmap "${domain[@]}" 5..9
	matches 'unmapped 2 pages' 'failed   PFN 0x5: no page of another domain is there' \
		'         PFN 0x8: no page of another domain is there'
	run 0 --json move "${lender_domain[@]}" 0..8
	json '.pages == 8'
	audit
}

foreign_says_what_is_wrong() {
	hold_two 64K 64K
	run 0 release "${domain[@]}" 0..2
	run 1 --json foreign map "${domain[@]}" "${lender[@]}" 0 0xe..0x12
	json '.pages == 2 and [.failed[] | [.pfn, .errno]] == [[2, 14], [3, 14]]'
	run 1 foreign map "${domain[@]}" "${lender[@]}" 1 0..1
	matches 'mapped   0 pages' 'failed   PFN 0x1: something is there already'
	run 1 foreign map "${domain[@]}" --from-pid "$pid" 0 0..1
	complains 'hint: the other domain has to be another one'
}

identity_is_for_what_is_no_memory() {
	hold 64K
	# Registers of the I/O APIC and of others, in every PC.
	run 0 region create "${domain[@]}" 64K --base 0xfec00 --on-demand
	run 0 identity "${domain[@]}" 0xfec00..0xfec02
	matches 'identity PFN 0xfec00\.\.0xfec02 \(2 pages\)'
	run 0 --json map "${domain[@]}" 0xfec00..0xfec03
	json '[.runs[] | [.pfn, .nr_pages, .type]] == [[1043456, 2, "identity"], [1043458, 1, "invalid"]]'
	run 1 identity "${domain[@]}" 0xfec01
	complains 'hint: something is at one of the PFNs'
	run 1 identity "${domain[@]}" 5
	complains 'hint: some of the machine frames are memory'
	run 1 identity "${domain[@]}" 0xfed00
	complains 'hint: a PFN of the range is in no region'
	as=(setpriv --bounding-set -sys_rawio --inh-caps -sys_rawio)
	run 1 identity "${domain[@]}" 0xfec08
	complains 'hint: needs CAP_SYS_RAWIO'
}

fail_nth_fails_once() {
	hold 64K
	run 0 fail-nth "${domain[@]}" 1
	matches 'fails    place 1 from now on' 'left     0 to count since the last time'
	run 1 move "${domain[@]}"
	complains 'hint: memory is short'
	run 0 move "${domain[@]}"
	run 0 fail-nth "${domain[@]}" 1000000
	run 0 move "${domain[@]}"
	run 0 --json fail-nth "${domain[@]}" 0
	json '.nth == 0 and .left > 0 and .left < 1000000'
	audit
}

# total NAME: a counter of all domains that there ever were.
total() {
	awk -v "name=$1" '$1 == name { print $2 }' /sys/kernel/debug/p2m/stat
}

# counter NAME: a counter of the domain.
counter() {
	awk -v "name=p2m-$1:" '$1 == name { print $2 }' "/proc/$pid/fdinfo/$fd"
}

counters_add_up() {
	local -A before after

	hold 64K
	for name in populated released moved busy; do
		before[$name]=$(total "$name")
	done
	is "$(counter populated) $(counter released) $(counter moved)" '16 0 0' counters
	run 0 release "${domain[@]}" 0..4
	run 0 populate "${domain[@]}" 0..2
	run 0 move "${domain[@]}" 0..8
	run 0 exchange "${domain[@]}" 8..10 12
	run 0 contig "${domain[@]}" 8..12
	run 0 --json region create "${domain[@]}" 8K --on-demand --base 0x100
	outside words "$pid" "$fd" 256 0 1 >/dev/null
	is "$(counter populated) $(counter released) $(counter moved) $(counter busy)" '19 4 14 0' counters
	run 0 --json stat "${domain[@]}"
	json '.frames == 15'
	for name in populated released moved busy; do
		after[$name]=$(($(total "$name") - before[$name]))
	done
	is "${after[populated]} ${after[released]} ${after[moved]} ${after[busy]}" '3 4 14 0' 'all domains'
	# When the domain goes, all of it was given back.
	kill "$pid"
	wait "$pid" || :
	is $(($(total released) - before[released])) 19 released
	is "$(awk '$1 == "populated" { n += $2 } $1 == "released" { n -= $2 } $1 == "domains" { d = $2 }
		END { print d ? "others" : n }' /sys/kernel/debug/p2m/stat)" 0 'frames of no domain'
}

# trace ARGUMENT...: trace in the background, into $tmp/trace.
trace() {
	: >"$tmp/trace"
	"$p2m" --json trace "$@" >"$tmp/trace" 2>"$tmp/trace.err" &
	tracer=$!
	for ((i = 0; i < 200; i++)); do
		[[ ! -s $tmp/trace ]] || return 0
		kill -0 "$tracer" 2>/dev/null || break
		sleep 0.1
	done
	fail "no trace: $(<"$tmp/trace.err")"
}

# traced: end the trace, and have in $out all of its events, as an array.
traced() {
	local status=0

	kill -INT "$tracer"
	wait "$tracer" || status=$?
	is "$status" 0 'exit status of the trace'
	is "$(<"$tmp/trace.err")" '' 'complaints of the trace'
	out=$(jq -s . "$tmp/trace")
	json '.[0].event == "begin" and .[-1].event == "end" and .[-1].lost == 0'
	json '.[-1].events == length - 2'
	# Nothing is left in tracefs.
	is "$(find /sys/kernel/tracing/instances -mindepth 1 -maxdepth 1 -name 'p2m-*')" '' instances
}

trace_sees_every_change() {
	hold_two 64K 64K
	trace
	# Each command, and how many entries it changes.
	local -a expected=()
	while read -r nr command; do
		# shellcheck disable=SC2086
		run 0 $command "${domain[@]}"
		expected+=("$nr")
	done <<-END
		4 release 0..4
		2 populate 0..2
		16 region create 64K --policy scatter --base 0x100
		0 region create 64K --on-demand --base 0xfec00
		8 move 8..16
		4 contig 4..8
		4 exchange 4..6 8
		2 foreign map ${lender[*]} 2 0..2
		2 foreign unmap 2..4
		3 identity 0xfec00..0xfec03
		3 release 0xfec00..0xfec03
		16 region destroy 0x100
	END
	outside words "$pid" "$fd" $((0xfec08)) 0 1 >/dev/null
	run 0 --json map --pages "${domain[@]}"
	last=$(jq -c '[.pages[] | select(.type == "frame") | [.pfn, .mfn]]' <<<"$out")
	kill "$pid"
	wait "$pid" || :
	traced
	number=$(jq '[.[] | select(.event == "change") | .domain] | unique | .[0]' <<<"$out")
	out=$(jq "[.[] | select(.domain == $number)]" <<<"$out")
	# The touch, and what goes with the domain: 14 pages, and the one that was touched.
	total=0
	for nr in "${expected[@]}" 1 15; do
		((total += nr)) || :
	done
	is "$(jq '[.[] | select(.event == "change")] | length' <<<"$out")" "$total" 'number of changes'
	json '[.[] | select(.event == "region") | [.base_pfn, .nr_pages, .change]] ==
		[[256, 16, "created"], [1043456, 16, "created"], [256, 16, "destroyed"],
		 [0, 16, "destroyed"], [1043456, 16, "destroyed"]]'
	# Who has followed the changes knows what was there at the end.
	json 'reduce (.[] | select(.event == "change")) as $e ({};
		.[$e.pfn | tostring] |= (if . and . != $e.old then error("not what was there") else $e.new end))
		| all(.type == "invalid")'
	json '[.[] | select(.event == "change")][-15:] | map([.pfn, .old.mfn]) | sort ==
		($last | sort)' --argjson last "$last"
	json '[.[] | select(.event == "change" and .new.type == "foreign")] | length == 2'
	json '[.[] | select(.event == "change" and .new.type == "identity") | .pfn == .new.mfn] == [true, true, true]'
	json 'all(.[]; .time > 0 and .cpu >= 0 and .pid > 0)'
}

trace_chooses_a_domain() {
	hold_two 64K 64K
	trace --pid "$pid"
	run 0 move "${lender_domain[@]}"
	run 0 move "${domain[@]}" 3
	traced
	json 'length == 3 and .[1].pfn == 3 and .[1].old.type == "frame" and .[1].pid > 1'
	# In words.
	: >"$tmp/trace"
	"$p2m" trace --pid "$pid" --fd "$fd" >"$tmp/trace" &
	tracer=$!
	until [[ -s $tmp/trace ]]; do sleep 0.1; done
	run 0 move "${domain[@]}" 5
	kill -TERM "$tracer"
	wait "$tracer"
	out=$(<"$tmp/trace")
	matches 'trace    domain [0-9]+, until a signal comes' \
		' *[0-9]+\.[0-9]{6}  domain [0-9]+  PFN 0x5: MFN 0x[0-9a-f]+ -> MFN 0x[0-9a-f]+' \
		'seen     1 event'
	# It ends by itself, too.
	run 0 trace --for 0.1 --pid "$pid" --fd "$fd"
	matches 'trace    domain [0-9]+, for 0.1 seconds' 'seen     0 events'
}

trace_cleans_up() {
	hold 16K
	# Of one who was killed something is left, until the next one comes.
	trace
	kill -KILL "$tracer"
	wait "$tracer" || :
	is "$(ls /sys/kernel/tracing/instances)" "p2m-$tracer" 'instances'
	trace
	traced
	# Who closes the pipe has seen enough.
	status=0
	{ "$p2m" trace || echo $? >"$tmp/status"; } | head -n 1 >"$tmp/first" &
	until [[ -s $tmp/first ]]; do sleep 0.1; done
	for ((i = 0; i < 100; i++)); do
		run 0 move "${domain[@]}"
		[[ ! -s $tmp/status ]] || break
		sleep 0.1
	done
	is "$(<"$tmp/status")" 1 'exit status'
	is "$(ls /sys/kernel/tracing/instances)" '' 'instances'
}

trace_says_what_is_missing() {
	hold 16K
	# The device is open to all here, but tracefs isn't.
	as=(setpriv --reuid nobody --regid nogroup --clear-groups)
	run 1 trace --for 0
	complains 'tracing needs root'
	as=(unshare --mount sh -c 'umount -a -t tracefs; exec "$@"' sh)
	run 1 trace --for 0
	complains 'tracefs is not mounted: mount -t tracefs'
	as=()
	run 1 trace --for 0 --pid $$
	complains 'has no descriptor of /dev/p2m'
	run 1 trace --for 0 --pid $$ --fd 0
	complains 'is not one of /dev/p2m'
}

plot_in_the_terminal() {
	hold 1M --policy contiguous
	run 0 plot "${domain[@]}"
	mapfile -t lines <<<"$out"
	is "${#lines[@]}" 23 'number of lines'
	[[ ${lines[0]} =~ ^MFN\ 0x[0-9a-f]+\ ┤ && ${lines[20]} =~ ^MFN\ 0x[0-9a-f]+\ ┤ &&
		${lines[22]} =~ ^\ +PFN\ 0x0\ +0xff$ ]] || fail "$out"
	# One run is a line from one corner to the other: there's nothing above or below.
	[[ ${lines[0]} != *⠀ && ${lines[20]} != *┤⠀* && ${lines[0]} == *┤⠀* ]] || fail "$out"
	run 0 --json plot "${domain[@]}"
	json '.start_pfn == 0 and .end_pfn == 256 and .file == null and (.runs | length) == 1'
	json '.end_mfn - .start_mfn == 256 and .runs[0].mfn == .start_mfn'
	run 0 plot "${domain[@]}" 0x10..0x20
	[[ $out == *'PFN 0x10 '*' 0x1f' ]] || fail "$out"
}

plot_into_a_file() {
	hold 1M --policy contiguous
	run 0 plot "${domain[@]}" --out "$tmp/plot.png"
	matches "plot     1 run in $tmp/plot.png"
	python3 - "$tmp/plot.png" <<-'END' || fail 'not the picture that was wanted'
		import struct, sys, zlib

		data = open(sys.argv[1], "rb").read()
		assert data[:8] == b"\x89PNG\r\n\x1a\n"
		chunks, offset = [], 8
		while offset < len(data):
		    size, kind = struct.unpack_from(">I4s", data, offset)
		    body = data[offset + 8:offset + 8 + size]
		    check, = struct.unpack_from(">I", data, offset + 8 + size)
		    assert check == zlib.crc32(kind + body)
		    chunks.append((kind, body))
		    offset += 12 + size
		assert chunks[0][0] == b"IHDR" and chunks[-1][0] == b"IEND"
		width, height, depth, color = struct.unpack_from(">IIBB", chunks[0][1])
		assert (width, height, depth, color) == (1200, 800, 8, 2)
		pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
		assert len(pixels) == height * (1 + 3 * width)
	END
	run 0 --json plot "${domain[@]}" --out "$tmp/plot.png"
	json '.file | endswith("/plot.png")'
	run 1 plot "${domain[@]}" --out /nonexistent/plot.png
	complains 'cannot write /nonexistent/plot.png'
}

plot_of_nothing_fails() {
	python 'fd = os.open("/dev/p2m", os.O_RDWR)'
	run 1 plot "${domain[@]}"
	complains 'there is no page with a frame'
}

dma_plan_has_the_addresses_of_the_pagemap() {
	hold 256K --policy scatter --seed 3 --populate
	run 0 --json dma plan "${domain[@]}" 0..64 --check
	json '.ok and (.segments | length) == 64 and all(.segments[]; .length == 4096 and .flags == [])'
	expect_pages '.segments[] | "\(.pfn) \(.address / 4096)"'
	# The same bytes, cut as a device wants them, and from a byte on.
	run 0 --json dma plan "${domain[@]}" 0..64 --offset 512 --length 128K \
		--max-segment 1536 --boundary 4K --align 512 --mask 20 --max-segments 4 --check
	json '.ok and ([.segments[].length] | add) == 131072 and .segments[0].offset == 512'
	json 'all(.segments[]; .length <= 1536 and .flags[:2] == ["mask", "straddle"])'
	json '.sum.bounced == (.segments | length) and .sum.bounced_bytes == 131072'
}

dma_plan_says_what_bounces() {
	local segment='0x0000000[0-3]\+0x000       4096  0x[0-9a-f]{12}'

	hold 16K --policy scatter
	run 0 dma plan "${domain[@]}" 0..4 --max-segments 1 --check
	matches 'range    PFN 0x0\.\.0x4, 16 KiB' 'device   1 segment at once' \
		"$segment  straddle" "$segment  straddle" "$segment  straddle" "$segment  straddle" \
		'plan     4 segments, 16 KiB; 4 must bounce \(16 KiB\)' \
		'check    the runs of the domain say the same: ok'
	run 0 contig "${domain[@]}" 0..4
	run 0 dma plan "${domain[@]}" 0..4 --max-segments 1
	matches 'range .*' 'device .*' '0x00000000\+0x000      16384  0x[0-9a-f]{12}' \
		'plan     1 segment, 16 KiB; nothing must bounce'
	run 0 release "${domain[@]}" 1..3
	run 0 dma plan "${domain[@]}" 0..4 --offset 0xfff --length 2
	matches 'range    PFN 0x0\.\.0x4 from byte 0xfff on, 2 bytes' 'device   without limits' \
		'0x00000000\+0xfff          1  0x[0-9a-f]{9}fff' \
		'0x00000001\+0x000          1  nothing         unbacked' \
		'plan     2 segments, 2 bytes; nothing must bounce; 1 bytes without a frame'
}

dma_plan_says_what_is_wrong() {
	hold 64K
	run 1 dma plan "${domain[@]}" 0..16 --offset 64K
	complains 'these bytes are not in the pages, which have 64 KiB'
	run 1 dma plan "${domain[@]}" 0..16 --align 512 --max-segment 1000
	complains 'hint: the largest segment and the boundary have to be multiples'
	run 1 dma plan "${domain[@]}" 0x80000000
	complains 'hint: the range ends beyond the last possible PFN'
}

[[ -c $device ]] || skip_all 'no /dev/p2m: load the module'
[[ $p2m ]] || skip_all 'no p2m: build it, and add it to PATH or set P2M'
((EUID == 0)) || skip_all 'needs root'
for tool in jq python3 setpriv prlimit; do
	command -v $tool >/dev/null || skip_all "no $tool"
done

(($# == 0)) || tests=("$@")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
write_machine "$tmp"
write_outside

echo "TAP version 13"
echo "1..${#tests[@]}"
for test in "${tests[@]}"; do
	run_test "$test"
	result "$test"
done
exit $failed
