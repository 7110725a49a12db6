//! Opens the web UI. What keeps it from opening is said in `status`; enforcement goes on without it.

use std::sync::Arc;

use super::ui::AgentUi;
use crate::config::UiConfig;

/// Binds, reports where, and serves in the background.
pub async fn start(config: UiConfig, shown: Arc<AgentUi>) {
    let url = config.url();
    let state = match config.open().await {
        Ok(opened) => {
            tokio::spawn(opened.serve(Arc::clone(&shown) as _));
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
    shown.core.call(move |core| core.ui = Some(state)).await.ok();
}
