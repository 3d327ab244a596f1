// SPDX-License-Identifier: GPL-2.0

//! The memory of the machine, by machine addresses.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use p2m::{Domain, Pfn};
use p2m_crash::machine::{KCORE, ProgramHeader, kcore};
use p2m_loader::Machine;

/// What `/proc/kcore` has of it.
#[derive(Debug)]
pub(crate) struct Kcore {
    file: File,
    /// Machine addresses, and where they are in the file.
    pieces: Vec<(Range<u64>, u64)>,
}

impl Kcore {
    pub(crate) fn open() -> Result<Self> {
        let (file, headers) = kcore().context("cannot read the memory of the machine")?;
        let piece = |header: &ProgramHeader| Some((header.memory()?, header.offset));
        let pieces = headers.iter().filter_map(piece).collect();
        Ok(Self { file, pieces })
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let end = address.saturating_add(bytes.len() as u64);
        let holds = |(piece, _): &&(Range<u64>, u64)| piece.start <= address && end <= piece.end;
        let Some((piece, offset)) = self.pieces.iter().find(holds) else {
            bail!("{KCORE} has no memory at {address:#x}");
        };
        self.file
            .read_exact_at(bytes, offset + (address - piece.start))
            .with_context(|| format!("cannot read the memory of the machine at {address:#x}"))
    }
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
