//! Requests and responses: each socket has one request in flight, and a task that answers it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frame::FRAME;
use super::peer::Part;
use super::stage::Stage;
use super::{Loop, Measured};
use crate::load::LoadError;
use crate::load::report::{Progress, Verdict, rate};

pub(super) fn measure(sockets: u32, measured: Duration, progress: &Progress) -> Result<Measured, LoadError> {
    let (mut stage, streams) = Stage::set(Part::Echoes, sockets)?;
    let answering: Vec<_> = streams.into_iter().map(|stream| stage.runtime.spawn(echo(stream))).collect();
    let served = stage.measure(measured, progress, "echoes")?;
    // Each ends when the peer, having its last answer, closes the socket.
    let report = stage.end()?;
    let mut answered = 0;
    for task in answering {
        let echoed = stage.runtime.block_on(task);
        answered += echoed
            .map_err(|_| LoadError::Broken("an echo panicked"))?
            .map_err(LoadError::doing("echoing"))?;
    }
    let lost = report.verdict.lost + answered.abs_diff(report.completed_in_all);
    Ok(Measured {
        figures: Loop::new(
            rate(report.completed, Duration::from_micros(report.measured_us)),
            report.latencies.percentiles(),
            served.usage,
            served.elapsed,
        ),
        verdict: Verdict { lost, ..report.verdict },
    })
}

/// Answers every frame with itself, until there is none, and says how many there were.
async fn echo(mut socket: TcpStream) -> io::Result<u64> {
    let mut buffer = [0; 2 * FRAME];
    let mut filled = 0;
    let mut answered = 0;
    loop {
        let read = socket.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(answered);
        }
        filled += read;
        let whole = filled - filled % FRAME;
        socket.write_all(&buffer[..whole]).await?;
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
        answered += (whole / FRAME) as u64;
    }
}
