//! What a service may do, and that it is written down.

use convoke_protocol::frame::Event;
use convoke_protocol::id::Seq;
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::SendAs;
use convoke_protocol::request::groups::GetGroup;
use convoke_protocol::request::messages::{Direction, HistoryFrom};

use crate::harness::client::conversation;
use crate::harness::group::{
    BOTH, add, create, delete, group, group_conversation, recall, remove, text, user,
};
use crate::harness::{TestClient, TestNode, eventually};

fn send_as(conversation: &convoke_protocol::id::ConversationId, sender: Option<&str>, text: &str) -> SendAs {
    SendAs {
        retry: Retry::first(),
        sender: sender.map(user),
        conversation: conversation.clone(),
        content: Content::text(text),
        reply_to: None,
        priority: Priority::SYSTEM,
    }
}

#[tokio::test]
async fn a_service_manages_speaks_and_moderates_and_it_is_written_down() {
    let mut node = TestNode::start().await;
    for framing in BOTH {
        let tag = framing.name().replace([' ', '/'], "-");
        let (alice, bob, id) = (format!("alice-{tag}"), format!("bob-{tag}"), format!("team-{tag}"));
        let mut hers = TestClient::login(&node, framing, &alice, "phone").await;
        let mut service = node.service(framing, "backend").await;
        // It makes a group for others: the first member it names owns it.
        ask!(service, create(&id, &[&alice, &bob]), GroupCreated);
        let state = ask!(service, GetGroup { group: group(&id), known_version: None }, GroupState);
        assert_eq!((state.owner, state.me, state.members), (Some(user(&alice)), None, 2));
        let team = group_conversation(&id);
        hers.push_of(&team, 1).await;
        // As the system, and in the name of a member.
        let sent = ask!(service, send_as(&team, None, "maintenance at ten"), SentAs);
        let notice = hers.push_of(&team, sent.seq.0).await;
        assert_eq!((notice.kind, notice.sender.as_str()), (MessageKind::SYSTEM, "system"));
        assert_eq!(hers.standing(&team).await.unwrap().unread, 0);
        let sent = ask!(service, send_as(&team, Some(&bob), "from my pocket"), SentAs);
        let spoken = hers.push_of(&team, sent.seq.0).await;
        assert_eq!((spoken.kind, spoken.sender.as_str()), (MessageKind::USER, bob.as_str()));
        assert_eq!(hers.standing(&team).await.unwrap().unread, 1);
        refused!(service, send_as(&team, Some("stranger"), "x"), NOT_FOUND);
        let pair = conversation(&alice, &bob);
        let sent = ask!(service, send_as(&pair, Some(&bob), "direct"), SentAs);
        assert_eq!(sent.seq, Seq(1));
        refused!(service, send_as(&pair, Some("stranger"), "x"), NOT_FOUND);
        ask!(service, add(&id, &["carol"]), MembersAdded);
        ask!(service, remove(&id, &["carol"]), MembersRemoved);
        // Moderation: it reads what members do not any more, and takes it out for good.
        let seq = hers.say_to(&id, "regretted").await;
        ask!(hers, recall(&team, seq), Recalled);
        let read = async |client: &mut TestClient| {
            let page = client.history(&team, HistoryFrom::Seq(Seq(seq)), Direction::Newer, 1).await.page;
            text(&page.messages[0]).to_owned()
        };
        assert_eq!(
            (read(&mut hers).await, read(&mut service).await),
            (String::new(), "regretted".to_owned())
        );
        ask!(service, delete(&team, seq, true), Deleted);
        assert_eq!(read(&mut service).await, "");
        // Users may none of that.
        refused!(hers, send_as(&team, None, "x"), WRONG_ROLE);
        refused!(hers, delete(&team, seq, true), WRONG_ROLE);
        let mut other = TestClient::login(&node, framing, &format!("mallory-{tag}"), "phone").await;
        refused!(other, send_as(&team, Some(&alice), "x"), WRONG_ROLE);
        // A service listens to nothing that is not its own.
        assert!(service.take_events().iter().all(|event| !matches!(event, Event::Push(_))));
        for act in [
            "create_group",
            "send_as_system",
            "send_on_behalf",
            "add_members",
            "remove_members",
            "history",
            "delete",
        ] {
            eventually("the act is written down", async || {
                let log = node.stderr();
                let line = log.lines().find(|line| {
                    line.contains("convoke::audit") && line.contains(act) && line.contains(&tag)
                })?;
                assert!(line.contains("backend"), "{line}");
                Some(())
            })
            .await;
        }
    }
    node.stop().await;
    node.check().await;
}
