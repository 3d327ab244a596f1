// SPDX-License-Identifier: GPL-2.0

//! A crash kernel that is loaded, and what happens to it when the old kernel panics.

use core::{
    ptr,
    sync::atomic::{
        AtomicBool,
        AtomicPtr,
        AtomicU64,
        Ordering, //
    }, //
};

use kernel::{
    bindings,
    error::to_result,
    fmt::{
        self,
        Display,
        Formatter, //
    },
    prelude::*,
    uaccess::UserSliceReader, //
};

use crate::{
    abi,
    compat::{
        ENODATA,
        EOPNOTSUPP,
        ESTALE, //
    },
    engine::{
        self,
        End,
        Engine,
        Refusal,
        Start, //
    },
    ffi,
    frames::{
        self,
        LowMemory,
        Pages,
        Ram, //
    },
    iommu::{
        self,
        DeviceTable, //
    },
    pure::frame::{
        Pfn,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    svm::Svm,
    window::{
        self,
        NestedSpace,
        Window, //
    },
    Session, //
};

/// Free pages that a panic can't count on, as they will be taken in the meantime: 4 MiB.
const MARGIN_PAGES: u64 = 1024;

/// The first value of checksums.
const CHECKSUM_START: u32 = !0;

/// Returns the number of pages that some bytes are.
fn pages(bytes: u64) -> Result<usize> {
    if bytes % PAGE_SIZE as u64 != 0 {
        return Err(EINVAL);
    }
    if bytes > abi::P2M_CRASH_MAX_MEMORY.into() {
        return Err(E2BIG);
    }
    // CAST: It was just compared.
    Ok(bytes as usize / PAGE_SIZE)
}

/// Returns how many pages are free now.
fn nr_free() -> u64 {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_crash_nr_free() }
}

/// Returns how many pages a panic could take now, up to `nr`: those that are free, and if that is too
/// few, some of clean page cache.
fn nr_available(ram: &Ram, nr: u64) -> u64 {
    let nr_free = nr_free().min(nr);
    // CAST: They are numbers of pages.
    let missing = (nr - nr_free) as usize;
    nr_free + ram.cache_frames().take(missing).count() as u64
}

/// Returns a number that is another one whenever memory or processors were added or removed.
fn generation() -> u64 {
    // SAFETY: It has no requirements.
    unsafe { ffi::p2m_crash_generation() }
}

/// Returns why there can't be a crash kernel here, or where its window is.
fn place() -> Result<Pfn, Refusal> {
    match engine::refusal() {
        Some(refusal) => Err(refusal),
        None => window::base().ok_or(Refusal::NoHole),
    }
}

/// Why a crash kernel isn't entered.
enum Obstacle {
    /// What was loaded isn't what it was.
    Corrupted { is: u32, was: u32 },
    /// There are too few free pages.
    TooFew { nr_pages: usize, needed: usize },
    /// The tables can't be built.
    Tables(Error),
    /// The engine couldn't, or it ended.
    Engine(End),
}

impl Display for Obstacle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupted { is, was } => {
                write!(
                    f,
                    "its image is corrupted: checksum {is:#010x}, was {was:#010x}"
                )
            }
            Self::TooFew { nr_pages, needed } => {
                write!(f, "too few pages are free: has {nr_pages}, needs {needed}")
            }
            Self::Tables(error) => write!(f, "its tables can't be built: {error:?}"),
            Self::Engine(end) => end.fmt(f),
        }
    }
}

/// A crash kernel that is loaded.
pub(crate) struct Image {
    base: Pfn,
    nested: NestedSpace,
    engine: Svm,
    device_table: Option<DeviceTable>,
    ram: Ram,
    low: Option<LowMemory>,
    min_pages: usize,
    /// Where the size of the memory is, if it's to be told.
    size_slot: Option<usize>,
    /// The first page of where it's told of its frames, if it's to be.
    frames_page: Option<usize>,
    /// Of the machine that it was made for.
    generation: u64,
    checksum: u32,
}

