#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run_tests.sh PROGRAM...: run the tests one after the other, and report them as
# one test each, as the kernel's kselftest/runner.sh does. Fails if any does. A
# slow kernel has P2M_TIMEOUT_FACTOR times the time.

cd "$(dirname "$0")" || exit 1
timeout=$(($(sed -n 's/^timeout=//p' settings) * ${P2M_TIMEOUT_FACTOR:-1}))
failed=0
nr=0

echo "TAP version 13"
echo "1..$#"
for prog in "$@"; do
	nr=$((nr + 1))
	name="selftests: p2m: $(basename "$prog")"
	echo "# $name"
	timeout --foreground "$timeout" "$prog" 2>&1 | sed -u 's/^/# /'
	case ${PIPESTATUS[0]} in
	0) echo "ok $nr $name" ;;
	4) echo "ok $nr $name # SKIP" ;;
	124) echo "not ok $nr $name # TIMEOUT $timeout seconds" && failed=1 ;;
	*) echo "not ok $nr $name" && failed=1 ;;
	esac
done
exit $failed
