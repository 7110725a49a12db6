//! What agents are told, and its form on the wire.
//!
//! An [`Update`] is one transaction. On the wire it is cut into events of bounded size; the receiver
//! puts them together again ([`Assembler`]) and acts on whole updates alone.

use std::net::IpAddr;
use std::sync::Arc;

use super::proto;
use crate::model::{Identity, Kind, Labels, ObjectRef};

/// Events are cut when their content passes this many bytes; a single object may be larger.
pub(super) const PART_BYTES: usize = 512 * 1024;
/// No single message may be larger, on either side.
pub(super) const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// A whole update may not be larger: the bound of what a client collects.
const UPDATE_BYTES: usize = 1024 * 1024 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateKind {
    /// Replaces everything.
    Snapshot,
    /// Objects: what happened since the revision that was reached before. Identities and nodes:
    /// everything.
    Resumed,
    /// What one transaction changed.
    #[default]
    Change,
}

/// A joined node, as far as others need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// An object with the document that holds it (and maybe others, which share the allocation).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestObject {
    pub reference: ObjectRef,
    pub manifest: Arc<str>,
}

/// One transaction of the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    pub kind: UpdateKind,
    /// Revision of the objects after the update.
    pub revision: u64,
    /// The history that the revision belongs to.
    pub epoch: Arc<str>,
    pub upserts: Vec<ManifestObject>,
    pub deletes: Vec<ObjectRef>,
    pub identities: Vec<(Labels, Identity)>,
    pub removed_identities: Vec<Identity>,
    pub nodes: Vec<Peer>,
    pub removed_nodes: Vec<String>,
}

/// The other side does not keep to the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's event is not understood: {0}")]
pub struct ProtocolError(pub String);

fn wrong(what: &str, detail: impl std::fmt::Debug) -> ProtocolError {
    ProtocolError(format!("{what} {detail:?}"))
}

pub(super) fn label_set(labels: &Labels) -> proto::LabelSet {
    proto::LabelSet { labels: labels.iter().map(ToString::to_string).collect() }
}

pub(super) fn parse_labels(set: &proto::LabelSet) -> Result<Labels, ProtocolError> {
    set.labels.iter().map(|label| label.parse().map_err(|_| wrong("label", label))).collect()
}

pub(super) fn parse_addresses(texts: &[String]) -> Result<Vec<IpAddr>, ProtocolError> {
    texts.iter().map(|text| text.parse().map_err(|_| wrong("address", text))).collect()
}

fn object_key(reference: &ObjectRef) -> proto::ObjectKey {
    proto::ObjectKey {
        kind: reference.kind.to_string(),
        namespace: reference.namespace.to_string(),
        name: reference.name.to_string(),
    }
}

fn parse_key(key: Option<proto::ObjectKey>) -> Result<ObjectRef, ProtocolError> {
    let key = key.ok_or_else(|| wrong("object", "without a key"))?;
    // A kind that this release does not know could be a policy: leaving it out could open a hole.
    let kind: Kind = serde_json::from_value(serde_json::Value::from(key.kind.as_str()))
        .map_err(|_| wrong("kind", &key.kind))?;
    Ok(ObjectRef::new(kind, &key.namespace, &key.name))
}

/// Cuts an update into events of about `part_bytes`.
pub(super) fn encode(update: &Update, part_bytes: usize) -> Vec<proto::Event> {
    let mut parts = Parts { update, part_bytes, done: Vec::new(), current: blank(update), bytes: 0 };
    let mut shared: Option<(*const u8, usize, u32)> = None;
    for object in &update.upserts {
        let (at, part) = (object.manifest.as_ptr(), parts.done.len());
        let manifest = match shared {
            Some((pointer, in_part, index)) if pointer == at && in_part == part => index,
            _ => {
                parts.bytes += object.manifest.len();
                parts.current.manifests.push(object.manifest.to_string());
                // A part is cut after 512 KiB, so it never holds 2^32 manifests.
                let index = u32::try_from(parts.current.manifests.len() - 1).unwrap_or(u32::MAX);
                shared = Some((at, part, index));
                index
            }
        };
        let object = Some(object_key(&object.reference));
        parts.current.upserts.push(proto::Upsert { object, manifest });
        parts.added(64);
    }
    for reference in &update.deletes {
        parts.current.deletes.push(object_key(reference));
        parts.added(64);
    }
    for (labels, id) in &update.identities {
        let labels = label_set(labels);
        let bytes = labels.labels.iter().map(|label| label.len() + 2).sum();
        parts.current.identities.push(proto::Assignment { id: id.0, labels: Some(labels) });
        parts.added(bytes);
    }
    for id in &update.removed_identities {
        parts.current.removed_identities.push(id.0);
        parts.added(4);
    }
    for peer in &update.nodes {
        let addresses = peer.addresses.iter().map(ToString::to_string).collect();
        parts.current.nodes.push(proto::Peer { name: peer.name.clone(), addresses });
        parts.added(128);
    }
    for name in &update.removed_nodes {
        parts.current.removed_nodes.push(name.clone());
        parts.added(name.len());
    }
    parts.current.more = false;
    parts.done.push(parts.current);
    parts.done
}

