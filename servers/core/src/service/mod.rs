//! The gRPC service: call -> validated request -> session and lease -> store -> answer. One file for each group of calls.
//!
//! No handler trusts a field that it has not turned into a strict type, and none logs a name or page bytes above debug.

mod admin;
mod commit;
mod encoded;
mod history;
mod lease;
mod open;
mod read;
mod resolve;
mod stage;
mod stream;
mod upload;

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use pagewire_proto::limits::{MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES};
use pagewire_proto::pb;
use pagewire_proto::pb::page_service_server::{PageService, PageServiceServer};
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, limits};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use read::{page_beside, pages_along};

use crate::hub::Hub;
use crate::memory::{Account, AnswerCharge};
use crate::metered::AnswersSent;
use crate::session::{Open, Session};
use crate::status;

/// The handlers of all calls.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    hub: Arc<Hub>,
}

impl Service {
    /// The service as tonic serves it, with the limits of the protocol.
    pub(crate) fn grpc(hub: Arc<Hub>) -> PageServiceServer<Self> {
        PageServiceServer::new(Self { hub })
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The account of the connection that the call came by.
fn account<T>(request: &Request<T>) -> Result<Arc<Account>, Status> {
    let account = request.extensions().get().cloned();
    account.ok_or_else(|| Reason::Internal.status("the call belongs to no connection"))
}

/// An answer whose memory was taken before it was made.
fn charged<T>((answer, charge): (T, AnswerCharge)) -> Response<T> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(charge);
    response
}

/// The database under this id, if the session has it open.
fn opened(session: &Session, database_id: &[u8]) -> Result<Open, Status> {
    let id = DatabaseId::try_from(database_id)?;
    session.open(id).ok_or_else(status::not_open)
}

/// The database under this id, if the session has it open and may write to it.
fn opened_for_writing(session: &Session, database_id: &[u8]) -> Result<Open, Status> {
    let open = opened(session, database_id)?;
    if open.writable {
        Ok(open)
    } else {
        Err(status::read_only())
    }
}

/// What the server accepts, as Welcome says it.
fn wire_limits(hub: &Hub) -> pb::Limits {
    let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    pb::Limits {
        max_message_bytes: small(MAX_MESSAGE_BYTES),
        max_read_pages: small(limits::MAX_READ_PAGES),
        max_commit_databases: small(limits::MAX_COMMIT_DATABASES),
        max_name_bytes: small(limits::MAX_NAME_BYTES),
        max_open_databases: small(hub.settings.max_open_databases),
        max_request_bytes: small(MAX_REQUEST_BYTES),
    }
}

#[tonic::async_trait]
impl PageService for Service {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<pb::SessionResponse, Status>> + Send + 'static>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let account = account(&request)?;
        Ok(stream::serve(&self.hub, account, request.into_inner()))
    }

    async fn open_database(
        &self,
        request: Request<pb::OpenDatabaseRequest>,
    ) -> Result<Response<pb::OpenDatabaseResponse>, Status> {
        let account = account(&request)?;
        open::open_database(&self.hub, &account, request.into_inner())
            .await
            .map(charged)
    }

    async fn begin_snapshot(
        &self,
        request: Request<pb::BeginSnapshotRequest>,
    ) -> Result<Response<pb::BeginSnapshotResponse>, Status> {
        let account = account(&request)?;
        let (answer, charge) =
            read::begin_snapshot(&self.hub, &account, request.into_inner()).await?;
        Ok(match charge {
            Some(charge) => charged((answer, charge)),
            None => Response::new(answer),
        })
    }

    async fn read_pages(
        &self,
        request: Request<pb::ReadPagesRequest>,
    ) -> Result<Response<pb::ReadPagesResponse>, Status> {
        let account = account(&request)?;
        read::read_pages(&self.hub, &account, request.into_inner())
            .await
            .map(charged)
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        let account = account(&request)?;
        let (answer, charge) =
            lease::acquire_lease(&self.hub, &account, request.into_inner()).await?;
        Ok(match charge {
            Some(charge) => charged((answer, charge)),
            None => Response::new(answer),
        })
    }

    async fn stage_pages(
        &self,
        request: Request<Streaming<pb::StagePagesRequest>>,
    ) -> Result<Response<pb::StagePagesResponse>, Status> {
        let account = account(&request)?;
        stage::stage_pages(&self.hub, &account, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn commit(
        &self,
        request: Request<Streaming<pb::CommitRequest>>,
    ) -> Result<Response<pb::CommitResponse>, Status> {
        let account = account(&request)?;
        commit::commit(&self.hub, &account, request.into_inner())
            .await
            .map(Response::new)
    }

    type CommitEachStream =
        Pin<Box<dyn Stream<Item = Result<pb::CommitResponse, Status>> + Send + 'static>>;

    async fn commit_each(
        &self,
        request: Request<Streaming<pb::CommitRequest>>,
    ) -> Result<Response<Self::CommitEachStream>, Status> {
        let account = account(&request)?;
        let sent = request.extensions().get::<AnswersSent>().cloned();
        let sent =
            sent.ok_or_else(|| Reason::Internal.status("the call belongs to no connection"))?;
        let answers =
            commit::commit_each(Arc::clone(&self.hub), account, sent, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn resolve_commit(
        &self,
        request: Request<pb::ResolveCommitRequest>,
    ) -> Result<Response<pb::ResolveCommitResponse>, Status> {
        resolve::resolve_commit(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_databases(
        &self,
        request: Request<pb::ListDatabasesRequest>,
    ) -> Result<Response<pb::ListDatabasesResponse>, Status> {
        admin::list_databases(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn delete_database(
        &self,
        request: Request<pb::DeleteDatabaseRequest>,
    ) -> Result<Response<pb::DeleteDatabaseResponse>, Status> {
        admin::delete_database(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn find_version(
        &self,
        request: Request<pb::FindVersionRequest>,
    ) -> Result<Response<pb::FindVersionResponse>, Status> {
        history::find_version(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        history::list_versions(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn diff_versions(
        &self,
        request: Request<pb::DiffVersionsRequest>,
    ) -> Result<Response<pb::DiffVersionsResponse>, Status> {
        history::diff_versions(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn set_tag(
        &self,
        request: Request<pb::SetTagRequest>,
    ) -> Result<Response<pb::SetTagResponse>, Status> {
        history::set_tag(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn delete_tag(
        &self,
        request: Request<pb::DeleteTagRequest>,
    ) -> Result<Response<pb::DeleteTagResponse>, Status> {
        history::delete_tag(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_branch(
        &self,
        request: Request<pb::CreateBranchRequest>,
    ) -> Result<Response<pb::CreateBranchResponse>, Status> {
        history::create_branch(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn describe_database(
        &self,
        request: Request<pb::DescribeDatabaseRequest>,
    ) -> Result<Response<pb::DescribeDatabaseResponse>, Status> {
        history::describe_database(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn collect_garbage(
        &self,
        request: Request<pb::CollectGarbageRequest>,
    ) -> Result<Response<pb::CollectGarbageResponse>, Status> {
        history::collect_garbage(&self.hub, request.into_inner())
            .await
            .map(Response::new)
    }
}
