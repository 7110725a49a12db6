//! The flow API beyond its unix socket: where, and who may read.

use std::net::SocketAddr;

use super::{AgentSettings, Problems, Switch};
use crate::api::hubble::tls::{Clients, TlsFiles};

/// The flow API on TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowApi {
    pub listen: SocketAddr,
    pub security: FlowApiSecurity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowApiSecurity {
    /// On loopback, and asked for.
    Plain,
    Files(TlsFiles),
    /// What the server gave this node; clients need a certificate of the same authority.
    NodeCertificate,
}

/// No flow leaves the machine in plain text or to a stranger unless that is asked for in so many words.
pub(super) fn resolve(p: &mut Problems, settings: &AgentSettings) -> Option<FlowApi> {
    let off = &[("off", Switch::Off), ("on", Switch::On), ("true", Switch::On), ("false", Switch::Off)];
    let plain = p.choice("hubble-disable-tls", settings.hubble_disable_tls.as_deref(), off);
    let anyone = p.choice(
        "hubble-tls-clients",
        settings.hubble_tls_clients.as_deref(),
        &[("verified", Switch::Off), ("anyone", Switch::On)],
    );
    let text = settings.hubble_listen_address.as_deref()?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        p.0.push(format!("hubble-listen-address: {text:?}: expected IP:PORT, such as 0.0.0.0:4245"));
        return None;
    };
    let files = (&settings.hubble_tls_cert_file, &settings.hubble_tls_key_file);
    let security = match (plain, files, &settings.hubble_tls_client_ca_file) {
        (Switch::On, (None, None), None) if listen.ip().is_loopback() => FlowApiSecurity::Plain,
        (Switch::On, (None, None), None) => {
            p.0.push(format!("hubble-disable-tls: {listen} is not a loopback address"));
            return None;
        }
        (Switch::On, ..) => {
            p.0.push("hubble-disable-tls: not together with hubble-tls-*-file".into());
            return None;
        }
        (Switch::Off, (Some(certificate), Some(key)), authority) => {
            let clients = match (authority, anyone) {
                (Some(authority), Switch::Off) => Clients::SignedBy(authority.clone()),
                (None, Switch::On) => Clients::Anyone,
                (Some(_), Switch::On) => {
                    p.0.push("hubble-tls-clients: anyone, and hubble-tls-client-ca-file: one of them".into());
                    return None;
                }
                (None, Switch::Off) => {
                    p.0.push(
                        "hubble-tls-client-ca-file is needed (or hubble-tls-clients: anyone, which shows flows to \
                         everybody who can connect)"
                            .into(),
                    );
                    return None;
                }
            };
            FlowApiSecurity::Files(TlsFiles { certificate: certificate.clone(), key: key.clone(), clients })
        }
        (Switch::Off, (None, None), None) if settings.server.is_some() => FlowApiSecurity::NodeCertificate,
        (Switch::Off, ..) => {
            p.0.push(
                "hubble-listen-address needs hubble-tls-cert-file and hubble-tls-key-file (with a server, the \
                 node's own certificate is used), or hubble-disable-tls on a loopback address"
                    .into(),
            );
            return None;
        }
    };
    Some(FlowApi { listen, security })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentConfig;

    #[test]
    fn flows_are_not_shown_to_strangers_or_in_plain_text_by_accident() {
        let settings = |edit: fn(&mut AgentSettings)| {
            let mut settings = AgentSettings {
                hubble_listen_address: Some("192.0.2.1:4245".into()),
                ..AgentSettings::default()
            };
            edit(&mut settings);
            AgentConfig::resolve(settings, "node1").map(|config| config.flow_api.unwrap().security)
        };
        let files = |s: &mut AgentSettings| {
            s.hubble_tls_cert_file = Some("/c".into());
            s.hubble_tls_key_file = Some("/k".into());
        };
        assert!(settings(|_| {}).is_err());
        assert!(settings(|s| s.hubble_disable_tls = Some("on".into())).is_err());
        assert!(settings(files).is_err());
        let plain = settings(|s| {
            s.hubble_listen_address = Some("127.0.0.1:4245".into());
            s.hubble_disable_tls = Some("on".into());
        });
        assert_eq!(plain.unwrap(), FlowApiSecurity::Plain);
        let node = settings(|s| s.server = Some("https://s:7443".into()));
        assert_eq!(node.unwrap(), FlowApiSecurity::NodeCertificate);
        let mutual = settings(|s| {
            s.hubble_tls_cert_file = Some("/c".into());
            s.hubble_tls_key_file = Some("/k".into());
            s.hubble_tls_client_ca_file = Some("/ca".into());
        });
        let Ok(FlowApiSecurity::Files(files)) = mutual else { panic!("{mutual:?}") };
        assert_eq!(files.clients, Clients::SignedBy("/ca".into()));
    }
}
