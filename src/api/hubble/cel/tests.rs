//! Expressions as clients write them, on flows as agents tell them.

mod times;

use super::*;
use crate::flow::filter::SharedPredicate;
use crate::flow::tests::flow as example;
use crate::flow::{EventKind, HttpVersion, L7, Verdict};
use crate::model::{DropReason, Protocol};

fn naming() -> Naming {
    Naming { cluster: "default".into() }
}

fn compile(sources: &[&str]) -> Result<SharedPredicate, String> {
    let sources: Vec<_> = sources.iter().map(|source| (*source).to_owned()).collect();
    Expressions::compile(&sources, &naming()).map(SharedPredicate::new)
}

fn takes(source: &str, flow: &Flow) -> bool {
    compile(&[source]).unwrap_or_else(|error| panic!("{source}: {error}")).matches(flow)
}

fn refusal(source: &str) -> String {
    match compile(&[source]) {
        Ok(_) => panic!("{source}: not refused"),
        Err(error) => error,
    }
}

fn dropped() -> Flow {
    Flow { kind: EventKind::Drop, verdict: Verdict::Dropped(DropReason::PolicyDenied), ..example(80) }
}

fn request() -> Flow {
    let l7 = L7::Http {
        method: "GET".into(),
        path: "/api/v2/carts?id=7".into(),
        host: "shop.example".into(),
        status: 503,
        latency_us: 1500,
        version: HttpVersion::Http11,
        mismatches: Vec::new(),
    };
    Flow { kind: EventKind::L7, l7: Some(Box::new(l7)), ..example(80) }
}

#[test]
fn expressions_see_the_message_that_clients_see() {
    for (source, flow, wanted) in [
        ("true", example(80), true),
        ("_flow.verdict == Verdict.DROPPED", dropped(), true),
        ("_flow.verdict == flow.Verdict.DROPPED", example(80), false),
        ("._flow.verdict == .flow.Verdict.FORWARDED", example(80), true),
        ("_flow.verdict == 2", dropped(), true),
        ("_flow.verdict == Verdict.FORWARDED || _flow.verdict == Verdict.TRANSLATED", example(80), true),
        ("_flow.verdict in [Verdict.FORWARDED, Verdict.AUDIT]", dropped(), false),
        ("_flow.drop_reason_desc == DropReason.POLICY_DENIED", dropped(), true),
        ("_flow.sluice.drop_reason == 'POLICY_DENIED'", dropped(), true),
        ("Tunnel.Protocol.VXLAN == 1 && flow.Tunnel.Protocol.GENEVE == 2", example(80), true),
        ("_flow.IP.source == '10.244.0.5' && _flow.IP.ipVersion == IPVersion.IPv4", example(80), true),
        ("_flow.IP.source == '10.244.0.7' || _flow.IP.destination == '10.244.0.6'", example(80), true),
        ("_flow.source.namespace + '/' + _flow.source.pod_name == 'shop/frontend'", example(80), true),
        ("_flow.source.identity == 300u && _flow.source.identity < 1000", example(80), true),
        ("has(_flow.l4.TCP) && _flow.l4.TCP.destination_port == uint(80)", example(80), true),
        ("_flow.l4.TCP.destination_port == 80", example(81), false),
        ("_flow.l4.TCP.flags.SYN && !_flow.l4.TCP.flags.ACK", example(80), true),
        ("_flow.source.labels.exists(l, l == 'k8s:app=web')", example(80), true),
        ("'k8s:app=web' in _flow.source.labels", example(80), true),
        (
            "_flow.source.labels.all(l, l.startsWith('k8s:')) && size(_flow.source.labels) == 1",
            example(80),
            true,
        ),
        ("_flow.source.labels.exists_one(l, l.endsWith('=db'))", example(80), false),
        ("_flow.source.labels.map(l, l.contains('app'), size(l)) == [11]", example(80), true),
        ("_flow.source.labels.filter(l, l.contains('db')).size() == 0", example(80), true),
        ("_flow.source.labels[0].matches('^k8s:app=w')", example(80), true),
        ("matches(_flow.node_name, 'node[2-9]')", example(80), false),
        (
            "_flow.source.workloads.exists(w, w.kind == 'Deployment' && w.name == 'frontend')",
            example(80),
            true,
        ),
        ("[_flow.source, _flow.destination].exists(e, e.pod_name == 'backend')", example(80), true),
        ("_flow.source == _flow.destination", example(80), false),
        ("_flow.source == _flow.source", example(80), true),
        ("_flow.source_service == _flow.destination_service", example(80), true),
        ("_flow.l7.http.code >= 500 && _flow.l7.http.url.contains('/carts')", request(), true),
        ("_flow.l7.latency_ns > 1000000u", request(), true),
        ("_flow.event_type.type == 129", request(), true),
        ("{'shop': true}[_flow.source.namespace]", example(80), true),
        ("{'other': true}[_flow.source.namespace]", example(80), false),
        ("type(_flow.node_name) == string", example(80), true),
        ("_flow.Type == FlowType.L3_L4 ? _flow.is_reply == false : true", example(80), true),
    ] {
        assert_eq!(takes(source, &flow), wanted, "{source}");
    }
}

