//! What the dot-commands and options set: output mode, separators, switches.
//!
//! Plain values; nothing here prints or opens.

/// Unit and record separators of ASCII.
pub(super) const UNIT_SEPARATOR: &str = "\x1f";
/// See [`UNIT_SEPARATOR`].
pub(super) const RECORD_SEPARATOR: &str = "\x1e";

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    Line,
    Column,
    Html,
    Insert,
    Quote,
    Tcl,
    Csv,
    Json,
    Ascii,
    Table,
    Box,
    Markdown,
}

impl Mode {
    /// The name that `.mode` and `.show` print.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Line => "line",
            Self::Column => "column",
            Self::Html => "html",
            Self::Insert => "insert",
            Self::Quote => "quote",
            Self::Tcl => "tcl",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Ascii => "ascii",
            Self::Table => "table",
            Self::Box => "box",
            Self::Markdown => "markdown",
        }
    }

    /// Whether all rows are needed before the first can be printed.
    pub(super) fn is_columnar(self) -> bool {
        matches!(
            self,
            Self::Column | Self::Table | Self::Box | Self::Markdown
        )
    }
}

/// Options of the columnar modes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wrapping {
    /// Longest line of a cell; 0 is no limit.
    pub width: usize,
    /// Break between words.
    pub at_words: bool,
    /// Print cells as SQL literals.
    pub quote: bool,
}

/// When EXPLAIN output is laid out as a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExplainLayout {
    Off,
    On,
    Auto,
}

/// `.stats`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stats {
    Off,
    On,
    Statement,
    Steps,
}

/// How rows look: everything that the writers in `output/` need.
#[derive(Debug, Clone)]
pub(super) struct Format {
    pub mode: Mode,
    pub headers: bool,
    /// `.headers` was used, so `.mode column` does not turn them on.
    pub headers_chosen: bool,
    pub column_separator: String,
    pub row_separator: String,
    pub null: String,
    /// Minimum widths of columns; negative is aligned to the right, 0 is as wide as needed.
    pub widths: Vec<i32>,
    pub wrapping: Wrapping,
    /// Quoted name of the table of the insert mode.
    pub insert_table: String,
    /// Print line ends in literals as they are.
    pub raw_newlines: bool,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            mode: Mode::List,
            headers: false,
            headers_chosen: false,
            column_separator: "|".to_owned(),
            row_separator: "\n".to_owned(),
            null: String::new(),
            widths: Vec::new(),
            wrapping: Wrapping::default(),
            insert_table: "\"table\"".to_owned(),
            raw_newlines: false,
        }
    }
}

/// Switches of the shell.
#[derive(Debug, Clone)]
pub(super) struct Switches {
    pub echo: bool,
    pub bail: bool,
    pub timer: bool,
    pub changes: bool,
    pub stats: Stats,
    pub explain: ExplainLayout,
    /// Show the query plan before each statement.
    pub query_plan: bool,
    pub prompt: String,
    pub continuation: String,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            echo: false,
            bail: false,
            timer: false,
            changes: false,
            stats: Stats::Off,
            explain: ExplainLayout::Auto,
            query_plan: false,
            prompt: "sqlite> ".to_owned(),
            continuation: "   ...> ".to_owned(),
        }
    }
}
