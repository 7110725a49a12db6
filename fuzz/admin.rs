//! Requests to the admin API: each is answered, none is answered 500, and refusals are JSON.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use sluice::api::admin;
use sluice::api::backend::{Answer, ApplyMode, Backend, ExplainQuery, KernelTable, Refusal};
use sluice::api::hubble::convert::Naming;
use sluice::api::types::*;
use sluice::flow::Flow;
use sluice::flow::ring::Batch;
use sluice::k8s::{self, ParseOptions};
use sluice::model::{Kind, ObjectRef};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tower::ServiceExt as _;

use crate::Target;

/// Knows nobody; reads manifests as the agent does.
struct Nobody;

fn unknown<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(std::future::ready(Err(Refusal::NotFound("nobody".into()))))
}

fn empty<T: Default + Send + 'static>() -> Answer<'static, T> {
    Box::pin(std::future::ready(Ok(T::default())))
}

impl Backend for Nobody {
    fn naming(&self) -> Naming {
        Naming { cluster: "default".into() }
    }

    fn status(&self) -> Answer<'_, Status> {
        empty()
    }
    fn apply(&self, manifest: String, _mode: ApplyMode) -> Answer<'_, Applied> {
        let read = k8s::parse("request", &manifest, &ParseOptions::default());
        let problems: Vec<String> = read.problems.iter().map(ToString::to_string).collect();
        let message = "the manifest is invalid".to_owned();
        let refused = (!problems.is_empty()).then_some(Refusal::Invalid { message, problems });
        Box::pin(std::future::ready(refused.map_or(Ok(Applied::default()), Err)))
    }
    fn delete(&self, _object: ObjectRef) -> Answer<'_, Applied> {
        unknown()
    }
    fn objects(&self, _kind: Option<Kind>, _namespace: Option<String>) -> Answer<'_, Vec<StoredObject>> {
        empty()
    }
    fn endpoints(&self) -> Answer<'_, Vec<Endpoint>> {
        empty()
    }
    fn add_endpoint(&self, _request: EndpointRequest) -> Answer<'_, Endpoint> {
        unknown()
    }
    fn remove_endpoint(&self, _pod: String) -> Answer<'_, ()> {
        empty()
    }
    fn identities(&self) -> Answer<'_, Vec<IdentityInfo>> {
        empty()
    }
    fn ipcache(&self) -> Answer<'_, Vec<IpcacheInfo>> {
        empty()
    }
    fn names(&self) -> Answer<'_, Vec<NameInfo>> {
        empty()
    }
    fn services(&self) -> Answer<'_, Vec<ServiceInfo>> {
        empty()
    }
    fn kernel(
        &self,
        _table: KernelTable,
        _endpoint: Option<String>,
    ) -> Answer<'_, Vec<serde_json::Map<String, serde_json::Value>>> {
        empty()
    }
    fn explain(&self, _query: ExplainQuery) -> Answer<'_, ExplainAnswer> {
        unknown()
    }
    fn flows(&self, _cursor: u64, _limit: usize) -> Batch {
        Batch { flows: Vec::new(), lost: 0, cursor: 0 }
    }
    fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        // The sender is gone: the stream ends.
        broadcast::channel(1).1
    }
}

/// See the module. An input is a method, a path and a body, in lines.
pub struct Requests {
    router: Router,
    runtime: Runtime,
}

impl Requests {
    pub fn new() -> Requests {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Requests { router: admin::router(Arc::new(Nobody)), runtime }
    }
}

impl Target for Requests {
    fn name(&self) -> &'static str {
        "admin"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        [
            "GET\n/v1/status\n",
            "POST\n/v1/objects?dry-run=true\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {name: a, namespace: b}\nspec: {podSelector: {}}\n",
            "GET\n/v1/objects?kind=NetworkPolicy&namespace=shop\n",
            "DELETE\n/v1/objects/NetworkPolicy/shop/deny%2Dall\n",
            "PUT\n/v1/endpoints\n{\"pod\": \"shop/web\", \"netns\": \"/run/netns/web\", \"labels\": {\"a\": \"b\"}, \
             \"addresses\": [\"10.244.0.9\", \"fd00::9\"]}",
            // A bad escape, which axum refuses itself.
            "DELETE\n/v1/objects/NetworkPolicy/shop/deny%Dall\n",
            "DELETE\n/v1/endpoints/shop/web\n",
            "GET\n/v1/kernel/policy?endpoint=7\n",
            "GET\n/v1/explain?from=shop/web&to=10.0.0.1&port=80&protocol=TCP\n",
            "GET\n/v1/flows?last=20&follow=false&verdict=DROPPED&protocol=udp&port=53\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn check(&mut self, input: &[u8]) {
        let mut parts = input.splitn(3, |byte| *byte == b'\n');
        let mut part = || parts.next().unwrap_or_default().to_vec();
        let (method, path, body) = (part(), part(), part());
        let Ok(method) = Method::from_bytes(&method) else { return };
        let request = Request::builder().method(method).uri(path.as_slice()).body(Body::from(body));
        // What is no URI does not come through the HTTP parser either.
        let Ok(request) = request else { return };
        let router = self.router.clone();
        self.runtime.block_on(async {
            let is_head = request.method() == Method::HEAD;
            let response = router.oneshot(request).await.expect("a router answers");
            let status = response.status();
            assert!(status.as_u16() < 500, "{status}");
            let has_body = !is_head;
            let body = response.into_body().collect().await.expect("a body that ends").to_bytes();
            if status.is_client_error() && has_body {
                let refusal: Failure = serde_json::from_slice(&body).expect("a refusal is JSON");
                assert!(!refusal.error.is_empty());
            }
        });
    }
}
