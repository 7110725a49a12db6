//! The table of connections, as tests change and look at it.

use aya::maps::{Array, MapData};
use aya::programs::SchedClassifier;

use super::super::abi::{CtKey, CtSet};
use super::super::connections::{KEEPER, Keeper, Kept};
use super::{Context, Hook, Kernel};

const TABLE: &str = "sl_ct";

impl Kernel {
    /// Puts a connection into the table, in place of what is known of it.
    pub fn keep_connection(&mut self, kept: &Kept) {
        let program: &mut SchedClassifier = (self.ebpf.program_mut(KEEPER))
            .and_then(|program| program.try_into().ok())
            .expect("the object has a program that keeps connections");
        if program.fd().is_err() {
            program.load().unwrap_or_else(|e| panic!("{KEEPER}: {e}"));
        }
        Keeper(program).replace(kept).expect("a place for the connection");
    }

    /// A connection, looked for where it has to be.
    pub fn connection(&self, key: &CtKey) -> Option<Kept> {
        let sets = self.sets();
        let place = self.secret.place(key, sets.len());
        of_set(&sets, place.set).into_iter().find(|kept| kept.key == *key)
    }

    /// Every connection in the table, expired ones too.
    pub fn connections(&self) -> Vec<Kept> {
        let sets = self.sets();
        (0..sets.len()).flat_map(|index| of_set(&sets, index)).collect()
    }

    /// Empties the table.
    pub fn forget_connections(&mut self) {
        let sets = self.sets();
        let used: Vec<u32> = (0..sets.len()).filter(|index| !of_set(&sets, *index).is_empty()).collect();
        for index in used {
            self.set(TABLE, index, CtSet::default());
        }
    }

    /// A program that several threads may run at once.
    pub fn shared(&mut self, hook: Hook) -> SharedProgram<'_> {
        self.verify(hook);
        SharedProgram(super::program(&mut self.ebpf, hook))
    }

    fn sets(&self) -> Array<&MapData, CtSet> {
        Array::try_from(self.ebpf.map(TABLE).expect("the object has a table of connections"))
            .unwrap_or_else(|e| panic!("{TABLE}: {e}"))
    }
}

/// One of the programs.
#[derive(Clone, Copy, Debug)]
pub struct SharedProgram<'a>(&'a SchedClassifier);

impl SharedProgram<'_> {
    /// Sends one packet: the tc action, and the packet afterwards.
    pub fn run(&self, frame: &[u8], context: Context) -> (u32, Vec<u8>) {
        let (action, frame, ..) = super::test_run(self.0, frame, context, 1);
        (action, frame)
    }
}

fn of_set(sets: &Array<&MapData, CtSet>, index: u32) -> Vec<Kept> {
    sets.get(&index, 0).unwrap_or_else(|e| panic!("{TABLE}: {e}")).kept().collect()
}
