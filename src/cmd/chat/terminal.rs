//! For people: a line to type on, and above it what is said, as it comes.
//!
//! Three threads: one waits for the keyboard, one writes above the line that is being typed, and the chat's own future
//! joins them with the session. A message appears once it is durable; until then only the typed line is gone.

mod reading;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context as _;
use convoke_client::{ClientError, ClientEvent, Draft, SentReceipt};
use convoke_protocol::id::{ConversationId, Seq, Timestamp};
use convoke_protocol::message::{Content, Message};
use convoke_protocol::request::messages::{Direction, History, HistoryFrom, Target};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Editor, ExternalPrinter};
use tokio::sync::mpsc;

use self::reading::{Keys, Others};
use super::Chat;
use super::command::Command;
use super::input::{HELP, Input};
use super::outgoing::Outgoing;
use super::text::{self, Style};

/// Messages shown when a conversation is opened.
const OPENING: u32 = 30;

/// Lines on their way to the screen.
const SCREEN_QUEUE: usize = 1024;

/// Lines that wait for their receipts; more are refused until some are there.
const MAX_WAITING: usize = 64;

/// How long leaving waits for receipts.
const LEAVING: Duration = Duration::from_secs(5);

/// What the keyboard's thread says.
enum Typed {
    Line(String),
    End,
}

type LineEditor = Editor<Keys, DefaultHistory>;

/// The keyboard: after each line it waits for the prompt of the next.
struct Keyboard {
    typed: mpsc::Receiver<Typed>,
    keys: mpsc::Receiver<()>,
    prompts: std_mpsc::SyncSender<String>,
}

/// What is above the line that is being typed.
struct Screen {
    lines: std_mpsc::SyncSender<String>,
    writer: std::thread::JoinHandle<()>,
}

impl Screen {
    fn start(mut printer: impl ExternalPrinter + Send + 'static) -> Self {
        let (lines, queue) = std_mpsc::sync_channel::<String>(SCREEN_QUEUE);
        let writer = std::thread::spawn(move || {
            while let Ok(line) = queue.recv() {
                // A terminal that is gone shows nothing; the keyboard's thread notices and ends the chat.
                let _ = printer.print(line + "\n");
            }
        });
        Self { lines, writer }
    }

    fn show(&self, line: String) {
        // The writer ends with this handle only.
        let _ = self.lines.send(line);
    }

    fn finish(self) {
        drop(self.lines);
        let _ = self.writer.join();
    }
}

impl Keyboard {
    fn start(mut editor: LineEditor, first_prompt: String) -> Self {
        let (pressed, keys) = mpsc::channel(1);
        editor.set_helper(Some(Keys(pressed)));
        let (typing, typed) = mpsc::channel(1);
        let (prompts, next_prompt) = std_mpsc::sync_channel::<String>(1);
        std::thread::spawn(move || {
            let mut prompt = first_prompt;
            loop {
                let typed = match editor.readline(&prompt) {
                    Ok(line) => {
                        // A history that is full, or repeats itself, takes nothing.
                        let _ = editor.add_history_entry(&line);
                        if matches!(Input::parse(&line), Input::Say(_)) {
                            erase(&mut editor, &prompt, &line);
                        }
                        Typed::Line(line)
                    }
                    Err(ReadlineError::Signal(_)) => continue,
                    Err(_) => Typed::End,
                };
                if typing.blocking_send(typed).is_err() {
                    break;
                }
                match next_prompt.recv() {
                    Ok(next) => prompt = next,
                    Err(_) => break,
                }
            }
        });
        Self { typed, keys, prompts }
    }
}

/// The typed line makes room for the message, which comes with its time once it is durable.
fn erase(editor: &mut LineEditor, prompt: &str, line: &str) {
    use std::io::Write as _;
    let columns = editor.dimensions().map_or(80, |(columns, _)| columns.into());
    let mut out = std::io::stdout().lock();
    // The bold of the prompt takes no columns.
    let prompt = prompt.trim_start_matches("\x1b[1m").trim_end_matches("\x1b[0m");
    let _ = write!(out, "{}", text::erase(prompt, line, columns)).and_then(|()| out.flush());
}

