// SPDX-License-Identifier: GPL-2.0

//! Changes of P2Ms as they happen, from the tracepoints of the module.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use p2m::{Entry, Pfn, pages};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use serde::Serialize;
use signal_hook::consts::TERM_SIGNALS;

use crate::args::{Args, Target, Trace};
use crate::format::{Count, section};
use crate::inspect::descriptor;

/// How long it takes at most until a signal is noticed.
const PATIENCE: Duration = Duration::from_millis(200);

/// Room for events of each processor, in KiB: some 100000, until they are read.
const BUFFER_KIB: u32 = 8192;

/// What the kernel calls a process the name of which it has forgotten.
const UNKNOWN: &str = "<...>";

pub(crate) fn trace(args: &Args, what: &Trace, out: &mut impl Write) -> Result<bool> {
    let domain = match what.target.target() {
        Some(target) => Some(domain_of(args, &target)?),
        None => None,
    };
    // From here on a signal ends the trace, and not the program, which has to clean up.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS {
        signal_hook::flag::register(*signal, Arc::clone(&stop)).context("cannot catch signals")?;
    }
    let mut instance = Instance::new(&tracefs()?, domain)?;
    let mut printer = Printer {
        json: args.json,
        out,
        nr_events: 0,
        nr_lost: 0,
    };
    printer.begin(domain, what.duration)?;

    // An end that no clock shows doesn't come.
    let end = what
        .duration
        .and_then(|duration| Instant::now().checked_add(duration));
    let mut lines = Lines::default();
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let is_over = stop.load(Ordering::Relaxed) || left == Some(Duration::ZERO);
        if is_over {
            // What has happened by now is still printed.
            instance.disable()?;
        } else {
            instance.wait(left.map_or(PATIENCE, |left| left.min(PATIENCE)))?;
        }
        instance.read(&mut lines)?;
        while let Some(line) = lines.next() {
            printer.line(&line)?;
        }
        printer.out.flush()?;
        if is_over {
            printer.end()?;
            return Ok(printer.nr_lost == 0);
        }
    }
}

/// Returns the number by which tracepoints call a domain.
fn domain_of(args: &Args, target: &Target) -> Result<u64> {
    let fd = descriptor(args, target)?;
    let path = format!("/proc/{}/fdinfo/{fd}", target.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix("p2m-domain:"));
    let number = number.and_then(|number| number.trim().parse().ok());
    number.ok_or_else(|| {
        anyhow!(
            "descriptor {fd} of process {} is not one of /dev/p2m",
            target.pid
        )
    })
}

/// Returns where tracefs is.
fn tracefs() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    mount_point(&mounts)
        .context("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")
}

/// Returns the first place where tracefs is mounted.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "tracefs").then(|| path.into())
    })
}

/// A trace buffer of our own, which goes when it's dropped.
struct Instance {
    path: PathBuf,
    /// None while it comes or goes.
    pipe: Option<File>,
}

