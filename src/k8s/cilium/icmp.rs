//! `icmps`: ICMP and ICMPv6 types by number or by name (IANA registries, as upstream spells them).

use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::near::nearest;
use crate::k8s::tree::{Value, quoted};
use crate::model::Family;
use crate::policy::rule::PortMatch;

/// Most fields in one element (upstream).
const MAX_FIELDS: usize = 40;

const V4_TYPES: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const V6_TYPES: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequestMessage", 144),
    ("HomeAgentAddressDiscoveryReplyMessage", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// The types of all elements; `None` where the rule has no `icmps` (an empty list is none).
pub(super) fn read(fields: &Fields<'_>) -> Option<Vec<PortMatch>> {
    let cursor = fields.get("icmps")?;
    let elements = cursor.list()?;
    if elements.is_empty() {
        cursor.warning("an empty list is the same as no icmps");
        return None;
    }
    let mut types = Vec::new();
    for element in elements {
        element.object(|fields| {
            let list = fields.list("fields");
            if list.is_empty() {
                element.warning("an element without fields matches nothing");
            }
            if list.len() > MAX_FIELDS {
                element.error(format!(
                    "found {} fields, at most {MAX_FIELDS} may stand in one element",
                    list.len()
                ));
            }
            types.extend(list.iter().filter_map(|field| field.object(read_type).flatten()));
        });
    }
    types.sort_unstable();
    types.dedup();
    Some(types)
}

fn read_type(fields: &Fields<'_>) -> Option<PortMatch> {
    let family = match fields.get("family") {
        Some(family) => family.one_of(&[("IPv4", Family::IPv4), ("IPv6", Family::IPv6)]),
        None => Some(Family::IPv4),
    };
    let cursor = fields.require("type")?;
    let family = family?;
    let number = match &cursor.node.value {
        // Upstream takes a number in quotes, too.
        Value::Text(text) => match text.text.parse::<u8>() {
            Ok(number) if text.text == number.to_string() => Some(number),
            _ => named(&cursor, &text.text, family),
        },
        _ => cursor.integer(0..=255).and_then(|number| u8::try_from(number).ok()),
    };
    Some(PortMatch::IcmpType(family, number?))
}

fn named(cursor: &Cursor<'_>, text: &str, family: Family) -> Option<u8> {
    let types = match family {
        Family::IPv4 => V4_TYPES,
        Family::IPv6 => V6_TYPES,
    };
    let number = types.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    if number.is_none() {
        let hint = nearest(text, types.iter().map(|(name, _)| *name))
            .map(|name| format!("; did you mean {name}?"))
            .unwrap_or_default();
        cursor.error(format!(
            "found {}, expected a number from 0 to 255 or the name of a type of {family:?}{hint}",
            quoted(text)
        ));
    }
    number
}
