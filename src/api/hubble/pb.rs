//! Generated from `proto/`: Hubble's published messages and our private additions to them.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

pub mod flow {
    tonic::include_proto!("flow");
}

pub mod observer {
    tonic::include_proto!("observer");
}

pub mod peer {
    tonic::include_proto!("peer");
}

pub mod relay {
    tonic::include_proto!("relay");
}

pub mod sluice {
    pub mod explain {
        pub mod v1 {
            tonic::include_proto!("sluice.explain.v1");
        }
    }
    pub mod flow {
        pub mod v1 {
            tonic::include_proto!("sluice.flow.v1");
        }
    }
}

/// The descriptors of all of the above and what they import.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/observer_descriptors.bin"));
