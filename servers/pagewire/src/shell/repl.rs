//! Reads input, from a terminal or a stream, and hands statements and dot-commands on.
//!
//! It knows lines and prompts; what a statement does is in `exec.rs`.

use std::io::{self, BufRead};
use std::path::PathBuf;

use anyhow::Context as _;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use super::commands::{self, Flow};
use super::completion::SqlCompleter;
use super::input::{self, Scanner};
use super::session::Session;
use super::{exec, raw};

/// A line of input.
enum Line {
    Text(Vec<u8>),
    /// Ctrl-C at the prompt: forget what was typed.
    Interrupted,
    End,
}

/// Where lines come from.
trait Lines {
    fn next(&mut self, session: &mut Session, continues: bool) -> Line;
}

struct Stream {
    reader: Box<dyn BufRead>,
    /// Prompts are printed, since `-interactive` asked for them.
    prompts: bool,
}

impl Lines for Stream {
    fn next(&mut self, session: &mut Session, continues: bool) -> Line {
        if self.prompts {
            let switches = &session.switches;
            let prompt = if continues {
                &switches.continuation
            } else {
                &switches.prompt
            };
            print!("{prompt}");
        }
        // A prompt without a newline waits in std's buffer.
        let _ = io::Write::flush(&mut io::stdout());
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => Line::End,
            Ok(_) => {
                if line.last() == Some(&b'\n') {
                    line.pop();
                    if line.last() == Some(&b'\r') {
                        line.pop();
                    }
                }
                Line::Text(line)
            }
        }
    }
}

struct Terminal {
    editor: Editor<SqlCompleter, FileHistory>,
}

impl Lines for Terminal {
    fn next(&mut self, session: &mut Session, continues: bool) -> Line {
        let switches = &session.switches;
        let prompt = if continues {
            &switches.continuation
        } else {
            &switches.prompt
        };
        match self.editor.readline(prompt) {
            Ok(line) => {
                if !line.trim().is_empty() {
                    let _ = self.editor.add_history_entry(&line);
                }
                Line::Text(line.into_bytes())
            }
            // A signal that came while a statement ran is told at the next prompt.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Line::Interrupted,
            Err(_) => Line::End,
        }
    }
}

/// Talks to a person; returns the number of errors.
pub(super) fn run_terminal(session: &mut Session) -> anyhow::Result<usize> {
    print_banner(session)?;
    if !io::IsTerminal::is_terminal(&io::stdin()) {
        session.interrupts.listen()?;
        let mut lines = Stream {
            reader: Box::new(io::stdin().lock()),
            prompts: true,
        };
        return Ok(process(session, &mut lines, true));
    }
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .max_history_size(2000)
        .context("cannot set up line editing")?
        .build();
    let mut editor = Editor::with_config(config).context("cannot set up line editing")?;
    session.interrupts.listen()?;
    editor.set_helper(Some(SqlCompleter::new(session.slot.clone())));
    let history = history_file(session);
    if let Some(history) = &history {
        // Missing at the first run.
        let _ = editor.load_history(history);
    }
    let mut terminal = Terminal { editor };
    let errors = process(session, &mut terminal, true);
    if let Some(history) = &history
        && let Err(error) = terminal.editor.save_history(history)
    {
        session.complain(&format!(
            "cannot save the history to {}: {error}",
            history.display()
        ));
    }
    Ok(errors)
}

fn print_banner(session: &mut Session) -> anyhow::Result<()> {
    let version = commands::version_line()?;
    println!("Pagewire {}, {version}", env!("CARGO_PKG_VERSION"));
    println!("Enter \".help\" for usage hints.");
    if session.args.is_transient() {
        println!("Connected to a transient in-memory database.");
        println!("Use \".open NAME\" to reopen on a persistent database.");
    }
    Ok(())
}

fn history_file(session: &Session) -> Option<PathBuf> {
    let default = || std::env::home_dir().map(|home| home.join(".pagewire_history"));
    session.args.history.clone().or_else(default)
}