struct Parts<'a> {
    update: &'a Update,
    part_bytes: usize,
    done: Vec<proto::Event>,
    current: proto::Event,
    bytes: usize,
}

impl Parts<'_> {
    fn added(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= self.part_bytes {
            self.done.push(std::mem::replace(&mut self.current, blank(self.update)));
            self.bytes = 0;
        }
    }
}

fn blank(update: &Update) -> proto::Event {
    let kind = match update.kind {
        UpdateKind::Snapshot => proto::event::Kind::Snapshot,
        UpdateKind::Resumed => proto::event::Kind::Resumed,
        UpdateKind::Change => proto::event::Kind::Change,
    };
    proto::Event {
        kind: kind.into(),
        revision: update.revision,
        epoch: update.epoch.to_string(),
        more: true,
        ..proto::Event::default()
    }
}

/// Puts events together. After an error the stream is of no use any more.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    update: Option<Update>,
    bytes: usize,
}

impl Assembler {
    /// Takes the next event; returns the update when it was the last of one.
    pub(super) fn push(&mut self, event: proto::Event) -> Result<Option<Update>, ProtocolError> {
        let kind = match event.kind() {
            proto::event::Kind::Snapshot => UpdateKind::Snapshot,
            proto::event::Kind::Resumed => UpdateKind::Resumed,
            proto::event::Kind::Change => UpdateKind::Change,
            proto::event::Kind::Unspecified => return Err(wrong("kind of event", event.kind)),
        };
        self.bytes += prost::Message::encoded_len(&event);
        if self.bytes > UPDATE_BYTES {
            return Err(wrong("update of bytes", self.bytes));
        }
        let update = self.update.get_or_insert_with(|| Update {
            kind,
            revision: event.revision,
            epoch: event.epoch.as_str().into(),
            ..Update::default()
        });
        if update.kind != kind || update.revision != event.revision || *update.epoch != *event.epoch {
            return Err(wrong("part of another update, revision", event.revision));
        }
        let manifests: Vec<Arc<str>> = event.manifests.into_iter().map(Arc::from).collect();
        for upsert in event.upserts {
            let index = upsert.manifest as usize;
            let manifest = manifests.get(index).ok_or_else(|| wrong("manifest number", index))?.clone();
            update.upserts.push(ManifestObject { reference: parse_key(upsert.object)?, manifest });
        }
        for key in event.deletes {
            update.deletes.push(parse_key(Some(key))?);
        }
        for assignment in event.identities {
            let id = Identity(assignment.id);
            let labels = assignment.labels.as_ref().map(parse_labels).transpose()?;
            match labels {
                Some(labels) if id.is_cluster_scope() && !labels.is_empty() => {
                    update.identities.push((labels, id));
                }
                _ => return Err(wrong("assignment of identity", assignment.id)),
            }
        }
        update.removed_identities.extend(event.removed_identities.into_iter().map(Identity));
        for peer in event.nodes {
            update.nodes.push(Peer { addresses: parse_addresses(&peer.addresses)?, name: peer.name });
        }
        update.removed_nodes.extend(event.removed_nodes);
        if event.more {
            return Ok(None);
        }
        self.bytes = 0;
        Ok(self.update.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Label;

    fn update() -> impl Strategy<Value = Update> {
        let name = "[a-z]{1,8}";
        let upserts =
            prop::collection::vec((name, prop::collection::vec(name, 1..4)), 0..6).prop_map(|lists| {
                let mut objects = Vec::new();
                for (text, names) in lists {
                    let manifest: Arc<str> = text.into();
                    objects.extend(names.iter().map(|name| ManifestObject {
                        reference: ObjectRef::new(Kind::NetworkPolicy, "shop", name),
                        manifest: manifest.clone(),
                    }));
                }
                objects
            });
        let labels = prop::collection::vec((name, "[a-z=:]{0,4}"), 1..4)
            .prop_map(|pairs| pairs.iter().map(|(key, value)| Label::k8s(key, value)).collect::<Labels>());
        let identities = prop::collection::vec((labels, (256u32..65536).prop_map(Identity)), 0..6);
        let deletes = prop::collection::vec(name, 0..4).prop_map(|names| {
            names.iter().map(|name| ObjectRef::new(Kind::Namespace, "", name)).collect::<Vec<_>>()
        });
        let peers = prop::collection::vec((name, prop::collection::vec(any::<IpAddr>(), 0..3)), 0..3)
            .prop_map(|peers| {
                peers.into_iter().map(|(name, addresses)| Peer { name, addresses }).collect::<Vec<_>>()
            });
        (0usize..3, any::<u64>(), upserts, deletes, identities, peers, prop::collection::vec(name, 0..3))
            .prop_map(|(kind, revision, upserts, deletes, identities, nodes, removed_nodes)| Update {
                kind: [UpdateKind::Snapshot, UpdateKind::Resumed, UpdateKind::Change][kind],
                revision,
                epoch: "epoch".into(),
                upserts,
                deletes,
                removed_identities: identities.iter().map(|(_, id)| *id).collect(),
                identities,
                nodes,
                removed_nodes,
            })
    }

    proptest! {
        #[test]
        fn an_update_survives_being_cut_anywhere(update in update(), part_bytes in 1usize..400) {
            let parts = encode(&update, part_bytes);
            let mut assembler = Assembler::default();
            let (last, first) = parts.split_last().unwrap();
            for part in first {
                prop_assert_eq!(assembler.push(part.clone()).unwrap(), None);
            }
            prop_assert_eq!(assembler.push(last.clone()).unwrap(), Some(update));
        }
    }

    #[test]
    fn objects_of_one_document_carry_it_once() {
        let manifest: Arc<str> = "x".repeat(1000).into();
        let upserts = (0..10)
            .map(|n| ManifestObject {
                reference: ObjectRef::new(Kind::Namespace, "", &n.to_string()),
                manifest: manifest.clone(),
            })
            .collect();
        let parts = encode(&Update { upserts, ..Update::default() }, PART_BYTES);
        assert_eq!((parts.len(), parts[0].manifests.len(), parts[0].upserts.len()), (1, 1, 10));
    }

    #[test]
    fn events_that_make_no_sense_are_errors() {
        let event = encode(&Update::default(), PART_BYTES).remove(0);
        let key = proto::ObjectKey { kind: "NetworkPolicy".into(), ..Default::default() };
        let bad = [
            proto::Event { kind: 0, ..event.clone() },
            proto::Event { kind: 99, ..event.clone() },
            proto::Event {
                upserts: vec![proto::Upsert { object: Some(key.clone()), manifest: 0 }],
                ..event.clone()
            },
            proto::Event { deletes: vec![proto::ObjectKey { kind: "New".into(), ..key }], ..event.clone() },
            proto::Event { identities: vec![proto::Assignment { id: 300, labels: None }], ..event.clone() },
            proto::Event {
                identities: vec![proto::Assignment {
                    id: 1,
                    labels: Some(proto::LabelSet { labels: vec!["k8s:a=b".into()] }),
                }],
                ..event.clone()
            },
            proto::Event {
                nodes: vec![proto::Peer { name: "a".into(), addresses: vec!["nowhere".into()] }],
                ..event.clone()
            },
        ];
        for bad in bad {
            assert!(Assembler::default().push(bad.clone()).is_err(), "{bad:?}");
        }
        let mut assembler = Assembler::default();
        assembler.push(proto::Event { more: true, ..event.clone() }).unwrap();
        assert!(assembler.push(proto::Event { revision: 9, ..event }).is_err());
    }
}
