//! What was told to anybody outside, and whether it stays true.

use std::collections::{BTreeMap, HashMap};

use convoke::actors::conversation::dedup::Place;
use convoke::storage::LogRow;
use convoke_protocol::id::{ClientId, MessageId, UserId};

use super::store::Store;

#[derive(Default)]
struct Log {
    committed: Vec<MessageId>,
    by_client_id: HashMap<(UserId, ClientId), u64>,
    /// The highest acknowledged edit of each message.
    edited: BTreeMap<u64, u64>,
}

/// What everybody may rely on.
pub(crate) struct Ledger {
    logs: Vec<Log>,
    pub(crate) acks: usize,
}

impl Ledger {
    pub(crate) fn new(conversations: usize) -> Self {
        Self { logs: (0..conversations).map(|_| Log::default()).collect(), acks: 0 }
    }

    pub(crate) fn head(&self, conversation: usize) -> u64 {
        self.logs[conversation].committed.len() as u64
    }

    /// An owner tells of a row: it is the one that was told of before, or the next one.
    pub(crate) fn expose(&mut self, conversation: usize, row: &LogRow) {
        let log = &mut self.logs[conversation];
        let next = log.committed.len() as u64 + 1;
        if row.seq.0 < next {
            let told = log.committed[row.seq.0 as usize - 1];
            assert_eq!(told, row.id, "I1: another message has the number {} of {conversation}", row.seq);
            return;
        }
        assert_eq!(row.seq.0, next, "I2: a number of {conversation} is left out");
        log.committed.push(row.id);
        let twice = log.by_client_id.insert((row.entry.sender.clone(), row.entry.client_id), next);
        assert_eq!(twice, None, "I3: one send of {conversation} is committed twice, last as {next}");
    }

    /// An owner begins from this head: everything up to it is exposed, and nothing is missing. One that slept after it was
    /// confirmed, while others went on, may tell an old head until it learns that it is over; never a wrong one.
    pub(crate) fn begin(&mut self, conversation: usize, head: u64, is_newest: bool, store: &Store) {
        let known = self.head(conversation);
        let misses = known > head && is_newest;
        assert!(!misses, "I1: an owner of {conversation} begins at {head}, but {known} was told");
        for seq in known + 1..=head {
            let row = store.any_quorum(conversation, seq)[0].clone();
            self.expose(conversation, &row.expect("I6: an exposed row is not there"));
        }
        self.check(conversation, store);
    }

    /// Whatever quorum reads now finds exactly what was committed, and each acknowledged edit in its place.
    pub(crate) fn check(&self, conversation: usize, store: &Store) {
        let log = &self.logs[conversation];
        for (seq, id) in (1..).zip(&log.committed) {
            let edited = log.edited.get(&seq).copied().unwrap_or(0);
            for found in store.any_quorum(conversation, seq) {
                let found = found.unwrap_or_else(|| panic!("I1: {seq} of {conversation} is lost"));
                assert_eq!(found.id, *id, "I6: a reader of {conversation} finds another {seq}");
                let last_edit = found.entry.last_edit.map_or(0, |seq| seq.0);
                assert!(last_edit >= edited, "an acknowledged edit of {seq} of {conversation} is not there");
            }
        }
    }

    /// Somebody is told that their send, or edit of a message, has this place.
    pub(crate) fn acknowledge(
        &mut self,
        conversation: usize,
        sender: &UserId,
        client_id: ClientId,
        place: Place,
        edits: Option<u64>,
    ) {
        self.acks += 1;
        let log = &mut self.logs[conversation];
        let seq = place.seq.0;
        let told = log.committed.get(seq as usize - 1);
        assert_eq!(told, Some(&place.id), "I1: {seq} of {conversation} is acknowledged, but not committed");
        let committed = log.by_client_id.get(&(sender.clone(), client_id));
        assert_eq!(committed, Some(&seq), "I3: {seq} of {conversation} is acknowledged for another send");
        if let Some(target) = edits {
            let edited = log.edited.entry(target).or_default();
            *edited = seq.max(*edited);
        }
    }
}
