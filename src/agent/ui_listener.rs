//! Opens the web UI. What keeps it from opening is said in `status`; enforcement goes on without it.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::core::CoreHandle;
use super::hub::Hub;
use super::ui::AgentUi;
use crate::api::ui::guard::{Guard, Token, Transport};
use crate::api::ui::{self, listen};
use crate::config::UiConfig;

/// Binds, reports where, and serves in the background.
pub async fn start(config: UiConfig, core: CoreHandle, hub: Arc<Hub>) {
    let url = config.url();
    let state = match open(&config).await {
        Ok((listener, tls, guard)) => {
            let router = ui::router(Arc::new(AgentUi { core: core.clone(), hub }), guard);
            tokio::spawn(listen::serve(listener, tls, router));
            tracing::info!(url, "the web UI is open");
            Ok(url)
        }
        Err(error) => {
            let problem = format!("{error:#}");
            tracing::warn!(problem, "the web UI is not open");
            Err(problem)
        }
    };
    // A core that is gone has nobody to tell.
    core.call(move |core| core.ui = Some(state)).await.ok();
}

async fn open(config: &UiConfig) -> anyhow::Result<(TcpListener, Option<TlsAcceptor>, Guard)> {
    let tls = match &config.tls {
        None => None,
        Some(tls) => Some(listen::tls(&tls.certificate, &tls.key, tls.client_ca.as_deref())?),
    };
    let token = match &config.token_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Some(Token::new(&text).with_context(|| {
                format!("{}: the token is too short: 16 characters at least", path.display())
            })?)
        }
    };
    let guard = Guard {
        transport: if tls.is_some() { Transport::Tls } else { Transport::Plain },
        token,
        names: config.host_names.clone(),
    };
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    Ok((listener, tls, guard))
}
