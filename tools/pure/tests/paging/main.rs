// SPDX-License-Identifier: GPL-2.0

//! Backends, and page tables that are built through them.
//!
//! - [`extents`], [`sim`], [`cpu`] and [`world`] are a machine that checks how it is used: frames,
//!   a P2M over them, a processor that walks tables and remembers what it found, and domains.
//! - [`hooks`], [`lazy`] and [`maps`] have the laws of the backends.
//! - [`rig`] is a space with a model of what is in it. [`space`], [`large`], [`exchange`],
//!   [`faults`] and [`random`] use it.
//! - [`oracle`] compares with a walker of other people.
//! - [`mutants`] proves that broken backends are found out.
//!
//! A *law* is a function of a backend that panics. It is a test of each real backend, and it has to
//! fail for some broken ones.

mod cpu;
mod exchange;
mod extents;
mod faults;
mod hooks;
mod large;
mod lazy;
mod maps;
mod mutants;
mod oracle;
mod random;
mod rig;
mod sim;
mod space;
mod world;

/// Makes a list of laws, and a test of each real backend from every one.
macro_rules! laws {
    ($($law:ident,)*) => {
        /// The laws of this module by name.
        pub(crate) const LAWS: &[(&str, $crate::world::Law)] = &[$((stringify!($law), $law),)*];

        mod laws {
            $(
                #[test]
                fn $law() {
                    for backend in $crate::world::backends() {
                        println!("{}", backend.name());
                        super::$law(&backend);
                    }
                }
            )*
        }
    };
}
use laws;
