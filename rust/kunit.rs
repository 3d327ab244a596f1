// SPDX-License-Identifier: GPL-2.0

//! Unit tests of what needs a kernel. KUnit runs them when the module is loaded.
//!
//! They are there only with `CONFIG_KUNIT`. What `pure` contains is tested on the host.

use kernel::prelude::*;

#[kunit_tests(p2m_inject)]
mod inject {
    use kernel::prelude::*;

    use crate::inject::Injection;

    #[test]
    fn nothing_fails_unasked() {
        let injection = Injection::new();
        assert!((0..1000).all(|_| !injection.should_fail()));
        assert!(injection.check(ENOMEM).is_ok());
        assert_eq!(injection.set(0), 0);
    }

    #[test]
    fn the_nth_place_fails_once() {
        let injection = Injection::new();
        for nth in 1..20 {
            injection.set(nth);
            assert!((1..30).all(|place| injection.should_fail() == (place == nth)));
            assert_eq!(injection.set(0), 0);
        }
    }

    #[test]
    fn what_is_left_is_told() {
        let injection = Injection::new();
        assert_eq!(injection.set(5), 0);
        assert!(!injection.should_fail() && !injection.should_fail());
        assert_eq!(injection.set(1), 3);
        assert_eq!(injection.check(EBUSY).err(), Some(EBUSY));
        assert_eq!(injection.set(0), 0);
    }
}

#[kunit_tests(p2m_frames)]
mod frames {
    use kernel::prelude::*;

    use crate::{
        frames::{
            self,
            Charge,
            Source, //
        },
        pure::{
            frame::{
                Mfn,
                PAGE_SIZE, //
            },
            policy::FrameSource,
            table::Table, //
        },
    };

    /// Returns the words of a frame.
    fn words(mfn: &Mfn) -> &Table {
        // SAFETY: The tests free a frame after the last use of its words.
        unsafe { Source::table(*mfn) }
    }

    /// Looks at `nr` frames from `first` on, which nobody else has, and frees them one by one.
    fn check_and_free(first: Mfn, nr: u64) -> bool {
        let mut is_good = true;
        for n in 0..nr {
            let Some(mfn) = first.checked_add(n) else {
                return false;
            };
            is_good &= mfn.get() < frames::max_mfn()
                && Source::is_exclusive(mfn)
                && Source::references(mfn).nr_unknown == 0
                && words(&mfn).is_all(0);
            Source.free(mfn);
        }
        is_good
    }

    #[test]
    fn blocks_are_zeroed_and_of_single_frames() {
        for order in 0..5 {
            let first = Source.alloc(order);
            assert!(first.is_some_and(|first| first.get() % (1 << order) == 0));
            assert!(first.is_some_and(|first| check_and_free(first, 1 << order)));
        }
    }

    #[test]
    fn runs_have_the_length_asked_for() {
        for nr in [1, 2, 3, 5, 16, 31] {
            let first = Source.alloc_run(nr);
            assert!(first.is_some_and(|first| check_and_free(first, nr as u64)));
        }
    }

    #[test]
    fn references_are_counted() {
        let Some(mfn) = Source.alloc(0) else {
            return assert!(false);
        };
        Source::take_reference(mfn);
        assert!(!Source::is_exclusive(mfn));
        assert_eq!(Source::references(mfn).nr_unknown, 1);
        Source.free(mfn);
        assert!(check_and_free(mfn, 1));
    }

