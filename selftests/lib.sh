# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Shared by cli.sh and guest.sh: sourced, never run. Each test is a function, which runs
# in a shell of its own with -eu. $tmp is where it may leave files.

# jq has variables, too, and some of ours are of who sources this.
# shellcheck disable=SC2016,SC2034,SC2154

p2m=$(command -v "${P2M:-p2m}")
# What runs p2m, if that isn't us.
as=()
# What ends processes that a test left running.
ending=TERM
failed=0 nr=0

skip_all() {
	echo 'TAP version 13'
	echo "1..0 # SKIP $*"
	exit 4
}

skip() {
	printf '# %s\n' "$@"
	exit 4
}

fail() {
	printf '# %s\n' "${@//$'\n'/$'\n# '}"
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

# json FILTER [ARGUMENT...]: the filter is true of what was printed.
json() {
	jq -e "${@:2}" "$1" <<<"$out" >/dev/null || fail "not true: $1; ${out:0:1000}"
}

complains() {
	[[ $err == *"$1"* ]] || fail "no '$1' in: $err"
}

is() {
	[[ $1 == "$2" ]] || fail "${3:-value} is '$1', not '$2'"
}

# End what the test left running; some of it may have ended already.
cleanup() {
	set +e
	jobs -p | xargs -r kill "-$ending" 2>/dev/null
	wait 2>/dev/null
}

# run_test NAME: run a test. The status is in $status.
run_test() {
	# Not in a condition, where -e would have no effect.
	(
		set -eu
		trap cleanup EXIT
		"$1"
	)
	status=$?
}

# result NAME: print what became of it.
result() {
	((nr += 1))
	case $status in
	0) echo "ok $nr $1" ;;
	4) echo "ok $nr $1 # SKIP" ;;
	*) echo "not ok $nr $1" && failed=1 ;;
	esac
}

# write_machine DIRECTORY: write machine.py there, for a program beside it.
write_machine() {
	cat >"$1/machine.py" <<-'END'
		import os, struct

		class Machine:
		    """The memory of the machine, by machine addresses."""

		    def __init__(self):
		        self.fd = os.open("/proc/kcore", os.O_RDONLY)
		        header = os.pread(self.fd, 64, 0)
		        start, size, nr = struct.unpack_from("=Q", header, 32) + \
		            struct.unpack_from("=HH", header, 54)
		        # Address, size, offset.
		        self.pieces = []
		        for index in range(nr):
		            kind, _, offset, virtual, address, size_in_file, _, _ = struct.unpack(
		                "=IIQQQQQQ", os.pread(self.fd, size, start + index * size))
		            # Not the kernel's image, that is in the direct map, too.
		            if kind == 1 and address < 1 << 52 and virtual < 0xffffffff80000000:
		                self.pieces.append((address, size_in_file, offset))

		    def read(self, address, size):
		        for start, length, offset in self.pieces:
		            if start <= address and address + size <= start + length:
		                return os.pread(self.fd, size, offset + address - start)
		        raise SystemExit(f"there is no memory at {address:#x}")
	END
}
