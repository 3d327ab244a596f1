// SPDX-License-Identifier: GPL-2.0

//! A pseudo-physical to machine mapping without a hypervisor.
//!
//! Userspace opens `/dev/p2m` and gets a domain: a linear space of page frames, mapped over machine
//! frames that are anywhere. The thin layer is that of Xen's paravirtualised guests, see
//! `arch/x86/xen/p2m.c`; here it is tied to nothing.
//!
//! ```text
//!  device ──► commands ──► domain ──► pure::map ──► pure::sparse ──► store   tables, and
//!    │                       ├──────► pure::policy ────────────────► frames  machine frames,
//!    │                       │                                               from the kernel
//!    │                       ├──────► space ──► pure::paging ──► pure::pv    page tables, built
//!    │                       │                                               through a backend
//!    └► vma ─────────────────┴──────► mapping                                user mappings
//! ```
//!
//! What `pure` contains needs no kernel. All `unsafe` is in the other modules.

use kernel::{
    debugfs,
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*, //
};

use crate::{
    counters::Counters,
    domain::Domain,
    store::MissingTables, //
};

mod abi;
mod commands;
mod compat;
mod counters;
mod cpu;
mod device;
mod dma_buf;
mod dma_commands;
mod domain;
mod ffi;
mod frames;
mod inject;
mod ioctl;
#[cfg(CONFIG_KUNIT)]
mod kunit;
mod live_commands;
mod mapping;
mod operations;
#[forbid(unsafe_code)]
pub mod pure;
mod space;
mod space_commands;
mod store;
mod vma;
mod window;

module! {
    type: P2m,
    name: "p2m",
    authors: ["The p2m engineers"],
    description: "Pseudo-physical to machine mapping without a hypervisor",
    license: "GPL",
    params: {
        max_pages: u64 {
            default: 0,
            description: "Most pages of all domains together (0: three quarters of the memory)",
        },
        max_domain_pages: u64 {
            default: 0,
            description: "Most pages of one domain (0: as many as all together)",
        },
        max_regions: u32 {
            default: 65536,
            description: "Most regions of one domain",
        },
        default_policy: u32 {
            default: 0,
            description: "Policy of regions made by a plain mmap (P2M_POLICY_*)",
        },
    },
}

/// The module.
///
/// Fields are dropped from the first to the last: when the missing tables go, nobody can open the
/// device any more, and as open files hold a reference to the module, nobody has.
#[pin_data]
struct P2m {
    #[pin]
    _device: MiscDeviceRegistration<Domain>,
    #[pin]
    _stat: debugfs::File<()>,
    _dir: debugfs::Dir,
    _missing: MissingTables,
}

impl kernel::InPlaceModule for P2m {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions { name: c"p2m" };
        // Initialised in this order: the device is visible last.
        try_pin_init!(Self {
            _missing: {
                domain::check_parameters()?;
                device::prepare(options, module)?;
                space::register_backends()?;
                MissingTables::new()?
            },
            _dir: debugfs::Dir::new(c"p2m"),
            _stat <- _dir.read_callback_file(c"stat", (), &|(), f| {
                writeln!(f, "domains {}", domain::nr_domains())?;
                writeln!(f, "pages {}", frames::total())?;
                writeln!(f, "superpages {}", domain::nr_superpages())?;
                writeln!(f, "max_pages {}", frames::max_total())?;
                writeln!(f, "max_domain_pages {}", domain::max_pages())?;
                Counters::write_total(f)?;
                write!(f, "backends")?;
                space::for_each_backend(|name| {
                    let _ = write!(f, " {name}");
                });
                writeln!(f)
            }),
            _device <- MiscDeviceRegistration::register(options),
        })
    }
}
