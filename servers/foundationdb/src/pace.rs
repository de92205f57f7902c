//! How many pages one transaction of a read asks for.
//!
//! A transaction may read for 5 s. What a call asks for at most is one, and far from that, unless the cluster is slow: it says
//! `transaction_too_old` then, and the same question would end in the same way.
//!
//! * **PACE1** That error, and no other, halves what is asked for at once; as many as that in one transaction make it a run more. It is remembered from call
//!   to call, as a caller whose time is over asks anew.
//! * **PACE2** Each transaction has the whole patience of a call for itself. Who asked has a deadline of his own, and takes the question back.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use pagewire_proto::limits::MAX_READ_PAGES;
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::Inner;
use crate::engine::{Fail, TOO_OLD, Txn, transact};
use crate::runs::RUN;

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Pace(AtomicUsize);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicUsize::new(MAX_READ_PAGES))
    }
}

impl Pace {
    /// Pages that a transaction may ask for; never none.
    fn most(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A transaction that asked for so many took too long.
    fn too_slow(&self, asked: usize) {
        self.0
            .fetch_min(asked.div_ceil(2).max(1), Ordering::Relaxed);
    }

    /// A transaction that asked for so many did them.
    fn done(&self, asked: usize) {
        let most = self.most();
        if asked >= most {
            let more = (most + RUN).min(MAX_READ_PAGES);
            let relaxed = Ordering::Relaxed;
            // Where it was changed meanwhile somebody else knows better.
            let _ = self.0.compare_exchange(most, more, relaxed, relaxed);
        }
    }
}

impl Inner {
    pub(crate) async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        self.in_pieces(pages, |txn, some| {
            Box::pin(txn.pages(database, version, some))
        })
        .await
    }

    /// Reads pages, a transaction for as many as the pace allows.
    pub(crate) async fn in_pieces<F>(
        &self,
        pages: &[PageNumber],
        read: F,
    ) -> Result<Vec<StoredPage>, StoreError>
    where
        F: for<'t> Fn(&'t Txn, &'t [PageNumber]) -> BoxFuture<'t, Result<Vec<StoredPage>, Fail>>
            + Send
            + Sync,
    {
        let mut answer = Vec::with_capacity(pages.len());
        loop {
            let rest = &pages[answer.len()..];
            let some = &rest[..rest.len().min(self.pace.most())];
            let done = transact!(self.engine, |txn| match read(txn, some).await {
                Err(Fail::Cluster(why)) if why.code() == TOO_OLD && some.len() > 1 => Ok(None),
                done => done.map(Some),
            })?;
            let Some(done) = done else {
                self.pace.too_slow(some.len());
                continue;
            };
            self.pace.done(some.len());
            answer.extend(done);
            if answer.len() >= pages.len() {
                return Ok(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace1_a_read_is_halved_down_to_one_page_and_grows_by_a_run() {
        let pace = Pace::default();
        assert_eq!(pace.most(), MAX_READ_PAGES);
        // What is less than it may be says nothing of more.
        pace.too_slow(MAX_READ_PAGES);
        pace.done(MAX_READ_PAGES / 2 - 1);
        assert_eq!(pace.most(), MAX_READ_PAGES / 2);
        // Nor does another one of the size that was halved.
        pace.too_slow(MAX_READ_PAGES);
        assert_eq!(pace.most(), MAX_READ_PAGES / 2);
        pace.done(MAX_READ_PAGES / 2);
        assert_eq!(pace.most(), MAX_READ_PAGES / 2 + RUN);
        for _ in 0..64 {
            pace.too_slow(pace.most());
        }
        assert_eq!(pace.most(), 1);
        for _ in 0..=MAX_READ_PAGES / RUN {
            pace.done(pace.most());
        }
        assert_eq!(pace.most(), MAX_READ_PAGES);
    }
}
