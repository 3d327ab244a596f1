// SPDX-License-Identifier: GPL-2.0

//! A virtio balloon behind virtio-mmio, by which the guest gives back pages.

use std::io;
use std::ops::Range;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

const PAGE_BYTES: u64 = 4096;

// Of linux/virtio_balloon.h, which the bindings don't have.
const VIRTIO_BALLOON_F_MUST_TELL_HOST: u32 = 0;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// The version of virtio-mmio that isn't the legacy one.
const VERSION: u32 = 2;
/// "P2M".
const VENDOR: u32 = 0x004d_3250;

/// Entries of a queue. Reports are of 32 pieces at most.
const QUEUE_ENTRIES: u16 = 128;

/// The queues that this balloon has, in the order that follows from its features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Pages that the guest gives back.
    Inflate,
    /// Pages that it wants again.
    Deflate,
    /// Pages that are free, until the guest touches them.
    Report,
}

/// Whose pages they are.
pub trait Pages {
    /// Gives pages back. What is in them doesn't matter any more.
    fn release(&mut self, pfns: Range<u64>) -> io::Result<()>;

    /// Has pages be there again, with anything in them.
    fn populate(&mut self, pfns: Range<u64>) -> io::Result<()>;
}

/// The device, as the guest sees it.
pub(crate) struct Balloon<'a> {
    pages: Box<dyn Pages + 'a>,
    /// How many pages the guest is asked to give back.
    target: u32,
    /// How many it says that it has given back.
    actual: u32,
    features: u64,
    accepted: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queues: Vec<(Purpose, Queue)>,
    selected: usize,
    status: u32,
    interrupts: u32,
}

impl<'a> Balloon<'a> {
    /// Makes a balloon for a number of pages. With `report`, the guest tells what is free, too.
    pub(crate) fn new(
        pages: Box<dyn Pages + 'a>,
        target: u32,
        report: bool,
    ) -> Result<Self, Error> {
        let mut features = (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_BALLOON_F_MUST_TELL_HOST);
        let mut purposes = vec![Purpose::Inflate, Purpose::Deflate];
        if report {
            features |= 1 << VIRTIO_BALLOON_F_REPORTING;
            purposes.push(Purpose::Report);
        }
        let queue = |purpose| {
            let queue = Queue::new(QUEUE_ENTRIES);
            let queue = queue.map_err(|error| failed("set up", io::Error::other(error)))?;
            Ok((purpose, queue))
        };
        Ok(Self {
            pages,
            target,
            actual: 0,
            features,
            accepted: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queues: purposes.into_iter().map(queue).collect::<Result<_, _>>()?,
            selected: 0,
            status: 0,
            interrupts: 0,
        })
    }

    /// Returns what the guest reads at an offset.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if let Some(offset) = offset.checked_sub(config) {
            let mut space = [0; 8];
            space[..4].copy_from_slice(&self.target.to_le_bytes());
            space[4..].copy_from_slice(&self.actual.to_le_bytes());
            let found = space
                .iter()
                .skip(offset as usize)
                .chain(core::iter::repeat(&0));
            bytes
                .iter_mut()
                .zip(found)
                .for_each(|(to, from)| *to = *from);
            return;
        }
        let word = self.register(offset as u32).to_le_bytes();
        bytes.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }

    fn register(&self, offset: u32) -> u32 {
        let half = |word: u64, page: u32| match page {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        let queue = self.queues.get(self.selected).map(|(_, queue)| queue);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => VIRTIO_ID_BALLOON,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, self.device_features_page),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupts,
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Does what the guest wants by a write, and returns whether it's to be interrupted.
    pub(crate) fn write(
        &mut self,
        memory: &GuestMemoryMmap,
        offset: u64,
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        let mut word = [0; 4];
        word.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        let word = u32::from_le_bytes(word);
        if offset == config + 4 {
            self.actual = word;
            return Ok(false);
        }
        if offset == u64::from(VIRTIO_MMIO_QUEUE_NOTIFY) {
            return self.serve(memory, word as usize);
        }
        self.set_register(offset as u32, word);
        Ok(false)
    }

    fn set_register(&mut self, offset: u32, word: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = word,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = word,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                let shift = match self.driver_features_page {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let mask = u64::from(u32::MAX) << shift;
                self.accepted = (self.accepted & !mask) | (u64::from(word) << shift);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.selected = word as usize,
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupts &= !word,
            VIRTIO_MMIO_STATUS => self.set_status(word),
            _ => self.set_queue(offset, word),
        }
    }

    fn set_status(&mut self, status: u32) {
        if status == 0 {
            for (_, queue) in &mut self.queues {
                queue.reset();
            }
            self.accepted = 0;
            self.interrupts = 0;
        }
        self.status = status;
        // Features that weren't offered can't be accepted.
        if self.accepted & !self.features != 0 {
            self.status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
    }

    fn set_queue(&mut self, offset: u32, word: u32) {
        let Some((_, queue)) = self.queues.get_mut(self.selected) else {
            return;
        };
        let half = Some(word);
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(word).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => queue.set_ready(word == 1),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(half, None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, half),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(half, None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, half),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(half, None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, half),
            _ => {}
        }
    }

    /// Does all that is in a queue.
    fn serve(&mut self, memory: &GuestMemoryMmap, index: usize) -> Result<bool, Error> {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK == 0 {
            return Ok(false);
        }
        let Some((purpose, queue)) = self.queues.get_mut(index) else {
            return Ok(false);
        };
        if !queue.is_valid(memory) {
            return Ok(false);
        }
        let mut interrupt = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            for descriptor in chain {
                let address = descriptor.addr().raw_value();
                let bytes = u64::from(descriptor.len());
                match (&purpose, descriptor.is_write_only()) {
                    (Purpose::Report, true) => {
                        let end = address.saturating_add(bytes) / PAGE_BYTES;
                        let pfns = address.div_ceil(PAGE_BYTES)..end;
                        // It may be of no whole page.
                        if !pfns.is_empty() {
                            let released = self.pages.release(pfns);
                            released.map_err(|error| failed("release", error))?;
                        }
                    }
                    (Purpose::Inflate | Purpose::Deflate, false) => {
                        let pfns = numbers(memory, address, bytes);
                        for pfns in runs(pfns) {
                            if *purpose == Purpose::Inflate {
                                let released = self.pages.release(pfns);
                                released.map_err(|error| failed("release", error))?;
                            } else {
                                let populated = self.pages.populate(pfns);
                                populated.map_err(|error| failed("populate", error))?;
                            }
                        }
                    }
                    _ => {}
                }
            }
            // A ring that the guest took away is its own affair.
            if queue.add_used(memory, head, 0).is_err() {
                return Ok(false);
            }
            interrupt |= queue.needs_notification(memory).unwrap_or(true);
        }
        if interrupt {
            self.interrupts |= VIRTIO_MMIO_INT_VRING;
        }
        Ok(interrupt)
    }
}

