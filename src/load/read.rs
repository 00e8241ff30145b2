//! `bench read`: what a client waits for when it opens: a page of history anywhere in a long conversation, catching up, and
//! the list of conversations. One client, one request at a time; the node is the load test's own.

use std::time::{Duration, Instant};

use convoke_client::{Client, ClientConfig, ClientEvent, Start};
use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use convoke_protocol::request::conversations::Conversations;
use convoke_protocol::request::messages::{Direction, History, HistoryFrom};
use convoke_protocol::request::sync::Sync;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use super::LoadError;
use super::fill::Filling;
use super::latency::{Latencies, Percentiles};
use super::node::{Node, temporary_directory};
use super::report::conditions::Conditions;
use super::report::{Outcome, Row, Verdict, rate};
use crate::auth::Role;

/// Messages in one page of history.
const PAGE: u32 = 50;

/// Messages in each of the other conversations.
const EACH: u64 = 100;

/// Messages that are missing in a conversation that misses some.
const MISSING_EACH: u64 = 10;

/// Cursors that one request may carry.
const MAX_CURSORS: usize = 100;

/// Asked first and not counted.
const WARM_UP: u32 = 20;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Messages of the long conversation.
    pub messages: u64,
    /// Other conversations.
    pub conversations: u32,
    /// Of those, the ones that miss messages.
    pub missing: u32,
    /// How often each thing is asked.
    pub rounds: u32,
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct ReadReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub messages: u64,
    pub conversations: u32,
    pub missing_conversations: u32,
    pub rounds: u32,
    pub history_page_ms: Option<Percentiles>,
    pub sync_ms: Option<Percentiles>,
    pub list_ms: Option<Percentiles>,
    pub verdict: Verdict,
    #[serde(skip)]
    rows: Vec<Row>,
}

impl Outcome for ReadReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.clone()
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }
}

struct Reading {
    client: Client,
    options: ReadOptions,
    long: ConversationId,
    others: Vec<ConversationId>,
    random: SmallRng,
    verdict: Verdict,
}

impl Reading {
    async fn history(&mut self) -> Result<(), LoadError> {
        let last = self.options.messages.saturating_sub(u64::from(PAGE)).max(1);
        let from = Seq(self.random.random_range(1..=last));
        let history = History {
            conversation: self.long.clone(),
            from: HistoryFrom::Seq(from),
            direction: Direction::Newer,
            limit: PAGE,
        };
        let page = self.client.history(history).await?.page;
        let expected = (from.0..).take(page.messages.len());
        let wrong = page.messages.iter().zip(expected).filter(|(message, seq)| message.seq.0 != *seq).count();
        self.verdict.gaps += wrong as u64;
        self.verdict.lost += u64::from(PAGE).saturating_sub(page.messages.len() as u64);
        Ok(())
    }

    /// Walks over all conversations, as a client does after its login.
    async fn sync(&mut self) -> Result<(), LoadError> {
        let missing = self.options.missing as usize;
        let mut found = 0;
        let mut after: Option<ConversationId> = None;
        loop {
            let behind = |id: &&ConversationId| after.as_ref().is_none_or(|after| *id > after);
            let cursors: Vec<Cursor> = self
                .others
                .iter()
                .enumerate()
                .filter(|(_, id)| behind(id))
                .take(MAX_CURSORS)
                .map(|(n, id)| {
                    let seq = if n < missing { EACH - MISSING_EACH } else { EACH };
                    Cursor { conversation: id.clone(), seq: Seq(seq) }
                })
                .collect();
            let ask = Sync { cursors, use_device_cursors: false, after: after.clone() };
            let synced = self.client.sync(ask).await?;
            found += synced.pages.iter().map(|page| page.messages.len() as u64).sum::<u64>();
            match synced.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.verdict.lost += (missing as u64 * MISSING_EACH).saturating_sub(found);
        Ok(())
    }

    async fn list(&mut self) -> Result<(), LoadError> {
        let ask = Conversations { after: None, limit: 200, known_version: None };
        let list = self.client.conversations(ask).await?;
        let expected = (self.others.len() + 1).min(200);
        self.verdict.lost += (expected as u64).saturating_sub(list.conversations.len() as u64);
        Ok(())
    }

    async fn measure(&mut self, what: What) -> Result<(Row, Option<Percentiles>), LoadError> {
        let mut latencies = Latencies::default();
        let mut began = Instant::now();
        for round in 0..self.options.rounds + WARM_UP {
            if round == WARM_UP {
                began = Instant::now();
            }
            let asked = Instant::now();
            match what {
                What::History => self.history().await?,
                What::Sync => self.sync().await?,
                What::List => self.list().await?,
            }
            if round >= WARM_UP {
                latencies.record(asked.elapsed());
            }
        }
        let latency = latencies.percentiles();
        let what = match what {
            What::History => "history page of 50",
            What::Sync => "catching up",
            What::List => "list of 200",
        };
        let per_s = rate(u64::from(self.options.rounds), began.elapsed());
        Ok((Row { what: what.into(), per_s, latency, server: None, cpu_us_each: None }, latency))
    }
}

#[derive(Debug, Clone, Copy)]
enum What {
    History,
    Sync,
    List,
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a valid name")
}

/// Fills a directory, starts a node on it, and asks.
///
/// # Errors
/// The directory cannot be filled, or the node does not answer.
pub fn run(options: &ReadOptions) -> Result<ReadReport, LoadError> {
    let directory = temporary_directory()?;
    let reader = user("reader");
    let long = ConversationId::direct(&reader, &user("writer"));
    let mut others: Vec<ConversationId> = (0..options.conversations)
        .map(|n| ConversationId::direct(&reader, &user(&format!("peer-{n:05}"))))
        .collect();
    others.sort();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))?;
    runtime.block_on(async {
        let mut filling = Filling::open(&directory.join("data"))?;
        filling.conversation(&long, options.messages).await?;
        for other in &others {
            filling.conversation(other, EACH).await?;
        }
        filling.close().await
    })?;
    let conditions = Conditions::gather(Some(&directory));
    let node = Node::on(directory)?;
    let token = node.key().sign(&reader, Role::User, Duration::from_secs(3_600));
    let addresses = node.tcp().iter().map(ToString::to_string).collect();
    let report = runtime.block_on(async {
        let device = DeviceId::new("bench").expect("a valid name");
        let mut config = ClientConfig::new(addresses, token, device);
        config.start = Start::from_now();
        let (client, mut events) = Client::connect(config).await?;
        while let Some(event) = events.next().await {
            if event == ClientEvent::CaughtUp {
                break;
            }
        }
        let random = SmallRng::seed_from_u64(1);
        let (options, verdict) = (*options, Verdict::default());
        let mut reading = Reading { client, options, long, others, random, verdict };
        let (history, history_page_ms) = reading.measure(What::History).await?;
        let (sync, sync_ms) = reading.measure(What::Sync).await?;
        let (list, list_ms) = reading.measure(What::List).await?;
        // A server that does not answer notices by itself.
        let _ = reading.client.logout().await;
        Ok::<_, LoadError>(ReadReport {
            bench: "read",
            conditions,
            messages: options.messages,
            conversations: options.conversations,
            missing_conversations: options.missing,
            rounds: options.rounds,
            history_page_ms,
            sync_ms,
            list_ms,
            verdict: reading.verdict,
            rows: vec![history, sync, list],
        })
    })?;
    node.stop()?;
    Ok(report)
}
