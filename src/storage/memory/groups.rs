//! Groups, reactions, what is hidden, and rules of retention, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use convoke_protocol::id::{ClientId, ConversationId, GroupId, Seq, UserId};
use convoke_protocol::message::ReactionCount;
use convoke_protocol::request::changes::Retention;
use futures_util::future::{self, BoxFuture, FutureExt};

use super::MemoryStore;
use crate::storage::{
    GroupRow, GroupStore, HiddenRows, HiddenStore, JoinRequestRow, LogStart, MemberRow, Projection,
    ReactionCounts, ReactionRow, ReactionStore, ReadError, RetentionStore, WriteError, WriteStamp,
};

/// A value and the stamp it was written with.
struct Stamped<T>(WriteStamp, T);

/// Keeps the value if its stamp is not below what is there.
fn put<K: Ord, T>(map: &mut BTreeMap<K, Stamped<T>>, key: K, stamp: WriteStamp, value: T) {
    if map.get(&key).is_none_or(|kept| kept.0 <= stamp) {
        map.insert(key, Stamped(stamp, value));
    }
}

type ReactionKey = (Seq, String);

#[derive(Default)]
struct Reactions {
    counts: BTreeMap<ReactionKey, Stamped<u32>>,
    givers: BTreeMap<(Seq, String, UserId), Stamped<bool>>,
}

/// What entries change besides rows of their log, and what belongs to conversations.
#[derive(Default)]
pub(super) struct Projected {
    groups: BTreeMap<GroupId, Stamped<GroupRow>>,
    members: BTreeMap<(GroupId, UserId), Stamped<MemberRow>>,
    requests: BTreeMap<(GroupId, UserId), JoinRequestRow>,
    creations: HashMap<(UserId, ClientId), GroupId>,
    reactions: HashMap<ConversationId, Reactions>,
    hidden: HashMap<(UserId, ConversationId), (Seq, BTreeSet<Seq>)>,
    retention: BTreeMap<ConversationId, Retention>,
    pub(super) starts: HashMap<ConversationId, LogStart>,
}

impl Projected {
    /// Keeps all but the rows of the log.
    pub(super) fn project(&mut self, projection: Projection) {
        let Projection { conversation, rows: _, group, members, reactions, stamp } = projection;
        if let Some(id) = conversation.group_id() {
            if let Some(group) = group {
                put(&mut self.groups, id.clone(), stamp, *group);
            }
            for member in members {
                if member.left.is_none() {
                    self.requests.remove(&(id.clone(), member.user.clone()));
                }
                put(&mut self.members, (id.clone(), member.user.clone()), stamp, member);
            }
        }
        if !reactions.is_empty() {
            let kept = self.reactions.entry(conversation).or_default();
            for ReactionRow { target, kind, user, given, count } in reactions {
                put(&mut kept.counts, (target, kind.clone()), stamp, count);
                put(&mut kept.givers, (target, kind, user), stamp, given);
            }
        }
    }

    /// Forgets what belongs to rows below `start`.
    pub(super) fn trim(&mut self, conversation: &ConversationId, start: LogStart) {
        self.starts.insert(conversation.clone(), start);
        if let Some(reactions) = self.reactions.get_mut(conversation) {
            reactions.counts.retain(|(seq, _), _| *seq >= start.seq);
            reactions.givers.retain(|(seq, ..), _| *seq >= start.seq);
        }
    }
}

/// What stands above `after` and belongs to `group`, by user.
fn of_group<'a, T>(
    map: &'a BTreeMap<(GroupId, UserId), T>,
    group: &'a GroupId,
    after: Option<&UserId>,
) -> impl Iterator<Item = &'a T> {
    let smallest = UserId::new("!").expect("a valid name");
    let from = match after {
        Some(after) => Bound::Excluded((group.clone(), after.clone())),
        // '!' is the smallest character that a name may have.
        None => Bound::Included((group.clone(), smallest)),
    };
    map.range((from, Bound::Unbounded)).take_while(move |((of, _), _)| of == group).map(|(_, value)| value)
}

fn ready<'a, T: Send + 'a, E: Send + 'a>(result: Result<T, E>) -> BoxFuture<'a, Result<T, E>> {
    future::ready(result).boxed()
}

impl MemoryStore {
    fn writing<'a, T: Send + 'a>(
        &'a self,
        write: impl FnOnce(&mut Projected) -> T,
    ) -> BoxFuture<'a, Result<T, WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return ready(Err(WriteError("the store is shut down".into())));
        }
        ready(Ok(write(&mut state.projected)))
    }
}

impl GroupStore for MemoryStore {
    fn group<'a>(&'a self, group: &'a GroupId) -> BoxFuture<'a, Result<Option<GroupRow>, ReadError>> {
        ready(Ok(self.state.lock().projected.groups.get(group).map(|kept| kept.1.clone())))
    }

