//! What is shared and soft, in Redis: a copy of the directory, and when users were last seen.
//!
//! The directory (in the memory of the nodes) is the authority; this is its copy, written behind, so that a new owner starts
//! warm and other services can ask who is online. Nothing that is promised about messages rests on it, and nothing on the
//! way of a message waits for it: a change is noted in memory and written by a task.
//!
//! ```text
//! {prefix}sessions:{user}   hash: device → node incarnation session since      (gone a week after the last change)
//! {prefix}seen:{user}       the time, in milliseconds since 1970               (gone after 90 days)
//! {prefix}copy:{incarnation}  what this node last wrote everything as: if it is missing, Redis was emptied
//! ```
//! Which entries count is decided by whoever reads them, by the incarnations that are alive: heartbeats write nothing, and
//! a dead node's sessions vanish at once.
//!
//! # When Redis is away
//! Changes gather in memory up to a bound and [`RedisStore::is_away`] says so; reads fail with [`SoftError`] within their
//! deadline. Once it is back, or was emptied (`FLUSHALL`, a restart without its data), everything is written again.

mod behind;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, RedisError, Script};
use convoke_protocol::id::{DeviceId, SessionId, Timestamp, UserId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use self::behind::{Anew, Batch, Behind, Change, Ended};

/// Changes that are written in one round trip.
const BATCH: usize = 500;
/// How often it is looked whether Redis still has what was written.
const LOOK: Duration = Duration::from_secs(1);
/// How often everything is written again, so that entries of long sessions do not expire.
const EVERYTHING: Duration = Duration::from_secs(24 * 3_600);
const SESSIONS_TTL_S: i64 = 7 * 24 * 3_600;
const SEEN_TTL_S: u64 = 90 * 24 * 3_600;
/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Takes a device's entry out if it is of one of the sessions.
const DROP: &str = r"
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then return 0 end
for i = 2, #ARGV do
    if string.find(entry, ' ' .. ARGV[i] .. ' ', 1, true) then return redis.call('HDEL', KEYS[1], ARGV[1]) end
end
return 0
";

/// A session, as the copy has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCopy {
    /// On which node it is.
    pub node: String,
    /// In which life of that node.
    pub incarnation: Uuid,
    /// Which it is.
    pub session: SessionId,
    /// Since when.
    pub since: Timestamp,
}

impl SessionCopy {
    fn to_entry(&self) -> String {
        // Names of nodes hold no white space.
        format!("{} {} {} {}", self.node, self.incarnation, self.session.0, self.since.0)
    }

    fn from_entry(entry: &str) -> Option<Self> {
        let mut parts = entry.split(' ');
        let node = parts.next()?.to_owned();
        let incarnation = parts.next()?.parse().ok()?;
        let session = SessionId(parts.next()?.parse().ok()?);
        let since = Timestamp(parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { node, incarnation, session, since })
    }
}

/// Redis is away, or says no. It can be asked again later; nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Redis: {0}")]
pub struct SoftError(String);

impl From<RedisError> for SoftError {
    fn from(error: RedisError) -> Self {
        Self(error.to_string())
    }
}

/// Where Redis is and how it is spoken to.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Such as `redis://127.0.0.1:6379/0`; may have user and password.
    pub url: String,
    /// Before every key.
    pub prefix: String,
    /// How long an answer, or a connection, is waited for.
    pub deadline: Duration,
    /// Changes that wait, at most; beyond it everything is written anew.
    pub max_waiting: usize,
    /// Which life of a node writes.
    pub incarnation: Uuid,
}

/// All sessions there are, when everything is written.
pub type Everything = Box<dyn Fn() -> Vec<(UserId, DeviceId, SessionCopy)> + Send + Sync>;

#[derive(Debug, Default)]
struct Numbers {
    written: AtomicU64,
    failed: AtomicU64,
    everything: AtomicU64,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedisNumbers {
    /// Changes that were written.
    pub written: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// How often everything was written.
    pub everything: u64,
    /// Changes that wait.
    pub waiting: usize,
}

/// The connection to Redis. It is made when it is needed.
struct Connection {
    client: Client,
    timing: ConnectionManagerConfig,
    manager: Mutex<ConnectionManager>,
}

impl Connection {
    fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        let client = Client::open(config.url.as_str())?;
        let timing = ConnectionManagerConfig::new()
            .set_response_timeout(Some(config.deadline))
            .set_connection_timeout(Some(config.deadline))
            .set_max_delay(LONGEST_PAUSE)
            .set_number_of_retries(1);
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), timing.clone())?;
        Ok(Self { client, timing, manager: Mutex::new(manager) })
    }

    fn get(&self) -> ConnectionManager {
        self.manager.lock().clone()
    }

    /// Makes it anew, after a failure: on one that is dead without a word the driver waits for answers as long as the kernel thinks
    /// that it lives, a quarter of an hour.
    fn renew(&self) -> Result<(), RedisError> {
        *self.manager.lock() =
            ConnectionManager::new_lazy_with_config(self.client.clone(), self.timing.clone())?;
        Ok(())
    }
}

