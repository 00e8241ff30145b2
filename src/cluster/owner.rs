//! What a node's conversations see of ownership: whether they may act, and whether what they wrote counts.
//!
//! A shard's *gate* is open in one epoch, or closed. What leaves a node for a shard (an answer, a push, a new write) leaves
//! while its gate is held open, and closing waits for whoever holds it: so nothing leaves after a gate was closed. A gate
//! never opens again in an epoch in which it was closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot};

use super::shard_map::ShardId;
use crate::storage::Epoch;

/// Those who wait to be taken into a confirmation; beyond it the next wait before that.
const WANTS: usize = 4_096;

/// Somebody waits for a confirmation of what is durable.
#[derive(Debug)]
pub struct WantsConfirmation {
    /// In which shard.
    pub shard: ShardId,
    /// In which epoch it was written.
    pub epoch: Epoch,
    /// Told when it is confirmed; dropped when it never will be.
    pub tell: oneshot::Sender<()>,
}

/// The gates of a node in a cluster.
#[derive(Debug)]
pub struct Gates {
    gates: Box<[RwLock<Option<Epoch>>]>,
    /// How many are open: asked for at each message of the membership.
    open: AtomicUsize,
    wants: mpsc::Sender<WantsConfirmation>,
}

/// For which shards a node acts. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Owner {
    /// For all, as long as it runs: nobody else can.
    Permanent(Epoch),
    /// For those whose gates are open.
    Claimed(Arc<Gates>),
}

/// While this is held, a shard is not given away.
#[derive(Debug)]
pub struct Open<'a> {
    _gate: Option<RwLockReadGuard<'a, Option<Epoch>>>,
}

impl Owner {
    /// An owner of nothing yet, and where those who wait for confirmations come out.
    pub fn claiming(shards: u32) -> (Self, mpsc::Receiver<WantsConfirmation>) {
        let (wants, wanted) = mpsc::channel(WANTS);
        let gates = (0..shards).map(|_| RwLock::new(None)).collect();
        (Self::Claimed(Arc::new(Gates { gates, open: AtomicUsize::new(0), wants })), wanted)
    }

    /// The epoch in which a shard is served here, if it is.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        match self {
            Self::Permanent(epoch) => Some(*epoch),
            Self::Claimed(gates) => *gates.gates[shard.0 as usize].read(),
        }
    }

    /// Holds a shard's gate open, if it is open in this epoch. Must not be held across an `await`.
    pub fn hold_open(&self, shard: ShardId, epoch: Epoch) -> Option<Open<'_>> {
        match self {
            Self::Permanent(own) => (*own == epoch).then_some(Open { _gate: None }),
            Self::Claimed(gates) => {
                let gate = gates.gates[shard.0 as usize].read();
                (*gate == Some(epoch)).then_some(Open { _gate: Some(gate) })
            }
        }
    }

    /// Whether every shard has one owner for ever, so that what is durable is confirmed.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Permanent(_))
    }

    /// Waits until what is durable in this shard and epoch by now is confirmed; `false` if it never will be.
    ///
    /// Cancel safe: who does not wait any more is forgotten.
    pub async fn confirm(&self, shard: ShardId, epoch: Epoch) -> bool {
        match self {
            Self::Permanent(own) => *own == epoch,
            Self::Claimed(gates) => {
                let (tell, told) = oneshot::channel();
                let wants = WantsConfirmation { shard, epoch, tell };
                gates.wants.send(wants).await.is_ok() && told.await.is_ok()
            }
        }
    }
}

impl Gates {
    /// Opens a shard's gate.
    pub fn open(&self, shard: ShardId, epoch: Epoch) {
        let before = self.gates[shard.0 as usize].write().replace(epoch);
        self.open.fetch_add(usize::from(before.is_none()), Ordering::Relaxed);
    }

    /// Closes a shard's gate, after whoever holds it open.
    pub fn close(&self, shard: ShardId) {
        let before = self.gates[shard.0 as usize].write().take();
        self.open.fetch_sub(usize::from(before.is_some()), Ordering::Relaxed);
    }

    /// How many are open.
    pub fn count_open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_through_a_closed_gate() {
        let (owner, _wanted) = Owner::claiming(2);
        let Owner::Claimed(gates) = &owner else { panic!("it claims") };
        let (shard, other) = (ShardId(1), ShardId(0));
        assert!(owner.hold_open(shard, Epoch(1)).is_none());
        gates.open(shard, Epoch(2));
        assert_eq!((owner.epoch(shard), owner.epoch(other), gates.count_open()), (Some(Epoch(2)), None, 1));
        assert!(owner.hold_open(shard, Epoch(1)).is_none());
        let held = owner.hold_open(shard, Epoch(2)).expect("open");
        let closing = gates.clone();
        let closer = std::thread::spawn(move || closing.close(shard));
        // It is not closed while it is held.
        assert!(!closer.is_finished());
        drop(held);
        closer.join().expect("closed");
        assert!(owner.hold_open(shard, Epoch(2)).is_none());
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_told() {
        let (owner, mut wanted) = Owner::claiming(1);
        let waiting = tokio::spawn({
            let owner = owner.clone();
            async move { owner.confirm(ShardId(0), Epoch(3)).await }
        });
        let wants = wanted.recv().await.expect("it waits");
        assert_eq!((wants.shard, wants.epoch), (ShardId(0), Epoch(3)));
        drop(wants);
        assert!(!waiting.await.expect("ended"));
        drop(wanted);
        assert!(!owner.confirm(ShardId(0), Epoch(3)).await);
        assert!(Owner::Permanent(Epoch(1)).confirm(ShardId(0), Epoch(1)).await);
    }
}
