// SPDX-License-Identifier: GPL-2.0

//! The ELF header by which a crash kernel makes `/proc/vmcore`, as `kernel/crash_core.c` would make it
//! (`crash_prepare_elf64_headers()`). Offsets in the file are physical addresses.

use crate::machine::{Mapped, Note};

const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_RWX: u32 = 7;

struct Writer(Vec<u8>);

impl Writer {
    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn program_header(&mut self, kind: u32, flags: u32, virt: u64, phys: u64, length: u64) {
        self.u32(kind);
        self.u32(flags);
        self.u64(phys); // offset
        self.u64(virt);
        self.u64(phys);
        self.u64(length); // in the file
        self.u64(length); // in memory
        self.u64(0); // alignment
    }
}

/// Makes the header for notes and memory.
pub fn header(notes: &[Note], memory: &[Mapped]) -> Vec<u8> {
    const ET_CORE: u16 = 4;
    const EM_X86_64: u16 = 62;
    const EV_CURRENT: u8 = 1;

    let number = notes.len() + memory.len();
    let mut writer = Writer(Vec::with_capacity(EHDR_SIZE + number * PHDR_SIZE));
    // 64 bit, little-endian.
    writer.0.extend(*b"\x7fELF\x02\x01");
    writer.0.push(EV_CURRENT);
    writer.0.extend([0; 9]);
    writer.u16(ET_CORE);
    writer.u16(EM_X86_64);
    writer.u32(EV_CURRENT.into());
    writer.u64(0); // entry
    writer.u64(EHDR_SIZE as u64); // program headers
    writer.u64(0); // section headers
    writer.u32(0); // flags
    writer.u16(EHDR_SIZE as u16);
    writer.u16(PHDR_SIZE as u16);
    writer.u16(u16::try_from(number).unwrap_or(u16::MAX));
    for _ in 0..3 {
        writer.u16(0); // of section headers
    }
    for note in notes {
        writer.program_header(PT_NOTE, 0, 0, note.phys, note.length);
    }
    for piece in memory {
        writer.program_header(PT_LOAD, PF_RWX, piece.virt, piece.phys, piece.length);
    }
    writer.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{ProgramHeader, parse_program_headers};

    #[test]
    fn all_notes_and_memory_are_in_the_header() {
        let notes = [
            Note {
                phys: 0x1234,
                length: 512,
            },
            Note {
                phys: 0x9_0000_0000,
                length: 4096,
            },
        ];
        let memory = [Mapped {
            virt: 0xffff_8881_0000_0000,
            phys: 0x1_0000_0000,
            length: 1 << 30,
        }];
        let bytes = header(&notes, &memory);
        assert_eq!(bytes.len(), EHDR_SIZE + 3 * PHDR_SIZE);
        let found = parse_program_headers(&bytes).expect("headers");
        let expected = [
            (PT_NOTE, 0, 0x1234, 512),
            (PT_NOTE, 0, 0x9_0000_0000, 4096),
            (PT_LOAD, 0xffff_8881_0000_0000, 0x1_0000_0000, 1 << 30),
        ];
        let expected = expected.map(|(kind, virt, phys, length)| ProgramHeader {
            kind,
            offset: phys,
            virt,
            phys,
            length,
        });
        assert_eq!(found, expected);
    }
}
