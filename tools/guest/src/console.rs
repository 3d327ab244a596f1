// SPDX-License-Identifier: GPL-2.0

//! The console: the terminal of the user, and what comes of signals.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::termios::{self, LocalModes, OptionalActions, OutputModes, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;

/// The terminal while a guest has it: keys come one by one and aren't echoed, but those that make
/// signals do.
///
/// As long as this lives, signals that end the process give the terminal back before they do.
#[derive(Debug)]
pub struct Console {
    /// How the terminal was, if the standard input is one.
    before: Option<Termios>,
}

impl Console {
    /// Takes the terminal.
    pub fn attach() -> Result<Self, Error> {
        let before = termios::tcgetattr(io::stdin()).ok();
        // Before the terminal is changed, as a signal may come at any time.
        let console = Self { before };
        let mut signals =
            Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).map_err(Error::Console)?;
        let restore = console.before.clone();
        let wait = move || {
            for signal in signals.forever() {
                give_back(restore.as_ref());
                // All that the guest has goes with the process.
                let _ = emulate_default_handler(signal);
            }
        };
        spawn("signals", wait)?;
        if let Some(before) = &console.before {
            let mut during = before.clone();
            during.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // The guest's console does that.
            during.output_modes -= OutputModes::OPOST;
            termios::tcsetattr(io::stdin(), OptionalActions::Now, &during)
                .map_err(|error| Error::Console(error.into()))?;
        }
        Ok(console)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        give_back(self.before.as_ref());
    }
}

fn give_back(before: Option<&Termios>) {
    if let Some(before) = before {
        // Nobody is left to complain to.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(run).map(drop).map_err(Error::Console)
}

/// An interrupt of the guest.
#[derive(Debug)]
pub(crate) struct Interrupt(pub(crate) EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Says that there is room for more input.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room(Arc<Condvar>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.notify_one();
    }
}

/// The standard output, without anything in between.
#[derive(Debug)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(io::stdout(), bytes) {
            Ok(written) => Ok(written),
            // Somebody made it non-blocking.
            Err(Errno::AGAIN) => {
                thread::sleep(Duration::from_millis(1));
                Err(io::ErrorKind::Interrupted.into())
            }
            Err(Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            // A console that nobody looks at is no reason to stop.
            Err(_) => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console of the guest.
pub(crate) type ConsolePort = Serial<Interrupt, Room, Output>;

/// Returns what a mutex protects. Nothing that can be half-done is protected by one here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the standard input go to the guest's console from now on.
pub(crate) fn feed(port: Arc<Mutex<ConsolePort>>, room: Room) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_millis(50);
    let run = move || {
        let mut buffer = [0; 64];
        while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
            let mut rest = &buffer[..len];
            let mut port = lock(&port);
            while !rest.is_empty() {
                let len = rest.len().min(port.fifo_capacity());
                // Nothing is taken while the port is connected to itself.
                let taken = port.enqueue_raw_bytes(&rest[..len]).unwrap_or(0);
                rest = &rest[taken..];
                if taken == 0 {
                    let waited = room.0.wait_timeout(port, PATIENCE);
                    port = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    };
    spawn("input", run)
}

/// What the guest writes to the port for its exit status.
#[derive(Debug, Default)]
pub(crate) struct Status {
    line: Vec<u8>,
    status: Option<u8>,
}

impl Status {
    /// The longest line that can be a status.
    const LONGEST: usize = 16;

    /// Returns the status that was said last.
    pub(crate) fn get(&self) -> Option<u8> {
        self.status
    }
}

impl Write for Status {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = core::str::from_utf8(&self.line).ok();
                let status = line.and_then(|line| line.trim().parse().ok());
                self.status = status.or(self.status);
                self.line.clear();
            } else if self.line.len() < Self::LONGEST {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_on_a_line_is_the_status() {
        for (written, expected) in [
            ("", None),
            ("7", None),
            ("7\n", Some(7)),
            ("0\r\n", Some(0)),
            ("255\n", Some(255)),
            ("256\n", None),
            ("-1\n", None),
            ("seven\n", None),
            ("7\n8\n", Some(8)),
            ("7\nseven\n\n", Some(7)),
            ("7\n8", Some(7)),
            ("1 2\n", None),
            ("000000000000000000000000000000000001\n", Some(0)),
        ] {
            let mut status = Status::default();
            // As a serial port does it.
            for byte in written.bytes() {
                status.write_all(&[byte]).expect("always");
            }
            assert_eq!(status.get(), expected, "{written:?}");
        }
    }
}
