//! What a crash may leave at the end of fjall's journal, and how it is mended before fjall opens it.
//!
//! Every batch is synced before the next is written, so after a crash at most the last one is torn, and it was never
//! acknowledged. fjall cuts off a batch that *ends* too early, but refuses to open when one is whole in length and
//! wrong inside (a disk may write the pages of an unsynced batch in any order), and it also cuts off, silently,
//! everything behind a damaged record in the *middle*. So the journals are read here first: a torn last batch is cut
//! off, damage with good batches behind it is reported and nothing is opened.
//!
//! The layout read here is that of fjall 3.1.13, which Cargo.toml pins; a test writes with it and reads here.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use xxhash_rust::xxh3::Xxh3;

use super::OpenError;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";

/// A batch's number is believed if it is above the last one by no more than this: the first bytes of a batch are not
/// under its checksum. (fjall gives some numbers to things that are not in the journal.)
const MAX_STEP: u64 = 1 << 20;

/// One whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    number: u64,
    end: usize,
}

/// Reads a whole batch that begins at `at`, if its content is what its checksum says.
fn batch(bytes: &[u8], at: usize) -> Option<Batch> {
    let mut rest = bytes.get(at..)?;
    let [START] = take::<1>(&mut rest)? else { return None };
    let items = u32::from_le_bytes(take(&mut rest)?);
    let number = u64::from_le_bytes(take(&mut rest)?);
    let mut hasher = Xxh3::new();
    for _ in 0..items {
        let item = rest;
        let length = match take::<1>(&mut rest)? {
            [ITEM] => {
                let [_value_type, _compression] = take(&mut rest)?;
                let _keyspace: [u8; 8] = take(&mut rest)?;
                let key = usize::from(u16::from_le_bytes(take(&mut rest)?));
                let _value: [u8; 4] = take(&mut rest)?;
                let stored = u32::from_le_bytes(take(&mut rest)?) as usize;
                rest = rest.get(key.checked_add(stored)?..)?;
                item.len() - rest.len()
            }
            [CLEAR] => {
                let _keyspace: [u8; 8] = take(&mut rest)?;
                item.len() - rest.len()
            }
            _ => return None,
        };
        hasher.update(&item[..length]);
    }
    let [END] = take::<1>(&mut rest)? else { return None };
    let checksum = u64::from_le_bytes(take(&mut rest)?);
    rest = rest.strip_prefix(TRAILER)?;
    (checksum == hasher.digest()).then_some(Batch { number, end: bytes.len() - rest.len() })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

/// What the bytes of a journal are.
#[derive(Debug, PartialEq, Eq)]
struct Survey {
    /// Where the last batch ends up to which all are valid.
    valid: usize,
    /// Its number.
    last: Option<u64>,
    /// Bytes behind it, up to the last that is not zero (a journal is allocated ahead).
    torn: usize,
    /// A batch that was once synced is no longer as it was.
    damaged: bool,
}

fn survey(bytes: &[u8], before: Option<u64>) -> Survey {
    let (mut valid, mut before_last, mut last) = (0, None, before);
    while let Some(batch) = batch(bytes, valid).filter(|batch| follows(batch.number, last)) {
        (valid, before_last, last) = (batch.end, last, Some(batch.number));
    }
    let tail = &bytes[valid..];
    let torn = tail.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    // A last batch whose content is right and whose number is wrong: either its own number was damaged, or that of the
    // batch before it.
    let (behind, number_before_damaged) = match batch(bytes, valid) {
        Some(batch) => (batch.end, before_last.is_some() && follows(batch.number, before_last)),
        None => (valid + 1, false),
    };
    let whole_behind = || (behind..valid + torn).any(|at| bytes[at] == START && batch(bytes, at).is_some());
    Survey { valid, last, torn, damaged: number_before_damaged || whole_behind() }
}

fn follows(number: u64, last: Option<u64>) -> bool {
    match last {
        Some(last) => number > last && number - last < MAX_STEP,
        None => number >> 62 == 0,
    }
}

/// Reads the journals of a database that nobody has open and cuts off a torn last batch. Says how many bytes were cut
/// off.
///
/// # Errors
/// A journal cannot be read, or is damaged where it was once whole.
pub(super) fn mend(dir: &Path) -> Result<u64, OpenError> {
    let mut last = None;
    let mut torn: Option<(PathBuf, usize, usize)> = None;
    for (_, path) in journals(dir)? {
        let bytes = written(&path)?;
        let found = survey(&bytes, last);
        let is_written = found.last != last;
        if let (Some((torn, at, _)), true) = (&torn, is_written) {
            return Err(damage(torn, *at));
        }
        if found.damaged {
            return Err(damage(&path, found.valid));
        }
        if found.torn > 0 {
            torn = Some((path, found.valid, found.torn));
        }
        last = found.last;
    }
    let Some((path, valid, torn)) = torn else { return Ok(0) };
    tracing::warn!(
        journal = %path.display(),
        at = valid,
        bytes = torn,
        "cut off a batch that was being written when the process ended; nothing in it was acknowledged"
    );
    let cut = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(valid as u64)?;
        file.sync_all()
    };
    cut().map_err(|source| OpenError::io("cut off the torn end of", &path, source))?;
    Ok(torn as u64)
}