impl Image {
    /// Loads a crash kernel, which gets `low`.
    pub(crate) fn new(command: &abi::p2m_crash_load, low: Option<LowMemory>) -> Result<Self> {
        if command.__reserved != 0 || command.nr_segments == 0 {
            return Err(EINVAL);
        }
        if command.nr_segments > abi::P2M_CRASH_MAX_SEGMENTS {
            return Err(E2BIG);
        }
        let nr_pages = pages(command.memory)?;
        let min_pages = pages(command.min_memory)?;
        let nr_held = pages(command.held_memory)?;
        if nr_pages == 0 || min_pages > nr_pages || nr_held > nr_pages {
            return Err(EINVAL);
        }
        let generation = match command.generation {
            0 => generation(),
            generation => generation,
        };
        let base = place().map_err(|refusal| match refusal {
            Refusal::LockedDown => EPERM,
            _ => EOPNOTSUPP,
        })?;
        let has_dma = command.flags & abi::P2M_CRASH_IOMMU != 0;
        if has_dma && iommu::nr_iommus() == 0 {
            return Err(EOPNOTSUPP);
        }
        // With the tables of the old kernel, neither DMA nor interrupts come where they should.
        if !has_dma && iommu::is_active() {
            return Err(EBUSY);
        }

        let mut window = Window::new(base, nr_pages)?;
        let mut segments =
            abi::user_slice::<abi::p2m_crash_segment>(command.segments, command.nr_segments)?
                .reader();
        for _ in 0..command.nr_segments {
            let mut segment = abi::p2m_crash_segment::default();
            segments.read_slice(segment.as_mut_bytes())?;
            copy(&mut window, &segment, min_pages)?;
        }
        let is_in_segment = |offset: u64, len: usize| {
            let place = usize::try_from(offset).ok()?;
            let last = place.checked_add(len - 1)?;
            window.frame(place / PAGE_SIZE)?;
            (place / PAGE_SIZE == last / PAGE_SIZE).then_some(place)
        };
        for offset in [command.entry, command.boot_params, command.page_tables] {
            is_in_segment(offset, 1).ok_or(EINVAL)?;
        }
        let size_slot = match command.size_slot {
            0 => None,
            offset => Some(is_in_segment(offset, size_of::<u64>()).ok_or(EINVAL)?),
        };
        let frames_page = frames_page(command, &window, min_pages)?;
        let nr_held = match command.flags & abi::P2M_CRASH_HOLD_ALL {
            0 => nr_held,
            _ => nr_pages,
        };
        window.hold(0, nr_held)?;
        let ram = Ram::now()?;
        // Not less than what a panic could count on now.
        let missing = min_pages.saturating_sub(window.nr_held(min_pages)) as u64;
        if missing > 0 && nr_available(&ram, missing + MARGIN_PAGES) < missing + MARGIN_PAGES {
            return Err(ENOMEM);
        }

        let low_ranges = match &low {
            Some(low) => low.ranges()?,
            None => KVec::new(),
        };
        let mut nested = NestedSpace::new(window, &ram, &low_ranges, has_dma)?;
        // OVERFLOW: Offsets are in the window, as was just checked, and that is below 2^52.
        let start = base.get() << PAGE_SHIFT;
        let start = Start {
            rip: start + command.entry,
            rsi: start + command.boot_params,
            cr3: start + command.page_tables,
        };
        let engine = Svm::new(start, nested.root())?;
        let device_table = nested.dma_root().map(DeviceTable::new).transpose()?;
        let mut image = Self {
            base,
            nested,
            engine,
            device_table,
            ram,
            low,
            min_pages,
            size_slot,
            frames_page,
            generation,
            checksum: 0,
        };
        image.checksum = image.sum();
        if image.is_stale() {
            return Err(ESTALE);
        }
        Ok(image)
    }

    /// Returns how many pages lack a frame, of those that it needs.
    fn nr_missing(&self) -> usize {
        // OVERFLOW: There are as many pages.
        self.min_pages - self.nested.window().nr_held(self.min_pages)
    }

    /// Returns whether memory or processors were added or removed since.
    fn is_stale(&self) -> bool {
        generation() != self.generation
    }

    /// Returns the checksum of all that matters.
    fn sum(&self) -> u32 {
        let crc = self.nested.window().checksum(CHECKSUM_START);
        let crc = self.engine.checksum(crc);
        let table = self.device_table.as_ref();
        table.map_or(crc, |table| table.checksum(crc))
    }

