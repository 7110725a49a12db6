//! The bars of the policy engine and the agent: from a text or an object to what the kernel enforces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::programs::{SchedClassifier, TcAttachType};
use parking_lot::Mutex;
use sluice::api::types::{DeviceOrigin, EndpointRequest};
use sluice::cluster::{Change, View};
use sluice::datapath::expedite::Expedited;
use sluice::datapath::net::Namespace;
use sluice::datapath::{Datapath as _, DatapathConfig, KernelDatapath};
use sluice::identity::{AllocateError, IdentityAllocator, MemoryAllocator};
use sluice::model::{Identity, Labels};

use super::agent::{Agent, BUILT, Home, program};
use super::cluster::{self, APPS, FULL};
use super::place::{self, Place};
use super::pods::{self, Pod};
use super::report::{Bar, Report, Row, refused};
use super::stats::{interleaved, percentile};

const MIB: f64 = 1024.0 * 1024.0;

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Runs all of it.
pub fn run(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let node = place::new_node()?;
    let pods = (0..FULL.local)
        .map(|index| pods::add(&node, index as u16 + 1, cluster::pod_address(index)))
        .collect::<anyhow::Result<Vec<Pod>>>()?;
    changes_against_recomputation(place, &node, &pods, rounds, report)?;
    whole_agent(place, &node, &pods, rounds, report)?;
    many_rules(place, rounds, report)?;
    binary_size(report)
}

/// Numbers that outlive a view, as the agent's store has them.
#[derive(Clone, Debug)]
struct SharedAllocator(Arc<Mutex<MemoryAllocator>>);

impl IdentityAllocator for SharedAllocator {
    fn allocate(&mut self, labels: &Labels) -> Result<Identity, AllocateError> {
        self.0.lock().allocate(labels)
    }

    fn release(&mut self, id: Identity) {
        self.0.lock().release(id);
    }
}

/// A view with its kernel, as the agent's core holds them.
struct Core {
    view: View,
    datapath: KernelDatapath,
    numbers: SharedAllocator,
}

impl Core {
    fn start(place: &Place, pods: &[Pod], objects: Vec<Change>) -> anyhow::Result<Core> {
        let numbers = SharedAllocator(Arc::new(Mutex::new(MemoryAllocator::new(Duration::from_secs(900)))));
        let mut view = View::new(cluster::view_options(), Box::new(numbers.clone()));
        view.apply(objects).map_err(refused)?;
        let mut datapath = KernelDatapath::open(DatapathConfig::new(place.bpffs("core")))?;
        for (index, pod) in pods.iter().enumerate() {
            datapath.attach_endpoint(&format!("bench/{}", cluster::pod_name(index)), pod.device)?;
        }
        datapath.reconcile(&view.full())?;
        datapath.attach_node()?;
        Ok(Core { view, datapath, numbers })
    }

    fn change(&mut self, change: Change) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let delta = self.view.apply(vec![change]).map_err(refused)?;
        self.datapath.apply(&delta)?;
        let took = begin.elapsed();
        anyhow::ensure!(!delta.is_empty(), "the change changed nothing");
        Ok(took)
    }

    /// What an engine without increments does for the same change.
    fn recompute(&mut self, objects: Vec<Change>) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let mut view = View::new(cluster::view_options(), Box::new(self.numbers.clone()));
        view.apply(objects).map_err(refused)?;
        self.datapath.reconcile(&view.full())?;
        let took = begin.elapsed();
        self.view = view;
        Ok(took)
    }
}

fn only(text: &str) -> anyhow::Result<Change> {
    cluster::changes(text)?.pop().context("one object")
}

fn changes_against_recomputation(
    place: &Place,
    node: &Namespace,
    pods: &[Pod],
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("one change against full recomputation");
    let text = cluster::nodes() + &cluster::pods(FULL) + &cluster::policies(0..FULL.policies);
    let objects = cluster::changes(&text)?;
    // By the kind of change: a policy, an identity, everything anew.
    let mut times = [const { Vec::new() }; 3];
    node.run(|| -> anyhow::Result<()> {
        let mut core = Core::start(place, pods, objects.clone())?;
        let mut round = 0;
        interleaved(rounds, times.len(), |kind| -> anyhow::Result<()> {
            round += 1;
            let took = match kind {
                0 => {
                    core.change(only(&cluster::policy_of(round % FULL.policies, (round * 11 + 5) % APPS))?)?
                }
                // A pod of another node gets a label that no pod has yet.
                1 => core.change(only(&cluster::pod(
                    FULL.local + round,
                    FULL.local,
                    &format!(", version: v{round}"),
                ))?)?,
                _ => core.recompute(objects.clone())?,
            };
            times[kind].push(millis(took));
            Ok(())
        })?;
        core.datapath.uninstall()?;
        Ok(())
    })??;
    let [policy, identity, full] = &times;
    for (what, of) in
        [("one policy change to the kernel", policy), ("one identity change to the kernel", identity)]
    {
        let bar = Bar::AtMost(1.0 / 200.0);
        report.add(Row::compared(what, of, ("full recomputation", full), "ms", bar));
    }
    Ok(())
}

