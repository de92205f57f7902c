//! Commands that change how rows look, and `.show`.

use super::{Flow, Outcome, Session, switch, usage};
use crate::shell::output::literal::identifier;
use crate::shell::settings::{
    ExplainLayout, Mode, RECORD_SEPARATOR, Stats, UNIT_SEPARATOR, Wrapping,
};

/// Widest line of a cell after `.mode`, unless `--wrap` says otherwise.
const DEFAULT_WRAP: usize = 60;

pub(super) fn mode(session: &mut Session, arguments: &[String]) -> Outcome {
    let mut wrapping = Wrapping {
        width: DEFAULT_WRAP,
        ..Wrapping::default()
    };
    let (mut name, mut table) = (None, None);
    let (mut has_options, mut rest) = (false, arguments.iter());
    while let Some(word) = rest.next() {
        let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        match option {
            Some("wrap") => match rest.next() {
                Some(number) => wrapping.width = number.parse().unwrap_or(0),
                None => return Err(format!("extra argument: \"{word}\"")),
            },
            Some("ww") => wrapping.at_words = true,
            Some("wordwrap") => match rest.next() {
                Some(word) => wrapping.at_words = switch(session, word),
                None => return Err(format!("extra argument: \"{word}\"")),
            },
            Some("quote") => wrapping.quote = true,
            Some("noquote") => wrapping.quote = false,
            // Like sqlite3, which takes any word that is no option of its own for a name first.
            _ if name.is_none() => name = Some(word.as_str()),
            _ if table.is_none() => table = Some(word.as_str()),
            Some(_) => {
                return Err(format!(
                    "unknown option: {word}\noptions:\n  --noquote\n  --quote\n  --wordwrap on/off\n  \
                     --wrap N\n  --ww"
                ));
            }
            None => return Err(format!("extra argument: \"{word}\"")),
        }
        has_options |= option.is_some();
    }
    let Some(name) = name else {
        let format = &session.format;
        if has_options || format.mode.is_columnar() {
            let text = format!("current output mode: {}", mode_text(session));
            session.print(&text);
            if has_options {
                session.format.wrapping = wrapping;
            }
        } else {
            let text = format!("current output mode: {}", format.mode.name());
            session.print(&text);
        }
        return Ok(Flow::Continue);
    };
    set_mode(session, name, table, wrapping)
}

fn set_mode(session: &mut Session, word: &str, table: Option<&str>, wrapping: Wrapping) -> Outcome {
    let is = |name: &str| name.starts_with(word);
    let format = &mut session.format;
    let (mode, column_separator, row_separator) = if is("lines") {
        (Mode::Line, None, Some("\n"))
    } else if is("columns") {
        if !format.headers_chosen {
            format.headers = true;
        }
        (Mode::Column, None, Some("\n"))
    } else if is("list") {
        (Mode::List, Some("|"), Some("\n"))
    } else if is("html") {
        (Mode::Html, None, None)
    } else if is("tcl") {
        (Mode::Tcl, Some(" "), Some("\n"))
    } else if is("csv") {
        (Mode::Csv, Some(","), Some("\r\n"))
    } else if is("tabs") {
        (Mode::List, Some("\t"), None)
    } else if is("insert") {
        format.insert_table = identifier(table.unwrap_or("table"));
        (Mode::Insert, None, None)
    } else if is("quote") {
        (Mode::Quote, Some(","), Some("\n"))
    } else if is("ascii") {
        (Mode::Ascii, Some(UNIT_SEPARATOR), Some(RECORD_SEPARATOR))
    } else if is("markdown") {
        (Mode::Markdown, None, None)
    } else if is("table") {
        (Mode::Table, None, None)
    } else if is("box") || is("qbox") {
        (Mode::Box, None, None)
    } else if is("json") {
        (Mode::Json, None, None)
    } else {
        return Err(
            "Error: mode should be one of: ascii box column csv html insert json line list \
                    markdown qbox quote table tabs tcl"
                .to_owned(),
        );
    };
    format.mode = mode;
    if mode.is_columnar() {
        format.wrapping = Wrapping {
            quote: wrapping.quote || word == "qbox",
            ..wrapping
        };
    }
    if let Some(separator) = column_separator {
        separator.clone_into(&mut format.column_separator);
    }
    if let Some(separator) = row_separator {
        separator.clone_into(&mut format.row_separator);
    }
    Ok(Flow::Continue)
}

fn mode_text(session: &Session) -> String {
    let format = &session.format;
    let name = format.mode.name();
    if !format.mode.is_columnar() {
        return name.to_owned();
    }
    let Wrapping {
        width,
        at_words,
        quote,
    } = format.wrapping;
    format!(
        "{name} --wrap {width} --wordwrap {} --{}quote",
        if at_words { "on" } else { "off" },
        if quote { "" } else { "no" }
    )
}

pub(super) fn null_value(session: &mut Session, arguments: &[String]) -> Outcome {
    let [null] = arguments else {
        return usage(".nullvalue STRING");
    };
    session.format.null.clone_from(null);
    Ok(Flow::Continue)
}

pub(super) fn separator(session: &mut Session, arguments: &[String]) -> Outcome {
    let format = &mut session.format;
    match arguments {
        [column] => format.column_separator.clone_from(column),
        [column, row] => {
            format.column_separator.clone_from(column);
            format.row_separator.clone_from(row);
        }
        _ => return usage(".separator COL ?ROW?"),
    }
    Ok(Flow::Continue)
}

pub(super) fn width(session: &mut Session, arguments: &[String]) -> Outcome {
    session.format.widths = arguments
        .iter()
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    Ok(Flow::Continue)
}

pub(super) fn show(session: &mut Session, arguments: &[String]) -> Outcome {
    if !arguments.is_empty() {
        return usage(".show");
    }
    let on = |value: bool| if value { "on" } else { "off" };
    let c_text =
        |text: &str| String::from_utf8_lossy(&crate::shell::output::c_string(text)).into_owned();
    let (format, switches) = (&session.format, &session.switches);
    let explain = match switches.explain {
        ExplainLayout::Off => "off",
        ExplainLayout::On => "on",
        ExplainLayout::Auto => "auto",
    };
    let stats = match switches.stats {
        Stats::Off => "off",
        Stats::On => "on",
        Stats::Statement => "stmt",
        Stats::Steps => "vmstep",
    };
    let widths: String = format
        .widths
        .iter()
        .map(|width| format!("{width} "))
        .collect();
    let lines = [
        ("echo", on(switches.echo).to_owned()),
        ("eqp", on(switches.query_plan).to_owned()),
        ("explain", explain.to_owned()),
        ("headers", on(format.headers).to_owned()),
        ("mode", mode_text(session)),
        ("nullvalue", c_text(&format.null)),
        ("output", session.out.name().to_owned()),
        ("colseparator", c_text(&format.column_separator)),
        ("rowseparator", c_text(&format.row_separator)),
        ("stats", stats.to_owned()),
        ("width", widths),
        ("filename", session.name().to_owned()),
    ];
    for (name, value) in lines {
        session.print(&format!("{name:>12}: {value}"));
    }
    Ok(Flow::Continue)
}
