//! Commands that ask the server for something beside talking: groups, changes of messages.

use std::str::FromStr;

use convoke_client::{Client, ClientError};
use convoke_protocol::group::{GroupProfile, GroupRole};
use convoke_protocol::id::{ConversationId, ConversationKind, GroupId, Seq, Timestamp, UserId};
use convoke_protocol::message::Content;
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{
    Delete, Edit, Hide, React, Reactions, Recall, Retention, SetRetention,
};
use convoke_protocol::request::groups::{
    AddMembers, CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupMembers, JoinGroup, JoinRequests,
    LeaveGroup, Mute, RemoveMembers, SetRole, TransferGroup, UpdateGroup,
};

use super::text;
use crate::clock::Clock;

/// What of these `/help` says.
pub(super) const HELP: &str = "\
/create ID USER…   make a group          /add USER…      /remove USER…
/members           who is in it          /role USER admin|member
/mute USER|all MIN silence for minutes   /unmute USER|all
/rename NAME       /info                 /transfer USER
/join ID           /requests             /accept USER    /reject USER
/leave             /disband
/edit N TEXT       say something else    /recall N       take it back
/delete N          for all               /hide N         for yourself
/react N KIND      /unreact N KIND       /reactions N KIND
/keep N            only the last N messages stay";

/// Members and requests that one command shows.
const SHOWN: u32 = 200;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Create(GroupId, Vec<UserId>),
    Add(Vec<UserId>),
    Remove(Vec<UserId>),
    Members,
    Info,
    Role(UserId, GroupRole),
    /// Whom (everybody, if none), and for how many minutes.
    Mute(Option<UserId>, u64),
    Rename(String),
    Transfer(UserId),
    Join(GroupId),
    Requests,
    Decide(UserId, bool),
    Leave,
    Disband,
    Edit(Seq, String),
    Recall(Seq),
    Delete(Seq),
    Hide(Seq),
    React(Seq, String, bool),
    Reactions(Seq, String),
    Keep(u64),
}

fn one<T: FromStr>(text: &str, what: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| format!("{text:?} is no {what}: {error}"))
}

fn users(text: &str) -> Result<Vec<UserId>, String> {
    let users: Result<Vec<_>, _> = text.split_whitespace().map(|name| one(name, "user")).collect();
    users.and_then(|users| if users.is_empty() { Err("name at least one user".into()) } else { Ok(users) })
}

fn seq(text: &str) -> Result<Seq, String> {
    one::<u64>(text.trim_start_matches('#'), "number of a message").map(Seq)
}

/// A first word, and what follows it.
fn pair<'a>(text: &'a str, usage: &str) -> Result<(&'a str, &'a str), String> {
    let (first, rest) = text.split_once(' ').ok_or_else(|| format!("usage: {usage}"))?;
    match rest.trim() {
        "" => Err(format!("usage: {usage}")),
        rest => Ok((first, rest)),
    }
}

fn whom(text: &str) -> Result<Option<UserId>, String> {
    if text == "all" { Ok(None) } else { one(text, "user").map(Some) }
}

impl Command {
    /// A command by its name; `None` if it is not one of these.
    ///
    /// # Errors
    /// What is wrong with its arguments.
    pub(super) fn parse(name: &str, argument: &str) -> Result<Option<Self>, String> {
        Ok(Some(match name {
            "create" => {
                let (id, members) = argument.split_once(' ').unwrap_or((argument, ""));
                let members = members.split_whitespace().map(|name| one(name, "user"));
                Self::Create(one(id, "group")?, members.collect::<Result<_, _>>()?)
            }
            "add" => Self::Add(users(argument)?),
            "remove" => Self::Remove(users(argument)?),
            "members" => Self::Members,
            "info" => Self::Info,
            "role" => match pair(argument, "/role USER admin|member")? {
                (user, "admin") => Self::Role(one(user, "user")?, GroupRole::ADMIN),
                (user, "member") => Self::Role(one(user, "user")?, GroupRole::MEMBER),
                _ => return Err("a role is admin or member".into()),
            },
            "mute" => {
                let (user, minutes) = pair(argument, "/mute USER|all MINUTES")?;
                Self::Mute(whom(user)?, one(minutes, "number of minutes")?)
            }
            "unmute" => Self::Mute(whom(argument)?, 0),
            "rename" if argument.is_empty() => return Err("usage: /rename NAME".into()),
            "rename" => Self::Rename(argument.to_owned()),
            "transfer" => Self::Transfer(one(argument, "user")?),
            "join" => Self::Join(one(argument, "group")?),
            "requests" => Self::Requests,
            "accept" => Self::Decide(one(argument, "user")?, true),
            "reject" => Self::Decide(one(argument, "user")?, false),
            "leave" => Self::Leave,
            "disband" => Self::Disband,
            "edit" => {
                let (n, words) = pair(argument, "/edit N TEXT")?;
                Self::Edit(seq(n)?, words.to_owned())
            }
            "recall" => Self::Recall(seq(argument)?),
            "delete" => Self::Delete(seq(argument)?),
            "hide" => Self::Hide(seq(argument)?),
            "react" | "unreact" => {
                let (n, kind) = pair(argument, "/react N KIND")?;
                Self::React(seq(n)?, kind.to_owned(), name == "react")
            }
            "reactions" => {
                let (n, kind) = pair(argument, "/reactions N KIND")?;
                Self::Reactions(seq(n)?, kind.to_owned())
            }
            "keep" => Self::Keep(one(argument, "number of messages")?),
            _ => return Ok(None),
        }))
    }

