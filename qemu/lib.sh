# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by the scripts of this directory: sourced, never run.
#
# All work happens in a Debian root made by build-root, with a kernel made by
# build-kernel. Both live in the cache, under names derived from what they were
# made of, and get their name only when they are complete.

set -euo pipefail

# What others say is looked at.
export LC_ALL=C.UTF-8

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${P2M_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/p2m}
build=$top/build

# Supported kernel series, the preferred one first, and where each comes from.
supported=(7.3 7.2)
declare -A suite_of=([7.3]=trixie [7.2]=forky)

# The series to use: the first one that is in the archive. The debug kernel is
# built from the source of that one.
wanted=("${supported[@]}")
[[ ${KERNEL:-debug} == debug ]] || wanted=("$KERNEL")

die() {
	printf 'p2m: %s\n' "$*" >&2
	exit 1
}

# Say what to do about a failed step: $1 is its name, $2 its log.
explain() {
	local hint='see the end of the log'

	if grep -q 'No space left on device' "$2"; then
		hint="free some disk space for $cache, or set P2M_CACHE elsewhere"
	elif grep -qE 'Could ?n.t (resolve|connect)|Temporary failure resolving|Failed to fetch' "$2"; then
		hint='the Debian archive was not reachable, check the network and try again'
	fi
	die "$1 failed: $hint ($2)"
}

tick() {
	local name=$1 start=$SECONDS

	# A background job does not see Ctrl-C: end when the script has.
	while kill -0 $$ 2>/dev/null; do
		printf '\r  %s: %ds ' "$name" $((SECONDS - start)) >&2
		sleep 1
	done
}

