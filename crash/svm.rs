// SPDX-License-Identifier: GPL-2.0

//! The engine for AMD's SVM (AMD64 manual, volume 2, chapter 15 and appendix B).
//!
//! It's thin: the crash kernel has the processor, all devices and all interrupts. These are the exits:
//!
//! | exit | why |
//! |---|---|
//! | a write to EFER, VM_CR or VM_HSAVE_PA | EFER.SVME has to stay set, which the guest doesn't know |
//! | an MSR that the permission map doesn't cover | always exits; it's passed through |
//! | CPUID | only in a virtual machine: to hide interfaces by which physical addresses are told to the hypervisor, which doesn't know of ours |
//! | VMRUN and its like | their addresses would be machine addresses; they fault |
//! | nested page fault | the guest wrote to the old kernel's memory; that faults |
//! | shutdown | a triple fault |

use kernel::{
    fmt::{
        self,
        Display,
        Formatter, //
    },
    prelude::*, //
};

use crate::{
    engine::{
        End,
        Engine,
        Refusal,
        Start, //
    },
    ffi,
    frames::{
        self,
        Pages, //
    }, //
};

/// Model-specific registers.
mod msr {
    pub(super) const PAT: u32 = 0x277;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const TSC_RATIO: u32 = 0xc000_0104;
    pub(super) const VM_CR: u32 = 0xc001_0114;
    pub(super) const VM_HSAVE_PA: u32 = 0xc001_0117;
}

/// Bits of EFER.
mod efer {
    pub(super) const SCE: u64 = 1 << 0;
    pub(super) const LME: u64 = 1 << 8;
    pub(super) const LMA: u64 = 1 << 10;
    pub(super) const NXE: u64 = 1 << 11;
    pub(super) const SVME: u64 = 1 << 12;
}

/// VM_CR.SVMDIS: SVM can't be switched on.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// The CPUID leaf of what SVM can do, and bits of its EDX.
const SVM_FEATURES: u32 = 0x8000_000a;
const NESTED_PAGING: u32 = 1 << 0;
const TSC_RATIO: u32 = 1 << 4;

/// A guest's time stamp counter runs as the processor's own does: a number with 32 binary places.
const TSC_RATIO_ONE: u64 = 1 << 32;

/// Where things are in a VMCB.
mod vmcb {
    pub(super) const INTERCEPT_3: usize = 0x00c;
    pub(super) const INTERCEPT_4: usize = 0x010;
    pub(super) const MSRPM_BASE: usize = 0x048;
    pub(super) const ASID: usize = 0x058;
    pub(super) const TLB_CONTROL: usize = 0x05c;
    pub(super) const EXIT_CODE: usize = 0x070;
    pub(super) const EXIT_INFO_1: usize = 0x078;
    pub(super) const EXIT_INFO_2: usize = 0x080;
    pub(super) const EXIT_INT_INFO: usize = 0x088;
    pub(super) const NESTED_CONTROL: usize = 0x090;
    pub(super) const EVENT_INJECTION: usize = 0x0a8;
    pub(super) const NESTED_CR3: usize = 0x0b0;
    pub(super) const NEXT_RIP: usize = 0x0c8;
    pub(super) const ES: usize = 0x400;
    pub(super) const CS: usize = 0x410;
    pub(super) const SS: usize = 0x420;
    pub(super) const DS: usize = 0x430;
    pub(super) const FS: usize = 0x440;
    pub(super) const GS: usize = 0x450;
    pub(super) const LDTR: usize = 0x470;
    pub(super) const TR: usize = 0x490;
    pub(super) const EFER: usize = 0x4d0;
    pub(super) const CR4: usize = 0x548;
    pub(super) const CR3: usize = 0x550;
    pub(super) const CR0: usize = 0x558;
    pub(super) const DR7: usize = 0x560;
    pub(super) const DR6: usize = 0x568;
    pub(super) const RFLAGS: usize = 0x570;
    pub(super) const RIP: usize = 0x578;
    pub(super) const RSP: usize = 0x5d8;
    pub(super) const RAX: usize = 0x5f8;
    pub(super) const CR2: usize = 0x640;
    pub(super) const PAT: usize = 0x668;
}

