//! Any program inside a pod's network, with the lab's names.
//!
//! The program sees the machine's files, except that `/etc/resolv.conf` and `/etc/hosts` are the
//! pod's: they are bind-mounted in a mount namespace of its own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::LabError;
use super::fabric::State;
use super::state;
use super::topology::Site;
use crate::model::Family;

/// Becomes `program` at `site`; returns only when that fails. The caller has one thread.
pub fn exec(lab: &str, site: &Site, program: &[OsString]) -> Result<std::convert::Infallible, LabError> {
    let state = State::read(lab)?;
    let directory = state::path_of(lab)?;
    // A host-network pod has no namespace of its own.
    let place = match site {
        Site::Pod { namespace, name } => state.topology.pod(namespace, name).map(|pod| pod.site()),
        Site::Fabric => Some(Site::Fabric),
        site => state.topology.attachments().contains_key(site).then(|| site.clone()),
    };
    let place =
        place.ok_or_else(|| LabError::Topology(vec![format!("there is no {site} in the lab {lab}")]))?;
    let [name, arguments @ ..] = program else {
        return Err(LabError::io("run", "", io::ErrorKind::InvalidInput.into()));
    };
    let files = directory.join("etc").join(place.file_name());
    fs::create_dir_all(&files).map_err(|e| LabError::io("create", &files, e))?;
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        })
        .map_err(|errno| LabError::io("make a mount namespace for", site.to_string(), errno.into()))?;
    for (name, text) in
        [("resolv.conf", resolv_conf(&state, site)), ("hosts", hosts(site, state.topology.addresses(site)))]
    {
        let file = files.join(name);
        fs::write(&file, text).map_err(|e| LabError::io("write", &file, e))?;
        let target = Path::new("/etc").join(name);
        mount(Some(&file), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| LabError::io("mount over", &target, errno.into()))?;
    }
    state::netns(&directory, &place).enter()?;
    let error = Command::new(name).args(arguments).exec();
    Err(LabError::io("run", Path::new(name), error))
}

fn resolv_conf(state: &State, site: &Site) -> String {
    let mut text = String::new();
    for server in [Family::IPv4, Family::IPv6].into_iter().filter_map(|family| state.dns_server(family)) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if let Site::Pod { namespace, .. } = site {
        text.push_str(&format!(
            "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        ));
    }
    text
}

fn hosts(site: &Site, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    if let Site::Pod { name, .. } = site {
        for address in addresses {
            text.push_str(&format!("{address} {name}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_itself_by_name() {
        let text = hosts(&Site::pod("shop", "frontend"), &["10.244.0.2".parse().unwrap()]);
        assert!(text.ends_with("\n10.244.0.2 frontend\n"));
    }
}
