//! What differs between two versions: the pages, by their bytes, and the tables that own them, by opening both versions.
//!
//! The server names the pages that were written in between; those that have the same bytes again are left out. A page
//! belongs to the table, or the index of a table, under which `dbstat` finds it in the one version or the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;

use anyhow::{Context as _, bail};
use pagewire_proto::{Moment, VersionEntry, limits, pb};
use rusqlite::Connection;
use serde_json::json;

use super::session::Session;
use super::{Client, print_json, refusal, timely};
use crate::transfer::open_remote;

/// The table that SQLite keeps its schema in.
const SCHEMA_TABLE: &str = "sqlite_schema";

/// What was asked for.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) from: Moment,
    pub(super) to: Option<Moment>,
    pub(super) tables: bool,
}

/// What became of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Added,
    Dropped,
    Modified,
}

#[derive(Debug)]
struct TableDiff {
    change: Change,
    /// Pages of it and of its indexes that differ.
    pages: usize,
}

pub(super) async fn diff(
    client: Client,
    endpoint: &str,
    wanted: Wanted,
    json: bool,
) -> anyhow::Result<()> {
    let mut session = Session::open(client, &wanted.name, pb::OpenMode::ReadOnly).await?;
    let from = session.find(Some(wanted.from)).await?;
    let to = session.find(wanted.to).await?;
    let pages = differing(&mut session, &from, &to).await?;
    let tables = match wanted.tables {
        false => BTreeMap::new(),
        true => {
            let versions = [&from, &to].map(|entry| Moment::Version(entry.snapshot.version));
            let (endpoint, name) = (endpoint.to_owned(), wanted.name);
            let pages = pages.clone();
            // On another thread: the session goes on with its heartbeats, and so keeps both versions.
            tokio::task::spawn_blocking(move || {
                crate::embedded::register_vfs()?;
                let [from, to] = versions.map(|at| open_remote(&name, &endpoint, "ro", Some(&at)));
                owners(&from?, &to?, &pages)
            })
            .await
            .context("the comparison broke off")??
        }
    };
    session.end().await;
    match json {
        true => print_as_json(&from, &to, &pages, &tables, wanted.tables),
        false => print_as_lines(&pages, &tables),
    }
}

/// The pages whose bytes differ, in order.
async fn differing(
    session: &mut Session,
    from: &VersionEntry,
    to: &VersionEntry,
) -> anyhow::Result<BTreeSet<u32>> {
    let mut differing = BTreeSet::new();
    let mut after_page = 0;
    loop {
        let request = pb::DiffVersionsRequest {
            session_id: session.id.clone(),
            database_id: session.database.clone(),
            from_version: from.snapshot.version.get(),
            to_version: to.snapshot.version.get(),
            after_page,
            limit: limits::MAX_DIFF_PAGES as u32,
        };
        let answer = session.calls.diff_versions(timely(request)).await;
        let answer = answer.map_err(refusal)?.into_inner();
        for pages in answer.pages.chunks(limits::MAX_READ_PAGES) {
            let old = contents(session, from, pages).await?;
            let new = contents(session, to, pages).await?;
            differing.extend(
                pages
                    .iter()
                    .zip(old.into_iter().zip(new))
                    .filter(|(_, (old, new))| old != new)
                    .map(|(page, _)| *page),
            );
        }
        match answer.pages.last() {
            Some(last) if answer.more => after_page = *last,
            _ => return Ok(differing),
        }
    }
}

/// The bytes of pages at a version; none where the version has no such page.
async fn contents(
    session: &mut Session,
    at: &VersionEntry,
    pages: &[u32],
) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
    let count = at.snapshot.page_count.get();
    let page_size = at.snapshot.page_size.map_or(0, |size| size.bytes());
    // Ascending, so that those beyond the end come last.
    let there = pages.partition_point(|page| *page <= count);
    let mut contents = Vec::with_capacity(pages.len());
    while contents.len() < there {
        let request = pb::ReadPagesRequest {
            session_id: session.id.clone(),
            database_id: session.database.clone(),
            version: at.snapshot.version.get(),
            pages: pages[contents.len()..there].to_vec(),
        };
        let answer = session.calls.read_pages(timely(request)).await;
        let answer = answer.map_err(refusal)?.into_inner();
        if answer.pages.is_empty() {
            bail!("the server answered no page of those that were asked for");
        }
        contents.extend(answer.pages.into_iter().map(|page| {
            // A page that was never written reads as zeros.
            let content = match page.content.is_empty() {
                true => vec![0; page_size],
                false => page.content.to_vec(),
            };
            Some(content)
        }));
    }
    contents.resize(pages.len(), None);
    Ok(contents)
}

