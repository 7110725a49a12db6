//! Drop reasons: one list, in `bpf/abi.h`, from which this enum is generated.

include!(concat!(env!("OUT_DIR"), "/drop_reasons.rs"));

impl DropReason {
    /// The reason with this number, as an event or a counter carries it.
    pub fn from_number(number: u8) -> Option<DropReason> {
        Self::ALL.iter().copied().find(|reason| *reason as u8 == number)
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}
