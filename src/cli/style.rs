//! How the command line looks: colours and the text of `sluice --help`.

pub const ERROR: &str = "\x1b[1;31m";
pub const RESET: &str = "\x1b[0m";

pub const TEMPLATE: &str = "{about-with-newline}\n{usage-heading} sluice COMMAND [OPTIONS]\n{after-help}";

/// The commands in groups, in the order in which a new user meets them.
pub const TOUR: &str = "\
This tool:
  completions    print a shell completion script

Options:
  -h, --help     print help; `sluice COMMAND --help` says more about a command
  -V, --version  print version, commit and the version of the BPF ABI";
