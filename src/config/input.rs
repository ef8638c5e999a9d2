//! `[input]`: the format of records, and the map from a foreign JSON's fields to ours.

use super::tree::Node;
use super::{Result, field_of};
use crate::detector::decode::{Format, InputRules};

const FORMATS: [Format; 6] = [
    Format::Auto,
    Format::Protobuf,
    Format::Json,
    Format::Cloudevents,
    Format::Openmeter,
    Format::Mapped,
];

pub(super) fn read(tree: &Node) -> Result<InputRules> {
    let field = field_of(tree, "input.format");
    let format = field.choice(&FORMATS, |format| match format {
        Format::Auto => "auto",
        Format::Protobuf => "protobuf",
        Format::Json => "json",
        Format::Cloudevents => "cloudevents",
        Format::Openmeter => "openmeter",
        Format::Mapped => "mapped",
    })?;
    let fields = field_of(tree, "input.fields").table()?;
    if format == Format::Mapped && fields.fields().next().is_none() {
        return Err(field.refuse("mapped needs [input.fields]: id = \"/json/pointer\", ..."));
    }
    Ok(InputRules { format })
}
