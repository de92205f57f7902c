//! The messages of the session stream, and the reason of a status.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_proto::status::{REASON_KEY, Reason};
use pagewire_proto::{DatabaseId, LeaseGrant, SessionId, pb, version};
use prost::Message as _;
use tonic::Status;
use tonic::metadata::MetadataValue;

fuzz_target!(|bytes: &[u8]| {
    use pb::session_request::Message as Request;
    if let Ok(pb::SessionRequest {
        message: Some(Request::Hello(hello)),
    }) = pb::SessionRequest::decode(bytes)
    {
        let greeted = version::check("client", hello.protocol_major, hello.protocol_minor);
        assert_eq!(greeted.is_ok(), hello.protocol_major == version::MAJOR);
        let id = SessionId::try_from(&hello.session_id[..]);
        assert_eq!(id.is_ok(), hello.session_id.len() == 16);
        for refused in greeted.err().into_iter().chain(id.err()) {
            let status = Status::from(refused);
            assert!(Reason::is_explicit(&status) && Reason::of(&status).code() == status.code());
        }
    }
    use pb::session_response::Message as Response;
    if let Ok(pb::SessionResponse {
        message: Some(Response::LeaseGranted(granted)),
    }) = pb::SessionResponse::decode(bytes)
    {
        let _ = DatabaseId::try_from(&granted.database_id[..]);
        let _ = granted.grant.map(LeaseGrant::try_from);
    }
    if let Ok(value) = MetadataValue::try_from(bytes) {
        let mut status = Status::unknown("");
        status.metadata_mut().insert(REASON_KEY, value);
        let reason = Reason::of(&status);
        assert!(reason == Reason::Unavailable || reason.as_str().as_bytes() == bytes);
    }
});
