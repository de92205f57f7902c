//! A request says with its last message that it is the last one.
//!
//! tonic ends a request by an empty frame of its own: another packet, and a server that has to be woken once more before it may
//! answer. Here the frame after the one that goes out is looked at first. Changes no bytes and no order of messages.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

/// A channel whose requests end with their last message.
#[derive(Clone)]
pub struct PromptEnd(pub Channel);

impl Service<http::Request<Body>> for PromptEnd {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request.map(|inner| {
            Body::new(LookAhead {
                inner,
                next: None,
                ended: false,
            })
        }))
    }
}

type Item = std::result::Result<Frame<Bytes>, Status>;

struct LookAhead {
    inner: Body,
    next: Option<Item>,
    ended: bool,
}

impl http_body::Body for LookAhead {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let item = match self.next.take() {
            None if self.ended => None,
            None => ready!(Pin::new(&mut self.inner).poll_frame(context)),
            known => known,
        };
        match &item {
            None | Some(Err(_)) => self.ended = true,
            Some(Ok(_)) if self.ended => {}
            Some(Ok(_)) => match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(next) => self.next = next,
                Poll::Pending => {}
            },
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.next.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
