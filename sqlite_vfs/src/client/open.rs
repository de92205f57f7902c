//! OpenDatabase and DeleteDatabase.

use std::time::Duration;

use pagewire_proto::limits::MAX_MESSAGE_BYTES;
use pagewire_proto::{
    DatabaseId, DatabaseName, LeaseGrant, Moment, Page, PageSize, Snapshot, VersionEntry, pb,
};
use tokio::time::Instant;

use super::calls::page_of_many;
use super::counters::CallKind;
use super::known::OpenUnderWay;
use super::{Core, PinCall};
use crate::error::{CallError, Error, Result};

/// How long a DeleteDatabase waits for the CloseDatabase that this process sent before it.
const CLOSE_ARRIVES_WITHIN: Duration = Duration::from_millis(250);
/// Pages wanted along with an open, so that they cost no other round trip: a small database comes whole, and of a table of 1,000,000
/// rows of 100 bytes all interior pages, which are 63 of 4 KiB.
const OPEN_PAGE_BYTES: u32 = 384 << 10;

/// What an open gives.
pub struct Opened {
    /// The identity behind the name.
    pub id: DatabaseId,
    /// The newest version at that moment.
    pub head: Snapshot,
    /// The lease, if it was free.
    pub lease: Option<LeaseGrant>,
    /// Pages of the head.
    pub pages: Vec<Page>,
    /// Which open of the session it was.
    pub open_sequence: u64,
    /// To be kept until the database is subscribed to, or closed again.
    pub under_way: OpenUnderWay,
    /// With a moment: its version. The pages are those of it.
    pub found: Option<VersionEntry>,
}

/// Why an open gave nothing.
pub enum OpenError {
    /// The call failed.
    Call(CallError),
    /// The session was refused, or the answer is nonsense.
    Refused(Error),
}

