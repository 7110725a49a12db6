//! `sluice endpoint`: local pods and their devices.

use super::connect::{Connection, block_on, encode};
use super::print::{self, Output};
use super::{CliError, CliResult, Exit};
use crate::api::types::{DeviceOrigin, Endpoint, EndpointRequest};

#[derive(Debug, clap::Args)]
pub struct EndpointArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: EndpointCommand,
}

#[derive(Debug, clap::Subcommand)]
enum EndpointCommand {
    /// List local endpoints
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show one endpoint (NAMESPACE/POD or its number)
    Get {
        endpoint: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Put a pod's device under policy
    ///
    /// The device is named by the pod's network namespace (a path such as /run/netns/web) or by the
    /// node's side of its veth. A pod that no object describes is described here by labels and
    /// addresses:
    ///
    ///   sluice endpoint add shop/web --netns /run/netns/web --label app=web --address 10.244.0.9
    ///
    /// Where an object describes it, now or later, that counts, and what is said here does not.
    ///
    /// With --create the namespace needs no device: a veth pair is made, and deleted with the endpoint.
    ///
    /// What is described here is known to this node alone. Where a server keeps the objects, apply the Pod there
    /// instead, so that the other nodes know it too.
    Add {
        /// NAMESPACE/POD
        pod: String,
        /// Network namespace of the pod (path)
        #[arg(
            long,
            value_name = "PATH",
            required_unless_present = "host_interface",
            conflicts_with = "host_interface"
        )]
        netns: Option<String>,
        /// Device inside the pod's namespace
        #[arg(long, value_name = "DEVICE", default_value = "eth0")]
        interface: String,
        /// The node's side of the veth
        #[arg(long, value_name = "DEVICE")]
        host_interface: Option<String>,
        /// Make the device: a veth pair into the namespace, with the pod's addresses and a default route
        #[arg(long, conflicts_with = "host_interface")]
        create: bool,
        /// Label of the pod (repeat)
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Address of the pod (repeat)
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<std::net::IpAddr>,
    },
    /// Take a pod's device out of policy (it is deleted only if `add --create` made it)
    Remove {
        /// NAMESPACE/POD
        pod: String,
    },
}

pub fn run(args: EndpointArgs) -> CliResult {
    block_on(async {
        let client = args.connection.client();
        match args.command {
            EndpointCommand::List { output } => {
                let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
                list(output, &endpoints)
            }
            EndpointCommand::Get { endpoint, output } => {
                let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
                let found: Vec<_> = endpoints
                    .into_iter()
                    .filter(|known| known.pod == endpoint || known.id.to_string() == endpoint)
                    .collect();
                if found.is_empty() {
                    return Err(CliError::Failed(anyhow::anyhow!("no endpoint {endpoint} on this node")));
                }
                match output {
                    Output::Json => list(Output::Json, &found),
                    Output::Table => found.iter().try_for_each(detail).map(|()| Exit::Done),
                }
            }
            EndpointCommand::Add { pod, netns, interface, host_interface, create, labels, addresses } => {
                let labels = labels
                    .iter()
                    .map(|label| match label.split_once('=') {
                        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
                        None => Err(CliError::Invalid(format!("--label {label}: expected KEY=VALUE"))),
                    })
                    .collect::<Result<_, _>>()?;
                let request = EndpointRequest {
                    pod,
                    interface: netns.is_some().then_some(interface),
                    netns,
                    host_interface,
                    device: if create { DeviceOrigin::Create } else { DeviceOrigin::Existing },
                    labels,
                    addresses,
                };
                let body = serde_json::to_vec(&request).map_err(anyhow::Error::from)?;
                let endpoint: Endpoint = client.put("/v1/endpoints", body).await?;
                anstream::println!(
                    "endpoint {} {} ({})",
                    endpoint.id,
                    print::plain(&endpoint.pod),
                    endpoint.state
                );
                Ok(Exit::Done)
            }
            EndpointCommand::Remove { pod } => {
                let Some((namespace, name)) = pod.split_once('/') else {
                    return Err(CliError::Invalid(format!("{pod}: expected NAMESPACE/POD")));
                };
                let (): () =
                    client.delete(&format!("/v1/endpoints/{}/{}", encode(namespace), encode(name))).await?;
                anstream::println!("endpoint {} removed", print::plain(&pod));
                Ok(Exit::Done)
            }
        }
    })
}

fn enforcement(side: &crate::api::types::Enforcement) -> String {
    match (side.default_deny, side.policies.len()) {
        (true, count) => format!("default-deny ({count})"),
        (false, 0) => "open".to_owned(),
        (false, count) => format!("open ({count})"),
    }
}

fn list(output: Output, endpoints: &[Endpoint]) -> CliResult {
    let rows = endpoints.iter().map(|endpoint| {
        vec![
            endpoint.id.to_string(),
            endpoint.pod.clone(),
            endpoint.identity.to_string(),
            endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            endpoint.interface.clone(),
            enforcement(&endpoint.ingress),
            enforcement(&endpoint.egress),
            endpoint.policy_entries.to_string(),
            endpoint.state.clone(),
        ]
    });
    let headings = ["id", "pod", "identity", "addresses", "device", "ingress", "egress", "entries", "state"];
    print::rows(output, &endpoints, &headings, rows)?;
    Ok(Exit::Done)
}

fn detail(endpoint: &Endpoint) -> Result<(), CliError> {
    list(Output::Table, std::slice::from_ref(endpoint))?;
    anstream::println!("\nlabels");
    for label in endpoint.labels.iter() {
        anstream::println!("  {}", print::plain(&label.to_string()));
    }
    for (name, side) in [("ingress", &endpoint.ingress), ("egress", &endpoint.egress)] {
        anstream::println!("\n{name} policies");
        for object in &side.policies {
            anstream::println!("  {object}");
        }
        if side.policies.is_empty() {
            anstream::println!("  none");
        }
    }
    Ok(())
}
