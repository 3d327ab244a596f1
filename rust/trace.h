/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What can be traced: every change of a P2M, and every region that comes or goes.
 * Entries are in the encoding of the ABI, with machine frame numbers, as the
 * tracer is privileged.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM p2m

#if !defined(_P2M_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _P2M_TRACE_H

#include <linux/tracepoint.h>
#include <linux/types.h>

TRACE_EVENT(p2m_change,
	TP_PROTO(u64 domain, u64 pfn, u64 old, u64 new),
	TP_ARGS(domain, pfn, old, new),
	TP_STRUCT__entry(
		__field(u64, domain)
		__field(u64, pfn)
		__field(u64, old)
		__field(u64, new)
	),
	TP_fast_assign(
		__entry->domain = domain;
		__entry->pfn = pfn;
		__entry->old = old;
		__entry->new = new;
	),
	TP_printk("domain=%llu pfn=%#llx old=%#llx new=%#llx", __entry->domain,
		  __entry->pfn, __entry->old, __entry->new)
);

TRACE_EVENT(p2m_region,
	TP_PROTO(u64 domain, u64 base, u64 nr_pages, bool created),
	TP_ARGS(domain, base, nr_pages, created),
	TP_STRUCT__entry(
		__field(u64, domain)
		__field(u64, base)
		__field(u64, nr_pages)
		__field(bool, created)
	),
	TP_fast_assign(
		__entry->domain = domain;
		__entry->base = base;
		__entry->nr_pages = nr_pages;
		__entry->created = created;
	),
	TP_printk("domain=%llu base=%#llx pages=%llu %s", __entry->domain,
		  __entry->base, __entry->nr_pages,
		  __entry->created ? "created" : "destroyed")
);

#endif /* _P2M_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