    /// Asks the server, and says in lines what became of it.
    ///
    /// # Errors
    /// As the server says.
    pub(super) async fn carry_out(
        self,
        client: &Client,
        open: Option<&ConversationId>,
    ) -> Result<Vec<String>, Failure> {
        let retry = Retry::first();
        if let Self::Create(group, members) = self {
            let profile = GroupProfile { name: group.to_string(), ..GroupProfile::default() };
            let ask = CreateGroup { retry, group: Some(group), unique: false, profile, members };
            let made = client.call(ask).await?;
            return Ok(vec![format!("made {}; /group {} opens it", made.conversation, made.group)]);
        }
        if let Self::Join(group) = self {
            let joined = client.call(JoinGroup { retry, group, message: String::new() }).await?;
            let what = if joined.requested { "asked to join" } else { "joined" };
            return Ok(vec![format!("{what} {}", joined.group)]);
        }
        let open = open.ok_or(Failure::Nowhere)?;
        match self {
            Self::Edit(..)
            | Self::Recall(_)
            | Self::Delete(_)
            | Self::Hide(_)
            | Self::React(..)
            | Self::Reactions(..)
            | Self::Keep(_) => self.change(client, open.clone(), retry).await,
            _ => {
                let ConversationKind::Group(group) = open.kind() else { return Err(Failure::NoGroup) };
                let group = GroupId::new(group).map_err(|_| Failure::NoGroup)?;
                self.manage(client, group, retry).await
            }
        }
    }

    async fn change(
        self,
        client: &Client,
        conversation: ConversationId,
        retry: Retry,
    ) -> Result<Vec<String>, Failure> {
        let seq = match self {
            Self::Edit(seq, words) => {
                client.call(Edit { retry, conversation, seq, content: Content::text(words) }).await?.seq
            }
            Self::Recall(seq) => client.call(Recall { retry, conversation, seq }).await?.seq,
            Self::Delete(seq) => client.call(Delete { retry, conversation, seq, hard: false }).await?.seq,
            Self::React(seq, kind, give) => {
                client.call(React { retry, conversation, seq, kind, give }).await?.seq
            }
            Self::Hide(seq) => {
                client.call(Hide { retry, conversation, seqs: vec![seq], up_to: None }).await?;
                return Ok(vec![format!("{seq} is hidden from you, on all your devices")]);
            }
            Self::Reactions(seq, kind) => {
                let ask = Reactions { conversation, seq, kind, after: None, limit: SHOWN };
                let page = client.call(ask).await?;
                let more = page.next.map(|_| "…".to_owned());
                return Ok(page.users.iter().map(ToString::to_string).chain(more).collect());
            }
            Self::Keep(messages) => {
                let retention = Some(Retention { max_age_ms: None, max_messages: Some(messages) });
                client.call(SetRetention { retry, conversation, retention }).await?;
                return Ok(vec![format!("only the last {messages} messages stay")]);
            }
            _ => return Err(Failure::NoGroup),
        };
        Ok(done(seq))
    }