#[test]
fn what_is_not_set_reads_as_its_default() {
    let flow = Flow { protocol: Protocol::Udp, ..example(53) };
    for (source, wanted) in [
        ("_flow.l4.TCP.destination_port == 0 && _flow.l4.TCP.flags.SYN == false", true),
        ("_flow.l7.http.method == '' && _flow.l7.dns.query == ''", true),
        ("_flow.l7.http.headers.size() == 0 && _flow.source_names == []", true),
        ("_flow.l7.http.headers.exists(h, h.key == 'x')", false),
        ("_flow.ethernet.source == ''", true),
        ("_flow.drop_reason_desc == DropReason.DROP_REASON_UNKNOWN", true),
        ("_flow.extensions == null", true),
        ("_flow.l7 == null", false),
    ] {
        assert_eq!(takes(source, &flow), wanted, "{source}");
    }
}

#[test]
fn has_asks_whether_something_is_set() {
    for (source, flow, wanted) in [
        ("has(_flow.l7)", example(80), false),
        ("has(_flow.l7) && has(_flow.l7.http) && !has(_flow.l7.dns)", request(), true),
        ("has(_flow.l7.http.url)", example(80), false),
        ("has(_flow.l4.UDP)", Flow { protocol: Protocol::Udp, ..example(53) }, true),
        ("has(_flow.l4.UDP)", example(80), false),
        // As in protobuf: a scalar of its default value is not set.
        ("has(_flow.drop_reason_desc)", example(80), false),
        ("has(_flow.drop_reason_desc)", dropped(), true),
        ("has(_flow.is_reply)", example(80), true),
        ("has(_flow.source_names)", example(80), false),
        ("[_flow.source, _flow.destination].all(e, has(e.pod_name))", example(80), true),
        ("[_flow.source, {'pod_name': 1}].all(e, has(e.pod_name))", example(80), true),
        ("has({'a': 1}.a) && !has({'a': 1}.b)", example(80), true),
    ] {
        assert_eq!(takes(source, &flow), wanted, "{source}");
    }
}

#[test]
fn a_wrapper_is_its_value_or_null() {
    assert!(takes("_flow.is_reply == false && !_flow.is_reply", &example(80)));
    assert!(!takes("_flow.is_reply == null", &example(80)));
    assert!(takes("_flow.is_reply == true", &Flow { is_reply: true, ..example(80) }));
    let nothing = DynamicMessage::new(FLOW.clone());
    let program = Program::compile("_flow.is_reply == null").unwrap();
    assert_eq!(program.run(&nothing, &Meter::new(WORK)), Outcome::Bool(true));
}

#[test]
fn several_expressions_are_alternatives_until_one_fails() {
    let no = "_flow.verdict == Verdict.DROPPED";
    let yes = "_flow.verdict == Verdict.FORWARDED";
    let fails = "1 / (_flow.l4.TCP.destination_port - 80u) == 0u";
    for (sources, wanted) in [
        (&[no, yes][..], true),
        (&[no, no], false),
        (&[fails], false),
        (&[yes, fails], true),
        // As in Hubble.
        (&[fails, yes], false),
    ] {
        assert_eq!(compile(sources).unwrap().matches(&example(80)), wanted, "{sources:?}");
    }
    // The other operand decides, whichever it is.
    assert!(takes(&format!("{fails} || {yes}"), &example(80)));
    assert!(!takes(&format!("{fails} && {yes}"), &example(80)));
}

