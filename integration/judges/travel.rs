//! The same connection in other clothes: whatever a first packet looks like and whichever address it names,
//! its flow gets one verdict (CVE-2026-33726, CVE-2025-30162 and CVE-2023-27594 in a peer).

use std::net::IpAddr;

use sluice::cluster::View;
use sluice::datapath::testrun::{Action, Fragment, Frame, Hook, Outcome};
use sluice::lab::judge::Disagreement;
use sluice::model::Family;
use sluice::policy::oracle::Flow;

use crate::kernel::{Way, agree, first_packet};

/// Sends every form of the first packet of `flow`, each from a source port of its own, from `port` on.
pub fn every_form(
    view: &View,
    flow: &Flow,
    way: Way,
    port: u16,
    send: &mut dyn FnMut(Way, &Frame) -> Outcome,
) -> Result<(), Disagreement> {
    let frame = |port: u16| Frame::new(flow.source, flow.destination, first_packet(flow, port));
    agree(view, flow, way, &send(way, &frame(port)))?;

    // A no-op and the end of the list; options for the destination behind options for every hop.
    let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    let dressed = match Family::of(flow.source) {
        Family::IPv4 => Frame { options: vec![1, 1, 1, 0], ..frame(port + 1) },
        Family::IPv6 => Frame { extensions: vec![(0, options.clone()), (60, options)], ..frame(port + 1) },
    };
    agree(view, flow, way, &send(way, &dressed))?;

    if let Some(frontend) = frontend(view, flow).filter(|_| way.hook == Hook::FromContainer) {
        let (address, service_port) = frontend;
        let through = Flow { destination: address, port: service_port, ..flow.clone() };
        let through = Frame::new(flow.source, address, first_packet(&through, port + 2));
        agree(view, flow, way, &send(way, &through))?;
    }

    if flow.protocol.has_ports() {
        let piece = |offset, more| {
            let fragment = Some(Fragment { id: u32::from(port), offset, more });
            Frame { payload: vec![7; 64], fragment, ..frame(port + 3) }
        };
        let first = send(way, &piece(0, true));
        agree(view, flow, way, &first)?;
        let is_dropped = |outcome: &Outcome| matches!(outcome.action, Action::Drop(_));
        let later = send(way, &piece(64, false));
        if is_dropped(&first) != is_dropped(&later) {
            return Err(Disagreement {
                subject: format!("a later fragment of {flow:?} at {:?}", way.hook),
                one: format!("its first fragment met {:?}", first.action),
                other: format!("it met {:?}", later.action),
            });
        }
    }
    Ok(())
}

/// A Service that has the destination as its only backend.
fn frontend(view: &View, flow: &Flow) -> Option<(IpAddr, u16)> {
    view.services().find_map(|(frontend, entry)| match entry.backends.as_slice() {
        [only]
            if (only.address, only.port, frontend.protocol)
                == (flow.destination, flow.port, flow.protocol) =>
        {
            Some((frontend.address, frontend.port))
        }
        _ => None,
    })
}
