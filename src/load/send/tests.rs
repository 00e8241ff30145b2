//! The load generator against a server that does, or does not do, what it should.

use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::id::UserId;

use super::crew::Threads;
use super::fake_server::{FAULTY_MESSAGE, FakeServer, Fault};
use super::plan;
use super::task::{Findings, Job, Phase, Tokens};
use crate::load::LoadError;
use crate::load::report::{Incidents, Verdict};

/// The name itself: the fake server asks for no more.
#[derive(Debug)]
struct Names;

impl Tokens for Names {
    fn token(&self, user: &UserId) -> String {
        user.as_str().to_owned()
    }
}

struct Shape {
    connections: u32,
    conversations: u32,
    threads: u32,
    in_flight: u32,
    rate: Option<f64>,
    /// Of what is lost nobody can say that it will not come: it is waited for, so long.
    settle_within: Duration,
}

const SMALL: Shape = Shape {
    connections: 6,
    conversations: 4,
    threads: 1,
    in_flight: 3,
    rate: None,
    settle_within: Duration::from_secs(30),
};

fn start(server: &FakeServer, shape: &Shape) -> Result<Threads, LoadError> {
    let job = Job {
        run: "test".to_owned(),
        addresses: vec![server.address],
        from: None,
        in_flight: shape.in_flight,
        body_bytes: 40,
        rate: shape.rate,
        settle_within: shape.settle_within,
    };
    let processes = plan::parts(shape.connections, shape.conversations, shape.threads)?;
    let mut threads = Threads::start(&job, &processes[0], &Arc::new(Names))?;
    threads.wait_until_live(|_| {})?;
    Ok(threads)
}

fn run(server: &FakeServer, shape: &Shape) -> Result<Findings, LoadError> {
    let mut threads = start(server, shape)?;
    threads.enter(Phase::WarmingUp);
    server.wait_for(FAULTY_MESSAGE / 2, 0, || threads.check())?;
    threads.enter(Phase::Measuring);
    // However far it was by then.
    server.wait_for(server.messages() + FAULTY_MESSAGE * 10, 0, || threads.check())?;
    server.wait_for_what_follows(|| threads.check())?;
    threads.enter(Phase::Settling);
    threads.finish()
}

#[test]
fn a_server_without_fault_passes() {
    for shape in [
        SMALL,
        Shape { in_flight: 1, ..SMALL },
        Shape { connections: 2, conversations: 1, in_flight: 64, ..SMALL },
        Shape { connections: 7, conversations: 6, threads: 3, ..SMALL },
        Shape { rate: Some(1_000.0), ..SMALL },
        Shape { rate: Some(1_000.0), threads: 2, in_flight: 1, ..SMALL },
    ] {
        let server = FakeServer::start(Fault::Nothing);
        let found = run(&server, &shape).unwrap();
        assert!(found.verdict.is_clean(), "{}", found.verdict);
        assert_eq!(server.complaints(), Vec::<String>::new());
        assert_eq!((found.acked_in_all, found.incidents), (server.messages(), Incidents::default()));
        assert!(found.acked > 0 && found.acked_per_s > 0.0 && found.pushed_per_s > 0.0);
        assert!(found.ack.count() > 0 && found.ack.count() == found.push.count());
    }
}

#[test]
fn pushes_are_acknowledged_in_batches() {
    // More pushes than are acknowledged at once, on each side.
    let server = FakeServer::start(Fault::Nothing);
    let found = run(&server, &Shape { connections: 2, conversations: 1, ..SMALL }).unwrap();
    let acks = server.acks();
    assert!(acks >= found.acked_in_all / 2 / 64 && acks < found.acked_in_all / 4, "{acks} acks");
}

#[test]
fn connections_without_work_show_that_they_live() {
    let server = FakeServer::start(Fault::Nothing);
    let mut threads = start(&server, &SMALL).unwrap();
    server.wait_for(0, 2 * u64::from(SMALL.connections), || threads.check()).unwrap();
}

#[test]
fn what_a_server_does_wrong_is_found() {
    let none = Verdict::default();
    for (fault, expected) in [
        (Fault::PushTwice, Verdict { duplicated: 1, ..none }),
        (Fault::PushLate, Verdict { out_of_order: 1, ..none }),
        (Fault::NoAnswer, Verdict { lost: 1, gaps: 1, ..none }),
        (Fault::AnswerTwice, Verdict { duplicated: 1, ..none }),
        (Fault::SeqLeftOut, Verdict { gaps: 2, ..none }),
        (Fault::Refused, Verdict { lost: 1, ..none }),
    ] {
        let server = FakeServer::start(fault);
        // Each connection in one conversation, so that the message after a late one is of the same conversation.
        let shape = Shape { conversations: 3, settle_within: Duration::from_secs(2), ..SMALL };
        let found = run(&server, &shape).unwrap();
        assert_eq!(found.verdict, expected, "{fault:?}");
        assert_eq!(found.incidents.refused, u64::from(fault == Fault::Refused));
        assert_eq!(found.incidents.first_refusal.is_some(), fault == Fault::Refused);
    }
}

#[test]
fn what_no_server_may_do_ends_it() {
    for (fault, expected) in [
        (Fault::PushToAnother, "a push of a message that is not for it"),
        (Fault::Kicked, "the server closed it: acks_overdue (104)"),
    ] {
        let server = FakeServer::start(fault);
        let error = run(&server, &SMALL).unwrap_err().to_string();
        assert!(error.contains("the connection of bench-test-") && error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_lost_on_the_way_comes_back_and_nothing_is_missed() {
    for (fault, returns, lagged, missed, unkept) in [
        (Fault::GoAway, true, 0, 0, 0),
        (Fault::Closes, true, 0, 0, 0),
        (Fault::Lagged, false, 1, 0, 0),
        (Fault::Unknown, false, 0, 0, 0),
        (Fault::NoPush, false, 0, 1, 0),
        (Fault::AckRefused, false, 0, 0, 1),
    ] {
        for shape in [SMALL, Shape { rate: Some(1_000.0), threads: 2, ..SMALL }] {
            let server = FakeServer::start(fault);
            let found = run(&server, &shape).unwrap();
            assert!(
                found.verdict.is_clean(),
                "{fault:?}, {:?} per second: {}, {:?}, {}",
                shape.rate,
                found.verdict,
                found.incidents,
                server.account()
            );
            assert_eq!(server.complaints(), Vec::<String>::new(), "{fault:?}");
            assert_eq!(found.acked_in_all, server.different(), "{fault:?}");
            let returned = if returns { u64::from(shape.connections) } else { 0 };
            let incidents = Incidents { lagged, missed, unkept, returned, ..Incidents::default() };
            assert_eq!(Incidents { unsent: 0, ..found.incidents }, incidents, "{fault:?}");
        }
    }
}
