// SPDX-License-Identifier: GPL-2.0

//! The processor as the kernel finds it: in 64-bit mode, with flat segments and paging on.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs,
    kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use p2m_loader::Entry;

use crate::error::{Attempt, Error};

/// Protection, extension type, numeric errors, paging.
const CR0: u64 = (1 << 0) | (1 << 4) | (1 << 5) | (1 << 31);
/// Physical address extension.
const CR4: u64 = 1 << 5;
/// Long mode, enabled and active.
const EFER: u64 = (1 << 8) | (1 << 10);
/// The bit that is always 1.
const RFLAGS: u64 = 1 << 1;

/// `MSR_IA32_MISC_ENABLE`, and fast strings in it.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `MSR_MTRRdefType`: write-back is what all memory is, and the registers are in effect.
const MEMORY_TYPE: (u32, u64) = (0x2ff, 6 | (1 << 11));

/// The leaf of features, the bit of a timer with a deadline in ECX, and that of a hypervisor.
const FEATURES: u32 = 1;
const DEADLINE_TIMER: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaves of the topology, which have the number of the processor in EDX.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// Has a processor be ready to begin.
pub(crate) fn set_up(kvm: &Kvm, vcpu: &VcpuFd, entry: &Entry) -> Result<(), Error> {
    let features = cpuid(kvm)?;
    vcpu.set_cpuid2(&features)
        .attempt("give the processor its features")?;

    let registers: Vec<_> = [MISC_ENABLE, MEMORY_TYPE]
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        })
        .into();
    let registers = Msrs::from_entries(&registers).map_err(|_| Error::Missing("set registers"))?;
    let set = vcpu.set_msrs(&registers).attempt("set registers")?;
    if set != registers.as_slice().len() {
        return Err(Error::Missing("set the type of memory"));
    }

    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..kvm_fpu::default()
    };
    vcpu.set_fpu(&fpu).attempt("set floating-point registers")?;

    let mut special = vcpu.get_sregs().attempt("get special registers")?;
    let code = segment(Entry::CODE_SELECTOR, 0xb, true);
    let data = segment(Entry::DATA_SELECTOR, 0x3, false);
    special.cs = code;
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.gdt.base = entry.descriptor_table;
    special.gdt.limit = entry.descriptor_limit;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cr0 = CR0;
    special.cr3 = entry.page_table;
    special.cr4 = CR4;
    special.efer = EFER;
    vcpu.set_sregs(&special).attempt("set special registers")?;

    let registers = kvm_regs {
        rip: entry.instruction,
        rsi: entry.boot_params,
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).attempt("set registers")?;
    local_interrupts(vcpu)
}

/// Returns a flat segment.
fn segment(selector: u16, kind: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        l: code.into(),
        db: (!code).into(),
        g: 1,
        ..kvm_segment::default()
    }
}

/// Returns the features of a processor: all that KVM has.
fn cpuid(kvm: &Kvm) -> Result<CpuId, Error> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .attempt("say what processors can do")?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            FEATURES => {
                // The number of the processor is in the uppermost byte, and 0 here.
                leaf.ebx &= 0x00ff_ffff;
                leaf.ecx |= HYPERVISOR;
                if deadline {
                    leaf.ecx |= DEADLINE_TIMER;
                }
            }
            leaf_of_topology if TOPOLOGY.contains(&leaf_of_topology) => leaf.edx = 0,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// Has interrupts of the old controller come by LINT0, and those that can't be masked by LINT1.
fn local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXTERNAL: u32 = 7 << 8;
    const NON_MASKABLE: u32 = 4 << 8;
    let mut apic: kvm_lapic_state = vcpu.get_lapic().attempt("get the local APIC")?;
    for (register, mode) in [(LINT0, EXTERNAL), (LINT1, NON_MASKABLE)] {
        for (to, from) in apic.regs[register..].iter_mut().zip(mode.to_le_bytes()) {
            *to = from as _;
        }
    }
    vcpu.set_lapic(&apic).attempt("set the local APIC")
}
