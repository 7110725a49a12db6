//! What one connection is under: the rules of its source's egress and of its destination's ingress,
//! compiled, and their verdicts on requests and server names.
//!
//! Sides need not want the same proxy. On two nodes such a connection passes through two proxies, one after the other;
//! on one node one judges for both, and its verdict is the one that the two would come to. The client's side is asked first,
//! then the server's, each by its own line:
//!
//! ```text
//! rules of a side        a request      a ClientHello   other bytes   DNS queries over TCP
//! HTTP, which refuse     by them, 403   400             400           refused
//! TLS, which refuse      reset          by them, reset  reset         refused
//! DNS, which refuse      refused        refused         refused       by them, REFUSED
//! any that refuse none   passes         passes          passes        passes
//! ```
//!
//! HTTP and DNS rules refuse nothing where no policy turned default deny on, or where a plain allow lifts them;
//! `serverNames` refuse nothing in the first of the two cases. The kernel gives HTTP and TLS to the listener for TLS, whose
//! process reads both: what is no ClientHello goes on as HTTP ([`ConnectionPolicy::reads_http`]). DNS rules are always the
//! client's, so the DNS proxy takes what they want, whatever the server's side wants; it reads nothing but DNS.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::model::{Direction, Identity};
use crate::policy::decision::Outcome;
use crate::policy::engine::L7Policy;
use crate::policy::l7::L7Rules;
use crate::policy::l7::edits::{HeaderEdit, edited};
use crate::policy::l7::expressions::SetError;
use crate::policy::l7::http::{HttpRules, Request, Secrets, TooMuch};
use crate::policy::l7::names::{NameSet, canonical};
use crate::policy::map_state::Proxy;
use crate::policy::rule::RuleRef;

/// One side, compiled.
#[derive(Debug)]
pub struct SidePolicy {
    rules: Rules,
    /// The objects' rules that govern, for records.
    governing: Vec<RuleRef>,
}

#[derive(Debug)]
enum Rules {
    /// Nothing to say: all passes.
    Open,
    /// The newest verdict of L3/L4, or rules that no set can be made of.
    Closed,
    Http {
        rules: Box<HttpRules<RuleRef>>,
        refuses: bool,
    },
    Tls {
        names: NameSet<RuleRef>,
        refuses: bool,
    },
    /// Rules of another protocol: what is not that protocol does not pass.
    Other {
        refuses: bool,
    },
}

impl Rules {
    fn proxy(&self) -> Option<Proxy> {
        match self {
            Rules::Open | Rules::Closed => None,
            Rules::Http { .. } => Some(Proxy::Http),
            Rules::Tls { .. } => Some(Proxy::Tls),
            Rules::Other { .. } => Some(Proxy::Dns),
        }
    }

    /// Nothing is refused, whatever it is.
    fn observe(&self) -> bool {
        match self {
            Rules::Open => true,
            Rules::Closed => false,
            Rules::Http { refuses, .. } | Rules::Tls { refuses, .. } | Rules::Other { refuses } => !refuses,
        }
    }
}

impl SidePolicy {
    /// No rule of this side bears on the connection.
    pub fn open() -> SidePolicy {
        SidePolicy { rules: Rules::Open, governing: Vec::new() }
    }

    /// Nothing passes.
    pub fn closed(policy: &L7Policy) -> SidePolicy {
        let governing = policy.rules.iter().map(|(rule, _)| rule.clone()).collect();
        SidePolicy { rules: Rules::Closed, governing }
    }