pub(super) async fn run(chat: Chat) -> anyhow::Result<ExitCode> {
    let mut editor = LineEditor::new().context("the terminal")?;
    let screen = Screen::start(editor.create_external_printer().context("the terminal")?);
    let style = Style { colours: std::env::var_os("NO_COLOR").is_none() };
    let mut talk = Talk {
        style,
        screen,
        outgoing: Outgoing::default(),
        shown: HashMap::new(),
        day: String::new(),
        down: false,
        others: Others::default(),
        last_is_own: false,
        chat,
    };
    let mut keyboard = Keyboard::start(editor, talk.prompt());
    let ended = talk.run(&mut keyboard).await;
    talk.screen.finish();
    ended
}

/// What was shown of a conversation.
#[derive(Debug, Clone, Copy)]
struct Shown {
    first: Seq,
    last: Seq,
}

struct Talk {
    chat: Chat,
    style: Style,
    screen: Screen,
    outgoing: Outgoing,
    shown: HashMap<ConversationId, Shown>,
    day: String,
    down: bool,
    others: Others,
    /// Whether the last message of the open conversation is the user's own.
    last_is_own: bool,
}

impl Talk {
    fn prompt(&self) -> String {
        let target = match &self.chat.target {
            Some(Target::User(user)) => Some(user.as_str()),
            Some(Target::Group(group)) => Some(group.as_str()),
            None => None,
        };
        self.style.prompt(&self.chat.user, target)
    }

    fn notice(&self, text: &str) {
        self.screen.show(self.style.notice(text));
    }

    fn failure(&self, text: &str) {
        self.screen.show(self.style.failure(text));
    }

    async fn run(&mut self, keyboard: &mut Keyboard) -> anyhow::Result<ExitCode> {
        self.notice(&format!("you are {}; /help lists the commands; times are UTC", self.chat.user));
        if !self.begin().await {
            return self.over(keyboard).await;
        }
        loop {
            let waiting = !self.outgoing.is_empty();
            tokio::select! {
                typed = keyboard.typed.recv() => {
                    let quit = match typed {
                        Some(Typed::Line(line)) => self.typed(&line).await,
                        Some(Typed::End) | None => true,
                    };
                    if quit {
                        self.leave().await;
                        return Ok(ExitCode::SUCCESS);
                    }
                    // The keyboard's thread waits for it, or is gone: then nothing more is typed.
                    let _ = keyboard.prompts.send(self.prompt());
                }
                event = self.chat.events.next() => match event {
                    Some(event) => {
                        if !self.event(event) {
                            return self.over(keyboard).await;
                        }
                    }
                    None => return self.over(keyboard).await,
                },
                Some(()) = keyboard.keys.recv() => self.key(),
                receipt = self.outgoing.receipt(&self.chat.client), if waiting => self.receipt(receipt),
            }
        }
    }

    /// Shows the conversation's history. What comes live meanwhile follows it, and is not shown twice. Says whether
    /// the session goes on.
    async fn begin(&mut self) -> bool {
        let Some(target) = self.chat.target.clone() else {
            self.notice("every conversation is shown here; /to USER opens one");
            self.list(true).await;
            return true;
        };
        // Only then is it certain where "live" begins: behind a page that is read after it.
        let mut meanwhile = Vec::new();
        self.list(true).await;
        loop {
            match self.chat.events.next().await {
                Some(ClientEvent::CaughtUp) => break,
                Some(event @ ClientEvent::Message { .. }) => meanwhile.push(event),
                Some(event) => {
                    if !self.event(event) {
                        return false;
                    }
                }
                None => return false,
            }
        }
        self.open(target).await;
        meanwhile.into_iter().all(|event| self.event(event))
    }

