//! A wire between two processes that can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on to wherever it is told.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    whole: watch::Sender<bool>,
    /// How often what passed fell silent.
    silences: watch::Sender<u32>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let (whole, silences) = (watch::Sender::new(true), watch::Sender::new(0));
        let (to, cut, silent) = (target.clone(), whole.clone(), silences.clone());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (mut cut, mut silent) = (cut.subscribe(), silent.subscribe());
                let to = *to.lock().unwrap();
                let Some(to) = to.filter(|_| *cut.borrow()) else { continue };
                tokio::spawn(async move {
                    let Ok(mut to) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => return,
                        _ = cut.wait_for(|whole| !whole) => return,
                        Ok(()) = silent.changed() => {}
                    }
                    // Both ends are held, and nobody is told.
                    let _ = cut.wait_for(|whole| !whole).await;
                });
            }
        });
        Self { address, target, whole, silences }
    }

    pub(crate) fn leads_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }

    /// What passes through it ends, and nothing new passes.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Of what passes through it nothing arrives any more, and no end hears of it; what is new passes.
    pub(crate) fn silence(&self) {
        self.silences.send_modify(|times| *times += 1);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}
