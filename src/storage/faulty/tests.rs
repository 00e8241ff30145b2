//! That faults come as told, and that what holds for every store holds with them.

use std::sync::Arc;

use futures_util::future;

use super::*;
use crate::storage::conformance::{self, Fixture, append_of, conversation, rows, store};
use crate::storage::memory::MemoryStore;

struct Faultless(Arc<FaultyStore>);

fn faulty(plan: FaultPlan) -> Arc<FaultyStore> {
    Arc::new(FaultyStore::new(Stores::of(Arc::new(MemoryStore::new())), plan))
}

impl Fixture for Faultless {
    fn stores(&self) -> Stores {
        Stores::of(self.0.clone())
    }
    fn shutdown(&mut self) -> BoxFuture<'_, ()> {
        self.0.shutdown();
        future::ready(()).boxed()
    }
    fn reopen(&mut self) -> BoxFuture<'_, bool> {
        future::ready(false).boxed()
    }
}

crate::conformance_tests!(Faultless(faulty(FaultPlan::default())));

async fn seqs(store: &FaultyStore, name: &str) -> Vec<u64> {
    let rows = store.read(&conversation(name), Seq(1), Seq(u64::MAX), ReadLimit::rows(1_000)).await;
    rows.expect("readable").iter().map(|row| row.seq.0).collect()
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    use AppendFault::{
        NotStored, Overloaded, PoisonNotStored, PoisonStored, UnknownNotStored, UnknownStored,
    };
    let unknown = |answer: &Result<(), AppendError>| matches!(answer, Err(AppendError::Unknown(_)));
    let not_stored = |answer: &Result<(), AppendError>| matches!(answer, Err(AppendError::NotStored(_)));
    let overloaded = |answer: &Result<(), AppendError>| *answer == Err(AppendError::Overloaded);
    type Answers = fn(&Result<(), AppendError>) -> bool;
    let cases: [(AppendFault, Answers, bool, bool); 6] = [
        (Overloaded, overloaded, false, false),
        (NotStored, not_stored, false, false),
        (UnknownStored, unknown, true, false),
        (UnknownNotStored, unknown, false, false),
        (PoisonStored, unknown, true, true),
        (PoisonNotStored, unknown, false, true),
    ];
    let team = conversation("team");
    for (fault, answers, stored, poisons) in cases {
        let faulty = faulty(FaultPlan::default());
        faulty.tell([None, Some(fault)]);
        assert_eq!(store(&*faulty, append_of(&team, &rows(1, 1, "a"), 0)).await, Ok(()));
        let answer = store(&*faulty, append_of(&team, &rows(2, 2, "a"), 0)).await;
        assert!(answers(&answer), "{fault:?}: {answer:?}");
        assert_eq!(seqs(&faulty, "team").await.contains(&2), stored, "{fault:?}");
        let after = store(&*faulty, append_of(&team, &rows(3, 3, "a"), 0)).await;
        assert_eq!(not_stored(&after), poisons, "{fault:?}");
        assert_eq!(faulty.health() == Health::Good, !poisons, "{fault:?}");
        assert_eq!(seqs(&faulty, "team").await.contains(&3), !poisons, "reads go on: {fault:?}");
    }
}

#[tokio::test]
async fn a_seed_makes_the_same_faults_again() {
    let outcomes = |seed| async move {
        let appends = vec![(OneIn(3), AppendFault::NotStored), (OneIn(3), AppendFault::UnknownStored)];
        let faulty = faulty(FaultPlan { seed, appends, ..FaultPlan::default() });
        let mut outcomes = Vec::new();
        for row in rows(1, 60, "a") {
            outcomes.push(store(&*faulty, append_of(&conversation("team"), &[row], 0)).await);
        }
        outcomes
    };
    let first = outcomes(7).await;
    assert_eq!(first, outcomes(7).await);
    assert_ne!(first, outcomes(8).await);
    assert!(first.iter().any(Result::is_ok) && first.iter().any(Result::is_err));
}

#[tokio::test]
async fn stalled_appends_go_on_in_order_or_are_answered_at_the_end() {
    let faulty = faulty(FaultPlan::default());
    let answers = Arc::new(Mutex::new(Vec::new()));
    let append = |stamp: u64| {
        let answers = answers.clone();
        let row = conformance::row(1, None, &format!("text {stamp}"));
        let done = move |result: Result<(), AppendError>| answers.lock().push((stamp, result.is_ok()));
        faulty.append(append_of(&conversation("team"), &[row], stamp), Box::new(done));
    };
    faulty.stall();
    append(1);
    append(2);
    assert_eq!((faulty.stalled(), seqs(&faulty, "team").await), (2, vec![]));
    faulty.release();
    assert_eq!(*answers.lock(), [(1, true), (2, true)]);
    faulty.stall();
    append(3);
    faulty.poison("enough");
    append(4);
    assert_eq!(answers.lock()[2..], [(3, false), (4, false)]);
    assert_eq!(faulty.health(), Health::Poisoned("enough".into()));
}

#[tokio::test]
async fn late_answers_are_late_and_reads_fail() {
    let plan = FaultPlan {
        late_answers: (OneIn(1), Duration::from_millis(5)),
        reads: OneIn(1),
        cursors: OneIn(1),
        ..FaultPlan::default()
    };
    let faulty = faulty(plan);
    let team = conversation("team");
    let (tell, mut told) = tokio::sync::oneshot::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    faulty.append(append_of(&team, &rows(1, 1, "a"), 0), done);
    assert!(told.try_recv().is_err(), "the memory store answers within the call");
    assert_eq!(told.await, Ok(Ok(())));
    assert!(faulty.hint(&team).await.is_err() && faulty.start(&team).await.is_err());
    let (user, device) = (conformance::user("alice"), conformance::device("phone"));
    let cursor = Cursor { conversation: team, seq: Seq(1) };
    assert!(faulty.put_cursors(&user, &device, &[cursor]).await.is_err());
}

#[tokio::test]
async fn tampering_shows_and_is_always_the_same() {
    let faulty = faulty(FaultPlan::default());
    let team = conversation("team");
    assert_eq!(store(&*faulty, append_of(&team, &rows(1, 100, "a"), 0)).await, Ok(()));
    let whole: Vec<u64> = (1..=100).collect();
    assert_eq!(seqs(&faulty, "team").await, whole);
    for tamper in [Tamper::Drop, Tamper::Double, Tamper::Reorder, Tamper::Renumber] {
        faulty.plan(FaultPlan { seed: 3, tamper: Some((OneIn(10), tamper)), ..FaultPlan::default() });
        let seen = seqs(&faulty, "team").await;
        assert_eq!(seen, seqs(&faulty, "team").await);
        let (mut sorted, mut unique) = (seen.clone(), seen.clone());
        sorted.sort_unstable();
        unique.dedup();
        match tamper {
            Tamper::Drop => assert!(seen.len() < 100 && seen == sorted),
            Tamper::Double => assert!(seen.len() > 100 && unique == whole),
            Tamper::Reorder => assert!(seen != whole && sorted == whole),
            Tamper::Renumber => assert!(seen.len() == 100 && unique.len() < 100),
        }
    }
}
