//! What is asked of a request before its message is read.
//!
//! Rule: of the message of a caller without a role only so much is read that the refusal can name the role
//! for it, and a message that does not arrive ends its request.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf as _;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::{service::ApiServer, status::status};

/// How long a request's message may take to arrive.
const ARRIVAL: Duration = Duration::from_mins(1);

/// The bytes that are read of the message of a caller without a role: all of any call but large plans.
const WITHOUT_ROLE: usize = 16 << 10;

/// The paths of the calls that need a role. Health and reflection tell nothing of migrations.
const GUARDED: &str = "/warmd.";

/// Puts the door before all services.
#[derive(Clone, Debug)]
pub(super) struct Door(pub(super) ApiServer);

impl<S> Layer<S> for Door {
    type Service = Guest<S>;

    fn layer(&self, inner: S) -> Guest<S> {
        Guest { api: self.0.clone(), inner }
    }
}

/// The services behind the door.
#[derive(Clone, Debug)]
pub(super) struct Guest<S> {
    api: ApiServer,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guest<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !request.uri().path().starts_with(GUARDED) {
            return self.inner.call(request);
        }
        let control = self.api.control(request.extensions());
        let look = move || control.may_look().map_err(|error| status(&error));
        self.inner.call(request.map(|body| Body::new(Arriving::new(body, look))))
    }
}

/// A message that arrives before its deadline, or fails.
struct Arriving {
    body: Body,
    late: Pin<Box<Sleep>>,
    /// The bytes read so far.
    read: usize,
    /// Asks whether the caller has a role. A refusal is logged: asked only about a long message, as the call
    /// itself asks too.
    look: Box<dyn Fn() -> Result<(), Status> + Send>,
}

impl Arriving {
    fn new(body: Body, look: impl Fn() -> Result<(), Status> + Send + 'static) -> Self {
        Self { body, late: Box::pin(sleep(ARRIVAL)), read: 0, look: Box::new(look) }
    }

    /// Whether a frame of so many bytes is still read.
    fn may_read(&mut self, bytes: usize) -> Result<(), Status> {
        self.read = self.read.saturating_add(bytes);
        if self.read > WITHOUT_ROLE { (self.look)() } else { Ok(()) }
    }
}

impl HttpBody for Arriving {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                let bytes = data.remaining();
                self.may_read(bytes)?;
            }
            return Poll::Ready(frame);
        }
        self.late.as_mut().poll(context).map(|()| {
            let why = format!("the request did not arrive within {} s", ARRIVAL.as_secs());
            Some(Err(Status::deadline_exceeded(why)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;

    /// A body of these frames, and no end.
    struct Endless(Vec<Bytes>);

    impl HttpBody for Endless {
        type Data = <Body as HttpBody>::Data;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
            self.0.pop().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes)))))
        }
    }

    /// Reads until the error that must come.
    async fn failure(mut body: Arriving) -> (Status, usize) {
        let mut read = 0;
        loop {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap() {
                Ok(frame) => read += frame.into_data().unwrap().len(),
                Err(status) => return (status, read),
            }
        }
    }

    fn frames() -> Endless {
        Endless(vec![Bytes::from_static(&[0; 4096]); 10])
    }

    #[tokio::test(start_paused = true)]
    async fn message_that_does_not_arrive_ends_its_request() {
        let begun = Instant::now();
        let (status, read) = failure(Arriving::new(Body::new(frames()), || Ok(()))).await;
        assert_eq!((status.code(), read), (Code::DeadlineExceeded, 40960));
        assert_eq!(begun.elapsed(), ARRIVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_caller_without_a_role_little_is_read() {
        let look = || Err(Status::permission_denied("no role"));
        let (status, read) = failure(Arriving::new(Body::new(frames()), look)).await;
        assert_eq!((status.message(), read), ("no role", WITHOUT_ROLE));
    }
}
