// SPDX-License-Identifier: GPL-2.0
/*
 * AMD's IOMMUs (AMD I/O Virtualization Technology Specification, 48882): where they
 * are, and how they are given other tables, whoever used them before.
 */
#include <linux/acpi.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>

#include "shim.h"

#define MAX_IOMMUS		64
#define REGISTERS_SIZE		SZ_16K

#define REG_DEVICE_TABLE	0x0000
#define REG_COMMANDS		0x0008
#define REG_CONTROL		0x0018
#define REG_FEATURES		0x0030
#define REG_COMMAND_HEAD	0x2000
#define REG_COMMAND_TAIL	0x2008

#define CONTROL_ENABLE		BIT_ULL(0)
#define CONTROL_COHERENT	BIT_ULL(10)
#define CONTROL_COMMANDS	BIT_ULL(12)
/* How it passes on what it's asked: as the firmware says, and the old kernel did. */
#define CONTROL_KEPT		(BIT_ULL(1) | GENMASK_ULL(11, 5))

#define FEATURE_INVALIDATE_ALL	BIT_ULL(6)

/* A page of commands. */
#define COMMANDS_LENGTH		(8ULL << 56)
#define DEVICE_TABLE_LENGTH	0x1ff
#define NR_DEVICES		65536

#define COMMAND_WAIT		(1ULL << 60)
#define COMMAND_WAIT_STORE	BIT_ULL(0)
#define COMMAND_FORGET_DEVICE	(2ULL << 60)
#define COMMAND_FORGET_ALL	(8ULL << 60)

/* How often memory is looked at until a command must have been done. */
#define PATIENCE		10000000

struct command {
	u64 low;
	u64 high;
};

static void __iomem *iommus[MAX_IOMMUS];
static u64 addresses[MAX_IOMMUS];
static unsigned int nr_iommus;

void p2m_crash_forget_iommus(void)
{
	while (nr_iommus)
		iounmap(iommus[--nr_iommus]);
}

unsigned int p2m_crash_nr_iommus(void)
{
	return nr_iommus;
}

/* Whether one is on, with tables of this kernel. */
bool p2m_crash_has_active_iommu(void)
{
	unsigned int i;

	for (i = 0; i < nr_iommus; i++)
		if (readq(iommus[i] + REG_CONTROL) & CONTROL_ENABLE)
			return true;
	return false;
}

static int add_iommu(u64 address)
{
	unsigned int i;

	/* There are blocks of several types for one and the same. */
	for (i = 0; i < nr_iommus; i++)
		if (addresses[i] == address)
			return 0;
	if (nr_iommus == MAX_IOMMUS)
		return -ENOSPC;
	addresses[nr_iommus] = address;
	iommus[nr_iommus] = ioremap(address, REGISTERS_SIZE);
	if (!iommus[nr_iommus])
		return -ENOMEM;
	nr_iommus++;
	return 0;
}

static int find_in(const struct acpi_table_ivrs *ivrs)
{
	const void *end = (const void *)ivrs + ivrs->header.length;
	const struct acpi_ivrs_header *entry = (const void *)(ivrs + 1);
	int ret;

	while ((const void *)(entry + 1) <= end) {
		const struct acpi_ivrs_hardware_10 *hardware = (const void *)entry;

		if (entry->length < sizeof(*entry) || (const void *)entry + entry->length > end)
			return -EINVAL;
		if ((entry->type == ACPI_IVRS_TYPE_HARDWARE1 ||
		     entry->type == ACPI_IVRS_TYPE_HARDWARE2 ||
		     entry->type == ACPI_IVRS_TYPE_HARDWARE3) &&
		    entry->length >= sizeof(*hardware)) {
			/* All of them have the address in the same place. */
			ret = add_iommu(hardware->base_address);
			if (ret)
				return ret;
		}
		entry = (const void *)entry + entry->length;
	}
	return 0;
}

/* Maps the registers: at a panic it is too late for that. */
int p2m_crash_find_iommus(void)
{
	struct acpi_table_header *table;
	int ret;

	if (ACPI_FAILURE(acpi_get_table(ACPI_SIG_IVRS, 0, &table)))
		return 0;
	ret = find_in((const struct acpi_table_ivrs *)table);
	acpi_put_table(table);
	if (ret)
		p2m_crash_forget_iommus();
	return ret;
}

/* On, with no commands and no logs, and reading its tables from caches, too. */
static u64 control_of(void __iomem *iommu)
{
	return (readq(iommu + REG_CONTROL) & CONTROL_KEPT) | CONTROL_ENABLE |
	       CONTROL_COHERENT;
}

/* Switches an IOMMU on and has it do commands, the last of which stores a word behind them. */
static bool run(void __iomem *iommu, struct command *commands, u64 address, unsigned int nr)
{
	u64 *done = (u64 *)(commands + PAGE_SIZE / sizeof(*commands) - 1);
	unsigned int tries;

	WRITE_ONCE(*done, 0);
	commands[nr].low = COMMAND_WAIT | COMMAND_WAIT_STORE |
			   (address + PAGE_SIZE - sizeof(*commands));
	commands[nr].high = 1;
	/* From their beginning again. */
	writeq(control_of(iommu), iommu + REG_CONTROL);
	writeq(address | COMMANDS_LENGTH, iommu + REG_COMMANDS);
	writeq(0, iommu + REG_COMMAND_HEAD);
	writeq(0, iommu + REG_COMMAND_TAIL);
	writeq(control_of(iommu) | CONTROL_COMMANDS, iommu + REG_CONTROL);
	/* The commands are there before the IOMMU hears of them. */
	wmb();
	writeq((nr + 1) * sizeof(*commands), iommu + REG_COMMAND_TAIL);
	for (tries = 0; tries < PATIENCE; tries++) {
		if (READ_ONCE(*done))
			return true;
		cpu_relax();
	}
	return false;
}

/*
 * Has an IOMMU forget what it knows of the tables before. It knows translations by
 * the domain, and the domain of a device until it forgets the device.
 */
static bool forget(void __iomem *iommu, struct command *commands, u64 address)
{
	const unsigned int batch = PAGE_SIZE / sizeof(*commands) - 2;
	unsigned int device, nr;

	memset(commands, 0, PAGE_SIZE);
	if (readq(iommu + REG_FEATURES) & FEATURE_INVALIDATE_ALL) {
		commands[0].low = COMMAND_FORGET_ALL;
		return run(iommu, commands, address, 1);
	}
	for (device = 0; device < NR_DEVICES; device += nr) {
		for (nr = 0; nr < batch && device + nr < NR_DEVICES; nr++) {
			commands[nr].low = COMMAND_FORGET_DEVICE | (device + nr);
			commands[nr].high = 0;
		}
		if (!run(iommu, commands, address, nr))
			return false;
	}
	return true;
}

/*
 * Has all IOMMUs use a device table. Returns whether all say that they forgot the one
 * before. @commands is a page, at the physical address @address.
 */
bool p2m_crash_switch_iommus(u64 device_table, void *commands, u64 address)
{
	bool ok = true;
	unsigned int i;

	for (i = 0; i < nr_iommus; i++) {
		/* It's never off, or what devices still do would reach memory as it is. */
		writeq(device_table | DEVICE_TABLE_LENGTH, iommus[i] + REG_DEVICE_TABLE);
		ok &= forget(iommus[i], commands, address);
	}
	return ok;
}
