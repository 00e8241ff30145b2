//! Appends to a file and syncs of it, and nothing else.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Loop;
use crate::load::LoadError;
use crate::load::latency::Latencies;
use crate::load::process::Sample;
use crate::load::report::{Progress, rate};

/// What is appended before each sync: about what a batch of a hundred messages takes.
const APPEND: usize = 16 * 1024;
/// Where the file is emptied and begun again, so that a fast disk is not filled.
const LONGEST: u64 = 2 << 30;

/// A file of ours in somebody's directory; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    pub(super) file: File,
}

impl Scratch {
    pub(super) fn create(directory: &Path, name: &str) -> Result<Self, LoadError> {
        let path = directory.join(format!("convoke-limits-{}.{name}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(LoadError::file(&path))?;
        Ok(Self { path, file })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody can be told; what stays is one file with our name on it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Appends and syncs for so long, and says how often that was possible.
pub(super) fn measure(
    directory: &Path,
    warm_up: Duration,
    measured: Duration,
    progress: &Progress,
) -> Result<Loop, LoadError> {
    let scratch = Scratch::create(directory, "fdatasync")?;
    progress.say("fdatasync: warming up");
    append_and_sync(&scratch, warm_up, progress)?;
    progress.say("fdatasync");
    let before = Sample::of_self()?;
    let latencies = append_and_sync(&scratch, measured, progress)?;
    let after = Sample::of_self()?;
    Ok(Loop::new(
        rate(latencies.count(), after.elapsed_since(&before)),
        latencies.percentiles(),
        after.since(&before),
        after.elapsed_since(&before),
    ))
}

fn append_and_sync(scratch: &Scratch, time: Duration, progress: &Progress) -> Result<Latencies, LoadError> {
    let failed = |source| LoadError::file(&scratch.path)(source);
    let mut file = &scratch.file;
    let block = [0xA5; APPEND];
    let mut latencies = Latencies::default();
    let mut length = file.metadata().map_err(failed)?.len();
    let started = Instant::now();
    let mut shown = started;
    loop {
        let begun = Instant::now();
        if begun - started >= time {
            progress.advance(begun - shown);
            break;
        }
        if length >= LONGEST {
            file.set_len(0).map_err(failed)?;
            length = 0;
        }
        file.write_all(&block).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        length += APPEND as u64;
        latencies.record(begun.elapsed());
        if begun - shown >= Duration::from_millis(200) {
            progress.advance(begun - shown);
            shown = begun;
        }
    }
    if file.metadata().map_err(failed)?.len() != length {
        return Err(LoadError::Broken("the file is not as long as what was appended to it"));
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(directory.path(), "x").unwrap();
        append_and_sync(&scratch, Duration::from_millis(20), &Progress::new(Duration::ZERO)).unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        drop(scratch);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }
}