#[test]
fn what_can_be_known_to_be_wrong_is_refused() {
    for (source, message) in [
        ("", "[0]: 1:1: "),
        ("_flow.verdict ==", "1:17: "),
        ("something-invalid", "something: unknown name"),
        ("flow.verdict == 2", "flow.verdict: unknown name"),
        ("Verdict.DROPED == 2", "Verdict.DROPED: unknown name"),
        ("Verdict == 2", "Verdict: unknown name"),
        ("Verdict.DROPPED.x == 2", "unknown name"),
        ("_flow.source_labels == []", "flow.Flow has no member source_labels"),
        ("has(_flow.l5)", "flow.Flow has no member l5"),
        ("_flow.l4.TCP.port == 80", "flow.TCP has no member port"),
        ("_flow.source.workloads.exists(w, w.nam == '')", "flow.Workload has no member nam"),
        ("_flow.node_name.x == ''", "string has no member x"),
        ("_flow.is_reply.value", "wrapper has no member value"),
        ("_flow.time.seconds == 0", "timestamp has no member seconds"),
        ("_flow['verdict'] == 2", "flow.Flow has no index"),
        ("x.exists(y, true)", "x: unknown name"),
        ("[1].exists(x, true) && x == 1", "x: unknown name"),
        ("lower(_flow.node_name) == ''", "lower(): unknown function"),
        ("_flow.node_name.size(1) == 1", "size(): wrong number of arguments"),
        ("startsWith(_flow.node_name, 'a')", "startsWith() is called on a value"),
        ("1.uint() == 1u", "uint() is not called on a value"),
        ("optional.of(1).hasValue()", "optional: unknown name"),
        ("_flow.?verdict == 2", "unsupported syntax"),
        ("Flow{}.verdict == 2", "Flow: messages cannot be made here"),
        ("_flow", "the expression is no bool, but of type flow.Flow"),
        ("_flow.verdict", "the expression is no bool, but of type int"),
        ("_flow.is_reply", "the expression is no bool"),
        ("dyn(1)", "the expression is no bool"),
        ("_flow.verdict == 'DROPPED'", "== is not for int and string"),
        ("_flow.node_name < 1", "< is not for string and int"),
        ("_flow.source < _flow.source", "< is not for flow.Endpoint and flow.Endpoint"),
        ("1 in _flow.source.labels", "in is not for int and list(string)"),
        ("'a' in 'abc'", "in is not for string and string"),
        ("_flow.verdict && true", "&& is not for int and bool"),
        ("!_flow.verdict", "! is not for int"),
        ("1 ? true : false", "? : is not for int"),
        ("_flow.node_name.exists(c, true)", "a loop goes over a list or a map, not over string"),
        ("[1].filter(x, x).size() > 0", "the condition of a loop is no bool, but of type int"),
        ("_flow.node_name.matches(_flow.uuid)", "matches(): the regular expression has to be a literal"),
        ("_flow.node_name.matches('(')", "matches(): \"(\""),
        ("_flow.node_name.matches('(a{500}){500}')", "matches(): \"(a{500}){500}\""),
        ("1.matches('a')", "matches() is of a text, not of int"),
        (
            "['a'].exists(a, a.matches('1') || a.matches('2') || a.matches('3') || a.matches('4') || a.matches('5'))",
            "more than 4 regular expressions",
        ),
        ("[1].exists(a, [2].exists(b, [3].exists(c, a == b)))", "more than 2 loops within each other"),
    ] {
        let refused = refusal(source);
        assert!(refused.contains(message), "{source}: {refused}");
    }
    assert!(compile(&["true", "1"]).unwrap_err().starts_with("[1]: "));
}

#[test]
fn a_loop_may_give_its_range_to_another() {
    assert!(takes(
        "_flow.source.labels.filter(l, l.startsWith('k8s:')).map(l, l + '!').exists(l, l == 'k8s:app=web!')",
        &example(80)
    ));
    assert!(takes("_flow.source.labels.exists(l, ['app', 'db'].exists(k, l.contains(k)))", &example(80)));
    assert!(takes("[1, 2].map(_flow, _flow + 1) == [2, 3] && _flow.verdict == 1", &example(80)));
    assert!(takes("['a'].exists(_flow, ._flow.verdict == 1 && _flow == 'a')", &example(80)));
}

