// SPDX-License-Identifier: GPL-2.0

//! 64-bit words, and files that are arrays of them: the P2M as read(2) shows it, and pagemaps.

use core::fmt::{self, Display, Formatter};
use std::os::fd::AsFd;

use rustix::io::{self, Errno};
use serde::{Serialize, Serializer};

/// A word of any value, which JSON has no numbers for: many readers know only 53 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u64);

impl Display for Word {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const WORD_BYTES: usize = size_of::<u64>();

/// Reads `nr` words from index `first` on; fewer only if the file ends before.
pub(crate) fn read_words(fd: impl AsFd, first: u64, nr: usize) -> io::Result<Vec<u64>> {
    let too_far = Errno::OVERFLOW;
    let mut offset = first.checked_mul(WORD_BYTES as u64).ok_or(too_far)?;
    let mut bytes = vec![0; nr.checked_mul(WORD_BYTES).ok_or(too_far)?];
    let mut len = 0;
    while len < bytes.len() {
        let read = io::retry_on_intr(|| io::pread(&fd, &mut bytes[len..], offset))?;
        if read == 0 {
            break;
        }
        len += read;
        offset += read as u64;
    }
    Ok(bytes[..len]
        .chunks_exact(WORD_BYTES)
        .flat_map(<[u8; WORD_BYTES]>::try_from)
        .map(u64::from_ne_bytes)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn words_come_from_their_index_and_end_with_the_file() {
        let mut file = tempfile::tempfile().expect("temporary file");
        for word in [10u64, 11, u64::MAX, 1 << 40] {
            file.write_all(&word.to_ne_bytes()).expect("write");
        }
        for first in 0..6 {
            for nr in 0..6 {
                let expected: Vec<_> = [10, 11, u64::MAX, 1 << 40]
                    .into_iter()
                    .skip(first)
                    .take(nr)
                    .collect();
                assert_eq!(read_words(&file, first as u64, nr), Ok(expected));
            }
        }
    }

    #[test]
    fn index_beyond_all_files_is_an_error() {
        let file = tempfile::tempfile().expect("temporary file");
        assert_eq!(read_words(&file, u64::MAX, 1), Err(Errno::OVERFLOW));
    }
}
