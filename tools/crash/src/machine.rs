// SPDX-License-Identifier: GPL-2.0

//! What the running kernel says about the machine and itself, in the files that root can read.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::image::without;

/// A range of physical addresses, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The addresses.
    pub range: Range<u64>,
    /// What `/proc/iomem` calls it.
    pub name: String,
}

/// A piece of memory, and where the kernel has mapped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The virtual address.
    pub virt: u64,
    /// The physical address.
    pub phys: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Mapped {
    /// Returns what is left without ranges of physical addresses, which are in ascending order.
    pub fn without(&self, others: &[Range<u64>]) -> Vec<Self> {
        let whole = self.phys..self.phys.saturating_add(self.length);
        without(&whole, others)
            .into_iter()
            .map(|range| Self {
                virt: self.virt.wrapping_add(range.start - self.phys),
                phys: range.start,
                length: range.end - range.start,
            })
            .collect()
    }
}

/// A note in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The physical address.
    pub phys: u64,
    /// Number of bytes that there is room for.
    pub length: u64,
}

/// What is needed of the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What is where, in order, without what is in something else.
    pub resources: Vec<Resource>,
    /// The memory of the kernel: all of it, and once more its own text and data.
    pub mapped: Vec<Mapped>,
    /// Where each processor's registers are when it was stopped.
    pub cpu_notes: Vec<Note>,
    /// What dump tools have to know about the kernel.
    pub vmcoreinfo: Note,
    /// Address of the ACPI root, where it isn't to be found in the first MiB.
    pub rsdp: Option<u64>,
    /// The command line.
    pub command_line: String,
}

impl Machine {
    /// Asks the running kernel.
    pub fn running() -> Result<Self> {
        Ok(Self {
            resources: resources(&read("/proc/iomem")?)?,
            mapped: mapped(&kcore()?.1)?,
            cpu_notes: cpu_notes(Path::new("/sys/devices/system/cpu"))?,
            vmcoreinfo: vmcoreinfo(&read("/sys/kernel/vmcoreinfo")?)?,
            rsdp: match fs::read_to_string("/sys/firmware/efi/systab") {
                Ok(systab) => rsdp(&systab),
                // Not a machine with EFI.
                Err(_) => None,
            },
            command_line: read("/proc/cmdline")?.trim().to_owned(),
        })
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Reads `/proc/iomem`.
pub fn resources(text: &str) -> Result<Vec<Resource>> {
    const PATH: &str = "/proc/iomem";

    let mut found = Vec::new();
    // What is in something else is indented.
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
        let resource = line.split_once(" : ").and_then(|(range, name)| {
            let (start, last) = range.split_once('-')?;
            Some(Resource {
                range: hex(start)?..hex(last)?.checked_add(1)?,
                name: name.to_owned(),
            })
        });
        let resource =
            resource.ok_or_else(|| Error::content(PATH, format!("can't be read: {line}")))?;
        found.push(resource);
    }
    // The kernel doesn't refuse to show it, it shows zeroes.
    if found.iter().all(|resource| resource.range == (0..1)) {
        return Err(Error::content(PATH, "shows no addresses, which needs root"));
    }
    Ok(found)
}

/// A program header of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramHeader {
    /// What it is about.
    pub kind: u32,
    /// Where it is in the file.
    pub offset: u64,
    /// The virtual address.
    pub virt: u64,
    /// The physical address.
    pub phys: u64,
    /// Number of bytes in memory.
    pub length: u64,
}

/// A program header that is about a piece of memory.
const PT_LOAD: u32 = 1;

impl ProgramHeader {
    /// Returns the physical addresses of what is memory. All else that the kernel maps has none: all
    /// bits are set.
    pub fn memory(&self) -> Option<Range<u64>> {
        let end = self.phys.checked_add(self.length)?;
        (self.kind == PT_LOAD && self.phys < end).then_some(self.phys..end)
    }
}

/// The kernel's own memory, as an ELF file.
pub const KCORE: &str = "/proc/kcore";

/// Opens [`KCORE`], and returns its program headers, too.
pub fn kcore() -> Result<(File, Vec<ProgramHeader>)> {
    // Has room for the headers: a few of the kernel, and one for each piece of memory. They come
    // first. Reading memory as well would take long, and may fail.
    const MOST: u64 = 1 << 20;
    let fail = |source| Error::File {
        path: KCORE.into(),
        source,
    };
    let file = File::open(KCORE).map_err(fail)?;
    let mut bytes = Vec::new();
    match (&file).take(MOST).read_to_end(&mut bytes) {
        Err(error) if bytes.is_empty() => return Err(fail(error)),
        _ => {}
    }
    let headers = parse_program_headers(&bytes);
    let headers = headers.ok_or_else(|| Error::content(KCORE, "has no ELF header"))?;
    Ok((file, headers))
}

/// Reads the program headers of a 64-bit ELF file.
pub fn parse_program_headers(bytes: &[u8]) -> Option<Vec<ProgramHeader>> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));

    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let start = usize::try_from(u64_at(0x20)?).ok()?;
    let size = usize::from(u16_at(0x36)?);
    (0..usize::from(u16_at(0x38)?))
        .map(|number| {
            let at = start.checked_add(number.checked_mul(size)?)?;
            Some(ProgramHeader {
                kind: u32_at(at)?,
                offset: u64_at(at.checked_add(0x8)?)?,
                virt: u64_at(at.checked_add(0x10)?)?,
                phys: u64_at(at.checked_add(0x18)?)?,
                length: u64_at(at.checked_add(0x28)?)?,
            })
        })
        .collect()
}

