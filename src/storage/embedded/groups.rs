//! Groups, members, requests to join and ids of groups that were asked for, in one keyspace.
//!
//! ```text
//! group 0x00 'g'        the group
//! group 0x00 'm' user   a member, or somebody who was one
//! group 0x00 'r' user   a request to join
//! 0x01 user 0x00 uuid   which group a request made
//! ```

use convoke_protocol::id::{ClientId, GroupId, UserId};
use fjall::{Readable, UserKey, UserValue};
use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::EmbeddedStore;
use super::database::{Rows, read_error};
use super::queue::{Small, SmallRow};
use crate::storage::values::{self, decode};
use crate::storage::{GroupRow, GroupStore, JoinRequestRow, MemberRow, ReadError, WriteError};

pub(super) const GROUP: u8 = b'g';
pub(super) const MEMBER: u8 = b'm';
pub(super) const REQUEST: u8 = b'r';
/// Before the keys of creations: below what an id may begin with.
pub(super) const CREATION: u8 = 1;

/// A value as the database takes it.
pub(super) fn encode(value: &impl Serialize) -> UserValue {
    UserValue::from(values::encode(value))
}

/// `group 0x00 kind user`.
pub(super) fn key(group: &GroupId, kind: u8, user: &str) -> UserKey {
    UserKey::from([group.as_str().as_bytes(), &[0, kind], user.as_bytes()].concat())
}

fn creation(creator: &UserId, client_id: ClientId) -> UserKey {
    UserKey::from([&[CREATION], creator.as_str().as_bytes(), &[0], client_id.0.as_bytes()].concat())
}

/// Takes a key of a group apart: the group, the kind, the user.
pub(super) fn split(key: &[u8]) -> Option<(GroupId, u8, Option<UserId>)> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let (group, rest) = (&key[..end], &key[end + 1..]);
    let (kind, user) = rest.split_first()?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let user = if *kind == GROUP && user.is_empty() { None } else { Some(UserId::new(text(user)?).ok()?) };
    Some((GroupId::new(text(group)?).ok()?, *kind, user))
}

/// The rows of a projection that concern a group.
pub(super) fn rows_of(group: &GroupId, row: Option<&GroupRow>, members: &[MemberRow]) -> Vec<SmallRow> {
    let small =
        |kind, user: &str, value| SmallRow { keyspace: Small::Groups, key: key(group, kind, user), value };
    let mut rows: Vec<SmallRow> = row.iter().map(|row| small(GROUP, "", Some(encode(row)))).collect();
    for member in members {
        rows.push(small(MEMBER, member.user.as_str(), Some(encode(member))));
        if member.left.is_none() {
            rows.push(small(REQUEST, member.user.as_str(), None));
        }
    }
    rows
}

impl Rows {
    fn group(&self, group: &GroupId) -> Result<Option<GroupRow>, ReadError> {
        let value = self.groups.get(key(group, GROUP, "")).map_err(read_error)?;
        value.map(|value| decode("a group", &value)).transpose()
    }

    fn of_group<T: DeserializeOwned>(
        &self,
        group: &GroupId,
        kind: u8,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<T>, ReadError> {
        let to = key(group, kind + 1, "");
        // The smallest key above `after`: ids hold no zero bytes.
        let from = match after {
            Some(after) => [&key(group, kind, after.as_str())[..], &[0]].concat(),
            None => key(group, kind, "").to_vec(),
        };
        let range = self.database.snapshot().range(&self.groups, from..to.to_vec());
        range
            .take(limit)
            .map(|guard| decode("a member", &guard.into_inner().map_err(read_error)?.1))
            .collect()
    }

    fn membership(&self, user: &UserId, group: &GroupId) -> Result<Option<MemberRow>, ReadError> {
        let value = self.groups.get(key(group, MEMBER, user.as_str())).map_err(read_error)?;
        value.map(|value| decode("a member", &value)).transpose()
    }
}

impl GroupStore for EmbeddedStore {
    fn group<'a>(&'a self, group: &'a GroupId) -> BoxFuture<'a, Result<Option<GroupRow>, ReadError>> {
        let group = group.clone();
        self.reading(move |rows| rows.group(&group)).boxed()
    }

    fn groups_of<'a>(
        &'a self,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<GroupRow>>, ReadError>> {
        let groups = groups.to_vec();
        self.reading(move |rows| groups.iter().map(|group| rows.group(group)).collect()).boxed()
    }

    fn members<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<MemberRow>, ReadError>> {
        let (group, after) = (group.clone(), after.cloned());
        self.reading(move |rows| rows.of_group(&group, MEMBER, after.as_ref(), limit)).boxed()
    }

    fn memberships<'a>(
        &'a self,
        user: &'a UserId,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<MemberRow>>, ReadError>> {
        let (user, groups) = (user.clone(), groups.to_vec());
        self.reading(move |rows| groups.iter().map(|group| rows.membership(&user, group)).collect()).boxed()
    }

    fn join_requests<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<JoinRequestRow>, ReadError>> {
        let (group, after) = (group.clone(), after.cloned());
        self.reading(move |rows| rows.of_group(&group, REQUEST, after.as_ref(), limit)).boxed()
    }

    fn put_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        request: &'a JoinRequestRow,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let key = key(group, REQUEST, request.user.as_str());
        self.writing(vec![SmallRow { keyspace: Small::Groups, key, value: Some(encode(request)) }]).boxed()
    }

    fn drop_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        user: &'a UserId,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let key = key(group, REQUEST, user.as_str());
        self.writing(vec![SmallRow { keyspace: Small::Groups, key, value: None }]).boxed()
    }

    fn claim_group_id<'a>(
        &'a self,
        creator: &'a UserId,
        client_id: ClientId,
        candidate: &'a GroupId,
    ) -> BoxFuture<'a, Result<GroupId, WriteError>> {
        async move {
            // One at a time: of two attempts of one request the second finds what the first was given.
            let _one = self.claims.lock().await;
            let key = creation(creator, client_id);
            let read = key.clone();
            let kept = self.reading(move |rows| rows.groups.get(&read).map_err(read_error)).await;
            if let Some(kept) = kept.map_err(|error| WriteError(error.to_string()))? {
                return decode("the id of a group", &kept).map_err(|error| WriteError(error.to_string()));
            }
            let row = SmallRow { keyspace: Small::Groups, key, value: Some(encode(candidate)) };
            self.writing(vec![row]).await?;
            Ok(candidate.clone())
        }
        .boxed()
    }
}