fn failed(attempted: &'static str, source: io::Error) -> Error {
    Error::Balloon { attempted, source }
}

/// Reads an array of 32-bit page numbers of the guest. It ends where the memory does.
fn numbers(memory: &GuestMemoryMmap, address: u64, bytes: u64) -> Vec<u64> {
    (0..bytes / 4)
        .map_while(|index| {
            let address = GuestAddress(address.checked_add(4 * index)?);
            let number: u32 = memory.read_obj(address).ok()?;
            Some(u64::from(u32::from_le(number)))
        })
        .collect()
}

/// Returns ranges that have the same numbers, each as often.
fn runs(mut numbers: Vec<u64>) -> Vec<Range<u64>> {
    numbers.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    type Calls = Vec<(&'static str, Range<u64>)>;

    #[derive(Clone, Default)]
    struct Log(Rc<RefCell<Calls>>);

    impl Pages for Log {
        fn release(&mut self, pfns: Range<u64>) -> io::Result<()> {
            if pfns.contains(&0xbad) {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.0.borrow_mut().push(("release", pfns));
            Ok(())
        }

        fn populate(&mut self, pfns: Range<u64>) -> io::Result<()> {
            self.0.borrow_mut().push(("populate", pfns));
            Ok(())
        }
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory")
    }

    fn read(balloon: &Balloon<'_>, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        balloon.read(offset.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(balloon: &mut Balloon<'_>, memory: &GuestMemoryMmap, offset: u32, word: u32) -> bool {
        let written = balloon.write(memory, offset.into(), &word.to_le_bytes());
        written.expect("no errors here")
    }

    /// Does what a driver does, with one queue.
    fn drive(
        balloon: &mut Balloon<'_>,
        memory: &GuestMemoryMmap,
        queue: u32,
        ring: &MockSplitQueue<'_, GuestMemoryMmap>,
    ) {
        write(balloon, memory, VIRTIO_MMIO_QUEUE_SEL, queue);
        write(balloon, memory, VIRTIO_MMIO_QUEUE_NUM, 16);
        let addresses = [ring.desc_table_addr(), ring.avail_addr(), ring.used_addr()];
        let registers = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH),
        ];
        for (address, (low, high)) in addresses.into_iter().zip(registers) {
            write(balloon, memory, low, address.raw_value() as u32);
            write(balloon, memory, high, (address.raw_value() >> 32) as u32);
        }
        write(balloon, memory, VIRTIO_MMIO_QUEUE_READY, 1);
    }

    #[test]
    fn pages_go_and_come_as_the_guest_says() {
        let memory = memory();
        let log = Log::default();
        let mut balloon = Balloon::new(Box::new(log.clone()), 5, true).expect("balloon");
        let ring = MockSplitQueue::new(&memory, 16);
        // 3, 4 and 5 are one piece, in whatever order they come.
        for (index, number) in [4u32, 9, 3, 5].into_iter().enumerate() {
            let address = GuestAddress(0x8_0000 + 4 * index as u64);
            memory.write_obj(number.to_le(), address).expect("there");
        }
        let numbers = RawDescriptor::from(Descriptor::new(0x8_0000, 16, 0, 0));
        ring.build_desc_chain(&[numbers]).expect("room");
        drive(&mut balloon, &memory, 0, &ring);
        // Not before the driver says that it's ready.
        assert!(!write(&mut balloon, &memory, VIRTIO_MMIO_QUEUE_NOTIFY, 0));
        assert!(log.0.borrow().is_empty());
        write(
            &mut balloon,
            &memory,
            VIRTIO_MMIO_STATUS,
            VIRTIO_CONFIG_S_DRIVER_OK,
        );
        assert!(write(&mut balloon, &memory, VIRTIO_MMIO_QUEUE_NOTIFY, 0));
        assert_eq!(*log.0.borrow(), [("release", 3..6), ("release", 9..10)]);
        assert_eq!(read(&balloon, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        write(&mut balloon, &memory, VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(read(&balloon, VIRTIO_MMIO_INTERRUPT_STATUS), 0);

        log.0.borrow_mut().clear();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0x1_0000), 16);
        ring.build_desc_chain(&[numbers]).expect("room");
        drive(&mut balloon, &memory, 1, &ring);
        assert!(write(&mut balloon, &memory, VIRTIO_MMIO_QUEUE_NOTIFY, 1));
        assert_eq!(*log.0.borrow(), [("populate", 3..6), ("populate", 9..10)]);

        log.0.borrow_mut().clear();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0x2_0000), 16);
        // Pages themselves, that the device may write to; parts of a page are none.
        let pages = [(0x4_0000, 0x2000), (0x5_0800, 0x1800), (0x6_0000, 0x800)];
        let pages = pages
            .map(|(address, bytes)| RawDescriptor::from(Descriptor::new(address, bytes, 2, 0)));
        ring.build_desc_chain(&pages).expect("room");
        drive(&mut balloon, &memory, 2, &ring);
        assert!(write(&mut balloon, &memory, VIRTIO_MMIO_QUEUE_NOTIFY, 2));
        assert_eq!(
            *log.0.borrow(),
            [("release", 0x40..0x42), ("release", 0x51..0x52)]
        );
    }

    #[test]
    fn a_page_that_nobody_has_is_an_error() {
        let memory = memory();
        let mut balloon = Balloon::new(Box::new(Log::default()), 0, false).expect("balloon");
        let ring = MockSplitQueue::new(&memory, 16);
        memory
            .write_obj(0xbadu32.to_le(), GuestAddress(0x8_0000))
            .expect("there");
        let numbers = RawDescriptor::from(Descriptor::new(0x8_0000, 4, 0, 0));
        ring.build_desc_chain(&[numbers]).expect("room");
        drive(&mut balloon, &memory, 0, &ring);
        write(
            &mut balloon,
            &memory,
            VIRTIO_MMIO_STATUS,
            VIRTIO_CONFIG_S_DRIVER_OK,
        );
        let notify = VIRTIO_MMIO_QUEUE_NOTIFY.into();
        let error = balloon
            .write(&memory, notify, &[0; 4])
            .expect_err("no such page");
        assert_eq!(error.to_string(), "the balloon cannot release memory");
    }

    #[test]
    fn features_that_are_not_offered_are_refused() {
        let memory = memory();
        for (report, good) in [(true, true), (false, false)] {
            let mut balloon = Balloon::new(Box::new(Log::default()), 0, report).expect("balloon");
            write(&mut balloon, &memory, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
            let wanted = 1 << VIRTIO_BALLOON_F_REPORTING;
            write(&mut balloon, &memory, VIRTIO_MMIO_DRIVER_FEATURES, wanted);
            write(
                &mut balloon,
                &memory,
                VIRTIO_MMIO_STATUS,
                VIRTIO_CONFIG_S_FEATURES_OK,
            );
            let accepted = read(&balloon, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK;
            assert_eq!(accepted != 0, good);
        }
    }

    #[test]
    fn config_has_the_target_and_takes_the_actual_size() {
        let memory = memory();
        let mut balloon =
            Balloon::new(Box::new(Log::default()), 0x1234_5678, false).expect("balloon");
        assert_eq!(read(&balloon, VIRTIO_MMIO_CONFIG), 0x1234_5678);
        write(&mut balloon, &memory, VIRTIO_MMIO_CONFIG + 4, 7);
        assert_eq!(read(&balloon, VIRTIO_MMIO_CONFIG + 4), 7);
        assert_eq!(read(&balloon, VIRTIO_MMIO_CONFIG + 8), 0);
        let mut byte = [0];
        balloon.read(u64::from(VIRTIO_MMIO_CONFIG) + 1, &mut byte);
        assert_eq!(byte, [0x56]);
    }

    #[test]
    fn the_guest_cannot_break_the_device_by_its_registers() {
        let memory = memory();
        let mut balloon = Balloon::new(Box::new(Log::default()), 1, true).expect("balloon");
        for offset in (0..0x200).step_by(4) {
            for word in [0, 1, 3, 0xffff_ffff, 0x8000_0000] {
                let _ = balloon.write(&memory, offset, &u32::to_le_bytes(word));
                read(&balloon, offset as u32);
            }
        }
    }
}
