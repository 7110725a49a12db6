//! Makes a [`Topology`] real, and follows its changes.
//!
//! [`Lab::converge`] compares what is built with what is wanted and touches only the difference:
//! building a lab is converging from nothing. A lab that failed half-way is removed whole
//! ([`Lab::remove`]), which needs no knowledge of how far it came.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use serde::{Deserialize, Serialize};

use super::LabError;
use super::links::{self, Batch, Link, PodRoutes};
use super::netns::Netns;
use super::state::{self, StateDir};
use super::topology::{Attachment, ServiceAnswer, Site, Topology};
use crate::model::Family;

/// Namespaces that are set up at the same time.
const WORKERS: usize = 4;

/// Settings of every namespace, written before a device exists.
const SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// Settings of namespaces that forward.
const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub routes: PodRoutes,
    pub topology: Topology,
    /// Link number of every site, by its display form.
    pub links: BTreeMap<String, u16>,
    pub next_link: u16,
}

impl State {
    /// What is built in the lab `name`, without claiming it.
    pub fn read(name: &str) -> Result<State, LabError> {
        let path = state::path_of(name)?.join(state::STATE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(LabError::Absent(name.to_owned())),
            Err(e) => return Err(LabError::io("read", &path, e)),
        };
        serde_json::from_str(&text)
            .map_err(|e| LabError::State { path: path.display().to_string(), message: e.to_string() })
    }

