//! Who is online, pure: a user's sessions, who watches them, and what happens when a device logs in again.

use std::collections::HashMap;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{DeviceId, SessionId, Timestamp, UserId};
use convoke_protocol::request::session::DeviceClass;

/// What happens when a device logs in that has a session already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceConflict {
    /// The older session is closed with `DEVICE_REPLACED`.
    Replace,
    /// The new login is refused with `DEVICE_IN_USE`.
    Refuse,
}

/// How many sessions a user may have. 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPolicy {
    /// When the same device logs in again.
    pub device_conflict: DeviceConflict,
    /// Of all devices together.
    pub max_per_user: usize,
    /// Of one class of device.
    pub max_per_class: HashMap<DeviceClass, usize>,
}

/// One session of a user. `H` reaches it.
#[derive(Debug, Clone)]
pub struct Presence<H> {
    /// Its id.
    pub session: SessionId,
    /// Its device.
    pub device: DeviceId,
    /// What kind of device it is.
    pub device_class: DeviceClass,
    /// When it logged in.
    pub since: Timestamp,
    /// How to reach it.
    pub handle: H,
}

#[derive(Debug)]
struct User<H, W> {
    sessions: Vec<Presence<H>>,
    watchers: Vec<W>,
}

/// The users of one stripe. `W` names a watcher.
#[derive(Debug)]
pub struct DirectoryCore<H, W> {
    users: HashMap<UserId, User<H, W>>,
}

impl<H, W> Default for DirectoryCore<H, W> {
    fn default() -> Self {
        Self { users: HashMap::new() }
    }
}

impl<H: Clone, W: Clone + PartialEq> DirectoryCore<H, W> {
    fn user(&mut self, user: &UserId) -> &mut User<H, W> {
        // Most look-ups are of users that are there: no clone of the id for them.
        if !self.users.contains_key(user) {
            self.users.insert(user.clone(), User { sessions: Vec::new(), watchers: Vec::new() });
        }
        self.users.get_mut(user).expect("it was inserted if it was not there")
    }

    /// Adds a session, or refuses it. Answers with the sessions that must be closed for it.
    ///
    /// # Errors
    /// `DEVICE_IN_USE` and `TOO_MANY_SESSIONS`, as the policy says.
    pub fn register(
        &mut self,
        user: &UserId,
        presence: Presence<H>,
        policy: &SessionPolicy,
    ) -> Result<Vec<Presence<H>>, RequestError> {
        let sessions = &mut self.user(user).sessions;
        let same_device = |other: &&Presence<H>| other.device == presence.device;
        if policy.device_conflict == DeviceConflict::Refuse
            && sessions.iter().any(|other| same_device(&other))
        {
            self.forget_if_empty(user);
            return Err(RequestError::not_done(
                ErrorCode::DEVICE_IN_USE,
                "the device is logged in already and the older session is kept",
            ));
        }
        let others = || sessions.iter().filter(|other| !same_device(other));
        let of_class = others().filter(|other| other.device_class == presence.device_class).count();
        let class_limit = policy.max_per_class.get(&presence.device_class).copied().unwrap_or(0);
        let over = |limit: usize, count: usize| limit > 0 && count >= limit;
        if over(policy.max_per_user, others().count()) || over(class_limit, of_class) {
            self.forget_if_empty(user);
            return Err(RequestError::not_done(
                ErrorCode::TOO_MANY_SESSIONS,
                "the user has as many sessions as allowed; close one first",
            ));
        }
        let replaced = sessions.extract_if(.., |other| other.device == presence.device).collect();
        sessions.push(presence);
        Ok(replaced)
    }

    /// Adds a session that was admitted before, without asking the policy (the directory is being made again). Answers with
    /// those that must be closed: of two sessions of one device, which were admitted while nobody could know of both, the older
    /// one; it may be this one.
    pub fn restore(&mut self, user: &UserId, presence: Presence<H>) -> Vec<Presence<H>> {
        let sessions = &mut self.user(user).sessions;
        sessions.retain(|other| other.session != presence.session);
        let newer = |other: &Presence<H>| (other.since, other.session) > (presence.since, presence.session);
        if sessions.iter().any(|other| other.device == presence.device && newer(other)) {
            return vec![presence];
        }
        let replaced = sessions.extract_if(.., |other| other.device == presence.device).collect();
        sessions.push(presence);
        replaced
    }

    /// Drops sessions and watchers; gives back which sessions.
    pub fn drop_where(
        &mut self,
        session: impl Fn(&H) -> bool,
        watcher: impl Fn(&W) -> bool,
    ) -> Vec<(UserId, SessionId)> {
        let mut dropped = Vec::new();
        self.users.retain(|user, entry| {
            let gone = entry.sessions.extract_if(.., |one| session(&one.handle));
            dropped.extend(gone.map(|one| (user.clone(), one.session)));
            entry.watchers.retain(|one| !watcher(one));
            !entry.sessions.is_empty() || !entry.watchers.is_empty()
        });
        dropped
    }

    /// Keeps only these users.
    pub fn retain(&mut self, stays: impl Fn(&UserId) -> bool) {
        self.users.retain(|user, _| stays(user));
    }

