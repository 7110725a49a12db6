//! The filters of `sluice observe` as flags: those of `hubble observe`, and more. What each means is in
//! [`filters`].

use clap::ValueHint;

use super::filters::{self, Builder};
use crate::api::hubble::pb::flow::FlowFilter;
use crate::cli::CliError;

macro_rules! filter_flags {
    ($($(#[$attribute:meta])* $field:ident: $name:literal),* $(,)?) => {
        /// Every filter that has a value.
        #[derive(Debug, Default, clap::Args)]
        #[command(next_help_heading = "Filters")]
        pub struct FilterArgs {
            $($(#[$attribute])* #[arg(long)] $field: Vec<String>,)*
            /// Only replies
            #[arg(long, conflicts_with = "not_reply")]
            reply: bool,
            /// Only what is no reply
            #[arg(long)]
            not_reply: bool,
            /// Only IPv4
            #[arg(short = '4', long)]
            ipv4: bool,
            /// Only IPv6
            #[arg(short = '6', long)]
            ipv6: bool,
            /// Flows of every namespace (that is the default)
            #[arg(short = 'A', long)]
            all_namespaces: bool,
            /// Only flows that sluice has not encrypted (all of them)
            #[arg(long)]
            unencrypted: bool,
            /// Turns the next filter around: --not --from-pod shop/web; or --not FILTER=VALUE
            #[arg(long, value_name = "FILTER")]
            not: Vec<String>,
            /// A FlowFilter as JSON; flows have to match one of these
            #[arg(long, value_name = "JSON")]
            allowlist: Vec<String>,
            /// A FlowFilter as JSON; flows that match one of these are left out
            #[arg(long, value_name = "JSON")]
            denylist: Vec<String>,
        }

        impl FilterArgs {
            /// Long names and values of the flags that were given.
            fn given(&self) -> Vec<(&'static str, &str)> {
                let mut given = Vec::new();
                $(given.extend(self.$field.iter().map(|value| ($name, value.as_str())));)*
                given.extend(self.reply.then_some(("reply", "true")));
                given.extend(self.not_reply.then_some(("reply", "false")));
                given.extend(self.ipv4.then_some(("ip-version", "v4")));
                given.extend(self.ipv6.then_some(("ip-version", "v6")));
                given.extend(self.unencrypted.then_some(("encrypted", "false")));
                given
            }
        }
    };
}

filter_flags! {
    /// [NAMESPACE/]POD at either end; a prefix is enough
    #[arg(value_name = "POD")] pod: "pod",
    #[arg(value_name = "POD")] from_pod: "from-pod",
    #[arg(value_name = "POD")] to_pod: "to-pod",
    /// Namespace at either end
    #[arg(short, value_name = "NAMESPACE")] namespace: "namespace",
    #[arg(value_name = "NAMESPACE")] from_namespace: "from-namespace",
    #[arg(value_name = "NAMESPACE")] to_namespace: "to-namespace",
    /// Label selector at either end, such as app=web or 'tier in (a,b)'
    #[arg(short, value_name = "SELECTOR")] label: "label",
    #[arg(value_name = "SELECTOR")] from_label: "from-label",
    #[arg(value_name = "SELECTOR")] to_label: "to-label",
    /// Identity at either end: a number, or a reserved name such as world-ipv4
    #[arg(value_name = "IDENTITY")] identity: "identity",
    #[arg(value_name = "IDENTITY")] from_identity: "from-identity",
    #[arg(value_name = "IDENTITY")] to_identity: "to-identity",
    /// Address or CIDR at either end
    #[arg(value_name = "IP")] ip: "ip",
    #[arg(value_name = "IP")] from_ip: "from-ip",
    #[arg(value_name = "IP")] to_ip: "to-ip",
    /// Port at either end
    #[arg(value_name = "PORT")] port: "port",
    #[arg(value_name = "PORT")] from_port: "from-port",
    #[arg(value_name = "PORT")] to_port: "to-port",
    /// DNS name at either end, such as *.example.com
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] fqdn: "fqdn",
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] from_fqdn: "from-fqdn",
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] to_fqdn: "to-fqdn",
    /// [NAMESPACE/]SERVICE that was addressed
    #[arg(value_name = "SERVICE")] service: "service",
    #[arg(value_name = "SERVICE")] from_service: "from-service",
    #[arg(value_name = "SERVICE")] to_service: "to-service",
    /// [KIND/]NAME of the workload at either end, such as Deployment/web
    #[arg(value_name = "WORKLOAD")] workload: "workload",
    #[arg(value_name = "WORKLOAD")] from_workload: "from-workload",
    #[arg(value_name = "WORKLOAD")] to_workload: "to-workload",
    /// Cluster of either end
    #[arg(value_name = "CLUSTER")] cluster: "cluster",
    #[arg(value_name = "CLUSTER")] from_cluster: "from-cluster",
    #[arg(value_name = "CLUSTER")] to_cluster: "to-cluster",
    /// Node that is itself an end
    #[arg(value_name = "NODE")] from_node: "from-node",
    #[arg(value_name = "NODE")] to_node: "to-node",
    /// Node that observed the flow; * for any characters
    #[arg(alias = "node", value_name = "NODE")] node_name: "node-name",
    #[arg(value_name = "SELECTOR", hide = true)] node_label: "node-label",
    /// tcp, udp, sctp, icmp, icmpv4, icmpv6, http, dns or tls
    #[arg(value_name = "PROTOCOL", value_parser = clap::builder::PossibleValuesParser::new(
        ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "http", "dns", "tls", "vrrp", "igmp"]), ignore_case = true,
        hide_possible_values = true)]
    protocol: "protocol",
    /// FORWARDED, DROPPED, REDIRECTED, AUDIT or ERROR
    #[arg(value_name = "VERDICT", value_parser = clap::builder::PossibleValuesParser::new(
        ["FORWARDED", "DROPPED", "REDIRECTED", "AUDIT", "ERROR", "TRACED", "TRANSLATED"]), ignore_case = true,
        hide_possible_values = true)]
    verdict: "verdict",
    /// Drop reason, such as POLICY_DENIED
    #[arg(value_name = "REASON")] drop_reason: "drop-reason",
    /// Drop reason in Hubble's words
    #[arg(value_name = "REASON", hide = true)] drop_reason_desc: "drop-reason-desc",
    /// drop, policy-verdict, l7, or trace[:POINT] such as trace:to-endpoint
    #[arg(short = 't', value_name = "TYPE")] r#type: "type",
    /// Policy that decided: NAMESPACE/NAME, or NAME
    #[arg(value_name = "POLICY")] policy: "policy",
    /// ingress or egress, seen from the pod whose policy decided
    #[arg(value_name = "DIRECTION", value_parser = clap::builder::PossibleValuesParser::new(["ingress", "egress"]),
          ignore_case = true, hide_possible_values = true)]
    traffic_direction: "traffic-direction",
    /// v4 or v6
    #[arg(value_name = "VERSION")] ip_version: "ip-version",
    /// TCP flags that are set: syn, or syn,ack for both
    #[arg(value_name = "FLAGS")] tcp_flags: "tcp-flags",
    #[arg(value_name = "METHOD")] http_method: "http-method",
    /// Regular expression for the path
    #[arg(value_name = "REGEX")] http_path: "http-path",
    /// Regular expression for the whole URL
    #[arg(value_name = "REGEX")] http_url: "http-url",
    /// Status such as 404, or a prefix such as 5+
    #[arg(value_name = "STATUS")] http_status: "http-status",
    #[arg(value_name = "KEY:VALUE", hide = true)] http_header: "http-header",
    /// Regular expression for the name that was looked up
    #[arg(value_name = "REGEX")] dns_query: "dns-query",
    /// TLS server name; * for any characters
    #[arg(value_name = "NAME")] server_name: "server-name",
    /// Device that the packet was seen on
    #[arg(value_name = "DEVICE")] interface: "interface",
    /// The one flow with this identifier
    #[arg(value_name = "UUID")] uuid: "uuid",
    #[arg(value_name = "IP", hide = true)] snat_ip: "snat-ip",
    #[arg(value_name = "ID", hide = true)] trace_id: "trace-id",
    #[arg(value_name = "ID", hide = true)] ip_trace_id: "ip-trace-id",
    /// CEL expression over the flow as it is in -o json: '_flow.verdict == Verdict.DROPPED'
    #[arg(value_name = "CEL")] cel_expression: "cel-expression",
}

impl FilterArgs {
    /// Allowlist and denylist.
    pub fn lists(&self) -> Result<(Vec<FlowFilter>, Vec<FlowFilter>), CliError> {
        let mut builder = Builder::default();
        for (name, value) in self.given() {
            builder.add(name, value).map_err(CliError::Invalid)?;
        }
        let mut allow = builder.finish();
        allow.extend(filters::raw("allowlist", &self.allowlist).map_err(CliError::Invalid)?);
        let mut deny = filters::raw("denylist", &self.denylist).map_err(CliError::Invalid)?;
        for excluded in &self.not {
            let (name, value) = excluded.split_once('=').ok_or_else(|| {
                CliError::Invalid(format!("--not {excluded}: expected a filter after it, or FILTER=VALUE"))
            })?;
            let mut builder = Builder::default();
            builder.add(name, value).map_err(|error| CliError::Invalid(format!("--not {error}")))?;
            deny.extend(builder.finish());
        }
        Ok((allow, deny))
    }
}
