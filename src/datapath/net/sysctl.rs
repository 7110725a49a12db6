//! `/proc/sys/net` of the calling thread's network namespace.

use std::path::PathBuf;

use super::NetError;

/// Makes `net/<path>` have this value. The parts are path components: device names may hold dots.
///
/// What is right already is not written: writing IPv6's `forwarding` takes the lock of all network devices, which others may
/// hold for seconds (`addrconf_fixup_forwarding`, which spins on it).
pub fn set(path: &[&str], value: &str) -> Result<(), NetError> {
    correct(path, value).map(|_| ())
}

/// The same, and whether it had another value.
fn correct(path: &[&str], value: &str) -> Result<bool, NetError> {
    let mut file = PathBuf::from("/proc/sys/net");
    file.extend(path);
    if std::fs::read_to_string(&file).is_ok_and(|known| known.trim_end() == value) {
        return Ok(false);
    }
    std::fs::write(&file, value).map(|()| true).map_err(|source| NetError::Sysctl {
        key: file.display().to_string(),
        value: value.to_owned(),
        source,
    })
}

/// The kernel has this family at all (IPv6 can be compiled out or disabled).
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6/conf/all/forwarding").exists()
}

/// A node routes packets of its pods. Says which settings were others.
pub fn prepare_node() -> Result<Vec<String>, NetError> {
    // Loose everywhere: the kernel takes the larger of `all` and the device's value.
    let v4: [(&[&str], _); 3] = [
        (&["ipv4", "ip_forward"], "1"),
        (&["ipv4", "conf", "all", "rp_filter"], "0"),
        (&["ipv4", "conf", "default", "rp_filter"], "0"),
    ];
    let v6: [(&[&str], _); 1] = [(&["ipv6", "conf", "all", "forwarding"], "1")];
    let mut others = Vec::new();
    for (path, value) in v4.into_iter().chain(v6.into_iter().filter(|_| has_ipv6())) {
        if correct(path, value)? {
            others.push(format!("net.{} = {value}", path.join(".")));
        }
    }
    Ok(others)
}

/// The host side of a pod's veth: addresses of pods are routed, sources are checked by our programs.
pub fn prepare_host_side(device: &str) -> Result<(), NetError> {
    set(&["ipv4", "conf", device, "rp_filter"], "0")?;
    set(&["ipv4", "conf", device, "forwarding"], "1")?;
    // An agent of earlier days turned it on. No pod may speak with the node's address, whoever looks at its packets.
    set(&["ipv4", "conf", device, "accept_local"], "0")?;
    if has_ipv6() {
        set(&["ipv6", "conf", device, "forwarding"], "1")?;
        set(&["ipv6", "conf", device, "accept_ra"], "0")?;
    }
    Ok(())
}

/// What the node's stack sends to a proxy comes in by the loopback device (`turned()` in bpf/lib/proxy.h), with the node's
/// own address. Nothing from elsewhere arrives there.
pub fn accept_own_address_on_loopback() -> Result<(), NetError> {
    set(&["ipv4", "conf", "lo", "accept_local"], "1")
}

/// The pod's side: no router advertisements, no duplicate address detection (addresses are ours).
pub fn prepare_pod_side(device: &str) -> Result<(), NetError> {
    if has_ipv6() {
        set(&["ipv6", "conf", device, "disable_ipv6"], "0")?;
        set(&["ipv6", "conf", device, "accept_ra"], "0")?;
        set(&["ipv6", "conf", device, "accept_dad"], "0")?;
    }
    Ok(())
}
