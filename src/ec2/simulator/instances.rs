//! Instances: run and terminated.

use serde::{Deserialize, Serialize};

use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{InstanceId, InterfaceId, ReservationId, SubnetId, VpcId};
use super::interfaces::{Interface, NewInterface, Place};
use super::tags::Tags;
use super::timestamp::Timestamp;
use crate::ec2::instance_limits::InstanceLimits;

/// An instance.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) reservation_id: ReservationId,
    pub(super) instance_type: String,
    pub(super) image_id: String,
    pub(super) key_name: Option<String>,
    pub(super) launch_index: u32,
    pub(super) vpc_id: VpcId,
    pub(super) subnet_id: SubnetId,
    pub(super) availability_zone: String,
    pub(super) launched_at: Timestamp,
    pub(super) terminated_at: Option<Timestamp>,
    pub(super) client_token: Option<String>,
    pub(super) tags: Tags,
}

/// The state of an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
}

/// What RunInstances is asked for.
pub(super) struct NewInstances {
    pub(super) instance_type: String,
    pub(super) image_id: String,
    pub(super) key_name: Option<String>,
    pub(super) count: u32,
    pub(super) client_token: Option<String>,
    pub(super) tags: Tags,
    pub(super) interface_tags: Tags,
    /// The primary one is at device index 0 of network card 0.
    pub(super) interfaces: Vec<LaunchInterface>,
}

/// An interface that an instance starts with.
pub(super) struct LaunchInterface {
    pub(super) source: InterfaceSource,
    pub(super) place: Place,
}

/// Where it comes from.
pub(super) enum InterfaceSource {
    New(Box<NewInterface>),
    Existing(InterfaceId),
}

impl InstanceState {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
        }
    }

    pub(super) fn code(self) -> u32 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
        }
    }
}

impl Cloud {
    pub(super) fn instance(&self, id: &InstanceId) -> Result<&Instance, Ec2Error> {
        self.instances.get(id).ok_or_else(|| id.not_found())
    }

    pub(super) fn instance_state(&self, instance: &Instance, now: Timestamp) -> InstanceState {
        let transition = self.behaviour.transition_ms;
        match instance.terminated_at {
            Some(at) if now < at.plus_ms(transition) => InstanceState::ShuttingDown,
            Some(_) => InstanceState::Terminated,
            None if now < instance.launched_at.plus_ms(transition) => InstanceState::Pending,
            None => InstanceState::Running,
        }
    }

    pub(super) fn limits_of(&self, id: &InstanceId) -> Option<&InstanceLimits> {
        self.limits.get(&self.instances.get(id)?.instance_type)
    }

    pub(super) fn primary_interface(&self, id: &InstanceId) -> Option<&Interface> {
        let attached = self.attached_interfaces(id);
        attached.into_iter().find(|one| one.place() == Some((0, 0)))
    }

    /// Starts all the instances, or none.
    pub(super) fn run_instances(
        &mut self,
        new: &NewInstances,
        now: Timestamp,
    ) -> Result<ReservationId, Ec2Error> {
        if self.limits.get(&new.instance_type).is_none() {
            let message = format!("Invalid value '{}' for InstanceType.", new.instance_type);
            return Err(Ec2Error::invalid_value(message));
        }
        let reservation_id: ReservationId = self.ids.id();
        let mut started = Vec::new();
        for launch_index in 0..new.count {
            match self.run_one(new, &reservation_id, launch_index, now) {
                Ok(id) => started.push(id),
                Err(error) => {
                    for id in started {
                        self.undo_launch(&id, new);
                    }
                    return Err(error);
                }
            }
        }
        Ok(reservation_id)
    }