/// What repeats around something.
const SHAPES: [(&str, &str, &str); 37] = [
    ("(", "true", ")"),
    ("(", "", ""),
    ("!", "true", ""),
    ("!(", "true", ")"),
    ("-", "1", ""),
    ("- ", "1", ""),
    ("-(", "1", ")"),
    ("true ? ", "true", " : true"),
    ("true ? true : ", "true", ""),
    ("[", "1", "]"),
    ("[", "", ""),
    ("{1:", "1", "}"),
    ("{", "", ""),
    ("_flow.", "a", ""),
    ("", "_flow", ".l4"),
    ("", "_flow", "[0]"),
    ("", "'a'", ".size()"),
    ("size([", "1", "])"),
    ("f(", "", ""),
    ("true||", "true", ""),
    ("true&&", "true", ""),
    ("1+", "1", ""),
    ("1<", "1", ""),
    ("a.b(", "1", ")"),
    ("[1].map(x,", "x", ")"),
    ("", "[1]", ".map(x,x)"),
    ("[1].exists(x,", "true", ")"),
    ("A{a:", "1", "}"),
    ("has(", "a.b", ")"),
    ("'", "", ""),
    ("\\", "", ""),
    ("`", "", ""),
    ("//", "", "\n"),
    ("é", "", ""),
    ("\u{0}", "", ""),
    ("1,", "", ""),
    (".", "", ""),
];

#[test]
fn hostile_sources_need_no_stack_and_no_time() {
    let began = std::time::Instant::now();
    for (before, middle, after) in SHAPES {
        let most = (SOURCE - middle.len() - "[] != []".len()) / (before.len() + after.len());
        // As deep as may be, and the deepest that is not too deep.
        for times in (0..=DEPTH).chain([most]) {
            let inner = format!("{}{middle}{}", before.repeat(times), after.repeat(times));
            for source in [format!("[{inner}] != []"), inner] {
                // Whatever is taken has to run on the 2 MiB of a worker, where others have a part of them.
                let thread = std::thread::Builder::new().stack_size(3 << 19);
                let running = thread.spawn(move || compile(&[&source]).map(|one| one.matches(&example(80))));
                assert!(running.unwrap().join().is_ok());
            }
        }
    }
    for (source, message) in [
        (" ".repeat(SOURCE + 1), "longer than 1024 bytes"),
        (format!("{}true{}", "!(".repeat(40), ")".repeat(40)), "recursion limit"),
        (format!("1{} > 0", "+1".repeat(40)), "nested deeper than 24 levels"),
        (format!("[{}] == []", "-1+2,".repeat(200)), "more than 512 parts"),
    ] {
        let refused = refusal(&source);
        assert!(refused.contains(message), "{source}: {refused}");
    }
    assert!(compile(&[&format!("{}true", "_flow.verdict == 9 || ".repeat(45))]).is_ok());
    assert!(began.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn the_work_for_one_flow_is_bounded() {
    let list = format!("[{}1]", "1,".repeat(200));
    for (source, wanted) in [
        // Two hundred steps of a loop are nothing.
        (format!("{list}.all(x, x == 1)"), Outcome::Bool(true)),
        // Forty thousand are too many, whatever they would come to.
        (format!("{list}.all(x, {list}.all(y, x == y))"), Outcome::Error),
        (format!("{list}.map(x, {list}.size()).size() > 0"), Outcome::Error),
        // A value that grows by a factor in each of a chain of loops.
        (grown("x+x+x+x+x+x+x+x", 6), Outcome::Error),
        (grown("[x,x,x,x,x,x,x,x]", 6), Outcome::Error),
    ] {
        let program = Program::compile(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let nothing = DynamicMessage::new(FLOW.clone());
        let began = std::time::Instant::now();
        assert_eq!(program.run(&nothing, &Meter::new(WORK)), wanted, "{source}");
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "{source}: {:?}", began.elapsed());
    }
}

/// `[[[seed].map(x, body)].map(x, body)]` and so on.
fn grown(body: &str, times: usize) -> String {
    let seed = "'0123456789012345678901234567890123456789012345678901234567890123'";
    let mut source = format!("[{seed}]");
    for _ in 0..times {
        source = format!("{source}.map(x,{body})");
    }
    format!("{source} != []")
}
