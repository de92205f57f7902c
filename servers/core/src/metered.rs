//! Every call passes here: its headers, each of its messages and its answer are charged to the account of its connection.
//!
//! The length prefix of a message is looked at before the decoder sees it, for the decoder allocates as much as it says. What is
//! too long for any call is left to the decoder, which refuses it without allocating.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pagewire_proto::limits::MAX_REQUEST_BYTES;
use pagewire_proto::status::Reason;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::memory::{Account, AnswerCharge, Charge, MESSAGE_WAIT, SMALL_ANSWER, Unsent};
use crate::session::TakenNews;

/// What a call costs before its first message: its task, its handler and the state of its stream.
const CALL_BYTES: usize = 4 << 10;
/// What a header costs beside its text, as HTTP/2 counts it.
const HEADER_BYTES: usize = 32;
/// Calls that send several messages, with pauses between them that their handlers bound. All others end with their message.
const STREAMING: &[&str] = &[
    "Session",
    "Commit",
    "CommitEach",
    "StagePages",
    "ServerReflectionInfo",
];
/// Calls whose answers are each to the newest message: it is done with then, and the next may come at any time or never.
const ANSWERED_ONE_BY_ONE: &str = "CommitEach";
/// Compression flag and length of a gRPC message.
const PREFIX_BYTES: usize = 5;

/// How many answers of the call the transport has taken.
///
/// The encoder asks for the next answer before it gives out the one before. A handler that took the next message then would have two
/// at a time, and would stand still in the middle of the second where the client takes no answers.
#[derive(Clone, Debug)]
pub(crate) struct AnswersSent(watch::Receiver<u64>);

impl AnswersSent {
    /// Waits until so many have been taken.
    pub(crate) async fn reach(&mut self, count: u64) {
        // Without a sender the call has ended, and nobody polls this any more.
        let _ = self.0.wait_for(|sent| *sent >= count).await;
    }
}

/// What a call holds.
#[derive(Debug)]
struct Call {
    account: Arc<Account>,
    _headers: Charge,
    /// The newest message: until the next one comes, or the call is answered.
    message: Mutex<Option<Charge>>,
}

/// Answers one call.
pub(crate) async fn call(
    mut routes: Routes,
    account: Arc<Account>,
    mut request: Request<hyper::body::Incoming>,
) -> Result<Response<Body>, Infallible> {
    // A call that waited here would hold its headers, uncharged.
    let headers = match account.messages.try_take(cost(request.headers())) {
        Ok(headers) => headers,
        Err(overloaded) => return Ok(overloaded.into_http()),
    };
    request.extensions_mut().insert(Arc::clone(&account));
    let call = Arc::new(Call {
        account,
        _headers: headers,
        message: Mutex::default(),
    });
    let method = request.uri().path().rsplit('/').next();
    let streams = method.is_some_and(|method| STREAMING.contains(&method));
    let one_by_one = (method == Some(ANSWERED_ONE_BY_ONE)).then(|| watch::Sender::new(0));
    if let Some(sent) = &one_by_one {
        request
            .extensions_mut()
            .insert(AnswersSent(sent.subscribe()));
    }
    let request = request.map(|body| Body::new(RequestBody::new(body, streams, Arc::clone(&call))));
    let mut response = routes.call(request).await?;
    let charge = response.extensions_mut().remove();
    let news = response.extensions_mut().remove();
    if Arc::strong_count(&call) == 1 {
        // Nobody reads messages any more, and the handler is done with what it read.
        *call.message.lock() = None;
    }
    Ok(response.map(|body| {
        Body::new(AnswerBody {
            body,
            call,
            charge,
            one_by_one,
            news,
        })
    }))
}

fn cost(headers: &HeaderMap) -> usize {
    let text: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES)
        .sum();
    CALL_BYTES + text
}

/// The messages of a call on their way in.
struct RequestBody {
    inner: hyper::body::Incoming,
    /// More messages may follow, at any time.
    streams: bool,
    call: Arc<Call>,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix has come.
    prefix_bytes: usize,
    /// Of the message whose prefix has come, what is still to come.
    left: usize,
    /// Came with what was passed on last.
    rest: Bytes,
    charging: Option<Charging>,
    /// Until when the message under way has to be complete; also the first one, which may not have begun.
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    refused: bool,
}

type Charging = Pin<Box<dyn Future<Output = Result<Charge, Status>> + Send>>;

impl RequestBody {
    fn new(inner: hyper::body::Incoming, streams: bool, call: Arc<Call>) -> Self {
        Self {
            inner,
            streams,
            call,
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            left: 0,
            rest: Bytes::new(),
            charging: None,
            deadline: Some(Instant::now() + MESSAGE_WAIT),
            timer: None,
            refused: false,
        }
    }

