//! Page rows that no version reads: which they are, and how they go (COL3, COL5). A sweep looks at all rows of a database, some at a time.

use std::collections::BTreeMap;

use futures_util::future::try_join;
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{Collected, StoreError};

use super::{STEP_ROWS, Steps, add, body_len};
use crate::Inner;
use crate::engine::{Fail, Read, Row, Txn, corrupt, transact};
use crate::keys::{Key, Sum, serial_of};
use crate::read::Attempts;
use crate::segments::Reader;

/// The newest versions before another that read anything: remembered for the rows of one transaction.
type Readers = BTreeMap<Version, Option<Reader>>;

impl Inner {
    /// Looks at some rows of a database whether any version reads them.
    pub(crate) async fn sweep_some(
        &self,
        database: DatabaseId,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let step = transact!(self.engine, |txn| {
            txn.sweep_some(database, self.steps(txn)).await
        })?;
        Ok(step.map(|step| add(freed, step)).is_some())
    }
}

impl Txn {
    fn page_of(&self, row: &Row) -> Result<(PageNumber, Version, i64), Fail> {
        match self.key(row)? {
            Key::Page(_, page, version, layer) => Ok((page, version, layer)),
            _ => Err(corrupt(&self.space, &row.key, "not a page").into()),
        }
    }

    /// Whether a row belongs to an attempt, whoever sees to that.
    pub(super) fn is_attempted(&self, row: &Row, attempts: &Attempts) -> Result<bool, Fail> {
        let (_, _, layer) = self.page_of(row)?;
        Ok(serial_of(layer).is_some_and(|serial| attempts.contains_key(&serial)))
    }

    /// Deletes a row of a page (COL5).
    pub(super) fn drop_row(
        &self,
        database: DatabaseId,
        row: &Row,
        step: &mut Collected,
    ) -> Result<(), Fail> {
        self.claim(&row.key)?;
        self.delete_encoded(&row.key);
        let bytes = body_len(row);
        self.add(&Key::Sum(database, Sum::Pages), -1);
        self.add(&Key::Sum(database, Sum::Bytes), -(bytes as i64));
        step.pages += 1;
        step.bytes += bytes;
        Ok(())
    }

    /// Looks at some rows, from where the last look ended; `None` where none is demanded.
    async fn sweep_some(
        &self,
        database: DatabaseId,
        steps: Steps,
    ) -> Result<Option<Collected>, Fail> {
        let most = steps.of(STEP_ROWS);
        let sweep = Key::Sweep(database);
        let Some(from) = self.get(&sweep, Read::Firm).await? else {
            return Ok(None);
        };
        let mut range = self.space.pages(database);
        if !from.is_empty() {
            range.begin = from.to_vec();
        }
        let rows = self.scan(&range, most + 1, false, Read::Loose);
        let (rows, attempts) = try_join(rows, self.attempts(database, Read::Loose)).await?;
        let mut step = Collected::default();
        let mut readers = Readers::new();
        let at_end = rows.len() <= most;
        let looked_at = match at_end {
            true => rows.len(),
            // Of the last one the next is not known.
            false => rows.len() - 1,
        };
        for (index, row) in rows[..looked_at].iter().enumerate() {
            if self.is_attempted(row, &attempts)? {
                continue;
            }
            let (page, written, layer) = self.page_of(row)?;
            let mut next = None;
            for later in &rows[index + 1..] {
                let (of, version, _) = self.page_of(later)?;
                if of == page && self.is_attempted(later, &attempts)? {
                    continue;
                }
                next = (of == page).then_some(version);
                break;
            }
            let end = self.segment_of_row(database, written, next).await?;
            let read = self
                .is_read(database, (page, written, layer), end, &mut readers)
                .await?;
            if !read {
                self.drop_row(database, row, &mut step)?;
            }
        }
        match at_end {
            true => self.delete(&sweep),
            false => self.put(&sweep, &rows[looked_at].key),
        }
        Ok(Some(step))
    }

    /// The version before which a row is read: of the next row of its page, or of the next segment.
    async fn segment_of_row(
        &self,
        database: DatabaseId,
        written: Version,
        next: Option<Version>,
    ) -> Result<Version, Fail> {
        let end = self.segment_end(database, written).await?;
        Ok(next.map_or(end, |next| next.min(end)))
    }

    /// Whether a version that reads a row is kept or stood on.
    async fn is_read(
        &self,
        database: DatabaseId,
        row: (PageNumber, Version, i64),
        end: Version,
        readers: &mut Readers,
    ) -> Result<bool, Fail> {
        let (page, written, layer) = row;
        let mut end = end;
        while end > written {
            let reader = match readers.get(&end) {
                Some(reader) => reader.clone(),
                None => {
                    let reader = self.newest_reader(database, end).await?;
                    readers.insert(end, reader.clone());
                    reader
                }
            };
            let Some(reader) = reader.filter(|reader| reader.version >= written) else {
                return Ok(false);
            };
            let Reader { version, head, .. } = reader;
            if head.shows(page, written, layer) {
                return Ok(true);
            }
            // What that one does not see an older one may: from before it was cut, or had fewer pages.
            end = version.min(head.cut_of(page).unwrap_or(version));
        }
        Ok(false)
    }
}
