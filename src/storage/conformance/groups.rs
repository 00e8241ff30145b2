//! Checks of what entries change besides their log: groups, reactions, hidden messages; and of retention.

use std::collections::{BTreeMap, BTreeSet};

use convoke_protocol::group::{AddPolicy, GroupRole, HistoryForNewMembers, JoinPolicy};
use convoke_protocol::id::{ClientId, ConversationId, GroupId, Seq, Timestamp};
use convoke_protocol::message::ReactionCount;
use convoke_protocol::request::changes::Retention;
use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::oneshot;

use super::{Fixture, all, append_of, conversation, row, rows, seqs, store, user};
use crate::storage::row::OUTDATED;
use crate::storage::{
    AppendError, Change, Epoch, GroupRow, HiddenRows, Hint, JoinRequestRow, Left, LogRow, LogStart,
    MemberRow, MessageLog, Projection, ReactionRow, ReadLimit, RowsAbove, Stores, Tail, WriteStamp,
};

/// A group that was made by its first entry.
pub fn group_row(name: &str) -> GroupRow {
    GroupRow {
        name: name.into(),
        description: "d".into(),
        avatar: "a".into(),
        announcement: "n".into(),
        custom: BTreeMap::from([("k".into(), "v".into())]),
        join_policy: JoinPolicy::OPEN,
        add_policy: AddPolicy::MEMBERS,
        history_for_new_members: HistoryForNewMembers::EVERYTHING,
        unique: false,
        created_at: Timestamp(1),
        created_by: user("alice"),
        muted_until: Some(Timestamp(2)),
        disbanded_at: None,
        version: Seq(1),
    }
}

/// A member who came by an entry.
pub fn member_row(name: &str, version: u64) -> MemberRow {
    MemberRow {
        user: user(name),
        role: GroupRole::MEMBER,
        joined_at: Timestamp(3),
        added_by: user("alice"),
        muted_until: None,
        visible_from: Seq(version),
        from_ordinal: 7,
        left: None,
        version: Seq(version),
    }
}

/// A projection of nothing.
pub fn nothing_of(conversation: &ConversationId, stamp: u64) -> Projection {
    Projection::empty(conversation, WriteStamp::new(Epoch(1), stamp))
}

/// Projects and waits for the answer.
pub async fn project(log: &dyn MessageLog, projection: Projection) -> Result<(), AppendError> {
    let (tell, told) = oneshot::channel();
    log.project(projection, Box::new(move |result| drop(tell.send(result))));
    told.await.expect("every projection is answered")
}

/// A reaction of a user, and the count it leads to.
pub fn reaction(target: u64, kind: &str, name: &str, given: bool, count: u32) -> ReactionRow {
    ReactionRow { target: Seq(target), kind: kind.into(), user: user(name), given, count }
}

fn group(name: &str) -> GroupId {
    GroupId::new(name).expect("a valid name")
}

pub async fn projections_change_rows_and_repeat_without_effect(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let mut log = rows(1, 5, "text");
    assert_eq!(store(&*stores.log, append_of(&team, &log, 1)).await, Ok(()));
    log[1].entry.recalled_at = Some(Timestamp(9));
    log[2].entry.content = convoke_protocol::message::Content::text("edited");
    log[2].entry.edited_at = Some(Timestamp(9));
    log[2].entry.last_edit = Some(Seq(5));
    log[3].entry.flags = OUTDATED;
    log[3].entry.change = Some(Change::Edit { target: Seq(3), last_edit: None });
    let projection = Projection { rows: log[1..4].to_vec(), ..nothing_of(&team, 2) };
    for _ in 0..2 {
        assert_eq!(project(&*stores.log, projection.clone()).await, Ok(()));
        assert_eq!(all(&stores, &team).await, log);
        let range = RowsAbove { conversation: team.clone(), after: Seq::ZERO, to: Seq(5) };
        assert_eq!(stores.marks.uncounted(&[range]).await, Ok(vec![1]));
    }
    assert_eq!(project(&*stores.log, nothing_of(&team, 3)).await, Ok(()));
    // Nothing of it moved a mark.
    let key = crate::storage::MarkKey { user: user("alice"), conversation: team };
    assert_eq!(stores.marks.marks(&[key]).await, Ok(vec![log[4].mark()]));
}

