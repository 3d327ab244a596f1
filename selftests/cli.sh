#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# cli.sh [TEST]...: test every command of the program p2m, from its arguments to
# its exit status. What it says about frames is compared with what Python reads
# from the pagemap.

# The functions of this file are run by name, and jq has variables, too.
# shellcheck disable=SC2016,SC2317

readonly device=/dev/p2m
readonly page=4096
p2m=$(command -v "${P2M:-p2m}")

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
	completions_are_a_script
)

fail() {
	printf '# %s\n' "$*"
	exit 1
}

# run STATUS ARGUMENT...: run p2m, and expect that exit status. What it prints
# is in $out and $err.
run() {
	local expected=$1 status=0
	shift

	"${as[@]}" "$p2m" "$@" >"$tmp/out" 2>"$tmp/err" || status=$?
	out=$(<"$tmp/out") err=$(<"$tmp/err")
	((status == expected)) ||
		fail "p2m $*: exit status $status, not $expected; $out $err"
	# Who did what was wanted has nothing to complain about.
	((status)) || [[ ! $err ]] || fail "p2m $*: complains: $err"
}

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

# json FILTER [ARGUMENT...]: the filter is true of what was printed.
json() {
	jq -e "${@:2}" "$1" <<<"$out" >/dev/null || fail "not true: $1; $out"
}

complains() {
	[[ $err == *"$1"* ]] || fail "no '$1' in: $err"
}

is() {
	[[ $1 == "$2" ]] || fail "${3:-value} is '$1', not '$2'"
}

# hold ARGUMENT...: have another process hold a region. Sets pid and fd.
hold() {
	: >"$tmp/hold"
	"${as[@]}" "$p2m" --json alloc --hold "$@" >"$tmp/hold" 2>&1 &
	held $!
	fd=$(jq .hold.fd "$tmp/hold")
	is "$(jq .hold.pid "$tmp/hold")" "$pid" pid
}

# python PROGRAM: have a Python program hold a domain. It says when it's ready.
python() {
	: >"$tmp/hold"
	python3 -c "
import ctypes, fcntl, mmap, os, struct, sys, time

PAGE = mmap.PAGESIZE

def create(fd, base, nr_pages, policy=0, seed=0):
    fcntl.ioctl(fd, 0xbb82, struct.pack('=4I3Q', 40, 1, policy, 0, nr_pages, seed, base))

$1
print('{}', flush=True)
time.sleep(1000)
" >"$tmp/hold" 2>&1 &
	held $!
}

# held PID: wait until a process has printed JSON.
held() {
	pid=$1
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
		"table_mmap policies default_policy max_pfn max_mfn " +
		"max_domain_pages max_total_pages max_regions"'
	json '.abi_version == 1 and .page_shift == 12 and .mfn_visible and .table_mmap'
	json '.policies == ["any", "scatter", "contiguous"] and .max_pfn == 2147483648'
	# No memory of the machine is above its last frame.
	json ".max_mfn * $page >= $(awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo)"
}

info_reads_well() {
	local number='[0-9]+ pages \([0-9.]+ [KMGT]iB\)'

	run 0 info
	matches 'module   ABI version 1, pages of 4 KiB' \
		'policies any, scatter, contiguous; by default any' \
		'opener   sees MFNs: yes, can map tables: yes' \
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
	json '(keys_unsorted | join(" ")) == "region machine sample linear check hold"'
	json '.region == {base_pfn: 0, nr_pages: 256, policy: "any", seed: 0, bytes: 1048576}'
	json '.linear == {ok: true, bytes: 1048576, first_bad: null}'
	json '[.sample[].pfn] == [0, 1, 2, 255]'
	json 'all(.sample[]; .type == "frame" and .mfn > 0)'
	json '.machine as $m | all(.sample[].mfn; . >= $m.start_mfn and . < $m.end_mfn)'
	json '.check == null and .hold == null'
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

	for policy in any scatter contiguous; do
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
	run 0 --json info
	# As much as one may have at all: some of it is in use somewhere.
	run 1 alloc "$(($(jq .max_domain_pages <<<"$out") * page))" --policy contiguous
	complains 'hint: '
	[[ $err == *'satisfy the policy'* || $err == *'memory is short'* ]] ||
		fail "unexpected reason: $err"
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

map_agrees_with_the_pagemap() {
	local policy

	for policy in any scatter contiguous; do
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
	for policy in any scatter contiguous; do
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
	json '(keys_unsorted | join(" ")) == "generation regions pages p2m_tables " +
		"m2p_tables faults fault_pages total_domains total_pages"'
	json '.regions == 1 and .pages == 512 and .generation % 2 == 0'
	json '.p2m_tables > 0 and .m2p_tables > 0 and .faults > 0'
	json '.total_domains >= 1 and .total_pages >= 512'
	run 0 stat --pid "$pid"
	matches 'domain   1 region, 512 pages \(2 MiB\), generation [0-9]+' \
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
	json '.regions == [{base_pfn: 5, nr_pages: 32, policy: "any", seed: 0, bytes: 131072}]'
	expect_pages '.pages[] | "\(.pfn) \(.mfn)"'
	run 0 --json check --pid "$pid"
	json '.ok and all(.witnesses[]; .asked == 32)'
}

wrong_usage_exits_with_2() {
	local arguments

	for arguments in '' bogus 'info extra' alloc 'alloc 0' 'alloc 1.5M' \
		'alloc 1M --policy bogus' 'alloc 1M --seed 1' map 'map --fd 3' \
		'map --pid x' 'map --pid 1 5..5' check 'translate --pid 1' \
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

# End what the test left running; some of it may have ended already.
cleanup() {
	set +e
	jobs -p | xargs -r kill 2>/dev/null
	wait 2>/dev/null
}

skip_all() {
	echo "1..0 # SKIP $1"
	exit 4
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

echo "TAP version 13"
echo "1..${#tests[@]}"
failed=0 nr=0
for test in "${tests[@]}"; do
	nr=$((nr + 1))
	# Not in a condition, where -e would have no effect.
	(
		set -eu
		trap cleanup EXIT
		as=(env)
		"$test"
	)
	status=$?
	if ((status == 0)); then
		echo "ok $nr $test"
	else
		echo "not ok $nr $test"
		failed=1
	fi
done
exit $failed
