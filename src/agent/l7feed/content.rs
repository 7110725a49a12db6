//! What a document says: a view, as far as the proxies need it.

use crate::cluster::View;
use crate::model::IdentityKind;
use crate::policy::l7::snapshot::{Endpoint, Scope, SecretValue, Sides, Snapshot};
use crate::policy::l7::{HeaderValue, L7Rules};

/// All of it.
pub(super) fn snapshot(view: &View) -> Snapshot {
    let sides = view.engine().l7_sides();
    let secrets = secrets(&sides, view);
    let endpoints = view
        .endpoints()
        .flat_map(|endpoint| {
            let known =
                Endpoint { pod: endpoint.pod.path().into(), identity: endpoint.identity, before: Vec::new() };
            endpoint.addresses.iter().map(move |address| (*address, known.clone()))
        })
        .collect();
    Snapshot {
        revision: view.revision(),
        patterns: view.names().patterns().cloned().collect(),
        scopes: scopes(view),
        node: view.options().node.as_str().into(),
        endpoints,
        sides,
        before: Vec::new(),
        secrets,
    }
}

/// What identities of the world stand for, where names matter at all.
fn scopes(view: &View) -> Vec<Scope> {
    if view.names().patterns().next().is_none() {
        return Vec::new();
    }
    let scopes = view.identities().filter_map(|record| match &record.kind {
        IdentityKind::Cidr(scope) => Some(Scope {
            identity: record.id,
            prefix: scope.prefix,
            ipv6: scope.ipv6,
            patterns: scope.fqdns.clone(),
        }),
        IdentityKind::Labels | IdentityKind::Node { .. } | IdentityKind::AddressClass(_) => None,
    });
    scopes.collect()
}

/// Values of the Secrets that some rule names. One that is not there is left out, and nothing equals it.
fn secrets(sides: &Sides, view: &View) -> Vec<SecretValue> {
    let http = sides.l7.iter().filter_map(|rules| match &**rules {
        L7Rules::Http(rules) => Some(rules),
        L7Rules::Dns(_) | L7Rules::Tls(_) => None,
    });
    let mut found: Vec<SecretValue> = Vec::new();
    for header in http.flatten().flat_map(|rule| &rule.headers) {
        let HeaderValue::Secret { namespace, name, key } = &header.value else { continue };
        let Some(secret) = view.secret(namespace, name) else { continue };
        let value = match key {
            Some(key) => secret.data.get(&**key),
            None if secret.data.len() == 1 => secret.data.values().next(),
            None => None,
        };
        let known =
            |other: &SecretValue| (&other.namespace, &other.name, &other.key) == (namespace, name, key);
        if let Some(value) = value.filter(|_| !found.iter().any(known)) {
            found.push(SecretValue {
                namespace: namespace.clone(),
                name: name.clone(),
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    found
}
