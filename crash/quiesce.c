// SPDX-License-Identifier: GPL-2.0
/*
 * Have no interrupt of the old kernel reach the crash kernel: what
 * native_machine_crash_shutdown() does, of which nothing is exported. After it, the
 * controllers are as firmware leaves them, with all lines masked.
 */
#include <linux/acpi.h>
#include <linux/cpufeature.h>
#include <linux/io.h>

#include <asm/apicdef.h>
#include <asm/hypervisor.h>
#include <asm/msr.h>

#include "shim.h"

#define MAX_IOAPICS		128

#define IOAPIC_VERSION		0x01
#define IOAPIC_PIN(nr)		(0x10 + 2 * (nr))
#define PIN_DELIVERY_MODE	(7 << 8)
#define PIN_DELIVERY_SMI	(2 << 8)
#define PIN_REMOTE_IRR		BIT(14)
#define PIN_LEVEL		BIT(15)
#define PIN_MASKED		BIT(16)

#define HPET_CONFIG		0x10
#define HPET_ENABLE		BIT(0)
#define HPET_LEGACY		BIT(1)

#define PIC_MASTER_MASK		0x21
#define PIC_SLAVE_MASK		0xa1

#define KVM_MSR_FIRST		0x4b564d01
#define KVM_MSR_LAST		0x4b564d04

static void __iomem *ioapics[MAX_IOAPICS];
static unsigned int nr_ioapics;
static void __iomem *lapic;
static void __iomem *hpet;

void p2m_crash_forget_interrupts(void)
{
	while (nr_ioapics)
		iounmap(ioapics[--nr_ioapics]);
	if (lapic)
		iounmap(lapic);
	if (hpet)
		iounmap(hpet);
	lapic = NULL;
	hpet = NULL;
}

static int find_ioapics(const struct acpi_table_madt *madt)
{
	const void *end = (const void *)madt + madt->header.length;
	const struct acpi_subtable_header *entry = (const void *)(madt + 1);

	while ((const void *)(entry + 1) <= end) {
		if (entry->length < sizeof(*entry) || (const void *)entry + entry->length > end)
			return -EINVAL;
		if (entry->type == ACPI_MADT_TYPE_IO_APIC &&
		    entry->length >= sizeof(struct acpi_madt_io_apic)) {
			const struct acpi_madt_io_apic *found = (const void *)entry;

			if (nr_ioapics == MAX_IOAPICS)
				return -ENOSPC;
			ioapics[nr_ioapics] = ioremap(found->address, PAGE_SIZE);
			if (!ioapics[nr_ioapics])
				return -ENOMEM;
			nr_ioapics++;
		}
		entry = (const void *)entry + entry->length;
	}
	return 0;
}

/* Maps the registers: at a panic it is too late for that. */
int p2m_crash_find_interrupts(void)
{
	struct acpi_table_header *table;
	u64 base;
	int ret = 0;

	if (ACPI_SUCCESS(acpi_get_table(ACPI_SIG_MADT, 0, &table))) {
		ret = find_ioapics((const struct acpi_table_madt *)table);
		acpi_put_table(table);
	}
	if (!ret && !rdmsrq_safe(MSR_IA32_APICBASE, &base) && !(base & X2APIC_ENABLE)) {
		lapic = ioremap(base & MSR_IA32_APICBASE_BASE, PAGE_SIZE);
		if (!lapic)
			ret = -ENOMEM;
	}
	if (!ret && ACPI_SUCCESS(acpi_get_table(ACPI_SIG_HPET, 0, &table))) {
		hpet = ioremap(((const struct acpi_table_hpet *)table)->address.address, PAGE_SIZE);
		if (!hpet)
			ret = -ENOMEM;
		acpi_put_table(table);
	}
	if (ret)
		p2m_crash_forget_interrupts();
	return ret;
}

static u32 ioapic_read(void __iomem *ioapic, unsigned int reg)
{
	writel(reg, ioapic);
	return readl(ioapic + 0x10);
}

static void ioapic_write(void __iomem *ioapic, unsigned int reg, u32 value)
{
	writel(reg, ioapic);
	writel(value, ioapic + 0x10);
}