struct Shared {
    config: RedisConfig,
    connection: Connection,
    behind: Mutex<Behind>,
    changed: Notify,
    away: AtomicBool,
    closing: AtomicBool,
    numbers: Numbers,
}

/// Redis, as a node uses it.
pub struct RedisStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl RedisStore {
    /// Starts the task that writes. Does not wait for Redis: it may be away. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(config: RedisConfig, everything: Everything) -> Result<Self, SoftError> {
        let connection = Connection::new(&config)?;
        let behind = Mutex::new(Behind::new(config.max_waiting));
        let shared = Arc::new(Shared {
            config,
            connection,
            behind,
            changed: Notify::new(),
            away: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            numbers: Numbers::default(),
        });
        let writing = write_behind(shared.clone(), everything);
        Ok(Self { shared, writer: Mutex::new(Some(tokio::spawn(writing))) })
    }

    /// A device has this session now. Returns at once.
    pub fn put_session(&self, user: UserId, device: DeviceId, copy: SessionCopy) {
        self.shared.behind.lock().put(user, device, copy);
        self.shared.changed.notify_one();
    }

    /// A session ended. Returns at once. An entry that another session of the device wrote stays.
    pub fn drop_session(&self, user: UserId, device: DeviceId, session: SessionId) {
        self.shared.behind.lock().drop_session(user, device, session);
        self.shared.changed.notify_one();
    }

    /// A user was there. Returns at once.
    pub fn saw(&self, user: UserId, at: Timestamp) {
        self.shared.behind.lock().saw(user, at);
        self.shared.changed.notify_one();
    }

    /// A user's sessions, of which those count whose incarnation is alive; by device. Entries that cannot be read are left
    /// out.
    ///
    /// # Errors
    /// Redis does not answer within the deadline.
    pub async fn sessions(
        &self,
        user: &UserId,
        is_alive: impl Fn(Uuid) -> bool,
    ) -> Result<Vec<(DeviceId, SessionCopy)>, SoftError> {
        let key = self.shared.key("sessions", user.as_str());
        let entries: HashMap<String, String> =
            redis::cmd("HGETALL").arg(key).query_async(&mut self.shared.connection.get()).await?;
        let read = |(device, entry): (String, String)| {
            let copy = SessionCopy::from_entry(&entry).filter(|copy| is_alive(copy.incarnation))?;
            Some((DeviceId::new(&device).ok()?, copy))
        };
        let mut sessions: Vec<_> = entries.into_iter().filter_map(read).collect();
        sessions.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(sessions)
    }

    /// When users were last seen, in the order of the ids; `None` for one that never was, or not for 90 days.
    ///
    /// # Errors
    /// Redis does not answer within the deadline.
    pub async fn last_seen(&self, users: &[UserId]) -> Result<Vec<Option<Timestamp>>, SoftError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = users.iter().map(|user| self.shared.key("seen", user.as_str())).collect();
        let times: Vec<Option<u64>> =
            redis::cmd("MGET").arg(keys).query_async(&mut self.shared.connection.get()).await?;
        Ok(times.into_iter().map(|time| time.map(Timestamp)).collect())
    }

    /// Whether the last attempt to write failed: what is shown from here may be old.
    pub fn is_away(&self) -> bool {
        self.shared.away.load(Ordering::Relaxed)
    }

    /// What was done so far.
    pub fn numbers(&self) -> RedisNumbers {
        let Numbers { written, failed, everything } = &self.shared.numbers;
        RedisNumbers {
            written: written.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            everything: everything.load(Ordering::Relaxed),
            waiting: self.shared.behind.lock().len(),
        }
    }

    /// Writes what waits, if Redis answers, and ends.
    pub async fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.changed.notify_one();
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            // A panic of the task was reported when it happened.
            let _ = writer.await;
        }
    }
}

