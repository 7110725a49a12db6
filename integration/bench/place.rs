//! Places to measure in: network namespaces without a name and a BPF file system of our own, all of
//! which are gone when the process ends, however it ends.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sluice::datapath::net::{Namespace, Netlink, sysctl};

/// A directory of our own with a BPF file system inside.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// Moves the calling thread, and every thread that it starts from now on, into a mount and a
    /// network namespace of their own. To be called before any other thread exists.
    pub fn enter() -> anyhow::Result<Place> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("make a network and a mount namespace (root is needed)")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
        let dir = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let bpf = dir.path().join("bpf");
        std::fs::create_dir(&bpf)?;
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount bpffs")?;
        Ok(Place { dir })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A directory on the BPF file system.
    pub fn bpffs(&self, name: &str) -> PathBuf {
        self.dir.path().join("bpf").join(name)
    }
}

/// A network namespace of its own, with loopback up.
pub fn new_namespace() -> anyhow::Result<Namespace> {
    let made = std::thread::spawn(|| -> anyhow::Result<Namespace> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        Ok(Namespace::current()?)
    });
    let namespace = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    in_namespace(&namespace, async || {
        let net = Netlink::here()?;
        net.set_up(net.get("lo").await?.ifindex).await?;
        Ok(())
    })?;
    Ok(namespace)
}

/// A namespace that routes.
pub fn new_node() -> anyhow::Result<Namespace> {
    let namespace = new_namespace()?;
    namespace.run(sysctl::prepare_node)??;
    Ok(namespace)
}

/// A path by which other processes of ours open the namespace.
pub fn path_of(namespace: &Namespace) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()))
}

/// Runs asynchronous work inside a namespace, on a runtime of its own.
pub fn in_namespace<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

/// Runs a command inside a namespace, quietly. `input` goes to its standard input.
pub fn command(namespace: &Namespace, program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let output = namespace.run(|| -> anyhow::Result<_> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {program}"))?;
        child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    anyhow::ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
