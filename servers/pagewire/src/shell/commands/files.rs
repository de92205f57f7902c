//! Commands that read or write files, databases and other programs.

use std::io::BufReader;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command as Process, Stdio};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::{Flow, Outcome, Session, sql_error, table::COMMANDS, usage};
use crate::shell::dump::{self, DumpOptions};
use crate::shell::session::connect_uri;
use crate::shell::settings::Mode;
use crate::shell::{exec, open as names, repl};

/// How deep `.read` may go: a file that reads itself ends here.
const DEEPEST_READ: usize = 25;
/// Pages a backup step copies between two looks at Ctrl-C.
const BACKUP_PAGES: i32 = 100;

fn option(word: &str) -> Option<&str> {
    word.strip_prefix("--").or_else(|| word.strip_prefix('-'))
}

pub(super) fn open(session: &mut Session, arguments: &[String]) -> Outcome {
    let (mut readonly, mut name) = (false, None);
    for word in arguments {
        match option(word) {
            Some("readonly") => readonly = true,
            Some(_) => return Err(format!("unknown option: {word}")),
            None if name.is_none() => name = Some(word.as_str()),
            None => return Err(format!("extra argument: \"{word}\"")),
        }
    }
    session
        .open(name.unwrap_or(":memory:"), readonly)
        .map(|()| Flow::Continue)
}

/// The database and the file of `.backup ?DB? FILE`.
fn database_and_file<'a>(
    arguments: &'a [String],
    command: &str,
) -> Result<(&'a str, &'a str), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(word) = words.iter().find(|word| word.starts_with('-')) {
        return Err(format!("unknown option: {word}"));
    }
    match words[..] {
        [file] => Ok(("main", file)),
        [database, file] => Ok((database, file)),
        [] => Err(format!("missing FILENAME argument on .{command}")),
        _ => Err(format!("Usage: .{command} ?DB? ?OPTIONS? FILENAME")),
    }
}

pub(super) fn backup(session: &mut Session, arguments: &[String]) -> Outcome {
    let (database, file) = database_and_file(arguments, "backup")?;
    let connection = session.db()?;
    let mut target = connect_uri(&names::local_uri(file), false)
        .map_err(|_| format!("Error: cannot open \"{file}\""))?;
    copy(session, &connection, database, &mut target, "main")?;
    target.close().map_err(|(_, error)| sql_error(&error))?;
    Ok(Flow::Continue)
}

pub(super) fn restore(session: &mut Session, arguments: &[String]) -> Outcome {
    let (database, file) = match arguments {
        [] => return usage(".restore ?DB? FILE"),
        _ => database_and_file(arguments, "restore")?,
    };
    let source = connect_uri(&names::local_uri(file), true)
        .map_err(|_| format!("Error: cannot open \"{file}\""))?;
    let mut connection = session.take()?;
    let outcome = copy(session, &source, "main", &mut connection, database);
    session.put(connection);
    outcome.map(|()| Flow::Continue)
}

fn copy(
    session: &Session,
    source: &Connection,
    from: &str,
    target: &mut Connection,
    to: &str,
) -> Result<(), String> {
    let backup =
        Backup::new_with_names(source, from, target, to).map_err(|error| sql_error(&error))?;
    loop {
        if session.interrupts.is_set() {
            return Err("Error: interrupted".to_owned());
        }
        match backup
            .step(BACKUP_PAGES)
            .map_err(|error| sql_error(&error))?
        {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => return Err("Error: source database is busy".to_owned()),
        }
    }
}

pub(super) fn clone(session: &mut Session, arguments: &[String]) -> Outcome {
    let [name] = arguments else {
        return usage(".clone FILENAME");
    };
    let source = session.db()?;
    let sql = dump::to_sql(&source).map_err(|error| sql_error(&error))?;
    let target = session.connect(name, false)?;
    let tables: i64 = target
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| sql_error(&error))?;
    if tables > 0 {
        return Err(format!("File \"{name}\" already exists."));
    }
    exec::run_quietly(&target, &sql).map_err(|failure| format!("Error: {}", failure.message))?;
    target.close().map_err(|(_, error)| sql_error(&error))?;
    Ok(Flow::Continue)
}

pub(super) fn dump(session: &mut Session, arguments: &[String]) -> Outcome {
    let mut options = DumpOptions::default();
    for word in arguments {
        match option(word) {
            Some("preserve-rowids") => options.preserve_rowids = true,
            Some("newlines") => options.raw_newlines = true,
            Some("data-only") => options.data_only = true,
            Some("nosys") => options.no_system = true,
            Some(_) => return Err(format!("Unknown option \"{word}\" on \".dump\"")),
            None => options.patterns.push(word.clone()),
        }
    }
    let connection = session.db()?;
    let failures =
        dump::dump(&connection, &options, &mut session.out).map_err(|error| sql_error(&error))?;
    if failures > 0 {
        return Err(format!(
            "Error: {failures} tables could not be read to their end"
        ));
    }
    Ok(Flow::Continue)
}

