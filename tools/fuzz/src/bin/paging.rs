// SPDX-License-Identifier: GPL-2.0

//! See `p2m_fuzz::paging`.

#![no_main]
#![allow(unsafe_code, missing_docs)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| p2m_fuzz::paging(data));
