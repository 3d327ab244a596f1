// SPDX-License-Identifier: GPL-2.0

//! A crash kernel, where nothing is reserved for one.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use p2m_crash::image::{Image, Recipe};
use p2m_crash::machine::Machine;
use p2m_crash::{Crash, Load};

use crate::args::{Args, parse_size};
use crate::format::{Bytes, json, section};

#[derive(Debug, Subcommand)]
pub(crate) enum CrashCommand {
    /// Load a kernel that a panic starts. One that is loaded goes, once the new one is there.
    ///
    /// Its memory is a window that begins far above the memory of the machine. Images and tables have
    /// frames from now on; the rest gets those that are free when the kernel panics.
    Load(CrashLoad),
    /// Show what is loaded, and how much memory it would get if the kernel panicked now.
    Status,
    /// Unload what is loaded.
    Unload,
}

#[derive(Debug, clap::Args)]
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
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    memory: u64,

    /// Don't start it with less; without this, what it's known to need.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    min_memory: Option<u64>,

    /// Have frames for so much of it, whatever is free at a panic: a floor. "all" for everything.
    #[arg(long, value_name = "SIZE", value_parser = parse_hold)]
    hold: Option<u64>,

    /// Whether devices reach its memory by an AMD IOMMU: then their drivers needn't bounce, and
    /// what the old kernel had them do ends.
    #[arg(long, value_enum, default_value_t = Iommu::Auto)]
    iommu: Iommu,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Iommu {
    /// If there is one.
    Auto,
    On,
    Off,
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
        CrashCommand::Load(what) => load(args, &crash, what, out),
        CrashCommand::Status => status(args, &crash, out),
        CrashCommand::Unload => {
            crash.unload()?;
            Ok(true)
        }
    }
}

fn load(args: &Args, crash: &Crash, what: &CrashLoad, out: &mut impl Write) -> Result<bool> {
    let info = crash.info()?;
    let iommu = match what.iommu {
        Iommu::Auto => info.nr_iommus > 0,
        Iommu::On if info.nr_iommus == 0 => bail!("the machine has no AMD IOMMU"),
        Iommu::On => true,
        Iommu::Off => false,
    };
    let machine = Machine::running()?;
    let recipe = Recipe {
        kernel: what.kernel.clone(),
        initrd: what.initrd.clone(),
        append: what.append.clone(),
        memory: what.memory.next_multiple_of(4096),
        iommu,
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
    };
    fs::write(POST_NOTIFIERS, "Y").context(POST_NOTIFIERS)?;
    crash.load(&image, how)?;
    status(args, crash, out)
}

fn status(args: &Args, crash: &Crash, out: &mut impl Write) -> Result<bool> {
    let status = crash.status()?;
    if args.json {
        json(out, &status)?;
        return Ok(true);
    }
    if !status.loaded {
        section(out, "crash", ["no kernel is loaded"])?;
        return Ok(true);
    }
    let enough = status.would_get >= status.min_memory;
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
            match status.iommu {
                true => "devices reach it by the IOMMU".to_owned(),
                false => "no IOMMU: devices reach its memory only by low bounce buffers".to_owned(),
            },
        ],
    )?;
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
    )?;
    Ok(enough)
}