    /// Compiles.
    ///
    /// # Errors
    /// No set can be made of the rules. They admit nothing: see [`SidePolicy::closed`].
    pub fn compile(policy: &L7Policy, secrets: &Secrets<'_>) -> Result<SidePolicy, SetError> {
        let l7 = || policy.rules.iter().filter_map(|(rule, l7)| Some((rule, l7.as_deref()?)));
        let governing = policy.rules.iter().map(|(rule, _)| rule.clone()).collect();
        let rules = match policy.outcome {
            Outcome::Allow => Rules::Open,
            Outcome::Deny => Rules::Closed,
            Outcome::Redirect(Proxy::Dns) => Rules::Other { refuses: policy.refuses_requests() },
            Outcome::Redirect(Proxy::Tls) => Rules::Tls {
                names: l7()
                    .filter_map(|(rule, l7)| match l7 {
                        L7Rules::Tls(patterns) => Some((rule, patterns)),
                        L7Rules::Http(_) | L7Rules::Dns(_) => None,
                    })
                    .flat_map(|(rule, patterns)| patterns.iter().map(|p| (p.clone(), rule.clone())))
                    .collect(),
                refuses: policy.refuses_server_names(),
            },
            Outcome::Redirect(Proxy::Http) => {
                let http = l7().filter_map(|(rule, l7)| match l7 {
                    L7Rules::Http(rules) => Some((rule, rules)),
                    L7Rules::Dns(_) | L7Rules::Tls(_) => None,
                });
                let flat = http.flat_map(|(rule, rules)| rules.iter().map(|http| (rule.clone(), http)));
                let rules = Box::new(HttpRules::compile(flat, secrets)?);
                Rules::Http { rules, refuses: policy.refuses_requests() }
            }
        };
        Ok(SidePolicy { rules, governing })
    }
}

/// Both sides of a connection. A side that is not local, or has no L7 rules for the port, is open.
#[derive(Clone, Debug)]
pub struct ConnectionPolicy {
    pub client_identity: Identity,
    pub server_identity: Identity,
    pub egress: Arc<SidePolicy>,
    pub ingress: Arc<SidePolicy>,
}

/// Why a message does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule lists it.
    ByRules,
    /// To find the rule would take too much work.
    TooMuchWork,
}

/// What became of a request or a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub passes: bool,
    /// Why it does not pass, where it does not.
    pub refusal: Refusal,
    /// Whose rules refused it: they may be for another protocol than was spoken.
    pub refused_for: Option<Proxy>,
    /// The side that refused, or the last one that had rules.
    pub direction: Direction,
    /// Rules that matched; for a refusal those that none matched.
    pub rules: SmallVec<[RuleRef; 2]>,
    pub edits: Vec<HeaderEdit>,
}

impl Verdict {
    /// Of a message that no rule could be asked about.
    pub fn unjudged() -> Verdict {
        Verdict {
            passes: false,
            refusal: Refusal::ByRules,
            refused_for: None,
            direction: Direction::Egress,
            rules: SmallVec::new(),
            edits: Vec::new(),
        }
    }
}

impl Verdict {
    /// Headers that are not as a rule wants them, but are let through, as records name them.
    pub fn mismatches(&self) -> Vec<Arc<str>> {
        let logged = self.edits.iter().filter_map(|edit| match edit {
            HeaderEdit::Log { name } => Some(Arc::clone(name)),
            HeaderEdit::Add { .. } | HeaderEdit::Delete { .. } | HeaderEdit::Replace { .. } => None,
        });
        logged.collect()
    }
}

impl ConnectionPolicy {
    fn sides(&self) -> [(Direction, &SidePolicy); 2] {
        [(Direction::Egress, &*self.egress), (Direction::Ingress, &*self.ingress)]
    }

    /// `side` is told what the sides before it change.
    fn judge<'a>(&'a self, mut side: impl FnMut(&'a SidePolicy, &[HeaderEdit]) -> SideVerdict) -> Verdict {
        let mut verdict = Verdict {
            passes: true,
            refusal: Refusal::ByRules,
            refused_for: None,
            direction: if self.egress.governing.is_empty() { Direction::Ingress } else { Direction::Egress },
            rules: SmallVec::new(),
            edits: Vec::new(),
        };
        for (direction, policy) in self.sides() {
            match side(policy, &verdict.edits) {
                SideVerdict::Passes(rule, edits) => {
                    verdict.rules.extend(rule);
                    verdict.edits.extend(edits);
                }
                SideVerdict::Refused(refusal) => {
                    let rules = policy.governing.iter().cloned().collect();
                    let refused_for = policy.rules.proxy();
                    return Verdict {
                        passes: false,
                        refusal,
                        refused_for,
                        direction,
                        rules,
                        edits: Vec::new(),
                    };
                }
            }
        }
        verdict
    }