# step NAME COMMAND...: run a long COMMAND with its output in a log file.
step() {
	local name=$1 start=$SECONDS ticker='' status=0
	local log=$cache/log/${1//[^[:alnum:].]/-}.log
	shift

	mkdir -p "$cache/log"
	if [[ -t 2 ]]; then
		tick "$name" &
		ticker=$!
	else
		printf '  %s ...\n' "$name" >&2
	fi
	"$@" >"$log" 2>&1 </dev/null || status=$?
	if [[ $ticker ]]; then
		kill "$ticker"
		wait "$ticker" || true
		printf '\r' >&2
	fi
	((status == 0)) || explain "$name" "$log"
	printf '  %s: done in %ds\n' "$name" $((SECONDS - start)) >&2
}

# Reads standard input; a file name or a version of what goes into a cache key.
key() {
	sha256sum | cut -c1-12
}

# make_disk FILE: an NVMe disk behind an IOMMU, with an empty file system, which FILE is. Sets
# $disk_options to what qemu/guest needs for it.
make_disk() {
	rm -f "$1"
	truncate -s 1G "$1"
	"$top/qemu/enter" mke2fs -q -F -t ext4 -L dumps "$1"
	# shellcheck disable=SC2034,SC2054
	disk_options=(
		--device amd-iommu --device nvme,drive=disk,serial=p2m
		--drive "file=$1,if=none,id=disk,format=raw,cache=unsafe"
	)
}

# Second half of in_root: runs as PID 1 of the new namespaces.
enter_root() {
	local root=$1 kernel=$2 dir
	shift 2

	mount -t proc proc "$root/proc"
	for dir in /dev /sys; do
		mount --rbind "$dir" "$root$dir"
	done
	for dir in /etc/resolv.conf /etc/hosts; do
		touch "$root$dir"
		mount --bind "$dir" "$root$dir"
	done
	# The checkout may be in /tmp, so this comes first.
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	mkdir -p "$cache/work-${root##*-}" "$root$top" "$root/var/cache/p2m" \
		"$root/usr/src/linux" "$root/usr/lib/modules"
	mount --bind "$cache/work-${root##*-}" "$root/var/cache/p2m"
	mount --bind "$top" "$root$top"
	if [[ $kernel ]]; then
		mount --bind "$kernel" "$root/usr/src/linux"
		[[ ! -d $kernel/image ]] ||
			mount --bind "$kernel/image/usr/lib/modules" "$root/usr/lib/modules"
	fi

	# Not exec: a PID 1 without handlers would ignore Ctrl-C.
	env -i TERM="${TERM:-dumb}" HOME=/root LANG=C.UTF-8 USER=root \
		PATH="$build/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
		DEBIAN_FRONTEND=noninteractive KDIR="$kdir" \
		CARGO_HOME=/var/cache/p2m/cargo CARGO_TARGET_DIR=/var/cache/p2m/target \
		chroot "$root" env -C "$top" "$@"
}

# The prepared kernel tree, as seen in the root.
kdir=/usr/src/linux/build

# in_root ROOT KERNEL COMMAND...: run COMMAND in ROOT, in the checkout, with
# the directory KERNEL (or none) as /usr/src/linux. The namespaces end with the
# command, and with them all mounts and all processes; the command ends with us.
in_root() {
	# shellcheck disable=SC2016
	setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child -- \
		bash -c 'source "$0/qemu/lib.sh"; enter_root "$@"' "$top" "$@"
}

check_host() {
	local tool

	((EUID == 0)) || die "needs root for chroot and mounts, run: sudo make run"
	[[ $(uname -m) == x86_64 ]] || die 'needs an x86-64 host'
	# make takes none of the first two, nor does QEMU of the last.
	[[ $top != *[[:space:]:,]* ]] ||
		die "needs a checkout whose path has no space, colon or comma, not $top"
	for tool in unshare setpriv flock mount chroot sha256sum; do
		command -v "$tool" >/dev/null ||
			die "needs $tool, install coreutils and util-linux"
	done
	mkdir -p "$cache" || die "cannot write to $cache, set P2M_CACHE elsewhere"
}

check_space() {
	local need=8 free

	free=$(df --output=avail -BG "$cache" | tail -n1 | tr -dc 0-9)
	((free >= need)) ||
		die "needs $need GiB free at $cache (has $free), or set P2M_CACHE elsewhere"
}

# Sets $root and $kernel to the names in the cache for the given series.
locate() {
	local root_key

	root_key=$(cat "$top/qemu/build-root" <(echo "$1") | key)
	root=$cache/root-${suite_of[$1]}-$root_key
	# A link to the kernel that was the newest one when it was made.
	kernel=$cache/kernel-$1-$(cat "$top/qemu/build-kernel" <(echo "$root_key") | key)
}

# Keep update from removing what we and those we start use, as long as any of us lives.
use_cache() {
	exec 8<"$cache"
	flock --shared 8
}

# Hold file descriptor 9 open while something is made.
lock() {
	exec 9>"$cache/lock"
	if ! flock --nonblock 9; then
		printf '  waiting for another p2m build ...\n' >&2
		flock 9
	fi
	check_space
}

# Sets $root and $kernel for use, making what is not there yet.
prepare() {
	check_host
	[[ ${suite_of[${wanted[0]}]:-} ]] ||
		die "KERNEL=$KERNEL is not supported, use one of: ${supported[*]} debug"

	use_cache
	prepare_stock
	[[ ${KERNEL:-} != debug ]] || prepare_debug
}

prepare_debug() {
	local stock

	stock=$(readlink -f "$kernel")
	kernel=$cache/debug-${stock##*/linux-}-$(cat "$top"/qemu/{build-debug,debug.config} | key)
	[[ ! -d $kernel ]] || return 0

	lock
	[[ -d $kernel ]] || "$top/qemu/build-debug" "$kernel" "$root" "$stock" 9>&-
	exec 9>&-
}

prepare_stock() {
	local series status

	for series in "${wanted[@]}"; do
		locate "$series"
		[[ -d $root && -d $kernel ]] && return
	done

	lock
	for series in "${wanted[@]}"; do
		locate "$series"
		[[ -d $root ]] || "$top/qemu/build-root" "$root" "${suite_of[$series]}" 9>&-
		status=0
		[[ -d $kernel ]] || "$top/qemu/build-kernel" "$kernel" "$root" "$series" 9>&- ||
			status=$?
		((status == 3)) && continue
		((status == 0)) || exit "$status"
		exec 9>&-
		return
	done
	die "the Debian archive has no cloud-amd64 kernel of series ${wanted[*]}"
}