impl Shared {
    fn key(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}:{name}", self.config.prefix)
    }

    /// One round: is what was written still there; if not, everything; then what waits.
    async fn round(
        &self,
        manager: &mut ConnectionManager,
        marker: &mut Option<String>,
        everything: &Everything,
    ) -> Result<(), SoftError> {
        let marker_key = self.key("copy", &self.config.incarnation.to_string());
        let there: Option<String> = redis::cmd("GET").arg(&marker_key).query_async(manager).await?;
        if there.is_none() || there != *marker {
            self.behind.lock().do_anew(Anew::Write);
        }
        let anew = self.behind.lock().take_anew();
        if anew > Anew::Nothing {
            let sweep = anew == Anew::WriteAndSweep;
            if let Err(error) = self.write_everything(manager, marker, &marker_key, everything, sweep).await {
                self.behind.lock().do_anew(anew);
                return Err(error);
            }
            self.numbers.everything.fetch_add(1, Ordering::Relaxed);
        }
        loop {
            let batch = self.behind.lock().take(BATCH);
            if batch.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.write(manager, &batch).await {
                self.behind.lock().put_back(batch);
                return Err(error);
            }
        }
    }

    async fn write_everything(
        &self,
        manager: &mut ConnectionManager,
        marker: &mut Option<String>,
        marker_key: &str,
        everything: &Everything,
        sweep: bool,
    ) -> Result<(), SoftError> {
        let all: Vec<_> = everything()
            .into_iter()
            .map(|(user, device, copy)| ((user, device), Change::Put(copy, Ended::default())))
            .collect();
        for devices in all.chunks(BATCH) {
            self.write(manager, &Batch { devices: devices.to_vec(), seen: Vec::new() }).await?;
        }
        if sweep {
            self.sweep(manager, all).await?;
        }
        // Last: whoever is interrupted before begins again.
        let new = Uuid::new_v4().to_string();
        redis::cmd("SET").arg(marker_key).arg(&new).arg("EX").arg(SESSIONS_TTL_S).exec_async(manager).await?;
        *marker = Some(new);
        Ok(())
    }

    /// Takes out the entries that this life of the node wrote of sessions that ended.
    async fn sweep(
        &self,
        manager: &mut ConnectionManager,
        all: Vec<((UserId, DeviceId), Change)>,
    ) -> Result<(), SoftError> {
        let there: HashMap<(UserId, DeviceId), Change> = all.into_iter().collect();
        let pattern = self.key("sessions", "*");
        let mut at = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(at).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let (next, keys): (u64, Vec<String>) = scan.query_async(manager).await?;
            for key in keys {
                let Some(user) = key.rsplit_once("sessions:").and_then(|(_, user)| UserId::new(user).ok())
                else {
                    continue;
                };
                let entries: HashMap<String, String> =
                    redis::cmd("HGETALL").arg(&key).query_async(manager).await?;
                let mut ended = Batch::default();
                for (device, entry) in entries {
                    let (Ok(device), Some(copy)) = (DeviceId::new(&device), SessionCopy::from_entry(&entry))
                    else {
                        continue;
                    };
                    let place = (user.clone(), device);
                    if copy.incarnation == self.config.incarnation && !there.contains_key(&place) {
                        ended.devices.push((place, Change::Drop(Ended::one(copy.session))));
                    }
                }
                if !ended.is_empty() {
                    self.write(manager, &ended).await?;
                }
            }
            at = next;
            if at == 0 {
                return Ok(());
            }
        }
    }

    async fn write(&self, manager: &mut ConnectionManager, batch: &Batch) -> Result<(), SoftError> {
        let mut pipe = redis::pipe();
        let drop_script = Script::new(DROP);
        for ((user, device), change) in &batch.devices {
            let key = self.key("sessions", user.as_str());
            match change {
                Change::Put(copy, _) => {
                    pipe.cmd("HSET").arg(&key).arg(device.as_str()).arg(copy.to_entry()).ignore();
                    pipe.cmd("EXPIRE").arg(&key).arg(SESSIONS_TTL_S).ignore();
                }
                Change::Drop(ended) => {
                    let mut call = drop_script.prepare_invoke();
                    call.key(&key).arg(device.as_str());
                    for session in &ended.0 {
                        call.arg(session.0.to_string());
                    }
                    pipe.invoke_script(&call).ignore();
                }
            }
        }
        for (user, at) in &batch.seen {
            let key = self.key("seen", user.as_str());
            pipe.cmd("SET").arg(key).arg(at.0).arg("EX").arg(SEEN_TTL_S).ignore();
        }
        let drops = batch.devices.iter().any(|(_, change)| matches!(change, Change::Drop(_)));
        if drops {
            // A server that was restarted does not have it any more.
            drop_script.prepare_invoke().load_async(manager).await?;
        }
        let () = pipe.query_async(manager).await?;
        let count = batch.devices.len() + batch.seen.len();
        self.numbers.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }
}

async fn write_behind(shared: Arc<Shared>, everything: Everything) {
    let mut marker = None;
    let mut again_at = Instant::now() + EVERYTHING;
    loop {
        let closing = shared.closing.load(Ordering::Relaxed);
        if again_at <= Instant::now() {
            shared.behind.lock().do_anew(Anew::Write);
            again_at = Instant::now() + EVERYTHING;
        }
        match shared.round(&mut shared.connection.get(), &mut marker, &everything).await {
            Ok(()) => {
                if shared.away.swap(false, Ordering::Relaxed) {
                    tracing::info!("Redis is back; everything was written again");
                }
            }
            Err(error) => {
                shared.numbers.failed.fetch_add(1, Ordering::Relaxed);
                if !shared.away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "Redis is away; messages need it for nothing");
                }
                if let Err(error) = shared.connection.renew() {
                    tracing::warn!(%error, "the connection to Redis cannot be made anew");
                }
            }
        }
        if closing {
            return;
        }
        let away = shared.away.load(Ordering::Relaxed);
        let wait = tokio::time::sleep(LOOK);
        tokio::select! {
            () = wait => {}
            // One that is away is asked once a second, whatever changes.
            () = shared.changed.notified(), if !away => {}
        }
    }
}

#[cfg(test)]
mod tests;