/// Runs standard input as a script; returns the number of errors.
pub(super) fn run_stdin(session: &mut Session) -> usize {
    run_stream(session, Box::new(io::stdin().lock()))
}

/// Runs a script; returns the number of errors.
pub(super) fn run_stream(session: &mut Session, reader: Box<dyn BufRead>) -> usize {
    process(
        session,
        &mut Stream {
            reader,
            prompts: false,
        },
        false,
    )
}

/// What has been typed of a statement.
#[derive(Default)]
struct Pending {
    sql: Vec<u8>,
    scanner: Scanner,
    first_line: usize,
}

fn process(session: &mut Session, lines: &mut dyn Lines, person: bool) -> usize {
    let (mut errors, mut number) = (0, 0);
    let mut pending = Pending::default();
    while errors == 0 || !session.switches.bail || person {
        session.flush();
        let mut line = match lines.next(session, !pending.sql.is_empty()) {
            Line::Text(line) => line,
            Line::Interrupted => {
                pending = Pending::default();
                continue;
            }
            Line::End => {
                if person {
                    println!();
                }
                break;
            }
        };
        if session.interrupts.take() && !person {
            break;
        }
        number += 1;
        if pending.scanner.is_plain()
            && input::is_terminator_line(&line)
            && input::is_complete_with_semicolon(&pending.sql)
        {
            line = b";".to_vec();
        }
        pending.scanner.feed(&line);
        if pending.sql.is_empty() {
            if pending.scanner.is_blank() {
                echo(session, &line);
                pending = Pending::default();
                continue;
            }
            if matches!(line.first(), Some(b'.' | b'#')) {
                echo(session, &line);
                pending = Pending::default();
                if line[0] == b'.' {
                    match commands::run_line(session, &String::from_utf8_lossy(&line)) {
                        Ok(Flow::Continue) => {}
                        Ok(Flow::Quit) => break,
                        Ok(Flow::Exit(code)) => session.exit_code = Some(code),
                        Err(()) => errors += 1,
                    }
                    if session.exit_code.is_some() {
                        break;
                    }
                }
                continue;
            }
            pending.first_line = number;
            pending.sql.extend_from_slice(input::trim_start(&line));
        } else {
            pending.sql.push(b'\n');
            pending.sql.extend_from_slice(&line);
        }
        if pending.scanner.ends_with_semicolon() && raw::is_complete(&pending.sql) {
            errors += run_pending(session, &pending, person);
            pending = Pending::default();
            if session.out.once {
                session.out.reset();
            }
        }
    }
    // It may be incomplete: SQLite says so.
    if !pending.sql.is_empty() && session.exit_code.is_none() {
        errors += run_pending(session, &pending, person);
    }
    session.flush();
    errors
}

fn echo(session: &mut Session, text: &[u8]) {
    if session.switches.echo {
        session.print_bytes(text);
        session.print_bytes(b"\n");
        session.flush();
    }
}

/// Runs one statement of the input and reports its error; returns the number of errors.
fn run_pending(session: &mut Session, pending: &Pending, person: bool) -> usize {
    echo(session, &pending.sql);
    let started = std::time::Instant::now();
    let processor = raw::processor_seconds();
    let outcome = exec::run_sql(session, &pending.sql);
    if session.switches.timer {
        let (user, system) = raw::processor_seconds();
        session.print(&format!(
            "Run Time: real {:.3} user {:.6} sys {:.6}",
            started.elapsed().as_secs_f64(),
            user - processor.0,
            system - processor.1
        ));
    }
    match outcome {
        Err(error) => {
            let place = if person {
                String::new()
            } else {
                format!(" near line {}", pending.first_line)
            };
            session.complain(&format!("{}{place}: {}", error.kind(), error.message));
            1
        }
        Ok(()) => {
            if session.switches.changes
                && let Ok(connection) = session.db()
            {
                session.print(&format!(
                    "changes: {}   total_changes: {}",
                    connection.changes(),
                    connection.total_changes()
                ));
            }
            0
        }
    }
}