pub async fn groups_and_members_are_kept_and_paged(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (id, other) = (group("team"), group("team2"));
    let (team, team2) = (ConversationId::group(&id), ConversationId::group(&other));
    assert_eq!(stores.groups.group(&id).await, Ok(None));
    let names = ["alice", "bob", "carol", "Ærøskøbing", "a", "alice2"];
    let members: Vec<_> = names.iter().map(|name| member_row(name, 1)).collect();
    let made = Projection { group: Some(Box::new(group_row("Team"))), members, ..nothing_of(&team, 1) };
    assert_eq!(project(&*stores.log, made.clone()).await, Ok(()));
    let one = Projection {
        group: Some(Box::new(group_row("Other"))),
        members: vec![member_row("bob", 1)],
        ..nothing_of(&team2, 1)
    };
    assert_eq!(project(&*stores.log, one).await, Ok(()));
    assert_eq!(stores.groups.group(&id).await, Ok(Some(group_row("Team"))));
    let asked = [other.clone(), group("absent"), id.clone()];
    let found = vec![Some(group_row("Other")), None, Some(group_row("Team"))];
    assert_eq!(stores.groups.groups_of(&asked).await, Ok(found));
    let left = Left { seq: Seq(9), ordinal: 4, time: Timestamp(5) };
    let gone = MemberRow { left: Some(left), version: Seq(9), ..member_row("bob", 1) };
    let change = Projection { members: vec![gone.clone()], ..nothing_of(&team, 2) };
    for _ in 0..2 {
        assert_eq!(project(&*stores.log, change.clone()).await, Ok(()));
    }
    let mut expected: BTreeMap<_, _> =
        made.members.iter().map(|one| (one.user.clone(), one.clone())).collect();
    expected.insert(gone.user.clone(), gone.clone());
    let expected: Vec<_> = expected.into_values().collect();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = stores.groups.members(&id, after.as_ref(), 2).await.expect("readable");
        after = page.last().map(|member| member.user.clone());
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    assert_eq!(found, expected);
    let stands = vec![Some(member_row("bob", 1)), None, Some(gone)];
    assert_eq!(stores.groups.memberships(&user("bob"), &asked).await, Ok(stands));
}

pub async fn requests_to_join_end_with_the_membership(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let id = group("club");
    let request = |name: &str, text: &str| JoinRequestRow {
        user: user(name),
        message: text.into(),
        asked_at: Timestamp(4),
    };
    for name in ["carol", "alice", "bob"] {
        assert_eq!(stores.groups.put_join_request(&id, &request(name, "first")).await, Ok(()));
    }
    assert_eq!(stores.groups.put_join_request(&id, &request("bob", "again")).await, Ok(()));
    let page = stores.groups.join_requests(&id, Some(&user("alice")), 9).await;
    assert_eq!(page, Ok(vec![request("bob", "again"), request("carol", "first")]));
    let page = stores.groups.join_requests(&id, None, 1).await;
    assert_eq!(page, Ok(vec![request("alice", "first")]));
    assert_eq!(stores.groups.drop_join_request(&id, &user("alice")).await, Ok(()));
    assert_eq!(stores.groups.drop_join_request(&id, &user("nobody")).await, Ok(()));
    let came =
        Projection { members: vec![member_row("bob", 2)], ..nothing_of(&ConversationId::group(&id), 1) };
    assert_eq!(project(&*stores.log, came).await, Ok(()));
    let page = stores.groups.join_requests(&id, None, 9).await;
    assert_eq!(page, Ok(vec![request("carol", "first")]));
    assert_eq!(stores.groups.join_requests(&group("other"), None, 9).await, Ok(Vec::new()));
}

