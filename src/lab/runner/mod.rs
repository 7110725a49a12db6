//! `sluice lab test`: a scenario's steps as real traffic.
//!
//! Each family's run has a lab of its own, so each begins from nothing. [`traffic`] sends, [`places`]
//! finds both ends, and this module does the rest.

mod places;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};

use self::traffic::Kept;
use super::LabError;
use super::control::ControlError;
use super::lint;
use super::report::{ScenarioResult, Status, StepResult};
use super::scenario::cluster::Cluster;
use super::scenario::{Action, Apply, ApplyExpect, Component, PreparedScenario, Step, parse_options};
use super::session::{Mode, Session};
use crate::api::client::ClientError;
use crate::k8s::{self, Document, ParseOptions};
use crate::model::{Family, ObjectRef};

const DNS_PORT: u16 = 53;

/// The run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("{0}")]
    Scenario(String),
}

/// A scenario in one family, on its way.
struct Run {
    parse: ParseOptions,
    family: Family,
    cluster: Cluster,
    session: Session,
    connections: BTreeMap<String, Kept>,
}

/// Runs a scenario once for each of its families, in labs named `lab` that are gone afterwards.
/// A run that cannot go on is a failed step, and the next family's run begins.
pub async fn run(file: &str, prepared: &PreparedScenario, lab: &str, mode: &Mode) -> ScenarioResult {
    let scenario = &prepared.scenario;
    let mut result = ScenarioResult { file: file.to_owned(), name: scenario.name.clone(), steps: Vec::new() };
    let mut ran: BTreeSet<usize> = BTreeSet::new();
    for family in &scenario.options.families {
        let mut each = |index: usize, step: &Step, status: Option<Status>| {
            let Some(status) = status else { return };
            ran.insert(index);
            let (title, position) = (step.title(), step.position.clone());
            result.steps.push(StepResult { number: index + 1, family: *family, title, position, status });
        };
        if let Err(error) = run_family(prepared, *family, lab, mode, &mut each).await {
            let status = failed("a run to its end", "a broken run", error.to_string());
            let title = "the lab".to_owned();
            let position = scenario.position.clone();
            result.steps.push(StepResult { number: 0, family: *family, title, position, status });
        }
    }
    let missing = scenario.steps.iter().enumerate().filter(|(index, _)| !ran.contains(index));
    for (index, step) in missing {
        let status = failed("a family in which both ends have addresses", "none", "the step was never run");
        let (family, title) = (scenario.options.families[0], step.title());
        let position = step.position.clone();
        result.steps.push(StepResult { number: index + 1, family, title, position, status });
    }
    result
}

