// SPDX-License-Identifier: GPL-2.0

//! What the fuzzer found before, and bytes that nobody has looked at, through each target.

use std::fs;
use std::path::Path;

fn each(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let files = fs::read_dir(&corpus).expect("there is a corpus");
    let mut nr_files = 0;
    for file in files {
        let path = file.expect("it can be listed").path();
        // Shown if it panics.
        eprintln!("{}", path.display());
        run(&fs::read(&path).expect("it can be read"));
        nr_files += 1;
    }
    assert_ne!(nr_files, 0, "{} is empty", corpus.display());
    let mut state = 1u64;
    for length in (0..400).step_by(8) {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        run(&bytes);
    }
}

macro_rules! targets {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            each(stringify!($target), p2m_fuzz::$target);
        }
    )*};
}

targets!(abi dma kernel machine map paging policy);