    fn groups_of<'a>(
        &'a self,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<GroupRow>>, ReadError>> {
        let kept = &self.state.lock().projected.groups;
        ready(Ok(groups.iter().map(|group| kept.get(group).map(|kept| kept.1.clone())).collect()))
    }

    fn members<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<MemberRow>, ReadError>> {
        let state = self.state.lock();
        let members = of_group(&state.projected.members, group, after);
        ready(Ok(members.take(limit).map(|kept| kept.1.clone()).collect()))
    }

    fn memberships<'a>(
        &'a self,
        user: &'a UserId,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<MemberRow>>, ReadError>> {
        let kept = &self.state.lock().projected.members;
        let of = |group: &GroupId| kept.get(&(group.clone(), user.clone())).map(|kept| kept.1.clone());
        ready(Ok(groups.iter().map(of).collect()))
    }

    fn join_requests<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<JoinRequestRow>, ReadError>> {
        let state = self.state.lock();
        ready(Ok(of_group(&state.projected.requests, group, after).take(limit).cloned().collect()))
    }

    fn put_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        request: &'a JoinRequestRow,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(|kept| {
            kept.requests.insert((group.clone(), request.user.clone()), request.clone());
        })
    }

    fn drop_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        user: &'a UserId,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(|kept| {
            kept.requests.remove(&(group.clone(), user.clone()));
        })
    }

    fn claim_group_id<'a>(
        &'a self,
        creator: &'a UserId,
        client_id: ClientId,
        candidate: &'a GroupId,
    ) -> BoxFuture<'a, Result<GroupId, WriteError>> {
        self.writing(|kept| {
            kept.creations.entry((creator.clone(), client_id)).or_insert_with(|| candidate.clone()).clone()
        })
    }
}

impl ReactionStore for MemoryStore {
    fn reaction_counts<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<ReactionCounts, ReadError>> {
        let state = self.state.lock();
        let mut found = ReactionCounts::new();
        let kept = state.projected.reactions.get(conversation).filter(|_| from <= to);
        let range = kept.map(|kept| kept.counts.range((from, String::new())..(to.next(), String::new())));
        for ((seq, kind), Stamped(_, count)) in range.into_iter().flatten().filter(|(_, kept)| kept.1 > 0) {
            let one = ReactionCount { kind: kind.clone(), count: *count };
            match found.last_mut() {
                Some((last, counts)) if last == seq => counts.push(one),
                _ => found.push((*seq, vec![one])),
            }
        }
        ready(Ok(found))
    }

    fn reaction_counts_of<'a>(
        &'a self,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<Vec<ReactionCount>>, ReadError>> {
        async move {
            let mut found = Vec::with_capacity(messages.len());
            for (conversation, seq) in messages {
                let counts = self.reaction_counts(conversation, *seq, *seq).await?;
                found.push(counts.into_iter().flat_map(|(_, counts)| counts).collect());
            }
            Ok(found)
        }
        .boxed()
    }

    fn gives_reactions<'a>(
        &'a self,
        conversation: &'a ConversationId,
        user: &'a UserId,
        of: &'a [(Seq, String)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        let state = self.state.lock();
        let kept = state.projected.reactions.get(conversation);
        let gives = |(seq, kind): &ReactionKey| {
            kept.and_then(|kept| kept.givers.get(&(*seq, kind.clone(), user.clone())))
                .is_some_and(|kept| kept.1)
        };
        ready(Ok(of.iter().map(gives).collect()))
    }

    fn reactors<'a>(
        &'a self,
        conversation: &'a ConversationId,
        seq: Seq,
        kind: &'a str,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<UserId>, ReadError>> {
        let state = self.state.lock();
        let kept = state.projected.reactions.get(conversation);
        let givers = kept.into_iter().flat_map(|kept| &kept.givers);
        let of = givers.filter(|((of, which, user), kept)| {
            *of == seq && which == kind && kept.1 && after.is_none_or(|after| user > after)
        });
        ready(Ok(of.map(|((.., user), _)| user.clone()).take(limit).collect()))
    }
}

impl HiddenStore for MemoryStore {
    fn hide<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        rows: &'a HiddenRows,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(|kept| {
            let (up_to, seqs) = kept.hidden.entry((user.clone(), conversation.clone())).or_default();
            *up_to = rows.up_to.max(*up_to);
            seqs.extend(&rows.seqs);
        })
    }

    fn are_hidden<'a>(
        &'a self,
        user: &'a UserId,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        async move {
            let mut found = Vec::with_capacity(messages.len());
            for (conversation, seq) in messages {
                found.push(self.hidden(user, conversation, *seq, *seq).await?.has(*seq));
            }
            Ok(found)
        }
        .boxed()
    }

    fn hidden<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<HiddenRows, ReadError>> {
        let state = self.state.lock();
        let Some((up_to, seqs)) = state.projected.hidden.get(&(user.clone(), conversation.clone())) else {
            return ready(Ok(HiddenRows::default()));
        };
        let from = from.max(up_to.next());
        let seqs = if from <= to { seqs.range(from..=to).copied().collect() } else { Vec::new() };
        ready(Ok(HiddenRows { up_to: *up_to, seqs }))
    }
}

impl RetentionStore for MemoryStore {
    fn set_retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
        retention: Option<Retention>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(|kept| {
            match retention {
                Some(retention) => kept.retention.insert(conversation.clone(), retention),
                None => kept.retention.remove(conversation),
            };
        })
    }

    fn retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Retention>, ReadError>> {
        ready(Ok(self.state.lock().projected.retention.get(conversation).copied()))
    }

    fn with_retention<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, Retention)>, ReadError>> {
        let state = self.state.lock();
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let found = state.projected.retention.range::<ConversationId, _>(above).take(limit);
        ready(Ok(found.map(|(id, retention)| (id.clone(), *retention)).collect()))
    }

    fn logs<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        let state = self.state.lock();
        let mut ids: Vec<_> =
            state.logs.keys().filter(|id| after.is_none_or(|after| *id > after)).cloned().collect();
        ids.sort();
        ids.truncate(limit);
        ready(Ok(ids))
    }
}