impl Instance {
    /// Makes one, in which events of a domain come, or of all.
    fn new(tracefs: &Path, domain: Option<u64>) -> Result<Self> {
        let instances = tracefs.join("instances");
        let may = |error: &io::Error| error.kind() == ErrorKind::PermissionDenied;
        let entries = match fs::read_dir(&instances) {
            Err(error) if may(&error) => bail!("tracing needs root: try with sudo"),
            result => result.with_context(|| format!("cannot use {}", tracefs.display()))?,
        };
        if !tracefs.join("events/p2m").exists() {
            bail!("there are no tracepoints of p2m: is the module loaded?");
        }
        // Those of processes that were killed. One that is in use can't be removed.
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let pid = name.to_str().and_then(|name| name.strip_prefix("p2m-"));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir(instances.join(name));
            }
        }
        let path = instances.join(format!("p2m-{}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error) if may(&error) => bail!("tracing needs root: try with sudo"),
            result => result.with_context(|| format!("cannot make {}", path.display()))?,
        }
        let mut instance = Self { path, pipe: None };
        instance.set("buffer_size_kb", BUFFER_KIB)?;
        // Every event wakes us up. Older kernels wait for some more.
        let _ = instance.set("buffer_percent", 0);
        if let Some(domain) = domain {
            instance.set("events/p2m/filter", format_args!("domain == {domain}"))?;
        }
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(instance.path.join("trace_pipe"));
        instance.pipe = Some(pipe.context("cannot read the trace")?);
        instance.set("events/p2m/enable", 1)?;
        Ok(instance)
    }

    fn set(&self, name: &str, value: impl Display) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, value.to_string())
            .with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Has no more events come.
    fn disable(&self) -> Result<()> {
        self.set("events/p2m/enable", 0)
    }

    /// Waits for an event.
    fn wait(&self, timeout: Duration) -> Result<()> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for the trace"),
        }
    }

    /// Reads what there is, up to a limit if there is always more.
    fn read(&mut self, lines: &mut Lines) -> Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut buffer = vec![0; 1 << 16];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(nr) => lines.add(buffer.get(..nr).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error).context("cannot read the trace"),
            }
            if lines.nr_bytes() > 1 << 20 {
                return Ok(());
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // While something of it is open, it can't go.
        self.pipe = None;
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("p2m: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Text that comes in pieces.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    /// Where what was not yet taken begins.
    start: usize,
}

impl Lines {
    fn nr_bytes(&self) -> usize {
        self.text.len() - self.start
    }

    fn add(&mut self, piece: &[u8]) {
        // Once for all lines that were taken.
        self.text.drain(..self.start);
        self.start = 0;
        self.text.extend_from_slice(piece);
    }

    /// Takes the first line, if it's complete.
    fn next(&mut self) -> Option<String> {
        let rest = self.text.get(self.start..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end().to_owned();
        self.start += end + 1;
        Some(line)
    }
}

/// An event, with when, where and by whom.
#[derive(Debug, PartialEq, Serialize)]
struct Event {
    /// Seconds of the clock that the kernel traces with.
    time: f64,
    cpu: u32,
    /// Its name, if the kernel still knew it.
    process: Option<String>,
    pid: u32,
    domain: u64,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum What {
    Change {
        pfn: Pfn,
        old: Entry,
        new: Entry,
    },
    Region {
        base_pfn: Pfn,
        nr_pages: u64,
        change: Change,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Created,
    Destroyed,
}

impl Event {
    /// Parses a line of a trace. [`None`] if it isn't an event of ours.
    fn parse(line: &str) -> Option<Self> {
        let (start, name) = ["change", "region"]
            .into_iter()
            .filter_map(|name| Some((line.rfind(&format!(": p2m_{name}: "))?, name)))
            .max()?;
        let (context, fields) = line.split_at(start);
        let fields = fields.splitn(3, ": ").nth(2)?;

        // COMMAND-PID [CPU] FLAGS TIME, and a command may have any characters.
        let mut words = context.split_whitespace().rev();
        let time = words.next()?.parse().ok()?;
        let _flags = words.next()?;
        let cpu = words.next()?;
        let (task, _) = context.rsplit_once(cpu)?;
        let (process, pid) = task.trim().rsplit_once('-')?;
        let cpu = cpu.strip_prefix('[')?.strip_suffix(']')?;

        let field = |name: &str| {
            let value = fields
                .split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
            match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => u64::from_str(value).ok(),
            }
        };
        let what = match name {
            "change" => What::Change {
                pfn: Pfn(field("pfn")?),
                old: Entry::from_raw(field("old")?),
                new: Entry::from_raw(field("new")?),
            },
            _ => What::Region {
                base_pfn: Pfn(field("base")?),
                nr_pages: field("pages")?,
                change: match fields.rsplit(' ').next()? {
                    "created" => Change::Created,
                    _ => Change::Destroyed,
                },
            },
        };
        Some(Self {
            time,
            cpu: cpu.parse().ok()?,
            process: (process != UNKNOWN).then(|| process.to_owned()),
            pid: pid.parse().ok()?,
            domain: field("domain")?,
            what,
        })
    }
}

/// Parses the line that says that events are lost, and returns how many.
fn lost(line: &str) -> Option<u64> {
    let number = line.split_once("[LOST ")?.1.strip_suffix(" EVENTS]")?;
    // That some are lost is known even if their number isn't.
    line.starts_with("CPU:")
        .then(|| number.parse().unwrap_or(1))
}

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { time, domain, .. } = self;
        write!(f, "{time:14.6}  domain {domain}  {}", self.what)
    }
}

impl Display for What {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change { pfn, old, new } => write!(f, "PFN {pfn}: {old} -> {new}"),
            Self::Region {
                base_pfn,
                nr_pages,
                change,
            } => {
                let range = pages(*base_pfn, *nr_pages);
                let (start, end) = (range.start, range.end);
                let count = Count(*nr_pages, "page");
                let change = match change {
                    Change::Created => "created",
                    Change::Destroyed => "destroyed",
                };
                write!(f, "region PFN {start}..{end} ({count}) {change}")
            }
        }
    }
}

/// Prints events, and counts them.
struct Printer<'a, W> {
    json: bool,
    out: &'a mut W,
    nr_events: u64,
    nr_lost: u64,
}

/// What is printed first, when the trace has begun.
#[derive(Serialize)]
struct Begin {
    event: &'static str,
    domain: Option<u64>,
}

#[derive(Serialize)]
struct Lost {
    event: &'static str,
    lost: u64,
}

/// What is printed last.
#[derive(Serialize)]
struct End {
    event: &'static str,
    events: u64,
    lost: u64,
}

