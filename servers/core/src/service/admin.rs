//! ListDatabases and DeleteDatabase.

use std::sync::Arc;

use pagewire_proto::limits::{MAX_LIST, MAX_NAME_BYTES};
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseName, Invalid, pb};
use tonic::Status;

use crate::hub::Hub;
use crate::status;

pub(super) async fn list_databases(
    hub: &Arc<Hub>,
    request: pb::ListDatabasesRequest,
) -> Result<pb::ListDatabasesResponse, Status> {
    for (field, text) in [("prefix", &request.prefix), ("after", &request.after)] {
        if text.len() > MAX_NAME_BYTES {
            return Err(
                Invalid::new(field, format!("is longer than {MAX_NAME_BYTES} bytes")).into(),
            );
        }
    }
    let limit = request.limit as usize;
    if !(1..=MAX_LIST).contains(&limit) {
        return Err(
            Invalid::new("limit", format!("is {limit}, must be from 1 to {MAX_LIST}")).into(),
        );
    }
    let mut entries = hub
        .bounded(hub.store.list(&request.prefix, &request.after, limit + 1))
        .await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    Ok(pb::ListDatabasesResponse {
        databases: entries
            .into_iter()
            .map(|entry| pb::DatabaseEntry {
                name: entry.name.as_str().to_owned(),
                database_id: entry.database.to_wire(),
                head: Some(entry.head.into()),
            })
            .collect(),
        more,
    })
}

pub(super) async fn delete_database(
    hub: &Arc<Hub>,
    request: pb::DeleteDatabaseRequest,
) -> Result<pb::DeleteDatabaseResponse, Status> {
    let name = DatabaseName::try_from(request.name.as_str())?;
    let hub = Arc::clone(hub);
    let patience = hub.settings.store_wait * 2;
    // In a task of its own: a client that goes away does not leave a removal half awaited.
    let task = tokio::spawn(async move {
        let _removing = hub.remove_name(&name).await?;
        let id = hub.bounded(hub.store.lookup(&name, false)).await?;
        let sessions = hub.sessions_of(id);
        if sessions > 0 {
            return Err(Reason::Limit.status(format!(
                "the database is open in {sessions} session(s): close it there first"
            )));
        }
        if let Some(peers) = hub.store.peers() {
            let servers = hub.bounded(peers.open_elsewhere(id)).await?;
            if servers > 0 {
                return Err(Reason::Limit.status(format!(
                    "the database is open at {servers} other page server(s): close it there first"
                )));
            }
        }
        hub.store.remove(&name).await.map_err(status::of_store)
    });
    let database = match tokio::time::timeout(patience, task).await {
        Ok(Ok(removed)) => removed?,
        Ok(Err(_)) => {
            return Err(Reason::Internal.status("the removal broke off: list the databases"));
        }
        Err(_) => {
            return Err(Reason::Unavailable.status("the store is still removing it: try again"));
        }
    };
    Ok(pb::DeleteDatabaseResponse {
        database_id: database.to_wire(),
    })
}
