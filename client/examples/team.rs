//! Two users in a group: it is made, they talk, a message is edited, reacted to and recalled, and both read the same.
//! `cargo run --example team -- 127.0.0.1:7700 TOKEN-OF-ALICE TOKEN-OF-BOB`, with tokens of `convoke token --user …`.

use convoke_client::protocol::group::GroupProfile;
use convoke_client::protocol::id::{ConversationId, DeviceId, GroupId, Seq, UserId};
use convoke_client::protocol::message::Content;
use convoke_client::protocol::request::Retry;
use convoke_client::protocol::request::changes::{Edit, React, Recall};
use convoke_client::protocol::request::groups::CreateGroup;
use convoke_client::protocol::request::messages::{Direction, History, HistoryFrom, Target};
use convoke_client::timeline::Timeline;
use convoke_client::{Client, ClientConfig, ClientEvent, Events};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(alice), Some(bob)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: team ADDRESS TOKEN-OF-ALICE TOKEN-OF-BOB".into());
    };
    for line in talk(&address, &alice, &bob).await? {
        eprintln!("{line}");
    }
    Ok(())
}

async fn connect(address: &str, token: &str) -> Result<(Client, Events, UserId), Failure> {
    let config = ClientConfig::new(vec![address.to_owned()], token.to_owned(), DeviceId::new("example")?);
    let (client, mut events) = Client::connect(config).await?;
    loop {
        match events.next().await {
            Some(ClientEvent::Connected { user, .. }) => return Ok((client, events, user)),
            Some(_) => {}
            None => return Err("the session ended before it began".into()),
        }
    }
}

/// Takes what comes of a conversation until its entry `last` is there.
async fn follow(events: &mut Events, conversation: &ConversationId, last: Seq) -> Result<Timeline, Failure> {
    let mut timeline = Timeline::new();
    loop {
        match events.next().await {
            Some(ClientEvent::Message { conversation: of, message }) if of == *conversation => {
                let seq = message.seq;
                timeline.take(message);
                if seq >= last {
                    return Ok(timeline);
                }
            }
            Some(_) => {}
            None => return Err("the session ended".into()),
        }
    }
}

/// What Bob sees in the end: live, and as history says; the two are the same.
pub async fn talk(address: &str, alice: &str, bob: &str) -> Result<Vec<String>, Failure> {
    let (alice, _her_events, _) = connect(address, alice).await?;
    let (bob, mut his_events, his) = connect(address, bob).await?;
    // The id is the application's own choice; without one the server gives it.
    let group = GroupId::new(&format!("example-{}", Retry::first().client_id))?;
    let made = alice
        .call(CreateGroup {
            retry: Retry::first(),
            group: Some(group.clone()),
            unique: false,
            profile: GroupProfile { name: "An example".into(), ..GroupProfile::default() },
            members: vec![his],
        })
        .await?;
    let (conversation, target) = (made.conversation, Target::Group(group));
    let first = alice.send(target.clone(), Content::text("helo")).await?;
    let second = alice.send(target.clone(), Content::text("this was for somebody else")).await?;
    let content = Content::text("hello");
    let retry = Retry::first;
    alice.call(Edit { retry: retry(), conversation: conversation.clone(), seq: first.seq, content }).await?;
    alice.call(Recall { retry: retry(), conversation: conversation.clone(), seq: second.seq }).await?;
    let kind = "👋".to_owned();
    let wave = React { retry: retry(), conversation: conversation.clone(), seq: first.seq, kind, give: true };
    bob.call(wave).await?;
    let last = bob.send(target, Content::text("hello, Alice")).await?;
    let live = follow(&mut his_events, &conversation, last.seq).await?;
    let unread = bob.read(conversation.clone(), last.seq).await?.unread;
    let history = History {
        conversation: conversation.clone(),
        from: HistoryFrom::First,
        direction: Direction::Newer,
        limit: 50,
    };
    let mut read = Timeline::new();
    bob.history(history).await?.page.messages.into_iter().for_each(|message| read.take(message));
    let shown = |timeline: &Timeline| {
        let said = timeline.messages().filter(|message| message.content.content_type.is_text());
        let line = |message: convoke_client::protocol::message::Message| {
            let text = match message.recalled_at {
                Some(_) => "(taken back)",
                None => message.content.as_text().unwrap_or("?"),
            };
            let reactions: String =
                message.reactions.iter().map(|one| format!(" [{} {}]", one.kind, one.count)).collect();
            format!("{} {}: {text}{reactions}", message.seq, message.sender)
        };
        said.map(line).collect::<Vec<_>>()
    };
    if shown(&live) != shown(&read) {
        return Err(format!("live {:?}, read {:?}", shown(&live), shown(&read)).into());
    }
    alice.logout().await?;
    bob.logout().await?;
    Ok(shown(&read).into_iter().chain([format!("{unread} unread")]).collect())
}
