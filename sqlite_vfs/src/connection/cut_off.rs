//! What a commit that makes the database smaller cuts off, and a rollback after its commit point (K6) needs again.
//!
//! SQLite cuts the file when the journal is gone, and only then: what lies beyond the new size is still in the file if it rolls back, so it
//! has no entry for it in its journal. Here the new version has its new size at once. So, from FCNTL_SYNC to xTruncate, the file still
//! has the old size for SQLite, and the first write of a rollback brings the rest back from the version before.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::Snapshot;

use super::Progress;
use super::overlay::Overlay;
use super::read::{ReadAhead, read_range};
use crate::database::{Database, Pin};
use crate::error::Result;

impl Progress {
    /// After the commit that made `head`. The version before it is kept only where it is the larger one.
    pub(super) fn durable(head: &Snapshot, before: Pin) -> Self {
        let is_cut = before.snapshot().byte_size() > head.byte_size();
        Progress::Durable {
            version: head.version,
            before: is_cut.then_some(before),
        }
    }

    /// The size that the file has for SQLite at least.
    pub(super) fn size_before(&self) -> u64 {
        match self {
            Progress::Durable {
                before: Some(before),
                ..
            } => before.snapshot().byte_size(),
            Progress::Durable { before: None, .. }
            | Progress::Open
            | Progress::Grouped
            | Progress::Over => 0,
        }
    }

    /// xTruncate: of a commit, which can't be rolled back any more.
    pub(super) fn file_is_cut(&mut self, size: u64) {
        if size < self.size_before()
            && let Progress::Durable { before, .. } = self
        {
            *before = None;
        }
    }

    /// Before a write: if this is a rollback, what was cut off is there again.
    pub(super) fn bring_back_cut_off(
        &mut self,
        database: &Arc<Database>,
        overlay: &mut Overlay,
        timeout: Duration,
    ) -> Result<()> {
        let Progress::Durable { before, .. } = self else {
            return Ok(());
        };
        let (Some(pin), Some(unit)) = (&before, overlay.unit()) else {
            return Ok(());
        };
        let snapshot = pin.snapshot();
        let size = snapshot.byte_size();
        let unit_bytes = u64::from(unit.get());
        let mut ahead = ReadAhead::new(database);
        let mut content = vec![0; unit.bytes()];
        for index in overlay.size() / unit_bytes..size.div_ceil(unit_bytes) {
            let offset = index * unit_bytes;
            read_range(
                database,
                &snapshot,
                None,
                &mut ahead,
                &mut content,
                offset,
                timeout,
            )?;
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            overlay.put(index, bytes::Bytes::copy_from_slice(&content))?;
        }
        overlay.truncate(size);
        *before = None;
        Ok(())
    }
}