    /// Tells how things are.
    pub(crate) fn status(&self, status: &mut abi::p2m_crash_status) {
        const PAGE: u64 = PAGE_SIZE as u64;

        let window = self.nested.window();
        let nr_pages = window.nr_pages();
        let nr_held = window.nr_held(nr_pages) as u64;
        let missing = nr_pages as u64 - nr_held;
        status.out_loaded = 1;
        // OVERFLOW: All of them are numbers of pages of a machine.
        status.out_base = self.base.get() * PAGE;
        status.out_memory = nr_pages as u64 * PAGE;
        status.out_min_memory = self.min_pages as u64 * PAGE;
        status.out_held = nr_held * PAGE;
        status.out_tables = window.nr_tables() as u64 * PAGE + self.engine.size() as u64;
        if let Some(table) = &self.device_table {
            status.out_flags |= abi::P2M_CRASH_IOMMU;
            status.out_tables += table.size() as u64;
        }
        if nr_held == nr_pages as u64 {
            status.out_flags |= abi::P2M_CRASH_HOLD_ALL;
        }
        status.out_stale = self.is_stale().into();
        if let Some(low) = &self.low {
            status.out_flags |= abi::P2M_CRASH_LOW_MEMORY;
            status.out_low = low.nr_pages() * PAGE;
        }
        let nr_missing = self.nr_missing() as u64;
        let available = nr_available(&self.ram, nr_missing).max(missing.min(nr_free()));
        status.out_would_get = (nr_held + available) * PAGE;
    }

    /// Gives the window what is free.
    fn fill(&mut self) -> Result<(), Obstacle> {
        let mut frames = self.ram.free_frames();
        let mut filled = self.nested.fill(&mut frames).map_err(Obstacle::Tables)?;
        let nr_pages = self.nested.window().nr_pages();
        let missing = self.nr_missing();
        if missing > 0 {
            // No more than it needs.
            let mut frames = self.ram.cache_frames().take(missing);
            filled = self.nested.fill(&mut frames).map_err(Obstacle::Tables)?;
            let taken = missing - self.nr_missing();
            pr_emerg!("too few are free: {taken} of clean page cache are taken\n");
        }
        pr_emerg!("{filled} of {nr_pages} pages have frames\n");
        if filled < self.min_pages {
            return Err(Obstacle::TooFew {
                nr_pages: filled,
                needed: self.min_pages,
            });
        }
        if let Some((slot, mfn)) = self.size_slot.and_then(|slot| {
            let mfn = self.nested.window().frame(slot / PAGE_SIZE)?;
            Some((slot, mfn))
        }) {
            // SAFETY: A frame of the window, which is ours until the crash kernel is entered.
            let bytes = unsafe { &mut *frames::content(mfn) };
            let word = bytes.get_mut(slot % PAGE_SIZE..);
            if let Some(word) = word.and_then(|bytes| bytes.first_chunk_mut()) {
                let lacking = (nr_pages - filled) as u64 * PAGE_SIZE as u64;
                *word = u64::from_le_bytes(*word)
                    .wrapping_sub(lacking)
                    .to_le_bytes();
            }
        }
        self.tell_frames();
        Ok(())
    }

    /// Tells the crash kernel which frames it has.
    fn tell_frames(&mut self) {
        const HEADER: usize = size_of::<abi::p2m_crash_frames>();

        let Some(first_page) = self.frames_page else {
            return;
        };
        let window = self.nested.window();
        let write = |offset: usize, value: &[u8]| {
            let Some(mfn) = window.frame(first_page + offset / PAGE_SIZE) else {
                return;
            };
            // SAFETY: A frame of the window, which is ours until the crash kernel is entered.
            let bytes = unsafe { &mut *frames::content(mfn) };
            let place = bytes.get_mut(offset % PAGE_SIZE..);
            if let Some(place) = place.and_then(|bytes| bytes.get_mut(..value.len())) {
                place.copy_from_slice(value);
            }
        };
        let mut nr_frames = 0;
        for mfn in (0..window.nr_pages()).filter_map(|page| window.frame(page)) {
            // All that there can be are below 2^31.
            if let Ok(number) = u32::try_from(mfn.get()) {
                // OVERFLOW: There is room for all frames of the window.
                write(HEADER + nr_frames * size_of::<u32>(), &number.to_le_bytes());
                nr_frames += 1;
            }
        }
        let header = abi::p2m_crash_frames {
            magic: abi::P2M_CRASH_FRAMES_MAGIC,
            nr_frames: nr_frames as u64,
        };
        write(0, header.as_bytes());
    }

