//! What else a server answers, and whom.

use std::path::Path;

use tokio::net::TcpListener;

use super::*;
use crate::api::hubble::pb::observer::{GetAgentEventsRequest, GetNamespacesRequest, GetNodesRequest};
use crate::api::hubble::tls::{Clients, Credentials, TlsFiles};
use crate::flow::journal::{AgentEvent, Entry};

#[tokio::test]
async fn absurd_requests_are_refused_and_the_next_one_is_served() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let server = bench.observer(&double).await;
    let mut client = client(&server).await;
    let filter = |edit: fn(&mut pb::FlowFilter)| {
        let mut filter = pb::FlowFilter::default();
        edit(&mut filter);
        GetFlowsRequest { whitelist: vec![filter], ..Default::default() }
    };
    for request in [
        filter(|f| f.http_path = vec!["(a{999}){999}".into()]),
        filter(|f| f.source_fqdn = vec!["a b".into()]),
        filter(|f| f.source_pod = vec!["x".into(); 5000]),
        GetFlowsRequest { whitelist: vec![pb::FlowFilter::default(); 1000], ..Default::default() },
        GetFlowsRequest { first: true, follow: true, ..Default::default() },
        GetFlowsRequest {
            since: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 }),
            ..Default::default()
        },
    ] {
        let status = client.get_flows(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(!status.message().is_empty());
    }
    // Larger than any request may be: not even decoded.
    let status = client.get_flows(filter(|f| f.source_pod = vec!["x".repeat(1 << 20)])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    assert_eq!(flows(&server, GetFlowsRequest::default()).await.len(), 1);
}

#[tokio::test]
async fn members_of_newer_clients_are_ignored() {
    use prost::Message as _;
    let mut bytes = GetFlowsRequest { number: 1, ..Default::default() }.encode_to_vec();
    // Field 4000, a string.
    bytes.extend([0x82, 0xfa, 0x01, 0x03, b'n', b'e', b'w']);
    let request = GetFlowsRequest::decode(bytes.as_slice()).unwrap();
    assert_eq!(request, GetFlowsRequest { number: 1, ..Default::default() });
}

#[tokio::test]
async fn status_nodes_namespaces_and_agent_events() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([Flow { time_ns: now_ns(), ..example(80) }]);
    for event in [AgentEvent::Started, AgentEvent::Regenerated { revision: 3 }] {
        double.journal.lock().push(Entry { time_ns: 1, event });
    }
    let server = bench.observer(&double).await;
    let mut client = client(&server).await;
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (1, 100, 1));
    assert!(status.flows_rate > 0.0 && status.uptime_ns > 0);
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!((nodes.len(), nodes[0].name.as_str()), (1, "node1"));
    let namespaces = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    assert_eq!((namespaces.len(), namespaces[0].namespace.as_str()), (1, "shop"));
    let events = client.get_agent_events(GetAgentEventsRequest::default()).await.unwrap().into_inner();
    let events: Vec<_> = events.map(|event| event.unwrap().agent_event.unwrap().r#type()).collect().await;
    assert_eq!(events, [pb::AgentEventType::AgentStarted, pb::AgentEventType::EndpointRegenerateSuccess]);
    let channel = connect(&server, &ClientTls::default()).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "hubble.server.Observer".into() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
}

/// Certificates of a test authority, as files.
fn certificates(directory: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    std::fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority_key);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn only_clients_of_the_authority_see_flows() {
    let bench = Bench::new();
    certificates(bench.directory.path());
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let credentials = Credentials::load(TlsFiles {
        certificate: bench.path("server.crt"),
        key: bench.path("server.key"),
        clients: Clients::SignedBy(bench.path("ca.crt")),
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let source: Arc<dyn Observed> = Arc::clone(&double) as _;
    let routes = serve::routes(observer_services(source)).await;
    tokio::spawn(serve::tcp(listener, Some(credentials), routes, Places::default(), bench.stop.clone()));
    let server: ServerAddress = format!("tls://127.0.0.1:{port}").parse().unwrap();
    let ask = async |tls: ClientTls| -> Result<u64, String> {
        let channel = connect(&server, &tls).await.map_err(|error| error.to_string())?;
        let status = ObserverClient::new(channel).server_status(ServerStatusRequest {}).await;
        Ok(status.map_err(|status| status.to_string())?.into_inner().num_flows)
    };
    let good = ClientTls {
        authorities: vec![bench.path("ca.crt")],
        identity: Some((bench.path("client.crt"), bench.path("client.key"))),
        server_name: Some("server".into()),
    };
    assert_eq!(ask(good.clone()).await, Ok(1));
    assert!(ask(ClientTls { identity: None, ..good.clone() }).await.is_err());
    assert!(ask(ClientTls { server_name: Some("other".into()), ..good.clone() }).await.is_err());
    // A client that never finishes its handshake keeps nobody out.
    let _silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(ask(good).await, Ok(1));
}

#[tokio::test]
async fn services_tell_what_they_are() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let bench = Bench::new();
    let server = bench.observer(&Double::new("node1", 100)).await;
    // What the first question builds answers the second one too.
    for _ in 0..2 {
        let channel = connect(&server, &ClientTls::default()).await.unwrap();
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..ServerReflectionRequest::default()
        };
        let asked = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap();
        let ServerReflectionResponse { message_response, .. } =
            asked.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = message_response else {
            panic!("{message_response:?}")
        };
        assert!(list.service.iter().any(|service| service.name == "observer.Observer"), "{list:?}");
    }
}