pub async fn every_attempt_is_given_the_same_group_id(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (request, other) = (ClientId::random(), ClientId::random());
    let alice = user("alice");
    let candidates: Vec<_> = (0..8).map(|n| group(&format!("candidate-{n}"))).collect();
    let claims = candidates.iter().map(|candidate| stores.groups.claim_group_id(&alice, request, candidate));
    let given: Vec<_> = join_all(claims).await.into_iter().map(|given| given.expect("claimed")).collect();
    assert!(candidates.contains(&given[0]) && given.iter().all(|one| *one == given[0]), "{given:?}");
    let fresh = group("fresh");
    assert_eq!(stores.groups.claim_group_id(&alice, other, &fresh).await, Ok(fresh.clone()));
    assert_eq!(stores.groups.claim_group_id(&user("bob"), request, &fresh).await, Ok(fresh));
}

pub async fn reactions_are_what_a_naive_count_says(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let mut random = SmallRng::seed_from_u64(7);
    let (kinds, names) = (["👍", "x", "xy"], ["alice", "bob", "carol"]);
    let mut model: BTreeSet<(u64, usize, usize)> = BTreeSet::new();
    for stamp in 0..60 {
        let (seq, kind, who) =
            (random.random_range(1..=4), random.random_range(0..3), random.random_range(0..3));
        let given = model.insert((seq, kind, who)) || !model.remove(&(seq, kind, who));
        let count = model.iter().filter(|(at, which, _)| (*at, *which) == (seq, kind)).count() as u32;
        let reactions = vec![reaction(seq, kinds[kind], names[who], given, count)];
        assert_eq!(project(&*stores.log, Projection { reactions, ..nothing_of(&team, stamp) }).await, Ok(()));
    }
    let counted = |from: u64, to: u64| {
        let mut counts: BTreeMap<(u64, &str), u32> = BTreeMap::new();
        for (seq, kind, _) in model.iter().filter(|(seq, ..)| (from..=to).contains(seq)) {
            *counts.entry((*seq, kinds[*kind])).or_default() += 1;
        }
        let mut found: Vec<(Seq, Vec<ReactionCount>)> = Vec::new();
        let mut ordered: Vec<_> = counts.into_iter().collect();
        ordered.sort();
        for ((seq, kind), count) in ordered {
            let one = ReactionCount { kind: kind.to_owned(), count };
            match found.last_mut() {
                Some((last, counts)) if last.0 == seq => counts.push(one),
                _ => found.push((Seq(seq), vec![one])),
            }
        }
        found
    };
    for (from, to) in [(1, 4), (2, 3), (4, 4), (5, 9), (3, 2)] {
        let found = stores.reactions.reaction_counts(&team, Seq(from), Seq(to)).await;
        assert_eq!(found, Ok(counted(from, to)), "{from}..={to}");
    }
    let asked: Vec<_> = (1..=5).map(|seq| (team.clone(), Seq(seq))).collect();
    let single = |seq| counted(seq, seq).pop().map_or(Vec::new(), |(_, counts)| counts);
    let expected: Vec<_> = (1..=5).map(single).collect();
    assert_eq!(stores.reactions.reaction_counts_of(&asked).await, Ok(expected));
    for seq in 1..=4 {
        for (k, kind) in kinds.iter().enumerate() {
            let expected: Vec<_> =
                (0..3).filter(|who| model.contains(&(seq, k, *who))).map(|who| user(names[who])).collect();
            let found = stores.reactions.reactors(&team, Seq(seq), kind, None, 9).await;
            assert_eq!(found, Ok(expected.clone()));
            let page = stores.reactions.reactors(&team, Seq(seq), kind, Some(&user("alice")), 1).await;
            let after: Vec<_> = expected.into_iter().filter(|who| *who > user("alice")).take(1).collect();
            assert_eq!(page, Ok(after));
        }
        for (who, name) in names.iter().enumerate() {
            let of: Vec<_> = kinds.iter().map(|kind| (Seq(seq), (*kind).to_owned())).collect();
            let gives = (0..3).map(|kind| model.contains(&(seq, kind, who))).collect();
            assert_eq!(stores.reactions.gives_reactions(&team, &user(name), &of).await, Ok(gives));
        }
    }
}

