//! One machine, as an operator meets it: the real binary, a configuration file, pods in network namespaces, and
//! the commands of the README in their order. Needs root.
//!
//! Everything happens in a network and mount namespace of the test's own, with a /run of its own.

mod machine;

use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::machine::{Machine, eventually, on_a_machine, serve, text};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: edge-1, containers: [{name: web, ports: [{containerPort: 8080, name: http}]}]}
status: {podIPs: [{ip: 10.244.0.10}, {ip: 'fd00:244::10'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: edge-1}
status: {podIPs: [{ip: 10.244.0.11}, {ip: 'fd00:244::11'}]}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - {from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}
";

#[test]
fn a_single_machine_from_an_empty_namespace_to_a_reason_for_each_drop() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("pods.yaml", PODS);
        machine.write("policy.yaml", POLICY);
        machine.done(&["policy", "apply", "pods.yaml"]);

        let hint = machine.refused(1, &["endpoint", "add", "shop/web", "--netns", "/run/netns/web"]);
        assert!(hint.contains("no device eth0 in /run/netns/web") && hint.contains("--create"), "{hint}");
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        let listed = machine.done(&["endpoint", "list"]);
        assert!(
            listed.contains("shop/web") && listed.contains("slc1") && listed.contains("ready"),
            "{listed}"
        );

        serve(&mut machine, "8080");
        serve(&mut machine, "9090");
        let urls =
            |port: u16| [format!("http://10.244.0.10:{port}/"), format!("http://[fd00:244::10]:{port}/")];
        for url in urls(8080).into_iter().chain(urls(9090)) {
            eventually("without a policy everything passes", || machine.fetch(&url));
        }
        machine.done(&["policy", "apply", "policy.yaml"]);
        for (allowed, denied) in urls(8080).into_iter().zip(urls(9090)) {
            assert!(machine.fetch(&allowed), "{allowed}");
            assert!(!machine.fetch(&denied), "{denied}");
        }

        let drops = machine.done(&["observe", "--verdict", "DROPPED", "--last", "20"]);
        assert!(drops.contains("shop/client") && drops.contains("9090"), "{drops}");
        assert!(drops.contains("default-deny of shop/web-in"), "{drops}");
        let why = machine.refused(1, &["policy", "explain", "shop/client", "shop/web:9090"]);
        assert!(why.contains("shop/web-in"), "{why}");
        machine.done(&["policy", "explain", "shop/client", "shop/web:8080"]);
        let entries = machine.done(&["bpf", "policy", "--endpoint", "shop/web"]);
        assert!(entries.contains("8080/TCP") && entries.contains("shop/web-in"), "{entries}");
        assert!(machine.done(&["bpf", "ct"]).contains("10.244.0.10"));
        machine.done(&["bpf", "diff"]);
    });
}

#[test]
fn bad_input_is_refused_with_its_place_and_changes_nothing() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("pods.yaml", PODS);
        machine.write("policy.yaml", POLICY);
        machine.done(&["policy", "apply", "pods.yaml", "policy.yaml"]);
        let before = machine.done(&["policy", "get"]);

        let misspelt = POLICY.replace("ingress:", "ingres:").replace("web-in", "web-two");
        machine.write("bad.yaml", &misspelt);
        let said = machine.refused(2, &["policy", "apply", "bad.yaml"]);
        assert!(said.contains("bad.yaml:7:3") && said.contains("spec.ingres"), "{said}");
        machine.write("port.yaml", &POLICY.replace("port: http", "port: 99999"));
        let said = machine.refused(2, &["policy", "apply", "port.yaml"]);
        assert!(said.contains("port.yaml:8:") && said.contains("99999"), "{said}");
        machine.write("twice.yaml", &format!("{POLICY}---{POLICY}"));
        let said = machine.refused(2, &["policy", "apply", "twice.yaml"]);
        assert!(
            said.contains("twice.yaml:10:1") && said.contains("already defined at twice.yaml:2:1"),
            "{said}"
        );
        let bomb: String = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned())
            .chain(
                (1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))),
            )
            .collect();
        machine.write("bomb.yaml", &bomb);
        machine.refused(2, &["policy", "apply", "bomb.yaml"]);

        assert_eq!(machine.done(&["policy", "get"]), before);
        machine.refused(1, &["policy", "delete", "NetworkPolicy", "shop/none"]);
        assert!(machine.done(&["policy", "get", "NetworkPolicy", "shop/web-in"]).contains("port: http"));
        machine.refused(1, &["endpoint", "add", "shop/web", "--netns", "/run/netns/nowhere"]);
        machine.refused(2, &["endpoint", "add", "web", "--netns", "/run/netns/web"]);
        machine.done(&["bpf", "diff"]);
    });
}

