// SPDX-License-Identifier: GPL-2.0

//! The machine, and how it runs.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_API_VERSION, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use p2m_loader::Entry;
use rustix::io::Errno;
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vm_superio::serial::NoEvents;
use vm_superio::{I8042Device, Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::balloon::{Balloon, Pages};
use crate::console::{ConsolePort, Interrupt, Output, Room, Status, feed, lock};
use crate::cpu;
use crate::error::{Attempt, Error};
use crate::place;

/// `/dev/kvm`, that has all that is needed.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens it.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new()
            .map_err(|error| Error::Open(std::io::Error::from_raw_os_error(error.errno())))?;
        if kvm.get_api_version() != KVM_API_VERSION as i32 {
            return Err(Error::Missing("speak version 12 of its interface"));
        }
        for (capability, what) in [
            (Cap::UserMemory, "map memory of this process"),
            (Cap::Irqchip, "provide interrupt controllers"),
            (Cap::Irqfd, "take interrupts from events"),
            (Cap::Pit2, "provide a timer"),
            (Cap::ExtCpuid, "say what processors can do"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(Error::Missing(what));
            }
        }
        Ok(Self { kvm })
    }
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It switched itself off.
    Off,
    /// It reset itself, as it also does after a panic with `panic=-1`.
    Reset,
    /// A fault while it handled a fault while it handled a fault.
    TripleFault,
}

/// What is left of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How it ended.
    pub how: How,
    /// The exit status that it has left.
    pub status: Option<u8>,
}

/// A guest that is ready to run.
///
/// When it's dropped, or when the process ends in any other way, all that KVM has of it is gone.
#[derive(Debug)]
pub struct Guest<'a> {
    /// Before the machine, as it's dropped in this order.
    vcpu: VcpuFd,
    vm: VmFd,
    memory: &'a GuestMemoryMmap,
    ports: Ports,
    room: Room,
    balloon: Option<BalloonSlot<'a>>,
}

struct BalloonSlot<'a> {
    device: Balloon<'a>,
    interrupt: EventFd,
}

impl core::fmt::Debug for BalloonSlot<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Balloon").finish_non_exhaustive()
    }
}

impl<'a> Guest<'a> {
    /// Makes a machine with this memory, to begin at an entry point.
    pub fn new(
        hypervisor: &Hypervisor,
        memory: &'a GuestMemoryMmap,
        entry: &Entry,
    ) -> Result<Self, Error> {
        let kvm = &hypervisor.kvm;
        let vm = kvm.create_vm().attempt("make a machine")?;
        vm.set_tss_address(place::TASK_STATE)
            .attempt("place the task state")?;
        vm.set_identity_map_address(place::IDENTITY_MAP)
            .attempt("place the identity map")?;
        vm.create_irq_chip().attempt("make interrupt controllers")?;
        vm.create_pit2(kvm_pit_config::default())
            .attempt("make a timer")?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: The memory is borrowed for longer than the machine lives. Nobody has
            // references to what is in it, by the rules of its type.
            unsafe { vm.set_user_memory_region(region) }.attempt("map the memory")?;
        }
        let vcpu = vm.create_vcpu(0).attempt("make a processor")?;
        cpu::set_up(kvm, &vcpu, entry)?;