/// Intercepts of vector 3.
const INTERCEPT_CPUID: u32 = 1 << 18;
const INTERCEPT_MSR: u32 = 1 << 28;
const INTERCEPT_SHUTDOWN: u32 = 1 << 31;

/// Intercepts of vector 4: VMRUN, without which a VMCB isn't valid, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI
/// and SKINIT.
const INTERCEPT_SVM: u32 = 0x7f;

/// Codes of exits.
mod exit {
    pub(super) const CPUID: u64 = 0x72;
    pub(super) const MSR: u64 = 0x7c;
    pub(super) const SHUTDOWN: u64 = 0x7f;
    pub(super) const VMRUN: u64 = 0x80;
    pub(super) const SKINIT: u64 = 0x86;
    pub(super) const NESTED_PAGE_FAULT: u64 = 0x400;
    pub(super) const INVALID: u64 = !0;
}

/// Exceptions, as they are injected.
mod exception {
    const VALID: u64 = 1 << 31;
    const HAS_ERROR_CODE: u64 = 1 << 11;
    const TYPE: u64 = 3 << 8;
    pub(super) const UNDEFINED_OPCODE: u64 = VALID | TYPE | 6;
    pub(super) const GENERAL_PROTECTION: u64 = VALID | TYPE | HAS_ERROR_CODE | 13;
}

const CR0_PE_MP_ET_NE_WP: u64 = 0x1_0033;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// The engine's state, all of it in pages of its own.
pub(crate) struct Svm {
    vmcb: Pages,
    /// Which MSRs exit.
    msr_map: Pages,
    /// The old kernel's state, for VMSAVE and VMLOAD.
    host_vmcb: Pages,
    /// Where the processor keeps the rest of it.
    host_save: Pages,
    /// How many writes to old memory were stopped.
    nr_stopped: u64,
}

/// Registers that are exchanged with a guest.
type Registers = ffi::p2m_crash_registers;

fn read_msr(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: A register that doesn't exist is an error. Reading one has no effect on us.
    let ret = unsafe { ffi::p2m_crash_read_msr(msr, &mut value) };
    (ret == 0).then_some(value)
}

/// Writes a register, if the processor takes the value.
///
/// # Safety
///
/// We can go on after it.
unsafe fn write_msr(msr: u32, value: u64) -> bool {
    // SAFETY: By the safety requirements of this function.
    unsafe { ffi::p2m_crash_write_msr(msr, value) == 0 }
}

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut registers = [0; 4];
    // SAFETY: There is room for four registers.
    unsafe { ffi::p2m_crash_cpuid(leaf, subleaf, registers.as_mut_ptr()) };
    registers
}

impl Engine for Svm {
    fn refusal() -> Option<Refusal> {
        // SAFETY: It has no requirements.
        if !unsafe { ffi::p2m_crash_has_svm() } {
            return Some(Refusal::NoEngine);
        }
        if read_msr(msr::VM_CR).is_some_and(|vm_cr| vm_cr & VM_CR_SVMDIS != 0) {
            return Some(Refusal::Disabled);
        }
        let [_, _, _, features] = cpuid(SVM_FEATURES, 0);
        if features & NESTED_PAGING == 0 {
            return Some(Refusal::NoNestedPaging);
        }
        // SAFETY: It has no requirements in a context that may sleep.
        unsafe { ffi::p2m_crash_is_occupied() }.then_some(Refusal::Occupied)
    }

    fn new(start: Start, nested_root: u64) -> Result<Self> {
        let mut svm = Self {
            vmcb: Pages::new(0)?,
            msr_map: Pages::new(1)?,
            host_vmcb: Pages::new(0)?,
            host_save: Pages::new(0)?,
            nr_stopped: 0,
        };
        for msr in [msr::EFER, msr::VM_CR, msr::VM_HSAVE_PA] {
            svm.intercept_write(msr);
        }
        svm.set_up(start, nested_root)?;
        Ok(svm)
    }

    fn size(&self) -> usize {
        let pages = [&self.vmcb, &self.msr_map, &self.host_vmcb, &self.host_save];
        pages.iter().map(|pages| pages.len()).sum()
    }

    fn checksum(&self, crc: u32) -> u32 {
        let pages = [&self.vmcb, &self.msr_map];
        pages
            .iter()
            .fold(crc, |crc, pages| frames::checksum(crc, pages.bytes()))
    }

