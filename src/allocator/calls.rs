//! Carries out single actions: the calls to EC2 and to the API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::time::Instant;

use super::election::Leadership;
use super::objects::{Annotation, PodObject};
use super::retry::Cause;
use super::state::{BranchFacts, Effect, Failed};
use super::watches::BOUND_AND_ALIVE;
use super::{Action, AssociationId, BranchId, PodUid, TrunkId, VlanId};
use crate::api::names::{
    BRANCH_DESCRIPTION, OWNED, OWNER, POD_ENI, TAG_CLUSTER_NAME, TAG_CLUSTER_PREFIX,
    TAG_INSTANCE_ID, TAG_OWNER, TAG_POD_UID, TAG_TRUNK_ID, TAG_VLAN_ID, TRUNK_DESCRIPTION,
};
use crate::api::{PodEni, SecurityGroupId};
use crate::api_server::is_not_found;
use crate::api_server::policies::list_policies;
use crate::ec2::calls::{
    Ec2, Filter, Instance, Interface, NewAssociation, NewInterface, Priority, Subnet,
};
use crate::ec2::error::{Ec2Error, ErrorClass, NOT_SENT};
use crate::ec2::instance_limits::InstanceLimits;

/// How long the API server may take for one call.
const API_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an annotation is tried again at once because the pod has changed meanwhile.
const CONFLICTS: usize = 5;
/// How long a list of all associations is good for branches that it names.
const ASSOCIATIONS_KEPT: Duration = Duration::from_secs(60);

/// Carries out actions.
pub struct Calls {
    ec2: Arc<dyn Ec2>,
    client: Client,
    cluster_name: String,
    leadership: watch::Receiver<Leadership>,
    subnets: Mutex<HashMap<String, Arc<OnceCell<Subnet>>>>,
    associations: Mutex<Option<(Instant, HashMap<String, String>)>>,
}

/// What an action needs to know besides itself.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// The instance.
    pub instance_id: String,
    /// Where interfaces are made.
    pub subnet_id: String,
    /// How many interfaces the network card carries that takes the trunk.
    pub most_interfaces: u32,
    /// Whether pods have IPv6 addresses.
    pub ipv6: bool,
    /// Tags that the CNINode asks for.
    pub extra_tags: BTreeMap<String, String>,
    /// The trunk, once there is one.
    pub trunk: Option<TrunkId>,
    /// See `NodeState::generation`.
    pub generation: u32,
    /// The pod that an annotation is for.
    pub pod: Option<PodReference>,
    /// What is known of the branch.
    pub facts: BranchFacts,
    /// The branch's VLAN id.
    pub vlan: Option<VlanId>,
    /// The branch's association.
    pub association: Option<AssociationId>,
}

/// A pod as it was seen last.
#[derive(Clone, Debug)]
pub struct PodReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its resource version.
    pub resource_version: String,
}

/// What an action has brought, with what the cluster's state learns of it.
#[derive(Debug)]
pub struct Carried {
    /// For the node's state.
    pub effect: Effect,
    /// The annotation that was written, and the pod's new resource version.
    pub annotation: Option<(PodEni, String)>,
}

impl From<Effect> for Carried {
    fn from(effect: Effect) -> Self {
        Self {
            effect,
            annotation: None,
        }
    }
}

/// An action that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {code}: {message}", cause.call)]
pub struct CallError {
    /// What it may have in common with others.
    pub cause: Cause,
    /// What the failure means.
    pub class: ErrorClass,
    /// What the node's state makes of it.
    pub failed: Failed,
    /// EC2's code, or a word of ours for the API server.
    pub code: String,
    /// What EC2 or the API server says.
    pub message: String,
}

impl CallError {
    fn of_ec2(error: Ec2Error, scope: &str) -> Self {
        let failed = match error.class {
            ErrorClass::Gone => Failed::Gone,
            _ if error.code == "IdempotentParameterMismatch" => Failed::TokenMismatch,
            _ => Failed::Unsure,
        };
        // What the whole account meets is no matter of one subnet or instance.
        let scope = match error.class {
            ErrorClass::Forbidden | ErrorClass::Throttled => "",
            _ => scope,
        };
        Self {
            cause: Cause {
                call: error.call,
                scope: scope.to_owned(),
            },
            class: error.class,
            failed,
            code: error.code,
            message: error.message,
        }
    }