    /// Starts the crash kernel. Returns only if that can't be done.
    ///
    /// # Safety
    ///
    /// The kernel has panicked, and no other processor runs.
    unsafe fn enter(&mut self) -> Obstacle {
        let is = self.sum();
        if is != self.checksum {
            return Obstacle::Corrupted {
                is,
                was: self.checksum,
            };
        }
        if self.is_stale() {
            pr_emerg!("it was loaded before memory or processors were added or removed\n");
        }
        if let Err(obstacle) = self.fill() {
            return obstacle;
        }
        // SAFETY: By the safety requirements of this function. Nobody waits for interrupts any more.
        unsafe { ffi::p2m_crash_quiesce() };
        if let Some(table) = &mut self.device_table {
            // SAFETY: By the safety requirements of this function. They may reach the window.
            if !unsafe { table.switch() } {
                // They may do so nevertheless.
                pr_emerg!("an IOMMU doesn't say that it uses the new tables\n");
            }
        }
        // SAFETY: By the safety requirements of this function. The window is all that can be written,
        // and nobody has what is in it.
        let end = unsafe { self.engine.run() };
        pr_emerg!("the crash kernel is over: {end}\n");
        if end != End::NotEntered {
            // Nothing is left of the old kernel that could go on.
            // SAFETY: It has no requirements.
            unsafe { ffi::p2m_crash_reset() };
        }
        Obstacle::Engine(end)
    }
}

/// Returns the first page of where the crash kernel is told of its frames, if it's to be: in the first
/// `min_pages` pages of a window, and in no segment.
fn frames_page(
    command: &abi::p2m_crash_load,
    window: &Window,
    min_pages: usize,
) -> Result<Option<usize>> {
    if command.frames == 0 {
        return match command.frames_length {
            0 => Ok(None),
            _ => Err(EINVAL),
        };
    }
    let first = pages(command.frames)?;
    let length = usize::try_from(command.frames_length).map_err(|_| E2BIG)?;
    let needed = size_of::<abi::p2m_crash_frames>() + window.nr_pages() * size_of::<u32>();
    let end = first.checked_add(length.div_ceil(PAGE_SIZE)).ok_or(E2BIG)?;
    if length < needed || end > min_pages {
        return Err(EINVAL);
    }
    if (first..end).any(|page| window.frame(page).is_some()) {
        return Err(EEXIST);
    }
    Ok(Some(first))
}

/// Copies a segment into the first `nr_pages` pages of a window, which get frames for it.
fn copy(window: &mut Window, segment: &abi::p2m_crash_segment, nr_pages: usize) -> Result {
    let first = pages(segment.offset)?;
    let length = usize::try_from(segment.length).map_err(|_| E2BIG)?;
    let end = first.checked_add(length.div_ceil(PAGE_SIZE)).ok_or(E2BIG)?;
    if length == 0 || end > nr_pages {
        return Err(EINVAL);
    }
    if (first..end).any(|page| window.frame(page).is_some()) {
        return Err(EEXIST);
    }
    window.hold(first, end)?;
    let nr = u32::try_from(length).map_err(|_| E2BIG)?;
    let mut reader = abi::user_slice::<u8>(segment.data, nr)?.reader();
    for page in first..end {
        copy_page(window, page, &mut reader)?;
        // SAFETY: It has no requirements.
        if unsafe { ffi::p2m_crash_is_killed() } {
            return Err(EINTR);
        }
    }
    Ok(())
}

fn copy_page(window: &Window, page: usize, reader: &mut UserSliceReader) -> Result {
    let mfn = window.frame(page).ok_or(EINVAL)?;
    // SAFETY: The frame is ours, and nobody else knows it.
    let bytes = unsafe { &mut *frames::content(mfn) };
    let length = reader.len().min(PAGE_SIZE);
    reader.read_slice(bytes.get_mut(..length).ok_or(EINVAL)?)
}

