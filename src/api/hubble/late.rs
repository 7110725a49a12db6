//! A service that is built when it is called first: what few clients ever ask for takes no memory before.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::Request;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// Clones share what was built. The service has to be ready at any time, as generated ones are.
#[derive(Debug)]
pub struct Late<S> {
    built: Arc<OnceLock<S>>,
    build: fn() -> S,
}

impl<S> Late<S> {
    pub fn new(build: fn() -> S) -> Late<S> {
        Late { built: Arc::default(), build }
    }
}

impl<S> Clone for Late<S> {
    fn clone(&self) -> Late<S> {
        Late { built: Arc::clone(&self.built), build: self.build }
    }
}

impl<S: NamedService> NamedService for Late<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>, Error = Infallible> + Clone> Service<Request<Body>> for Late<S> {
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.built.get_or_init(self.build).clone().call(request)
    }
}
