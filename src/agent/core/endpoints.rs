//! Devices as jobs of the core: those of pods are put under policy, taken out of it, found again after a restart and
//! reported when they vanish; those of the node are judged as they come.

use std::collections::HashSet;

use super::{Core, Refused};
use crate::agent::kernel::FoundDevice;
use crate::api::backend::Refusal;
use crate::api::types::DeviceOrigin;
use crate::cluster::{Change, Resource};
use crate::datapath::expedite::Expedited;
use crate::datapath::net::NetError;
use crate::datapath::net::own::OwnDevice;
use crate::endpoint::{Described, Device, DeviceName, Member, Registration};
use crate::model::{Kind, Object, ObjectRef, Pod};

impl Core {
    /// Puts a pod's device under policy. The programs are attached before anything is stored: a
    /// device that cannot be attached is not an endpoint.
    pub fn add_endpoint(
        &mut self,
        pod: &str,
        device: DeviceName,
        origin: DeviceOrigin,
        described: Option<Described>,
    ) -> Result<(), Refusal> {
        let id = self.endpoints.number_for(pod).map_err(|full| Refusal::Conflict(full.to_string()))?;
        let device = match origin {
            DeviceOrigin::Existing => device,
            DeviceOrigin::Create => self.make_device(pod, id, device, described.as_ref())?,
        };
        let registered = self.register_device(pod, id, device.clone(), described);
        if registered.is_err()
            && origin == DeviceOrigin::Create
            && let Err(error) = self.kernel.unmake(&device)
        {
            tracing::error!(pod, %error, "a device that was made in vain was not deleted");
        }
        registered
    }

    /// Makes a pair for a pod whose addresses are known.
    fn make_device(
        &mut self,
        pod: &str,
        id: u16,
        device: DeviceName,
        described: Option<&Described>,
    ) -> Result<DeviceName, Refusal> {
        let DeviceName::Netns { netns, interface } = device else {
            return Err(Refusal::Conflict(
                "a device is made in a network namespace: name it by netns".into(),
            ));
        };
        if self.endpoints.get(pod).is_some() {
            return Err(Refusal::Conflict(format!("{pod} is an endpoint already: remove it first")));
        }
        let known = self.view.endpoints().find(|local| local.pod.path() == pod);
        let of_object = known.map(|local| local.addresses.clone()).unwrap_or_default();
        let addresses = match described {
            Some(described) if of_object.is_empty() => described.addresses.clone(),
            _ => of_object,
        };
        if addresses.is_empty() {
            return Err(Refusal::Invalid {
                message: format!("the addresses of {pod} are not known: apply the Pod, or give --address"),
                problems: Vec::new(),
            });
        }
        let device = DeviceName::made(id, netns, interface);
        self.kernel.make(&device, &addresses).map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(device)
    }

    fn register_device(
        &mut self,
        pod: &str,
        id: u16,
        device: DeviceName,
        described: Option<Described>,
    ) -> Result<(), Refusal> {
        let found = self.kernel.find(&device).map_err(|error| Refusal::Failed(error.to_string()))?;
        if let Some(other) = self.owner_of(found.ifindex).filter(|other| *other != pod) {
            return Err(Refusal::Conflict(format!("the device of {pod} is already that of {other}")));
        }
        let before = self.endpoints.get(pod).cloned();
        let registration = Registration { id, device, described };
        if let Err(error) = self.kernel.attach(pod, id, &found) {
            self.give_back(pod, before, &found);
            return Err(Refusal::Failed(error.to_string()));
        }
        let node = &self.config.node_name;
        let reference = pod_reference(pod);
        let old = before.as_ref().filter(|member| is_description(member));
        let has_object =
            old.is_none() && reference.as_ref().is_some_and(|reference| self.view.has_pod(reference));
        let gone = || reference.clone().map(Change::Delete);
        let (change, undo) = match (old, described_pod(pod, &registration, node)) {
            _ if has_object => (None, None),
            (Some(old), new) => (new.or_else(gone), described_pod(pod, &old.registration, node)),
            (None, Some(new)) => (Some(new), gone()),
            (None, None) => (None, None),
        };
        if let Some(change) = change
            && let Err(problems) = self.transact(vec![change], self.desired)
        {
            self.give_back(pod, before, &found);
            return Err(Refusal::Invalid { message: "the pod was refused".into(), problems });
        }
        if let Err(error) = self.store.put_endpoint(pod, &registration) {
            if let Some(undo) = undo
                && let Err(problems) = self.transact(vec![undo], self.desired)
            {
                tracing::error!(pod, ?problems, "what was said about a pod was not taken back");
            }
            self.give_back(pod, before, &found);
            return Err(Refusal::Failed(error.to_string()));
        }
        self.shared.directory.lock().forget_interface(found.ifindex);
        self.endpoints.insert(pod, Member { registration, device: found.into(), has_object });
        self.note_owners(reference.into_iter().collect());
        Ok(())
    }

