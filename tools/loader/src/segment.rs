// SPDX-License-Identifier: GPL-2.0

//! What is where, and what it should be.

use core::fmt;
use core::ops::Range;

use crate::PAGE_BYTES;

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SegmentKind {
    /// The kernel, or a part of it.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The command line, with a zero byte at its end.
    CommandLine,
    /// `struct boot_params`, the "zero page".
    BootParameters,
    /// Page tables that map memory where it is.
    PageTables,
    /// Descriptors of code and data.
    DescriptorTable,
    /// What the caller wanted to have there, such as ACPI tables.
    Table,
}

impl fmt::Display for SegmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::CommandLine => "command line",
            Self::BootParameters => "boot parameters",
            Self::PageTables => "page tables",
            Self::DescriptorTable => "descriptor table",
            Self::Table => "table",
        })
    }
}

/// CRC-32 as in gzip, PNG and the kernel's `crc32_le()` with its usual complements.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(pub u32);

impl Checksum {
    /// Returns the checksum of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32fast::hash(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({self})")
    }
}

/// A piece of pseudo-physical memory that something was loaded into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What.
    pub kind: SegmentKind,
    /// The pseudo-physical address of its first byte.
    pub address: u64,
    /// How many bytes were loaded, not 0.
    pub bytes: u64,
    /// How many bytes it needs when it runs: at least `bytes`.
    pub memory_bytes: u64,
    /// The checksum of what was to be loaded.
    pub checksum: Checksum,
}

impl Segment {
    /// Returns the PFNs of the pages that it was loaded into.
    #[must_use]
    pub fn pfns(&self) -> Range<u64> {
        let end = self.address.saturating_add(self.bytes);
        self.address / PAGE_BYTES..end.div_ceil(PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_that_have_a_byte_of_it() {
        let pfns = |address, bytes| {
            Segment {
                kind: SegmentKind::Initrd,
                address,
                bytes,
                memory_bytes: bytes,
                checksum: Checksum(0),
            }
            .pfns()
        };
        assert_eq!(pfns(0x1000, 1), 1..2);
        assert_eq!(pfns(0x1000, 0x1000), 1..2);
        assert_eq!(pfns(0x1fff, 2), 1..3);
        assert_eq!(pfns(0x1000, 0x1001), 1..3);
    }

    #[test]
    fn checksums_are_those_that_everybody_has() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(Checksum::of(b"123456789"), Checksum(0xcbf4_3926));
        assert_eq!(Checksum::of(b"").to_string(), "00000000");
    }
}
