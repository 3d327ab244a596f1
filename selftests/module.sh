#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Loading and unloading the module, over and over. Needs root, and the module
# that the environment variable P2M_KO names. P2M_LOOPS says how often.

# shellcheck disable=SC2317 # the tests are called by name

loops=${P2M_LOOPS:-100}
device=/dev/p2m
# What a kernel says when something is wrong.
splats='WARNING|BUG|Oops|panicked|Call Trace|refcount_t|list_(add|del)'

echo "TAP version 13"

skip_all() {
	echo "1..0 # SKIP $*"
	exit 4
}

[[ $EUID == 0 ]] || skip_all "must be root"
[[ -r ${P2M_KO:-} ]] || skip_all "P2M_KO names no module to load"

is_loaded() {
	[[ -d /sys/module/p2m ]]
}

fail() {
	echo "# $*"
	return 1
}

meminfo() {
	awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo
}

# As it was found it's left.
restore() {
	# shellcheck disable=SC2086 # several parameters
	if [[ $was_loaded ]] && ! is_loaded; then
		insmod "$P2M_KO" ${P2M_PARAMS:-}
	elif [[ ! $was_loaded ]] && is_loaded; then
		rmmod p2m
	fi
}

was_loaded=''
if is_loaded; then
	was_loaded=1
	rmmod p2m 2>/dev/null || skip_all "the module is in use"
fi
trap restore EXIT

device_comes_and_goes() {
	insmod "$P2M_KO" || fail "insmod" || return
	[[ -c $device ]] || fail "no $device" || return
	[[ $(stat -c "%a %u" "$device") == '600 0' ]] || fail "not root's" || return
	rmmod p2m || fail "rmmod" || return
	[[ ! -e $device ]] || fail "$device is still there" || return
	! is_loaded || fail "still loaded"
}

loads_twice_only_once() {
	insmod "$P2M_KO" || return
	! insmod "$P2M_KO" 2>/dev/null || fail "loaded twice" || return
	[[ -c $device ]] || fail "the device is gone" || return
	rmmod p2m
}

open_device_keeps_it() {
	insmod "$P2M_KO" || return
	exec 9<>"$device"
	! rmmod p2m 2>/dev/null || fail "unloaded while open" || return
	# A new user comes in nevertheless, and the entries can be read.
	[[ $(wc -c <"$device") == 0 ]] || fail "can't be read" || return
	exec 9>&-
	rmmod p2m || fail "still in use"
}

unknown_parameter_value_is_refused() {
	local params=$1

	if insmod "$P2M_KO" "$params" 2>/dev/null; then
		rmmod p2m
		fail "took $params"
		return
	fi
	! is_loaded && [[ ! -e $device ]]
}

policy_that_does_not_exist_is_refused() {
	unknown_parameter_value_is_refused default_policy=4
}

number_that_is_none_is_refused() {
	unknown_parameter_value_is_refused max_pages=many
}

loads_and_unloads_many_times() {
	local i before after start=$SECONDS noise_kib=16384

	# What the first ones leave in caches is no leak.
	for i in {1..20}; do
		insmod "$P2M_KO" && rmmod p2m || fail "warm-up $i" || return
	done
	before=$(meminfo MemFree)
	for ((i = 0; i < loops; i++)); do
		insmod "$P2M_KO" || fail "insmod $i" || return
		# With a domain now and then, not only empty.
		if ((i % 10 == 0)); then
			: <"$device" || fail "open $i" || return
		fi
		rmmod p2m || fail "rmmod $i" || return
	done
	after=$(meminfo MemFree)
	echo "# $loops times in $((SECONDS - start)) s, MemFree $before KiB before, $after KiB after"
	((before - after < noise_kib)) || fail "memory is missing"
}

kernel_log_is_clean() {
	local lines

	lines=$(dmesg | tail -n +$((log_lines + 1)) | grep -E "$splats")
	[[ ! $lines ]] || fail "$lines"
}

tests=(
	device_comes_and_goes
	loads_twice_only_once
	open_device_keeps_it
	policy_that_does_not_exist_is_refused
	number_that_is_none_is_refused
	loads_and_unloads_many_times
	kernel_log_is_clean
)

log_lines=$(dmesg | wc -l)
failed=0
echo "1..${#tests[@]}"
for nr in "${!tests[@]}"; do
	if "${tests[nr]}"; then
		echo "ok $((nr + 1)) ${tests[nr]}"
	else
		echo "not ok $((nr + 1)) ${tests[nr]}"
		failed=1
		# The next one begins without it.
		exec 9>&-
		! is_loaded || rmmod p2m
	fi
done
exit $failed
