// SPDX-License-Identifier: GPL-2.0

//! The ACPI tables of the machine: where its devices are.
//!
//! The tables are few and small, and made by hand here, since the crates that make such tables need a
//! newer compiler than this workspace. Names and offsets are those of the ACPI specification 6.5.

use p2m_loader::{HIGH_BIOS, Table};

use crate::place;

/// Where the controllers of interrupts are, on every PC.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// "VGA Not Present" and "CMOS RTC Not Present".
const BOOT_FLAGS: u16 = (1 << 2) | (1 << 5);
/// Power and sleep buttons aren't fixed hardware; there is a reset register; there is no fixed
/// hardware at all ("HW_REDUCED_ACPI").
const FEATURES: u32 = (1 << 4) | (1 << 5) | (1 << 10) | (1 << 20);

/// What resets the machine when it's written to the keyboard controller.
const RESET: u8 = 0xfe;

/// Tables, and where the kernel finds the first of them.
#[derive(Clone, Debug)]
pub struct Tables {
    /// What to load.
    pub tables: Vec<Table>,
    /// The address of the root pointer.
    pub root_pointer: u64,
}

/// Makes the tables of a machine, with a balloon or without one.
pub fn tables(balloon: bool) -> Tables {
    let mut tables = Vec::new();
    // The root pointer is at the beginning, and made last.
    let root_pointer = HIGH_BIOS.start;
    let mut next = root_pointer + 64;
    let mut place = |bytes: Vec<u8>| {
        let address = next;
        next = (next + bytes.len() as u64).next_multiple_of(16);
        tables.push(Table { address, bytes });
        address
    };
    let devices = place(table(b"DSDT", 2, &devices(balloon)));
    let fixed = place(table(b"FACP", 6, &fixed(devices)));
    let interrupts = place(table(b"APIC", 5, &interrupts()));
    let root = [fixed, interrupts].map(u64::to_le_bytes).concat();
    let root = place(table(b"XSDT", 1, &root));
    tables.push(Table {
        address: root_pointer,
        bytes: pointer(root),
    });
    Tables {
        tables,
        root_pointer,
    }
}

/// Stores bytes at an offset.
fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(to) = bytes.get_mut(offset..offset + N) {
        to.copy_from_slice(&value);
    }
}

