// SPDX-License-Identifier: GPL-2.0

use std::str;

use p2m_crash::machine::{mapped, parse_program_headers, resources, rsdp, vmcoreinfo};

/// Files of the kernel that say what the machine is: whatever is in them, they are read or refused,
/// and what was read is in them.
pub fn machine(data: &[u8]) {
    if let Some(headers) = parse_program_headers(data) {
        // Each takes its place in the file, unless they say that they take none.
        let size = data
            .get(0x36..0x38)
            .map(|size| u16::from_le_bytes([size[0], size[1]]));
        let all = usize::from(size.unwrap_or(0)) * headers.len();
        assert!(all <= data.len() + usize::from(u16::MAX));
        if let Ok(memory) = mapped(&headers) {
            assert!(memory.len() <= headers.len());
            assert!(memory.iter().all(|piece| piece.length > 0));
        }
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(found) = resources(text) {
        assert!(found.len() <= text.lines().count());
        assert!(found.iter().all(|resource| text.contains(&resource.name)));
    }
    let _ = vmcoreinfo(text);
    let _ = rsdp(text);
}