    /// What is no ClientHello is for HTTP rules to judge: there are some, and no side before theirs refuses it already.
    pub fn reads_http(&self) -> bool {
        let is_http = |side: &SidePolicy| side.rules.proxy() == Some(Proxy::Http);
        let mut sides = self.sides().into_iter().map(|(_, side)| side);
        sides.find(|side| is_http(side) || !side.rules.observe()).is_some_and(is_http)
    }

    /// Judges a request whose path is normalised already. The receiver's side judges what the sender's side lets
    /// through, as it does on another node.
    pub fn request(&self, request: &Request<'_>) -> Verdict {
        self.judge(|side, edits| match &side.rules {
            Rules::Open | Rules::Other { refuses: false } | Rules::Tls { refuses: false, .. } => {
                SideVerdict::Passes(None, Vec::new())
            }
            Rules::Closed | Rules::Other { refuses: true } | Rules::Tls { refuses: true, .. } => {
                SideVerdict::Refused(Refusal::ByRules)
            }
            Rules::Http { rules, refuses } => match after(edits, request, |request| rules.decide(request)) {
                Ok(Some(found)) => SideVerdict::Passes(Some(found.rule.clone()), found.edits),
                Ok(None) if *refuses => SideVerdict::Refused(Refusal::ByRules),
                Err(TooMuch) if *refuses => SideVerdict::Refused(Refusal::TooMuchWork),
                Ok(None) | Err(TooMuch) => SideVerdict::Passes(None, Vec::new()),
            },
        })
    }

    /// Judges a TLS handshake by the name in its ClientHello; `None` without one, and for what is not TLS.
    pub fn server_name(&self, name: Option<&str>) -> Verdict {
        let name = name.map(canonical);
        self.judge(|side, _| match &side.rules {
            Rules::Open | Rules::Other { refuses: false } | Rules::Http { refuses: false, .. } => {
                SideVerdict::Passes(None, Vec::new())
            }
            Rules::Closed | Rules::Other { refuses: true } | Rules::Http { refuses: true, .. } => {
                SideVerdict::Refused(Refusal::ByRules)
            }
            Rules::Tls { names, refuses } => {
                let listed = name.as_deref().and_then(|name| names.lookup(name).next().cloned());
                match (listed, refuses) {
                    (None, true) => SideVerdict::Refused(Refusal::ByRules),
                    (rule, _) => SideVerdict::Passes(rule, Vec::new()),
                }
            }
        })
    }

    /// Bytes of no protocol that we know.
    pub fn opaque(&self) -> Verdict {
        self.judge(|side, _| match &side.rules {
            Rules::Open
            | Rules::Other { refuses: false }
            | Rules::Http { refuses: false, .. }
            | Rules::Tls { refuses: false, .. } => SideVerdict::Passes(None, Vec::new()),
            Rules::Closed | Rules::Other { .. } | Rules::Http { .. } | Rules::Tls { .. } => {
                SideVerdict::Refused(Refusal::ByRules)
            }
        })
    }
}

/// Asks about the request as `edits` leave it.
fn after<T>(edits: &[HeaderEdit], request: &Request<'_>, ask: impl FnOnce(&Request<'_>) -> T) -> T {
    if !edits.iter().any(HeaderEdit::changes) {
        return ask(request);
    }
    let headers = edited(request.headers.iter().copied(), edits);
    ask(&Request { headers: &headers, ..request.clone() })
}

enum SideVerdict {
    Passes(Option<RuleRef>, Vec<HeaderEdit>),
    Refused(Refusal),
}