    /// The same of an action that is one call: if that had no effect, nothing has changed. Of
    /// several calls the first ones may have had theirs.
    fn of_only_call(error: Ec2Error, scope: &str) -> Self {
        let had_no_effect = error.had_no_effect;
        let mut error = Self::of_ec2(error, scope);
        if had_no_effect {
            error.failed = Failed::Elsewhere;
        }
        error
    }

    fn elsewhere(call: &'static str, class: ErrorClass, code: &str, message: String) -> Self {
        Self {
            cause: Cause {
                call,
                scope: String::new(),
            },
            class,
            failed: Failed::Elsewhere,
            code: code.to_owned(),
            message,
        }
    }

    fn of_api_server(call: &'static str, error: kube::Error) -> Self {
        let (class, code, message) = match error {
            kube::Error::Api(status) => {
                let class = match status.code {
                    401 | 403 => ErrorClass::Forbidden,
                    404 => ErrorClass::Gone,
                    429 => ErrorClass::Throttled,
                    _ => ErrorClass::Retry,
                };
                (class, status.reason.clone(), status.message.clone())
            }
            other => (ErrorClass::Retry, "NoAnswer".to_owned(), other.to_string()),
        };
        Self::elsewhere(call, class, &code, message)
    }
}

/// Bounds a call to the API server in time.
pub async fn ask_api_server<T>(
    call: &'static str,
    future: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(API_TIMEOUT, future).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError::of_api_server(call, error)),
        Err(_) => Err(CallError::elsewhere(
            call,
            ErrorClass::Retry,
            "NoAnswer",
            format!(
                "the API server did not answer within {} s",
                API_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// What is asked for is so already if what the call was about is gone.
fn gone_is_done(result: Result<(), Ec2Error>) -> Result<(), Ec2Error> {
    match result {
        Err(error) if error.class == ErrorClass::Gone => Ok(()),
        other => other,
    }
}

impl Calls {
    /// Nothing is known yet.
    pub fn new(
        ec2: Arc<dyn Ec2>,
        client: Client,
        cluster_name: String,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        Self {
            ec2,
            client,
            cluster_name,
            leadership,
            subnets: Mutex::default(),
            associations: Mutex::default(),
        }
    }

    /// To be asked right before anything is changed.
    ///
    /// # Errors
    ///
    /// When the lease could be another's by now.
    pub fn check_leadership(&self) -> Result<(), CallError> {
        if self.leadership.borrow().is_held() {
            return Ok(());
        }
        let message = "this process does not lead any more".to_owned();
        let class = ErrorClass::Retry;
        Err(CallError::elsewhere("none", class, NOT_SENT, message))
    }

    /// Carries out one action. [`Action::ConfirmIdle`] is for [`Self::branches_in_use`].
    pub async fn carry_out(
        &self,
        action: &Action,
        known: &Circumstances,
    ) -> Result<Carried, CallError> {
        let instance = known.instance_id.as_str();
        let of_ec2 = |error| CallError::of_ec2(error, "");
        match action {
            Action::CreateTrunk { group_ids } => {
                let created = self.create_trunk(group_ids, known).await;
                let created =
                    created.map_err(|error| CallError::of_ec2(error, &known.subnet_id))?;
                Ok(Effect::TrunkCreated(created.into()).into())
            }
            Action::AttachTrunk(trunk) => {
                self.attach_trunk(trunk, known).await?;
                Ok(Effect::Done.into())
            }
            Action::SetTrunkGroups(trunk, group_ids) => {
                let set = self
                    .ec2
                    .set_groups(trunk.as_str().to_owned(), texts(group_ids));
                set.await
                    .map_err(|error| CallError::of_only_call(error, instance))?;
                Ok(Effect::Done.into())
            }
            Action::DeleteTrunk(trunk) => {
                self.delete_trunk(trunk).await.map_err(of_ec2)?;
                Ok(Effect::Done.into())
            }
            Action::CreateBranch {
                pod,
                vlan,
                group_ids,
            } => {
                let created = self.create_branch(pod, *vlan, group_ids, known).await;
                let created =
                    created.map_err(|error| CallError::of_only_call(error, &known.subnet_id))?;
                Ok(Effect::BranchCreated(created.into()).into())
            }
            Action::Associate {
                branch,
                trunk,
                vlan,
            } => {
                let association = self.associate(branch, trunk, *vlan);
                let association = association.await;
                let id = association.map_err(|error| CallError::of_only_call(error, instance))?;
                Ok(Effect::Associated(AssociationId::from(id.as_str())).into())
            }
            Action::SetGroups { branch, group_ids }
            | Action::Reuse {
                branch,
                group_ids: Some(group_ids),
                ..
            } => {
                let set = self
                    .ec2
                    .set_groups(branch.as_str().to_owned(), texts(group_ids));
                set.await
                    .map_err(|error| CallError::of_only_call(error, ""))?;
                Ok(Effect::Done.into())
            }
            Action::Reuse {
                group_ids: None, ..
            } => Ok(Effect::Done.into()),
            Action::Annotate { pod, branch } => self.annotate(pod, branch, known).await,
            Action::ConfirmIdle(branch) => {
                let used = self.branches_in_use(None).await?;
                Ok(Effect::Idle(!used.contains(branch)).into())
            }
            Action::Disassociate {
                branch,
                association,
            } => {
                self.disassociate(branch, association)
                    .await
                    .map_err(of_ec2)?;
                Ok(Effect::Done.into())
            }
            Action::DeleteBranch(branch) => {
                // One that EC2 does not know may be too young, which the state can tell.
                let deleted = self.ec2.delete_interface(branch.as_str().to_owned());
                deleted
                    .await
                    .map_err(|error| CallError::of_only_call(error, ""))?;
                Ok(Effect::Done.into())
            }
        }
    }

    /// All interfaces that were made for the cluster, or for one instance of it.
    pub async fn interfaces(
        &self,
        instance_id: Option<&str>,
        priority: Priority,
    ) -> Result<Vec<Interface>, CallError> {
        let mut filters = vec![
            Filter::new(
                format!("tag:{TAG_CLUSTER_PREFIX}{}", self.cluster_name),
                OWNED,
            ),
            Filter::new(format!("tag:{TAG_OWNER}"), OWNER),
        ];
        if let Some(id) = instance_id {
            filters.push(Filter::new(format!("tag:{TAG_INSTANCE_ID}"), id));
        }
        let found = self.ec2.interfaces(filters, priority).await;
        found.map_err(|error| CallError::of_ec2(error, instance_id.unwrap_or_default()))
    }

    /// The instances of these ids, as far as EC2 knows them.
    pub async fn instances(&self, ids: Vec<String>) -> Result<Vec<Instance>, CallError> {
        let found = self.ec2.instances(ids, Priority::Allocation).await;
        found.map_err(|error| CallError::of_ec2(error, ""))
    }

    /// The branches that annotations of pods name which may still use them: of the pods on
    /// one node, or of all. A consistent list, whatever any watch says.
    pub async fn branches_in_use(
        &self,
        node: Option<&str>,
    ) -> Result<BTreeSet<BranchId>, CallError> {
        let api = Api::<PartialObjectMeta<Pod>>::all(self.client.clone());
        let on_node = node.map(|name| format!("{BOUND_AND_ALIVE},spec.nodeName={name}"));
        let fields = on_node.as_deref().unwrap_or(BOUND_AND_ALIVE);
        let mut parameters = ListParams::default().fields(fields).limit(500);
        let mut in_use = BTreeSet::new();
        loop {
            let page = ask_api_server("list pods", api.list(&parameters)).await?;
            for pod in &page.items {
                if let Annotation::Names(interface) = Annotation::of(&pod.metadata) {
                    in_use.insert(BranchId::from(interface.interface_id.as_str()));
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(in_use),
            }
        }
    }

    /// How many interfaces an instance type carries that the table does not know.
    pub async fn limits(&self, instance_type: &str) -> Result<Option<InstanceLimits>, CallError> {
        let limits = self.ec2.instance_limits(instance_type.to_owned()).await;
        limits.map_err(|error| CallError::of_ec2(error, instance_type))
    }

    /// Whether, as the API server has it now, no policy selects a pod.
    pub async fn is_unselected(
        &self,
        pod: &PodObject,
        may_be_undefined: bool,
    ) -> Result<bool, CallError> {
        let list = list_policies(&self.client, &pod.namespace);
        let listed = async {
            match list.await {
                Err(error) if may_be_undefined && is_not_found(&error) => Ok(None),
                listed => listed.map(|index| index.namespace(&pod.namespace)),
            }
        };
        let Some(policies) = ask_api_server("list securitygrouppolicies", listed).await? else {
            return Ok(true);
        };
        let api = Api::<PartialObjectMeta<ServiceAccount>>::namespaced(
            self.client.clone(),
            &pod.namespace,
        );
        let get = api.get_opt(&pod.service_account);
        let account = ask_api_server("get serviceaccount", get).await?;
        let labels = account
            .and_then(|account| account.metadata.labels)
            .unwrap_or_default();
        Ok(policies.selecting(&pod.labels, &labels).is_empty())
    }

    fn tags(&self, known: &Circumstances) -> BTreeMap<String, String> {
        let mut tags = known.extra_tags.clone();
        let ours = [
            (TAG_OWNER.to_owned(), OWNER),
            (format!("{TAG_CLUSTER_PREFIX}{}", self.cluster_name), OWNED),
            (TAG_CLUSTER_NAME.to_owned(), self.cluster_name.as_str()),
            (TAG_INSTANCE_ID.to_owned(), known.instance_id.as_str()),
        ];
        tags.extend(ours.map(|(key, value)| (key, value.to_owned())));
        tags
    }

    async fn create_trunk(
        &self,
        group_ids: &[SecurityGroupId],
        known: &Circumstances,
    ) -> Result<Interface, Ec2Error> {
        // One that the instance has, whoever made it, is taken over: EC2 allows no second.
        let filters = vec![
            Filter::new("attachment.instance-id", &known.instance_id),
            Filter::new("interface-type", "trunk"),
        ];
        let attached = self.ec2.interfaces(filters, Priority::Allocation).await?;
        if let Some(trunk) = attached.into_iter().next() {
            // By its tags it is found again.
            let tagged = self.ec2.tag_interface(trunk.id.clone(), self.tags(known));
            tagged.await?;
            return Ok(trunk);
        }
        let interface = NewInterface {
            trunk: true,
            subnet_id: known.subnet_id.clone(),
            group_ids: texts(group_ids),
            description: TRUNK_DESCRIPTION.to_owned(),
            tags: self.tags(known),
            ipv6: false,
            client_token: token("trunk", &known.instance_id, known.generation),
        };
        self.ec2.create_interface(interface).await
    }

    /// Attaches the trunk, unless it is, and lets it go with its instance.
    async fn attach_trunk(&self, trunk: &TrunkId, known: &Circumstances) -> Result<(), CallError> {
        let instance_id = known.instance_id.as_str();
        let of_ec2 = |error| CallError::of_ec2(error, instance_id);
        let attachment = match self.interface(trunk.as_str()).await.map_err(of_ec2)? {
            Some(Interface {
                attachment: Some(attachment),
                ..
            }) => attachment.id,
            _ => {
                let index = self.free_device_index(known).await?;
                let trunk = trunk.as_str().to_owned();
                let attached = self.ec2.attach(trunk, known.instance_id.clone(), index);
                attached.await.map_err(of_ec2)?
            }
        };
        let trunk = trunk.as_str().to_owned();
        let set = self.ec2.delete_on_termination(trunk, attachment);
        set.await.map_err(of_ec2)
    }

    async fn free_device_index(&self, known: &Circumstances) -> Result<i32, CallError> {
        let id = known.instance_id.clone();
        let full = |class, code: &str, message| CallError {
            cause: Cause {
                call: "AttachNetworkInterface",
                // Each look costs calls, so that many full instances take turns.
                scope: String::new(),
            },
            class,
            failed: Failed::Unsure,
            code: code.to_owned(),
            message,
        };
        let found = self.instances(vec![id.clone()]).await?;
        let Some(instance) = found.into_iter().find(|instance| instance.alive) else {
            let message = format!("the instance {id} does not run");
            return Err(full(
                ErrorClass::Gone,
                "InvalidInstanceID.NotFound",
                message,
            ));
        };
        let most = usize::try_from(known.most_interfaces).unwrap_or(usize::MAX);
        let taken = &instance.device_indexes;
        let free = (0..i32::MAX)
            .take(most)
            .find(|index| !taken.contains(index));
        let free = free.filter(|_| taken.len() < most);
        free.ok_or_else(|| {
            let message = format!(
                "the instance {id} has {most} interfaces, the most that its type carries; the \
                 trunk is attached as soon as one of them is detached"
            );
            full(ErrorClass::Full, "AttachmentLimitExceeded", message)
        })
    }

    async fn delete_trunk(&self, trunk: &TrunkId) -> Result<(), Ec2Error> {
        let Some(interface) = self.interface(trunk.as_str()).await? else {
            return Ok(());
        };
        if let Some(attachment) = interface.attachment {
            gone_is_done(self.ec2.detach(attachment.id).await)?;
        }
        gone_is_done(self.ec2.delete_interface(interface.id).await)
    }

    async fn create_branch(
        &self,
        pod: &PodUid,
        vlan: VlanId,
        group_ids: &[SecurityGroupId],
        known: &Circumstances,
    ) -> Result<Interface, Ec2Error> {
        let mut tags = self.tags(known);
        let trunk = known
            .trunk
            .as_ref()
            .map(TrunkId::as_str)
            .unwrap_or_default();
        tags.insert(TAG_VLAN_ID.to_owned(), vlan.to_string());
        tags.insert(TAG_TRUNK_ID.to_owned(), trunk.to_owned());
        tags.insert(TAG_POD_UID.to_owned(), pod.as_str().to_owned());
        let interface = NewInterface {
            trunk: false,
            subnet_id: known.subnet_id.clone(),
            group_ids: texts(group_ids),
            description: BRANCH_DESCRIPTION.to_owned(),
            tags,
            ipv6: known.ipv6,
            client_token: token("pod", pod.as_str(), known.generation),
        };
        self.ec2.create_interface(interface).await
    }

    async fn associate(
        &self,
        branch: &BranchId,
        trunk: &TrunkId,
        vlan: VlanId,
    ) -> Result<String, Ec2Error> {
        // Whether an earlier call took effect, EC2's list says. A token that came again would
        // get the first answer again, even when that association has ended since.
        let unique = RandomState::new().hash_one(branch.as_str());
        let association = NewAssociation {
            trunk_id: trunk.as_str().to_owned(),
            branch_id: branch.as_str().to_owned(),
            vlan: vlan.number(),
            client_token: format!("association-{}-{unique:016x}", branch.as_str()),
        };
        self.ec2.associate(association).await
    }

    async fn disassociate(
        &self,
        branch: &BranchId,
        association: &AssociationId,
    ) -> Result<(), Ec2Error> {
        let Some(id) = self.known_association(branch, association).await? else {
            return Ok(());
        };
        match self.ec2.disassociate(id.clone()).await {
            Err(error) if error.class == ErrorClass::Gone => {}
            other => return other,
        }
        // Somebody has ended it, and it was made anew under another id than the annotation's.
        let other = self.known_association(branch, &AssociationId::UNKNOWN);
        match other.await?.filter(|other| *other != id) {
            Some(other) => gone_is_done(self.ec2.disassociate(other).await),
            None => Ok(()),
        }
    }

    async fn interface(&self, id: &str) -> Result<Option<Interface>, Ec2Error> {
        let filters = vec![Filter::new("network-interface-id", id)];
        let found = self.ec2.interfaces(filters, Priority::Allocation).await?;
        Ok(found.into_iter().next())
    }

    /// The id of a branch's association; `None` if EC2 knows of none (any more).
    async fn known_association(
        &self,
        branch: &BranchId,
        association: &AssociationId,
    ) -> Result<Option<String>, Ec2Error> {
        if association.is_known() {
            return Ok(Some(association.as_str().to_owned()));
        }
        // EC2 lists them only all at once; one list serves all who ask meanwhile.
        let mut kept = self.associations.lock().await;
        if let Some((at, associations)) = &*kept
            && at.elapsed() < ASSOCIATIONS_KEPT
            && let Some(id) = associations.get(branch.as_str())
        {
            return Ok(Some(id.clone()));
        }
        let begun = Instant::now();
        let all = self.ec2.associations().await?;
        let by_branch: HashMap<_, _> = all.into_iter().map(|it| (it.branch_id, it.id)).collect();
        let id = by_branch.get(branch.as_str()).cloned();
        *kept = Some((begun, by_branch));
        Ok(id)
    }

    /// A subnet, which EC2 is asked for once. Who asks for one waits for no other.
    async fn subnet(&self, id: &str) -> Result<Subnet, Ec2Error> {
        let cell = self
            .subnets
            .lock()
            .await
            .entry(id.to_owned())
            .or_default()
            .clone();
        let ask = async || {
            let found = self.ec2.subnets(vec![id.to_owned()]).await?;
            found.into_iter().next().ok_or_else(|| {
                let message = format!("The subnet ID '{id}' does not exist");
                Ec2Error::new("DescribeSubnets", "InvalidSubnetID.NotFound", message)
            })
        };
        cell.get_or_try_init(ask).await.cloned()
    }

    async fn annotate(
        &self,
        uid: &PodUid,
        branch: &BranchId,
        known: &Circumstances,
    ) -> Result<Carried, CallError> {
        const CALL: &str = "patch pod status";
        let of_ec2 = |error| CallError::of_ec2(error, "");
        let missing = |what: &str| {
            let message = format!(
                "{what} of branch interface {} is not known",
                branch.as_str()
            );
            CallError::elsewhere(CALL, ErrorClass::Retry, "NotReady", message)
        };
        let pod = known.pod.as_ref().ok_or_else(|| missing("the pod"))?;
        let association = known
            .association
            .as_ref()
            .ok_or_else(|| missing("the association"))?;
        let association = self
            .known_association(branch, association)
            .await
            .map_err(of_ec2)?;
        // It looked associated, and is not any more: what there is has to be seen.
        let association = association.ok_or_else(|| CallError {
            failed: Failed::Unsure,
            ..missing("the association")
        })?;
        let subnet = self.subnet(&known.facts.subnet_id).await.map_err(of_ec2)?;
        let facts = known.facts.clone();
        let interface = PodEni {
            interface_id: branch.as_str().to_owned(),
            mac_address: facts.mac_address,
            private_ip: facts.private_ip,
            subnet_v6_cidr: match facts.ipv6_address.is_empty() {
                true => String::new(),
                false => subnet.ipv6_cidr,
            },
            ipv6_address: facts.ipv6_address,
            vlan_id: known.vlan.ok_or_else(|| missing("the VLAN id"))?.number(),
            subnet_cidr: subnet.ipv4_cidr,
            association_id: association.clone(),
        };
        let resource_version = self.write_annotation(uid, pod, &interface).await?;
        Ok(Carried {
            effect: Effect::Annotated(AssociationId::from(association.as_str())),
            annotation: Some((interface, resource_version)),
        })
    }

    /// Writes the annotation into this very pod unless it has one, and gives the pod's new
    /// resource version.
    async fn write_annotation(
        &self,
        uid: &PodUid,
        pod: &PodReference,
        interface: &PodEni,
    ) -> Result<String, CallError> {
        const CALL: &str = "patch pod status";
        let api = Api::<PartialObjectMeta<Pod>>::namespaced(self.client.clone(), &pod.namespace);
        let json = serde_json::to_string(&[interface]).expect("texts and numbers are JSON");
        let mut resource_version = pod.resource_version.clone();
        for _ in 0..CONFLICTS {
            // What was looked up before may have taken its time.
            self.check_leadership()?;
            let patch = json!({
                "metadata": {
                    "uid": uid.as_str(),
                    "resourceVersion": resource_version,
                    "annotations": {POD_ENI: json},
                }
            });
            let patch = Patch::Merge(&patch);
            let parameters = PatchParams::default();
            // By its status, where the API server takes annotations too and leaves the spec as it
            // is: so no right is needed by which a pod's image could be changed.
            let patched = api.patch_status(&pod.name, &parameters, &patch);
            match ask_api_server(CALL, patched).await {
                Ok(patched) => return Ok(patched.resource_version().unwrap_or_default()),
                // The pod has changed since, or is another of the same name.
                Err(error) if error.code == "Conflict" => {}
                Err(error) => return Err(error),
            }
            let current = ask_api_server("get pod", api.get_metadata(&pod.name)).await?;
            if current.uid().as_deref() != Some(uid.as_str()) {
                let message = format!("pod {}/{} is gone", pod.namespace, pod.name);
                return Err(CallError::elsewhere(
                    CALL,
                    ErrorClass::Gone,
                    "NotFound",
                    message,
                ));
            }
            match Annotation::of(&current.metadata) {
                Annotation::Absent => {}
                Annotation::Names(other) if *other == *interface => {
                    return Ok(current.resource_version().unwrap_or_default());
                }
                _ => {
                    let message = format!(
                        "pod {}/{} has another annotation {POD_ENI} already",
                        pod.namespace, pod.name
                    );
                    return Err(CallError::elsewhere(
                        CALL,
                        ErrorClass::Bug,
                        "Annotated",
                        message,
                    ));
                }
            }
            resource_version = current.resource_version().unwrap_or_default();
        }
        let message = format!("pod {}/{} keeps changing", pod.namespace, pod.name);
        Err(CallError::elsewhere(
            CALL,
            ErrorClass::Retry,
            "Conflict",
            message,
        ))
    }
}

fn texts(group_ids: &[SecurityGroupId]) -> Vec<String> {
    group_ids.iter().map(SecurityGroupId::to_string).collect()
}

/// A client token: at most 64 characters of ASCII.
fn token(what: &str, id: &str, generation: u32) -> String {
    let token = format!("{what}-{id}-{generation}");
    token.chars().take(64).collect()
}
