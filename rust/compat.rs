// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernels that are supported: 7.3, and 7.2 (`p2m_kernel_7_2`).

// No module needs all of them.
#[allow(unused_imports)]
#[cfg(not(p2m_kernel_7_2))]
pub(crate) use kernel::{
    error::code::{
        EADDRNOTAVAIL,
        EDQUOT,
        ENODATA,
        EOPNOTSUPP,
        ESTALE,
        EUCLEAN, //
    },
    mm::virt::flags::MAYSHARE,
    sync::rcu::rcu_barrier, //
};

#[cfg(p2m_kernel_7_2)]
pub(crate) use missing::*;

use kernel::{
    bindings,
    module_param::ModuleParamAccess, //
};

/// Returns the value of a module parameter.
pub(crate) fn parameter<T: Copy>(parameter: &ModuleParamAccess<T>) -> T {
    #[cfg(not(p2m_kernel_7_2))]
    return parameter.value();
    #[cfg(p2m_kernel_7_2)]
    return *parameter.value();
}

/// Gives a file that is being opened other operations, which are those of a misc device of ours but
/// for what these don't have. Returns whether it may be opened.
///
/// # Safety
///
/// It's the one at work on the file, which the misc device has given its operations. The new ones are
/// there as long as the module that owns them, which is ours.
pub(crate) unsafe fn replace_operations(
    file: *mut bindings::file,
    operations: &'static bindings::file_operations,
) -> bool {
    // Those of a misc device have no owner in 7.2, so files would outlive the module. It's here until
    // a file was opened, as a device goes only then. After an error, what it has is looked at.
    #[cfg(p2m_kernel_7_2)]
    // SAFETY: By the safety requirements of this function.
    unsafe {
        if !bindings::try_module_get(operations.owner) {
            (*file).f_op = core::ptr::null();
            return false;
        }
    }
    // SAFETY: By the safety requirements of this function. The reference to the owner is now that of
    // the new operations.
    unsafe { (*file).f_op = operations };
    true
}

/// What 7.2 doesn't have yet.
#[cfg(p2m_kernel_7_2)]
mod missing {
    use kernel::{
        bindings,
        mm::virt::flags,
        prelude::*, //
    };

    /// It is there, too, but by a mistake with the value of `MAYEXEC`. That of each `MAY` flag is as
    /// far from that of its flag; helpers.c asserts it for this one.
    pub(crate) const MAYSHARE: bindings::vm_flags_t = flags::SHARED << 4;

    macro_rules! errors {
        ($($error:ident)*) => {$(
            #[allow(dead_code)]
            pub(crate) const $error: Error = error(-(bindings::$error as c_int));
        )*};
    }

    errors!(EADDRNOTAVAIL EDQUOT ENODATA EOPNOTSUPP ESTALE EUCLEAN);

    const fn error(errno: c_int) -> Error {
        assert!(errno < 0 && errno >= -(bindings::MAX_ERRNO as c_int));
        // SAFETY: An `Error` is a `NonZeroI32` between `-MAX_ERRNO` and -1, and nothing else. There
        // is no function for it in a constant.
        unsafe { core::mem::transmute::<c_int, Error>(errno) }
    }

    /// Waits until the functions that were passed to `call_rcu()` have been called.
    pub(crate) fn rcu_barrier() {
        // SAFETY: It has no requirements in a context that may sleep.
        unsafe { bindings::rcu_barrier() };
    }
}
