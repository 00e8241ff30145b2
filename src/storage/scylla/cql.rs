//! The session with the servers: deadlines, bounded repeats, and what a failure means.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::response::PagingState;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::row::SerializeRow;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use tokio::time::Instant;

use super::speculation::Traffic;
use super::statements::Statements;
use crate::storage::{AppendError, ReadError, WriteError};

/// The first pause before a statement is sent again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Why a statement failed for good.
#[derive(Debug)]
pub(super) struct Failure {
    /// Whether it may have been applied, or may be later.
    pub(super) perhaps: bool,
    pub(super) text: String,
}

impl From<Failure> for AppendError {
    fn from(failure: Failure) -> Self {
        if failure.perhaps { Self::Unknown(failure.text) } else { Self::NotStored(failure.text) }
    }
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        Self(failure.text)
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.text)
    }
}

/// A row that does not have the columns it was asked for.
pub(super) fn corrupt(error: impl std::fmt::Display) -> ReadError {
    ReadError::Corrupt(error.to_string())
}

/// Whether no server can have begun with it.
fn was_not_sent(error: &ExecutionError) -> bool {
    matches!(
        error,
        ExecutionError::BadQuery(_)
            | ExecutionError::EmptyPlan
            | ExecutionError::PrepareError(_)
            | ExecutionError::ConnectionPoolError(_)
            | ExecutionError::LastAttemptError(
                RequestAttemptError::SerializationError(_)
                    | RequestAttemptError::CqlRequestSerialization(_)
                    | RequestAttemptError::UnableToAllocStreamId
                    | RequestAttemptError::DbError(DbError::Unavailable { .. }, _)
            )
    )
}

/// Whether the same statement fails the same way for ever.
fn is_permanent(error: &ExecutionError) -> bool {
    matches!(
        error,
        ExecutionError::BadQuery(_)
            | ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::SyntaxError | DbError::Invalid | DbError::Unauthorized | DbError::ConfigError,
                _
            ))
    )
}

/// A session that uses the keyspace, and what it says.
#[derive(Debug)]
pub(super) struct Cql {
    session: Session,
    pub(super) statements: Statements,
    /// How long a statement is tried, its repeats included.
    deadline: Duration,
    traffic: Traffic,
}

impl Cql {
    pub(super) fn new(
        session: Session,
        statements: Statements,
        deadline: Duration,
        traffic: Traffic,
    ) -> Self {
        Self { session, statements, deadline, traffic }
    }

    /// How many statements went to a second server because the first did not answer.
    pub(super) fn asked_twice(&self) -> u64 {
        self.traffic.asked_twice()
    }

    /// Statements that are one request and may be repeated.
    fn unlogged<'a>(&self, statements: impl Iterator<Item = &'a PreparedStatement>) -> Batch {
        let mut batch = Batch::new(BatchType::Unlogged);
        statements.for_each(|statement| batch.append_statement(statement.clone()));
        batch.set_consistency(Consistency::LocalQuorum);
        batch.set_is_idempotent(true);
        batch.set_history_listener(self.traffic.listener());
        batch
    }

    /// Sends until it succeeds, the deadline has passed, or it cannot succeed.
    async fn repeated<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ExecutionError>>,
    {
        let _one = self.traffic.one();
        let begun = Instant::now();
        let (mut pause, mut perhaps) = (FIRST_PAUSE, false);
        loop {
            let error = match attempt().await {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            perhaps |= !was_not_sent(&error);
            if is_permanent(&error) || begun.elapsed() + pause >= self.deadline {
                return Err(Failure { perhaps, text: error.to_string() });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A write; it is repeated.
    pub(super) async fn write<V>(&self, statement: &PreparedStatement, values: V) -> Result<(), Failure>
    where
        V: SerializeRow + Sync,
    {
        self.repeated(|| self.session.execute_unpaged(statement, &values)).await.map(drop)
    }

    /// Several writes as one request; they are repeated.
    pub(super) async fn write_all<V>(
        &self,
        statement: &PreparedStatement,
        values: &[V],
    ) -> Result<(), Failure>
    where
        V: SerializeRow + Sync,
    {
        match values {
            [] => Ok(()),
            [only] => self.write(statement, only).await,
            values => {
                let batch = self.unlogged(values.iter().map(|_| statement));
                self.repeated(|| self.session.batch(&batch, values)).await.map(drop)
            }
        }
    }

    /// A write and one to another partition in one request; they are repeated together. It saves the request, not the work of the
    /// replicas.
    pub(super) async fn write_both<V, W>(
        &self,
        statements: [&PreparedStatement; 2],
        values: (V, W),
    ) -> Result<(), Failure>
    where
        V: SerializeRow + Sync,
        W: SerializeRow + Sync,
    {
        let batch = self.unlogged(statements.into_iter());
        self.repeated(|| self.session.batch(&batch, (&values.0, &values.1))).await.map(drop)
    }

    /// A conditional statement: sent once.
    ///
    /// # Errors
    /// It failed; whether it was applied is unknown unless the failure says that it was not sent.
    pub(super) async fn decide<V>(
        &self,
        statement: &PreparedStatement,
        values: V,
    ) -> Result<QueryRowsResult, Failure>
    where
        V: SerializeRow + Sync,
    {
        let sent = self.session.execute_unpaged(statement, &values).await;
        let failed =
            |error: ExecutionError| Failure { perhaps: !was_not_sent(&error), text: error.to_string() };
        rows_of(sent.map_err(failed)?).map_err(|error| Failure { perhaps: true, text: error.to_string() })
    }

    /// Gives each row to `each`, page after page, until it breaks off.
    pub(super) async fn for_each<R, V>(
        &self,
        statement: &PreparedStatement,
        values: V,
        mut each: impl FnMut(R) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError>
    where
        R: for<'a> DeserializeRow<'a, 'a>,
        V: SerializeRow + Sync,
    {
        let mut state = PagingState::start();
        loop {
            let page = || self.session.execute_single_page(statement, &values, state.clone());
            let (result, next) = self.repeated(page).await?;
            let rows = rows_of(result)?;
            for row in rows.rows::<R>().map_err(corrupt)? {
                if each(row.map_err(corrupt)?)?.is_break() {
                    return Ok(());
                }
            }
            match next.into_paging_control_flow() {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(next) => state = next,
            }
        }
    }

    /// All rows of a statement that bounds them itself.
    pub(super) async fn rows<R, V>(
        &self,
        statement: &PreparedStatement,
        values: V,
    ) -> Result<Vec<R>, ReadError>
    where
        R: for<'a> DeserializeRow<'a, 'a>,
        V: SerializeRow + Sync,
    {
        let mut rows = Vec::new();
        self.for_each(statement, values, |row| {
            rows.push(row);
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        Ok(rows)
    }

    /// The first row.
    pub(super) async fn row<R, V>(
        &self,
        statement: &PreparedStatement,
        values: V,
    ) -> Result<Option<R>, ReadError>
    where
        R: for<'a> DeserializeRow<'a, 'a>,
        V: SerializeRow + Sync,
    {
        let mut first = None;
        self.for_each(statement, values, |row| {
            first = Some(row);
            Ok(ControlFlow::Break(()))
        })
        .await?;
        Ok(first)
    }
}

fn rows_of(result: QueryResult) -> Result<QueryRowsResult, ReadError> {
    result.into_rows_result().map_err(corrupt)
}
