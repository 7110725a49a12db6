//! Opens the web UI. What keeps it from opening is said in `status`; enforcement goes on without it.

use std::sync::Arc;

use super::core::CoreHandle;
use super::hub::Hub;
use super::ui::AgentUi;
use crate::config::UiConfig;

/// Binds, reports where, and serves in the background.
pub async fn start(config: UiConfig, core: CoreHandle, hub: Arc<Hub>) {
    let url = config.url();
    let state = match config.open().await {
        Ok(opened) => {
            tokio::spawn(opened.serve(Arc::new(AgentUi { core: core.clone(), hub })));
            tracing::info!(url, "the web UI is open");
            Ok(url)
        }
        Err(error) => {
            let problem = error.to_string();
            tracing::warn!(problem, "the web UI is not open");
            Err(problem)
        }
    };
    // A core that is gone has nobody to tell.
    core.call(move |core| core.ui = Some(state)).await.ok();
}
