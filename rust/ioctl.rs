// SPDX-License-Identifier: GPL-2.0

//! How the structures of an ABI cross it: sizes, flags, and what isn't known.
//!
//! The modules share it; each has a header, and what bindgen makes of that.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader, //
    }, //
};

use zerocopy::{
    Immutable,
    KnownLayout, //
};

use crate::{
    compat::EOPNOTSUPP,
    pure::frame::PAGE_SIZE, //
};

/// A structure that an ioctl takes.
///
/// # Safety of extension
///
/// It begins with its size in bytes. It grows only at its end, and then `MIN_SIZE` stays.
pub(crate) trait Command: FromBytes + IntoBytes + KnownLayout + Immutable {
    /// The number of the ioctl.
    const NUMBER: u32;

    /// The size of the first version of the structure.
    const MIN_SIZE: usize;

    /// The flags that are known.
    const FLAGS: u32;

    /// Returns the flags of the command.
    fn flags(&self) -> u32;
}

/// Says which structures are commands of a type: the number, the size of the first version, and the
/// flags that are known.
macro_rules! commands {
    (type $type:ident; $($command:ident = $nr:ident, $min_size:literal, $flags:expr;)*) => {$(
        impl $crate::ioctl::Command for $command {
            const NUMBER: u32 = ::kernel::ioctl::_IO($type, $nr);
            const MIN_SIZE: usize = $min_size;
            const FLAGS: u32 = $flags;

            fn flags(&self) -> u32 {
                self.flags
            }
        }

        static_assert!(core::mem::offset_of!($command, size) == 0);
        static_assert!(core::mem::offset_of!($command, flags) == 4);
        static_assert!(core::mem::size_of::<$command>() >= $min_size);
        static_assert!(core::mem::size_of::<$command>() % 8 == 0);
    )*};
}
pub(crate) use commands;

/// Calls the handler of a command by its number.
macro_rules! dispatch {
    ($me:expr, $cmd:expr, $arg:expr, { $($command:ident => $handler:path,)* }) => {
        match $cmd {
            $(<$crate::abi::$command as $crate::ioctl::Command>::NUMBER => $crate::ioctl::handle(
                ::kernel::uaccess::UserPtr::from_addr($arg),
                |command| $handler($me, command),
            ),)*
            _ => Err(::kernel::error::code::ENOTTY),
        }
    };
}
pub(crate) use dispatch;

/// Makes a user pointer of what userspace gave.
fn user_ptr(address: u64) -> Result<UserPtr> {
    Ok(UserPtr::from_addr(
        usize::try_from(address).map_err(|_| EFAULT)?,
    ))
}

/// Returns the bytes from `address` on, `nr` times the size of `T`, if that is not too many.
pub(crate) fn user_slice<T>(address: u64, nr: u32) -> Result<UserSlice> {
    let length = usize::try_from(nr)
        .ok()
        .and_then(|nr| nr.checked_mul(core::mem::size_of::<T>()))
        .ok_or(EOVERFLOW)?;
    Ok(UserSlice::new(user_ptr(address)?, length))
}

/// Reads a command, handles it, and writes back what it says then.
///
/// The structure may be older or newer than ours, as with `copy_struct_from_user()`. It is written
/// back after an error as well, so that it tells how far the command got.
pub(crate) fn handle<C: Command>(
    arg: UserPtr,
    handler: impl FnOnce(&mut C) -> Result,
) -> Result<isize> {
    let mut size = 0u32;
    UserSlice::new(arg, core::mem::size_of::<u32>())
        .reader()
        .read_slice(size.as_mut_bytes())?;
    let size = usize::try_from(size).map_err(|_| E2BIG)?;
    if size < C::MIN_SIZE {
        return Err(EINVAL);
    }
    if size > PAGE_SIZE {
        return Err(E2BIG);
    }
    let known = size.min(core::mem::size_of::<C>());

    let mut command = C::new_zeroed();
    let mut reader = UserSlice::new(arg, size).reader();
    let bytes = command.as_mut_bytes().get_mut(..known).ok_or(EINVAL)?;
    reader.read_slice(bytes)?;
    // The size was read twice, and only the first one was checked.
    // CAST: The size is at most that of a page.
    if let Some(field) = bytes.first_chunk_mut() {
        *field = (size as u32).to_ne_bytes();
    }
    check_zero(reader)?;
    if command.flags() & !C::FLAGS != 0 {
        return Err(EOPNOTSUPP);
    }

    // What can't say what it did must not do it.
    write_back(arg, known, &command)?;
    let result = handler(&mut command);
    let written = write_back(arg, known, &command);
    result.and(written).map(|()| 0)
}

/// Writes the part of a structure that userspace knows.
fn write_back<C: Command>(arg: UserPtr, known: usize, command: &C) -> Result {
    let bytes = command.as_bytes().get(..known).ok_or(EINVAL)?;
    UserSlice::new(arg, known).writer().write_slice(bytes)
}

/// Checks that the rest of a structure, which we don't know, is zero.
fn check_zero(mut reader: UserSliceReader) -> Result {
    let mut chunk = [0u8; 64];
    while !reader.is_empty() {
        let len = reader.len().min(chunk.len());
        let bytes = chunk.get_mut(..len).ok_or(EINVAL)?;
        reader.read_slice(bytes)?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}