pub async fn what_is_hidden_stays_hidden_for_that_user(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (alice, team) = (user("alice"), conversation("team"));
    let hide = |up_to, seqs: &[u64]| HiddenRows {
        up_to: Seq(up_to),
        seqs: seqs.iter().map(|seq| Seq(*seq)).collect(),
    };
    let of = |from, to| stores.hidden.hidden(&alice, &team, Seq(from), Seq(to));
    for rows in [hide(0, &[5, 9]), hide(3, &[]), hide(2, &[7, 300]), hide(0, &[9])] {
        assert_eq!(stores.hidden.hide(&alice, &team, &rows).await, Ok(()));
    }
    assert_eq!(of(1, 1_000).await, Ok(hide(3, &[5, 7, 9, 300])));
    assert_eq!(of(6, 9).await, Ok(hide(3, &[7, 9])));
    assert_eq!(of(1, 2).await, Ok(hide(3, &[])));
    assert_eq!(stores.hidden.hide(&alice, &team, &hide(8, &[])).await, Ok(()));
    let found = of(1, 1_000).await.expect("readable");
    assert_eq!(found, hide(8, &[9, 300]));
    assert!(found.has(Seq(1)) && found.has(Seq(9)) && !found.has(Seq(10)));
    let asked = [(team.clone(), Seq(8)), (conversation("other"), Seq(9)), (team.clone(), Seq(300))];
    assert_eq!(stores.hidden.are_hidden(&alice, &asked).await, Ok(vec![true, false, true]));
    assert_eq!(stores.hidden.are_hidden(&user("bob"), &asked).await, Ok(vec![false; 3]));
    assert_eq!(stores.hidden.hidden(&user("bob"), &team, Seq(1), Seq(9)).await, Ok(HiddenRows::default()));
    let other = conversation("other");
    assert_eq!(stores.hidden.hidden(&alice, &other, Seq(1), Seq(9)).await, Ok(HiddenRows::default()));
}

pub async fn a_trimmed_log_begins_where_it_was_said(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (team, other) = (conversation("team"), conversation("team2"));
    let mut log = rows(1, 2_500, "text");
    log[4].entry.recalled_at = Some(Timestamp(9));
    log[2_400].entry.recalled_at = Some(Timestamp(9));
    assert_eq!(store(&*stores.log, append_of(&team, &log, 1)).await, Ok(()));
    assert_eq!(store(&*stores.log, append_of(&other, &log[..3], 1)).await, Ok(()));
    let reactions = vec![reaction(5, "x", "bob", true, 1), reaction(2_401, "x", "bob", true, 1)];
    assert_eq!(project(&*stores.log, Projection { reactions, ..nothing_of(&team, 2) }).await, Ok(()));
    let stamp = WriteStamp::new(Epoch(1), 3);
    let start = LogStart { seq: Seq(2_301), ordinal: 2_300 };
    // A lower one changes nothing, nor does the same again.
    for asked in [start, LogStart { seq: Seq(2), ordinal: 1 }, start] {
        assert_eq!(stores.log.trim(&team, asked, stamp).await, Ok(()));
        assert_eq!(stores.log.start(&team).await, Ok(start));
    }
    assert_eq!(seqs(&all(&stores, &team).await), (2_301..=2_500).collect::<Vec<_>>());
    let range = RowsAbove { conversation: team.clone(), after: Seq::ZERO, to: Seq(2_500) };
    assert_eq!(stores.marks.uncounted(&[range]).await, Ok(vec![1]));
    let counts = stores.reactions.reaction_counts(&team, Seq(1), Seq(2_500)).await.expect("readable");
    assert_eq!(counts.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [2_401]);
    assert_eq!(all(&stores, &other).await, log[..3]);
    assert_eq!(stores.log.start(&other).await, Ok(LogStart::default()));
    if !fixture.has_one_owner() {
        for (id, last) in [(&other, &log[2]), (&team, &log[2_499])] {
            let hint = Hint { base: last.seq, id: last.id };
            assert_eq!(stores.log.put_hint(id, hint, stamp).await, Ok(()));
        }
    }
    let tails = stores.log.tails(&[other, conversation("none"), team]).await.expect("readable");
    let tail = |row: &LogRow, start| Tail { hinted: Some(row.clone()), settled: true, start };
    let none = Tail { hinted: None, settled: true, start: LogStart::default() };
    assert_eq!(tails, [tail(&log[2], LogStart::default()), none, tail(&log[2_499], start)]);
}

