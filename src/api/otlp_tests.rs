use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::*;
use crate::flow::tests::flow;
use crate::flow::{DecidedBy, Decision};
use crate::model::{Kind, ObjectRef};

fn naming() -> Naming {
    Naming { cluster: "default".into() }
}

#[test]
fn a_record_has_the_numbers_of_opentelemetry() {
    let bytes = request("node1", vec![record(&flow(80), &naming(), &Mask::default())]).encode_to_vec();
    // resource_logs (1), its resource (1), an attribute (1), its key (1).
    assert_eq!(bytes[0], 0x0a);
    let back = ExportRequest::decode(&bytes[..]).unwrap();
    let record = &back.resource_logs[0].scope_logs[0].log_records[0];
    assert_eq!(record.time_unix_nano, flow(80).time_ns);
    let port = record.attributes.iter().find(|attribute| attribute.key == "destination.port").unwrap();
    assert_eq!(port.value.as_ref().unwrap().value, Some(Any::Int(80)));
    assert_eq!((record.severity_number, record.severity_text.as_str()), (INFO, "INFO"));
}

#[test]
fn two_policies_are_one_attribute_because_keys_are_unique() {
    let object = |name: &str| ObjectRef::new(Kind::NetworkPolicy, "shop", name);
    let by = DecidedBy::DefaultDeny(vec![object("a"), object("b")]);
    let flow = Flow { decision: Arc::new(Decision { by, revision: 1, matched: None }), ..flow(80) };
    let record = record(&flow, &naming(), &Mask::default());
    let mut keys: Vec<_> = record.attributes.iter().map(|attribute| &attribute.key).collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let policies = record.attributes.iter().find(|attribute| attribute.key == "sluice.policies").unwrap();
    let Some(Any::Array(list)) = &policies.value.as_ref().unwrap().value else { panic!("no list") };
    assert_eq!(list.values.len(), 2);
}

/// A collector that hands over what it is sent.
#[derive(Clone)]
struct Sink(mpsc::UnboundedSender<ExportRequest>);

impl NamedService for Sink {
    const NAME: &'static str = "opentelemetry.proto.collector.logs.v1.LogsService";
}

impl UnaryService<ExportRequest> for Sink {
    type Response = ExportResponse;
    type Future = BoxFuture<tonic::Response<ExportResponse>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<ExportRequest>) -> Self::Future {
        self.0.send(request.into_inner()).unwrap();
        let partial = PartialSuccess { rejected_log_records: 1, error_message: "one".into() };
        Box::pin(async { Ok(tonic::Response::new(ExportResponse { partial_success: Some(partial) })) })
    }
}

impl<B> Service<http::Request<B>> for Sink
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let sink = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<ExportResponse, ExportRequest>::default();
            Ok(Grpc::new(codec).unary(sink, request).await)
        })
    }
}

#[tokio::test]
async fn a_collector_behind_tls_is_sent_flows_if_the_authority_signed_it() {
    let directory = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let path = directory.path().join(name);
        std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        (rcgen::Issuer::new(params, key), path)
    };
    let (issuer, ours) = authority("ca.crt");
    let (_, other) = authority("other.crt");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    tokio::spawn({
        let mut server = server;
        server.add_service(Sink(sender)).serve_with_incoming(TcpListenerStream::new(listener))
    });
    let batch = || request("node1", vec![record(&flow(80), &naming(), &Mask::default())]);
    let mut stranger =
        Collector::new(&CollectorAddress { url: url.clone(), authority: Some(other) }).unwrap();
    let refused = stranger.send(batch()).await.unwrap_err();
    assert!(refused.message().contains("certificate"), "{refused:?}");
    let mut collector =
        Collector::new(&CollectorAddress { url: url.clone(), authority: Some(ours) }).unwrap();
    assert_eq!(collector.send(batch()).await.unwrap(), 1);
    assert_eq!(received.recv().await.unwrap(), batch());
    let absent = CollectorAddress { url, authority: Some(directory.path().join("none")) };
    assert!(Collector::new(&absent).unwrap_err().to_string().contains("none: No such file"));
}
