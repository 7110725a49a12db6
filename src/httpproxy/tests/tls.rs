//! Server names.

use super::*;

fn hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

async fn rig() -> Rig {
    Rig::with(server_names(&["*.example"]), Protocol::Tls, Limits::default()).await
}

#[tokio::test]
async fn a_listed_name_passes_untouched_however_it_is_cut() {
    let rig = rig().await;
    let bytes = hello("Api.example");
    let mut client = rig.client().await;
    for piece in bytes.chunks(50) {
        client.write_all(piece).await.unwrap();
        client.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut server = rig.server().await;
    let mut got = vec![0; bytes.len()];
    patiently(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, bytes);
    send(&mut server, "anything").await;
    expect(&mut client, "anything").await;
    let records = rig.records.lock();
    assert_eq!(records[0].verdict, RecordVerdict::Forwarded);
    assert_eq!(records[0].l7, L7::Tls { server_name: Some("Api.example".into()) });
}

#[tokio::test]
async fn another_name_none_and_what_is_not_tls_are_reset() {
    let rig = rig().await;
    for bytes in [hello("a.b.example"), hello("10.0.0.1"), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut client = rig.client().await;
        client.write_all(&bytes).await.unwrap();
        let error = patiently(client.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(rig.counters.handshakes_denied.get(), 3);
}

#[tokio::test]
async fn new_rules_cut_connections_that_they_do_not_allow() {
    let rig = rig().await;
    let mut client = rig.client().await;
    client.write_all(&hello("api.example")).await.unwrap();
    let mut server = rig.server().await;
    send(&mut server, "x").await;
    expect(&mut client, "x").await;
    rig.swap(&server_names(&["*.other"]));
    assert_eq!(rest(&mut client).await, "");
}