pub(super) fn import(session: &mut Session, arguments: &[String]) -> Outcome {
    // sqlite3 changes the output to bare line feeds as well.
    let format = &mut session.format;
    if format.mode == Mode::Csv && format.row_separator == "\r\n" {
        "\n".clone_into(&mut format.row_separator);
    }
    let help = COMMANDS
        .iter()
        .find(|command| command.name == "import")
        .map(super::Command::help);
    match crate::shell::import::import(session, arguments, &help.unwrap_or_default()) {
        Ok(()) => Ok(Flow::Continue),
        // Mistakes in the command go to the output, as in sqlite3.
        Err(message) if message.starts_with("ERROR:") => {
            session.print(&message);
            Err(String::new())
        }
        Err(message) => Err(message),
    }
}

pub(super) fn output(session: &mut Session, arguments: &[String]) -> Outcome {
    session.out.reset();
    match arguments {
        [] => Ok(Flow::Continue),
        [word] if option(word).is_some() => Err(format!("ERROR: unknown option: \"{word}\".")),
        _ => session
            .out
            .redirect(&pipe_or_file(arguments))
            .map(|()| Flow::Continue),
    }
}

pub(super) fn once(session: &mut Session, arguments: &[String]) -> Outcome {
    output(session, arguments)?;
    session.out.once = !arguments.is_empty();
    Ok(Flow::Continue)
}

/// A command after `|` may have several words.
fn pipe_or_file(arguments: &[String]) -> String {
    match arguments.first() {
        Some(first) if first.starts_with('|') => arguments.join(" "),
        Some(first) => first.clone(),
        None => "stdout".to_owned(),
    }
}

pub(super) fn read(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        return usage(".read FILE");
    }
    let name = pipe_or_file(arguments);
    if session.depth >= DEEPEST_READ {
        return Err(format!(
            "Input nesting limit ({DEEPEST_READ}) reached. Check recursion."
        ));
    }
    let failed = |_| format!("Error: cannot open \"{name}\"");
    let mut child = None;
    let reader: Box<dyn std::io::BufRead> = match name.strip_prefix('|') {
        Some(command) => {
            let mut started = Process::new("sh")
                .args(["-c", command])
                .stdout(Stdio::piped())
                .spawn()
                .map_err(failed)?;
            let output = started
                .stdout
                .take()
                .ok_or_else(|| format!("Error: cannot open \"{name}\""))?;
            child = Some(started);
            Box::new(BufReader::new(output))
        }
        None => Box::new(BufReader::new(std::fs::File::open(&name).map_err(failed)?)),
    };
    session.depth += 1;
    let errors = repl::run_stream(session, reader);
    session.depth -= 1;
    if let Some(mut child) = child {
        let _ = child.wait();
    }
    match (session.exit_code, errors) {
        (Some(code), _) => Ok(Flow::Exit(code)),
        (None, 0) => Ok(Flow::Continue),
        // Each error was printed where it happened.
        (None, _) => Err(String::new()),
    }
}

pub(super) fn change_directory(_: &mut Session, arguments: &[String]) -> Outcome {
    let [directory] = arguments else {
        return usage(".cd DIRECTORY");
    };
    std::env::set_current_dir(directory)
        .map(|()| Flow::Continue)
        .map_err(|_| format!("Cannot change to directory \"{directory}\""))
}

pub(super) fn shell(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        return usage(".system COMMAND");
    }
    let quoted: Vec<String> = arguments
        .iter()
        .map(|word| {
            if word.contains(' ') {
                format!("\"{word}\"")
            } else {
                word.clone()
            }
        })
        .collect();
    session.flush();
    let status = Process::new("sh")
        .args(["-c", &quoted.join(" ")])
        .status()
        .map_err(|error| format!("Error: cannot start sh: {error}"))?;
    // The whole wait status, as sqlite3 prints it.
    if !status.success() {
        session.complain(&format!("System command returns {}", status.into_raw()));
    }
    Ok(Flow::Continue)
}

pub(super) fn load(session: &mut Session, arguments: &[String]) -> Outcome {
    let (file, entry) = match arguments {
        [file] => (file, None),
        [file, entry] => (file, Some(entry.as_str())),
        _ => return usage(".load FILE ?ENTRYPOINT?"),
    };
    let connection = session.db()?;
    crate::shell::raw::load_extension(&connection, file, entry)
        .map(|()| Flow::Continue)
        .map_err(|message| format!("Error: {message}"))
}