pub async fn rules_of_retention_are_kept_and_listed(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let rule = |n| Retention { max_age_ms: None, max_messages: Some(n) };
    let ids: Vec<_> = ["a", "b", "c"].iter().map(|name| conversation(name)).collect();
    assert_eq!(stores.retention.retention(&ids[0]).await, Ok(None));
    for (n, id) in (1..).zip(&ids) {
        assert_eq!(stores.retention.set_retention(id, Some(rule(n))).await, Ok(()));
        assert_eq!(store(&*stores.log, append_of(id, &rows(1, 2, "text"), 1)).await, Ok(()));
    }
    assert_eq!(stores.retention.set_retention(&ids[1], None).await, Ok(()));
    assert_eq!(stores.retention.retention(&ids[0]).await, Ok(Some(rule(1))));
    let listed = stores.retention.with_retention(None, 9).await;
    assert_eq!(listed, Ok(vec![(ids[0].clone(), rule(1)), (ids[2].clone(), rule(3))]));
    let listed = stores.retention.with_retention(Some(&ids[0]), 1).await;
    assert_eq!(listed, Ok(vec![(ids[2].clone(), rule(3))]));
    assert_eq!(stores.retention.logs(None, 2).await, Ok(ids[..2].to_vec()));
    assert_eq!(stores.retention.logs(Some(&ids[1]), 2).await, Ok(ids[2..].to_vec()));
    // One whose beginning never was in this store.
    let copied = conversation("d");
    let log = rows(1, 5, "text");
    assert_eq!(store(&*stores.log, append_of(&copied, &log[3..], 1)).await, Ok(()));
    let start = LogStart { seq: Seq(4), ordinal: 3 };
    assert_eq!(stores.log.trim(&copied, start, WriteStamp::new(Epoch(1), 2)).await, Ok(()));
    assert_eq!(stores.retention.logs(Some(&ids[2]), 2).await, Ok(vec![copied.clone()]));
    let range = ReadLimit::rows(9);
    assert_eq!(stores.log.read(&copied, Seq(1), Seq(9), range).await, Ok(log[3..].to_vec()));
}

