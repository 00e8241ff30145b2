//! What an account of changes promises, of stores that keep one; of others that everything is told.

use convoke_protocol::id::{ConversationId, Seq, UserId};

use super::{Fixture, append_of, conversation, rows, store, user};
use crate::storage::{Append, Changed, Epoch, MarkKey, Projection, ReadMark, Stores, WriteStamp};

async fn changed(stores: &Stores, user: &UserId, since: Option<&str>) -> Changed {
    let mut all: Option<Changed> = None;
    loop {
        // In pages of two, to see that none is left out between them.
        let after = all.as_ref().and_then(|all| all.conversations.last());
        let page = stores.index.changed(user, since, after, 2).await.expect("readable");
        let is_last = page.conversations.len() < 2;
        match &mut all {
            None => all = Some(page),
            Some(all) => all.conversations.extend(page.conversations),
        }
        if is_last {
            return all.expect("a page");
        }
    }
}

/// Each store may tell more than changed, but never less; one that keeps no account tells everything.
pub async fn what_changed_since_a_token_is_told(fixture: &mut impl Fixture) {
    let mut stores = fixture.stores();
    let (alice, team) = (user("alice"), conversation("team"));
    let with = |name: &str| ConversationId::direct(&alice, &user(name));
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(with);
    for id in [&bob, &carol, &dave, &team] {
        let listed_for = if *id == team { vec![alice.clone()] } else { id.direct_users() };
        let append = Append { listed_for, ..append_of(id, &rows(1, 2, "x"), 0) };
        assert_eq!(store(&*stores.log, append).await, Ok(()));
    }
    let everything = vec![bob.clone(), carol.clone(), dave.clone(), team.clone()];
    let first = changed(&stores, &alice, None).await;
    assert!(first.all);
    assert_eq!(first.conversations, everything);
    let unknown = changed(&stores, &alice, Some("a token of nobody")).await;
    assert_eq!((unknown.all, &unknown.conversations), (true, &everything));
    // From here on what was written before is of an earlier time.
    if !fixture.reopen().await {
        return;
    }
    stores = fixture.stores();
    let second = changed(&stores, &alice, first.token.as_deref()).await;
    let Some(token) = second.token.clone() else {
        assert_eq!((first.token, second.conversations), (None, everything));
        return;
    };
    let told = |ids: &[&ConversationId]| {
        let mut told: Vec<ConversationId> = ids.iter().copied().cloned().collect();
        told.push(team.clone());
        told
    };
    // A group is always told; of the rest nothing changed since.
    let quiet = changed(&stores, &alice, Some(&token)).await;
    assert_eq!((quiet.all, quiet.conversations), (false, told(&[])));
    // A message; what an entry changes in an earlier row; how far the user has read on another device.
    assert_eq!(store(&*stores.log, append_of(&bob, &rows(1, 3, "x")[2..], 1)).await, Ok(()));
    assert_eq!(changed(&stores, &alice, Some(&token)).await.conversations, told(&[&bob]));
    let stamp = WriteStamp::new(Epoch(1), 9);
    let projection = Projection { rows: rows(1, 2, "y").split_off(1), ..Projection::empty(&carol, stamp) };
    let (tell, ended) = tokio::sync::oneshot::channel();
    stores.log.project(projection, Box::new(move |result| drop(tell.send(result))));
    assert_eq!(ended.await.expect("answered"), Ok(()));
    assert_eq!(changed(&stores, &alice, Some(&token)).await.conversations, told(&[&bob, &carol]));
    let key = MarkKey { user: alice.clone(), conversation: dave.clone() };
    let mark = ReadMark { seq: Seq(2), ordinal: 2 };
    assert_eq!(stores.marks.put_marks(&[(key, mark)]).await, Ok(()));
    let all = told(&[&bob, &carol, &dave]);
    assert_eq!(changed(&stores, &alice, Some(&token)).await.conversations, all);
    // Dave learns of the messages only.
    assert_eq!(changed(&stores, &user("dave"), Some(&token)).await.conversations, Vec::new());
    // The account holds over a restart, and ends with what is new then.
    assert!(fixture.reopen().await);
    stores = fixture.stores();
    let after = changed(&stores, &alice, Some(&token)).await;
    assert_eq!((after.all, after.conversations), (false, all));
    let now = after.token.expect("a token");
    assert_eq!(changed(&stores, &alice, Some(&now)).await.conversations, told(&[]));
}
