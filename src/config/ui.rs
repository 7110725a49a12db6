//! Where the web UI listens and who may use it: open on loopback alone.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::AgentSettings;

const DEFAULT: &str = "127.0.0.1:4246";

/// Validated: an address beyond loopback has TLS, and a token or client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiConfig {
    pub listen: SocketAddr,
    /// Names of ours besides addresses and `localhost`.
    pub host_names: Vec<String>,
    pub token_file: Option<PathBuf>,
    pub tls: Option<UiTls>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

impl UiConfig {
    /// What a browser on this machine is told to open.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.host_names.first() {
            Some(name) => format!("{scheme}://{name}:{}/", self.listen.port()),
            None => format!("{scheme}://{}/", self.listen),
        }
    }
}

/// `None` when it is off, or when something is wrong (said in `problems`).
pub fn resolve(settings: &AgentSettings, problems: &mut Vec<String>) -> Option<UiConfig> {
    let text = settings.ui_listen.as_deref().unwrap_or(DEFAULT);
    let tls = match (&settings.ui_cert, &settings.ui_key) {
        (Some(certificate), Some(key)) => Some(UiTls {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: settings.ui_client_ca.clone(),
        }),
        (None, None) => None,
        _ => {
            problems.push("ui-cert, ui-key: one is of no use without the other".into());
            return None;
        }
    };
    if tls.is_none() && settings.ui_client_ca.is_some() {
        problems.push("ui-client-ca: needs ui-cert and ui-key".into());
        return None;
    }
    if text == "off" {
        return None;
    }
    let Ok(listen) = text.parse::<SocketAddr>() else {
        problems.push(format!("ui-listen: {text:?}: expected off, or IP:PORT such as {DEFAULT}"));
        return None;
    };
    if !listen.ip().is_loopback() {
        if tls.is_none() {
            problems.push(format!("ui-listen: {text}: beyond loopback the web UI needs ui-cert and ui-key"));
        }
        if settings.ui_token_file.is_none() && settings.ui_client_ca.is_none() {
            problems.push(format!(
                "ui-listen: {text}: beyond loopback the web UI needs ui-token-file or ui-client-ca"
            ));
        }
    }
    let host_names = settings.ui_host_name.clone().unwrap_or_default();
    for name in &host_names {
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
        if !is_name {
            problems.push(format!("ui-host-name: {name:?}: expected a DNS name"));
        }
    }
    Some(UiConfig { listen, host_names, token_file: settings.ui_token_file.clone(), tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(settings: &AgentSettings) -> Vec<String> {
        let mut problems = Vec::new();
        resolve(settings, &mut problems);
        problems
    }

    #[test]
    fn loopback_is_the_default_and_needs_nothing() {
        let config = resolve(&AgentSettings::default(), &mut Vec::new()).unwrap();
        assert!(config.listen.ip().is_loopback());
        assert_eq!(config.url(), "http://127.0.0.1:4246/");
    }

    #[test]
    fn beyond_loopback_both_tls_and_a_secret_are_needed() {
        let open = AgentSettings { ui_listen: Some("0.0.0.0:4246".into()), ..AgentSettings::default() };
        assert_eq!(problems(&open).len(), 2);
        let tls = AgentSettings { ui_cert: Some("/c".into()), ui_key: Some("/k".into()), ..open.clone() };
        assert_eq!(problems(&tls).len(), 1);
        let token = AgentSettings { ui_token_file: Some("/t".into()), ..tls.clone() };
        assert_eq!(problems(&token), [] as [&str; 0]);
        let mutual = AgentSettings { ui_client_ca: Some("/ca".into()), ..tls };
        assert_eq!(problems(&mutual), [] as [&str; 0]);
        let no_key = AgentSettings { ui_cert: Some("/c".into()), ..open };
        assert_eq!(problems(&no_key).len(), 1);
    }

    #[test]
    fn it_can_be_off() {
        let off = AgentSettings { ui_listen: Some("off".into()), ..AgentSettings::default() };
        assert_eq!((resolve(&off, &mut Vec::new()), problems(&off).len()), (None, 0));
    }
}