#[test]
fn enforcement_and_endpoints_survive_the_agent() {
    on_a_machine(|mut machine| {
        let agent = machine.start_agent();
        machine.write("all.yaml", &format!("{PODS}---{POLICY}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        serve(&mut machine, "8080");
        serve(&mut machine, "9090");
        eventually("the server answers", || machine.fetch("http://10.244.0.10:8080/"));

        kill(Pid::from_raw(agent as i32), Signal::SIGKILL).unwrap();
        machine.refused(3, &["status"]);
        assert!(machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));

        machine.start_agent();
        assert!(machine.done(&["endpoint", "list"]).contains("shop/client"));
        assert!(machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));
        machine.done(&["endpoint", "remove", "shop/client"]);
        let gone = Command::new("ip").args(["link", "show", "slc2"]).output().unwrap();
        assert!(!gone.status.success(), "the device that was made is still there");
    });
}

#[test]
fn flows_are_counted_exported_and_remembered_and_a_full_disk_stops_history_alone() {
    on_a_machine(|mut machine| {
        let state = machine.path("state");
        std::fs::create_dir(&state).unwrap();
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
        let export = machine.path("flows.json");
        let more = format!(
            "export-file: {}\nexport-filter: [to-pod=shop/web]\nexport-fields: [verdict, destination.pod_name]\n\
             metrics-context: labelsContext=source_namespace,destination_workload\n",
            export.display()
        );
        let agent = machine.start_agent_with(&more);
        machine.write("all.yaml", &format!("{PODS}---{POLICY}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        serve(&mut machine, "8080");
        eventually("the server answers", || machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));

        let scrape = |port: u16| {
            let url = format!("http://127.0.0.1:{port}/metrics");
            let page = Command::new("curl").args(["-s", "-m", "5", &url]).output().unwrap();
            text(&page.stdout)
        };
        let labels = "source_namespace=\"shop\",destination_workload=\"web\"";
        let dropped = format!("hubble_drop_total{{reason=\"POLICY_DENIED\",protocol=\"TCP\",{labels}}} ");
        eventually("the drop is counted", || scrape(9965).contains(&dropped));
        for (port, wanted) in [
            (9962, "cilium_drop_count_total{reason=\"Policy denied\",direction=\"INGRESS\"} "),
            (9962, "cilium_endpoint_state{endpoint_state=\"ready\"} 2\n"),
            (9962, "cilium_bpf_map_pressure{map_name=\"policy\"} "),
            (
                9962,
                "sluice_policy_rule_hits_total{kind=\"NetworkPolicy\",namespace=\"shop\",name=\"web-in\"} ",
            ),
            (
                9965,
                "hubble_policy_verdicts_total{direction=\"ingress\",match=\"l3-l4\",action=\"forwarded\",",
            ),
        ] {
            let page = scrape(port);
            assert_eq!(sluice::api::metrics::problems(&page), Vec::<String>::new());
            assert!(page.contains(wanted), "{wanted}\n{page}");
        }

        let line = "\"verdict\":\"DROPPED\",\"destination\":{\"pod_name\":\"web\"}";
        eventually("flows are exported", || {
            std::fs::read_to_string(&export).is_ok_and(|lines| lines.contains(line))
        });

        let past = |machine: &Machine| machine.done(&["observe", "--since", "1h", "--all", "-o", "json"]);
        assert!(past(&machine).contains("\"POLICY_DENIED\""));
        kill(Pid::from_raw(agent as i32), Signal::SIGTERM).unwrap();
        machine.children.remove(0).wait().unwrap();
        machine.start_agent_with(&more);
        assert!(past(&machine).contains("\"POLICY_DENIED\""), "history is gone with the agent");
        assert!(machine.done(&["observe", "--last", "500"]).contains("shop/client"));

        // The disk is full: history says so, and nothing else minds.
        let filler = state.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        eventually("history says that it has stopped", || {
            machine.fetch("http://10.244.0.10:8080/");
            text(&machine.sluice(&["status"]).stdout).contains("nothing is written")
        });
        assert!(scrape(9962).contains("sluice_history_stopped 1\n"));
        assert!(machine.fetch("http://10.244.0.10:8080/") && !machine.fetch("http://10.244.0.10:9090/"));
        // Space comes back when nobody has the file open any more.
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        eventually("history goes on", || {
            machine.fetch("http://10.244.0.10:8080/");
            scrape(9962).contains("sluice_history_stopped 0\n")
        });
    });
}

const LOCKDOWN: &str = "
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: lockdown}
spec:
  nodeSelector: {}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: '8022', protocol: TCP}]}]
