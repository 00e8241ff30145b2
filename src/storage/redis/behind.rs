//! What waits to be written to Redis, pure: the last word about each device and user, bounded.
//!
//! A later change of one device takes the place of an earlier one, so what waits is never more than there are devices.
//! Where it would be more than the bound, all of it is let go, everything is written anew and what else is there is swept
//! out, which comes to the same.

use std::collections::HashMap;

use convoke_protocol::id::{DeviceId, SessionId, Timestamp, UserId};

use super::SessionCopy;

/// Sessions of one device that ended and that are remembered; beyond it what is there is swept.
const ENDED: usize = 64;

/// What is to become of a device's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It says this. These sessions ended: should this one end before it is written, theirs may be there.
    Put(SessionCopy, Ended),
    /// It goes if it is of one of these sessions.
    Drop(Ended),
}

/// Sessions of one device that ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ended(pub(super) Vec<SessionId>);

impl Ended {
    pub(super) fn one(session: SessionId) -> Self {
        Self(vec![session])
    }

    fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl Change {
    /// The sessions that ended; for what would be written too, if it is not to be written any more.
    fn ended(self, with_put: bool) -> Ended {
        match self {
            Self::Drop(ended) => ended,
            Self::Put(copy, mut ended) => {
                if with_put {
                    ended.add(Ended::one(copy.session));
                }
                ended
            }
        }
    }
}

type Device = (UserId, DeviceId);

/// What is written at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Batch {
    pub(super) devices: Vec<(Device, Change)>,
    pub(super) seen: Vec<(UserId, Timestamp)>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.seen.is_empty()
    }
}

/// What is to be done besides the changes that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Anew {
    Nothing,
    /// Everything is to be written.
    Write,
    /// And what ended is to be taken out: nobody knows any more what that is.
    WriteAndSweep,
}

#[derive(Debug)]
pub(super) struct Behind {
    max: usize,
    devices: HashMap<Device, Change>,
    seen: HashMap<UserId, Timestamp>,
    anew: Anew,
}

impl Behind {
    /// Nothing waits; everything is to be written once, for nobody knows what is there.
    pub(super) fn new(max: usize) -> Self {
        Self { max, devices: HashMap::new(), seen: HashMap::new(), anew: Anew::Write }
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len() + self.seen.len()
    }

    pub(super) fn put(&mut self, user: UserId, device: DeviceId, copy: SessionCopy) {
        self.make_room();
        let device = (user, device);
        // The one that is replaced is told to have ended by itself.
        let ended = self.devices.remove(&device).map_or_else(Ended::default, |change| change.ended(false));
        self.keep(device, Change::Put(copy, ended));
    }

    pub(super) fn drop_session(&mut self, user: UserId, device: DeviceId, session: SessionId) {
        self.make_room();
        let device = (user, device);
        let change = match self.devices.remove(&device) {
            None => Change::Drop(Ended::one(session)),
            // Another session has the device.
            Some(Change::Put(copy, mut ended)) if copy.session != session => {
                ended.add(Ended::one(session));
                Change::Put(copy, ended)
            }
            Some(change @ Change::Put(..)) => Change::Drop(change.ended(true)),
            Some(Change::Drop(mut ended)) => {
                ended.add(Ended::one(session));
                Change::Drop(ended)
            }
        };
        self.keep(device, change);
    }

    pub(super) fn saw(&mut self, user: UserId, at: Timestamp) {
        self.make_room();
        let kept = self.seen.entry(user).or_insert(at);
        *kept = at.max(*kept);
    }

    fn keep(&mut self, device: Device, mut change: Change) {
        let (Change::Put(_, Ended(ended)) | Change::Drop(Ended(ended))) = &mut change;
        if ended.len() > ENDED {
            ended.clear();
            self.anew = Anew::WriteAndSweep;
        }
        self.devices.insert(device, change);
    }

    fn make_room(&mut self) {
        if self.len() >= self.max {
            self.devices.clear();
            self.seen.clear();
            self.anew = Anew::WriteAndSweep;
        }
    }

    /// This is to be done: what is there is lost, or unknown.
    pub(super) fn do_anew(&mut self, what: Anew) {
        self.anew = what.max(self.anew);
    }

    /// What is to be done now. What waits is part of everything, but for what ended.
    pub(super) fn take_anew(&mut self) -> Anew {
        std::mem::replace(&mut self.anew, Anew::Nothing)
    }

