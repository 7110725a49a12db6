//! How the command line looks: colours and the text of `sluice --help`.

pub const ERROR: &str = "\x1b[1;31m";
pub const RESET: &str = "\x1b[0m";

pub const TEMPLATE: &str = "{about-with-newline}\n{usage-heading} sluice COMMAND [OPTIONS]\n{after-help}";

/// The commands in groups, in the order in which a new user meets them.
pub const TOUR: &str = "\
Run:
  agent          the agent of this node (all that a single machine needs)
  server         state and identities of a small cluster, for its agents
  relay          the flows of all nodes in one place
  preflight      is this machine fit, and what to do if not
  http-proxy     HTTP and TLS server name policy (the agent starts it)
  dns-proxy      DNS policy and toFQDNs (the agent starts it)

Policy:
  policy         apply, get, delete, explain, lint and test policies

Operate:
  status         is everything well, and if not, what
  endpoint       local pods and their devices
  identity       security identities and their labels
  ipcache        addresses and their identities
  fqdn           names that pods looked up, and their addresses
  service        Service frontends and backends
  bpf            what is really in the kernel, and what should be
  observe        flows with verdict and the policy that decided
  monitor        drops and verdicts as they come
  ui             where the web UI is
  top            who talks to whom, full screen
  nodes          nodes whose flows can be seen here

Try and test:
  lab            a whole cluster in network namespaces on this machine

This tool:
  completions    print a shell completion script
  manpages       write the man pages into a directory

Options:
  -h, --help     print help; `sluice COMMAND --help` says more about a command
  -V, --version  print version, commit and the version of the BPF ABI

Examples:
  sluice policy apply default-deny.yaml
  sluice policy explain shop/frontend shop/backend:8080
  sluice observe --verdict DROPPED --follow
  sluice monitor --type drop --related-to shop/frontend
  sluice lab up && sluice lab exec shop/frontend -- curl -s backend";
