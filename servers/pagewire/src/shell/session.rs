//! The state of one run of the shell: the open database, settings and output.
//!
//! It opens and closes databases; it runs no SQL of the user.

use std::cell::RefCell;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::interrupt::Interrupts;
use super::output::sink::Sink;
use super::settings::{Format, Switches};
use super::{ShellArgs, ShellEnvironment, open, raw};

/// The open database, shared with the completion of the line editor.
pub(super) type Slot = Rc<RefCell<Option<Rc<Connection>>>>;

/// Makes the environment when it is first needed.
pub(super) type Prepare = Box<dyn FnOnce(&ShellArgs) -> anyhow::Result<ShellEnvironment>>;

/// One run of the shell.
pub(super) struct Session {
    pub args: ShellArgs,
    pub format: Format,
    pub switches: Switches,
    pub out: Sink,
    pub interrupts: Arc<Interrupts>,
    /// A person types: prompts are shown and errors name no lines.
    pub interactive: bool,
    /// Set by `.exit CODE`: everything ends.
    pub exit_code: Option<ExitCode>,
    /// How many `.read` are inside each other.
    pub depth: usize,
    pub slot: Slot,
    name: String,
    prepare: Option<Prepare>,
    environment: Option<ShellEnvironment>,
}

impl Session {
    /// A session with nothing open.
    pub(super) fn new(
        args: ShellArgs,
        interactive: bool,
        prepare: Prepare,
    ) -> anyhow::Result<Self> {
        let environment = args.vfs.clone().map(|vfs| ShellEnvironment {
            vfs,
            endpoint: args.endpoint.clone(),
            guard: None,
        });
        let interrupts = Arc::new(Interrupts::default());
        if !interactive {
            interrupts.listen()?;
        }
        Ok(Self {
            args,
            format: Format::default(),
            switches: Switches::default(),
            out: Sink::stdout(),
            interrupts,
            interactive,
            exit_code: None,
            depth: 0,
            slot: Slot::default(),
            name: ":memory:".to_owned(),
            prepare: Some(prepare),
            environment,
        })
    }

    /// The open database, or the error text.
    pub(super) fn db(&self) -> Result<Rc<Connection>, String> {
        let open = self.slot.borrow().clone();
        open.ok_or_else(|| "Error: no database is open: use \".open NAME\"".to_owned())
    }

    /// The name that the open database was asked for by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Closes the open database and opens NAME. On failure none is open: statements that were
    /// meant for it must not reach another.
    pub(super) fn open(&mut self, name: &str, readonly: bool) -> Result<(), String> {
        self.close();
        name.clone_into(&mut self.name);
        let connection = self.connect(name, readonly)?;
        self.interrupts
            .watch(Some(connection.get_interrupt_handle()));
        *self.slot.borrow_mut() = Some(Rc::new(connection));
        Ok(())
    }

    /// Closes the open database.
    pub(super) fn close(&mut self) {
        self.interrupts.watch(None);
        self.slot.borrow_mut().take();
    }

    /// Ends the session: output, then the database, then what served it.
    pub(super) fn finish(mut self) {
        self.out.reset();
        self.close();
        if let Some(ShellEnvironment { guard, .. }) = self.environment {
            drop(guard);
        }
    }

    /// Gives the open database away; [`Session::put`] brings it back.
    pub(super) fn take(&mut self) -> Result<Connection, String> {
        let open = self.slot.borrow_mut().take();
        let open =
            open.ok_or_else(|| "Error: no database is open: use \".open NAME\"".to_owned())?;
        Rc::try_unwrap(open).map_err(|shared| {
            *self.slot.borrow_mut() = Some(shared);
            "Error: the database is in use".to_owned()
        })
    }

    /// See [`Session::take`].
    pub(super) fn put(&mut self, connection: Connection) {
        *self.slot.borrow_mut() = Some(Rc::new(connection));
    }

    /// A new connection to NAME with the settings of a shell.
    pub(super) fn connect(&mut self, name: &str, readonly: bool) -> Result<Connection, String> {
        let complaint =
            |reason: &str| format!("Error: unable to open database \"{name}\": {reason}");
        // Only what needs the environment starts it.
        let own_vfs = open::vfs_of(name).is_some_and(|vfs| vfs != "pagewire");
        let uri = if open::is_transient(name) {
            name.to_owned()
        } else if own_vfs && self.environment.is_none() {
            open::local_uri(name)
        } else {
            let environment = self
                .environment()
                .map_err(|error| complaint(&format!("{error:#}")))?;
            open::uri(name, environment)
        };
        connect_uri(&uri, readonly).map_err(|error| complaint(&reason(&error)))
    }

    /// The environment, made now if it is needed for the first time.
    pub(super) fn environment(&mut self) -> anyhow::Result<&ShellEnvironment> {
        if self.environment.is_none() {
            let Some(prepare) = self.prepare.take() else {
                anyhow::bail!("the page server could not be prepared before");
            };
            self.environment = Some(prepare(&self.args)?);
        }
        self.environment
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("no environment"))
    }

    /// Prints to standard error, after what was printed before.
    pub(super) fn complain(&mut self, message: &str) {
        self.flush();
        eprintln!("{message}");
    }

    /// Writes a line to the output.
    pub(super) fn print(&mut self, line: &str) {
        self.print_bytes(line.as_bytes());
        self.print_bytes(b"\n");
    }

    /// Writes bytes to the output.
    pub(super) fn print_bytes(&mut self, bytes: &[u8]) {
        super::output::write(&mut self.out, bytes);
    }

    /// Hands what was printed to the reader.
    pub(super) fn flush(&mut self) {
        let _ = self.out.flush();
    }
}

/// Opens a URI and gives the connection the defaults of the `sqlite3` shell.
pub(super) fn connect_uri(uri: &str, readonly: bool) -> rusqlite::Result<Connection> {
    let access = if readonly {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    };
    let connection = Connection::open_with_flags(uri, access | OpenFlags::SQLITE_OPEN_URI)?;
    // rusqlite's SQLite is built with foreign keys on; a shell has them off until asked.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    connection.busy_timeout(std::time::Duration::ZERO)?;
    raw::print_reals_with_15_digits(&connection);
    rusqlite::vtab::series::load_module(&connection)?;
    super::commands::functions::register(&connection)?;
    Ok(connection)
}

/// SQLite's own words of an error.
pub(super) fn reason(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => {
            // rusqlite adds the path to this message; the shell names it itself.
            message
                .split(": file:")
                .next()
                .unwrap_or(message)
                .to_owned()
        }
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}