    /// Takes from what has come as much as may be passed on: content of the message that is paid for, or a prefix.
    fn pass_on(&mut self) -> Option<Bytes> {
        if self.left > 0 {
            let part = self.rest.split_to(self.left.min(self.rest.len()));
            self.left -= part.len();
            if self.left == 0 {
                self.message_came();
            }
            return Some(part);
        }
        let missing = (PREFIX_BYTES - self.prefix_bytes).min(self.rest.len());
        let end = self.prefix_bytes + missing;
        self.rest
            .copy_to_slice(&mut self.prefix[self.prefix_bytes..end]);
        self.prefix_bytes = end;
        if self.deadline.is_none() {
            self.deadline = Some(Instant::now() + MESSAGE_WAIT);
        }
        if self.prefix_bytes < PREFIX_BYTES {
            return None;
        }
        let [_, length @ ..] = self.prefix;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_REQUEST_BYTES {
            self.refused = true;
            return Some(self.take_prefix(0));
        }
        // Before it asks for more it gives back what it has (M-2).
        *self.call.message.lock() = None;
        match self.call.account.messages.try_take(length) {
            Ok(charge) => {
                *self.call.message.lock() = Some(charge);
                Some(self.take_prefix(length))
            }
            Err(_) => {
                let account = Arc::clone(&self.call.account);
                self.charging = Some(Box::pin(async move { account.messages.take(length).await }));
                None
            }
        }
    }

    fn take_prefix(&mut self, length: usize) -> Bytes {
        self.prefix_bytes = 0;
        self.left = length;
        if length == 0 {
            self.message_came();
        }
        Bytes::copy_from_slice(&self.prefix)
    }

    /// What follows is the end, or the next message at any time.
    fn message_came(&mut self) {
        if self.streams {
            self.deadline = None;
        }
    }

    fn poll_charge(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        let Some(charging) = &mut self.charging else {
            return Poll::Ready(Ok(None));
        };
        let charged = ready!(charging.as_mut().poll(context));
        self.charging = None;
        let charge = charged?;
        let length = charge.bytes();
        *self.call.message.lock() = Some(charge);
        // The wait for memory is not the sender's fault.
        self.deadline = Some(Instant::now() + MESSAGE_WAIT);
        Poll::Ready(Ok(Some(self.take_prefix(length))))
    }

    /// Whether the message under way takes too long.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let timer = match &mut self.timer {
            Some(timer) => {
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                timer
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Reason::Unavailable.status(format!(
            "a message was not complete within {} ms",
            MESSAGE_WAIT.as_millis()
        )))
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let body = &mut *self;
        loop {
            if let Some(prefix) = ready!(body.poll_charge(context)?) {
                return Poll::Ready(Some(Ok(Frame::data(prefix))));
            }
            if body.refused {
                // The decoder has refused the message by its length and asks for nothing more.
                return Poll::Ready(None);
            }
            if !body.rest.is_empty() {
                match body.pass_on() {
                    Some(part) if body.refused || !part.is_empty() => {
                        return Poll::Ready(Some(Ok(Frame::data(part))));
                    }
                    _ => continue,
                }
            }
            match Pin::new(&mut body.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(content) => body.rest = content,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let overdue = ready!(body.poll_overdue(context));
                    return Poll::Ready(Some(Err(overdue.into())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.charging.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// An answer on its way out.
struct AnswerBody {
    body: Body,
    /// What it holds goes back when the call has ended.
    call: Arc<Call>,
    /// Taken before the answer was made; otherwise what is sent is charged.
    charge: Option<AnswerCharge>,
    /// See [`ANSWERED_ONE_BY_ONE`]: how many answers the transport has taken.
    one_by_one: Option<watch::Sender<u64>>,
    /// Of the stream of a session: what is sent is paid for by the news in it.
    news: Option<TakenNews>,
}

/// Bytes of an answer: paid for as long as the transport has them.
struct Charged {
    content: Bytes,
    _paid: Paid,
}

/// What pays for bytes on their way out.
#[expect(dead_code, reason = "held until it is dropped")]
enum Paid {
    Answer(AnswerCharge),
    News(Vec<AnswerCharge>),
    /// The call itself (M-6).
    Call(Arc<Call>, Unsent),
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        let Some(content) = frame.data_ref() else {
            return Poll::Ready(Some(Ok(frame)));
        };
        if let Some(sent) = &self.one_by_one {
            *self.call.message.lock() = None;
            sent.send_modify(|sent| *sent += 1);
        }
        let account = &self.call.account;
        let paid = match (&self.charge, &self.news) {
            (Some(charge), _) => Paid::Answer(charge.clone()),
            (None, Some(news)) => Paid::News(news.take()),
            (None, None) if content.len() <= SMALL_ANSWER => {
                Paid::Call(Arc::clone(&self.call), account.sending())
            }
            // Where there is no room the stream breaks, and the client asks again.
            (None, None) => match account.try_answer(content.len()) {
                Ok(charge) => Paid::Answer(charge),
                Err(overloaded) => return Poll::Ready(Some(Err(overloaded))),
            },
        };
        Poll::Ready(Some(Ok(frame.map_data(|content| {
            Bytes::from_owner(Charged {
                content,
                _paid: paid,
            })
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
