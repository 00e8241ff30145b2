//! Answers every text with the same text. `cargo run --example echo -- 127.0.0.1:7700 TOKEN`, with a token of the user
//! that is to echo (`convoke token --user echo`).

use convoke_client::protocol::id::{ConversationId, DeviceId, GroupId, UserId};
use convoke_client::protocol::message::{Message, MessageKind};
use convoke_client::protocol::request::messages::Target;
use convoke_client::{Client, ClientConfig, ClientEvent, Draft, Start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(token)) = (args.next(), args.next()) else {
        return Err("usage: echo ADDRESS TOKEN".into());
    };
    let mut config = ClientConfig::new(vec![address], token, DeviceId::new("echo")?);
    // Behind what was echoed before this process began, so that a restart neither repeats nor forgets.
    config.start = Start::from_device();
    let (client, mut events) = Client::connect(config).await?;
    let mut own = None;
    while let Some(event) = events.next().await {
        match event {
            ClientEvent::Connected { user, node, .. } => {
                eprintln!("connected to {node} as {user}");
                own = Some(user);
            }
            ClientEvent::Message { conversation, message } => {
                let Some(own) = own.as_ref().filter(|own| **own != message.sender) else { continue };
                if let Some(draft) = echo(own, &conversation, &message)? {
                    let receipt = client.send_draft(draft).await?;
                    eprintln!("{conversation}: echoed {} as {}", message.seq, receipt.seq);
                }
            }
            ClientEvent::Kicked { reason, message } => return Err(format!("{reason}: {message}").into()),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}

/// What to say to a message, if anything.
fn echo(
    own: &UserId,
    conversation: &ConversationId,
    message: &Message,
) -> Result<Option<Draft>, Box<dyn std::error::Error>> {
    if message.kind != MessageKind::USER || !message.content.content_type.is_text() {
        return Ok(None);
    }
    let target = match conversation.peer_of(own) {
        Some(peer) => Target::User(peer),
        None => Target::Group(GroupId::new(conversation.as_str().trim_start_matches("g:"))?),
    };
    Ok(Some(Draft::new(target, message.content.clone()).reply_to(message.seq)))
}
