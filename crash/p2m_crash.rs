// SPDX-License-Identifier: GPL-2.0

//! A crash kernel on a machine where nothing is reserved for one.
//!
//! When the kernel panics, an unmodified second one is started in frames that are anywhere in the
//! machine: a few that hold its image, and for the rest those that are free. Nested page tables make one
//! piece of them.
//!
//! ```text
//!  device ──► image ──► window ──► pure::paging ──► pure::pv    P2M and nested page tables
//!               │          └─────────────────────► frames       frames, ours and free ones
//!               ├──► engine ──► svm ──► entry.S                the processor's virtualisation
//!               └──► quiesce.c                                  interrupt controllers
//! ```
//!
//! It's a module of its own, so that who wants a P2M doesn't get a panic notifier. What it shares
//! with the other one it compiles itself.

use kernel::{
    bindings,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

use crate::{
    frames::LowMemory,
    image::Notifier,
    ioctl::dispatch,
    operations::Operations, //
};

mod abi;
#[allow(dead_code, unused_imports)]
#[path = "../rust/compat.rs"]
mod compat;
mod engine;
mod ffi;
mod frames;
mod image;
#[path = "../rust/ioctl.rs"]
mod ioctl;
mod iommu;
#[path = "../rust/operations.rs"]
mod operations;
#[forbid(unsafe_code)]
#[path = "../rust/pure/mod.rs"]
pub mod pure;
mod svm;
mod window;

module! {
    type: P2mCrash,
    name: "p2m_crash",
    authors: ["The p2m engineers"],
    description: "A crash kernel without reserved memory",
    license: "GPL",
}

/// The module.
///
/// Fields are dropped from the first to the last: when the notifier goes, nobody can open the device
/// any more, and as open files and a loaded crash kernel hold a reference to the module, nobody has.
#[pin_data]
struct P2mCrash {
    #[pin]
    _device: MiscDeviceRegistration<Session>,
    _notifier: Notifier,
}

impl kernel::InPlaceModule for P2mCrash {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions { name: c"p2m_crash" };
        // Initialised in this order: the device is visible last.
        try_pin_init!(Self {
            _notifier: {
                OPERATIONS.prepare::<Session>(options, module, |_| ())?;
                Notifier::new()?
            },
            _device <- MiscDeviceRegistration::register(options),
        })
    }
}

/// The operations of files that are sessions.
static OPERATIONS: Operations = Operations::new();

/// An open `/dev/p2m_crash`. What it's about is there once for the machine.
#[pin_data]
struct Session {
    /// What the next crash kernel that is loaded through it can get.
    #[pin]
    low: Mutex<Option<LowMemory>>,
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = Pin<KBox<Self>>;

    fn open(file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        // SAFETY: It's a file of ours, and this is what opens it.
        unsafe { OPERATIONS.give(file) }?;
        // SAFETY: It has no requirements.
        if !unsafe { bindings::capable(bindings::CAP_SYS_BOOT as c_int) } {
            return Err(EPERM);
        }
        let session = try_pin_init!(Self {
            low <- new_mutex!(None),
        });
        KBox::try_pin_init(session, GFP_KERNEL)
    }

    fn ioctl(me: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        dispatch!(&me, cmd, arg, {
            p2m_crash_info => image::info,
            p2m_crash_load => image::load,
            p2m_crash_unload => image::unload,
            p2m_crash_status => image::status,
            p2m_crash_low => image::low,
        })
    }
}
