// SPDX-License-Identifier: GPL-2.0

//! A crash kernel, where nothing is reserved for one.

use std::fs;
use std::io::{self, Write};
use std::path::{self, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use p2m_crash::image::{Image, Recipe};
use p2m_crash::machine::Machine;
use p2m_crash::{Crash, LOW_GRAIN, Load, MAX_LOW, MAX_MEMORY, Status};
use serde::{Deserialize, Serialize};

use crate::args::{Args, parse_offset, parse_size};
use crate::format::{Bytes, json, section};

#[derive(Debug, Subcommand)]
pub(crate) enum CrashCommand {
    /// Load a kernel that a panic starts. One that is loaded goes, once the new one is there.
    ///
    /// Its memory is a window that begins far above the memory of the machine. Images and tables have
    /// frames from now on; the rest gets those that are free when the kernel panics.
    Load(CrashLoad),
    /// Load again, as the last time, if memory or processors were added or removed since. What was
    /// loaded stays until then.
    Refresh,
    /// Show what is loaded, and how much memory it would get if the kernel panicked now. Fails if
    /// nothing is loaded, or something that it would be too little for, or that is stale.
    Status,
    /// Unload what is loaded.
    Unload,
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub(crate) struct CrashLoad {
    /// The kernel, a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// The initramfs, which saves /proc/vmcore.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,

    /// Add words to the kernel's command line, behind those that it needs.
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        hide_default_value = true
    )]
    append: String,

    /// The memory of the crash kernel, 1G at most.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, default_value = "256M")]
    memory: u64,

    /// Don't start it with less; without this, what it's known to need.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    min_memory: Option<u64>,

    /// Have frames for so much of it, whatever is free at a panic: a floor. "all" for everything.
    #[arg(long, value_name = "SIZE", value_parser = parse_hold)]
    hold: Option<u64>,

    /// Whether devices reach its memory by an AMD IOMMU: then their drivers needn't bounce, and
    /// what the old kernel had them do ends.
    #[arg(long, value_enum, default_value_t = Iommu::Auto)]
    iommu: Iommu,

    /// Without an IOMMU, have so much memory below 4 GiB for DMA, half of it to bounce through. The
    /// initramfs has to load p2m_crash_helper before any driver that uses DMA. 128M at most, 0 for none.
    #[arg(long, value_name = "SIZE", value_parser = parse_dma_memory, default_value = "16M")]
    dma_memory: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
enum Iommu {
    /// If there is one.
    Auto,
    On,
    Off,
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size > MAX_MEMORY => Err("no crash kernel has more than 1G".to_owned()),
        size => Ok(size),
    }
}

fn parse_dma_memory(text: &str) -> Result<u64, String> {
    match parse_offset(text)? {
        size if size > MAX_LOW => Err("there is no more than 128M".to_owned()),
        size => Ok(size),
    }
}

fn parse_hold(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        size => parse_size(size),
    }
}

/// Where the kernel is told to have stopped processors save their registers before it tells anybody of
/// a panic.
const POST_NOTIFIERS: &str = "/sys/module/kernel/parameters/crash_kexec_post_notifiers";

pub(crate) fn crash(args: &Args, command: &CrashCommand, out: &mut impl Write) -> Result<bool> {
    let device = match args.device.to_str() {
        Some(p2m::DEVICE) => p2m_crash::DEVICE.as_ref(),
        _ => args.device.as_path(),
    };
    let crash = Crash::open(device)?;
    match command {
        CrashCommand::Load(what) => {
            crash.lock()?;
            load(&crash, what)?;
            remember(what)?;
            status(args, &crash, out)
        }
        CrashCommand::Refresh => {
            // There may be one for each processor and piece of memory that came, all at once.
            crash.lock()?;
            refresh(&crash)?;
            status(args, &crash, out)
        }
        CrashCommand::Status => status(args, &crash, out),
        CrashCommand::Unload => {
            crash.lock()?;
            crash.unload()?;
            // It may be that nothing was remembered.
            let _ = fs::remove_file(LAST);
            Ok(true)
        }
    }
}

/// What was loaded the last time, for [`refresh()`].
const LAST: &str = "/run/p2m-crash.json";

fn remember(what: &CrashLoad) -> Result<()> {
    let what = CrashLoad {
        kernel: path::absolute(&what.kernel)?,
        initrd: path::absolute(&what.initrd)?,
        ..what.clone()
    };
    // Whoever reads it finds all of it.
    let new = format!("{LAST}.new");
    fs::write(&new, serde_json::to_vec(&what)?).context(new.clone())?;
    fs::rename(&new, LAST).context(LAST)
}

fn refresh(crash: &Crash) -> Result<()> {
    let now = crash.status()?;
    if !now.loaded || !now.stale {
        return Ok(());
    }
    let last = fs::read(LAST).context(LAST)?;
    load(crash, &serde_json::from_slice(&last).context(LAST)?)
}

fn load(crash: &Crash, what: &CrashLoad) -> Result<()> {
    // Memory comes in many pieces, one after the other.
    const MOST_TRIES: u32 = 100;

    let mut tries = 0;
    loop {
        tries += 1;
        match try_load(crash, what) {
            Err(error)
                if tries < MOST_TRIES
                    && error.downcast_ref().is_some_and(p2m_crash::Error::is_stale) => {}
            result => return result,
        }
    }
}

