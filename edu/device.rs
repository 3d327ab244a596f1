// SPDX-License-Identifier: GPL-2.0

//! QEMU's "edu" device: its registers, and its limits.
//!
//! Reference: `docs/specs/edu.rst` of QEMU.
//!
//! It moves bytes between memory and a buffer of 4096 bytes that only it can see, and takes 100 ms
//! for it. It trusts its driver: what is longer than the buffer isn't checked well, and bits of bus
//! addresses above its mask are dropped without a word. So a transfer is never longer, and the DMA
//! API is told how many bits there are.

use kernel::{
    bindings,
    device::{
        self,
        Bound,
        Core, //
    },
    dma::{
        Coherent,
        Device as _,
        DmaMask, //
    },
    global_lock,
    io::{
        poll::read_poll_timeout,
        Io, //
    },
    pci,
    prelude::*,
    sync::aref::ARef,
    time::Delta, //
};

use crate::{
    compat::parameter,
    memory::{
        Piece,
        PIECE, //
    }, //
};

/// Registers for DMA, and what is in them.
mod regs {
    pub(super) const ID: usize = 0x00;
    pub(super) const SOURCE: usize = 0x80;
    pub(super) const TARGET: usize = 0x88;
    pub(super) const LENGTH: usize = 0x90;
    pub(super) const COMMAND: usize = 0x98;
    pub(super) const END: usize = 0xa0;

    pub(super) const ID_MASK: u32 = 0xffff;
    pub(super) const ID_VALUE: u32 = 0xed;
    pub(super) const START: u64 = 1 << 0;
    pub(super) const TO_MEMORY: u64 = 1 << 1;
    /// The address of the buffer, as the device knows it.
    pub(super) const BUFFER: u64 = 0x40000;
}

/// How often the device is asked whether it's done, and how long it's waited for.
const POLL_INTERVAL: Delta = Delta::from_millis(2);
const POLL_LIMIT: Delta = Delta::from_secs(20);

global_lock! {
    // SAFETY: It's initialised when the module is, before anything else is.
    unsafe(uninit) static EDU: Mutex<Option<Edu>> = None;
}

/// Makes the lock of the device ready.
///
/// # Safety
///
/// It is called once, before anything else here.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements of this function.
    unsafe { EDU.init() };
}

/// The device that is there.
struct Edu {
    pdev: ARef<pci::Device>,
    bar: pci::DevresBar<{ regs::END }>,
    /// A page that the device and the processor see alike.
    page: Coherent<[u8]>,
    nr_bits: u32,
    /// It didn't answer.
    is_dead: bool,
}

/// The device in use: nobody else uses it, and it stays bound.
pub(crate) struct Access<'a> {
    edu: &'a mut Edu,
}

