//! What the tests are made of: nodes, clients, commands, and waiting.

/// Sends a request and expects this kind of answer.
macro_rules! ask {
    ($client:expr, $request:expr, $answer:ident) => {
        match $client.request($request).await {
            convoke_protocol::frame::Answer::$answer(body) => body,
            other => panic!("the answer is {other:?}, not {}", stringify!($answer)),
        }
    };
}

/// Sends a request and expects this error, which it returns.
macro_rules! refused {
    ($client:expr, $request:expr, $code:ident) => {{
        let error = ask!($client, $request, Error);
        assert_eq!(error.code, convoke_protocol::error_code::ErrorCode::$code, "{error}");
        error
    }};
}

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod group;
pub(crate) mod http;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod servers;
pub(crate) mod wire;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

pub(crate) use client::{TestClient, to_user};
pub(crate) use command::finished;
pub(crate) use node::{Setup, TestNode};

/// How long anything may take before a test gives up. Generous: it tells a hang from a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// How often a condition is looked at that nothing tells of.
const GLANCE: Duration = Duration::from_millis(10);

/// The seed of a test that plays at random: printed, so that a failure can be played again with `CONVOKE_TEST_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("CONVOKE_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().expect("CONVOKE_TEST_SEED is a number"));
    eprintln!("CONVOKE_TEST_SEED={seed}");
    seed
}

/// Waits until `check` has something to show.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(shown) = check().await {
            return shown;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(GLANCE).await;
    }
}

/// Waits for what must come.
pub(crate) async fn in_time<T>(what: &str, coming: impl Future<Output = T>) -> T {
    timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