/// Returns the byte that bytes lack for a sum of 0.
fn lacking(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

const HEADER_BYTES: usize = 36;

/// Makes a table: a header, and what is behind it.
fn table(signature: &[u8; 4], revision: u8, contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(contents);
    let length = bytes.len() as u32;
    put(&mut bytes, 0, *signature);
    put(&mut bytes, 4, length.to_le_bytes());
    put(&mut bytes, 8, [revision]);
    put(&mut bytes, 10, *b"P2M   ");
    put(&mut bytes, 16, *b"P2MGUEST");
    put(&mut bytes, 24, 1u32.to_le_bytes());
    put(&mut bytes, 28, *b"P2M ");
    put(&mut bytes, 32, 1u32.to_le_bytes());
    let checksum = lacking(&bytes);
    put(&mut bytes, 9, [checksum]);
    bytes
}

/// Makes the RSDP.
fn pointer(root: u64) -> Vec<u8> {
    const BYTES: usize = 36;
    const OLD_BYTES: usize = 20;
    let mut bytes = vec![0; BYTES];
    put(&mut bytes, 0, *b"RSD PTR ");
    put(&mut bytes, 9, *b"P2M   ");
    put(&mut bytes, 15, [2]);
    put(&mut bytes, 20, (BYTES as u32).to_le_bytes());
    put(&mut bytes, 24, root.to_le_bytes());
    let checksum = lacking(&bytes[..OLD_BYTES]);
    put(&mut bytes, 8, [checksum]);
    let checksum = lacking(&bytes);
    put(&mut bytes, 32, [checksum]);
    bytes
}

/// Makes the FADT: a machine without the fixed hardware of a PC, but with ports for sleep and reset.
fn fixed(devices: u64) -> Vec<u8> {
    const BYTES: usize = 276;
    let mut bytes = vec![0; BYTES];
    put(&mut bytes, 109, BOOT_FLAGS.to_le_bytes());
    put(&mut bytes, 112, FEATURES.to_le_bytes());
    put(&mut bytes, 116, port(place::I8042.1));
    put(&mut bytes, 128, [RESET]);
    put(&mut bytes, 131, [5]); // The minor version.
    put(&mut bytes, 140, devices.to_le_bytes());
    put(&mut bytes, 244, port(place::SLEEP.0));
    put(&mut bytes, 256, port(place::SLEEP.1));
    // Offsets are those of the whole table.
    bytes.split_off(HEADER_BYTES)
}

/// Makes a Generic Address Structure for a port of a byte.
fn port(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

/// Makes the MADT: one processor, one I/O APIC.
fn interrupts() -> Vec<u8> {
    let mut bytes = LOCAL_APIC.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    // A local APIC: processor 0, number 0, enabled.
    bytes.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    // An I/O APIC of number 0, and the first of its interrupts.
    bytes.extend([1, 12, 0, 0]);
    bytes.extend(IO_APIC.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// Makes the contents of the DSDT.
fn devices(balloon: bool) -> Vec<u8> {
    // The value of SLP_TYP for "off" is 5.
    let off = [vec![4], byte(5), byte(0), byte(0), byte(0)].concat();
    let mut code = name(b"_S5_", &package(&[PACKAGE], &off));
    let serial = [(b"COM1", place::CONSOLE, 0), (b"COM2", place::STATUS, 1)];
    for (path, (port, interrupt), number) in serial {
        let resources = [io(port, place::SERIAL_PORTS as u8), edge(interrupt)];
        code.extend(device(
            path,
            &[
                name(b"_HID", &dword(PNP0501)),
                name(b"_UID", &byte(number)),
                name(b"_CRS", &resource_template(&resources)),
            ],
        ));
    }
    if balloon {
        let (address, interrupt) = place::BALLOON;
        let resources = [memory(address, place::MMIO_BYTES), edge(interrupt)];
        code.extend(device(
            b"BALN",
            &[
                name(b"_HID", &string("LNRO0005")),
                name(b"_UID", &byte(0)),
                // Device and processor see the same memory.
                name(b"_CCA", &byte(1)),
                name(b"_CRS", &resource_template(&resources)),
            ],
        ));
    }
    code
}

// AML, as far as it's used here.

const PACKAGE: u8 = 0x12;
const BUFFER: u8 = 0x11;
const DEVICE: [u8; 2] = [0x5b, 0x82];

/// A 16550 serial port, compressed: three letters of 5 bits, and four hexadecimal digits.
const PNP0501: u32 = 0x0105_d041;

fn byte(value: u8) -> Vec<u8> {
    vec![0x0a, value]
}

fn dword(value: u32) -> Vec<u8> {
    [&[0x0c][..], &value.to_le_bytes()].concat()
}

fn string(value: &str) -> Vec<u8> {
    [&[0x0d], value.as_bytes(), &[0]].concat()
}

fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[0x08], &name[..], value].concat()
}

/// Makes something that says how long it is. The length counts itself.
fn package(code: &[u8], contents: &[u8]) -> Vec<u8> {
    let length = match contents.len() + 1 {
        short @ ..0x40 => vec![short as u8],
        // In 12 bits, of which the lowest four come first.
        short => {
            let long = short + 1;
            vec![0x40 | (long & 0xf) as u8, (long >> 4) as u8]
        }
    };
    [code, &length, contents].concat()
}

/// Makes a device below `\_SB_`.
fn device(path: &[u8; 4], names: &[Vec<u8>]) -> Vec<u8> {
    let path = [&[0x2e][..], b"_SB_", path].concat();
    package(&DEVICE, &[path, names.concat()].concat())
}

fn resource_template(resources: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = resources.concat();
    bytes.extend([0x79, 0]);
    let length = byte(bytes.len() as u8);
    package(&[BUFFER], &[length, bytes].concat())
}

/// Ports, of which all 16 bits are looked at.
fn io(port: u16, length: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, length]
}

/// Memory that can be written to.
fn memory(address: u32, bytes: u32) -> Vec<u8> {
    let numbers = [address, bytes].map(u32::to_le_bytes).concat();
    [vec![0x86, 9, 0, 1], numbers].concat()
}

/// An interrupt that is raised by an event, as those of the monitor are: a consumer's,
/// edge-triggered, active high, exclusive.
fn edge(interrupt: u32) -> Vec<u8> {
    [&[0x89, 6, 0, 0x3, 1][..], &interrupt.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_where_the_kernel_looks_and_sum_up_to_0() {
        for balloon in [false, true] {
            let made = tables(balloon);
            let mut end = HIGH_BIOS.start;
            let mut sorted = made.tables.clone();
            sorted.sort_by_key(|table| table.address);
            for table in &sorted {
                assert!(table.address >= end && table.address % 16 == 0);
                end = table.address + table.bytes.len() as u64;
                assert!(end <= HIGH_BIOS.end);
                let sum = table
                    .bytes
                    .iter()
                    .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(sum, 0, "{:?}", String::from_utf8_lossy(&table.bytes[..4]));
            }
            assert_eq!(sorted[0].address, made.root_pointer);
            assert_eq!(sorted[0].bytes[..8], *b"RSD PTR ");
        }
    }

    #[test]
    fn tables_lead_to_each_other() {
        let made = tables(true);
        let at = |address: u64| {
            let table = made.tables.iter().find(|table| table.address == address);
            &table.expect("a table").bytes
        };
        let word = |bytes: &[u8], offset: usize| {
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
        };
        let root = at(word(at(made.root_pointer), 24));
        assert_eq!(root[..4], *b"XSDT");
        let fixed = at(word(root, 36));
        assert_eq!(fixed[..4], *b"FACP");
        assert_eq!(at(word(root, 44))[..4], *b"APIC");
        assert_eq!(at(word(fixed, 140))[..4], *b"DSDT");
    }

    #[test]
    fn lengths_count_themselves() {
        for (contents, length) in [
            (0, &[1][..]),
            (0x3e, &[0x3f]),
            (0x3f, &[0x41, 0x04]),
            (0xffd, &[0x4f, 0xff]),
        ] {
            let made = package(&[PACKAGE], &vec![7; contents]);
            assert_eq!(&made[1..=length.len()], length);
            assert_eq!(made.len(), 1 + length.len() + contents);
        }
    }

    #[test]
    fn only_a_machine_with_a_balloon_says_so() {
        let has = |balloon| {
            let tables = tables(balloon).tables;
            tables
                .iter()
                .any(|table| table.bytes.windows(8).any(|bytes| bytes == b"LNRO0005"))
        };
        assert!(has(true) && !has(false));
    }
}
