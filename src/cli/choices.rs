//! Words on the command line for what an agent may be told about policy: the same as in its configuration.

use crate::k8s::EmptyRuleLists;
use crate::policy::engine::Enforcement;

/// `--empty-rule-lists`.
pub fn empty_rule_lists(text: &str) -> Result<EmptyRuleLists, String> {
    match text {
        "deny" => Ok(EmptyRuleLists::Deny),
        "ignore" => Ok(EmptyRuleLists::Ignore),
        _ => Err("expected deny or ignore".to_owned()),
    }
}

/// `--policy-enforcement`.
pub fn enforcement(text: &str) -> Result<Enforcement, String> {
    match text {
        "default" => Ok(Enforcement::Default),
        "always" => Ok(Enforcement::Always),
        "never" => Ok(Enforcement::Never),
        _ => Err("expected default, always or never".to_owned()),
    }
}
