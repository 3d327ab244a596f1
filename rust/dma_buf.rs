// SPDX-License-Identifier: GPL-2.0

//! Ranges of a domain as dma-bufs: the kernel's way to hand memory to drivers.
//!
//! A dma-buf has references to its pages, so they keep their frames as long as it lives: nobody moves
//! them, and who releases them or destroys their region takes them out of the domain only. It's
//! charged for them once more, as they may outlive what they came from.
//!
//! C header: [`rust/dma_buf.h`](dma_buf.h)

use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    types::ForeignOwnable, //
};

use crate::{
    abi,
    compat::EOPNOTSUPP,
    domain::Domain,
    ffi,
    frames::{
        Charge,
        Pages, //
    }, //
};

/// The most bytes of a device's name that are kept.
const NAME_LEN: usize = 64;

/// Who uses the dma-bufs of a domain.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// How many dma-bufs there are.
    pub(crate) nr_buffers: u64,
    /// How many attachments of devices there are.
    pub(crate) nr_attached: u64,
    /// How many there ever were.
    pub(crate) nr_ever_attached: u64,
    name: [u8; NAME_LEN],
    name_len: usize,
}

impl Usage {
    const NONE: Self = Self {
        nr_buffers: 0,
        nr_attached: 0,
        nr_ever_attached: 0,
        name: [0; NAME_LEN],
        name_len: 0,
    };

    /// Returns the name of the device that attached last.
    pub(crate) fn last_device(&self) -> Option<&str> {
        let name = self.name.get(..self.name_len)?;
        core::str::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty())
    }
}

/// What a domain and its dma-bufs, which may outlive it, know of devices.
#[pin_data]
pub(crate) struct Importers {
    #[pin]
    usage: Mutex<Usage>,
}

impl Importers {
    /// There are none yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                usage <- new_mutex!(Usage::NONE),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns who uses the dma-bufs now.
    pub(crate) fn usage(&self) -> Usage {
        *self.usage.lock()
    }
}

/// What a dma-buf keeps.
struct Export {
    pages: Pages,
    importers: Arc<Importers>,
    /// Dropped last, when the pages are gone.
    _charge: Charge,
}

impl Export {
    fn new(pages: Pages, importers: Arc<Importers>, charge: Charge) -> Result<KBox<Self>> {
        let export = KBox::new(
            Self {
                pages,
                importers,
                _charge: charge,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        // OVERFLOW: It's a number of objects.
        export.importers.usage.lock().nr_buffers += 1;
        Ok(export)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // OVERFLOW: It was counted when it was made.
        self.importers.usage.lock().nr_buffers -= 1;
    }
}

/// Returns whether the kernel has dma-bufs.
pub(crate) fn is_supported() -> bool {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_dma_buf_is_supported() }
}

/// `P2M_DMA_BUF_EXPORT`
pub(crate) fn export(domain: &Domain, command: &mut abi::p2m_dma_buf_export) -> Result {
    command.out_fd = -1;
    let known = bindings::O_CLOEXEC | bindings::O_ACCMODE;
    if command.fd_flags & !known != 0
        || command.fd_flags & bindings::O_ACCMODE == bindings::O_ACCMODE
    {
        return Err(EINVAL);
    }
    if command.fd_flags & bindings::O_ACCMODE != bindings::O_RDONLY && !domain.is_writable() {
        return Err(EACCES);
    }
    let range = abi::range(command.start_pfn, command.nr_pages)?;
    if !is_supported() {
        return Err(EOPNOTSUPP);
    }
    domain.injection().check(ENOMEM)?;
    let charge = Charge::new(range.nr_pages())?;
    let pages = domain.hold(range)?;
    domain.injection().check(ENOMEM)?;
    let mut export = Export::new(pages, domain.importers().clone(), charge)?;
    let (array, nr_pages) = export.pages.as_raw()?;
    let owner = export.into_foreign();
    // SAFETY: The array has that many valid pages, and stays as it is until the owner is dropped.
    let fd = unsafe { ffi::p2m_dma_buf_export(array, nr_pages, command.fd_flags as c_int, owner) };
    if fd < 0 {
        // SAFETY: After an error, the owner is still ours.
        drop(unsafe { <KBox<Export> as ForeignOwnable>::from_foreign(owner) });
        return Err(Error::from_errno(fd));
    }
    command.out_fd = fd;
    Ok(())
}

/// A device has been attached.
///
/// # Safety
///
/// `owner` is that of a dma-buf, and `device` is a string.
#[no_mangle]
unsafe extern "C" fn p2m_dma_buf_attached(owner: *mut c_void, device: *const c_char) {
    // SAFETY: By the safety requirements of this function. The owner isn't changed until it's
    // released.
    let (export, name) = unsafe {
        (
            <KBox<Export> as ForeignOwnable>::borrow(owner),
            CStr::from_char_ptr(device).to_bytes(),
        )
    };
    let mut usage = export.importers.usage.lock();
    // OVERFLOW: They are numbers of objects and of events.
    usage.nr_attached += 1;
    usage.nr_ever_attached += 1;
    usage.name_len = 0;
    for (to, from) in usage.name.iter_mut().zip(name) {
        *to = *from;
    }
    usage.name_len = name.len().min(NAME_LEN);
}

/// A device has been detached.
///
/// # Safety
///
/// `owner` is that of a dma-buf, and a device was attached to it.
#[no_mangle]
unsafe extern "C" fn p2m_dma_buf_detached(owner: *mut c_void) {
    // SAFETY: By the safety requirements of this function, as above.
    let export = unsafe { <KBox<Export> as ForeignOwnable>::borrow(owner) };
    // OVERFLOW: It was counted when it was attached.
    export.importers.usage.lock().nr_attached -= 1;
}

/// The dma-buf is gone.
///
/// # Safety
///
/// `owner` is that of a dma-buf, which doesn't use it any more.
#[no_mangle]
unsafe extern "C" fn p2m_dma_buf_released(owner: *mut c_void) {
    // SAFETY: By the safety requirements of this function.
    drop(unsafe { <KBox<Export> as ForeignOwnable>::from_foreign(owner) });
}
