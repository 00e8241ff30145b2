//! Which conversations of a user changed since when. The entry of a user's list says when its conversation last changed, so
//! the account needs no rows of its own and none to be swept away; it is written with what changed, by the same commit.
//!
//! Time is counted, not measured: a moment is an epoch of the store's owner and a period within it. The writer begins a period
//! between two commits, so whoever sees a period sees all that was written in earlier ones; and within a period a conversation's
//! entries are written once, however much is said.
//!
//! Groups are not accounted for: an entry per member and message would be too much. Whoever asks is told of all of them.
//!
//! A token is a moment with the number of the life in which it was: each opening of a store is a life with a random number, so
//! a token of a copy that went another way, or of a time in which a version without this account wrote, is not believed.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use convoke_protocol::id::{ConversationId, UserId};
use fjall::{UserKey, UserValue};

use super::database::{Rows, bad_key, read_error};
use super::keys;
use crate::storage::{Epoch, ReadError};

/// After so many conversations a period ends early: they are remembered for as long as it lasts.
const PERIOD_CONVERSATIONS: usize = 16_384;

/// Lives that are remembered: a token of an older one is not known any more.
const LIVES: usize = 128;

/// The shape of an entry without a moment; those of former versions.
const PLAIN_ENTRY: u8 = 1;
/// The shape of an entry with the moment of its last change: `epoch period`, big-endian.
const DATED_ENTRY: u8 = 2;

/// When something was written. Whatever was written before there was an account is older than all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Moment {
    epoch: u64,
    period: u64,
}

impl Moment {
    fn value(self) -> UserValue {
        let mut value = [0; 17];
        value[0] = DATED_ENTRY;
        value[1..9].copy_from_slice(&self.epoch.to_be_bytes());
        value[9..].copy_from_slice(&self.period.to_be_bytes());
        UserValue::from(value)
    }

    fn read(value: &[u8]) -> Option<Self> {
        match value {
            [PLAIN_ENTRY] => Some(Self::default()),
            [DATED_ENTRY, moment @ ..] => {
                let (epoch, period) = moment.split_first_chunk::<8>()?;
                let period = u64::from_be_bytes(period.try_into().ok()?);
                Some(Self { epoch: u64::from_be_bytes(*epoch), period })
            }
            _ => None,
        }
    }
}

/// The random numbers of the last epochs, the last one at the end; without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lives {
    first: u64,
    numbers: VecDeque<u64>,
}

impl Lives {
    /// As [`Self::write`] wrote them; what cannot be read costs the tokens, nothing else.
    pub(super) fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        let first = words.next().and_then(|word| word.parse().ok());
        let numbers: Option<VecDeque<u64>> = words.map(|word| u64::from_str_radix(word, 16).ok()).collect();
        match (first, numbers) {
            (Some(first), Some(numbers)) => Self { first, numbers },
            _ => Self::default(),
        }
    }

    pub(super) fn write(&self) -> String {
        let mut text = self.first.to_string();
        for number in &self.numbers {
            text.push_str(&format!(" {number:x}"));
        }
        text
    }

    /// The life of an epoch begins. If it does not follow the last one, somebody wrote who kept no account: what is known is
    /// worth nothing.
    pub(super) fn begin(&mut self, epoch: Epoch, number: u64) {
        if self.first + self.numbers.len() as u64 != epoch.0 {
            *self = Self { first: epoch.0, numbers: VecDeque::new() };
        }
        self.numbers.push_back(number);
        while self.numbers.len() > LIVES {
            self.numbers.pop_front();
            self.first += 1;
        }
    }

    fn of(&self, epoch: u64) -> Option<u64> {
        let at = usize::try_from(epoch.checked_sub(self.first)?).ok()?;
        self.numbers.get(at).copied()
    }
}

/// What the writer and those who read share.
#[derive(Debug)]
pub(super) struct Changes {
    epoch: u64,
    lives: Lives,
    period: AtomicU64,
}

impl Changes {
    pub(super) fn new(epoch: Epoch, lives: Lives) -> Self {
        Self { epoch: epoch.0, lives, period: AtomicU64::new(1) }
    }

    /// Now; to be asked before the read. Everything of earlier periods is in the database.
    pub(super) fn now(&self) -> Moment {
        Moment { epoch: self.epoch, period: self.period.load(Ordering::Acquire) }
    }

    /// What a client keeps of a moment.
    pub(super) fn token(&self, at: Moment) -> Option<String> {
        let life = self.lives.of(at.epoch)?;
        Some(format!("{life:016x}.{}.{}", at.epoch, at.period))
    }

    /// The moment of a token of this store, if all that happened since is accounted for.
    pub(super) fn moment(&self, token: &str) -> Option<Moment> {
        let mut words = token.split('.');
        let life = u64::from_str_radix(words.next()?, 16).ok()?;
        let moment = Moment { epoch: words.next()?.parse().ok()?, period: words.next()?.parse().ok()? };
        let is_known = words.next().is_none() && self.lives.of(moment.epoch) == Some(life);
        (is_known && moment <= self.now()).then_some(moment)
    }
}

/// The writer's own part: the period, and what was dated in it.
#[derive(Debug)]
pub(super) struct Dating {
    period: Duration,
    began: Instant,
    dated: HashSet<ConversationId>,
}