static void mask_pin(void __iomem *ioapic, unsigned int pin)
{
	u32 low = ioapic_read(ioapic, IOAPIC_PIN(pin));

	/* The firmware's. */
	if ((low & PIN_DELIVERY_MODE) == PIN_DELIVERY_SMI)
		return;
	low |= PIN_MASKED;
	ioapic_write(ioapic, IOAPIC_PIN(pin), low);
	if (ioapic_read(ioapic, IOAPIC_PIN(pin)) & PIN_REMOTE_IRR) {
		/* Nobody will tell the end of this interrupt. A change of mode does, too. */
		ioapic_write(ioapic, IOAPIC_PIN(pin), low & ~PIN_LEVEL);
		ioapic_write(ioapic, IOAPIC_PIN(pin), low | PIN_LEVEL);
	}
	ioapic_write(ioapic, IOAPIC_PIN(pin), PIN_MASKED);
	ioapic_write(ioapic, IOAPIC_PIN(pin) + 1, 0);
}

static void mask_ioapics(void)
{
	unsigned int i, pin, last;

	for (i = 0; i < nr_ioapics; i++) {
		last = ioapic_read(ioapics[i], IOAPIC_VERSION) >> 16 & 0xff;
		for (pin = 0; pin <= last; pin++)
			mask_pin(ioapics[i], pin);
	}
}

/* The mode may be another one than when the registers were mapped. */
static bool is_x2apic(void)
{
	u64 base;

	return !rdmsrq_safe(MSR_IA32_APICBASE, &base) && base & X2APIC_ENABLE;
}

static u32 lapic_read(unsigned int reg)
{
	u64 value = 0;

	if (is_x2apic())
		rdmsrq_safe(APIC_BASE_MSR + (reg >> 4), &value);
	else if (lapic)
		value = readl(lapic + reg);
	return value;
}

static void lapic_write(unsigned int reg, u32 value)
{
	if (is_x2apic())
		wrmsrq_safe(APIC_BASE_MSR + (reg >> 4), value);
	else if (lapic)
		writel(value, lapic + reg);
}

/* Interrupts that were being handled when the kernel panicked. */
static void end_interrupts(void)
{
	unsigned int i, tries;
	u32 in_service;

	/* There are 256 vectors. */
	for (tries = 0; tries < 256; tries++) {
		in_service = 0;
		for (i = 0; i < 8; i++)
			in_service |= lapic_read(APIC_ISR + 0x10 * i);
		if (!in_service)
			break;
		lapic_write(APIC_EOI, 0);
	}
}

/* As clear_local_APIC() and disconnect_bsp_APIC(). */
static void reset_lapic(void)
{
	unsigned int last_lvt = GET_APIC_MAXLVT(lapic_read(APIC_LVR));

	if (last_lvt >= 3)
		/* With vector 0, masking would be an error. */
		lapic_write(APIC_LVTERR, APIC_LVT_MASKED | 0xfe);
	lapic_write(APIC_LVTT, APIC_LVT_MASKED);
	lapic_write(APIC_LVT0, APIC_LVT_MASKED);
	lapic_write(APIC_LVT1, APIC_LVT_MASKED);
	if (last_lvt >= 4)
		lapic_write(APIC_LVTPC, APIC_LVT_MASKED);
	if (last_lvt >= 5)
		lapic_write(APIC_LVTTHMR, lapic_read(APIC_LVTTHMR) | APIC_LVT_MASKED);
	end_interrupts();
	if (last_lvt > 3)
		lapic_write(APIC_ESR, 0);

	lapic_write(APIC_SPIV, APIC_SPIV_APIC_ENABLED | 0xf);
	lapic_write(APIC_LVT0, SET_APIC_DELIVERY_MODE(0, APIC_MODE_EXTINT));
	lapic_write(APIC_LVT1, SET_APIC_DELIVERY_MODE(0, APIC_MODE_NMI));
}

void p2m_crash_quiesce(void)
{
	u32 msr;

	mask_ioapics();
	reset_lapic();
	outb(0xff, PIC_MASTER_MASK);
	outb(0xff, PIC_SLAVE_MASK);
	if (hpet)
		writel(readl(hpet + HPET_CONFIG) & ~(HPET_ENABLE | HPET_LEGACY),
		       hpet + HPET_CONFIG);
	/* The hypervisor would go on writing to the old kernel's memory. */
	if (hypervisor_is_type(X86_HYPER_KVM))
		for (msr = KVM_MSR_FIRST; msr <= KVM_MSR_LAST; msr++)
			wrmsrq_safe(msr, 0);
}
