//! Walking through the tables of users, partition after partition in the order of the ring. A place is a token.

use convoke_protocol::id::{ClientId, DeviceId, GroupId, Seq};
use convoke_protocol::message::Cursor;
use futures_util::future::{BoxFuture, FutureExt};
use scylla::deserialize::row::DeserializeRow;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::ScyllaStore;
use super::cql::corrupt;
use super::groups::user_id;
use super::number;
use super::users::{conversation_id, limit};
use crate::storage::walk::{UserPage, UserRecord, UserTable, Walk};
use crate::storage::{ConversationIndex, MarkKey, ReadError, ReadMark, UserConversationStore};

/// Partitions of one part of a walk: each may have many records.
const PARTITIONS: usize = 32;

/// The partitions behind a token, and where the next ones begin.
struct Partitions<R> {
    rows: Vec<R>,
    next: Option<String>,
}

/// A row that ends with the token of its partition.
trait Tokened {
    fn token(&self) -> i64;
}

impl<A> Tokened for (A, i64) {
    fn token(&self) -> i64 {
        self.1
    }
}

impl<A, B> Tokened for (A, B, i64) {
    fn token(&self) -> i64 {
        self.2
    }
}

impl<A, B, C> Tokened for (A, B, C, i64) {
    fn token(&self) -> i64 {
        self.3
    }
}

impl ScyllaStore {
    async fn partitions<R>(
        &self,
        statement: &PreparedStatement,
        from: Option<&str>,
        at_most: usize,
    ) -> Result<Partitions<R>, ReadError>
    where
        R: Tokened + for<'a> DeserializeRow<'a, 'a>,
    {
        // The lowest token belongs to no key.
        let after = from.map_or(Ok(i64::MIN), str::parse).map_err(corrupt)?;
        let rows: Vec<R> = self.cql().rows(statement, (after, limit(at_most))).await?;
        let more = rows.len() >= at_most;
        let next = rows.last().filter(|_| more).map(|row| row.token().to_string());
        Ok(Partitions { rows, next })
    }

    async fn walk(
        &self,
        table: UserTable,
        from: Option<&str>,
        at_most: usize,
    ) -> Result<UserPage, ReadError> {
        let all = &self.cql().statements;
        let mut records = Vec::new();
        let next = match table {
            UserTable::Lists => {
                let users: Partitions<(String, i64)> =
                    self.partitions(&all.walk_lists, from, PARTITIONS).await?;
                for (user, _) in users.rows {
                    let user = user_id(&user)?;
                    let listed = self.conversations(&user, None, usize::MAX).await?;
                    records.extend(listed.into_iter().map(|id| UserRecord::Listed(user.clone(), id)));
                }
                users.next
            }
            UserTable::Cursors => {
                let devices: Partitions<(String, String, i64)> =
                    self.partitions(&all.walk_cursors, from, PARTITIONS).await?;
                for (user, device, _) in devices.rows {
                    let key = (user.as_str(), device.as_str());
                    let kept: Vec<(String, i64)> = self.cql().rows(&all.cursors_of, key).await?;
                    let (user, device) = (user_id(&user)?, DeviceId::new(&device).map_err(corrupt)?);
                    for (id, seq) in kept {
                        let cursor = Cursor { conversation: conversation_id(&id)?, seq: Seq(number(seq)) };
                        records.push(UserRecord::Cursor(user.clone(), device.clone(), cursor));
                    }
                }
                devices.next
            }
            UserTable::Marks => {
                let users: Partitions<(String, i64)> =
                    self.partitions(&all.walk_marks, from, PARTITIONS).await?;
                for (user, _) in users.rows {
                    let kept: Vec<(String, i64, i64)> =
                        self.cql().rows(&all.marks_of, (user.as_str(),)).await?;
                    let user = user_id(&user)?;
                    for (id, seq, ordinal) in kept {
                        let key = MarkKey { user: user.clone(), conversation: conversation_id(&id)? };
                        let mark = ReadMark { seq: Seq(number(seq)), ordinal: number(ordinal) };
                        records.push(UserRecord::Mark(key, mark));
                    }
                }
                users.next
            }
            UserTable::Settings => {
                let users: Partitions<(String, i64)> =
                    self.partitions(&all.walk_settings, from, PARTITIONS).await?;
                for (user, _) in users.rows {
                    let user = user_id(&user)?;
                    let kept = self.settings(&user, usize::MAX).await?;
                    let record = |(id, settings)| UserRecord::Settings(user.clone(), id, settings);
                    records.extend(kept.into_iter().map(record));
                }
                users.next
            }
            UserTable::Hidden => {
                let hidden: Partitions<(String, String, Option<i64>, i64)> =
                    self.partitions(&all.walk_hidden, from, PARTITIONS).await?;
                for (user, id, up_to, _) in hidden.rows {
                    let (user, id) = (user_id(&user)?, conversation_id(&id)?);
                    if let Some(up_to) = up_to {
                        records.push(UserRecord::HiddenUpTo(user.clone(), id.clone(), Seq(number(up_to))));
                    }
                    for seq in self.all_hidden(&user, &id).await? {
                        records.push(UserRecord::Hidden(user.clone(), id.clone(), seq));
                    }
                }
                hidden.next
            }
            UserTable::Creations => {
                let made: Partitions<(String, Uuid, String, i64)> =
                    self.partitions(&all.walk_creations, from, at_most).await?;
                for (creator, client_id, group, _) in made.rows {
                    let group = GroupId::new(&group).map_err(corrupt)?;
                    records.push(UserRecord::Creation(user_id(&creator)?, ClientId(client_id), group));
                }
                made.next
            }
        };
        Ok(UserPage { records, next })
    }
}

impl Walk for ScyllaStore {
    fn user_records<'a>(
        &'a self,
        table: UserTable,
        from: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<UserPage, ReadError>> {
        self.walk(table, from, limit).boxed()
    }
}
