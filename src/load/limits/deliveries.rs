//! One task per core writes frames to its share of the sockets, one `write` each, in turn.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use super::frame::{FRAME, HEADER, Header, Kind};
use super::peer::Part;
use super::stage::Stage;
use super::{Loop, Measured};
use crate::load::LoadError;
use crate::load::report::conditions::cores;
use crate::load::report::{Progress, Verdict, rate};

pub(super) fn measure(sockets: u32, measured: Duration, progress: &Progress) -> Result<Measured, LoadError> {
    let (mut stage, streams) = Stage::set(Part::Deliveries, sockets)?;
    let mut shares: Vec<Vec<TcpStream>> = (0..cores()).map(|_| Vec::new()).collect();
    for (at, stream) in streams.into_iter().enumerate() {
        shares[at % cores()].push(stream);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = shares
        .into_iter()
        .map(|share| stage.runtime.spawn(write_in_turn(share, Arc::clone(&stop))))
        .collect();
    let served = stage.measure(measured, progress, "deliveries")?;
    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for writer in writers {
        let written = stage.runtime.block_on(writer);
        sent += written
            .map_err(|_| LoadError::Broken("a writer panicked"))?
            .map_err(LoadError::doing("delivering"))?;
    }
    let report = stage.end()?;
    let lost = sent - report.completed_in_all.min(sent);
    Ok(Measured {
        figures: Loop::new(
            rate(report.completed, Duration::from_micros(report.measured_us)),
            None,
            served.usage,
            served.elapsed,
        ),
        verdict: Verdict { lost, ..report.verdict },
    })
}

/// Writes until it is told to stop, then closes the sockets and says how many frames it wrote.
async fn write_in_turn(sockets: Vec<TcpStream>, stop: Arc<AtomicBool>) -> io::Result<u64> {
    let mut frame = [0x5A; FRAME];
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        for (socket, number) in sockets.iter().zip(0..) {
            let header = Header { kind: Kind::Frame, socket: number, id: round };
            frame[..HEADER].copy_from_slice(&header.encode());
            write_whole(socket, &frame).await?;
        }
        // `try_write` never yields; without this a lone task would keep its worker from all else.
        tokio::task::yield_now().await;
    }
    Ok(round * sockets.len() as u64)
}

/// Writes all, waiting for room where the kernel has none.
pub(super) async fn write_whole(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
