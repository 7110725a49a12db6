//! `metadata`: names, namespaces and labels, checked as the API server checks them.

use super::cursor::{Cursor, Fields};
use super::tree::quoted;
use crate::model::{KubeLabels, Workload};

/// What is left of `metadata`.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Empty for cluster scope.
    pub namespace: String,
    pub name: String,
    pub labels: KubeLabels,
    /// The owner with `controller: true`.
    pub controller: Option<Workload>,
}

/// Where a kind lives, and so which namespace its objects have.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    Cluster,
    /// With the namespace of objects that name none.
    Namespaced {
        default: &'a str,
    },
}

/// Reads `metadata` of an object.
pub fn read(fields: &Fields<'_>, scope: Scope<'_>) -> Option<Meta> {
    fields.require("metadata")?.object(|meta| {
        meta.accept(&[
            "generateName",
            "selfLink",
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "finalizers",
            "managedFields",
        ]);
        let name = meta.require("name").and_then(|field| checked(&field, "a name", subdomain));
        let namespace = match (scope, meta.get("namespace")) {
            (Scope::Cluster, None) => Some(""),
            (Scope::Cluster, Some(field)) => {
                field.error("objects of this kind belong to the cluster, not to a namespace");
                None
            }
            (Scope::Namespaced { default }, None) => Some(default),
            (Scope::Namespaced { .. }, Some(field)) => checked(&field, "a namespace name", dns_label),
        };
        if let Some(annotations) = meta.get("annotations") {
            annotations.entries().into_iter().flatten().for_each(|(_, value)| {
                value.string();
            });
        }
        let labels = meta.get("labels").map(|field| labels(&field)).unwrap_or_default();
        let controller =
            meta.list("ownerReferences").iter().filter_map(|owner| owner.object(controller)?).next();
        Some(Meta { namespace: namespace?.to_owned(), name: name?.to_owned(), labels, controller })
    })?
}

/// Kind and name of an owner, if it is the one that manages the object.
fn controller(owner: &Fields<'_>) -> Option<Workload> {
    owner.accept_all();
    let text = |name| owner.get(name).and_then(|field| field.string());
    let is_controller = owner.get("controller").and_then(|field| field.boolean()) == Some(true);
    let (kind, name) = (text("kind")?, text("name")?);
    is_controller.then(|| Workload::new(kind, name))
}

/// A mapping of label keys to values. Wrong ones are reported and left out.
pub fn labels(cursor: &Cursor<'_>) -> KubeLabels {
    cursor
        .entries()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            if let Err(why) = label_key(key) {
                value.error(format!("{} is no label key: {why}", quoted(key)));
            }
            let text = checked(&value, "a label value", label_value)?;
            Some((key.to_owned(), text.to_owned()))
        })
        .collect()
}

/// A string that passes a check.
pub fn checked<'a>(
    cursor: &Cursor<'a>,
    what: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Option<&'a str> {
    let text = cursor.string()?;
    match check(text) {
        Ok(()) => Some(text),
        Err(why) => {
            cursor.error(format!("found {}, which is not {what}: {why}", quoted(text)));
            None
        }
    }
}

/// RFC 1123 label: the names of namespaces and Services.
pub fn dns_label(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        _ if bytes.len() > 63 => Err("it has more than 63 characters"),
        (Some(first), Some(last)) if lower_alphanumeric(*first) && lower_alphanumeric(*last) => {
            if bytes.iter().all(|byte| lower_alphanumeric(*byte) || *byte == b'-') {
                Ok(())
            } else {
                Err("only a-z, 0-9 and '-' may appear")
            }
        }
        _ => Err("it must start and end with a-z or 0-9"),
    }
}

/// RFC 1123 subdomain: the names of most objects.
pub fn subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() > 253 {
        return Err("it has more than 253 characters");
    }
    let part = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|byte| lower_alphanumeric(*byte) || *byte == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    if text.split('.').all(part) {
        Ok(())
    } else {
        Err("it must be parts of a-z, 0-9 and '-', separated by dots, that start and end with a-z or 0-9")
    }
}

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[prefix/]name`.
pub fn label_key(text: &str) -> Result<(), &'static str> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            subdomain(prefix).map_err(|_| "its prefix (before the '/') must be a DNS subdomain")?;
            name
        }
        None => text,
    };
    if name.is_empty() { Err("its name is empty") } else { label_value(name) }
}

/// At most 63 of `A-Za-z0-9-_.`, alphanumeric at both ends; may be empty.
pub fn label_value(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    if bytes.len() > 63 {
        return Err("it has more than 63 characters");
    }
    let ends_fit = [bytes.first(), bytes.last()].into_iter().flatten().all(u8::is_ascii_alphanumeric);
    if ends_fit && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)) {
        Ok(())
    } else {
        Err("only A-Z, a-z, 0-9, '-', '_' and '.' may appear, and a letter or digit must start and end it")
    }
}

/// A port name (IANA service name, RFC 6335, section 5.1).
pub fn port_name(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    if !(1..=15).contains(&bytes.len()) {
        Err("it must have 1 to 15 characters")
    } else if !bytes.iter().all(|byte| lower_alphanumeric(*byte) || *byte == b'-') {
        Err("only a-z, 0-9 and '-' may appear")
    } else if !bytes.iter().any(u8::is_ascii_lowercase) {
        Err("it needs a letter (a port number is written without quotes)")
    } else if text.starts_with('-') || text.ends_with('-') || text.contains("--") {
        Err("it may not start or end with '-' or contain '--'")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rfc_1123() {
        assert!(dns_label("shop-1").is_ok());
        for bad in ["", "Shop", "-a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad:?}");
        }
        assert!(subdomain("a.b-c.d").is_ok());
        for bad in ["", "a..b", ".a", "a.", "a.-b", "A", &"a".repeat(254)] {
            assert!(subdomain(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn label_keys_and_values_follow_the_api_server() {
        for good in ["app", "app.kubernetes.io/name", "A_b-C.d", "1"] {
            assert!(label_key(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a b", "k8s:app", "UPPER.io/a"] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok());
        assert!(label_value("v1.2_x").is_ok());
        for bad in ["a/b", "-a", "a.", "ü", &"a".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_names_are_iana_service_names() {
        for good in ["http", "a", "x-1", "80a"] {
            assert!(port_name(good).is_ok(), "{good}");
        }
        for bad in ["", "80", "HTTP", "-a", "a--b", "a-", "abcdefghijklmnop"] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }
}