    #[test]
    fn contents_are_copied_and_exchanged() -> Result {
        let (a, b) = (Source.alloc(0), Source.alloc(0));
        let (Some(a), Some(b)) = (a, b) else {
            return Err(ENOMEM);
        };
        let mut buffer = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL)?;
        words(&a).fill(1);
        words(&b).fill(2);
        // SAFETY: Nobody else knows the frames.
        unsafe { Source::swap(a, b, &mut buffer) };
        assert!(words(&a).is_all(2) && words(&b).is_all(1));
        words(&a).store(511, 3);
        // SAFETY: As above.
        unsafe { Source::copy(a, b) };
        assert!(words(&b).load(0) == 2 && words(&b).load(511) == 3);
        Source.free(a);
        Source.free(b);
        Ok(())
    }

    #[test]
    fn memory_is_told_from_devices() {
        let Some(mfn) = Source.alloc(0) else {
            return assert!(false);
        };
        assert!(!Source::is_no_memory(mfn.get(), 1));
        Source.free(mfn);
        // The local APIC is there on every x86.
        assert!(Source::is_no_memory(0xfee00, 1));
        assert!(!Source::is_no_memory(u64::MAX, 2));
        assert!(!Source::is_no_memory(1 << 20, u64::MAX));
    }

    #[test]
    fn charges_are_given_back() {
        let before = frames::total();
        let charge = Charge::new(10);
        assert!(charge.is_ok());
        assert_eq!(frames::total(), before + 10);
        assert!(Charge::new(frames::max_total()).is_err());
        assert_eq!(frames::total(), before + 10);
        drop(charge);
        assert_eq!(frames::total(), before);
    }
}

#[kunit_tests(p2m_store)]
mod store {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        compat::rcu_barrier,
        inject::Injection,
        pure::{
            entry::INVALID,
            sparse::MAX_LEVELS,
            table::{
                NoMemory,
                TableStore, //
            },
        },
        store::Store,
    };

    #[test]
    fn tables_are_filled() -> Result {
        let store = Store::new(Arc::new(Injection::new(), GFP_KERNEL)?)?;
        for fill in [0, INVALID, 0x1234_5678_9abc_def0] {
            let id = store.alloc(fill)?;
            assert!(store.table(id).is_all(fill));
            store.free(id);
            let id = store.alloc(fill)?;
            store.retire(id);
        }
        rcu_barrier();
        Ok(())
    }

    #[test]
    fn missing_tables_lead_to_nothing() -> Result {
        let store = Store::new(Arc::new(Injection::new(), GFP_KERNEL)?)?;
        let mut expected = INVALID;
        for level in 0..MAX_LEVELS {
            let id = store.missing(level);
            assert!(store.table(id).is_all(expected));
            expected = id.get();
        }
        Ok(())
    }

    #[test]
    fn tables_fail_on_purpose() -> Result {
        let injection = Arc::new(Injection::new(), GFP_KERNEL)?;
        let store = Store::new(injection.clone())?;
        injection.set(2);
        let first = store.alloc(0)?;
        assert_eq!(store.alloc(0), Err(NoMemory));
        store.free(first);
        store.free(store.alloc(0)?);
        Ok(())
    }
}

#[kunit_tests(p2m_window)]
mod window {
    use crate::{
        frames,
        pure::frame::{
            Pfn,
            PAGE_SHIFT, //
        },
        window::Window,
    };

    /// The windows, and how many pages they have.
    fn windows() -> [(Window, u64); 4] {
        [
            (Window::Memory, Pfn::LIMIT),
            (Window::Header, 1),
            (Window::P2m, Pfn::LIMIT / 512),
            (Window::M2p, frames::max_mfn().div_ceil(512)),
        ]
    }

    #[test]
    fn each_page_is_in_its_window() {
        for (window, nr_pages) in windows() {
            let first = window.offset() >> PAGE_SHIFT;
            assert!(Window::of(first, nr_pages) == Ok(window));
            assert!(Window::of(first + nr_pages - 1, 1) == Ok(window));
            assert!(Window::of(first, nr_pages + 1).is_err());
            assert!(Window::of(first + nr_pages, 1) != Ok(window));
            assert!(Window::of(first, u64::MAX).is_err());
        }
    }

    #[test]
    fn words_follow_from_page_to_page() {
        for (window, nr_pages) in windows() {
            let first = window.offset() >> PAGE_SHIFT;
            assert_eq!(window.word_index(first), Some(0));
            assert_eq!(
                window.word_index(first + nr_pages - 1),
                Some((nr_pages - 1) * 512)
            );
            assert_eq!(window.word_index(first + nr_pages), None);
        }
    }
}
