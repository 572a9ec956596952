//! Trunk associations.

use super::super::client_tokens::Made;
use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::ids::AssociationId;
use super::super::pages::Page;
use super::super::tags::Tags;
use super::super::trunks::Association;
use super::super::xml::Xml;
use super::{Action, Call, done, one};

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "AssociateTrunkInterface",
        parameters: &[
            "BranchInterfaceId",
            "TrunkInterfaceId",
            "VlanId",
            "ClientToken",
        ],
        run: associate,
    },
    Action {
        name: "DisassociateTrunkInterface",
        parameters: &["AssociationId", "ClientToken"],
        run: disassociate,
    },
    Action {
        name: "DescribeTrunkInterfaceAssociations",
        parameters: &["AssociationId", "Filter", "MaxResults", "NextToken"],
        run: describe,
    },
];

fn associate(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    const NAME: &str = "AssociateTrunkInterface";
    let parameters = call.parameters();
    let token = parameters.text("ClientToken");
    let fingerprint = call.query.fingerprint();
    if let Some(token) = token {
        let tokens = &call.cloud.client_tokens;
        if let Some(Made::Association(made)) = tokens.earlier(NAME, token, &fingerprint)? {
            return Ok(associated(made, Some(token)));
        }
    }
    let branch = parameters.id("BranchInterfaceId")?;
    let trunk = parameters.id("TrunkInterfaceId")?;
    // GRE is EC2's other protocol; no instance type uses it.
    parameters.required("VlanId")?;
    let vlan = parameters.number("VlanId")?.unwrap_or(0);
    let made = call.cloud.associate(&branch, &trunk, vlan, call.now)?;
    if let Some(token) = token {
        let kept = Made::Association(made.clone());
        let tokens = &mut call.cloud.client_tokens;
        tokens.remember(NAME, token, &fingerprint, kept, call.now);
    }
    Ok(associated(&made, token))
}

fn associated(association: &Association, token: Option<&str>) -> Xml {
    let mut xml = Xml::new();
    xml.group("interfaceAssociation", |xml| write(xml, association));
    xml.optional("clientToken", token);
    xml
}

fn disassociate(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    const NAME: &str = "DisassociateTrunkInterface";
    let parameters = call.parameters();
    let token = parameters.text("ClientToken");
    let fingerprint = call.query.fingerprint();
    let mut xml = done();
    xml.optional("clientToken", token);
    if let Some(token) = token {
        let tokens = &call.cloud.client_tokens;
        if tokens.earlier(NAME, token, &fingerprint)?.is_some() {
            return Ok(xml);
        }
    }
    let id: AssociationId = parameters.id("AssociationId")?;
    call.cloud.disassociate(&id)?;
    if let Some(token) = token {
        let tokens = &mut call.cloud.client_tokens;
        tokens.remember(NAME, token, &fingerprint, Made::Disassociation, call.now);
    }
    Ok(xml)
}

fn describe(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let name = "DescribeTrunkInterfaceAssociations";
    let page = Page::read(&parameters, name, "AssociationId", 255)?;
    let filters: Filters<Association> = Filters::read(&parameters)?;
    let ids: Vec<AssociationId> = parameters.ids("AssociationId")?;
    for id in &ids {
        if !call.cloud.associations.contains_key(id) {
            return Err(id.not_found());
        }
    }
    let found = call.cloud.associations.values().filter(|association| {
        (ids.is_empty() || ids.contains(&association.id))
            && filters.pass(association, call.cloud, call.now)
    });
    let (associations, next) = page.take(found, |association| association.id.to_string());
    let mut xml = Xml::new();
    xml.items("interfaceAssociationSet", associations, write);
    xml.optional("nextToken", next);
    Ok(xml)
}

fn write(xml: &mut Xml, association: &Association) {
    xml.text("associationId", &association.id);
    xml.text("branchInterfaceId", &association.branch_interface_id);
    xml.text("trunkInterfaceId", &association.trunk_interface_id);
    xml.text("interfaceProtocol", "VLAN");
    xml.text("vlanId", association.vlan_id);
    xml.group("tagSet", |_| {});
}

impl Described for Association {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "association-id" => |own, _, _| one(&own.id),
            "branch-interface-id" => |own, _, _| one(&own.branch_interface_id),
            "trunk-interface-id" => |own, _, _| one(&own.trunk_interface_id),
            "interface-protocol" => |_, _, _| one("VLAN"),
            "vlan-id" => |own, _, _| one(own.vlan_id),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}