    unsafe fn run(&mut self) -> End {
        let Some(efer) = read_msr(msr::EFER) else {
            return End::NotEntered;
        };
        // SAFETY: SVM changes nothing of what runs now. That of another hypervisor, which may be
        // switched on, is over, as it won't run any more.
        let is_on = unsafe {
            write_msr(msr::EFER, efer | efer::SVME)
                && write_msr(msr::VM_HSAVE_PA, self.host_save.address())
        };
        if !is_on {
            return End::NotEntered;
        }
        // KVM leaves that of its last guest, which the crash kernel would take for the machine's.
        let [_, _, _, features] = cpuid(SVM_FEATURES, 0);
        if features & TSC_RATIO != 0 {
            // SAFETY: It's about guests only.
            let _ = unsafe { write_msr(msr::TSC_RATIO, TSC_RATIO_ONE) };
        }
        let mut registers = Registers {
            rsi: self.read(vmcb::RAX),
            ..Registers::default()
        };
        self.write(vmcb::RAX, 0);
        let host_vmcb = self.host_vmcb.address();
        let address = self.vmcb.address();
        // SAFETY: SVM is on, and it's a page of ours. Nobody waits for an interrupt any more.
        unsafe { ffi::p2m_crash_svm_begin(host_vmcb) };
        let mut has_run = false;
        loop {
            // SAFETY: The VMCB is one, and what the guest may do doesn't touch us: all other memory
            // than what it may have is read-only to it, by the safety requirements of this function.
            unsafe { ffi::p2m_crash_svm_run(address, &mut registers, host_vmcb) };
            self.vmcb.write(vmcb::TLB_CONTROL, [0u8]);
            let handled = self.handle(&mut registers);
            // What is refused later has run before.
            let handled = handled.map_err(|end| match end {
                End::NotEntered if has_run => End::Unknown(exit::INVALID),
                end => end,
            });
            has_run = true;
            if let Err(end) = handled {
                pr_emerg!("the crash kernel left, {}\n", State(self));
                // SAFETY: It undoes what was done above.
                unsafe { ffi::p2m_crash_svm_end() };
                return end;
            }
        }
    }
}

