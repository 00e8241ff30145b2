//! A batch of pushes as bytes: encoded once per framing, shared by every listener.

use bytes::{Bytes, BytesMut};
use convoke_protocol::event::Push;
use convoke_protocol::frame::Event;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, Seq};

use crate::storage::LogRow;

/// The frames of one batch in one framing.
struct Encoded {
    all: Bytes,
    /// Where each frame ends in `all`.
    ends: Vec<usize>,
}

/// A batch of committed rows, and its frames as far as somebody needed them.
pub(super) struct PushBatch<'a> {
    conversation: &'a ConversationId,
    rows: &'a [LogRow],
    framings: [Option<Encoded>; Framing::ALL.len()],
}

impl<'a> PushBatch<'a> {
    pub(super) fn new(conversation: &'a ConversationId, rows: &'a [LogRow]) -> Self {
        Self { conversation, rows, framings: [const { None }; Framing::ALL.len()] }
    }

    fn encoded(&mut self, framing: Framing) -> &Encoded {
        let Self { conversation, rows, framings } = self;
        framings[framing.index()].get_or_insert_with(|| {
            let (mut all, mut ends) = (BytesMut::new(), Vec::with_capacity(rows.len()));
            for row in *rows {
                let push = Push {
                    conversation: conversation.clone(),
                    lane_previous: Seq(row.seq.0 - 1),
                    message: row.to_message(),
                };
                framing.put(&Event::Push(push).encode(framing.codec(), 0), &mut all);
                ends.push(all.len());
            }
            Encoded { all: all.freeze(), ends }
        })
    }

    /// All frames in one piece, and how many they are.
    pub(super) fn all(&mut self, framing: Framing) -> (Bytes, u64) {
        let encoded = self.encoded(framing);
        (encoded.all.clone(), encoded.ends.len() as u64)
    }

    /// The frames of the rows that are not to be left out, and how many they are.
    pub(super) fn without(&mut self, framing: Framing, left_out: impl Fn(Seq) -> bool) -> (Bytes, u64) {
        let rows = self.rows;
        let encoded = self.encoded(framing);
        let kept: Vec<usize> = (0..rows.len()).filter(|n| !left_out(rows[*n].seq)).collect();
        let frame = |n: usize| (if n == 0 { 0 } else { encoded.ends[n - 1] })..encoded.ends[n];
        match kept[..] {
            [] => (Bytes::new(), 0),
            [one] => (encoded.all.slice(frame(one)), 1),
            _ => {
                let mut some = BytesMut::new();
                kept.iter().for_each(|n| some.extend_from_slice(&encoded.all[frame(*n)]));
                (some.freeze(), kept.len() as u64)
            }
        }
    }
}
