// SPDX-License-Identifier: GPL-2.0

//! Fuzz targets: functions that make something of any bytes, and panic when a law doesn't hold.
//!
//! libFuzzer looks for the bytes (`make fuzz-pure`), and tests run those that it found before.

mod abi;
mod dma;
mod kernel;
mod machine;
mod map;
mod paging;
mod policy;

pub use abi::abi;
pub use dma::dma;
pub use kernel::kernel;
pub use machine::machine;
pub use map::map;
pub use paging::paging;
pub use policy::policy;

use arbitrary::Unstructured;

/// Something to be made of bytes. The end of them is the end of it.
type Run = arbitrary::Result<()>;

/// Runs a target. What can't be made of too few bytes isn't wrong.
fn run(data: &[u8], target: impl FnOnce(&mut Unstructured<'_>) -> Run) {
    let _ = target(&mut Unstructured::new(data));
}

/// Returns a number that is below `end`, which isn't 0.
fn below(bytes: &mut Unstructured<'_>, end: u64) -> arbitrary::Result<u64> {
    if bytes.is_empty() {
        return Err(arbitrary::Error::NotEnoughData);
    }
    bytes.int_in_range(0..=end - 1)
}

/// Returns any number, most often one that is near a limit.
fn number(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    Ok(match below(bytes, 4)? {
        0 => bytes.arbitrary()?,
        1 => (1 << below(bytes, 64)?) - below(bytes, 2)?,
        2 => u64::MAX - below(bytes, 4096)?,
        _ => below(bytes, 4096)?,
    })
}
