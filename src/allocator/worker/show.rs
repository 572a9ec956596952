//! The view that the socket shows, and the gauges.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{NodeWork, VIEW_PAUSE, Worker};
use crate::allocator::cluster::PodEntry;
use crate::allocator::desired::asks;
use crate::allocator::objects::{Annotation, NodeObject};
use crate::allocator::view::{BranchState, BranchView, NodeView, TrunkView, View};
use crate::allocator::{Branch, BranchId};
use crate::api::SecurityGroupId;

impl Worker {
    /// Makes the view anew if something has changed; else says when to do so.
    pub(super) fn show(&mut self, now: Instant) -> Option<Instant> {
        if !self.is_view_stale || !self.cluster.is_complete() {
            return None;
        }
        if let Some(at) = self.shown_at.map(|at| at + VIEW_PAUSE)
            && at > now
        {
            return Some(at);
        }
        let view = self.look(now);
        self.vpc_id.clone_from(&view.vpc_id);
        self.count(&view);
        self.view.send_replace(Arc::new(view));
        // Of many nodes it takes longer, and is made so much more seldom.
        let took = now.elapsed();
        self.shown_at = Some(now + took * 20);
        self.is_view_stale = false;
        None
    }

    fn look(&self, now: Instant) -> View {
        let cool_since = now.checked_sub(self.cluster.cooldown.period);
        let leadership = self.leadership.borrow().clone();
        let users = self.users();
        let mut nodes = Vec::new();
        let mut vpc_id = None;
        for node in self
            .cluster
            .nodes
            .values()
            .filter(|node| asks(&self.cluster, node))
        {
            let work = self.work.as_ref();
            let known = node.instance_id().and_then(|id| work?.nodes.get(id));
            let instance = known.and_then(|it| it.instance.as_ref());
            vpc_id = vpc_id.or_else(|| instance.map(|it| it.vpc_id.clone()));
            nodes.push(self.node_view(node, known, &users, cool_since));
        }
        if let Some(work) = &self.work {
            let gone = work
                .nodes
                .iter()
                .filter(|(id, _)| self.cluster.node_of(id).is_none());
            for (id, known) in gone.filter(|(_, known)| !known.state.is_empty()) {
                let mut view = NodeView {
                    name: known.name.clone().unwrap_or_default(),
                    instance_id: id.clone(),
                    problem: Some("the node is gone; its interfaces go too".to_owned()),
                    ..NodeView::default()
                };
                show_interfaces(&mut view, known, &users, cool_since);
                nodes.push(view);
            }
        }
        View {
            leading: leadership.is_held(),
            leader: leadership.holder,
            vpc_id: vpc_id.or_else(|| self.vpc_id.clone()),
            nodes,
        }
    }

    fn node_view(
        &self,
        node: &NodeObject,
        known: Option<&NodeWork>,
        users: &BTreeMap<BranchId, String>,
        cool_since: Option<Instant>,
    ) -> NodeView {
        let capacity = node.capacity().and_then(|number| number.parse().ok());
        let mut view = NodeView {
            name: node.name().to_owned(),
            instance_id: node.instance_id().unwrap_or_default().to_owned(),
            capacity: capacity.unwrap_or(0),
            requested: self.cluster.pods_on(node.name()).count(),
            ..NodeView::default()
        };
        if let Some(known) = known {
            view.problem.clone_from(&known.problem);
            show_interfaces(&mut view, known, users, cool_since);
        }
        view
    }

    fn users(&self) -> BTreeMap<BranchId, String> {
        let named = |pod: &PodEntry| match &pod.object.annotation {
            Annotation::Names(interface) => Some((
                BranchId::from(interface.interface_id.as_str()),
                pod.full_name(),
            )),
            _ => None,
        };
        self.cluster.pods.values().filter_map(named).collect()
    }

    fn count(&self, view: &View) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let waiting = || {
            let pods = self.cluster.pods.values().map(|pod| &pod.object);
            pods.filter(|pod| pod.annotation == Annotation::Absent)
        };
        self.metrics.waiting_pods.set(count(waiting().count()));
        // Not how long: nothing moves that on while nothing changes.
        let since = waiting().filter_map(|pod| pod.bound_at).min();
        let since = since.map_or(0, |it| it.as_second());
        self.metrics.waiting_since.set(since);
        let states = [
            (BranchState::Preparing, &self.metrics.preparing),
            (BranchState::InUse, &self.metrics.in_use),
            (BranchState::Cooling, &self.metrics.cooling),
            (BranchState::Warm, &self.metrics.warm),
        ];
        for (state, gauge) in states {
            let branches = view.nodes.iter().flat_map(|node| &node.branches);
            gauge.set(count(
                branches.filter(|branch| branch.state == state).count(),
            ));
        }
        let trunks = view
            .nodes
            .iter()
            .filter(|node| node.trunk.is_some())
            .count();
        self.metrics.trunks.set(count(trunks));
        let capacity = view.nodes.iter().map(|node| node.capacity).sum();
        self.metrics.capacity.set(count(capacity));
    }
}

fn show_interfaces(
    view: &mut NodeView,
    known: &NodeWork,
    users: &BTreeMap<BranchId, String>,
    cool_since: Option<Instant>,
) {
    let observed = &known.state.observed;
    view.trunk = observed.trunk.as_ref().map(|trunk| TrunkView {
        id: trunk.id.as_str().to_owned(),
        attached: trunk.attached,
        group_ids: texts(&trunk.group_ids),
    });
    let branches = observed.branches.iter();
    view.branches = branches
        .map(|(id, branch)| {
            let facts = known.state.facts.get(id).cloned().unwrap_or_default();
            let user = users.get(id);
            BranchView {
                id: id.as_str().to_owned(),
                vlan: branch.vlan.number(),
                private_ip: facts.private_ip,
                group_ids: texts(&branch.group_ids),
                state: state_of(branch, user.is_some(), cool_since),
                pod: user.cloned(),
            }
        })
        .collect();
    view.branches.sort_by_key(|branch| branch.vlan);
}

fn state_of(branch: &Branch, is_used: bool, cool_since: Option<Instant>) -> BranchState {
    match branch.idle_since {
        _ if is_used => BranchState::InUse,
        None => BranchState::Preparing,
        Some(idle_since) if cool_since.is_some_and(|cool| idle_since <= cool) => BranchState::Warm,
        Some(_) => BranchState::Cooling,
    }
}

fn texts(group_ids: &[SecurityGroupId]) -> Vec<String> {
    group_ids.iter().map(SecurityGroupId::to_string).collect()
}