/// Calls `work` with the device, alone.
pub(crate) fn with_device<R>(work: impl FnOnce(&mut Access<'_>) -> Result<R>) -> Result<R> {
    let mut guard = EDU.lock();
    let edu = guard.as_mut().ok_or(ENODEV)?;
    if edu.is_dead {
        return Err(EIO);
    }
    work(&mut Access { edu })
}

impl Access<'_> {
    /// Returns the device.
    pub(crate) fn device(&self) -> &device::Device<Bound> {
        let device: &device::Device = (*self.edu.pdev).as_ref();
        // SAFETY: Who unbinds it takes it from under the lock first, which is held as long as
        // `self` lives.
        unsafe { device.as_bound() }
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &CStr {
        self.device().name()
    }

    /// Returns how many bits its bus addresses have.
    pub(crate) fn nr_bits(&self) -> u32 {
        self.edu.nr_bits
    }

    /// Returns whether the device may be using memory that it was told of.
    pub(crate) fn is_dead(&self) -> bool {
        self.edu.is_dead
    }

    /// Has the device read a piece, and tells what it read.
    pub(crate) fn read(&mut self, piece: Piece) -> Result<&[u8]> {
        let page = self.edu.page.dma_address();
        self.transfer(piece.address, regs::BUFFER, piece.length, 0)?;
        self.transfer(regs::BUFFER, page, piece.length, regs::TO_MEMORY)?;
        Ok(self.page(piece)?)
    }

    /// Has the device write a piece: what `fill` puts into the buffer.
    pub(crate) fn write(&mut self, piece: Piece, fill: impl FnOnce(&mut [u8]) -> Result) -> Result {
        let page = self.edu.page.dma_address();
        fill(self.page(piece)?)?;
        self.transfer(page, regs::BUFFER, piece.length, 0)?;
        self.transfer(regs::BUFFER, piece.address, piece.length, regs::TO_MEMORY)
    }

    /// Returns the part of the page that a piece needs.
    fn page(&mut self, piece: Piece) -> Result<&mut [u8]> {
        let length = usize::try_from(piece.length)?;
        // SAFETY: The device does nothing now, and nobody else has the page.
        let page = unsafe { self.edu.page.as_mut() };
        page.get_mut(..length).ok_or(EINVAL)
    }

    /// Has the device move bytes, and waits for it.
    fn transfer(&mut self, source: u64, target: u64, length: u64, direction: u64) -> Result {
        if length == 0 || length > PIECE {
            return Err(EINVAL);
        }
        let bar = self.edu.bar.access(self.device())?;
        bar.try_write64(source, regs::SOURCE)?;
        bar.try_write64(target, regs::TARGET)?;
        bar.try_write64(length, regs::LENGTH)?;
        bar.try_write64(regs::START | direction, regs::COMMAND)?;
        let done = read_poll_timeout(
            || bar.try_read64(regs::COMMAND),
            |command| command & regs::START == 0,
            POLL_INTERVAL,
            POLL_LIMIT,
        );
        if done.is_err() {
            dev_err!(self.device(), "the device doesn't answer any more\n");
            self.edu.is_dead = true;
            return Err(EIO);
        }
        Ok(())
    }
}

/// The driver.
pub(crate) struct Driver;

/// What QEMU calls the device. Rust has no name for the vendor, so it's made of C's structure.
const ID: pci::DeviceId = {
    let id = bindings::pci_device_id {
        vendor: 0x1234,
        device: 0x11e8,
        subvendor: !0,
        subdevice: !0,
        class: 0,
        class_mask: 0,
        driver_data: 0,
        override_only: 0,
    };
    // SAFETY: It's a transparent wrapper without invariants of its own.
    unsafe { core::mem::transmute::<bindings::pci_device_id, pci::DeviceId>(id) }
};

kernel::pci_device_table!(PCI_TABLE, <Driver as pci::Driver>::IdInfo, [(ID, ())]);

/// That a device is bound.
pub(crate) struct Binding(());

impl Drop for Binding {
    fn drop(&mut self) {
        // Waits until nobody uses it. From then on there's none.
        let edu = EDU.lock().take();
        drop(edu);
    }
}

impl pci::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Binding;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let nr_bits = parameter(&crate::module_parameters::dma_bits);
        pdev.enable_device_mem()?;
        let bar = pdev.iomap_region_sized::<{ regs::END }>(0, c"p2m_edu")?;
        if bar.read32(regs::ID) & regs::ID_MASK != regs::ID_VALUE {
            return Err(ENODEV);
        }
        let mask = DmaMask::try_new(nr_bits)?;
        // SAFETY: Nobody maps or allocates anything for the device yet.
        unsafe {
            pdev.dma_set_mask_and_coherent(mask)?;
            pdev.dma_set_max_seg_size(PIECE as u32);
        }
        pdev.set_master();
        let page = Coherent::zeroed_slice(pdev.as_ref(), PIECE as usize, GFP_KERNEL)?;
        let edu = Edu {
            pdev: pdev.into(),
            bar: bar.into_devres()?,
            page,
            nr_bits,
            is_dead: false,
        };
        let mut guard = EDU.lock();
        if guard.is_some() {
            // One is enough for tests.
            return Err(EBUSY);
        }
        *guard = Some(edu);
        Ok(Binding(()))
    }
}
