//! Running what blocks (SQLite) away from the threads that serve connections.

/// Runs `work` on a thread for blocking work. A panic there goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is only cancelled when the runtime shuts down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
