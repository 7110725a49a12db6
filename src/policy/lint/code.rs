//! The codes: stable names of the traps, with what they mean and what to do. `docs/lint.md` has a
//! section for each.

use std::fmt;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Often meant so; good to know.
    Info,
    /// Probably not what the author means.
    Warning,
    /// The object is rejected.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $severity:ident, $explanation:literal, $fix:literal;)*) => {
        /// A trap. Its number never changes and is never given to another one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $(#[doc = $explanation] $name,)* }

        impl Code {
            /// In the order of numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// Such as `SL001`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $number,)* }
            }

            pub fn severity(self) -> Severity {
                match self { $(Code::$name => Severity::$severity,)* }
            }

            /// What happens, in a sentence or two.
            pub fn explanation(self) -> &'static str {
                match self { $(Code::$name => $explanation,)* }
            }

            /// What to write instead.
            pub fn fix(self) -> &'static str {
                match self { $(Code::$name => $fix,)* }
            }
        }
    };
}

codes! {
    NoDns = "SL001", Warning,
        "Egress is denied by default and no rule allows DNS, so every lookup of these pods fails.",
        "allow UDP and TCP port 53 to the cluster DNS pods";
    DenyOnly = "SL002", Warning,
        "The policy has only deny rules for this direction, and still turns default deny on: everything else stops, too.",
        "set enableDefaultDeny for the direction to false, or add the allow rules that are meant";
    FqdnWithoutDns = "SL003", Warning,
        "toFQDNs learns addresses from DNS answers that the proxy sees; no DNS rule covers this name, so its addresses are never learned.",
        "add an egress rule to the cluster DNS on port 53 with rules.dns that covers the name";
    Shadowed = "SL004", Warning,
        "A deny rule covers all that this rule allows: it can never have an effect, because deny wins.",
        "narrow the deny, or rely on default deny in its place";
    EmptyList = "SL005", Warning,
        "An explicit empty rule list turns default deny on here, unless empty-rule-lists is ignore; Cilium ignores it and isolates nothing.",
        "write one empty rule, `- {}`, which isolates everywhere";
    SelectsNothing = "SL006", Warning,
        "The selector matches no pod and no namespace that is known.",
        "check the labels for misprints";
    NarrowsNothing = "SL007", Info,
        "A rule allows every peer on every port, so the policy isolates nothing in this direction.",
        "name peers or ports, or delete the policy if that is meant";
    ServiceAddress = "SL008", Warning,
        "The address is the ClusterIP of a Service. Policy sees the backend that the Service is translated to, so the rule never matches.",
        "name the backends: their pods, or their addresses and target port (for the API server, the entity kube-apiserver)";
    IntegerPort = "SL009", Warning,
        "In a Cilium policy a port is a string; Cilium rejects the number.",
        "put the number in quotes";
    EndPortBelowPort = "SL010", Error,
        "endPort is below port, so the range is empty.",
        "swap them";
    ExceptOutside = "SL011", Error,
        "The exception is not inside the range that it is an exception of.",
        "remove it, or correct one of the two prefixes";
    L7Widened = "SL012", Warning,
        "Another rule allows the same peer on the same port without L7 rules: every request passes, and these L7 rules refuse nothing.",
        "remove the port from the other rule, or give it L7 rules, too";
    QueryString = "SL013", Info,
        "The path is matched with its query: this expression does not match the same path followed by `?` and parameters.",
        "end it with `(\\?.*)?`";
    ForeignNamespace = "SL014", Warning,
        "A namespace in the endpointSelector of a CiliumNetworkPolicy is ignored: the policy governs its own namespace alone.",
        "remove the label, or create the policy in that namespace";
    NamespaceLabel = "SL015", Warning,
        "The key looks like a label of the namespace, but is not where such labels are, so it matches pods' own labels alone.",
        "use k8s:io.kubernetes.pod.namespace for the name, io.cilium.k8s.namespace.labels.<key> for a label";
    MetadataReachable = "SL016", Warning,
        "The rule lets pods reach the cloud metadata service at 169.254.169.254, which hands out the node's credentials.",
        "except 169.254.169.254/32, or deny it in a policy of its own";
    InternalDenied = "SL017", Info,
        "Egress is denied by default and no rule names a peer inside the cluster besides DNS: other pods are not reachable either. Internal traffic is not allowed by default.",
        "allow the pods that are needed, for example `podSelector: {}` or `namespaceSelector: {}`";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
