//! Who may do what, as a table; and random commands against a naive model.

use std::collections::{BTreeMap, BTreeSet};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::group::{
    AddPolicy, GroupProfile, GroupRole, HistoryForNewMembers, JoinPolicy, MAX_ANNOUNCEMENT_BYTES,
    MAX_AVATAR_BYTES, MAX_CUSTOM_ENTRIES, MAX_DESCRIPTION_BYTES, MAX_GROUP_NAME_BYTES,
    MAX_MEMBERS_PER_REQUEST,
};
use convoke_protocol::id::{GroupId, Seq, Timestamp, UserId};
use proptest::prelude::*;

use super::*;
use crate::storage::LogStart;

const LIMITS: GroupLimits = GroupLimits { max_members: 6 };

fn user(name: &str) -> UserId {
    UserId::new(name).expect("valid")
}

fn id() -> GroupId {
    GroupId::new("team").expect("valid")
}

fn at(seq: u64) -> EntryPlace {
    EntryPlace { seq: Seq(seq), time: Timestamp(1_000 + seq), ordinal: 10 * seq, start: LogStart::default() }
}

fn asking(name: &str) -> Asking {
    let role = if name == "service" { Role::Service } else { Role::User };
    Asking { user: user(name), role }
}

fn done(group: &mut Option<Group>, by: &str, command: &GroupCommand, seq: u64) -> Result<bool, RequestError> {
    let decided = decide(&id(), group.as_ref(), &asking(by), command, at(seq), LIMITS)?;
    if let Some(decided) = &decided {
        Group::apply(group, &decided.change);
    }
    Ok(decided.is_some())
}

fn create(members: &[&str], profile: GroupProfile, unique: bool) -> GroupCommand {
    GroupCommand::Create { profile, members: members.iter().map(|name| user(name)).collect(), unique }
}

/// Owned by `owner`, with an admin, two members, and `left`, who left.
fn team(profile: GroupProfile) -> Option<Group> {
    let mut group = None;
    let members = ["admin", "member", "other", "left"];
    assert_eq!(done(&mut group, "owner", &create(&members, profile, false), 1), Ok(true));
    let admin = GroupCommand::SetRole(user("admin"), GroupRole::ADMIN);
    assert_eq!(done(&mut group, "owner", &admin, 2), Ok(true));
    assert_eq!(done(&mut group, "left", &GroupCommand::Leave, 3), Ok(true));
    group
}

#[test]
fn who_may_do_what() {
    use GroupCommand::{Add, Admit, Disband, Join, Leave, Mute, Remove, SetRole, Transfer, Update};
    let named = |name: &str| user(name);
    let until = Some(Timestamp(99_999));
    let rename = || Update(ProfileChange { name: Some("x".into()), ..ProfileChange::default() });
    let (ok, forbidden, hidden) = ("ok", "not_permitted", "not_found");
    // Who asks:            owner, admin, member, left, nobody, service
    let table: Vec<(GroupCommand, [&str; 6])> = vec![
        (rename(), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Add(vec![named("new")]), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Remove(vec![named("other")]), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Remove(vec![named("admin")]), [ok, forbidden, forbidden, forbidden, hidden, ok]),
        (Remove(vec![named("owner")]), [forbidden, forbidden, forbidden, forbidden, hidden, forbidden]),
        (Leave, [forbidden, ok, ok, forbidden, hidden, "none"]),
        (SetRole(named("other"), GroupRole::ADMIN), [ok, forbidden, forbidden, forbidden, hidden, ok]),
        (
            SetRole(named("owner"), GroupRole::MEMBER),
            [forbidden, forbidden, forbidden, forbidden, hidden, forbidden],
        ),
        (Transfer(named("other")), [ok, forbidden, forbidden, forbidden, hidden, ok]),
        (Mute(Some(named("other")), until), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Mute(Some(named("admin")), until), [ok, forbidden, forbidden, forbidden, hidden, ok]),
        (Mute(Some(named("owner")), until), [forbidden, forbidden, forbidden, forbidden, hidden, forbidden]),
        (Mute(None, until), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Join, ["none", "none", "none", hidden, hidden, hidden]),
        (Admit(named("new")), [ok, ok, forbidden, forbidden, hidden, ok]),
        (Disband, [ok, forbidden, forbidden, forbidden, hidden, ok]),
    ];
    for (command, expected) in table {
        for (by, expected) in
            ["owner", "admin", "member", "left", "nobody", "service"].into_iter().zip(expected)
        {
            let mut group = team(GroupProfile::default());
            let before = group.clone();
            let found = match done(&mut group, by, &command, 4) {
                Ok(true) => "ok",
                Ok(false) => "none",
                Err(error) => {
                    assert_eq!(group, before);
                    error.code.name()
                }
            };
            assert_eq!(found, expected, "{by}: {command:?}");
            let mut none = None;
            assert_eq!(
                done(&mut none, by, &command, 1).map_err(|error| error.code),
                Err(ErrorCode::NOT_FOUND)
            );
            // What does not change anything is no entry.
            if found == "ok" && !matches!(command, Disband | Leave | Remove(_)) {
                let again = done(&mut group, by, &command, 5);
                let handed_over = matches!(command, Transfer(_)) && by == "owner";
                assert!(handed_over || again == Ok(false), "{by}: {command:?} again: {again:?}");
            }
        }
    }
}

