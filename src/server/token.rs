//! The join token: `sluice1.<CA fingerprint>.<secret>`.
//!
//! Both parts are 64 hexadecimal digits. The fingerprint is the SHA-256 of the CA certificate in DER:
//! it authenticates the server to a node that has no other knowledge of it. The secret, 256 random
//! bits, authenticates the node to the server, which keeps only its SHA-256.

use std::fmt;
use std::str::FromStr;

use ring::rand::SecureRandom;
use ring::{digest, hmac};

const PREFIX: &str = "sluice1";

/// SHA-256.
pub type Digest = [u8; 32];

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    digest
}

/// A token. Only [`JoinToken::reveal`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub(super) authority: Digest,
    pub(super) secret: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.…)", hex(&self.authority))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text itself is never part of the message.
    #[error("not a join token: expected sluice1.<64 hex digits>.<64 hex digits>")]
    Format,
    #[error("the system's random number generator failed")]
    Random,
}

impl JoinToken {
    /// A new secret for this CA.
    ///
    /// # Errors
    ///
    /// [`TokenError::Random`].
    pub(super) fn generate(authority: Digest) -> Result<JoinToken, TokenError> {
        let mut secret = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut secret).map_err(|_| TokenError::Random)?;
        Ok(JoinToken { authority, secret })
    }

    /// The whole token, for the file that an operator copies.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}", hex(&self.authority), hex(&self.secret))
    }

    /// What the server stores.
    pub(super) fn secret_digest(&self) -> Digest {
        sha256(&self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let mut parts = text.trim().split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(PREFIX), Some(authority), Some(secret), None) => {
                Ok(JoinToken { authority: unhex(authority)?, secret: unhex(secret)? })
            }
            _ => Err(TokenError::Format),
        }
    }
}

/// Whether `secret` is the one whose digest is stored, in a time that does not depend on where they
/// differ: both sides are authenticated under a key that is drawn for this one comparison.
pub(super) fn secret_matches(secret: &[u8], stored: &Digest) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()) else {
        return false;
    };
    hmac::verify(&key, &sha256(secret), hmac::sign(&key, stored).as_ref()).is_ok()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Digest, TokenError> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(TokenError::Format);
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| TokenError::Format)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| TokenError::Format)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let token = JoinToken::generate([7; 32]).unwrap();
        assert_eq!(format!("{}\n", token.reveal()).parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex(&token.secret)));
        assert_ne!(JoinToken::generate([7; 32]).unwrap(), token);
    }

    #[test]
    fn other_texts_are_refused() {
        let good = JoinToken::generate([7; 32]).unwrap().reveal();
        for bad in [
            String::new(),
            good.replace("sluice1", "sluice2"),
            format!("{good}.more"),
            format!("{good}00"),
            good[..good.len() - 2].to_owned(),
            format!("{}+f", &good[..good.len() - 2]),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError::Format), "{bad}");
        }
    }

    #[test]
    fn only_the_right_secret_matches() {
        let token = JoinToken::generate([7; 32]).unwrap();
        let stored = token.secret_digest();
        assert!(secret_matches(&token.secret, &stored));
        let mut wrong = token.secret;
        wrong[31] ^= 1;
        assert!(!secret_matches(&wrong, &stored));
        assert!(!secret_matches(&[], &stored));
        assert!(!secret_matches(&stored, &stored));
    }
}