/// Returns what `/proc/kcore` has that is memory: the rest of it has no physical address.
pub fn mapped(headers: &[ProgramHeader]) -> Result<Vec<Mapped>> {
    let mapped: Vec<_> = headers
        .iter()
        .filter(|header| header.memory().is_some())
        .map(|header| Mapped {
            virt: header.virt,
            phys: header.phys,
            length: header.length,
        })
        .collect();
    match mapped.is_empty() {
        true => Err(Error::content(KCORE, "shows no memory")),
        false => Ok(mapped),
    }
}

/// Reads where the notes of the processors are, in the directory that has one for each.
pub fn cpu_notes(directory: &Path) -> Result<Vec<Note>> {
    let fail = |source| Error::File {
        path: directory.to_owned(),
        source,
    };
    let mut notes = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(|name| name.strip_prefix("cpu"))
            .and_then(|number| number.parse::<u32>().ok());
        let Some(number) = number else {
            continue;
        };
        let read = |name: &str| fs::read_to_string(path.join(name)).ok();
        let note = read("crash_notes").and_then(|phys| {
            Some(Note {
                phys: hex(phys.trim())?,
                length: read("crash_notes_size")?.trim().parse().ok()?,
            })
        });
        let note = note.ok_or_else(|| Error::content(&path, "has no crash_notes"))?;
        notes.push((number, note));
    }
    notes.sort_unstable_by_key(|&(number, _)| number);
    Ok(notes.into_iter().map(|(_, note)| note).collect())
}

/// Reads `/sys/kernel/vmcoreinfo`.
pub fn vmcoreinfo(text: &str) -> Result<Note> {
    let note = text.trim().split_once(' ').and_then(|(phys, length)| {
        Some(Note {
            phys: hex(phys)?,
            length: hex(length)?,
        })
    });
    note.ok_or_else(|| Error::content("/sys/kernel/vmcoreinfo", "can't be read"))
}

/// Returns the newest ACPI root of an EFI system table.
pub fn rsdp(systab: &str) -> Option<u64> {
    let find = |name: &str| {
        let mut lines = systab.lines().filter_map(|line| line.split_once('='));
        lines
            .find(|(key, _)| *key == name)
            .and_then(|(_, at)| hex(at))
    };
    find("ACPI20").or_else(|| find("ACPI"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_something_else_is_no_resource() {
        let text = "00001000-0009fbff : System RAM\n\
                    000a0000-000bffff : PCI Bus 0000:00\n\
                    00100000-7ffdffff : System RAM\n  01000000-01ffffff : Kernel code\n";
        let found = resources(text).expect("resources");
        let names: Vec<_> = found.iter().map(|resource| &*resource.name).collect();
        assert_eq!(names, ["System RAM", "PCI Bus 0000:00", "System RAM"]);
        assert_eq!(found[2].range, 0x10_0000..0x7ffe_0000);
    }

    #[test]
    fn hidden_and_broken_addresses_are_errors() {
        for text in [
            "00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n",
            "00001000 : System RAM\n",
            "x-y : System RAM\n",
            "0-ffffffffffffffff : all\n",
        ] {
            assert!(resources(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_what_has_a_physical_address() {
        let header = |kind, phys, length| ProgramHeader {
            kind,
            offset: 0x1000,
            virt: 0xffff_8880_0000_0000,
            phys,
            length,
        };
        let headers = [
            header(4, 0, 16),
            header(PT_LOAD, u64::MAX, 1 << 30),
            header(PT_LOAD, 0x1000, 0x9e000),
            header(PT_LOAD, 0x2000, 0),
        ];
        let memory = headers.map(|header| header.memory());
        assert_eq!(memory, [None, None, Some(0x1000..0x9_f000), None]);
        let mapped = mapped(&headers).expect("memory");
        assert_eq!(mapped.len(), 1);
        assert_eq!((mapped[0].phys, mapped[0].length), (0x1000, 0x9e000));
        assert!(super::mapped(&headers[..2]).is_err());
    }

    #[test]
    fn a_truncated_file_has_no_headers() {
        let core = crate::elfcore::header(
            &[],
            &[Mapped {
                virt: 1 << 40,
                phys: 1 << 20,
                length: 4096,
            }],
        );
        assert!(parse_program_headers(&core).is_some());
        for length in 0..core.len() - 8 {
            assert_eq!(parse_program_headers(&core[..length]), None, "{length}");
        }
        assert_eq!(parse_program_headers(&[0; 4096]), None);
    }

    #[test]
    fn notes_come_in_the_order_of_processors() {
        let directory = tempfile::tempdir().expect("directory");
        for (number, phys) in [(10, "1a00"), (0, "100"), (2, "200")] {
            let cpu = directory.path().join(format!("cpu{number}"));
            fs::create_dir(&cpu).expect("directory");
            fs::write(cpu.join("crash_notes"), format!("{phys}\n")).expect("file");
            fs::write(cpu.join("crash_notes_size"), "512\n").expect("file");
        }
        for name in ["cpufreq", "cpuidle"] {
            fs::create_dir(directory.path().join(name)).expect("directory");
        }
        let notes = cpu_notes(directory.path()).expect("notes");
        let places: Vec<_> = notes.iter().map(|note| note.phys).collect();
        assert_eq!(places, [0x100, 0x200, 0x1a00]);
        assert!(notes.iter().all(|note| note.length == 512));
    }

    #[test]
    fn the_newer_root_of_acpi_is_taken() {
        assert_eq!(rsdp("ACPI=0x1\nACPI20=0x7ff\n"), Some(0x7ff));
        assert_eq!(rsdp("ACPI=0x1\n"), Some(1));
        assert_eq!(rsdp("SMBIOS=0x1\n"), None);
    }
}