#[test]
fn policies_say_who_adds_joins_and_reads() {
    let open = GroupProfile {
        join_policy: JoinPolicy::OPEN,
        add_policy: AddPolicy::MEMBERS,
        history_for_new_members: HistoryForNewMembers::EVERYTHING,
        ..GroupProfile::default()
    };
    let mut group = team(open);
    assert_eq!(done(&mut group, "member", &GroupCommand::Add(vec![user("new")]), 4), Ok(true));
    let all = Visibility { from: Seq(1), from_ordinal: 0, to: None };
    let team = group.as_ref().expect("made");
    assert_eq!((team.visibility(&user("new")), team.visibility(&user("nobody"))), (Some(all), None));
    let gone = team.visibility(&user("left")).and_then(|seen| seen.to);
    assert_eq!(gone.map(|left| (left.seq, left.ordinal)), Some((Seq(3), 30)));
    assert_eq!(done(&mut group, "left", &GroupCommand::Join, 5), Ok(true));
    let full = done(&mut group, "one-more", &GroupCommand::Join, 6).map_err(|error| error.code);
    assert_eq!(full, Err(ErrorCode::GROUP_FULL));
    let none = ProfileChange {
        history_for_new_members: Some(HistoryForNewMembers::NONE),
        ..ProfileChange::default()
    };
    assert_eq!(done(&mut group, "owner", &GroupCommand::Update(none), 6), Ok(true));
    assert_eq!(done(&mut group, "owner", &GroupCommand::Remove(vec![user("new")]), 7), Ok(true));
    assert_eq!(done(&mut group, "owner", &GroupCommand::Add(vec![user("new")]), 8), Ok(true));
    let later = Visibility { from: Seq(8), from_ordinal: 80, to: None };
    assert_eq!(group.as_ref().and_then(|group| group.visibility(&user("new"))), Some(later));
}

#[test]
fn the_silenced_wait_and_admins_speak() {
    let mut group = team(GroupProfile::default());
    let (now, until) = (Timestamp(2_000), Timestamp(3_000));
    let speaks = |group: &Option<Group>, name: &str| {
        let spoken = group.as_ref().expect("made").may_speak(&user(name), now);
        spoken.map_err(|error| (error.code.name(), error.retry_after_ms))
    };
    let silenced = Err(("muted", Some(1_000)));
    assert_eq!(speaks(&group, "member"), Ok(()));
    done(&mut group, "admin", &GroupCommand::Mute(Some(user("member")), Some(until)), 4).expect("allowed");
    assert_eq!((speaks(&group, "member"), speaks(&group, "other")), (silenced, Ok(())));
    done(&mut group, "owner", &GroupCommand::Mute(None, Some(until)), 5).expect("allowed");
    assert_eq!((speaks(&group, "other"), speaks(&group, "admin")), (silenced, Ok(())));
    assert_eq!(speaks(&group, "left"), Err(("not_permitted", None)));
    assert_eq!(speaks(&group, "nobody"), Err(("not_found", None)));
    let spoken = group.as_ref().expect("made").may_speak(&user("other"), until);
    assert_eq!(spoken, Ok(()));
    done(&mut group, "owner", &GroupCommand::Disband, 6).expect("allowed");
    assert_eq!(speaks(&group, "owner"), Err(("group_ended", None)));
    let after = done(&mut group, "owner", &GroupCommand::Disband, 7).map_err(|error| error.code);
    assert_eq!(after, Err(ErrorCode::GROUP_ENDED));
    let after = done(&mut group, "nobody", &GroupCommand::Join, 7).map_err(|error| error.code);
    assert_eq!(after, Err(ErrorCode::NOT_FOUND));
}

