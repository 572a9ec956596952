//! EC2 and the API server as one node meets them: what really is, and what they show of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::allocator::state::{Effect, Failed};
use crate::allocator::{Action, AssociationId, BranchId, DesiredPod, PodUid, VlanId};
use crate::api::SecurityGroupId;
use crate::api::names::{
    BRANCH_DESCRIPTION, TAG_INSTANCE_ID, TAG_POD_UID, TAG_VLAN_ID, TRUNK_DESCRIPTION,
};
use crate::ec2::calls::{Attachment, Interface, InterfaceKind};

/// The most branches that the trunk takes.
pub const LIMIT: usize = 3;
/// The longest that a call goes on for which nobody waits any more.
pub const LATE: Duration = Duration::from_secs(12);
/// The longest that EC2 does not show what is there, or shows what is gone.
pub const HIDDEN: Duration = Duration::from_secs(15);
const INSTANCE: &str = "i-1";

/// All that is there.
pub struct World {
    pub now: Instant,
    pub pods: BTreeMap<PodUid, DesiredPod>,
    /// Under which association each annotation says that its branch is.
    pub annotations: BTreeMap<BranchId, AssociationId>,
    /// How long EC2 takes to show what changes from now on.
    pub lag: Duration,
    interfaces: BTreeMap<String, Made>,
    tokens: BTreeMap<String, (Request, String)>,
    late: Vec<(Instant, Call)>,
    made: u64,
    /// Something may exist that the allocator can't know of: its process was lost.
    forgotten: bool,
}

/// One call, with what it was sent with besides the action.
#[derive(Clone, Debug)]
pub struct Call {
    pub action: Action,
    pub generation: u32,
    pub association: Option<AssociationId>,
}

/// An interface that was made once.
#[derive(Clone, Debug)]
struct Made {
    request: Request,
    group_ids: Vec<SecurityGroupId>,
    association: Option<AssociationId>,
    is_attached: bool,
    shown_from: Instant,
    /// Until when a deleted interface is shown.
    deleted: Option<Instant>,
    /// Somebody else disassociated or deleted it.
    is_tampered: bool,
}

/// What a client token stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Request {
    Trunk(Vec<SecurityGroupId>),
    Branch(PodUid, VlanId, Vec<SecurityGroupId>),
}

impl Made {
    fn exists(&self) -> bool {
        self.deleted.is_none()
    }

    fn is_trunk(&self) -> bool {
        matches!(self.request, Request::Trunk(_))
    }

    fn vlan(&self) -> Option<VlanId> {
        match &self.request {
            Request::Branch(_, vlan, _) => Some(*vlan),
            Request::Trunk(_) => None,
        }
    }

    fn interface(&self, id: &str) -> Interface {
        let mut tags = BTreeMap::from([(TAG_INSTANCE_ID.to_owned(), INSTANCE.to_owned())]);
        if let Request::Branch(pod, vlan, _) = &self.request {
            tags.insert(TAG_POD_UID.to_owned(), pod.as_str().to_owned());
            tags.insert(TAG_VLAN_ID.to_owned(), vlan.to_string());
        }
        let (kind, description) = match (self.is_trunk(), &self.association) {
            (true, _) => (InterfaceKind::Trunk, TRUNK_DESCRIPTION),
            (false, Some(_)) => (InterfaceKind::Branch, BRANCH_DESCRIPTION),
            (false, None) => (InterfaceKind::Other, BRANCH_DESCRIPTION),
        };
        Interface {
            id: id.to_owned(),
            kind,
            description: description.to_owned(),
            in_use: self.is_attached || self.association.is_some(),
            mac_address: String::new(),
            private_ip: String::new(),
            ipv6_address: None,
            subnet_id: String::new(),
            vpc_id: String::new(),
            group_ids: self.group_ids.iter().map(ToString::to_string).collect(),
            attachment: self.is_attached.then(|| Attachment {
                id: "attachment".to_owned(),
                instance_id: INSTANCE.to_owned(),
                attached: true,
                delete_on_termination: true,
            }),
            tags,
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Instant::now(),
            pods: BTreeMap::new(),
            annotations: BTreeMap::new(),
            lag: Duration::ZERO,
            interfaces: BTreeMap::new(),
            tokens: BTreeMap::new(),
            late: Vec::new(),
            made: 0,
            forgotten: false,
        }
    }

    pub fn add_pod(&mut self, group_ids: Vec<SecurityGroupId>) {
        let uid = PodUid::from(self.fresh_id("pod").as_str());
        let pod = DesiredPod {
            group_ids,
            annotated: None,
            arrival: self.made,
        };
        self.pods.insert(uid, pod);
    }