";

#[test]
fn the_host_firewall_judges_devices_that_come_after_the_start() {
    on_a_machine(|mut machine| {
        machine.start_agent_with("host-firewall: on\n");
        machine.write("lockdown.yaml", LOCKDOWN);
        machine.done(&["policy", "apply", "lockdown.yaml"]);
        machine.serve_here("8022");
        machine.serve_here("8023");
        let ok = |names: &str| (format!("devices {names}"), "ok".to_owned());
        let judged = |machine: &Machine, address: &str| {
            let url = |port: u16| format!("http://{address}:{port}/");
            eventually("what policy allows passes", || machine.fetch_from("wire", &url(8022)));
            assert!(!machine.fetch_from("wire", &url(8023)), "{address}:8023 passed the host firewall");
        };
        let come = |machine: &Machine| {
            machine.ip("link add late0 type veth peer name late1 netns wire");
            machine.ip("link set late0 up");
            machine.ip("-n wire link set late1 up");
            machine.ip("-n wire addr add 198.51.100.2/24 dev late1");
        };
        assert_eq!(machine.devices(), ok("up0"));
        come(&machine);
        machine.ip("addr add 198.51.100.1/24 dev late0");
        eventually("a late device is judged", || machine.devices() == ok("up0, late0"));
        judged(&machine, "198.51.100.1");
        // Without an address nothing of the node's runs over it, yet it is not given up.
        machine.ip("addr del 198.51.100.1/24 dev late0");
        machine.ip("addr add 198.51.100.1/24 dev late0");
        judged(&machine, "198.51.100.1");
        machine.ip("link del late0");
        eventually("a device that is gone is forgotten", || machine.devices() == ok("up0"));
        come(&machine);
        machine.ip("addr add 198.51.100.1/24 dev late0");
        eventually("it is judged when it comes back", || machine.devices() == ok("up0, late0"));
        judged(&machine, "198.51.100.1");

        // The uplink is another device under the same name.
        machine.ip("link del up0");
        eventually("a missing uplink is reported", || machine.devices().1 == "degraded");
        machine.ip("link add up0 type veth peer name up1 netns wire");
        machine.ip("addr add 192.0.2.1/24 dev up0");
        machine.ip("link set up0 up");
        machine.ip("-n wire link set up1 up");
        machine.ip("-n wire addr add 192.0.2.2/24 dev up1");
        eventually("the new uplink is judged", || machine.devices() == ok("up0, late0"));
        judged(&machine, "192.0.2.1");
    });
}