#[test]
fn what_is_too_much_is_refused_by_name() {
    let plain = GroupProfile::default;
    let long = |bytes: usize| "x".repeat(bytes + 1);
    let custom = (0..=MAX_CUSTOM_ENTRIES).map(|n| (format!("{n}"), String::new())).collect();
    let profiles = [
        ("name", GroupProfile { name: long(MAX_GROUP_NAME_BYTES), ..plain() }),
        ("name", GroupProfile { name: "a\nb".into(), ..plain() }),
        ("description", GroupProfile { description: long(MAX_DESCRIPTION_BYTES), ..plain() }),
        ("avatar", GroupProfile { avatar: long(MAX_AVATAR_BYTES), ..plain() }),
        ("announcement", GroupProfile { announcement: long(MAX_ANNOUNCEMENT_BYTES), ..plain() }),
        ("custom", GroupProfile { custom, ..plain() }),
        ("custom", GroupProfile { custom: BTreeMap::from([(String::new(), String::new())]), ..plain() }),
        ("custom", GroupProfile { custom: BTreeMap::from([("k".into(), long(1_024))]), ..plain() }),
        ("join_policy", GroupProfile { join_policy: JoinPolicy(9), ..plain() }),
    ];
    for (field, profile) in profiles {
        let error = done(&mut None, "owner", &create(&[], profile, false), 1).expect_err("too much");
        assert_eq!(error.code, ErrorCode::INVALID_REQUEST);
        assert!(error.message.contains(field), "{error}");
    }
    let crowd: Vec<_> = (0..=MAX_MEMBERS_PER_REQUEST).map(|n| user(&format!("u{n}"))).collect();
    let mut group = team(plain());
    for (command, code) in [
        (GroupCommand::Add(crowd), ErrorCode::INVALID_REQUEST),
        (GroupCommand::Add(vec![user("system")]), ErrorCode::INVALID_REQUEST),
        (GroupCommand::Add(vec![user("a"), user("b"), user("c")]), ErrorCode::GROUP_FULL),
        (GroupCommand::SetRole(user("member"), GroupRole::OWNER), ErrorCode::INVALID_REQUEST),
        (GroupCommand::SetRole(user("nobody"), GroupRole::ADMIN), ErrorCode::NOT_FOUND),
        (create(&[], plain(), false), ErrorCode::GROUP_EXISTS),
    ] {
        assert_eq!(
            done(&mut group, "owner", &command, 4).map_err(|error| error.code),
            Err(code),
            "{command:?}"
        );
    }
    let alone = done(&mut None, "service", &create(&[], plain(), false), 1).map_err(|error| error.code);
    assert_eq!(alone, Err(ErrorCode::INVALID_REQUEST));
}

#[test]
fn ids_of_unique_groups_follow_from_the_participants() {
    let pair = [user("alice"), user("bob")];
    // On disks and in clients since the first version: it cannot change.
    assert_eq!(unique_id(&pair, 0).as_str(), format!("u-{:032x}", xxh3_128(b"alice\0bob\0")));
    assert_ne!(unique_id(&pair, 0), unique_id(&[user("alice"), user("bobby")], 0));
    assert_ne!(unique_id(&[user("ab"), user("c")], 0), unique_id(&[user("a"), user("bc")], 0));
    assert_eq!(unique_id(&pair, 1).as_str(), format!("{}-2", unique_id(&pair, 0)));
}

const NAMES: [&str; 8] = ["owner", "a", "b", "c", "d", "e", "f", "service"];

fn commands() -> impl Strategy<Value = Vec<(usize, u8, usize, u8)>> {
    prop::collection::vec((0..NAMES.len(), 0..11u8, 0..NAMES.len() - 1, any::<u8>()), 1..80)
}