async fn run_family(
    prepared: &PreparedScenario,
    family: Family,
    lab: &str,
    mode: &Mode,
    each: &mut impl FnMut(usize, &Step, Option<Status>),
) -> Result<(), RunError> {
    let scenario = &prepared.scenario;
    let documents = &prepared.manifest.documents;
    let cluster = Cluster::new(scenario, documents);
    let session = Session::start(lab, mode, &scenario.options, &cluster, documents).await?;
    let parse = parse_options(&scenario.options);
    let mut run = Run { parse, family, cluster, session, connections: BTreeMap::new() };
    let mut outcome = Ok(());
    for (index, step) in scenario.steps.iter().enumerate() {
        match run.step(step).await {
            Ok(status) => each(index, step, status),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    drop(run.connections);
    run.session.stop()?;
    outcome
}

fn failed(expected: impl Into<String>, got: impl Into<String>, because: impl Into<String>) -> Status {
    Status::Failed { expected: expected.into(), got: got.into(), because: because.into() }
}

fn skipped(reason: impl Into<String>) -> Option<Status> {
    Some(Status::Skipped { reason: reason.into() })
}

impl Run {
    /// `None`: the step does not run in this family.
    async fn step(&mut self, step: &Step) -> Result<Option<Status>, RunError> {
        match &step.action {
            Action::Connect(connect) => Ok(self.connect(connect, None).await),
            Action::Open { connection, connect } => Ok(self.connect(connect, Some(connection)).await),
            Action::Send { connection, http, expected } => {
                Ok(self.send(connection, http.as_ref(), expected).await)
            }
            Action::Lookup(lookup) => Ok(self.lookup(lookup).await),
            Action::Apply(apply) => self.apply(apply).await,
            Action::Delete(object) => self.delete(object).await,
            Action::External(change) => {
                self.cluster.change_external(change).map_err(|e| RunError::Scenario(e.to_string()))?;
                self.session.follow(&self.cluster, &[]).await?;
                Ok(Some(Status::Passed))
            }
            Action::Restart { component, node } => self.restart(*component, node.as_deref()).await,
            Action::Wait(time) => {
                tokio::time::sleep(*time).await;
                Ok(Some(Status::Passed))
            }
        }
    }

    async fn apply(&mut self, apply: &Apply) -> Result<Option<Status>, RunError> {
        let refusal = self.try_apply(apply).await?;
        Ok(match (apply.expect, refusal) {
            (ApplyExpect::Invalid, Some(_)) => Some(Status::Passed),
            (ApplyExpect::Invalid, None) => {
                Some(failed("invalid", "applied", "the server took every object"))
            }
            (ApplyExpect::Applied, Some(problem)) => Some(failed("applied", "invalid", problem)),
            (ApplyExpect::Applied, None) => Some(match &apply.lint {
                Some(codes) => lint::check(&apply.text, codes),
                None => Status::Passed,
            }),
        })
    }

    /// The first problem, when the objects are refused; then nothing has changed.
    async fn try_apply(&mut self, apply: &Apply) -> Result<Option<String>, RunError> {
        let manifest = k8s::parse_at(&apply.origin, &apply.text, &self.parse);
        if let Some(problem) = manifest.problems.first() {
            // The server has to refuse what the parser refuses; what it takes is a finding.
            return match self.session.control_mut() {
                None => Ok(Some(problem.to_string())),
                Some((control, _)) => match control.apply(apply.text.clone()).await {
                    Err(ControlError::Api(ClientError::Refused { status: 422, error, .. })) => {
                        Ok(Some(error))
                    }
                    Ok(_) => Ok(None),
                    Err(error) => Err(error.into()),
                },
            };
        }
        let before = self.cluster.clone();
        self.cluster.apply(&manifest.documents);
        match self.follow(&manifest.documents).await {
            Ok(()) => Ok(None),
            Err(RunError::Control(ControlError::Api(ClientError::Refused {
                status: 422, error, ..
            }))) => {
                self.cluster = before;
                self.follow(&[]).await?;
                Ok(Some(error))
            }
            Err(error) => Err(error),
        }
    }

    async fn follow(&mut self, documents: &[Document]) -> Result<(), RunError> {
        Ok(self.session.follow(&self.cluster, documents).await?)
    }

    async fn delete(&mut self, object: &ObjectRef) -> Result<Option<Status>, RunError> {
        if let Err(absent) = self.cluster.delete(object) {
            return Ok(Some(failed("deleted", "nothing to delete", absent.to_string())));
        }
        self.follow(&[]).await?;
        Ok(Some(Status::Passed))
    }

    async fn restart(
        &mut self,
        component: Component,
        node: Option<&str>,
    ) -> Result<Option<Status>, RunError> {
        let nodes: Vec<String> = match node {
            Some(node) => vec![node.to_owned()],
            None => self.cluster.nodes().to_vec(),
        };
        let Some((control, lab)) = self.session.control_mut() else {
            return Ok(skipped("this lab has no agents"));
        };
        for node in nodes {
            match component {
                Component::Agent => control.restart_agent(lab, &node).await?,
                Component::HttpProxy => control.restart_proxy(lab, &node, "http-proxy").await?,
                Component::DnsProxy => control.restart_proxy(lab, &node, "dns-proxy").await?,
            }
        }
        Ok(Some(Status::Passed))
    }
}