impl Dating {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, began: Instant::now(), dated: HashSet::new() }
    }

    /// Between two commits: begins a period if it is time, and says with which value entries are written now.
    pub(super) fn value(&mut self, changes: &Changes) -> UserValue {
        let is_over = self.began.elapsed() >= self.period || self.dated.len() >= PERIOD_CONVERSATIONS;
        if is_over {
            self.dated.clear();
            self.began = Instant::now();
            changes.period.fetch_add(1, Ordering::Release);
        }
        changes.now().value()
    }

    /// The entries to write because of a change of a conversation: none if it was dated in this period.
    pub(super) fn entries(&mut self, conversation: &ConversationId) -> Vec<UserKey> {
        if self.dated.contains(conversation) {
            return Vec::new();
        }
        self.dated.insert(conversation.clone());
        conversation.direct_users().iter().map(|user| keys::list(user, conversation)).collect()
    }
}

impl Rows {
    /// The conversations of `user` above `after` that changed at or after `since`, and all groups, at most `limit`. `also`
    /// says of which it is known otherwise.
    pub(super) fn changed(
        &self,
        user: &UserId,
        since: Moment,
        after: Option<&ConversationId>,
        limit: usize,
        also: &HashSet<ConversationId>,
    ) -> Result<Vec<ConversationId>, ReadError> {
        let mut found = Vec::new();
        let group_at = user.as_str().len() + 1;
        for guard in self.list(user, after) {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            let moment = Moment::read(&value).ok_or_else(|| bad_key("an entry of a list", &key))?;
            let is_told = moment >= since || key.get(group_at..).is_some_and(|id| id.starts_with(b"g:"));
            if !is_told && also.is_empty() {
                continue;
            }
            let (_, conversation) = keys::split_list(&key).ok_or_else(|| bad_key("a list", &key))?;
            if is_told || also.contains(&conversation) {
                found.push(conversation);
                if found.len() == limit {
                    break;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(epochs: &[u64]) -> Lives {
        let mut lives = Lives::default();
        for epoch in epochs {
            lives.begin(Epoch(*epoch), epoch * 100);
        }
        lives
    }

    #[test]
    fn lives_are_read_as_they_were_written_and_end_at_a_gap() {
        let all = lives(&[3, 4, 5]);
        assert_eq!(Lives::read(&all.write()), all);
        assert_eq!((all.of(2), all.of(3), all.of(5), all.of(6)), (None, Some(300), Some(500), None));
        let after_a_gap = lives(&[3, 4, 6]);
        assert_eq!((after_a_gap.of(4), after_a_gap.of(5), after_a_gap.of(6)), (None, None, Some(600)));
        assert_eq!(Lives::read("nonsense"), Lives::default());
        let many = lives(&(1..=500).collect::<Vec<_>>());
        assert_eq!((many.numbers.len(), many.of(500), many.of(1)), (LIVES, Some(50_000), None));
    }

    #[test]
    fn a_token_is_believed_if_it_is_of_this_store_and_not_of_the_future() {
        let changes = Changes::new(Epoch(5), lives(&[3, 4, 5]));
        let now = changes.now();
        let token = changes.token(now).expect("a token");
        assert!(token.len() <= convoke_protocol::request::sync::MAX_SYNC_TOKEN_BYTES);
        assert_eq!(changes.moment(&token), Some(now));
        let before = Moment { epoch: 4, period: 99 };
        assert_eq!(changes.moment(&changes.token(before).expect("a token")), Some(before));
        let tomorrow = Moment { epoch: 5, period: 2 };
        assert_eq!(changes.moment(&changes.token(tomorrow).expect("a token")), None);
        for bad in ["", "1", "0.5.1", "1f4.5", "1f4.5.1.1", "1f4.6.1", "x.5.1", &"9".repeat(64)] {
            assert_eq!(changes.moment(bad), None, "{bad}");
        }
        // The same store after another version wrote to it, and a copy that lived another life.
        assert_eq!(Changes::new(Epoch(7), lives(&[3, 4, 5, 7])).moment(&token), None);
        let mut other = lives(&[3, 4]);
        other.begin(Epoch(5), 501);
        assert_eq!(Changes::new(Epoch(5), other).moment(&token), None);
    }

    #[test]
    fn a_conversation_is_dated_once_in_a_period_and_a_full_period_ends() {
        let changes = Changes::new(Epoch(1), lives(&[1]));
        let mut dating = Dating::new(Duration::from_secs(3_600));
        let user = |name: &str| UserId::new(name).expect("a valid name");
        let pair = ConversationId::direct(&user("a"), &user("b"));
        let first = dating.value(&changes);
        assert_eq!(dating.entries(&pair).len(), 2);
        assert_eq!(dating.entries(&pair).len(), 0);
        assert_eq!(dating.value(&changes), first);
        for n in 0..PERIOD_CONVERSATIONS {
            dating.entries(&ConversationId::direct(&user("a"), &user(&n.to_string())));
        }
        let second = dating.value(&changes);
        assert!(Moment::read(&second) > Moment::read(&first));
        assert_eq!(dating.entries(&pair).len(), 2);
        assert_eq!(Moment::read(&[PLAIN_ENTRY]), Some(Moment::default()));
        assert_eq!(Moment::read(&[3]), None);
    }
}
