// SPDX-License-Identifier: GPL-2.0

//! Regions of a domain that is there already.

use std::io::Write;

use anyhow::Result;
use p2m::{Domain, Pfn, Region};
use serde::Serialize;

use crate::args::{Args, CreateRegion, DestroyRegion, NewRegion, RegionCommand, Target};
use crate::format::{json, section};
use crate::inspect::attach;
use crate::layout::Extent;

pub(crate) fn region(args: &Args, command: &RegionCommand, out: &mut impl Write) -> Result<bool> {
    match command {
        RegionCommand::Create(what) => create_in(args, what, out),
        RegionCommand::Destroy(what) => destroy(args, what, out),
        RegionCommand::List(of) => list(args, of, out),
    }
}

/// Creates a region as it was asked for.
pub(crate) fn create(domain: &Domain, what: &NewRegion) -> p2m::Result<Region> {
    let page = domain.info().page_bytes();
    let mut region = what
        .frames
        .region(domain, what.size.div_ceil(page))
        .constraint(what.constraint(page));
    if let Some(base) = what.base {
        region = region.base(base);
    }
    region.create()
}

fn create_in(args: &Args, what: &CreateRegion, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    let region = create(&domain, &what.region)?;
    let extent = Extent::new(region, domain.info().page_bytes());
    if args.json {
        json(out, &extent)?;
    } else {
        section(out, "region", [extent])?;
    }
    Ok(true)
}

#[derive(Serialize)]
struct Destroyed {
    destroyed: Pfn,
}

fn destroy(args: &Args, what: &DestroyRegion, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    domain.destroy(what.base)?;
    let destroyed = what.base;
    if args.json {
        json(out, &Destroyed { destroyed })?;
    } else {
        section(out, "region", [format!("at PFN {destroyed} is destroyed")])?;
    }
    Ok(true)
}

fn list(args: &Args, of: &Target, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, of)?;
    let page = domain.info().page_bytes();
    let extents = domain.regions()?.into_iter();
    let extents: Vec<_> = extents.map(|region| Extent::new(region, page)).collect();
    if args.json {
        json(out, &extents)?;
    } else {
        section(out, "region", extents)?;
    }
    Ok(true)
}