    async fn manage(self, client: &Client, group: GroupId, retry: Retry) -> Result<Vec<String>, Failure> {
        let seq = match self {
            Self::Add(users) => client.call(AddMembers { retry, group, users }).await?.seq,
            Self::Remove(users) => client.call(RemoveMembers { retry, group, users }).await?.seq,
            Self::Role(user, role) => client.call(SetRole { retry, group, user, role }).await?.seq,
            Self::Mute(user, minutes) => {
                let now = Clock::new(0).wall();
                let until =
                    (minutes > 0).then(|| Timestamp(now.0.saturating_add(minutes.saturating_mul(60_000))));
                client.call(Mute { retry, group, user, until }).await?.seq
            }
            Self::Rename(name) => {
                let update = UpdateGroup {
                    retry,
                    group,
                    name: Some(name),
                    description: None,
                    avatar: None,
                    announcement: None,
                    custom: Vec::new(),
                    join_policy: None,
                    add_policy: None,
                    history_for_new_members: None,
                };
                client.call(update).await?.seq
            }
            Self::Transfer(to) => client.call(TransferGroup { retry, group, to }).await?.seq,
            Self::Decide(user, accept) => client.call(DecideJoin { retry, group, user, accept }).await?.seq,
            Self::Leave => client.call(LeaveGroup { retry, group }).await?.seq,
            Self::Disband => client.call(DisbandGroup { retry, group }).await?.seq,
            Self::Members => {
                let ask = GroupMembers { group, after: None, limit: SHOWN, known_version: None };
                let page = client.call(ask).await?;
                let shown = page.members.iter().map(|member| format!("{} ({})", member.user, member.role));
                let more = page.next.map(|_| format!("… {} in all", page.total));
                return Ok(shown.chain(more).collect());
            }
            Self::Requests => {
                let page = client.call(JoinRequests { group, after: None, limit: SHOWN }).await?;
                return Ok(page
                    .requests
                    .iter()
                    .map(|one| format!("{} {}", one.user, text::one_line(&one.message)))
                    .collect());
            }
            Self::Info => {
                let state = client.call(GetGroup { group, known_version: None }).await?;
                let Some(info) = state.info else { return Ok(Vec::new()) };
                let owner = state.owner.map_or_else(String::new, |owner| format!(", owned by {owner}"));
                return Ok(vec![format!(
                    "{} ({}): {} members{owner}; join: {}; announcement: {}",
                    text::one_line(&info.profile.name),
                    info.group,
                    state.members,
                    info.profile.join_policy,
                    text::one_line(&info.profile.announcement)
                )]);
            }
            _ => return Err(Failure::NoGroup),
        };
        Ok(done(seq))
    }
}

/// A command whose entry comes by itself says no more than that it is there.
fn done(seq: Option<Seq>) -> Vec<String> {
    if seq.is_some() { Vec::new() } else { vec!["there was nothing to change".into()] }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("/to USER or /group ID first: where?")]
    Nowhere,
    #[error("this is for groups: /group ID first")]
    NoGroup,
    #[error(transparent)]
    Server(#[from] ClientError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_their_arguments() {
        let user = |name: &str| UserId::new(name).expect("valid");
        let team = GroupId::new("team").expect("valid");
        for (name, argument, command) in [
            ("create", "team bob carol", Command::Create(team.clone(), vec![user("bob"), user("carol")])),
            ("create", "team", Command::Create(team.clone(), Vec::new())),
            ("add", "bob  carol", Command::Add(vec![user("bob"), user("carol")])),
            ("role", "bob admin", Command::Role(user("bob"), GroupRole::ADMIN)),
            ("mute", "bob 5", Command::Mute(Some(user("bob")), 5)),
            ("mute", "all 5", Command::Mute(None, 5)),
            ("unmute", "all", Command::Mute(None, 0)),
            ("rename", "The team", Command::Rename("The team".into())),
            ("join", "team", Command::Join(team)),
            ("accept", "bob", Command::Decide(user("bob"), true)),
            ("edit", "7 other words", Command::Edit(Seq(7), "other words".into())),
            ("recall", "#7", Command::Recall(Seq(7))),
            ("react", "7 👍", Command::React(Seq(7), "👍".into(), true)),
            ("unreact", "7 👍", Command::React(Seq(7), "👍".into(), false)),
            ("keep", "100", Command::Keep(100)),
        ] {
            assert_eq!(Command::parse(name, argument), Ok(Some(command)), "/{name} {argument}");
        }
        for (name, argument) in [
            ("create", ""),
            ("create", "a:b"),
            ("add", " "),
            ("role", "bob king"),
            ("role", "bob"),
            ("mute", "bob"),
            ("mute", "bob soon"),
            ("edit", "7"),
            ("edit", "x words"),
            ("recall", ""),
            ("react", "7 "),
            ("rename", ""),
        ] {
            assert!(Command::parse(name, argument).is_err(), "/{name} {argument}");
        }
        assert_eq!(Command::parse("dance", ""), Ok(None));
    }
}
