// SPDX-License-Identifier: GPL-2.0

//! Measures p2m side by side with what people use today.

mod arena;
mod guest;
mod host;
mod paging;
mod plot;
mod race;
mod report;
mod sys;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use report::{Part, Report};

/// Measures p2m side by side with what people use today.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the pure code, here.
    Host {
        /// Where the results go.
        file: PathBuf,
        #[command(flatten)]
        only: Only,
    },
    /// Measure the module, which has to be loaded. It changes settings of the kernel: for guests.
    Guest {
        /// Where the results go.
        file: PathBuf,
        #[command(flatten)]
        only: Only,
    },
    /// Make a table and a plot of `host.json`, and of `guest.json` if it's there.
    Report {
        /// Where they are.
        directory: PathBuf,
    },
}

/// What is measured: all, if nothing is named.
#[derive(clap::Args)]
struct Only {
    /// Measure only what has this word in its title, as "destroy" or "m2p lookup"; may be repeated.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
}

impl Only {
    /// Returns whether something of one of these titles is asked for.
    fn wants(&self, titles: &[&str]) -> bool {
        let is_named = |word: &String| titles.iter().any(|title| title.contains(word.as_str()));
        self.only.is_empty() || self.only.iter().any(is_named)
    }
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Host { file, only } => host::measure(&only).write(&file),
        Command::Guest { file, only } => guest::measure(&file, &only),
        Command::Report { directory } => {
            let guest = directory.join("guest.json");
            let report = Report {
                host: Part::read(&directory.join("host.json"))?,
                guest: guest.exists().then(|| Part::read(&guest)).transpose()?,
            };
            let write = |name: &str, text: &str| {
                let path = directory.join(name);
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
            };
            let table = report.markdown()?;
            write("bench.json", &serde_json::to_string_pretty(&report)?)?;
            write("bench.md", &table)?;
            plot::write(&report, &directory.join("bench.png"))?;
            print!("{table}");
            Ok(())
        }
    }
}
