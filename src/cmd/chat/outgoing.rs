//! What was said and has no receipt yet: one after the other, so that words keep their order across whatever happens
//! to the server.

use std::collections::VecDeque;

use convoke_client::{Client, ClientError, Draft, Sending, SentReceipt};

/// Drafts in the order in which they were said; one is on its way at a time.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    drafts: VecDeque<Draft>,
    on_its_way: Option<Sending>,
}

impl Outgoing {
    /// How many have no receipt yet.
    pub(super) fn len(&self) -> usize {
        self.drafts.len() + usize::from(self.on_its_way.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn say(&mut self, draft: Draft) {
        self.drafts.push_back(draft);
    }

    /// The next receipt; none while nothing is to be sent.
    ///
    /// # Cancel-safety
    /// Nothing is lost, and nothing sent twice, when the future is dropped.
    pub(super) async fn receipt(&mut self, client: &Client) -> Result<SentReceipt, ClientError> {
        if self.on_its_way.is_none() {
            match self.drafts.pop_front() {
                Some(draft) => self.on_its_way = Some(client.send_nowait(draft)?),
                None => return std::future::pending().await,
            }
        }
        let Some(sending) = &mut self.on_its_way else { return std::future::pending().await };
        let receipt = sending.await;
        self.on_its_way = None;
        receipt
    }
}