    /// The pod whose device this is.
    fn owner_of(&self, ifindex: u32) -> Option<&str> {
        let is_it = |member: &Member| matches!(member.device, Device::Found { ifindex: known, .. } if known == ifindex);
        self.endpoints.iter().find(|(_, member)| is_it(member)).map(|(pod, _)| pod)
    }

    /// A device was attached in vain: it is let go, and the pod has the one back that it had. Where that is the same one,
    /// it is under policy all the time.
    fn give_back(&mut self, pod: &str, before: Option<Member>, taken: &FoundDevice) {
        let had = before.and_then(|member| Some((member.registration.id, member.device.found()?)));
        let is_same = had.as_ref().is_some_and(|(_, had)| had.ifindex == taken.ifindex);
        let let_go = if is_same { Ok(()) } else { self.kernel.detach(pod) };
        let restored = had.map_or(Ok(()), |(id, had)| self.kernel.attach(pod, id, &had));
        if let Err(error) = let_go.and(restored) {
            tracing::error!(pod, %error, "a device that was attached in vain");
        }
    }

    /// Takes a pod's device out of policy.
    pub fn remove_endpoint(&mut self, pod: &str) -> Result<(), Refusal> {
        let Some(member) = self.endpoints.get(pod) else {
            return Err(Refusal::NotFound(format!("no endpoint {pod} on this node")));
        };
        let (described, Member { registration, device, .. }) = (is_description(member), member.clone());
        self.store.delete_endpoint(pod).map_err(|error| Refusal::Failed(error.to_string()))?;
        let gone = self.kernel.detach(pod).and_then(|()| self.kernel.unmake(&registration.device));
        if let Err(error) = gone {
            // It stays what it was.
            let attached =
                device.found().map_or(Ok(()), |had| self.kernel.attach(pod, registration.id, &had));
            if let Err(error) = attached {
                tracing::error!(pod, %error, "a device that was not removed is not under policy");
            }
            if let Err(error) = self.store.put_endpoint(pod, &registration) {
                tracing::error!(pod, %error, "an endpoint that was not removed is not stored");
            }
            return Err(Refusal::Failed(error.to_string()));
        }
        self.endpoints.remove(pod);
        self.note_owners(pod_reference(pod).into_iter().collect());
        if described && let Some(reference) = pod_reference(pod) {
            self.transact(vec![Change::Delete(reference)], self.desired).map_err(|problems| {
                Refusal::Invalid { message: "the pod was not removed".into(), problems }
            })?;
        }
        Ok(())
    }

