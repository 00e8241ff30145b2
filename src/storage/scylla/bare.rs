//! What the servers can do at best, with nothing of Convoke between: the floor of what is measured on them.

use std::time::Duration;

use futures_util::future::try_join_all;
use scylla::client::session::Session;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::{OpenError, ScyllaConfig, connect};

/// Bytes of each row that is inserted: about what a short message takes.
const ROW: usize = 200;
/// Inserts that are under way at the same time.
pub const IN_FLIGHT: usize = 64;
/// Between two statements of a loop that is paced: 500 per second. Who asks again at once finds the threads of the servers and of
/// the driver awake, which makes each answer faster than it is to who asks now and then.
pub const PACE: Duration = Duration::from_millis(2);
/// On how many servers each row is, where there are as many.
const REPLICATION: usize = 3;

/// One loop: how long each statement of it took, and all together.
#[derive(Debug, Clone, Default)]
pub struct BareLoop {
    /// Each statement's time from sending to answer.
    pub took: Vec<Duration>,
    /// The time of the loop.
    pub elapsed: Duration,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct BareFigures {
    /// On how many servers each row is.
    pub replication: usize,
    /// Inserts, [`IN_FLIGHT`] at a time.
    pub inserts: BareLoop,
    /// One insert after the other.
    pub insert: BareLoop,
    /// One read at LOCAL_QUORUM after the other.
    pub read: BareLoop,
    /// One insert each [`PACE`].
    pub paced_insert: BareLoop,
    /// One read at LOCAL_QUORUM each [`PACE`].
    pub paced_read: BareLoop,
    /// One lightweight transaction after the other, each of a row of its own.
    pub lwt: BareLoop,
}

/// Measures each loop for so long, after a fifth of that as warm-up, in a keyspace of its own that is dropped afterwards.
///
/// # Errors
/// The servers cannot be reached, refuse, or fail a statement.
pub async fn measure(config: &ScyllaConfig, measured: Duration) -> Result<BareFigures, OpenError> {
    let keyspace = format!("convoke_limits_{}", std::process::id());
    let config = ScyllaConfig { keyspace: keyspace.clone(), ..config.clone() };
    let session = connect(&config, None).await?;
    let replication = session.get_cluster_state().get_nodes_info().len().clamp(1, REPLICATION);
    let figures = run(&session, &keyspace, replication, measured).await;
    let dropped = session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ()).await;
    let figures = figures?;
    dropped.map_err(OpenError::server)?;
    Ok(figures)
}

async fn prepare(session: &Session, cql: &str, lwt: bool) -> Result<PreparedStatement, OpenError> {
    let mut statement = session.prepare(cql).await.map_err(OpenError::server)?;
    statement.set_consistency(Consistency::LocalQuorum);
    statement.set_serial_consistency(lwt.then_some(SerialConsistency::Serial));
    statement.set_is_idempotent(!lwt);
    Ok(statement)
}

async fn run(
    session: &Session,
    keyspace: &str,
    replication: usize,
    measured: Duration,
) -> Result<BareFigures, OpenError> {
    let make = format!(
        "CREATE KEYSPACE {keyspace} WITH replication = \
         {{'class': 'NetworkTopologyStrategy', 'replication_factor': {replication}}}"
    );
    session.query_unpaged(make, ()).await.map_err(OpenError::server)?;
    session.use_keyspace(keyspace, false).await.map_err(OpenError::server)?;
    for table in ["plain", "agreed"] {
        let make = format!("CREATE TABLE {table} (k uuid PRIMARY KEY, v blob)");
        session.query_unpaged(make, ()).await.map_err(OpenError::server)?;
    }
    let insert = prepare(session, "INSERT INTO plain (k, v) VALUES (?, ?)", false).await?;
    let read = prepare(session, "SELECT v FROM plain WHERE k = ?", false).await?;
    let lwt = prepare(session, "INSERT INTO agreed (k, v) VALUES (?, ?) IF NOT EXISTS", true).await?;
    let value = vec![7_u8; ROW];
    let known = Uuid::from_u128(1);
    session.execute_unpaged(&insert, (known, &value)).await.map_err(OpenError::server)?;

    let one_insert = || async { session.execute_unpaged(&insert, (Uuid::new_v4(), &value)).await };
    let one_read = || async { session.execute_unpaged(&read, (known,)).await };
    let one_lwt = || async { session.execute_unpaged(&lwt, (Uuid::new_v4(), &value)).await };
    Ok(BareFigures {
        replication,
        inserts: repeat(one_insert, IN_FLIGHT, None, measured).await?,
        insert: repeat(one_insert, 1, None, measured).await?,
        read: repeat(one_read, 1, None, measured).await?,
        paced_insert: repeat(one_insert, 1, Some(PACE), measured).await?,
        paced_read: repeat(one_read, 1, Some(PACE), measured).await?,
        lwt: repeat(one_lwt, 1, None, measured).await?,
    })
}

/// Runs one statement again and again, so many at a time: at once when the one before was answered, or at the pace.
async fn repeat<T, E, F>(
    one: impl Fn() -> F + Copy,
    in_flight: usize,
    pace: Option<Duration>,
    measured: Duration,
) -> Result<BareLoop, OpenError>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    for (length, counts) in [(measured / 5, false), (measured, true)] {
        let begun = Instant::now();
        let lines = (0..in_flight).map(|_| async move {
            let mut took = Vec::new();
            let mut turns = pace.map(interval);
            if let Some(turns) = &mut turns {
                turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            while begun.elapsed() < length {
                if let Some(turns) = &mut turns {
                    turns.tick().await;
                }
                let sent = Instant::now();
                one().await.map_err(OpenError::server)?;
                took.push(sent.elapsed());
            }
            Ok::<_, OpenError>(took)
        });
        let took = try_join_all(lines).await?.concat();
        if counts {
            return Ok(BareLoop { took, elapsed: begun.elapsed() });
        }
    }
    Ok(BareLoop::default())
}
