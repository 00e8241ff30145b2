//! Whether what was written may be used, pure: one read of the own fence at a time, for everything durable by then.
//!
//! A confirmation is a quorum read of this node's own incarnation in `fences` that began after what it confirms was
//! durable, and found nothing. Whatever becomes durable while one runs waits for the next.

/// How a read of the own fence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FenceRead {
    /// Two replicas answered, and none had a fence.
    Nothing,
    /// There is a fence: this incarnation is dead for good.
    Fenced,
    /// No quorum answered: nothing is known.
    Failed,
}

/// What the end of a read leaves to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended<T> {
    /// What is confirmed.
    pub confirmed: Vec<T>,
    /// Whether to begin another read now.
    pub begin: bool,
}

/// What waits for a confirmation. `T` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfirmLine<T> {
    /// What the read under way confirms.
    running: Option<Vec<T>>,
    waiting: Vec<T>,
    fenced: bool,
}

impl<T> Default for ConfirmLine<T> {
    fn default() -> Self {
        Self { running: None, waiting: Vec::new(), fenced: false }
    }
}

impl<T> ConfirmLine<T> {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// This is durable; says whether to begin a read now.
    pub fn durable(&mut self, what: T) -> bool {
        if self.fenced {
            return false;
        }
        self.waiting.push(what);
        self.begin()
    }

    /// Looks for a fence although nothing waits, unless a read is under way; says whether to begin one now.
    pub fn look(&mut self) -> bool {
        let begin = !self.fenced && self.running.is_none();
        if begin {
            self.running = Some(std::mem::take(&mut self.waiting));
        }
        begin
    }

    fn begin(&mut self) -> bool {
        !self.waiting.is_empty() && self.look()
    }

    /// The read under way has ended.
    pub fn ended(&mut self, read: FenceRead) -> Ended<T> {
        let Some(running) = self.running.take() else { return Ended { confirmed: Vec::new(), begin: false } };
        match read {
            FenceRead::Nothing => Ended { confirmed: running, begin: self.begin() },
            FenceRead::Fenced => {
                self.fenced = true;
                self.waiting = Vec::new();
                Ended { confirmed: Vec::new(), begin: false }
            }
            FenceRead::Failed => {
                // In front of what came later. The caller looks again after a pause.
                self.waiting.splice(0..0, running);
                Ended { confirmed: Vec::new(), begin: false }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_read_serves_what_was_durable_when_it_began() {
        let mut line = ConfirmLine::new();
        assert!(line.durable('a'));
        assert!(!line.durable('b') && !line.durable('c') && !line.look());
        assert_eq!(line.ended(FenceRead::Nothing), Ended { confirmed: vec!['a'], begin: true });
        assert!(!line.durable('d'));
        assert_eq!(line.ended(FenceRead::Failed), Ended { confirmed: vec![], begin: false });
        assert!(line.look());
        assert_eq!(line.ended(FenceRead::Nothing), Ended { confirmed: vec!['b', 'c', 'd'], begin: false });
        assert_eq!(line.ended(FenceRead::Nothing), Ended { confirmed: vec![], begin: false });
    }

    #[test]
    fn a_fence_confirms_nothing_ever_again() {
        let mut line = ConfirmLine::new();
        line.durable('a');
        line.durable('b');
        assert_eq!(line.ended(FenceRead::Fenced), Ended { confirmed: vec![], begin: false });
        assert!(!line.durable('c') && !line.look());
    }
}
