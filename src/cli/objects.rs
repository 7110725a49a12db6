//! `sluice policy apply|get|delete|explain`: objects of a running agent.

use std::path::PathBuf;

use super::connect::{Connection, block_on, encode};
use super::manifests::Manifests;
use super::print::{self, Output, plain};
use super::{CliError, CliResult, Exit};
use crate::api::client::ClientError;
use crate::api::types::{Applied, ExplainAnswer, StoredObject};
use crate::model::Kind;

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    connection: Connection,
    /// Manifests: files, directories, or - for standard input. All objects of all files are one
    /// transaction: one that is invalid refuses all, and nothing changes.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Validate only
    #[arg(long)]
    dry_run: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct GetArgs {
    #[command(flatten)]
    connection: Connection,
    /// A kind such as NetworkPolicy, an object (NAME or NAMESPACE/NAME), or both
    #[arg(num_args = 0..=2, value_name = "KIND] [OBJECT")]
    wanted: Vec<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Objects of every kind, not only policies
    #[arg(long)]
    all: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    connection: Connection,
    /// Kind, such as NetworkPolicy
    kind: String,
    /// NAME, or NAMESPACE/NAME
    object: String,
}

#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    connection: Connection,
    /// Source: NAMESPACE/POD or an address
    from: String,
    /// Destination: NAMESPACE/POD:PORT, IP:PORT or [IPV6]:PORT (ICMP: without a port)
    to: String,
    /// TCP, UDP, SCTP, ICMP or ICMPv6
    #[arg(long, default_value = "TCP")]
    protocol: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn print_applied(output: Output, applied: &Applied, suffix: &str) -> CliResult {
    for warning in &applied.warnings {
        anstream::eprintln!("\x1b[33mwarning:\x1b[0m {}", plain(warning));
    }
    match output {
        Output::Json => {
            anstream::println!("{}", serde_json::to_string_pretty(applied).map_err(anyhow::Error::from)?)
        }
        Output::Table => {
            for result in &applied.results {
                anstream::println!("{} {}{suffix}", plain(&result.object.to_string()), result.action);
            }
        }
    }
    Ok(Exit::Done)
}

pub fn apply(args: ApplyArgs) -> CliResult {
    let manifests = Manifests::read(&args.files)?;
    block_on(async {
        let path = if args.dry_run { "/v1/objects?dry-run=true" } else { "/v1/objects" };
        let answer = args.connection.client().post(path, manifests.text().to_owned()).await;
        let mut applied: Applied = answer.map_err(|error| match error {
            ClientError::Refused { status, error, problems } => ClientError::Refused {
                status,
                error,
                problems: problems.iter().map(|problem| manifests.place(problem)).collect(),
            },
            other => other,
        })?;
        for warning in &mut applied.warnings {
            *warning = manifests.place(warning);
        }
        print_applied(args.output, &applied, if args.dry_run { " (dry run)" } else { "" })
    })
}

pub fn get(args: GetArgs) -> CliResult {
    let (kind, wanted) = match args.wanted.as_slice() {
        [] => (None, None),
        [only] => match Kind::parse(only) {
            Some(kind) => (Some(kind), None),
            None => (None, Some(only)),
        },
        [kind, object, ..] => match Kind::parse(kind) {
            Some(kind) => (Some(kind), Some(object)),
            None => return Err(CliError::Invalid(format!("{kind}: not a kind that sluice knows"))),
        },
    };
    block_on(async {
        let mut query = Vec::new();
        query.extend(kind.map(|kind| format!("kind={}", encode(&kind.to_string()))));
        query.extend(args.namespace.as_deref().map(|namespace| format!("namespace={}", encode(namespace))));
        let path = format!("/v1/objects?{}", query.join("&"));
        let mut objects: Vec<StoredObject> = args.connection.client().get(&path).await?;
        let is_policy = |object: &StoredObject| object.object.kind.to_string().ends_with("NetworkPolicy");
        objects.retain(|object| match &wanted {
            Some(wanted) => object.object.path() == **wanted || &*object.object.name == wanted.as_str(),
            None => args.all || kind.is_some() || is_policy(object),
        });
        if wanted.is_some() {
            if objects.is_empty() {
                return Err(CliError::Failed(anyhow::anyhow!("not found")));
            }
            if args.output == Output::Table {
                for object in &objects {
                    anstream::println!("---\n{}", object.manifest.trim_end());
                }
                return Ok(Exit::Done);
            }
        }
        let rows = objects.iter().map(|object| {
            vec![
                object.object.kind.to_string(),
                object.object.namespace.to_string(),
                object.object.name.to_string(),
                object.selects.map(|count| count.to_string()).unwrap_or_default(),
            ]
        });
        print::rows(args.output, &objects, &["kind", "namespace", "name", "selects here"], rows)?;
        Ok(Exit::Done)
    })
}

