//! Where the web UI listens and who may use it: open on loopback alone.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::AgentSettings;
pub use crate::api::ui::open::{UiConfig, UiTls};

/// Where an agent serves its page.
pub(super) const AGENT_DEFAULT: &str = "127.0.0.1:4246";
/// Where a relay does: it may run beside an agent.
const RELAY_DEFAULT: &str = "127.0.0.1:4247";

/// The settings of a page, not yet validated; those of an agent come from its file, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct UiSettings {
    /// Where the web UI is served: IP:PORT or off [default: 127.0.0.1:4247]
    #[arg(long, env = "SLUICE_RELAY_UI_LISTEN", value_name = "IP:PORT|off")]
    pub ui_listen: Option<String>,
    /// Names, besides addresses and localhost, under which browsers reach the web UI
    #[arg(long, env = "SLUICE_RELAY_UI_HOST_NAME", value_name = "NAME", value_delimiter = ',')]
    pub ui_host_name: Vec<String>,
    /// File with the token that the web UI asks for (16 characters at least)
    #[arg(long, env = "SLUICE_RELAY_UI_TOKEN_FILE", value_name = "FILE")]
    pub ui_token_file: Option<PathBuf>,
    /// Certificate chain of the web UI (PEM); needed where it is not on loopback
    #[arg(long, env = "SLUICE_RELAY_UI_CERT", value_name = "FILE")]
    pub ui_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "SLUICE_RELAY_UI_KEY", value_name = "FILE")]
    pub ui_key: Option<PathBuf>,
    /// Only browsers with a certificate that this CA signed reach the web UI (PEM)
    #[arg(long, env = "SLUICE_RELAY_UI_CLIENT_CA", value_name = "FILE")]
    pub ui_client_ca: Option<PathBuf>,
}

impl UiSettings {
    /// The page of a relay; `None` when it is off.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn of_relay(&self) -> Result<Option<UiConfig>, Vec<String>> {
        let mut problems = Vec::new();
        let config = resolve(self, RELAY_DEFAULT, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }
}

impl AgentSettings {
    pub(super) fn ui(&self) -> UiSettings {
        UiSettings {
            ui_listen: self.ui_listen.clone(),
            ui_host_name: self.ui_host_name.clone().unwrap_or_default(),
            ui_token_file: self.ui_token_file.clone(),
            ui_cert: self.ui_cert.clone(),
            ui_key: self.ui_key.clone(),
            ui_client_ca: self.ui_client_ca.clone(),
        }
    }
}

/// `None` when it is off, or when something is wrong (said in `problems`).
pub(super) fn resolve(settings: &UiSettings, default: &str, problems: &mut Vec<String>) -> Option<UiConfig> {
    let text = settings.ui_listen.as_deref().unwrap_or(default);
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
        problems.push(format!("ui-listen: {text:?}: expected off, or IP:PORT such as {default}"));
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
    for name in &settings.ui_host_name {
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
        if !is_name {
            problems.push(format!("ui-host-name: {name:?}: expected a DNS name"));
        }
    }
    Some(UiConfig {
        listen,
        host_names: settings.ui_host_name.clone(),
        token_file: settings.ui_token_file.clone(),
        tls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(settings: &UiSettings) -> Vec<String> {
        let mut problems = Vec::new();
        resolve(settings, AGENT_DEFAULT, &mut problems);
        problems
    }

    #[test]
    fn loopback_is_the_default_and_needs_nothing() {
        let config = resolve(&UiSettings::default(), AGENT_DEFAULT, &mut Vec::new()).unwrap();
        assert!(config.listen.ip().is_loopback());
        assert_eq!(config.url(), "http://127.0.0.1:4246/");
    }

    #[test]
    fn beyond_loopback_both_tls_and_a_secret_are_needed() {
        let open = UiSettings { ui_listen: Some("0.0.0.0:4246".into()), ..UiSettings::default() };
        assert_eq!(problems(&open).len(), 2);
        let tls = UiSettings { ui_cert: Some("/c".into()), ui_key: Some("/k".into()), ..open.clone() };
        assert_eq!(problems(&tls).len(), 1);
        let token = UiSettings { ui_token_file: Some("/t".into()), ..tls.clone() };
        assert_eq!(problems(&token), [] as [&str; 0]);
        let mutual = UiSettings { ui_client_ca: Some("/ca".into()), ..tls };
        assert_eq!(problems(&mutual), [] as [&str; 0]);
        let no_key = UiSettings { ui_cert: Some("/c".into()), ..open };
        assert_eq!(problems(&no_key).len(), 1);
    }

    #[test]
    fn a_relay_has_a_page_beside_an_agent_s_with_the_same_demands() {
        let config = UiSettings::default().of_relay().unwrap().unwrap();
        assert_eq!(config.url(), "http://127.0.0.1:4247/");
        let open = UiSettings { ui_listen: Some("192.0.2.1:4247".into()), ..UiSettings::default() };
        assert_eq!(open.of_relay().unwrap_err().len(), 2);
    }

    #[test]
    fn it_can_be_off() {
        let off = UiSettings { ui_listen: Some("off".into()), ..UiSettings::default() };
        assert_eq!((resolve(&off, AGENT_DEFAULT, &mut Vec::new()), problems(&off).len()), (None, 0));
    }
}