impl<W: Write> Printer<'_, W> {
    /// Prints one object on a line.
    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self.out, value)?;
        writeln!(self.out)
    }

    fn begin(&mut self, domain: Option<u64>, duration: Option<Duration>) -> io::Result<()> {
        let event = "begin";
        if self.json {
            self.json(&Begin { event, domain })?;
        } else {
            let of = match domain {
                Some(domain) => format!("domain {domain}"),
                None => "all domains".to_owned(),
            };
            let until = match duration {
                Some(duration) => format!("for {} seconds", duration.as_secs_f64()),
                None => "until a signal comes".to_owned(),
            };
            section(self.out, "trace", [format!("{of}, {until}")])?;
        }
        // Who waits for it must get it.
        self.out.flush()
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if let Some(lost) = lost(line) {
            self.nr_lost += lost;
            let event = "lost";
            return match self.json {
                true => self.json(&Lost { event, lost }),
                false => writeln!(self.out, "{:>14}  {} lost", "", Count(lost, "event")),
            };
        }
        let Some(event) = Event::parse(line) else {
            return Ok(());
        };
        self.nr_events += 1;
        match self.json {
            true => self.json(&event),
            false => writeln!(self.out, "{event}"),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let (events, lost) = (self.nr_events, self.nr_lost);
        if self.json {
            let event = "end";
            return self.json(&End {
                event,
                events,
                lost,
            });
        }
        let events = Count(events, "event");
        let text = match lost {
            0 => events.to_string(),
            lost => format!("{events}, {lost} lost as they came too fast: FAILED"),
        };
        section(self.out, "seen", [text])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Mfn;

    const CHANGE: &str = "             p2m-417     [001] .....    31.415926: p2m_change: \
                          domain=7 pfn=0x10 old=0xffffffffffffffff new=0x4711";

    #[test]
    fn a_change_is_parsed() {
        let event = Event::parse(CHANGE).expect("an event");
        assert_eq!((event.cpu, event.pid, event.domain), (1, 417, 7));
        assert_eq!(
            (event.process.as_deref(), event.time),
            (Some("p2m"), 31.415926)
        );
        let What::Change { old, new, .. } = event.what else {
            panic!("{event:?}");
        };
        assert_eq!([old.mfn(), new.mfn()], [None, Some(Mfn(0x4711))]);
        assert_eq!(
            event.to_string(),
            "     31.415926  domain 7  PFN 0x10: nothing -> MFN 0x4711"
        );
        let json = serde_json::to_string(&event).expect("serializable");
        assert_eq!(
            json,
            "{\"time\":31.415926,\"cpu\":1,\"process\":\"p2m\",\"pid\":417,\"domain\":7,\
             \"event\":\"change\",\"pfn\":16,\"old\":{\"type\":\"invalid\",\"mfn\":null},\
             \"new\":{\"type\":\"frame\",\"mfn\":18193}}"
        );
    }

    #[test]
    fn a_process_may_be_forgotten() {
        let line = CHANGE.replace("p2m-417", "<...>-417");
        let event = Event::parse(&line).expect("an event");
        assert_eq!((event.process, event.pid), (None, 417));
    }

    #[test]
    fn a_region_is_parsed() {
        for (word, text) in [("created", "created"), ("destroyed", "destroyed")] {
            let line = format!(
                " a b: p2m_change: -x-9 [000] d..2. 1.5: p2m_region: domain=2 base=0x200 pages=16 {word}"
            );
            let event = Event::parse(&line).expect("an event");
            assert_eq!(
                (event.process.as_deref(), event.pid),
                (Some("a b: p2m_change: -x"), 9)
            );
            assert_eq!(
                event.what.to_string(),
                format!("region PFN 0x200..0x210 (16 pages) {text}")
            );
        }
    }

    #[test]
    fn other_lines_are_no_events() {
        for line in [
            "",
            "# tracer: nop",
            " x-1 [000] ..... 1.0: sched_switch: prev=1",
            " x-1 [000] ..... 1.0: p2m_change: domain=1 pfn=zz old=0x1 new=0x2",
            " x-1 [000] ..... 1.0: p2m_change: domain=1 pfn=0x1 old=0x1",
            ": p2m_change: domain=1 pfn=0x1 old=0x1 new=0x2",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
        // A line that is cut before its last number is none.
        for end in 0..=CHANGE.len() - "0x4711".len() {
            assert_eq!(Event::parse(&CHANGE[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_is_lost_is_told() {
        assert_eq!(lost("CPU:1 [LOST 42 EVENTS]"), Some(42));
        assert_eq!(lost("CPU:1 [LOST EVENTS]"), None);
        assert_eq!(lost(CHANGE), None);
    }

    #[test]
    fn lines_come_whole() {
        let mut lines = Lines::default();
        lines.add(b"a\nb");
        assert_eq!(lines.next().as_deref(), Some("a"));
        assert_eq!(lines.next(), None);
        lines.add(b"c\n\n");
        assert_eq!(lines.next().as_deref(), Some("bc"));
        assert_eq!(lines.next().as_deref(), Some(""));
        assert_eq!(lines.next(), None);
        lines.add(b"d");
        assert_eq!((lines.nr_bytes(), lines.next()), (1, None));
    }

    #[test]
    fn the_mount_of_tracefs_is_found() {
        let mounts = "proc /proc proc rw 0 0\ntracefs /x/tracing tracefs rw,nosuid 0 0\n";
        assert_eq!(mount_point(mounts), Some("/x/tracing".into()));
        assert_eq!(mount_point("tracefs /x debugfs rw 0 0\n"), None);
    }
}
