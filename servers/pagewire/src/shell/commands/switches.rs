//! Commands that turn something on or off, print a word or end the input.

use std::process::ExitCode;

use super::{Flow, Outcome, Session, switch, usage};
use crate::shell::settings::{ExplainLayout, Stats};

fn one(arguments: &[String]) -> Option<&str> {
    match arguments {
        [word] => Some(word),
        _ => None,
    }
}

pub(super) fn bail(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".bail on|off");
    };
    session.switches.bail = switch(session, word);
    Ok(Flow::Continue)
}

pub(super) fn changes(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".changes on|off");
    };
    session.switches.changes = switch(session, word);
    Ok(Flow::Continue)
}

pub(super) fn echo(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".echo on|off");
    };
    session.switches.echo = switch(session, word);
    Ok(Flow::Continue)
}

pub(super) fn headers(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".headers on|off");
    };
    session.format.headers = switch(session, word);
    session.format.headers_chosen = true;
    Ok(Flow::Continue)
}

pub(super) fn timer(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".timer on|off");
    };
    session.switches.timer = switch(session, word);
    Ok(Flow::Continue)
}

pub(super) fn query_plan(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = one(arguments) else {
        return usage(".eqp off|on|trace|trigger|full");
    };
    session.switches.query_plan = word == "full" || switch(session, word);
    Ok(Flow::Continue)
}

pub(super) fn explain(session: &mut Session, arguments: &[String]) -> Outcome {
    session.switches.explain = match arguments.first().map(String::as_str) {
        Some("auto") => ExplainLayout::Auto,
        Some(word) if !switch(session, word) => ExplainLayout::Off,
        Some(_) | None => ExplainLayout::On,
    };
    Ok(Flow::Continue)
}

pub(super) fn stats(session: &mut Session, arguments: &[String]) -> Outcome {
    session.switches.stats = match arguments {
        [word] if word == "stmt" => Stats::Statement,
        [word] if word == "vmstep" => Stats::Steps,
        [word] => {
            if switch(session, word) {
                Stats::On
            } else {
                Stats::Off
            }
        }
        [] => {
            let (now, most) = crate::shell::raw::memory_bytes();
            session.print(&format!("{:<36} {now} (max {most}) bytes", "Memory Used:"));
            return Ok(Flow::Continue);
        }
        _ => return usage(".stats ?on|off|stmt|vmstep?"),
    };
    Ok(Flow::Continue)
}

pub(super) fn print(session: &mut Session, arguments: &[String]) -> Outcome {
    session.print(&arguments.join(" "));
    Ok(Flow::Continue)
}

pub(super) fn prompt(session: &mut Session, arguments: &[String]) -> Outcome {
    if let Some(prompt) = arguments.first() {
        session.switches.prompt.clone_from(prompt);
    }
    if let Some(continuation) = arguments.get(1) {
        session.switches.continuation.clone_from(continuation);
    }
    Ok(Flow::Continue)
}

pub(super) fn quit(_: &mut Session, _: &[String]) -> Outcome {
    Ok(Flow::Quit)
}

pub(super) fn exit(_: &mut Session, arguments: &[String]) -> Outcome {
    let Some(word) = arguments.first() else {
        return Ok(Flow::Quit);
    };
    let code: i64 = word.parse().unwrap_or(0);
    // The kernel keeps eight bits of it.
    Ok(if code == 0 {
        Flow::Quit
    } else {
        Flow::Exit(ExitCode::from((code & 0xff) as u8))
    })
}
