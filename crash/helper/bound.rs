// SPDX-License-Identifier: GPL-2.0

//! Devices whose bus addresses are bound: the DMA API then allocates for them, and bounces, where they
//! reach the memory.

use core::ptr;

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use crate::ffi;

/// Binds the bus addresses of all devices of PCI, those that there are and those that come, as
/// long as it's there. Those of a device stay bound.
pub(crate) struct Bound {
    notifier: Pin<KBox<Notifier>>,
}

#[pin_data]
#[repr(C)]
struct Notifier {
    /// The first field, since the bus only knows that.
    #[pin]
    block: Opaque<bindings::notifier_block>,
    limit: u64,
}

// SAFETY: The bus has a lock for what it changes, and the rest stays.
unsafe impl Send for Notifier {}
// SAFETY: As above.
unsafe impl Sync for Notifier {}

/// Binds one device.
///
/// # Safety
///
/// `device` is one of PCI, and `limit` points to a limit.
unsafe extern "C" fn bind(device: *mut bindings::device, limit: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function.
    let limit = unsafe { *limit.cast::<u64>() };
    // SAFETY: As above. Whoever reads it reads a word, before or after.
    let old = unsafe { &raw mut (*device).bus_dma_limit };
    // SAFETY: As above.
    unsafe {
        if *old == 0 || *old > limit {
            *old = limit;
        }
    }
    // SAFETY: By the safety requirements of this function.
    unsafe { ffi::p2m_helper_have_dma_mapped(device) }
}

/// Called for what happens to devices.
///
/// # Safety
///
/// `block` is that of a [`Notifier`], and `device` is one of PCI.
unsafe extern "C" fn happened(
    block: *mut bindings::notifier_block,
    event: c_ulong,
    device: *mut c_void,
) -> c_int {
    const ADD: c_ulong = bindings::bus_notifier_event_BUS_NOTIFY_ADD_DEVICE as c_ulong;
    const BOUND: c_ulong = bindings::bus_notifier_event_BUS_NOTIFY_BOUND_DRIVER as c_ulong;

    // A virtio device is there when its transport has a driver.
    if event == ADD || event == BOUND {
        let notifier = block.cast::<Notifier>();
        // SAFETY: By the safety requirements of this function, and as it's the first field.
        let limit = unsafe { &raw mut (*notifier).limit };
        // SAFETY: As above.
        if unsafe { bind(device.cast(), limit.cast()) } != 0 {
            pr_err!("a virtio device won't work: no memory\n");
        }
    }
    bindings::NOTIFY_DONE as c_int
}

impl Bound {
    /// Begins to bind devices to addresses up to `limit`.
    pub(crate) fn new(limit: u64) -> Result<Self> {
        let notifier = KBox::pin_init(
            pin_init!(Notifier {
                block <- Opaque::new(bindings::notifier_block {
                    notifier_call: Some(happened),
                    ..Default::default()
                }),
                limit,
            }),
            GFP_KERNEL,
        )?;
        let bus = &raw const bindings::pci_bus_type;
        // SAFETY: It's a bus, and the block stays where it is until it's unregistered.
        to_result(unsafe { bindings::bus_register_notifier(bus, notifier.block.get()) })?;
        let bound = Self { notifier };
        let mut limit = limit;
        let argument = (&raw mut limit).cast();
        // SAFETY: It's a bus of PCI devices, and the limit is there meanwhile.
        to_result(unsafe {
            bindings::bus_for_each_dev(bus, ptr::null_mut(), argument, Some(bind))
        })?;
        Ok(bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // SAFETY: `new()` has registered it.
        unsafe {
            bindings::bus_unregister_notifier(
                &raw const bindings::pci_bus_type,
                self.notifier.block.get(),
            );
        }
    }
}