    fn run_one(
        &mut self,
        new: &NewInstances,
        reservation_id: &ReservationId,
        launch_index: u32,
        now: Timestamp,
    ) -> Result<InstanceId, Ec2Error> {
        let primary = new.interfaces.iter();
        let mut primary = primary.filter(|one| one.place.device_index == 0);
        let subnet_id = match primary.next().map(|one| &one.source) {
            Some(InterfaceSource::New(wanted)) => wanted.subnet_id.clone(),
            Some(InterfaceSource::Existing(id)) => self.interface(id, now)?.subnet_id.clone(),
            None => {
                let message = "A network interface at device index 0 is required.";
                return Err(Ec2Error::invalid_combination(message));
            }
        };
        let id: InstanceId = self.ids.id();
        let subnet = self.subnet(&subnet_id)?;
        let instance = Instance {
            id: id.clone(),
            reservation_id: reservation_id.clone(),
            instance_type: new.instance_type.clone(),
            image_id: new.image_id.clone(),
            key_name: new.key_name.clone(),
            launch_index,
            vpc_id: subnet.vpc_id.clone(),
            subnet_id,
            availability_zone: subnet.availability_zone.clone(),
            launched_at: now,
            terminated_at: None,
            client_token: new.client_token.clone(),
            tags: new.tags.clone(),
        };
        self.instances.insert(id.clone(), instance);
        let attached = new
            .interfaces
            .iter()
            .try_for_each(|launch| self.attach_at_launch(&id, launch, &new.interface_tags, now));
        if let Err(error) = attached {
            self.undo_launch(&id, new);
            return Err(error);
        }
        Ok(id)
    }

    fn attach_at_launch(
        &mut self,
        id: &InstanceId,
        launch: &LaunchInterface,
        tags: &Tags,
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        match &launch.source {
            InterfaceSource::Existing(interface) => {
                self.attach(interface, id, launch.place, now)?;
            }
            InterfaceSource::New(wanted) => {
                let wanted = NewInterface {
                    tags: tags.clone(),
                    ..NewInterface::clone(wanted)
                };
                let interface = self.create_interface(wanted, now)?;
                // Visible with its instance, and only there for it.
                self.change_interface(&interface, |one| one.visible_at = now);
                if let Err(error) = self.attach(&interface, id, launch.place, now) {
                    self.remove_interface(&interface);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Interfaces that were there before stay.
    fn undo_launch(&mut self, id: &InstanceId, new: &NewInstances) {
        for interface in self.ids_of_attached(id) {
            let was_there = new.interfaces.iter().any(|launch| {
                matches!(&launch.source, InterfaceSource::Existing(own) if *own == interface)
            });
            if was_there {
                self.change_interface(&interface, |one| one.attachment = None);
            } else {
                self.remove_interface(&interface);
            }
        }
        self.instances.remove(id);
    }

    fn ids_of_attached(&self, id: &InstanceId) -> Vec<InterfaceId> {
        let attached = self.attached_interfaces(id).into_iter();
        attached.map(|one| one.id.clone()).collect()
    }

    /// Terminates all the instances, or none. Once more is no error.
    pub(super) fn terminate(&mut self, ids: &[InstanceId], now: Timestamp) -> Result<(), Ec2Error> {
        let missing: Vec<&InstanceId> = ids
            .iter()
            .filter(|id| !self.instances.contains_key(*id))
            .collect();
        match missing.as_slice() {
            [] => {}
            [id] => return Err(id.not_found()),
            many => {
                let list: Vec<&str> = many.iter().map(|id| id.as_str()).collect();
                let message = format!("The instance IDs '{}' do not exist", list.join(", "));
                return Err(Ec2Error::new("InvalidInstanceID.NotFound", message));
            }
        }
        for id in ids {
            if let Some(instance) = self.instances.get_mut(id)
                && instance.terminated_at.is_none()
            {
                instance.terminated_at = Some(now);
                self.release_interfaces(id);
            }
        }
        Ok(())
    }

    fn release_interfaces(&mut self, id: &InstanceId) {
        for interface in self.ids_of_attached(id) {
            let attachment = self.interfaces.get(&interface);
            let attachment = attachment.and_then(|one| one.attachment.as_ref());
            if attachment.is_some_and(|attachment| attachment.delete_on_termination) {
                self.remove_interface(&interface);
            } else {
                self.change_interface(&interface, |one| one.attachment = None);
            }
        }
    }
}
