//! Every statement that goes to the server, in one table: what it is called, of which class it is, and its CQL.
//!
//! | class | consistency | repeated after an unknown outcome |
//! | --- | --- | --- |
//! | [`Class::Read`] | LOCAL_QUORUM | yes |
//! | [`Class::Write`] | LOCAL_QUORUM, with an explicit timestamp | yes: the same cells with the same timestamp |
//! | [`Class::Decide`] | LOCAL_QUORUM with SERIAL (a lightweight transaction) | never by the driver; who sent it reads what became of it |
//! | [`Class::Serial`] | SERIAL read | yes |
//!
//! The CQL stays within what ScyllaDB and Apache Cassandra both accept. A timestamp of a row of a log, and of what entries
//! project, is its [`crate::storage::WriteStamp`]; where only ever the highest value counts (cursors, marks, hints,
//! starts), the value itself is the timestamp, so that replicas keep the highest in whatever order writes arrive.

use std::fmt;

use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};

use super::speculation::Traffic;

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A quorum of replicas answers.
    Read,
    /// A quorum of replicas has it.
    Write,
    /// The replicas agree on it (LWT).
    Decide,
    /// What the replicas agreed on.
    Serial,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read | Self::Write => "LOCAL_QUORUM",
            Self::Decide => "LOCAL_QUORUM + SERIAL",
            Self::Serial => "SERIAL",
        })
    }
}

/// A statement as docs/storage.md lists it.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// Its name here.
    pub name: &'static str,
    /// How it is sent.
    pub class: Class,
    /// What is sent.
    pub cql: &'static str,
}

macro_rules! statements {
    ($($name:ident: $class:ident $cql:literal;)*) => {
        /// All of them, prepared.
        #[derive(Debug)]
        pub(super) struct Statements {
            $(pub(super) $name: PreparedStatement,)*
        }

        impl Statements {
            /// Prepares all, to be counted there. The session must use the keyspace.
            pub(super) async fn prepare(session: &Session, traffic: &Traffic) -> Result<Self, PrepareError> {
                Ok(Self { $($name: prepare(session, traffic, Class::$class, $cql).await?,)* })
            }
        }

        /// All of them, to be read.
        pub const DESCRIBED: &[Described] =
            &[$(Described { name: stringify!($name), class: Class::$class, cql: $cql },)*];
    };
}

async fn prepare(
    session: &Session,
    traffic: &Traffic,
    class: Class,
    cql: &str,
) -> Result<PreparedStatement, PrepareError> {
    let mut statement = session.prepare(cql).await?;
    statement.set_consistency(match class {
        Class::Serial => Consistency::Serial,
        Class::Read | Class::Write | Class::Decide => Consistency::LocalQuorum,
    });
    statement.set_serial_consistency((class == Class::Decide).then_some(SerialConsistency::Serial));
    statement.set_is_idempotent(class != Class::Decide);
    statement.set_history_listener(traffic.listener());
    Ok(statement)
}