    /// A process that was lost has made a trunk.
    pub fn add_trunk(&mut self, group_ids: Vec<SecurityGroupId>) {
        let made = self.create("trunk-of-another".to_owned(), Request::Trunk(group_ids));
        assert!(made.is_ok(), "the token is new");
    }

    /// The interfaces that EC2 lists now.
    pub fn shown(&self) -> Vec<Interface> {
        let shown = self.interfaces.iter().filter(|(_, made)| {
            made.shown_from <= self.now && made.deleted.is_none_or(|until| until > self.now)
        });
        shown.map(|(id, made)| made.interface(id)).collect()
    }

    /// Lets time pass, and what is late happen.
    pub fn advance(&mut self, to: Instant) {
        while let Some(index) = self.late.iter().position(|(at, _)| *at <= to) {
            self.now = self.now.max(self.late[index].0);
            self.land(index);
        }
        self.now = self.now.max(to);
    }

    /// A call goes on although nobody waits for it any more.
    pub fn leave_to_itself(&mut self, call: Call) {
        self.late.push((self.now + LATE, call));
    }

    /// Something that is late happens.
    pub fn land(&mut self, index: usize) {
        if index < self.late.len() {
            let (_, call) = self.late.remove(index);
            let _ = self.carry_out(&call);
        }
    }

    /// From now on there may be what no process knows of.
    pub fn forget(&mut self, calls: &[Call]) {
        let is_creation = |call: &Call| matches!(call.action, Action::CreateBranch { .. });
        let hidden = |made: &Made| made.exists() && made.shown_from > self.now;
        self.forgotten |= calls.iter().any(is_creation)
            || self.late.iter().any(|(_, call)| is_creation(call))
            || self.interfaces.values().any(hidden);
    }

