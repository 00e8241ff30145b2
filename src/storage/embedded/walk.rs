//! Walking through the keyspaces. A place is the last key in hex.

use std::ops::Bound;

use convoke_protocol::id::{ClientId, ConversationId, UserId};
use convoke_protocol::message::Cursor;
use fjall::{Keyspace, Readable as _};
use futures_util::future::{BoxFuture, FutureExt as _};

use super::EmbeddedStore;
use super::database::{Rows, read_error};
use super::hidden::{self, HiddenKey};
use super::keys::{self, Mark, OwnedMark};
use super::{groups, marks};
use crate::storage::values::decode;
use crate::storage::walk::{UserPage, UserRecord, UserTable, Walk};
use crate::storage::{ConversationSettings, MarkKey, ReadError};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

impl Rows {
    fn table(&self, table: UserTable) -> &Keyspace {
        match table {
            UserTable::Lists => &self.lists,
            UserTable::Cursors => &self.cursors,
            UserTable::Marks => &self.marks,
            UserTable::Settings => &self.settings,
            UserTable::Hidden => &self.hidden,
            UserTable::Creations => &self.groups,
        }
    }

    fn walk(&self, table: UserTable, from: Option<&str>, limit: usize) -> Result<UserPage, ReadError> {
        let after = from.map(|from| {
            unhex(from).ok_or_else(|| ReadError::Corrupt(format!("{from:?} is no place of a walk")))
        });
        let begin = after.transpose()?.map_or(Bound::Unbounded, Bound::Excluded);
        // Ids of creations lie below all groups.
        let end = match table {
            UserTable::Creations => Bound::Excluded(vec![groups::CREATION + 1]),
            _ => Bound::Unbounded,
        };
        let mut page = UserPage::default();
        for guard in self.database.snapshot().range(self.table(table), (begin, end)) {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            let record = self.record(table, &key, &value)?;
            let Some(record) = record else { continue };
            // The fields of one conversation's settings lie together and are one record.
            let joins = match (page.records.last(), &record) {
                (Some(UserRecord::Settings(user, id, _)), UserRecord::Settings(of, within, _)) => {
                    user == of && id == within
                }
                _ => false,
            };
            if joins {
                page.records.pop();
            } else if page.records.len() >= limit {
                return Ok(page);
            }
            page.records.push(record);
            page.next = Some(hex(&key));
        }
        page.next = None;
        Ok(page)
    }

    fn record(&self, table: UserTable, key: &[u8], value: &[u8]) -> Result<Option<UserRecord>, ReadError> {
        let corrupt = || ReadError::Corrupt(format!("{table:?} has the row {}", key.escape_ascii()));
        let record = match table {
            UserTable::Lists => {
                let (user, conversation) = keys::split_list(key).ok_or_else(corrupt)?;
                UserRecord::Listed(user, conversation)
            }
            UserTable::Cursors => {
                let (user, device, conversation) = keys::split_cursor(key).ok_or_else(corrupt)?;
                let seq = keys::read_seq(value).ok_or_else(corrupt)?;
                UserRecord::Cursor(user, device, Cursor { conversation, seq })
            }
            UserTable::Marks => {
                let (conversation, mark) = keys::split_mark(key).ok_or_else(corrupt)?;
                return self.mark_record(conversation, mark);
            }
            UserTable::Settings => {
                let (user, conversation, _) = keys::split_setting(key).ok_or_else(corrupt)?;
                let settings = self.settings_of(&user, &conversation)?;
                UserRecord::Settings(user, conversation, settings)
            }
            UserTable::Hidden => match hidden::split(key).ok_or_else(corrupt)? {
                (user, conversation, HiddenKey::UpTo) => {
                    UserRecord::HiddenUpTo(user, conversation, decode("what is hidden", value)?)
                }
                (user, conversation, HiddenKey::Single(seq)) => UserRecord::Hidden(user, conversation, seq),
            },
            UserTable::Creations => {
                let (creator, client_id) = creation(key).ok_or_else(corrupt)?;
                UserRecord::Creation(creator, client_id, decode("the id of a group", value)?)
            }
        };
        Ok(Some(record))
    }

    /// What a user has read and what a user sent are two rows and one record: at the first of them.
    fn mark_record(
        &self,
        conversation: ConversationId,
        mark: OwnedMark,
    ) -> Result<Option<UserRecord>, ReadError> {
        let user = match mark {
            OwnedMark::Uncounted(_) => return Ok(None),
            OwnedMark::Read(user) => user,
            OwnedMark::Sent(user) => {
                let read = keys::mark(&conversation, Mark::Read(&user));
                if self.marks.contains_key(read).map_err(read_error)? {
                    return Ok(None);
                }
                user
            }
        };
        let key = MarkKey { user, conversation };
        let mark = self.mark(&key)?;
        Ok(Some(UserRecord::Mark(key, mark)))
    }

    fn settings_of(
        &self,
        user: &UserId,
        conversation: &ConversationId,
    ) -> Result<ConversationSettings, ReadError> {
        let mut settings = ConversationSettings::default();
        for field in [keys::LABEL, keys::MUTED, keys::PINNED] {
            let value = self.settings.get(keys::setting(user, conversation, field)).map_err(read_error)?;
            let corrupt = || ReadError::Corrupt(format!("a setting of {user} cannot be read"));
            if let Some(value) = value {
                marks::read_setting(&mut settings, field, &value).ok_or_else(corrupt)?;
            }
        }
        Ok(settings)
    }
}

fn creation(key: &[u8]) -> Option<(UserId, ClientId)> {
    let (&groups::CREATION, rest) = key.split_first()? else { return None };
    let (rest, client_id) = rest.split_last_chunk::<16>()?;
    let user = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?;
    Some((UserId::new(user).ok()?, ClientId(uuid::Uuid::from_bytes(*client_id))))
}

impl Walk for EmbeddedStore {
    fn user_records<'a>(
        &'a self,
        table: UserTable,
        from: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<UserPage, ReadError>> {
        let from = from.map(str::to_owned);
        self.reading(move |rows| rows.walk(table, from.as_deref(), limit)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        for bytes in [&b""[..], b"\x00\xff", b"alice\x00g:team"] {
            assert_eq!(unhex(&hex(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!([unhex("0"), unhex("zz")], [None, None]);
    }
}
