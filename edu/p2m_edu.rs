// SPDX-License-Identifier: GPL-2.0

//! DMA by a real device, QEMU's "edu", for tests: the right way, and as drivers do that take frames to
//! follow each other.
//!
//! ```text
//!  ioctl ──► memory ──► the DMA API     bus addresses of a dma-buf, or of pinned pages
//!    └─────► device                     transfers
//! ```
//!
//! It's a driver as others are: it knows nothing of p2m.

use kernel::{
    driver,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    pci,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::{
    abi::{
        p2m_edu_copy,
        p2m_edu_info, //
    },
    compat::parameter,
    ioctl::Command,
    memory::{
        Imported,
        Piece,
        Pinned,
        Request, //
    }, //
};

mod abi;
#[allow(dead_code, unused_imports)]
#[path = "../rust/compat.rs"]
mod compat;
mod device;
#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../rust/ioctl.rs"]
mod ioctl;
mod memory;
#[forbid(unsafe_code)]
#[path = "../rust/pure/mod.rs"]
pub mod pure;

module! {
    type: P2mEdu,
    name: "p2m_edu",
    authors: ["The p2m engineers"],
    description: "DMA by QEMU's edu device, right and naive",
    license: "GPL",
    params: {
        damages: u8 {
            default: 0,
            description: "1: naive copies may write, which damages what is next to a frame",
        },
        dma_bits: u32 {
            default: 28,
            description: "How many bits bus addresses of the device have (QEMU: dma_mask)",
        },
    },
}

/// The module.
///
/// Fields are dropped from the first to the last: nobody can open the device node any more when the
/// driver goes.
#[pin_data]
struct P2mEdu {
    #[pin]
    _device: MiscDeviceRegistration<Open>,
    #[pin]
    _driver: driver::Registration<pci::Adapter<device::Driver>>,
}

impl kernel::InPlaceModule for P2mEdu {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: The module is initialised once, and this comes first.
        unsafe { device::init() };
        try_pin_init!(Self {
            _driver <- driver::Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions { name: c"p2m_edu" }),
        })
    }
}

/// An open of the device node.
struct Open;

#[vtable]
impl MiscDevice for Open {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            p2m_edu_info::NUMBER => ioctl::handle(arg, info),
            p2m_edu_copy::NUMBER => ioctl::handle(arg, copy),
            _ => Err(ENOTTY),
        }
    }
}

/// `P2M_EDU_INFO`
fn info(command: &mut p2m_edu_info) -> Result {
    command.out_damages = u32::from(parameter(&module_parameters::damages) != 0);
    device::with_device(|device| {
        command.out_dma_bits = device.nr_bits();
        command.out_name.fill(0);
        // The last byte stays.
        let room = command.out_name.len().saturating_sub(1);
        let name = device.name().to_bytes().iter().take(room);
        for (to, from) in command.out_name.iter_mut().zip(name) {
            *to = *from;
        }
        Ok(())
    })
}

/// `P2M_EDU_COPY`
fn copy(command: &mut p2m_edu_copy) -> Result {
    command.out_done = 0;
    command.out_address = 0;
    command.out_pieces = 0;
    command.out_segments = 0;
    let has = |flag| command.flags & flag != 0;
    let is_write = has(abi::P2M_EDU_WRITE);
    let is_naive = has(abi::P2M_EDU_NAIVE);
    let is_user = has(abi::P2M_EDU_USER);
    let with_cpu = has(abi::P2M_EDU_CPU);
    if command.__reserved != 0
        || command.length == 0
        || command.length > u64::from(abi::P2M_EDU_MAX_LENGTH)
        || (is_user && (command.fd != 0 || with_cpu))
    {
        return Err(EINVAL);
    }
    if is_naive && is_write && parameter(&module_parameters::damages) == 0 {
        return Err(EPERM);
    }
    let request = Request {
        offset: command.offset,
        length: command.length,
        direction: match is_write {
            true => kernel::dma::DataDirection::FromDevice,
            false => kernel::dma::DataDirection::ToDevice,
        },
        is_naive,
    };
    let data = UserPtr::from_addr(usize::try_from(command.data).map_err(|_| EFAULT)?);
    let fd = command.fd;

    device::with_device(|device| {
        let mut memory = match is_user {
            true => Memory::Pinned(Pinned::new(request)?),
            // SAFETY: The device is bound as long as it's in use here.
            false => Memory::Imported(unsafe { Imported::new(device.device(), fd, request)? }),
        };
        let mut copier = Copier {
            command,
            data,
            is_write,
        };
        let result = copier.copy(device, &mut memory, request, with_cpu);
        if device.is_dead() {
            // It may use the memory one day.
            core::mem::forget(memory);
        }
        result
    })
}

/// Memory that the device accesses.
enum Memory {
    Imported(Imported),
    Pinned(Pinned),
}

/// A copy that is being made.
struct Copier<'a> {
    command: &'a mut p2m_edu_copy,
    data: UserPtr,
    is_write: bool,
}

impl Copier<'_> {
    fn copy(
        &mut self,
        device: &mut device::Access<'_>,
        memory: &mut Memory,
        request: Request,
        with_cpu: bool,
    ) -> Result {
        let data = self.data;
        let is_write = self.is_write;
        if let (Memory::Imported(imported), true) = (&mut *memory, with_cpu && !is_write) {
            imported.access(request, data, false)?;
        }
        self.command.out_segments = match memory {
            Memory::Imported(imported) => {
                imported.for_pieces(request, |piece| self.copy_piece(device, piece))?
            }
            Memory::Pinned(pinned) => {
                let bound = device.device();
                // SAFETY: The device is bound as long as it's in use here, whatever it does.
                let bound = unsafe { &*core::ptr::from_ref(bound) };
                pinned.for_pieces(bound, request, |piece| self.copy_piece(device, piece))?
            }
        };
        if let (Memory::Imported(imported), true) = (memory, with_cpu && is_write) {
            imported.access(request, data, true)?;
        }
        Ok(())
    }

    fn copy_piece(&mut self, device: &mut device::Access<'_>, piece: Piece) -> Result {
        if current!().signal_pending() {
            return Err(EINTR);
        }
        let length = usize::try_from(piece.length)?;
        let done = usize::try_from(self.command.out_done)?;
        let data = UserSlice::new(self.data.wrapping_byte_add(done), length);
        if self.command.out_pieces == 0 {
            self.command.out_address = piece.address;
        }
        match self.is_write {
            true => device.write(piece, |bytes| data.reader().read_slice(bytes))?,
            false => data.writer().write_slice(device.read(piece)?)?,
        }
        // OVERFLOW: They are bounded by the length of the copy.
        self.command.out_pieces += 1;
        self.command.out_done += piece.length;
        Ok(())
    }
}
