//! Field masks: which members of a flow a client wants.
//!
//! Works on the encoded message: tags that are not wanted are skipped, byte for byte. That is exact at every
//! depth and cheaper than building a message of which most is thrown away.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tonic::Status;

use super::pb;

/// Paths in one mask.
const PATHS: usize = 256;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pb::DESCRIPTORS).expect("the build script wrote valid descriptors")
});

/// Message types by their full names.
pub fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).expect("a message of our own protos")
}

/// Members by number; an empty inner mask is the whole member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(BTreeMap<u32, Mask>);

impl Mask {
    /// `None`: everything is wanted.
    pub fn new(mask: Option<&prost_types::FieldMask>) -> Result<Option<Mask>, Status> {
        let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else { return Ok(None) };
        if mask.paths.len() > PATHS {
            return Err(Status::invalid_argument(format!("field_mask: more than {PATHS} paths")));
        }
        let mut root = Mask::default();
        for path in &mask.paths {
            root.add(path, &descriptor("flow.Flow"))
                .map_err(|what| Status::invalid_argument(format!("field_mask: {path:.100?}: {what}")))?;
        }
        Ok(Some(root))
    }

    fn add(&mut self, path: &str, message: &MessageDescriptor) -> Result<(), &'static str> {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let field = message.get_field_by_name(name).ok_or("no such member")?;
        let number = field.number();
        match rest {
            None => {
                self.0.insert(number, Mask::default());
            }
            Some(rest) => {
                let kind = field.kind();
                let inner = kind.as_message().filter(|_| !field.is_list()).ok_or("it has no members")?;
                // A path to the whole member outweighs one into it.
                if self.0.get(&number).is_some_and(|whole| whole.0.is_empty()) {
                    Mask::default().add(rest, inner)?;
                } else {
                    self.0.entry(number).or_default().add(rest, inner)?;
                }
            }
        }
        Ok(())
    }

    /// The flow with these members only.
    pub fn apply(&self, flow: &pb::flow::Flow) -> pb::flow::Flow {
        let encoded = flow.encode_to_vec();
        let mut kept = Vec::with_capacity(encoded.len());
        self.copy(&encoded, &mut kept);
        // What was encoded a moment ago decodes.
        pb::flow::Flow::decode(kept.as_slice()).unwrap_or_default()
    }

    fn copy(&self, mut message: &[u8], out: &mut Vec<u8>) {
        while !message.is_empty() {
            let whole = message;
            let Some((number, value)) = field(&mut message) else { return };
            let Some(inner) = self.0.get(&number) else { continue };
            match value {
                Some(value) if !inner.0.is_empty() => {
                    let mut kept = Vec::with_capacity(value.len());
                    inner.copy(value, &mut kept);
                    put_varint(u64::from(number) << 3 | 2, out);
                    put_varint(kept.len() as u64, out);
                    out.extend_from_slice(&kept);
                }
                _ => out.extend_from_slice(&whole[..whole.len() - message.len()]),
            }
        }
    }
}

/// The next field's number, and its bytes if it has a length; the rest stays in `message`.
fn field<'a>(message: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let tag = varint(message)?;
    let number = u32::try_from(tag >> 3).ok()?;
    let value = match tag & 7 {
        0 => varint(message).map(|_| None),
        1 => take(message, 8).map(|_| None),
        2 => {
            let length = usize::try_from(varint(message)?).ok()?;
            take(message, length).map(Some)
        }
        5 => take(message, 4).map(|_| None),
        _ => None,
    }?;
    Some((number, value))
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(head)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;

    fn mask(paths: &[&str]) -> Result<Option<Mask>, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Mask::new(Some(&prost_types::FieldMask { paths }))
    }

    #[test]
    fn only_what_is_named_is_left() {
        let flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
        let mask =
            mask(&["time", "source.pod_name", "l4.TCP.destination_port", "is_reply"]).unwrap().unwrap();
        let kept = mask.apply(&flow);
        assert_eq!(kept.time, flow.time);
        let source = kept.source.unwrap();
        assert_eq!((source.pod_name.as_str(), source.namespace.as_str()), ("frontend", ""));
        let Some(pb::flow::layer4::Protocol::Tcp(tcp)) = kept.l4.unwrap().protocol else { panic!("no TCP") };
        assert_eq!((tcp.source_port, tcp.destination_port), (0, 80));
        assert!(kept.destination.is_none() && kept.ip.is_none() && kept.is_reply == Some(false));
    }

    #[test]
    fn the_whole_member_outweighs_a_part_of_it() {
        for paths in [["source", "source.pod_name"], ["source.pod_name", "source"]] {
            let flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
            assert_eq!(mask(&paths).unwrap().unwrap().apply(&flow).source, flow.source, "{paths:?}");
        }
    }

    #[test]
    fn paths_to_nothing_are_refused() {
        for path in ["", "sauce", "source.pod", "time.seconds.x", "source.labels.x", "source..", "."] {
            assert!(mask(&[path]).is_err(), "{path:?}");
        }
        assert_eq!(mask(&[]).unwrap(), None);
        assert!(mask(&vec!["time"; PATHS + 1]).is_err());
    }
}
