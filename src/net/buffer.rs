//! The buffers that connections read into: borrowed for one turn, so that an idle connection holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes of one read buffer.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// Unused buffers that a thread keeps.
const KEPT_PER_THREAD: usize = 4;

thread_local! {
    static UNUSED: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`READ_BUFFER_BYTES`] that goes back to its thread when it is dropped.
pub(crate) struct ReadBuffer(Box<[u8]>);

impl ReadBuffer {
    /// Takes an unused buffer, or makes one. What is in it is left over from its last use.
    pub(crate) fn borrow() -> Self {
        let unused = UNUSED.with_borrow_mut(Vec::pop);
        Self(unused.unwrap_or_else(|| vec![0; READ_BUFFER_BYTES].into_boxed_slice()))
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // The thread may be ending: then the buffer is simply freed.
        let _ = UNUSED.try_with(|unused| {
            let mut unused = unused.borrow_mut();
            if unused.len() < KEPT_PER_THREAD {
                unused.push(buffer);
            }
        });
    }
}
