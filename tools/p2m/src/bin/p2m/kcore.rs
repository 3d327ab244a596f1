// SPDX-License-Identifier: GPL-2.0

//! The memory of the machine, by machine addresses.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use p2m::{Domain, Pfn};
use p2m_loader::Machine;

/// `/proc/kcore`, the kernel's own memory as an ELF file.
#[derive(Debug)]
pub(crate) struct Kcore {
    file: File,
    /// Machine addresses, and where they are in the file.
    pieces: Vec<(Range<u64>, u64)>,
}

impl Kcore {
    const PATH: &str = "/proc/kcore";

    /// Has room for the headers of the file: a few of the kernel, and one for each piece of memory.
    const HEADER_BYTES: u64 = 1 << 20;

    pub(crate) fn open() -> Result<Self> {
        let failed = || format!("cannot read the memory of the machine from {}", Self::PATH);
        let file = File::open(Self::PATH).with_context(failed)?;
        let mut headers = Vec::new();
        // As much as there is: what is beyond the headers isn't looked at.
        (&file)
            .take(Self::HEADER_BYTES)
            .read_to_end(&mut headers)
            .or_else(|error| {
                if headers.is_empty() {
                    Err(error)
                } else {
                    Ok(0)
                }
            })
            .with_context(failed)?;
        let pieces = pieces(&headers).with_context(failed)?;
        Ok(Self { file, pieces })
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let end = address.saturating_add(bytes.len() as u64);
        let holds = |(piece, _): &&(Range<u64>, u64)| piece.start <= address && end <= piece.end;
        let Some((piece, offset)) = self.pieces.iter().find(holds) else {
            bail!("{} has no memory at {address:#x}", Self::PATH);
        };
        self.file
            .read_exact_at(bytes, offset + (address - piece.start))
            .with_context(|| format!("cannot read the memory of the machine at {address:#x}"))
    }
}

/// Returns what of the file is memory at machine addresses.
fn pieces(headers: &[u8]) -> Result<Vec<(Range<u64>, u64)>> {
    let header = FileHeader64::<LittleEndian>::parse(headers)?;
    let endian = header.endian()?;
    let headers = header.program_headers(endian, headers)?;
    let pieces = headers.iter().filter_map(|header| {
        let start = header.p_paddr(endian);
        // What the kernel maps from anywhere has no address of the machine: all bits are set.
        let end = start.checked_add(header.p_memsz(endian))?;
        let is_memory = header.p_type(endian) == PT_LOAD;
        is_memory.then_some((start..end, header.p_offset(endian)))
    });
    Ok(pieces.collect())
}

/// The machine below a domain: its P2M, and what is in the frames.
pub(crate) struct Below<'a> {
    pub(crate) domain: &'a Domain,
    pub(crate) memory: Kcore,
}

impl Machine for Below<'_> {
    type Error = anyhow::Error;

    fn frames(&mut self, pfns: Range<u64>) -> Result<Vec<Option<u64>>> {
        let pfns: Vec<_> = pfns.map(Pfn).collect();
        let entries = self.domain.translate(&pfns)?;
        Ok(entries
            .iter()
            .map(|entry| entry.mfn().map(|mfn| mfn.0))
            .collect())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.read(address, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes an ELF file of program headers: type, offset, physical address, size.
    fn elf(headers: &[[u64; 4]]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut put =
            |at: usize, value: u16| file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(16, 4); // ET_CORE
        put(18, 62); // EM_X86_64
        put(20, 1);
        put(32, 64); // The program headers are behind this one.
        put(52, 64);
        put(54, 56);
        put(56, headers.len() as u16);
        for &[kind, offset, address, size] in headers {
            file.extend((kind as u32).to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, 0xffff_8880_0000_0000, address, size, size, 0] {
                file.extend(word.to_le_bytes());
            }
        }
        file
    }

    #[test]
    fn only_what_has_a_machine_address_is_memory() {
        let file = elf(&[
            [4, 0x1000, 0, 0x100], // A note.
            [1, 0x2000, u64::MAX, 0x1000],
            [1, 0x3000, 0x1000, 0x9_e000],
            [1, 0x10_0000, 0x10_0000, 0x4000_0000],
        ]);
        let pieces = pieces(&file).expect("an ELF file");
        let low = (0x1000..0x9_f000, 0x3000);
        assert_eq!(pieces, [low, (0x10_0000..0x4010_0000, 0x10_0000)]);
    }

    #[test]
    fn something_else_is_an_error() {
        assert!(pieces(b"").is_err());
        assert!(pieces(&[0; 4096]).is_err());
        let mut short = elf(&[[1, 0, 0, 1], [1, 0, 0, 1]]);
        short.truncate(64 + 56);
        assert!(pieces(&short).is_err());
    }
}