    /// The session is over; the line that is being typed must end before the terminal is whole again.
    async fn over(&mut self, keyboard: &mut Keyboard) -> anyhow::Result<ExitCode> {
        self.failure("press Enter to leave");
        let _ = keyboard.typed.recv().await;
        Ok(ExitCode::FAILURE)
    }

    async fn leave(&mut self) {
        let receipts = async {
            while !self.outgoing.is_empty() {
                let receipt = self.outgoing.receipt(&self.chat.client).await;
                self.receipt(receipt);
            }
        };
        if tokio::time::timeout(LEAVING, receipts).await.is_err() {
            self.failure("not everything you said is known to have arrived");
        }
        // The server notices by itself if this fails.
        let _ = self.chat.client.logout().await;
    }

    /// Takes a line; says whether to leave.
    async fn typed(&mut self, line: &str) -> bool {
        match Input::parse(line) {
            Input::Nothing => {}
            Input::Quit => return true,
            Input::Help => self.screen.show(format!("{HELP}\n{}", super::command::HELP)),
            Input::Command(command) => self.carry_out(command).await,
            Input::Wrong(why) => self.failure(&why),
            Input::Open(target) => self.open(target).await,
            Input::Say(words) => self.say(words),
            Input::History(count) => self.older(count).await,
            Input::Sessions => self.sessions().await,
            Input::List => self.list(false).await,
            Input::Read => self.read_all().await,
        }
        false
    }

    async fn carry_out(&mut self, command: Command) {
        let open = self.chat.conversation();
        match command.carry_out(&self.chat.client, open.as_ref()).await {
            Ok(lines) => lines.iter().for_each(|line| self.notice(line)),
            Err(failure) => self.failure(&failure.to_string()),
        }
    }

    fn say(&mut self, words: String) {
        let Some(target) = self.chat.target.clone() else {
            return self.failure("/to USER first: whom is it for?");
        };
        if self.outgoing.len() >= MAX_WAITING {
            return self.failure("too much is on its way; wait a moment and say it again");
        }
        self.outgoing.say(Draft::new(target, Content::text(words)));
        if self.down {
            self.notice("it will be sent once the server is back");
        }
    }

    fn receipt(&self, receipt: Result<SentReceipt, ClientError>) {
        if let Err(error) = receipt {
            self.failure(&format!("not sent, or not known to be: {error}"));
        }
    }

    async fn open(&mut self, target: Target) {
        let conversation = target.conversation(&self.chat.user);
        self.chat.target = Some(target);
        let history = History {
            conversation: conversation.clone(),
            from: HistoryFrom::Last,
            direction: Direction::Older,
            limit: OPENING,
        };
        let page = match self.chat.client.history(history).await {
            Ok(history) => history.page,
            Err(error) => return self.failure(&format!("no history: {error}")),
        };
        let first = page.messages.first().map_or(page.head.next(), |message| message.seq);
        let known = self.shown.entry(conversation).or_insert(Shown { first, last: page.head });
        *known = Shown { first, last: page.head.max(known.last) };
        self.has_read(&page.conversation, page.head);
        self.last_is_own = page.messages.last().is_some_and(|message| message.sender == self.chat.user);
        if page.messages.is_empty() {
            self.notice("nothing was said here yet");
        } else if page.next.is_some() {
            self.notice("/history shows what was said before");
        }
        for message in &page.messages {
            self.show(None, message);
        }
    }

