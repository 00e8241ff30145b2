//! Sessions: one device of a user on one connection.

use std::collections::BTreeMap;

use convoke_protocol::request::session::DeviceClass;
use serde::{Deserialize, Serialize};

use super::section::{Millis, Setting, section};

/// What happens when a device logs in that has a session already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceConflict {
    /// The older session is closed.
    Replace,
    /// The login is refused.
    Refuse,
}

impl Setting for DeviceConflict {}

/// The most sessions a user may have per class of device.
pub type PerClass = BTreeMap<DeviceClass, u32>;

impl Setting for PerClass {}

section! {
    /// Sessions: one device of a user on one connection.
    Sessions in "sessions" {
        /// A client sends a heartbeat after so many milliseconds without another request; after three times as long
        /// without a word its session is closed. Told to clients when they connect.
        Running heartbeat_ms: Millis = Millis(60_000), in 1_000..=3_600_000;
        /// How long pushes may stay unacknowledged, in milliseconds, before the session is closed so that it resumes.
        Running ack_deadline_ms: Millis = Millis(30_000), in 1_000..=600_000;
        /// How long a new connection may take to log in, in milliseconds.
        Restart login_deadline_ms: Millis = Millis(10_000), in 100..=300_000;
        /// How many bytes a new connection may send before it has logged in; a token must fit.
        Restart login_bytes: usize = 4_096, in 1_024..=65_536;
        /// The same device logs in again: "replace" closes its older session, "refuse" refuses the login.
        Running device_conflict: DeviceConflict = DeviceConflict::Replace;
        /// Sessions of one user, all devices together; 0: no limit.
        Running max_per_user: u32 = 32, in 0..=100_000;
        /// Sessions of one user per class of device, such as { mobile = 2, web = 5 }; the classes are other, desktop,
        /// mobile, tablet, web and service; one that is not named, or is 0, has no limit of its own.
        Running max_per_class: PerClass = PerClass::new();
    }
}

impl Sessions {
    /// The most sessions of one user on devices of this class, if there is a limit.
    pub fn class_limit(&self, class: DeviceClass) -> Option<u32> {
        self.max_per_class.get(&class).copied().filter(|limit| *limit > 0)
    }

    /// The most sessions of one user, if there is a limit.
    pub fn user_limit(&self) -> Option<u32> {
        Some(self.max_per_user).filter(|limit| *limit > 0)
    }

    pub(super) fn class_problem(&self) -> Option<String> {
        let unknown = self.max_per_class.keys().find(|class| class.name().is_none())?;
        Some(format!("there is no class of device {unknown}"))
    }
}