#[test]
fn a_pods_device_with_an_address_of_the_node_is_judged_as_the_pods() {
    on_a_machine(|mut machine| {
        let agent = machine.start_agent_with("host-firewall: on\n");
        machine.write("all.yaml", &format!("{PODS}---{LOCKDOWN}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        machine.ip("link add pod0 type veth peer name eth0 netns client");
        machine.ip("addr add 10.244.0.1/32 dev pod0");
        machine.ip("link set pod0 up");
        machine.ip("-n client link set eth0 up");
        eventually("it is the node's at first", || machine.devices().0 == "devices up0, pod0");
        machine.done(&["endpoint", "add", "shop/client", "--netns", "/run/netns/client"]);
        assert_eq!(machine.devices().0, "devices up0");
        kill(Pid::from_raw(agent as i32), Signal::SIGTERM).unwrap();
        machine.children.remove(0).wait().unwrap();
        machine.start_agent_with("host-firewall: on\n");
        assert_eq!(machine.devices().0, "devices up0", "a restart does not take it for the node's either");
        machine.done(&["endpoint", "remove", "shop/client"]);
        eventually("it is the node's again", || machine.devices().0 == "devices up0, pod0");
    });
}

/// More entries than the kernel's table has for one pod: 2,500 prefixes times 40 ports times three protocols.
/// Under the names that `endpoint add` gave: it was open until the endpoint was added again.
#[test]
fn a_device_in_place_of_one_that_went_is_judged() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("pods.yaml", PODS);
        machine.done(&["policy", "apply", "pods.yaml"]);
        let is_judged = || {
            let programs = SchedClassifier::query_tcx("host0", TcAttachType::Ingress);
            programs.is_ok_and(|(_, programs)| !programs.is_empty())
        };
        for device in ["first", "second"] {
            machine.ip("link add host0 type veth peer name eth0 netns web");
            if device == "first" {
                machine.done(&["endpoint", "add", "shop/web", "--netns", "/run/netns/web"]);
            }
            eventually("the device is judged", is_judged);
            let is_in_state = |state| machine.done(&["endpoint", "list"]).contains(state);
            eventually("the endpoint is ready", || is_in_state("ready"));
            machine.ip("link del host0");
            eventually("its device is missed", || is_in_state("waiting-for-device"));
        }
    });
}

fn enormous() -> String {
    let prefixes: Vec<String> = (0..2500).map(|n| format!("20.{}.{}.0/24", n / 256, n % 256)).collect();
    let ports: Vec<String> = (1..=40).map(|n| format!("{{port: '{}'}}", 1000 + n * 7)).collect();
    format!(
        "# Egress of the shop.
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{namespace: shop, name: enormous}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  egress:
  - toCIDR: [192.0.2.0/24]
  - toCIDR: [{}]
    toPorts: [{{ports: [{}]}}]
",
        prefixes.join(", "),
        ports.join(", ")
    )
}

#[test]
fn a_policy_that_exceeds_a_map_is_refused_with_its_place_and_enforcement_goes_on() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("all.yaml", &format!("{PODS}---{POLICY}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        serve(&mut machine, "8080");
        serve(&mut machine, "9090");
        eventually("the server answers", || machine.fetch("http://10.244.0.10:8080/"));
        let before = machine.done(&["policy", "get"]);

        machine.write("first.yaml", &POLICY.replace("web-in", "web-too"));
        let big = machine.write("big.yaml", &enormous());
        let said = machine.refused(2, &["policy", "apply", "first.yaml", "big.yaml"]);
        for part in
            ["big.yaml:10:15: ", "CiliumNetworkPolicy shop/enormous", "spec.egress[1]", "the limit is 262144"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        let socket = machine.path("run/admin.sock");
        let answer = Command::new("curl")
            .args(["-s", "-w", " %{http_code}", "http://agent/v1/objects", "--data-binary"])
            .arg(format!("@{}", big.display()))
            .arg("--unix-socket")
            .arg(socket)
            .output()
            .unwrap();
        let answer = text(&answer.stdout);
        assert!(answer.ends_with(" 422"), "{answer}");
        for part in ["10:15: ", "shop/enormous", "spec.egress[1].toPorts[0]"] {
            assert!(answer.contains(part), "{part}: {answer}");
        }

        assert_eq!(machine.done(&["policy", "get"]), before);
        assert!(machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));
        machine.done(&["bpf", "diff"]);
        machine.done(&["status"]);
    });
}