    async fn older(&mut self, limit: u32) {
        let Some(conversation) = self.chat.conversation() else {
            return self.failure("/to USER first: whose history?");
        };
        let before = self.shown.get(&conversation).map_or(Seq(u64::MAX), |shown| shown.first);
        if before <= Seq(1) {
            return self.notice("this is where it began");
        }
        let from = HistoryFrom::Seq(Seq(before.0 - 1));
        let history =
            History { conversation: conversation.clone(), from, direction: Direction::Older, limit };
        match self.chat.client.history(history).await {
            Ok(history) => {
                let page = history.page;
                let Some(first) = page.messages.first().map(|message| message.seq) else {
                    return self.notice("there is nothing before that any more");
                };
                self.shown.entry(conversation).or_insert(Shown { first, last: page.head }).first = first;
                self.notice(&format!("{} to {before}", first));
                self.day.clear();
                for message in &page.messages {
                    self.show(None, message);
                }
                self.day.clear();
                self.notice("now again");
            }
            Err(error) => self.failure(&format!("no history: {error}")),
        }
    }

    async fn sessions(&self) {
        match self.chat.client.sessions().await {
            Ok(sessions) => {
                for session in sessions {
                    let here = if session.current { " (this one)" } else { "" };
                    self.screen.show(format!(
                        "  {} {} {} on {} since {} UTC{here}",
                        session.device,
                        session.device_class,
                        session.app,
                        session.node,
                        text::day_and_time(session.since)
                    ));
                }
            }
            Err(error) => self.failure(&format!("no sessions: {error}")),
        }
    }

    /// Takes news of the session; says whether it goes on.
    fn event(&mut self, event: ClientEvent) -> bool {
        match event {
            ClientEvent::Message { conversation, message } => self.live(&conversation, &message),
            ClientEvent::Skipped { conversation, from, to } => {
                self.notice(&format!("{conversation}: {from} to {to} are no longer to be had"));
            }
            ClientEvent::CaughtUp => {}
            ClientEvent::ReadMoved(moved) => self.read_elsewhere(&moved),
            ClientEvent::Receipt(receipt) => self.seen(&receipt),
            ClientEvent::Signalled(signalled) => self.signalled(&signalled),
            ClientEvent::JoinRequested(asked) => {
                let (user, group) = (asked.user, asked.group);
                self.notice(&format!("{user} asks to join {group}: /group {group}, then /accept {user}"));
            }
            ClientEvent::JoinAnswered(answer) => {
                let what = if answer.accepted { "you are a member of" } else { "you were not let into" };
                self.notice(&format!("{what} {}", answer.group));
            }
            ClientEvent::Hid(_) | ClientEvent::ListChanged(_) => {}
            ClientEvent::Disconnected { reason } => {
                self.down = true;
                self.notice(&format!("{reason}; reconnecting…"));
            }
            ClientEvent::ConnectFailed { .. } => {}
            ClientEvent::Connected { node, .. } => {
                self.down = false;
                self.notice(&format!("connected to {node} again"));
            }
            ClientEvent::Kicked { reason, message } => {
                self.failure(&format!("the server ended the session: {reason}: {message}"));
                return false;
            }
            ClientEvent::Failed { error } => {
                self.failure(&error.to_string());
                return false;
            }
        }
        true
    }

    fn live(&mut self, conversation: &ConversationId, message: &Message) {
        let shown =
            self.shown.entry(conversation.clone()).or_insert(Shown { first: message.seq, last: Seq::ZERO });
        if message.seq <= shown.last {
            return;
        }
        shown.last = message.seq;
        let open = self.chat.conversation();
        if open.as_ref() == Some(conversation) {
            self.last_is_own = message.sender == self.chat.user;
            if !self.last_is_own {
                self.has_read(conversation, message.seq);
            }
        }
        let elsewhere = (open.as_ref() != Some(conversation)).then_some(conversation);
        self.show(elsewhere, message);
    }

    fn show(&mut self, elsewhere: Option<&ConversationId>, message: &Message) {
        self.turn_page(message.time);
        self.screen.show(self.style.message(elsewhere, &self.chat.user, message));
    }

    /// Names the day when it is another one.
    fn turn_page(&mut self, time: Timestamp) {
        let day = text::day(time);
        if day != self.day {
            self.notice(&day);
            self.day = day;
        }
    }
}