statements! {
    // The logs.
    put_row: Write "INSERT INTO messages (conversation, bucket, seq, row) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    rows_up: Read "SELECT seq, row FROM messages WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ?";
    rows_down: Read "SELECT seq, row FROM messages WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ? ORDER BY seq DESC";
    any_row: Read "SELECT seq FROM messages WHERE conversation = ? AND bucket = ? AND seq >= ? LIMIT 1";
    trim_rows: Write "DELETE FROM messages USING TIMESTAMP ? WHERE conversation = ? AND bucket = ? AND seq < ?";
    put_hint: Write "INSERT INTO hints (conversation, hint) VALUES (?, ?) USING TIMESTAMP ?";
    hint: Read "SELECT hint FROM hints WHERE conversation = ?";
    put_start: Write "INSERT INTO log_starts (conversation, start) VALUES (?, ?) USING TIMESTAMP ?";
    put_trimmed: Write "INSERT INTO log_starts (conversation, trimmed) VALUES (?, ?) USING TIMESTAMP ?";
    start: Read "SELECT start, trimmed FROM log_starts WHERE conversation = ?";
    put_log: Write "INSERT INTO logs (part, conversation) VALUES (?, ?) USING TIMESTAMP ?";
    logs: Read "SELECT conversation FROM logs WHERE part = ? AND conversation > ? LIMIT ?";

    // What does not count as unread.
    put_uncounted: Write "INSERT INTO uncounted (conversation, bucket, seq) VALUES (?, ?, ?) USING TIMESTAMP ?";
    count_uncounted: Read "SELECT COUNT(*) FROM uncounted WHERE conversation = ? AND bucket = ? AND seq > ? AND seq <= ?";
    trim_uncounted: Write "DELETE FROM uncounted USING TIMESTAMP ? WHERE conversation = ? AND bucket = ? AND seq < ?";

    // What belongs to users.
    put_listed: Write "INSERT INTO lists (user, conversation) VALUES (?, ?) USING TIMESTAMP ?";
    listed: Read "SELECT conversation FROM lists WHERE user = ? AND conversation > ? LIMIT ?";
    is_listed: Read "SELECT conversation FROM lists WHERE user = ? AND conversation = ?";
    put_cursor: Write "INSERT INTO cursors (user, device, conversation, seq) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    cursors: Read "SELECT conversation, seq FROM cursors WHERE user = ? AND device = ? AND conversation IN ?";
    put_mark: Write "INSERT INTO read_marks (user, conversation, seq, ordinal) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    marks: Read "SELECT conversation, seq, ordinal FROM read_marks WHERE user = ? AND conversation IN ?";
    put_label: Write "INSERT INTO settings (user, conversation, label) VALUES (?, ?, ?) USING TIMESTAMP ?";
    put_muted: Write "INSERT INTO settings (user, conversation, muted) VALUES (?, ?, ?) USING TIMESTAMP ?";
    put_pinned: Write "INSERT INTO settings (user, conversation, pinned) VALUES (?, ?, ?) USING TIMESTAMP ?";
    settings: Read "SELECT conversation, label, muted, pinned FROM settings WHERE user = ? LIMIT ?";
    hide_up_to: Write "UPDATE hidden USING TIMESTAMP ? SET up_to = ? WHERE user = ? AND conversation = ?";
    hide_row: Write "INSERT INTO hidden (user, conversation, seq) VALUES (?, ?, ?) USING TIMESTAMP ?";
    hidden_up_to: Read "SELECT up_to FROM hidden WHERE user = ? AND conversation = ? LIMIT 1";
    hidden_rows: Read "SELECT seq FROM hidden WHERE user = ? AND conversation = ? AND seq >= ? AND seq <= ?";

    // Groups.
    put_group: Write "INSERT INTO groups (group_id, row) VALUES (?, ?) USING TIMESTAMP ?";
    group: Read "SELECT row FROM groups WHERE group_id = ?";
    put_member: Write "INSERT INTO members (group_id, part, user, row) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
    member: Read "SELECT row FROM members WHERE group_id = ? AND part = ? AND user = ?";
    members: Read "SELECT user, row FROM members WHERE group_id = ? AND part = ? AND user > ? LIMIT ?";
    put_join_request: Write "INSERT INTO join_requests (group_id, user, row) VALUES (?, ?, ?) USING TIMESTAMP ?";
    drop_join_request: Write "DELETE FROM join_requests USING TIMESTAMP ? WHERE group_id = ? AND user = ?";
    join_requests: Read "SELECT row FROM join_requests WHERE group_id = ? AND user > ? LIMIT ?";
    claim_group_id: Decide "INSERT INTO group_creations (creator, client_id, group_id) VALUES (?, ?, ?) IF NOT EXISTS";
    claimed_group_id: Serial "SELECT group_id FROM group_creations WHERE creator = ? AND client_id = ?";

    // Reactions.
    put_reaction_count: Write "INSERT INTO reaction_counts (conversation, bucket, seq, kind, count) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
    put_reaction_giver: Write "INSERT INTO reaction_givers (conversation, bucket, seq, kind, user, given) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    reaction_counts: Read "SELECT seq, kind, count FROM reaction_counts WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ?";
    reaction_giver: Read "SELECT given FROM reaction_givers WHERE conversation = ? AND bucket = ? AND seq = ? AND kind = ? AND user = ?";
    reaction_givers: Read "SELECT user, given FROM reaction_givers WHERE conversation = ? AND bucket = ? AND seq = ? AND kind = ? AND user > ?";
    trim_reaction_counts: Write "DELETE FROM reaction_counts USING TIMESTAMP ? WHERE conversation = ? AND bucket = ? AND seq < ?";
    trim_reaction_givers: Write "DELETE FROM reaction_givers USING TIMESTAMP ? WHERE conversation = ? AND bucket = ? AND seq < ?";

    // Retention.
    put_retention: Write "INSERT INTO retention (part, conversation, rule) VALUES (?, ?, ?) USING TIMESTAMP ?";
    drop_retention: Write "DELETE FROM retention USING TIMESTAMP ? WHERE part = ? AND conversation = ?";
    retention: Read "SELECT rule FROM retention WHERE part = ? AND conversation = ?";
    with_retention: Read "SELECT conversation, rule FROM retention WHERE part = ? AND conversation > ? LIMIT ?";

    // Walking through what users have, by partition.
    walk_lists: Read "SELECT DISTINCT user, token(user) FROM lists WHERE token(user) > ? LIMIT ?";
    walk_cursors: Read "SELECT DISTINCT user, device, token(user, device) FROM cursors WHERE token(user, device) > ? LIMIT ?";
    cursors_of: Read "SELECT conversation, seq FROM cursors WHERE user = ? AND device = ?";
    walk_marks: Read "SELECT DISTINCT user, token(user) FROM read_marks WHERE token(user) > ? LIMIT ?";
    marks_of: Read "SELECT conversation, seq, ordinal FROM read_marks WHERE user = ?";
    walk_settings: Read "SELECT DISTINCT user, token(user) FROM settings WHERE token(user) > ? LIMIT ?";
    walk_hidden: Read "SELECT DISTINCT user, conversation, up_to, token(user, conversation) FROM hidden WHERE token(user, conversation) > ? LIMIT ?";
    walk_creations: Read "SELECT creator, client_id, group_id, token(creator, client_id) FROM group_creations WHERE token(creator, client_id) > ? LIMIT ?";

    // Who is alive, who owns.
    shards: Serial "SELECT shards FROM cluster WHERE part = 0";
    put_beat: Write "INSERT INTO nodes (part, incarnation, node, addresses, beat, draining) VALUES (0, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?";
    drop_beat: Write "DELETE FROM nodes USING TIMESTAMP ? WHERE part = 0 AND incarnation = ?";
    beats: Read "SELECT incarnation, node, addresses, beat, draining FROM nodes WHERE part = 0";
    put_fence: Write "INSERT INTO fences (incarnation, fenced) VALUES (?, true) USING TIMESTAMP 1";
    fence: Read "SELECT fenced FROM fences WHERE incarnation = ?";
    shard: Serial "SELECT owner, epoch FROM shards WHERE shard = ?";
    create_shard: Decide "INSERT INTO shards (shard, owner, epoch) VALUES (?, ?, ?) IF NOT EXISTS";
    change_shard: Decide "UPDATE shards SET owner = ?, epoch = ? WHERE shard = ? IF owner = ? AND epoch = ?";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_statement_and_no_other() {
        let page = include_str!("../../../docs/storage.md");
        let listed: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let expected: Vec<String> = DESCRIBED
            .iter()
            .map(|Described { name, class, cql }| format!("| `{name}` | {class} | `{cql}` |"))
            .collect();
        assert_eq!(listed, expected);
    }
}
