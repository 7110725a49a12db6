//! Server names.

use super::*;

pub(super) fn hello(name: &'static str) -> Vec<u8> {
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

/// No rule turns default deny on: names are told and nothing is refused.
fn observed() -> L7Policy {
    L7Policy { enforced: false, ..server_names(&["*.example"]) }
}

async fn observing() -> Rig {
    let limits = Limits { header_timeout: PATIENCE, ..Limits::default() };
    Rig::with(observed(), Protocol::Tls, limits).await
}

async fn told(rig: &Rig) -> (RecordVerdict, Option<String>) {
    patiently(async {
        while rig.records.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let records = rig.records.lock();
    match &records[0].l7 {
        L7::Tls { server_name } => (records[0].verdict, server_name.as_deref().map(Into::into)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn where_nothing_is_refused_a_server_that_speaks_first_is_heard_and_its_client_still_looked_at() {
    let rig = observing().await;
    let hello = hello("other.name");
    for (words, name) in [(&b"EHLO a\r\n"[..], None), (&hello[..], Some("other.name".to_owned()))] {
        rig.records.lock().clear();
        let mut client = rig.client().await;
        let begun = Instant::now();
        let mut server = rig.server().await;
        for greeting in ["220 ready", "\r\n"] {
            send(&mut server, greeting).await;
            expect(&mut client, greeting).await;
        }
        assert!(begun.elapsed() < PATIENCE / 2);
        assert!(rig.records.lock().is_empty(), "nothing is known yet");
        client.write_all(words).await.unwrap();
        let mut got = vec![0; words.len()];
        patiently(server.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, words);
        assert_eq!(told(&rig).await, (RecordVerdict::Forwarded, name));
        send(&mut server, "more").await;
        expect(&mut client, "more").await;
    }
    assert_eq!(rig.counters.timeouts.get(), 0);
}

#[tokio::test]
async fn where_nothing_is_refused_a_server_that_closes_first_is_heard_too() {
    let rig = observing().await;
    let mut client = rig.client().await;
    let mut server = rig.server().await;
    send(&mut server, "421 too busy\r\n").await;
    drop(server);
    assert_eq!(rest(&mut client).await, "421 too busy\r\n");
}

#[tokio::test]
async fn rules_that_begin_to_refuse_end_a_connection_whose_client_has_not_spoken() {
    let rig = observing().await;
    let mut client = rig.client().await;
    let mut server = rig.server().await;
    send(&mut server, "220 ready\r\n").await;
    expect(&mut client, "220 ready\r\n").await;
    rig.swap(&server_names(&["*.example"]));
    let error = patiently(client.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(told(&rig).await, (RecordVerdict::Denied, None));
}

#[tokio::test]
async fn where_something_is_refused_no_server_hears_of_a_client_that_has_not_spoken() {
    let limits = Limits { header_timeout: Duration::from_millis(600), ..Limits::default() };
    let rig = Rig::with(server_names(&["*.example"]), Protocol::Tls, limits).await;
    let mut client = rig.client().await;
    let error = patiently(client.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let nobody = tokio::time::timeout(Duration::from_millis(1), rig.upstream.accept()).await;
    assert!(nobody.is_err(), "a connection to the server was made");
    assert_eq!(rig.counters.timeouts.get(), 1);
}