    /// Devices of an earlier run, read from the store. One that is missing stays registered and closed.
    pub fn restore_endpoints(&mut self) -> Result<Vec<Change>, crate::store::StoreError> {
        let mut changes = Vec::new();
        let _expedited = Expedited::begin();
        for (pod, registration) in self.store.endpoints::<Registration>()? {
            let device = match self.kernel.find(&registration.device) {
                Ok(found) => match self.kernel.attach(&pod, registration.id, &found) {
                    Ok(()) => found.into(),
                    Err(error) => Device::Missing(error.to_string()),
                },
                Err(error) => Device::Missing(error.to_string()),
            };
            if let Device::Missing(reason) = &device {
                tracing::warn!(pod, reason, "the device of an endpoint is missing");
            }
            changes.extend(described_pod(&pod, &registration, &self.config.node_name));
            self.endpoints.insert(&pod, Member { registration, device, has_object: false });
        }
        Ok(changes)
    }

    /// One transaction of the source of the objects. What an object says about a pod stands above what `endpoint add` said,
    /// which counts again when the object goes.
    pub fn transact_objects(&mut self, changes: Vec<Change>, revision: u64) -> Result<(), Refused> {
        let objects = self.objects_of_pods(&changes);
        if objects.iter().all(|(_, has_object)| *has_object) {
            self.transact(changes, revision)?;
        } else if self.transact(self.with_descriptions(changes.clone()), revision).is_err() {
            // What was said may be impossible by now: another pod has the address. Nobody is to wait for that.
            self.transact(changes, revision)?;
            objects
                .iter()
                .filter(|(_, has_object)| !has_object)
                .for_each(|(pod, _)| self.forget_description(pod));
        }
        self.set_objects(objects);
        Ok(())
    }

    /// For good, or the next start would fail at it.
    fn forget_description(&mut self, pod: &str) {
        let Some(member) = self.endpoints.get_mut(pod) else { return };
        member.registration.described = None;
        tracing::warn!(pod, "what `endpoint add` said about the pod goes with its object: it fits no longer");
        if let Err(error) = self.store.put_endpoint(pod, &member.registration) {
            tracing::error!(pod, %error, "what `endpoint add` said about the pod is still stored");
        }
    }

    /// The source has made these changes, and the view has them.
    pub fn note_objects(&mut self, changes: &[Change]) {
        let objects = self.objects_of_pods(changes);
        self.set_objects(objects);
    }

    /// Endpoints that `endpoint add` described and whose pods have an object after these changes, or have none.
    fn objects_of_pods(&self, changes: &[Change]) -> Vec<(String, bool)> {
        let described: HashSet<(&str, &str)> = self
            .endpoints
            .iter()
            .filter(|(_, member)| member.registration.described.is_some())
            .filter_map(|(pod, _)| pod.split_once('/'))
            .collect();
        // As a rule there are none, and there may be very many changes.
        if described.is_empty() {
            return Vec::new();
        }
        let of_pod = |change: &Change| {
            let (namespace, name, has_object) = match change {
                Change::Upsert(Resource::Object(Object::Pod(pod))) => (&*pod.namespace, &*pod.name, true),
                Change::Delete(pod) if pod.kind == Kind::Pod => (&*pod.namespace, &*pod.name, false),
                _ => return None,
            };
            described.contains(&(namespace, name)).then(|| (format!("{namespace}/{name}"), has_object))
        };
        changes.iter().filter_map(of_pod).collect()
    }

    fn set_objects(&mut self, objects: Vec<(String, bool)>) {
        for (pod, has_object) in objects {
            if let Some(member) = self.endpoints.get_mut(&pod) {
                member.has_object = has_object;
            }
        }
    }

    /// The same, where what `endpoint add` said takes the place of an object that goes.
    pub fn with_descriptions(&self, mut changes: Vec<Change>) -> Vec<Change> {
        for change in &mut changes {
            let Change::Delete(reference) = &*change else { continue };
            let pod = reference.path();
            let described = (reference.kind == Kind::Pod)
                .then(|| self.endpoints.get(&pod))
                .flatten()
                .and_then(|member| described_pod(&pod, &member.registration, &self.config.node_name));
            if let Some(described) = described {
                *change = described;
            }
        }
        changes
    }

