//! The workload that a pod belongs to: what people deploy, where pods are what runs.
//!
//! Where the pod's controller is known (`ownerReferences`), it counts; a ReplicaSet that a Deployment made
//! and a Job that a CronJob made stand for their makers, as in Cilium. Otherwise labels that controllers set
//! and the shape of the generated name decide; a pod that says nothing is its own workload.

use std::fmt;
use std::sync::Arc;

use super::Pod;

/// Kind and name; the namespace is the pod's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Workload {
    pub kind: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// What Kubernetes draws suffixes from (`k8s.io/apimachinery/pkg/util/rand`).
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LABEL: &str = "pod-template-hash";

impl Workload {
    pub fn new(kind: &str, name: &str) -> Workload {
        Workload { kind: kind.into(), name: name.into() }
    }

    /// The workload of this pod.
    pub fn of(pod: &Pod) -> Workload {
        match &pod.controller {
            Some(controller) => maker(controller, pod),
            None => guess(pod),
        }
    }
}

/// Who made this controller.
fn maker(controller: &Workload, pod: &Pod) -> Workload {
    let made_by = match &*controller.kind {
        "ReplicaSet" => pod
            .labels
            .get(HASH_LABEL)
            .and_then(|hash| without_suffix(&controller.name, hash))
            .map(|name| Workload::new("Deployment", name)),
        "Job" => cron_job(&controller.name).map(|name| Workload::new("CronJob", name)),
        _ => None,
    };
    made_by.unwrap_or_else(|| controller.clone())
}

fn guess(pod: &Pod) -> Workload {
    let label = |key| pod.labels.get(key);
    let (rest, last) = pod.name.rsplit_once('-').unwrap_or((&pod.name, ""));
    if is_suffix(last, 5..=5) {
        if let Some(name) = label(HASH_LABEL).and_then(|hash| without_suffix(rest, hash)) {
            return Workload::new("Deployment", name);
        }
        if let Some(job) = label("batch.kubernetes.io/job-name").or(label("job-name")) {
            return cron_job(job)
                .map_or_else(|| Workload::new("Job", job), |name| Workload::new("CronJob", name));
        }
        if let Some((name, hash)) = rest.rsplit_once('-')
            && is_suffix(hash, 6..=10)
        {
            return Workload::new("Deployment", name);
        }
        if label("controller-revision-hash").is_some() {
            return Workload::new("DaemonSet", rest);
        }
    }
    let is_ordinal = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    if is_ordinal
        && (label("statefulset.kubernetes.io/pod-name").is_some()
            || label("apps.kubernetes.io/pod-index").is_some())
    {
        return Workload::new("StatefulSet", rest);
    }
    Workload::new("Pod", &pod.name)
}

/// `name-suffix` without its suffix.
fn without_suffix<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    name.strip_suffix(suffix)?.strip_suffix('-').filter(|name| !name.is_empty())
}

/// A CronJob names its Jobs by the minute of their schedule (eight digits, some day more).
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    let is_minute = (8..=10).contains(&minute.len()) && minute.bytes().all(|byte| byte.is_ascii_digit());
    (is_minute && !name.is_empty()).then_some(name)
}

fn is_suffix(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| SUFFIX.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, labels: &[(&str, &str)], controller: Option<(&str, &str)>) -> String {
        let pod = Pod {
            namespace: "shop".into(),
            name: name.into(),
            labels: labels.iter().copied().collect(),
            node: None,
            addresses: vec![],
            host_network: false,
            service_account: "default".into(),
            ports: vec![],
            controller: controller.map(|(kind, name)| Workload::new(kind, name)),
        };
        Workload::of(&pod).to_string()
    }

    #[test]
    fn a_controller_stands_for_who_made_it() {
        let hash = [("pod-template-hash", "6d4b75cb6d")];
        let replica_set = Some(("ReplicaSet", "web-6d4b75cb6d"));
        assert_eq!(workload("web-6d4b75cb6d-hwsxq", &hash, replica_set), "Deployment/web");
        assert_eq!(workload("web-abc", &[], Some(("ReplicaSet", "web"))), "ReplicaSet/web");
        assert_eq!(workload("b-29012345-x2x4x", &[], Some(("Job", "b-29012345"))), "CronJob/b");
        assert_eq!(workload("m-x2x4x", &[], Some(("Job", "m"))), "Job/m");
        assert_eq!(workload("db-0", &[], Some(("StatefulSet", "db"))), "StatefulSet/db");
    }

    #[test]
    fn without_a_controller_labels_and_the_name_decide() {
        let hash = [("pod-template-hash", "6d4b75cb6d")];
        assert_eq!(workload("a-b-6d4b75cb6d-hwsxq", &hash, None), "Deployment/a-b");
        assert_eq!(workload("a-b-6d4b75cb6d-hwsxq", &[], None), "Deployment/a-b");
        assert_eq!(workload("logs-x2x4x", &[("controller-revision-hash", "x")], None), "DaemonSet/logs");
        assert_eq!(workload("db-0", &[("apps.kubernetes.io/pod-index", "0")], None), "StatefulSet/db");
        assert_eq!(workload("b-29012345-x2x4x", &[("job-name", "b-29012345")], None), "CronJob/b");
    }

    #[test]
    fn a_pod_that_says_nothing_is_its_own_workload() {
        for name in ["frontend", "db-0", "web-v2", "-", "a-", "-x2x4x"] {
            assert_eq!(workload(name, &[], None), format!("Pod/{name}"));
        }
    }
}
