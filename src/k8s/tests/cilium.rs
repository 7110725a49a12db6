//! CiliumNetworkPolicy and its clusterwide form, CIDR groups.

use super::{cnp, peers, policy, read, rejected, resource, rule, spec, warnings};
use crate::cluster::Resource;
use crate::k8s::{EmptyRuleLists, ParseOptions, parse};
use crate::model::{Direction, Family, PortRange, Protocol};
use crate::policy::l7::{DnsPattern, HeaderMatch, HeaderValue, L7Rules, Mismatch};
use crate::policy::rule::{
    Action, Entity, GroupSelect, Peer, Peers, PortMatch, Ports, ServiceRef, Spec, Subject,
};

fn ccnp(lines: &str) -> String {
    let body: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\nspec:\n{body}"
    )
}

fn isolates(text: &str) -> (bool, bool) {
    let Spec { default_deny_ingress, default_deny_egress, .. } = spec(text);
    (default_deny_ingress, default_deny_egress)
}

fn ports(list: &str) -> Vec<PortMatch> {
    match rule(&cnp(&format!("ingress: [{{toPorts: [{{ports: [{list}]}}]}}]"))).ports {
        Ports::OneOf(ports) => ports,
        Ports::Any => panic!(),
    }
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch::Range(protocol, PortRange::new(first, last).unwrap())
}

fn l7(element: &str) -> L7Rules {
    let rule = rule(&cnp(&format!("egress: [{{toPorts: [{element}]}}]")));
    rule.l7.as_deref().unwrap().clone()
}

fn reject_element(element: &str, words: &[&str]) {
    rejected(&cnp(&format!("egress: [{{toPorts: [{element}]}}]")), words);
}

fn http(rules: &str) -> String {
    format!("{{ports: [{{port: \"80\", protocol: TCP}}], rules: {{http: {rules}}}}}")
}

#[test]
fn default_deny_follows_the_sections_unless_stated() {
    assert_eq!(isolates(&cnp("ingress: [{}]")), (true, false));
    assert_eq!(isolates(&cnp("ingressDeny: [{fromEntities: [world]}]")), (true, false));
    assert_eq!(isolates(&cnp("egressDeny: [{toEntities: [world]}]")), (false, true));
    assert_eq!(isolates(&cnp("egress: [{}]\ningress: [{}]")), (true, true));
    assert_eq!(
        isolates(&cnp("enableDefaultDeny: {ingress: false}\ningress: [{}]\negress: [{}]")),
        (false, true)
    );
    assert_eq!(
        isolates(&cnp("enableDefaultDeny: {ingress: true, egress: false}\negress: [{}]")),
        (true, false)
    );
}

#[test]
fn empty_lists_isolate_or_do_nothing_by_option() {
    let text = cnp("ingress: []\negress: []");
    assert_eq!(isolates(&text), (true, true));
    let options = ParseOptions { empty_rule_lists: EmptyRuleLists::Ignore, ..ParseOptions::default() };
    let manifest = parse("test.yaml", &text, &options);
    let Resource::Policy(policy) = &manifest.documents[0].resource else { panic!() };
    assert!(!policy.specs[0].default_deny_ingress && !policy.specs[0].default_deny_egress);
    assert_eq!(manifest.warnings().count(), 2);
}

#[test]
fn a_rule_needs_a_section_and_a_subject() {
    rejected(&cnp("description: nothing"), &["one of ingress, ingressDeny, egress and egressDeny is needed"]);
    rejected(&cnp("ingress: null"), &["is needed"]);
    rejected(&cnp("ingress: [{}]").replace("  endpointSelector: {}\n", ""), &["one of endpointSelector"]);
    rejected(&cnp("ingress: [{}]").replace("Selector: {}", "Selector: null"), &["one of endpointSelector"]);
    rejected(&cnp("nodeSelector: {}\ningress: [{}]"), &["only one of endpointSelector and nodeSelector"]);
    rejected(&cnp("ingress: [{}]").replace("endpointSelector", "nodeSelector"), &["Clusterwide"]);
    rejected(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n",
        &["one of spec and specs"],
    );
}