        let room = Room::default();
        let console = Interrupt(event(&vm, place::CONSOLE.1)?);
        let status = Interrupt(event(&vm, place::STATUS.1)?);
        let ports = Ports {
            console: Arc::new(Mutex::new(Serial::with_events(
                console,
                room.clone(),
                Output,
            ))),
            status: Serial::new(status, Status::default()),
            keyboard: I8042Device::new(Reset::default()),
        };
        Ok(Self {
            vcpu,
            vm,
            memory,
            ports,
            room,
            balloon: None,
        })
    }

    /// Gives it a balloon, which is asked to hold a number of pages from the beginning. With
    /// `report`, the guest tells which pages are free, too; it touches them again without a word.
    ///
    /// The ACPI tables have to be those of a machine with a balloon.
    pub fn balloon(
        &mut self,
        pages: impl Pages + 'a,
        target: u32,
        report: bool,
    ) -> Result<(), Error> {
        self.balloon = Some(BalloonSlot {
            device: Balloon::new(Box::new(pages), target, report)?,
            interrupt: event(&self.vm, place::BALLOON.1)?,
        });
        Ok(())
    }

    /// Has the standard input go to the guest's console from now on.
    pub fn feed_console(&self) -> Result<(), Error> {
        feed(Arc::clone(&self.ports.console), self.room.clone())
    }

    /// Runs it until it ends.
    pub fn run(mut self) -> Result<Ending, Error> {
        loop {
            if let Some(how) = self.step()? {
                let status = self.ports.status.writer().get();
                return Ok(Ending { how, status });
            }
        }
    }

    /// Runs it until it wants something, and returns how it ended if it did.
    fn step(&mut self) -> Result<Option<How>, Error> {
        // An error of the processor can't be returned at once, as its registers are wanted.
        let stopped = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, bytes)) => return Ok(self.ports.write(port, bytes)),
            Ok(VcpuExit::IoIn(port, bytes)) => {
                self.ports.read(port, bytes);
                return Ok(None);
            }
            Ok(VcpuExit::MmioRead(address, bytes)) => {
                match on_balloon(&mut self.balloon, address) {
                    Some((balloon, offset)) => balloon.device.read(offset, bytes),
                    None => bytes.fill(0xff),
                }
                return Ok(None);
            }
            Ok(VcpuExit::MmioWrite(address, bytes)) => {
                if let Some((balloon, offset)) = on_balloon(&mut self.balloon, address) {
                    if balloon.device.write(self.memory, offset, bytes)? {
                        // It fails only if nobody has taken billions of interrupts before.
                        let _ = balloon.interrupt.write(1);
                    }
                }
                return Ok(None);
            }
            Ok(VcpuExit::Shutdown) => return Ok(Some(How::TripleFault)),
            Ok(VcpuExit::Intr) => return Ok(None),
            Ok(VcpuExit::InternalError) => "KVM gives up, the kernel log may say more".to_owned(),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                format!("it cannot enter the guest, for reason {reason:#x}")
            }
            Ok(other) => format!("{other:?}"),
            Err(error) => match Errno::from_raw_os_error(error.errno()) {
                Errno::INTR | Errno::AGAIN => return Ok(None),
                // A page with nothing behind it can't be mapped.
                Errno::FAULT => {
                    let instruction = self.instruction();
                    return Err(Error::MemoryGone { instruction });
                }
                _ => Err(error).attempt("run the processor")?,
            },
        };
        Err(Error::Stopped {
            reason: stopped,
            instruction: self.instruction(),
        })
    }

    /// Returns the address of the instruction that the processor is at.
    fn instruction(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |registers| registers.rip)
    }
}

/// Makes an event that is an interrupt.
fn event(vm: &VmFd, interrupt: u32) -> Result<EventFd, Error> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::Refused {
        attempted: "have an event for an interrupt",
        source,
    })?;
    vm.register_irqfd(&event, interrupt)
        .attempt("take interrupts from an event")?;
    Ok(event)
}

/// Returns the balloon and the offset in it if an address is one of its.
fn on_balloon<'b, 'a>(
    balloon: &'b mut Option<BalloonSlot<'a>>,
    address: u64,
) -> Option<(&'b mut BalloonSlot<'a>, u64)> {
    let offset = address.checked_sub(place::BALLOON.0.into())?;
    let balloon = balloon.as_mut()?;
    (offset < place::MMIO_BYTES.into()).then_some((balloon, offset))
}

/// Remembers that the guest wants to be reset.
#[derive(Clone, Debug, Default)]
struct Reset(Rc<Cell<bool>>);

impl Trigger for Reset {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// What there is at ports.
#[derive(Debug)]
struct Ports {
    console: Arc<Mutex<ConsolePort>>,
    status: Serial<Interrupt, NoEvents, Status>,
    keyboard: I8042Device<Reset>,
}

impl Ports {
    /// The bit that sends the machine to sleep (`SLP_EN`).
    const SLEEP: u8 = 1 << 5;

    /// Takes what the guest writes, and returns how it ended if that was its last word.
    fn write(&mut self, port: u16, bytes: &[u8]) -> Option<How> {
        for (port, &byte) in (port..).zip(bytes) {
            if let Some(offset) = within(port, place::CONSOLE.0) {
                // An interrupt that can't be raised, or output that can't be written, is lost.
                let _ = lock(&self.console).write(offset, byte);
            } else if let Some(offset) = within(port, place::STATUS.0) {
                let _ = self.status.write(offset, byte);
            } else if port == place::I8042.0 || port == place::I8042.1 {
                let Ok(()) = self.keyboard.write((port - place::I8042.0) as u8, byte);
                if self.keyboard.reset_evt().0.get() {
                    return Some(How::Reset);
                }
            } else if port == place::SLEEP.0 && byte & Self::SLEEP != 0 {
                return Some(How::Off);
            }
        }
        None
    }

    /// Returns what the guest reads. Where nothing is, all bits are set.
    fn read(&mut self, port: u16, bytes: &mut [u8]) {
        for (port, byte) in (port..).zip(bytes) {
            *byte = if let Some(offset) = within(port, place::CONSOLE.0) {
                lock(&self.console).read(offset)
            } else if let Some(offset) = within(port, place::STATUS.0) {
                self.status.read(offset)
            } else if port == place::I8042.0 || port == place::I8042.1 {
                self.keyboard.read((port - place::I8042.0) as u8)
            } else if port == place::SLEEP.0 || port == place::SLEEP.1 {
                0
            } else {
                0xff
            };
        }
    }
}

/// Returns the offset in a serial port if a port is one of its.
fn within(port: u16, serial: u16) -> Option<u8> {
    let offset = port.checked_sub(serial)?;
    (offset < place::SERIAL_PORTS).then_some(offset as u8)
}