/// Whatever the batches were, the hint never passes an entry whose changes may not be written, unless it was kept.
pub async fn the_hint_stays_below_changes_that_may_not_be_written(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let mut random = SmallRng::seed_from_u64(11);
    for n in 0..30 {
        let id = conversation(&format!("hint-{n}"));
        let mut log: Vec<LogRow> = Vec::new();
        for _ in 0..random.random_range(1..6) {
            let base = log.last().map_or(Seq::ZERO, |row| row.seq);
            let mut batch = Vec::new();
            for _ in 0..random.random_range(1..5) {
                let before = batch.last().or(log.last());
                let mut next = row(before.map_or(0, |row: &LogRow| row.seq.0) + 1, before, "text");
                next.base = base;
                if random.random_bool(0.3) {
                    next.entry.change = Some(Change::Recall { target: Seq(1), last_edit: None });
                }
                batch.push(next);
            }
            assert_eq!(store(&*stores.log, append_of(&id, &batch, 1)).await, Ok(()));
            log.extend(batch);
        }
        let last = log.last().expect("not empty");
        let above = |row: &&LogRow| row.seq > last.base;
        let first_change = log.iter().filter(above).find(|row| row.entry.change.is_some());
        let told = first_change.map_or(last.seq, |row| Seq(row.seq.0 - 1));
        let expected = if fixture.has_one_owner() { told } else { Seq::ZERO };
        let hint = stores.log.hint(&id).await.expect("readable");
        assert_eq!(hint.map_or(Seq::ZERO, |hint| hint.base), expected);
        check_tail(&stores, &id, hint, last.seq).await;
        // One that is kept counts, a lower one does not take it back.
        let kept = Hint { base: last.seq, id: last.id };
        let lower = Hint { base: log[0].seq, id: log[0].id };
        for hint in [kept, lower] {
            assert_eq!(stores.log.put_hint(&id, hint, WriteStamp::new(Epoch(1), 2)).await, Ok(()));
            assert_eq!(stores.log.hint(&id).await, Ok(Some(kept)));
        }
        check_tail(&stores, &id, Some(kept), last.seq).await;
    }
}

async fn check_tail(stores: &Stores, id: &ConversationId, hint: Option<Hint>, last: Seq) {
    let tail = stores.log.tails(std::slice::from_ref(id)).await.expect("readable").remove(0);
    let base = hint.map_or(Seq::ZERO, |hint| hint.base);
    assert_eq!(tail.hinted.as_ref().map(|row| row.id), hint.map(|hint| hint.id));
    assert_eq!(tail.settled, base == last);
    let at = stores.log.read(id, base, base, ReadLimit::rows(1)).await.expect("readable").pop();
    assert_eq!(tail.hinted, at);
}

pub async fn what_entries_changed_is_there_after_reopening(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let id = group("team");
    let team = ConversationId::group(&id);
    let log = rows(1, 5, "text");
    assert_eq!(store(&*stores.log, append_of(&team, &log, 1)).await, Ok(()));
    let change = Projection {
        group: Some(Box::new(group_row("Team"))),
        members: vec![member_row("bob", 1)],
        reactions: vec![reaction(3, "x", "bob", true, 1)],
        ..nothing_of(&team, 2)
    };
    assert_eq!(project(&*stores.log, change).await, Ok(()));
    let hidden = HiddenRows { up_to: Seq(1), seqs: vec![Seq(3)] };
    assert_eq!(stores.hidden.hide(&user("bob"), &team, &hidden).await, Ok(()));
    let start = LogStart { seq: Seq(2), ordinal: 1 };
    assert_eq!(stores.log.trim(&team, start, WriteStamp::new(Epoch(1), 3)).await, Ok(()));
    let request = ClientId::random();
    assert_eq!(stores.groups.claim_group_id(&user("bob"), request, &id).await, Ok(id.clone()));
    if !fixture.reopen().await {
        return;
    }
    let stores = fixture.stores();
    assert_eq!(stores.groups.group(&id).await, Ok(Some(group_row("Team"))));
    assert_eq!(stores.groups.members(&id, None, 9).await, Ok(vec![member_row("bob", 1)]));
    let counts = stores.reactions.reaction_counts(&team, Seq(1), Seq(9)).await;
    assert_eq!(counts, Ok(vec![(Seq(3), vec![ReactionCount { kind: "x".into(), count: 1 }])]));
    assert_eq!(stores.hidden.hidden(&user("bob"), &team, Seq(1), Seq(9)).await, Ok(hidden));
    assert_eq!(stores.log.start(&team).await, Ok(start));
    assert_eq!(all(&stores, &team).await, log[1..]);
    assert_eq!(stores.groups.claim_group_id(&user("bob"), request, &group("other")).await, Ok(id));
}