#[test]
fn a_node_selector_looks_at_node_labels_only() {
    let text = ccnp("nodeSelector: {matchLabels: {role: worker}}\ningress: [{}]");
    let Subject::Nodes(selector) = spec(&text).subject else { panic!() };
    assert_eq!(selector.requirements()[0].key.source, Some(crate::model::LabelSource::Node));
    rejected(
        &ccnp(
            "nodeSelector: {}\ningress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}]}}]}]",
        ),
        &["a policy with nodeSelector takes no L7 rules"],
    );
}

#[test]
fn spec_and_specs_together_are_one_policy() {
    let text = cnp("ingress: [{fromEntities: [all]}]")
        + "specs:\n- {endpointSelector: {}, egress: [{toEntities: [world]}]}\n";
    let policy = policy(&text);
    assert_eq!(policy.specs.len(), 2);
    assert_eq!(&*policy.specs[1].rules[0].path, "specs[0].egress[0]");
    assert!(read(&text.replace("cilium.io/v2", "cilium.io/v2alpha1")).is_valid());
}

#[test]
fn an_empty_rule_only_turns_default_deny_on() {
    assert!(spec(&cnp("ingress: [{}]")).rules.is_empty());
    assert!(spec(&cnp("ingress: [{authentication: {mode: disabled}}]")).rules.is_empty());
    assert!(spec(&cnp("ingressDeny: [{}]")).rules.is_empty());
}

#[test]
fn absent_peers_are_every_peer_and_empty_lists_are_none() {
    let every = rule(&cnp("ingress: [{toPorts: [{ports: [{port: \"80\"}]}]}]"));
    assert_eq!(every.peers, Peers::Any);
    for member in ["fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities", "fromNodes"] {
        let none = rule(&cnp(&format!("ingress: [{{{member}: []}}]")));
        assert_eq!((none.peers, none.ports), (Peers::OneOf(vec![]), Ports::Any), "{member}");
    }
}

#[test]
fn each_ports_element_is_a_rule_with_the_same_peers() {
    let spec = spec(&cnp(
        "egressDeny:\n- toEntities: [world]\n  toPorts:\n  - ports: [{port: \"80\", protocol: TCP}]\n  - ports: [{port: \"53\", protocol: UDP}]",
    ));
    let paths: Vec<&str> = spec.rules.iter().map(|rule| &*rule.path).collect();
    assert_eq!(paths, ["spec.egressDeny[0].toPorts[0]", "spec.egressDeny[0].toPorts[1]"]);
    for rule in &spec.rules {
        assert_eq!((rule.action, rule.direction), (Action::Deny, Direction::Egress));
        assert_eq!(peers(rule), [Peer::Entity(Entity::World)]);
    }
}

#[test]
fn one_kind_of_peer_in_one_rule() {
    rejected(
        &cnp("ingress: [{fromEndpoints: [{}], fromEntities: [world]}]"),
        &["spec.ingress[0]", "found fromEndpoints and fromEntities"],
    );
    rejected(&cnp("egress: [{toCIDR: [], toFQDNs: []}]"), &["only one kind of peer"]);
}

#[test]
fn what_is_not_supported_is_refused_and_never_ignored() {
    for rule in [
        "ingress: [{fromGroups: []}]",
        "ingress: [{fromRequires: [{}]}]",
        "egress: [{toGroups: [{aws: {}}]}]",
        "egress: [{toRequires: []}]",
        "ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]",
        "ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], listener: {name: x}}]}]",
        "ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], terminatingTLS: {}}]}]",
        "ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], originatingTLS: {}}]}]",
        "ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {kafka: []}}]}]",
        "ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {l7proto: x, l7: []}}]}]",
    ] {
        rejected(&cnp(rule), &["not supported"]);
    }
}

