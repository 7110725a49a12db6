//! What others take away from the node: found out, put back, reported.
//!
//! `tc qdisc del`, `bpftool link detach` or the removal of a pin leave a device that nobody judges, and the kernel tells
//! nobody. So the agent looks, which costs two system calls for each program that is where it should be (with clsact, a
//! replaced filter). For at most [`PERIOD`] such a device is open. What the node needs beside programs is looked after
//! as well (`host_state`); without it traffic is dropped.

use std::fmt;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::core::{Core, CoreHandle};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// What was found so far.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    /// What was put back.
    pub restored: u64,
    /// Why programs cannot be put back.
    pub trouble: Option<String>,
}

impl fmt::Display for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("on every device that they judge, and proxies get their packets")?;
        match self.restored {
            0 => Ok(()),
            restored => write!(f, "; taken away and put back: {restored}"),
        }
    }
}

/// Runs until the core is gone.
pub async fn run(core: CoreHandle) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if core.call(Core::look_after_programs).await.is_err() {
            return;
        }
    }
}

impl Core {
    /// See the module.
    pub fn look_after_programs(&mut self) {
        self.find_missing();
        let found = self.kernel.restore_programs();
        for what in &found.missing {
            tracing::error!(what, "somebody had taken away what traffic is judged by: it is put back");
        }
        self.attachments.restored += found.missing.len() as u64;
        let trouble = found.failed.map(|error| error.to_string());
        if let Some(error) = trouble.as_ref().filter(|_| self.attachments.trouble != trouble) {
            tracing::error!(error, "what traffic is judged by may be missing");
        }
        self.attachments.trouble = trouble;
    }
}

#[cfg(test)]
mod tests {
    use crate::agent::tests::rig;
    use crate::api::backend::Backend as _;
    use crate::api::types::Component;

    #[tokio::test]
    async fn status_says_that_programs_were_taken_off_and_put_back_or_cannot_be() {
        let rig = rig();
        let look = async || {
            rig.backend.core.call(super::Core::look_after_programs).await.unwrap();
            let components = rig.backend.status().await.unwrap().components;
            let component: Component = components.into_iter().find(|c| c.name == "programs").unwrap();
            (component.state, component.failures)
        };
        assert_eq!(look().await, ("ok".to_owned(), 0));
        rig.kernel.0.lock().missing = vec!["veth1".to_owned(), "veth2".to_owned()];
        assert_eq!(look().await, ("ok".to_owned(), 2));
        rig.kernel.0.lock().failures = 1;
        assert_eq!(look().await, ("degraded".to_owned(), 2));
        assert_eq!(look().await, ("ok".to_owned(), 2));
    }
}
