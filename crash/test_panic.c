// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: has the kernel panic where a program can't make it do so.
 */
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/smp.h>

static char *where = "";
module_param(where, charp, 0444);
MODULE_PARM_DESC(where, "timer: panic() in a timer's interrupt; ipi: an oops in another CPU's");

static struct hrtimer timer;

static enum hrtimer_restart on_timer(struct hrtimer *unused)
{
	panic("p2m-test: in %s interrupt", in_hardirq() ? "a hard" : "no");
}

static void on_ipi(void *nowhere)
{
	pr_emerg("p2m-test: in %s interrupt of CPU %d\n", in_hardirq() ? "a hard" : "no",
		 smp_processor_id());
	WRITE_ONCE(*(int *)nowhere, 0);
}

static int __init test_panic_init(void)
{
	unsigned int cpu;

	if (!strcmp(where, "timer")) {
		hrtimer_setup(&timer, on_timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
		hrtimer_start(&timer, ms_to_ktime(10), HRTIMER_MODE_REL_PINNED_HARD);
	} else if (!strcmp(where, "ipi")) {
		cpu = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());
		if (cpu >= nr_cpu_ids)
			return -ENODEV;
		smp_call_function_single(cpu, on_ipi, NULL, false);
	} else {
		return -EINVAL;
	}
	return 0;
}

module_init(test_panic_init);
MODULE_DESCRIPTION("Panics for tests of p2m_crash");
MODULE_LICENSE("GPL");