impl Svm {
    fn read(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.vmcb.read(offset))
    }

    fn write(&mut self, offset: usize, value: u64) {
        self.vmcb.write(offset, value.to_le_bytes());
    }

    fn write_segment(&mut self, offset: usize, selector: u16, attributes: u16) {
        self.vmcb.write(offset, selector.to_le_bytes());
        self.vmcb.write(offset + 2, attributes.to_le_bytes());
        self.vmcb.write(offset + 4, u32::MAX.to_le_bytes());
    }

    /// Has writes to an MSR exit. The map has two bits for each of the registers of three ranges.
    fn intercept_write(&mut self, msr: u32) {
        const NR_MSRS: u32 = 0x2000;
        const WRITE: u32 = 1;

        let range = match msr {
            0..NR_MSRS => 0,
            0xc000_0000..0xc000_2000 => 1,
            _ => 2,
        };
        let bit = 2 * (range * NR_MSRS + msr % NR_MSRS) + WRITE;
        // CAST: A small number.
        if let Some(byte) = self.msr_map.bytes_mut().get_mut(bit as usize / 8) {
            *byte |= 1 << (bit % 8);
        }
    }

    /// Fills the VMCB in. What isn't mentioned is zero.
    fn set_up(&mut self, start: Start, nested_root: u64) -> Result {
        const FLUSH_ALL: u8 = 1;
        const CODE_64: u16 = 0xa9b;
        const DATA: u16 = 0xc93;
        const BUSY_TSS: u16 = 0x08b;
        const NO_LDT: u16 = 0x082;
        const BOOT_CS: u16 = 0x10;
        const BOOT_DS: u16 = 0x18;

        let mut intercepts = INTERCEPT_MSR | INTERCEPT_SHUTDOWN;
        // SAFETY: It has no requirements.
        if unsafe { ffi::p2m_crash_is_virtual() } {
            intercepts |= INTERCEPT_CPUID;
        }
        self.vmcb.write(vmcb::INTERCEPT_3, intercepts.to_le_bytes());
        self.vmcb
            .write(vmcb::INTERCEPT_4, INTERCEPT_SVM.to_le_bytes());
        self.write(vmcb::MSRPM_BASE, self.msr_map.address());
        self.vmcb.write(vmcb::ASID, 1u32.to_le_bytes());
        self.vmcb.write(vmcb::TLB_CONTROL, [FLUSH_ALL]);
        self.write(vmcb::NESTED_CONTROL, 1);
        self.write(vmcb::NESTED_CR3, nested_root);

        self.write_segment(vmcb::CS, BOOT_CS, CODE_64);
        for segment in [vmcb::ES, vmcb::SS, vmcb::DS, vmcb::FS, vmcb::GS] {
            self.write_segment(segment, BOOT_DS, DATA);
        }
        self.write_segment(vmcb::TR, 0, BUSY_TSS);
        self.write_segment(vmcb::LDTR, 0, NO_LDT);
        self.write(vmcb::EFER, efer::LME | efer::LMA | efer::SVME);
        self.write(vmcb::CR0, CR0_PG | CR0_PE_MP_ET_NE_WP);
        self.write(vmcb::CR3, start.cr3);
        self.write(vmcb::CR4, CR4_PAE);
        self.write(vmcb::DR6, 0xffff_0ff0);
        self.write(vmcb::DR7, 0x400);
        self.write(vmcb::RFLAGS, 2);
        self.write(vmcb::RIP, start.rip);
        self.write(vmcb::RSP, 0);
        // Not a register that the VMCB has, but the VMCB has a checksum.
        self.write(vmcb::RAX, start.rsi);
        self.write(vmcb::PAT, read_msr(msr::PAT).ok_or(EIO)?);
        Ok(())
    }

    /// Does what the guest left for.
    fn handle(&mut self, registers: &mut Registers) -> Result<(), End> {
        match self.read(vmcb::EXIT_CODE) {
            exit::MSR => {
                if self.handle_msr(registers) {
                    self.skip(2);
                } else {
                    self.inject(exception::GENERAL_PROTECTION);
                }
            }
            exit::CPUID => {
                self.handle_cpuid(registers);
                self.skip(2);
            }
            exit::VMRUN..=exit::SKINIT => self.inject(exception::UNDEFINED_OPCODE),
            exit::NESTED_PAGE_FAULT => return self.handle_fault(),
            exit::SHUTDOWN => return Err(End::Shutdown),
            exit::INVALID => return Err(End::NotEntered),
            code => return Err(End::Unknown(code)),
        }
        Ok(())
    }

    /// Goes on behind an instruction, which is `length` bytes long if the processor doesn't tell where
    /// the next one is.
    fn skip(&mut self, length: u64) {
        let next = match self.read(vmcb::NEXT_RIP) {
            0 => self.read(vmcb::RIP).wrapping_add(length),
            next => next,
        };
        self.write(vmcb::RIP, next);
    }

    fn inject(&mut self, exception: u64) {
        self.write(vmcb::EVENT_INJECTION, exception);
    }

    /// Reads or writes an MSR, and returns whether that can be done.
    fn handle_msr(&mut self, registers: &mut Registers) -> bool {
        // CAST: The instructions use the lower halves.
        let msr = registers.rcx as u32;
        let is_write = self.read(vmcb::EXIT_INFO_1) & 1 != 0;
        let low = self.read(vmcb::RAX) & 0xffff_ffff;
        let value = registers.rdx << 32 | low;
        match (msr, is_write) {
            (msr::EFER, true) => self.write_efer(value),
            (msr::VM_CR | msr::VM_HSAVE_PA, true) => false,
            // SAFETY: A register that the old kernel doesn't depend on, as none of the map do that
            // the guest may write itself.
            (_, true) => unsafe { write_msr(msr, value) },
            (_, false) => {
                let Some(value) = read_msr(msr) else {
                    return false;
                };
                self.write(vmcb::RAX, value & 0xffff_ffff);
                registers.rdx = value >> 32;
                true
            }
        }
    }

    /// Writes EFER as the guest sees it, where SVME stays set.
    fn write_efer(&mut self, value: u64) -> bool {
        const SIMPLE: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::SVME;

        let old = self.read(vmcb::EFER);
        let is_paging = self.read(vmcb::CR0) & CR0_PG != 0;
        if is_paging && (old ^ value) & efer::LME != 0 {
            return false;
        }
        // A bit that the processor doesn't have makes the VMCB invalid. It knows which it has.
        let unusual = value & !SIMPLE;
        if unusual != 0 {
            let Some(host) = read_msr(msr::EFER) else {
                return false;
            };
            // SAFETY: These bits extend what instructions do that aren't used in between.
            let is_taken = unsafe { write_msr(msr::EFER, host | unusual) };
            // SAFETY: As it was.
            if !is_taken || !unsafe { write_msr(msr::EFER, host) } {
                return false;
            }
        }
        // LMA isn't the guest's to write.
        let new = value & !efer::LMA | old & efer::LMA | efer::SVME;
        self.write(vmcb::EFER, new);
        true
    }

    /// Tells the guest what processor it has, but not that it's in a virtual machine.
    fn handle_cpuid(&mut self, registers: &mut Registers) {
        const HYPERVISOR: u32 = 1 << 31;
        const OSXSAVE: u32 = 1 << 27;
        const OSPKE: u32 = 1 << 4;
        const SVM: u32 = 1 << 2;

        // CAST: The instruction uses the lower halves.
        let (leaf, subleaf) = (self.read(vmcb::RAX) as u32, registers.rcx as u32);
        let cr4 = self.read(vmcb::CR4);
        let [mut eax, mut ebx, mut ecx, mut edx] = cpuid(leaf, subleaf);
        // These are copies of bits of CR4, and it was the old kernel's that was looked at.
        let copy = |ecx: u32, bit: u32, is_set: bool| if is_set { ecx | bit } else { ecx & !bit };
        match (leaf, subleaf) {
            (1, _) => ecx = copy(ecx & !HYPERVISOR, OSXSAVE, cr4 & CR4_OSXSAVE != 0),
            (7, 0) => ecx = copy(ecx, OSPKE, cr4 & CR4_PKE != 0),
            (0x8000_0001, _) => ecx &= !SVM,
            (0x4000_0000..0x5000_0000, _) => (eax, ebx, ecx, edx) = (0, 0, 0, 0),
            _ => (),
        }
        self.write(vmcb::RAX, eax.into());
        registers.rbx = ebx.into();
        registers.rcx = ecx.into();
        registers.rdx = edx.into();
    }

    /// Has the guest fault that wrote to memory of the old kernel. A driver that does so is to be
    /// found, and its kernel goes on as after any other fault.
    fn handle_fault(&mut self) -> Result<(), End> {
        const EVENT_VALID: u64 = 1 << 31;

        self.nr_stopped = self.nr_stopped.saturating_add(1);
        if self.nr_stopped <= 16 {
            pr_emerg!("stopped the crash kernel: {}\n", Fault(self));
        }
        // While it's being told of another event it has no way to be told of this one.
        if self.read(vmcb::EXIT_INT_INFO) & EVENT_VALID != 0 {
            return Err(End::Unknown(exit::NESTED_PAGE_FAULT));
        }
        self.inject(exception::GENERAL_PROTECTION);
        Ok(())
    }
}

/// Where a guest is.
struct State<'a>(&'a Svm);

impl Display for State<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(svm) = self;
        for (name, offset) in [
            ("rip", vmcb::RIP),
            ("rsp", vmcb::RSP),
            ("cr0", vmcb::CR0),
            ("cr2", vmcb::CR2),
            ("cr3", vmcb::CR3),
            ("cr4", vmcb::CR4),
            ("efer", vmcb::EFER),
            ("info", vmcb::EXIT_INFO_1),
            ("address", vmcb::EXIT_INFO_2),
        ] {
            write!(f, "{name} {:#x} ", svm.read(offset))?;
        }
        Ok(())
    }
}

/// What a nested page fault was about.
struct Fault<'a>(&'a Svm);

impl Display for Fault<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const WRITE: u64 = 1 << 1;

        let Self(svm) = self;
        let what = match svm.read(vmcb::EXIT_INFO_1) & WRITE {
            0 => "read of",
            _ => "write to",
        };
        let address = svm.read(vmcb::EXIT_INFO_2);
        let rip = svm.read(vmcb::RIP);
        write!(f, "{what} {address:#x}, which it doesn't have, at {rip:#x}")
    }
}
