//! Servers of older releases: without some of what they announce in Welcome, and without calls and messages that came later. Clients have learnt of
//! the server before it what it can do, and may be in the middle of a commit or an upload.
//!
//! Calls that are not there are the server's own matter ([`pagewire_server::older`]). A store that has no uploads ahead of a commit says so itself.

use std::sync::Arc;

use async_trait::async_trait;
use pagewire_proto::{DatabaseId, PageSize, StagingId, capability};
use pagewire_server::layer::Layer;
use pagewire_server::older::{self, HISTORY, Met, Older};
use pagewire_server::store::{PageStore, PageWrite, StoreError};

use crate::counts::{Event, add, count};
use crate::finding::{Finding, Kind};
use crate::random::Random;

/// What a release had not yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Of the server.
    pub server: Older,
    /// Uploads ahead of a commit, by the store.
    pub stages_nothing: bool,
}

impl Release {
    /// One of before. It lacks at least something.
    pub fn older(random: &mut Random, may_lack_history: bool) -> Self {
        let mut server = Older::default();
        let all = [
            capability::COMMIT_EACH,
            capability::LZ4,
            capability::REQUEST_LZ4,
            capability::PAGE_DELTAS,
        ];
        server.capabilities = all.into_iter().filter(|_| random.percent(60)).collect();
        if server.lacks_capability(capability::COMMIT_EACH) {
            server.calls.push("CommitEach");
        }
        let (stages_nothing, no_stage_pages) = match random.below(3) {
            0 => (true, false),
            1 => (false, true),
            _ => (false, false),
        };
        if no_stage_pages {
            server.calls.push("StagePages");
        }
        server.drop_stagings = random.percent(50);
        // All of before.
        server.protocol_1_1 = true;
        if may_lack_history && random.percent(40) {
            server.calls.extend(HISTORY);
        }
        Self {
            server,
            stages_nothing,
        }
    }

    /// The store as the release uses it.
    pub fn around(&self, inner: Arc<dyn PageStore>) -> Arc<dyn PageStore> {
        match self.stages_nothing {
            true => Arc::new(StagesNothing { inner }),
            false => inner,
        }
    }
}

/// For the table, and what no client may ask for whose server has told it better.
pub fn count_met() -> impl Iterator<Item = Finding> {
    let met = older::met();
    add(Event::OlderStage, met.stage_pages);
    add(Event::OlderHistory, met.history);
    add(Event::OlderEncoding, met.encodings);
    in_vain(met)
}

fn in_vain(met: Met) -> impl Iterator<Item = Finding> {
    let each = [
        (met.commit_each, "calls of CommitEach"),
        (met.messages, "messages of the session"),
    ];
    let told = |(times, what)| {
        format!("{times} {what} went to a server of an older release that does not know them")
    };
    let some = each.into_iter().filter(|(times, _)| *times > 0);
    some.map(move |met| Kind::Error.finding(told(met)))
}

/// A store without uploads ahead of a commit.
#[derive(Debug)]
struct StagesNothing {
    inner: Arc<dyn PageStore>,
}

#[async_trait]
impl Layer for StagesNothing {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    async fn stage(
        &self,
        _: DatabaseId,
        _: StagingId,
        _: PageSize,
        _: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        count(Event::OlderStage);
        Err(StoreError::Unsupported("uploads ahead of a commit"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_was_told_is_not_there_is_never_asked_for() {
        let fine = Met {
            stage_pages: 1,
            history: 2,
            encodings: 3,
            ..Met::default()
        };
        assert_eq!(in_vain(fine).count(), 0);
        let commit_each = 1;
        assert_eq!(
            in_vain(Met {
                commit_each,
                ..fine
            })
            .count(),
            1
        );
        let messages = 1;
        assert_eq!(in_vain(Met { messages, ..fine }).count(), 1);
    }
}