pub fn delete(args: DeleteArgs) -> CliResult {
    let Some(kind) = Kind::parse(&args.kind) else {
        return Err(CliError::Invalid(format!("{}: not a kind that sluice knows", args.kind)));
    };
    let (namespace, name) = args.object.split_once('/').unwrap_or(("-", &args.object));
    if kind.is_namespaced() && namespace == "-" {
        return Err(CliError::Invalid(format!("{}: expected NAMESPACE/NAME for a {kind}", args.object)));
    }
    block_on(async {
        let path = format!("/v1/objects/{kind}/{}/{}", encode(namespace), encode(name));
        let applied: Applied = args.connection.client().delete(&path).await?;
        print_applied(Output::Table, &applied, "")
    })
}

/// Target and port of `NS/POD:PORT`, `IP:PORT`, `[IPV6]:PORT`, or the same without a port.
fn target(text: &str) -> (String, Option<u16>) {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return (address.ip().to_string(), Some(address.port()));
    }
    if text.parse::<std::net::IpAddr>().is_err()
        && let Some((host, port)) = text.rsplit_once(':')
        && let Ok(port) = port.parse()
    {
        return (host.to_owned(), Some(port));
    }
    (text.trim_matches(['[', ']']).to_owned(), None)
}

pub fn explain(args: ExplainArgs) -> CliResult {
    let (to, port) = target(&args.to);
    if port.is_none() && !args.protocol.to_ascii_uppercase().starts_with("ICMP") {
        return Err(CliError::Invalid(format!("{}: expected a port, such as shop/web:80", args.to)));
    }
    block_on(async {
        // Echo request where a port would be.
        let port = port.unwrap_or(if args.protocol.eq_ignore_ascii_case("icmpv6") { 128 } else { 8 });
        let path = format!(
            "/v1/explain?from={}&to={}&port={port}&protocol={}",
            encode(&args.from),
            encode(&to),
            encode(&args.protocol)
        );
        let answer: ExplainAnswer = args.connection.client().get(&path).await?;
        if args.output == Output::Json {
            anstream::println!("{}", serde_json::to_string_pretty(&answer).map_err(anyhow::Error::from)?);
        } else {
            show(&args.from, &args.to, &answer);
        }
        Ok(if answer.verdict == "denied" { Exit::Negative } else { Exit::Done })
    })
}

fn show(from: &str, to: &str, answer: &ExplainAnswer) {
    anstream::println!("{} -> {}: {}", plain(from), plain(to), answer.verdict);
    for side in &answer.sides {
        let objects: Vec<String> = side.objects.iter().map(|object| object.path()).collect();
        let by = match side.because.as_str() {
            "rules" => format!("by {}", objects.join(", ")),
            "default-deny" if objects.is_empty() => "by default deny (enforcement mode)".to_owned(),
            "default-deny" => format!("by default deny, which {} turned on", objects.join(", ")),
            "no-policy" => "no policy governs this side".to_owned(),
            "allow-localhost" => "the node may always reach its own pods (--allow-localhost)".to_owned(),
            "hairpin" => "a pod always reaches itself".to_owned(),
            other => other.to_owned(),
        };
        anstream::println!("  {:<8} {:<10} {}", side.direction, side.verdict, plain(&by));
        for rule in &side.rules {
            anstream::println!("  {:<19} {}", "", plain(rule));
        }
        if let Some(near) = &side.near_miss {
            anstream::println!("  {:<19} closest rule: {}", "", plain(near));
        }
    }
    if answer.sides.is_empty() {
        anstream::println!("  this node governs neither side");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_every_form() {
        for (text, host, port) in [
            ("shop/web:80", "shop/web", Some(80)),
            ("10.0.0.1:443", "10.0.0.1", Some(443)),
            ("[fd00::1]:443", "fd00::1", Some(443)),
            ("fd00::1", "fd00::1", None),
            ("shop/web", "shop/web", None),
        ] {
            assert_eq!(target(text), (host.to_owned(), port), "{text}");
        }
    }
}
