//! Our drop reasons in the numbers that Hubble's clients know.
//!
//! Where no number says the same, the nearest one is used; `FlowDetail.drop_reason` has our own name.

use super::pb::flow::DropReason as Wire;
use crate::model::DropReason;

pub fn to_wire(reason: DropReason) -> Wire {
    match reason {
        DropReason::InvalidSourceMac =>
        {
            #[allow(deprecated, reason = "deprecated in Cilium, where no drop has it any more")]
            Wire::InvalidSourceMac
        }
        DropReason::InvalidSourceIp => Wire::InvalidSourceIp,
        DropReason::PolicyDenied
        | DropReason::ProxyDenied
        | DropReason::SniDenied
        | DropReason::DnsDenied => Wire::PolicyDenied,
        DropReason::InvalidPacket | DropReason::FragOverlap => Wire::InvalidPacketDropped,
        DropReason::CtTruncated => Wire::CtTruncatedOrInvalidHeader,
        DropReason::CtUnknownProto => Wire::CtUnknownL4Protocol,
        DropReason::UnsupportedL3 => Wire::UnsupportedL3Protocol,
        DropReason::UnknownL4 => Wire::UnknownL4Protocol,
        DropReason::Unroutable => Wire::StaleOrUnroutableIp,
        DropReason::CtFull => Wire::CtMapInsertionFailed,
        DropReason::InvalidExtensionHeader => Wire::InvalidIpv6ExtensionHeader,
        DropReason::FragUnsupported | DropReason::FragNeeded => Wire::IpFragmentationNotSupported,
        DropReason::NoServiceBackend => Wire::ServiceBackendNotFound,
        DropReason::NoTunnelEndpoint => Wire::NoTunnelOrEncapsulationEndpoint,
        DropReason::NatNoMapping => Wire::NoMappingForNatMasquerade,
        DropReason::NatUnsupportedProto => Wire::UnsupportedProtocolForNatMasquerade,
        DropReason::FibFailed => Wire::FibLookupFailed,
        DropReason::ProxyNotFound => Wire::SocketLookupFailed,
        DropReason::PolicyDeny => Wire::PolicyDeny,
        DropReason::VlanFiltered => Wire::VlanFiltered,
        DropReason::UnknownEndpoint => Wire::NoConfigurationAvailableToPerformPolicyDecision,
        DropReason::TtlExceeded => Wire::TtlExceeded,
        DropReason::FragNoFirst => Wire::FirstLogicalDatagramFragmentNotFound,
        DropReason::InvalidTunnelSource => Wire::UnknownSender,
        DropReason::UnknownIdentity | DropReason::IdentityNotLearned => Wire::InvalidIdentity,
        DropReason::EndpointNotReady => Wire::DropEpNotReady,
        DropReason::Internal => Wire::Unknown,
    }
}

/// Those of ours that are sent as this number.
pub fn from_wire(wire: Wire) -> impl Iterator<Item = DropReason> {
    DropReason::ALL.iter().copied().filter(move |reason| to_wire(*reason) == wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_have_equal_numbers() {
        for reason in DropReason::ALL {
            if let Some(wire) = Wire::from_str_name(reason.name()) {
                assert_eq!(to_wire(*reason), wire, "{}", reason.name());
            }
        }
    }

    #[test]
    fn every_reason_is_found_by_its_number() {
        for reason in DropReason::ALL {
            assert!(from_wire(to_wire(*reason)).any(|found| found == *reason), "{}", reason.name());
        }
    }
}