fn try_load(crash: &Crash, what: &CrashLoad) -> Result<()> {
    let info = crash.info()?;
    let iommu = match what.iommu {
        Iommu::Auto => info.nr_iommus > 0,
        Iommu::On if info.nr_iommus == 0 => bail!("the machine has no AMD IOMMU"),
        Iommu::On => true,
        Iommu::Off => false,
    };
    let machine = Machine::running()?;
    let low = match what.dma_memory.next_multiple_of(LOW_GRAIN) {
        bytes if bytes > 0 && !iommu => crash.take_low(bytes)?,
        _ => Vec::new(),
    };
    let recipe = Recipe {
        kernel: what.kernel.clone(),
        initrd: what.initrd.clone(),
        append: what.append.clone(),
        memory: what.memory.next_multiple_of(4096),
        iommu,
        low,
    };
    let image = Image::new(&recipe, &machine, &info)?;
    let hold = what.hold.unwrap_or(0);
    let how = Load {
        min_memory: what
            .min_memory
            .map_or(image.min_memory(), |size| size.next_multiple_of(4096)),
        held_memory: match hold {
            u64::MAX => 0,
            size => size.min(recipe.memory).next_multiple_of(4096),
        },
        hold_all: hold == u64::MAX,
        iommu,
        low: !recipe.low.is_empty(),
        generation: info.generation,
    };
    fs::write(POST_NOTIFIERS, "Y").context(POST_NOTIFIERS)?;
    Ok(crash.load(&image, how)?)
}

/// Prints how things are, and returns whether a panic would start what is loaded, and that's right for
/// the machine.
fn status(args: &Args, crash: &Crash, out: &mut impl Write) -> Result<bool> {
    let status = crash.status()?;
    let enough = status.would_get >= status.min_memory;
    let good = status.loaded && enough && !status.stale;
    match args.json {
        true => json(out, &status)?,
        false => print(&status, enough, out)?,
    }
    Ok(good)
}

fn print(status: &Status, enough: bool, out: &mut impl Write) -> io::Result<()> {
    if !status.loaded {
        return section(out, "crash", ["no kernel is loaded"]);
    }
    section(
        out,
        "crash",
        [
            format!(
                "a kernel with {} at {:#x}",
                Bytes(status.memory),
                status.base
            ),
            format!(
                "{} held, and {} of tables",
                Bytes(status.held),
                Bytes(status.tables)
            ),
            match (status.iommu, status.low) {
                (true, _) => "devices reach it by the IOMMU".to_owned(),
                (false, 0) => "devices don't reach it".to_owned(),
                (false, low) => format!(
                    "devices reach {} below 4 GiB, and it bounces through these",
                    Bytes(low)
                ),
            },
        ],
    )?;
    if status.stale {
        let line = "memory or processors were added or removed since: p2m crash refresh";
        section(out, "stale", [line])?;
    }
    let verdict = match enough {
        true => "enough",
        false => "TOO LITTLE",
    };
    section(
        out,
        "panic",
        [format!(
            "now it would get {} of {} that are free, which is {verdict}: it needs {}",
            Bytes(status.would_get - status.held),
            Bytes(status.free),
            Bytes(status.min_memory.saturating_sub(status.held))
        )],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;
    use crate::args::tests::parse;

    fn load(rest: &str) -> Option<CrashLoad> {
        let line = format!("p2m crash load --kernel k --initrd i {rest}");
        match parse(&line).ok()?.command {
            Command::Crash {
                command: CrashCommand::Load(load),
            } => Some(load),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_is_what_there_can_be() {
        type Field = fn(&CrashLoad) -> Option<u64>;
        let memory: Field = |load| Some(load.memory);
        let min_memory: Field = |load| load.min_memory;
        let hold: Field = |load| load.hold;
        let dma_memory: Field = |load| Some(load.dma_memory);
        for (rest, field, is) in [
            ("", memory, Some(256 << 20)),
            ("--memory 1G", memory, Some(1 << 30)),
            ("", min_memory, None),
            ("--min-memory 1G", min_memory, Some(1 << 30)),
            ("", hold, None),
            ("--hold 5000", hold, Some(5000)),
            ("--hold all", hold, Some(u64::MAX)),
            ("", dma_memory, Some(16 << 20)),
            ("--dma-memory 0", dma_memory, Some(0)),
            ("--dma-memory 128M", dma_memory, Some(128 << 20)),
        ] {
            assert_eq!(load(rest).map(|load| field(&load)), Some(is), "{rest}");
        }
        for wrong in [
            "--memory 0",
            "--memory 1025M",
            "--memory 0xffffffffffffffff",
            "--min-memory 0",
            "--min-memory 2G",
            "--hold 0",
            "--dma-memory 129M",
            "--dma-memory 16777215T",
            "--dma-memory 0xffffffffffffffff",
        ] {
            assert!(load(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_is_remembered_is_what_was_asked_for() {
        for rest in ["", "--min-memory 64M --hold all --iommu off --dma-memory 0"] {
            let line = format!("{rest} --append a=b");
            let load = load(&line).expect("arguments");
            let text = serde_json::to_vec(&load).expect("JSON");
            let again: CrashLoad = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(format!("{again:?}"), format!("{load:?}"));
        }
    }
}
