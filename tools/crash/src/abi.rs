// SPDX-License-Identifier: GPL-2.0

//! The raw ABI, as bindgen makes it from `include/uapi/p2m_crash.h`, and the numbers that can never
//! change again.

#![allow(missing_docs, non_camel_case_types, dead_code, unreachable_pub)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

p2m_abi::commands! {
    type P2M_CRASH_IOCTL_TYPE;
    p2m_crash_info = P2M_CRASH_CMD_INFO;
    p2m_crash_load = P2M_CRASH_CMD_LOAD;
    p2m_crash_unload = P2M_CRASH_CMD_UNLOAD;
    p2m_crash_status = P2M_CRASH_CMD_STATUS;
    p2m_crash_low = P2M_CRASH_CMD_LOW;
}

// What is in use can't change: these are the numbers of the first release, not what the header
// happens to say.
const _: () = {
    assert!(p2m_crash_info::OPCODE == 0xbbe0);
    assert!(p2m_crash_load::OPCODE == 0xbbe1);
    assert!(p2m_crash_unload::OPCODE == 0xbbe2);
    assert!(p2m_crash_status::OPCODE == 0xbbe3);
    assert!(size_of::<p2m_crash_info>() == 64);
    assert!(p2m_crash_low::OPCODE == 0xbbe4);
    assert!(size_of::<p2m_crash_load>() == 104);
    assert!(size_of::<p2m_crash_unload>() == 8);
    assert!(size_of::<p2m_crash_status>() == 88);
    assert!(size_of::<p2m_crash_low>() == 32);
    assert!(size_of::<p2m_crash_range>() == 16);
    assert!(size_of::<p2m_crash_frames>() == 16);
    assert!(size_of::<p2m_crash_segment>() == 24);
};
