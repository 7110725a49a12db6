//! Is this machine fit, and what to do if not. Nothing is changed, except by [`mount_bpffs`].

use std::path::{Path, PathBuf};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::{Hook, device_index, tcx_works};
use super::net::{Netlink, sysctl};

/// Result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Ok,
    /// Works, with less than all there could be.
    Degraded,
    /// The agent will not start.
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when all is well.
    pub advice: String,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, found: found.into(), advice: String::new() }
}

fn degraded(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, status: Status::Degraded, found: found.into(), advice: advice.into() }
}

fn failed(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, status: Status::Failed, found: found.into(), advice: advice.into() }
}

/// Oldest kernel with all that the programs use: ring buffer (5.8), `bpf_redirect_peer` (5.10), atomic operations with a
/// result (5.12; compiled for ARM since 5.18). Longest-prefix batch reads are done without.
const OLDEST: (u32, u32) = if cfg!(target_arch = "aarch64") { (5, 18) } else { (5, 12) };

/// Major and minor of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= OLDEST => ok("kernel", release),
        Some(_) => failed("kernel", release, format!("needs Linux {}.{} or later", OLDEST.0, OLDEST.1)),
        None => degraded("kernel", format!("{release:?}"), "the version was not understood"),
    }
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        ok("btf", "/sys/kernel/btf/vmlinux")
    } else {
        degraded(
            "btf",
            "no /sys/kernel/btf/vmlinux",
            "programs load without it; tools that print maps with types need CONFIG_DEBUG_INFO_BTF",
        )
    }
}

/// `path` or the nearest parent that exists is on a BPF file system.
pub fn on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.and_then(|path| statfs(path).ok()).is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn bpffs(path: &Path) -> Check {
    if on_bpffs(path) {
        return ok("bpffs", format!("{} is on a BPF file system", path.display()));
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == "bpf") {
        failed(
            "bpffs",
            format!("{} is not on a BPF file system", path.display()),
            "mount -t bpf bpf /sys/fs/bpf, and keep it mounted: pins go with it",
        )
    } else {
        failed("bpffs", "the kernel has no BPF file system", "needs CONFIG_BPF_SYSCALL")
    }
}

/// Mounts a BPF file system at `/sys/fs/bpf`, or at `path` when that is elsewhere. Nothing is done when
/// `path` is on one already.
pub fn mount_bpffs(path: &Path) -> std::io::Result<()> {
    if on_bpffs(path) {
        return Ok(());
    }
    let usual = Path::new("/sys/fs/bpf");
    let target: PathBuf = if path.starts_with(usual) { usual.to_owned() } else { path.to_owned() };
    std::fs::create_dir_all(&target)?;
    mount(Some("bpf"), &target, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    Ok(())
}

fn capabilities() -> Check {
    use caps::{CapSet, Capability};
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let admin = has(Capability::CAP_SYS_ADMIN);
    let wanted = [
        (Capability::CAP_NET_ADMIN, false),
        (Capability::CAP_NET_RAW, false),
        // CAP_SYS_ADMIN includes these.
        (Capability::CAP_BPF, true),
        (Capability::CAP_PERFMON, true),
    ];
    let missing: Vec<String> = (wanted.into_iter())
        .filter(|(capability, by_admin)| !(has(*capability) || *by_admin && admin))
        .map(|(capability, _)| capability.to_string())
        .collect();
    if missing.is_empty() {
        ok("capabilities", "all that are needed")
    } else {
        failed("capabilities", format!("missing: {}", missing.join(", ")), "run as root, or grant them")
    }
}

fn tcx() -> Check {
    if tcx_works() {
        ok("tcx", "programs stay attached by pinned links")
    } else {
        degraded(
            "tcx",
            "not in this kernel",
            "clsact filters are used instead; Linux 6.6 replaces programs atomically",
        )
    }
}

fn jit() -> Check {
    match std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => {
            degraded("jit", "off", "sysctl net.core.bpf_jit_enable=1: programs run several times faster")
        }
        // Without the file the JIT is compiled in for good.
        _ => ok("jit", "on"),
    }
}

fn ipv6() -> Check {
    if sysctl::has_ipv6() {
        ok("ipv6", "available")
    } else {
        degraded("ipv6", "not available", "pods get IPv4 addresses only")
    }
}

/// Programs of others on a device that would see packets before ours, or in place of them.
async fn conflicts(device: &str) -> Check {
    let name = "conflicting programs";
    if device_index(device).is_err() {
        return failed(name, format!("there is no device {device}"), "check --uplink");
    }
    let mut found = Vec::new();
    if let Ok(netlink) = Netlink::here()
        && let Ok(Some(listed)) = netlink.find(device).await
        && listed.xdp
    {
        found.push(format!("an XDP program on {device}"));
    }
    for (side, label) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        let Ok((_, programs)) = SchedClassifier::query_tcx(device, side) else { continue };
        for program in programs {
            let program = program.name_as_str().unwrap_or("?").to_owned();
            // The kernel cuts names after 15 bytes; ours are shorter.
            if !Hook::ALL.iter().any(|hook| hook.program() == program) {
                found.push(format!("tcx program {program} at {label} of {device}"));
            }
        }
    }
    if found.is_empty() {
        ok(name, format!("none on {device}"))
    } else {
        degraded(
            name,
            found.join(", "),
            "ours is attached first; an XDP program may still pass packets on to elsewhere: check what it does",
        )
    }
}

/// All checks. `bpffs` is the agent's pin directory, `uplink` its device if one is configured.
pub async fn run(bpffs_path: &Path, uplink: Option<&str>) -> Vec<Check> {
    let mut checks = vec![kernel(), capabilities(), bpffs(bpffs_path), btf(), tcx(), jit(), ipv6()];
    if let Some(uplink) = uplink {
        checks.push(conflicts(uplink).await);
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_understood() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.209"), Some((5, 10)));
        assert_eq!(version("weird"), None);
        assert!((5, 4) < OLDEST && (6, 6) > OLDEST);
    }

    #[test]
    fn an_ordinary_directory_is_not_a_bpf_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let check = bpffs(&dir.path().join("not/there/yet"));
        assert_eq!(check.status, Status::Failed);
        assert!(!check.advice.is_empty());
    }
}
