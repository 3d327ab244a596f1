// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernels that are supported: 7.3, and 7.2 (`p2m_kernel_7_2`).

#[cfg(not(p2m_kernel_7_2))]
pub(crate) use kernel::{
    error::code::{
        EADDRNOTAVAIL,
        EDQUOT,
        EOPNOTSUPP,
        EUCLEAN, //
    },
    mm::virt::flags::MAYSHARE,
    sync::rcu::rcu_barrier, //
};

#[cfg(p2m_kernel_7_2)]
pub(crate) use missing::*;

use kernel::module_param::ModuleParamAccess;

/// Returns the value of a module parameter.
pub(crate) fn parameter<T: Copy>(parameter: &ModuleParamAccess<T>) -> T {
    #[cfg(not(p2m_kernel_7_2))]
    return parameter.value();
    #[cfg(p2m_kernel_7_2)]
    return *parameter.value();
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
            pub(crate) const $error: Error = error(-(bindings::$error as c_int));
        )*};
    }

    errors!(EADDRNOTAVAIL EDQUOT EOPNOTSUPP EUCLEAN);

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
