//! CiliumCIDRGroup: a named list of prefixes.

use crate::cluster::Resource;
use crate::k8s::cidr::{self, Form};
use crate::k8s::cursor::Fields;
use crate::k8s::meta::{self, Scope};
use crate::policy::rule::CidrGroup;

pub fn read(fields: &Fields<'_>) -> Option<Resource> {
    fields.accept(&["status"]);
    let meta = meta::read(fields, Scope::Cluster);
    let cidrs = fields.require("spec").and_then(|spec| {
        spec.object(|spec| {
            let list = spec.require("externalCIDRs")?.list()?;
            Some(list.iter().filter_map(|item| cidr::prefix(item, Form::PrefixOrAddress)).collect())
        })?
    });
    let meta = meta?;
    Some(Resource::CidrGroup(CidrGroup { name: meta.name, labels: meta.labels, cidrs: cidrs? }))
}