pub fn endpoint_request(index: usize, pod: &Pod) -> EndpointRequest {
    EndpointRequest {
        pod: format!("bench/{}", cluster::pod_name(index)),
        netns: Some(place::path_of(&pod.namespace).display().to_string()),
        interface: None,
        host_interface: None,
        device: DeviceOrigin::Existing,
        labels: Default::default(),
        addresses: Vec::new(),
    }
}

/// Start, memory, and one policy among many, at full size.
fn whole_agent(
    place: &Place,
    node: &Namespace,
    pods: &[Pod],
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("the agent with {} endpoints and {} identities", FULL.local, FULL.pods);
    let home = Home::new(&place.dir().join("agent"), place.bpffs("agent"))?;
    let (agent, _) = Agent::start(node, &home)?;
    agent.apply(&(cluster::nodes() + &cluster::pods(FULL)))?;
    agent.apply(&cluster::policies(0..FULL.policies))?;
    for (index, pod) in pods.iter().enumerate() {
        agent.add_endpoint(&endpoint_request(index, pod))?;
    }
    drop(agent);

    // Again with what is in the kernel, and from nothing: no pins, no programs.
    let (mut warm, mut cold, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    interleaved(rounds, 2, |kind| -> anyhow::Result<()> {
        if kind == 1 {
            remove_pins(&home)?;
            await_bare(node, pods)?;
        }
        let (agent, took) = Agent::start(node, &home)?;
        let counts = agent.status()?.counts;
        anyhow::ensure!(
            counts.endpoints_ready == FULL.local && counts.policies == FULL.policies,
            "the agent is not what was to be measured: {counts:?}"
        );
        let [times, _] = if kind == 0 { [&mut warm, &mut cold] } else { [&mut cold, &mut warm] };
        times.push(millis(took));
        resident.push(agent.memory()?.0 as f64 / MIB);
        Ok(())
    })?;
    let median = |values: &[f64]| super::stats::median(values);
    let start = "agent start to enforcing";
    report.add(Row::absolute(
        format!("{start}, nothing in the kernel"),
        median(&cold),
        "ms",
        Bar::AtMost(1000.0),
        cold.len(),
    ));
    report.add(Row::absolute(
        format!("{start}, restart"),
        median(&warm),
        "ms",
        Bar::AtMost(1000.0),
        warm.len(),
    ));
    report.add(Row::absolute(
        "agent memory, resident",
        median(&resident),
        "MiB",
        Bar::AtMost(64.0),
        resident.len(),
    ));

    let others = 3_000;
    let (agent, _) = Agent::start(node, &home)?;
    agent.apply(&cluster::policies(FULL.policies..others))?;
    let mut times = Vec::new();
    for round in 0..200 {
        let text = cluster::policy_of(others + round % 10, (round * 13 + 1) % APPS);
        let begin = Instant::now();
        agent.apply(&text)?;
        times.push(millis(begin.elapsed()));
    }
    agent.expect_enforced()?;
    let runs = times.len();
    let p50 = percentile(&mut times, 0.5);
    let p99 = percentile(&mut times, 0.99);
    report.add(Row::absolute(
        "one policy among 3,000 others, applied to enforced, p50",
        p50,
        "ms",
        Bar::Shown,
        runs,
    ));
    report.add(Row::absolute("the same, p99", p99, "ms", Bar::AtMost(20.0), runs));
    Ok(())
}

/// Nothing of an earlier agent is in the kernel any more.
fn remove_pins(home: &Home) -> anyhow::Result<()> {
    for version in std::fs::read_dir(&home.bpffs)? {
        for directory in std::fs::read_dir(version?.path())? {
            for pin in std::fs::read_dir(directory?.path())? {
                std::fs::remove_file(pin?.path())?;
            }
        }
    }
    Ok(())
}

/// The kernel takes programs off devices after their pins are gone, and holds the lock of all devices meanwhile: that time is
/// the end of the last agent's work, not the start of the next one's.
fn await_bare(node: &Namespace, pods: &[Pod]) -> anyhow::Result<()> {
    let _expedited = Expedited::begin();
    let begin = Instant::now();
    node.run(|| -> anyhow::Result<()> {
        for pod in pods {
            let device = nix::net::if_::if_indextoname(pod.device.ifindex)?.into_string()?;
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                while !SchedClassifier::query_tcx(&device, side)?.1.is_empty() {
                    anyhow::ensure!(begin.elapsed().as_secs() < 60, "programs stay on {device}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(())
    })?
}

/// The same rules for `nft -f`.
fn nft_rules(rules: usize) -> String {
    let mut text = String::from(
        "table inet bench {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy drop;\n\t\tct state established,related accept\n",
    );
    for index in 0..rules {
        let (prefix, port) = cluster::cidr_rule(index);
        text +=
            &format!("\t\tip daddr {} ip saddr {prefix} tcp dport {port} accept\n", cluster::pod_address(0));
    }
    text + "\t}\n}\n"
}

/// Policies with many rules for one pod, as a person applies them: one command, one file.
fn many_rules(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("policies with many rules");
    let node = place::new_node()?;
    let pod = pods::add(&node, 1, cluster::pod_address(0))?;
    let nft = place::new_node()?;
    let home = Home::new(&place.dir().join("rules"), place.bpffs("rules"))?;
    let (agent, _) = Agent::start(&node, &home)?;
    agent.apply(&(cluster::nodes() + &cluster::pod(0, 1, "")))?;
    agent.add_endpoint(&endpoint_request(0, &pod))?;
    let socket = home.socket().display().to_string();
    let file = |name: &str, text: String| -> anyhow::Result<String> {
        let path = place.dir().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let apply = |path: &str| -> anyhow::Result<f64> {
        let begin = Instant::now();
        place::command(&node, program(), &["policy", "apply", "--socket", &socket, path], "")?;
        let took = millis(begin.elapsed());
        agent.expect_enforced()?;
        Ok(took)
    };
    let empty = |name: &str| file(&format!("{name}-empty"), cluster::cidr_policy(name, 0, 0..1));

    let thousand = file("thousand", cluster::cidr_policy("thousand", 0, 0..1000))?;
    let one = empty("thousand")?;
    let rules = file("rules.nft", nft_rules(1000))?;
    let mut times = [const { Vec::new() }; 2];
    interleaved(rounds, 2, |kind| -> anyhow::Result<()> {
        let took = if kind == 0 {
            apply(&one)?;
            apply(&thousand)?
        } else {
            place::command(&nft, "nft", &["flush", "ruleset"], "")?;
            let begin = Instant::now();
            place::command(&nft, "nft", &["-f", &rules], "")?;
            millis(begin.elapsed())
        };
        times[kind].push(took);
        Ok(())
    })?;
    let [ours, nft] = &times;
    report.add(Row::compared(
        "a policy of 1,000 rules, file to enforced",
        ours,
        ("nft -f", nft),
        "ms",
        Bar::AtMost(0.5),
    ));
    apply(&one)?;

    let many: String = (0..25)
        .map(|index| cluster::cidr_policy(&format!("many-{index}"), 0, index * 500..index * 500 + 500))
        .collect();
    let few: String = (0..25).map(|index| cluster::cidr_policy(&format!("many-{index}"), 0, 0..1)).collect();
    let (many, few) = (file("many", many)?, file("few", few)?);
    let mut times = Vec::new();
    for _ in 0..rounds {
        apply(&few)?;
        times.push(apply(&many)?);
    }
    let median = super::stats::median(&times);
    report.add(Row::absolute(
        "12,500 rules on one endpoint, file to enforced",
        median,
        "ms",
        Bar::AtMost(1000.0),
        times.len(),
    ));
    Ok(())
}

/// The shipped binary, if it was built (`scripts/bench` does when it is asked to).
pub fn binary_size(report: &mut Report) -> anyhow::Result<()> {
    let path = std::path::Path::new(BUILT).with_file_name("../dist/sluice");
    match std::fs::metadata(&path) {
        Ok(meta) => {
            let size = meta.len() as f64 / 1e6;
            report.add(Row::absolute("stripped binary (profile dist)", size, "MB", Bar::AtMost(30.0), 1));
        }
        Err(_) => eprintln!("  the dist binary is not there: `scripts/bench size` builds and weighs it"),
    }
    Ok(())
}
