//! For scripts: lines in, lines out, nothing lost and nothing twice.

use std::io::{self, BufRead as _, Read as _, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use convoke_client::{ClientError, ClientEvent, Draft, SentReceipt};
use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::Content;
use tokio::sync::mpsc;

use super::input::Input;
use super::outgoing::Outgoing;
use super::{Chat, text};

/// Lines that wait for their receipts before another one is read.
const MAX_WAITING: usize = 64;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// At the end of input: so long without any news, and what is still missing is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

type Line = io::Result<String>;

pub(super) async fn run(chat: Chat) -> anyhow::Result<ExitCode> {
    // Locked for each line only: the reading thread never waits for the writing one.
    let mut loop_ = Piped::new(chat, io::stdout());
    let code = loop_.run(read_lines()).await?;
    // The server notices by itself if this fails.
    let _ = loop_.chat.client.logout().await;
    Ok(code)
}

/// Reads standard input on a thread of its own: it cannot be awaited.
fn read_lines() -> mpsc::Receiver<Line> {
    let (lines, receiver) = mpsc::channel(MAX_WAITING);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = read_line(&mut input).transpose() {
            let failed = line.is_err();
            if lines.blocking_send(line).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

fn read_line(input: &mut impl io::BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    input.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 > MAX_LINE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line is longer than {MAX_LINE} bytes"),
        ));
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    if bytes.ends_with(b"\r") {
        bytes.pop();
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

struct Piped<W> {
    chat: Chat,
    out: W,
    only: Option<ConversationId>,
    outgoing: Outgoing,
    /// The highest own message that has its receipt, and the highest that was printed.
    acked: Seq,
    printed: Seq,
    caught_up: bool,
    failed: bool,
}

impl<W: Write> Piped<W> {
    fn new(chat: Chat, out: W) -> Self {
        Self {
            only: chat.conversation(),
            chat,
            out,
            outgoing: Outgoing::default(),
            acked: Seq::ZERO,
            printed: Seq::ZERO,
            caught_up: false,
            failed: false,
        }
    }

    async fn run(&mut self, mut lines: mpsc::Receiver<Line>) -> anyhow::Result<ExitCode> {
        let mut ended = false;
        loop {
            let settled = self.outgoing.is_empty();
            if ended && settled && self.caught_up && self.printed >= self.acked {
                break;
            }
            tokio::select! {
                event = self.chat.events.next() => match event {
                    Some(event) => {
                        if !self.event(event)? {
                            break;
                        }
                    }
                    None => bail!("the session is over"),
                },
                receipt = self.outgoing.receipt(&self.chat.client), if !settled => self.receipt(receipt),
                line = lines.recv(), if !ended && self.outgoing.len() < MAX_WAITING => match line {
                    Some(line) => self.line(line.context("standard input")?).await?,
                    None => ended = true,
                },
                () = tokio::time::sleep(PATIENCE), if ended && settled => {
                    eprintln!("convoke chat: the server does not send what is still missing");
                    break;
                }
            }
        }
        Ok(if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Says a line, or carries out a command if lines may be some.
    async fn line(&mut self, line: String) -> anyhow::Result<()> {
        if !self.chat.commands || !line.starts_with('/') {
            return self.say(line);
        }
        match Input::parse(&line) {
            Input::Say(words) => self.say(words),
            Input::Command(command) => {
                // In the order of the lines: what was said before is there when the command is.
                while !self.outgoing.is_empty() {
                    let receipt = self.outgoing.receipt(&self.chat.client).await;
                    self.receipt(receipt);
                }
                match command.carry_out(&self.chat.client, self.only.as_ref()).await {
                    Ok(told) => {
                        for line in told {
                            writeln!(self.out, "# {line}").context("standard output")?;
                        }
                        Ok(self.out.flush().context("standard output")?)
                    }
                    Err(failure) => {
                        self.failed = true;
                        eprintln!("convoke chat: {line}: {failure}");
                        Ok(())
                    }
                }
            }
            _ => {
                self.failed = true;
                eprintln!("convoke chat: {line}: no command for scripts");
                Ok(())
            }
        }
    }

    fn say(&mut self, line: String) -> anyhow::Result<()> {
        let Some(target) = &self.chat.target else { bail!("say whom it is for: --to USER or --group ID") };
        self.outgoing.say(Draft::new(target.clone(), Content::text(line)));
        Ok(())
    }

    fn receipt(&mut self, receipt: Result<SentReceipt, ClientError>) {
        match receipt {
            Ok(receipt) => self.acked = self.acked.max(receipt.seq),
            Err(error) => {
                self.failed = true;
                eprintln!("convoke chat: not sent, or not known to be: {error}");
            }
        }
    }

    /// Says whether to go on: not if nobody reads any more.
    fn event(&mut self, event: ClientEvent) -> anyhow::Result<bool> {
        match event {
            ClientEvent::Message { conversation, message } => {
                if self.only.as_ref().is_some_and(|only| *only != conversation) {
                    return Ok(true);
                }
                if self.only.is_some() {
                    self.printed = message.seq;
                }
                let line = text::plain_line(&conversation, &message);
                match writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                    written => written.context("standard output")?,
                }
            }
            ClientEvent::Skipped { conversation, from, to } => {
                eprintln!("convoke chat: {conversation}: {from} to {to} are no longer to be had");
            }
            ClientEvent::ReadMoved(_)
            | ClientEvent::Receipt(_)
            | ClientEvent::Signalled(_)
            | ClientEvent::Hid(_)
            | ClientEvent::ListChanged(_)
            | ClientEvent::JoinRequested(_)
            | ClientEvent::JoinAnswered(_) => {}
            ClientEvent::CaughtUp => self.caught_up = true,
            ClientEvent::Disconnected { reason } => eprintln!("convoke chat: {reason}; reconnecting…"),
            ClientEvent::Connected { node, .. } => eprintln!("convoke chat: connected to {node} again"),
            ClientEvent::ConnectFailed { .. } => {}
            ClientEvent::Kicked { reason, message } => {
                bail!("the server ended the session: {reason}: {message}")
            }
            ClientEvent::Failed { error } => return Err(error.into()),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are() {
        let mut input = &b"one\n\ntwo\r\n  three "[..];
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).expect("read") {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "", "two", "  three "]);
        let long = vec![b'x'; MAX_LINE as usize + 1];
        assert!(read_line(&mut &long[..]).is_err());
        let mut longest = vec![b'x'; MAX_LINE as usize - 1];
        longest.push(b'\n');
        assert!(matches!(read_line(&mut &longest[..]), Ok(Some(_))));
    }
}
