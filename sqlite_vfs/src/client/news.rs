//! What the server tells on the session stream: the way of leases, and the news of subscriptions.
//!
//! Finds the database that a message is for and hands it over; what it means is decided in `database/`.

use std::sync::Arc;

use pagewire_proto::pb::session_request::Message as Outgoing;
use pagewire_proto::pb::session_response::Message as Incoming;
use pagewire_proto::{DatabaseId, Epoch, LeaseGrant, Version, pb};

use super::calls::pages_along;
use super::counters::{COUNTERS, CallKind};
use super::session::nonsense;
use super::{Core, page_beside};
use crate::database::{DatabaseState, News};
use crate::error::CallError;

/// Takes over one message of the server other than those that keep the session up.
pub(super) fn news(core: &Arc<Core>, message: Incoming) -> std::result::Result<(), CallError> {
    let invalid = |invalid: pagewire_proto::Invalid| nonsense(&invalid.to_string());
    match message {
        Incoming::LeaseGranted(granted) => {
            let id = DatabaseId::try_from(&granted.database_id[..]).map_err(invalid)?;
            let mut grant = granted
                .grant
                .ok_or_else(|| nonsense("a grant is missing"))?;
            let pages = std::mem::take(&mut grant.pages);
            let grant = LeaseGrant::try_from(grant).map_err(invalid)?;
            let pages = pages_along(pages, &grant.head);
            if let Some(database) = core.database_or_release(id, grant.epoch) {
                database.lease_granted(grant, pages, core);
            }
        }
        Incoming::LeaseRecall(recall) => {
            let id = DatabaseId::try_from(&recall.database_id[..]).map_err(invalid)?;
            let epoch = Epoch::new(recall.epoch);
            if let Some(database) = core.database_or_release(id, epoch) {
                database.lease_recalled(epoch, core);
            }
        }
        Incoming::LeaseLost(lost) => {
            let id = DatabaseId::try_from(&lost.database_id[..]).map_err(invalid)?;
            let epoch = Epoch::new(lost.epoch);
            if let Some(database) = core.database_or_release(id, epoch) {
                database.lease_lost(epoch);
            }
        }
        Incoming::Subscribed(subscribed) => {
            count(&subscribed);
            let news = match subscribed.accepted {
                false => News::Refused,
                true => News::Subscribed(
                    subscribed.head.try_into().map_err(invalid)?,
                    subscribed.changes.try_into().map_err(invalid)?,
                ),
            };
            tell(core, &subscribed.database_id, subscribed.subscription, news)?;
        }
        Incoming::Prepare(prepare) => {
            count(&prepare);
            let news = News::Prepare(Version::new(prepare.version));
            tell(core, &prepare.database_id, prepare.subscription, news)?;
        }
        Incoming::Published(published) => {
            count(&published);
            let head = published.head.try_into().map_err(invalid)?;
            let page_1 = page_beside(published.page_1, &head).map_err(invalid)?;
            let news = News::Published(head, published.changes.try_into().map_err(invalid)?);
            let database = tell(core, &published.database_id, published.subscription, news)?;
            // After the changes, which say that what was cached before is not that of this version.
            if let (Some(database), Some(page)) = (database, page_1) {
                database.page_came(&core.cache, page, head.version);
            }
        }
        Incoming::PrepareAborted(aborted) => {
            count(&aborted);
            let news = News::Aborted(Version::new(aborted.version));
            tell(core, &aborted.database_id, aborted.subscription, news)?;
        }
        Incoming::Draining(_) | Incoming::HeartbeatAck(_) => {}
        Incoming::Welcome(_) => return Err(nonsense("a second Welcome")),
    }
    Ok(())
}

fn count(message: &impl prost::Message) {
    COUNTERS.background(CallKind::Push);
    COUNTERS.bytes(CallKind::Push, 0, message.encoded_len());
}

fn tell(
    core: &Core,
    id: &[u8],
    subscription: u64,
    news: News,
) -> std::result::Result<Option<Arc<DatabaseState>>, CallError> {
    let id = DatabaseId::try_from(id).map_err(|invalid| nonsense(&invalid.to_string()))?;
    let database = core.database_if_known(id);
    match &database {
        Some(database) => database.told(subscription, news, &core.session),
        // Closed meanwhile: nobody here begins a transaction on what it knew.
        None => {
            core.session
                .send_news(Outgoing::Unsubscribe(pb::Unsubscribe {
                    database_id: id.to_wire(),
                    subscription,
                }));
        }
    }
    Ok(database)
}
