use std::sync::Arc;

use convoke_protocol::id::Seq;
use tempfile::TempDir;

use super::*;
use crate::storage::conformance::{append_of, conversation, rows as rows_of, store as put};
use crate::storage::embedded::{EmbeddedConfig, check};
use crate::storage::{LogRow, MessageLog as _, ReadLimit};

const CONVERSATIONS: u64 = 40;

fn name(n: u64) -> convoke_protocol::id::ConversationId {
    conversation(&format!("group-{n}"))
}

fn said(n: u64) -> Vec<LogRow> {
    rows_of(1, 1 + n % 5, &"text ".repeat(usize::try_from(n).unwrap() * 40))
}

async fn filled(dir: &Path) -> Arc<EmbeddedStore> {
    let store = Arc::new(EmbeddedStore::open(dir, EmbeddedConfig::default()).unwrap());
    for n in 0..CONVERSATIONS {
        put(&*store, append_of(&name(n), &said(n), n)).await.unwrap();
    }
    store
}

async fn collected(store: &EmbeddedStore) -> Vec<u8> {
    let mut pieces = store.backup(1_000);
    let mut all = Vec::new();
    while let Some(piece) = pieces.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    all
}

/// Restores into a new directory.
fn restored(backup: &[u8]) -> Result<(TempDir, Volume), BackupError> {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, backup).unwrap();
    let (contents, volume) = restore(&file, &home.path().join("data"))?;
    assert_eq!((contents.made_at_ms, contents.store_format), (1_000, FORMAT_VERSION));
    Ok((home, volume))
}

async fn assert_same(dir: &Path) {
    assert!(check(dir).unwrap().is_good());
    let store = EmbeddedStore::open(dir, EmbeddedConfig::default()).unwrap();
    for n in 0..CONVERSATIONS {
        let rows = store.read(&name(n), Seq(1), Seq(u64::MAX), ReadLimit::rows(100)).await.unwrap();
        assert_eq!(rows, said(n));
    }
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_comes_back_and_the_store_goes_on_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let store = filled(home.path()).await;
    let mut pieces = store.backup(1_000);
    let mut backup = pieces.next().await.unwrap().unwrap().to_vec();
    // It has begun: what is written now is not in it, and does not wait for it.
    put(&*store, append_of(&conversation("later"), &rows_of(1, 1, "later"), 99)).await.unwrap();
    while let Some(piece) = pieces.next().await {
        backup.extend_from_slice(&piece.unwrap());
    }
    let (to, volume) = restored(&backup).unwrap();
    assert!(volume.records > CONVERSATIONS && volume.bytes > 10_000, "{volume:?}");
    assert_same(&to.path().join("data")).await;
    let left: Vec<_> =
        std::fs::read_dir(to.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "store.restoring"), "{left:?}");

    // Of a store that nobody has open it is the same rows.
    store.shutdown().await;
    let mut offline = Vec::new();
    super::backup(home.path(), 1_000, &mut offline).unwrap();
    let (to, _) = restored(&offline).unwrap();
    assert_same(&to.path().join("data")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_makes_no_store() {
    let home = tempfile::tempdir().unwrap();
    let store = filled(home.path()).await;
    let backup = collected(&store).await;
    store.shutdown().await;
    assert!(restored(&backup).is_ok());
    let step = backup.len() / 60 + 1;
    for cut in (0..backup.len()).step_by(step).chain([backup.len() - 1]) {
        let refused = restored(&backup[..cut]);
        assert!(matches!(refused, Err(BackupError::Damaged(_))), "{cut} of {}", backup.len());
    }
    for at in (0..backup.len()).step_by(step) {
        let mut bent = backup.clone();
        bent[at] ^= 0x20;
        // Only the description of what is in it stands under no hash.
        if at > 400 {
            assert!(restored(&bent).is_err(), "a flipped bit at {at}");
        }
    }
    assert!(matches!(restored(b"something else"), Err(BackupError::Damaged(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_over() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let store = filled(&data).await;
    let file = home.path().join("file");
    std::fs::write(&file, collected(&store).await).unwrap();
    assert!(matches!(restore(&file, &data), Err(BackupError::Exists(_))));
    store.shutdown().await;
    assert_same(&data).await;
    // A restore that died on the way is in nobody's way.
    let other = home.path().join("other");
    std::fs::create_dir_all(other.join("store.restoring/store")).unwrap();
    restore(&file, &other).unwrap();
    assert_same(&other).await;
}
