// SPDX-License-Identifier: GPL-2.0
/*
 * Tracepoints. Rust can declare only those that are in the kernel's own
 * bindings, so there is a function for each.
 */
#include "helpers.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

bool p2m_trace_change_is_on(void)
{
	return trace_p2m_change_enabled();
}

void p2m_trace_change(u64 domain, u64 pfn, u64 old, u64 new)
{
	trace_p2m_change(domain, pfn, old, new);
}

void p2m_trace_region(u64 domain, u64 base, u64 nr_pages, bool created)
{
	trace_p2m_region(domain, base, nr_pages, created);
}