    /// Takes a session out; says whether it was there.
    pub fn unregister(&mut self, user: &UserId, session: SessionId) -> bool {
        let Some(entry) = self.users.get_mut(user) else { return false };
        let before = entry.sessions.len();
        entry.sessions.retain(|other| other.session != session);
        let removed = entry.sessions.len() < before;
        self.forget_if_empty(user);
        removed
    }

    /// The user's sessions, oldest first.
    pub fn sessions(&self, user: &UserId) -> &[Presence<H>] {
        self.users.get(user).map_or(&[], |entry| &entry.sessions)
    }

    /// Who wants to know of the user's sessions.
    pub fn watchers(&self, user: &UserId) -> &[W] {
        self.users.get(user).map_or(&[], |entry| &entry.watchers)
    }

    /// Adds a watcher; adding it twice changes nothing.
    pub fn watch(&mut self, user: &UserId, watcher: W) {
        let watchers = &mut self.user(user).watchers;
        if !watchers.contains(&watcher) {
            watchers.push(watcher);
        }
    }

    /// Takes watchers out.
    pub fn unwatch(&mut self, user: &UserId, gone: impl Fn(&W) -> bool) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.watchers.retain(|watcher| !gone(watcher));
            self.forget_if_empty(user);
        }
    }

    fn forget_if_empty(&mut self, user: &UserId) {
        if self.users.get(user).is_some_and(|entry| entry.sessions.is_empty() && entry.watchers.is_empty()) {
            self.users.remove(user);
        }
    }

    /// How many users are online or watched.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(device: &str, class: DeviceClass) -> Presence<()> {
        Presence {
            session: SessionId::generate(),
            device: DeviceId::new(device).expect("valid"),
            device_class: class,
            since: Timestamp(0),
            handle: (),
        }
    }

    fn policy(device_conflict: DeviceConflict) -> SessionPolicy {
        let max_per_class = HashMap::from([(DeviceClass::MOBILE, 1)]);
        SessionPolicy { device_conflict, max_per_user: 3, max_per_class }
    }

    #[test]
    fn the_policy_decides_what_a_login_does() {
        use DeviceConflict::{Refuse, Replace};
        let code = |result: Result<Vec<Presence<()>>, RequestError>| match result {
            Ok(replaced) => Ok(replaced.len()),
            Err(error) => Err(error.code),
        };
        // (policy, device, class, expected), one after the other for one user.
        let cases = [
            (Replace, "phone", DeviceClass::MOBILE, Ok(0)),
            (Replace, "phone", DeviceClass::MOBILE, Ok(1)),
            (Refuse, "phone", DeviceClass::MOBILE, Err(ErrorCode::DEVICE_IN_USE)),
            (Replace, "phone-2", DeviceClass::MOBILE, Err(ErrorCode::TOO_MANY_SESSIONS)),
            (Replace, "desk", DeviceClass::DESKTOP, Ok(0)),
            (Replace, "desk-2", DeviceClass::DESKTOP, Ok(0)),
            (Replace, "desk-3", DeviceClass::DESKTOP, Err(ErrorCode::TOO_MANY_SESSIONS)),
            (Replace, "desk-2", DeviceClass::DESKTOP, Ok(1)),
        ];
        let user = UserId::new("alice").expect("valid");
        let mut directory = DirectoryCore::<(), u32>::default();
        for (n, (conflict, device, class, expected)) in cases.into_iter().enumerate() {
            let result = directory.register(&user, presence(device, class), &policy(conflict));
            assert_eq!(code(result), expected, "case {n}");
        }
        assert_eq!(directory.sessions(&user).len(), 3);
    }

    #[test]
    fn of_two_sessions_of_one_device_the_newer_stays() {
        let user = UserId::new("alice").expect("valid");
        let mut directory = DirectoryCore::<(), u32>::default();
        let at = |time, device| Presence { since: Timestamp(time), ..presence(device, DeviceClass::MOBILE) };
        let (older, newer, other) = (at(1, "phone"), at(2, "phone"), at(1, "desk"));
        let ids = |all: Vec<Presence<()>>| all.iter().map(|one| one.session).collect::<Vec<_>>();
        assert_eq!(ids(directory.restore(&user, older.clone())), []);
        assert_eq!(ids(directory.restore(&user, older.clone())), []);
        assert_eq!(ids(directory.restore(&user, newer.clone())), [older.session]);
        assert_eq!(ids(directory.restore(&user, older.clone())), [older.session]);
        assert_eq!(ids(directory.restore(&user, other.clone())), []);
        assert_eq!(ids(directory.sessions(&user).to_vec()), [newer.session, other.session]);
        directory.watch(&user, 7);
        assert_eq!(directory.drop_where(|()| true, |_| false).len(), 2);
        assert_eq!(directory.watchers(&user), [7]);
        directory.retain(|_| false);
        assert!(directory.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_a_user_who_is_gone() {
        let user = UserId::new("alice").expect("valid");
        let mut directory = DirectoryCore::<(), u32>::default();
        let phone = presence("phone", DeviceClass::MOBILE);
        let session = phone.session;
        directory.register(&user, phone, &policy(DeviceConflict::Replace)).expect("admitted");
        directory.watch(&user, 1);
        directory.watch(&user, 1);
        assert_eq!(directory.watchers(&user), [1]);
        assert!(directory.unregister(&user, session));
        assert!(!directory.unregister(&user, session));
        directory.unwatch(&user, |watcher| *watcher == 1);
        assert!(directory.is_empty());
    }
}
