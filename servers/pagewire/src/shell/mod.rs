//! `pagewire shell`: an interactive SQL shell that behaves like `sqlite3`.
//!
//! It never talks to a page server itself: it opens databases through SQLite and the VFS that its
//! environment names.

mod args;
mod commands;
mod completion;
mod dump;
mod exec;
mod import;
mod input;
mod interrupt;
mod open;
mod output;
mod raw;
mod repl;
mod session;
mod settings;

use std::any::Any;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

pub use args::{ShellArgs, with_double_dashes};
use commands::Flow;
use session::Session;
use settings::{Mode, RECORD_SEPARATOR, Stats, UNIT_SEPARATOR};

/// How the shell reaches databases.
pub struct ShellEnvironment {
    /// VFS that names without a `vfs` parameter are opened with.
    pub vfs: String,
    /// `endpoint` parameter of those names; `None` leaves it to the VFS.
    pub endpoint: Option<String>,
    /// Kept until the shell ends, after the last connection is closed: a server that runs in this
    /// process, for instance.
    pub guard: Option<Box<dyn Any>>,
}

/// Runs the shell to its end.
///
/// `prepare` is called once, when the first database that needs it is about to be opened: a shell
/// on `:memory:` or on another VFS starts no store.
pub fn run(
    args: ShellArgs,
    prepare: impl FnOnce(&ShellArgs) -> anyhow::Result<ShellEnvironment> + 'static,
) -> anyhow::Result<ExitCode> {
    if args.version {
        println!("{}", commands::version_line()?);
        return Ok(ExitCode::SUCCESS);
    }
    let interactive =
        args.sql.is_empty() && !args.batch && (args.interactive || std::io::stdin().is_terminal());
    let mut session = Session::new(args, interactive, Box::new(prepare))?;
    let outcome = run_session(&mut session);
    session.finish();
    outcome
}

fn run_session(session: &mut Session) -> anyhow::Result<ExitCode> {
    let args = session.args.clone();
    // As in sqlite3: the initial file first, so that options override it.
    session.switches.bail = args.bail;
    let name = args.name.clone();
    if let Err(message) = session.open(&name, args.readonly) {
        session.complain(&message);
        return Ok(ExitCode::FAILURE);
    }
    if let Some(code) = run_initial_file(session, &args) {
        return Ok(code);
    }
    apply_options(session, &args);
    for command in &args.cmd {
        match run_argument(session, command) {
            Ended::Quit(code) => return Ok(code),
            Ended::Failed(code) if session.switches.bail => return Ok(code),
            Ended::Done | Ended::Failed(_) => {}
        }
    }
    if !args.sql.is_empty() {
        for argument in &args.sql {
            match run_argument(session, argument) {
                Ended::Quit(code) | Ended::Failed(code) => return Ok(code),
                Ended::Done => {}
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let errors = if session.interactive {
        repl::run_terminal(session)?
    } else {
        repl::run_stdin(session)
    };
    Ok(match session.exit_code {
        Some(code) => code,
        None if errors > 0 => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

/// How an argument of the command line ended.
enum Ended {
    Done,
    Failed(ExitCode),
    Quit(ExitCode),
}

fn run_argument(session: &mut Session, argument: &str) -> Ended {
    if argument.starts_with('.') {
        return match commands::run_line(session, argument) {
            Ok(Flow::Continue) => Ended::Done,
            Ok(Flow::Quit) => Ended::Quit(ExitCode::SUCCESS),
            Ok(Flow::Exit(code)) => Ended::Quit(code),
            Err(()) => Ended::Failed(ExitCode::FAILURE),
        };
    }
    let outcome = exec::run_sql(session, argument.as_bytes());
    session.flush();
    match outcome {
        Ok(()) => Ended::Done,
        Err(error) => {
            session.complain(&format!("Error: {}", error.with_phase()));
            // The exit status is SQLite's code, as in sqlite3.
            Ended::Failed(ExitCode::from(u8::try_from(error.code).unwrap_or(1)))
        }
    }
}

/// Reads `-init FILE` or `~/.sqliterc`; a code ends the shell.
fn run_initial_file(session: &mut Session, args: &ShellArgs) -> Option<ExitCode> {
    let default = || std::env::home_dir().map(|home| home.join(".sqliterc"));
    let path: PathBuf = args.init.clone().or_else(default)?;
    match std::fs::File::open(&path) {
        Ok(file) => {
            if session.interactive {
                session.complain(&format!("-- Loading resources from {}", path.display()));
            }
            let errors = repl::run_stream(session, Box::new(std::io::BufReader::new(file)));
            if let Some(code) = session.exit_code {
                return Some(code);
            }
            (errors > 0 && session.switches.bail).then_some(ExitCode::FAILURE)
        }
        Err(_) if args.init.is_some() => {
            session.complain(&format!("cannot open: \"{}\"", path.display()));
            session.switches.bail.then_some(ExitCode::FAILURE)
        }
        Err(_) => None,
    }
}

fn apply_options(session: &mut Session, args: &ShellArgs) {
    let format = &mut session.format;
    let flags = &args.mode;
    let modes = [
        (flags.list, Mode::List),
        (flags.column, Mode::Column),
        (flags.boxed, Mode::Box),
        (flags.table, Mode::Table),
        (flags.markdown, Mode::Markdown),
        (flags.csv, Mode::Csv),
        (flags.json, Mode::Json),
        (flags.line, Mode::Line),
        (flags.html, Mode::Html),
        (flags.quote, Mode::Quote),
        (flags.tabs, Mode::List),
        (flags.ascii, Mode::Ascii),
    ];
    if let Some((_, mode)) = modes.into_iter().find(|(chosen, _)| *chosen) {
        format.mode = mode;
    }
    match format.mode {
        Mode::Csv if flags.csv => ",".clone_into(&mut format.column_separator),
        Mode::Quote if flags.quote => ",".clone_into(&mut format.column_separator),
        Mode::List if flags.tabs => "\t".clone_into(&mut format.column_separator),
        Mode::Ascii if flags.ascii => {
            UNIT_SEPARATOR.clone_into(&mut format.column_separator);
            RECORD_SEPARATOR.clone_into(&mut format.row_separator);
        }
        _ => {}
    }
    if args.header || args.noheader {
        format.headers = args.header;
        format.headers_chosen = true;
    }
    if let Some(separator) = &args.separator {
        format.column_separator = input::unescape(separator.as_bytes());
    }
    if let Some(newline) = &args.newline {
        format.row_separator = input::unescape(newline.as_bytes());
    }
    if let Some(null) = &args.nullvalue {
        format.null.clone_from(null);
    }
    session.switches.echo |= args.echo;
    if args.stats {
        session.switches.stats = Stats::On;
    }
}
