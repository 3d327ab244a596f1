// SPDX-License-Identifier: GPL-2.0

//! The command line of p2m.

mod alloc;
mod args;
mod check;
mod crash;
mod dma;
mod dma_check;
mod foreign;
mod format;
mod guard;
mod guest;
mod inspect;
mod kcore;
mod layout;
mod live;
mod plot;
mod region;
mod space;
mod trace;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Args, Command, DmaCommand, Guard};
use crate::guest::GuestCommand;

fn main() -> ExitCode {
    let args = Args::from_command_line();
    let mut out = BufWriter::new(io::stdout().lock());
    // What was printed before an error is still worth to be seen.
    let outcome = run(&args, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Does what was asked for, and returns whether all that was found is good, or what a guest has left.
fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode> {
    let good = match &args.command {
        Command::Info => inspect::info(args, out),
        Command::Stat(of) => inspect::stat(args, of, out),
        Command::Alloc(what) => alloc::alloc(args, what, out),
        Command::Map(what) => inspect::map(args, what, out),
        Command::Translate(what) => inspect::translate(args, what, out),
        Command::Check(of) => inspect::check(args, of, out),
        Command::Plot(what) => plot::plot(args, what, out),
        Command::Space { command } => space::space(args, command, out),
        Command::Dma { command } => match command {
            DmaCommand::Plan(what) => dma::plan(args, what, out),
            DmaCommand::Check(what) => dma_check::check(args, what, out),
            DmaCommand::Export(what) => return dma_check::export(args, what).map(ExitCode::from),
        },
        Command::Walk(what) => space::walk(args, what, out),
        Command::Release(what) => live::release(args, what, out),
        Command::Populate(what) => live::populate(args, what, out),
        Command::Move(what) => live::move_pages(args, what, out),
        Command::Evacuate(what) => live::evacuate(args, what, out),
        Command::Contig(what) => live::contig(args, what, out),
        Command::Collapse(what) => live::collapse(args, what, out),
        Command::Exchange(what) => live::exchange(args, what, out),
        Command::Audit(of) => live::audit(args, of, out),
        Command::Region { command } => region::region(args, command, out),
        Command::Guard {
            command: Guard::Check(what),
        } => guard::check(args, what, out),
        Command::Foreign { command } => foreign::foreign(args, command, out),
        Command::Identity(what) => foreign::identity(args, what, out),
        Command::FailNth(what) => live::fail_nth(args, what, out),
        Command::Trace(what) => trace::trace(args, what, out),
        Command::Crash { command } => crash::crash(args, command, out),
        Command::Guest { command } => match command {
            GuestCommand::Load(what) => guest::load(args, what, out),
            GuestCommand::Run(what) => return guest::run(args, what).map(ExitCode::from),
        },
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Args::described(), "p2m", out);
            Ok(true)
        }
    };
    Ok(if good? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells what went wrong, why, and what to do about it.
fn complain(error: &anyhow::Error) {
    // Whoever closed the pipe has seen enough, as in "p2m map | head".
    let broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(broken_pipe) {
        return;
    }
    eprintln!("p2m: {error:#}");
    let hint = error
        .downcast_ref()
        .and_then(p2m::Error::hint)
        .or_else(|| error.downcast_ref().and_then(p2m_crash::Error::hint))
        .or_else(|| error.downcast_ref().and_then(p2m_guest::Error::hint));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
}
