//! Requests, queries and ClientHellos that reach a proxy, through both judges.

use super::Disagreement;
use super::verdict::JudgedSide;
use super::world::World;
use crate::lab::scenario::Http;
use crate::policy::decision::Outcome;
use crate::policy::engine::L7Policy;
use crate::policy::l7::edits::edited;
use crate::policy::l7::http::{HttpRules, Request};
use crate::policy::l7::names::{NameSet, canonical};
use crate::policy::l7::target::{Target, normalize};
use crate::policy::l7::{DnsPattern, L7Rules, message};
use crate::policy::map_state::Proxy;
use crate::policy::oracle::{HttpRequest, Layer7};

/// What a client says once it is connected.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A request; `authority` is its `Host`.
    Http { http: Http, authority: String },
    /// A ClientHello.
    Tls { name: Option<String> },
    /// A query.
    Dns { name: String },
    /// Bytes of no protocol that a proxy reads.
    Bytes,
}

/// What a proxy does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyAnswer {
    Pass,
    HttpForbidden,
    HttpMalformed,
    HttpRedirect,
    DnsRefused,
    TlsReset,
    /// Dropped without a word.
    Silence,
}

impl World {
    /// `None`: no proxy on this side. Of a request that passes, `payload` becomes what is sent on.
    pub(super) fn proxied(
        &self,
        side: &JudgedSide,
        payload: &mut Payload,
    ) -> Result<Option<ProxyAnswer>, Disagreement> {
        let Outcome::Redirect(proxy) = side.decision.outcome else { return Ok(None) };
        let l7 = &side.l7;
        let answer = match (proxy, &mut *payload) {
            (Proxy::Http, Payload::Http { http, authority }) => self.http(side, http, authority)?,
            // Not HTTP at all: where nothing is refused it passes, elsewhere it is malformed.
            (Proxy::Http, _) if l7.refuses_requests() => ProxyAnswer::HttpMalformed,
            (Proxy::Http, _) => ProxyAnswer::Pass,
            (Proxy::Dns, Payload::Dns { name }) => {
                let name = canonical(name);
                let listed = patterns(l7, dns_patterns).contains(&name);
                match agreed(side, "query", side.oracle.dns(&name), listed || !l7.refuses_requests())? {
                    true => ProxyAnswer::Pass,
                    false => ProxyAnswer::DnsRefused,
                }
            }
            (Proxy::Dns, _) if l7.refuses_requests() => ProxyAnswer::Silence,
            (Proxy::Dns, _) => ProxyAnswer::Pass,
            (Proxy::Tls, payload) => {
                let name = match payload {
                    Payload::Tls { name } => name.as_deref().map(canonical),
                    Payload::Http { .. } | Payload::Dns { .. } | Payload::Bytes => None,
                };
                let listed = name.as_deref().is_some_and(|name| patterns(l7, tls_patterns).contains(name));
                let oracle = side.oracle.server_name(name.as_deref());
                match agreed(side, "handshake", oracle, listed || !l7.refuses_server_names())? {
                    true => ProxyAnswer::Pass,
                    false => ProxyAnswer::TlsReset,
                }
            }
        };
        Ok(Some(answer))
    }

    fn http(&self, side: &JudgedSide, http: &mut Http, authority: &str) -> Result<ProxyAnswer, Disagreement> {
        let mut headers: Vec<(&str, &[u8])> = vec![("host", authority.as_bytes())];
        headers.extend(http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        if message::check_head(&http.method, &headers).is_err() {
            return Ok(ProxyAnswer::HttpMalformed);
        }
        if http.method == "CONNECT" {
            return Ok(ProxyAnswer::HttpForbidden);
        }
        let path = match normalize(&http.path) {
            Target::Forward(path) => path,
            Target::Redirect(_) => return Ok(ProxyAnswer::HttpRedirect),
            Target::Malformed(_) => return Ok(ProxyAnswer::HttpMalformed),
        };
        let secret =
            |namespace: &str, name: &str, key: Option<&str>| self.cluster.secret(namespace, name, key);
        let mut sent = vec![("host".to_owned(), authority.to_owned())];
        sent.extend(http.headers.iter().cloned());
        let asked = HttpRequest {
            method: &http.method,
            path: &path,
            host: authority,
            headers: &sent,
            secret: &secret,
        };
        let oracle = side.oracle.http(&asked);
        let rules = side.l7.rules.iter().flat_map(|(rule, l7)| match l7.as_deref() {
            Some(L7Rules::Http(rules)) => rules.iter().map(|http| (rule, http)).collect(),
            _ => Vec::new(),
        });
        let request = Request { method: &http.method, path: &path, host: authority, headers: &headers };
        // Nothing is admitted by a set that does not compile, or for which a request is too much.
        let compiled = HttpRules::compile(rules, &secret).ok();
        let found = compiled.as_ref().and_then(|rules| rules.decide(&request).ok().flatten());
        if !agreed(side, "request", oracle, found.is_some() || !side.l7.refuses_requests())? {
            return Ok(ProxyAnswer::HttpForbidden);
        }
        let edits = found.map(|found| found.edits).unwrap_or_default();
        let forwarded: Vec<(String, String)> = edited(headers.iter().copied(), &edits)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        let by_oracle = side.oracle.forwarded(&asked);
        if forwarded != by_oracle {
            return Err(Disagreement {
                subject: format!("the forwarded headers at {}", side.decision.direction),
                one: format!("the evaluator says {by_oracle:?}"),
                other: format!("the compiled policy says {forwarded:?}"),
            });
        }
        // The first one is the Host, which no rule changes.
        http.headers = forwarded.into_iter().skip(1).collect();
        Ok(ProxyAnswer::Pass)
    }
}

fn dns_patterns(rules: &L7Rules) -> &[DnsPattern] {
    match rules {
        L7Rules::Dns(patterns) => patterns,
        L7Rules::Http(_) | L7Rules::Tls(_) => &[],
    }
}

fn tls_patterns(rules: &L7Rules) -> &[DnsPattern] {
    match rules {
        L7Rules::Tls(patterns) => patterns,
        L7Rules::Http(_) | L7Rules::Dns(_) => &[],
    }
}

fn patterns(l7: &L7Policy, of: impl Fn(&L7Rules) -> &[DnsPattern]) -> NameSet<()> {
    let rules = l7.rules.iter().filter_map(|(_, rules)| rules.as_deref());
    rules.flat_map(of).map(|pattern| (pattern.clone(), ())).collect()
}

fn agreed(side: &JudgedSide, what: &str, oracle: Layer7, passes: bool) -> Result<bool, Disagreement> {
    let by_oracle = matches!(oracle, Layer7::Allow(_));
    if by_oracle == passes {
        return Ok(passes);
    }
    let text = |passes: bool| if passes { "it passes" } else { "it is refused" }.to_owned();
    Err(Disagreement {
        subject: format!("the {what} at {}", side.decision.direction),
        one: format!("the evaluator says {}", text(by_oracle)),
        other: format!("the compiled policy says {}", text(passes)),
    })
}