    /// Takes at most so many changes.
    pub(super) fn take(&mut self, most: usize) -> Batch {
        let keys: Vec<Device> = self.devices.keys().take(most).cloned().collect();
        let devices: Vec<_> = keys.into_iter().filter_map(|key| self.devices.remove_entry(&key)).collect();
        let users: Vec<UserId> = self.seen.keys().take(most - devices.len()).cloned().collect();
        let seen = users.into_iter().filter_map(|user| self.seen.remove_entry(&user)).collect();
        Batch { devices, seen }
    }

    /// A batch may not have been written: what nobody changed meanwhile waits again.
    pub(super) fn put_back(&mut self, batch: Batch) {
        for (device, before) in batch.devices {
            let change = match self.devices.remove(&device) {
                None => before,
                Some(Change::Put(copy, mut ended)) => {
                    ended.add(before.ended(false));
                    Change::Put(copy, ended)
                }
                Some(Change::Drop(mut ended)) => match before {
                    // It is there still, unless it is this that ended.
                    Change::Put(copy, before) if !ended.0.contains(&copy.session) => {
                        ended.add(before);
                        Change::Put(copy, ended)
                    }
                    before => {
                        ended.add(before.ended(true));
                        Change::Drop(ended)
                    }
                },
            };
            self.keep(device, change);
        }
        for (user, at) in batch.seen {
            let kept = self.seen.entry(user).or_insert(at);
            *kept = at.max(*kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::conformance::{device, user};

    fn copy(session: u128) -> SessionCopy {
        SessionCopy {
            node: "n1".into(),
            incarnation: uuid::Uuid::from_u128(1),
            session: SessionId(uuid::Uuid::from_u128(session)),
            since: Timestamp(1),
        }
    }

    fn id(session: u128) -> SessionId {
        SessionId(uuid::Uuid::from_u128(session))
    }

    #[test]
    fn beyond_the_bound_everything_is_written_anew() {
        let mut behind = Behind::new(2);
        assert_eq!([behind.take_anew(), behind.take_anew()], [Anew::Write, Anew::Nothing]);
        for name in ["a", "b"] {
            behind.put(user(name), device("d"), copy(1));
        }
        assert_eq!(behind.take_anew(), Anew::Nothing);
        behind.saw(user("c"), Timestamp(1));
        behind.do_anew(Anew::Write);
        assert_eq!((behind.len(), behind.take_anew()), (1, Anew::WriteAndSweep));
    }

    /// What a server holds after the changes that reached it.
    fn apply(entry: &mut Option<SessionId>, change: &Change) {
        match change {
            Change::Put(copy, _) => *entry = Some(copy.session),
            Change::Drop(ended) => *entry = entry.filter(|there| !ended.0.contains(there)),
        }
    }

    proptest! {
        /// Whatever fails in between: once all is written, the entry is that of the session that is there.
        #[test]
        fn in_the_end_the_server_has_what_is(
            steps in proptest::collection::vec((0..4_u8, any::<bool>()), 1..60),
        ) {
            let mut behind = Behind::new(100);
            behind.take_anew();
            let (mut there, mut server, mut next) = (None, None, 1);
            // Sessions that were replaced, and did not say yet that they ended.
            let mut replaced = Vec::new();
            for (what, flag) in steps {
                match what {
                    0 => {
                        replaced.extend(there.replace(id(next)));
                        behind.put(user("a"), device("d"), copy(next));
                        next += 1;
                    }
                    1 => {
                        let ended = if flag { there.take() } else { replaced.pop() };
                        if let Some(session) = ended {
                            behind.drop_session(user("a"), device("d"), session);
                        }
                    }
                    2 => {
                        let batch = behind.take(9);
                        batch.devices.iter().for_each(|(_, change)| apply(&mut server, change));
                    }
                    // Written, and the answer lost; or not written.
                    _ => {
                        let batch = behind.take(9);
                        if flag {
                            batch.devices.iter().for_each(|(_, change)| apply(&mut server, change));
                        }
                        behind.put_back(batch);
                    }
                }
            }
            for session in replaced {
                behind.drop_session(user("a"), device("d"), session);
            }
            prop_assert_eq!(behind.take_anew(), Anew::Nothing);
            let batch = behind.take(9);
            batch.devices.iter().for_each(|(_, change)| apply(&mut server, change));
            prop_assert_eq!(server, there);
        }
    }
}