/// Objects of a schema, by name: the table that they belong to.
fn schema(connection: &Connection) -> rusqlite::Result<HashMap<String, String>> {
    let mut statement =
        connection.prepare("SELECT name, tbl_name FROM sqlite_schema WHERE rootpage > 0")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// The text of a schema: page 1, where it begins, also has the header of the file.
fn schema_text(connection: &Connection) -> rusqlite::Result<Vec<(String, String, Option<String>)>> {
    let mut statement =
        connection.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2, 3")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

/// Which of the pages each table has.
fn pages_of_tables(
    connection: &Connection,
    tables: &HashMap<String, String>,
    pages: &BTreeSet<u32>,
) -> rusqlite::Result<BTreeMap<String, BTreeSet<u32>>> {
    let mut of_tables: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let mut statement = connection.prepare("SELECT name, pageno FROM dbstat")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (name, page): (String, u32) = (row.get(0)?, row.get(1)?);
        if pages.contains(&page) {
            let table = tables.get(&name).cloned().unwrap_or(name);
            of_tables.entry(table).or_default().insert(page);
        }
    }
    Ok(of_tables)
}

fn owners(
    from: &Connection,
    to: &Connection,
    pages: &BTreeSet<u32>,
) -> anyhow::Result<BTreeMap<String, TableDiff>> {
    let (old, new) = (schema(from)?, schema(to)?);
    let mut of_tables = pages_of_tables(from, &old, pages)?;
    for (table, pages) in pages_of_tables(to, &new, pages)? {
        of_tables.entry(table).or_default().extend(pages);
    }
    if schema_text(from)? == schema_text(to)? {
        of_tables.remove(SCHEMA_TABLE);
    }
    let exists = |schema: &HashMap<String, String>, table: &str| {
        table == SCHEMA_TABLE || schema.contains_key(table)
    };
    let diffs = of_tables.into_iter().map(|(table, pages)| {
        let change = match (exists(&old, &table), exists(&new, &table)) {
            (false, true) => Change::Added,
            (true, false) => Change::Dropped,
            (true, true) | (false, false) => Change::Modified,
        };
        let pages = pages.len();
        (table, TableDiff { change, pages })
    });
    Ok(diffs.collect())
}

fn print_as_lines(
    pages: &BTreeSet<u32>,
    tables: &BTreeMap<String, TableDiff>,
) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for (table, diff) in tables {
        let change = match diff.change {
            Change::Added => 'A',
            Change::Dropped => 'D',
            Change::Modified => 'M',
        };
        writeln!(stdout, "{change}\t{table}\t{}", diff.pages)?;
    }
    writeln!(stdout, "pages\t{}\t{}", pages.len(), ranges(pages))?;
    Ok(())
}

/// `1-3,7,9-20`
fn ranges(pages: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &page in pages {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == page => *last = page,
            _ => ranges.push((page, page)),
        }
    }
    let texts = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn print_as_json(
    from: &VersionEntry,
    to: &VersionEntry,
    pages: &BTreeSet<u32>,
    tables: &BTreeMap<String, TableDiff>,
    with_tables: bool,
) -> anyhow::Result<()> {
    let mut object = json!({
        "from": from.snapshot.version.get(),
        "to": to.snapshot.version.get(),
        "pages": pages,
    });
    if with_tables {
        let tables = tables.iter().map(|(table, diff)| {
            let change = match diff.change {
                Change::Added => "added",
                Change::Dropped => "dropped",
                Change::Modified => "modified",
            };
            json!({ "table": table, "change": change, "pages": diff.pages })
        });
        object["tables"] = tables.collect();
    }
    print_json(&object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_range() {
        assert_eq!(ranges(&BTreeSet::new()), "");
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10].into()), "1-3,7,9-10");
    }
}
