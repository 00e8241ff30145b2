//! The conditions of a load test: without them its figures say nothing.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// Where, when and how a load test ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The command line.
    pub command: String,
    /// When it began, in UTC, as `2026-01-31T23:59:59Z`.
    pub date: String,
    /// The version of Convoke.
    pub version: String,
    /// Whether the binary was built with optimizations.
    pub optimized: bool,
    /// The machine.
    pub host: Host,
    /// The file system of the data directory.
    pub filesystem: Option<Filesystem>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Cores that this process may use.
    pub cores: usize,
    /// The model name of the CPU.
    pub cpu: String,
    /// Operating system and release of its kernel.
    pub kernel: String,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Processes running or waiting for a core in the last minute, before the load test.
    pub load_before: f64,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Its type, such as `ext4`.
    pub kind: String,
    /// What is mounted.
    pub device: String,
    /// How it is mounted.
    pub options: String,
}

impl Conditions {
    /// Looks around. What cannot be found out is said to be unknown: it keeps nobody from measuring.
    #[must_use]
    pub fn gather(data: Option<&Path>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        Self {
            command: command_line(std::env::args()),
            date: utc(Clock::new(0).wall().0 / 1000),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            optimized: !cfg!(debug_assertions),
            host: Host {
                cores: cores(),
                cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
                kernel: format!(
                    "{} {}",
                    read("/proc/sys/kernel/ostype").trim(),
                    read("/proc/sys/kernel/osrelease").trim()
                ),
                memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                    .and_then(|total| parse_kilobytes(&total))
                    .unwrap_or(0),
                load_before: parse_load(&read("/proc/loadavg")).unwrap_or(0.0),
            },
            filesystem: data
                .and_then(|data| data.canonicalize().ok())
                .and_then(|data| filesystem_of(&read("/proc/self/mountinfo"), &data)),
        }
    }
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { cores, cpu, kernel, memory_bytes, load_before } = &self.host;
        let build = if self.optimized { "" } else { " (NOT optimized: its figures mean little)" };
        writeln!(f, "{}", self.command)?;
        writeln!(f, "{}, convoke {}{build}", self.date, self.version)?;
        writeln!(
            f,
            "{cores} cores of {cpu}, {} MB, {kernel}, load before {load_before:.2}",
            memory_bytes / 1_000_000
        )?;
        if let Some(Filesystem { kind, device, options }) = &self.filesystem {
            writeln!(f, "data on {kind} ({device}, {options})")?;
        }
        Ok(())
    }
}

/// A command line that a shell would read as it was.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    let quoted = arguments.map(|argument| {
        if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The value of the first line `NAME : VALUE`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

fn parse_kilobytes(value: &str) -> Option<u64> {
    value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn parse_load(loadavg: &str) -> Option<f64> {
    loadavg.split_ascii_whitespace().next()?.parse().ok()
}

/// The mount that holds a path: of those above it the longest, of equals the last one mounted.
fn filesystem_of(mountinfo: &str, path: &Path) -> Option<Filesystem> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = unescape(before.split(' ').nth(4)?);
            let mut after = after.split(' ');
            path.starts_with(Path::new(std::ffi::OsStr::from_bytes(&point))).then_some((
                point.len(),
                Filesystem {
                    kind: after.next()?.to_owned(),
                    device: after.next()?.to_owned(),
                    options: after.next()?.to_owned(),
                },
            ))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, filesystem)| filesystem)
}

/// Undoes `\040` and the like, in which the kernel writes white space and backslashes.
fn unescape(field: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// Seconds since 1970 as a date and time in UTC.
pub(crate) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin with March end with the leap day; an era is 400 of them, 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_years() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn fields_of_proc_are_found() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC: 7\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(field(cpuinfo, "model name").as_deref(), Some("AMD EPYC: 7"));
        assert_eq!(field(cpuinfo, "model"), None);
        assert_eq!(parse_kilobytes("24684096 kB"), Some(25_276_514_304));
        assert_eq!(parse_kilobytes("24684096"), None);
        assert_eq!(parse_load("3.72 1.81 0.73 1/200 4242\n"), Some(3.72));
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mountinfo = "\
26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
27 26 0:30 / /tmp rw - tmpfs tmpfs rw,size=1k
28 26 0:31 / /tmp rw master:2 propagate_from:1 - xfs /dev/vdb rw
29 26 0:32 / /mnt/my\\040disk rw - btrfs /dev/vdc rw
";
        let kind = |path: &str| filesystem_of(mountinfo, Path::new(path)).map(|found| found.kind);
        assert_eq!(kind("/var/a").as_deref(), Some("ext4"));
        assert_eq!(kind("/tmp/a").as_deref(), Some("xfs"));
        assert_eq!(kind("/tmpfs").as_deref(), Some("ext4"));
        assert_eq!(kind("/mnt/my disk/a").as_deref(), Some("btrfs"));
        let root = filesystem_of(mountinfo, Path::new("/")).unwrap();
        assert_eq!((root.device.as_str(), root.options.as_str()), ("/dev/vda", "rw,discard"));
    }

    #[test]
    fn the_command_line_can_be_pasted() {
        let arguments = ["convoke", "--json=out.json", "two words", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(arguments.into_iter()), r"convoke --json=out.json 'two words' 'it'\''s' ''");
    }

    #[test]
    fn this_machine_is_described() {
        let here = Conditions::gather(Some(Path::new(".")));
        assert!(here.host.cores >= 1);
        assert!(here.host.memory_bytes > 1_000_000);
        assert!(here.host.kernel.starts_with("Linux "), "{here}");
        assert!(here.filesystem.is_some());
    }
}
