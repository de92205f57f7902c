//! EXPLAIN as an aligned listing, EXPLAIN QUERY PLAN as a tree.

use super::{RowSink, width, write};
use crate::shell::raw::{Query, SqlFailure};

/// Widths of the columns of a bytecode listing; the last has none.
const BYTECODE_WIDTHS: [usize; 8] = [4, 13, 4, 4, 4, 13, 2, 13];
/// The opcodes whose loop bodies are indented up to the instruction before their jump target.
const LOOP_ENDS: [&str; 5] = ["Next", "Prev", "VPrev", "VNext", "SorterNext"];

/// Prints the listing of an EXPLAIN.
pub(in crate::shell) fn print_bytecode(
    query: &mut Query<'_>,
    out: &mut dyn RowSink,
) -> Result<(), SqlFailure> {
    let names = query.column_names();
    let mut rows: Vec<Vec<Vec<u8>>> = Vec::new();
    let outcome = loop {
        match query.step() {
            Ok(true) => rows.push(
                (0..names.len())
                    .map(|column| query.text(column).unwrap_or_default().to_vec())
                    .collect(),
            ),
            Ok(false) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    if rows.is_empty() {
        return outcome;
    }
    let indents = indents(&rows);
    let header: Vec<Vec<u8>> = names.iter().map(|name| name.clone().into_bytes()).collect();
    let dashes: Vec<Vec<u8>> = BYTECODE_WIDTHS
        .iter()
        .map(|width| vec![b'-'; *width])
        .collect();
    print_listing_row(&header, 0, out);
    print_listing_row(&dashes, 0, out);
    for (row, indent) in rows.iter().zip(indents) {
        print_listing_row(row, indent, out);
    }
    outcome
}

fn print_listing_row(cells: &[Vec<u8>], indent: usize, out: &mut dyn RowSink) {
    let mut line = Vec::new();
    for (column, cell) in cells.iter().enumerate() {
        if column > 0 {
            line.extend_from_slice(b"  ");
        }
        if column == 1 {
            line.extend(std::iter::repeat_n(b' ', indent));
        }
        line.extend_from_slice(cell);
        let wanted = BYTECODE_WIDTHS.get(column).copied().unwrap_or(0);
        if column + 1 < cells.len() {
            line.extend(std::iter::repeat_n(
                b' ',
                wanted.saturating_sub(width(cell)),
            ));
        }
    }
    line.push(b'\n');
    write(out, &line);
}

/// How far each opcode is indented: the bodies of loops by two.
fn indents(rows: &[Vec<Vec<u8>>]) -> Vec<usize> {
    let mut indents = vec![0; rows.len()];
    let number = |row: &[Vec<u8>], column: usize| -> Option<usize> {
        std::str::from_utf8(row.get(column)?).ok()?.parse().ok()
    };
    for (at, row) in rows.iter().enumerate() {
        let Some(opcode) = row.get(1).map(|opcode| String::from_utf8_lossy(opcode)) else {
            continue;
        };
        let Some(target) = number(row, 3) else {
            continue;
        };
        if !LOOP_ENDS.contains(&opcode.as_ref()) || target > at {
            continue;
        }
        for indent in &mut indents[target..at] {
            *indent += 2;
        }
    }
    indents
}

/// Prints the tree of an EXPLAIN QUERY PLAN.
pub(in crate::shell) fn print_query_plan(
    query: &mut Query<'_>,
    out: &mut dyn RowSink,
) -> Result<(), SqlFailure> {
    let mut steps: Vec<(i64, i64, Vec<u8>)> = Vec::new();
    let outcome = loop {
        match query.step() {
            Ok(true) => {
                let (id, parent) = (query.integer(0), query.integer(1));
                steps.push((id, parent, query.text(3).unwrap_or_default().to_vec()));
            }
            Ok(false) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    if !steps.is_empty() {
        write(out, b"QUERY PLAN\n");
        print_children(&steps, 0, "", out);
    }
    outcome
}

fn print_children(steps: &[(i64, i64, Vec<u8>)], parent: i64, prefix: &str, out: &mut dyn RowSink) {
    let children: Vec<_> = steps
        .iter()
        .filter(|step| step.1 == parent && step.0 != parent)
        .collect();
    for (number, (id, _, text)) in children.iter().enumerate() {
        let last = number + 1 == children.len();
        write(
            out,
            format!("{prefix}{}", if last { "`--" } else { "|--" }).as_bytes(),
        );
        write(out, text);
        write(out, b"\n");
        let deeper = format!("{prefix}{}", if last { "   " } else { "|  " });
        print_children(steps, *id, &deeper, out);
    }
}