kernel::sync::global_lock! {
    // SAFETY: `Notifier::new()` initialises it, before anything is loaded.
    unsafe(uninit) static LOADING: Mutex<()> = ();
}

/// The crash kernel that a panic starts, or null.
///
/// # Invariants
///
/// It's null or came from a `KBox<Image>`, and is only changed with `LOADING` held.
static LOADED: AtomicPtr<Image> = AtomicPtr::new(ptr::null_mut());

/// Whether the image that is loaded was entered. A fault in there panics again.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);

/// Where the registers of the processor that panics are written. Null, or a page.
static NOTE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Called when the kernel panics.
///
/// # Safety
///
/// `registers` is valid, the kernel has panicked, and no other processor runs.
unsafe extern "C" fn panicked(registers: *const bindings::pt_regs) {
    let note = NOTE.load(Ordering::Acquire);
    let image = LOADED.load(Ordering::Acquire);
    if image.is_null() || note.is_null() || IS_ENTERED.swap(true, Ordering::AcqRel) {
        return;
    }
    pr_emerg!("entering the crash kernel\n");
    // SAFETY: It's a page that is there as long as the notifier. The registers are valid by the safety
    // requirements of this function.
    unsafe { ffi::p2m_crash_write_note(note, PAGE_SIZE, registers) };
    // SAFETY: By the invariants of `LOADED`, it's an image. `panic()` stops all other processors before
    // it calls notifiers, and here it's entered once. So nobody frees or uses it: a processor that was
    // freeing one had put another one here before.
    let obstacle = unsafe { (*image).enter() };
    pr_emerg!("the crash kernel wasn't started: {obstacle}\n");
}

/// Keeps the module told of panics.
///
/// # Invariants
///
/// `NOTE` is the address of its page.
pub(crate) struct Notifier {
    _watch: Watch,
    _found: Found,
    _note: Pages,
}

/// Interrupt controllers and IOMMUs whose registers are mapped.
struct Found;

impl Drop for Found {
    fn drop(&mut self) {
        // SAFETY: They were looked for before. Nobody uses them: no panic is told of any more.
        unsafe {
            ffi::p2m_crash_forget_iommus();
            ffi::p2m_crash_forget_interrupts();
        }
    }
}

/// Keeps the module told of what is added and removed.
struct Watch;

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: It's watched as long as there is one of these.
        unsafe { ffi::p2m_crash_unwatch_machine() };
    }
}

impl Notifier {
    /// Begins, once.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: It's called once, when the module is loaded.
        unsafe { LOADING.init() };
        let mut note = Pages::new(0)?;
        NOTE.store(note.bytes_mut().as_mut_ptr().cast(), Ordering::Release);
        NOTE_ADDRESS.store(note.address(), Ordering::Release);
        // SAFETY: It's called once.
        to_result(unsafe { ffi::p2m_crash_find_interrupts() })?;
        let found = Found;
        // SAFETY: As above.
        to_result(unsafe { ffi::p2m_crash_find_iommus() })?;
        // SAFETY: As above.
        to_result(unsafe { ffi::p2m_crash_watch_machine() })?;
        let watch = Watch;
        // SAFETY: As above, and the function is there as long as the module.
        to_result(unsafe { ffi::p2m_crash_start(panicked) })?;
        // INVARIANT: It was stored above.
        Ok(Self {
            _watch: watch,
            _found: found,
            _note: note,
        })
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: It was started by `new()`. Nothing is loaded, as otherwise the module couldn't go.
        unsafe { ffi::p2m_crash_stop() };
        NOTE.store(ptr::null_mut(), Ordering::Release);
    }
}

/// The physical address of the note.
static NOTE_ADDRESS: AtomicU64 = AtomicU64::new(0);

/// Puts an image, or none, in the place of another one, which is returned. The caller holds `LOADING`.
fn replace(image: Option<KBox<Image>>) -> Option<KBox<Image>> {
    let new = image.map_or(ptr::null_mut(), KBox::into_raw);
    // INVARIANT: It came from a `KBox`.
    let old = LOADED.swap(new, Ordering::AcqRel);
    // SAFETY: By the invariants of `LOADED`, it came from a `KBox`. Nobody else has it now.
    (!old.is_null()).then(|| unsafe { KBox::from_raw(old) })
}

