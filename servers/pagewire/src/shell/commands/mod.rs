//! The dot-commands: their table, how a line finds its command, `.help`.
//!
//! A command returns the text of its complaint; only this file prints it.

mod files;
pub(super) mod functions;
mod modes;
mod parameters;
mod schema;
mod switches;
mod table;

use std::process::ExitCode;

use rusqlite::Connection;

use super::input;
use super::session::Session;
use table::COMMANDS;

/// What the shell does after a command.
#[derive(Debug, Clone, Copy)]
pub(super) enum Flow {
    Continue,
    /// Ends this input.
    Quit,
    /// Ends the shell.
    Exit(ExitCode),
}

/// The outcome of a command; the error is what to print.
type Outcome = Result<Flow, String>;

/// A dot-command.
struct Command {
    name: &'static str,
    /// The shortest abbreviation that is accepted.
    shortest: usize,
    usage: &'static str,
    about: &'static str,
    /// More lines for `.help NAME`.
    details: &'static str,
    run: fn(&mut Session, &[String]) -> Outcome,
}

impl Command {
    fn title(&self) -> String {
        format!(".{:<23} {}", self.usage, self.about)
    }

    fn help(&self) -> String {
        let mut text = self.title();
        text.push('\n');
        text.push_str(self.details);
        text
    }
}

/// The names of all commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|command| command.name)
}

/// The version of the SQLite in this program.
pub(super) fn version_line() -> anyhow::Result<String> {
    let connection = Connection::open_in_memory()?;
    let source: String = connection.query_row("SELECT sqlite_source_id()", [], |row| row.get(0))?;
    Ok(format!("SQLite {} {source}", rusqlite::version()))
}

/// Runs a line that begins with a dot; the error was printed.
pub(super) fn run_line(session: &mut Session, line: &str) -> Result<Flow, ()> {
    let words = input::words(line.get(1..).unwrap_or_default());
    let Some((name, arguments)) = words.split_first() else {
        return Ok(Flow::Continue);
    };
    let once = session.out.once;
    let outcome = match find(name) {
        Some(command) => (command.run)(session, arguments),
        None => Err(format!(
            "Error: unknown command or invalid arguments:  \"{name}\". Enter \".help\" for help"
        )),
    };
    // `.once` is for the command after it.
    if once && session.out.once {
        session.out.reset();
    }
    session.flush();
    outcome.map_err(|message| {
        if !message.is_empty() {
            session.complain(&message);
        }
    })
}

fn find(word: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .find(|command| command.name == word)
        .or_else(|| {
            COMMANDS
                .iter()
                .find(|command| command.name.starts_with(word) && word.len() >= command.shortest)
        })
}

fn help(session: &mut Session, arguments: &[String]) -> Outcome {
    let listed = || COMMANDS.iter().filter(|command| !command.about.is_empty());
    match arguments.first().map(String::as_str) {
        None => {
            for command in listed() {
                session.print(&command.title());
            }
        }
        Some("-all" | "-a" | "--all" | "all") => {
            for command in listed() {
                session.print_bytes(command.help().as_bytes());
            }
        }
        Some(pattern) => help_about(session, pattern),
    }
    Ok(Flow::Continue)
}

fn help_about(session: &mut Session, pattern: &str) {
    let word = pattern.trim_start_matches('.');
    let listed = || COMMANDS.iter().filter(|command| !command.about.is_empty());
    let mut matching: Vec<&Command> = listed()
        .filter(|command| command.name.starts_with(word))
        .collect();
    if let [command] = matching[..] {
        session.print_bytes(command.help().as_bytes());
        return;
    }
    if matching.is_empty() {
        let lower = pattern.to_lowercase();
        matching = listed()
            .filter(|command| command.help().to_lowercase().contains(&lower))
            .collect();
    }
    if matching.is_empty() {
        session.print(&format!("Nothing matches '{pattern}'"));
    }
    for command in matching {
        session.print(&command.title());
    }
}

/// The usage text as an error.
fn usage(text: &str) -> Outcome {
    Err(format!("Usage: {text}"))
}

/// On, off or a number; anything else is off, with a warning.
fn switch(session: &mut Session, word: &str) -> bool {
    if let Ok(number) = word.parse::<i64>() {
        return number != 0;
    }
    match word.to_ascii_lowercase().as_str() {
        "on" | "yes" => true,
        "off" | "no" => false,
        _ => {
            session.complain(&format!(
                "ERROR: Not a boolean value: \"{word}\". Assuming \"no\"."
            ));
            false
        }
    }
}

/// The text of an error of rusqlite, as the shell prints it.
fn sql_error(error: &rusqlite::Error) -> String {
    format!("Error: {}", super::session::reason(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abbreviations_find_their_command() {
        for (word, name) in [
            ("tables", "tables"),
            ("ta", "tables"),
            ("q", "quit"),
            ("head", "headers"),
            ("sc", "schema"),
            ("h", "headers"),
            ("dump", "dump"),
        ] {
            assert_eq!(find(word).map(|command| command.name), Some(name), "{word}");
        }
        assert!(find("nosuch").is_none());
        assert!(find("ba").is_none());
    }

    #[test]
    fn every_command_is_found_by_its_own_name() {
        for command in COMMANDS {
            assert_eq!(
                find(command.name).map(|found| found.usage),
                Some(command.usage)
            );
        }
    }
}
