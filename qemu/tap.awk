# SPDX-License-Identifier: GPL-2.0
#
# Sum the results in the TAP of run_tests: prints passed, failed and skipped.
# What is counted are the results of each program, that are nested, with "# "
# before each line. The result of a program as a whole counts only when no
# nested one accounts for it: it crashed, timed out, skipped all or said nothing.

function count(line) {
	if (line ~ /^not ok/) {
		failed++
		bad++
	} else if (line ~ /# SKIP/) {
		skipped++
	} else {
		passed++
	}
	results++
}

/^# 1\.\.[0-9]+/ { planned = substr($2, 4) }
/^# (not )?ok [0-9]+/ { count(substr($0, 3)) }
/^(not )?ok [0-9]+/ {
	if (results < planned)
		count("not ok, not all tests of the plan were run")
	if (/^not ok/ ? !bad : !results)
		count(/# SKIP/ ? $0 : "not ok, no result")
	results = bad = planned = 0
}
# The log ends within a program when the guest died.
END {
	if (results || planned)
		count("not ok")
	print passed + 0, failed + 0, skipped + 0
}
