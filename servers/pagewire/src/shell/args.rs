//! The command line of `pagewire shell`: the options of `sqlite3`, with one dash or two.
//!
//! It only reads; what the options mean is in `mod.rs`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// Options that take the next word as their value.
const WITH_VALUE: &[&str] = &[
    "cmd",
    "init",
    "separator",
    "nullvalue",
    "newline",
    "endpoint",
    "store",
    "vfs",
    "history",
];
/// Options without a value.
const FLAGS: &[&str] = &[
    "bail",
    "echo",
    "batch",
    "interactive",
    "header",
    "noheader",
    "column",
    "box",
    "table",
    "markdown",
    "csv",
    "json",
    "line",
    "list",
    "html",
    "quote",
    "tabs",
    "ascii",
    "readonly",
    "stats",
    "version",
    "help",
];

/// `pagewire shell [OPTIONS] [NAME] [SQL...]`
#[derive(Debug, Clone, Args)]
pub struct ShellArgs {
    /// Database to open: a name, or a `file:` URI
    #[arg(default_value = ":memory:")]
    pub name: String,
    /// SQL statements and dot-commands to run; the shell exits after them
    pub sql: Vec<String>,
    /// Run COMMAND before reading the input (may be repeated)
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    /// Read this file at the start instead of ~/.sqliterc
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Stop after the first error
    #[arg(long)]
    pub bail: bool,
    /// Print statements before running them
    #[arg(long)]
    pub echo: bool,
    /// Treat the input as a script, even on a terminal
    #[arg(long)]
    pub batch: bool,
    /// Treat the input as a terminal, even if it is not
    #[arg(long)]
    pub interactive: bool,
    /// Print column names
    #[arg(long, overrides_with = "noheader")]
    pub header: bool,
    /// Do not print column names
    #[arg(long, overrides_with = "header")]
    pub noheader: bool,
    /// Mode flags; the last one wins.
    #[command(flatten)]
    pub mode: ModeFlags,
    /// Column separator
    #[arg(long, value_name = "SEP", allow_hyphen_values = true)]
    pub separator: Option<String>,
    /// Text for NULL
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub nullvalue: Option<String>,
    /// Row separator
    #[arg(long, value_name = "SEP", allow_hyphen_values = true)]
    pub newline: Option<String>,
    /// Open the database read-only
    #[arg(long)]
    pub readonly: bool,
    /// Print memory and statement statistics after each statement
    #[arg(long)]
    pub stats: bool,
    /// Print the version of SQLite and exit
    #[arg(long)]
    pub version: bool,
    /// Page server to use; without one the shell runs a local store in its own process
    #[arg(long, value_name = "URL", env = "PAGEWIRE_ENDPOINT")]
    pub endpoint: Option<String>,
    /// Directory of the local store that the shell runs itself
    #[arg(long, value_name = "DIR", default_value = "./pagewire-data")]
    pub store: PathBuf,
    /// VFS to open databases with instead of pagewire
    #[arg(long, value_name = "NAME", hide = true)]
    pub vfs: Option<String>,
    /// File that keeps the lines typed at the prompt (~/.pagewire_history unless set)
    #[arg(long, value_name = "FILE", env = "PAGEWIRE_HISTORY", hide = true)]
    pub history: Option<PathBuf>,
}

/// One flag a mode.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = true)]
pub struct ModeFlags {
    #[arg(long, overrides_with_all = MODES)]
    pub list: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub column: bool,
    #[arg(long = "box", overrides_with_all = MODES)]
    pub boxed: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub table: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub markdown: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub csv: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub json: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub line: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub html: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub quote: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub tabs: bool,
    #[arg(long, overrides_with_all = MODES)]
    pub ascii: bool,
}

const MODES: [&str; 12] = [
    "list", "column", "boxed", "table", "markdown", "csv", "json", "line", "html", "quote", "tabs",
    "ascii",
];

impl ShellArgs {
    /// Whether a database was named or NAME has its default.
    pub(super) fn is_transient(&self) -> bool {
        self.name == ":memory:" || self.name.is_empty()
    }
}

/// Rewrites `-header` to `--header` after the word `shell`, so that the options of `sqlite3` work
/// as people type them. Call it on the arguments of the process before clap sees them.
pub fn with_double_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let (mut in_shell, mut is_value, mut seen) = (false, false, 0);
    arguments
        .into_iter()
        .map(|argument| {
            seen += 1;
            if seen == 1 || is_value {
                is_value = false;
                return argument;
            }
            let Some(text) = argument.to_str() else {
                return argument;
            };
            if !in_shell {
                in_shell = text == "shell";
                return argument;
            }
            let word = text
                .strip_prefix("--")
                .or_else(|| text.strip_prefix('-'))
                .unwrap_or("");
            let name = word.split('=').next().unwrap_or("");
            // sqlite3 has both spellings of these two.
            let (name, word) = match name {
                "headers" => ("header", "header"),
                "noheaders" => ("noheader", "noheader"),
                _ => (name, word),
            };
            is_value = WITH_VALUE.contains(&name) && !word.contains('=');
            if WITH_VALUE.contains(&name) || FLAGS.contains(&name) {
                OsString::from(format!("--{word}"))
            } else {
                argument
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(words: &[&str]) -> Vec<String> {
        with_double_dashes(words.iter().map(OsString::from))
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn single_dash_options_become_double_only_after_shell() {
        assert_eq!(
            rewritten(&["pagewire", "-header", "shell", "-header", "x.db", "-box"]),
            ["pagewire", "-header", "shell", "--header", "x.db", "--box"]
        );
    }

    #[test]
    fn the_value_of_an_option_is_left_alone() {
        assert_eq!(
            rewritten(&[
                "pagewire",
                "shell",
                "-separator",
                "-header",
                "--cmd",
                "-csv",
                "-csv"
            ]),
            [
                "pagewire",
                "shell",
                "--separator",
                "-header",
                "--cmd",
                "-csv",
                "--csv"
            ]
        );
    }
}
