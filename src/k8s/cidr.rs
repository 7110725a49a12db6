//! Prefixes: `10.0.0.0/8`, `2001:db8::/32`.
//!
//! Host bits that are set are cleared with a warning, as upstream does. IPv4 in IPv6 notation is
//! refused: the datapath keeps IPv4 there, so a rule would mean something else than it says.

use std::net::IpAddr;

use ipnet::IpNet;

use super::cursor::Cursor;
use super::tree::quoted;
use crate::policy::lint::Code;
use crate::policy::rule::CidrSet;

/// What a text may be besides a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Prefix,
    /// A single address stands for its full-length prefix (Cilium's `toCIDR`).
    PrefixOrAddress,
}

/// How `except` must lie inside its `cidr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Longer than the cidr (Kubernetes).
    Strictly,
    /// The cidr itself is allowed (Cilium).
    OrEqual,
}

/// A prefix with its host bits cleared.
pub fn prefix(cursor: &Cursor<'_>, form: Form) -> Option<IpNet> {
    let text = cursor.string()?;
    let parsed = match text.parse::<IpNet>() {
        Ok(net) => Some(net),
        Err(_) if form == Form::PrefixOrAddress => text.parse::<IpAddr>().ok().map(IpNet::from),
        Err(_) => None,
    };
    let Some(net) = parsed else {
        cursor
            .error(format!("found {}, expected a prefix such as 10.0.0.0/8 or 2001:db8::/32", quoted(text)));
        return None;
    };
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        cursor.error(format!("found {}, expected the IPv4 prefix without ::ffff:", quoted(text)));
        return None;
    }
    if net.addr() != net.network() {
        cursor.warning(format!("the bits behind the prefix are set; read as {}", net.trunc()));
    }
    Some(net.trunc())
}

/// The `except` list of a `cidr`, sorted.
pub fn except(cidr: Option<IpNet>, list: &[Cursor<'_>], inside: Inside) -> Vec<IpNet> {
    let mut except = Vec::new();
    for cursor in list {
        let Some(net) = prefix(cursor, Form::Prefix) else { continue };
        match cidr {
            Some(cidr) if !cidr.contains(&net) || (inside == Inside::Strictly && net == cidr) => {
                cursor.trap(
                    Code::ExceptOutside,
                    format!("{net} lies outside of {cidr}, expected a part of it"),
                );
            }
            _ => except.push(net),
        }
    }
    except.sort_unstable();
    except.dedup();
    except
}

/// A prefix without exceptions.
pub fn whole(cidr: IpNet) -> CidrSet {
    CidrSet { cidr, except: Vec::new() }
}
