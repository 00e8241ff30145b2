//! What a person types: something to say, or a command.

use convoke_protocol::id::{GroupId, UserId};
use convoke_protocol::request::messages::Target;

use super::command::Command;

/// What `/help` says.
pub(super) const HELP: &str = "\
/to USER       talk with somebody (yourself for notes)
/group ID      talk in a group
/history [N]   the N messages before the oldest one shown
/list          your conversations, the newest first
/read          mark everything as read
/sessions      where you are logged in
/quit          leave (so does Ctrl-D)
//text         says /text";

const DEFAULT_HISTORY: u32 = 30;

/// One line of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Nothing,
    Say(String),
    Open(Target),
    History(u32),
    Sessions,
    List,
    Read,
    Command(Command),
    Help,
    Quit,
    Wrong(String),
}

impl Input {
    pub(super) fn parse(line: &str) -> Self {
        let Some(command) = line.strip_prefix('/') else {
            return if line.trim().is_empty() { Self::Nothing } else { Self::Say(line.to_owned()) };
        };
        if command.starts_with('/') {
            return Self::Say(command.to_owned());
        }
        let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
        let argument = argument.trim();
        let wrong = |error: &dyn std::fmt::Display| Self::Wrong(format!("{error}; /help lists the commands"));
        match name {
            "to" => UserId::new(argument)
                .map_or_else(|error| wrong(&error), |user| Self::Open(Target::User(user))),
            "group" => GroupId::new(argument)
                .map_or_else(|error| wrong(&error), |group| Self::Open(Target::Group(group))),
            "history" if argument.is_empty() => Self::History(DEFAULT_HISTORY),
            "history" => argument
                .parse()
                .ok()
                .filter(|n| *n > 0)
                .map_or_else(|| wrong(&format_args!("{argument:?} is no number of messages")), Self::History),
            "sessions" => Self::Sessions,
            "list" => Self::List,
            "read" => Self::Read,
            "help" => Self::Help,
            "quit" | "q" => Self::Quit,
            _ => match Command::parse(name, argument) {
                Ok(Some(command)) => Self::Command(command),
                Ok(None) => wrong(&format_args!("there is no /{name}")),
                Err(why) => wrong(&why),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_commands() {
        let bob = UserId::new("bob").expect("valid");
        let team = GroupId::new("team").expect("valid");
        for (line, input) in [
            ("", Input::Nothing),
            ("  ", Input::Nothing),
            ("hello", Input::Say("hello".into())),
            ("//quit", Input::Say("/quit".into())),
            ("/to bob", Input::Open(Target::User(bob))),
            ("/group  team ", Input::Open(Target::Group(team))),
            ("/history", Input::History(DEFAULT_HISTORY)),
            ("/history 5", Input::History(5)),
            ("/sessions", Input::Sessions),
            ("/list", Input::List),
            ("/read", Input::Read),
            ("/help", Input::Help),
            ("/quit", Input::Quit),
            ("/leave", Input::Command(Command::Leave)),
        ] {
            assert_eq!(Input::parse(line), input, "{line:?}");
        }
        for line in ["/to", "/to a b", "/group a:b", "/history 0", "/history x", "/dance", "/edit 7"] {
            assert!(matches!(Input::parse(line), Input::Wrong(_)), "{line:?}");
        }
    }
}
