//! StagePages: pages of a running transaction, ahead of its commit.

use std::sync::Arc;

use pagewire_proto::status::Reason;
use pagewire_proto::{Invalid, Page, PageSize, SessionId, StagingId, pb};
use tonic::{Status, Streaming};

use super::encoded::{self, Bases, Cost, Received};
use super::opened_for_writing;
use super::upload::next;
use crate::hub::Hub;
use crate::memory::{Account, Charge};
use crate::session::{Open, Session, Staging};
use crate::status;
use crate::store::PageWrite;

pub(super) async fn stage_pages(
    hub: &Arc<Hub>,
    account: &Account,
    mut inbound: Streaming<pb::StagePagesRequest>,
) -> Result<pb::StagePagesResponse, Status> {
    let mut message = next(hub, &mut inbound)
        .await?
        .ok_or_else(|| Invalid::missing("header"))?;
    let header = message
        .header
        .take()
        .ok_or_else(|| Invalid::missing("header"))?;
    let staging_id = StagingId::try_from(&header.staging_id[..])?;
    let page_size = PageSize::try_from(header.page_size)?;
    // Not waited for: the pages that came along would be held meanwhile.
    let session = hub
        .calling_session(SessionId::try_from(&header.session_id[..])?)
        .ok_or_else(status::session_unknown)?;
    let open = opened_for_writing(&session, &header.database_id)?;
    let staging = begin(
        hub,
        &session,
        &open,
        staging_id,
        page_size,
        header.continues,
    )?;
    let mut page_count = 0;
    loop {
        #[cfg(feature = "simulation")]
        hub.settings.older.pages(&mut message.pages);
        let (pages, _paid) = checked(account, std::mem::take(&mut message.pages), page_size)?;
        if !pages.is_empty() {
            page_count += pages.len() as u64;
            let is_there = {
                let (session, staging) = (Arc::clone(&session), staging.clone());
                move || is_known(&session, staging_id, &staging)
            };
            if !hub
                .stage(staging.database, staging.stored, page_size, pages, is_there)
                .await?
            {
                return Err(status::of_store(crate::store::StoreError::StagingUnknown(
                    staging_id,
                )));
            }
        }
        match next(hub, &mut inbound).await? {
            None => return Ok(pb::StagePagesResponse { page_count }),
            Some(following) if following.header.is_some() => {
                return Err(Invalid::new("header", "is not in the first message alone").into());
            }
            Some(following) => message = following,
        }
    }
}

/// The staging of the session, which comes into being with its first call, and only with that one.
fn begin(
    hub: &Hub,
    session: &Session,
    open: &Open,
    id: StagingId,
    page_size: PageSize,
    continues: bool,
) -> Result<Staging, Status> {
    let database = open.database.id;
    let dropped;
    let staging = {
        let mut state = session.state.lock();
        if state.ended || !state.opens.contains_key(&database) {
            return Err(status::not_open());
        }
        if let Some(staging) = state.stagings.get(&id) {
            let staging = staging.clone();
            if staging.database != database || staging.page_size != page_size {
                return Err(Invalid::new(
                    "staging_id",
                    "was begun for another database or page size",
                )
                .into());
            }
            return Ok(staging);
        }
        if continues {
            return Err(status::of_store(crate::store::StoreError::StagingUnknown(
                id,
            )));
        }
        dropped = state.make_room_for_staging(database);
        let Ok(place) = Arc::clone(&hub.stagings).try_acquire_owned() else {
            hub.discard(dropped.into_iter().collect());
            return Err(Reason::Limit.status(format!(
                "{} stagings are on this server, no more are allowed",
                hub.settings.max_stagings_in_total
            )));
        };
        state.stagings_so_far += 1;
        let staging = Staging {
            stored: StagingId::random()?,
            database,
            page_size,
            order: state.stagings_so_far,
            _place: Arc::new(place),
        };
        state.stagings.insert(id, staging.clone());
        staging
    };
    hub.discard(dropped.into_iter().collect());
    Ok(staging)
}

fn is_known(session: &Session, id: StagingId, staging: &Staging) -> bool {
    session
        .state
        .lock()
        .stagings
        .get(&id)
        .is_some_and(|known| known.stored == staging.stored)
}

/// The pages of a message, and what was paid for those that were expanded: to be kept until the store has them.
fn checked(
    account: &Account,
    pages: Vec<pb::PageContent>,
    page_size: PageSize,
) -> Result<(Vec<PageWrite>, Option<Charge>), Status> {
    if encoded::are_raw(&pages) {
        let raw = |wire| {
            Page::from_wire(wire, Some(page_size)).map(|page| PageWrite {
                number: page.number,
                content: page.content,
            })
        };
        return Ok((pages.into_iter().map(raw).collect::<Result<_, _>>()?, None));
    }
    let received = |wire| Received::from_wire(wire, page_size);
    let received: Vec<_> = pages.into_iter().map(received).collect::<Result<_, _>>()?;
    let mut cost = Cost::default();
    for page in &received {
        cost.add(page, page_size);
    }
    // What came is gone when this is done, and nothing is waited for before that.
    let paid = account.try_keep_upload(cost.expanded()?);
    let paid = paid.ok_or_else(encoded::refused)?;
    let no_bases = Bases::default();
    let pages = received.into_iter().map(|page| match page.is_delta() {
        true => Err(Invalid::new("encoding", "a staged page has no base").into()),
        false => page.expand(page_size, &no_bases),
    });
    Ok((pages.collect::<Result<_, Status>>()?, Some(paid)))
}