    /// Some devices may have gone, by the kernel's news or for want of them. Only the kernel's word on a device counts: one
    /// that is there and whose programs were taken off would be judged by nobody. The names that it was added by may lead
    /// nowhere any more: a namespace loses its name while its pod runs.
    pub fn find_vanished(&mut self, may_be_gone: impl Fn(u32) -> bool) {
        let found = self.endpoints.iter().filter_map(|(pod, member)| {
            Some((pod.to_owned(), member.registration.id, member.device.found()?))
        });
        let suspects: Vec<_> = found.filter(|(.., device)| may_be_gone(device.ifindex)).collect();
        for (pod, id, device) in suspects {
            if !self.kernel.has_device(device.ifindex) {
                self.device_vanished(&pod, device.ifindex);
            } else if let Err(error) = self.kernel.attach(&pod, id, &device) {
                // It may have been away, and have come back without its programs.
                tracing::error!(pod, %error, "the device of an endpoint is not judged as it should be");
            }
        }
    }

    /// Devices that were missing and are there now, by the names that they were added by: nobody judged what they sent.
    pub fn find_missing(&mut self) {
        let missing: Vec<(String, Registration)> = self
            .endpoints
            .iter()
            .filter(|(_, member)| matches!(member.device, Device::Missing(_)))
            .map(|(pod, member)| (pod.to_owned(), member.registration.clone()))
            .collect();
        for (pod, registration) in missing {
            let Ok(found) = self.kernel.find(&registration.device) else { continue };
            if self.owner_of(found.ifindex).is_some() {
                continue;
            }
            if let Err(error) = self.kernel.attach(&pod, registration.id, &found) {
                tracing::error!(pod, %error, "the device of an endpoint is there again, and not judged");
                continue;
            }
            tracing::info!(pod, device = found.interface, "the device of an endpoint is there again");
            self.shared.directory.lock().forget_interface(found.ifindex);
            if let Some(member) = self.endpoints.get_mut(&pod) {
                member.device = found.into();
            }
        }
    }

    /// Its endpoint is reported until a device is found by its names again.
    fn device_vanished(&mut self, pod: &str, ifindex: u32) {
        self.shared.directory.lock().forget_interface(ifindex);
        tracing::warn!(pod, "the device of an endpoint has vanished");
        if let Err(error) = self.kernel.detach(pod) {
            tracing::debug!(pod, %error, "nothing left to detach");
        }
        if let Some(member) = self.endpoints.get_mut(pod) {
            member.device = Device::Missing("the device has vanished".into());
        }
    }

    /// The node's own devices and addresses are these now. Says whether the kernel side took that; if not, it is to be
    /// told again.
    pub fn node_devices(&mut self, own: Result<Vec<OwnDevice>, NetError>) -> bool {
        let told = match own {
            Ok(own) => self.kernel.node_devices(&own).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &told {
            tracing::error!(%error, "a device of the node is not judged as it should be");
            self.devices_failures += 1;
        }
        self.devices_trouble = told.err();
        self.devices_trouble.is_none()
    }
}

/// The view knows the pod by what `endpoint add` said.
fn is_description(member: &Member) -> bool {
    member.registration.described.is_some() && !member.has_object
}

/// The pod object that the operator described in `endpoint add`.
fn described_pod(pod: &str, registration: &Registration, node: &str) -> Option<Change> {
    let described = registration.described.as_ref()?;
    let (namespace, name) = pod.split_once('/')?;
    Some(Change::Upsert(Resource::Object(Object::Pod(Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: described.labels.clone().into(),
        node: Some(node.to_owned()),
        addresses: described.addresses.clone(),
        host_network: false,
        service_account: "default".to_owned(),
        controller: None,
        ports: Vec::new(),
    }))))
}

fn pod_reference(pod: &str) -> Option<ObjectRef> {
    let (namespace, name) = pod.split_once('/')?;
    Some(ObjectRef::new(Kind::Pod, namespace, name))
}
