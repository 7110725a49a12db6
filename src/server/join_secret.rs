//! The join token's file and the digest of its secret in the store.
//!
//! The file (`<state-dir>/token`, 0600) is what an operator copies to new nodes, and is the authority
//! where both exist. It may be removed to keep the secret elsewhere: then the digest stays valid.

use std::path::Path;
use std::time::SystemTime;

use super::files::{FileError, read_private, write_private};
use super::token::{Digest, JoinToken, TokenError, secret_matches};
use crate::store::{Store, StoreError};

const NAME: &str = "join";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    Token { path: std::path::PathBuf, source: TokenError },
    #[error(
        "{path}: the token is for another server's CA; remove the file to get a new token",
        path = .0.display()
    )]
    OtherAuthority(std::path::PathBuf),
}

/// Makes sure that there is a token.
pub(super) fn ensure(
    path: &Path,
    store: &Store,
    authority: Digest,
    now: SystemTime,
) -> Result<(), SecretError> {
    let stored = store.token_digest(NAME)?;
    let Some(text) = read_private(path)? else {
        return match stored {
            Some(_) => Ok(()),
            None => rotate(path, store, authority, now),
        };
    };
    let token: JoinToken =
        text.parse().map_err(|source| SecretError::Token { path: path.to_owned(), source })?;
    if token.authority != authority {
        return Err(SecretError::OtherAuthority(path.to_owned()));
    }
    let digest = token.secret_digest();
    if stored != Some(digest) {
        store.put_token_digest(NAME, digest, now)?;
    }
    Ok(())
}

/// A new token; the old one is refused from now on. Nodes that have joined are not affected.
pub(super) fn rotate(
    path: &Path,
    store: &Store,
    authority: Digest,
    now: SystemTime,
) -> Result<(), SecretError> {
    let token = JoinToken::generate(authority)
        .map_err(|source| SecretError::Token { path: path.to_owned(), source })?;
    // If the second step fails, the next start takes the digest from the file.
    write_private(path, &format!("{}\n", token.reveal()))?;
    store.put_token_digest(NAME, token.secret_digest(), now)?;
    Ok(())
}

/// Whether a node has shown the right secret.
pub(super) fn accepts(store: &Store, secret: &[u8]) -> Result<bool, StoreError> {
    Ok(store.token_digest(NAME)?.is_some_and(|digest| secret_matches(secret, &digest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OpenOptions;

    fn token(path: &Path) -> JoinToken {
        read_private(path).unwrap().unwrap().parse().unwrap()
    }

    #[test]
    fn the_token_is_made_once_survives_its_file_and_can_be_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let store = Store::open(&OpenOptions::new(directory.path().join("state.db"))).unwrap();
        let now = SystemTime::UNIX_EPOCH;
        ensure(&path, &store, [1; 32], now).unwrap();
        let first = token(&path);
        assert!(accepts(&store, &first.secret).unwrap());
        ensure(&path, &store, [1; 32], now).unwrap();
        assert_eq!(token(&path), first);

        std::fs::remove_file(&path).unwrap();
        ensure(&path, &store, [1; 32], now).unwrap();
        assert!(!path.exists() && accepts(&store, &first.secret).unwrap());

        rotate(&path, &store, [1; 32], now).unwrap();
        let second = token(&path);
        assert!(accepts(&store, &second.secret).unwrap());
        assert!(!accepts(&store, &first.secret).unwrap());

        write_private(&path, &first.reveal()).unwrap();
        ensure(&path, &store, [1; 32], now).unwrap();
        assert!(accepts(&store, &first.secret).unwrap(), "the file is the authority");
        let error = ensure(&path, &store, [2; 32], now).unwrap_err();
        assert!(matches!(error, SecretError::OtherAuthority(_)), "{error}");
    }
}