#[test]
fn entities_are_named() {
    let rule = rule(&cnp("ingress: [{fromEntities: [host, kube-apiserver, none]}]"));
    assert_eq!(
        peers(&rule),
        [Peer::Entity(Entity::Host), Peer::Entity(Entity::KubeApiserver), Peer::Entity(Entity::None)]
    );
    rejected(&cnp("ingress: [{fromEntities: [wrld]}]"), &["found \"wrld\"", "did you mean world?"]);
}

#[test]
fn cidrs_are_prefixes_or_addresses() {
    let text = cnp("egress: [{toCIDR: [10.1.2.3/8, 192.0.2.7, \"2001:db8::/32\"]}]");
    let found: Vec<String> = peers(&rule(&text))
        .iter()
        .map(|peer| match peer {
            Peer::Cidr(set) => set.cidr.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
    assert!(warnings(&text).contains("spec.egress[0].toCIDR[0]: the bits behind the prefix are set"));
    rejected(&cnp("egress: [{toCIDR: [\"::ffff:1.2.3.4/128\"]}]"), &["without ::ffff:"]);
    rejected(&cnp("egress: [{toCIDR: [example.com]}]"), &["expected a prefix"]);
}

#[test]
fn cidr_sets_name_a_prefix_a_group_or_labels() {
    let one = |set: &str| peers(&rule(&cnp(&format!("ingress: [{{fromCIDRSet: [{set}]}}]"))))[0].clone();
    let Peer::Cidr(set) = one("{cidr: 10.0.0.0/8, except: [10.2.0.0/16]}") else { panic!() };
    assert_eq!(set.except.len(), 1);
    let Peer::CidrGroup(group) = one("{cidrGroupRef: vpn, except: [10.0.0.0/24]}") else { panic!() };
    assert_eq!((group.groups, group.except.len()), (GroupSelect::Name("vpn".into()), 1));
    let Peer::CidrGroup(group) = one("{cidrGroupSelector: {matchLabels: {purpose: vpn}}}") else { panic!() };
    let GroupSelect::Labels(plain) = group.groups else { panic!() };
    for source in ["k8s", "any", "cidrgroup"] {
        let Peer::CidrGroup(group) =
            one(&format!("{{cidrGroupSelector: {{matchLabels: {{\"{source}:purpose\": vpn}}}}}}"))
        else {
            panic!()
        };
        assert_eq!(group.groups, GroupSelect::Labels(plain.clone()), "{source}");
    }
    for set in ["{}", "{cidr: 10.0.0.0/8, cidrGroupRef: vpn}"] {
        rejected(&cnp(&format!("ingress: [{{fromCIDRSet: [{set}]}}]")), &["expected exactly one"]);
    }
    rejected(&cnp("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/7]}]}]"), &["lies outside"]);
}

#[test]
fn a_cidr_group_is_a_list_of_prefixes() {
    let text = "apiVersion: cilium.io/v2alpha1\nkind: CiliumCIDRGroup\nmetadata: {name: g, labels: {a: b}}\nspec: {externalCIDRs: [10.0.0.0/8, \"fd00::/8\"]}\n";
    let Resource::CidrGroup(group) = resource(text) else { panic!() };
    assert_eq!((group.cidrs.len(), &group.labels["a"]), (2, "b"));
    rejected(&text.replace("externalCIDRs", "cidrs"), &["the field externalCIDRs is missing"]);
}

#[test]
fn a_service_without_a_namespace_is_one_of_any() {
    let one =
        |service: &str| peers(&rule(&cnp(&format!("egress: [{{toServices: [{service}]}}]"))))[0].clone();
    assert_eq!(
        one("{k8sService: {serviceName: db}}"),
        Peer::Service(ServiceRef::Name { namespace: None, name: "db".into() })
    );
    assert_eq!(
        one("{k8sService: {serviceName: db, namespace: data}}"),
        Peer::Service(ServiceRef::Name { namespace: Some("data".into()), name: "db".into() })
    );
    assert_eq!(
        one("{k8sService: {serviceName: db, namespace: \"\"}}"),
        one("{k8sService: {serviceName: db}}")
    );
    assert!(matches!(
        one("{k8sServiceSelector: {selector: {matchLabels: {tier: data}}}}"),
        Peer::Service(ServiceRef::Labels { namespace: None, .. })
    ));
    let clusterwide =
        rule(&ccnp("endpointSelector: {}\negress: [{toServices: [{k8sService: {serviceName: db}}]}]"));
    assert_eq!(peers(&clusterwide), [Peer::Service(ServiceRef::Name { namespace: None, name: "db".into() })]);
    for service in ["{}", "{k8sService: {}}", "{k8sServiceSelector: {}}"] {
        rejected(&cnp(&format!("egress: [{{toServices: [{service}]}}]")), &["toServices[0]"]);
    }
}

#[test]
fn ports_are_strings_with_numbers_or_names() {
    use Protocol::{Sctp, Tcp, Udp};
    assert_eq!(ports("{port: \"80\", protocol: TCP}"), [range(Tcp, 80, 80)]);
    assert_eq!(ports("{port: \"53\"}"), [range(Tcp, 53, 53), range(Udp, 53, 53), range(Sctp, 53, 53)]);
    assert_eq!(ports("{port: \"53\", protocol: ANY}"), ports("{port: \"53\"}"));
    assert_eq!(ports("{port: \"8000\", endPort: 8099, protocol: TCP}"), [range(Tcp, 8000, 8099)]);
    assert_eq!(ports("{port: HTTP, protocol: TCP}"), [PortMatch::Named(Tcp, "http".into())]);
    assert_eq!(ports("{port: \"0\", protocol: UDP}"), [PortMatch::Protocol(Udp)]);
    assert_eq!(ports("{port: \"0\"}"), [Tcp, Udp, Sctp].map(PortMatch::Protocol));
    assert_eq!(ports("{protocol: VRRP}"), [PortMatch::Protocol(Protocol::Vrrp)]);
    assert_eq!(ports("{protocol: IGMP}"), [PortMatch::Protocol(Protocol::Igmp)]);
    assert_eq!(ports("{port: \"8\", protocol: ICMP}"), [PortMatch::IcmpType(Family::IPv4, 8)]);
    assert_eq!(ports("{port: \"128\", protocol: ICMPv6}"), [PortMatch::IcmpType(Family::IPv6, 128)]);
}

#[test]
fn an_integer_port_is_read_with_a_warning() {
    assert_eq!(ports("{port: 80, protocol: TCP}"), [range(Protocol::Tcp, 80, 80)]);
    assert!(
        warnings(&cnp("ingress: [{toPorts: [{ports: [{port: 80}]}]}]"))
            .contains("found the number 80, expected a string: write \"80\"")
    );
    rejected(&cnp("ingress: [{toPorts: [{ports: [{port: 8.5}]}]}]"), &["expected a string"]);
    rejected(&cnp("ingress: [{toPorts: [{ports: [{port: -1}]}]}]"), &["no port number or name"]);
}

#[test]
fn an_end_port_beside_a_name_is_ignored_with_a_warning() {
    assert_eq!(
        ports("{port: http, endPort: 90, protocol: TCP}"),
        [PortMatch::Named(Protocol::Tcp, "http".into())]
    );
    assert!(
        warnings(&cnp("ingress: [{toPorts: [{ports: [{port: http, endPort: 90}]}]}]"))
            .contains("endPort does nothing")
    );
}

#[test]
fn ports_are_checked() {
    for (port, words) in [
        ("{port: \"70000\"}", "from \"0\" to \"65535\""),
        ("{port: \"080\"}", "from \"0\" to \"65535\""),
        ("{port: \"\"}", "missing or empty"),
        ("{protocol: TCP}", "missing or empty"),
        ("{port: \"80\", endPort: 79}", "endPort 79 is below port 80"),
        ("{port: \"0\", endPort: 79}", "every port"),
        ("{port: \"80\", protocol: tcp}", "did you mean TCP?"),
        ("{port: \"80\", protocol: VRRP}", "VRRP has no ports"),
        ("{port: \"256\", protocol: ICMP}", "types from 0 to 255"),
        ("{port: \"http\", protocol: ICMP}", "types from 0 to 255"),
        ("{port: \"a b\"}", "no port number or name"),
    ] {
        rejected(&cnp(&format!("ingress: [{{toPorts: [{{ports: [{port}]}}]}}]")), &[words]);
    }
    let many = (1..=41).map(|port| format!("{{port: \"{port}\"}}")).collect::<Vec<_>>().join(", ");
    rejected(
        &cnp(&format!("ingress: [{{toPorts: [{{ports: [{many}]}}]}}]")),
        &["found 41 ports, at most 40"],
    );
}

#[test]
fn empty_port_lists() {
    let text = cnp("ingress: [{fromEntities: [world], toPorts: []}]");
    assert_eq!(rule(&text).ports, Ports::Any);
    assert!(warnings(&text).contains("the same as no toPorts"));
    let text = cnp("ingress: [{fromEntities: [world], toPorts: [{ports: []}]}]");
    assert!(spec(&text).rules.is_empty());
    assert!(warnings(&text).contains("matches nothing"));
}

#[test]
fn icmp_types_by_number_and_name() {
    let text =
        cnp("ingress: [{icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}, {type: \"3\"}]}]}]");
    let types = [(Family::IPv4, 3), (Family::IPv4, 8), (Family::IPv6, 128)];
    assert_eq!(
        rule(&text).ports,
        Ports::OneOf(types.map(|(family, number)| PortMatch::IcmpType(family, number)).to_vec())
    );
    for (fields, words) in [
        ("{type: 256}", "from 0 to 255"),
        ("{type: EchoRequst}", "did you mean EchoRequest?"),
        ("{type: PacketTooBig}", "type of IPv4"),
        ("{family: IPv4}", "the field type is missing"),
        ("{type: 8, family: ipv4}", "did you mean IPv4?"),
    ] {
        rejected(&cnp(&format!("ingress: [{{icmps: [{{fields: [{fields}]}}]}}]")), &[words]);
    }
    rejected(
        &cnp("ingress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: \"80\"}]}]}]"),
        &["icmps and toPorts may not stand in one rule"],
    );
}

#[test]
fn fqdn_peers_are_names_or_patterns_in_allow_rules() {
    let rule =
        rule(&cnp("egress: [{toFQDNs: [{matchName: API.Stripe.com.}, {matchPattern: \"*.stripe.com\"}]}]"));
    assert_eq!(
        peers(&rule),
        [
            Peer::Fqdn(DnsPattern::Name("api.stripe.com".into())),
            Peer::Fqdn(DnsPattern::Pattern("*.stripe.com".into()))
        ]
    );
    for (item, words) in [
        ("{matchName: a.com, matchPattern: \"*.com\"}", "only one of matchName and matchPattern"),
        ("{}", "one of matchName and matchPattern is needed"),
        ("{matchName: \"*.com\"}", "use matchPattern"),
        ("{matchPattern: bücher.example}", "xn-- form"),
        ("{matchName: \"\"}", "empty"),
    ] {
        rejected(&cnp(&format!("egress: [{{toFQDNs: [{item}]}}]")), &[words]);
    }
    rejected(
        &cnp("egressDeny: [{toFQDNs: [{matchName: a.com}]}]"),
        &["toFQDNs may not stand in a deny rule"],
    );
}

#[test]
fn http_rules_are_expressions_and_headers() {
    let L7Rules::Http(rules) = l7(&http(
        "[{method: GET, path: \"/api/.*\", host: \"a:80\", headers: [\"X-A: b: c\", X-B], headerMatches: [{name: X-C, value: d, mismatch: REPLACE}]}]",
    )) else {
        panic!()
    };
    let header = |name: &str, value, mismatch| HeaderMatch { name: name.into(), value, mismatch };
    assert_eq!(
        rules[0].headers,
        [
            header("x-a", HeaderValue::Exact("b: c".into()), Mismatch::Deny),
            header("x-b", HeaderValue::Present, Mismatch::Deny),
            header("x-c", HeaderValue::Exact("d".into()), Mismatch::Replace)
        ]
    );
    assert_eq!(rules[0].path.as_deref(), Some("/api/.*"));
    let L7Rules::Http(every) = l7(&http("[{}]")) else { panic!() };
    assert_eq!(every.len(), 1);
}

#[test]
fn http_rules_are_checked() {
    for (rules, words) in [
        ("[]", "at least one rule"),
        ("[{path: \"/a(?=b)\"}]", "expected a regular expression"),
        ("[{path: \"(\"}]", "expected a regular expression"),
        ("[{path: \"/(a{1000}){1000}\"}]", "expected a regular expression"),
        (
            "[{path: \"(?x)/ a\"}]",
            "path: found \"(?x)/ a\", expected a regular expression: (?x)/ begins no group",
        ),
        ("[{method: 'GE**T'}]", "repeats a repetition"),
        ("[{host: '\\Z'}]", "is no escape of RE2"),
        ("[{path: \"/.*[a-z]{1000}[b-z]{1000}[c-z]{1000}N\"}]", "more than 128 KiB"),
        ("[{method: 5}]", "expected a string"),
        ("[{headers: [\"X-A:b\"]}]", "expected a space after the colon"),
        ("[{headers: [\"X A\"]}]", "expected a header name"),
        ("[{headerMatches: [{value: x}]}]", "the field name is missing"),
        ("[{headerMatches: [{name: a, mismatch: DENY}]}]", "expected one of LOG"),
        ("[{pathh: /a}]", "did you mean path?"),
    ] {
        reject_element(&http(rules), &["rules.http", words]);
    }
}

/// They were refused, or read as the regex crate reads them.
#[test]
fn http_expressions_are_those_of_re2() {
    for expression in
        ["/[a-z&&b]", "/[[ab]]", r"/\<admin\>", "/users/{id}", r"/\Qa.b\E", r"/\pL+", "/x[^[]", r"/\141"]
    {
        let L7Rules::Http(rules) = l7(&http(&format!("[{{path: '{expression}'}}]"))) else { panic!() };
        assert_eq!(rules[0].path.as_deref(), Some(expression), "a policy shows what was written");
    }
}

#[test]
fn rules_that_are_too_large_together_are_refused_where_they_stand() {
    let rules = |count: usize| {
        let rules: Vec<String> =
            (0..count).map(|n| format!("{{path: \"/.*a[a-z]{{750}}[a-z]{{750}}N{n}\"}}")).collect();
        http(&format!("[{{path: /ok}}, {}]", rules.join(", ")))
    };
    l7(&rules(100));
    reject_element(
        &rules(200),
        &["toPorts[0].rules.http", "200 regular expressions are too large together", "16 MiB"],
    );
}

#[test]
fn headers_that_frame_a_message_are_matched_and_not_changed() {
    let element = |name: &str, mismatch: &str| {
        http(&format!("[{{headerMatches: [{{name: {name}, value: \"5\", mismatch: {mismatch}}}]}}]"))
    };
    for name in [
        "Host",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Keep-Alive",
        "Proxy-Connection",
    ] {
        for mismatch in ["ADD", "DELETE", "REPLACE"] {
            let place = "rules.http[0].headerMatches[0].mismatch";
            reject_element(&element(name, mismatch), &[place, "but not changed"]);
        }
        l7(&element(name, "LOG"));
    }
    reject_element(&element("\":path\"", "REPLACE"), &["expected a header name"]);
    reject_element(
        &http("[{headerMatches: [{name: a, value: \"b\\r\\nc: d\", mismatch: ADD}]}]"),
        &["headerMatches[0].value", "no control characters"],
    );
}

#[test]
fn secrets_of_other_namespaces_are_refused_in_a_namespaced_policy() {
    let element = |secret: &str| http(&format!("[{{headerMatches: [{{name: a, secret: {secret}}}]}}]"));
    let L7Rules::Http(rules) = l7(&element("{name: s}")) else { panic!() };
    assert_eq!(
        rules[0].headers[0].value,
        HeaderValue::Secret { namespace: "shop".into(), name: "s".into(), key: None }
    );
    reject_element(&element("{name: s, namespace: kube-system}"), &["its own namespace only"]);
    rejected(
        &ccnp(&format!("endpointSelector: {{}}\negress: [{{toPorts: [{}]}}]", element("{name: s}"))),
        &["the field namespace is missing"],
    );
}

#[test]
fn http_needs_tcp_and_a_port() {
    for port in ["{port: \"80\"}", "{port: \"80\", protocol: ANY}", "{port: \"80\", protocol: UDP}"] {
        reject_element(&format!("{{ports: [{port}], rules: {{http: [{{}}]}}}}"), &["need protocol: TCP"]);
    }
    reject_element("{ports: [{port: \"0\", protocol: TCP}], rules: {http: [{}]}}", &["\"0\" is every port"]);
    reject_element("{rules: {http: [{}]}}", &["L7 rules need ports"]);
    reject_element(
        "{ports: [{port: \"53\", protocol: TCP}], rules: {http: [{}], dns: [{matchPattern: \"*\"}]}}",
        &["may not stand in one element"],
    );
}

#[test]
fn dns_rules_are_for_egress_on_a_single_port() {
    let text = cnp(
        "egress: [{toPorts: [{ports: [{port: \"53\", protocol: ANY}], rules: {dns: [{matchPattern: \"*\"}]}}]}]",
    );
    let dns = rule(&text);
    assert_eq!(dns.l7.as_deref(), Some(&L7Rules::Dns(vec![DnsPattern::Pattern("*".into())])));
    assert_eq!(
        dns.ports,
        Ports::OneOf(vec![range(Protocol::Tcp, 53, 53), range(Protocol::Udp, 53, 53)]),
        "SCTP carries no DNS"
    );
    rejected(&text.replace("egress", "ingress"), &["dns rules are for egress only"]);
    for port in ["{port: \"53\", endPort: 54}", "{port: dns}"] {
        reject_element(
            &format!("{{ports: [{port}], rules: {{dns: [{{matchName: a}}]}}}}"),
            &["single port number"],
        );
    }
    reject_element("{ports: [{port: \"0\"}], rules: {dns: [{matchName: a}]}}", &["every port"]);
    reject_element(
        "{ports: [{port: \"53\", protocol: SCTP}], rules: {dns: [{matchName: a}]}}",
        &["UDP, TCP or ANY"],
    );
    reject_element("{ports: [{port: \"53\"}], rules: {dns: []}}", &["at least one rule"]);
}

#[test]
fn server_names_stand_alone_and_need_tcp() {
    let element =
        "{ports: [{port: \"443\", protocol: TCP}], serverNames: [wiki.example, \"*.docs.example\"]}";
    assert_eq!(
        l7(element),
        L7Rules::Tls(vec![
            DnsPattern::Name("wiki.example".into()),
            DnsPattern::Pattern("*.docs.example".into())
        ])
    );
    let any = rule(&cnp(&format!("egress: [{{toPorts: [{}]}}]", element.replace("TCP", "ANY"))));
    assert_eq!(any.ports, Ports::OneOf(vec![range(Protocol::Tcp, 443, 443)]));
    reject_element(&element.replace("TCP", "UDP"), &["serverNames need protocol: TCP"]);
    reject_element(&element.replace("443", "0"), &["\"0\" is every port"]);
    reject_element(
        &element.replace("serverNames", "rules: {http: [{}]}, serverNames"),
        &["may not stand in one element"],
    );
    reject_element("{ports: [{port: \"443\", protocol: TCP}], serverNames: []}", &["at least one rule"]);
}

#[test]
fn deny_rules_have_no_l7() {
    for extra in ["rules: {http: [{}]}", "serverNames: [a.example]"] {
        rejected(
            &cnp(&format!(
                "egressDeny: [{{toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}], {extra}}}]}}]"
            )),
            &["may not stand in a deny rule"],
        );
    }
}
