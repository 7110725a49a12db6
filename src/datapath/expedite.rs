//! Attaching many programs in a row.
//!
//! The kernel waits for a grace period of RCU after each program that it attaches by tcx
//! (`tcx_entry_sync` in `net/core/dev.c` and `kernel/bpf/tcx.c`, Linux 6.6 and later): ten to forty
//! milliseconds, twice for each pod, one after the other under the lock of the network devices. Expedited
//! grace periods take a fraction of a millisecond and interrupt every CPU for it, which is the right price
//! while a node has no policy yet (`Documentation/RCU`, `/sys/kernel/rcu_expedited`).

use std::path::{Path, PathBuf};

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// Grace periods are expedited until this is dropped. Where the switch is on already, or may not be written, this
/// does nothing.
#[derive(Debug)]
#[must_use]
pub struct Expedited {
    switch: Option<PathBuf>,
}

impl Expedited {
    pub fn begin() -> Expedited {
        Expedited::at(Path::new(SWITCH))
    }

    fn at(switch: &Path) -> Expedited {
        let is_off = std::fs::read_to_string(switch).is_ok_and(|text| text.trim() == "0");
        let switched = is_off && std::fs::write(switch, "1").is_ok();
        Expedited { switch: switched.then(|| switch.to_owned()) }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(switch) = &self.switch
            && let Err(error) = std::fs::write(switch, "0")
        {
            tracing::warn!(%error, switch = %switch.display(), "grace periods stay expedited");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_switched_on_is_switched_off_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().join("rcu_expedited");
        let text = || std::fs::read_to_string(&switch).unwrap();
        for (before, meanwhile) in [("0\n", "1"), ("1\n", "1\n")] {
            std::fs::write(&switch, before).unwrap();
            let expedited = Expedited::at(&switch);
            assert_eq!(text(), meanwhile);
            drop(expedited);
            assert_eq!(text().trim(), before.trim());
        }
        drop(Expedited::at(&directory.path().join("absent")));
    }
}