fn damage(path: &Path, at: usize) -> OpenError {
    OpenError::Damaged(format!(
        "{} is damaged at byte {at}, with whole batches behind it: this is no torn write; restore a backup",
        path.display()
    ))
}

/// The journals, oldest first.
fn journals(dir: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let list = || {
        let mut journals = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let (Some(number), Some("jnl")) = (number, path.extension().and_then(|e| e.to_str())) {
                journals.push((number, path));
            }
        }
        journals.sort();
        Ok(journals)
    };
    list().map_err(|source| OpenError::io("list", dir, source))
}

/// The bytes of a journal up to where its file system says that it was ever written: what was only allocated (64 MB
/// in every new one) is not read.
fn written(path: &Path) -> Result<Vec<u8>, OpenError> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < length {
            let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
            let end = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap_or(length).min(length);
            rustix::fs::seek(&file, SeekFrom::Start(data))?;
            bytes.resize(data as usize, 0);
            (&mut file).take(end - data).read_to_end(&mut bytes)?;
            at = end;
        }
        Ok(bytes)
    };
    read().map_err(|source| OpenError::io("read", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    /// A journal of three batches written by fjall itself, with the ends of the batches.
    fn sample() -> (Vec<u8>, Vec<usize>) {
        let dir = tempfile::tempdir().expect("a directory");
        let database = Database::builder(dir.path()).worker_threads(1).open().expect("opens");
        let keyspace = database.keyspace("rows", KeyspaceCreateOptions::default).expect("opens");
        for number in 1..=3_u8 {
            let mut batch = database.batch().durability(Some(PersistMode::SyncData));
            batch.insert(&keyspace, [number, 1], vec![number; 40]);
            batch.insert(&keyspace, [number, 2], vec![number; usize::from(number) * 300]);
            batch.remove(&keyspace, [number, 3]);
            batch.commit().expect("commits");
        }
        let bytes = written(&dir.path().join("0.jnl")).expect("readable");
        let (mut ends, mut at) = (Vec::new(), 0);
        while let Some(found) = batch(&bytes, at) {
            at = found.end;
            ends.push(at);
        }
        (bytes, ends)
    }

    #[test]
    fn what_fjall_writes_is_understood() {
        let (bytes, ends) = sample();
        assert_eq!(ends.len(), 3);
        let found = survey(&bytes, None);
        assert_eq!((found.valid, found.torn, found.damaged), (ends[2], 0, false));
    }

    #[test]
    fn a_torn_last_batch_is_told_from_damage_before_it() {
        let (bytes, ends) = sample();
        for at in 0..ends[2] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0xff;
            let found = survey(&flipped, None);
            let whole = ends.iter().filter(|end| **end <= at).count();
            let begin = if whole == 0 { 0 } else { ends[whole - 1] };
            let in_number = (begin + 5..begin + 13).contains(&at);
            if whole == 2 {
                let believed = found.valid == ends[2] && in_number;
                assert!(!found.damaged && (found.valid == ends[1] || believed), "{at}");
            } else {
                // Anything wrong in a batch that others follow is damage; a number that may be right is believed.
                let believed = found.valid == ends[2] && found.torn == 0 && in_number;
                assert!(found.damaged || believed, "{at}: {found:?}");
            }
        }
        for end in ends[1]..ends[2] {
            let found = survey(&bytes[..end], None);
            assert_eq!((found.valid, found.damaged), (ends[1], false), "{end}");
        }
    }
}
