//! Convoke's client SDK: connect once, send with receipts, and hear every message of every conversation once and in
//! order, whatever happens to the connection.
//!
//! ```no_run
//! use convoke_client::{Client, ClientConfig, ClientEvent};
//! use convoke_client::protocol::id::{DeviceId, UserId};
//! use convoke_client::protocol::message::Content;
//! use convoke_client::protocol::request::messages::Target;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = ClientConfig::new(vec!["127.0.0.1:7700".into()], "a token", DeviceId::new("laptop")?);
//! let (client, mut events) = Client::connect(config).await?;
//! let receipt = client.send(Target::User(UserId::new("bob")?), Content::text("hello")).await?;
//! // It is durable from here on, under this number.
//! println!("{} {}", receipt.conversation, receipt.seq);
//! while let Some(event) = events.next().await {
//!     if let ClientEvent::Message { conversation, message } = event {
//!         println!("{conversation} {} {}", message.seq, message.sender);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it does by itself
//! - It reconnects with jittered waits over all addresses it knows, goes where a `GoAway` sends it, and stops when it is
//!   kicked.
//! - It merges pushes, pages and own answers by their numbers ([`resume`]), pulls what is missing, and says what is no
//!   longer to be had.
//! - It repeats a send until it is answered, under one client id, so that a repetition never makes a second message.
//! - It acknowledges in batches, beats when idle, and keeps every queue bounded.
//!
//! - It repeats whatever else changes something ([`Client::call`]: groups, edits, recalls, reactions) in the same way.
//!
//! # What an application decides
//! - Where to begin: [`Start`]. A process that dies is given again what it had not dealt with; see [`Events::next`].
//! - What to do with an error: [`ClientError::outcome`] tells whether it may have happened, [`ClientError::may_retry`]
//!   whether asking again is safe.
//!
//! # Map
//! [`resume`] is the pure core of the merge; [`timeline`] shows what entries made of earlier messages; [`connection`] is one connection, usable alone. The task behind a
//! [`Client`] joins them with the requests that await an answer and the acknowledgements to be told.

mod acks;
mod addresses;
mod call;
mod client;
mod config;
pub mod connection;
mod driver;
mod error;
mod outstanding;
mod pulse;
pub mod resume;
pub mod timeline;

pub use addresses::Backoff;
pub use call::Ask;
pub use client::{Client, ClientEvent, DisconnectReason, Draft, Events, Sending, SentReceipt};
pub use config::{ClientConfig, TokenSource};
pub use connection::{ConnectionError, Tls};
pub use convoke_protocol as protocol;
pub use error::ClientError;
pub use resume::{Otherwise, Start};
