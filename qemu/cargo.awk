# SPDX-License-Identifier: GPL-2.0
#
# Sum what cargo test says: prints passed, failed and skipped.

/^test result: / {
	for (i = 2; i <= NF; i++) {
		if ($i == "passed;") passed += $(i - 1)
		if ($i == "failed;") failed += $(i - 1)
		if ($i == "ignored;") skipped += $(i - 1)
	}
}
END { print passed + 0, failed + 0, skipped + 0 }