impl Core {
    /// Opens a database by name; the first open of a process goes out together with the Hello of its session.
    pub async fn open_database(
        &self,
        name: &DatabaseName,
        mode: pb::OpenMode,
        want_lease: bool,
        look: Option<(&Moment, &PinCall<'_>)>,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let under_way = OpenUnderWay::begin(self);
        self.open_as(name, mode, want_lease, look, under_way, deadline)
            .await
    }

    /// Opens a database for one question, beside all other opens: its close leaves those alone.
    pub async fn borrow_database(
        &self,
        name: &DatabaseName,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let under_way = OpenUnderWay::borrow(self);
        let mode = pb::OpenMode::ReadWrite;
        self.open_as(name, mode, false, None, under_way, deadline)
            .await
    }

    async fn open_as(
        &self,
        name: &DatabaseName,
        mode: pb::OpenMode,
        want_lease: bool,
        look: Option<(&Moment, &PinCall<'_>)>,
        under_way: OpenUnderWay,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let request = pb::OpenDatabaseRequest {
            session_id: self.session.id().to_wire(),
            name: name.as_str().to_owned(),
            mode: mode.into(),
            want_lease,
            want_page_bytes: OPEN_PAGE_BYTES,
            open_sequence: under_way.sequence(),
            at: look.map(|(at, _)| at.clone().into()),
            pin_sequence: look.map_or(0, |(_, pin)| pin.sequence),
        };
        let open = self.repeat(
            CallKind::Open,
            deadline,
            request,
            |mut stub, request| async move { stub.open_database(request).await },
        );
        let welcome = self.session.welcome(deadline);
        tokio::pin!(open, welcome);
        let answer = tokio::select! {
            // A refusal of the session says more than the refusal of the call that follows from it.
            biased;
            refused = async { welcome.as_mut().await.err() } => match refused {
                Some(error) => return Err(OpenError::Refused(error)),
                None => open.await,
            },
            answer = &mut open => {
                if answer.is_ok() {
                    welcome.await.map_err(OpenError::Refused)?;
                }
                answer
            }
        }
        .map_err(OpenError::Call)?;
        Opened::from_wire(answer, look.is_some(), under_way)
            .map_err(|error| OpenError::Refused(error.within(name.as_str())))
    }

    /// Removes a database; `false` if there is none, which is also what a repeated call finds.
    pub(super) async fn delete_database(
        &self,
        name: &DatabaseName,
        begun: Instant,
        deadline: Instant,
    ) -> std::result::Result<bool, CallError> {
        use pagewire_proto::status::Reason;
        loop {
            let request = pb::DeleteDatabaseRequest {
                name: name.as_str().to_owned(),
            };
            let answer = self
                .repeat(
                    CallKind::Delete,
                    deadline,
                    request,
                    |mut stub, request| async move { stub.delete_database(request).await },
                )
                .await;
            match answer {
                Ok(_) => return Ok(true),
                Err(error) if error.reason == Reason::DatabaseNotFound => return Ok(false),
                // It may have been this process that had it open: CloseDatabase goes by the stream of the session and can
                // arrive after this call.
                Err(error)
                    if error.reason == Reason::Limit && begun.elapsed() < CLOSE_ARRIVES_WITHIN =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Opened {
    fn from_wire(
        wire: pb::OpenDatabaseResponse,
        looks: bool,
        under_way: OpenUnderWay,
    ) -> Result<Self> {
        let head: Snapshot = wire.head.try_into()?;
        let found = match looks {
            false => None,
            true => Some(VersionEntry::try_from(wire.found)?),
        };
        let read = found.as_ref().map_or(head, |found| found.snapshot);
        let pages = pages_of(wire.pages, &read)?;
        Ok(Self {
            id: DatabaseId::try_from(&wire.database_id[..])?,
            head,
            lease: wire.lease.map(LeaseGrant::try_from).transpose()?,
            pages,
            open_sequence: under_way.sequence(),
            under_way,
            found,
        })
    }
}

/// The pages that came with an open, at a version.
fn pages_of(wires: Vec<pb::PageContent>, read: &Snapshot) -> Result<Vec<Page>> {
    // Before any is unpacked: a compressed page stands for up to 255 times its bytes.
    let page_bytes = read.page_size.map_or(1, PageSize::bytes);
    if wires.len() > 1 && wires.len() * page_bytes > MAX_MESSAGE_BYTES {
        return Err(Error::from(pagewire_proto::Invalid::new(
            "pages",
            format!("{} came with an open", wires.len()),
        )));
    }
    let count = wires.len();
    let mut pages = Vec::with_capacity(count);
    for page in wires {
        let page = page_of_many(page, read.page_size, count)?;
        if page.version > read.version {
            return Err(Error::from(pagewire_proto::Invalid::new(
                "pages",
                format!("page {} is of a later version", page.number),
            )));
        }
        pages.push(page);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pagewire_proto::{PageCount, PageNumber, Version};
    use prost::Message as _;

    use super::*;

    /// Bug: a page of an open that stayed in the cache kept the message of all of them, some hundred times as large.
    #[test]
    fn a_page_of_an_open_keeps_nothing_of_its_message() {
        let page_size = PageSize::try_from(4096).unwrap();
        let read = Snapshot {
            version: Version::new(3),
            page_count: PageCount::try_from(96).unwrap(),
            page_size: Some(page_size),
        };
        let page = |number: u32| Page {
            number: PageNumber::try_from(number).unwrap(),
            content: vec![number as u8; 4096].into(),
            version: Version::new(3),
        };
        for (count, is_raw) in [(96, true), (96, false), (1, true)] {
            let wire = pb::OpenDatabaseResponse {
                pages: (1..=count)
                    .map(|number| match is_raw {
                        true => page(number).to_wire(),
                        false => page(number).to_compressed_wire(),
                    })
                    .collect(),
                ..pb::OpenDatabaseResponse::default()
            };
            let message = Bytes::from(wire.encode_to_vec());
            drop(wire);
            let wire = pb::OpenDatabaseResponse::decode(message.clone()).unwrap();
            let pages = pages_of(wire.pages, &read).unwrap();
            assert!(
                pages
                    .iter()
                    .zip(1..)
                    .all(|(came, number)| *came == page(number))
            );
            // One that is nearly all of its message needs no copy.
            assert_eq!(
                message.is_unique(),
                count > 1,
                "{count} pages, raw {is_raw}"
            );
        }
    }
}
