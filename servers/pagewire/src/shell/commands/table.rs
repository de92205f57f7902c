//! The table of all dot-commands.
//!
//! Order matters twice: `.help` lists it so, and an abbreviation finds its first match.

use super::{Command, files, help, modes, parameters, schema, switches};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "backup",
        shortest: 3,
        usage: "backup ?DB? FILE",
        about: "Backup DB (default \"main\") to FILE",
        details: "\
             \x20  FILE is a local file; a file: URI may name another VFS\n",
        run: files::backup,
    },
    Command {
        name: "bail",
        shortest: 3,
        usage: "bail on|off",
        about: "Stop after hitting an error.  Default OFF",
        details: "",
        run: switches::bail,
    },
    Command {
        name: "cd",
        shortest: 2,
        usage: "cd DIRECTORY",
        about: "Change the working directory to DIRECTORY",
        details: "",
        run: files::change_directory,
    },
    Command {
        name: "changes",
        shortest: 3,
        usage: "changes on|off",
        about: "Show number of rows changed by SQL",
        details: "",
        run: switches::changes,
    },
    Command {
        name: "clone",
        shortest: 2,
        usage: "clone NEWDB",
        about: "Clone data into NEWDB from the existing database",
        details: "",
        run: files::clone,
    },
    Command {
        name: "databases",
        shortest: 2,
        usage: "databases",
        about: "List names and files of attached databases",
        details: "",
        run: schema::databases,
    },
    Command {
        name: "dump",
        shortest: 2,
        usage: "dump ?OBJECTS?",
        about: "Render database content as SQL",
        details: "\
             \x20  Options:\n\
             \x20    --data-only            Output only INSERT statements\n\
             \x20    --newlines             Allow unescaped newline characters in output\n\
             \x20    --nosys                Omit system tables (ex: \"sqlite_stat1\")\n\
             \x20    --preserve-rowids      Include ROWID values in the output\n\
             \x20  OBJECTS is a LIKE pattern for tables, indexes, triggers or views to dump\n\
             \x20  Additional LIKE patterns can be given in subsequent arguments\n",
        run: files::dump,
    },
    Command {
        name: "echo",
        shortest: 2,
        usage: "echo on|off",
        about: "Turn command echo on or off",
        details: "",
        run: switches::echo,
    },
    Command {
        name: "eqp",
        shortest: 3,
        usage: "eqp on|off",
        about: "Enable or disable automatic EXPLAIN QUERY PLAN",
        details: "",
        run: switches::query_plan,
    },
    Command {
        name: "exit",
        shortest: 2,
        usage: "exit ?CODE?",
        about: "Exit this program with return-code CODE",
        details: "",
        run: switches::exit,
    },
    Command {
        name: "explain",
        shortest: 3,
        usage: "explain ?on|off|auto?",
        about: "Change the EXPLAIN formatting mode.  Default: auto",
        details: "",
        run: switches::explain,
    },
    Command {
        name: "fullschema",
        shortest: 1,
        usage: "fullschema ?--indent?",
        about: "Show schema and the content of sqlite_stat tables",
        details: "",
        run: schema::full_schema,
    },
    Command {
        name: "headers",
        shortest: 1,
        usage: "headers on|off",
        about: "Turn display of headers on or off",
        details: "",
        run: switches::headers,
    },
    Command {
        name: "help",
        shortest: 3,
        usage: "help ?-all? ?PATTERN?",
        about: "Show help text for PATTERN",
        details: "",
        run: help,
    },
    Command {
        name: "import",
        shortest: 2,
        usage: "import FILE TABLE",
        about: "Import data from FILE into TABLE",
        details: "\
             \x20  Options:\n\
             \x20    --ascii               Use \\037 and \\036 as column and row separators\n\
             \x20    --csv                 Use , and \\n as column and row separators\n\
             \x20    --skip N              Skip the first N rows of input\n\
             \x20    --schema S            Target table to be S.TABLE\n\
             \x20    -v                    \"Verbose\" - increase auxiliary output\n\
             \x20  Notes:\n\
             \x20    *  If TABLE does not exist, it is created.  The first row of input\n\
             \x20       determines the column names.\n\
             \x20    *  If neither --csv or --ascii are used, the input mode is derived\n\
             \x20       from the \".mode\" output mode\n\
             \x20    *  If FILE begins with \"|\" then it is a command that generates the\n\
             \x20       input text.\n",
        run: files::import,
    },
    Command {
        name: "indexes",
        shortest: 2,
        usage: "indexes ?TABLE?",
        about: "Show names of indexes",
        details: "\
             \x20                          If TABLE is specified, only show indexes for\n\
             \x20                          tables matching TABLE using the LIKE operator.\n",
        run: schema::indexes,
    },
    Command {
        name: "indices",
        shortest: 5,
        usage: "indices ?TABLE?",
        about: "",
        details: "",
        run: schema::indexes,
    },
    Command {
        name: "limit",
        shortest: 3,
        usage: "limit ?LIMIT? ?VAL?",
        about: "Display or change the value of an SQLITE_LIMIT",
        details: "",
        run: parameters::limit,
    },
    Command {
        name: "load",
        shortest: 2,
        usage: "load FILE ?ENTRY?",
        about: "Load an extension library",
        details: "",
        run: files::load,
    },
    Command {
        name: "mode",
        shortest: 1,
        usage: "mode MODE ?OPTIONS?",
        about: "Set output mode",
        details: "\
             \x20  MODE is one of:\n\
             \x20    ascii       Columns/rows delimited by 0x1F and 0x1E\n\
             \x20    box         Tables using unicode box-drawing characters\n\
             \x20    csv         Comma-separated values\n\
             \x20    column      Output in columns.  (See .width)\n\
             \x20    html        HTML <table> code\n\
             \x20    insert      SQL insert statements for TABLE\n\
             \x20    json        Results in a JSON array\n\
             \x20    line        One value per line\n\
             \x20    list        Values delimited by \"|\"\n\
             \x20    markdown    Markdown table format\n\
             \x20    qbox        Shorthand for \"box --wrap 60 --quote\"\n\
             \x20    quote       Escape answers as for SQL\n\
             \x20    table       ASCII-art table\n\
             \x20    tabs        Tab-separated values\n\
             \x20    tcl         TCL list elements\n\
             \x20  OPTIONS: (for columnar modes or insert mode):\n\
             \x20    --wrap N       Wrap output lines to no longer than N characters\n\
             \x20    --wordwrap B   Wrap or not at word boundaries per B (on/off)\n\
             \x20    --ww           Shorthand for \"--wordwrap 1\"\n\
             \x20    --quote        Quote output text as SQL literals\n\
             \x20    --noquote      Do not quote output text\n\
             \x20    TABLE          The name of SQL table used for \"insert\" mode\n",
        run: modes::mode,
    },
    Command {
        name: "nullvalue",
        shortest: 1,
        usage: "nullvalue STRING",
        about: "Use STRING in place of NULL values",
        details: "",
        run: modes::null_value,
    },
    Command {
        name: "once",
        shortest: 2,
        usage: "once ?OPTIONS? ?FILE?",
        about: "Output for the next SQL command only to FILE",
        details: "\
             \x20    If FILE begins with '|' then open as a pipe\n",
        run: files::once,
    },
    Command {
        name: "open",
        shortest: 2,
        usage: "open ?OPTIONS? ?FILE?",
        about: "Close existing database and reopen FILE",
        details: "\
             \x20    FILE is the name of a database or a file: URI\n\
             \x20    Options:\n\
             \x20       --readonly      Open FILE readonly\n",
        run: files::open,
    },
    Command {
        name: "output",
        shortest: 2,
        usage: "output ?FILE?",
        about: "Send output to FILE or stdout if FILE is omitted",
        details: "\
             \x20  If FILE begins with '|' then open it as a pipe.\n",
        run: files::output,
    },
    Command {
        name: "parameter",
        shortest: 2,
        usage: "parameter CMD ...",
        about: "Manage SQL parameter bindings",
        details: "\
             \x20  clear                   Erase all bindings\n\
             \x20  init                    Initialize the TEMP table that holds bindings\n\
             \x20  list                    List the current parameter bindings\n\
             \x20  set PARAMETER VALUE     Given SQL parameter PARAMETER a value of VALUE\n\
             \x20                          PARAMETER should start with one of: $ : @ ?\n\
             \x20  unset PARAMETER         Remove PARAMETER from the binding table\n",
        run: parameters::parameter,
    },
    Command {
        name: "print",
        shortest: 3,
        usage: "print STRING...",
        about: "Print literal STRING",
        details: "",
        run: switches::print,
    },
    Command {
        name: "prompt",
        shortest: 3,
        usage: "prompt MAIN CONTINUE",
        about: "Replace the standard prompts",
        details: "",
        run: switches::prompt,
    },
    Command {
        name: "quit",
        shortest: 1,
        usage: "quit",
        about: "Exit this program",
        details: "",
        run: switches::quit,
    },
    Command {
        name: "read",
        shortest: 3,
        usage: "read FILE",
        about: "Read input from FILE or command output",
        details: "\
             \x20   If FILE begins with \"|\", it is a command that generates the input.\n",
        run: files::read,
    },
    Command {
        name: "restore",
        shortest: 3,
        usage: "restore ?DB? FILE",
        about: "Restore content of DB (default \"main\") from FILE",
        details: "\
             \x20  FILE is a local file; a file: URI may name another VFS\n",
        run: files::restore,
    },
    Command {
        name: "save",
        shortest: 2,
        usage: "save ?OPTIONS? FILE",
        about: "Write database to FILE (an alias for .backup ...)",
        details: "",
        run: files::backup,
    },
    Command {
        name: "schema",
        shortest: 2,
        usage: "schema ?PATTERN?",
        about: "Show the CREATE statements matching PATTERN",
        details: "\
             \x20  Options:\n\
             \x20     --indent             Try to pretty-print the schema\n\
             \x20     --nosys              Omit objects whose names start with \"sqlite_\"\n",
        run: schema::schema,
    },
    Command {
        name: "separator",
        shortest: 2,
        usage: "separator COL ?ROW?",
        about: "Change the column and row separators",
        details: "",
        run: modes::separator,
    },
    Command {
        name: "shell",
        shortest: 2,
        usage: "shell CMD ARGS...",
        about: "Run CMD ARGS... in a system shell",
        details: "",
        run: files::shell,
    },
    Command {
        name: "show",
        shortest: 3,
        usage: "show",
        about: "Show the current values for various settings",
        details: "",
        run: modes::show,
    },
    Command {
        name: "stats",
        shortest: 2,
        usage: "stats ?ARG?",
        about: "Show stats or turn stats on or off",
        details: "\
             \x20  off                      Turn off automatic stat display\n\
             \x20  on                       Turn on automatic stat display\n\
             \x20  stmt                     Show statement stats\n\
             \x20  vmstep                   Show the virtual machine step count only\n",
        run: switches::stats,
    },
    Command {
        name: "system",
        shortest: 2,
        usage: "system CMD ARGS...",
        about: "Run CMD ARGS... in a system shell",
        details: "",
        run: files::shell,
    },
    Command {
        name: "tables",
        shortest: 2,
        usage: "tables ?TABLE?",
        about: "List names of tables matching LIKE pattern TABLE",
        details: "",
        run: schema::tables,
    },
    Command {
        name: "timeout",
        shortest: 5,
        usage: "timeout MS",
        about: "Try opening locked tables for MS milliseconds",
        details: "",
        run: parameters::timeout,
    },
    Command {
        name: "timer",
        shortest: 4,
        usage: "timer on|off",
        about: "Turn SQL timer on or off",
        details: "",
        run: switches::timer,
    },
    Command {
        name: "version",
        shortest: 1,
        usage: "version",
        about: "Show the versions of Pagewire and SQLite",
        details: "",
        run: parameters::version,
    },
    Command {
        name: "vfsinfo",
        shortest: 4,
        usage: "vfsinfo ?AUX?",
        about: "Information about the top-level VFS",
        details: "",
        run: parameters::vfs_info,
    },
    Command {
        name: "vfsname",
        shortest: 4,
        usage: "vfsname ?AUX?",
        about: "Print the name of the VFS stack",
        details: "",
        run: parameters::vfs_name,
    },
    Command {
        name: "width",
        shortest: 1,
        usage: "width NUM1 NUM2 ...",
        about: "Set minimum column widths for columnar output",
        details: "\
             \x20    Negative values right-justify\n",
        run: modes::width,
    },
];
