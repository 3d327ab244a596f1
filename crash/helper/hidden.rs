// SPDX-License-Identifier: GPL-2.0

//! The crash kernel's own frames, which were the old kernel's: `/proc/vmcore` has zeroes there.

use core::{
    ptr,
    sync::atomic::{
        AtomicPtr,
        Ordering, //
    }, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::ffi;

/// As in `include/uapi/p2m_crash.h`.
#[repr(C)]
struct Header {
    magic: u64,
    nr_frames: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"P2Mframe");

/// A window isn't larger: 1 GiB.
const MAX_FRAMES: u64 = 1 << 18;

/// The frames, ordered.
struct Frames(KVVec<u32>);

/// The frames that are hidden, or null.
///
/// # Invariants
///
/// It's null or came from a `KBox<Frames>`, and goes back to null only when nobody asks any more.
static HIDDEN: AtomicPtr<Frames> = AtomicPtr::new(ptr::null_mut());

/// Returns whether a frame is hidden.
extern "C" fn is_hidden(mfn: c_ulong) -> bool {
    // SAFETY: By the invariants of `HIDDEN`, it's valid, and nobody changes it.
    let frames = unsafe { HIDDEN.load(Ordering::Acquire).as_ref() };
    let Some(Frames(frames)) = frames else {
        return false;
    };
    u32::try_from(mfn).is_ok_and(|mfn| frames.binary_search(&mfn).is_ok())
}

/// Reads `T`s from a physical address.
///
/// # Safety
///
/// All bytes are a valid `T`.
unsafe fn read<T>(address: u64, to: &mut [T]) -> Result {
    let length = size_of_val(to);
    // SAFETY: There is room for as many bytes, which may be any by the safety requirements of this
    // function.
    to_result(unsafe { ffi::p2m_helper_read(address, to.as_mut_ptr().cast(), length) })
}

/// Hides frames for as long as it's there.
pub(crate) struct Hidden(());

impl Hidden {
    /// Hides the frames that the crash kernel was told of at a physical address.
    pub(crate) fn new(address: u64) -> Result<Self> {
        let mut header = [Header {
            magic: 0,
            nr_frames: 0,
        }];
        // SAFETY: It consists of numbers.
        unsafe { read(address, &mut header) }?;
        let [Header { magic, nr_frames }] = header;
        if magic != MAGIC || nr_frames > MAX_FRAMES {
            return Err(EINVAL);
        }
        let first = address
            .checked_add(size_of::<Header>() as u64)
            .ok_or(EINVAL)?;
        // CAST: A small number, as was just checked.
        let mut frames = KVVec::from_elem(0u32, nr_frames as usize, GFP_KERNEL)?;
        // SAFETY: They are numbers.
        unsafe { read(first, &mut frames) }?;
        // That of `core` has jumps to what doesn't return, of which objtool doesn't know.
        // SAFETY: There are as many numbers.
        unsafe { ffi::p2m_helper_sort(frames.as_mut_ptr(), frames.len()) };
        let frames = KBox::new(Frames(frames), GFP_KERNEL)?;
        // INVARIANT: It came from a `KBox`.
        HIDDEN.store(KBox::into_raw(frames), Ordering::Release);
        // SAFETY: It's called once, and the function is there as long as the module.
        unsafe { ffi::p2m_helper_hide(is_hidden) };
        pr_info!("{nr_frames} frames are this kernel's\n");
        Ok(Self(()))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // SAFETY: `new()` had them hidden. It waits until nobody asks any more.
        unsafe { ffi::p2m_helper_show() };
        // INVARIANT: Nobody asks.
        let frames = HIDDEN.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: By the invariants of `HIDDEN`, it came from a `KBox`. Nobody has it now.
        drop(unsafe { KBox::from_raw(frames) });
    }
}