/// `P2M_CRASH_INFO`
pub(crate) fn info(_: &Session, info: &mut abi::p2m_crash_info) -> Result {
    let may_load = |base| engine::may_load().then_some(base).ok_or(Refusal::NoLoads);
    match place().and_then(may_load) {
        Ok(base) => {
            info.out_refusal = abi::P2M_CRASH_OK;
            info.out_base = base.get() << PAGE_SHIFT;
        }
        Err(refusal) => {
            info.out_refusal = refusal.number();
            info.out_base = 0;
        }
    }
    info.__reserved = 0;
    info.out_note = NOTE_ADDRESS.load(Ordering::Acquire);
    info.out_note_size = PAGE_SIZE as u64;
    info.out_nr_iommus = iommu::nr_iommus();
    info.out_generation = generation();
    // SAFETY: They have no requirements.
    unsafe {
        info.out_nr_levels = ffi::p2m_crash_nr_levels();
        info.out_tsc_khz = ffi::p2m_crash_tsc_khz();
    }
    Ok(())
}

/// `P2M_CRASH_LOW`
pub(crate) fn low(session: &Session, command: &mut abi::p2m_crash_low) -> Result {
    let grain = u64::from(abi::P2M_CRASH_LOW_GRAIN);
    command.out_nr_ranges = 0;
    engine::permit()?;
    if command.memory == 0 || command.memory % grain != 0 {
        return Err(EINVAL);
    }
    if command.memory > abi::P2M_CRASH_MAX_LOW.into() {
        return Err(E2BIG);
    }
    let taken = LowMemory::take(command.memory >> PAGE_SHIFT)?;
    let ranges = taken.ranges()?;
    command.out_nr_ranges = u32::try_from(ranges.len()).map_err(|_| E2BIG)?;
    if command.out_nr_ranges > command.nr_ranges {
        return Err(ENOSPC);
    }
    let mut writer =
        abi::user_slice::<abi::p2m_crash_range>(command.ranges, command.out_nr_ranges)?.writer();
    for &(first, end) in &ranges {
        // OVERFLOW: They are below 4 GiB.
        let range = abi::p2m_crash_range {
            start: first << PAGE_SHIFT,
            length: (end - first) << PAGE_SHIFT,
        };
        writer.write_slice(range.as_bytes())?;
    }
    let old = session.low.lock().replace(taken);
    drop(old);
    Ok(())
}

/// `P2M_CRASH_LOAD`
pub(crate) fn load(session: &Session, command: &mut abi::p2m_crash_load) -> Result {
    let low = match command.flags & abi::P2M_CRASH_LOW_MEMORY {
        0 => None,
        _ => Some(session.low.lock().take().ok_or(ENODATA)?),
    };
    let _guard = LOADING.lock();
    engine::permit_load()?;
    let image = KBox::new(Image::new(command, low)?, GFP_KERNEL)?;
    if replace(Some(image)).is_none() {
        // SAFETY: An open file holds the module. While something is loaded, it can't go.
        unsafe { ffi::p2m_crash_get_module() };
    }
    Ok(())
}

/// `P2M_CRASH_UNLOAD`
pub(crate) fn unload(_: &Session, _: &mut abi::p2m_crash_unload) -> Result {
    let _guard = LOADING.lock();
    engine::permit()?;
    drop(replace(None).ok_or(ENOENT)?);
    // SAFETY: `load()` got it.
    unsafe { ffi::p2m_crash_put_module() };
    Ok(())
}

/// `P2M_CRASH_STATUS`
pub(crate) fn status(_: &Session, status: &mut abi::p2m_crash_status) -> Result {
    let _guard = LOADING.lock();
    *status = abi::p2m_crash_status {
        size: status.size,
        // OVERFLOW: A number of bytes of a machine.
        out_free: nr_free() * PAGE_SIZE as u64,
        ..abi::p2m_crash_status::default()
    };
    // SAFETY: By the invariants of `LOADED`, it's null or an image, which is neither freed nor changed
    // while we have the lock.
    if let Some(image) = unsafe { LOADED.load(Ordering::Acquire).as_ref() } {
        image.status(status);
    }
    Ok(())
}
