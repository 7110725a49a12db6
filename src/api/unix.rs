//! A unix socket that only root (and the group that owns its directory) can reach.
//!
//! The directory is created 0700 and the socket 0600 before anybody can connect: it is bound under
//! a temporary name, restricted, and then renamed over whatever stale socket is there.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A socket could not be opened; says where.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path}: another agent answers on this socket", path = .0.display())]
    InUse(PathBuf),
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Binds `path`, replacing a socket that nobody answers on.
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SocketError::Io { path, source }
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.exists() {
        std::fs::create_dir_all(directory).map_err(error(directory))?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(error(directory))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(SocketError::InUse(path.to_path_buf()));
    }
    let temporary = path.with_extension(format!("sock.{}", std::process::id()));
    if temporary.exists() {
        std::fs::remove_file(&temporary).map_err(error(&temporary))?;
    }
    let listener = UnixListener::bind(&temporary).map_err(error(&temporary))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .map_err(error(&temporary))?;
    std::fs::rename(&temporary, path).map_err(error(path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        drop(bind(&path).await.unwrap());
        let listener = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let refused = bind(&path).await;
        assert!(matches!(refused, Err(SocketError::InUse(_))));
        drop(listener);
    }
}
