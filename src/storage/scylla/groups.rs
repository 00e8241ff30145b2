//! Groups, their members, requests to join, and ids of groups that were asked for.
//!
//! The members of a group are in [`MEMBER_PARTS`] partitions, so that a group of a million is no partition of a million;
//! a page of them is merged from all.

use bytes::Bytes;
use convoke_protocol::id::{ClientId, GroupId, UserId};
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;

use super::cql::{Failure, corrupt};
use super::users::{limit, together};
use super::{ScyllaStore, Shared, WIDTH, bigint, part_of};
use crate::storage::{
    AppendError, GroupRow, GroupStore, JoinRequestRow, MemberRow, Projection, ReadError, WriteError, values,
};

/// Partitions of the members of one group.
const MEMBER_PARTS: i32 = 8;
/// How often the id of a creation is asked for, when what became of it is unknown.
const CLAIMS: usize = 5;

fn decoded<T: DeserializeOwned>(what: &str, rows: &[(Bytes,)]) -> Result<Vec<T>, ReadError> {
    rows.iter().map(|(value,)| values::decode(what, value)).collect()
}

impl Shared {
    /// Writes what entries change. Each place has a write of its own: none depends on another.
    pub(super) async fn project(&self, projection: Projection) -> Result<(), AppendError> {
        let Projection { conversation, rows, group, members, reactions, stamp } = projection;
        let (cql, stamp) = (&self.cql, bigint(stamp.0));
        self.write_rows(&conversation, &rows, stamp).await?;
        if let Some(id) = conversation.group_id() {
            if let Some(group) = group {
                let values = (id.as_str(), values::encode(&*group), stamp);
                cql.write(&cql.statements.put_group, values).await?;
            }
            for members in members.chunks(WIDTH) {
                together(members.iter().map(|member| self.put_member(&id, member, stamp))).await?;
            }
        }
        for reactions in reactions.chunks(WIDTH) {
            together(reactions.iter().map(|reaction| self.put_reaction(&conversation, reaction, stamp)))
                .await?;
        }
        Ok(())
    }

    async fn put_member(&self, group: &GroupId, member: &MemberRow, stamp: i64) -> Result<(), Failure> {
        let (cql, user) = (&self.cql, member.user.as_str());
        let values = (group.as_str(), part_of(user, MEMBER_PARTS), user, values::encode(member), stamp);
        cql.write(&cql.statements.put_member, values).await?;
        if member.left.is_none() {
            let values = (self.now_micros(), group.as_str(), user);
            cql.write(&cql.statements.drop_join_request, values).await?;
        }
        Ok(())
    }
}

impl ScyllaStore {
    async fn member(&self, group: &GroupId, user: &UserId) -> Result<Option<MemberRow>, ReadError> {
        let values = (group.as_str(), part_of(user.as_str(), MEMBER_PARTS), user.as_str());
        let row: Option<(Bytes,)> = self.cql().row(&self.cql().statements.member, values).await?;
        row.map(|(value,)| values::decode("a member", &value)).transpose()
    }
}

impl GroupStore for ScyllaStore {
    fn group<'a>(&'a self, group: &'a GroupId) -> BoxFuture<'a, Result<Option<GroupRow>, ReadError>> {
        async move {
            let row: Option<(Bytes,)> =
                self.cql().row(&self.cql().statements.group, (group.as_str(),)).await?;
            row.map(|(value,)| values::decode("a group", &value)).transpose()
        }
        .boxed()
    }

    fn groups_of<'a>(
        &'a self,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<GroupRow>>, ReadError>> {
        stream::iter(groups).map(|group| self.group(group)).buffered(WIDTH).try_collect().boxed()
    }

    fn members<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<MemberRow>, ReadError>> {
        async move {
            let after = after.map_or("", UserId::as_str);
            let pages = (0..MEMBER_PARTS).map(|part| {
                let values = (group.as_str(), part, after, limit(at_most));
                self.cql().rows::<(String, Bytes), _>(&self.cql().statements.members, values)
            });
            let mut rows: Vec<_> = try_join_all(pages).await?.into_iter().flatten().collect();
            rows.sort_unstable_by(|one, other| one.0.cmp(&other.0));
            rows.truncate(at_most);
            rows.iter().map(|(_, value)| values::decode("a member", value)).collect()
        }
        .boxed()
    }

    fn memberships<'a>(
        &'a self,
        user: &'a UserId,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<MemberRow>>, ReadError>> {
        stream::iter(groups).map(|group| self.member(group, user)).buffered(WIDTH).try_collect().boxed()
    }

    fn join_requests<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<JoinRequestRow>, ReadError>> {
        async move {
            let values = (group.as_str(), after.map_or("", UserId::as_str), limit(at_most));
            let mut rows = self.cql().rows(&self.cql().statements.join_requests, values).await?;
            rows.truncate(at_most);
            decoded("a request to join", &rows)
        }
        .boxed()
    }

    fn put_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        request: &'a JoinRequestRow,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            let now = self.shared.now_micros();
            let values = (group.as_str(), request.user.as_str(), values::encode(request), now);
            Ok(self.cql().write(&self.cql().statements.put_join_request, values).await?)
        }
        .boxed()
    }

    fn drop_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        user: &'a UserId,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            let values = (self.shared.now_micros(), group.as_str(), user.as_str());
            Ok(self.cql().write(&self.cql().statements.drop_join_request, values).await?)
        }
        .boxed()
    }

    fn claim_group_id<'a>(
        &'a self,
        creator: &'a UserId,
        client_id: ClientId,
        candidate: &'a GroupId,
    ) -> BoxFuture<'a, Result<GroupId, WriteError>> {
        async move {
            self.is_open()?;
            let cql = self.cql();
            let mut failed = WriteError(String::new());
            for _ in 0..CLAIMS {
                let claim = (creator.as_str(), client_id.0, candidate.as_str());
                // Whether it was this attempt or another, applied or not: what the replicas agreed on is what counts. An
                // attempt that applies later finds a row and changes nothing.
                if let Err(failure) = cql.decide(&cql.statements.claim_group_id, claim).await {
                    failed = failure.into();
                }
                let key = (creator.as_str(), client_id.0);
                let row: Result<Option<(String,)>, _> = cql.row(&cql.statements.claimed_group_id, key).await;
                match row {
                    Ok(Some((id,))) => {
                        return GroupId::new(&id).map_err(|error| WriteError(error.to_string()));
                    }
                    Ok(None) => {}
                    Err(error) => failed = WriteError(error.to_string()),
                }
            }
            Err(failed)
        }
        .boxed()
    }
}

/// A user's id as it was kept.
pub(super) fn user_id(text: &str) -> Result<UserId, ReadError> {
    UserId::new(text).map_err(corrupt)
}