proptest! {
    /// Roles, mutes and who is in it against a naive model that knows only names.
    #[test]
    fn random_commands_keep_the_rules(commands in commands()) {
        let mut group = None;
        let mut entries: Vec<Change> = Vec::new();
        let mut model: BTreeMap<&str, GroupRole> = BTreeMap::new();
        let mut was_member: BTreeSet<&str> = BTreeSet::new();
        let mut policy = JoinPolicy::INVITATION;
        let mut ended = false;
        let first = decide(&id(), None, &asking("owner"), &create(&[], GroupProfile::default(), false), at(1), LIMITS);
        let first = first.expect("allowed").expect("a change");
        Group::apply(&mut group, &first.change);
        entries.push(first.change);
        model.insert("owner", GroupRole::OWNER);
        was_member.insert("owner");
        for (n, (by, what, target, more)) in commands.into_iter().enumerate() {
            let (by, target) = (NAMES[by], NAMES[target]);
            let policies = JoinPolicy::ALL;
            let command = match what {
                0 => GroupCommand::Add(vec![user(target)]),
                1 => GroupCommand::Remove(vec![user(target)]),
                2 => GroupCommand::Leave,
                3 => GroupCommand::SetRole(user(target), if more % 2 == 0 { GroupRole::ADMIN } else { GroupRole::MEMBER }),
                4 => GroupCommand::Transfer(user(target)),
                5 => GroupCommand::Mute(Some(user(target)), (more % 2 == 0).then_some(Timestamp(1 << 40))),
                6 => GroupCommand::Mute(None, (more % 2 == 0).then_some(Timestamp(1 << 40))),
                7 => GroupCommand::Join,
                8 => GroupCommand::Update(ProfileChange {
                    join_policy: Some(policies[usize::from(more) % policies.len()]),
                    ..ProfileChange::default()
                }),
                9 => GroupCommand::Admit(user(target)),
                _ if more < 8 => GroupCommand::Disband,
                _ => GroupCommand::Join,
            };
            let place = at(n as u64 + 2);
            let before = group.clone();
            let decided = decide(&id(), group.as_ref(), &asking(by), &command, place, LIMITS);
            let own = if by == "service" { Some(GroupRole::OWNER) } else { model.get(by).copied() };
            // Who never was a member learns nothing, save that an open group can be joined.
            if own.is_none() && !was_member.contains(by) && !(matches!(command, GroupCommand::Join) && policy == JoinPolicy::OPEN) {
                prop_assert_eq!(decided.clone().map_err(|error| error.code).err(), Some(ErrorCode::NOT_FOUND));
            }
            if ended {
                prop_assert!(decided.is_err());
            }
            let Ok(Some(decided)) = decided else {
                prop_assert_eq!(&group, &before);
                continue;
            };
            // What was done had to be allowed.
            let at_least = |role: GroupRole| own.is_some_and(|own| own >= role);
            match &command {
                GroupCommand::Join => {
                    prop_assert_eq!(policy, JoinPolicy::OPEN);
                    model.insert(by, GroupRole::MEMBER);
                    was_member.insert(by);
                }
                GroupCommand::Add(_) | GroupCommand::Admit(_) => {
                    prop_assert!(at_least(GroupRole::ADMIN) && !model.contains_key(target));
                    model.insert(target, GroupRole::MEMBER);
                    was_member.insert(target);
                }
                GroupCommand::Remove(_) => {
                    prop_assert!(own > model.get(target).copied() && at_least(GroupRole::ADMIN));
                    model.remove(target);
                }
                GroupCommand::Leave => {
                    prop_assert!(model.get(by).is_some_and(|own| *own != GroupRole::OWNER));
                    model.remove(by);
                }
                GroupCommand::SetRole(_, role) => {
                    prop_assert!(at_least(GroupRole::OWNER));
                    model.insert(target, *role);
                }
                GroupCommand::Transfer(_) => {
                    prop_assert!(at_least(GroupRole::OWNER));
                    for role in model.values_mut().filter(|role| **role == GroupRole::OWNER) {
                        *role = GroupRole::ADMIN;
                    }
                    model.insert(target, GroupRole::OWNER);
                }
                GroupCommand::Mute(Some(_), _) => prop_assert!(at_least(GroupRole::ADMIN) && own > model.get(target).copied()),
                GroupCommand::Mute(None, _) => prop_assert!(at_least(GroupRole::ADMIN)),
                GroupCommand::Update(change) => {
                    prop_assert!(at_least(GroupRole::ADMIN));
                    policy = change.join_policy.unwrap_or(policy);
                }
                GroupCommand::Disband => {
                    prop_assert!(at_least(GroupRole::OWNER));
                    ended = true;
                }
                GroupCommand::Create { .. } => unreachable!("it is not among them"),
            }
            Group::apply(&mut group, &decided.change);
            let once = group.clone();
            Group::apply(&mut group, &decided.change);
            prop_assert_eq!(&group, &once, "applied twice");
            entries.push(decided.change);
            let now = group.as_ref().expect("made");
            let roles: BTreeMap<&str, GroupRole> =
                now.members_after(None).map(|member| (member.user.as_str(), member.role)).collect();
            prop_assert_eq!(&roles, &model);
            prop_assert_eq!(roles.values().filter(|role| **role == GroupRole::OWNER).count(), 1);
            prop_assert!(now.count() == roles.len() && roles.len() <= LIMITS.max_members);
            prop_assert_eq!(now.version(), place.seq);
        }
        // The entries, one after the other, are the group; so is what they wrote.
        let mut replayed = None;
        for change in &entries {
            Group::apply(&mut replayed, change);
        }
        prop_assert_eq!(&replayed, &group);
        let mut row = None;
        let mut members = BTreeMap::new();
        for change in &entries {
            if let Change::Group(group, _) = change {
                row = Some((**group).clone());
            }
            members.extend(change.members().iter().map(|member| (member.user.clone(), member.clone())));
        }
        let loaded = Group::load(row.expect("made"), members.into_values().collect());
        prop_assert_eq!(Some(loaded), group);
    }
}
