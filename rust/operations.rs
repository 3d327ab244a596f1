// SPDX-License-Identifier: GPL-2.0

//! The operations of files of misc devices.

use kernel::{
    bindings,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions, //
    },
    prelude::*,
    sync::SetOnce, //
};

use crate::compat;

/// The operations of files, which are never written to.
struct Table(bindings::file_operations);

// SAFETY: It is only read.
unsafe impl Send for Table {}
// SAFETY: As above.
unsafe impl Sync for Table {}

/// The operations of a misc device, and what these don't have: an owner, and what Rust's has no
/// method for.
pub(crate) struct Operations(SetOnce<Table>);

impl Operations {
    /// Makes some that nobody can use yet.
    pub(crate) const fn new() -> Self {
        Self(SetOnce::new())
    }

    /// Fills them in with those of a device and what `change` does to them. To be called once, before
    /// the device is there.
    pub(crate) fn prepare<T: MiscDevice>(
        &self,
        options: MiscDeviceOptions,
        module: &'static ThisModule,
        change: impl FnOnce(&mut bindings::file_operations),
    ) -> Result {
        // SAFETY: The operations of a misc device are a constant.
        let mut operations = unsafe { *options.into_raw::<T>().fops };
        operations.owner = module.as_ptr();
        change(&mut operations);
        match self.0.populate(Table(operations)) {
            true => Ok(()),
            false => Err(EBUSY),
        }
    }

    /// Gives them to a file that is being opened.
    ///
    /// # Safety
    ///
    /// The file is of the device that they were made from, and it's called by its
    /// [`MiscDevice::open()`].
    pub(crate) unsafe fn give(&'static self, file: &File) -> Result {
        let table = self.0.as_ref().ok_or(ENODEV)?;
        // SAFETY: The file is being opened, so nobody uses it yet. The operations are there as long as
        // the module.
        match unsafe { compat::replace_operations(file.as_ptr(), &table.0) } {
            true => Ok(()),
            false => Err(ENODEV),
        }
    }
}