    fn fresh_id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}-{:04}", self.made)
    }

    /// Does what a call asks for, as far as EC2's rules allow, and answers as `calls` reads
    /// the answers of EC2 and of the API server.
    pub fn carry_out(&mut self, call: &Call) -> Result<Effect, Failed> {
        match &call.action {
            Action::CreateTrunk { group_ids } => {
                let attached = self.shown().into_iter().find(|it| it.attachment.is_some());
                let trunk = match attached {
                    Some(trunk) => trunk,
                    None => {
                        let token = format!("trunk-{}", call.generation);
                        self.create(token, Request::Trunk(group_ids.clone()))?
                    }
                };
                Ok(Effect::TrunkCreated(trunk.into()))
            }
            Action::AttachTrunk(id) => {
                let of_instance = self.attached_trunk().map(str::to_owned);
                let trunk = self.found(id.as_str())?;
                match of_instance {
                    Some(other) if other != id.as_str() => return Err(Failed::Unsure),
                    _ => trunk.is_attached = true,
                }
                Ok(Effect::Done)
            }
            Action::SetTrunkGroups(id, group_ids) => {
                self.found(id.as_str())?.group_ids.clone_from(group_ids);
                Ok(Effect::Done)
            }
            Action::DeleteTrunk(id) => {
                let is_laden = self.branches().any(|(_, made)| made.association.is_some());
                match self.found(id.as_str()) {
                    Ok(trunk) if trunk.is_attached && is_laden => return Err(Failed::Unsure),
                    Ok(_) => self.delete(id.as_str()),
                    Err(_) => {}
                }
                Ok(Effect::Done)
            }
            Action::CreateBranch {
                pod,
                vlan,
                group_ids,
            } => {
                let token = format!("{}-{}", pod.as_str(), call.generation);
                let request = Request::Branch(pod.clone(), *vlan, group_ids.clone());
                Ok(Effect::BranchCreated(self.create(token, request)?.into()))
            }
            Action::Associate {
                branch,
                trunk,
                vlan,
            } => {
                let association = AssociationId::from(self.fresh_id("association").as_str());
                let is_attached = self.found(trunk.as_str())?.is_attached;
                let associated: Vec<_> = self
                    .branches()
                    .filter(|(_, made)| made.association.is_some())
                    .map(|(id, made)| (id.to_owned(), made.vlan()))
                    .collect();
                let has_room = associated.len() < LIMIT
                    && associated
                        .iter()
                        .all(|(id, used)| id != branch.as_str() && *used != Some(*vlan));
                let made = self.found(branch.as_str())?;
                assert_eq!(made.vlan(), Some(*vlan), "the tag tells the VLAN id");
                if !is_attached || !has_room {
                    return Err(Failed::Unsure);
                }
                made.association = Some(association.clone());
                Ok(Effect::Associated(association))
            }
            Action::SetGroups { branch, group_ids } => {
                self.found(branch.as_str())?.group_ids.clone_from(group_ids);
                Ok(Effect::Done)
            }
            Action::Reuse {
                branch, group_ids, ..
            } => {
                self.assert_unused(branch, &call.action);
                if let Some(group_ids) = group_ids {
                    self.found(branch.as_str())?.group_ids.clone_from(group_ids);
                }
                Ok(Effect::Done)
            }
            Action::Annotate { pod, branch } => self.annotate(pod, branch, call),
            Action::ConfirmIdle(branch) => match self.user(branch) {
                Some(_) => Err(Failed::Elsewhere),
                None => Ok(Effect::Idle(true)),
            },
            Action::Disassociate {
                branch,
                association,
            } => {
                let made = self.interfaces.get_mut(branch.as_str());
                let made = made.filter(|made| made.exists() && made.association.is_some());
                if let Some(made) = made
                    && (!association.is_known() || made.association.as_ref() == Some(association))
                {
                    made.association = None;
                    self.assert_unused(branch, &call.action);
                }
                Ok(Effect::Done)
            }
            Action::DeleteBranch(branch) => {
                if self.found(branch.as_str())?.association.is_some() {
                    return Err(Failed::Unsure);
                }
                self.assert_unused(branch, &call.action);
                self.delete(branch.as_str());
                Ok(Effect::Done)
            }
        }
    }

    fn create(&mut self, token: String, request: Request) -> Result<Interface, Failed> {
        let id = match self.tokens.get(&token) {
            Some((earlier, id)) if *earlier == request => id.clone(),
            Some(_) => return Err(Failed::TokenMismatch),
            None => {
                let (kind, group_ids) = match &request {
                    Request::Trunk(group_ids) => ("trunk", group_ids.clone()),
                    Request::Branch(_, _, group_ids) => ("branch", group_ids.clone()),
                };
                let id = self.fresh_id(kind);
                let made = Made {
                    request: request.clone(),
                    group_ids,
                    association: None,
                    is_attached: false,
                    shown_from: self.now + self.lag,
                    deleted: None,
                    is_tampered: false,
                };
                self.interfaces.insert(id.clone(), made);
                self.tokens.insert(token, (request, id.clone()));
                id
            }
        };
        Ok(self.interfaces[&id].interface(&id))
    }

    /// What EC2 knows of an interface, which is not more than it shows.
    fn found(&mut self, id: &str) -> Result<&mut Made, Failed> {
        let now = self.now;
        let made = self.interfaces.get_mut(id);
        made.filter(|made| made.exists() && made.shown_from <= now)
            .ok_or(Failed::Gone)
    }

    fn delete(&mut self, id: &str) {
        let until = self.now + self.lag;
        if let Some(made) = self.interfaces.get_mut(id) {
            made.is_attached = false;
            made.association = None;
            made.deleted = Some(until);
        }
    }

    fn annotate(&mut self, uid: &PodUid, branch: &BranchId, call: &Call) -> Result<Effect, Failed> {
        let made = &self.interfaces[branch.as_str()];
        let known = call.association.clone().filter(AssociationId::is_known);
        let association = known
            .or_else(|| made.association.clone())
            .ok_or(Failed::Unsure)?;
        let is_true = made.exists() && made.association.as_ref() == Some(&association);
        let user = self.user(branch);
        let pod = self.pods.get(uid).ok_or(Failed::Elsewhere)?;
        match &pod.annotated {
            Some(named) if named == branch => return Ok(Effect::Annotated(association)),
            Some(_) => return Err(Failed::Elsewhere),
            None => {}
        }
        assert!(is_true || made.is_tampered, "{branch:?} is not associated");
        assert_eq!(user, None, "{branch:?} has a pod");
        self.annotations.insert(branch.clone(), association.clone());
        let pod = self.pods.get_mut(uid).expect("it was there just now");
        pod.annotated = Some(branch.clone());
        Ok(Effect::Annotated(association))
    }

    /// Somebody disassociates a branch, or deletes it.
    pub fn tamper(&mut self, index: usize, delete: bool) {
        let id = self.branches().nth(index).map(|(id, _)| id.to_owned());
        let Some(id) = id else { return };
        if let Some(made) = self.interfaces.get_mut(&id) {
            made.association = None;
            made.is_tampered = true;
        }
        if delete {
            self.delete(&id);
        }
    }

    fn branches(&self) -> impl Iterator<Item = (&str, &Made)> {
        let made = self.interfaces.iter();
        made.filter(|(_, made)| made.exists() && !made.is_trunk())
            .map(|(id, made)| (id.as_str(), made))
    }

    fn trunks(&self) -> impl Iterator<Item = (&str, &Made)> {
        let made = self.interfaces.iter();
        made.filter(|(_, made)| made.exists() && made.is_trunk())
            .map(|(id, made)| (id.as_str(), made))
    }

    fn attached_trunk(&self) -> Option<&str> {
        let mut trunks = self.trunks();
        trunks.find(|(_, made)| made.is_attached).map(|(id, _)| id)
    }

    fn user(&self, branch: &BranchId) -> Option<&PodUid> {
        let mut pods = self.pods.iter();
        pods.find(|(_, pod)| pod.annotated.as_ref() == Some(branch))
            .map(|(uid, _)| uid)
    }

    fn assert_unused(&self, branch: &BranchId, action: &Action) {
        let user = self.user(branch);
        assert!(user.is_none(), "{action:?} while {user:?} uses it");
    }

    /// What holds at every moment.
    pub fn assert_invariants(&self) {
        let mut users = BTreeSet::new();
        for (uid, pod) in &self.pods {
            let Some(branch) = &pod.annotated else {
                continue;
            };
            assert!(users.insert(branch), "two pods share {branch:?}");
            let made = &self.interfaces[branch.as_str()];
            let is_associated = made.exists() && made.association.is_some();
            assert!(
                is_associated || made.is_tampered,
                "{uid:?} lost its branch {branch:?}"
            );
        }
        let vlans: BTreeSet<_> = self.branches().map(|(_, made)| made.vlan()).collect();
        assert!(
            self.forgotten || vlans.len() == self.branches().count(),
            "a VLAN id is given twice"
        );
    }

    /// What holds once nothing is left to do on a node that takes part.
    pub fn assert_settled(&self, warm_limit: usize, trunk_groups: &[SecurityGroupId]) {
        let mut served = 0;
        let mut waiting = 0;
        for (uid, pod) in &self.pods {
            let Some(branch) = &pod.annotated else {
                waiting += 1;
                continue;
            };
            let made = &self.interfaces[branch.as_str()];
            if made.is_tampered && !made.exists() {
                continue;
            }
            served += 1;
            assert!(made.association.is_some(), "{uid:?} has no network");
            assert_eq!(
                ids(&made.group_ids),
                ids(&pod.group_ids),
                "the groups of {uid:?}"
            );
        }
        let spare = self.branches().count() - served;
        assert!(spare <= warm_limit, "{spare} idle branches are left");
        assert!(
            waiting == 0 || (served == LIMIT && spare == 0),
            "{waiting} pods wait while {served} have a branch and {spare} branches are idle"
        );
        let trunks: Vec<_> = self.trunks().collect();
        assert_eq!(trunks.len(), 1, "one trunk: {trunks:?}");
        assert!(trunks[0].1.is_attached, "the trunk is attached");
        assert_eq!(
            ids(&trunks[0].1.group_ids),
            ids(trunk_groups),
            "the trunk's groups"
        );
    }

    /// What holds once the node and its pods are gone.
    pub fn assert_empty(&self) {
        let left: Vec<_> = self
            .interfaces
            .iter()
            .filter(|(_, it)| it.exists())
            .collect();
        assert!(left.is_empty(), "{left:?} is left");
    }

    /// The branches that are there.
    pub fn branch_ids(&self) -> Vec<BranchId> {
        self.branches().map(|(id, _)| BranchId::from(id)).collect()
    }
}

impl Call {
    /// Whether it goes to the API server.
    pub fn is_elsewhere(&self) -> bool {
        matches!(
            self.action,
            Action::Annotate { .. } | Action::ConfirmIdle(_)
        )
    }

    /// Whether it is a single call, which nothing precedes that may have had an effect.
    pub fn is_one_call(&self) -> bool {
        match self.action {
            Action::CreateTrunk { .. }
            | Action::AttachTrunk(_)
            | Action::DeleteTrunk(_)
            | Action::Disassociate { .. } => false,
            Action::SetTrunkGroups(..)
            | Action::CreateBranch { .. }
            | Action::Associate { .. }
            | Action::SetGroups { .. }
            | Action::Reuse { .. }
            | Action::Annotate { .. }
            | Action::ConfirmIdle(_)
            | Action::DeleteBranch(_) => true,
        }
    }
}

fn ids(group_ids: &[SecurityGroupId]) -> BTreeSet<&str> {
    group_ids.iter().map(SecurityGroupId::as_str).collect()
}
