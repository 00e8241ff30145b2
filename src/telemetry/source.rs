//! Numbers that a part of the node keeps of itself, asked for at each scrape: the part knows nothing of metrics.

use std::fmt;
use std::sync::{Arc, OnceLock};

type Read<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Where the numbers come from, once there is something to ask; until then everything is zero.
pub(super) struct Source<T>(Arc<OnceLock<Read<T>>>);

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Source<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for Source<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source(..)")
    }
}

impl<T: Default> Source<T> {
    /// Names what is asked, once; says whether it was the first time.
    pub(super) fn watch(&self, read: impl Fn() -> T + Send + Sync + 'static) -> bool {
        self.0.set(Box::new(read)).is_ok()
    }

    /// The numbers now.
    pub(super) fn read(&self) -> T {
        self.0.get().map(|read| read()).unwrap_or_default()
    }
}