    /// Where pods ask for names: the Service, which agents translate, or the DNS pod itself.
    pub fn dns_server(&self, family: Family) -> Option<IpAddr> {
        let pod = self.topology.cluster_dns()?;
        let service = self.topology.services.iter().find_map(|service| match &service.answer {
            ServiceAnswer::Addresses(addresses)
                if service.namespace == pod.namespace && service.name == "kube-dns" =>
            {
                Some(addresses)
            }
            _ => None,
        });
        let addresses = match (self.routes, service) {
            (PodRoutes::FromExternals, Some(addresses)) => addresses,
            _ => &pod.addresses,
        };
        addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// A lab that is built.
#[derive(Debug)]
pub struct Lab {
    dir: StateDir,
    state: State,
}

impl Lab {
    /// An empty lab: the fabric and nothing on it.
    pub fn create(name: &str, routes: PodRoutes) -> Result<Lab, LabError> {
        let dir = StateDir::claim_new(name)?;
        let state = State { routes, topology: Topology::default(), links: BTreeMap::new(), next_link: 1 };
        let lab = Lab { dir, state };
        lab.build_fabric()?;
        lab.save()?;
        Ok(lab)
    }

    pub fn name(&self) -> &str {
        self.dir.name()
    }

    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    pub fn topology(&self) -> &Topology {
        &self.state.topology
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn netns(&self, site: &Site) -> Netns {
        self.dir.netns(site)
    }

    /// The device of a pod in its node's namespace.
    pub fn host_device(&self, pod: &Site) -> Option<String> {
        Some(self.link(pod)?.parent_device(pod))
    }

    /// Takes the whole lab away.
    pub fn remove(self) -> Result<(), LabError> {
        self.dir.remove()
    }

    /// Changes what is built into `wanted`.
    pub fn converge(&mut self, wanted: Topology) -> Result<(), LabError> {
        let mut problems = wanted.problems();
        for (site, attachment) in wanted.attachments() {
            if let Some(address) = attachment.addresses.iter().find(|a| links::CONTROL_PLANE.contains(a)) {
                problems.push(format!("{site} has the address {address}, which is the lab's control plane"));
            }
        }
        if !problems.is_empty() {
            return Err(LabError::Topology(problems));
        }
        let old = self.state.topology.attachments();
        let new = wanted.attachments();
        let moved = |site: &Site, attachment: &Attachment| {
            new.get(site).is_none_or(|wanted| wanted.parent != attachment.parent)
        };
        // Pods go before their nodes, and come after them.
        let gone: Vec<&Site> =
            old.iter().filter(|(site, attachment)| moved(site, attachment)).map(|(site, _)| site).collect();
        for site in gone.iter().rev() {
            self.detach(site, &old[*site])?;
        }
        for (site, attachment) in &new {
            match old.get(site) {
                Some(before) if !moved(site, before) && before.addresses != attachment.addresses => {
                    self.readdress(site, before, attachment, &wanted)?;
                }
                _ => {}
            }
        }
        let added: Vec<(&Site, &Attachment)> =
            new.iter().filter(|(site, _)| old.get(site).is_none_or(|before| moved(site, before))).collect();
        self.attach(&added, &wanted)?;
        self.state.topology = wanted;
        self.save()
    }

    fn save(&self) -> Result<(), LabError> {
        let path = self.dir.state_file();
        let text = serde_json::to_vec_pretty(&self.state)
            .map_err(|e| LabError::State { path: path.display().to_string(), message: e.to_string() })?;
        fs::write(&path, text).map_err(|e| LabError::io("write", &path, e))
    }

    fn link(&self, site: &Site) -> Option<Link> {
        self.state.links.get(&site.to_string()).map(|id| Link { id: *id })
    }

    /// The link of a site that is attached.
    fn known_link(&self, site: &Site) -> Result<Link, LabError> {
        self.link(site).ok_or_else(|| LabError::Topology(vec![format!("{site} is not attached")]))
    }

    fn build_fabric(&self) -> Result<(), LabError> {
        let netns = Netns::create(self.dir.netns(&Site::Fabric).path())?;
        netns.run(|| write_sysctls(SYSCTLS).and_then(|()| write_sysctls(ROUTER_SYSCTLS)))??;
        run_batch(&netns, &links::fabric())
    }

    fn attach(&mut self, added: &[(&Site, &Attachment)], wanted: &Topology) -> Result<(), LabError> {
        for (site, _) in added {
            let id = self.state.next_link;
            self.state.next_link = id
                .checked_add(1)
                .ok_or_else(|| LabError::Topology(vec!["more than 65,534 links in one lab".to_owned()]))?;
            self.state.links.insert(site.to_string(), id);
        }
        // A node's own address is the source of its routes to pods: nodes first.
        let (pods, others): (Vec<_>, Vec<_>) =
            added.iter().copied().partition(|(site, _)| matches!(site, Site::Pod { .. }));
        self.connect(&others, wanted)?;
        self.connect(&pods, wanted)?;
        let mut routes = Batch::default();
        for (_, attachment) in &pods {
            let node = &attachment.parent;
            let link = self.known_link(node)?;
            routes.extend(&links::pod_routes(link, node, &attachment.addresses, self.state.routes));
        }
        run_batch(&self.netns(&Site::Fabric), &routes)
    }

    /// Namespaces, links, addresses.
    fn connect(&self, added: &[(&Site, &Attachment)], wanted: &Topology) -> Result<(), LabError> {
        let lab = self;
        in_parallel(added, |(site, _)| {
            let netns = Netns::create(lab.dir.netns(site).path())?;
            netns.run(|| {
                write_sysctls(SYSCTLS)?;
                if matches!(site, Site::Node(_)) { write_sysctls(ROUTER_SYSCTLS) } else { Ok(()) }
            })?
        })?;
        let mut parents: BTreeMap<&Site, Batch> = BTreeMap::new();
        for (site, attachment) in added {
            let link = lab.known_link(site)?;
            let source = wanted.addresses(&attachment.parent);
            let netns = lab.netns(site);
            let batch = links::parent_side(link, site, netns.path(), &attachment.addresses, source);
            parents.entry(&attachment.parent).or_default().extend(&batch);
        }
        let parents: Vec<(&Site, Batch)> = parents.into_iter().collect();
        in_parallel(&parents, |(parent, batch)| run_batch(&lab.netns(parent), batch))?;
        in_parallel(added, |(site, attachment)| {
            run_batch(&lab.netns(site), &links::child_side(lab.known_link(site)?, &attachment.addresses))
        })
    }

    fn detach(&mut self, site: &Site, attachment: &Attachment) -> Result<(), LabError> {
        let link = self.known_link(site)?;
        let mut batch = Batch::default();
        if matches!(site, Site::External(_)) {
            batch.extend(&links::remove_external_rules(link, site));
        }
        // Sockets keep a namespace alive after its file is gone: the link has to go by itself.
        batch.add(format!("link del {}", link.parent_device(site)));
        run_batch(&self.netns(&attachment.parent), &batch)?;
        if matches!(site, Site::Pod { .. }) {
            let routes = links::remove_pod_routes(&attachment.addresses, self.state.routes);
            run_batch(&self.netns(&Site::Fabric), &routes)?;
        }
        self.netns(site).delete()?;
        self.state.links.remove(&site.to_string());
        Ok(())
    }

    fn readdress(
        &self,
        site: &Site,
        before: &Attachment,
        after: &Attachment,
        wanted: &Topology,
    ) -> Result<(), LabError> {
        let without = |a: &[IpAddr], b: &[IpAddr]| -> Vec<IpAddr> {
            a.iter().copied().filter(|address| !b.contains(address)).collect()
        };
        let removed = without(&before.addresses, &after.addresses);
        let added = without(&after.addresses, &before.addresses);
        let link = self.known_link(site)?;
        let mut child = links::remove_child_addresses(&removed);
        child.extend(&links::child_addresses(link, &added));
        run_batch(&self.netns(site), &child)?;
        let mut parent = links::remove_parent_addresses(link, site, &removed);
        parent.extend(&links::parent_addresses(link, site, &added, wanted.addresses(&after.parent)));
        run_batch(&self.netns(&after.parent), &parent)?;
        if matches!(site, Site::Pod { .. }) {
            let node = &after.parent;
            let mut routes = links::remove_pod_routes(&removed, self.state.routes);
            routes.extend(&links::pod_routes(self.known_link(node)?, node, &added, self.state.routes));
            run_batch(&self.netns(&Site::Fabric), &routes)?;
        }
        Ok(())
    }
}

/// Writes settings below `/proc/sys/net` of the calling thread's namespace.
fn write_sysctls(settings: &[(&str, &str)]) -> Result<(), LabError> {
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).map_err(|e| LabError::io("set", &path, e))?;
    }
    Ok(())
}

/// Runs commands in a namespace; the first that fails ends it.
pub fn run_batch(netns: &Netns, batch: &Batch) -> Result<(), LabError> {
    batch.runs().try_for_each(|(arguments, commands)| run_ip(netns, arguments, commands))
}

fn run_ip(netns: &Netns, arguments: &[&str], commands: &str) -> Result<(), LabError> {
    let output = netns.run(|| {
        let mut child = Command::new("ip")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // A broken pipe means that `ip` stopped at an error, which it reports.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes()).ok();
        }
        child.wait_with_output()
    })?;
    let output = output.map_err(|source| LabError::io("run `ip` in", netns.path(), source))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let line =
        message.rsplit_once("Command failed -:").and_then(|(_, line)| line.trim().parse::<usize>().ok());
    let command = line.and_then(|line| commands.lines().nth(line - 1)).unwrap_or("?").to_owned();
    let message = message.lines().next().unwrap_or_default().to_owned();
    Err(LabError::Ip { netns: netns.path().display().to_string(), command, message })
}

/// Runs `work` for every item on a few threads; the first error wins.
fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), LabError> + Sync,
) -> Result<(), LabError> {
    let queue = Mutex::new(items.iter());
    let next = || match queue.lock() {
        Ok(mut queue) => queue.next(),
        // Another worker panicked; the scope passes that on.
        Err(_) => None,
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(items.len()))
            .map(|_| {
                scope.spawn(|| -> Result<(), LabError> {
                    while let Some(item) = next() {
                        work(item)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}
