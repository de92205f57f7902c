//! Where output goes: standard output, a file or a command.
//!
//! A failed write is remembered, not raised: `.output | head` ends quietly, as in `sqlite3`.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::RowSink;

enum Target {
    Stdout(BufWriter<Stdout>),
    File(BufWriter<File>),
    Pipe {
        child: Child,
        input: Option<BufWriter<ChildStdin>>,
    },
}

/// The current output of the shell.
pub(in crate::shell) struct Sink {
    target: Target,
    name: String,
    /// The sink goes back to standard output after the next command.
    pub once: bool,
    broken: bool,
}

impl Sink {
    /// Standard output.
    pub(in crate::shell) fn stdout() -> Self {
        Self {
            target: Target::Stdout(BufWriter::new(io::stdout())),
            name: "stdout".to_owned(),
            once: false,
            broken: false,
        }
    }

    /// What `.show` prints.
    pub(in crate::shell) fn name(&self) -> &str {
        &self.name
    }

    /// Sends output to `name`: a file, `|command`, `off` or `stdout`. The error is the text to print.
    pub(in crate::shell) fn redirect(&mut self, name: &str) -> Result<(), String> {
        self.reset();
        let target = if name == "stdout" {
            return Ok(());
        } else if let Some(command) = name.strip_prefix('|') {
            let mut child = Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::piped())
                .spawn()
                .map_err(|_| format!("Error: cannot open pipe \"{command}\""))?;
            let input = child.stdin.take().map(BufWriter::new);
            Target::Pipe { child, input }
        } else {
            let path = if name == "off" { "/dev/null" } else { name };
            let file = File::create(path).map_err(|_| {
                format!("Error: cannot open \"{name}\"\nError: cannot write to \"{name}\"")
            })?;
            Target::File(BufWriter::new(file))
        };
        self.target = target;
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Back to standard output; waits for a command that was being fed.
    pub(in crate::shell) fn reset(&mut self) {
        let _ = self.flush();
        if let Target::Pipe { child, input } = &mut self.target {
            // Closing its input lets the command end.
            drop(input.take());
            let _ = child.wait();
        }
        if !matches!(self.target, Target::Stdout(_)) {
            *self = Self::stdout();
        }
        self.once = false;
    }

    fn writer(&mut self) -> Option<&mut dyn Write> {
        match &mut self.target {
            Target::Stdout(stdout) => Some(stdout),
            Target::File(file) => Some(file),
            Target::Pipe { input, .. } => input.as_mut().map(|input| input as &mut dyn Write),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.broken {
            let outcome = self
                .writer()
                .map_or(Ok(()), |writer| writer.write_all(bytes));
            self.broken = outcome.is_err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.broken {
            let outcome = self.writer().map_or(Ok(()), Write::flush);
            self.broken = outcome.is_err();
        }
        Ok(())
    }
}

impl RowSink for Sink {
    fn is_broken(&self) -> bool {
        self.broken
    }
}
